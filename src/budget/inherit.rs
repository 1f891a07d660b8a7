//! Attempts that began before a budget that they are charged to was there: until they end, what is
//! held for them is held on it too. What they cost it is told by the store and by `Budgets::tell`.

use super::account::{Account, Slot};
use super::hold::Part;
use crate::ledger::{RunningHold, Store};
use crate::scope::ScopeKind;
use ahash::AHashMap;
use parking_lot::Mutex;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is held without having been there when the hold was taken.
#[derive(Default)]
pub(super) struct Inherited {
    state: Mutex<State>,
    /// How many holds are held on other accounts beside their own, and one more while that is being
    /// found out.
    parts: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// Grows with every change that is in force, after which budgets may be charged that were not
    /// there before.
    version: u64,
    /// As of which of them the attempts that run were last looked at.
    read: u64,
    /// Changes under way that may name other budgets for anybody: whenever the attempts are looked
    /// at, there may be others a moment later.
    reloading: usize,
    /// Those that are for these keys only.
    keys: AHashMap<String, usize>,
    /// Grows when a change for anybody begins, and when it is in force.
    reloads: u64,
    /// The same for every change, and for every scope that one was for.
    changes: u64,
    /// Those that ran then, by what they are charged to. Many have ended since.
    running: AHashMap<(ScopeKind, String), Vec<Arc<RunningHold>>>,
    /// The accounts beside its own that a hold is held on.
    parts: AHashMap<i64, Vec<Part>>,
}

impl State {
    /// Whether the attempts that were looked at last may not be all that a budget of this account
    /// has to hear of.
    fn is_outdated(&self, account: &Account) -> bool {
        self.read != self.version || self.reloading > 0 || self.is_changing(account)
    }

    fn is_changing(&self, account: &Account) -> bool {
        account.kind == ScopeKind::Key && self.keys.contains_key(&*account.id)
    }
}

impl Inherited {
    /// A change of these keys begins, which ends with [`Inherited::changed`].
    pub(super) fn changing(&self, keys: &[String]) {
        let mut state = self.state.lock();
        state.changes += 1;
        for key in keys {
            *state.keys.entry(key.clone()).or_default() += 1;
        }
    }

    /// It is in force, or was given up.
    pub(super) fn changed(&self, keys: &[String]) {
        let mut state = self.state.lock();
        state.changes += 1;
        state.version += 1;
        for key in keys {
            if let Entry::Occupied(mut changes) = state.keys.entry(key.clone()) {
                *changes.get_mut() -= 1;
                if *changes.get() == 0 {
                    changes.remove();
                }
            }
        }
    }

    /// A change begins that is for everybody, and ends with [`Inherited::reloaded`].
    pub(super) fn reloading(&self) {
        let mut state = self.state.lock();
        state.changes += 1;
        state.reloading += 1;
        state.reloads += 1;
    }

    /// It is in force.
    pub(super) fn reloaded(&self) {
        let mut state = self.state.lock();
        state.changes += 1;
        state.version += 1;
        state.reloading = state.reloading.saturating_sub(1);
        state.reloads += 1;
    }

    /// A scope's budgets are other ones from now on, or will be in a moment: its slot has to hear of
    /// what was not charged to it, and nobody who was charged before says that it is in force.
    pub(super) fn doubt(&self, slot: &mut Slot) {
        self.state.lock().changes += 1;
        (slot.sure, slot.woken) = (false, None);
    }

    /// How many changes there have been.
    pub(super) fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// Whether attempts that run, or have ended, may not have been charged to a slot that is about to
    /// be charged, of which it has not heard: once for each reload, and always while there is one, or
    /// a change of its key. [`Inherited::open`] is to follow then.
    pub(super) fn wakes(&self, account: &Account, slot: &Slot) -> bool {
        if slot.sure {
            return false;
        }
        let state = self.state.lock();
        state.reloading > 0 || slot.woken != Some(state.reloads) || state.is_changing(account)
    }

    /// Looks at the attempts that run, if that was last done before a change. To be called before
    /// anything is locked: there may be thousands.
    pub(super) fn look(&self, store: &dyn Store) {
        let (version, read) = {
            let state = self.state.lock();
            (state.version, state.read)
        };
        if version != read {
            let running = by_scope(store.running());
            let mut state = self.state.lock();
            if state.read < version {
                (state.running, state.read) = (running, version);
            }
        }
    }

    /// Whether [`Inherited::look`] has something to do.
    pub(super) fn is_stale(&self) -> bool {
        let state = self.state.lock();
        state.read != state.version
    }

    /// An attempt is charged to the slot by what is in force now: whatever runs that it is for, and
    /// comes, is charged to it, until the budget is not named any more. `changes`: as many as there
    /// were when it was charged.
    pub(super) fn confirm(&self, slot: &mut Slot, changes: u64) {
        let state = self.state.lock();
        let still = state.reloading == 0 && state.keys.is_empty();
        let same = still && state.changes == changes;
        slot.sure |= same && slot.woken == Some(state.reloads);
    }

    /// The slot hears of what was not charged to it: what is held for attempts that run is held on
    /// this window of it, too. A hold that ends at the same time is either not seen here or looks
    /// for itself in [`Inherited::end`].
    pub(super) fn open(
        &self,
        store: &dyn Store,
        account: &Arc<Account>,
        slot: &mut Slot,
        index: usize,
    ) {
        let mut state = self.state.lock();
        slot.woken = Some(state.reloads);
        slot.wake();
        if std::mem::take(&mut slot.overlaps) || state.is_outdated(account) {
            state.running = by_scope(store.running());
            state.read = state.version;
        }
        let (per, window) = (slot.per, &mut slot.windows[index]);
        let span = window.span;
        let State { running, parts, .. } = &mut *state;
        // Who ends from here on finds this, and waits for its end.
        self.parts.store(parts.len() + 1, Ordering::Release);
        let scope = (account.kind, account.id.to_string());
        for hold in running.get(&scope).into_iter().flatten() {
            let is_it = |part: &Part| {
                Arc::ptr_eq(&part.account, account) && (part.per, part.starts) == (per, span.starts)
            };
            let had = hold.accounts.iter().any(|key| {
                (key.kind, &*key.id, key.per, key.starts)
                    == (account.kind, &*account.id, per, span.starts)
            });
            let has = had || parts.get(&hold.id).is_some_and(|parts| parts.iter().any(is_it));
            if !has && span.contains(hold.at.timestamp()) && store.runs(hold.id) {
                window.held = window.held.saturating_add(hold.worst.0);
                let part = Part { account: account.clone(), per, starts: span.starts };
                parts.entry(hold.id).or_default().push(part);
            }
        }
        self.parts.store(parts.len(), Ordering::Release);
    }

    /// The attempt of this hold has ended, and the store knows: where else it was held.
    pub(super) fn end(&self, hold: i64) -> Vec<Part> {
        if self.parts.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut state = self.state.lock();
        let parts = state.parts.remove(&hold).unwrap_or_default();
        self.parts.store(state.parts.len(), Ordering::Release);
        parts
    }
}

fn by_scope(holds: Vec<RunningHold>) -> AHashMap<(ScopeKind, String), Vec<Arc<RunningHold>>> {
    let mut scopes = AHashMap::<_, Vec<_>>::new();
    for hold in holds {
        let hold = Arc::new(hold);
        for (kind, id) in &hold.scopes {
            scopes.entry((*kind, id.clone())).or_default().push(hold.clone());
        }
    }
    scopes
}
