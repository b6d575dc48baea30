//! Rotary position embedding (Su et al. 2021, "RoFormer") with precomputed angles. The two pairings
//! are both here because silently using the wrong one gives fluent text for thirty tokens and
//! nonsense after: GGUF llama files have permuted Q and K for the interleaved one, safetensors and
//! most other models have not. Plain Rust, compiled once: no instruction set can change a bit of
//! it.

use super::attention::RowMeta;
use super::pool::Pool;

/// Fewer rows are not worth a hand-over between threads.
const ROWS_OF_A_PART: usize = 8;

/// Which two elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Neighbours, (0, 1), (2, 3), …: GGUF's NORM, for `llama` files.
    Interleaved,
    /// Halves, (0, d/2), (1, d/2 + 1), …: GGUF's NEOX, and every safetensors llama.
    HalfSplit,
}

/// cos and sin of every position and pair.
#[derive(Debug, Clone)]
pub struct RopeTable {
    style: RopeStyle,
    pairs: usize,
    /// `[position][cos x pairs | sin x pairs]`.
    angles: Vec<f32>,
}

impl RopeTable {
    /// Angles for positions `0..positions`: `position / (base^(2 i / rotary_dim) * factor_i)`.
    /// `factors` are the divisors of a GGUF `rope_freqs.weight` (Llama 3 scaling); empty means 1.
    /// Elements of a head from `rotary_dim` on are not rotated.
    ///
    /// # Panics
    /// If `rotary_dim` is odd or `factors` is neither empty nor `rotary_dim / 2` long.
    pub fn new(
        style: RopeStyle,
        rotary_dim: usize,
        base: f64,
        factors: &[f32],
        positions: usize,
    ) -> Self {
        assert!(
            rotary_dim.is_multiple_of(2),
            "{rotary_dim} elements do not pair up"
        );
        let pairs = rotary_dim / 2;
        assert!(
            factors.is_empty() || factors.len() == pairs,
            "one factor per pair"
        );
        let frequency = |i: usize| {
            let factor = factors.get(i).map_or(1.0, |f| f64::from(*f));
            base.powf(-2.0 * i as f64 / rotary_dim as f64) / factor
        };
        let frequencies: Vec<f64> = (0..pairs).map(frequency).collect();
        let mut angles = Vec::with_capacity(positions * rotary_dim);
        for position in 0..positions {
            let angle = |f: &f64| position as f64 * f;
            angles.extend(frequencies.iter().map(|f| angle(f).cos() as f32));
            angles.extend(frequencies.iter().map(|f| angle(f).sin() as f32));
        }
        RopeTable {
            style,
            pairs,
            angles,
        }
    }

    /// Cosine and sine of every pair at a position.
    ///
    /// # Panics
    /// If the position is beyond the table.
    pub fn cos_sin(&self, position: usize) -> (&[f32], &[f32]) {
        let angles = &self.angles[position * 2 * self.pairs..][..2 * self.pairs];
        angles.split_at(self.pairs)
    }

    /// Positions the table has.
    pub fn positions(&self) -> usize {
        self.angles.len() / (2 * self.pairs).max(1)
    }
}

/// Rotates every head of every token: `x` has one row per entry of `rows`, in place.
///
/// # Panics
/// As [`rope_in_place`], and if `x` does not have that many rows.
pub fn rope_rows(
    pool: &mut Pool,
    table: &RopeTable,
    x: &mut [f32],
    head_dim: usize,
    rows: &[RowMeta<'_>],
) {
    if rows.is_empty() {
        return;
    }
    assert!(x.len().is_multiple_of(rows.len()), "one row per entry");
    let width = x.len() / rows.len();
    let each = rows.len().div_ceil(4 * pool.threads()).max(ROWS_OF_A_PART);
    pool.run_chunks(x, (each * width).max(1), |part, x| {
        let metas = &rows[part * each..];
        for (row, meta) in x.chunks_exact_mut(width).zip(metas) {
            rope_in_place(table, row, head_dim, meta.position);
        }
    });
}

/// Rotates every head of one token: `x` is `heads` x `head_dim`, in place.
///
/// # Panics
/// If the position is beyond the table, or `head_dim` is smaller than the rotary size or does not
/// divide `x`.
pub fn rope_in_place(table: &RopeTable, x: &mut [f32], head_dim: usize, position: usize) {
    let pairs = table.pairs;
    assert!(
        head_dim >= 2 * pairs && x.len().is_multiple_of(head_dim),
        "whole heads of {head_dim}"
    );
    let (cos, sin) = table.cos_sin(position);
    for head in x.chunks_exact_mut(head_dim) {
        let head = &mut head[..2 * pairs];
        match table.style {
            RopeStyle::Interleaved => {
                for ((pair, c), s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                    let (a, b) = (pair[0], pair[1]);
                    pair[0] = a * c - b * s;
                    pair[1] = a * s + b * c;
                }
            }
            RopeStyle::HalfSplit => {
                let (first, second) = head.split_at_mut(pairs);
                for (((x, y), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    let (a, b) = (*x, *y);
                    *x = a * c - b * s;
                    *y = a * s + b * c;
                }
            }
        }
    }
}
