//! Whether a probability means what it says: Brier score, expected calibration error.
//!
//! Pure, like [`super::curve`].

use super::curve::Ranking;

/// Bins of the expected calibration error, each with the same number of rows.
pub const BINS: usize = 10;

/// One bin: how sure its rows were, how many were right, and how many they are.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Bin {
    /// Mean probability.
    pub said: f64,
    /// Share of right rows.
    pub right: f64,
    /// Rows.
    pub rows: f64,
}

/// Mean squared difference of the probability to 0 or 1. `None` without rows.
pub fn brier(said: &[f64], right: &[bool], counts: &[u32]) -> Option<f64> {
    let (mut sum, mut total) = (0.0, 0.0);
    for ((said, right), count) in said.iter().zip(right).zip(counts) {
        sum += f64::from(*count) * (said - f64::from(u8::from(*right))).powi(2);
        total += f64::from(*count);
    }
    (total > 0.0).then(|| sum / total)
}

/// Bins of equal mass, in descending order of the probability. Rows with the same
/// probability stay together, so there may be fewer bins than asked for.
pub fn bins(sure_first: &Ranking, said: &[f64], right: &[bool], counts: &[u32]) -> Vec<Bin> {
    let total: f64 = counts.iter().map(|c| f64::from(*c)).sum();
    let step = total / BINS as f64;
    let mut bins = Vec::new();
    let (mut bin, mut before) = (Bin::default(), 0.0);
    for group in sure_first.groups() {
        for row in group {
            let count = f64::from(counts[*row]);
            bin.said += count * said[*row];
            bin.right += count * f64::from(u8::from(right[*row]));
            bin.rows += count;
        }
        // A bin ends at the next tenth of all rows that the bins before it leave open.
        let due = ((before / step + 1e-9).floor() + 1.0) * step;
        if bin.rows > 0.0 && before + bin.rows >= due - 1e-9 {
            before += bin.rows;
            bins.push(Bin {
                said: bin.said / bin.rows,
                right: bin.right / bin.rows,
                rows: bin.rows,
            });
            bin = Bin::default();
        }
    }
    bins
}

/// Expected calibration error: mean distance of what bins say from what they are, weighted
/// by their rows. `None` without rows.
pub fn ece(sure_first: &Ranking, said: &[f64], right: &[bool], counts: &[u32]) -> Option<f64> {
    let bins = bins(sure_first, said, right, counts);
    let total: f64 = bins.iter().map(|bin| bin.rows).sum();
    let off = bins
        .iter()
        .map(|bin| bin.rows * (bin.said - bin.right).abs());
    (total > 0.0).then(|| off.sum::<f64>() / total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: Option<f64>, expected: f64) {
        let found = found.expect("defined");
        assert!((found - expected).abs() < 1e-9, "{found}, not {expected}");
    }

    /// By hand: ten rows of ten bins, each 0.1 off, and one that is 0.3 off.
    #[test]
    fn figures_as_computed_by_hand() {
        let said = [0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.3];
        let right = [true, true, true, true, true, true, true, true, true, false];
        let ranking = Ranking::descending(&said);
        near(brier(&said, &right, &[1; 10]), (9.0 * 0.01 + 0.09) / 10.0);
        near(
            ece(&ranking, &said, &right, &[1; 10]),
            0.9 * 0.1 + 0.1 * 0.3,
        );
        assert_eq!(bins(&ranking, &said, &right, &[1; 10]).len(), 2);
    }

    #[test]
    fn bins_have_equal_mass_and_count_rows_as_often_as_they_were_drawn() {
        let said: Vec<f64> = (0..40).map(|i| f64::from(i) / 40.0).collect();
        let right: Vec<bool> = (0..40).map(|i| i % 2 == 0).collect();
        let ranking = Ranking::descending(&said);
        let even = bins(&ranking, &said, &right, &[1; 40]);
        assert!(even.len() == BINS && even.iter().all(|bin| bin.rows == 4.0));
        let twice = bins(&ranking, &said, &right, &[2; 40]);
        assert!(twice.len() == BINS && twice.iter().all(|bin| bin.rows == 8.0));
        near(
            ece(&ranking, &said, &right, &[2; 40]),
            ece(&ranking, &said, &right, &[1; 40]).expect("rows"),
        );
        assert_eq!(ece(&ranking, &said, &right, &[0; 40]), None);
    }

    #[test]
    fn after_many_equal_rows_bins_have_equal_mass_again() {
        let said: Vec<f64> = (0..100).map(|i| f64::from(i.min(50))).collect();
        let right = [true; 100];
        let found = bins(&Ranking::descending(&said), &said, &right, &[1; 100]);
        let sizes: Vec<f64> = found.iter().map(|bin| bin.rows).collect();
        assert_eq!(sizes, [50.0, 10.0, 10.0, 10.0, 10.0, 10.0]);
    }

    #[test]
    fn a_constant_that_is_the_base_rate_is_calibrated() {
        let right = [true, true, true, false];
        let ranking = Ranking::descending(&[0.75; 4]);
        near(ece(&ranking, &[0.75; 4], &right, &[1; 4]), 0.0);
        near(brier(&[0.75; 4], &right, &[1; 4]), 0.1875);
    }

    /// Against numpy, scikit-learn 1.9.1 (`brier_score_loss`):
    ///
    /// ```python
    /// import numpy as np; from sklearn.metrics import brier_score_loss
    /// x, rows = 41, []
    /// for _ in range(500):
    ///     x = (x * 1103515245 + 12345) % 2**31
    ///     a = x >> 8; rows.append(((a % 997) / 997, (a // 997 % 100) < 30 + a % 50))
    /// c, y = (np.array(v, float) for v in zip(*rows))
    /// o = np.argsort(-c, kind="stable")          # equal values do not cross a bin here
    /// b = [(c[i] - y[i]) for i in np.array_split(o, 10)]
    /// print(brier_score_loss(y, c), sum(abs(d.mean()) * len(d) for d in b) / 500)
    /// ```
    #[test]
    fn figures_are_those_of_scikit_learn() {
        let (mut x, mut said, mut right) = (41u64, Vec::new(), Vec::new());
        for _ in 0..500 {
            x = (x * 1_103_515_245 + 12_345) % (1 << 31);
            let a = x >> 8;
            said.push((a % 997) as f64 / 997.0);
            right.push(a / 997 % 100 < 30 + a % 50);
        }
        let ranking = Ranking::descending(&said);
        near(brier(&said, &right, &[1; 500]), 0.330290174435040);
        near(ece(&ranking, &said, &right, &[1; 500]), 0.269209628886660);
    }
}
