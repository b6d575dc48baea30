//! Answers numbers beyond their ranges and texts that are empty: probabilities that add up
//! to three, more draft tokens than anybody verifies, an amendment without text.

use homeostat_sdk::{
    Amendment, Assessment, Classification, Decision, Plan, Step, Tier, Verdict,
};

pub struct It;

impl crate::Guest for It {
    fn classification(&self) -> Classification {
        Classification {
            p_simple: 1.0,
            p_medium: 1.0,
            p_complex: 1.0,
            ..Classification::default()
        }
    }

    fn decision(&self, tiers: &[Tier]) -> Decision {
        let step = Step {
            tier: tiers.first().map(|t| t.id.clone()).unwrap_or_default(),
            max_draft_tokens: 65_536,
            ..Step::default()
        };
        Decision::Plan(Plan {
            steps: vec![step],
            reason: String::new(),
            attributes: Vec::new(),
        })
    }

    fn verdict(&self) -> Verdict {
        Verdict::Amend(Amendment {
            text: String::new(),
            assessment: Assessment::default(),
        })
    }
}
