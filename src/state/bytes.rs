//! How many bytes of bodies are in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A bound on bytes held in memory, taken before the bytes are read.
#[derive(Default)]
pub struct ByteBudget(AtomicU64);

impl ByteBudget {
    /// Takes `bytes` if they fit under `cap`; they come back when the share is dropped.
    pub fn take(self: &Arc<Self>, bytes: u64, cap: u64) -> Option<ByteShare> {
        let mut share = ByteShare { of: self.clone(), bytes: 0 };
        share.grow(bytes, cap).then_some(share)
    }

    /// What is taken now.
    pub fn used(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bytes taken from a [`ByteBudget`], given back on drop.
pub struct ByteShare {
    of: Arc<ByteBudget>,
    bytes: u64,
}

impl ByteShare {
    /// Takes more. Returns `false`, and takes nothing, where that would pass `cap`.
    #[must_use]
    pub fn grow(&mut self, more: u64, cap: u64) -> bool {
        let taken = self.of.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            used.checked_add(more).filter(|sum| *sum <= cap)
        });
        if taken.is_ok() {
            self.bytes += more;
        }
        taken.is_ok()
    }
}

impl Drop for ByteShare {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_gives_back_what_it_took() {
        let budget = Arc::new(ByteBudget::default());
        let mut share = budget.take(60, 100);
        assert!(budget.take(41, 100).is_none(), "would pass the cap");
        assert!(share.as_mut().is_some_and(|s| s.grow(40, 100)));
        assert_eq!(budget.used(), 100);
        drop(share);
        assert_eq!(budget.used(), 0);
    }
}
