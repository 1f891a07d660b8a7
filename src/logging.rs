//! The process's own log, on standard error: `2026-11-21T10:00:00.000Z WARN message`.
//!
//! Pingora's own lines are left out unless asked for with `TOLLBAR_LOG=debug`: they can quote
//! a request, and a request can carry a key.

use log::{Level, LevelFilter, Metadata, Record};
use std::io::Write;

struct StandardError {
    everything: bool,
}

impl log::Log for StandardError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.everything || metadata.target().starts_with("tollbar")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) || (record.level() > Level::Info && !self.everything) {
            return;
        }
        let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        let line = format!("{now} {} {}\n", record.level(), record.args());
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// Starts logging. `TOLLBAR_LOG=debug` shows more, and may show what a request carried.
pub fn start() {
    let everything = std::env::var("TOLLBAR_LOG").is_ok_and(|level| level == "debug");
    let level = if everything { LevelFilter::Debug } else { LevelFilter::Info };
    if log::set_boxed_logger(Box::new(StandardError { everything })).is_ok() {
        log::set_max_level(level);
    }
}
