//! Energy of Intel and AMD processors from the powercap files.
//!
//! Only whole packages and the platform: their parts (cores, memory) are contained in them
//! and would be counted twice. The counters wrap within minutes at high power, at the value
//! that the kernel states. Since kernel 5.10 they are readable by root alone, because
//! precise power leaks secrets; then there is no energy, one line in the log says why, and
//! nothing is estimated here.

use std::collections::VecDeque;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use homeostat_hooks::{DeviceKind, Origin};

use crate::reading::{CounterStep, EnergyMeter, Reading, Signal};
use crate::sampler::{Provider, Tick};
use crate::sysfs;

/// Power is the energy of about this time over the time: shorter windows hold too few of
/// the counter's 1 ms steps, longer ones hide a burst.
const POWER_WINDOW_MS: u64 = 1_000;

/// One domain.
#[derive(Debug)]
struct Zone {
    counter: PathBuf,
    id: String,
    kind: DeviceKind,
    wraps_at_uj: Option<u64>,
    meter: EnergyMeter,
    past: VecDeque<(u64, u64)>,
    explained: bool,
}

/// The powercap reader.
pub struct Rapl {
    zones: Vec<Zone>,
}

impl Rapl {
    /// Finds the domains below the given sysfs; processors do not come and go.
    pub fn new(sysfs_root: &Path) -> Self {
        let zones = sysfs::entries(sysfs_root.join("class/powercap"));
        Self {
            zones: zones
                .iter()
                .filter_map(|folder| Zone::find(folder))
                .collect(),
        }
    }
}

impl Zone {
    fn find(folder: &Path) -> Option<Self> {
        // `intel-rapl:0` is a package, `intel-rapl:0:1` a part of it; AMD uses the same
        // names, and `intel-rapl-mmio` is a second view of the same counter.
        let number = sysfs::name(folder).strip_prefix("intel-rapl:")?;
        if number.contains(':') {
            return None;
        }
        let name = sysfs::text(folder.join("name"))?;
        let (id, kind) = match name.strip_prefix("package-") {
            Some(package) => (format!("cpu.{package}"), DeviceKind::Cpu),
            None if name == "psys" => ("host.0".to_owned(), DeviceKind::Host),
            None => return None,
        };
        Some(Self {
            counter: folder.join("energy_uj"),
            id,
            kind,
            wraps_at_uj: sysfs::number(folder.join("max_energy_range_uj")),
            meter: EnergyMeter::default(),
            past: VecDeque::new(),
            explained: false,
        })
    }

    fn raw_uj(&mut self, tick: &Tick<'_>) -> Option<u64> {
        let why = match fs::read_to_string(&self.counter) {
            Ok(text) => match text.trim().parse() {
                Ok(raw) => return Some(raw),
                Err(_) => "malformed",
            },
            Err(error) if error.kind() == ErrorKind::PermissionDenied => "no_permission",
            Err(error) if error.kind() == ErrorKind::NotFound => "missing",
            Err(_) => "unreadable",
        };
        tick.recorder.error("rapl", why);
        if !std::mem::replace(&mut self.explained, true) {
            tracing::info!(
                device = %self.id,
                why,
                "no processor energy: the kernel lets only root read it; grant the capability \
                 dac_read_search or make energy_uj readable for this user"
            );
        }
        None
    }

    fn read(&mut self, tick: &mut Tick<'_>) -> bool {
        let Some(raw) = self.raw_uj(tick) else {
            return false;
        };
        if self.meter.take(raw, self.wraps_at_uj) == CounterStep::Reset {
            tick.recorder.error("rapl", "counter_reset");
            self.past.clear();
        }
        let power = self.power(tick.now_ms);
        let instant = |value| Reading::instant(value, tick.now_ms, tick.period_ms);
        let energy = instant(self.meter.joules());
        let device = tick.readings.device(&self.id, self.kind);
        let mut refused = device.record(Signal::Energy, energy).is_err();
        if let Some((watts, window_ms)) = power {
            let reading = Reading {
                window_ms: window_ms as u32,
                origin: Origin::Derived,
                ..instant(watts)
            };
            refused |= device.record(Signal::Power, reading).is_err();
        }
        if refused {
            tick.recorder.error("rapl", "absurd");
        }
        true
    }

    /// Mean power over the last second or so; `None` until half of that has passed, so no
    /// division by next to nothing.
    fn power(&mut self, now_ms: u64) -> Option<(f64, u64)> {
        self.past.push_back((now_ms, self.meter.total_uj()));
        while self.past.len() > 2 && now_ms.saturating_sub(self.past[1].0) >= POWER_WINDOW_MS {
            self.past.pop_front();
        }
        let &(since, before) = self.past.front()?;
        let elapsed_ms = now_ms.saturating_sub(since);
        let grown_uj = self.meter.total_uj() - before;
        (elapsed_ms >= POWER_WINDOW_MS / 2)
            .then(|| (grown_uj as f64 / 1000.0 / elapsed_ms as f64, elapsed_ms))
    }
}

impl Provider for Rapl {
    fn name(&self) -> &'static str {
        "rapl"
    }

    fn read(&mut self, tick: &mut Tick<'_>) -> bool {
        let answered: Vec<bool> = self.zones.iter_mut().map(|zone| zone.read(tick)).collect();
        answered.contains(&true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;

    fn package(fixture: &Fixture, number: u32, energy_uj: u64) {
        let zone = format!("class/powercap/intel-rapl:{number}");
        fixture.write(&format!("{zone}/name"), &format!("package-{number}\n"));
        fixture.write(&format!("{zone}/max_energy_range_uj"), "999999\n");
        fixture.write(&format!("{zone}/energy_uj"), &format!("{energy_uj}\n"));
    }

    #[test]
    fn power_is_derived_from_energy_across_the_wrap() {
        let mut fixture = Fixture::new();
        package(&fixture, 0, 900_000);
        let mut rapl = Rapl::new(&fixture.path(""));
        fixture.read(&mut rapl, 0);
        let first = fixture.device("cpu.0", 0).expect("listed");
        assert_eq!(first.energy_joules.expect("counted").value, 0.0);
        assert_eq!(first.power_watts, None, "one reading has no duration");
        package(&fixture, 0, 400_000);
        fixture.read(&mut rapl, 1_000);
        let cpu = fixture.device("cpu.0", 1_000).expect("listed");
        assert_eq!(cpu.energy_joules.expect("counted").value, 0.5);
        let power = cpu.power_watts.expect("derived");
        assert_eq!((power.value, power.window_ms), (0.5, 1_000));
        assert_eq!(power.origin, Origin::Derived);
    }

    #[test]
    fn parts_of_a_package_are_not_counted_beside_it() {
        let mut fixture = Fixture::new();
        package(&fixture, 0, 1);
        let part = "class/powercap/intel-rapl:0:0";
        fixture.write(&format!("{part}/name"), "core\n");
        fixture.write(&format!("{part}/energy_uj"), "1\n");
        let psys = "class/powercap/intel-rapl:1";
        fixture.write(&format!("{psys}/name"), "psys\n");
        fixture.write(&format!("{psys}/energy_uj"), "1\n");
        let mut rapl = Rapl::new(&fixture.path(""));
        fixture.read(&mut rapl, 0);
        let ids: Vec<_> = fixture.readings.devices.keys().collect();
        assert_eq!(ids, ["cpu.0", "host.0"]);
    }

    #[test]
    fn an_unreadable_counter_is_absent_and_counted() {
        let mut fixture = Fixture::new();
        package(&fixture, 0, 1);
        let mut rapl = Rapl::new(&fixture.path(""));
        fixture.remove("class/powercap/intel-rapl:0/energy_uj");
        assert!(!fixture.read(&mut rapl, 0));
        fixture.write("class/powercap/intel-rapl:0/energy_uj", "-5");
        assert!(!fixture.read(&mut rapl, 100));
        assert!(fixture.readings.devices.is_empty());
        assert_eq!(fixture.errors("rapl"), 2);
    }
}
