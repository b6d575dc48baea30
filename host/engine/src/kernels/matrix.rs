//! Weight matrices, repacked for integer dot products. A tile is 16 output rows; inside a tile the
//! columns go by blocks of 32, so that one 64-byte load holds the next four columns of all sixteen
//! rows:
//!
//! ```text
//! tile = scales, padded to 64 bytes
//!          [block][16 x f16 d (then 16 x f16 m for Q4_1 and Q5_1)]
//!          K formats: [8 blocks][16 x f16 d (Q4_K, Q5_K: 16 x f16 -dmin)]
//!                               [block][16 x u8 s][16 x u8 t]; Q6_K: 16 x i8 s of either half
//!        quants [block][4 x 64 bytes: low nibbles = columns 0..16, high nibbles = columns 16..32,
//!                       then 5 bits: 64 bytes, bit b = fifth bit of columns 4 b..4 b + 4;
//!                            6 bits: 128 bytes, the first for columns 0..16: bits 2 b, 2 b + 1]
//!               Q8_0:  [block][8 x 64 bytes, stored as q + 128]
//! ```
//!
//! The tiles take the bytes of the file's blocks, at most one thirtieth more (plus padding of the
//! last tile). Dequantised weights are exactly those of the file: `d * s` is a product of an 11-bit
//! and an 8-bit integer and so exact in f32, where f16 pairs per block would round it and take more
//! bytes besides.

use std::sync::Arc;

use half::f16;

use super::bytes::AlignedBytes;
use super::formats::{BlockFormat, RowBlock, TileFormat, WeightTarget, read_block};
use super::{KernelError, QUANT_BLOCK};

/// Rows of one tile.
pub(super) const TILE_ROWS: usize = 16;

/// Where things are in a tile.
#[derive(Debug, Clone, Copy)]
struct Layout {
    format: TileFormat,
    tile_bytes: usize,
    /// Offset of the quants inside a tile.
    quants_at: usize,
}

/// A matrix of `rows` outputs by `cols` inputs, in tiles.
pub struct Matrix {
    layout: Layout,
    rows: usize,
    cols: usize,
    /// The tiles begin at `start` of memory that other matrices may share (see [`Matrix::gather`]).
    slab: Arc<AlignedBytes>,
    start: usize,
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Matrix({:?}, {} x {})",
            self.layout.format, self.rows, self.cols
        )
    }
}

impl Matrix {
    /// Repacks the row-major blocks of a file; floats are quantised to Q8_0.
    ///
    /// # Errors
    /// As [`Matrix::quantize`].
    pub fn repack(
        format: BlockFormat,
        rows_out: usize,
        cols_in: usize,
        bytes: &[u8],
    ) -> Result<Matrix, KernelError> {
        Self::quantize(WeightTarget::Q8_0, format, rows_out, cols_in, bytes)
    }

    /// Repacks the row-major blocks of a file; floats are quantised to `target`, what is quantised
    /// already stays as it is.
    ///
    /// # Errors
    /// [`KernelError::UnsupportedShape`] if `cols_in` is not a positive multiple of the format's
    /// block or there is no row, [`KernelError::WrongByteLength`], [`KernelError::BadNumber`] for a
    /// scale or weight that is not finite: all the model's fault.
    pub fn quantize(
        target: WeightTarget,
        format: BlockFormat,
        rows_out: usize,
        cols_in: usize,
        bytes: &[u8],
    ) -> Result<Matrix, KernelError> {
        let (rows, cols) = (rows_out, cols_in);
        let unsupported = KernelError::UnsupportedShape {
            rows,
            cols,
            block: format.block_cols(),
        };
        if rows == 0 || cols == 0 || !cols.is_multiple_of(format.block_cols()) {
            return Err(unsupported);
        }
        let expected = rows
            .checked_mul(cols / format.block_cols())
            .and_then(|n| n.checked_mul(format.block_bytes()))
            .ok_or(unsupported)?;
        if bytes.len() != expected {
            return Err(KernelError::WrongByteLength {
                format,
                rows,
                cols,
                expected,
                found: bytes.len(),
            });
        }
        let layout = Layout::new(TileFormat::of(format, target), cols / QUANT_BLOCK);
        let bytes_needed = rows.div_ceil(TILE_ROWS) * layout.tile_bytes;
        let mut data = AlignedBytes::zeroed(bytes_needed).ok_or(KernelError::NoMemory {
            what: "the weights; take a smaller model or a smaller quantisation",
            bytes: bytes_needed,
        })?;
        let per_row = cols / format.block_cols();
        let parts = format.block_cols() / QUANT_BLOCK;
        for (i, file_block) in bytes.chunks_exact(format.block_bytes()).enumerate() {
            let row = i / per_row;
            for part in 0..parts {
                let block = i % per_row * parts + part;
                let content =
                    read_block(format, target, file_block, part).ok_or(KernelError::BadNumber {
                        row,
                        first_col: block * QUANT_BLOCK,
                        end_col: (block + 1) * QUANT_BLOCK,
                    })?;
                layout.put(&mut data, row, block, &content);
            }
        }
        Ok(Matrix {
            layout,
            rows,
            cols,
            slab: Arc::new(data),
            start: 0,
        })
    }

    /// Output rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of the tiles: what one pass over the matrix reads.
    pub fn bytes(&self) -> usize {
        self.tiles() * self.layout.tile_bytes
    }

    pub(super) fn format(&self) -> TileFormat {
        self.layout.format
    }

    pub(super) fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// The scales and the quants of one tile.
    pub(super) fn tile(&self, tile: usize) -> (&[u8], &[u8]) {
        let Layout {
            tile_bytes,
            quants_at,
            ..
        } = self.layout;
        self.slab[self.start + tile * tile_bytes..][..tile_bytes].split_at(quants_at)
    }

    /// The weights of one row as floats: the embedding lookup where the lm_head is tied.
    ///
    /// # Panics
    /// If `row` is out of range or `out` is not `cols` long: the engine checks token ids.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.rows,
            "row {row} of a matrix with {} rows",
            self.rows
        );
        assert_eq!(out.len(), self.cols, "one float per column");
        let (scales, quants) = self.tile(row / TILE_ROWS);
        let (lane, format) = (row % TILE_ROWS, self.layout.format);
        let middle = format.offset_shift().map_or(0.0, |s| (128 >> s) as f32);
        for (block, out) in out.chunks_exact_mut(QUANT_BLOCK).enumerate() {
            let scales = BlockScales::read(format, scales, block);
            let q = &quants[block * format.quant_bytes()..][..format.quant_bytes()];
            for (k, w) in out.iter_mut().enumerate() {
                let q = f32::from(quant_at(format, q, lane, k)) - middle;
                *w = scales.d[k / 16][lane] * q + scales.m[lane];
            }
        }
    }

    /// Moves matrices side by side into one stretch of memory, on huge pages where the system has
    /// them. Called once after loading, in the order of use, it makes a pass over the model one
    /// linear walk.
    pub fn gather(matrices: &mut [&mut Matrix]) {
        // For a moment both are there. Where that is too much, they stay where they are.
        let Some(mut slab) = AlignedBytes::zeroed(matrices.iter().map(|m| m.bytes()).sum()) else {
            return;
        };
        let mut rest = &mut slab[..];
        for matrix in &*matrices {
            let (own, after) = rest.split_at_mut(matrix.bytes());
            own.copy_from_slice(&matrix.slab[matrix.start..][..matrix.bytes()]);
            rest = after;
        }
        let slab = Arc::new(slab);
        let mut start = 0;
        for matrix in matrices {
            (matrix.slab, matrix.start) = (Arc::clone(&slab), start);
            start += matrix.bytes();
        }
    }
}

impl Layout {
    fn new(format: TileFormat, blocks: usize) -> Layout {
        let quants_at = format.all_scale_bytes(blocks).next_multiple_of(64);
        Layout {
            format,
            tile_bytes: quants_at + blocks * format.quant_bytes(),
            quants_at,
        }
    }

    /// Stores one block of one row.
    fn put(&self, data: &mut [u8], row: usize, block: usize, content: &RowBlock) {
        let tile = &mut data[row / TILE_ROWS * self.tile_bytes..][..self.tile_bytes];
        let (lane, format) = (row % TILE_ROWS, self.format);
        let (scales, quants) = tile.split_at_mut(self.quants_at);
        let (own, over) = format.scales_at(block);
        if format.is_super() {
            scales[own + lane] = content.fine[0];
            scales[own + TILE_ROWS + lane] = content.fine[1];
        }
        let halves = if format.is_super() { over } else { own };
        for (i, half) in content.halves[..format.halves()].iter().enumerate() {
            let at = halves + (i * TILE_ROWS + lane) * 2;
            scales[at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
        let quants = &mut quants[block * format.quant_bytes()..][..format.quant_bytes()];
        for (k, q) in content.quants.iter().enumerate() {
            put_quant(format, quants, lane, k, *q);
        }
    }
}

/// Stores column `k` of one of the sixteen rows in a block that was zeroed.
fn put_quant(format: TileFormat, quants: &mut [u8], lane: usize, k: usize, q: u8) {
    let column = lane * 4 + k % 4;
    if format.bits() == 8 {
        quants[k / 4 * 64 + column] = q;
        return;
    }
    quants[k % 16 / 4 * 64 + column] |= (q & 15) << (k / 16 * 4);
    match format.bits() {
        5 => quants[256 + column] |= (q >> 4) << (k / 4),
        6 => quants[256 + k / 16 * 64 + column] |= (q >> 4) << (k % 16 / 4 * 2),
        _ => {}
    }
}

/// Column `k` of one of the sixteen rows: what [`put_quant`] has stored.
pub(super) fn quant_at(format: TileFormat, quants: &[u8], lane: usize, k: usize) -> u8 {
    let column = lane * 4 + k % 4;
    if format.bits() == 8 {
        return quants[k / 4 * 64 + column];
    }
    let low = quants[k % 16 / 4 * 64 + column] >> (k / 16 * 4) & 15;
    match format.bits() {
        5 => low | (quants[256 + column] >> (k / 4) & 1) << 4,
        6 => low | (quants[256 + k / 16 * 64 + column] >> (k % 16 / 4 * 2) & 3) << 4,
        _ => low,
    }
}

/// The scales of one block of a tile as floats; products of two stored scales are exact.
pub(super) struct BlockScales {
    /// For columns 0..16 and 16..32, which differ in Q6_K alone.
    pub(super) d: [[f32; TILE_ROWS]; 2],
    /// What is added to a weight; 0 where the format has none.
    pub(super) m: [f32; TILE_ROWS],
}

impl BlockScales {
    /// `scales` are those of the whole tile.
    pub(super) fn read(format: TileFormat, scales: &[u8], block: usize) -> BlockScales {
        let (own, over) = format.scales_at(block);
        let half_at = |first: usize, i: usize| {
            let at = first + 2 * i;
            f16::from_le_bytes([scales[at], scales[at + 1]]).to_f32()
        };
        let halves = if format.is_super() { over } else { own };
        let d: [f32; TILE_ROWS] = std::array::from_fn(|lane| half_at(halves, lane));
        let m = std::array::from_fn(|lane| match format.has_min() {
            true => half_at(halves, TILE_ROWS + lane),
            false => 0.0,
        });
        let fine = |i: usize, lane: usize| scales[own + i * TILE_ROWS + lane];
        let times = |d: [f32; TILE_ROWS], fine: &dyn Fn(usize) -> f32| {
            std::array::from_fn(|lane| d[lane] * fine(lane))
        };
        match format {
            TileFormat::Q4_K | TileFormat::Q5_K => BlockScales {
                d: [times(d, &|lane| f32::from(fine(0, lane))); 2],
                m: times(m, &|lane| f32::from(fine(1, lane))),
            },
            TileFormat::Q6_K => BlockScales {
                d: [0, 1].map(|i| times(d, &|lane| f32::from(fine(i, lane) as i8))),
                m,
            },
            _ => BlockScales { d: [d; 2], m },
        }
    }
}
