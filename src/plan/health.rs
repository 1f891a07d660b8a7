//! Whether a target may be tried: its breaker, its cooldown, and how fast it has been.
//!
//! The breaker is closed until `failures` failures fall within `window`; then it is open for
//! `cooldown`. After that it is half-open: one attempt at a time may probe. A probe that
//! succeeds closes it, one that fails opens it again. Attempts that began before the last change
//! of state have no say any more, so a thousand simultaneous failures open it once.

use crate::config::snapshot::{Breaker, Canary};
use ahash::AHashMap;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// First-token times kept per target.
const SAMPLES: usize = 128;

/// So many attempts are needed before a target on trial is judged.
const TRIALS: usize = 20;

/// How old a first-token time may be and still count. A slow target that gets no traffic any
/// more is thus tried again after this.
const RECENT: Duration = Duration::from_secs(60);

/// So many recent first-token times are needed before they say anything.
const ENOUGH: usize = 8;

/// The health of every target that was ever tried, by name.
#[derive(Default)]
pub struct HealthTable {
    known: Mutex<AHashMap<String, Arc<Health>>>,
}

impl HealthTable {
    /// The health of one target; new ones are healthy.
    pub fn of(&self, name: &str) -> Arc<Health> {
        let mut known = self.known.lock();
        if let Some(health) = known.get(name) {
            return health.clone();
        }
        let health = Arc::new(Health::default());
        known.insert(name.to_owned(), health.clone());
        health
    }

    /// Forgets what the configuration doesn't name any more.
    pub fn keep(&self, named: impl Fn(&str) -> bool) {
        self.known.lock().retain(|name, _| named(name));
    }
}

/// The health of one target.
#[derive(Default)]
pub struct Health(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    state: State,
    /// Counts the changes of state, so that late news can be told from new ones.
    epoch: u64,
    failures: VecDeque<Instant>,
    cool_until: Option<Instant>,
    first_tokens: VecDeque<(Instant, Duration)>,
    ewma: Option<Duration>,
    /// How recent attempts ended, where the target is on trial.
    trial: VecDeque<(Instant, bool)>,
    rolled_back: Option<Canary>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen {
        probing: bool,
    },
}

/// What a target looks like from outside, for `/status` and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// `closed`, `open` or `half_open`.
    pub breaker: &'static str,
    /// Not tried before this.
    pub until: Option<Instant>,
    /// Exponentially weighted mean of the time to the first token.
    pub ewma: Option<Duration>,
}

/// Why a target is left alone, and from when it is worth asking again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocked {
    /// Not before this.
    pub until: Instant,
    /// It is rate limited, as opposed to failing.
    pub cooling: bool,
}

/// Permission for one attempt. Dropped without a verdict it changes nothing, and a probe makes
/// room for the next one.
pub struct Permit {
    health: Arc<Health>,
    epoch: u64,
    probe: bool,
    settled: bool,
}

impl Health {
    /// Asks to try the target now.
    ///
    /// # Errors
    /// When it has to be left alone.
    pub fn admit(self: &Arc<Self>, now: Instant) -> Result<Permit, Blocked> {
        let mut inner = self.0.lock();
        if let Some(until) = inner.cool_until.filter(|until| *until > now) {
            return Err(Blocked { until, cooling: true });
        }
        let open = |until| Err(Blocked { until, cooling: false });
        let probe = match inner.state {
            State::Closed => false,
            State::Open { until } if until > now => return open(until),
            State::Open { .. } => {
                inner.state = State::HalfOpen { probing: true };
                inner.epoch += 1;
                true
            }
            State::HalfOpen { probing: true } => return open(now + Duration::from_secs(1)),
            State::HalfOpen { probing: false } => {
                inner.state = State::HalfOpen { probing: true };
                true
            }
        };
        Ok(Permit { health: self.clone(), epoch: inner.epoch, probe, settled: false })
    }

    /// From when it may be tried; `None`: now.
    pub fn blocked_until(&self, now: Instant) -> Option<Instant> {
        let inner = self.0.lock();
        let open = match inner.state {
            State::Open { until } => Some(until),
            State::HalfOpen { probing: true } => Some(now + Duration::from_secs(1)),
            State::HalfOpen { probing: false } | State::Closed => None,
        };
        [open, inner.cool_until].into_iter().flatten().filter(|until| *until > now).max()
    }

    /// Leaves the target alone until then, or until what was set before, whichever is later.
    pub fn cool(&self, until: Instant) {
        let mut inner = self.0.lock();
        inner.cool_until = Some(inner.cool_until.map_or(until, |set| set.max(until)));
    }

    /// The 95th percentile of recent first-token times; `None` while too few are known.
    pub fn first_token_p95(&self, now: Instant) -> Option<Duration> {
        let inner = self.0.lock();
        let mut recent: Vec<Duration> = inner
            .first_tokens
            .iter()
            .filter(|(at, _)| now.saturating_duration_since(*at) < RECENT)
            .map(|(_, took)| *took)
            .collect();
        if recent.len() < ENOUGH {
            return None;
        }
        recent.sort_unstable();
        recent.get((recent.len() * 95).div_ceil(100).saturating_sub(1)).copied()
    }

    /// Takes note of how an attempt on a target on trial ended. Returns whether that made it
    /// take itself out.
    pub fn tried(&self, now: Instant, ok: bool, rule: &Canary) -> bool {
        let mut inner = self.0.lock();
        // Another rule is another trial.
        if inner.rolled_back.is_some_and(|old| old == *rule) {
            return false;
        }
        inner.rolled_back = None;
        inner.trial.push_back((now, ok));
        while inner
            .trial
            .front()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) >= rule.window)
        {
            inner.trial.pop_front();
        }
        let failed = inner.trial.iter().filter(|(_, ok)| !ok).count();
        let bad = inner.trial.len() >= TRIALS
            && failed as u64 * 1_000_000 > inner.trial.len() as u64 * u64::from(rule.error_rate);
        if bad {
            inner.rolled_back = Some(*rule);
            inner.trial.clear();
        }
        bad
    }

    /// Whether the target has taken itself out under this rule.
    pub fn is_rolled_back(&self, rule: &Canary) -> bool {
        self.0.lock().rolled_back.is_some_and(|old| old == *rule)
    }

    /// As it looks from outside.
    pub fn view(&self, now: Instant) -> View {
        let until = self.blocked_until(now);
        let inner = self.0.lock();
        let breaker = match inner.state {
            State::Closed => "closed",
            State::Open { until } if until > now => "open",
            State::Open { .. } | State::HalfOpen { .. } => "half_open",
        };
        View { breaker, until, ewma: inner.ewma }
    }
}

impl Inner {
    fn open(&mut self, now: Instant, rule: &Breaker) {
        self.state = State::Open { until: now + rule.cooldown };
        self.epoch += 1;
        self.failures.clear();
    }

    fn failed(&mut self, now: Instant, rule: &Breaker) -> bool {
        if let State::HalfOpen { .. } = self.state {
            self.open(now, rule);
            return true;
        }
        while self
            .failures
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) >= rule.window)
        {
            self.failures.pop_front();
        }
        self.failures.push_back(now);
        let reached = self.failures.len() >= rule.failures as usize;
        if reached {
            self.open(now, rule);
        }
        reached
    }
}

impl Permit {
    /// The attempt failed in a way that counts. Returns whether that opened the breaker.
    pub fn failed(mut self, now: Instant, rule: &Breaker) -> bool {
        self.settled = true;
        let mut inner = self.health.0.lock();
        // An attempt from before the last change of state: its news is old.
        inner.epoch == self.epoch && inner.failed(now, rule)
    }

    /// What went wrong goes wrong every time: opens the breaker at once.
    pub fn opened(mut self, now: Instant, rule: &Breaker) {
        self.settled = true;
        self.health.0.lock().open(now, rule);
    }

    /// The target is rate limited: no fault of its own, but a probe has ended.
    pub fn cooled(self, until: Instant) {
        self.health.cool(until);
    }

    /// The answer has begun: a probe has found the target well, however long the rest takes. How
    /// it ends still counts, as that of any other attempt.
    pub fn answers(&mut self) {
        if !self.probe {
            return;
        }
        let mut inner = self.health.0.lock();
        if inner.epoch == self.epoch {
            inner.state = State::Closed;
            inner.epoch += 1;
            (self.epoch, self.probe) = (inner.epoch, false);
        }
    }

    /// The attempt got an answer, its first token after `first_token`.
    pub fn succeeded(mut self, now: Instant, first_token: Option<Duration>) {
        self.settled = true;
        let mut inner = self.health.0.lock();
        if let Some(took) = first_token {
            if inner.first_tokens.len() >= SAMPLES {
                inner.first_tokens.pop_front();
            }
            inner.first_tokens.push_back((now, took));
            inner.ewma = Some(inner.ewma.map_or(took, |mean| (mean * 4 + took) / 5));
        }
        if inner.epoch == self.epoch {
            if self.probe {
                inner.epoch += 1;
            }
            inner.state = State::Closed;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.settled || !self.probe {
            return;
        }
        let mut inner = self.health.0.lock();
        if inner.epoch == self.epoch && inner.state == (State::HalfOpen { probing: true }) {
            inner.state = State::HalfOpen { probing: false };
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
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
                        let permits: Vec<_> =
                            (0..125).filter_map(|_| health.admit(t).ok()).collect();
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
}
