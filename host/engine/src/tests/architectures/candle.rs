//! The same weights in candle-transformers, in f32: what says that the reference itself is right.
//!
//! Its models give the logits of the last position only, and several keep caches that go wrong when
//! they are fed in pieces, so every position is computed from its whole prefix by a fresh model.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{
    gemma2, gemma3, llama, mistral, mixtral, qwen2, qwen2_moe, qwen3, qwen3_moe,
};
use serde_json::{Value, json};

use super::blueprint::{Blueprint, Family, Tensors};

/// candle's names for what `config.json` says, and what it wants besides.
fn config(blueprint: &Blueprint) -> Value {
    let mut config = blueprint.config();
    let mut set = |key: &str, value: Value| config[key] = value;
    // candle's windows see one position more than they say; no test of these outgrows one.
    if !matches!(
        blueprint.family,
        Family::Mistral | Family::Qwen3 | Family::Qwen3Moe
    ) {
        set("sliding_window", json!(4_096));
    }
    set("max_window_layers", json!(0));
    set("use_sliding_window", json!(false));
    set("use_flash_attn", json!(false));
    set("decoder_sparse_step", json!(1));
    if !blueprint.gemma() {
        set("hidden_act", json!(Activation::Silu));
    }
    config
}

fn read<T: serde::de::DeserializeOwned>(config: Value) -> T {
    serde_json::from_value(config).expect("candle reads the config")
}

/// The logits after `tokens`.
fn last(blueprint: &Blueprint, weights: VarBuilder<'_>, tokens: &[u32]) -> Result<Vec<f32>> {
    let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
    let (w, config) = (weights, config(blueprint));
    let logits = match blueprint.family {
        Family::Llama => {
            let config = read::<llama::LlamaConfig>(config).into_config(false);
            let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
            llama::Llama::load(w, &config)?.forward(&input, 0, &mut cache)?
        }
        Family::Mistral => mistral::Model::new(&read(config), w)?.forward(&input, 0)?,
        Family::Mixtral => mixtral::Model::new(&read(config), w)?.forward(&input, 0)?,
        Family::Qwen2 => qwen2::ModelForCausalLM::new(&read(config), w)?.forward(&input, 0)?,
        Family::Qwen3 => qwen3::ModelForCausalLM::new(&read(config), w)?.forward(&input, 0)?,
        Family::Qwen2Moe => qwen2_moe::Model::new(&read(config), w)?.forward(&input, 0)?,
        Family::Qwen3Moe => {
            qwen3_moe::ModelForCausalLM::new(&read(config), w)?.forward(&input, 0)?
        }
        Family::Gemma2 => gemma2::Model::new(false, &read(config), w)?.forward(&input, 0)?,
        Family::Gemma3 => unreachable!("fed token by token"),
    };
    logits.flatten_all()?.to_vec1()
}

/// Logits at every position.
pub fn logits(blueprint: &Blueprint, tensors: &Tensors, tokens: &[u32]) -> Vec<Vec<f32>> {
    let named: HashMap<String, Tensor> = tensors
        .iter()
        .map(|(name, tensor)| {
            let values = tensor.values.clone();
            let loaded = Tensor::from_vec(values, tensor.shape.clone(), &Device::Cpu);
            (name.clone(), loaded.expect("a tensor"))
        })
        .collect();
    let weights = VarBuilder::from_tensors(named, DType::F32, &Device::Cpu);
    if blueprint.family == Family::Gemma3 {
        return gemma3_logits(blueprint, weights, tokens).expect("candle computes");
    }
    (1..=tokens.len())
        .map(|length| last(blueprint, weights.clone(), &tokens[..length]).expect("candle computes"))
        .collect()
}

/// Its cache takes one token at a time only: the values of several lie in an order that it refuses.
fn gemma3_logits(
    blueprint: &Blueprint,
    weights: VarBuilder<'_>,
    tokens: &[u32],
) -> Result<Vec<Vec<f32>>> {
    let mut model = gemma3::Model::new(false, &read(config(blueprint)), weights)?;
    let mut one = |(position, token): (usize, &u32)| {
        let input = Tensor::new(&[[*token]], &Device::Cpu)?;
        model.forward(&input, position)?.flatten_all()?.to_vec1()
    };
    tokens.iter().enumerate().map(&mut one).collect()
}
