//! The answer goes past: chunks leave as they come, a copy of them is metered.

use super::authenticate::KEY_HEADERS;
use super::complaint;
use super::exchange::{BodyFields, Exchange, Failure, Relay};
use super::reply::{identity, value};
use super::settle;
use super::upstream::asks_usage;
use super::worst;
use crate::faults;
use crate::reject::{Reason, Reject};
use crate::state::Gateway;
use crate::wire::meter::{End, Meter};
use crate::wire::packed::Coding;
use crate::wire::route::Endpoint;
use crate::wire::{cooldown, errors};
use bytes::{Bytes, BytesMut};
use chrono::Utc;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use std::time::Instant;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Upstream response headers that end here: what belongs to one hop, what belongs to the
/// provider's own site or to the gateway's account there, and the names under which the gateway
/// speaks itself. So do those in which a provider may send back the key that it was sent.
static NOT_RELAYED: [HeaderName; 19] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-authentication-info"),
    HeaderName::from_static("proxy-connection"),
    header::TRAILER,
    header::UPGRADE,
    header::VIA,
    header::WWW_AUTHENTICATE,
    HeaderName::from_static("authentication-info"),
    header::SET_COOKIE,
    HeaderName::from_static("set-cookie2"),
    header::ALT_SVC,
    header::SERVER,
    header::STRICT_TRANSPORT_SECURITY,
    X_REQUEST_ID,
    REQUEST_ID,
    header::DATE,
    X_ACCEL_BUFFERING,
];

const MODEL: HeaderName = HeaderName::from_static("x-tollbar-model");
const TARGET: HeaderName = HeaderName::from_static("x-tollbar-target");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-tollbar-attempts");
const CLAMPED: HeaderName = HeaderName::from_static("x-tollbar-clamped");
const MOST_OUTPUT: HeaderName = HeaderName::from_static("x-tollbar-max-output-tokens");

/// The most of a stream that waits for its first event, in bytes.
const MAX_EARLY: usize = 64 * 1024;

/// What is wrong with an answer that has no bytes.
const EMPTY: &str = "its answer is empty";

/// What a status from upstream means.
enum Class {
    Relay,
    ElseWhere,
}

fn classify(status: u16, metered: bool) -> Class {
    match status {
        // Asked for by what a client has kept of an earlier answer.
        304 if !metered => Class::Relay,
        300..=399 | 401 | 403 | 408 | 429 | 500.. => Class::ElseWhere,
        _ => Class::Relay,
    }
}

/// The header of an upstream's answer. Nothing has gone to the client yet.
///
/// # Errors
/// When the answer means "try elsewhere"; the running attempt then holds the reason.
pub fn header(exchange: &mut Exchange, header: &mut ResponseHeader) -> Result<()> {
    let status = header.status.as_u16();
    if header.status == StatusCode::SWITCHING_PROTOCOLS {
        // Nobody asked for that: what comes would be no answer.
        let attempt = exchange.call.as_mut().and_then(|call| call.current.as_mut());
        if let Some(attempt) = attempt {
            attempt.failure = Some(Failure::Broken("it switched protocols".into()));
        }
        return Err(Error::new_up(ErrorType::HTTPStatus(status)));
    }
    if header.status.is_informational() {
        return Ok(());
    }
    let Some(call) = exchange.call.as_mut() else {
        return Err(Error::explain(ErrorType::InternalError, "an answer without a call"));
    };
    let (endpoint, stream, metered) = (call.endpoint, call.stream, call.metered);
    let wanted = matches!(&call.fields, BodyFields::Json(fields) if fields.wants_usage());
    let Some(attempt) = call.current.as_mut() else {
        return Err(Error::explain(ErrorType::InternalError, "an answer without an attempt"));
    };
    // The usage was asked for by the gateway, and not by the client.
    let hide = stream && asks_usage(endpoint, &attempt.candidate.target) && !wanted;
    if let Class::ElseWhere = classify(status, metered) {
        let after = (status == 429).then(|| cooldown::from_headers(&header.headers, Utc::now()));
        let after = after.flatten();
        attempt.failure = Some(Failure::Status(status, after));
        if status == 429 && after.is_none() && content_type_is(&header.headers, "application/json")
        {
            // Google says it in the body only: read that, and pass none of it on.
            call.control.swallow_answer();
            return Ok(());
        }
        return Err(Error::new_up(ErrorType::HTTPStatus(status)));
    }
    // A transcript of silence may be empty.
    let answers = metered && !endpoint.multipart();
    if answers && header.status.is_success() {
        // Every other call that is metered has an answer: another target may give it.
        if says_nothing(header) {
            attempt.failure = Some(Failure::Broken(EMPTY.into()));
            return Err(Error::new_up(ErrorType::HTTPStatus(status)));
        }
        call.control.wants_body();
    }
    // A refusal is none, whatever it is called: nothing has to end it.
    let events =
        header.status.is_success() && content_type_is(&header.headers, "text/event-stream");
    let json = content_type_is(&header.headers, "application/json");
    let doubtful = complaint::may_be_the_key(status, &attempt.candidate.target);
    let packing = packing(&header.headers);
    let packed = packing != Packing::None;
    // Sound and what was heard in it look like anything.
    let sounds = endpoint.multipart() || endpoint == Endpoint::AudioSpeech;
    let meter = match (events, json) {
        _ if packing == Packing::Unknown || !metered => Meter::opaque(endpoint),
        (false, false) if sounds => Meter::opaque(endpoint),
        (true, _) => Meter::stream(endpoint, hide && !packed),
        // A stream that was asked for may come under the wrong label.
        (_, true) if !stream => Meter::json(endpoint),
        _ => Meter::unlabelled(endpoint),
    };
    let meter = match packing {
        Packing::Known(coding) if metered => meter.packed(coding),
        _ => meter,
    };
    if events && !packed {
        // A chunk may be taken out, or an error put behind: the length is not known any more.
        header.remove_header(&header::CONTENT_LENGTH);
    }
    let text = |name: &HeaderName| header.headers.get(name).and_then(|value| value.to_str().ok());
    let upstream_id = text(&X_REQUEST_ID).or_else(|| text(&REQUEST_ID)).map(str::to_owned);
    let waits = attempt.candidate.model.first_token_timeout.is_some();
    attempt.relay = Some(Relay {
        status,
        meter,
        events,
        packed,
        unread: packing == Packing::Unknown,
        first_byte: None,
        first_token: None,
        early: BytesMut::new(),
        bytes: 0,
        upstream_id,
        report: None,
    });
    let readable = metered && header.status.is_success() && packing != Packing::Unknown;
    if doubtful || (json && !stream && readable) {
        call.control.hold_answer();
    } else if waits && header.status.is_success() {
        // Another target may still give the answer.
        call.control.hold_head();
    }
    Ok(())
}

fn says_nothing(header: &ResponseHeader) -> bool {
    matches!(header.status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT)
        || header.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length == "0")
}

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    None,
    Known(Coding),
    Unknown,
}

fn packing(headers: &HeaderMap) -> Packing {
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
    let (Some(value), more) = (values.next(), values.next()) else {
        return Packing::None;
    };
    let name = value.to_str().unwrap_or_default().trim();
    match Coding::named(name) {
        _ if more.is_some() => Packing::Unknown,
        Some(coding) => Packing::Known(coding),
        None if name.is_empty() || name.eq_ignore_ascii_case("identity") => Packing::None,
        None => Packing::Unknown,
    }
}

fn content_type_is(headers: &HeaderMap, wanted: &str) -> bool {
    let value =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = value.split(';').next().unwrap_or("").trim();
    essence.eq_ignore_ascii_case(wanted)
}

/// The header as the client gets it.
///
/// The upstream's spelling of names goes: Pingora keeps it in a second map, in which every name
/// that is put in would have to be spelled too.
///
/// # Errors
/// Only when a header can't be written, which is a bug.
pub fn client_header(exchange: &mut Exchange, header: &mut ResponseHeader) -> Result<()> {
    if header.status.is_informational() || complaint::is_swallowed(exchange) {
        return Ok(());
    }
    let empty = ResponseHeader::build_no_case(header.status, None)?;
    let mut parts = http::response::Parts::from(std::mem::replace(header, empty));
    exchange.status = parts.status.as_u16();
    drop_upstreams(&mut parts.headers);
    insert_own(exchange, &mut parts.headers)?;
    *header = parts.into();
    Ok(())
}

/// Takes out what is not relayed, and what only the gateway may say.
fn drop_upstreams(headers: &mut HeaderMap) {
    for name in NOT_RELAYED.iter().chain(&KEY_HEADERS) {
        headers.remove(name);
    }
    let own = |name: &&HeaderName| name.as_str().starts_with("x-tollbar-");
    for name in headers.keys().filter(own).cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

/// Puts in what the gateway says.
fn insert_own(exchange: &Exchange, headers: &mut HeaderMap) -> Result<()> {
    headers.reserve(8);
    headers.extend(identity(exchange)?);
    let Some(call) = exchange.call.as_ref() else {
        return Ok(());
    };
    let Some(attempt) = call.current.as_ref() else {
        return Ok(());
    };
    headers.insert(MODEL, value(&attempt.candidate.model.name)?);
    headers.insert(TARGET, value(&attempt.candidate.target.id)?);
    headers.insert(ATTEMPTS, HeaderValue::from(call.done.len() + 1));
    if attempt.clamped.is_some() {
        headers.insert(CLAMPED, HeaderValue::from_static("low-budget"));
    }
    if let Some(cap) = attempt.clamped.or(attempt.candidate.model.max_output_tokens) {
        headers.insert(MOST_OUTPUT, HeaderValue::from(cap));
    }
    // Gemini's stream is no events but an array, unless its client asks for them.
    let streams = |relay: &Relay| relay.events || (call.stream && relay.status < 300);
    if attempt.relay.as_ref().is_some_and(streams) {
        let as_it_comes = HeaderValue::from_static("no-cache, no-transform");
        headers.insert(header::CACHE_CONTROL, as_it_comes);
        headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    }
    Ok(())
}

/// The last piece of an answer whose header has not gone to the client.
///
/// # Errors
/// There was nothing in it, where there has to be something; the running attempt then holds that.
pub fn nothing(exchange: &mut Exchange, body: &Option<Bytes>) -> Result<()> {
    let Some(call) = exchange.call.as_mut() else {
        return Ok(());
    };
    let answers = call.metered && !call.endpoint.multipart();
    let Some(attempt) = call.current.as_mut().filter(|_| answers) else {
        return Ok(());
    };
    let came = body.as_ref().is_some_and(|body| !body.is_empty());
    let empty = attempt.relay.as_ref().is_some_and(|relay| {
        (200..300).contains(&relay.status) && relay.first_byte.is_none() && relay.early.is_empty()
    });
    if came || !empty {
        return Ok(());
    }
    attempt.failure = Some(Failure::Broken(EMPTY.into()));
    Err(Error::new_up(ErrorType::HTTPStatus(200)))
}

/// A piece of the answer's body; `end` marks the last one.
pub fn body(gateway: &Gateway, exchange: &mut Exchange, body: &mut Option<Bytes>, end: bool) {
    let id = &exchange.id;
    let Some(call) = exchange.call.as_mut() else {
        return;
    };
    let (endpoint, single) = (call.endpoint, worst::answers(call) == 1);
    let Some(attempt) = call.current.as_mut() else {
        return;
    };
    let waits = attempt.candidate.model.first_token_timeout.is_some();
    let Some(relay) = attempt.relay.as_mut() else {
        return;
    };
    if relay.report.is_some() {
        return;
    }
    faults::point("relay");
    let (mut out, mut began) = (Bytes::new(), false);
    if let Some(chunk) = body.take().filter(|chunk| !chunk.is_empty()) {
        out = relay.meter.chunk(chunk);
        if relay.first_token.is_none() && relay.meter.has_begun() {
            relay.first_token = Some(Instant::now());
        }
        if relay.first_byte.is_none() {
            if waits && relay.first_token.is_none() && relay.early.len() < MAX_EARLY {
                relay.early.extend_from_slice(&out);
                out = Bytes::new();
            } else {
                relay.first_byte = Some(Instant::now());
                call.control.lift_deadline();
                began = relay.status < 300;
                out = join(relay.early.split().freeze(), out);
            }
        }
        if relay.events && single && relay.meter.awaits_usage() {
            // Many leave with the last word. What it has cost comes just behind; of several
            // answers others may go on.
            call.control.linger();
        }
    }
    if end {
        let closing = relay.meter.closing();
        let mut rest = relay.meter.end();
        let report = relay.meter.report();
        if relay.events && !relay.packed && report.end == End::Truncated {
            let broken = interrupted(id, "the provider's stream ended before the answer did");
            // In place of what was held back: half an event is nothing that a client can read.
            rest = broken.event(closing, endpoint).into();
        }
        out = join(relay.early.split().freeze(), join(out, rest));
        if let Some(error) = relay.meter.unreadable() {
            log::warn!("request {id}: a compressed answer can't be read ({error}): estimated");
        }
        relay.report = Some(report);
    }
    relay.bytes += out.len() as u64;
    if began && let Some(attempt) = call.current.as_mut() {
        // Whoever probes has found out: the others needn't wait for the answer's end.
        attempt.permits.0.answers();
        attempt.permits.1.answers();
    }
    // An empty chunk would end a chunked answer: hand on nothing instead.
    *body = (!out.is_empty()).then_some(out);
    if end {
        settle::answer_ended(gateway, exchange);
    }
}

/// What the relay still holds back when the upstream ends with trailers.
pub fn trailers(gateway: &Gateway, exchange: &mut Exchange) -> Option<Bytes> {
    let mut rest = None;
    body(gateway, exchange, &mut rest, true);
    rest
}

fn join(a: Bytes, b: Bytes) -> Bytes {
    match (a.is_empty(), b.is_empty()) {
        (_, true) => a,
        (true, false) => b,
        (false, false) => {
            let mut both = BytesMut::with_capacity(a.len() + b.len());
            both.extend_from_slice(&a);
            both.extend_from_slice(&b);
            both.freeze()
        }
    }
}

/// The error that ends a stream which broke after it had begun.
pub struct Interrupted<'a> {
    request_id: &'a str,
    reject: Reject,
}

/// States that a stream broke, and why.
pub fn interrupted<'a>(request_id: &'a str, why: &str) -> Interrupted<'a> {
    let message = format!(
        "{why}. What came before is incomplete; nothing was added, and no other model was asked."
    );
    Interrupted { request_id, reject: Reject::new(Reason::StreamInterrupted, message) }
}

impl Interrupted<'_> {
    /// The event that says so in the client's dialect.
    pub fn event(&self, closing: &[u8], endpoint: Endpoint) -> Vec<u8> {
        errors::stream_event_after(
            closing,
            endpoint,
            &errors::ErrorText {
                status: self.reject.reason.status(),
                code: self.reject.reason.code(),
                message: &self.reject.message,
                param: None,
                request_id: self.request_id,
            },
        )
    }
}
