//! When an alert that was not taken is sent again.

use crate::wire::cooldown;
use chrono::{DateTime, Utc};
use http::HeaderMap;
use std::time::Duration;

/// The pause after a first failure; each further one doubles it …
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// An alert is given up when it is older than this, or was sent too often.
pub const GIVE_UP: Duration = Duration::from_secs(3600);

/// So often an alert is sent to one receiver at most. Alone it comes to some 20 in an hour.
pub const TRIES: u32 = 20;

/// What a receiver's answer means.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has the alert.
    Taken,
    /// It may take it later, not before this if it says so.
    Later(Option<Duration>),
    /// It never will.
    Never,
}

/// 2xx: taken. 408, 429 and 5xx: later. A redirect is not followed, since the body and its
/// signature are meant for the configured host: it is a refusal as any other 3xx and 4xx.
pub fn verdict(status: u16, headers: &HeaderMap, now: DateTime<Utc>) -> Verdict {
    match status {
        200..=299 => Verdict::Taken,
        408 | 429 | 500.. => {
            Verdict::Later(cooldown::from_headers(headers, now).map(|after| after.min(GIVE_UP)))
        }
        _ => Verdict::Never,
    }
}

/// How long a receiver is left alone after so many failures in a row. `chance`, from 0 to 1,
/// spreads it by a quarter, so that gateways don't come back all at once.
pub fn pause(failures: u32, asked: Option<Duration>, chance: f64) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(20));
    let spread = doubled.min(LONGEST_PAUSE).mul_f64(0.75 + chance.clamp(0.0, 1.0) / 2.0);
    asked.map_or(spread, |asked| asked.max(spread))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_five_minutes() {
        let seconds: Vec<u64> =
            (1..=11).map(|failures| pause(failures, None, 0.5).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(pause(1, None, 0.0), Duration::from_millis(750));
        assert_eq!(pause(u32::MAX, None, 1.0), Duration::from_secs(375));
        assert_eq!(pause(1, Some(Duration::from_secs(7)), 0.5), Duration::from_secs(7));
        assert_eq!(pause(5, Some(Duration::from_secs(7)), 0.5), Duration::from_secs(16));
    }

    #[test]
    fn only_what_may_change_is_sent_again() {
        let mut headers = HeaderMap::new();
        let now = DateTime::<Utc>::UNIX_EPOCH;
        for (status, expected) in [
            (200, Verdict::Taken),
            (204, Verdict::Taken),
            (302, Verdict::Never),
            (400, Verdict::Never),
            (404, Verdict::Never),
            (410, Verdict::Never),
            (408, Verdict::Later(None)),
            (429, Verdict::Later(None)),
            (500, Verdict::Later(None)),
            (503, Verdict::Later(None)),
        ] {
            assert_eq!(verdict(status, &headers, now), expected, "{status}");
        }
        headers.insert("retry-after", http::HeaderValue::from_static("90"));
        assert_eq!(verdict(429, &headers, now), Verdict::Later(Some(Duration::from_secs(90))));
        headers.insert("retry-after", http::HeaderValue::from_static("86400"));
        assert_eq!(verdict(503, &headers, now), Verdict::Later(Some(GIVE_UP)));
    }
}
