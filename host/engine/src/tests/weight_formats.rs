//! What the bytes of a weight mean, against somebody else's reading of them: candle's.

use candle_core::Device;
use candle_core::quantized::{GgmlDType, ggml_file::qtensor_from_ggml};

use crate::kernels::{BlockFormat, Matrix};
use crate::random::SplitMix;

#[test]
fn every_quantised_format_means_what_candle_says() {
    let formats: [(BlockFormat, GgmlDType, &[usize]); 8] = [
        (BlockFormat::Q4_0, GgmlDType::Q4_0, &[0]),
        (BlockFormat::Q4_1, GgmlDType::Q4_1, &[0, 2]),
        (BlockFormat::Q5_0, GgmlDType::Q5_0, &[0]),
        (BlockFormat::Q5_1, GgmlDType::Q5_1, &[0, 2]),
        (BlockFormat::Q8_0, GgmlDType::Q8_0, &[0]),
        (BlockFormat::Q4_K, GgmlDType::Q4K, &[0, 2]),
        (BlockFormat::Q5_K, GgmlDType::Q5K, &[0, 2]),
        (BlockFormat::Q6_K, GgmlDType::Q6K, &[208]),
    ];
    let (rows, cols) = (21, 512);
    for seed in 0..10 {
        let mut random = SplitMix::new(seed);
        for (format, dtype, scales) in &formats {
            let mut bytes: Vec<u8> = (0..rows * format.row_bytes(cols))
                .map(|_| random.next() as u8)
                .collect();
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                for at in *scales {
                    let scale = half::f16::from_f32(random.below(1000) as f32 / 500.0 - 1.0);
                    block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
            let theirs = qtensor_from_ggml(*dtype, &bytes, vec![rows, cols], &Device::Cpu)
                .and_then(|t| t.dequantize(&Device::Cpu))
                .and_then(|t| t.to_vec2::<f32>())
                .expect("candle reads it");
            let ours = Matrix::repack(*format, rows, cols, &bytes).expect("well formed");
            let mut row = vec![0.0; cols];
            for (i, theirs) in theirs.iter().enumerate() {
                ours.dequantize_row(i, &mut row);
                for (ours, theirs) in row.iter().zip(theirs) {
                    // The two round the sum of their two terms at different places.
                    let allowed = 1e-6 * theirs.abs() + 5e-4;
                    assert!(
                        (ours - theirs).abs() <= allowed,
                        "seed {seed}, {format:?}, row {i}: {ours} for {theirs}"
                    );
                }
            }
        }
    }
}
