//! Attempts that began before a budget that they are charged to was there: until they end, what is
//! held for them is held on it too. What they cost it is told by the store and by `Budgets::tell`.

use super::account::{Account, Slot};
use super::hold::Part;
use crate::ledger::{RunningHold, Store};
use crate::scope::ScopeKind;
use ahash::AHashMap;
use parking_lot::Mutex;
use std::sync::Arc;

/// What is held without having been there when the hold was taken.
#[derive(Default)]
pub(super) struct Inherited(Mutex<State>);

#[derive(Default)]
struct State {
    /// Budgets may have changed since the attempts that run were last looked at.
    stale: bool,
    /// Changes under way: whenever the attempts are looked at, there may be others a moment later.
    changing: usize,
    /// Those of them that may name other budgets for anybody.
    reloading: usize,
    /// Grows when such a one begins, and when it is in force.
    reloads: u64,
    /// The same for every change, and for every scope that one was for.
    changes: u64,
    /// Those that ran then, by what they are charged to. Many have ended since.
    running: AHashMap<(ScopeKind, String), Vec<Arc<RunningHold>>>,
    /// The accounts beside its own that a hold is held on.
    parts: AHashMap<i64, Vec<Part>>,
}

impl Inherited {
    /// A change begins that ends with [`Inherited::changed`].
    pub(super) fn changing(&self) {
        let mut state = self.0.lock();
        state.changing += 1;
        state.changes += 1;
    }

    /// A change begins that is for everybody, and ends with [`Inherited::reloaded`].
    pub(super) fn reloading(&self) {
        self.changing();
        let mut state = self.0.lock();
        state.reloading += 1;
        state.reloads += 1;
    }

    /// It is in force.
    pub(super) fn reloaded(&self) {
        {
            let mut state = self.0.lock();
            state.reloading = state.reloading.saturating_sub(1);
            state.reloads += 1;
        }
        self.changed();
    }

    /// A scope's budgets are other ones from now on, or will be in a moment: its slot has to hear of
    /// what was not charged to it, and nobody who was charged before says that it is in force.
    pub(super) fn doubt(&self, slot: &mut Slot) {
        self.0.lock().changes += 1;
        (slot.sure, slot.woken) = (false, None);
    }

    /// How many changes there have been.
    pub(super) fn changes(&self) -> u64 {
        self.0.lock().changes
    }

    /// From now on budgets may be charged that were not there before.
    pub(super) fn changed(&self) {
        let mut state = self.0.lock();
        state.changing = state.changing.saturating_sub(1);
        state.changes += 1;
        state.stale = true;
    }

    /// Whether attempts that run, or have ended, may not have been charged to a slot that is about to
    /// be charged, of which it has not heard: once for each reload, and always while there is one.
    /// (A key's change is for its own budgets only, and those it doubts.)
    pub(super) fn wakes(&self, slot: &mut Slot) -> bool {
        if slot.sure {
            return false;
        }
        let (reloading, reloads) = {
            let state = self.0.lock();
            (state.reloading > 0, state.reloads)
        };
        let wakes = reloading || slot.woken != Some(reloads);
        if wakes {
            slot.woken = Some(reloads);
            slot.wake();
        }
        wakes
    }

    /// An attempt is charged to the slot by what is in force now: whatever runs that it is for, and
    /// comes, is charged to it, until the budget is not named any more. `changes`: as many as there
    /// were when it was charged.
    pub(super) fn confirm(&self, slot: &mut Slot, changes: u64) {
        let state = self.0.lock();
        let same = state.changing == 0 && state.changes == changes;
        slot.sure |= same && slot.woken == Some(state.reloads);
    }

    /// Holds what is held for attempts that run on a window of an account's new slot, too. The
    /// caller has counted the slot among the opened ones before, so that a hold that ends at the
    /// same time is either not seen here or looks for itself in [`Inherited::end`].
    pub(super) fn open(
        &self,
        store: &dyn Store,
        account: &Arc<Account>,
        slot: &mut Slot,
        index: usize,
    ) {
        let (per, window) = (slot.per, &mut slot.windows[index]);
        let span = window.span;
        let mut state = self.0.lock();
        if std::mem::take(&mut state.stale) || state.changing > 0 {
            state.running = by_scope(store.running());
        }
        let State { running, parts, .. } = &mut *state;
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
    }

    /// The attempt of this hold has ended, and the store knows: where else it was held.
    pub(super) fn end(&self, hold: i64) -> Vec<Part> {
        self.0.lock().parts.remove(&hold).unwrap_or_default()
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
