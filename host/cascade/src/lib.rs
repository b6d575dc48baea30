//! The life of one request: classify, route, generate, validate, escalate.
//!
//! This room owns the *order* of things: which hook is asked when, which text a client
//! may already see, what happens when a tier fails or a validator doubts, and the record
//! that tells the story afterwards. It knows tiers only through [`Tier`] and policies
//! only through `homeostat_hooks::Policies`; it refuses to know wire formats, devices,
//! tensors or WebAssembly. That is what lets a simulator run the same code as the server.
//!
//! One rule shapes everything here: **no retraction**. A client never sees text that is
//! taken back. Of an answer that may still be escalated the newest tokens are held back (all
//! of it, where the next tier could not go on from a part); what was held back is dropped when
//! the answer is doubted, and the next tier continues from what the client has seen. Only the
//! last step of a plan streams live. Which step is next is asked anew after every answer that was
//! left, where the plan tells what its router expects of them.

mod job;
mod life;
mod posterior;
mod purse;
mod record;
mod surprisal;
mod tier;
mod view;
mod window;

pub use job::{Closing, Head, Job, Refused, Reply, ReplyEvent, Usage};
pub use life::{Cascade, CascadeConfig, JoulesOf, Observer};
pub use purse::{Begun, Payable, Purse};
pub use record::{Cut, CutBy, DecisionRecord, Ending, RequestSummary, StepRecord};
pub use surprisal::Baselines;
pub use tier::{
    CANNOT_CONTINUE, CONTEXT_LENGTH_EXCEEDED, CONVERSATION_REFUSED, GenerateCall, OutputFormat,
    Prompt, Sampling, Tier, TierError, TierEvent, TierFault, Token, TokenStream,
};
