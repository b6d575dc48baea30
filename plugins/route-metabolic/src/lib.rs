//! Which tier answers? The one whose expected quality is worth its price.
//!
//! Heat, energy and time enter as *prices*, not as rules: each tier costs its effort times
//! the pressure on the machine, and the state of the machine moves the pressure. So a hard
//! request still gets a large model on a warm machine, while an easy one no longer does,
//! and there is no threshold at which everything flips at once. Only five situations are
//! rules, because no price should buy them: a spent budget, a critical state, a full
//! memory, a context that does not fit and a tier that is not ready.
//!
//! What needs no model at all is answered here ([`direct`]).
//!
//! It keeps no state and asks no model. Its settings come from `wasi:config`:
//! `profile` (datacenter, edge, mcu), `energy-price` (a factor), `accept-threshold` and
//! `direct-answers` (off).

mod choose;
pub mod direct;
mod pressure;
mod settings;
mod speculate;

use homeostat_sdk::*;

pub use settings::Settings;

struct Metabolic;

impl Router for Metabolic {
    fn route(
        request: &Request,
        classification: &Classification,
        tiers: &[Tier],
        snapshot: &Snapshot,
    ) -> Result<Decision> {
        let settings = Settings::read(snapshot.profile, config)?;
        Ok(route(request, classification, tiers, snapshot, &settings))
    }
}

export_router!(Metabolic);

/// The decision, without a host.
pub fn route(
    request: &Request,
    classification: &Classification,
    tiers: &[Tier],
    snapshot: &Snapshot,
    settings: &Settings,
) -> Decision {
    if settings.direct_answers
        && let Some(answer) = direct::answer(request)
    {
        return Decision::Answer(answer);
    }
    choose::plan(request, classification, tiers, snapshot, settings)
}

#[cfg(test)]
mod tests;
