//! Provider host names to addresses, looked up beside the requests.
//!
//! Pingora wants an address, and its own lookup blocks and panics. An answer is asked for again
//! after 30 s, by one lookup at a time for each name, since one that hangs keeps a thread; the last
//! known addresses are used meanwhile, and as long as lookups fail. A request waits only where none
//! are known, or where nobody has asked for five minutes, and then never for a server of names that
//! others have waited for in vain.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::timeout;

/// How long an answer is used before it is asked for again, …
const FRESH: Duration = Duration::from_secs(30);

/// … and how long without waiting for the next one, unless that fails.
const STALE: Duration = Duration::from_secs(300);

/// How long the last known addresses are used after a lookup that failed, before the next one.
const AGAIN: Duration = Duration::from_secs(5);

type Found = Pin<Box<dyn Future<Output = Result<Vec<SocketAddr>>> + Send>>;
type LookUp = Box<dyn Fn(String, u16) -> Found + Send + Sync>;

/// A cache of lookups.
pub struct Resolver(Arc<Names>);

struct Names {
    known: Mutex<HashMap<(String, u16), Name>>,
    turn: AtomicUsize,
    look_up: LookUp,
}

/// What is known of a name.
#[derive(Default)]
struct Name {
    addresses: Vec<SocketAddr>,
    /// When the lookup began that gave the addresses; none are known before.
    at: Option<Instant>,
    failed: Option<Failed>,
    last: Option<Running>,
}

/// How the last lookup failed.
struct Failed {
    /// Not tried again before this, where addresses are known.
    until: Instant,
    kind: ErrorKind,
    why: String,
}

/// A lookup that runs until its channel is closed.
#[derive(Clone)]
struct Running {
    since: Instant,
    end: watch::Receiver<()>,
}

impl Default for Resolver {
    fn default() -> Self {
        Resolver::with(Box::new(|host, port| {
            Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
        }))
    }
}

impl Resolver {
    fn with(look_up: LookUp) -> Self {
        let (known, turn) = (Mutex::default(), AtomicUsize::default());
        Resolver(Arc::new(Names { known, turn, look_up }))
    }

    /// An address of the host; a different one each time where there are several.
    ///
    /// # Errors
    /// When the name doesn't resolve `within` this time, and never did.
    pub async fn resolve(&self, host: &str, port: u16, within: Duration) -> Result<SocketAddr> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, port));
        }
        self.resolve_at(host, port, within, Instant::now()).await
    }

    async fn resolve_at(
        &self,
        host: &str,
        port: u16,
        within: Duration,
        now: Instant,
    ) -> Result<SocketAddr> {
        let key = (host.to_owned(), port);
        let (mut running, patience) = match self.0.ask(&key, within, now) {
            Ask::Use(address) => return Ok(address),
            Ask::Wait(running, patience) => (running, patience),
        };
        // Nothing is ever sent: what comes is its end.
        let late = timeout(patience, running.end.changed()).await.is_err();
        self.0.after(&key, late)
    }
}

/// What a request does that wants an address.
enum Ask {
    Use(SocketAddr),
    Wait(Running, Duration),
}

impl Names {
    /// Looks what is known, and sees to it that a lookup runs where one is due.
    fn ask(self: &Arc<Self>, key: &(String, u16), within: Duration, now: Instant) -> Ask {
        let mut names = self.known.lock();
        let name = match names.get_mut(key) {
            Some(name) => name,
            None => names.entry(key.clone()).or_default(),
        };
        let known = self.pick(&name.addresses);
        if let Some(address) = known.filter(|_| name.is_calm(now)) {
            return Ask::Use(address);
        }
        let running = match &name.last {
            Some(running) if running.end.has_changed().is_ok() => running.clone(),
            _ => self.start(key, name, within, now),
        };
        match known {
            None => Ask::Wait(running, within),
            Some(address) => match name.patience(&running, within, now) {
                Duration::ZERO => Ask::Use(address),
                patience => Ask::Wait(running, patience),
            },
        }
    }

    /// What to go by after a lookup, or after having waited for it for long enough.
    fn after(&self, key: &(String, u16), late: bool) -> Result<SocketAddr> {
        let names = self.known.lock();
        let name = names.get(key);
        if let Some(address) = name.and_then(|name| self.pick(&name.addresses)) {
            return Ok(address);
        }
        match name.and_then(|name| name.failed.as_ref()).filter(|_| !late) {
            Some(failed) => Err(Error::new(failed.kind, failed.why.clone())),
            None => Err(ErrorKind::TimedOut.into()),
        }
    }

    fn start(
        self: &Arc<Self>,
        key: &(String, u16),
        name: &mut Name,
        within: Duration,
        now: Instant,
    ) -> Running {
        let (ends, end) = watch::channel(());
        let running = Running { since: now, end };
        name.last = Some(running.clone());
        let (names, key) = (self.clone(), key.clone());
        // On its own: whoever asked first may not wait for it.
        tokio::spawn(async move {
            names.look_up(&key, within, now).await;
            drop(ends);
        });
        running
    }

    async fn look_up(&self, key: &(String, u16), within: Duration, now: Instant) {
        let mut lookup = (self.look_up)(key.0.clone(), key.1);
        let found = match timeout(within, &mut lookup).await {
            Ok(found) => found,
            // It can't be called off: another one would take another thread.
            Err(_) => {
                self.tell(key, &format!("no answer for {} s", within.as_secs_f64()));
                lookup.await
            }
        };
        match found {
            Ok(addresses) if !addresses.is_empty() => {
                let mut names = self.known.lock();
                let name = names.entry(key.clone()).or_default();
                (name.addresses, name.at, name.failed) = (addresses, Some(now), None);
            }
            Ok(_) => self.fail(key, ErrorKind::NotFound, "the name has no address".to_owned(), now),
            Err(error) => self.fail(key, error.kind(), error.to_string(), now),
        }
    }

    fn fail(&self, key: &(String, u16), kind: ErrorKind, why: String, now: Instant) {
        self.tell(key, &why);
        let failed = Failed { until: now + AGAIN, kind, why };
        self.known.lock().entry(key.clone()).or_default().failed = Some(failed);
    }

    /// Where nothing is known yet, the request says what is wrong.
    fn tell(&self, key: &(String, u16), why: &str) {
        if self.known.lock().get(key).is_some_and(|name| name.at.is_some()) {
            log::warn!("{} doesn't resolve ({why}); using its last known address", key.0);
        }
    }

    fn pick(&self, addresses: &[SocketAddr]) -> Option<SocketAddr> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        addresses.get(turn % addresses.len().max(1)).copied()
    }
}

impl Name {
    fn age(&self, now: Instant) -> Option<Duration> {
        self.at.map(|at| now.saturating_duration_since(at))
    }

    /// Whether what is known needs no lookup now.
    fn is_calm(&self, now: Instant) -> bool {
        self.age(now).is_some_and(|age| age < FRESH)
            || self.failed.as_ref().is_some_and(|failed| now < failed.until)
    }

    /// How long this lookup is worth waiting for where addresses are known.
    fn patience(&self, running: &Running, within: Duration, now: Instant) -> Duration {
        let recent = self.age(now).is_some_and(|age| age < STALE);
        let failing = self.failed.as_ref().is_some_and(|failed| now < failed.until + STALE);
        if recent || failing {
            return Duration::ZERO;
        }
        within.saturating_sub(now.saturating_duration_since(running.since))
    }
}

#[cfg(test)]
mod tests;
