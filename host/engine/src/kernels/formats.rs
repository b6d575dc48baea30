//! What the bytes of a weight in a model file mean, and how the tiles hold the same numbers.
//!
//! The quantised formats are ggml's. Every one of them is kept *as it is*: same integers, same
//! scales, products of two scales formed in f32, where they are exact. Nothing is quantised a
//! second time. It refuses formats without an integer kernel (Q2_K, Q3_K, the IQ family); floats
//! are quantised on the way in, to the target that the caller names.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use super::QUANT_BLOCK;
use super::matrix::TILE_ROWS;

/// Blocks that share the scale of a K format.
pub(super) const SUPER_BLOCKS: usize = 8;

/// How the bytes of a matrix are stored in a GGUF or safetensors file. The quantised ones are
/// ggml's, with little-endian f16 scales `d`, `m`, `dmin`. The K formats go by 256 columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    non_camel_case_types,
    reason = "these are the names users know from ggml and from file names"
)]
pub enum BlockFormat {
    /// 18 bytes: d, 16 bytes of nibbles; w = d * (q - 8).
    Q4_0,
    /// 20 bytes: d, m, 16 bytes of nibbles; w = d * q + m.
    Q4_1,
    /// 22 bytes: d, 4 bytes of fifth bits, 16 bytes of nibbles; w = d * (q - 16).
    Q5_0,
    /// 24 bytes: d, m, 4 bytes of fifth bits, 16 bytes of nibbles; w = d * q + m.
    Q5_1,
    /// 34 bytes: d, 32 signed bytes; w = d * q.
    Q8_0,
    /// 144 bytes: d, dmin, eight pairs of six-bit s and t, 128 bytes of nibbles;
    /// w = d * s * q - dmin * t, s and t for 32 columns each.
    Q4_K,
    /// 176 bytes: as Q4_K, with 32 bytes of fifth bits.
    Q5_K,
    /// 210 bytes: 128 bytes of nibbles, 64 bytes of fifth and sixth bits, sixteen signed bytes s, d;
    /// w = d * s * (q - 32), s for 16 columns each.
    Q6_K,
    F32,
    F16,
    BF16,
}

impl BlockFormat {
    /// Columns of one block: rows are whole numbers of blocks.
    pub fn block_cols(self) -> usize {
        match self {
            BlockFormat::Q4_K | BlockFormat::Q5_K | BlockFormat::Q6_K => SUPER_BLOCKS * QUANT_BLOCK,
            _ => QUANT_BLOCK,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            BlockFormat::Q4_0 => 18,
            BlockFormat::Q4_1 => 20,
            BlockFormat::Q5_0 => 22,
            BlockFormat::Q5_1 => 24,
            BlockFormat::Q8_0 => 34,
            BlockFormat::Q4_K => 144,
            BlockFormat::Q5_K => 176,
            BlockFormat::Q6_K => 210,
            BlockFormat::F32 => 4 * QUANT_BLOCK,
            BlockFormat::F16 | BlockFormat::BF16 => 2 * QUANT_BLOCK,
        }
    }

    /// Bytes of one row of `cols` columns, a multiple of [`BlockFormat::block_cols`]. Rows lie one
    /// after the other, so rows `a..b` of a fused tensor are its bytes `a * row_bytes..b * row_bytes`.
    pub fn row_bytes(self, cols: usize) -> usize {
        cols / self.block_cols() * self.block_bytes()
    }

    /// The weights are floats and will be quantised.
    pub fn is_float(self) -> bool {
        matches!(
            self,
            BlockFormat::F32 | BlockFormat::F16 | BlockFormat::BF16
        )
    }
}

/// What floats are quantised to when a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightTarget {
    /// 8.5 bits a weight; what a model loses by it can hardly be measured.
    #[default]
    Q8_0,
    /// 4.5 bits a weight.
    Q4_0,
    /// 5 bits a weight, with an offset: the better one of the two.
    Q4_1,
}

impl WeightTarget {
    /// `(elements, bytes)` of one block, scales included.
    pub fn block(self) -> (u64, u64) {
        match self {
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
        }
    }
}

/// How a tile holds its integers and scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "as BlockFormat")]
pub(super) enum TileFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl TileFormat {
    pub(super) fn of(format: BlockFormat, target: WeightTarget) -> TileFormat {
        match format {
            BlockFormat::Q4_0 => TileFormat::Q4_0,
            BlockFormat::Q4_1 => TileFormat::Q4_1,
            BlockFormat::Q5_0 => TileFormat::Q5_0,
            BlockFormat::Q5_1 => TileFormat::Q5_1,
            BlockFormat::Q8_0 => TileFormat::Q8_0,
            BlockFormat::Q4_K => TileFormat::Q4_K,
            BlockFormat::Q5_K => TileFormat::Q5_K,
            BlockFormat::Q6_K => TileFormat::Q6_K,
            BlockFormat::F32 | BlockFormat::F16 | BlockFormat::BF16 => match target {
                WeightTarget::Q8_0 => TileFormat::Q8_0,
                WeightTarget::Q4_0 => TileFormat::Q4_0,
                WeightTarget::Q4_1 => TileFormat::Q4_1,
            },
        }
    }

    /// The inverse of `self as u8`: formats are parameters of the vector kernels.
    #[cfg(target_arch = "x86_64")]
    pub(super) const fn from_number(number: u8) -> TileFormat {
        const ALL: [TileFormat; 8] = [
            TileFormat::Q4_0,
            TileFormat::Q4_1,
            TileFormat::Q5_0,
            TileFormat::Q5_1,
            TileFormat::Q8_0,
            TileFormat::Q4_K,
            TileFormat::Q5_K,
            TileFormat::Q6_K,
        ];
        ALL[number as usize]
    }

    /// The two halves of a block have scales of their own, signed ones.
    pub(super) const fn scales_by_half(self) -> bool {
        matches!(self, TileFormat::Q6_K)
    }

    /// Bits of one integer.
    pub(super) const fn bits(self) -> usize {
        match self {
            TileFormat::Q4_0 | TileFormat::Q4_1 | TileFormat::Q4_K => 4,
            TileFormat::Q5_0 | TileFormat::Q5_1 | TileFormat::Q5_K => 5,
            TileFormat::Q6_K => 6,
            TileFormat::Q8_0 => 8,
        }
    }

    /// What the stored, unsigned integers are above the meant ones, as a right shift of 128.
    /// `None`: nothing.
    pub(super) const fn offset_shift(self) -> Option<u32> {
        match self {
            TileFormat::Q4_0 => Some(4),
            TileFormat::Q5_0 => Some(3),
            TileFormat::Q6_K => Some(2),
            TileFormat::Q8_0 => Some(0),
            _ => None,
        }
    }

    /// There is a second term, `m` times the sum of the activations.
    pub(super) const fn has_min(self) -> bool {
        matches!(
            self,
            TileFormat::Q4_1 | TileFormat::Q5_1 | TileFormat::Q4_K | TileFormat::Q5_K
        )
    }

    /// Blocks have small integer scales under an f16 that eight of them share.
    pub(super) const fn is_super(self) -> bool {
        matches!(self, TileFormat::Q4_K | TileFormat::Q5_K | TileFormat::Q6_K)
    }

    /// f16 per row that a block, or a superblock, has.
    pub(super) const fn halves(self) -> usize {
        1 + self.has_min() as usize
    }

    /// Bytes that stand before the scales of every eighth block.
    pub(super) const fn super_bytes(self) -> usize {
        if self.is_super() {
            2 * TILE_ROWS * self.halves()
        } else {
            0
        }
    }

    pub(super) const fn scale_bytes(self) -> usize {
        if self.is_super() {
            2 * TILE_ROWS
        } else {
            2 * TILE_ROWS * self.halves()
        }
    }

    /// Where the scales of a block are, and those of its superblock, counted from the first scale
    /// of the tile.
    pub(super) const fn scales_at(self, block: usize) -> (usize, usize) {
        let over = block / SUPER_BLOCKS * (self.super_bytes() + SUPER_BLOCKS * self.scale_bytes());
        let own = over + self.super_bytes() + block % SUPER_BLOCKS * self.scale_bytes();
        (own, over)
    }

    /// Bytes of all scales of a tile of `blocks` blocks.
    pub(super) const fn all_scale_bytes(self, blocks: usize) -> usize {
        blocks * self.scale_bytes() + blocks.div_ceil(SUPER_BLOCKS) * self.super_bytes()
    }

    pub(super) const fn quant_bytes(self) -> usize {
        TILE_ROWS * QUANT_BLOCK * self.bits() / 8
    }
}

/// One block of one row, as the tiles hold it.
pub(super) struct RowBlock {
    /// What the tile stores: unsigned.
    pub(super) quants: [u8; QUANT_BLOCK],
    /// d and m; of a K format d and -dmin.
    pub(super) halves: [f16; 2],
    /// Of a K format: s and t, or the two s of Q6_K.
    pub(super) fine: [u8; 2],
}

impl RowBlock {
    fn plain(quants: [u8; QUANT_BLOCK], d: f16, m: f16) -> RowBlock {
        RowBlock {
            quants,
            halves: [d, m],
            fine: [0; 2],
        }
    }
}

/// The part `part` (32 columns) of a file's block; `None` if a number cannot be used.
pub(super) fn read_block(
    format: BlockFormat,
    target: WeightTarget,
    bytes: &[u8],
    part: usize,
) -> Option<RowBlock> {
    let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let block = match format {
        BlockFormat::Q4_0 => RowBlock::plain(nibbles(&bytes[2..]), half(0), f16::ZERO),
        BlockFormat::Q4_1 => RowBlock::plain(nibbles(&bytes[4..]), half(0), half(2)),
        BlockFormat::Q5_0 => RowBlock::plain(five_bits(&bytes[2..]), half(0), f16::ZERO),
        BlockFormat::Q5_1 => RowBlock::plain(five_bits(&bytes[4..]), half(0), half(2)),
        BlockFormat::Q8_0 => {
            let quants = std::array::from_fn(|k| bytes[2 + k] ^ 0x80);
            RowBlock::plain(quants, half(0), f16::ZERO)
        }
        BlockFormat::Q4_K | BlockFormat::Q5_K => RowBlock {
            quants: k_quants(format, bytes, part),
            halves: [half(0), -half(2)],
            fine: k_scales(&bytes[4..16], part),
        },
        BlockFormat::Q6_K => RowBlock {
            quants: q6_quants(bytes, part),
            halves: [half(208), f16::ZERO],
            fine: [bytes[192 + 2 * part], bytes[193 + 2 * part]],
        },
        BlockFormat::F32 | BlockFormat::F16 | BlockFormat::BF16 => {
            quantize_weights(target, &floats(format, bytes))?
        }
    };
    block.halves.iter().all(|h| h.is_finite()).then_some(block)
}

fn nibbles(bytes: &[u8]) -> [u8; QUANT_BLOCK] {
    std::array::from_fn(|k| {
        if k < 16 {
            bytes[k] & 15
        } else {
            bytes[k - 16] >> 4
        }
    })
}

/// Four bytes of fifth bits, one per column, and sixteen of nibbles.
fn five_bits(bytes: &[u8]) -> [u8; QUANT_BLOCK] {
    let low = nibbles(&bytes[4..]);
    std::array::from_fn(|k| low[k] | (bytes[k / 8] >> (k % 8) & 1) << 4)
}

/// Of 64 consecutive columns the first 32 are the low nibbles of 32 bytes, the others the high
/// ones. Bit `part` of a byte of fifth bits belongs to part `part`.
fn k_quants(format: BlockFormat, bytes: &[u8], part: usize) -> [u8; QUANT_BLOCK] {
    let (fifth, low) = match format {
        BlockFormat::Q5_K => (&bytes[16..48], &bytes[48..176]),
        _ => (&[0u8; 32][..], &bytes[16..144]),
    };
    std::array::from_fn(|k| {
        let byte = low[part / 2 * 32 + k];
        (byte >> (part % 2 * 4) & 15) | (fifth[k] >> part & 1) << 4
    })
}

/// Eight six-bit s and t in twelve bytes: the first four whole in bytes 0..4 and 4..8, the others
/// with their low nibbles in bytes 8..12 and their high bits above the first four.
fn k_scales(packed: &[u8], part: usize) -> [u8; 2] {
    if part < 4 {
        return [packed[part] & 63, packed[part + 4] & 63];
    }
    let low = packed[part + 4];
    [
        low & 15 | packed[part - 4] >> 6 << 4,
        low >> 4 | packed[part] >> 6 << 4,
    ]
}

/// Of 128 consecutive columns the first 64 are the low nibbles of 64 bytes, the others the high
/// ones; the two further bits of a column's four parts share a byte.
fn q6_quants(bytes: &[u8], part: usize) -> [u8; QUANT_BLOCK] {
    let (half, quarter) = (part / 4, part % 4);
    let (low, high) = (&bytes[64 * half..], &bytes[128 + 32 * half..]);
    std::array::from_fn(|k| {
        let nibble = low[quarter % 2 * 32 + k] >> (quarter / 2 * 4) & 15;
        nibble | (high[k] >> (2 * quarter) & 3) << 4
    })
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

/// Quants are taken against the *rounded* scale, which halves the error of the scale's own
/// rounding.
fn quantize_weights(target: WeightTarget, x: &[f32; QUANT_BLOCK]) -> Option<RowBlock> {
    if !x.iter().all(|x| x.is_finite()) {
        return None;
    }
    let (lowest, highest) = x
        .iter()
        .fold((x[0], x[0]), |(l, h), x| (l.min(*x), h.max(*x)));
    let greatest = highest.max(-lowest);
    // The greatest weight gets the end of the range that has one step more.
    let end = if highest > -lowest { -highest } else { -lowest };
    let (d, m, middle, last) = match target {
        WeightTarget::Q8_0 => (greatest / 127.0, 0.0, 128.0, 255.0),
        WeightTarget::Q4_0 => (end / 8.0, 0.0, 8.0, 15.0),
        WeightTarget::Q4_1 => ((highest - lowest) / 15.0, lowest, 0.0, 15.0),
    };
    let (d, m) = (f16::from_f32(d), f16::from_f32(m));
    let quants = x.map(|x| {
        let steps = match d == f16::ZERO {
            true => 0.0,
            false => (x - m.to_f32()) / d.to_f32(),
        };
        (steps.round_ties_even() + middle).clamp(0.0, last) as u8
    });
    Some(RowBlock::plain(quants, d, m))
}
