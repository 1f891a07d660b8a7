//! The command line: run | demo | check | spend | keygen.

use crate::admin::reports;
use crate::config::{self, Environment, ProcessEnvironment};
use crate::ledger::{self, Filter};
use crate::reload::Source;
use crate::server::{self, Options};
use crate::terminal::{complain, say};
use crate::{demo, keygen, logging};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
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
        /// Take the listening sockets over from the running process (send it SIGQUIT next, within a minute).
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
    /// What was spent, from the ledger; also while the server runs.
    Spend {
        #[command(flatten)]
        file: ConfigFile,
        /// From this date (its beginning in the configuration's `timezone`) or RFC 3339 time on.
        #[arg(long)]
        from: Option<String>,
        /// Until before this date or time.
        #[arg(long)]
        to: Option<String>,
        /// Columns, separated by commas: key, team, user, model, provider, target_model, outcome, hour, day, month.
        #[arg(long, default_value = "model")]
        group_by: String,
        /// Comma-separated values instead of a table.
        #[arg(long)]
        csv: bool,
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
        Command::Spend { file, from, to, group_by, csv } => {
            spend(&file, from.as_deref(), to.as_deref(), &group_by, csv)
        }
        Command::Keygen { id } => say(&keygen::text(&keygen::generate(&mut rand::rng()), &id)),
    }
}

fn locate(file: &ConfigFile) -> Result<PathBuf, ExitCode> {
    let environment: &dyn Environment = &ProcessEnvironment;
    config::find(file.config.as_deref(), environment).ok_or_else(|| {
        complain(
            "tollbar: there is no configuration file.\nname one with -c FILE or $TOLLBAR_CONFIG, or try `tollbar demo` first.",
        );
        ExitCode::FAILURE
    })
}

fn run(file: &ConfigFile, upgrade: bool) -> ExitCode {
    let path = match locate(file) {
        Ok(path) => path,
        Err(code) => return code,
    };
    let log = match logging::start() {
        Ok(log) => log,
        Err(error) => return demo::no_log(&error),
    };
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
            Ok(())
        }),
    };
    demo::finish(server::run(options), &log)
}

fn check(file: &ConfigFile) -> ExitCode {
    let path = match locate(file) {
        Ok(path) => path,
        Err(code) => return code,
    };
    let warned = |warnings: &[config::Problem]| -> String {
        let file = path.display().to_string();
        warnings.iter().map(|warning| format!("warning: {}\n", warning.located(&file))).collect()
    };
    match config::load(&path, &ProcessEnvironment, None) {
        Ok(loaded) => {
            let mut text = warned(&loaded.warnings);
            // Only a warning: another machine may run it, or another user.
            if let Some(why) = unusable_here(&loaded.snapshot.state_path) {
                text += &format!("warning: {}: state.path: {why}\n", path.display());
            }
            say(&(text + &config::plan(&loaded.snapshot)))
        }
        Err(invalid) => {
            complain(&invalid);
            say(&warned(&invalid.warnings));
            ExitCode::FAILURE
        }
    }
}

/// Why the server couldn't start with this state file on this machine.
fn unusable_here(state: &Path) -> Option<String> {
    if state.is_dir() {
        return Some(format!("{} is a directory here; name a file in it", state.display()));
    }
    let here = |dir: &Path| dir.as_os_str().is_empty() || dir.is_dir();
    let missing = state.parent().filter(|dir| !here(dir))?;
    let missing = missing.display();
    Some(format!("there is no directory {missing} here; it has to be there when the server starts"))
}

fn spend(
    file: &ConfigFile,
    from: Option<&str>,
    to: Option<&str>,
    group_by: &str,
    csv: bool,
) -> ExitCode {
    match spent(file, from, to, group_by, csv) {
        Ok(report) => say(&report),
        Err(why) => {
            complain(format_args!("tollbar: {why}"));
            ExitCode::FAILURE
        }
    }
}

fn spent(
    file: &ConfigFile,
    from: Option<&str>,
    to: Option<&str>,
    group_by: &str,
    csv: bool,
) -> Result<String, String> {
    let path = config::find(file.config.as_deref(), &ProcessEnvironment)
        .ok_or("there is no configuration file.\nname one with -c FILE or $TOLLBAR_CONFIG.")?;
    let (state, zone) =
        config::books(&path, &ProcessEnvironment).map_err(|invalid| invalid.to_string())?;
    let columns = reports::columns(group_by)?;
    let time = |text: Option<&str>| text.map(|text| reports::time(text, zone)).transpose();
    let filter = Filter { from: time(from)?, to: time(to)?, ..Filter::default() };
    reports::in_order(filter.from, filter.to)?;
    let rows = ledger::spend(&state, &filter, &columns, zone, u64::MAX)
        .map_err(|error| format!("{error}\nhas the server run with this configuration yet?"))?;
    let mut table =
        vec![columns.iter().map(|column| column.as_str().to_owned()).collect::<Vec<_>>()];
    let sums = ["requests", "attempts", "input_tokens", "output_tokens", "cost_usd"];
    if let Some(head) = table.first_mut() {
        head.extend(sums.map(str::to_owned));
    }
    for row in rows {
        let mut line: Vec<String> =
            row.group.iter().map(|value| value.clone().unwrap_or_else(|| "-".into())).collect();
        line.extend(
            [row.requests, row.attempts, row.input_tokens, row.output_tokens]
                .map(|n| n.to_string()),
        );
        line.push(row.cost.to_string());
        table.push(line);
    }
    Ok(if csv { as_csv(&table) } else { as_table(&table) })
}

fn as_csv(table: &[Vec<String>]) -> String {
    let cell = |text: &String| {
        // A spreadsheet would take it for a formula; "-" alone stands for none.
        let formula = text.len() > 1 && text.starts_with(['=', '+', '-', '@', '\t', '\r']);
        let text = if formula { format!("'{text}") } else { text.clone() };
        match text.contains([',', '"', '\n', '\r']) {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text,
        }
    };
    table.iter().map(|line| line.iter().map(cell).collect::<Vec<_>>().join(",") + "\n").collect()
}

fn as_table(table: &[Vec<String>]) -> String {
    let width = |at: usize| table.iter().filter_map(|line| line.get(at)).map(String::len).max();
    let padded = |line: &Vec<String>| {
        let cells = line.iter().enumerate();
        let cells = cells.map(|(at, cell)| format!("{cell:>w$}", w = width(at).unwrap_or(0)));
        cells.collect::<Vec<_>>().join("  ") + "\n"
    };
    table.iter().map(padded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_safe_to_open_in_a_spreadsheet() {
        let line = ["=HYPERLINK(1)", "@SUM", "a\rb", "say \"hi\", then", "-", "12.5"];
        let table = vec![line.map(str::to_owned).to_vec()];
        let expected = "'=HYPERLINK(1),'@SUM,\"a\rb\",\"say \"\"hi\"\", then\",-,12.5\n";
        assert_eq!(as_csv(&table), expected);
    }
}
