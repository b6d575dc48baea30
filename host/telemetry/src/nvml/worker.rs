//! The thread that talks to the library: opens it, polls its devices, opens it anew when a
//! device was lost.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use crate::nvml::card::Card;
use crate::nvml::{CALL_LIMIT_MS, OPEN_LIMIT_MS};
use crate::pace::Pace;
use crate::reading::DeviceReadings;
use crate::stats::Recorder;

/// How finely the thread sleeps, so that it notices within this time that it shall stop.
const NAP: Duration = Duration::from_millis(20);

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
    pub period_ms: u32,
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
            stop: AtomicBool::new(false),
            finished: AtomicBool::new(false),
        }
    }

    pub fn now_ms(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Makes one call into the library under the eyes of the watchdog and counts its
    /// failure.
    pub fn call<T>(&self, call: impl FnOnce() -> Result<T, NvmlError>) -> Result<T, NvmlError> {
        self.call_within(CALL_LIMIT_MS, call)
    }

    /// Opening and closing the library start and stop devices, which takes seconds each
    /// where no other program keeps them awake.
    fn open_or_close<T>(
        &self,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Result<T, NvmlError> {
        self.call_within(OPEN_LIMIT_MS, call)
    }

    fn call_within<T>(
        &self,
        limit_ms: u64,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Result<T, NvmlError> {
        self.due_back_ms
            .store(self.now_ms() + limit_ms, Ordering::Release);
        let answer = call();
        self.due_back_ms.store(u64::MAX, Ordering::Release);
        if let Err(error) = &answer {
            self.recorder.error("nvml", kind(error));
        }
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
}

/// The thread. `known_devices`: how many were seen before it started; none now would then
/// be a loss and not an absence.
pub(super) fn work(slot: &Slot, library: Option<&Path>, known_devices: usize) {
    let mut backoff = Backoff::default();
    let mut known_devices = known_devices;
    let mut complained = false;
    while !slot.is_stopped() {
        match session(slot, library, &mut backoff, &mut known_devices) {
            Ended::Stopped => break,
            Ended::Nothing => {
                slot.publish(Phase::Absent, Vec::new());
                break;
            }
            Ended::Reopen => {}
            Ended::Failed(error) => {
                slot.publish(Phase::Failed, Vec::new());
                let pause_ms = backoff.next_ms();
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(%error, pause_ms, "NVML does not work; trying again with pauses");
                }
                slot.sleep_until(slot.now_ms() + pause_ms);
            }
        }
    }
    slot.finished.store(true, Ordering::Release);
}

fn session(
    slot: &Slot,
    library: Option<&Path>,
    backoff: &mut Backoff,
    known_devices: &mut usize,
) -> Ended {
    let mut builder = Nvml::builder();
    if let Some(path) = library {
        builder.lib_path(path.as_os_str());
    }
    let nvml = match slot.open_or_close(|| builder.init()) {
        Ok(nvml) => nvml,
        Err(NvmlError::LibloadingError(error)) => {
            tracing::info!(%error, "no NVIDIA library, hence no NVIDIA devices");
            return Ended::Nothing;
        }
        Err(error) => return Ended::Failed(error),
    };
    let ended = serve(slot, &nvml, backoff, known_devices);
    // Closing may block like any other call, so the watchdog looks on. Its failure is
    // counted and otherwise without consequence: the library is opened anew or not at all.
    let _ = slot.open_or_close(|| nvml.shutdown());
    ended
}

fn serve(slot: &Slot, nvml: &Nvml, backoff: &mut Backoff, known_devices: &mut usize) -> Ended {
    let count = match slot.call(|| nvml.device_count()) {
        Ok(0) if *known_devices == 0 => return Ended::Nothing,
        Ok(0) => return Ended::Failed(NvmlError::GpuLost),
        Ok(count) => count,
        Err(error) => return Ended::Failed(error),
    };
    *known_devices = (*known_devices).max(count as usize);
    let mut cards: Vec<Card<'_>> = (0..count).map(|i| Card::open(slot, nvml, i)).collect();
    poll_all(slot, &mut cards, backoff)
}

/// Polls until told to stop or until a lost device is worth another attempt. The healthy
/// ones are polled meanwhile.
fn poll_all(slot: &Slot, cards: &mut [Card<'_>], backoff: &mut Backoff) -> Ended {
    let mut pace = Pace::new(slot.base_ms);
    let mut reopen_ms = None;
    while !slot.is_stopped() {
        let now_ms = slot.now_ms();
        let started = Instant::now();
        for card in cards.iter_mut() {
            if let Err(error) = card.poll(slot, pace.period_ms()) {
                return Ended::Failed(error);
            }
        }
        let took = started.elapsed();
        let period_ms = pace.period_ms();
        pace.polled(now_ms, took);
        let lost = cards.iter().filter(|card| card.is_lost()).count();
        let answered = (lost < cards.len()).then_some(now_ms);
        slot.recorder.read("nvml", took, pace.period_ms(), answered);
        let published = cards.iter().map(|card| card.publish(period_ms)).collect();
        slot.publish(Phase::Running, published);
        if lost == 0 {
            *backoff = Backoff::default();
        } else {
            let due = *reopen_ms.get_or_insert_with(|| now_ms + backoff.next_ms());
            if now_ms >= due {
                return Ended::Reopen;
            }
        }
        slot.sleep_until(now_ms + u64::from(pace.period_ms()));
    }
    Ended::Stopped
}
