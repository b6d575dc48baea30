//! Processor and GPU sensors from `/sys/class/hwmon`.
//!
//! Own reader instead of a library: chips are told apart by the path of their device and
//! sensors by their index, so two boards of one model stay two, and a sensor that fails to
//! answer has no reading instead of its last one. Only chips that say something about the
//! speed of inference are read: disks and fans may be slow to answer and decide nothing.
//!
//! A GPU that the kernel has put to sleep is not read (reading would wake it) and not
//! listed: it is neither lost nor cool, it is off.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use homeostat_hooks::{DeviceKind, Origin};

use crate::reading::{CounterStep, EnergyMeter, Reading, Signal};
use crate::sampler::{Provider, Tick};
use crate::sysfs;

/// Chips come and go with drivers and docks, seldom.
const RESCAN_MS: u64 = 10_000;
/// A stated limit outside of this is a default of the firmware, not a limit.
const PLAUSIBLE_LIMIT: std::ops::RangeInclusive<f64> = 40.0..=125.0;

/// Chip name, device kind and id prefix.
const CHIPS: [(&str, DeviceKind, &str); 9] = [
    ("coretemp", DeviceKind::Cpu, "cpu"),
    ("k10temp", DeviceKind::Cpu, "cpu"),
    ("zenpower", DeviceKind::Cpu, "cpu"),
    ("cpu_thermal", DeviceKind::Cpu, "cpu"),
    ("soc_thermal", DeviceKind::Cpu, "cpu"),
    ("amdgpu", DeviceKind::Gpu, "gpu.amd"),
    ("i915", DeviceKind::Gpu, "gpu.intel"),
    ("xe", DeviceKind::Gpu, "gpu.intel"),
    ("nouveau", DeviceKind::Gpu, "gpu.nouveau"),
];

/// One temperature input.
#[derive(Debug)]
struct Thermometer {
    input: PathBuf,
    label: String,
    limit_celsius: Option<f64>,
}

/// One chip.
#[derive(Debug)]
struct Chip {
    folder: PathBuf,
    kind: DeviceKind,
    id: String,
    thermometers: Vec<Thermometer>,
    meter: EnergyMeter,
    energy_before: Option<(u64, u64)>,
}

/// The hwmon reader.
pub struct Hwmon {
    folder: PathBuf,
    /// By device path, which survives a renumbering of the hwmon folders.
    chips: BTreeMap<PathBuf, Chip>,
    /// Device paths by id prefix, in the order of first sight: a number is never given to
    /// another device.
    numbers: BTreeMap<&'static str, Vec<PathBuf>>,
    scan_due_ms: u64,
}

impl Hwmon {
    /// Reads below the given sysfs.
    pub fn new(sysfs_root: &Path) -> Self {
        Self {
            folder: sysfs_root.join("class/hwmon"),
            chips: BTreeMap::new(),
            numbers: BTreeMap::new(),
            scan_due_ms: 0,
        }
    }

    fn scan(&mut self) {
        let mut found: Vec<(PathBuf, PathBuf)> = sysfs::entries(&self.folder)
            .into_iter()
            .map(|folder| {
                let device = fs::canonicalize(folder.join("device"));
                (device.unwrap_or_else(|_| folder.clone()), folder)
            })
            .collect();
        found.sort();
        self.chips.retain(|device, chip| {
            found
                .iter()
                .any(|(d, folder)| d == device && *folder == chip.folder)
        });
        for (device, folder) in found {
            if self.chips.contains_key(&device) {
                continue;
            }
            let name = sysfs::text(folder.join("name")).unwrap_or_default();
            let Some(&(_, kind, prefix)) = CHIPS.iter().find(|(chip, ..)| *chip == name) else {
                continue;
            };
            let id = format!("{prefix}.{}", self.number(prefix, &device));
            self.chips.insert(device, Chip::new(folder, kind, id));
        }
    }

    fn number(&mut self, prefix: &'static str, device: &Path) -> usize {
        let known = self.numbers.entry(prefix).or_default();
        known
            .iter()
            .position(|path| path == device)
            .unwrap_or_else(|| {
                known.push(device.to_owned());
                known.len() - 1
            })
    }
}

impl Provider for Hwmon {
    fn name(&self) -> &'static str {
        "hwmon"
    }

    fn read(&mut self, tick: &mut Tick<'_>) -> bool {
        if tick.now_ms >= self.scan_due_ms {
            self.scan();
            self.scan_due_ms = tick.now_ms + RESCAN_MS;
        }
        let mut answered = false;
        for chip in self.chips.values_mut() {
            answered |= chip.read(tick);
        }
        answered
    }
}

impl Chip {
    fn new(folder: PathBuf, kind: DeviceKind, id: String) -> Self {
        let inputs = sysfs::entries(&folder).into_iter();
        let thermometers = inputs
            .filter_map(|path| {
                let name = sysfs::name(&path).strip_suffix("_input")?;
                let sensor = name.strip_prefix("temp").map(|_| folder.join(name))?;
                Some(Thermometer::new(&sensor))
            })
            .collect();
        Self {
            folder,
            kind,
            id,
            thermometers,
            meter: EnergyMeter::default(),
            energy_before: None,
        }
    }

    fn read(&mut self, tick: &mut Tick<'_>) -> bool {
        let asleep = sysfs::text(self.folder.join("device/power/runtime_status"));
        if self.kind == DeviceKind::Gpu && asleep.as_deref() == Some("suspended") {
            tick.readings.devices.remove(&self.id);
            self.energy_before = None;
            return false;
        }
        let mut found = self.temperatures();
        found.extend(self.powers(tick));
        if self.kind == DeviceKind::Gpu {
            found.extend(self.memory_and_use());
        }
        for &(signal, value, origin) in &found {
            let reading = Reading {
                origin,
                ..Reading::instant(value, tick.now_ms, tick.period_ms)
            };
            let device = tick.readings.device(&self.id, self.kind);
            if device.record(signal, reading).is_err() {
                tick.recorder.error("hwmon", "absurd");
            }
        }
        !found.is_empty()
    }

    /// The core's and the memory's temperature, and the smallest margin over all sensors
    /// that state a limit. Junction sensors run hotter and have their own limit, so margins
    /// are comparable where temperatures are not.
    fn temperatures(&self) -> Vec<(Signal, f64, Origin)> {
        let mut core: Option<(u8, f64)> = None;
        let mut memory = None;
        let mut margin: Option<f64> = None;
        for thermometer in &self.thermometers {
            // One glitch among many sensors must not look like a margin.
            let Some(celsius) = thermometer
                .read()
                .filter(|c| Signal::Temperature.accepts(*c))
            else {
                continue;
            };
            if let Some(limit) = thermometer.limit_celsius {
                let own = limit - celsius;
                margin = Some(margin.map_or(own, |m: f64| m.min(own)));
            }
            if thermometer.label == "mem" {
                memory = Some(celsius);
                continue;
            }
            let candidate = (thermometer.rank(), celsius);
            core = Some(match core {
                Some(best) if best.0 > candidate.0 => best,
                Some(best) if best.0 == candidate.0 && best.1 >= candidate.1 => best,
                _ => candidate,
            });
        }
        [
            core.map(|(_, celsius)| (Signal::Temperature, celsius, Origin::Measured)),
            memory.map(|celsius| (Signal::MemoryTemperature, celsius, Origin::Measured)),
            margin.map(|celsius| (Signal::ThermalMargin, celsius, Origin::Derived)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Power in µW (drivers give the average, the present one, or only energy), its limit.
    fn powers(&mut self, tick: &Tick<'_>) -> Vec<(Signal, f64, Origin)> {
        let micro = |file: &str| -> Option<f64> {
            let value: f64 = sysfs::number(self.folder.join(file))?;
            Some(value / 1e6)
        };
        let limit = micro("power1_cap").or_else(|| micro("power1_max"));
        let power = micro("power1_average").or_else(|| micro("power1_input"));
        let mut found = Vec::new();
        if let Some(limit) = limit.filter(|watts| *watts > 0.0) {
            found.push((Signal::PowerLimit, limit, Origin::Measured));
        }
        if let Some(watts) = power {
            found.push((Signal::Power, watts, Origin::Measured));
        }
        let Some(raw) = sysfs::number(self.folder.join("energy1_input")) else {
            return found;
        };
        if self.meter.take(raw, None) == CounterStep::Reset {
            tick.recorder.error("hwmon", "counter_reset");
            self.energy_before = None;
        }
        found.push((Signal::Energy, self.meter.joules(), Origin::Measured));
        let (since, before) = *self
            .energy_before
            .get_or_insert((tick.now_ms, self.meter.total_uj()));
        let elapsed_ms = tick.now_ms.saturating_sub(since);
        if elapsed_ms >= 1_000 {
            let grown_uj = self.meter.total_uj() - before;
            self.energy_before = Some((tick.now_ms, self.meter.total_uj()));
            if power.is_none() {
                let watts = grown_uj as f64 / 1000.0 / elapsed_ms as f64;
                found.push((Signal::Power, watts, Origin::Derived));
            }
        }
        found
    }

    fn memory_and_use(&self) -> Vec<(Signal, f64, Origin)> {
        let device = self.folder.join("device");
        [
            (Signal::Utilization, "gpu_busy_percent", 0.01),
            (Signal::MemoryUsed, "mem_info_vram_used", 1.0),
            (Signal::MemoryTotal, "mem_info_vram_total", 1.0),
        ]
        .into_iter()
        .filter_map(|(signal, file, unit)| {
            let value: f64 = sysfs::number(device.join(file))?;
            Some((signal, value * unit, Origin::Measured))
        })
        .collect()
    }
}

impl Thermometer {
    /// `sensor` is the path without its suffix: `…/temp1`.
    fn new(sensor: &Path) -> Self {
        let path = |suffix: &str| PathBuf::from(format!("{}{suffix}", sensor.display()));
        let limit = |suffix: &str| {
            let milli: Option<f64> = sysfs::number(path(suffix));
            milli
                .map(|m| m / 1000.0)
                .filter(|c| PLAUSIBLE_LIMIT.contains(c))
        };
        Self {
            label: sysfs::text(path("_label")).unwrap_or_default(),
            // `crit` is where the hardware slows down; `max` is only where fans run full.
            limit_celsius: limit("_crit").or_else(|| limit("_max")),
            input: path("_input"),
        }
    }

    fn read(&self) -> Option<f64> {
        let milli: f64 = sysfs::number(&self.input)?;
        Some(milli / 1000.0)
    }

    /// Which of a chip's sensors is the core's temperature: the one that covers all.
    /// `Tctl` is shifted on some models and counts only without `Tdie`.
    fn rank(&self) -> u8 {
        match self.label.as_str() {
            label if label.starts_with("Package id") => 3,
            "Tdie" | "edge" => 3,
            "Tctl" => 2,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;

    /// A chip at a device of its own.
    fn chip(fixture: &Fixture, hwmon: u32, device: &str, name: &str, files: &[(&str, &str)]) {
        let folder = format!("class/hwmon/hwmon{hwmon}");
        fixture.write(&format!("{folder}/name"), name);
        fixture.write(&format!("devices/{device}/uevent"), "");
        let link = fixture.path(&format!("{folder}/device"));
        std::os::unix::fs::symlink(fixture.path(&format!("devices/{device}")), link)
            .expect("linked");
        for (file, text) in files {
            fixture.write(&format!("{folder}/{file}"), text);
        }
    }

    #[test]
    fn two_boards_of_one_model_stay_two_and_keep_their_numbers() {
        let mut fixture = Fixture::new();
        // The order of the hwmon numbers is not that of the devices.
        chip(
            &fixture,
            1,
            "pci-b",
            "amdgpu",
            &[("temp1_input", "91000\n")],
        );
        chip(
            &fixture,
            2,
            "pci-a",
            "amdgpu",
            &[("temp1_input", "45000\n")],
        );
        let mut hwmon = Hwmon::new(&fixture.path(""));
        assert!(fixture.read(&mut hwmon, 0));
        let celsius = |fixture: &Fixture, id: &str, now| {
            let device = fixture.device(id, now).expect("listed");
            device.temperature_celsius.map(|s| s.value)
        };
        assert_eq!(celsius(&fixture, "gpu.amd.0", 0), Some(45.0));
        assert_eq!(celsius(&fixture, "gpu.amd.1", 0), Some(91.0));
        std::fs::remove_dir_all(fixture.path("class/hwmon/hwmon2")).expect("unplugged");
        fixture.read(&mut hwmon, RESCAN_MS);
        assert_eq!(celsius(&fixture, "gpu.amd.1", RESCAN_MS), Some(91.0));
    }

    #[test]
    fn a_sensor_that_fails_has_no_new_reading() {
        let mut fixture = Fixture::new();
        chip(
            &fixture,
            0,
            "core",
            "coretemp",
            &[("temp1_input", "45000\n")],
        );
        let mut hwmon = Hwmon::new(&fixture.path(""));
        fixture.read(&mut hwmon, 0);
        fixture.write("class/hwmon/hwmon0/temp1_input", "");
        assert!(!fixture.read(&mut hwmon, 1_000));
        let age = fixture
            .device("cpu.0", 1_000)
            .and_then(|cpu| cpu.temperature_celsius)
            .map(|sample| sample.age_ms);
        assert_eq!(age, Some(1_000), "the old one grows old");
        assert_eq!(
            fixture
                .device("cpu.0", 31_000)
                .expect("known")
                .temperature_celsius,
            None
        );
    }

    #[test]
    fn the_package_is_the_core_and_the_margin_is_the_smallest() {
        let mut fixture = Fixture::new();
        chip(
            &fixture,
            0,
            "core",
            "coretemp",
            &[
                ("temp1_input", "70000"),
                ("temp1_label", "Package id 0"),
                ("temp1_crit", "100000"),
                ("temp2_input", "82000"),
                ("temp2_label", "Core 0"),
                ("temp2_crit", "100000"),
                ("temp3_input", "-1000"),
                ("temp3_crit", "0"),
            ],
        );
        let mut hwmon = Hwmon::new(&fixture.path(""));
        fixture.read(&mut hwmon, 0);
        let cpu = fixture.device("cpu.0", 0).expect("listed");
        assert_eq!(cpu.temperature_celsius.map(|s| s.value), Some(70.0));
        let margin = cpu.thermal_margin_celsius.expect("limits are stated");
        assert_eq!((margin.value, margin.origin), (18.0, Origin::Derived));
    }

    #[test]
    fn a_radeon_tells_power_memory_and_use() {
        let mut fixture = Fixture::new();
        chip(
            &fixture,
            3,
            "pci-a",
            "amdgpu",
            &[
                ("temp1_input", "50000"),
                ("temp1_label", "edge"),
                ("temp2_input", "66000"),
                ("temp2_label", "junction"),
                ("temp2_crit", "110000"),
                ("temp3_input", "58000"),
                ("temp3_label", "mem"),
                ("power1_average", "120000000"),
                ("power1_cap", "250000000"),
            ],
        );
        fixture.write("devices/pci-a/gpu_busy_percent", "37\n");
        fixture.write("devices/pci-a/mem_info_vram_used", "1000\n");
        fixture.write("devices/pci-a/mem_info_vram_total", "4000\n");
        let mut hwmon = Hwmon::new(&fixture.path(""));
        fixture.read(&mut hwmon, 0);
        let gpu = fixture.device("gpu.amd.0", 0).expect("listed");
        let value = |sample: Option<homeostat_hooks::Sample>| sample.map(|s| s.value);
        assert_eq!(value(gpu.temperature_celsius), Some(50.0));
        assert_eq!(value(gpu.memory_temperature_celsius), Some(58.0));
        assert_eq!(value(gpu.thermal_margin_celsius), Some(44.0));
        assert_eq!(value(gpu.power_watts), Some(120.0));
        assert_eq!(value(gpu.power_limit_watts), Some(250.0));
        assert_eq!(value(gpu.utilization_ratio), Some(0.37));
        assert_eq!(gpu.memory_used_bytes, Some(1000));
        assert_eq!(gpu.memory_total_bytes, Some(4000));
    }

    #[test]
    fn an_intel_gpu_has_power_from_its_energy_counter() {
        let mut fixture = Fixture::new();
        chip(&fixture, 0, "pci-i", "xe", &[("energy1_input", "5000000")]);
        let mut hwmon = Hwmon::new(&fixture.path(""));
        fixture.read(&mut hwmon, 0);
        fixture.write("class/hwmon/hwmon0/energy1_input", "35000000");
        fixture.read(&mut hwmon, 1_000);
        let gpu = fixture.device("gpu.intel.0", 1_000).expect("listed");
        let power = gpu.power_watts.expect("derived");
        assert_eq!((power.value, power.origin), (30.0, Origin::Derived));
        assert_eq!(gpu.energy_joules.map(|s| s.value), Some(30.0));
    }

    #[test]
    fn a_sleeping_gpu_is_neither_read_nor_lost() {
        let mut fixture = Fixture::new();
        chip(&fixture, 0, "pci-a", "amdgpu", &[("temp1_input", "45000")]);
        let mut hwmon = Hwmon::new(&fixture.path(""));
        fixture.read(&mut hwmon, 0);
        fixture.write("devices/pci-a/power/runtime_status", "suspended\n");
        fixture.read(&mut hwmon, 100);
        assert_eq!(fixture.device("gpu.amd.0", 100), None);
    }

    #[test]
    fn disks_and_unknown_chips_are_not_read() {
        let mut fixture = Fixture::new();
        chip(&fixture, 0, "ssd", "nvme", &[("temp1_input", "45000")]);
        let mut hwmon = Hwmon::new(&fixture.path(""));
        assert!(!fixture.read(&mut hwmon, 0));
        assert!(fixture.readings.devices.is_empty());
    }
}
