//! What is left of a request: its cost, its metrics, its line in the log, its row.

use super::{Operation, Work, contended, single};
use chrono::{DateTime, Utc};
use std::hint::black_box;
use std::time::Duration;
use tollbar::access_log::{AttemptLine, Entry};
use tollbar::catalog::Price;
use tollbar::ledger::Row;
use tollbar::metrics::Metrics;
use tollbar::units::{NanoUsd, Usage, UsageSource};

pub fn operations() -> Vec<Operation> {
    vec![
        single("cost/usage", cost),
        contended("metrics/request", metrics),
        single("log/line", line),
    ]
}

fn cost() -> Box<dyn Work> {
    let price =
        Price { input: 150_000, output: 600_000, cached_input: Some(75_000), ..Price::default() };
    let usage = Usage {
        input: Some(1_200),
        cached_input: Some(1_024),
        output: Some(310),
        reasoning: Some(128),
        ..Usage::default()
    };
    Box::new(move |_| {
        black_box(black_box(&price).cost(black_box(&usage)));
    })
}

/// What `proxy::settle` counts of a streamed request with one attempt, call for call.
fn metrics() -> Box<dyn Work> {
    let metrics = Metrics::new().unwrap();
    let took = Duration::from_millis(840);
    let [provider, model, team] = ["openai", "gpt-4o-mini", "web"];
    Box::new(move |_| {
        let target = black_box([provider, model]);
        let inflight = metrics.inflight.with_label_values(&target);
        inflight.inc();
        metrics.overhead_seconds.observe(0.000_04);
        metrics.attempts.with_label_values(&[provider, model, "ok"]).inc();
        Metrics::observe(&metrics.attempt_seconds, &target, took);
        Metrics::observe(&metrics.first_token_seconds, &target, took / 3);
        for (kind, tokens) in [("input", 1_200), ("cached_input", 1_024), ("output", 310)] {
            let labels = [provider, model, team, kind];
            metrics.tokens.with_label_values(&labels).inc_by(tokens);
        }
        metrics.cost_usd.with_label_values(&[provider, model, team]).inc_by(0.000_3);
        inflight.dec();
        metrics.requests.with_label_values(&[model, team, "200"]).inc();
        Metrics::observe(&metrics.request_seconds, &[model], took);
    })
}

fn line() -> Box<dyn Work> {
    let entry = Entry {
        ts: DateTime::from_timestamp_millis(1_795_262_400_000).unwrap(),
        request_id: "req_0123456789abcdef0123456789abcdef",
        client: "192.0.2.17",
        method: "POST",
        endpoint: "chat_completions",
        key_id: Some("web-prod"),
        team: Some("web"),
        user: Some("ana@example.com"),
        model: Some("gpt-4o-mini"),
        target: Some("openai/gpt-4o-mini"),
        status: 200,
        code: None,
        stream: true,
        attempts: vec![AttemptLine {
            target: "openai/gpt-4o-mini",
            status: Some(200),
            outcome: "ok",
            ms: 840,
        }],
        outcome: "ok",
        client_gone: false,
        input_tokens: Some(1_200),
        cached_input_tokens: Some(1_024),
        output_tokens: Some(310),
        usage_source: "reported",
        cost_usd: Some("0.000300000".into()),
        bytes_in: 4_810,
        bytes_out: 52_200,
        first_token_ms: Some(280),
        duration_ms: 840,
        upstream_request_id: Some("req-8d3f0a61c2"),
        config: 3,
        sdk_retry: false,
    };
    Box::new(move |_| {
        black_box(black_box(&entry).line());
    })
}

/// As a finished request leaves it to the ledger.
pub fn row(at: DateTime<Utc>) -> Row {
    Row {
        request_id: "req_0123456789abcdef0123456789abcdef".into(),
        key_id: "web-prod".into(),
        team: Some("web".into()),
        user: Some("ana@example.com".into()),
        model: "gpt-4o-mini".into(),
        provider: "openai".into(),
        target_model: "gpt-4o-mini-2024-07-18".into(),
        outcome: "ok".into(),
        status: Some(200),
        stream: true,
        input_tokens: Some(1_200),
        cached_input_tokens: Some(1_024),
        output_tokens: Some(310),
        usage_source: UsageSource::Reported,
        cost_nano_usd: NanoUsd(300_000),
        price_version: "catalogue-2026-11".into(),
        first_token_ms: Some(280),
        duration_ms: 840,
        metadata: r#"{"app":"storefront"}"#.into(),
        ..Row::new(at)
    }
}
