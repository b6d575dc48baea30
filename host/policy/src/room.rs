//! The policy room: what the server holds.
//!
//! Two kinds of callers. Requests open sessions through [`Policies`]; they never wait for
//! anybody but a free instance. Operators put, check, roll back and unload policies; they
//! wait for each other, since one component is admitted at a time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use homeostat_hooks::{Hook, Models, Policies, Request, Session, Snapshot};

use crate::admit::{self, Admission, AdmissionError, Offer, Report, Stage, micros_since};
use crate::breaker::Breaker;
use crate::call::Policy;
use crate::config::RoomConfig;
use crate::engine::PolicyEngine;
use crate::explain::{ExplainError, Explained, explain};
use crate::limit::Gate;
use crate::record::{RecordLog, Recorder};
use crate::replay::Replayer;
use crate::session::RoomSession;
use crate::state::StateStore;
use crate::stats::{Counters, GenerationStats, Histogram, RoomStats};
use crate::swap::{Attempt, Book, Generation, SlotStatus, Table};
use crate::watch::{self, Watch};

/// Stack of the thread that compiles: the compiler recurses over untrusted code.
const ADMISSION_STACK_BYTES: usize = 16 << 20;

/// The room could not be opened; the host's fault.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// No engine: the limits make no sense to wasmtime.
    #[error("the WebAssembly engine cannot start: {0}")]
    Engine(String),
    /// The folder for state cannot be used.
    #[error("policies.state_dir cannot be used: {0}")]
    State(#[from] std::io::Error),
    /// A number that cannot be.
    #[error("policies.{0}")]
    Config(String),
}

/// There is no earlier generation to go back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no earlier generation of {} is kept", .0.as_str())]
pub struct NothingKept(pub Hook);

/// All policies of a host.
pub struct PolicyRoom {
    room: Arc<Room>,
    watch: Mutex<Option<Watch>>,
    /// Made when somebody first asks for an explanation.
    replayer: OnceLock<Result<Replayer, String>>,
}

/// What sessions, the watcher and the room share.
pub(crate) struct Room {
    pub config: RoomConfig,
    pub table: ArcSwap<Table>,
    pub gate: Arc<Gate>,
    pub totals: [Counters; 3],
    pub waits: AtomicU64,
    pub waits_given_up: AtomicU64,
    pub recorder: Option<Arc<Recorder>>,
    engine: PolicyEngine,
    state: StateStore,
    models: Arc<dyn Models>,
    books: Mutex<[Book; 3]>,
    admission: Mutex<()>,
    newest: [AtomicU64; 3],
    tickets: AtomicU64,
    swaps: Histogram,
    refused: AtomicU64,
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl PolicyRoom {
    /// Opens the room with no policy in it: every hook has its built-in answer.
    ///
    /// # Errors
    /// A limit that cannot be, a state folder that cannot be used.
    pub fn new(config: RoomConfig, models: Arc<dyn Models>) -> Result<Self, RoomError> {
        let started = Instant::now();
        let clock = move || u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Self::with_clock(config, models, Box::new(clock))
    }

    /// As [`Self::new`], with time from outside (milliseconds, for the breakers).
    pub(crate) fn with_clock(
        config: RoomConfig,
        models: Arc<dyn Models>,
        clock: Box<dyn Fn() -> u64 + Send + Sync>,
    ) -> Result<Self, RoomError> {
        if config.instances == 0 {
            return Err(RoomError::Config(
                "instances is 0: no policy could run".into(),
            ));
        }
        let engine = PolicyEngine::new(&config).map_err(|e| RoomError::Engine(format!("{e:#}")))?;
        let recorder = Recorder::start(&config.record).map_err(RoomError::Config)?;
        let room = Room {
            recorder,
            table: ArcSwap::default(),
            gate: Arc::new(Gate::new(config.instances)),
            totals: Default::default(),
            waits: AtomicU64::new(0),
            waits_given_up: AtomicU64::new(0),
            engine,
            state: StateStore::new(config.state_dir.clone())?,
            models,
            books: Mutex::default(),
            admission: Mutex::new(()),
            newest: Default::default(),
            tickets: AtomicU64::new(0),
            swaps: Histogram::default(),
            refused: AtomicU64::new(0),
            clock,
            config,
        };
        Ok(Self {
            room: Arc::new(room),
            watch: Mutex::new(None),
            replayer: OnceLock::new(),
        })
    }

    /// Admits a policy that comes with the host: it serves where nothing else does, and
    /// again when the file that replaced it is removed. Blocks while it compiles.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn embed(&self, offer: Offer) -> Result<Report, AdmissionError> {
        self.room.embed(&offer)
    }

    /// Admits a component and swaps it in. Blocks while it compiles, seconds for large
    /// ones; requests go on meanwhile.
    ///
    /// # Errors
    /// Why it was refused; what served before still serves.
    pub fn put(&self, offer: Offer) -> Result<Report, AdmissionError> {
        self.room.put(&offer)
    }

    /// Everything that [`Self::put`] does except the swap.
    ///
    /// # Errors
    /// Why it would be refused.
    pub fn check(&self, offer: &Offer) -> Result<Report, AdmissionError> {
        let _one = self.room.one_admission();
        self.room.admit(offer).map(|(_, report)| report)
    }

    /// Makes the latest kept generation of a hook active again, at once.
    ///
    /// # Errors
    /// Nothing is kept.
    pub fn rollback(&self, hook: Hook) -> Result<SlotStatus, NothingKept> {
        self.room.rollback(hook)
    }

    /// Takes the policy from a hook; its built-in answer is used. It is kept for
    /// [`Self::rollback`].
    pub fn unload(&self, hook: Hook) -> SlotStatus {
        self.room.set(&[hook], None);
        self.room.status(hook)
    }

    /// Reads the folder of the config now, and watches it from now on. What is wrong with
    /// a file is told by [`Self::status`] and the log, and changes nothing.
    pub fn watch(&self) {
        let Some(dir) = self.room.config.dir.clone() else {
            return;
        };
        let started = watch::start(&self.room, dir);
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = started;
    }

    /// All hooks: who serves, who did, what was tried last.
    pub fn status(&self) -> Vec<SlotStatus> {
        Hook::ALL.map(|hook| self.room.status(hook)).to_vec()
    }

    /// Explains a recorded request, with values changed for the replay. Compiles what it
    /// needs, so seconds at first.
    ///
    /// # Errors
    /// It was not recorded; a path or value of `set` is wrong.
    pub fn explain(&self, id: &str, set: &[(String, String)]) -> Result<Explained, ExplainError> {
        let (Some(recorder), Some(dir)) = (&self.room.recorder, &self.room.config.record.dir)
        else {
            let why = "no decisions are recorded: policies.record.dir is not set";
            return Err(ExplainError::NotRecorded(why.into()));
        };
        recorder.flush();
        let log = RecordLog::open(dir).map_err(ExplainError::NotRecorded)?;
        let recording = log.find(id).map_err(ExplainError::NotRecorded)?;
        let replayer = self
            .replayer
            .get_or_init(|| Replayer::new(&self.room.config));
        let replayer = replayer
            .as_ref()
            .map_err(|e| ExplainError::Refused(e.clone()))?;
        explain(&log, replayer, &recording, set).map_err(ExplainError::Refused)
    }

    /// All counters.
    pub fn stats(&self) -> RoomStats {
        self.room.stats()
    }
}

#[cfg(test)]
impl PolicyRoom {
    /// Keeps every admission waiting.
    pub(crate) fn hold_admission(&self) -> MutexGuard<'_, ()> {
        self.room.one_admission()
    }

    /// The newest component that came for this hook, counted from 1.
    pub(crate) fn newest_ticket(&self, hook: Hook) -> u64 {
        self.room.newest[hook as usize].load(Relaxed)
    }
}

impl Policies for PolicyRoom {
    fn begin(&self, request: Arc<Request>, snapshot: Arc<Snapshot>) -> Box<dyn Session> {
        Box::new(RoomSession::new(Arc::clone(&self.room), request, snapshot))
    }
}

impl Room {
    pub fn now_ms(&self) -> u64 {
        (self.clock)()
    }

    fn books(&self) -> MutexGuard<'_, [Book; 3]> {
        // Books are changed by assignments that do not panic halfway.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn one_admission(&self) -> MutexGuard<'_, ()> {
        self.admission
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the pipeline on a thread of its own, whose stack the compiler may use.
    fn admit(&self, offer: &Offer) -> Result<(Arc<Policy>, Report), AdmissionError> {
        let with = Admission {
            config: &self.config,
            engine: &self.engine,
            state: &self.state,
            models: &self.models,
        };
        let broken = |text: String| AdmissionError::new(Stage::Compile, text);
        let outcome = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("policy-admission".into())
                .stack_size(ADMISSION_STACK_BYTES)
                .spawn_scoped(scope, || admit::admit(&with, offer))
                .map_err(|error| broken(format!("no thread to compile on: {error}")))?
                .join()
                .unwrap_or_else(|_| Err(broken("the compiler failed on this component".into())))
        });
        if let (Ok((policy, _)), Some(recorder)) = (&outcome, &self.recorder) {
            recorder.keep_component(&policy.digest, &offer.bytes);
        }
        if outcome.is_err() {
            self.refused.fetch_add(1, Relaxed);
        }
        outcome
    }

    fn embed(&self, offer: &Offer) -> Result<Report, AdmissionError> {
        let _one = self.one_admission();
        let (policy, mut report) = self.admit(offer)?;
        let mut free = Vec::new();
        {
            let table = self.table.load();
            let mut books = self.books();
            for hook in &report.hooks {
                books[*hook as usize].embedded = Some(Arc::clone(&policy));
                if table.get(*hook).is_none() {
                    free.push(*hook);
                }
            }
        }
        let started = Instant::now();
        report.generations = self.set(&free, Some(&policy));
        report.swap_micros = Some(micros_since(started));
        Ok(report)
    }

    pub fn put(&self, offer: &Offer) -> Result<Report, AdmissionError> {
        let asked: &[Hook] = offer.hooks.as_deref().unwrap_or_default();
        let ticket = self.tickets.fetch_add(1, Relaxed) + 1;
        for hook in asked {
            self.newest[*hook as usize].fetch_max(ticket, Relaxed);
        }
        let _one = self.one_admission();
        let overtaken = |hook: &Hook| self.newest[*hook as usize].load(Relaxed) > ticket;
        let outcome = if !asked.is_empty() && asked.iter().all(overtaken) {
            Err(AdmissionError::new(
                Stage::Superseded,
                "a newer component for the same hook came before this one was compiled",
            ))
        } else {
            self.admit(offer)
        };
        match outcome {
            Ok((policy, mut report)) => {
                let started = Instant::now();
                report.generations = self.set(&report.hooks, Some(&policy));
                report.swap_micros = Some(micros_since(started));
                let text = format!("admitted in {} ms", report.compile_micros / 1000);
                self.note(&report.hooks, &offer.name, true, &text);
                tracing::info!(policy = offer.name, hooks = ?report.hooks, "{text}");
                Ok(report)
            }
            Err(refusal) => {
                self.note(asked, &offer.name, false, &refusal.to_string());
                tracing::warn!(policy = offer.name, "{refusal}");
                Err(refusal)
            }
        }
    }

    /// Remembers an attempt.
    pub fn note(&self, hooks: &[Hook], policy: &str, accepted: bool, text: &str) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut books = self.books();
        for hook in hooks {
            books[*hook as usize].last_attempt = Some(Attempt {
                policy: policy.to_string(),
                accepted,
                text: text.to_string(),
                unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            });
        }
    }

    /// Puts a policy, or none, at these hooks in one exchange. What was active is kept.
    /// Answers the numbers of the new generations.
    pub fn set(&self, hooks: &[Hook], policy: Option<&Arc<Policy>>) -> Vec<u64> {
        let mut books = self.books();
        let mut table = Table::clone(&self.table.load());
        let mut numbers = Vec::new();
        for hook in hooks {
            let book = &mut books[*hook as usize];
            let old = table.get(*hook).map(Arc::clone);
            let generation =
                policy.map(|policy| self.generation(*hook, policy, old.as_ref(), book));
            numbers.extend(generation.as_ref().map(|g| g.number));
            table.set(*hook, generation);
            if let Some(old) = old {
                book.keep(old, self.config.keep_generations);
            }
        }
        self.exchange(table);
        numbers
    }

    fn exchange(&self, table: Table) {
        let table = Arc::new(table);
        let started = Instant::now();
        self.table.store(table);
        self.swaps.record(started.elapsed());
    }

    fn generation(
        &self,
        hook: Hook,
        policy: &Arc<Policy>,
        old: Option<&Arc<Generation>>,
        book: &mut Book,
    ) -> Arc<Generation> {
        book.next_number += 1;
        Arc::new(Generation {
            hook,
            number: book.next_number,
            policy: Arc::clone(policy),
            previous: old.map(|g| Arc::clone(&g.policy)),
            breaker: Breaker::new(self.config.breaker),
            counters: Counters::default(),
        })
    }

    fn rollback(&self, hook: Hook) -> Result<SlotStatus, NothingKept> {
        let name = {
            let mut books = self.books();
            let book = &mut books[hook as usize];
            let kept = book.kept.pop_back().ok_or(NothingKept(hook))?;
            let mut table = Table::clone(&self.table.load());
            let old = table.get(hook).map(Arc::clone);
            let generation = self.generation(hook, &kept.policy, old.as_ref(), book);
            table.set(hook, Some(generation));
            self.exchange(table);
            kept.policy.name().to_string()
        };
        self.note(&[hook], &name, true, "rolled back");
        Ok(self.status(hook))
    }

    /// What the hook would have without the folder: the embedded policy, or none.
    pub fn restore(&self, hook: Hook) {
        let embedded = self.books()[hook as usize].embedded.clone();
        self.set(&[hook], embedded.as_ref());
    }

    /// The number of the generation that serves a hook.
    pub fn active(&self, hook: Hook) -> Option<u64> {
        self.table.load().get(hook).map(|g| g.number)
    }

    pub fn status(&self, hook: Hook) -> SlotStatus {
        let books = self.books();
        let book = &books[hook as usize];
        SlotStatus {
            hook,
            active: self.table.load().get(hook).map(|g| g.info()),
            kept: book.kept.iter().rev().map(|g| g.info()).collect(),
            last_attempt: book.last_attempt.clone(),
        }
    }

    fn stats(&self) -> RoomStats {
        let table = self.table.load();
        let mut generations = Vec::new();
        let books = self.books();
        for hook in Hook::ALL {
            let active = table.get(hook).map(|g| (g, true));
            let kept = books[hook as usize].kept.iter().map(|g| (g, false));
            generations.extend(
                active
                    .into_iter()
                    .chain(kept)
                    .map(|(g, active)| GenerationStats {
                        hook,
                        policy: g.policy.name().to_string(),
                        generation: g.number,
                        active,
                        breaker_open: g.breaker.is_open(),
                        counters: g.counters.read(),
                    }),
            );
        }
        RoomStats {
            hooks: Hook::ALL
                .iter()
                .map(|hook| (hook.as_str(), self.totals[*hook as usize].read()))
                .collect(),
            generations,
            instances: self.gate.used(),
            instances_max: self.config.instances,
            waits: self.waits.load(Relaxed),
            waits_given_up: self.waits_given_up.load(Relaxed),
            swaps: self.swaps.summary(),
            refused: self.refused.load(Relaxed),
            pooled: self.engine.pooled,
            recorded: self.recorder.as_ref().map(|recorder| recorder.stats()),
        }
    }
}
