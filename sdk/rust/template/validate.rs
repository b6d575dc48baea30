//! An answer without text is no answer.

use homeostat_sdk::*;

struct NotEmpty;

impl Validator for NotEmpty {
    fn validate(_: &Request, answer: &Answer, _: &Snapshot) -> Result<Verdict> {
        let passed = !answer.text.trim().is_empty();
        let assessment = Assessment {
            confidence: if passed { 0.5 } else { 0.0 },
            findings: vec![Finding {
                check: "not-empty".into(),
                passed,
                detail: String::new(),
            }],
        };
        Ok(if passed {
            Verdict::Accept(assessment)
        } else {
            Verdict::Escalate(assessment)
        })
    }
}

export_validator!(NotEmpty);
