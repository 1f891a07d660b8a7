//! A first target that refuses three of ten requests.

use super::Harness;
use super::plain::described;
use crate::load::admin::metric;
use crate::load::engine::{Load, Pace};
use crate::load::error::LoadError;
use crate::load::fleet::ProviderKind;
use crate::load::measure::Protocol;
use crate::load::request::Request;
use crate::load::section::{Check, Section};
use crate::load::yaml::{Model, Settings};

/// Each refusal is over at once: they are to be met again and again, not to be learnt from.
const FIRST: &str = "sim-first+status=429+percent=30+retry-after-ms=0";
const SECOND: &str = "sim-second";

/// Direct and yardstick ask the second target only: they show what an answer costs by itself.
pub(crate) fn run(harness: &mut Harness, _: &str) -> Result<Section, LoadError> {
    // One name at all three; the gateway's leads to two targets.
    let model =
        Model { name: SECOND.to_owned(), targets: vec![FIRST.to_owned(), SECOND.to_owned()] };
    let mut settings = Settings::all_controls(vec![model]);
    settings.more = "breaker: { failures: 1000000, cooldown: 1ms }\n".to_owned();
    let fleet = harness.fleet(ProviderKind::Quick, &settings)?;
    let compared = harness.compare(&fleet, Protocol::H1, |target| {
        Load::new(fleet.address(target), Request::chat(SECOND, false, 300), Pace::Closed, 64)
    })?;
    let mut section = described(&compared);
    let metrics = fleet.tollbar.metrics()?;
    let requests = metric(&metrics, "tollbar_requests_total");
    let of_all = |name| Some(metric(&metrics, name)? / requests?);
    let (attempts, fallbacks) =
        (of_all("tollbar_attempts_total"), of_all("tollbar_fallbacks_total"));
    let attempts = attempts.unwrap_or(f64::NAN);
    section.notes.push(format!("{attempts:.2} attempts for each answer"));
    let away = fallbacks.map(|fallbacks| (fallbacks - 0.3).abs());
    section.checks.push(Check::at_most("answers after a refusal, away from 0.3", away, 0.03));
    section.notes.push("direct and yardstick: one attempt each, none refused".to_owned());
    Ok(section)
}
