//! Requests that are answered whole, as many as go through.

use std::time::Duration;

use super::Harness;
use crate::load::engine::{Load, Pace};
use crate::load::error::LoadError;
use crate::load::fleet::{ProviderKind, Target};
use crate::load::measure::{Protocol, Sample};
use crate::load::request::Request;
use crate::load::section::{Check, Compared, Section, p99, sound};
use crate::load::yaml::{Model, Settings};

pub(crate) const MODEL: &str = "sim-small";

/// What differs between these scenarios.
struct Shape {
    request: Request,
    connections: usize,
    protocol: Protocol,
    controls: bool,
    /// Longer than the usual, where the last requests wait for all those before them.
    grace: Option<Duration>,
    /// CPU per request, Tollbar / yardstick.
    cpu_at_most: Option<f64>,
}

impl Shape {
    fn of(name: &str) -> Self {
        let body = |size: usize| Request::chat(MODEL, false, size);
        let shape = |request: Request, connections: usize| Shape {
            request,
            connections,
            protocol: Protocol::H1,
            controls: true,
            grace: None,
            cpu_at_most: None,
        };
        match name {
            "small-off" => Shape { controls: false, ..shape(body(300), 64) },
            "small-h2" => Shape { protocol: Protocol::H2(16), ..shape(body(300), 128) },
            "body-4k" => shape(body(4 << 10), 64),
            "body-100k" => shape(body(100 << 10), 32),
            "body-2m" | "body-2m-counted" => {
                let grace = Some(Duration::from_secs(10));
                Shape { cpu_at_most: Some(1.5), grace, ..shape(body(2 << 20), 16) }
            }
            "embeddings" => shape(Request::embedding(MODEL, 300), 64),
            _ => Shape { cpu_at_most: Some(1.25), ..shape(body(300), 64) },
        }
    }
}

/// All scenarios of this kind; the name says which.
pub(crate) fn run(harness: &mut Harness, name: &str) -> Result<Section, LoadError> {
    let shape = Shape::of(name);
    let mut settings = Settings::all_controls(vec![Model::same(MODEL)]);
    settings.controls = shape.controls;
    if name == "body-2m-counted" {
        // A real model's: 2 MB of text may fit it or not, so the gateway counts.
        settings.context_window = 1_000_000;
    }
    let fleet = harness.fleet(ProviderKind::Quick, &settings)?;
    let compared = harness.compare(&fleet, shape.protocol, |target| {
        let to = fleet.address(target);
        let load = Load::new(to, shape.request.clone(), Pace::Closed, shape.connections);
        Load { grace: shape.grace.unwrap_or(load.grace), ..load }
    })?;
    let mut section = described(&compared);
    if let Some(limit) = shape.cpu_at_most {
        let ratio = compared.to_yardstick(Target::Tollbar, Sample::cpu_per_request);
        section.checks.push(Check::at_most("CPU per request, Tollbar / yardstick", ratio, limit));
    }
    if name.starts_with("body-2m") {
        let peak = compared.median(Target::Tollbar, |s| s.peak_rss.map(|bytes| bytes as f64));
        let in_flight = (shape.connections * shape.request.body_len()) as f64;
        let both = peak.zip(fleet.tollbar.idle_rss);
        let ratio = both.map(|(peak, idle)| (peak - idle as f64) / in_flight);
        section.checks.push(Check::at_most("(peak RSS − idle RSS) / bytes in flight", ratio, 2.2));
    }
    Ok(section)
}

/// Table, ratios and failures of requests that are answered whole.
pub(crate) fn described(compared: &Compared) -> Section {
    let mut section = Section { tables: vec![compared.plain_table()], ..Section::default() };
    section.notes.push(compared.ratios(&[
        ("throughput", Sample::rate),
        ("CPU per request", Sample::cpu_per_request),
        ("p99", p99),
        ("peak RSS", crate::load::section::peak),
    ]));
    section.notes.extend(compared.failures());
    section.notes.extend(compared.disturbances());
    section.checks.extend(sound(std::slice::from_ref(compared)));
    section
}
