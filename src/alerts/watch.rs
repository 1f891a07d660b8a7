//! What is worth an alert, from what was seen at a given time. No clock, no I/O.

use super::alert::{Alert, Once};
use crate::budget::AccountView;
use crate::units::NanoUsd;
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::{HashMap, VecDeque};

/// Under so many requests in five minutes a share says nothing.
const ENOUGH_REQUESTS: u64 = 20;

/// The minutes of the hour that is judged …
const HOUR: i64 = 60;

/// … of the day before it that it is compared with …
const DAY: i64 = 24 * 60;

/// … and of the part of that day that has to be known at least.
const ENOUGH_MINUTES: i64 = 3 * 60;

/// A mean hour under this says nothing: one cent.
const ENOUGH_MONEY: u64 = 10_000_000;

/// What was told, so that it is not told again too soon.
#[derive(Debug, Default)]
pub struct Quiet {
    until: HashMap<String, DateTime<Utc>>,
}

impl Quiet {
    /// Whether this was told already, and it is too soon to tell it again.
    pub fn said(&self, name: &str, now: DateTime<Utc>) -> bool {
        self.until.get(name).is_some_and(|until| *until > now)
    }

    /// Whether this may be told now; it has been told then.
    pub fn say(&mut self, once: &Once, now: DateTime<Utc>) -> bool {
        if self.said(&once.name, now) {
            return false;
        }
        self.until.insert(once.name.clone(), once.until);
        true
    }

    /// It may be told again from then on, if not before.
    pub fn shorten(&mut self, name: &str, until: DateTime<Utc>) {
        if let Some(before) = self.until.get_mut(name) {
            *before = until.min(*before);
        }
    }

    /// It is over: the next time it is told at once. Returns whether it had been told.
    pub fn release(&mut self, name: &str) -> bool {
        self.until.remove(name).is_some()
    }

    /// What was told under names that begin so, without this beginning.
    pub fn under(&self, prefix: &str) -> Vec<String> {
        self.until.keys().filter_map(|name| name.strip_prefix(prefix)).map(str::to_owned).collect()
    }

    /// Forgets what may be told again.
    pub fn forget(&mut self, now: DateTime<Utc>) {
        self.until.retain(|_, until| *until > now);
    }
}

/// An alert for every share that an account has passed and that was not told yet. One that was
/// passed together with a greater one is told too: receivers may care for one share only.
pub fn budgets(
    accounts: &[AccountView],
    shares: &[u32],
    said: impl Fn(&str) -> bool,
) -> Vec<Alert> {
    let mut alerts = Vec::new();
    for account in accounts.iter().filter(|account| account.cap > NanoUsd(0)) {
        for share in shares.iter().filter(|share| account.spent.reaches(**share, account.cap)) {
            if !said(&Alert::budget_share_name(account, *share)) {
                alerts.push(Alert::budget_share(account, *share));
            }
        }
    }
    alerts
}

/// Where the share of requests that fell back stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Level {
    /// Over the threshold.
    Over(Box<Alert>),
    /// Not over it: the next crossing is news.
    Under,
    /// Too few requests to say.
    Unknown,
}

/// Judges the fallbacks of five minutes by a share in millionths.
pub fn fallbacks(requests: u64, fell: u64, rule: u32) -> Level {
    let over = u128::from(fell) * 1_000_000 > u128::from(requests) * u128::from(rule);
    if !over {
        Level::Under
    } else if requests < ENOUGH_REQUESTS {
        Level::Unknown
    } else {
        Level::Over(Box::new(Alert::fallback_rate(requests, fell, rule)))
    }
}

/// Since when all is well: what comes and goes is over when it has been away for a while.
#[derive(Debug, Default)]
pub struct Calm(Option<DateTime<Utc>>);

impl Calm {
    /// Whether it has been well for so long.
    pub fn lasts(&mut self, well: bool, now: DateTime<Utc>, long: TimeDelta) -> bool {
        let since = well.then(|| self.0.unwrap_or(now));
        self.0 = since;
        since.is_some_and(|since| now - since >= long)
    }
}

/// What was spent, by minute, over the last 25 hours.
#[derive(Debug, Default)]
pub struct Pace {
    minutes: VecDeque<(i64, u64)>,
}

impl Pace {
    /// Takes note of money spent in a minute (since 1970) that is not before the last one.
    pub fn spent(&mut self, minute: i64, amount: NanoUsd) {
        match self.minutes.back_mut() {
            Some((last, sum)) if *last >= minute => *sum = sum.saturating_add(amount.0),
            _ if amount.0 > 0 => self.minutes.push_back((minute, amount.0)),
            _ => {}
        }
        while self.minutes.front().is_some_and(|(at, _)| *at <= minute - HOUR - DAY) {
            self.minutes.pop_front();
        }
    }

    /// The last hour's spend and the mean of an hour before it, where the first is more than
    /// `factor` (in millionths) times the second.
    ///
    /// The mean is that of the 24 hours before the last one, or of as much of them as money was
    /// spent in; under three hours or one cent an hour it is no measure.
    pub fn too_fast(&self, minute: i64, factor: u64) -> Option<(NanoUsd, NanoUsd)> {
        let hour_began = minute - HOUR;
        let (mut hour, mut before, mut oldest) = (0u128, 0u128, None);
        for (at, spent) in &self.minutes {
            if *at > hour_began {
                hour += u128::from(*spent);
            } else if *at > hour_began - DAY {
                before += u128::from(*spent);
                oldest = oldest.or(Some(*at));
            }
        }
        let known = hour_began - oldest? + 1;
        if known < ENOUGH_MINUTES {
            return None;
        }
        let mean = before * HOUR as u128 / u128::try_from(known).ok()?;
        let fast = hour * 1_000_000 > mean * u128::from(factor);
        let amount = |nano: u128| NanoUsd(u64::try_from(nano).unwrap_or(u64::MAX));
        (fast && mean >= u128::from(ENOUGH_MONEY)).then(|| (amount(hour), amount(mean)))
    }
}

#[cfg(test)]
mod tests;
