//! Refusals whose status doesn't say all: their bodies are read before anything is passed on.

use super::exchange::{Attempt, Exchange, Failure};
use crate::config::snapshot::Target;
use crate::units::Dialect;
use crate::wire::{cooldown, gemini};
use bytes::Bytes;
use pingora_core::{Error, ErrorType, Result};

/// The most that is read of such a body.
const MAX_COMPLAINT: usize = 64 * 1024;

/// Whether an answer may be Google's word for a key that it doesn't take: a 400, for which it has a
/// reason in the body. Any other 400 is the client's own.
pub fn may_be_the_key(status: u16, target: &Target) -> bool {
    let maker = target.card.as_ref().map(|card| card.provider.as_str());
    status == 400 && (target.dialect == Dialect::Gemini || maker == Some("gemini"))
}

/// Whether the running attempt's answer is read for what it says about coming back, and no more.
pub fn is_swallowed(exchange: &Exchange) -> bool {
    let attempt = exchange.call.as_ref().and_then(|call| call.current.as_ref());
    attempt.is_some_and(|attempt| attempt.failure.is_some())
}

/// A piece of the body of a 429, or of a 400 of Google's, which is held back. `unsent`: nothing of
/// the answer is with the client. What is can't be taken back, and no other may follow it.
///
/// # Errors
/// At its end, where the answer goes nowhere: the next attempt may begin.
pub fn read(exchange: &mut Exchange, body: &Option<Bytes>, end: bool, unsent: bool) -> Result<()> {
    let Some(attempt) = exchange.call.as_mut().and_then(|call| call.current.as_mut()) else {
        return Ok(());
    };
    let status = attempt.relay.as_ref().map_or(0, |relay| relay.status);
    let doubtful = unsent && may_be_the_key(status, &attempt.candidate.target);
    if attempt.failure.is_none() && !doubtful {
        return Ok(());
    }
    let room = MAX_COMPLAINT.saturating_sub(attempt.complaint.len());
    let chunk = body.as_deref().unwrap_or_default();
    attempt.complaint.extend_from_slice(chunk.get(..room).unwrap_or(chunk));
    if !end && (doubtful || chunk.len() <= room) {
        return Ok(());
    }
    judge(attempt)
}

/// What the body comes to, now that it is there.
fn judge(attempt: &mut Attempt) -> Result<()> {
    if attempt.failure.is_none() && gemini::refuses_key(&attempt.complaint) {
        // As anybody else says it.
        attempt.failure = Some(Failure::Status(401, None));
    }
    match attempt.failure.as_mut() {
        Some(Failure::Status(status, after)) => {
            *after = after.or_else(|| cooldown::from_body(&attempt.complaint));
            Err(Error::new_up(ErrorType::HTTPStatus(*status)))
        }
        Some(_) => Err(Error::new_up(ErrorType::HTTPStatus(0))),
        None => Ok(()),
    }
}
