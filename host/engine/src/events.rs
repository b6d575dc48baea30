//! What the engine says to the outside: a closed list of events, and errors that name the fault.
//!
//! It exists so that whoever serves the text adapts one trait. It refuses to block: a sink that
//! cannot take an event says [`Closed`], and its sequence is cancelled at the next step.

use std::time::Duration;

use crate::constraint::ConstraintError;
use crate::sampler::{NotADistribution, PickError};

/// Receives the events of one sequence, in order, on the engine's thread. It must not wait.
pub trait Sink: Send {
    /// `Err(Closed)`: nobody reads any more; the sequence is cancelled and no further event comes.
    fn event(&mut self, event: Event) -> Result<(), Closed>;
}

/// Events go to whoever holds the other end, as fast as they are made.
impl Sink for std::sync::mpsc::Sender<Event> {
    fn event(&mut self, event: Event) -> Result<(), Closed> {
        self.send(event).map_err(|_| Closed)
    }
}

/// The reader is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the reader of this sequence is gone")]
pub struct Closed;

/// Everything that can happen to a sequence: any number of tokens, then one of the other two.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// One token was generated (or scored). `text` is what became certain with it: empty while a
    /// character is incomplete or a stop string may be forming, and for the end token itself.
    Token {
        text: String,
        logprob: TokenLogprob,
    },
    Finished {
        reason: FinishReason,
        usage: Usage,
        timings: Timings,
    },
    Failed(EngineError),
}

/// The model's own opinion of a token: natural logarithms over its unmodified distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    pub token_id: u32,
    /// The token's bytes, which need not be whole characters; control tokens by their name.
    pub bytes: Vec<u8>,
    pub logprob: f32,
    /// Entropy in nats of what the model said, before temperature, filters, penalties and grammar.
    pub entropy: f32,
    /// As many of the likeliest tokens as were asked for, likeliest first.
    pub top: Vec<TopLogprob>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TopLogprob {
    pub token_id: u32,
    pub bytes: Vec<u8>,
    pub logprob: f32,
}

/// Why a sequence ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// `max_new_tokens` or the context limit.
    Length,
    /// Asked for, or its reader is gone.
    Cancelled,
    /// All tokens of a score are reported.
    Scored,
}

/// The end token counts as a completion token, as it was computed like any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
}

/// Durations by the clock of the engine's owner, at the granularity of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// From arrival to the first step that computed it.
    pub queued: Duration,
    /// From arrival to the first token; `None` if there was none.
    pub first_token: Option<Duration>,
    /// From arrival to the end.
    pub total: Duration,
}

/// A sequence that ended badly. Says whose fault it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The model's fault: retrying will give the same.
    #[error("the model failed: {0}")]
    Model(String),
    /// The client's grammar led to a place that it does not lead out of, or that costs too much.
    /// Retrying the same request will most likely give the same.
    #[error("the answer could not be kept in the form that was asked for: {0}")]
    Grammar(String),
    /// A defect of the host; other sequences go on. Retrying may help, reporting it will.
    #[error("internal error of the engine: {0}")]
    Internal(String),
    /// The host is busy: the request's own deadline came before its turn. Retrying may help.
    #[error(
        "the deadline passed after {} ms of waiting, before the answer began; retry later or allow more time",
        waited.as_millis()
    )]
    DeadlineExceeded { waited: Duration },
    /// The host is going down; retry elsewhere or later.
    #[error("the engine is shutting down")]
    ShuttingDown,
}

impl From<NotADistribution> for EngineError {
    fn from(error: NotADistribution) -> Self {
        Self::Model(error.to_string())
    }
}

impl From<PickError> for EngineError {
    fn from(error: PickError) -> Self {
        match error {
            PickError::NotADistribution(error) => error.into(),
            PickError::NothingAllowed => Self::Grammar(error.to_string()),
        }
    }
}

impl From<ConstraintError> for EngineError {
    fn from(error: ConstraintError) -> Self {
        match error {
            ConstraintError::Refused(_) => Self::Internal(error.to_string()),
            _ => Self::Grammar(error.to_string()),
        }
    }
}
