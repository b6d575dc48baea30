//! Is the answer good enough? What can be checked is checked; for the rest the model's own
//! log-probabilities are asked.
//!
//! Checks are deterministic and cheap: arithmetic is computed again, numbers, names and
//! quotes must stand in the text that was supplied, JSON must parse, an answer must not be
//! empty, a refusal, an echo, a loop or cut off. Each failed check shifts the confidence;
//! none decides alone, except that JSON inside a code fence is taken out of it.
//!
//! The last step's answer is sent even when it is doubted, with its low confidence on
//! record: a doubtful answer is worth more than none, unless the operator says otherwise
//! (setting `strict` = `on`: then an empty answer, or one that is not the JSON that was
//! asked for, is refused).
//!
//! It does not know what is true: it finds contradictions, not falsehoods.

mod checks;
mod confidence;
mod grounded;
mod json;
mod text;

use homeostat_sdk::*;

struct Facts;

impl Validator for Facts {
    fn validate(request: &Request, answer: &Answer, _: &Snapshot) -> Result<Verdict> {
        let strict = match config("strict").as_deref() {
            None | Some("off") => false,
            Some("on") => true,
            Some(other) => {
                let text = format!("setting strict is {other:?}, expected on or off");
                return Err(Error::InvalidArgument(text));
            }
        };
        Ok(validate(request, answer, strict))
    }
}

export_validator!(Facts);

/// The verdict, without a host.
pub fn validate(request: &Request, answer: &Answer, strict: bool) -> Verdict {
    if answer.finish == Finish::Unfinished {
        return partial(answer);
    }
    if let Some(text) = json::unfenced(request, answer) {
        let amended = Answer {
            text: text.to_owned(),
            ..answer.clone()
        };
        return Verdict::Amend(Amendment {
            text: text.to_owned(),
            assessment: assess(request, &amended).0,
        });
    }
    let (assessment, hard) = assess(request, answer);
    let convincing = assessment.confidence >= answer.accept_threshold && !hard;
    if convincing {
        return Verdict::Accept(assessment);
    }
    if answer.steps_left > 0 {
        return Verdict::Escalate(assessment);
    }
    if strict && hard {
        let failed = assessment.findings.iter().find(|f| !f.passed);
        return Verdict::Reject(Rejection {
            kind: Refusal::Unreliable,
            message: failed.map_or_else(String::new, |f| {
                format!("no tier gave a usable answer: {}", f.detail)
            }),
            retry_after_ms: None,
        });
    }
    Verdict::Accept(assessment)
}

/// A partial answer can already have failed, but not yet succeeded.
fn partial(answer: &Answer) -> Verdict {
    let failed: Vec<Finding> = [checks::repetition(answer), checks::refusal(answer)]
        .into_iter()
        .map(|check| check.finding)
        .filter(|finding| !finding.passed)
        .collect();
    if failed.is_empty() || answer.steps_left == 0 {
        return Verdict::Undecided;
    }
    Verdict::Escalate(Assessment {
        confidence: 0.1,
        findings: failed,
    })
}

/// All findings, the confidence they leave, and whether a hard check failed.
fn assess(request: &Request, answer: &Answer) -> (Assessment, bool) {
    let checks = checks::all(request, answer);
    let failed = |c: &&checks::Check| !c.finding.passed;
    let hard = checks.iter().filter(failed).any(|c| c.hard);
    let shift = checks.iter().filter(failed).map(|c| c.shift).sum();
    let (confidence, finding) = confidence::confidence(&answer.logprobs, shift);
    let mut findings: Vec<Finding> = checks.into_iter().map(|c| c.finding).collect();
    findings.push(finding);
    let confidence = if hard {
        confidence.min(0.05)
    } else {
        confidence
    };
    (
        Assessment {
            confidence,
            findings,
        },
        hard,
    )
}

#[cfg(test)]
mod tests;
