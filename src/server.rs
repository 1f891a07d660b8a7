//! The composition root: snapshot and state become listeners, signals, and a drain that ends.

use crate::access_log::AccessLog;
use crate::admin::AdminApi;
use crate::config::Invalid;
use crate::config::snapshot::{Snapshot, TlsFiles};
use crate::ledger::{self, Ledger, LedgerError};
use crate::listen::{self, Listening, Patience};
use crate::lookout::Lookout;
use crate::metrics::Metrics;
use crate::proxy::Edge;
use crate::reload::{Live, Source};
use crate::state::{Gateway, Running};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pingora_core::apps::HttpServerOptions;
use pingora_core::listeners::tls::Acceptor;
use pingora_core::server::Fds;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::{HttpProxy, http_proxy};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Attempts are bounded by `attempts.max`; this only bounds Pingora's loop around them, dead
/// pooled connections included.
const PINGORA_RETRIES: usize = 64;

/// Idle upstream connections kept, per worker pool.
const UPSTREAM_POOL: usize = 512;

/// How long the connections have to send what the last requests left, at the end of a drain.
const LAST_BYTES: Duration = Duration::from_secs(3);

/// How long the alerts that wait are tried once more for, at the end of a drain …
const LAST_ALERTS: Duration = Duration::from_secs(5);

/// … and how long when the drain has used up its time. Not waited for where none waits.
const LEAST_FOR_ALERTS: Duration = Duration::from_secs(1);

/// Why the server didn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration has problems.
    #[error("{0}")]
    Config(Invalid),
    /// A listener can't be opened.
    #[error("can't listen on {0}: {1}\nfree the port, or change the address in the configuration")]
    Listen(SocketAddr, std::io::Error),
    /// A certificate can't be used.
    #[error("{0}\ncheck the `tls` files of the listener")]
    Tls(String),
    /// The state file can't be used.
    #[error("{0}\ncheck `state.path`, its directory's owner, and the disk")]
    Ledger(LedgerError),
    /// Sockets can't be taken over from a running process.
    #[error(
        "can't take over the sockets from a running process: {0}\nstart without --upgrade, or send the running process SIGQUIT first"
    )]
    Upgrade(String),
    /// The operating system refused something basic.
    #[error("can't start: {0}\ncheck the process's limits")]
    System(String),
}

/// How to run.
pub struct Options {
    /// Where the configuration is.
    pub source: Source,
    /// What secrets and `${VAR}` refer to.
    pub environment: Box<dyn crate::config::Environment + Send + Sync>,
    /// Take the listening sockets over from a running process.
    pub upgrade: bool,
    /// Called once everything listens, with the data listeners' addresses and whether each
    /// speaks TLS, and the admin address.
    pub on_ready: Box<dyn FnOnce(&Ready) + Send>,
}

/// What listens where.
pub struct Ready {
    /// The data listeners.
    pub data: Vec<(SocketAddr, bool)>,
    /// The admin listener.
    pub admin: SocketAddr,
}

/// Runs until told to stop; returns once the drain is over.
///
/// # Errors
/// When it can't start. Nothing has been served then.
pub fn run(options: Options) -> Result<(), StartError> {
    let (live, warnings) =
        Live::start(options.source, options.environment).map_err(StartError::Config)?;
    for warning in &warnings {
        log::warn!("{warning}");
    }
    let threads = live.peek().server.threads;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("tollbar")
        .enable_all()
        .build()
        .map_err(|error| StartError::System(error.to_string()))?;
    let metrics = Metrics::new().map_err(|error| StartError::System(error.to_string()))?;
    let access_log = AccessLog::start(Box::new(std::io::stdout()))
        .map_err(|error| StartError::System(error.to_string()))?;
    let path = live.peek().state_path.clone();
    let ledger = Ledger::open(&path, &ledger::Options::default()).map_err(StartError::Ledger)?;
    let gateway = Gateway::new(live, metrics, access_log, ledger).map_err(StartError::Ledger)?;
    let gateway = Arc::new(gateway);
    let result = runtime.block_on(serve(&gateway, options.upgrade, options.on_ready));
    // What still runs has had its grace: cut it, so that its ends are recorded.
    runtime.shutdown_timeout(Duration::from_millis(500));
    gateway.access_log.flush();
    gateway.ledger.close();
    result
}

async fn serve(
    gateway: &Arc<Gateway>,
    upgrade: bool,
    on_ready: Box<dyn FnOnce(&Ready) + Send>,
) -> Result<(), StartError> {
    let snapshot = gateway.live.snapshot();
    let sockets = Sockets::open(&snapshot, upgrade)?;
    let mut signals = Signals::install().map_err(|error| StartError::System(error.to_string()))?;
    let (stop, stopping) = watch::channel(false);
    let proxy = Arc::new(data_plane(gateway));
    let patience = Patience { header: snapshot.server.header_timeout };
    let open = Arc::new(Running::default());
    let mut ready = Ready { data: Vec::new(), admin: sockets.admin.local };
    for (listener, socket) in snapshot.listeners.iter().zip(sockets.data) {
        let tls = listener.tls.as_ref().map(|files| newest_acceptor(gateway, files)).transpose()?;
        ready.data.push((socket.local, tls.is_some()));
        let listening = Listening { socket: socket.socket, tls };
        tokio::spawn(listen::serve(
            listening,
            proxy.clone(),
            stopping.clone(),
            patience,
            open.clone(),
        ));
    }
    // Stays up during the drain, so that the drain can be watched.
    let (_admin_stop, admin_stopping) = watch::channel(false);
    let admin = Listening { socket: sockets.admin.socket, tls: None };
    let api = Arc::new(AdminApi::new(gateway.clone()));
    tokio::spawn(listen::serve(admin, api, admin_stopping, patience, Arc::default()));
    tokio::spawn(prune(gateway.clone()));
    tokio::spawn(follow_keys(gateway.clone()));
    let lookout = Lookout::start(gateway);
    gateway.warm_later();
    on_ready(&ready);

    let how = signals.wait(gateway).await;
    if how == Stop::HandOver {
        hand_over(&sockets.inherit, &snapshot).await;
    }
    gateway.start_draining();
    let _ = stop.send(true);
    pingora_core::apps::HttpServerApp::http_cleanup(&*proxy).await;
    let grace = match how {
        Stop::Now => Duration::ZERO,
        Stop::Drain | Stop::HandOver => gateway.live.peek().server.drain,
    };
    let drained_by = tokio::time::Instant::now() + grace;
    log::info!("draining: {} requests run, at most {} s", gateway.running.count(), grace.as_secs());
    if tokio::time::timeout(grace, gateway.running.idle()).await.is_err() {
        log::warn!("{} requests are cut off: the drain is over", gateway.running.count());
    } else if how != Stop::Now {
        // A request has ended before HTTP/2 has put its last bytes on the wire. The connections
        // close by themselves then; only a client that doesn't read is not waited for.
        let _ = tokio::time::timeout(LAST_BYTES, open.idle()).await;
    }
    let left = drained_by.saturating_duration_since(tokio::time::Instant::now());
    lookout.finish(left.clamp(LEAST_FOR_ALERTS, LAST_ALERTS)).await;
    Ok(())
}

/// Deletes ledger rows that are older than `state.retention`, once an hour.
async fn prune(gateway: Arc<Gateway>) {
    let mut hourly = tokio::time::interval(Duration::from_secs(3600));
    loop {
        hourly.tick().await;
        let kept = gateway.live.peek().state_retention;
        let before = kept.and_then(|kept| {
            chrono::Utc::now().checked_sub_signed(chrono::TimeDelta::from_std(kept).ok()?)
        });
        let Some(before) = before else { continue };
        let ledger = gateway.ledger.clone();
        match tokio::task::spawn_blocking(move || ledger.prune(before)).await {
            Ok(Ok(rows)) => log::info!("{rows} ledger rows were older than state.retention"),
            Ok(Err(error)) => log::error!("old ledger rows stay: {error}"),
            Err(_) => return,
        }
    }
}

/// Takes over keys that another process has changed in the same state file: during an upgrade
/// two processes serve.
async fn follow_keys(gateway: Arc<Gateway>) {
    let mut often = tokio::time::interval(Duration::from_secs(1));
    often.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failed = false;
    loop {
        often.tick().await;
        let gateway = gateway.clone();
        let Ok(result) = tokio::task::spawn_blocking(move || gateway.keyring.refresh()).await
        else {
            return;
        };
        if let Err(error) = &result
            && !failed
        {
            log::error!("changes of keys by another process can't be read: {error}");
        }
        failed = result.is_err();
    }
}

fn data_plane(gateway: &Arc<Gateway>) -> HttpProxy<Edge> {
    let conf = ServerConf {
        max_retries: PINGORA_RETRIES,
        upstream_keepalive_pool_size: UPSTREAM_POOL,
        ..ServerConf::default()
    };
    let mut proxy = http_proxy(&Arc::new(conf), Edge::new(gateway.clone()));
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    options.h2_idle_timeout = Some(gateway.live.peek().server.idle_timeout);
    proxy.server_options = Some(options);
    proxy
}

/// Gives a TLS listener its acceptor, built again whenever the configuration was reloaded, so
/// that a renewed certificate is served from then on.
fn newest_acceptor(
    gateway: &Arc<Gateway>,
    files: &TlsFiles,
) -> Result<Box<dyn Fn() -> Arc<Acceptor> + Send + Sync>, StartError> {
    let first = Arc::new(listen::acceptor(files).map_err(StartError::Tls)?);
    let kept = ArcSwap::from_pointee((gateway.live.peek().generation, first));
    let (gateway, files) = (gateway.clone(), files.clone());
    let rebuilding = Mutex::new(());
    Ok(Box::new(move || {
        let generation = gateway.live.peek().generation;
        let current = kept.load_full();
        if current.0 == generation {
            return current.1.clone();
        }
        let Some(_turn) = rebuilding.try_lock() else {
            return current.1.clone();
        };
        let acceptor = match listen::acceptor(&files) {
            Ok(new) => Arc::new(new),
            Err(why) => {
                log::error!("the old certificate stays: {why}");
                current.1.clone()
            }
        };
        kept.store(Arc::new((generation, acceptor.clone())));
        acceptor
    }))
}

/// The listening sockets, bound or inherited.
struct Sockets {
    data: Vec<Bound>,
    admin: Bound,
    inherit: Fds,
}

struct Bound {
    socket: TcpListener,
    local: SocketAddr,
}

impl Sockets {
    fn open(snapshot: &Snapshot, upgrade: bool) -> Result<Self, StartError> {
        let mut inherited = Fds::new();
        if upgrade {
            let path = upgrade_socket(snapshot);
            inherited
                .get_from_sock(path.as_str())
                .map_err(|error| StartError::Upgrade(error.to_string()))?;
        }
        let mut inherit = Fds::new();
        let mut open = |address: SocketAddr| {
            let bound = bind(address, inherited.get(&address.to_string()).copied())
                .map_err(|error| StartError::Listen(address, error))?;
            inherit.add(address.to_string(), bound.socket.as_raw_fd());
            Ok(bound)
        };
        let data = snapshot.listeners.iter().map(|l| open(l.address)).collect::<Result<_, _>>()?;
        let admin = open(snapshot.admin.address)?;
        Ok(Sockets { data, admin, inherit })
    }
}

fn bind(address: SocketAddr, inherited: Option<i32>) -> std::io::Result<Bound> {
    let socket = match inherited {
        // SAFETY: the descriptor was just received from the running process, is a listening
        // socket, and nothing else owns it.
        #[allow(unsafe_code)]
        Some(fd) => unsafe { std::net::TcpListener::from_raw_fd(fd) },
        None => {
            let socket = match address {
                SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
                SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
            };
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(4096)?.into_std()?
        }
    };
    socket.set_nonblocking(true)?;
    let socket = TcpListener::from_std(socket)?;
    let local = socket.local_addr()?;
    Ok(Bound { socket, local })
}

/// Where the old and the new process meet: beside the state file, which only the service's user
/// may write.
fn upgrade_socket(snapshot: &Snapshot) -> String {
    snapshot.state_path.with_extension("upgrade.sock").to_string_lossy().into_owned()
}

async fn hand_over(sockets: &Fds, snapshot: &Snapshot) {
    let path = upgrade_socket(snapshot);
    let mut copy = Fds::new();
    let (binds, fds) = sockets.serialize();
    copy.deserialize(binds, fds);
    let sent = tokio::task::spawn_blocking(move || copy.send_to_sock(path.as_str())).await;
    match sent {
        Ok(Ok(_)) => {
            log::info!("listening sockets handed over");
            // Until the new process accepts: nobody finds the door shut.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(Err(error)) => log::error!("no new process took the sockets: {error}"),
        Err(error) => log::error!("handing the sockets over failed: {error}"),
    }
}

/// How the process was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Drain,
    HandOver,
    Now,
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    quit: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Reloads on SIGHUP; returns on a signal that ends the process.
    async fn wait(&mut self, gateway: &Arc<Gateway>) -> Stop {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => {
                    let gateway = gateway.clone();
                    let _ = tokio::task::spawn_blocking(move || gateway.reload()).await;
                }
                _ = self.terminate.recv() => return Stop::Drain,
                _ = self.quit.recv() => return Stop::HandOver,
                _ = self.interrupt.recv() => return Stop::Now,
            }
        }
    }
}
