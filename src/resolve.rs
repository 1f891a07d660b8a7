//! Provider host names to addresses, looked up off the request path where possible.
//!
//! Pingora wants an address, and its own lookup blocks and panics. Answers are kept for 30 s;
//! when a lookup fails the last known addresses go on being used, and say so in the log.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long an answer is used before it is asked for again.
const FRESH: Duration = Duration::from_secs(30);

/// How long the last known addresses are used after a lookup that failed, before the next one: not
/// every request waits for a server of names that is gone.
const AGAIN: Duration = Duration::from_secs(5);

/// A cache of lookups.
#[derive(Default)]
pub struct Resolver {
    known: Mutex<HashMap<(String, u16), Known>>,
    turn: AtomicUsize,
}

#[derive(Clone)]
struct Known {
    addresses: Vec<SocketAddr>,
    at: Instant,
}

impl Resolver {
    /// An address of the host; a different one each time where there are several.
    ///
    /// # Errors
    /// When the name doesn't resolve `within` this time, and never did.
    pub async fn resolve(
        &self,
        host: &str,
        port: u16,
        within: Duration,
    ) -> std::io::Result<SocketAddr> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, port));
        }
        let key = (host.to_owned(), port);
        let known = self.known.lock().get(&key).cloned();
        if let Some(fresh) = known.as_ref().filter(|known| known.at.elapsed() < FRESH)
            && let Some(address) = self.pick(&fresh.addresses)
        {
            return Ok(address);
        }
        let lookup = tokio::time::timeout(within, tokio::net::lookup_host((host, port))).await;
        match lookup.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
            Ok(found) => {
                let addresses: Vec<_> = found.collect();
                let address = self.pick(&addresses).ok_or_else(|| {
                    std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address")
                })?;
                self.known.lock().insert(key, Known { addresses, at: Instant::now() });
                Ok(address)
            }
            Err(error) => match known.and_then(|known| {
                let address = self.pick(&known.addresses)?;
                Some((address, known))
            }) {
                Some((address, known)) => {
                    log::warn!("{host} doesn't resolve ({error}); using its last known address");
                    let now = Instant::now();
                    let at = now.checked_sub(FRESH.saturating_sub(AGAIN)).unwrap_or(now);
                    // Unless another request has had an answer meanwhile.
                    if let Some(now) = self.known.lock().get_mut(&key)
                        && now.at == known.at
                    {
                        now.at = at;
                    }
                    Ok(address)
                }
                None => Err(error),
            },
        }
    }

    fn pick(&self, addresses: &[SocketAddr]) -> Option<SocketAddr> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        addresses.get(turn % addresses.len().max(1)).copied()
    }
}
