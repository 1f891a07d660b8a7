//! Everything that a scenario starts: provider, yardstick, gateway.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::child::{Child, Output, Scratch, free_address, listens};
use super::error::{LoadError, system};
use super::sys::Cores;
use super::yaml::{ADMIN_TOKEN, Addresses, Settings};
use super::{admin, procfs};

/// A million keys take a while.
const START: Duration = Duration::from_secs(300);

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The directory of this program, where `yardstick` and the providers are, too.
    pub here: PathBuf,
    /// The gateway.
    pub tollbar: PathBuf,
}

/// Another gateway, already running.
#[derive(Clone, Debug)]
pub struct Other {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its process, if it runs on this machine: for CPU and memory.
    pub pid: Option<u32>,
}

/// What stands between generator and provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Direct,
    Yardstick,
    Tollbar,
    Other,
}

impl Target {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Target::Direct => "direct",
            Target::Yardstick => "yardstick",
            Target::Tollbar => "Tollbar",
            Target::Other => "other",
        }
    }
}

/// Which provider answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProviderKind {
    /// From memory, as cheap as it gets.
    Quick,
    /// The scripted one: slower, and it counts what it delivered.
    Scripted,
}

/// The processes of one scenario.
pub(crate) struct Fleet {
    pub(crate) tollbar: Tollbar,
    yardstick: Child,
    _provider: Child,
    provider_address: SocketAddr,
    yardstick_address: SocketAddr,
    other: Option<Other>,
}

/// The gateway's process.
pub(crate) struct Tollbar {
    pub(crate) child: Child,
    pub(crate) at: Addresses,
    /// From its start until it was ready.
    pub(crate) load_time: Duration,
    pub(crate) idle_rss: Option<u64>,
    binary: PathBuf,
    cores: Vec<usize>,
    // Removed after the process has ended.
    scratch: Scratch,
}

impl Fleet {
    /// Starts everything and waits until it is ready.
    pub(crate) fn start(
        binaries: &Binaries,
        cores: &Cores,
        kind: ProviderKind,
        settings: &Settings,
        other: Option<Other>,
    ) -> Result<Self, LoadError> {
        let scratch = Scratch::new()?;
        let (provider, provider_address) = provider(binaries, cores, kind, &scratch)?;
        let (yardstick, yardstick_address) =
            yardstick(binaries, cores, provider_address, &scratch)?;
        let tollbar = Tollbar::start(binaries, cores, settings, provider_address, scratch)?;
        Ok(Self {
            tollbar,
            yardstick,
            _provider: provider,
            provider_address,
            yardstick_address,
            other,
        })
    }

    /// What can be compared.
    pub(crate) fn targets(&self) -> Vec<Target> {
        let mut all = vec![Target::Direct, Target::Yardstick, Target::Tollbar];
        all.extend(self.other.as_ref().map(|_| Target::Other));
        all
    }

    pub(crate) fn address(&self, target: Target) -> SocketAddr {
        match target {
            Target::Direct => self.provider_address,
            Target::Yardstick => self.yardstick_address,
            Target::Tollbar => self.tollbar.at.data,
            Target::Other => self.other.as_ref().map_or(self.provider_address, |o| o.address),
        }
    }

    /// The process whose CPU and memory count; none for direct.
    pub(crate) fn pid(&self, target: Target) -> Option<u32> {
        match target {
            Target::Direct => None,
            Target::Yardstick => Some(self.yardstick.pid()),
            Target::Tollbar => Some(self.tollbar.child.pid()),
            Target::Other => self.other.as_ref().and_then(|other| other.pid),
        }
    }

    /// The provider's own counters.
    pub(crate) fn provider_stats(&self) -> Result<serde_json::Value, LoadError> {
        admin::json(self.provider_address, "/__stats", "")
    }
}

fn provider(
    binaries: &Binaries,
    cores: &Cores,
    kind: ProviderKind,
    scratch: &Scratch,
) -> Result<(Child, SocketAddr), LoadError> {
    let mut command = match kind {
        ProviderKind::Quick => Command::new(binaries.here.join("quick-provider")),
        ProviderKind::Scripted => Command::new(binaries.here.join("scripted-provider")),
    };
    match kind {
        ProviderKind::Quick => command.args(["--threads", &cores.provider.len().to_string()]),
        ProviderKind::Scripted => command.args(["--keep", "0"]),
    };
    let log = scratch.0.join("provider.log");
    let (child, line) = Child::start(command, &Output::FirstLine, &cores.provider, &log)?;
    match line.strip_prefix("http://").and_then(|address| address.parse().ok()) {
        Some(address) => Ok((child, address)),
        None => Err(child.complaint("does not say where it listens")),
    }
}

fn yardstick(
    binaries: &Binaries,
    cores: &Cores,
    upstream: SocketAddr,
    scratch: &Scratch,
) -> Result<(Child, SocketAddr), LoadError> {
    let listen = free_address()?;
    let mut command = Command::new(binaries.here.join("yardstick"));
    command.args(["--listen", &listen.to_string(), "--upstream", &upstream.to_string()]);
    let log = scratch.0.join("yardstick.log");
    let (mut child, _) = Child::start(command, &Output::Null, &cores.proxy, &log)?;
    child.wait_until(START, || listens(listen))?;
    Ok((child, listen))
}

impl Tollbar {
    fn start(
        binaries: &Binaries,
        cores: &Cores,
        settings: &Settings,
        provider: SocketAddr,
        scratch: Scratch,
    ) -> Result<Self, LoadError> {
        let at = Addresses { data: free_address()?, admin: free_address()?, provider };
        let file = scratch.0.join("tollbar.yaml");
        std::fs::write(&file, settings.yaml(at)).map_err(system("writing the configuration"))?;
        let begun = Instant::now();
        let binary = binaries.tollbar.clone();
        let mut child = spawn(&binary, &cores.proxy, &scratch, "tollbar.log", false)?;
        child.wait_until(START, || is_ready(at.admin))?;
        let load_time = begun.elapsed();
        let idle_rss = procfs::rss(child.pid());
        let cores = cores.proxy.clone();
        Ok(Self { child, at, load_time, idle_rss, binary, cores, scratch })
    }

    /// Starts a second process that waits for this one's sockets, and puts it in its place.
    /// Returns the old one.
    pub(crate) fn start_successor(&mut self) -> Result<Child, LoadError> {
        let next = spawn(&self.binary, &self.cores, &self.scratch, "successor.log", true)?;
        Ok(std::mem::replace(&mut self.child, next))
    }

    /// What the admin listener answers to `GET path`.
    pub(crate) fn admin_json(&self, path: &str) -> Result<serde_json::Value, LoadError> {
        admin::json(self.at.admin, path, ADMIN_TOKEN)
    }

    pub(crate) fn metrics(&self) -> Result<String, LoadError> {
        Ok(admin::get(self.at.admin, "/metrics", "")?.1)
    }
}

fn spawn(
    binary: &PathBuf,
    cores: &[usize],
    scratch: &Scratch,
    log: &str,
    upgrade: bool,
) -> Result<Child, LoadError> {
    let mut command = Command::new(binary);
    command.args(["run", "-c"]).arg(scratch.0.join("tollbar.yaml"));
    if upgrade {
        command.arg("--upgrade");
    }
    Ok(Child::start(command, &Output::Null, cores, &scratch.0.join(log))?.0)
}

fn is_ready(admin: SocketAddr) -> bool {
    listens(admin) && admin::get(admin, "/readyz", "").is_ok_and(|(status, _)| status == 200)
}
