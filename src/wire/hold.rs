//! Taking the usage out of a stream for a client that didn't ask for it.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::seen::Verdict;

/// The most that is held back of an event before it is let go unread.
const MAX_HELD: usize = 1024 * 1024;

/// What a client that hadn't asked for usage hasn't got yet.
#[derive(Debug, Default)]
pub struct Hold {
    /// The start of an event that has not ended.
    held: BytesMut,
    /// The start of this event has left already: it has to go through whole.
    passing: bool,
    /// The last event that ended was taken out.
    dropped: bool,
    /// After the end: what its last bytes need after them.
    closing: Option<&'static [u8]>,
}

impl Hold {
    /// What of `held` and `chunk` may go. `ends` are the ends of events in `chunk`, and
    /// whether each of them is to be taken out.
    pub fn release(&mut self, chunk: Bytes, was_after_cr: bool, ends: &[(usize, bool)]) -> Bytes {
        let mut out = Outgoing::default();
        let mut from = 0;
        if was_after_cr && self.held.is_empty() && chunk.first() == Some(&b'\n') {
            // The second half of the last line end goes where its first half went.
            from = 1;
            if !self.dropped {
                out.push(0..1);
            }
        }
        for &(end, usage_only) in ends {
            let event = std::mem::replace(&mut from, end)..end;
            let held = self.held.split().freeze();
            self.dropped = usage_only && !std::mem::take(&mut self.passing);
            if !self.dropped {
                // Only the first event that ends here can have begun before.
                if !held.is_empty() {
                    out.head = held;
                }
                out.push(event);
            }
        }
        let tail = from..chunk.len();
        if !self.passing && self.held.len() + tail.len() <= MAX_HELD {
            let tail = chunk.get(tail).unwrap_or_default();
            self.held.extend_from_slice(tail);
            return out.join(&chunk);
        }
        if !self.passing {
            self.passing = true;
            if !self.held.is_empty() {
                out.head = self.held.split().freeze();
            }
        }
        out.push(tail);
        out.join(&chunk)
    }

    /// The end: what was held back, unless that was only usage.
    pub fn finish(&mut self, verdict: Verdict, closing: &'static [u8]) -> Bytes {
        let held = self.held.split().freeze();
        if verdict == Verdict::UsageOnly && !self.passing {
            self.closing = Some(b"");
            return Bytes::new();
        }
        self.closing = Some(closing);
        held
    }

    /// What an added event needs before it, where `seen` would be it after all bytes.
    pub fn closing(&self, seen: &'static [u8]) -> &'static [u8] {
        match self.closing {
            Some(closing) => closing,
            None if self.passing => seen,
            None => b"",
        }
    }
}

/// What goes to the client for one chunk.
#[derive(Default)]
struct Outgoing {
    /// What was held back before.
    head: Bytes,
    /// Parts of the chunk before the last one, in order, if there are several.
    parts: Vec<Range<usize>>,
    last: Range<usize>,
}

impl Outgoing {
    /// Adds a part; neighbours are joined.
    fn push(&mut self, part: Range<usize>) {
        if self.last.is_empty() {
            self.last = part;
        } else if self.last.end == part.start {
            self.last.end = part.end;
        } else {
            self.parts.push(std::mem::replace(&mut self.last, part));
        }
    }

    /// Copied only if there is more than one piece.
    fn join(self, chunk: &Bytes) -> Bytes {
        if self.last.is_empty() {
            return self.head;
        }
        if self.head.is_empty() && self.parts.is_empty() {
            return chunk.slice(self.last);
        }
        let mut out = BytesMut::from(self.head);
        for part in self.parts.into_iter().chain([self.last]) {
            out.extend_from_slice(chunk.get(part).unwrap_or_default());
        }
        out.freeze()
    }
}
