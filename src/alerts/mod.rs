//! Alerts: what somebody should know, told once, in the log and to webhooks.
//!
//! | file | |
//! |---|---|
//! | `alert` | what can be told, in words and as data, and how often |
//! | `watch` | what is worth telling, from what was seen at a given time |
//! | `message` | the JSON and its signature |
//! | `receiver` | one webhook: its queue and its task |
//! | `retry` | when a message is sent again |
//!
//! Raising an alert takes a lock for a moment and never waits: a receiver that hangs delays its
//! own queue only. An alert that is told once across restarts is first claimed in the ledger, by the
//! lookout, so that of several processes on one database one tells it.

mod alert;
mod message;
mod receiver;
mod retry;
pub mod watch;

pub use alert::{Alert, BREAKER, Field, Kind, Once};

use crate::config::snapshot::Webhook;
use chrono::{DateTime, TimeDelta, Utc};
use message::Message;
use parking_lot::Mutex;
use prometheus::IntCounterVec;
use receiver::{Client, Receiver};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch as signal;
use tokio::task::JoinHandle;
use watch::Quiet;

/// So many alerts may wait to be claimed; more are told unclaimed.
const UNCLAIMED: usize = 100_000;

/// What another process tells is asked for again after this: it may have ended, as after a
/// hand-over, without having reached anybody.
const ELSEWHERE: TimeDelta = TimeDelta::minutes(10);

/// Who is told, and what was told already.
pub struct Alerts {
    results: IntCounterVec,
    quiet: Mutex<Quiet>,
    unclaimed: Mutex<Vec<Alert>>,
    receivers: Mutex<Vec<Running>>,
    client: Mutex<Option<Client>>,
    stop: signal::Sender<bool>,
}

/// A receiver and its task.
struct Running {
    receiver: Arc<Receiver>,
    task: JoinHandle<()>,
}

impl Alerts {
    /// Nobody is told yet but the log. `results` counts by kind and result.
    pub fn new(results: IntCounterVec) -> Self {
        Alerts {
            results,
            quiet: Mutex::default(),
            unclaimed: Mutex::default(),
            receivers: Mutex::default(),
            client: Mutex::default(),
            stop: signal::channel(false).0,
        }
    }

    /// Tells an alert, unless it was told already. Never waits.
    pub fn raise(&self, alert: Alert, now: DateTime<Utc>) {
        if !self.quiet.lock().say(&alert.once, now) {
            return;
        }
        if alert.once.kept {
            let mut unclaimed = self.unclaimed.lock();
            if unclaimed.len() < UNCLAIMED {
                unclaimed.push(alert);
                return;
            }
        }
        self.tell(&alert, now);
    }

    /// What was raised since the last call and has to be claimed before it is told.
    pub fn unclaimed(&self) -> Vec<Alert> {
        std::mem::take(&mut self.unclaimed.lock())
    }

    /// Writes the log line and puts the alert in the queue of every receiver. Returns whether
    /// somebody sends what is in the queues: after [`Self::finish`] nobody does.
    pub fn tell(&self, alert: &Alert, now: DateTime<Utc>) -> bool {
        log::warn!("alert {}: {}", alert.kind.as_str(), alert.text);
        self.results.with_label_values(&[alert.kind.as_str(), "logged"]).inc();
        let receivers = self.receivers.lock();
        if receivers.is_empty() {
            return !*self.stop.borrow();
        }
        let message = Arc::new(Message::new(alert, rand::random(), now));
        for running in &*receivers {
            running.receiver.push(&message, Instant::now());
        }
        true
    }

    /// Another process tells this.
    pub fn told_elsewhere(&self, name: &str, now: DateTime<Utc>) {
        self.quiet.lock().shorten(name, now + ELSEWHERE);
    }

    /// Whether this was told already.
    pub fn said(&self, name: &str, now: DateTime<Utc>) -> bool {
        self.quiet.lock().said(name, now)
    }

    /// What an alert was about is over. Returns whether it had been told.
    pub fn release(&self, name: &str) -> bool {
        self.quiet.lock().release(name)
    }

    /// The targets whose breaker was told to have opened.
    pub fn open_breakers(&self) -> Vec<String> {
        self.quiet.lock().under(BREAKER)
    }

    /// Forgets what may be told again.
    pub fn forget(&self, now: DateTime<Utc>) {
        self.quiet.lock().forget(now);
    }

    /// From now on these are told. A receiver that stays keeps its queue; what waits for one that
    /// goes is dropped. Within a runtime.
    pub fn follow(&self, webhooks: &[Webhook]) {
        let client = (!webhooks.is_empty()).then(|| self.client());
        if client.is_some() {
            self.count_from_zero();
        }
        let mut receivers = self.receivers.lock();
        if *self.stop.borrow() {
            return;
        }
        let mut before = std::mem::take(&mut *receivers);
        for (place, webhook) in webhooks.iter().enumerate() {
            match before.iter().position(|running| running.receiver.is(webhook)) {
                Some(at) => {
                    let stays = before.swap_remove(at);
                    stays.receiver.readdress(place, webhook);
                    receivers.push(stays);
                }
                None => {
                    let Some(client) = client.clone() else { continue };
                    let receiver = Receiver::new(place, webhook, self.results.clone());
                    let run = receiver.clone().run(client, self.stop.subscribe());
                    receivers.push(Running { receiver, task: tokio::spawn(run) });
                }
            }
        }
        for gone in before {
            gone.task.abort();
            gone.receiver.give_up("dropped", "the configuration doesn't name it any more");
        }
    }

    /// Shows what can fail before it does: Prometheus sees no increase in a series that begins at 1.
    fn count_from_zero(&self) {
        for kind in Kind::ALL {
            for result in ["failed", "dropped"] {
                self.results.with_label_values(&[kind.as_str(), result]);
            }
        }
    }

    /// Tries once more what waits, for at most this long. Returns what was claimed, and not every
    /// receiver could be given: the claims are to be given back.
    pub async fn finish(&self, within: Duration) -> Vec<String> {
        self.stop.send_replace(true);
        let running = std::mem::take(&mut *self.receivers.lock());
        let until = tokio::time::Instant::now() + within;
        let mut unsent = Vec::new();
        for Running { receiver, mut task } in running {
            if tokio::time::timeout_at(until, &mut task).await.is_err() {
                task.abort();
            }
            // Also what came after the task had seen an empty queue.
            receiver.give_up("failed", "the process ends");
            unsent.append(&mut receiver.unsent());
        }
        unsent
    }

    /// Made when the first webhook needs it: it reads the system's certificates.
    fn client(&self) -> Client {
        let mut made = self.client.lock();
        let client = made.get_or_insert_with(receiver::client);
        if let Err(why) = client {
            log::error!("alerts: no webhook can be called: {why}");
        }
        client.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use prometheus::{Opts, core::Collector};

    #[tokio::test]
    async fn what_may_fail_is_counted_from_zero() {
        let results = IntCounterVec::new(Opts::new("alerts", "-"), &["kind", "result"]).unwrap();
        let alerts = Alerts::new(results.clone());
        let series = || results.collect()[0].get_metric().len();
        alerts.follow(&[]);
        assert_eq!(series(), 0, "nobody is sent anything");
        let url = Secret::new("http://127.0.0.1:9/".into());
        alerts.follow(&[Webhook { url, secret: None }]);
        assert_eq!(series(), 2 * 10, "each kind, failed and dropped");
        let known = results.get_metric_with_label_values(&["breaker_opened", "failed"]).unwrap();
        assert_eq!((known.get(), series()), (0, 20));
    }
}
