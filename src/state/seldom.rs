//! What happens often and is said seldom.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Says something once in ten seconds at most.
#[derive(Default)]
pub struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    const PAUSE: Duration = Duration::from_secs(10);

    /// Whether it is to be said now.
    pub fn now(&self, now: Instant) -> bool {
        let mut said = self.0.lock();
        let due = said.is_none_or(|said| now.saturating_duration_since(said) >= Self::PAUSE);
        if due {
            *said = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_again_only_after_a_while() {
        let (seldom, now) = (Seldom::default(), Instant::now());
        assert!(seldom.now(now) && !seldom.now(now));
        assert!(!seldom.now(now + Seldom::PAUSE - Duration::from_nanos(1)));
        assert!(seldom.now(now + Seldom::PAUSE) && !seldom.now(now + Seldom::PAUSE));
    }
}
