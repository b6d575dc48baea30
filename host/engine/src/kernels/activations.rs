//! Activations as the integer kernels want them: signed bytes in blocks of 32 with one f32 scale,
//! eight rows side by side so that a tile kernel walks one pointer. Normalisation and gates are
//! fused into the quantisation: the normalised row is never written as floats.
//!
//! It refuses to grow: capacity is given once, so no step allocates.

use std::ops::Range;

use super::QUANT_BLOCK;
use super::isa::Isa;
use super::lanes::{Kernel, LANES, Lanes, exp, nearest, with_lanes};
use super::pool::Pool;
use super::rows::inverse_rms;

/// Rows that lie side by side in one [`BlockGroup`].
pub(super) const GROUP_ROWS: usize = 8;

/// One block of 32 columns of eight rows.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct BlockGroup {
    pub(super) quants: [[i8; QUANT_BLOCK]; GROUP_ROWS],
    /// x = scale * q.
    pub(super) scale: [f32; GROUP_ROWS],
    /// scale * sum of q: what the `m` of Q4_1 is multiplied with.
    pub(super) scaled_sum: [f32; GROUP_ROWS],
    /// -128 * sum of q: undoes the +128 of stored Q8 weights; a sixteenth of it undoes the +8 of
    /// Q4_0.
    pub(super) offset: [i32; GROUP_ROWS],
    /// The same of the first sixteen columns: Q6_K has a scale for either half.
    pub(super) offset_low: [i32; GROUP_ROWS],
}

/// The function of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// `g / (1 + e^-g)`.
    #[default]
    Silu,
    /// `g / 2 * (1 + tanh(u))` with `u = sqrt(2 / pi) * (g + 0.044715 g^3)` (Gemma), computed as
    /// `g / (1 + e^(-2 u))`, which is the same and cancels nothing.
    GeluTanh,
}

/// Quantised activation rows in a preallocated arena.
pub struct Activations {
    groups: Vec<BlockGroup>,
    rows: usize,
    cols: usize,
    /// Where the second terms of the rows begin, if there are any.
    rest: Option<usize>,
}

impl Activations {
    /// Room for `rows` rows of `cols` columns, or any other shape of rows and cols within both
    /// limits.
    pub fn with_capacity(rows: usize, cols: usize) -> Self {
        let empty = BlockGroup {
            quants: [[0; QUANT_BLOCK]; GROUP_ROWS],
            scale: [0.0; GROUP_ROWS],
            scaled_sum: [0.0; GROUP_ROWS],
            offset: [0; GROUP_ROWS],
            offset_low: [0; GROUP_ROWS],
        };
        let groups = rows.div_ceil(GROUP_ROWS) * cols.div_ceil(QUANT_BLOCK);
        Activations {
            groups: vec![empty; groups],
            rows: 0,
            cols: 0,
            rest: None,
        }
    }

    /// Rows of the last quantisation.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the last quantisation.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The group of the first row's second term.
    pub(super) fn rest(&self) -> Option<usize> {
        self.rest
    }

    pub(super) fn group(&self, group: usize) -> &[BlockGroup] {
        let blocks = self.cols / QUANT_BLOCK;
        &self.groups[group * blocks..][..blocks]
    }

    /// Quantises `x`, row-major `rows` x `cols`.
    ///
    /// # Panics
    /// If the shape does not fit the arena, `cols` is not a multiple of 32 or a slice is short.
    pub fn quantize(&mut self, isa: Isa, pool: &mut Pool, x: &[f32], rows: usize, cols: usize) {
        let source = Plain {
            x: &x[..rows * cols],
            cols,
        };
        self.fill(isa, pool, rows, cols, source);
    }

    /// Quantises `x / rms(x) * weight`, row by row; `rms(x) = sqrt(mean(x²) + eps)`.
    ///
    /// # Panics
    /// As [`Activations::quantize`], and if `weight` is not `cols` long.
    #[allow(
        clippy::too_many_arguments,
        reason = "what a norm is made of, and its shape"
    )]
    pub fn quantize_rms_norm(
        &mut self,
        isa: Isa,
        pool: &mut Pool,
        x: &[f32],
        weight: &[f32],
        eps: f32,
        rows: usize,
        cols: usize,
    ) {
        let source = Normed::new(x, weight, eps, rows, cols);
        self.fill(isa, pool, rows, cols, source);
    }

    /// As [`Activations::quantize_rms_norm`], and beside every row a second one: what the rounding of
    /// the first has lost, rounded with scales of its own. The sum of both is some 250 times as exact;
    /// [`super::matmul_rest`] multiplies the second. It takes the room of twice the rows, each half
    /// rounded up to eight.
    ///
    /// # Panics
    /// As [`Activations::quantize_rms_norm`].
    #[allow(
        clippy::too_many_arguments,
        reason = "what a norm is made of, and its shape"
    )]
    pub fn quantize_rms_norm_in_two(
        &mut self,
        isa: Isa,
        pool: &mut Pool,
        x: &[f32],
        weight: &[f32],
        eps: f32,
        rows: usize,
        cols: usize,
    ) {
        let groups = rows.div_ceil(GROUP_ROWS);
        let source = InTwo {
            of: Normed::new(x, weight, eps, rows, cols),
            rows,
            rest: groups * GROUP_ROWS,
        };
        self.fill(isa, pool, source.rest + rows, cols, source);
        (self.rows, self.rest) = (rows, Some(groups));
    }

    /// Quantises `activation(gate) * up`.
    ///
    /// # Panics
    /// As [`Activations::quantize`].
    #[allow(
        clippy::too_many_arguments,
        reason = "two inputs, what to do, and the shape"
    )]
    pub fn quantize_gated(
        &mut self,
        isa: Isa,
        pool: &mut Pool,
        activation: Activation,
        gate: &[f32],
        up: &[f32],
        rows: usize,
        cols: usize,
    ) {
        let (gate, up) = (&gate[..rows * cols], &up[..rows * cols]);
        match activation {
            Activation::Silu => self.fill(isa, pool, rows, cols, SiluMul { gate, up, cols }),
            Activation::GeluTanh => self.fill(isa, pool, rows, cols, GeluMul { gate, up, cols }),
        }
    }

    /// Eight rows, which share their blocks, are one part of a region.
    fn fill<X: Source>(&mut self, isa: Isa, pool: &mut Pool, rows: usize, cols: usize, source: X) {
        assert!(
            cols > 0 && cols.is_multiple_of(QUANT_BLOCK),
            "{cols} columns are no blocks of 32"
        );
        let blocks = cols / QUANT_BLOCK;
        let groups = rows.div_ceil(GROUP_ROWS);
        assert!(
            groups * blocks <= self.groups.len(),
            "{rows} x {cols} activations exceed the arena"
        );
        (self.rows, self.cols, self.rest) = (rows, cols, None);
        let each = groups.div_ceil(4 * pool.threads()).max(1);
        let used = &mut self.groups[..groups * blocks];
        pool.run_chunks(used, each * blocks, |part, groups| {
            let first = part * each * GROUP_ROWS;
            let rows = first..rows.min(first + each * GROUP_ROWS);
            with_lanes(
                isa,
                Fill {
                    groups,
                    rows,
                    blocks,
                    source,
                },
            );
        });
    }
}

/// Where the values of a row come from.
trait Source: Copy + Sync {
    /// What has to be known of the whole row before its first value.
    fn row_factor<S: Lanes>(&self, s: S, row: usize) -> f32;
    /// Values `col..col + 16` of `row`.
    fn values<S: Lanes>(&self, s: S, row: usize, col: usize, factor: f32) -> S::F;
    /// Values `col..col + 32` of `row`.
    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, row: usize, col: usize, factor: f32) -> (S::F, S::F) {
        (
            self.values(s, row, col, factor),
            self.values(s, row, col + LANES, factor),
        )
    }
}

/// The rows of another source, and from row `rest` on what their quantisation loses.
#[derive(Clone, Copy)]
struct InTwo<X> {
    of: X,
    rows: usize,
    rest: usize,
}

impl<X> InTwo<X> {
    /// Rows between the two halves, which nobody reads, repeat the last.
    fn origin(&self, row: usize) -> usize {
        (row % self.rest).min(self.rows - 1)
    }
}

impl<X: Source> Source for InTwo<X> {
    #[inline(always)]
    fn row_factor<S: Lanes>(&self, s: S, row: usize) -> f32 {
        self.of.row_factor(s, self.origin(row))
    }
    #[inline(always)]
    fn values<S: Lanes>(&self, s: S, row: usize, col: usize, factor: f32) -> S::F {
        self.of.values(s, self.origin(row), col, factor)
    }
    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, row: usize, col: usize, factor: f32) -> (S::F, S::F) {
        let (low, high) = self.of.block(s, self.origin(row), col, factor);
        if row < self.rest {
            return (low, high);
        }
        let (scale, inverse) = scale_of(s, low, high);
        let (scale, inverse) = (s.splat(-scale), s.splat(inverse));
        let lost = |x| s.fma(nearest(s, s.mul(x, inverse)), scale, x);
        (lost(low), lost(high))
    }
}

#[derive(Clone, Copy)]
struct Plain<'a> {
    x: &'a [f32],
    cols: usize,
}

#[derive(Clone, Copy)]
struct Normed<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    cols: usize,
}

impl<'a> Normed<'a> {
    fn new(x: &'a [f32], weight: &'a [f32], eps: f32, rows: usize, cols: usize) -> Self {
        assert_eq!(weight.len(), cols, "one norm weight per column");
        Self {
            x: &x[..rows * cols],
            weight,
            eps,
            cols,
        }
    }
}

#[derive(Clone, Copy)]
struct SiluMul<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    cols: usize,
}

#[derive(Clone, Copy)]
struct GeluMul<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    cols: usize,
}

/// Sixteen floats of a slice.
#[inline(always)]
fn at<S: Lanes>(s: S, x: &[f32], from: usize) -> S::F {
    let sixteen = &x[from..from + LANES];
    // SAFETY: the slice holds sixteen floats.
    unsafe { s.load(sixteen.as_ptr()) }
}

impl Source for Plain<'_> {
    #[inline(always)]
    fn row_factor<S: Lanes>(&self, _: S, _: usize) -> f32 {
        1.0
    }
    #[inline(always)]
    fn values<S: Lanes>(&self, s: S, row: usize, col: usize, _: f32) -> S::F {
        at(s, self.x, row * self.cols + col)
    }
}

impl Source for Normed<'_> {
    #[inline(always)]
    fn row_factor<S: Lanes>(&self, s: S, row: usize) -> f32 {
        inverse_rms(s, &self.x[row * self.cols..][..self.cols], self.eps)
    }
    #[inline(always)]
    fn values<S: Lanes>(&self, s: S, row: usize, col: usize, factor: f32) -> S::F {
        let x = s.mul(at(s, self.x, row * self.cols + col), s.splat(factor));
        s.mul(x, at(s, self.weight, col))
    }
}

impl Source for SiluMul<'_> {
    #[inline(always)]
    fn row_factor<S: Lanes>(&self, _: S, _: usize) -> f32 {
        1.0
    }
    #[inline(always)]
    fn values<S: Lanes>(&self, s: S, row: usize, col: usize, _: f32) -> S::F {
        let gate = at(s, self.gate, row * self.cols + col);
        let up = at(s, self.up, row * self.cols + col);
        s.mul(gated(s, gate, s.sub(s.splat(0.0), gate)), up)
    }
}

impl Source for GeluMul<'_> {
    #[inline(always)]
    fn row_factor<S: Lanes>(&self, _: S, _: usize) -> f32 {
        1.0
    }
    #[inline(always)]
    fn values<S: Lanes>(&self, s: S, row: usize, col: usize, _: f32) -> S::F {
        // -2 sqrt(2 / pi)
        const FACTOR: f32 = -1.595_769;
        let gate = at(s, self.gate, row * self.cols + col);
        let up = at(s, self.up, row * self.cols + col);
        let cubic = s.fma(s.mul(gate, gate), s.splat(0.044_715), s.splat(1.0));
        let exponent = s.mul(s.mul(gate, s.splat(FACTOR)), cubic);
        s.mul(gated(s, gate, exponent), up)
    }
}

/// `gate / (1 + e^exponent)`.
#[inline(always)]
fn gated<S: Lanes>(s: S, gate: S::F, exponent: S::F) -> S::F {
    s.div(gate, s.add(s.splat(1.0), exp(s, exponent)))
}

struct Fill<'a, X> {
    /// Of `rows`, the first of which is the first of a group.
    groups: &'a mut [BlockGroup],
    rows: Range<usize>,
    blocks: usize,
    source: X,
}

impl<X: Source> Kernel for Fill<'_, X> {
    type Out = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        for (i, row) in self.rows.enumerate() {
            let factor = self.source.row_factor(s, row);
            let groups = &mut self.groups[i / GROUP_ROWS * self.blocks..][..self.blocks];
            for (block, group) in groups.iter_mut().enumerate() {
                let (low, high) = self.source.block(s, row, block * QUANT_BLOCK, factor);
                quantize_block(s, low, high, group, i % GROUP_ROWS);
            }
        }
    }
}

/// Below this a block counts as zero: 127 divided by it would no longer be finite.
const SMALLEST: f32 = 1e-30;

/// The scale of a block, and what to multiply with instead of dividing by it.
#[inline(always)]
fn scale_of<S: Lanes>(s: S, low: S::F, high: S::F) -> (f32, f32) {
    let greatest = s.greatest(s.max(s.abs(low), s.abs(high)));
    if greatest < SMALLEST {
        (0.0, 0.0)
    } else {
        (greatest / 127.0, 127.0 / greatest)
    }
}

#[inline(always)]
fn quantize_block<S: Lanes>(s: S, low: S::F, high: S::F, group: &mut BlockGroup, lane: usize) {
    let (scale, inverse) = scale_of(s, low, high);
    let inverse = s.splat(inverse);
    let q = group.quants[lane].as_mut_ptr();
    // SAFETY: a lane holds 32 bytes, two stores of sixteen.
    let (low, high) = unsafe {
        (
            s.store_i8(q, s.mul(low, inverse)),
            s.store_i8(q.add(LANES), s.mul(high, inverse)),
        )
    };
    let sum = low + high;
    group.scale[lane] = scale;
    group.scaled_sum[lane] = scale * sum as f32;
    group.offset[lane] = -128 * sum;
    group.offset_low[lane] = -128 * low;
}
