//! What has been read of an answer so far, in any dialect.

use crate::units::Usage;

use crate::wire::anthropic::Counts;
use crate::wire::seen::{End, Failure, Report};

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

impl Seen {
    /// Notes a failure; the first one stays.
    pub fn fail(&mut self, failure: Failure) {
        self.first_error_only |= self.events <= 1 && self.failure.is_none();
        self.failure.get_or_insert(failure);
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
