//! The energy of requests: what engines did and what sensors told, brought together ten
//! times a second, and the receipt that every answer carries.
//!
//! The books are kept by the telemetry room's ledger; here stand its clock, its queue from
//! every engine, and the words of the wire. Where no sensor is, or none any more, energy is
//! modelled from processor time and says so, unless the operator wants measured numbers
//! only. It refuses to hold up an answer: what is not settled yet is told as it is known,
//! and `/v1/requests/{id}/energy` tells the rest.
//!
//! What policies ask models for a request is on its receipt, however late they ask: it is not
//! settled before its policies have done. What nobody's request pays is the host's own.

mod elsewhere;
mod planned_power;

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use homeostat_engine::{Device, EngineHandle, SequenceStep, StepObserver};
use homeostat_hooks::{Device as SeenDevice, DeviceKind, Origin, Sample, Snapshot};
use homeostat_telemetry::ledger::{
    Accounts, Boundary, DeviceIndex, Devices, HOST, Ledger, ModelCost, Phase, ProcessorPower,
    Receipt, SequenceWork, SplitMethod, Step, StepInbox, StepLog, step_log,
};
use homeostat_telemetry::{EnergyMove, ProcessorClock, ProcessorTime};
use serde::Serialize;

use self::elsewhere::{Answers, Elsewhere};
pub use self::planned_power::{PlannedPower, TierLoad};
use crate::budgets::Taken;
use crate::config::{EnergyConfig, EnergyMode};
use crate::openai::request::job_id;
use crate::tiers::device_id;

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

/// The account of what policies ask for a request. No id has a question mark.
fn account_of_questions(request_id: &str) -> u64 {
    account(&format!("{request_id}?"))
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
    /// Where the encoder computes, once it is watched, and when its running calls began.
    encoder_on: Option<Devices>,
    encoding: Vec<u64>,
    /// What others made.
    elsewhere: Answers,
    processor: ProcessorClock,
    processor_before: Option<ProcessorTime>,
    /// Devices that stand for processors. Measured ones, none of which contains another, are
    /// shared with other programs, and stay here when their sensor leaves.
    measured: Vec<DeviceIndex>,
    modelled: Option<DeviceIndex>,
    /// Requests that are over, and since when.
    leaving: Vec<(u64, u64)>,
    /// Requests whose policies may still ask, or since when they do not.
    asking: HashMap<u64, Option<u64>>,
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
                encoder_on: None,
                encoding: Vec::new(),
                elsewhere: Answers::default(),
                processor: ProcessorClock::new(procfs_root),
                processor_before: None,
                measured: Vec::new(),
                modelled: None,
                leaving: Vec::new(),
                asking: HashMap::new(),
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
        if device != Device::Cpu {
            let name = device_id(device);
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

    /// From now on calls of the encoder are booked, which computes on the processors.
    pub fn watch_encoder(&self, snapshot: &Snapshot) {
        if self.mode == EnergyMode::Off {
            return;
        }
        let mut books = self.books();
        let processors = books.processors(snapshot, self.mode == EnergyMode::MeasuredOnly);
        books.encoder_on = Some(Devices::of(&processors));
    }

    /// Takes what has happened since the last call and returns what was settled, J. `moves` are
    /// those of energy counters up to this snapshot and not told before.
    pub fn tick(&self, snapshot: &Snapshot, moves: &[EnergyMove]) -> Vec<f64> {
        if self.mode == EnergyMode::Off {
            return Vec::new();
        }
        let now_us = self.now_us();
        let settled = self.books().tick(snapshot, moves, now_us);
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

    /// Policies may ask for this job from now on, until what is returned is dropped. One at a time.
    pub fn questions_of(self: &Arc<Self>, job_id: &str) -> Questions {
        let request = account(job_id);
        if self.is_on() {
            self.books().asking.insert(request, None);
        }
        Questions {
            energy: self.clone(),
            request,
            account: account_of_questions(job_id),
        }
    }

    /// The encoder computes from now on what nobody's request pays for.
    pub fn begin_encoding(self: &Arc<Self>) -> Encoding {
        self.encoding_for(HOST)
    }

    fn encoding_for(self: &Arc<Self>, account: u64) -> Encoding {
        let start_us = self.now_us();
        self.books().encoding.push(start_us);
        Encoding {
            energy: self.clone(),
            account,
            start_us,
            tokens: 0,
        }
    }

    /// What a request has used, all of its answers together; `None` if it is not known, or
    /// no longer.
    pub fn receipt(&self, id: &str, answers: u32) -> Option<EnergyReceipt> {
        let mut books = self.books();
        // A short answer is over before the next tick.
        books.take_steps(self.now_us());
        let accounts = (0..answers).map(|index| account(&job_id(id, index)));
        let accounts: Vec<u64> = accounts.collect();
        let may_grow = accounts.iter().any(|a| books.asking.contains_key(a));
        let booked = accounts.iter().filter_map(|a| books.ledger.receipt(*a));
        let booked = booked.reduce(Receipt::plus);
        let elsewhere = accounts.iter().map(|a| books.elsewhere.of(*a));
        let elsewhere = elsewhere.fold(Elsewhere::default(), Elsewhere::plus);
        let Some(sum) = booked
            .into_iter()
            .chain(elsewhere.receipt())
            .reduce(Receipt::plus)
        else {
            let took_nothing = elsewhere.is_direct && !elsewhere.is_unknown;
            return took_nothing.then(|| EnergyReceipt::direct(!may_grow));
        };
        let mut receipt = EnergyReceipt::from(sum);
        receipt.settled &= !may_grow;
        receipt.incomplete |= elsewhere.is_unknown;
        if elsewhere.stated_uj.is_some() {
            receipt.method = "stated";
        }
        Some(receipt)
    }

    /// A remote tier had a part in this job's answer, and took so much by its own statement.
    pub fn took_elsewhere(&self, job: &str, joules: Option<f64>) {
        // Who wants measured numbers only gets no stated ones.
        let stated = joules.filter(|_| self.mode == EnergyMode::Auto);
        let part = Elsewhere {
            stated_uj: stated.map(|joules| (joules * 1e6).round() as u64),
            is_unknown: stated.is_none(),
            ..Elsewhere::default()
        };
        self.add_elsewhere(job, part);
    }

    /// No model was asked for this job's answer.
    pub fn took_nothing(&self, job: &str) {
        let part = Elsewhere {
            is_direct: self.mode == EnergyMode::Auto,
            ..Elsewhere::default()
        };
        self.add_elsewhere(job, part);
    }

    fn add_elsewhere(&self, job: &str, part: Elsewhere) {
        if self.mode != EnergyMode::Off {
            self.books().elsewhere.add(account(job), part);
        }
    }

    /// What one answer took on this host, as far as it is known: by the id of its job. What is
    /// only expected of it so far stands with the writing.
    pub fn taken(&self, job_id: &str) -> Option<Taken> {
        let mut books = self.books();
        books.take_steps(self.now_us());
        let receipt = books.ledger.receipt(account(job_id))?;
        let expected = [
            receipt.pending_uj - receipt.policy_pending_uj,
            receipt.policy_pending_uj,
        ];
        Some(Taken {
            prefill_uj: receipt.prefill_uj,
            decode_uj: receipt.decode_uj + expected[0],
            policy_uj: receipt.policy_uj + expected[1],
            settled: receipt.settled,
        })
    }

    /// Whether answers ever have a receipt.
    pub fn is_on(&self) -> bool {
        self.mode != EnergyMode::Off
    }

    /// What one answer has used, J, with what is only expected of it so far, and without what
    /// policies asked for it: routers learn from it what tiers take.
    pub fn joules_of(&self, job: &str) -> Option<Sample> {
        let mut books = self.books();
        books.take_steps(self.now_us());
        let account = account(job);
        let booked = books.ledger.receipt(account).and_then(answer_alone);
        let elsewhere = books.elsewhere.of(account).receipt();
        let all = booked.into_iter().chain(elsewhere);
        let receipt = all.reduce(Receipt::plus)?;
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
    fn tick(
        &mut self,
        snapshot: &Snapshot,
        moves: &[EnergyMove],
        now_us: u64,
    ) -> Vec<(u64, Receipt)> {
        self.take_processor_time(now_us);
        self.ledger.moved(moves);
        let booked = self.booked_of(snapshot);
        self.ledger.sense(&booked);
        let known_us = self.take_steps(now_us);
        // Not before the steps that ran when they left are known, nor while a policy may ask.
        self.asking
            .retain(|_, left_us| left_us.is_none_or(|us| us >= known_us));
        let (ledger, asking) = (&mut self.ledger, &self.asking);
        self.leaving.retain(|(request, left_us)| {
            let stays = *left_us >= known_us || asking.contains_key(request);
            if !stays {
                ledger.finish(*request);
            }
            stays
        });
        self.ledger.advance(known_us, now_us);
        self.ledger.newly_settled()
    }

    /// Takes the steps that have ended and returns the time up to which all are known.
    fn take_steps(&mut self, now_us: u64) -> u64 {
        let mut known_us = now_us;
        for inbox in &self.inboxes {
            known_us = known_us.min(inbox.drain(now_us, |step| self.ledger.step(step)));
        }
        let running = self.encoding.iter().copied();
        running.fold(known_us, u64::min)
    }

    /// What of a snapshot is booked. Once something stands for all processors, a sensor of one
    /// that appears later is left out: their idling would be booked twice, and no step of an
    /// engine that runs already could move from the one to the other.
    fn booked_of<'s>(&self, snapshot: &'s Snapshot) -> Cow<'s, Snapshot> {
        let mut booked = Cow::Borrowed(snapshot);
        if self.modelled.is_some() && snapshot.devices.iter().any(is_processor) {
            booked.to_mut().devices.retain(|seen| !is_processor(seen));
        }
        booked
    }

    /// The processors, as far as a sensor tells their energy, or told it once; otherwise what
    /// stands for them, from then on.
    fn processors(&mut self, snapshot: &Snapshot, measured_only: bool) -> Vec<DeviceIndex> {
        if self.modelled.is_some() {
            return self.modelled.into_iter().collect();
        }
        let told = snapshot
            .devices
            .iter()
            .filter(|d| is_processor(d) && (d.energy_joules.is_some() || d.power_watts.is_some()));
        let told: Vec<DeviceIndex> = told
            .filter_map(|d| self.ledger.device(&d.id, d.kind))
            .collect();
        for device in &told {
            if !self.measured.contains(device) {
                self.measured.push(*device);
            }
        }
        if measured_only {
            return told;
        }
        if self.measured.is_empty() {
            self.modelled = self.ledger.device(PROCESSOR, DeviceKind::Cpu);
            return self.modelled.into_iter().collect();
        }
        // One whose sensor has left meanwhile goes on as modelled.
        self.measured.clone()
    }

    fn take_processor_time(&mut self, now_us: u64) {
        let Some(time) = self.processor.read() else {
            return;
        };
        match self.modelled {
            // It stands for all of them: beside it the time would be modelled twice.
            Some(device) => {
                self.ledger.processor_time(device, now_us, time.own_us, 1.0);
            }
            // Which of them a thread ran on is not known: of what is modelled each is an
            // equal part.
            None => {
                let part = 1.0 / self.measured.len() as f64;
                for device in &self.measured {
                    self.ledger
                        .processor_time(*device, now_us, time.own_us, part);
                }
            }
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

/// What of a receipt is not policies' doing; `None` if nothing is.
fn answer_alone(receipt: Receipt) -> Option<Receipt> {
    let alone = Receipt {
        policy_uj: 0,
        pending_uj: receipt.pending_uj - receipt.policy_pending_uj,
        policy_pending_uj: 0,
        ..receipt
    };
    let asked = receipt.policy_uj + receipt.policy_pending_uj;
    (asked == 0 || alone.total_uj() > 0).then_some(alone)
}

fn is_processor(seen: &SeenDevice) -> bool {
    matches!(seen.kind, DeviceKind::Cpu | DeviceKind::Soc)
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

    /// The encoder computes for it from now on, until what is returned is ended or dropped.
    pub fn begin_encoding(&self) -> Encoding {
        self.energy.encoding_for(account(&self.id))
    }
}

/// What policies ask models for one job, which pays. Until it is dropped the job is not settled.
pub struct Questions {
    energy: Arc<Energy>,
    request: u64,
    account: u64,
}

impl Questions {
    /// The account on which a model is to compute what they ask.
    pub fn account(&self) -> u64 {
        if self.energy.is_on() {
            let mut books = self.energy.books();
            books.ledger.asks(self.request, self.account);
        }
        self.account
    }

    /// The encoder computes what they ask from now on, until what is returned is ended or dropped.
    pub fn begin_encoding(&self) -> Encoding {
        self.energy.encoding_for(self.account())
    }
}

impl Drop for Questions {
    fn drop(&mut self) {
        if self.energy.is_on() {
            let now_us = self.energy.now_us();
            let mut books = self.energy.books();
            books.asking.insert(self.request, Some(now_us));
        }
    }
}

/// A call of the encoder. Until it is dropped no time is booked in which it ran.
pub struct Encoding {
    energy: Arc<Energy>,
    account: u64,
    start_us: u64,
    tokens: u32,
}

impl Encoding {
    /// So many tokens were read, control tokens included.
    pub fn end(mut self, tokens: u32) {
        self.tokens = tokens;
    }
}

impl Drop for Encoding {
    fn drop(&mut self) {
        let end_us = self.energy.now_us();
        let mut books = self.energy.books();
        let running = books.encoding.iter().position(|us| *us == self.start_us);
        if let Some(at) = running {
            books.encoding.swap_remove(at);
        }
        let Some(devices) = books.encoder_on.filter(|_| self.tokens > 0) else {
            return;
        };
        books.ledger.step(Step {
            start_us: self.start_us,
            end_us,
            devices,
            cost: None,
            sequences: vec![SequenceWork {
                request: self.account,
                phase: Phase::Prefill,
                computed_tokens: self.tokens,
                context_tokens: 0,
                rejected_tokens: 0,
            }],
        });
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
    /// What policies asked models for it.
    policy_joules: f64,
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

impl EnergyReceipt {
    /// Of an answer without a model.
    fn direct(settled: bool) -> Self {
        Self {
            joules: 0.0,
            prefill_joules: 0.0,
            decode_joules: 0.0,
            policy_joules: 0.0,
            wasted_joules: 0.0,
            pending_joules: 0.0,
            origin: Origin::Modelled,
            relative_error: 0.0,
            boundary: Boundary::Cpu.to_string(),
            method: "direct",
            shared: false,
            incomplete: false,
            settled,
        }
    }
}

impl From<Receipt> for EnergyReceipt {
    fn from(receipt: Receipt) -> Self {
        let joules = |uj: u64| uj as f64 / 1e6;
        Self {
            joules: receipt.joules(),
            prefill_joules: joules(receipt.prefill_uj),
            decode_joules: joules(receipt.decode_uj),
            policy_joules: joules(receipt.policy_uj),
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
            request: match s.account {
                // What nobody pays is the host's own.
                0 => HOST,
                account => account,
            },
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

    /// What the counter of a GPU says at this time.
    fn seen(at_ms: u64, joules: f64) -> Snapshot {
        Snapshot {
            monotonic_ms: at_ms,
            devices: vec![Seen {
                id: "gpu.0".into(),
                kind: DeviceKind::Gpu,
                energy_joules: Some(Sample::measured(joules)),
                ..Seen::default()
            }],
            ..Snapshot::default()
        }
    }

    /// Books of ten seconds ago whose counter has moved once, to 100 J.
    fn with_counter() -> (Arc<Energy>, Recorder) {
        let epoch = Instant::now() - Duration::from_secs(10);
        let auto = config(EnergyMode::Auto);
        let energy = Arc::new(Energy::new(&auto, Path::new("/none"), epoch));
        let gpu = energy.books().ledger.device("gpu.0", DeviceKind::Gpu);
        let recorder = recorder(&energy, &[gpu.expect("first")]);
        energy.tick(&seen(900, 99.0), &[]);
        energy.tick(&seen(1_000, 100.0), &[]);
        (energy, recorder)
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
        let (energy, mut recorder) = with_counter();
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
    fn receipts_of_requests_whose_policies_ask_add_up_to_the_books() {
        let (energy, mut recorder) = with_counter();
        let ids = ["a", "b", "c"];
        let spendings = ids.map(|id| energy.begin(id, 1));
        let questions = ids.map(|id| energy.questions_of(id));
        let at = Duration::from_millis;
        // Three answers, the questions of two policies, and one of the host.
        let mut step: Vec<SequenceStep> = ids.iter().map(|id| sequence(account(id))).collect();
        step.extend(questions[..2].iter().map(|q| sequence(q.account())));
        step.push(sequence(0));
        recorder.began(at(1_000));
        recorder.ended(at(1_000), at(1_090), &step);
        drop(spendings);
        std::thread::sleep(Duration::from_millis(20));
        assert!(energy.tick(&seen(1_100, 130.0), &[]).is_empty());
        let open = energy.receipt("c", 1).expect("booked");
        assert!(!open.settled, "its policies may ask");
        // The answers are sent, and a policy asks once more.
        recorder.began(at(1_100));
        let late = [sequence(questions[0].account())];
        recorder.ended(at(1_100), at(1_190), &late);
        drop(questions);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(energy.tick(&seen(1_200, 140.0), &[]).len(), 3);
        let receipts = ids.map(|id| energy.receipt(id, 1).expect("kept"));
        for (receipt, policies) in receipts.iter().zip([13.5, 4.5, 0.0]) {
            assert!(receipt.settled && !receipt.incomplete, "{receipt:?}");
            let parts = [receipt.policy_joules, receipt.decode_joules];
            assert!((parts[0] - policies).abs() < 1e-5, "{receipt:?}");
            assert!((parts[1] - 4.5).abs() < 1e-5, "{receipt:?}");
        }
        let microjoules = |receipt: &EnergyReceipt| (receipt.joules * 1e6).round() as u64;
        let (_, books) = energy.accounts().remove(0);
        let sum: u64 = receipts.iter().map(microjoules).sum();
        assert_eq!(sum, books.attributed_uj());
        assert!(books.unattributed.host_uj.abs_diff(4_500_000) < 10);
        let taken = energy.taken("a").expect("kept");
        assert!(taken.policy_uj.abs_diff(13_500_000) < 10, "{taken:?}");
        let answer = energy.joules_of("a").expect("kept");
        assert!((answer.value - 4.5).abs() < 1e-5, "routers learn of tiers");
    }

    #[test]
    fn a_direct_answer_is_not_settled_while_a_policy_may_ask() {
        let auto = config(EnergyMode::Auto);
        let energy = Arc::new(Energy::new(&auto, Path::new("/none"), Instant::now()));
        let questions = energy.questions_of("d");
        energy.took_nothing("d");
        let receipt = || energy.receipt("d", 1).expect("nothing is a number");
        assert!(!receipt().settled);
        drop(questions);
        std::thread::sleep(Duration::from_millis(20));
        energy.tick(&Snapshot::default(), &[]);
        assert!(receipt().settled);
        assert!(energy.books().asking.is_empty());
    }

    #[test]
    fn an_answer_without_a_model_took_nothing_and_a_remote_part_is_stated_or_unknown() {
        let energy = |mode| Energy::new(&config(mode), Path::new("/none"), Instant::now());
        let auto = energy(EnergyMode::Auto);
        auto.took_nothing("d");
        let direct = auto.receipt("d", 1).expect("nothing is a number");
        assert_eq!((direct.joules, direct.method), (0.0, "direct"));
        assert!(direct.settled && direct.origin == Origin::Modelled);
        auto.took_elsewhere("s", Some(2.5));
        let stated = auto.receipt("s", 1).expect("stated");
        assert_eq!((stated.joules, stated.method), (2.5, "stated"));
        assert_eq!(auto.joules_of("s").expect("stated").value, 2.5);
        assert!(auto.taken("s").is_none(), "it took nothing of this host");
        auto.took_elsewhere("s", None);
        assert!(auto.receipt("s", 1).expect("stated").incomplete);
        auto.took_elsewhere("u", None);
        auto.took_nothing("u.1");
        assert!(auto.receipt("u", 2).is_none(), "one of two is unknown");
        for mode in [EnergyMode::MeasuredOnly, EnergyMode::Off] {
            let strict = energy(mode);
            strict.took_nothing("d");
            strict.took_elsewhere("s", Some(2.5));
            assert!(strict.receipt("d", 1).is_none());
            assert!(strict.receipt("s", 1).is_none());
        }
    }

    #[test]
    fn the_encoder_pays_for_the_time_that_it_computed() {
        let epoch = Instant::now() - Duration::from_secs(10);
        let energy = Energy::new(&config(EnergyMode::Auto), Path::new("/none"), epoch);
        let energy = Arc::new(energy);
        let reads = |at_us: u64, joules: f64| Snapshot {
            monotonic_ms: at_us / 1_000,
            devices: vec![Seen {
                id: "cpu.0".into(),
                kind: DeviceKind::Cpu,
                energy_joules: Some(Sample::measured(joules)),
                ..Seen::default()
            }],
            ..Snapshot::default()
        };
        let start_us = energy.now_us();
        energy.watch_encoder(&reads(start_us - 200_000, 90.0));
        energy.tick(&reads(start_us - 200_000, 90.0), &[]);
        energy.tick(&reads(start_us - 100_000, 95.0), &[]);
        let spending = energy.begin("req-1", 1);
        let encoding = spending.begin_encoding();
        std::thread::sleep(Duration::from_millis(30));
        // A window that ends while it computes waits for it.
        energy.tick(&reads(energy.now_us(), 101.0), &[]);
        assert!(spending.receipt().is_none());
        encoding.end(12);
        drop(energy.begin("req-2", 1).begin_encoding());
        assert!(energy.books().encoding.is_empty());
        std::thread::sleep(Duration::from_millis(60));
        energy.tick(&reads(energy.now_us(), 103.0), &[]);
        let receipt = spending.receipt().expect("booked");
        assert!(receipt.prefill_joules > 0.0, "{receipt:?}");
        assert!(receipt.joules <= 8.0 + 1e-6, "{receipt:?}");
        assert_eq!(receipt.boundary, "cpu");
        assert!(energy.receipt("req-2", 1).is_none(), "it read nothing");
    }

    /// Two packages of which the permission is revoked after two seconds.
    fn packages(tick: u64) -> Snapshot {
        let told = tick.min(20);
        let package = |id: &str| Seen {
            id: id.into(),
            kind: DeviceKind::Cpu,
            energy_joules: Some(Sample {
                age_ms: (100 * (tick - told)) as u32,
                ..Sample::measured(10.0 * told as f64)
            }),
            ..Seen::default()
        };
        Snapshot {
            monotonic_ms: 100 * tick,
            devices: vec![package("cpu.0"), package("cpu.1")],
            ..Snapshot::default()
        }
    }

    /// One and a half processors are busy for this process, and six in all.
    fn write_processor_time(procfs: &Path, tick: u64) {
        let own = format!("7 (host) S 1 7 7 0 -1 0 0 0 0 0 {} 0 0 0 20\n", 15 * tick);
        std::fs::write(procfs.join("self/stat"), own).expect("written");
        let all = format!("cpu  {} 0 0 0 0 0 0 0 0 0\n", 60 * tick);
        std::fs::write(procfs.join("stat"), all).expect("written");
    }

    #[test]
    fn processors_whose_sensors_leave_go_on_as_modelled_unless_only_measured_counts() {
        for mode in [EnergyMode::Auto, EnergyMode::MeasuredOnly] {
            let only_measured = mode == EnergyMode::MeasuredOnly;
            let procfs = tempfile::tempdir().expect("a temporary folder");
            std::fs::create_dir(procfs.path().join("self")).expect("made");
            let config = config(mode);
            let energy = Arc::new(Energy::new(&config, procfs.path(), Instant::now()));
            let processors = energy.books().processors(&packages(0), only_measured);
            assert_eq!(processors.len(), 2);
            let mut recorder = recorder(&energy, &processors);
            let at = |tick: u64| Duration::from_millis(100 * tick);
            for tick in 0..=130u64 {
                write_processor_time(procfs.path(), tick);
                let id = match tick {
                    11..=20 => Some("before"),
                    61..=70 => Some("after"),
                    _ => None,
                };
                if let Some(id) = id {
                    recorder.began(at(tick - 1));
                    recorder.ended(at(tick - 1), at(tick), &[sequence(account(id))]);
                }
                if tick == 20 || tick == 70 {
                    drop(energy.begin(id.expect("it ran until now"), 1));
                }
                let now_us = tick * 100_000 + 30_000;
                energy.books().tick(&packages(tick), &[], now_us);
            }
            let before = energy.receipt("before", 1).expect("measured");
            assert_eq!((before.origin, before.shared), (Origin::Measured, true));
            assert!(before.settled && !before.incomplete, "{before:?}");
            // Two packages of 100 W for a second, of which a quarter is ours.
            assert!((before.joules - 50.0).abs() < 1e-3, "{before:?}");
            for (name, a) in energy.accounts() {
                let sum = a.attributed_uj() + a.idle_uj + a.unattributed.total_uj();
                assert_eq!(sum, a.measured_uj, "{name}");
            }
            let after = energy.receipt("after", 1);
            let none_now = Snapshot::default();
            let again = energy.books().processors(&none_now, only_measured);
            if only_measured {
                assert!(after.is_none(), "{after:?}");
                assert!(again.is_empty());
                continue;
            }
            let after = after.expect("modelled");
            assert_eq!((after.origin, after.shared), (Origin::Modelled, false));
            assert!(after.settled && !after.incomplete, "{after:?}");
            // Both packages together are one machine.
            let processors_here = std::thread::available_parallelism().map_or(1, usize::from);
            let idle_watts = config.idle_watts_per_processor;
            let watts = 1.5 * (config.busy_watts_per_processor - idle_watts)
                + idle_watts * processors_here as f64;
            assert!((after.joules - watts).abs() < 1e-3, "{after:?} {watts}");
            assert_eq!(
                again, processors,
                "who is started now is modelled as they are"
            );
        }
    }

    #[test]
    fn a_sensor_that_appears_beside_what_stands_for_the_processors_is_not_booked_beside_it() {
        let procfs = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(procfs.path().join("self")).expect("made");
        let auto = config(EnergyMode::Auto);
        let energy = Energy::new(&auto, procfs.path(), Instant::now());
        let stand_in = energy.books().processors(&Snapshot::default(), false);
        for tick in 0..=20u64 {
            write_processor_time(procfs.path(), tick);
            let now_us = tick * 100_000 + 30_000;
            energy.books().tick(&packages(tick), &[], now_us);
        }
        let accounts = energy.accounts();
        let names: Vec<&str> = accounts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [PROCESSOR]);
        assert!(accounts[0].1.idle_uj > 0, "{accounts:?}");
        // Who is started now works on the same, too.
        let later = energy.books().processors(&packages(21), false);
        assert_eq!(later, stand_in);
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
