//! The configuration file: read strictly, checked completely, resolved into a [`Snapshot`].
//!
//! # Layout
//! - `yaml`: text to a tree with lines
//! - `alike`, `words`: the same for a file with a million keys
//! - `read`, `file`: the tree to the file as it is written, every key in one place
//! - `text`: variables and secrets
//! - `resolve`, `keylist` and others: the file to a [`Snapshot`], with the rules of the contract
//! - `plan`: the order in which targets are tried

mod alike;
mod callers;
mod check;
mod file;
mod keylist;
mod models;
mod plan;
mod prices;
mod problem;
mod providers;
mod read;
mod resolve;
mod roots;
pub mod snapshot;
mod suggest;
#[cfg(test)]
mod tests;
mod text;
mod words;
mod yaml;

pub use callers::{MOST_METADATA, is_a_key};
pub(crate) use models::card;
pub use plan::{candidates, dearer_above, plan};
pub use problem::{Invalid, Problem};
pub use snapshot::Snapshot;
pub use suggest::nearest;

use crate::keys::{Caller, Profile};
use crate::turns;
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use problem::{Place, Report};
use read::Read;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// A configuration that can be used.
#[derive(Debug)]
pub struct Loaded {
    /// What it says.
    pub snapshot: Snapshot,
    /// What its author may not have meant.
    pub warnings: Vec<Problem>,
}

/// Everything outside the file that a configuration depends on.
pub trait Environment {
    /// An environment variable. `None`: not set, or not UTF-8.
    fn var(&self, name: &str) -> Option<String>;

    /// The text of a file.
    fn read(&self, path: &Path) -> std::io::Result<String>;

    /// The time by which keys expire and models retire.
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }
}

/// The real one.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn var(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn read(&self, path: &Path) -> std::io::Result<String> {
        std::fs::read_to_string(path)
    }
}

/// Reads, checks and resolves a file. `old` is the configuration in force, if there is one: keys
/// that have not changed are shared with it.
pub fn load(path: &Path, env: &dyn Environment, old: Option<&Snapshot>) -> Result<Loaded, Invalid> {
    let text = contents(path, env)?;
    let dir = path.parent().unwrap_or(Path::new(""));
    load_text(&text, &path.display().to_string(), dir, env, old)
}

/// Where the books are, and the clock that they go by. Who only reads them needs neither the
/// secrets that the rest of the file refers to, nor a file that is right otherwise.
///
/// # Errors
/// The file can't be read, or these two can't.
pub fn books(path: &Path, env: &dyn Environment) -> Result<(PathBuf, Tz), Invalid> {
    let text = contents(path, env)?;
    let texts = text::Texts { env, dir: path.parent().unwrap_or(Path::new("")) };
    let mut report = Report::default();
    let mut rest = Report::default();
    let file = alike::parse(&text, &mut report)
        .and_then(|(tree, _)| file::File::read(&tree, "", &mut rest));
    // What may be a slip in these two, or in their names, is theirs.
    let theirs = |path: &str| !path.contains('.') || path.starts_with("state.");
    report.problems.extend(rest.problems.into_iter().filter(|problem| theirs(&problem.path)));
    let found = file.and_then(|file| resolve::books(&file, texts, &mut report));
    found.filter(|_| report.problems.is_empty()).ok_or_else(|| Invalid {
        source: path.display().to_string(),
        problems: report.sorted().problems,
        warnings: Vec::new(),
    })
}

fn contents(path: &Path, env: &dyn Environment) -> Result<String, Invalid> {
    match env.read(path) {
        Ok(text) => Ok(text),
        Err(why) => Err(Invalid {
            source: path.display().to_string(),
            problems: vec![Problem {
                line: None,
                path: String::new(),
                message: format!("cannot be read: {}", text::reason(&why)),
                fix: "Name a file with `-c FILE`, or try `tollbar demo`, which needs none".into(),
            }],
            warnings: Vec::new(),
        }),
    }
}

/// As [`load`], from text. `source` is what messages call it; relative paths in it begin at
/// `dir`.
pub fn load_text(
    text: &str,
    source: &str,
    dir: &Path,
    env: &dyn Environment,
    old: Option<&Snapshot>,
) -> Result<Loaded, Invalid> {
    let mut report = Report::default();
    let read = alike::parse(text, &mut report)
        .and_then(|(tree, keys)| file::File::read(&tree, "", &mut report).map(|file| (file, keys)));
    let snapshot = read.and_then(|(file, keys)| {
        let texts = text::Texts { env, dir };
        let input = resolve::Input { texts, keys, hash: fingerprint(text), old };
        resolve::snapshot(&file, input, &mut report)
    });
    let report = report.sorted();
    match snapshot {
        Some(snapshot) if report.problems.is_empty() => {
            Ok(Loaded { snapshot, warnings: report.warnings })
        }
        _ => Err(Invalid {
            source: source.to_owned(),
            problems: report.problems,
            warnings: report.warnings,
        }),
    }
}

/// A key that is made or changed while running, read as an item of `keys:` is.
///
/// `text` is YAML, so JSON will do. Nothing in it refers to the environment.
///
/// # Errors
/// Every problem, as a file's `keys` would have them.
pub fn key(text: &str, snapshot: &Snapshot) -> Result<(Caller, Vec<Problem>), Vec<Problem>> {
    let mut report = Report::default();
    let written =
        yaml::parse(text, &mut report).and_then(|tree| file::Key::read(&tree, "", &mut report));
    let texts = text::Texts { env: &Nothing, dir: Path::new("") };
    let around = callers::Around::running(snapshot);
    let caller = written.and_then(|written| callers::key(&written, &around, texts, &mut report));
    for problem in report.problems.iter_mut().chain(&mut report.warnings) {
        // A request has no lines to speak of.
        problem.line = None;
    }
    match caller {
        Some(caller) if report.problems.is_empty() => Ok((caller, report.warnings)),
        _ => Err(report.problems),
    }
}

/// Why a key made while running can't be used under this configuration, if it can't: the file
/// may have changed since. `None`: it can.
pub fn unusable(profile: &Profile, snapshot: &Snapshot) -> Option<String> {
    if let Some(team) = profile.team.as_ref().filter(|team| !snapshot.teams.contains_key(*team)) {
        return Some(format!("its team `{team}` is not in the configuration any more"));
    }
    let (teams, users) = (&snapshot.teams, &snapshot.users);
    let covered = profile.unlimited || callers::covered(profile, teams, users, &snapshot.global);
    (!covered).then(|| "no budget covers it any more".to_owned())
}

/// A duration as the configuration writes it: `500ms`, `20s`, `5m`, `1h`, `1d`.
pub fn duration(text: &str) -> Option<std::time::Duration> {
    read::duration(text)
}

/// Without variables and files: what comes over the network doesn't reach for them.
struct Nothing;

impl Environment for Nothing {
    fn var(&self, _: &str) -> Option<String> {
        None
    }

    fn read(&self, _: &Path) -> std::io::Result<String> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

/// The file to use: the one asked for, `$TOLLBAR_CONFIG`, `./tollbar.yaml`,
/// `/etc/tollbar/tollbar.yaml`. The first two are not tried for: if they cannot be read, that
/// is what the user has to know.
pub fn find(explicit: Option<&Path>, env: &dyn Environment) -> Option<PathBuf> {
    if let Some(path) = explicit {
        return Some(path.to_owned());
    }
    if let Some(path) = env.var("TOLLBAR_CONFIG").filter(|path| !path.is_empty()) {
        return Some(path.into());
    }
    let found = |path: &&Path| match env.read(path) {
        Ok(_) => true,
        // It is there, and is not to be passed over in silence.
        Err(why) => why.kind() != std::io::ErrorKind::NotFound,
    };
    [Path::new("tollbar.yaml"), Path::new("/etc/tollbar/tollbar.yaml")]
        .into_iter()
        .find(found)
        .map(Path::to_owned)
}

/// The first 16 hex digits of the text's SHA-256.
fn fingerprint(text: &str) -> String {
    let mut digest = Sha256::new();
    for part in text.as_bytes().chunks(256 << 10) {
        digest.update(part);
        turns::pause();
    }
    hex::encode(&digest.finalize()[..8])
}

/// The file as a whole, for problems that are nobody's in particular.
fn whole_file() -> Place {
    Place::default()
}
