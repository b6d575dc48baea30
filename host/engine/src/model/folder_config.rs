//! A decoder's shape from the `config.json` of a folder.
//!
//! Source of the keys and of what they mean when absent: the configuration classes of Hugging
//! Face's `transformers`. Both its ways to write a rotation are read (`rope_theta` with
//! `rope_scaling`, and `rope_parameters`).

use serde_json::Value;

use super::ModelError;
use super::config::{Architecture, DecoderConfig, ExpertConfig, LayerKind, Rope, size};
use super::rope_scaling::RopeScaling;
use super::source::{ModelFolder, Settings};
use crate::inspect::language_settings;
use crate::kernels::RopeStyle;

pub(super) fn read(folder: &ModelFolder) -> Result<DecoderConfig, ModelError> {
    let whole = folder.config()?;
    let name = whole
        .text("model_type")?
        .ok_or_else(|| whole.error("model_type", "missing"))?;
    let Some(architecture) = Architecture::from_model_type(name) else {
        return Err(ModelError::Architecture {
            file: folder.path().display().to_string(),
            architecture: name.to_owned(),
        });
    };
    let config = language_settings(&whole)?;
    refuse_unknown_features(&whole, &config, architecture)?;
    let sizes = Sizes {
        config: &config,
        architecture,
    };
    let layers = sizes.required("num_hidden_layers")?;
    if layers > 1_024 {
        let problem = format!("{layers} layers; at most 1024 can be run");
        return Err(config.error("num_hidden_layers", problem));
    }
    let hidden = sizes.required("hidden_size")?;
    let heads = sizes.required("num_attention_heads")?;
    let head_dim = match sizes.get("head_dim")? {
        Some(dim) => dim,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    let (rope, local_rope) = ropes(&config, architecture, head_dim)?;
    let scale_dim = match architecture.is_gemma() {
        true => config.float("query_pre_attn_scalar")?.unwrap_or(256.0),
        false => head_dim as f64,
    };
    let gemma2 = |default: f32| (architecture == Architecture::Gemma2).then_some(default);
    let context_tokens = sizes.required("max_position_embeddings")?;
    let experts = experts(&config, architecture)?;
    let built = DecoderConfig {
        architecture,
        layers,
        hidden,
        feed_forward: sizes.required("intermediate_size")?,
        heads,
        kv_heads: sizes.get("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        vocabulary: sizes.required("vocab_size")?,
        context_tokens,
        rms_epsilon: config.float("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        attention_scale: (rope.scaling.score_factor() / scale_dim.sqrt()) as f32,
        attention_softcap: softcap(&config, "attn_logit_softcapping", gemma2(50.0))?,
        final_softcap: softcap(&config, "final_logit_softcapping", gemma2(30.0))?,
        tied: is_tied(&whole, &config, architecture)?,
        kinds: kinds(
            &config,
            architecture,
            layers,
            context_tokens,
            experts.is_some(),
        )?,
        experts,
        rope,
        local_rope,
    };
    built.check(&|what, problem| config.error(what, problem))
}

fn is_tied(
    whole: &Settings<'_>,
    config: &Settings<'_>,
    architecture: Architecture,
) -> Result<bool, ModelError> {
    let listed = match config.flag("tie_word_embeddings")? {
        Some(tied) => Some(tied),
        None => whole.flag("tie_word_embeddings")?,
    };
    Ok(listed.unwrap_or(architecture.is_gemma()))
}

/// An explicit null means none; only a key that is not there has a default.
fn softcap(
    config: &Settings<'_>,
    key: &str,
    default: Option<f32>,
) -> Result<Option<f32>, ModelError> {
    match config.has(key) {
        true => Ok(config.float(key)?.map(|cap| cap as f32)),
        false => Ok(default),
    }
}

/// Whole numbers, with the defaults on which Gemma's files rely.
struct Sizes<'a> {
    config: &'a Settings<'a>,
    architecture: Architecture,
}

impl Sizes<'_> {
    fn get(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let default = match (self.architecture, key) {
            (Architecture::Gemma2 | Architecture::Gemma3, "head_dim") => Some(256),
            (Architecture::Gemma3, "num_attention_heads") => Some(8),
            (Architecture::Gemma2 | Architecture::Gemma3, "num_key_value_heads") => Some(4),
            (Architecture::Gemma3, "vocab_size") => Some(262_208),
            (Architecture::Gemma3, "max_position_embeddings") => Some(131_072),
            (Architecture::Gemma2, "max_position_embeddings") => Some(8_192),
            _ => None,
        };
        Ok(self.config.uint(key)?.map(size).or(default))
    }

    fn required(&self, key: &str) -> Result<usize, ModelError> {
        self.get(key)?
            .ok_or_else(|| self.config.error(key, "missing"))
    }
}

fn refuse_unknown_features(
    whole: &Settings<'_>,
    config: &Settings<'_>,
    architecture: Architecture,
) -> Result<(), ModelError> {
    if whole.get("quantization_config").is_some() {
        let problem = "weights quantised by another library cannot be read; take the f32, f16 or \
                       bf16 folder, or a GGUF file";
        return Err(whole.error("quantization_config", problem));
    }
    let expected = match architecture.is_gemma() {
        true => "gelu_pytorch_tanh",
        false => "silu",
    };
    let key = match config.get("hidden_activation") {
        Some(_) => "hidden_activation",
        None => "hidden_act",
    };
    if let Some(name) = config.text(key)?
        && name != expected
    {
        let problem = format!("{name:?} cannot be run here; {expected:?} can");
        return Err(config.error(key, problem));
    }
    if config.flag("use_bidirectional_attention")? == Some(true) {
        let problem = "attention to later tokens cannot be run";
        return Err(config.error("use_bidirectional_attention", problem));
    }
    Ok(())
}

fn experts(
    config: &Settings<'_>,
    architecture: Architecture,
) -> Result<Option<ExpertConfig>, ModelError> {
    let required = |key: &str| {
        let value = config.uint(key)?.map(size);
        value.ok_or_else(|| config.error(key, "missing"))
    };
    let built = match architecture {
        Architecture::Mixtral => ExpertConfig {
            count: required("num_local_experts")?,
            used: required("num_experts_per_tok")?,
            feed_forward: required("intermediate_size")?,
            renormalise: true,
            shared_feed_forward: None,
        },
        Architecture::Qwen2Moe | Architecture::Qwen3Moe => ExpertConfig {
            count: required("num_experts")?,
            used: required("num_experts_per_tok")?,
            feed_forward: required("moe_intermediate_size")?,
            renormalise: config.flag("norm_topk_prob")?.unwrap_or(false),
            shared_feed_forward: match architecture {
                Architecture::Qwen2Moe => Some(required("shared_expert_intermediate_size")?),
                _ => None,
            },
        },
        _ => return Ok(None),
    };
    Ok(Some(built))
}

fn kinds(
    config: &Settings<'_>,
    architecture: Architecture,
    layers: usize,
    context_tokens: usize,
    has_experts: bool,
) -> Result<Vec<LayerKind>, ModelError> {
    let qwen = matches!(
        architecture,
        Architecture::Qwen2 | Architecture::Qwen3 | Architecture::Qwen2Moe | Architecture::Qwen3Moe
    );
    let default = match architecture {
        Architecture::Mistral | Architecture::Gemma2 | Architecture::Gemma3
            if !config.has("sliding_window") =>
        {
            Some(4_096)
        }
        _ => None,
    };
    let window = match qwen && config.flag("use_sliding_window")? != Some(true) {
        true => None,
        false => config.uint("sliding_window")?.map(size).or(default),
    };
    let listed = layer_types(config, layers)?;
    let first_local = config.uint("max_window_layers")?.map_or(0, size);
    let pattern = config.uint("sliding_window_pattern")?.map_or(6, size);
    if pattern == 0 {
        return Err(config.error("sliding_window_pattern", "0 layers are no pattern"));
    }
    let local = |layer: usize| match (&listed, architecture) {
        (Some(listed), _) => listed[layer],
        (None, Architecture::Gemma2) => layer.is_multiple_of(2),
        (None, Architecture::Gemma3) => !(layer + 1).is_multiple_of(pattern),
        _ => !qwen || layer >= first_local,
    };
    let step = config.uint("decoder_sparse_step")?.map_or(1, size).max(1);
    let dense = dense_layers(config)?;
    // A window that no sequence outgrows is none.
    let window = window.filter(|w| *w < context_tokens);
    Ok((0..layers)
        .map(|layer| LayerKind {
            window: window.filter(|_| local(layer)),
            local_rope: architecture == Architecture::Gemma3 && local(layer),
            sparse: has_experts && (layer + 1).is_multiple_of(step) && !dense.contains(&layer),
        })
        .collect())
}

/// Whether each layer sees a window only, where the file lists it.
fn layer_types(config: &Settings<'_>, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
    let Some(list) = config.list("layer_types")? else {
        return Ok(None);
    };
    if list.len() != layers {
        let problem = format!("{} entries for {layers} layers", list.len());
        return Err(config.error("layer_types", problem));
    }
    let local = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(config.error("layer_types", format!("{kind} cannot be run"))),
    };
    list.iter().map(local).collect::<Result<_, _>>().map(Some)
}

/// Layers of a mixture that have an ordinary feed-forward all the same.
fn dense_layers(config: &Settings<'_>) -> Result<Vec<usize>, ModelError> {
    let list = config.list("mlp_only_layers")?;
    let number = |layer: &Value| {
        let problem = "expected a list of layer numbers";
        let number = layer.as_u64().map(size);
        number.ok_or_else(|| config.error("mlp_only_layers", problem))
    };
    list.into_iter().flatten().map(number).collect()
}

fn ropes(
    config: &Settings<'_>,
    architecture: Architecture,
    head_dim: usize,
) -> Result<(Rope, Rope), ModelError> {
    let gemma3 = architecture == Architecture::Gemma3;
    let parameters = config.object("rope_parameters")?;
    let of_kind = |kind: &str| match &parameters {
        Some(parameters) if parameters.has(kind) => parameters.object(kind),
        _ => Ok(parameters.clone()),
    };
    let scaling_part = match of_kind("full_attention")? {
        Some(part) => Some(part),
        None => config.object("rope_scaling")?,
    };
    let base_in = |part: &Option<Settings<'_>>| match part {
        Some(part) => part.float("rope_theta"),
        None => Ok(None),
    };
    let default = if gemma3 { 1e6 } else { 1e4 };
    let base = match base_in(&of_kind("full_attention")?)? {
        Some(base) => base,
        None => config.float("rope_theta")?.unwrap_or(default),
    };
    let listed_local = match &parameters {
        Some(parameters) => base_in(&parameters.object("sliding_attention")?)?,
        None => None,
    };
    let local_base = match listed_local {
        Some(base) => base,
        None => config.float("rope_local_base_freq")?.unwrap_or(1e4),
    };
    let share = config.float("partial_rotary_factor")?.unwrap_or(1.0);
    let scaling = match &scaling_part {
        Some(part) => scaling(config, part)?,
        None => RopeScaling::None,
    };
    if share != 1.0 {
        let problem = format!("{share}: partly rotated heads cannot be run");
        return Err(config.error("partial_rotary_factor", problem));
    }
    let global = Rope {
        style: RopeStyle::HalfSplit,
        dim: head_dim,
        base,
        scaling,
    };
    let local = Rope {
        base: local_base,
        scaling: RopeScaling::None,
        ..global
    };
    Ok((global, local))
}

fn scaling(config: &Settings<'_>, part: &Settings<'_>) -> Result<RopeScaling, ModelError> {
    let kind = match part.text("rope_type")? {
        Some(kind) => Some(kind),
        None => part.text("type")?,
    };
    let required = |key: &str| {
        let value = part.float(key)?;
        value.ok_or_else(|| part.error(key, "missing"))
    };
    let original = || match part.float("original_max_position_embeddings")? {
        Some(tokens) => Ok(tokens),
        None => {
            let tokens = config.uint("max_position_embeddings")?;
            let key = "original_max_position_embeddings";
            tokens
                .map(|tokens| tokens as f64)
                .ok_or_else(|| part.error(key, "missing"))
        }
    };
    let scaling = match kind {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear {
            factor: required("factor")?,
        },
        Some("llama3") => RopeScaling::Llama3 {
            factor: required("factor")?,
            low_frequency_factor: required("low_freq_factor")?,
            high_frequency_factor: required("high_freq_factor")?,
            original_context: required("original_max_position_embeddings")?,
        },
        Some("yarn") => {
            for key in ["mscale", "mscale_all_dim"] {
                if part.get(key).is_some() {
                    return Err(part.error(key, "this form of yarn cannot be run"));
                }
            }
            RopeScaling::Yarn {
                factor: required("factor")?,
                original_context: original()?,
                beta_fast: part.float("beta_fast")?.unwrap_or(32.0),
                beta_slow: part.float("beta_slow")?.unwrap_or(1.0),
                attention_factor: part.float("attention_factor")?,
            }
        }
        Some(other) => {
            let problem = format!("{other:?} cannot be run; default, linear, llama3 and yarn can");
            return Err(part.error("rope_type", problem));
        }
    };
    match scaling.problem() {
        Some(problem) => Err(part.error("rope_type", problem)),
        None => Ok(scaling),
    }
}
