//! How often requests fall back.

use parking_lot::Mutex;
use std::collections::VecDeque;

/// Requests and fallbacks of the last five minutes, by second.
#[derive(Default)]
pub struct FallbackRate(Mutex<VecDeque<(u64, u64, u64)>>);

impl FallbackRate {
    /// Seconds that are looked back on.
    const SECONDS: u64 = 300;

    /// Counts a finished request, `second` after the start of the process.
    pub fn count(&self, second: u64, fell_back: bool) {
        let mut seconds = self.0.lock();
        if seconds.back().is_none_or(|(at, ..)| *at != second) {
            seconds.push_back((second, 0, 0));
        }
        if let Some((_, requests, fallbacks)) = seconds.back_mut() {
            *requests += 1;
            *fallbacks += u64::from(fell_back);
        }
        while seconds.front().is_some_and(|(at, ..)| *at + Self::SECONDS <= second) {
            seconds.pop_front();
        }
    }

    /// Requests, and how many of them fell back.
    pub fn counts(&self, second: u64) -> (u64, u64) {
        let seconds = self.0.lock();
        let recent = seconds.iter().filter(|(at, ..)| *at + Self::SECONDS > second);
        recent.fold((0, 0), |(all, fell), (_, r, f)| (all + r, fell + f))
    }

    /// The share of requests that fell back, between 0 and 1; 0 without requests.
    pub fn share(&self, second: u64) -> f64 {
        let (all, fell) = self.counts(second);
        #[allow(clippy::cast_precision_loss)] // a share for people to look at
        if all == 0 { 0.0 } else { fell as f64 / all as f64 }
    }
}
