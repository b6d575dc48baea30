//! Who answers the questions.
//!
//! [`Policies::begin`] opens a [`Session`] for one request. A session keeps its answerer
//! for all hooks of that request: a policy that is swapped meanwhile does not change a
//! request that has begun. A session always answers. When a component fails, its
//! fallback has answered instead, and the [`HookReply`] says so.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::answer::{Answer, Outcome, Verdict};
use crate::fault::Fault;
use crate::request::{Classification, Request};
use crate::route::{Decision, TierView};
use crate::snapshot::Snapshot;

/// The three questions. The same word in Rust, WIT, folders, metrics and config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// How hard is it?
    Classify,
    /// Who answers?
    Route,
    /// Is the answer good enough?
    Validate,
}

impl Hook {
    /// All hooks, in the order in which a request meets them.
    pub const ALL: [Hook; 3] = [Hook::Classify, Hook::Route, Hook::Validate];

    /// The word used everywhere.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Classify => "classify",
            Self::Route => "route",
            Self::Validate => "validate",
        }
    }
}

/// Who gave an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum AnsweredBy {
    /// No component is loaded for this hook.
    BuiltIn,
    /// A component.
    Component {
        /// Name of the policy.
        name: String,
        /// Generation, counted up at every swap of this hook.
        generation: u64,
        /// First 12 hex digits of the component's sha256.
        digest: String,
        /// The answer is the last proposal, since the call did not end in time.
        proposed: bool,
        /// It serves as a canary, beside the active policy.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        candidate: bool,
    },
    /// The fallback of a component that failed.
    Fallback {
        /// Name of the policy that failed.
        name: String,
        /// Its generation.
        generation: u64,
        /// What answered instead, such as `built-in`.
        fallback: String,
        /// It serves as a canary, beside the active policy.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        candidate: bool,
    },
}

/// An answer with its history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HookReply<T> {
    /// The answer; it has passed [`crate::check`].
    pub value: T,
    /// Who gave it.
    pub by: AnsweredBy,
    /// What failed, if something did; present with `Fallback` and with `proposed`.
    pub fault: Option<Fault>,
    /// Time that the call took, waiting for an instance included.
    pub micros: u64,
}

/// Opens sessions. Shared by all requests; a swap happens behind it.
pub trait Policies: Send + Sync {
    /// A session for one request. Never fails: with nothing loaded the built-in answers
    /// are used.
    fn begin(&self, request: Arc<Request>, snapshot: Arc<Snapshot>) -> Box<dyn Session>;
}

/// The hooks of one request, in order. Calls block the thread for up to the hook's
/// deadline: async callers hop to a blocking thread first.
pub trait Session: Send {
    /// How hard is the request?
    fn classify(&mut self) -> HookReply<Classification>;
    /// Which tiers answer it? `tiers` are the candidates, smallest first, at least one.
    fn route(&mut self, classification: &Classification, tiers: &[TierView])
    -> HookReply<Decision>;
    /// Is this answer good enough?
    fn validate(&mut self, answer: &Answer) -> HookReply<Verdict>;
    /// What became of the request; only policies that learn listen.
    fn learn(&mut self, outcome: &Outcome);
    /// Whether there is a receipt: making one takes longer than knowing this.
    fn has_receipt(&self) -> bool {
        false
    }
    /// A digest of what was decided before the first tier is asked, by which anybody can
    /// later tell that a recording shows it; none where the request is not recorded.
    fn receipt(&self) -> Option<String> {
        None
    }
}
