//! What a scenario found: rows of figures, ratios, and what had to hold.

use super::fleet::Target;
use super::measure::Sample;
use super::stats::{difference, median, ratio};
use super::tally::Tally;

/// A scenario's part of the report.
#[derive(Debug, Default)]
pub struct Section {
    pub(crate) name: String,
    pub(crate) about: String,
    pub(crate) tables: Vec<Table>,
    /// Plain sentences: ratios, what was scaled down, what went wrong.
    pub(crate) notes: Vec<String>,
    pub(crate) checks: Vec<Check>,
}

impl Section {
    /// True when everything that has to hold did.
    pub fn holds(&self) -> bool {
        self.checks.iter().all(Check::holds)
    }
}

/// Rows with the same columns.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) rows: Vec<Row>,
}

/// One line of a table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) figures: Vec<(&'static str, Option<f64>)>,
}

/// Something that has to hold.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) what: String,
    pub(crate) found: Option<f64>,
    pub(crate) at_most: f64,
}

impl Check {
    pub(crate) fn at_most(what: &str, found: Option<f64>, at_most: f64) -> Self {
        Self { what: what.to_owned(), found, at_most }
    }

    /// Where nothing was answered nothing was measured, and there was little that could fail.
    pub(crate) fn answered<'a>(what: &str, all: impl IntoIterator<Item = &'a Tally>) -> Self {
        let empty = all.into_iter().filter(|tally| tally.done == 0).count();
        Self::at_most(&format!("{what} without an answer"), Some(empty as f64), 0.0)
    }

    /// What was not measured does not hold.
    pub(crate) fn holds(&self) -> bool {
        self.found.is_some_and(|found| found <= self.at_most)
    }
}

/// The rounds of all targets, which took turns.
pub(crate) struct Compared(pub(crate) Vec<(Target, Vec<Sample>)>);

type Figure = fn(&Sample) -> Option<f64>;

impl Compared {
    /// A figure of each round of a target.
    pub(crate) fn each(
        &self,
        target: Target,
        figure: impl Fn(&Sample) -> Option<f64>,
    ) -> Vec<Option<f64>> {
        let found = self.0.iter().find(|(t, _)| *t == target);
        found.map(|(_, samples)| samples.iter().map(figure).collect()).unwrap_or_default()
    }

    /// The median over the rounds of a target.
    pub(crate) fn median(
        &self,
        target: Target,
        figure: impl Fn(&Sample) -> Option<f64>,
    ) -> Option<f64> {
        median(self.each(target, figure).into_iter().flatten())
    }

    /// A target's figure beside the yardstick's, round by round.
    pub(crate) fn to_yardstick(&self, target: Target, figure: Figure) -> Option<f64> {
        ratio(&self.each(target, figure), &self.each(Target::Yardstick, figure))
    }

    /// What a target adds to direct, round by round.
    pub(crate) fn added(&self, target: Target, figure: Figure) -> Option<f64> {
        difference(&self.each(target, figure), &self.each(Target::Direct, figure))
    }

    /// All failures of a target.
    pub(crate) fn errors(&self, target: Target) -> f64 {
        self.each(target, |s| Some(s.tally.failed() as f64)).into_iter().flatten().sum()
    }

    /// Whether the machine was quiet, in words.
    pub(crate) fn disturbances(&self) -> Vec<String> {
        let line = |(target, samples): &(Target, Vec<Sample>)| {
            let repeated: usize = samples.iter().map(|sample| sample.repeated).sum();
            let bad = samples.iter().filter(|sample| sample.is_disturbed()).count();
            (repeated + bad > 0).then(|| {
                format!(
                    "{}: {repeated} rounds repeated, since others used the proxy's core; {bad} of \
                     {} counted although they did",
                    target.name(),
                    samples.len()
                )
            })
        };
        self.0.iter().filter_map(line).collect()
    }

    /// What failed, in words.
    pub(crate) fn failures(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (target, samples) in &self.0 {
            let mut all = Tally::new();
            samples.iter().for_each(|sample| all.merge(&sample.tally));
            for (what, count) in &all.errors {
                lines.push(format!("{}: {count} × {what}", target.name()));
            }
        }
        lines
    }

    /// One row per target for requests that are answered whole.
    pub(crate) fn plain_table(&self) -> Table {
        let row = |target: Target| {
            let at = |p: f64| move |s: &Sample| s.tally.latency.micros(p);
            Row {
                name: target.name().to_owned(),
                figures: vec![
                    ("req/s", self.median(target, Sample::rate)),
                    ("p50 µs", self.median(target, at(50.0))),
                    ("p90 µs", self.median(target, at(90.0))),
                    ("p99 µs", self.median(target, at(99.0))),
                    ("p99.9 µs", self.median(target, at(99.9))),
                    ("added p50 µs", self.added(target, p50)),
                    ("added p99 µs", self.added(target, p99)),
                    ("CPU µs/req", self.median(target, Sample::cpu_per_request)),
                    ("core busy %", self.median(target, |s| Some(s.busy()? * 100.0))),
                    ("others %", self.median(target, |s| Some(s.others()? * 100.0))),
                    ("peak RSS MiB", self.median(target, peak)),
                    ("errors", Some(self.errors(target))),
                ],
            }
        };
        Table {
            title: String::new(),
            rows: self.0.iter().map(|(target, _)| row(*target)).collect(),
        }
    }

    /// One row per target for streams.
    pub(crate) fn stream_table(&self) -> Table {
        let row = |target: Target| Row {
            name: target.name().to_owned(),
            figures: vec![
                ("chunks/s", self.median(target, |s| Some(s.tally.events as f64 / s.seconds))),
                ("first p50 µs", self.median(target, |s| s.tally.first.micros(50.0))),
                ("first p99 µs", self.median(target, first_p99)),
                ("gap p50 µs", self.median(target, |s| s.tally.gap.micros(50.0))),
                ("gap p99 µs", self.median(target, gap_p99)),
                ("added first p99 µs", self.added(target, first_p99)),
                ("added gap p99 µs", self.added(target, gap_p99)),
                ("CPU µs/chunk", self.median(target, Sample::cpu_per_event)),
                ("core busy %", self.median(target, |s| Some(s.busy()? * 100.0))),
                ("others %", self.median(target, |s| Some(s.others()? * 100.0))),
                ("peak RSS MiB", self.median(target, peak)),
                ("errors", Some(self.errors(target))),
            ],
        };
        Table {
            title: String::new(),
            rows: self.0.iter().map(|(target, _)| row(*target)).collect(),
        }
    }

    /// The sentence that a reader looks for first.
    pub(crate) fn ratios(&self, figures: &[(&str, Figure)]) -> String {
        let one =
            |(name, figure): &(&str, Figure)| match self.to_yardstick(Target::Tollbar, *figure) {
                Some(ratio) => format!("{name} × {ratio:.2}"),
                None => format!("{name} n/a"),
            };
        format!("Tollbar / yardstick: {}", figures.iter().map(one).collect::<Vec<_>>().join(", "))
    }
}

/// What every comparison needs: all figures are made of answers, so whoever refuses fast, or says
/// nothing, looks well in them.
pub(crate) fn sound(all: &[Compared]) -> [Check; 2] {
    let failed = all.iter().map(|compared| compared.errors(Target::Tollbar)).sum();
    // Whether another gateway knows the models and keys is not for us to say.
    let ours = all.iter().flat_map(|compared| &compared.0).filter(|(t, _)| *t != Target::Other);
    let rounds = ours.flat_map(|(_, samples)| samples).map(|sample| &sample.tally);
    [Check::at_most("failed requests", Some(failed), 0.0), Check::answered("rounds", rounds)]
}

pub(crate) fn p50(sample: &Sample) -> Option<f64> {
    sample.tally.latency.micros(50.0)
}

pub(crate) fn p99(sample: &Sample) -> Option<f64> {
    sample.tally.latency.micros(99.0)
}

pub(crate) fn first_p99(sample: &Sample) -> Option<f64> {
    sample.tally.first.micros(99.0)
}

pub(crate) fn gap_p99(sample: &Sample) -> Option<f64> {
    sample.tally.gap.micros(99.0)
}

/// In MiB.
pub(crate) fn peak(sample: &Sample) -> Option<f64> {
    sample.peak_rss.map(|bytes| bytes as f64 / (1024.0 * 1024.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(done: u64, refused: u64) -> Sample {
        let mut tally = Tally::new();
        tally.done = done;
        (0..refused).for_each(|_| tally.error("status 429"));
        Sample { tally, seconds: 1.0, cpu: None, peak_rss: None, core: None, repeated: 0 }
    }

    fn holds(rounds: Vec<(Target, Vec<Sample>)>) -> [bool; 2] {
        sound(&[Compared(vec![(Target::Tollbar, vec![round(9, 0)])]), Compared(rounds)])
            .map(|check| check.holds())
    }

    #[test]
    fn refusals_and_silence_do_not_hold() {
        use Target::{Direct, Other, Tollbar, Yardstick};
        assert_eq!(holds(vec![(Tollbar, vec![round(9, 0), round(1, 0)])]), [true, true]);
        assert_eq!(holds(vec![(Tollbar, vec![round(9, 0), round(9, 1)])]), [false, true]);
        assert_eq!(holds(vec![(Tollbar, vec![round(9, 0), round(0, 0)])]), [true, false]);
        // A comparison with nothing is none.
        assert_eq!(
            holds(vec![(Direct, vec![round(9, 0)]), (Yardstick, vec![round(0, 0)])]),
            [true, false]
        );
        assert_eq!(holds(vec![(Other, vec![round(0, 5)])]), [true, true]);
    }
}
