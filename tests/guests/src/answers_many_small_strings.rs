//! Each text is short, but there are half a million of them: a limit on the length of one
//! text does not help.

use homeostat_sdk::{Assessment, Finding, Verdict};

pub struct It;

impl crate::Guest for It {
    fn verdict(&self) -> Verdict {
        let finding = Finding {
            check: String::new(),
            passed: true,
            detail: String::new(),
        };
        Verdict::Accept(Assessment {
            confidence: 0.5,
            findings: vec![finding; 500_000],
        })
    }
}
