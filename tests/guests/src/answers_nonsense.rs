//! Answers in the right form what no host could act on: a probability that is no number,
//! a tier that does not exist, indecision about a finished answer.

use homeostat_sdk::{Classification, Decision, Tier, Verdict, plan};

pub struct It;

impl crate::Guest for It {
    fn classification(&self) -> Classification {
        Classification {
            p_simple: f32::NAN,
            ..Classification::default()
        }
    }

    fn decision(&self, tiers: &[Tier]) -> Decision {
        if tiers.len() == 1 {
            return plan([], "a plan without steps");
        }
        plan(["no-such-tier"], "a tier nobody has")
    }

    fn verdict(&self) -> Verdict {
        Verdict::Undecided
    }
}
