//! Answers with more text than anybody reads. A host that copies it before it looks at
//! the length is out of memory.

use homeostat_sdk::{Decision, DirectAnswer, Tier};

pub struct It;

impl crate::Guest for It {
    fn decision(&self, _: &[Tier]) -> Decision {
        Decision::Answer(DirectAnswer {
            text: "a".repeat(256 << 20),
            method: "patience".to_owned(),
        })
    }
}
