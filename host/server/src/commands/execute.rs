//! `homeostat policy replay --execute`: moved routes, answered by the models themselves.
//!
//! A replay tells what a candidate would decide; what the decision is worth only the tiers
//! can tell. A sampled request runs twice through the same cascade that serves: once with
//! the decision that was recorded, once with the candidate's. Both answers are judged by the
//! validator that judged the recorded one, one run follows the other, and nothing that one
//! leaves behind (cached prefixes, remembered answers) helps the next.
//!
//! Energy is what the devices' counters moved meanwhile, with all that else ran on them;
//! where none counts, it is the tiers' configured joules per token, and says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use homeostat_cascade::{
    Cascade, CascadeConfig, DecisionRecord, Ending, Job, OutputFormat, Prompt, Sampling, Tier,
};
use homeostat_hooks::{
    Answer, BuiltIn, Classification, Decision, DeviceKind, Endpoint, Hook, HookReply, Models,
    Origin, Outcome, Policies, Request, ResponseFormat, Session, Snapshot, TierView, Value,
    Verdict, builtin,
};
use homeostat_policy::recording::RecordedPolicy;
use homeostat_policy::{Decided, Moved, PolicyRoom, Promise, RecordLog, RoomConfig};
use homeostat_telemetry::Telemetry;
use serde::Serialize;

use crate::config::{Config, TierConfig};
use crate::house::Snapshots;
use crate::metrics::Metrics;
use crate::tiers::HostModels;
use crate::{Failure, serve};

/// What came of the sample.
#[derive(Debug, Serialize)]
pub struct Executed {
    /// Routes that moved, in the whole log.
    moved: u64,
    runs: Vec<Run>,
    /// Requests that cannot be run here: id, why.
    left_out: Vec<(String, String)>,
}

/// One request, answered twice.
#[derive(Debug, Serialize)]
struct Run {
    id: String,
    recorded: Side,
    candidate: Side,
}

#[derive(Debug, Serialize)]
struct Side {
    decision: String,
    predicted: Promise,
    real: Real,
}

/// What one run took.
#[derive(Debug, Serialize)]
struct Real {
    /// `accept`, `escalate`, `amend`, `reject`, `undecided`, `direct`, or why it failed.
    verdict: String,
    confidence: Option<f32>,
    /// The client would have an answer that its validator does not doubt.
    good: bool,
    /// Generated over all steps.
    tokens: u32,
    ttft_ms: Option<u32>,
    milliseconds: u32,
    joules: Option<(f64, Origin)>,
    usd: Option<f64>,
}

/// Runs the sample of a report. Loads the tiers that it needs and no others.
pub fn execute(
    config: &Config,
    log: &RecordLog,
    moved: u64,
    sample: &[Moved],
) -> Result<Executed, Failure> {
    let (runnable, left_out) = runnable(config, sample);
    let mut executed = Executed {
        moved,
        runs: Vec::new(),
        left_out,
    };
    if runnable.is_empty() {
        return match executed.left_out.first() {
            None => Ok(executed),
            Some((id, why)) => Err(Failure::Failed(format!(
                "none of the {} sampled requests can be executed; {id}: {why}",
                sample.len()
            ))),
        };
    }
    let config = narrowed(config, &runnable);
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::failed)?;
    let _inside = runtime.enter();
    let engines = serve::load_engines(&config)?;
    let metrics = Metrics::new().map_err(Failure::failed)?;
    let (local, remote) = serve::tiers(&config, &engines, &metrics)?;
    let models = HostModels::new(local.clone(), remote.clone(), None).map_err(Failure::failed)?;
    let telemetry = Telemetry::start(serve::telemetry_config(&config));
    let local = local.into_iter().map(|tier| tier as Arc<dyn Tier>);
    let stage = Stage {
        tiers: local.chain(remote).collect(),
        judges: judges(log, &runnable, Arc::new(models))?,
        snapshots: Arc::new(move || telemetry.snapshot()),
        settle: Duration::from_millis(2 * u64::from(config.telemetry.period_ms)),
        top_p: config.sampling.top_p,
    };
    for moved in runnable {
        executed.runs.push(runtime.block_on(stage.run(moved)));
    }
    Ok(executed)
}

/// The requests that can be answered here, and why the others cannot.
fn runnable<'a>(config: &Config, sample: &'a [Moved]) -> (Vec<&'a Moved>, Vec<(String, String)>) {
    let known: Vec<&str> = config.tiers.iter().map(|tier| tier.id.as_str()).collect();
    let mut runnable = Vec::new();
    let mut left_out = Vec::new();
    for moved in sample {
        let missing = tiers_of(moved).find(|tier| !known.contains(&tier.as_str()));
        let outcome = match missing {
            Some(tier) => Err(format!(
                "tier {tier} is not in this configuration, which has {}; name the file of the \
                 host that recorded it with --config",
                known.join(", ")
            )),
            None => job(&moved.request, config.sampling.top_p).map(|_| ()),
        };
        match outcome {
            Ok(()) => runnable.push(moved),
            Err(why) => left_out.push((moved.request.id.clone(), why)),
        }
    }
    (runnable, left_out)
}

/// The tiers that either decision may ask.
fn tiers_of(moved: &Moved) -> impl Iterator<Item = &String> {
    let decided = [&moved.recorded, &moved.candidate];
    decided
        .into_iter()
        .filter_map(|decided| match &decided.decision {
            Decision::Plan(plan) => Some(&plan.steps),
            Decision::Answer(_) | Decision::Reject(_) => None,
        })
        .flatten()
        .map(|step| &step.tier)
}

/// The configuration with the tiers that are needed, without memory between two runs.
fn narrowed(config: &Config, runnable: &[&Moved]) -> Config {
    let needed: BTreeSet<&String> = runnable.iter().flat_map(|moved| tiers_of(moved)).collect();
    let mut config = config.clone();
    config.encoder.enabled = false;
    config.encoder.prompt_classifier = None;
    config.tiers.retain(|tier| needed.contains(&tier.id));
    for tier in &mut config.tiers {
        let TierConfig {
            prefix_cache,
            speculation,
            ..
        } = tier;
        *prefix_cache = false;
        speculation.remember_answers = None;
    }
    config
}

/// The job that the recorded request was; the parts that policies are not shown (other
/// sampling parameters than the temperature) as a client leaves them out.
fn job(request: &Request, top_p: f32) -> Result<Job, String> {
    if request.cut_bytes > 0 {
        return Err(format!(
            "its prompt was recorded without {} bytes: it was longer than policies are shown \
             (cascade.view_bytes_max)",
            request.cut_bytes
        ));
    }
    let attribute = |name: &str| {
        let found = request.attributes.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value)
    };
    if let Some(Value::Text(form)) = attribute("homeostat.output") {
        return Err(format!(
            "its answer has a form ({form}) that is not recorded"
        ));
    }
    let output = match request.response_format {
        ResponseFormat::Text => OutputFormat::Text,
        ResponseFormat::JsonObject => OutputFormat::JsonObject,
        ResponseFormat::JsonSchema => match attribute("homeostat.json-schema") {
            Some(Value::Text(schema)) => OutputFormat::JsonSchema {
                name: "recorded".into(),
                schema: serde_json::from_str(schema)
                    .map_err(|error| format!("its JSON schema cannot be read: {error}"))?,
            },
            _ => return Err("its JSON schema is not recorded".into()),
        },
    };
    let prompt = match request.endpoint {
        Endpoint::Chat => Prompt::Chat(request.messages.clone()),
        Endpoint::Completion => Prompt::Raw(request.question().to_string()),
    };
    Ok(Job {
        id: request.id.clone(),
        endpoint: request.endpoint,
        model: "auto".into(),
        prompt,
        sampling: Sampling {
            temperature: request.temperature,
            // The same for both, so that they differ by their decisions.
            seed: Some(0),
            top_p,
            ..Sampling::default()
        },
        max_tokens: request.max_tokens,
        // Held back until it is judged, so that every answer has its verdict.
        stream: false,
        output,
        tenant: request.tenant.clone(),
        sharer: None,
        priority: 0,
        deadline_ms: None,
        attributes: request
            .attributes
            .iter()
            .filter(|(name, _)| !name.starts_with("homeostat."))
            .cloned()
            .collect(),
        purse: None,
    })
}

// ---- who judges ------------------------------------------------------------------------

/// Validators by name and digest.
type Judges = BTreeMap<(String, String), Arc<PolicyRoom>>;

fn key(policy: &RecordedPolicy) -> (String, String) {
    (policy.name.clone(), policy.digest.clone())
}

/// A room for every component that judged one of these requests.
fn judges(
    log: &RecordLog,
    runnable: &[&Moved],
    models: Arc<dyn Models>,
) -> Result<Judges, Failure> {
    let mut judges = Judges::new();
    for policy in runnable.iter().filter_map(|moved| moved.validator.as_ref()) {
        if judges.contains_key(&key(policy)) {
            continue;
        }
        let refused = |why: String| {
            let name = &policy.name;
            Failure::Failed(format!("the validator {name} of the recording: {why}"))
        };
        let room = PolicyRoom::new(RoomConfig::default(), Arc::clone(&models))
            .map_err(|error| refused(error.to_string()))?;
        let offer = policy.offer(log, Hook::Validate).map_err(refused)?;
        room.put(offer)
            .map_err(|refusal| refused(refusal.to_string()))?;
        judges.insert(key(policy), Arc::new(room));
    }
    Ok(judges)
}

/// Policies of one run: everything is decided but the verdict.
struct Scripted {
    classification: Classification,
    decision: Decision,
    judge: Arc<dyn Policies>,
}

struct ScriptedSession {
    classification: Classification,
    decision: Decision,
    judge: Box<dyn Session>,
}

impl Policies for Scripted {
    fn begin(&self, request: Arc<Request>, snapshot: Arc<Snapshot>) -> Box<dyn Session> {
        Box::new(ScriptedSession {
            classification: self.classification.clone(),
            decision: self.decision.clone(),
            judge: self.judge.begin(request, snapshot),
        })
    }
}

impl Session for ScriptedSession {
    fn classify(&mut self) -> HookReply<Classification> {
        builtin::reply(self.classification.clone())
    }

    fn route(&mut self, _: &Classification, _: &[TierView]) -> HookReply<Decision> {
        builtin::reply(self.decision.clone())
    }

    fn validate(&mut self, answer: &Answer) -> HookReply<Verdict> {
        self.judge.validate(answer)
    }

    /// Nobody shall learn from a rehearsal.
    fn learn(&mut self, _: &Outcome) {}
}

// ---- one run ---------------------------------------------------------------------------

/// Where requests are run.
struct Stage {
    tiers: Vec<Arc<dyn Tier>>,
    judges: Judges,
    snapshots: Snapshots,
    /// After it the counters have seen what a run took.
    settle: Duration,
    top_p: f32,
}

impl Stage {
    async fn run(&self, moved: &Moved) -> Run {
        Run {
            id: moved.request.id.clone(),
            recorded: self.side(moved, &moved.recorded).await,
            candidate: self.side(moved, &moved.candidate).await,
        }
    }

    async fn side(&self, moved: &Moved, decided: &Decided) -> Side {
        let judge = moved
            .validator
            .as_ref()
            .and_then(|v| self.judges.get(&key(v)));
        let judge: Arc<dyn Policies> = match judge {
            Some(room) => Arc::clone(room) as Arc<dyn Policies>,
            None => Arc::new(BuiltIn),
        };
        let policies = Arc::new(Scripted {
            classification: moved.classification.clone(),
            decision: decided.decision.clone(),
            judge,
        });
        let (closed, mut records) = tokio::sync::mpsc::unbounded_channel();
        let limits = CascadeConfig {
            observer: Some(Arc::new(move |record: &DecisionRecord| {
                // Somebody waits for it below.
                let _ = closed.send(record.clone());
            })),
            ..CascadeConfig::default()
        };
        let cascade = Cascade::new(policies, self.tiers.clone(), self.snapshots.clone(), limits);
        let before = (self.snapshots)();
        let record = match job(&moved.request, self.top_p) {
            Ok(job) => {
                if let Ok(mut reply) = Arc::new(cascade).run(job).await {
                    while reply.events.next().await.is_some() {}
                }
                records.recv().await
            }
            Err(_) => None,
        };
        tokio::time::sleep(self.settle).await;
        let counted = joules(&before, &(self.snapshots)());
        Side {
            decision: decided.label.clone(),
            predicted: decided.promise,
            real: real(record.as_ref(), counted),
        }
    }
}

/// What the devices' counters moved; none where none counts.
fn joules(before: &Snapshot, after: &Snapshot) -> Option<(f64, Origin)> {
    let counts = |kind: DeviceKind| !matches!(kind, DeviceKind::Host | DeviceKind::External);
    let mut sum: Option<(f64, Origin)> = None;
    for device in after.devices.iter().filter(|device| counts(device.kind)) {
        let earlier = before.devices.iter().find(|d| d.id == device.id);
        let earlier = earlier.and_then(|device| device.energy_joules);
        let Some((earlier, now)) = earlier.zip(device.energy_joules) else {
            continue;
        };
        let (joules, origin) = sum.unwrap_or((0.0, now.origin));
        // A sum is worth what its weakest part is worth.
        let weaker = [origin, now.origin].into_iter().max_by_key(|o| *o as u8);
        sum = Some((joules + now.value - earlier.value, weaker.unwrap_or(origin)));
    }
    sum
}

fn real(record: Option<&DecisionRecord>, counted: Option<(f64, Origin)>) -> Real {
    let Some(record) = record else {
        return Real {
            verdict: "it left no record".into(),
            confidence: None,
            good: false,
            tokens: 0,
            ttft_ms: None,
            milliseconds: 0,
            joules: None,
            usd: None,
        };
    };
    let (verdict, confidence, good) = judged(record);
    let steps = record.steps.iter().map(|step| {
        let tier = record.tiers.iter().find(|tier| tier.id == step.tier);
        (step, tier)
    });
    let mut modelled: Option<(f64, Origin)> = None;
    let mut usd: Option<f64> = None;
    for (step, tier) in steps {
        let Some(tier) = tier else { continue };
        let (prompt, output) = (
            f64::from(step.prompt_tokens),
            f64::from(step.completion_tokens),
        );
        if let Some(each) = tier.joules_per_token {
            let before = modelled.map_or(0.0, |(joules, _)| joules);
            modelled = Some((before + each.value * output, each.origin));
        }
        let price = tier.usd_per_mtok_prompt.zip(tier.usd_per_mtok_output);
        if let Some((in_prompt, in_output)) = price {
            let cost = (in_prompt * prompt + in_output * output) / 1e6;
            usd = Some(usd.unwrap_or(0.0) + cost);
        }
    }
    Real {
        verdict,
        confidence,
        good,
        tokens: record.usage.generated_tokens_all_steps,
        ttft_ms: record.ttft_ms,
        milliseconds: record.total_ms,
        joules: counted.or(modelled),
        usd,
    }
}

/// The verdict on what was sent, its confidence, and whether it is good.
fn judged(record: &DecisionRecord) -> (String, Option<f32>, bool) {
    match &record.ending {
        Ending::Direct { .. } => return ("direct".into(), None, true),
        Ending::Refused { message } => return (format!("refused: {message}"), None, false),
        Ending::Failed { message } => return (format!("failed: {message}"), None, false),
        Ending::Running | Ending::Cancelled => return ("no answer".into(), None, false),
        Ending::Sent { .. } => {}
    }
    let sent = record.steps.iter().rev().find(|step| step.sent);
    let verdict = sent.and_then(|step| step.verdict.as_ref());
    match verdict.map(|reply| &reply.value) {
        Some(Verdict::Accept(a)) => ("accept".into(), Some(a.confidence), true),
        Some(Verdict::Amend(a)) => ("amend".into(), Some(a.assessment.confidence), true),
        Some(Verdict::Escalate(a)) => ("escalate".into(), Some(a.confidence), false),
        Some(Verdict::Reject(r)) => (format!("reject: {}", r.message), None, false),
        Some(Verdict::Undecided) | None => ("undecided".into(), None, false),
    }
}

// ---- for people ------------------------------------------------------------------------

impl Executed {
    /// The report as text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "\nexecuted {} of {} moved routes, one run after the other on this machine",
            self.runs.len(),
            self.moved
        );
        for (id, why) in &self.left_out {
            let _ = writeln!(out, "not executed {id}: {why}");
        }
        if self.runs.is_empty() {
            return out;
        }
        let _ = writeln!(
            out,
            "  {:<16}{:>24}{:>24}\n  {:<16}{:>12}{:>12}{:>12}{:>12}",
            "", "recorded", "candidate", "", "predicted", "real", "predicted", "real"
        );
        self.sums(&mut out);
        for run in &self.runs {
            let _ = writeln!(out, "{}", run.id);
            for (who, side) in [("recorded", &run.recorded), ("candidate", &run.candidate)] {
                let _ = writeln!(out, "  {who:<10}{}", side.text());
            }
        }
        out
    }

    /// One row a figure; a sum stands there where every run has the figure.
    fn sums(&self, out: &mut String) {
        let sum = |figure: &dyn Fn(&Side) -> Option<f64>, side: fn(&Run) -> &Side| {
            let each = self.runs.iter().map(|run| figure(side(run)));
            each.sum::<Option<f64>>()
        };
        type Figure<'a> = (&'a str, usize, [&'a dyn Fn(&Side) -> Option<f64>; 2]);
        let rows: [Figure<'_>; 5] = [
            (
                "tokens",
                0,
                [&|s| s.predicted.tokens, &|s| Some(s.real.tokens.into())],
            ),
            (
                "time, ms",
                0,
                [&|s| s.predicted.milliseconds, &|s| {
                    Some(s.real.milliseconds.into())
                }],
            ),
            (
                "energy, J",
                3,
                [&|s| s.predicted.joules.map(|(joules, _)| joules), &|s| {
                    s.real.joules.map(|(joules, _)| joules)
                }],
            ),
            ("price, USD", 6, [&|s| s.predicted.usd, &|s| s.real.usd]),
            (
                "good answers",
                2,
                [&|s| s.predicted.quality, &|s| {
                    Some(f64::from(u8::from(s.real.good)))
                }],
            ),
        ];
        for (name, digits, [predicted, real]) in rows {
            let _ = write!(out, "  {name:<16}");
            let sides: [fn(&Run) -> &Side; 2] = [|run| &run.recorded, |run| &run.candidate];
            for side in sides {
                for figure in [predicted, real] {
                    let text = sum(figure, side).map_or("-".into(), |n| format!("{n:.digits$}"));
                    let _ = write!(out, "{text:>12}");
                }
            }
            let _ = writeln!(out);
        }
    }
}

impl Side {
    fn text(&self) -> String {
        let Real {
            verdict,
            confidence,
            tokens,
            ttft_ms,
            milliseconds,
            joules,
            ..
        } = &self.real;
        let mut text = format!("{}: {tokens} tokens, {milliseconds} ms", self.decision);
        if let Some(first) = ttft_ms {
            let _ = write!(text, " (first {first})");
        }
        if let Some((joules, origin)) = joules {
            let _ = write!(text, ", {joules:.3} J {}", word(*origin));
        }
        let _ = write!(text, ", {verdict}");
        if let Some(confidence) = confidence {
            let _ = write!(text, " {confidence:.2}");
        }
        let promise = &self.predicted;
        let mut predicted = Vec::new();
        predicted.extend(promise.tokens.map(|n| format!("{n:.0} tokens")));
        predicted.extend(promise.milliseconds.map(|n| format!("{n:.0} ms")));
        let joules = promise.joules;
        predicted.extend(joules.map(|(n, origin)| format!("{n:.3} J {}", word(origin))));
        predicted.extend(promise.quality.map(|n| format!("quality {n:.2}")));
        if !predicted.is_empty() {
            let _ = write!(text, "; predicted {}", predicted.join(", "));
        }
        text
    }
}

fn word(origin: Origin) -> &'static str {
    match origin {
        Origin::Measured => "measured",
        Origin::Derived => "derived",
        Origin::Modelled => "modelled",
        Origin::Simulated => "simulated",
    }
}

#[cfg(test)]
mod tests;
