//! Keys, as the admin API shows and takes them.

use super::keys::fingerprint;
use super::reports::Shown;
use crate::budget::AccountView;
use crate::config;
use crate::keyring::StoredKey;
use crate::keys::{Caller, Profile, Standing};
use crate::scope::ScopeKind;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

/// A key as `POST` and `PATCH` take it.
pub(super) fn written(key: &StoredKey) -> Map<String, Value> {
    let mut map = Map::new();
    describe(&key.profile, key.expires, |name, value| {
        map.insert(name.into(), value);
    });
    map.retain(|_, value| !value.is_null());
    map
}

pub(super) fn describe(
    profile: &Profile,
    expires: Option<DateTime<Utc>>,
    mut add: impl FnMut(&str, Value),
) {
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

pub(super) fn view(
    accounts: &[AccountView],
    snapshot: &config::Snapshot,
    key: &StoredKey,
) -> Shown {
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

pub(super) fn file_view(accounts: &[AccountView], key: &Caller) -> Shown {
    let mut shown = common(accounts, &key.id, &key.hash, &key.profile, key.expires);
    let expired = key.expires.is_some_and(|at| at <= Utc::now());
    debug_assert_eq!(key.standing, Standing::Active);
    shown.add("source", &"file");
    shown.add("state", if expired { &"expired" } else { &"active" });
    shown
}

pub(super) fn common(
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
