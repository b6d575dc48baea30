//! The energy ledger: which request used which joule.
//!
//! ```text
//! sensor ──► Meter ──► windows ─┐
//!                               ├─► steps ─► sequences ─► receipts
//! engine ──► step log ──────────┘      └─► idle, unattributed
//! ```
//!
//! One book per device. A window of energy is split over the steps that ran in it, by what
//! each is expected to take in its part of the window, and the time without a step is idle
//! and nobody's; a step is split over its sequences by [`split`]. Everything is whole
//! micro-joules: what is attributed, idle and unattributed adds up to what was measured,
//! exactly, for every window and every device.
//!
//! What policies ask models for a request has an account of its own, so that nobody takes it for
//! the answer, and stands on the request's receipt as a part of its own. What the host asks for
//! itself is nobody's.
//!
//! A window is booked when all steps of its time are known, a request is settled when all
//! windows of its steps are booked, and what is settled never changes. Time comes in as an
//! argument. The ledger refuses to hide where a number comes from ([`Receipt`]), to give
//! idle energy to anybody, and to invent energy for a time without a reading.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use homeostat_hooks::{DeviceKind, Origin, Snapshot};

use crate::energy::EnergyMove;

mod apportion;
mod meter;
mod receipt;
pub mod split;
mod step_log;

pub use apportion::apportion;
pub use meter::{Meter, MeterFaults, ProcessorPower, Window};
pub use receipt::{Accounts, Boundary, Receipt, Unattributed, Weakness};
pub use split::{CostFit, ModelCost, Phase, SequenceWork, SplitMethod, StepCost};
pub use step_log::{StepInbox, StepLog, step_log};

/// A device that told nothing for so long after a request's last step will not tell more
/// about it: the request is settled as incomplete.
const SILENT_US: u64 = 5_000_000;
/// Steps wait so long for the window that covers them; a counter that was read once a minute
/// would be a bad one.
const STEPS_KEPT_US: u64 = 60_000_000;
/// With at least this share of a device a process is as good as alone on it.
const ALONE_RATIO: f64 = 0.95;
/// Settled receipts that are kept for whoever asks later.
const RECEIPTS_KEPT: usize = 10_000;
/// Devices that a ledger can keep books of.
const DEVICES_MAX: usize = 64;

/// The account of what the host asks its models for itself, such as for a shadow: no request's.
pub const HOST: u64 = u64::MAX;

/// A device of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceIndex(u8);

/// The devices that work on a step together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Devices(u64);

impl Devices {
    /// These devices.
    pub fn of(devices: &[DeviceIndex]) -> Self {
        Self(devices.iter().fold(0, |set, device| set | 1 << device.0))
    }

    fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    fn iter(self) -> impl Iterator<Item = usize> {
        (0..DEVICES_MAX).filter(move |device| self.0 >> device & 1 == 1)
    }

    fn count(self) -> u32 {
        self.0.count_ones()
    }
}

/// One step of an engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Begin, monotonic, on the clock of the meters.
    pub start_us: u64,
    /// End.
    pub end_us: u64,
    /// Who worked on it, in equal parts.
    pub devices: Devices,
    /// Sizes of the model, where they are known.
    pub cost: Option<ModelCost>,
    /// What was done for whom; empty = that is not known.
    pub sequences: Vec<SequenceWork>,
}

impl Step {
    /// A clock that stood still or ran back gives the shortest time there is.
    fn length_us(&self) -> u64 {
        self.end_us.saturating_sub(self.start_us).max(1)
    }

    /// How much of it lies between two times, as a share.
    fn overlap(&self, start_us: u64, end_us: u64) -> f64 {
        let end = self.start_us + self.length_us();
        let both = end.min(end_us).saturating_sub(self.start_us.max(start_us));
        both as f64 / self.length_us() as f64
    }

    /// The part of one device.
    fn cost_of_one(&self) -> Option<ModelCost> {
        let part = 1.0 / f64::from(self.devices.count().max(1));
        self.cost.map(|cost| ModelCost {
            weight_bytes: cost.weight_bytes * part,
            kv_bytes_per_token: cost.kv_bytes_per_token * part,
            flops_per_token: cost.flops_per_token * part,
            flops_per_context_token: cost.flops_per_context_token * part,
        })
    }

    fn work_of_one(&self) -> StepCost {
        let cost = self.cost_of_one();
        StepCost {
            seconds: self.length_us() as f64 / 1e6,
            bytes: cost.map_or(0.0, |c| c.step_bytes(&self.sequences)),
            flops: cost.map_or(0.0, |c| c.step_flops(&self.sequences)),
        }
    }
}

/// What one device is known to have used, and for what.
struct Book {
    kind: DeviceKind,
    meter: Meter,
    own_ratio: f64,
    steps: VecDeque<Arc<Step>>,
    fit: CostFit,
    accounts: Accounts,
    booked_us: u64,
    /// Time of all windows, µs.
    covered_us: u64,
    sensed_ms: [Option<u64>; 2],
    /// When the energy counter was taken last.
    counted_us: u64,
}

/// What is known of one request.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    prefill_uj: u64,
    decode_uj: u64,
    policy_uj: u64,
    /// The account of what policies ask for it, if one did.
    questions: Option<u64>,
    wasted_uj: f64,
    error_uj: f64,
    origin: Option<Origin>,
    devices: Devices,
    /// Those of which something was booked.
    charged: Devices,
    last_us: u64,
    method: Option<SplitMethod>,
    shared: bool,
    incomplete: bool,
    finished: bool,
    settled: bool,
}

/// To whom a part of a window goes; the order decides about equal remainders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Payer {
    Idle,
    Step(u64, u64, usize),
}

/// How much the parts of a window are worth.
#[derive(Debug, Clone, Copy)]
struct Quality {
    origin: Origin,
    coarse: bool,
    shared: bool,
}

/// The books of all devices and the receipts of all requests.
#[derive(Default)]
pub struct Ledger {
    books: Vec<Book>,
    names: Vec<String>,
    processor: Option<ProcessorPower>,
    requests: HashMap<u64, Entry>,
    /// Accounts of what policies ask, with the requests that pay.
    questions: HashMap<u64, u64>,
    /// Requests that are finished and not settled.
    waiting: Vec<u64>,
    settled: VecDeque<u64>,
    fresh: Vec<u64>,
}

impl Ledger {
    /// No device, no request. `processor`: what a processor without a sensor is taken to
    /// draw; without it such a machine has no receipts (*measured only*).
    pub fn new(processor: Option<ProcessorPower>) -> Self {
        Self {
            processor,
            ..Self::default()
        }
    }

    /// The device of this name, made on first use; `None` beyond 64 devices.
    pub fn device(&mut self, name: &str, kind: DeviceKind) -> Option<DeviceIndex> {
        let known = self.names.iter().position(|n| n == name);
        let index = match known {
            Some(index) => index,
            None if self.books.len() == DEVICES_MAX => return None,
            None => {
                self.names.push(name.to_owned());
                self.books.push(Book::new(kind));
                self.books.len() - 1
            }
        };
        Some(DeviceIndex(index as u8))
    }

    /// Takes moves of energy counters, which lie closer together than snapshots; to be told
    /// before the snapshot that was taken after them. Those of devices that no snapshot has
    /// shown yet are no loss: a window needs two.
    pub fn moved(&mut self, moves: &[EnergyMove]) {
        for moved in moves {
            if let Some(index) = self.names.iter().position(|name| *name == moved.device) {
                self.books[index].counter(moved.at_us, moved.total_uj);
            }
        }
    }

    /// Takes the energy and power readings that are new since the last snapshot.
    pub fn sense(&mut self, snapshot: &Snapshot) {
        for device in &snapshot.devices {
            let samples = [device.power_watts, device.energy_joules];
            if samples.iter().all(Option::is_none) {
                continue;
            }
            let Some(index) = self.device(&device.id, device.kind) else {
                continue;
            };
            let book = &mut self.books[usize::from(index.0)];
            // Power first: a counter that froze is closed with the power up to now.
            for (signal, sample) in samples.into_iter().enumerate() {
                let Some(sample) = sample else { continue };
                let at_ms = snapshot.monotonic_ms.saturating_sub(sample.age_ms.into());
                if book.sensed_ms[signal].replace(at_ms) == Some(at_ms) {
                    continue;
                }
                book.meter.readings_are(sample.origin);
                match signal {
                    0 => book.meter.power(at_ms * 1_000, sample.value),
                    _ => {
                        book.counter(at_ms * 1_000, (sample.value * 1e6).round() as u64);
                    }
                }
            }
        }
    }

    /// Takes a counter of energy; see [`Meter::counter`].
    pub fn counter(&mut self, device: DeviceIndex, at_us: u64, raw_uj: u64, wraps: Option<u64>) {
        let book = &mut self.books[usize::from(device.0)];
        book.meter.counter(at_us, raw_uj, wraps);
    }

    /// Takes a reading of power; see [`Meter::power`].
    pub fn power(&mut self, device: DeviceIndex, at_us: u64, watts: f64) {
        self.books[usize::from(device.0)].meter.power(at_us, watts);
    }

    /// Takes this process's processor time, for a device without a sensor, or one whose
    /// sensor may leave; see [`Meter::processor_time`]. `part` of the machine's processors,
    /// 0 to 1, is this device: parts of one machine add up to 1, so that no processor time is
    /// modelled twice. Nothing happens if energy is to be measured only.
    pub fn processor_time(&mut self, device: DeviceIndex, at_us: u64, busy_us: u64, part: f64) {
        if let Some(power) = &self.processor {
            let power = ProcessorPower {
                busy_watts: power.busy_watts * part,
                idle_watts: power.idle_watts * part,
            };
            let book = &mut self.books[usize::from(device.0)];
            book.meter.processor_time(at_us, busy_us, &power);
        }
    }

    /// Our share of what a device is measured to do from now on, 0 to 1; the rest is other
    /// programs' and goes to nobody. What is modelled is of our doing alone.
    pub fn set_own_ratio(&mut self, device: DeviceIndex, ratio: f64) {
        if ratio.is_finite() {
            self.books[usize::from(device.0)].own_ratio = ratio.clamp(0.0, 1.0);
        }
    }

    /// What is done on the account `questions` is asked by policies for this request, and a part
    /// of its own of what the request pays. To be told before the first step of it, and of a
    /// request that will be finished.
    pub fn asks(&mut self, request: u64, questions: u64) {
        self.requests.entry(request).or_default().questions = Some(questions);
        self.questions.insert(questions, request);
    }

    /// Who pays for what is done on an account.
    fn payer(&self, account: u64) -> u64 {
        self.questions.get(&account).copied().unwrap_or(account)
    }

    /// Takes one step. Steps come in the order in which they end.
    pub fn step(&mut self, step: Step) {
        for work in step.sequences.iter().filter(|w| w.request != HOST) {
            let payer = self.payer(work.request);
            let entry = self.requests.entry(payer).or_default();
            if !entry.settled {
                entry.devices = entry.devices.and(step.devices);
                entry.last_us = entry.last_us.max(step.end_us);
            }
        }
        let step = Arc::new(step);
        for device in step.devices.iter() {
            let Some(book) = self.books.get_mut(device) else {
                continue;
            };
            if step.end_us <= book.booked_us {
                book.accounts.late_steps += 1;
            } else {
                book.fit.saw_step(&step.work_of_one());
                book.steps.push_back(Arc::clone(&step));
            }
        }
    }

    /// No more steps of this request will come.
    pub fn finish(&mut self, request: u64) {
        let entry = self.requests.entry(request).or_default();
        if !entry.finished {
            entry.finished = true;
            self.waiting.push(request);
        }
    }

    /// Books what can be booked: all windows up to `known_us`, before which every step has
    /// been handed over. `now_us` decides who has been silent for too long.
    pub fn advance(&mut self, known_us: u64, now_us: u64) {
        for device in 0..self.books.len() {
            while let Some(window) = self.books[device].meter.take_window(known_us) {
                self.book(device, &window);
            }
            self.books[device].forget(known_us);
        }
        let (books, requests) = (&self.books, &mut self.requests);
        let mut newly = Vec::new();
        self.waiting.retain(|request| {
            let Some(entry) = requests.get_mut(request) else {
                return false;
            };
            let mut books = entry.devices.iter().filter_map(|d| books.get(d));
            let silent = now_us.saturating_sub(entry.last_us) > SILENT_US;
            let open = books.any(|book| book.booked_us < entry.last_us);
            if open && !silent {
                return true;
            }
            entry.incomplete |= open;
            entry.settled = true;
            newly.push(*request);
            false
        });
        self.settled.extend(&newly);
        self.fresh.append(&mut newly);
        while self.settled.len() > RECEIPTS_KEPT
            && let Some(oldest) = self.settled.pop_front()
        {
            let entry = self.requests.remove(&oldest);
            if let Some(questions) = entry.and_then(|entry| entry.questions) {
                self.questions.remove(&questions);
            }
        }
    }

    /// Books one window of one device.
    fn book(&mut self, device: usize, window: &Window) {
        self.note_gap(device, window);
        let book = &mut self.books[device];
        let own_ratio = match window.own {
            true => 1.0,
            false => book.own_ratio,
        };
        let quality = Quality {
            origin: window.origin,
            coarse: window.coarse,
            shared: own_ratio < ALONE_RATIO,
        };
        let own = [(0, own_ratio), (1, 1.0 - own_ratio)];
        let own = apportion(window.uj, &own);
        let accounts = &mut book.accounts;
        accounts.origin = accounts.origin.max_weakness(quality.origin);
        accounts.measured_uj += window.uj;
        accounts.windows += 1;
        accounts.unattributed.foreign_uj += own[1];

        let (parts, done) = book.parts(window);
        for ((payer, _), uj) in parts.iter().zip(apportion(own[0], &parts)) {
            match payer {
                Payer::Idle => self.books[device].accounts.idle_uj += uj,
                Payer::Step(.., at) => {
                    let step = Arc::clone(&self.books[device].steps[*at]);
                    self.charge(device, &step, uj, quality);
                }
            }
        }
        let book = &mut self.books[device];
        // What a sensor taught is not mixed with what a table says.
        let teaches = !window.own || !book.meter.has_sensor();
        if teaches && !quality.coarse {
            book.fit.saw_window(&done, own[0] as f64 / 1e6);
        }
        book.booked_us = window.end_us;
        book.covered_us += window.end_us - window.start_us;
        book.steps.retain(|step| step.end_us > window.end_us);
    }

    /// Whose steps lie between the windows has burned more than anybody can tell.
    fn note_gap(&mut self, device: usize, window: &Window) {
        let book = &self.books[device];
        if window.start_us <= book.booked_us {
            return;
        }
        for step in &book.steps {
            if step.overlap(book.booked_us, window.start_us) == 0.0 {
                continue;
            }
            for work in &step.sequences {
                let payer = self.payer(work.request);
                if let Some(entry) = self.requests.get_mut(&payer)
                    && !entry.settled
                {
                    entry.incomplete = true;
                }
            }
        }
    }

    /// Charges a step's part of a window to its sequences.
    fn charge(&mut self, device: usize, step: &Step, uj: u64, quality: Quality) {
        let book = &mut self.books[device];
        if step.sequences.is_empty() {
            book.accounts.unattributed.lost_uj += uj;
            return;
        }
        let seconds = step.length_us() as f64 / 1e6;
        let cost = step.cost_of_one();
        let (method, split) = book.fit.split(seconds, cost.as_ref(), &step.sequences);
        let error = relative_error(quality, method, book.fit.relative_error());
        let parts: Vec<((u64, Phase), f64)> = step
            .sequences
            .iter()
            .zip(&split)
            .map(|(work, part)| ((work.request, work.phase), part.weight))
            .collect();
        let shares = apportion(uj, &parts);
        for ((work, part), uj) in step.sequences.iter().zip(&split).zip(shares) {
            if work.request == HOST {
                book.accounts.unattributed.host_uj += uj;
                continue;
            }
            let asked_for = self.questions.get(&work.request);
            let payer = *asked_for.unwrap_or(&work.request);
            let entry = self.requests.entry(payer).or_default();
            if entry.settled {
                book.accounts.unattributed.late_uj += uj;
                continue;
            }
            let accounts = &mut book.accounts;
            let (mine, all) = match (asked_for, work.phase) {
                (Some(_), _) => (&mut entry.policy_uj, &mut accounts.policy_uj),
                (None, Phase::Prefill) => (&mut entry.prefill_uj, &mut accounts.prefill_uj),
                (None, Phase::Decode) => (&mut entry.decode_uj, &mut accounts.decode_uj),
            };
            *mine += uj;
            *all += uj;
            entry.wasted_uj += uj as f64 * part.wasted_ratio;
            entry.error_uj += uj as f64 * error;
            entry.origin = Some(match entry.origin {
                Some(before) => before.max_weakness(quality.origin),
                None => quality.origin,
            });
            entry.method = entry.method.max(Some(method));
            entry.shared |= quality.shared;
            entry.charged = entry.charged.and(Devices(1 << device));
        }
    }

    /// The receipt of a request, as far as it is known. `None` for one that is unknown,
    /// long forgotten, or of whose devices nothing was ever told: no number is better than
    /// an invented one.
    pub fn receipt(&self, request: u64) -> Option<Receipt> {
        let entry = self.requests.get(&request)?;
        let [answers, policies] = match entry.settled {
            true => [0.0; 2],
            false => self.pending_joules(request, entry),
        };
        let pending = answers + policies;
        let origin = match pending > 0.0 {
            true => entry
                .origin
                .unwrap_or_default()
                .max_weakness(Origin::Modelled),
            false => entry.origin?,
        };
        let known = (entry.prefill_uj + entry.decode_uj + entry.policy_uj) as f64;
        let policy_pending_uj = (policies * 1e6).round();
        let pending_uj = (answers * 1e6).round() + policy_pending_uj;
        let expected_error = pending_uj * MODEL_ERROR;
        let seen = match pending > 0.0 {
            true => entry.devices,
            false => entry.charged,
        };
        Some(Receipt {
            prefill_uj: entry.prefill_uj,
            decode_uj: entry.decode_uj,
            policy_uj: entry.policy_uj,
            wasted_uj: entry.wasted_uj as u64,
            pending_uj: pending_uj as u64,
            policy_pending_uj: policy_pending_uj as u64,
            origin,
            relative_error: match known + pending_uj > 0.0 {
                true => (entry.error_uj + expected_error) / (known + pending_uj),
                false => 0.0,
            },
            boundary: Boundary::of(
                seen.iter()
                    .filter_map(|device| self.books.get(device))
                    .map(|book| book.kind),
            ),
            method: entry.method.unwrap_or(SplitMethod::Components),
            shared: entry.shared,
            incomplete: entry.incomplete,
            settled: entry.settled,
        })
    }

    /// What a request's steps are expected to have used since their devices were booked: its
    /// answers, and what policies asked for it.
    fn pending_joules(&self, request: u64, entry: &Entry) -> [f64; 2] {
        let on = |account: u64| -> f64 {
            let books = entry.devices.iter().filter_map(|d| self.books.get(d));
            books.map(|book| book.pending_joules(account)).sum()
        };
        [on(request), entry.questions.map_or(0.0, on)]
    }

    /// Requests that were settled since the last call, with their receipts: what budgets and
    /// counters take.
    pub fn newly_settled(&mut self) -> Vec<(u64, Receipt)> {
        let fresh = std::mem::take(&mut self.fresh);
        fresh
            .into_iter()
            .filter_map(|request| Some((request, self.receipt(request)?)))
            .collect()
    }

    /// The books of all devices, by name.
    pub fn accounts(&self) -> impl Iterator<Item = (&str, Accounts)> {
        let names = self.names.iter().map(String::as_str);
        names.zip(self.books.iter().map(Book::accounts))
    }
}

/// Error of a sensor's sum, by what kind it is: what makers state for energy counters, for
/// integrals of a power that is seen a quarter of the time, and what a table is worth on a
/// machine that nobody measured.
const COUNTER_ERROR: f64 = 0.05;
const INTEGRAL_ERROR: f64 = 0.10;
const MODEL_ERROR: f64 = 0.60;

/// Error of one request's part. The two kinds of error are independent.
fn relative_error(quality: Quality, method: SplitMethod, fit_error: Option<f64>) -> f64 {
    let sensor = match quality.origin {
        Origin::Measured => COUNTER_ERROR,
        Origin::Derived => INTEGRAL_ERROR,
        Origin::Modelled => MODEL_ERROR,
        Origin::Simulated => 0.0,
    };
    // Against the Shapley value, on mixed batches.
    let mut split: f64 = match method {
        SplitMethod::Components => fit_error.unwrap_or(0.0).max(0.04),
        SplitMethod::Time => 0.10,
        SplitMethod::Tokens => 0.15,
    };
    if quality.shared {
        split = split.max(0.20);
    }
    if quality.coarse {
        split = split.max(0.30);
    }
    (sensor * sensor + split * split).sqrt()
}

impl Book {
    fn new(kind: DeviceKind) -> Self {
        Self {
            kind,
            meter: Meter::default(),
            own_ratio: 1.0,
            steps: VecDeque::new(),
            fit: CostFit::default(),
            accounts: Accounts::default(),
            booked_us: 0,
            covered_us: 0,
            sensed_ms: [None; 2],
            counted_us: 0,
        }
    }

    /// Takes the energy counter. A reading that shows a move comes after it and is dated
    /// before it: it is no news, and no step back.
    fn counter(&mut self, at_us: u64, raw_uj: u64) {
        if at_us >= self.counted_us {
            self.counted_us = at_us;
            self.meter.counter(at_us, raw_uj, None);
        }
    }

    /// Steps that no window will cover any more: the meter has been silent for too long.
    fn forget(&mut self, known_us: u64) {
        let old = |step: &Arc<Step>| step.end_us.saturating_add(STEPS_KEPT_US) < known_us;
        while self.steps.front().is_some_and(old) {
            self.steps.pop_front();
        }
    }

    /// Who has a part in a window and how much each is expected to have used, and all that
    /// was done in it.
    fn parts(&self, window: &Window) -> (Vec<(Payer, f64)>, StepCost) {
        let mut parts = vec![(Payer::Idle, 0.0)];
        let mut done = StepCost {
            seconds: (window.end_us - window.start_us) as f64 / 1e6,
            bytes: 0.0,
            flops: 0.0,
        };
        let mut busy = Vec::new();
        for (at, step) in self.steps.iter().enumerate() {
            let ratio = step.overlap(window.start_us, window.end_us);
            if ratio == 0.0 {
                continue;
            }
            let work = step.work_of_one();
            done.bytes += ratio * work.bytes;
            done.flops += ratio * work.flops;
            let payer = Payer::Step(step.start_us, step.end_us, at);
            parts.push((payer, ratio * self.fit.expected(&work)));
            busy.push((
                step.start_us.max(window.start_us),
                (step.start_us + step.length_us()).min(window.end_us),
            ));
        }
        let busy_us = covered(busy);
        let idle_us = (window.end_us - window.start_us).saturating_sub(busy_us);
        parts[0].1 = self.fit.expected_idle(idle_us as f64 / 1e6);
        if busy_us == 0 {
            // Also where idling is expected to take nothing.
            parts[0].1 = 1.0;
        }
        (parts, done)
    }

    /// Expected energy of an account's steps that no window covers yet. Before the costs are
    /// known a step takes what the device took on average.
    fn pending_joules(&self, request: u64) -> f64 {
        if self.covered_us == 0 {
            return 0.0;
        }
        let mean_watts = self.accounts.measured_uj as f64 / self.covered_us as f64;
        let mine = |step: &&Arc<Step>| step.sequences.iter().any(|w| w.request == request);
        let open = self.steps.iter().filter(mine);
        open.map(|step| {
            let work = step.work_of_one();
            let joules = match self.fit.coefficients() {
                Some(_) => self.fit.expected(&work),
                None => mean_watts * work.seconds,
            };
            let unbooked = step.overlap(self.booked_us, u64::MAX);
            joules * unbooked * self.part_of(step, request)
        })
        .sum()
    }

    /// A request's share of a step.
    fn part_of(&self, step: &Step, request: u64) -> f64 {
        let seconds = step.length_us() as f64 / 1e6;
        let cost = step.cost_of_one();
        let (_, split) = self.fit.split(seconds, cost.as_ref(), &step.sequences);
        let whole: f64 = split.iter().map(|part| part.weight).sum();
        let parts = step.sequences.iter().zip(&split);
        let part: f64 = parts
            .filter(|(work, _)| work.request == request)
            .map(|(_, part)| part.weight)
            .sum();
        match whole > 0.0 {
            true => part / whole,
            false => 0.0,
        }
    }

    fn accounts(&self) -> Accounts {
        Accounts {
            faults: self.meter.faults(),
            suspect: self.meter.is_suspect(),
            coefficients: self.fit.coefficients(),
            fit_error: self.fit.relative_error(),
            ..self.accounts
        }
    }
}

/// Time that spans cover together.
fn covered(mut spans: Vec<(u64, u64)>) -> u64 {
    spans.sort_unstable();
    let (mut sum, mut until) = (0, 0);
    for (start, end) in spans {
        sum += end.saturating_sub(start.max(until));
        until = until.max(end);
    }
    sum
}

#[cfg(test)]
mod tests;
