//! What goes upstream: which peer, with which header, with which bytes.

use super::admit;
use super::authenticate::KEY_HEADERS;
use super::exchange::{BodyFields, Call, Exchange};
use super::trust;
use crate::config::snapshot::{Http2, Provider, Target};
use crate::plan::Candidate;
use crate::state::Gateway;
use crate::units::Dialect;
use crate::wire::multipart;
use crate::wire::route::Endpoint;
use crate::wire::scan::CapName;
use crate::wire::splice::{self, Wanted};
use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method};
use pingora_core::protocols::ALPN;
use pingora_core::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora_http::RequestHeader;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes that a socket takes at once, whatever its peer does: Linux begins with 16 KiB.
const SOCKET_BUFFER: usize = 8 * 1024;

/// The version sent to Anthropic where the client named none.
const ANTHROPIC_VERSION: &str = "2023-06-01";

/// Request headers that end here: the client's credentials, what belongs to one hop, what
/// claims to know where the request came from, and what the gateway sets itself.
const NOT_FORWARDED: [&str; 30] = [
    "host",
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "expect",
    "content-length",
    "accept-encoding",
    "cookie",
    "forwarded",
    "via",
    "x-real-ip",
    "x-request-id",
    "content-encoding",
    // They make another call of it than the one that was let through …
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    // … or leave the usage out of the answer, …
    "x-goog-fieldmask",
    // … or choose who pays, and how much.
    "x-goog-user-project",
    "x-amzn-bedrock-service-tier",
    "x-vertex-ai-llm-request-type",
    "x-vertex-ai-llm-shared-request-type",
    "openai-organization",
    "openai-project",
];

/// The client's bytes, with the fields changed that this target needs.
///
/// `clamped` is a tighter cap on the output than the model's, in tokens.
pub fn body_for(call: &Call, candidate: &Candidate, clamped: Option<u64>) -> Bytes {
    let target = &candidate.target;
    // What is passed through asks for what its client wrote.
    let model = call.via.as_ref().map_or(target.model.as_str(), |via| &via.model);
    let cap = clamped.into_iter().chain(candidate.model.max_output_tokens).min();
    match &call.fields {
        BodyFields::Json(fields) => {
            let wanted = Wanted {
                model: (!call.endpoint.model_in_path()).then_some(model),
                cap_name: cap_name(call.endpoint, target),
                older_cap: knows_older_cap_only(call.endpoint, target),
                output_cap: cap,
                zero_is_none: !admit::zero_is_a_cap(call.endpoint),
                include_usage: asks_usage(call.endpoint, target) && call.stream,
            };
            splice::splice(&call.body, &splice::edits(fields, &wanted))
        }
        BodyFields::Opaque => call.body.clone(),
        BodyFields::Form(form, boundary) => {
            splice::splice(&call.body, &multipart::edits(form, boundary, model))
        }
    }
}

/// Whether a client of Gemini's wants its stream as events. Without that word it is an array, which
/// grows.
fn wants_events(endpoint: Endpoint, client: &RequestHeader) -> bool {
    let target = std::str::from_utf8(client.raw_path()).unwrap_or_default();
    let query = target.split_once('?').map_or("", |(_, query)| query);
    endpoint == Endpoint::GeminiStream
        && query.split('&').any(|word| matches!(word, "alt=sse" | "$alt=sse" | "%24alt=sse"))
}

/// Whether usage has to be asked for in this endpoint's streams.
pub fn asks_usage(endpoint: Endpoint, target: &Target) -> bool {
    matches!(endpoint, Endpoint::ChatCompletions | Endpoint::Completions)
        && !target.habits.tells_usage
}

/// The name by which this endpoint knows an output cap, if it knows one.
pub fn cap_name(endpoint: Endpoint, target: &Target) -> Option<CapName> {
    match endpoint {
        Endpoint::ChatCompletions if wants_new_name(target) => Some(CapName::MaxCompletionTokens),
        Endpoint::ChatCompletions | Endpoint::Completions | Endpoint::Messages => {
            Some(CapName::MaxTokens)
        }
        Endpoint::Responses => Some(CapName::MaxOutputTokens),
        Endpoint::GeminiGenerate | Endpoint::GeminiStream => Some(CapName::GenerationConfig),
        _ => None,
    }
}

/// Whether the target may take no notice of chat's newer name of an output cap. Ollama, for one,
/// doesn't, and who serves at an address of its own can't be known.
pub fn knows_older_cap_only(endpoint: Endpoint, target: &Target) -> bool {
    endpoint == Endpoint::ChatCompletions && !target.habits.newer_cap && !wants_new_name(target)
}

/// OpenAI's reasoning models refuse `max_tokens`; most compatible servers know nothing else.
fn wants_new_name(target: &Target) -> bool {
    let reasoning = |id: &str| {
        id.starts_with("gpt-5")
            || id.starts_with("o1")
            || id.starts_with("o3")
            || id.starts_with("o4")
    };
    let official = target
        .card
        .as_ref()
        .is_some_and(|card| card.provider == "openai" || card.provider == "azure");
    official || reasoning(target.model.rsplit('/').next().unwrap_or(&target.model))
}

/// Streams that share a connection at most, …
const H2_STREAMS: u16 = 100;

/// … and the bytes of each that may wait for its client. All of them together don't fill what the
/// connection may have: a client that doesn't read is in nobody else's way.
const H2_WINDOW: u32 = 256 * 1024;

/// Where and how to connect for the running attempt.
///
/// # Errors
/// Why this provider can't be connected to, in words for the client. Others may do.
pub fn peer(
    provider: &Provider,
    address: std::net::SocketAddr,
    call: &Call,
) -> Result<HttpPeer, String> {
    // An empty SNI would switch certificate checks off in Pingora: the host is never empty.
    let mut peer = HttpPeer::new(address, provider.tls, provider.host.clone());
    let left = call.deadline.saturating_duration_since(Instant::now());
    let options = &mut peer.options;
    options.connection_timeout = Some(provider.connect_timeout.min(left));
    options.total_connection_timeout = Some(provider.connect_timeout.min(left));
    options.read_timeout = Some(provider.read_timeout);
    options.idle_timeout = Some(Duration::from_secs(60));
    options.max_h2_streams = usize::from(H2_STREAMS);
    options.h2_stream_window_size = Some(H2_WINDOW);
    options.h2_connection_window_size = Some(H2_WINDOW * (u32::from(H2_STREAMS) + 1));
    options.alpn = match provider.http2 {
        Http2::Auto if provider.tls => ALPN::H2H1,
        Http2::Auto | Http2::Never => ALPN::H1,
        Http2::Always => ALPN::H2,
    };
    // `header` builds the request's header anew. Pingora's own rules would refuse a client for what
    // it names in `connection`, without a word to it.
    options.http_upstream_request_policy = HttpUpstreamRequestPolicy::preserve();
    // What fits into an idle socket's buffer never waits, and a timer costs every request. HTTP/2
    // shares its connection, and may have to wait for room all the same.
    let fits = call.body.len() <= SOCKET_BUFFER && options.alpn == ALPN::H1;
    options.write_timeout = (!fits).then_some(provider.read_timeout);
    if let Some(roots) = &provider.roots {
        let name = &provider.name;
        let unusable = || format!("the roots in the ca_file of `{name}` can't be used");
        options.ca = Some(trust::roots(roots).ok_or_else(unusable)?);
    }
    // Connections are never shared between providers, nor between sets of trusted roots.
    let mut hasher = ahash::RandomState::with_seeds(1, 2, 3, 4).build_hasher();
    hasher.write(provider.name.as_bytes());
    hasher.write_u8(0);
    hasher.write(hash_of_roots(provider));
    if call.stale > 0 {
        // Where one pooled connection was dead others may be: this one is new.
        static NEW: AtomicU64 = AtomicU64::new(1);
        hasher.write_u64(NEW.fetch_add(1, Ordering::Relaxed));
    }
    peer.group_key = hasher.finish();
    Ok(peer)
}

/// Whether a reload has given the provider another address since the running attempt began to
/// connect: what goes to it now, a new credential above all, is not for the old one.
pub fn has_moved(gateway: &Gateway, exchange: &Exchange) -> bool {
    let attempt = exchange.call.as_ref().and_then(|call| call.current.as_ref());
    let Some(old) = attempt.map(|attempt| &attempt.provider) else { return false };
    let newest = gateway.live.peek();
    newest.providers.get(&old.name).is_none_or(|new| {
        !Arc::ptr_eq(new, old)
            && (new.tls, &new.host, new.port, hash_of_roots(new))
                != (old.tls, &old.host, old.port, hash_of_roots(old))
    })
}

/// Tells one set of trusted roots from another. Empty for the system's.
fn hash_of_roots(provider: &Provider) -> &[u8] {
    provider.roots.as_ref().map_or(&[], |roots| &roots.hash)
}

/// The header of the upstream request, built anew: nothing of the client's goes through unless
/// it may.
///
/// # Errors
/// When the configured URL or headers can't be put on the wire.
pub fn header(
    gateway: &Gateway,
    exchange: &Exchange,
    client: &RequestHeader,
) -> pingora_core::Result<RequestHeader> {
    let newest = gateway.live.peek();
    let missing =
        || pingora_core::Error::explain(pingora_core::ErrorType::InternalError, "no attempt");
    let call = exchange.call.as_ref().ok_or_else(missing)?;
    let attempt = call.current.as_ref().ok_or_else(missing)?;
    let target = &attempt.candidate.target;
    let provider = newest.providers.get(&target.provider).ok_or_else(missing)?;
    let (method, path) = match &call.via {
        Some(via) => (via.method.clone(), via.target.clone()),
        None => {
            let path = call.endpoint.upstream_path(&target.model);
            let form = if wants_events(call.endpoint, client) { "?alt=sse" } else { "" };
            (Method::POST, format!("{}{path}{form}", provider.base_path))
        }
    };
    let room = Some(client.headers.len() + 4);
    let mut header = RequestHeader::build_no_case(method, path.as_bytes(), room)?;
    header.insert_header(header::HOST, provider.authority.as_str())?;
    for (name, value) in forwarded(&client.headers) {
        header.append_header(name.clone(), value.clone())?;
    }
    if !attempt.body.is_empty() || header.method == Method::POST {
        header.insert_header(header::CONTENT_LENGTH, attempt.body.len().to_string())?;
    }
    // Compression would make streams arrive in bursts.
    header.insert_header(header::ACCEPT_ENCODING, "identity")?;
    if provider.dialect == Dialect::Anthropic && !client.headers.contains_key("anthropic-version") {
        header.insert_header("anthropic-version", ANTHROPIC_VERSION)?;
    }
    credential(&mut header, provider)?;
    for (name, value) in &provider.headers {
        header.insert_header(name.clone(), secret_value(value.expose())?)?;
    }
    Ok(header)
}

fn credential(header: &mut RequestHeader, provider: &Provider) -> pingora_core::Result<()> {
    let Some(key) = &provider.api_key else {
        return Ok(());
    };
    match provider.dialect {
        Dialect::OpenAi => header.insert_header(
            header::AUTHORIZATION,
            secret_value(&format!("Bearer {}", key.expose()))?,
        ),
        Dialect::Anthropic => header.insert_header("x-api-key", secret_value(key.expose())?),
        Dialect::Gemini => header.insert_header("x-goog-api-key", secret_value(key.expose())?),
    }
}

/// A header value that Debug output shows as `Sensitive`, and HTTP/2 never indexes.
fn secret_value(text: &str) -> pingora_core::Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        pingora_core::Error::explain(
            pingora_core::ErrorType::InternalError,
            "a configured header has characters that no header may have",
        )
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// The client's headers that a provider may see.
fn forwarded(headers: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    let nominated: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    headers.iter().filter(move |(header, _)| {
        let name = header.as_str();
        !(NOT_FORWARDED.contains(&name)
            || KEY_HEADERS.contains(header)
            || name.starts_with("x-tollbar-")
            || name.starts_with("x-forwarded-")
            || nominated.iter().any(|nominated| nominated == name))
    })
}
