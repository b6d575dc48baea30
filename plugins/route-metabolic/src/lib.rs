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
//! It asks no model. From what became of its decisions it learns what a budget's joule is
//! worth ([`prices`]), what tiers take ([`figures`]) and where conversations were answered
//! ([`conversation`]); that is kept in the host's key-value state ([`memory`]). Its settings
//! come from `wasi:config`: `profile` (datacenter, edge, mcu), `energy-price` (a factor),
//! `accept-threshold`, `noticed-ratio`, `doubted-ratio`, `classifier-temperature`, `dwell-seconds`
//! and `direct-answers` (off); `homeostat policy calibrate` fits four of them to one's own
//! decisions.

mod choose;
mod conversation;
pub mod direct;
mod figures;
mod memory;
mod pair;
mod pressure;
mod prices;
mod settings;
mod speculate;

use homeostat_sdk::*;

pub use memory::{Memory, learn};
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
        let memory = Memory::read(request, tiers, snapshot, kept);
        Ok(route(
            request,
            classification,
            tiers,
            snapshot,
            &settings,
            &memory,
        ))
    }
}

impl Learner for Metabolic {
    fn learn(request: &Request, outcome: &Outcome) {
        let Ok(snapshot) = current() else {
            return;
        };
        // What cannot be kept is learned again, or never: no request depends on it.
        learn(request, outcome, &snapshot, kept, |key, text| {
            if let Err(error) = state::set(key, text.as_bytes()) {
                log(Level::Debug, &format!("{key} is not kept: {error}"));
            }
        });
    }
}

export_learning_router!(Metabolic);

fn kept(key: &str) -> Option<Vec<u8>> {
    state::get(key).ok().flatten()
}

/// The decision, without a host.
pub fn route(
    request: &Request,
    classification: &Classification,
    tiers: &[Tier],
    snapshot: &Snapshot,
    settings: &Settings,
    memory: &Memory,
) -> Decision {
    if settings.direct_answers
        && let Some(answer) = direct::answer(request)
    {
        return Decision::Answer(answer);
    }
    choose::plan(&choose::Question {
        request,
        classification,
        tiers,
        snapshot,
        settings,
        memory,
    })
}

#[cfg(test)]
mod tests;
