//! A mixture of experts as the feed-forward of a layer.
//!
//! It exists apart from the dense one because its rows part ways: the rows that chose an expert are
//! gathered, computed together and scattered back. What a row gets must not depend on who else
//! chose the same expert, so every product is row by row as everywhere, and a row adds up its
//! experts in the order of their numbers, the shared one last.
//!
//! Sources: Jiang et al. 2024, "Mixtral of Experts"; the Qwen2-MoE and Qwen3-MoE releases.

use super::config::{DecoderConfig, ExpertConfig};
use super::weights::{ExpertWeights, GatedWeights};
use crate::kernels::{
    Activation, Activations, Isa, Pool, matmul, matmul_group, rms_norm, softmax_in_place,
};

/// One row's use of one expert.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Route {
    expert: u32,
    row: u32,
    weight: f32,
}

/// Scratch memory, allocated once for the largest batch.
pub(super) struct ExpertArena {
    normed: Vec<f32>,
    /// Rows of one expert, side by side, and what it makes of them.
    gathered: Vec<f32>,
    out: Vec<f32>,
    routes: Vec<Route>,
    probabilities: Vec<f32>,
    /// The only row of a batch of one: quantised once for all its experts.
    single: Activations,
}

/// What computing needs besides weights: where to, and with what.
pub(super) struct Machine<'a> {
    pub isa: Isa,
    pub pool: &'a mut Pool,
    pub activation: Activation,
    pub input: &'a mut Activations,
    /// `rows` x the widest feed-forward, each.
    pub gate: &'a mut [f32],
    pub up: &'a mut [f32],
}

impl Machine<'_> {
    /// `out = down(activation(gate(x)) * up(x))`; `x` is already quantised: in `input`, or in `x`.
    fn gated(
        &mut self,
        weights: &GatedWeights,
        x: Option<&Activations>,
        rows: usize,
        out: &mut [f32],
    ) {
        let width = weights.gate.rows();
        let (gate, up) = (&mut self.gate[..rows * width], &mut self.up[..rows * width]);
        let x = x.unwrap_or(self.input);
        let group = &mut [(&weights.gate, &mut *gate), (&weights.up, &mut *up)];
        matmul_group(self.isa, self.pool, group, x, rows);
        self.input
            .quantize_gated(self.isa, self.pool, self.activation, gate, up, rows, width);
        let down = &weights.down;
        matmul(self.isa, self.pool, down, self.input, rows, out, false);
    }
}

impl ExpertArena {
    pub fn new(config: &DecoderConfig, experts: &ExpertConfig, rows: usize) -> Self {
        let width = rows * config.hidden;
        Self {
            normed: vec![0.0; width],
            gathered: vec![0.0; width],
            out: vec![0.0; width],
            routes: Vec::with_capacity(rows * experts.used),
            probabilities: vec![0.0; experts.count],
            single: Activations::with_capacity(1, config.hidden),
        }
    }

    /// Adds the mixture of every row of `residual` (`rows` x hidden) to it.
    pub fn add(
        &mut self,
        machine: &mut Machine<'_>,
        weights: &ExpertWeights,
        config: &ExpertConfig,
        (norm, epsilon): (&[f32], f32),
        residual: &mut [f32],
    ) {
        let hidden = norm.len();
        let rows = residual.len() / hidden;
        rms_norm(
            machine.isa,
            residual,
            norm,
            epsilon,
            &mut self.normed[..rows * hidden],
        );
        self.route(machine.isa, &weights.router, config, rows, hidden);
        if rows == 1 {
            let row = &self.normed[..hidden];
            self.single
                .quantize(machine.isa, machine.pool, row, 1, hidden);
        }
        let routes = std::mem::take(&mut self.routes);
        for chosen in routes.chunk_by(|a, b| a.expert == b.expert) {
            let expert = &weights.experts[chosen[0].expert as usize];
            self.one_expert(machine, expert, chosen, hidden, rows);
            for (route, out) in chosen.iter().zip(self.out.chunks_exact(hidden)) {
                let row = &mut residual[route.row as usize * hidden..][..hidden];
                add_weighted(row, route.weight, out);
            }
        }
        self.routes = routes;
        let Some(shared) = &weights.shared else {
            return;
        };
        let normed = &self.normed[..rows * hidden];
        machine
            .input
            .quantize(machine.isa, machine.pool, normed, rows, hidden);
        let out = &mut self.out[..rows * hidden];
        machine.gated(&shared.weights, None, rows, out);
        let results = normed.chunks_exact(hidden).zip(out.chunks_exact(hidden));
        for ((normed, out), row) in results.zip(residual.chunks_exact_mut(hidden)) {
            let weight = sigmoid(machine.isa, dot(&shared.gate, normed));
            add_weighted(row, weight, out);
        }
    }

    /// Fills `routes`, by expert and then by row.
    fn route(
        &mut self,
        isa: Isa,
        router: &[f32],
        config: &ExpertConfig,
        rows: usize,
        hidden: usize,
    ) {
        self.routes.clear();
        for (row, normed) in self.normed.chunks_exact(hidden).take(rows).enumerate() {
            let scores = self.probabilities.iter_mut();
            for (score, weights) in scores.zip(router.chunks_exact(hidden)) {
                *score = dot(weights, normed);
            }
            softmax_in_place(isa, &mut self.probabilities);
            let first = self.routes.len();
            for _ in 0..config.used {
                let (expert, weight) = take_greatest(&mut self.probabilities);
                self.routes.push(Route {
                    expert: expert as u32,
                    row: row as u32,
                    weight,
                });
            }
            if config.renormalise {
                let own = &mut self.routes[first..];
                let sum: f32 = own.iter().map(|route| route.weight).sum();
                own.iter_mut().for_each(|route| route.weight /= sum);
            }
        }
        self.routes
            .sort_unstable_by_key(|route| (route.expert, route.row));
    }

    /// What an expert makes of the rows that chose it, in their order, into `out`.
    fn one_expert(
        &mut self,
        machine: &mut Machine<'_>,
        expert: &GatedWeights,
        chosen: &[Route],
        hidden: usize,
        rows: usize,
    ) {
        let out = &mut self.out[..chosen.len() * hidden];
        if rows == 1 {
            machine.gated(expert, Some(&self.single), 1, out);
            return;
        }
        let gathered = &mut self.gathered[..chosen.len() * hidden];
        for (route, to) in chosen.iter().zip(gathered.chunks_exact_mut(hidden)) {
            to.copy_from_slice(&self.normed[route.row as usize * hidden..][..hidden]);
        }
        machine
            .input
            .quantize(machine.isa, machine.pool, gathered, chosen.len(), hidden);
        machine.gated(expert, None, chosen.len(), out);
    }
}

/// The greatest probability and where it is, the first of equals; it is gone afterwards. Numbers
/// that are none are taken last, but once each: a broken weight must not become an index.
pub(super) fn take_greatest(probabilities: &mut [f32]) -> (usize, f32) {
    const TAKEN: f32 = f32::NEG_INFINITY;
    let mut best: Option<(usize, f32)> = None;
    for (i, p) in probabilities.iter().enumerate() {
        let better = best.is_none_or(|(_, most)| *p > most || (most.is_nan() && !p.is_nan()));
        if *p != TAKEN && better {
            best = Some((i, *p));
        }
    }
    let (i, p) = best.expect("a token uses no more experts than there are");
    probabilities[i] = TAKEN;
    (i, p)
}

/// In sixteen lanes and a fixed tree, compiled once: no instruction set can change a bit of it.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    for (a, b) in a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// 1 / (1 + e^-x), as the first of two probabilities: the kernel's exponential is the same on
/// every instruction set.
fn sigmoid(isa: Isa, x: f32) -> f32 {
    let mut pair = [x, 0.0];
    softmax_in_place(isa, &mut pair);
    pair[0]
}

fn add_weighted(row: &mut [f32], weight: f32, out: &[f32]) {
    for (x, y) in row.iter_mut().zip(out) {
        *x += weight * y;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_are_taken_in_order_and_no_number_last() {
        let mut p = [0.1, f32::NAN, 0.4, 0.4, 0.1];
        let taken: Vec<usize> = (0..5).map(|_| take_greatest(&mut p).0).collect();
        assert_eq!(taken, [2, 3, 0, 4, 1]);
    }

    #[test]
    fn a_sigmoid_is_one() {
        let isa = Isa::detect().expect("a sane environment");
        for x in [-30.0f32, -2.0, 0.0, 0.5, 9.0] {
            let exact = 1.0 / (1.0 + f64::from(-x).exp());
            let found = f64::from(sigmoid(isa, x));
            assert!((found - exact).abs() < 1e-6, "{x}: {found} {exact}");
        }
    }
}
