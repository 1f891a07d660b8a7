//! What Prometheus scrapes. No label takes a value that a client can invent: model, team and
//! provider come from the configuration, everything else from fixed sets.

use crate::scope::ScopeKind;
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// In place of a model or team that the configuration doesn't know.
pub const NONE: &str = "-";

/// The labels of an account.
const BUDGET: &[&str] = &["scope", "id", "per"];

/// Seconds, from 1 ms to 5 minutes: an LLM answers in anything between.
const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0,
    120.0, 300.0,
];

/// Seconds spent in the gateway itself, from 5 µs to 1 s.
const OVERHEAD_SECONDS: &[f64] = &[
    0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005,
    0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
];

/// Every metric of the process.
#[allow(missing_docs)] // the help texts below are the documentation
pub struct Metrics {
    registry: Registry,
    pub requests: IntCounterVec,
    pub request_seconds: HistogramVec,
    pub overhead_seconds: Histogram,
    pub attempts: IntCounterVec,
    pub attempt_seconds: HistogramVec,
    pub first_token_seconds: HistogramVec,
    pub tokens: IntCounterVec,
    pub cost_usd: prometheus::CounterVec,
    pub fallbacks: IntCounterVec,
    pub fallback_rate: prometheus::Gauge,
    pub limited: IntCounterVec,
    pub budget_refused: IntCounterVec,
    pub budget_clamped: IntCounterVec,
    pub budget_spent: GaugeVec,
    pub budget_held: GaugeVec,
    pub budget_cap: GaugeVec,
    pub abandoned_streams: IntCounterVec,
    pub abandoned_tokens: IntCounterVec,
    pub inflight: IntGaugeVec,
    pub breaker_open: IntGaugeVec,
    pub rollbacks: IntCounterVec,
    pub auth_failures: IntCounterVec,
    pub credential: GaugeVec,
    pub config_generation: IntGauge,
    pub config_reloads: IntCounterVec,
    pub config_reload_ok: IntGauge,
    pub config_info: IntGaugeVec,
    pub buffered_bytes: IntGauge,
    pub buffered_limit: IntGauge,
    pub memory: IntGauge,
    pub memory_limit: IntGauge,
    pub memory_refusing: IntGauge,
    pub log_dropped: prometheus::IntCounter,
    pub ledger_rows: prometheus::IntCounter,
    pub ledger_lag: prometheus::Gauge,
    pub ledger_healthy: IntGauge,
    pub alerts: IntCounterVec,
}

impl Metrics {
    /// Registers everything in a registry of its own.
    ///
    /// # Errors
    /// When two metrics have one name: a bug that any start shows.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let r = Register(&registry);
        let build = r.gauges("build_info", "The running version.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        let started = r.gauge("start_time_seconds", "When the process started, in Unix time.")?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        started.set(now.as_secs_f64());
        let metrics = Metrics {
            requests: r.counters(
                "requests_total",
                "Client requests, by HTTP status.",
                &["model", "team", "code"],
            )?,
            request_seconds: r.seconds(
                "request_seconds",
                "From the request's header to the end of the answer.",
                &["model"],
            )?,
            overhead_seconds: r.histogram(
                "overhead_seconds",
                "Time spent in the gateway itself before the first attempt.",
                OVERHEAD_SECONDS,
            )?,
            attempts: r.counters(
                "attempts_total",
                "Upstream calls, by what became of them.",
                &["provider", "model", "outcome"],
            )?,
            attempt_seconds: r.seconds(
                "attempt_seconds",
                "Upstream calls, to the end of the answer.",
                &["provider", "model"],
            )?,
            first_token_seconds: r.seconds(
                "first_token_seconds",
                "Until the first event of a stream.",
                &["provider", "model"],
            )?,
            tokens: r.counters(
                "tokens_total",
                "Tokens as reported by providers, or estimated.",
                &["provider", "model", "team", "kind"],
            )?,
            cost_usd: r.money(
                "cost_usd_total",
                "What the attempts cost.",
                &["provider", "model", "team"],
            )?,
            fallbacks: r.counters(
                "fallbacks_total",
                "Attempts on another target or model than the first.",
                &["from", "to", "reason"],
            )?,
            fallback_rate: r.gauge(
                "fallback_rate",
                "Share of requests that fell back, over the last five minutes.",
            )?,
            budget_refused: r.counters(
                "budget_refused_total",
                "Requests refused by a budget.",
                &["scope"],
            )?,
            budget_clamped: r.counters(
                "budget_clamped_total",
                "Attempts whose output was capped to what a budget had left.",
                &["scope"],
            )?,
            budget_spent: r.gauges("budget_spent_usd", "Spent in the running window.", BUDGET)?,
            budget_held: r.gauges("budget_held_usd", "Held for running attempts.", BUDGET)?,
            budget_cap: r.gauges("budget_cap_usd", "The cap of the window.", BUDGET)?,
            limited: r.counters(
                "limited_total",
                "Requests refused by a limit.",
                &["scope", "limit"],
            )?,
            abandoned_streams: r.counters(
                "abandoned_streams_total",
                "Streams whose client left before their end.",
                &["provider", "model"],
            )?,
            abandoned_tokens: r.counters(
                "abandoned_tokens_total",
                "Output tokens of streams whose client left, as far as they were read.",
                &["provider", "model"],
            )?,
            inflight: r.int_gauges(
                "inflight",
                "Upstream calls running now.",
                &["provider", "model"],
            )?,
            breaker_open: r.int_gauges(
                "breaker_open",
                "1 from the opening of a target's breaker until a trial call succeeds.",
                &["provider", "model"],
            )?,
            rollbacks: r.counters(
                "canary_rollbacks_total",
                "Targets on trial that took themselves out.",
                &["provider", "model"],
            )?,
            auth_failures: r.counters(
                "provider_auth_failures_total",
                "401 and 403 from providers: the gateway's own credential is bad.",
                &["provider"],
            )?,
            credential: r.gauges(
                "credential_info",
                "The credential in use, by the first 8 hex digits of its SHA-256.",
                &["provider", "fingerprint"],
            )?,
            config_generation: r.int_gauge(
                "config_generation",
                "Successful configuration loads of this process.",
            )?,
            config_reloads: r.counters(
                "config_reloads_total",
                "Reloads, by result.",
                &["result"],
            )?,
            config_reload_ok: r.int_gauge(
                "config_reload_ok",
                "0 since a reload was refused: the configuration before it is in force.",
            )?,
            config_info: r.int_gauges(
                "config_info",
                "The configuration in force, by the first 16 hex digits of its file's SHA-256.",
                &["hash"],
            )?,
            buffered_bytes: r.int_gauge("buffered_bytes", "Request bodies in memory.")?,
            buffered_limit: r.int_gauge(
                "buffered_limit_bytes",
                "How much of them there may be (server.max_buffered_bytes).",
            )?,
            memory: r.int_gauge("memory_bytes", "Resident memory of the process.")?,
            memory_limit: r.int_gauge(
                "memory_limit_bytes",
                "Past it new requests are refused (server.max_memory); 0 is no limit.",
            )?,
            memory_refusing: r.int_gauge(
                "memory_refusing",
                "1 while new requests are refused for server.max_memory.",
            )?,
            log_dropped: r.counter(
                "access_log_dropped_total",
                "Access log lines lost because their reader was too slow.",
            )?,
            ledger_rows: r.counter("ledger_rows_total", "Rows committed by this process.")?,
            ledger_lag: r
                .gauge("ledger_lag_seconds", "Age of the oldest row not yet committed.")?,
            ledger_healthy: r
                .int_gauge("ledger_healthy", "0 while the state file can't be written.")?,
            alerts: r.counters(
                "alerts_total",
                "Alerts: logged once each; sent, failed or dropped once for each webhook.",
                &["kind", "result"],
            )?,
            registry: registry.clone(),
        };
        metrics.begin_at_zero();
        Ok(metrics)
    }

    /// Shows what is rare before it happens for the first time: Prometheus sees no increase in a
    /// series that begins at 1.
    fn begin_at_zero(&self) {
        self.config_reload_ok.set(1);
        for result in ["ok", "refused"] {
            self.config_reloads.with_label_values(&[result]);
        }
        for scope in ScopeKind::ALL {
            self.budget_refused.with_label_values(&[scope.as_str()]);
        }
    }

    /// The text exposition format, version 0.0.4.
    pub fn render(&self) -> Vec<u8> {
        let mut out = Vec::new();
        // Writing to memory can't fail; an encoder error would be a malformed family.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut out);
        out
    }

    /// Observes a duration in seconds.
    pub fn observe(histogram: &HistogramVec, labels: &[&str], took: Duration) {
        histogram.with_label_values(labels).observe(took.as_secs_f64());
    }
}

struct Register<'a>(&'a Registry);

impl Register<'_> {
    fn opts(name: &str, help: &str) -> Opts {
        Opts::new(format!("tollbar_{name}"), help)
    }

    fn add<C: prometheus::core::Collector + Clone + 'static>(&self, c: C) -> prometheus::Result<C> {
        self.0.register(Box::new(c.clone()))?;
        Ok(c)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntCounterVec> {
        self.add(IntCounterVec::new(Self::opts(name, help), labels)?)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<prometheus::IntCounter> {
        self.add(prometheus::IntCounter::with_opts(Self::opts(name, help))?)
    }

    fn money(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<prometheus::CounterVec> {
        self.add(prometheus::CounterVec::new(Self::opts(name, help), labels)?)
    }

    fn seconds(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<HistogramVec> {
        let opts = HistogramOpts::from(Self::opts(name, help)).buckets(SECONDS.to_vec());
        self.add(HistogramVec::new(opts, labels)?)
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
        let opts = HistogramOpts::from(Self::opts(name, help)).buckets(buckets.to_vec());
        self.add(Histogram::with_opts(opts)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<GaugeVec> {
        self.add(GaugeVec::new(Self::opts(name, help), labels)?)
    }

    fn int_gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntGaugeVec> {
        self.add(IntGaugeVec::new(Self::opts(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<prometheus::Gauge> {
        self.add(prometheus::Gauge::with_opts(Self::opts(name, help))?)
    }

    fn int_gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.add(IntGauge::with_opts(Self::opts(name, help))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `promtool check metrics` wants of names.
    #[test]
    fn a_total_is_a_counter() {
        let text = String::from_utf8(Metrics::new().unwrap().render()).unwrap();
        let types: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        assert!(types.len() > 10, "{types:?}");
        for line in types {
            let (name, kind) = line.split_once(' ').unwrap();
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
        }
    }
}
