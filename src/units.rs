//! The words everything else is written in: token usage, money, dialects, names.
//!
//! Nothing here does I/O, and nothing here is a float once a price has been read.

use std::fmt;
use std::sync::Arc;

/// A name that many requests share: a model, a provider, a key id.
pub type Name = Arc<str>;

/// The API a peer speaks. A dialect is code; a provider is a row of data that names one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// OpenAI's API and the many servers compatible with it.
    OpenAi,
    /// Anthropic's Messages API.
    Anthropic,
    /// Google's Generative Language API (`generateContent`).
    Gemini,
}

impl Dialect {
    /// Every dialect, in the order the documentation lists them.
    pub const ALL: [Dialect; 3] = [Dialect::OpenAi, Dialect::Anthropic, Dialect::Gemini];

    /// The name used in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Dialect::OpenAi => "openai",
            Dialect::Anthropic => "anthropic",
            Dialect::Gemini => "gemini",
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What one upstream attempt consumed, in one canonical form for every dialect.
///
/// A number that was not reported is `None`: unknown, not zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// All input tokens, cache reads and cache writes included.
    pub input: Option<u64>,
    /// The part of `input` that was read from a provider's prompt cache.
    pub cached_input: Option<u64>,
    /// The part of `input` written to the cache, every lifetime together.
    pub cache_write: Option<u64>,
    /// The part of `cache_write` kept for one hour (Anthropic; dearer than five minutes).
    pub cache_write_1h: Option<u64>,
    /// The part of `input` that is audio.
    pub audio_input: Option<u64>,
    /// All output tokens, reasoning included.
    pub output: Option<u64>,
    /// The part of `output` spent on reasoning, shown to the client or not.
    pub reasoning: Option<u64>,
    /// The part of `output` that is audio.
    pub audio_output: Option<u64>,
    /// Seconds of audio, in milliseconds, where a provider bills by duration.
    pub duration_ms: Option<u64>,
    /// Server-side searches billed per request.
    pub web_searches: Option<u64>,
    /// Searches in files stored at the provider, billed by the call (OpenAI).
    pub file_searches: Option<u64>,
    /// What the provider says that it bills for all of it.
    pub billed: Option<NanoUsd>,
}

impl Usage {
    /// Whether the provider reported anything at all.
    pub fn is_empty(&self) -> bool {
        *self == Usage::default()
    }
}

/// Where the numbers of a [`Usage`] come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UsageSource {
    /// The provider said so.
    Reported,
    /// Computed from the bytes that went past; never below what was streamed.
    Estimated,
    /// The attempt cost nothing: it never reached a model.
    None,
}

impl UsageSource {
    /// The word used in the ledger and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            UsageSource::Reported => "reported",
            UsageSource::Estimated => "estimated",
            UsageSource::None => "none",
        }
    }
}

/// An amount of money in nano-dollars (10⁻⁹ USD).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NanoUsd(pub u64);

impl NanoUsd {
    /// Adds, stopping at the largest amount rather than wrapping.
    pub fn saturating_add(self, other: NanoUsd) -> NanoUsd {
        NanoUsd(self.0.saturating_add(other.0))
    }

    /// Whether this is at least a share, in millionths, of another amount.
    pub fn reaches(self, share: u32, of: NanoUsd) -> bool {
        u128::from(self.0) * 1_000_000 >= u128::from(of.0) * u128::from(share)
    }
}

/// Where the decimal point stands in the text of the largest amount.
const POINT: usize = 11;

/// Dollars with exactly nine digits, as the API and the ledger print them.
impl fmt::Display for NanoUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Digit by digit into place: it is written several times for every request.
        let mut text = *b"00000000000.000000000";
        let mut rest = self.0;
        for at in (0..text.len()).rev().filter(|at| *at != POINT) {
            text[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        let zeros = text[..POINT - 1].iter().take_while(|digit| **digit == b'0').count();
        f.write_str(std::str::from_utf8(&text[zeros..]).unwrap_or_default())
    }
}

/// A price tier, by its place in the configuration: a smaller number is cheaper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tier(pub u8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_prints_nine_digits() {
        assert_eq!(NanoUsd(1_500_000_042).to_string(), "1.500000042");
        assert_eq!(NanoUsd(0).to_string(), "0.000000000");
        assert_eq!(NanoUsd(10_000_000_000).to_string(), "10.000000000");
        assert_eq!(NanoUsd(u64::MAX).to_string(), "18446744073.709551615");
    }
}
