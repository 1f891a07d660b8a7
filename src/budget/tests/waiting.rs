//! First come, first served.

use super::*;
use std::pin::Pin;

type Waiting<'a> = Pin<Box<dyn Future<Output = Result<Hold, Refusal>> + 'a>>;

fn poll(waiting: &mut Waiting<'_>) -> Poll<Result<Hold, Refusal>> {
    waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

fn served(waiting: Waiting<'_>) -> Hold {
    block_on(waiting).unwrap()
}

fn ask<'a>(bench: &'a Bench, charges: &'a [Charge<'a>], worst: u64) -> Waiting<'a> {
    let mut waiting: Waiting<'a> =
        Box::pin(bench.budgets.acquire("r", charges, NanoUsd(worst), noon, true));
    assert!(poll(&mut waiting).is_pending());
    waiting
}

#[test]
fn who_came_first_is_served_first_also_when_a_later_one_would_fit() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let daily = [cap(100, Per::Day)];
    let charges = [key("k", &daily)];
    let running = bench.hold(&charges, 60, noon()).unwrap();
    let other = bench.hold(&charges, 30, noon()).unwrap();
    let mut large = ask(&bench, &charges, 50);
    let mut small = ask(&bench, &charges, 5);
    let refusal = bench.hold(&charges, 5, noon()).err().unwrap();
    assert!(refusal.only_holds, "nobody passes those who wait");
    other.release();
    assert!(poll(&mut small).is_pending());
    assert!(poll(&mut large).is_pending(), "40 are free, and it needs 50");
    running.settle(NanoUsd(20), row("k"));
    assert!(poll(&mut small).is_pending());
    let (large, small) = (served(large), served(small));
    assert_eq!(bench.day(noon()), (20, 55));
    large.release();
    small.release();
    bench.hold(&charges, 80, noon()).unwrap().release();
}

#[test]
fn who_gives_up_makes_room_for_the_next() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let daily = [cap(100, Per::Day)];
    let charges = [key("k", &daily)];
    let running = bench.hold(&charges, 60, noon()).unwrap();
    let large = ask(&bench, &charges, 90);
    let small = ask(&bench, &charges, 40);
    drop(large);
    served(small).release();
    running.release();
}

#[test]
fn what_no_settling_can_make_fit_does_not_wait() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let daily = [cap(100, Per::Day)];
    let charges = [key("k", &daily)];
    bench.hold(&charges, 60, noon()).unwrap().settle(NanoUsd(60), row("k"));
    let refused = block_on(bench.budgets.acquire("r", &charges, NanoUsd(50), noon, true));
    assert!(!refused.err().unwrap().only_holds);
}

/// Everybody is served in the end, whoever runs when, also when waiting for several accounts.
#[test]
fn nobody_is_forgotten() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let served = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..16u64 {
            let (bench, served) = (&bench, &served);
            scope.spawn(move || {
                let (own, all) = ([cap(30_000, Per::Day)], [cap(50_000, Per::Day)]);
                let id = format!("k{}", thread % 3);
                let charges =
                    [key(&id, &own), Charge { kind: ScopeKind::Global, id: "", budgets: &all }];
                for _ in 0..20 {
                    let hold = bench.budgets.acquire("r", &charges, NanoUsd(10_000), noon, true);
                    let hold = block_on(hold).unwrap();
                    std::thread::yield_now();
                    hold.settle(NanoUsd(1), row(&id));
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(served.into_inner(), 320);
    let views = bench.budgets.view(noon());
    assert_eq!(views.iter().map(|v| v.held.0).sum::<u64>(), 0);
}

/// Who waits finds out that the budget it waits for may have changed.
#[test]
fn a_change_is_told_to_everybody_who_waits() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let daily = [cap(100, Per::Day)];
    let charges = [key("k", &daily)];
    let running = bench.hold(&charges, 60, noon()).unwrap();
    for by_reload in [true, false] {
        let waiting = [50, 90].map(|worst| ask(&bench, &charges, worst));
        match by_reload {
            true => bench.budgets.keep(|_, _, _| true),
            false => bench.budgets.revise(&charges[0]),
        }
        for waiting in waiting {
            let refusal = block_on(waiting).err().unwrap();
            assert!(refusal.only_holds, "{refusal:?}");
        }
    }
    running.release();
}

/// Who waits when a window ends is served from the next one, in turn, whatever still runs.
#[test]
fn a_new_window_serves_who_waits() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let daily = [cap(100, Per::Day)];
    let charges = [key("k", &daily)];
    let running = bench.hold(&charges, 80, noon()).unwrap();
    let tomorrow = AtomicBool::new(false);
    let now = || if tomorrow.load(Ordering::Relaxed) { noon() + Span::days(1) } else { noon() };
    let mut waiting = [70, 30].map(|worst| -> Waiting<'_> {
        Box::pin(bench.budgets.acquire("r", &charges, NanoUsd(worst), now, true))
    });
    assert!(waiting.iter_mut().all(|waiting| poll(waiting).is_pending()));
    bench.budgets.look_again();
    assert!(waiting.iter_mut().all(|waiting| poll(waiting).is_pending()), "the same window");
    tomorrow.store(true, Ordering::Relaxed);
    assert!(waiting.iter_mut().all(|waiting| poll(waiting).is_pending()), "nobody tells them");
    bench.budgets.look_again();
    let holds = waiting.map(served);
    assert_eq!(bench.day(noon() + Span::days(1)), (0, 100));
    holds.into_iter().for_each(Hold::release);
    running.release();
}
