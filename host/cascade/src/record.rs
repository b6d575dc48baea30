//! The story of every request, kept for people who ask why.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use homeostat_hooks::{
    Classification, Decision, Endpoint, Finish, HookReply, ResponseFormat, Snapshot, TierView,
    Verdict,
};
use serde::Serialize;

use crate::job::Usage;
use crate::tier::TierError;

/// What was asked, without its text: records outlive requests.
#[derive(Debug, Clone, Serialize)]
pub struct RequestSummary {
    /// Where it came in.
    pub endpoint: Endpoint,
    /// What the client named.
    pub model: String,
    /// Messages.
    pub messages: usize,
    /// Bytes of text.
    pub bytes: usize,
    /// Whether the client reads a stream.
    pub stream: bool,
    /// Most new tokens.
    pub max_tokens: Option<u32>,
    /// Sampling temperature.
    pub temperature: f32,
    /// Form of the answer.
    pub response_format: ResponseFormat,
    /// Who pays.
    pub tenant: Option<String>,
}

/// One step that was tried.
#[derive(Debug, Clone, Serialize)]
pub struct StepRecord {
    /// Tier.
    pub tier: String,
    /// Since the request came in.
    pub started_ms: u32,
    /// To the first token of this step.
    pub ttft_ms: Option<u32>,
    /// To its last.
    pub total_ms: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Bytes of the answer.
    pub bytes: usize,
    /// Mean log-probability of its tokens, where known.
    pub mean_logprob: Option<f32>,
    /// Why it ended; `None` when it failed.
    pub finish: Option<Finish>,
    /// The verdict on it.
    pub verdict: Option<HookReply<Verdict>>,
    /// Why it failed.
    pub error: Option<TierError>,
    /// Whether the client saw it, or a part of it.
    pub sent: bool,
    /// Tokens of earlier steps that the client had seen and that this one went on from.
    pub continued_tokens: u32,
    /// What the validator said before the answer was whole, and nothing followed from.
    pub partial_verdicts: Vec<HookReply<Verdict>>,
    /// Where it was left, if it was.
    pub cut: Option<Cut>,
}

/// Where a step was left: what of its answer was held back is dropped, and the next step goes on
/// from what the client has seen, which may be nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cut {
    /// Tier that was left.
    pub tier: String,
    /// When, since the request came in.
    pub at_ms: u32,
    /// Who found it wanting.
    pub by: CutBy,
    /// What was found, for people.
    pub why: String,
    /// Tokens of this step that the client had seen. They stay.
    pub sent_tokens: u32,
    /// Bytes of the answer that the client had seen, earlier steps' included: where the seam is.
    pub seam_bytes: usize,
    /// Tokens of this step that were held back, and are dropped.
    pub dropped_tokens: u32,
    /// Their bytes.
    pub dropped_bytes: usize,
    /// Bytes at the beginning of what was dropped that the next step then said all the same;
    /// `None` until it has ended.
    pub repeated_bytes: Option<usize>,
}

/// Who found that an answer should be left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutBy {
    /// The validator.
    Validator,
    /// The surprisal of its tokens.
    Surprisal,
    /// The tier itself: it failed in the middle.
    Failure,
}

impl CutBy {
    /// The word in records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Validator => "validator",
            Self::Surprisal => "surprisal",
            Self::Failure => "failure",
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Serialize, Default)]
#[serde(tag = "ending", rename_all = "kebab-case")]
pub enum Ending {
    /// Still running.
    #[default]
    Running,
    /// The answer of a tier was sent.
    Sent {
        /// Which.
        tier: String,
        /// Which of the steps that were tried.
        step: u32,
    },
    /// Answered without a model.
    Direct {
        /// How.
        method: String,
    },
    /// Refused.
    Refused {
        /// Why.
        message: String,
    },
    /// A tier failed after text was sent.
    Failed {
        /// Why.
        message: String,
    },
    /// The client went away.
    Cancelled,
}

/// The story of one request.
#[derive(Debug, Clone, Serialize)]
pub struct DecisionRecord {
    /// Id of the request.
    pub id: String,
    /// When it came in, milliseconds since 1970.
    pub unix_ms: u64,
    /// What was asked.
    pub request: RequestSummary,
    /// What every hook saw of the machine.
    pub snapshot: Arc<Snapshot>,
    /// The candidates.
    pub tiers: Vec<TierView>,
    /// How hard it was thought to be.
    pub classification: Option<HookReply<Classification>>,
    /// What was decided.
    pub decision: Option<HookReply<Decision>>,
    /// What was tried.
    pub steps: Vec<StepRecord>,
    /// How it ended.
    #[serde(flatten)]
    pub ending: Ending,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// Tokens.
    pub usage: Usage,
    /// To the first text that the client saw.
    pub ttft_ms: Option<u32>,
    /// The whole request.
    pub total_ms: u32,
}

impl DecisionRecord {
    /// Whether some hook was answered by a fallback.
    pub fn fallback(&self) -> bool {
        use homeostat_hooks::AnsweredBy::Fallback;
        let fell = |by: &homeostat_hooks::AnsweredBy| matches!(by, Fallback { .. });
        self.classification.as_ref().is_some_and(|r| fell(&r.by))
            || self.decision.as_ref().is_some_and(|r| fell(&r.by))
            || self
                .steps
                .iter()
                .flat_map(|s| s.verdict.iter().chain(&s.partial_verdicts))
                .any(|r| fell(&r.by))
    }
}

/// One record in so many may be of a request that was refused before anything was decided. A client
/// that tries again and again makes many of them, and they tell little.
const UNDECIDED: usize = 8;

/// The last records, oldest out first.
pub(crate) struct Records {
    limit: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    order: VecDeque<String>,
    /// Those of them that were refused before anything was decided.
    undecided: VecDeque<String>,
    by_id: HashMap<String, Arc<DecisionRecord>>,
}

impl Records {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            kept: Mutex::new(Kept::default()),
        }
    }

    pub(crate) fn put(&self, record: Arc<DecisionRecord>) {
        let mut kept = self.lock();
        let id = &record.id;
        if kept.by_id.insert(id.clone(), record.clone()).is_none() {
            kept.order.push_back(id.clone());
        } else {
            kept.undecided.retain(|kept| kept != id);
        }
        if record.decision.is_none() && matches!(record.ending, Ending::Refused { .. }) {
            kept.undecided.push_back(id.clone());
        }
        let undecided_max = (self.limit / UNDECIDED).max(1);
        while kept.undecided.len() > undecided_max
            && let Some(oldest) = kept.undecided.pop_front()
        {
            kept.order.retain(|kept| *kept != oldest);
            kept.by_id.remove(&oldest);
        }
        while kept.order.len() > self.limit
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.undecided.retain(|kept| *kept != oldest);
            kept.by_id.remove(&oldest);
        }
        assert_eq!(
            kept.order.len(),
            kept.by_id.len(),
            "every kept record has one place"
        );
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<DecisionRecord>> {
        self.lock().by_id.get(id).cloned()
    }

    pub(crate) fn recent(&self, count: usize) -> Vec<Arc<DecisionRecord>> {
        let kept = self.lock();
        kept.order
            .iter()
            .rev()
            .take(count)
            .filter_map(|id| kept.by_id.get(id).cloned())
            .collect()
    }

    /// A panic elsewhere cannot leave the ring half changed: every change above is
    /// complete before it can panic. So a poisoned lock is taken as it is.
    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
