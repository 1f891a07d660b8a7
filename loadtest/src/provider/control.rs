//! The endpoints for users in another process.
//!
//! - `POST /__control` — see [`Order`]
//! - `GET /__requests`, `DELETE /__requests`
//! - `GET /__stats`

use std::collections::HashSet;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::http::request::Parts;
use hyper::{Method, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::Paced;
use super::record::Recorded;
use super::script::Script;
use super::server::{Meter, Shared};

/// Body of `POST /__control`. Every member is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Order {
    /// Model id the scripts are for; `*` when absent.
    model: Option<String>,
    /// Scripts to queue, one for each coming request.
    scripts: Vec<Script>,
    /// Script for all requests without a queued one.
    default: Option<Script>,
    /// Keys accepted from now on; an empty list accepts everything.
    keys: Option<Vec<String>>,
    /// Forget all scripts and defaults first.
    reset: bool,
    /// Close all idle keep-alive connections.
    close_idle: bool,
}

/// True for the paths of this module.
pub(crate) fn is_ours(path: &str) -> bool {
    matches!(path, "/__control" | "/__requests" | "/__stats")
}

pub(crate) fn answer(shared: &Shared, head: &Parts, body: &[u8]) -> io::Result<Response<Paced>> {
    let (status, json) = match (&head.method, head.uri.path()) {
        (&Method::POST, "/__control") => match serde_json::from_slice::<Order>(body) {
            Ok(order) => (200, obey(shared, order)),
            Err(error) => (400, json!({ "error": error.to_string() })),
        },
        (&Method::GET, "/__requests") => (200, requests(shared)),
        (&Method::DELETE, "/__requests") => {
            shared.log.clear();
            (200, json!({ "ok": true }))
        }
        (&Method::GET, "/__stats") => (200, stats(shared)),
        _ => (405, json!({ "error": "method not allowed" })),
    };
    let response = Response::builder().status(status).header("content-type", "application/json");
    let body = Paced::plain(Bytes::from(json.to_string()));
    response.body(body).map_err(io::Error::other)
}

fn obey(shared: &Shared, order: Order) -> Value {
    let model = order.model.unwrap_or_else(|| "*".to_owned());
    let mut scripts = shared.scripts.lock();
    if order.reset {
        *scripts = Default::default();
    }
    if let Some(default) = order.default {
        scripts.defaults.insert(model.clone(), default);
    }
    let queue = scripts.queues.entry(model).or_default();
    queue.extend(order.scripts);
    let queued = queue.len();
    drop(scripts);
    if let Some(keys) = order.keys {
        let keys: HashSet<String> = keys.into_iter().collect();
        *shared.keys.write() = Some(keys).filter(|keys| !keys.is_empty());
    }
    let closing = if order.close_idle { shared.close_idle().len() } else { 0 };
    json!({ "ok": true, "queued": queued, "closing": closing })
}

fn stats(shared: &Shared) -> Value {
    let meter = |meter: &Meter| {
        json!({
            "requests": meter.requests.load(Relaxed),
            "input_tokens": meter.input_tokens.load(Relaxed),
            "output_tokens": meter.output_tokens.load(Relaxed),
        })
    };
    let by_model = shared.billed_by_model.lock();
    let by_model = by_model.iter().map(|(model, billed)| (model.clone(), meter(billed)));
    json!({
        "connections": shared.accepted.load(Relaxed),
        "open_connections": shared.open.lock().len(),
        "in_flight": shared.in_flight.load(Relaxed),
        "peak_in_flight": shared.peak_in_flight.load(Relaxed),
        "requests": shared.log.count(),
        "billed": meter(&shared.billed),
        "billed_by_model": by_model.collect::<serde_json::Map<_, _>>(),
    })
}

fn requests(shared: &Shared) -> Value {
    shared.log.snapshot().iter().map(request).collect()
}

/// Times are milliseconds after the request's head was read.
fn request(record: &Recorded) -> Value {
    let after = |at: Instant| at.saturating_duration_since(record.at).as_secs_f64() * 1000.0;
    let chunk_times: Vec<f64> = record.chunk_times.iter().copied().map(after).collect();
    json!({
        "seq": record.seq,
        "method": record.method,
        "path": record.path_and_query,
        "version": format!("{:?}", record.version),
        "headers": record.headers,
        "body": String::from_utf8_lossy(&record.body),
        "body_base64": STANDARD.encode(&record.body),
        "connection": record.connection_id,
        "status": record.status,
        "closed": record.peer_closed_at.is_some(),
        "peer_closed_ms": record.peer_closed_at.map(after),
        "cut_ms": record.cut_at.map(after),
        "finished_ms": record.finished_at.map(after),
        "chunks_sent": record.chunks_sent,
        "chunk_ms": chunk_times,
        "bytes_sent": record.bytes_sent,
    })
}
