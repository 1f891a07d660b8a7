//! A body while it comes in: its place in memory grows with what has come, and is counted before it
//! is taken.

use crate::config::snapshot::Server;
use crate::state::{ByteBudget, ByteShare};
use bytes::{Bytes, BytesMut};
use std::sync::Arc;

/// What every body takes before its first byte.
const STEP: u64 = 64 * 1024;

/// A body of a known length that doesn't come in one piece: its first place …
const PLACE: u64 = 256 * 1024;

/// … and how much larger the next one is, up to its length: bytes are hardly ever copied twice.
const GROWTH: u64 = 8;

/// The same where nobody says how much will come.
const GROWTH_UNTOLD: u64 = 2;

/// How many bytes there may be.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Of all bodies together.
    pub all: u64,
    /// Of one key's that are not complete yet.
    pub key: u64,
    /// Of one body.
    pub body: u64,
}

impl Bounds {
    /// Those of the configuration. No key alone keeps all others out; one body has room at least.
    pub fn of(server: &Server) -> Self {
        let (all, body) = (server.max_buffered_bytes, server.max_body_bytes);
        Bounds { all, key: (all / 2).max(body), body }
    }
}

/// What is in a body's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMuch {
    /// It is larger than one body may be.
    Body,
    /// The bodies of all requests.
    All,
    /// Unfinished bodies of the same key.
    Key,
}

/// What has come of a body.
pub struct Incoming {
    bounds: Bounds,
    /// What it says of itself.
    length: Option<u64>,
    /// Of what all bodies have.
    all: ByteShare,
    /// Of what the key's unfinished ones have.
    key: ByteShare,
    /// What both shares are.
    counted: u64,
    /// The first piece. It is not copied if it is all.
    first: Option<Bytes>,
    rest: BytesMut,
}

impl Incoming {
    /// A body of this length, if it is known. `key` counts what comes from the same key.
    ///
    /// # Errors
    /// What is in its way already.
    pub fn begin(
        all: &Arc<ByteBudget>,
        key: &Arc<ByteBudget>,
        bounds: Bounds,
        length: Option<u64>,
    ) -> Result<Self, TooMuch> {
        if length.is_some_and(|length| length > bounds.body) {
            return Err(TooMuch::Body);
        }
        let counted = length.unwrap_or(STEP).min(STEP);
        let key = key.take(counted, bounds.key).ok_or(TooMuch::Key)?;
        let all = all.take(counted, bounds.all).ok_or(TooMuch::All)?;
        let (first, rest) = (None, BytesMut::new());
        Ok(Incoming { bounds, length, all, key, counted, first, rest })
    }

    /// The next piece.
    ///
    /// # Errors
    /// What is in its way. Nothing more may be added then.
    pub fn add(&mut self, piece: Bytes) -> Result<(), TooMuch> {
        let before = self.first.as_ref().map_or(self.rest.len(), Bytes::len);
        let so_far = (before + piece.len()) as u64;
        if so_far > self.bounds.body {
            return Err(TooMuch::Body);
        }
        if before == 0 {
            self.count(so_far)?;
            self.first = Some(piece);
            return Ok(());
        }
        if so_far > self.rest.capacity() as u64 {
            self.make_room(so_far)?;
        }
        self.rest.extend_from_slice(&piece);
        Ok(())
    }

    /// The whole body and its share of what all have. The key's is free again: what is complete
    /// goes by the key's limits.
    pub fn end(self) -> (Bytes, ByteShare) {
        (self.first.unwrap_or_else(|| self.rest.freeze()), self.all)
    }

    /// A place for `least` bytes or more. The old one is there until it has been copied, without
    /// a pause: one for each thread at most.
    fn make_room(&mut self, least: u64) -> Result<(), TooMuch> {
        let full = self.rest.capacity() as u64;
        let (place, most) = match self.length {
            Some(length) => (PLACE.max(full * GROWTH), length),
            None => (STEP.max(full * GROWTH_UNTOLD), self.bounds.body),
        };
        let place = place.min(most).max(least);
        self.count(place)?;
        let mut larger = BytesMut::with_capacity(place as usize);
        larger.extend_from_slice(self.first.as_ref().unwrap_or(&Bytes::new()));
        larger.extend_from_slice(&self.rest);
        (self.first, self.rest) = (None, larger);
        Ok(())
    }

    /// Takes shares of so many bytes in all.
    fn count(&mut self, bytes: u64) -> Result<(), TooMuch> {
        let more = bytes.saturating_sub(self.counted);
        if !self.key.grow(more, self.bounds.key) {
            return Err(TooMuch::Key);
        }
        if !self.all.grow(more, self.bounds.all) {
            return Err(TooMuch::All);
        }
        self.counted += more;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const BOUNDS: Bounds = Bounds { all: 512 * MIB, key: 256 * MIB, body: 64 * MIB };

    #[derive(Default)]
    struct Budgets {
        all: Arc<ByteBudget>,
        key: Arc<ByteBudget>,
    }

    impl Budgets {
        fn begin(&self, bounds: Bounds, length: Option<u64>) -> Result<Incoming, TooMuch> {
            Incoming::begin(&self.all, &self.key, bounds, length)
        }

        fn used(&self) -> (u64, u64) {
            (self.all.used(), self.key.used())
        }
    }

    /// What is allocated is counted, and never more than eight times what has come.
    #[test]
    fn the_share_grows_with_what_has_come() {
        for length in [None, Some(2 * MIB), Some(64 * MIB)] {
            let budgets = Budgets::default();
            let mut incoming = budgets.begin(BOUNDS, length).unwrap();
            assert_eq!(budgets.used(), (STEP, STEP), "{length:?}");
            let mut sent = Vec::new();
            for piece in 0..32_u8 {
                let piece = vec![piece; 64 * 1024];
                sent.extend_from_slice(&piece);
                incoming.add(piece.into()).unwrap();
                let (used, came) = (budgets.all.used(), sent.len() as u64);
                assert!(used >= came && used >= incoming.rest.capacity() as u64, "{came}: {used}");
                assert!(used <= PLACE.max(GROWTH * came), "{came}: {used}");
            }
            let (body, share) = incoming.end();
            assert!(body == sent);
            assert_eq!(budgets.key.used(), 0, "it is complete");
            assert!(budgets.all.used() >= sent.len() as u64);
            drop(share);
            assert_eq!(budgets.used(), (0, 0));
        }
    }

    #[test]
    fn a_known_length_takes_no_more_and_a_single_piece_is_not_copied() {
        let budgets = Budgets::default();
        let mut incoming = budgets.begin(BOUNDS, Some(100)).unwrap();
        let piece = Bytes::from(vec![1; 100]);
        incoming.add(piece.clone()).unwrap();
        assert_eq!(budgets.used(), (100, 100));
        assert_eq!(incoming.end().0.as_ptr(), piece.as_ptr());
        let mut incoming = budgets.begin(BOUNDS, Some(2 * MIB)).unwrap();
        for _ in 0..2 * MIB / STEP {
            incoming.add(Bytes::from(vec![1; STEP as usize])).unwrap();
        }
        assert_eq!(budgets.used(), (2 * MIB, 2 * MIB));
        assert_eq!(incoming.rest.capacity() as u64, 2 * MIB);
    }

    #[test]
    fn each_bound_refuses_and_gives_all_back() {
        let budgets = Budgets::default();
        let small = Bounds { all: 2 * MIB, key: MIB, body: MIB };
        assert_eq!(budgets.begin(small, Some(MIB + 1)).err(), Some(TooMuch::Body));
        let mut one = budgets.begin(small, None).unwrap();
        for _ in 0..MIB / STEP {
            one.add(Bytes::from(vec![1; STEP as usize])).unwrap();
        }
        assert_eq!(budgets.begin(small, Some(1)).err(), Some(TooMuch::Key));
        let others = Arc::new(ByteBudget::default());
        let mut two = Incoming::begin(&budgets.all, &others, small, Some(MIB)).unwrap();
        let third = Arc::new(ByteBudget::default());
        let more = budgets.all.take(MIB - STEP, small.all).unwrap();
        let full = Incoming::begin(&budgets.all, &third, small, Some(1)).err();
        assert_eq!((full, third.used()), (Some(TooMuch::All), 0));
        two.add(Bytes::from_static(b"{")).unwrap();
        assert_eq!(two.add(Bytes::from_static(b"}")), Err(TooMuch::All));
        assert_eq!(one.add(Bytes::from_static(b"}")), Err(TooMuch::Body));
        drop((one, two, more));
        assert_eq!((budgets.used(), others.used()), ((0, 0), 0));
    }

    #[test]
    fn the_largest_body_always_has_room() {
        let budgets = Budgets::default();
        let bounds = Bounds { all: MIB, key: MIB, body: MIB };
        for length in [None, Some(MIB)] {
            let mut incoming = budgets.begin(bounds, length).unwrap();
            for _ in 0..MIB / 4096 {
                incoming.add(Bytes::from(vec![1; 4096])).unwrap();
            }
            assert_eq!(incoming.end().0.len() as u64, MIB);
        }
    }
}
