//! Sliding-window limits: `parallel`, `rpm` and `tpm` of every scope, exact and in process.
//!
//! A request asks for all its scopes at once and gets all or nothing: every scope is locked, in
//! one order for all threads, then checked, then taken from. So a refusal leaves everything as
//! it was, and no number of threads can pass a limit between a check and its taking.

mod estimate;
mod permit;
#[cfg(test)]
mod tests;
mod window;

pub use estimate::TokenRate;
pub use permit::{Permit, Remaining};

use crate::scope::{Limits, ScopeKind, ScopeMap};
use crate::units::Name;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::time::{Duration, Instant};
use window::Window;

/// What to wait for a request to end, where only that can free a place: nobody knows when.
const PARALLEL_RESET: Duration = Duration::from_secs(1);

/// Which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LimitName {
    /// Requests at the same time.
    Parallel,
    /// Requests in any 60 seconds.
    Rpm,
    /// Tokens in any 60 seconds.
    Tpm,
}

impl LimitName {
    /// In the order they are checked.
    pub const ALL: [LimitName; 3] = [LimitName::Parallel, LimitName::Rpm, LimitName::Tpm];

    /// The word used in the configuration, in metrics and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            LimitName::Parallel => "parallel",
            LimitName::Rpm => "rpm",
            LimitName::Tpm => "tpm",
        }
    }

    fn of(self, limits: &Limits) -> Option<u64> {
        match self {
            LimitName::Parallel => limits.parallel,
            LimitName::Rpm => limits.rpm,
            LimitName::Tpm => limits.tpm,
        }
    }
}

/// What a request needs of one scope. The limits come with it, so a reload changes them at once.
pub struct Demand<'a> {
    /// What kind of scope.
    pub kind: ScopeKind,
    /// Its name.
    pub id: &'a str,
    /// Its limits in the configuration in force.
    pub limits: Limits,
}

/// Why a request may not go now. Nothing was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of scope.
    pub kind: ScopeKind,
    /// Its name.
    pub id: String,
    /// Which of its limits.
    pub limit: LimitName,
    /// The limit.
    pub max: u64,
    /// What is left of it.
    pub remaining: u64,
    /// Until enough is free again; a guess of one second for `parallel`.
    pub reset: Duration,
    /// The request asks for more than the whole limit: waiting will not help.
    pub never: bool,
}

/// The limits of the process, by scope. Survives reloads.
pub struct Limiter {
    scopes: ScopeMap<Gauge>,
    /// Where the clock of the windows starts.
    epoch: Instant,
}

/// What is taken of one scope.
struct Gauge {
    kind: ScopeKind,
    id: Name,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    parallel: u64,
    rpm: Option<Window>,
    tpm: Option<Window>,
}

/// A demand and where it is counted.
struct Wanted {
    gauge: Arc<Gauge>,
    limits: Limits,
    /// Its place in what was asked, which decides who is named in a refusal.
    order: usize,
}

impl Limiter {
    /// Nothing taken. No `now` that is passed later may be before this one.
    pub fn new(now: Instant) -> Arc<Limiter> {
        Arc::new(Limiter { scopes: ScopeMap::default(), epoch: now })
    }

    /// Takes one request and `tokens` tokens of every scope, or of none. Checked is `parallel`
    /// of every scope, then `rpm`, then `tpm`.
    ///
    /// # Errors
    /// The first limit that is in the way.
    pub fn admit(
        self: &Arc<Self>,
        demands: &[Demand<'_>],
        tokens: u64,
        now: Instant,
    ) -> Result<Permit, Refusal> {
        let clock = self.clock(now);
        let wanted = self.wanted(demands);
        let mut taken: Vec<MutexGuard<'_, Taken>> =
            wanted.iter().map(|w| w.gauge.taken.lock()).collect();
        for limit in LimitName::ALL {
            let amount = if limit == LimitName::Tpm { tokens } else { 1 };
            let refused = wanted
                .iter()
                .zip(&mut taken)
                .filter_map(|(want, taken)| {
                    Some((want.order, want.check(taken, limit, amount, clock)?))
                })
                .min_by_key(|(order, _)| *order);
            if let Some((_, refusal)) = refused {
                return Err(refusal);
            }
        }
        let mut permit = Permit::new(self.clone(), wanted.len());
        for (want, taken) in wanted.iter().zip(&mut taken) {
            permit.take(&want.gauge, taken, &want.limits, tokens, clock);
        }
        Ok(permit)
    }

    /// Forgets the scopes that the configuration doesn't name any more and that nothing is taken
    /// of. One that is named again within a minute finds what it had taken.
    pub fn keep(&self, named: impl Fn(ScopeKind, &str) -> bool, now: Instant) {
        let clock = self.clock(now);
        self.scopes.retain(|kind, id, gauge| named(kind, id) || gauge.taken.lock().any(clock));
    }

    /// The scopes of this kind that have been limited so far.
    pub fn names(&self, kind: ScopeKind) -> Vec<Name> {
        self.scopes.names(kind)
    }

    /// Places of `parallel` taken at the moment, over all scopes.
    pub fn in_use(&self) -> u64 {
        let mut sum = 0;
        self.scopes.each(|_, _, gauge| sum += gauge.taken.lock().parallel);
        sum
    }

    fn clock(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    /// The demands that limit anything, each scope once, in the one order of locking. What runs in
    /// a scope without any limit is not counted, so that it costs no lock that all requests share.
    fn wanted(&self, demands: &[Demand<'_>]) -> Vec<Wanted> {
        let mut wanted: Vec<Wanted> = Vec::with_capacity(demands.len());
        for (order, demand) in demands.iter().enumerate() {
            if demand.limits == Limits::default() {
                continue;
            }
            let gauge = self.scopes.of(demand.kind, demand.id, |id| Gauge {
                kind: demand.kind,
                id,
                taken: Mutex::default(),
            });
            wanted.push(Wanted { gauge, limits: demand.limits, order });
        }
        wanted.sort_unstable_by_key(|w| (Arc::as_ptr(&w.gauge), w.order));
        wanted.dedup_by(|twice, first| {
            let same = Arc::ptr_eq(&twice.gauge, &first.gauge);
            if same {
                first.limits = tighter(&first.limits, &twice.limits);
            }
            same
        });
        wanted
    }
}

impl Wanted {
    fn check(
        &self,
        taken: &mut Taken,
        limit: LimitName,
        amount: u64,
        clock: Duration,
    ) -> Option<Refusal> {
        let max = limit.of(&self.limits)?;
        let used = taken.used(limit, clock);
        if used.saturating_add(amount) <= max {
            return None;
        }
        let reset = match limit {
            LimitName::Parallel => PARALLEL_RESET,
            LimitName::Rpm | LimitName::Tpm => {
                taken.window(limit).map_or(Duration::ZERO, |w| w.until_free(amount, max, clock))
            }
        };
        Some(Refusal {
            kind: self.gauge.kind,
            id: self.gauge.id.to_string(),
            limit,
            max,
            remaining: max.saturating_sub(used),
            reset,
            never: amount > max,
        })
    }
}

impl Taken {
    fn window(&mut self, limit: LimitName) -> Option<&mut Window> {
        match limit {
            LimitName::Parallel => None,
            LimitName::Rpm => self.rpm.as_mut(),
            LimitName::Tpm => self.tpm.as_mut(),
        }
    }

    fn used(&mut self, limit: LimitName, clock: Duration) -> u64 {
        match limit {
            LimitName::Parallel => self.parallel,
            LimitName::Rpm | LimitName::Tpm => self.window(limit).map_or(0, |w| w.used(clock)),
        }
    }

    fn any(&mut self, clock: Duration) -> bool {
        LimitName::ALL.into_iter().any(|limit| self.used(limit, clock) > 0)
    }
}

fn tighter(a: &Limits, b: &Limits) -> Limits {
    let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
    Limits {
        rpm: least(a.rpm, b.rpm),
        tpm: least(a.tpm, b.tpm),
        parallel: least(a.parallel, b.parallel),
    }
}
