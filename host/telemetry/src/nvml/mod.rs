//! NVIDIA devices, behind a watchdog.
//!
//! NVML may block: a board that is falling off the bus holds a caller in the kernel for
//! minutes or for ever. So a worker thread of its own talks to the library and publishes
//! what it read; the sampler takes the last publication and, without waiting, looks how
//! long the worker has been inside one call. After [`CALL_LIMIT_MS`] it declares the
//! devices lost, abandons the worker (a thread inside the kernel cannot be stopped, only
//! forgotten) and starts a fresh one after a pause that doubles each time. Abandoned
//! workers are never joined, write nowhere any more, leave when their call returns, and
//! there are at most [`MAX_ABANDONED`] of them: then the provider waits for one to leave.
//!
//! The provider refuses to know more than the library says: a call that a board does not
//! support leaves its value absent.

mod calls;
mod card;
mod counter;
mod probe;
mod sleep;
mod tiers;
mod worker;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use homeostat_hooks::DeviceKind;

use crate::config::{Config, NvmlLibrary};
use crate::reading::{CounterStep, EnergyMeter, Reading, Readings, Signal};
use crate::sampler::{Provider, Tick};
use crate::stats::Recorder;
use counter::Move;
use worker::{Backoff, Phase, Slot, View};

pub use probe::{CallReport, ChangeReport, probe_nvml};

/// Longest time inside one call. A healthy call takes microseconds; a process list on a
/// loaded board takes milliseconds.
pub const CALL_LIMIT_MS: u64 = 2_000;

/// Longest time for opening or closing the library.
pub const OPEN_LIMIT_MS: u64 = 30_000;

/// Workers that may be stuck at once; each is one thread with its stack.
pub const MAX_ABANDONED: usize = 4;

/// The sum of one counter over all resets and re-openings.
#[derive(Debug, Default)]
struct Meter {
    sum: EnergyMeter,
    /// The last move that was counted.
    moved_us: u64,
}

impl Meter {
    /// Counts the moves that are new; gives them with the sum at each, µJ.
    fn take(&mut self, moves: &[Move], recorder: &Recorder) -> Vec<(u64, u64)> {
        let after = self.moved_us;
        let new = moves.iter().filter(|moved| moved.at_us > after);
        new.map(|moved| {
            self.moved_us = moved.at_us;
            self.count(*moved, recorder);
            (moved.at_us, self.sum.total_uj())
        })
        .collect()
    }

    fn count(&mut self, moved: Move, recorder: &Recorder) {
        if self.sum.take(moved.mj.saturating_mul(1_000), None) == CounterStep::Reset {
            recorder.error("nvml", "counter_reset");
        }
    }
}

/// The NVML provider.
pub struct Nvml {
    library: Option<PathBuf>,
    sysfs_root: PathBuf,
    epoch: Instant,
    base_ms: u32,
    recorder: Recorder,
    worker: Option<Arc<Slot>>,
    abandoned: Vec<Arc<Slot>>,
    backoff: Backoff,
    restart_ms: u64,
    /// The publication that was merged last.
    merged: Option<Arc<View>>,
    meters: BTreeMap<String, Meter>,
    given_up: bool,
}

impl Nvml {
    /// Starts the worker and waits for its first answer, at most for as long as one call
    /// may take, so that the first snapshot already shows the devices. `None` if switched
    /// off.
    pub fn start(config: &Config, epoch: Instant, recorder: &Recorder) -> Option<Self> {
        let library = match &config.nvml {
            NvmlLibrary::Off => return None,
            NvmlLibrary::System => None,
            NvmlLibrary::File(path) => Some(path.clone()),
        };
        let mut nvml = Self {
            library,
            sysfs_root: config.sysfs_root.clone(),
            epoch,
            base_ms: config.base_period_ms(),
            recorder: recorder.clone(),
            worker: None,
            abandoned: Vec::new(),
            backoff: Backoff::default(),
            restart_ms: 0,
            merged: None,
            meters: BTreeMap::new(),
            given_up: false,
        };
        nvml.spawn();
        nvml.await_first_answer();
        Some(nvml)
    }

    fn spawn(&mut self) {
        let slot = Arc::new(Slot::new(self.epoch, self.recorder.clone(), self.base_ms));
        let library = self.library.clone();
        let sysfs_root = self.sysfs_root.clone();
        let known = self.meters.len();
        let thread = {
            let slot = Arc::clone(&slot);
            std::thread::Builder::new()
                .name("nvml".into())
                .spawn(move || worker::work(&slot, library.as_deref(), &sysfs_root, known))
        };
        match thread {
            Ok(_) => self.worker = Some(slot),
            Err(error) => {
                tracing::error!(%error, "cannot start the NVML thread; NVIDIA devices are not seen");
                self.given_up = true;
            }
        }
    }

    fn await_first_answer(&self) {
        let Some(slot) = &self.worker else { return };
        let deadline = Instant::now() + Duration::from_millis(CALL_LIMIT_MS);
        while slot.view.load().phase == Phase::Opening && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Abandons a worker that is stuck and starts another when it is time.
    fn watch(&mut self, now_ms: u64, readings: &mut Readings) {
        self.abandoned
            .retain(|slot| !slot.finished.load(Ordering::Acquire));
        if let Some(slot) = &self.worker {
            if now_ms <= slot.due_back_ms.load(Ordering::Acquire) {
                return;
            }
            slot.stop.store(true, Ordering::Release);
            self.recorder.error("nvml", "timeout");
            let pause_ms = self.backoff.next_ms();
            tracing::warn!(
                pause_ms,
                "the NVIDIA driver does not answer; its devices count as lost until it does"
            );
            self.restart_ms = now_ms + pause_ms;
            self.abandoned.extend(self.worker.take());
            self.lose_all(readings);
        } else if !self.given_up
            && now_ms >= self.restart_ms
            && self.abandoned.len() < MAX_ABANDONED
        {
            self.spawn();
        }
    }

    fn lose_all(&self, readings: &mut Readings) {
        for id in self.meters.keys() {
            readings.device(id, DeviceKind::Gpu).lost = true;
        }
    }

    fn merge(&mut self, view: &View, tick: &mut Tick<'_>) {
        match view.phase {
            Phase::Opening => return,
            Phase::Failed => return self.lose_all(tick.readings),
            Phase::Asleep => {
                for id in self.meters.keys() {
                    tick.readings.devices.remove(id);
                }
                return;
            }
            // No library: there was never a device, or the driver was removed.
            Phase::Absent => {
                self.given_up = true;
                return self.lose_all(tick.readings);
            }
            Phase::Running => {}
        }
        for published in &view.cards {
            let meter = self.meters.entry(published.id.clone()).or_default();
            let device = tick.readings.device(&published.id, DeviceKind::Gpu);
            device.adopt(&published.readings);
            device.lost = published.lost;
            let Some((raw_mj, at_ms)) = published.energy_mj else {
                continue;
            };
            for (at_us, total_uj) in meter.take(&published.energy_moves, &self.recorder) {
                device.record_energy_move(at_us, total_uj);
            }
            let last = Move {
                at_us: at_ms * 1_000,
                mj: raw_mj,
            };
            meter.count(last, &self.recorder);
            let energy = Reading::instant(meter.sum.joules(), at_ms, published.energy_period_ms);
            if device.record(Signal::Energy, energy).is_err() {
                self.recorder.error("nvml", "absurd");
            }
        }
        if view.cards.iter().all(|card| !card.lost) {
            self.backoff = Backoff::default();
        }
    }
}

impl Provider for Nvml {
    fn name(&self) -> &'static str {
        // The worker counts its own reads as "nvml"; this is only the taking over.
        "nvml_watchdog"
    }

    fn read(&mut self, tick: &mut Tick<'_>) -> bool {
        self.watch(tick.now_ms, tick.readings);
        let Some(slot) = &self.worker else {
            return false;
        };
        let on_battery = tick.readings.supply.is_some_and(|supply| supply.on_battery);
        slot.on_battery.store(on_battery, Ordering::Release);
        let view = slot.view.load_full();
        if self
            .merged
            .as_ref()
            .is_none_or(|last| !Arc::ptr_eq(last, &view))
        {
            self.merge(&view, tick);
            self.merged = Some(Arc::clone(&view));
        }
        if self.given_up {
            self.worker = None;
        }
        !view.cards.is_empty()
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        // Told to leave, not waited for: it may be inside a call that never returns.
        if let Some(slot) = &self.worker {
            slot.stop.store(true, Ordering::Release);
        }
    }
}
