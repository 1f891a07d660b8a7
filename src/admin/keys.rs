//! Keys as a service: `/keys` and what is below it.

use super::key_view::{file_view, view, written};
use super::reports::{Shown, data, decode, pairs};
use super::{error, json_answer, other_method};
use crate::budget::Charge;
use crate::config::MOST_METADATA;
use crate::config::{self, Problem};
use crate::keygen;
use crate::keyring::{Change, ChangeError, StoredKey};
use crate::keys::{Caller, Profile};
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
    fits(&body)?;
    let blocked = blocked(&mut body)?;
    let made = (!body.contains_key("hash")).then(|| keygen::generate(&mut rand::rng()));
    if let Some(made) = &made {
        body.insert("hash".into(), made.config_hash().into());
    }
    let (caller, warnings) = resolve(gateway, &id, body)?;
    if gateway.live.peek().keys.iter().any(|key| key.id == caller.id || key.hash == caller.hash) {
        return Err(taken());
    }
    if let Some(before) = revoked(gateway, &id)?
        && let Some(key) = gateway.live.peek().keys.by_hash(&before.hash)
    {
        let message = format!(
            "the revoked key `{id}` stops the key `{}` in the file, which has the same text: take that out first",
            key.id
        );
        return Err(refuse(409, "key_in_file", &message));
    }
    let key = StoredKey {
        id: caller.id.clone(),
        hash: caller.hash,
        expires: caller.expires,
        profile: caller.profile,
        created: now(),
        blocked: blocked.filter(|blocked| *blocked).map(|_| now()),
        revoked: None,
        previous: None,
    };
    let detail = json!({"fingerprint": fingerprint(&key.hash), "key": written(&key)}).to_string();
    let changing = gateway.budgets.changing([key.id.to_string()]);
    gateway.keyring.create(key.clone(), ACTOR, detail).map_err(failed)?;
    drop(changing);
    // There may have been another key of this name.
    gateway.budgets.revise(&Charge { kind: ScopeKind::Key, id: &key.id, budgets: &[] });
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
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    // There may be a million: only those that are shown are worth a view.
    let mut file: Vec<_> = snapshot.keys.iter().filter(|key| *key.id > *after).collect();
    if file.len() > limit {
        file.select_nth_unstable_by(limit, |a, b| a.id.cmp(&b.id));
        file.truncate(limit);
    }
    let mut rows: Vec<(&str, Shown)> =
        stored.iter().map(|key| (&*key.id, view(&accounts, &snapshot, key))).collect();
    rows.extend(file.into_iter().map(|key| (&*key.id, file_view(&accounts, key))));
    rows.sort_by(|a, b| a.0.cmp(b.0));
    rows.truncate(limit);
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

/// `PATCH /keys/{id}`: the members that are there replace the key's own, those of `limits` one by
/// one; `null` takes one away. `blocked` blocks and unblocks.
pub(super) fn change(
    gateway: &Gateway,
    id: &str,
    body: Map<String, Value>,
) -> Result<StoredKey, Refusal> {
    let action = match body.get("blocked") {
        Some(Value::Bool(true)) if body.len() == 1 => "block",
        Some(Value::Bool(false)) if body.len() == 1 => "unblock",
        _ => "update",
    };
    change_by(gateway, id, action, |_| Ok(body.clone()))
}

/// Changes a key by what `make` makes of it as it is; again, where another process changes it meanwhile.
pub(super) fn change_by(
    gateway: &Gateway,
    id: &str,
    action: &'static str,
    mut make: impl FnMut(&StoredKey) -> Result<Map<String, Value>, Refusal>,
) -> Result<StoredKey, Refusal> {
    not_in_file(gateway, id)?;
    let changed = edit(gateway, id, action, |key| {
        let mut body = make(key)?;
        if let Some(fixed) = ["id", "hash", "key"].iter().find(|name| body.contains_key(**name)) {
            let message =
                format!("`{fixed}` can't be changed. POST /keys/{id}/rotate gives a new key");
            return Err(refuse(400, "invalid_request", &message));
        }
        fits(&body)?;
        let blocked = blocked(&mut body)?;
        let before = written(key);
        if !body.is_empty() {
            let mut after = before.clone();
            if let (Some(Value::Object(all)), Some(Value::Object(some))) =
                (after.get("limits"), body.get_mut("limits"))
            {
                for (name, value) in all {
                    some.entry(name.clone()).or_insert_with(|| value.clone());
                }
            }
            after.extend(body);
            after.insert("hash".into(), format!("sha256:{}", hex::encode(key.hash)).into());
            let (caller, _) = resolve(gateway, id, after)?;
            (key.profile, key.expires) = (caller.profile, caller.expires);
        }
        if let Some(blocked) = blocked {
            key.blocked = blocked.then(|| key.blocked.unwrap_or_else(now));
        }
        let after = written(key);
        Ok(json!({"before": before, "after": after, "blocked": key.blocked.is_some()}))
    })?;
    // Reports show the new caps at once.
    let budgets = &changed.profile.scope.budgets;
    gateway.budgets.revise(&Charge { kind: ScopeKind::Key, id: &changed.id, budgets });
    Ok(changed)
}

/// Metadata is in every row of the ledger. A key that has more from before keeps it.
fn fits(body: &Map<String, Value>) -> Result<(), Refusal> {
    match body.get("metadata").is_some_and(|value| value.to_string().len() > MOST_METADATA) {
        true => {
            let message =
                format!("`metadata` is in every row: at most {MOST_METADATA} bytes of JSON");
            Err(refuse(400, "invalid_key", &message))
        }
        false => Ok(()),
    }
}

/// Whether a key is to be blocked, if that is said.
fn blocked(body: &mut Map<String, Value>) -> Result<Option<bool>, Refusal> {
    match body.remove("blocked") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(blocked)) => Ok(Some(blocked)),
        Some(_) => Err(refuse(400, "invalid_request", "`blocked` is true or false")),
    }
}

/// `DELETE /keys/{id}`: never accepted again.
pub(super) fn revoke(gateway: &Gateway, id: &str) -> Result<StoredKey, Refusal> {
    not_in_file(gateway, id)?;
    if let Some(key) = revoked(gateway, id)? {
        return Ok(key);
    }
    let ended = edit(gateway, id, "revoke", |key| {
        key.revoked = Some(now());
        Ok(json!({"fingerprint": fingerprint(&key.hash)}))
    });
    let ended = match ended {
        Ok(key) => key,
        // Somebody else may have just done so.
        Err(refusal) => return revoked(gateway, id)?.ok_or(refusal),
    };
    gateway.budgets.revise(&Charge { kind: ScopeKind::Key, id, budgets: &[] });
    Ok(ended)
}

/// The key, if it was revoked.
fn revoked(gateway: &Gateway, id: &str) -> Result<Option<StoredKey>, Refusal> {
    let key = gateway.keyring.get(id).map_err(|error| failed(error.into()))?;
    Ok(key.filter(|key| key.revoked.is_some()))
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
    mut change: impl FnMut(&mut StoredKey) -> Result<Value, Refusal>,
) -> Result<StoredKey, Refusal> {
    let note = Change { at: now(), actor: ACTOR, action };
    let changing = gateway.budgets.changing([id.to_owned()]);
    let changed = gateway.keyring.change(id, note, |key| {
        if key.revoked.is_some() {
            let message = "the key was revoked; make another one with POST /keys";
            return Err(refuse(409, "key_revoked", message));
        }
        change(key).map(|detail| detail.to_string())
    });
    drop(changing);
    changed.map_err(|error| match error {
        ChangeError::Refused(refusal) => refusal,
        ChangeError::Unknown => unknown(),
        ChangeError::Taken => taken(),
        ChangeError::Busy => busy(),
        ChangeError::Ledger(error) => unavailable(&error),
    })
}

/// Reads a key's definition as the file's `keys` are read.
fn resolve(
    gateway: &Gateway,
    id: &str,
    mut body: Map<String, Value>,
) -> Result<(Caller, Vec<Problem>), Refusal> {
    if let Some(Value::Object(limits)) = body.get_mut("limits") {
        limits.retain(|_, value| !value.is_null());
        if limits.is_empty() {
            body.remove("limits");
        }
    }
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

fn shown(gateway: &Gateway, key: &StoredKey) -> Response<Vec<u8>> {
    answer(200, &view(&gateway.budgets.view(Utc::now()), &gateway.live.peek(), key))
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
        return Err(in_file());
    }
    Ok(())
}

/// The answer to who would change a key of the file.
pub(super) fn in_file() -> Refusal {
    let message = "this key stands in the configuration file: change it there, and reload";
    refuse(409, "key_in_file", message)
}

/// Now, as exactly as the database keeps it.
fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

/// The first 8 hex digits of the hash: tells two keys apart, and opens nothing.
pub(super) fn fingerprint(hash: &[u8; 32]) -> String {
    hex::encode(&hash[..4])
}

/// An id is a segment of a path and a word in logs.
fn is_id(id: &str) -> bool {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.@:+".contains(&b);
    // Clients take the dots for steps in a path.
    let steps = matches!(id, "." | "..");
    (1..=128).contains(&id.len()) && id.bytes().all(fine) && !config::is_a_key(id, None) && !steps
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
        ChangeError::Busy => busy(),
        ChangeError::Unknown => unknown(),
        ChangeError::Ledger(error) => unavailable(&error),
        ChangeError::Refused(never) => match never {},
    }
}

fn taken() -> Refusal {
    refuse(409, "key_exists", "there is a key with this id or hash already")
}

fn busy() -> Refusal {
    let message =
        "another process changes this key at the same time; nothing was changed: try again";
    refuse(409, "key_busy", message)
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
