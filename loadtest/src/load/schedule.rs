//! When requests are due, whatever the server does.
//!
//! In an open loop a request is late from the moment it should have been sent: a server that
//! stalls for a second makes all requests of that second late. A generator that waits for an
//! answer before it sends the next one would measure one late request instead (coordinated
//! omission). So latency counts from the time that this schedule says, sent or not.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A fixed rate, and the requests that are due and not yet sent.
#[derive(Debug)]
pub(crate) struct Schedule {
    begin: Instant,
    rate: f64,
    issued: u64,
    due: VecDeque<Instant>,
}

impl Schedule {
    /// `rate` requests a second from `begin` on.
    pub(crate) fn new(begin: Instant, rate: f64) -> Self {
        Self { begin, rate: rate.max(0.001), issued: 0, due: VecDeque::new() }
    }

    /// When the next one is due that [`Schedule::advance`] has not seen.
    pub(crate) fn next(&self) -> Instant {
        self.begin + Duration::from_secs_f64(self.issued as f64 / self.rate)
    }

    /// Queues everything that is due by now.
    pub(crate) fn advance(&mut self, now: Instant) {
        loop {
            let next = self.next();
            if next > now {
                return;
            }
            self.due.push_back(next);
            self.issued += 1;
        }
    }

    /// The oldest request that is due: its intended time.
    pub(crate) fn take(&mut self) -> Option<Instant> {
        self.due.pop_front()
    }

    /// Requests that are due and not sent.
    pub(crate) fn waiting(&self) -> &VecDeque<Instant> {
        &self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_makes_everything_behind_it_late() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(begin, 1000.0);
        // Nobody looked for one second: 1001 requests were due, each in its own millisecond.
        schedule.advance(begin + Duration::from_secs(1));
        assert_eq!(schedule.waiting().len(), 1001);
        let now = begin + Duration::from_secs(1);
        let late: Vec<u128> =
            std::iter::from_fn(|| schedule.take()).map(|due| (now - due).as_millis()).collect();
        assert_eq!((late[0], late[500], late[1000]), (1000, 500, 0));
    }

    #[test]
    fn the_rate_does_not_drift() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(begin, 333.0);
        schedule.advance(begin + Duration::from_secs(3600));
        assert_eq!(schedule.waiting().len(), 333 * 3600 + 1);
    }
}
