//! Taking from several accounts at once: all of them are locked, looked at, and only then changed.

use super::account::{Account, Slot, Verdict, slot};
use super::hold::Part;
use super::inherit::Inherited;
use super::lease::{self, LeaseTicket, Question};
use super::refusal::HoldError;
use super::wait::Place;
use crate::ledger::{AccountKey, Store};
use crate::scope::Per;
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use parking_lot::MutexGuard;
use std::sync::Arc;

/// One account that a hold is wanted on.
pub(super) struct Wanted {
    pub(super) account: Arc<Account>,
    pub(super) per: Per,
    /// In nano-dollars.
    pub(super) cap: u64,
    /// Its place in what was asked, which decides who is named in a refusal.
    pub(super) order: usize,
}

/// What is held.
pub(super) struct Taken {
    pub(super) parts: Vec<Part>,
    /// The accounts, as the store names them.
    pub(super) names: Vec<AccountKey>,
    /// Where a budget may be confirmed by [`Hold::confirm`](super::Hold::confirm): how many changes
    /// there have been.
    pub(super) unsure: Option<u64>,
}

/// The accounts of a hold, locked.
pub(super) struct Locked<'a> {
    wanted: &'a [Wanted],
    /// Each scope once.
    scopes: Vec<MutexGuard<'a, Vec<Slot>>>,
    /// For every account its place in `scopes`, its window there, and what that says.
    found: Vec<(usize, usize, Verdict)>,
    /// Places in `wanted` of budgets that are charged for the first time.
    pub(super) opened: Vec<usize>,
    changes: Option<u64>,
}

impl<'a> Locked<'a> {
    /// Locks the accounts, which are in the one order of locking, and tells them their caps.
    pub(super) fn new(
        wanted: &'a [Wanted],
        inherited: &Inherited,
        zone: Tz,
        now: DateTime<Utc>,
    ) -> Locked<'a> {
        let mut scopes: Vec<MutexGuard<'a, Vec<Slot>>> = Vec::with_capacity(wanted.len());
        let mut found = Vec::with_capacity(wanted.len());
        let (mut opened, mut changes) = (Vec::new(), None);
        for (i, want) in wanted.iter().enumerate() {
            if i == 0 || !Arc::ptr_eq(&wanted[i - 1].account, &want.account) {
                scopes.push(want.account.slots.lock());
            }
            let scope = scopes.len() - 1;
            let slot = slot(&mut scopes[scope], want.per);
            let index = slot.current(zone, now);
            slot.windows[index].cap = want.cap;
            found.push((scope, index, Verdict::Fits));
            if !slot.sure {
                changes = changes.or_else(|| Some(inherited.changes()));
            }
            if inherited.wakes(&want.account, slot) {
                opened.push(i);
            }
        }
        Locked { wanted, scopes, found, opened, changes }
    }

    /// What is opened holds what is held for attempts that run already.
    pub(super) fn inherit(&mut self, inherited: &Inherited, store: &dyn Store) {
        for &place in &self.opened {
            let (want, (scope, index, _)) = (&self.wanted[place], &self.found[place]);
            let slot = slot(&mut self.scopes[*scope], want.per);
            inherited.open(store, &want.account, slot, *index);
        }
    }

    /// Refuses if any account does. Named is one that no settling of holds would help, if there
    /// is one, and of several the first that was asked.
    pub(super) fn judge(
        &mut self,
        place: Option<&Place>,
        worst: u64,
        now: DateTime<Utc>,
        leaseless: bool,
    ) -> Result<(), HoldError> {
        let mut refused: Option<((bool, usize), HoldError)> = None;
        for (want, (scope, index, verdict)) in self.wanted.iter().zip(&mut self.found) {
            let slot = slot(&mut self.scopes[*scope], want.per);
            let mine = place.and_then(|place| place.number_at(&want.account, want.per));
            *verdict = match slot.windows[*index].judge(worst, now, leaseless) {
                Verdict::Fits if slot.queue.bars(mine) => Verdict::Refused { only_holds: true },
                verdict => verdict,
            };
            if let Verdict::Refused { only_holds } = *verdict {
                let rank = (only_holds, want.order);
                if refused.as_ref().is_none_or(|(first, _)| rank < *first) {
                    let refusal = HoldError::refused(&want.account, slot, *index, only_holds);
                    refused = Some((rank, refusal));
                }
            }
        }
        refused.map_or(Ok(()), |(_, refusal)| Err(refusal))
    }

    /// Asks for what the leases lack. The questions are to be put once nothing is locked.
    pub(super) fn ask(
        &mut self,
        worst: u64,
        now: DateTime<Utc>,
        questions: &mut Vec<Question>,
    ) -> Result<(), HoldError> {
        let mut ticket = LeaseTicket::default();
        for (want, (scope, index, verdict)) in self.wanted.iter().zip(&self.found) {
            if *verdict == Verdict::Ask {
                let slot = slot(&mut self.scopes[*scope], want.per);
                let wanted = &mut slot.windows[*index].wanted;
                *wanted = wanted.saturating_add(worst);
                questions.extend(lease::question(&want.account, slot, *index, worst, now));
                ticket.tickets.extend(slot.windows[*index].pending.clone());
            }
        }
        if ticket.tickets.is_empty() { Ok(()) } else { Err(HoldError::NeedsLease(ticket)) }
    }

    /// Holds `worst` on every account; asks ahead where a lease runs low or a window ends.
    pub(super) fn take(
        mut self,
        worst: u64,
        zone: Tz,
        now: DateTime<Utc>,
        questions: &mut Vec<Question>,
    ) -> Taken {
        let mut parts = Vec::with_capacity(self.wanted.len());
        let mut names = Vec::with_capacity(self.wanted.len());
        for (want, (scope, index, _)) in self.wanted.iter().zip(&self.found) {
            let slot = slot(&mut self.scopes[*scope], want.per);
            let window = &mut slot.windows[*index];
            window.held = window.held.saturating_add(worst);
            let starts = window.span.starts;
            let name = window.key.get_or_insert_with(|| want.account.key(want.per, window.span));
            names.push(name.clone());
            if window.runs_low(worst) {
                questions.extend(lease::question(&want.account, slot, *index, worst, now));
            }
            if let Some(next) = slot.ahead(*index, zone, now) {
                questions.extend(lease::question(&want.account, slot, next, worst, now));
            }
            let account = want.account.clone();
            parts.push(Part { account, per: want.per, starts });
        }
        Taken { parts, names, unsure: self.changes }
    }
}
