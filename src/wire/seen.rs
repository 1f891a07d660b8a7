//! What has been read of an answer so far, in any dialect.

use std::borrow::Cow;

use crate::units::Usage;

use super::anthropic::Counts;
use super::json_text::Text;

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// With its dialect's own end mark.
    Complete,
    /// It stopped before that, or has not come that far.
    Truncated,
    /// It says itself that it failed.
    Failed {
        /// The provider's words.
        message: String,
        /// The provider's name for it (`overloaded_error`, `UNAVAILABLE`).
        kind: Option<String>,
    },
}

/// What is known about an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What the provider reported. Until a stream is `Complete` its output may be unknown or,
    /// with Gemini, a lower bound.
    pub usage: Usage,
    /// How it ended.
    pub end: End,
    /// Bytes of generated text, reasoning and tool arguments in a stream; of any other answer
    /// its whole length.
    pub text_bytes: u64,
    /// Bytes of sound in a stream, as they are without their base64.
    pub sound_bytes: u64,
    /// The tier that really served it, in the provider's words.
    pub service_tier: Option<String>,
    /// Events with data, end marks not counted.
    pub events: u64,
    /// The very first of them was an error: nothing has been generated.
    pub first_error_only: bool,
}

/// What a dialect has read so far.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The usage, the latest in place of all before.
    pub usage: Usage,
    /// The end mark has come.
    pub finished: bool,
    /// The first failure that was reported.
    pub failure: Option<Failure>,
    /// Bytes of generated text.
    pub text_bytes: u64,
    /// Bytes of generated sound.
    pub sound_bytes: u64,
    /// Events with data.
    pub events: u64,
    /// The first event was a failure.
    pub first_error_only: bool,
    /// The tier that served.
    pub service_tier: Option<String>,
    /// Anthropic's numbers, which come in two parts.
    pub counts: Counts,
}

/// An error out of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What it says.
    pub message: String,
    /// What it is called.
    pub kind: Option<String>,
}

impl Seen {
    /// Notes a failure; the first one stays.
    pub fn fail(&mut self, failure: Failure) {
        self.first_error_only |= self.events <= 1 && self.failure.is_none();
        self.failure.get_or_insert(failure);
    }

    /// Notes the tier that served; what can't be decoded is none.
    pub fn served_by(&mut self, tier: &Text) {
        // Said in every chunk, and always the same.
        let known = self.service_tier.as_ref().map(String::as_bytes);
        if tier.escaped || known != Some(tier.raw()) {
            self.service_tier = tier.decode().map(Cow::into_owned).or(self.service_tier.take());
        }
    }

    /// Notes a later usage. It stands for all before, since snapshots grow; but one that says less,
    /// or nothing, takes nothing back.
    pub fn used(&mut self, later: Usage) {
        let tokens =
            |usage: &Usage| usage.input.unwrap_or(0).saturating_add(usage.output.unwrap_or(0));
        if tokens(&later) >= tokens(&self.usage) {
            self.usage = later;
        }
    }

    /// The outcome, if nothing more comes.
    pub fn report(self) -> Report {
        let end = match self.failure {
            Some(Failure { message, kind }) => End::Failed { message, kind },
            None if self.finished => End::Complete,
            None => End::Truncated,
        };
        Report {
            usage: self.usage,
            end,
            text_bytes: self.text_bytes,
            sound_bytes: self.sound_bytes,
            service_tier: self.service_tier,
            events: self.events,
            first_error_only: self.first_error_only,
        }
    }
}

/// What an event is to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Part of the answer.
    Keep,
    /// Only there because usage was asked for.
    UsageOnly,
}
