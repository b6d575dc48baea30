//! From the energy of a step to the energy of each sequence in it.
//!
//! A step pays once for what any one of its sequences would need: reading the weights and
//! the fixed overhead. That is shared equally. Keys and values that are read, and tokens
//! that are computed, are their owner's. Static power follows the resource that the step
//! waits for. If that is memory for a small batch and compute for a larger one, it follows
//! memory for the share of the batch at which the two meet, and compute beyond (the
//! Aumann–Shapley price of the larger of the two times). For a step this is the Shapley
//! value in closed form, up to the corner where the two resources meet.
//!
//! What a byte, an operation and a second cost on a device is learned from the windows of
//! its meter. Until that is known energy follows time, and without the model's sizes it
//! follows computed tokens. It refuses to guess sizes.

use crate::least_squares::LeastSquares;

/// Weight that a window keeps when the next is learned.
const KEEP: f64 = 0.9995;
/// Windows before the fit is used.
const TRAINED_WINDOWS: u64 = 100;
/// Forgetting of the fit's error.
const ERROR_KEEP: f64 = 0.998;

/// A step shorter than this was timed by a clock that stood still.
const SHORTEST_STEP_S: f64 = 1e-5;

/// Prompt or answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The prompt is read.
    Prefill,
    /// The answer is written.
    Decode,
}

/// What one sequence did in one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SequenceWork {
    /// The request it belongs to; all attempts of one request carry the same.
    pub request: u64,
    /// What it was doing.
    pub phase: Phase,
    /// Tokens computed, rejected guesses included, cached ones not.
    pub computed_tokens: u32,
    /// Tokens of context that they looked at.
    pub context_tokens: u32,
    /// Computed guesses that were thrown away.
    pub rejected_tokens: u32,
}

/// Sizes of a model, for what a step reads and computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelCost {
    /// Weights that every step reads, bytes.
    pub weight_bytes: f64,
    /// Keys and values of one token, bytes.
    pub kv_bytes_per_token: f64,
    /// Operations for one token, about two per active parameter.
    pub flops_per_token: f64,
    /// Operations for one token and one token of its context.
    pub flops_per_context_token: f64,
}

impl ModelCost {
    fn kv_bytes(&self, work: &SequenceWork) -> f64 {
        self.kv_bytes_per_token * f64::from(work.context_tokens + work.computed_tokens)
    }

    fn flops(&self, work: &SequenceWork) -> f64 {
        let per_token =
            self.flops_per_token + self.flops_per_context_token * f64::from(work.context_tokens);
        per_token * f64::from(work.computed_tokens)
    }

    /// Memory traffic of a step, bytes.
    pub fn step_bytes(&self, work: &[SequenceWork]) -> f64 {
        self.weight_bytes + work.iter().map(|w| self.kv_bytes(w)).sum::<f64>()
    }

    /// Operations of a step.
    pub fn step_flops(&self, work: &[SequenceWork]) -> f64 {
        work.iter().map(|w| self.flops(w)).sum()
    }
}

/// How the energy of a step was split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SplitMethod {
    /// By fitted costs of bytes, operations and time.
    Components,
    /// By the time that each sequence's bytes and operations take.
    Time,
    /// By computed tokens: the model's sizes are not known.
    Tokens,
}

/// The part of one sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SequencePart {
    /// Weight among the sequences of the step.
    pub weight: f64,
    /// Share of this part that rejected guesses caused.
    pub wasted_ratio: f64,
}

/// Which rates a device was seen to reach.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Rates {
    bytes_per_s: f64,
    flops_per_s: f64,
}

/// What the energy of a device depends on, learned from its windows.
#[derive(Debug, Clone)]
pub struct CostFit {
    rates: Rates,
    fit: LeastSquares<3>,
    /// W, J/B, J/FLOP.
    coefficients: Option<[f64; 3]>,
    error_square: f64,
    energy_square: f64,
}

impl Default for CostFit {
    fn default() -> Self {
        Self {
            rates: Rates::default(),
            fit: LeastSquares::new(KEEP, 0),
            coefficients: None,
            error_square: 0.0,
            energy_square: 0.0,
        }
    }
}

/// A step as one device sees it: its time, and its bytes and operations where the model's
/// sizes are known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepCost {
    /// Duration, s.
    pub seconds: f64,
    /// Memory traffic, bytes.
    pub bytes: f64,
    /// Operations.
    pub flops: f64,
}

impl CostFit {
    /// Learns which rates the device reaches.
    pub fn saw_step(&mut self, step: &StepCost) {
        if step.seconds > SHORTEST_STEP_S {
            let rates = &mut self.rates;
            rates.bytes_per_s = rates.bytes_per_s.max(step.bytes / step.seconds);
            rates.flops_per_s = rates.flops_per_s.max(step.flops / step.seconds);
        }
    }

    /// Learns from a window: its length, all that was done in it and what it took, J.
    pub fn saw_window(&mut self, done: &StepCost, joules: f64) {
        let inputs = [done.seconds, done.bytes, done.flops];
        if let Some(coefficients) = self.trained() {
            let expected: f64 = inputs.iter().zip(coefficients).map(|(x, c)| x * c).sum();
            self.error_square = ERROR_KEEP * self.error_square + (joules - expected).powi(2);
            self.energy_square = ERROR_KEEP * self.energy_square + joules * joules;
        }
        // The edges of a window are uncertain by a fixed time, so long windows say more.
        self.fit
            .observe(&inputs, joules, 1.0 / done.seconds.max(1e-3));
        self.coefficients = self.fit.solve();
    }

    fn trained(&self) -> Option<[f64; 3]> {
        self.coefficients
            .filter(|_| self.fit.observations() >= TRAINED_WINDOWS)
    }

    /// Static power W, J per byte, J per operation, once they are known.
    pub fn coefficients(&self) -> Option<[f64; 3]> {
        self.trained()
    }

    /// Root mean square of what the fit missed, as a share of the energy.
    pub fn relative_error(&self) -> Option<f64> {
        (self.energy_square > 0.0).then(|| (self.error_square / self.energy_square).sqrt())
    }

    /// Expected energy of a step, J; before the fit is known its time stands in, which is
    /// enough for comparing steps.
    pub fn expected(&self, step: &StepCost) -> f64 {
        match self.trained() {
            Some([watts, per_byte, per_flop]) => {
                watts * step.seconds + per_byte * step.bytes + per_flop * step.flops
            }
            None => step.seconds,
        }
    }

    /// Expected energy of so much time in which nothing runs, on the same scale.
    pub fn expected_idle(&self, seconds: f64) -> f64 {
        self.expected(&StepCost {
            seconds,
            bytes: 0.0,
            flops: 0.0,
        })
    }

    /// Splits a step of so many seconds among its sequences.
    pub fn split(
        &self,
        seconds: f64,
        cost: Option<&ModelCost>,
        work: &[SequenceWork],
    ) -> (SplitMethod, Vec<SequencePart>) {
        let rejected = |w: &SequenceWork| {
            f64::from(w.rejected_tokens.min(w.computed_tokens))
                / f64::from(w.computed_tokens.max(1))
        };
        let Some(cost) = cost.filter(|_| self.rates.bytes_per_s > 0.0) else {
            let by_tokens = |w: &SequenceWork| SequencePart {
                weight: f64::from(w.computed_tokens),
                wasted_ratio: rejected(w),
            };
            return (SplitMethod::Tokens, work.iter().map(by_tokens).collect());
        };
        let (method, [watts, per_byte, per_flop]) = match self.trained() {
            Some(coefficients) => (SplitMethod::Components, coefficients),
            None => (SplitMethod::Time, [1.0, 0.0, 0.0]),
        };
        let time = TimeSplit::of(seconds, cost, work, &self.rates);
        let share = 1.0 / work.len() as f64;
        let shared = share * (watts * time.shared_s + per_byte * cost.weight_bytes);
        let part = |w: &SequenceWork| {
            let (bytes, flops) = (cost.kv_bytes(w), cost.flops(w));
            let memory = watts * time.memory_ratio * bytes / self.rates.bytes_per_s;
            let compute = watts * time.compute_ratio * time.per_flop(&self.rates) * flops;
            let computed = compute + per_flop * flops;
            let weight = shared + memory + per_byte * bytes + computed;
            SequencePart {
                weight,
                wasted_ratio: match weight > 0.0 {
                    true => rejected(w) * computed / weight,
                    false => 0.0,
                },
            }
        };
        (method, work.iter().map(part).collect())
    }
}

/// Whose time a step's time is.
struct TimeSplit {
    /// Everybody's alike: overhead, and reading the weights.
    shared_s: f64,
    /// How much of the time of its bytes a sequence pays.
    memory_ratio: f64,
    /// How much of the time of its operations a sequence pays.
    compute_ratio: f64,
}

impl TimeSplit {
    fn of(seconds: f64, cost: &ModelCost, work: &[SequenceWork], rates: &Rates) -> Self {
        let weights_s = cost.weight_bytes / rates.bytes_per_s;
        let memory_s = cost.step_bytes(work) / rates.bytes_per_s - weights_s;
        let compute_s = match rates.flops_per_s > 0.0 {
            true => cost.step_flops(work) / rates.flops_per_s,
            false => 0.0,
        };
        let busy_s = compute_s.max(weights_s + memory_s);
        // The share of the batch at which computing takes as long as reading.
        let meet = match compute_s > weights_s + memory_s {
            true => weights_s / (compute_s - memory_s),
            false => 1.0,
        };
        // Clocks may be slower than the best that was seen: then all of it took longer.
        let scale = if busy_s > 0.0 {
            (seconds / busy_s).min(1.0)
        } else {
            1.0
        };
        Self {
            shared_s: (seconds - busy_s).max(0.0) + scale * weights_s,
            memory_ratio: scale * meet,
            compute_ratio: scale * (1.0 - meet),
        }
    }

    fn per_flop(&self, rates: &Rates) -> f64 {
        match rates.flops_per_s > 0.0 {
            true => 1.0 / rates.flops_per_s,
            false => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: ModelCost = ModelCost {
        weight_bytes: 16e9,
        kv_bytes_per_token: 131_072.0,
        flops_per_token: 16e9,
        flops_per_context_token: 0.0,
    };

    fn decode(request: u64, context_tokens: u32) -> SequenceWork {
        SequenceWork {
            request,
            phase: Phase::Decode,
            computed_tokens: 1,
            context_tokens,
            rejected_tokens: 0,
        }
    }

    fn taught() -> CostFit {
        let mut fit = CostFit::default();
        for i in 0..300u32 {
            let (bytes, flops) = (16e9 + 1e8 * f64::from(i % 7), 1e12 * f64::from(i % 5));
            let seconds = (bytes / 4e12).max(flops / 7e14) + 0.001;
            let step = StepCost {
                seconds,
                bytes,
                flops,
            };
            fit.saw_step(&step);
            fit.saw_window(&step, 110.0 * seconds + 40e-12 * bytes + 0.77e-12 * flops);
        }
        fit
    }

    #[test]
    fn the_costs_of_time_bytes_and_operations_are_learned_from_windows() {
        let fit = taught();
        let [watts, per_byte, per_flop] = fit.coefficients().expect("trained");
        assert!((watts / 110.0 - 1.0).abs() < 1e-3, "{watts}");
        assert!((per_byte / 40e-12 - 1.0).abs() < 1e-3, "{per_byte}");
        assert!((per_flop / 0.77e-12 - 1.0).abs() < 1e-3, "{per_flop}");
        assert!(fit.relative_error().expect("checked") < 1e-3);
    }

    #[test]
    fn equal_sequences_get_equal_parts_and_a_longer_context_pays_for_itself() {
        let (method, parts) = taught().split(
            0.006,
            Some(&COST),
            &[decode(1, 1_000), decode(2, 1_000), decode(3, 8_000)],
        );
        assert_eq!(method, SplitMethod::Components);
        assert_eq!(parts[0], parts[1]);
        assert!(parts[2].weight > parts[0].weight);
    }

    #[test]
    fn a_prefill_beside_decodes_pays_for_its_operations() {
        let prefill = SequenceWork {
            phase: Phase::Prefill,
            computed_tokens: 512,
            ..decode(1, 0)
        };
        let (_, parts) = taught().split(0.013, Some(&COST), &[prefill, decode(2, 100)]);
        assert!(parts[0].weight > 2.0 * parts[1].weight, "{parts:?}");
        assert!(
            parts[0].weight < 512.0 * parts[1].weight,
            "the weights were read for both"
        );
    }

    #[test]
    fn without_sizes_tokens_decide_and_without_a_fit_time_does() {
        let work = [decode(1, 10), decode(2, 10)];
        let (method, parts) = CostFit::default().split(0.01, None, &work);
        assert_eq!(method, SplitMethod::Tokens);
        assert_eq!(parts[0], parts[1]);
        let mut young = CostFit::default();
        young.saw_step(&StepCost {
            seconds: 0.01,
            bytes: 4e10,
            flops: 1e12,
        });
        assert_eq!(young.split(0.01, Some(&COST), &work).0, SplitMethod::Time);
    }

    #[test]
    fn rejected_guesses_waste_their_operations_and_not_the_weights_that_were_read_anyway() {
        let guessing = SequenceWork {
            computed_tokens: 5,
            rejected_tokens: 4,
            ..decode(1, 100)
        };
        let (_, parts) = taught().split(0.006, Some(&COST), &[guessing]);
        assert!(parts[0].wasted_ratio > 0.0 && parts[0].wasted_ratio < 0.5);
        let (_, parts) = taught().split(0.006, None, &[guessing]);
        assert_eq!(parts[0].wasted_ratio, 0.8);
    }
}
