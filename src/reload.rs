//! The configuration in force: load, swap in one step, or keep the old and say why.

use crate::config::{self, Environment, Invalid, Loaded, Problem, snapshot::Snapshot};
use crate::turns;
use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

/// Why a reload was refused that panicked.
const BUG: &str =
    "a bug in Tollbar ended the reload: please report the panic in the log before this";

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
    /// Held by who reloads. Nobody who only wants to know something waits for it.
    reloading: Mutex<()>,
    /// What was in force before.
    pub retired: Retired,
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
        let loaded = read(&source, environment.as_ref(), None)?;
        let warnings = loaded.warnings.iter().map(ToString::to_string).collect();
        let live = Live {
            current: ArcSwap::from_pointee(loaded.snapshot),
            source,
            environment,
            last: Mutex::new(Outcome { problems: Vec::new(), warnings }),
            reloading: Mutex::default(),
            retired: Retired::default(),
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
    /// `first` is called right before the swap.
    ///
    /// # Errors
    /// Every problem; the old snapshot stays in force.
    pub fn reload(&self, first: impl FnOnce()) -> Result<Arc<Snapshot>, Vec<String>> {
        let _turn = self.reloading.lock();
        let old = self.current.load_full();
        let read = || read(&self.source, self.environment.as_ref(), Some(&old));
        let loaded = match catch_unwind(AssertUnwindSafe(read)) {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(invalid)) => {
                return Err(self.refuse(invalid.problems.iter().map(ToString::to_string).collect()));
            }
            // Who asked, systemd among them, must not wait for ever.
            Err(_) => return Err(self.refuse(vec![BUG.to_owned()])),
        };
        let fixed = needs_restart(&old, &loaded.snapshot);
        if !fixed.is_empty() {
            return Err(self.refuse(fixed));
        }
        let warnings = loaded.warnings.iter().map(ToString::to_string).collect();
        *self.last.lock() = Outcome { problems: Vec::new(), warnings };
        let new = Arc::new(loaded.snapshot);
        first();
        self.current.store(new.clone());
        self.retired.add(old);
        Ok(new)
    }

    fn refuse(&self, problems: Vec<String>) -> Vec<String> {
        self.last.lock().problems.clone_from(&problems);
        problems
    }

    /// How the last reload ended.
    pub fn last(&self) -> Outcome {
        self.last.lock().clone()
    }
}

/// Configurations that are not in force any more, but that requests may still have.
///
/// The last one to let go of a configuration frees it, with each of perhaps a million keys. That
/// takes too long to be done by a thread that serves requests, so the last one is always here.
#[derive(Default)]
pub struct Retired(Mutex<Vec<Arc<Snapshot>>>);

impl Retired {
    fn add(&self, old: Arc<Snapshot>) {
        self.0.lock().push(old);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// Frees those that no request has any more; returns how many. Takes long.
    pub fn free(&self) -> usize {
        // Nobody can get hold of one that only this list has.
        let unused = |old: &mut Arc<Snapshot>| Arc::strong_count(old) == 1;
        let unused: Vec<_> = self.0.lock().extract_if(.., unused).collect();
        let freed = unused.len();
        for mut old in unused.into_iter().filter_map(Arc::into_inner) {
            old.keys.drain().for_each(|_| turns::step());
        }
        freed
    }
}

fn read(source: &Source, env: &dyn Environment, old: Option<&Snapshot>) -> Result<Loaded, Invalid> {
    match source {
        Source::File(path) => config::load(path, env, old),
        Source::Embedded(text) => {
            let here = std::env::current_dir().unwrap_or_default();
            config::load_text(text, "demo.yaml", &here, env, old)
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
    // What `auto` comes to follows the processors that the process may use, which can change.
    let auto = old.server.auto_threads && new.server.auto_threads;
    check(auto || old.server.threads == new.server.threads, "server.threads");
    check(old.state_path == new.state_path, "state.path");
    problems
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};

    const TEXT: &str = "listeners: [ { address: 127.0.0.1:0 } ]
providers: { p: { dialect: openai, base_url: \"http://127.0.0.1:1/v1\" } }
models: { m: { targets: [ { provider: p, model: x, price: free } ] } }
keys: []
";

    /// A file that takes long to read, the second time.
    #[derive(Clone, Default)]
    struct Slow(Arc<AtomicBool>, Option<Arc<(Barrier, Barrier)>>);

    impl Environment for Slow {
        fn var(&self, _: &str) -> Option<String> {
            None
        }

        fn read(&self, _: &Path) -> std::io::Result<String> {
            if self.0.swap(true, Ordering::Relaxed)
                && let Some(barriers) = &self.1
            {
                barriers.0.wait();
                barriers.1.wait();
            }
            Ok(TEXT.to_owned())
        }
    }

    #[test]
    fn who_asks_how_it_ended_does_not_wait_for_a_reload() {
        let barriers = Arc::new((Barrier::new(2), Barrier::new(2)));
        let environment = Slow(Arc::default(), Some(barriers.clone()));
        let source = Source::File("tollbar.yaml".into());
        let (live, _) = Live::start(source, Box::new(environment)).unwrap();
        std::thread::scope(|scope| {
            let reload = scope.spawn(|| live.reload(|| ()).map(|new| new.generation));
            barriers.0.wait();
            let free = !live.last.is_locked();
            barriers.1.wait();
            assert_eq!(reload.join().unwrap().unwrap(), 2);
            assert!(free, "a worker thread that asks for the status would stand still");
        });
    }

    /// Can be read once only.
    #[derive(Default)]
    struct Broken(AtomicBool);

    impl Environment for Broken {
        fn var(&self, _: &str) -> Option<String> {
            None
        }

        fn read(&self, _: &Path) -> std::io::Result<String> {
            assert!(!self.0.swap(true, Ordering::Relaxed), "a bug");
            Ok(TEXT.to_owned())
        }
    }

    #[test]
    fn a_reload_that_panics_is_refused() {
        let source = Source::File("tollbar.yaml".into());
        let (live, _) = Live::start(source, Box::new(Broken::default())).unwrap();
        assert_eq!(live.reload(|| ()).unwrap_err(), [BUG]);
        assert_eq!(live.last().problems, [BUG], "the status says it too");
        assert_eq!(live.peek().generation, 1, "the old configuration stays");
        assert_eq!(live.reload(|| ()).unwrap_err(), [BUG], "the next one is not locked out");
    }
}
