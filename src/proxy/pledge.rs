//! The money of a running attempt, which ends in the ledger and in the metric alike.

use crate::budget::Hold;
use crate::ledger::Row;
use crate::units::NanoUsd;
use prometheus::Counter;

/// Money held for an attempt. Where nobody lives to settle it (a panic), the hold books its worst
/// case, and the metric says so as well.
#[must_use = "a pledge that is dropped is booked at its worst case"]
pub struct Pledge {
    hold: Option<Hold>,
    spent: Counter,
}

impl Pledge {
    /// Of this hold; what it comes to is added to `spent`, in dollars.
    pub fn new(hold: Hold, spent: Counter) -> Self {
        Pledge { hold: Some(hold), spent }
    }

    /// The attempt ended and cost this much.
    pub fn settle(mut self, cost: NanoUsd, row: Row) {
        if let Some(hold) = self.hold.take() {
            hold.settle(cost, row);
            self.count(cost);
        }
    }

    /// What is held: nothing where nothing bounds the attempt, nor any budget.
    pub fn amount(&self) -> NanoUsd {
        self.hold.as_ref().map(Hold::amount).unwrap_or_default()
    }

    /// The attempt was never made.
    pub fn release(mut self) {
        if let Some(hold) = self.hold.take() {
            hold.release();
        }
    }

    fn count(&self, cost: NanoUsd) {
        #[allow(clippy::cast_precision_loss)] // a metric is a float; the ledger is not
        self.spent.inc_by(cost.0 as f64 / 1e9);
    }
}

impl Drop for Pledge {
    fn drop(&mut self) {
        if let Some(hold) = self.hold.take() {
            self.count(hold.amount());
        }
    }
}
