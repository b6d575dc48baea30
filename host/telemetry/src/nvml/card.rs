//! One NVIDIA device: what is asked how often, and what the answers mean.
//!
//! Four calls and one batch of fields ten times a second, three calls once a second,
//! thresholds once a minute. Process lists and fan speeds are never asked: they hold the
//! driver's lock for milliseconds. The power used is the instant one (field 186); the
//! classic call answers with an average over a second on most boards, which the sample's
//! window then says.
//!
//! Limits: since the Ada generation a driver states them as *T.Limits*, margins relative to
//! the live margin (0 = may be slowed by software, −2 = is slowed by hardware), and the
//! temperature thresholds are on their way out. Both are understood; where a driver has
//! neither, there is no margin here.

#![allow(
    unsafe_code,
    reason = "two calls that the wrapper lacks or decodes wrongly go through the bindings"
)]

use homeostat_hooks::{DeviceKind, Origin, ThrottleReasons};
use nvml_wrapper::bitmasks::device::ThrottleReasons as Bits;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{nvmlFieldValue_t, nvmlMarginTemperature_t};

use crate::nvml::worker::{Published, Slot};
use crate::reading::{DeviceReadings, Reading, Signal};

const SLOW_TIER_MS: u32 = 1_000;
const STATIC_TIER_MS: u64 = 60_000;

const MEMORY_TEMPERATURE: u32 = 82;
const POWER_AVERAGE: u32 = 185;
const POWER_INSTANT: u32 = 186;
const POWER_LIMIT_ENFORCED: u32 = 190;
const SLOWDOWN_T_LIMIT: u32 = 194;
const OPERATING_T_LIMIT: u32 = 196;

/// Thresholds outside of this are defaults of a driver that has none.
const PLAUSIBLE_THRESHOLD: std::ops::RangeInclusive<u32> = 50..=125;
const PLAUSIBLE_T_LIMIT: std::ops::RangeInclusive<f64> = -40.0..=40.0;

/// Every call, so that one that a board does not support is asked once and not ten times
/// a second.
#[derive(Debug, Clone, Copy)]
enum Call {
    Name,
    MaxClock,
    Fields,
    Limits,
    Threshold,
    Temperature,
    Margin,
    Energy,
    AveragePower,
    Throttle,
    Clock,
    Memory,
    Utilization,
    PowerLimit,
}

/// Where this board begins to slow down.
#[derive(Debug, Default)]
struct Limits {
    /// The live margin at which the first slowdown comes.
    margin_celsius: f64,
    /// The temperature at which it comes, from older drivers.
    threshold_celsius: Option<f64>,
}

pub(super) struct Card<'nvml> {
    /// `None` if not even its handle could be had.
    device: Option<Device<'nvml>>,
    id: String,
    readings: DeviceReadings,
    unsupported: u32,
    lost: bool,
    /// An error after which the whole library must be opened anew.
    fatal: Option<NvmlError>,
    limits: Limits,
    max_clock_mhz: Option<u32>,
    energy_mj: Option<(u64, u64)>,
    slow_due_ms: u64,
    static_due_ms: u64,
}

impl<'nvml> Card<'nvml> {
    pub fn open(slot: &Slot, nvml: &'nvml Nvml, index: u32) -> Self {
        let device = slot.call(|| nvml.device_by_index(index)).ok();
        Self {
            lost: device.is_none(),
            device,
            id: format!("gpu.{index}"),
            readings: DeviceReadings::new(DeviceKind::Gpu),
            unsupported: 0,
            fatal: None,
            limits: Limits::default(),
            max_clock_mhz: None,
            energy_mj: None,
            slow_due_ms: 0,
            static_due_ms: 0,
        }
    }

    pub fn is_lost(&self) -> bool {
        self.lost
    }

    pub fn publish(&self, period_ms: u32) -> Published {
        Published {
            id: self.id.clone(),
            readings: self.readings.clone(),
            lost: self.lost,
            energy_mj: self.energy_mj,
            period_ms,
        }
    }

    /// Asks everything that is due. An error means that the library as a whole is of no
    /// use any more; whatever concerns the board alone stays here.
    pub fn poll(&mut self, slot: &Slot, period_ms: u32) -> Result<(), NvmlError> {
        let now_ms = slot.now_ms();
        if now_ms >= self.static_due_ms {
            self.static_due_ms = now_ms + STATIC_TIER_MS;
            self.static_tier(slot);
        }
        self.fast_tier(slot, period_ms);
        if now_ms >= self.slow_due_ms {
            self.slow_due_ms = now_ms + u64::from(SLOW_TIER_MS);
            self.slow_tier(slot, period_ms);
        }
        self.fatal.take().map_or(Ok(()), Err)
    }

    /// One call; `None` if the board is lost, does not support it or failed.
    fn ask<T>(
        &mut self,
        slot: &Slot,
        call: Call,
        f: impl FnOnce(&Device<'nvml>) -> Result<T, NvmlError>,
    ) -> Option<T> {
        let bit = 1 << call as u32;
        if self.lost || self.fatal.is_some() || self.unsupported & bit != 0 {
            return None;
        }
        let device = self.device.as_ref()?;
        match slot.call(|| f(device)) {
            Ok(value) => return Some(value),
            Err(NvmlError::GpuLost | NvmlError::ResetRequired) => {
                self.lost = true;
                tracing::warn!(device = %self.id, "the GPU is lost");
            }
            Err(
                NvmlError::NotSupported
                | NvmlError::NoPermission
                | NvmlError::FunctionNotFound
                | NvmlError::FailedToLoadSymbol(_),
            ) => self.unsupported |= bit,
            Err(
                error @ (NvmlError::Uninitialized
                | NvmlError::DriverNotLoaded
                | NvmlError::LibRmVersionMismatch),
            ) => self.fatal = Some(error),
            // The next poll may succeed; until then the last value grows old.
            Err(_) => {}
        }
        None
    }

    fn record(&mut self, slot: &Slot, signal: Signal, reading: Reading) {
        if self.readings.record(signal, reading).is_err() {
            slot.recorder.error("nvml", "absurd");
        }
    }

    fn fast_tier(&mut self, slot: &Slot, period_ms: u32) {
        let fields = [POWER_INSTANT, POWER_AVERAGE, MEMORY_TEMPERATURE];
        let fields = self.ask(slot, Call::Fields, |device| field_values(device, fields));
        let [instant, average, memory] = fields.unwrap_or([None; 3]);
        self.power(slot, period_ms, instant, average);
        let now = |value| Reading::instant(value, slot.now_ms(), period_ms);
        if let Some(celsius) = memory.filter(|c| *c != 0.0) {
            // Boards without that sensor answer 0 instead of an error.
            self.record(slot, Signal::MemoryTemperature, now(celsius));
        }
        let celsius = self.ask(slot, Call::Temperature, |device| {
            device.temperature(TemperatureSensor::Gpu)
        });
        if let Some(celsius) = celsius {
            self.record(slot, Signal::Temperature, now(f64::from(celsius)));
        }
        self.margin(slot, period_ms, celsius);
        if let Some(mj) = self.ask(slot, Call::Energy, Device::total_energy_consumption) {
            self.energy_mj = Some((mj, slot.now_ms()));
        }
        if let Some(bits) = self.ask(slot, Call::Throttle, Device::current_throttle_reasons) {
            self.readings.record_throttle(reasons(bits), slot.now_ms());
        }
        let clock = self.ask(slot, Call::Clock, |device| device.clock_info(Clock::SM));
        if let (Some(clock), Some(max)) = (clock, self.max_clock_mhz) {
            // A boosting board may exceed its stated maximum a little.
            let ratio = f64::from(clock) / f64::from(max);
            self.record(
                slot,
                Signal::Clock,
                now(if ratio < 1.2 { ratio.min(1.0) } else { ratio }),
            );
        }
    }

    fn power(&mut self, slot: &Slot, period_ms: u32, instant: Option<f64>, average: Option<f64>) {
        let (milliwatts, window_ms) = match (instant, average) {
            (Some(instant), _) => (instant, 0),
            (None, Some(average)) => (average, 1_000),
            (None, None) => match self.ask(slot, Call::AveragePower, Device::power_usage) {
                Some(average) => (f64::from(average), 1_000),
                None => return,
            },
        };
        let reading = Reading {
            window_ms,
            ..Reading::instant(milliwatts / 1000.0, slot.now_ms(), period_ms)
        };
        self.record(slot, Signal::Power, reading);
    }

    fn margin(&mut self, slot: &Slot, period_ms: u32, celsius: Option<u32>) {
        let live = self.ask(slot, Call::Margin, live_margin);
        let (value, origin) = match (live, celsius, self.limits.threshold_celsius) {
            (Some(live), ..) => (live - self.limits.margin_celsius, Origin::Measured),
            (None, Some(celsius), Some(limit))
                if Signal::Temperature.accepts(f64::from(celsius)) =>
            {
                (limit - f64::from(celsius), Origin::Derived)
            }
            _ => return,
        };
        let reading = Reading {
            origin,
            ..Reading::instant(value, slot.now_ms(), period_ms)
        };
        self.record(slot, Signal::ThermalMargin, reading);
    }

    fn slow_tier(&mut self, slot: &Slot, period_ms: u32) {
        // The tier is only as regular as the polls that it rides on.
        let period_ms = SLOW_TIER_MS.max(period_ms);
        let now = |value| Reading::instant(value, slot.now_ms(), period_ms);
        if let Some(memory) = self.ask(slot, Call::Memory, Device::memory_info) {
            self.record(slot, Signal::MemoryUsed, now(memory.used as f64));
            self.record(slot, Signal::MemoryTotal, now(memory.total as f64));
        }
        if let Some(rates) = self.ask(slot, Call::Utilization, Device::utilization_rates) {
            let busy = Reading {
                window_ms: SLOW_TIER_MS,
                ..now(f64::from(rates.gpu) / 100.0)
            };
            self.record(slot, Signal::Utilization, busy);
        }
        let limit = self.ask(slot, Call::PowerLimit, Device::enforced_power_limit);
        let limit = limit.map(f64::from).or_else(|| {
            let field = |device: &_| field_values(device, [POWER_LIMIT_ENFORCED]);
            self.ask(slot, Call::Fields, field)?[0]
        });
        if let Some(milliwatts) = limit {
            self.record(slot, Signal::PowerLimit, now(milliwatts / 1000.0));
        }
    }

    fn static_tier(&mut self, slot: &Slot) {
        if let Some(name) = self.ask(slot, Call::Name, Device::name) {
            self.readings.model = name;
        }
        let max = self.ask(slot, Call::MaxClock, |device| {
            device.max_clock_info(Clock::SM)
        });
        self.max_clock_mhz = max.filter(|mhz| *mhz > 0);
        let limits = [OPERATING_T_LIMIT, SLOWDOWN_T_LIMIT];
        let limits = self.ask(slot, Call::Limits, |device| field_values(device, limits));
        let first = limits
            .into_iter()
            .flatten()
            .flatten()
            .filter(|t| PLAUSIBLE_T_LIMIT.contains(t))
            .reduce(f64::max);
        self.limits.margin_celsius = first.unwrap_or(0.0);
        let mut threshold = |kind| {
            let celsius = self.ask(slot, Call::Threshold, |d| d.temperature_threshold(kind));
            celsius
                .filter(|c| PLAUSIBLE_THRESHOLD.contains(c))
                .map(f64::from)
        };
        let slowdown = threshold(TemperatureThreshold::Slowdown);
        let operating = threshold(TemperatureThreshold::GpuMax);
        self.limits.threshold_celsius = match (slowdown, operating) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
}

/// Several fields in one call; `None` where the board does not have one. The wrapper's own
/// function cannot be used: it takes a signed 32-bit value, which T.Limits are, for an
/// error.
fn field_values<const N: usize>(
    device: &Device<'_>,
    ids: [u32; N],
) -> Result<[Option<f64>; N], NvmlError> {
    let call = nvml_sym(device.nvml().lib().nvmlDeviceGetFieldValues.as_ref())?;
    let mut values = ids.map(|id| {
        // SAFETY: a plain C structure of integers and a union of numbers, for which all
        // zeroes is a valid value.
        let mut value: nvmlFieldValue_t = unsafe { std::mem::zeroed() };
        value.fieldId = id;
        value
    });
    // SAFETY: the handle belongs to the library that `call` comes from and both are alive;
    // the array has N initialised elements, which the call overwrites.
    nvml_try(unsafe { call(device.handle(), N as i32, values.as_mut_ptr()) })?;
    Ok(values.map(|value| decode(&value)))
}

/// The value of one field after `nvmlValueType_t`.
fn decode(field: &nvmlFieldValue_t) -> Option<f64> {
    if nvml_try(field.nvmlReturn).is_err() {
        return None;
    }
    // SAFETY: every member of the union is a number for which all bit patterns are valid,
    // and the structure was zeroed, so all bytes are initialised.
    unsafe {
        Some(match field.valueType {
            0 => field.value.dVal,
            1 => f64::from(field.value.uiVal),
            2 => field.value.ulVal as f64,
            3 => field.value.ullVal as f64,
            4 => field.value.sllVal as f64,
            5 => f64::from(field.value.siVal),
            6 => f64::from(field.value.usVal),
            _ => return None,
        })
    }
}

/// How far the board is from its operating limit, °C; exists since driver 570.
fn live_margin(device: &Device<'_>) -> Result<f64, NvmlError> {
    let call = nvml_sym(device.nvml().lib().nvmlDeviceGetMarginTemperature.as_ref())?;
    let mut margin = nvmlMarginTemperature_t {
        version: size_of::<nvmlMarginTemperature_t>() as u32 | 1 << 24,
        marginTemperature: 0,
    };
    // SAFETY: the handle belongs to the library that `call` comes from and both are alive;
    // `margin` is writable and states its version as the call demands.
    nvml_try(unsafe { call(device.handle(), &mut margin) })?;
    Ok(f64::from(margin.marginTemperature))
}

fn reasons(bits: Bits) -> ThrottleReasons {
    ThrottleReasons {
        thermal_software: bits.contains(Bits::SW_THERMAL_SLOWDOWN),
        thermal_hardware: bits.contains(Bits::HW_THERMAL_SLOWDOWN),
        power_cap: bits.contains(Bits::SW_POWER_CAP),
        power_brake: bits.contains(Bits::HW_POWER_BRAKE_SLOWDOWN),
        undervoltage: false,
        // HW_SLOWDOWN alone names no reason; idle clocks and user settings are no slowdown.
        other: bits.contains(Bits::HW_SLOWDOWN)
            && !bits.intersects(Bits::HW_THERMAL_SLOWDOWN | Bits::HW_POWER_BRAKE_SLOWDOWN),
    }
}
