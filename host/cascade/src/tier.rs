//! A tier: a served model at one quality and cost, seen from the cascade.
//!
//! A local engine, a remote OpenAI-compatible server and a recording all look like this.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use homeostat_hooks::{Finish, Message, ResponseFormat, TierView};
use serde::Serialize;

/// One served model.
pub trait Tier: Send + Sync {
    /// Unique id, the name that plans and clients use.
    fn id(&self) -> &str;
    /// What a router is shown. Called for every request, so it must not block.
    fn view(&self) -> TierView;
    /// Whether it can go on from the beginning of an answer that another tier wrote
    /// ([`GenerateCall::answer_prefix`]). A tier that cannot is asked only while the client has
    /// seen nothing.
    fn can_continue(&self, _prompt: &Prompt) -> bool {
        false
    }
    /// Start an answer. Resolves when the tier has taken the request or refused it.
    fn generate(&self, call: GenerateCall) -> BoxFuture<'static, Result<TokenStream, TierError>>;
}

/// What a tier is asked to do.
#[derive(Debug, Clone)]
pub struct GenerateCall {
    /// Id of the request, for logs.
    pub request_id: String,
    /// What to answer.
    pub prompt: std::sync::Arc<Prompt>,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Most new tokens; `None` = as many as the context holds.
    pub max_tokens: Option<u32>,
    /// Draft tokens a step may verify; 0 = no speculation.
    pub max_draft_tokens: u32,
    /// What the answer must look like.
    pub output: OutputFormat,
    /// Text of the answer that the client has already seen; the tier continues it.
    pub answer_prefix: String,
    /// What an earlier tier would have said next; a guess for speculation, never an instruction.
    pub draft_hint: String,
    /// Whose share of the tier's time it takes.
    pub sharer: Option<String>,
    /// Lower goes first.
    pub priority: i8,
    /// What is left until the answer is worthless; it need not be begun later.
    pub time_left: Option<Duration>,
}

/// What an answer must look like, while it is generated and not only afterwards.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum OutputFormat {
    /// Anything.
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema accepts.
    JsonSchema {
        /// What the client calls it.
        name: String,
        /// The schema.
        schema: serde_json::Value,
    },
    /// Text that an expression matches as a whole.
    Regex(String),
    /// Text of a grammar in a dialect of Lark.
    Grammar(String),
    /// One of these texts.
    Choice(Vec<String>),
}

impl OutputFormat {
    /// The part of it that policies have a word for.
    pub fn response_format(&self) -> ResponseFormat {
        match self {
            Self::JsonObject => ResponseFormat::JsonObject,
            Self::JsonSchema { .. } => ResponseFormat::JsonSchema,
            Self::Text | Self::Regex(_) | Self::Grammar(_) | Self::Choice(_) => {
                ResponseFormat::Text
            }
        }
    }

    /// Whether a text that no tier has shaped may be sent. JSON is the policies' own business: they
    /// are told, and the validating one checks. Nobody but a tier can tell what a grammar accepts.
    pub(crate) fn admits(&self, text: &str) -> bool {
        match self {
            Self::Text | Self::JsonObject | Self::JsonSchema { .. } => true,
            Self::Choice(choices) => choices.iter().any(|c| c == text),
            Self::Regex(_) | Self::Grammar(_) => false,
        }
    }
}

/// What to answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// A conversation; the tier applies its own template.
    Chat(Vec<Message>),
    /// Raw text to continue.
    Raw(String),
}

/// How tokens are chosen. The door has checked every range.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 = always the likeliest token.
    pub temperature: f32,
    /// Smallest set of tokens with this much probability.
    pub top_p: f32,
    /// Most candidates; 0 = all.
    pub top_k: u32,
    /// Least probability, relative to the likeliest.
    pub min_p: f32,
    /// Same seed, same text.
    pub seed: Option<u64>,
    /// The answer ends before any of these.
    pub stop: Vec<String>,
    /// Added to the logits of these token ids.
    pub logit_bias: Vec<(u32, f32)>,
    /// Per earlier occurrence.
    pub frequency_penalty: f32,
    /// Once for every token that occurred.
    pub presence_penalty: f32,
    /// Divides (or multiplies) logits of tokens that occurred; 1 = off.
    pub repetition_penalty: f32,
    /// How many alternatives to report per token; `None` = not asked.
    pub top_logprobs: Option<u8>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: None,
            stop: Vec::new(),
            logit_bias: Vec::new(),
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            top_logprobs: None,
        }
    }
}

/// The tokens of one answer. Dropping it cancels the generation.
pub type TokenStream = BoxStream<'static, Result<TierEvent, TierError>>;

/// What a tier reports while it answers.
#[derive(Debug, Clone, PartialEq)]
pub enum TierEvent {
    /// One more token.
    Token(Token),
    /// The end; nothing follows.
    Finished {
        /// Why.
        finish: Finish,
        /// Tokens of the prompt, template included.
        prompt_tokens: u32,
        /// Tokens of the answer.
        completion_tokens: u32,
    },
}

/// One token of an answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Token {
    /// Its text; empty while a character is incomplete.
    pub text: String,
    /// Natural logarithm of its probability, when the tier tells.
    pub logprob: Option<f32>,
    /// Entropy of the distribution that it was chosen from, in nats, when the tier tells.
    pub entropy: Option<f32>,
    /// Likeliest alternatives with their log-probabilities, when asked for.
    pub top: Vec<(String, f32)>,
}

/// Whose fault a tier's failure is; decides the status that the client sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TierFault {
    /// The request cannot be served as it is.
    Client,
    /// The tier cannot answer now.
    Tier,
    /// This host failed.
    Host,
}

/// The prompt is longer than this tier's context.
pub const CONTEXT_LENGTH_EXCEEDED: &str = "context_length_exceeded";
/// This tier cannot go on from what another has begun.
pub const CANNOT_CONTINUE: &str = "cannot_continue";
/// This tier's template does not take such a conversation.
pub const CONVERSATION_REFUSED: &str = "conversation_refused";

/// Why a tier did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct TierError {
    /// Whose fault.
    pub fault: TierFault,
    /// For programs, such as `context_length_exceeded`.
    pub code: &'static str,
    /// For people: what happened and what to do.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// When, if known.
    pub retry_after_ms: Option<u32>,
}

impl TierError {
    /// Whether no other tier can like the request better. One may have a longer context, or a
    /// template that takes what this one's refuses.
    pub(crate) fn is_final(&self) -> bool {
        let of_this_tier = [CONTEXT_LENGTH_EXCEEDED, CONVERSATION_REFUSED];
        self.fault == TierFault::Client && !of_this_tier.contains(&self.code)
    }

    /// `tier` cannot go on from what another has begun, because of `why`.
    pub fn cannot_continue(tier: &str, why: &str) -> Self {
        Self {
            fault: TierFault::Tier,
            code: CANNOT_CONTINUE,
            message: format!("tier {tier} cannot continue an answer that has begun: {why}"),
            retryable: false,
            retry_after_ms: None,
        }
    }

    /// `tier` was ready when the plan was made, and is no longer.
    pub(crate) fn not_ready(tier: &str) -> Self {
        Self {
            fault: TierFault::Tier,
            code: "tier_not_ready",
            message: format!("tier {tier} is no longer ready to answer; try again shortly"),
            retryable: true,
            retry_after_ms: None,
        }
    }

    /// This host failed.
    pub fn host(code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            fault: TierFault::Host,
            code,
            message,
            retryable: true,
            retry_after_ms: None,
        }
    }
}
