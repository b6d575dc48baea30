//! Why was this decided? One recorded request, told in the contract's own words.
//!
//! Every hook with what it was given, what it asked the host in order, what it answered, and
//! the same once more from a replay, with the fuel it took. With changed values the replay
//! shows the decision that would have been: a classification that comes out differently is
//! what `route` then sees. `validate` still judges the answer that a model really gave.

use std::fmt::Write;

use homeostat_hooks::AnsweredBy;
use serde::Serialize;
use serde_json::Value as Json;
use wasm_wave::value::{Type, Value};
use wasm_wave::wasm::{WasmType, WasmTypeKind as Kind, WasmValue};

use crate::paths::{self, Difference, Root};
use crate::record::RecordLog;
use crate::recording::{Asking, Receipt, RecordedHook, Recording};
use crate::replay::{Inputs, Played, Question, Replayer};
use crate::tape::HostCall;
use crate::wave::{self, contract_type};

/// Width within which a value stays on one line.
const WIDTH: usize = 96;

/// A recorded request, explained.
#[derive(Debug, Clone, Serialize)]
pub struct Explained {
    /// Id of the request.
    pub id: String,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// Every receipt fits what is recorded: nothing was changed since. Not known of a
    /// redacted recording.
    pub intact: Option<bool>,
    /// What the answer's header `x-homeostat-receipt` said.
    pub receipt: Option<String>,
    /// Why there is no replay; none = there is.
    pub not_replayable: Option<String>,
    /// What was changed for the replay: whole path and value.
    pub set: Vec<(String, String)>,
    /// The request as the hooks saw it.
    pub request: String,
    /// The machine as the hooks saw it.
    pub snapshot: String,
    /// The hooks, in order.
    pub hooks: Vec<ExplainedHook>,
}

/// One hook of it.
#[derive(Debug, Clone, Serialize)]
pub struct ExplainedHook {
    /// Which.
    pub hook: Asking,
    /// Who answered: `name@generation`, `built-in`, or what stood in for whom.
    pub by: String,
    /// Hex sha256 of the component that answered, or else of the one that was asked.
    pub digest: Option<String>,
    /// Arguments besides request and snapshot, as recorded.
    pub args: Vec<String>,
    /// What it asked the host and was told.
    pub host_calls: Vec<HostCall>,
    /// What was answered.
    pub recorded: Option<String>,
    /// What failed.
    pub fault: Option<String>,
    /// Time of the call.
    pub micros: Option<u64>,
    /// The same from a replay.
    pub again: Option<Again>,
    /// Digests of input, trace and result.
    pub receipt: Option<Receipt>,
}

/// A hook, called again.
#[derive(Debug, Clone, Serialize)]
pub struct Again {
    /// What came out.
    #[serde(flatten)]
    pub played: Played,
    /// Answer or kind of fault, and all host calls, are those of the recording.
    pub identical: bool,
    /// Where the answer begins to differ from the recorded one.
    pub difference: Option<Difference>,
}

/// Why a running room has no explanation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// Nothing is recorded, or not this request.
    #[error("{0}")]
    NotRecorded(String),
    /// What was to be changed cannot be.
    #[error("{0}")]
    Refused(String),
}

/// Explains a request; `set` holds paths and values to be changed in the replay.
///
/// # Errors
/// A path or a value of `set` is wrong. That a recording cannot be replayed is no error
/// unless something was to be changed.
pub fn explain(
    log: &RecordLog,
    replayer: &Replayer,
    recording: &Recording,
    set: &[(String, String)],
) -> Result<Explained, String> {
    let mut explained = Explained {
        id: recording.id.clone(),
        unix_ms: recording.unix_ms,
        intact: (!recording.redacted).then(|| recording.receipts_hold()),
        receipt: recording.receipt(),
        not_replayable: None,
        set: Vec::new(),
        request: recording.request.clone(),
        snapshot: recording.snapshot.clone(),
        hooks: recording.hooks.iter().map(|h| told(recording, h)).collect(),
    };
    match again(log, replayer, recording, set) {
        Ok((changed, inputs, played)) => {
            explained.set = changed;
            for (n, hook) in explained.hooks.iter_mut().enumerate() {
                let telling = recording.hooks[n].telling(&recording.policies);
                hook.again = compared(&recording.hooks[n], telling, &inputs, n, &played[n]);
            }
        }
        Err(Failed::Set(why)) => return Err(why),
        Err(Failed::Replay(why)) if !set.is_empty() => {
            return Err(format!("nothing can be changed in this decision: {why}"));
        }
        Err(Failed::Replay(why)) => explained.not_replayable = Some(why),
    }
    Ok(explained)
}

enum Failed {
    Set(String),
    Replay(String),
}

type Replayed = (Vec<(String, String)>, Inputs, Vec<Vec<Played>>);

fn again(
    log: &RecordLog,
    replayer: &Replayer,
    recording: &Recording,
    set: &[(String, String)],
) -> Result<Replayed, Failed> {
    recording.replayable().map_err(Failed::Replay)?;
    let mut inputs = Inputs::of(recording).map_err(Failed::Replay)?;
    let changed = change(&mut inputs, set).map_err(Failed::Set)?;
    let fixed = |(path, _): &(String, String)| path.starts_with("classification");
    let chained = !changed.iter().any(fixed);
    let mut questions = Vec::new();
    let played = replayer.replay_with(log, recording, &inputs, |question, before| {
        if let (Question::Route(seen, _), true) = (&mut *question, chained)
            && let Some(new) = reclassified(recording, &inputs, before)
        {
            *seen = new;
        }
        questions.push(question.clone());
    });
    let played = played.map_err(Failed::Replay)?;
    inputs.questions = questions;
    Ok((changed, inputs, played))
}

/// The classification of the replay, where it is another than the recorded one.
fn reclassified(
    recording: &Recording,
    inputs: &Inputs,
    before: &[Vec<Played>],
) -> Option<homeostat_hooks::Classification> {
    let at = before
        .iter()
        .zip(&recording.hooks)
        .rposition(|(_, hook)| hook.hook == Asking::Classify)?;
    let new = outcome(&before[at], &inputs.questions[at], inputs)?;
    let old = recording.hooks[at].reply.as_ref().map(|reply| &reply.value);
    (old != Some(&new)).then(|| wave::read(&new).ok())?
}

/// What a hook comes to in a replay: the first sound answer, else the built-in one. A miss
/// comes to nothing.
fn outcome(played: &[Played], question: &Question, inputs: &Inputs) -> Option<String> {
    if played.iter().any(|p| p.miss.is_some()) {
        return None;
    }
    let answer = played.iter().find_map(|p| p.answer.clone());
    answer.or_else(|| question.built_in(inputs))
}

/// Changes the inputs.
fn change(inputs: &mut Inputs, set: &[(String, String)]) -> Result<Vec<(String, String)>, String> {
    if set.is_empty() {
        return Ok(Vec::new());
    }
    let json = |value: Result<Json, serde_json::Error>| value.map_err(|e| e.to_string());
    let mut roots = vec![
        Root {
            name: "request",
            ty: contract_type("request"),
            json: json(serde_json::to_value(&*inputs.request))?,
        },
        Root {
            name: "snapshot",
            ty: contract_type("snapshot"),
            json: json(serde_json::to_value(&*inputs.snapshot))?,
        },
    ];
    // The first `route` and the last `validate`: what the client was answered by.
    let route = inputs
        .questions
        .iter()
        .position(|q| matches!(q, Question::Route(..)));
    let judged = inputs
        .questions
        .iter()
        .rposition(|q| matches!(q, Question::Validate(_)));
    if let Some(Question::Route(c, tiers)) = route.map(|n| &inputs.questions[n]) {
        roots.push(Root {
            name: "classification",
            ty: contract_type("classification"),
            json: json(serde_json::to_value(c))?,
        });
        roots.push(Root {
            name: "tiers",
            ty: Type::list(contract_type("tier")),
            json: json(serde_json::to_value(tiers))?,
        });
    }
    if let Some(Question::Validate(answer)) = judged.map(|n| &inputs.questions[n]) {
        roots.push(Root {
            name: "answer",
            ty: contract_type("answer"),
            json: json(serde_json::to_value(answer))?,
        });
    }
    let mut changed = Vec::new();
    for (path, value) in set {
        changed.push((paths::set(&mut roots, path, value)?, value.clone()));
    }
    let root = |name: &str| roots.iter().find(|root| root.name == name).map(|r| &r.json);
    let get = |name: &str| root(name).ok_or_else(|| format!("no {name}"));
    inputs.request = wave::record(get("request")?)?;
    inputs.snapshot = wave::record(get("snapshot")?)?;
    if let Some(Question::Route(c, tiers)) = route.map(|n| &mut inputs.questions[n]) {
        *c = wave::record(get("classification")?)?;
        *tiers = wave::record(get("tiers")?)?;
    }
    if let Some(Question::Validate(answer)) = judged.map(|n| &mut inputs.questions[n]) {
        *answer = wave::record(get("answer")?)?;
    }
    Ok(changed)
}

fn told(recording: &Recording, hook: &RecordedHook) -> ExplainedHook {
    let first = hook.attempts.get(hook.telling(&recording.policies));
    let policy = first.and_then(|attempt| recording.policies.get(attempt.policy));
    let at = |generation: Option<u64>| generation.map_or(String::new(), |g| format!("@{g}"));
    let by = match hook.reply.as_ref().map(|reply| &reply.by) {
        Some(AnsweredBy::BuiltIn) => "built-in".to_string(),
        Some(AnsweredBy::Component {
            name,
            generation,
            proposed,
            ..
        }) => {
            let proposed = if *proposed { ", its proposal" } else { "" };
            format!("{name}@{generation}{proposed}")
        }
        Some(AnsweredBy::Fallback {
            name,
            generation,
            fallback,
            ..
        }) => format!("{fallback} instead of {name}@{generation}"),
        None => match (policy, first) {
            (Some(policy), Some(first)) => format!("{}{}", policy.name, at(first.generation)),
            _ => "nobody".into(),
        },
    };
    let fault = match &hook.reply {
        Some(reply) => reply.fault.as_ref(),
        None => first.and_then(|attempt| attempt.fault.as_ref()),
    };
    ExplainedHook {
        hook: hook.hook,
        by,
        digest: policy.map(|policy| policy.digest.clone()),
        args: hook.args.clone(),
        host_calls: first.map_or_else(Vec::new, |attempt| attempt.host_calls.clone()),
        recorded: hook.reply.as_ref().map(|reply| reply.value.clone()),
        fault: fault.map(ToString::to_string),
        micros: match &hook.reply {
            Some(reply) => Some(reply.micros),
            None => first.map(|attempt| attempt.micros),
        },
        again: None,
        receipt: first.map(|attempt| attempt.receipt.clone()),
    }
}

/// A hook of the replay beside the recorded one.
fn compared(
    hook: &RecordedHook,
    telling: usize,
    inputs: &Inputs,
    n: usize,
    played: &[Played],
) -> Option<Again> {
    let question = inputs.questions.get(n)?;
    let Some(first) = played.get(telling) else {
        // Nobody was asked: the built-in answer needs no replay, only its inputs.
        let answer = question.built_in(inputs)?;
        let recorded = hook.reply.as_ref().map(|reply| reply.value.as_str());
        return Some(Again {
            identical: recorded == Some(&answer),
            difference: difference(hook.hook, recorded, Some(&answer)),
            played: Played {
                answer: Some(answer),
                fault: None,
                miss: None,
                host_calls: Vec::new(),
                fuel: 0,
            },
        });
    };
    let attempt = hook.attempts.get(telling)?;
    let kind = |fault: &Option<homeostat_hooks::Fault>| fault.as_ref().map(|f| f.kind);
    let recorded = match &attempt.answer {
        Some(answer) => Some(answer.as_str()),
        None => hook.reply.as_ref().map(|reply| reply.value.as_str()),
    };
    Some(Again {
        identical: first.miss.is_none()
            && first.answer == attempt.answer
            && kind(&first.fault) == kind(&attempt.fault)
            && first.host_calls == attempt.host_calls,
        difference: difference(hook.hook, recorded, first.answer.as_deref()),
        played: first.clone(),
    })
}

/// The first difference of two answers of a hook.
pub(crate) fn difference(hook: Asking, from: Option<&str>, to: Option<&str>) -> Option<Difference> {
    let ty = hook.answer_type()?;
    let parse = |text: &str| wave::parse(&ty, text).ok();
    paths::first_difference(&ty, &parse(from?)?, &parse(to?)?)
}

// ---- for people ------------------------------------------------------------------------

impl Explained {
    /// The explanation as text, values as WAVE.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let changed = !self.set.is_empty();
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{}", self.id);
        if let Some(receipt) = &self.receipt {
            let _ = writeln!(out, "receipt   {receipt}");
        }
        if self.intact == Some(false) {
            let _ = writeln!(
                out,
                "this recording was changed: its receipts do not fit it"
            );
        }
        if let Some(why) = &self.not_replayable {
            let _ = writeln!(out, "no replay: {why}");
        }
        block(
            &mut out,
            "request",
            &self.request,
            &contract_type("request"),
        );
        block(
            &mut out,
            "snapshot",
            &self.snapshot,
            &contract_type("snapshot"),
        );
        for (path, value) in &self.set {
            let _ = writeln!(out, "\nchanged   {path} = {value}");
        }
        for hook in &self.hooks {
            hook.write(&mut out, changed);
        }
        out
    }
}

impl ExplainedHook {
    fn write(&self, out: &mut String, changed: bool) {
        let micros = self.micros.map_or(String::new(), |m| format!(", {m} µs"));
        let fuel = match &self.again {
            Some(again) if again.played.fuel > 0 => format!(", fuel {}", again.played.fuel),
            _ => String::new(),
        };
        let _ = writeln!(out, "\n{} by {}{micros}{fuel}", self.hook.as_str(), self.by);
        if let Some(digest) = &self.digest {
            let _ = writeln!(out, "  component {digest}");
        }
        if let Some(receipt) = &self.receipt {
            let _ = writeln!(
                out,
                "  receipt input {:.16} trace {:.16} result {:.16}",
                receipt.input, receipt.trace, receipt.result
            );
        }
        for (arg, ty) in self.args.iter().zip(self.hook.arg_types()) {
            let name = match (self.hook, ty.kind() == Kind::List) {
                (Asking::Route, false) => "given classification",
                (Asking::Route, true) => "given tiers",
                (Asking::Validate, _) => "given answer",
                _ => "given outcome",
            };
            block(out, &format!("  {name}"), arg, &ty);
        }
        for call in &self.host_calls {
            let args = call.args.trim_start_matches('(').trim_end_matches(')');
            let answer = match call.answer.as_str() {
                "" => String::new(),
                answer => format!(" -> {answer}"),
            };
            let _ = writeln!(out, "  host call {}({args}){answer}", call.call);
        }
        if let Some(fault) = &self.fault {
            let _ = writeln!(out, "  fault {fault}");
            if fault.starts_with(homeostat_hooks::FaultKind::Deadline.as_str()) {
                let _ = writeln!(out, "  (the clock ended this call; a replay has no clock)");
            }
        }
        if let (Some(recorded), Some(ty)) = (&self.recorded, self.hook.answer_type()) {
            block(out, "  answer", recorded, &ty);
        }
        if let Some(again) = &self.again {
            again.write(out, self.hook, changed);
        }
    }
}

impl Again {
    fn write(&self, out: &mut String, hook: Asking, changed: bool) {
        let again = if changed { "with the change" } else { "replay" };
        if let Some(miss) = &self.played.miss {
            let _ = writeln!(out, "  {again}: no answer, {miss}");
        } else if self.identical {
            let _ = writeln!(out, "  {again}: the same");
        } else {
            if let Some(fault) = &self.played.fault {
                let _ = writeln!(out, "  {again}: fault {fault}");
            }
            if let (Some(answer), Some(ty)) = (&self.played.answer, hook.answer_type()) {
                block(out, &format!("  {again}"), answer, &ty);
            }
            if let Some(d) = &self.difference {
                let _ = writeln!(
                    out,
                    "  first difference: {}: {} -> {}",
                    d.path, d.from, d.to
                );
            }
        }
    }
}

/// A value under its name, on as many lines as it takes.
fn block(out: &mut String, name: &str, text: &str, ty: &Type) {
    let indent = name.len() - name.trim_start().len();
    let shown = match wave::parse(ty, text) {
        Ok(value) => pretty(&value, indent),
        Err(_) => text.to_string(),
    };
    let _ = writeln!(out, "{name} {shown}");
}

/// WAVE with one field or item a line where it is long; still WAVE.
fn pretty(value: &Value, indent: usize) -> String {
    let line = wave::print(value);
    if line.len() + indent <= WIDTH {
        return line;
    }
    let inner = indent + 2;
    let pad = " ".repeat(inner);
    let lines = |open: char, items: Vec<String>, close: char| {
        let items: String = items.iter().map(|i| format!("{pad}{i},\n")).collect();
        format!("{open}\n{items}{}{close}", " ".repeat(indent))
    };
    match value.kind() {
        Kind::Record => {
            let present = value
                .unwrap_record()
                .filter(|(_, v)| v.kind() != Kind::Option || v.unwrap_option().is_some());
            let fields = present.map(|(name, v)| format!("{name}: {}", pretty(&v, inner)));
            lines('{', fields.collect(), '}')
        }
        Kind::List => {
            let items = value.unwrap_list().map(|v| pretty(&v, inner));
            lines('[', items.collect(), ']')
        }
        Kind::Variant => match value.unwrap_variant() {
            (case, Some(payload)) => format!("{case}({})", pretty(&payload, indent)),
            _ => line,
        },
        Kind::Option => match value.unwrap_option() {
            Some(some) => format!("some({})", pretty(&some, indent)),
            None => line,
        },
        _ => line,
    }
}
