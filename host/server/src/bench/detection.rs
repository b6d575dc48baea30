//! How well a confidence finds wrong answers: AUROC, AUPRC, PRR.
//!
//! Pure, like [`super::curve`]: rows, whether each answer was right, and how often each
//! row counts. Equal confidences are told apart in no order: every figure is its
//! expectation over all orders (AUROC, PRR) or has one threshold for them (AUPRC).

use super::curve::Ranking;

/// Probability that a wrong answer has a lower confidence than a right one, equal ones
/// counting half. `None` without both kinds.
pub fn auroc(sure_first: &Ranking, right: &[bool], counts: &[u32]) -> Option<f64> {
    let (all_right, all_wrong) = totals(right, counts);
    let (mut right_above, mut pairs) = (0.0, 0.0);
    for group in sure_first.groups() {
        let (good, bad) = totals_of(group, right, counts);
        pairs += bad * (right_above + good / 2.0);
        right_above += good;
    }
    (all_right > 0.0 && all_wrong > 0.0).then(|| pairs / (all_right * all_wrong))
}

/// The curve below which [`auroc`] is the area, from (0, 0) to (1, 1): the share of right answers
/// that are doubted, and that of wrong ones that are found, the least sure first. `None` without
/// both kinds.
pub fn roc(doubtful_first: &Ranking, right: &[bool]) -> Option<Vec<(f64, f64)>> {
    let once = vec![1; right.len()];
    let (all_right, all_wrong) = totals(right, &once);
    let (mut doubted, mut found) = (0.0, 0.0);
    let mut curve = vec![(0.0, 0.0)];
    for group in doubtful_first.groups() {
        let (good, bad) = totals_of(group, right, &once);
        doubted += good;
        found += bad;
        curve.push((doubted / all_right, found / all_wrong));
    }
    (all_right > 0.0 && all_wrong > 0.0).then_some(curve)
}

/// Average precision of finding the wrong answers, the least sure first: the sum of
/// precision times the recall that each threshold adds. A random confidence has the share
/// of wrong answers. `None` without a wrong answer.
pub fn auprc(doubtful_first: &Ranking, right: &[bool], counts: &[u32]) -> Option<f64> {
    let (_, all_wrong) = totals(right, counts);
    let (mut found, mut seen, mut sum) = (0.0, 0.0, 0.0);
    for group in doubtful_first.groups() {
        let (good, bad) = totals_of(group, right, counts);
        seen += good + bad;
        found += bad;
        if seen > 0.0 {
            sum += bad * found / seen;
        }
    }
    (all_wrong > 0.0).then(|| sum / all_wrong)
}

/// Prediction–rejection ratio: (area − random) / (oracle − random), where the area is the
/// mean, over k = 1 … n, of the share of right answers among the k surest (the form of
/// lm-polygraph's code). 1 is an oracle, 0 a random confidence. `None` when all answers
/// are alike.
pub fn prr(sure_first: &Ranking, right: &[bool], counts: &[u32]) -> Option<f64> {
    let (good, bad) = totals(right, counts);
    if good <= 0.0 || bad <= 0.0 {
        return None;
    }
    let groups = sure_first
        .groups()
        .map(|group| totals_of(group, right, counts));
    let random = good / (good + bad);
    let found = rejection_area(groups);
    let oracle = rejection_area([(good, 0.0), (0.0, bad)].into_iter());
    Some((found - random) / (oracle - random))
}

/// Of groups of (right, wrong) answers, the surest first; within a group answers are taken
/// in equal parts.
fn rejection_area(groups: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (mut taken, mut right, mut sum) = (0.0, 0.0, 0.0);
    for (good, bad) in groups {
        let size = good + bad;
        for k in 1..=size as u64 {
            let k = k as f64;
            sum += (right + good * k / size) / (taken + k);
        }
        taken += size;
        right += good;
    }
    sum / taken
}

fn totals(right: &[bool], counts: &[u32]) -> (f64, f64) {
    let all: Vec<usize> = (0..right.len()).collect();
    totals_of(&all, right, counts)
}

/// How many of the rows are right, how many wrong.
fn totals_of(rows: &[usize], right: &[bool], counts: &[u32]) -> (f64, f64) {
    rows.iter().fold((0.0, 0.0), |(good, bad), row| {
        let count = f64::from(counts[*row]);
        if right[*row] {
            (good + count, bad)
        } else {
            (good, bad + count)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(confidence: &[f64], right: &[bool], counts: &[u32]) -> [Option<f64>; 3] {
        let sure = Ranking::descending(confidence);
        let doubt: Vec<f64> = confidence.iter().map(|c| -c).collect();
        [
            auroc(&sure, right, counts),
            auprc(&Ranking::descending(&doubt), right, counts),
            prr(&sure, right, counts),
        ]
    }

    fn near(found: Option<f64>, expected: f64) {
        let found = found.expect("defined");
        assert!((found - expected).abs() < 1e-9, "{found}, not {expected}");
    }

    #[test]
    fn the_area_below_the_curve_is_auroc() {
        let confidence = [0.9, 0.8, 0.8, 0.6, 0.4, 0.4, 0.2];
        let right = [true, true, false, false, true, false, false];
        let doubt: Vec<f64> = confidence.iter().map(|c| -c).collect();
        let curve = roc(&Ranking::descending(&doubt), &right).expect("both kinds");
        let area: f64 = curve
            .windows(2)
            .map(|ends| (ends[1].0 - ends[0].0) * (ends[0].1 + ends[1].1) / 2.0)
            .sum();
        near(
            auroc(&Ranking::descending(&confidence), &right, &[1; 7]),
            area,
        );
        assert_eq!((curve[0], curve[curve.len() - 1]), ((0.0, 0.0), (1.0, 1.0)));
        assert_eq!(roc(&Ranking::descending(&doubt), &[true; 7]), None);
    }

    /// By hand: confidences 0.9 right, 0.8 right, 0.6 wrong, 0.4 right, 0.2 wrong.
    #[test]
    fn figures_as_computed_by_hand() {
        let right = [true, true, false, true, false];
        let [auroc, auprc, prr] = figures(&[0.9, 0.8, 0.6, 0.4, 0.2], &right, &[1; 5]);
        // Of six pairs only (0.6 wrong, 0.4 right) is the wrong way round.
        near(auroc, 5.0 / 6.0);
        // The first is wrong (precision 1), the third is the second wrong one (2 of 3).
        near(auprc, (1.0 + 2.0 / 3.0) / 2.0);
        // Areas: found (1 + 1 + 2/3 + 3/4 + 3/5) / 5, oracle (1 + 1 + 1 + 3/4 + 3/5) / 5.
        let (found, oracle) = (4.016_666_666_666_667 / 5.0, 4.35 / 5.0);
        near(prr, (found - 0.6) / (oracle - 0.6));
    }

    #[test]
    fn a_confidence_that_says_nothing_is_random() {
        let right = [true, false, true, true, false, true, true, false];
        let [auroc, auprc, prr] = figures(&[0.62; 8], &right, &[1; 8]);
        near(auroc, 0.5);
        near(auprc, 3.0 / 8.0);
        near(prr, 0.0);
    }

    #[test]
    fn an_oracle_is_perfect_and_a_row_that_counts_twice_is_two_rows() {
        let right = [true, false, true];
        let [auroc, auprc, prr] = figures(&[1.0, 0.0, 1.0], &right, &[1; 3]);
        near(auroc, 1.0);
        near(auprc, 1.0);
        near(prr, 1.0);
        let drawn = figures(&[0.8, 0.5, 0.3], &right, &[2, 1, 0]);
        let written = figures(&[0.8, 0.5, 0.8], &right, &[1; 3]);
        assert_eq!(drawn, written);
    }

    #[test]
    fn with_one_kind_of_answer_only_there_is_nothing_to_find() {
        assert_eq!(figures(&[0.1, 0.2], &[true, true], &[1, 1]), [None; 3]);
        assert_eq!(figures(&[0.1, 0.2], &[true, false], &[1, 0]), [None; 3]);
    }

    /// Against scikit-learn 1.9.1:
    ///
    /// ```python
    /// from sklearn.metrics import average_precision_score, roc_auc_score
    /// x, rows = 11, []
    /// for _ in range(300):
    ///     x = (x * 1103515245 + 12345) % 2**31
    ///     a = x >> 8; rows.append((a % 50 / 50, (a // 50 % 100) < 40 + a % 50))
    /// c, right = zip(*rows); wrong = [not r for r in right]
    /// print(roc_auc_score(right, c), average_precision_score(wrong, [-v for v in c]))
    /// ```
    #[test]
    fn figures_are_those_of_scikit_learn() {
        let (mut x, mut confidence, mut right) = (11u64, Vec::new(), Vec::new());
        for _ in 0..300 {
            x = (x * 1_103_515_245 + 12_345) % (1 << 31);
            let a = x >> 8;
            confidence.push((a % 50) as f64 / 50.0);
            right.push(a / 50 % 100 < 40 + a % 50);
        }
        let [auroc, auprc, _] = figures(&confidence, &right, &[1; 300]);
        near(auroc, 0.671_563_605_885_64);
        near(auprc, 0.538_835_708_081_426);
    }
}
