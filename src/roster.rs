//! Every scope that the configuration and the keys name, with its limits and budgets.

use crate::budget::{Budgets, Charge};
use crate::config::snapshot::Snapshot;
use crate::keyring::Keyring;
use crate::keys::Caller;
use crate::limits::Limiter;
use crate::scope::{Budget, Scope, ScopeKind};
use crate::units::Name;
use ahash::{AHashMap, AHashSet};
use chrono::Utc;
use std::sync::Arc;
use std::time::Instant;

/// So many teams, users and keys together are warmed whether they have spent anything or not.
const FEW: usize = 1_000;

/// Accounts that are asked for together. Requests' own questions come in between.
const TOGETHER: usize = 256;

/// All scopes, as they are now.
pub struct Roster {
    snapshot: Arc<Snapshot>,
    keys: AHashMap<Name, Arc<Caller>>,
}

impl Roster {
    /// Of this configuration, with those of the keys, in it and beside it, that are among `wanted`.
    /// There may be a million others.
    pub fn of(snapshot: Arc<Snapshot>, keyring: &Keyring, wanted: &AHashSet<Name>) -> Roster {
        let mut keys = AHashMap::new();
        let mut add = |caller: &Arc<Caller>| {
            if wanted.contains(&caller.id) {
                keys.insert(caller.id.clone(), caller.clone());
            }
        };
        if !wanted.is_empty() {
            keyring.each(&mut add);
            // Of two with one id the file's one is in force.
            snapshot.keys.iter().for_each(&mut add);
        }
        Roster { snapshot, keys }
    }

    /// With every key, where teams, users and keys are few enough to be warmed without being
    /// asked for.
    pub fn of_all(snapshot: Arc<Snapshot>, keyring: &Keyring) -> Option<Roster> {
        let count =
            snapshot.teams.len() + snapshot.users.len() + snapshot.keys.len() + keyring.len();
        (count <= FEW).then(|| {
            let mut wanted: AHashSet<Name> =
                snapshot.keys.iter().map(|key| key.id.clone()).collect();
            keyring.each(&mut |key| {
                wanted.insert(key.id.clone());
            });
            Roster::of(snapshot, keyring, &wanted)
        })
    }

    /// Forgets what is kept of scopes and budgets that are not named any more.
    pub fn keep(&self, limiter: &Limiter, budgets: &Budgets) {
        limiter.keep(|kind, id| self.scope(kind, id).is_some(), Instant::now());
        budgets.keep(|kind, id, per| self.budgets(kind, id).iter().any(|budget| budget.per == per));
    }

    /// Reads accounts from the store, so that reports show them before any request: those of the
    /// gateway, its providers and its models, and those of teams, users and keys that are among
    /// `spenders`.
    pub async fn warm(&self, budgets: &Budgets, spenders: Vec<(ScopeKind, String)>) {
        let mut names = spenders;
        names.push((ScopeKind::Global, String::new()));
        let providers = self.snapshot.providers.keys();
        names.extend(providers.map(|name| (ScopeKind::Provider, name.clone())));
        names.extend(self.snapshot.models.keys().map(|name| (ScopeKind::Model, name.clone())));
        for some in names.chunks(TOGETHER) {
            let charges: Vec<Charge<'_>> = some
                .iter()
                .map(|(kind, id)| Charge { kind: *kind, id, budgets: self.budgets(*kind, id) })
                .collect();
            budgets.warm(&charges, Utc::now()).await;
        }
    }

    /// Every team, user and key of this roster.
    pub fn names(&self) -> Vec<(ScopeKind, String)> {
        let teams = self.snapshot.teams.keys().map(|name| (ScopeKind::Team, name.clone()));
        let users = self.snapshot.users.keys().map(|name| (ScopeKind::User, name.clone()));
        let keys = self.keys.keys().map(|name| (ScopeKind::Key, name.to_string()));
        teams.chain(users).chain(keys).collect()
    }

    fn budgets(&self, kind: ScopeKind, id: &str) -> &[Budget] {
        self.scope(kind, id).map_or(&[], |scope| &scope.budgets)
    }

    fn scope(&self, kind: ScopeKind, id: &str) -> Option<&Scope> {
        let snapshot = &self.snapshot;
        match kind {
            ScopeKind::Key => self.keys.get(id).map(|caller| &caller.scope),
            ScopeKind::User => snapshot.users.get(id).map(Arc::as_ref),
            ScopeKind::Team => snapshot.teams.get(id).map(Arc::as_ref),
            ScopeKind::Model => snapshot.models.get(id).map(|model| &model.scope),
            ScopeKind::Provider => snapshot.providers.get(id).map(|provider| &provider.scope),
            ScopeKind::Global => Some(&snapshot.global),
        }
    }
}
