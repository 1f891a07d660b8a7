//! LiteLLM's key endpoints, by its own field names, over the keys of [`super::keys`].
//!
//! Paths, fields and answers are those of its documented "virtual keys" API. A field that asks for
//! something that nothing here would do is refused: a control is not to be dropped in silence.

use super::keys::{self, Refusal, refuse};
use super::reports::pairs;
use super::{error, json_answer, other_method};
use crate::keyring::StoredKey;
use crate::keys::{Caller, Profile};
use crate::scope::{Budget, Per, ScopeKind};
use crate::secret::{Secret, sha256};
use crate::state::Gateway;
use crate::units::NanoUsd;
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use http::{Method, Response};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Characters of a key that is brought along at least. LiteLLM's own have 25: `sk-` and 128 bits.
const SHORTEST_KEY: usize = 24;

/// Serves `/key/…`.
pub(super) async fn serve(
    gateway: &Arc<Gateway>,
    method: &Method,
    path: &str,
    query: &str,
    body: Map<String, Value>,
) -> Response<Vec<u8>> {
    let (gateway, method) = (gateway.clone(), method.clone());
    let (path, query) = (path.to_owned(), query.to_owned());
    let served = tokio::task::spawn_blocking(move || {
        match (&method, path.as_str()) {
            (&Method::POST, "/key/generate") => generate(&gateway, body),
            (&Method::GET, "/key/info") => info(&gateway, &query),
            (&Method::POST, "/key/update") => update(&gateway, body),
            (&Method::POST, "/key/delete") => delete(&gateway, &body),
            (&Method::POST, "/key/block") => block(&gateway, &body, true),
            (&Method::POST, "/key/unblock") => block(&gateway, &body, false),
            (
                _,
                "/key/generate" | "/key/info" | "/key/update" | "/key/delete" | "/key/block"
                | "/key/unblock",
            ) => return other_method(),
            _ => return error(404, "unknown_path", "there is nothing at this path"),
        }
        .map_or_else(|refusal| *refusal, |answer| json_answer(200, &answer))
    });
    served.await.unwrap_or_else(|_| error(500, "internal_error", "the change may not be done"))
}

fn generate(gateway: &Gateway, mut body: Map<String, Value>) -> Result<Value, Refusal> {
    let plain = match take(&mut body, "key") {
        None => None,
        Some(Value::String(key)) if key.len() >= SHORTEST_KEY => Some(Secret::new(key)),
        Some(_) => {
            let message = format!(
                "`key` is a string of at least {SHORTEST_KEY} characters. One that you know the hash of only: POST /keys with `hash`"
            );
            return Err(bad(&message));
        }
    };
    let mut made = members(body, None, Utc::now())?;
    made.entry("models").or_insert_with(|| json!(["*"]));
    if let Some(plain) = &plain {
        let hash = hex::encode(sha256(plain.expose().as_bytes()));
        made.insert("hash".into(), format!("sha256:{hash}").into());
    }
    let made = keys::create(gateway, made)?;
    let mut answer = shown(gateway, &Found::from(made.key));
    if let Some(plain) = plain.or(made.plain) {
        answer.insert("key".into(), plain.expose().into());
    }
    Ok(answer.into())
}

fn info(gateway: &Gateway, query: &str) -> Result<Value, Refusal> {
    let key = pairs(query).find(|(name, _)| *name == "key").map(|(_, value)| value);
    let key = key.ok_or_else(|| bad("say which key: `?key=`"))?;
    let found = find(gateway, &key)?;
    Ok(json!({"key": safe(&key, &found), "info": shown(gateway, &found)}))
}

fn update(gateway: &Gateway, mut body: Map<String, Value>) -> Result<Value, Refusal> {
    let (key, found) = named(gateway, &mut body)?;
    changeable(gateway, &found)?;
    let changed = keys::change_by(gateway, &found.id, "update", |now| {
        let now = Found::from(now.clone());
        let mut change = members(body.clone(), Some(&now), Utc::now())?;
        if change.remove("id").is_some_and(|id| id.as_str() != Some(&*now.id)) {
            return Err(bad("`key_alias` is the key's id here, and can't be changed"));
        }
        Ok(change)
    })?;
    let changed = Found::from(changed);
    let mut answer = shown(gateway, &changed);
    answer.insert("key".into(), safe(&key, &changed));
    Ok(answer.into())
}

fn delete(gateway: &Gateway, body: &Map<String, Value>) -> Result<Value, Refusal> {
    let list = |name: &str| body.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let given: Vec<Value> = list("keys").into_iter().chain(list("key_aliases")).collect();
    let words: Option<Vec<&str>> = given.iter().map(Value::as_str).collect();
    let words = words.filter(|words| !words.is_empty());
    let words =
        words.ok_or_else(|| bad("say which: `keys` or `key_aliases`, a list of strings"))?;
    // All of them are known, or none is deleted.
    let found = words.iter().map(|word| find(gateway, word)).collect::<Result<Vec<_>, _>>()?;
    for found in &found {
        changeable(gateway, found)?;
    }
    for found in &found {
        keys::revoke(gateway, &found.id)?;
    }
    let deleted: Vec<Value> = words.iter().zip(&found).map(|(word, key)| safe(word, key)).collect();
    Ok(json!({ "deleted_keys": deleted }))
}

fn block(gateway: &Gateway, body: &Map<String, Value>, blocked: bool) -> Result<Value, Refusal> {
    let (_, found) = named(gateway, &mut body.clone())?;
    changeable(gateway, &found)?;
    let only = Map::from_iter([("blocked".to_owned(), Value::Bool(blocked))]);
    let changed = keys::change(gateway, &found.id, only)?;
    Ok(shown(gateway, &Found::from(changed)).into())
}

/// A key, of the file or not.
struct Found {
    id: Arc<str>,
    hash: [u8; 32],
    profile: Arc<Profile>,
    expires: Option<DateTime<Utc>>,
    created: Option<DateTime<Utc>>,
    blocked: bool,
    /// It stands in the file, where alone it can be changed.
    in_file: bool,
}

impl From<StoredKey> for Found {
    fn from(key: StoredKey) -> Found {
        Found {
            id: key.id,
            hash: key.hash,
            profile: key.profile,
            expires: key.expires,
            created: Some(key.created),
            blocked: key.blocked.is_some() || key.revoked.is_some(),
            in_file: false,
        }
    }
}

impl From<&Caller> for Found {
    fn from(key: &Caller) -> Found {
        Found {
            id: key.id.clone(),
            hash: key.hash,
            profile: key.profile.clone(),
            expires: key.expires,
            created: None,
            blocked: false,
            in_file: true,
        }
    }
}

/// Another key may have the id of one that stands in the file, and is not the one that was meant.
fn changeable(gateway: &Gateway, found: &Found) -> Result<(), Refusal> {
    if found.in_file { Err(keys::in_file()) } else { keys::not_in_file(gateway, &found.id) }
}

/// A key by its plain text, its hash (LiteLLM's `token`) or its alias.
fn find(gateway: &Gateway, word: &str) -> Result<Found, Refusal> {
    let (snapshot, keyring) = (gateway.live.peek(), &gateway.keyring);
    let mut hashes = vec![sha256(word.as_bytes())];
    let mut digits = [0; 32];
    if hex::decode_to_slice(word, &mut digits).is_ok() {
        hashes.push(digits);
    }
    for hash in &hashes {
        if let Some(key) = snapshot.keys.by_hash(hash) {
            return Ok(Found::from(&**key));
        }
        if let Some(key) = keyring.get_by_hash(hash).map_err(|error| keys::unavailable(&error))? {
            return Ok(key.into());
        }
    }
    if let Some(key) = snapshot.keys.iter().find(|key| &*key.id == word) {
        return Ok(Found::from(&**key));
    }
    let key = keyring.get(word).map_err(|error| keys::unavailable(&error))?;
    key.map(Found::from).ok_or_else(keys::unknown)
}

fn named(gateway: &Gateway, body: &mut Map<String, Value>) -> Result<(String, Found), Refusal> {
    match body.remove("key") {
        Some(Value::String(key)) => {
            let found = find(gateway, &key)?;
            Ok((key, found))
        }
        _ => Err(bad("say which key: `key`, its text, its `token` or its alias")),
    }
}

/// What the caller called the key, unless that is the key itself.
fn safe(word: &str, found: &Found) -> Value {
    // Whatever else it was found by is its text, or was.
    if word == &*found.id { word.into() } else { hex::encode(found.hash).into() }
}

/// LiteLLM's fields as members of a key here. Of a key that is changed only those that are there.
fn members(
    mut body: Map<String, Value>,
    old: Option<&Found>,
    now: DateTime<Utc>,
) -> Result<Map<String, Value>, Refusal> {
    let mut out = Map::new();
    let budget = budget(&mut body, old)?;
    let limits = limits(&mut body);
    for (name, value) in body {
        match name.as_str() {
            "key_alias" if !value.is_null() => {
                out.insert("id".into(), value);
            }
            "team_id" | "user_id" => {
                out.insert(name.trim_end_matches("_id").into(), value);
            }
            "models" => {
                // LiteLLM: no list, or an empty one, is every model.
                let all = match &value {
                    Value::Null => old.is_none(),
                    Value::Array(models) => {
                        models.is_empty() || value == json!(["all-proxy-models"])
                    }
                    _ => false,
                };
                if !all && !value.is_array() {
                    return Err(bad("`models` is a list of names; [] is every model"));
                }
                out.insert("models".into(), if all { json!(["*"]) } else { value });
            }
            "blocked" if value.is_null() => {}
            "metadata" | "blocked" => {
                out.insert(name, value);
            }
            "duration" => {
                let expires = match &value {
                    Value::Null => None,
                    Value::String(text) => Some(lifetime(text, now)?),
                    _ => return Err(bad("`duration` is one like \"30d\"; null is for ever")),
                };
                out.insert("expires".into(), json!(expires.map(|at| at.to_rfc3339())));
            }
            // As LiteLLM's way to begin anew. A new key has spent nothing anyway.
            "spend" if old.is_some() && !value.is_null() => {
                return Err(bad(
                    "`spend`: what was spent stays in the books. Raise `max_budget`, or make another key",
                ));
            }
            _ if is_empty(&value) => {}
            other => {
                let message = format!(
                    "`{other}`: nothing here acts on it. POST /keys has what a key can have"
                );
                return Err(bad(&message));
            }
        }
    }
    out.extend(budget.map(|budgets| ("budgets".to_owned(), budgets)));
    out.extend(limits.map(|limits| ("limits".to_owned(), limits)));
    Ok(out)
}

/// `max_budget` and `budget_duration`.
fn budget(body: &mut Map<String, Value>, old: Option<&Found>) -> Result<Option<Value>, Refusal> {
    let (cap, per) = (body.remove("max_budget"), body.remove("budget_duration"));
    if cap.is_none() && per.is_none() {
        return Ok(None);
    }
    let budgets = old.map_or(&[][..], |old| &old.profile.scope.budgets);
    if budgets.len() > 1 {
        return Err(bad("this key has several budgets: change them with PATCH /keys/{id}"));
    }
    let before = budgets.first();
    let cap = match cap {
        Some(Value::Null) => return Ok(Some(Value::Null)),
        Some(Value::Number(usd)) => Value::String(down_to_nano(&usd.to_string())),
        Some(_) => return Err(bad("`max_budget` is a number of US dollars")),
        None => match before {
            Some(budget) => budget.cap.to_string().into(),
            None => return Err(bad("`budget_duration` goes with `max_budget`")),
        },
    };
    let per = match per {
        None => before.map_or(Per::Total, |budget| budget.per),
        Some(Value::Null) => Per::Total,
        Some(text) => text.as_str().and_then(window).ok_or_else(|| {
            bad("`budget_duration`: budgets renew with the calendar here: 1m, 1h, 1d (24h), 7d, or 1mo (30d)")
        })?,
    };
    Ok(Some(json!([{"usd": cap, "per": per.as_str()}])))
}

/// LiteLLM's limits; those that aren't named stay, and `null` takes one away.
fn limits(body: &mut Map<String, Value>) -> Option<Value> {
    let fields =
        [("rpm_limit", "rpm"), ("tpm_limit", "tpm"), ("max_parallel_requests", "parallel")];
    let named = fields.iter().filter_map(|(theirs, ours)| {
        let value = body.remove(*theirs)?;
        Some(((*ours).to_owned(), value))
    });
    let limits = Map::from_iter(named);
    (!limits.is_empty()).then(|| limits.into())
}

/// A decimal number without what is less than a nano-dollar of it: a third of something is a float
/// with many digits.
fn down_to_nano(number: &str) -> String {
    match number.split_once('.') {
        Some((whole, part)) if part.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{whole}.{}", part.get(..9).unwrap_or(part))
        }
        _ => number.to_owned(),
    }
}

/// The calendar window that LiteLLM's duration stands for.
fn window(duration: &str) -> Option<Per> {
    Some(match duration {
        "1m" | "60s" => Per::Minute,
        "1h" | "60m" => Per::Hour,
        "1d" | "24h" | "daily" => Per::Day,
        "7d" | "weekly" => Per::Week,
        "1mo" | "30d" | "monthly" => Per::Month,
        _ => return None,
    })
}

/// When a key that is made now for `30s`, `5m`, `2h`, `30d`, `2w` or `1mo` (30 days) ends.
fn lifetime(text: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>, Refusal> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        "mo" => 2_592_000,
        _ => 0,
    };
    let after = number.parse::<i64>().ok().and_then(|n| n.checked_mul(seconds));
    let after = after.filter(|seconds| *seconds > 0).and_then(TimeDelta::try_seconds);
    // As exact as it is kept.
    let at = after.and_then(|after| now.trunc_subsecs(6).checked_add_signed(after));
    at.ok_or_else(|| bad("`duration` is one like 30s, 30m, 30h, 30d, 2w or 1mo"))
}

/// The key as LiteLLM shows it.
fn shown(gateway: &Gateway, key: &Found) -> Map<String, Value> {
    let Profile { team, user, models, scope, metadata, .. } = &*key.profile;
    let budget = scope.budgets.first();
    let accounts = gateway.budgets.view(Utc::now());
    let account = budget.and_then(|budget: &Budget| {
        let same = |a: &&crate::budget::AccountView| {
            a.kind == ScopeKind::Key && *a.id == *key.id && a.per == budget.per
        };
        accounts.iter().find(same)
    });
    let token = hex::encode(key.hash);
    let metadata = serde_json::from_str(metadata).unwrap_or_else(|_| json!({}));
    let shown = json!({
        "token": token,
        "token_id": token,
        "key_alias": &*key.id,
        "key_name": &*key.id,
        "models": models.patterns().collect::<Vec<_>>(),
        "spend": dollars(account.map_or(NanoUsd(0), |account| account.spent)),
        "max_budget": budget.map(|budget| dollars(budget.cap)),
        "budget_duration": budget.and_then(|budget| duration(budget.per)),
        "budget_reset_at": account.and_then(|a| a.window_end).map(|end| end.to_rfc3339()),
        "team_id": team,
        "user_id": user,
        "rpm_limit": scope.limits.rpm,
        "tpm_limit": scope.limits.tpm,
        "max_parallel_requests": scope.limits.parallel,
        "metadata": metadata,
        "expires": key.expires.map(|at| at.to_rfc3339()),
        "created_at": key.created.map(|at| at.to_rfc3339()),
        "blocked": key.blocked,
    });
    match shown {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn duration(per: Per) -> Option<&'static str> {
    Some(match per {
        Per::Minute => "1m",
        Per::Hour => "1h",
        Per::Day => "1d",
        Per::Week => "7d",
        Per::Month => "1mo",
        Per::Total => return None,
    })
}

/// A JSON number with all nine digits.
fn dollars(amount: NanoUsd) -> Value {
    serde_json::from_str(&amount.to_string()).unwrap_or(Value::Null)
}

fn take(body: &mut Map<String, Value>, name: &str) -> Option<Value> {
    body.remove(name).filter(|value| !value.is_null())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        // Says that there is none of it.
        Value::Bool(yes) => !yes,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(_) => false,
    }
}

fn bad(message: &str) -> Refusal {
    refuse(400, "invalid_request", message)
}
