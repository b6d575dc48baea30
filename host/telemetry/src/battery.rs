//! Batteries and mains from `/sys/class/power_supply`.
//!
//! Several batteries count as one. The batteries of a mouse or a headset say so
//! (`scope` = `Device`) and do not count. A battery that neither charges nor discharges
//! while mains is present is not "on battery". What a firmware does not tell (many give
//! charge in Ah, some only percent) stays absent instead of being guessed.

use std::path::{Path, PathBuf};

use homeostat_hooks::Supply;

use crate::sampler::{Provider, Tick};
use crate::sysfs;

/// The power-supply reader.
pub struct Battery {
    folder: PathBuf,
}

/// One battery as its firmware describes it.
#[derive(Debug, Default)]
struct Cell {
    discharging: bool,
    charge_ratio: Option<f64>,
    energy_wh: Option<f64>,
    full_wh: Option<f64>,
    watts: Option<f64>,
}

impl Battery {
    /// Reads below the given sysfs.
    pub fn new(sysfs_root: &Path) -> Self {
        Self {
            folder: sysfs_root.join("class/power_supply"),
        }
    }
}

impl Cell {
    fn read(folder: &Path) -> Self {
        let micro = |file: &str| -> Option<f64> {
            let value: f64 = sysfs::number(folder.join(file))?;
            value.is_finite().then_some(value / 1e6)
        };
        let volts = micro("voltage_now").filter(|v| *v > 0.0);
        // Some drivers sign the current by direction; the status tells the direction.
        let times_volts = |amperes: Option<f64>| Some(amperes? * volts?);
        let watts = micro("power_now").or_else(|| times_volts(micro("current_now")));
        let energy_wh = micro("energy_now").or_else(|| times_volts(micro("charge_now")));
        let full_wh = micro("energy_full")
            .or_else(|| times_volts(micro("charge_full")))
            .filter(|full| *full > 0.0);
        let percent: Option<f64> = sysfs::number(folder.join("capacity"));
        let charge_ratio = match (energy_wh, full_wh) {
            (Some(now), Some(full)) => Some(now / full),
            _ => percent.map(|p| p / 100.0),
        };
        Self {
            discharging: sysfs::text(folder.join("status")).as_deref() == Some("Discharging"),
            charge_ratio: charge_ratio
                .filter(|ratio| (0.0..=1.2).contains(ratio))
                // A worn battery's gauge may exceed what it calls full.
                .map(|ratio| ratio.min(1.0)),
            energy_wh,
            full_wh,
            watts: watts.map(f64::abs).filter(|watts| *watts < 10_000.0),
        }
    }
}

/// All batteries as one.
fn combine(cells: &[Cell], mains_online: Option<bool>) -> Supply {
    let sum = |of: fn(&Cell) -> Option<f64>| -> Option<f64> { cells.iter().map(of).sum() };
    let discharging = cells.iter().any(|cell| cell.discharging);
    let on_battery = discharging && mains_online != Some(true);
    let energy_wh = sum(|cell| cell.energy_wh);
    let charge = match (energy_wh, sum(|cell| cell.full_wh)) {
        (Some(now), Some(full)) => Some((now / full).min(1.0)),
        _ => sum(|cell| cell.charge_ratio).map(|total| total / cells.len() as f64),
    };
    let drain_watts = sum(|cell| cell.watts).filter(|_| on_battery);
    let time_left_s = match (energy_wh, drain_watts) {
        (Some(wh), Some(watts)) if watts > 0.0 => Some((wh / watts * 3600.0) as u32),
        _ => None,
    };
    Supply {
        on_battery,
        charge_ratio: charge.map(|c| c as f32),
        drain_watts: drain_watts.map(|w| w as f32),
        time_left_s,
    }
}

impl Provider for Battery {
    fn name(&self) -> &'static str {
        "battery"
    }

    /// Every 2 s: firmware answers slowly and charge changes slowly.
    fn period_ms(&self, base_ms: u32) -> u32 {
        base_ms.max(2_000)
    }

    fn read(&mut self, tick: &mut Tick<'_>) -> bool {
        let mut cells = Vec::new();
        let mut mains_online = None;
        for folder in sysfs::entries(&self.folder) {
            let text = |file| sysfs::text(folder.join(file));
            match text("type").as_deref() {
                Some("Battery") if text("scope").as_deref() != Some("Device") => {
                    cells.push(Cell::read(&folder));
                }
                Some("Mains" | "USB") => {
                    if let Some(online) = sysfs::number::<u8>(folder.join("online")) {
                        mains_online = Some(mains_online.unwrap_or(false) || online == 1);
                    }
                }
                _ => {}
            }
        }
        tick.readings.supply = (!cells.is_empty()).then(|| combine(&cells, mains_online));
        !cells.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;

    fn battery(fixture: &Fixture, name: &str, lines: &[(&str, &str)]) {
        for (file, text) in lines {
            fixture.write(&format!("class/power_supply/{name}/{file}"), text);
        }
    }

    fn supply(fixture: &mut Fixture) -> Option<Supply> {
        let mut provider = Battery::new(&fixture.path(""));
        fixture.read(&mut provider, 0);
        fixture.readings.supply
    }

    #[test]
    fn a_machine_without_a_battery_has_no_supply() {
        assert_eq!(supply(&mut Fixture::new()), None);
    }

    #[test]
    fn a_discharging_battery_tells_charge_drain_and_time() {
        let mut fixture = Fixture::new();
        battery(&fixture, "AC", &[("type", "Mains"), ("online", "0")]);
        battery(
            &fixture,
            "BAT0",
            &[
                ("type", "Battery"),
                ("status", "Discharging"),
                ("energy_now", "30000000"),
                ("energy_full", "60000000"),
                ("power_now", "15000000"),
            ],
        );
        let supply = supply(&mut fixture).expect("a battery");
        assert!(supply.on_battery);
        assert_eq!(supply.charge_ratio, Some(0.5));
        assert_eq!(supply.drain_watts, Some(15.0));
        assert_eq!(supply.time_left_s, Some(7200));
    }

    #[test]
    fn charge_in_ampere_hours_is_turned_into_energy() {
        let mut fixture = Fixture::new();
        battery(
            &fixture,
            "BAT0",
            &[
                ("type", "Battery"),
                ("status", "Discharging"),
                ("charge_now", "2000000"),
                ("charge_full", "4000000"),
                ("current_now", "-1000000"),
                ("voltage_now", "12000000"),
            ],
        );
        let supply = supply(&mut fixture).expect("a battery");
        assert_eq!(supply.drain_watts, Some(12.0));
        assert_eq!(supply.time_left_s, Some(7200));
    }

    #[test]
    fn on_mains_nothing_drains_and_a_mouse_is_no_battery() {
        let mut fixture = Fixture::new();
        battery(&fixture, "AC", &[("type", "Mains"), ("online", "1")]);
        battery(
            &fixture,
            "BAT0",
            &[
                ("type", "Battery"),
                ("status", "Not charging"),
                ("capacity", "80"),
            ],
        );
        battery(
            &fixture,
            "hidpp_battery_0",
            &[("type", "Battery"), ("scope", "Device"), ("capacity", "5")],
        );
        let supply = supply(&mut fixture).expect("a battery");
        assert!(!supply.on_battery);
        assert_eq!(supply.charge_ratio, Some(0.8));
        assert_eq!((supply.drain_watts, supply.time_left_s), (None, None));
    }

    #[test]
    fn a_battery_that_tells_nothing_has_no_charge_rather_than_an_empty_one() {
        let mut fixture = Fixture::new();
        battery(
            &fixture,
            "BAT0",
            &[
                ("type", "Battery"),
                ("status", "Unknown"),
                ("capacity", "9999"),
            ],
        );
        assert_eq!(supply(&mut fixture), Some(Supply::default()));
    }
}
