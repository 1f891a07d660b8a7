//! The money of a running attempt, which ends in the ledger and in the metric alike.

use crate::budget::Hold;
use crate::ledger::Row;
use crate::units::NanoUsd;
use prometheus::Counter;

/// Money held for an attempt. Where nobody lives to settle it (a panic, the end of the process), the
/// hold books its worst case if the attempt was sent, and the metric says so as well.
#[must_use = "a pledge that is dropped is booked at its worst case, once it was sent"]
pub struct Pledge {
    hold: Option<Hold>,
    spent: Counter,
    /// The provider may have heard of the attempt.
    sent: bool,
}

impl Pledge {
    /// Of this hold; what it comes to is added to `spent`, in dollars.
    pub fn new(hold: Hold, spent: Counter) -> Self {
        Pledge { hold: Some(hold), spent, sent: false }
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

    /// From now on the provider may hear of the attempt: dropped, it is booked.
    pub fn send(&mut self) {
        self.sent = true;
    }

    /// Whether the provider may have heard of it.
    pub fn is_sent(&self) -> bool {
        self.sent
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
        match self.hold.take() {
            Some(hold) if self.sent => self.count(hold.amount()),
            Some(hold) => hold.release(),
            None => {}
        }
    }
}
