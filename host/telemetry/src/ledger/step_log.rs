//! How an engine's thread tells the ledger what it did, without ever waiting for it.
//!
//! A bounded queue. A step that finds it full is not written down, only the time that it
//! took: the energy of that time is then nobody's, and is counted as lost, rather than
//! everybody else's. Beside the queue stands the begin of the running step, so that the
//! ledger books no window whose steps are still to come.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Devices, Step};

/// No step is running.
const NONE: u64 = u64::MAX;

/// Between an engine's look at the clock and its word that a step begins.
const GUARD_US: u64 = 10_000;

struct Shared {
    running_since_us: AtomicU64,
    /// From the first to the last step that was not written down, since the last drain.
    lost: Mutex<Option<(u64, u64)>>,
}

/// The engine's end.
pub struct StepLog {
    steps: SyncSender<Step>,
    devices: Devices,
    shared: Arc<Shared>,
}

/// The ledger's end.
pub struct StepInbox {
    steps: Receiver<Step>,
    devices: Devices,
    shared: Arc<Shared>,
}

/// The two ends of a log of an engine that works on these devices; it holds at most
/// `capacity` steps that nobody has taken yet.
pub fn step_log(devices: Devices, capacity: usize) -> (StepLog, StepInbox) {
    let (sender, receiver) = sync_channel(capacity);
    let shared = Arc::new(Shared {
        running_since_us: AtomicU64::new(NONE),
        lost: Mutex::new(None),
    });
    let log = StepLog {
        steps: sender,
        devices,
        shared: Arc::clone(&shared),
    };
    let inbox = StepInbox {
        steps: receiver,
        devices,
        shared,
    };
    (log, inbox)
}

impl StepLog {
    /// A step begins. Before the first thing that costs energy.
    pub fn begin(&self, start_us: u64) {
        self.shared
            .running_since_us
            .store(start_us, Ordering::Release);
    }

    /// The step has ended. Returns at once; `false` if only its time could be kept.
    pub fn end(&self, step: Step) -> bool {
        let span = (step.start_us, step.end_us);
        let written = match self.steps.try_send(step) {
            Ok(()) => true,
            // Without a ledger nobody misses it.
            Err(TrySendError::Disconnected(_)) => true,
            Err(TrySendError::Full(_)) => {
                let mut lost = self
                    .shared
                    .lost
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                *lost = Some(match *lost {
                    Some((start, end)) => (start.min(span.0), end.max(span.1)),
                    None => span,
                });
                false
            }
        };
        // After the step is where the ledger finds it.
        self.shared.running_since_us.store(NONE, Ordering::Release);
        written
    }

    /// What had begun came to nothing.
    pub fn nothing(&self) {
        self.shared.running_since_us.store(NONE, Ordering::Release);
    }

    /// The devices that this engine works on.
    pub fn devices(&self) -> Devices {
        self.devices
    }
}

impl StepInbox {
    /// Takes all steps that have ended and returns the time before which no other will be
    /// told: the begin of the running step, or a moment before `now_us`.
    pub fn drain(&self, now_us: u64, mut take: impl FnMut(Step)) -> u64 {
        // Before the queue is read: what ends meanwhile is then found there or waits.
        let running = self.shared.running_since_us.load(Ordering::Acquire);
        while let Ok(step) = self.steps.try_recv() {
            take(step);
        }
        let lost = self
            .shared
            .lost
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((start_us, end_us)) = lost {
            take(Step {
                start_us,
                end_us,
                devices: self.devices,
                cost: None,
                sequences: Vec::new(),
            });
        }
        running.min(now_us.saturating_sub(GUARD_US))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Phase, SequenceWork};

    fn step(start_us: u64, end_us: u64) -> Step {
        Step {
            start_us,
            end_us,
            devices: Devices::default(),
            cost: None,
            sequences: vec![SequenceWork {
                request: 1,
                phase: Phase::Decode,
                computed_tokens: 1,
                context_tokens: 1,
                rejected_tokens: 0,
            }],
        }
    }

    #[test]
    fn a_running_step_holds_back_the_time_that_is_known() {
        let (log, inbox) = step_log(Devices::default(), 8);
        let known = |now| {
            let mut seen = 0;
            (inbox.drain(now, |_| seen += 1), seen)
        };
        assert_eq!(known(100_000), (90_000, 0));
        log.begin(110_000);
        assert_eq!(known(200_000), (110_000, 0));
        assert!(log.end(step(110_000, 210_000)));
        assert_eq!(known(220_000), (210_000, 1));
    }

    #[test]
    fn a_full_queue_keeps_the_time_of_what_it_lost() {
        let (log, inbox) = step_log(Devices::default(), 2);
        let written: Vec<bool> = (0..5).map(|i| log.end(step(i * 10, i * 10 + 10))).collect();
        assert_eq!(written, [true, true, false, false, false]);
        let mut seen = Vec::new();
        inbox.drain(100, |step| seen.push(step));
        assert_eq!(seen.len(), 3);
        let lost = &seen[2];
        assert!(lost.sequences.is_empty());
        assert_eq!((lost.start_us, lost.end_us), (20, 50));
    }

    #[test]
    fn an_engine_without_a_ledger_goes_on() {
        let (log, inbox) = step_log(Devices::default(), 1);
        drop(inbox);
        assert!((0..10).all(|i| log.end(step(i, i + 1))));
    }
}
