//! The CPU kernels: everything in a forward pass that touches every weight or every cached key.
//!
//! They exist because nobody else's fit: small models have hidden sizes that are multiples of 32
//! but not of 256, speculation wants eight rows for little more than the price of one, and the
//! engine promises that a sequence gets the same bytes alone, in a batch, after a prefix hit and
//! under speculation. So:
//!
//! * **One order of arithmetic.** Integer dots are exact. Every float is accumulated in an order fixed by
//!   the shape of *its own row*: never by the number of rows, the threads or the instruction set. Sums
//!   across a row use sixteen lanes and one fixed tree, which the narrower paths emulate. Fused
//!   multiply-add is used everywhere, in software where the processor has none. AVX-512, AVX-VNNI,
//!   AVX2 and portable results are equal bit for bit, for finite input.
//! * **Weights are repacked once** ([`Matrix`]), 16 output rows to a tile, scales kept in f16; the bytes
//!   of the file are not kept beside them.
//! * **No allocation and no barrier on the path** beyond one fork and join per parallel region, and none
//!   with one thread ([`Pool`]).
//!
//! It refuses to know models: no layer, no tokenizer, no sampling. It does not check floats: a NaN
//! that comes in goes out. Shapes are the engine's own and are asserted; the bytes of a model file
//! are somebody else's and give a [`KernelError`].
//!
//! # Unsafe code
//!
//! Blocks and `unsafe impl`s, by what they are for (a test counts them; another demands an argument at
//! each). All run under AddressSanitizer in the tests of this module, except for the one instruction
//! of inline assembly, which a sanitizer does not see (`make sanitize`). Miri has not been run: it
//! comes with rustup's nightly alone, which was not at hand, and knows only the portable path.
//!
//! | file | blocks | for |
//! |---|---|---|
//! | `activations.rs` | 2 | loads of sixteen floats from a slice; stores of 32 bytes to a block |
//! | `attention.rs` | 24 | buffers on the stack, written before they are read; blocks behind a block table; results shared out by heads |
//! | `bytes.rs` | 3 | zeroed memory that may be refused; `madvise` for huge pages |
//! | `kv.rs` | 7 | blocks of keys and values by index; heads shared out to threads |
//! | `lanes.rs` | 7 | the portable lanes behind pointers; dispatch on a proven instruction set |
//! | `lanes_x86.rs` | 1 | every vector intrinsic of the lanes, behind one macro |
//! | `matmul.rs` | 7 | results shared out by tiles; dispatch on a proven instruction set; prefetch |
//! | `matmul_avx2.rs` | 14 | intrinsics; a tile walked by pointers |
//! | `matmul_avx512.rs` | 7 | intrinsics; a tile walked by pointers; `vpdpbusd` as inline assembly |
//! | `pool.rs` | 7 | the body of a region that outlives its parts; pieces of a slice, one per part |
//! | `rows.rs` | 4 | loads and stores of sixteen floats of a row |
#![allow(
    unsafe_code,
    reason = "vector instructions, shared output slices, paged pointers; each block argues its safety"
)]

mod activations;
mod attention;
mod bytes;
mod formats;
#[cfg(test)]
mod fuzz;
mod isa;
mod kv;
mod lanes;
#[cfg(target_arch = "x86_64")]
mod lanes_x86;
mod matmul;
#[cfg(target_arch = "x86_64")]
mod matmul_avx2;
#[cfg(target_arch = "x86_64")]
mod matmul_avx512;
mod matrix;
mod pool;
mod rope;
mod rows;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod timing;

pub use activations::{Activation, Activations};
pub use attention::{AttentionScratch, AttentionShape, RowMeta, attention};
pub use formats::{BlockFormat, WeightTarget};
pub use isa::Isa;
pub use kv::{BLOCK_TOKENS, KvStore, KvView};
pub use matmul::{matmul, matmul_group, matmul_rest};
pub use matrix::Matrix;
pub use pool::Pool;
pub use rope::{RopeStyle, RopeTable, rope_in_place, rope_rows};
pub use rows::{
    LogitSums, add_bias, add_in_place, add_rms_norm, logit_sums, rms_norm, rms_norm_in_place,
    softcap_in_place, softmax_in_place,
};

/// Weights and activations are quantised in blocks of this many consecutive columns.
pub const QUANT_BLOCK: usize = 32;

/// What can be wrong with a weight matrix or with the wished instruction set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The model's fault: the tensor's bytes do not match its shape.
    #[error(
        "a {format:?} matrix of {rows} x {cols} takes {expected} bytes, the model file gives {found}; the file is damaged or truncated, fetch it again"
    )]
    WrongByteLength {
        format: BlockFormat,
        rows: usize,
        cols: usize,
        expected: usize,
        found: usize,
    },
    /// The machine's fault, or that of who has asked for so much.
    #[error("the system does not give {bytes} bytes of memory for {what}")]
    NoMemory { what: &'static str, bytes: usize },
    /// The machine's fault, or that of who has asked for so many.
    #[error("the system refused a compute thread ({0}); ask for fewer threads")]
    NoThread(String),
    /// The model's fault: rows cannot be cut into quantisation blocks.
    #[error(
        "a matrix of {rows} x {cols} cannot be cut into blocks of {block} columns; the file is damaged, or this model needs another runner"
    )]
    UnsupportedShape {
        rows: usize,
        cols: usize,
        block: usize,
    },
    /// The model's fault: a scale or a weight is infinite, NaN or too large for an f16 scale.
    #[error(
        "row {row}, columns {first_col}..{end_col}: a weight is not a usable number; the model file is damaged"
    )]
    BadNumber {
        row: usize,
        first_col: usize,
        end_col: usize,
    },
    /// The host's fault: `HOMEOSTAT_ISA` names something that is no instruction set.
    #[error(
        "HOMEOSTAT_ISA is '{0}'; it must be avx512vnni, avxvnni, avx2 or portable, or be unset"
    )]
    UnknownIsa(String),
    /// The host's fault: the processor lacks the wished instruction set.
    #[error(
        "HOMEOSTAT_ISA asks for {0}, which this processor does not have; unset it or ask for less"
    )]
    UnsupportedIsa(&'static str),
}
