//! How much memory the control group of this process leaves: what a judge takes beyond it would end the agent.

use std::fs;
use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// Bytes until the nearest limit, this group's or one above it; `None` where there is no limit.
pub fn memory_left() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|l| l.strip_prefix("0::/"))?;
    left_below(Path::new(ROOT), &PathBuf::from(ROOT).join(own))
}

fn left_below(root: &Path, group: &Path) -> Option<u64> {
    let within = group.ancestors().take_while(|g| g.starts_with(root));
    within.filter_map(left_in).min()
}

fn left_in(group: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    let most: u64 = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    // The kernel gives these pages back before it ends a process.
    let stat = read("memory.stat").unwrap_or_default();
    let cached = stat.lines().find_map(|l| l.strip_prefix("inactive_file ")?.parse::<u64>().ok()).unwrap_or(0);
    Some(most.saturating_sub(used.saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_counts_and_what_can_be_given_back_is_free() {
        let root = tempfile::tempdir().expect("a directory");
        let group = root.path().join("system.slice/andon.service");
        fs::create_dir_all(&group).expect("made");
        assert_eq!(left_below(root.path(), &group), None);
        let write = |dir: &Path, name: &str, text: &str| fs::write(dir.join(name), text).expect("written");
        write(&group, "memory.max", "max\n");
        assert_eq!(left_below(root.path(), &group), None);
        write(&group, "memory.max", "1000\n");
        write(&group, "memory.current", "700\n");
        write(&group, "memory.stat", "anon 500\ninactive_file 100\n");
        assert_eq!(left_below(root.path(), &group), Some(400));
        let above = root.path().join("system.slice");
        write(&above, "memory.max", "800");
        write(&above, "memory.current", "750");
        assert_eq!(left_below(root.path(), &group), Some(50));
    }
}
