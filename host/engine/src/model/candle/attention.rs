//! Keys and values in blocks on a device, and attention over them.
//!
//! The layout is the one that flash attention reads: per layer `[blocks][32][kv heads][head size]`
//! for keys and the same for values, in f16 as on the CPU. Rows are written in place by slot. On
//! CUDA the scores are candle's paged flash attention (Dao 2023, "FlashAttention-2"; Kwon et al.
//! 2023 for the paging); everywhere else they are plain tensor operations over gathered blocks,
//! which exist so that everything around that one call is tested without a GPU.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use crate::batch::Batch;
use crate::block::{BLOCK_SIZE, BlockCopy};
use crate::model::config::DecoderConfig;

/// The greatest f16: as on the CPU, nothing in a block may be infinite, because another row reads
/// it under a zero weight.
const GREATEST: f32 = 65504.0;

struct LayerCache {
    keys: Tensor,
    values: Tensor,
}

/// All blocks of all layers; zeroed, and resident from the start.
pub(super) struct PagedCache {
    layers: Vec<LayerCache>,
    blocks: usize,
    /// Elements of one token's keys in one layer.
    width: usize,
}

impl PagedCache {
    pub fn new(config: &DecoderConfig, blocks: usize, device: &Device) -> Result<Self> {
        let shape = (blocks, BLOCK_SIZE, config.kv_heads, config.head_dim);
        let zeros = || Tensor::zeros(shape, DType::F16, device);
        let layer = |_| {
            Ok(LayerCache {
                keys: zeros()?,
                values: zeros()?,
            })
        };
        Ok(Self {
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            blocks,
            width: config.kv_heads * config.head_dim,
        })
    }

    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Writes the rows of a batch, and their mirrors, to their slots of one layer. `k` and `v` are
    /// `[rows, kv heads x head size]` in f32.
    pub fn write(&self, plan: &Plan, layer: usize, k: &Tensor, v: &Tensor) -> Result<()> {
        let slots = self.blocks * BLOCK_SIZE;
        let LayerCache { keys, values } = &self.layers[layer];
        for (cache, rows) in [(keys, k), (values, v)] {
            let rows = rows.maximum(&plan.least)?.minimum(&plan.greatest)?;
            let rows = rows.to_dtype(DType::F16)?;
            // A view: the cache is contiguous, so this writes to its own memory.
            let flat = cache.reshape((slots, self.width))?;
            for run in &plan.runs {
                flat.slice_set(&rows.narrow(0, run.row, run.rows)?, 0, run.slot)?;
            }
            if let Some(scattered) = &plan.scattered {
                let rows = match &scattered.rows {
                    Some(picked) => rows.index_select(picked, 0)?,
                    None => rows,
                };
                flat.scatter_set(&scattered.slots, &rows, 0)?;
            }
        }
        Ok(())
    }

    pub fn copy_block(&self, copy: &BlockCopy) -> Result<()> {
        for LayerCache { keys, values } in &self.layers {
            for cache in [keys, values] {
                let block = cache.narrow(0, copy.from.0 as usize, 1)?.copy()?;
                cache.slice_set(&block, 0, copy.to.0 as usize)?;
            }
        }
        Ok(())
    }
}

/// What attention needs to know of a layer.
pub(super) struct Scores {
    pub scale: f32,
    /// Positions that a row sees, its own included; `None`: all.
    pub window: Option<usize>,
    pub softcap: Option<f32>,
}

/// Rows that lie beside one another and go to slots beside one another: one copy.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Run {
    row: usize,
    slot: usize,
    rows: usize,
}

/// Rows from which on a copy is cheaper than the scattering of single rows, which on a GPU takes
/// the rows one after another.
const LONG_RUN: usize = 16;

/// The writes that are no long runs.
struct Scattered {
    /// `[writes]`; `None`: all rows in their order, which need no selection.
    rows: Option<Tensor>,
    /// `[writes, width]`: the slot of each write, the same number in every column.
    slots: Tensor,
}

/// A batch as tensors of indices: made once, used by every layer.
pub(super) struct Plan {
    runs: Vec<Run>,
    scattered: Option<Scattered>,
    /// `[rows, width]` of the greatest number in a block, and of the least. Whole tensors, because
    /// a scalar would be sent to the device by every layer.
    greatest: Tensor,
    least: Tensor,
    spans: Vec<Seen>,
    #[cfg(feature = "cuda")]
    flash: Option<flash::Tables>,
}

/// What the rows of one sequence see.
struct Seen {
    rows: Range<usize>,
    /// `[blocks]`
    blocks: Tensor,
    /// Positions up to the last row's.
    length: usize,
    /// `[rows, length]`, 0 where a row sees and -∞ where not, per window that the model has.
    masks: Vec<(Option<usize>, Tensor)>,
}

impl Plan {
    /// The batch must have been checked: spans of consecutive positions, blocks of the cache.
    pub fn new(
        batch: &Batch,
        cache: &PagedCache,
        config: &DecoderConfig,
        device: &Device,
    ) -> Result<Self> {
        let (runs, rest) = runs(batch);
        let scattered = match rest.is_empty() {
            true => None,
            false => {
                let (rows, slots): (Vec<u32>, Vec<u32>) = rest.into_iter().unzip();
                let all = rows.iter().copied().eq(0..batch.rows() as u32);
                let rows = (!all).then(|| Tensor::new(rows, device)).transpose()?;
                let (writes, width) = (slots.len(), cache.width);
                let slots = Tensor::from_vec(slots, (writes, 1), device)?;
                Some(Scattered {
                    rows,
                    slots: slots.broadcast_as((writes, width))?.contiguous()?,
                })
            }
        };
        let bound = |value: f32| Tensor::full(value, (batch.rows(), cache.width), device);
        Ok(Self {
            runs,
            scattered,
            greatest: bound(GREATEST)?,
            least: bound(-GREATEST)?,
            spans: match device.is_cuda() {
                true => Vec::new(),
                false => seen(batch, config, device)?,
            },
            #[cfg(feature = "cuda")]
            flash: match device.is_cuda() {
                true => Some(flash::Tables::new(batch, device)?),
                false => None,
            },
        })
    }

    /// `q` is `[rows, heads, head size]` in f32; so is the result, with the heads side by side.
    pub fn attend(
        &self,
        cache: &PagedCache,
        layer: usize,
        q: &Tensor,
        scores: &Scores,
    ) -> Result<Tensor> {
        let (rows, heads, head_dim) = q.dims3()?;
        let cache = &cache.layers[layer];
        #[cfg(feature = "cuda")]
        if let Some(tables) = &self.flash {
            return tables
                .attend(cache, q, scores)?
                .reshape((rows, heads * head_dim));
        }
        let spans = self.spans.iter();
        let parts = spans
            .map(|span| span.attend(cache, q, scores))
            .collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 0)?.reshape((rows, heads * head_dim))
    }
}

fn slot(block: u32, position: usize) -> u32 {
    block * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32
}

/// The writes of a batch: long runs, and row and slot of every other.
fn runs(batch: &Batch) -> (Vec<Run>, Vec<(u32, u32)>) {
    let (mut long, mut rest) = (Vec::new(), Vec::new());
    let mut keep = |run: Run| match run.rows < LONG_RUN {
        true => rest.extend((0..run.rows).map(|i| ((run.row + i) as u32, (run.slot + i) as u32))),
        false => long.push(run),
    };
    let mut open: Option<Run> = None;
    for span in &batch.spans {
        let table = &batch.blocks[span.blocks.clone()];
        for row in span.rows.clone() {
            let position = batch.positions[row] as usize;
            let slot = slot(table[position / BLOCK_SIZE], position) as usize;
            match &mut open {
                Some(run) if (run.row + run.rows, run.slot + run.rows) == (row, slot) => {
                    run.rows += 1;
                }
                _ => open
                    .replace(Run { row, slot, rows: 1 })
                    .into_iter()
                    .for_each(&mut keep),
            }
        }
    }
    open.into_iter().for_each(&mut keep);
    let mirrors = batch.mirrors.iter();
    rest.extend(mirrors.map(|m| {
        (
            m.row,
            slot(m.block, batch.positions[m.row as usize] as usize),
        )
    }));
    (long, rest)
}

/// Spans without rows see nothing.
fn seen(batch: &Batch, config: &DecoderConfig, device: &Device) -> Result<Vec<Seen>> {
    let mut windows: Vec<Option<usize>> = config.kinds.iter().map(|kind| kind.window).collect();
    windows.sort_unstable();
    windows.dedup();
    let spans = batch.spans.iter().filter(|span| !span.rows.is_empty());
    spans
        .map(|span| {
            let positions = &batch.positions[span.rows.clone()];
            let length = positions.iter().max().map_or(0, |p| *p as usize + 1);
            let table = &batch.blocks[span.blocks.clone()][..length.div_ceil(BLOCK_SIZE)];
            let mask = |window: &Option<usize>| {
                let mask = mask(positions, length, *window);
                let mask = Tensor::from_vec(mask, (positions.len(), length), device)?;
                Ok((*window, mask))
            };
            Ok(Seen {
                rows: span.rows.clone(),
                blocks: Tensor::new(table, device)?,
                length,
                masks: windows.iter().map(mask).collect::<Result<_>>()?,
            })
        })
        .collect()
}

fn mask(positions: &[u32], length: usize, window: Option<usize>) -> Vec<f32> {
    let row = |position: &u32| {
        let end = *position as usize + 1;
        let start = window.map_or(0, |w| end.saturating_sub(w));
        (0..length).map(move |j| match (start..end).contains(&j) {
            true => 0.0,
            false => f32::NEG_INFINITY,
        })
    };
    positions.iter().flat_map(row).collect()
}

impl Seen {
    /// The rows of one sequence, by plain tensor operations.
    fn attend(&self, cache: &LayerCache, q: &Tensor, scores: &Scores) -> Result<Tensor> {
        let rows = self.rows.len();
        let (_, heads, head_dim) = q.dims3()?;
        let kv_heads = cache.keys.dim(2)?;
        let group = heads / kv_heads;
        // [kv heads, length, head size]
        let gather = |cache: &Tensor| {
            let blocks = cache.index_select(&self.blocks, 0)?;
            let flat = blocks.flatten(0, 1)?.narrow(0, 0, self.length)?;
            flat.to_dtype(DType::F32)?.transpose(0, 1)?.contiguous()
        };
        let (keys, values) = (gather(&cache.keys)?, gather(&cache.values)?);
        let q = q
            .narrow(0, self.rows.start, rows)?
            // Through f16, as flash attention reads it.
            .to_dtype(DType::F16)?
            .to_dtype(DType::F32)?
            .reshape((rows, kv_heads, group, head_dim))?
            .permute((1, 2, 0, 3))?
            .reshape((kv_heads, group * rows, head_dim))?;
        let scale = f64::from(scores.scale);
        let mut weights = (q.matmul(&keys.t()?)? * scale)?;
        if let Some(cap) = scores.softcap.map(f64::from) {
            weights = ((weights / cap)?.tanh()? * cap)?;
        }
        let same = |(window, _): &&(Option<usize>, Tensor)| *window == scores.window;
        let Some((_, mask)) = self.masks.iter().find(same) else {
            candle_core::bail!("no layer of this model has the window {:?}", scores.window)
        };
        let shape = (kv_heads, group, rows, self.length);
        let weights = softmax_last_dim(&weights.reshape(shape)?.broadcast_add(mask)?)?;
        weights
            .reshape((kv_heads, group * rows, self.length))?
            .matmul(&values)?
            .reshape((kv_heads, group, rows, head_dim))?
            .permute((2, 0, 1, 3))?
            .reshape((rows, heads, head_dim))
    }
}

#[cfg(feature = "cuda")]
mod flash {
    use candle_core::{DType, Device, Result, Tensor};
    use candle_flash_attn::flash_attn_varlen_paged_windowed;

    use super::{LayerCache, Scores};
    use crate::batch::Batch;
    use crate::block::BLOCK_SIZE;

    /// The ragged batch as flash attention reads it.
    pub struct Tables {
        /// `[sequences + 1]` sums of the rows, and of the positions that they see.
        rows_before: Tensor,
        seen_before: Tensor,
        /// `[sequences, most blocks]`; shorter tables are filled up with 0, which nobody reads.
        blocks: Tensor,
        most_rows: usize,
        most_seen: usize,
    }

    impl Tables {
        pub fn new(batch: &Batch, device: &Device) -> Result<Self> {
            let (mut rows_before, mut seen_before) = (vec![0u32], vec![0u32]);
            let (mut most_rows, mut most_seen) = (0, 0);
            let mut tables = Vec::new();
            let (mut rows, mut seen) = (0, 0);
            for span in batch.spans.iter().filter(|span| !span.rows.is_empty()) {
                let length = batch.positions[span.rows.end - 1] as usize + 1;
                rows += span.rows.len();
                seen += length;
                rows_before.push(rows as u32);
                seen_before.push(seen as u32);
                most_rows = most_rows.max(span.rows.len());
                most_seen = most_seen.max(length);
                tables.push(&batch.blocks[span.blocks.clone()][..length.div_ceil(BLOCK_SIZE)]);
            }
            let width = most_seen.div_ceil(BLOCK_SIZE);
            let mut blocks = vec![0u32; tables.len() * width];
            for (row, table) in blocks.chunks_exact_mut(width.max(1)).zip(&tables) {
                row[..table.len()].copy_from_slice(table);
            }
            Ok(Self {
                rows_before: Tensor::new(rows_before, device)?,
                seen_before: Tensor::new(seen_before, device)?,
                blocks: Tensor::from_vec(blocks, (tables.len(), width), device)?,
                most_rows,
                most_seen,
            })
        }

        /// The rows of a sequence are its last ones, so "nothing to the right" is causal, and a
        /// window of `w` positions is `w - 1` to the left and the own.
        pub fn attend(&self, cache: &LayerCache, q: &Tensor, scores: &Scores) -> Result<Tensor> {
            flash_attn_varlen_paged_windowed(
                &q.to_dtype(DType::F16)?,
                &cache.keys,
                &cache.values,
                &self.rows_before,
                &self.seen_before,
                &self.blocks,
                None,
                self.most_rows,
                self.most_seen,
                scores.scale,
                scores.window.map(|window| window - 1),
                Some(0),
                BLOCK_SIZE,
                scores.softcap,
            )?
            .to_dtype(DType::F32)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Mirror, Span};

    #[test]
    fn rows_beside_one_another_are_one_copy_and_the_others_are_scattered() {
        let mut batch = Batch {
            tokens: vec![0; 42 + 20 + 1],
            positions: (0..42).chain(10..30).chain([95]).collect(),
            blocks: vec![3, 4, 7, 0, 1, 2],
            ..Batch::default()
        };
        for (rows, blocks) in [(0..42, 0..2), (42..62, 2..3), (62..63, 3..6)] {
            let logits = 0..0;
            batch.spans.push(Span {
                rows,
                blocks,
                logits,
            });
        }
        batch.mirrors.push(Mirror { row: 62, block: 9 });
        let (long, rest) = runs(&batch);
        let run = |row, slot, rows| Run { row, slot, rows };
        assert_eq!(long, [run(0, 96, 42), run(42, 234, 20)]);
        assert_eq!(rest, [(62, 95), (62, 319)]);

        // The same rows where the second block lies before the first.
        batch.blocks[0] = 5;
        let (long, rest) = runs(&batch);
        assert_eq!(long, [run(0, 160, 32), run(42, 234, 20)]);
        let short = (0..10).map(|i| (32 + i, 128 + i));
        assert!(rest.into_iter().eq(short.chain([(62, 95), (62, 319)])));
    }
}
