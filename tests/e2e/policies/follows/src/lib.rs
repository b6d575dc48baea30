//! Every ready tier in turn, smallest first; of an answer that may still be escalated the client
//! is eight tokens behind.

use homeostat_sdk::*;

struct Follows;

impl Router for Follows {
    fn route(_: &Request, _: &Classification, tiers: &[Tier], _: &Snapshot) -> Result<Decision> {
        let mut chosen: Vec<&Tier> = tiers.iter().filter(|t| t.ready).collect();
        if chosen.is_empty() {
            chosen.extend(tiers.first());
        }
        Ok(Decision::Plan(Plan {
            steps: chosen
                .into_iter()
                .map(|tier| Step {
                    tier: tier.id.clone(),
                    hold_back_tokens: 8,
                    accept_threshold: 0.5,
                    max_draft_tokens: 7,
                    ..Step::default()
                })
                .collect(),
            reason: "every tier in turn, eight tokens ahead".to_owned(),
            attributes: Vec::new(),
        }))
    }
}

export_router!(Follows);
