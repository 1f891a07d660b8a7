//! What budgets need of whoever keeps their books; [`super::Ledger`] is one, a fleet's would be
//! another.

use super::row::{Row, Word, word};
use crate::json_line::{JsonLine, field};
use crate::scope::{Per, ScopeKind};
use crate::units::{Name, NanoUsd};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer};
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// The most that one attempt can be booked at: nine million dollars. It keeps every sum exact.
pub const MAX_COST: NanoUsd = NanoUsd(1 << 53);

/// One budget window of one scope. Cheap to clone, and to write to the journal: the words of it
/// are made once.
#[derive(Debug, Clone)]
pub struct AccountKey(Arc<Made>);

#[derive(Debug)]
struct Made {
    account: AccountName,
    /// As JSON.
    json: String,
}

/// What names an account.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
pub struct AccountName {
    /// What kind of scope.
    #[serde(with = "word", rename = "k")]
    pub kind: ScopeKind,
    /// Its name.
    #[serde(deserialize_with = "read_name", rename = "i")]
    pub id: Name,
    /// The kind of window.
    #[serde(with = "word", rename = "p")]
    pub per: Per,
    /// The first second of the window, since 1970.
    #[serde(rename = "s")]
    pub starts: i64,
    /// The first second after it; `i64::MAX` for one that never ends.
    #[serde(rename = "e")]
    pub ends: i64,
}

impl From<AccountName> for AccountKey {
    fn from(account: AccountName) -> AccountKey {
        let mut json = JsonLine::with_capacity(96);
        json.text(field!("k"), account.kind.word());
        json.text(field!("i"), &account.id);
        json.text(field!("p"), account.per.word());
        json.number(field!("s"), account.starts);
        json.number(field!("e"), account.ends);
        let json = String::from_utf8(json.end()).unwrap_or_default();
        AccountKey(Arc::new(Made { account, json: json.trim_end().to_owned() }))
    }
}

impl AccountKey {
    /// As the journal has it.
    pub(super) fn json(&self) -> &str {
        &self.0.json
    }
}

impl Deref for AccountKey {
    type Target = AccountName;

    fn deref(&self) -> &AccountName {
        &self.0.account
    }
}

impl PartialEq for AccountKey {
    fn eq(&self, other: &AccountKey) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || **self == **other
    }
}

impl Eq for AccountKey {}

impl Hash for AccountKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl<'de> Deserialize<'de> for AccountKey {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<AccountKey, D::Error> {
        AccountName::deserialize(d).map(AccountKey::from)
    }
}

fn read_name<'de, D: Deserializer<'de>>(d: D) -> Result<Name, D::Error> {
    String::deserialize(d).map(Name::from)
}

/// A hold that is about to be given to a request.
pub struct HoldNote<'a> {
    /// The client's request.
    pub request: &'a str,
    /// When the hold was taken.
    pub at: DateTime<Utc>,
    /// What is held.
    pub worst: NanoUsd,
    /// Every scope of the attempt, also those without a budget.
    pub scopes: &'a [(ScopeKind, &'a str)],
    /// Every account it is held on.
    pub accounts: Vec<AccountKey>,
}

/// A hold whose attempt runs.
#[derive(Debug, Clone)]
pub struct RunningHold {
    /// Its id.
    pub id: i64,
    /// When it was taken.
    pub at: DateTime<Utc>,
    /// What is held.
    pub worst: NanoUsd,
    /// Every scope of the attempt, also those without a budget.
    pub scopes: Vec<(ScopeKind, String)>,
    /// Every account it is held on.
    pub accounts: Vec<AccountKey>,
}

/// A process asks to be allowed to spend more of an account.
#[derive(Debug, Clone)]
pub struct LeaseAsk {
    /// Which account.
    pub account: AccountKey,
    /// Its cap, in nano-dollars.
    pub cap: u64,
    /// What the process would like to be allowed to spend since its start, in nano-dollars.
    pub want: u64,
}

/// What a process knows of an account, all in nano-dollars.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lease {
    /// Spent by others than this process.
    pub others: u64,
    /// What other processes may still spend under their leases, or may have spent unseen before
    /// the power went.
    pub outstanding: u64,
    /// Spent by this process, as far as it is committed.
    pub booked: u64,
    /// What this process may spend in all, since its start.
    pub upto: u64,
}

/// The store can't do what it must.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// Called once, on a thread of the store; it must not block.
pub type LeaseDone = Box<dyn FnOnce(Result<Lease, StoreError>) + Send>;

/// Keeps what must survive the process. No method but those that say so waits for a disk.
pub trait Store: Send + Sync {
    /// Whether what is written is being kept. When not, budgets refuse.
    fn healthy(&self) -> bool;

    /// Notes a hold so that a kill of the process can't lose it. Returns its id.
    ///
    /// # Errors
    /// It could not be noted; with `force` it gets an id all the same.
    fn hold(&self, note: HoldNote<'_>, force: bool) -> Result<i64, StoreError>;

    /// The attempt of this hold ended and cost `row.cost_nano_usd`.
    fn settle(&self, hold: i64, row: Row);

    /// Nobody knows how the attempt of this hold ended: it is booked at its worst case.
    fn lose(&self, hold: i64);

    /// The attempt of this hold was never made.
    fn release(&self, hold: i64);

    /// The holds of this process whose attempts run now.
    fn running(&self) -> Vec<RunningHold>;

    /// Whether this is one of them.
    fn runs(&self, hold: i64) -> bool;

    /// Asks for a lease; `done` is called when it is durable, or refused.
    fn lease(&self, ask: LeaseAsk, done: LeaseDone);
}
