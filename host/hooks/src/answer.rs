//! Is the answer good enough to send, and what became of it?

use serde::{Deserialize, Serialize};

use crate::request::Attribute;
use crate::route::Rejection;
use crate::snapshot::Sample;

/// Why a tier stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// It has not stopped: the answer is partial.
    Unfinished,
    /// End of the answer or a stop string.
    #[default]
    Stop,
    /// A token limit.
    Length,
}

/// An answer, whole or in part.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// Which step of the plan gave it, from 0.
    pub step: u32,
    /// How many steps could still follow.
    pub steps_left: u32,
    /// Which tier.
    pub tier: String,
    /// The text so far.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Natural logarithm of the probability of every token; empty when unknown.
    pub logprobs: Vec<f32>,
    /// The step's threshold.
    pub accept_threshold: f32,
    /// Extensions.
    pub attributes: Vec<Attribute>,
}

/// One check of a validator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Name of the check, such as `arithmetic`.
    pub check: String,
    /// Whether the answer passed it.
    pub passed: bool,
    /// What was found, for people.
    pub detail: String,
}

/// How good the answer is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Assessment {
    /// Probability that the answer is right, 0 to 1.
    pub confidence: f32,
    /// What was checked.
    pub findings: Vec<Finding>,
}

/// A better text for the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Amendment {
    /// The whole new text.
    pub text: String,
    /// How good it is.
    pub assessment: Assessment,
}

/// What is done with an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Send it.
    Accept(Assessment),
    /// Ask the next tier; the last step's answer is sent all the same.
    Escalate(Assessment),
    /// Send this text instead.
    Amend(Amendment),
    /// Send nothing; tell the client why.
    Reject(Rejection),
    /// A partial answer: nothing to say yet.
    Undecided,
}

/// What became of a request, for policies that learn.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// Tier whose answer was sent; `None` = direct answer or refusal.
    pub tier: Option<String>,
    /// Steps that were tried.
    pub steps_tried: u32,
    /// Confidence of the answer that was sent.
    pub confidence: Option<f32>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated over all steps.
    pub generated_tokens: u32,
    /// Time to the first token that the client saw.
    pub ttft_ms: Option<u32>,
    /// Time of the whole request.
    pub total_ms: u32,
    /// Energy of all its answers, where the host can tell; not what policies asked models.
    pub joules: Option<Sample>,
}
