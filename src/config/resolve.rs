//! The file as written to a [`Snapshot`]: defaults, references, rules.

use super::alike::KeyList;
use super::file::{self, File};
use super::problem::{Place, Report};
use super::read::{At, Named};
use super::snapshot::*;
use super::text::Texts;
use super::{callers, check, keylist, models, prices, providers, whole_file};
use crate::units::NanoUsd;
use ahash::AHashMap;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// What a configuration is resolved against.
pub(crate) struct Input<'a> {
    pub texts: Texts<'a>,
    /// The items of `keys:`; `File` has none.
    pub keys: KeyList<'a>,
    pub hash: String,
    /// The configuration in force.
    pub old: Option<&'a Snapshot>,
}

/// Everything that can be resolved; what cannot is in the report, and the snapshot is then
/// not to be used. `None`: not even a shape.
pub(crate) fn snapshot(file: &File, input: Input<'_>, report: &mut Report) -> Option<Snapshot> {
    required(file, report);
    let texts = input.texts;
    let listeners = listeners(file, texts, report);
    let admin = admin(file, texts, report);
    check::addresses(&listeners, &admin, report);
    let old = input.old.map(|old| &old.providers);
    let providers = providers::resolve(file, texts, old, report);
    let catalog = prices::catalog(file, texts, &providers, report);
    let tiers = check::tiers(file.tiers.as_deref(), report);
    let places = models::Places { file, providers: &providers, catalog: &catalog, tiers: &tiers };
    let models = models::resolve(places, texts, report);
    let teams = scopes(file.teams.as_ref(), report);
    let users = scopes(file.users.as_ref(), report);
    let global = file.global.as_ref().map(|g| scope_of(g, report)).unwrap_or_default();
    let around = callers::Around::file(file, &teams, &users, &global);
    let keys = keylist::resolve(input.keys, &around, texts, input.old.map(|old| &old.keys), report);
    Some(Snapshot {
        generation: input.old.map_or(1, |old| old.generation + 1),
        hash: input.hash,
        listeners: listeners.into_iter().map(|l| l.value).collect(),
        admin: admin.value,
        state_path: state_path(file, texts, report)?,
        state_on_failure: file
            .state
            .as_ref()
            .and_then(|s| s.on_failure)
            .unwrap_or(OnFailure::Closed),
        state_retention: retention(file, report),
        server: server(file, report),
        timezone: timezone(file, texts, report)?,
        providers,
        tiers,
        models,
        attempts: attempts(file, report),
        breaker: breaker(file, report),
        admission_wait: file
            .admission
            .as_ref()
            .and_then(|a| a.wait)
            .unwrap_or(Duration::from_secs(2)),
        keys,
        teams,
        users,
        global,
        alerts: alerts(file, texts, report),
        catalog,
    })
}

fn required(file: &File, report: &mut Report) {
    let sections = [
        ("listeners", "Write `listeners: [ { address: 0.0.0.0:8080 } ]`"),
        ("providers", "Name at least one provider; conf/tollbar.yaml shows how"),
        ("models", "Name the models that clients may ask for; conf/tollbar.yaml shows how"),
        ("keys", "Make one with `tollbar keygen`"),
    ];
    for (section, fix) in sections {
        if !file.has(section) {
            let at = whole_file().key(section);
            report.problem(&at, "missing", fix);
        }
    }
    let empty = [
        ("listeners", file.listeners.as_ref().is_some_and(Vec::is_empty)),
        ("providers", file.providers.as_ref().is_some_and(|p| p.0.is_empty())),
        ("models", file.models.as_ref().is_some_and(|m| m.0.is_empty())),
    ];
    for (section, _) in empty.iter().filter(|(_, empty)| *empty) {
        report.problem(&whole_file().key(section), "is empty", "Name at least one");
    }
}

/// An IP address and a port.
fn address(raw: &At<String>, texts: Texts<'_>, report: &mut Report) -> Option<SocketAddr> {
    let text = texts.text(raw, report)?;
    let parsed = text.parse().ok();
    if parsed.is_none() {
        let fix = "Write an IP address and a port, such as 127.0.0.1:8080 or [::]:8080";
        report.problem(&raw.place, "not an address", fix);
    }
    parsed
}

fn listeners(file: &File, texts: Texts<'_>, report: &mut Report) -> Vec<At<Listener>> {
    let mut out = Vec::new();
    for listener in file.listeners.iter().flatten() {
        if !listener.has("address") {
            let fix = "Write `address: 0.0.0.0:8080`";
            report.problem(&listener.place.key("address"), "missing", fix);
        }
        let tls = listener.tls.as_ref().and_then(|tls| tls_files(tls, texts, report));
        let raw = listener.address.as_ref();
        if let Some(address) = raw.and_then(|raw| address(raw, texts, report)) {
            let place = listener.place.key("address");
            out.push(At { value: Listener { address, tls }, place });
        }
    }
    out
}

fn tls_files(tls: &file::Tls, texts: Texts<'_>, report: &mut Report) -> Option<TlsFiles> {
    let mut pem = |name: &str, given: &Option<At<String>>, begins: &str| {
        let Some(raw) = given else {
            if !tls.has(name) {
                let fix = format!("Write `{name}: PATH` of a PEM file");
                report.problem(&tls.place.key(name), "missing", fix);
            }
            return None;
        };
        let (path, content) = texts.file(raw, report)?;
        if !content.contains(begins) {
            let message = format!("{} has no `{begins}`", path.display());
            report.problem(&raw.place, message, "Name a PEM file");
            return None;
        }
        Some((path, content))
    };
    let cert = pem("cert", &tls.cert, "BEGIN CERTIFICATE");
    let key = pem("key", &tls.key, "PRIVATE KEY-----");
    let ((cert, chain), (key, private)) = (cert?, key?);
    if let Err(why) = belong_together(&chain, &private) {
        let message = format!("{} and {}: {why}", cert.display(), key.display());
        report.problem(&tls.place, message, "Name a certificate and its own key");
    }
    Some(TlsFiles { cert, key })
}

/// Whether this is a certificate and its key, both in PEM: a renewal may have written one of two
/// files only.
fn belong_together(chain: &str, key: &str) -> Result<(), String> {
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| format!("the certificate can't be read: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|error| format!("the key can't be read: {error}"))?;
    let provider = rustls::crypto::ring::default_provider();
    match CertifiedKey::from_der(chain, key, &provider) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => Err("the key is not the certificate's".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn admin(file: &File, texts: Texts<'_>, report: &mut Report) -> At<Admin> {
    let written = file.admin.as_ref();
    let place = written.map_or_else(|| whole_file().key("admin"), |a| a.place.key("address"));
    let default = SocketAddr::from(([127, 0, 0, 1], 9090));
    let address = written
        .and_then(|admin| admin.address.as_ref())
        .and_then(|raw| address(raw, texts, report))
        .unwrap_or(default);
    let token = written.and_then(|admin| admin.token.as_ref()).and_then(|raw| {
        let found = texts.secret(raw, report)?;
        check::admin_token(&found, &raw.place, report);
        Some(found.secret)
    });
    At { value: Admin { address, token }, place }
}

/// Where the state file is, and the time zone.
pub(crate) fn books(
    file: &File,
    texts: Texts<'_>,
    report: &mut Report,
) -> Option<(std::path::PathBuf, chrono_tz::Tz)> {
    Some((state_path(file, texts, report)?, timezone(file, texts, report)?))
}

fn state_path(file: &File, texts: Texts<'_>, report: &mut Report) -> Option<std::path::PathBuf> {
    match file.state.as_ref().and_then(|state| state.path.as_ref()) {
        Some(raw) => texts.path(raw, report),
        None => Some(texts.dir.join("tollbar.db")),
    }
}

fn retention(file: &File, report: &mut Report) -> Option<Duration> {
    let raw = file.state.as_ref()?.retention.as_ref()?;
    at_least(raw, Duration::from_secs(86_400), report);
    Some(raw.value)
}

fn timezone(file: &File, texts: Texts<'_>, report: &mut Report) -> Option<chrono_tz::Tz> {
    let Some(raw) = &file.timezone else {
        return Some(chrono_tz::UTC);
    };
    let name = texts.text(raw, report)?;
    let parsed = name.parse().ok();
    if parsed.is_none() {
        let names = chrono_tz::TZ_VARIANTS.iter().map(|tz| tz.name());
        let fix = match super::suggest::nearest(&name, names) {
            Some(near) => format!("Did you mean `{near}`?"),
            None => "Write an IANA name such as UTC or Europe/Berlin".to_owned(),
        };
        let message = format!("unknown time zone `{}`", super::suggest::shown(&raw.value));
        report.problem(&raw.place, message, fix);
    }
    parsed
}

/// A duration that cannot be shorter; returns it all the same.
pub(crate) fn at_least(raw: &At<Duration>, least: Duration, report: &mut Report) -> Duration {
    if raw.value < least {
        let message = format!("{:?} is too short", raw.value);
        report.problem(&raw.place, message, format!("Write at least {least:?}"));
    }
    raw.value
}

/// A duration of at least a millisecond, or the default.
pub(crate) fn timeout(raw: Option<&At<Duration>>, default: u64, report: &mut Report) -> Duration {
    raw.map_or(Duration::from_secs(default), |raw| at_least(raw, Duration::from_millis(1), report))
}

fn server(file: &File, report: &mut Report) -> Server {
    let written = file.server.clone().unwrap_or_default();
    let (threads, auto_threads) = match written.threads.as_ref().map(|t| t.value) {
        Some(file::Threads::Exactly(n)) => (n, false),
        _ => (std::thread::available_parallelism().map_or(1, usize::from), true),
    };
    let size = |raw: &Option<At<super::read::Size>>, mib: u64| {
        raw.as_ref().map_or(mib << 20, |s| s.value.0)
    };
    let body = size(&written.max_body_bytes, 64);
    let buffered = size(&written.max_buffered_bytes, 512);
    if body == 0 {
        let at = written.place.key("max_body_bytes");
        report.problem(&at, "must be more than zero", "Write a size such as 64MiB");
    }
    if buffered < body {
        let at = written.max_buffered_bytes.as_ref().map_or(&written.place, |b| &b.place);
        let message =
            "max_buffered_bytes is less than max_body_bytes: the largest body would never fit";
        report.problem(at, message, format!("Write at least {body}B, or lower max_body_bytes"));
    }
    Server {
        threads,
        auto_threads,
        max_body_bytes: body,
        max_buffered_bytes: buffered,
        max_memory: max_memory(&written, report),
        drain: written.drain.unwrap_or(Duration::from_secs(30)),
        header_timeout: timeout(written.header_timeout.as_ref(), 30, report),
        idle_timeout: timeout(written.idle_timeout.as_ref(), 60, report),
    }
}

/// Less than an idle process needs would be the end of all service: surely not meant.
const LEAST_MEMORY: u64 = 64 << 20;

fn max_memory(written: &file::Server, report: &mut Report) -> MaxMemory {
    let Some(raw) = &written.max_memory else { return MaxMemory::Auto };
    if matches!(raw.value, MaxMemory::Bytes(bytes) if bytes < LEAST_MEMORY) {
        let message =
            "max_memory is less than an idle process may use: everything would be refused";
        report.warning(&raw.place, message, "Write at least 64MiB, or `auto`");
    }
    raw.value
}

fn attempts(file: &File, report: &mut Report) -> Attempts {
    let written = file.attempts.clone().unwrap_or_default();
    if let Some(max) = written.max.as_ref().filter(|m| !(1..=32).contains(&m.value)) {
        report.problem(&max.place, "out of range", "Write a number from 1 to 32");
    }
    Attempts {
        max: written.max.map_or(3, |m| m.value),
        deadline: timeout(written.deadline.as_ref(), 600, report),
        same_target: written.same_target.unwrap_or(1),
    }
}

fn breaker(file: &File, report: &mut Report) -> Breaker {
    let written = file.breaker.clone().unwrap_or_default();
    if let Some(failures) = written.failures.as_ref().filter(|f| f.value == 0) {
        report.problem(&failures.place, "must be more than zero", "Write at least 1");
    }
    Breaker {
        failures: written.failures.map_or(3, |f| f.value),
        window: timeout(written.window.as_ref(), 60, report),
        cooldown: written.cooldown.unwrap_or(Duration::from_secs(60)),
    }
}

fn alerts(file: &File, texts: Texts<'_>, report: &mut Report) -> Alerts {
    let written = file.alerts.clone().unwrap_or_default();
    let mut webhooks = Vec::new();
    for hook in written.webhooks.iter().flatten() {
        let secret = hook.secret.as_ref().and_then(|raw| texts.secret(raw, report));
        let Some(raw) = &hook.url else {
            if !hook.has("url") {
                report.problem(&hook.place.key("url"), "missing", "Write `url: https://…`");
            }
            continue;
        };
        let Some(url) = texts.secret(raw, report) else { continue };
        let parsed = url.secret.expose().parse::<http::Uri>().ok();
        let good = parsed.is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
        });
        if !good {
            report.problem(&raw.place, "not an http or https URL", "Write `https://…`");
        }
        webhooks.push(Webhook { url: url.secret, secret: secret.map(|s| s.secret) });
    }
    let mut budget_at: Vec<u32> = written.budget_at.map_or_else(
        || vec![800_000, 1_000_000],
        |shares| shares.iter().map(|share| share.0).collect(),
    );
    budget_at.sort_unstable();
    budget_at.dedup();
    Alerts {
        webhooks,
        budget_at,
        fallback_rate: written.fallback_rate.map_or(50_000, |share| share.0),
        spend_velocity: written.spend_velocity.map_or(5_000_000, |factor| factor.0),
    }
}

fn scopes(
    written: Option<&Named<file::Scope>>,
    report: &mut Report,
) -> AHashMap<String, Arc<Scope>> {
    let named = written.map(|named| named.0.as_slice()).unwrap_or_default();
    named.iter().map(|(name, at)| (name.clone(), Arc::new(scope_of(&at.value, report)))).collect()
}

fn scope_of(written: &file::Scope, report: &mut Report) -> Scope {
    scope(written.limits.as_ref(), written.budgets.as_deref(), report)
}

/// Limits and budgets, wherever they are written.
pub(crate) fn scope(
    limits: Option<&file::Limits>,
    budgets: Option<&[file::Budget]>,
    report: &mut Report,
) -> Scope {
    let limits = limits.cloned().unwrap_or_default();
    let mut out: Vec<Budget> = Vec::new();
    for written in budgets.unwrap_or_default() {
        let Some(budget) = budget(written, report) else { continue };
        if out.iter().any(|other| other.per == budget.per) {
            let message = format!("a second budget per {}", budget.per);
            report.problem(&written.place, message, "Keep the smaller one");
        }
        out.push(budget);
    }
    Scope {
        limits: Limits {
            rpm: limits.rpm.map(|n| n.0),
            tpm: limits.tpm.map(|n| n.0),
            parallel: limits.parallel.map(|n| n.0),
        },
        budgets: out,
    }
}

fn budget(written: &file::Budget, report: &mut Report) -> Option<Budget> {
    for key in ["usd", "per"] {
        if !written.has(key) {
            let fix = "Write `{ usd: 50, per: day }`";
            report.problem(&written.place.key(key), "missing", fix);
        }
    }
    let usd = written.usd.as_ref()?;
    if usd.value == NanoUsd(0) {
        let fix = "Write an amount, or take the models away from the key to stop it";
        report.problem(&usd.place, "must be more than zero", fix);
    }
    Some(Budget { cap: usd.value, per: written.per? })
}

/// Reports that a key is not there.
pub(crate) fn missing(at: &Place, key: &str, fix: &str, report: &mut Report) {
    report.problem(&at.key(key), "missing", fix);
}
