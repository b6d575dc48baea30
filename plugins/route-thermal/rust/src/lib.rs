//! A small router by heat and difficulty. The same in four languages: see the README one
//! folder up.

use homeostat_sdk::*;

/// Distances to the first slowdown, in °C, from which a device counts as hot or warm.
const HOT_CELSIUS: f64 = 5.0;
const WARM_CELSIUS: f64 = 15.0;

/// Draft tokens where speculation is allowed.
const DRAFT_TOKENS: u32 = 4;

/// When to try again, if nothing is ready.
const RETRY_MS: u32 = 1000;

struct Thermal;

#[derive(PartialEq)]
enum Heat {
    Cool,
    Warm,
    Hot,
}

fn heat(snapshot: &Snapshot) -> Heat {
    let devices = snapshot.devices.iter();
    let margins = devices.filter_map(|d| d.thermal_margin_celsius.map(|m| m.value));
    let margin = margins.fold(f64::INFINITY, f64::min);
    match snapshot.metabolism.state {
        MetabolicState::Constrained | MetabolicState::Critical => Heat::Hot,
        _ if margin <= HOT_CELSIUS => Heat::Hot,
        MetabolicState::Elevated => Heat::Warm,
        _ if margin <= WARM_CELSIUS => Heat::Warm,
        _ => Heat::Cool,
    }
}

impl Router for Thermal {
    fn route(_: &Request, c: &Classification, tiers: &[Tier], s: &Snapshot) -> Result<Decision> {
        let ready: Vec<&Tier> = tiers.iter().filter(|t| t.ready).collect();
        let Some(last) = ready.len().checked_sub(1) else {
            return Ok(Decision::Reject(Rejection {
                kind: Refusal::Overloaded,
                message: "no tier is ready".into(),
                retry_after_ms: Some(RETRY_MS),
            }));
        };
        let (wanted, word) = if c.p_simple >= 0.5 {
            (0, "smallest")
        } else if c.p_complex >= 0.5 {
            (last, "largest")
        } else {
            (ready.len() / 2, "middle")
        };
        let heat = heat(s);
        let (asked, reason) = match heat {
            Heat::Hot => (0..1, "hot: only the smallest".to_owned()),
            Heat::Warm => {
                let smaller = wanted.saturating_sub(1);
                (smaller..smaller + 1, "warm: one size smaller".to_owned())
            }
            Heat::Cool => (wanted..last + 1, format!("cool: from the {word}")),
        };
        let guess = heat != Heat::Hot && s.metabolism.speculation != SpeculationHint::Avoid;
        let step = |tier: &&Tier| Step {
            tier: tier.id.clone(),
            max_draft_tokens: if guess && tier.can_speculate {
                DRAFT_TOKENS
            } else {
                0
            },
            accept_threshold: 0.5,
            ..Step::default()
        };
        Ok(Decision::Plan(Plan {
            steps: ready[asked].iter().map(step).collect(),
            reason,
            attributes: Vec::new(),
        }))
    }
}

export_router!(Thermal);

#[cfg(test)]
mod tests {
    use super::*;
    use homeostat_cases::Reply;

    #[test]
    fn every_case_holds() {
        homeostat_cases::run(include_str!("../../cases.toml"), |case| {
            let decision = Thermal::route(
                &case.request,
                &case.classification,
                &case.tiers,
                &case.snapshot,
            );
            Reply::Decision(decision.expect("it answers every case"))
        });
    }
}
