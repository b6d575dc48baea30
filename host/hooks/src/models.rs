//! Models as a policy may use them: the host side of the `models` import.

use std::sync::Arc;

use crate::request::Request;
use crate::route::TierView;

/// How a short text is generated.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerateOptions {
    /// At most this many new tokens.
    pub max_tokens: u32,
    /// 0 = always the likeliest token.
    pub temperature: f32,
    /// Same seed, same text.
    pub seed: u64,
    /// The text ends before any of these.
    pub stop: Vec<String>,
}

/// A short generated text.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Generated {
    /// The text.
    pub text: String,
    /// Natural logarithm of the probability of every token.
    pub logprobs: Vec<f32>,
    /// Ended by itself, not by `max_tokens`.
    pub finished: bool,
}

/// Why a model call failed; the cases of the contract's `error`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// It exists, but cannot answer now, or not this kind of question.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The arguments are wrong.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// A limit was reached.
    #[error("limit exceeded: {0}")]
    LimitExceeded(String),
    /// The host failed.
    #[error("internal: {0}")]
    Internal(String),
}

/// Every model of the host. All calls block the calling thread; `generate` and `score`
/// give up with `Unavailable` when `timeout_ms` is over, for a policy's deadline holds
/// inside host calls as well. They take of the share of `tenant`, for whose request the
/// policy works, and meet nobody else's prompts in a cache; `None` = nobody is known.
pub trait Models: Send + Sync {
    /// The same models as the policies of this request ask them, which pays for it, for as long as
    /// what is returned is held. `None` = nobody keeps books, and these are asked themselves: what
    /// they take is the host's own.
    fn at_the_expense_of(self: Arc<Self>, _request: &Request) -> Option<Arc<dyn Models>> {
        None
    }
    /// Ids of all models, encoders included.
    fn names(&self) -> Vec<String>;
    /// The tier as a router would see it now.
    fn info(&self, name: &str) -> Result<TierView, ModelError>;
    /// Tokens of `text` in this model's vocabulary.
    fn count_tokens(&self, name: &str, text: &str) -> Result<u32, ModelError>;
    /// Embedding of unit length. A text longer than the encoder reads is `LimitExceeded`, and not
    /// cut.
    fn embed(&self, name: &str, text: &str, timeout_ms: u32) -> Result<Vec<f32>, ModelError>;
    /// Log-probability of every token of `continuation` after `prompt`.
    fn score(
        &self,
        tenant: Option<&str>,
        name: &str,
        prompt: &str,
        continuation: &str,
        timeout_ms: u32,
    ) -> Result<Vec<f32>, ModelError>;
    /// Continue `prompt`; no chat template is applied.
    fn generate(
        &self,
        tenant: Option<&str>,
        name: &str,
        prompt: &str,
        options: &GenerateOptions,
        timeout_ms: u32,
    ) -> Result<Generated, ModelError>;
}
