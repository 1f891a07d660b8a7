//! The load test: what Tollbar costs, beside no proxy and beside a bare Pingora proxy.

use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use tollbar_loadtest::load::scenarios::{ALL, Scenario};
use tollbar_loadtest::load::{Binaries, Harness, LoadError, Options, Other, write_report};

/// Measures Tollbar beside a bare Pingora proxy and beside no proxy at all.
#[derive(Parser)]
#[command(name = "loadtest", version)]
struct Arguments {
    /// Scenarios, separated by commas [default: all but `soak`].
    #[arg(long, value_delimiter = ',')]
    scenario: Vec<String>,
    /// Seconds of each round.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Rounds of each target; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of `soak`.
    #[arg(long, default_value_t = 20.0)]
    minutes: f64,
    /// Short rounds: everything but the million keys in under five minutes.
    #[arg(long)]
    quick: bool,
    /// Another gateway to put beside them: http://HOST:PORT, leading to a provider of its own.
    #[arg(long, value_name = "URL")]
    vs: Option<String>,
    /// That gateway's process, for its CPU time and memory.
    #[arg(long, value_name = "PID")]
    vs_pid: Option<u32>,
    /// The gateway's binary [default: `tollbar` beside this one].
    #[arg(long, value_name = "FILE")]
    tollbar: Option<PathBuf>,
    /// Where the results are written.
    #[arg(long, value_name = "DIR", default_value = "loadtest/results")]
    results: PathBuf,
    /// List the scenarios.
    #[arg(long)]
    list: bool,
}

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        for scenario in ALL {
            println!("{:<14} {}", scenario.name, scenario.about);
        }
        return ExitCode::SUCCESS;
    }
    match run(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("loadtest: {error}");
            ExitCode::from(2)
        }
    }
}

/// True when everything that has to hold did hold.
fn run(arguments: Arguments) -> Result<bool, LoadError> {
    let scenarios = chosen(&arguments)?;
    let binaries = binaries(arguments.tollbar.as_deref())?;
    let options = Options {
        seconds: if arguments.quick { 0.8 } else { arguments.seconds },
        rounds: if arguments.quick { 2 } else { arguments.rounds },
        quick: arguments.quick,
        minutes: arguments.minutes,
        other: other(&arguments)?,
    };
    let mut harness = Harness::new(binaries, options);
    let sections = harness.run(&scenarios);
    // As it was typed, but for where the program lies.
    let typed: Vec<String> = std::env::args().skip(1).collect();
    let command = format!("loadtest {}", typed.join(" "));
    let written = write_report(&sections, command.trim(), &arguments.results)?;
    println!("written to {}", written.display());
    Ok(sections.iter().all(|section| section.holds()))
}

fn chosen(arguments: &Arguments) -> Result<Vec<&'static Scenario>, LoadError> {
    if arguments.scenario.is_empty() {
        let wanted = |s: &&Scenario| s.usual && !(arguments.quick && s.name == "keys-1m");
        return Ok(ALL.iter().filter(wanted).collect());
    }
    let find = |name: &String| {
        ALL.iter().find(|scenario| scenario.name == name).ok_or_else(|| {
            LoadError::new(format!("there is no scenario `{name}`"), "see them all with --list")
        })
    };
    arguments.scenario.iter().map(find).collect()
}

fn binaries(tollbar: Option<&Path>) -> Result<Binaries, LoadError> {
    let own = std::env::current_exe().map_err(|error| {
        LoadError::new(format!("this program's path is unknown: {error}"), "is /proc mounted?")
    })?;
    let here = own.parent().unwrap_or(Path::new(".")).to_owned();
    let tollbar = tollbar.map_or_else(|| here.join("tollbar"), Path::to_owned);
    for file in [&tollbar, &here.join("yardstick"), &here.join("quick-provider")] {
        if !file.is_file() {
            return Err(LoadError::new(
                format!("{} is not there", file.display()),
                "build it: cargo build --release --workspace --bins",
            ));
        }
    }
    Ok(Binaries { here, tollbar })
}

fn other(arguments: &Arguments) -> Result<Option<Other>, LoadError> {
    let Some(url) = &arguments.vs else { return Ok(None) };
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    let found = host.to_socket_addrs().ok().and_then(|mut all| all.next());
    let address = found.ok_or_else(|| {
        LoadError::new(format!("--vs {url}: nobody is there"), "write http://HOST:PORT")
    })?;
    Ok(Some(Other { address, pid: arguments.vs_pid }))
}
