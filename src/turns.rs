//! Long work beside requests, in short turns.
//!
//! A lower priority is a share of the processor, not a promise: once the kernel lets a thread run,
//! it runs for some milliseconds, and a request that comes meanwhile waits. A thread that takes
//! turns stops by itself much sooner. Like a priority that is a property of a thread, so that what
//! is done at the start, when nobody waits, isn't slowed down.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long a turn is …
const TURN: Duration = Duration::from_micros(200);

/// … and how long the others have theirs.
const REST: Duration = Duration::from_micros(800);

/// So often the clock is looked at: much less often than every microsecond.
const CALLS: u32 = 32;

thread_local! {
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    static COUNT: Cell<u32> = const { Cell::new(0) };
}

/// From now on this thread takes turns.
pub fn take() {
    BEGAN.set(Some(Instant::now()));
}

/// Between two small pieces of work: ends the turn, if this thread takes turns and it is over.
#[inline]
pub fn step() {
    let count = COUNT.get().wrapping_add(1);
    COUNT.set(count);
    if count.is_multiple_of(CALLS) {
        pause();
    }
}

/// As [`step`], between two pieces of work that are not so small.
pub fn pause() {
    if BEGAN.get().is_some_and(|began| began.elapsed() >= TURN) {
        std::thread::sleep(REST);
        BEGAN.set(Some(Instant::now()));
    }
}

/// Lets others go first: after every piece of work for so long, and then now and then, so that
/// who does it doesn't starve.
#[derive(Debug, Clone, Copy)]
pub struct Courtesy {
    until: Instant,
}

/// So many pieces of work are done in one go once patience is over.
const GO: usize = 64;

impl Courtesy {
    /// From now on, for this long.
    pub fn lasting(patience: Duration) -> Courtesy {
        Courtesy { until: Instant::now() + patience }
    }

    /// Between two pieces of work, `done` of them before it: whoever waits for this processor has
    /// it first. Returns whether it was offered.
    pub fn offer(self, done: usize) -> bool {
        let offered = done.is_multiple_of(GO) || Instant::now() < self.until;
        if offered {
            std::thread::yield_now();
        }
        offered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn courtesy_ends() {
        assert!(Courtesy::lasting(Duration::from_secs(60)).offer(1));
        let offers = (0..1000).filter(|done| Courtesy::lasting(Duration::ZERO).offer(*done));
        assert_eq!(offers.count(), 16, "now and then");
    }

    #[test]
    fn only_a_thread_that_takes_turns_rests() {
        let rests = || {
            let (began, worked) = (Instant::now(), 20 * TURN);
            let mut last = began;
            let mut longest = Duration::ZERO;
            while began.elapsed() < worked {
                step();
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            longest >= REST
        };
        assert!(
            std::thread::spawn(move || {
                take();
                rests()
            })
            .join()
            .is_ok_and(|rested| rested)
        );
        assert!(BEGAN.get().is_none(), "other threads don't");
    }
}
