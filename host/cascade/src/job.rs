//! What goes into the cascade and what comes out.

use std::sync::Arc;

use futures::stream::BoxStream;
use homeostat_hooks::{AnsweredBy, Attribute, Endpoint, Finish, Hook, Rejection};
use serde::Serialize;

use crate::purse::Purse;
use crate::record::Cut;
use crate::tier::{OutputFormat, Prompt, Sampling, TierError, Token};

/// A checked request.
#[derive(Debug, Clone)]
pub struct Job {
    /// Unique id.
    pub id: String,
    /// Where it came in.
    pub endpoint: Endpoint,
    /// A tier id, or `auto`.
    pub model: String,
    /// What to answer.
    pub prompt: Prompt,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Most new tokens.
    pub max_tokens: Option<u32>,
    /// Whether the client reads a stream.
    pub stream: bool,
    /// What the answer must look like.
    pub output: OutputFormat,
    /// Who pays.
    pub tenant: Option<String>,
    /// Whose share of a tier's time it takes: the tenant, else whom the client names, which is
    /// proven by nothing and shown to no policy.
    pub sharer: Option<String>,
    /// Lower goes first where requests wait, as for vLLM.
    pub priority: i8,
    /// The answer is worthless after this time.
    pub deadline_ms: Option<u32>,
    /// Extensions for policies.
    pub attributes: Vec<Attribute>,
    /// What pays for it; `None` = nobody counts.
    pub purse: Option<Arc<dyn Purse>>,
}

/// An answer that has begun.
pub struct Reply {
    /// What is known before the first text.
    pub head: Head,
    /// The text. Dropping it cancels the request.
    pub events: BoxStream<'static, ReplyEvent>,
}

/// What is known before the first text.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Id of the request and of its decision record.
    pub request_id: String,
    /// Tier that answers; `direct` when no model does.
    pub tier: String,
    /// How a direct answer was found.
    pub method: Option<String>,
    /// Digest of the decision, where it is recorded.
    pub receipt: Option<String>,
    /// Who answered each hook so far.
    pub policies: Vec<(Hook, AnsweredBy)>,
    /// Some hook was answered by a fallback.
    pub fallback: bool,
    /// Steps that were tried before this one.
    pub escalations: u32,
}

/// One piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplyEvent {
    /// More text.
    Token(Token),
    /// The end.
    Finished {
        /// Why.
        finish: Finish,
        /// Tokens.
        usage: Usage,
        /// How it came about.
        closing: Closing,
    },
    /// The answer ended badly after text was sent; nothing follows.
    Failed(TierError),
}

/// What is known of an answer's making only when it is over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Closing {
    /// Tier that wrote its end; `direct` when no model did.
    pub tier: String,
    /// Steps that were tried before that one.
    pub escalations: u32,
    /// Where steps were left, in order.
    pub cuts: Vec<Cut>,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    /// Of the prompt, as the tier counts that answered last. What it went on from is none of it.
    pub prompt_tokens: u32,
    /// Of the answer that was sent, each as counted by the tier that wrote it.
    pub completion_tokens: u32,
    /// Generated over all steps, discarded ones included.
    pub generated_tokens_all_steps: u32,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    /// A policy refused.
    #[error("{}", .0.message)]
    Policy(Rejection),
    /// No tier could answer.
    #[error(transparent)]
    Tier(#[from] TierError),
    /// No such tier.
    #[error("there is no model {name:?}; known models: auto, {}", known.join(", "))]
    UnknownModel {
        /// As the client wrote it.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
}
