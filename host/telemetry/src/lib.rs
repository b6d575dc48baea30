//! The host's senses: sensors, one immutable snapshot, the metabolic state.
//!
//! A thread samples every 100 ms and publishes a [`Snapshot`]; whoever serves a request
//! takes the newest with one pointer load and keeps it for the whole request. Vendor
//! libraries that may hang get threads of their own behind a watchdog, so neither the
//! sampler nor a request ever waits for a driver.
//!
//! The room refuses three things: to decide (it says how the machine feels, a policy says
//! what follows), to block the path of a request, and to write a number where it has none.
//! Absent is `None`: a machine without a thermometer is not a cold machine.
//!
//! ```no_run
//! use homeostat_telemetry::{Config, Telemetry};
//!
//! let telemetry = Telemetry::start(Config::default());
//! let snapshot = telemetry.snapshot();
//! println!("{:?} because {:?}", snapshot.metabolism.state, snapshot.metabolism.causes);
//! telemetry.shutdown();
//! ```

#[cfg(any(test, all(target_os = "macos", target_arch = "aarch64")))]
mod apple;
mod battery;
mod cgroup;
mod config;
mod energy;
mod external;
pub mod filter;
#[cfg(test)]
mod fixture;
pub mod forecast;
mod gpu_metrics;
mod hwmon;
mod least_squares;
pub mod ledger;
pub mod metabolism;
mod nvml;
mod pace;
pub mod plant;
mod power_plan;
mod proc;
mod processor_time;
mod rapl;
mod reading;
mod sampler;
mod stats;
mod stuck;
mod sysfs;
mod telemetry;
mod thermal_zone;
mod trace;

pub use config::{Config, NvmlLibrary};
pub use energy::EnergyMove;
pub use external::{ExternalReading, Refused};
pub use homeostat_hooks::Snapshot;
pub use metabolism::{Ladder, Thresholds};
pub use nvml::{CALL_LIMIT_MS, CallReport, ChangeReport, MAX_ABANDONED, probe_nvml};
pub use power_plan::{HOURS, PowerPlan, hour_of_day};
pub use processor_time::{ProcessorClock, ProcessorTime};
pub use reading::{Absurd, CounterStep, DeviceReadings, EnergyMeter, Reading, Readings, Signal};
pub use sampler::{Inputs, Provider, Sampler, Tick};
pub use stats::{CallStats, DeviceStats, ProviderStats, Recorder, Stats};
pub use telemetry::Telemetry;
pub use trace::{
    Replay, TRACE_FORMAT, Trace, TraceCall, TraceDevice, TraceError, TraceHeader, TraceHost,
    TraceTick, TraceWriter,
};
