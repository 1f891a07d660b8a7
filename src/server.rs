//! The composition root: snapshot and state become listeners, signals, and a drain that ends.

use crate::access_log::AccessLog;
use crate::admin::AdminApi;
use crate::config::Invalid;
use crate::config::snapshot::TlsFiles;
use crate::housekeeping;
use crate::ledger::{self, Ledger, LedgerError};
use crate::listen::{self, Listening, Patience};
use crate::lookout::Lookout;
use crate::memory;
use crate::metrics::Metrics;
use crate::outlet::LAST_LINES;
use crate::proxy::Edge;
use crate::reload::{Live, Source};
use crate::reloader::Reloader;
use crate::sockets::{self, Sockets};
use crate::state::{Gateway, Running};
use crate::systemd::Notifier;
use crate::terminal::Unwritten;
use crate::upgrade::{Taker, Upgrade};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pingora_core::apps::HttpServerOptions;
use pingora_core::listeners::tls::Acceptor;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::{HttpProxy, http_proxy};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Attempts are bounded by `attempts.max`; this only bounds Pingora's loop around them, dead
/// pooled connections included.
const PINGORA_RETRIES: usize = 64;

/// After a hand-over, how long idle connections wait for a last request. It is answered, and told
/// that the connection closes, so that its client comes to the new process without an error.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// Idle upstream connections kept, per worker pool.
const UPSTREAM_POOL: usize = 512;

/// How long the connections have to send what the last requests left, at the end of a drain.
const LAST_BYTES: Duration = Duration::from_secs(3);

/// How long what is cut off has to say so, in the log, the ledger and to its client.
const LAST_WORDS: Duration = Duration::from_secs(2);

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
        "can't take over the sockets from a running process: {0}\nsend that process SIGQUIT within a minute, or start without --upgrade"
    )]
    Upgrade(std::io::Error),
    /// The operating system refused something basic.
    #[error("can't start: {0}\ncheck the process's limits")]
    System(String),
    /// What there is to say once it serves can't be said.
    #[error("{0}")]
    Output(Unwritten),
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
    pub on_ready: OnReady,
}

/// Says that it serves, to whoever has to know.
pub type OnReady = Box<dyn FnOnce(&Ready) -> Result<(), Unwritten> + Send>;

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
    memory::leave_no_core();
    memory::use_small_pages();
    sockets::allow_descriptors();
    let early = Early::install().map_err(|error| StartError::System(error.to_string()))?;
    let (live, warnings) =
        Live::start(options.source, options.environment).map_err(StartError::Config)?;
    // A large file has passed through memory, and will not be needed again.
    memory::give_back();
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
    let service = Notifier::new(|name| std::env::var(name).ok());
    let gateway =
        Gateway::new(live, metrics, access_log, ledger, service).map_err(StartError::Ledger)?;
    let gateway = Arc::new(gateway);
    let result = runtime.block_on(serve(&gateway, options.upgrade, early, options.on_ready));
    // What still runs has had its grace: cut it, so that its ends are recorded.
    runtime.shutdown_timeout(Duration::from_millis(500));
    // The money first: whoever reads the log may hang.
    gateway.ledger.close();
    gateway.access_log.finish(LAST_LINES);
    result
}

async fn serve(
    gateway: &Arc<Gateway>,
    upgrade: bool,
    early: Early,
    on_ready: OnReady,
) -> Result<(), StartError> {
    let snapshot = gateway.live.snapshot();
    let sockets = Sockets::open(&snapshot, upgrade).map_err(|problem| match problem {
        sockets::Problem::Bind(address, error) => StartError::Listen(address, error),
        sockets::Problem::NotGiven(error) => StartError::Upgrade(error),
    })?;
    let mut signals =
        Signals::install(early).map_err(|error| StartError::System(error.to_string()))?;
    let reloader = Reloader::start(gateway.clone(), Handle::current())
        .map_err(|error| StartError::System(error.to_string()))?;
    let (stop, stopping) = watch::channel(false);
    let proxy = Arc::new(data_plane(gateway));
    let patience = || {
        let gateway = gateway.clone();
        move || {
            let settings = &gateway.live.peek().server;
            Patience { header: settings.header_timeout, idle: settings.idle_timeout }
        }
    };
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
            patience(),
            open.clone(),
        ));
    }
    // Stays up during a drain, so that it can be watched; after a hand-over the new process is asked.
    let (admin_stop, admin_stopping) = watch::channel(false);
    let admin = Listening { socket: sockets.admin.socket, tls: None };
    let api = Arc::new(AdminApi::new(gateway.clone(), reloader.clone()));
    tokio::spawn(listen::serve(admin, api, admin_stopping, patience(), Arc::default()));
    tokio::spawn(housekeeping::prune(gateway.clone()));
    tokio::spawn(housekeeping::follow_keys(gateway.clone()));
    tokio::spawn(housekeeping::watch_memory(gateway.clone()));
    tokio::spawn(housekeeping::forget_idle(gateway.clone()));
    let lookout = Lookout::start(gateway);
    gateway.open_later();
    gateway.tell_twins();
    on_ready(&ready).map_err(StartError::Output)?;
    if let Some(old) = sockets.old {
        let _ = tokio::task::spawn_blocking(move || old.serving()).await;
    }
    gateway.service.ready(&gateway.standing());
    // What was in force at the start must not outlive the reload that replaces it.
    drop(snapshot);
    let watchdog = tokio::spawn(housekeeping::watchdog(gateway.clone()));

    let how = signals.wait(gateway, &reloader, &sockets.next).await;
    // As long as one of these is open, connections would queue up that nobody accepts.
    drop(sockets.next);
    let (hurry, hurried) = watch::channel(false);
    tokio::spawn(signals.wait_no_more(gateway.clone(), hurry));
    let grace = match how {
        Stop::Now | Stop::HandedOverNow => Duration::ZERO,
        Stop::Drain | Stop::HandedOver => gateway.live.peek().server.drain,
    };
    if matches!(how, Stop::HandedOver | Stop::HandedOverNow) {
        // Whatever still comes on open connections is served: the service as a whole goes on.
        watchdog.abort();
        let _ = admin_stop.send(true);
        let _ = stop.send(true);
        let _ = within(grace.min(LAST_REQUESTS), &hurried, open.idle()).await;
    } else {
        gateway.service.stopping(&format!("draining, at most {} s", grace.as_secs()));
        gateway.start_draining();
        let _ = stop.send(true);
    }
    pingora_core::apps::HttpServerApp::http_cleanup(&*proxy).await;
    let drained_by = tokio::time::Instant::now() + grace;
    log::info!("draining: {} requests run, at most {} s", gateway.running.count(), grace.as_secs());
    if within(grace, &hurried, gateway.running.idle()).await.is_none() {
        log::warn!("{} requests are cut off: the drain is over", gateway.running.count());
        gateway.running.cut();
        let _ = tokio::time::timeout(LAST_WORDS, gateway.running.idle()).await;
    } else if !matches!(how, Stop::Now | Stop::HandedOverNow) {
        // A request has ended before HTTP/2 has put its last bytes on the wire. The connections
        // close by themselves then; only a client that doesn't read is not waited for.
        let _ = within(LAST_BYTES, &hurried, open.idle()).await;
    }
    let left = match *hurried.borrow() {
        true => Duration::ZERO,
        false => drained_by.saturating_duration_since(tokio::time::Instant::now()),
    };
    lookout.finish(left.clamp(LEAST_FOR_ALERTS, LAST_ALERTS)).await;
    Ok(())
}

/// What comes of the work, if it ends in time and nobody is in a hurry.
async fn within<T>(
    grace: Duration,
    hurried: &watch::Receiver<bool>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut hurried = hurried.clone();
    tokio::select! {
        done = tokio::time::timeout(grace, work) => done.ok(),
        _ = hurried.wait_for(|hurried| *hurried) => None,
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

/// How the process was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Drain,
    HandedOver,
    HandedOverNow,
    Now,
}

/// Signals that mean no end, and would be one for a process that doesn't hear them. What comes
/// while it starts is kept until it serves.
struct Early {
    hangup: Signal,
    quit: Signal,
    user2: Signal,
    /// A limit of file sizes (`ulimit -f`) is an error of the write, and not the end of the process.
    too_large: Signal,
    /// SIGTERM and SIGINT of a container's first process: the kernel drops what that doesn't hear.
    ends: Option<(Signal, Signal)>,
}

impl Early {
    fn install() -> std::io::Result<Self> {
        // The one that serves has as many threads as the configuration says, which may take long to
        // load. The signals are the process's, and go by whichever there is.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let _context = runtime.enter();
        Ok(Early {
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            user2: signal(SignalKind::user_defined2())?,
            too_large: signal(SignalKind::from_raw(TOO_LARGE))?,
            ends: if std::process::id() == 1 { Some(ends()?) } else { None },
        })
    }
}

fn ends() -> std::io::Result<(Signal, Signal)> {
    Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
}

/// All of them. SIGTERM and SIGINT end a process that only starts, as they should.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    quit: Signal,
    interrupt: Signal,
    user2: Signal,
    _too_large: Signal,
}

/// SIGXFSZ, which tokio has no name for.
const TOO_LARGE: i32 = 25;

impl Signals {
    fn install(early: Early) -> std::io::Result<Self> {
        let (terminate, interrupt) = early.ends.map_or_else(ends, Ok)?;
        Ok(Signals {
            hangup: early.hangup,
            terminate,
            quit: early.quit,
            interrupt,
            user2: early.user2,
            _too_large: early.too_large,
        })
    }

    /// While the process ends: what still runs goes by the newest configuration, and SIGINT is the
    /// end of all patience.
    async fn wait_no_more(mut self, gateway: Arc<Gateway>, hurry: watch::Sender<bool>) {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => {
                    let gateway = gateway.clone();
                    // systemd has been told that the process ends, and hears no more of it.
                    drop(tokio::task::spawn_blocking(move || gateway.reload_quietly()));
                }
                _ = self.interrupt.recv() => {
                    let _ = hurry.send(true);
                }
                _ = self.terminate.recv() => {}
                _ = self.quit.recv() => {}
                _ = self.user2.recv() => {}
            }
        }
    }

    /// Reloads on SIGHUP; returns when the process is to end.
    async fn wait(
        &mut self,
        gateway: &Arc<Gateway>,
        reloader: &Reloader,
        sockets: &Arc<Vec<(String, OwnedFd)>>,
    ) -> Stop {
        loop {
            let taker = tokio::select! {
                _ = self.hangup.recv() => {
                    // Many keys, or a file system that hangs, are no reason not to end.
                    tokio::select! {
                        () = reload(reloader) => continue,
                        _ = self.terminate.recv() => return Stop::Drain,
                        _ = self.interrupt.recv() => return Stop::Now,
                    }
                }
                _ = self.terminate.recv() => return Stop::Drain,
                _ = self.interrupt.recv() => return Stop::Now,
                _ = self.quit.recv() => Taker::Waiting,
                _ = self.user2.recv() => Taker::Started,
            };
            let mut upgrade = Upgrade::start(gateway, sockets, taker);
            // Nobody who wants the process to end has to wait for a taker that may never come. Where
            // it has come, the service goes on in it, and only this process ends.
            let over = loop {
                // Keys can be taken away meanwhile, too.
                let hangup = async {
                    self.hangup.recv().await;
                    reload(reloader).await;
                };
                tokio::select! {
                    over = upgrade.over() => break over,
                    () = hangup => {}
                    _ = self.terminate.recv() => return match upgrade.give_up().await {
                        true => Stop::HandedOver,
                        false => Stop::Drain,
                    },
                    _ = self.interrupt.recv() => return match upgrade.give_up().await {
                        true => Stop::HandedOverNow,
                        false => Stop::Now,
                    },
                }
            };
            if over {
                return Stop::HandedOver;
            }
        }
    }
}

async fn reload(reloader: &Reloader) {
    if reloader.reload().await.is_none() {
        log::error!("reload: a bug ended it, the old configuration stays");
    }
}
