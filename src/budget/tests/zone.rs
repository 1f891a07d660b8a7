//! Another time zone while windows run.

use super::*;
use crate::ledger::{Lease, LeaseAsk, LeaseDone, RunningHold, StoreError};
use chrono_tz::Europe;

/// A request that gives up after a few answers of the store, where one should do.
fn hold(bench: &Bench, charges: &[Charge<'_>], worst: u64, now: DateTime<Utc>) -> Hold {
    for _ in 0..5 {
        match bench.budgets.hold("r", charges, NanoUsd(worst), now) {
            Ok(mut hold) => {
                hold.confirm();
                return hold;
            }
            Err(HoldError::NeedsLease(ticket)) => block_on(ticket),
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("the store has answered, and it is asked again");
}

/// On the last evening of March.
fn march(dir: &Dir, zone: Tz) -> Bench {
    let options = Options { now: || at("2026-03-31T23:00:00Z"), ..options() };
    let ledger = Ledger::open(&dir.db(), &options).unwrap();
    Bench { budgets: Budgets::new(ledger.clone(), zone), ledger }
}

fn set_zone(bench: &Bench, zone: Tz) {
    bench.budgets.reloading();
    bench.budgets.set_zone(zone);
    bench.budgets.reloaded();
}

/// London's March begins with that of UTC and ends an hour before it.
#[test]
fn a_window_that_another_zone_makes_longer_stays_one() {
    let dir = Dir::new();
    let bench = march(&dir, Europe::London);
    let month = [cap(1_000, Per::Month)];
    let charges = [key("k", &month)];
    let turn = at("2026-03-31T23:00:00Z");
    hold(&bench, &charges, 100, turn - Span::minutes(1)).settle(NanoUsd(70), row("k"));
    let running = hold(&bench, &charges, 100, turn - Span::minutes(1));
    set_zone(&bench, Tz::UTC);
    let view = |now| {
        let view = bench.one(ScopeKind::Key, "k", Per::Month, now);
        (view.spent.0, view.held.0)
    };
    // The next window is asked for before this one ends.
    for seconds in [-3, -2, 0, 1] {
        let now = turn + Span::seconds(seconds);
        hold(&bench, &charges, 100, now).release();
        assert_eq!(view(now), (70, 100), "{seconds}");
    }
    running.settle(NanoUsd(30), row("k"));
    let late = at("2026-03-31T23:59:59Z");
    hold(&bench, &charges, 100, late).settle(NanoUsd(10), row("k"));
    assert_eq!(view(late), (110, 0));
    hold(&bench, &charges, 100, late + Span::seconds(1)).release();
    assert_eq!(view(late + Span::seconds(1)), (0, 0), "April");
}

/// The same after a restart, where the store has the month as it was in London, and the hour after it.
#[test]
fn an_account_that_another_zone_makes_longer_has_what_was_spent_in_between() {
    let dir = Dir::new();
    let month = [cap(1_000, Per::Month)];
    let charges = [key("k", &month)];
    let turn = at("2026-03-31T23:00:00Z");
    let old = march(&dir, Europe::London);
    hold(&old, &charges, 100, turn - Span::minutes(1)).settle(NanoUsd(70), row("k"));
    hold(&old, &charges, 100, turn + Span::minutes(1)).settle(NanoUsd(5), row("k"));
    drop(old);
    let new = march(&dir, Tz::UTC);
    let now = turn + Span::minutes(2);
    let running = new.hold(&[key("k", &[])], 3, now).unwrap();
    hold(&new, &charges, 100, now).settle(NanoUsd(20), row("k"));
    running.settle(NanoUsd(3), row("k"));
    assert!(new.ledger.flush());
    drop(new);
    let new = march(&dir, Tz::UTC);
    hold(&new, &charges, 100, now).release();
    let view = new.one(ScopeKind::Key, "k", Per::Month, now);
    assert_eq!((view.spent.0, view.held.0), (98, 0), "each row once");
}

/// Berlin's days begin an hour before those of UTC do.
#[test]
fn a_window_that_begins_before_the_last_one_ended_holds_what_runs_in_both() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let day = [cap(1_000, Per::Day)];
    let charges = [key("k", &day)];
    let turn = at("2026-11-22T00:00:00Z");
    let before = hold(&bench, &charges, 100, turn - Span::minutes(61));
    set_zone(&bench, Europe::Berlin);
    let within = hold(&bench, &charges, 200, turn - Span::minutes(59));
    hold(&bench, &charges, 50, turn - Span::minutes(58)).settle(NanoUsd(7), row("k"));
    // The old day isn't over.
    let old = turn - Span::seconds(2);
    hold(&bench, &charges, 1, old).release();
    assert_eq!(bench.day(old), (7, 300));
    hold(&bench, &charges, 1, turn).release();
    assert_eq!(bench.day(turn), (7, 200));
    within.settle(NanoUsd(20), row("k"));
    before.settle(NanoUsd(10), row("k"));
    assert_eq!(bench.day(turn), (27, 0));
    hold(&bench, &charges, 973, turn).release();
}

/// A store that answers at once, and a hundred times with nothing.
#[derive(Default)]
struct Prompt(AtomicU64);

impl Store for Prompt {
    fn healthy(&self) -> bool {
        true
    }
    fn hold(&self, _: HoldNote<'_>, _: bool) -> Result<i64, StoreError> {
        Ok(1)
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
        let enough = self.0.fetch_add(1, Ordering::Relaxed) >= 100;
        done(Ok(Lease { upto: if enough { ask.want } else { 0 }, ..Lease::default() }));
    }
}

/// Whatever is wrong with the books, who waits for the store can be told that it takes too long.
#[test]
fn who_asks_again_lets_others_go_first() {
    let budgets = Budgets::new(Arc::new(Prompt::default()), Tz::UTC);
    let day = [cap(1_000, Per::Day)];
    let charges = [key("k", &day)];
    let mut asking = std::pin::pin!(budgets.acquire("r", &charges, NanoUsd(1), noon, false));
    let waker = Waker::from(Arc::new(Thread(std::thread::current())));
    let mut polls = 1;
    let held = loop {
        match asking.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(held) => break held.unwrap(),
            Poll::Pending => polls += 1,
        }
    };
    assert!(polls > 100, "{polls}");
    held.release();
}
