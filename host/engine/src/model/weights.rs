//! The weights of a decoder, from either kind of source, packed for this engine's kernels.
//!
//! It exists to make one promise: what a file holds is used, or the file is refused. A bias, a norm
//! or a scale that nobody reads would give a model that is fluent and wrong, so a tensor that is
//! left over is an error that names it. One tensor is read at a time and the file's own bytes are
//! dropped, so memory stays near the final size.
//!
//! Source of the tensor names: the GGUF conversion of the ggml project, and Hugging Face's
//! `transformers`.

use std::collections::HashSet;

use super::ModelError;
use super::config::{DecoderConfig, ExpertConfig, LayerKind};
use super::source::ModelSource;
use crate::gguf::{Gguf, TensorInfo, TensorType};
use crate::kernels::{BlockFormat, Matrix, WeightTarget};
use crate::safetensors::Safetensors;

/// Makes what a runner multiplies with from the bytes of a file.
pub trait Packer {
    type Matrix;
    /// Norms, biases and routers; an empty list where the file has none.
    type Vector;

    /// `rows` outputs by `cols` inputs. The error is what is wrong with the tensor.
    fn matrix(
        &self,
        kind: TensorType,
        role: Role,
        size: (usize, usize),
        bytes: &[u8],
    ) -> Result<Self::Matrix, String>;

    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector, String>;

    /// Puts the matrices that every token passes side by side, in that order.
    fn gather(&self, matrices: &mut [&mut Self::Matrix]);
}

/// Where a matrix stands: on embedding and head every token depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Inner,
    EmbeddingOrHead,
}

/// Repacks for the CPU's kernels. Floats are quantised to this; embedding and head never below
/// Q8_0.
pub struct Repack(pub WeightTarget);

impl Packer for Repack {
    type Matrix = Matrix;
    type Vector = Vec<f32>;

    fn matrix(
        &self,
        kind: TensorType,
        role: Role,
        (rows, cols): (usize, usize),
        bytes: &[u8],
    ) -> Result<Matrix, String> {
        let Some(format) = block_format(kind) else {
            return Err(format!("type {kind} cannot be run"));
        };
        let target = match role {
            Role::Inner => self.0,
            Role::EmbeddingOrHead => WeightTarget::Q8_0,
        };
        Matrix::quantize(target, format, rows, cols, bytes).map_err(|e| e.to_string())
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>, String> {
        Ok(values)
    }

    fn gather(&self, matrices: &mut [&mut Matrix]) {
        Matrix::gather(matrices);
    }
}

/// Projections to queries, keys and values, and what some families do to them.
pub(super) struct AttentionWeights<P: Packer = Repack> {
    pub norm: P::Vector,
    pub q: P::Matrix,
    pub k: P::Matrix,
    pub v: P::Matrix,
    /// Empty: none.
    pub q_bias: P::Vector,
    pub k_bias: P::Vector,
    pub v_bias: P::Vector,
    /// Over every head; empty: none.
    pub q_norm: P::Vector,
    pub k_norm: P::Vector,
    pub output: P::Matrix,
    pub output_bias: P::Vector,
    /// Before the residual is added; empty: none.
    pub post_norm: P::Vector,
}

/// `down(activation(gate(x)) * up(x))`.
pub(super) struct GatedWeights<P: Packer = Repack> {
    pub gate: P::Matrix,
    pub up: P::Matrix,
    pub down: P::Matrix,
}

pub(super) struct ExpertWeights<P: Packer = Repack> {
    /// `[experts][hidden]`, in floats: which experts a token gets must not hang on a rounded weight.
    pub router: P::Vector,
    pub experts: Vec<GatedWeights<P>>,
    pub shared: Option<SharedExpert<P>>,
}

/// The expert that every token passes through.
pub(super) struct SharedExpert<P: Packer = Repack> {
    /// `[hidden]`; the sigmoid of its dot with the row weighs the expert.
    pub gate: P::Vector,
    pub weights: GatedWeights<P>,
}

pub(super) enum FeedForward<P: Packer = Repack> {
    Dense(GatedWeights<P>),
    Sparse(ExpertWeights<P>),
}

pub(super) struct Layer<P: Packer = Repack> {
    pub attention: AttentionWeights<P>,
    pub ffn_norm: P::Vector,
    pub feed_forward: FeedForward<P>,
    /// Before the residual is added; empty: none.
    pub ffn_post_norm: P::Vector,
}

/// All weights of a model, as the packer of its runner made them.
pub struct DecoderWeights<P: Packer = Repack> {
    pub(super) config: DecoderConfig,
    pub(super) embedding: P::Matrix,
    /// `None`: tied to the embedding.
    pub(super) head: Option<P::Matrix>,
    pub(super) output_norm: P::Vector,
    /// Divisors of the rotation's angles; empty: 1.
    pub(super) rope_divisors: Vec<f32>,
    pub(super) layers: Vec<Layer<P>>,
}

impl DecoderWeights {
    /// Weights that the file stores as floats are quantised to `target`; embedding and head, on
    /// which every token depends, never below Q8_0.
    pub fn load(source: &ModelSource, target: WeightTarget) -> Result<Self, ModelError> {
        Self::pack(source, &Repack(target))
    }
}

impl<P: Packer> DecoderWeights<P> {
    /// Reads every tensor once and hands it to `packer`.
    pub(super) fn pack(source: &ModelSource, packer: &P) -> Result<Self, ModelError> {
        let config = DecoderConfig::read(source)?;
        let mut reader = WeightReader::new(source, &config, packer)?;
        let (hidden, vocabulary) = (config.hidden, config.vocabulary);
        let embedding = reader.matrix(Part::Embedding, vocabulary, hidden)?;
        let head = match config.tied {
            true => None,
            false => Some(reader.matrix(Part::Head, vocabulary, hidden)?),
        };
        let weights = Self {
            embedding,
            head,
            output_norm: reader.norm(Part::OutputNorm, hidden)?,
            rope_divisors: rope_divisors(&mut reader, &config)?,
            layers: (0..config.layers)
                .map(|i| Layer::load(&mut reader, &config, i))
                .collect::<Result<_, _>>()?,
            config,
        };
        reader.nothing_is_left(weights.config.tied)?;
        Ok(weights)
    }

    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }
}

/// The file may bring its own divisors (Llama 3 in GGUF); then nothing else may scale.
fn rope_divisors<P: Packer>(
    reader: &mut WeightReader<'_, P>,
    config: &DecoderConfig,
) -> Result<Vec<f32>, ModelError> {
    let rope = &config.rope;
    let computed = rope.scaling.divisors(rope.dim, rope.base);
    let listed = reader.optional_floats(Part::RopeDivisors, rope.dim / 2)?;
    if listed.iter().any(|d| *d <= 0.0) || !(listed.is_empty() || computed.is_empty()) {
        let problem = "must be above 0, and stand alone: the metadata scale the rotation too";
        return Err(reader.error(&Part::RopeDivisors.name(reader), problem.into()));
    }
    Ok(match listed.is_empty() {
        true => computed,
        false => listed,
    })
}

impl<P: Packer> Layer<P> {
    fn load(
        reader: &mut WeightReader<'_, P>,
        config: &DecoderConfig,
        index: usize,
    ) -> Result<Self, ModelError> {
        let hidden = config.hidden;
        let gemma = config.architecture.is_gemma();
        let ffn_norm = match gemma {
            true => Part::PreFfnNorm(index),
            false => Part::FfnNorm(index),
        };
        let mut layer = Self {
            attention: AttentionWeights::load(reader, config, index)?,
            ffn_norm: reader.norm(ffn_norm, hidden)?,
            feed_forward: match (config.kinds[index], config.experts) {
                (LayerKind { sparse: true, .. }, Some(experts)) => {
                    FeedForward::Sparse(ExpertWeights::load(reader, &experts, hidden, index)?)
                }
                _ => FeedForward::Dense(reader.gated(
                    [Part::Gate(index), Part::Up(index), Part::Down(index)],
                    hidden,
                    config.feed_forward,
                )?),
            },
            ffn_post_norm: match gemma {
                true => reader.norm(Part::PostFfnNorm(index), hidden)?,
                false => reader.none()?,
            },
        };
        layer.gather(reader.packer);
        Ok(layer)
    }

    /// Layer by layer, so that no more than one layer is there twice.
    fn gather(&mut self, packer: &P) {
        let AttentionWeights {
            q, k, v, output, ..
        } = &mut self.attention;
        let mut matrices = vec![q, k, v, output];
        let gated = match &mut self.feed_forward {
            FeedForward::Dense(dense) => Some(dense),
            FeedForward::Sparse(sparse) => sparse.shared.as_mut().map(|s| &mut s.weights),
        };
        if let Some(GatedWeights { gate, up, down }) = gated {
            matrices.extend([gate, up, down]);
        }
        packer.gather(&mut matrices);
    }
}

impl<P: Packer> AttentionWeights<P> {
    fn load(
        reader: &mut WeightReader<'_, P>,
        config: &DecoderConfig,
        index: usize,
    ) -> Result<Self, ModelError> {
        let (hidden, head_dim) = (config.hidden, config.head_dim);
        let (wide, narrow) = (config.heads * head_dim, config.kv_heads * head_dim);
        let needs_bias = config.architecture.has_biases();
        let mut bias = |part: Part, width: usize| {
            let bias = reader.optional_floats(part, width)?;
            match needs_bias && bias.is_empty() {
                true => Err(reader.missing(&part.name(reader))),
                false => reader.vector(part, bias),
            }
        };
        let q_bias = bias(Part::QueryBias(index), wide)?;
        let k_bias = bias(Part::KeyBias(index), narrow)?;
        let v_bias = bias(Part::ValueBias(index), narrow)?;
        let mut head_norm = |part: Part| match config.architecture.has_head_norms() {
            true => reader.norm(part, head_dim),
            false => reader.none(),
        };
        let q_norm = head_norm(Part::QueryNorm(index))?;
        let k_norm = head_norm(Part::KeyNorm(index))?;
        Ok(Self {
            norm: reader.norm(Part::AttentionNorm(index), hidden)?,
            q: reader.matrix(Part::Query(index), wide, hidden)?,
            k: reader.matrix(Part::Key(index), narrow, hidden)?,
            v: reader.matrix(Part::Value(index), narrow, hidden)?,
            q_bias,
            k_bias,
            v_bias,
            q_norm,
            k_norm,
            output: reader.matrix(Part::Output(index), hidden, wide)?,
            output_bias: reader.optional(Part::OutputBias(index), hidden)?,
            post_norm: match config.architecture.is_gemma() {
                true => reader.norm(Part::PostAttentionNorm(index), hidden)?,
                false => reader.none()?,
            },
        })
    }
}

impl<P: Packer> ExpertWeights<P> {
    fn load(
        reader: &mut WeightReader<'_, P>,
        config: &ExpertConfig,
        hidden: usize,
        layer: usize,
    ) -> Result<Self, ModelError> {
        let (count, width) = (config.count, config.feed_forward);
        let shared = match config.shared_feed_forward {
            Some(width) => Some(SharedExpert {
                gate: reader.rows(Part::SharedRouter(layer), 1, hidden)?,
                weights: reader.gated(
                    [
                        Part::SharedGate(layer),
                        Part::SharedUp(layer),
                        Part::SharedDown(layer),
                    ],
                    hidden,
                    width,
                )?,
            }),
            None => None,
        };
        Ok(Self {
            router: reader.rows(Part::Router(layer), count, hidden)?,
            experts: (0..count)
                .map(|expert| {
                    let mut of = |part, rows, cols| {
                        reader.expert_matrix(part, layer, (expert, count), rows, cols)
                    };
                    Ok(GatedWeights {
                        gate: of(ExpertPart::Gate, width, hidden)?,
                        up: of(ExpertPart::Up, width, hidden)?,
                        down: of(ExpertPart::Down, hidden, width)?,
                    })
                })
                .collect::<Result<_, ModelError>>()?,
            shared,
        })
    }
}

/// A tensor by what it is for; the number is the layer's.
#[derive(Debug, Clone, Copy)]
enum Part {
    Embedding,
    Head,
    OutputNorm,
    RopeDivisors,
    AttentionNorm(usize),
    Query(usize),
    Key(usize),
    Value(usize),
    QueryBias(usize),
    KeyBias(usize),
    ValueBias(usize),
    QueryNorm(usize),
    KeyNorm(usize),
    Output(usize),
    OutputBias(usize),
    PostAttentionNorm(usize),
    FfnNorm(usize),
    PreFfnNorm(usize),
    PostFfnNorm(usize),
    Gate(usize),
    Up(usize),
    Down(usize),
    Router(usize),
    SharedRouter(usize),
    SharedGate(usize),
    SharedUp(usize),
    SharedDown(usize),
}

#[derive(Debug, Clone, Copy)]
enum ExpertPart {
    Gate,
    Up,
    Down,
}

impl Part {
    fn name<P>(self, reader: &WeightReader<'_, P>) -> String {
        match &reader.names {
            Names::Gguf => self.gguf_name(),
            Names::Folder { prefix, mixtral } => self.folder_name(prefix, *mixtral),
        }
    }

    fn gguf_name(self) -> String {
        let (layer, part) = match self {
            Self::Embedding => return "token_embd.weight".into(),
            Self::Head => return "output.weight".into(),
            Self::OutputNorm => return "output_norm.weight".into(),
            Self::RopeDivisors => return "rope_freqs.weight".into(),
            Self::AttentionNorm(i) => (i, "attn_norm.weight"),
            Self::Query(i) => (i, "attn_q.weight"),
            Self::Key(i) => (i, "attn_k.weight"),
            Self::Value(i) => (i, "attn_v.weight"),
            Self::QueryBias(i) => (i, "attn_q.bias"),
            Self::KeyBias(i) => (i, "attn_k.bias"),
            Self::ValueBias(i) => (i, "attn_v.bias"),
            Self::QueryNorm(i) => (i, "attn_q_norm.weight"),
            Self::KeyNorm(i) => (i, "attn_k_norm.weight"),
            Self::Output(i) => (i, "attn_output.weight"),
            Self::OutputBias(i) => (i, "attn_output.bias"),
            Self::PostAttentionNorm(i) => (i, "post_attention_norm.weight"),
            Self::FfnNorm(i) | Self::PreFfnNorm(i) => (i, "ffn_norm.weight"),
            Self::PostFfnNorm(i) => (i, "post_ffw_norm.weight"),
            Self::Gate(i) => (i, "ffn_gate.weight"),
            Self::Up(i) => (i, "ffn_up.weight"),
            Self::Down(i) => (i, "ffn_down.weight"),
            Self::Router(i) => (i, "ffn_gate_inp.weight"),
            Self::SharedRouter(i) => (i, "ffn_gate_inp_shexp.weight"),
            Self::SharedGate(i) => (i, "ffn_gate_shexp.weight"),
            Self::SharedUp(i) => (i, "ffn_up_shexp.weight"),
            Self::SharedDown(i) => (i, "ffn_down_shexp.weight"),
        };
        format!("blk.{layer}.{part}")
    }

    fn folder_name(self, prefix: &str, mixtral: bool) -> String {
        let (layer, part) = match self {
            Self::Embedding => return format!("{prefix}embed_tokens.weight"),
            // Models that also see put their head beside the decoder, under one of these names.
            Self::Head if prefix == "language_model.model." => {
                return "language_model.lm_head.weight".into();
            }
            Self::Head => return "lm_head.weight".into(),
            Self::OutputNorm => return format!("{prefix}norm.weight"),
            // Not a tensor of these files; `optional` finds none.
            Self::RopeDivisors => return format!("{prefix}rope_divisors"),
            Self::AttentionNorm(i) => (i, "input_layernorm.weight"),
            Self::Query(i) => (i, "self_attn.q_proj.weight"),
            Self::Key(i) => (i, "self_attn.k_proj.weight"),
            Self::Value(i) => (i, "self_attn.v_proj.weight"),
            Self::QueryBias(i) => (i, "self_attn.q_proj.bias"),
            Self::KeyBias(i) => (i, "self_attn.k_proj.bias"),
            Self::ValueBias(i) => (i, "self_attn.v_proj.bias"),
            Self::QueryNorm(i) => (i, "self_attn.q_norm.weight"),
            Self::KeyNorm(i) => (i, "self_attn.k_norm.weight"),
            Self::Output(i) => (i, "self_attn.o_proj.weight"),
            Self::OutputBias(i) => (i, "self_attn.o_proj.bias"),
            // The same name for two things: behind attention in Gemma, before the feed-forward
            // elsewhere.
            Self::PostAttentionNorm(i) | Self::FfnNorm(i) => (i, "post_attention_layernorm.weight"),
            Self::PreFfnNorm(i) => (i, "pre_feedforward_layernorm.weight"),
            Self::PostFfnNorm(i) => (i, "post_feedforward_layernorm.weight"),
            Self::Gate(i) => (i, "mlp.gate_proj.weight"),
            Self::Up(i) => (i, "mlp.up_proj.weight"),
            Self::Down(i) => (i, "mlp.down_proj.weight"),
            Self::Router(i) if mixtral => (i, "block_sparse_moe.gate.weight"),
            Self::Router(i) => (i, "mlp.gate.weight"),
            Self::SharedRouter(i) => (i, "mlp.shared_expert_gate.weight"),
            Self::SharedGate(i) => (i, "mlp.shared_expert.gate_proj.weight"),
            Self::SharedUp(i) => (i, "mlp.shared_expert.up_proj.weight"),
            Self::SharedDown(i) => (i, "mlp.shared_expert.down_proj.weight"),
        };
        format!("{prefix}layers.{layer}.{part}")
    }
}

impl ExpertPart {
    /// One expert's own tensor.
    fn name(self, names: &Names, layer: usize, expert: usize) -> String {
        match names {
            Names::Gguf => format!("blk.{layer}.ffn_{}.{expert}.weight", self.word()),
            Names::Folder { prefix, mixtral } => {
                let part = match (mixtral, self) {
                    (true, Self::Gate) => "w1",
                    (true, Self::Up) => "w3",
                    (true, Self::Down) => "w2",
                    (false, Self::Gate) => "gate_proj",
                    (false, Self::Up) => "up_proj",
                    (false, Self::Down) => "down_proj",
                };
                let home = if *mixtral { "block_sparse_moe" } else { "mlp" };
                format!("{prefix}layers.{layer}.{home}.experts.{expert}.{part}.weight")
            }
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Gate => "gate",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

enum Names {
    Gguf,
    Folder {
        /// What stands before `layers` and `embed_tokens`.
        prefix: &'static str,
        mixtral: bool,
    },
}

#[derive(Clone, Copy)]
enum Tensors<'a> {
    Gguf(&'a Gguf),
    Folder(&'a Safetensors),
}

/// Reads tensors, checks their shapes and repacks them; the buffer is reused from one to the next.
struct WeightReader<'a, P> {
    tensors: Tensors<'a>,
    names: Names,
    packer: &'a P,
    /// Safetensors of Gemma hold the weights of norms less 1.
    norms_lack_one: bool,
    used: HashSet<String>,
    buffer: Vec<u8>,
}

/// Where a decoder may stand in a folder's names, alone or as a part of a model that also sees.
const PREFIXES: [&str; 3] = ["model.", "language_model.model.", "model.language_model."];

/// Parts that see; the language model runs without them.
const SEEING: [&str; 4] = [
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
];

impl<'a, P: Packer> WeightReader<'a, P> {
    fn new(
        source: &'a ModelSource,
        config: &DecoderConfig,
        packer: &'a P,
    ) -> Result<Self, ModelError> {
        let (tensors, names) = match source {
            ModelSource::Gguf(gguf) => (Tensors::Gguf(gguf), Names::Gguf),
            ModelSource::Folder(folder) => {
                let Some(weights) = folder.weights() else {
                    let problem = "no model.safetensors and no model.safetensors.index.json";
                    return Err(ModelError::Unreadable {
                        file: folder.path().display().to_string(),
                        problem: problem.into(),
                    });
                };
                let has = |prefix: &&&str| {
                    let embedding = format!("{prefix}embed_tokens.weight");
                    weights.tensors().contains_key(&embedding)
                };
                let prefix = PREFIXES.iter().find(has).unwrap_or(&PREFIXES[0]);
                let mixtral = config.architecture == super::config::Architecture::Mixtral;
                (Tensors::Folder(weights), Names::Folder { prefix, mixtral })
            }
        };
        Ok(Self {
            norms_lack_one: config.architecture.is_gemma() && matches!(tensors, Tensors::Folder(_)),
            tensors,
            names,
            packer,
            used: HashSet::new(),
            buffer: Vec::new(),
        })
    }

    fn has(&self, name: &str) -> bool {
        match self.tensors {
            Tensors::Gguf(gguf) => gguf.header().tensors.contains_key(name),
            Tensors::Folder(weights) => weights.tensors().contains_key(name),
        }
    }

    fn error(&self, name: &str, problem: String) -> ModelError {
        match self.tensors {
            Tensors::Gguf(gguf) => match gguf.tensor(name) {
                Ok(info) => gguf.tensor_error(info, problem).into(),
                Err(missing) => missing.into(),
            },
            Tensors::Folder(weights) => match weights.tensor(name) {
                Ok(tensor) => weights.tensor_error(tensor, problem).into(),
                Err(missing) => missing.into(),
            },
        }
    }

    fn missing(&self, name: &str) -> ModelError {
        self.error(name, String::new())
    }

    /// Fills the buffer with a tensor of this shape (outermost first), or with one of `count` equal
    /// slices of it along the outermost axis.
    fn fetch(
        &mut self,
        name: &str,
        shape: &[usize],
        (slice, count): (usize, usize),
    ) -> Result<TensorType, ModelError> {
        self.used.insert(name.to_owned());
        match self.tensors {
            Tensors::Gguf(gguf) => {
                let info = gguf.tensor(name)?;
                let found: Vec<u64> = info.shape.iter().rev().copied().collect();
                let found = without_leading_ones(&found, shape.len());
                self.check_shape(name, found, shape)?;
                let part = part_of(info, slice, count);
                gguf.read_tensor(&part, &mut self.buffer)?;
                Ok(info.kind)
            }
            Tensors::Folder(weights) => {
                let tensor = weights.tensor(name)?;
                let found = without_leading_ones(&tensor.shape, shape.len());
                self.check_shape(name, found, shape)?;
                weights.read(tensor, &mut self.buffer)?;
                Ok(tensor.kind)
            }
        }
    }

    fn check_shape(&self, name: &str, found: &[u64], wanted: &[usize]) -> Result<(), ModelError> {
        let same = found.iter().map(|d| *d as usize).eq(wanted.iter().copied());
        match same {
            true => Ok(()),
            false => Err(self.error(
                name,
                format!("shape {found:?}, but the metadata say {wanted:?} (rows first)"),
            )),
        }
    }

    fn pack(
        &self,
        name: &str,
        kind: TensorType,
        role: Role,
        size: (usize, usize),
    ) -> Result<P::Matrix, ModelError> {
        let packed = self.packer.matrix(kind, role, size, &self.buffer);
        packed.map_err(|problem| self.error(name, problem))
    }

    /// A matrix of `rows` outputs by `cols` inputs.
    fn matrix(&mut self, part: Part, rows: usize, cols: usize) -> Result<P::Matrix, ModelError> {
        let name = part.name(self);
        let kind = self.fetch(&name, &[rows, cols], (0, 1))?;
        let role = match part {
            Part::Embedding | Part::Head => Role::EmbeddingOrHead,
            _ => Role::Inner,
        };
        self.pack(&name, kind, role, (rows, cols))
    }

    fn gated(
        &mut self,
        [gate, up, down]: [Part; 3],
        hidden: usize,
        width: usize,
    ) -> Result<GatedWeights<P>, ModelError> {
        Ok(GatedWeights {
            gate: self.matrix(gate, width, hidden)?,
            up: self.matrix(up, width, hidden)?,
            down: self.matrix(down, hidden, width)?,
        })
    }

    /// One expert's matrix: a tensor of its own, or a slice of the tensor of all (GGUF's newer way).
    fn expert_matrix(
        &mut self,
        part: ExpertPart,
        layer: usize,
        (expert, count): (usize, usize),
        rows: usize,
        cols: usize,
    ) -> Result<P::Matrix, ModelError> {
        let all = format!("blk.{layer}.ffn_{}_exps.weight", part.word());
        if matches!(self.names, Names::Gguf) && self.has(&all) {
            let kind = self.fetch(&all, &[count, rows, cols], (expert, count))?;
            return self.pack(&all, kind, Role::Inner, (rows, cols));
        }
        let name = part.name(&self.names, layer, expert);
        let kind = self.fetch(&name, &[rows, cols], (0, 1))?;
        self.pack(&name, kind, Role::Inner, (rows, cols))
    }

    /// A small matrix as floats: `[rows][cols]`.
    fn floats(&mut self, part: Part, rows: usize, cols: usize) -> Result<Vec<f32>, ModelError> {
        let name = part.name(self);
        let shape = [rows, cols];
        let shape = if rows == 1 { &shape[1..] } else { &shape };
        let kind = self.fetch(&name, shape, (0, 1))?;
        self.to_floats(&name, kind)
    }

    /// The weights of a norm as they are multiplied.
    fn norm(&mut self, part: Part, length: usize) -> Result<P::Vector, ModelError> {
        let mut weights = self.floats(part, 1, length)?;
        if self.norms_lack_one {
            weights.iter_mut().for_each(|w| *w += 1.0);
        }
        self.vector(part, weights)
    }

    /// A small matrix for the packer, which keeps it as floats.
    fn rows(&mut self, part: Part, rows: usize, cols: usize) -> Result<P::Vector, ModelError> {
        let values = self.floats(part, rows, cols)?;
        self.vector(part, values)
    }

    fn vector(&self, part: Part, values: Vec<f32>) -> Result<P::Vector, ModelError> {
        let packed = self.packer.vector(values);
        packed.map_err(|problem| self.error(&part.name(self), problem))
    }

    /// What a family has not.
    fn none(&self) -> Result<P::Vector, ModelError> {
        self.vector(Part::OutputNorm, Vec::new())
    }

    fn optional(&mut self, part: Part, length: usize) -> Result<P::Vector, ModelError> {
        let values = self.optional_floats(part, length)?;
        self.vector(part, values)
    }

    /// A list of floats, empty where the file has none.
    fn optional_floats(&mut self, part: Part, length: usize) -> Result<Vec<f32>, ModelError> {
        match self.has(&part.name(self)) {
            true => self.floats(part, 1, length),
            false => Ok(Vec::new()),
        }
    }

    fn to_floats(&self, name: &str, kind: TensorType) -> Result<Vec<f32>, ModelError> {
        let halves = || self.buffer.as_chunks().0.iter();
        let values: Vec<f32> = match kind {
            TensorType::F32 => {
                let words = self.buffer.as_chunks().0.iter();
                words.map(|b| f32::from_le_bytes(*b)).collect()
            }
            TensorType::F16 => halves()
                .map(|b| half::f16::from_le_bytes(*b).to_f32())
                .collect(),
            TensorType::BF16 => halves()
                .map(|b| half::bf16::from_le_bytes(*b).to_f32())
                .collect(),
            other => {
                let problem = format!("type {other}; F32, F16 or BF16 is expected");
                return Err(self.error(name, problem));
            }
        };
        match values.iter().all(|v| v.is_finite()) {
            true => Ok(values),
            false => Err(self.error(name, "a weight is not a finite number".into())),
        }
    }

    /// A tensor that nobody reads is a feature that nobody runs.
    fn nothing_is_left(&self, tied: bool) -> Result<(), ModelError> {
        let harmless = |name: &str| {
            // Angles that every reader computes, and a second copy of a tied head.
            name.ends_with("rotary_emb.inv_freq")
                || name.ends_with("rope.freqs")
                || (tied && name == Part::Head.name(self))
                || SEEING.iter().any(|part| name.starts_with(part))
        };
        let mut all: Box<dyn Iterator<Item = &String>> = match self.tensors {
            Tensors::Gguf(gguf) => Box::new(gguf.header().tensors.keys()),
            Tensors::Folder(weights) => Box::new(weights.tensors().keys()),
        };
        match all.find(|name| !self.used.contains(*name) && !harmless(name)) {
            Some(name) => Err(self.error(
                name,
                "belongs to something that this engine does not run".into(),
            )),
            None => Ok(()),
        }
    }
}

/// A vector may be written as a matrix of one row.
fn without_leading_ones(shape: &[u64], rank: usize) -> &[u64] {
    let extra = shape.len().saturating_sub(rank);
    match shape[..extra].iter().all(|d| *d == 1) {
        true => &shape[extra..],
        false => shape,
    }
}

/// The entry of one of `count` equal slices, which its shape has been checked to have.
fn part_of(info: &TensorInfo, slice: usize, count: usize) -> TensorInfo {
    let bytes = info.bytes / count as u64;
    TensorInfo {
        offset: info.offset + bytes * slice as u64,
        bytes,
        ..info.clone()
    }
}

fn block_format(kind: TensorType) -> Option<BlockFormat> {
    Some(match kind {
        TensorType::F32 => BlockFormat::F32,
        TensorType::F16 => BlockFormat::F16,
        TensorType::BF16 => BlockFormat::BF16,
        TensorType::Q4_0 => BlockFormat::Q4_0,
        TensorType::Q4_1 => BlockFormat::Q4_1,
        TensorType::Q5_0 => BlockFormat::Q5_0,
        TensorType::Q5_1 => BlockFormat::Q5_1,
        TensorType::Q8_0 => BlockFormat::Q8_0,
        TensorType::Q4_K => BlockFormat::Q4_K,
        TensorType::Q5_K => BlockFormat::Q5_K,
        TensorType::Q6_K => BlockFormat::Q6_K,
        TensorType::Q2_K | TensorType::Q3_K => return None,
    })
}
