//! A recorded request: what stands in one line of a recording, and how it gets there.
//!
//! One line of JSON holds everything that the hooks of one request saw, asked and answered.
//! Values are WAVE text (see [`crate::wave`]); the request and the snapshot, which all hooks
//! share, stand there once. A recording that lacks something says what
//! ([`Recording::replayable`]), so that a replay refuses by name instead of showing something
//! that never was.

use std::collections::BTreeMap;
use std::sync::Arc;

use homeostat_hooks::{
    Answer, AnsweredBy, Classification, Fault, Hook, Outcome, Request, TierView, Verdict,
};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use wasm_wave::value::Type;

use crate::admit::Offer;
use crate::cache::{hex, unhex};
use crate::call::Policy;
use crate::config::{Grant, LimitChanges, Limits, PolicyOptions};
use crate::host::Asked;
use crate::record::RecordLog;
use crate::tape::{Event, HostCall};
use crate::wave::{self, Spoken, contract_type};

/// Counted up when a line of today could not be read any more.
pub const RECORDING_VERSION: u32 = 1;

/// The hooks of one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// [`RECORDING_VERSION`].
    pub version: u32,
    /// Id of the request.
    pub id: String,
    /// When it came in, milliseconds since 1970.
    pub unix_ms: u64,
    /// Prompt, answers and host calls are without their texts (`policies.record.prompts`).
    pub redacted: bool,
    /// There was more than `policies.record.request_bytes`; what is here is the beginning.
    pub truncated: bool,
    /// The request, as every hook saw it.
    pub request: String,
    /// The machine, as every hook saw it.
    pub snapshot: String,
    /// The policies that were asked.
    pub policies: Vec<RecordedPolicy>,
    /// What was asked, in order.
    pub hooks: Vec<RecordedHook>,
}

/// A policy with all that was in force for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedPolicy {
    /// Its name.
    pub name: String,
    /// Hex sha256 of the component; the recorder keeps the bytes under this name.
    pub digest: String,
    /// Powers it had.
    pub grants: Vec<Grant>,
    /// What `wasi:config` answered.
    pub settings: BTreeMap<String, String>,
    /// What it could use.
    pub limits: Limits,
}

/// One question of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedHook {
    /// `classify`, `route`, `validate` or `learn`.
    pub hook: Asking,
    /// Arguments besides request and snapshot: classification and tiers for `route`, the
    /// answer for `validate`, the outcome for `learn`.
    pub args: Vec<String>,
    /// What was answered, by whomever; `learn` has no answer.
    pub reply: Option<RecordedReply>,
    /// The policies that were asked for it: none with the built-in answer, two with the
    /// fallback `previous`.
    pub attempts: Vec<Attempted>,
}

impl RecordedHook {
    /// The attempt of the policy that the hook has. Others come before it where it is composed
    /// as a hedge.
    pub(crate) fn main(&self, policies: &[RecordedPolicy]) -> usize {
        let name = match self.reply.as_ref().map(|reply| &reply.by) {
            Some(AnsweredBy::Component { name, .. } | AnsweredBy::Fallback { name, .. }) => name,
            Some(AnsweredBy::BuiltIn) | None => return 0,
        };
        let is_it = |call: &Attempted| policies.get(call.policy).is_some_and(|p| p.name == *name);
        self.attempts.iter().position(is_it).unwrap_or(0)
    }

    /// The attempt that tells why the answer is what it is: the one that gave it, where a
    /// composition answered; else that of the hook's policy.
    pub(crate) fn telling(&self, policies: &[RecordedPolicy]) -> usize {
        let reply = self.reply.as_ref();
        let answered = reply.filter(|r| matches!(r.by, AnsweredBy::Component { .. }));
        let main = self.main(policies);
        let gave = |call: &Attempted| call.answer.as_ref() == answered.map(|r| &r.value);
        match self.attempts.get(main) {
            Some(call) if answered.is_some() && !gave(call) => {
                self.attempts.iter().position(gave).unwrap_or(main)
            }
            _ => main,
        }
    }
}

/// What can be asked of a policy: its hooks, and to learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Asking {
    /// How hard is it?
    Classify,
    /// Who answers?
    Route,
    /// Is the answer good enough?
    Validate,
    /// What became of it.
    Learn,
}

impl Asking {
    /// The word used everywhere.
    pub fn as_str(self) -> &'static str {
        self.hook().map_or("learn", Hook::as_str)
    }

    /// The hook; none for `learn`.
    pub fn hook(self) -> Option<Hook> {
        match self {
            Self::Classify => Some(Hook::Classify),
            Self::Route => Some(Hook::Route),
            Self::Validate => Some(Hook::Validate),
            Self::Learn => None,
        }
    }

    /// The type of an answer; `learn` has none.
    pub(crate) fn answer_type(self) -> Option<Type> {
        Some(contract_type(match self.hook()? {
            Hook::Classify => "classification",
            Hook::Route => "decision",
            Hook::Validate => "verdict",
        }))
    }

    /// The types of the arguments besides request and snapshot.
    pub(crate) fn arg_types(self) -> Vec<Type> {
        match self {
            Self::Classify => Vec::new(),
            Self::Route => vec![
                contract_type("classification"),
                Type::list(contract_type("tier")),
            ],
            Self::Validate => vec![contract_type("answer")],
            Self::Learn => vec![contract_type("outcome")],
        }
    }
}

impl From<Hook> for Asking {
    fn from(hook: Hook) -> Self {
        match hook {
            Hook::Classify => Self::Classify,
            Hook::Route => Self::Route,
            Hook::Validate => Self::Validate,
        }
    }
}

/// The answer that counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedReply {
    /// The answer.
    pub value: String,
    /// Who gave it.
    #[serde(flatten)]
    pub by: AnsweredBy,
    /// What failed, if something did.
    pub fault: Option<Fault>,
    /// Time, waiting for an instance included.
    pub micros: u64,
}

/// One call of a policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempted {
    /// Index in [`Recording::policies`].
    pub policy: usize,
    /// Generation; none for a policy that only stood in.
    pub generation: Option<u64>,
    /// Calls with the same number were made on one instance, which remembers.
    pub instance: u32,
    /// All random numbers of the instance come from it; hex.
    pub seed: String,
    /// What it asked the host, in order; initialisation belongs to the first call.
    pub host_calls: Vec<HostCall>,
    /// Its answer, when it gave a sound one.
    pub answer: Option<String>,
    /// Why it gave none.
    pub fault: Option<Fault>,
    /// Time of the call, making the instance included.
    pub micros: u64,
    /// Digests by which anybody can later tell whether this recording is the one that was
    /// made.
    pub receipt: Receipt,
}

impl Attempted {
    /// The bytes of its seed; none when they are damaged.
    pub(crate) fn seed(&self) -> Option<[u8; 32]> {
        unhex(&self.seed)?.try_into().ok()
    }
}

/// Hex sha256 of what a call was given, asked and answered; with the component's digest it
/// says which policy decided what about which input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Of request, snapshot and arguments, before anything was redacted.
    pub input: String,
    /// Of the seed and the host calls with their answers.
    pub trace: String,
    /// Of the answer, or the fault.
    pub result: String,
}

impl Receipt {
    /// Over the texts of a recording, each closed by a byte that none of them holds.
    fn of(recording: &Recording, hook: &RecordedHook, call: &Attempted) -> Self {
        let shared = [recording.request.as_str(), recording.snapshot.as_str()];
        let args = hook.args.iter().map(String::as_str);
        let calls = call.host_calls.iter();
        let calls = calls.flat_map(|c| [c.call.as_str(), c.args.as_str(), c.answer.as_str()]);
        let fault = call.fault.as_ref().map(ToString::to_string);
        let answer = call.answer.as_deref();
        Self {
            input: digest(shared.into_iter().chain(args)),
            trace: digest(std::iter::once(call.seed.as_str()).chain(calls)),
            result: digest(answer.into_iter().chain(fault.as_deref())),
        }
    }
}

fn digest<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut sum = Sha256::new();
    for text in texts {
        sum.update(text.as_bytes());
        sum.update([0xff]);
    }
    hex(&sum.finalize())
}

impl Recording {
    /// Whether the hooks can be called again exactly as they were; if not, why not.
    ///
    /// # Errors
    /// What is missing.
    pub fn replayable(&self) -> Result<(), String> {
        if self.version != RECORDING_VERSION {
            return Err(format!(
                "it was recorded in version {}, this host reads {RECORDING_VERSION}",
                self.version
            ));
        }
        if self.redacted {
            return Err("its texts were not recorded (policies.record.prompts = false)".into());
        }
        if self.truncated {
            return Err("it was larger than policies.record.request_bytes and is cut".into());
        }
        Ok(())
    }

    /// The request, as every hook saw it; `None` where it is cut. Without its texts where they
    /// were not recorded.
    pub fn asked(&self) -> Option<Request> {
        wave::read(&self.request).ok()
    }

    /// How hard the request was found; `None` when nobody was asked.
    pub fn classification(&self) -> Option<Classification> {
        let reply = self.first(Asking::Classify)?.reply.as_ref()?;
        wave::read(&reply.value).ok()
    }

    /// The tiers it could have gone to.
    pub fn tiers(&self) -> Option<Vec<TierView>> {
        wave::read(self.first(Asking::Route)?.args.get(1)?).ok()
    }

    /// What became of it; `None` unless a policy that learns was told.
    pub fn outcome(&self) -> Option<Outcome> {
        wave::read(self.first(Asking::Learn)?.args.first()?).ok()
    }

    /// Whether a validator doubted an answer that another step could follow. A step that failed is
    /// no doubt, nor is one whose validator was not recorded.
    pub fn was_doubted(&self) -> bool {
        let mut validated = self.hooks.iter().filter(|h| h.hook == Asking::Validate);
        validated.any(|hook| {
            let answer = hook.args.first();
            let answer = answer.and_then(|text| wave::read::<Answer>(text).ok());
            let verdict = hook.reply.as_ref();
            let verdict = verdict.and_then(|reply| wave::read::<Verdict>(&reply.value).ok());
            answer.is_some_and(|answer| answer.steps_left > 0)
                && matches!(verdict, Some(Verdict::Escalate(_)))
        })
    }

    fn first(&self, asking: Asking) -> Option<&RecordedHook> {
        self.hooks.iter().find(|hook| hook.hook == asking)
    }

    /// Whether every receipt fits its call; those of a redacted recording cannot be checked.
    pub fn receipts_hold(&self) -> bool {
        self.hooks.iter().all(|hook| {
            let mut calls = hook.attempts.iter();
            calls.all(|call| Receipt::of(self, hook, call) == call.receipt)
        })
    }

    /// What `x-homeostat-receipt` carried: hex sha256 over the request's id and, of every call
    /// of a policy before the first tier was asked, the component's digest and its receipt.
    /// It is the same of a redacted recording. None where no policy was asked.
    pub fn receipt(&self) -> Option<String> {
        let decided = |hook: &&RecordedHook| matches!(hook.hook, Asking::Classify | Asking::Route);
        let hooks = self.hooks.iter().take_while(decided);
        let calls: Vec<&Attempted> = hooks.flat_map(|hook| &hook.attempts).collect();
        let parts = calls.iter().flat_map(|call| {
            let policy = self.policies.get(call.policy);
            let Receipt {
                input,
                trace,
                result,
            } = &call.receipt;
            let digest = policy.map_or("", |policy| policy.digest.as_str());
            [digest, input.as_str(), trace.as_str(), result.as_str()]
        });
        (!calls.is_empty()).then(|| digest(std::iter::once(self.id.as_str()).chain(parts)))
    }

    /// Takes out whatever people wrote, models answered and policies said about it; numbers,
    /// names of tiers and the shape stay.
    fn redact(&mut self) {
        self.redacted = true;
        blank(&mut self.request, &contract_type("request"));
        for hook in &mut self.hooks {
            for (arg, ty) in hook.args.iter_mut().zip(hook.hook.arg_types()) {
                blank(arg, &ty);
            }
            for call in &mut hook.attempts {
                call.fault.iter_mut().for_each(blank_fault);
                for asked in &mut call.host_calls {
                    asked.args.clear();
                    asked.answer.clear();
                }
            }
            let Some(ty) = hook.hook.answer_type() else {
                continue;
            };
            let answers = hook
                .attempts
                .iter_mut()
                .filter_map(|call| call.answer.as_mut());
            answers.for_each(|answer| blank(answer, &ty));
            if let Some(reply) = &mut hook.reply {
                blank(&mut reply.value, &ty);
                reply.fault.iter_mut().for_each(blank_fault);
            }
        }
    }
}

/// Fields of the contract that hold free text.
const FREE_TEXT: [&str; 5] = ["content", "text", "detail", "reason", "message"];

/// The same value with its free texts empty; attributes, which may hold any, are left out.
fn blank(text: &mut String, ty: &Type) {
    fn walk(json: &mut Json) {
        match json {
            Json::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Json::String(free) if FREE_TEXT.contains(&name.as_str()) => free.clear(),
                        Json::Array(list) if name == "attributes" => list.clear(),
                        inner => walk(inner),
                    }
                }
            }
            Json::Array(items) => items.iter_mut().for_each(walk),
            _ => {}
        }
    }
    let blanked = wave::parse(ty, text).ok().and_then(|value| {
        let mut json = wave::to_json(&value);
        walk(&mut json);
        wave::of_json(&json, ty)
    });
    *text = blanked.map_or_else(String::new, |value| wave::print(&value));
}

/// What a guest itself said stands after the first colon.
fn blank_fault(fault: &mut Fault) {
    if let Some((head, _)) = fault.detail.split_once(':') {
        fault.detail = head.to_string();
    }
}

// ---- taking notes ----------------------------------------------------------------------

/// What was noted while a request was served: values, not yet text.
pub(crate) struct Notes {
    pub asked: Arc<Asked>,
    pub unix_ms: u64,
    pub hooks: Vec<HookNotes>,
    pub cut: bool,
}

/// An answer, who gave it, what failed before, and the microseconds it took.
pub(crate) type Given = (Box<dyn Spoken>, AnsweredBy, Option<Fault>, u64);

pub(crate) struct HookNotes {
    pub hook: Asking,
    pub args: Vec<Box<dyn Spoken>>,
    pub reply: Option<Given>,
    pub attempts: Vec<AttemptNotes>,
}

pub(crate) struct AttemptNotes {
    pub policy: Arc<Policy>,
    pub generation: Option<u64>,
    pub instance: u32,
    pub seed: [u8; 32],
    pub events: Vec<Event>,
    pub outcome: Result<Box<dyn Spoken>, Fault>,
    pub micros: u64,
}

impl Notes {
    /// The line that is written.
    pub fn recording(&self, prompts: bool) -> Recording {
        let mut recording = self.recorded();
        if !prompts {
            recording.redact();
        }
        recording
    }

    /// Everything, as text.
    pub fn recorded(&self) -> Recording {
        let mut recording = Recording {
            version: RECORDING_VERSION,
            id: self.asked.request.id.clone(),
            unix_ms: self.unix_ms,
            redacted: false,
            truncated: self.cut,
            request: wave::text(&*self.asked.request),
            snapshot: wave::text(self.asked.snapshot()),
            policies: Vec::new(),
            hooks: Vec::new(),
        };
        let mut known: Vec<&Arc<Policy>> = Vec::new();
        for notes in &self.hooks {
            let reply = notes.reply.as_ref();
            let mut hook = RecordedHook {
                hook: notes.hook,
                args: notes.args.iter().map(|a| wave::text(&**a)).collect(),
                reply: reply.map(|(value, by, fault, micros)| RecordedReply {
                    value: wave::text(&**value),
                    by: by.clone(),
                    fault: fault.clone(),
                    micros: *micros,
                }),
                attempts: Vec::new(),
            };
            for attempt in &notes.attempts {
                let same = known.iter().position(|p| Arc::ptr_eq(p, &attempt.policy));
                let policy = same.unwrap_or_else(|| {
                    recording.policies.push(RecordedPolicy::of(&attempt.policy));
                    known.push(&attempt.policy);
                    known.len() - 1
                });
                let mut call = attempt.recorded(policy);
                call.receipt = Receipt::of(&recording, &hook, &call);
                hook.attempts.push(call);
            }
            recording.hooks.push(hook);
        }
        recording
    }
}

impl AttemptNotes {
    fn recorded(&self, policy: usize) -> Attempted {
        let (answer, fault) = match &self.outcome {
            // `learn` answers nothing.
            Ok(answer) => (Some(wave::text(&**answer)).filter(|t| !t.is_empty()), None),
            Err(fault) => (None, Some(fault.clone())),
        };
        Attempted {
            policy,
            generation: self.generation,
            instance: self.instance,
            seed: hex(&self.seed),
            host_calls: self.events.iter().map(Event::line).collect(),
            answer,
            fault,
            micros: self.micros,
            receipt: Receipt {
                input: String::new(),
                trace: String::new(),
                result: String::new(),
            },
        }
    }
}

impl RecordedPolicy {
    /// The options that were in force for it.
    pub(crate) fn options(&self) -> PolicyOptions {
        let limits = self.limits;
        PolicyOptions {
            grants: Some(self.grants.clone()),
            settings: Some(self.settings.clone()),
            limits: LimitChanges {
                deadline_ms: Some(limits.deadline_ms),
                memory_bytes: Some(limits.memory_bytes),
                table_elements: Some(limits.table_elements),
                hostcall_bytes: Some(limits.hostcall_bytes),
                handles: Some(limits.handles),
                log_bytes: Some(limits.log_bytes),
            },
            ..PolicyOptions::default()
        }
    }

    /// It, as it can be put at this hook again.
    ///
    /// # Errors
    /// The recorder no longer has the component, or it was changed.
    pub fn offer(&self, log: &RecordLog, hook: Hook) -> Result<Offer, String> {
        Ok(Offer {
            name: self.name.clone(),
            bytes: log.component(&self.digest)?,
            hooks: Some(vec![hook]),
            options: self.options(),
            ..Offer::default()
        })
    }

    fn of(policy: &Policy) -> Self {
        Self {
            name: policy.name().to_string(),
            digest: policy.digest.clone(),
            grants: policy.powers.grants.clone(),
            settings: policy.powers.settings.clone(),
            limits: *policy.limits(),
        }
    }
}
