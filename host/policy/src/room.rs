//! The policy room: what the server holds.
//!
//! Two kinds of callers. Requests open sessions through [`Policies`]; they never wait for
//! anybody but a free instance. Operators put, check, roll back and unload policies; they
//! wait for each other, since one component is admitted at a time.

use std::collections::BTreeSet;
use std::path::Component;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use arc_swap::ArcSwap;
use homeostat_hooks::{Hook, Models, Policies, Request, Session, Snapshot};

use crate::admit::{
    self, Admission, AdmissionError, Cache, Kind, Offer, Report, Stage, micros_since, unix_ms,
};
use crate::breaker::Breaker;
use crate::bundle::{read_policy, read_text};
use crate::cache::CompileCache;
use crate::call::Policy;
use crate::compose::{Compose, Ensemble, MEMBERS_MAX, Member};
use crate::config::{PolicyOptions, RoomConfig, SignatureMode};
use crate::engine::{Engines, STACK_BYTES_MAX};
use crate::explain::{ExplainError, Explained, explain};
use crate::history::{History, Stored};
use crate::limit::Gate;
use crate::migrate;
use crate::ready::Filler;
use crate::record::{RecordLog, Recorder};
use crate::regression;
use crate::revision::Revisions;
use crate::session::RoomSession;
use crate::signature;
use crate::state::{StateExport, StateStatus, StateStore};
use crate::stats::{Counters, GenerationStats, Histogram, RoomStats};
use crate::swap::{Attempt, Book, Generation, SlotStatus, Table};
use crate::trial::{CanaryChanges, TrialEnding, TrialError, TrialMode, TrialStatus};
use crate::watch::{self, Watch, parse_options};

/// Stack of the thread that compiles: the compiler recurses over untrusted code.
const ADMISSION_STACK_BYTES: usize = 16 << 20;

/// The room could not be opened; the host's fault.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// No engine: the limits make no sense to wasmtime.
    #[error("the WebAssembly engine cannot start: {0}")]
    Engine(String),
    /// The memory of accepted revisions cannot be used.
    #[error("policies.revisions_file: {0}")]
    Revisions(String),
    /// A number that cannot be.
    #[error("policies.{0}")]
    Config(String),
}

/// There is no such generation to go back to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NothingKept {
    /// None at all.
    #[error("no earlier generation of {} is kept", .0.as_str())]
    None(Hook),
    /// Not the one that was asked for.
    #[error("generation {asked} of {} is not kept; {kept:?} are", hook.as_str())]
    NotThis {
        /// Where.
        hook: Hook,
        /// The number asked for.
        asked: u64,
        /// The numbers that are kept, oldest first.
        kept: Vec<u64>,
    },
    /// Something else was put there while this waited for its turn.
    #[error("{} was given to another policy meanwhile, which stays", .0.as_str())]
    Overtaken(Hook),
    /// It is kept over a restart and did not pass admission now; it stays kept.
    #[error("generation {generation} of {} is kept and cannot serve now: {why}; the others that \
             are kept: {others:?}", hook.as_str())]
    CannotServe {
        /// Where.
        hook: Hook,
        /// Its number.
        generation: u64,
        /// Why not.
        why: String,
        /// The numbers of the others, oldest first.
        others: Vec<u64>,
    },
}

/// All policies of a host.
pub struct PolicyRoom {
    room: Arc<Room>,
    watch: Mutex<Option<Watch>>,
}

/// What sessions, the watcher and the room share.
pub(crate) struct Room {
    pub config: RoomConfig,
    pub table: ArcSwap<Table>,
    pub gate: Arc<Gate>,
    pub totals: [Counters; 3],
    pub waits: AtomicU64,
    pub waits_given_up: AtomicU64,
    pub filler: Filler,
    /// Shadows take turns at this.
    pub spare: Arc<Mutex<()>>,
    pub state: StateStore,
    /// Open from [`PolicyRoom::recall`] on.
    pub history: OnceLock<History>,
    pub recorder: Option<Arc<Recorder>>,
    /// Replays for explanations and candidates.
    judge: regression::Judge,
    engines: Engines,
    cache: Cache,
    revisions: Revisions,
    pub models: Arc<dyn Models>,
    books: Mutex<[Book; 3]>,
    admission: Mutex<()>,
    newest: [AtomicU64; 3],
    tickets: AtomicU64,
    swaps: Histogram,
    refused: AtomicU64,
    /// Threads that do what no request should wait for.
    asides: Mutex<Vec<JoinHandle<()>>>,
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
        check_config(&config)?;
        let cache = CompileCache::open(&config.cache);
        if let Err(why) = &cache {
            tracing::warn!("no compile cache, every start compiles anew: {why}");
        }
        let engines = Engines::new(&config).map_err(|e| RoomError::Engine(format!("{e:#}")))?;
        let recorder = Recorder::start(&config.record).map_err(RoomError::Config)?;
        let notes = recorder.as_ref().map(|recorder| recorder.request_bytes());
        let filler = Filler::start(config.ready_instances, config.ready_above_micros, notes)
            .map_err(|e| RoomError::Engine(e.to_string()))?;
        let room = Room {
            recorder,
            table: ArcSwap::default(),
            gate: Arc::new(Gate::new(config.instances)),
            totals: Default::default(),
            waits: AtomicU64::new(0),
            waits_given_up: AtomicU64::new(0),
            filler,
            spare: Arc::default(),
            cache,
            revisions: Revisions::open(config.revisions_file.clone())
                .map_err(RoomError::Revisions)?,
            state: StateStore::new(config.state_dir.clone(), config.state),
            history: OnceLock::new(),
            judge: OnceLock::new(),
            engines,
            models,
            books: Mutex::default(),
            admission: Mutex::new(()),
            newest: Default::default(),
            tickets: AtomicU64::new(0),
            swaps: Histogram::default(),
            refused: AtomicU64::new(0),
            asides: Mutex::default(),
            clock,
            config,
        };
        Ok(Self {
            room: Arc::new(room),
            watch: Mutex::new(None),
        })
    }

    /// Makes active again what was active when the last host with this state folder ended,
    /// and writes down from now on what is. Before [`Self::embed`] and [`Self::watch`], which
    /// leave it in place; blocks while it compiles.
    pub fn recall(&self) {
        self.room.recall();
    }

    /// Goes on with the shadows and canaries that ran when the last host with this state
    /// folder ended; what they had found is gone. After [`Self::embed`], since a trial is
    /// against the policy that serves, and before [`Self::watch`], which may put another;
    /// blocks while it compiles.
    pub fn resume_trials(&self) {
        self.room.resume_trials();
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
        let checked = self.room.admit(offer, Kind::Check);
        checked.map(|(_, report)| report)
    }

    /// Makes the latest kept generation of a hook active again: at once, or after compiling
    /// it where it was kept over a restart. The present one is not kept, so that the next
    /// call goes further back.
    ///
    /// # Errors
    /// Nothing is kept, or the latest cannot serve now.
    pub fn rollback(&self, hook: Hook) -> Result<SlotStatus, NothingKept> {
        self.room.rollback(hook, None)
    }

    /// Makes the kept generation with this number active again, as [`Self::rollback`] does,
    /// under a new number. The present one is kept.
    ///
    /// # Errors
    /// It is not kept, or cannot serve now.
    pub fn rollback_to(&self, hook: Hook, generation: u64) -> Result<SlotStatus, NothingKept> {
        self.room.rollback(hook, Some(generation))
    }

    /// Admits a candidate for one hook and asks it from now on what the active policy is
    /// asked, without listening. Blocks while it compiles.
    ///
    /// # Errors
    /// It was refused, or another trial runs at the hook.
    pub fn start_shadow(&self, hook: Hook, offer: Offer) -> Result<TrialStatus, TrialError> {
        let offer = for_hook(hook, offer);
        self.room.start_shadow(hook, &offer)
    }

    /// Admits a candidate for one hook, or takes the one of its shadow, and gives it a
    /// share of the requests until it is shown to be good or bad. Blocks while it compiles.
    ///
    /// # Errors
    /// It was refused, another trial runs at the hook, or there is no shadow to go on from.
    pub fn start_canary(
        &self,
        hook: Hook,
        offer: Option<Offer>,
        changes: CanaryChanges,
    ) -> Result<TrialStatus, TrialError> {
        let offer = offer.map(|offer| for_hook(hook, offer));
        self.room.start_canary(hook, offer.as_ref(), changes)
    }

    /// The trial that runs at a hook, or the last one that ran.
    pub fn trial(&self, hook: Hook) -> Option<TrialStatus> {
        self.room.trial(hook)
    }

    /// Ends a trial; the active policy stays.
    ///
    /// # Errors
    /// None of this mode runs.
    pub fn stop_trial(&self, hook: Hook, mode: TrialMode) -> Result<TrialStatus, TrialError> {
        self.room.finish_trial(hook, mode, TrialEnding::Stopped)
    }

    /// Ends a trial; its candidate is swapped in.
    ///
    /// # Errors
    /// None of this mode runs.
    pub fn promote_trial(&self, hook: Hook, mode: TrialMode) -> Result<TrialStatus, TrialError> {
        self.room.finish_trial(hook, mode, TrialEnding::Promoted)
    }

    /// Takes the policy from a hook; its built-in answer is used. It is kept for
    /// [`Self::rollback`].
    pub fn unload(&self, hook: Hook) -> SlotStatus {
        self.room.unload(hook)
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

    /// How much every policy keeps that was asked for since the start.
    pub fn state_status(&self) -> Vec<StateStatus> {
        self.room.state.status()
    }

    /// All that a policy keeps: in the version that serves, or else in the newest that has
    /// something. None where nothing is known of it.
    pub fn export_state(&self, policy: &str) -> Option<StateExport> {
        let table = self.room.table.load();
        let mut serving = Hook::ALL.iter().filter_map(|hook| table.get(*hook));
        let serving = serving.find(|generation| generation.policy.name() == policy);
        let version = serving.map(|generation| generation.policy.powers.bucket.version());
        self.room.state.export(policy, version)
    }

    /// Puts these entries in place of all that the policy keeps in that version.
    ///
    /// # Errors
    /// What is wrong with them, and nothing has changed; or why they are not on the disk: they
    /// are in memory then, and written when the disk takes them again.
    pub fn import_state(&self, state: &StateExport) -> Result<StateStatus, String> {
        self.room.state.import(state)
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
        let replayer = regression::replayer(&self.room.judge, &self.room.config);
        let replayer = replayer.map_err(ExplainError::Refused)?;
        explain(&log, replayer, &recording, set).map_err(ExplainError::Refused)
    }

    /// All counters.
    pub fn stats(&self) -> RoomStats {
        self.room.stats()
    }
}

/// Numbers that cannot be, alone or together.
fn check_config(config: &RoomConfig) -> Result<(), RoomError> {
    if config.instances == 0 {
        return Err(RoomError::Config(
            "instances is 0: no policy could run".into(),
        ));
    }
    if config.signature == SignatureMode::Required && config.trusted_keys.is_empty() {
        let text = "signature is \"required\" and trusted_keys is empty: nothing could serve";
        return Err(RoomError::Config(text.into()));
    }
    if !(0.0..=1.0).contains(&config.replay.max_changed) || config.replay.max_requests == 0 {
        let text = "replay.max_changed is 0 to 1, replay.max_requests 1 or more";
        return Err(RoomError::Config(text.into()));
    }
    if config.stack_bytes == 0 || config.stack_bytes > STACK_BYTES_MAX {
        let text = format!(
            "stack_bytes is {}, expected 1 to {STACK_BYTES_MAX}: the host's threads have no \
             more for a guest",
            config.stack_bytes
        );
        return Err(RoomError::Config(text));
    }
    for hook in Hook::ALL {
        let options = config.options(hook);
        if options.hooks.is_some() || options.compose.is_some() {
            let text = format!(
                "{}: hooks and compose belong into the .toml beside a component: they are of \
                 one, and this table is for whatever serves the hook",
                hook.as_str()
            );
            return Err(RoomError::Config(text));
        }
    }
    for (name, key) in &config.trusted_keys {
        signature::public_key(key)
            .map_err(|why| RoomError::Config(format!("trusted_keys.{name}: {why}")))?;
    }
    Ok(())
}

impl Drop for PolicyRoom {
    /// What was begun aside is on the disk when the room is gone.
    fn drop(&mut self) {
        let asides = std::mem::take(&mut *self.room.asides());
        for thread in asides {
            if thread.join().is_err() {
                tracing::error!("the end of a trial was not carried out");
            }
        }
    }
}

/// A trial is of one hook, whatever else the component exports.
fn for_hook(hook: Hook, offer: Offer) -> Offer {
    Offer {
        hooks: Some(vec![hook]),
        ..offer
    }
}

#[cfg(test)]
impl PolicyRoom {
    /// Keeps every shadow waiting.
    pub(crate) fn hold_shadows(&self) -> MutexGuard<'_, ()> {
        self.room.spare.lock().expect("no shadow panicked")
    }

    /// Keeps every admission waiting.
    pub(crate) fn hold_admission(&self) -> MutexGuard<'_, ()> {
        self.room.one_admission()
    }

    /// As the end of the room does.
    pub(crate) fn end_watch(&self) {
        *self.watch.lock().expect("nobody panicked") = None;
    }

    /// Keeps whoever writes down who serves waiting.
    pub(crate) fn hold_record(&self) -> MutexGuard<'_, crate::history::Record> {
        self.room.history.get().expect("it was recalled").lock()
    }

    /// What was asked for since the start.
    pub(crate) fn tickets(&self) -> u64 {
        self.room.tickets.load(Relaxed)
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

    pub fn books(&self) -> MutexGuard<'_, [Book; 3]> {
        // Books are changed by assignments that do not panic halfway.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asides(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.asides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does this on a thread of its own; answers whether there is one.
    pub fn aside(self: &Arc<Self>, work: impl FnOnce(&Self) + Send + 'static) -> bool {
        let room = Arc::clone(self);
        let thread = std::thread::Builder::new()
            .name("policy-aside".into())
            .spawn(move || work(&room));
        let mut asides = self.asides();
        asides.retain(|thread| !thread.is_finished());
        match thread {
            Ok(thread) => asides.push(thread),
            Err(error) => {
                tracing::error!("no thread for the end of a trial: {error}");
                return false;
            }
        }
        true
    }

    pub fn one_admission(&self) -> MutexGuard<'_, ()> {
        self.admission
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the pipeline on a thread of its own, whose stack the compiler may use.
    pub fn admit(
        &self,
        offer: &Offer,
        kind: Kind,
    ) -> Result<(Arc<Policy>, Report), AdmissionError> {
        let (mut policy, mut report) = self.admit_alone(offer, kind)?;
        if let Some(compose) = &offer.options.compose {
            let read = match &offer.members[..] {
                [] => Some(self.read_members(compose, &report.hooks)?),
                _ => None,
            };
            let mut members = Vec::new();
            for (file, member) in compose
                .members
                .iter()
                .zip(read.as_ref().unwrap_or(&offer.members))
            {
                let refused = |refusal: AdmissionError| AdmissionError {
                    text: format!("member {}: {}", file.display(), refusal.text),
                    ..refusal
                };
                let (policy, of_member) = self.admit_alone(member, kind).map_err(refused)?;
                report.members.extend(of_member.provenance);
                members.push(Member::new(policy));
            }
            // Nobody else has seen it yet.
            if let Some(policy) = Arc::get_mut(&mut policy) {
                let stored = members.iter().map(|m| Stored::clone(&m.policy.stored));
                Arc::make_mut(&mut policy.stored).members = stored.collect();
                policy.ensemble = Some(Ensemble {
                    mode: compose.mode,
                    members,
                });
            }
        }
        Ok((policy, report))
    }

    /// The components that answer together with another one, out of the policies' folder.
    fn read_members(
        &self,
        compose: &Compose,
        hooks: &[Hook],
    ) -> Result<Vec<Offer>, AdmissionError> {
        let refuse = |text: String| AdmissionError::new(Stage::Options, text);
        let count = compose.members.len();
        if count == 0 || count > MEMBERS_MAX {
            let text = format!("compose has {count} members, expected 1 to {MEMBERS_MAX}");
            return Err(refuse(text));
        }
        let Some(dir) = &self.config.dir else {
            return Err(refuse(
                "compose needs a folder of policies (policies.dir)".into(),
            ));
        };
        let members = compose.members.iter().map(|member| {
            if !member
                .components()
                .all(|c| matches!(c, Component::Normal(_)))
            {
                let text = format!("member {} is not below policies.dir", member.display());
                return Err(refuse(text));
            }
            let path = dir.join(member);
            let options = match read_text(&path.with_extension("toml"))? {
                Some(text) => parse_options(&text)?,
                None => PolicyOptions::default(),
            };
            if options.compose.is_some() {
                let text = format!("member {} is composed itself", member.display());
                return Err(refuse(text));
            }
            let name = path.file_stem().and_then(|stem| stem.to_str());
            let sealed = read_policy(&path, self.config.max_component_bytes)?;
            Ok(Offer {
                name: name.unwrap_or_default().to_string(),
                bytes: sealed.component,
                manifest: sealed.manifest,
                signature: sealed.signature,
                hooks: Some(hooks.to_vec()),
                options,
                ..Offer::default()
            })
        });
        members.collect()
    }

    fn admit_alone(
        &self,
        offer: &Offer,
        kind: Kind,
    ) -> Result<(Arc<Policy>, Report), AdmissionError> {
        let table = self.table.load_full();
        let with = Admission {
            cache: &self.cache,
            revisions: &self.revisions,
            table: &table,
            judge: &self.judge,
            recorder: self.recorder.as_deref(),
            kind,
            config: &self.config,
            engines: &self.engines,
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
        if kind != Kind::Check
            && let (Ok((policy, _)), Some(recorder)) = (&outcome, &self.recorder)
            && let Some(bytes) = &*policy.stored.bytes()
        {
            recorder.keep_component(&policy.digest, bytes, &self.in_use());
        }
        if outcome.is_err() {
            self.refused.fetch_add(1, Relaxed);
        }
        outcome
    }

    /// Digests of the components that requests may meet, now or after a rollback.
    fn in_use(&self) -> BTreeSet<String> {
        let table = self.table.load();
        let books = self.books();
        let kept = books.iter().flat_map(|book| {
            let kept = book.kept.iter().map(|generation| &generation.policy);
            kept.chain(&book.embedded)
        });
        table
            .policies()
            .into_iter()
            .chain(kept)
            .flat_map(|policy| {
                let members = policy.ensemble.iter().flat_map(|e| &e.members);
                let members = members.map(|member| member.policy.digest.clone());
                std::iter::once(policy.digest.clone()).chain(members)
            })
            .collect()
    }

    fn embed(&self, offer: &Offer) -> Result<Report, AdmissionError> {
        let _one = self.one_admission();
        let (policy, mut report) = self.admit(offer, Kind::Embedded)?;
        policy
            .stored
            .parts()
            .for_each(|part| drop(part.take_bytes()));
        let mut free = Vec::new();
        {
            let table = self.table.load();
            let mut books = self.books();
            for hook in &report.hooks {
                let book = &mut books[*hook as usize];
                book.embedded = Some(Arc::clone(&policy));
                if table.get(*hook).is_none() && !book.unloaded {
                    free.push(*hook);
                }
            }
        }
        let started = Instant::now();
        report.generations = self.set(&free, Some(&policy));
        report.swap_micros = Some(micros_since(started));
        report.warnings.extend(self.remember());
        Ok(report)
    }

    /// Counts what operators want, in the order in which they said it.
    pub fn ticket(&self) -> u64 {
        self.tickets.fetch_add(1, Relaxed) + 1
    }

    pub fn put(&self, offer: &Offer) -> Result<Report, AdmissionError> {
        let asked: &[Hook] = offer.hooks.as_deref().unwrap_or_default();
        let ticket = self.ticket();
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
            self.admit(offer, Kind::Put)
                .and_then(|(policy, report)| self.swap_in(&policy, report, ticket))
        };
        match outcome {
            Ok(mut report) => {
                report.warnings.extend(self.remember());
                self.forget_components();
                let text = format!("admitted in {} ms", report.compile_micros / 1000);
                self.note(&report.hooks, &report.policy, true, &text);
                tracing::info!(policy = report.policy, hooks = ?report.hooks, "{text}");
                for warning in &report.warnings {
                    tracing::warn!(policy = report.policy, "{warning}");
                }
                Ok(report)
            }
            Err(refusal) => {
                self.note(asked, &offer.name, false, &refusal.to_string());
                tracing::warn!(policy = offer.name, "{refusal}");
                Err(refusal)
            }
        }
    }

    /// Swaps an admitted policy in, with the state of the version before it. Where somebody
    /// put, rolled back, unloaded or promoted at one of its hooks since the ticket was drawn,
    /// that stays.
    fn swap_in(
        &self,
        policy: &Arc<Policy>,
        report: Report,
        ticket: u64,
    ) -> Result<Report, AdmissionError> {
        let (policy, mut report) = self.accept_revision((policy, report))?;
        let state = migrate::take_over(policy, &self.state, &self.table.load())?;
        report.warnings.extend(self.keep_component(policy));
        let started = Instant::now();
        let mut books = self.books();
        let changed_since = |hook: &Hook| books[*hook as usize].ticket > ticket;
        let (late, free): (Vec<Hook>, Vec<Hook>) =
            report.hooks.iter().copied().partition(changed_since);
        if free.is_empty() {
            return Err(AdmissionError::new(
                Stage::Superseded,
                "its hook was rolled back, unloaded or given to another policy while this one \
                 was admitted",
            ));
        }
        for hook in &free {
            books[*hook as usize].ticket = ticket;
        }
        let table = Table::clone(&self.table.load());
        report.generations = self.set_in(&mut books, table, &free, Some(policy));
        state.keep();
        report.swap_micros = Some(micros_since(started));
        report.warnings.extend(late.iter().map(|hook| {
            let hook = hook.as_str();
            format!("it does not serve {hook}, which was changed while it was admitted")
        }));
        report.hooks = free;
        Ok(report)
    }

    fn unload(&self, hook: Hook) -> SlotStatus {
        {
            let mut books = self.books();
            let book = &mut books[hook as usize];
            book.unloaded = true;
            book.ticket = self.ticket();
            let table = Table::clone(&self.table.load());
            self.set_in(&mut books, table, &[hook], None);
        }
        self.remember_that(hook, "", "unloaded");
        self.status(hook)
    }

    /// Writes the revisions of a signed policy and its members down before they serve: a
    /// host that dies in between has refused nothing too much.
    pub fn accept_revision<T>(
        &self,
        (policy, report): (T, Report),
    ) -> Result<(T, Report), AdmissionError> {
        for provenance in report.provenance.iter().chain(&report.members) {
            let accepted = self.revisions.accept(&provenance.manifest);
            accepted.map_err(|why| AdmissionError::new(Stage::Signature, why.to_string()))?;
        }
        Ok((policy, report))
    }

    /// Remembers an attempt.
    pub fn note(&self, hooks: &[Hook], policy: &str, accepted: bool, text: &str) {
        let unix_ms = unix_ms();
        let mut books = self.books();
        for hook in hooks {
            books[*hook as usize].last_attempt = Some(Attempt {
                policy: policy.to_string(),
                accepted,
                text: text.to_string(),
                unix_ms,
            });
        }
    }

    /// Puts a policy, or none, at these hooks in one exchange. What was active is kept.
    /// Answers the numbers of the new generations.
    pub fn set(&self, hooks: &[Hook], policy: Option<&Arc<Policy>>) -> Vec<u64> {
        let mut books = self.books();
        let table = Table::clone(&self.table.load());
        self.set_in(&mut books, table, hooks, policy)
    }

    pub fn set_in(
        &self,
        books: &mut [Book; 3],
        mut table: Table,
        hooks: &[Hook],
        policy: Option<&Arc<Policy>>,
    ) -> Vec<u64> {
        let mut numbers = Vec::new();
        for hook in hooks {
            self.trial_loses_its_ground(books, &mut table, *hook);
            let book = &mut books[*hook as usize];
            book.unloaded &= policy.is_none();
            let old = table.get(*hook).map(Arc::clone);
            let previous = old.as_ref().map(|old| Arc::clone(&old.policy));
            let generation =
                policy.map(|policy| self.generation(*hook, policy, previous, book, false));
            numbers.extend(generation.as_ref().map(|g| g.number));
            table.set(*hook, generation);
            if let Some(old) = old {
                book.keep(old, self.config.keep_generations);
            }
        }
        self.exchange(table);
        numbers
    }

    /// What was measured against a policy that is no longer active says nothing.
    fn trial_loses_its_ground(&self, books: &mut [Book; 3], table: &mut Table, hook: Hook) {
        let reason = "the active policy changed".to_string();
        self.close_trial(books, table, hook, TrialEnding::Replaced, reason);
    }

    /// A swap: the exchange is timed and counted.
    fn exchange(&self, table: Table) {
        let started = Instant::now();
        self.show(table);
        self.swaps.record(started.elapsed());
    }

    /// What requests see from now on.
    pub fn show(&self, table: Table) {
        let table = Arc::new(table);
        self.table.store(Arc::clone(&table));
        self.filler.serve(&table.policies());
    }

    pub fn generation(
        &self,
        hook: Hook,
        policy: &Arc<Policy>,
        previous: Option<Arc<Policy>>,
        book: &mut Book,
        candidate: bool,
    ) -> Arc<Generation> {
        if !candidate {
            migrate::with_members(policy).for_each(|p| p.powers.bucket.reclaim());
        }
        Arc::new(Generation {
            hook,
            number: book.number(),
            policy: Arc::clone(policy),
            previous,
            breaker: Breaker::new(self.config.breaker),
            counters: Counters::default(),
            candidate,
        })
    }

    fn rollback(&self, hook: Hook, to: Option<u64>) -> Result<SlotStatus, NothingKept> {
        let ticket = self.ticket();
        let (policy, number) = match self.back_to_kept(hook, to, ticket) {
            Some(back) => back,
            None => {
                // Nobody forgets a stored component meanwhile, and who had the lock may have
                // put something that is kept since.
                let _one = self.one_admission();
                if self.books()[hook as usize].ticket > ticket {
                    return Err(NothingKept::Overtaken(hook));
                }
                let back = self.back_to_kept(hook, to, ticket);
                back.map_or_else(|| self.back_to_stored(hook, to, ticket), Ok)?
            }
        };
        let text = format!("rolled back to generation {number}");
        self.note(&[hook], policy.name(), true, &text);
        self.remember_that(hook, policy.name(), &text);
        Ok(self.status(hook))
    }

    /// Back to the latest generation of this life, or to the one with this number.
    fn back_to_kept(&self, hook: Hook, to: Option<u64>, ticket: u64) -> Option<(Arc<Policy>, u64)> {
        let mut books = self.books();
        let book = &mut books[hook as usize];
        let kept = &mut book.kept;
        let place = match to {
            None => kept.len().checked_sub(1)?,
            Some(to) => kept.iter().position(|g| g.number == to)?,
        };
        let back = kept.remove(place)?;
        book.ticket = book.ticket.max(ticket);
        self.set_back(&mut books, hook, &back.policy, to.is_some());
        Some((Arc::clone(&back.policy), back.number))
    }

    /// Makes a policy active that was so before; what is active is kept if it `stays`.
    pub fn set_back(&self, books: &mut [Book; 3], hook: Hook, policy: &Arc<Policy>, stays: bool) {
        let mut table = Table::clone(&self.table.load());
        self.trial_loses_its_ground(books, &mut table, hook);
        let book = &mut books[hook as usize];
        book.unloaded = false;
        // Whoever is rolled back is no help to who takes its place.
        let others = book.kept.iter().rev().map(|g| &g.policy);
        let mut others = others.filter(|other| !Arc::ptr_eq(other, policy));
        let previous = others.next().map(Arc::clone);
        let generation = self.generation(hook, policy, previous, book, false);
        let old = table.get(hook).map(Arc::clone);
        table.set(hook, Some(generation));
        if let Some(old) = old.filter(|_| stays) {
            book.keep(old, self.config.keep_generations);
        }
        self.exchange(table);
    }

    /// What the hook would have without the folder: the embedded policy, or none.
    pub fn restore(&self, hook: Hook) {
        let embedded = self.books()[hook as usize].embedded.clone();
        self.set(&[hook], embedded.as_ref());
        self.remember();
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
            kept: book
                .kept
                .iter()
                .rev()
                .map(|g| g.info())
                .chain(book.stored.iter().rev().map(Into::into))
                .collect(),
            last_attempt: book.last_attempt.clone(),
            trial: self.trial_in(book, hook),
        }
    }

    fn stats(&self) -> RoomStats {
        let table = self.table.load();
        let mut generations = Vec::new();
        let books = self.books();
        for hook in Hook::ALL {
            let active = table.get(hook).map(|g| (g, true));
            let kept = books[hook as usize].kept.iter().map(|g| (g, false));
            generations.extend(active.into_iter().chain(kept).map(|(g, active)| {
                GenerationStats {
                    hook,
                    policy: g.policy.name().to_string(),
                    generation: g.number,
                    active,
                    breaker_open: g.breaker.is_open(),
                    counters: g.counters.read(),
                    members: g
                        .policy
                        .ensemble
                        .as_ref()
                        .map_or(Vec::new(), Ensemble::stats),
                }
            }));
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
            pooled: self.engines.first().pooled,
            compile_cache: match &self.cache {
                Ok(Some(cache)) => Some(cache.stats()),
                Ok(None) | Err(_) => None,
            },
            ready: self.filler.ready(),
            ready_taken: self.filler.taken(),
            trials: Hook::ALL
                .iter()
                .filter_map(|hook| self.trial_in(&books[*hook as usize], *hook))
                .collect(),
            trials_ended: Hook::ALL
                .iter()
                .flat_map(|hook| {
                    TrialEnding::ALL.map(|how| {
                        let count = books[*hook as usize].trials_ended[how as usize];
                        (*hook, how, count)
                    })
                })
                .collect(),
            recorded: self.recorder.as_ref().map(|recorder| recorder.stats()),
        }
    }
}
