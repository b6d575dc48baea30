//! Has a tier begun to guess? Its tokens' log-probabilities against what is usual for it.
//!
//! One token that surprises its own model says nothing: names and numbers do. Many in a row do.
//! So the surprisals are added up as a one-sided CUSUM (Page 1954): what exceeds the usual by more
//! than an allowance is kept, what falls below takes away, and a sum that passes the limit trips.
//! What is usual is learned from accepted answers of the same tier, apart for greedy and sampled
//! ones, since sampling surprises by design. It refuses to trip before it has learned enough:
//! a tier that nobody knows yet is judged by the validator alone. And it refuses what was learned
//! in an earlier life of another model than the tier has now.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// Of the text that outlives a restart.
const FORMAT: u32 = 1;

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
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
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

    /// Whether it can have been learned.
    fn is_sound(&self) -> bool {
        (0.0..=MEMORY).contains(&self.tokens) && self.mean.is_finite() && self.variance >= 0.0
    }
}

/// What outlives a restart.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    format: u32,
    tiers: BTreeMap<String, KeptTier>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptTier {
    model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    greedy: Option<Usual>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sampled: Option<Usual>,
}

/// What is usual for every tier. Shared by all requests.
#[derive(Debug, Default)]
pub struct Baselines {
    models: HashMap<String, String>,
    by_tier: Mutex<HashMap<(String, bool), Usual>>,
}

impl Baselines {
    /// Nothing is learned yet. `models` says by a tier's id which model it has, in words that
    /// change with the model; what is learned of a tier that is not named ends with the process.
    pub fn new(models: HashMap<String, String>) -> Self {
        Self {
            models,
            by_tier: Mutex::default(),
        }
    }

    /// What was learned so far, as JSON: by tier, tokens (at most 20,000 count), mean (nats) and
    /// variance (nats²) of their surprisals.
    pub fn text(&self) -> String {
        let by_tier = self.lock();
        let usual = |tier: &String, greedy| by_tier.get(&(tier.clone(), greedy)).copied();
        let tiers = self.models.iter().map(|(tier, model)| {
            let kept = KeptTier {
                model: model.clone(),
                greedy: usual(tier, true),
                sampled: usual(tier, false),
            };
            (tier.clone(), kept)
        });
        let tiers = tiers.filter(|(_, kept)| kept.greedy.is_some() || kept.sampled.is_some());
        let kept = Kept {
            format: FORMAT,
            tiers: tiers.collect(),
        };
        serde_json::to_string_pretty(&kept).expect("numbers and words serialise")
    }

    /// Takes what [`text`](Self::text) gave in an earlier life, of tiers that have the same model
    /// as then. Answers the ids of those that have another: they are learned anew.
    ///
    /// # Errors
    /// What is wrong with a text that `text` cannot have given. Nothing of it is taken.
    pub fn recall(&self, text: &str) -> Result<Vec<String>, String> {
        let kept: Kept = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if kept.format != FORMAT {
            let format = kept.format;
            return Err(format!("has format {format}, this host reads {FORMAT}"));
        }
        for (id, tier) in &kept.tiers {
            let mut usuals = tier.greedy.iter().chain(&tier.sampled);
            if !usuals.all(Usual::is_sound) {
                return Err(format!("tier {id}: these are no mean and variance"));
            }
        }
        let mut by_tier = self.lock();
        let mut changed = Vec::new();
        for (id, tier) in kept.tiers {
            // A tier that is gone concerns nobody.
            let Some(model) = self.models.get(&id) else {
                continue;
            };
            if *model != tier.model {
                changed.push(id);
                continue;
            }
            for (greedy, usual) in [(true, tier.greedy), (false, tier.sampled)] {
                if let Some(usual) = usual {
                    by_tier.insert((id.clone(), greedy), usual);
                }
            }
        }
        Ok(changed)
    }

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

    /// A life in which these tiers have these models.
    fn life(models: &[(&str, &str)]) -> Baselines {
        let models = models.iter();
        let models = models.map(|(tier, model)| (tier.to_string(), model.to_string()));
        Baselines::new(models.collect())
    }

    /// What a life leaves in which both tiers were learned, `large` by half.
    fn left_behind() -> String {
        let baselines = life(&[("small", "a"), ("large", "b")]);
        baselines.learn("small", true, Surprisals(1, 0.4).take(1_500));
        baselines.learn("small", false, Surprisals(2, 1.6).take(1_500));
        baselines.learn("large", true, Surprisals(3, 0.4).take(600));
        baselines.learn("nobody's", true, Surprisals(4, 0.4).take(1_500));
        baselines.text()
    }

    #[test]
    fn what_was_learned_outlives_a_restart_and_is_learned_on() {
        let text = left_behind();
        assert!(!text.contains("nobody's"), "{text}");
        let next = life(&[("small", "a"), ("large", "b")]);
        assert_eq!(next.recall(&text), Ok(vec![]));
        assert_eq!(next.text(), text);
        let means = [true, false].map(|greedy| next.watch("small", greedy).expect("known").mean);
        assert!((means[0] - 0.4).abs() < 0.1, "{means:?}");
        assert!((means[1] - 1.6).abs() < 0.4, "{means:?}");
        assert!(next.watch("large", true).is_none());
        next.learn("large", true, Surprisals(5, 0.4).take(400));
        assert!(next.watch("large", true).is_some());
    }

    #[test]
    fn another_models_usual_and_that_of_a_tier_that_is_gone_are_not_taken() {
        let next = life(&[("small", "a2"), ("huge", "b")]);
        assert_eq!(next.recall(&left_behind()), Ok(vec!["small".to_owned()]));
        assert!(next.watch("small", true).is_none());
        assert!(next.watch("small", false).is_none());
        assert_eq!(next.text(), life(&[]).text());
    }

    #[test]
    fn a_text_that_is_damaged_or_not_ours_is_refused_as_a_whole() {
        let whole = left_behind();
        let text_of = |usual: &str| {
            let good = r#"{"model":"a","greedy":{"tokens":1500.0,"mean":0.4,"variance":0.2}}"#;
            let tier = format!(r#"{{"model":"b","greedy":{{{usual}}}}}"#);
            format!(r#"{{"format":1,"tiers":{{"a-good":{good},"small":{tier}}}}}"#)
        };
        let damaged = [
            whole[..whole.len() / 2].to_owned(),
            String::new(),
            "[]".to_owned(),
            r#"{"format":1,"budgets":{}}"#.to_owned(),
            r#"{"format":2,"tiers":{}}"#.to_owned(),
            text_of(r#""tokens":1500.0,"mean":0.4,"variance":-0.2"#),
            text_of(r#""tokens":-1.0,"mean":0.4,"variance":0.2"#),
            text_of(r#""tokens":1e9,"mean":0.4,"variance":0.2"#),
            text_of(r#""tokens":1500.0,"mean":null,"variance":0.2"#),
            text_of(r#""tokens":1500.0,"mean":0.4"#),
        ];
        let next = life(&[("a-good", "a"), ("small", "b")]);
        for text in damaged {
            assert!(next.recall(&text).is_err(), "{text}");
            assert_eq!(next.text(), life(&[]).text(), "{text}");
        }
        let sound = text_of(r#""tokens":1500.0,"mean":0.4,"variance":0.2"#);
        assert_eq!(next.recall(&sound), Ok(vec![]));
        assert!(next.watch("a-good", true).is_some() && next.watch("small", true).is_some());
    }
}
