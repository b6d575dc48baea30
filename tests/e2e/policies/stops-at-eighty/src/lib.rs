//! Doubts a part of an answer as soon as it has 80 bytes, while a step is left; accepts all that
//! is whole. So a stream is left in its middle whatever the model says.

use homeostat_sdk::*;

struct StopsAtEighty;

impl Validator for StopsAtEighty {
    fn validate(_: &Request, answer: &Answer, _: &Snapshot) -> Result<Verdict> {
        let assessment = |confidence, passed| Assessment {
            confidence,
            findings: vec![Finding {
                check: "length".to_owned(),
                passed,
                detail: format!("{} bytes", answer.text.len()),
            }],
        };
        Ok(match answer.finish {
            Finish::Unfinished if answer.text.len() < 80 || answer.steps_left == 0 => {
                Verdict::Undecided
            }
            Finish::Unfinished => Verdict::Escalate(assessment(0.1, false)),
            Finish::Stop | Finish::Length => Verdict::Accept(assessment(0.9, true)),
        })
    }
}

export_validator!(StopsAtEighty);
