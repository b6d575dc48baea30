//! What the tests of a running telemetry share.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use homeostat_fake_nvml::FakeNvml;
use homeostat_hooks::Snapshot;
use homeostat_telemetry::{Config, NvmlLibrary, Telemetry};

/// A telemetry over this NVML and the files below `root`; where there is no such folder, no
/// sensor of this machine joins in.
pub fn start(fake: &FakeNvml, root: &Path) -> Telemetry {
    Telemetry::start(Config {
        nvml: NvmlLibrary::File(fake.library()),
        sysfs_root: root.join("sys"),
        procfs_root: root.join("proc"),
        ..Config::default()
    })
}

/// The first snapshot for which the condition holds.
pub fn wait(telemetry: &Telemetry, what: &str, holds: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let snapshot = telemetry.snapshot();
        if holds(&snapshot) {
            return snapshot;
        }
        assert!(
            Instant::now() < deadline,
            "never saw {what}; last: {snapshot:#?}\n{:#?}",
            telemetry.stats()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}
