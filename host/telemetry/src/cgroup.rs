//! The memory limit of the container that the host runs in, if it has one.
//!
//! Both cgroup versions, own group and all its parents: the tightest limit counts, and
//! with it the usage of the group that has it. The page cache that the kernel can drop at
//! once (inactive file pages) is not usage; a model file that was mapped and read would
//! otherwise look like a leak. Without a limit the values of the whole machine stand.

use std::path::{Path, PathBuf};

use crate::reading::ContainerMemory;
use crate::sampler::{Provider, Tick};
use crate::sysfs;

/// Version 1 writes "no limit" as a number near 2⁶³.
const NO_LIMIT: u64 = 1 << 60;

/// One group with the names of its files.
#[derive(Debug, Clone)]
struct Group {
    folder: PathBuf,
    files: &'static Files,
}

#[derive(Debug)]
struct Files {
    limit: &'static str,
    usage: &'static str,
    inactive: &'static str,
    events: &'static str,
}

static VERSION_1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    inactive: "total_inactive_file",
    events: "memory.oom_control",
};

static VERSION_2: Files = Files {
    limit: "memory.max",
    usage: "memory.current",
    inactive: "inactive_file",
    events: "memory.events",
};

impl Group {
    fn limit(&self) -> Option<u64> {
        // "max" is no number, hence no limit.
        let limit: u64 = sysfs::number(self.folder.join(self.files.limit))?;
        (limit < NO_LIMIT).then_some(limit)
    }

    fn usage(&self) -> Option<u64> {
        let usage: u64 = sysfs::number(self.folder.join(self.files.usage))?;
        let inactive = keyed(&self.folder.join("memory.stat"), self.files.inactive);
        Some(usage.saturating_sub(inactive.unwrap_or(0)))
    }

    fn oom_kills(&self) -> Option<u64> {
        keyed(&self.folder.join(self.files.events), "oom_kill")
    }
}

/// The reader of one process's groups, from the own group upwards.
pub struct Cgroup {
    groups: Vec<Group>,
}

impl Cgroup {
    /// Finds the groups of this process. A process does not change its group in normal
    /// life, so they are looked up once.
    pub fn new(sysfs_root: &Path, procfs_root: &Path) -> Self {
        let membership = sysfs::text(procfs_root.join("self/cgroup")).unwrap_or_default();
        let mount = sysfs_root.join("fs/cgroup");
        let mut groups = Vec::new();
        for line in membership.lines() {
            let mut parts = line.splitn(3, ':');
            let (_, Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            if controllers.split(',').any(|c| c == "memory") {
                groups.extend(upwards(&mount.join("memory"), path, &VERSION_1));
            } else if controllers.is_empty() {
                groups.extend(upwards(&mount, path, &VERSION_2));
                groups.extend(upwards(&mount.join("unified"), path, &VERSION_2));
            }
        }
        Self { groups }
    }
}

/// The group and its parents up to the mount. Inside a container the path that the kernel
/// tells may lie outside of what is mounted; then only the mount itself exists.
fn upwards(mount: &Path, path: &str, files: &'static Files) -> Vec<Group> {
    Path::new(path.trim_start_matches('/'))
        .ancestors()
        .map(|path| mount.join(path))
        .filter(|folder| folder.join(files.usage).exists())
        .map(|folder| Group { folder, files })
        .collect()
}

/// The value of one `key value` line.
fn keyed(path: &Path, key: &str) -> Option<u64> {
    let text = sysfs::text(path)?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(k, _)| *k == key)?.1.trim().parse().ok()
}

impl Provider for Cgroup {
    fn name(&self) -> &'static str {
        "cgroup"
    }

    fn read(&mut self, tick: &mut Tick<'_>) -> bool {
        tick.readings.oom_kills = self.groups.iter().find_map(Group::oom_kills);
        let limited = self.groups.iter().filter_map(|g| Some((g.limit()?, g)));
        let tightest = limited.min_by_key(|(limit, _)| *limit);
        tick.readings.container_memory = tightest.map(|(limit_bytes, group)| ContainerMemory {
            limit_bytes,
            used_bytes: group.usage(),
        });
        tightest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;

    const RAM: u64 = 16 << 30;

    fn read(fixture: &mut Fixture) -> (Option<u64>, Option<u64>) {
        fixture.readings.pressure.memory_limit_bytes = Some(RAM);
        fixture.readings.pressure.memory_used_bytes = Some(5 << 30);
        let mut cgroup = Cgroup::new(&fixture.path("sys"), &fixture.path("proc"));
        fixture.read(&mut cgroup, 0);
        let pressure = fixture.readings.pressure(None);
        (pressure.memory_limit_bytes, pressure.memory_used_bytes)
    }

    #[test]
    fn version_2_takes_the_tightest_limit_of_the_group_and_its_parents() {
        let mut fixture = Fixture::new();
        fixture.write("proc/self/cgroup", "0::/pod/app\n");
        fixture.write("sys/fs/cgroup/pod/memory.max", "2147483648\n");
        fixture.write("sys/fs/cgroup/pod/memory.current", "1500000000\n");
        fixture.write(
            "sys/fs/cgroup/pod/memory.stat",
            "anon 1\ninactive_file 500000000\n",
        );
        fixture.write("sys/fs/cgroup/pod/app/memory.max", "max\n");
        fixture.write("sys/fs/cgroup/pod/app/memory.current", "1000\n");
        fixture.write("sys/fs/cgroup/pod/app/memory.events", "oom 1\noom_kill 3\n");
        assert_eq!(read(&mut fixture), (Some(2 << 30), Some(1_000_000_000)));
        assert_eq!(fixture.readings.oom_kills, Some(3));
    }

    #[test]
    fn version_1_reads_its_own_files_and_knows_its_word_for_no_limit() {
        let mut fixture = Fixture::new();
        fixture.write("proc/self/cgroup", "9:cpu:/x\n4:memory:/x\n0::/\n");
        let group = "sys/fs/cgroup/memory/x";
        fixture.write(&format!("{group}/memory.usage_in_bytes"), "700\n");
        fixture.write(
            &format!("{group}/memory.limit_in_bytes"),
            "9223372036854771712\n",
        );
        assert_eq!(read(&mut fixture), (Some(RAM), Some(5 << 30)));
        fixture.write(&format!("{group}/memory.limit_in_bytes"), "1000\n");
        fixture.write(&format!("{group}/memory.stat"), "total_inactive_file 100\n");
        assert_eq!(read(&mut fixture), (Some(1000), Some(600)));
    }

    #[test]
    fn a_limit_above_the_ram_is_no_limit() {
        let mut fixture = Fixture::new();
        fixture.write("proc/self/cgroup", "0::/\n");
        fixture.write("sys/fs/cgroup/memory.max", &format!("{}\n", 2 * RAM));
        fixture.write("sys/fs/cgroup/memory.current", "1\n");
        assert_eq!(read(&mut fixture), (Some(RAM), Some(5 << 30)));
    }

    #[test]
    fn a_path_from_outside_the_container_leads_to_the_mount() {
        let mut fixture = Fixture::new();
        fixture.write("proc/self/cgroup", "0::/../../host/slice\n");
        fixture.write("sys/fs/cgroup/memory.max", "4096\n");
        fixture.write("sys/fs/cgroup/memory.current", "1024\n");
        assert_eq!(read(&mut fixture), (Some(4096), Some(1024)));
    }
}
