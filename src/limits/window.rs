//! A sliding window of sixty seconds in constant memory, that never admits more than its limit.

use std::time::Duration;

/// What a window spans.
pub const SPAN: Duration = Duration::from_secs(60);

/// The length of a sub-bucket, in milliseconds.
const BUCKET_MS: u64 = 250;

/// Sub-buckets in a span.
const PER_SPAN: u64 = SPAN.as_millis() as u64 / BUCKET_MS;

/// One more than a span holds: what was taken counts until the *end* of its sub-bucket plus the
/// whole span.
const BUCKETS: u64 = PER_SPAN + 1;

/// What was taken in the last sixty seconds, to the quarter of a second.
///
/// Something taken counts for 60 s to 60.25 s. So the limit holds in *every* interval of sixty
/// seconds, and a saturated window admits at most 0.5 % less than an ideal one.
pub struct Window {
    taken: Box<[u64; BUCKETS as usize]>,
    total: u64,
    /// The newest sub-bucket. It never goes back: a thread that read the clock before another
    /// and came after it is counted with the later one.
    newest: u64,
}

/// The sub-bucket that something was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u64);

impl Default for Window {
    fn default() -> Self {
        Window { taken: Box::new([0; BUCKETS as usize]), total: 0, newest: 0 }
    }
}

impl Window {
    /// What counts against the limit at this time since the start of the clock.
    pub fn used(&mut self, now: Duration) -> u64 {
        self.advance(now);
        self.total
    }

    /// Takes `amount`, whatever the limit: the caller has looked at [`Window::used`] under the
    /// same lock.
    pub fn take(&mut self, amount: u64, now: Duration) -> Slot {
        self.advance(now);
        let cell = &mut self.taken[(self.newest % BUCKETS) as usize];
        *cell = cell.saturating_add(amount);
        self.total = self.total.saturating_add(amount);
        Slot(self.newest)
    }

    /// Changes what was taken earlier from `old` to `new`. What has left the window already
    /// stays as it was.
    pub fn correct(&mut self, slot: Slot, old: u64, new: u64, now: Duration) {
        self.advance(now);
        if slot.0 + BUCKETS <= self.newest {
            return;
        }
        let cell = &mut self.taken[(slot.0 % BUCKETS) as usize];
        *cell = cell.saturating_sub(old).saturating_add(new);
        self.total = self.total.saturating_sub(old).saturating_add(new);
    }

    /// How long until `amount` more fits under `limit`; all of the span when it never will.
    pub fn until_free(&mut self, amount: u64, limit: u64, now: Duration) -> Duration {
        self.advance(now);
        let mut excess = self.total.saturating_add(amount).saturating_sub(limit);
        let oldest = self.newest.saturating_sub(PER_SPAN);
        for bucket in oldest..=self.newest {
            if excess == 0 {
                return Duration::ZERO;
            }
            let cell = self.taken[(bucket % BUCKETS) as usize];
            if cell >= excess {
                return Window::leaves(bucket).saturating_sub(now);
            }
            excess -= cell;
        }
        SPAN
    }

    /// How long until nothing is taken any more, when nothing else is taken.
    pub fn until_empty(&mut self, now: Duration) -> Duration {
        self.advance(now);
        if self.total == 0 {
            return Duration::ZERO;
        }
        let oldest = self.newest.saturating_sub(PER_SPAN);
        let newest = (oldest..=self.newest).rev().find(|b| self.taken[(b % BUCKETS) as usize] > 0);
        newest.map_or(Duration::ZERO, |bucket| Window::leaves(bucket).saturating_sub(now))
    }

    /// When what was taken in this sub-bucket stops counting.
    fn leaves(bucket: u64) -> Duration {
        Duration::from_millis((bucket + BUCKETS) * BUCKET_MS)
    }

    fn advance(&mut self, now: Duration) {
        let current = now.as_millis() as u64 / BUCKET_MS;
        if current <= self.newest {
            return;
        }
        let gone = (current - self.newest).min(BUCKETS);
        for bucket in current + 1 - gone..=current {
            let cell = &mut self.taken[(bucket % BUCKETS) as usize];
            self.total -= (*cell).min(self.total);
            *cell = 0;
        }
        self.newest = current;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn counts_for_sixty_seconds_and_at_most_a_bucket_more() {
        let mut window = Window::default();
        window.take(3, at(249));
        assert_eq!(window.used(at(60_249)), 3);
        assert_eq!(window.until_free(1, 3, at(60_000)), at(250));
        assert_eq!(window.used(at(60_250)), 0);
    }

    #[test]
    fn a_correction_changes_its_own_bucket_and_nothing_that_left() {
        let mut window = Window::default();
        let slot = window.take(100, at(0));
        window.take(5, at(30_000));
        window.correct(slot, 100, 10, at(30_000));
        assert_eq!(window.used(at(30_000)), 15);
        window.correct(slot, 10, 500, at(60_300));
        assert_eq!(window.used(at(60_300)), 5);
        assert_eq!(window.used(at(10_000_000)), 0);
    }

    #[test]
    fn says_when_enough_is_free() {
        let mut window = Window::default();
        window.take(60, at(0));
        window.take(40, at(10_000));
        assert_eq!(window.until_free(50, 100, at(20_000)), at(40_250));
        assert_eq!(window.until_free(80, 100, at(20_000)), at(50_250));
        assert_eq!(window.until_empty(at(20_000)), at(50_250));
        assert_eq!(window.until_free(0, 100, at(20_000)), at(0));
    }

    #[test]
    fn a_clock_read_late_never_loses_what_was_taken() {
        let mut window = Window::default();
        window.take(1, at(100_000));
        window.take(1, at(50_000));
        assert_eq!(window.used(at(100_000)), 2);
        assert_eq!(window.used(at(160_249)), 2);
        assert_eq!(window.used(at(160_250)), 0);
    }
}
