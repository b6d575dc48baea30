//! One tick: ask every provider, complete what follows from the readings, judge the state,
//! and put it all into one immutable snapshot.
//!
//! Time comes in as an argument, so an hour of sampling can be tested in a second. The
//! sampler refuses to decide anything beyond the metabolic state: which tier answers is a
//! policy's business.

use std::collections::BTreeMap;
use std::time::Instant;

use homeostat_hooks::{Budget, Device, Origin, Snapshot};

use crate::battery::Battery;
use crate::cgroup::Cgroup;
use crate::config::Config;
use crate::energy::{EnergyMove, EnergyMoves};
use crate::forecast::{Forecasters, Outlook};
use crate::hwmon::Hwmon;
use crate::metabolism::{Shares, StateMachine, Vitals};
use crate::pace::Pace;
use crate::proc::Proc;
use crate::rapl::Rapl;
use crate::reading::{Reading, Readings, Signal};
use crate::stats::Recorder;
use crate::stuck::StuckWatch;
use crate::thermal_zone::ThermalZone;

/// What a provider gets at a tick.
pub struct Tick<'a> {
    /// Monotonic time.
    pub now_ms: u64,
    /// Time until this provider is asked again.
    pub period_ms: u32,
    /// Where to write.
    pub readings: &'a mut Readings,
    /// Where to count errors.
    pub recorder: &'a Recorder,
}

/// A source of readings. It must not block: what may block (a vendor's library) gets a
/// thread of its own and is read from its last answer.
pub trait Provider: Send {
    /// Name in metrics and logs.
    fn name(&self) -> &'static str;

    /// How often it wants to be asked, given the sampling period; asked too expensively it
    /// is asked less often.
    fn period_ms(&self, base_ms: u32) -> u32 {
        base_ms
    }

    /// Whether it is asked less often when asking is expensive. Sources that are no sensor
    /// (a recording, a simulated machine) are asked at every tick, so that a slow computer
    /// does not change what comes out.
    fn is_paced(&self) -> bool {
        true
    }

    /// Reads once. Returns whether it had anything to read; a provider without its sensor
    /// answers `false`, which is no error.
    fn read(&mut self, tick: &mut Tick<'_>) -> bool;
}

/// What others tell the sampler between ticks.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Occupied share of the KV cache.
    pub kv_used_ratio: Option<f32>,
    /// Budgets.
    pub budgets: Vec<Budget>,
    /// Power that each device is about to draw, W: means over the coming seconds, the last
    /// one for all that follow. A device that is missing goes on as it is.
    pub planned_watts: BTreeMap<String, Vec<f64>>,
}

/// Everything between the sensors and the snapshot, without a thread or a clock.
pub struct Sampler {
    config: Config,
    providers: Vec<(Box<dyn Provider>, Pace)>,
    readings: Readings,
    energy: EnergyMoves,
    stuck: StuckWatch,
    forecasters: Forecasters,
    looks_ahead: bool,
    machine: StateMachine,
    recorder: Recorder,
    sequence: u64,
}

impl Sampler {
    /// A sampler over the given providers; later ones win where two write the same field.
    pub fn new(config: Config, providers: Vec<Box<dyn Provider>>, recorder: Recorder) -> Self {
        let base_ms = config.base_period_ms();
        let pace = |provider: Box<dyn Provider>| {
            let pace = Pace::new(provider.period_ms(base_ms));
            (provider, pace)
        };
        Self {
            machine: StateMachine::new(config.thresholds.clone(), config.profile),
            providers: providers.into_iter().map(pace).collect(),
            readings: Readings::default(),
            energy: EnergyMoves::default(),
            stuck: StuckWatch::default(),
            forecasters: Forecasters::new(config.profile),
            looks_ahead: true,
            recorder,
            sequence: 0,
            config,
        }
    }

    /// The same without a forecast: what it is worth is measured by leaving it out.
    pub fn without_forecast(self) -> Self {
        Self {
            looks_ahead: false,
            ..self
        }
    }

    /// The providers that read files of the kernel, in the order in which they write.
    pub fn file_providers(config: &Config) -> Vec<Box<dyn Provider>> {
        let (sysfs, procfs) = (&config.sysfs_root, &config.procfs_root);
        vec![
            Box::new(Proc::new(procfs)),
            Box::new(Cgroup::new(sysfs, procfs)),
            Box::new(Hwmon::new(sysfs)),
            Box::new(ThermalZone::new(sysfs)),
            Box::new(Rapl::new(sysfs)),
            Box::new(Battery::new(sysfs)),
        ]
    }

    /// Readings by the hand of whoever pushed them; see
    /// [`Telemetry::push_external`](crate::Telemetry::push_external).
    pub fn readings_mut(&mut self) -> &mut Readings {
        &mut self.readings
    }

    /// When energy counters moved since this was asked last, oldest first.
    pub fn take_energy_moves(&mut self) -> Vec<EnergyMove> {
        self.energy.drain()
    }

    /// Samples once.
    pub fn tick(&mut self, now_ms: u64, inputs: &Inputs) -> Snapshot {
        self.ask_providers(now_ms);
        let trace = self.recorder.trace().cloned();
        let changes = trace.map(|trace| (trace.changes(now_ms, &self.readings), trace));
        self.complete_margins();
        self.energy.collect(&mut self.readings);
        self.stuck.look(&mut self.readings, &self.recorder);
        let plans = &inputs.planned_watts;
        if self.looks_ahead {
            self.forecasters.observe(&self.readings, plans, now_ms);
            self.note_outlooks();
        }
        let pressure = self.readings.pressure(inputs.kv_used_ratio);
        let metabolism = self.machine.observe(
            &Vitals {
                readings: &self.readings,
                pressure: &pressure,
                budgets: &inputs.budgets,
                power_cap_watts: self.config.power_cap_watts,
                forecasts: &self.forecasters,
            },
            now_ms,
        );
        self.recorder.ticked(now_ms, self.machine.transitions());
        let devices = self.devices(now_ms);
        self.sequence += 1;
        let snapshot = Snapshot {
            sequence: self.sequence,
            monotonic_ms: now_ms,
            profile: self.config.profile,
            simulated: devices.iter().any(is_simulated),
            devices,
            pressure,
            supply: self.readings.supply,
            budgets: inputs.budgets.clone(),
            metabolism,
            attributes: Vec::new(),
        };
        if let Some((mut changes, trace)) = changes {
            changes.planned_watts.clone_from(plans);
            trace.tick(changes, &snapshot);
        }
        snapshot
    }

    /// Which share of the work on this device should go elsewhere, 0 to 1, as of the last
    /// tick; see [`Shares::of`].
    pub fn device_degrade_ratio(&self, device_id: &str) -> f32 {
        self.shares().of(device_id)
    }

    /// The same of all devices.
    pub(crate) fn shares(&self) -> &Shares {
        self.machine.shares()
    }

    /// Writes down what of the forecasts no policy sees; what cannot be told any more is
    /// absent and not old.
    fn note_outlooks(&self) {
        for (id, outlook) in self.forecasters.outlooks() {
            let listed = self.readings.devices.contains_key(id);
            let outlook = outlook.filter(|_| listed);
            let told = [
                (
                    "sustainable_watts",
                    outlook.and_then(|o| o.sustainable_watts),
                ),
                (
                    "forecast_rmse_celsius",
                    outlook.and_then(|o| o.rmse_celsius),
                ),
            ];
            self.recorder.device(id, |stats| {
                for (name, value) in told {
                    match value {
                        Some(value) => stats.values.insert(name, value),
                        None => stats.values.remove(name),
                    };
                }
            });
        }
    }

    fn ask_providers(&mut self, now_ms: u64) {
        for (provider, pace) in &mut self.providers {
            if provider.is_paced() && !pace.is_due(now_ms) {
                continue;
            }
            let started = Instant::now();
            let answered = provider.read(&mut Tick {
                now_ms,
                period_ms: pace.period_ms(),
                readings: &mut self.readings,
                recorder: &self.recorder,
            });
            let took = started.elapsed();
            if provider.is_paced() {
                pace.polled(now_ms, took);
            }
            self.recorder.read(
                provider.name(),
                took,
                pace.period_ms(),
                answered.then_some(now_ms),
            );
        }
    }

    fn devices(&self, now_ms: u64) -> Vec<Device> {
        let readings = self.readings.devices.iter();
        let seen = readings.filter_map(|(id, device)| {
            let outlook = self.forecasters.outlook(id);
            Some(Device {
                forecast: outlook.and_then(Outlook::published),
                ..device.device(id, now_ms)?
            })
        });
        seen.collect()
    }

    /// Where a driver gives a temperature but no margin, the margin follows from the limit
    /// that the thresholds assume, and says that it is modelled.
    fn complete_margins(&mut self) {
        for device in self.readings.devices.values_mut() {
            let Some(&temperature) = device.last(Signal::Temperature) else {
                continue;
            };
            let told = device
                .last(Signal::ThermalMargin)
                .is_some_and(|margin| margin.origin != Origin::Modelled);
            let limit = self.config.thresholds.assumed_limit_celsius(device.kind);
            if let (false, Some(limit)) = (told, limit) {
                let margin = Reading {
                    value: limit - temperature.value,
                    origin: Origin::Modelled,
                    ..temperature
                };
                // Cannot be absurd: both terms are within their bounds.
                let _ = device.record(Signal::ThermalMargin, margin);
            }
        }
    }
}

fn is_simulated(device: &Device) -> bool {
    [
        device.temperature_celsius,
        device.power_watts,
        device.energy_joules,
        device.utilization_ratio,
    ]
    .into_iter()
    .flatten()
    .any(|sample| sample.origin == Origin::Simulated)
}
