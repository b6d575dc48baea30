//! Llama-family decoders (Llama, SmolLM2, and whatever names its GGUF architecture `llama`).
//!
//! Source of the architecture: Touvron et al. 2023, "LLaMA"; of the tensor names and of the
//! permuted query and key weights (hence interleaved rotation): the GGUF conversion of the ggml
//! project. It refuses experts, sliding windows and rotation scalings other than the Llama 3
//! factor table, by name.

use super::{ModelError, WeightReader};
use crate::batch::Batch;
use crate::block::{BLOCK_SIZE, BlockCopy};
use crate::gguf::Gguf;
use crate::kernels::{
    Activation, Activations, AttentionScratch, AttentionShape, Isa, KvStore, Matrix, Pool,
    RopeStyle, RopeTable, RowMeta, attention, matmul, matmul_group, rope_in_place,
};
use crate::runner::{Runner, RunnerError};

/// The shape of a Llama model, checked for sense: every later index relies on it.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    pub layers: usize,
    pub hidden: usize,
    pub feed_forward: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocabulary: usize,
    pub context_tokens: usize,
    pub rms_epsilon: f32,
    pub rope_base: f64,
    pub rope_dim: usize,
}

impl LlamaConfig {
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let file = gguf.path().display().to_string();
        let architecture = gguf.required_text("general.architecture")?;
        if architecture != "llama" {
            return Err(ModelError::Architecture {
                file,
                architecture: architecture.to_owned(),
            });
        }
        let refuse = |key: &str, problem: String| ModelError::Config {
            file: file.clone(),
            key: key.to_owned(),
            problem,
        };
        let required = |key: &str, range: std::ops::RangeInclusive<u64>| {
            let value = gguf.required_uint(key)?;
            if range.contains(&value) {
                return Ok(value as usize);
            }
            Err(refuse(key, format!("{value} is not within {range:?}")))
        };
        refuse_unknown_features(gguf, &refuse)?;
        let hidden = required("llama.embedding_length", 32..=65_536)?;
        let heads = required("llama.attention.head_count", 1..=1_024)?;
        let optional = |key: &str, default: usize| {
            gguf.uint(key)
                .map(|v| v.map_or(default, |v| v.min(1 << 32) as usize))
        };
        let head_dim = optional("llama.attention.key_length", hidden / heads)?;
        let config = Self {
            layers: required("llama.block_count", 1..=1_024)?,
            hidden,
            feed_forward: required("llama.feed_forward_length", 32..=1_048_576)?,
            heads,
            kv_heads: optional("llama.attention.head_count_kv", heads)?,
            head_dim,
            vocabulary: gguf
                .tensor("token_embd.weight")?
                .shape
                .last()
                .copied()
                .unwrap_or(0) as usize,
            context_tokens: required("llama.context_length", 1..=16_777_216)?,
            rms_epsilon: gguf
                .float("llama.attention.layer_norm_rms_epsilon")?
                .unwrap_or(1e-5) as f32,
            rope_base: gguf.float("llama.rope.freq_base")?.unwrap_or(10_000.0),
            rope_dim: optional("llama.rope.dimension_count", head_dim)?,
        };
        config.check(&refuse)?;
        Ok(config)
    }

    fn check(&self, refuse: &impl Fn(&str, String) -> ModelError) -> Result<(), ModelError> {
        let Self {
            hidden,
            heads,
            kv_heads,
            head_dim,
            rope_dim,
            ..
        } = *self;
        if kv_heads == 0 || heads % kv_heads != 0 {
            let problem = format!("{kv_heads} does not divide the {heads} query heads");
            return Err(refuse("llama.attention.head_count_kv", problem));
        }
        if head_dim == 0 || head_dim % 16 != 0 || head_dim > 256 {
            let problem =
                format!("heads of {head_dim} elements; multiples of 16 up to 256 can be run");
            return Err(refuse("llama.attention.key_length", problem));
        }
        if rope_dim == 0 || rope_dim % 2 != 0 || rope_dim > head_dim {
            return Err(refuse(
                "llama.rope.dimension_count",
                format!("{rope_dim} of {head_dim} elements per head"),
            ));
        }
        for (key, size) in [
            ("llama.embedding_length", hidden),
            ("llama.feed_forward_length", self.feed_forward),
        ] {
            if size % 32 != 0 {
                return Err(refuse(
                    key,
                    format!("{size} is not a multiple of 32, the size of a weight block"),
                ));
            }
        }
        if !(self.rope_base.is_finite() && self.rope_base > 0.0 && self.rms_epsilon > 0.0) {
            let problem = format!(
                "rotation base {} and norm epsilon {} must be above 0",
                self.rope_base, self.rms_epsilon
            );
            return Err(refuse("llama.rope.freq_base", problem));
        }
        Ok(())
    }

    /// Keys and values of one token over all layers, in f16.
    pub fn kv_bytes_per_token(&self) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim * 2
    }
}

fn refuse_unknown_features(
    gguf: &Gguf,
    refuse: &impl Fn(&str, String) -> ModelError,
) -> Result<(), ModelError> {
    if let Some(experts @ 1..) = gguf.uint("llama.expert_count")? {
        return Err(refuse(
            "llama.expert_count",
            format!("{experts} experts; mixtures cannot be run"),
        ));
    }
    if let Some(kind) = gguf.text("llama.rope.scaling.type")?
        && kind != "none"
    {
        return Err(refuse(
            "llama.rope.scaling.type",
            format!("{kind:?} cannot be run"),
        ));
    }
    if let Some(window @ 1..) = gguf.uint("llama.attention.sliding_window")? {
        return Err(refuse(
            "llama.attention.sliding_window",
            format!("a window of {window} cannot be run"),
        ));
    }
    Ok(())
}

struct Layer {
    attn_norm: Vec<f32>,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    attn_output: Matrix,
    ffn_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

impl Layer {
    fn load(
        weights: &mut WeightReader<'_>,
        config: &LlamaConfig,
        index: usize,
    ) -> Result<Self, ModelError> {
        let LlamaConfig {
            hidden,
            feed_forward,
            heads,
            kv_heads,
            head_dim,
            ..
        } = *config;
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        Ok(Self {
            attn_norm: weights.vector(&name("attn_norm"), hidden)?,
            q: weights.matrix(&name("attn_q"), heads * head_dim, hidden)?,
            k: weights.matrix(&name("attn_k"), kv_heads * head_dim, hidden)?,
            v: weights.matrix(&name("attn_v"), kv_heads * head_dim, hidden)?,
            attn_output: weights.matrix(&name("attn_output"), hidden, heads * head_dim)?,
            ffn_norm: weights.vector(&name("ffn_norm"), hidden)?,
            gate: weights.matrix(&name("ffn_gate"), feed_forward, hidden)?,
            up: weights.matrix(&name("ffn_up"), feed_forward, hidden)?,
            down: weights.matrix(&name("ffn_down"), hidden, feed_forward)?,
        })
    }
}

/// The weights, packed for this engine's kernels. The file's own bytes are not kept.
pub struct LlamaWeights {
    config: LlamaConfig,
    embedding: Matrix,
    /// `None`: tied to the embedding.
    head: Option<Matrix>,
    output_norm: Vec<f32>,
    rope_factors: Vec<f32>,
    layers: Vec<Layer>,
}

impl LlamaWeights {
    pub fn load(gguf: &Gguf) -> Result<Self, ModelError> {
        let config = LlamaConfig::from_gguf(gguf)?;
        let mut weights = WeightReader::new(gguf);
        let (hidden, vocabulary) = (config.hidden, config.vocabulary);
        let head = match weights.has("output.weight") {
            true => Some(weights.matrix("output.weight", vocabulary, hidden)?),
            false => None,
        };
        let rope_factors = match weights.has("rope_freqs.weight") {
            true => weights.vector("rope_freqs.weight", config.rope_dim / 2)?,
            false => Vec::new(),
        };
        Ok(Self {
            embedding: weights.matrix("token_embd.weight", vocabulary, hidden)?,
            head,
            output_norm: weights.vector("output_norm.weight", hidden)?,
            rope_factors,
            layers: (0..config.layers)
                .map(|i| Layer::load(&mut weights, &config, i))
                .collect::<Result<_, _>>()?,
            config,
        })
    }

    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }
}

/// Intermediate results of a forward pass, allocated once for the largest batch.
struct Arena {
    residual: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    input: Activations,
    attention: AttentionScratch,
    /// Rows of the residual stream that get logits.
    selected: Vec<f32>,
    logits: Vec<f32>,
}

impl Arena {
    fn new(config: &LlamaConfig, rows: usize, logit_rows: usize) -> Self {
        let widest = config
            .hidden
            .max(config.feed_forward)
            .max(config.heads * config.head_dim);
        let rows_of = |width: usize| vec![0.0; rows * width];
        Self {
            residual: rows_of(config.hidden),
            q: rows_of(config.heads * config.head_dim),
            k: rows_of(config.kv_heads * config.head_dim),
            v: rows_of(config.kv_heads * config.head_dim),
            attended: rows_of(config.heads * config.head_dim),
            gate: rows_of(config.feed_forward),
            up: rows_of(config.feed_forward),
            input: Activations::with_capacity(rows.max(logit_rows), widest),
            attention: AttentionScratch::default(),
            selected: vec![0.0; logit_rows * config.hidden],
            logits: vec![0.0; logit_rows * config.vocabulary],
        }
    }
}

/// The CPU runner of a Llama model: weights, KV memory, threads and scratch.
pub struct LlamaRunner {
    weights: LlamaWeights,
    kv: KvStore,
    rope: RopeTable,
    isa: Isa,
    pool: Pool,
    arena: Arena,
    max_rows: usize,
    max_logit_rows: usize,
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

impl LlamaRunner {
    pub fn new(weights: LlamaWeights, isa: Isa, size: RunnerSize) -> Self {
        let config = &weights.config;
        // No position beyond the pool's blocks can ever be computed.
        let positions = size.context_tokens.min(size.blocks * BLOCK_SIZE);
        let style = RopeStyle::Interleaved;
        Self {
            kv: KvStore::new(config.layers, size.blocks, config.kv_heads, config.head_dim),
            rope: RopeTable::new(
                style,
                config.rope_dim,
                config.rope_base,
                &weights.rope_factors,
                positions,
            ),
            isa,
            pool: Pool::new(size.threads),
            arena: Arena::new(config, size.max_rows, size.max_logit_rows),
            max_rows: size.max_rows,
            max_logit_rows: size.max_logit_rows,
            weights,
        }
    }

    /// The sizes of a batch are the scheduler's promise; a batch that breaks it is refused whole.
    fn check(&self, batch: &Batch) -> Result<(), RunnerError> {
        let vocabulary = self.weights.config.vocabulary as u32;
        if batch.rows() > self.max_rows || batch.logit_rows.len() > self.max_logit_rows {
            return Err(RunnerError(format!(
                "a batch of {} rows is above {}",
                batch.rows(),
                self.max_rows
            )));
        }
        if let Some(token) = batch.tokens.iter().find(|t| **t >= vocabulary) {
            return Err(RunnerError(format!(
                "token {token} is outside the vocabulary of {vocabulary}"
            )));
        }
        let positions = self.rope.positions();
        match batch.positions.iter().find(|p| **p as usize >= positions) {
            Some(p) => Err(RunnerError(format!(
                "position {p} is outside the context of {positions}"
            ))),
            None => Ok(()),
        }
    }

    fn embed(&mut self, batch: &Batch) {
        let rows = self
            .arena
            .residual
            .chunks_exact_mut(self.weights.config.hidden);
        for (token, row) in batch.tokens.iter().zip(rows) {
            self.weights.embedding.dequantize_row(*token as usize, row);
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
        let shape = AttentionShape {
            heads: config.heads,
            scale: 1.0 / (config.head_dim as f32).sqrt(),
            window: None,
            softcap: None,
        };
        let attended = &mut arena.attended[..rows * width];
        let (q, kv) = (&arena.q[..rows * width], &kv.view(index));
        attention(
            isa,
            pool,
            &mut arena.attention,
            &shape,
            q,
            kv,
            metas,
            attended,
        );
        arena.input.quantize(isa, pool, attended, rows, width);
        let residual = &mut arena.residual[..rows * config.hidden];
        let output = &weights.layers[index].attn_output;
        matmul(isa, pool, output, &arena.input, rows, residual, true);
    }

    fn queries_keys_values(&mut self, rows: usize, index: usize) {
        let Self {
            weights,
            isa,
            pool,
            arena,
            ..
        } = self;
        let LlamaConfig {
            hidden,
            heads,
            kv_heads,
            head_dim,
            rms_epsilon,
            ..
        } = weights.config;
        let layer = &weights.layers[index];
        let norm = &layer.attn_norm;
        arena
            .input
            .quantize_rms_norm(*isa, pool, &arena.residual, norm, rms_epsilon, rows, hidden);
        let group = &mut [
            (&layer.q, &mut arena.q[..rows * heads * head_dim]),
            (&layer.k, &mut arena.k[..rows * kv_heads * head_dim]),
            (&layer.v, &mut arena.v[..rows * kv_heads * head_dim]),
        ];
        matmul_group(*isa, pool, group, &arena.input, rows);
    }

    /// Rotates queries and keys to their positions and writes keys and values to their blocks.
    fn rotate_and_store(&mut self, batch: &Batch, metas: &[RowMeta<'_>], index: usize) {
        let Self {
            weights,
            kv,
            rope,
            isa,
            arena,
            ..
        } = self;
        let LlamaConfig {
            heads,
            kv_heads,
            head_dim,
            ..
        } = weights.config;
        let width = kv_heads * head_dim;
        let queries = arena.q.chunks_exact_mut(heads * head_dim);
        let keys = arena.k.chunks_exact_mut(width);
        let values = arena.v.chunks_exact(width);
        for (((meta, query), key), value) in metas.iter().zip(queries).zip(keys).zip(values) {
            rope_in_place(rope, query, head_dim, meta.position);
            rope_in_place(rope, key, head_dim, meta.position);
            let block = meta.block_table[meta.position / BLOCK_SIZE];
            kv.write(*isa, index, block, meta.position % BLOCK_SIZE, key, value);
        }
        for mirror in &batch.mirrors {
            let row = mirror.row as usize;
            let offset = metas[row].position % BLOCK_SIZE;
            let (key, value) = (&arena.k[row * width..], &arena.v[row * width..]);
            kv.write(
                *isa,
                index,
                mirror.block,
                offset,
                &key[..width],
                &value[..width],
            );
        }
    }

    /// The gated feed-forward of one layer, added to the residual stream.
    fn feed_forward(&mut self, rows: usize, index: usize) {
        let Self {
            weights,
            isa,
            pool,
            arena,
            ..
        } = self;
        let config = &weights.config;
        let layer = &weights.layers[index];
        let (isa, width) = (*isa, rows * config.feed_forward);
        arena.input.quantize_rms_norm(
            isa,
            pool,
            &arena.residual,
            &layer.ffn_norm,
            config.rms_epsilon,
            rows,
            config.hidden,
        );
        let (gate, up) = (&mut arena.gate[..width], &mut arena.up[..width]);
        matmul_group(
            isa,
            pool,
            &mut [(&layer.gate, gate), (&layer.up, up)],
            &arena.input,
            rows,
        );
        arena.input.quantize_gated(
            isa,
            pool,
            Activation::Silu,
            &arena.gate,
            &arena.up,
            rows,
            config.feed_forward,
        );
        let residual = &mut arena.residual[..rows * config.hidden];
        matmul(isa, pool, &layer.down, &arena.input, rows, residual, true);
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
        let hidden = weights.config.hidden;
        let count = batch.logit_rows.len();
        if count == 0 {
            return;
        }
        for (row, selected) in batch
            .logit_rows
            .iter()
            .zip(arena.selected.chunks_exact_mut(hidden))
        {
            selected.copy_from_slice(&arena.residual[*row as usize * hidden..][..hidden]);
        }
        let epsilon = weights.config.rms_epsilon;
        arena.input.quantize_rms_norm(
            *isa,
            pool,
            &arena.selected,
            &weights.output_norm,
            epsilon,
            count,
            hidden,
        );
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        let logits = &mut arena.logits[..count * weights.config.vocabulary];
        matmul(*isa, pool, head, &arena.input, count, logits, false);
    }
}

impl Runner for LlamaRunner {
    fn forward(&mut self, batch: &Batch) -> Result<(), RunnerError> {
        self.check(batch)?;
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
