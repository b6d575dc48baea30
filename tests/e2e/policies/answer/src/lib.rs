//! Two behaviours that a client can tell apart without reading headers: a direct answer
//! that names the policy, and model answers of different length. They differ in nothing
//! else, so whatever a swap between them disturbs is the swap's doing.

use homeostat_sdk::*;

/// The question that is answered without a model.
const WHO: &str = "Which policy routes you?";

/// Answers `WHO` with `name`; everything else goes to the first tier that is ready, cut
/// after `max_tokens`.
pub fn decide(name: &str, max_tokens: u32, request: &Request, tiers: &[Tier]) -> Result<Decision> {
    if request.messages.last().is_some_and(|m| m.content == WHO) {
        return Ok(Decision::Answer(DirectAnswer {
            text: name.to_owned(),
            method: "named".to_owned(),
        }));
    }
    let tier = tiers.iter().find(|t| t.ready).or(tiers.first());
    let tier = tier.ok_or("there is no tier")?;
    Ok(Decision::Plan(Plan {
        steps: vec![Step {
            tier: tier.id.clone(),
            max_tokens: Some(max_tokens),
            ..Step::default()
        }],
        reason: format!("as {name} does"),
        attributes: Vec::new(),
    }))
}
