//! Latency at fixed rates, measured from when each request was due.

use super::Harness;
use super::plain::MODEL;
use crate::load::engine::{Load, Pace};
use crate::load::error::LoadError;
use crate::load::fleet::{Fleet, ProviderKind, Target};
use crate::load::measure::{Protocol, Sample, quiet_round};
use crate::load::request::Request;
use crate::load::section::{Check, Section, Table, p50, p99};
use crate::load::stats::median;
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
    for percent in [25.0, 50.0, 75.0] {
        let rate = most * percent / 100.0;
        let title = format!("{percent:.0} %: {rate:.0} requests a second");
        let added = at(harness, &fleet, &mut section, title, |_| rate)?;
        if percent == 50.0 {
            let what = "added p99 at half of the yardstick's saturation, Tollbar / yardstick";
            section.checks.push(Check::at_most(what, added, 1.5));
        }
    }
    let own = saturation(harness, &fleet, Target::Tollbar)?;
    section.notes.push(format!("Tollbar is saturated at {own:.0} requests a second"));
    let title = format!("each at half of its own: {:.0} and {:.0} a second", most / 2.0, own / 2.0);
    let added = at(harness, &fleet, &mut section, title, |target| match target {
        Target::Yardstick => most / 2.0,
        _ => own / 2.0,
    })?;
    let what = "added p99, each at half of its own saturation, Tollbar / yardstick";
    section.checks.push(Check::at_most(what, added, 1.5));
    Ok(section)
}

/// Everything at fixed rates; returns Tollbar's added p99 as a multiple of the yardstick's.
fn at(
    harness: &Harness,
    fleet: &Fleet,
    section: &mut Section,
    title: String,
    rate: impl Fn(Target) -> f64,
) -> Result<Option<f64>, LoadError> {
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
    let (tollbar, yardstick) =
        (compared.added(Target::Tollbar, p99), compared.added(Target::Yardstick, p99));
    Ok(tollbar.zip(yardstick).map(|(tollbar, yardstick)| tollbar / yardstick))
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
    Ok(median(rates).unwrap_or(1.0))
}
