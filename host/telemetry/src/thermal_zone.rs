//! Temperatures from `/sys/class/thermal`, for machines whose processor has no hwmon chip:
//! most Arm boards.
//!
//! Where hwmon already gives a device's temperature this reader keeps silent: two sensors
//! at different places of one chip, taken in turns, would look like a temperature that
//! jumps. Zones named `acpitz` are ignored, since many boards keep a constant there.

use std::path::{Path, PathBuf};

use homeostat_hooks::{DeviceKind, Origin};

use crate::reading::{Reading, Signal};
use crate::sampler::{Provider, Tick};
use crate::sysfs;

/// One zone that measures something we name.
#[derive(Debug)]
struct Zone {
    temperature: PathBuf,
    id: &'static str,
    kind: DeviceKind,
    limit_celsius: Option<f64>,
}

/// The thermal-zone reader.
pub struct ThermalZone {
    zones: Vec<Zone>,
    wrote_ms: Option<u64>,
}

impl ThermalZone {
    /// Finds the zones below the given sysfs; they are fixed by the board.
    pub fn new(sysfs_root: &Path) -> Self {
        let zones = sysfs::entries(sysfs_root.join("class/thermal"));
        Self {
            zones: zones
                .iter()
                .filter_map(|folder| Zone::find(folder))
                .collect(),
            wrote_ms: None,
        }
    }

    /// Somebody else gives this device's temperature.
    fn is_spoken_for(&self, id: &str, tick: &Tick<'_>) -> bool {
        let device = tick.readings.devices.get(id);
        let last = device.and_then(|d| d.last(Signal::Temperature));
        last.is_some_and(|r| r.is_fresh(tick.now_ms) && Some(r.at_ms) != self.wrote_ms)
    }
}

impl Zone {
    fn find(folder: &Path) -> Option<Self> {
        if !sysfs::name(folder).starts_with("thermal_zone") {
            return None;
        }
        let name = sysfs::text(folder.join("type"))?.to_lowercase();
        let (id, kind) = match name {
            name if name.contains("gpu") => ("gpu.soc", DeviceKind::Gpu),
            name if ["cpu", "pkg", "soc"].iter().any(|word| name.contains(word)) => {
                ("cpu.0", DeviceKind::Cpu)
            }
            _ => return None,
        };
        Some(Self {
            temperature: folder.join("temp"),
            id,
            kind,
            limit_celsius: lowest_trip(folder),
        })
    }
}

/// The first temperature at which the kernel slows the chip down. Trips of type `active`
/// only start a fan.
fn lowest_trip(folder: &Path) -> Option<f64> {
    (0..16)
        .map_while(|i| sysfs::text(folder.join(format!("trip_point_{i}_type"))).map(|t| (i, t)))
        .filter(|(_, kind)| matches!(kind.as_str(), "passive" | "hot" | "critical"))
        .filter_map(|(i, _)| sysfs::number::<f64>(folder.join(format!("trip_point_{i}_temp"))))
        .map(|milli| milli / 1000.0)
        .filter(|celsius| (40.0..=125.0).contains(celsius))
        .reduce(f64::min)
}

impl Provider for ThermalZone {
    fn name(&self) -> &'static str {
        "thermal_zone"
    }

    fn read(&mut self, tick: &mut Tick<'_>) -> bool {
        let mut hottest: Vec<(&Zone, f64)> = Vec::new();
        for zone in &self.zones {
            let Some(milli) = sysfs::number::<f64>(&zone.temperature) else {
                continue;
            };
            let celsius = milli / 1000.0;
            if !Signal::Temperature.accepts(celsius) {
                tick.recorder.error("thermal_zone", "absurd");
                continue;
            }
            match hottest.iter_mut().find(|(other, _)| other.id == zone.id) {
                Some(entry) if entry.1 < celsius => *entry = (zone, celsius),
                Some(_) => {}
                None => hottest.push((zone, celsius)),
            }
        }
        let spoken_for: Vec<bool> = hottest
            .iter()
            .map(|(zone, _)| self.is_spoken_for(zone.id, tick))
            .collect();
        for (&(zone, celsius), taken) in hottest.iter().zip(spoken_for) {
            if taken {
                continue;
            }
            self.wrote_ms = Some(tick.now_ms);
            let reading = Reading::instant(celsius, tick.now_ms, tick.period_ms);
            let device = tick.readings.device(zone.id, zone.kind);
            let mut refused = device.record(Signal::Temperature, reading).is_err();
            if let Some(limit) = zone.limit_celsius {
                let margin = Reading {
                    value: limit - celsius,
                    origin: Origin::Derived,
                    ..reading
                };
                refused |= device.record(Signal::ThermalMargin, margin).is_err();
            }
            if refused {
                tick.recorder.error("thermal_zone", "absurd");
            }
        }
        !hottest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;

    fn zone(fixture: &Fixture, number: u32, files: &[(&str, &str)]) {
        for (file, text) in files {
            fixture.write(&format!("class/thermal/thermal_zone{number}/{file}"), text);
        }
    }

    #[test]
    fn the_hottest_zone_counts_and_the_passive_trip_is_the_limit() {
        let mut fixture = Fixture::new();
        let trips = [
            ("trip_point_0_type", "active"),
            ("trip_point_0_temp", "50000"),
            ("trip_point_1_type", "passive"),
            ("trip_point_1_temp", "80000"),
            ("trip_point_2_type", "critical"),
            ("trip_point_2_temp", "110000"),
        ];
        zone(&fixture, 0, &[("type", "cpu-thermal"), ("temp", "61000")]);
        zone(&fixture, 1, &[("type", "CPU-therm"), ("temp", "66000")]);
        zone(&fixture, 1, &trips);
        zone(&fixture, 2, &[("type", "acpitz"), ("temp", "99000")]);
        let mut zones = ThermalZone::new(&fixture.path(""));
        assert!(fixture.read(&mut zones, 0));
        let cpu = fixture.device("cpu.0", 0).expect("listed");
        assert_eq!(cpu.temperature_celsius.map(|s| s.value), Some(66.0));
        assert_eq!(cpu.thermal_margin_celsius.map(|s| s.value), Some(14.0));
        assert_eq!(fixture.readings.devices.len(), 1);
    }

    #[test]
    fn it_keeps_silent_where_another_reader_speaks_and_goes_on_alone() {
        let mut fixture = Fixture::new();
        zone(&fixture, 0, &[("type", "x86_pkg_temp"), ("temp", "61000")]);
        let mut zones = ThermalZone::new(&fixture.path(""));
        let celsius = |fixture: &Fixture, now| {
            let cpu = fixture.device("cpu.0", now).expect("listed");
            cpu.temperature_celsius.map(|s| s.value)
        };
        fixture.read(&mut zones, 0);
        fixture.read(&mut zones, 100);
        assert_eq!(
            celsius(&fixture, 100),
            Some(61.0),
            "its own word is no obstacle"
        );
        let cpu = fixture.readings.device("cpu.0", DeviceKind::Cpu);
        cpu.record(Signal::Temperature, Reading::instant(70.0, 150, 100))
            .expect("plausible");
        fixture.read(&mut zones, 200);
        assert_eq!(celsius(&fixture, 200), Some(70.0));
    }

    #[test]
    fn a_broken_zone_is_counted_and_absent() {
        let mut fixture = Fixture::new();
        zone(&fixture, 0, &[("type", "cpu-thermal"), ("temp", "-274000")]);
        let mut zones = ThermalZone::new(&fixture.path(""));
        assert!(!fixture.read(&mut zones, 0));
        assert_eq!(fixture.device("cpu.0", 0), None);
        assert_eq!(fixture.errors("thermal_zone"), 1);
    }
}
