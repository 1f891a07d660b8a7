//! Limits and budgets: what a key, user, team, model or provider may use.

use crate::units::{Name, NanoUsd};
use std::sync::Arc;

/// Limits and budgets of one scope (a key, a user, a team, a model, a provider, all).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    /// Per-minute and concurrency limits.
    pub limits: Limits,
    /// Money per calendar window.
    pub budgets: Vec<Budget>,
}

/// Per-minute and concurrency limits. `None`: not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Requests in any 60 seconds.
    pub rpm: Option<u64>,
    /// Tokens in any 60 seconds.
    pub tpm: Option<u64>,
    /// Requests at the same time.
    pub parallel: Option<u64>,
}

/// An amount of money per calendar window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    /// The cap.
    pub cap: NanoUsd,
    /// The window it renews with.
    pub per: Per,
}

/// A calendar window in the configured time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Per {
    Minute,
    Hour,
    Day,
    /// Begins on Monday.
    Week,
    Month,
    /// Never renews.
    Total,
}

impl Per {
    /// Every window, shortest first.
    pub const ALL: [Per; 6] = [Per::Minute, Per::Hour, Per::Day, Per::Week, Per::Month, Per::Total];

    /// The word used in the configuration and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Per::Minute => "minute",
            Per::Hour => "hour",
            Per::Day => "day",
            Per::Week => "week",
            Per::Month => "month",
            Per::Total => "total",
        }
    }

    /// Whether every window of this kind lies inside one window of the other kind. A week
    /// does not lie inside a month.
    pub fn within(self, other: Per) -> bool {
        let place = |per: Per| Per::ALL.iter().position(|p| *p == per);
        !(self == Per::Week && other == Per::Month) && place(self) <= place(other)
    }
}

impl std::fmt::Display for Per {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whose limits and budgets a request must pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum ScopeKind {
    Key,
    User,
    Team,
    Model,
    Provider,
    /// Everything that goes through this gateway.
    Global,
}

impl ScopeKind {
    /// Every kind, narrowest first: the order in which they are checked.
    pub const ALL: [ScopeKind; 6] = [
        ScopeKind::Key,
        ScopeKind::User,
        ScopeKind::Team,
        ScopeKind::Model,
        ScopeKind::Provider,
        ScopeKind::Global,
    ];

    /// The word used in the ledger, in metrics and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            ScopeKind::Key => "key",
            ScopeKind::User => "user",
            ScopeKind::Team => "team",
            ScopeKind::Model => "model",
            ScopeKind::Provider => "provider",
            ScopeKind::Global => "global",
        }
    }

    /// The scope of this name, in a sentence.
    pub fn whose(self, id: &str) -> String {
        match self {
            ScopeKind::Global => "the whole gateway".to_owned(),
            kind => format!("the {} `{id}`", kind.as_str()),
        }
    }
}

impl std::fmt::Display for ScopeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// So many locks guard the names of one kind: a request that meets a name for the first time
/// holds up only the few that share its shard.
const SHARDS: usize = 16;

type Shard<T> = parking_lot::RwLock<ahash::AHashMap<Name, Arc<T>>>;

/// State by scope, that survives reloads. Finding what is there takes a shared lock only.
pub struct ScopeMap<T> {
    hasher: ahash::RandomState,
    shards: Vec<Shard<T>>,
}

impl<T> Default for ScopeMap<T> {
    fn default() -> Self {
        let shards = (0..ScopeKind::ALL.len() * SHARDS).map(|_| Shard::default()).collect();
        ScopeMap { hasher: ahash::RandomState::new(), shards }
    }
}

impl<T> ScopeMap<T> {
    /// The state of a scope, if there is one.
    pub fn find(&self, kind: ScopeKind, id: &str) -> Option<Arc<T>> {
        let place = self.hasher.hash_one(id) as usize % SHARDS;
        self.shards[kind as usize * SHARDS + place].read().get(id).cloned()
    }

    /// The state of a scope; `make` creates it for one that is new.
    pub fn of(&self, kind: ScopeKind, id: &str, make: impl FnOnce(Name) -> T) -> Arc<T> {
        let place = self.hasher.hash_one(id) as usize % SHARDS;
        let shard = &self.shards[kind as usize * SHARDS + place];
        if let Some(found) = shard.read().get(id) {
            return found.clone();
        }
        let mut names = shard.write();
        if let Some(found) = names.get(id) {
            return found.clone();
        }
        let name = Name::from(id);
        let made = Arc::new(make(name.clone()));
        names.insert(name, made.clone());
        made
    }

    /// Calls `visit` for every scope there is.
    pub fn each(&self, mut visit: impl FnMut(ScopeKind, &Name, &Arc<T>)) {
        for kind in ScopeKind::ALL {
            for shard in &self.shards[kind as usize * SHARDS..][..SHARDS] {
                for (name, state) in shard.read().iter() {
                    visit(kind, name, state);
                }
            }
        }
    }

    /// The names of one kind.
    pub fn names(&self, kind: ScopeKind) -> Vec<Name> {
        let shards = &self.shards[kind as usize * SHARDS..][..SHARDS];
        shards.iter().flat_map(|shard| shard.read().keys().cloned().collect::<Vec<_>>()).collect()
    }

    /// Forgets the scopes that `keep` says no to and that nobody holds at the moment.
    pub fn retain(&self, keep: impl Fn(ScopeKind, &str, &T) -> bool) {
        for kind in ScopeKind::ALL {
            for shard in &self.shards[kind as usize * SHARDS..][..SHARDS] {
                let idle = |name: &Name, state: &Arc<T>| {
                    Arc::strong_count(state) == 1 && !keep(kind, name, state)
                };
                // Mostly there is nothing to forget, and requests need not wait to hear that.
                if shard.read().iter().any(|(name, state)| idle(name, state)) {
                    // Under the write lock nobody can take a new reference to a state without one.
                    shard.write().retain(|name, state| !idle(name, state));
                }
            }
        }
    }
}
