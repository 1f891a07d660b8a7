//! The memory watermark: past it new work is refused, and what runs goes on.
//!
//! What is measured is the resident set (`/proc/self/statm`, proc(5)): what the kernel would count
//! against the process when it looks for somebody to kill. Freed memory counts until the allocator
//! has given it back, so the allocator is asked to while the process is over its watermark;
//! otherwise a process without work would stay there for ever.

use crate::config::snapshot::MaxMemory;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Of the control group's limit, in hundredths. The rest is for what is not in the resident set
/// but counts there too, such as the kernel's socket buffers, and for what runs.
const SHARE: u64 = 85;

/// New work is taken again below this share of the watermark, in hundredths.
const RESUME: u64 = 95;

/// Where the process stands.
#[derive(Debug, Default)]
pub struct Memory {
    resident: AtomicU64,
    /// 0: none.
    watermark: AtomicU64,
    over: AtomicBool,
}

impl Memory {
    /// Whether new work is refused.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Resident bytes when they were last looked at.
    pub fn resident(&self) -> u64 {
        self.resident.load(Ordering::Relaxed)
    }

    /// The watermark in bytes; 0 is none.
    pub fn watermark(&self) -> u64 {
        self.watermark.load(Ordering::Relaxed)
    }

    /// Takes note of a look. Returns whether the process is over, if that has changed.
    pub fn observe(&self, resident: u64, watermark: Option<u64>) -> Option<bool> {
        self.resident.store(resident, Ordering::Relaxed);
        self.watermark.store(watermark.unwrap_or(0), Ordering::Relaxed);
        let was = self.is_over();
        let over = watermark.is_some_and(|mark| match was {
            true => resident >= mark / 100 * RESUME,
            false => resident >= mark,
        });
        self.over.store(over, Ordering::Relaxed);
        (over != was).then_some(over)
    }
}

/// The watermark that a setting means for this process now; `None` is none.
///
/// # Errors
/// The control groups can't be read, although there are some.
pub fn watermark(setting: MaxMemory) -> std::io::Result<Option<u64>> {
    match setting {
        MaxMemory::Unlimited => Ok(None),
        MaxMemory::Bytes(bytes) => Ok(Some(bytes)),
        MaxMemory::Auto => {
            let groups = match std::fs::read_to_string("/proc/self/cgroup") {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                groups => groups?,
            };
            let limit = group_limit(&groups, Path::new("/sys/fs/cgroup"));
            Ok(limit.map(|limit| limit / 100 * SHARE))
        }
    }
}

/// Resident bytes of this process.
///
/// # Errors
/// When there is no `/proc`.
pub fn resident() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let field = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = field.and_then(|field| field.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.ok_or(std::io::ErrorKind::InvalidData)?.saturating_mul(1024))
}

/// The least limit on the way from the process's control group to the root. Version 2 of control
/// groups has `memory.max` and `memory.high`, past which a process is slowed down; version 1 has
/// `memory.limit_in_bytes`. Inside a container the path often leads nowhere, and what is mounted
/// is the container's own group.
fn group_limit(groups: &str, mounted: &Path) -> Option<u64> {
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, files): (_, &[&str]) = if controllers.is_empty() {
            (mounted.to_owned(), &["memory.max", "memory.high"])
        } else if controllers.split(',').any(|name| name == "memory") {
            (mounted.join("memory"), &["memory.limit_in_bytes"])
        } else {
            continue;
        };
        let inner = root.join(path.trim_start_matches('/'));
        for group in inner.ancestors().take_while(|group| group.starts_with(&root)) {
            for file in files {
                let text = std::fs::read_to_string(group.join(file)).unwrap_or_default();
                // `max` is no number; neither is version 1's "none", which is close to 2^63.
                let limit = text.trim().parse::<u64>().ok().filter(|limit| *limit < 1 << 60);
                least = least.into_iter().chain(limit).min();
            }
        }
    }
    least
}

/// Has the process's memory come in the system's small pages only, as far as the system allows.
///
/// The allocator asks for transparent huge pages. With them resident memory goes up by 2 MiB
/// wherever something new is touched, and what is freed in between isn't given back: 41 MiB
/// instead of 25 at the peak of load test `small`, for the same CPU time per request.
pub fn use_small_pages() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        log::debug!("huge pages stay: {error}");
    }
}

/// Has the process leave no core file when it crashes, or when a service manager's watchdog ends it:
/// the file would hold every provider's key, and prompts.
///
/// Programs that the system pipes core files to get them whatever the limit is, except at 1 byte
/// (core(5), `do_coredump`), which is too little for any file, too. Not `PR_SET_DUMPABLE`: `/proc`
/// would be closed to the process's own user.
pub fn leave_no_core() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Core);
    let most = Some(maximum.map_or(1, |maximum| maximum.min(1)));
    // Under systemd's filter of system calls the call is refused, and the unit has set it.
    if (current, maximum) != (most, most)
        && let Err(error) = setrlimit(Resource::Core, Rlimit { current: most, maximum: most })
    {
        log::warn!("a crash may leave a core file, with the keys in it: {error}");
    }
}

/// Asks the allocator to give back what this thread has freed, and what nobody owns.
pub fn give_back() {
    // SAFETY: `mi_collect` takes no pointer and may be called from any thread at any time.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stops_at_the_mark_and_resumes_well_below() {
        let memory = Memory::default();
        assert_eq!(memory.observe(999, Some(1000)), None);
        assert_eq!(memory.observe(1000, Some(1000)), Some(true));
        assert_eq!(memory.observe(950, Some(1000)), None);
        assert!(memory.is_over());
        assert_eq!(memory.observe(949, Some(1000)), Some(false));
        assert_eq!(memory.observe(1 << 40, None), None);
        assert_eq!((memory.resident(), memory.watermark()), (1 << 40, 0));
    }

    #[test]
    fn this_process_has_a_size() {
        assert!(resident().unwrap() > 1 << 20);
    }

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let dir = std::env::temp_dir().join(format!("tollbar-cgroup-{}", std::process::id()));
        let unit = dir.join("system.slice/tollbar.service");
        std::fs::create_dir_all(&unit).unwrap();
        std::fs::create_dir_all(dir.join("memory/docker/x")).unwrap();
        let write = |path: &str, text: &str| std::fs::write(dir.join(path), text).unwrap();
        let v2 = "0::/system.slice/tollbar.service\n";
        assert_eq!(group_limit(v2, &dir), None);
        write("system.slice/tollbar.service/memory.max", "max\n");
        write("system.slice/memory.max", "2000\n");
        assert_eq!(group_limit(v2, &dir), Some(2000));
        write("system.slice/tollbar.service/memory.high", "1500\n");
        assert_eq!(group_limit(v2, &dir), Some(1500));
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        let v1 = "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n";
        assert_eq!(group_limit(v1, &dir), None);
        write("memory/docker/x/memory.limit_in_bytes", "3000\n");
        assert_eq!(group_limit(v1, &dir), Some(3000));
        let outside = "0::/../elsewhere\n";
        write("memory.max", "4000\n");
        assert_eq!(group_limit(outside, &dir), Some(4000));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
