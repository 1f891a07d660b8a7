//! The gateway's own answers: refusals, the model list, health.

use super::exchange::Exchange;
use crate::reject::{Reason, Reject};
use crate::units::Dialect;
use crate::wire::errors::{self, ErrorText};
use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderName, HeaderValue, Method};
use pingora_core::protocols::http::ServerSession;
use pingora_core::{ErrorType, OrErr, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use std::time::Duration;
use tokio::time::timeout;

/// The most of an unread body that is read and thrown away, so that the client gets to see the
/// refusal and can use the connection again.
const MAX_DRAINED: u64 = 1024 * 1024;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The name that Anthropic's SDKs read.
const ANTHROPIC_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const CONFIG: HeaderName = HeaderName::from_static("x-tollbar-config");

/// How long that may take.
const DRAIN: Duration = Duration::from_secs(5);

/// Headers that every answer carries.
///
/// # Errors
/// Only when a value can't stand in a header, which is a bug.
pub fn identity(exchange: &Exchange) -> Result<impl Iterator<Item = (HeaderName, HeaderValue)>> {
    let id = value(&exchange.id)?;
    let again =
        (exchange.dialect == Dialect::Anthropic).then(|| (ANTHROPIC_REQUEST_ID, id.clone()));
    let generation = HeaderValue::from(exchange.snapshot.generation);
    Ok([(REQUEST_ID, id), (CONFIG, generation)].into_iter().chain(again))
}

/// Text as a header's value.
///
/// # Errors
/// When it has characters that no header can carry.
pub fn value(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).or_err(ErrorType::InternalError, "no header carries this value")
}

/// Writes a refusal in the client's dialect.
///
/// # Errors
/// When the client is gone.
pub async fn refuse(session: &mut Session, exchange: &mut Exchange, reject: Reject) -> Result<()> {
    let status = reject.reason.status();
    let text = ErrorText {
        status,
        code: reject.reason.code(),
        message: &reject.message,
        param: reject.param,
        request_id: &exchange.id,
    };
    let body = errors::body(exchange.dialect, &text);
    let mut header = ResponseHeader::build(status, Some(12))?;
    header.insert_header("content-type", "application/json")?;
    if let Some(after) = reject.retry_after {
        // Rounded up: a client that comes back early is refused again.
        header.insert_header("retry-after", after.as_millis().div_ceil(1000).max(1).to_string())?;
    }
    if let Some(retry) = reject.reason.should_retry() {
        header.insert_header("x-should-retry", if retry { "true" } else { "false" })?;
    }
    for (name, value) in &reject.headers {
        header.insert_header(*name, value.as_str())?;
    }
    if let Some(call) = exchange.call.as_ref() {
        header.insert_header("x-tollbar-attempts", call.done.len().to_string())?;
    }
    exchange.status = status;
    exchange.refusal = Some(reject);
    finish(session, exchange, header, body).await
}

/// Writes an answer of the gateway's own making.
///
/// # Errors
/// When the client is gone.
pub async fn json(
    session: &mut Session,
    exchange: &mut Exchange,
    status: u16,
    body: Vec<u8>,
) -> Result<()> {
    let mut header = ResponseHeader::build(status, Some(6))?;
    header.insert_header("content-type", "application/json")?;
    exchange.status = status;
    finish(session, exchange, header, body).await
}

async fn finish(
    session: &mut Session,
    exchange: &Exchange,
    mut header: ResponseHeader,
    body: Vec<u8>,
) -> Result<()> {
    header.insert_header("content-length", body.len().to_string())?;
    for (name, value) in identity(exchange)? {
        header.insert_header(name, value)?;
    }
    let stands_still = exchange
        .refusal
        .as_ref()
        .is_some_and(|refusal| matches!(refusal.reason, Reason::RequestTimeout));
    match stands_still {
        true => session.set_keepalive(None),
        false => drain(session, exchange).await,
    }
    // Pingora writes what it does with the connection itself, whatever the header says.
    if header.headers.get(CONNECTION).is_some_and(|word| word == "close") {
        session.set_keepalive(None);
    }
    let header_only = session.req_header().method == Method::HEAD;
    session.write_response_header(Box::new(header), header_only).await?;
    if header_only {
        return Ok(());
    }
    session.write_response_body(Some(Bytes::from(body)), true).await
}

/// Reads what is left of a small body; a large or slow one costs the client its connection.
async fn drain(session: &mut Session, exchange: &Exchange) {
    if session.is_body_done() {
        return;
    }
    let length = session.req_header().headers.get("content-length");
    let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    // A client that waits for `100 Continue` may never send what it announced.
    let waits = session.req_header().headers.contains_key("expect");
    let small = !waits && length.is_none_or(|length| length <= MAX_DRAINED);
    let drained = small
        && tokio::select! {
            biased;
            read = timeout(DRAIN, read_away(&mut session.downstream_session)) => {
                read.unwrap_or(false)
            }
            () = exchange.running.is_cut() => false,
        };
    if !drained {
        session.set_keepalive(None);
    }
}

/// Reads the body to its end, unless it is too large; a chunked one doesn't say before.
async fn read_away(session: &mut ServerSession) -> bool {
    let mut left = MAX_DRAINED;
    loop {
        match session.read_request_body().await {
            Ok(Some(piece)) => match left.checked_sub(piece.len() as u64) {
                Some(rest) => left = rest,
                None => return false,
            },
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}
