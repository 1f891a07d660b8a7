//! The end of attempts and of requests: each is recorded exactly once, however it ended.

use super::attempt::{judge, on_trial, unbilled};
use super::exchange::{Attempt, AttemptRecord, Exchange, Failure, team_label};
use super::usage::{charged, consumed, hear, presume, unreported};
use crate::access_log::Entry;
use crate::faults;
use crate::ledger::Row;
use crate::metrics::Metrics;
use crate::reject::Reason;
use crate::state::Gateway;
use crate::units::{Dialect, NanoUsd, UsageSource};
use crate::wire::meter::End;
use crate::wire::route::Endpoint;
use std::time::{Duration, Instant};

/// nginx's word for "the client closed the request".
pub const CLIENT_LEFT: u16 = 499;

/// The upstream's body has come to its end, good or bad: books the attempt.
pub fn answer_ended(gateway: &Gateway, exchange: &mut Exchange) {
    let Some(mut attempt) = exchange.call.as_mut().and_then(|call| call.current.take()) else {
        return;
    };
    note_left(exchange, &mut attempt);
    faults::point("settle");
    // An error that is relayed is the client's own: its body reads like a failure inside an answer,
    // but says nothing against the target, which others may still want.
    let answer = attempt.relay.as_ref().filter(|relay| relay.status < 300);
    let failure = answer.and_then(|relay| match relay.report.as_ref().map(|report| &report.end) {
        Some(End::Truncated) => Some(Failure::Interrupted("the stream ended too soon".into())),
        Some(End::Failed { message, .. }) => Some(Failure::Interrupted(message.clone())),
        Some(End::Complete) | None => None,
    });
    let record = book(gateway, exchange, &attempt, failure);
    correct_attempt(&mut attempt, &record);
    enter_books(gateway, exchange, &mut attempt, &record);
    match &record.failure {
        Some(failure) => judge(gateway, attempt, failure),
        None => praise(gateway, attempt, record.first_token.filter(|_| record.status < Some(300))),
    }
    if let Some(call) = exchange.call.as_mut() {
        call.control.set_cost(record.cost.to_string());
        call.done.push(record);
    }
}

/// An attempt has ended. Takes note of the client that left while its answer was drained.
pub fn note_left(exchange: &mut Exchange, attempt: &mut Attempt) {
    let Some(left) = exchange.call.as_ref().and_then(|call| call.control.ended()) else {
        return;
    };
    exchange.client_gone = true;
    if !left.answered {
        exchange.status = CLIENT_LEFT;
    }
    if let Some(relay) = attempt.relay.as_mut() {
        relay.bytes = relay.bytes.min(left.bytes);
    }
}

/// An attempt has failed: books it.
pub fn attempt_failed(
    gateway: &Gateway,
    exchange: &mut Exchange,
    mut attempt: Attempt,
    failure: Failure,
) {
    let begun = attempt.relay.as_ref().is_some_and(|relay| relay.status < 300);
    let record = if begun {
        book(gateway, exchange, &attempt, Some(failure))
    } else {
        let mut record = unbilled(&attempt, failure);
        presume(exchange, &attempt, &mut record);
        count(gateway, exchange, &attempt, &record);
        record
    };
    if let Some(Failure::Connect(_) | Failure::NoSocket(_)) = &record.failure
        && let Some(limits) = attempt.limits.take()
    {
        // Nothing was sent: its provider has counted nothing.
        limits.refund(Instant::now());
    }
    correct_attempt(&mut attempt, &record);
    enter_books(gateway, exchange, &mut attempt, &record);
    if let Some(failure) = &record.failure {
        judge(gateway, attempt, failure);
    }
    if let Some(call) = exchange.call.as_mut() {
        call.done.push(record);
    }
}

fn correct_attempt(attempt: &mut Attempt, record: &AttemptRecord) {
    let tokens = record.usage.input.unwrap_or(0).saturating_add(record.usage.output.unwrap_or(0));
    if let Some(limits) = &mut attempt.limits {
        limits.correct(tokens, Instant::now());
    }
}

/// The target answered, and its provider takes our credential.
fn praise(gateway: &Gateway, attempt: Attempt, first_token: Option<Duration>) {
    on_trial(gateway, &attempt.candidate.target, true);
    let (target, credential) = attempt.permits;
    let now = Instant::now();
    target.succeeded(now, first_token);
    credential.succeeded(now, None);
}

/// Usage, cost and metrics of an attempt that got an answer.
fn book(
    gateway: &Gateway,
    exchange: &Exchange,
    attempt: &Attempt,
    failure: Option<Failure>,
) -> AttemptRecord {
    let mut record = unbilled(attempt, Failure::ClientGone);
    record.outcome = failure.as_ref().map_or("ok", Failure::outcome);
    record.failure = failure;
    if let Some(relay) = &attempt.relay {
        let report = relay.report.clone().unwrap_or_else(|| relay.meter.report());
        record.status = Some(relay.status);
        record.first_token = relay.first_token.map(|at| at.duration_since(attempt.started));
        record.bytes = relay.bytes;
        record.upstream_id.clone_from(&relay.upstream_id);
        // An error that says what it has used will be on the bill, too, …
        let said = report.usage.input.is_some() || report.usage.output.is_some();
        // … and one that came in place of a stream will not: Anthropic opens a stream with its
        // first event. Others are known to do so sooner.
        let target = &attempt.candidate.target;
        let failed =
            report.first_error_only && relay.events && target.dialect == Dialect::Anthropic;
        // Without an endpoint it is nothing that can be metered.
        let billed = exchange.endpoint.is_some_and(Endpoint::is_billed);
        if billed && (said || (relay.status < 300 && !failed)) {
            let unreported = unreported(exchange, attempt, &report);
            (record.usage, record.source) =
                consumed(&report, exchange, attempt, record.failure.as_ref(), unreported);
            if let Some(call) = &exchange.call {
                hear(call, attempt, &mut record);
            }
            record.cost = charged(exchange, attempt, &report, &record);
        }
        if relay.status >= 300 && record.failure.is_none() {
            record.outcome = "relayed_error";
        }
    }
    if record.failure.is_none() && exchange.client_gone {
        // It was drained: nobody got it.
        record.outcome = Failure::ClientGone.outcome();
    }
    count(gateway, exchange, attempt, &record);
    record
}

/// Settles the money that was held for the attempt, with its row in the ledger, and counts it.
fn enter_books(
    gateway: &Gateway,
    exchange: &Exchange,
    attempt: &mut Attempt,
    record: &AttemptRecord,
) {
    let row = row(exchange, attempt, record);
    match attempt.hold.take() {
        Some(hold) => hold.settle(record.cost, row),
        None => gateway.ledger.append(row),
    }
    count_tokens(gateway, attempt, record);
}

/// The attempt as the ledger keeps it.
fn row(exchange: &Exchange, attempt: &Attempt, record: &AttemptRecord) -> Row {
    let (target, usage) = (&attempt.candidate.target, &record.usage);
    // Whose budgets were charged.
    let caller = &attempt.caller;
    let millis = |took: Duration| u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    Row {
        request_id: exchange.id.clone(),
        key_id: caller.id.to_string(),
        team: caller.team.clone(),
        user: caller.user.clone(),
        model: attempt.candidate.model.name.clone(),
        provider: target.provider.clone(),
        target_model: target.model.clone(),
        attempt: exchange.call.as_ref().map_or(1, |call| call.done.len() as u32 + 1),
        outcome: record.outcome.into(),
        status: record.status,
        stream: exchange.call.as_ref().is_some_and(|call| call.stream),
        input_tokens: usage.input,
        cached_input_tokens: usage.cached_input,
        cache_write_tokens: usage.cache_write,
        output_tokens: usage.output,
        reasoning_tokens: usage.reasoning,
        usage_source: record.source,
        cost_nano_usd: record.cost,
        price_version: target.price.version.to_string(),
        first_token_ms: record.first_token.map(millis),
        duration_ms: millis(record.took),
        client_gone: exchange.client_gone,
        metadata: caller.metadata.clone(),
        ..Row::new(attempt.at)
    }
}

fn count(gateway: &Gateway, exchange: &Exchange, attempt: &Attempt, record: &AttemptRecord) {
    let target = &attempt.candidate.target;
    let metrics = &gateway.metrics;
    let labels = [target.provider.as_str(), target.model.as_str()];
    metrics.attempts.with_label_values(&[labels[0], labels[1], record.outcome]).inc();
    Metrics::observe(&metrics.attempt_seconds, &labels, record.took);
    // The first byte of any other answer is its end.
    let streamed = exchange.call.as_ref().is_some_and(|call| call.stream);
    if let Some(first) = record.first_token.filter(|_| streamed) {
        Metrics::observe(&metrics.first_token_seconds, &labels, first);
    }
    if exchange.client_gone {
        metrics.abandoned_streams.with_label_values(&labels).inc();
        let output = record.usage.output.unwrap_or(0);
        metrics.abandoned_tokens.with_label_values(&labels).inc_by(output);
    }
}

fn count_tokens(gateway: &Gateway, attempt: &Attempt, record: &AttemptRecord) {
    let target = &attempt.candidate.target;
    let (provider, model) = (target.provider.as_str(), target.model.as_str());
    let team = team_label(&attempt.caller);
    let kinds = [
        ("input", record.usage.input),
        ("cached_input", record.usage.cached_input),
        ("cache_write", record.usage.cache_write),
        ("output", record.usage.output),
        ("reasoning", record.usage.reasoning),
    ];
    for (kind, tokens) in kinds {
        if let Some(tokens) = tokens.filter(|tokens| *tokens > 0) {
            gateway.metrics.tokens.with_label_values(&[provider, model, team, kind]).inc_by(tokens);
        }
    }
}

/// The request is over: one log line, its metrics.
pub fn request_ended(gateway: &Gateway, exchange: &mut Exchange, request: &Head) {
    leave_no_attempt(gateway, exchange);
    correct_limits(gateway, exchange);
    let took = exchange.started.elapsed();
    if let Some(call) = &exchange.call {
        let first = call.plan.first().map(|candidate| &candidate.target.id);
        let fell_back = call.done.last().is_some_and(|record| Some(&record.target) != first);
        gateway.fallbacks.count(gateway.started.elapsed().as_secs(), fell_back);
    }
    let model = exchange.model_label();
    let status = http::StatusCode::from_u16(exchange.status);
    let status = status.as_ref().map_or("0", http::StatusCode::as_str);
    let labels = [model, exchange.team_label(), status];
    // Load balancers ask all the time: among their probes the errors of a few clients are lost.
    if !exchange.is_probe {
        gateway.metrics.requests.with_label_values(&labels).inc();
        Metrics::observe(&gateway.metrics.request_seconds, &[model], took);
    }
    let entry = entry(exchange, request, took);
    if !gateway.access_log.log(&entry) {
        gateway.metrics.log_dropped.inc();
    }
}

/// An attempt that no hook has ended, because Pingora gave up on its own.
fn leave_no_attempt(gateway: &Gateway, exchange: &mut Exchange) {
    let ended_well = exchange
        .call
        .as_mut()
        .and_then(|call| call.current.as_mut())
        .and_then(|attempt| attempt.relay.as_mut())
        .is_some_and(|relay| {
            let _ = relay.meter.end();
            relay.report = Some(relay.meter.report());
            true
        });
    if exchange.client_gone {
        super::attempt::fail(gateway, exchange, Failure::ClientGone);
    } else if ended_well {
        answer_ended(gateway, exchange);
    } else {
        super::attempt::fail(gateway, exchange, Failure::Internal("given up".into()));
    }
}

/// A request that is refused after the limits had let it pass has used nothing of them. They are
/// told before the client is, whose next request may come at once.
pub fn refund_unused(exchange: &mut Exchange) {
    if let Some(call) = exchange.call.as_mut().filter(|call| call.done.is_empty())
        && let Some(permit) = call.permit.take()
    {
        permit.refund(Instant::now());
    }
}

/// Now that it is known how many tokens were used, the limits are told.
fn correct_limits(gateway: &Gateway, exchange: &mut Exchange) {
    refund_unused(exchange);
    let Some(call) = exchange.call.as_mut() else {
        return;
    };
    let Some(mut permit) = call.permit.take() else {
        return;
    };
    let each = call.done.iter().flat_map(|record| [record.usage.input, record.usage.output]);
    let tokens = each.flatten().fold(0, u64::saturating_add);
    permit.correct(tokens, Instant::now());
    let reported = call.done.iter().rfind(|record| record.source == UsageSource::Reported);
    if let Some(input) = reported.and_then(|record| record.usage.input) {
        gateway.token_rate(&call.model.name).observe(call.body.len() as u64, input);
    }
}

/// What the log says of a request's header.
pub struct Head {
    /// The client's address.
    pub client: String,
    /// The method.
    pub method: String,
    /// Whether an SDK says it repeats a request.
    pub sdk_retry: bool,
}

fn entry<'a>(exchange: &'a Exchange, head: &'a Head, took: Duration) -> Entry<'a> {
    let call = exchange.call.as_ref();
    let caller = exchange.caller.as_ref();
    let done = call.map_or(&[][..], |call| &call.done);
    let last = done.last();
    let cost = done.iter().fold(NanoUsd(0), |sum, record| sum.saturating_add(record.cost));
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    Entry {
        ts: chrono::Utc::now(),
        request_id: &exchange.id,
        client: &head.client,
        method: &head.method,
        endpoint: exchange.endpoint.map_or("-", |endpoint| endpoint.as_str()),
        key_id: caller.map(|caller| &*caller.id),
        team: caller.and_then(|caller| caller.team.as_deref()),
        user: caller.and_then(|caller| caller.user.as_deref()),
        model: exchange.model.as_ref().map(|model| model.name.as_str()),
        target: last.map(|record| record.target.as_str()),
        status: exchange.status,
        code: match (&exchange.refusal, last) {
            (Some(refusal), _) => Some(refusal.reason.code()),
            (
                None,
                Some(AttemptRecord {
                    failure: Some(Failure::Interrupted(_) | Failure::Cut), ..
                }),
            ) if !exchange.client_gone => Some(Reason::StreamInterrupted.code()),
            _ => None,
        },
        stream: call.is_some_and(|call| call.stream),
        attempts: done.iter().map(AttemptRecord::line).collect(),
        outcome: match (&exchange.refusal, last) {
            _ if exchange.client_gone => "client_gone",
            (Some(_), _) => "refused",
            (None, Some(record)) => record.outcome,
            (None, None) => "ok",
        },
        client_gone: exchange.client_gone,
        input_tokens: last.and_then(|record| record.usage.input),
        cached_input_tokens: last.and_then(|record| record.usage.cached_input),
        output_tokens: last.and_then(|record| record.usage.output),
        usage_source: last.map_or(UsageSource::None, |record| record.source).as_str(),
        cost_usd: last.map(|_| cost.to_string()),
        bytes_in: call.map_or(0, |call| call.body.len() as u64),
        bytes_out: last.map_or(0, |record| record.bytes),
        first_token_ms: last.and_then(|record| record.first_token).map(millis),
        duration_ms: millis(took),
        upstream_request_id: last.and_then(|record| record.upstream_id.as_deref()),
        config: exchange.snapshot.generation,
        sdk_retry: head.sdk_retry,
    }
}
