//! How often a provider runs its own tools for one request.

/// Tools that a provider runs by itself, as often as the model wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loops {
    pub(super) tools: u64,
    /// Those that say how often at most (`max_uses`), …
    pub(super) bounded: u64,
    /// … and how often that is together.
    pub(super) uses: u64,
    /// How often all of them may be called (`max_tool_calls`); inside: `None` where one of several
    /// says no number.
    pub(super) calls: Option<Option<u64>>,
}

impl Loops {
    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.tools > 0
    }

    /// How often they are run at most, if each tool says how often it is.
    pub fn uses(&self) -> Option<u64> {
        (self.bounded == self.tools).then_some(self.uses)
    }

    /// How often they are called at most, if the request says so for all of them.
    pub fn calls(&self) -> Option<u64> {
        self.calls.flatten()
    }
}

/// What a limit is that may be said several times: the largest, and none if one of them is none.
pub(super) fn limit(before: Option<Option<u64>>, more: Option<u64>) -> Option<Option<u64>> {
    Some(match before {
        Some(before) => before.zip(more).map(|(one, other)| one.max(other)),
        None => more,
    })
}
