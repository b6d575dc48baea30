//! Always the smallest tier that is ready.

use homeostat_sdk::*;

struct Smallest;

impl Router for Smallest {
    fn route(_: &Request, _: &Classification, tiers: &[Tier], _: &Snapshot) -> Result<Decision> {
        let tier = tiers.iter().find(|t| t.ready).ok_or("no tier is ready")?;
        Ok(plan([tier.id.as_str()], "always the smallest"))
    }
}

export_router!(Smallest);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_that_is_not_ready_is_passed_over() {
        let tiers = [("small", false), ("large", true)].map(|(id, ready)| Tier {
            id: id.into(),
            ready,
            ..Tier::default()
        });
        let decision =
            Smallest::route(&Request::default(), &Classification::default(), &tiers, &Snapshot::default());
        assert_eq!(decision, Ok(plan(["large"], "always the smallest")));
    }
}
