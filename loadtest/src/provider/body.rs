//! The response body that keeps time: gaps, gate, cut.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::sleep;

use super::feed::{Part, Piece};
use super::guard::Guard;
use super::io::Written;
use super::script::{Cut, Gate, Pace};

type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A body that hands out one piece after another, each when its time has come.
pub(crate) struct Paced {
    pieces: std::vec::IntoIter<Piece>,
    first: Duration,
    gap: Duration,
    /// Content chunks after which the answer breaks off.
    cut: Option<usize>,
    gate: Option<Gate>,
    /// Every piece in a write of its own, the headers too.
    streamed: bool,
    /// Taken by the first piece: input tokens to bill.
    input: Option<u64>,
    begun: bool,
    chunks: usize,
    wait: Option<Wait>,
    ended: bool,
    written: Written,
    written_before: u64,
    /// `None` for answers nobody records: the control endpoints.
    guard: Option<Guard>,
}

impl Paced {
    pub(crate) fn new(
        pieces: Vec<Piece>,
        streamed: bool,
        input: Option<u64>,
        pace: Pace,
        written: Written,
        guard: Guard,
    ) -> Self {
        let cut = match pace.cut {
            Some(Cut::After(n)) => Some(n),
            Some(Cut::Headers) | None => None,
        };
        let mut body = Self {
            first: pace.first,
            gap: pace.gap,
            cut,
            gate: pace.gate.filter(|_| streamed),
            streamed,
            input,
            written_before: written.bytes(),
            written,
            guard: Some(guard),
            ..Self::plain(Bytes::new())
        };
        body.pieces = pieces.into_iter();
        body.settle_if_complete();
        body
    }

    /// A body without timing or record.
    pub(crate) fn plain(bytes: Bytes) -> Self {
        let part = Part::Content(0);
        let pieces = if bytes.is_empty() { Vec::new() } else { vec![Piece { bytes, part }] };
        Self {
            pieces: pieces.into_iter(),
            first: Duration::ZERO,
            gap: Duration::ZERO,
            cut: None,
            gate: None,
            streamed: false,
            input: None,
            begun: false,
            chunks: 0,
            wait: None,
            ended: false,
            written: Written::default(),
            written_before: 0,
            guard: None,
        }
    }

    fn at_cut(&self) -> bool {
        // An answer shorter than the cut breaks off at its end: a cut never ends well.
        self.cut.is_some_and(|n| self.chunks >= n || self.pieces.len() == 0)
    }

    /// Records the end as soon as the last piece is out: hyper does not ask
    /// again once the content-length is reached.
    fn settle_if_complete(&mut self) {
        if self.pieces.len() == 0 && self.cut.is_none() {
            self.ended = true;
            if let Some(guard) = &mut self.guard {
                guard.finish();
            }
        }
    }

    /// What must pass before the next step; `None` when it may be taken at once.
    fn next_wait(&self) -> Option<Wait> {
        if self.at_cut() {
            return Some(Box::pin(self.written.clone().settle(self.written_before)));
        }
        let piece = self.pieces.as_slice().first()?;
        let chunk = matches!(piece.part, Part::Content(_) | Part::Begun);
        let delay = match (self.begun, chunk) {
            (false, _) => self.first,
            (true, true) if self.chunks > 0 => self.gap,
            (true, _) => Duration::ZERO,
        };
        // The first permit lets the lead pass together with the first chunk.
        let gated = !self.begun || (chunk && self.chunks > 0);
        let gate = self.gate.clone().filter(|_| gated);
        let own_write = self.streamed || self.begun;
        if !own_write && delay.is_zero() && gate.is_none() {
            return None;
        }
        Some(Box::pin(async move {
            // Not ready for once: hyper uses the pause to flush what it has.
            tokio::task::yield_now().await;
            if !delay.is_zero() {
                sleep(delay).await;
            }
            if let Some(gate) = gate {
                gate.pass().await;
            }
        }))
    }

    fn hand_out(&mut self, piece: Piece) -> Bytes {
        self.written_before = self.written.bytes();
        let first = !self.begun;
        self.begun = true;
        let counted = match piece.part {
            Part::Content(tokens) | Part::Counted(tokens) => Some(tokens),
            Part::Lead | Part::Begun | Part::Rest | Part::Tail => None,
        };
        if counted.is_some() {
            self.chunks += 1;
        }
        if let Some(guard) = &self.guard {
            if let Some(input) = self.input.take().filter(|_| first) {
                guard.begun(input);
            }
            guard.sent(piece.bytes.len());
            if let Some(tokens) = counted {
                guard.chunk(tokens);
            }
        }
        self.settle_if_complete();
        piece.bytes
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.wait.is_none() {
            self.wait = self.next_wait();
        }
        if let Some(wait) = &mut self.wait {
            std::task::ready!(wait.as_mut().poll(cx));
            self.wait = None;
        }
        if self.at_cut() {
            self.ended = true;
            if let Some(guard) = &mut self.guard {
                guard.cut();
            }
            return Poll::Ready(Some(Err(io::Error::other("cut as scripted"))));
        }
        match self.pieces.next() {
            Some(piece) => {
                let bytes = self.hand_out(piece);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        if self.streamed {
            return SizeHint::default();
        }
        let left: usize = self.pieces.as_slice().iter().map(|piece| piece.bytes.len()).sum();
        SizeHint::with_exact(left as u64)
    }
}
