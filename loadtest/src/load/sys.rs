//! What is asked of the kernel: cores and limits.

use std::num::NonZeroUsize;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Who runs where.
#[derive(Clone, Debug)]
pub(crate) struct Cores {
    /// The proxy under test: one core.
    pub(crate) proxy: Vec<usize>,
    /// The provider.
    pub(crate) provider: Vec<usize>,
    /// The generator.
    pub(crate) generator: Vec<usize>,
}

impl Cores {
    /// Deals the cores that this process may use: the last one to the proxy, the others to
    /// provider and generator, which share one if they have to.
    pub(crate) fn deal() -> Self {
        let count = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let allowed = sched_getaffinity(None).ok();
        let may = |core: &usize| allowed.as_ref().is_some_and(|set| set.is_set(*core));
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(may).collect();
        Self::among(if cores.is_empty() { (0..count).collect() } else { cores })
    }

    fn among(all: Vec<usize>) -> Self {
        let Some((last, others)) = all.split_last().filter(|(_, others)| !others.is_empty()) else {
            return Self { proxy: all.clone(), provider: all.clone(), generator: all };
        };
        // More than four of each only adds noise: the proxy has one core.
        let half = (others.len() / 2).clamp(1, 4);
        let provider = others[..half].to_vec();
        let generator = match &others[half..] {
            [] => provider.clone(),
            rest => rest[..rest.len().min(4)].to_vec(),
        };
        Self { proxy: vec![*last], provider, generator }
    }
}

/// Runs `work` with this thread, and what it starts, pinned to these cores.
pub(crate) fn pinned<T>(cores: &[usize], work: impl FnOnce() -> T) -> T {
    let before = sched_getaffinity(None);
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core);
    }
    // Where pinning is not allowed everything still runs, only less steadily.
    let _ = sched_setaffinity(None, &set);
    let result = work();
    if let Ok(before) = before {
        let _ = sched_setaffinity(None, &before);
    }
    result
}

/// Raises the limit of open files as far as it goes; children inherit it. Returns it.
pub(crate) fn raise_open_files(wanted: u64) -> u64 {
    let now = getrlimit(Resource::Nofile);
    let most = now.maximum.unwrap_or(u64::MAX);
    let more = Rlimit { current: Some(wanted.max(most)), maximum: Some(wanted.max(most)) };
    if wanted > most && setrlimit(Resource::Nofile, more).is_ok() {
        return wanted;
    }
    let raised = Rlimit { current: now.maximum, maximum: now.maximum };
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Sends a signal; one to a process that is gone is lost.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = kill_process(pid, signal);
    }
}

/// The kernel's release.
pub(crate) fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::Cores;

    #[test]
    fn the_proxy_has_a_core_of_its_own_when_there_are_two() {
        let two = Cores::among(vec![0, 1]);
        assert_eq!((two.proxy, two.provider, two.generator), (vec![1], vec![0], vec![0]));
        let four = Cores::among(vec![0, 1, 2, 3]);
        assert_eq!((four.proxy, four.provider, four.generator), (vec![3], vec![0], vec![1, 2]));
        assert_eq!(Cores::among(vec![0]).proxy, vec![0]);
    }
}
