//! From one row of logits to one token, and what the model thought of it.
//!
//! Two answers come out of a row. The *choice* follows the client's parameters; the *report*
//! (log-probability of the chosen token, entropy, the likeliest alternatives) is always over the
//! unmodified distribution of the model, because policies judge the model and not the client's
//! temperature. The report costs one vectorised pass, so every token gets it.
//!
//! It refuses rows with a NaN or an infinity that leaves no distribution: that is the model's
//! fault and ends the sequence with an error instead of a random token. A mask that leaves none
//! is the grammar's.
//!
//! Order of the steps, as in vLLM: penalties and bias, the grammar's mask, temperature, min_p,
//! top_k, top_p, draw. The filters so see only tokens that are allowed. The report sees them all.

use std::cmp::Ordering;
use std::collections::HashMap;

use crate::constraint::TokenMask;
use crate::kernels::{Isa, logit_sums};
use crate::random;

/// Most alternatives reported per token, as in OpenAI's interface.
pub const MAX_TOP_LOGPROBS: usize = 20;
/// OpenAI allows 300 biased tokens; more would make one request's sampling cost visible to others.
pub const MAX_LOGIT_BIAS: usize = 300;

/// How to choose among the model's candidates. `Default` is the plain model distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 takes the likeliest token; 1 leaves the distribution as it is. 0 to 2.
    pub temperature: f32,
    /// Keep the likeliest tokens that together reach this probability. Above 0, to 1 (all).
    pub top_p: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep tokens at least this fraction as likely as the likeliest. 0 (all) to 1.
    pub min_p: f32,
    /// Same seed, same prompt, same parameters: same text. Without one the engine derives it
    /// from its own seed and the sequence's number.
    pub seed: Option<u64>,
    /// Added to the logits of these tokens: -100 forbids, 100 forces.
    pub logit_bias: Vec<(u32, f32)>,
    /// Divides (or multiplies, below zero) the logits of every token seen in prompt or answer.
    /// 1 is none; 0.1 to 10.
    pub repetition_penalty: f32,
    /// Subtracted once per occurrence in the answer. -2 to 2.
    pub frequency_penalty: f32,
    /// Subtracted once if the token occurs in the answer. -2 to 2.
    pub presence_penalty: f32,
    /// How many alternatives to report per token. 0 to 20.
    pub top_logprobs: usize,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: None,
            logit_bias: Vec::new(),
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            top_logprobs: 0,
        }
    }
}

/// A parameter outside its range. The fault is the client's.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field} is {value}, but must be {range}")]
pub struct ParamError {
    pub field: &'static str,
    pub value: String,
    pub range: String,
}

impl ParamError {
    pub(crate) fn new(field: &'static str, value: impl ToString, range: impl Into<String>) -> Self {
        Self {
            field,
            value: value.to_string(),
            range: range.into(),
        }
    }
}

impl SamplingParams {
    /// Everything that can be wrong with the parameters, once, before the request is queued.
    pub fn check(&self, vocabulary: usize) -> Result<(), ParamError> {
        let within = |field, value: f32, low: f32, high: f32| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(ParamError::new(
                field,
                value,
                format!("from {low} to {high}"),
            ))
        };
        within("temperature", self.temperature, 0.0, 2.0)?;
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(ParamError::new(
                "top_p",
                self.top_p,
                "above 0 and at most 1",
            ));
        }
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.1, 10.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        if self.top_logprobs > MAX_TOP_LOGPROBS {
            return Err(ParamError::new(
                "top_logprobs",
                self.top_logprobs,
                format!("from 0 to {MAX_TOP_LOGPROBS}"),
            ));
        }
        if self.logit_bias.len() > MAX_LOGIT_BIAS {
            let entries = format!("a list of {} entries", self.logit_bias.len());
            return Err(ParamError::new(
                "logit_bias",
                entries,
                format!("at most {MAX_LOGIT_BIAS} entries"),
            ));
        }
        for (token, bias) in &self.logit_bias {
            if *token as usize >= vocabulary {
                let range = format!("keyed by token numbers below {vocabulary}");
                return Err(ParamError::new(
                    "logit_bias",
                    format!("keyed by token {token}"),
                    range,
                ));
            }
            within("logit_bias", *bias, -100.0, 100.0)?;
        }
        Ok(())
    }

    fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }
}

/// What the penalties need to remember about a sequence: which tokens occurred, and how often in
/// the answer. Empty and free of cost for sequences without penalties.
#[derive(Debug, Default)]
pub struct TokenCounts {
    in_answer: HashMap<u32, u32>,
    wanted: bool,
}

impl TokenCounts {
    pub fn new(params: &SamplingParams, prompt: &[u32]) -> Self {
        let wanted = params.has_penalties();
        let in_answer = if wanted {
            prompt.iter().map(|t| (*t, 0)).collect()
        } else {
            HashMap::new()
        };
        Self { in_answer, wanted }
    }

    pub fn count(&mut self, token: u32) {
        if self.wanted {
            *self.in_answer.entry(token).or_default() += 1;
        }
    }
}

/// A chosen token and the model's own opinion of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Picked {
    pub token: u32,
    pub report: RowReport,
}

/// What the model thought at one position. Natural logarithms, unmodified distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct RowReport {
    pub logprob: f32,
    /// Entropy of the whole distribution, in nats.
    pub entropy: f32,
    /// The likeliest tokens with their log-probabilities, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// A row from which nothing can be drawn. The fault is the model's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model produced logits that are not numbers")]
pub struct NotADistribution;

/// A row from which no token can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PickError {
    #[error(transparent)]
    NotADistribution(#[from] NotADistribution),
    /// The fault is the grammar's.
    #[error("the grammar allows no token that the model can produce")]
    NothingAllowed,
}

/// Scratch memory for sampling; holds no state between rows.
#[derive(Default)]
pub struct Sampler {
    adjusted: Vec<f32>,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// Chooses the token for `position` of a sequence whose generator is keyed by `seed`, among
    /// those of the `mask` if there is one.
    pub fn pick(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        counts: &TokenCounts,
        mask: Option<&TokenMask>,
        seed: u64,
        position: usize,
    ) -> Result<Picked, PickError> {
        let row = RowStatistics::of(logits)?;
        let token = if params.logit_bias.is_empty() && !counts.wanted && mask.is_none() {
            self.choose(logits, row.max, params, seed, position)
        } else {
            let mut adjusted = std::mem::take(&mut self.adjusted);
            adjust(&mut adjusted, logits, params, counts);
            mask.iter()
                .for_each(|mask| forbid_others(&mut adjusted, mask));
            let max = maximum(&adjusted);
            if max == f32::NEG_INFINITY {
                return Err(PickError::NothingAllowed);
            }
            let token = self.choose(&adjusted, max, params, seed, position);
            self.adjusted = adjusted;
            token
        };
        Ok(Picked {
            token,
            report: row.report(logits, token, params.top_logprobs),
        })
    }

    fn choose(
        &mut self,
        logits: &[f32],
        max: f32,
        params: &SamplingParams,
        seed: u64,
        position: usize,
    ) -> u32 {
        if params.temperature == 0.0 {
            // Ties go to the smallest number, so that the choice does not depend on a scan's width.
            return logits.iter().position(|l| *l == max).unwrap_or(0) as u32;
        }
        // Finite for the smallest temperature as well: 0 times infinity is no number.
        let inverse = params.temperature.recip().min(f32::MAX);
        // Below e^-87 a weight is no longer a normal number; such tokens are never drawn.
        let floor = if params.min_p > 0.0 {
            params.min_p.ln().max(-87.0)
        } else {
            -87.0
        };
        self.candidates.clear();
        // Weights relative to the likeliest token: exp((l - max) / T).
        let scaled = logits
            .iter()
            .zip(0u32..)
            .map(|(l, id)| ((l - max) * inverse, id));
        self.candidates.extend(scaled.filter(|(l, _)| *l >= floor));
        self.keep_top_k(params.top_k as usize);
        self.candidates.iter_mut().for_each(|(l, _)| *l = exp(*l));
        self.keep_top_p(params.top_p);
        draw(&self.candidates, random::uniform(seed, position as u64))
    }

    fn keep_top_k(&mut self, k: usize) {
        if k > 0 && k < self.candidates.len() {
            self.candidates
                .select_nth_unstable_by(k - 1, likelier_first);
            self.candidates.truncate(k);
        }
    }

    /// The smallest head of the sorted candidates whose weight reaches `top_p` of all.
    fn keep_top_p(&mut self, top_p: f32) {
        if top_p >= 1.0 {
            return;
        }
        let goal = f64::from(top_p)
            * self
                .candidates
                .iter()
                .map(|(w, _)| f64::from(*w))
                .sum::<f64>();
        // Nearly always a few dozen tokens suffice; sorting 49,152 for them would dominate the step.
        let mut head = 64;
        loop {
            let length = self.candidates.len();
            if head < length {
                self.candidates
                    .select_nth_unstable_by(head - 1, likelier_first);
            }
            let sorted = &mut self.candidates[..head.min(length)];
            sorted.sort_unstable_by(likelier_first);
            let mut reached = 0.0;
            let enough = sorted.iter().position(|(w, _)| {
                reached += f64::from(*w);
                reached >= goal
            });
            match enough {
                Some(last) => return self.candidates.truncate(last + 1),
                None if head >= length => return,
                None => head *= 8,
            }
        }
    }
}

fn likelier_first(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Walks the weights until the fraction `uniform` of their sum is passed.
fn draw(candidates: &[(f32, u32)], uniform: f64) -> u32 {
    let goal = uniform * candidates.iter().map(|(w, _)| f64::from(*w)).sum::<f64>();
    let mut passed = 0.0;
    let hit = candidates.iter().find(|(w, _)| {
        passed += f64::from(*w);
        passed > goal
    });
    // Rounding may leave the goal a hair beyond the last sum; the last token is then the one meant.
    hit.or(candidates.last()).map_or(0, |(_, id)| *id)
}

fn adjust(adjusted: &mut Vec<f32>, logits: &[f32], params: &SamplingParams, counts: &TokenCounts) {
    adjusted.clear();
    adjusted.extend_from_slice(logits);
    for (token, in_answer) in &counts.in_answer {
        let Some(logit) = adjusted.get_mut(*token as usize) else {
            continue;
        };
        *logit = if *logit > 0.0 {
            *logit / params.repetition_penalty
        } else {
            *logit * params.repetition_penalty
        };
        *logit -= params.frequency_penalty * *in_answer as f32;
        *logit -= if *in_answer > 0 {
            params.presence_penalty
        } else {
            0.0
        };
    }
    for (token, bias) in &params.logit_bias {
        if let Some(logit) = adjusted.get_mut(*token as usize) {
            *logit += bias;
        }
    }
}

fn forbid_others(row: &mut [f32], mask: &TokenMask) {
    for (logit, token) in row.iter_mut().zip(0u32..) {
        if !mask.contains(token) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

fn maximum(row: &[f32]) -> f32 {
    row.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// One pass over the unmodified row: what every report needs.
pub struct RowStatistics {
    max: f32,
    /// ln Σ exp(l - max)
    log_sum: f64,
    entropy: f32,
}

impl RowStatistics {
    pub fn of(logits: &[f32]) -> Result<Self, NotADistribution> {
        // A fold without an early exit, so that the compiler can use lanes.
        let has_nan = logits.iter().fold(false, |found, l| found | l.is_nan());
        let sums = logit_sums(Isa::of_this_machine(), logits);
        if has_nan || !sums.greatest.is_finite() {
            return Err(NotADistribution);
        }
        let (sum, weighted) = (f64::from(sums.sum), f64::from(sums.weighted));
        let log_sum = sum.ln();
        Ok(Self {
            max: sums.greatest,
            log_sum,
            entropy: ((log_sum - weighted / sum) as f32).max(0.0),
        })
    }

    pub fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.max) - self.log_sum) as f32
    }

    pub fn report(&self, logits: &[f32], token: u32, top: usize) -> RowReport {
        let top = likeliest(logits, top)
            .into_iter()
            .map(|(l, id)| (id, self.logprob(l)))
            .collect();
        let logit = logits
            .get(token as usize)
            .copied()
            .unwrap_or(f32::NEG_INFINITY);
        RowReport {
            logprob: self.logprob(logit),
            entropy: self.entropy,
            top,
        }
    }
}

fn likeliest(logits: &[f32], count: usize) -> Vec<(f32, u32)> {
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(count + 1);
    if count == 0 {
        return best;
    }
    for (logit, id) in logits.iter().copied().zip(0u32..) {
        if best.len() < count || best.last().is_some_and(|worst| logit > worst.0) {
            let at =
                best.partition_point(|entry| likelier_first(entry, &(logit, id)) == Ordering::Less);
            best.insert(at, (logit, id));
            best.truncate(count);
        }
    }
    best
}

/// e^x for x ≤ 0, relative error below 3e-7, the same bits on every machine, and simple enough
/// for the compiler to vectorise (the library's `exp` is a call per element).
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to a whole number
    let x = x.max(-87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    // ln 2 in two parts, so that the remainder is exact.
    let r = x - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    let p = 1.0
        + r * (1.0
            + r * (0.5
                + r * (0.166_666_57 + r * (0.041_666_28 + r * (0.008_369_148 + r * 0.001_370_1)))));
    let exponent = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127)
        << 23;
    p * f32::from_bits(exponent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix;

    fn greedy() -> SamplingParams {
        SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        }
    }

    fn pick(logits: &[f32], params: &SamplingParams, seed: u64, position: usize) -> u32 {
        let counts = TokenCounts::new(params, &[]);
        Sampler::default()
            .pick(logits, params, &counts, None, seed, position)
            .expect("finite logits")
            .token
    }

    /// The set of tokens that 2,000 draws ever choose.
    fn support(logits: &[f32], params: &SamplingParams) -> Vec<u32> {
        let mut tokens: Vec<u32> = (0..2_000).map(|p| pick(logits, params, 5, p)).collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    #[test]
    fn each_filter_keeps_exactly_its_tokens() {
        // Probabilities .5, .25, .125, .125
        let logits = [0.5f32.ln(), 0.125f32.ln(), 0.25f32.ln(), 0.125f32.ln()];
        type Row = (&'static str, fn(&mut SamplingParams), &'static [u32]);
        let table: [Row; 15] = [
            ("plain", |_| (), &[0, 1, 2, 3]),
            ("temperature 0", |p| p.temperature = 0.0, &[0]),
            ("next to none", |p| p.temperature = 1e-39, &[0]),
            ("top_k 1", |p| p.top_k = 1, &[0]),
            ("top_k 2", |p| p.top_k = 2, &[0, 2]),
            (
                "top_k 3 breaks the tie by number",
                |p| p.top_k = 3,
                &[0, 1, 2],
            ),
            (
                "top_k beyond the vocabulary",
                |p| p.top_k = 99,
                &[0, 1, 2, 3],
            ),
            ("top_p .4", |p| p.top_p = 0.4, &[0]),
            ("top_p .7", |p| p.top_p = 0.7, &[0, 2]),
            ("top_p .8", |p| p.top_p = 0.8, &[0, 1, 2]),
            ("min_p .4", |p| p.min_p = 0.4, &[0, 2]),
            ("min_p .9", |p| p.min_p = 0.9, &[0]),
            (
                "min_p then top_p",
                |p| (p.min_p, p.top_p) = (0.4, 0.6),
                &[0],
            ),
            (
                "bias forbids",
                |p| p.logit_bias = vec![(0, -100.0)],
                &[1, 2, 3],
            ),
            ("bias forces", |p| p.logit_bias = vec![(3, 100.0)], &[3]),
        ];
        for (name, change, expected) in table {
            let mut params = SamplingParams::default();
            change(&mut params);
            params.check(4).expect(name);
            assert_eq!(support(&logits, &params), *expected, "{name}");
        }
    }

    #[test]
    fn draws_follow_the_distribution_at_any_temperature() {
        let logits: Vec<f32> = [0.4f32, 0.3, 0.2, 0.1].iter().map(|p| p.ln()).collect();
        for temperature in [0.5f32, 1.0, 2.0] {
            let params = SamplingParams {
                temperature,
                ..SamplingParams::default()
            };
            let weights: Vec<f64> = logits
                .iter()
                .map(|l| f64::from(l / temperature).exp())
                .collect();
            let total: f64 = weights.iter().sum();
            let mut seen = [0f64; 4];
            (0..20_000).for_each(|p| seen[pick(&logits, &params, 11, p) as usize] += 1.0);
            for (seen, weight) in seen.iter().zip(&weights) {
                let expected = 20_000.0 * weight / total;
                let six_sigma = 6.0 * (expected * (1.0 - weight / total)).sqrt();
                assert!(
                    (seen - expected).abs() < six_sigma,
                    "T={temperature}: {seen} against {expected}"
                );
            }
        }
    }

    #[test]
    fn penalties_count_prompt_and_answer_as_documented() {
        let logits = [2.0f32, 1.9, 1.0, -1.0];
        let mut repetition = TokenCounts::default();
        let params = SamplingParams {
            repetition_penalty: 2.0,
            ..greedy()
        };
        repetition.clone_from_prompt(&params, &[0, 3]);
        let mut adjusted = Vec::new();
        adjust(&mut adjusted, &logits, &params, &repetition);
        assert_eq!(adjusted, [1.0, 1.9, 1.0, -2.0]);

        let params = SamplingParams {
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            ..greedy()
        };
        let mut counts = TokenCounts::new(&params, &[0]);
        counts.count(1);
        counts.count(1);
        adjust(&mut adjusted, &logits, &params, &counts);
        assert_eq!(
            adjusted,
            [2.0, 1.9 - 1.0 - 0.25, 1.0, -1.0],
            "the prompt does not count for these two"
        );
    }

    impl TokenCounts {
        fn clone_from_prompt(&mut self, params: &SamplingParams, prompt: &[u32]) {
            *self = TokenCounts::new(params, prompt);
        }
    }

    #[test]
    fn reports_are_over_the_unmodified_distribution() {
        let logits = [1.0f32, 3.0, 2.0, 3.0];
        let params = SamplingParams {
            temperature: 0.0,
            logit_bias: vec![(0, 100.0)],
            top_logprobs: 3,
            ..SamplingParams::default()
        };
        let counts = TokenCounts::new(&params, &[]);
        let picked = Sampler::default()
            .pick(&logits, &params, &counts, None, 0, 0)
            .expect("finite");
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let expected = |l: f32| (f64::from(l).exp() / total).ln() as f32;
        assert_eq!(picked.token, 0);
        assert!((picked.report.logprob - expected(1.0)).abs() < 1e-6);
        let ids: Vec<u32> = picked.report.top.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 3, 2], "ties go to the smaller number");
        assert!(
            picked
                .report
                .top
                .iter()
                .zip([3.0, 3.0, 2.0])
                .all(|((_, lp), l)| (lp - expected(l)).abs() < 1e-6)
        );
        let entropy: f64 = logits
            .iter()
            .map(|l| -(f64::from(*l).exp() / total) * (f64::from(*l).exp() / total).ln())
            .sum();
        assert!((f64::from(picked.report.entropy) - entropy).abs() < 1e-5);
    }

    #[test]
    fn top_p_over_a_large_vocabulary_agrees_with_a_full_sort() {
        let mut random = SplitMix::new(3);
        let logits: Vec<f32> = (0..5_000)
            .map(|_| random.below(1_000) as f32 / 400.0)
            .collect();
        for top_p in [0.1f32, 0.5, 0.95, 0.9999] {
            let weights = logits.iter().zip(0..).map(|(l, id)| (exp(l - 2.5), id));
            let mut sampler = Sampler {
                candidates: weights.collect(),
                ..Sampler::default()
            };
            let mut sorted = sampler.candidates.clone();
            sorted.sort_by(likelier_first);
            let goal = f64::from(top_p) * sorted.iter().map(|(w, _)| f64::from(*w)).sum::<f64>();
            let mut reached = 0.0;
            let cut = sorted.iter().position(|(w, _)| {
                reached += f64::from(*w);
                reached >= goal
            });
            sampler.keep_top_p(top_p);
            // The two sums run in different orders, so the last token may differ by rounding.
            let expected = cut.map_or(sorted.len(), |c| c + 1);
            assert!(
                sampler.candidates.len().abs_diff(expected) <= 1,
                "top_p {top_p}"
            );
        }
    }

    #[test]
    fn parameters_out_of_range_are_named_with_value_and_range() {
        let plain = SamplingParams::default;
        let table: &[(SamplingParams, &str)] = &[
            (
                SamplingParams {
                    temperature: -0.1,
                    ..plain()
                },
                "temperature is -0.1, but must be from 0 to 2",
            ),
            (
                SamplingParams {
                    temperature: f32::NAN,
                    ..plain()
                },
                "temperature is NaN, but must be from 0 to 2",
            ),
            (
                SamplingParams {
                    top_p: 0.0,
                    ..plain()
                },
                "top_p is 0, but must be above 0 and at most 1",
            ),
            (
                SamplingParams {
                    min_p: 1.5,
                    ..plain()
                },
                "min_p is 1.5, but must be from 0 to 1",
            ),
            (
                SamplingParams {
                    frequency_penalty: 3.0,
                    ..plain()
                },
                "frequency_penalty is 3, but must be from -2 to 2",
            ),
            (
                SamplingParams {
                    top_logprobs: 21,
                    ..plain()
                },
                "top_logprobs is 21, but must be from 0 to 20",
            ),
            (
                SamplingParams {
                    logit_bias: vec![(9, 1.0)],
                    ..plain()
                },
                "logit_bias is keyed by token 9, but must be keyed by token numbers below 8",
            ),
        ];
        for (params, message) in table {
            assert_eq!(params.check(8).expect_err(message).to_string(), *message);
        }
        assert_eq!(plain().check(8), Ok(()));
    }

    #[test]
    fn a_row_that_is_no_distribution_is_an_error() {
        let params = SamplingParams::default();
        for bad in [
            vec![1.0, f32::NAN, 2.0],
            vec![f32::NAN; 20],
            vec![f32::NEG_INFINITY; 3],
            vec![0.0, f32::INFINITY],
        ] {
            let counts = TokenCounts::new(&params, &[]);
            assert_eq!(
                Sampler::default().pick(&bad, &params, &counts, None, 0, 0),
                Err(PickError::NotADistribution(NotADistribution)),
                "{bad:?}"
            );
        }
        assert_eq!(
            pick(&[f32::NEG_INFINITY, 0.0], &greedy(), 0, 0),
            1,
            "one forbidden token is no fault"
        );
    }

    #[test]
    fn the_fast_exponential_is_accurate() {
        for i in 0..870_000 {
            let x = -(i as f32) / 10_000.0;
            let exact = f64::from(x).exp();
            assert!(
                (f64::from(exp(x)) - exact).abs() <= 3e-7 * exact,
                "{x}: {} against {exact}",
                exp(x)
            );
        }
    }
}
