//! What a request costs: joules by receipts or by what a tier states, money by token prices or
//! by the price of electricity, carbon by the grid's curve; and what it is expected to cost,
//! learned from those that are over.
//!
//! What nobody knows is not counted, and never guessed: a tier without a price or a rate is
//! free until its first receipt.

use std::collections::HashMap;

use homeostat_hooks::{TierKind, TierView};
use homeostat_telemetry::{HOURS, hour_of_day};

use super::account::Unit;
use super::settings::{BudgetsConfig, ByHour};

/// Tokens of an answer before one was seen: what the default router assumes, too.
const ANSWER_TOKENS: f64 = 256.0;
/// Bytes of text to a token, in most languages and vocabularies.
const BYTES_PER_TOKEN: usize = 4;
/// How much one answer moves what is expected of the next. The mean over some eight: a new
/// model or a hotter machine is known within a minute of traffic.
const LEARNING: f64 = 0.125;
const UJ_PER_KWH: f64 = 3.6e12;

/// Tokens that a text is expected to have.
pub fn tokens_of(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(BYTES_PER_TOKEN)).unwrap_or(u32::MAX)
}

/// Price and carbon of electricity by the hour.
#[derive(Debug)]
pub struct Curves {
    usd_per_kwh: Option<[f64; HOURS]>,
    grams_per_kwh: Option<[f64; HOURS]>,
    utc_offset_s: i64,
}

impl Curves {
    pub fn new(config: &BudgetsConfig) -> Self {
        Self {
            usd_per_kwh: config.usd_per_kwh.as_ref().map(ByHour::hours),
            grams_per_kwh: config.grams_co2_per_kwh.as_ref().map(ByHour::hours),
            utc_offset_s: config.utc_offset_s(),
        }
    }

    /// Work of this hour in the parts of a unit.
    pub fn parts(&self, unit: Unit, work: Work, unix_s: i64) -> i64 {
        let hour = hour_of_day(unix_s, self.utc_offset_s);
        let per_kwh = |curve: Option<[f64; HOURS]>| curve.map_or(0.0, |hours| hours[hour]);
        unit.cost(match unit {
            Unit::Joules => work.uj / 1e6,
            Unit::GramsCo2 => work.uj / UJ_PER_KWH * per_kwh(self.grams_per_kwh),
            Unit::Usd => work.usd + work.unpriced_uj / UJ_PER_KWH * per_kwh(self.usd_per_kwh),
        })
    }
}

/// What was done, before it has a price.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Work {
    /// All energy that is known, µJ.
    uj: f64,
    /// Of it: by local tiers without a token price. Their electricity is what they cost.
    unpriced_uj: f64,
    /// By token prices.
    usd: f64,
}

impl std::ops::Add for Work {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            uj: self.uj + other.uj,
            unpriced_uj: self.unpriced_uj + other.unpriced_uj,
            usd: self.usd + other.usd,
        }
    }
}

/// What a tier says of its costs.
#[derive(Debug, Clone)]
pub struct Terms {
    pub tier: String,
    pub local: bool,
    usd_per_mtok: [Option<f64>; 2],
    joules_per_token: Option<f64>,
}

impl Terms {
    pub fn of(view: &TierView) -> Self {
        Self {
            tier: view.id.clone(),
            local: view.kind == TierKind::Local,
            usd_per_mtok: [view.usd_per_mtok_prompt, view.usd_per_mtok_output],
            joules_per_token: view.joules_per_token.map(|sample| sample.value),
        }
    }

    fn has_price(&self) -> bool {
        self.usd_per_mtok.iter().any(Option::is_some)
    }

    /// Work of that energy, for these tokens.
    fn work(&self, uj: f64, tokens: [f64; 2]) -> Work {
        let prices = self.usd_per_mtok.iter().zip(tokens);
        let electricity = self.local && !self.has_price();
        Work {
            uj,
            unpriced_uj: if electricity { uj } else { 0.0 },
            usd: prices
                .map(|(price, n)| price.unwrap_or(0.0) * n / 1e6)
                .sum(),
        }
    }
}

/// One step that is over, or as good as over.
#[derive(Debug, Clone)]
pub struct Step {
    pub terms: Terms,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    /// Whether it came to its end: only then its length says something about others.
    pub finished: bool,
}

impl Step {
    fn tokens(&self) -> [f64; 2] {
        [self.prompt_tokens.into(), self.output_tokens.into()]
    }
}

/// What a receipt says an answer took, µJ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Reading the prompt.
    pub prefill_uj: u64,
    /// Writing the answer.
    pub decode_uj: u64,
    /// What policies asked models for it.
    pub policy_uj: u64,
    /// Nothing changes it any more.
    pub settled: bool,
}

/// What answers of one tier cost so far, smoothed.
#[derive(Debug, Clone, Copy, Default)]
struct Learned {
    output_tokens: Option<f64>,
    /// For a token of the prompt and one of the answer.
    uj_per_token: [Option<f64>; 2],
}

fn learn(known: &mut Option<f64>, seen: f64) {
    let before = known.unwrap_or(seen);
    *known = Some(before + LEARNING * (seen - before));
}

/// What is expected of tiers.
#[derive(Debug, Default)]
pub struct Expectations(HashMap<String, Learned>);

impl Expectations {
    fn of(&self, terms: &Terms) -> Learned {
        self.0.get(&terms.tier).copied().unwrap_or_default()
    }

    /// What an answer to a prompt of this length is expected to cost on a tier.
    pub fn answer(&self, terms: &Terms, prompt_tokens: u32, max_tokens: Option<u32>) -> Work {
        let usual = self.of(terms).output_tokens.unwrap_or(ANSWER_TOKENS);
        let output = max_tokens.map_or(usual, |max| usual.min(max.into()));
        self.work(terms, [prompt_tokens.into(), output])
    }

    /// What a step cost, as far as its tokens tell.
    pub fn step(&self, step: &Step) -> Work {
        self.work(&step.terms, step.tokens())
    }

    fn work(&self, terms: &Terms, tokens: [f64; 2]) -> Work {
        let stated = terms.joules_per_token.unwrap_or(0.0) * 1e6 * tokens[1];
        let uj = match self.of(terms).uj_per_token {
            [Some(prompt), Some(output)] => prompt * tokens[0] + output * tokens[1],
            // An encoder writes nothing, so nobody learns what writing takes it.
            [Some(prompt), None] if tokens[1] == 0.0 => prompt * tokens[0],
            _ => stated,
        };
        terms.work(uj, tokens)
    }

    /// What steps cost together, and what policies asked besides: the local ones, and all that was
    /// asked, what the receipt says.
    pub fn settled(&self, steps: &[Step], asked: &[Step], receipt: Taken) -> Work {
        let (local, remote): (Vec<&Step>, Vec<&Step>) = steps.iter().partition(|s| s.terms.local);
        let asked: Vec<&Step> = asked.iter().collect();
        let local = self.shared(&local, receipt.prefill_uj + receipt.decode_uj);
        let asked = self.shared(&asked, receipt.policy_uj);
        let remote = remote.into_iter().map(|step| self.step(step));
        let sum = remote.fold(local + asked, |a, b| a + b);
        let rounded = |uj: f64| (uj * 1e3).round() / 1e3;
        Work {
            // Parts of a whole number add up to it.
            uj: rounded(sum.uj),
            ..sum
        }
    }

    /// What steps cost that took so much together, µJ.
    fn shared(&self, steps: &[&Step], uj: u64) -> Work {
        let expected = |step: &&Step| {
            let uj = self.step(step).uj;
            // Of tiers that nothing is known of, the one that wrote more worked more.
            if uj > 0.0 { uj } else { step.tokens()[1] + 1.0 }
        };
        let whole: f64 = steps.iter().map(expected).sum();
        let each = steps.iter().map(|step| {
            let part = uj as f64 * expected(step) / whole;
            step.terms.work(part, step.tokens())
        });
        each.fold(Work::default(), |a, b| a + b)
    }

    /// Learns from a request that is over: how long its answers were, and, where one local
    /// step did all that the receipt tells, what its tokens took.
    pub fn learn(&mut self, steps: &[Step], receipt: Option<Taken>) {
        for step in steps.iter().filter(|step| step.finished) {
            let known = self.0.entry(step.terms.tier.clone()).or_default();
            learn(&mut known.output_tokens, step.output_tokens.into());
        }
        let mut local = steps.iter().filter(|step| step.terms.local);
        let (Some(receipt), Some(step), None) = (receipt, local.next(), local.next()) else {
            return;
        };
        let known = self.0.entry(step.terms.tier.clone()).or_default();
        let parts = [receipt.prefill_uj, receipt.decode_uj];
        for ((rate, uj), tokens) in known.uj_per_token.iter_mut().zip(parts).zip(step.tokens()) {
            if tokens > 0.0 {
                learn(rate, uj as f64 / tokens);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homeostat_hooks::Sample;

    fn terms(tier: &str, kind: TierKind, usd: Option<f64>, joules: Option<f64>) -> Terms {
        Terms::of(&TierView {
            id: tier.into(),
            kind,
            usd_per_mtok_prompt: usd,
            usd_per_mtok_output: usd.map(|u| 4.0 * u),
            joules_per_token: joules.map(Sample::measured),
            ..TierView::default()
        })
    }

    fn step(terms: Terms, prompt_tokens: u32, output_tokens: u32) -> Step {
        Step {
            terms,
            prompt_tokens,
            output_tokens,
            finished: true,
        }
    }

    fn curves(text: &str) -> Curves {
        Curves::new(&toml::from_str(text).unwrap())
    }

    #[test]
    fn the_price_of_the_hour_counts_and_a_token_price_stands_for_electricity() {
        let mut hours = [0.1; HOURS];
        hours[18] = 0.9;
        let text =
            format!("usd_per_kwh = {hours:?}\ngrams_co2_per_kwh = 300\nutc_offset_hours = 1");
        let curves = curves(&text);
        let own = terms("own", TierKind::Local, None, None).work(3.6e9, [10.0, 10.0]);
        let (noon, evening) = (12 * 3_600, 17 * 3_600);
        // A thousandth of a kWh.
        assert_eq!(curves.parts(Unit::Joules, own, noon), 3_600_000_000);
        assert_eq!(curves.parts(Unit::Usd, own, noon), 100_000);
        assert_eq!(curves.parts(Unit::Usd, own, evening), 900_000);
        assert_eq!(curves.parts(Unit::GramsCo2, own, noon), 300_000);
        let sold = terms("sold", TierKind::Local, Some(1.0), None).work(3.6e9, [10.0, 10.0]);
        assert_eq!(curves.parts(Unit::Usd, sold, evening), 50_000);
        assert_eq!(curves.parts(Unit::Joules, sold, evening), 3_600_000_000);
    }

    #[test]
    fn what_is_expected_is_learned_and_what_is_unknown_is_not_counted() {
        let mut known = Expectations::default();
        let own = terms("own", TierKind::Local, None, None);
        assert_eq!(known.answer(&own, 100, None), Work::default());
        let receipt = Taken {
            prefill_uj: 500,
            decode_uj: 4_000,
            policy_uj: 900,
            settled: true,
        };
        known.learn(&[step(own.clone(), 100, 40)], Some(receipt));
        assert_eq!(known.answer(&own, 100, None).uj, 4_500.0);
        assert_eq!(known.answer(&own, 200, Some(10)).uj, 2_000.0);
        let stated = terms("stated", TierKind::Remote, None, Some(0.5));
        assert_eq!(known.answer(&stated, 9, Some(10)).uj, 5e6);
        assert_eq!(known.answer(&stated, 9, None).uj, 256.0 * 0.5e6);
    }

    #[test]
    fn a_receipt_pays_for_all_local_steps_and_nothing_is_lost_between_them() {
        let known = Expectations::default();
        let small = terms("small", TierKind::Local, None, Some(0.1));
        let large = terms("large", TierKind::Local, Some(2.0), Some(0.3));
        let remote = terms("remote", TierKind::Remote, Some(1.0), None);
        let steps = [
            step(small, 10, 30),
            step(large, 10, 30),
            step(remote, 1_000, 1_000),
        ];
        let receipt = Taken {
            prefill_uj: 1_000_001,
            decode_uj: 6_000_000,
            policy_uj: 0,
            settled: true,
        };
        let work = known.settled(&steps, &[], receipt);
        assert_eq!(work.uj, 7_000_001.0);
        assert!((work.unpriced_uj - 7_000_001.0 / 4.0).abs() < 1e-6);
        let tokens = 2.0 * (10.0 + 4.0 * 30.0) + 1_000.0 + 4_000.0;
        assert!((work.usd - tokens / 1e6).abs() < 1e-12);
    }

    #[test]
    fn what_policies_asked_is_paid_beside_the_answer_at_the_price_of_who_was_asked() {
        let mut known = Expectations::default();
        let small = terms("small", TierKind::Local, None, None);
        let judge = terms("judge", TierKind::Local, Some(2.0), None);
        let encoder = terms("encoder", TierKind::Local, None, None);
        let steps = [step(small.clone(), 100, 40)];
        let asked = [step(judge, 200, 4), step(encoder, 30, 0)];
        let receipt = Taken {
            prefill_uj: 500,
            decode_uj: 4_000,
            policy_uj: 6_000,
            settled: true,
        };
        let work = known.settled(&steps, &asked, receipt);
        assert_eq!(work.uj, 10_500.0);
        // The judge's five parts of six have a price by the token.
        assert!((work.unpriced_uj - (4_500.0 + 1_000.0)).abs() < 1e-6);
        assert!((work.usd - (2.0 * 200.0 + 8.0 * 4.0) / 1e6).abs() < 1e-12);
        // What an answer is expected to take is learned of answers alone.
        known.learn(&steps, Some(receipt));
        assert_eq!(known.answer(&small, 100, None).uj, 4_500.0);
    }
}
