//! What is done to whole rows of floats between the matrix products: norm, softmax, residual. Sums
//! run over sixteen lanes and one fixed tree, so a row's result depends on that row alone.

use super::isa::Isa;
use super::lanes::{Kernel, LANES, Lanes, exp, with_lanes};

/// `out = x / rms(x) * weight`, row by row, `rms(x) = sqrt(mean(x²) + eps)`; `x` and `out` are
/// row-major with `weight.len()` columns, a multiple of 16.
///
/// # Panics
/// If the lengths do not fit.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "norm keeps the shape");
    assert!(
        !weight.is_empty() && x.len().is_multiple_of(weight.len()),
        "whole rows only"
    );
    assert!(
        weight.len().is_multiple_of(LANES),
        "{} columns are no multiple of 16",
        weight.len()
    );
    with_lanes(
        isa,
        RmsNorm {
            x,
            weight,
            eps,
            out,
        },
    );
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let cols = self.weight.len();
        for (x, out) in self
            .x
            .chunks_exact(cols)
            .zip(self.out.chunks_exact_mut(cols))
        {
            let factor = s.splat(inverse_rms(s, x, self.eps));
            let lanes = x.chunks_exact(LANES).zip(self.weight.chunks_exact(LANES));
            for ((x, w), out) in lanes.zip(out.chunks_exact_mut(LANES)) {
                // SAFETY: each chunk holds sixteen floats.
                unsafe {
                    let y = s.mul(s.mul(s.load(x.as_ptr()), factor), s.load(w.as_ptr()));
                    s.store(out.as_mut_ptr(), y);
                }
            }
        }
    }
}

/// 1 / sqrt(mean(x²) + eps) of a row whose length is a multiple of 16.
#[inline(always)]
pub(super) fn inverse_rms<S: Lanes>(s: S, x: &[f32], eps: f32) -> f32 {
    let mut squares = [s.splat(0.0); 2];
    for (i, x) in x.chunks_exact(LANES).enumerate() {
        // SAFETY: the chunk holds sixteen floats.
        let x = unsafe { s.load(x.as_ptr()) };
        squares[i % 2] = s.fma(x, x, squares[i % 2]);
    }
    let sum = s.sum(s.add(squares[0], squares[1]));
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

/// `x += y`.
///
/// # Panics
/// If the lengths differ.
pub fn add_in_place(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "a residual has the shape of its row");
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// Turns scores into probabilities, `e^(x - max) / sum`, over the whole slice (any length). A score
/// of minus infinity becomes 0. Returns the natural logarithm of the sum of e^x, which turns a
/// score into a log-probability.
pub fn softmax_in_place(isa: Isa, x: &mut [f32]) -> f32 {
    with_lanes(isa, Softmax { x })
}

struct Softmax<'a> {
    x: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) -> f32 {
        let mut greatest = s.splat(f32::NEG_INFINITY);
        for chunk in self.x.chunks(LANES) {
            greatest = s.max(load_some(s, chunk, f32::NEG_INFINITY), greatest);
        }
        let greatest = s.greatest(greatest);
        let mut sum = s.splat(0.0);
        for chunk in self.x.chunks_mut(LANES) {
            let score = load_some(s, chunk, f32::NEG_INFINITY);
            let p = exp(s, s.sub(score, s.splat(greatest)));
            sum = s.add(sum, p);
            store_some(s, chunk, p);
        }
        let sum = s.sum(sum);
        for chunk in self.x.chunks_mut(LANES) {
            let p = s.mul(load_some(s, chunk, 0.0), s.splat(1.0 / sum));
            store_some(s, chunk, p);
        }
        greatest + sum.ln()
    }
}

/// One to sixteen floats; the lanes beyond hold `pad`.
#[inline(always)]
fn load_some<S: Lanes>(s: S, x: &[f32], pad: f32) -> S::F {
    let mut lanes = [pad; LANES];
    match x.first_chunk::<LANES>() {
        Some(whole) => lanes = *whole,
        None => lanes[..x.len()].copy_from_slice(x),
    }
    // SAFETY: sixteen floats.
    unsafe { s.load(lanes.as_ptr()) }
}

/// As many lanes as `x` has room for.
#[inline(always)]
fn store_some<S: Lanes>(s: S, x: &mut [f32], v: S::F) {
    let mut lanes = [0f32; LANES];
    // SAFETY: sixteen floats.
    unsafe { s.store(lanes.as_mut_ptr(), v) };
    match x.first_chunk_mut::<LANES>() {
        Some(whole) => *whole = lanes,
        None => x.copy_from_slice(&lanes[..x.len()]),
    }
}
