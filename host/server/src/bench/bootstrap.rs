//! Intervals by the percentile bootstrap: rows are drawn with replacement, every figure is
//! computed anew on what was drawn. All figures of a round see the same rows, so the
//! difference of two of them is a paired difference.

/// Share of the rounds inside an interval.
const INSIDE: f64 = 0.95;
/// Share of the rounds in which a figure must be defined to have one: were more of them missing,
/// all of them might lie beyond one end.
const DEFINED: f64 = (1.0 + INSIDE) / 2.0;

/// Ends of a 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// 2.5 % of the rounds are below.
    pub low: f64,
    /// 2.5 % are above.
    pub high: f64,
}

/// What the rounds say of one figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawn {
    /// `None` where it was undefined in more rounds than lie beyond one end.
    pub interval: Option<Interval>,
    /// Share of the rounds in which it was defined.
    pub defined_ratio: f64,
}

/// How many rounds, from which seed.
#[derive(Debug, Clone, Copy)]
pub struct Bootstrap {
    /// Rounds.
    pub rounds: usize,
    /// Where the random numbers begin: the same seed gives the same intervals.
    pub seed: u64,
}

impl Bootstrap {
    /// What the rounds say of all that `figures` computes from how often each of `rows` rows was
    /// drawn. A figure that is undefined in a round (`None`) is left out of that round.
    pub fn drawn(self, rows: usize, figures: impl Fn(&[u32]) -> Vec<Option<f64>>) -> Vec<Drawn> {
        let mut random = SplitMix(self.seed);
        let mut drawn: Vec<Vec<f64>> = Vec::new();
        let mut counts = vec![0u32; rows];
        for _ in 0..self.rounds {
            counts.fill(0);
            for _ in 0..rows {
                counts[random.below(rows)] += 1;
            }
            let found = figures(&counts);
            drawn.resize(found.len(), Vec::new());
            for (values, figure) in drawn.iter_mut().zip(found) {
                values.extend(figure);
            }
        }
        let drawn = drawn.into_iter().map(|values| {
            let defined_ratio = values.len() as f64 / self.rounds as f64;
            Drawn {
                interval: (defined_ratio >= DEFINED).then(|| interval(values)),
                defined_ratio,
            }
        });
        drawn.collect()
    }
}

fn interval(mut values: Vec<f64>) -> Interval {
    values.sort_by(f64::total_cmp);
    // Linear between the two nearest, as numpy.percentile.
    let at = |share: f64| {
        let place = share * (values.len() - 1) as f64;
        let below = values[place.floor() as usize];
        let above = values[place.ceil() as usize];
        below + (above - below) * place.fract()
    };
    Interval {
        low: at((1.0 - INSIDE) / 2.0),
        high: at((1.0 + INSIDE) / 2.0),
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, each as likely up to one part in 2^64.
    fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Bootstrap = Bootstrap {
        rounds: 2000,
        seed: 1,
    };

    fn mean(values: &[f64], counts: &[u32]) -> Option<f64> {
        let sum: f64 = values
            .iter()
            .zip(counts)
            .map(|(v, c)| v * f64::from(*c))
            .sum();
        Some(sum / values.len() as f64)
    }

    #[test]
    fn the_interval_of_a_mean_is_two_standard_errors_wide_on_each_side() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let found = PLAN.drawn(400, |counts| vec![mean(&values, counts)]);
        let found = found[0].interval.expect("an interval");
        // Standard error 0.5 / sqrt(400) = 0.025.
        assert!((found.low - 0.451).abs() < 0.006, "{found:?}");
        assert!((found.high - 0.549).abs() < 0.006, "{found:?}");
    }

    #[test]
    fn differences_are_paired_and_a_seed_repeats() {
        let a: Vec<f64> = (0..50).map(|i| f64::from(i * 37 % 50)).collect();
        let b: Vec<f64> = a.iter().map(|v| v - 1.0).collect();
        let figures = |counts: &[u32]| {
            let (a, b) = (mean(&a, counts), mean(&b, counts));
            vec![a, a.zip(b).map(|(a, b)| a - b)]
        };
        let found = PLAN.drawn(50, figures);
        let difference = found[1].interval.expect("an interval");
        assert!((difference.low - 1.0).abs() < 1e-9 && (difference.high - 1.0).abs() < 1e-9);
        assert_eq!(found, PLAN.drawn(50, figures));
        let other = Bootstrap { seed: 2, ..PLAN };
        assert_ne!(found, other.drawn(50, figures));
    }

    #[test]
    fn a_figure_that_is_undefined_in_more_rounds_than_lie_beyond_one_end_has_no_interval() {
        let found = PLAN.drawn(3, |counts| {
            let seldom = (counts[0] == 3).then_some(1.0);
            // Of three rows the first is drawn three times in one of 27 rounds.
            let mostly = (counts[0] < 3).then_some(1.0);
            vec![seldom, mostly, Some(2.0)]
        });
        assert_eq!((found[0].interval, found[1].interval), (None, None));
        let shares = [found[0].defined_ratio, found[1].defined_ratio];
        assert!((shares[0] - 1.0 / 27.0).abs() < 0.015, "{shares:?}");
        assert!((shares[0] + shares[1] - 1.0).abs() < 1e-9, "{shares:?}");
        let always = Interval {
            low: 2.0,
            high: 2.0,
        };
        assert_eq!(found[2].interval, Some(always));
        assert_eq!(found[2].defined_ratio, 1.0);
    }

    #[test]
    fn percentiles_are_those_of_numpy() {
        // numpy.percentile(range(101), [2.5, 97.5]) and of [0, 1].
        let found = interval((0..101).rev().map(f64::from).collect());
        assert!((found.low - 2.5).abs() < 1e-9 && (found.high - 97.5).abs() < 1e-9);
        let found = interval(vec![1.0, 0.0]);
        assert!((found.low - 0.025).abs() < 1e-12 && (found.high - 0.975).abs() < 1e-12);
    }

    #[test]
    fn random_numbers_are_the_published_ones() {
        // First outputs of SplitMix64 from seed 1234567, as its authors' code gives them.
        let mut random = SplitMix(1_234_567);
        assert_eq!(random.next(), 6_457_827_717_110_365_317);
        assert_eq!(random.next(), 3_203_168_211_198_807_973);
    }
}
