//! Models: what a file must contain, and the forward pass over a ragged batch.
//!
//! One decoder runs every family on the CPU, and a second one, `candle`, on a GPU; [`config`] says in what they differ, [`weights`] reads them from a
//! GGUF file or a safetensors folder. What is not implemented is refused by naming the metadata key
//! or the tensor, because a model that runs with one feature ignored is fluent and wrong.

mod candle;
pub mod config;
pub mod decoder;
mod experts;
mod folder_config;
mod gguf_config;
pub mod rope_scaling;
pub mod source;
pub mod weights;

pub use candle::{CandleRunner, DeviceWeights};

use crate::gguf::GgufError;
use crate::kernels::KernelError;
use crate::safetensors::SafetensorsError;

/// A model whose content cannot be run. The fault is the file's, or this engine is too old for it.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    File(#[from] GgufError),
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    #[error("{file}: {problem}")]
    Unreadable { file: String, problem: String },
    #[error(
        "{file}: architecture {architecture:?} is not supported; this engine runs llama, mistral, mixtral, \
         qwen2, qwen3, their mixtures of experts, gemma2 and gemma3"
    )]
    Architecture { file: String, architecture: String },
    #[error("{file}: {key}: {problem}")]
    Config {
        file: String,
        key: String,
        problem: String,
    },
    #[error(transparent)]
    Kernel(#[from] KernelError),
}
