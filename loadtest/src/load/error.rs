//! Why a load test can't go on: one line of cause, one of remedy.

use std::fmt;

/// What went wrong, and what to do about it.
#[derive(Debug)]
pub struct LoadError {
    cause: String,
    remedy: String,
}

impl LoadError {
    /// One line each.
    pub fn new(cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { cause: cause.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.cause, self.remedy)
    }
}

impl std::error::Error for LoadError {}

/// A system call that failed while doing `what`.
pub(crate) fn system(what: &str) -> impl Fn(std::io::Error) -> LoadError + '_ {
    move |error| {
        LoadError::new(format!("{what}: {error}"), "check the limits of this session (ulimit -a)")
    }
}
