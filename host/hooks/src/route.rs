//! Which tier answers, and how.

use serde::{Deserialize, Serialize};

use crate::request::Attribute;
use crate::snapshot::Sample;

/// Where a tier runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TierKind {
    /// In this host.
    #[default]
    Local,
    /// Another OpenAI-compatible server.
    Remote,
    /// Recorded or simulated.
    Simulated,
}

/// A served model at one quality and cost, as the router sees it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TierView {
    /// Id, unique.
    pub id: String,
    /// Where it runs.
    pub kind: TierKind,
    /// Model name.
    pub model: String,
    /// Order by size; 0 is the smallest.
    pub rank: u32,
    /// Expected share of good answers on simple, medium and complex requests, 0 to 1.
    pub quality: (f32, f32, f32),
    /// Parameters of the model.
    pub parameters: Option<u64>,
    /// Most tokens of prompt and answer together.
    pub context_tokens: u32,
    /// Answers at present.
    pub ready: bool,
    /// Sequences running.
    pub num_requests_running: u32,
    /// Sequences waiting.
    pub num_requests_waiting: u32,
    /// Expected time to the first token.
    pub ttft_ms: Option<Sample>,
    /// Expected time per output token.
    pub tpot_ms: Option<Sample>,
    /// Expected energy per output token.
    pub joules_per_token: Option<Sample>,
    /// Price of a million prompt tokens.
    pub usd_per_mtok_prompt: Option<f64>,
    /// Price of a million output tokens.
    pub usd_per_mtok_output: Option<f64>,
    /// Can draft and verify.
    pub can_speculate: bool,
    /// Gives log-probabilities of its tokens.
    pub gives_logprobs: bool,
    /// Extensions.
    pub attributes: Vec<Attribute>,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Step {
    /// Tier id, one of the candidates.
    pub tier: String,
    /// Draft tokens a step may verify; 0 = no speculation.
    pub max_draft_tokens: u32,
    /// Cap on new tokens; the client's own cap holds as well.
    pub max_tokens: Option<u32>,
    /// Keep back at least this many tokens while the answer may still be escalated.
    pub hold_back_tokens: u32,
    /// Confidence from which the answer is accepted, 0 to 1.
    pub accept_threshold: f32,
}

/// Steps, tried in order until an answer is accepted.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Plan {
    /// One to eight steps.
    pub steps: Vec<Step>,
    /// Why, for people.
    pub reason: String,
    /// Extensions.
    pub attributes: Vec<Attribute>,
}

/// An answer that needs no model.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DirectAnswer {
    /// The whole answer.
    pub text: String,
    /// How it was found, such as `arithmetic`.
    pub method: String,
}

/// Why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// Too much to do.
    Overloaded,
    /// A budget is spent.
    BudgetExhausted,
    /// Not allowed.
    NotAllowed,
    /// No tier can do this.
    Unsupported,
    /// No good answer was found.
    Unreliable,
}

/// A refusal with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// Kind.
    pub kind: Refusal,
    /// For the client.
    pub message: String,
    /// When it may try again.
    pub retry_after_ms: Option<u32>,
}

/// What is done with a request. A refusal is a value, not an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// Ask these tiers.
    Plan(Plan),
    /// Answer at once.
    Answer(DirectAnswer),
    /// Refuse.
    Reject(Rejection),
}
