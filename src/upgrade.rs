//! An upgrade without a closed door, as the old process sees it.
//!
//! On SIGQUIT the sockets go to a process that somebody has started with `--upgrade`. On SIGUSR2
//! this process starts that one itself, from the file that it was started from: under systemd the
//! new process is in the same unit that way, with the same user, limits and credentials. Either
//! way, a new process that doesn't come to serve changes nothing. Told to stop meanwhile, this one
//! gives the upgrade up: else a process that it has started would serve on without it. The first
//! process of a container gives its sockets to nobody: with it, all others end.

use crate::handover::{self, Heir};
use crate::sockets;
use crate::state::Gateway;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long a process that was started here may take to load and to ask for the sockets.
const FOR_A_START: Duration = Duration::from_secs(120);

/// It takes some milliseconds. A file system that hangs is no reason not to end.
const FOR_GIVING_UP: Duration = Duration::from_secs(2);

/// Who takes the sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taker {
    /// A process that waits for them already.
    Waiting,
    /// One that is started for it.
    Started,
}

/// An upgrade under way. It ends by itself, or is given up; one that is dropped would go on.
pub struct Upgrade {
    gateway: Arc<Gateway>,
    given_up: Arc<AtomicBool>,
    given: JoinHandle<io::Result<Heir>>,
}

impl Upgrade {
    /// Begins to give the sockets away.
    pub fn start(
        gateway: &Arc<Gateway>,
        sockets: &Arc<Vec<(String, OwnedFd)>>,
        taker: Taker,
    ) -> Self {
        let place = sockets::meeting_place(&gateway.live.peek());
        let (sockets, given_up) = (sockets.clone(), Arc::<AtomicBool>::default());
        let hope = hope(given_up.clone());
        let give = move || {
            may_end()?;
            match taker {
                Taker::Waiting => {
                    log::info!("upgrade: looking for a process that waits at {}", place.display());
                    handover::give(&place, &sockets, handover::FOR_A_TAKER, hope)
                }
                Taker::Started => {
                    let mut child = successor()?;
                    log::info!("upgrade: started process {}", child.id());
                    let alive = || hope().and_then(|()| still_runs(&mut child));
                    let given = handover::give(&place, &sockets, FOR_A_START, alive);
                    if given.is_err() {
                        let _ = child.kill();
                        let _ = child.wait();
                    }
                    given
                }
            }
        };
        let given = tokio::task::spawn_blocking(give);
        Upgrade { gateway: gateway.clone(), given_up, given }
    }

    /// Waits for its end, and tells systemd whom to follow. Returns whether another process serves
    /// now. May be dropped and called again.
    pub async fn over(&mut self) -> bool {
        let why = match (&mut self.given).await {
            Ok(Ok(heir)) => {
                log::info!("process {} has the listening sockets and serves", heir.pid);
                self.gateway.service.main_pid(heir.pid);
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if self.given_up.load(Ordering::Relaxed) {
            log::warn!("upgrade: {why}");
            return false;
        }
        log::error!("upgrade: {why}; this process goes on serving");
        let status = format!("upgrade failed, the old process goes on serving: {why}");
        self.gateway.service.status(&status);
        false
    }

    /// The process is to end: the sockets come back from whoever could still take them, and a
    /// process that was started for them is gone. Returns whether it was too late for that, because
    /// another process serves.
    pub async fn give_up(mut self) -> bool {
        self.given_up.store(true, Ordering::Relaxed);
        tokio::time::timeout(FOR_GIVING_UP, self.over()).await.unwrap_or_else(|_| {
            log::error!("upgrade: it can't be given up, the sockets may stay open");
            false
        })
    }
}

/// There is some until the upgrade is given up.
fn hope(given_up: Arc<AtomicBool>) -> impl Fn() -> io::Result<()> {
    move || match given_up.load(Ordering::Relaxed) {
        true => Err(io::Error::new(io::ErrorKind::Interrupted, "given up, the process ends")),
        false => Ok(()),
    }
}

/// The kernel ends everything with the first process of a container (pid_namespaces(7)).
fn may_end() -> io::Result<()> {
    if std::process::id() != 1 {
        return Ok(());
    }
    let what = "this is process 1 of a container: whatever takes over would end with it. Start a new container";
    Err(io::Error::new(io::ErrorKind::Unsupported, what))
}

/// Starts what is now in the place of this program, with the same arguments.
fn successor() -> io::Result<Child> {
    let mut arguments = std::env::args_os();
    let program = arguments.next().ok_or(io::ErrorKind::NotFound)?;
    let mut arguments: Vec<OsString> = arguments.collect();
    if arguments.first().is_none_or(|command| command != "run") {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "only `tollbar run` is upgraded"));
    }
    if !arguments.iter().any(|argument| argument == "--upgrade") {
        arguments.push("--upgrade".into());
    }
    // WATCHDOG_PID names this process; the new one is watched once it is the service's own.
    Command::new(program).args(arguments).env_remove("WATCHDOG_PID").stdin(Stdio::null()).spawn()
}

fn still_runs(child: &mut Child) -> io::Result<()> {
    match child.try_wait()? {
        None => Ok(()),
        Some(status) => {
            let what = format!("the new process ended ({status}); its last lines say why");
            Err(io::Error::new(io::ErrorKind::BrokenPipe, what))
        }
    }
}
