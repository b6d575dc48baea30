//! Processor time of this process and of the whole machine, from procfs.
//!
//! Where no sensor tells energy it is the only thing from which it can be modelled, and
//! where one does, it tells which share of a processor is ours. The kernel counts in ticks
//! of 10 ms. It refuses to answer where there is no procfs.

use std::path::{Path, PathBuf};

use crate::proc::cpu_times;
use crate::sysfs;

/// The kernel's tick on every architecture that Linux still has.
const TICK_US: u64 = 10_000;
/// Fields after the command's name in `/proc/self/stat`: user and system time, and those of
/// children that have ended.
const OWN_FIELDS: std::ops::Range<usize> = 11..15;

/// Processor time since some moment in the past, µs over all processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessorTime {
    /// This process, and children that have ended.
    pub own_us: u64,
    /// Everybody.
    pub all_us: u64,
}

/// Reads them.
#[derive(Debug, Clone)]
pub struct ProcessorClock {
    root: PathBuf,
}

impl ProcessorClock {
    /// Reads below `root`, normally `/proc`.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Both, or `None` where procfs does not tell.
    pub fn read(&self) -> Option<ProcessorTime> {
        let own = sysfs::text(self.root.join("self/stat"))?;
        let all = sysfs::text(self.root.join("stat"))?;
        Some(ProcessorTime {
            own_us: own_ticks(&own)? * TICK_US,
            all_us: cpu_times(&all)?.0 * TICK_US,
        })
    }
}

/// The name may hold spaces and brackets; what follows its last bracket does not.
fn own_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let times = fields.get(OWN_FIELDS)?;
    times
        .iter()
        .map(|ticks| ticks.parse::<u64>().ok())
        .sum::<Option<u64>>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn names_with_brackets_do_not_shift_the_fields() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("self")).expect("created");
        let own = "7 (odd) name) S 1 7 7 0 -1 4194560 10 0 0 0 150 50 3 2 20 0 8 0 9 1 2\n";
        fs::write(folder.path().join("self/stat"), own).expect("written");
        let all = "cpu  1000 10 500 90000 77 5 5 42 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        fs::write(folder.path().join("stat"), all).expect("written");
        let time = ProcessorClock::new(folder.path()).read().expect("readable");
        assert_eq!(time.own_us, 205 * TICK_US);
        assert_eq!(time.all_us, 1_520 * TICK_US);
    }

    #[test]
    fn without_procfs_there_is_no_answer() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(ProcessorClock::new(folder.path()).read(), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn work_of_this_process_is_seen() {
        let clock = ProcessorClock::new(Path::new("/proc"));
        let before = clock.read().expect("procfs");
        let mut sum = 0u64;
        while clock.read().expect("procfs").own_us < before.own_us + 3 * TICK_US {
            sum = (0..1_000_000).fold(sum, |sum, i| std::hint::black_box(sum ^ i));
        }
        let after = clock.read().expect("procfs");
        assert!(after.all_us >= before.all_us);
    }
}
