//! Whether NVIDIA GPUs sleep, without waking them.
//!
//! On a laptop an open library keeps the GPU powered, which costs more than a small model
//! saves, and asking it anything wakes it. The kernel tells in a file whether a device is
//! suspended, and reading that file wakes nobody. So the library is opened only while a
//! board is awake anyway; on battery it is closed again once all boards have been idle for
//! [`IDLE_MS`]. A sleeping board is neither lost nor cool: it is off, and not listed.
//!
//! It refuses to guess: where the bus cannot be seen (containers, other systems) boards
//! count as awake, and boards that may not sleep (servers) are never let go.

use std::path::{Path, PathBuf};

use crate::sysfs;

/// Idle time on battery after which the library is closed.
pub(super) const IDLE_MS: u64 = 5_000;
/// A board that is let go is asleep within about 6 s; one that is still awake after this
/// time is kept so by somebody else, and looking at it costs nothing more.
pub(super) const FALL_ASLEEP_MS: u64 = 15_000;

const NVIDIA: &str = "0x10de";
/// PCI class of display controllers, of which GPUs without a display are a kind.
const DISPLAY: &str = "0x03";

/// The NVIDIA GPUs on the bus.
#[derive(Debug, Clone, Default)]
pub(super) struct PciGpus {
    power: Vec<PathBuf>,
}

impl PciGpus {
    /// Looks at the bus below the given sysfs.
    pub fn find(sysfs_root: &Path) -> Self {
        let devices = sysfs::entries(sysfs_root.join("bus/pci/devices"));
        let is_gpu = |folder: &PathBuf| {
            let says = |file: &str, word: &str| {
                sysfs::text(folder.join(file)).is_some_and(|text| text.starts_with(word))
            };
            says("vendor", NVIDIA) && says("class", DISPLAY)
        };
        let gpus = devices.into_iter().filter(is_gpu);
        Self {
            power: gpus.map(|folder| folder.join("power")).collect(),
        }
    }

    /// There are some, and all are suspended: opening the library would wake them.
    pub fn are_asleep(&self) -> bool {
        self.all_say("runtime_status", "suspended")
    }

    /// There are some, and the kernel may suspend all of them when nobody uses them.
    pub fn may_sleep(&self) -> bool {
        self.all_say("control", "auto")
    }

    fn all_say(&self, file: &str, word: &str) -> bool {
        let says = |folder: &PathBuf| sysfs::text(folder.join(file)).as_deref() == Some(word);
        !self.power.is_empty() && self.power.iter().all(says)
    }
}

/// When idle boards on battery are to be let go.
#[derive(Debug, Default)]
pub(super) struct LetGo {
    idle_since_ms: Option<u64>,
    /// The last time did not help: somebody else keeps the boards awake. Not again before
    /// they have worked.
    in_vain: bool,
}

impl LetGo {
    /// Takes what is known at `now_ms`; answers whether the library should be closed.
    pub fn is_due(&mut self, on_battery: bool, idle: bool, now_ms: u64) -> bool {
        if !idle {
            self.in_vain = false;
        }
        if !idle || !on_battery || self.in_vain {
            self.idle_since_ms = None;
            return false;
        }
        let since = *self.idle_since_ms.get_or_insert(now_ms);
        let due = now_ms.saturating_sub(since) >= IDLE_MS;
        if due {
            // When they are seen again, they have not been idle for long.
            self.idle_since_ms = None;
        }
        due
    }

    /// The boards did not fall asleep.
    pub fn was_in_vain(&mut self) {
        self.in_vain = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;

    fn device(fixture: &Fixture, slot: &str, vendor: &str, class: &str, status: &str) {
        let folder = format!("bus/pci/devices/{slot}");
        fixture.write(&format!("{folder}/vendor"), vendor);
        fixture.write(&format!("{folder}/class"), class);
        fixture.write(&format!("{folder}/power/runtime_status"), status);
        fixture.write(&format!("{folder}/power/control"), "auto\n");
    }

    #[test]
    fn only_nvidia_gpus_count_and_one_that_is_awake_means_awake() {
        let fixture = Fixture::new();
        assert!(!PciGpus::find(&fixture.path("")).are_asleep(), "no bus");
        device(&fixture, "00:02.0", "0x8086\n", "0x030000\n", "active\n");
        device(&fixture, "01:00.0", "0x10de\n", "0x030200\n", "suspended\n");
        device(&fixture, "01:00.1", "0x10de\n", "0x040300\n", "active\n");
        assert!(PciGpus::find(&fixture.path("")).are_asleep());
        device(&fixture, "02:00.0", "0x10de\n", "0x030000\n", "active\n");
        let gpus = PciGpus::find(&fixture.path(""));
        assert!(!gpus.are_asleep() && gpus.may_sleep());
        fixture.write("bus/pci/devices/02:00.0/power/control", "on\n");
        assert!(!gpus.may_sleep());
    }

    #[test]
    fn idle_boards_are_let_go_on_battery_only_and_not_twice_in_vain() {
        let mut let_go = LetGo::default();
        assert!(!let_go.is_due(false, true, 0));
        assert!(!let_go.is_due(false, true, 60_000), "on mains never");
        assert!(!let_go.is_due(true, true, 61_000));
        assert!(!let_go.is_due(true, false, 64_000), "it worked meanwhile");
        assert!(!let_go.is_due(true, true, 65_000));
        assert!(let_go.is_due(true, true, 65_000 + IDLE_MS));
        assert!(
            !let_go.is_due(true, true, 80_000),
            "seen again, it may stay a while"
        );
        let_go.was_in_vain();
        assert!(!let_go.is_due(true, true, 90_000));
        assert!(!let_go.is_due(true, true, 200_000));
        assert!(!let_go.is_due(true, false, 201_000));
        assert!(!let_go.is_due(true, true, 202_000));
        assert!(let_go.is_due(true, true, 202_000 + IDLE_MS));
    }
}
