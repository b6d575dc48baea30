//! Which tier answers? Expected quality minus prices that heat and energy shift.

use homeostat_sdk::*;

struct Metabolic;

impl Router for Metabolic {
    fn route(_: &Request, _: &Classification, tiers: &[Tier], _: &Snapshot) -> Result<Decision> {
        let _ = config("profile");
        let ready = tiers.iter().filter(|t| t.ready).map(|t| t.id.as_str());
        Ok(plan(ready, "smallest first"))
    }
}

export_router!(Metabolic);
