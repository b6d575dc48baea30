//! What every answer must satisfy before the host acts on it.
//!
//! An answer comes from code that the host does not trust. After these checks nobody
//! asks again whether a probability is a number or a tier exists.

use crate::answer::{Answer, Assessment, Finish, Verdict};
use crate::request::{Attribute, Classification, Value};
use crate::route::{Decision, Plan, Rejection, TierView};

/// Most steps of a plan: deeper cascades only add delay.
pub const STEPS_MAX: usize = 8;
/// Most draft tokens a step may ask for; no drafter is right for longer.
pub const DRAFT_TOKENS_MAX: u32 = 64;
/// Most bytes of any text in an answer: what a client could still read.
pub const TEXT_BYTES_MAX: usize = 256 * 1024;
/// Most entries of any list in an answer.
pub const LIST_MAX: usize = 256;

/// An answer that no host could act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid answer: {0}")]
pub struct Invalid(pub String);

fn invalid<T>(text: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid(text.into()))
}

fn ratio(name: &str, value: f32) -> Result<(), Invalid> {
    // `contains` is false for NaN, so this refuses it as well.
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    invalid(format!("{name} is {value}, expected 0 to 1"))
}

fn text(name: &str, value: &str) -> Result<(), Invalid> {
    if value.len() > TEXT_BYTES_MAX {
        return invalid(format!(
            "{name} has {} bytes, at most {TEXT_BYTES_MAX}",
            value.len()
        ));
    }
    Ok(())
}

fn list(name: &str, len: usize) -> Result<(), Invalid> {
    if len > LIST_MAX {
        return invalid(format!("{name} has {len} entries, at most {LIST_MAX}"));
    }
    Ok(())
}

fn attributes(list_of: &[Attribute]) -> Result<(), Invalid> {
    list("attributes", list_of.len())?;
    for (key, value) in list_of {
        text("an attribute key", key)?;
        match value {
            Value::Text(t) => text(key, t)?,
            Value::Number(n) if !n.is_finite() => {
                return invalid(format!("attribute {key} is {n}, expected a finite number"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Probabilities from 0 to 1 that add up to 1 (± 0.01).
pub fn classification(c: &Classification) -> Result<(), Invalid> {
    ratio("p-simple", c.p_simple)?;
    ratio("p-medium", c.p_medium)?;
    ratio("p-complex", c.p_complex)?;
    ratio("confidence", c.confidence)?;
    let sum = c.p_simple + c.p_medium + c.p_complex;
    if (sum - 1.0).abs() > 0.01 {
        return invalid(format!(
            "p-simple + p-medium + p-complex = {sum}, expected 1"
        ));
    }
    list("dimensions", c.dimensions.len())?;
    for (name, value) in &c.dimensions {
        text("a dimension's name", name)?;
        ratio(name, *value)?;
    }
    attributes(&c.attributes)
}

/// One to eight steps on known tiers, or an answer, or a refusal with a reason.
pub fn decision(d: &Decision, tiers: &[TierView]) -> Result<(), Invalid> {
    match d {
        Decision::Plan(p) => plan(p, tiers),
        Decision::Answer(a) => {
            if a.text.is_empty() {
                return invalid("a direct answer without text");
            }
            text("the direct answer", &a.text)?;
            text("method", &a.method)
        }
        Decision::Reject(r) => rejection(r),
    }
}

fn plan(p: &Plan, tiers: &[TierView]) -> Result<(), Invalid> {
    if p.steps.is_empty() || p.steps.len() > STEPS_MAX {
        return invalid(format!(
            "a plan of {} steps, expected 1 to {STEPS_MAX}",
            p.steps.len()
        ));
    }
    for (i, step) in p.steps.iter().enumerate() {
        if !tiers.iter().any(|t| t.id == step.tier) {
            let known: Vec<&str> = tiers.iter().map(|t| t.id.as_str()).collect();
            // The name is quoted from untrusted code, so it is cut.
            let name: String = step.tier.chars().take(80).collect();
            return invalid(format!(
                "step {i} names tier {name:?}, candidates are {}",
                known.join(", ")
            ));
        }
        ratio("accept-threshold", step.accept_threshold)?;
        if step.max_draft_tokens > DRAFT_TOKENS_MAX {
            return invalid(format!(
                "step {i} asks for {} draft tokens, at most {DRAFT_TOKENS_MAX}",
                step.max_draft_tokens
            ));
        }
        if step.max_tokens == Some(0) {
            return invalid(format!("step {i} allows 0 tokens, expected at least 1"));
        }
    }
    text("reason", &p.reason)?;
    attributes(&p.attributes)
}

fn rejection(r: &Rejection) -> Result<(), Invalid> {
    if r.message.trim().is_empty() {
        return invalid("a refusal without a message: the client must learn why");
    }
    text("the refusal's message", &r.message)
}

/// Confidences from 0 to 1; `undecided` only while the answer is unfinished.
pub fn verdict(v: &Verdict, answer: &Answer) -> Result<(), Invalid> {
    match v {
        Verdict::Accept(a) | Verdict::Escalate(a) => assessment(a),
        Verdict::Amend(a) => {
            if a.text.is_empty() {
                return invalid("an amendment without text");
            }
            text("the amendment", &a.text)?;
            assessment(&a.assessment)
        }
        Verdict::Reject(r) => rejection(r),
        Verdict::Undecided if answer.finish == Finish::Unfinished => Ok(()),
        Verdict::Undecided => invalid("undecided about a finished answer"),
    }
}

fn assessment(a: &Assessment) -> Result<(), Invalid> {
    ratio("confidence", a.confidence)?;
    list("findings", a.findings.len())?;
    for f in &a.findings {
        text("a check's name", &f.check)?;
        text("a check's detail", &f.detail)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{DirectAnswer, Refusal, Step};

    fn tiers() -> Vec<TierView> {
        vec![TierView {
            id: "small".into(),
            ..TierView::default()
        }]
    }

    fn plan_on(tier: &str, threshold: f32) -> Decision {
        Decision::Plan(Plan {
            steps: vec![Step {
                tier: tier.into(),
                accept_threshold: threshold,
                ..Step::default()
            }],
            ..Plan::default()
        })
    }

    #[test]
    fn probabilities_must_be_numbers_and_add_up_to_one() {
        let good = Classification::default();
        assert_eq!(classification(&good), Ok(()));
        for (s, m, c) in [
            (f32::NAN, 0.5, 0.5),
            (0.5, 0.5, 0.5),
            (-0.5, 1.0, 0.5),
            (f32::INFINITY, 0.0, 0.0),
            (0.0, 0.0, 0.0),
        ] {
            let bad = Classification {
                p_simple: s,
                p_medium: m,
                p_complex: c,
                ..good.clone()
            };
            assert!(classification(&bad).is_err(), "{s} {m} {c}");
        }
    }

    #[test]
    fn a_plan_may_only_name_candidates_and_the_error_lists_them() {
        assert_eq!(decision(&plan_on("small", 0.5), &tiers()), Ok(()));
        let error = decision(&plan_on("huge", 0.5), &tiers()).unwrap_err();
        assert!(
            error.0.contains("huge") && error.0.contains("small"),
            "{error}"
        );
        assert!(decision(&plan_on("small", f32::NAN), &tiers()).is_err());
        assert!(decision(&Decision::Plan(Plan::default()), &tiers()).is_err());
    }

    #[test]
    fn empty_answers_and_silent_refusals_are_invalid() {
        let empty = Decision::Answer(DirectAnswer::default());
        assert!(decision(&empty, &tiers()).is_err());
        let silent = Decision::Reject(Rejection {
            kind: Refusal::Overloaded,
            message: " ".into(),
            retry_after_ms: None,
        });
        assert!(decision(&silent, &tiers()).is_err());
    }

    #[test]
    fn undecided_is_for_unfinished_answers_only() {
        let done = Answer::default();
        assert!(verdict(&Verdict::Undecided, &done).is_err());
        let partial = Answer {
            finish: Finish::Unfinished,
            ..Answer::default()
        };
        assert_eq!(verdict(&Verdict::Undecided, &partial), Ok(()));
    }

    #[test]
    fn an_answer_of_endless_length_is_invalid() {
        let long = Decision::Answer(DirectAnswer {
            text: "a".repeat(TEXT_BYTES_MAX + 1),
            method: String::new(),
        });
        assert!(decision(&long, &tiers()).is_err());
    }
}
