//! What a GGUF file is, from its header alone: for the command line and for planning memory.

use std::collections::BTreeMap;
use std::path::Path;

use crate::gguf::{Gguf, GgufError, TensorType, Value};

/// A file's own description. Nothing here says that this engine can run it.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspection {
    pub architecture: String,
    pub name: Option<String>,
    pub parameters: u64,
    /// Per type: number of tensors and their bytes.
    pub tensors_by_type: BTreeMap<TensorType, TypeTotal>,
    pub layers: Option<u64>,
    pub heads: Option<u64>,
    pub kv_heads: Option<u64>,
    pub head_dim: Option<u64>,
    pub context_tokens: Option<u64>,
    pub vocabulary: Option<u64>,
    /// 2 (keys, values) · layers · kv heads · head size · 2 bytes; `None` when the header lacks a factor.
    pub kv_bytes_per_token: Option<u64>,
    pub tokenizer: Option<String>,
    pub has_chat_template: bool,
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
}

pub fn inspect(path: &Path) -> Result<Inspection, GgufError> {
    describe(&Gguf::open(path)?)
}

pub(crate) fn describe(gguf: &Gguf) -> Result<Inspection, GgufError> {
    let architecture = gguf.required_text("general.architecture")?.to_owned();
    let key = |part: &str| format!("{architecture}.{part}");
    let mut tensors_by_type: BTreeMap<TensorType, TypeTotal> = BTreeMap::new();
    for info in gguf.header().tensors.values() {
        let total = tensors_by_type.entry(info.kind).or_default();
        total.tensors += 1;
        total.bytes += info.bytes;
    }
    let layers = gguf.uint(&key("block_count"))?;
    let heads = gguf.uint(&key("attention.head_count"))?;
    let kv_heads = gguf.uint(&key("attention.head_count_kv"))?.or(heads);
    let hidden = gguf.uint(&key("embedding_length"))?;
    let by_division = hidden
        .zip(heads)
        .and_then(|(hidden, heads)| hidden.checked_div(heads));
    let head_dim = gguf.uint(&key("attention.key_length"))?.or(by_division);
    let product = |factors: [Option<u64>; 3]| {
        factors
            .into_iter()
            .try_fold(4u64, |all, f| all.checked_mul(f?))
    };
    Ok(Inspection {
        name: gguf.text("general.name")?.map(str::to_owned),
        parameters: gguf
            .header()
            .tensors
            .values()
            .map(|info| info.elements())
            .sum(),
        tensors_by_type,
        kv_bytes_per_token: product([layers, kv_heads, head_dim]),
        layers,
        heads,
        kv_heads,
        head_dim,
        context_tokens: gguf.uint(&key("context_length"))?,
        vocabulary: match gguf.header().metadata.get("tokenizer.ggml.tokens") {
            Some(Value::Array(tokens)) => Some(tokens.len() as u64),
            _ => gguf.uint(&key("vocab_size"))?,
        },
        tokenizer: gguf.text("tokenizer.ggml.model")?.map(str::to_owned),
        has_chat_template: gguf.text("tokenizer.chat_template")?.is_some(),
        architecture,
    })
}
