//! One JSON line per request on standard output: who, what, where it went, how it ended.
//! Never a key, never a prompt, never a path's query.

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use serde::Serialize;
use std::io::{BufWriter, Write};
use std::thread::JoinHandle;

/// Lines waiting for the writer. Past it lines are dropped and counted: a slow log reader must
/// not stop requests.
const QUEUE: usize = 65_536;

/// One request.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Entry {
    pub ts: String,
    pub request_id: String,
    pub client: String,
    pub method: String,
    pub endpoint: &'static str,
    pub key_id: Option<String>,
    pub team: Option<String>,
    pub user: Option<String>,
    pub model: Option<String>,
    pub target: Option<String>,
    pub status: u16,
    pub code: Option<&'static str>,
    pub stream: bool,
    pub attempts: Vec<AttemptLine>,
    pub outcome: &'static str,
    pub client_gone: bool,
    pub input_tokens: Option<u64>,
    pub cached_input_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub usage_source: &'static str,
    pub cost_usd: Option<String>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub first_token_ms: Option<u64>,
    pub duration_ms: u64,
    pub upstream_request_id: Option<String>,
    pub config: u64,
    pub sdk_retry: bool,
}

/// One upstream call of a request.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct AttemptLine {
    pub target: String,
    pub status: Option<u16>,
    pub outcome: &'static str,
    pub ms: u64,
}

/// The sending end, cheap to share.
pub struct AccessLog {
    queue: Option<Sender<Vec<u8>>>,
    writer: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

impl AccessLog {
    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(out: Box<dyn Write + Send>) -> std::io::Result<Self> {
        let (queue, lines) = bounded(QUEUE);
        let writer = std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write(&lines, out))?;
        Ok(AccessLog { queue: Some(queue), writer: parking_lot::Mutex::new(Some(writer)) })
    }

    /// Hands a line to the writer. Returns `false` when it had to be dropped.
    #[must_use]
    pub fn log(&self, entry: &Entry) -> bool {
        let Ok(mut line) = serde_json::to_vec(entry) else {
            return false;
        };
        line.push(b'\n');
        match &self.queue {
            Some(queue) => !matches!(queue.try_send(line), Err(TrySendError::Full(_))),
            None => false,
        }
    }

    /// Waits until everything logged so far is written.
    pub fn flush(&self) {
        let Some(queue) = &self.queue else { return };
        // An empty line is the writer's sign to stop: nothing logs after this.
        let _ = queue.send(Vec::new());
        if let Some(writer) = self.writer.lock().take() {
            let _ = writer.join();
        }
    }
}

fn write(lines: &Receiver<Vec<u8>>, out: Box<dyn Write + Send>) {
    let mut out = BufWriter::with_capacity(64 * 1024, out);
    while let Ok(line) = lines.recv() {
        if line.is_empty() {
            break;
        }
        let _ = out.write_all(&line);
        // Flush when nobody waits: one write call for many lines under load, no delay without.
        if lines.is_empty() {
            let _ = out.flush();
        }
    }
    let _ = out.flush();
}
