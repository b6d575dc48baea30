//! The thread that talks to the library: opens it, polls its devices, opens it anew when a
//! device was lost.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use serde::Serialize;

use crate::nvml::card::Card;
use crate::nvml::counter::Move;
use crate::nvml::sleep::{FALL_ASLEEP_MS, LetGo, PciGpus};
use crate::nvml::tiers::Timetable;
use crate::nvml::{CALL_LIMIT_MS, OPEN_LIMIT_MS};
use crate::pace::Pace;
use crate::reading::DeviceReadings;
use crate::stats::{Called, Recorder};

/// How finely the thread sleeps, so that it notices within this time that it shall stop.
const NAP: Duration = Duration::from_millis(20);

/// How often it is looked whether devices still sleep.
const ASLEEP_LOOK_MS: u64 = 500;

/// What the worker publishes.
#[derive(Debug)]
pub(super) struct View {
    pub phase: Phase,
    pub cards: Vec<Published>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing known yet.
    Opening,
    /// There is no library, or it knows of no device: nothing to poll, now or later.
    Absent,
    /// The library does not work now; tried again.
    Failed,
    /// Devices sleep and are not woken.
    Asleep,
    /// Devices are polled.
    Running,
}

/// One device as of the last poll.
#[derive(Debug)]
pub(super) struct Published {
    pub id: String,
    pub readings: DeviceReadings,
    pub lost: bool,
    /// The driver's raw counter with its time. It is accumulated on the other side, since
    /// the sum has to outlive this thread.
    pub energy_mj: Option<(u64, u64)>,
    /// When that counter last moved, oldest first.
    pub energy_moves: Vec<Move>,
    /// How often the counter is asked and told here, the rarer of the two.
    pub energy_period_ms: u32,
}

/// What a worker and its watchdog share. Each worker has its own, so an abandoned one
/// cannot overwrite what its successor publishes.
pub(super) struct Slot {
    epoch: Instant,
    base_ms: u32,
    pub recorder: Recorder,
    pub view: ArcSwap<View>,
    /// When the present call must be over; `u64::MAX` outside of calls.
    pub due_back_ms: AtomicU64,
    /// The machine runs on its battery, as far as the sampler knows.
    pub on_battery: AtomicBool,
    pub stop: AtomicBool,
    pub finished: AtomicBool,
}

impl Slot {
    pub fn new(epoch: Instant, recorder: Recorder, base_ms: u32) -> Self {
        Self {
            epoch,
            base_ms,
            recorder,
            view: ArcSwap::from_pointee(View {
                phase: Phase::Opening,
                cards: Vec::new(),
            }),
            due_back_ms: AtomicU64::new(u64::MAX),
            on_battery: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            finished: AtomicBool::new(false),
        }
    }

    pub fn now_ms(&self) -> u64 {
        self.now_us() / 1_000
    }

    pub fn now_us(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }

    fn is_on_battery(&self) -> bool {
        self.on_battery.load(Ordering::Acquire)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Makes one call into the library under the eyes of the watchdog and writes down its
    /// latency and how it ended. `device` is empty for calls that concern none.
    pub fn call<T: Serialize>(
        &self,
        device: &str,
        name: &'static str,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Result<T, NvmlError> {
        self.call_within(CALL_LIMIT_MS, device, name, call)
    }

    /// Opening and closing the library start and stop devices, which takes seconds each
    /// where no other program keeps them awake.
    fn open_or_close(
        &self,
        name: &'static str,
        call: impl FnOnce() -> Result<(), NvmlError>,
    ) -> Result<(), NvmlError> {
        self.call_within(OPEN_LIMIT_MS, "", name, call)
    }

    fn call_within<T: Serialize>(
        &self,
        limit_ms: u64,
        device: &str,
        name: &'static str,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Result<T, NvmlError> {
        let at_us = self.now_us();
        self.due_back_ms
            .store(at_us / 1_000 + limit_ms, Ordering::Release);
        let started = Instant::now();
        let answer = call();
        let took = started.elapsed();
        self.due_back_ms.store(u64::MAX, Ordering::Release);
        let called = Called {
            provider: "nvml",
            device,
            call: name,
            at_us,
            took,
        };
        self.recorder.call(called, answer.as_ref().map_err(kind));
        answer
    }

    fn publish(&self, phase: Phase, cards: Vec<Published>) {
        self.view.store(Arc::new(View { phase, cards }));
    }

    fn sleep_until(&self, at_ms: u64) {
        while !self.is_stopped() {
            let left = at_ms.saturating_sub(self.now_ms());
            if left == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(left).min(NAP));
        }
    }
}

/// Pauses that double: 1 s, 2 s … 60 s. A driver that is being replaced is back within
/// seconds; a dead one is not worth more than one attempt a minute.
#[derive(Debug, Clone, Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    pub fn next_ms(&mut self) -> u64 {
        let pause_s = (1u64 << self.attempts.min(6)).min(60);
        self.attempts += 1;
        pause_s * 1_000
    }
}

/// Error kinds as metrics name them.
pub(super) fn kind(error: &NvmlError) -> &'static str {
    match error {
        NvmlError::GpuLost | NvmlError::ResetRequired => "gpu_lost",
        NvmlError::NotSupported => "not_supported",
        NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound => "missing_symbol",
        NvmlError::NoPermission => "no_permission",
        NvmlError::DriverNotLoaded => "driver_not_loaded",
        NvmlError::LibRmVersionMismatch => "version_mismatch",
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => "no_library",
        NvmlError::Timeout => "timeout",
        NvmlError::Uninitialized => "uninitialized",
        NvmlError::Unknown => "unknown",
        _ => "other",
    }
}

/// How a session with the opened library ended.
enum Ended {
    /// Told to stop.
    Stopped,
    /// There is nothing to poll on this machine.
    Nothing,
    /// The library failed as a whole.
    Failed(NvmlError),
    /// A device was lost and the pause is over: open everything anew.
    Reopen,
    /// All devices are idle and may sleep.
    LetGo,
}

/// The thread's own knowledge, which outlives a session with the library.
struct Worker<'a> {
    slot: &'a Slot,
    library: Option<&'a Path>,
    gpus: PciGpus,
    let_go: LetGo,
    backoff: Backoff,
    /// Devices that were ever seen; none now would then be a loss and not an absence.
    known_devices: usize,
}

/// The thread. `known_devices`: how many were seen before it started.
pub(super) fn work(slot: &Slot, library: Option<&Path>, sysfs_root: &Path, known_devices: usize) {
    let mut worker = Worker {
        slot,
        library,
        gpus: PciGpus::find(sysfs_root),
        let_go: LetGo::default(),
        backoff: Backoff::default(),
        known_devices,
    };
    let mut complained = false;
    while !slot.is_stopped() {
        worker.await_awakening();
        if slot.is_stopped() {
            break;
        }
        match worker.session() {
            Ended::Stopped => break,
            Ended::Nothing => {
                slot.publish(Phase::Absent, Vec::new());
                break;
            }
            Ended::Reopen => {}
            Ended::LetGo => worker.await_sleep(),
            Ended::Failed(error) => {
                slot.publish(Phase::Failed, Vec::new());
                let pause_ms = worker.backoff.next_ms();
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(%error, pause_ms, "NVML does not work; trying again with pauses");
                }
                slot.sleep_until(slot.now_ms() + pause_ms);
            }
        }
    }
    slot.finished.store(true, Ordering::Release);
}

impl Worker<'_> {
    /// Waits for as long as all devices sleep.
    fn await_awakening(&self) {
        if self.gpus.are_asleep() {
            self.slot.publish(Phase::Asleep, Vec::new());
        }
        while !self.slot.is_stopped() && self.gpus.are_asleep() {
            self.slot.sleep_until(self.slot.now_ms() + ASLEEP_LOOK_MS);
        }
    }

    /// After the library was closed: waits until the devices sleep, or until it is clear
    /// that they will not.
    fn await_sleep(&mut self) {
        self.slot.publish(Phase::Asleep, Vec::new());
        let patience_ms = self.slot.now_ms() + FALL_ASLEEP_MS;
        while !self.slot.is_stopped() && self.slot.is_on_battery() && !self.gpus.are_asleep() {
            if self.slot.now_ms() >= patience_ms {
                return self.let_go.was_in_vain();
            }
            self.slot.sleep_until(self.slot.now_ms() + ASLEEP_LOOK_MS);
        }
    }

    fn session(&mut self) -> Ended {
        let slot = self.slot;
        let mut builder = Nvml::builder();
        if let Some(path) = self.library {
            builder.lib_path(path.as_os_str());
        }
        let mut opened = None;
        let initialised = slot.open_or_close("init", || {
            opened = Some(builder.init()?);
            Ok(())
        });
        match initialised {
            Ok(()) => {}
            Err(NvmlError::LibloadingError(error)) => {
                tracing::info!(%error, "no NVIDIA library, hence no NVIDIA devices");
                return Ended::Nothing;
            }
            Err(error) => return Ended::Failed(error),
        }
        let Some(nvml) = opened else {
            return Ended::Nothing;
        };
        let ended = self.serve(&nvml);
        // Closing may block like any other call, so the watchdog looks on. Its failure is
        // counted and otherwise without consequence: the library is opened anew or not at
        // all.
        let _ = slot.open_or_close("shutdown", || nvml.shutdown());
        ended
    }

    fn serve(&mut self, nvml: &Nvml) -> Ended {
        let slot = self.slot;
        let count = match slot.call("", "device_count", || nvml.device_count()) {
            Ok(0) if self.known_devices == 0 => return Ended::Nothing,
            Ok(0) => return Ended::Failed(NvmlError::GpuLost),
            Ok(count) => count,
            Err(error) => return Ended::Failed(error),
        };
        self.known_devices = self.known_devices.max(count as usize);
        let driver = slot.call("", "driver_version", || nvml.sys_driver_version());
        let driver = driver.unwrap_or_default();
        let cards = (0..count).map(|i| Card::open(slot, nvml, i, count, &driver));
        let mut cards: Vec<Card<'_>> = cards.collect();
        self.poll_all(&mut cards)
    }

    /// Polls until told to stop, until a lost device is worth another attempt, or until
    /// idle devices may sleep. The healthy ones are polled meanwhile.
    fn poll_all(&mut self, cards: &mut [Card<'_>]) -> Ended {
        let slot = self.slot;
        let mut pace = Pace::new(slot.base_ms);
        let mut timetable = Timetable::of(cards.len());
        let mut reopen_ms = None;
        while !slot.is_stopped() {
            let now_ms = slot.now_ms();
            let started = Instant::now();
            let mut dear = Duration::ZERO;
            for (card, due) in cards.iter_mut().zip(timetable.take(now_ms)) {
                match card.poll(slot, pace.period_ms(), due) {
                    Ok(spent) => dear += spent,
                    Err(error) => return Ended::Failed(error),
                }
            }
            timetable.asked(slot.now_ms(), dear);
            let took = started.elapsed();
            let period_ms = pace.period_ms();
            pace.polled(now_ms, took);
            let lost = cards.iter().filter(|card| card.is_lost()).count();
            let answered = (lost < cards.len()).then_some(now_ms);
            slot.recorder.read("nvml", took, pace.period_ms(), answered);
            let published = cards.iter().map(|card| card.publish(period_ms)).collect();
            slot.publish(Phase::Running, published);
            if lost == 0 {
                self.backoff = Backoff::default();
            } else {
                let due = *reopen_ms.get_or_insert_with(|| now_ms + self.backoff.next_ms());
                if now_ms >= due {
                    return Ended::Reopen;
                }
            }
            let idle = lost == 0 && cards.iter().all(Card::is_idle);
            if self.let_go.is_due(slot.is_on_battery(), idle, now_ms) && self.gpus.may_sleep() {
                return Ended::LetGo;
            }
            rest(slot, cards, now_ms + u64::from(pace.period_ms()));
        }
        Ended::Stopped
    }
}

/// Sleeps until the next poll, and meanwhile asks the energy counters that move faster.
fn rest(slot: &Slot, cards: &mut [Card<'_>], until_ms: u64) {
    let until_us = until_ms * 1_000;
    while !slot.is_stopped() {
        let now_us = slot.now_us();
        if now_us >= until_us {
            return;
        }
        let due_us = |card: &Card<'_>| card.energy_due_us();
        if let Some(card) = cards.iter_mut().find(|card| due_us(card) <= now_us) {
            card.sample_energy(slot);
            continue;
        }
        let next_us = cards.iter().map(due_us).fold(until_us, u64::min);
        std::thread::sleep(Duration::from_micros(next_us - now_us).min(NAP));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_a_second_to_a_minute_and_stay_there() {
        let mut backoff = Backoff::default();
        let pauses_s: Vec<u64> = (0..9).map(|_| backoff.next_ms() / 1_000).collect();
        assert_eq!(pauses_s, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
