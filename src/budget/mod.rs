//! Budgets: money per calendar window, held before it is spent.
//!
//! An account is the money of one scope in one window. Before an attempt its worst case is held
//! on every account that it is charged to, or on none; when it ends, what it cost is booked there
//! and the rest is free again. For every account `spent + held ≤ cap` at every instant.
//!
//! What a process may spend it has a lease for, which the store committed beforehand and tops up
//! in the background. Only a request that finds no lease, or a used up one, waits for the store.

mod account;
pub mod calendar;
mod hold;
mod inherit;
mod lease;
mod refusal;
mod take;
#[cfg(test)]
mod tests;
mod wait;

pub use hold::Hold;
pub use lease::LeaseTicket;
pub use refusal::{HoldError, Refusal};

use crate::ledger::{HoldNote, Row, Store};
use crate::scope::{Budget, Per, ScopeKind, ScopeMap};
use crate::units::{Name, NanoUsd};
use account::{Account, slot};
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use hold::Part;
use inherit::Inherited;
use lease::Question;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use take::{Locked, Taken, Wanted};
use wait::Place;

/// What an attempt is charged to. A scope without budgets is named too: a row that nobody lived
/// to write says then whose attempt it was.
#[derive(Debug, Clone, Copy)]
pub struct Charge<'a> {
    /// What kind of scope.
    pub kind: ScopeKind,
    /// Its name, as the ledger row will have it.
    pub id: &'a str,
    /// Its budgets in the configuration in force.
    pub budgets: &'a [Budget],
}

/// An account, as reports show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountView {
    /// What kind of scope.
    pub kind: ScopeKind,
    /// Its name.
    pub id: String,
    /// The kind of window.
    pub per: Per,
    /// The cap that the last request saw.
    pub cap: NanoUsd,
    /// Spent by whomever, as far as is known.
    pub spent: NanoUsd,
    /// Held for attempts that are running.
    pub held: NanoUsd,
    /// What other processes have leased and not used yet, as far as is known; after a power cut
    /// also what may have been spent unseen. It is not to be spent here.
    pub elsewhere: NanoUsd,
    /// Requests that wait for others' holds on it to settle.
    pub waiting: usize,
    /// When the window ends; `None` for one that never does.
    pub window_end: Option<DateTime<Utc>>,
}

/// All accounts of the process. Survives reloads.
pub struct Budgets {
    store: Arc<dyn Store>,
    accounts: ScopeMap<Account>,
    zone: Mutex<Tz>,
    fail_open: AtomicBool,
    /// Grows with every budget that is opened, before the store is asked about it.
    opened: AtomicU64,
    inherited: Inherited,
}

/// A change of keys. To be dropped when it is in force.
#[must_use = "the change is under way until this is dropped"]
pub struct Changing {
    budgets: Arc<Budgets>,
    keys: Vec<String>,
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.budgets.inherited.changed(&self.keys);
    }
}

impl Budgets {
    /// No accounts yet: each is read from the store when it is first charged, or by
    /// [`Budgets::warm`].
    pub fn new(store: Arc<dyn Store>, zone: Tz) -> Arc<Budgets> {
        Arc::new(Budgets {
            store,
            accounts: ScopeMap::default(),
            zone: Mutex::new(zone),
            fail_open: AtomicBool::new(false),
            opened: AtomicU64::new(0),
            inherited: Inherited::default(),
        })
    }

    /// Where windows begin. Windows that have begun end as they would have.
    pub fn set_zone(&self, zone: Tz) {
        *self.zone.lock() = zone;
    }

    /// The configuration is about to change, and [`Budgets::reloaded`] follows at once.
    pub fn reloading(&self) {
        self.inherited.reloading();
    }

    /// The configuration has changed: a budget that is charged for the first time may be new, and
    /// then holds what is held for attempts that run already. To be called when the change is in
    /// force.
    pub fn reloaded(&self) {
        self.inherited.reloaded();
    }

    /// These keys are about to change, until what is returned is dropped: as
    /// [`Budgets::reloading`], for their own budgets.
    pub fn changing(self: &Arc<Self>, keys: impl IntoIterator<Item = String>) -> Changing {
        let keys: Vec<String> = keys.into_iter().collect();
        self.inherited.changing(&keys);
        for key in &keys {
            if let Some(account) = self.accounts.find(ScopeKind::Key, key) {
                account.slots.lock().iter_mut().for_each(|slot| self.inherited.doubt(slot));
            }
        }
        Changing { budgets: self.clone(), keys }
    }

    /// Whether holds are given while the store fails (`state.on_failure: open`). The caps hold
    /// then as far as this process knows; what a kill loses is lost.
    pub fn set_fail_open(&self, open: bool) {
        self.fail_open.store(open, Ordering::Release);
    }

    /// Holds `worst` on every account of every charge, or on none. `request` is the id of the
    /// client's request.
    ///
    /// # Errors
    /// An account has too little left, or its lease has: then the store was asked, and the ticket
    /// says when to try again.
    pub fn hold(
        self: &Arc<Self>,
        request: &str,
        charges: &[Charge<'_>],
        worst: NanoUsd,
        now: DateTime<Utc>,
    ) -> Result<Hold, HoldError> {
        self.hold_from(None, request, charges, worst, now)
    }

    /// As [`Budgets::hold`], but waits for the store where need be. With `wait` it also waits,
    /// first come, first served, for holds of others that alone stand in the way; bound that with
    /// a timeout, and ask once more without `wait` to have the refusal.
    ///
    /// # Errors
    /// An account has too little left; or others' holds stand in the way, and the configuration or
    /// the key may have changed: whoever waits on has to find out by what.
    pub async fn acquire(
        self: &Arc<Self>,
        request: &str,
        charges: &[Charge<'_>],
        worst: NanoUsd,
        clock: impl Fn() -> DateTime<Utc>,
        wait: bool,
    ) -> Result<Hold, Refusal> {
        let mut place: Option<Place> = None;
        loop {
            match self.hold_from(place.as_ref(), request, charges, worst, clock()) {
                Ok(hold) => return Ok(hold),
                Err(HoldError::NeedsLease(ticket)) => {
                    ticket.await;
                    // An answer that is there already is no reason to keep the thread: whoever
                    // bounds this with a timeout has to be heard.
                    tokio::task::yield_now().await;
                }
                Err(HoldError::Refused(refusal)) => {
                    let Some((account, seen, roused)) =
                        refusal.account.as_ref().filter(|_| wait && refusal.only_holds)
                    else {
                        return Err(*refusal);
                    };
                    let there =
                        place.take().filter(|p| p.number_at(account, refusal.per).is_some());
                    let here =
                        there.unwrap_or_else(|| Place::take(account.clone(), refusal.per, *roused));
                    if !here.turn(*seen).await {
                        return Err(*refusal);
                    }
                    place = Some(here);
                }
            }
        }
    }

    /// Reads the accounts of these charges from the store, so that no request has to. Ready when
    /// that is done.
    pub fn warm(&self, charges: &[Charge<'_>], now: DateTime<Utc>) -> LeaseTicket {
        let zone = *self.zone.lock();
        self.opened.fetch_add(1, Ordering::AcqRel);
        self.inherited.look(&*self.store);
        let (mut ticket, mut questions) = (LeaseTicket::default(), Vec::new());
        for want in self.wanted(charges) {
            let mut slots = want.account.slots.lock();
            let slot = slot(&mut slots, want.per);
            let index = slot.current(zone, now);
            slot.windows[index].cap = want.cap;
            if self.inherited.wakes(&want.account, slot) {
                self.inherited.open(&*self.store, &want.account, slot, index);
            }
            if slot.windows[index].lease.is_none() {
                questions.extend(lease::question(&want.account, slot, index, 0, now));
                ticket.tickets.extend(slot.windows[index].pending.clone());
            }
        }
        self.put(questions);
        ticket
    }

    /// A scope's budgets have changed: reports show the new caps before the next request does. What
    /// nothing is held on is forgotten if it isn't named any more; what was spent stays in the store.
    pub fn revise(&self, charge: &Charge<'_>) {
        let Some(account) = self.accounts.find(charge.kind, charge.id) else { return };
        let mut wakers = Vec::new();
        account.slots.lock().retain_mut(|slot| {
            wakers.extend(slot.queue.rouse());
            self.inherited.doubt(slot);
            let Some(budget) = charge.budgets.iter().find(|budget| budget.per == slot.per) else {
                return slot.is_busy();
            };
            for window in &mut slot.windows {
                window.cap = budget.cap.0;
            }
            true
        });
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Who waits longest for an account looks again: the window that it was refused in may be over.
    /// To be called now and then.
    pub fn look_again(&self) {
        if wait::nobody() {
            return;
        }
        let mut wakers = Vec::new();
        self.accounts.each(|_, _, account| {
            let mut slots = account.slots.lock();
            wakers.extend(slots.iter_mut().filter_map(|slot| slot.queue.stir()));
        });
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Every account of the windows that run at this time, and those that something is still held
    /// on.
    pub fn view(&self, now: DateTime<Utc>) -> Vec<AccountView> {
        let (mut views, mut questions) = (Vec::new(), Vec::new());
        self.accounts.each(|kind, id, account| {
            for slot in account.slots.lock().iter_mut() {
                for index in 0..slot.windows.len() {
                    let window = &slot.windows[index];
                    if !window.span.contains(now.timestamp()) && window.held == 0 {
                        continue;
                    }
                    let waiting = slot.queue.len();
                    views.push(AccountView { waiting, ..window.view(kind, id, slot.per) });
                    // Others are at work, or were: the next look shows what came of it.
                    if window.outstanding() > 0 || window.unseen > 0 {
                        questions.extend(lease::question(account, slot, index, 0, now));
                    }
                }
            }
        });
        self.put(questions);
        views.sort_by(|a, b| (a.kind, &a.id, a.per as u8).cmp(&(b.kind, &b.id, b.per as u8)));
        views
    }

    /// The accounts of which at least a share, in millionths, is spent: of the windows that run,
    /// and of those that ended in the last minute.
    pub fn past(&self, share: u32, now: DateTime<Utc>) -> Vec<AccountView> {
        let (mut past, second) = (Vec::new(), now.timestamp());
        self.accounts.each(|kind, id, account| {
            for slot in account.slots.lock().iter() {
                for window in &slot.windows {
                    let (cap, spent) = (NanoUsd(window.cap), NanoUsd(window.known_spent()));
                    let late = window.span.ends.saturating_add(60) > second;
                    if late
                        && window.span.starts <= second
                        && cap.0 > 0
                        && spent.reaches(share, cap)
                    {
                        past.push(window.view(kind, id, slot.per));
                    }
                }
            }
        });
        past
    }

    /// Forgets the budgets that nobody names any more and that nothing is held on. What was spent
    /// stays in the store.
    pub fn keep(&self, named: impl Fn(ScopeKind, &str, Per) -> bool) {
        // Those that attempts run on, too.
        let mut wakers = Vec::new();
        self.accounts.each(|kind, id, account| {
            account.slots.lock().retain_mut(|slot| {
                let named = named(kind, id, slot.per);
                wakers.extend(slot.queue.rouse());
                slot.sure &= named;
                named || slot.is_busy()
            });
        });
        self.accounts.retain(|_, _, account| !account.slots.lock().is_empty());
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The scopes of this kind that have accounts.
    pub fn names(&self, kind: ScopeKind) -> Vec<Name> {
        self.accounts.names(kind)
    }

    /// Tells budgets that were opened while an attempt ran, and so have no hold of it, what it
    /// cost. The store has the row already.
    fn tell(&self, parts: &[Part], row: &Row, cost: NanoUsd) {
        let at = row.at.timestamp();
        for kind in ScopeKind::ALL {
            let account = row.scope(kind).and_then(|id| self.accounts.find(kind, id));
            let Some(account) = account else { continue };
            for slot in account.slots.lock().iter_mut() {
                let per = slot.per;
                for window in slot.windows.iter_mut().filter(|window| window.span.contains(at)) {
                    let is_it = |part: &Part| {
                        Arc::ptr_eq(&part.account, &account)
                            && (part.per, part.starts) == (per, window.span.starts)
                    };
                    if !parts.iter().any(is_it) {
                        window.unseen = window.unseen.saturating_add(cost.0);
                    }
                }
            }
        }
    }

    fn hold_from(
        self: &Arc<Self>,
        place: Option<&Place>,
        request: &str,
        charges: &[Charge<'_>],
        worst: NanoUsd,
        now: DateTime<Utc>,
    ) -> Result<Hold, HoldError> {
        let wanted = self.wanted(charges);
        let leaseless = !self.store.healthy();
        let open = self.fail_open.load(Ordering::Acquire);
        if leaseless && !open {
            return Err(HoldError::failed(charges));
        }
        let opened = self.opened.load(Ordering::Acquire);
        let mut questions = Vec::new();
        let taken = self.take(&wanted, place, worst.0, now, leaseless, &mut questions);
        self.put(questions);
        let Taken { parts, names: accounts, unsure } = taken?;
        let scopes: Vec<(ScopeKind, &str)> = charges.iter().map(|c| (c.kind, c.id)).collect();
        let note = HoldNote { request, at: now, worst, scopes: &scopes, accounts };
        // The first to find out that the store fails is not refused either.
        let noted = self.store.hold(note, open);
        match noted {
            Ok(id) => Ok(Hold::new(self.clone(), parts, id, worst, (now, opened, unsure))),
            Err(error) => {
                log::error!("budgets: {error}");
                hold::give_back(&parts, worst, NanoUsd(0));
                Err(HoldError::failed(charges))
            }
        }
    }

    /// Takes from all accounts or from none.
    fn take(
        &self,
        wanted: &[Wanted],
        place: Option<&Place>,
        worst: u64,
        now: DateTime<Utc>,
        leaseless: bool,
        questions: &mut Vec<Question>,
    ) -> Result<Taken, HoldError> {
        let zone = *self.zone.lock();
        let mut accounts = Locked::new(wanted, &self.inherited, zone, now);
        if !accounts.opened.is_empty() && self.inherited.is_stale() {
            drop(accounts);
            self.inherited.look(&*self.store);
            accounts = Locked::new(wanted, &self.inherited, zone, now);
        }
        if !accounts.opened.is_empty() {
            self.opened.fetch_add(1, Ordering::AcqRel);
            accounts.inherit(&self.inherited, &*self.store);
        }
        accounts.judge(place, worst, now, leaseless)?;
        accounts.ask(worst, now, questions)?;
        Ok(accounts.take(worst, zone, now, questions))
    }

    fn put(&self, questions: Vec<Question>) {
        questions.into_iter().for_each(|question| question.put(&*self.store));
    }

    /// Every account once, in the one order of locking.
    fn wanted(&self, charges: &[Charge<'_>]) -> Vec<Wanted> {
        let mut wanted: Vec<Wanted> = Vec::with_capacity(8);
        for charge in charges.iter().filter(|charge| !charge.budgets.is_empty()) {
            let account = self.accounts.of(charge.kind, charge.id, |id| Account {
                kind: charge.kind,
                id,
                slots: Mutex::default(),
            });
            for budget in charge.budgets {
                let order = wanted.len();
                let (account, per, cap) = (account.clone(), budget.per, budget.cap.0);
                wanted.push(Wanted { account, per, cap, order });
            }
        }
        wanted.sort_unstable_by_key(|w| (Arc::as_ptr(&w.account), w.per as u8, w.cap));
        wanted.dedup_by(|twice, first| {
            Arc::ptr_eq(&twice.account, &first.account) && twice.per == first.per
        });
        wanted
    }
}
