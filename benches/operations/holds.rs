//! Money: held on four accounts, and settled.

use super::records::row;
use super::{Clock, LANES, Operation, Work, contended};
use chrono::{DateTime, TimeDelta, Utc};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use tokio::runtime::{Builder, Runtime};
use tollbar::budget::{Budgets, Charge, Hold};
use tollbar::ledger::{
    HoldNote, Lease, LeaseAsk, LeaseDone, Ledger, Options, Row, RunningHold, Store, StoreError,
};
use tollbar::scope::{Budget, Per, ScopeKind};
use tollbar::units::NanoUsd;

/// A cap that nobody reaches here, of which a lease is a large piece.
const CAP: NanoUsd = NanoUsd(1 << 52);

/// What a request may cost, and what it costs.
const WORST: NanoUsd = NanoUsd(2_000_000);
const COST: NanoUsd = NanoUsd(300_000);

pub fn operations() -> Vec<Operation> {
    vec![
        contended("hold-settle/memory", || Box::new(Till::new(Arc::new(Yes::default()), None))),
        contended("hold-settle/ledger", || {
            let dir = Dir::new();
            let ledger = Ledger::open(&dir.0.join("tollbar.db"), &Options::default()).unwrap();
            Box::new(Till::new(ledger.clone(), Some((ledger, dir))))
        }),
    ]
}

/// Budgets, and those who spend them.
struct Till {
    budgets: Arc<Budgets>,
    clock: Clock,
    noon: DateTime<Utc>,
    /// By lane: its key and its user.
    names: Vec<(String, String)>,
    row: Row,
    runtime: Runtime,
    ledger: Option<(Arc<Ledger>, Dir)>,
}

impl Till {
    fn new(store: Arc<dyn Store>, ledger: Option<(Arc<Ledger>, Dir)>) -> Till {
        let noon = "2026-11-21T12:00:00Z".parse().unwrap();
        let till = Till {
            budgets: Budgets::new(store, chrono_tz::Tz::UTC),
            clock: Clock::default(),
            noon,
            names: (0..LANES).map(|n| (format!("key-{n}"), format!("user-{n}"))).collect(),
            row: row(noon),
            runtime: Builder::new_current_thread().build().unwrap(),
            ledger,
        };
        (0..LANES).for_each(|lane| till.run(lane));
        till
    }

    /// As a request asks; the store is waited for only where a lease is used up.
    fn hold(&self, lane: usize) -> Hold {
        let (key, user) = &self.names[lane];
        let daily = [Budget { cap: CAP, per: Per::Day }];
        let charges = [
            Charge { kind: ScopeKind::Key, id: key, budgets: &daily },
            Charge { kind: ScopeKind::User, id: user, budgets: &daily },
            Charge { kind: ScopeKind::Team, id: "web", budgets: &daily },
            Charge { kind: ScopeKind::Global, id: "", budgets: &daily },
        ];
        let now = self.noon + TimeDelta::from_std(self.clock.look(lane)).unwrap();
        let request = "req_0123456789abcdef0123456789abcdef";
        match self.budgets.hold(request, &charges, WORST, now) {
            Ok(hold) => hold,
            Err(_) => {
                let held = self.budgets.acquire(request, &charges, WORST, || now, false);
                self.runtime.block_on(held).ok().unwrap()
            }
        }
    }
}

impl Work for Till {
    fn run(&self, lane: usize) {
        self.hold(lane).settle(COST, self.row.clone());
    }

    fn rest(&self) {
        if let Some((ledger, _)) = &self.ledger {
            assert!(ledger.flush());
        }
    }
}

/// Says yes, and keeps nothing.
#[derive(Default)]
struct Yes(AtomicI64);

impl Store for Yes {
    fn healthy(&self) -> bool {
        true
    }

    fn hold(&self, _: HoldNote<'_>, _: bool) -> Result<i64, StoreError> {
        Ok(self.0.fetch_add(1, Ordering::Relaxed))
    }

    fn settle(&self, _: i64, _: Row) {}

    fn lose(&self, _: i64) {}

    fn release(&self, _: i64) {}

    fn running(&self) -> Vec<RunningHold> {
        Vec::new()
    }

    fn runs(&self, _: i64) -> bool {
        false
    }

    fn lease(&self, ask: LeaseAsk, done: LeaseDone) {
        done(Ok(Lease { upto: ask.want, ..Lease::default() }));
    }
}

/// A directory that is removed again.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tollbar-bench-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Dir(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
