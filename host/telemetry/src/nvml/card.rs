//! One NVIDIA device: what is asked how often, and what the answers mean.
//!
//! Three calls and one batch of fields ten times a second, four calls once a second, what is
//! dear every few seconds ([`Due`]), thresholds once a minute; the energy counter as often
//! as it moves. Process lists and fan speeds are never asked: they hold the driver's lock for
//! milliseconds, and so does the live margin on some boards: between two answers it follows
//! from the temperature, which is cheap, and says that it is derived. The power used is the
//! instant one (field 186) of the GPU, or of the whole module where the GPU alone is not
//! told; the classic call answers with an average over a second on most boards, which the
//! sample's window then says.
//!
//! Limits: since the Ada generation a driver states them as *T.Limits*, margins relative to
//! the live margin (0 = may be slowed by software, −2 = is slowed by hardware), and the
//! temperature thresholds are on their way out. Both are understood; where a driver has
//! neither, there is no margin here.
//!
//! Why clocks are low is told twice: by bits that say it of this moment, and by counters of
//! the time since the driver was loaded. A slowdown between two looks at the bits still
//! moves a counter, so both count.

use std::time::{Duration, Instant};

use homeostat_hooks::{DeviceKind, Origin, ThrottleReasons};
use nvml_wrapper::bitmasks::device::ThrottleReasons as Bits;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use serde::Serialize;

use crate::nvml::calls::{self, Call, Field, FieldAnswer, Scope, value_of};
use crate::nvml::counter::CounterWatch;
use crate::nvml::tiers::{Due, MARGIN_MS, SLOW_MS, VIOLATIONS_MS};
use crate::nvml::worker::{Published, Slot};
use crate::reading::{DeviceReadings, Reading, Signal};

const MEMORY_TEMPERATURE: Field = Field::new(82);
const POWER_AVERAGE: Field = Field::new(185);
const POWER_INSTANT: Field = Field::new(186);
const MODULE_POWER: Field = Field::of(186, Scope::Module);
const MEMORY_POWER: Field = Field::of(186, Scope::Memory);
const POWER_LIMIT_ENFORCED: Field = Field::new(190);
const SHUTDOWN_T_LIMIT: Field = Field::new(193);
const SLOWDOWN_T_LIMIT: Field = Field::new(194);
const MEMORY_T_LIMIT: Field = Field::new(195);
const OPERATING_T_LIMIT: Field = Field::new(196);

/// Asked ten times a second, as far as the board has them.
const FAST_FIELDS: [Field; 5] = [
    POWER_INSTANT,
    POWER_AVERAGE,
    MODULE_POWER,
    MEMORY_POWER,
    MEMORY_TEMPERATURE,
];

/// A counter of the time that one reason held the clocks down, ns.
#[derive(Debug)]
struct Violation {
    field: Field,
    reason: Reason,
    total_ns: Option<f64>,
}

#[derive(Debug, Clone, Copy)]
enum Reason {
    PowerCap,
    BoardLimit,
    Reliability,
    ThermalSoftware,
    ThermalHardware,
    PowerBrake,
}

/// A reason that held the clocks down for less than this share of the time since the last
/// look is noise at the edge of a limit.
const VIOLATED_RATIO: f64 = 0.001;

/// How long a slowdown that only a counter told of counts after the counter was read: a little
/// longer than it usually takes to the next look.
const HELD_DOWN_MS: u64 = VIOLATIONS_MS as u64 + 1_000;

fn violations(driver: &str) -> Vec<Violation> {
    // Drivers from 580.82 on give the newer counters other numbers.
    let newer = if renumbers(driver) { 269 } else { 251 };
    [
        (74, Reason::PowerCap),
        (77, Reason::BoardLimit),
        (79, Reason::Reliability),
        (newer, Reason::ThermalSoftware),
        (newer + 1, Reason::ThermalHardware),
        (newer + 2, Reason::PowerBrake),
    ]
    .map(|(id, reason)| Violation {
        field: Field::new(id),
        reason,
        total_ns: None,
    })
    .into()
}

fn renumbers(driver: &str) -> bool {
    let mut parts = driver.split('.').map_while(|part| part.parse::<u32>().ok());
    match (parts.next(), parts.next()) {
        (Some(major), minor) => (major, minor.unwrap_or(0)) >= (580, 82),
        _ => false,
    }
}

/// Thresholds outside of this are defaults of a driver that has none.
const PLAUSIBLE_THRESHOLD: std::ops::RangeInclusive<u32> = 50..=125;
const PLAUSIBLE_T_LIMIT: std::ops::RangeInclusive<f64> = -40.0..=40.0;

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
    absent_fields: Vec<Field>,
    lost: bool,
    /// An error after which the whole library must be opened anew.
    fatal: Option<NvmlError>,
    limits: Limits,
    /// The live margin as it was told last, and the temperature then.
    live: Option<(f64, f64)>,
    /// The last question for the live margin had no answer.
    margin_failed: bool,
    max_clock_mhz: Option<u32>,
    /// The GPU's own power is told; that of its module is not asked for.
    has_instant_power: bool,
    energy_mj: Option<(u64, u64)>,
    counter: CounterWatch,
    violations: Vec<Violation>,
    violations_ms: Option<u64>,
    /// Reasons whose counters moved between the last two looks, until when they count.
    held_down: (ThrottleReasons, u64),
    /// What the dear questions of this poll took.
    dear: Duration,
}

impl<'nvml> Card<'nvml> {
    /// Opens the board with this index among `count`.
    pub fn open(slot: &Slot, nvml: &'nvml Nvml, index: u32, count: u32, driver: &str) -> Self {
        let id = format!("gpu.{index}");
        // The handle is a pointer, which says nothing to anybody.
        let mut device = None;
        let opened = slot.call(&id, "device_handle", || {
            device = Some(nvml.device_by_index(index)?);
            Ok(())
        });
        Self {
            lost: opened.is_err(),
            device,
            id,
            readings: DeviceReadings::new(DeviceKind::Gpu),
            unsupported: 0,
            absent_fields: Vec::new(),
            fatal: None,
            limits: Limits::default(),
            live: None,
            margin_failed: false,
            max_clock_mhz: None,
            has_instant_power: false,
            energy_mj: None,
            counter: CounterWatch::among(count),
            violations: violations(driver),
            violations_ms: None,
            held_down: (ThrottleReasons::default(), 0),
            dear: Duration::ZERO,
        }
    }

    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// The GPU does nothing, as far as it tells.
    pub fn is_idle(&self) -> bool {
        let busy = self.readings.last(Signal::Utilization);
        busy.is_none_or(|reading| reading.value == 0.0)
    }

    pub fn publish(&self, period_ms: u32) -> Published {
        Published {
            id: self.id.clone(),
            readings: self.readings.clone(),
            lost: self.lost,
            energy_mj: self.energy_mj,
            energy_moves: self.counter.moves(),
            energy_period_ms: period_ms.max(self.counter.step_ms()),
        }
    }

    /// Asks everything that is due, and tells what the dear questions of it took. An error
    /// means that the library as a whole is of no use any more; whatever concerns the board
    /// alone stays here.
    pub fn poll(&mut self, slot: &Slot, period_ms: u32, due: Due) -> Result<Duration, NvmlError> {
        self.dear = Duration::ZERO;
        if due.unchanging {
            self.static_tier(slot);
        }
        self.fast_tier(slot, period_ms, due.margin);
        if due.slow {
            self.slow_tier(slot, period_ms);
        }
        if due.violations {
            self.violations(slot);
        }
        self.fatal.take().map_or(Ok(self.dear), Err)
    }

    /// When the energy counter should be asked between two polls.
    pub fn energy_due_us(&self) -> u64 {
        match self.lost || self.fatal.is_some() || !self.supports(Call::Energy) {
            true => u64::MAX,
            false => self.counter.due_us(),
        }
    }

    /// Asks the energy counter.
    pub fn sample_energy(&mut self, slot: &Slot) {
        let started = Instant::now();
        let answer = self.ask(slot, Call::Energy, Device::total_energy_consumption);
        match answer {
            Some(mj) => {
                self.energy_mj = Some((mj, slot.now_ms()));
                self.counter.take(mj, slot.now_us(), started.elapsed());
            }
            None => self.counter.postpone(slot.now_us()),
        }
    }

    fn supports(&self, call: Call) -> bool {
        self.unsupported & (1 << call as u32) == 0
    }

    /// One call; `None` if the board is lost, does not support it or failed.
    fn ask<T: Serialize>(
        &mut self,
        slot: &Slot,
        call: Call,
        f: impl FnOnce(&Device<'nvml>) -> Result<T, NvmlError>,
    ) -> Option<T> {
        if self.lost || self.fatal.is_some() || !self.supports(call) {
            return None;
        }
        let device = self.device.as_ref()?;
        let started = Instant::now();
        let answer = slot.call(&self.id, call.name(), || f(device));
        if matches!(call, Call::Margin | Call::Violations) {
            self.dear += started.elapsed();
        }
        match answer {
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
            ) => self.unsupported |= 1 << call as u32,
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

    /// A batch of fields, without those that the board does not have.
    fn ask_fields(&mut self, slot: &Slot, call: Call, fields: &[Field]) -> Vec<FieldAnswer> {
        let absent = |field: &Field| self.absent_fields.contains(field);
        let present: Vec<Field> = fields.iter().copied().filter(|f| !absent(f)).collect();
        if present.is_empty() {
            return Vec::new();
        }
        let answers = self.ask(slot, call, |device| calls::fields(device, &present));
        let answers = answers.unwrap_or_default();
        let unsupported = answers.iter().filter(|answer| answer.is_unsupported());
        self.absent_fields.extend(unsupported.map(|a| a.field));
        answers
    }

    fn record(&mut self, slot: &Slot, signal: Signal, reading: Reading) {
        if self.readings.record(signal, reading).is_err() {
            slot.recorder.error("nvml", "absurd");
        }
    }

    /// Writes down what no policy sees.
    fn note(&self, slot: &Slot, name: &'static str, value: f64) {
        slot.recorder.device(&self.id, |stats| {
            stats.values.insert(name, value);
        });
    }

    fn fast_tier(&mut self, slot: &Slot, period_ms: u32, margin_due: bool) {
        let fields = FAST_FIELDS
            .into_iter()
            .filter(|field| *field != MODULE_POWER || !self.has_instant_power);
        let fields: Vec<Field> = fields.collect();
        let fields = self.ask_fields(slot, Call::FastFields, &fields);
        self.power(slot, period_ms, &fields);
        let now = |value| Reading::instant(value, slot.now_ms(), period_ms);
        if let Some(celsius) = value_of(&fields, MEMORY_TEMPERATURE).filter(|c| *c != 0.0) {
            // Boards without that sensor answer 0 instead of an error.
            self.record(slot, Signal::MemoryTemperature, now(celsius));
        }
        let celsius = self.ask(slot, Call::Temperature, calls::temperature);
        if let Some(celsius) = celsius {
            self.record(slot, Signal::Temperature, now(f64::from(celsius)));
        }
        self.margin(slot, period_ms, celsius, margin_due);
        if self.energy_mj.is_none() {
            // From its first answer on the counter is asked on its own schedule.
            self.sample_energy(slot);
        }
        if let Some(bits) = self.ask(slot, Call::Throttle, calls::clock_event_reasons) {
            let (held_down, until_ms) = self.held_down;
            let all = match slot.now_ms() < until_ms {
                true => either(reasons(bits), held_down),
                false => reasons(bits),
            };
            self.readings.record_throttle(all, slot.now_ms());
        }
        let clock = self.ask(slot, Call::Clock, calls::clock);
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

    fn power(&mut self, slot: &Slot, period_ms: u32, fields: &[FieldAnswer]) {
        let value = |field| value_of(fields, field);
        self.has_instant_power |= value(POWER_INSTANT).is_some();
        for (field, name) in [
            (MEMORY_POWER, "memory_power_watts"),
            (MODULE_POWER, "module_power_watts"),
        ] {
            // Boards without such a sensor answer 0 instead of an error.
            if let Some(milliwatts) = value(field).filter(|mw| *mw > 0.0) {
                self.note(slot, name, milliwatts / 1000.0);
            }
        }
        let instant = value(POWER_INSTANT).or_else(|| value(MODULE_POWER));
        let (milliwatts, window_ms) = match (instant, value(POWER_AVERAGE)) {
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

    /// The live margin if it is time to ask for it; otherwise the last one less what the board
    /// has warmed since. Without any, from the thresholds.
    fn margin(&mut self, slot: &Slot, period_ms: u32, celsius: Option<u32>, due: bool) {
        let celsius = celsius.map(f64::from);
        let celsius = celsius.filter(|c| Signal::Temperature.accepts(*c));
        let told = match due {
            true => self.ask(slot, Call::Margin, calls::margin).map(f64::from),
            false => None,
        };
        if let Some(told) = told {
            let believed = Some(told).filter(|margin| Signal::ThermalMargin.accepts(*margin));
            // A thermometer that failed just now was about as warm when it was read last.
            let last = self.readings.last(Signal::Temperature);
            let then = celsius.or(last.map(|reading| reading.value));
            self.live = believed.zip(then);
            self.margin_failed = false;
        } else if due && std::mem::replace(&mut self.margin_failed, true) {
            // One failure is forgiven: until the next question the last answer is good enough.
            self.live = None;
        }
        let (value, origin) = match (told, celsius, self.live, self.limits.threshold_celsius) {
            (Some(told), ..) => (told - self.limits.margin_celsius, Origin::Measured),
            (None, Some(celsius), Some((live, then)), _) => {
                let live = live - (celsius - then);
                (live - self.limits.margin_celsius, Origin::Derived)
            }
            (None, Some(celsius), None, Some(limit)) => (limit - celsius, Origin::Derived),
            _ => return,
        };
        // Where no temperature is told, nothing follows before the next question.
        let period_ms = match celsius {
            Some(_) => period_ms,
            None => period_ms.max(MARGIN_MS),
        };
        let reading = Reading {
            origin,
            ..Reading::instant(value, slot.now_ms(), period_ms)
        };
        self.record(slot, Signal::ThermalMargin, reading);
    }

    fn slow_tier(&mut self, slot: &Slot, period_ms: u32) {
        // The tier is only as regular as the polls that it rides on.
        let period_ms = SLOW_MS.max(period_ms);
        let now = |value| Reading::instant(value, slot.now_ms(), period_ms);
        if let Some(memory) = self.ask(slot, Call::Memory, calls::memory) {
            self.record(slot, Signal::MemoryUsed, now(memory.used as f64));
            self.record(slot, Signal::MemoryTotal, now(memory.total as f64));
        }
        if let Some(rates) = self.ask(slot, Call::Utilization, calls::utilization) {
            let busy = Reading {
                window_ms: SLOW_MS,
                ..now(f64::from(rates.gpu) / 100.0)
            };
            self.record(slot, Signal::Utilization, busy);
        }
        let limit = self.ask(slot, Call::PowerLimit, Device::enforced_power_limit);
        let limit = limit.map(f64::from).or_else(|| {
            let answers = self.ask_fields(slot, Call::LimitField, &[POWER_LIMIT_ENFORCED]);
            value_of(&answers, POWER_LIMIT_ENFORCED)
        });
        if let Some(milliwatts) = limit {
            self.record(slot, Signal::PowerLimit, now(milliwatts / 1000.0));
        }
        self.ask(slot, Call::PerformanceState, calls::performance_state);
        if let Some(period_us) = self.counter.period_us() {
            let seconds = period_us as f64 / 1e6;
            self.note(slot, "energy_counter_period_seconds", seconds);
        }
    }

    /// What the counters say of the time since the last look.
    fn violations(&mut self, slot: &Slot) {
        let fields: Vec<Field> = self.violations.iter().map(|v| v.field).collect();
        let answers = self.ask_fields(slot, Call::Violations, &fields);
        let now_ms = slot.now_ms();
        let since = self.violations_ms.replace(now_ms);
        let elapsed_ns = now_ms.saturating_sub(since.unwrap_or(now_ms)) as f64 * 1e6;
        let mut held_down = ThrottleReasons::default();
        for violation in &mut self.violations {
            let Some(total_ns) = value_of(&answers, violation.field) else {
                continue;
            };
            let reason = violation.reason.name();
            slot.recorder.device(&self.id, |stats| {
                stats.throttled_seconds.insert(reason, total_ns / 1e9);
            });
            let before = violation.total_ns.replace(total_ns);
            let grown_ns = before.map_or(0.0, |before| total_ns - before);
            if grown_ns > elapsed_ns * VIOLATED_RATIO {
                violation.reason.raise(&mut held_down);
            }
        }
        self.held_down = (held_down, now_ms + HELD_DOWN_MS);
    }

    fn static_tier(&mut self, slot: &Slot) {
        if let Some(name) = self.ask(slot, Call::Name, Device::name) {
            self.readings.model = name;
        }
        if self.max_clock_mhz.is_none() {
            // Once: it takes up to 18 ms.
            let max = self.ask(slot, Call::MaxClock, calls::max_clock);
            self.max_clock_mhz = max.filter(|mhz| *mhz > 0);
        }
        // Only for traces: what the operator may choose decides nothing here.
        self.ask(slot, Call::PowerLimits, calls::power_limits);
        let limits = [
            OPERATING_T_LIMIT,
            SLOWDOWN_T_LIMIT,
            MEMORY_T_LIMIT,
            SHUTDOWN_T_LIMIT,
        ];
        let limits = self.ask_fields(slot, Call::Limits, &limits);
        let first = limits
            .iter()
            .filter(|answer| answer.field != SHUTDOWN_T_LIMIT)
            .filter_map(|answer| answer.value)
            .filter(|t| PLAUSIBLE_T_LIMIT.contains(t))
            .reduce(f64::max);
        self.limits.margin_celsius = first.unwrap_or(0.0);
        let plausible = |celsius: Option<u32>| {
            let celsius = celsius.filter(|c| PLAUSIBLE_THRESHOLD.contains(c));
            celsius.map(f64::from)
        };
        let slowdown = self.ask(slot, Call::SlowdownThreshold, calls::slowdown_threshold);
        let operating = self.ask(slot, Call::OperatingThreshold, calls::operating_threshold);
        self.limits.threshold_celsius = match (plausible(slowdown), plausible(operating)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
}

impl Reason {
    /// Name in metrics.
    fn name(self) -> &'static str {
        match self {
            Reason::PowerCap => "power_cap",
            Reason::BoardLimit => "board_limit",
            Reason::Reliability => "reliability",
            Reason::ThermalSoftware => "thermal_software",
            Reason::ThermalHardware => "thermal_hardware",
            Reason::PowerBrake => "power_brake",
        }
    }

    fn raise(self, reasons: &mut ThrottleReasons) {
        let bit = match self {
            Reason::PowerCap => &mut reasons.power_cap,
            Reason::ThermalSoftware => &mut reasons.thermal_software,
            Reason::ThermalHardware => &mut reasons.thermal_hardware,
            Reason::PowerBrake => &mut reasons.power_brake,
            Reason::BoardLimit | Reason::Reliability => &mut reasons.other,
        };
        *bit = true;
    }
}

fn either(a: ThrottleReasons, b: ThrottleReasons) -> ThrottleReasons {
    ThrottleReasons {
        thermal_software: a.thermal_software || b.thermal_software,
        thermal_hardware: a.thermal_hardware || b.thermal_hardware,
        power_cap: a.power_cap || b.power_cap,
        power_brake: a.power_brake || b.power_brake,
        undervoltage: a.undervoltage || b.undervoltage,
        other: a.other || b.other,
    }
}

fn reasons(bits: u64) -> ThrottleReasons {
    let bits = Bits::from_bits_truncate(bits);
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
