//! Model architectures: what a file must contain, and the forward pass over a ragged batch.
//!
//! One module per family. Each refuses what it does not implement by naming the metadata key or
//! the tensor, because a model that runs with one feature ignored is fluent and wrong.

pub mod llama;
pub mod source;

use crate::gguf::{Gguf, GgufError, TensorInfo, TensorType};
use crate::kernels::{BlockFormat, KernelError, Matrix};
use crate::safetensors::SafetensorsError;

/// A model file whose content cannot be run. The fault is the file's, or this engine is too old for it.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    File(#[from] GgufError),
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    #[error("{file}: {problem}")]
    Unreadable { file: String, problem: String },
    #[error("{file}: architecture {architecture:?} is not supported; this engine runs llama")]
    Architecture { file: String, architecture: String },
    #[error("{file}: {key}: {problem}")]
    Config {
        file: String,
        key: String,
        problem: String,
    },
    #[error("{file}: tensor {tensor}: {source}")]
    Weights {
        file: String,
        tensor: String,
        source: KernelError,
    },
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// Reads tensors, checks their shapes and repacks them; the buffer is reused from one to the next.
pub(crate) struct WeightReader<'a> {
    gguf: &'a Gguf,
    buffer: Vec<u8>,
}

impl<'a> WeightReader<'a> {
    pub fn new(gguf: &'a Gguf) -> Self {
        Self {
            gguf,
            buffer: Vec::new(),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.gguf.header().tensors.contains_key(name)
    }

    /// A matrix of `rows` outputs by `cols` inputs.
    pub fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix, ModelError> {
        let info = self.fetch(name, &[cols as u64, rows as u64])?;
        let format = match info.kind {
            TensorType::Q4_0 => BlockFormat::Q4_0,
            TensorType::Q4_1 => BlockFormat::Q4_1,
            TensorType::Q5_0 => BlockFormat::Q5_0,
            TensorType::Q5_1 => BlockFormat::Q5_1,
            TensorType::Q8_0 => BlockFormat::Q8_0,
            TensorType::Q4_K => BlockFormat::Q4_K,
            TensorType::Q5_K => BlockFormat::Q5_K,
            TensorType::Q6_K => BlockFormat::Q6_K,
            TensorType::F32 => BlockFormat::F32,
            TensorType::F16 => BlockFormat::F16,
            TensorType::BF16 => BlockFormat::BF16,
            other => {
                let problem = format!(
                    "type {other} cannot be run; this engine runs Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, F16, BF16 and F32"
                );
                return Err(self.gguf.tensor_error(info, problem).into());
            }
        };
        Matrix::repack(format, rows, cols, &self.buffer).map_err(|source| ModelError::Weights {
            file: self.gguf.path().display().to_string(),
            tensor: name.to_owned(),
            source,
        })
    }

    /// A short list of floats: norm weights, frequency factors.
    pub fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, ModelError> {
        let info = self.fetch(name, &[length as u64])?;
        let values: Vec<f32> = match info.kind {
            TensorType::F32 => self
                .buffer
                .as_chunks()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
            TensorType::F16 => self
                .buffer
                .as_chunks()
                .0
                .iter()
                .map(|b| half::f16::from_le_bytes(*b).to_f32())
                .collect(),
            TensorType::BF16 => self
                .buffer
                .as_chunks()
                .0
                .iter()
                .map(|b| half::bf16::from_le_bytes(*b).to_f32())
                .collect(),
            other => {
                return Err(self
                    .gguf
                    .tensor_error(info, format!("type {other} for a vector; F32 is expected"))
                    .into());
            }
        };
        if values.iter().any(|v| !v.is_finite()) {
            return Err(self
                .gguf
                .tensor_error(info, "a weight is not a finite number".into())
                .into());
        }
        Ok(values)
    }

    fn fetch(&mut self, name: &str, shape: &[u64]) -> Result<&'a TensorInfo, ModelError> {
        let info = self.gguf.tensor(name)?;
        if info.shape != shape {
            let problem = format!("shape {:?}, but the metadata says {shape:?}", info.shape);
            return Err(self.gguf.tensor_error(info, problem).into());
        }
        self.gguf.read_tensor(info, &mut self.buffer)?;
        Ok(info)
    }
}
