//! The running binary hands its sockets to a new one.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::Harness;
use super::plain::MODEL;
use super::rates::{saturation, small};
use crate::load::engine::{Load, Pace, Span};
use crate::load::error::LoadError;
use crate::load::fleet::{ProviderKind, Target};
use crate::load::measure::{Protocol, Running};
use crate::load::request::Request;
use crate::load::section::{Check, Row, Section, Table};
use crate::load::sys;
use crate::load::tally::Tally;
use crate::load::yaml::{Model, Settings};

/// A stream of this model takes five seconds.
const STREAM: &str = "sim-stream+chunks=50+gap=100ms";
const STREAMS: usize = 100;
const LASTS: Duration = Duration::from_secs(8);
/// Longer than any stream.
const GRACE: Duration = Duration::from_secs(15);

/// Plain requests at 30 % load and 100 streams, before, during and after.
pub(crate) fn run(harness: &mut Harness, _: &str) -> Result<Section, LoadError> {
    let models = vec![Model::same(MODEL), Model::same(STREAM)];
    let mut fleet = harness.fleet(ProviderKind::Quick, &Settings::all_controls(models))?;
    let rate = saturation(harness, &fleet, Target::Tollbar)? * 0.3;
    let begin = Instant::now();
    let span = Span { begin, record: begin, end: begin + LASTS };
    let to = fleet.tollbar.at.data;
    let plain = Load::new(to, small(), Pace::Open(rate), 32);
    let streams = Load::new(to, Request::chat(STREAM, true, 300), Pace::Closed, STREAMS);
    let streams = Load { ramp: Duration::from_secs(2), grace: GRACE, ..streams };
    let plain = Load { grace: GRACE, ..plain };
    let cores = &harness.cores.generator;
    let plain = Running::start(&[plain], Protocol::H1, span, cores);
    let streams = Running::start(&[streams], Protocol::H1, span, cores);
    std::thread::sleep(Duration::from_secs(2));
    let mut old = fleet.tollbar.start_successor()?;
    // The new one waits for the sockets before it does anything else.
    std::thread::sleep(Duration::from_millis(700));
    sys::signal(old.pid(), Signal::QUIT);
    let (plain, streams) = (plain.join()?, streams.join()?);
    let ended = old.wait_end(Duration::from_secs(90));
    let serves = fleet.tollbar.admin_json("/status").is_ok();
    let mut section = Section::default();
    let rows = vec![row("plain requests", &plain), row("streams", &streams)];
    section.tables.push(Table { title: String::new(), rows });
    for tally in [&plain, &streams] {
        section.notes.extend(tally.errors.iter().map(|(what, n)| format!("{n} × {what}")));
    }
    let mut hold = |what: &str, count: f64| {
        section.checks.push(Check::at_most(what, Some(count), 0.0));
    };
    hold("failed plain requests", plain.failed() as f64);
    hold("failed or broken streams", streams.failed() as f64);
    hold("the old process still runs (1: it does)", f64::from(!ended));
    hold("the new process doesn't serve (1: it doesn't)", f64::from(!serves));
    section.checks.push(Check::answered("kinds of requests", [&plain, &streams]));
    Ok(section)
}

fn row(name: &str, tally: &Tally) -> Row {
    Row {
        name: name.to_owned(),
        figures: vec![
            ("answers", Some(tally.done as f64)),
            ("p50 µs", tally.latency.micros(50.0)),
            ("p99 µs", tally.latency.micros(99.0)),
            ("p99.9 µs", tally.latency.micros(99.9)),
            ("errors", Some(tally.failed() as f64)),
        ],
    }
}
