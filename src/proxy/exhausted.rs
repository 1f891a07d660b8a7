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
        Reason::NoHealthyTarget if passed_over.is_empty() => {
            "the configuration has no target of this model any more"
        }
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
    let cooling = !passed_over.is_empty() && passed_over.iter().all(|blocked| blocked.cooling);
    if done.is_empty() && !cooling {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{NanoUsd, Usage, UsageSource};

    fn failed(failure: Failure) -> AttemptRecord {
        AttemptRecord {
            target: "p/m".into(),
            status: None,
            outcome: failure.outcome(),
            failure: Some(failure),
            took: Duration::ZERO,
            first_token: None,
            usage: Usage::default(),
            source: UsageSource::None,
            cost: NanoUsd(0),
            bytes: 0,
            upstream_id: None,
        }
    }

    #[test]
    fn the_reason_is_what_stood_in_the_way() {
        let now = Instant::now();
        let later = now + Duration::from_secs(7);
        let blocked = |cooling| Blocked { until: later, cooling };
        let (cools, open) = (blocked(true), blocked(false));
        let status = |status| failed(Failure::Status(status, None));
        type Case<'a> = (&'a [AttemptRecord], &'a [Blocked], Instant, Reason, Option<u64>);
        let cases: &[Case<'_>] = &[
            // A reload has taken every target away.
            (&[], &[], later, Reason::NoHealthyTarget, Some(1)),
            (&[], &[cools, open], later, Reason::NoHealthyTarget, Some(7)),
            (&[], &[cools], later, Reason::UpstreamRateLimited, Some(7)),
            (&[], &[cools], now, Reason::UpstreamTimeout, None),
            (&[], &[], now, Reason::UpstreamTimeout, None),
            (&[status(429)], &[], later, Reason::UpstreamRateLimited, Some(5)),
            (&[status(429), status(401)], &[], later, Reason::UpstreamError, None),
            (&[status(403)], &[open], later, Reason::UpstreamAuthFailed, None),
            (&[status(500), failed(Failure::Timeout)], &[], now, Reason::UpstreamTimeout, None),
            (&[failed(Failure::FirstToken)], &[], later, Reason::FirstTokenTimeout, None),
            (&[status(500), failed(Failure::Cut)], &[], later, Reason::Draining, Some(1)),
        ];
        for (n, (done, passed_over, deadline, reason, after)) in cases.iter().enumerate() {
            let reject = exhausted(done, passed_over, *deadline, now);
            let after = after.map(Duration::from_secs);
            assert_eq!((reject.reason, reject.retry_after), (*reason, after), "{n}: {reject:?}");
        }
    }
}
