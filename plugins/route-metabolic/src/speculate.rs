//! How many draft tokens are worth trying?
//!
//! Drafts spend arithmetic to save time. Whether that costs or saves energy depends on the
//! pair of models and is measured by the host, whose hint therefore comes first; headroom
//! decides only where the host has no opinion. A thermometer that is not there is no reason to
//! stop: the engine verifies no more of a draft than its measured step times make worth it.

use homeostat_sdk::*;

use crate::settings::{Settings, Speculation};

/// Headroom from which drafts do no harm: what a die climbs in about ten seconds.
const HEADROOM_CELSIUS: f64 = 15.0;

/// With the token that is certain anyway, a step of 16 rows: where a CPU's kernels stop getting
/// cheaper by the row. How much of it is used is the engine's decision, step by step.
const DRAFT_TOKENS: u32 = 15;

pub(crate) fn max_draft_tokens(tier: &Tier, snapshot: &Snapshot, settings: &Settings) -> u32 {
    let m = &snapshot.metabolism;
    let calm = m.state <= MetabolicState::Elevated && m.speculation != SpeculationHint::Avoid;
    if !tier.can_speculate || !calm || settings.speculation == Speculation::Off {
        return 0;
    }
    let headroom = headroom_celsius(snapshot).is_none_or(|h| h >= HEADROOM_CELSIUS);
    match (settings.speculation, m.speculation) {
        (_, SpeculationHint::Prefer) | (Speculation::Always, _) => DRAFT_TOKENS,
        (Speculation::Conditional, _) if headroom && m.state == MetabolicState::Nominal => {
            DRAFT_TOKENS
        }
        _ => 0,
    }
}

/// The smallest distance of any device to its slowdown, now or as forecast.
pub(crate) fn headroom_celsius(snapshot: &Snapshot) -> Option<f64> {
    snapshot
        .devices
        .iter()
        .flat_map(|d| {
            let now = d.thermal_margin_celsius.map(|s| s.value);
            let soon = d.forecast.map(|f| f64::from(f.margin_celsius));
            now.into_iter().chain(soon)
        })
        .min_by(f64::total_cmp)
}
