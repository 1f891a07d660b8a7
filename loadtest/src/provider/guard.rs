//! Follows one answer to its end, however it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::record::Entry;
use super::server::{Busy, Meter, Shared};

/// Lives as long as a request is being answered. Dropped before the answer was
/// complete, it knows that the peer has gone.
pub(crate) struct Guard {
    shared: Arc<Shared>,
    entry: Entry,
    /// The model's own meter, once it is known.
    model: Option<Arc<Meter>>,
    over: bool,
    /// Held for its drop only: the connection is busy until then.
    _busy: Busy,
}

impl Guard {
    pub(crate) fn new(shared: Arc<Shared>, entry: Entry, busy: Busy) -> Self {
        Self { shared, entry, model: None, over: false, _busy: busy }
    }

    /// What is delivered is this model's, too.
    pub(crate) fn bill(&mut self, model: &str) {
        let mut models = self.shared.billed_by_model.lock();
        self.model = Some(Arc::clone(models.entry(model.to_owned()).or_default()));
    }

    fn meters(&self) -> impl Iterator<Item = &Meter> {
        std::iter::once(&self.shared.billed).chain(self.model.as_deref())
    }

    /// The headers went out.
    pub(crate) fn answered(&self, status: u16) {
        self.entry.lock().status = Some(status);
    }

    /// Body bytes were handed to the connection.
    pub(crate) fn sent(&self, bytes: usize) {
        self.entry.lock().bytes_sent += bytes as u64;
    }

    /// A content chunk is complete.
    pub(crate) fn chunk(&self, tokens: u64) {
        let mut entry = self.entry.lock();
        entry.chunks_sent += 1;
        entry.chunk_times.push(Instant::now());
        drop(entry);
        for meter in self.meters() {
            meter.output_tokens.fetch_add(tokens, Relaxed);
        }
        self.shared.log.touch();
    }

    /// The first body byte of a billable answer went out.
    pub(crate) fn begun(&self, input: u64) {
        for meter in self.meters() {
            meter.requests.fetch_add(1, Relaxed);
            meter.input_tokens.fetch_add(input, Relaxed);
        }
    }

    /// Everything was handed to the connection.
    pub(crate) fn finish(&mut self) {
        self.end(|entry| &mut entry.finished_at);
    }

    /// The provider broke the answer off itself.
    pub(crate) fn cut(&mut self) {
        self.end(|entry| &mut entry.cut_at);
    }

    fn end(&mut self, which: fn(&mut super::Recorded) -> &mut Option<Instant>) {
        if self.over {
            return;
        }
        self.over = true;
        *which(&mut self.entry.lock()) = Some(Instant::now());
        self.shared.log.touch();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.shared.stopping.load(Relaxed) {
            self.end(|entry| &mut entry.peer_closed_at);
        }
    }
}
