//! One upstream call: which target, with which bytes and which credential, and what its failure
//! means for the next one.

use super::admit;
use super::authenticate::KEY_HEADERS;
use super::exchange::{
    Attempt, AttemptRecord, BodyFields, Call, Exchange, Failure, InflightGuard, exhausted,
};
use super::hold::{self, Money};
use super::trust;
use crate::budget::Hold;
use crate::config::snapshot::{Http2, Provider, Snapshot, Target};
use crate::keys::Caller;
use crate::limits::Permit as LimitPermit;
use crate::plan::Candidate;
use crate::plan::health::Permit;
use crate::reject::{Reason, Reject};
use crate::state::Gateway;
use crate::units::{Dialect, NanoUsd, Usage, UsageSource};
use crate::wire::multipart;
use crate::wire::route::Endpoint;
use crate::wire::scan::CapName;
use crate::wire::splice::{self, Wanted};
use bytes::Bytes;
use chrono::Utc;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Method};
use pingora_core::protocols::ALPN;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_http::RequestHeader;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many dead pooled connections one request may run into before that counts as a failure.
const MAX_STALE: u32 = 8;

/// The version sent to Anthropic where the client named none.
const ANTHROPIC_VERSION: &str = "2023-06-01";

/// Request headers that end here: the client's credentials, what belongs to one hop, what
/// claims to know where the request came from, and what the gateway sets itself.
const NOT_FORWARDED: [&str; 20] = [
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
];

/// A 429 that says nothing about when to come back is left alone for this long.
const UNTOLD_COOLDOWN: Duration = Duration::from_secs(5);

/// Starts the next attempt.
///
/// # Errors
/// The refusal that ends the request: nothing is left to try, or the key is gone.
pub async fn start(gateway: &Gateway, exchange: &mut Exchange) -> Result<HttpPeer, Reject> {
    let newest = gateway.live.snapshot();
    loop {
        let caller = still_admitted(&newest, exchange.caller.as_deref())?;
        let call = exchange.call.as_mut().ok_or_else(missing)?;
        let Some(next) = next(gateway, call, &newest) else {
            return Err(nothing_left(call));
        };
        let began = Instant::now();
        let (provider, candidate) = (next.provider.clone(), &next.candidate);
        let money = Money { gateway, snapshot: &newest, caller: &caller, request: &exchange.id };
        let hold = match money.hold(call, candidate, &provider).await {
            Ok(hold) => hold,
            Err(hold::Short { reject, other_target_may_do: true }) => {
                call.over_budget = Some(Box::new(reject));
                call.next += 1;
                continue;
            }
            Err(short) => return Err(short.reject),
        };
        begin(gateway, call, next, hold, began);
        match gateway.resolver.resolve(&provider.host, provider.port).await {
            Ok(address) => return peer(&provider, address, call),
            Err(error) => {
                let why = format!("`{}` doesn't resolve: {error}", provider.host);
                fail(gateway, exchange, Failure::Connect(why));
            }
        }
    }
}

/// Why no target is left.
fn nothing_left(call: &mut Call) -> Reject {
    if call.done.is_empty() {
        // The provider's limits or budgets, and nothing else, stood in the way.
        if let Some(refusal) = &call.limited {
            return admit::refused(refusal);
        }
        if let Some(reject) = call.over_budget.take() {
            return *reject;
        }
    }
    exhausted(&call.done, &call.passed_over, Instant::now())
}

/// The key that admitted this request must still be in force when another attempt starts.
fn still_admitted(newest: &Snapshot, caller: Option<&Caller>) -> Result<Arc<Caller>, Reject> {
    let Some(caller) = caller else {
        return Err(missing());
    };
    newest.keys.by_hash(&caller.hash).cloned().ok_or_else(|| {
        Reject::new(
            Reason::KeyRevoked,
            format!("the key `{}` was revoked while the request ran.", caller.id),
        )
    })
}

/// A target that may be tried now.
struct Next {
    candidate: Candidate,
    provider: Arc<Provider>,
    limits: LimitPermit,
    permits: (Permit, Permit),
}

/// The candidate to try now, if the bounds of the attempt loop leave one: the first in the plan
/// that is neither cooling down nor left alone, and whose provider takes our credential.
fn next(gateway: &Gateway, call: &mut Call, newest: &Snapshot) -> Option<Next> {
    let made = u32::try_from(call.done.len()).unwrap_or(u32::MAX);
    let now = Instant::now();
    if made >= newest.attempts.max || now >= call.deadline {
        return None;
    }
    while let Some(candidate) = call.plan.get(call.next) {
        let target = &candidate.target;
        if let Some(provider) = newest.providers.get(&target.provider) {
            let credential = gateway.health.of(&provider.credential_name()).admit(now);
            let permits = credential.and_then(|credential| {
                gateway.health.of(&target.id).admit(now).map(|target| (target, credential))
            });
            match permits {
                Ok(permits) => {
                    match admit::attempt(gateway, provider, candidate, &call.model, call.tokens) {
                        Ok(limits) => {
                            let (candidate, provider) = (candidate.clone(), provider.clone());
                            return Some(Next { candidate, provider, limits, permits });
                        }
                        Err(refusal) => call.limited = Some(refusal),
                    }
                }
                Err(blocked) => call.passed_over.push(blocked),
            }
        }
        call.next += 1;
        call.repeats = 0;
    }
    None
}

fn begin(gateway: &Gateway, call: &mut Call, next: Next, hold: Hold, started: Instant) {
    let Next { candidate, limits, permits, .. } = next;
    let target = &candidate.target;
    let labels = [target.provider.as_str(), target.model.as_str()];
    let body = body_for(call, &candidate);
    let inflight = InflightGuard::enter(gateway.metrics.inflight.with_label_values(&labels));
    let first_token = candidate.model.first_token_timeout;
    let until = first_token.map_or(call.deadline, |limit| call.deadline.min(started + limit));
    call.control.set_deadline(Some(until.into()));
    call.current = Some(Attempt {
        candidate,
        started,
        at: Utc::now(),
        body,
        inflight,
        hold: Some(hold),
        limits,
        permits,
        failure: None,
        complaint: Vec::new(),
        relay: None,
    });
}

/// The client's bytes, with the fields changed that this target needs.
fn body_for(call: &Call, candidate: &Candidate) -> Bytes {
    let target = &candidate.target;
    match &call.fields {
        BodyFields::Json(fields) => {
            let wanted = Wanted {
                model: (!call.endpoint.model_in_path()).then_some(target.model.as_str()),
                output_cap: output_cap(call.endpoint, candidate),
                include_usage: asks_usage(call.endpoint) && call.stream,
            };
            splice::splice(&call.body, &splice::edits(fields, &wanted))
        }
        BodyFields::Opaque => call.body.clone(),
        BodyFields::Form(form, boundary) => {
            splice::splice(&call.body, &multipart::edits(form, boundary, &target.model))
        }
    }
}

/// Whether usage has to be asked for in this endpoint's streams.
pub fn asks_usage(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::ChatCompletions | Endpoint::Completions)
}

/// The model's output cap, under the name that this endpoint knows it by.
fn output_cap(endpoint: Endpoint, candidate: &Candidate) -> Option<(CapName, u64)> {
    let cap = candidate.model.max_output_tokens?;
    let name = match endpoint {
        Endpoint::ChatCompletions if wants_new_name(&candidate.target) => {
            CapName::MaxCompletionTokens
        }
        Endpoint::ChatCompletions | Endpoint::Completions | Endpoint::Messages => {
            CapName::MaxTokens
        }
        Endpoint::Responses => CapName::MaxOutputTokens,
        Endpoint::GeminiGenerate | Endpoint::GeminiStream => CapName::GenerationConfig,
        _ => return None,
    };
    Some((name, cap))
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

fn peer(
    provider: &Provider,
    address: std::net::SocketAddr,
    call: &Call,
) -> Result<HttpPeer, Reject> {
    // An empty SNI would switch certificate checks off in Pingora: the host is never empty.
    let mut peer = HttpPeer::new(address, provider.tls, provider.host.clone());
    let left = call.deadline.saturating_duration_since(Instant::now());
    let options = &mut peer.options;
    options.connection_timeout = Some(provider.connect_timeout.min(left));
    options.total_connection_timeout = Some(provider.connect_timeout.min(left));
    options.read_timeout = Some(provider.read_timeout);
    options.write_timeout = Some(provider.read_timeout);
    options.idle_timeout = Some(Duration::from_secs(60));
    options.max_h2_streams = 100;
    options.alpn = match provider.http2 {
        Http2::Auto if provider.tls => ALPN::H2H1,
        Http2::Auto | Http2::Never => ALPN::H1,
        Http2::Always => ALPN::H2,
    };
    if let Some(file) = &provider.ca_file {
        options.ca =
            Some(trust::roots(file).map_err(|why| Reject::new(Reason::InternalError, why))?);
    }
    // Connections are never shared between providers, nor between sets of trusted roots.
    let mut hasher = ahash::RandomState::with_seeds(1, 2, 3, 4).build_hasher();
    hasher.write(provider.name.as_bytes());
    hasher.write_u8(0);
    hasher.write(provider.ca_file.as_ref().map_or(&[], |file| file.as_os_str().as_encoded_bytes()));
    peer.group_key = hasher.finish();
    Ok(peer)
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
            (Method::POST, format!("{}{path}", provider.base_path))
        }
    };
    let mut header = RequestHeader::build(method, path.as_bytes(), Some(client.headers.len() + 4))?;
    header.insert_header("host", provider.authority.as_str())?;
    for (name, value) in forwarded(&client.headers) {
        header.append_header(name.clone(), value.clone())?;
    }
    if !attempt.body.is_empty() || header.method == Method::POST {
        header.insert_header("content-length", attempt.body.len().to_string())?;
    }
    // Compression would make streams arrive in bursts.
    header.insert_header("accept-encoding", "identity")?;
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
        Dialect::OpenAi => header
            .insert_header("authorization", secret_value(&format!("Bearer {}", key.expose()))?),
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
        .get_all("connection")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    headers.iter().filter(move |(name, _)| {
        let name = name.as_str();
        !(NOT_FORWARDED.contains(&name)
            || KEY_HEADERS.contains(&name)
            || name.starts_with("x-tollbar-")
            || name.starts_with("x-forwarded-")
            || nominated.iter().any(|nominated| nominated == name))
    })
}

/// Ends the running attempt as a failure and decides what comes next: `true` for another one.
pub fn fail(gateway: &Gateway, exchange: &mut Exchange, failure: Failure) -> bool {
    let Some(call) = exchange.call.as_mut() else {
        return false;
    };
    let Some(attempt) = call.current.take() else {
        return false;
    };
    call.control.set_deadline(None);
    call.control.discard_answer();
    call.closing = attempt.relay.as_ref().map_or(b"", |relay| relay.meter.closing());
    if failure == Failure::Stale && call.stale < MAX_STALE {
        // It never carried a request: not an attempt, and nobody's failure.
        call.stale += 1;
        if let Some(hold) = attempt.hold {
            hold.release();
        }
        return true;
    }
    let target = attempt.candidate.target.clone();
    let again = match &failure {
        Failure::Connect(_) | Failure::Broken(_) | Failure::Stale => same_or_next(call, true),
        Failure::Status(429 | 401 | 403, _) => same_or_next(call, false),
        Failure::Status(..) => same_or_next(call, true),
        Failure::Timeout | Failure::FirstToken => same_or_next(call, false),
        Failure::Deadline
        | Failure::Interrupted(_)
        | Failure::ClientGone
        | Failure::Internal(_) => false,
    };
    let reason = failure.outcome();
    super::settle::attempt_failed(gateway, exchange, attempt, failure);
    if again && let Some(call) = exchange.call.as_ref() {
        note_fallback(gateway, call, &target, reason);
    }
    again
}

/// What a failure means for the target's health, and for its provider's credential.
pub fn judge(gateway: &Gateway, attempt: Attempt, failure: &Failure) {
    let (now, rule) = (Instant::now(), gateway.live.peek().breaker);
    let target = &attempt.candidate.target;
    let (permit, credential) = attempt.permits;
    let fault = !matches!(failure, Failure::ClientGone | Failure::Internal(_) | Failure::Stale);
    if fault {
        on_trial(gateway, target, false);
    }
    match failure {
        Failure::ClientGone | Failure::Internal(_) | Failure::Stale => {}
        Failure::Status(429, after) => permit.cooled(now + after.unwrap_or(UNTOLD_COOLDOWN)),
        Failure::Status(401 | 403, _) => {
            credential.opened(now, &rule);
            gateway.metrics.auth_failures.with_label_values(&[&target.provider]).inc();
            log::error!(
                "provider `{}` refused the gateway's credential for {}: check its api_key",
                target.provider,
                target.id
            );
        }
        _ if permit.failed(now, &rule) => {
            log::warn!(
                "{} is left alone for {} s: it failed {} times",
                target.id,
                rule.cooldown.as_secs(),
                rule.failures
            );
        }
        _ => {}
    }
}

/// Takes note of the attempt where the target is on trial.
pub fn on_trial(gateway: &Gateway, target: &Target, ok: bool) {
    let Some(rule) = target.canary else { return };
    if gateway.health.of(&target.id).tried(Instant::now(), ok, &rule) {
        gateway.metrics.rollbacks.with_label_values(&[&target.provider, &target.model]).inc();
        log::error!(
            "{} has taken itself out: more than {} % of its attempts failed within {} s. Change its rollback_on to try it again.",
            target.id,
            f64::from(rule.error_rate) / 10_000.0,
            rule.window.as_secs()
        );
    }
}

/// Moves on in the plan, unless the same target may be tried once more.
fn same_or_next(call: &mut Call, repeatable: bool) -> bool {
    if repeatable && call.repeats < call.same_target && call.plan.len() > call.next {
        call.repeats += 1;
    } else {
        call.repeats = 0;
        call.next += 1;
    }
    call.next < call.plan.len()
}

fn note_fallback(gateway: &Gateway, call: &Call, from: &Arc<Target>, reason: &str) {
    if let Some(to) = call.plan.get(call.next).filter(|to| to.target.id != from.id) {
        let labels = [from.id.as_str(), to.target.id.as_str(), reason];
        gateway.metrics.fallbacks.with_label_values(&labels).inc();
    }
}

/// The record of an attempt that reached no model.
pub fn unbilled(attempt: &Attempt, failure: Failure) -> AttemptRecord {
    AttemptRecord {
        target: attempt.candidate.target.id.clone(),
        status: match failure {
            Failure::Status(status, _) => Some(status),
            _ => attempt.relay.as_ref().map(|relay| relay.status),
        },
        outcome: failure.outcome(),
        failure: Some(failure),
        took: attempt.started.elapsed(),
        first_token: None,
        usage: Usage::default(),
        source: UsageSource::None,
        cost: NanoUsd::default(),
        bytes: 0,
        upstream_id: None,
    }
}

fn missing() -> Reject {
    Reject::new(Reason::InternalError, "the request has no plan; please report this")
}
