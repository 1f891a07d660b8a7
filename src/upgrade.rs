//! An upgrade without a closed door, as the old process sees it.
//!
//! On SIGQUIT the sockets go to a process that somebody has started with `--upgrade`. On SIGUSR2
//! this process starts that one itself, from the file that it was started from: under systemd the
//! new process is in the same unit that way, with the same user, limits and credentials. Either
//! way, a new process that doesn't come to serve changes nothing.

use crate::handover;
use crate::sockets;
use crate::state::Gateway;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// How long a process that was started here may take to load and to ask for the sockets.
const FOR_A_START: Duration = Duration::from_secs(120);

/// Who takes the sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taker {
    /// A process that waits for them already.
    Waiting,
    /// One that is started for it.
    Started,
}

/// Gives the sockets away, and tells systemd whom to follow. Returns whether another process
/// serves now.
pub async fn hand_over(
    gateway: &Arc<Gateway>,
    sockets: &Arc<Vec<(String, OwnedFd)>>,
    taker: Taker,
) -> bool {
    let place = sockets::meeting_place(&gateway.live.peek());
    let sockets = sockets.clone();
    let given = tokio::task::spawn_blocking(move || match taker {
        Taker::Waiting => handover::give(&place, &sockets, handover::FOR_A_TAKER, || Ok(())),
        Taker::Started => {
            let mut child = successor()?;
            let alive = || still_runs(&mut child);
            let given = handover::give(&place, &sockets, FOR_A_START, alive);
            if given.is_err() {
                let _ = child.kill();
                let _ = child.wait();
            }
            given
        }
    });
    let why = match given.await {
        Ok(Ok(heir)) => {
            log::info!("process {} has the listening sockets and serves", heir.pid);
            gateway.service.main_pid(heir.pid);
            return true;
        }
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    log::error!("upgrade: {why}; this process goes on serving");
    gateway.service.status(&format!("upgrade failed, the old process goes on serving: {why}"));
    false
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
