//! Targets that fail, recover and are tried.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

const RULE: Breaker =
    Breaker { failures: 3, window: Duration::from_secs(60), cooldown: Duration::from_secs(60) };

fn health() -> Arc<Health> {
    Arc::new(Health::default())
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn opens_at_exactly_the_threshold_within_the_window() {
    let (health, t) = (health(), Instant::now());
    for (at, opens) in [(0, false), (10, false), (61, false), (65, true)] {
        let permit = health.admit(t + secs(at)).ok().unwrap();
        assert_eq!(permit.failed(t + secs(at), &RULE), opens, "failure at {at} s");
    }
    assert!(health.admit(t + secs(66)).is_err());
}

#[test]
fn a_probe_that_answers_lets_the_others_in_and_its_failure_counts_as_one() {
    let (health, t) = (health(), Instant::now());
    for _ in 0..3 {
        health.admit(t).ok().unwrap().failed(t, &RULE);
    }
    let mut probe = health.admit(t + secs(60)).ok().unwrap();
    assert!(health.admit(t + secs(60)).is_err());
    probe.answers();
    let other = health.admit(t + secs(60)).ok().unwrap();
    assert!(!probe.failed(t + secs(61), &RULE), "one failure of three");
    other.succeeded(t + secs(62), None);
    assert!(health.admit(t + secs(62)).is_ok());
}

/// An answer that isn't streamed may take a minute: nobody waits for it that long.
#[test]
fn a_probe_that_is_slow_to_answer_is_not_the_only_one() {
    let (health, t) = (health(), Instant::now());
    health.admit(t).ok().unwrap().opened(t, &RULE);
    let slow = health.admit(t + secs(60)).ok().unwrap();
    assert!(health.admit(t + secs(61)).is_err());
    let second = health.admit(t + secs(62)).ok().unwrap();
    assert!(health.admit(t + secs(63)).is_err());
    second.succeeded(t + secs(63), None);
    assert!(health.admit(t + secs(63)).is_ok());
    assert!(!slow.failed(t + secs(70), &RULE), "its news is old");
    assert!(health.admit(t + secs(70)).is_ok());
}

/// The place that it gives back is its own: another probe has taken the one of now.
#[test]
fn a_slow_probe_that_is_dropped_makes_no_room_beside_the_next() {
    let (health, t) = (health(), Instant::now());
    health.admit(t).ok().unwrap().opened(t, &RULE);
    let slow = health.admit(t + secs(60)).ok().unwrap();
    let second = health.admit(t + secs(62)).ok().unwrap();
    drop(slow);
    assert!(health.admit(t + secs(63)).is_err(), "the second still probes");
    drop(second);
    assert!(health.admit(t + secs(63)).is_ok());
}

#[test]
fn a_thousand_simultaneous_failures_open_it_once() {
    let (health, t) = (health(), Instant::now());
    let permits: Vec<_> = (0..1000).map(|_| health.admit(t).ok().unwrap()).collect();
    let opened = permits.into_iter().filter_map(|p| p.failed(t, &RULE).then_some(())).count();
    assert_eq!(opened, 1);
    assert!(health.admit(t + secs(59)).is_err(), "late failures must not shorten the cooldown");
    let probe = health.admit(t + secs(60)).ok().unwrap();
    assert!(health.admit(t + secs(60)).is_err(), "one probe at a time");
    assert!(probe.failed(t + secs(61), &RULE), "a failed probe opens it again");
    assert!(health.admit(t + secs(120)).is_err());
    health.admit(t + secs(121)).ok().unwrap().succeeded(t + secs(122), None);
    assert_eq!(health.view(t + secs(122)).breaker, "closed");
}

#[test]
fn threads_agree_on_the_threshold() {
    let (health, t) = (health(), Instant::now());
    let opened: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let health = health.clone();
                scope.spawn(move || {
                    let permits: Vec<_> = (0..125).filter_map(|_| health.admit(t).ok()).collect();
                    permits.into_iter().filter_map(|p| p.failed(t, &RULE).then_some(())).count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(opened, 1);
}

#[test]
fn a_dropped_probe_makes_room_for_the_next() {
    let (health, t) = (health(), Instant::now());
    health.admit(t).ok().unwrap().opened(t, &RULE);
    let probe = health.admit(t + secs(60)).ok().unwrap();
    drop(probe);
    assert!(health.admit(t + secs(60)).is_ok());
}

#[test]
fn news_from_before_the_opening_doesnt_close_it() {
    let (health, t) = (health(), Instant::now());
    let early = health.admit(t).ok().unwrap();
    health.admit(t).ok().unwrap().opened(t, &RULE);
    early.succeeded(t + secs(1), None);
    assert!(health.admit(t + secs(2)).is_err());
}

#[test]
fn the_later_cooldown_wins_in_either_order() {
    for order in [[60, 1], [1, 60]] {
        let (health, t) = (health(), Instant::now());
        for seconds in order {
            health.cool(t + secs(seconds));
        }
        let blocked = Blocked { until: t + secs(60), cooling: true };
        assert_eq!(health.admit(t + secs(59)).err(), Some(blocked), "{order:?}");
        assert!(health.admit(t + secs(60)).is_ok(), "{order:?}");
    }
}

#[test]
fn a_canary_takes_itself_out_until_its_rule_changes() {
    let (health, t) = (health(), Instant::now());
    let rule = Canary { error_rate: 100_000, window: secs(60) };
    for n in 0..19 {
        assert!(!health.tried(t, n % 2 == 0, &rule), "too few attempts to judge");
    }
    assert!(health.tried(t, true, &rule), "9 of 20 failed, 10 % may");
    assert!(health.is_rolled_back(&rule));
    assert!(!health.is_rolled_back(&Canary { error_rate: 500_000, ..rule }));
}

#[test]
fn p95_needs_samples_and_forgets_old_ones() {
    let (health, t) = (health(), Instant::now());
    for n in 1..=20 {
        let permit = health.admit(t).ok().unwrap();
        permit.succeeded(t, Some(Duration::from_millis(n * 100)));
    }
    assert_eq!(health.first_token_p95(t + secs(1)), Some(Duration::from_millis(1900)));
    assert_eq!(health.first_token_p95(t + secs(61)), None, "it is tried again");
}
