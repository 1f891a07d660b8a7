//! Streams: many fast ones, very many slow ones, and clients that leave.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::Harness;
use crate::load::engine::{Load, Pace, Span};
use crate::load::error::LoadError;
use crate::load::fleet::{Fleet, ProviderKind, Target};
use crate::load::measure::{Protocol, Running, Sample, sleep_until};
use crate::load::procfs;
use crate::load::request::Request;
use crate::load::section::{Check, Row, Section, Table, first_p99, gap_p99, sound};
use crate::load::stats::multiple;
use crate::load::tally::Tally;
use crate::load::yaml::{Model, Settings};

const STREAMS: usize = 500;
const FAST: &str = "sim-stream+chunks=100+gap=20ms";
/// One chunk in five seconds, for longer than the scenario lasts.
const SLOW: &str = "sim-slow+chunks=60+gap=5s";
const GAP: Duration = Duration::from_secs(5);
const OPEN: usize = 10_000;
/// New slow streams a second.
const OPENING: f64 = 1500.0;

/// 500 streams of 50 chunks a second; each begins anew after two seconds.
pub(crate) fn run(harness: &mut Harness, name: &str) -> Result<Section, LoadError> {
    let protocol = if name == "stream-h2" { Protocol::H2(50) } else { Protocol::H1 };
    let settings = Settings::all_controls(vec![Model::same(FAST)]);
    let fleet = harness.fleet(ProviderKind::Quick, &settings)?;
    // A round must see each stream begin at least once.
    harness.options.seconds = harness.options.seconds.max(2.5);
    let compared = harness.compare(&fleet, protocol, |target| {
        let request = Request::chat(FAST, true, 300);
        let load = Load::new(fleet.address(target), request, Pace::Closed, STREAMS);
        // Beginnings are spread over the time that a stream takes, so most run at the end.
        Load { ramp: Duration::from_secs(2), outlasts: Some(Duration::from_secs(1)), ..load }
    })?;
    let mut section = Section { tables: vec![compared.stream_table()], ..Section::default() };
    section.notes.push(compared.ratios(&[
        ("CPU per chunk", Sample::cpu_per_event),
        ("first chunk p99", first_p99),
        ("gap p99", gap_p99),
        ("peak RSS", crate::load::section::peak),
    ]));
    section.notes.extend(compared.failures());
    section.notes.extend(compared.disturbances());
    let cpu = compared.to_yardstick(Target::Tollbar, Sample::cpu_per_event);
    section.checks.push(Check::at_most("CPU per chunk, Tollbar / yardstick", cpu, 1.3));
    if protocol == Protocol::H1 {
        let first = compared.added(Target::Tollbar, first_p99);
        let gap = compared.added(Target::Tollbar, gap_p99);
        section.checks.push(Check::at_most("added p99 of the first chunk, µs", first, 1000.0));
        section.checks.push(Check::at_most("added p99 of the gap, µs", gap, 1000.0));
    }
    section.checks.extend(sound(&[compared]));
    Ok(section)
}

/// Memory per open stream.
pub(crate) fn open(harness: &mut Harness, _: &str) -> Result<Section, LoadError> {
    // Two descriptors per stream in the proxy, and some for itself.
    let room = (harness.open_files.saturating_sub(300) / 2) as usize;
    let wanted = if harness.options.quick { OPEN / 5 } else { OPEN };
    let count = wanted.min(room);
    let settings = Settings::all_controls(vec![Model::same(SLOW)]);
    let mut section = Section::default();
    if count < wanted {
        section.notes.push(format!(
            "{count} streams instead of {wanted}: the limit of open files is {}",
            harness.open_files
        ));
    }
    let fleet = harness.fleet(ProviderKind::Quick, &settings)?;
    let mut table = Table::default();
    let yardstick = open_streams(harness, &fleet, Target::Yardstick, count)?;
    let tollbar = open_streams(harness, &fleet, Target::Tollbar, count)?;
    table.rows.extend([&yardstick, &tollbar].map(Opened::row));
    section.tables.push(table);
    section.notes.extend([&yardstick, &tollbar].into_iter().flat_map(Opened::failures));
    section.checks.extend(of_open_streams(&yardstick, &tollbar, count));
    Ok(section)
}

/// Those that are not open need no memory: few of them at one proxy are no comparison.
fn of_open_streams(yardstick: &Opened, tollbar: &Opened, wanted: usize) -> [Check; 3] {
    let ratio = multiple(tollbar.each(), yardstick.each());
    let missing = wanted.saturating_sub(yardstick.streams.min(tollbar.streams));
    [
        Check::at_most("memory per stream, Tollbar / yardstick", ratio, 1.3),
        Check::at_most("streams that were not open", Some(missing as f64), 0.0),
        Check::at_most("failed requests", Some(tollbar.tally.failed() as f64), 0.0),
    ]
}

/// What was seen when all streams were to be open.
struct Opened {
    target: Target,
    streams: usize,
    idle: Option<u64>,
    rss: Option<u64>,
    tally: Tally,
}

impl Opened {
    /// Bytes of memory per stream.
    fn each(&self) -> Option<f64> {
        let grown = self.rss?.saturating_sub(self.idle?) as f64;
        (self.streams > 0).then_some(grown / self.streams as f64)
    }

    fn row(&self) -> Row {
        let mib = |bytes: u64| bytes as f64 / (1024.0 * 1024.0);
        Row {
            name: self.target.name().to_owned(),
            figures: vec![
                ("open streams", Some(self.streams as f64)),
                ("idle RSS MiB", self.idle.map(mib)),
                ("RSS MiB", self.rss.map(mib)),
                ("bytes per stream", self.each()),
                ("first p99 µs", self.tally.first.micros(99.0)),
                ("errors", Some(self.tally.failed() as f64)),
            ],
        }
    }

    fn failures(&self) -> impl Iterator<Item = String> {
        let name = self.target.name();
        self.tally.errors.iter().map(move |(what, count)| format!("{name}: {count} × {what}"))
    }
}

fn open_streams(
    harness: &Harness,
    fleet: &Fleet,
    target: Target,
    count: usize,
) -> Result<Opened, LoadError> {
    let pid = fleet.pid(target).unwrap_or(0);
    let idle = procfs::rss(pid);
    let request = Request::chat(SLOW, true, 300);
    let mut load = Load::new(fleet.address(target), request, Pace::Closed, count);
    load.ramp = Duration::from_secs_f64(count as f64 / OPENING);
    load.outlasts = Some(2 * GAP);
    let begin = Instant::now();
    let full = begin + load.ramp + Duration::from_secs(6);
    let open = load.open.clone();
    let span = Span { begin, record: begin, end: full + Duration::from_secs(2) };
    let running = Running::start(&[load], Protocol::H1, span, &harness.cores.generator);
    sleep_until(full);
    let (streams, rss) = (open.load(Relaxed), procfs::rss(pid));
    Ok(Opened { target, streams, idle, rss, tally: running.join()? })
}

/// Clients that read five chunks of a hundred, and leave.
pub(crate) fn disconnects(harness: &mut Harness, _: &str) -> Result<Section, LoadError> {
    let settings = Settings::all_controls(vec![Model::same(FAST)]);
    let fleet = harness.fleet(ProviderKind::Quick, &settings)?;
    let compared = harness.compare(&fleet, Protocol::H1, |target| {
        let request = Request::chat(FAST, true, 300);
        let load = Load::new(fleet.address(target), request, Pace::Closed, 100);
        Load { leave_after: Some(5), ramp: Duration::from_millis(100), ..load }
    })?;
    let mut section = super::plain::described(&compared);
    // What the last clients left behind has to be given back at once.
    std::thread::sleep(Duration::from_secs(2));
    let (running, held) = left_behind(&fleet)?;
    section.checks.push(Check::at_most("requests still running", Some(running), 0.0));
    section.checks.push(Check::at_most("money still held, USD", Some(held), 0.0));
    Ok(section)
}

/// Requests that Tollbar thinks are running, and what it holds for them.
pub(crate) fn left_behind(fleet: &Fleet) -> Result<(f64, f64), LoadError> {
    let status = fleet.tollbar.admin_json("/status")?;
    let running = status["requests_running"].as_f64().unwrap_or(f64::NAN);
    let budgets = fleet.tollbar.admin_json("/budgets")?;
    Ok((running, held(&budgets)))
}

/// What all budgets hold; no number where they, or one of them, don't say.
fn held(budgets: &serde_json::Value) -> f64 {
    let rows = budgets["data"].as_array().filter(|rows| !rows.is_empty());
    let held = |row: &serde_json::Value| row["held_usd"].as_f64();
    rows.and_then(|rows| rows.iter().map(held).sum::<Option<f64>>()).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn few_open_streams_do_not_hold_for_many() {
        let opened = |target, streams: usize, each: u64| Opened {
            target,
            streams,
            idle: Some(1000),
            rss: Some(1000 + streams as u64 * each),
            tally: Tally::new(),
        };
        let yardstick = opened(Target::Yardstick, 10_000, 100);
        let mut tollbar = opened(Target::Tollbar, 10_000, 90);
        let holds = |tollbar: &Opened| {
            of_open_streams(&yardstick, tollbar, 10_000).map(|check| check.holds())
        };
        assert_eq!(holds(&tollbar), [true, true, true]);
        tollbar.tally.error("status 503");
        assert_eq!(holds(&tollbar), [true, true, false]);
        assert_eq!(holds(&opened(Target::Tollbar, 200, 90)), [true, false, true]);
        assert_eq!(holds(&opened(Target::Tollbar, 0, 0)), [false, false, true]);
    }

    #[test]
    fn what_no_budget_tells_is_not_nothing() {
        let holds = |budgets| Check::at_most("money", Some(held(&budgets)), 0.0).holds();
        assert!(holds(json!({ "data": [{ "held_usd": 0.0 }, { "held_usd": 0 }] })));
        assert!(!holds(json!({ "data": [{ "held_usd": 0.01 }] })));
        assert!(!holds(json!({ "data": [{ "held_usd": 0.0 }, { "held": 0.01 }] })));
        for nothing in [json!({ "data": [] }), json!({}), json!({ "error": "no such budget" })] {
            assert!(!holds(nothing));
        }
    }
}
