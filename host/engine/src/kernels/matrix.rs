//! Weight matrices, repacked for integer dot products. A tile is 16 output rows; inside a tile the
//! columns go by blocks of 32, so that one 64-byte load holds the next four columns of all sixteen
//! rows:
//!
//! ```text
//! tile = scales [block][16 x f16 d (then 16 x f16 m for Q4_1)], padded to 64 bytes
//!        quants [block][Q4: 4 x 64 bytes, low nibbles = columns 0..16, high nibbles = columns 16..32
//!                       Q8: 8 x 64 bytes, stored as q + 128]
//! ```
//!
//! The tiles take exactly as many bytes as the file's blocks (plus padding of the last tile). It
//! refuses formats without an integer kernel; F32, F16 and BF16 are quantised to Q8_0 on the way
//! in.

use std::sync::Arc;

use half::{bf16, f16};

use super::bytes::AlignedBytes;
use super::{KernelError, QUANT_BLOCK};

/// Rows of one tile.
pub(super) const TILE_ROWS: usize = 16;

/// How the bytes of a matrix are stored in a GGUF or safetensors file. The quantised ones are
/// ggml's: blocks of 32 columns with little-endian f16 scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockFormat {
    /// 18 bytes: d, 16 bytes of nibbles; w = d * (q - 8).
    Q4_0,
    /// 20 bytes: d, m, 16 bytes of nibbles; w = d * q + m.
    Q4_1,
    /// 34 bytes: d, 32 signed bytes; w = d * q.
    Q8_0,
    F32,
    F16,
    BF16,
}

impl BlockFormat {
    /// Bytes of 32 columns of one row.
    pub fn block_bytes(self) -> usize {
        match self {
            BlockFormat::Q4_0 => 18,
            BlockFormat::Q4_1 => 20,
            BlockFormat::Q8_0 => 34,
            BlockFormat::F32 => 4 * QUANT_BLOCK,
            BlockFormat::F16 | BlockFormat::BF16 => 2 * QUANT_BLOCK,
        }
    }
}

/// How a tile holds its integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TileFormat {
    Q4_0,
    Q4_1,
    Q8_0,
}

impl TileFormat {
    pub(super) fn scale_bytes(self) -> usize {
        match self {
            TileFormat::Q4_0 | TileFormat::Q8_0 => 2 * TILE_ROWS,
            TileFormat::Q4_1 => 4 * TILE_ROWS,
        }
    }

    pub(super) fn quant_bytes(self) -> usize {
        match self {
            TileFormat::Q4_0 | TileFormat::Q4_1 => TILE_ROWS * QUANT_BLOCK / 2,
            TileFormat::Q8_0 => TILE_ROWS * QUANT_BLOCK,
        }
    }
}

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
    /// Repacks the row-major blocks of a file.
    ///
    /// # Errors
    /// [`KernelError::UnsupportedShape`] if `cols_in` is not a positive multiple of 32 or there is
    /// no row, [`KernelError::WrongByteLength`], [`KernelError::BadNumber`] for a scale or weight
    /// that is not finite: all the model's fault.
    pub fn repack(
        format: BlockFormat,
        rows_out: usize,
        cols_in: usize,
        bytes: &[u8],
    ) -> Result<Matrix, KernelError> {
        let (rows, cols) = (rows_out, cols_in);
        if rows == 0 || cols == 0 || !cols.is_multiple_of(QUANT_BLOCK) {
            return Err(KernelError::UnsupportedShape { rows, cols });
        }
        let blocks = cols / QUANT_BLOCK;
        let expected = rows
            .checked_mul(blocks)
            .and_then(|n| n.checked_mul(format.block_bytes()))
            .ok_or(KernelError::UnsupportedShape { rows, cols })?;
        if bytes.len() != expected {
            return Err(KernelError::WrongByteLength {
                format,
                rows,
                cols,
                expected,
                found: bytes.len(),
            });
        }
        let tile_format = match format {
            BlockFormat::Q4_0 => TileFormat::Q4_0,
            BlockFormat::Q4_1 => TileFormat::Q4_1,
            _ => TileFormat::Q8_0,
        };
        let quants_at = (blocks * tile_format.scale_bytes()).next_multiple_of(64);
        let tile_bytes = quants_at + blocks * tile_format.quant_bytes();
        let mut data = AlignedBytes::zeroed(rows.div_ceil(TILE_ROWS) * tile_bytes);
        let layout = Layout {
            format: tile_format,
            tile_bytes,
            quants_at,
        };
        for (i, block) in bytes.chunks_exact(format.block_bytes()).enumerate() {
            let (row, col) = (i / blocks, i % blocks * QUANT_BLOCK);
            layout
                .put_block(&mut data, format, row, i % blocks, block)
                .ok_or(KernelError::BadNumber {
                    row,
                    first_col: col,
                    end_col: col + QUANT_BLOCK,
                })?;
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
        let lane = row % TILE_ROWS;
        let f16_at = |at: usize| f16::from_le_bytes([scales[at], scales[at + 1]]).to_f32();
        for (block, out) in out.chunks_exact_mut(QUANT_BLOCK).enumerate() {
            let at = block * self.layout.format.scale_bytes() + 2 * lane;
            let d = f16_at(at);
            let q = &quants[block * self.layout.format.quant_bytes()..];
            for (k, w) in out.iter_mut().enumerate() {
                let nibble = || {
                    let byte = q[k % 16 / 4 * 64 + lane * 4 + k % 4];
                    f32::from(if k < 16 { byte & 15 } else { byte >> 4 })
                };
                *w = match self.layout.format {
                    TileFormat::Q4_0 => d * (nibble() - 8.0),
                    TileFormat::Q4_1 => d * nibble() + f16_at(at + 2 * TILE_ROWS),
                    TileFormat::Q8_0 => d * (f32::from(q[k / 4 * 64 + lane * 4 + k % 4]) - 128.0),
                };
            }
        }
    }

    /// Moves matrices side by side into one stretch of memory, on huge pages where the system has
    /// them. Called once after loading, in the order of use, it makes a pass over the model one
    /// linear walk.
    pub fn gather(matrices: &mut [&mut Matrix]) {
        let mut slab = AlignedBytes::zeroed(matrices.iter().map(|m| m.bytes()).sum());
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
    /// Stores one file block; `None` if one of its numbers cannot be used.
    fn put_block(
        &self,
        data: &mut [u8],
        format: BlockFormat,
        row: usize,
        block: usize,
        bytes: &[u8],
    ) -> Option<()> {
        match format {
            BlockFormat::Q4_0 => {
                self.put_nibbles(data, row, block, &[[bytes[0], bytes[1]]], &bytes[2..])
            }
            BlockFormat::Q4_1 => {
                let scales = [[bytes[0], bytes[1]], [bytes[2], bytes[3]]];
                self.put_nibbles(data, row, block, &scales, &bytes[4..])
            }
            BlockFormat::Q8_0 => {
                let quants = std::array::from_fn(|k| bytes[2 + k] as i8);
                self.put_bytes(data, row, block, [bytes[0], bytes[1]], quants)
            }
            BlockFormat::F32 | BlockFormat::F16 | BlockFormat::BF16 => {
                let (d, quants) = quantize_weights(&floats(format, bytes))?;
                self.put_bytes(data, row, block, d.to_le_bytes(), quants)
            }
        }
    }

    fn put_nibbles(
        &self,
        data: &mut [u8],
        row: usize,
        block: usize,
        scales: &[[u8; 2]],
        nibbles: &[u8],
    ) -> Option<()> {
        for (i, scale) in scales.iter().enumerate() {
            self.put_scale(data, row, block, i, *scale)?;
        }
        let lane = row % TILE_ROWS;
        let at =
            row / TILE_ROWS * self.tile_bytes + self.quants_at + block * self.format.quant_bytes();
        for (step, four) in nibbles.chunks_exact(4).enumerate() {
            data[at + step * 64 + lane * 4..][..4].copy_from_slice(four);
        }
        Some(())
    }

    fn put_bytes(
        &self,
        data: &mut [u8],
        row: usize,
        block: usize,
        d: [u8; 2],
        q: [i8; QUANT_BLOCK],
    ) -> Option<()> {
        self.put_scale(data, row, block, 0, d)?;
        let lane = row % TILE_ROWS;
        let at =
            row / TILE_ROWS * self.tile_bytes + self.quants_at + block * self.format.quant_bytes();
        for (k, q) in q.into_iter().enumerate() {
            data[at + k / 4 * 64 + lane * 4 + k % 4] = (q as u8) ^ 0x80;
        }
        Some(())
    }

    fn put_scale(
        &self,
        data: &mut [u8],
        row: usize,
        block: usize,
        which: usize,
        scale: [u8; 2],
    ) -> Option<()> {
        if !f16::from_le_bytes(scale).is_finite() {
            return None;
        }
        let at = row / TILE_ROWS * self.tile_bytes + block * self.format.scale_bytes();
        data[at + (which * TILE_ROWS + row % TILE_ROWS) * 2..][..2].copy_from_slice(&scale);
        Some(())
    }
}

fn floats(format: BlockFormat, bytes: &[u8]) -> [f32; QUANT_BLOCK] {
    std::array::from_fn(|k| match format {
        BlockFormat::F32 => f32::from_le_bytes([
            bytes[4 * k],
            bytes[4 * k + 1],
            bytes[4 * k + 2],
            bytes[4 * k + 3],
        ]),
        BlockFormat::F16 => f16::from_le_bytes([bytes[2 * k], bytes[2 * k + 1]]).to_f32(),
        _ => bf16::from_le_bytes([bytes[2 * k], bytes[2 * k + 1]]).to_f32(),
    })
}

/// Q8_0 of one block. The quants are taken against the *rounded* scale, which halves the error of
/// the scale's own rounding.
fn quantize_weights(x: &[f32; QUANT_BLOCK]) -> Option<(f16, [i8; QUANT_BLOCK])> {
    if !x.iter().all(|x| x.is_finite()) {
        return None;
    }
    let greatest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
    let d = f16::from_f32(greatest / 127.0);
    if !d.is_finite() {
        return None;
    }
    if d == f16::ZERO {
        return Some((f16::ZERO, [0; QUANT_BLOCK]));
    }
    let d32 = d.to_f32();
    Some((
        d,
        x.map(|x| (x / d32).round_ties_even().clamp(-127.0, 127.0) as i8),
    ))
}
