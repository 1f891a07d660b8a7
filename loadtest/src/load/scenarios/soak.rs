//! Hours in minutes: everything at once, and at the end nothing may be left or lost.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::Harness;
use super::disturbed::reloads;
use super::streams::left_behind;
use crate::load::admin::metric;
use crate::load::engine::{Load, Pace, Span};
use crate::load::error::LoadError;
use crate::load::fleet::{Fleet, ProviderKind, Target};
use crate::load::measure::{Protocol, Running, sleep_until};
use crate::load::procfs;
use crate::load::request::Request;
use crate::load::section::{Check, Row, Section, Table};
use crate::load::stats::median;
use crate::load::sys;
use crate::load::tally::Tally;
use crate::load::yaml::{Model, Settings};

const PLAIN: &str = "sim-plain";
const STREAM: &str = "sim-stream+chunks=50+gap=20ms";
const LEFT: &str = "sim-left+chunks=100+gap=20ms";
const FAILING: &str = "sim-failing+status=500";
/// What the traffic of that model is called.
const FAILS: &str = "failing";
const SAMPLE: Duration = Duration::from_secs(5);
const RELOAD: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(4);
const MIB: f64 = 1024.0 * 1024.0;

/// The process at one moment.
struct Moment {
    at: Duration,
    rss: f64,
    descriptors: f64,
    held: f64,
    in_flight: f64,
}

/// Mixed traffic for `--minutes`, a reload a minute.
pub(crate) fn run(harness: &mut Harness, _: &str) -> Result<Section, LoadError> {
    let models = [PLAIN, STREAM, LEFT, FAILING].map(Model::same).to_vec();
    let mut settings = Settings::all_controls(models);
    settings.more = "breaker: { failures: 1000000, cooldown: 1ms }\n".to_owned();
    let fleet = harness.fleet(ProviderKind::Scripted, &settings)?;
    let cores = harness.cores.generator.clone();
    let lasts = Duration::from_secs_f64(harness.options.minutes.max(0.1) * 60.0);
    // A first, short run, so that pools and caches are filled when the descriptors are counted.
    drive(&fleet, Duration::from_secs(3), &cores, |_| Ok(()))?;
    std::thread::sleep(SETTLE);
    let before = moment(&fleet, Duration::ZERO)?;
    let mut moments = Vec::new();
    let tallies = drive(&fleet, lasts, &cores, |at| {
        moments.push(moment(&fleet, at)?);
        Ok(())
    })?;
    std::thread::sleep(SETTLE);
    let after = moment(&fleet, lasts)?;
    let mut section = Section::default();
    section.tables.push(traffic(&tallies));
    section.tables.push(course(&before, &moments, &after));
    let growth = growth(&moments, lasts).map(|growth| growth * 100.0);
    let mut hold = |what: &str, found: Option<f64>, at_most: f64| {
        section.checks.push(Check::at_most(what, found, at_most));
    };
    hold("growth of RSS after warm-up, %", growth, 1.0);
    hold("descriptors more than before", Some(after.descriptors - before.descriptors), 0.0);
    hold("requests still in flight", Some(after.in_flight), 0.0);
    hold("money still held, USD", Some(after.held), 0.0);
    hold("requests still running", Some(left_behind(&fleet)?.0), 0.0);
    hold(
        "failed requests, but for the failing model's",
        Some(tallies.iter().map(|(name, tally)| unexpected(name, tally) as f64).sum()),
        0.0,
    );
    let answered = tallies.iter().filter(|(name, _)| *name != FAILS);
    section.checks.push(Check::answered("kinds of requests", answered.map(|(_, tally)| tally)));
    let reloads = reloads(&fleet.tollbar.metrics()?).unwrap_or(f64::NAN);
    section.notes.push(format!("{reloads:.0} reloads"));
    for (name, tally) in &tallies {
        section.notes.extend(tally.errors.iter().map(|(what, n)| format!("{name}: {n} × {what}")));
    }
    let spend = fleet.tollbar.admin_json("/spend?group_by=model,outcome")?;
    books(&fleet.provider_stats()?, &spend, &mut section);
    Ok(section)
}

/// Runs the mix; `each` looks on every few seconds, with the time since the beginning.
fn drive(
    fleet: &Fleet,
    lasts: Duration,
    cores: &[usize],
    mut each: impl FnMut(Duration) -> Result<(), LoadError>,
) -> Result<Vec<(&'static str, Tally)>, LoadError> {
    let begin = Instant::now();
    let span = Span { begin, record: begin, end: begin + lasts };
    let running: Vec<_> = mix(fleet.address(Target::Tollbar))
        .into_iter()
        .map(|(name, load)| (name, Running::start(&[load], Protocol::H1, span, cores)))
        .collect();
    let (mut look, mut reload) = (begin + SAMPLE, begin + RELOAD);
    while look < span.end {
        sleep_until(look);
        if look >= reload {
            sys::signal(fleet.tollbar.child.pid(), Signal::HUP);
            reload += RELOAD;
        }
        each(begin.elapsed())?;
        look += SAMPLE;
    }
    running.into_iter().map(|(name, running)| Ok((name, running.join()?))).collect()
}

fn mix(to: SocketAddr) -> Vec<(&'static str, Load)> {
    let grace = Duration::from_secs(10);
    let load = |model: &str, stream, pace, connections| Load {
        grace,
        ramp: Duration::from_secs(1),
        ..Load::new(to, Request::chat(model, stream, 300), pace, connections)
    };
    vec![
        ("plain", load(PLAIN, false, Pace::Open(400.0), 32)),
        ("streams", load(STREAM, true, Pace::Closed, 60)),
        ("leaving", Load { leave_after: Some(8), ..load(LEFT, true, Pace::Closed, 8) }),
        (FAILS, load(FAILING, false, Pace::Open(20.0), 8)),
    ]
}

/// The failing model's answers are failures, but answers.
fn unexpected(name: &str, tally: &Tally) -> u64 {
    let expected = |what: &str| name == FAILS && what.starts_with("status 5");
    tally.errors.iter().filter(|(what, _)| !expected(what)).map(|(_, count)| count).sum()
}

/// What can't be read is no number: nothing would hold at the end.
fn moment(fleet: &Fleet, at: Duration) -> Result<Moment, LoadError> {
    let pid = fleet.tollbar.child.pid();
    let in_flight = metric(&fleet.tollbar.metrics()?, "tollbar_inflight");
    Ok(Moment {
        at,
        rss: procfs::rss(pid).map_or(f64::NAN, |bytes| bytes as f64 / MIB),
        descriptors: procfs::descriptors(pid).map_or(f64::NAN, |count| count as f64),
        held: left_behind(fleet)?.1,
        in_flight: in_flight.unwrap_or(f64::NAN),
    })
}

/// The last fifth beside the fifth after warm-up, which is a quarter of the time.
fn growth(moments: &[Moment], lasts: Duration) -> Option<f64> {
    let between = |from: f64, to: f64| {
        let inside = move |m: &&Moment| m.at >= lasts.mul_f64(from) && m.at <= lasts.mul_f64(to);
        median(moments.iter().filter(inside).map(|m| m.rss))
    };
    Some(between(0.8, 1.0)? / between(0.25, 0.45)? - 1.0)
}

fn traffic(tallies: &[(&'static str, Tally)]) -> Table {
    let row = |(name, tally): &(&'static str, Tally)| Row {
        name: (*name).to_owned(),
        figures: vec![
            ("answers", Some(tally.done as f64)),
            ("left", Some(tally.left as f64)),
            ("p50 µs", tally.latency.micros(50.0)),
            ("p99 µs", tally.latency.micros(99.0)),
            ("errors", Some(tally.failed() as f64)),
        ],
    };
    Table { title: "traffic".to_owned(), rows: tallies.iter().map(row).collect() }
}

fn course(before: &Moment, moments: &[Moment], after: &Moment) -> Table {
    let row = |name: String, moment: &Moment| Row {
        name,
        figures: vec![
            ("RSS MiB", Some(moment.rss)),
            ("descriptors", Some(moment.descriptors)),
            ("held USD", Some(moment.held)),
            ("in flight", Some(moment.in_flight)),
        ],
    };
    let every = (moments.len() / 10).max(1);
    let mut rows = vec![row("idle before".to_owned(), before)];
    let some = moments.iter().step_by(every);
    rows.extend(some.map(|moment| row(format!("{} s", moment.at.as_secs()), moment)));
    rows.push(row("idle after".to_owned(), after));
    Table { title: "the process".to_owned(), rows }
}

/// Every request that reached the provider is a row of the ledger, with its tokens.
fn books(stats: &Value, spend: &Value, section: &mut Section) {
    let rows = spend["data"].as_array().cloned().unwrap_or_default();
    let of = |member: &str, wanted: &dyn Fn(&Value) -> bool| -> f64 {
        rows.iter().filter(|row| wanted(row)).filter_map(|row| row[member].as_f64()).sum()
    };
    let booked = |member: &str| of(member, &|_| true);
    let served = stats["requests"].as_f64();
    let billed = |member: &str| stats["billed"][member].as_f64().unwrap_or(f64::NAN);
    section.notes.push(format!(
        "the provider got {:.0} requests and billed {:.0} input and {:.0} output tokens; \
         the ledger has {:.0} attempts, {:.0} and {:.0}; input tokens are shown, not checked",
        served.unwrap_or(f64::NAN),
        billed("input_tokens"),
        billed("output_tokens"),
        booked("attempts"),
        booked("input_tokens"),
        booked("output_tokens"),
    ));
    let mut hold = |what: &str, found: Option<f64>| {
        section.checks.push(Check::at_most(what, found, 0.0));
    };
    hold(
        "requests that provider and ledger disagree about",
        served.map(|served| (served - booked("attempts")).abs()),
    );
    // More is no loss: a stream that was left is estimated, never below what was sent. But what is
    // estimated for one model makes up for nothing that another one lost.
    let short = |(model, billed): (&String, &Value)| {
        let booked = of("output_tokens", &|row| row["model"] == model.as_str());
        Some((billed["output_tokens"].as_f64()? - booked).max(0.0))
    };
    let models = stats["billed_by_model"].as_object().filter(|models| !models.is_empty());
    hold(
        "output tokens billed and not in the ledger",
        models.and_then(|models| models.iter().map(short).sum()),
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn holds(stats: Value, spend: Value) -> Vec<bool> {
        let mut section = Section::default();
        books(&stats, &spend, &mut section);
        section.checks.iter().map(Check::holds).collect()
    }

    fn stats() -> Value {
        let of = |tokens: u64| json!({ "output_tokens": tokens });
        json!({
            "requests": 3,
            "billed": of(70),
            "billed_by_model": { PLAIN: of(20), LEFT: of(50), FAILING: of(0) },
        })
    }

    fn spend(plain: u64, left: u64) -> Value {
        let row =
            |model, tokens: u64| json!({ "model": model, "attempts": 1, "output_tokens": tokens });
        json!({ "data": [row(PLAIN, plain), row(LEFT, left), row(FAILING, 0)] })
    }

    #[test]
    fn the_failing_model_still_has_to_answer() {
        let mut tally = Tally::new();
        tally.error("status 502");
        assert_eq!((unexpected(FAILS, &tally), unexpected("plain", &tally)), (0, 1));
        tally.error("not ended within the grace");
        assert_eq!(unexpected(FAILS, &tally), 1);
    }

    #[test]
    fn an_estimate_makes_up_for_no_tokens_of_another_model() {
        assert_eq!(holds(stats(), spend(20, 60)), [true, true]);
        assert_eq!(holds(stats(), spend(20, 49)), [true, false]);
        assert_eq!(holds(stats(), spend(19, 60)), [true, false]);
    }

    #[test]
    fn a_counter_that_is_missing_does_not_hold() {
        assert_eq!(holds(json!({}), spend(20, 60)), [false, false]);
        assert_eq!(holds(stats(), json!({ "error": "busy" })), [false, false]);
        let mut nameless = stats();
        nameless["billed_by_model"][PLAIN] = json!({});
        assert_eq!(holds(nameless, spend(20, 60)), [true, false]);
        let mut empty = stats();
        empty["billed_by_model"] = json!({});
        assert_eq!(holds(empty, spend(20, 60)), [true, false]);
    }
}
