//! The lookout: looks once a second for what is worth telling, off the path of requests.

use crate::alerts::watch::{self, Calm, Level, Pace};
use crate::alerts::{Alert, Kind};
use crate::config::snapshot::{Alerts as Rules, OnFailure};
use crate::ledger::{self, Claim};
use crate::state::Gateway;
use crate::units::NanoUsd;
use chrono::{DateTime, TimeDelta, Utc};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch as signal;
use tokio::task::JoinHandle;

/// How often it looks.
const TICK: Duration = Duration::from_secs(1);

/// Looking takes at most one part in so many of a core's time, however many budgets there are.
const AT_EASE: u32 = 20;

/// A look that had to wait for the disk is not a reason to look away for long.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How often the ledger is asked what was spent meanwhile.
const PACE_TICK: TimeDelta = TimeDelta::seconds(10);

/// What the pace of spending is judged by.
const HISTORY: TimeDelta = TimeDelta::hours(25);

/// The state file is in order, and fallbacks are few, when they have been so for this long.
const SETTLED: TimeDelta = TimeDelta::seconds(30);

/// The running lookout.
pub struct Lookout {
    gateway: Arc<Gateway>,
    stop: signal::Sender<bool>,
    task: JoinHandle<()>,
}

impl Lookout {
    /// Starts looking, and telling whom the configuration names. Within a runtime.
    pub fn start(gateway: &Arc<Gateway>) -> Self {
        gateway.alerts.follow(&gateway.live.peek().alerts.webhooks);
        let (stop, stopping) = signal::channel(false);
        let task = tokio::spawn(run(gateway.clone(), stopping));
        Lookout { gateway: gateway.clone(), stop, task }
    }

    /// Looks a last time and sends what waits once more, all within this time.
    pub async fn finish(self, within: Duration) {
        let began = Instant::now();
        let _ = self.stop.send(true);
        let _ = tokio::time::timeout(within, self.task).await;
        let left = within.saturating_sub(began.elapsed());
        let unsent = self.gateway.alerts.finish(left).await;
        // Who was not told is told by the next process.
        self.gateway.ledger.unclaim(unsent);
    }
}

async fn run(gateway: Arc<Gateway>, mut stop: signal::Receiver<bool>) {
    let mut seen = Seen::default();
    let mut pause = Duration::ZERO;
    loop {
        let last = tokio::select! {
            () = tokio::time::sleep(pause) => false,
            _ = stop.changed() => true,
        };
        let (began, looking) = (Instant::now(), gateway.clone());
        let look = move || {
            seen.look(&looking, Utc::now());
            seen
        };
        // It takes locks of all accounts, reads and writes the database: not on a worker thread.
        seen = match tokio::task::spawn_blocking(look).await {
            Ok(seen) => seen,
            Err(error) => {
                log::error!("alerts: a look failed and is tried again: {error}");
                Seen::default()
            }
        };
        if last {
            return;
        }
        pause = (began.elapsed() * AT_EASE).clamp(TICK, LONGEST_PAUSE);
    }
}

/// What the looks before have seen.
#[derive(Default)]
struct Seen {
    pace: Option<(Pace, NanoUsd)>,
    pace_looked: Option<DateTime<Utc>>,
    /// Too fast was told, and is not told again before this.
    fast_until: Option<DateTime<Utc>>,
    /// Told while the ledger could not be written, and still to be claimed.
    owed: Vec<Claim>,
    forgot: Option<DateTime<Utc>>,
    written: Calm,
    few_fallbacks: Calm,
    generation: u64,
}

impl Seen {
    /// Raises what is worth an alert now.
    fn look(&mut self, gateway: &Gateway, now: DateTime<Utc>) {
        let snapshot = gateway.live.snapshot();
        let rules = &snapshot.alerts;
        // A reload does it too. Of two at once, the newest is to have the last word.
        if self.generation != snapshot.generation {
            self.generation = snapshot.generation;
            gateway.alerts.follow(&rules.webhooks);
        }
        self.state_file(gateway, snapshot.state_on_failure == OnFailure::Open, now);
        self.fallbacks(gateway, rules, now);
        closed_breakers(gateway);
        gateway.budgets.look_again();
        if let Some(lowest) = rules.budget_at.first() {
            let past = gateway.budgets.past(*lowest, now);
            let said = |name: &str| gateway.alerts.said(name, now);
            for alert in watch::budgets(&past, &rules.budget_at, said) {
                gateway.alerts.raise(alert, now);
            }
        }
        self.claim(gateway, now);
        if self.pace_looked.is_none_or(|looked| now - looked >= PACE_TICK) {
            self.pace_looked = Some(now);
            self.look_at_pace(gateway, rules, now);
        }
        if self.forgot.is_none_or(|forgot| now - forgot >= TimeDelta::minutes(10)) {
            self.forgot = Some(now);
            gateway.alerts.forget(now);
        }
    }

    fn state_file(&mut self, gateway: &Gateway, open: bool, now: DateTime<Utc>) {
        let healthy = gateway.ledger.healthy();
        if !healthy {
            gateway.alerts.release(Kind::StateWritable.as_str());
            gateway.alerts.raise(Alert::state_unwritable(open), now);
        }
        let settled = self.written.lasts(healthy, now, SETTLED);
        if settled && gateway.alerts.release(Kind::StateUnwritable.as_str()) {
            gateway.alerts.raise(Alert::state_writable(), now);
        }
    }

    fn fallbacks(&mut self, gateway: &Gateway, rules: &Rules, now: DateTime<Utc>) {
        let (requests, fell) = gateway.fallbacks.counts(gateway.started.elapsed().as_secs());
        let level = watch::fallbacks(requests, fell, rules.fallback_rate);
        if self.few_fallbacks.lasts(level == Level::Under, now, SETTLED) {
            gateway.alerts.release(Kind::FallbackRate.as_str());
        }
        if let Level::Over(alert) = level {
            gateway.alerts.raise(*alert, now);
        }
    }

    /// How fast money goes, by the ledger: so what other processes spend counts too, and nothing
    /// is counted on the path of requests.
    fn look_at_pace(&mut self, gateway: &Gateway, rules: &Rules, now: DateTime<Utc>) {
        let (path, minute) = (gateway.ledger.path(), now.timestamp().div_euclid(60));
        let read = match &mut self.pace {
            Some((pace, before)) => ledger::ever_spent(path).map(|all| {
                pace.spent(minute, NanoUsd(all.0.saturating_sub(before.0)));
                *before = all;
            }),
            None => ledger::spent_by_minute(path, now - HISTORY).map(|(minutes, all)| {
                let mut pace = Pace::default();
                minutes.into_iter().for_each(|(at, spent)| pace.spent(at, spent));
                self.pace = Some((pace, all));
            }),
        };
        if let Err(error) = read {
            log::warn!("alerts: the pace of spending is not known: {error}");
            return;
        }
        let fast = self.pace.as_ref().and_then(|(p, _)| p.too_fast(minute, rules.spend_velocity));
        if let Some((hour, mean)) = fast.filter(|_| self.fast_until.is_none_or(|u| u <= now)) {
            self.fast_until = now.checked_add_signed(TimeDelta::hours(1));
            let alert = Alert::spend_velocity(hour, mean, rules.spend_velocity, now);
            gateway.alerts.raise(alert, now);
        }
    }

    /// Tells what nobody has told before, by the ledger. Without a ledger it is told all the same:
    /// twice is better than not at all.
    fn claim(&mut self, gateway: &Gateway, now: DateTime<Utc>) {
        let alerts = gateway.alerts.unclaimed();
        if alerts.is_empty() && self.owed.is_empty() {
            return;
        }
        let claims = alerts
            .iter()
            .map(|alert| Claim { name: alert.once.name.clone(), until: alert.once.until });
        let mut wanted: Vec<Claim> = claims.collect();
        wanted.append(&mut self.owed);
        let claimed = if gateway.ledger.healthy() {
            gateway.ledger.claim(wanted.clone(), now).map_err(|error| error.to_string())
        } else {
            Err("the state file can't be written".to_owned())
        };
        let new = claimed.unwrap_or_else(|why| {
            if !alerts.is_empty() {
                log::warn!(
                    "alerts: told without taking note of it, a restart may repeat it: {why}"
                );
            }
            self.owed = wanted;
            Vec::new()
        });
        let mut late = Vec::new();
        for (place, alert) in alerts.iter().enumerate() {
            if !new.get(place).copied().unwrap_or(true) {
                gateway.alerts.told_elsewhere(&alert.once.name, now);
            } else if !gateway.alerts.tell(alert, now) {
                // The last look took longer than the process had left.
                late.push(alert.once.name.clone());
            }
        }
        gateway.ledger.unclaim(late);
    }
}

/// A breaker that opens again is news only when it had closed.
fn closed_breakers(gateway: &Gateway) {
    let now = Instant::now();
    for target in gateway.alerts.open_breakers() {
        if gateway.health.of(&target).view(now).breaker == "closed" {
            gateway.alerts.release(&format!("{}{target}", crate::alerts::BREAKER));
        }
    }
}
