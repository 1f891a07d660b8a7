//! Why money is not held.

use super::Charge;
use super::account::{Account, Slot};
use super::lease::LeaseTicket;
use crate::scope::{Per, ScopeKind};
use crate::units::NanoUsd;
use chrono::{DateTime, Utc};
use std::fmt;
use std::sync::Arc;

/// Why there is no hold. Nothing was taken.
#[derive(Debug)]
pub enum HoldError {
    /// An account has too little left.
    Refused(Box<Refusal>),
    /// The store was asked for a lease; try again when this is ready.
    NeedsLease(LeaseTicket),
}

/// An account that has too little left.
pub struct Refusal {
    /// What kind of scope.
    pub kind: ScopeKind,
    /// Its name.
    pub id: String,
    /// The kind of window.
    pub per: Per,
    /// The cap.
    pub cap: NanoUsd,
    /// Spent in this window, as far as is known.
    pub spent: NanoUsd,
    /// Leased by other processes, and so not to be spent here.
    pub elsewhere: NanoUsd,
    /// Held for attempts that are running.
    pub held: NanoUsd,
    /// When the window ends; `None` for one that never does.
    pub window_end: Option<DateTime<Utc>>,
    /// It would fit if other requests' holds settled to nothing.
    pub only_holds: bool,
    /// Nothing was looked at: the store fails, and budgets fail closed.
    pub store_failed: bool,
    /// Where to wait, and what had happened there when this was said.
    pub(super) account: Option<(Arc<Account>, u64, u64)>,
}

impl Refusal {
    /// What could be held if nothing were held or leased any more.
    pub fn unspent(&self) -> NanoUsd {
        NanoUsd(self.cap.0.saturating_sub(self.spent.0))
    }

    /// What could be held now.
    pub fn left(&self) -> NanoUsd {
        let taken = self.spent.saturating_add(self.elsewhere).saturating_add(self.held);
        NanoUsd(self.cap.0.saturating_sub(taken.0))
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Refusal({} {:?} per {}: cap {}, spent {}, elsewhere {}, held {}, only_holds {}, store_failed {})",
            self.kind,
            self.id,
            self.per,
            self.cap,
            self.spent,
            self.elsewhere,
            self.held,
            self.only_holds,
            self.store_failed
        )
    }
}

impl HoldError {
    pub(super) fn refused(
        account: &Arc<Account>,
        slot: &Slot,
        index: usize,
        only_holds: bool,
    ) -> HoldError {
        let window = &slot.windows[index];
        HoldError::Refused(Box::new(Refusal {
            kind: account.kind,
            id: account.id.to_string(),
            per: slot.per,
            cap: NanoUsd(window.cap),
            spent: NanoUsd(window.known_spent()),
            elsewhere: NanoUsd(window.outstanding()),
            held: NanoUsd(window.held),
            window_end: DateTime::from_timestamp(window.span.ends, 0),
            only_holds,
            store_failed: false,
            account: Some((account.clone(), slot.queue.events(), slot.queue.roused())),
        }))
    }

    /// The store fails; named is the first budget there is.
    pub(super) fn failed(charges: &[Charge<'_>]) -> HoldError {
        let first = charges.iter().find_map(|c| Some((c.kind, c.id, c.budgets.first()?)));
        let (kind, id, per, cap) = first
            .map_or((ScopeKind::Global, "", Per::Total, NanoUsd(0)), |(kind, id, budget)| {
                (kind, id, budget.per, budget.cap)
            });
        HoldError::Refused(Box::new(Refusal {
            kind,
            id: id.to_owned(),
            per,
            cap,
            spent: NanoUsd(0),
            elsewhere: NanoUsd(0),
            held: NanoUsd(0),
            window_end: None,
            only_holds: false,
            store_failed: true,
            account: None,
        }))
    }
}
