//! Which containers are open while a JSON value is skipped.

use super::fault::ScanError;

/// How many containers may be open at once. OpenAI and Anthropic refuse less.
pub const MAX_DEPTH: usize = 256;

/// So many containers in one another any parser takes.
const DEEP: usize = 64;

/// The open containers: one bit each, set for an object.
#[derive(Debug)]
pub struct Nest {
    bits: [u64; MAX_DEPTH / 64],
    len: usize,
    open: usize,
    /// There have been many.
    deep: bool,
}

impl Nest {
    /// Whether there were so many that some parser may refuse it.
    pub fn is_deep(&self) -> bool {
        self.deep
    }

    /// None yet, inside of `open` others.
    pub fn new(open: usize) -> Nest {
        Nest { bits: [0; MAX_DEPTH / 64], len: 0, open, deep: false }
    }

    /// Opens one; `object` or array.
    ///
    /// # Errors
    /// There are too many.
    pub fn push(&mut self, object: bool, at: usize) -> Result<(), ScanError> {
        match self.bits.get_mut(self.len / 64) {
            Some(word) if self.open + self.len < MAX_DEPTH => {
                let bit = 1u64 << (self.len % 64);
                *word = if object { *word | bit } else { *word & !bit };
                self.len += 1;
                self.deep |= self.len > DEEP;
                Ok(())
            }
            _ => Err(ScanError::syntax(at, "nested deeper than 256 levels")),
        }
    }

    /// Closes the last one.
    pub fn pop(&mut self) {
        self.len = self.len.saturating_sub(1);
    }

    /// Whether the last one is an object; `None` when all are closed.
    pub fn top(&self) -> Option<bool> {
        let last = self.len.checked_sub(1)?;
        let word = self.bits.get(last / 64)?;
        Some(word >> (last % 64) & 1 == 1)
    }
}
