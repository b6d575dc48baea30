//! From token log-probabilities, failed checks and how an answer was worked out to one probability.

use homeostat_sdk::Finding;

use crate::worked::Worked;

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

/// What a worked answer may gain or lose at most where nothing else is known, in log-odds: 0.12 to
/// 0.95, about as far as the recorded answers bear out.
const WORKED_MAX: f32 = 2.5;

/// The same beside log-probabilities. Set by hand: no recorded answer has both. Both look at the
/// same answer, so what the one says is in part what the other says: half of it counts. Its
/// intercept does not: how often the tier is right, its log-probabilities tell. And it counts
/// within one unit, so that it decides only where they leave it open: what they hold for more
/// than 0.77 likely stays above 0.55 (the threshold of the profile edge), what they hold for less
/// than 0.31 stays below.
const WORKED_SHARE: f32 = 0.5;
const WORKED_SHARE_MAX: f32 = 1.0;

/// The confidence and the finding that explains it. `shift` is what failed checks take
/// off, in log-odds; `worked` is what is known of how the answer was worked out.
pub(crate) fn confidence(logprobs: &[f32], shift: f32, worked: Option<&Worked>) -> (f32, Finding) {
    let usable: Vec<f32> = logprobs
        .iter()
        .map(|l| l.clamp(-20.0, 0.0))
        .filter(|l| !l.is_nan())
        .collect();
    let (odds, worked, detail) = if usable.is_empty() {
        let worked = worked.map_or(0.0, |w| w.odds() - BLIND);
        let detail = "the tier gives no log-probabilities".to_owned();
        (BLIND, worked.clamp(-WORKED_MAX, WORKED_MAX), detail)
    } else {
        let worked = worked.map_or(0.0, |w| WORKED_SHARE * w.score);
        let worked = worked.clamp(-WORKED_SHARE_MAX, WORKED_SHARE_MAX);
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
        (odds, worked, detail)
    };
    // What a check found is found, however well the rest reads. So a part of an answer, of which
    // only checks are known, is never left for what the whole would be forgiven.
    let worked = if shift < 0.0 { worked.min(0.0) } else { worked };
    let finding = Finding {
        check: "log-probabilities".to_owned(),
        passed: odds > 0.0,
        detail,
    };
    (1.0 / (1.0 + (-(odds + worked + shift)).exp()), finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_surer_model_is_believed_more_and_a_weak_spot_is_seen() {
        let sure = confidence(&[-0.1; 50], 0.0, None).0;
        let unsure = confidence(&[-1.5; 50], 0.0, None).0;
        let mut spot = vec![-0.1; 50];
        spot[20..28].fill(-3.0);
        let spot = confidence(&spot, 0.0, None).0;
        assert!(
            sure > 0.8 && unsure < 0.3 && spot < sure && spot > unsure,
            "{sure} {spot} {unsure}"
        );
    }

    #[test]
    fn impossible_log_probabilities_still_give_a_probability() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 5.0] {
            let p = confidence(&[odd; 3], -1.0, None).0;
            assert!((0.0..=1.0).contains(&p), "{odd}: {p}");
        }
        let p = confidence(&[], f32::NEG_INFINITY, None).0;
        assert!((0.0..=1.0).contains(&p), "{p}");
    }

    /// The confidence of an answer whose head has this score.
    fn scored(logprobs: &[f32], shift: f32, score: f32) -> f32 {
        confidence(logprobs, shift, Some(&Worked::scored(score))).0
    }

    #[test]
    fn how_it_was_worked_out_counts_within_bounds_and_makes_up_for_no_failed_check() {
        let told: &[f32] = &[-0.3; 20];
        for logprobs in [told, &[]] {
            let scores = [-100.0, -1.0, 1.0, 100.0];
            let [worst, bad, good, best] = scores.map(|score| scored(logprobs, 0.0, score));
            assert!(worst < bad && bad < good && good < best, "{logprobs:?}");
            assert!(0.1 < worst && best < 0.96, "{worst} {best}");
            let failed = confidence(logprobs, -3.0, None).0;
            assert_eq!(scored(logprobs, -3.0, 100.0), failed);
            assert!(scored(logprobs, -3.0, -100.0) < failed);
        }
    }

    #[test]
    fn clear_log_probabilities_are_not_overruled_by_how_it_was_worked_out() {
        let (sure, unsure) = ([-0.35; 50], [-1.45; 50]);
        let of = |logprobs: &[f32]| confidence(logprobs, 0.0, None).0;
        assert!(of(&sure) > 0.77 && of(&unsure) < 0.31);
        assert!(scored(&sure, 0.0, -100.0) > 0.55);
        assert!(scored(&unsure, 0.0, 100.0) < 0.55);
    }
}
