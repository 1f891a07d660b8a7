//! What is measured: one list, for the clock and for the instruction counter.
//!
//! An operation is made warm (its tables filled, its locks created, its leases granted) and can
//! then be run any number of times, from any number of threads.

// Each benchmark uses its part of it.
#![allow(dead_code)]

mod bodies;
mod holds;
mod keys;
mod limits;
mod plans;
mod records;
mod samples;
mod streams;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Threads of the contended runs.
pub const LANES: usize = 8;

/// So many runs at most between two calls of [`Work::rest`].
pub const STRETCH: u64 = 10_000;

/// Something to be measured.
pub struct Operation {
    /// `group/case`.
    pub name: &'static str,
    /// What is counted: a request, unless it says otherwise.
    pub unit: &'static str,
    /// Measured with [`LANES`] threads, too.
    pub contended: bool,
    /// Runs that callgrind counts, which is fifty times slower than a processor.
    pub counted: u64,
    /// Makes it warm.
    pub make: fn() -> Box<dyn Work>,
}

/// A warm operation.
pub trait Work: Send + Sync {
    /// Does it once, as client number `lane`.
    fn run(&self, lane: usize);

    /// Units in one run.
    fn units(&self) -> u64 {
        1
    }

    /// Waits, unmeasured, for what runs behind.
    fn rest(&self) {}
}

impl<F: Fn(usize) + Send + Sync> Work for F {
    fn run(&self, lane: usize) {
        self(lane);
    }
}

/// Every operation, in the order of a request.
pub fn all() -> Vec<Operation> {
    let groups = [
        keys::operations(),
        bodies::operations(),
        limits::operations(),
        plans::operations(),
        holds::operations(),
        streams::operations(),
        records::operations(),
    ];
    groups.into_iter().flatten().collect()
}

/// An operation of one request, of one thread.
fn single(name: &'static str, make: fn() -> Box<dyn Work>) -> Operation {
    Operation { name, unit: "request", contended: false, counted: 400, make }
}

/// An operation of one request, also measured with many threads.
fn contended(name: &'static str, make: fn() -> Box<dyn Work>) -> Operation {
    Operation { contended: true, ..single(name, make) }
}

/// A clock of its own for every lane, which moves a little with every look: a run is the same
/// however busy the machine is.
#[derive(Default)]
struct Clock([Lane; LANES]);

#[derive(Default)]
#[repr(align(128))]
struct Lane(AtomicU64);

impl Clock {
    /// Ten thousand looks a second.
    fn look(&self, lane: usize) -> Duration {
        Duration::from_micros(100 * self.0[lane].0.fetch_add(1, Ordering::Relaxed))
    }
}
