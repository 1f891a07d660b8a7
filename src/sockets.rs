//! The listening sockets, bound or taken over from another process.

use crate::config::snapshot::Snapshot;
use crate::handover::{self, Inheritance};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpSocket};

/// Connections that wait to be accepted, per socket; the system's own bound may be lower.
const BACKLOG: u32 = 4096;

/// Lets the process have as many descriptors as the system's hard limit allows: two for each running
/// request, and shells give 1,024.
pub fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        log::debug!("no more than {current:?} descriptors: {error}");
    }
}

/// Why sockets can't be had.
pub enum Problem {
    /// An address can't be bound.
    Bind(SocketAddr, io::Error),
    /// No process has given its sockets.
    NotGiven(io::Error),
}

/// The sockets of a process.
pub struct Sockets {
    /// The data listeners, in the order of the configuration.
    pub data: Vec<Bound>,
    /// The admin listener.
    pub admin: Bound,
    /// To be told that this process serves, where there is an old one.
    pub old: Option<Inheritance>,
    /// The same sockets, for the process that comes next. They stay open as long as this does.
    pub next: Arc<Vec<(String, OwnedFd)>>,
}

/// One listening socket.
pub struct Bound {
    /// The socket.
    pub socket: TcpListener,
    /// Its address, with the port that it got.
    pub local: SocketAddr,
}

impl Sockets {
    /// Binds them all; with `upgrade`, those that a running process gives are taken over instead.
    /// Within a runtime.
    ///
    /// # Errors
    /// An address is taken, or no process gives its sockets.
    pub fn open(snapshot: &Snapshot, upgrade: bool) -> Result<Self, Problem> {
        let mut old = upgrade
            .then(|| Inheritance::wait(&meeting_place(snapshot), handover::FOR_SOCKETS))
            .transpose()
            .map_err(Problem::NotGiven)?;
        let mut next = Vec::new();
        let mut names = Names::default();
        let mut open = |address: SocketAddr| {
            let name = names.next(address);
            let given = old.as_mut().and_then(|old| old.take(&name));
            let bound = bind(address, given).map_err(|error| Problem::Bind(address, error))?;
            let again = bound.socket.as_fd().try_clone_to_owned();
            next.push((name, again.map_err(|error| Problem::Bind(address, error))?));
            Ok(bound)
        };
        let data = snapshot.listeners.iter().map(|l| open(l.address)).collect::<Result<_, _>>()?;
        let admin = open(snapshot.admin.address)?;
        Ok(Sockets { data, admin, old, next: Arc::new(next) })
    }
}

/// Where the old and the new process meet: beside the state file, which only the service's user
/// may write.
pub fn meeting_place(snapshot: &Snapshot) -> PathBuf {
    snapshot.state_path.with_extension("upgrade.sock")
}

/// Names for sockets by which the next process finds them: the address as it is configured, and a
/// number where several have port 0.
#[derive(Default)]
struct Names(HashMap<SocketAddr, usize>);

impl Names {
    fn next(&mut self, address: SocketAddr) -> String {
        let n = self.0.entry(address).or_default();
        *n += 1;
        if *n == 1 { address.to_string() } else { format!("{address}#{n}") }
    }
}

fn bind(address: SocketAddr, given: Option<OwnedFd>) -> io::Result<Bound> {
    let socket = match given {
        Some(fd) => std::net::TcpListener::from(fd),
        None => {
            let socket = match address {
                SocketAddr::V4(_) => TcpSocket::new_v4()?,
                SocketAddr::V6(_) => TcpSocket::new_v6()?,
            };
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)?.into_std()?
        }
    };
    socket.set_nonblocking(true)?;
    let socket = TcpListener::from_std(socket)?;
    let local = socket.local_addr()?;
    Ok(Bound { socket, local })
}
