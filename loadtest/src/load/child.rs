//! A child process, pinned, and ended when it is dropped.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::error::{LoadError, system};
use super::sys;

/// How often a child is looked at while it starts.
const LOOK: Duration = Duration::from_millis(2);

/// How long it may take to end when it is interrupted; then it is killed.
const END: Duration = Duration::from_secs(5);

/// A process that was started here.
pub(crate) struct Child {
    process: Process,
    name: String,
    log: PathBuf,
}

/// What becomes of a child's standard output.
pub(crate) enum Output {
    /// Written, and thrown away by the kernel.
    Null,
    /// Its first line is wanted.
    FirstLine,
}

impl Child {
    /// Starts `command` on these cores; standard error goes to `log`. Returns the first line of
    /// standard output if that is wanted.
    pub(crate) fn start(
        mut command: Command,
        output: &Output,
        cores: &[usize],
        log: &Path,
    ) -> Result<(Self, String), LoadError> {
        let name = command.get_program().to_string_lossy().into_owned();
        let errors = File::create(log).map_err(system("creating a log file"))?;
        command.stdin(Stdio::null()).stderr(errors).stdout(match output {
            Output::Null => Stdio::null(),
            Output::FirstLine => Stdio::piped(),
        });
        let spawned = sys::pinned(cores, || command.spawn());
        let mut process = spawned.map_err(|error| {
            LoadError::new(
                format!("{name} does not start: {error}"),
                "build it: cargo build --release --workspace --bins",
            )
        })?;
        let mut line = String::new();
        if let Some(stdout) = process.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(system("reading a child"))?;
        }
        let child = Self { process, name, log: log.to_owned() };
        Ok((child, line.trim().to_owned()))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// True once it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(Some(_)))
    }

    /// Waits for `ready`, as long as the child lives.
    pub(crate) fn wait_until(
        &mut self,
        within: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> Result<(), LoadError> {
        let until = Instant::now() + within;
        while !ready() {
            if self.has_ended() || Instant::now() > until {
                return Err(self.complaint("is not ready"));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// What is wrong with it, with the end of its log.
    pub(crate) fn complaint(&self, what: &str) -> LoadError {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(5)..].join(" | ");
        LoadError::new(format!("{} {what}: {last}", self.name), "read its message above")
    }

    /// Waits for it to end by itself.
    pub(crate) fn wait_end(&mut self, within: Duration) -> bool {
        let until = Instant::now() + within;
        while Instant::now() < until {
            if self.has_ended() {
                return true;
            }
            std::thread::sleep(LOOK);
        }
        false
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // What measures it from within, a compiler's profile for one, is written when it ends.
        if !self.has_ended() {
            sys::signal(self.pid(), Signal::INT);
        }
        if !self.wait_end(END) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// True when somebody listens there.
pub(crate) fn listens(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
}

/// An address on loopback that nobody uses.
pub(crate) fn free_address() -> Result<SocketAddr, LoadError> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    listener.map_err(system("finding a free port"))
}

/// A directory that is removed again.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Result<Self, LoadError> {
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let unique = nanos.map_or(0, |since| since.subsec_nanos());
        let name = format!("tollbar-load-{}-{unique}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).map_err(system("creating a directory"))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
