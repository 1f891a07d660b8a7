//! One upstream call: which target, with which bytes and which credential, and what its failure
//! means for the next one.

use super::admit;
use super::authenticate::{self, Keys};
use super::exchange::{Attempt, AttemptRecord, Call, Exchange, Failure, InflightGuard, team_label};
use super::exhausted::{UNTOLD_COOLDOWN, exhausted};
use super::failure;
use super::hold::{self, Money};
use super::pledge::Pledge;
use super::settle;
use super::upstream::{body_for, peer};
use crate::alerts::Alert;
use crate::config::snapshot::{Provider, Snapshot, Target};
use crate::faults;
use crate::keys::Caller;
use crate::limits::Permit as LimitPermit;
use crate::plan::Candidate;
use crate::plan::health::Permit;
use crate::reject::{Reason, Reject};
use crate::state::Gateway;
use crate::units::{NanoUsd, Usage, UsageSource};
use chrono::Utc;
use pingora_core::upstreams::peer::HttpPeer;
use std::sync::Arc;
use std::time::Instant;

/// How many dead pooled connections one request may run into before that counts as a failure. The
/// next try has a connection of its own, so that one is enough.
const MAX_STALE: u32 = 1;

/// Starts the next attempt.
///
/// # Errors
/// The refusal that ends the request: nothing is left to try, or the key is gone.
pub async fn start(gateway: &Gateway, exchange: &mut Exchange) -> Result<HttpPeer, Reject> {
    loop {
        let newest = gateway.live.snapshot();
        let keys = Keys { snapshot: &newest, keyring: &gateway.keyring };
        let caller = still_admitted(keys, exchange.caller.as_deref())?;
        let call = exchange.call.as_mut().ok_or_else(missing)?;
        let Some(next) = next(gateway, call, &newest, &caller) else {
            return Err(nothing_left(call, &caller));
        };
        let asked = Instant::now();
        let (provider, candidate) = (next.provider.clone(), &next.candidate);
        let patience = newest.admission_wait.saturating_sub(call.waited);
        let until = call.deadline.min(asked + patience);
        let request = &exchange.id;
        let money = Money { gateway, snapshot: &newest, caller: &caller, request, until };
        let held = money.hold(call, candidate, &provider).await;
        call.waited += asked.elapsed();
        // While it waited, something may have changed: whose money it is, which budgets there are,
        // where the provider is.
        let mut held = match held {
            Ok(held) if !money.is_in_force() => {
                held.hold.release();
                from_the_start(call);
                continue;
            }
            // It came too late: nothing starts any more.
            Ok(held) if Instant::now() >= call.deadline => {
                held.hold.release();
                continue;
            }
            Ok(held) => held,
            Err(short) if short.outdated => {
                from_the_start(call);
                continue;
            }
            Err(hold::Short { reject, other_target_may_do: true, .. }) => {
                call.over_budget = Some(Box::new(reject));
                call.next += 1;
                continue;
            }
            Err(short) => return Err(short.reject),
        };
        held.hold.confirm();
        let labels = [provider.name.as_str(), &candidate.target.model, team_label(&caller)];
        let spent = gateway.metrics.cost_usd.with_label_values(&labels);
        let pledge = Pledge::new(held.hold, spent);
        faults::point("attempt");
        begin(gateway, call, next, (pledge, held.clamped), Instant::now());
        let left = call.deadline.saturating_duration_since(Instant::now());
        let within = provider.connect_timeout.min(left);
        let address = gateway.resolver.resolve(&provider.host, provider.port, within).await;
        let peer = match address {
            Ok(address) => peer(&provider, address, call).map_err(Failure::Connect),
            Err(error) => Err(failure::unresolved(gateway, &provider.host, &error)),
        };
        match peer {
            Ok(peer) => return Ok(peer),
            Err(why) => {
                fail(gateway, exchange, why);
                if exchange.client_gone {
                    return Err(Reject::new(Reason::InternalError, "the client has left"));
                }
            }
        }
    }
}

/// What stood in a target's way may not be there any more. A request that was sent somewhere goes on
/// from there.
fn from_the_start(call: &mut Call) {
    if call.done.is_empty() && call.stale == 0 {
        call.next = 0;
        call.passed_over.clear();
        (call.limited, call.over_budget, call.forbidden) = (None, None, false);
    }
}

/// Why no target is left.
fn nothing_left(call: &mut Call, caller: &Caller) -> Reject {
    if call.done.is_empty() {
        if call.forbidden {
            return Reject::new(
                Reason::ModelNotAllowed,
                format!(
                    "the key `{}` may not use `{}` any more: its `models` list has changed.",
                    caller.id, call.model.name
                ),
            )
            .param("model");
        }
        // The provider's limits or budgets, and nothing else, stood in the way.
        if let Some(refusal) = &call.limited {
            return admit::refused(refusal);
        }
        if let Some(reject) = call.over_budget.take() {
            return *reject;
        }
    }
    exhausted(&call.done, &call.passed_over, call.deadline, Instant::now())
}

/// The key that admitted this request must still be in force when another attempt starts.
fn still_admitted(keys: Keys<'_>, caller: Option<&Caller>) -> Result<Arc<Caller>, Reject> {
    let Some(caller) = caller else {
        return Err(missing());
    };
    authenticate::in_force(&caller.hash, keys, Utc::now())?.ok_or_else(|| {
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
    caller: Arc<Caller>,
    limits: Reserved,
    permits: (Permit, Permit),
}

/// What is taken of a provider's limits for an attempt that may not begin: given back then, also
/// where nobody waits for it any more.
struct Reserved(Option<LimitPermit>);

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(permit) = self.0.take() {
            permit.refund(Instant::now());
        }
    }
}

/// The candidate to try now, if the bounds of the attempt loop leave one: the first in the plan
/// that is neither cooling down nor left alone, and whose provider takes our credential.
fn next(
    gateway: &Gateway,
    call: &mut Call,
    newest: &Snapshot,
    caller: &Arc<Caller>,
) -> Option<Next> {
    // What seemed never to have been sent may have been.
    let made = u32::try_from(call.done.len()).unwrap_or(u32::MAX).saturating_add(call.stale);
    let now = Instant::now();
    if made >= newest.attempts.max || now >= call.deadline {
        return None;
    }
    while let Some(candidate) = call.plan.get(call.next) {
        let target = &candidate.target;
        let allowed = may_use(caller, call, candidate);
        call.forbidden |= !allowed;
        let provider = newest.providers.get(&target.provider).filter(|_| allowed);
        if let Some(provider) = provider {
            let credential = gateway.health.of(&provider.credential).admit(now);
            let permits = credential.and_then(|credential| {
                gateway.health.of(&target.id).admit(now).map(|target| (target, credential))
            });
            match permits {
                Ok(permits) => {
                    let fallback = candidate.model.name != call.model.name;
                    let model = newest.models.get(&candidate.model.name);
                    let model = model.unwrap_or(&candidate.model);
                    let also = fallback.then_some(&**model);
                    match admit::attempt(gateway, provider, also, call.tokens) {
                        Ok(limits) => {
                            let (candidate, provider) = (candidate.clone(), provider.clone());
                            let limits = Reserved(Some(limits));
                            let caller = caller.clone();
                            return Some(Next { candidate, provider, caller, limits, permits });
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

/// Whether the key may use this model now: its list may have changed since it asked.
fn may_use(caller: &Caller, call: &Call, candidate: &Candidate) -> bool {
    let models = &caller.models;
    match &call.via {
        None => models.allows(&candidate.model.name),
        // What its client has asked for, whatever that is booked as.
        Some(via) => models.allows(&format!("{}/{}", candidate.target.provider, via.model)),
    }
}

fn begin(
    gateway: &Gateway,
    call: &mut Call,
    next: Next,
    (pledge, clamped): (Pledge, Option<u64>),
    started: Instant,
) {
    let Next { candidate, provider, caller, mut limits, permits } = next;
    if call.done.is_empty()
        && call.stale == 0
        && let Some(first) = call.plan.first().map(|first| first.target.clone())
    {
        // It was not even asked: nothing else says so.
        let reason = match (&call.over_budget, &call.limited) {
            (Some(_), _) => "budget",
            (None, Some(_)) => "limit",
            (None, None) => "left_alone",
        };
        note_fallback(gateway, call, &first, reason);
    }
    let target = &candidate.target;
    let labels = [target.provider.as_str(), target.model.as_str()];
    let body = body_for(call, &candidate, clamped);
    let inflight = InflightGuard::enter(gateway.metrics.inflight.with_label_values(&labels));
    let first_token = candidate.model.first_token_timeout;
    let until = first_token.map_or(call.deadline, |limit| call.deadline.min(started + limit));
    call.control.begin(until.into());
    call.current = Some(Attempt {
        candidate,
        provider,
        caller,
        h2: false,
        refused: false,
        started,
        at: Utc::now(),
        body,
        inflight,
        hold: Some(pledge),
        clamped,
        limits: limits.0.take(),
        permits,
        failure: None,
        complaint: Vec::new(),
        relay: None,
    });
}

/// Ends the running attempt as a failure and decides what comes next: `true` for another one.
pub fn fail(gateway: &Gateway, exchange: &mut Exchange, failure: Failure) -> bool {
    let Some(mut attempt) = exchange.call.as_mut().and_then(|call| call.current.take()) else {
        return false;
    };
    settle::note_left(exchange, &mut attempt);
    // Nobody waits for another attempt.
    let pointless = exchange.client_gone;
    let Some(call) = exchange.call.as_mut() else {
        return false;
    };
    call.control.discard_answer();
    call.closing = attempt.relay.as_ref().map_or(b"", |relay| relay.meter.closing());
    let made = call.done.len() as u64 + u64::from(call.stale) + 1;
    let more = made < u64::from(gateway.live.peek().attempts.max);
    if failure == Failure::Stale && call.stale < MAX_STALE && more && !pointless {
        // It never carried a request: not an attempt, and nobody's failure. Only where no other
        // connection takes its place does it stay on record.
        call.stale += 1;
        // It takes the place of the one repeat that a target may have, not of a fallback.
        call.repeats += 1;
        if let Some(hold) = attempt.hold {
            hold.release();
        }
        if let Some(limits) = attempt.limits {
            limits.refund(Instant::now());
        }
        return true;
    }
    let target = attempt.candidate.target.clone();
    let again = match &failure {
        _ if pointless => false,
        Failure::Connect(_) | Failure::NoSocket(_) | Failure::Stale | Failure::Status(500.., _) => {
            same_or_next(call, true)
        }
        // Whatever else was sent may have been worked on: asked again, a target would bill it twice.
        Failure::Broken(_) => same_or_next(call, attempt.refused),
        Failure::Status(..) | Failure::Timeout | Failure::FirstToken => same_or_next(call, false),
        Failure::Deadline
        | Failure::Interrupted(_)
        | Failure::ClientGone
        | Failure::Cut
        | Failure::Internal(_) => false,
    };
    let reason = failure.outcome();
    settle::attempt_failed(gateway, exchange, attempt, failure);
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
    let fault = !matches!(
        failure,
        Failure::ClientGone
            | Failure::Cut
            | Failure::Internal(_)
            | Failure::NoSocket(_)
            | Failure::Stale
    );
    if fault {
        on_trial(gateway, target, false);
    }
    match failure {
        _ if !fault => {}
        Failure::Status(429, after) => permit.cooled(now + after.unwrap_or(UNTOLD_COOLDOWN)),
        Failure::Status(status @ (401 | 403), _) => {
            credential.opened(now, &rule);
            tell_refused(gateway, target, *status);
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
            gateway.alerts.raise(Alert::breaker_opened(&target.id, &rule), Utc::now());
        }
        _ => {}
    }
}

/// A bad credential stays bad until somebody changes it: whoever can has to know.
fn tell_refused(gateway: &Gateway, target: &Target, status: u16) {
    let snapshot = gateway.live.peek();
    let key = snapshot.providers.get(&target.provider).and_then(|p| p.api_key.as_ref());
    let fingerprint = key.map(|key| key.fingerprint());
    let now = Utc::now();
    let alert = Alert::credential_refused(&target.provider, fingerprint.as_deref(), status, now);
    gateway.alerts.raise(alert, now);
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
        let now = Utc::now();
        gateway.alerts.raise(Alert::canary_rolled_back(&target.id, &rule, now), now);
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
