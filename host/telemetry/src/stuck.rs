//! Thermometers that stand still while the heat moves.
//!
//! A firmware that has hung answers with its last temperature for ever, freshly dated. What
//! gives it away is the power: a load that changed for tens of seconds changes the
//! temperature of any chip. A thermometer that did not move through such a change is
//! suspect: the device counts as degraded, the forecast does not learn from it, and the
//! state machine counts it as lost, until it moves again.
//!
//! It refuses to suspect a steady machine: at constant power, and under bursts too short to
//! heat anything, a temperature in whole degrees stands still honestly.

use std::collections::BTreeMap;

use crate::filter::{Ema, GAP_MS};
use crate::reading::{Readings, Signal};
use crate::stats::Recorder;

/// A thermometer may stand still for this long through any change of power.
pub const STUCK_MS: u64 = 30_000;
/// Power is smoothed over this time, so that bursts do not count as a change.
const POWER_TAU_MS: u32 = 10_000;
/// A smoothed value says nothing before it has forgotten how it began.
const POWER_SETTLED_MS: u64 = 2 * POWER_TAU_MS as u64;
/// A change of the smoothed power by this share of its maximum, and by this much, W.
const CHANGED_RATIO: f64 = 0.4;
const CHANGED_WATTS: f64 = 5.0;

#[derive(Debug)]
struct Watch {
    celsius: f64,
    since_ms: u64,
    seen_ms: u64,
    power: Ema,
    power_since_ms: u64,
    least: f64,
    most: f64,
}

/// The watch over all thermometers whose device tells its power.
#[derive(Debug, Default)]
pub(crate) struct StuckWatch {
    devices: BTreeMap<String, Watch>,
}

impl StuckWatch {
    /// Looks at the readings of one tick and marks suspect devices.
    pub fn look(&mut self, readings: &mut Readings, recorder: &Recorder) {
        self.devices
            .retain(|id, _| readings.devices.contains_key(id));
        for (id, device) in &mut readings.devices {
            let last = |signal| device.last(signal).copied();
            let heat = last(Signal::ThermalMargin).or(last(Signal::Temperature));
            let (Some(heat), Some(power)) = (heat, last(Signal::Power)) else {
                continue;
            };
            let Some(watch) = self.devices.get_mut(id) else {
                let watch = Watch::new(heat.value, power.value, heat.at_ms);
                self.devices.insert(id.clone(), watch);
                continue;
            };
            let suspect = watch.is_suspect(heat.value, heat.at_ms, power.value);
            if suspect && !device.suspect {
                recorder.error("sampler", "stuck");
                tracing::warn!(
                    device = %id,
                    celsius = heat.value,
                    "the temperature stands still while the power changes: the sensor has hung"
                );
            }
            device.suspect = suspect;
        }
    }
}

impl Watch {
    fn new(celsius: f64, watts: f64, now_ms: u64) -> Self {
        let mut power = Ema::new(POWER_TAU_MS);
        power.update(watts, now_ms);
        Self {
            celsius,
            since_ms: now_ms,
            seen_ms: now_ms,
            power,
            power_since_ms: now_ms,
            least: watts,
            most: watts,
        }
    }

    fn is_suspect(&mut self, celsius: f64, at_ms: u64, watts: f64) -> bool {
        if at_ms.saturating_sub(self.seen_ms) > GAP_MS {
            *self = Self::new(celsius, watts, at_ms);
        }
        if at_ms > self.seen_ms {
            self.seen_ms = at_ms;
            let smoothed = self.power.update(watts, at_ms);
            let settled = at_ms - self.power_since_ms >= POWER_SETTLED_MS;
            if celsius != self.celsius || !settled {
                (self.least, self.most) = (smoothed, smoothed);
            }
            self.least = self.least.min(smoothed);
            self.most = self.most.max(smoothed);
        }
        if celsius != self.celsius {
            self.celsius = celsius;
            self.since_ms = at_ms;
        }
        let change = self.most - self.least;
        at_ms.saturating_sub(self.since_ms) > STUCK_MS
            && change > CHANGED_WATTS
            && change > CHANGED_RATIO * self.most
    }
}

#[cfg(test)]
mod tests {
    use homeostat_hooks::{DeviceKind, Health};

    use super::*;
    use crate::reading::Reading;

    /// Health of a device after a load, with a thermometer of its own.
    fn health_after(
        seconds: u64,
        watts: impl Fn(u64) -> f64,
        celsius: impl Fn(u64) -> f64,
    ) -> (Health, u64) {
        let mut watch = StuckWatch::default();
        let mut readings = Readings::default();
        let recorder = Recorder::default();
        let mut health = Health::Ok;
        for now in (0..seconds * 1_000).step_by(100) {
            let device = readings.device("gpu.0", DeviceKind::Gpu);
            for (signal, value) in [
                (Signal::Power, watts(now)),
                (Signal::Temperature, celsius(now)),
            ] {
                device
                    .record(signal, Reading::instant(value, now, 100))
                    .expect("plausible");
            }
            watch.look(&mut readings, &recorder);
            let device = readings.devices["gpu.0"].device("gpu.0", now);
            health = device.expect("listed").health;
        }
        let stats = recorder.stats(0);
        let errors = stats.providers.get("sampler").map(|p| p.errors["stuck"]);
        (health, errors.unwrap_or(0))
    }

    fn steps(now: u64) -> f64 {
        if (now / 15_000).is_multiple_of(2) {
            100.0
        } else {
            500.0
        }
    }

    #[test]
    fn a_thermometer_that_ignores_a_changing_load_is_suspect() {
        assert_eq!(health_after(60, steps, |_| 55.0), (Health::Degraded, 1));
    }

    #[test]
    fn one_that_follows_it_is_not_and_recovers_with_its_first_move() {
        let follows = |now: u64| 50.0 + (now / 5_000 % 7) as f64;
        assert_eq!(health_after(60, steps, follows), (Health::Ok, 0));
        let hangs_for_a_while = |now: u64| if now < 55_000 { 55.0 } else { 56.0 };
        assert_eq!(
            health_after(60, steps, hangs_for_a_while),
            (Health::Ok, 1),
            "suspect once, then believed again"
        );
    }

    #[test]
    fn a_steady_load_and_short_bursts_leave_a_thermometer_in_peace() {
        assert_eq!(health_after(300, |_| 300.0, |_| 55.0), (Health::Ok, 0));
        let bursts = |now: u64| {
            if (now / 200).is_multiple_of(2) {
                100.0
            } else {
                500.0
            }
        };
        assert_eq!(health_after(300, bursts, |_| 55.0), (Health::Ok, 0));
    }
}
