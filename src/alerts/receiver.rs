//! One webhook: what waits for it, and the task that sends it.

use super::message::{Message, signature};
use super::retry::{self, GIVE_UP, TRIES, Verdict};
use crate::config::snapshot::Webhook;
use arc_swap::ArcSwap;
use chrono::Utc;
use parking_lot::Mutex;
use prometheus::IntCounterVec;
use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// So many alerts may wait for one receiver; newer ones are dropped then.
pub const CAPACITY: usize = 1_000;

/// A connection has to come about within this …
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// … and the answer's header within this.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The client of all receivers, or why there is none.
pub type Client = Result<reqwest::Client, String>;

/// Makes the client. Redirects are not followed. `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` apply.
pub fn client() -> Client {
    // Whoever was first has installed the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("tollbar/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TIMEOUT)
        .build()
        .map_err(reason)
}

/// A receiver of alerts.
pub struct Receiver {
    to: ArcSwap<Address>,
    waiting: Mutex<VecDeque<Waiting>>,
    news: Notify,
    full: AtomicBool,
    /// The names of claimed alerts that it might still have taken, had the process gone on.
    unsent: Mutex<Vec<String>>,
    results: IntCounterVec,
}

/// Where it is now, and what it is called in public.
struct Address {
    name: String,
    webhook: Webhook,
}

/// An alert that waits. The first is the one that is being sent.
#[derive(Clone)]
struct Waiting {
    message: Arc<Message>,
    since: Instant,
    tries: u32,
}

impl Receiver {
    /// The webhook at this place of the configuration. `results` counts by kind and result.
    pub fn new(place: usize, webhook: &Webhook, results: IntCounterVec) -> Arc<Self> {
        Arc::new(Receiver {
            to: ArcSwap::from_pointee(Address::new(place, webhook)),
            waiting: Mutex::default(),
            news: Notify::new(),
            full: AtomicBool::new(false),
            unsent: Mutex::default(),
            results,
        })
    }

    /// Whether it is this webhook, with whatever secret.
    pub fn is(&self, webhook: &Webhook) -> bool {
        self.to.load().webhook.url == webhook.url
    }

    /// Its place or its secret has changed: from the next try on.
    pub fn readdress(&self, place: usize, webhook: &Webhook) {
        self.to.store(Arc::new(Address::new(place, webhook)));
    }

    /// Adds an alert, if there is room. Doesn't block.
    pub fn push(&self, message: &Arc<Message>, now: Instant) {
        let waiting = Waiting { message: message.clone(), since: now, tries: 0 };
        let room = {
            let mut queue = self.waiting.lock();
            let room = queue.len() < CAPACITY;
            if room {
                queue.push_back(waiting);
            }
            room
        };
        if room {
            self.full.store(false, Ordering::Relaxed);
            self.news.notify_one();
        } else {
            self.count(message, "dropped");
            if !self.full.swap(true, Ordering::Relaxed) {
                let name = &self.to.load().name;
                log::error!("alerts: {CAPACITY} wait for {name}; newer ones are dropped");
            }
        }
    }

    /// Sends what comes until `stop` says so; then once more what waits.
    pub async fn run(self: Arc<Self>, client: Client, mut stop: watch::Receiver<bool>) {
        let mut failures = 0;
        while !*stop.borrow_and_update() {
            let Some(next) = self.first() else {
                tokio::select! {
                    () = self.news.notified() => continue,
                    changed = stop.changed() => if changed.is_ok() { continue } else { return },
                }
            };
            let Some(pause) = self.attempt(&client, next, &mut failures).await else { continue };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = stop.changed() => if changed.is_err() { return },
            }
        }
        while let Some(next) = self.first() {
            match self.send(&client, &next.message).await {
                (Verdict::Taken, _) => self.end("sent"),
                (Verdict::Never, why) => self.fail(&next.message, &why),
                (Verdict::Later(_), why) => {
                    self.unsent.lock().extend(next.message.claimed.clone());
                    self.fail(&next.message, &why);
                }
            }
        }
    }

    /// Ends what still waits, with this result.
    pub fn give_up(&self, result: &str, why: &str) {
        let left = std::mem::take(&mut *self.waiting.lock());
        for waiting in &left {
            self.unsent.lock().extend(waiting.message.claimed.clone());
            self.count(&waiting.message, result);
        }
        if !left.is_empty() {
            log::error!("alerts: {} were not sent to {}: {why}", left.len(), self.to.load().name);
        }
    }

    /// What it didn't get and another process is to tell it.
    pub fn unsent(&self) -> Vec<String> {
        std::mem::take(&mut self.unsent.lock())
    }

    /// Sends one alert; says how long to leave the receiver alone then.
    ///
    /// An alert that was not taken goes behind the others, so that one that a receiver can't
    /// digest doesn't keep them from it.
    async fn attempt(
        &self,
        client: &Client,
        next: Waiting,
        failures: &mut u32,
    ) -> Option<Duration> {
        let (verdict, why) = self.send(client, &next.message).await;
        let asked = match verdict {
            Verdict::Taken => {
                *failures = 0;
                self.end("sent");
                return None;
            }
            Verdict::Never => {
                *failures = 0;
                self.fail(&next.message, &why);
                return None;
            }
            Verdict::Later(asked) => asked,
        };
        *failures = failures.saturating_add(1);
        let pause = retry::pause(*failures, asked, rand::random());
        if next.tries + 1 >= TRIES || next.since.elapsed() >= GIVE_UP {
            self.fail(&next.message, &why);
        } else {
            let (name, kind) = (&self.to.load().name, next.message.kind.as_str());
            log::warn!(
                "alerts: {kind} was not taken by {name} ({why}); sent again in {} s",
                pause.as_secs().max(1)
            );
            let mut queue = self.waiting.lock();
            queue.pop_front();
            queue.push_back(Waiting { tries: next.tries + 1, ..next });
        }
        Some(pause)
    }

    async fn send(&self, client: &Client, message: &Message) -> (Verdict, String) {
        let client = match client {
            Ok(client) => client,
            Err(why) => return (Verdict::Later(None), why.clone()),
        };
        let (to, now) = (self.to.load_full(), Utc::now());
        let mut request = client
            .post(to.webhook.url.expose())
            .header("content-type", "application/json")
            .header("x-tollbar-id", &message.id)
            .body(message.body.clone());
        let secret = to.webhook.secret.as_ref();
        if let Some(signed) = secret.and_then(|s| signature(s, now.timestamp(), &message.body)) {
            request = request.header("x-tollbar-signature", signed);
        }
        match request.send().await {
            Ok(answer) => {
                let status = answer.status().as_u16();
                (retry::verdict(status, answer.headers(), now), format!("it answered {status}"))
            }
            Err(error) if error.is_builder() => (Verdict::Never, reason(error)),
            Err(error) => (Verdict::Later(None), reason(error)),
        }
    }

    fn first(&self) -> Option<Waiting> {
        self.waiting.lock().front().cloned()
    }

    fn fail(&self, message: &Message, why: &str) {
        let (name, kind) = (&self.to.load().name, message.kind.as_str());
        log::error!("alerts: {kind} ({}) was not sent to {name}: {why}", message.id);
        self.end("failed");
    }

    /// The first is done with.
    fn end(&self, result: &str) {
        let ended = self.waiting.lock().pop_front();
        if let Some(ended) = ended {
            self.count(&ended.message, result);
        }
    }

    fn count(&self, message: &Message, result: &str) {
        self.results.with_label_values(&[message.kind.as_str(), result]).inc();
    }
}

impl Address {
    /// The path of a webhook is a secret; its host is not.
    fn new(place: usize, webhook: &Webhook) -> Self {
        let uri = webhook.url.expose().parse::<http::Uri>();
        let host = uri.ok().and_then(|uri| uri.host().map(str::to_owned));
        let name = format!("webhook {} ({})", place + 1, host.as_deref().unwrap_or("no host"));
        Address { name, webhook: webhook.clone() }
    }
}

/// What went wrong, in full, without the address.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::alert::Alert;
    use super::*;
    use crate::secret::Secret;
    use prometheus::Opts;

    fn webhook(secret: &str) -> Webhook {
        let url = Secret::new("https://user:pw@hooks.example.com/T0/S3CRET".into());
        Webhook { url, secret: Some(Secret::new(secret.into())) }
    }

    fn results() -> IntCounterVec {
        IntCounterVec::new(Opts::new("alerts", "-"), &["kind", "result"]).unwrap()
    }

    #[test]
    fn it_is_called_by_its_host_only() {
        let receiver = Receiver::new(1, &webhook("one"), results());
        assert_eq!(receiver.to.load().name, "webhook 2 (hooks.example.com)");
        assert!(receiver.is(&webhook("two")), "another secret is the same receiver");
    }

    #[test]
    fn a_full_queue_drops_the_newest_and_counts_it() {
        let counts = results();
        let receiver = Receiver::new(0, &webhook("one"), counts.clone());
        let message = Arc::new(Message::new(&Alert::state_writable(), 1, Utc::now()));
        for _ in 0..CAPACITY + 3 {
            receiver.push(&message, Instant::now());
        }
        assert_eq!(receiver.waiting.lock().len(), CAPACITY);
        assert_eq!(counts.with_label_values(&["state_writable", "dropped"]).get(), 3);
        receiver.give_up("failed", "the test is over");
        assert_eq!(counts.with_label_values(&["state_writable", "failed"]).get(), CAPACITY as u64);
    }
}
