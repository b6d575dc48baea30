//! A candidate that is asked what the active policy was asked, and not listened to.
//!
//! Questions wait in a short queue for one thread. A session puts a question there after
//! it has its own answer, and only if there is room and the house is not busy: otherwise
//! the question is dropped and counted, so the most that a shadow costs a request is a
//! copy of its question. All shadows of a room take turns, and rest in proportion to what
//! they worked ([`ShadowConfig::share`]), so that they use spare capacity and no more.
//!
//! A shadow changes nothing: its state is a copy, its questions to the models are counted
//! against a budget, its answer is compared and thrown away.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use homeostat_hooks::{
    Answer, Classification, Decision, Fault, FaultKind, GenerateOptions, Generated, ModelError,
    Models, TierView, Verdict, check,
};
use serde::Serialize;

use crate::call::{Instance, Policy};
use crate::config::ShadowConfig;
use crate::convert;
use crate::host::Asked;
use crate::limit::Permit;
use crate::stats::{Histogram, Times};

/// Rows of the table of differences; what comes after is `other`. A router has a row per
/// pair of tiers.
const ROWS_MAX: usize = 64;
/// Of a method's name, as a policy gives it.
const METHOD_CHARS: usize = 40;

/// A question of a session, as it was put to the active policy.
pub(crate) enum Question {
    Classify,
    Route(Classification, Vec<TierView>),
    Validate(Answer),
}

/// The kind of an answer: what two policies are compared by.
pub(crate) trait Kind {
    fn kind(&self) -> String;
}

impl Kind for Classification {
    fn kind(&self) -> String {
        let most = self.p_simple.max(self.p_medium).max(self.p_complex);
        if most == self.p_simple {
            "simple".into()
        } else if most == self.p_medium {
            "medium".into()
        } else {
            "complex".into()
        }
    }
}

impl Kind for Decision {
    fn kind(&self) -> String {
        match self {
            // Where a request goes first; its ladder beyond that is in the name as well.
            Self::Plan(plan) => {
                let tiers: Vec<&str> = plan.steps.iter().map(|s| s.tier.as_str()).collect();
                tiers.join(" > ")
            }
            Self::Answer(answer) => {
                let method: String = answer.method.chars().take(METHOD_CHARS).collect();
                format!("answer ({method})")
            }
            Self::Reject(rejection) => format!("reject ({:?})", rejection.kind),
        }
    }
}

impl Kind for Verdict {
    fn kind(&self) -> String {
        let word = match self {
            Self::Accept(_) => "accept",
            Self::Escalate(_) => "escalate",
            Self::Amend(_) => "amend",
            Self::Reject(_) => "reject",
            Self::Undecided => "undecided",
        };
        word.into()
    }
}

struct Job {
    asked: Arc<Asked>,
    question: Question,
    /// The kind of what was answered, and the time that it took.
    from: String,
    took: Duration,
}

/// A running shadow, or one that has ended.
pub(crate) struct Shadow {
    queue: Mutex<Option<Sender<Job>>>,
    waiting: AtomicUsize,
    waiting_max: usize,
    book: Mutex<Differences>,
    active_times: Histogram,
    shadow_times: Histogram,
    dropped_full: AtomicU64,
    dropped_busy: AtomicU64,
    budget: Arc<ModelBudget>,
}

#[derive(Default)]
struct Differences {
    calls: u64,
    same: u64,
    faults: BTreeMap<&'static str, u64>,
    rows: BTreeMap<(String, String), u64>,
}

/// One row of the table of differences.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What the active policy answered: a class, the tiers of a plan, a verdict.
    pub from: String,
    /// What the candidate would have answered.
    pub to: String,
    /// How often.
    pub calls: u64,
}

/// What a shadow has seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShadowStatus {
    /// Questions that the candidate was asked.
    pub calls: u64,
    /// Of those, the ones it answered as the active policy did.
    pub same: u64,
    /// The others, the commonest first. Faults of the candidate are `fault: <kind>`.
    pub differences: Vec<Difference>,
    /// Its faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Questions dropped because the queue was full.
    pub dropped_full: u64,
    /// Questions dropped because requests needed half of the instances or more.
    pub dropped_busy: u64,
    /// Calls of the active policy on the same questions.
    pub active_times: Times,
    /// Calls of the candidate, instance included.
    pub candidate_times: Times,
    /// Questions to the models that it may still ask.
    pub model_calls_left: u64,
}

impl Shadow {
    /// Starts the thread. `harmless` makes the candidate with a copy of its state and these
    /// models; all shadows of a room share `turn`.
    pub fn start(
        models: &Arc<dyn Models>,
        harmless: impl FnOnce(Arc<dyn Models>) -> Arc<Policy>,
        config: &ShadowConfig,
        turn: Arc<Mutex<()>>,
    ) -> std::io::Result<Arc<Self>> {
        let budget = Arc::new(ModelBudget {
            models: Arc::clone(models),
            left: AtomicU64::new(config.model_calls),
        });
        let harmless = harmless(Arc::clone(&budget) as Arc<dyn Models>);
        let (sender, jobs) = channel();
        let shadow = Arc::new(Self {
            queue: Mutex::new(Some(sender)),
            waiting: AtomicUsize::new(0),
            waiting_max: config.queue,
            book: Mutex::default(),
            active_times: Histogram::default(),
            shadow_times: Histogram::default(),
            dropped_full: AtomicU64::new(0),
            dropped_busy: AtomicU64::new(0),
            budget,
        });
        let worker = Arc::clone(&shadow);
        let share = config.share;
        std::thread::Builder::new()
            .name("policy-shadow".into())
            .spawn(move || worker.work(&harmless, &jobs, share, &turn))?;
        Ok(shadow)
    }

    /// From a session that has its answer. Never waits; `question` is only asked for when
    /// there is room for it.
    pub fn offer(
        &self,
        asked: &Arc<Asked>,
        busy: bool,
        from: impl FnOnce() -> String,
        took: Duration,
        question: impl FnOnce() -> Question,
    ) {
        if busy {
            self.dropped_busy.fetch_add(1, Relaxed);
            return;
        }
        if self.waiting.fetch_add(1, Relaxed) >= self.waiting_max {
            self.waiting.fetch_sub(1, Relaxed);
            self.dropped_full.fetch_add(1, Relaxed);
            return;
        }
        let job = Job {
            asked: Arc::clone(asked),
            question: question(),
            from: from(),
            took,
        };
        // A shadow that has ended meanwhile has no queue.
        if let Some(queue) = &*lock(&self.queue) {
            let _ = queue.send(job);
        }
    }

    /// No more questions; the thread ends after the one it is at.
    pub fn end(&self) {
        *lock(&self.queue) = None;
    }

    fn has_ended(&self) -> bool {
        lock(&self.queue).is_none()
    }

    fn work(&self, policy: &Arc<Policy>, jobs: &Receiver<Job>, share: f64, turn: &Mutex<()>) {
        for job in jobs {
            let worked = {
                let _mine = lock(turn);
                if self.has_ended() {
                    return;
                }
                let started = Instant::now();
                self.compare(policy, &job);
                started.elapsed()
            };
            self.waiting.fetch_sub(1, Relaxed);
            if share < 1.0 {
                std::thread::sleep(worked.mul_f64(1.0 / share - 1.0));
            }
        }
    }

    fn compare(&self, policy: &Arc<Policy>, job: &Job) {
        let started = Instant::now();
        let answer = ask(policy, job);
        self.shadow_times.record(started.elapsed());
        self.active_times.record(job.took);
        let mut book = lock(&self.book);
        book.calls += 1;
        let to = match answer {
            Ok(kind) if kind == job.from => {
                book.same += 1;
                return;
            }
            Ok(kind) => kind,
            Err(fault) => {
                *book.faults.entry(fault.kind.as_str()).or_default() += 1;
                format!("fault: {}", fault.kind.as_str())
            }
        };
        let row = (job.from.clone(), to);
        let full = book.rows.len() >= ROWS_MAX && !book.rows.contains_key(&row);
        let row = if full {
            ("other".into(), "other".into())
        } else {
            row
        };
        *book.rows.entry(row).or_default() += 1;
    }

    pub fn status(&self) -> ShadowStatus {
        let book = lock(&self.book);
        let mut differences: Vec<Difference> = book
            .rows
            .iter()
            .map(|((from, to), calls)| Difference {
                from: from.clone(),
                to: to.clone(),
                calls: *calls,
            })
            .collect();
        differences.sort_by_key(|d| std::cmp::Reverse(d.calls));
        ShadowStatus {
            calls: book.calls,
            same: book.same,
            differences,
            faults: book.faults.clone(),
            dropped_full: self.dropped_full.load(Relaxed),
            dropped_busy: self.dropped_busy.load(Relaxed),
            active_times: self.active_times.summary(),
            candidate_times: self.shadow_times.summary(),
            model_calls_left: self.budget.left.load(Relaxed),
        }
    }
}

/// Nothing behind these locks is left half-changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One call on an instance of its own, which comes out of the room's spare ones.
fn ask(policy: &Arc<Policy>, job: &Job) -> Result<String, Fault> {
    let deadline = policy.deadline();
    let mut instance = Instance::new(policy, &job.asked, Permit::spare(), deadline)?;
    match &job.question {
        Question::Classify => sound(instance.classify(deadline)?, check::classification),
        Question::Route(classification, tiers) => {
            let views: Vec<_> = tiers.iter().map(convert::tier).collect();
            let classification = convert::classification(classification);
            let decision = instance.route(deadline, &classification, &views)?;
            sound(decision, |d| check::decision(d, tiers))
        }
        Question::Validate(answer) => {
            let verdict = instance.validate(deadline, &convert::answer(answer))?;
            sound(verdict, |v| check::verdict(v, answer))
        }
    }
}

fn sound<T: Kind>(
    answer: T,
    check: impl Fn(&T) -> Result<(), homeostat_hooks::Invalid>,
) -> Result<String, Fault> {
    match check(&answer) {
        Ok(()) => Ok(answer.kind()),
        Err(error) => Err(Fault::new(FaultKind::Invalid, error.0)),
    }
}

/// The room's models, a limited number of times.
struct ModelBudget {
    models: Arc<dyn Models>,
    left: AtomicU64,
}

impl ModelBudget {
    fn take(&self) -> Result<&dyn Models, ModelError> {
        self.left
            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
            .map(|_| &*self.models)
            .map_err(|_| {
                ModelError::LimitExceeded(
                    "a shadow has used its questions to the models (policies.shadow.model_calls)"
                        .into(),
                )
            })
    }
}

impl Models for ModelBudget {
    fn names(&self) -> Vec<String> {
        self.models.names()
    }

    fn info(&self, name: &str) -> Result<TierView, ModelError> {
        self.models.info(name)
    }

    fn count_tokens(&self, name: &str, text: &str) -> Result<u32, ModelError> {
        self.models.count_tokens(name, text)
    }

    fn embed(&self, name: &str, text: &str, timeout_ms: u32) -> Result<Vec<f32>, ModelError> {
        self.take()?.embed(name, text, timeout_ms)
    }

    fn score(
        &self,
        tenant: Option<&str>,
        name: &str,
        prompt: &str,
        continuation: &str,
        timeout_ms: u32,
    ) -> Result<Vec<f32>, ModelError> {
        self.take()?
            .score(tenant, name, prompt, continuation, timeout_ms)
    }

    fn generate(
        &self,
        tenant: Option<&str>,
        name: &str,
        prompt: &str,
        options: &GenerateOptions,
        timeout_ms: u32,
    ) -> Result<Generated, ModelError> {
        self.take()?
            .generate(tenant, name, prompt, options, timeout_ms)
    }
}
