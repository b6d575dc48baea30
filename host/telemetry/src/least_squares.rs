//! Least squares that learns one observation at a time and forgets old ones slowly.
//!
//! It keeps the weighted sums of products (the information form of recursive least squares)
//! and solves them on demand. Physics gives the sign of most coefficients: more watts never
//! cool, a byte never gives energy back. Such coefficients are held at zero or above by
//! solving for every choice of which of them are zero and keeping the best admissible one,
//! which is exact and cheap for the three or four unknowns it is used for. It refuses to
//! answer what the observations do not tell: a coefficient that they cannot separate from
//! the others is zero.

/// Pivots below this, with every unknown scaled to 1, mean that two unknowns were only ever
/// seen together.
const PIVOT_MIN: f64 = 1e-9;

/// The sums over all observations, for `N` unknowns.
#[derive(Debug, Clone, PartialEq)]
pub struct LeastSquares<const N: usize> {
    gram: [[f64; N]; N],
    moment: [f64; N],
    keep: f64,
    /// Number of leading unknowns that may be negative.
    signed: usize,
    observations: u64,
}

impl<const N: usize> LeastSquares<N> {
    /// Nothing observed yet. Every observation multiplies the weight of the older ones by
    /// `keep`; the first `signed` unknowns may be negative, the others may not.
    pub const fn new(keep: f64, signed: usize) -> Self {
        Self {
            gram: [[0.0; N]; N],
            moment: [0.0; N],
            keep,
            signed,
            observations: 0,
        }
    }

    /// Observations so far.
    pub fn observations(&self) -> u64 {
        self.observations
    }

    /// Takes one observation: `inputs` gave `output`, believed with `weight`.
    pub fn observe(&mut self, inputs: &[f64; N], output: f64, weight: f64) {
        for (i, row) in self.gram.iter_mut().enumerate() {
            for (j, sum) in row.iter_mut().enumerate() {
                *sum = self.keep * *sum + weight * inputs[i] * inputs[j];
            }
            self.moment[i] = self.keep * self.moment[i] + weight * inputs[i] * output;
        }
        self.observations += 1;
    }

    /// The coefficients that fit best; `None` before the first observation.
    pub fn solve(&self) -> Option<[f64; N]> {
        if self.observations == 0 {
            return None;
        }
        let mut best: Option<([f64; N], f64)> = None;
        // From the fullest choice down: without a sign violated, the first one is the best.
        for left_out in 0..1usize << (N - self.signed) {
            let holds = |i: usize| i < self.signed || left_out >> (i - self.signed) & 1 == 0;
            let Some(solution) = self.solve_among(holds) else {
                continue;
            };
            if solution[self.signed..].iter().any(|&x| x < 0.0) {
                continue;
            }
            // The explained part of the sum of squares: the larger, the better the fit.
            let explained: f64 = solution.iter().zip(&self.moment).map(|(x, b)| x * b).sum();
            if left_out == 0 {
                return Some(solution);
            }
            if best.is_none_or(|(_, most)| explained > most) {
                best = Some((solution, explained));
            }
        }
        best.map(|(solution, _)| solution)
    }

    /// Solves for the chosen unknowns by Cholesky's method, the others are zero. `None` if
    /// the observations do not separate them.
    fn solve_among(&self, chosen: impl Fn(usize) -> bool) -> Option<[f64; N]> {
        let scale: [f64; N] = std::array::from_fn(|i| self.gram[i][i].sqrt());
        let mut lower = [[0.0; N]; N];
        let mut half = [0.0; N];
        for i in (0..N).filter(|&i| chosen(i)) {
            if scale[i].is_nan() || scale[i] <= 0.0 {
                return None;
            }
            for j in (0..=i).filter(|&j| chosen(j)) {
                let known: f64 = (0..j).map(|k| lower[i][k] * lower[j][k]).sum();
                let rest = self.gram[i][j] / (scale[i] * scale[j]) - known;
                lower[i][j] = match i == j {
                    true if rest < PIVOT_MIN => return None,
                    true => rest.sqrt(),
                    false => rest / lower[j][j],
                };
            }
            let known: f64 = (0..i).map(|k| lower[i][k] * half[k]).sum();
            half[i] = (self.moment[i] / scale[i] - known) / lower[i][i];
        }
        let mut solution = [0.0; N];
        for i in (0..N).rev().filter(|&i| chosen(i)) {
            let known: f64 = (i + 1..N).map(|k| lower[k][i] * solution[k]).sum();
            solution[i] = (half[i] - known) / lower[i][i];
        }
        for (x, s) in solution.iter_mut().zip(scale) {
            if *x != 0.0 {
                *x /= s;
            }
        }
        solution.iter().all(|x| x.is_finite()).then_some(solution)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plant::Random;

    #[test]
    fn exact_observations_give_the_exact_coefficients_at_any_scale() {
        let truth = [-3.0, 2.5e-12, 110.0];
        let mut fit = LeastSquares::new(0.9995, 1);
        let mut random = Random::new(1);
        for _ in 0..100 {
            let inputs = [1.0, 1e12 * random.unit(), 1e-2 * random.unit()];
            let output = inputs.iter().zip(truth).map(|(x, c)| x * c).sum();
            fit.observe(&inputs, output, 1.0);
        }
        let found = fit.solve().expect("solvable");
        for (found, truth) in found.iter().zip(truth) {
            assert!((found / truth - 1.0).abs() < 1e-6, "{found} for {truth}");
        }
    }

    #[test]
    fn a_coefficient_that_would_be_negative_is_zero_and_the_others_make_the_best_of_it() {
        let mut fit = LeastSquares::new(1.0, 0);
        let mut random = Random::new(2);
        let mut sums = (0.0, 0.0);
        for _ in 0..1_000 {
            let (a, b) = (random.unit(), random.unit());
            fit.observe(&[a, b], a - 0.5 * b, 1.0);
            sums = (sums.0 + a * a, sums.1 + a * (a - 0.5 * b));
        }
        let found = fit.solve().expect("solvable");
        assert_eq!(found[1], 0.0);
        assert!((found[0] - sums.1 / sums.0).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn what_was_only_ever_seen_together_is_not_told_apart() {
        let mut fit = LeastSquares::new(1.0, 0);
        assert_eq!(fit.solve(), None, "nothing was observed");
        for x in 1..100 {
            let x = f64::from(x);
            fit.observe(&[x, 2.0 * x], 6.0 * x, 1.0);
        }
        let [a, b] = fit.solve().expect("one of them explains all");
        assert!((a + 2.0 * b - 6.0).abs() < 1e-9, "{a} {b}");
        assert!(a == 0.0 || b == 0.0);
    }

    #[test]
    fn it_follows_a_truth_that_changes() {
        let mut fit = LeastSquares::new(0.99, 1);
        for second in 0..2_000u32 {
            let x = f64::from(second % 7);
            let slope = if second < 1_000 { 1.0 } else { 2.0 };
            fit.observe(&[1.0, x], slope * x, 1.0);
        }
        let [_, slope] = fit.solve().expect("solvable");
        assert!((slope - 2.0).abs() < 1e-3, "{slope}");
    }
}
