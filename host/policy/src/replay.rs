//! Replay: the hooks of a recorded request, called again.
//!
//! Arguments, answers of host calls, clocks and random numbers come from the recording, and
//! the engine counts fuel instead of time, so the same component gives the same answer for
//! the same fuel, always. Another component (a candidate) gets the same inputs; where it asks
//! the host something that nobody recorded, the outcome is that [`Miss`] and not a guess.
//!
//! A fault that the clock caused cannot come again: without a deadline the call runs on.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use homeostat_hooks::{
    Answer, Classification, Decision, Fault, FaultKind, GenerateOptions, Generated, Hook,
    ModelError, Models, Outcome, Request, Snapshot, TierView, Verdict, builtin, check,
};
use serde::Serialize;

use crate::admit::{AdmissionError, Stage};
use crate::call::{Cost, Instance, Policy};
use crate::candidate;
use crate::compiler;
use crate::config::{CompilerConfig, Fallback, Limits, PolicyOptions, RoomConfig, StateConfig};
use crate::convert;
use crate::engine::{FUEL_MAX, PolicyEngine};
use crate::grants::Uses;
use crate::host::{Asked, Powers};
use crate::inspect;
use crate::limit::Permit;
use crate::record::{DamagedLine, RecordLog};
use crate::recording::{Asking, RecordedHook, Recording};
use crate::signature::sha256_hex;
use crate::state::StateStore;
use crate::tape::{Event, HostCall, Miss, Tape};
use crate::wave::{self, Spoken};

pub use crate::rerun::{
    Candidate, CandidateReport, Change, Decided, Figures, Moved, Moves, Promise,
};

/// Compiled components that are kept for the next replay.
const LOADED_MAX: usize = 8;
/// Nothing waits in a replay, so this only keeps the arithmetic of deadlines away.
const NO_DEADLINE: Duration = Duration::from_secs(3600);
/// Stack of the thread that compiles.
const COMPILER_STACK_BYTES: usize = 16 << 20;
/// Notes of one instance in a replay; a candidate may ask more than was recorded.
const NOTES_BYTES: usize = 64 << 20;

/// Calls recorded hooks again.
pub struct Replayer {
    pub(crate) engine: PolicyEngine,
    compiler: CompilerConfig,
    /// By digest, in the order in which they were compiled.
    loaded: Mutex<Vec<(String, Arc<Policy>)>>,
}

/// One call, played again.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Played {
    /// The answer, as WAVE.
    pub answer: Option<String>,
    /// Why there is none.
    pub fault: Option<Fault>,
    /// It asked something that was not recorded; then there is neither answer nor fault.
    pub miss: Option<Miss>,
    /// What it asked the host.
    pub host_calls: Vec<HostCall>,
    /// Fuel of the call; for the first call of an instance with that of making it.
    pub fuel: u64,
}

/// A question with its arguments.
#[derive(Debug, Clone)]
pub(crate) enum Question {
    Classify,
    Route(Classification, Vec<TierView>),
    Validate(Answer),
    Learn(Outcome),
}

/// What the hooks of a request were asked.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    pub request: Arc<Request>,
    pub snapshot: Arc<Snapshot>,
    pub questions: Vec<Question>,
}

impl Inputs {
    /// Reads them from a recording.
    pub fn of(recording: &Recording) -> Result<Self, String> {
        let questions = recording.hooks.iter().map(Question::of);
        Ok(Self {
            request: Arc::new(wave::read(&recording.request)?),
            snapshot: Arc::new(wave::read(&recording.snapshot)?),
            questions: questions.collect::<Result<_, _>>()?,
        })
    }

    pub fn asked(&self) -> Arc<Asked> {
        Arc::new(Asked::new(
            Arc::clone(&self.request),
            Arc::clone(&self.snapshot),
        ))
    }
}

impl Question {
    pub fn of(hook: &RecordedHook) -> Result<Self, String> {
        let missing = || format!("{} has lost its arguments", hook.hook.as_str());
        let arg = |n: usize| hook.args.get(n).ok_or_else(missing);
        Ok(match hook.hook {
            Asking::Classify => Self::Classify,
            Asking::Route => Self::Route(wave::read(arg(0)?)?, wave::read(arg(1)?)?),
            Asking::Validate => Self::Validate(wave::read(arg(0)?)?),
            Asking::Learn => Self::Learn(wave::read(arg(0)?)?),
        })
    }

    /// The built-in answer.
    pub fn built_in(&self, inputs: &Inputs) -> Option<String> {
        Some(match self {
            Self::Classify => wave::text(&builtin::classify(&inputs.request)),
            Self::Route(c, tiers) => wave::text(&builtin::route(c, tiers, &inputs.snapshot)),
            Self::Validate(answer) => wave::text(&builtin::validate(answer)),
            Self::Learn(_) => return None,
        })
    }

    /// Asks an instance, and judges its answer as a session would.
    fn ask(&self, instance: &mut Instance) -> Result<Option<String>, Fault> {
        let deadline = Instant::now() + NO_DEADLINE;
        let invalid = |error: check::Invalid| Fault::new(FaultKind::Invalid, error.0);
        let text = |spoken: &dyn Spoken| Some(wave::text(spoken));
        match self {
            Self::Classify => {
                let answer: Classification = instance.classify(deadline)?;
                check::classification(&answer).map_err(invalid)?;
                Ok(text(&answer))
            }
            Self::Route(classification, tiers) => {
                let views: Vec<_> = tiers.iter().map(convert::tier).collect();
                let c = convert::classification(classification);
                let answer: Decision = instance.route(deadline, &c, &views)?;
                check::decision(&answer, tiers).map_err(invalid)?;
                Ok(text(&answer))
            }
            Self::Validate(about) => {
                let answer: Verdict = instance.validate(deadline, &convert::answer(about))?;
                check::verdict(&answer, about).map_err(invalid)?;
                Ok(text(&answer))
            }
            Self::Learn(outcome) => {
                instance.learn(deadline, &convert::outcome(outcome))?;
                Ok(None)
            }
        }
    }
}

impl Replayer {
    /// An engine that counts fuel.
    ///
    /// # Errors
    /// wasmtime cannot start with the limits of this configuration.
    pub fn new(config: &RoomConfig) -> Result<Self, String> {
        let engine = PolicyEngine::metered(config);
        Ok(Self {
            engine: engine.map_err(|e| format!("no engine for replays: {e:#}"))?,
            compiler: config.compiler.clone(),
            loaded: Mutex::default(),
        })
    }

    /// Calls every recorded hook of a request again, with the recorded policies.
    ///
    /// The outer list has one entry per hook of the recording, the inner one per policy that
    /// was asked for it.
    ///
    /// # Errors
    /// The recording cannot be replayed ([`Recording::replayable`]), or a component is gone.
    pub fn replay(
        &self,
        log: &RecordLog,
        recording: &Recording,
    ) -> Result<Vec<Vec<Played>>, String> {
        recording.replayable()?;
        self.replay_with(log, recording, &Inputs::of(recording)?, |_, _| {})
    }

    /// As [`Self::replay`] with other inputs; `before` may change a question when the answers
    /// of the hooks before it are known.
    pub(crate) fn replay_with(
        &self,
        log: &RecordLog,
        recording: &Recording,
        inputs: &Inputs,
        mut before: impl FnMut(&mut Question, &[Vec<Played>]),
    ) -> Result<Vec<Vec<Played>>, String> {
        let policies = self.recorded_policies(log, recording)?;
        let mut stage = Scene::new(inputs.asked());
        let mut played: Vec<Vec<Played>> = Vec::new();
        for (hook, question) in recording.hooks.iter().zip(&inputs.questions) {
            let mut question = question.clone();
            before(&mut question, &played);
            let mut attempts = Vec::new();
            for attempt in &hook.attempts {
                let policy = policies.get(attempt.policy).ok_or("a policy is missing")?;
                let actor = Actor {
                    policy,
                    instance: attempt.instance,
                    seed: attempt.seed().ok_or("a seed is damaged")?,
                };
                attempts.push(stage.play(&actor, &attempt.host_calls, &question));
            }
            played.push(attempts);
        }
        Ok(played)
    }

    fn recorded_policies(
        &self,
        log: &RecordLog,
        recording: &Recording,
    ) -> Result<Vec<Arc<Policy>>, String> {
        let each = recording.policies.iter().map(|recorded| {
            let base = match self.known(&recorded.digest) {
                Some(known) => known,
                None => self
                    .load(&recorded.name, &log.component(&recorded.digest)?)
                    .map_err(|refused| format!("{}: {refused}", recorded.name))?,
            };
            Ok(Arc::new(base.with_powers(powers(
                &recorded.name,
                recorded.options(),
                recorded.limits,
            ))))
        });
        each.collect()
    }

    fn known(&self, digest: &str) -> Option<Arc<Policy>> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let known = loaded.iter().find(|(known, _)| known == digest);
        known.map(|(_, policy)| Arc::clone(policy))
    }

    /// Compiles a component for replays. Takes seconds for large ones.
    pub(crate) fn load(&self, name: &str, bytes: &[u8]) -> Result<Arc<Policy>, AdmissionError> {
        let digest = sha256_hex(bytes);
        if let Some(known) = self.known(&digest) {
            return Ok(known);
        }
        let broken = |text: &str| AdmissionError::new(Stage::Compile, text);
        let policy = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("policy-replay".into())
                .stack_size(COMPILER_STACK_BYTES)
                .spawn_scoped(scope, || self.compile(name, bytes, &digest))
                .map_err(|error| broken(&format!("no thread to compile on: {error}")))?
                .join()
                .unwrap_or_else(|_| Err(broken("the compiler failed on this component")))
        })?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.len() >= LOADED_MAX {
            loaded.remove(0);
        }
        loaded.push((digest, Arc::clone(&policy)));
        Ok(policy)
    }

    fn compile(
        &self,
        name: &str,
        bytes: &[u8],
        digest: &str,
    ) -> Result<Arc<Policy>, AdmissionError> {
        let shape = inspect::inspect(bytes)?;
        let hooks = inspect::check_exports(&shape, None)?;
        let artifact = compiler::compile(&self.compiler, &self.engine, bytes)?;
        let component = candidate::load(&self.engine, &artifact)?;
        let (pre, guests) = candidate::link(&self.engine, &component, &hooks, &shape)?;
        Ok(Arc::new(Policy {
            powers: powers(name, PolicyOptions::default(), Limits::default()),
            digest: digest.to_string(),
            fallback: Fallback::default(),
            guests,
            pre,
            imports: shape.imports.into(),
            fuel: Some(FUEL_MAX),
            cost: Cost::default(),
            stored: Arc::default(),
            ensemble: None,
        }))
    }
}

/// The hooks that a loaded component exports.
pub(crate) fn hooks_of(policy: &Policy) -> Vec<Hook> {
    let guests = &policy.guests;
    let exported = [
        guests.classifier.is_some(),
        guests.router.is_some(),
        guests.validator.is_some(),
    ];
    let each = Hook::ALL.into_iter().zip(exported);
    each.filter_map(|(hook, exported)| exported.then_some(hook))
        .collect()
}

/// Powers in a replay: the settings and grants are real, everything else is scripted.
pub(crate) fn powers(name: &str, options: PolicyOptions, limits: Limits) -> Arc<Powers> {
    Arc::new(Powers {
        name: name.into(),
        grants: options.grants.unwrap_or_default(),
        settings: options.settings.unwrap_or_default(),
        limits,
        bucket: StateStore::new(None, StateConfig::default()).bucket(name, 0),
        models: Arc::new(NoModels),
        uses: Uses::default(),
        asks_early: AtomicBool::new(false),
    })
}

/// Who is asked, on which of its instances.
pub(crate) struct Actor<'a> {
    pub policy: &'a Arc<Policy>,
    pub instance: u32,
    pub seed: [u8; 32],
}

/// The instances of one request.
pub(crate) struct Scene {
    asked: Arc<Asked>,
    instances: BTreeMap<u32, Instance>,
}

impl Scene {
    pub fn new(asked: Arc<Asked>) -> Self {
        Self {
            asked,
            instances: BTreeMap::new(),
        }
    }

    /// One call, with these answers of the host.
    pub fn play(&mut self, actor: &Actor<'_>, script: &[HostCall], question: &Question) -> Played {
        let mut played = Played {
            answer: None,
            fault: None,
            miss: None,
            host_calls: Vec::new(),
            fuel: 0,
        };
        let number = actor.instance;
        let kept = self.instances.remove(&number);
        let tape = match kept.as_ref().and_then(Instance::tape) {
            Some(tape) => Arc::clone(tape),
            None => Tape::replaying(number, actor.seed, NOTES_BYTES),
        };
        tape.load(script);
        let before = kept.as_ref().and_then(Instance::fuel_used).unwrap_or(0);
        let made = match kept {
            Some(instance) => Ok(instance),
            None => Instance::taped(
                actor.policy,
                &self.asked,
                Permit::spare(),
                Instant::now() + NO_DEADLINE,
                Some(Arc::clone(&tape)),
                None,
            ),
        };
        let outcome = made.and_then(|mut instance| {
            let outcome = question.ask(&mut instance);
            played.fuel = instance.fuel_used().unwrap_or(0) - before;
            if !instance.is_broken() {
                self.instances.insert(number, instance);
            }
            outcome
        });
        let taken = tape.take();
        played.host_calls = taken.events.iter().map(Event::line).collect();
        played.miss = taken.miss;
        if played.miss.is_none() {
            match outcome {
                Ok(answer) => played.answer = answer,
                Err(fault) => played.fault = Some(fault),
            }
        }
        played
    }
}

/// Nobody asks them: the calls of a replay are answered before they get here.
struct NoModels;

impl NoModels {
    fn none<T>() -> Result<T, ModelError> {
        Err(ModelError::Unavailable(
            "there are no models in a replay".into(),
        ))
    }
}

impl Models for NoModels {
    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn info(&self, _: &str) -> Result<TierView, ModelError> {
        Self::none()
    }

    fn count_tokens(&self, _: &str, _: &str) -> Result<u32, ModelError> {
        Self::none()
    }

    fn embed(&self, _: &str, _: &str, _: u32) -> Result<Vec<f32>, ModelError> {
        Self::none()
    }

    fn score(
        &self,
        _: Option<&str>,
        _: &str,
        _: &str,
        _: &str,
        _: u32,
    ) -> Result<Vec<f32>, ModelError> {
        Self::none()
    }

    fn generate(
        &self,
        _: Option<&str>,
        _: &str,
        _: &str,
        _: &GenerateOptions,
        _: u32,
    ) -> Result<Generated, ModelError> {
        Self::none()
    }
}

/// All recordings of a log, and the lines that are none.
pub(crate) fn read_all(
    log: &RecordLog,
    mut take: impl FnMut(Recording),
) -> Result<Vec<DamagedLine>, String> {
    let mut damaged = Vec::new();
    log.each(|line| match line {
        Ok(recording) => take(recording),
        Err(line) => damaged.push(line),
    })?;
    Ok(damaged)
}
