//! From token log-probabilities and failed checks to one probability.

use homeostat_sdk::Finding;

/// Tokens of the window whose mean must not collapse: about one clause. A whole answer can
/// be likely on average and invented in one place.
const WINDOW: usize = 8;
/// Below this a token was a guess: probability one tenth.
const GUESS: f32 = -std::f32::consts::LN_10;

/// Log-odds of a right answer: `BASE + MEAN·mean + LOWEST·lowest window + GUESSES·share`.
///
/// Source: set by hand. The recorded data holds no log-probabilities, so nothing could be
/// fitted. An average of −0.1 without a weak spot means 0.86, one of −1 means about a
/// half, one of −1.5 a quarter: steeper than the published rule clamp((average + 3) / 3),
/// which never falls low for answers that small models give.
const BASE: f32 = 2.0;
const MEAN: f32 = 1.6;
const LOWEST: f32 = 0.4;
const GUESSES: f32 = -3.0;

/// Log-odds when the tier gives no log-probabilities: 0.62, a little less than the 66 % of
/// Mixtral-8x7B's 531 recorded GSM8K answers (the part fitted on) that are right.
const BLIND: f32 = 0.5;

/// The confidence and the finding that explains it. `shift` is what failed checks take
/// off, in log-odds.
pub(crate) fn confidence(logprobs: &[f32], shift: f32) -> (f32, Finding) {
    let usable: Vec<f32> = logprobs
        .iter()
        .map(|l| l.clamp(-20.0, 0.0))
        .filter(|l| !l.is_nan())
        .collect();
    let (odds, detail) = if usable.is_empty() {
        (BLIND, "the tier gives no log-probabilities".to_owned())
    } else {
        let count = usable.len() as f32;
        let mean = usable.iter().sum::<f32>() / count;
        let lowest = usable
            .windows(WINDOW.min(usable.len()))
            .map(|w| w.iter().sum::<f32>() / w.len() as f32)
            .fold(0.0, f32::min);
        let share = usable.iter().filter(|l| **l < GUESS).count() as f32 / count;
        let odds = BASE + MEAN * mean + LOWEST * lowest + GUESSES * share;
        let detail = format!(
            "mean log-probability {mean:.2}, weakest {WINDOW} tokens {lowest:.2}, {:.0} % guesses",
            share * 100.0
        );
        (odds, detail)
    };
    let finding = Finding {
        check: "log-probabilities".to_owned(),
        passed: odds > 0.0,
        detail,
    };
    (1.0 / (1.0 + (-(odds + shift)).exp()), finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_surer_model_is_believed_more_and_a_weak_spot_is_seen() {
        let sure = confidence(&[-0.1; 50], 0.0).0;
        let unsure = confidence(&[-1.5; 50], 0.0).0;
        let mut spot = vec![-0.1; 50];
        spot[20..28].fill(-3.0);
        let spot = confidence(&spot, 0.0).0;
        assert!(
            sure > 0.8 && unsure < 0.3 && spot < sure && spot > unsure,
            "{sure} {spot} {unsure}"
        );
    }

    #[test]
    fn impossible_log_probabilities_still_give_a_probability() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 5.0] {
            let p = confidence(&[odd; 3], -1.0).0;
            assert!((0.0..=1.0).contains(&p), "{odd}: {p}");
        }
        assert!((0.0..=1.0).contains(&confidence(&[], f32::NEG_INFINITY).0));
    }
}
