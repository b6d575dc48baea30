//! A temporary tree that looks like sysfs and procfs, for the tests of the providers.

use std::fs;
use std::path::PathBuf;

use homeostat_hooks::Device;

use crate::reading::Readings;
use crate::sampler::{Provider, Tick};
use crate::stats::Recorder;

pub struct Fixture {
    root: tempfile::TempDir,
    pub readings: Readings,
    pub recorder: Recorder,
}

impl Fixture {
    pub fn new() -> Self {
        Self {
            root: tempfile::tempdir().expect("a temporary folder"),
            readings: Readings::default(),
            recorder: Recorder::default(),
        }
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("has a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    pub fn remove(&self, path: &str) {
        fs::remove_file(self.path(path)).expect("removed");
    }

    pub fn read(&mut self, provider: &mut dyn Provider, now_ms: u64) -> bool {
        provider.read(&mut Tick {
            now_ms,
            period_ms: 100,
            readings: &mut self.readings,
            recorder: &self.recorder,
        })
    }

    pub fn device(&self, id: &str, now_ms: u64) -> Option<Device> {
        self.readings.devices.get(id)?.device(id, now_ms)
    }

    pub fn errors(&self, provider: &'static str) -> u64 {
        let stats = self.recorder.stats(0);
        let errors = stats
            .providers
            .get(provider)
            .map(|p| p.errors.values().sum());
        errors.unwrap_or(0)
    }
}
