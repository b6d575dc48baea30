//! Matrix products: quantised rows times tiles of sixteen outputs. One region covers a whole group
//! of matrices that share their input (Q, K and V; gate and up), cut into parts of a few
//! microseconds.
//!
//! What one output is, in every path and for every number of rows:
//!
//! ```text
//! acc = 0;  for each block of 32 columns, in order:
//!     i   = the exact integer dot of weights and activations
//!     acc = fma(i, d * scale, acc);   where there is an m also: acc = fma(m, scale * sum, acc)
//!     Q6_K: the same for columns 0..16 and then for 16..32, each with its own d
//! out = acc, or out + acc
//! ```

use std::ops::Range;

use super::QUANT_BLOCK;
use super::activations::{Activations, BlockGroup, GROUP_ROWS};
use super::formats::TileFormat;
use super::isa::{Isa, Level};
use super::matrix::{BlockScales, Matrix, TILE_ROWS, quant_at};
use super::pool::Pool;

/// Matrices that may share one region.
const MAX_GROUP: usize = 8;

/// Weight bytes times rows that are worth one hand-over between threads: some 3 µs of work.
const PART_BYTES: usize = 96 * 1024;

/// How much of the first data cache the activations may take; a tile needs the rest.
const L1_BYTES: usize = 28 * 1024;

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
    multiply(isa, pool, &mut [(w, out)], x, 0, rows, accumulate);
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
    multiply(isa, pool, group, x, 0, rows, false);
}

/// Adds to every `out` the products of the rows' second terms.
///
/// # Panics
/// As [`matmul_group`], and if `x` was not quantised in two terms.
pub fn matmul_rest(
    isa: Isa,
    pool: &mut Pool,
    group: &mut [(&Matrix, &mut [f32])],
    x: &Activations,
    rows: usize,
) {
    let first_group = x.rest().expect("rows of two terms");
    multiply(isa, pool, group, x, first_group, rows, true);
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
    /// Where the rows begin in `x`.
    first_group: usize,
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
    first_group: usize,
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
        first_group,
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
    fn multiply_tiles(&self, isa: Isa, entry: &Entry<'_>, tiles: Range<usize>) {
        let groups = self.rows.div_ceil(GROUP_ROWS);
        let together = (L1_BYTES / size_of_val(self.x.group(0))).max(1);
        for first in (0..groups).step_by(together) {
            for tile in tiles.clone() {
                let some = first..groups.min(first + together);
                self.multiply_tile(isa, entry, tile, some);
            }
        }
    }

    /// One tile times the rows of some groups, which stay in the first cache from tile to tile.
    fn multiply_tile(&self, isa: Isa, entry: &Entry<'_>, tile: usize, groups: Range<usize>) {
        let (scales, quants) = entry.w.tile(tile);
        let width = TILE_ROWS.min(entry.w.rows() - tile * TILE_ROWS);
        for group in groups {
            let first_row = group * GROUP_ROWS;
            let rows = GROUP_ROWS.min(self.rows - first_row);
            let work = TileWork {
                format: entry.w.format(),
                scales,
                quants,
                x: self.x.group(self.first_group + group),
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
    let mut acc = [[0f32; TILE_ROWS]; GROUP_ROWS];
    let quants = work.quants.chunks_exact(work.format.quant_bytes());
    for (block, (quants, x)) in quants.zip(work.x).enumerate() {
        let scales = BlockScales::read(work.format, work.scales, block);
        let w = unpack(work.format, quants);
        let offset = |sum: i32| work.format.offset_shift().map_or(0, |s| sum >> s);
        for (row, acc) in acc[..work.rows].iter_mut().enumerate() {
            let low = dot(&w, &x.quants[row], 0..4, offset(x.offset_low[row]));
            let high = x.offset[row] - x.offset_low[row];
            let high = dot(&w, &x.quants[row], 4..8, offset(high));
            for (lane, acc) in acc.iter_mut().enumerate() {
                let d = scales.d.map(|d| d[lane] * x.scale[row]);
                if work.format == TileFormat::Q6_K {
                    *acc = (low[lane] as f32).mul_add(d[0], *acc);
                    *acc = (high[lane] as f32).mul_add(d[1], *acc);
                } else {
                    *acc = ((low[lane] + high[lane]) as f32).mul_add(d[0], *acc);
                }
                if work.format.has_min() {
                    *acc = scales.m[lane].mul_add(x.scaled_sum[row], *acc);
                }
            }
        }
    }
    for (row, acc) in acc[..work.rows].iter().enumerate() {
        work.finish(row, acc);
    }
}

/// Sixteen rows of a block, four columns of each side by side.
fn unpack(format: TileFormat, quants: &[u8]) -> [[[u8; 4]; TILE_ROWS]; QUANT_BLOCK / 4] {
    std::array::from_fn(|step| {
        std::array::from_fn(|lane| {
            std::array::from_fn(|k| quant_at(format, quants, lane, 4 * step + k))
        })
    })
}

fn dot(
    w: &[[[u8; 4]; TILE_ROWS]; QUANT_BLOCK / 4],
    x: &[i8; QUANT_BLOCK],
    steps: Range<usize>,
    offset: i32,
) -> [i32; TILE_ROWS] {
    let mut dots = [offset; TILE_ROWS];
    for step in steps {
        for (dot, w) in dots.iter_mut().zip(&w[step]) {
            for (k, w) in w.iter().enumerate() {
                *dot += i32::from(*w) * i32::from(x[4 * step + k]);
            }
        }
    }
    dots
}
