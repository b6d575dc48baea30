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
//!
//! Two things hold a decision where it was. A conversation that has just changed its tier keeps
//! it for the dwell time. And a request that the classifier does not know is moved down by one
//! tier at most: what looks easy there may not be. Both give way to the hard limits.

use homeostat_sdk::*;

use crate::conversation;
use crate::figures::Figures;
use crate::memory::Memory;
use crate::pair;
use crate::pressure::{self, Pressure, unit};
use crate::settings::Settings;
use crate::speculate;

/// Shares of simple, medium and complex requests in ordinary traffic (middle of the ranges
/// in "The AI Inference Crisis"): what is believed as far as the classifier is not.
const ORDINARY: (f32, f32, f32) = (0.55, 0.3, 0.15);
/// Quality of a tier whose operator states none.
const UNTOLD: (f32, f32, f32) = (0.0, 0.0, 0.0);
/// What is believed of it then: smallest and largest, on simple, medium
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
/// Confidence of a classifier below which a request is none of those that it knows.
const UNFAMILIAR: f32 = 0.35;
/// Bytes per token, low on purpose: a prompt that barely fits is better sent elsewhere.
const BYTES_PER_TOKEN: u64 = 3;

/// A candidate with what it is expected to give and to take.
struct Candidate<'a> {
    tier: &'a Tier,
    known: Figures,
    quality: f32,
    effort: f32,
    /// Waiting and money.
    other_price: f32,
}

/// Everything that one decision rests on.
pub(crate) struct Question<'a> {
    pub(crate) request: &'a Request,
    pub(crate) classification: &'a Classification,
    pub(crate) tiers: &'a [Tier],
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) settings: &'a Settings,
    pub(crate) memory: &'a Memory,
}

/// Where a plan begins, and what besides its worth has decided that.
struct Beginning {
    index: usize,
    price: f32,
    left_out: usize,
    held_s: Option<u64>,
    guarded: bool,
    moved: bool,
}

pub(crate) fn plan(question: &Question<'_>) -> Decision {
    let pressure = pressure::read(question.snapshot);
    let all = candidates(question);
    if all.is_empty() {
        return Decision::Reject(Rejection {
            kind: Refusal::Overloaded,
            message: "no tier is ready to answer; try again shortly".to_owned(),
            retry_after_ms: Some(1000),
        });
    }
    let (all, begin) = begin(question, all, &pressure);
    let chain = chain(&all, &begin, &pressure, question.settings);
    let steps = steps(question, &chain, &pressure);
    Decision::Plan(Plan {
        reason: reason(question, &all, &chain, &pressure, &begin),
        steps,
        attributes: vec![(
            "route-metabolic.energy-price".to_owned(),
            Value::Number(f64::from(begin.price)),
        )],
    })
}

/// The tiers that are permitted, and the one to begin with.
fn begin<'a>(
    question: &Question<'_>,
    all: Vec<Candidate<'a>>,
    pressure: &Pressure,
) -> (Vec<Candidate<'a>>, Beginning) {
    let settings = question.settings;
    // What a machine that lacks nothing would do.
    let calm = best(&all, settings.energy_price, settings);
    let (all, left_out) = permitted(all, pressure);
    let price = settings.energy_price + pressure.price + question.memory.budget_price;
    let cheap = best(&all, price, settings);
    let floor = match unit(question.classification.confidence) < UNFAMILIAR {
        true => calm.saturating_sub(1).min(all.len() - 1),
        false => 0,
    };
    let guarded = cheap < floor;
    let cheap = cheap.max(floor);
    let share = question.snapshot.metabolism.degrade_ratio;
    let moved = cheap > floor && conversation::is_among(question.request, share);
    let mut begin = Beginning {
        index: cheap - usize::from(moved),
        price,
        left_out,
        held_s: None,
        guarded,
        moved,
    };
    let now_ms = question.snapshot.monotonic_ms;
    if let Some(seat) = &question.memory.seat
        && let Some(ago_s) = seat.switched_s_ago(now_ms, settings.dwell_s)
        && let Some(index) = all.iter().position(|c| c.tier.id == seat.tier)
    {
        begin = Beginning {
            index,
            held_s: Some(ago_s),
            guarded: false,
            moved: false,
            ..begin
        };
    }
    (all, begin)
}

/// Tiers that are ready and long enough, smallest first.
fn candidates<'a>(question: &Question<'a>) -> Vec<Candidate<'a>> {
    let Question {
        request, settings, ..
    } = *question;
    let of = |(i, tier): (usize, &'a Tier)| (tier, question.memory.of(i));
    let mut ready: Vec<(&Tier, Figures)> = question
        .tiers
        .iter()
        .enumerate()
        .filter(|(_, t)| t.ready)
        .map(of)
        .collect();
    ready.sort_by(|(a, _), (b, _)| (a.rank, &a.id).cmp(&(b.rank, &b.id)));
    // When none is long enough, the engine's refusal tells the client both lengths.
    let needed = prompt_tokens(request);
    let fits = |t: &Tier| t.context_tokens == 0 || u64::from(t.context_tokens) > needed;
    if ready.iter().any(|(t, _)| fits(t)) {
        ready.retain(|(t, _)| fits(t));
    }
    let efforts = efforts(&ready);
    let shares = believed(question.classification, settings);
    let count = ready.len();
    let mut all: Vec<Candidate<'_>> = ready
        .into_iter()
        .zip(efforts)
        .enumerate()
        .map(|(i, ((tier, known), effort))| Candidate {
            quality: quality(tier, i, count, shares),
            effort,
            other_price: waiting(question, tier, &known) + money(tier, needed, request, settings),
            tier,
            known,
        })
        .collect();
    if let [small, large] = &mut all[..] {
        look_again(question.classification, small, large);
    }
    all
}

/// The classifier's second opinion on two tiers with stated qualities, as far as it trusts
/// itself; what it does not know it has no second opinion on.
fn look_again<'a>(c: &Classification, small: &mut Candidate<'a>, large: &mut Candidate<'a>) {
    let trust = unit(c.confidence);
    let stated = |c: &Candidate<'_>| c.tier.quality != UNTOLD;
    if trust < UNFAMILIAR || !stated(small) || !stated(large) {
        return;
    }
    let ordinary = [&*small, &*large].map(|c| mean(c.tier.quality, ORDINARY));
    if let Some(qualities) = pair::qualities(c, ordinary) {
        for (candidate, quality) in [small, large].into_iter().zip(qualities) {
            candidate.quality += trust * (quality - candidate.quality);
        }
    }
}

fn prompt_tokens(request: &Request) -> u64 {
    let shown: u64 = request
        .messages
        .iter()
        .map(|m| m.content.len() as u64)
        .sum();
    shown.saturating_add(request.cut_bytes) / BYTES_PER_TOKEN
}

/// Each tier's energy as a share of the largest: of its energy when all have one, else from
/// size when all tell it, else from rank. A larger tier never counts less than a smaller one,
/// even when it runs elsewhere: sending traffic *up* because the machine is in need would spend
/// money that nobody agreed to.
fn efforts(tiers: &[(&Tier, Figures)]) -> Vec<f32> {
    let told: Option<Vec<f64>> = tiers.iter().map(|(t, known)| joules(t, known)).collect();
    let sizes: Option<Vec<f64>> = tiers
        .iter()
        .map(|(t, _)| t.parameters.map(|p| p as f64))
        .collect();
    let usable = |v: &Vec<f64>| v.iter().all(|x| x.is_finite() && *x > 0.0);
    let mut effort = told
        .filter(usable)
        .or(sizes.filter(usable))
        .unwrap_or_else(|| (1..=tiers.len()).map(|i| i as f64).collect());
    for i in 1..effort.len() {
        effort[i] = effort[i].max(effort[i - 1]);
    }
    let largest = effort.last().copied().unwrap_or(1.0);
    effort.iter().map(|e| (e / largest) as f32).collect()
}

/// Joules per token: as the host measures them, else as they were learned, else as somebody
/// states them.
fn joules(tier: &Tier, known: &Figures) -> Option<f64> {
    let stated = tier.joules_per_token;
    let measured = stated.filter(|s| s.origin != Origin::Modelled);
    let learned = known.joules_per_token.value().map(f64::from);
    measured
        .map(|s| s.value)
        .or(learned)
        .or(stated.map(|s| s.value))
}

/// The classifier's shares at the temperature that fits it, drawn towards ordinary traffic as
/// far as it doubts itself.
fn believed(c: &Classification, settings: &Settings) -> (f32, f32, f32) {
    let trust = unit(c.confidence);
    let mut classes = [c.p_simple, c.p_medium, c.p_complex].map(unit);
    let mut sum = 1.0;
    if settings.temperature != 1.0 {
        classes = classes.map(|p| p.max(1e-6).powf(1.0 / settings.temperature));
        sum = classes.iter().sum();
    }
    let [simple, medium, complex] = classes;
    let mix = |p: f32, ordinary: f32| trust * p / sum + (1.0 - trust) * ordinary;
    (
        mix(simple, ORDINARY.0),
        mix(medium, ORDINARY.1),
        mix(complex, ORDINARY.2),
    )
}

fn quality(tier: &Tier, index: usize, count: usize, shares: (f32, f32, f32)) -> f32 {
    let (mut simple, mut medium, mut complex) = tier.quality;
    if tier.quality == UNTOLD {
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
    mean((simple, medium, complex), shares)
}

/// Over requests of these shares.
fn mean(quality: (f32, f32, f32), shares: (f32, f32, f32)) -> f32 {
    shares.0 * quality.0 + shares.1 * quality.1 + shares.2 * quality.2
}

/// The price of time: of what is expected, of a model that may have to be loaded first, and a
/// full point when it breaks the client's deadline. Unknown times cost nothing.
fn waiting(question: &Question<'_>, tier: &Tier, known: &Figures) -> f32 {
    let or_learned = |told: Option<Sample>, learned: Option<f32>| {
        told.map(|s| s.value)
            .or(learned.map(f64::from))
            .unwrap_or(0.0)
    };
    let ttft = or_learned(tier.ttft_ms, known.ttft_ms.value());
    let tpot = or_learned(tier.tpot_ms, known.tpot_ms.value());
    let ahead = f64::from(tier.num_requests_waiting);
    let load = match tier.num_requests_running {
        0 => known.switch_ms(question.snapshot.monotonic_ms),
        // Whoever works is there.
        _ => 0.0,
    };
    let ms =
        ttft * (1.0 + ahead) + f64::from(load) + tpot * f64::from(answer_tokens(question.request));
    if !ms.is_finite() {
        return 0.0;
    }
    let late = question
        .request
        .deadline_ms
        .is_some_and(|d| ms > f64::from(d));
    question.settings.latency_price * (ms / 10_000.0).min(10.0) as f32 + f32::from(u8::from(late))
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

/// The first tier and those that are worth a try after it.
fn chain<'a, 'b>(
    all: &'b [Candidate<'a>],
    begin: &Beginning,
    pressure: &Pressure,
    settings: &Settings,
) -> Vec<&'b Candidate<'a>> {
    let mut chain = vec![&all[begin.index]];
    if pressure.one_step {
        return chain;
    }
    for next in &all[begin.index + 1..] {
        let last = chain[chain.len() - 1];
        let better = next.quality > last.quality + STEP_UP_MIN;
        if chain.len() < settings.steps_max && better && gain(last, next, begin.price) > 0.0 {
            chain.push(next);
        }
    }
    chain
}

fn steps(question: &Question<'_>, chain: &[&Candidate<'_>], pressure: &Pressure) -> Vec<Step> {
    let settings = question.settings;
    // Harder requests must convince more …
    let harder = 0.1 * believed(question.classification, settings).2;
    // … but not more than the last tier's own answers do, or asking it would change nothing …
    let last = chain.len() - 1;
    let reached = chain[last].known.floor(settings.needless_max);
    let wanted = settings.accept_threshold + harder;
    let wanted = reached.map_or(wanted, |r| wanted.min(r));
    // … and a machine in need is content with less.
    let threshold = (wanted - 0.25 * pressure.price.min(1.0)).clamp(0.2, 0.95);
    chain
        .iter()
        .enumerate()
        .map(|(i, candidate)| Step {
            tier: candidate.tier.id.clone(),
            max_draft_tokens: speculate::max_draft_tokens(
                question.request,
                candidate.tier,
                question.snapshot,
                settings,
            ),
            max_tokens: pressure.max_tokens,
            hold_back_tokens: if i < last { HOLD_BACK_TOKENS } else { 0 },
            accept_threshold: threshold,
        })
        .collect()
}

/// The decision in words, with its numbers.
fn reason(
    question: &Question<'_>,
    all: &[Candidate<'_>],
    chain: &[&Candidate<'_>],
    pressure: &Pressure,
    begin: &Beginning,
) -> String {
    let profile = match question.settings.profile {
        Profile::Datacenter => "datacenter",
        Profile::Edge => "edge",
        Profile::Mcu => "mcu",
    };
    let worth: Vec<String> = all
        .iter()
        .map(|c| {
            let price = begin.price * c.effort + c.other_price;
            format!("{} {:.2}−{price:.2}", c.tier.id, c.quality)
        })
        .collect();
    let mut text = String::new();
    if !pressure.reasons.is_empty() {
        text.push_str(&pressure.reasons.join("; "));
        text.push_str(" → ");
    }
    let ids: Vec<&str> = chain.iter().map(|c| c.tier.id.as_str()).collect();
    text.push_str(&ids.join(", then "));
    let worth = worth.join(", ");
    text.push_str(&format!(" (quality − price: {worth}; profile {profile}"));
    for part in circumstances(question, begin) {
        text.push_str("; ");
        text.push_str(&part);
    }
    text.push(')');
    text
}

/// What besides worth has decided where to begin, and what drafts depend on.
fn circumstances(question: &Question<'_>, begin: &Beginning) -> Vec<String> {
    let metabolism = &question.snapshot.metabolism;
    let mut parts = Vec::new();
    if begin.left_out > 0 {
        parts.push(format!("{} larger left out", begin.left_out));
    }
    if question.memory.budget_price > 0.0 {
        let price = question.memory.budget_price;
        parts.push(format!("budgets spent above their pace cost {price:.2}"));
    }
    if let Some(ago_s) = begin.held_s {
        parts.push(format!("the conversation changed its tier {ago_s} s ago"));
    }
    if begin.guarded {
        parts.push("the classifier does not know such requests: one tier down at most".into());
    }
    if begin.moved {
        let share = metabolism.degrade_ratio * 100.0;
        parts.push(format!("one of the {share:.0} % moved to a smaller tier"));
    }
    if let Some(headroom) = speculate::headroom_celsius(question.snapshot) {
        parts.push(format!("headroom {headroom:.0} °C"));
    }
    parts
}
