//! The keys and values of every layer, in blocks of 32 tokens: `[layer][block][kv head][K d x 32 |
//! V 32 x d]` in f16. Keys lie transposed, so that one load holds the same dimension of sixteen
//! keys and a score needs no sum across lanes; values lie as rows. It refuses to know who owns a
//! block: the block pool does.

use super::bytes::AlignedBytes;
use super::isa::Isa;
use super::lanes::{Kernel, LANES, Lanes, with_lanes};

/// Tokens of one block.
pub const BLOCK_TOKENS: usize = 32;

/// The greatest f16. Anything beyond is stored as this, and NaN too: what lies in a block may be
/// read under a zero weight by another row, and zero times infinity must not become its business.
const GREATEST: f32 = 65504.0;

/// All blocks of all layers. Memory is zeroed and becomes resident when first written.
pub struct KvStore {
    layers: usize,
    blocks: usize,
    kv_heads: usize,
    head_dim: usize,
    data: AlignedBytes,
}

impl std::fmt::Debug for KvStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let KvStore {
            layers,
            blocks,
            kv_heads,
            head_dim,
            ..
        } = self;
        write!(
            f,
            "KvStore({layers} layers, {blocks} blocks, {kv_heads} kv heads of {head_dim})"
        )
    }
}

/// One layer of the store, to read.
#[derive(Debug, Clone, Copy)]
pub struct KvView<'a> {
    pub(super) store: &'a KvStore,
    pub(super) layer: usize,
}

impl KvStore {
    /// # Panics
    /// If `head_dim` is not a positive multiple of 16, or the size overflows.
    pub fn new(layers: usize, blocks: usize, kv_heads: usize, head_dim: usize) -> Self {
        assert!(
            head_dim > 0 && head_dim.is_multiple_of(LANES),
            "head size {head_dim} is no multiple of 16"
        );
        let block = Self::bytes_per_block(layers, kv_heads, head_dim);
        let bytes = block
            .checked_mul(blocks)
            .expect("the KV store fits the address space");
        KvStore {
            layers,
            blocks,
            kv_heads,
            head_dim,
            data: AlignedBytes::zeroed(bytes),
        }
    }

    /// Bytes of one block over all layers: what one more block of 32 tokens costs.
    pub fn bytes_per_block(layers: usize, kv_heads: usize, head_dim: usize) -> usize {
        layers * kv_heads * 2 * BLOCK_TOKENS * head_dim * size_of::<u16>()
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// The layer to attend to.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn view(&self, layer: usize) -> KvView<'_> {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        KvView { store: self, layer }
    }

    /// Stores one token: `k` (already rotated) and `v` are `kv_heads` x `head_dim`, rounded to f16.
    ///
    /// # Panics
    /// If layer, block, offset or lengths are out of range.
    pub fn write(
        &mut self,
        isa: Isa,
        layer: usize,
        block: u32,
        offset: usize,
        k: &[f32],
        v: &[f32],
    ) {
        assert!(
            offset < BLOCK_TOKENS,
            "offset {offset} in a block of {BLOCK_TOKENS}"
        );
        assert_eq!(
            k.len(),
            self.kv_heads * self.head_dim,
            "one key per kv head"
        );
        assert_eq!(v.len(), k.len(), "one value per kv head");
        let at = self.head_at(layer, block as usize, 0);
        let base = self.data.as_mut_ptr().cast::<u16>();
        // SAFETY: `head_at` has checked that the block lies in the store.
        let block = unsafe { base.add(at) };
        with_lanes(
            isa,
            Write {
                block,
                head_dim: self.head_dim,
                offset,
                k,
                v,
            },
        );
    }

    /// Copies a block in every layer: what a fork does with a last, partly filled block.
    ///
    /// # Panics
    /// If a block is out of range.
    pub fn copy_block(&mut self, src: u32, dst: u32) {
        let len = self.kv_heads * self.head_len() * size_of::<u16>();
        for layer in 0..self.layers {
            let src = self.head_at(layer, src as usize, 0) * size_of::<u16>();
            let dst = self.head_at(layer, dst as usize, 0) * size_of::<u16>();
            self.data.copy_within(src..src + len, dst);
        }
    }

    /// f16 of K and V of one head in one block.
    fn head_len(&self) -> usize {
        2 * BLOCK_TOKENS * self.head_dim
    }

    /// Index of the first f16 of a head's block.
    fn head_at(&self, layer: usize, block: usize, kv_head: usize) -> usize {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        ((layer * self.blocks + block) * self.kv_heads + kv_head) * self.head_len()
    }
}

impl KvView<'_> {
    pub(super) fn kv_heads(&self) -> usize {
        self.store.kv_heads
    }

    pub(super) fn head_dim(&self) -> usize {
        self.store.head_dim
    }

    /// The transposed keys (`head_dim` x 32) and then the values (32 x `head_dim`) of a head's
    /// block.
    pub(super) fn head(&self, block: u32, kv_head: usize) -> *const u16 {
        debug_assert!(kv_head < self.store.kv_heads);
        let at = self.store.head_at(self.layer, block as usize, kv_head);
        // SAFETY: `head_at` has checked that the block lies in the store.
        unsafe { self.store.data.as_ptr().cast::<u16>().add(at) }
    }
}

struct Write<'a> {
    block: *mut u16,
    head_dim: usize,
    offset: usize,
    k: &'a [f32],
    v: &'a [f32],
}

impl Kernel for Write<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let d = self.head_dim;
        let heads = self.k.chunks_exact(d).zip(self.v.chunks_exact(d));
        for (head, (k, v)) in heads.enumerate() {
            // SAFETY: the block holds K and V of every head; `offset` < 32, so both ends lie
            // inside.
            let (keys, values) = unsafe {
                let keys = self.block.add(head * 2 * BLOCK_TOKENS * d);
                (
                    keys.add(self.offset),
                    keys.add((BLOCK_TOKENS + self.offset) * d),
                )
            };
            for i in (0..d).step_by(LANES) {
                let mut column = [0u16; LANES];
                // SAFETY: `d` is a multiple of 16, so sixteen floats of `k` and `v` are readable at
                // `i` and sixteen f16 of the value row are writable there; a key goes to its own
                // row of 32 each.
                unsafe {
                    s.store_f16(values.add(i), finite(s, s.load(v.as_ptr().add(i))));
                    s.store_f16(column.as_mut_ptr(), finite(s, s.load(k.as_ptr().add(i))));
                    for (j, x) in column.into_iter().enumerate() {
                        *keys.add((i + j) * BLOCK_TOKENS) = x;
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn finite<S: Lanes>(s: S, x: S::F) -> S::F {
    s.max(s.min(x, s.splat(GREATEST)), s.splat(-GREATEST))
}
