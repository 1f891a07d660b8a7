//! A first target that refuses every third request.

use super::Harness;
use super::plain::described;
use crate::load::admin::metric;
use crate::load::engine::{Load, Pace};
use crate::load::error::LoadError;
use crate::load::fleet::{ProviderKind, Target};
use crate::load::measure::Protocol;
use crate::load::request::Request;
use crate::load::section::Section;
use crate::load::yaml::{Model, Settings};

const FIRST: &str = "sim-first+status=429+percent=30";
const SECOND: &str = "sim-second";

/// Direct and yardstick ask the second target only: they show what an answer costs by itself.
pub(crate) fn run(harness: &mut Harness, _: &str) -> Result<Section, LoadError> {
    // One name at all three; the gateway's leads to two targets.
    let model =
        Model { name: SECOND.to_owned(), targets: vec![FIRST.to_owned(), SECOND.to_owned()] };
    let mut settings = Settings::all_controls(vec![model]);
    // The refusals are to be met again and again, not to be learnt from.
    settings.more = "breaker: { failures: 1000000, cooldown: 1ms }\n".to_owned();
    let fleet = harness.fleet(ProviderKind::Quick, &settings)?;
    let compared = harness.compare(&fleet, Protocol::H1, |target| {
        Load::new(fleet.address(target), Request::chat(SECOND, false, 300), Pace::Closed, 64)
    })?;
    let mut section = described(&compared);
    let requests: f64 =
        compared.each(Target::Tollbar, |s| Some(s.tally.done as f64)).into_iter().flatten().sum();
    let attempts = metric(&fleet.tollbar.metrics()?, "tollbar_attempts_total");
    section.notes.push(format!(
        "about {:.2} attempts for each answer (warm-up included in the attempts)",
        attempts / requests.max(1.0)
    ));
    section.notes.push("direct and yardstick: one attempt each, none refused".to_owned());
    Ok(section)
}
