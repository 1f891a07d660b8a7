//! One round: a load, and what the proxy's process spent on it.

use std::time::{Duration, Instant};

use super::engine::{self, Load, Span};
use super::error::{LoadError, system};
use super::sys::Cores;
use super::tally::Tally;
use super::{h2, procfs, sys};

/// What a round measured.
#[derive(Clone)]
pub(crate) struct Sample {
    pub(crate) tally: Tally,
    pub(crate) seconds: f64,
    /// CPU time of the proxy's process.
    pub(crate) cpu: Option<Duration>,
    /// The most memory of the proxy's process, in bytes.
    pub(crate) peak_rss: Option<u64>,
    /// Time that the proxy's core was not idle, whoever used it.
    pub(crate) core: Option<Duration>,
    /// Rounds before this one that others had disturbed.
    pub(crate) repeated: usize,
}

impl Sample {
    /// Answers per second.
    pub(crate) fn rate(&self) -> Option<f64> {
        Some(self.tally.done as f64 / self.seconds)
    }

    /// CPU microseconds for each answer.
    pub(crate) fn cpu_per_request(&self) -> Option<f64> {
        Some(self.cpu?.as_secs_f64() * 1e6 / self.tally.done as f64)
    }

    /// CPU microseconds for each event of a stream.
    pub(crate) fn cpu_per_event(&self) -> Option<f64> {
        (self.tally.events > 0).then_some(())?;
        Some(self.cpu?.as_secs_f64() * 1e6 / self.tally.events as f64)
    }

    /// Share of the proxy's core that anything but the proxy used. More than a few per cent: the
    /// round was disturbed.
    pub(crate) fn others(&self) -> Option<f64> {
        let own = self.cpu.unwrap_or_default();
        Some(self.core?.saturating_sub(own).as_secs_f64() / self.seconds)
    }

    /// Others used the proxy's core, and went on doing so.
    pub(crate) fn is_disturbed(&self) -> bool {
        self.others().is_some_and(|share| share > DISTURBED)
    }

    /// Share of one core that the proxy's process used.
    pub(crate) fn busy(&self) -> Option<f64> {
        Some(self.cpu?.as_secs_f64() / self.seconds)
    }
}

/// Which protocol the generator speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    H1,
    /// By prior knowledge, with so many streams on each connection.
    H2(usize),
}

/// Length of a round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Length {
    pub(crate) warm_up: Duration,
    pub(crate) seconds: Duration,
}

impl Length {
    /// From now on.
    pub(crate) fn span(self) -> Span {
        // A moment for the generators' threads to start.
        let begin = Instant::now() + Duration::from_millis(20);
        let record = begin + self.warm_up;
        Span { begin, record, end: record + self.seconds }
    }
}

/// Runs these loads together against a process.
pub(crate) fn round(
    loads: &[Load],
    protocol: Protocol,
    pid: Option<u32>,
    length: Length,
    cores: &Cores,
) -> Result<Sample, LoadError> {
    let running = Running::start(loads, protocol, length.span(), &cores.generator);
    // Where all share one core, nobody can be told from the others.
    let alone = (cores.proxy != cores.generator).then_some(&cores.proxy[..]);
    let watched = running.watch(pid, alone);
    let tally = running.join()?;
    let Watched { cpu, peak_rss, core } = watched;
    Ok(Sample { tally, seconds: length.seconds.as_secs_f64(), cpu, peak_rss, core, repeated: 0 })
}

/// More of the proxy's core used by others makes a round worthless.
const DISTURBED: f64 = 0.05;
/// How often a round is repeated to find the machine quiet.
const REPEATS: usize = 4;

/// A round on a quiet machine, if there is one: it is repeated as long as others used the
/// proxy's core. What was measured has no say in that. The last one counts, quiet or not.
pub(crate) fn quiet_round(
    loads: &[Load],
    protocol: Protocol,
    pid: Option<u32>,
    length: Length,
    cores: &Cores,
) -> Result<Sample, LoadError> {
    let mut sample = round(loads, protocol, pid, length, cores)?;
    // Without the process's own share, all of the core would be others'.
    let known = pid.is_some();
    for repeated in 1..=REPEATS {
        if !known || sample.others().is_none_or(|share| share <= DISTURBED) {
            break;
        }
        sample = round(loads, protocol, pid, length, cores)?;
        sample.repeated = repeated;
    }
    Ok(sample)
}

/// What a process and its core did over the recorded time.
struct Watched {
    cpu: Option<Duration>,
    peak_rss: Option<u64>,
    core: Option<Duration>,
}

/// Generators at work.
pub(crate) struct Running {
    threads: Vec<std::thread::JoinHandle<std::io::Result<Tally>>>,
    pub(crate) span: Span,
}

impl Running {
    /// Starts each load, split over the generator's cores.
    pub(crate) fn start(loads: &[Load], protocol: Protocol, span: Span, cores: &[usize]) -> Self {
        let mut threads = Vec::new();
        for load in loads {
            // Streams and single connections gain nothing by being split.
            let parts = cores.len().min(load.connections).max(1);
            for (part, core) in cores.iter().cycle().take(parts).enumerate() {
                let mut load = load.part(part, parts);
                load.open = loads[0].open.clone();
                let cores = vec![*core];
                threads.push(std::thread::spawn(move || {
                    sys::pinned(&cores, || match protocol {
                        Protocol::H1 => engine::run(&load, span),
                        Protocol::H2(streams) => h2::run(&load, streams, span),
                    })
                }));
            }
        }
        Self { threads, span }
    }

    /// CPU time and peak memory of a process, and how busy these cores were.
    fn watch(&self, pid: Option<u32>, cores: Option<&[usize]>) -> Watched {
        sleep_until(self.span.record);
        let cores_before = cores.and_then(procfs::cores_busy);
        let before = pid.and_then(procfs::cpu);
        if let Some(pid) = pid {
            procfs::reset_peak(pid);
        }
        sleep_until(self.span.end);
        let after = pid.and_then(procfs::cpu);
        let cores_after = cores.and_then(procfs::cores_busy);
        let spent = |(before, after): (Duration, Duration)| after.saturating_sub(before);
        Watched {
            cpu: before.zip(after).map(spent),
            peak_rss: pid.and_then(procfs::peak_rss),
            core: cores_before.zip(cores_after).map(spent),
        }
    }

    /// Waits for the generators; what they saw together.
    pub(crate) fn join(self) -> Result<Tally, LoadError> {
        let mut all = Tally::new();
        for thread in self.threads {
            let tally = thread.join().map_err(|_| {
                LoadError::new("a generator's thread died", "report this with the command line")
            })?;
            all.merge(&tally.map_err(system("running the generator"))?);
        }
        Ok(all)
    }
}

/// Sleeps until then.
pub(crate) fn sleep_until(at: Instant) {
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
}
