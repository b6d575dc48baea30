//! What can be said of recorded scores, and with what certainty.

use homeostat_hooks::Classification;

/// Thresholds that are tried: more would differ by a few requests.
const GRID: usize = 100;
/// Steps of it from which a search begins. They are fixed beforehand, or the search would look
/// for a lucky beginning; each has its part of the doubt.
const STARTS: [usize; 3] = [10, 25, 50];
/// The chance that a promised risk is exceeded.
const DOUBT: f64 = 0.1;
/// Temperatures that are tried, as powers of 2: from a quarter to four, by a twentieth.
const TEMPERATURES: std::ops::RangeInclusive<i32> = -40..=40;
/// By how much one more parameter must raise the log-likelihood to be more than luck (95 %).
const LIKELIER: f64 = 1.92;

/// The threshold that sends this share of such requests to the strong tier: the quantile that
/// RouteLLM uses. Of equal scores all go or none, whichever is nearer. `None` without scores.
pub fn for_share(scores: &[f64], share: f64) -> Option<f64> {
    let mut ordered = scores.to_vec();
    ordered.sort_by(|a, b| b.total_cmp(a));
    // Nobody reaches what lies above the highest.
    let (mut best, mut nearest) = (ordered.first()?.next_up(), share);
    let mut above = 0;
    for equal in ordered.chunk_by(|a, b| a == b) {
        above += equal.len();
        let distance = (above as f64 / ordered.len() as f64 - share).abs();
        if distance < nearest {
            (best, nearest) = (equal[0], distance);
        }
    }
    Some(best)
}

/// The highest score up to which at most this share of the answers is wrong, except with a
/// probability of [`DOUBT`]; `None` where no score can be shown to be one.
///
/// Learn then test: from each start scores are tried upwards, and the first that could as well
/// be too risky ends that search. So the guarantee needs no assumption about the scores, only
/// that the requests to come are like those that were recorded.
pub fn for_risk(answers: &[(f64, bool)], risk: f64) -> Option<f64> {
    let mut ordered = answers.to_vec();
    ordered.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut best: Option<f64> = None;
    for start in STARTS {
        for step in start..=GRID {
            let Some(last) = (ordered.len() * step / GRID).checked_sub(1) else {
                break;
            };
            let highest = ordered[last].0;
            let kept = ordered.iter().take_while(|(score, _)| *score <= highest);
            let (wrong, of) = kept.fold((0, 0), |(wrong, of), (_, right)| {
                (wrong + usize::from(!right), of + 1)
            });
            if at_most(wrong, of, risk) > DOUBT / STARTS.len() as f64 {
                break;
            }
            best = Some(best.map_or(highest, |b| b.max(highest)));
        }
    }
    best
}

/// The probability of no more than so many wrong answers, if each were wrong with the
/// probability `risk`.
fn at_most(wrong: usize, of: usize, risk: f64) -> f64 {
    // The ways to choose k of n, as a logarithm, grow step by step.
    let mut ways = 0.0;
    let mut total = 0.0;
    for k in 0..=wrong {
        let (k, n) = (k as f64, of as f64);
        if k > 0.0 {
            ways += (n - k + 1.0).ln() - k.ln();
        }
        total += (ways + k * risk.ln() + (n - k) * (-risk).ln_1p()).exp();
    }
    total.min(1.0)
}

/// A judged answer: the request's classes, the stated quality of the tier that answered on
/// each of them, and whether it was right.
pub type Answered = ([f64; 3], [f64; 3], bool);

/// Classes as they are scaled.
pub fn classes(c: &Classification) -> [f64; 3] {
    [c.p_simple, c.p_medium, c.p_complex].map(f64::from)
}

/// The temperature of the classes under which the answers are likeliest, if it is not by luck
/// that another than 1 is: above 1 the classifier was too sure of itself.
pub fn temperature(answers: &[Answered]) -> Option<f64> {
    let value = |step: i32| 2f64.powf(f64::from(step) / 20.0);
    let best = TEMPERATURES
        .map(|step| (likelihood(answers, value(step)), step))
        .max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > likelihood(answers, 1.0) + LIKELIER).then(|| value(best.1))
}

/// Mean squared difference of what was to be expected at a temperature and what was.
pub fn brier(answers: &[Answered], temperature: f64) -> f64 {
    let error = |a: &Answered| (expected(a, temperature) - f64::from(u8::from(a.2))).powi(2);
    answers.iter().map(error).sum::<f64>() / answers.len() as f64
}

fn likelihood(answers: &[Answered], temperature: f64) -> f64 {
    let of = |a: &Answered| {
        let right = expected(a, temperature).clamp(1e-6, 1.0 - 1e-6);
        if a.2 { right.ln() } else { (1.0 - right).ln() }
    };
    answers.iter().map(of).sum()
}

fn expected((classes, quality, _): &Answered, temperature: f64) -> f64 {
    let scaled = classes.map(|p| p.max(1e-6).powf(1.0 / temperature));
    let sum: f64 = scaled.iter().sum();
    scaled.iter().zip(quality).map(|(p, q)| p / sum * q).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dice(u64);

    impl Dice {
        fn roll(&mut self) -> f64 {
            self.0 = self
                .0
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (self.0 >> 40) as f64 / (1u64 << 24) as f64
        }
    }

    #[test]
    fn a_threshold_for_a_share_sends_that_share_to_the_strong_tier() {
        let scores: Vec<f64> = (0..100).map(|i| f64::from(i) / 100.0).collect();
        for share in [0.0, 0.01, 0.3, 0.5, 1.0] {
            let threshold = for_share(&scores, share).expect("scores");
            let above = scores.iter().filter(|s| **s >= threshold).count();
            assert!(
                (above as f64 / 100.0 - share).abs() < 1e-9,
                "{share}: {above}"
            );
        }
        // Equal scores go together, to the nearer side.
        let two: Vec<f64> = [vec![0.2; 60], vec![0.8; 40]].concat();
        assert_eq!(for_share(&two, 0.5), Some(0.8));
        assert_eq!(for_share(&two, 0.9), Some(0.2));
        assert_eq!(for_share(&[], 0.5), None);
    }

    #[test]
    fn a_threshold_for_a_risk_keeps_it_as_often_as_it_promises() {
        // Below t the weak tier is wrong in t²/3 of its answers: more than 0.1 above 0.5477.
        let found: Vec<f64> = (0..40)
            .filter_map(|seed| {
                let mut dice = Dice(seed);
                let answers: Vec<(f64, bool)> = (0..2000)
                    .map(|_| {
                        let score = dice.roll();
                        (score, dice.roll() > score * score)
                    })
                    .collect();
                for_risk(&answers, 0.1)
            })
            .collect();
        assert!(
            found.len() > 30 && found.iter().all(|t| *t > 0.3),
            "{found:?}"
        );
        let broken = found.iter().filter(|t| *t * *t / 3.0 > 0.1).count();
        assert!(broken <= 8, "one in ten may be too high: {found:?}");
        // What cannot be shown is not said.
        assert_eq!(for_risk(&[(0.5, true); 20], 0.01), None);
        assert_eq!(for_risk(&[(0.5, false); 500], 0.3), None);
        let right: Vec<(f64, bool)> = (0..500).map(|i| (f64::from(i), true)).collect();
        assert_eq!(for_risk(&right, 0.05), Some(499.0));
    }

    #[test]
    fn sums_of_the_binomial_distribution_are_those_of_a_table() {
        for (wrong, of, risk, table) in [
            (0, 10, 0.1, 0.348_678_440_1),
            (2, 10, 0.1, 0.929_809_174_7),
            (10, 10, 0.1, 1.0),
            (50, 500, 0.1, 0.537_5),
        ] {
            assert!(
                (at_most(wrong, of, risk) - table).abs() < 1e-3,
                "{wrong} of {of}"
            );
        }
    }

    #[test]
    fn a_temperature_is_found_again_and_none_where_there_is_none() {
        let draw = |true_temperature: f64, seed| {
            let mut dice = Dice(seed);
            let answers: Vec<Answered> = (0..3000)
                .map(|_| {
                    let (a, b) = (dice.roll(), dice.roll());
                    let classes = [a * b, a * (1.0 - b), 1.0 - a];
                    let question = (classes, [0.95, 0.5, 0.05], false);
                    let right = dice.roll() < expected(&question, true_temperature);
                    (classes, question.1, right)
                })
                .collect();
            answers
        };
        for seed in 1..5 {
            let flat = draw(3.0, seed);
            let found = temperature(&flat).expect("far from 1");
            assert!((2.2..4.1).contains(&found), "{found}");
            assert!(brier(&flat, found) < brier(&flat, 1.0));
            let sharp = temperature(&draw(0.4, seed)).expect("far from 1");
            assert!((0.25..0.6).contains(&sharp), "{sharp}");
        }
        let lucky = (1..40).filter(|s| temperature(&draw(1.0, *s)).is_some());
        assert!(lucky.count() <= 6, "one in twenty is luck");
        assert_eq!(temperature(&[]), None);
    }
}
