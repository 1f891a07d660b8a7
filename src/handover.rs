//! Listening sockets go from one process to the next, and the old one hears when the new one
//! serves.
//!
//! The new process binds a socket beside the state file and waits. The old one connects, sends the
//! names and descriptors of its listeners (`SCM_RIGHTS`, unix(7)) and waits for `serving`. Until
//! then it serves on; if the word never comes, it goes on serving. From then on both processes
//! have had the same listening sockets, whose queues the kernel keeps, so that no connection is
//! refused in between. Only processes of the same user, or root, talk to each other.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the new process waits for the sockets: time for a person to send the signal.
pub const FOR_SOCKETS: Duration = Duration::from_secs(60);

/// How long the old process looks for a new one.
pub const FOR_A_TAKER: Duration = Duration::from_secs(10);

/// How long the new process may take from having the sockets to serving.
const FOR_SERVING: Duration = Duration::from_secs(60);

/// How long the new process waits for the old one to have told systemd of it.
const FOR_FAREWELL: Duration = Duration::from_secs(5);

/// How often either looks for the other.
const LOOK: Duration = Duration::from_millis(20);

/// Descriptors in one message; the kernel's bound is 253.
const MOST: usize = 250;

/// The names of that many listeners.
const NAMES: usize = 16 * 1024;

const SERVING: &[u8] = b"serving\n";

/// A socket's address has room for this many bytes (unix(7)).
const ADDRESS: usize = 107;

/// Where the two meet, by a path that fits: a long one goes by its directory's descriptor.
struct Place {
    path: PathBuf,
    /// Its number is in the path.
    _directory: Option<File>,
}

impl Place {
    fn new(path: &Path) -> io::Result<Self> {
        let too_long = path.as_os_str().len() > ADDRESS;
        let (Some(directory), Some(name), true) = (path.parent(), path.file_name(), too_long)
        else {
            return Ok(Place { path: path.to_owned(), _directory: None });
        };
        let directory = File::open(directory)?;
        let by_number = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        Ok(Place { path: by_number.join(name), _directory: Some(directory) })
    }
}

/// What a new process has got from the old one.
pub struct Inheritance {
    sockets: HashMap<String, OwnedFd>,
    from: UnixStream,
}

impl Inheritance {
    /// Waits for the sockets of a running process.
    ///
    /// # Errors
    /// None came within `patience`, or not from a process of this user.
    pub fn wait(path: &Path, patience: Duration) -> io::Result<Self> {
        let place = Place::new(path)?;
        let path = &place.path;
        // A socket file that nobody listens on is left behind by a process that was killed.
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let received = accept(&listener, patience);
        let _ = std::fs::remove_file(path);
        received
    }

    /// The socket of this name, once.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.sockets.remove(name)
    }

    /// Tells the old process that this one serves, and waits until it has told systemd. Sockets
    /// that were not taken are closed: connections to them would never be answered.
    pub fn serving(mut self) {
        for name in self.sockets.keys() {
            log::warn!("the old process listened on {name}, the configuration doesn't any more");
        }
        self.sockets.clear();
        let told = self.from.write_all(SERVING).and_then(|()| {
            self.from.set_read_timeout(Some(FOR_FAREWELL))?;
            self.from.read(&mut [0]).map(|_| ())
        });
        if let Err(error) = told {
            log::warn!("the old process doesn't answer: {error}");
        }
    }
}

fn accept(listener: &UnixListener, patience: Duration) -> io::Result<Inheritance> {
    listener.set_nonblocking(true)?;
    let until = Instant::now() + patience;
    let from = loop {
        match listener.accept() {
            Ok((from, _)) => break from,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(_) if Instant::now() >= until => {
                let what = format!("none came within {} s", patience.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            Err(_) => std::thread::sleep(LOOK),
        }
    };
    from.set_nonblocking(false)?;
    from.set_read_timeout(Some(FOR_FAREWELL))?;
    same_user(&from)?;
    let sockets = receive(&from)?;
    Ok(Inheritance { sockets, from })
}

fn receive(from: &UnixStream) -> io::Result<HashMap<String, OwnedFd>> {
    let mut names = vec![0; NAMES];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut names)];
    let got = recvmsg(from, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            sockets.extend(fds);
        }
    }
    let text = std::str::from_utf8(names.get(..got.bytes).unwrap_or_default()).unwrap_or_default();
    let names: Vec<String> = text.lines().map(str::to_owned).collect();
    if names.len() != sockets.len() {
        let what = format!("{} names for {} sockets", names.len(), sockets.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(names.into_iter().zip(sockets).collect())
}

/// The process that has taken over. While it is kept, that process waits.
pub struct Heir {
    /// Its id.
    pub pid: u32,
    _waits: UnixStream,
}

/// Gives the sockets to a process that waits for them; returns when it serves. It is looked for
/// until `patience` is over, and `hope` is asked every 20 ms: when it is lost, the other process can
/// tell no more that it serves. Blocks.
///
/// # Errors
/// Nobody took them, whoever did never served, or what `hope` says.
pub fn give(
    path: &Path,
    sockets: &[(String, OwnedFd)],
    patience: Duration,
    mut hope: impl FnMut() -> io::Result<()>,
) -> io::Result<Heir> {
    let until = Instant::now() + patience;
    let mut to = loop {
        hope()?;
        match Place::new(path).and_then(|place| UnixStream::connect(&place.path)) {
            Ok(to) => break to,
            Err(error) if Instant::now() >= until => {
                let what = format!("no process waits at {}: {error}", path.display());
                return Err(io::Error::new(error.kind(), what));
            }
            Err(_) => std::thread::sleep(LOOK),
        }
    };
    let pid = same_user(&to)?;
    send(&to, sockets)?;
    to.set_read_timeout(Some(LOOK))?;
    let until = Instant::now() + FOR_SERVING;
    let mut word = Vec::new();
    loop {
        let over = match hear(&mut to, &mut word) {
            Ok(true) => return Ok(Heir { pid, _waits: to }),
            Ok(false) if Instant::now() < until => hope(),
            Ok(false) | Err(_) => {
                let what = format!("process {pid} took the sockets but doesn't serve");
                Err(io::Error::other(what))
            }
        };
        let Err(why) = over else { continue };
        // Either the word is there by now, or it can't come any more.
        to.shutdown(Shutdown::Read)?;
        return match hear(&mut to, &mut word) {
            Ok(true) => Ok(Heir { pid, _waits: to }),
            _ => Err(why),
        };
    }
}

/// Whether all of [`SERVING`] has come; as long as the read timeout is waited for it.
fn hear(from: &mut UnixStream, word: &mut Vec<u8>) -> io::Result<bool> {
    let rest = SERVING.len().saturating_sub(word.len());
    match from.take(rest as u64).read_to_end(word) {
        Ok(_) if word == SERVING => Ok(true),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

fn send(to: &UnixStream, sockets: &[(String, OwnedFd)]) -> io::Result<()> {
    let names: Vec<&str> = sockets.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join("\n");
    if sockets.len() > MOST || names.len() > NAMES {
        let what = format!("{} listeners are more than one message carries", sockets.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(|(_, fd)| fd.as_fd()).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = sendmsg(to, &[IoSlice::new(names.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    if sent < names.len() {
        return Err(io::Error::new(io::ErrorKind::WriteZero, "the message was cut short"));
    }
    Ok(())
}

/// The other side's process id, if it is of this user or root.
fn same_user(stream: &UnixStream) -> io::Result<u32> {
    let peer = sockopt::socket_peercred(stream)?;
    if peer.uid != rustix::process::getuid() && !peer.uid.is_root() {
        let what = format!("the other process is of user {}", peer.uid.as_raw());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    Ok(peer.pid.as_raw_nonzero().get().unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn path(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("tollbar-{name}-{}.sock", std::process::id()))
    }

    #[test]
    fn a_listener_goes_over_with_its_queue() {
        let path = path("hand");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sockets = vec![
            ("a".to_owned(), OwnedFd::from(listener)),
            ("b".to_owned(), OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap())),
        ];
        let giving = {
            let path = path.clone();
            std::thread::spawn(move || give(&path, &sockets, Duration::from_secs(10), || Ok(())))
        };
        let mut got = Inheritance::wait(&path, Duration::from_secs(10)).unwrap();
        // A connection that nobody has accepted yet.
        let _waiting = TcpStream::connect(address).unwrap();
        let listener = TcpListener::from(got.take("a").unwrap());
        assert!(got.take("a").is_none() && got.take("c").is_none());
        let serving = std::thread::spawn(move || got.serving());
        let heir = giving.join().unwrap().unwrap();
        assert_eq!(heir.pid, std::process::id());
        assert!(!serving.is_finished(), "it waits for the farewell");
        drop(heir);
        serving.join().unwrap();
        listener.accept().unwrap();
        assert!(!path.exists());
    }

    /// The address of a socket has room for 107 bytes.
    #[test]
    fn a_state_file_may_be_far_down() {
        let dir = std::env::temp_dir().join(format!("tollbar-far-{}", std::process::id()));
        let down = dir.join("d".repeat(200));
        std::fs::create_dir_all(&down).unwrap();
        let path = down.join("state.upgrade.sock");
        let giving = {
            let path = path.clone();
            std::thread::spawn(move || {
                give(&path, &one_socket(), Duration::from_secs(10), || Ok(()))
            })
        };
        let mut got = Inheritance::wait(&path, Duration::from_secs(10)).unwrap();
        assert!(got.take("a").is_some() && !path.exists());
        let serving = std::thread::spawn(move || got.serving());
        drop(giving.join().unwrap().unwrap());
        serving.join().unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_process_that_dies_with_the_sockets_is_no_heir() {
        let path = path("dies");
        let sockets = one_socket();
        let dying = {
            let path = path.clone();
            std::thread::spawn(move || drop(Inheritance::wait(&path, Duration::from_secs(10))))
        };
        let error = give(&path, &sockets, Duration::from_secs(10), || Ok(())).err().unwrap();
        assert!(error.to_string().contains("doesn't serve"), "{error}");
        dying.join().unwrap();
        let error = give(&path, &sockets, Duration::ZERO, || Ok(())).err().unwrap();
        assert!(error.to_string().contains("no process waits"), "{error}");
    }

    fn one_socket() -> Vec<(String, OwnedFd)> {
        vec![("a".to_owned(), OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap()))]
    }

    /// Lost while the other process has the sockets and loads.
    #[test]
    fn when_hope_is_lost_nobody_can_become_the_heir() {
        let path = path("lost");
        let taking = {
            let path = path.clone();
            std::thread::spawn(move || Inheritance::wait(&path, Duration::from_secs(10)).unwrap())
        };
        let (began, sockets) = (Instant::now(), one_socket());
        let mut asked_with_sockets_given = 0;
        let hope = || {
            asked_with_sockets_given += usize::from(taking.is_finished());
            match asked_with_sockets_given {
                3.. => Err(io::Error::other("no more hope")),
                _ => Ok(()),
            }
        };
        let error = give(&path, &sockets, Duration::from_secs(10), hope).err().unwrap();
        assert!(error.to_string().contains("no more hope"), "{error}");
        assert!(began.elapsed() < FOR_SERVING / 4, "{:?}", began.elapsed());
        let mut late = taking.join().unwrap();
        assert!(late.from.write_all(SERVING).is_err(), "it is too late to tell");
    }

    /// Whoever has told that it serves is the heir, also when hope is lost at that moment.
    #[test]
    fn a_word_that_is_there_counts_when_hope_is_lost() {
        let path = path("told");
        let (send, taken) = std::sync::mpsc::channel();
        let taking = {
            let path = path.clone();
            let wait = move || Inheritance::wait(&path, Duration::from_secs(10)).unwrap();
            std::thread::spawn(move || send.send(wait()).unwrap())
        };
        let mut kept = None;
        let hope = || match taken.try_recv() {
            Ok(mut taken) => {
                taken.from.write_all(SERVING).unwrap();
                kept = Some(taken);
                Err(io::Error::other("no more hope"))
            }
            Err(_) => Ok(()),
        };
        let heir = give(&path, &one_socket(), Duration::from_secs(10), hope).unwrap();
        assert_eq!(heir.pid, std::process::id());
        taking.join().unwrap();
        assert!(kept.is_some());
    }
}
