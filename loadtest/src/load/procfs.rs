//! A process's own accounting, from /proc.

use std::fs;
use std::time::Duration;

/// CPU time of all threads that the process has or had.
///
/// From schedstat, to the nanosecond, which knows of those that run; from stat, to 10 ms, where
/// the kernel has no other or where those that have ended count for more than that.
pub(crate) fn cpu(pid: u32) -> Option<Duration> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let mut nanos = 0;
    for task in tasks.flatten() {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        nanos += text.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(0);
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let all = ticks(&stat).map(|ticks| Duration::from_millis(ticks * 10))?;
    Some(all.max(Duration::from_nanos(nanos)))
}

/// Time that these cores were not idle, interrupts and what a hypervisor took included.
pub(crate) fn cores_busy(cores: &[usize]) -> Option<Duration> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let ticks: u64 = cores.iter().filter_map(|core| core_ticks(&text, *core)).sum();
    Some(Duration::from_millis(ticks * 10))
}

fn core_ticks(text: &str, core: usize) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("cpu{core} ")))?;
    let fields: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guests are part of user.
    let idle: u64 = fields.get(3..5)?.iter().sum();
    Some(fields.iter().take(8).sum::<u64>() - idle)
}

/// User and system time from a line of stat, in ticks of 10 ms.
fn ticks(stat: &str) -> Option<u64> {
    // The name may hold anything, but it ends at the last parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// Resident memory in bytes.
pub(crate) fn rss(pid: u32) -> Option<u64> {
    status(pid, "VmRSS:")
}

/// The most resident memory since [`reset_peak`], in bytes.
pub(crate) fn peak_rss(pid: u32) -> Option<u64> {
    status(pid, "VmHWM:")
}

/// Begins a new peak, where that is permitted.
pub(crate) fn reset_peak(pid: u32) {
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// Open file descriptors.
pub(crate) fn descriptors(pid: u32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

fn status(pid: u32, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// The processor's name.
pub(crate) fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':')).map_or("unknown", |(_, name)| name.trim()).to_owned()
}

/// Memory of the machine in bytes.
pub(crate) fn memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_does_not_shift_the_fields() {
        let line = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0";
        assert_eq!(ticks(line), Some(42));
    }

    #[test]
    fn idle_and_waiting_are_not_busy() {
        let text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu1 1 2 3 1000 2000 4 5 6 7 8\ncpu11 1 1 1 1\n";
        assert_eq!(core_ticks(text, 1), Some(21));
        assert_eq!(core_ticks(text, 2), None);
    }

    #[test]
    fn this_process_has_figures() {
        let pid = std::process::id();
        assert!(cpu(pid).unwrap() > Duration::ZERO);
        assert!(peak_rss(pid) >= rss(pid).map(|_| 1) && descriptors(pid).unwrap() > 2);
    }
}
