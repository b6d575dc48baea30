//! A decoder's shape from the metadata of a GGUF file.
//!
//! Source of the keys, and of what they leave unsaid (which layers of Gemma see a window, the
//! rotation base of Gemma 3's local layers, the score scale of its largest models): the GGUF
//! specification and the conversion of the ggml project.

use super::ModelError;
use super::config::{Architecture, DecoderConfig, ExpertConfig, LayerKind, Refuse, Rope, size};
use super::rope_scaling::RopeScaling;
use crate::gguf::{Gguf, GgufError};
use crate::kernels::RopeStyle;

/// Metadata under the architecture's prefix.
struct Keys<'a> {
    gguf: &'a Gguf,
    prefix: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn uint(&self, key: &str) -> Result<Option<usize>, GgufError> {
        Ok(self.gguf.uint(&self.name(key))?.map(size))
    }

    fn required(&self, key: &str) -> Result<usize, GgufError> {
        self.gguf.required_uint(&self.name(key)).map(size)
    }

    fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.gguf.float(&self.name(key))
    }

    fn error(&self, key: &str, problem: String) -> ModelError {
        ModelError::Config {
            file: self.gguf.path().display().to_string(),
            key: self.name(key),
            problem,
        }
    }
}

pub(super) fn read(gguf: &Gguf) -> Result<DecoderConfig, ModelError> {
    let file = gguf.path().display().to_string();
    let name = gguf.required_text("general.architecture")?;
    let Some(architecture) = Architecture::from_gguf_name(name) else {
        return Err(ModelError::Architecture {
            file,
            architecture: name.to_owned(),
        });
    };
    let keys = Keys { gguf, prefix: name };
    let layers = keys.required("block_count")?;
    if layers > 1_024 {
        let problem = format!("{layers} layers; at most 1024 can be run");
        return Err(keys.error("block_count", problem));
    }
    let hidden = keys.required("embedding_length")?;
    let heads = keys.required("attention.head_count")?;
    let by_division = hidden.checked_div(heads).unwrap_or(0);
    let head_dim = keys.uint("attention.key_length")?.unwrap_or(by_division);
    if let Some(value_dim) = keys.uint("attention.value_length")?
        && value_dim != head_dim
    {
        let problem = format!("{value_dim}, but keys have {head_dim} elements");
        return Err(keys.error("attention.value_length", problem));
    }
    let (rope, local_rope) = ropes(&keys, architecture, head_dim)?;
    let experts = experts(&keys, architecture)?;
    let vocabulary = gguf.tensor("token_embd.weight")?.shape.last().copied();
    let context_tokens = keys.required("context_length")?;
    let scale_dim = score_scale(architecture, layers, hidden, heads, head_dim);
    let float = |key: &str| keys.float(key).map(|v| v.map(|v| v as f32));
    let gemma2 = |default: f32| (architecture == Architecture::Gemma2).then_some(default);
    let config = DecoderConfig {
        architecture,
        layers,
        hidden,
        feed_forward: match (keys.uint("feed_forward_length")?, experts) {
            (Some(width), _) => width,
            (None, Some(experts)) => experts.feed_forward,
            (None, None) => keys.required("feed_forward_length")?,
        },
        heads,
        kv_heads: keys.uint("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        vocabulary: size(vocabulary.unwrap_or(0)),
        context_tokens,
        rms_epsilon: float("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
        attention_scale: (rope.scaling.score_factor() / scale_dim.sqrt()) as f32,
        attention_softcap: float("attn_logit_softcapping")?.or(gemma2(50.0)),
        final_softcap: float("final_logit_softcapping")?.or(gemma2(30.0)),
        tied: !gguf.header().tensors.contains_key("output.weight"),
        experts,
        kinds: kinds(&keys, architecture, layers, context_tokens)?,
        rope,
        local_rope,
    };
    let refuse: &Refuse<'_> = &|what, problem| ModelError::Config {
        file: file.clone(),
        key: what.to_owned(),
        problem,
    };
    config.check(refuse)
}

/// The number whose root divides the scores. The head size, but for the largest Gemmas, whose
/// metadata do not say that it is the hidden size by the heads; they are known by their depth.
fn score_scale(
    architecture: Architecture,
    layers: usize,
    hidden: usize,
    heads: usize,
    head_dim: usize,
) -> f64 {
    match (architecture, layers) {
        (Architecture::Gemma2, 46) | (Architecture::Gemma3, 62) => {
            hidden as f64 / heads.max(1) as f64
        }
        _ => head_dim as f64,
    }
}

fn kinds(
    keys: &Keys<'_>,
    architecture: Architecture,
    layers: usize,
    context_tokens: usize,
) -> Result<Vec<LayerKind>, ModelError> {
    let window = match (keys.uint("attention.sliding_window")?, architecture) {
        (None, Architecture::Gemma2) => Some(4_096),
        (window, _) => window.filter(|w| *w > 0),
    };
    // A window that no sequence outgrows is none.
    let window = window.filter(|w| *w < context_tokens);
    let local = |layer: usize| match architecture {
        Architecture::Gemma2 => layer.is_multiple_of(2),
        Architecture::Gemma3 => layer % 6 < 5,
        _ => true,
    };
    let sparse = |layer: usize| {
        let router = format!("blk.{layer}.ffn_gate_inp.weight");
        keys.gguf.header().tensors.contains_key(&router)
    };
    Ok((0..layers)
        .map(|layer| LayerKind {
            window: window.filter(|_| local(layer)),
            local_rope: architecture == Architecture::Gemma3 && local(layer),
            sparse: sparse(layer),
        })
        .collect())
}

fn experts(
    keys: &Keys<'_>,
    architecture: Architecture,
) -> Result<Option<ExpertConfig>, ModelError> {
    let Some(count) = keys.uint("expert_count")?.filter(|count| *count > 0) else {
        return Ok(None);
    };
    let dense = keys.uint("feed_forward_length")?;
    let feed_forward = match keys.uint("expert_feed_forward_length")?.or(dense) {
        Some(width) => width,
        None => keys.required("expert_feed_forward_length")?,
    };
    let shared = format!("blk.{}.ffn_up_shexp.weight", 0);
    let shared = keys.gguf.header().tensors.get(&shared);
    Ok(Some(ExpertConfig {
        count,
        used: keys.required("expert_used_count")?,
        feed_forward,
        renormalise: architecture != Architecture::Qwen2Moe,
        // Old files do not say its width; the tensor does.
        shared_feed_forward: match keys.uint("expert_shared_feed_forward_length")? {
            Some(width) => Some(width).filter(|w| *w > 0),
            None => shared.and_then(|t| t.shape.get(1)).map(|w| size(*w)),
        },
    }))
}

fn ropes(
    keys: &Keys<'_>,
    architecture: Architecture,
    head_dim: usize,
) -> Result<(Rope, Rope), ModelError> {
    let style = match architecture {
        Architecture::Llama => RopeStyle::Interleaved,
        _ => RopeStyle::HalfSplit,
    };
    let gemma3 = architecture == Architecture::Gemma3;
    let global = Rope {
        style,
        dim: keys.uint("rope.dimension_count")?.unwrap_or(head_dim),
        base: keys
            .float("rope.freq_base")?
            .unwrap_or(if gemma3 { 1e6 } else { 1e4 }),
        scaling: scaling(keys, head_dim)?,
    };
    let local = Rope {
        base: keys.float("rope.freq_base_swa")?.unwrap_or(1e4),
        scaling: RopeScaling::None,
        ..global
    };
    Ok((global, local))
}

fn scaling(keys: &Keys<'_>, head_dim: usize) -> Result<RopeScaling, ModelError> {
    let kind = keys.gguf.text(&keys.name("rope.scaling.type"))?;
    let old_factor = keys.float("rope.scale_linear")?;
    let factor = keys.float("rope.scaling.factor")?.or(old_factor);
    let number = |key: &str, default: f64| Ok(keys.float(key)?.unwrap_or(default));
    let scaling = match (kind, factor) {
        (Some("none"), _) | (None, None) => RopeScaling::None,
        (Some("linear") | None, Some(factor)) => RopeScaling::Linear { factor },
        (Some("yarn"), Some(factor)) => {
            let original = keys.uint("rope.scaling.original_context_length")?;
            let own = 0.1 * factor.ln() + 1.0;
            RopeScaling::Yarn {
                factor,
                original_context: match original {
                    Some(tokens) => tokens as f64,
                    None => keys.required("rope.scaling.original_context_length")? as f64,
                },
                beta_fast: number("rope.scaling.yarn_beta_fast", 32.0).map_err(|e: GgufError| e)?,
                beta_slow: number("rope.scaling.yarn_beta_slow", 1.0).map_err(|e: GgufError| e)?,
                // There it multiplies the usual factor.
                attention_factor: keys.float("rope.scaling.attn_factor")?.map(|f| f * own),
            }
        }
        (Some("linear" | "yarn"), None) => {
            let problem = "a scaling without a factor".to_owned();
            return Err(keys.error("rope.scaling.factor", problem));
        }
        (Some(other), _) => {
            let problem = format!("{other:?} cannot be run; none, linear and yarn can");
            return Err(keys.error("rope.scaling.type", problem));
        }
    };
    let partial = keys
        .uint("rope.dimension_count")?
        .is_some_and(|dim| dim != head_dim);
    if partial && matches!(scaling, RopeScaling::Yarn { .. }) {
        let problem = "yarn with partly rotated heads cannot be run".to_owned();
        return Err(keys.error("rope.dimension_count", problem));
    }
    match scaling.problem() {
        Some(problem) => Err(keys.error("rope.scaling", problem)),
        None => Ok(scaling),
    }
}
