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
    norm_rows(isa, Some(x), weight, eps, false, out);
}

/// [`rms_norm`] of `x` into itself. With `weight` as long as a head, it is the norm of every head
/// of every token (Qwen 3, Gemma 3).
///
/// # Panics
/// If the lengths do not fit.
pub fn rms_norm_in_place(isa: Isa, x: &mut [f32], weight: &[f32], eps: f32) {
    norm_rows(isa, None, weight, eps, false, x);
}

/// `residual += rms_norm(x)`: a norm behind a sublayer (Gemma 2 and 3).
///
/// # Panics
/// If the lengths do not fit.
pub fn add_rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, residual: &mut [f32]) {
    assert_eq!(x.len(), residual.len(), "norm keeps the shape");
    norm_rows(isa, Some(x), weight, eps, true, residual);
}

fn norm_rows(isa: Isa, x: Option<&[f32]>, weight: &[f32], eps: f32, add: bool, out: &mut [f32]) {
    assert!(
        !weight.is_empty() && out.len().is_multiple_of(weight.len()),
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
            add,
            out,
        },
    );
}

struct RmsNorm<'a> {
    /// `None`: `out` itself.
    x: Option<&'a [f32]>,
    weight: &'a [f32],
    eps: f32,
    /// To what `out` holds.
    add: bool,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let cols = self.weight.len();
        for (row, out) in self.out.chunks_exact_mut(cols).enumerate() {
            let other = self.x.map(|x| &x[row * cols..][..cols]);
            let factor = s.splat(inverse_rms(s, other.unwrap_or(out), self.eps));
            let out = out.as_mut_ptr();
            let x = other.map_or(out.cast_const(), <[f32]>::as_ptr);
            for (i, w) in self.weight.chunks_exact(LANES).enumerate() {
                let at = i * LANES;
                // SAFETY: rows of `x` and `out` are as long as `weight`; where `x` is `out`, the
                // sixteen floats are read before they are written.
                unsafe {
                    let y = s.mul(s.mul(s.load(x.add(at)), factor), s.load(w.as_ptr()));
                    let out = out.add(at);
                    s.store(out, if self.add { s.add(s.load(out), y) } else { y });
                }
            }
        }
    }
}

/// Adds `bias` to every row of `x`; rows are as long as `bias` (Qwen 2).
///
/// # Panics
/// If `x` is not a whole number of rows.
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    assert!(
        !bias.is_empty() && x.len().is_multiple_of(bias.len()),
        "whole rows only"
    );
    for row in x.chunks_exact_mut(bias.len()) {
        add_in_place(row, bias);
    }
}

/// `x = cap * tanh(x / cap)` for any length: the bound of logits (Gemma 2).
pub fn softcap_in_place(isa: Isa, x: &mut [f32], cap: f32) {
    with_lanes(isa, Softcap { x, cap });
}

struct Softcap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl Kernel for Softcap<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        for chunk in self.x.chunks_mut(LANES) {
            let x = load_some(s, chunk, 0.0);
            store_some(s, chunk, cap_scores(s, x, self.cap));
        }
    }
}

/// `cap * tanh(x / cap)`; minus infinity stays what it is, because it marks a key that is not seen
/// and a token that is not allowed.
#[inline(always)]
pub(super) fn cap_scores<S: Lanes>(s: S, x: S::F, cap: f32) -> S::F {
    let e = exp(s, s.mul(x, s.splat(2.0 / cap)));
    let tanh = s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))));
    // Adding min(x + greatest float, 0) changes nothing but minus infinity.
    s.add(
        s.mul(tanh, s.splat(cap)),
        s.min(s.add(x, s.splat(f32::MAX)), s.splat(0.0)),
    )
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

/// What a row of logits, of any length, sums up to. `NaN` must not be in it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitSums {
    pub greatest: f32,
    /// Sum of e^d, where d = max(x - greatest, -87): below that e^d is no normal number.
    pub sum: f32,
    /// Sum of d * e^d.
    pub weighted: f32,
}

/// See [`LogitSums`].
pub fn logit_sums(isa: Isa, x: &[f32]) -> LogitSums {
    with_lanes(isa, Sums { x })
}

struct Sums<'a> {
    x: &'a [f32],
}

impl Kernel for Sums<'_> {
    type Out = LogitSums;

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) -> LogitSums {
        let mut greatest = s.splat(f32::NEG_INFINITY);
        for chunk in self.x.chunks(LANES) {
            greatest = s.max(load_some(s, chunk, f32::NEG_INFINITY), greatest);
        }
        let greatest = s.greatest(greatest);
        let shift = s.splat(greatest);
        let mut sums = (s.splat(0.0), s.splat(0.0));
        let (whole, rest) = self.x.as_chunks::<LANES>();
        for chunk in whole {
            let x = load_some(s, chunk, 0.0);
            sums = add_weights(s, s.sub(x, shift), s.splat(1.0), sums);
        }
        if !rest.is_empty() {
            // What fills the last lanes up counts for nothing.
            let counts = load_some(s, &[1.0; LANES][..rest.len()], 0.0);
            let x = load_some(s, rest, greatest);
            sums = add_weights(s, s.sub(x, shift), counts, sums);
        }
        let (sum, weighted) = sums;
        LogitSums {
            greatest,
            sum: s.sum(sum),
            weighted: s.sum(weighted),
        }
    }
}

/// Adds `counts * e^d` and `counts * d * e^d`. A function and not a closure, because closures are
/// compiled for the oldest processor.
#[inline(always)]
fn add_weights<S: Lanes>(s: S, d: S::F, counts: S::F, sums: (S::F, S::F)) -> (S::F, S::F) {
    let d = s.max(d, s.splat(-87.0));
    let e = s.mul(exp(s, d), counts);
    (s.add(sums.0, e), s.fma(e, d, sums.1))
}
