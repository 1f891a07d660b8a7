//! What Pingora's errors mean: for the next attempt, and for the client.

use super::accept;
use super::attempt;
use super::control::{CUT, DEADLINE};
use super::exchange::{Call, Exchange, Failure};
use super::exhausted::exhausted;
use super::settle::{CLIENT_LEFT, Head};
use super::{held, relay, reply, settle};
use crate::reject::{Reason, Reject};
use crate::state::Gateway;
use crate::units::Dialect;
use crate::wire::route::Endpoint;
use bytes::Bytes;
use http::HeaderName;
use pingora_core::apps::{HttpPersistentSettings, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::{Error, ErrorSource, ErrorType};
use pingora_proxy::{FailToProxy, Session};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

/// How often an SDK says it has repeated the request.
static RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");

/// A pooled connection that was dead shows it within a round trip, to the far side of the world. One that breaks
/// later has carried the request, which may be billed: that is an attempt like any other.
const STALE_WITHIN: Duration = Duration::from_millis(500);

/// What a connection takes of this machine: a descriptor, of the process's or the system's; a
/// buffer; a port.
const SHORT_OF: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::ADDRNOTAVAIL];

/// No connection came about.
pub fn connect(gateway: &Gateway, exchange: &mut Exchange, mut error: Box<Error>) -> Box<Error> {
    let why = match error.etype() {
        ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => "connecting took too long",
        ErrorType::ConnectRefused => "connection refused",
        ErrorType::ConnectNoRoute => "no route to the host",
        ErrorType::InvalidCert => "the certificate is not valid",
        ErrorType::TLSHandshakeFailure | ErrorType::HandshakeError => "the TLS handshake failed",
        _ => "no connection",
    };
    log::debug!("{}: {why}: {error}", exchange.id);
    let os = os_error(&error);
    let why = match os {
        Some(os) if why == "no connection" => format!("{why}: {os}"),
        _ => why.to_owned(),
    };
    let failure = unconnected(gateway, why, os);
    let again = attempt::fail(gateway, exchange, failure);
    error.set_retry(again);
    error
}

/// What the operating system said, under what Pingora makes of it.
fn os_error(error: &Error) -> Option<&io::Error> {
    let root = error.root_cause();
    root.downcast_ref().or_else(|| root.source()?.downcast_ref())
}

/// A provider's name has no address. Without a descriptor, a lookup may say just that.
pub fn unresolved(gateway: &Gateway, host: &str, error: &io::Error) -> Failure {
    let short = File::open("/dev/null").err().filter(is_short);
    let error = short.as_ref().unwrap_or(error);
    unconnected(gateway, format!("`{host}` doesn't resolve: {error}"), Some(error))
}

fn is_short(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| SHORT_OF.contains(&errno))
}

/// Whose fault it is that no connection came about. What this machine is out of is said once in a
/// while: there may be thousands of requests that meet it.
fn unconnected(gateway: &Gateway, why: String, os: Option<&io::Error>) -> Failure {
    if !os.is_some_and(is_short) {
        return Failure::Connect(why);
    }
    if gateway.no_socket.now(Instant::now()) {
        log::error!(
            "{why}: this machine is short of descriptors (LimitNOFILE=, ulimit -n), ports or buffers; no target is blamed for it"
        );
    }
    Failure::NoSocket(why)
}

/// Nobody waits any more for an attempt that has not been sent: it is none.
pub fn abandoned(gateway: &Gateway, exchange: &mut Exchange, error: &Error) {
    let cut = *error.etype() == CUT;
    exchange.client_gone |= !cut;
    if exchange.call.as_ref().is_some_and(|call| call.current.is_some()) {
        let why = if cut { Failure::Cut } else { Failure::ClientGone };
        attempt::fail(gateway, exchange, why);
        return;
    }
    if cut {
        exchange.refusal = Some(accept::draining());
    }
    settle::refund_unused(exchange);
}

/// Something failed between the connection and the end of the answer.
pub fn proxying(
    gateway: &Gateway,
    session: &Session,
    exchange: &mut Exchange,
    mut error: Box<Error>,
    reused: bool,
) -> Box<Error> {
    error.retry.decide_reuse(reused);
    let failure = what(session, exchange, &error, reused);
    log::debug!("{}: {}: {error}", exchange.id, failure.outcome());
    exchange.client_gone |= failure == Failure::ClientGone;
    let again = attempt::fail(gateway, exchange, failure);
    error.set_retry(again);
    error
}

fn what(session: &Session, exchange: &mut Exchange, error: &Error, reused: bool) -> Failure {
    let call = exchange.call.as_mut();
    let left = call.as_ref().is_some_and(|call| call.control.lingers());
    let deadline_passed = call.as_ref().is_some_and(|call| Instant::now() >= call.deadline);
    let attempt = call.and_then(|call| call.current.as_mut());
    if let Some(failure) = attempt.as_ref().and_then(|attempt| attempt.failure.clone()) {
        return failure;
    }
    let quick = attempt.as_ref().is_some_and(|attempt| attempt.started.elapsed() < STALE_WITHIN);
    let answered = attempt.as_ref().is_some_and(|attempt| attempt.relay.is_some());
    let mut attempt = attempt;
    let h2 = attempt.as_ref().is_some_and(|attempt| attempt.h2);
    // A stream that the provider says it hasn't looked at. Pingora also tries again what a broken
    // connection took with it, which may have been worked on.
    let said = matches!(error.etype(), ErrorType::H2Error | ErrorType::H2Downgrade);
    let refused = h2 && !answered && said && error.retry();
    if let Some(attempt) = attempt.as_mut() {
        attempt.refused = refused;
    }
    // As long as no byte of the answer is there, another target may give it.
    let first = attempt.and_then(|attempt| attempt.relay.as_ref()?.first_byte);
    let begun = first.is_some() || session.response_written().is_some();
    if *error.etype() == DEADLINE && left {
        return Failure::ClientGone;
    }
    if *error.etype() == DEADLINE {
        return if deadline_passed { Failure::Deadline } else { Failure::FirstToken };
    }
    if *error.etype() == CUT {
        return Failure::Cut;
    }
    if *error.esource() == ErrorSource::Downstream {
        return Failure::ClientGone;
    }
    let why = error.etype().as_str().to_owned();
    match error.etype() {
        _ if begun => Failure::Interrupted(why),
        ErrorType::InternalError => Failure::Internal(why),
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => Failure::Timeout,
        // A stream of HTTP/2 that is reset was heard of, unless the provider says that it wasn't.
        ErrorType::H2Error if !error.retry() => Failure::Broken(why),
        // On HTTP/2 it may be at work on what was sent, unless it says that it isn't.
        _ if reused && quick && !answered && (!h2 || refused) => Failure::Stale,
        _ => Failure::Broken(why),
    }
}

/// Nothing is left to try: tells the client, in whatever way is still possible.
pub async fn answer(session: &mut Session, exchange: &mut Exchange, error: &Error) -> FailToProxy {
    note_client(exchange, Some(error));
    let done = FailToProxy { error_code: exchange.status, can_reuse_downstream: false };
    if exchange.client_gone {
        return done;
    }
    if session.response_written().is_some() {
        exchange.told = end_broken_stream(session, exchange).await;
        return done;
    }
    if let Some(call) = &exchange.call {
        call.control.discard_answer();
        held::restore(&mut session.downstream_session, &call.control);
    }
    let reject = exchange.refusal.take().unwrap_or_else(|| final_word(exchange, error));
    exchange.told = reply::refuse(session, exchange, reject).await.is_ok();
    FailToProxy { error_code: exchange.status, can_reuse_downstream: exchange.told }
}

/// Keeps the connection of a request that failed but was answered whole. Pingora closes it after
/// any failed attempt, without having told the client, whose next request would be lost.
pub async fn rescue(session: &mut Session, exchange: &Exchange) {
    let Some(mark) = &exchange.mark else {
        return;
    };
    if session.downstream_session.is_http2() || session.downstream_session.is_custom() {
        return;
    }
    let empty = ServerSession::new_custom(Box::new(()));
    let real = std::mem::replace(&mut *session.downstream_session, empty);
    let settings = HttpPersistentSettings::for_session(&real);
    if let Ok(Some(stream)) = real.finish().await {
        mark.rescue(ReusedHttpStream::from_reusable_stream(stream, settings));
    }
}

fn final_word(exchange: &Exchange, error: &Error) -> Reject {
    match &exchange.call {
        Some(call) if !call.done.is_empty() => {
            exhausted(&call.done, &call.passed_over, call.deadline, Instant::now())
        }
        _ => Reject::new(
            Reason::InternalError,
            format!("the gateway failed ({}). Quote the request id.", error.etype().as_str()),
        ),
    }
}

/// After the first byte nothing is invented: an error event where the dialect has one, and an
/// end that no client can take for a good one where it has not. Returns whether the answer has an
/// end of its own, so that the connection is still in order.
async fn end_broken_stream(session: &mut Session, exchange: &Exchange) -> bool {
    let call = exchange.call.as_ref();
    let events = session.response_written().is_some_and(|header| {
        let value = header.headers.get("content-type").and_then(|value| value.to_str().ok());
        // Nothing can be put behind what is compressed.
        !header.headers.contains_key("content-encoding")
            && value.is_some_and(|value| value.starts_with("text/event-stream"))
    });
    if let Some(call) = call.filter(|_| events) {
        let cut = call.done.last().is_some_and(|record| record.failure == Some(Failure::Cut));
        let why = if cut { "the gateway ends" } else { "the connection to the provider broke" };
        let event = relay::interrupted(&exchange.id, why);
        let (closing, endpoint) = spoken(call, exchange.dialect);
        let event = Bytes::from(event.event(closing, endpoint));
        if session.write_response_body(Some(event), true).await.is_ok() {
            return true;
        }
    }
    session.downstream_session.shutdown().await;
    false
}

/// What has to come before an error event, and whose clients read it. What isn't metered has an
/// endpoint in name only, and nobody has read where it broke.
fn spoken(call: &Call, dialect: Dialect) -> (&'static [u8], Endpoint) {
    if call.metered {
        return (call.closing, call.endpoint);
    }
    let endpoint = match dialect {
        Dialect::OpenAi => Endpoint::Responses,
        Dialect::Anthropic => Endpoint::Messages,
        Dialect::Gemini => Endpoint::GeminiStream,
    };
    (b"\n\n", endpoint)
}

/// Whether an error says that the client has left.
pub fn note_client(exchange: &mut Exchange, error: Option<&Error>) {
    let gone = error.is_some_and(|error| {
        *error.esource() == ErrorSource::Downstream && ![DEADLINE, CUT].contains(error.etype())
    });
    exchange.client_gone |= gone;
    if exchange.client_gone && exchange.status == 0 {
        exchange.status = CLIENT_LEFT;
    }
}

/// What the log says of the request's header.
pub fn head(session: &Session) -> Head {
    let header = session.req_header();
    let retry = header.headers.get(&RETRY_COUNT).map(|value| value.as_bytes());
    Head {
        client: session.client_addr().map(ToString::to_string).unwrap_or_default(),
        method: header.method.as_str().get(..16).unwrap_or(header.method.as_str()).to_owned(),
        sdk_retry: retry.is_some_and(|count| count != b"0"),
    }
}
