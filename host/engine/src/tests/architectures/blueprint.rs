//! Tiny models of every architecture, made from a seed, in both kinds of file.
//!
//! Every weight is a whole number of a power of two, with the greatest of each block of 32 columns
//! at ±127: f32, f16, bf16 and Q8_0 hold it exactly, so a comparison sees the arithmetic and never
//! the storage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::{Value, json};

use crate::random::SplitMix;
use crate::tests::tiny::{self, Writer};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
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

pub const FAMILIES: [Family; 9] = [
    Family::Llama,
    Family::Mistral,
    Family::Mixtral,
    Family::Qwen2,
    Family::Qwen3,
    Family::Qwen2Moe,
    Family::Qwen3Moe,
    Family::Gemma2,
    Family::Gemma3,
];

/// The shape of a tiny model, in the words of the papers.
#[derive(Debug, Clone)]
pub struct Blueprint {
    pub family: Family,
    pub layers: usize,
    pub hidden: usize,
    pub feed_forward: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocabulary: usize,
    pub context: usize,
    pub epsilon: f64,
    pub rope_base: f64,
    pub local_base: f64,
    /// A `rope_scaling` as `config.json` writes it.
    pub scaling: Option<Value>,
    pub window: Option<usize>,
    /// One layer in so many sees everything (Gemma 3).
    pub pattern: usize,
    pub tied: bool,
    /// The projection behind attention has a bias too.
    pub output_bias: bool,
    pub query_scalar: f64,
    pub attention_cap: f64,
    pub final_cap: f64,
    pub experts: usize,
    pub experts_used: usize,
    pub expert_width: usize,
    pub shared_width: usize,
    pub renormalise: bool,
    pub seed: u64,
}

pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Tensors under their safetensors names.
pub type Tensors = BTreeMap<String, Tensor>;

impl Blueprint {
    pub fn of(family: Family) -> Self {
        use Family::*;
        let gemma = matches!(family, Gemma2 | Gemma3);
        let mixture = matches!(family, Mixtral | Qwen2Moe | Qwen3Moe);
        // Where the head size is a number of its own, it is not hidden / heads here.
        let head_dim = match family {
            Qwen3 | Qwen3Moe | Gemma2 | Gemma3 => 32,
            _ => 16,
        };
        Self {
            family,
            layers: if family == Gemma3 { 7 } else { 2 },
            hidden: 64,
            feed_forward: 96,
            heads: 4,
            kv_heads: 2,
            head_dim,
            vocabulary: tiny::VOCABULARY,
            context: 512,
            epsilon: 1e-5,
            rope_base: 10_000.0,
            local_base: 300.0,
            scaling: match family {
                Llama => Some(json!({
                    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
                })),
                Qwen2 => Some(json!({
                    "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
                })),
                Gemma3 => Some(json!({"rope_type": "linear", "factor": 8.0})),
                _ => None,
            },
            window: matches!(family, Mistral | Gemma2 | Gemma3).then_some(24),
            pattern: 6,
            tied: gemma || family == Qwen3,
            output_bias: family == Llama,
            // Not the head size, as in the largest Gemmas.
            query_scalar: if gemma { 16.0 } else { head_dim as f64 },
            attention_cap: 5.0,
            final_cap: 4.0,
            experts: if mixture { 6 } else { 0 },
            experts_used: 2,
            expert_width: if family == Mixtral { 96 } else { 64 },
            shared_width: if family == Qwen2Moe { 128 } else { 0 },
            renormalise: family != Qwen2Moe,
            seed: 11 + family as u64,
        }
    }

    pub fn gemma(&self) -> bool {
        matches!(self.family, Family::Gemma2 | Family::Gemma3)
    }

    pub fn head_norms(&self) -> bool {
        matches!(
            self.family,
            Family::Qwen3 | Family::Qwen3Moe | Family::Gemma3
        )
    }

    pub fn biases(&self) -> bool {
        matches!(self.family, Family::Qwen2 | Family::Qwen2Moe)
    }

    /// The same with what the metadata of a GGUF file cannot say left at its default.
    pub fn within_gguf(mut self) -> Self {
        self.query_scalar = self.head_dim as f64;
        self
    }

    /// The same without what candle leaves out or does otherwise.
    pub fn within_candle(mut self) -> Self {
        self.window = None;
        self.output_bias = false;
        self.scaling = match self.family {
            Family::Llama => self.scaling,
            _ => None,
        };
        if self.gemma() {
            self.query_scalar = self.head_dim as f64;
        }
        self
    }

    pub fn model_type(&self) -> &'static str {
        match self.family {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Mixtral => "mixtral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Qwen2Moe => "qwen2_moe",
            Family::Qwen3Moe => "qwen3_moe",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3_text",
        }
    }

    pub fn gguf_name(&self) -> &'static str {
        match self.family {
            Family::Llama | Family::Mistral | Family::Mixtral => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Qwen2Moe => "qwen2moe",
            Family::Qwen3Moe => "qwen3moe",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3",
        }
    }

    pub fn tensors(&self) -> Tensors {
        let mut maker = Maker {
            random: SplitMix::new(self.seed),
            tensors: Tensors::new(),
        };
        let (hidden, vocabulary) = (self.hidden, self.vocabulary);
        maker.matrix("model.embed_tokens.weight", vocabulary, hidden, 8);
        if !self.tied {
            maker.matrix("lm_head.weight", vocabulary, hidden, 8);
        }
        let less = if self.gemma() { 1.0 } else { 0.0 };
        maker.norm("model.norm.weight", hidden, less);
        for layer in 0..self.layers {
            self.layer(&mut maker, &format!("model.layers.{layer}."), less);
        }
        maker.tensors
    }

    fn layer(&self, maker: &mut Maker, prefix: &str, less: f32) {
        let (hidden, wide) = (self.hidden, self.heads * self.head_dim);
        let narrow = self.kv_heads * self.head_dim;
        let name = |part: &str| format!("{prefix}{part}");
        let mut norms = vec!["input_layernorm", "post_attention_layernorm"];
        if self.gemma() {
            norms.extend(["pre_feedforward_layernorm", "post_feedforward_layernorm"]);
        }
        for norm in norms {
            maker.norm(&name(&format!("{norm}.weight")), hidden, less);
        }
        for (part, rows, exponent) in [("q", wide, 8), ("k", narrow, 8), ("v", narrow, 9)] {
            let weight = name(&format!("self_attn.{part}_proj.weight"));
            maker.matrix(&weight, rows, hidden, exponent);
            if self.biases() {
                maker.vector(&name(&format!("self_attn.{part}_proj.bias")), rows);
            }
        }
        if self.head_norms() {
            maker.norm(&name("self_attn.q_norm.weight"), self.head_dim, less);
            maker.norm(&name("self_attn.k_norm.weight"), self.head_dim, less);
        }
        maker.matrix(&name("self_attn.o_proj.weight"), hidden, wide, 9);
        if self.output_bias {
            maker.vector(&name("self_attn.o_proj.bias"), hidden);
        }
        if self.experts == 0 {
            self.gated(
                maker,
                &name("mlp."),
                ["gate_proj", "up_proj", "down_proj"],
                self.feed_forward,
            );
            return;
        }
        let (home, parts) = match self.family {
            Family::Mixtral => ("block_sparse_moe.", ["w1", "w3", "w2"]),
            _ => ("mlp.", ["gate_proj", "up_proj", "down_proj"]),
        };
        maker.matrix(
            &name(&format!("{home}gate.weight")),
            self.experts,
            hidden,
            8,
        );
        for expert in 0..self.experts {
            let prefix = name(&format!("{home}experts.{expert}."));
            self.gated(maker, &prefix, parts, self.expert_width);
        }
        if self.shared_width > 0 {
            let parts = ["gate_proj", "up_proj", "down_proj"];
            self.gated(maker, &name("mlp.shared_expert."), parts, self.shared_width);
            maker.matrix(&name("mlp.shared_expert_gate.weight"), 1, hidden, 9);
        }
    }

    fn gated(&self, maker: &mut Maker, prefix: &str, [gate, up, down]: [&str; 3], width: usize) {
        maker.matrix(&format!("{prefix}{gate}.weight"), width, self.hidden, 9);
        maker.matrix(&format!("{prefix}{up}.weight"), width, self.hidden, 9);
        maker.matrix(&format!("{prefix}{down}.weight"), self.hidden, width, 9);
    }

    /// `config.json`. What is set here is also read by candle.
    pub fn config(&self) -> Value {
        let mut config = json!({
            "model_type": self.model_type(),
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.epsilon,
            "rope_theta": self.rope_base,
            "tie_word_embeddings": self.tied,
            "attention_bias": false,
            "sliding_window": self.window,
            "eos_token_id": tiny::END,
        });
        let mut set = |key: &str, value: Value| config[key] = value;
        if let Some(scaling) = &self.scaling {
            set("rope_scaling", scaling.clone());
        }
        match self.gemma() {
            true => {
                set("hidden_activation", json!("gelu_pytorch_tanh"));
                set("query_pre_attn_scalar", json!(self.query_scalar as u64));
            }
            false => set("hidden_act", json!("silu")),
        }
        match self.family {
            Family::Gemma2 => {
                set("attn_logit_softcapping", json!(self.attention_cap));
                set("final_logit_softcapping", json!(self.final_cap));
            }
            Family::Gemma3 => {
                set("rope_local_base_freq", json!(self.local_base));
                set("sliding_window_pattern", json!(self.pattern));
            }
            _ => {}
        }
        if self.experts > 0 {
            set("num_experts_per_tok", json!(self.experts_used));
            set("num_local_experts", json!(self.experts));
            set("num_experts", json!(self.experts));
            set("moe_intermediate_size", json!(self.expert_width));
            set("norm_topk_prob", json!(self.renormalise));
            set("shared_expert_intermediate_size", json!(self.shared_width));
        }
        config
    }

    /// The model as one GGUF file: its bytes and the length of its header.
    pub fn gguf(&self) -> (Vec<u8>, usize) {
        let mut w = Writer::default();
        let name = self.gguf_name();
        w.text("general.architecture", name);
        for (key, value) in [
            ("block_count", self.layers),
            ("context_length", self.context),
            ("embedding_length", self.hidden),
            ("feed_forward_length", self.feed_forward),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("attention.sliding_window", self.window.unwrap_or(0)),
        ] {
            w.uint(&format!("{name}.{key}"), value as u32);
        }
        let float = |w: &mut Writer, key: &str, value: f64| {
            w.float(&format!("{name}.{key}"), value as f32);
        };
        float(&mut w, "attention.layer_norm_rms_epsilon", self.epsilon);
        float(&mut w, "rope.freq_base", self.rope_base);
        match self.family {
            Family::Gemma2 => {
                float(&mut w, "attn_logit_softcapping", self.attention_cap);
                float(&mut w, "final_logit_softcapping", self.final_cap);
            }
            Family::Gemma3 => float(&mut w, "rope.freq_base_swa", self.local_base),
            _ => {}
        }
        if self.experts > 0 {
            for (key, value) in [
                ("expert_count", self.experts),
                ("expert_used_count", self.experts_used),
                ("expert_feed_forward_length", self.expert_width),
                ("expert_shared_feed_forward_length", self.shared_width),
            ] {
                w.uint(&format!("{name}.{key}"), value as u32);
            }
        }
        self.gguf_scaling(&mut w);
        tiny::vocabulary(&mut w);
        self.gguf_tensors(&mut w);
        w.finish()
    }

    fn gguf_scaling(&self, w: &mut Writer) {
        let name = self.gguf_name();
        let Some(scaling) = &self.scaling else {
            return;
        };
        let number = |key: &str| scaling[key].as_f64().expect("a number");
        let kind = scaling.get("rope_type").or(scaling.get("type"));
        match kind.and_then(Value::as_str) {
            Some("llama3") => {
                let divisors = llama3_divisors(self, scaling);
                w.tensor("rope_freqs.weight", &[divisors.len()], divisors.into_iter());
            }
            Some(kind) => {
                w.text(&format!("{name}.rope.scaling.type"), kind);
                w.float(
                    &format!("{name}.rope.scaling.factor"),
                    number("factor") as f32,
                );
                if kind == "yarn" {
                    let original = number("original_max_position_embeddings") as u32;
                    w.uint(
                        &format!("{name}.rope.scaling.original_context_length"),
                        original,
                    );
                }
            }
            None => unreachable!("written above"),
        }
    }

    fn gguf_tensors(&self, w: &mut Writer) {
        let tensors = self.tensors();
        for (name, tensor) in &tensors {
            if name.contains(".experts.") {
                continue;
            }
            let (mut shape, mut values) = (tensor.shape.clone(), tensor.values.clone());
            if self.gguf_name() == "llama" {
                for (part, heads) in [("q_proj", self.heads), ("k_proj", self.kv_heads)] {
                    if name.contains(part) {
                        values = interleaved(&values, heads, self.head_dim, self.hidden);
                    }
                }
            }
            if self.gemma() && name.ends_with("norm.weight") {
                values.iter_mut().for_each(|v| *v += 1.0);
            }
            if name.ends_with("shared_expert_gate.weight") {
                shape.remove(0);
            }
            shape.reverse();
            w.tensor(
                &gguf_tensor_name(name, self.gemma()),
                &shape,
                values.into_iter(),
            );
        }
        if self.experts > 0 {
            self.gguf_experts(w, &tensors);
        }
    }

    /// All experts of a layer in one tensor, or, in the first layer of Mixtral, one tensor each: the
    /// old way.
    fn gguf_experts(&self, w: &mut Writer, tensors: &Tensors) {
        for layer in 0..self.layers {
            let (home, parts) = match self.family {
                Family::Mixtral => ("block_sparse_moe", ["w1", "w3", "w2"]),
                _ => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
            };
            for (part, word) in parts.into_iter().zip(["gate", "up", "down"]) {
                let of = |expert: usize| {
                    let prefix = format!("model.layers.{layer}.{home}.experts.{expert}");
                    &tensors[&format!("{prefix}.{part}.weight")]
                };
                let shape = &of(0).shape;
                if self.family == Family::Mixtral && layer == 0 {
                    for expert in 0..self.experts {
                        let name = format!("blk.{layer}.ffn_{word}.{expert}.weight");
                        let values = of(expert).values.iter().copied();
                        w.tensor(&name, &[shape[1], shape[0]], values);
                    }
                    continue;
                }
                let all = (0..self.experts).flat_map(|expert| of(expert).values.iter().copied());
                let name = format!("blk.{layer}.ffn_{word}_exps.weight");
                w.tensor(&name, &[shape[1], shape[0], self.experts], all);
            }
        }
    }

    /// Writes the GGUF file into `folder`.
    pub fn write_gguf(&self, folder: &Path) -> PathBuf {
        let path = folder.join(format!("{}.gguf", self.model_type()));
        std::fs::write(&path, self.gguf().0).expect("the folder is writable");
        path
    }

    /// Writes a safetensors folder of its own below `folder`, in this many shards.
    pub fn write_folder(&self, folder: &Path, stored: Stored, shards: usize) -> PathBuf {
        let path = folder.join(format!("{}-{stored:?}-{shards}", self.model_type()));
        std::fs::create_dir_all(&path).expect("the folder is writable");
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(path.join(name), bytes).expect("the folder is writable");
        };
        write("config.json", self.config().to_string().as_bytes());
        write("tokenizer.json", tokenizer_json().to_string().as_bytes());
        let settings = json!({
            "eos_token": {"content": "<|im_end|>"},
            "chat_template": tiny::TEMPLATE,
        });
        write("tokenizer_config.json", settings.to_string().as_bytes());
        let tensors = self.tensors();
        let listed: Vec<(&String, &Tensor)> = tensors.iter().collect();
        if shards == 1 {
            write("model.safetensors", &safetensors(&listed, stored));
            return path;
        }
        let mut map = serde_json::Map::new();
        let per_shard = listed.len().div_ceil(shards);
        for (i, part) in listed.chunks(per_shard).enumerate() {
            let name = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
            write(&name, &safetensors(part, stored));
            part.iter()
                .for_each(|(tensor, _)| drop(map.insert((*tensor).clone(), json!(name))));
        }
        let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
        write("model.safetensors.index.json", index.to_string().as_bytes());
        path
    }
}

struct Maker {
    random: SplitMix,
    tensors: Tensors,
}

impl Maker {
    fn put(&mut self, name: &str, shape: Vec<usize>, values: Vec<f32>) {
        self.tensors
            .insert(name.to_owned(), Tensor { shape, values });
    }

    /// Whole numbers from -127 to 127, uniform, times 2^-exponent.
    fn matrix(&mut self, name: &str, rows: usize, cols: usize, exponent: i32) {
        let unit = (-f64::from(exponent)).exp2() as f32;
        let mut values: Vec<f32> = (0..rows * cols)
            .map(|_| (self.random.below(255) as f32 - 127.0) * unit)
            .collect();
        for block in values.chunks_mut(32) {
            let at = self.random.below(block.len());
            block[at] = 127.0 * unit;
        }
        self.put(name, vec![rows, cols], values);
    }

    /// Multiples of 1/64 from 0.5 to 1.5, less `less`.
    fn norm(&mut self, name: &str, length: usize, less: f32) {
        let values = (0..length)
            .map(|_| 0.5 + self.random.below(65) as f32 / 64.0 - less)
            .collect();
        self.put(name, vec![length], values);
    }

    fn vector(&mut self, name: &str, length: usize) {
        let values = (0..length)
            .map(|_| self.random.below(129) as f32 / 32.0 - 2.0)
            .collect();
        self.put(name, vec![length], values);
    }
}

/// The rows of each head from halves to pairs: what the GGUF conversion does to llama files.
fn interleaved(values: &[f32], heads: usize, head_dim: usize, cols: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for i in 0..head_dim {
            let from = head * head_dim + i / 2 + i % 2 * (head_dim / 2);
            out.extend_from_slice(&values[from * cols..][..cols]);
        }
    }
    out
}

/// The published formula, by wavelength.
pub fn llama3_divisors(blueprint: &Blueprint, scaling: &Value) -> Vec<f32> {
    let number = |key: &str| scaling[key].as_f64().expect("a number");
    let original = number("original_max_position_embeddings");
    let (low, high) = (number("low_freq_factor"), number("high_freq_factor"));
    let factor = number("factor");
    (0..blueprint.head_dim / 2)
        .map(|i| {
            let exponent = 2.0 * i as f64 / blueprint.head_dim as f64;
            let wavelength = std::f64::consts::TAU * blueprint.rope_base.powf(exponent);
            let divisor = if wavelength < original / high {
                1.0
            } else if wavelength > original / low {
                factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            };
            divisor as f32
        })
        .collect()
}

fn gguf_tensor_name(name: &str, gemma: bool) -> String {
    let fixed = [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.norm.weight", "output_norm.weight"),
    ];
    if let Some((_, to)) = fixed.iter().find(|(from, _)| *from == name) {
        return (*to).to_owned();
    }
    let after_attention = match gemma {
        true => "post_attention_norm",
        false => "ffn_norm",
    };
    let mut name = name.replace("model.layers.", "blk.");
    for (from, to) in [
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", after_attention),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
        ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
        ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
        ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
        ("block_sparse_moe.gate", "ffn_gate_inp"),
        ("mlp.gate.", "ffn_gate_inp."),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ] {
        name = name.replace(from, to);
    }
    name
}

/// How a safetensors file stores floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    F32,
    F16,
    BF16,
}

/// The bytes of one safetensors file.
pub fn safetensors(tensors: &[(&String, &Tensor)], stored: Stored) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut data: Vec<u8> = Vec::new();
    for (name, tensor) in tensors {
        let begin = data.len();
        for value in &tensor.values {
            match stored {
                Stored::F32 => data.extend(value.to_le_bytes()),
                Stored::F16 => data.extend(f16::from_f32(*value).to_le_bytes()),
                Stored::BF16 => data.extend(bf16::from_f32(*value).to_le_bytes()),
            }
        }
        let about = json!({
            "dtype": format!("{stored:?}"),
            "shape": tensor.shape,
            "data_offsets": [begin, data.len()],
        });
        header.insert((*name).clone(), about);
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

/// The vocabulary of the tiny GGUF model as a `tokenizer.json`.
pub fn tokenizer_json() -> Value {
    let (tokens, merges) = tiny::words();
    let mut vocabulary = serde_json::Map::new();
    for (id, token) in tokens.iter().enumerate() {
        if !(256..258).contains(&id) {
            vocabulary.insert(token.clone(), json!(id));
        }
    }
    let added: Vec<Value> = (256..258)
        .map(|id| {
            json!({
                "id": id, "content": tokens[id], "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocabulary, "merges": merges,
        },
    })
}
