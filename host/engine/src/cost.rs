//! How long will a step take? Learned from the steps that were taken.
//!
//! It exists so that two decisions can be made in time instead of tokens: how many draft rows
//! are worth verifying, and how many prompt rows fit beside running answers. The model is linear
//! in what a step does (rows, by segments whose slopes differ because kernels work in tiles;
//! logit rows; context tokens read by attention) and is updated by recursive least squares with
//! forgetting: a Kalman filter whose state drifts. Source of the shape: Liu et al. 2024,
//! "SmartSpec/TurboSpec" (arXiv 2406.14066).
//!
//! It refuses to believe one slow step. Shared machines stop a core for ten times a step's
//! length; a surprise is cut to what is plausible, so that only a lasting change is learned.
//! It refuses to predict that more rows take less time, whatever it has measured.
//! It measures steps as they are run, on however many threads somebody else chose for them.

use std::time::Duration;

/// Row counts at which the slope may change.
const KNOTS: [usize; 13] = [1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 128, 256];
/// The base, a slope per knot, one logit row, a thousand context tokens.
const FEATURES: usize = KNOTS.len() + 3;
const LOGITS: usize = FEATURES - 2;
const CONTEXT: usize = FEATURES - 1;

/// Before anything is known: a 135M model on one thread, in seconds (measured for the design,
/// T(1) = 3.7 ms). The first steps scale all of it to the model and machine at hand.
const PRIOR_BASE: f64 = 3.4e-3;
const PRIOR_SLOPES: [f64; KNOTS.len()] = [
    0.5e-3, 0.15e-3, 0.15e-3, 0.4e-3, 0.4e-3, 0.4e-3, 0.4e-3, 0.5e-3, 0.5e-3, 0.5e-3, 0.5e-3,
    0.5e-3, 0.5e-3,
];
const PRIOR_LOGIT_ROW: f64 = 0.1e-3;
/// Not that of the first row, which waits for memory, but of one more beside it: until drafts are
/// tried, nothing else can tell what their rows cost, and plain steps cannot tell this from the base.
const PRIOR_CONTEXT: f64 = 0.6e-3;

/// How far the truth may lie from the prior, as a fraction of it.
const PRIOR_SPREAD: f64 = 0.7;
/// Steps that set the scale. The fastest of them counts: disturbances only ever slow a step down.
const SCALING_STEPS: u32 = 5;
/// Ordinary noise of a step, as a fraction of its time.
const NOISE: f64 = 0.04;
/// What every coefficient may change per step, as a fraction of its prior: about 10 % in a
/// hundred steps.
const DRIFT: f64 = 0.01;
/// A surprise larger than this many standard deviations is cut to it.
const PLAUSIBLE: f64 = 2.5;
/// When the median of this many steps is off by more than this factor, the machine has changed its
/// speed, and all of the model is scaled at once.
const REMEMBERED: usize = 15;
const CHANGED: f64 = 1.25;

/// A model of step times that learns.
#[derive(Debug, Clone)]
pub struct StepCost {
    weights: [f64; FEATURES],
    /// Uncertainty of the weights, as a covariance.
    covariance: [[f64; FEATURES]; FEATURES],
    /// Prior sizes, scaled: what drift and noise are measured against.
    sizes: [f64; FEATURES],
    observed: u32,
    /// Measured over predicted time of the last steps.
    ratios: Vec<f64>,
}

impl Default for StepCost {
    fn default() -> Self {
        let mut sizes = [PRIOR_BASE; FEATURES];
        sizes[1..=KNOTS.len()].copy_from_slice(&PRIOR_SLOPES);
        sizes[LOGITS] = PRIOR_LOGIT_ROW;
        sizes[CONTEXT] = PRIOR_CONTEXT;
        let mut covariance = [[0.0; FEATURES]; FEATURES];
        for (i, size) in sizes.iter().enumerate() {
            covariance[i][i] = (size * PRIOR_SPREAD).powi(2);
        }
        Self {
            weights: sizes,
            covariance,
            sizes,
            observed: 0,
            ratios: Vec::with_capacity(REMEMBERED),
        }
    }
}

impl StepCost {
    /// Predicted time of a step with `rows` rows, `logit_rows` of which need logits, whose
    /// attention reads `context` tokens of keys and values in all. Never shorter for more of any.
    pub fn predict(&self, rows: usize, logit_rows: usize, context: usize) -> Duration {
        Duration::from_secs_f64(self.seconds(rows, logit_rows, context))
    }

    fn seconds(&self, rows: usize, logit_rows: usize, context: usize) -> f64 {
        let features = features(rows, logit_rows, context);
        let terms = self.weights.iter().zip(features);
        // A coefficient below zero is an artefact of noise between features that move together.
        terms
            .map(|(w, x)| w.max(0.0) * x)
            .sum::<f64>()
            .clamp(1e-9, 3_600.0)
    }

    /// Learns from a step that took `took`.
    pub fn observe(&mut self, rows: usize, logit_rows: usize, context: usize, took: Duration) {
        let took = took.as_secs_f64();
        if rows == 0 || took <= 0.0 {
            return;
        }
        let ratio = took / self.seconds(rows, logit_rows, context);
        // After the first step only downwards: a slow one may have been disturbed.
        if self.observed == 0 || (self.observed < SCALING_STEPS && ratio < 1.0) {
            self.rescale(ratio);
        }
        self.observed = self.observed.saturating_add(1);
        self.update(&features(rows, logit_rows, context), took);
        self.follow_speed(ratio);
    }

    /// One step in fifteen may be anything; when half of them disagree, the model is wrong.
    fn follow_speed(&mut self, ratio: f64) {
        self.ratios.push(ratio);
        if self.ratios.len() < REMEMBERED {
            return;
        }
        self.ratios.sort_by(f64::total_cmp);
        let median = self.ratios[REMEMBERED / 2];
        self.ratios.clear();
        if !(CHANGED.recip()..CHANGED).contains(&median) {
            self.rescale(median);
        }
    }

    /// The prior is right about shapes, not about this machine and model.
    fn rescale(&mut self, ratio: f64) {
        for i in 0..FEATURES {
            self.weights[i] *= ratio;
            self.sizes[i] *= ratio;
            self.covariance[i]
                .iter_mut()
                .for_each(|c| *c *= ratio * ratio);
        }
    }

    fn update(&mut self, x: &[f64; FEATURES], took: f64) {
        for (i, size) in self.sizes.iter().enumerate() {
            let spread = &mut self.covariance[i][i];
            // What is not being measured does not become less known than the prior.
            *spread =
                (*spread + (size * DRIFT).powi(2)).min((size * PRIOR_SPREAD).powi(2).max(*spread));
        }
        let mut gain = [0.0; FEATURES];
        for (g, row) in gain.iter_mut().zip(&self.covariance) {
            *g = row.iter().zip(x).map(|(c, x)| c * x).sum();
        }
        let spread: f64 = gain.iter().zip(x).map(|(g, x)| g * x).sum();
        let predicted: f64 = self.weights.iter().zip(x).map(|(w, x)| w * x).sum();
        let noise = (NOISE * predicted.max(took.min(2.0 * predicted.abs()))).powi(2);
        let variance = spread.max(0.0) + noise;
        let limit = PLAUSIBLE * variance.sqrt();
        let surprise = (took - predicted).clamp(-limit, limit);
        for i in 0..FEATURES {
            self.weights[i] += gain[i] / variance * surprise;
            for j in 0..FEATURES {
                self.covariance[i][j] -= gain[i] * gain[j] / variance;
            }
        }
        // Rounding must not make a variance negative.
        for (i, size) in self.sizes.iter().enumerate() {
            self.covariance[i][i] = self.covariance[i][i].max((size * 1e-4).powi(2));
        }
    }

    /// The most rows, at least 1, whose step is predicted to stay within `budget`: one of them
    /// with logits, each reading `each` tokens on top of `context` in all.
    pub fn rows_within(&self, budget: Duration, context: usize, each: usize) -> usize {
        let budget = budget.as_secs_f64();
        let (mut fits, mut too_many) = (1, 1 << 16);
        while too_many - fits > 1 {
            let middle = (fits + too_many) / 2;
            if self.seconds(middle, 1, context + middle * each) <= budget {
                fits = middle;
            } else {
                too_many = middle;
            }
        }
        fits
    }
}

fn features(rows: usize, logit_rows: usize, context: usize) -> [f64; FEATURES] {
    let mut x = [0.0; FEATURES];
    x[0] = 1.0;
    for (i, knot) in KNOTS.iter().enumerate() {
        let next = KNOTS.get(i + 1).copied().unwrap_or(usize::MAX);
        x[i + 1] = rows.min(next).saturating_sub(*knot) as f64;
    }
    // One logit row belongs to the base: hardly a step has none.
    x[LOGITS] = logit_rows.saturating_sub(1) as f64;
    x[CONTEXT] = context as f64 / 1_000.0;
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix;

    /// A machine with tile effects; `slow` scales it. Seconds.
    fn truth(rows: usize, logit_rows: usize, context: usize, slow: f64) -> f64 {
        let ratios = [1.0, 1.17, 1.2, 1.23, 1.4, 1.5, 1.6, 1.75];
        let base = ratios
            .get(rows - 1)
            .copied()
            .unwrap_or(1.75 + 0.14 * (rows as f64 - 8.0));
        let extra = logit_rows.saturating_sub(1) as f64 * 0.01 + context as f64 * 0.000_3;
        (base + extra) * slow
    }

    fn uniform(random: &mut SplitMix) -> f64 {
        random.below(1 << 20) as f64 / f64::from(1 << 20)
    }

    /// Feeds steps of mixed sizes, with noise, and one in ten of them up to ten times too slow.
    fn feed(cost: &mut StepCost, random: &mut SplitMix, steps: usize, slow: f64) {
        for _ in 0..steps {
            let decode = random.below(4) > 0;
            let rows = if decode {
                1 + random.below(8)
            } else {
                9 + random.below(250)
            };
            let logits = if decode { rows } else { 1 };
            let context = 50 + random.below(1_000);
            let mut took =
                truth(rows, logits, context, slow) * (1.0 + 0.06 * (uniform(random) - 0.5));
            if random.below(10) == 0 {
                took *= 2.0 + 8.0 * uniform(random);
            }
            cost.observe(rows, logits, context, Duration::from_secs_f64(took));
        }
    }

    fn assert_close(cost: &StepCost, slow: f64, within: f64, seed: u64) {
        for rows in [1, 2, 3, 4, 5, 6, 7, 8, 40, 128, 250] {
            for context in [100, 1_000] {
                let logits = if rows > 8 { 1 } else { rows };
                let real = truth(rows, logits, context, slow);
                let error = cost.seconds(rows, logits, context) / real - 1.0;
                assert!(
                    error.abs() < within,
                    "seed {seed}: {rows} rows, context {context}: {error:+.3}"
                );
            }
        }
    }

    #[test]
    fn it_finds_the_truth_of_any_machine_among_outliers() {
        for seed in 0..20 {
            let mut random = SplitMix::new(seed);
            for slow in [0.000_2, 0.003_7, 0.4] {
                let mut cost = StepCost::default();
                feed(&mut cost, &mut random, 600, slow);
                assert_close(&cost, slow, 0.1, seed);
            }
        }
    }

    #[test]
    fn a_lasting_change_is_learned_and_one_slow_step_is_not() {
        for seed in 0..20 {
            let mut random = SplitMix::new(seed);
            let mut cost = StepCost::default();
            feed(&mut cost, &mut random, 400, 0.004);
            let before = cost.predict(1, 1, 100);
            cost.observe(1, 1, 100, before * 50);
            let after = cost.predict(1, 1, 100);
            assert!(
                after < before.mul_f64(1.12),
                "seed {seed}: {before:?} {after:?}"
            );
            feed(&mut cost, &mut random, 400, 0.012);
            assert_close(&cost, 0.012, 0.12, seed);
            feed(&mut cost, &mut random, 400, 0.004);
            assert_close(&cost, 0.004, 0.12, seed);
        }
    }

    #[test]
    fn more_work_is_never_predicted_to_take_less_time() {
        for seed in 0..50 {
            let mut random = SplitMix::new(seed);
            let mut cost = StepCost::default();
            for _ in 0..random.below(200) {
                // Nonsense: times that have nothing to do with the work.
                let took = Duration::from_micros(1 + random.below(50_000) as u64);
                let rows = 1 + random.below(300);
                cost.observe(rows, 1 + random.below(rows), random.below(4_000), took);
            }
            let mut last = Duration::ZERO;
            for rows in 1..400 {
                let time = cost.predict(rows, 1, 500);
                assert!(
                    time >= last,
                    "seed {seed}: {rows} rows {time:?} after {last:?}"
                );
                assert!(cost.predict(rows, 2, 500) >= time && cost.predict(rows, 1, 600) >= time);
                last = time;
            }
        }
    }

    #[test]
    fn a_budget_in_time_becomes_rows() {
        let cost = StepCost::default();
        assert_eq!(
            cost.rows_within(Duration::ZERO, 100, 0),
            1,
            "somebody must get on"
        );
        for rows in [2, 7, 8, 33, 200, 1_000] {
            let budget = cost.predict(rows, 1, 100);
            let fits = cost.rows_within(budget, 100, 0);
            assert!(fits.abs_diff(rows) <= 1, "{rows}: {fits}");
            let budget = cost.predict(rows, 1, 100 + rows * 8_000);
            let fits = cost.rows_within(budget, 100, 8_000);
            assert!(fits.abs_diff(rows) <= 1, "{rows} far down a prompt: {fits}");
        }
    }
}
