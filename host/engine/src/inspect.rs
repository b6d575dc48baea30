//! What a model is, from its headers alone: for the command line and for planning memory.

use std::collections::BTreeMap;
use std::path::Path;

use crate::gguf::{Gguf, GgufError, TensorType, Value};
use crate::model::ModelError;
use crate::model::source::{ModelFolder, ModelSource, Settings};

/// A model's own description. Nothing here says that this engine can run it.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspection {
    pub architecture: String,
    pub name: Option<String>,
    /// 0 where a folder has no weights yet.
    pub parameters: u64,
    /// Per type: number of tensors and their bytes. Empty where a folder has no weights yet.
    pub tensors_by_type: BTreeMap<TensorType, TypeTotal>,
    pub layers: Option<u64>,
    pub hidden: Option<u64>,
    /// Width of the dense feed-forward; that of an expert is in [`Inspection::experts`].
    pub feed_forward: Option<u64>,
    pub heads: Option<u64>,
    pub kv_heads: Option<u64>,
    pub head_dim: Option<u64>,
    pub context_tokens: Option<u64>,
    pub vocabulary: Option<u64>,
    /// `None`: not a mixture of experts.
    pub experts: Option<Experts>,
    /// 2 (keys, values) · layers · kv heads · head size · 2 bytes; `None` when the header lacks a factor.
    pub kv_bytes_per_token: Option<u64>,
    pub tokenizer: Option<String>,
    pub has_chat_template: bool,
}

/// How a mixture of experts is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    pub count: u64,
    /// Experts that each token passes through.
    pub used: Option<u64>,
    /// Width of one expert's feed-forward.
    pub feed_forward: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TypeTotal {
    pub tensors: usize,
    pub bytes: u64,
}

impl Inspection {
    /// The type that most of the bytes have: what people call the file's quantisation.
    pub fn quantization(&self) -> Option<TensorType> {
        // The embedding of a small model may outweigh its layers, so count tensors that are not plain floats.
        let quantized = self
            .tensors_by_type
            .iter()
            .filter(|(kind, _)| kind.block().0 > 1);
        let named = quantized
            .max_by_key(|(_, total)| total.tensors)
            .map(|(kind, _)| *kind);
        named.or_else(|| {
            self.tensors_by_type
                .iter()
                .max_by_key(|(_, t)| t.bytes)
                .map(|(kind, _)| *kind)
        })
    }

    /// Bytes of all tensors as they lie in the file.
    pub fn weight_bytes(&self) -> u64 {
        self.tensors_by_type.values().map(|total| total.bytes).sum()
    }
}

/// Describes a GGUF file, or a folder with a `config.json`; neither tokenizer nor weights are read.
pub fn inspect(path: &Path) -> Result<Inspection, ModelError> {
    describe(&ModelSource::open(path)?)
}

pub(crate) fn describe(source: &ModelSource) -> Result<Inspection, ModelError> {
    match source {
        ModelSource::Gguf(gguf) => Ok(describe_gguf(gguf)?),
        ModelSource::Folder(folder) => describe_folder(folder, source.chat_template()?.is_some()),
    }
}

fn totals(tensors: impl Iterator<Item = (TensorType, u64)>) -> BTreeMap<TensorType, TypeTotal> {
    let mut by_type: BTreeMap<TensorType, TypeTotal> = BTreeMap::new();
    for (kind, bytes) in tensors {
        let total = by_type.entry(kind).or_default();
        total.tensors += 1;
        total.bytes += bytes;
    }
    by_type
}

/// 2 bytes of 2 vectors, times the factors; `None` where one is unknown or the product absurd.
fn kv_bytes(factors: [Option<u64>; 3]) -> Option<u64> {
    factors
        .into_iter()
        .try_fold(4u64, |all, f| all.checked_mul(f?))
}

fn describe_gguf(gguf: &Gguf) -> Result<Inspection, GgufError> {
    let architecture = gguf.required_text("general.architecture")?.to_owned();
    let uint = |part: &str| gguf.uint(&format!("{architecture}.{part}"));
    let tensors = gguf.header().tensors.values();
    let layers = uint("block_count")?;
    let heads = uint("attention.head_count")?;
    let kv_heads = uint("attention.head_count_kv")?.or(heads);
    let hidden = uint("embedding_length")?;
    let by_division = hidden
        .zip(heads)
        .and_then(|(hidden, heads)| hidden.checked_div(heads));
    let head_dim = uint("attention.key_length")?.or(by_division);
    let feed_forward = uint("feed_forward_length")?;
    let experts = match uint("expert_count")?.filter(|count| *count > 0) {
        Some(count) => Some(Experts {
            count,
            used: uint("expert_used_count")?,
            feed_forward: uint("expert_feed_forward_length")?.or(feed_forward),
        }),
        None => None,
    };
    Ok(Inspection {
        name: gguf.text("general.name")?.map(str::to_owned),
        parameters: tensors
            .clone()
            .fold(0, |all: u64, info| all.saturating_add(info.elements())),
        tensors_by_type: totals(tensors.map(|info| (info.kind, info.bytes))),
        kv_bytes_per_token: kv_bytes([layers, kv_heads, head_dim]),
        layers,
        hidden,
        feed_forward,
        heads,
        kv_heads,
        head_dim,
        experts,
        context_tokens: uint("context_length")?,
        vocabulary: match gguf.header().metadata.get("tokenizer.ggml.tokens") {
            Some(Value::Array(tokens)) => Some(tokens.len() as u64),
            _ => uint("vocab_size")?,
        },
        tokenizer: gguf.text("tokenizer.ggml.model")?.map(str::to_owned),
        has_chat_template: gguf.text("tokenizer.chat_template")?.is_some(),
        architecture,
    })
}

/// The language model's part of a `config.json`: models that also see keep it under `text_config`.
pub(crate) fn language_settings<'a>(config: &Settings<'a>) -> Result<Settings<'a>, ModelError> {
    Ok(config
        .object("text_config")?
        .unwrap_or_else(|| config.clone()))
}

fn describe_folder(
    folder: &ModelFolder,
    has_chat_template: bool,
) -> Result<Inspection, ModelError> {
    let whole = folder.config()?;
    let config = language_settings(&whole)?;
    let architecture = whole
        .text("model_type")?
        .ok_or_else(|| whole.error("model_type", "missing"))?
        .to_owned();
    let layers = config.uint("num_hidden_layers")?;
    let heads = config.uint("num_attention_heads")?;
    let kv_heads = config.uint("num_key_value_heads")?.or(heads);
    let hidden = config.uint("hidden_size")?;
    let by_division = hidden
        .zip(heads)
        .and_then(|(hidden, heads)| hidden.checked_div(heads));
    let head_dim = config.uint("head_dim")?.or(by_division);
    let feed_forward = config.uint("intermediate_size")?;
    let count = match config.uint("num_local_experts")? {
        None => config.uint("num_experts")?,
        some => some,
    };
    let experts = match count.filter(|count| *count > 0) {
        Some(count) => Some(Experts {
            count,
            used: config.uint("num_experts_per_tok")?,
            feed_forward: config.uint("moe_intermediate_size")?.or(feed_forward),
        }),
        None => None,
    };
    let tensors = || {
        let weights = folder.weights().into_iter();
        weights.flat_map(|weights| weights.tensors().values())
    };
    let elements = |shape: &[u64]| shape.iter().product::<u64>();
    Ok(Inspection {
        name: whole.text("_name_or_path")?.map(str::to_owned),
        parameters: tensors().fold(0, |all: u64, t| all.saturating_add(elements(&t.shape))),
        tensors_by_type: totals(tensors().map(|t| (t.kind, t.bytes))),
        kv_bytes_per_token: kv_bytes([layers, kv_heads, head_dim]),
        layers,
        hidden,
        feed_forward,
        heads,
        kv_heads,
        head_dim,
        experts,
        context_tokens: config.uint("max_position_embeddings")?,
        vocabulary: config.uint("vocab_size")?,
        tokenizer: folder
            .path()
            .join("tokenizer.json")
            .exists()
            .then(|| "tokenizer.json".to_owned()),
        has_chat_template,
        architecture,
    })
}
