//! Has a tier begun to guess? Its tokens' log-probabilities against what is usual for it.
//!
//! One token that surprises its own model says nothing: names and numbers do. Many in a row do.
//! So the surprisals are added up as a one-sided CUSUM (Page 1954): what exceeds the usual by more
//! than an allowance is kept, what falls below takes away, and a sum that passes the limit trips.
//! What is usual is learned from accepted answers of the same tier, apart for greedy and sampled
//! ones, since sampling surprises by design. It refuses to trip before it has learned enough:
//! a tier that nobody knows yet is judged by the validator alone.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Deviations above the usual that are no cause for doubt: half of the smallest shift that is to be
/// found quickly, one deviation, as Page's sum is best with.
const ALLOWANCE: f64 = 0.5;
/// Sum of deviations that trips. With [`ALLOWANCE`] and [`MOST_OF_ONE`], on independent
/// exponential surprisals: one false trip in some 10,000 tokens; a doubled surprisal is noticed
/// after 25 tokens, a tripled one after 12. The test below measures it.
const LIMIT: f64 = 10.0;
/// What one token may count, in deviations: a single rare word must not trip.
const MOST_OF_ONE: f64 = 4.0;
/// Tokens that must be learned before anything trips: a dozen answers or more.
const LEARNED_MIN: f64 = 1_000.0;
/// Tokens that the usual is an average of; a changed model is learned anew within them.
const MEMORY: f64 = 20_000.0;

/// Running mean and variance of surprisals, in nats.
#[derive(Debug, Clone, Copy, Default)]
struct Usual {
    tokens: f64,
    mean: f64,
    variance: f64,
}

impl Usual {
    fn learn(&mut self, surprisal: f64) {
        self.tokens = (self.tokens + 1.0).min(MEMORY);
        let off = surprisal - self.mean;
        self.mean += off / self.tokens;
        self.variance += (off * (surprisal - self.mean) - self.variance) / self.tokens;
    }
}

/// What is usual for every tier. Shared by all requests.
#[derive(Debug, Default)]
pub(crate) struct Baselines {
    by_tier: Mutex<HashMap<(String, bool), Usual>>,
}

impl Baselines {
    /// An answer of `tier` was accepted; `logprobs` are natural logarithms.
    pub(crate) fn learn(&self, tier: &str, greedy: bool, logprobs: impl Iterator<Item = f32>) {
        let mut by_tier = self.lock();
        let usual = by_tier.entry((tier.to_owned(), greedy)).or_default();
        for logprob in logprobs.filter(|l| l.is_finite()) {
            usual.learn(-f64::from(logprob));
        }
    }

    /// A sum that starts at 0; `None` before enough was learned of `tier`.
    pub(crate) fn watch(&self, tier: &str, greedy: bool) -> Option<Cusum> {
        let usual = *self.lock().get(&(tier.to_owned(), greedy))?;
        let known = usual.tokens >= LEARNED_MIN && usual.variance > 0.0;
        known.then(|| Cusum {
            mean: usual.mean,
            deviation: usual.variance.sqrt(),
            sum: 0.0,
        })
    }

    /// Every change is complete before it could panic.
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, bool), Usual>> {
        self.by_tier.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sum over one answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cusum {
    mean: f64,
    deviation: f64,
    sum: f64,
}

impl Cusum {
    /// Takes one more token. Once it has passed the limit: the words for the record.
    pub(crate) fn take(&mut self, logprob: f32) -> Option<String> {
        let above = (-f64::from(logprob) - self.mean) / self.deviation;
        self.sum = (self.sum + above.min(MOST_OF_ONE) - ALLOWANCE).max(0.0);
        (self.sum > LIMIT).then(|| {
            format!(
                "its tokens surprise the tier itself: cumulated {:.1} deviations above its usual \
                 {:.2} nats, limit {LIMIT}",
                self.sum, self.mean
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exponential surprisals of a mean, from a seed: splitmix64.
    struct Surprisals(u64, f64);

    impl Iterator for Surprisals {
        type Item = f32;

        fn next(&mut self) -> Option<f32> {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let unit = ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
            Some(((1.0 - unit).ln() * self.1) as f32)
        }
    }

    fn learned() -> Baselines {
        let baselines = Baselines::default();
        baselines.learn("small", true, Surprisals(1, 0.4).take(20_000));
        baselines
    }

    /// Mean number of tokens until it trips.
    fn run_length(baselines: &Baselines, mean: f64, runs: u64) -> f64 {
        let one = |seed| {
            let mut cusum = baselines.watch("small", true).expect("learned");
            let tokens = Surprisals(seed * 7_919, mean).take(200_000);
            let mut tokens = tokens.enumerate();
            let trip = tokens.find(|(_, logprob)| cusum.take(*logprob).is_some());
            trip.map_or(200_000, |(at, _)| at + 1) as f64
        };
        (1..=runs).map(one).sum::<f64>() / runs as f64
    }

    #[test]
    fn a_false_trip_is_rare_and_a_true_one_comes_within_what_is_held_back() {
        let baselines = learned();
        let (usual, doubled) = (
            run_length(&baselines, 0.4, 60),
            run_length(&baselines, 0.8, 400),
        );
        let tripled = run_length(&baselines, 1.2, 400);
        println!("tokens to a trip: usual {usual:.0}, doubled {doubled:.1}, tripled {tripled:.1}");
        assert!(usual > 5_000.0, "{usual}");
        assert!(doubled < 32.0, "{doubled}");
        assert!(tripled < 16.0, "{tripled}");
    }

    #[test]
    fn one_rare_word_does_not_trip_and_nothing_does_before_enough_is_known() {
        let baselines = learned();
        let mut cusum = baselines.watch("small", true).expect("learned");
        assert_eq!(cusum.take(-50.0), None);
        assert_eq!(cusum.take(f32::NEG_INFINITY), None);
        assert!(
            baselines.watch("small", false).is_none(),
            "sampled answers are apart"
        );
        assert!(baselines.watch("large", true).is_none());
        baselines.learn("large", true, Surprisals(2, 0.4).take(999));
        assert!(baselines.watch("large", true).is_none());
    }
}
