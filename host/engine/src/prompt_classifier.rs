//! What a prompt asks for and how complex it is: NVIDIA's prompt-task-and-complexity-classifier.
//!
//! A DeBERTa backbone, the mean over its tokens, and one linear head for each of `target_sizes`;
//! what the heads' classes are worth is in [`heads`]. It runs candle's DeBERTa-v2 in f32 on the
//! CPU and reads a folder as NVIDIA publishes it. NVIDIA's weights were not available where this
//! was written: it is tested on weights that are made from a seed, against the published formula.
//! NVIDIA rounds its scores to three to five decimals; these are not rounded.
//!
//! It refuses, by name: maps that are missing or do not fit each other, heads of another number or
//! shape than `target_sizes` says, a backbone that nobody describes, one with a convolution, and
//! weights that give no number.

mod heads;

use std::path::Path;

use candle_core::Module;
use candle_nn::{Linear, VarBuilder};
use candle_transformers::models::debertav2::{Config, DebertaV2Model};
use serde_json::{Map, Value};

use crate::encoder::texts::{Batch, Computed, Texts};
use crate::encoder::{EncoderError, read, read_weights, refuse};

use heads::Heads;
pub use heads::{PROMPT_VECTOR, PromptScores};

/// What NVIDIA's classifier is made of. Its own `config.json` names the base model and does not
/// repeat the base model's settings.
const BASE_MODEL: &str = "microsoft/deberta-v3-base";
const BASE_MODEL_CONFIG: &str = include_str!("prompt_classifier/deberta-v3-base.json");

/// What to do about maps and heads that do not fit.
const AS_PUBLISHED: &str = "take config.json and model.safetensors as they were published \
                            together: a configuration that was saved again may have its keys in \
                            another order, and their order is that of the heads";

/// Tells what prompts ask for and how complex they are.
pub struct PromptClassifier {
    backbone: DebertaV2Model,
    linears: Vec<Linear>,
    heads: Heads,
    texts: Texts,
}

impl PromptClassifier {
    /// Reads `config.json`, `tokenizer.json` and `model.safetensors` from a folder.
    ///
    /// # Errors
    /// [`EncoderError::File`] with the file and what is wrong in it.
    pub fn load(folder: &Path) -> Result<Self, EncoderError> {
        let (path, bytes) = read(folder, "config.json")?;
        let written: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|e| refuse(&path, e))?;
        let heads = Heads::read(&written)
            .map_err(|problem| refuse(&path, format!("{problem}; {AS_PUBLISHED}")))?;
        let config = backbone_config(&written).map_err(|problem| refuse(&path, problem))?;
        let texts = Texts::read(
            folder,
            config.vocab_size,
            config.max_position_embeddings,
            config.pad_token_id.unwrap_or(0),
        )?;
        let (path, weights) = read_weights(folder)?;
        let linears = linears(&weights, config.hidden_size, &heads)
            .map_err(|problem| refuse(&path, format!("{problem}; {AS_PUBLISHED}")))?;
        let backbone = DebertaV2Model::load(weights.pp("backbone"), &config).map_err(|e| {
            let problem = format!("{e}; the backbone must be the one that config.json describes");
            refuse(&path, problem)
        })?;
        Ok(Self {
            backbone,
            linears,
            heads,
            texts,
        })
    }

    /// Tokens of a text beyond which the rest is ignored, control tokens included.
    pub fn max_tokens(&self) -> usize {
        self.texts.max_tokens()
    }

    /// Tokens of a text, control tokens included, without truncation.
    ///
    /// # Errors
    /// [`EncoderError::Tokenize`].
    pub fn count_tokens(&self, text: &str) -> Result<usize, EncoderError> {
        self.texts.count_tokens(text)
    }

    /// The scores of each text, in their order. Blocks for as long as it computes.
    ///
    /// # Errors
    /// [`EncoderError::Tokenize`], and [`EncoderError::Compute`] when the weights give no number.
    pub fn classify(&self, texts: &[&str]) -> Result<Vec<Computed<PromptScores>>, EncoderError> {
        self.texts.compute(texts, |batch| self.forward(batch))
    }

    fn forward(&self, batch: &Batch) -> Result<Vec<PromptScores>, EncoderError> {
        let mask = Some(batch.mask.clone());
        let hidden = self.backbone.forward(&batch.ids, None, mask)?;
        let pooled = batch.mean(&hidden)?;
        let mut logits: Vec<Vec<Vec<f32>>> = Vec::with_capacity(self.linears.len());
        for linear in &self.linears {
            logits.push(linear.forward(&pooled)?.to_vec2()?);
        }
        let rows = 0..pooled.dim(0)?;
        rows.map(|row| {
            let of_row: Vec<&[f32]> = logits.iter().map(|head| head[row].as_slice()).collect();
            let scores = self.heads.scores(&of_row);
            scores.map_err(|problem| candle_core::Error::Msg(problem).into())
        })
        .collect()
    }
}

/// The backbone's own settings: those in `config.json`, or those of the base model that it names.
fn backbone_config(written: &Map<String, Value>) -> Result<Config, String> {
    let base = written.get("base_model").and_then(Value::as_str);
    let config: Config = if written.contains_key("hidden_size") {
        let own = serde_json::from_value(Value::Object(written.clone()));
        own.map_err(|e| format!("the backbone's settings: {e}"))?
    } else if base.is_some_and(|base| base.eq_ignore_ascii_case(BASE_MODEL)) {
        let known = serde_json::from_str(BASE_MODEL_CONFIG);
        known.map_err(|e| format!("{BASE_MODEL}: {e}"))?
    } else {
        let base = base.map_or_else(|| "missing".to_owned(), |base| format!("{base:?}"));
        return Err(format!(
            "there is no hidden_size, and base_model is {base}: the only base model whose \
             settings are known here is {BASE_MODEL}. Add the keys of the base model's own \
             config.json to this one"
        ));
    };
    if config.hidden_size == 0
        || config.num_attention_heads == 0
        || config.max_position_embeddings < 2
    {
        let what = "hidden_size, num_attention_heads or max_position_embeddings is impossible";
        return Err(what.into());
    }
    match config.conv_kernel_size.unwrap_or(0) {
        0 => Ok(config),
        size => Err(format!(
            "conv_kernel_size is {size}: backbones with a convolution cannot be computed here, \
             take one without"
        )),
    }
}

/// `head_0.fc` and so on, one for each target.
fn linears(
    weights: &VarBuilder<'_>,
    hidden_size: usize,
    heads: &Heads,
) -> Result<Vec<Linear>, String> {
    let targets = heads.targets();
    let linear = |(i, (target, classes)): (usize, &(String, usize))| {
        let weights = weights.pp(format!("head_{i}.fc"));
        let linear = candle_nn::linear(hidden_size, *classes, weights);
        linear.map_err(|e| format!("head_{i}, which target_sizes says is {target}: {e}"))
    };
    let found = targets.iter().enumerate().map(linear);
    let found = found.collect::<Result<Vec<_>, _>>()?;
    let count = found.len();
    if weights.contains_tensor(&format!("head_{count}.fc.weight")) {
        return Err(format!(
            "there is a head_{count}, but target_sizes has {count} targets"
        ));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
