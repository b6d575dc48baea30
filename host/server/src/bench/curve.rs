//! How good a router is: what it gains by sending a share of the requests to the strong
//! model. Definitions of RouteLLM (PGR, APGR, CPT) and RouterBench (AIQ).
//!
//! Pure: a ranking of rows, their outcomes, and how often each row counts (1, or what a
//! bootstrap round has drawn). Rows with the same score are sent in no order, so a curve
//! rises evenly over them: a router that cannot tell rows apart is a straight line.

/// Points of a curve: strong shares 0 %, 10 %, … 100 %.
pub const POINTS: usize = 11;

/// What became of one request, asked of both models: 1 or 0, or a judge's score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Quality of the weak model's answer.
    pub weak: f64,
    /// Quality of the strong model's answer.
    pub strong: f64,
}

/// Rows in descending order of a score.
#[derive(Debug, Clone)]
pub struct Ranking {
    rows: Vec<usize>,
    /// Where each group of equal scores ends in `rows`.
    ends: Vec<usize>,
}

impl Ranking {
    /// The highest score first. A score that is not a number comes last.
    pub fn descending(scores: &[f64]) -> Self {
        let key = |row: &usize| {
            let score = scores[*row];
            if score.is_nan() {
                f64::NEG_INFINITY
            } else {
                score
            }
        };
        let mut rows: Vec<usize> = (0..scores.len()).collect();
        rows.sort_by(|a, b| key(b).total_cmp(&key(a)));
        let last_of_its_group = |at: &usize| {
            let next = rows.get(at + 1);
            next.is_none_or(|next| key(next) != key(&rows[*at]))
        };
        let ends = (0..rows.len())
            .filter(last_of_its_group)
            .map(|at| at + 1)
            .collect();
        Self { rows, ends }
    }

    /// Groups of rows with equal scores, the highest first.
    pub fn groups(&self) -> impl Iterator<Item = &[usize]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.rows[start..*end])
    }
}

/// Mean quality over the strong share, the rows that a router ranks first going first.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Mean quality at each share.
    pub quality: [f64; POINTS],
}

impl Curve {
    /// `None` when no row counts.
    pub fn of(ranking: &Ranking, outcomes: &[Outcome], counts: &[u32]) -> Option<Self> {
        let total: f64 = counts.iter().map(|c| f64::from(*c)).sum();
        if total <= 0.0 {
            return None;
        }
        let weighted = |row: usize| f64::from(counts[row]);
        let start: f64 = (0..outcomes.len())
            .map(|row| weighted(row) * outcomes[row].weak)
            .sum();
        let mut quality = [start / total; POINTS];
        let (mut sent, mut gained, mut point) = (0.0, 0.0, 1);
        for group in ranking.groups() {
            let size: f64 = group.iter().map(|row| weighted(*row)).sum();
            let gain = |row: &usize| weighted(*row) * (outcomes[*row].strong - outcomes[*row].weak);
            let gain: f64 = group.iter().map(gain).sum();
            while point < POINTS && share(point) * total <= sent + size + 1e-9 && size > 0.0 {
                let within = ((share(point) * total - sent) / size).clamp(0.0, 1.0);
                quality[point] = (start + gained + within * gain) / total;
                point += 1;
            }
            sent += size;
            gained += gain;
        }
        Some(Self { quality })
    }

    /// A router that knows nothing, in expectation: a straight line.
    pub fn random(weak: f64, strong: f64) -> Self {
        Self {
            quality: std::array::from_fn(|point| weak + share(point) * (strong - weak)),
        }
    }

    /// Quality with nothing sent to the strong model.
    pub fn weak(&self) -> f64 {
        self.quality[0]
    }

    /// Quality with everything sent to the strong model.
    pub fn strong(&self) -> f64 {
        self.quality[POINTS - 1]
    }

    /// Performance gap recovered at each share: 0 is the weak model, 1 the strong one.
    /// `None` when the strong model is not better.
    pub fn pgr(&self) -> Option<[f64; POINTS]> {
        let gap = self.strong() - self.weak();
        (gap > 1e-9).then(|| self.quality.map(|q| (q - self.weak()) / gap))
    }

    /// Average performance gap recovered: area below [`Curve::pgr`]. A random router has
    /// 0.5; an oracle can exceed 1.
    pub fn apgr(&self) -> Option<f64> {
        self.pgr().map(|pgr| area(&pgr))
    }

    /// Call-performance threshold: smallest strong share at which `gap` of the gap is
    /// recovered, first reach, linear between the points.
    pub fn cpt(&self, gap: f64) -> Option<f64> {
        let pgr = self.pgr()?;
        let at = (1..POINTS).find(|point| pgr[*point] >= gap - 1e-12)?;
        let rise = pgr[at] - pgr[at - 1];
        let within = if rise > 0.0 {
            ((gap - pgr[at - 1]) / rise).clamp(0.0, 1.0)
        } else {
            1.0
        };
        Some(share(at - 1) + within / (POINTS - 1) as f64)
    }

    /// Area under the deferral curve: mean quality over all shares.
    pub fn audc(&self) -> f64 {
        area(&self.quality)
    }

    /// Average improvement in quality: area below the non-decreasing convex hull of (cost,
    /// quality), extended flat to the dearest cost, divided by that cost (the form of
    /// RouterBench's code). A strong call costs 1, a weak call `weak_cost`.
    pub fn aiq(&self, weak_cost: f64) -> f64 {
        let cost = |point: usize| share(point) + (1.0 - share(point)) * weak_cost;
        let points = (0..POINTS).map(|point| (cost(point), self.quality[point]));
        area_below_hull(points, 1.0)
    }
}

/// A single point (always the weak model, or always the strong one) in the form of
/// [`Curve::aiq`].
pub fn aiq_of_point(cost: f64, quality: f64) -> f64 {
    area_below_hull(std::iter::once((cost, quality)), 1.0)
}

/// Strong share of a point.
pub fn share(point: usize) -> f64 {
    point as f64 / (POINTS - 1) as f64
}

/// Trapezoids over shares from 0 to 1.
fn area(values: &[f64; POINTS]) -> f64 {
    let pairs = values.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0);
    pairs.sum::<f64>() / (POINTS - 1) as f64
}

/// `points` come with rising cost.
fn area_below_hull(points: impl Iterator<Item = (f64, f64)>, dearest: f64) -> f64 {
    let mut hull: Vec<(f64, f64)> = Vec::new();
    for point in points {
        // What costs more and is not better is not used.
        if hull.last().is_some_and(|last| point.1 <= last.1) {
            continue;
        }
        while let [.., before, last] = hull[..] {
            let bends_down = (last.1 - before.1) * (point.0 - last.0)
                >= (point.1 - last.1) * (last.0 - before.0);
            if bends_down {
                break;
            }
            hull.pop();
        }
        hull.push(point);
    }
    let Some(last) = hull.last().copied() else {
        return 0.0;
    };
    hull.push((dearest, last.1));
    let pieces = hull
        .windows(2)
        .map(|pair| (pair[1].0 - pair[0].0) * (pair[0].1 + pair[1].1) / 2.0);
    pieces.sum::<f64>() / dearest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(pairs: &[(u8, u8)]) -> Vec<Outcome> {
        let each = pairs.iter().map(|(weak, strong)| Outcome {
            weak: f64::from(*weak),
            strong: f64::from(*strong),
        });
        each.collect()
    }

    fn curve(scores: &[f64], pairs: &[(u8, u8)]) -> Curve {
        let counts = vec![1; pairs.len()];
        Curve::of(&Ranking::descending(scores), &outcomes(pairs), &counts).expect("rows")
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found}, not {expected}");
    }

    /// By hand: ten rows, the weak model right on 5, the strong one on 8. The score sends
    /// two gains, then a loss, then two gains, then five rows without a difference.
    #[test]
    fn a_curve_and_its_figures_as_computed_by_hand() {
        let pairs = [
            (0, 1),
            (0, 1),
            (1, 0),
            (0, 1),
            (0, 1),
            (1, 1),
            (1, 1),
            (1, 1),
            (1, 1),
            (0, 0),
        ];
        let scores: Vec<f64> = (0..10).rev().map(f64::from).collect();
        let curve = curve(&scores, &pairs);
        let expected = [0.5, 0.6, 0.7, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8];
        for (found, expected) in curve.quality.iter().zip(expected) {
            near(*found, expected);
        }
        // Sum of the inner points 6.6 plus half of the ends 0.65 = 7.25 tenths.
        near(curve.audc(), 0.725);
        near(curve.apgr().expect("a gap"), (0.725 - 0.5) / 0.3);
        // 0.56 is reached within the first step, 0.65 within the second, 0.74 only after
        // the loss, within the fifth.
        near(curve.cpt(0.2).expect("reached"), 0.06);
        near(curve.cpt(0.5).expect("reached"), 0.15);
        near(curve.cpt(0.8).expect("reached"), 0.44);
        // Hull (0, 0.5), (0.2, 0.7), (0.5, 0.8), flat to 1: 0.12 + 0.225 + 0.4.
        near(curve.aiq(0.0), 0.745);
        // Costs 0.1 + 0.9 x: 0.9 of that area, and nothing below the weak model's cost.
        near(curve.aiq(0.1), 0.745 * 0.9);
    }

    #[test]
    fn equal_scores_are_a_straight_line_in_whatever_order_the_rows_come() {
        let pairs = [(0, 1), (1, 1), (0, 1), (0, 0), (1, 1), (1, 1), (0, 1)];
        let curve = curve(&[0.3; 7], &pairs);
        let random = Curve::random(3.0 / 7.0, 6.0 / 7.0);
        for (found, expected) in curve.quality.iter().zip(random.quality) {
            near(*found, expected);
        }
        near(curve.apgr().expect("a gap"), 0.5);
        near(curve.cpt(0.8).expect("reached"), 0.8);
    }

    #[test]
    fn a_row_that_counts_twice_is_two_rows() {
        let pairs = [(0, 1), (1, 0), (1, 1), (0, 1)];
        let scores = [0.9, 0.7, 0.5, 0.1];
        let counts = [2, 0, 1, 3];
        let drawn = Curve::of(&Ranking::descending(&scores), &outcomes(&pairs), &counts);
        let written = [(0, 1), (0, 1), (1, 1), (0, 1), (0, 1), (0, 1)];
        let written = curve(&[0.9, 0.9, 0.5, 0.1, 0.1, 0.1], &written);
        for (found, expected) in drawn.expect("rows").quality.iter().zip(written.quality) {
            near(*found, expected);
        }
        assert_eq!(
            Curve::of(&Ranking::descending(&scores), &outcomes(&pairs), &[0; 4]),
            None
        );
    }

    #[test]
    fn without_a_gap_there_is_nothing_to_recover() {
        let curve = curve(&[0.2, 0.1], &[(1, 0), (0, 1)]);
        assert_eq!((curve.apgr(), curve.cpt(0.5)), (None, None));
    }

    #[test]
    fn one_model_alone_is_a_point() {
        near(aiq_of_point(0.1, 0.6), 0.54);
        near(aiq_of_point(1.0, 0.9), 0.0);
    }

    /// Against numpy, over 200 rows from a generator of whole numbers:
    ///
    /// ```python
    /// import numpy as np
    /// x, rows = 7, []
    /// for _ in range(200):
    ///     x = (x * 1103515245 + 12345) % 2**31
    ///     a = x >> 8; rows.append((a % 1000, a // 1000 % 10 < 6, a // 10000 % 10 < 8))
    /// score, w, s = (np.array(c, float) for c in zip(*rows))
    /// # all scores with 200 rows from 1000 values: equal ones are spread by their mean
    /// gain = s - w
    /// for v in set(score): gain[score == v] = gain[score == v].mean()
    /// c = w.mean() + np.append(0, np.cumsum(gain[np.argsort(-score, kind="stable")]))[::20] / 200
    /// print((np.trapezoid(c, dx=.1) - c[0]) / (c[-1] - c[0]), np.trapezoid(c, dx=.1))
    /// ```
    #[test]
    fn figures_are_those_of_numpy() {
        let (mut x, mut scores, mut pairs) = (7u64, Vec::new(), Vec::new());
        for _ in 0..200 {
            x = (x * 1_103_515_245 + 12_345) % (1 << 31);
            let a = x >> 8;
            scores.push((a % 1000) as f64);
            pairs.push((u8::from(a / 1000 % 10 < 6), u8::from(a / 10_000 % 10 < 8)));
        }
        let curve = curve(&scores, &pairs);
        near(curve.apgr().expect("a gap"), 0.596_511_627_906_977);
        near(curve.audc(), 0.728_25);
    }
}
