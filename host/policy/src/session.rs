//! The hooks of one request.
//!
//! A session keeps the table of policies that was there when the request began. It makes
//! an instance at the first hook that needs one, keeps it for the hooks that the same
//! policy serves later, and drops it as soon as none is left: no instance is held while
//! a model writes unless its policy also validates.
//!
//! Every question is answered. What fails is replaced, in this order: by the last valid
//! proposal of the call, by the fallback that the policy was given, by the built-in
//! answer; and the reply says which.
//!
//! A canary's share of the requests meets the candidate, whose fallback is the active
//! policy. What a trial wants to know it is told after the answer is there.
//!
//! What policies ask models is paid by the request, for as long as its session lives. Who is not
//! listened to (a shadow, a probe) asks at the host's own expense.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use homeostat_hooks::{
    Answer, AnsweredBy, Classification, Decision, Fault, FaultKind, Hook, HookReply, Invalid,
    Models, Outcome, Refusal, Rejection, Request, Session, Snapshot, TierView, Verdict, builtin,
    check,
};

use crate::call::{Instance, Policy};
use crate::compose::{Abstain, Ensemble, Mode};
use crate::config::Fallback;
use crate::convert;
use crate::host::{Asked, Proposal};
use crate::limit::Permit;
use crate::record::{Notebook, Recorder};
use crate::recording::Asking;
use crate::room::Room;
use crate::shadow;
use crate::swap::{Generation, Table};
use crate::tape::Tape;
use crate::trial::Heard;
use crate::wave::Spoken;

/// Digits of the digest that a reply shows.
const DIGEST_DIGITS: usize = 12;

pub(crate) struct RoomSession {
    room: Arc<Room>,
    table: Arc<Table>,
    asked: Arc<Asked>,
    /// The models that the request pays for, where somebody keeps books and a policy may ask.
    models: Option<Arc<dyn Models>>,
    #[allow(
        clippy::vec_box,
        reason = "an instance moves between here and a seat at every call"
    )]
    instances: Vec<Box<Instance>>,
    notebook: Option<Notebook>,
}

/// An answer of a hook: a trial compares it, a composition weighs it, a recording keeps it.
trait Answers: shadow::Kind + Abstain + Spoken + Clone + Send + 'static {}

impl<T: shadow::Kind + Abstain + Spoken + Clone + Send + 'static> Answers for T {}

/// One question: how to ask it, and how to judge the answer.
struct Question<'a, T> {
    hook: Hook,
    args: &'a dyn Fn() -> Vec<Box<dyn Spoken>>,
    ask: &'a (dyn Fn(&mut Instance, Instant) -> Result<T, Fault> + Sync),
    check: &'a (dyn Fn(&T) -> Result<(), Invalid> + Sync),
    proposal: fn(Proposal) -> Option<T>,
    fallback: &'a dyn Fn(Fallback) -> T,
    /// The question as a shadow can be asked it.
    again: &'a dyn Fn() -> shadow::Question,
}

/// An attempt that ended without an answer.
struct Failure<T> {
    fault: Fault,
    proposal: Option<T>,
    why: Why,
}

impl<T> From<(Fault, Why)> for Failure<T> {
    fn from((fault, why): (Fault, Why)) -> Self {
        Self {
            fault,
            proposal: None,
            why,
        }
    }
}

/// The right to one call: an instance, or all that it takes to make one. It may be used on
/// another thread than the session's.
struct Seat {
    policy: Arc<Policy>,
    begun: Instant,
    deadline: Instant,
    place: Place,
}

enum Place {
    There(Box<Instance>),
    Empty(Permit, Option<Arc<Tape>>, Option<Arc<dyn Models>>),
}

/// A call that has ended: the instance, or the tape of the one that could not be made.
struct Called<T> {
    instance: Result<Box<Instance>, Option<Arc<Tape>>>,
    answer: Result<T, Fault>,
    time: Duration,
}

impl Seat {
    /// The call: makes the instance if there is none, asks it, and judges the answer.
    fn call<T>(
        self,
        asked: &Arc<Asked>,
        ask: impl FnOnce(&mut Instance, Instant) -> Result<T, Fault>,
        check: impl FnOnce(&T) -> Result<(), Invalid>,
    ) -> Called<T> {
        let made = match self.place {
            Place::There(instance) => Ok(instance),
            Place::Empty(permit, tape, models) => {
                let (policy, deadline) = (&self.policy, self.deadline);
                match Instance::taped(policy, asked, permit, deadline, tape.clone(), models) {
                    Ok(instance) => {
                        policy.cost.measured(self.begun.elapsed());
                        Ok(Box::new(instance))
                    }
                    Err(fault) => Err((fault, tape)),
                }
            }
        };
        let (instance, answer) = match made {
            Ok(mut instance) => {
                let answer = ask(&mut instance, self.deadline).and_then(|answer| {
                    let invalid = |error: Invalid| Fault::new(FaultKind::Invalid, error.0);
                    check(&answer).map_err(invalid)?;
                    Ok(answer)
                });
                (Ok(instance), answer)
            }
            Err((fault, tape)) => (Err(tape), Err(fault)),
        };
        Called {
            instance,
            answer,
            time: self.begun.elapsed(),
        }
    }
}

/// Whose doing a failure is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The policy ran and failed.
    Policy,
    /// The host had no instance for it.
    Full,
    /// Its breaker is open, so it was not asked.
    LeftAlone,
}

impl RoomSession {
    pub fn new(room: Arc<Room>, request: Arc<Request>, snapshot: Arc<Snapshot>) -> Self {
        let table = Table::for_request(room.table.load_full(), &request);
        let models = match table.asks_models() {
            true => Arc::clone(&room.models).at_the_expense_of(&request),
            false => None,
        };
        let asked = Arc::new(Asked::new(request, snapshot));
        Self {
            notebook: Recorder::begin(&room.recorder, &asked),
            room,
            table,
            asked,
            models,
            instances: Vec::new(),
        }
    }

    fn answer<T: Answers>(&mut self, mut question: Question<'_, T>) -> HookReply<T> {
        if let Some(notebook) = &mut self.notebook {
            notebook.asks(question.hook.into(), (question.args)());
        }
        let (reply, why) = self.answered(&mut question);
        if let Some(notebook) = &mut self.notebook {
            notebook.replied(&reply);
        }
        if let Some(trial) = self.table.trial(question.hook) {
            let heard = Heard {
                hook: question.hook,
                asked: &self.asked,
                by: self.table.get(question.hook),
                // That the house is full is nobody's fault.
                fault: reply.fault.is_some() && why != Some(Why::Full),
                left_alone: why == Some(Why::LeftAlone),
                took: Duration::from_micros(reply.micros),
            };
            let kind = || reply.value.kind();
            self.room.heard(trial, &heard, kind, question.again);
        }
        reply
    }

    /// The answer, and why it is not the policy's if it is not.
    fn answered<T: Answers>(
        &mut self,
        question: &mut Question<'_, T>,
    ) -> (HookReply<T>, Option<Why>) {
        let Some(generation) = self.table.get(question.hook).map(Arc::clone) else {
            let value = (question.fallback)(Fallback::BuiltIn);
            return (builtin::reply(value), None);
        };
        let started = Instant::now();
        let outcome = self.try_generation(&generation, question);
        let mut why = None;
        let (value, by, fault) = match outcome {
            Ok(value) => (value, component(&generation, false), None),
            Err(failure) => {
                why = Some(failure.why);
                self.count(&generation, |c| match failure.why {
                    Why::LeftAlone => {
                        c.left_alone.fetch_add(1, Relaxed);
                    }
                    Why::Policy | Why::Full => c.fault(failure.fault.kind),
                });
                let (value, by) = self.instead(&generation, question, failure.proposal);
                (value, by, Some(failure.fault))
            }
        };
        let time = started.elapsed();
        self.count(&generation, |c| c.times.record(time));
        let reply = HookReply {
            value,
            by,
            fault,
            micros: u64::try_from(time.as_micros()).unwrap_or(u64::MAX),
        };
        (reply, why)
    }

    fn count(&self, generation: &Generation, add: impl Fn(&crate::stats::Counters)) {
        add(&generation.counters);
        add(&self.room.totals[generation.hook as usize]);
    }

    /// Asks the policy, if its breaker lets us, and tells the breaker how it went.
    fn try_generation<T: Answers>(
        &mut self,
        generation: &Generation,
        question: &mut Question<'_, T>,
    ) -> Result<T, Failure<T>> {
        let now = self.room.now_ms();
        if let Err(fault) = generation.breaker.ask(now) {
            return Err(Failure {
                fault,
                proposal: None,
                why: Why::LeftAlone,
            });
        }
        let policy = &generation.policy;
        let outcome = match &policy.ensemble {
            None => self.try_policy(policy, question, Some(generation)),
            Some(ensemble) if ensemble.mode == Mode::Hedge => {
                self.race(generation, ensemble, question)
            }
            Some(ensemble) => ensemble.answer(policy, |member| {
                self.try_policy(member, question, Some(generation))
            }),
        };
        match &outcome {
            Ok(_) => generation.breaker.succeeded(),
            Err(failure) if failure.why == Why::Full => generation.breaker.undecided(),
            Err(failure) => {
                tracing::debug!(
                    policy = generation.policy.name(),
                    generation = generation.number,
                    hook = generation.hook.as_str(),
                    "{}",
                    failure.fault
                );
                generation
                    .breaker
                    .failed(&failure.fault, self.room.now_ms());
            }
        }
        outcome
    }

    /// A hedge: the component works on a thread of its own while its stand-ins answer here, so
    /// the slower of both decides how long it takes, and never the sum. A thread costs some
    /// ten microseconds, which is little beside a policy that needs a stand-in. In a house
    /// that is more than half full they take turns, since both at once hold two instances.
    fn race<T: Answers>(
        &mut self,
        generation: &Generation,
        ensemble: &Ensemble,
        question: &mut Question<'_, T>,
    ) -> Result<T, Failure<T>> {
        let policy = &generation.policy;
        let (used, all) = (self.room.gate.used(), self.room.config.instances);
        if used.saturating_mul(2) > all || used + 2 > all {
            return ensemble.answer(policy, |member| {
                self.try_policy(member, question, Some(generation))
            });
        }
        let seat = self.seat(policy)?;
        let asked = Arc::clone(&self.asked);
        let (ask, check) = (question.ask, question.check);
        let (called, stand_in) = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("policy-hedge".into());
            let main = thread.spawn_scoped(scope, || seat.call(&asked, ask, check));
            let stand_in =
                ensemble.stand_in(|member| self.try_policy(member, question, Some(generation)));
            (main.map(|main| main.join()), stand_in)
        });
        let given = match called {
            Ok(Ok(called)) => self.settle(policy, question, Some(generation), called),
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            // No thread is to be had: it has its turn after its stand-ins.
            Err(_) => self.try_policy(policy, question, Some(generation)),
        };
        ensemble.hedged(given, stand_in)
    }

    /// One call with everything around it: instance, deadline, checks, proposals.
    fn try_policy<T: Answers>(
        &mut self,
        policy: &Arc<Policy>,
        question: &mut Question<'_, T>,
        counted: Option<&Generation>,
    ) -> Result<T, Failure<T>> {
        let called = self
            .seat(policy)?
            .call(&self.asked, question.ask, question.check);
        self.settle(policy, question, counted, called)
    }

    /// What is done after a call: notes, counters, and what becomes of the instance.
    fn settle<T: Answers>(
        &mut self,
        policy: &Arc<Policy>,
        question: &mut Question<'_, T>,
        counted: Option<&Generation>,
        called: Called<T>,
    ) -> Result<T, Failure<T>> {
        self.noted(policy, counted, &called);
        let mut instance = match called.instance {
            Ok(instance) => instance,
            Err(_) => return called.answer.map_err(|fault| (fault, Why::Policy).into()),
        };
        let dropped = instance.take_dropped_log_bytes();
        if let Some(generation) = counted.filter(|_| dropped > 0) {
            self.count(generation, |c| {
                c.log_bytes_dropped.fetch_add(dropped, Relaxed);
            });
        }
        let outcome = called.answer.map_err(|fault| Failure {
            proposal: last_valid(instance.take_proposals(), question),
            fault,
            why: Why::Policy,
        });
        if instance.is_broken() || !self.needed_after(question.hook, policy) {
            self.let_go(*instance, policy);
        } else {
            self.instances.push(instance);
        }
        outcome
    }

    /// Puts a call into the recording, if there is one.
    fn noted<T: Spoken + Clone + 'static>(
        &mut self,
        policy: &Arc<Policy>,
        counted: Option<&Generation>,
        called: &Called<T>,
    ) {
        let tape = match &called.instance {
            Ok(instance) => instance.tape(),
            Err(tape) => tape.as_ref(),
        };
        if let (Some(notebook), Some(tape)) = (&mut self.notebook, tape) {
            let number = counted.map(|generation| generation.number);
            notebook.attempted(policy, number, tape, &called.answer, called.time);
        }
    }

    /// The instance of this policy, or what it takes to make one, and the deadline of the
    /// call.
    fn seat(&mut self, policy: &Arc<Policy>) -> Result<Seat, (Fault, Why)> {
        let begun = Instant::now();
        let seat = |begun, place| Seat {
            policy: Arc::clone(policy),
            begun,
            deadline: policy.deadline_from(begun),
            place,
        };
        if let Some(index) = self.instances.iter().position(|i| i.is_of(policy)) {
            return Ok(seat(begun, Place::There(self.instances.swap_remove(index))));
        }
        let wait_ms = self.room.config.wait_ms;
        let wait = Duration::from_millis(u64::from(wait_ms));
        let Some((permit, waited)) = self.room.gate.enter(wait) else {
            self.room.waits_given_up.fetch_add(1, Relaxed);
            let text = format!(
                "no instance free within {wait_ms} ms: {} are at work (policies.instances)",
                self.room.config.instances
            );
            return Err((Fault::new(FaultKind::Deadline, text), Why::Full));
        };
        if waited {
            self.room.waits.fetch_add(1, Relaxed);
        }
        // The time to make the instance is the policy's: its initialisation runs in it.
        let begun = if waited { Instant::now() } else { begun };
        let filler = &self.room.filler;
        let ready = filler.is_for(policy).then(|| filler.take(policy)).flatten();
        let place = match ready {
            Some(mut instance) => {
                // What a recorded instance asked while it was made belongs to the recording.
                if let (Some(notebook), Some(tape)) = (&mut self.notebook, instance.tape()) {
                    notebook.adopt(tape);
                } else {
                    instance.leave_untaped();
                }
                instance.adopt(&self.asked, permit, self.models.clone());
                Place::There(Box::new(instance))
            }
            None => {
                let tape = self.notebook.as_mut().map(Notebook::tape);
                Place::Empty(permit, tape, self.models.clone())
            }
        };
        Ok(seat(begun, place))
    }

    /// An instance that is not needed any more. What is dear to make is dear to clear.
    fn let_go(&self, used: Instance, policy: &Policy) {
        if self.room.filler.is_for(policy) {
            self.room.filler.retire(used);
        }
    }

    /// Whether a later hook of this request is served by the same policy. `validate` may
    /// be asked again.
    fn needed_after(&self, hook: Hook, policy: &Arc<Policy>) -> bool {
        let later: &[Hook] = match hook {
            Hook::Classify => &[Hook::Route, Hook::Validate],
            Hook::Route | Hook::Validate => &[Hook::Validate],
        };
        self.table.serves_any(later, policy)
    }

    /// The answer in place of the one that did not come.
    fn instead<T: Answers>(
        &mut self,
        generation: &Generation,
        question: &mut Question<'_, T>,
        proposal: Option<T>,
    ) -> (T, AnsweredBy) {
        if let Some(value) = proposal {
            self.count(generation, |c| {
                c.proposed.fetch_add(1, Relaxed);
            });
            return (value, component(generation, true));
        }
        self.count(generation, |c| {
            c.fallbacks.fetch_add(1, Relaxed);
        });
        let mode = generation.policy.fallback;
        let by = |fallback: String| AnsweredBy::Fallback {
            name: generation.policy.name().to_string(),
            generation: generation.number,
            fallback,
            candidate: generation.candidate,
        };
        if (mode == Fallback::Previous || generation.candidate)
            && let Some(previous) = &generation.previous
            && let Ok(value) = self.try_policy(previous, question, None)
        {
            return (value, by(format!("previous: {}", previous.name())));
        }
        let word = if mode == Fallback::Reject {
            "reject"
        } else {
            "built-in"
        };
        ((question.fallback)(mode), by(word.to_string()))
    }
}

fn component(generation: &Generation, proposed: bool) -> AnsweredBy {
    let policy = &generation.policy;
    AnsweredBy::Component {
        name: policy.name().to_string(),
        generation: generation.number,
        digest: policy.digest[..DIGEST_DIGITS].to_string(),
        proposed,
        candidate: generation.candidate,
    }
}

/// The latest proposal of the right kind that passes the checks.
fn last_valid<T>(proposals: Vec<Proposal>, question: &Question<'_, T>) -> Option<T> {
    proposals
        .into_iter()
        .rev()
        .filter_map(question.proposal)
        .find(|value| (question.check)(value).is_ok())
}

impl Session for RoomSession {
    fn classify(&mut self) -> HookReply<Classification> {
        let asked = Arc::clone(&self.asked);
        self.answer(Question {
            hook: Hook::Classify,
            args: &Vec::new,
            ask: &|instance, deadline| instance.classify(deadline),
            check: &check::classification,
            proposal: |p| match p {
                Proposal::Classification(c) => Some(convert::classification_in(c)),
                _ => None,
            },
            fallback: &|_| builtin::classify(&asked.request),
            again: &|| shadow::Question::Classify,
        })
    }

    fn route(
        &mut self,
        classification: &Classification,
        tiers: &[TierView],
    ) -> HookReply<Decision> {
        let asked = Arc::clone(&self.asked);
        self.answer(Question {
            hook: Hook::Route,
            args: &|| vec![Box::new(classification.clone()), Box::new(tiers.to_vec())],
            ask: &|instance, deadline| {
                let views: Vec<_> = tiers.iter().map(convert::tier).collect();
                instance.route(deadline, &convert::classification(classification), &views)
            },
            check: &|decision| check::decision(decision, tiers),
            proposal: |p| match p {
                Proposal::Decision(d) => Some(convert::decision_in(d)),
                _ => None,
            },
            fallback: &|_| builtin::route(classification, tiers, asked.snapshot()),
            again: &|| shadow::Question::Route(classification.clone(), tiers.to_vec()),
        })
    }

    fn validate(&mut self, answer: &Answer) -> HookReply<Verdict> {
        self.answer(Question {
            hook: Hook::Validate,
            args: &|| vec![Box::new(answer.clone())],
            ask: &|instance, deadline| instance.validate(deadline, &convert::answer(answer)),
            check: &|verdict| check::verdict(verdict, answer),
            proposal: |p| match p {
                Proposal::Verdict(v) => Some(convert::verdict_in(v)),
                _ => None,
            },
            fallback: &|mode| {
                if mode == Fallback::Reject {
                    return Verdict::Reject(Rejection {
                        kind: Refusal::Unreliable,
                        message: "the answer could not be validated".into(),
                        retry_after_ms: None,
                    });
                }
                builtin::validate(answer)
            },
            again: &|| shadow::Question::Validate(answer.clone()),
        })
    }

    fn has_receipt(&self) -> bool {
        self.notebook.is_some()
    }

    fn receipt(&self) -> Option<String> {
        self.notebook.as_ref()?.receipt()
    }

    fn learn(&mut self, outcome: &Outcome) {
        let mut told: Vec<Arc<Policy>> = Vec::new();
        let table = Arc::clone(&self.table);
        if let Some(notebook) = &mut self.notebook {
            notebook.asks(Asking::Learn, vec![Box::new(outcome.clone())]);
        }
        for generation in Hook::ALL.iter().filter_map(|hook| table.get(*hook)) {
            let policy = &generation.policy;
            let known = told.iter().any(|p| Arc::ptr_eq(p, policy));
            if known || policy.guests.learner.is_none() || generation.breaker.is_open() {
                continue;
            }
            told.push(Arc::clone(policy));
            let learned = self.seat(policy).map_err(|(fault, _)| fault);
            let learned = learned.and_then(|seat| {
                let tell = |instance: &mut Instance, deadline| {
                    instance.learn(deadline, &convert::outcome(outcome))
                };
                let called = seat.call(&self.asked, tell, |()| Ok(()));
                self.noted(policy, Some(&**generation), &called);
                self.instances.extend(called.instance);
                called.answer
            });
            if let Err(fault) = learned {
                self.count(generation, |c| c.fault(fault.kind));
                tracing::warn!(policy = policy.name(), "it could not learn: {fault}");
            }
        }
        for used in std::mem::take(&mut self.instances) {
            let policy = Arc::clone(used.policy());
            self.let_go(*used, &policy);
        }
        self.room.request_ended(&self.table, outcome);
    }
}
