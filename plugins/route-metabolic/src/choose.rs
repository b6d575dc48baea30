//! Expected quality minus price, over the tiers and over what may follow each.
//!
//! For tier *t* with expected share of good answers *q* and effort *e* (1 = the largest tier's
//! usual answer, never falling with size):
//!
//! ```text
//! worth(t) = q + credit for what may follow − pressure · e − waiting − money
//! ```
//!
//! The credit is computed at the profile's own price, without the machine's pressure. The
//! machine then enters only through `pressure · e`, and since *e* never falls with size, a
//! hotter machine can move the first tier down but never up.
//!
//! Heat presses on a tier as far as its own device is hot, where the host tells
//! (`homeostat.device-degrade-ratio`), once anything is to be shed; before that, such as in the
//! state elevated, on all tiers alike. Where it presses by device, and only there, a hotter machine
//! may move a request to an equal or larger tier, on a cooler device. Budgets of money press on
//! dollars and not on effort, unless no tier states a price.
//!
//! What each step is expected to give and to take goes with the plan, so that the host can weigh
//! the later ones anew when it has an answer in hand (`homeostat.step.1.quality`,
//! `homeostat.step.1.price`; see `host/cascade/src/posterior.rs`). A threshold that an operator has
//! set is no matter of price: the plan says that it was set (`homeostat.threshold-is-set`), and the
//! host weighs nothing against it.
//!
//! Two things hold a decision where it was. A conversation that has just changed its tier keeps
//! it for the dwell time, and no doubt moves it on. And a request that the classifier does not
//! know is moved down by one tier at most: what looks easy there may not be. Both give way to the
//! hard limits.

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
/// Better by less than this is not worth a second try.
const STEP_UP_MIN: f32 = 0.03;
/// Tokens of an answer when nothing limits it.
const ANSWER_TOKENS: f32 = 256.0;
/// Tokens kept back while an answer may still be escalated: about two sentences, in which
/// a model that does not know usually shows it.
const HOLD_BACK_TOKENS: u32 = 32;
/// Attribute of a plan, a boolean: see `host/cascade/src/posterior.rs`.
const THRESHOLD_IS_SET: &str = "homeostat.threshold-is-set";
/// Confidence of a classifier below which a request is none of those that it knows.
const UNFAMILIAR: f32 = 0.35;
/// Efforts up to so many times the smallest are as small: equal models on equal devices never
/// measure quite alike.
const AS_SMALL: f32 = 1.1;
/// Nothing that a tier usually does takes so many times what it usually takes.
const JOINING_MAX: f64 = 4.0;
/// Bytes per token, low on purpose: a prompt that barely fits is better sent elsewhere.
const BYTES_PER_TOKEN: u64 = 3;

/// A candidate with what it is expected to give and to take.
struct Candidate<'a> {
    tier: &'a Tier,
    known: Figures,
    quality: f32,
    /// What an answer of it usually takes, whoever is there now.
    usual_effort: f32,
    effort: f32,
    /// Dollars, as a share of the dearest tier's; 0 where nobody states a price.
    dollars: f32,
    /// How much of the host's heat is that of its own device, 0 to 1.
    heat: f32,
    /// Waiting and money.
    other_price: f32,
}

impl Candidate<'_> {
    fn price(&self, at: Prices) -> f32 {
        (at.effort + at.heat * self.heat) * self.effort
            + at.dollars * self.dollars
            + self.other_price
    }
}

/// What is asked for an effort of 1, more for it on the hottest device, and for all of the dearest
/// tier's dollars.
#[derive(Clone, Copy)]
struct Prices {
    effort: f32,
    heat: f32,
    dollars: f32,
}

impl Prices {
    /// On a machine that lacks nothing.
    fn calm(settings: &Settings) -> Self {
        Self {
            effort: settings.energy_price,
            heat: 0.0,
            dollars: 0.0,
        }
    }

    fn now(question: &Question<'_>, pressure: &Pressure, all: &[Candidate<'_>]) -> Self {
        let (settings, memory) = (question.settings, question.memory);
        let effort = settings.energy_price + pressure.price + memory.budget_price;
        let money = pressure.money + memory.money_price;
        // Where no tier states a price, what budgets count in dollars is electricity.
        let (effort, dollars) = match has_prices(all) {
            true => (effort, money),
            false => (effort + money, 0.0),
        };
        Self {
            effort,
            heat: pressure.heat,
            dollars,
        }
    }
}

fn has_prices(all: &[Candidate<'_>]) -> bool {
    all.iter().any(|c| c.dollars > 0.0)
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
    prices: Prices,
    left_out: Vec<String>,
    held_s: Option<u64>,
    guarded: bool,
    /// The share that is moved to a smaller tier, if this request is of it.
    moved: Option<f32>,
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
    let threshold = threshold(question, &chain, &pressure);
    Decision::Plan(Plan {
        reason: reason(question, &all, &chain, &pressure, &begin, threshold),
        steps: steps(question, &chain, &pressure, threshold),
        attributes: attributes(&chain, begin.prices, question.settings),
    })
}

/// What is expected of each step, for whoever weighs the later ones when the first has answered.
fn attributes(chain: &[&Candidate<'_>], prices: Prices, settings: &Settings) -> Vec<Attribute> {
    let energy = "route-metabolic.energy-price".to_owned();
    let energy = (energy, prices.effort + prices.heat);
    let steps = chain.iter().enumerate().flat_map(|(place, candidate)| {
        let key = |what: &str| format!("homeostat.step.{place}.{what}");
        [
            (key("quality"), candidate.quality),
            (key("price"), candidate.price(prices)),
        ]
    });
    let told = std::iter::once(energy).chain(steps);
    // What is no number is told to nobody: the host would refuse the plan.
    let told = told.filter(|(_, number)| number.is_finite());
    let told = told.map(|(key, number)| (key, Value::Number(number.into())));
    let set = settings.threshold_is_set;
    let set = set.then(|| (THRESHOLD_IS_SET.to_owned(), Value::Boolean(true)));
    told.chain(set).collect()
}

/// The tiers that are permitted, and the one to begin with.
fn begin<'a>(
    question: &Question<'_>,
    all: Vec<Candidate<'a>>,
    pressure: &Pressure,
) -> (Vec<Candidate<'a>>, Beginning) {
    let settings = question.settings;
    // What a machine that lacks nothing would do.
    let calm = best(&all, Prices::calm(settings), settings);
    let guard = all[calm.saturating_sub(1)].tier;
    let prices = Prices::now(question, pressure, &all);
    let (all, left_out) = permitted(all, pressure);
    let cheap = best(&all, prices, settings);
    let smaller = |c: &&Candidate<'_>| (c.tier.rank, &c.tier.id) < (guard.rank, &guard.id);
    let floor = match unit(question.classification.confidence) < UNFAMILIAR {
        true => all.iter().filter(smaller).count().min(all.len() - 1),
        false => 0,
    };
    let guarded = cheap < floor;
    let cheap = cheap.max(floor);
    // To a smaller tier on a device that sheds more nothing is moved.
    let shed = |index: usize| shed(question, pressure, &all[index]);
    let moved = cheap > floor
        && shed(cheap - 1) <= shed(cheap)
        && conversation::is_among(question.request, shed(cheap));
    let mut begin = Beginning {
        index: cheap - usize::from(moved),
        prices,
        left_out,
        held_s: None,
        guarded,
        moved: moved.then(|| shed(cheap)),
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
            moved: None,
            ..begin
        };
    }
    (all, begin)
}

/// Share of its conversations that this tier should leave to smaller ones.
fn shed(question: &Question<'_>, pressure: &Pressure, candidate: &Candidate<'_>) -> f32 {
    let whole = question.snapshot.metabolism.degrade_ratio;
    match pressure.is_heat {
        true => whole * candidate.heat,
        false => whole,
    }
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
    let usd = |tier: &Tier| usd_per_thousand(tier, needed, request);
    let dearest = ready.iter().map(|known| usd(known.0)).fold(0.0, f32::max);
    let mut all: Vec<Candidate<'_>> = ready
        .into_iter()
        .zip(efforts)
        .enumerate()
        .map(|(i, ((tier, known), [usual_effort, effort]))| Candidate {
            quality: quality(tier, i, count, shares),
            usual_effort,
            effort,
            dollars: if dearest > 0.0 {
                usd(tier) / dearest
            } else {
                0.0
            },
            heat: own_heat(tier, &question.snapshot.metabolism),
            other_price: waiting(question, tier, &known) + settings.money_price * usd(tier),
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
/// size when all tell it, else from rank. First as it usually is, then times what joining it now
/// takes of that. A larger tier never counts less than a smaller one, even when it runs elsewhere:
/// sending traffic *up* because the machine is in need would spend money that nobody agreed to.
fn efforts(tiers: &[(&Tier, Figures)]) -> Vec<[f32; 2]> {
    let told: Option<Vec<f64>> = tiers.iter().map(|(t, known)| joules(t, known)).collect();
    let sizes: Option<Vec<f64>> = tiers
        .iter()
        .map(|(t, _)| t.parameters.map(|p| p as f64))
        .collect();
    let usable = |v: &Vec<f64>| v.iter().all(|x| x.is_finite() && *x > 0.0);
    let effort = told
        .filter(usable)
        .or(sizes.filter(usable))
        .unwrap_or_else(|| (1..=tiers.len()).map(|i| i as f64).collect());
    let largest = effort.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let mut most = [0.0_f64; 2];
    let each = effort.iter().zip(tiers).map(|(e, (tier, _))| {
        let usual = e / largest;
        let [usual_before, now_before] = most;
        most = [
            usual_before.max(usual),
            now_before.max(usual * joining(tier)),
        ];
        most.map(|e| e as f32)
    });
    each.collect()
}

/// What one more answer takes of a tier at its present load, over what its answers take in the
/// mean.
fn joining(tier: &Tier) -> f64 {
    let told = speculate::number(tier, "homeostat.joules-joining-ratio");
    told.filter(|ratio| *ratio > 0.0)
        .map_or(1.0, |ratio| ratio.min(JOINING_MAX))
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

/// US dollars of a thousand requests like this.
fn usd_per_thousand(tier: &Tier, prompt_tokens: u64, request: &Request) -> f32 {
    let per_request = tier.usd_per_mtok_prompt.unwrap_or(0.0) * prompt_tokens as f64 / 1e6
        + tier.usd_per_mtok_output.unwrap_or(0.0) * f64::from(answer_tokens(request)) / 1e6;
    let per_thousand = (per_request * 1000.0) as f32;
    if per_thousand.is_finite() {
        per_thousand.max(0.0)
    } else {
        0.0
    }
}

/// What the tier's own device would shed of what the hottest does; all of it where nobody tells,
/// or nothing is to be shed.
fn own_heat(tier: &Tier, metabolism: &Metabolism) -> f32 {
    let whole = unit(metabolism.degrade_ratio);
    match speculate::number(tier, "homeostat.device-degrade-ratio") {
        Some(own) if whole > 0.0 => unit(own as f32 / whole),
        _ => 1.0,
    }
}

fn answer_tokens(request: &Request) -> f32 {
    request
        .max_tokens
        .map_or(ANSWER_TOKENS, |m| ANSWER_TOKENS.min(m as f32))
}

/// What hard limits leave, and what they took, in words.
fn permitted<'a>(
    mut all: Vec<Candidate<'a>>,
    pressure: &Pressure,
) -> (Vec<Candidate<'a>>, Vec<String>) {
    let before = all.len();
    let by_dollars = pressure.cheapest_only && has_prices(&all);
    if by_dollars {
        let least = all.iter().map(|c| c.dollars).fold(f32::INFINITY, f32::min);
        all.retain(|c| c.dollars <= least);
    }
    let dearer = before - all.len();
    if pressure.smallest_only || (pressure.cheapest_only && !by_dollars) {
        all = vec![smallest(all)];
    } else if pressure.no_large {
        all.truncate(all.len().div_ceil(2));
    }
    let larger = before - dearer - all.len();
    let left_out = [(dearer, "dearer"), (larger, "larger")].into_iter();
    let left_out = left_out.filter(|(count, _)| *count > 0);
    let left_out = left_out.map(|(count, kind)| format!("{count} {kind} left out"));
    let left_out = left_out.collect();
    (all, left_out)
}

/// Of those as small as the smallest, the one on the coolest device.
fn smallest(mut all: Vec<Candidate<'_>>) -> Candidate<'_> {
    let most = all[0].usual_effort * AS_SMALL;
    let as_small = all.iter().take_while(|c| c.usual_effort <= most);
    let coolest = as_small
        .enumerate()
        .min_by(|a, b| a.1.heat.total_cmp(&b.1.heat));
    let index = coolest.map_or(0, |(index, _)| index);
    all.swap_remove(index)
}

/// Index of the tier to begin with; of equals the smaller.
fn best(all: &[Candidate<'_>], prices: Prices, settings: &Settings) -> usize {
    let mut best = (0, f32::MIN);
    for (i, c) in all.iter().enumerate() {
        let worth = c.quality + credit(all, i, settings) - c.price(prices);
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
        .map(|next| gain(asked, next, Prices::calm(settings), settings))
        .fold(0.0, f32::max)
}

/// Expected gain of asking `next` after `asked` was doubted.
fn gain(asked: &Candidate<'_>, next: &Candidate<'_>, prices: Prices, settings: &Settings) -> f32 {
    let noticed = (1.0 - asked.quality) * settings.noticed;
    let doubted = asked.quality * settings.doubted;
    // A doubted right answer is replaced by one that may be wrong.
    let mended = noticed * next.quality;
    let spoilt = doubted * (1.0 - next.quality);
    let tried = noticed + doubted;
    mended - spoilt - tried * next.price(prices)
}

/// The first tier and those that are worth a try after it.
fn chain<'a, 'b>(
    all: &'b [Candidate<'a>],
    begin: &Beginning,
    pressure: &Pressure,
    settings: &Settings,
) -> Vec<&'b Candidate<'a>> {
    let mut chain = vec![&all[begin.index]];
    // A doubt is no reason to change the tier a second time within the dwell time.
    if pressure.one_step || begin.held_s.is_some() {
        return chain;
    }
    for next in &all[begin.index + 1..] {
        let last = chain[chain.len() - 1];
        let better = next.quality > last.quality + STEP_UP_MIN;
        if chain.len() < settings.steps_max
            && better
            && gain(last, next, begin.prices, settings) > 0.0
        {
            chain.push(next);
        }
    }
    chain
}

/// Confidence from which an answer is accepted.
fn threshold(question: &Question<'_>, chain: &[&Candidate<'_>], pressure: &Pressure) -> f32 {
    let settings = question.settings;
    let last = chain[chain.len() - 1];
    // Harder requests must convince more …
    let harder = 0.1 * believed(question.classification, settings).2;
    let wanted = settings.accept_threshold + harder;
    // … but not more than the last tier's own answers do, or asking it would change nothing. That
    // promises no risk, so it lowers nothing that an operator has set …
    let reached = last.known.floor(settings.needless_max);
    let (wanted, most) = match settings.threshold_is_set {
        true => (wanted, settings.accept_threshold.max(0.95)),
        false => (reached.map_or(wanted, |r| wanted.min(r)), 0.95),
    };
    // … and a machine in need is content with less.
    (wanted - 0.25 * pressure.on(last.heat).min(1.0)).clamp(0.2, most)
}

fn steps(
    question: &Question<'_>,
    chain: &[&Candidate<'_>],
    pressure: &Pressure,
    threshold: f32,
) -> Vec<Step> {
    let last = chain.len() - 1;
    chain
        .iter()
        .enumerate()
        .map(|(i, candidate)| Step {
            tier: candidate.tier.id.clone(),
            max_draft_tokens: speculate::max_draft_tokens(
                question.request,
                candidate.tier,
                question.snapshot,
                question.settings,
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
    threshold: f32,
) -> String {
    let profile = match question.settings.profile {
        Profile::Datacenter => "datacenter",
        Profile::Edge => "edge",
        Profile::Mcu => "mcu",
    };
    let worth: Vec<String> = all
        .iter()
        .map(|c| {
            let price = c.price(begin.prices);
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
    for part in circumstances(question, begin, threshold) {
        text.push_str("; ");
        text.push_str(&part);
    }
    text.push(')');
    text
}

/// What besides worth has decided where to begin, and what drafts depend on.
fn circumstances(question: &Question<'_>, begin: &Beginning, threshold: f32) -> Vec<String> {
    let mut parts = begin.left_out.clone();
    if question.memory.budget_price > 0.0 {
        let price = question.memory.budget_price;
        parts.push(format!("budgets spent above their pace cost {price:.2}"));
    }
    if question.memory.money_price > 0.0 {
        let price = question.memory.money_price;
        parts.push(format!("budgets of money above their pace cost {price:.2}"));
    }
    let calibrated = question.settings.accept_threshold;
    if question.settings.threshold_is_set && threshold < calibrated {
        parts.push(format!(
            "accepts from {threshold:.2}, calibrated {calibrated:.2}"
        ));
    }
    if let Some(ago_s) = begin.held_s {
        parts.push(format!(
            "the conversation changed its tier {ago_s} s ago and keeps it"
        ));
    }
    if begin.guarded {
        parts.push("the classifier does not know such requests: one tier down at most".into());
    }
    if let Some(share) = begin.moved {
        let percent = share * 100.0;
        parts.push(format!("one of the {percent:.0} % moved to a smaller tier"));
    }
    if let Some(headroom) = speculate::headroom_celsius(question.snapshot) {
        parts.push(format!("headroom {headroom:.0} °C"));
    }
    parts
}
