//! What an operator may set, with every default and its reason.

use std::path::PathBuf;

use homeostat_hooks::{Budget, Profile};

use crate::metabolism::Thresholds;

/// Where NVIDIA's management library comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NvmlLibrary {
    /// `libnvidia-ml.so.1` wherever the system's loader finds it; a machine without it has
    /// no NVIDIA device, which is no error.
    #[default]
    System,
    /// This file.
    File(PathBuf),
    /// Do not look for NVIDIA devices.
    Off,
}

impl NvmlLibrary {
    /// Reads the setting as it stands in a config file: `auto`, `off` or a path.
    pub fn from_setting(setting: &str) -> Self {
        match setting {
            "" | "auto" => Self::System,
            "off" => Self::Off,
            path => Self::File(path.into()),
        }
    }
}

/// Configuration of the telemetry room.
#[derive(Debug, Clone)]
pub struct Config {
    /// What kind of machine this is; it shifts the thresholds of the state machine.
    pub profile: Profile,
    /// Sampling period. 100 ms: a die heats with a time constant of about two seconds, so
    /// ten samples a second see every change, and one sample costs less than 0.1 ms.
    /// Clamped to 10 ms … 10 s.
    pub period_ms: u32,
    /// Root of sysfs; another folder in tests.
    pub sysfs_root: PathBuf,
    /// Root of procfs; another folder in tests.
    pub procfs_root: PathBuf,
    /// NVIDIA's library.
    pub nvml: NvmlLibrary,
    /// Power that all devices together may draw, as the operator wishes; `None` = only the
    /// devices' own limits count.
    pub power_cap_watts: Option<f64>,
    /// Budgets at the start; [`Telemetry::set_budgets`](crate::Telemetry::set_budgets)
    /// replaces them later.
    pub budgets: Vec<Budget>,
    /// Thresholds of the state machine.
    pub thresholds: Thresholds,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            profile: Profile::default(),
            period_ms: 100,
            sysfs_root: "/sys".into(),
            procfs_root: "/proc".into(),
            nvml: NvmlLibrary::default(),
            power_cap_watts: None,
            budgets: Vec::new(),
            thresholds: Thresholds::default(),
        }
    }
}

impl Config {
    /// The sampling period within its bounds.
    pub(crate) fn base_period_ms(&self) -> u32 {
        self.period_ms.clamp(10, 10_000)
    }
}
