//! Weights as candle tensors on a device.
//!
//! Names, shapes, permutations, norms less 1 and what must not be left over are the business of
//! [`crate::model::weights`], which both runners share; this says only what becomes of the bytes.
//! Quantised tensors stay as they are in the file, and floats keep their type: a GPU has the memory
//! and no kernels of ours. It refuses float weights that are no numbers.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, ggml_file::qtensor_from_ggml};
use candle_core::{DType, Device, Result, Tensor};

use super::super::weights::{Packer, Role};
use crate::gguf::TensorType;

/// Copies tensors to a device.
pub struct Upload {
    pub(super) device: Device,
}

impl Packer for Upload {
    type Matrix = QMatMul;
    /// `[length]` in f32; `None` where the file has none.
    type Vector = Option<Tensor>;

    fn matrix(
        &self,
        kind: TensorType,
        _role: Role,
        (rows, cols): (usize, usize),
        bytes: &[u8],
    ) -> std::result::Result<QMatMul, String> {
        let made = match storage(kind) {
            Storage::Float(_) if !is_finite(kind, bytes) => {
                return Err("a weight is not a finite number".into());
            }
            Storage::Float(dtype) => {
                let tensor = Tensor::from_raw_buffer(bytes, dtype, &[rows, cols], &self.device);
                tensor.map(QMatMul::Tensor)
            }
            Storage::Quantized(dtype) => {
                let tensor = qtensor_from_ggml(dtype, bytes, vec![rows, cols], &self.device);
                tensor.map(|tensor| QMatMul::QTensor(Arc::new(tensor)))
            }
        };
        made.map_err(|e| e.to_string())
    }

    fn vector(&self, values: Vec<f32>) -> std::result::Result<Option<Tensor>, String> {
        if values.is_empty() {
            return Ok(None);
        }
        let length = values.len();
        let tensor = Tensor::from_vec(values, length, &self.device);
        tensor.map(Some).map_err(|e| e.to_string())
    }

    /// Every tensor has an allocation of its own on the device.
    fn gather(&self, _matrices: &mut [&mut QMatMul]) {}
}

enum Storage {
    Float(DType),
    Quantized(GgmlDType),
}

fn storage(kind: TensorType) -> Storage {
    Storage::Quantized(match kind {
        TensorType::F32 => return Storage::Float(DType::F32),
        TensorType::F16 => return Storage::Float(DType::F16),
        TensorType::BF16 => return Storage::Float(DType::BF16),
        TensorType::Q4_0 => GgmlDType::Q4_0,
        TensorType::Q4_1 => GgmlDType::Q4_1,
        TensorType::Q5_0 => GgmlDType::Q5_0,
        TensorType::Q5_1 => GgmlDType::Q5_1,
        TensorType::Q8_0 => GgmlDType::Q8_0,
        TensorType::Q2_K => GgmlDType::Q2K,
        TensorType::Q3_K => GgmlDType::Q3K,
        TensorType::Q4_K => GgmlDType::Q4K,
        TensorType::Q5_K => GgmlDType::Q5K,
        TensorType::Q6_K => GgmlDType::Q6K,
    })
}

/// No exponent of all ones among the floats of a tensor.
fn is_finite(kind: TensorType, bytes: &[u8]) -> bool {
    let halves = |ones: u16| {
        let mut words = bytes.as_chunks().0.iter();
        words.all(|b| u16::from_le_bytes(*b) & ones != ones)
    };
    match kind {
        TensorType::F16 => halves(0x7C00),
        TensorType::BF16 => halves(0x7F80),
        _ => {
            let mut words = bytes.as_chunks().0.iter();
            words.all(|b| f32::from_le_bytes(*b).is_finite())
        }
    }
}

/// Activations in the type that these weights multiply: once for all matrices that take them.
pub(super) fn as_input(weights: &QMatMul, x: &Tensor) -> Result<Tensor> {
    match weights {
        QMatMul::QTensor(_) => x.to_dtype(DType::F32),
        QMatMul::Tensor(weights) | QMatMul::TensorF16(weights) => x.to_dtype(weights.dtype()),
    }
}

/// `x · wᵀ`: `[rows, cols]` to `[rows, outputs]` in f32. Float weights multiply in their own type,
/// so activations are rounded to it.
pub(super) fn multiply(weights: &QMatMul, x: &Tensor) -> Result<Tensor> {
    let x = as_input(weights, x)?;
    match weights {
        QMatMul::QTensor(weights) => x.apply_op1_no_bwd(weights.as_ref()),
        QMatMul::Tensor(weights) | QMatMul::TensorF16(weights) => {
            x.matmul(&weights.t()?)?.to_dtype(DType::F32)
        }
    }
}

/// The rows of the embedding of these tokens, `[tokens, hidden]` in f32.
pub(super) fn embed(weights: &QMatMul, tokens: &Tensor) -> Result<Tensor> {
    match weights {
        QMatMul::QTensor(weights) => weights.embedding(tokens)?.to_dtype(DType::F32),
        QMatMul::Tensor(weights) | QMatMul::TensorF16(weights) => {
            weights.index_select(tokens, 0)?.to_dtype(DType::F32)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{BlockFormat, Matrix};
    use crate::random::SplitMix;

    /// Quantised types, ours and the GGUF's name of each, and where the f16 scales of a block lie.
    const TYPES: [(BlockFormat, TensorType, &[usize]); 4] = [
        (BlockFormat::Q4_1, TensorType::Q4_1, &[0, 2]),
        (BlockFormat::Q8_0, TensorType::Q8_0, &[0]),
        (BlockFormat::Q4_K, TensorType::Q4_K, &[0, 2]),
        (BlockFormat::Q6_K, TensorType::Q6_K, &[208]),
    ];

    #[test]
    fn quantised_bytes_multiply_and_embed_as_this_engine_reads_them() {
        let (rows, cols) = (24, 512);
        let upload = Upload {
            device: Device::Cpu,
        };
        for (format, kind, scales) in TYPES {
            let mut random = SplitMix::new(7);
            let mut bytes: Vec<u8> = (0..rows * format.row_bytes(cols))
                .map(|_| random.next() as u8)
                .collect();
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                for at in scales {
                    let scale = half::f16::from_f32(random.below(1000) as f32 / 500.0 - 1.0);
                    block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
            let ours = Matrix::repack(format, rows, cols, &bytes).expect("well formed");
            let theirs = upload
                .matrix(kind, Role::Inner, (rows, cols), &bytes)
                .expect("candle reads it");
            let x: Vec<f32> = (0..cols)
                .map(|_| random.below(2001) as f32 / 1000.0 - 1.0)
                .collect();
            let input = Tensor::from_slice(&x, (1, cols), &Device::Cpu).expect("a row");
            let products = multiply(&theirs, &input).and_then(|t| t.flatten_all()?.to_vec1());
            let products: Vec<f32> = products.expect("a product");
            let tokens = Tensor::new(&[5u32, 23, 0], &Device::Cpu).expect("tokens");
            let embedded = embed(&theirs, &tokens).and_then(|t| t.to_vec2::<f32>());
            let embedded = embedded.expect("an embedding");
            let mut row = vec![0.0; cols];
            for (i, product) in products.iter().enumerate() {
                ours.dequantize_row(i, &mut row);
                let terms = row.iter().zip(&x).map(|(w, x)| w * x);
                let (exact, size) = terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
                // Activations are rounded to 8 bits.
                let gap = (product - exact).abs();
                assert!(gap <= 0.01 * size, "{kind} row {i}: {product} for {exact}");
            }
            for (token, embedded) in [5, 23, 0].into_iter().zip(embedded) {
                ours.dequantize_row(token, &mut row);
                for (ours, theirs) in row.iter().zip(embedded) {
                    let allowed = 1e-6 * theirs.abs() + 5e-4;
                    assert!((ours - theirs).abs() <= allowed, "{kind}: {ours} {theirs}");
                }
            }
        }
    }

    #[test]
    fn a_float_that_is_no_number_is_refused() {
        let upload = Upload {
            device: Device::Cpu,
        };
        for (kind, bad) in [
            (TensorType::F32, f32::NAN.to_le_bytes().to_vec()),
            (TensorType::F16, half::f16::INFINITY.to_le_bytes().to_vec()),
            (TensorType::BF16, half::bf16::NAN.to_le_bytes().to_vec()),
        ] {
            let made = |bytes: &[u8]| upload.matrix(kind, Role::Inner, (1, 1), bytes);
            let error = made(&bad).expect_err("no number");
            assert!(error.contains("not a finite number"), "{error}");
            assert!(made(&vec![0; bad.len()]).is_ok(), "{kind}");
        }
    }
}
