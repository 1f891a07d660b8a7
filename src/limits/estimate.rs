//! How many tokens so many bytes will be, before the provider says so.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Rates are kept in millionths of a token per byte.
const MILLION: u64 = 1_000_000;

/// Before a model has reported enough: one token for three bytes.
const FIRST: u64 = MILLION / 3;

/// A byte-level tokenizer makes at most one token of a byte.
const HIGHEST: u64 = MILLION;

/// Images in base64 are mostly bytes; text never comes near this.
const LOWEST: u64 = MILLION / 200;

/// So many reports are remembered.
const SAMPLES: usize = 128;

/// So many are needed before they count.
const ENOUGH: usize = 16;

/// The rate is computed anew after so many reports.
const EVERY: u64 = 8;

/// Tokens per byte of one model: the 90th percentile of what it lately reported.
pub struct TokenRate {
    rate: AtomicU64,
    recent: Mutex<Recent>,
}

struct Recent {
    samples: Vec<u64>,
    seen: u64,
}

impl Default for TokenRate {
    fn default() -> Self {
        let recent = Recent { samples: Vec::new(), seen: 0 };
        TokenRate { rate: AtomicU64::new(FIRST), recent: Mutex::new(recent) }
    }
}

impl TokenRate {
    /// The tokens that a body of so many bytes will probably be, rounded up.
    pub fn estimate(&self, bytes: u64) -> u64 {
        let tokens = u128::from(bytes) * u128::from(self.rate.load(Ordering::Relaxed));
        u64::try_from(tokens.div_ceil(u128::from(MILLION))).unwrap_or(u64::MAX)
    }

    /// A provider has reported so many input tokens for a body of so many bytes.
    pub fn observe(&self, bytes: u64, tokens: u64) {
        if bytes == 0 || tokens == 0 {
            return;
        }
        let rate = u128::from(tokens) * u128::from(MILLION) / u128::from(bytes);
        let rate = u64::try_from(rate).unwrap_or(HIGHEST).clamp(LOWEST, HIGHEST);
        let mut recent = self.recent.lock();
        if let Some(rate) = recent.add(rate) {
            self.rate.store(rate, Ordering::Relaxed);
        }
    }
}

impl Recent {
    /// Remembers a sample; the new rate when it is time for one.
    fn add(&mut self, rate: u64) -> Option<u64> {
        if self.samples.len() < SAMPLES {
            self.samples.push(rate);
        } else {
            self.samples[self.seen as usize % SAMPLES] = rate;
        }
        self.seen += 1;
        if self.samples.len() < ENOUGH || !self.seen.is_multiple_of(EVERY) {
            return None;
        }
        let mut sorted = self.samples.clone();
        let place = sorted.len() * 9 / 10;
        Some(*sorted.select_nth_unstable(place).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_with_a_third_and_learns_a_high_quantile() {
        let rate = TokenRate::default();
        assert_eq!(rate.estimate(300), 100);
        assert_eq!(rate.estimate(1), 1);
        assert_eq!(rate.estimate(0), 0);
        for i in 0..128 {
            rate.observe(1_000, if i % 20 == 0 { 900 } else { 200 });
        }
        assert_eq!(rate.estimate(1_000), 200, "one dear prompt in twenty is not the rule");
        for _ in 0..128 {
            rate.observe(1_000, 250);
        }
        assert_eq!(rate.estimate(1_000), 250, "old reports are forgotten");
    }

    #[test]
    fn no_report_makes_it_absurd() {
        let rate = TokenRate::default();
        (0..64).for_each(|_| rate.observe(1, u64::MAX));
        assert_eq!(rate.estimate(10), 10);
        (0..256).for_each(|_| rate.observe(u64::MAX, 1));
        assert_eq!(rate.estimate(1_000), 5);
        rate.observe(0, 5);
        rate.observe(5, 0);
    }
}
