//! `GET /v1/models`, and the health of the data listener.

use super::accept::Step;
use crate::config::snapshot::Snapshot;
use crate::keys::Caller;
use crate::reject::Reject;
use crate::state::Gateway;
use http::HeaderMap;
use serde_json::{Value, json};

/// 200 while serving, 503 while draining.
pub fn health(gateway: &Gateway) -> Step {
    if gateway.is_draining() {
        Step::Answer(503, br#"{"status":"draining"}"#.to_vec())
    } else {
        Step::Answer(200, br#"{"status":"ok"}"#.to_vec())
    }
}

/// The models that the caller may use, in the shape that its SDK reads.
pub fn list(snapshot: &Snapshot, caller: &Caller, headers: &HeaderMap) -> Step {
    let mut names: Vec<&str> = snapshot
        .models
        .keys()
        .map(String::as_str)
        .filter(|name| caller.models.allows(name))
        .collect();
    names.sort_unstable();
    let anthropic = headers.contains_key("anthropic-version");
    let data: Vec<Value> = names.iter().map(|name| card(name, anthropic)).collect();
    let body = if anthropic {
        json!({"data": data, "has_more": false, "first_id": names.first(), "last_id": names.last()})
    } else {
        json!({"object": "list", "data": data})
    };
    Step::Answer(200, body.to_string().into_bytes())
}

/// One model, if the caller may use it.
///
/// # Errors
/// As for a request to that model.
pub fn one(
    snapshot: &Snapshot,
    caller: &Caller,
    headers: &HeaderMap,
    name: &str,
) -> Result<Step, Reject> {
    let model = super::inspect::known_model(snapshot, caller, name)?;
    let body = card(&model.name, headers.contains_key("anthropic-version"));
    Ok(Step::Answer(200, body.to_string().into_bytes()))
}

fn card(name: &str, anthropic: bool) -> Value {
    if anthropic {
        json!({"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"})
    } else {
        json!({"id": name, "object": "model", "created": 0, "owned_by": "tollbar"})
    }
}
