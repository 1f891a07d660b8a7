//! Why a request body is refused, and where.

use std::fmt;

/// Where something is in a body, in bytes.
pub type Span = std::ops::Range<usize>;

/// Why a body is not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanError {
    /// The byte at which it went wrong, from 0.
    pub offset: usize,
    /// What the body should be: `JSON` or `multipart form`.
    pub format: &'static str,
    /// What is wrong there.
    pub what: &'static str,
    /// The field whose value is wrong; `None` when the body as a whole is not well-formed.
    pub field: Option<&'static str>,
}

impl ScanError {
    /// The body is not well-formed JSON at `offset`.
    #[cold]
    pub fn syntax(offset: usize, what: &'static str) -> ScanError {
        ScanError { offset, format: "JSON", what, field: None }
    }

    /// The body is not a well-formed multipart form at `offset`.
    pub fn form(offset: usize, what: &'static str) -> ScanError {
        ScanError { format: "multipart form", ..ScanError::syntax(offset, what) }
    }

    /// The body is well-formed so far, but `field` has a value that can't be used.
    pub fn field(offset: usize, field: &'static str, what: &'static str) -> ScanError {
        ScanError { field: Some(field), ..ScanError::syntax(offset, what) }
    }
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field {
            Some(field) => write!(f, "`{field}` {} (at byte {})", self.what, self.offset),
            None => write!(f, "invalid {} at byte {}: {}", self.format, self.offset, self.what),
        }
    }
}

impl std::error::Error for ScanError {}
