//! Providers: addresses, credentials, headers.

use super::file::{self, File};
use super::problem::{Place, Report};
use super::read::At;
use super::resolve::{missing, scope, timeout};
use super::roots::Known;
use super::snapshot::{Http2, OnDisconnect, Provider};
use super::text::Texts;
use crate::catalog;
use crate::secret::Secret;
use crate::units::Dialect;
use ahash::AHashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Headers that the proxy itself is answerable for.
const RESERVED: [&str; 9] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "accept-encoding",
];

/// `old` are the providers of the configuration in force.
pub(crate) fn resolve(
    file: &File,
    texts: Texts<'_>,
    old: Option<&AHashMap<String, Arc<Provider>>>,
    report: &mut Report,
) -> AHashMap<String, Arc<Provider>> {
    let mut known = Known::of(old.into_iter().flat_map(|old| old.values()));
    let named = file.providers.as_ref().map(|p| p.0.as_slice()).unwrap_or_default();
    let mut out = AHashMap::new();
    for (name, at) in named {
        // The name is part of a path, `/passthrough/{provider}/…`, and of `provider/model`.
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
            let fix = "Use letters, digits, `-`, `_` and `.` only";
            report.problem(&at.place, "not a name for a provider", fix);
        }
        if let Some(provider) = provider(name, &at.value, texts, &mut known, report) {
            out.insert(name.clone(), Arc::new(provider));
        }
    }
    out
}

fn provider(
    name: &str,
    written: &file::Provider,
    texts: Texts<'_>,
    known: &mut Known,
    report: &mut Report,
) -> Option<Provider> {
    let place = &written.place;
    if !written.has("dialect") {
        missing(place, "dialect", "Write `dialect: openai`, `anthropic` or `gemini`", report);
    }
    if !written.has("base_url") {
        missing(place, "base_url", "Write the URL that the provider's own SDK uses", report);
    }
    let url = written.base_url.as_ref().and_then(|raw| base_url(raw, texts, report));
    let api_key = written.api_key.as_ref().and_then(|raw| api_key(raw, name, texts, report));
    let headers = headers(written, texts, report);
    let roots = written.ca_file.as_ref().and_then(|raw| known.read(raw, texts, report));
    let scope = scope(written.limits.as_ref(), written.budgets.as_deref(), report);
    let connect_timeout = timeout(written.connect_timeout.as_ref(), 5, report);
    let read_timeout = timeout(written.read_timeout.as_ref(), 300, report);
    let unmetered = unmetered(written, report);
    let (dialect, url) = (written.dialect?, url?);
    if let Some(raw) = &written.base_url {
        hints(dialect, &url, api_key.is_some(), &raw.place, report);
    }
    Some(Provider {
        name: name.to_owned(),
        dialect,
        catalog: catalog::provider_of(&url.host, name),
        tls: url.tls,
        host: url.host,
        port: url.port,
        authority: url.authority,
        base_path: url.path,
        credential: Provider::name_credential(name, api_key.as_ref()),
        api_key,
        headers,
        connect_timeout,
        read_timeout,
        http2: written.http2.unwrap_or(Http2::Auto),
        roots,
        on_disconnect: written.on_disconnect.unwrap_or(OnDisconnect::Cancel),
        passthrough_unmetered: unmetered,
        scope,
    })
}

/// The parts of a base URL.
struct BaseUrl {
    tls: bool,
    host: String,
    port: u16,
    authority: String,
    path: String,
}

fn base_url(raw: &At<String>, texts: Texts<'_>, report: &mut Report) -> Option<BaseUrl> {
    let text = texts.text(raw, report)?;
    match split(&text) {
        Ok(url) => Some(url),
        // What it says is not repeated: a variable may have put a secret in.
        Err(why) => {
            let fix = "Write scheme, host and path, such as https://api.openai.com/v1";
            report.problem(&raw.place, why, fix);
            None
        }
    }
}

fn split(text: &str) -> Result<BaseUrl, &'static str> {
    if text.contains('#') {
        return Err("a URL with a fragment");
    }
    let uri: http::Uri = text.parse().map_err(|_| "not a URL")?;
    let tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err("neither http nor https"),
    };
    let authority = uri.authority().ok_or("a URL without a host")?;
    if authority.as_str().contains('@') {
        return Err("a URL with a user name; credentials belong in api_key");
    }
    if uri.query().is_some() {
        return Err("a URL with a query");
    }
    let host = authority.host().to_ascii_lowercase();
    let given = authority.as_str().strip_prefix(authority.host()).unwrap_or("");
    let port = match authority.port_u16() {
        Some(0) => return Err("a URL with port 0"),
        Some(port) => port,
        None if given.is_empty() => {
            if tls {
                443
            } else {
                80
            }
        }
        None => return Err("a URL with a port that is no port"),
    };
    let standard = port == if tls { 443 } else { 80 };
    let shown = if standard { host.clone() } else { format!("{host}:{port}") };
    let path = uri.path().trim_end_matches('/');
    if path.split('/').any(|part| part == "..") {
        return Err("a URL with `..` in its path");
    }
    Ok(BaseUrl {
        tls,
        host: host.trim_matches(['[', ']']).to_owned(),
        port,
        authority: shown,
        path: path.to_owned(),
    })
}

/// Slips that are legal.
fn hints(dialect: Dialect, url: &BaseUrl, has_key: bool, at: &Place, report: &mut Report) {
    if dialect == Dialect::OpenAi && url.path.is_empty() {
        let fix = "OpenAI's API begins at /v1: end base_url with it";
        report.warning(at, "base_url has no path", fix);
    }
    let endpoints = ["/completions", "/responses", "/embeddings", "/messages"];
    if let Some(endpoint) = endpoints.iter().find(|endpoint| url.path.ends_with(*endpoint)) {
        let message = format!("base_url ends with {endpoint}");
        report.warning(
            at,
            message,
            "The paths of the endpoints are added to it: leave them off here",
        );
    }
    if dialect == Dialect::Anthropic && url.path.ends_with("/v1") {
        let fix = "The /v1 is added to it: leave it off here";
        report.warning(at, "base_url ends with /v1", fix);
    }
    let local =
        url.host == "localhost" || url.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if has_key && !url.tls && !local {
        let fix = "Write https://";
        report.warning(at, "the api_key goes over the network in plain text", fix);
    }
}

fn api_key(raw: &At<String>, name: &str, texts: Texts<'_>, report: &mut Report) -> Option<Secret> {
    let found = texts.secret(raw, report)?;
    if found.inline {
        let upper = name.to_ascii_uppercase().replace(['-', '.'], "_");
        let fix = format!("Write api_key: \"${{{upper}_API_KEY}}\" or \"file:PATH\"");
        report.warning(&raw.place, "the key stands in this file in plain text", fix);
    }
    Some(found.secret)
}

fn headers(
    written: &file::Provider,
    texts: Texts<'_>,
    report: &mut Report,
) -> Vec<(http::HeaderName, Secret)> {
    let named = written.headers.as_ref().map(|h| h.0.as_slice()).unwrap_or_default();
    let mut out = Vec::new();
    for (name, at) in named {
        let Ok(parsed) = name.to_ascii_lowercase().parse::<http::HeaderName>() else {
            report.problem(&at.place, "not the name of a header", "");
            continue;
        };
        if RESERVED.contains(&parsed.as_str()) {
            report.problem(&at.place, "this header is set by Tollbar itself", "Leave it out");
        } else if let Some(found) = texts.secret(&at.value, report) {
            out.push((parsed, found.secret));
        }
    }
    out
}

fn unmetered(written: &file::Provider, report: &mut Report) -> Vec<String> {
    let listed = written.passthrough.as_ref().and_then(|p| p.unmetered.as_ref());
    let mut out = Vec::new();
    for path in listed.into_iter().flatten() {
        if !path.value.starts_with('/') || path.value == "/*" {
            let fix = "Write paths that begin with `/`, such as \"/files*\"";
            report.problem(&path.place, "not a path, or every path", fix);
        }
        out.push(path.value.clone());
    }
    out
}
