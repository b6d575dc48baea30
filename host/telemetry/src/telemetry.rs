//! The sampler's thread and the slot from which everybody takes the newest snapshot.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use homeostat_hooks::{Attribute, Budget, Snapshot, Value};

use crate::config::Config;
use crate::energy::{EnergyLog, EnergyMove};
use crate::external::{ExternalReading, Mailbox, Refused};
use crate::metabolism::Shares;
use crate::nvml::Nvml;
use crate::reading::Signal;
use crate::sampler::{Inputs, Sampler};
use crate::stats::{Recorder, Stats};
use crate::trace::TraceWriter;

/// What the handle and the thread share.
struct Shared {
    epoch: Instant,
    snapshot: ArcSwap<Snapshot>,
    /// What of each device's work should go elsewhere, as of that snapshot or a newer one.
    shares: ArcSwap<Shares>,
    inputs: ArcSwap<Inputs>,
    /// Serialises writers of `inputs` and guards the pushed readings; never taken on the
    /// path of a request.
    mailbox: Mutex<Mailbox>,
    /// Never taken on the path of a request.
    energy: Mutex<EnergyLog>,
    recorder: Recorder,
}

impl Shared {
    fn now_ms(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }

    fn sample(&self, sampler: &mut Sampler) {
        let now_ms = self.now_ms();
        self.mailbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .deliver(sampler.readings_mut(), now_ms);
        let mut snapshot = sampler.tick(now_ms, &self.inputs.load());
        snapshot.attributes.extend(wall_clock());
        // Before the snapshot: who has seen that finds the moves that led to it.
        self.energy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(sampler.take_energy_moves());
        self.shares.store(Arc::new(sampler.shares().clone()));
        self.snapshot.store(Arc::new(snapshot));
    }
}

/// The time of day, for policies with hours: they have no clock. Absent where the clock
/// stands before 1970, which is no time of day.
fn wall_clock() -> Option<Attribute> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let seconds = i64::try_from(now.as_secs()).ok()?;
    Some(("homeostat.unix-seconds".to_owned(), Value::Integer(seconds)))
}

/// The running telemetry. Dropping it stops the sampler.
pub struct Telemetry {
    shared: Arc<Shared>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Telemetry {
    /// Starts sampling. The first snapshot is taken before this returns, so there is never
    /// an empty one to see. Nothing here fails: a sensor that is not there is absent.
    pub fn start(config: Config) -> Self {
        Self::start_with(config, Recorder::default())
    }

    /// The same, and every call and every tick goes into the trace. Whoever made the trace
    /// calls its [`finish`](TraceWriter::finish) after [`shutdown`](Self::shutdown).
    pub fn start_recording(config: Config, trace: Arc<TraceWriter>) -> Self {
        Self::start_with(config, Recorder::tracing(trace))
    }

    fn start_with(config: Config, recorder: Recorder) -> Self {
        let shared = Arc::new(Shared {
            epoch: Instant::now(),
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            shares: ArcSwap::from_pointee(Shares::default()),
            inputs: ArcSwap::from_pointee(Inputs {
                kv_used_ratio: None,
                budgets: config.budgets.clone(),
                ..Inputs::default()
            }),
            mailbox: Mutex::default(),
            energy: Mutex::default(),
            recorder,
        });
        let mut providers = Sampler::file_providers(&config);
        #[cfg(all(target_os = "macos", target_arch = "aarch64"))]
        if let Some(apple) = crate::apple::Apple::start(&config, shared.epoch, &shared.recorder) {
            providers.push(Box::new(apple));
        }
        let base_ms = config.base_period_ms();
        if let Some(nvml) = Nvml::start(&config, shared.epoch, &shared.recorder) {
            providers.push(Box::new(nvml));
        }
        let mut sampler = Sampler::new(config, providers, shared.recorder.clone());
        shared.sample(&mut sampler);
        let period = Duration::from_millis(u64::from(base_ms));
        let (stop, stopped) = channel();
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("telemetry".into())
                .spawn(move || run(&shared, &mut sampler, period, &stopped))
        };
        if let Err(error) = &thread {
            tracing::error!(%error, "cannot start the telemetry thread; the snapshot will stay as it is");
        }
        Self {
            shared,
            stop: Some(stop),
            thread: thread.ok(),
        }
    }

    /// The newest snapshot: one pointer load, no system call. Keep it for the whole
    /// request, so that all hooks see the same machine.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// Tells which share of the KV cache over all local tiers is occupied by running
    /// sequences (blocks that only cache a prefix are free on demand and do not count);
    /// `None` where there is no local tier.
    pub fn set_kv_used_ratio(&self, ratio: Option<f32>) {
        self.update_inputs(|inputs| inputs.kv_used_ratio = ratio);
    }

    /// Tells what a device is about to draw, the whole board with what it draws idle:
    /// `watts[i]` = mean over the second that begins in `i` seconds, W; the last value holds
    /// from then on. Without a plan the forecast takes the last second to go on for ever.
    ///
    /// A plan stays until it is replaced, and its first second is always the next one: a
    /// curve is to be renewed about once a second, a single value when it changes. An empty
    /// plan takes it away, and so does one with a value that no device can draw.
    pub fn set_planned_watts(&self, device_id: &str, watts: Vec<f64>) {
        let told = !watts.is_empty() && watts.iter().all(|w| Signal::Power.accepts(*w));
        self.update_inputs(|inputs| {
            match told {
                true => inputs.planned_watts.insert(device_id.to_owned(), watts),
                false => inputs.planned_watts.remove(device_id),
            };
        });
    }

    /// Which share of the work on this device should go elsewhere, 0 to 1: its own heat, its
    /// silence, or what concerns the whole host (power cap, budgets, battery, memory), the
    /// largest. Of a device that is not known, or never had a thermometer, the host's part
    /// alone. The largest over all devices is the snapshot's degrade ratio. One pointer
    /// load, no system call.
    pub fn device_degrade_ratio(&self, device_id: &str) -> f32 {
        self.shared.shares.load().of(device_id)
    }

    /// Replaces the budgets that every snapshot carries.
    pub fn set_budgets(&self, budgets: Vec<Budget>) {
        self.update_inputs(|inputs| inputs.budgets = budgets);
    }

    fn update_inputs(&self, change: impl FnOnce(&mut Inputs)) {
        let _one_writer = self
            .shared
            .mailbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut inputs = Inputs::clone(&self.shared.inputs.load());
        change(&mut inputs);
        self.shared.inputs.store(Arc::new(inputs));
    }

    /// Takes readings from outside; they appear with the next sampling. All are taken or
    /// none.
    pub fn push_external(&self, readings: Vec<ExternalReading>) -> Result<(), Refused> {
        let now_ms = self.shared.now_ms();
        let mut mailbox = self
            .shared
            .mailbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        mailbox.push(readings, now_ms)
    }

    /// When energy counters moved, after the move with that sequence number (0 = all that
    /// are kept: some tens of seconds), oldest first. Finer than snapshots: a counter is
    /// asked twice in its period.
    pub fn energy_moves(&self, after: u64) -> Vec<EnergyMove> {
        let log = self.shared.energy.lock();
        log.unwrap_or_else(PoisonError::into_inner).after(after)
    }

    /// When the clock of the snapshots was 0.
    pub fn epoch(&self) -> Instant {
        self.shared.epoch
    }

    /// Counters of the sampler.
    pub fn stats(&self) -> Stats {
        self.shared.recorder.stats(self.shared.now_ms())
    }

    /// Stops sampling and waits for the sampler, which never waits for a driver. The last
    /// snapshot stays readable through the `Arc`s that were handed out.
    pub fn shutdown(mut self) {
        self.stop_thread();
    }

    fn stop_thread(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the telemetry thread had panicked");
        }
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.stop_thread();
    }
}

/// Samples on a fixed grid; a late tick is not made up for.
fn run(shared: &Shared, sampler: &mut Sampler, period: Duration, stopped: &Receiver<()>) {
    let mut due = Instant::now() + period;
    loop {
        let wait = due.saturating_duration_since(Instant::now());
        match stopped.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
        shared.sample(sampler);
        due = (due + period).max(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homeostat_hooks::{DeviceKind, MetabolicState};

    #[test]
    fn this_machine_gives_a_valid_snapshot_in_which_nothing_absent_is_zero() {
        let telemetry = Telemetry::start(Config::default());
        let first = telemetry.snapshot();
        assert!(first.sequence >= 1);
        assert!(
            first
                .pressure
                .memory_limit_bytes
                .is_some_and(|bytes| bytes > 0)
        );
        for device in &first.devices {
            for sample in [device.temperature_celsius, device.power_limit_watts] {
                assert_ne!(sample.map(|s| s.value), Some(0.0), "{device:?}");
            }
            assert_ne!(device.memory_total_bytes, Some(0), "{device:?}");
        }
        while telemetry.snapshot().sequence < first.sequence + 3 {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(telemetry.stats().ticks >= 4);
        let year_2026 = 1_767_225_600;
        let clock = first
            .attributes
            .iter()
            .find(|(k, _)| k == "homeostat.unix-seconds");
        assert!(
            matches!(clock, Some((_, Value::Integer(s))) if *s >= year_2026),
            "{clock:?}"
        );
        let last = telemetry.snapshot();
        telemetry.shutdown();
        assert!(last.monotonic_ms >= first.monotonic_ms);
    }

    fn on_an_empty_machine(nowhere: &std::path::Path) -> Telemetry {
        Telemetry::start(Config {
            sysfs_root: nowhere.into(),
            procfs_root: nowhere.into(),
            nvml: crate::NvmlLibrary::Off,
            ..Config::default()
        })
    }

    #[test]
    fn on_an_empty_machine_no_device_exists_and_the_state_is_nominal() {
        let nowhere = tempfile::tempdir().expect("a temporary folder");
        let telemetry = on_an_empty_machine(nowhere.path());
        let snapshot = telemetry.snapshot();
        assert_eq!(snapshot.devices, vec![]);
        assert_eq!(snapshot.supply, None);
        assert_eq!(snapshot.pressure, Default::default());
        assert_eq!(snapshot.metabolism.state, MetabolicState::Nominal);
        assert!(!snapshot.metabolism.causes.sensor, "it never had a sensor");
    }

    #[test]
    fn a_plan_stays_until_it_is_replaced_and_one_that_cannot_be_true_is_none() {
        let nowhere = tempfile::tempdir().expect("a temporary folder");
        let telemetry = on_an_empty_machine(nowhere.path());
        let plan = |telemetry: &Telemetry| {
            let inputs = telemetry.shared.inputs.load();
            inputs.planned_watts.get("gpu.0").cloned()
        };
        telemetry.set_planned_watts("gpu.0", vec![300.0, 120.0]);
        telemetry.set_kv_used_ratio(Some(0.5));
        assert_eq!(plan(&telemetry), Some(vec![300.0, 120.0]));
        telemetry.set_planned_watts("gpu.0", vec![300.0, f64::NAN]);
        assert_eq!(plan(&telemetry), None);
        telemetry.set_planned_watts("gpu.0", vec![90.0]);
        telemetry.set_planned_watts("gpu.0", Vec::new());
        assert_eq!(plan(&telemetry), None);
        assert_eq!(telemetry.device_degrade_ratio("gpu.0"), 0.0, "not known");
    }

    #[test]
    fn what_is_pushed_appears_in_the_next_snapshots() {
        let telemetry = Telemetry::start(Config::default());
        telemetry.set_kv_used_ratio(Some(0.5));
        telemetry
            .push_external(vec![ExternalReading {
                device: "strip".into(),
                kind: DeviceKind::External,
                signal: crate::Signal::Power,
                value: 80.0,
                period_ms: 60_000,
                window_ms: 0,
                origin: homeostat_hooks::Origin::Measured,
            }])
            .expect("plausible");
        let seen = telemetry.snapshot().sequence;
        while telemetry.snapshot().sequence < seen + 2 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let snapshot = telemetry.snapshot();
        assert_eq!(snapshot.pressure.kv_used_ratio, Some(0.5));
        let strip = snapshot.devices.iter().find(|d| d.id == "external.strip");
        let watts = strip.and_then(|d| d.power_watts).expect("pushed");
        assert_eq!(watts.value, 80.0);
    }
}
