//! A fake LLM provider on a real socket.
//!
//! # What it is told, per request; the first match wins
//!
//! 1. the queue of scripts of the model, then the queue of `*`
//!    ([`Provider::script`]): one script per request,
//! 2. the default script of the model, then that of `*` ([`Provider::set_default`]),
//! 3. directives in the model id: `sim-small+status=429+retry-after=60`,
//! 4. nothing: a correct answer of sixteen words.
//!
//! `GET …/models` is the model `/models` and never takes a script from `*`.
//!
//! # Layout
//!
//! - `server`: connections and the journey of a request
//! - `ask`, `multipart`: what a request asks for
//! - [`Script`], `directives`: what the provider is told
//! - `answer`: request + script → pieces; `generation`, `text`: what is generated
//! - `openai`, `responses`, `anthropic`, `gemini`, `others`, `errors`: dialects
//! - `feed`, `json`: framing
//! - `body`, `guard`, `io`: pacing, cutting, recording
//! - `recipe`: an answer for other servers to give
//! - `control`: the endpoints for users in another process

mod anthropic;
mod answer;
mod ask;
mod body;
mod control;
mod directives;
mod errors;
mod feed;
mod gemini;
mod generation;
mod guard;
mod io;
mod json;
mod multipart;
mod openai;
mod others;
mod recipe;
mod record;
mod responses;
mod script;
mod server;
mod text;
mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::net::TcpSocket;
use tokio::task::AbortHandle;

pub use recipe::{Recipe, recipe};
pub use record::Recorded;
pub use script::{Cut, Gate, Script};

use record::Log;
use server::{Meter, Scripts, Shared};

/// Requests kept in the record unless [`Provider::keep`] says otherwise.
const KEPT: usize = 65_536;
/// How long closing connections are waited for.
const CLOSING: Duration = Duration::from_secs(2);

/// Certificate chain and private key, both PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate chain.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Tokens and requests whose answers were delivered, wholly or in part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Billed {
    /// 2xx answers of which at least the first byte was handed to the connection.
    pub requests: u64,
    /// Input tokens of these requests.
    pub input_tokens: u64,
    /// Output tokens of the content chunks handed to the connection.
    pub output_tokens: u64,
}

/// A running provider. Dropping it stops it.
pub struct Provider {
    addr: SocketAddr,
    tls: bool,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

impl Provider {
    /// Listens on `addr` (port 0 picks one) and serves HTTP/1.1 and HTTP/2 on
    /// the current tokio runtime: without TLS HTTP/2 by prior knowledge, with
    /// TLS by ALPN.
    ///
    /// # Errors
    ///
    /// When there is no runtime, the address cannot be bound, the TLS files
    /// cannot be used, or TLS is not compiled in.
    pub fn start(addr: SocketAddr, tls: Option<TlsFiles>) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Handle::try_current().map_err(std::io::Error::other)?;
        let acceptor = tls.as_ref().map(tls::acceptor).transpose()?;
        let socket = match addr {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        let listener = socket.listen(4096)?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            log: Log::new(KEPT),
            scripts: Mutex::new(Scripts::default()),
            keys: RwLock::new(None),
            billed: Meter::default(),
            billed_by_model: Mutex::default(),
            accepted: AtomicU64::new(0),
            open: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            peak_in_flight: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
        });
        let task = runtime.spawn(server::accept(Arc::clone(&shared), listener, acceptor));
        Ok(Self { addr, tls: tls.is_some(), shared, accepting: task.abort_handle() })
    }

    /// The address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address as a URL without a path: `http://127.0.0.1:PORT`.
    pub fn base(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.addr)
    }

    /// Queues scripts for a model id, or for `*`: each is used by one request.
    pub fn script(&self, model: &str, scripts: Vec<Script>) {
        let mut all = self.shared.scripts.lock();
        all.queues.entry(model.to_owned()).or_default().extend(scripts);
    }

    /// Sets the script of all requests for a model id, or for `*`, that have no queued one.
    pub fn set_default(&self, model: &str, script: Script) {
        self.shared.scripts.lock().defaults.insert(model.to_owned(), script);
    }

    /// Forgets all scripts, queued and default.
    pub fn reset_scripts(&self) {
        *self.shared.scripts.lock() = Scripts::default();
    }

    /// Accepts this key only; `None` accepts everything again.
    pub fn require_key(&self, key: Option<&str>) {
        *self.shared.keys.write() = key.map(|key| [key.to_owned()].into());
    }

    /// Accepts these keys only, from now on; none of them when the list is empty.
    pub fn accept_keys(&self, keys: Vec<String>) {
        *self.shared.keys.write() = Some(keys.into_iter().collect());
    }

    /// The requests received since the last clear, oldest first.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.log.snapshot()
    }

    /// Forgets the recorded requests. Connections and totals stay.
    pub fn clear(&self) {
        self.shared.log.clear();
    }

    /// Keeps at most this many requests on record, the newest ones.
    pub fn keep(&self, limit: usize) {
        self.shared.log.keep(limit);
    }

    /// Waits until `n` requests were received since the last clear.
    /// False when the time is over first.
    pub async fn wait_for(&self, n: usize, timeout: Duration) -> bool {
        let log = &self.shared.log;
        log.wait(timeout, || log.count() >= n).await
    }

    /// Waits until `done` holds for the recorded requests; looks again after
    /// every chunk, end or departure. False when the time is over first.
    pub async fn wait_until(&self, timeout: Duration, done: impl Fn(&[Recorded]) -> bool) -> bool {
        let log = &self.shared.log;
        log.wait(timeout, || done(&log.snapshot())).await
    }

    /// Waits until no request is being answered. False when the time is over first.
    pub async fn wait_idle(&self, timeout: Duration) -> bool {
        let idle = || self.in_flight() == 0;
        self.shared.log.wait(timeout, idle).await
    }

    /// TCP connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.accepted.load(Relaxed)
    }

    /// TCP connections open now.
    pub fn open_connections(&self) -> usize {
        self.shared.open.lock().len()
    }

    /// Requests being answered now.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Relaxed)
    }

    /// The most requests that were being answered at the same time.
    pub fn peak_in_flight(&self) -> usize {
        self.shared.peak_in_flight.load(Relaxed)
    }

    /// Closes all connections on which nothing is being answered, and waits
    /// until they are closed. Returns how many there were.
    pub async fn close_idle(&self) -> usize {
        let closing = self.shared.close_idle();
        let gone = || {
            let open = self.shared.open.lock();
            closing.iter().all(|id| !open.contains_key(id))
        };
        self.shared.log.wait(CLOSING, gone).await;
        closing.len()
    }

    /// What was really delivered so far.
    pub fn billed(&self) -> Billed {
        let billed = &self.shared.billed;
        Billed {
            requests: billed.requests.load(Relaxed),
            input_tokens: billed.input_tokens.load(Relaxed),
            output_tokens: billed.output_tokens.load(Relaxed),
        }
    }

    /// Stops listening, breaks all connections and waits until they are gone.
    /// The record stays readable; the address can be bound again.
    pub async fn stop(&self) {
        self.halt();
        let gone = || self.accepting.is_finished() && self.open_connections() == 0;
        for _ in 0..CLOSING.as_millis() {
            // The accept task leaves no note when it ends: look every millisecond.
            if gone() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn halt(&self) {
        self.shared.stopping.store(true, Relaxed);
        self.accepting.abort();
        for open in self.shared.open.lock().values() {
            if let Some(task) = &open.task {
                task.abort();
            }
        }
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Shared {
    /// Tells all idle connections to close; returns their numbers.
    pub(crate) fn close_idle(&self) -> Vec<u64> {
        let open = self.open.lock();
        let idle = open.iter().filter(|(_, open)| open.conn.busy.load(Relaxed) == 0);
        idle.map(|(id, open)| {
            open.conn.close.notify_one();
            *id
        })
        .collect()
    }
}
