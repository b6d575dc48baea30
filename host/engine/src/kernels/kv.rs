//! The keys and values of every layer, in blocks of 32 tokens: `[layer][block][kv head][K d x 32 |
//! V 32 x d]` in f16. Keys lie transposed, so that one load holds the same dimension of sixteen
//! keys and a score needs no sum across lanes; values lie as rows. It refuses to know who owns a
//! block: the block pool does.

use super::KernelError;
use super::attention::RowMeta;
use super::bytes::AlignedBytes;
use super::isa::Isa;
use super::lanes::{Kernel, LANES, Lanes, with_lanes};
use super::pool::Pool;

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
    pub fn new(
        layers: usize,
        blocks: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Result<Self, KernelError> {
        assert!(
            head_dim > 0 && head_dim.is_multiple_of(LANES),
            "head size {head_dim} is no multiple of 16"
        );
        let block = Self::bytes_per_block(layers, kv_heads, head_dim);
        let bytes = block
            .checked_mul(blocks)
            .expect("the KV store fits the address space");
        let what = "keys and values; lower kv_bytes";
        let data = AlignedBytes::zeroed(bytes).ok_or(KernelError::NoMemory { what, bytes })?;
        Ok(KvStore {
            layers,
            blocks,
            kv_heads,
            head_dim,
            data,
        })
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
        let base = Base(self.data.as_mut_ptr().cast::<u16>());
        let d = self.head_dim;
        for (head, (k, v)) in k.chunks_exact(d).zip(v.chunks_exact(d)).enumerate() {
            let at = self.head_at(layer, block as usize, head);
            // SAFETY: `head_at` has checked that the head's block lies in the store, which is
            // borrowed mutably.
            let keys = unsafe { base.at(at) };
            with_lanes(isa, Write { keys, offset, k, v });
        }
    }

    /// [`KvStore::write`] for every entry of `rows`: each token goes to the block of its position.
    ///
    /// # Panics
    /// As [`KvStore::write`], and if a block table is too short.
    pub fn write_rows(
        &mut self,
        isa: Isa,
        pool: &mut Pool,
        layer: usize,
        rows: &[RowMeta<'_>],
        k: &[f32],
        v: &[f32],
    ) {
        let (heads, d) = (self.kv_heads, self.head_dim);
        assert_eq!(k.len(), rows.len() * heads * d, "one row of keys per entry");
        assert_eq!(v.len(), k.len(), "one row of values per row of keys");
        let base = Base(self.data.as_mut_ptr().cast::<u16>());
        let store = &*self;
        // The parts go by heads, so two rows that were given the same place would be a wrong answer
        // but not a race.
        let parts = if rows.len() < 2 * BLOCK_TOKENS {
            1
        } else {
            heads
        };
        pool.run(parts, |part| {
            for head in (part..heads).step_by(parts) {
                for (row, meta) in rows.iter().enumerate() {
                    let block = meta.block_table[meta.position / BLOCK_TOKENS];
                    let at = store.head_at(layer, block as usize, head);
                    let vector = (row * heads + head) * d..(row * heads + head + 1) * d;
                    // SAFETY: `head_at` has checked that the head's block lies in the store, which
                    // is borrowed mutably, and this part alone writes this head.
                    let keys = unsafe { base.at(at) };
                    let write = Write {
                        keys,
                        offset: meta.position % BLOCK_TOKENS,
                        k: &k[vector.clone()],
                        v: &v[vector],
                    };
                    with_lanes(isa, write);
                }
            }
        });
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

/// The first f16 of a store that several threads write to.
struct Base(*mut u16);

// SAFETY: `write_rows` gives every part heads of its own.
unsafe impl Sync for Base {}

impl Base {
    /// # Safety
    /// `at` lies in the store.
    unsafe fn at(&self, at: usize) -> *mut u16 {
        // SAFETY: passed on.
        unsafe { self.0.add(at) }
    }
}

/// Key and value of one head of one token.
struct Write<'a> {
    /// The head's block.
    keys: *mut u16,
    offset: usize,
    k: &'a [f32],
    v: &'a [f32],
}

impl Kernel for Write<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let d = self.k.len();
        // SAFETY: the block holds `d` x 32 keys and then 32 values of `d`; `offset` < 32.
        let (keys, values) = unsafe {
            (
                self.keys.add(self.offset),
                self.keys.add((BLOCK_TOKENS + self.offset) * d),
            )
        };
        for i in (0..d).step_by(LANES) {
            let mut column = [0u16; LANES];
            // SAFETY: `d` is a multiple of 16, so sixteen floats of `k` and `v` are readable at `i`
            // and sixteen f16 of the value row are writable there; a key goes to its own row of 32
            // each.
            unsafe {
                s.store_f16(values.add(i), finite(s, s.load(self.v.as_ptr().add(i))));
                let k = finite(s, s.load(self.k.as_ptr().add(i)));
                s.store_f16(column.as_mut_ptr(), k);
                for (j, x) in column.into_iter().enumerate() {
                    *keys.add((i + j) * BLOCK_TOKENS) = x;
                }
            }
        }
    }
}

#[inline(always)]
fn finite<S: Lanes>(s: S, x: S::F) -> S::F {
    s.max(s.min(x, s.splat(GREATEST)), s.splat(-GREATEST))
}
