//! The energy of requests: what engines did and what sensors told, brought together ten
//! times a second, and the receipt that every answer carries.
//!
//! The books are kept by the telemetry room's ledger; here stand its clock, its queue from
//! every engine, and the words of the wire. Where no sensor is, energy is modelled from
//! processor time and says so, unless the operator wants measured numbers only. It refuses
//! to hold up an answer: what is not settled yet is told as it is known, and
//! `/v1/requests/{id}/energy` tells the rest.

use std::hash::{DefaultHasher, Hasher};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use homeostat_engine::{Device, EngineHandle, SequenceStep, StepObserver};
use homeostat_hooks::{DeviceKind, Origin, Sample, Snapshot};
use homeostat_telemetry::ledger::{
    Accounts, DeviceIndex, Devices, Ledger, ModelCost, Phase, ProcessorPower, Receipt,
    SequenceWork, SplitMethod, Step, StepInbox, StepLog, step_log,
};
use homeostat_telemetry::{EnergyMove, ProcessorClock, ProcessorTime};
use serde::Serialize;

use crate::budgets::Taken;
use crate::config::{EnergyConfig, EnergyMode};
use crate::openai::request::job_id;

/// Steps that an engine may be ahead of the ledger: five seconds of a small model.
const STEPS_WAITING_MAX: usize = 4_096;
/// What stands for a processor without a sensor.
const PROCESSOR: &str = "cpu.process";

/// The account of a request; 0 is nobody's.
pub fn account(request_id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(request_id.as_bytes());
    hasher.finish().max(1)
}

/// The energy of everything that this host does.
pub struct Energy {
    mode: EnergyMode,
    /// When the clock of the snapshots was 0.
    epoch: Instant,
    books: Mutex<Books>,
}

struct Books {
    ledger: Ledger,
    inboxes: Vec<StepInbox>,
    processor: ProcessorClock,
    processor_before: Option<ProcessorTime>,
    /// Devices that stand for processors: measured ones are shared with other programs.
    measured: Vec<DeviceIndex>,
    modelled: Option<DeviceIndex>,
    /// Requests that are over, and since when.
    leaving: Vec<(u64, u64)>,
}

impl Energy {
    /// Nothing is known yet. `epoch`: when the clock of the snapshots was 0.
    pub fn new(config: &EnergyConfig, procfs_root: &Path, epoch: Instant) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let power = ProcessorPower {
            busy_watts: (config.busy_watts_per_processor - config.idle_watts_per_processor)
                .max(0.0),
            idle_watts: config.idle_watts_per_processor * processors as f64,
        };
        let modelled = config.mode == EnergyMode::Auto;
        Self {
            mode: config.mode,
            epoch,
            books: Mutex::new(Books {
                ledger: Ledger::new(modelled.then_some(power)),
                inboxes: Vec::new(),
                processor: ProcessorClock::new(procfs_root),
                processor_before: None,
                measured: Vec::new(),
                modelled: None,
                leaving: Vec::new(),
            }),
        }
    }

    /// Books stay whole between two changes.
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_us(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }

    /// From now on the steps of this engine are booked, on the devices that it works on as
    /// far as `snapshot` knows them.
    pub fn watch(&self, engine: &EngineHandle, device: Device, snapshot: &Snapshot) {
        if self.mode == EnergyMode::Off {
            return;
        }
        let mut books = self.books();
        let measured_only = self.mode == EnergyMode::MeasuredOnly;
        let mut devices = books.processors(snapshot, measured_only);
        if let Device::Cuda(number) = device {
            let name = format!("gpu.{number}");
            devices.extend(books.ledger.device(&name, DeviceKind::Gpu));
        }
        let (log, inbox) = step_log(Devices::of(&devices), STEPS_WAITING_MAX);
        books.inboxes.push(inbox);
        let info = engine.info();
        let kv_bytes = info.kv_bytes_per_token as f64;
        engine.observe_steps(Box::new(Recorder {
            log,
            offset: Offset::between(engine.epoch(), self.epoch),
            cost: ModelCost {
                weight_bytes: info.weight_bytes as f64,
                kv_bytes_per_token: kv_bytes,
                flops_per_token: 2.0 * info.parameters as f64,
                // Two for each of K and V in two bytes, if no head shares them.
                flops_per_context_token: kv_bytes,
            },
        }));
    }

    /// Takes what has happened since the last call and returns what was settled, J. `moves` are
    /// those of energy counters up to this snapshot and not told before.
    pub fn tick(&self, snapshot: &Snapshot, moves: &[EnergyMove]) -> Vec<f64> {
        if self.mode == EnergyMode::Off {
            return Vec::new();
        }
        let now_us = self.now_us();
        let mut books = self.books();
        let books = &mut *books;
        books.take_processor_time(now_us);
        books.ledger.moved(moves);
        books.ledger.sense(snapshot);
        let known_us = books.take_steps(now_us);
        // Not before the steps that ran when they left are known.
        let ledger = &mut books.ledger;
        books.leaving.retain(|(request, left_us)| {
            let stays = *left_us >= known_us;
            if !stays {
                ledger.finish(*request);
            }
            stays
        });
        ledger.advance(known_us, now_us);
        let settled = ledger.newly_settled();
        settled
            .iter()
            .map(|(_, receipt)| receipt.joules())
            .collect()
    }

    /// A request of so many answers is being served, until what is returned is dropped.
    pub fn begin(self: &Arc<Self>, id: &str, answers: u32) -> Spending {
        Spending {
            energy: self.clone(),
            id: id.to_string(),
            answers,
        }
    }

    /// What a request has used, all of its answers together; `None` if it is not known, or
    /// no longer.
    pub fn receipt(&self, id: &str, answers: u32) -> Option<EnergyReceipt> {
        let mut books = self.books();
        // A short answer is over before the next tick.
        books.take_steps(self.now_us());
        let one = |index| books.ledger.receipt(account(&job_id(id, index)));
        let sum = (0..answers).filter_map(one).reduce(Receipt::plus)?;
        Some(EnergyReceipt::from(sum))
    }

    /// What one answer took, as far as it is known: by the id of its job.
    pub fn taken(&self, job_id: &str) -> Option<Taken> {
        let receipt = self.books().ledger.receipt(account(job_id))?;
        Some(Taken {
            prefill_uj: receipt.prefill_uj,
            decode_uj: receipt.decode_uj + receipt.pending_uj,
            settled: receipt.settled,
        })
    }

    /// Whether answers ever have a receipt.
    pub fn is_on(&self) -> bool {
        self.mode != EnergyMode::Off
    }

    /// What one answer has used, J, with what is only expected of it so far.
    pub fn joules_of(&self, job: &str) -> Option<Sample> {
        let mut books = self.books();
        books.take_steps(self.now_us());
        let receipt = books.ledger.receipt(account(job))?;
        Some(Sample {
            origin: receipt.origin,
            relative_error: Some(receipt.relative_error as f32),
            ..Sample::measured(receipt.joules())
        })
    }

    /// The books of all devices, by name.
    pub fn accounts(&self) -> Vec<(String, Accounts)> {
        let books = self.books();
        let accounts = books.ledger.accounts();
        accounts.map(|(name, a)| (name.to_string(), a)).collect()
    }
}

impl Books {
    /// Takes the steps that have ended and returns the time up to which all are known.
    fn take_steps(&mut self, now_us: u64) -> u64 {
        let mut known_us = now_us;
        for inbox in &self.inboxes {
            known_us = known_us.min(inbox.drain(now_us, |step| self.ledger.step(step)));
        }
        known_us
    }

    /// The processors, as far as a sensor tells their energy; otherwise what stands for them.
    fn processors(&mut self, snapshot: &Snapshot, measured_only: bool) -> Vec<DeviceIndex> {
        let told = snapshot.devices.iter().filter(|d| {
            let is_processor = matches!(d.kind, DeviceKind::Cpu | DeviceKind::Soc);
            is_processor && (d.energy_joules.is_some() || d.power_watts.is_some())
        });
        let told: Vec<DeviceIndex> = told
            .filter_map(|d| self.ledger.device(&d.id, d.kind))
            .collect();
        if told.is_empty() && measured_only {
            return Vec::new();
        }
        if told.is_empty() {
            self.modelled = self.ledger.device(PROCESSOR, DeviceKind::Cpu);
            return self.modelled.into_iter().collect();
        }
        self.measured.clone_from(&told);
        told
    }

    fn take_processor_time(&mut self, now_us: u64) {
        let Some(time) = self.processor.read() else {
            return;
        };
        if let Some(device) = self.modelled {
            self.ledger.processor_time(device, now_us, time.own_us);
        }
        let Some(before) = self.processor_before.replace(time) else {
            return;
        };
        let own = time.own_us.saturating_sub(before.own_us) as f64;
        let all = time.all_us.saturating_sub(before.all_us) as f64;
        for device in &self.measured {
            // The kernel's ticks are coarse, and the two counts are not read at one moment.
            let ratio = if all > 0.0 { (own / all).min(1.0) } else { 1.0 };
            self.ledger.set_own_ratio(*device, ratio);
        }
    }
}

/// A request that is being served. Dropping it, whatever the reason, ends its account.
pub struct Spending {
    energy: Arc<Energy>,
    id: String,
    answers: u32,
}

impl Spending {
    /// What it has used so far.
    pub fn receipt(&self) -> Option<EnergyReceipt> {
        self.energy.receipt(&self.id, self.answers)
    }
}

impl Drop for Spending {
    fn drop(&mut self) {
        if self.energy.mode == EnergyMode::Off {
            return;
        }
        let now_us = self.energy.now_us();
        let accounts = (0..self.answers).map(|index| account(&job_id(&self.id, index)));
        let leaving = accounts.map(|account| (account, now_us));
        self.energy.books().leaving.extend(leaving);
    }
}

/// A receipt as it stands in `usage`.
#[derive(Debug, Clone, Serialize)]
pub struct EnergyReceipt {
    joules: f64,
    prefill_joules: f64,
    decode_joules: f64,
    /// Of these: guesses that were thrown away.
    wasted_joules: f64,
    /// In `joules`, but only expected so far.
    pending_joules: f64,
    origin: Origin,
    relative_error: f64,
    boundary: String,
    method: &'static str,
    /// Other programs used the same device.
    shared: bool,
    /// Part of the time no sensor answered: the true sum is larger.
    incomplete: bool,
    /// Final.
    settled: bool,
}

impl From<Receipt> for EnergyReceipt {
    fn from(receipt: Receipt) -> Self {
        let joules = |uj: u64| uj as f64 / 1e6;
        Self {
            joules: receipt.joules(),
            prefill_joules: joules(receipt.prefill_uj),
            decode_joules: joules(receipt.decode_uj),
            wasted_joules: joules(receipt.wasted_uj),
            pending_joules: joules(receipt.pending_uj),
            origin: receipt.origin,
            relative_error: (receipt.relative_error * 1e3).round() / 1e3,
            boundary: receipt.boundary.to_string(),
            method: match receipt.method {
                SplitMethod::Components => "components",
                SplitMethod::Time => "time",
                SplitMethod::Tokens => "tokens",
            },
            shared: receipt.shared,
            incomplete: receipt.incomplete,
            settled: receipt.settled,
        }
    }
}

/// From an engine's clock to that of the snapshots; whichever began first.
#[derive(Debug, Clone, Copy)]
enum Offset {
    Later(Duration),
    Earlier(Duration),
}

impl Offset {
    fn between(engine: Instant, snapshots: Instant) -> Self {
        match engine.checked_duration_since(snapshots) {
            Some(later) => Self::Later(later),
            None => Self::Earlier(snapshots.duration_since(engine)),
        }
    }

    fn us(self, at: Duration) -> u64 {
        let at = match self {
            Self::Later(by) => at + by,
            Self::Earlier(by) => at.saturating_sub(by),
        };
        at.as_micros() as u64
    }
}

/// On the engine's thread: writes its steps into the log.
struct Recorder {
    log: StepLog,
    offset: Offset,
    cost: ModelCost,
}

impl StepObserver for Recorder {
    fn began(&mut self, at: Duration) {
        self.log.begin(self.offset.us(at));
    }

    fn ended(&mut self, began: Duration, ended: Duration, sequences: &[SequenceStep]) {
        if sequences.is_empty() {
            self.log.nothing();
            return;
        }
        let work = |s: &SequenceStep| SequenceWork {
            request: s.account,
            phase: match s.prefill {
                true => Phase::Prefill,
                false => Phase::Decode,
            },
            computed_tokens: s.computed_tokens,
            context_tokens: s.context_tokens,
            rejected_tokens: s.rejected_tokens,
        };
        self.log.end(Step {
            start_us: self.offset.us(began),
            end_us: self.offset.us(ended),
            devices: self.log.devices(),
            cost: Some(self.cost),
            sequences: sequences.iter().map(work).collect(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homeostat_hooks::{Device as Seen, Sample};

    fn config(mode: EnergyMode) -> EnergyConfig {
        EnergyConfig {
            mode,
            ..EnergyConfig::default()
        }
    }

    fn recorder(energy: &Energy, devices: &[DeviceIndex]) -> Recorder {
        let (log, inbox) = step_log(Devices::of(devices), 16);
        energy.books().inboxes.push(inbox);
        Recorder {
            log,
            offset: Offset::Later(Duration::ZERO),
            cost: ModelCost {
                weight_bytes: 1e8,
                kv_bytes_per_token: 1e4,
                flops_per_token: 1e8,
                flops_per_context_token: 1e4,
            },
        }
    }

    fn sequence(account: u64) -> SequenceStep {
        SequenceStep {
            account,
            prefill: false,
            computed_tokens: 1,
            context_tokens: 10,
            rejected_tokens: 0,
        }
    }

    #[test]
    fn a_request_is_settled_after_it_left_and_its_answers_are_one_receipt() {
        let epoch = Instant::now() - Duration::from_secs(10);
        let energy = Arc::new(Energy::new(
            &config(EnergyMode::Auto),
            Path::new("/none"),
            epoch,
        ));
        let gpu = energy.books().ledger.device("gpu.0", DeviceKind::Gpu);
        let mut recorder = recorder(&energy, &[gpu.expect("first")]);
        let seen = |at_ms: u64, joules: f64| Snapshot {
            monotonic_ms: at_ms,
            devices: vec![Seen {
                id: "gpu.0".into(),
                kind: DeviceKind::Gpu,
                energy_joules: Some(Sample::measured(joules)),
                ..Seen::default()
            }],
            ..Snapshot::default()
        };
        energy.tick(&seen(900, 99.0), &[]);
        energy.tick(&seen(1_000, 100.0), &[]);
        let spending = energy.begin("chatcmpl-1", 2);
        let at = Duration::from_millis;
        recorder.began(at(1_000));
        let both = [
            sequence(account("chatcmpl-1")),
            sequence(account("chatcmpl-1.1")),
        ];
        recorder.ended(at(1_000), at(1_090), &both);
        energy.tick(&seen(1_100, 130.0), &[]);
        let receipt = spending.receipt().expect("booked");
        assert!(!receipt.settled);
        assert!((receipt.joules - 27.0).abs() < 1e-6, "{receipt:?}");
        drop(spending);
        std::thread::sleep(Duration::from_millis(20));
        let settled = energy.tick(&seen(1_200, 140.0), &[]);
        assert_eq!(settled.len(), 2);
        let receipt = energy.receipt("chatcmpl-1", 2).expect("kept");
        assert!(receipt.settled && receipt.boundary == "accelerator");
        assert_eq!(energy.receipt("chatcmpl-2", 1).map(|r| r.joules), None);
    }

    #[test]
    fn switched_off_nothing_is_kept() {
        let energy = Energy::new(&config(EnergyMode::Off), Path::new("/none"), Instant::now());
        let energy = Arc::new(energy);
        drop(energy.begin("chatcmpl-1", 1));
        assert!(energy.tick(&Snapshot::default(), &[]).is_empty());
        assert!(energy.accounts().is_empty());
    }

    #[test]
    fn clocks_that_began_at_other_times_agree() {
        let first = Instant::now();
        let second = first + Duration::from_secs(3);
        let at = Duration::from_secs(5);
        assert_eq!(Offset::between(second, first).us(at), 8_000_000);
        assert_eq!(Offset::between(first, second).us(at), 2_000_000);
    }

    #[test]
    fn names_of_requests_become_accounts_and_none_is_nobody() {
        assert_ne!(account("chatcmpl-1"), account("chatcmpl-1.1"));
        assert_ne!(account(""), 0);
    }
}
