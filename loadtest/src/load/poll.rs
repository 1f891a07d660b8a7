//! epoll, with timeouts to the nanosecond: a schedule of 50,000 a second needs them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

/// Events taken from the kernel at once.
const BATCH: usize = 512;

/// A set of sockets, each under a number.
pub(crate) struct Poll {
    epoll: OwnedFd,
    ready: Vec<epoll::Event>,
}

/// One socket that can go on.
#[derive(Clone, Copy)]
pub(crate) struct Ready {
    pub(crate) token: usize,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
}

impl Poll {
    pub(crate) fn new() -> io::Result<Self> {
        // The kernel may round a sleep up by 50 µs for a thread that did not ask for better.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, ready: Vec::with_capacity(BATCH) })
    }

    /// Watches a socket for something to read. Closing it ends that.
    pub(crate) fn add(&self, socket: impl AsFd, token: usize) -> io::Result<()> {
        let data = EventData::new_u64(token as u64);
        Ok(epoll::add(&self.epoll, socket, data, EventFlags::IN)?)
    }

    /// Watches it for room to write, too, or no longer.
    pub(crate) fn writable(&self, socket: impl AsFd, token: usize, on: bool) -> io::Result<()> {
        let flags = if on { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        Ok(epoll::modify(&self.epoll, socket, EventData::new_u64(token as u64), flags)?)
    }

    /// Waits; returns how many sockets [`Poll::get`] has.
    pub(crate) fn wait(&mut self, timeout: Duration) -> io::Result<usize> {
        self.ready.clear();
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        match epoll::wait(&self.epoll, spare_capacity(&mut self.ready), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(self.ready.len()),
            Err(error) => Err(error.into()),
        }
    }

    /// Number `at` of the sockets that the last wait found.
    pub(crate) fn get(&self, at: usize) -> Ready {
        let event = self.ready[at];
        let flags = event.flags;
        Ready {
            token: event.data.u64() as usize,
            // An error shows itself when it is read.
            readable: flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR),
            writable: flags.intersects(EventFlags::OUT),
        }
    }
}
