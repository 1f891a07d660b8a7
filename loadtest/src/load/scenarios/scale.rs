//! What many keys and many models cost.

use super::Harness;
use super::plain::{MODEL, described};
use crate::load::engine::{Load, Pace};
use crate::load::error::LoadError;
use crate::load::fleet::{ProviderKind, Target};
use crate::load::measure::{Protocol, Sample};
use crate::load::request::Request;
use crate::load::section::{Check, Section};
use crate::load::yaml::{Model, Settings};

const MIB: f64 = 1024.0 * 1024.0;

/// 10, 10k and 1M keys: load time, memory, and CPU per request beside that of 10.
pub(crate) fn keys(harness: &mut Harness, name: &str) -> Result<Section, LoadError> {
    let count = match name {
        "keys-1m" => 1_000_000,
        "keys-10k" => 10_000,
        _ => 10,
    };
    let mut settings = Settings::all_controls(vec![Model::same(MODEL)]);
    settings.keys = count;
    settings.per_key = false;
    let fleet = harness.fleet(ProviderKind::Quick, &settings)?;
    let compared = harness.compare(&fleet, Protocol::H1, |target| {
        let request = Request::chat(MODEL, false, 300).over_keys(count);
        Load::new(fleet.address(target), request, Pace::Closed, 64)
    })?;
    let mut section = described(&compared);
    let load_time = fleet.tollbar.load_time.as_secs_f64();
    let rss = fleet.tollbar.idle_rss.map(|bytes| bytes as f64 / MIB);
    let resident = rss.unwrap_or(f64::NAN);
    section.notes.push(format!("ready after {load_time:.2} s, with {resident:.0} MiB resident"));
    if name == "keys-1m" {
        section.checks.push(Check::at_most("seconds until ready", Some(load_time), 3.0));
        section.checks.push(Check::at_most("resident once ready, MiB", rss, 200.0));
    }
    let ratio = compared.to_yardstick(Target::Tollbar, Sample::cpu_per_request);
    flat(harness, &mut section, name, "keys-10", ratio);
    Ok(section)
}

/// 1 and 200 models, used in turn.
pub(crate) fn models(harness: &mut Harness, name: &str) -> Result<Section, LoadError> {
    let count = if name == "models-200" { 200 } else { 1 };
    let names: Vec<String> = (0..count).map(|number| format!("sim-{number:07}")).collect();
    let models = names.iter().map(|name| Model::same(name)).collect();
    let fleet = harness.fleet(ProviderKind::Quick, &Settings::all_controls(models))?;
    let compared = harness.compare(&fleet, Protocol::H1, |target| {
        let request = Request::chat("sim-0000000", false, 300).vary("sim-", count);
        Load::new(fleet.address(target), request, Pace::Closed, 64)
    })?;
    let mut section = described(&compared);
    let ratio = compared.to_yardstick(Target::Tollbar, Sample::cpu_per_request);
    flat(harness, &mut section, name, "models-1", ratio);
    Ok(section)
}

/// Beside the smallest of its kind, if that ran before. Ratios to the yardstick are compared,
/// since the scenarios ran at different times.
fn flat(harness: &mut Harness, section: &mut Section, name: &str, base: &str, ratio: Option<f64>) {
    if name == base {
        if let Some(ratio) = ratio {
            harness.remembered.insert(base.to_owned(), ratio);
        }
        return;
    }
    match harness.remembered.get(base) {
        Some(before) => {
            let what = format!("CPU per request beside {base}, both / yardstick");
            section.checks.push(Check::at_most(&what, ratio.map(|ratio| ratio / before), 1.1));
        }
        None => section.notes.push(format!("run {base} before, in one run, to compare")),
    }
}
