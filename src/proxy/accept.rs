//! The journey up to the first attempt: accept → authenticate → inspect → plan → admit.

use super::authenticate::Keys;
use super::exchange::{Call, Exchange};
use super::inspect::{self, Received};
use super::{Edge, admit, authenticate, held, models, passthrough, reply, window, worst};
use crate::config::snapshot::{Model, Snapshot};
use crate::keys::Caller;
use crate::plan::{Asked, Candidate};
use crate::reject::{Reason, Reject};
use crate::state::Gateway;
use crate::units::Dialect;
use crate::wire::route::{self, Endpoint, Route};
use bytes::Bytes;
use http::Version;
use pingora_core::Result;
use pingora_http::RequestHeader;
use pingora_proxy::Session;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Requests without a valid key that one address may send in a second.
const STRANGERS_PER_SECOND: isize = 1000;

impl Edge {
    /// The journey up to the first attempt. `Ok(true)`: the request has been answered already.
    pub(super) async fn accept(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
    ) -> Result<bool> {
        match self.admit(session, exchange).await {
            Ok(Step::Forward) => {
                self.gateway
                    .metrics
                    .overhead_seconds
                    .observe(exchange.started.elapsed().as_secs_f64());
                Ok(false)
            }
            Ok(Step::Answer(status, body)) => {
                reply::json(session, exchange, status, body).await?;
                Ok(true)
            }
            Err(reject) => {
                reply::refuse(session, exchange, reject).await?;
                Ok(true)
            }
        }
    }

    async fn admit(&self, session: &mut Session, exchange: &mut Exchange) -> Result<Step, Reject> {
        inspect::framing(session)?;
        let (method, path) = {
            let header = session.req_header();
            (header.method.clone(), path(header)?.to_owned())
        };
        let route = route::route(&method, &path);
        if route == Route::Healthz {
            exchange.is_probe = true;
            return Ok(models::health(&self.gateway));
        }
        if let Route::Call { endpoint, .. } = &route {
            exchange.endpoint = Some(*endpoint);
        }
        exchange.dialect = dialect(&exchange.snapshot, &route);
        if self.gateway.is_draining() {
            return Err(draining());
        }
        if self.gateway.memory.is_over() {
            return Err(out_of_memory());
        }
        let headers = &session.req_header().headers;
        let keys = Keys { snapshot: &exchange.snapshot, keyring: &self.gateway.keyring };
        let caller = authenticate::authenticate(headers, keys, chrono::Utc::now())
            .map_err(|reject| flood(&self.gateway, session, reject))?;
        exchange.caller = Some(caller.clone());
        match route {
            Route::Call { endpoint, model } => {
                self.take_call(session, exchange, &caller, endpoint, model).await?;
                Ok(Step::Forward)
            }
            Route::Passthrough { provider, path } => {
                self.take_passthrough(session, exchange, &caller, &provider, &path).await?;
                Ok(Step::Forward)
            }
            Route::Models => Ok(models::list(&exchange.snapshot, &caller, headers)),
            Route::Model(name) => models::one(&exchange.snapshot, &caller, headers, &name),
            other => Err(no_such_path(&other)),
        }
    }

    /// A call on one of the gateway's own paths.
    async fn take_call(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        caller: &Caller,
        endpoint: Endpoint,
        path_model: Option<String>,
    ) -> Result<(), Reject> {
        let snapshot = exchange.snapshot.clone();
        let received = self.receive(session, &snapshot, caller).await?;
        let asked = understand(session, endpoint, path_model.as_deref(), &received.body)?;
        let model = inspect::known_model(&snapshot, caller, &asked.model)?;
        exchange.model = Some(model.clone());
        let plan = crate::plan::order(
            &snapshot,
            caller,
            &model,
            Asked {
                dialect: endpoint.dialect(),
                affinity: || inspect::affinity(&asked.fields, &received.body),
                exceeds: |tokens| worst::may_exceed(&received.body, tokens),
            },
            &self.gateway.health,
            Instant::now(),
        );
        if plan.is_empty() {
            return Err(other_dialect(&model.name, endpoint));
        }
        let plan = window::fitting(plan, endpoint, &asked.fields, &received.body)?;
        let call = Called { endpoint, via: None, metered: true, model, asked, received, plan };
        self.enter(session, exchange, caller, call)
    }

    /// A call of a provider's own API.
    async fn take_passthrough(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        caller: &Caller,
        provider: &str,
        path: &str,
    ) -> Result<(), Reject> {
        let snapshot = exchange.snapshot.clone();
        let (provider, kind, via) =
            passthrough::understand(&snapshot, caller, session.req_header(), provider, path)?;
        let received = self.receive(session, &snapshot, caller).await?;
        let (endpoint, metered, asked, model) = match kind {
            passthrough::Kind::Metered(endpoint, in_path) => {
                exchange.endpoint = Some(endpoint);
                let asked = understand(session, endpoint, in_path.as_deref(), &received.body)?;
                let model = passthrough::model(&snapshot, caller, &provider, &asked.model)?;
                (endpoint, true, asked, model)
            }
            passthrough::Kind::Unmetered => {
                let model = passthrough::nothing(&provider);
                (Endpoint::Moderations, false, inspect::Asked::opaque(), model)
            }
        };
        let via = passthrough::Via { model: asked.model.clone(), ..via };
        exchange.model = Some(model.clone());
        let target = model.targets.first().cloned().ok_or_else(missing)?;
        let plan = vec![Candidate { model: model.clone(), target }];
        let plan = window::fitting(plan, endpoint, &asked.fields, &received.body)?;
        let call = Called { endpoint, via: Some(via), metered, model, asked, received, plan };
        self.enter(session, exchange, caller, call)
    }

    async fn receive(
        &self,
        session: &mut Session,
        snapshot: &Snapshot,
        caller: &Caller,
    ) -> Result<Received, Reject> {
        let downstream = &mut session.downstream_session;
        inspect::receive(downstream, &snapshot.server, &self.gateway, caller).await
    }

    /// Admits the request: from here on it may be attempted.
    fn enter(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        caller: &Caller,
        called: Called,
    ) -> Result<(), Reject> {
        let Called { endpoint, via, metered, model, asked, received, plan } = called;
        let tokens = match metered {
            true => admit::estimate(&self.gateway, endpoint, &model, &asked.fields, &received.body),
            // A file, perhaps: its bytes are no tokens.
            false => 0,
        };
        let permit = admit::request(&self.gateway, &exchange.snapshot, caller, &model, tokens)?;
        let attempts = exchange.snapshot.attempts;
        if session.req_header().version < Version::HTTP_11 {
            // It knows no chunks: the end of the connection is the end of its answer.
            session.downstream_session.set_keepalive(None);
        }
        let control = held::wrap(
            &mut session.downstream_session,
            received.body.clone(),
            self.gateway.running.cuts(),
        );
        exchange.call = Some(Call {
            endpoint,
            via,
            metered,
            model,
            stream: asked.stream,
            body: received.body,
            fields: asked.fields,
            marks: OnceLock::new(),
            share: received.share,
            permit: Some(permit),
            tokens,
            limited: None,
            over_budget: None,
            forbidden: false,
            waited: Duration::ZERO,
            control,
            plan,
            next: 0,
            passed_over: Vec::new(),
            done: Vec::new(),
            current: None,
            deadline: Instant::now() + attempts.deadline,
            same_target: attempts.same_target,
            repeats: 0,
            closing: b"",
            stale: 0,
        });
        Ok(())
    }
}

/// What the stages before admission have found out.
struct Called {
    endpoint: Endpoint,
    via: Option<passthrough::Via>,
    metered: bool,
    model: Arc<Model>,
    asked: inspect::Asked,
    received: Received,
    plan: Vec<Candidate>,
}

fn understand(
    session: &Session,
    endpoint: Endpoint,
    path_model: Option<&str>,
    body: &Bytes,
) -> Result<inspect::Asked, Reject> {
    let content_type =
        session.get_header(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    inspect::understand(endpoint, path_model, content_type.unwrap_or(""), body)
}

fn missing() -> Reject {
    Reject::new(Reason::InternalError, "a stage is missing its input; please report this")
}

/// Where a request goes from admission.
pub enum Step {
    Forward,
    Answer(u16, Vec<u8>),
}

/// A request without a valid key. Many of them from one address are cut short.
fn flood(gateway: &Gateway, session: &Session, reject: Reject) -> Reject {
    let address = session.client_addr().and_then(|address| address.as_inet()).map(|a| a.ip());
    // A count-min sketch can only count too much: it is asked about strangers alone, so that a
    // collision can't refuse anybody who has a key.
    if gateway.strangers.observe(&address, 1) <= STRANGERS_PER_SECOND {
        return reject;
    }
    gateway.metrics.limited.with_label_values(&["address", "rps"]).inc();
    let message = "too many requests without a valid key from this address.";
    Reject::new(Reason::RateLimitExceeded, message)
        .retry_after(Duration::from_secs(1))
        .header("connection", "close")
}

/// The path without its query. An absolute-form target is not for a gateway to resolve.
fn path(header: &RequestHeader) -> Result<&str, Reject> {
    let raw = std::str::from_utf8(header.raw_path()).ok().filter(|path| path.starts_with('/'));
    let path = raw.ok_or_else(|| {
        Reject::new(
            Reason::InvalidRequest,
            "the request target must be a path such as /v1/chat/completions.",
        )
    })?;
    Ok(path.split(['?', '#']).next().unwrap_or(path))
}

/// How errors are written. To a stranger, too: the shape is all that it tells of a provider.
fn dialect(snapshot: &Snapshot, route: &Route) -> Dialect {
    match route {
        Route::Call { endpoint, .. } => endpoint.dialect(),
        Route::Passthrough { provider, .. } => {
            snapshot.providers.get(provider).map_or(Dialect::OpenAi, |provider| provider.dialect)
        }
        _ => Dialect::OpenAi,
    }
}

/// The refusal while the process ends.
pub fn draining() -> Reject {
    Reject::new(Reason::Draining, "this gateway is shutting down. Try again: another takes over.")
        .retry_after(Duration::from_secs(1))
        .header("connection", "close")
}

fn out_of_memory() -> Reject {
    let message = "the gateway has as much memory in use as it may (server.max_memory). Requests that run go on. Try again shortly.";
    Reject::new(Reason::Overloaded, message).retry_after(Duration::from_secs(2))
}

fn no_such_path(route: &Route) -> Reject {
    match route {
        Route::MethodNotAllowed { allow } => {
            Reject::new(Reason::MethodNotAllowed, format!("this path takes {allow} only."))
                .header("allow", *allow)
        }
        Route::BadPath => {
            Reject::new(Reason::InvalidRequest, "the path has characters that no path here has.")
        }
        _ => Reject::new(
            Reason::UnknownPath,
            "there is nothing at this path. The gateway serves the providers' own APIs, such as POST /v1/chat/completions, /v1/responses, /v1/messages and GET /v1/models.",
        ),
    }
}

fn other_dialect(model: &str, endpoint: Endpoint) -> Reject {
    Reject::new(
        Reason::InvalidRequest,
        format!(
            "no target of the model `{model}` speaks the {} API. Call it on its own provider's endpoint.",
            endpoint.dialect()
        ),
    )
    .param("model")
}
