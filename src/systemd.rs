//! What systemd is told: `sd_notify(3)`, one datagram for each message, and nothing without systemd.
//!
//! | when | message |
//! |---|---|
//! | everything listens | `READY=1` |
//! | a reload | `RELOADING=1` and `MONOTONIC_USEC=…`, then `READY=1`, also when it was refused |
//! | the process is alive | `WATCHDOG=1`, at half of `WATCHDOG_USEC` |
//! | another process has taken over | `MAINPID=…` |
//! | the drain begins | `STOPPING=1` |
//!
//! `STATUS=` goes with all of them but the watchdog's: it is the line that `systemctl status` shows.
//! Sending never blocks and never fails a caller: a service manager that doesn't listen is no
//! reason to stop serving.

use rustix::time::{ClockId, clock_gettime};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to systemd, if it started this process.
#[derive(Debug, Default)]
pub struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// By `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` of this environment.
    pub fn new(variable: impl Fn(&str) -> Option<String>) -> Self {
        let to = variable("NOTIFY_SOCKET").and_then(|name| match connect(&name) {
            Ok(to) => Some(to),
            Err(error) => {
                log::warn!("systemd: NOTIFY_SOCKET can't be used: {error}");
                None
            }
        });
        let usec = variable("WATCHDOG_USEC").and_then(|usec| usec.parse().ok());
        // Set for the process that systemd has started; others may inherit it.
        let ours = variable("WATCHDOG_PID").is_none_or(|pid| pid.parse() == Ok(std::process::id()));
        let watchdog = usec.filter(|usec| *usec > 0 && ours && to.is_some());
        Notifier { to, watchdog: watchdog.map(Duration::from_micros) }
    }

    /// How long systemd waits for a sign of life.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The service is up, or has reloaded.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\n{}", line(status)));
    }

    /// A reload begins. Each call needs a [`Self::ready`] after it.
    pub fn reloading(&self) {
        // The clock by which systemd tells the answer to its signal from an earlier one.
        let now = clock_gettime(ClockId::Monotonic);
        let usec = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={usec}\n{}", line("reloading")));
    }

    /// The service is on its way out.
    pub fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\n{}", line(status)));
    }

    /// What the service is about.
    pub fn status(&self, status: &str) {
        self.send(&line(status));
    }

    /// A sign of life.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// From now on this is the service's process. Only the present one may say so.
    pub fn main_pid(&self, pid: u32) {
        self.send(&format!("MAINPID={pid}\n{}", line("handed over to a new process")));
    }

    fn send(&self, message: &str) {
        if let Some((socket, to)) = &self.to
            && let Err(error) = socket.send_to_addr(message.as_bytes(), to)
        {
            log::debug!("systemd: not told: {error}");
        }
    }
}

/// The socket to send from, and the address: a path, or `@` and an abstract name.
fn connect(name: &str) -> std::io::Result<(UnixDatagram, SocketAddr)> {
    let to = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, to))
}

/// A message is lines; a status is one.
fn line(status: &str) -> String {
    format!("STATUS={}", status.replace(['\n', '\r'], " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut message = [0; 1024];
        let n = socket.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..n]).into_owned()
    }

    #[test]
    fn messages_are_one_datagram_each_also_to_an_abstract_name() {
        let name = format!("tollbar-test-{}", std::process::id());
        let systemd =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let notifier = Notifier::new(|v| (v == "NOTIFY_SOCKET").then(|| format!("@{name}")));
        notifier.ready("serving\nMAINPID=1");
        assert_eq!(heard(&systemd), "READY=1\nSTATUS=serving MAINPID=1");
        notifier.reloading();
        let reloading = heard(&systemd);
        assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    }

    #[test]
    fn a_watchdog_of_another_process_is_none_of_ours() {
        let with = |pid: u32| {
            Notifier::new(move |v| match v {
                "NOTIFY_SOCKET" => Some("/nowhere".into()),
                "WATCHDOG_USEC" => Some("20000000".into()),
                _ => Some(pid.to_string()),
            })
        };
        assert_eq!(with(std::process::id()).watchdog(), Some(Duration::from_secs(20)));
        assert_eq!(with(std::process::id() + 1).watchdog(), None);
        with(1).alive();
        assert_eq!(Notifier::new(|_| None).watchdog(), None);
    }
}
