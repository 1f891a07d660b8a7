//! What a generator saw.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest time that is told apart.
const LONGEST: Duration = Duration::from_secs(120);

/// Times in nanoseconds, to three digits.
#[derive(Clone)]
pub(crate) struct Times(Option<Histogram<u64>>);

impl Times {
    pub(crate) fn new() -> Self {
        // These bounds are valid: there always is a histogram.
        Self(Histogram::new_with_bounds(100, LONGEST.as_nanos() as u64, 3).ok())
    }

    pub(crate) fn add(&mut self, time: Duration) {
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record(time.as_nanos() as u64);
        }
    }

    pub(crate) fn merge(&mut self, other: &Times) {
        if let (Some(all), Some(part)) = (&mut self.0, &other.0) {
            // Same bounds: nothing can be out of range.
            let _ = all.add(part);
        }
    }

    /// The time at this percentile, in microseconds; `None` when nothing was recorded.
    pub(crate) fn micros(&self, percentile: f64) -> Option<f64> {
        let histogram = self.0.as_ref().filter(|histogram| !histogram.is_empty())?;
        Some(histogram.value_at_percentile(percentile) as f64 / 1000.0)
    }
}

/// Everything that one generator counted between the begin and the end of recording.
#[derive(Clone)]
pub(crate) struct Tally {
    /// Answers with a 2xx that were complete, or left on purpose.
    pub(crate) done: u64,
    /// Streams that the client left on purpose, part of `done`.
    pub(crate) left: u64,
    /// Body bytes received.
    pub(crate) bytes: u64,
    /// Server-sent events received.
    pub(crate) events: u64,
    /// From when it was due until the answer was complete.
    pub(crate) latency: Times,
    /// From when it was due until the first byte of a streamed body.
    pub(crate) first: Times,
    /// Between two events of a stream.
    pub(crate) gap: Times,
    /// What failed, and how often.
    pub(crate) errors: BTreeMap<String, u64>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            done: 0,
            left: 0,
            bytes: 0,
            events: 0,
            latency: Times::new(),
            first: Times::new(),
            gap: Times::new(),
            errors: BTreeMap::new(),
        }
    }

    pub(crate) fn error(&mut self, what: impl Into<String>) {
        *self.errors.entry(what.into()).or_default() += 1;
    }

    pub(crate) fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    pub(crate) fn merge(&mut self, other: &Tally) {
        self.done += other.done;
        self.left += other.left;
        self.bytes += other.bytes;
        self.events += other.events;
        self.latency.merge(&other.latency);
        self.first.merge(&other.first);
        self.gap.merge(&other.gap);
        for (what, count) in &other.errors {
            *self.errors.entry(what.clone()).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_hold_to_three_digits_and_merging_adds() {
        let mut all = Tally::new();
        for part in 0..2 {
            let mut tally = Tally::new();
            for n in 1..=500u64 {
                tally.latency.add(Duration::from_micros(part * 500 + n));
            }
            tally.error("status 500");
            all.merge(&tally);
        }
        let p99 = all.latency.micros(99.0).unwrap();
        assert!((989.0..=991.0).contains(&p99), "{p99}");
        assert_eq!((all.latency.micros(100.0).is_some(), all.failed()), (true, 2));
        assert_eq!(Times::new().micros(50.0), None);
    }
}
