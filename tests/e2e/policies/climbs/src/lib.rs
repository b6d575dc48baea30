//! Every ready tier in turn, smallest first. No answer of a model is certain, so with an
//! acceptance threshold of 1 each step but the last is doubted.

use homeostat_sdk::*;

struct Climbs;

impl Router for Climbs {
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
                    accept_threshold: 1.0,
                    ..Step::default()
                })
                .collect(),
            reason: "every tier in turn".to_owned(),
            attributes: Vec::new(),
        }))
    }
}

export_router!(Climbs);
