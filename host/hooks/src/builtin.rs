//! The answers of a host without any policy.
//!
//! Plain on purpose: a few lines that anybody can predict, so that an operator who has
//! deleted everything still has a server, and so that a fallback never surprises.

use std::sync::Arc;

use crate::answer::{Answer, Assessment, Finding, Finish, Outcome, Verdict};
use crate::policy::{AnsweredBy, HookReply, Policies, Session};
use crate::request::{Classification, Request, Task};
use crate::route::{Decision, Plan, Refusal, Rejection, Step, TierView};
use crate::snapshot::{MetabolicState, Snapshot, SpeculationHint};

/// Prompt length, in characters, at which small and large models are equally likely to
/// be needed. Length alone ranks requests better than chance on recorded outcomes
/// (APGR 0.58 to 0.60 on MMLU and GSM8K); the scale is the median of those prompts.
const HALFWAY_CHARS: f32 = 300.0;

/// Confidence from which the built-in router accepts an answer.
const ACCEPT_THRESHOLD: f32 = 0.5;

/// Confidence in an answer whose tier gives no log-probabilities.
const BLIND_CONFIDENCE: f32 = 0.6;

/// The built-in answerer: stateless, instant, always there.
#[derive(Debug, Clone, Copy, Default)]
pub struct BuiltIn;

impl Policies for BuiltIn {
    fn begin(&self, request: Arc<Request>, snapshot: Arc<Snapshot>) -> Box<dyn Session> {
        Box::new(BuiltInSession { request, snapshot })
    }
}

struct BuiltInSession {
    request: Arc<Request>,
    snapshot: Arc<Snapshot>,
}

impl Session for BuiltInSession {
    fn classify(&mut self) -> HookReply<Classification> {
        reply(classify(&self.request))
    }

    fn route(&mut self, c: &Classification, tiers: &[TierView]) -> HookReply<Decision> {
        reply(route(c, tiers, &self.snapshot))
    }

    fn validate(&mut self, answer: &Answer) -> HookReply<Verdict> {
        reply(validate(answer))
    }

    fn learn(&mut self, _outcome: &Outcome) {}
}

/// The reply of whoever is no component and cannot fail.
pub fn reply<T>(value: T) -> HookReply<T> {
    HookReply {
        value,
        by: AnsweredBy::BuiltIn,
        fault: None,
        micros: 0,
    }
}

/// Longer is harder; nothing else is looked at.
pub fn classify(request: &Request) -> Classification {
    let chars = request.question().chars().count() as f32 + request.cut_bytes as f32;
    let p_hard = chars / (chars + HALFWAY_CHARS);
    Classification {
        p_simple: (1.0 - p_hard) * (1.0 - p_hard),
        p_medium: 2.0 * p_hard * (1.0 - p_hard),
        p_complex: p_hard * p_hard,
        task: Task::Other,
        dimensions: Vec::new(),
        confidence: 0.2,
        attributes: Vec::new(),
    }
}

/// Ready tiers, smallest first, starting where the classification points; in need only
/// the smallest.
pub fn route(c: &Classification, tiers: &[TierView], snapshot: &Snapshot) -> Decision {
    let mut ready: Vec<&TierView> = tiers.iter().filter(|t| t.ready).collect();
    ready.sort_by_key(|t| t.rank);
    if ready.is_empty() {
        return Decision::Reject(Rejection {
            kind: Refusal::Overloaded,
            message: "no tier is ready to answer; try again shortly".into(),
            retry_after_ms: Some(1000),
        });
    }
    let expected = c.p_medium * 0.5 + c.p_complex;
    let start = ((expected * ready.len() as f32) as usize).min(ready.len() - 1);
    let (chosen, reason) = match snapshot.metabolism.state {
        MetabolicState::Nominal => (&ready[start..], "by length"),
        MetabolicState::Elevated => (&ready[start..=start], "no escalation: state elevated"),
        MetabolicState::Constrained => (&ready[..1], "smallest tier: state constrained"),
        MetabolicState::Critical => (&ready[..1], "smallest tier: state critical"),
    };
    let speculate = snapshot.metabolism.speculation == SpeculationHint::Prefer;
    let steps = chosen
        .iter()
        .take(crate::check::STEPS_MAX)
        .map(|t| Step {
            tier: t.id.clone(),
            max_draft_tokens: if speculate && t.can_speculate { 4 } else { 0 },
            max_tokens: None,
            hold_back_tokens: 0,
            accept_threshold: ACCEPT_THRESHOLD,
        })
        .collect();
    Decision::Plan(Plan {
        steps,
        reason: format!("built-in: {reason}"),
        attributes: Vec::new(),
    })
}

/// Not empty, and likely enough in the eyes of the model that wrote it. Of a part of an answer
/// neither can be said yet.
pub fn validate(answer: &Answer) -> Verdict {
    if answer.finish == Finish::Unfinished {
        return Verdict::Undecided;
    }
    let empty = answer.text.trim().is_empty();
    let confidence = if empty {
        0.0
    } else if answer.logprobs.is_empty() {
        BLIND_CONFIDENCE
    } else {
        let mean = answer.logprobs.iter().sum::<f32>() / answer.logprobs.len() as f32;
        mean.exp().clamp(0.0, 1.0)
    };
    let assessment = Assessment {
        confidence,
        findings: vec![Finding {
            check: "not-empty".into(),
            passed: !empty,
            detail: format!("{} bytes", answer.text.len()),
        }],
    };
    if confidence >= answer.accept_threshold || answer.steps_left == 0 {
        Verdict::Accept(assessment)
    } else {
        Verdict::Escalate(assessment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use crate::request::{Message, Role};

    fn tier(id: &str, rank: u32, ready: bool) -> TierView {
        TierView {
            id: id.into(),
            rank,
            ready,
            ..TierView::default()
        }
    }

    fn asked(text: &str) -> Request {
        Request {
            messages: vec![Message {
                role: Role::User,
                content: text.into(),
            }],
            ..Request::default()
        }
    }

    fn steps(d: &Decision) -> Vec<&str> {
        match d {
            Decision::Plan(p) => p.steps.iter().map(|s| s.tier.as_str()).collect(),
            other => panic!("expected a plan, got {other:?}"),
        }
    }

    #[test]
    fn every_built_in_answer_passes_the_checks_that_components_must_pass() {
        let tiers = [tier("small", 0, true), tier("large", 1, true)];
        for text in ["", "hi", &"long ".repeat(1000)] {
            let c = classify(&asked(text));
            assert_eq!(check::classification(&c), Ok(()));
            let d = route(&c, &tiers, &Snapshot::default());
            assert_eq!(check::decision(&d, &tiers), Ok(()));
            let answer = Answer {
                text: text.into(),
                ..Answer::default()
            };
            assert_eq!(check::verdict(&validate(&answer), &answer), Ok(()));
        }
    }

    #[test]
    fn short_requests_start_small_and_may_escalate_long_ones_start_large() {
        let tiers = [tier("large", 1, true), tier("small", 0, true)];
        let calm = Snapshot::default();
        assert_eq!(
            steps(&route(&classify(&asked("hi")), &tiers, &calm)),
            ["small", "large"]
        );
        let long = asked(&"x".repeat(5000));
        assert_eq!(steps(&route(&classify(&long), &tiers, &calm)), ["large"]);
    }

    #[test]
    fn in_need_only_the_smallest_tier_is_used() {
        let tiers = [tier("small", 0, true), tier("large", 1, true)];
        let mut hot = Snapshot::default();
        hot.metabolism.state = MetabolicState::Constrained;
        let long = asked(&"x".repeat(5000));
        assert_eq!(steps(&route(&classify(&long), &tiers, &hot)), ["small"]);
    }

    #[test]
    fn with_no_tier_ready_the_refusal_says_when_to_come_back() {
        let d = route(
            &Classification::default(),
            &[tier("a", 0, false)],
            &Snapshot::default(),
        );
        match d {
            Decision::Reject(r) => assert!(r.retry_after_ms.is_some()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_empty_answer_escalates_while_a_step_is_left() {
        let mut answer = Answer {
            steps_left: 1,
            accept_threshold: 0.5,
            ..Answer::default()
        };
        assert!(matches!(validate(&answer), Verdict::Escalate(_)));
        answer.steps_left = 0;
        assert!(matches!(validate(&answer), Verdict::Accept(_)));
        answer.finish = Finish::Unfinished;
        assert_eq!(validate(&answer), Verdict::Undecided);
    }
}
