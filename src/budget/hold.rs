//! Money held for one attempt, and its end.

use super::Budgets;
use super::account::Account;
use crate::ledger::{MAX_COST, Row};
use crate::scope::Per;
use crate::units::NanoUsd;
use chrono::{DateTime, Utc};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One account that money is held on.
pub(super) struct Part {
    pub(super) account: Arc<Account>,
    pub(super) per: Per,
    /// The window it was held in, which is the one it settles into.
    pub(super) starts: i64,
}

/// Money held for one attempt, on all its accounts.
///
/// It ends exactly once: settled, released, or dropped. Dropped means that nobody knows what the
/// attempt cost; all that was held is booked then, with a row whose outcome is `lost`.
#[must_use = "a hold that is dropped is booked at its worst case"]
pub struct Hold {
    budgets: Arc<Budgets>,
    parts: Vec<Part>,
    id: i64,
    worst: NanoUsd,
    at: DateTime<Utc>,
    /// How many budgets had been opened before it was taken.
    opened: u64,
    /// Where a budget is not sure to know of all attempts: how many changes there had been.
    unsure: Option<u64>,
    ended: bool,
}

impl Hold {
    pub(super) fn new(
        budgets: Arc<Budgets>,
        parts: Vec<Part>,
        id: i64,
        worst: NanoUsd,
        (at, opened, unsure): (DateTime<Utc>, u64, Option<u64>),
    ) -> Hold {
        Hold { budgets, parts, id, worst, at, opened, unsure, ended: false }
    }

    /// What the attempt is charged to is still what is in force, whose configuration and whose key,
    /// after the hold was taken. Budgets that have been charged so need not ask any more what else
    /// there is.
    pub fn confirm(&mut self) {
        if let Some(changes) = self.unsure.take() {
            for part in &self.parts {
                part.account.with(part.per, part.starts, |slot, _| {
                    if !slot.sure {
                        self.budgets.inherited.confirm(slot, changes);
                    }
                });
            }
        }
    }

    /// What is held.
    pub fn amount(&self) -> NanoUsd {
        self.worst
    }

    /// The id of the ledger row to come.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// The attempt ended and cost this much, which may be more than was held. The row's cost,
    /// time and id are set here.
    pub fn settle(mut self, cost: NanoUsd, mut row: Row) {
        let cost = cost.min(MAX_COST);
        row.cost_nano_usd = cost;
        row.at = self.at;
        let told = self.has_seen_openings().then(|| row.clone());
        self.budgets.store.settle(self.id, row);
        if let Some(row) = &told {
            self.budgets.tell(&self.parts, row, cost);
        }
        self.end(cost, told.is_some());
    }

    /// Whether budgets have been opened since it was taken.
    fn has_seen_openings(&self) -> bool {
        self.budgets.opened.load(Ordering::Acquire) != self.opened
    }

    /// The attempt was never made: it costs nothing and has no row.
    pub fn release(mut self) {
        self.budgets.store.release(self.id);
        self.end(NanoUsd(0), true);
    }

    /// `told`: budgets that were opened since know the cost.
    fn end(&mut self, cost: NanoUsd, told: bool) {
        self.ended = true;
        give_back(&self.parts, self.worst, cost);
        let parts = self.budgets.inherited.end(self.id);
        for part in parts.iter().filter(|_| !told) {
            part.account.with(part.per, part.starts, |slot, index| {
                let window = &mut slot.windows[index];
                window.unseen = window.unseen.saturating_add(cost.0);
            });
        }
        give_back(&parts, self.worst, NanoUsd(0));
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.ended {
            self.budgets.store.lose(self.id);
            self.end(self.worst.min(MAX_COST), false);
        }
    }
}

/// Turns what was held into what was spent, and wakes who waits for that.
pub(super) fn give_back(parts: &[Part], worst: NanoUsd, cost: NanoUsd) {
    for part in parts {
        let waker = part.account.with(part.per, part.starts, |slot, index| {
            let window = &mut slot.windows[index];
            window.held = window.held.saturating_sub(worst.0);
            window.spent = window.spent.saturating_add(cost.0);
            slot.queue.stir()
        });
        if let Some(waker) = waker.flatten() {
            waker.wake();
        }
    }
}
