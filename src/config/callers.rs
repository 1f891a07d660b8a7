//! Virtual keys.

use super::file::{self, File};
use super::problem::Report;
use super::read::At;
use super::resolve::{missing, scope};
use super::snapshot::{Scope, Snapshot};
use super::suggest::{self, shown};
use super::text::Texts;
use crate::keygen::PREFIX;
use crate::keys::{Allow, Caller, Profile, Standing};
use crate::secret::sha256;
use ahash::AHashMap;
use chrono::{DateTime, Utc};
use std::sync::Arc;

/// What keys refer to.
pub(crate) struct Around<'a> {
    /// The names of the models that clients may ask for.
    pub models: Vec<&'a str>,
    pub providers: Vec<&'a str>,
    pub teams: &'a AHashMap<String, Arc<Scope>>,
    pub users: &'a AHashMap<String, Arc<Scope>>,
    pub global: &'a Scope,
}

impl<'a> Around<'a> {
    /// What the keys of a file refer to.
    pub(crate) fn file(
        file: &'a File,
        teams: &'a AHashMap<String, Arc<Scope>>,
        users: &'a AHashMap<String, Arc<Scope>>,
        global: &'a Scope,
    ) -> Self {
        let models = file.models.as_ref().map(|m| m.0.as_slice()).unwrap_or_default();
        let providers = file.providers.as_ref().map(|p| p.0.as_slice()).unwrap_or_default();
        Around {
            models: models.iter().map(|(name, _)| name.as_str()).collect(),
            providers: providers.iter().map(|(name, _)| name.as_str()).collect(),
            teams,
            users,
            global,
        }
    }

    /// What a key that is made while running refers to.
    pub(crate) fn running(snapshot: &'a Snapshot) -> Self {
        Around {
            models: snapshot.models.keys().map(String::as_str).collect(),
            providers: snapshot.providers.keys().map(String::as_str).collect(),
            teams: &snapshot.teams,
            users: &snapshot.users,
            global: &snapshot.global,
        }
    }
}

/// One key, as it is written.
pub(crate) fn key(
    written: &file::Key,
    around: &Around<'_>,
    texts: Texts<'_>,
    report: &mut Report,
) -> Option<Caller> {
    let place = &written.place;
    required(written, report);
    let hash = written.hash.as_ref().and_then(|raw| hash(raw, texts, report));
    let scope = scope(written.limits.as_ref(), written.budgets.as_deref(), report);
    let models = written.models.as_ref().map(|listed| models(listed, around, report));
    let team = written.team.as_ref().map(|raw| team(raw, around, report));
    let expires = written.expires.as_ref().and_then(|raw| expires(raw, texts, report));
    named_by_key(written, hash, report);
    let profile = Profile {
        team,
        user: written.user.as_ref().map(|user| user.value.clone()),
        models: models.unwrap_or_default(),
        scope,
        unlimited: written.unlimited.unwrap_or(false),
        metadata: written.metadata.as_ref().map(|m| m.0.clone()).unwrap_or_default(),
        low_budget: written.low_budget.unwrap_or_default(),
    };
    let caller = Caller {
        id: written.id.as_ref().map(|id| id.value.as_str()).unwrap_or_default().into(),
        hash: hash.unwrap_or_default(),
        expires,
        standing: Standing::Active,
        profile: Arc::new(profile),
    };
    if !caller.unlimited
        && !written.has("budgets")
        && !covered(&caller, around.teams, around.users, around.global)
    {
        let fix =
            "Write `budgets: [ { usd: 10, per: day } ]`, or `unlimited: true` if that is meant";
        report.problem(
            place,
            "no budget covers this key: nothing of its own, its user's, its team's or global",
            fix,
        );
    }
    if !caller.unlimited
        && written.budgets.as_ref().is_some_and(Vec::is_empty)
        && !covered(&caller, around.teams, around.users, around.global)
    {
        let fix = "Write `[ { usd: 10, per: day } ]`, or `unlimited: true` if that is meant";
        report.problem(&place.key("budgets"), "the list is empty: no budget covers this key", fix);
    }
    (written.id.is_some() && hash.is_some()).then_some(caller)
}

/// Bytes of a key's metadata at most: they are copied to each row of the ledger.
pub const MOST_METADATA: usize = 4 << 10;

/// Whether an id is a key itself. A key that is shorter than this nobody should have.
pub fn is_a_key(id: &str, hash: Option<[u8; 32]>) -> bool {
    let long = id.len() >= 20;
    long && (id.starts_with(PREFIX) || hash == Some(sha256(id.as_bytes())))
}

/// An id is in logs, in the ledger and in metrics, which anybody may read.
fn named_by_key(written: &file::Key, hash: Option<[u8; 32]>, report: &mut Report) {
    let Some(id) = &written.id else { return };
    if is_a_key(&id.value, hash) {
        let fix =
            "Write a name for it: `id: web-prod`; a key that stood in a file should be replaced";
        report.problem(&id.place, "the id is a key in plain text", fix);
    }
    let metadata = written.metadata.as_ref().map_or(0, |metadata| metadata.0.len());
    if metadata > MOST_METADATA {
        let message = format!("{metadata} bytes, which are in every row of the ledger");
        let fix = format!("Write at most {MOST_METADATA}");
        report.problem(&written.place.key("metadata"), message, fix);
    }
}

fn required(written: &file::Key, report: &mut Report) {
    let place = &written.place;
    if let Some(plain) = &written.key {
        let fix = "Remove it and write `hash:` as `tollbar keygen` prints it; a key that stood in a file should be replaced";
        report.problem(&plain.place, "a key in plain text", fix);
    } else if !written.has("hash") {
        missing(place, "hash", "Make a key with `tollbar keygen`, which prints this line", report);
    }
    if !written.has("id") {
        missing(place, "id", "Write a name for it: `id: web-prod`", report);
    }
    if !written.has("models") {
        missing(
            place,
            "models",
            "Write `models: [\"*\"]` for all, or the names it may use",
            report,
        );
    }
}

/// `sha256:` and 64 hex digits. What else stands there is not repeated: it may be a key.
fn hash(raw: &At<String>, texts: Texts<'_>, report: &mut Report) -> Option<[u8; 32]> {
    let text = texts.text(raw, report)?;
    let decoded = digest(&text);
    if decoded.is_none() {
        let fix = "Write `sha256:` and 64 hex digits, as `tollbar keygen` prints them";
        let message = match text.starts_with("sha256:") {
            true => "not 64 hex digits after `sha256:`",
            false => "not a hash",
        };
        report.problem(&raw.place, message, fix);
    }
    decoded
}

/// The digest that a hash is written for.
pub(crate) fn digest(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    hex::decode_to_slice(text.strip_prefix("sha256:")?, &mut out).ok().map(|()| out)
}

fn models(listed: &At<Vec<At<String>>>, around: &Around<'_>, report: &mut Report) -> Allow {
    if listed.value.is_empty() {
        let fix = "Write `[\"*\"]` for all, or the names it may use";
        report.problem(&listed.place, "the list is empty: the key could use nothing", fix);
    }
    let names = || around.models.iter().copied();
    for pattern in &listed.value {
        let text = pattern.value.as_str();
        // `provider/model` is what passthrough asks for; those need not be configured.
        let passthrough =
            text.split_once('/').is_some_and(|(name, _)| around.providers.contains(&name));
        let one = Allow::new([text]);
        if passthrough || names().any(|name| one.allows(name)) {
            continue;
        }
        if text.contains('*') {
            let message = format!("`{}` matches no model", shown(text));
            report.warning(&pattern.place, message, "Write a name or a glob of configured models");
        } else {
            let fix = suggest::fix(text, names().collect::<Vec<_>>());
            report.problem(&pattern.place, format!("unknown model `{}`", shown(text)), fix);
        }
    }
    Allow::new(listed.value.iter().map(|pattern| pattern.value.as_str()))
}

fn team(raw: &At<String>, around: &Around<'_>, report: &mut Report) -> String {
    if !around.teams.contains_key(&raw.value) {
        let names = around.teams.keys().map(String::as_str);
        let fix = match suggest::nearest(&raw.value, names) {
            Some(near) => format!("Did you mean `{near}`?"),
            None => format!("Write `teams: {{ {}: {{ budgets: [ … ] }} }}`", shown(&raw.value)),
        };
        report.problem(&raw.place, format!("unknown team `{}`", shown(&raw.value)), fix);
    }
    raw.value.clone()
}

fn expires(raw: &At<String>, texts: Texts<'_>, report: &mut Report) -> Option<DateTime<Utc>> {
    let text = texts.text(raw, report)?;
    let Ok(instant) = DateTime::parse_from_rfc3339(&text) else {
        let message = format!("expected a date and time, found `{}`", shown(&raw.value));
        report.problem(&raw.place, message, "Write one like 2027-06-30T00:00:00Z");
        return None;
    };
    let instant = instant.with_timezone(&Utc);
    if instant <= texts.env.now() {
        let fix = "Remove the key, or move the date";
        report.warning(&raw.place, "this key has expired", fix);
    }
    Some(instant)
}

/// Whether any budget bounds what the key can spend.
pub(crate) fn covered(
    profile: &Profile,
    teams: &AHashMap<String, Arc<Scope>>,
    users: &AHashMap<String, Arc<Scope>>,
    global: &Scope,
) -> bool {
    let has = |scope: Option<&Arc<Scope>>| scope.is_some_and(|s| !s.budgets.is_empty());
    !profile.scope.budgets.is_empty()
        || has(profile.team.as_ref().and_then(|name| teams.get(name)))
        || has(profile.user.as_ref().and_then(|name| users.get(name)))
        || !global.budgets.is_empty()
}
