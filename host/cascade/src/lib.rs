//! The life of one request: classify, route, generate, validate, escalate.
//!
//! This room owns the *order* of things: which hook is asked when, which text a client
//! may already see, what happens when a tier fails or a validator doubts, and the record
//! that tells the story afterwards. It knows tiers only through [`Tier`] and policies
//! only through `homeostat_hooks::Policies`; it refuses to know wire formats, devices,
//! tensors or WebAssembly. That is what lets a simulator run the same code as the server.
//!
//! One rule shapes everything here: **no retraction**. A client never sees text that is
//! taken back. An answer that may still be escalated is held back until its verdict; only
//! the last step of a plan streams live.

mod job;
mod life;
mod record;
mod tier;
mod view;

pub use job::{Head, Job, Refused, Reply, ReplyEvent, Usage};
pub use life::{Cascade, CascadeConfig, JoulesOf, Observer};
pub use record::{DecisionRecord, Ending, RequestSummary, StepRecord};
pub use tier::{
    CONTEXT_LENGTH_EXCEEDED, CONVERSATION_REFUSED, GenerateCall, OutputFormat, Prompt, Sampling,
    Tier, TierError, TierEvent, TierFault, Token, TokenStream,
};
