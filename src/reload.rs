//! The configuration in force: load, swap in one step, or keep the old and say why.

use crate::config::{self, Environment, Invalid, Loaded, Problem, snapshot::Snapshot};
use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;

/// Where a configuration comes from.
pub enum Source {
    /// A file, read again at every reload.
    File(PathBuf),
    /// Text compiled into the binary (`tollbar demo`).
    Embedded(&'static str),
}

/// The newest snapshot, and the way to replace it.
pub struct Live {
    current: ArcSwap<Snapshot>,
    source: Source,
    environment: Box<dyn Environment + Send + Sync>,
    last: Mutex<Outcome>,
}

/// How the last reload ended.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The problems, when it was refused.
    pub problems: Vec<String>,
    /// The warnings of the last successful load.
    pub warnings: Vec<String>,
}

impl Live {
    /// Loads for the first time.
    ///
    /// # Errors
    /// Every problem of the configuration.
    pub fn start(
        source: Source,
        environment: Box<dyn Environment + Send + Sync>,
    ) -> Result<(Self, Vec<Problem>), Invalid> {
        let loaded = read(&source, environment.as_ref(), 1)?;
        let warnings = loaded.warnings.iter().map(ToString::to_string).collect();
        let live = Live {
            current: ArcSwap::from_pointee(loaded.snapshot),
            source,
            environment,
            last: Mutex::new(Outcome { problems: Vec::new(), warnings }),
        };
        Ok((live, loaded.warnings))
    }

    /// The newest snapshot, for as long as a request needs it.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The newest snapshot, for a short look.
    pub fn peek(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Builds and checks everything new, then swaps; or keeps the old and returns why.
    ///
    /// What can't change while running (listeners, the admin address, threads, the state file)
    /// is a problem, not a silent no-op. Blocks on file reads: call it off the request path.
    ///
    /// # Errors
    /// Every problem; the old snapshot stays in force.
    pub fn reload(&self) -> Result<Arc<Snapshot>, Vec<String>> {
        let mut last = self.last.lock();
        let old = self.current.load_full();
        let loaded = match read(&self.source, self.environment.as_ref(), old.generation + 1) {
            Ok(loaded) => loaded,
            Err(invalid) => {
                last.problems = invalid.problems.iter().map(ToString::to_string).collect();
                return Err(last.problems.clone());
            }
        };
        let fixed = needs_restart(&old, &loaded.snapshot);
        if !fixed.is_empty() {
            last.problems = fixed;
            return Err(last.problems.clone());
        }
        last.problems = Vec::new();
        last.warnings = loaded.warnings.iter().map(ToString::to_string).collect();
        let new = Arc::new(loaded.snapshot);
        self.current.store(new.clone());
        Ok(new)
    }

    /// How the last reload ended.
    pub fn last(&self) -> Outcome {
        self.last.lock().clone()
    }
}

fn read(source: &Source, env: &dyn Environment, generation: u64) -> Result<Loaded, Invalid> {
    match source {
        Source::File(path) => config::load(path, env, generation),
        Source::Embedded(text) => {
            let here = std::env::current_dir().unwrap_or_default();
            config::load_text(text, "demo.yaml", &here, env, generation)
        }
    }
}

fn needs_restart(old: &Snapshot, new: &Snapshot) -> Vec<String> {
    let mut problems = Vec::new();
    let mut check = |same: bool, what: &str| {
        if !same {
            problems.push(format!(
                "{what}: can't change while running. Restart, or upgrade with `tollbar run --upgrade`."
            ));
        }
    };
    check(old.listeners == new.listeners, "listeners");
    check(old.admin.address == new.admin.address, "admin.address");
    check(old.server.threads == new.server.threads, "server.threads");
    check(old.state_path == new.state_path, "state.path");
    problems
}
