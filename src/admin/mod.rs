//! The admin listener: health and metrics for all, the rest for the admin token.

mod key_view;
mod keys;
mod litellm;
pub mod reports;

use crate::config::snapshot::{OnFailure, Snapshot, Target};
use crate::plan::health::View;
use crate::proxy::{self, ConnectionMark};
use crate::reload::Outcome;
use crate::reloader::Reloader;
use crate::secret::sha256;
use crate::state::Gateway;
use crate::units::NanoUsd;
use async_trait::async_trait;
use chrono::Utc;
use http::{Method, Response};
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Instant;
use subtle::ConstantTimeEq;

/// Answers admin requests.
pub struct AdminApi {
    gateway: Arc<Gateway>,
    reloader: Reloader,
    /// Whose turn it is to empty the gauges whose series come and go, fill them and read them: of
    /// two at once, one would read what the other has emptied.
    scraping: tokio::sync::Mutex<()>,
}

impl AdminApi {
    /// Over this state.
    pub fn new(gateway: Arc<Gateway>, reloader: Reloader) -> Self {
        AdminApi { gateway, reloader, scraping: tokio::sync::Mutex::default() }
    }

    async fn answer(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let header = session.req_header();
        let method = header.method.clone();
        let path = header.uri.path().to_owned();
        let query = header.uri.query().unwrap_or("").to_owned();
        if method == Method::GET || method == Method::HEAD {
            match path.as_str() {
                "/healthz" => return json_answer(200, &json!({"status": "ok"})),
                "/readyz" => return self.ready(),
                "/metrics" => return self.metrics().await,
                _ => {}
            }
        }
        if let Err(refusal) = self.authorize(session) {
            return *refusal;
        }
        let gateway = &self.gateway;
        match (&method, path.as_str()) {
            (&Method::GET | &Method::HEAD, "/status") => json_answer(200, &self.status()),
            (&Method::POST, "/reload") => self.reload().await,
            (&Method::GET, "/budgets") => reports::budgets(gateway),
            (&Method::GET, "/spend") => reports::spend(gateway, &query).await,
            (&Method::GET, "/requests") => reports::requests(gateway, &query).await,
            (
                _,
                "/healthz" | "/readyz" | "/metrics" | "/status" | "/reload" | "/budgets" | "/spend"
                | "/requests",
            ) => other_method(),
            (_, other) if other == "/keys" || other.starts_with("/keys/") => {
                match json_body(session).await {
                    Ok(body) => keys::serve(gateway, &method, other, &query, body).await,
                    Err(refusal) => *refusal,
                }
            }
            (_, other) if other.starts_with("/key/") => match json_body(session).await {
                Ok(body) => litellm::serve(gateway, &method, other, &query, body).await,
                Err(refusal) => *refusal,
            },
            _ => error(404, "unknown_path", "there is nothing at this path"),
        }
    }

    fn ready(&self) -> Response<Vec<u8>> {
        if self.gateway.is_draining() {
            json_answer(503, &json!({"status": "draining"}))
        } else if self.gateway.live.peek().state_on_failure == OnFailure::Closed
            && !self.gateway.ledger.healthy()
        {
            // Whatever has a budget is refused here: others may be able to serve it.
            json_answer(503, &json!({"status": "state_unavailable"}))
        } else {
            json_answer(200, &json!({"status": "ready"}))
        }
    }

    async fn metrics(&self) -> Response<Vec<u8>> {
        let _turn = self.scraping.lock().await;
        self.publish_config();
        self.publish_memory();
        self.publish_breakers();
        self.publish_budgets();
        let (metrics, ledger) = (&self.gateway.metrics, &self.gateway.ledger);
        metrics.log_dropped.inc_by(self.gateway.access_log.lost());
        let rows = ledger.rows().saturating_sub(metrics.ledger_rows.get());
        metrics.ledger_rows.inc_by(rows);
        metrics.ledger_lag.set(ledger.lag().as_secs_f64());
        metrics.ledger_healthy.set(i64::from(ledger.healthy()));
        let second = self.gateway.started.elapsed().as_secs();
        self.gateway.metrics.fallback_rate.set(self.gateway.fallbacks.share(second));
        let body = self.gateway.metrics.render();
        build(200, "text/plain; version=0.0.4; charset=utf-8", body)
    }

    /// Generation, hash and credential fingerprints, all of one configuration.
    fn publish_config(&self) {
        let Gateway { metrics, live, .. } = &*self.gateway;
        let snapshot = live.snapshot();
        metrics.config_generation.set(gauge(snapshot.generation));
        metrics.config_info.reset();
        metrics.config_info.with_label_values(&[&snapshot.hash]).set(1);
        metrics.credential.reset();
        for provider in snapshot.providers.values() {
            if let Some(key) = &provider.api_key {
                let labels = [provider.name.as_str(), &key.fingerprint()];
                metrics.credential.with_label_values(&labels).set(1.0);
            }
        }
    }

    fn publish_memory(&self) {
        let Gateway { metrics, memory, bodies, live, .. } = &*self.gateway;
        metrics.buffered_bytes.set(gauge(bodies.used()));
        metrics.buffered_limit.set(gauge(live.peek().server.max_buffered_bytes));
        metrics.memory.set(gauge(memory.resident()));
        metrics.memory_limit.set(gauge(memory.watermark()));
        metrics.memory_refusing.set(i64::from(memory.is_over()));
    }

    fn publish_budgets(&self) {
        let metrics = &self.gateway.metrics;
        for gauge in [&metrics.budget_spent, &metrics.budget_held, &metrics.budget_cap] {
            gauge.reset();
        }
        #[allow(clippy::cast_precision_loss)] // a metric is a float; the ledger is not
        let usd = |amount: NanoUsd| amount.0 as f64 / 1e9;
        for account in self.gateway.budgets.view(Utc::now()) {
            let labels = [account.kind.as_str(), &account.id, account.per.as_str()];
            metrics.budget_spent.with_label_values(&labels).set(usd(account.spent));
            metrics.budget_held.with_label_values(&labels).set(usd(account.held));
            metrics.budget_cap.with_label_values(&labels).set(usd(account.cap));
        }
    }

    fn publish_breakers(&self) {
        let (snapshot, now) = (self.gateway.live.peek(), Instant::now());
        self.gateway.metrics.breaker_open.reset();
        for target in snapshot.models.values().flat_map(|model| &model.targets) {
            let open = seen(&self.gateway, &snapshot, target, now).breaker != "closed";
            let labels = [target.provider.as_str(), target.model.as_str()];
            self.gateway.metrics.breaker_open.with_label_values(&labels).set(i64::from(open));
        }
    }

    /// The admin token, compared in constant time. No configured token opens nothing.
    fn authorize(&self, session: &ServerSession) -> Result<(), Box<Response<Vec<u8>>>> {
        let snapshot = self.gateway.live.peek();
        let Some(token) = &snapshot.admin.token else {
            return Err(refusal(
                403,
                "admin_disabled",
                "set `admin.token` in the configuration to use this",
            ));
        };
        let given = session.req_header().headers.get("authorization");
        let given = given.and_then(|value| value.to_str().ok()).unwrap_or("");
        let given = given.split_once(' ').filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
        let given = given.map_or("", |(_, token)| token.trim());
        if bool::from(given.as_bytes().ct_eq(token.expose().as_bytes())) {
            return Ok(());
        }
        let hash = sha256(given.as_bytes());
        let keyring = &self.gateway.keyring;
        if snapshot.keys.by_hash(&hash).is_some() || keyring.by_hash(&hash).is_some() {
            return Err(refusal(403, "not_admin", "a virtual key opens nothing here"));
        }
        Err(refusal(
            401,
            "invalid_admin_token",
            "send `Authorization: Bearer` with the admin token",
        ))
    }

    async fn reload(&self) -> Response<Vec<u8>> {
        match self.reloader.reload().await {
            Some(Ok(generation)) => json_answer(200, &json!({"generation": generation})),
            Some(Err(problems)) => json_answer(
                400,
                &json!({
                    "error": {
                        "code": "invalid_configuration",
                        "message": "the old configuration stays in force",
                        "problems": problems,
                    }
                }),
            ),
            None => error(500, "internal_error", "the reload failed; the old configuration stays"),
        }
    }

    fn status(&self) -> Value {
        let gateway = &self.gateway;
        let snapshot = gateway.live.peek();
        let Outcome { problems, warnings } = gateway.live.last();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "generation": snapshot.generation,
            "config_hash": snapshot.hash,
            "old_configurations": gateway.live.retired.count(),
            "uptime_seconds": gateway.started.elapsed().as_secs(),
            "draining": gateway.is_draining(),
            "requests_running": gateway.running.count(),
            "buffered_bytes": gateway.bodies.used(),
            "state_writable": gateway.ledger.healthy(),
            "fallback_rate_5m": gateway.fallbacks.share(gateway.started.elapsed().as_secs()),
            "last_reload_problems": problems,
            "warnings": warnings,
            "providers": providers(&snapshot),
            "targets": targets(gateway, &snapshot),
        })
    }
}

fn providers(snapshot: &Snapshot) -> Value {
    let mut rows: Vec<_> = snapshot.providers.values().collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows.iter()
        .map(|provider| {
            json!({
                "name": provider.name,
                "dialect": provider.dialect.as_str(),
                "credential": provider.api_key.as_ref().map(|key| key.fingerprint()),
            })
        })
        .collect()
}

/// A target's own health, or that of its provider's credential where it is worse: both must be
/// well for an attempt.
fn seen(gateway: &Gateway, snapshot: &Snapshot, target: &Target, now: Instant) -> View {
    let own = gateway.health.of(&target.id).view(now);
    let Some(provider) = snapshot.providers.get(&target.provider) else {
        return own;
    };
    let credential = gateway.health.of(&provider.credential).view(now);
    let breaker = if own.breaker == "closed" { credential.breaker } else { own.breaker };
    View { breaker, until: own.until.max(credential.until), ..own }
}

fn targets(gateway: &Gateway, snapshot: &Snapshot) -> Value {
    let now = Instant::now();
    let mut rows = Vec::new();
    let mut models: Vec<_> = snapshot.models.values().collect();
    models.sort_by(|a, b| a.name.cmp(&b.name));
    for model in models {
        for target in &model.targets {
            let labels = [target.provider.as_str(), target.model.as_str()];
            let view = seen(gateway, snapshot, target, now);
            let health = gateway.health.of(&target.id);
            let rolled_back = target.canary.is_some_and(|rule| health.is_rolled_back(&rule));
            let left = view.until.map(|until| until.saturating_duration_since(now).as_secs_f64());
            rows.push(json!({
                "model": model.name,
                "target": target.id,
                "weight": target.weight,
                "breaker": view.breaker,
                "rolled_back": rolled_back,
                "blocked_for_seconds": left,
                "first_token_ewma_ms": view.ewma.map(|ewma| ewma.as_secs_f64() * 1000.0),
                "in_flight": gateway.metrics.inflight.with_label_values(&labels).get(),
            }));
        }
    }
    rows.into()
}

/// The largest body that is read here, in bytes.
const LARGEST_BODY: usize = 1 << 20;

/// The request's body, a JSON object; empty where there is none.
async fn json_body(
    session: &mut ServerSession,
) -> Result<Map<String, Value>, Box<Response<Vec<u8>>>> {
    let mut body = Vec::new();
    loop {
        match session.read_request_body().await {
            Ok(Some(piece)) if body.len() + piece.len() > LARGEST_BODY => {
                return Err(refusal(413, "request_too_large", "a body has at most 1 MiB here"));
            }
            Ok(Some(piece)) => body.extend_from_slice(&piece),
            Ok(None) => break,
            Err(_) => {
                // Where the next request begins nobody knows.
                session.set_keepalive(None);
                return Err(refusal(400, "invalid_request", "the body broke off"));
            }
        }
    }
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    serde_json::from_slice(&body).map_err(|why| {
        // serde_json's messages may repeat what was sent, which may be a key.
        let (line, column) = (why.line(), why.column());
        let message = format!("not a JSON object: see line {line}, column {column}");
        refusal(400, "invalid_json", &message)
    })
}

/// A number as Prometheus's gauges take it.
fn gauge(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn other_method() -> Response<Vec<u8>> {
    error(405, "method_not_allowed", "this path takes another method")
}

fn json_answer(status: u16, body: &Value) -> Response<Vec<u8>> {
    build(status, "application/json", body.to_string().into_bytes())
}

fn refusal(status: u16, code: &str, message: &str) -> Box<Response<Vec<u8>>> {
    Box::new(error(status, code, message))
}

fn error(status: u16, code: &str, message: &str) -> Response<Vec<u8>> {
    json_answer(status, &json!({"error": {"code": code, "message": message}}))
}

fn build(status: u16, content_type: &str, body: Vec<u8>) -> Response<Vec<u8>> {
    let mut answer = Response::new(body);
    *answer.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    let length = http::HeaderValue::from(answer.body().len());
    answer.headers_mut().insert("content-length", length);
    if let Ok(value) = http::HeaderValue::from_str(content_type) {
        answer.headers_mut().insert("content-type", value);
    }
    answer
}

#[async_trait]
impl ServeHttp for AdminApi {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        // The header is there: from now on it takes as long as it takes.
        let given = session.take_connection_user_context();
        if let Some(Ok(mark)) = given.map(|given| given.downcast::<ConnectionMark>()) {
            mark.arrived();
        }
        if let Err(reject) = proxy::framed(session) {
            session.set_keepalive(None);
            return error(400, reject.reason.code(), &reject.message);
        }
        let answer = self.answer(session).await;
        // What nobody has read yet goes, so that the connection stays usable, unless nobody knows
        // where the next request begins.
        session.set_total_drain_timeout(Some(std::time::Duration::from_secs(1)));
        if session.drain_request_body().await.is_err() {
            session.set_keepalive(None);
        }
        answer
    }
}
