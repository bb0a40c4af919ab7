//! Whether the kernel killed a process because memory ran out.
//!
//! The kernel does not say so in the exit status, which is SIGKILL's. It counts such kills, per control group and for
//! the machine, so a count that went up while a child died by SIGKILL is the best answer there is. It errs when
//! another process of the same group is killed meanwhile.

use std::fs;
use std::path::Path;

/// How many processes the kernel has killed for lack of memory in this process's control group; in the machine, where
/// the group does not count.
pub(crate) fn kills() -> Option<u64> {
    group_kills().or_else(|| count(Path::new("/proc/vmstat")))
}

fn group_kills() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    count(&Path::new("/sys/fs/cgroup").join(path).join("memory.events"))
}

/// The `oom_kill` line of a file of names and numbers.
fn count(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let mut values = text.lines().filter_map(|line| line.strip_prefix("oom_kill "));
    values.next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_counts() {
        assert!(count(Path::new("/proc/vmstat")).is_some());
    }

    #[test]
    fn a_file_without_the_line_has_no_count() {
        assert_eq!(count(Path::new("/proc/version")), None);
        assert_eq!(count(Path::new("/proc/nonexistent")), None);
    }
}
