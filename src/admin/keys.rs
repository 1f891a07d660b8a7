//! Keys as a service: `/keys` and what is below it.

use super::reports::{Shown, data, decode, pairs};
use super::{error, json_answer, other_method};
use crate::budget::AccountView;
use crate::config::{self, Problem};
use crate::keygen;
use crate::keyring::{Change, ChangeError, StoredKey};
use crate::keys::{Caller, Profile, Standing};
use crate::scope::ScopeKind;
use crate::secret::Secret;
use crate::state::Gateway;
use chrono::{DateTime, SubsecRound, Utc};
use http::{Method, Response};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Who the audit says it was: there is one admin token.
pub(super) const ACTOR: &str = "admin";

/// Keys that one answer has at most.
const MOST_KEYS: u64 = 1_000;

/// The longest grace that a rotation may give to the old key.
const LONGEST_GRACE: chrono::TimeDelta = chrono::TimeDelta::days(30);

/// An answer that ends a request early.
pub(super) type Refusal = Box<Response<Vec<u8>>>;

/// Serves `/keys`, `/keys/{id}` and `/keys/{id}/rotate`.
pub(super) async fn serve(
    gateway: &Arc<Gateway>,
    method: &Method,
    path: &str,
    query: &str,
    body: Map<String, Value>,
) -> Response<Vec<u8>> {
    let (gateway, method) = (gateway.clone(), method.clone());
    let (path, query) = (path.to_owned(), query.to_owned());
    // Everything here reads or writes the database.
    let served = tokio::task::spawn_blocking(move || {
        let parts: Vec<String> = path.trim_matches('/').split('/').skip(1).map(decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        match (&method, parts.as_slice()) {
            (&Method::GET, []) => list(&gateway, &query),
            (&Method::POST, []) => create(&gateway, body).map(|made| made.shown(201)),
            (&Method::GET, [id]) => one(&gateway, id),
            (&Method::PATCH, [id]) => change(&gateway, id, body).map(|key| shown(&gateway, &key)),
            (&Method::DELETE, [id]) => revoke(&gateway, id).map(|key| shown(&gateway, &key)),
            (&Method::POST, [id, "rotate"]) => {
                rotate(&gateway, id, &body).map(|made| made.shown(200))
            }
            (_, [] | [_] | [_, "rotate"]) => Ok(other_method()),
            _ => Ok(error(404, "unknown_path", "there is nothing at this path")),
        }
        .unwrap_or_else(|refusal| *refusal)
    });
    served.await.unwrap_or_else(|_| error(500, "internal_error", "the change may not be done"))
}

/// A key that was just made, and its view.
pub(super) struct Made {
    /// The key string, shown this once; `None` for one that was imported by its hash.
    pub plain: Option<Secret>,
    pub key: StoredKey,
    view: Shown,
}

impl Made {
    fn shown(mut self, status: u16) -> Response<Vec<u8>> {
        if let Some(plain) = &self.plain {
            self.view.add("key", &plain.expose());
        }
        answer(status, &self.view)
    }
}

/// `POST /keys`: a file's key in JSON, without its hash. `id` may be left out.
pub(super) fn create(gateway: &Gateway, mut body: Map<String, Value>) -> Result<Made, Refusal> {
    let id = match body.remove("id") {
        None | Some(Value::Null) => format!("key-{}", hex::encode(rand::random::<[u8; 6]>())),
        Some(Value::String(id)) if is_id(&id) => id,
        Some(_) => return Err(bad_id()),
    };
    let made = (!body.contains_key("hash")).then(|| keygen::generate(&mut rand::rng()));
    if let Some(made) = &made {
        body.insert("hash".into(), made.config_hash().into());
    }
    let (caller, warnings) = resolve(gateway, &id, body)?;
    if gateway.live.peek().keys.iter().any(|key| key.id == caller.id || key.hash == caller.hash) {
        return Err(taken());
    }
    let key = StoredKey {
        id: caller.id.clone(),
        hash: caller.hash,
        expires: caller.expires,
        profile: caller.profile,
        created: now(),
        blocked: None,
        revoked: None,
        previous: None,
    };
    let detail = json!({"fingerprint": fingerprint(&key.hash), "key": written(&key)}).to_string();
    gateway.keyring.create(key.clone(), ACTOR, detail).map_err(failed)?;
    let mut view = view(&gateway.budgets.view(Utc::now()), &gateway.live.peek(), &key);
    if !warnings.is_empty() {
        view.add("warnings", &warnings.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
    Ok(Made { plain: made.map(|made| made.plain), key, view })
}

/// `GET /keys?limit&after`: the file's keys and the others, by id.
fn list(gateway: &Gateway, query: &str) -> Result<Response<Vec<u8>>, Refusal> {
    let (mut after, mut limit) = (String::new(), 100);
    for (name, value) in pairs(query) {
        match name {
            "after" => after = value,
            "limit" => {
                limit = value.parse().ok().filter(|n| (1..=MOST_KEYS).contains(n)).ok_or_else(
                    || refuse(400, "invalid_request", "`limit` is a number from 1 to 1000"),
                )?;
            }
            _ => return Err(refuse(400, "invalid_request", "`limit` and `after` are understood")),
        }
    }
    let (snapshot, accounts) = (gateway.live.peek(), gateway.budgets.view(Utc::now()));
    let stored = gateway.keyring.list(&after, limit).map_err(|error| failed(error.into()))?;
    let mut rows: Vec<(&str, Shown)> =
        stored.iter().map(|key| (&*key.id, view(&accounts, &snapshot, key))).collect();
    let file = snapshot.keys.iter().filter(|key| *key.id > *after);
    rows.extend(file.map(|key| (&*key.id, file_view(&accounts, key))));
    rows.sort_by(|a, b| a.0.cmp(b.0));
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(data(rows.into_iter().map(|(_, row)| row).collect::<Vec<_>>().as_slice()))
}

fn one(gateway: &Gateway, id: &str) -> Result<Response<Vec<u8>>, Refusal> {
    let snapshot = gateway.live.peek();
    if let Some(key) = snapshot.keys.iter().find(|key| &*key.id == id) {
        return Ok(answer(200, &file_view(&gateway.budgets.view(Utc::now()), key)));
    }
    let key = gateway.keyring.get(id).map_err(|error| failed(error.into()))?;
    Ok(shown(gateway, &key.ok_or_else(unknown)?))
}

/// `PATCH /keys/{id}`: the members that are there replace the key's own; `null` takes one away.
/// `blocked` blocks and unblocks.
pub(super) fn change(
    gateway: &Gateway,
    id: &str,
    mut body: Map<String, Value>,
) -> Result<StoredKey, Refusal> {
    not_in_file(gateway, id)?;
    if let Some(fixed) = ["id", "hash", "key"].iter().find(|name| body.contains_key(**name)) {
        let message = format!("`{fixed}` can't be changed. POST /keys/{id}/rotate gives a new key");
        return Err(refuse(400, "invalid_request", &message));
    }
    let blocked = match body.remove("blocked") {
        None => None,
        Some(Value::Bool(blocked)) => Some(blocked),
        Some(_) => return Err(refuse(400, "invalid_request", "`blocked` is true or false")),
    };
    let action = match blocked {
        Some(true) if body.is_empty() => "block",
        Some(false) if body.is_empty() => "unblock",
        _ => "update",
    };
    edit(gateway, id, action, |key| {
        let before = written(key);
        if !body.is_empty() {
            let mut after = before.clone();
            after.extend(std::mem::take(&mut body));
            after.insert("hash".into(), format!("sha256:{}", hex::encode(key.hash)).into());
            let (caller, _) = resolve(gateway, id, after)?;
            (key.profile, key.expires) = (caller.profile, caller.expires);
        }
        if let Some(blocked) = blocked {
            key.blocked = blocked.then(|| key.blocked.unwrap_or_else(now));
        }
        let after = written(key);
        Ok(json!({"before": before, "after": after, "blocked": key.blocked.is_some()}))
    })
}

/// `DELETE /keys/{id}`: never accepted again.
pub(super) fn revoke(gateway: &Gateway, id: &str) -> Result<StoredKey, Refusal> {
    not_in_file(gateway, id)?;
    if let Some(key) = gateway.keyring.get(id).map_err(|error| failed(error.into()))?
        && key.revoked.is_some()
    {
        return Ok(key);
    }
    edit(gateway, id, "revoke", |key| {
        key.revoked = Some(now());
        Ok(json!({"fingerprint": fingerprint(&key.hash)}))
    })
}

/// `POST /keys/{id}/rotate`: a new key string for the same key. The old one ends at once, or after
/// `grace`.
fn rotate(gateway: &Gateway, id: &str, body: &Map<String, Value>) -> Result<Made, Refusal> {
    not_in_file(gateway, id)?;
    let mut grace = chrono::TimeDelta::zero();
    for (name, value) in body {
        let given = value.as_str().and_then(config::duration);
        match given.and_then(|given| chrono::TimeDelta::from_std(given).ok()) {
            Some(given) if name == "grace" && given <= LONGEST_GRACE => grace = given,
            _ => {
                let message = "`grace` is understood: a duration such as \"10m\", up to \"30d\"";
                return Err(refuse(400, "invalid_request", message));
            }
        }
    }
    let made = keygen::generate(&mut rand::rng());
    let key = edit(gateway, id, "rotate", |key| {
        let old = key.hash;
        // Without grace the old hash is kept, too: it is answered with what happened to it.
        let until = now() + grace;
        (key.hash, key.previous) = (made.hash, Some((old, until)));
        Ok(json!({
            "fingerprint": fingerprint(&made.hash),
            "previous": fingerprint(&old),
            "previous_until": until.to_rfc3339(),
        }))
    })?;
    let view = view(&gateway.budgets.view(Utc::now()), &gateway.live.peek(), &key);
    Ok(Made { plain: Some(made.plain), key, view })
}

fn edit(
    gateway: &Gateway,
    id: &str,
    action: &'static str,
    change: impl FnOnce(&mut StoredKey) -> Result<Value, Refusal>,
) -> Result<StoredKey, Refusal> {
    let note = Change { at: now(), actor: ACTOR, action };
    let changed = gateway.keyring.change(id, note, |key| {
        if key.revoked.is_some() {
            let message = "the key was revoked; make another one with POST /keys";
            return Err(refuse(409, "key_revoked", message));
        }
        change(key).map(|detail| detail.to_string())
    });
    changed.map_err(|error| match error {
        ChangeError::Refused(refusal) => refusal,
        ChangeError::Unknown => unknown(),
        ChangeError::Taken => taken(),
        ChangeError::Ledger(error) => unavailable(&error),
    })
}

/// Reads a key's definition as the file's `keys` are read.
fn resolve(
    gateway: &Gateway,
    id: &str,
    mut body: Map<String, Value>,
) -> Result<(Caller, Vec<Problem>), Refusal> {
    body.retain(|_, value| !value.is_null());
    body.insert("id".into(), id.into());
    // Not through YAML, which has only strings here.
    let metadata = match body.remove("metadata") {
        None => String::new(),
        Some(Value::Object(map)) if map.is_empty() => String::new(),
        Some(Value::Object(map)) => Value::from(map).to_string(),
        Some(_) => return Err(refuse(400, "invalid_key", "`metadata` is an object")),
    };
    let text = Value::from(body).to_string();
    let (mut caller, warnings) =
        config::key(&text, &gateway.live.peek()).map_err(|problems| invalid(&problems))?;
    let mut profile = Profile::clone(&caller.profile);
    profile.metadata = metadata;
    caller.profile = Arc::new(profile);
    Ok((caller, warnings))
}

/// A key as `POST` and `PATCH` take it.
fn written(key: &StoredKey) -> Map<String, Value> {
    let mut map = Map::new();
    describe(&key.profile, key.expires, |name, value| {
        map.insert(name.into(), value);
    });
    map.retain(|_, value| !value.is_null());
    map
}

fn describe(profile: &Profile, expires: Option<DateTime<Utc>>, mut add: impl FnMut(&str, Value)) {
    let limits = profile.scope.limits;
    let limits = [("rpm", limits.rpm), ("tpm", limits.tpm), ("parallel", limits.parallel)];
    let limits: Map<String, Value> =
        limits.into_iter().filter_map(|(name, n)| Some((name.into(), n?.into()))).collect();
    let budgets = profile.scope.budgets.iter();
    let budgets: Vec<Value> = budgets
        .map(|budget| json!({"usd": budget.cap.to_string(), "per": budget.per.as_str()}))
        .collect();
    add("team", json!(profile.team));
    add("user", json!(profile.user));
    add("models", profile.models.patterns().collect::<Vec<_>>().into());
    add("limits", if limits.is_empty() { Value::Null } else { limits.into() });
    add("budgets", if budgets.is_empty() { Value::Null } else { budgets.into() });
    add("unlimited", profile.unlimited.into());
    add("expires", json!(expires.map(|at| at.to_rfc3339())));
    add("metadata", serde_json::from_str(&profile.metadata).unwrap_or(Value::Null));
    add("low_budget", profile.low_budget.as_str().into());
}

fn shown(gateway: &Gateway, key: &StoredKey) -> Response<Vec<u8>> {
    answer(200, &view(&gateway.budgets.view(Utc::now()), &gateway.live.peek(), key))
}

fn view(accounts: &[AccountView], snapshot: &config::Snapshot, key: &StoredKey) -> Shown {
    let mut shown = common(accounts, &key.id, &key.hash, &key.profile, key.expires);
    let unusable = config::unusable(&key.profile, snapshot);
    let state = match (key.revoked, key.blocked, key.expires) {
        (Some(_), ..) => "revoked",
        (None, Some(_), _) => "blocked",
        (.., Some(expires)) if expires <= Utc::now() => "expired",
        _ if unusable.is_some() => "unusable",
        _ => "active",
    };
    shown.add("source", &"api");
    shown.add("state", &state);
    shown.add("unusable", &unusable);
    shown.add("created_at", &key.created.to_rfc3339());
    let dates = [
        ("blocked_at", key.blocked),
        ("revoked_at", key.revoked),
        ("previous_until", key.previous.map(|(_, until)| until)),
    ];
    for (name, date) in dates {
        shown.add(name, &date.map(|date| date.to_rfc3339()));
    }
    shown
}

fn file_view(accounts: &[AccountView], key: &Caller) -> Shown {
    let mut shown = common(accounts, &key.id, &key.hash, &key.profile, key.expires);
    let expired = key.expires.is_some_and(|at| at <= Utc::now());
    debug_assert_eq!(key.standing, Standing::Active);
    shown.add("source", &"file");
    shown.add("state", if expired { &"expired" } else { &"active" });
    shown
}

fn common(
    accounts: &[AccountView],
    id: &str,
    hash: &[u8; 32],
    profile: &Profile,
    expires: Option<DateTime<Utc>>,
) -> Shown {
    let mut shown = Shown::default();
    shown.add("id", &id);
    shown.add("fingerprint", &fingerprint(hash));
    describe(profile, expires, |name, value| shown.add(name, &value));
    let budgets = profile.scope.budgets.iter().map(|budget| {
        let mut row = Shown::default();
        row.add_usd("usd", budget.cap);
        row.add("per", &budget.per.as_str());
        let same = |a: &&AccountView| a.kind == ScopeKind::Key && a.id == id && a.per == budget.per;
        if let Some(account) = accounts.iter().find(same) {
            row.add_usd("spent_usd", account.spent);
            row.add_usd("held_usd", account.held);
            row.add("window_end", &account.window_end.map(|end| end.to_rfc3339()));
        }
        row
    });
    shown.add("budgets", &budgets.collect::<Vec<_>>());
    shown
}

fn answer(status: u16, shown: &Shown) -> Response<Vec<u8>> {
    match serde_json::to_vec(shown) {
        Ok(body) => super::build(status, "application/json", body),
        Err(_) => error(500, "internal_error", "the answer can't be written"),
    }
}

/// A key of the file is changed in the file. One that was made here stays changeable here, also
/// when the file has got one of the same id since.
pub(super) fn not_in_file(gateway: &Gateway, id: &str) -> Result<(), Refusal> {
    let made = gateway.keyring.get(id).map_err(|error| failed(error.into()))?;
    let made = made.is_some_and(|key| key.revoked.is_none());
    if !made && gateway.live.peek().keys.iter().any(|key| &*key.id == id) {
        let message = "this key stands in the configuration file: change it there, and reload";
        return Err(refuse(409, "key_in_file", message));
    }
    Ok(())
}

/// Now, as exactly as the database keeps it.
fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

/// The first 8 hex digits of the hash: tells two keys apart, and opens nothing.
fn fingerprint(hash: &[u8; 32]) -> String {
    hex::encode(&hash[..4])
}

/// An id is a segment of a path and a word in logs.
fn is_id(id: &str) -> bool {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.@:+".contains(&b);
    (1..=128).contains(&id.len()) && id.bytes().all(fine) && !id.starts_with(keygen::PREFIX)
}

fn bad_id() -> Refusal {
    let message = "`id` has 1 to 128 letters, digits and -_.@:+, and is not itself a key (tb-…)";
    refuse(400, "invalid_request", message)
}

fn invalid(problems: &[Problem]) -> Refusal {
    let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let message = problems.first().cloned().unwrap_or_default();
    let error = json!({"code": "invalid_key", "message": message, "problems": problems});
    Box::new(json_answer(400, &json!({ "error": error })))
}

fn failed(error: ChangeError<std::convert::Infallible>) -> Refusal {
    match error {
        ChangeError::Taken => taken(),
        ChangeError::Unknown => unknown(),
        ChangeError::Ledger(error) => unavailable(&error),
        ChangeError::Refused(never) => match never {},
    }
}

fn taken() -> Refusal {
    refuse(409, "key_exists", "there is a key with this id or hash already")
}

pub(super) fn unknown() -> Refusal {
    refuse(404, "unknown_key", "there is no such key")
}

pub(super) fn unavailable(error: &crate::ledger::LedgerError) -> Refusal {
    refuse(503, "state_unavailable", &format!("nothing was changed: {error}"))
}

pub(super) fn refuse(status: u16, code: &str, message: &str) -> Refusal {
    Box::new(error(status, code, message))
}
