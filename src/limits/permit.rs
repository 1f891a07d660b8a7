//! What a request has taken of its limits, and how it is given back.

use super::window::{Slot, Window};
use super::{Gauge, LimitName, Limiter, PARALLEL_RESET, Taken};
use crate::scope::Limits;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A request's place under all its limits. Dropping it gives back `parallel`, once; `rpm` and
/// `tpm` leave their windows with time.
#[must_use = "dropping a permit gives its place to the next request"]
pub struct Permit {
    limiter: Arc<Limiter>,
    parts: Vec<Part>,
    tokens: u64,
    tightest: [Option<Remaining>; 3],
}

/// What was taken of one scope.
struct Part {
    gauge: Arc<Gauge>,
    rpm: Option<Slot>,
    tpm: Option<Slot>,
}

/// What the tightest scope had left of a limit, right after the request was admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remaining {
    /// Which limit.
    pub limit: LimitName,
    /// The limit.
    pub max: u64,
    /// What is left of it.
    pub remaining: u64,
    /// Until all of it is free, when nothing else is taken.
    pub reset: Duration,
}

impl Permit {
    pub(super) fn new(limiter: Arc<Limiter>, scopes: usize) -> Permit {
        Permit { limiter, parts: Vec::with_capacity(scopes), tokens: 0, tightest: [None; 3] }
    }

    /// Takes what the limits count; the caller has checked that it fits.
    pub(super) fn take(
        &mut self,
        gauge: &Arc<Gauge>,
        taken: &mut Taken,
        limits: &Limits,
        tokens: u64,
        clock: Duration,
    ) {
        self.tokens = tokens;
        let mut part = Part { gauge: gauge.clone(), rpm: None, tpm: None };
        // Whether it is limited or not: a reload may limit it while this runs.
        taken.parallel += 1;
        if let Some(max) = limits.parallel {
            self.note(LimitName::Parallel, max, taken.parallel, PARALLEL_RESET);
        }
        if let Some(max) = limits.rpm {
            let window = taken.rpm.get_or_insert_default();
            part.rpm = Some(window.take(1, clock));
            self.note_window(LimitName::Rpm, max, window, clock);
        }
        if let Some(max) = limits.tpm {
            let window = taken.tpm.get_or_insert_default();
            part.tpm = Some(window.take(tokens, clock));
            self.note_window(LimitName::Tpm, max, window, clock);
        }
        self.parts.push(part);
    }

    /// Replaces the tokens that were taken by what was really used, in the moment they were taken
    /// in. Above the limit nothing is admitted until enough has left the window.
    pub fn correct(&mut self, actual_tokens: u64, now: Instant) {
        let clock = self.limiter.clock(now);
        for part in &self.parts {
            let mut taken = part.gauge.taken.lock();
            if let (Some(slot), Some(window)) = (part.tpm, taken.tpm.as_mut()) {
                window.correct(slot, self.tokens, actual_tokens, clock);
            }
        }
        self.tokens = actual_tokens;
    }

    /// Gives everything back: the request was refused by a later check.
    pub fn refund(mut self, now: Instant) {
        let clock = self.limiter.clock(now);
        for part in self.parts.drain(..) {
            let mut taken = part.gauge.taken.lock();
            if let (Some(slot), Some(window)) = (part.rpm, taken.rpm.as_mut()) {
                window.correct(slot, 1, 0, clock);
            }
            if let (Some(slot), Some(window)) = (part.tpm, taken.tpm.as_mut()) {
                window.correct(slot, self.tokens, 0, clock);
            }
            taken.parallel = taken.parallel.saturating_sub(1);
        }
    }

    /// For each limit that any scope has, the scope with the least left.
    pub fn remaining(&self) -> Vec<Remaining> {
        self.tightest.iter().flatten().copied().collect()
    }

    fn note_window(&mut self, limit: LimitName, max: u64, window: &mut Window, clock: Duration) {
        let used = window.used(clock);
        let reset = window.until_empty(clock);
        self.note(limit, max, used, reset);
    }

    fn note(&mut self, limit: LimitName, max: u64, used: u64, reset: Duration) {
        let remaining = max.saturating_sub(used);
        let best = &mut self.tightest[limit as usize];
        if best.is_none_or(|b| remaining < b.remaining) {
            *best = Some(Remaining { limit, max, remaining, reset });
        }
    }
}

impl Part {
    fn leave(&self) {
        let mut taken = self.gauge.taken.lock();
        taken.parallel = taken.parallel.saturating_sub(1);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.parts.iter().for_each(Part::leave);
    }
}
