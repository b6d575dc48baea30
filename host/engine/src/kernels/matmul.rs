//! Matrix products: quantised rows times tiles of sixteen outputs. One region covers a whole group
//! of matrices that share their input (Q, K and V; gate and up), cut into parts of a few
//! microseconds.
//!
//! What one output is, in every path and for every number of rows:
//!
//! ```text
//! acc = 0;  for each block of 32 columns, in order:
//!     i   = the exact integer dot of weights and activations
//!     acc = fma(i, d * scale, acc);   Q4_1 also: acc = fma(m, scale * sum, acc)
//! out = acc, or out + acc
//! ```

use half::f16;

use super::activations::{Activations, BlockGroup, GROUP_ROWS};
use super::isa::{Isa, Level};
use super::matrix::{Matrix, TILE_ROWS, TileFormat};
use super::pool::Pool;

/// Matrices that may share one region.
const MAX_GROUP: usize = 8;

/// Weight bytes times rows that are worth one hand-over between threads: some 3 µs of work.
const PART_BYTES: usize = 96 * 1024;

/// `out = x · wᵀ` for the first `rows` rows of `x`; `out` is row-major, `rows` x `w.rows()`. With
/// `accumulate` the product is added to `out`: the residual connection.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul(
    isa: Isa,
    pool: &mut Pool,
    w: &Matrix,
    x: &Activations,
    rows: usize,
    out: &mut [f32],
    accumulate: bool,
) {
    multiply(isa, pool, &mut [(w, out)], x, rows, accumulate);
}

/// Several products of the same input in one parallel region; each `out` is `rows` x its own
/// `w.rows()`.
///
/// # Panics
/// If the shapes do not fit or there are more than eight matrices.
pub fn matmul_group(
    isa: Isa,
    pool: &mut Pool,
    group: &mut [(&Matrix, &mut [f32])],
    x: &Activations,
    rows: usize,
) {
    multiply(isa, pool, group, x, rows, false);
}

/// One matrix of a region: where its results go, and which of the region's tiles are its own.
#[derive(Clone, Copy)]
struct Entry<'a> {
    w: &'a Matrix,
    out: *mut f32,
    first_tile: usize,
}

struct Region<'a> {
    entries: [Option<Entry<'a>>; MAX_GROUP],
    x: &'a Activations,
    rows: usize,
    accumulate: bool,
}

// SAFETY: the pointers lead to disjoint `out` slices that `multiply` borrows mutably for the whole
// region, and every part writes only the columns of its own tiles.
unsafe impl Sync for Region<'_> {}

fn multiply(
    isa: Isa,
    pool: &mut Pool,
    group: &mut [(&Matrix, &mut [f32])],
    x: &Activations,
    rows: usize,
    accumulate: bool,
) {
    assert!(
        group.len() <= MAX_GROUP,
        "{} matrices in one region",
        group.len()
    );
    assert!(
        rows <= x.rows(),
        "{rows} rows wanted, {} quantised",
        x.rows()
    );
    let mut entries = [None; MAX_GROUP];
    let (mut tiles, mut bytes) = (0, 0);
    for (entry, (w, out)) in entries.iter_mut().zip(group) {
        assert_eq!(w.cols(), x.cols(), "{w:?} is fed with {} columns", x.cols());
        assert_eq!(
            out.len(),
            rows * w.rows(),
            "{w:?} gives {rows} rows of {}",
            w.rows()
        );
        *entry = Some(Entry {
            w,
            out: out.as_mut_ptr(),
            first_tile: tiles,
        });
        tiles += w.tiles();
        bytes += w.bytes();
    }
    if rows == 0 || tiles == 0 {
        return;
    }
    let region = Region {
        entries,
        x,
        rows,
        accumulate,
    };
    let wished = (bytes * rows.div_ceil(2) / PART_BYTES).clamp(1, 16 * pool.threads());
    let per_part = tiles.div_ceil(wished);
    pool.run(tiles.div_ceil(per_part), |part| {
        let tiles = part * per_part..tiles.min((part + 1) * per_part);
        for entry in region.entries.iter().flatten() {
            let own = entry.first_tile..entry.first_tile + entry.w.tiles();
            let (from, to) = (tiles.start.max(own.start), tiles.end.min(own.end));
            if from < to {
                region.multiply_tiles(isa, entry, from - own.start..to - own.start);
            }
        }
    });
}

impl Region<'_> {
    fn multiply_tiles(&self, isa: Isa, entry: &Entry<'_>, tiles: std::ops::Range<usize>) {
        for tile in tiles {
            let (scales, quants) = entry.w.tile(tile);
            let width = TILE_ROWS.min(entry.w.rows() - tile * TILE_ROWS);
            for (group, first_row) in (0..self.rows).step_by(GROUP_ROWS).enumerate() {
                let rows = GROUP_ROWS.min(self.rows - first_row);
                let work = TileWork {
                    format: entry.w.format(),
                    scales,
                    quants,
                    x: self.x.group(group),
                    rows,
                    // SAFETY: row `first_row` and column `16 * tile` lie inside `out`, whose length
                    // `multiply` has checked.
                    out: unsafe { entry.out.add(first_row * entry.w.rows() + tile * TILE_ROWS) },
                    stride: entry.w.rows(),
                    fetch_ahead: group == 0,
                    width,
                    accumulate: self.accumulate,
                };
                match isa.0 {
                    Level::Portable => portable(&work),
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: an `Isa` is the proof of its features; `work` is cut to the matrix.
                    Level::Avx2 => unsafe { super::matmul_avx2::avx2(&work) },
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: as above.
                    Level::AvxVnni => unsafe { super::matmul_avx2::avx_vnni(&work) },
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: as above.
                    Level::Avx512Vnni => unsafe { super::matmul_avx512::avx512(&work) },
                }
            }
        }
    }
}

/// One tile times up to eight rows.
pub(super) struct TileWork<'a> {
    pub(super) format: TileFormat,
    pub(super) scales: &'a [u8],
    pub(super) quants: &'a [u8],
    pub(super) x: &'a [BlockGroup],
    pub(super) rows: usize,
    /// `width` floats may be written in each of `rows` rows, `stride` apart.
    pub(super) out: *mut f32,
    pub(super) stride: usize,
    pub(super) width: usize,
    pub(super) accumulate: bool,
    /// The tile comes from memory, not from the cache of the group before.
    pub(super) fetch_ahead: bool,
}

/// [`TileFormat`] as a parameter of the vector kernels.
#[cfg(target_arch = "x86_64")]
pub(super) const Q4_0: u8 = 0;
#[cfg(target_arch = "x86_64")]
pub(super) const Q4_1: u8 = 1;
#[cfg(target_arch = "x86_64")]
pub(super) const Q8_0: u8 = 2;

/// How far ahead of the block at work its successors are fetched: some 150 ns of work. Tiles and
/// gathered matrices follow each other in memory, so this reaches into the next tile and the next
/// matrix.
#[cfg(target_arch = "x86_64")]
const FETCH_AHEAD: usize = 4096;

#[cfg(target_arch = "x86_64")]
impl TileWork<'_> {
    /// Where fetching begins.
    #[inline(always)]
    pub(super) fn fetch_from(&self) -> *const u8 {
        self.scales.as_ptr().wrapping_add(FETCH_AHEAD)
    }

    /// Asks for the cache lines of one block and steps over it. Beyond the end of the weights the
    /// processor ignores the address.
    #[inline(always)]
    pub(super) fn fetch_block(&self, at: &mut *const u8) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        if self.fetch_ahead {
            let bytes = self.format.scale_bytes() + self.format.quant_bytes();
            for line in (0..bytes).step_by(64) {
                // SAFETY: a prefetch reads nothing and cannot fault.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(line).cast()) };
            }
            *at = at.wrapping_add(bytes);
        }
    }
}

impl TileWork<'_> {
    /// Stores the sixteen sums of one row, or as many as the matrix has rows.
    #[inline(always)]
    pub(super) fn finish(&self, row: usize, sums: &[f32; TILE_ROWS]) {
        // SAFETY: `out` has `width` floats in each row, and this part alone writes them.
        let out =
            unsafe { std::slice::from_raw_parts_mut(self.out.add(row * self.stride), self.width) };
        // A whole tile has a length the compiler knows, and no loop.
        match out.first_chunk_mut::<TILE_ROWS>() {
            Some(out) => self.put(out, sums),
            None => self.put(out, sums),
        }
    }

    #[inline(always)]
    fn put(&self, out: &mut [f32], sums: &[f32; TILE_ROWS]) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = if self.accumulate { *out + sum } else { *sum };
        }
    }
}

/// The meaning of the vector kernels, and the path of other processors.
fn portable(work: &TileWork<'_>) {
    let (scale_bytes, quant_bytes) = (work.format.scale_bytes(), work.format.quant_bytes());
    for row in 0..work.rows {
        let mut acc = [0f32; TILE_ROWS];
        let blocks = work
            .scales
            .chunks_exact(scale_bytes)
            .zip(work.quants.chunks_exact(quant_bytes));
        for ((scales, quants), x) in blocks.zip(work.x) {
            let dots = match work.format {
                TileFormat::Q8_0 => dot_bytes(quants, &x.quants[row], x.offset[row]),
                TileFormat::Q4_0 => dot_nibbles(quants, &x.quants[row], x.offset[row] >> 4),
                TileFormat::Q4_1 => dot_nibbles(quants, &x.quants[row], 0),
            };
            let f16_at = |i: usize| f16::from_le_bytes([scales[2 * i], scales[2 * i + 1]]).to_f32();
            for (lane, acc) in acc.iter_mut().enumerate() {
                *acc = (dots[lane] as f32).mul_add(f16_at(lane) * x.scale[row], *acc);
                if work.format == TileFormat::Q4_1 {
                    *acc = f16_at(TILE_ROWS + lane).mul_add(x.scaled_sum[row], *acc);
                }
            }
        }
        work.finish(row, &acc);
    }
}

fn dot_bytes(quants: &[u8], x: &[i8; 32], offset: i32) -> [i32; TILE_ROWS] {
    let mut dots = [offset; TILE_ROWS];
    for (step, x) in quants.chunks_exact(64).zip(x.chunks_exact(4)) {
        for (dot, w) in dots.iter_mut().zip(step.chunks_exact(4)) {
            *dot += w
                .iter()
                .zip(x)
                .map(|(w, x)| i32::from(*w) * i32::from(*x))
                .sum::<i32>();
        }
    }
    dots
}

fn dot_nibbles(quants: &[u8], x: &[i8; 32], offset: i32) -> [i32; TILE_ROWS] {
    let (low, high) = x.split_at(16);
    let mut dots = [offset; TILE_ROWS];
    let steps = quants
        .chunks_exact(64)
        .zip(low.chunks_exact(4))
        .zip(high.chunks_exact(4));
    for ((step, low), high) in steps {
        for (dot, w) in dots.iter_mut().zip(step.chunks_exact(4)) {
            for k in 0..4 {
                *dot += i32::from(w[k] & 15) * i32::from(low[k])
                    + i32::from(w[k] >> 4) * i32::from(high[k]);
            }
        }
    }
    dots
}
