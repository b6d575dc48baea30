//! The shape of a decoder: everything in which Llama, Mistral, Qwen and Gemma differ, as data.
//!
//! It exists so that one runner serves them all, and so that a wrong header is refused before
//! anything is indexed with it. [`DecoderConfig::check`] is the one door: every later index relies
//! on it. What an architecture has and this list has not is refused by name where it is read.

use super::ModelError;
use super::rope_scaling::RopeScaling;
use super::source::ModelSource;
use crate::kernels::{Activation, RopeStyle};

/// The families that the decoder runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Llama,
    Mistral,
    Mixtral,
    Qwen2,
    Qwen3,
    Qwen2Moe,
    Qwen3Moe,
    Gemma2,
    Gemma3,
}

impl Architecture {
    /// `general.architecture` of a GGUF file. Mistral and Mixtral are `llama` there.
    pub(super) fn from_gguf_name(name: &str) -> Option<Self> {
        Some(match name {
            "llama" => Self::Llama,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            "qwen2moe" => Self::Qwen2Moe,
            "qwen3moe" => Self::Qwen3Moe,
            "gemma2" => Self::Gemma2,
            "gemma3" => Self::Gemma3,
            _ => return None,
        })
    }

    /// `model_type` of a `config.json`.
    pub(super) fn from_model_type(name: &str) -> Option<Self> {
        Some(match name {
            "llama" => Self::Llama,
            "mistral" => Self::Mistral,
            "mixtral" => Self::Mixtral,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            "qwen2_moe" => Self::Qwen2Moe,
            "qwen3_moe" => Self::Qwen3Moe,
            "gemma2" => Self::Gemma2,
            "gemma3" | "gemma3_text" => Self::Gemma3,
            _ => return None,
        })
    }

    /// Queries and keys are normalised head by head before they are rotated.
    pub fn has_head_norms(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Qwen3Moe | Self::Gemma3)
    }

    /// Queries, keys and values have a bias that must not be missing.
    pub fn has_biases(self) -> bool {
        matches!(self, Self::Qwen2 | Self::Qwen2Moe)
    }

    /// Gemma 2 and 3: norms behind attention and feed-forward too, GELU, a scaled embedding, norm
    /// weights that safetensors store less 1.
    pub fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    pub fn activation(self) -> Activation {
        match self.is_gemma() {
            true => Activation::GeluTanh,
            false => Activation::Silu,
        }
    }
}

/// How heads are rotated.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    pub style: RopeStyle,
    /// Elements of a head that are rotated, from its start.
    pub dim: usize,
    pub base: f64,
    pub scaling: RopeScaling,
}

/// In what a layer may differ from its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerKind {
    /// Positions that a row sees, its own included; `None`: all.
    pub window: Option<usize>,
    /// Rotates by [`DecoderConfig::local_rope`].
    pub local_rope: bool,
    /// Its feed-forward is a mixture of experts.
    pub sparse: bool,
}

/// A mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertConfig {
    pub count: usize,
    /// Experts per token.
    pub used: usize,
    pub feed_forward: usize,
    /// The weights of the chosen experts are scaled to a sum of 1.
    pub renormalise: bool,
    /// Width of the expert that every token passes through, behind a gate of its own.
    pub shared_feed_forward: Option<usize>,
}

/// The shape of a decoder, checked for sense.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    pub architecture: Architecture,
    pub layers: usize,
    pub hidden: usize,
    /// Of dense layers; unused where every layer is sparse.
    pub feed_forward: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocabulary: usize,
    pub context_tokens: usize,
    pub rms_epsilon: f32,
    pub rope: Rope,
    /// Of the layers that say so (Gemma 3); the others never look at it.
    pub local_rope: Rope,
    /// Multiplies every score.
    pub attention_scale: f32,
    pub attention_softcap: Option<f32>,
    pub final_softcap: Option<f32>,
    /// The head is the embedding.
    pub tied: bool,
    pub experts: Option<ExpertConfig>,
    /// One per layer.
    pub kinds: Vec<LayerKind>,
}

impl DecoderConfig {
    pub fn read(source: &ModelSource) -> Result<Self, ModelError> {
        match source {
            ModelSource::Gguf(gguf) => super::gguf_config::read(gguf),
            ModelSource::Folder(folder) => super::folder_config::read(folder),
        }
    }

    /// Keys and values of one token over all layers, in f16.
    pub fn kv_bytes_per_token(&self) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim * 2
    }

    /// What the rows of the embedding are multiplied with.
    pub fn embedding_scale(&self) -> Option<f32> {
        let gemma = self.architecture.is_gemma();
        gemma.then(|| (self.hidden as f32).sqrt())
    }

    /// Width of the widest row that is ever quantised.
    pub fn widest(&self) -> usize {
        let experts = self.experts.map_or(0, |e| {
            e.feed_forward.max(e.shared_feed_forward.unwrap_or(0))
        });
        self.hidden
            .max(self.feed_forward)
            .max(self.heads * self.head_dim)
            .max(experts)
    }

    /// `refuse` makes the error from what is wrong and why.
    pub(super) fn check(self, refuse: &Refuse<'_>) -> Result<Self, ModelError> {
        let within = |what: &str, value: usize, low: usize, high: usize| match (low..=high)
            .contains(&value)
        {
            true => Ok(()),
            false => Err(refuse(what, format!("{value} is not from {low} to {high}"))),
        };
        within("number of layers", self.layers, 1, 1_024)?;
        within("number of heads", self.heads, 1, 1_024)?;
        within("context length", self.context_tokens, 1, 1 << 24)?;
        within("vocabulary", self.vocabulary, 1, 1 << 24)?;
        let mut widths = vec![
            ("hidden size", self.hidden),
            ("feed-forward size", self.feed_forward),
            ("size of all heads", self.heads * self.head_dim.min(256)),
        ];
        if let Some(experts) = self.experts {
            within("number of experts", experts.count, 1, 1_024)?;
            within("experts per token", experts.used, 1, experts.count.min(64))?;
            widths.push(("feed-forward size of an expert", experts.feed_forward));
            let shared = experts.shared_feed_forward;
            widths.extend(shared.map(|width| ("feed-forward size of the shared expert", width)));
        }
        for (what, width) in widths {
            within(what, width, 32, 1 << 20)?;
            if width % 32 != 0 {
                let problem =
                    format!("{width} is not a multiple of 32, the size of a weight block");
                return Err(refuse(what, problem));
            }
        }
        self.check_heads(refuse)?;
        let sparse = self.kinds.iter().any(|kind| kind.sparse);
        if sparse != self.experts.is_some() {
            let problem = "the file says two things about experts".to_owned();
            return Err(refuse("number of experts", problem));
        }
        Ok(self)
    }

    fn check_heads(&self, refuse: &Refuse<'_>) -> Result<(), ModelError> {
        let (heads, kv_heads, head_dim) = (self.heads, self.kv_heads, self.head_dim);
        if kv_heads == 0 || heads % kv_heads != 0 {
            let problem = format!("{kv_heads} does not divide the {heads} query heads");
            return Err(refuse("number of kv heads", problem));
        }
        if head_dim == 0 || head_dim % 16 != 0 || head_dim > 256 {
            let problem =
                format!("heads of {head_dim} elements; multiples of 16 up to 256 can be run");
            return Err(refuse("head size", problem));
        }
        for rope in [&self.rope, &self.local_rope] {
            if rope.dim == 0 || rope.dim % 2 != 0 || rope.dim > head_dim {
                let problem = format!("{} of {head_dim} elements per head", rope.dim);
                return Err(refuse("rotated elements", problem));
            }
            if !(rope.base.is_finite() && rope.base > 0.0) {
                return Err(refuse(
                    "rotation base",
                    format!("{} is not above 0", rope.base),
                ));
            }
        }
        let mut positive = vec![
            ("norm epsilon", self.rms_epsilon),
            ("attention scale", self.attention_scale),
        ];
        positive.extend(self.attention_softcap.map(|cap| ("attention softcap", cap)));
        positive.extend(self.final_softcap.map(|cap| ("logit softcap", cap)));
        for (what, value) in positive {
            if !(value.is_finite() && value > 0.0) {
                return Err(refuse(what, format!("{value} is not above 0")));
            }
        }
        if self.rms_epsilon >= 1.0 {
            let problem = format!("{} would drown every row", self.rms_epsilon);
            return Err(refuse("norm epsilon", problem));
        }
        if self.kinds.iter().any(|kind| kind.window == Some(0)) {
            let problem = "a window of 0 positions sees nothing".to_owned();
            return Err(refuse("sliding window", problem));
        }
        Ok(())
    }
}

/// Makes an error of what is wrong and why.
pub(super) type Refuse<'a> = dyn Fn(&str, String) -> ModelError + 'a;

/// A count of the header as a size; what does not fit is beyond every limit that follows.
pub(super) fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX).min(1 << 40)
}
