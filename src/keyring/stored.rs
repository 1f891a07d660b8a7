//! A key as the database keeps it: its hash, its dates, and what it may do as JSON.

use crate::keys::{Allow, Caller, LowBudget, Profile, Standing};
use crate::ledger::instant;
use crate::scope::{Budget, Limits, Per, Scope};
use crate::units::{Name, NanoUsd};
use chrono::{DateTime, Utc};
use rusqlite::Row;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The columns of [`StoredKey`], in the order in which it is read.
pub(super) const COLUMNS: &str =
    "id, hash, json, created_at, expires_at, blocked_at, revoked_at, previous_hash, previous_until";

/// A key that was made while running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// Its name.
    pub id: Name,
    /// SHA-256 of the whole key string.
    pub hash: [u8; 32],
    /// What it may do.
    pub profile: Arc<Profile>,
    /// When it was made.
    pub created: DateTime<Utc>,
    /// Not accepted from this instant on.
    pub expires: Option<DateTime<Utc>>,
    /// Since when it is not accepted, until it is unblocked.
    pub blocked: Option<DateTime<Utc>>,
    /// Since when it is not accepted any more, for good.
    pub revoked: Option<DateTime<Utc>>,
    /// The hash that the last rotation replaced, and until when it is still accepted.
    pub previous: Option<([u8; 32], DateTime<Utc>)>,
}

impl StoredKey {
    /// What the request path needs: one caller for each hash that is known.
    pub(super) fn callers(&self) -> impl Iterator<Item = Caller> + '_ {
        let standing = match (self.revoked, self.blocked) {
            (Some(_), _) => Standing::Revoked,
            (None, Some(_)) => Standing::Blocked,
            (None, None) => Standing::Active,
        };
        let caller = move |hash, standing| Caller {
            id: self.id.clone(),
            hash,
            expires: self.expires,
            standing,
            profile: self.profile.clone(),
        };
        let previous = self.previous.map(|(hash, until)| match standing {
            Standing::Active => caller(hash, Standing::Replaced(until)),
            other => caller(hash, other),
        });
        std::iter::once(caller(self.hash, standing)).chain(previous)
    }

    /// Reads a row of [`COLUMNS`]; `profile` makes a profile of its JSON.
    pub(super) fn read(
        row: &Row<'_>,
        profile: impl FnOnce(&str) -> Result<Arc<Profile>, serde_json::Error>,
    ) -> rusqlite::Result<StoredKey> {
        let json = row.get_ref(2)?.as_str()?;
        let unreadable = |error| {
            rusqlite::Error::FromSqlConversionFailure(
                2,
                rusqlite::types::Type::Text,
                Box::new(error),
            )
        };
        Ok(StoredKey {
            id: row.get_ref(0)?.as_str()?.into(),
            hash: row.get(1)?,
            profile: profile(json).map_err(unreadable)?,
            created: date(row, 3)?.unwrap_or_default(),
            expires: date(row, 4)?,
            blocked: date(row, 5)?,
            revoked: date(row, 6)?,
            previous: row.get::<_, Option<[u8; 32]>>(7)?.zip(date(row, 8)?),
        })
    }

    /// Writes the row, new or changed.
    pub(super) fn write(&self, db: &rusqlite::Connection) -> rusqlite::Result<()> {
        let at = |date: Option<DateTime<Utc>>| date.map(instant);
        db.prepare_cached(
            "INSERT INTO virtual_keys (id, hash, json, created_at, expires_at, blocked_at, revoked_at,
                               previous_hash, previous_until)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT (id) DO UPDATE SET
                 hash = ?2, json = ?3, created_at = ?4, expires_at = ?5, blocked_at = ?6,
                 revoked_at = ?7, previous_hash = ?8, previous_until = ?9",
        )?
        .execute(rusqlite::params![
            &*self.id,
            self.hash,
            to_json(&self.profile),
            instant(self.created),
            at(self.expires),
            at(self.blocked),
            at(self.revoked),
            self.previous.map(|(hash, _)| hash),
            at(self.previous.map(|(_, until)| until)),
        ])?;
        Ok(())
    }
}

/// A date that somebody may have edited by hand: what can't be read is an error, not "never".
fn date(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<DateTime<Utc>>> {
    let Some(text) = row.get_ref(column)?.as_str_or_null()? else { return Ok(None) };
    let date = DateTime::parse_from_rfc3339(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(
            column,
            rusqlite::types::Type::Text,
            Box::new(error),
        )
    })?;
    Ok(Some(date.with_timezone(&Utc)))
}

/// [`Profile`] in its stored form. Released: fields may be added, not changed.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    team: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    models: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rpm: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tpm: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parallel: Option<u64>,
    /// Cap in nano-dollars, and the window.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    budgets: Vec<(u64, String)>,
    #[serde(default)]
    unlimited: bool,
    #[serde(default)]
    clamp: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    metadata: String,
}

fn to_json(profile: &Profile) -> String {
    let stored = Stored {
        team: profile.team.clone(),
        user: profile.user.clone(),
        models: profile.models.patterns().map(str::to_owned).collect(),
        rpm: profile.scope.limits.rpm,
        tpm: profile.scope.limits.tpm,
        parallel: profile.scope.limits.parallel,
        budgets: profile
            .scope
            .budgets
            .iter()
            .map(|budget| (budget.cap.0, budget.per.as_str().to_owned()))
            .collect(),
        unlimited: profile.unlimited,
        clamp: profile.low_budget == LowBudget::Clamp,
        metadata: profile.metadata.clone(),
    };
    // Strings and numbers: there is nothing that can't be written.
    serde_json::to_string(&stored).unwrap_or_default()
}

pub(super) fn from_json(json: &str) -> Result<Profile, serde_json::Error> {
    let stored: Stored = serde_json::from_str(json)?;
    let budget = |(cap, per): (u64, String)| {
        let per = Per::ALL.into_iter().find(|known| known.as_str() == per);
        let per = per.ok_or_else(|| serde::de::Error::custom("an unknown budget window"))?;
        Ok(Budget { cap: NanoUsd(cap), per })
    };
    Ok(Profile {
        team: stored.team,
        user: stored.user,
        models: Allow::new(stored.models),
        scope: Scope {
            limits: Limits { rpm: stored.rpm, tpm: stored.tpm, parallel: stored.parallel },
            budgets: stored
                .budgets
                .into_iter()
                .map(budget)
                .collect::<Result<_, serde_json::Error>>()?,
        },
        unlimited: stored.unlimited,
        metadata: stored.metadata,
        low_budget: if stored.clamp { LowBudget::Clamp } else { LowBudget::Refuse },
    })
}
