//! The decoder on a GPU: the same families, files and batches as [`super::decoder`], in candle's
//! tensors instead of this engine's kernels.
//!
//! It exists because candle brings matrix products, quantised formats and paged flash attention for
//! CUDA, and writing those again would gain nothing. Shapes, weights and batches are those of the
//! CPU's runner, the KV layout is its own (see `attention`). It compiles in every build; only the
//! call of flash attention and candle's CUDA backend need the feature `cuda`.
//!
//! What it refuses: batches that break the scheduler's promises, whole, the numbers of blocks
//! included, because a wrong one is a wrong address on a device.
//!
//! What it does not promise: that a row's bits do not depend on the rows beside it. A GPU's matrix
//! products choose their tiles by the number of rows, so batching, chunking and speculation may
//! change the last bits of a logit here, and with them a near tie. The engine's equality tests are
//! about the CPU; this runner is compared within a tolerance.
//!
//! What has been run: all of it on candle's CPU device but the flash attention call, by the tests in
//! `tests/architectures/devices.rs`. What has only been compiled, by CUDA 13.0 for an H200, is some
//! of candle's kernels: attention over blocks in f16 for heads up to 128, and the products of Q4_1
//! and Q8_0. No binary with the feature has been linked, and nothing has run on a GPU; the tests
//! marked as needing one are run by `cargo test --release -p homeostat-engine --features cuda --
//! --ignored cuda`.
//!
//! To build with the feature: `nvcc` on the path, `CUDA_COMPUTE_CAP` (90 for an H200) where no GPU
//! is visible, and network for candle-flash-attn's build script, which fetches CUTLASS with git;
//! `CANDLE_FLASH_ATTN_BUILD_DIR` keeps its 53 compiled kernels. CUTLASS 3.5 does not compile with
//! CUDA 13.0 unless `NVCC_APPEND_FLAGS` is `-DCUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL`. Where there
//! is no toolkit, or git reaches nobody, `.ci/setup cuda` makes both out of Python packages and
//! says what to set. Such a binary starts only where the driver's and CUDA's libraries are, because
//! candle links them.

mod attention;
mod weights;

use candle_core::{Device, Result, Tensor};
use candle_nn::ops::{rms_norm, sigmoid, softmax_last_dim};
use candle_nn::rotary_emb::{rope, rope_i};

use self::attention::{PagedCache, Plan, Scores};
use self::weights::{Upload, as_input, embed, multiply};
use super::ModelError;
use super::config::{DecoderConfig, ExpertConfig, Rope};
use super::decoder::{RunnerSize, check_batch};
use super::experts::take_greatest;
use super::source::ModelSource;
use super::weights::{AttentionWeights, DecoderWeights, ExpertWeights, FeedForward, GatedWeights};
use crate::batch::{Batch, Span};
use crate::block::{BLOCK_SIZE, BlockCopy};
use crate::kernels::{Activation, RopeStyle, RopeTable};
use crate::runner::{Runner, RunnerError};

/// The weights of a decoder on a device, before there is a KV cache beside them.
pub struct DeviceWeights {
    weights: DecoderWeights<Upload>,
    device: Device,
}

impl DeviceWeights {
    /// Copies every tensor to `device` as the file has it: quantised or float.
    pub fn load(source: &ModelSource, device: &Device) -> std::result::Result<Self, ModelError> {
        let device = device.clone();
        let upload = Upload { device };
        let weights = DecoderWeights::pack(source, &upload)?;
        let device = upload.device;
        // Candle gives each thread a stream of its own, and the one that loads is not the one that
        // computes.
        device.synchronize().map_err(|e| ModelError::Unreadable {
            file: source.path().display().to_string(),
            problem: format!("not copied to the device: {e}"),
        })?;
        Ok(Self { weights, device })
    }

    pub fn config(&self) -> &DecoderConfig {
        self.weights.config()
    }
}

/// The runner of a decoder on a device: weights, KV memory, and the logits of the last batch.
pub struct CandleRunner {
    weights: DecoderWeights<Upload>,
    device: Device,
    cache: PagedCache,
    rope: RopeTable,
    /// Of the layers that say so; the same as `rope` where none does.
    local_rope: Option<RopeTable>,
    size: RunnerSize,
    logits: Vec<f32>,
    /// A copy of blocks that failed: nothing computed after it could be trusted.
    broken: Option<String>,
}

/// The angles of a batch's rows, `[rows, 1, pairs]` each.
struct Angles {
    cos: Tensor,
    sin: Tensor,
    rope: Rope,
}

impl CandleRunner {
    /// Allocates the whole KV cache; the error is candle's when there is no room for it.
    /// `size.threads` means nothing here.
    pub fn new(loaded: DeviceWeights, size: RunnerSize) -> Result<Self> {
        let DeviceWeights { weights, device } = loaded;
        let config = &weights.config;
        let positions = size.context_tokens.min(size.blocks * BLOCK_SIZE);
        let table = |rope: &Rope, divisors: &[f32]| {
            RopeTable::new(rope.style, rope.dim, rope.base, divisors, positions)
        };
        let has_local = config.kinds.iter().any(|kind| kind.local_rope);
        let cache = PagedCache::new(config, size.blocks, &device)?;
        // For the thread that computes, as after loading.
        device.synchronize()?;
        Ok(Self {
            cache,
            rope: table(&config.rope, &weights.rope_divisors),
            local_rope: has_local.then(|| table(&config.local_rope, &[])),
            size,
            logits: Vec::new(),
            broken: None,
            device,
            weights,
        })
    }

    /// Computes one row and one block of rows of nobody, so that the device's kernels are loaded
    /// before a client waits for them: on an H100 the driver takes seven seconds to translate
    /// them. What it leaves in the first block is overwritten before anybody reads it.
    pub fn warm_up(&mut self) -> std::result::Result<(), RunnerError> {
        let most = BLOCK_SIZE
            .min(self.size.max_rows)
            .min(self.rope.positions());
        for rows in [1, most] {
            self.forward(&Batch {
                tokens: vec![0; rows],
                positions: (0..rows as u32).collect(),
                spans: vec![Span {
                    rows: 0..rows,
                    blocks: 0..1,
                    logits: 0..1,
                }],
                blocks: vec![0],
                logit_rows: vec![rows as u32 - 1],
                ..Batch::default()
            })?;
        }
        self.logits.clear();
        Ok(())
    }

    fn check(&self, batch: &Batch) -> std::result::Result<(), RunnerError> {
        if let Some(problem) = &self.broken {
            return Err(RunnerError(problem.clone()));
        }
        let vocabulary = self.weights.config.vocabulary;
        check_batch(batch, &self.size, vocabulary, self.rope.positions())?;
        let refuse = |problem: &str| Err(RunnerError(format!("a batch {problem}")));
        let mut all = batch
            .blocks
            .iter()
            .chain(batch.mirrors.iter().map(|m| &m.block));
        if all.any(|block| *block as usize >= self.cache.blocks()) {
            return refuse("names a block that the cache has not");
        }
        if batch.mirrors.iter().any(|m| m.row as usize >= batch.rows()) {
            return refuse("mirrors a row that it has not");
        }
        let mut next = 0;
        for span in &batch.spans {
            let positions = batch.positions.get(span.rows.clone()).unwrap_or_default();
            let last = positions.last().map_or(0, |p| *p as usize + 1);
            let consecutive = positions.windows(2).all(|pair| pair[1] == pair[0] + 1);
            if span.rows.start != next || positions.len() != span.rows.len() || !consecutive {
                return refuse("has a sequence whose rows do not follow one another");
            }
            if span.blocks.len() < last.div_ceil(BLOCK_SIZE) {
                return refuse("has rows without blocks");
            }
            next = span.rows.end;
        }
        match next == batch.rows() {
            true => Ok(()),
            false => refuse("has rows of nobody"),
        }
    }

    fn compute(&mut self, batch: &Batch) -> Result<()> {
        self.logits.clear();
        if batch.rows() == 0 {
            return Ok(());
        }
        let config = &self.weights.config;
        let plan = Plan::new(batch, &self.cache, config, &self.device)?;
        let angles = self.angles(&self.rope, &config.rope, batch)?;
        let local = match &self.local_rope {
            Some(table) => Some(self.angles(table, &config.local_rope, batch)?),
            None => None,
        };
        let tokens = Tensor::new(&batch.tokens[..], &self.device)?;
        let mut residual = embed(&self.weights.embedding, &tokens)?;
        if let Some(scale) = config.embedding_scale() {
            residual = (residual * f64::from(scale))?;
        }
        for index in 0..config.layers {
            let angles = match &local {
                Some(local) if config.kinds[index].local_rope => local,
                _ => &angles,
            };
            residual = (&residual + self.attend(&plan, angles, index, &residual)?)?;
            residual = (&residual + self.feed_forward(index, &residual)?)?;
        }
        self.project(batch, &residual)
    }

    fn angles(&self, table: &RopeTable, rope: &Rope, batch: &Batch) -> Result<Angles> {
        let rows = batch.positions.iter().map(|p| table.cos_sin(*p as usize));
        let (cos, sin): (Vec<&[f32]>, Vec<&[f32]>) = rows.unzip();
        let shape = (batch.rows(), 1, rope.dim / 2);
        let upload = |rows: Vec<&[f32]>| Tensor::from_vec(rows.concat(), shape, &self.device);
        Ok(Angles {
            cos: upload(cos)?,
            sin: upload(sin)?,
            rope: rope.clone(),
        })
    }

    /// What self-attention of one layer adds to the residual stream.
    fn attend(
        &self,
        plan: &Plan,
        angles: &Angles,
        index: usize,
        residual: &Tensor,
    ) -> Result<Tensor> {
        let config = &self.weights.config;
        let AttentionWeights::<Upload> {
            norm: input_norm,
            q,
            k,
            v,
            q_bias,
            k_bias,
            v_bias,
            q_norm,
            k_norm,
            output,
            output_bias,
            post_norm,
        } = &self.weights.layers[index].attention;
        let (rows, epsilon) = (residual.dim(0)?, config.rms_epsilon);
        let x = as_input(q, &norm(residual, input_norm, epsilon)?)?;
        let heads = |weights, bias, norms, count| {
            let projected = add_bias(&multiply(weights, &x)?, bias)?;
            let heads = projected.reshape((rows, count, config.head_dim))?;
            angles.rotate(&norm(&heads, norms, epsilon)?)
        };
        let q = heads(q, q_bias, q_norm, config.heads)?;
        let k = heads(k, k_bias, k_norm, config.kv_heads)?;
        let v = add_bias(&multiply(v, &x)?, v_bias)?;
        self.cache.write(plan, index, &k.flatten_from(1)?, &v)?;
        let scores = Scores {
            scale: config.attention_scale,
            window: config.kinds[index].window,
            softcap: config.attention_softcap,
        };
        let attended = plan.attend(&self.cache, index, &q, &scores)?;
        let branch = add_bias(&multiply(output, &attended)?, output_bias)?;
        norm(&branch, post_norm, epsilon)
    }

    /// What the feed-forward of one layer adds to the residual stream.
    fn feed_forward(&self, index: usize, residual: &Tensor) -> Result<Tensor> {
        let config = &self.weights.config;
        let layer = &self.weights.layers[index];
        let x = norm(residual, &layer.ffn_norm, config.rms_epsilon)?;
        let activation = config.architecture.activation();
        let branch = match (&layer.feed_forward, &config.experts) {
            (FeedForward::Dense(weights), _) => gated(weights, activation, &x)?,
            (FeedForward::Sparse(weights), Some(experts)) => {
                mixture(weights, experts, activation, &x)?
            }
            (FeedForward::Sparse(_), None) => {
                unreachable!("the config was checked: experts or none")
            }
        };
        norm(&branch, &layer.ffn_post_norm, config.rms_epsilon)
    }

    /// Head and logits of the rows that are read, back to the host.
    fn project(&mut self, batch: &Batch, residual: &Tensor) -> Result<()> {
        if batch.logit_rows.is_empty() {
            return Ok(());
        }
        let config = &self.weights.config;
        let rows = Tensor::new(&batch.logit_rows[..], &self.device)?;
        let rows = residual.index_select(&rows, 0)?;
        let x = norm(&rows, &self.weights.output_norm, config.rms_epsilon)?;
        let head = self.weights.head.as_ref();
        let mut logits = multiply(head.unwrap_or(&self.weights.embedding), &x)?;
        if let Some(cap) = config.final_softcap.map(f64::from) {
            logits = ((logits / cap)?.tanh()? * cap)?;
        }
        self.logits = logits.flatten_all()?.to_vec1()?;
        Ok(())
    }
}

impl Angles {
    /// Rotates every head of `[rows, heads, head size]`.
    fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, heads, head_dim) = x.dims3()?;
        let turned = x.narrow(2, 0, self.rope.dim)?.contiguous()?;
        // To candle each row is a sequence of one position, with angles of its own.
        let turned = turned.reshape((rows, heads, 1, self.rope.dim))?;
        let turned = match self.rope.style {
            RopeStyle::Interleaved => rope_i(&turned, &self.cos, &self.sin)?,
            RopeStyle::HalfSplit => rope(&turned, &self.cos, &self.sin)?,
        };
        let turned = turned.reshape((rows, heads, self.rope.dim))?;
        match head_dim - self.rope.dim {
            0 => Ok(turned),
            rest => Tensor::cat(&[&turned, &x.narrow(2, self.rope.dim, rest)?], 2),
        }
    }
}

/// Over the last dimension; without weights nothing is normalised.
fn norm(x: &Tensor, weights: &Option<Tensor>, epsilon: f32) -> Result<Tensor> {
    match weights {
        Some(weights) => rms_norm(&x.contiguous()?, weights, epsilon),
        None => Ok(x.clone()),
    }
}

fn add_bias(x: &Tensor, bias: &Option<Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => x.broadcast_add(bias),
        None => Ok(x.clone()),
    }
}

/// `down(activation(gate(x)) * up(x))`.
fn gated(weights: &GatedWeights<Upload>, activation: Activation, x: &Tensor) -> Result<Tensor> {
    let x = &as_input(&weights.gate, x)?;
    let gate = multiply(&weights.gate, x)?;
    let gate = match activation {
        Activation::Silu => gate.silu()?,
        Activation::GeluTanh => gate.gelu()?,
    };
    multiply(&weights.down, &(gate * multiply(&weights.up, x)?)?)
}

/// Which rows an expert gets, with their weights.
#[derive(Debug, Clone, Default, PartialEq)]
struct Share {
    rows: Vec<u32>,
    weights: Vec<f32>,
}

/// The experts of every row of `probabilities`.
fn route(probabilities: Vec<Vec<f32>>, config: &ExpertConfig) -> Vec<Share> {
    let mut shares = vec![Share::default(); config.count];
    for (row, mut probabilities) in probabilities.into_iter().enumerate() {
        let chosen: Vec<(usize, f32)> = (0..config.used)
            .map(|_| take_greatest(&mut probabilities))
            .collect();
        let sum: f32 = match config.renormalise {
            true => chosen.iter().map(|(_, p)| p).sum(),
            false => 1.0,
        };
        for (expert, p) in chosen {
            shares[expert].rows.push(row as u32);
            shares[expert].weights.push(p / sum);
        }
    }
    shares
}

/// A mixture of experts. Routing is decided on the host, so each layer waits for the device once.
fn mixture(
    weights: &ExpertWeights<Upload>,
    config: &ExpertConfig,
    activation: Activation,
    x: &Tensor,
) -> Result<Tensor> {
    let hidden = x.dim(1)?;
    let by_router = |router: &Option<Tensor>, outputs: usize| match router {
        Some(router) => x.matmul(&router.reshape((outputs, hidden))?.t()?),
        None => candle_core::bail!("a router without weights"),
    };
    let probabilities = softmax_last_dim(&by_router(&weights.router, config.count)?)?;
    let shares = route(probabilities.to_vec2()?, config);
    let mut sum = x.zeros_like()?;
    for (expert, share) in weights.experts.iter().zip(shares) {
        if share.rows.is_empty() {
            continue;
        }
        let count = share.rows.len();
        let rows = Tensor::from_vec(share.rows, count, x.device())?;
        let scale = Tensor::from_vec(share.weights, (count, 1), x.device())?;
        let out = gated(expert, activation, &x.index_select(&rows, 0)?)?;
        sum = sum.index_add(&rows, &out.broadcast_mul(&scale)?, 0)?;
    }
    if let Some(shared) = &weights.shared {
        let scale = sigmoid(&by_router(&shared.gate, 1)?)?;
        let out = gated(&shared.weights, activation, x)?;
        sum = (sum + out.broadcast_mul(&scale)?)?;
    }
    Ok(sum)
}

impl Runner for CandleRunner {
    fn forward(&mut self, batch: &Batch) -> std::result::Result<(), RunnerError> {
        self.check(batch)?;
        self.compute(batch)
            .map_err(|e| RunnerError(format!("{:?}: {e}", self.device.location())))
    }

    fn logits(&self, index: usize) -> &[f32] {
        let vocabulary = self.weights.config.vocabulary;
        &self.logits[index * vocabulary..][..vocabulary]
    }

    fn copy_blocks(&mut self, copies: &[BlockCopy]) {
        for copy in copies {
            if let Err(error) = self.cache.copy_block(copy) {
                self.broken = Some(format!("a block could not be copied: {error}"));
            }
        }
    }
}
