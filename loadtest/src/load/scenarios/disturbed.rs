//! What others feel of a reload, and of clients that misbehave.

use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use rustix::process::Signal;

use super::Harness;
use super::plain::MODEL;
use super::rates::{saturation, small};
use crate::load::admin::metric_with;
use crate::load::engine::{Load, Pace};
use crate::load::error::LoadError;
use crate::load::fleet::{Fleet, ProviderKind, Target};
use crate::load::measure::{Protocol, Sample, quiet_round};
use crate::load::section::{Check, Row, Section, Table, p99};
use crate::load::stats::{median, ratio};
use crate::load::sys;
use crate::load::yaml::{Model, Settings};

const LOAD: f64 = 0.7;
const SLOW_CLIENTS: usize = 5000;
const PATIENCE: Duration = Duration::from_secs(3600);

/// SIGHUP every second, with 100,000 keys.
pub(crate) fn reload(harness: &mut Harness, _: &str) -> Result<Section, LoadError> {
    let mut settings = Settings::all_controls(vec![Model::same(MODEL)]);
    settings.keys = 100_000;
    settings.per_key = false;
    let fleet = harness.fleet(ProviderKind::Quick, &settings)?;
    let rate = saturation(harness, &fleet, Target::Tollbar)? * LOAD;
    let pid = fleet.tollbar.child.pid();
    // Several reloads fall into a round.
    let least = if harness.options.quick { 2.0 } else { 4.0 };
    harness.options.seconds = harness.options.seconds.max(least);
    let (mut quiet, mut disturbed) = (Vec::new(), Vec::new());
    let mut wanted = 0;
    for _ in 0..harness.options.rounds.max(1) {
        quiet.push(one(harness, &fleet, rate)?);
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let signals = std::thread::spawn(move || {
            let mut sent = 0u64;
            while !until.load(Relaxed) {
                sys::signal(pid, Signal::HUP);
                sent += 1;
                std::thread::sleep(Duration::from_secs(1));
            }
            sent
        });
        disturbed.push(one(harness, &fleet, rate)?);
        stop.store(true, Relaxed);
        wanted += signals.join().unwrap_or(0);
        // What is still being loaded must not fall into the next quiet round.
        std::thread::sleep(fleet.tollbar.load_time + Duration::from_secs(1));
    }
    let mut section = beside(("no reload", &quiet), ("a reload every second", &disturbed), 2.0);
    let reloads = reloads(&fleet.tollbar.metrics()?);
    section.notes.push(format!(
        "{rate:.0} requests a second; {:.0} reloads; starting took {:.2} s; \
         gateway and reload share one core",
        reloads.unwrap_or(f64::NAN),
        fleet.tollbar.load_time.as_secs_f64()
    ));
    section.checks.extend(of_reloads(reloads, wanted));
    Ok(section)
}

/// Those that took the new configuration: one that is refused costs little.
pub(crate) fn reloads(metrics: &str) -> Option<f64> {
    metric_with(metrics, "tollbar_config_reloads_total", "result=\"ok\"")
}

/// One a second was wanted. A signal that comes while another waits is the same one, so a few
/// may be missing.
fn of_reloads(reloads: Option<f64>, wanted: u64) -> [Check; 2] {
    let missing = reloads.map(|reloads| 1.0 - reloads / wanted as f64);
    let none = reloads.map(|reloads| f64::from(reloads < 1.0));
    [
        Check::at_most("no reload at all (1: none)", none, 0.0),
        Check::at_most("reloads missing, of one a second", missing, 0.25),
    ]
}

/// Half of the slow clients send half a head, half of them half a body.
pub(crate) fn slow_clients(harness: &mut Harness, _: &str) -> Result<Section, LoadError> {
    let mut settings = Settings::all_controls(vec![Model::same(MODEL)]);
    // However long a round lasts, they are to be there to its end.
    settings.patience = Some(PATIENCE);
    let fleet = harness.fleet(ProviderKind::Quick, &settings)?;
    let rate = saturation(harness, &fleet, Target::Tollbar)? * 0.5;
    let count = SLOW_CLIENTS.min(harness.open_files.saturating_sub(500) as usize);
    let (mut quiet, mut disturbed) = (Vec::new(), Vec::new());
    let mut there = count;
    for _ in 0..harness.options.rounds.max(1) {
        quiet.push(one(harness, &fleet, rate)?);
        let slow = connect(fleet.tollbar.at.data, count);
        // Not how fast they are accepted is measured, but what they cost while they are there.
        std::thread::sleep(Duration::from_secs(1));
        disturbed.push(one(harness, &fleet, rate)?);
        there = there.min(slow.iter().filter(|stream| is_waiting(stream)).count());
        drop(slow);
        std::thread::sleep(Duration::from_millis(500));
    }
    let mut section = beside(("alone", &quiet), ("beside slow clients", &disturbed), 1.5);
    section.notes.push(format!("{rate:.0} requests a second; {there} slow clients"));
    let gone = Some((count - there) as f64);
    section.checks.push(Check::at_most("slow clients that were not there to the end", gone, 0.0));
    Ok(section)
}

/// Open, and without an answer: the gateway still waits for the rest.
fn is_waiting(stream: &TcpStream) -> bool {
    let seen = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    seen.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// Connections that never get to the end of a request; fewer where no more are taken.
fn connect(to: SocketAddr, count: usize) -> Vec<TcpStream> {
    const HEAD: &[u8] = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer tb-load-0000000\r\ncontent-type: application/json\r\ncontent-length: 400\r\n\r\n{\"model\":\"sim-small\",";
    let mut all = Vec::with_capacity(count);
    for number in 0..count {
        let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(2)) else { break };
        let part = if number % 2 == 0 { &HEAD[..60] } else { HEAD };
        let _ = stream.write_all(part);
        all.push(stream);
    }
    all
}

fn one(harness: &Harness, fleet: &Fleet, rate: f64) -> Result<Sample, LoadError> {
    let load = Load::new(fleet.tollbar.at.data, small(), Pace::Open(rate), 64);
    let pid = Some(fleet.tollbar.child.pid());
    quiet_round(&[load], Protocol::H1, pid, harness.length(), &harness.cores)
}

/// Two kinds of rounds that took turns.
fn beside(quiet: (&str, &[Sample]), disturbed: (&str, &[Sample]), at_most: f64) -> Section {
    let each = |samples: &[Sample], figure: fn(&Sample) -> Option<f64>| -> Vec<Option<f64>> {
        samples.iter().map(figure).collect()
    };
    let row = |(name, samples): (&str, &[Sample])| {
        let of = |figure: fn(&Sample) -> Option<f64>| median(samples.iter().filter_map(figure));
        Row {
            name: name.to_owned(),
            figures: vec![
                ("req/s", of(Sample::rate)),
                ("p50 µs", of(|s| s.tally.latency.micros(50.0))),
                ("p90 µs", of(|s| s.tally.latency.micros(90.0))),
                ("p99 µs", of(p99)),
                ("p99.9 µs", of(|s| s.tally.latency.micros(99.9))),
                ("CPU µs/req", of(Sample::cpu_per_request)),
                ("core busy %", of(|s| Some(s.busy()? * 100.0))),
                ("others %", of(|s| Some(s.others()? * 100.0))),
                ("peak RSS MiB", of(crate::load::section::peak)),
                ("errors", Some(failed(samples))),
            ],
        }
    };
    let mut section = Section::default();
    section.tables.push(Table { title: String::new(), rows: vec![row(quiet), row(disturbed)] });
    for sample in disturbed.1 {
        section.notes.extend(sample.tally.errors.iter().map(|(what, n)| format!("{n} × {what}")));
    }
    let slower = ratio(&each(disturbed.1, p99), &each(quiet.1, p99));
    section.checks.push(Check::at_most("p99 disturbed / alone", slower, at_most));
    section.checks.push(Check::at_most("failed requests", Some(failed(disturbed.1)), 0.0));
    let rounds = quiet.1.iter().chain(disturbed.1).map(|sample| &sample.tally);
    section.checks.push(Check::answered("rounds", rounds));
    section
}

fn failed(samples: &[Sample]) -> f64 {
    samples.iter().map(|sample| sample.tally.failed() as f64).sum()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn reloads_that_were_refused_are_none() {
        let holds = |ok: u64, refused: u64, wanted| {
            let name = "tollbar_config_reloads_total";
            let text =
                format!("{name}{{result=\"ok\"}} {ok}\n{name}{{result=\"refused\"}} {refused}\n");
            of_reloads(reloads(&text), wanted).map(|check| check.holds())
        };
        assert_eq!(holds(17, 0, 18), [true, true]);
        assert_eq!(holds(1, 17, 18), [true, false]);
        assert_eq!(holds(0, 18, 18), [false, false]);
        assert_eq!(of_reloads(reloads(""), 18).map(|check| check.holds()), [false, false]);
        assert!(!of_reloads(Some(0.0), 0)[1].holds());
    }

    #[test]
    fn slow_clients_are_those_that_wait() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut clients = connect(listener.local_addr().unwrap(), 3);
        let mut accepted = (0..3).map(|_| listener.accept().unwrap().0);
        let _waiting = accepted.next();
        let mut answered = accepted.next().unwrap();
        answered.write_all(b"HTTP/1.1 408 Request Timeout\r\n").unwrap();
        drop(accepted.next());
        for client in &mut clients[1..] {
            // Until it has come.
            let _ = client.peek(&mut [0]);
        }
        assert_eq!(clients.iter().map(is_waiting).collect::<Vec<_>>(), [true, false, false]);
    }
}
