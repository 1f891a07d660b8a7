use super::*;
use parking_lot::Mutex as Lock;
use std::collections::VecDeque;

fn limits(rpm: Option<u64>, tpm: Option<u64>, parallel: Option<u64>) -> Limits {
    Limits { rpm, tpm, parallel }
}

fn key(id: &str, limits: Limits) -> Demand<'_> {
    Demand { kind: ScopeKind::Key, id, limits }
}

fn ms(start: Instant, ms: u64) -> Instant {
    start + Duration::from_millis(ms)
}

/// The most that any interval of sixty seconds contains, both ends included.
fn busiest(times: &[u64], weight: u64) -> u64 {
    let (mut window, mut most) = (VecDeque::new(), 0);
    for &t in times {
        window.push_back(t);
        while window.front().is_some_and(|&first| first + 60_000 < t) {
            window.pop_front();
        }
        most = most.max(window.len() as u64 * weight);
    }
    most
}

#[test]
fn rpm_100_with_ten_threads_over_three_minutes() {
    let start = Instant::now();
    let limiter = Limiter::new(start);
    let admitted = Lock::new(Vec::new());
    // All threads see one clock: they meet before each step of it.
    let tick = std::sync::Barrier::new(10);
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                for t in (0..180_000).step_by(61) {
                    tick.wait();
                    let demand = key("k", limits(Some(100), None, None));
                    if limiter.admit(&[demand], 1, ms(start, t)).is_ok() {
                        admitted.lock().push(t);
                    }
                }
            });
        }
    });
    let mut times = admitted.into_inner();
    times.sort_unstable();
    assert_eq!(busiest(&times, 1), 100);
    for minute in 0..3 {
        let from = minute * 60_000;
        let n = times.iter().filter(|t| (from..from + 60_000).contains(*t)).count();
        assert!(n >= 95, "minute {minute}: {n}");
    }
}

#[test]
fn a_saturated_minute_admits_95_of_100() {
    let start = Instant::now();
    for pace in [1, 90, 333, 590] {
        let limiter = Limiter::new(start);
        let mut times = Vec::new();
        for t in (0..180_000).step_by(pace) {
            let demand = key("k", limits(Some(100), None, None));
            if limiter.admit(&[demand], 1, ms(start, t)).is_ok() {
                times.push(t);
            }
        }
        assert!(busiest(&times, 1) <= 100);
        for minute in 0..3 {
            let from = minute * 60_000;
            let n = times.iter().filter(|t| (from..from + 60_000).contains(*t)).count();
            assert!(n >= 95, "pace {pace}, minute {minute}: {n}");
        }
    }
}

#[test]
fn tpm_100_with_175_tokens_is_never_admitted_and_takes_nothing() {
    let now = Instant::now();
    let limiter = Limiter::new(now);
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let all = limits(Some(9), Some(100), Some(9));
                    let refusal = limiter.admit(&[key("k", all)], 175, now).err().unwrap();
                    assert!(refusal.never && refusal.limit == LimitName::Tpm);
                    assert_eq!((refusal.max, refusal.remaining), (100, 100));
                }
            });
        }
    });
    assert_eq!(limiter.in_use(), 0);
    assert!(limiter.admit(&[key("k", limits(Some(1), Some(100), Some(1)))], 100, now).is_ok());
}

#[test]
fn tokens_are_reserved_at_once_and_what_was_not_used_comes_back() {
    let now = Instant::now();
    let limiter = Limiter::new(now);
    let tpm = || key("k", limits(None, Some(100), None));
    let mut first = limiter.admit(&[tpm()], 70, now).unwrap();
    let refusal = limiter.admit(&[tpm()], 40, now).err().unwrap();
    assert_eq!((refusal.remaining, refusal.never), (30, false));
    assert!(refusal.reset >= Duration::from_secs(60));
    first.correct(10, ms(now, 500));
    let mut second = limiter.admit(&[tpm()], 90, ms(now, 500)).unwrap();
    second.correct(500, ms(now, 600));
    assert!(limiter.admit(&[tpm()], 1, ms(now, 60_300)).is_err(), "above the limit it drains");
    assert!(limiter.admit(&[tpm()], 100, ms(now, 60_750)).is_ok());
}

#[test]
fn a_refusal_by_one_scope_leaves_the_others_as_they_were() {
    let now = Instant::now();
    let limiter = Limiter::new(now);
    let some = limits(Some(5), Some(50), Some(5));
    let none_left = limits(None, None, Some(0));
    let ask = |team| {
        let demands = [
            key("k", some),
            Demand { kind: ScopeKind::Team, id: "t", limits: team },
            Demand { kind: ScopeKind::Global, id: "", limits: some },
        ];
        limiter.admit(&demands, 10, now)
    };
    for _ in 0..20 {
        let refusal = ask(none_left).err().unwrap();
        assert_eq!((refusal.kind, refusal.limit), (ScopeKind::Team, LimitName::Parallel));
    }
    let permits: Vec<_> = (0..5).map(|_| ask(some).unwrap()).collect();
    assert_eq!(limiter.in_use(), 15);
    assert_eq!(ask(some).err().unwrap().kind, ScopeKind::Key, "the first that was asked is named");
    drop(permits);
    assert_eq!(limiter.in_use(), 0);
    assert_eq!(ask(some).err().unwrap().limit, LimitName::Rpm, "rpm stays taken");
}

#[test]
fn refund_gives_everything_back_and_drop_only_parallel() {
    let now = Instant::now();
    let limiter = Limiter::new(now);
    let one = limits(Some(1), Some(10), Some(1));
    for _ in 0..3 {
        limiter.admit(&[key("k", one)], 10, now).unwrap().refund(now);
        assert_eq!(limiter.in_use(), 0);
    }
    let permit = limiter.admit(&[key("k", one)], 4, now).unwrap();
    let left: Vec<_> = permit.remaining().iter().map(|r| (r.limit, r.max, r.remaining)).collect();
    let expected = [(LimitName::Parallel, 1, 0), (LimitName::Rpm, 1, 0), (LimitName::Tpm, 10, 6)];
    assert_eq!(left, expected);
    drop(permit);
    assert_eq!(limiter.in_use(), 0);
    let refusal = limiter.admit(&[key("k", one)], 4, now).err().unwrap();
    assert_eq!(refusal.limit, LimitName::Rpm);
}

#[test]
fn the_same_scope_twice_counts_once_with_the_tighter_limit() {
    let now = Instant::now();
    let limiter = Limiter::new(now);
    let twice = [key("k", limits(None, None, Some(9))), key("k", limits(None, None, Some(1)))];
    let _permit = limiter.admit(&twice, 1, now).unwrap();
    assert_eq!(limiter.in_use(), 1);
    assert_eq!(limiter.admit(&twice, 1, now).err().unwrap().max, 1);
}

#[test]
fn parallel_holds_under_threads_and_scopes_in_any_order() {
    let now = Instant::now();
    let limiter = Limiter::new(now);
    let most = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (limiter, most) = (&limiter, &most);
            scope.spawn(move || {
                for i in 0..2_000 {
                    let three = limits(None, None, Some(3));
                    let mut ids = ["a", "b", "c"];
                    ids.rotate_left((thread + i) % 3);
                    let demands = ids.map(|id| key(id, three));
                    if let Ok(_permit) = limiter.admit(&demands, 1, now) {
                        most.fetch_max(limiter.in_use(), std::sync::atomic::Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert!(most.into_inner() <= 9);
    assert_eq!(limiter.in_use(), 0);
}

#[test]
fn keep_forgets_only_what_is_neither_named_nor_in_use() {
    let now = Instant::now();
    let limiter = Limiter::new(now);
    let one = limits(Some(1), None, Some(1));
    let permit = limiter.admit(&[key("gone", one)], 1, now).unwrap();
    limiter.keep(|_, _| false, now);
    assert_eq!(limiter.in_use(), 1);
    drop(permit);
    limiter.keep(|_, _| false, now);
    assert!(limiter.admit(&[key("gone", one)], 1, now).is_err(), "its minute is not over");
    limiter.keep(|_, _| false, ms(now, 61_000));
    let mut names = 0;
    limiter.scopes.each(|_, _, _| names += 1);
    assert_eq!(names, 0);
}

#[test]
#[ignore = "a measurement: cargo test --release -- --ignored --nocapture cost_of"]
fn cost_of_an_admission() {
    let limiter = Limiter::new(Instant::now());
    let all = limits(Some(u64::MAX), Some(u64::MAX), Some(u64::MAX));
    let one = [key("k", all)];
    let six = ScopeKind::ALL.map(|kind| Demand { kind, id: "x", limits: all });
    for (name, demands) in [("one scope", &one[..]), ("six scopes", &six[..])] {
        let began = Instant::now();
        for _ in 0..1_000_000 {
            drop(limiter.admit(demands, 10, began).unwrap());
        }
        println!("{name}: {} ns", began.elapsed().as_nanos() / 1_000_000);
    }
}

#[test]
fn parallel_that_a_reload_adds_counts_what_runs_already() {
    let now = Instant::now();
    let limiter = Limiter::new(now);
    let mut running: Vec<_> = (0..3)
        .map(|_| limiter.admit(&[key("k", limits(Some(9), None, None))], 1, now).unwrap())
        .collect();
    let added = || limiter.admit(&[key("k", limits(Some(9), None, Some(3)))], 1, now);
    assert_eq!(added().err().unwrap().limit, LimitName::Parallel);
    running.pop();
    running.push(added().unwrap());
    assert!(added().is_err());
    drop(running);
    assert_eq!(limiter.in_use(), 0);
}
