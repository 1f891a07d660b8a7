//! The process's own log, on standard error: `2026-11-21T10:00:00.000Z WARN message`.
//!
//! Pingora's own lines are left out unless asked for with `TOLLBAR_LOG=debug`: they can quote
//! a request, and a request can carry a key.
//!
//! A thread of its own writes it. Requests, reloads and the way to the end all say something, and
//! whoever reads may hang.

use crate::outlet::{Batch, LAST_LINES, Outlet};
use log::{Level, LevelFilter, Metadata, Record};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of lines that wait for a slow reader: a reload can be refused for thousands of reasons.
const QUEUE: usize = 8 << 20;

/// What the thread that writes is called.
const NAME: &str = "log";

/// How long who panics waits for what it has said to be written.
const LAST_BEFORE_AN_ABORT: Duration = Duration::from_millis(100);

struct StandardError {
    everything: bool,
    outlet: Arc<Outlet>,
}

impl log::Log for StandardError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.everything || metadata.target().starts_with("tollbar")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) || (record.level() > Level::Info && !self.everything) {
            return;
        }
        // What is dropped is counted, and told with the lines that are written next.
        let _ = self.outlet.push(line(record.level(), record.args()).as_bytes());
    }

    fn flush(&self) {
        self.outlet.wait(LAST_BEFORE_AN_ABORT);
    }
}

fn line(level: Level, text: impl std::fmt::Display) -> String {
    let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    format!("{now} {level} {text}\n")
}

/// The running log. What was said is written when this is dropped, if somebody reads it in time.
pub struct Log {
    outlet: Arc<Outlet>,
}

impl Log {
    /// Says why the process ends, after all lines before it.
    pub fn last_word(&self, why: impl std::fmt::Display) {
        let _ = self.outlet.push(format!("tollbar: {why}\n").as_bytes());
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.outlet.finish(LAST_LINES);
    }
}

/// Starts logging. `TOLLBAR_LOG=debug` shows more, and may show what a request carried.
///
/// # Errors
/// When no thread can be started.
pub fn start() -> std::io::Result<Log> {
    let outlet = Outlet::start(NAME, QUEUE, Duration::ZERO, to(std::io::stderr()))?;
    let outlet = Arc::new(outlet);
    let everything = std::env::var("TOLLBAR_LOG").is_ok_and(|level| level == "debug");
    let level = if everything { LevelFilter::Debug } else { LevelFilter::Info };
    let logger = StandardError { everything, outlet: outlet.clone() };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
        std::panic::set_hook(Box::new(tell_panic));
    }
    Ok(Log { outlet })
}

/// A panic is told in its place among the other lines; and who panics doesn't wait for a reader
/// either.
fn tell_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let trace = Backtrace::capture();
    match trace.status() {
        BacktraceStatus::Captured => log::error!("thread {name} {panic}\n{trace}"),
        _ => log::error!("thread {name} {panic}"),
    }
    // One that can't unwind aborts the process as soon as this returns, and nothing else says why.
    if name != NAME {
        log::logger().flush();
    }
}

/// Writes batches, and tells how many lines were lost once one is written.
fn to(mut out: impl Write) -> impl FnMut(&Batch<'_>) {
    let mut lost = 0;
    move |batch| {
        let written = out.write_all(batch.bytes).and_then(|()| out.flush());
        lost += if written.is_ok() { batch.dropped } else { batch.lines + batch.dropped };
        if written.is_err() || lost == 0 {
            return;
        }
        let told = format!("{lost} lines of this log are lost: nobody has read it in time");
        if out.write_all(line(Level::Warn, told).as_bytes()).is_ok() {
            lost = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// Takes what is written while it is there.
    #[derive(Clone, Default)]
    struct Reader(Arc<Mutex<(bool, String)>>);

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let (there, text) = &mut *self.0.lock();
            if !*there {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            text.push_str(&String::from_utf8_lossy(bytes));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lost_lines_are_told_once_somebody_reads() {
        let reader = Reader::default();
        let mut write = to(reader.clone());
        let mut say = |text: &str, dropped| {
            let lines = text.lines().count() as u64;
            write(&Batch { bytes: text.as_bytes(), lines, dropped });
            std::mem::take(&mut reader.0.lock().1)
        };
        assert_eq!(say("a\nb\n", 3), "");
        reader.0.lock().0 = true;
        let said = say("c\n", 1);
        assert!(said.starts_with("c\n") && said.contains("WARN 6 lines of this log"), "{said}");
        assert_eq!(say("d\n", 0), "d\n");
    }
}
