//! The decoder: one forward pass over a ragged batch for Llama, Mistral, Qwen and Gemma, dense or
//! with experts.
//!
//! It exists once because the families differ in a handful of steps (a bias, a norm, a window, a
//! cap), and a step that is data costs an untaken branch. Each step runs for all rows of the batch,
//! then the next. It refuses batches that break the scheduler's promises, whole.
//!
//! Sources of the architectures: Touvron et al. 2023, "LLaMA"; Jiang et al. 2023, "Mistral 7B";
//! the Qwen2 and Qwen3 technical reports; Gemma Team 2024, "Gemma 2", and 2025, "Gemma 3".

use super::config::DecoderConfig;
use super::experts::{ExpertArena, Machine};
use super::weights::{AttentionWeights, DecoderWeights, FeedForward, Layer};
use crate::batch::Batch;
use crate::block::{BLOCK_SIZE, BlockCopy};
use crate::kernels::{
    Activations, AttentionScratch, AttentionShape, Isa, KernelError, KvStore, Pool, RopeTable,
    RowMeta, add_bias, add_in_place, add_rms_norm, attention, matmul, matmul_group, matmul_rest,
    rms_norm_in_place, rope_rows, softcap_in_place,
};
use crate::runner::{Runner, RunnerError};

/// In the first layers, one part in so many, keys and values are products of rows in two terms: every
/// later token and layer reads them. On SmolLM2 this halves the divergence from the exact model for
/// two percent more multiplications; in all layers it would gain a sixth more.
const EXACT_SHARE: usize = 3;

/// Intermediate results of a forward pass, allocated once for the largest batch.
struct Arena {
    residual: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// What a sublayer gives, where it cannot go straight to the residual.
    branch: Vec<f32>,
    input: Activations,
    attention: AttentionScratch,
    experts: Option<ExpertArena>,
    /// Rows of the residual stream that get logits.
    selected: Vec<f32>,
    logits: Vec<f32>,
}

impl Arena {
    fn new(config: &DecoderConfig, rows: usize, logit_rows: usize) -> Self {
        let rows_of = |width: usize| vec![0.0; rows * width];
        let expert =
            |e: super::config::ExpertConfig| e.feed_forward.max(e.shared_feed_forward.unwrap_or(0));
        let feed_forward = config.feed_forward.max(config.experts.map_or(0, expert));
        Self {
            residual: rows_of(config.hidden),
            q: rows_of(config.heads * config.head_dim),
            k: rows_of(config.kv_heads * config.head_dim),
            v: rows_of(config.kv_heads * config.head_dim),
            attended: rows_of(config.heads * config.head_dim),
            gate: rows_of(feed_forward),
            up: rows_of(feed_forward),
            branch: rows_of(config.hidden),
            // The rows of a layer's input may have two terms.
            input: Activations::with_capacity(
                rows.max(logit_rows),
                config.widest().max(2 * config.hidden),
            ),
            attention: AttentionScratch::default(),
            experts: config
                .experts
                .map(|experts| ExpertArena::new(config, &experts, rows)),
            selected: vec![0.0; logit_rows * config.hidden],
            logits: vec![0.0; logit_rows * config.vocabulary],
        }
    }
}

/// The CPU runner of a decoder: weights, KV memory, threads and scratch.
pub struct DecoderRunner {
    weights: DecoderWeights,
    kv: KvStore,
    rope: RopeTable,
    /// Of the layers that say so; the same as `rope` where none does.
    local_rope: Option<RopeTable>,
    isa: Isa,
    pool: Pool,
    arena: Arena,
    size: RunnerSize,
}

/// The sizes of a runner's memory.
#[derive(Debug, Clone, Copy)]
pub struct RunnerSize {
    pub threads: usize,
    pub blocks: usize,
    pub max_rows: usize,
    pub max_logit_rows: usize,
    pub context_tokens: usize,
}

impl DecoderRunner {
    /// Everything a pass needs, so that no pass can lack it.
    pub fn new(weights: DecoderWeights, isa: Isa, size: RunnerSize) -> Result<Self, KernelError> {
        let config = &weights.config;
        // No position beyond the pool's blocks can ever be computed.
        let positions = size.context_tokens.min(size.blocks * BLOCK_SIZE);
        let table = |rope: &super::config::Rope, divisors: &[f32]| {
            RopeTable::new(rope.style, rope.dim, rope.base, divisors, positions)
        };
        let has_local = config.kinds.iter().any(|kind| kind.local_rope);
        let kv = KvStore::new(config.layers, size.blocks, config.kv_heads, config.head_dim)?;
        Ok(Self {
            kv,
            rope: table(&config.rope, &weights.rope_divisors),
            local_rope: has_local.then(|| table(&config.local_rope, &[])),
            isa,
            pool: Pool::new(size.threads)?,
            arena: Arena::new(config, size.max_rows, size.max_logit_rows),
            size,
            weights,
        })
    }

    fn embed(&mut self, batch: &Batch) {
        let config = &self.weights.config;
        let rows = self.arena.residual.chunks_exact_mut(config.hidden);
        for (token, row) in batch.tokens.iter().zip(rows) {
            self.weights.embedding.dequantize_row(*token as usize, row);
            if let Some(scale) = config.embedding_scale() {
                row.iter_mut().for_each(|x| *x *= scale);
            }
        }
    }

    /// Self-attention of one layer, added to the residual stream.
    fn attend(&mut self, batch: &Batch, metas: &[RowMeta<'_>], index: usize) {
        self.queries_keys_values(batch.rows(), index);
        self.rotate_and_store(batch, metas, index);
        let Self {
            weights,
            kv,
            isa,
            pool,
            arena,
            ..
        } = self;
        let config = &weights.config;
        let (isa, rows, width) = (*isa, batch.rows(), config.heads * config.head_dim);
        // A window that nobody has outgrown hides nothing; without it rows share their loads, and
        // the bits are the same.
        let reach = batch.positions.iter().max().map_or(0, |p| *p as usize + 1);
        let shape = AttentionShape {
            heads: config.heads,
            scale: config.attention_scale,
            window: config.kinds[index].window.filter(|window| *window < reach),
            softcap: config.attention_softcap,
        };
        let attended = &mut arena.attended[..rows * width];
        let (q, kv) = (&arena.q[..rows * width], &kv.view(index));
        let scratch = &mut arena.attention;
        attention(isa, pool, scratch, &shape, q, kv, metas, attended);
        arena.input.quantize(isa, pool, attended, rows, width);
        let residual = &mut arena.residual[..rows * config.hidden];
        let layer = &weights.layers[index].attention;
        if layer.post_norm.is_empty() && layer.output_bias.is_empty() {
            matmul(isa, pool, &layer.output, &arena.input, rows, residual, true);
            return;
        }
        let branch = &mut arena.branch[..rows * config.hidden];
        matmul(isa, pool, &layer.output, &arena.input, rows, branch, false);
        if !layer.output_bias.is_empty() {
            add_bias(branch, &layer.output_bias);
        }
        match layer.post_norm.is_empty() {
            true => add_in_place(residual, branch),
            false => add_rms_norm(isa, branch, &layer.post_norm, config.rms_epsilon, residual),
        }
    }

    fn queries_keys_values(&mut self, rows: usize, index: usize) {
        let Self {
            weights,
            isa,
            pool,
            arena,
            ..
        } = self;
        let config = &weights.config;
        let (hidden, epsilon) = (config.hidden, config.rms_epsilon);
        let layer = &weights.layers[index].attention;
        let (norm, residual) = (&layer.norm, &arena.residual);
        let input = &mut arena.input;
        let in_two = index < config.layers.div_ceil(EXACT_SHARE);
        if in_two {
            input.quantize_rms_norm_in_two(*isa, pool, residual, norm, epsilon, rows, hidden);
        } else {
            input.quantize_rms_norm(*isa, pool, residual, norm, epsilon, rows, hidden);
        }
        let wide = rows * config.heads * config.head_dim;
        let narrow = rows * config.kv_heads * config.head_dim;
        let (q, k, v) = (
            &mut arena.q[..wide],
            &mut arena.k[..narrow],
            &mut arena.v[..narrow],
        );
        let group = &mut [
            (&layer.q, &mut *q),
            (&layer.k, &mut *k),
            (&layer.v, &mut *v),
        ];
        matmul_group(*isa, pool, group, &arena.input, rows);
        if in_two {
            let group = &mut [(&layer.k, &mut *k), (&layer.v, &mut *v)];
            matmul_rest(*isa, pool, group, &arena.input, rows);
        }
        finish_projections(*isa, layer, epsilon, q, k, v);
    }

    /// Rotates queries and keys to their positions and writes keys and values to their blocks.
    fn rotate_and_store(&mut self, batch: &Batch, metas: &[RowMeta<'_>], index: usize) {
        let Self {
            weights,
            kv,
            rope,
            local_rope,
            isa,
            pool,
            arena,
            ..
        } = self;
        let config = &weights.config;
        let head_dim = config.head_dim;
        let rope = match local_rope {
            Some(local) if config.kinds[index].local_rope => local,
            _ => rope,
        };
        let width = config.kv_heads * head_dim;
        let q = &mut arena.q[..metas.len() * config.heads * head_dim];
        let k = &mut arena.k[..metas.len() * width];
        rope_rows(pool, rope, q, head_dim, metas);
        rope_rows(pool, rope, k, head_dim, metas);
        let v = &arena.v[..k.len()];
        kv.write_rows(*isa, pool, index, metas, k, v);
        for mirror in &batch.mirrors {
            let row = mirror.row as usize;
            let offset = metas[row].position % BLOCK_SIZE;
            let key = &arena.k[row * width..][..width];
            let value = &arena.v[row * width..][..width];
            kv.write(*isa, index, mirror.block, offset, key, value);
        }
    }

    /// The feed-forward of one layer, added to the residual stream.
    fn feed_forward(&mut self, rows: usize, index: usize) {
        let Self {
            weights,
            isa,
            pool,
            arena,
            ..
        } = self;
        let config = &weights.config;
        let Layer {
            ffn_norm,
            feed_forward,
            ffn_post_norm,
            ..
        } = &weights.layers[index];
        let (isa, hidden, epsilon) = (*isa, config.hidden, config.rms_epsilon);
        let activation = config.architecture.activation();
        let residual = &mut arena.residual[..rows * hidden];
        let dense = match (feed_forward, &config.experts, &mut arena.experts) {
            (FeedForward::Dense(dense), ..) => dense,
            (FeedForward::Sparse(weights), Some(experts), Some(scratch)) => {
                let mut machine = Machine {
                    isa,
                    pool,
                    activation,
                    input: &mut arena.input,
                    gate: &mut arena.gate,
                    up: &mut arena.up,
                };
                let norm = (&ffn_norm[..], epsilon);
                scratch.add(&mut machine, weights, experts, norm, residual);
                return;
            }
            (FeedForward::Sparse(_), ..) => unreachable!("the config was checked: experts or none"),
        };
        arena
            .input
            .quantize_rms_norm(isa, pool, residual, ffn_norm, epsilon, rows, hidden);
        let width = config.feed_forward;
        let (gate, up) = (
            &mut arena.gate[..rows * width],
            &mut arena.up[..rows * width],
        );
        let group = &mut [(&dense.gate, &mut *gate), (&dense.up, &mut *up)];
        matmul_group(isa, pool, group, &arena.input, rows);
        arena
            .input
            .quantize_gated(isa, pool, activation, gate, up, rows, width);
        if ffn_post_norm.is_empty() {
            matmul(isa, pool, &dense.down, &arena.input, rows, residual, true);
            return;
        }
        let branch = &mut arena.branch[..rows * hidden];
        matmul(isa, pool, &dense.down, &arena.input, rows, branch, false);
        add_rms_norm(isa, branch, ffn_post_norm, epsilon, residual);
    }

    /// The head is a third of a small model's bytes, so only the rows that are read pay for it.
    fn project(&mut self, batch: &Batch) {
        let Self {
            weights,
            isa,
            pool,
            arena,
            ..
        } = self;
        let config = &weights.config;
        let (hidden, count) = (config.hidden, batch.logit_rows.len());
        if count == 0 {
            return;
        }
        let selected = arena.selected.chunks_exact_mut(hidden);
        for (row, selected) in batch.logit_rows.iter().zip(selected) {
            selected.copy_from_slice(&arena.residual[*row as usize * hidden..][..hidden]);
        }
        arena.input.quantize_rms_norm(
            *isa,
            pool,
            &arena.selected,
            &weights.output_norm,
            config.rms_epsilon,
            count,
            hidden,
        );
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        let logits = &mut arena.logits[..count * config.vocabulary];
        matmul(*isa, pool, head, &arena.input, count, logits, false);
        if let Some(cap) = config.final_softcap {
            softcap_in_place(*isa, logits, cap);
        }
    }
}

/// The sizes of a batch are the scheduler's promise; a batch that breaks it is refused whole.
pub(super) fn check_batch(
    batch: &Batch,
    size: &RunnerSize,
    vocabulary: usize,
    positions: usize,
) -> Result<(), RunnerError> {
    if batch.rows() > size.max_rows || batch.logit_rows.len() > size.max_logit_rows {
        return Err(RunnerError(format!(
            "a batch of {} rows is above {}",
            batch.rows(),
            size.max_rows
        )));
    }
    let vocabulary = vocabulary as u32;
    if let Some(token) = batch.tokens.iter().find(|t| **t >= vocabulary) {
        return Err(RunnerError(format!(
            "token {token} is outside the vocabulary of {vocabulary}"
        )));
    }
    match batch.positions.iter().find(|p| **p as usize >= positions) {
        Some(p) => Err(RunnerError(format!(
            "position {p} is outside the context of {positions}"
        ))),
        None => Ok(()),
    }
}

/// Biases, and the norms over heads, where a family has them.
fn finish_projections(
    isa: Isa,
    layer: &AttentionWeights,
    epsilon: f32,
    q: &mut [f32],
    k: &mut [f32],
    v: &mut [f32],
) {
    let biases = [&layer.q_bias, &layer.k_bias, &layer.v_bias];
    for (bias, rows) in biases.into_iter().zip([&mut *q, &mut *k, v]) {
        if !bias.is_empty() {
            add_bias(rows, bias);
        }
    }
    for (norm, rows) in [(&layer.q_norm, q), (&layer.k_norm, k)] {
        if !norm.is_empty() {
            rms_norm_in_place(isa, rows, norm, epsilon);
        }
    }
}

impl Runner for DecoderRunner {
    fn forward(&mut self, batch: &Batch) -> Result<(), RunnerError> {
        let vocabulary = self.weights.config.vocabulary;
        check_batch(batch, &self.size, vocabulary, self.rope.positions())?;
        let spans = batch.spans.iter();
        let metas: Vec<RowMeta<'_>> = spans
            .flat_map(|span| {
                let block_table = &batch.blocks[span.blocks.clone()];
                batch.positions[span.rows.clone()]
                    .iter()
                    .map(move |p| RowMeta {
                        position: *p as usize,
                        block_table,
                    })
            })
            .collect();
        self.embed(batch);
        for index in 0..self.weights.config.layers {
            self.attend(batch, &metas, index);
            self.feed_forward(batch.rows(), index);
        }
        self.project(batch);
        Ok(())
    }

    fn logits(&self, index: usize) -> &[f32] {
        let vocabulary = self.weights.config.vocabulary;
        &self.arena.logits[index * vocabulary..][..vocabulary]
    }

    fn copy_blocks(&mut self, copies: &[BlockCopy]) {
        for copy in copies {
            self.kv.copy_block(copy.from.0, copy.to.0);
        }
    }

    fn max_threads(&self) -> usize {
        self.pool.max_threads()
    }

    fn set_threads(&mut self, threads: usize) {
        self.pool.set_threads(threads);
    }
}
