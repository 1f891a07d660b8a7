//! The report: Markdown for people, JSON for the next comparison.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::error::{LoadError, system};
use super::section::{Section, Table};
use super::{procfs, sys, table};

/// The machine and the source that figures belong to.
struct Place {
    cores: usize,
    cpu: String,
    memory_gib: u64,
    kernel: String,
    commit: String,
    dirty: bool,
}

impl Place {
    fn here() -> Self {
        let git = |args: &[&str]| {
            let output = Command::new("git").args(args).output().ok()?;
            output
                .status
                .success()
                .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        Self {
            cores: std::thread::available_parallelism().map_or(0, |count| count.get()),
            cpu: procfs::cpu_model(),
            memory_gib: procfs::memory() >> 30,
            kernel: sys::kernel(),
            commit: git(&["rev-parse", "--short=10", "HEAD"]).unwrap_or_else(|| "unknown".into()),
            // Results of earlier runs are no change of the source.
            dirty: git(&["status", "--porcelain", "--", ".", ":!loadtest/results"])
                .is_none_or(|changes| !changes.is_empty()),
        }
    }
}

/// Writes `<date>-<time>-<commit>.md` and `.json` into a directory; returns the first one's path.
///
/// # Errors
/// When they can't be written.
pub fn write(sections: &[Section], command: &str, dir: &Path) -> Result<PathBuf, LoadError> {
    let place = Place::here();
    let now = chrono::Utc::now();
    let dirty = if place.dirty { "-dirty" } else { "" };
    let stem = format!("{}-{}{dirty}", now.format("%Y-%m-%d-%H%M%S"), place.commit);
    std::fs::create_dir_all(dir).map_err(system("creating the results' directory"))?;
    let markdown = dir.join(format!("{stem}.md"));
    let failed = system("writing the results");
    std::fs::write(&markdown, text(sections, &place, command, now)).map_err(&failed)?;
    let json = serde_json::to_string_pretty(&data(sections, &place, command, now));
    std::fs::write(dir.join(format!("{stem}.json")), json.unwrap_or_default()).map_err(&failed)?;
    Ok(markdown)
}

/// How this and what it measures were built.
fn build() -> &'static str {
    if cfg!(debug_assertions) {
        "built without optimisation: these figures say nothing about speed"
    } else {
        // Set by build/release.sh.
        option_env!("TOLLBAR_BUILD").unwrap_or("built by `cargo build --release`")
    }
}

fn text(
    sections: &[Section],
    place: &Place,
    command: &str,
    now: chrono::DateTime<chrono::Utc>,
) -> String {
    let dirty = if place.dirty { ", with uncommitted changes" } else { "" };
    let mut text = format!(
        "# Load test, {}\n\n\
         - {} cores of {}, {} GiB, Linux {}\n- commit {}{dirty}\n- `{command}`, {}\n\n",
        now.format("%Y-%m-%d %H:%M UTC"),
        place.cores,
        place.cpu,
        place.memory_gib,
        place.kernel,
        place.commit,
        build(),
    );
    for part in sections {
        text += &table::section(part);
        text.push('\n');
    }
    text
}

fn data(
    sections: &[Section],
    place: &Place,
    command: &str,
    now: chrono::DateTime<chrono::Utc>,
) -> Value {
    json!({
        "at": now.to_rfc3339(),
        "commit": place.commit,
        "dirty": place.dirty,
        "build": build(),
        "command": command,
        "machine": {
            "cores": place.cores,
            "cpu": place.cpu,
            "memory_gib": place.memory_gib,
            "kernel": place.kernel,
        },
        "scenarios": sections.iter().map(scenario).collect::<Vec<_>>(),
    })
}

fn scenario(section: &Section) -> Value {
    let checks = section.checks.iter().map(|check| {
        json!({
            "what": check.what,
            "found": check.found,
            "at_most": check.at_most,
            "holds": check.holds(),
        })
    });
    json!({
        "name": section.name,
        "tables": section.tables.iter().map(rows).collect::<Vec<_>>(),
        "notes": section.notes,
        "checks": checks.collect::<Vec<_>>(),
    })
}

fn rows(table: &Table) -> Value {
    let rows = table.rows.iter().map(|row| {
        let figures = row.figures.iter().map(|(name, value)| ((*name).to_owned(), json!(value)));
        json!({ "name": row.name, "figures": figures.collect::<serde_json::Map<_, _>>() })
    });
    json!({ "title": table.title, "rows": rows.collect::<Vec<_>>() })
}
