//! What the host knows about the machine at one moment.
//!
//! Absent is `None`, never 0: a machine without a thermometer is not a cold machine.

use serde::{Deserialize, Serialize};

use crate::request::Attribute;

/// Where a number comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Read from a sensor or a counter.
    #[default]
    Measured,
    /// Computed from measured values.
    Derived,
    /// From a model, because no sensor exists.
    Modelled,
    /// From a simulated machine.
    Simulated,
}

/// One reading with its provenance.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// The value, in the unit that the field's name states; always finite.
    pub value: f64,
    /// Age when the snapshot was taken.
    pub age_ms: u32,
    /// Time over which the value was averaged; 0 = instant.
    pub window_ms: u32,
    /// Where it comes from.
    pub origin: Origin,
    /// Relative standard error where known.
    pub relative_error: Option<f32>,
}

impl Sample {
    /// An instant reading of a sensor, of age 0.
    pub fn measured(value: f64) -> Self {
        Self {
            value,
            ..Self::default()
        }
    }
}

/// What kind of device a reading belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// Graphics processor.
    Gpu,
    /// Central processor.
    Cpu,
    /// CPU and GPU on one power budget.
    Soc,
    /// Neural accelerator.
    Npu,
    /// The whole machine.
    #[default]
    Host,
    /// Outside the machine.
    External,
}

/// Whether a device's readings can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// All readings fresh.
    #[default]
    Ok,
    /// Some reading failed.
    Degraded,
    /// No fresh reading for more than three periods.
    Stale,
    /// The device does not answer any more.
    Lost,
}

/// Why a device runs slower than it could.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ThrottleReasons {
    /// Software slows it down to keep it cool.
    pub thermal_software: bool,
    /// Hardware slows it down because it is too hot.
    pub thermal_hardware: bool,
    /// A power limit is reached.
    pub power_cap: bool,
    /// An external power brake is on.
    pub power_brake: bool,
    /// The supply voltage is too low.
    pub undervoltage: bool,
    /// None of the above.
    pub other: bool,
}

/// What the host expects of a device's temperature.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Forecast {
    /// How far ahead.
    pub horizon_ms: u32,
    /// Expected distance to the first slowdown; may be negative.
    pub margin_celsius: f32,
    /// When the slowdown is expected, if within 300 s.
    pub time_to_throttle_ms: Option<u32>,
    /// Root mean square error of this forecast so far.
    pub rmse_celsius: f32,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Stable id such as `gpu.0`.
    pub id: String,
    /// Kind.
    pub kind: DeviceKind,
    /// Model name as the driver tells it.
    pub model: String,
    /// Trust.
    pub health: Health,
    /// Core temperature.
    pub temperature_celsius: Option<Sample>,
    /// Memory temperature.
    pub memory_temperature_celsius: Option<Sample>,
    /// Distance to the first slowdown; may be negative.
    pub thermal_margin_celsius: Option<Sample>,
    /// Power drawn.
    pub power_watts: Option<Sample>,
    /// Power limit in force.
    pub power_limit_watts: Option<Sample>,
    /// Energy since the host started.
    pub energy_joules: Option<Sample>,
    /// Busy share, 0 to 1.
    pub utilization_ratio: Option<Sample>,
    /// Memory in use.
    pub memory_used_bytes: Option<u64>,
    /// Memory in all.
    pub memory_total_bytes: Option<u64>,
    /// Clock as a share of its maximum, 0 to 1.
    pub clock_ratio: Option<Sample>,
    /// Why it is slow now; `None` = it cannot tell.
    pub throttle: Option<ThrottleReasons>,
    /// What is expected; `None` until enough was learned.
    pub forecast: Option<Forecast>,
}

/// Pressure on shared resources.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pressure {
    /// Share of the last second in which some task waited for CPU.
    pub cpu_some_ratio: Option<f32>,
    /// The same for memory.
    pub memory_some_ratio: Option<f32>,
    /// Share in which all tasks waited for memory.
    pub memory_full_ratio: Option<f32>,
    /// Share in which some task waited for IO.
    pub io_some_ratio: Option<f32>,
    /// Memory in use by this machine or container.
    pub memory_used_bytes: Option<u64>,
    /// The smaller of RAM and the container's limit.
    pub memory_limit_bytes: Option<u64>,
    /// Swap in use.
    pub swap_used_bytes: Option<u64>,
    /// Occupied share of the KV cache over all local tiers, 0 to 1.
    pub kv_used_ratio: Option<f32>,
}

/// Where the electricity comes from.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Supply {
    /// Running on battery.
    pub on_battery: bool,
    /// Charge, 0 to 1.
    pub charge_ratio: Option<f32>,
    /// Power drawn from the battery.
    pub drain_watts: Option<f32>,
    /// Time left at this drain.
    pub time_left_s: Option<u32>,
}

/// What a budget counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BudgetUnit {
    /// Energy.
    #[default]
    Joules,
    /// Power.
    Watts,
    /// Money.
    Usd,
    /// Carbon dioxide.
    GramsCo2,
    /// Generated tokens.
    Tokens,
}

/// One budget that concerns this request.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Budget {
    /// `host`, or the tenant it belongs to.
    pub scope: String,
    /// What it counts.
    pub unit: BudgetUnit,
    /// The limit of the present window.
    pub limit: f64,
    /// What is used of it.
    pub used: f64,
    /// Time until the window starts anew.
    pub window_left_s: Option<u32>,
}

/// How the machine feels.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum MetabolicState {
    /// Plenty of everything.
    #[default]
    Nominal,
    /// Something begins to run short.
    Elevated,
    /// Save.
    Constrained,
    /// Only what is indispensable.
    Critical,
}

/// Why the state is not nominal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Causes {
    /// Heat.
    pub thermal: bool,
    /// Power near its limit.
    pub power: bool,
    /// A budget runs out.
    pub budget: bool,
    /// Battery.
    pub battery: bool,
    /// Memory.
    pub memory: bool,
    /// A sensor is lost: the host does not know.
    pub sensor: bool,
}

/// Whether the host finds speculation worth its energy now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpeculationHint {
    /// There is headroom.
    Prefer,
    /// No opinion.
    #[default]
    Neutral,
    /// Extra work would hurt.
    Avoid,
}

/// The metabolic state with its reasons.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Metabolism {
    /// State, with hysteresis.
    pub state: MetabolicState,
    /// All causes that hold.
    pub causes: Causes,
    /// Risk of slowdown, 0 to 1.
    pub risk: f32,
    /// Share of traffic that should move to smaller tiers, 0 to 1.
    pub degrade_ratio: f32,
    /// Speculation.
    pub speculation: SpeculationHint,
    /// How long the state holds.
    pub since_ms: u64,
}

/// Which kind of machine the operator says this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Quality first.
    Datacenter,
    /// Balanced.
    #[default]
    Edge,
    /// Efficiency first.
    Mcu,
}

/// Everything the host knows about the machine at one moment. Immutable; all hooks of
/// one request see the same one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// Grows by one with every sampling.
    pub sequence: u64,
    /// Monotonic time of the sampling since the host started.
    pub monotonic_ms: u64,
    /// Profile.
    pub profile: Profile,
    /// Devices; empty where no sensor exists.
    pub devices: Vec<Device>,
    /// Pressure.
    pub pressure: Pressure,
    /// Battery; `None` where there is none.
    pub supply: Option<Supply>,
    /// Budgets that concern this request.
    pub budgets: Vec<Budget>,
    /// State.
    pub metabolism: Metabolism,
    /// True when any value comes from a simulated machine.
    pub simulated: bool,
    /// Extensions.
    pub attributes: Vec<Attribute>,
}
