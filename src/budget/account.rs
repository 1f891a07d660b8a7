//! An account: the money of one scope in one calendar window, in nano-dollars.

use super::AccountView;
use super::calendar::{self, Span};
use super::lease::Ticket;
use super::wait::Queue;
use crate::ledger::{AccountKey, AccountName, Lease};
use crate::scope::{Per, ScopeKind};
use crate::units::{Name, NanoUsd};
use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use parking_lot::Mutex;
use std::sync::Arc;

/// How long a window without holds is remembered: a thread that read the clock just before the
/// turn of a window still finds it.
const REMEMBER: i64 = 300;

/// What other processes may still spend is asked for again after this.
const STALE: TimeDelta = TimeDelta::seconds(1);

/// The next window is asked for so long before this one ends.
const AHEAD: i64 = 5;

/// All accounts of one scope.
pub(super) struct Account {
    pub(super) kind: ScopeKind,
    pub(super) id: Name,
    pub(super) slots: Mutex<Vec<Slot>>,
}

/// The accounts of one scope and kind of window.
pub(super) struct Slot {
    pub(super) per: Per,
    pub(super) windows: Vec<Window>,
    /// Every attempt that it is for has been charged to it since it was opened. Where that isn't
    /// known (it is new, or the configuration didn't name it for a while), it hears of the others
    /// when it is next charged.
    pub(super) sure: bool,
    /// As of which change of the budgets it has heard of them.
    pub(super) woken: Option<u64>,
    /// Its newest window lies over another one, after a change of the time zone: attempts that began
    /// since the last change of the budgets may have been charged to the other one only.
    pub(super) overlaps: bool,
    /// Requests that wait for holds to settle.
    pub(super) queue: Queue,
}

/// One account: one window of a slot.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) span: Span,
    /// Its name in the store, once it was asked for.
    pub(super) key: Option<AccountKey>,
    /// As the last request saw it in the configuration.
    pub(super) cap: u64,
    /// By this process, since its start.
    pub(super) spent: u64,
    pub(super) held: u64,
    /// What the store has last said; `None` before it has said anything.
    pub(super) lease: Option<Lease>,
    /// Spent before the store was first asked, and so without a lease: it is part of what the
    /// store says others spent.
    pub(super) before: u64,
    /// Spent by attempts of this process that began before this window was opened, and so without
    /// a hold here, where the store's last answer may not have it yet.
    pub(super) unseen: u64,
    /// The part of it that the answer on its way will have.
    pub(super) unseen_asked: u64,
    /// When the store was last asked.
    pub(super) asked: Option<DateTime<Utc>>,
    pub(super) pending: Option<Arc<Ticket>>,
    /// The answer on its way is from before attempts that were not charged here: another one has to
    /// be asked for.
    pub(super) late: bool,
    /// What requests wait for that the lease has no room for.
    pub(super) wanted: u64,
}

/// What a window says to a hold.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Fits,
    /// The cap would allow it; the lease, or what is known of other processes, does not.
    Ask,
    Refused {
        /// It would fit if nothing else were held.
        only_holds: bool,
    },
}

impl Account {
    /// Calls `change` with a window, while the account is locked. No two windows of a slot begin at
    /// the same time.
    pub(super) fn with<T>(
        &self,
        per: Per,
        starts: i64,
        change: impl FnOnce(&mut Slot, usize) -> T,
    ) -> Option<T> {
        let mut slots = self.slots.lock();
        let slot = slots.iter_mut().find(|slot| slot.per == per)?;
        let index = slot.windows.iter().position(|window| window.span.starts == starts)?;
        Some(change(slot, index))
    }

    /// The name of a window of this scope.
    pub(super) fn key(&self, per: Per, span: Span) -> AccountKey {
        let (starts, ends) = (span.starts, span.ends);
        AccountName { kind: self.kind, id: self.id.clone(), per, starts, ends }.into()
    }
}

/// The slot of this kind of window.
pub(super) fn slot(slots: &mut Vec<Slot>, per: Per) -> &mut Slot {
    let index = slots.iter().position(|slot| slot.per == per).unwrap_or_else(|| {
        let (windows, queue) = (Vec::new(), Queue::default());
        slots.push(Slot { per, windows, sure: false, woken: None, overlaps: false, queue });
        slots.len() - 1
    });
    &mut slots[index]
}

impl Slot {
    /// Hears of attempts that were not charged to it. What they spent the store has to say.
    pub(super) fn wake(&mut self) {
        for window in &mut self.windows {
            window.late = window.pending.is_some();
            if let Some(lease) = window.lease.as_mut() {
                lease.upto = 0;
            }
        }
    }

    /// Whether anything is held, asked or waited for.
    pub(super) fn is_busy(&self) -> bool {
        let held = |window: &Window| window.held > 0 || window.pending.is_some();
        self.windows.iter().any(held) || !self.queue.is_empty()
    }

    /// The place of the window that contains `now`, which begins with it if it is new.
    pub(super) fn current(&mut self, zone: Tz, now: DateTime<Utc>) -> usize {
        let second = now.timestamp();
        let found = self.windows.iter().rposition(|window| window.span.contains(second));
        if let Some(index) = found {
            return index;
        }
        self.windows.retain(|window| {
            window.held > 0
                || window.pending.is_some()
                || window.span.ends.saturating_add(REMEMBER) > second
        });
        let span = calendar::window(self.per, zone, now);
        if self.windows.iter().any(|window| window.span.overlaps(&span)) {
            (self.sure, self.woken, self.overlaps) = (false, None, true);
        }
        let same = self.windows.iter().position(|window| window.span.starts == span.starts);
        let Some(index) = same else { return self.add(span) };
        // In another zone it goes on. The store knows it by when it begins: two of them would share
        // one account there, and each take the other's answers.
        let mut window = self.windows.remove(index);
        (window.span, window.key) = (span, None);
        self.windows.push(window);
        self.windows.len() - 1
    }

    /// The place of the next window, when it is time to ask for it and nobody has.
    pub(super) fn ahead(&mut self, index: usize, zone: Tz, now: DateTime<Utc>) -> Option<usize> {
        let ends = self.windows[index].span.ends;
        if ends.saturating_sub(AHEAD) > now.timestamp() {
            return None;
        }
        if self.windows.iter().any(|window| window.span.starts == ends) {
            return None;
        }
        let next = DateTime::from_timestamp(ends, 0)?;
        let span = calendar::window(self.per, zone, next);
        // In another zone it has begun already, and would be charged from now on instead of this one.
        if span.starts != ends {
            return None;
        }
        let cap = self.windows[index].cap;
        let index = self.add(span);
        self.windows[index].cap = cap;
        Some(index)
    }

    fn add(&mut self, span: Span) -> usize {
        self.windows.push(Window {
            span,
            key: None,
            cap: 0,
            spent: 0,
            held: 0,
            lease: None,
            before: 0,
            unseen: 0,
            unseen_asked: 0,
            asked: None,
            pending: None,
            late: false,
            wanted: 0,
        });
        self.windows.len() - 1
    }
}

impl Window {
    /// Whether `worst` more can be held. `leaseless`: whatever the store says.
    pub(super) fn judge(&self, worst: u64, now: DateTime<Utc>, leaseless: bool) -> Verdict {
        let Some(lease) = self.lease.or(leaseless.then(Lease::default)) else {
            return Verdict::Ask;
        };
        let own = self.spent.saturating_add(self.held).saturating_add(worst);
        let others = self.others();
        if own.saturating_add(others).saturating_add(lease.outstanding) > self.cap {
            // Also where the clock was set back: else nobody would ask until it has caught up.
            let stale = self.asked.is_none_or(|asked| (now - asked).abs() > STALE);
            let known = own.saturating_add(others.saturating_sub(self.unseen));
            if stale && lease.outstanding.max(self.unseen) > 0 && known <= self.cap {
                return Verdict::Ask;
            }
            let alone = self.total_spent().saturating_add(worst);
            return Verdict::Refused { only_holds: alone <= self.cap };
        }
        if own.saturating_sub(self.before) > lease.upto && !leaseless {
            Verdict::Ask
        } else {
            Verdict::Fits
        }
    }

    /// What the store should allow this process to spend in all: what is held and waited for, and
    /// a chunk to go on with, which gets smaller near the cap.
    pub(super) fn want(&self, worst: u64) -> u64 {
        let own = self.spent.saturating_add(self.held).saturating_add(self.wanted);
        let left = self.cap.saturating_sub(own.saturating_add(self.elsewhere()));
        let chunk = (self.cap / 64).max(worst.saturating_mul(4)).min(left / 2);
        own.saturating_add(chunk).saturating_sub(self.before)
    }

    /// Whether less than half a chunk of the lease is left, and the cap has more.
    pub(super) fn runs_low(&self, worst: u64) -> bool {
        let Some(lease) = self.lease else { return false };
        let own = self.spent.saturating_add(self.held).saturating_sub(self.before);
        let left = lease.upto.saturating_sub(own);
        let chunk = (self.cap / 64).max(worst.saturating_mul(4));
        let room = self.cap.saturating_sub(lease.upto.saturating_add(self.elsewhere()));
        // Under a hold's worth of room there is nothing to top up for.
        left < chunk / 2 && room >= worst.max(1)
    }

    /// The store has answered.
    pub(super) fn leased(&mut self, lease: Lease) {
        if self.lease.is_none() {
            // This window had been forgotten, or the store was out of reach until now.
            self.spent = self.spent.saturating_add(lease.booked);
        }
        self.lease = Some(lease);
        if std::mem::take(&mut self.late)
            && let Some(lease) = self.lease.as_mut()
        {
            lease.upto = 0;
        }
        self.unseen = self.unseen.saturating_sub(std::mem::take(&mut self.unseen_asked));
    }

    /// Spent by others than this process, or without a hold here.
    fn others(&self) -> u64 {
        let told = self.lease.map_or(0, |lease| lease.others.saturating_sub(self.before));
        told.saturating_add(self.unseen)
    }

    /// Not to be spent by this process: spent or leased by others.
    fn elsewhere(&self) -> u64 {
        self.others().saturating_add(self.outstanding())
    }

    /// Leased by other processes and not yet spent, as far as is known.
    pub(super) fn outstanding(&self) -> u64 {
        self.lease.map_or(0, |lease| lease.outstanding)
    }

    /// As reports show it.
    pub(super) fn view(&self, kind: ScopeKind, id: &str, per: Per) -> AccountView {
        AccountView {
            kind,
            id: id.to_owned(),
            per,
            cap: NanoUsd(self.cap),
            spent: NanoUsd(self.known_spent()),
            held: NanoUsd(self.held),
            elsewhere: NanoUsd(self.outstanding()),
            waiting: 0,
            window_end: DateTime::from_timestamp(self.span.ends, 0),
        }
    }

    /// Spent by whomever, as far as is known.
    pub(super) fn known_spent(&self) -> u64 {
        self.spent.saturating_add(self.others())
    }

    /// What counts as spent, by whomever.
    pub(super) fn total_spent(&self) -> u64 {
        self.spent.saturating_add(self.elsewhere())
    }
}
