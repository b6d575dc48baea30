//! What two tiers make of this request, where a classifier tells what two models made of
//! recorded ones.
//!
//! Its attributes are `weak-right`, the probability that a weak model answers right, and
//! `strong-gain`, what a strong one adds to it. The models were others than ours, so neither
//! number is a tier's quality. But how far this request is from the middle of those that were
//! recorded is: by as much, in log-odds, the stated quality of each tier is moved. Only within
//! the classifier's experience, as far as it trusts itself, and only between two tiers of which
//! somebody knows the quality.

use homeostat_sdk::*;

use crate::pressure::unit;

/// Share of right answers of the two models over all recorded requests (MMLU and GSM8K by
/// Mixtral-8x7B and GPT-4, of RouteLLM's outcomes).
const RECORDED: [f32; 2] = [0.68, 0.82];
/// Beyond this a probability is no more certain: log-odds of nothing have no end.
const EDGE: f32 = 0.02;

/// Qualities of the smaller and the larger tier for this request, from what they are on
/// requests as they come. `None` where the classifier does not tell.
pub(crate) fn qualities(c: &Classification, ordinary: [f32; 2]) -> Option<[f32; 2]> {
    let weak = told(c, "weak-right")?;
    let strong = weak + told(c, "strong-gain")?;
    let moved = |i: usize, right: f32| odds(ordinary[i]) + odds(right) - odds(RECORDED[i]);
    Some([moved(0, weak), moved(1, strong)].map(|z| 1.0 / (1.0 + (-z).exp())))
}

fn odds(p: f32) -> f32 {
    let p = unit(p).clamp(EDGE, 1.0 - EDGE);
    (p / (1.0 - p)).ln()
}

fn told(c: &Classification, key: &str) -> Option<f32> {
    match c.attributes.iter().find(|(name, _)| name == key)? {
        (_, Value::Number(number)) if number.is_finite() => Some(*number as f32),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told_of(weak: f64, gain: f64) -> Classification {
        Classification {
            attributes: vec![
                ("weak-right".into(), Value::Number(weak)),
                ("strong-gain".into(), Value::Number(gain)),
            ],
            ..Classification::default()
        }
    }

    #[test]
    fn the_middle_of_what_was_recorded_changes_nothing_and_the_rest_moves_by_its_distance() {
        let of = |weak, gain| qualities(&told_of(weak, gain), [0.5, 0.9]).expect("both are told");
        let [small, large] = of(0.68, 0.14);
        assert!((small - 0.5).abs() < 1e-4 && (large - 0.9).abs() < 1e-4);
        let [easy, _] = of(0.9, 0.0);
        let [hard, strong] = of(0.3, 0.5);
        assert!(
            hard < 0.3 && easy > 0.75 && strong > 0.85,
            "{hard} {easy} {strong}"
        );
        assert_eq!(qualities(&Classification::default(), [0.5, 0.9]), None);
        for wild in [f64::NAN, f64::INFINITY, -7.0, 1e300] {
            let found = qualities(&told_of(wild, wild), [0.0, 1.0]).unwrap_or_default();
            assert!(found.iter().all(|q| (0.0..=1.0).contains(q)), "{found:?}");
        }
    }
}
