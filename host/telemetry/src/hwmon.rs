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

use homeostat_hooks::{DeviceKind, Origin, ThrottleReasons};

use crate::gpu_metrics::GpuMetrics;
use crate::reading::{CounterStep, EnergyMeter, Reading, Signal};
use crate::sampler::{Provider, Tick};
use crate::stats::Recorder;
use crate::sysfs;

/// Chips come and go with drivers and docks, seldom.
const RESCAN_MS: u64 = 10_000;
/// Power from energy is a mean over this time.
const POWER_WINDOW_MS: u64 = 1_000;
/// The window of an average whose driver states none; firmwares average over about this.
const UNSTATED_WINDOW_MS: u32 = 1_000;
/// A stated limit outside of this is a default of the firmware, not a limit.
const PLAUSIBLE_LIMIT: std::ops::RangeInclusive<f64> = 40.0..=125.0;

/// The chip by which a Raspberry Pi tells that its supply is too weak.
const VOLTAGE_CHIP: &str = "rpi_volt";

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
    /// Its last value could not be true; that was counted.
    absurd: bool,
}

/// One value that a chip gave at a tick.
#[derive(Debug, Clone, Copy)]
struct Found {
    signal: Signal,
    value: f64,
    window_ms: u32,
    origin: Origin,
}

impl Found {
    fn measured(signal: Signal, value: f64) -> Self {
        Self {
            signal,
            value,
            window_ms: 0,
            origin: Origin::Measured,
        }
    }

    fn derived(signal: Signal, value: f64) -> Self {
        Self {
            origin: Origin::Derived,
            ..Self::measured(signal, value)
        }
    }
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
    /// The alarm of a board that watches its supply voltage.
    undervoltage: Option<PathBuf>,
    scan_due_ms: u64,
}

impl Hwmon {
    /// Reads below the given sysfs.
    pub fn new(sysfs_root: &Path) -> Self {
        Self {
            folder: sysfs_root.join("class/hwmon"),
            chips: BTreeMap::new(),
            numbers: BTreeMap::new(),
            undervoltage: None,
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
            if name == VOLTAGE_CHIP {
                self.undervoltage = Some(folder.join("in0_lcrit_alarm"));
            }
            let Some(&(_, kind, prefix)) = CHIPS.iter().find(|(chip, ..)| *chip == name) else {
                continue;
            };
            let id = format!("{prefix}.{}", self.number(prefix, &device));
            self.chips.insert(device, Chip::new(folder, kind, id));
        }
    }

    /// A single-board computer with a weak supply slows its processor without any heat.
    fn voltage(&self, tick: &mut Tick<'_>) -> bool {
        let Some(path) = &self.undervoltage else {
            return false;
        };
        let Some(alarm): Option<u8> = sysfs::number(path) else {
            return false;
        };
        let reasons = ThrottleReasons {
            undervoltage: alarm != 0,
            ..ThrottleReasons::default()
        };
        let cpu = tick.readings.device("cpu.0", DeviceKind::Cpu);
        cpu.record_throttle(reasons, tick.now_ms);
        true
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
        answered | self.voltage(tick)
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
        let metrics = self.metrics();
        let mut found = self.temperatures(tick.recorder);
        found.extend(self.powers(&metrics, tick));
        if self.kind == DeviceKind::Gpu {
            found.extend(self.memory_and_use());
        }
        for found in &found {
            let reading = Reading {
                origin: found.origin,
                window_ms: found.window_ms,
                ..Reading::instant(found.value, tick.now_ms, tick.period_ms)
            };
            let device = tick.readings.device(&self.id, self.kind);
            if device.record(found.signal, reading).is_err() {
                tick.recorder.error("hwmon", "absurd");
            }
        }
        if let (Some(reasons), false) = (metrics.throttle, found.is_empty()) {
            let device = tick.readings.device(&self.id, self.kind);
            device.record_throttle(reasons, tick.now_ms);
        }
        !found.is_empty()
    }

    /// The core's and the memory's temperature, and the smallest margin over all sensors
    /// that state a limit. Junction sensors run hotter and have their own limit, so margins
    /// are comparable where temperatures are not.
    fn temperatures(&mut self, recorder: &Recorder) -> Vec<Found> {
        let mut core: Option<(u8, f64)> = None;
        let mut memory = None;
        let mut margin: Option<f64> = None;
        for thermometer in &mut self.thermometers {
            // One glitch among many sensors must not look like a margin.
            let Some(celsius) = thermometer.believed(recorder) else {
                continue;
            };
            if let Some(limit) = thermometer.limit_celsius {
                let own = limit - celsius;
                margin = Some(margin.map_or(own, |m: f64| m.min(own)));
            }
            if thermometer.is_of_memory() {
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
            core.map(|(_, celsius)| Found::measured(Signal::Temperature, celsius)),
            memory.map(|celsius| Found::measured(Signal::MemoryTemperature, celsius)),
            margin.map(|celsius| Found::derived(Signal::ThermalMargin, celsius)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// What AMD's driver says beyond hwmon.
    fn metrics(&self) -> GpuMetrics {
        if self.kind != DeviceKind::Gpu {
            return GpuMetrics::default();
        }
        let table = fs::read(self.folder.join("device/gpu_metrics"));
        table.map_or(GpuMetrics::default(), |table| GpuMetrics::parse(&table))
    }

    fn micro(&self, file: &str) -> Option<f64> {
        let value: f64 = sysfs::number(self.folder.join(file))?;
        Some(value / 1e6)
    }

    /// Power and its limit, in files of µW, and energy. Of power some boards tell the
    /// present value, some only an average over a time that the driver may state; with
    /// neither it follows from the energy.
    fn powers(&mut self, metrics: &GpuMetrics, tick: &Tick<'_>) -> Vec<Found> {
        let limits = ["power1_cap", "power1_max", "power1_rated_max"];
        let limit = limits.iter().find_map(|file| self.micro(file));
        let mut found = Vec::new();
        if let Some(limit) = limit.filter(|watts| *watts > 0.0) {
            found.push(Found::measured(Signal::PowerLimit, limit));
        }
        let power = match self.micro("power1_input") {
            Some(watts) => Some(Found::measured(Signal::Power, watts)),
            None => self.micro("power1_average").map(|watts| Found {
                window_ms: sysfs::number(self.folder.join("power1_average_interval"))
                    .unwrap_or(UNSTATED_WINDOW_MS),
                ..Found::measured(Signal::Power, watts)
            }),
        };
        found.extend(power);
        // Intel counts the card first, and on parts without a card the package.
        let counters = ["energy1_input", "energy2_input"];
        let counter = counters
            .iter()
            .find_map(|file| sysfs::number(self.folder.join(file)));
        if let Some(raw_uj) = counter.or(metrics.energy_uj) {
            found.extend(self.energy(raw_uj, power.is_none(), tick));
        }
        found
    }

    /// The energy so far, and the mean power of the last second where nothing else tells
    /// the power.
    fn energy(&mut self, raw_uj: u64, needs_power: bool, tick: &Tick<'_>) -> Vec<Found> {
        if self.meter.take(raw_uj, None) == CounterStep::Reset {
            tick.recorder.error("hwmon", "counter_reset");
            self.energy_before = None;
        }
        let mut found = vec![Found::measured(Signal::Energy, self.meter.joules())];
        let (since, before) = *self
            .energy_before
            .get_or_insert((tick.now_ms, self.meter.total_uj()));
        let elapsed_ms = tick.now_ms.saturating_sub(since);
        if elapsed_ms >= POWER_WINDOW_MS {
            let grown_uj = self.meter.total_uj() - before;
            self.energy_before = Some((tick.now_ms, self.meter.total_uj()));
            if needs_power {
                let watts = grown_uj as f64 / 1000.0 / elapsed_ms as f64;
                found.push(Found {
                    window_ms: elapsed_ms as u32,
                    ..Found::derived(Signal::Power, watts)
                });
            }
        }
        found
    }

    fn memory_and_use(&self) -> Vec<Found> {
        let device = self.folder.join("device");
        [
            (Signal::Utilization, "gpu_busy_percent", 0.01),
            (Signal::MemoryUsed, "mem_info_vram_used", 1.0),
            (Signal::MemoryTotal, "mem_info_vram_total", 1.0),
        ]
        .into_iter()
        .filter_map(|(signal, file, unit)| {
            let value: f64 = sysfs::number(device.join(file))?;
            Some(Found::measured(signal, value * unit))
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
            absurd: false,
            input: path("_input"),
        }
    }

    fn read(&self) -> Option<f64> {
        let milli: f64 = sysfs::number(&self.input)?;
        Some(milli / 1000.0)
    }

    /// Its value, if that can be true. A run of values that cannot is counted once: a dead
    /// input would otherwise count ten times a second for ever.
    fn believed(&mut self, recorder: &Recorder) -> Option<f64> {
        let celsius = self.read()?;
        let absurd = !Signal::Temperature.accepts(celsius);
        if absurd && !self.absurd {
            recorder.error("hwmon", "absurd");
        }
        self.absurd = absurd;
        (!absurd).then_some(celsius)
    }

    fn is_of_memory(&self) -> bool {
        matches!(self.label.as_str(), "mem" | "vram")
    }

    /// Which of a chip's sensors is the core's temperature: the one that covers all.
    /// `Tctl` is shifted on some models and counts only without `Tdie`.
    fn rank(&self) -> u8 {
        match self.label.as_str() {
            label if label.starts_with("Package id") => 3,
            "Tdie" | "edge" | "pkg" => 3,
            "Tctl" => 2,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;
    use crate::gpu_metrics::tests::table;

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
        for now in [100, 200] {
            fixture.read(&mut hwmon, now);
        }
        assert_eq!(fixture.errors("hwmon"), 1, "the dead input, once");
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
    fn present_power_is_preferred_and_an_average_says_its_window() {
        let power = |files: &[(&str, &str)]| {
            let mut fixture = Fixture::new();
            chip(&fixture, 0, "pci-a", "amdgpu", files);
            let mut hwmon = Hwmon::new(&fixture.path(""));
            fixture.read(&mut hwmon, 0);
            let gpu = fixture.device("gpu.amd.0", 0).expect("listed");
            let power = gpu.power_watts.expect("told");
            (power.value, power.window_ms)
        };
        let present = ("power1_input", "90000000");
        let average = ("power1_average", "80000000");
        let interval = ("power1_average_interval", "50");
        assert_eq!(power(&[present, average]), (90.0, 0));
        assert_eq!(power(&[average]), (80.0, 1_000));
        assert_eq!(power(&[average, interval]), (80.0, 50));
    }

    #[test]
    fn an_instinct_has_energy_and_a_radeon_reasons_from_the_metrics_table() {
        let mut fixture = Fixture::new();
        let metrics = fixture.path("devices/pci-a/gpu_metrics");
        chip(&fixture, 0, "pci-a", "amdgpu", &[("temp2_input", "60000")]);
        let mut hwmon = Hwmon::new(&fixture.path(""));
        for (now, joules) in [(0, 100), (1_000, 400)] {
            std::fs::write(&metrics, table(4, 24, 65_536 * joules)).expect("written");
            fixture.read(&mut hwmon, now);
        }
        let gpu = fixture.device("gpu.amd.0", 1_000).expect("listed");
        assert_eq!(gpu.energy_joules.map(|s| s.value), Some(300.0));
        assert_eq!(gpu.power_watts.map(|s| s.value), Some(300.0));
        assert_eq!(gpu.throttle, None);
        std::fs::write(&metrics, table(3, 112, 1 << 34)).expect("written");
        fixture.read(&mut hwmon, 1_100);
        let gpu = fixture.device("gpu.amd.0", 1_100).expect("listed");
        assert!(gpu.throttle.expect("told").thermal_software);
    }

    #[test]
    fn an_arc_tells_package_memory_and_its_rated_limit() {
        let mut fixture = Fixture::new();
        let files = [
            ("temp2_input", "61000"),
            ("temp2_label", "pkg"),
            ("temp2_crit", "100000"),
            ("temp3_input", "70000"),
            ("temp3_label", "vram"),
            ("power1_rated_max", "190000000"),
            ("energy2_input", "5000000"),
        ];
        chip(&fixture, 0, "pci-i", "xe", &files);
        let mut hwmon = Hwmon::new(&fixture.path(""));
        fixture.read(&mut hwmon, 0);
        let gpu = fixture.device("gpu.intel.0", 0).expect("listed");
        let value = |sample: Option<homeostat_hooks::Sample>| sample.map(|s| s.value);
        assert_eq!(value(gpu.temperature_celsius), Some(61.0));
        assert_eq!(value(gpu.memory_temperature_celsius), Some(70.0));
        assert_eq!(value(gpu.thermal_margin_celsius), Some(39.0));
        assert_eq!(value(gpu.power_limit_watts), Some(190.0));
        assert_eq!(value(gpu.energy_joules), Some(0.0));
        assert_eq!(gpu.power_watts, None, "one reading has no duration");
        // Two ticks at one moment, then a counter of 32 bits that began anew.
        fixture.read(&mut hwmon, 0);
        fixture.write("class/hwmon/hwmon0/energy2_input", "1000");
        fixture.read(&mut hwmon, 1_000);
        let gpu = fixture.device("gpu.intel.0", 1_000).expect("listed");
        assert_eq!(value(gpu.energy_joules), Some(0.0), "nothing is invented");
        assert_eq!(gpu.power_watts, None);
        assert_eq!(fixture.errors("hwmon"), 1);
    }

    #[test]
    fn a_weak_supply_is_told_without_any_heat() {
        let mut fixture = Fixture::new();
        chip(&fixture, 0, "volt", "rpi_volt", &[("in0_lcrit_alarm", "1")]);
        chip(
            &fixture,
            1,
            "cpu",
            "cpu_thermal",
            &[("temp1_input", "50000")],
        );
        let mut hwmon = Hwmon::new(&fixture.path(""));
        fixture.read(&mut hwmon, 0);
        let undervoltage = |fixture: &Fixture, now| {
            let cpu = fixture.device("cpu.0", now).expect("listed");
            cpu.throttle.map(|reasons| reasons.undervoltage)
        };
        assert_eq!(undervoltage(&fixture, 0), Some(true));
        fixture.write("class/hwmon/hwmon0/in0_lcrit_alarm", "0");
        fixture.read(&mut hwmon, 100);
        assert_eq!(undervoltage(&fixture, 100), Some(false));
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
