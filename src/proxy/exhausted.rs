//! What a client is told when no attempt is left.

use super::accept;
use super::exchange::{AttemptRecord, Failure};
use crate::plan::health::Blocked;
use crate::reject::{Reason, Reject};
use std::time::{Duration, Instant};

/// The refusal that sums up attempts which all failed, and targets that were passed over, of a
/// request that no attempt starts for after its `deadline`.
pub fn exhausted(
    done: &[AttemptRecord],
    passed_over: &[Blocked],
    deadline: Instant,
    now: Instant,
) -> Reject {
    let reason = exhausted_reason(done, passed_over, now >= deadline);
    let attempts: Vec<String> = done.iter().map(AttemptRecord::told).collect();
    let attempts = attempts.join("; ");
    if reason == Reason::Draining {
        let mut reject = accept::draining();
        reject.message.push_str(&format!(" Attempts: {attempts}."));
        return reject;
    }
    let what = match reason {
        Reason::NoHealthyTarget => "every target of this model is left alone after failures",
        Reason::UpstreamRateLimited => "every target of this model is rate limited",
        Reason::UpstreamAuthFailed => {
            "the provider refused the gateway's own credential; tell the gateway's operator"
        }
        Reason::Overloaded => {
            "the gateway's machine has no descriptor, port or buffer left for a connection to a provider"
        }
        Reason::UpstreamTimeout if done.is_empty() => {
            "the request has waited until its deadline (attempts.deadline), and nobody was asked"
        }
        _ => "no upstream gave an answer",
    };
    let message = if attempts.is_empty() {
        format!("{what}. Try again later.")
    } else {
        format!("{what}. Attempts: {attempts}.")
    };
    let reject = Reject::new(reason, message);
    match reason {
        Reason::UpstreamRateLimited | Reason::NoHealthyTarget | Reason::Overloaded => {
            reject.retry_after(soonest(done, passed_over, now))
        }
        _ => reject,
    }
}

fn exhausted_reason(done: &[AttemptRecord], passed_over: &[Blocked], late: bool) -> Reason {
    let all = |wanted: fn(&Failure) -> bool| {
        done.iter().all(|record| record.failure.as_ref().is_some_and(wanted))
    };
    if done.is_empty() && late {
        return Reason::UpstreamTimeout;
    }
    if done.is_empty() && !passed_over.iter().all(|blocked| blocked.cooling) {
        return Reason::NoHealthyTarget;
    }
    if all(|failure| matches!(failure, Failure::Status(429, _))) {
        return Reason::UpstreamRateLimited;
    }
    if all(|failure| matches!(failure, Failure::Status(401 | 403, _))) {
        return Reason::UpstreamAuthFailed;
    }
    match done.last().and_then(|record| record.failure.as_ref()) {
        Some(Failure::Cut) => Reason::Draining,
        Some(Failure::NoSocket(_)) => Reason::Overloaded,
        Some(Failure::FirstToken) => Reason::FirstTokenTimeout,
        Some(Failure::Timeout | Failure::Deadline) => Reason::UpstreamTimeout,
        _ => Reason::UpstreamError,
    }
}

/// A 429 that says nothing about when to come back is left alone for this long.
pub const UNTOLD_COOLDOWN: Duration = Duration::from_secs(5);

/// When the first of the targets may be tried again.
fn soonest(done: &[AttemptRecord], passed_over: &[Blocked], now: Instant) -> Duration {
    let limited = done.iter().filter_map(|record| match record.failure {
        Some(Failure::Status(429, after)) => Some(after.unwrap_or(UNTOLD_COOLDOWN)),
        _ => None,
    });
    let blocked = passed_over.iter().map(|blocked| blocked.until.saturating_duration_since(now));
    limited.chain(blocked).min().unwrap_or(Duration::from_secs(1))
}
