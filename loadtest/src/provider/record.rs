//! What the provider received, and what became of each answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Version;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// One received request and the fate of its answer.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Number of this request since the provider started, from 0.
    pub seq: u64,
    /// When the request's head was read.
    pub at: Instant,
    /// Method, as received.
    pub method: String,
    /// Path and query, as received.
    pub path_and_query: String,
    /// HTTP version of the request.
    pub version: Version,
    /// Headers with lower-case names, in the order received; lines that repeat
    /// a name stand directly behind its first line.
    pub headers: Vec<(String, String)>,
    /// The body, byte for byte.
    pub body: Bytes,
    /// Number of the TCP connection since the provider started, from 0.
    pub connection_id: u64,
    /// Status answered, once the headers were handed to the connection.
    pub status: Option<u16>,
    /// When the peer went away before it had the whole request or the whole answer.
    pub peer_closed_at: Option<Instant>,
    /// When the provider itself broke the answer off, as scripted.
    pub cut_at: Option<Instant>,
    /// When the last byte of the answer was handed to the connection.
    pub finished_at: Option<Instant>,
    /// Content chunks handed to the connection. Of an answer that is not streamed,
    /// every piece is a chunk: one, unless it is split or cut.
    pub chunks_sent: usize,
    /// When each of these chunks was handed to the connection.
    pub chunk_times: Vec<Instant>,
    /// Body bytes handed to the connection.
    pub bytes_sent: u64,
}

impl Recorded {
    /// The first value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body as JSON, or null if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// True once nothing more will happen to this request.
    pub fn is_over(&self) -> bool {
        self.finished_at.is_some() || self.peer_closed_at.is_some() || self.cut_at.is_some()
    }
}

/// A record that may still change.
pub(crate) type Entry = Arc<Mutex<Recorded>>;

/// The last requests received, oldest first.
pub(crate) struct Log {
    kept: Mutex<Kept>,
    changed: Notify,
}

struct Kept {
    entries: VecDeque<Entry>,
    /// How many entries are kept at most: a load test must not fill the memory.
    limit: usize,
    next_seq: u64,
    since_clear: usize,
}

impl Log {
    pub(crate) fn new(limit: usize) -> Self {
        let kept = Kept { entries: VecDeque::new(), limit, next_seq: 0, since_clear: 0 };
        Self { kept: Mutex::new(kept), changed: Notify::new() }
    }

    /// Adds a record and gives it its number.
    pub(crate) fn push(&self, mut record: Recorded) -> (u64, Entry) {
        let mut kept = self.kept.lock();
        let seq = kept.next_seq;
        record.seq = seq;
        let entry = Arc::new(Mutex::new(record));
        kept.next_seq += 1;
        kept.since_clear += 1;
        kept.entries.push_back(Arc::clone(&entry));
        while kept.entries.len() > kept.limit {
            kept.entries.pop_front();
        }
        drop(kept);
        self.touch();
        (seq, entry)
    }

    /// Wakes those who wait for a change.
    pub(crate) fn touch(&self) {
        self.changed.notify_waiters();
    }

    pub(crate) fn keep(&self, limit: usize) {
        let mut kept = self.kept.lock();
        kept.limit = limit;
        while kept.entries.len() > limit {
            kept.entries.pop_front();
        }
    }

    pub(crate) fn clear(&self) {
        let mut kept = self.kept.lock();
        kept.entries.clear();
        kept.since_clear = 0;
    }

    /// Requests received since the last clear, kept or not.
    pub(crate) fn count(&self) -> usize {
        self.kept.lock().since_clear
    }

    pub(crate) fn snapshot(&self) -> Vec<Recorded> {
        let entries: Vec<Entry> = self.kept.lock().entries.iter().cloned().collect();
        entries.iter().map(|entry| entry.lock().clone()).collect()
    }

    /// Waits until `done` holds, looking again after every change.
    pub(crate) async fn wait(&self, timeout: Duration, done: impl Fn() -> bool) -> bool {
        let until = tokio::time::Instant::now() + timeout;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Registered before looking: a change in between is not missed.
            changed.as_mut().enable();
            if done() {
                return true;
            }
            if tokio::time::timeout_at(until, changed).await.is_err() {
                return done();
            }
        }
    }
}
