//! Limits and budgets: what a key, user, team, model or provider may use.

use crate::units::NanoUsd;

/// Limits and budgets of one scope (a key, a user, a team, a model, a provider, all).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Per-minute and concurrency limits.
    pub limits: Limits,
    /// Money per calendar window.
    pub budgets: Vec<Budget>,
}

/// Per-minute and concurrency limits. `None`: not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests in any 60 seconds.
    pub rpm: Option<u64>,
    /// Tokens in any 60 seconds.
    pub tpm: Option<u64>,
    /// Requests at the same time.
    pub parallel: Option<u64>,
}

/// An amount of money per calendar window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The cap.
    pub cap: NanoUsd,
    /// The window it renews with.
    pub per: Per,
}

/// A calendar window in the configured time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Per {
    Minute,
    Hour,
    Day,
    /// Begins on Monday.
    Week,
    Month,
    /// Never renews.
    Total,
}

impl Per {
    /// Every window, shortest first.
    pub const ALL: [Per; 6] = [Per::Minute, Per::Hour, Per::Day, Per::Week, Per::Month, Per::Total];

    /// The word used in the configuration and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Per::Minute => "minute",
            Per::Hour => "hour",
            Per::Day => "day",
            Per::Week => "week",
            Per::Month => "month",
            Per::Total => "total",
        }
    }

    /// Whether every window of this kind lies inside one window of the other kind. A week
    /// does not lie inside a month.
    pub fn within(self, other: Per) -> bool {
        let place = |per: Per| Per::ALL.iter().position(|p| *p == per);
        !(self == Per::Week && other == Per::Month) && place(self) <= place(other)
    }
}

impl std::fmt::Display for Per {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
