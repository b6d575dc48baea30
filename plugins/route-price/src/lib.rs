//! Which tier is worth its price? The one with the most value left after its cost.
//!
//! ```text
//! worth(t) = value · P(t answers well) − tokens · price − joules · price of energy − seconds · price of time
//! ```
//!
//! Everything is money: `value` is what a good answer is worth to the operator, in US dollars.
//! So nothing has to be weighed against anything else, and a tier that costs more must earn
//! more. What nobody knows of a tier costs nothing, but for one thing: a remote tier without a
//! price is asked only when no other is ready.

use homeostat_sdk::*;

/// Tokens of an answer when nothing limits it.
const ANSWER_TOKENS: u32 = 256;
/// Bytes per token, low on purpose: the dear side.
const BYTES_PER_TOKEN: u64 = 3;
/// Expected share of good answers of the smallest and the largest tier, where the operator
/// states none; tiers between them lie between.
const UNSTATED: (f64, f64) = (0.6, 0.9);
const JOULES_PER_KWH: f64 = 3.6e6;

/// What the operator is willing to pay, in US dollars.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// What a good answer is worth.
    pub value_usd: f64,
    /// A kilowatt-hour.
    pub usd_per_kwh: f64,
    /// A second that somebody waits.
    pub usd_per_second: f64,
}

impl Settings {
    /// The defaults with the operator's settings over them.
    ///
    /// # Errors
    /// When a setting is no number in its range: a router that ignored it would seem to obey.
    pub fn read(config: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let number = |key: &str, default: f64| match config(key) {
            None => Ok(default),
            Some(text) => match text.parse::<f64>() {
                Ok(n) if (0.0..=1e6).contains(&n) => Ok(n),
                _ => Err(Error::InvalidArgument(format!(
                    "setting {key} is {text:?}, expected US dollars from 0 to 1000000"
                ))),
            },
        };
        Ok(Self {
            // A cent; some thousand tokens of a large hosted model.
            value_usd: number("value-usd", 0.01)?,
            usd_per_kwh: number("usd-per-kwh", 0.3)?,
            usd_per_second: number("usd-per-second", 0.0)?,
        })
    }
}

struct Price;

impl Router for Price {
    fn route(r: &Request, c: &Classification, tiers: &[Tier], _: &Snapshot) -> Result<Decision> {
        Ok(route(r, c, tiers, &Settings::read(config)?))
    }
}

export_router!(Price);

/// The decision, without a host.
pub fn route(
    request: &Request,
    classification: &Classification,
    tiers: &[Tier],
    settings: &Settings,
) -> Decision {
    let mut ready: Vec<&Tier> = tiers.iter().filter(|t| t.ready).collect();
    if ready.iter().any(|t| has_price(t)) {
        ready.retain(|t| has_price(t));
    }
    let mut best: Option<(&Tier, f64, f64)> = None;
    for (i, tier) in ready.iter().enumerate() {
        let quality = quality(tier, i, ready.len(), classification);
        let cost = cost(tier, request, settings);
        let worth = settings.value_usd * quality - cost;
        // Of equals the smaller.
        if best.is_none_or(|(_, _, most)| worth > most) {
            best = Some((tier, cost, worth));
        }
    }
    let Some((tier, cost, worth)) = best else {
        return Decision::Reject(Rejection {
            kind: Refusal::Overloaded,
            message: "no tier is ready".into(),
            retry_after_ms: Some(1000),
        });
    };
    let reason = format!(
        "{} is worth {worth:.5} $ after a cost of {cost:.5} $",
        tier.id
    );
    plan([tier.id.as_str()], &reason)
}

fn has_price(tier: &Tier) -> bool {
    tier.kind != TierKind::Remote
        || tier.usd_per_mtok_prompt.is_some()
        || tier.usd_per_mtok_output.is_some()
}

/// Expected share of good answers to such a request.
fn quality(tier: &Tier, index: usize, count: usize, c: &Classification) -> f64 {
    let (simple, medium, complex) = tier.quality;
    if (simple, medium, complex) == (0.0, 0.0, 0.0) {
        let at = index as f64 / count.saturating_sub(1).max(1) as f64;
        return UNSTATED.0 + (UNSTATED.1 - UNSTATED.0) * at;
    }
    f64::from(c.p_simple * simple + c.p_medium * medium + c.p_complex * complex)
}

/// What the answer is expected to cost, in US dollars.
fn cost(tier: &Tier, request: &Request, settings: &Settings) -> f64 {
    let shown: u64 = request
        .messages
        .iter()
        .map(|m| m.content.len() as u64)
        .sum();
    let prompt_tokens = (shown.saturating_add(request.cut_bytes) / BYTES_PER_TOKEN) as f64;
    let answer_tokens = f64::from(
        request
            .max_tokens
            .unwrap_or(ANSWER_TOKENS)
            .min(ANSWER_TOKENS),
    );
    let known = |sample: Option<Sample>| sample.map_or(0.0, |s| s.value.max(0.0));
    let tokens = tier.usd_per_mtok_prompt.unwrap_or(0.0) * prompt_tokens
        + tier.usd_per_mtok_output.unwrap_or(0.0) * answer_tokens;
    let joules = known(tier.joules_per_token) * answer_tokens;
    let waiting = f64::from(tier.num_requests_waiting);
    let ms = known(tier.ttft_ms) * (1.0 + waiting) + known(tier.tpot_ms) * answer_tokens;
    tokens / 1e6
        + joules / JOULES_PER_KWH * settings.usd_per_kwh
        + ms / 1e3 * settings.usd_per_second
}

#[cfg(test)]
mod tests {
    use super::*;
    use homeostat_cases::Reply;

    #[test]
    fn every_case_holds() {
        homeostat_cases::run(include_str!("../cases.toml"), |case| {
            let settings = match Settings::read(|key| case.setting(key)) {
                Ok(settings) => settings,
                Err(error) => return Reply::Error(error.to_string()),
            };
            Reply::Decision(route(
                &case.request,
                &case.classification,
                &case.tiers,
                &settings,
            ))
        });
    }

    #[test]
    fn a_dearer_tier_is_never_chosen_more_often_and_a_better_answer_never_less() {
        let tier = |id: &str, quality: f32, usd: f64| Tier {
            id: id.into(),
            ready: true,
            quality: (quality, quality, quality),
            usd_per_mtok_output: Some(usd),
            ..Tier::default()
        };
        let large_at = |usd: f64, value_usd: f64| {
            let settings = Settings {
                value_usd,
                usd_per_kwh: 0.0,
                usd_per_second: 0.0,
            };
            let tiers = [tier("small", 0.5, 1.0), tier("large", 0.9, usd)];
            let decision = route(
                &Request::default(),
                &Classification::default(),
                &tiers,
                &settings,
            );
            matches!(decision, Decision::Plan(p) if p.steps[0].tier == "large")
        };
        for steps in 0..200 {
            let (usd, value) = (f64::from(steps), f64::from(steps) / 1e4);
            assert!(large_at(usd, 0.01) || !large_at(usd + 1.0, 0.01), "{usd} $");
            assert!(
                large_at(20.0, value + 1e-4) || !large_at(20.0, value),
                "{value} $"
            );
        }
        assert!(large_at(0.0, 0.01) && !large_at(100.0, 0.01));
    }
}
