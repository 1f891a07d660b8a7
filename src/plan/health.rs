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

    /// Whether anything was ever asked about this one.
    pub fn knows(&self, name: &str) -> bool {
        self.known.lock().contains_key(name)
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
        /// When the last probe began, while one runs.
        probing: Option<Instant>,
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

/// A probe that has not answered by then is not waited for: another one may try.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// Permission for one attempt. Dropped without a verdict it changes nothing, and a probe makes
/// room for the next one.
pub struct Permit {
    health: Arc<Health>,
    epoch: u64,
    /// When it began, if it is a probe.
    probe: Option<Instant>,
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
            State::Closed => None,
            State::Open { until } if until > now => return open(until),
            State::Open { .. } => {
                inner.state = State::HalfOpen { probing: Some(now) };
                inner.epoch += 1;
                Some(now)
            }
            State::HalfOpen { probing: Some(since) } if now < since + PROBE_EVERY => {
                return open(since + PROBE_EVERY);
            }
            State::HalfOpen { .. } => {
                inner.state = State::HalfOpen { probing: Some(now) };
                Some(now)
            }
        };
        Ok(Permit { health: self.clone(), epoch: inner.epoch, probe, settled: false })
    }

    /// From when it may be tried; `None`: now.
    pub fn blocked_until(&self, now: Instant) -> Option<Instant> {
        let inner = self.0.lock();
        let open = match inner.state {
            State::Open { until } => Some(until),
            State::HalfOpen { probing } => probing.map(|since| since + PROBE_EVERY),
            State::Closed => None,
        };
        [open, inner.cool_until].into_iter().flatten().filter(|until| *until > now).max()
    }

    /// Leaves the target alone until then, or until what was set before, whichever is later.
    pub fn cool(&self, until: Instant) {
        let mut inner = self.0.lock();
        inner.cool_until = Some(inner.cool_until.map_or(until, |set| set.max(until)));
    }

    /// A new credential has a rate limit of its own: the target needn't be left alone for the old
    /// one's.
    pub fn warm_up(&self) {
        self.0.lock().cool_until = None;
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
        if self.probe.is_none() {
            return;
        }
        let mut inner = self.health.0.lock();
        if inner.epoch == self.epoch {
            inner.state = State::Closed;
            inner.epoch += 1;
            (self.epoch, self.probe) = (inner.epoch, None);
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
            if self.probe.is_some() {
                inner.epoch += 1;
            }
            inner.state = State::Closed;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.settled || self.probe.is_none() {
            return;
        }
        let mut inner = self.health.0.lock();
        // Another probe may have begun since.
        if inner.epoch == self.epoch && inner.state == (State::HalfOpen { probing: self.probe }) {
            inner.state = State::HalfOpen { probing: None };
        }
    }
}

#[cfg(test)]
mod tests;
