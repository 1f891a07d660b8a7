//! Budgets on a real ledger.

mod kill;
mod opened;
mod waiting;
mod zone;

use super::*;
use crate::ledger::tests::{Dir, at, options};
use crate::ledger::{Filter, Ledger, Options, Row, requests};
use crate::units::UsageSource;
use chrono::Duration as Span;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, Wake, Waker};

const DOLLAR: u64 = 1_000_000_000;

struct Thread(std::thread::Thread);

impl Wake for Thread {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Thread(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn noon() -> DateTime<Utc> {
    at("2026-11-21T12:00:00Z")
}

struct Bench {
    ledger: Arc<Ledger>,
    budgets: Arc<Budgets>,
}

fn bench(dir: &Dir, zone: Tz) -> Bench {
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    let budgets = Budgets::new(ledger.clone(), zone);
    Bench { ledger, budgets }
}

fn cap(nano: u64, per: Per) -> Budget {
    Budget { cap: NanoUsd(nano), per }
}

fn key<'a>(id: &'a str, budgets: &'a [Budget]) -> Charge<'a> {
    Charge { kind: ScopeKind::Key, id, budgets }
}

fn row(key: &str) -> Row {
    let mut row = Row::new(noon());
    row.key_id = key.into();
    row.team = Some("t".into());
    row.model = "m".into();
    row.provider = "p".into();
    row.outcome = "ok".into();
    row.usage_source = UsageSource::Reported;
    row
}

impl Bench {
    fn hold(
        &self,
        charges: &[Charge<'_>],
        worst: u64,
        now: DateTime<Utc>,
    ) -> Result<Hold, Refusal> {
        let mut hold = self.hold_by_old(charges, worst, now)?;
        hold.confirm();
        Ok(hold)
    }

    /// By a request whose configuration may not be in force any more.
    fn hold_by_old(
        &self,
        charges: &[Charge<'_>],
        worst: u64,
        now: DateTime<Utc>,
    ) -> Result<Hold, Refusal> {
        block_on(self.budgets.acquire("r", charges, NanoUsd(worst), || now, false))
    }

    fn one(&self, kind: ScopeKind, id: &str, per: Per, now: DateTime<Utc>) -> AccountView {
        let views = self.budgets.view(now).into_iter();
        let end = |v: &AccountView| v.window_end.is_none_or(|end| end > now);
        views.filter(end).find(|v| v.kind == kind && v.id == id && v.per == per).unwrap()
    }

    /// (spent, held) of key `k` per day.
    fn day(&self, now: DateTime<Utc>) -> (u64, u64) {
        let view = self.one(ScopeKind::Key, "k", Per::Day, now);
        (view.spent.0, view.held.0)
    }
}

fn ledger_sum(dir: &Dir) -> u64 {
    let rows = requests(&dir.db(), &Filter::default(), u64::MAX).unwrap();
    rows.iter().map(|row| row.cost_nano_usd.0).sum()
}

#[test]
fn a_thousand_at_once_use_the_cap_and_never_pass_it() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let (admitted, billed) = (AtomicU64::new(0), AtomicU64::new(0));
    let (cost, worst) = (DOLLAR / 100, DOLLAR / 100 + 1_000);
    std::thread::scope(|scope| {
        for thread in 0..32 {
            let (bench, admitted, billed) = (&bench, &admitted, &billed);
            scope.spawn(move || {
                let daily = [cap(DOLLAR, Per::Day)];
                let id = format!("k{}", thread % 8);
                for _ in 0..32 {
                    let charges = [
                        key(&id, &daily),
                        Charge { kind: ScopeKind::Global, id: "", budgets: &daily },
                    ];
                    let Ok(hold) = bench.hold(&charges, worst, noon()) else { continue };
                    admitted.fetch_add(1, Ordering::Relaxed);
                    let view = bench.one(ScopeKind::Global, "", Per::Day, noon());
                    assert!(view.spent.0 + view.held.0 <= DOLLAR, "{view:?}");
                    billed.fetch_add(cost, Ordering::Relaxed);
                    hold.settle(NanoUsd(cost), row(&id));
                }
            });
        }
    });
    let billed = billed.into_inner();
    assert!(billed <= DOLLAR && billed > DOLLAR / 100 * 95, "{billed}");
    bench.ledger.flush();
    assert_eq!(ledger_sum(&dir), billed);
    let view = bench.one(ScopeKind::Global, "", Per::Day, noon());
    assert_eq!((view.spent.0, view.held.0), (billed, 0));
    let keys: u64 =
        (0..8).map(|i| bench.one(ScopeKind::Key, &format!("k{i}"), Per::Day, noon()).spent.0).sum();
    assert_eq!(keys, billed);
}

#[test]
fn a_refusal_says_the_numbers_and_leaves_every_other_account_as_it_was() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let (much, little) = ([cap(DOLLAR, Per::Day), cap(DOLLAR, Per::Month)], [cap(100, Per::Day)]);
    let scopes = ScopeKind::ALL;
    for tight in scopes {
        let id = format!("of {tight}");
        let charges = scopes.map(|kind| {
            let budgets = if kind == tight { &little[..] } else { &much[..] };
            Charge { kind, id: &id, budgets }
        });
        let first = bench.hold(&charges, 60, noon()).unwrap();
        first.settle(NanoUsd(50), row("k"));
        let running = bench.hold(&charges, 30, noon()).unwrap();
        let before = bench.budgets.view(noon());
        let refusal = bench.hold(&charges, 40, noon()).err().unwrap();
        assert_eq!((refusal.kind, &*refusal.id, refusal.per), (tight, &*id, Per::Day));
        let said = [refusal.cap, refusal.spent, refusal.held, refusal.left()].map(|n| n.0);
        assert_eq!(said, [100, 50, 30, 20]);
        assert_eq!(refusal.window_end, Some(at("2026-11-22T00:00:00Z")));
        assert!(refusal.only_holds && !refusal.store_failed);
        assert!(!bench.hold(&charges, 51, noon()).err().unwrap().only_holds);
        assert_eq!(bench.budgets.view(noon()), before);
        running.release();
        let held: u64 = bench.budgets.view(noon()).iter().map(|v| v.held.0).sum();
        assert_eq!(held, 0);
    }
}

#[test]
fn a_hold_ends_once_as_more_less_nothing_or_lost() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let daily = [cap(1_000, Per::Day)];
    let hold = || bench.hold(&[key("k", &daily)], 100, noon()).unwrap();
    hold().settle(NanoUsd(30), row("k"));
    assert_eq!(bench.day(noon()), (30, 0));
    hold().settle(NanoUsd(170), row("k"));
    assert_eq!(bench.day(noon()), (200, 0));
    hold().release();
    assert_eq!(bench.day(noon()), (200, 0));
    let lost = hold();
    assert_eq!(bench.day(noon()), (200, 100));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _lost = lost;
        std::panic::resume_unwind(Box::new("a bug"));
    }));
    assert!(panicked.is_err());
    assert_eq!(bench.day(noon()), (300, 0));
    bench.ledger.flush();
    let rows = requests(&dir.db(), &Filter::default(), 9).unwrap();
    let rows: Vec<_> = rows.iter().map(|r| (&*r.outcome, r.cost_nano_usd.0, &*r.key_id)).collect();
    assert_eq!(rows, [("lost", 100, "k"), ("ok", 170, "k"), ("ok", 30, "k")]);
    drop(bench);
    let bench = super::tests::bench(&dir, Tz::UTC);
    let refusal = bench.hold(&[key("k", &daily)], 701, noon()).err().unwrap();
    assert_eq!(refusal.spent.0, 300, "a restart changes nothing");
}

#[test]
fn a_cap_changed_by_a_reload_holds_from_the_next_request_on() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let ask = |nano, worst| bench.hold(&[key("k", &[cap(nano, Per::Day)])], worst, noon());
    let running = ask(1_000, 600).unwrap();
    assert_eq!(ask(500, 1).err().unwrap().cap.0, 500);
    assert!(ask(1_000, 401).is_err());
    ask(2_000, 1_400).unwrap().release();
    running.release();
}

#[test]
fn a_window_turns_once_in_berlin_on_both_nights_and_loses_nothing() {
    let nights = [
        ("2026-03-28T22:59:59Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),
        ("2026-10-24T21:59:59Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
        ("2026-10-31T22:59:59Z", "2026-10-31T23:00:00Z", "2026-11-01T23:00:00Z"),
    ];
    for (before, from, to) in nights {
        let dir = Dir::new();
        let bench = bench(&dir, chrono_tz::Europe::Berlin);
        let daily = [cap(1_000, Per::Day), cap(10_000, Per::Total)];
        let hold = |now| bench.hold(&[key("k", &daily)], 100, now).unwrap();
        let old = hold(at(before));
        let mut now = at(from);
        let mut spent = 0;
        // Every hour of the day, also the one that comes twice.
        while now < at(to) {
            hold(now).settle(NanoUsd(10), row("k"));
            spent += 10;
            assert_eq!(bench.day(now), (spent, 0), "{now}");
            now += Span::minutes(60);
        }
        old.settle(NanoUsd(70), row("k"));
        assert_eq!(bench.day(at(from)), (spent, 0), "what was held before midnight is of that day");
        hold(at(to)).settle(NanoUsd(1), row("k"));
        assert_eq!(bench.day(at(to)), (1, 0));
        let total = bench.one(ScopeKind::Key, "k", Per::Total, now);
        assert_eq!((total.spent.0, total.window_end), (spent + 71, None));
        drop(bench);
        let bench = super::tests::bench(&dir, chrono_tz::Europe::Berlin);
        for (now, expected) in [(at(before), 70), (at(from), spent), (at(to), 1)] {
            bench.hold(&[key("k", &daily)], 1, now).unwrap().release();
            assert_eq!(bench.day(now), (expected, 0), "after a restart, {now}");
        }
    }
}

#[test]
fn increments_on_both_sides_of_a_turn_are_all_kept() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let midnight = at("2026-12-01T00:00:00Z");
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let bench = &bench;
            scope.spawn(move || {
                let budgets = [cap(DOLLAR, Per::Minute), cap(DOLLAR, Per::Month)];
                for i in -50..50 {
                    let now = midnight + Span::milliseconds(i * 20 + thread);
                    let hold = bench.hold(&[key("k", &budgets)], 5, now).unwrap();
                    hold.settle(NanoUsd(2), row("k"));
                }
            });
        }
    });
    for per in [Per::Minute, Per::Month] {
        for now in [midnight - Span::seconds(1), midnight] {
            assert_eq!(bench.one(ScopeKind::Key, "k", per, now).spent.0, 800, "{per} {now}");
        }
    }
}

#[test]
fn two_processes_share_a_cap() {
    let dir = Dir::new();
    let (one, two) = (bench(&dir, Tz::UTC), bench(&dir, Tz::UTC));
    let billed = AtomicU64::new(0);
    let daily = [cap(10_000, Per::Day)];
    std::thread::scope(|scope| {
        for bench in [&one, &two, &one, &two] {
            scope.spawn(|| {
                for _ in 0..100 {
                    if let Ok(hold) = bench.hold(&[key("k", &daily)], 50, noon()) {
                        billed.fetch_add(50, Ordering::Relaxed);
                        hold.settle(NanoUsd(50), row("k"));
                    }
                }
            });
        }
    });
    let so_far = billed.load(Ordering::Relaxed);
    assert!(so_far <= 10_000, "{so_far}");
    drop(one);
    let mut more = 0;
    while let Ok(hold) = two.hold(&[key("k", &daily)], 50, noon() + Span::seconds(5 + more)) {
        hold.settle(NanoUsd(50), row("k"));
        more += 1;
    }
    assert_eq!(so_far + more as u64 * 50, 10_000, "what the other had leased came back");
    assert_eq!(two.day(noon()), (10_000, 0));
}

#[test]
fn what_another_process_may_spend_is_reserved_and_not_spent() {
    let dir = Dir::new();
    let (one, two) = (bench(&dir, Tz::UTC), bench(&dir, Tz::UTC));
    let daily = [cap(10_000, Per::Day)];
    one.hold(&[key("k", &daily)], 50, noon()).unwrap().settle(NanoUsd(50), row("k"));
    let _held = two.hold(&[key("k", &daily)], 50, noon()).unwrap();
    let seen = two.one(ScopeKind::Key, "k", Per::Day, noon());
    let (spent, reserved) = (seen.spent.0, seen.elsewhere.0);
    // What the first has leased is either known to be spent or still reserved.
    assert!(spent <= 50 && reserved > 0, "{seen:?}");
    assert!(spent + reserved > 50 && spent + reserved + 50 <= 10_000, "{seen:?}");
    let refusal = two.hold(&[key("k", &daily)], 10_000, noon()).err().unwrap();
    assert_eq!((refusal.spent.0, refusal.elsewhere.0, refusal.held.0), (spent, reserved, 50));
}

/// A clock that was ahead: what other processes had then isn't believed until it has caught up.
#[test]
fn what_another_process_may_spend_is_asked_for_again_when_the_clock_was_set_back() {
    let dir = Dir::new();
    let (one, two) = (bench(&dir, Tz::UTC), bench(&dir, Tz::UTC));
    let daily = [cap(100, Per::Day)];
    let running = one.hold(&[key("k", &daily)], 90, noon()).unwrap();
    let ahead = noon() + Span::hours(1);
    assert!(two.hold(&[key("k", &daily)], 20, ahead).is_err());
    running.release();
    drop(one);
    two.hold(&[key("k", &daily)], 20, noon()).unwrap().release();
}

#[test]
fn a_failing_store_refuses_unless_it_may_fail_open() {
    let dir = Dir::new();
    let options = Options { busy_wait: std::time::Duration::from_millis(5), ..options() };
    let ledger = Ledger::open(&dir.db(), &options).unwrap();
    let bench = Bench { budgets: Budgets::new(ledger.clone(), Tz::UTC), ledger };
    let daily = [cap(100, Per::Day)];
    let ask = |worst| bench.hold(&[key("k", &daily)], worst, noon());
    let lock = rusqlite::Connection::open(dir.db()).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refusal = ask(10).err().unwrap();
    assert!(refusal.store_failed && refusal.cap.0 == 100);
    bench.budgets.set_fail_open(true);
    ask(60).unwrap().settle(NanoUsd(60), row("k"));
    assert!(!ask(41).err().unwrap().store_failed, "the cap holds all the same");
    lock.execute_batch("ROLLBACK").unwrap();
    while !bench.ledger.flush() {}
    ask(40).unwrap().settle(NanoUsd(30), row("k"));
    bench.ledger.flush();
    assert!(ask(11).is_err());
    assert_eq!(bench.day(noon()), (90, 0));
    drop(bench);
    let bench = super::tests::bench(&dir, Tz::UTC);
    bench.hold(&[key("k", &daily)], 10, noon()).unwrap().release();
    assert_eq!(bench.day(noon()), (90, 0));
}

#[test]
fn warm_accounts_need_no_store_and_forgotten_ones_keep_what_they_spent() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let daily = [cap(DOLLAR, Per::Day)];
    let charges = [key("k", &daily)];
    block_on(bench.budgets.warm(&charges, noon()));
    let hold = bench.budgets.hold("r", &charges, NanoUsd(1_000), noon()).unwrap();
    bench.budgets.keep(|_, _, _| false);
    assert_eq!(bench.day(noon()), (0, 1_000));
    hold.settle(NanoUsd(700), row("k"));
    while !bench.budgets.view(noon()).is_empty() {
        bench.budgets.keep(|_, _, _| false);
    }
    block_on(bench.budgets.warm(&charges, noon()));
    assert_eq!(bench.day(noon()), (700, 0));
}

#[test]
#[ignore = "a measurement: cargo test --release -- --ignored --nocapture cost_of"]
fn cost_of_hold_and_settle() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let budgets = [cap(DOLLAR * 1_000_000, Per::Day), cap(DOLLAR * 1_000_000, Per::Month)];
    let one = [key("k", &budgets)];
    let four = [ScopeKind::Key, ScopeKind::Team, ScopeKind::Model, ScopeKind::Global]
        .map(|kind| Charge { kind, id: "x", budgets: &budgets });
    for (name, charges) in [("2 accounts", &one[..]), ("8 accounts", &four[..])] {
        let (mut hold_ns, mut settle_ns) = (0, 0);
        for _ in 0..100_000 {
            let began = std::time::Instant::now();
            let hold = bench.hold(charges, 1_000_000, noon()).unwrap();
            let held = std::time::Instant::now();
            let row = row("k");
            hold.settle(NanoUsd(900_000), row);
            hold_ns += (held - began).as_nanos();
            settle_ns += held.elapsed().as_nanos();
        }
        println!("{name}: hold {} ns, settle {} ns", hold_ns / 100_000, settle_ns / 100_000);
    }
    let began = std::time::Instant::now();
    bench.ledger.flush();
    println!("{} rows; {:?} more until all are committed", bench.ledger.rows(), began.elapsed());
}
