//! The command line: run | demo | check | spend | keygen.

use crate::config::{self, Environment, ProcessEnvironment};
use crate::reload::Source;
use crate::server::{self, Options};
use crate::{demo, keygen};
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// An edge proxy for LLM providers: no request costs more than somebody agreed to pay.
#[derive(Parser, Debug)]
#[command(name = "tollbar", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serve.
    Run {
        #[command(flatten)]
        file: ConfigFile,
        /// Take the listening sockets over from the running process (send it SIGQUIT next).
        #[arg(long)]
        upgrade: bool,
    },
    /// Serve a built-in example against a simulated provider: no key, no network, no file.
    Demo,
    /// Load the configuration as `run` would, and say everything that is wrong with it.
    Check {
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Make a new virtual key: it is shown once, the configuration holds only its hash.
    Keygen {
        /// The key's id in the configuration.
        #[arg(long, default_value = "my-app")]
        id: String,
    },
}

#[derive(clap::Args, Debug)]
struct ConfigFile {
    /// The configuration file [default: $TOLLBAR_CONFIG, ./tollbar.yaml, /etc/tollbar/tollbar.yaml]
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the command line; the exit code is 0, 1 for a problem, 2 for bad usage.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Command::Run { file, upgrade } => run(&file, upgrade),
        Command::Demo => demo::main(),
        Command::Check { file } => check(&file),
        Command::Keygen { id } => {
            print!("{}", keygen::text(&keygen::generate(&mut rand::rng()), &id));
            ExitCode::SUCCESS
        }
    }
}

fn locate(file: &ConfigFile) -> Result<PathBuf, ExitCode> {
    let environment: &dyn Environment = &ProcessEnvironment;
    config::find(file.config.as_deref(), environment).ok_or_else(|| {
        eprintln!("tollbar: there is no configuration file.");
        eprintln!("name one with -c FILE or $TOLLBAR_CONFIG, or try `tollbar demo` first.");
        ExitCode::FAILURE
    })
}

fn run(file: &ConfigFile, upgrade: bool) -> ExitCode {
    let path = match locate(file) {
        Ok(path) => path,
        Err(code) => return code,
    };
    crate::logging::start();
    let options = Options {
        source: Source::File(path),
        environment: Box::new(ProcessEnvironment),
        upgrade,
        on_ready: Box::new(|ready| {
            for (address, tls) in &ready.data {
                let scheme = if *tls { "https" } else { "http" };
                log::info!("listening on {scheme}://{address}");
            }
            log::info!("admin on http://{}", ready.admin);
        }),
    };
    demo::finish(server::run(options))
}

fn check(file: &ConfigFile) -> ExitCode {
    let path = match locate(file) {
        Ok(path) => path,
        Err(code) => return code,
    };
    match config::load(&path, &ProcessEnvironment, 1) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                println!("warning: {}", warning.located(&path.display().to_string()));
            }
            print!("{}", config::plan(&loaded.snapshot));
            ExitCode::SUCCESS
        }
        Err(invalid) => {
            eprintln!("{invalid}");
            ExitCode::FAILURE
        }
    }
}
