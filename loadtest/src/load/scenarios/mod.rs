//! The scenarios, by name.

mod disturbed;
mod failover;
mod plain;
mod rates;
mod scale;
mod soak;
mod streams;
mod upgrade;

use std::collections::HashMap;
use std::time::Duration;

use super::engine::Load;
use super::error::LoadError;
use super::fleet::{Binaries, Fleet, Other, ProviderKind, Target};
use super::measure::{Length, Protocol, quiet_round};
use super::section::{Compared, Section};
use super::sys::{self, Cores};
use super::table;
use super::yaml::Settings;

/// How the scenarios are run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Length of a round.
    pub seconds: f64,
    /// Rounds of each target.
    pub rounds: usize,
    /// Short, for a first look.
    pub quick: bool,
    /// Length of the soak.
    pub minutes: f64,
    /// Another gateway to put beside them.
    pub other: Option<Other>,
}

/// One thing to measure.
pub struct Scenario {
    /// What `--scenario` takes.
    pub name: &'static str,
    /// What it measures, in one line.
    pub about: &'static str,
    /// Part of a run without `--scenario`.
    pub usual: bool,
    run: fn(&mut Harness, &str) -> Result<Section, LoadError>,
}

const fn row(
    name: &'static str,
    run: fn(&mut Harness, &str) -> Result<Section, LoadError>,
    about: &'static str,
) -> Scenario {
    Scenario { name, about, usual: true, run }
}

/// All scenarios, in the order of running.
pub const ALL: &[Scenario] = &[
    row("small", plain::run, "chat of 300 bytes, saturated, all controls on"),
    row("small-off", plain::run, "the same, all optional controls off"),
    row(
        "small-h2",
        plain::run,
        "the same as small, clients on HTTP/2 (8 connections of 16 streams)",
    ),
    row(
        "small-rates",
        rates::run,
        "chat of 300 bytes at 25, 50 and 75 % of what the yardstick can do",
    ),
    row("body-4k", plain::run, "bodies of 4 KB, saturated"),
    row("body-100k", plain::run, "bodies of 100 KB, saturated"),
    row("body-2m", plain::run, "bodies of 2 MB, saturated: CPU, and memory beside bytes in flight"),
    row(
        "body-2m-counted",
        plain::run,
        "the same for a model with a window of 1,000,000 tokens: the text is counted by a tokenizer",
    ),
    row("embeddings", plain::run, "embeddings of 300 bytes, saturated"),
    row("stream", streams::run, "500 streams of 50 chunks a second"),
    row("stream-h2", streams::run, "the same, clients on HTTP/2 (10 connections of 50 streams)"),
    row("open-streams", streams::open, "10,000 slow streams at once: memory per stream"),
    row("disconnects", streams::disconnects, "clients that leave in the middle of a stream"),
    row("keys-10", scale::keys, "10 keys"),
    row("keys-10k", scale::keys, "10,000 keys"),
    row("keys-1m", scale::keys, "1,000,000 keys: load time, memory, CPU"),
    row("models-1", scale::models, "1 model"),
    row("models-200", scale::models, "200 models"),
    row("failover", failover::run, "30 % of the first target's answers are 429; a second target"),
    row("reload", disturbed::reload, "100,000 keys, a reload every second, at 70 % load"),
    row(
        "slow-clients",
        disturbed::slow_clients,
        "5,000 half-open and slow clients beside normal ones",
    ),
    row("upgrade", upgrade::run, "the binary is replaced under load: no failed request"),
    Scenario {
        name: "soak",
        about: "mixed traffic for --minutes: memory, descriptors, holds, and every request in the ledger",
        usual: false,
        run: soak::run,
    },
];

/// Where and how the scenarios run.
pub struct Harness {
    pub(crate) binaries: Binaries,
    pub(crate) cores: Cores,
    pub(crate) options: Options,
    pub(crate) open_files: u64,
    /// Figures that a later scenario is compared with.
    pub(crate) remembered: HashMap<String, f64>,
}

impl Harness {
    /// Deals the cores and raises the limits.
    pub fn new(binaries: Binaries, options: Options) -> Self {
        let open_files = sys::raise_open_files(65_536);
        Self { binaries, cores: Cores::deal(), options, open_files, remembered: HashMap::new() }
    }

    /// Runs these scenarios and prints each as soon as it is done. One that can't run is said
    /// so, and the others go on.
    pub fn run(&mut self, scenarios: &[&Scenario]) -> Vec<Section> {
        let mut sections = Vec::new();
        let seconds = self.options.seconds;
        for scenario in scenarios {
            eprintln!("running {} …", scenario.name);
            // Some need longer rounds; not those after them.
            self.options.seconds = seconds;
            let mut section = (scenario.run)(self, scenario.name).unwrap_or_else(|error| {
                let check =
                    super::section::Check::at_most("the scenario ran to its end", None, 1.0);
                let notes = vec![format!("failed: {}", error.to_string().replace('\n', "; "))];
                Section { notes, checks: vec![check], ..Section::default() }
            });
            scenario.name.clone_into(&mut section.name);
            scenario.about.clone_into(&mut section.about);
            println!("{}", table::section(&section));
            sections.push(section);
        }
        sections
    }

    pub(crate) fn length(&self) -> Length {
        let seconds = Duration::from_secs_f64(self.options.seconds);
        Length {
            warm_up: (seconds / 4).clamp(Duration::from_millis(300), Duration::from_secs(2)),
            seconds,
        }
    }

    pub(crate) fn fleet(
        &self,
        kind: ProviderKind,
        settings: &Settings,
    ) -> Result<Fleet, LoadError> {
        Fleet::start(&self.binaries, &self.cores, kind, settings, self.options.other.clone())
    }

    /// Runs the same load against all targets in turn, round after round.
    pub(crate) fn compare(
        &self,
        fleet: &Fleet,
        protocol: Protocol,
        load: impl Fn(Target) -> Load,
    ) -> Result<Compared, LoadError> {
        let mut all: Vec<_> = fleet.targets().into_iter().map(|t| (t, Vec::new())).collect();
        // The quick provider speaks HTTP/1.1 only.
        all.retain(|(target, _)| protocol == Protocol::H1 || *target != Target::Direct);
        for _ in 0..self.options.rounds.max(1) {
            for (target, samples) in &mut all {
                let loads = [load(*target)];
                let pid = fleet.pid(*target);
                let sample = quiet_round(&loads, protocol, pid, self.length(), &self.cores)?;
                samples.push(sample);
            }
        }
        Ok(Compared(all))
    }
}
