//! Is the answer good enough? What can be checked is checked; for the rest the model's own
//! log-probabilities are asked.
//!
//! Checks are deterministic and cheap: arithmetic is computed again, numbers, names and
//! quotes must stand in the text that was supplied, JSON must parse, an answer must not be
//! empty, a refusal, an echo, a loop or cut off. Each failed check shifts the confidence;
//! none decides alone, except that JSON inside a code fence is taken out of it. An answer that
//! is still being written is checked as far as its sentences are whole.
//!
//! A finished answer that works with numbers, to a question that asks for one, is also read for
//! how it was worked out: numbers of the question that it does not use, an expression that breaks
//! off, turns. That moves the confidence within bounds, up or down; how good it is: `worked.txt`.
//! Setting `worked-answers` = `off` leaves it out.
//!
//! How unsure a tier was of its first token counts only where the operator says from where on
//! (setting `first-token-entropy-max`, in nats; off as it comes, since there is no data to derive
//! a bound from): above it a step is left, whatever else speaks for the answer.
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
mod worked;

use homeostat_sdk::*;

/// What an operator can turn.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Settings {
    /// Refuse what is unusable on the last step.
    pub strict: bool,
    /// Entropy of the first token, in nats, above which no answer is accepted as it is while a
    /// step is left. `None`: it is not looked at.
    pub first_token_entropy_max: Option<f64>,
    /// Take no account of how a worked answer was worked out.
    pub ignore_worked: bool,
}

impl Settings {
    /// Those that the operator gives.
    ///
    /// # Errors
    /// When one cannot be read: a validator that ignored it would seem to obey.
    pub fn read(config: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let wrong = |key: &str, value: &str, expected: &str| {
            let text = format!("setting {key} is {value:?}, expected {expected}");
            Error::InvalidArgument(text)
        };
        let is_on = |key: &str, usual: bool| match config(key).as_deref() {
            None => Ok(usual),
            Some("on") => Ok(true),
            Some("off") => Ok(false),
            Some(other) => Err(wrong(key, other, "on or off")),
        };
        let key = "first-token-entropy-max";
        let first_token_entropy_max = match config(key) {
            None => None,
            Some(text) => match text.parse::<f64>() {
                Ok(nats) if (0.0..=NATS_MAX).contains(&nats) => Some(nats),
                _ => return Err(wrong(key, &text, &format!("0 to {NATS_MAX} nats"))),
            },
        };
        Ok(Self {
            strict: is_on("strict", false)?,
            first_token_entropy_max,
            ignore_worked: !is_on("worked-answers", true)?,
        })
    }
}

/// More than the entropy of any vocabulary: that of a million equally likely tokens is 13.8.
const NATS_MAX: f64 = 20.0;

struct Facts;

impl Validator for Facts {
    fn validate(request: &Request, answer: &Answer, _: &Snapshot) -> Result<Verdict> {
        Ok(validate(request, answer, Settings::read(config)?))
    }
}

export_validator!(Facts);

/// The verdict, without a host.
pub fn validate(request: &Request, answer: &Answer, settings: Settings) -> Verdict {
    let beginning = checks::beginning(answer, settings.first_token_entropy_max);
    if answer.finish == Finish::Unfinished {
        return partial(request, answer, beginning);
    }
    if let Some(text) = json::unfenced(request, answer) {
        let amended = Answer {
            text: text.to_owned(),
            ..answer.clone()
        };
        return Verdict::Amend(Amendment {
            text: text.to_owned(),
            assessment: assess(request, &amended, settings).0,
        });
    }
    let (mut assessment, hard) = assess(request, answer, settings);
    let began_well = beginning.as_ref().is_none_or(|check| check.finding.passed);
    assessment
        .findings
        .extend(beginning.map(|check| check.finding));
    let convincing = assessment.confidence >= answer.accept_threshold && !hard && began_well;
    if convincing {
        return Verdict::Accept(assessment);
    }
    if answer.steps_left > 0 {
        return Verdict::Escalate(assessment);
    }
    if settings.strict && hard {
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

/// A partial answer can already have failed, but not yet succeeded. It is left for what would
/// leave the whole one: a check that failed, where the confidence that remains would not be
/// accepted, were the rest as sure as what there is.
fn partial(request: &Request, answer: &Answer, beginning: Option<checks::Check>) -> Verdict {
    let failed = |check: &checks::Check| !check.finding.passed;
    let mut found = checks::so_far(request, answer);
    found.retain(failed);
    let shift = found.iter().map(|check| check.shift).sum();
    let (confidence, _) = confidence::confidence(&answer.logprobs, shift, None);
    let doubted = !found.is_empty() && confidence < answer.accept_threshold;
    let began_badly = beginning.as_ref().is_some_and(failed);
    if answer.steps_left == 0 || !(doubted || began_badly) {
        return Verdict::Undecided;
    }
    found.extend(beginning.filter(failed));
    Verdict::Escalate(Assessment {
        confidence,
        findings: found.into_iter().map(|check| check.finding).collect(),
    })
}

/// All findings, the confidence they leave, and whether a hard check failed.
fn assess(request: &Request, answer: &Answer, settings: Settings) -> (Assessment, bool) {
    let checks = checks::all(request, answer);
    let failed = |c: &&checks::Check| !c.finding.passed;
    let hard = checks.iter().filter(failed).any(|c| c.hard);
    let shift = checks.iter().filter(failed).map(|c| c.shift).sum();
    let is_heard = !settings.ignore_worked;
    let worked = is_heard.then(|| worked::of(request, answer)).flatten();
    let (confidence, finding) = confidence::confidence(&answer.logprobs, shift, worked.as_ref());
    let mut findings: Vec<Finding> = checks.into_iter().map(|c| c.finding).collect();
    findings.push(finding);
    findings.extend(worked.map(|worked| worked.finding()));
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
