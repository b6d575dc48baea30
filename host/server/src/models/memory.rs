//! What a model takes of a machine's memory: weights, KV cache, scratch.
//!
//! Weights are the bytes of the quantised tensors, since the engine repacks them at load into
//! forms of the same size and drops the original; floats count as what they become. The KV cache is exact: keys and values of every
//! layer in f16, in whole blocks per sequence, and nobody is preempted while all sequences
//! have their full length. Scratch is the arithmetic of a step's buffers and of the rotation's
//! angles, from above. A draft model takes all three as well, beside `kv_bytes`.
//!
//! It refuses to guess where a header lacks a factor: then the answer is "not said".

use homeostat_engine::block::BLOCK_SIZE;
use homeostat_engine::{Inspection, LoadQuantization, max_logit_rows};
use serde::Serialize;

/// The rest of the host: process, policies, HTTP, tokenizer. Measured resident size of a
/// server in its default configuration (encoder, three embedded policies) after some answers, less
/// the weights, KV and scratch of its one tier: 203 MiB, and some to spare.
const HOST_BYTES: u64 = 224 << 20;

/// What a step's buffers take: of each row, of each row with logits, and of each position that a
/// sequence may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scratch {
    row: u64,
    logit_row: u64,
    position: u64,
}

impl Scratch {
    /// Activations of the widest layer in f32 with a quantised copy beside them, the logits, and
    /// the angles by which heads are rotated.
    fn of(model: &Inspection) -> Option<Self> {
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
        // Gemma 3 rotates some layers otherwise than the rest.
        let rotations = 1 + u64::from(model.architecture.starts_with("gemma3"));
        Some(Self {
            // 4 bytes as f32 and at most 2 for the quantised copy.
            row: per_row.checked_mul(6)?,
            // The row that is selected, and its logits.
            logit_row: model
                .vocabulary?
                .checked_add(model.hidden?)?
                .checked_mul(4)?,
            // A sine and a cosine in f32 for two elements of a head.
            position: model.head_dim?.checked_mul(4 * rotations)?,
        })
    }

    fn bytes(&self, rows: u64, logit_rows: u64, positions: u64) -> Option<u64> {
        let parts = [
            self.row.checked_mul(rows)?,
            self.logit_row.checked_mul(logit_rows)?,
            self.position.checked_mul(positions)?,
        ];
        parts.into_iter().try_fold(0, u64::checked_add)
    }
}

/// What one model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    /// 0 where a folder has a config.json only.
    weight_bytes: u64,
    kv_bytes_per_token: u64,
    scratch: Scratch,
}

impl Share {
    fn of(model: &Inspection, target: LoadQuantization) -> Option<Self> {
        Some(Self {
            weight_bytes: weights_at_load(model, target),
            kv_bytes_per_token: model.kv_bytes_per_token.filter(|b| *b > 0)?,
            scratch: Scratch::of(model)?,
        })
    }

    /// Of `batch` sequences of `context` tokens each, in whole blocks.
    fn kv_bytes(&self, context: u64, batch: u64) -> Option<u64> {
        let block = BLOCK_SIZE as u64;
        context
            .div_ceil(block)
            .checked_mul(block)?
            .checked_mul(batch)?
            .checked_mul(self.kv_bytes_per_token)
    }
}

/// What a model takes whatever is asked of it, and what each token of a sequence adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// 0 where a folder has a config.json only.
    pub weight_bytes: u64,
    pub kv_bytes_per_token: u64,
    pub host_bytes: u64,
    /// The model's own limit.
    pub context_tokens: Option<u64>,
    #[serde(skip)]
    own: Share,
    /// Of the model that guesses ahead for it.
    #[serde(skip)]
    draft: Option<Share>,
    #[serde(skip)]
    max_batch_tokens: u64,
}

impl Footprint {
    /// `None` where the header lacks what the sums need. `max_batch_tokens` is what is configured.
    pub fn of(
        model: &Inspection,
        draft: Option<&Inspection>,
        target: LoadQuantization,
        max_batch_tokens: u64,
    ) -> Option<Self> {
        let own = Share::of(model, target)?;
        let draft = match draft {
            Some(draft) => Some(Share::of(draft, target)?),
            None => None,
        };
        Some(Self {
            weight_bytes: own.weight_bytes,
            kv_bytes_per_token: own.kv_bytes_per_token,
            host_bytes: HOST_BYTES,
            context_tokens: model.context_tokens,
            own,
            draft,
            max_batch_tokens,
        })
    }

    /// What `batch` sequences of `context` tokens each take.
    pub fn demand(&self, context: u64, batch: u64) -> Option<Demand> {
        // An engine wants a row for each running sequence, and one for a prompt.
        let rows = self.max_batch_tokens.max(batch.checked_add(1)?);
        let logit_rows = max_logit_rows(usize::try_from(batch).ok()?, usize::try_from(rows).ok()?);
        let scratch = |share: &Share| share.scratch.bytes(rows, logit_rows as u64, context);
        let kv_bytes = self.own.kv_bytes(context, batch)?;
        let scratch_bytes = scratch(&self.own)?;
        let draft_bytes = match &self.draft {
            // As many blocks as the model that it guesses for has.
            Some(draft) => [draft.weight_bytes, scratch(draft)?]
                .into_iter()
                .try_fold(draft.kv_bytes(context, batch)?, u64::checked_add)?,
            None => 0,
        };
        let parts = [
            self.weight_bytes,
            scratch_bytes,
            draft_bytes,
            self.host_bytes,
            kv_bytes,
        ];
        Some(Demand {
            context_tokens: context,
            batch,
            kv_bytes,
            scratch_bytes,
            draft_bytes,
            max_batch_tokens: (rows > self.max_batch_tokens).then_some(rows),
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
    /// What `kv_bytes` must be.
    pub kv_bytes: u64,
    /// Buffers of a step, and rotation angles.
    pub scratch_bytes: u64,
    /// All of the draft model; 0 without one.
    pub draft_bytes: u64,
    /// What must be configured, where that is more than what is.
    pub max_batch_tokens: Option<u64>,
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

    fn of(model: &Inspection) -> Option<Footprint> {
        Footprint::of(model, None, LoadQuantization::Q8_0, 256)
    }

    #[test]
    fn scratch_grows_with_rows_logits_and_positions() {
        let footprint = of(&from_config(LLAMA_3_70B)).unwrap();
        let demand = |context, batch| footprint.demand(context, batch).unwrap();
        let scratch = |context, batch| demand(context, batch).scratch_bytes;
        let logit_row = (128_256 + 8_192) * 4;
        // Up to 64 sequences an engine has 64 rows of logits.
        assert_eq!(scratch(1024, 1), scratch(1024, 64));
        assert_eq!(scratch(1024, 255) - scratch(1024, 64), 191 * logit_row);
        assert_eq!(demand(1024, 255).max_batch_tokens, None);
        // One more takes one more row of a step.
        let row = 6 * (4 * 8_192 + 80 * 128 + 2 * 28_672);
        assert_eq!(scratch(1024, 256) - scratch(1024, 255), row + logit_row);
        assert_eq!(demand(1024, 256).max_batch_tokens, Some(257));
        // A head has 128 elements: 64 sines, 64 cosines.
        assert_eq!(scratch(1025, 1) - scratch(1024, 1), 128 * 4);
    }

    #[test]
    fn a_draft_model_takes_its_weights_scratch_and_as_many_blocks_beside_kv_bytes() {
        let model = from_config(LLAMA_3_70B);
        let draft = LLAMA_3_70B.replace("\"num_hidden_layers\": 80", "\"num_hidden_layers\": 8");
        let draft = from_config(&draft);
        let with = Footprint::of(&model, Some(&draft), LoadQuantization::Q8_0, 256).unwrap();
        let (with, without) = (with.demand(4096, 4), of(&model).unwrap().demand(4096, 4));
        let (with, without) = (with.unwrap(), without.unwrap());
        let alone = of(&draft).unwrap().demand(4096, 4).unwrap();
        assert_eq!(with.kv_bytes, without.kv_bytes);
        assert_eq!(with.draft_bytes, alone.kv_bytes + alone.scratch_bytes);
        assert_eq!(with.total_bytes, without.total_bytes + with.draft_bytes);
    }

    #[test]
    fn llama_3_70b_takes_320_kib_a_token_and_40_gib_for_each_of_three_shapes() {
        let model = from_config(LLAMA_3_70B);
        let footprint = of(&model).unwrap();
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
        let footprint = of(&from_config(LLAMA_3_70B)).unwrap();
        let block = BLOCK_SIZE as u64 * footprint.kv_bytes_per_token;
        let kv = |context, batch| footprint.demand(context, batch).unwrap().kv_bytes;
        assert_eq!(kv(1, 3), 3 * block);
        assert_eq!(kv(BLOCK_SIZE as u64 + 1, 1), 2 * block);
    }

    #[test]
    fn absurd_shapes_are_no_numbers_rather_than_wrong_ones() {
        let footprint = of(&from_config(LLAMA_3_70B)).unwrap();
        assert_eq!(footprint.demand(u64::MAX / 2, 2), None);
        assert_eq!(footprint.demand(1 << 40, 1 << 20), None);
        let lacking = LLAMA_3_70B.replace("\"num_hidden_layers\": 80,", "");
        assert_eq!(of(&from_config(&lacking)), None);
    }

    #[test]
    fn what_is_lacking_is_said_to_the_byte() {
        let footprint = of(&from_config(LLAMA_3_70B)).unwrap();
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
