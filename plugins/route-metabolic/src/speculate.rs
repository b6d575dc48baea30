//! Whether to guess ahead, and how far?
//!
//! Drafts spend arithmetic to save time. Whether that costs or saves energy depends on the
//! models, the texts and the batch, so the host measures both kinds of answers of each tier and
//! tells it by attributes. Drafts that save energy go on on a hot machine and on battery: heat is
//! a reason to stop only what costs energy. Drafts that save neither stop everywhere. Once one
//! kind is measured, one request in [`TRY_ONE_IN`] is of the other, so that both become known and
//! stay so.
//!
//! Where nothing was measured, headroom decides. A thermometer that is not there is no reason to
//! stop: the engine verifies no more of a draft than its measured step times make worth it.

use homeostat_sdk::*;

use crate::conversation;
use crate::settings::{Settings, Speculation};

/// Headroom from which drafts do no harm: what a die climbs in about ten seconds.
const HEADROOM_CELSIUS: f64 = 15.0;

/// With the token that is certain anyway, a step of 16 rows: where a CPU's kernels stop getting
/// cheaper by the row. How much of it is used is the engine's decision, step by step.
const DRAFT_TOKENS: u32 = 15;
/// A draft this short is still worth the asking.
const DRAFT_TOKENS_MIN: f64 = 3.0;
/// A place of a draft that is reached less often than this is not worth its row.
const REACHED_MIN: f64 = 0.1;
/// Differences below this are noise.
const NOISE: f64 = 0.02;
/// Of so many requests one does what the others do not.
const TRY_ONE_IN: u64 = 16;

/// What answers with drafts take of what answers without take; 1 = as much.
struct Measured {
    time: f64,
    energy: Option<f64>,
}

impl Measured {
    fn of(tier: &Tier) -> Option<Self> {
        let ratio = |drafted: &str, plain: &str| {
            let (drafted, plain) = (number(tier, drafted)?, number(tier, plain)?);
            (plain > 0.0).then(|| drafted / plain)
        };
        Some(Self {
            time: ratio("homeostat.tpot-drafted-ms", "homeostat.tpot-plain-ms")?,
            energy: ratio("homeostat.joules-drafted", "homeostat.joules-plain"),
        })
    }
}

pub(crate) fn max_draft_tokens(
    request: &Request,
    tier: &Tier,
    snapshot: &Snapshot,
    settings: &Settings,
) -> u32 {
    if !tier.can_speculate || settings.speculation == Speculation::Off {
        return 0;
    }
    let measured = Measured::of(tier);
    let mut guesses = match &measured {
        Some(m) => pays(m, snapshot, settings),
        None => may(snapshot, settings),
    };
    let calm = snapshot.metabolism.state <= MetabolicState::Elevated;
    if calm && is_measured(tier) && conversation::is_one_in(&request.id, TRY_ONE_IN) {
        guesses = !guesses;
    }
    if guesses { length(tier) } else { 0 }
}

/// Whether answers of either kind were.
fn is_measured(tier: &Tier) -> bool {
    let kinds = ["homeostat.tpot-plain-ms", "homeostat.tpot-drafted-ms"];
    kinds.iter().any(|kind| number(tier, kind).is_some())
}

/// What was measured: energy first, and time where energy has no opinion or the machine has
/// energy to spare.
fn pays(m: &Measured, snapshot: &Snapshot, settings: &Settings) -> bool {
    let faster = m.time < 1.0 - NOISE;
    match m.energy {
        Some(energy) if energy < 1.0 - NOISE => m.time < 1.0 + NOISE,
        Some(energy) if energy > 1.0 + NOISE => {
            let on_battery = snapshot.supply.as_ref().is_some_and(|s| s.on_battery);
            faster && !on_battery && may(snapshot, settings)
        }
        Some(_) => faster,
        None => faster && may(snapshot, settings),
    }
}

/// Whether the machine could bear what drafts may cost.
fn may(snapshot: &Snapshot, settings: &Settings) -> bool {
    let m = &snapshot.metabolism;
    if m.state > MetabolicState::Elevated || m.speculation == SpeculationHint::Avoid {
        return false;
    }
    let headroom = headroom_celsius(snapshot).is_none_or(|h| h >= HEADROOM_CELSIUS);
    match (settings.speculation, m.speculation) {
        (_, SpeculationHint::Prefer) | (Speculation::Always, _) => true,
        _ => headroom && m.state == MetabolicState::Nominal,
    }
}

/// As far as a draft is reached often enough, by the share of its tokens that held.
fn length(tier: &Tier) -> u32 {
    match number(tier, "homeostat.draft-accepted-ratio") {
        Some(held) if held > 0.0 && held < 1.0 => {
            let reached = REACHED_MIN.ln() / held.ln();
            reached
                .ceil()
                .clamp(DRAFT_TOKENS_MIN, f64::from(DRAFT_TOKENS)) as u32
        }
        Some(held) if held <= 0.0 => DRAFT_TOKENS_MIN as u32,
        _ => DRAFT_TOKENS,
    }
}

/// A number that the host tells of a tier.
pub(crate) fn number(tier: &Tier, key: &str) -> Option<f64> {
    match tier.attributes.iter().find(|(name, _)| name == key)? {
        (_, Value::Number(number)) if number.is_finite() => Some(*number),
        _ => None,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A tier whose drafts take so much of the time and energy of plain decoding.
    fn tier(time: Option<f64>, energy: Option<f64>, held: Option<f64>) -> Tier {
        let told = |key: &str, value| (format!("homeostat.{key}"), Value::Number(value));
        let pair = |a: &str, b: &str, ratio: f64| [told(a, ratio * 3.0), told(b, 3.0)];
        let mut attributes = Vec::new();
        attributes.extend(
            time.into_iter()
                .flat_map(|t| pair("tpot-drafted-ms", "tpot-plain-ms", t)),
        );
        attributes.extend(
            energy
                .into_iter()
                .flat_map(|e| pair("joules-drafted", "joules-plain", e)),
        );
        attributes.extend(held.map(|h| told("draft-accepted-ratio", h)));
        Tier {
            can_speculate: true,
            attributes,
            ..Tier::default()
        }
    }

    fn machine(state: MetabolicState, on_battery: bool) -> Snapshot {
        Snapshot {
            metabolism: Metabolism {
                state,
                speculation: match state {
                    MetabolicState::Constrained => SpeculationHint::Avoid,
                    _ => SpeculationHint::Neutral,
                },
                ..Metabolism::default()
            },
            supply: Some(Supply {
                on_battery,
                ..Supply::default()
            }),
            ..Snapshot::default()
        }
    }

    #[test]
    fn heat_and_battery_stop_only_what_costs_energy_and_nothing_goes_on_that_pays_nothing() {
        use MetabolicState::{Constrained, Nominal};
        let (cool, hot) = (machine(Nominal, false), machine(Constrained, false));
        let battery = machine(Nominal, true);
        let settings = Settings::preset(Profile::Edge);
        for (time, energy, expected) in [
            (0.6, Some(0.7), [true, true, true]),
            (0.6, Some(1.3), [true, false, false]),
            (1.2, Some(1.3), [false, false, false]),
            (1.2, Some(0.7), [false, false, false]),
            (0.6, Some(1.0), [true, true, true]),
            (0.6, None, [true, false, true]),
            (1.0, None, [false, false, false]),
        ] {
            let tier = tier(Some(time), energy, None);
            let found = [&cool, &hot, &battery].map(|snapshot| {
                // Most requests; the others keep the measurement alive.
                let guessing = (0..160).filter(|n| {
                    let request = Request {
                        id: format!("req-{n}"),
                        ..Request::default()
                    };
                    max_draft_tokens(&request, &tier, snapshot, &settings) > 0
                });
                guessing.count()
            });
            for (found, expected) in found.into_iter().zip(expected) {
                let most = if expected { found > 130 } else { found < 30 };
                assert!(most, "{time} {energy:?}: {found} of 160");
            }
            let tried = found[0] > 0 && found[0] < 160;
            assert!(tried, "{time} {energy:?}: both kinds stay measured");
            assert!(
                matches!(found[1], 0 | 160),
                "nothing is tried on a hot machine"
            );
        }
    }

    #[test]
    fn where_only_one_kind_was_measured_the_other_is_tried() {
        let cool = machine(MetabolicState::Nominal, false);
        let hot = machine(MetabolicState::Constrained, false);
        let settings = Settings::preset(Profile::Edge);
        let plain = |snapshot: &Snapshot, tier: &Tier| {
            let drafts = (0..160).map(|n| {
                let request = Request {
                    id: format!("req-{n}"),
                    ..Request::default()
                };
                max_draft_tokens(&request, tier, snapshot, &settings)
            });
            drafts.filter(|drafts| *drafts == 0).count()
        };
        let new = tier(None, None, None);
        assert_eq!([plain(&cool, &new), plain(&hot, &new)], [0, 160]);
        let mut drafted = tier(Some(0.6), None, None);
        drafted
            .attributes
            .retain(|(key, _)| key.ends_with("drafted-ms"));
        assert!((1..30).contains(&plain(&cool, &drafted)));
        let mut undrafted = tier(Some(0.6), None, None);
        undrafted
            .attributes
            .retain(|(key, _)| key.ends_with("plain-ms"));
        assert_eq!(plain(&hot, &undrafted), 160);
    }

    #[test]
    fn drafts_are_as_long_as_they_are_reached() {
        let of = |held| length(&tier(None, None, held));
        assert_eq!([None, Some(1.0), Some(0.9)].map(of), [15, 15, 15]);
        assert_eq!(
            [Some(0.7), Some(0.5), Some(0.1), Some(0.0)].map(of),
            [7, 4, 3, 3]
        );
    }
}
