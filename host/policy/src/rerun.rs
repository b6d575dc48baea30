//! Recorded traffic, decided by somebody else.
//!
//! A candidate gets the inputs of every recorded hook that it exports, on one instance per
//! request, as a session would give them: when it classifies and routes, its router sees its
//! own classification. What it decides stands beside what was decided then. Calls that need
//! something unrecorded are misses, and a miss is counted as nothing else.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use homeostat_hooks::{Classification, Decision, Hook, Origin, Request, Sample, TierView, Verdict};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::call::Policy;
use crate::config::{Limits, PolicyOptions};
use crate::explain::difference;
use crate::paths::Difference;
use crate::record::{DamagedLine, RecordLog, share_of};
use crate::recording::{Asking, Attempted, RecordedHook, RecordedPolicy, Recording};
use crate::replay::{Actor, Inputs, Played, Question, Replayer, Scene, hooks_of, powers, read_all};
use crate::shadow::Kind;
use crate::wave::{self, Spoken};

/// Changes, misses and faults that the text lists; JSON has all of them.
const LISTED: usize = 20;

/// A component that may replace one.
#[derive(Debug, Clone, Default)]
pub struct Candidate {
    /// Its name, for the log.
    pub name: String,
    /// The component.
    pub bytes: Vec<u8>,
    /// Settings, grants and limits; what is not given is as it was for the recorded policy.
    pub options: PolicyOptions,
    /// Only this hook; none = all that it exports.
    pub hook: Option<Hook>,
    /// How many of the routes that move are handed over whole ([`CandidateReport::sample`]).
    pub sample: usize,
}

/// What a candidate would change.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CandidateReport {
    /// Hex sha256 of the candidate.
    pub digest: String,
    /// Recordings that were replayed.
    pub requests: u64,
    /// Calls of hooks.
    pub calls: u64,
    /// Calls with exactly the recorded answer.
    pub same: u64,
    /// Per hook, how often an outcome moved from where to where.
    pub moves: BTreeMap<&'static str, Moves>,
    /// Calls with another answer.
    pub changed: Vec<Change>,
    /// Calls that asked something unrecorded: request, hook, what.
    pub misses: Vec<(String, Asking, String)>,
    /// Calls that failed: request, hook, how.
    pub faults: Vec<(String, Asking, String)>,
    /// Recordings that cannot be replayed, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Lines that are no recordings.
    pub damaged: Vec<DamagedLine>,
    /// Fuel of all calls.
    pub fuel: u64,
    /// What the tier views promise for the routes that changed.
    pub predicted: Figures,
    /// Routes that moved, chosen by the ids of their requests, so that another run of the
    /// same log chooses the same ones.
    #[serde(skip)]
    pub sample: Vec<Moved>,
    /// At most so many.
    #[serde(skip)]
    pub(crate) sample_max: usize,
}

/// A request that would be answered by somebody else, with all that it takes to answer it
/// again.
#[derive(Debug, Clone)]
pub struct Moved {
    /// The request as the hooks saw it.
    pub request: Request,
    /// How hard the candidate takes it to be, where it classifies; else what was recorded.
    pub classification: Classification,
    /// What was decided then.
    pub recorded: Decided,
    /// What the candidate decides.
    pub candidate: Decided,
    /// Who judged the answer; none = the built-in policy.
    pub validator: Option<RecordedPolicy>,
}

/// One of the two decisions about a request.
#[derive(Debug, Clone)]
pub struct Decided {
    /// The decision.
    pub decision: Decision,
    /// In a word: the tiers of its plan.
    pub label: String,
    /// What its first tier promises.
    pub promise: Promise,
}

/// What the view of a plan's first tier promises for one request; absent where the view is
/// silent, or no tier is asked. Tokens are those that the recorded answer took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Promise {
    /// Expected share of good answers.
    pub quality: Option<f64>,
    /// Tokens of the answer.
    pub tokens: Option<f64>,
    /// Energy of the output tokens, in joules, and where the figure comes from.
    pub joules: Option<(f64, Origin)>,
    /// Price of prompt and output.
    pub usd: Option<f64>,
    /// Time to the last token.
    pub milliseconds: Option<f64>,
}

/// From → to → how often.
pub type Moves = BTreeMap<String, BTreeMap<String, u64>>;

/// One decision that would be another.
#[derive(Debug, Clone, Serialize)]
pub struct Change {
    /// Id of the request.
    pub id: String,
    /// At which hook.
    pub hook: Asking,
    /// The outcome then, in a word: tiers of the plan, class, verdict.
    pub from: String,
    /// The outcome now.
    pub to: String,
    /// The first field that differs.
    pub difference: Option<Difference>,
    /// Why, in the candidate's words.
    pub reason: String,
}

/// Sums over the routes that changed, of the first tier of each plan, where the views of
/// both tiers carry the figure. Tokens are those that the recorded answer took.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    /// Expected share of good answers, as a sum over requests.
    pub quality: Figure,
    /// Energy of the output tokens.
    pub joules: Figure,
    /// Price of prompt and output.
    pub usd: Figure,
    /// Time to the last token, milliseconds.
    pub milliseconds: Figure,
}

/// One figure before and after.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Figure {
    /// Routes of which both sides are known.
    pub routes: u64,
    /// As decided then.
    pub from: f64,
    /// As the candidate decides.
    pub to: f64,
}

impl Figure {
    fn add(&mut self, from: Option<f64>, to: Option<f64>) {
        if let (Some(from), Some(to)) = (from, to) {
            self.routes += 1;
            self.from += from;
            self.to += to;
        }
    }
}

impl Replayer {
    /// Replays all recordings of a log with a candidate.
    ///
    /// # Errors
    /// The candidate is no policy, has none of the hooks, or the log cannot be read.
    pub fn candidate(
        &self,
        log: &RecordLog,
        candidate: &Candidate,
    ) -> Result<CandidateReport, String> {
        let policy = self
            .load(&candidate.name, &candidate.bytes)
            .map_err(|refused| refused.to_string())?;
        let mut rerun = Rerun::new(policy, candidate)?;
        let damaged = read_all(log, |recording| rerun.request(&recording))?;
        rerun.report.damaged = damaged;
        Ok(rerun.report)
    }
}

/// A candidate that is asked one recorded request after the other.
pub(crate) struct Rerun<'a> {
    pub report: CandidateReport,
    candidate: &'a Candidate,
    policy: Arc<Policy>,
    hooks: Vec<Hook>,
}

impl<'a> Rerun<'a> {
    /// Why a recording is left out that the candidate has no part in.
    pub const NOT_ITS_HOOKS: &'static str = "none of its hooks is the candidate's";

    /// `policy` is the candidate's component, loaded by a [`Replayer`].
    ///
    /// # Errors
    /// It has not the hook that was asked for.
    pub fn new(policy: Arc<Policy>, candidate: &'a Candidate) -> Result<Self, String> {
        let mut hooks = hooks_of(&policy);
        if let Some(only) = candidate.hook {
            if !hooks.contains(&only) {
                return Err(format!("{} exports no {}", candidate.name, only.as_str()));
            }
            hooks = vec![only];
        }
        let report = CandidateReport {
            digest: policy.digest.clone(),
            sample_max: candidate.sample,
            ..CandidateReport::default()
        };
        Ok(Self {
            report,
            candidate,
            policy,
            hooks,
        })
    }

    /// Asks it the hooks of one request.
    pub fn request(&mut self, recording: &Recording) {
        let hooks = &self.hooks;
        let asked = |h: &RecordedHook| h.hook.hook().is_some_and(|hook| hooks.contains(&hook));
        let played = if recording.hooks.iter().any(asked) {
            recording.replayable().and_then(|()| Inputs::of(recording))
        } else {
            Err(Self::NOT_ITS_HOOKS.to_string())
        };
        match played {
            Ok(inputs) => {
                self.report.requests += 1;
                let powers = powers_for(self.candidate, recording, hooks);
                let policy = Arc::new(self.policy.with_powers(powers));
                decide(&mut self.report, &policy, recording, &inputs, hooks);
            }
            Err(why) => *self.report.skipped.entry(why).or_default() += 1,
        }
    }
}

/// The candidate's own options, completed by what was in force for the policy it replaces.
fn powers_for(
    candidate: &Candidate,
    recording: &Recording,
    hooks: &[Hook],
) -> Arc<crate::host::Powers> {
    let replaced = recording
        .hooks
        .iter()
        .filter(|hook| hook.hook.hook().is_some_and(|hook| hooks.contains(&hook)))
        .find_map(|hook| {
            recording
                .policies
                .get(hook.attempts.get(hook.main(&recording.policies))?.policy)
        });
    let options = match replaced {
        Some(policy) => candidate.options.or(&policy.options()),
        None => candidate.options.clone(),
    };
    let limits = options.limits(Limits::default());
    powers(&candidate.name, options, limits)
}

/// One request.
fn decide(
    report: &mut CandidateReport,
    policy: &Arc<Policy>,
    recording: &Recording,
    inputs: &Inputs,
    hooks: &[Hook],
) {
    let seeds = recording.hooks.iter().flat_map(|hook| &hook.attempts);
    let seed = seeds.filter_map(Attempted::seed).next();
    let actor = Actor {
        policy,
        instance: 1,
        // Where no policy was asked there was no seed: any fixed one will do.
        seed: seed.unwrap_or_else(|| Sha256::digest(recording.id.as_bytes()).into()),
    };
    let mut scene = Scene::new(inputs.asked());
    let mut classified: Option<Classification> = None;
    for (hook, question) in recording.hooks.iter().zip(&inputs.questions) {
        let Some(reply) = hook.reply.as_ref().filter(|_| {
            let known = hook.hook.hook();
            known.is_some_and(|hook| hooks.contains(&hook))
        }) else {
            continue;
        };
        let mut question = question.clone();
        if let (Question::Route(seen, _), Some(own)) = (&mut question, &classified) {
            *seen = own.clone();
        }
        let main = hook.main(&recording.policies);
        let script = hook.attempts.get(main).map_or(&[][..], |a| &a.host_calls);
        let played = scene.play(&actor, script, &question);
        report.calls += 1;
        report.fuel += played.fuel;
        if hook.hook == Asking::Classify {
            classified = played
                .answer
                .as_deref()
                .and_then(|text| wave::read(text).ok());
        }
        note(report, recording, hook, &reply.value, &question, &played);
    }
}

/// What came of one call.
fn note(
    report: &mut CandidateReport,
    recording: &Recording,
    hook: &RecordedHook,
    recorded: &str,
    question: &Question,
    played: &Played,
) {
    let id = || recording.id.clone();
    if let Some(miss) = &played.miss {
        report.misses.push((id(), hook.hook, miss.to_string()));
        return;
    }
    if let Some(fault) = &played.fault {
        report.faults.push((id(), hook.hook, fault.to_string()));
        return;
    }
    let answer = played.answer.as_deref().unwrap_or_default();
    let (from, to) = (label(hook.hook, recorded), label(hook.hook, answer));
    let row = report.moves.entry(hook.hook.as_str()).or_default();
    let row = row.entry(from.clone()).or_default();
    *row.entry(to.clone()).or_default() += 1;
    if recorded == answer {
        report.same += 1;
        return;
    }
    if from != to {
        moved(report, recording, (recorded, answer), question);
    }
    report.changed.push(Change {
        id: id(),
        hook: hook.hook,
        from,
        to,
        difference: difference(hook.hook, Some(recorded), Some(answer)),
        reason: reason(hook.hook, answer),
    });
}

/// An outcome in a word.
fn label(hook: Asking, text: &str) -> String {
    fn of<T: Kind + Spoken>(text: &str) -> String {
        wave::read::<T>(text).map_or("?".into(), |answer| answer.kind())
    }
    match hook {
        Asking::Classify => of::<Classification>(text),
        Asking::Route => of::<Decision>(text),
        Asking::Validate => of::<Verdict>(text),
        Asking::Learn => "learned".into(),
    }
}

/// Why, in the policy's words.
fn reason(hook: Asking, text: &str) -> String {
    match hook {
        Asking::Route => match wave::read(text) {
            Ok(Decision::Plan(plan)) => plan.reason,
            Ok(Decision::Answer(answer)) => answer.method,
            Ok(Decision::Reject(rejection)) => rejection.message,
            Err(_) => String::new(),
        },
        Asking::Validate => {
            let assessment = match wave::read(text) {
                Ok(Verdict::Accept(a) | Verdict::Escalate(a)) => a,
                Ok(Verdict::Amend(amended)) => amended.assessment,
                Ok(Verdict::Reject(rejection)) => return rejection.message,
                _ => return String::new(),
            };
            let failed = assessment.findings.iter().filter(|f| !f.passed);
            let failed: Vec<&str> = failed.map(|f| f.detail.as_str()).collect();
            failed.join("; ")
        }
        Asking::Classify | Asking::Learn => String::new(),
    }
}

/// A route that moved: what both decisions promise, and perhaps a place in the sample.
fn moved(
    report: &mut CandidateReport,
    recording: &Recording,
    (from, to): (&str, &str),
    question: &Question,
) {
    let Question::Route(class, tiers) = question else {
        return;
    };
    let decided = |text: &str| -> Option<Decided> {
        let decision: Decision = wave::read(text).ok()?;
        Some(Decided {
            promise: promise(recording, class, tiers, &decision),
            label: label(Asking::Route, text),
            decision,
        })
    };
    let (Some(recorded), Some(candidate)) = (decided(from), decided(to)) else {
        return;
    };
    report.predicted.add(&recorded.promise, &candidate.promise);
    let (true, Ok(request)) = (report.sample_max > 0, wave::read(&recording.request)) else {
        return;
    };
    report.sample.push(Moved {
        request,
        classification: class.clone(),
        recorded,
        candidate,
        validator: validator_of(recording),
    });
    if report.sample.len() > report.sample_max {
        let place = |moved: &Moved| share_of(&moved.request.id);
        report.sample.sort_by(|a, b| place(a).total_cmp(&place(b)));
        report.sample.truncate(report.sample_max);
    }
}

/// The component that judged the answers of a request.
fn validator_of(recording: &Recording) -> Option<RecordedPolicy> {
    let mut hooks = recording.hooks.iter();
    let hook = hooks.find(|hook| hook.hook == Asking::Validate)?;
    let call = hook.attempts.get(hook.main(&recording.policies))?;
    recording.policies.get(call.policy).cloned()
}

fn promise(
    recording: &Recording,
    class: &Classification,
    tiers: &[TierView],
    decision: &Decision,
) -> Promise {
    let first = match decision {
        Decision::Plan(plan) => plan.steps.first(),
        Decision::Answer(_) | Decision::Reject(_) => None,
    };
    let Some(tier) = first.and_then(|step| tiers.iter().find(|tier| tier.id == step.tier)) else {
        return Promise::default();
    };
    let (simple, medium, complex) = tier.quality;
    let good = simple * class.p_simple + medium * class.p_medium + complex * class.p_complex;
    let promise = Promise {
        quality: Some(f64::from(good)),
        ..Promise::default()
    };
    let Some((prompt, output)) = tokens(recording) else {
        return promise;
    };
    let value = |sample: &Option<Sample>| sample.as_ref().map(|sample| sample.value);
    Promise {
        tokens: Some(output),
        joules: tier
            .joules_per_token
            .map(|each| (each.value * output, each.origin)),
        usd: tier
            .usd_per_mtok_prompt
            .zip(tier.usd_per_mtok_output)
            .map(|(in_prompt, in_output)| (in_prompt * prompt + in_output * output) / 1e6),
        milliseconds: value(&tier.ttft_ms)
            .zip(value(&tier.tpot_ms))
            .map(|(first, each)| first + each * (output - 1.0).max(0.0)),
        ..promise
    }
}

impl Figures {
    fn add(&mut self, from: &Promise, to: &Promise) {
        let joules = |promise: &Promise| promise.joules.map(|(joules, _)| joules);
        self.quality.add(from.quality, to.quality);
        self.joules.add(joules(from), joules(to));
        self.usd.add(from.usd, to.usd);
        self.milliseconds.add(from.milliseconds, to.milliseconds);
    }
}

/// Prompt and output tokens of the request, when it came to its end.
fn tokens(recording: &Recording) -> Option<(f64, f64)> {
    let outcome = recording.outcome()?;
    let known = outcome.generated_tokens > 0;
    known.then(|| {
        (
            f64::from(outcome.prompt_tokens),
            f64::from(outcome.generated_tokens),
        )
    })
}

// ---- for people ------------------------------------------------------------------------

impl CandidateReport {
    /// Calls of a hook whose outcome moved.
    pub fn moved(&self, hook: Hook) -> u64 {
        let rows = self.moves.get(hook.as_str()).into_iter().flatten();
        rows.flat_map(|(from, row)| row.iter().filter(move |(to, _)| *to != from))
            .map(|(_, count)| count)
            .sum()
    }

    /// The report as text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{} requests, {} calls: {} the same, {} changed, {} misses, {} faults; fuel {} a call",
            self.requests,
            self.calls,
            self.same,
            self.changed.len(),
            self.misses.len(),
            self.faults.len(),
            self.fuel / self.calls.max(1)
        );
        for (why, count) in &self.skipped {
            let _ = writeln!(out, "{count} not replayed: {why}");
        }
        for line in self.damaged.iter().take(LISTED) {
            let _ = writeln!(out, "not read: {line}");
        }
        for (hook, moves) in &self.moves {
            let _ = writeln!(out, "\n{hook}");
            table(&mut out, moves);
        }
        for (name, unit, figure) in [
            ("quality", "expected good answers", self.predicted.quality),
            ("energy", "J", self.predicted.joules),
            ("price", "USD", self.predicted.usd),
            ("time", "ms", self.predicted.milliseconds),
        ] {
            if figure.routes > 0 {
                let _ = writeln!(
                    out,
                    "\npredicted {name} of {} moved routes: {:.4} -> {:.4} {unit}",
                    figure.routes, figure.from, figure.to
                );
            }
        }
        let listed = |out: &mut String, what: &str, all: &[(String, Asking, String)]| {
            for (id, hook, text) in all.iter().take(LISTED) {
                let _ = writeln!(out, "{what} {id} {}: {text}", hook.as_str());
            }
            more(out, all.len());
        };
        listed(&mut out, "miss ", &self.misses);
        listed(&mut out, "fault", &self.faults);
        for change in self.changed.iter().take(LISTED) {
            let why = match change.reason.as_str() {
                "" => String::new(),
                reason => format!(" ({reason})"),
            };
            let first = change.difference.as_ref().map_or(String::new(), |d| {
                format!("; {}: {} -> {}", d.path, d.from, d.to)
            });
            let _ = writeln!(
                out,
                "{} {}: {} -> {}{why}{first}",
                change.id,
                change.hook.as_str(),
                change.from,
                change.to
            );
        }
        more(&mut out, self.changed.len());
        out
    }
}

fn more(out: &mut String, all: usize) {
    if all > LISTED {
        let _ = writeln!(out, "… and {} more (--json has all)", all - LISTED);
    }
}

/// Rows are where outcomes come from, columns where they go.
fn table(out: &mut String, moves: &Moves) {
    let mut columns: Vec<&str> = moves
        .values()
        .flat_map(|r| r.keys().map(String::as_str))
        .collect();
    columns.sort_unstable();
    columns.dedup();
    let first = moves
        .keys()
        .map(|k| k.chars().count())
        .max()
        .unwrap_or(0)
        .max(9);
    let _ = write!(out, "  {:first$}", "from \\ to");
    for column in &columns {
        let _ = write!(out, "  {column}");
    }
    let _ = writeln!(out);
    for (from, row) in moves {
        let _ = write!(out, "  {from:first$}");
        for column in &columns {
            let width = column.chars().count();
            let count = row.get(*column).copied().unwrap_or(0);
            let _ = write!(out, "  {count:>width$}");
        }
        let _ = writeln!(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equally_likely_classes_a_replay_names_the_one_that_a_trial_names() {
        let tie = Classification {
            p_simple: 0.5,
            p_medium: 0.5,
            p_complex: 0.0,
            ..Classification::default()
        };
        assert_eq!(label(Asking::Classify, &wave::text(&tie)), tie.kind());
        assert_eq!(label(Asking::Classify, "no wave"), "?");
    }
}
