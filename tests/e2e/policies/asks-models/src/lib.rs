//! Looks at the host's models, for which it needs the grant `models`.

use homeostat_sdk::*;

struct AsksModels;

impl Router for AsksModels {
    fn route(_: &Request, _: &Classification, tiers: &[Tier], _: &Snapshot) -> Result<Decision> {
        let known = model_names()?;
        let tier = tiers.iter().find(|t| t.ready).or(tiers.first());
        let tier = tier.ok_or("there is no tier")?;
        Ok(plan([tier.id.as_str()], &format!("{} models", known.len())))
    }
}

export_router!(AsksModels);
