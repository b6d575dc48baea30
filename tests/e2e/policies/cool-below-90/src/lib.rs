//! One raw temperature decides: what a router should not do with a noisy sensor, and what
//! makes it plain to see which value a decision hangs on.

use homeostat_sdk::*;

struct CoolBelow90;

impl Router for CoolBelow90 {
    fn route(_: &Request, _: &Classification, tiers: &[Tier], seen: &Snapshot) -> Result<Decision> {
        let gpu = seen.devices.iter().find(|device| device.id == "gpu.0");
        let celsius = gpu.and_then(|gpu| gpu.temperature_celsius.as_ref());
        let hot = celsius.is_some_and(|sample| sample.value >= 90.0);
        let tier = if hot { tiers.first() } else { tiers.last() };
        Ok(Decision::Plan(Plan {
            steps: tier
                .into_iter()
                .map(|tier| Step {
                    tier: tier.id.clone(),
                    ..Step::default()
                })
                .collect(),
            reason: if hot { "too hot" } else { "cool" }.to_owned(),
            attributes: Vec::new(),
        }))
    }
}

export_router!(CoolBelow90);
