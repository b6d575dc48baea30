//! Expected quality minus price, over the tiers and over what may follow each.
//!
//! For tier *t* with expected share of good answers *q* and effort *e* (0 to 1, never
//! falling with size):
//!
//! ```text
//! worth(t) = q + credit for what may follow − pressure · e − waiting − money
//! ```
//!
//! The credit is computed at the profile's own price, without the machine's pressure. The
//! machine then enters only through `pressure · e`, and since *e* never falls with size, a
//! hotter machine can move the first tier down but never up.

use homeostat_sdk::*;

use crate::pressure::{self, Pressure, unit};
use crate::settings::Settings;
use crate::speculate;

/// Shares of simple, medium and complex requests in ordinary traffic (middle of the ranges
/// in "The AI Inference Crisis"): what is believed as far as the classifier is not.
const ORDINARY: (f32, f32, f32) = (0.55, 0.3, 0.15);
/// Quality of a tier whose operator states none: smallest and largest, on simple, medium
/// and complex requests; tiers between them lie between.
const UNSTATED: [(f32, f32, f32); 2] = [(0.85, 0.5, 0.2), (0.95, 0.88, 0.75)];
/// Share of wrong answers that a validator notices, and of right ones that it doubts.
const NOTICED: f32 = 0.7;
const DOUBTED: f32 = 0.15;
/// Better by less than this is not worth a second try.
const STEP_UP_MIN: f32 = 0.03;
/// Tokens of an answer when nothing limits it.
const ANSWER_TOKENS: f32 = 256.0;
/// Tokens kept back while an answer may still be escalated: about two sentences, in which
/// a model that does not know usually shows it.
const HOLD_BACK_TOKENS: u32 = 32;
/// Bytes per token, low on purpose: a prompt that barely fits is better sent elsewhere.
const BYTES_PER_TOKEN: u64 = 3;

/// A candidate with what it is expected to give and to take.
struct Candidate<'a> {
    tier: &'a Tier,
    quality: f32,
    effort: f32,
    /// Waiting and money.
    other_price: f32,
}

pub(crate) fn plan(
    request: &Request,
    classification: &Classification,
    tiers: &[Tier],
    snapshot: &Snapshot,
    settings: &Settings,
) -> Decision {
    let pressure = pressure::read(snapshot);
    let all = candidates(request, classification, tiers, settings);
    if all.is_empty() {
        return Decision::Reject(Rejection {
            kind: Refusal::Overloaded,
            message: "no tier is ready to answer; try again shortly".to_owned(),
            retry_after_ms: Some(1000),
        });
    }
    let (all, left_out) = permitted(all, &pressure);
    let price = settings.energy_price + pressure.price;
    let best = best(&all, price, settings);
    let moved = best > 0 && is_moved(request, snapshot.metabolism.degrade_ratio);
    let first = best - usize::from(moved);
    let chain = chain(&all, first, &pressure, price, settings);
    let steps = steps(&chain, classification, snapshot, &pressure, settings);
    Decision::Plan(Plan {
        reason: reason(
            &all, &chain, &pressure, price, moved, left_out, snapshot, settings,
        ),
        steps,
        attributes: vec![(
            "route-metabolic.energy-price".to_owned(),
            Value::Number(f64::from(price)),
        )],
    })
}

/// Tiers that are ready and long enough, smallest first.
fn candidates<'a>(
    request: &Request,
    classification: &Classification,
    tiers: &'a [Tier],
    settings: &Settings,
) -> Vec<Candidate<'a>> {
    let mut ready: Vec<&Tier> = tiers.iter().filter(|t| t.ready).collect();
    ready.sort_by(|a, b| (a.rank, &a.id).cmp(&(b.rank, &b.id)));
    // When none is long enough, the engine's refusal tells the client both lengths.
    let needed = prompt_tokens(request);
    let fits = |t: &&Tier| t.context_tokens == 0 || u64::from(t.context_tokens) > needed;
    if ready.iter().any(fits) {
        ready.retain(fits);
    }
    let efforts = efforts(&ready);
    let shares = believed(classification);
    let count = ready.len();
    ready
        .into_iter()
        .zip(efforts)
        .enumerate()
        .map(|(i, (tier, effort))| Candidate {
            quality: quality(tier, i, count, shares),
            effort,
            other_price: waiting(tier, request, settings) + money(tier, needed, request, settings),
            tier,
        })
        .collect()
}

fn prompt_tokens(request: &Request) -> u64 {
    let shown: u64 = request
        .messages
        .iter()
        .map(|m| m.content.len() as u64)
        .sum();
    shown.saturating_add(request.cut_bytes) / BYTES_PER_TOKEN
}

/// Each tier's energy as a share of the largest: from stated energy when all state it,
/// else from size when all tell it, else from rank. A larger tier never counts less than a
/// smaller one, even when it runs elsewhere: sending traffic *up* because the machine is
/// in need would spend money that nobody agreed to.
fn efforts(tiers: &[&Tier]) -> Vec<f32> {
    let stated: Option<Vec<f64>> = tiers
        .iter()
        .map(|t| t.joules_per_token.map(|s| s.value))
        .collect();
    let sizes: Option<Vec<f64>> = tiers
        .iter()
        .map(|t| t.parameters.map(|p| p as f64))
        .collect();
    let usable = |v: &Vec<f64>| v.iter().all(|x| x.is_finite() && *x > 0.0);
    let mut effort = stated
        .filter(usable)
        .or(sizes.filter(usable))
        .unwrap_or_else(|| (1..=tiers.len()).map(|i| i as f64).collect());
    for i in 1..effort.len() {
        effort[i] = effort[i].max(effort[i - 1]);
    }
    let largest = effort.last().copied().unwrap_or(1.0);
    effort.iter().map(|e| (e / largest) as f32).collect()
}

/// The classifier's shares, drawn towards ordinary traffic as far as it doubts itself.
fn believed(c: &Classification) -> (f32, f32, f32) {
    let trust = unit(c.confidence);
    let mix = |p: f32, ordinary: f32| trust * unit(p) + (1.0 - trust) * ordinary;
    (
        mix(c.p_simple, ORDINARY.0),
        mix(c.p_medium, ORDINARY.1),
        mix(c.p_complex, ORDINARY.2),
    )
}

fn quality(tier: &Tier, index: usize, count: usize, shares: (f32, f32, f32)) -> f32 {
    let (mut simple, mut medium, mut complex) = tier.quality;
    if (simple, medium, complex) == (0.0, 0.0, 0.0) {
        let at = if count > 1 {
            index as f32 / (count - 1) as f32
        } else {
            0.0
        };
        let between = |low: f32, high: f32| low + (high - low) * at;
        simple = between(UNSTATED[0].0, UNSTATED[1].0);
        medium = between(UNSTATED[0].1, UNSTATED[1].1);
        complex = between(UNSTATED[0].2, UNSTATED[1].2);
    }
    shares.0 * simple + shares.1 * medium + shares.2 * complex
}

/// The price of time: of what is expected, and a full point when it breaks the client's
/// deadline. Unknown times cost nothing.
fn waiting(tier: &Tier, request: &Request, settings: &Settings) -> f32 {
    let ttft = tier.ttft_ms.map_or(0.0, |s| s.value);
    let tpot = tier.tpot_ms.map_or(0.0, |s| s.value);
    let ahead = f64::from(tier.num_requests_waiting);
    let ms = ttft * (1.0 + ahead) + tpot * f64::from(answer_tokens(request));
    if !ms.is_finite() {
        return 0.0;
    }
    let late = request.deadline_ms.is_some_and(|d| ms > f64::from(d));
    settings.latency_price * (ms / 10_000.0).min(10.0) as f32 + f32::from(u8::from(late))
}

fn money(tier: &Tier, prompt_tokens: u64, request: &Request, settings: &Settings) -> f32 {
    let per_request = tier.usd_per_mtok_prompt.unwrap_or(0.0) * prompt_tokens as f64 / 1e6
        + tier.usd_per_mtok_output.unwrap_or(0.0) * f64::from(answer_tokens(request)) / 1e6;
    let per_thousand = (per_request * 1000.0) as f32;
    if per_thousand.is_finite() {
        settings.money_price * per_thousand
    } else {
        0.0
    }
}

fn answer_tokens(request: &Request) -> f32 {
    request
        .max_tokens
        .map_or(ANSWER_TOKENS, |m| ANSWER_TOKENS.min(m as f32))
}

/// What hard limits leave, and how many tiers they took.
fn permitted<'a>(mut all: Vec<Candidate<'a>>, pressure: &Pressure) -> (Vec<Candidate<'a>>, usize) {
    let before = all.len();
    if pressure.smallest_only {
        all.truncate(1);
    } else if pressure.no_large {
        all.truncate(before.div_ceil(2));
    }
    let left_out = before - all.len();
    (all, left_out)
}

/// Index of the tier to begin with; of equals the smaller.
fn best(all: &[Candidate<'_>], price: f32, settings: &Settings) -> usize {
    let mut best = (0, f32::MIN);
    for (i, c) in all.iter().enumerate() {
        let worth = c.quality + credit(all, i, settings) - price * c.effort - c.other_price;
        if worth > best.1 {
            best = (i, worth);
        }
    }
    best.0
}

/// What the best tier above could still mend, less its own price, at the profile's price.
fn credit(all: &[Candidate<'_>], from: usize, settings: &Settings) -> f32 {
    if settings.steps_max < 2 {
        return 0.0;
    }
    let asked = &all[from];
    all[from + 1..]
        .iter()
        .map(|next| gain(asked, next, settings.energy_price))
        .fold(0.0, f32::max)
}

/// Expected gain of asking `next` after `asked` was doubted.
fn gain(asked: &Candidate<'_>, next: &Candidate<'_>, price: f32) -> f32 {
    let wrong = 1.0 - asked.quality;
    let tried = wrong * NOTICED + asked.quality * DOUBTED;
    // A doubted right answer is replaced by one that may be wrong.
    let mended = wrong * NOTICED * next.quality;
    let spoilt = asked.quality * DOUBTED * (1.0 - next.quality);
    mended - spoilt - tried * (price * next.effort + next.other_price)
}

/// Whether this request belongs to the share that should move to smaller tiers. From its
/// id, so that a replay decides alike and a growing share only ever adds requests.
fn is_moved(request: &Request, degrade_ratio: f32) -> bool {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in request.id.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // The upper bits of this hash hardly depend on the last bytes, in which ids differ.
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((hash >> 40) as f32 / (1u64 << 24) as f32) < degrade_ratio
}

/// The first tier and those that are worth a try after it.
fn chain<'a, 'b>(
    all: &'b [Candidate<'a>],
    first: usize,
    pressure: &Pressure,
    price: f32,
    settings: &Settings,
) -> Vec<&'b Candidate<'a>> {
    let mut chain = vec![&all[first]];
    if pressure.one_step {
        return chain;
    }
    for next in &all[first + 1..] {
        let last = chain[chain.len() - 1];
        let better = next.quality > last.quality + STEP_UP_MIN;
        if chain.len() < settings.steps_max && better && gain(last, next, price) > 0.0 {
            chain.push(next);
        }
    }
    chain
}

fn steps(
    chain: &[&Candidate<'_>],
    c: &Classification,
    snapshot: &Snapshot,
    pressure: &Pressure,
    settings: &Settings,
) -> Vec<Step> {
    // Harder requests must convince more; a machine in need is content with less.
    let harder = 0.1 * believed(c).2;
    let threshold =
        (settings.accept_threshold + harder - 0.25 * pressure.price.min(1.0)).clamp(0.2, 0.95);
    let last = chain.len() - 1;
    chain
        .iter()
        .enumerate()
        .map(|(i, candidate)| Step {
            tier: candidate.tier.id.clone(),
            max_draft_tokens: speculate::max_draft_tokens(candidate.tier, snapshot, settings),
            max_tokens: pressure.max_tokens,
            hold_back_tokens: if i < last { HOLD_BACK_TOKENS } else { 0 },
            accept_threshold: threshold,
        })
        .collect()
}

/// The decision in words, with its numbers.
#[allow(
    clippy::too_many_arguments,
    reason = "the sentence is made of everything that was decided"
)]
fn reason(
    all: &[Candidate<'_>],
    chain: &[&Candidate<'_>],
    pressure: &Pressure,
    price: f32,
    moved: bool,
    left_out: usize,
    snapshot: &Snapshot,
    settings: &Settings,
) -> String {
    let profile = match settings.profile {
        Profile::Datacenter => "datacenter",
        Profile::Edge => "edge",
        Profile::Mcu => "mcu",
    };
    let worth: Vec<String> = all
        .iter()
        .map(|c| {
            format!(
                "{} {:.2}−{:.2}",
                c.tier.id,
                c.quality,
                price * c.effort + c.other_price
            )
        })
        .collect();
    let mut text = String::new();
    if !pressure.reasons.is_empty() {
        text.push_str(&pressure.reasons.join("; "));
        text.push_str(" → ");
    }
    let ids: Vec<&str> = chain.iter().map(|c| c.tier.id.as_str()).collect();
    text.push_str(&ids.join(", then "));
    text.push_str(&format!(
        " (quality − price: {}; profile {profile}",
        worth.join(", ")
    ));
    if left_out > 0 {
        text.push_str(&format!("; {left_out} larger left out"));
    }
    if moved {
        let share = snapshot.metabolism.degrade_ratio * 100.0;
        text.push_str(&format!(
            "; one of the {share:.0} % moved to a smaller tier"
        ));
    }
    if let Some(headroom) = speculate::headroom_celsius(snapshot) {
        text.push_str(&format!("; headroom {headroom:.0} °C"));
    }
    text.push(')');
    text
}
