//! One number from one sensor, and the notebook in which the sampler keeps the last of
//! each.
//!
//! Every value passes the gate [`Signal::accepts`] before it is written down, so that a
//! broken sensor (NaN, 255 °C, 2³² − 1 mW) becomes a counted error and an absent value,
//! never a number that somebody decides upon. A failed read writes nothing: the last
//! value grows old in place, is *stale* after three of its periods and gone after
//! [`GONE_MS`]. It refuses to replace a missing value by 0 or by the last one with a
//! fresh date.

use std::collections::BTreeMap;

use homeostat_hooks::{
    Device, DeviceKind, Health, Origin, Pressure, Sample, Supply, ThrottleReasons,
};
use serde::{Deserialize, Serialize};

/// After this a value is not shown any more. Heat moves by tens of degrees in 30 s, so
/// anything older says nothing about now.
pub const GONE_MS: u64 = 30_000;

/// A reading is fresh for this many of its periods: one may be late, two are suspicious.
pub const FRESH_PERIODS: u64 = 3;

/// What a reading measures; the unit is the one in the snapshot field's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// Core temperature, °C.
    Temperature,
    /// Memory temperature, °C.
    MemoryTemperature,
    /// Distance to the first slowdown, °C; may be negative.
    ThermalMargin,
    /// Power drawn, W.
    Power,
    /// Power limit in force, W.
    PowerLimit,
    /// Energy since the host started, J.
    Energy,
    /// Busy share, 0 to 1.
    Utilization,
    /// Memory in use, bytes.
    MemoryUsed,
    /// Memory in all, bytes.
    MemoryTotal,
    /// Clock as a share of its maximum, 0 to 1.
    Clock,
}

const SIGNALS: usize = Signal::ALL.len();

impl Signal {
    /// All of them, in the order of their numbers.
    pub const ALL: [Signal; 10] = [
        Signal::Temperature,
        Signal::MemoryTemperature,
        Signal::ThermalMargin,
        Signal::Power,
        Signal::PowerLimit,
        Signal::Energy,
        Signal::Utilization,
        Signal::MemoryUsed,
        Signal::MemoryTotal,
        Signal::Clock,
    ];

    /// Whether a value can be true. The bounds are physical, not typical: a working chip
    /// is above freezing (0 and −1 are what absent sensors answer) and melts before
    /// 150 °C; no single device draws 20 kW; an exbibyte of memory is a misread register.
    pub fn accepts(self, value: f64) -> bool {
        if !value.is_finite() {
            return false;
        }
        match self {
            Signal::Temperature | Signal::MemoryTemperature => value > 0.0 && value < 150.0,
            Signal::ThermalMargin => value > -100.0 && value < 150.0,
            Signal::Power => (0.0..20_000.0).contains(&value),
            Signal::PowerLimit => value > 0.0 && value < 20_000.0,
            Signal::Energy => (0.0..1e15).contains(&value),
            Signal::Utilization | Signal::Clock => (0.0..=1.0).contains(&value),
            Signal::MemoryUsed => (0.0..1e18).contains(&value),
            Signal::MemoryTotal => value > 0.0 && value < 1e18,
        }
    }
}

/// One accepted value with its time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// The value.
    pub value: f64,
    /// Monotonic time of the read.
    pub at_ms: u64,
    /// How often it is read: what counts as stale depends on it.
    pub period_ms: u32,
    /// Time over which the value was averaged; 0 = instant.
    pub window_ms: u32,
    /// Where it comes from.
    pub origin: Origin,
}

impl Reading {
    /// An instant value of a sensor.
    pub fn instant(value: f64, at_ms: u64, period_ms: u32) -> Self {
        Self {
            value,
            at_ms,
            period_ms,
            window_ms: 0,
            origin: Origin::Measured,
        }
    }

    fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.at_ms)
    }

    /// Read within the last three periods.
    pub fn is_fresh(&self, now_ms: u64) -> bool {
        self.age_ms(now_ms) <= FRESH_PERIODS * u64::from(self.period_ms)
    }

    fn sample(&self, now_ms: u64) -> Option<Sample> {
        let age_ms = self.age_ms(now_ms);
        (age_ms <= GONE_MS).then_some(Sample {
            value: self.value,
            age_ms: age_ms as u32,
            window_ms: self.window_ms,
            origin: self.origin,
            relative_error: None,
        })
    }
}

/// A value that cannot be true; it was dropped.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{signal:?} = {value} cannot be true and was dropped; the sensor or its driver is broken")]
pub struct Absurd {
    /// What it claimed to be.
    pub signal: Signal,
    /// What it said.
    pub value: f64,
}

/// Turns a counter that wraps, resets and was not ours from the start into the energy
/// used since the host started. Micro-joules as integers, so that nothing is lost.
#[derive(Debug, Clone, Copy, Default)]
pub struct EnergyMeter {
    last_raw_uj: Option<u64>,
    total_uj: u64,
}

/// What a counter did since it was last read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CounterStep {
    /// Grew, stayed or wrapped by this many µJ.
    Grew(u64),
    /// Began anew (driver reload, device reset): what was used meanwhile is unknown and is
    /// not invented.
    Reset,
}

impl EnergyMeter {
    /// Takes one raw counter value. `wraps_at_uj` is the largest value of a counter that
    /// starts anew at 0 by design; without it a smaller value is a reset.
    pub fn take(&mut self, raw_uj: u64, wraps_at_uj: Option<u64>) -> CounterStep {
        let step = match (self.last_raw_uj, wraps_at_uj) {
            (None, _) => CounterStep::Grew(0),
            (Some(last), _) if raw_uj >= last => CounterStep::Grew(raw_uj - last),
            (Some(last), Some(max)) if last <= max => CounterStep::Grew(max - last + raw_uj + 1),
            (Some(_), _) => CounterStep::Reset,
        };
        self.last_raw_uj = Some(raw_uj);
        if let CounterStep::Grew(uj) = step {
            self.total_uj += uj;
        }
        step
    }

    /// Energy since the first reading, µJ.
    pub fn total_uj(&self) -> u64 {
        self.total_uj
    }

    /// Energy since the first reading, J.
    pub fn joules(&self) -> f64 {
        self.total_uj as f64 / 1e6
    }
}

/// The last readings of one device.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceReadings {
    /// Kind.
    pub kind: DeviceKind,
    /// Model name as the driver tells it; empty where it tells none.
    pub model: String,
    /// The driver or the watchdog says that it does not answer any more.
    pub lost: bool,
    /// Its temperature stands still although it should not.
    pub suspect: bool,
    readings: [Option<Reading>; SIGNALS],
    throttle: Option<(ThrottleReasons, u64)>,
    /// Moves of the energy counter that nobody has collected yet: µs and the sum in µJ.
    energy_moves: Vec<(u64, u64)>,
}

impl DeviceReadings {
    /// A device of which nothing is known yet.
    pub fn new(kind: DeviceKind) -> Self {
        Self {
            kind,
            model: String::new(),
            lost: false,
            suspect: false,
            readings: [None; SIGNALS],
            throttle: None,
            energy_moves: Vec::new(),
        }
    }

    /// Writes one value down, or says why not.
    pub fn record(&mut self, signal: Signal, reading: Reading) -> Result<(), Absurd> {
        if !signal.accepts(reading.value) {
            return Err(Absurd {
                signal,
                value: reading.value,
            });
        }
        self.readings[signal as usize] = Some(reading);
        Ok(())
    }

    /// Writes down why the device is slow now.
    pub fn record_throttle(&mut self, reasons: ThrottleReasons, at_ms: u64) {
        self.throttle = Some((reasons, at_ms));
    }

    /// Writes down that the energy counter moved at that time to that sum, more exactly
    /// than a reading tells; collected with the next tick.
    pub fn record_energy_move(&mut self, at_us: u64, total_uj: u64) {
        self.energy_moves.push((at_us, total_uj));
    }

    pub(crate) fn energy_moves(&self) -> &[(u64, u64)] {
        &self.energy_moves
    }

    pub(crate) fn take_energy_moves(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.energy_moves)
    }

    /// Time since anything was read of this device.
    pub fn silent_ms(&self, now_ms: u64) -> u64 {
        let ages = self.readings.iter().flatten().map(|r| r.age_ms(now_ms));
        ages.min().unwrap_or(u64::MAX)
    }

    /// Takes over what somebody else read of this device; what they did not read stays.
    pub fn adopt(&mut self, newer: &DeviceReadings) {
        for (mine, theirs) in self.readings.iter_mut().zip(newer.readings) {
            *mine = theirs.or(*mine);
        }
        self.throttle = newer.throttle.or(self.throttle);
        if self.model != newer.model && !newer.model.is_empty() {
            self.model.clone_from(&newer.model);
        }
    }

    /// The last value of a signal, however old.
    pub fn last(&self, signal: Signal) -> Option<&Reading> {
        self.readings[signal as usize].as_ref()
    }

    /// All last values.
    pub(crate) fn readings(&self) -> impl Iterator<Item = (Signal, &Reading)> {
        let named = Signal::ALL.into_iter().zip(&self.readings);
        named.filter_map(|(signal, reading)| Some((signal, reading.as_ref()?)))
    }

    /// Why the device is or was slow, and when it said so.
    pub(crate) fn last_throttle(&self) -> Option<(ThrottleReasons, u64)> {
        self.throttle
    }

    /// Why the device is slow, unless that was said too long ago.
    pub fn throttle(&self, now_ms: u64) -> Option<ThrottleReasons> {
        self.throttle
            .filter(|(_, at)| now_ms.saturating_sub(*at) <= GONE_MS)
            .map(|(reasons, _)| reasons)
    }

    /// The device as hooks see it, or `None` while nothing was ever read of it.
    pub fn device(&self, id: &str, now_ms: u64) -> Option<Device> {
        if self.readings.iter().all(Option::is_none) && !self.lost {
            return None;
        }
        let sample = |signal| self.last(signal).and_then(|r| r.sample(now_ms));
        let bytes = |signal| sample(signal).map(|s| s.value as u64);
        Some(Device {
            id: id.to_owned(),
            kind: self.kind,
            model: self.model.clone(),
            health: self.health(now_ms),
            temperature_celsius: sample(Signal::Temperature),
            memory_temperature_celsius: sample(Signal::MemoryTemperature),
            thermal_margin_celsius: sample(Signal::ThermalMargin),
            power_watts: sample(Signal::Power),
            power_limit_watts: sample(Signal::PowerLimit),
            energy_joules: sample(Signal::Energy),
            utilization_ratio: sample(Signal::Utilization),
            memory_used_bytes: bytes(Signal::MemoryUsed),
            memory_total_bytes: bytes(Signal::MemoryTotal),
            clock_ratio: sample(Signal::Clock),
            throttle: self.throttle(now_ms),
            forecast: None,
        })
    }

    fn health(&self, now_ms: u64) -> Health {
        let mut known = self.readings.iter().flatten().peekable();
        if self.lost || known.clone().all(|r| r.age_ms(now_ms) > GONE_MS) {
            return Health::Lost;
        }
        if known.clone().all(|r| !r.is_fresh(now_ms)) {
            return Health::Stale;
        }
        match known.all(|r| r.is_fresh(now_ms)) && !self.suspect {
            true => Health::Ok,
            false => Health::Degraded,
        }
    }
}

/// Memory of the container that the host runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerMemory {
    /// Limit, bytes.
    pub limit_bytes: u64,
    /// Use without what the kernel can drop at once, bytes.
    pub used_bytes: Option<u64>,
}

/// Everything the providers know, between two ticks.
#[derive(Debug, Clone, Default)]
pub struct Readings {
    /// Devices by id.
    pub devices: BTreeMap<String, DeviceReadings>,
    /// Pressure on the whole machine; its provider overwrites all fields at each read,
    /// `None` included.
    pub pressure: Pressure,
    /// The container's memory limit and its use, where there is a limit.
    pub container_memory: Option<ContainerMemory>,
    /// Battery.
    pub supply: Option<Supply>,
    /// Processes that the kernel killed for want of memory, since boot of the container.
    pub oom_kills: Option<u64>,
}

impl Readings {
    /// The device of that id, made on first use.
    pub fn device(&mut self, id: &str, kind: DeviceKind) -> &mut DeviceReadings {
        // Two look-ups, but no allocation in the steady state.
        if !self.devices.contains_key(id) {
            self.devices
                .insert(id.to_owned(), DeviceReadings::new(kind));
        }
        self.devices
            .get_mut(id)
            .expect("inserted above if it was missing")
    }

    /// Pressure as hooks see it: of RAM and the container's limit the smaller counts.
    pub fn pressure(&self, kv_used_ratio: Option<f32>) -> Pressure {
        let mut pressure = self.pressure;
        pressure.kv_used_ratio = kv_used_ratio.filter(|ratio| (0.0..=1.0).contains(ratio));
        if let Some(container) = self.container_memory
            && pressure
                .memory_limit_bytes
                .is_none_or(|ram| container.limit_bytes < ram)
        {
            pressure.memory_limit_bytes = Some(container.limit_bytes);
            pressure.memory_used_bytes = container.used_bytes;
        }
        pressure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu_at(celsius: f64, at_ms: u64) -> DeviceReadings {
        let mut device = DeviceReadings::new(DeviceKind::Gpu);
        device
            .record(Signal::Temperature, Reading::instant(celsius, at_ms, 100))
            .expect("plausible");
        device
    }

    #[test]
    fn values_that_cannot_be_true_are_refused() {
        let mut device = DeviceReadings::new(DeviceKind::Gpu);
        for celsius in [f64::NAN, f64::INFINITY, 0.0, -1.0, 255.0, 4294967295.0] {
            let refused = device.record(Signal::Temperature, Reading::instant(celsius, 0, 100));
            assert!(refused.is_err(), "{celsius} °C was believed");
        }
        let watts = f64::from(u32::MAX) / 1000.0;
        assert!(
            device
                .record(Signal::Power, Reading::instant(watts, 0, 100))
                .is_err()
        );
        assert_eq!(device.device("gpu.0", 0), None, "nothing was recorded");
    }

    #[test]
    fn a_reading_is_fresh_then_stale_then_gone() {
        let device = gpu_at(60.0, 1_000);
        let seen = |now| device.device("gpu.0", now).expect("listed");
        assert_eq!(seen(1_300).health, Health::Ok);
        assert_eq!(seen(1_301).health, Health::Stale);
        let stale = seen(31_000).temperature_celsius.expect("still shown");
        assert_eq!((stale.value, stale.age_ms), (60.0, 30_000));
        let gone = seen(31_001);
        assert_eq!(gone.temperature_celsius, None);
        assert_eq!(gone.health, Health::Lost);
    }

    #[test]
    fn one_old_value_among_fresh_ones_means_degraded() {
        let mut device = gpu_at(60.0, 0);
        device
            .record(Signal::Power, Reading::instant(200.0, 1_000, 100))
            .expect("plausible");
        let seen = device.device("gpu.0", 1_000).expect("listed");
        assert_eq!(seen.health, Health::Degraded);
    }

    #[test]
    fn an_energy_counter_wraps_without_loss_and_resets_without_invention() {
        let mut meter = EnergyMeter::default();
        assert_eq!(meter.take(950, Some(999)), CounterStep::Grew(0));
        assert_eq!(meter.take(990, Some(999)), CounterStep::Grew(40));
        assert_eq!(meter.take(10, Some(999)), CounterStep::Grew(20));
        assert_eq!(meter.total_uj(), 60);
        let mut meter = EnergyMeter::default();
        meter.take(5_000, None);
        meter.take(7_000, None);
        assert_eq!(meter.take(100, None), CounterStep::Reset);
        assert_eq!(meter.take(400, None), CounterStep::Grew(300));
        assert_eq!(meter.total_uj(), 2_300);
    }
}
