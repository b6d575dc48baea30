//! A candidate that serves a share of the requests, until the evidence says what it is.
//!
//! A request belongs to the candidate or to the active policy by a hash of what it sticks
//! to; the session then works with a table in which the candidate stands at its hook, so
//! that nothing else of a call differs. Both arms are tallied, and after every call of the
//! candidate the tallies are asked ([`crate::evidence`]):
//!
//! * *worse* in any measure → rolled back. The share of good candidates that this hits is
//!   at most `alpha`, over all measures and looks together.
//! * *not worse by `tolerance`* in every measure, after `min_calls` → promoted. The share
//!   of bad candidates that get through is at most `alpha`.
//! * neither after `max_calls` → rolled back: what cannot be shown good does not stay.
//!
//! A candidate that its breaker gives up on is rolled back at once. When a call of it
//! fails, the active policy answers that request: a bad canary costs time, not answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use homeostat_hooks::{CONVERSATION, Hook, Outcome, Request, Value};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::CanaryConfig;
use crate::evidence::{Pair, Tally};
use crate::stats::Histogram;
use crate::swap::Generation;

/// Observations of the active policy before its quantiles mean something.
const BASE_MIN: u64 = 50;
/// The thresholds are read from the active arm's times again after so many more of them.
const BASE_EVERY: u64 = 64;
/// Promotion is considered at every so many calls of the candidate: it asks all measures.
const LOOK_EVERY: u64 = 8;

/// What a request sticks to: everything with the same value meets the same policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StickTo {
    /// The tenant and the attribute [`CONVERSATION`]: a conversation keeps its policy from its
    /// first turn on. Conversations that begin with the same words meet the same policy.
    #[default]
    Conversation,
    /// The tenant. For hosts with many; all requests without a tenant are one.
    Tenant,
    /// The request alone.
    Request,
}

impl StickTo {
    /// From its word.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "conversation" => Some(Self::Conversation),
            "tenant" => Some(Self::Tenant),
            "request" => Some(Self::Request),
            _ => None,
        }
    }
}

/// A place in 0 .. 1 that depends on nothing but the salt and what the request sticks to.
fn place(request: &Request, stick_to: StickTo, salt: u64) -> f64 {
    let mut hash = Sha256::new();
    hash.update(salt.to_le_bytes());
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    match stick_to {
        StickTo::Request => add(&request.id),
        StickTo::Tenant => add(request.tenant.as_deref().unwrap_or("")),
        StickTo::Conversation => {
            add(request.tenant.as_deref().unwrap_or(""));
            let attributes = request.attributes.iter();
            for (_, value) in attributes.filter(|(name, _)| name == CONVERSATION) {
                if let Value::Integer(number) = value {
                    hash.update(number.to_le_bytes());
                }
            }
        }
    }
    let digest: [u8; 32] = hash.finalize().into();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first) as f64 / (u64::MAX as f64 + 1.0)
}

/// Who served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arm {
    Active,
    Candidate,
}

/// What is counted of each arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Measure {
    /// The call ended as a fault; a fallback or a proposal answered.
    Fault,
    /// The call took longer than the active policy's p99, and than `slow_ms`.
    Slow,
    /// The first token came later than with nineteen of twenty requests of the active one.
    LateToken,
    /// A second step of the plan was needed.
    Escalated,
    /// The client got an error or a refusal instead of a whole answer.
    Unanswered,
}

const MEASURES: [(Measure, &str); 5] = [
    (Measure::Fault, "fault"),
    (Measure::Slow, "slow"),
    (Measure::LateToken, "late-first-token"),
    (Measure::Escalated, "escalated"),
    (Measure::Unanswered, "unanswered"),
];

/// What the evidence says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Judgement {
    Promote(String),
    RollBack(String),
}

/// The tallies of both arms. Knows nothing of policies: the simulation in the tests works
/// with this very thing.
#[derive(Debug, Default)]
pub(crate) struct Arms {
    pairs: [Pair; MEASURES.len()],
    calls: Base,
    tokens: Base,
}

/// A threshold from the active arm's times, fixed before the times that it is put to.
#[derive(Debug, Default)]
struct Base {
    times: Histogram,
    /// Times of each arm.
    seen: [u64; 2],
    threshold_micros: Option<f64>,
}

impl Base {
    /// Whether this time is beyond the threshold, if there is one; then takes it in.
    fn exceeded(
        &mut self,
        arm: Arm,
        time: Duration,
        quantile: impl Fn(&Histogram) -> Option<f64>,
    ) -> Option<bool> {
        let exceeded = self
            .threshold_micros
            .map(|threshold| time.as_secs_f64() * 1e6 > threshold);
        self.seen[arm as usize] += 1;
        if arm == Arm::Active {
            self.times.record(time);
            let count = self.seen[arm as usize];
            if count == BASE_MIN || count.is_multiple_of(BASE_EVERY) && count > BASE_MIN {
                self.threshold_micros = quantile(&self.times);
            }
        }
        exceeded
    }
}

impl Arms {
    pub fn add(&mut self, arm: Arm, measure: Measure, event: bool) {
        self.pairs[measure as usize].add(arm as usize, event);
    }

    fn call(&mut self, config: &CanaryConfig, arm: Arm, fault: bool, time: Duration) {
        self.add(arm, Measure::Fault, fault);
        let floor = config.slow_ms * 1e3;
        let slow = self.calls.exceeded(arm, time, |times| {
            times.summary().p99_micros.map(|p99| p99.max(floor))
        });
        if let Some(slow) = slow {
            self.add(arm, Measure::Slow, slow);
        }
    }

    fn outcome(&mut self, arm: Arm, outcome: &Outcome) {
        // A direct answer has no step and no tier; what has steps and no tier has failed.
        let unanswered =
            outcome.tier.is_none() && (outcome.steps_tried > 0 || outcome.ttft_ms.is_none());
        self.add(arm, Measure::Unanswered, unanswered);
        self.add(arm, Measure::Escalated, outcome.steps_tried > 1);
        if let Some(ms) = outcome.ttft_ms {
            let time = Duration::from_millis(ms.into());
            let late = self
                .tokens
                .exceeded(arm, time, |times| times.quantile(0.95));
            if let Some(late) = late {
                self.add(arm, Measure::LateToken, late);
            }
        }
    }

    fn of(&self, measure: Measure) -> &Pair {
        &self.pairs[measure as usize]
    }

    /// Calls that the candidate has answered, or failed to.
    pub fn candidate_calls(&self) -> u64 {
        self.of(Measure::Fault).candidate().trials
    }

    /// Asks the evidence; to be called after an observation of the candidate.
    pub fn judge(&self, config: &CanaryConfig) -> Option<Judgement> {
        let each = (MEASURES.len() as f64 / config.alpha).ln();
        for (measure, word) in MEASURES {
            let pair = self.of(measure);
            if pair.worse() >= each {
                return Some(Judgement::RollBack(format!(
                    "{word}: {} against {} of the active policy",
                    counted(pair.candidate()),
                    counted(pair.active()),
                )));
            }
        }
        let calls = self.candidate_calls();
        if calls >= config.min_calls && calls.is_multiple_of(LOOK_EVERY) && self.all_good(config) {
            return Some(Judgement::Promote(format!(
                "after {calls} calls no measure is worse by {} or more",
                config.tolerance
            )));
        }
        (calls >= config.max_calls).then(|| {
            Judgement::RollBack(format!(
                "not shown to be as good within {} calls (policies.canary.max_calls)",
                config.max_calls
            ))
        })
    }

    fn all_good(&self, config: &CanaryConfig) -> bool {
        let enough = (1.0 / config.alpha).ln();
        MEASURES.iter().all(|(measure, _)| {
            let pair = self.of(*measure);
            let silent = match measure {
                // Both arms answer calls: a policy whose time nobody knows is not good yet.
                Measure::Slow => false,
                // Refusals have no first token; an arm without any has none to compare.
                Measure::LateToken => self.tokens.seen.contains(&0),
                _ => pair.candidate().trials == 0 && pair.active().trials == 0,
            };
            silent || pair.not_much_worse(config.tolerance) >= enough
        })
    }

    fn status(&self) -> Vec<MeasureStatus> {
        MEASURES
            .iter()
            .map(|(measure, word)| {
                let (active, candidate) =
                    (self.of(*measure).active(), self.of(*measure).candidate());
                MeasureStatus {
                    measure: word,
                    active: active.events,
                    active_of: active.trials,
                    candidate: candidate.events,
                    candidate_of: candidate.trials,
                }
            })
            .collect()
    }
}

fn counted(tally: &Tally) -> String {
    format!("{} of {}", tally.events, tally.trials)
}

/// One measure of both arms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MeasureStatus {
    /// `fault`, `slow`, `late-first-token`, `escalated` or `unanswered`.
    pub measure: &'static str,
    /// How often it happened to the active policy.
    pub active: u64,
    /// In so many calls (`fault`, `slow`) or requests.
    pub active_of: u64,
    /// How often to the candidate.
    pub candidate: u64,
    /// In so many.
    pub candidate_of: u64,
}

/// A running canary, or one that has ended.
pub(crate) struct Canary {
    pub candidate: Arc<Generation>,
    pub config: CanaryConfig,
    arms: Mutex<Arms>,
}

impl Canary {
    pub fn new(candidate: Arc<Generation>, config: CanaryConfig) -> Self {
        Self {
            candidate,
            config,
            arms: Mutex::default(),
        }
    }

    /// Whether this request is the candidate's. The salt is its generation, so that it is
    /// not always the same people who meet the candidates.
    pub fn takes(&self, request: &Request) -> bool {
        let config = &self.config;
        place(request, config.stick_to, self.candidate.number) < config.share
    }

    /// A call was answered. `judged` is what to do about it.
    pub fn called(&self, arm: Arm, fault: bool, time: Duration) -> Option<Judgement> {
        self.observe(arm, |arms, config| arms.call(config, arm, fault, time))
    }

    /// A request of this arm has ended.
    pub fn ended(&self, arm: Arm, outcome: &Outcome) -> Option<Judgement> {
        self.observe(arm, |arms, _| arms.outcome(arm, outcome))
    }

    fn observe(
        &self,
        arm: Arm,
        observe: impl FnOnce(&mut Arms, &CanaryConfig),
    ) -> Option<Judgement> {
        // Tallies are numbers; none is left half-changed by a panic.
        let mut arms = self.arms.lock().unwrap_or_else(PoisonError::into_inner);
        observe(&mut arms, &self.config);
        (arm == Arm::Candidate)
            .then(|| arms.judge(&self.config))
            .flatten()
    }

    pub fn hook(&self) -> Hook {
        self.candidate.hook
    }

    pub fn measures(&self) -> Vec<MeasureStatus> {
        let arms = self.arms.lock().unwrap_or_else(PoisonError::into_inner);
        arms.status()
    }
}

#[cfg(test)]
mod tests;
