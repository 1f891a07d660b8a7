//! One JSON line per request on standard output: who, what, where it went, how it ended.
//! Never a key, never a prompt, never a path's query.

use crate::json_line::{JsonLine, field};
use crate::outlet::{Batch, Outlet};
use chrono::{DateTime, SecondsFormat, Utc};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bytes of lines that wait for a slow reader. Past it lines are dropped and counted.
const QUEUE: usize = 32 << 20;

/// How long the first line waits for others. In that time their makers wake nobody.
const GATHER: Duration = Duration::from_millis(10);

/// Bytes of a line: most are shorter.
const LINE: usize = 1024;

/// One request.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Entry<'a> {
    pub ts: DateTime<Utc>,
    pub request_id: &'a str,
    pub client: &'a str,
    pub method: &'a str,
    pub endpoint: &'static str,
    pub key_id: Option<&'a str>,
    pub team: Option<&'a str>,
    pub user: Option<&'a str>,
    pub model: Option<&'a str>,
    pub target: Option<&'a str>,
    pub status: u16,
    pub code: Option<&'static str>,
    pub stream: bool,
    pub attempts: Vec<AttemptLine<'a>>,
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
    pub upstream_request_id: Option<&'a str>,
    pub config: u64,
    pub sdk_retry: bool,
}

/// One upstream call of a request.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct AttemptLine<'a> {
    pub target: &'a str,
    pub status: Option<u16>,
    pub outcome: &'static str,
    pub ms: u64,
}

impl Entry<'_> {
    /// As a line of JSON, with its end.
    pub fn line(&self) -> Vec<u8> {
        let mut line = JsonLine::with_capacity(LINE);
        line.text(field!("ts"), &self.ts.to_rfc3339_opts(SecondsFormat::Millis, true));
        line.text(field!("request_id"), self.request_id);
        line.text(field!("client"), self.client);
        line.text(field!("method"), self.method);
        line.text(field!("endpoint"), self.endpoint);
        line.text_or_null(field!("key_id"), self.key_id);
        line.text_or_null(field!("team"), self.team);
        line.text_or_null(field!("user"), self.user);
        line.text_or_null(field!("model"), self.model);
        line.text_or_null(field!("target"), self.target);
        line.number(field!("status"), self.status);
        line.text_or_null(field!("code"), self.code);
        line.flag(field!("stream"), self.stream);
        line.list(field!("attempts"), &self.attempts, |item, attempt| {
            item.object(|line| {
                line.text(field!("target"), attempt.target);
                line.number_or_null(field!("status"), attempt.status);
                line.text(field!("outcome"), attempt.outcome);
                line.number(field!("ms"), attempt.ms);
            });
        });
        line.text(field!("outcome"), self.outcome);
        line.flag(field!("client_gone"), self.client_gone);
        line.number_or_null(field!("input_tokens"), self.input_tokens);
        line.number_or_null(field!("cached_input_tokens"), self.cached_input_tokens);
        line.number_or_null(field!("output_tokens"), self.output_tokens);
        line.text(field!("usage_source"), self.usage_source);
        line.text_or_null(field!("cost_usd"), self.cost_usd.as_deref());
        line.number(field!("bytes_in"), self.bytes_in);
        line.number(field!("bytes_out"), self.bytes_out);
        line.number_or_null(field!("first_token_ms"), self.first_token_ms);
        line.number(field!("duration_ms"), self.duration_ms);
        line.text_or_null(field!("upstream_request_id"), self.upstream_request_id);
        line.number(field!("config"), self.config);
        line.flag(field!("sdk_retry"), self.sdk_retry);
        line.end()
    }
}

/// The sending end.
pub struct AccessLog {
    outlet: Outlet,
    /// Lines that could not be written and nobody has asked for yet.
    lost: Arc<AtomicU64>,
}

impl AccessLog {
    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(mut out: Box<dyn Write + Send>) -> std::io::Result<Self> {
        let lost = Arc::<AtomicU64>::default();
        let counted = lost.clone();
        let mut broken = false;
        // A reader that went away, or a disk that is full, is not the requests' affair.
        let write = move |batch: &Batch<'_>| {
            let written = out.write_all(batch.bytes).and_then(|()| out.flush());
            let was_broken = std::mem::replace(&mut broken, written.is_err());
            match written {
                Err(error) => {
                    counted.fetch_add(batch.lines, Ordering::Relaxed);
                    if !was_broken {
                        log::error!("the access log can't be written, its lines are lost: {error}");
                    }
                }
                Ok(()) if was_broken => log::info!("the access log is written again"),
                Ok(()) => {}
            }
        };
        Ok(AccessLog { outlet: Outlet::start("access-log", QUEUE, GATHER, write)?, lost })
    }

    /// Hands a line to the writer. Returns `false` when it had to be dropped.
    #[must_use]
    pub fn log(&self, entry: &Entry<'_>) -> bool {
        self.outlet.push(&entry.line())
    }

    /// How many lines could not be written since this was asked last.
    pub fn lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }

    /// Waits until everything logged so far is written, up to `within`. Nothing is logged after
    /// this.
    pub fn finish(&self, within: Duration) {
        let lines = self.outlet.finish(within);
        if lines > 0 {
            log::error!("{lines} lines of the access log are lost: nobody has read them in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use serde_json::{Value, json};

    fn entry(id: &str) -> Entry<'_> {
        Entry {
            ts: DateTime::from_timestamp_millis(1_700_000_000_042).unwrap(),
            request_id: id,
            client: "127.0.0.1",
            method: "POST",
            endpoint: "chat_completions",
            key_id: Some("web \"prod\""),
            team: None,
            user: None,
            model: Some("m"),
            target: Some("p/m"),
            status: 200,
            code: None,
            stream: false,
            attempts: vec![
                AttemptLine { target: "p/m", status: Some(429), outcome: "rate_limited", ms: 3 },
                AttemptLine { target: "q/m", status: None, outcome: "ok", ms: 4 },
            ],
            outcome: "ok",
            client_gone: false,
            input_tokens: Some(9),
            cached_input_tokens: None,
            output_tokens: Some(12),
            usage_source: "reported",
            cost_usd: Some("0.000000042".into()),
            bytes_in: 300,
            bytes_out: 500,
            first_token_ms: None,
            duration_ms: 7,
            upstream_request_id: Some("up"),
            config: 1,
            sdk_retry: false,
        }
    }

    /// What was written, and the lines of it.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_has_every_field() {
        let line: Value = serde_json::from_slice(&entry("r").line()).unwrap();
        let wanted = json!({
            "ts": "2023-11-14T22:13:20.042Z", "request_id": "r", "client": "127.0.0.1",
            "method": "POST", "endpoint": "chat_completions", "key_id": "web \"prod\"",
            "team": null, "user": null, "model": "m", "target": "p/m", "status": 200,
            "code": null, "stream": false,
            "attempts": [
                {"target": "p/m", "status": 429, "outcome": "rate_limited", "ms": 3},
                {"target": "q/m", "status": null, "outcome": "ok", "ms": 4},
            ],
            "outcome": "ok", "client_gone": false, "input_tokens": 9,
            "cached_input_tokens": null, "output_tokens": 12, "usage_source": "reported",
            "cost_usd": "0.000000042", "bytes_in": 300, "bytes_out": 500,
            "first_token_ms": null, "duration_ms": 7, "upstream_request_id": "up",
            "config": 1, "sdk_retry": false,
        });
        assert_eq!(line, wanted);
    }

    /// Refuses what comes before the third time.
    struct Full(u32);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += 1;
            if self.0 < 3 { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(bytes.len()) }
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_can_t_be_written_are_counted() {
        let log = AccessLog::start(Box::new(Full(0))).unwrap();
        let mut lost = 0;
        for _ in 0..2 {
            assert!(log.log(&entry("r")));
            while lost == 0 {
                lost = log.lost();
                std::thread::yield_now();
            }
            assert_eq!(std::mem::take(&mut lost), 1);
        }
        assert!(log.log(&entry("r")));
        log.finish(Duration::from_secs(60));
        assert_eq!(log.lost(), 0);
    }

    #[test]
    fn every_line_is_written_before_the_end_and_none_after() {
        let sink = Sink::default();
        let log = Arc::new(AccessLog::start(Box::new(sink.clone())).unwrap());
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let log = log.clone();
                std::thread::spawn(move || {
                    for n in 0..500 {
                        assert!(log.log(&entry(&format!("{thread}-{n}"))));
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        log.finish(Duration::from_secs(60));
        assert!(!log.log(&entry("late")));
        let text = String::from_utf8(sink.0.lock().clone()).unwrap();
        assert_eq!(text.lines().count(), 2000);
        assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    }
}
