//! What a model takes of a machine's memory: weights, KV cache, scratch.
//!
//! Weights are the bytes of the quantised tensors, since the engine repacks them at load into
//! forms of the same size and drops the original; floats count as what they become. The KV cache is exact: keys and values of every
//! layer in f16, in whole blocks per sequence, and nobody is preempted while all sequences
//! have their full length. Scratch is the arithmetic of a step's buffers, from above.
//!
//! It refuses to guess where a header lacks a factor: then the answer is "not said".

use homeostat_engine::block::BLOCK_SIZE;
use homeostat_engine::{Inspection, LoadQuantization};
use serde::Serialize;

/// The rest of the host: process, policies, HTTP, tokenizer. Measured resident size of a
/// server in its default configuration (encoder, three embedded policies) after some answers, less
/// the weights, KV and scratch of its one tier: 203 MiB, and some to spare.
const HOST_BYTES: u64 = 224 << 20;

/// Buffers of one step with `rows` rows of which `logit_rows` want logits: activations of the
/// widest layer in f32 with a quantised copy beside them, and the logits.
fn scratch_bytes(model: &Inspection, rows: u64, logit_rows: u64) -> Option<u64> {
    let heads = model.heads? + 2 * model.kv_heads?;
    let dense = model.feed_forward.unwrap_or(0);
    let expert = model
        .experts
        .and_then(|e| Some(e.used? * e.feed_forward?))
        .unwrap_or(0);
    let widths = [
        // Residual, normed, attention's output, the down projection's output.
        4u64.checked_mul(model.hidden?)?,
        heads.checked_mul(model.head_dim?)?,
        // Gate and up.
        dense.max(expert).checked_mul(2)?,
    ];
    let per_row = widths.into_iter().try_fold(0u64, u64::checked_add)?;
    // 4 bytes as f32 and at most 2 for the quantised copy.
    let activations = per_row.checked_mul(6)?.checked_mul(rows)?;
    let logits = model.vocabulary?.checked_mul(4)?.checked_mul(logit_rows)?;
    activations.checked_add(logits)
}

/// What a model takes whatever is asked of it, and what each token of a sequence adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// 0 where a folder has a config.json only.
    pub weight_bytes: u64,
    pub kv_bytes_per_token: u64,
    pub scratch_bytes: u64,
    pub host_bytes: u64,
    /// The model's own limit.
    pub context_tokens: Option<u64>,
}

impl Footprint {
    /// `None` where the header lacks what the sums need. `rows` is `max_batch_tokens`.
    pub fn of(model: &Inspection, target: LoadQuantization, rows: u64) -> Option<Self> {
        Some(Self {
            weight_bytes: weights_at_load(model, target),
            kv_bytes_per_token: model.kv_bytes_per_token.filter(|b| *b > 0)?,
            scratch_bytes: scratch_bytes(model, rows, rows.min(64))?,
            host_bytes: HOST_BYTES,
            context_tokens: model.context_tokens,
        })
    }

    /// The KV cache of `batch` sequences of `context` tokens each: what `kv_bytes` must be.
    pub fn kv_bytes(&self, context: u64, batch: u64) -> Option<u64> {
        let block = BLOCK_SIZE as u64;
        context
            .div_ceil(block)
            .checked_mul(block)?
            .checked_mul(batch)?
            .checked_mul(self.kv_bytes_per_token)
    }

    pub fn demand(&self, context: u64, batch: u64) -> Option<Demand> {
        let kv_bytes = self.kv_bytes(context, batch)?;
        let parts = [
            self.weight_bytes,
            self.scratch_bytes,
            self.host_bytes,
            kv_bytes,
        ];
        Some(Demand {
            context_tokens: context,
            batch,
            kv_bytes,
            total_bytes: parts.into_iter().try_fold(0u64, u64::checked_add)?,
            beyond_context: self.context_tokens.filter(|limit| context > *limit),
        })
    }
}

/// Bytes of the weights in memory: float tensors are quantised while they are loaded, embedding
/// and head never below Q8_0. Vectors (norms, biases) stay floats, but are too small to matter.
fn weights_at_load(model: &Inspection, target: LoadQuantization) -> u64 {
    let quantized = |count: u64, to: LoadQuantization| {
        let (elements, bytes) = to.block();
        count.div_ceil(elements).saturating_mul(bytes)
    };
    let (mut floats, mut kept) = (0u64, 0u64);
    for (kind, total) in &model.tensors_by_type {
        match kind.block() {
            // One element per block: a float.
            (1, width) => floats = floats.saturating_add(total.bytes / width),
            _ => kept = kept.saturating_add(total.bytes),
        }
    }
    let both_ends = model.vocabulary.zip(model.hidden);
    let ends = both_ends.map_or(0, |(v, h)| v.saturating_mul(h).saturating_mul(2));
    let ends = ends.min(floats);
    kept.saturating_add(quantized(ends, LoadQuantization::Q8_0))
        .saturating_add(quantized(floats - ends, target))
}

/// What one context and batch takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Demand {
    pub context_tokens: u64,
    pub batch: u64,
    pub kv_bytes: u64,
    pub total_bytes: u64,
    /// The model's limit, where the context is longer than that.
    pub beyond_context: Option<u64>,
}

/// The memory there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Room {
    /// Of the machine or of the container, whichever is less.
    pub total_bytes: u64,
    /// What nobody uses at present.
    pub available_bytes: u64,
}

impl Room {
    /// Bytes that are lacking; 0 when it fits.
    pub fn lacks(&self, demand: &Demand) -> u64 {
        demand.total_bytes.saturating_sub(self.available_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// The published config.json of Llama 3 70B, in so far as it bears on memory.
    const LLAMA_3_70B: &str = r#"{
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": 64,
        "num_hidden_layers": 80,
        "num_key_value_heads": 8,
        "rope_theta": 500000.0,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "vocab_size": 128256
    }"#;

    fn from_config(text: &str) -> Inspection {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        homeostat_engine::inspect(folder.path()).unwrap()
    }

    #[test]
    fn llama_3_70b_takes_320_kib_a_token_and_40_gib_for_each_of_three_shapes() {
        let model = from_config(LLAMA_3_70B);
        let footprint = Footprint::of(&model, LoadQuantization::Q8_0, 256).unwrap();
        assert_eq!(footprint.kv_bytes_per_token, 320 << 10);
        for (context, batch, gib) in [
            (128 << 10, 1, 40),
            (4 << 10, 32, 40),
            (2 << 10, 64, 40),
            (32 << 10, 8, 80),
        ] {
            let demand = footprint.demand(context, batch).unwrap();
            assert_eq!(demand.kv_bytes, gib * GIB, "{context} x {batch}");
        }
        assert_eq!(footprint.demand(8192, 1).unwrap().beyond_context, None);
        assert_eq!(
            footprint.demand(8193, 1).unwrap().beyond_context,
            Some(8192)
        );
    }

    #[test]
    fn a_sequence_takes_whole_blocks() {
        let footprint =
            Footprint::of(&from_config(LLAMA_3_70B), LoadQuantization::Q8_0, 256).unwrap();
        let block = BLOCK_SIZE as u64 * footprint.kv_bytes_per_token;
        assert_eq!(footprint.kv_bytes(1, 3), Some(3 * block));
        assert_eq!(
            footprint.kv_bytes(BLOCK_SIZE as u64 + 1, 1),
            Some(2 * block)
        );
    }

    #[test]
    fn absurd_shapes_are_no_numbers_rather_than_wrong_ones() {
        let footprint =
            Footprint::of(&from_config(LLAMA_3_70B), LoadQuantization::Q8_0, 256).unwrap();
        assert_eq!(footprint.kv_bytes(u64::MAX / 2, 2), None);
        assert_eq!(footprint.demand(1 << 40, 1 << 20), None);
        let lacking = LLAMA_3_70B.replace("\"num_hidden_layers\": 80,", "");
        assert_eq!(
            Footprint::of(&from_config(&lacking), LoadQuantization::Q8_0, 256),
            None
        );
    }

    #[test]
    fn what_is_lacking_is_said_to_the_byte() {
        let footprint =
            Footprint::of(&from_config(LLAMA_3_70B), LoadQuantization::Q8_0, 256).unwrap();
        let demand = footprint.demand(2048, 1).unwrap();
        let room = |available_bytes| Room {
            total_bytes: 64 * GIB,
            available_bytes,
        };
        assert_eq!(room(demand.total_bytes).lacks(&demand), 0);
        assert_eq!(room(demand.total_bytes - 7).lacks(&demand), 7);
    }

    #[test]
    fn floats_shrink_when_they_are_quantised_at_load_and_the_rest_stays() {
        use homeostat_engine::{TensorType, TypeTotal};
        let small = LLAMA_3_70B.replace("128256", "32").replace("8192", "32");
        let mut model = from_config(&small);
        let total = |bytes| TypeTotal { tensors: 1, bytes };
        model.tensors_by_type.insert(TensorType::BF16, total(6400));
        model.tensors_by_type.insert(TensorType::Q4_0, total(1800));
        // 3,200 elements: 100 blocks of 34 bytes.
        let at_load = weights_at_load(&model, LoadQuantization::Q8_0);
        assert_eq!(at_load, 3400 + 1800);
        // Embedding and head, 2 · 32 · 32, stay at 34 bytes; 36 blocks take 18.
        let at_load = weights_at_load(&model, LoadQuantization::Q4_0);
        assert_eq!(at_load, 64 * 34 + 36 * 18 + 1800);
    }
}
