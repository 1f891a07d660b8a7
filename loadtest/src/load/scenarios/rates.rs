//! Latency at fixed rates, measured from when each request was due.

use super::Harness;
use super::plain::MODEL;
use crate::load::engine::{Load, Pace};
use crate::load::error::LoadError;
use crate::load::fleet::{Fleet, ProviderKind, Target};
use crate::load::measure::{Protocol, Sample, quiet_round};
use crate::load::request::Request;
use crate::load::section::{Check, Compared, Section, Table, p50, p99, sound};
use crate::load::stats::{median, multiple};
use crate::load::yaml::{Model, Settings};

/// Connections of an open loop: enough that none is waited for while the server keeps up.
const CONNECTIONS: usize = 64;

/// 25, 50 and 75 % of the yardstick's saturation, in one table each; then each proxy at half of
/// its own.
pub(crate) fn run(harness: &mut Harness, _: &str) -> Result<Section, LoadError> {
    let fleet =
        harness.fleet(ProviderKind::Quick, &Settings::all_controls(vec![Model::same(MODEL)]))?;
    let most = saturation(harness, &fleet, Target::Yardstick)?;
    let mut section = Section::default();
    section.notes.push(format!("the yardstick is saturated at {most:.0} requests a second"));
    let mut all = Vec::new();
    for percent in [25.0, 50.0, 75.0] {
        let rate = most * percent / 100.0;
        let title = format!("{percent:.0} %: {rate:.0} requests a second");
        let compared = at(harness, &fleet, &mut section, title, |_| rate)?;
        if percent == 50.0 {
            let what = "added p99 at half of the yardstick's saturation, Tollbar / yardstick";
            check_added(&mut section, what, &compared);
        }
        all.push(compared);
    }
    let own = saturation(harness, &fleet, Target::Tollbar)?;
    section.notes.push(format!("Tollbar is saturated at {own:.0} requests a second"));
    let title = format!("each at half of its own: {:.0} and {:.0} a second", most / 2.0, own / 2.0);
    let compared = at(harness, &fleet, &mut section, title, |target| match target {
        Target::Yardstick => most / 2.0,
        _ => own / 2.0,
    })?;
    let what = "added p99, each at half of its own saturation, Tollbar / yardstick";
    check_added(&mut section, what, &compared);
    all.push(compared);
    section.checks.extend(sound(&all));
    Ok(section)
}

/// Tollbar's added p99 as a multiple of the yardstick's.
fn check_added(section: &mut Section, what: &str, compared: &Compared) {
    let added = |target| compared.added(target, p99);
    let (tollbar, yardstick) = (added(Target::Tollbar), added(Target::Yardstick));
    let found = multiple(tollbar, yardstick);
    if let (None, Some(yardstick)) = (found, yardstick) {
        section.notes.push(format!("{what}: the yardstick added {yardstick:.1} µs, so no ratio"));
    }
    section.checks.push(Check::at_most(what, found, 1.5));
}

/// Everything at fixed rates.
fn at(
    harness: &Harness,
    fleet: &Fleet,
    section: &mut Section,
    title: String,
    rate: impl Fn(Target) -> f64,
) -> Result<Compared, LoadError> {
    let compared = harness.compare(fleet, Protocol::H1, |target| {
        Load::new(fleet.address(target), small(), Pace::Open(rate(target)), CONNECTIONS)
    })?;
    let ratios = compared.ratios(&[
        ("CPU per request", Sample::cpu_per_request),
        ("p50", p50),
        ("p99", p99),
    ]);
    section.notes.push(format!("{title}: {ratios}"));
    section.notes.extend(compared.failures());
    section.notes.extend(compared.disturbances());
    section.tables.push(Table { title, ..compared.plain_table() });
    Ok(compared)
}

pub(crate) fn small() -> Request {
    Request::chat(MODEL, false, 300)
}

/// What a target can do: the median of closed-loop rounds.
pub(crate) fn saturation(
    harness: &Harness,
    fleet: &Fleet,
    target: Target,
) -> Result<f64, LoadError> {
    let load = Load::new(fleet.address(target), small(), Pace::Closed, CONNECTIONS);
    let mut rates = Vec::new();
    for _ in 0..harness.options.rounds.max(1) {
        let sample = quiet_round(
            std::slice::from_ref(&load),
            Protocol::H1,
            fleet.pid(target),
            harness.length(),
            &harness.cores,
        )?;
        rates.extend(sample.rate());
    }
    median(rates).filter(|rate| *rate > 0.0).ok_or_else(|| {
        // A share of nothing would be sent, and held.
        let cause = format!("{}: no answers when it was to be saturated", target.name());
        LoadError::new(cause, "run the scenario `small`, which shows what fails")
    })
}
