//! What the engine relies on: the right numbers, and the same bits whatever else is in the batch.

use half::{bf16, f16};

use super::*;

/// A small generator (splitmix64), so that failures repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Between -1 and 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Values of very different sizes, as activations are.
pub(super) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..len)
        .map(|_| random.unit() * (random.unit() * 3.0).exp())
        .collect()
}

/// A well-formed file's bytes: random quants, scales between 0.002 and 0.02.
pub(super) fn random_bytes(format: BlockFormat, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = Vec::new();
    for _ in 0..rows * cols / format.block_cols() {
        let mut block: Vec<u8> = (0..format.block_bytes())
            .map(|_| random.next() as u8)
            .collect();
        let mut half = |at: usize, factor: f32| {
            let x = f16::from_f32((0.011 + 0.009 * random.unit()) * factor);
            block[at..at + 2].copy_from_slice(&x.to_le_bytes());
        };
        match format {
            BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => half(0, 1.0),
            BlockFormat::Q4_1 | BlockFormat::Q5_1 => {
                half(0, 1.0);
                half(2, -8.0);
            }
            BlockFormat::Q4_K | BlockFormat::Q5_K => {
                half(0, 0.03);
                half(2, 0.25);
            }
            BlockFormat::Q6_K => half(208, 0.01),
            BlockFormat::F32 => {
                block = (0..32).flat_map(|_| random.unit().to_le_bytes()).collect();
            }
            BlockFormat::F16 => {
                let mut next = || f16::from_f32(random.unit()).to_le_bytes();
                block = (0..32).flat_map(|_| next()).collect();
            }
            BlockFormat::BF16 => {
                let mut next = || bf16::from_f32(random.unit()).to_le_bytes();
                block = (0..32).flat_map(|_| next()).collect();
            }
        }
        bytes.extend(block);
    }
    bytes
}

pub(super) const QUANTISED: [BlockFormat; 8] = [
    BlockFormat::Q4_0,
    BlockFormat::Q4_1,
    BlockFormat::Q5_0,
    BlockFormat::Q5_1,
    BlockFormat::Q8_0,
    BlockFormat::Q4_K,
    BlockFormat::Q5_K,
    BlockFormat::Q6_K,
];

pub(super) const FORMATS: [BlockFormat; 11] = [
    BlockFormat::Q4_0,
    BlockFormat::Q4_1,
    BlockFormat::Q5_0,
    BlockFormat::Q5_1,
    BlockFormat::Q8_0,
    BlockFormat::Q4_K,
    BlockFormat::Q5_K,
    BlockFormat::Q6_K,
    BlockFormat::F32,
    BlockFormat::F16,
    BlockFormat::BF16,
];

/// `cols`, or the next width that the format can have.
fn fitting(format: BlockFormat, cols: usize) -> usize {
    cols.next_multiple_of(format.block_cols())
}

/// The weights as the file's format defines them, in f64: independent of `Matrix`.
pub(super) fn reference_weights(format: BlockFormat, bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks_exact(format.block_bytes())
        .flat_map(|b| match format.block_cols() {
            QUANT_BLOCK => reference_block(format, b),
            _ => reference_superblock(format, b),
        })
        .collect()
}

fn reference_half(b: &[u8], i: usize) -> f64 {
    f16::from_le_bytes([b[i], b[i + 1]]).to_f64()
}

fn reference_block(format: BlockFormat, b: &[u8]) -> Vec<f64> {
    let f16_at = |i: usize| reference_half(b, i);
    let nibble = |at: usize, k: usize| match k {
        0..16 => u32::from(b[at + k] & 15),
        _ => u32::from(b[at + k - 16] >> 4),
    };
    let fifth = |at: usize, k: usize| {
        let bits = u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        (bits >> k & 1) * 16
    };
    let weight = |k: usize| match format {
        BlockFormat::Q4_0 => f16_at(0) * (f64::from(nibble(2, k)) - 8.0),
        BlockFormat::Q4_1 => f16_at(0) * f64::from(nibble(4, k)) + f16_at(2),
        BlockFormat::Q5_0 => f16_at(0) * (f64::from(nibble(6, k) + fifth(2, k)) - 16.0),
        BlockFormat::Q5_1 => f16_at(0) * f64::from(nibble(8, k) + fifth(4, k)) + f16_at(2),
        BlockFormat::Q8_0 => f16_at(0) * f64::from(b[2 + k] as i8),
        BlockFormat::F32 => f64::from(f32::from_le_bytes([
            b[4 * k],
            b[4 * k + 1],
            b[4 * k + 2],
            b[4 * k + 3],
        ])),
        BlockFormat::F16 => f16_at(2 * k),
        _ => bf16::from_le_bytes([b[2 * k], b[2 * k + 1]]).to_f64(),
    };
    (0..QUANT_BLOCK).map(weight).collect()
}

/// Written down column by column, as the formats are defined; `engine`'s own tests compare the
/// same bytes with candle's reading of them.
fn reference_superblock(format: BlockFormat, b: &[u8]) -> Vec<f64> {
    let mut weights = vec![0.0; 256];
    if format == BlockFormat::Q6_K {
        for n in 0..2 {
            for l in 0..32 {
                let (low, high) = (&b[64 * n..], b[128 + 32 * n + l]);
                let quants = [
                    low[l] & 15 | (high & 3) << 4,
                    low[l + 32] & 15 | (high >> 2 & 3) << 4,
                    low[l] >> 4 | (high >> 4 & 3) << 4,
                    low[l + 32] >> 4 | (high >> 6) << 4,
                ];
                for (i, q) in quants.into_iter().enumerate() {
                    let s = f64::from(b[192 + 8 * n + l / 16 + 2 * i] as i8);
                    let w = reference_half(b, 208) * s * (f64::from(q) - 32.0);
                    weights[128 * n + l + 32 * i] = w;
                }
            }
        }
        return weights;
    }
    let packed = &b[4..16];
    for (column, w) in weights.iter_mut().enumerate() {
        let (part, k) = (column / 32, column % 32);
        let (s, t) = match part {
            0..4 => (packed[part] & 63, packed[part + 4] & 63),
            _ => (
                (packed[part + 4] & 15) + (packed[part - 4] >> 6) * 16,
                (packed[part + 4] >> 4) + (packed[part] >> 6) * 16,
            ),
        };
        let quants = if format == BlockFormat::Q5_K { 48 } else { 16 };
        let byte = b[quants + part / 2 * 32 + k];
        let mut q = if part % 2 == 0 { byte & 15 } else { byte >> 4 };
        if format == BlockFormat::Q5_K && b[16 + k] & (1 << part) != 0 {
            q += 16;
        }
        *w = reference_half(b, 0) * f64::from(s) * f64::from(q)
            - reference_half(b, 2) * f64::from(t);
    }
    weights
}

/// Every instruction set that can be tested here; names the ones that cannot.
fn instruction_sets() -> Vec<Isa> {
    for name in ["avx512vnni", "avxvnni", "avx2", "portable"] {
        if Isa::named(name).is_err() {
            eprintln!("skipped: this processor has no {name}, its kernels are not tested here");
        }
    }
    Isa::available()
}

fn product(isa: Isa, threads: usize, w: &Matrix, x: &[f32], rows: usize) -> Vec<f32> {
    let mut activations = Activations::with_capacity(rows, w.cols());
    let pool = &mut Pool::new(threads).expect("the system gives it");
    activations.quantize(isa, pool, x, rows, w.cols());
    let mut out = vec![f32::NAN; rows * w.rows()];
    matmul(isa, pool, w, &activations, rows, &mut out, false);
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[track_caller]
pub(super) fn assert_same_bits(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let differs = a
        .iter()
        .zip(b)
        .position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(i) = differs {
        panic!(
            "{what}: element {i} is {:e} on one side and {:e} on the other",
            a[i], b[i]
        );
    }
}

#[test]
fn products_agree_with_exact_arithmetic_within_the_quantisation_error() {
    let (rows_out, rows) = (75, 3);
    for format in FORMATS {
        let cols = fitting(format, 96);
        let bytes = random_bytes(format, rows_out, cols, 11);
        let weights = reference_weights(format, &bytes);
        let w = Matrix::repack(format, rows_out, cols, &bytes).expect("well formed");
        let x = noise(rows * cols, 12);
        for isa in instruction_sets() {
            let out = product(isa, 1, &w, &x, rows);
            for row in 0..rows {
                let x = &x[row * cols..][..cols];
                for (o, w) in weights.chunks_exact(cols).enumerate() {
                    let exact: f64 = w.iter().zip(x).map(|(w, x)| w * f64::from(*x)).sum();
                    // Half a step of each activation, and of each weight that was quantised here.
                    let step = |block: &[f32]| {
                        f64::from(block.iter().fold(0f32, |m, x| m.max(x.abs()))) / 254.0
                    };
                    let mut bound = 1e-6;
                    for (w, x) in w.chunks_exact(32).zip(x.chunks_exact(32)) {
                        let greatest = w.iter().fold(0f64, |m, w| m.max(w.abs()));
                        let requantised = format.is_float();
                        for (w, x1) in w.iter().zip(x) {
                            bound += w.abs() * step(x) * 1.001;
                            if requantised {
                                bound += (f64::from(x1.abs()) + step(x)) * greatest / 250.0;
                            }
                        }
                    }
                    let got = f64::from(out[row * rows_out + o]);
                    assert!(
                        (got - exact).abs() <= bound,
                        "{format:?} {} row {row} output {o}: {got} for {exact}, allowed {bound}",
                        isa.name()
                    );
                }
            }
        }
    }
}

#[test]
fn products_of_integer_activations_are_exact_sums() {
    // Activations that are already multiples of their scale have no quantisation error at all.
    let rows_out = 16;
    for format in QUANTISED {
        let cols = fitting(format, 64);
        let bytes = random_bytes(format, rows_out, cols, 5);
        let weights = reference_weights(format, &bytes);
        let w = Matrix::repack(format, rows_out, cols, &bytes).expect("well formed");
        let mut random = Random(6);
        let mut x: Vec<f32> = (0..cols)
            .map(|_| (random.next() % 255) as f32 - 127.0)
            .collect();
        for block in x.chunks_exact_mut(QUANT_BLOCK) {
            block[3] = 127.0;
        }
        for isa in instruction_sets() {
            let out = product(isa, 1, &w, &x, 1);
            for (o, w) in weights.chunks_exact(cols).enumerate() {
                let exact: f64 = w.iter().zip(&x).map(|(w, x)| w * f64::from(*x)).sum();
                let size: f64 = w
                    .iter()
                    .zip(&x)
                    .map(|(w, x)| (w * f64::from(*x)).abs())
                    .sum();
                let got = f64::from(out[o]);
                assert!(
                    (got - exact).abs() <= 1e-6 * size,
                    "{format:?} {}: {got} for {exact}",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn the_most_extreme_quants_do_not_saturate() {
    for byte in [0x00u8, 0x7f, 0x80, 0x81, 0xff] {
        for format in QUANTISED {
            let cols = fitting(format, 64);
            let mut bytes = random_bytes(format, 16, cols, 5);
            let quants = match format {
                BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => {
                    2..format.block_bytes()
                }
                BlockFormat::Q6_K => 0..208,
                _ => 4..format.block_bytes(),
            };
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                block[quants.clone()].fill(byte);
            }
            let w = Matrix::repack(format, 16, cols, &bytes).expect("well formed");
            for sign in [1.0, -1.0] {
                let x = vec![127.0 * sign; cols];
                let weights = reference_weights(format, &bytes);
                let all: Vec<Vec<f32>> = instruction_sets()
                    .into_iter()
                    .map(|isa| product(isa, 1, &w, &x, 1))
                    .collect();
                for (o, w) in weights.chunks_exact(cols).enumerate() {
                    let exact: f64 = w.iter().map(|w| w * 127.0 * f64::from(sign)).sum();
                    assert!((f64::from(all[0][o]) - exact).abs() <= 1e-5 * exact.abs().max(1.0));
                }
                for other in &all {
                    assert_same_bits(&all[0], other, "extreme quants");
                }
            }
        }
    }
}

#[test]
fn every_row_has_the_same_bits_for_any_rows_threads_and_instruction_set() {
    // 83 outputs: five whole tiles and three rows of a sixth.
    let (rows_out, most) = (83, 17);
    for format in FORMATS {
        let cols = fitting(format, 160);
        let bytes = random_bytes(format, rows_out, cols, 21);
        let w = Matrix::repack(format, rows_out, cols, &bytes).expect("well formed");
        let x = noise(most * cols, 22);
        let portable = Isa::named("portable").expect("always there");
        let alone: Vec<f32> = x
            .chunks_exact(cols)
            .flat_map(|x| product(portable, 1, &w, x, 1))
            .collect();
        for isa in instruction_sets() {
            for threads in [1, 2, 3] {
                for rows in 1..=most {
                    let together = product(isa, threads, &w, &x[..rows * cols], rows);
                    let what = format!("{format:?} {} {threads} threads {rows} rows", isa.name());
                    assert_same_bits(&together, &alone[..rows * rows_out], &what);
                }
            }
        }
    }
}

#[test]
fn a_group_gives_the_bits_of_its_members_and_accumulate_adds() {
    let (cols, rows) = (256, 5);
    let matrices: Vec<Matrix> = [
        (33, BlockFormat::Q4_1),
        (40, BlockFormat::Q6_K),
        (16, BlockFormat::Q4_0),
        (200, BlockFormat::Q8_0),
    ]
    .into_iter()
    .map(|(n, f)| Matrix::repack(f, n, cols, &random_bytes(f, n, cols, 9)).expect("well formed"))
    .collect();
    let x = noise(rows * cols, 10);
    for isa in instruction_sets() {
        for threads in [1, 2] {
            let mut pool = Pool::new(threads).expect("the system gives it");
            let mut activations = Activations::with_capacity(rows, cols);
            activations.quantize(isa, &mut pool, &x, rows, cols);
            let mut outs: Vec<Vec<f32>> = matrices
                .iter()
                .map(|w| vec![0.0; rows * w.rows()])
                .collect();
            let mut group: Vec<(&Matrix, &mut [f32])> = matrices
                .iter()
                .zip(&mut outs)
                .map(|(w, o)| (w, &mut o[..]))
                .collect();
            matmul_group(isa, &mut pool, &mut group, &activations, rows);
            for (w, out) in matrices.iter().zip(&outs) {
                let single = product(isa, 1, w, &x, rows);
                assert_same_bits(out, &single, "group member");
                let residual = noise(single.len(), 77);
                let mut sum = residual.clone();
                matmul(isa, &mut pool, w, &activations, rows, &mut sum, true);
                let expected: Vec<f32> = residual.iter().zip(&single).map(|(r, s)| r + s).collect();
                assert_same_bits(&sum, &expected, "accumulated");
            }
        }
    }
}

#[test]
fn rows_are_dequantised_as_the_file_defines_them() {
    let rows = 21;
    for format in FORMATS {
        let cols = fitting(format, 64);
        let bytes = random_bytes(format, rows, cols, 31);
        let reference = reference_weights(format, &bytes);
        let w = Matrix::repack(format, rows, cols, &bytes).expect("well formed");
        assert_eq!((w.rows(), w.cols()), (rows, cols));
        let mut out = vec![0.0; cols];
        for row in 0..rows {
            w.dequantize_row(row, &mut out);
            for (got, exact) in out.iter().zip(&reference[row * cols..]) {
                // Floats become Q8_0: half a step of the greatest weight, which is at most 1 here.
                let allowed = if format.is_float() {
                    1.01 / 254.0
                } else {
                    1e-6
                };
                assert!(
                    (f64::from(*got) - exact).abs() <= allowed,
                    "{format:?} {got} for {exact}"
                );
            }
        }
    }
}

#[test]
fn floats_become_what_the_target_can_hold_and_quantised_weights_stay() {
    let (rows, cols) = (19, 64);
    let x = noise(rows * cols, 5);
    let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    for target in [WeightTarget::Q8_0, WeightTarget::Q4_0, WeightTarget::Q4_1] {
        let w = Matrix::quantize(target, BlockFormat::F32, rows, cols, &bytes).expect("finite");
        let mut row = vec![0.0; cols];
        for (i, x) in x.chunks_exact(cols).enumerate() {
            w.dequantize_row(i, &mut row);
            for (got, x) in row.chunks_exact(32).zip(x.chunks_exact(32)) {
                let highest = x.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
                let lowest = x.iter().fold(f32::INFINITY, |m, x| m.min(*x));
                let greatest = highest.max(-lowest);
                // Half a step; Q4_0 has no eighth step above zero. And the scale is an f16.
                let allowed = match target {
                    WeightTarget::Q8_0 => greatest / 254.0,
                    WeightTarget::Q4_0 => greatest / 8.0,
                    WeightTarget::Q4_1 => (highest - lowest) / 30.0,
                } + greatest * 2e-3;
                for (got, x) in got.iter().zip(x) {
                    assert!((got - x).abs() <= allowed, "{target:?}: {got} for {x}");
                }
            }
        }
        let bytes = random_bytes(BlockFormat::Q5_0, rows, cols, 3);
        let kept = Matrix::quantize(target, BlockFormat::Q5_0, rows, cols, &bytes).expect("fine");
        kept.dequantize_row(3, &mut row);
        let exact = &reference_weights(BlockFormat::Q5_0, &bytes)[3 * cols..][..cols];
        for (got, exact) in row.iter().zip(exact) {
            assert!((f64::from(*got) - exact).abs() <= 1e-6, "{target:?}");
        }
    }
}

#[test]
fn rows_of_a_fused_tensor_are_a_range_of_its_bytes() {
    for format in FORMATS {
        let cols = fitting(format, 64);
        let bytes = random_bytes(format, 40, cols, 8);
        let whole = Matrix::repack(format, 40, cols, &bytes).expect("well formed");
        let own = 17 * format.row_bytes(cols)..30 * format.row_bytes(cols);
        let part = Matrix::repack(format, 13, cols, &bytes[own]).expect("well formed");
        let (mut a, mut b) = (vec![0.0; cols], vec![0.0; cols]);
        for row in 0..13 {
            part.dequantize_row(row, &mut a);
            whole.dequantize_row(17 + row, &mut b);
            assert_same_bits(&a, &b, &format!("{format:?}"));
        }
    }
}

#[test]
fn gathered_matrices_give_the_same_bits() {
    let (cols, rows) = (96, 3);
    let x = noise(rows * cols, 8);
    let mut matrices: Vec<Matrix> = [
        (17, BlockFormat::Q4_1),
        (64, BlockFormat::Q8_0),
        (5, BlockFormat::Q4_0),
    ]
    .into_iter()
    .map(|(n, f)| Matrix::repack(f, n, cols, &random_bytes(f, n, cols, 9)).expect("well formed"))
    .collect();
    let isa = Isa::available()[0];
    let before: Vec<Vec<f32>> = matrices
        .iter()
        .map(|w| product(isa, 1, w, &x, rows))
        .collect();
    for _ in 0..2 {
        Matrix::gather(&mut matrices.iter_mut().collect::<Vec<_>>());
        for (w, before) in matrices.iter().zip(&before) {
            assert_same_bits(&product(isa, 1, w, &x, rows), before, "gathered");
        }
    }
}

#[test]
fn tiles_take_the_bytes_of_the_file() {
    for format in QUANTISED {
        // A width at which no tile's scales are padded.
        let cols = 1024;
        let bytes = random_bytes(format, 64, cols, 3);
        let w = Matrix::repack(format, 64, cols, &bytes).expect("well formed");
        // Of four or six bytes of scales, Q4_K and Q5_K keep packed what the tile keeps in bytes.
        let packed = matches!(format, BlockFormat::Q4_K | BlockFormat::Q5_K);
        let unpacked = if packed { 64 * cols / 256 * 4 } else { 0 };
        assert_eq!(w.bytes(), bytes.len() + unpacked, "{format:?}");
    }
}

#[test]
fn damaged_matrices_are_refused_with_the_reason() {
    let bytes = random_bytes(BlockFormat::Q4_1, 16, 64, 3);
    let repack =
        |rows, cols, bytes: &[u8]| Matrix::repack(BlockFormat::Q4_1, rows, cols, bytes).err();
    let short = repack(16, 64, &bytes[..bytes.len() - 1]).expect("a byte is missing");
    assert!(
        short
            .to_string()
            .contains("takes 640 bytes, the model file gives 639"),
        "{short}"
    );
    assert!(matches!(
        repack(17, 64, &bytes),
        Some(KernelError::WrongByteLength { .. })
    ));
    assert_eq!(
        repack(16, 40, &bytes),
        Some(KernelError::UnsupportedShape {
            rows: 16,
            cols: 40,
            block: 32
        })
    );
    assert_eq!(
        repack(0, 64, &[]),
        Some(KernelError::UnsupportedShape {
            rows: 0,
            cols: 64,
            block: 32
        })
    );
    assert_eq!(
        repack(16, 0, &[]),
        Some(KernelError::UnsupportedShape {
            rows: 16,
            cols: 0,
            block: 32
        })
    );
    assert!(matches!(
        repack(usize::MAX / 2, 64, &bytes),
        Some(KernelError::UnsupportedShape { .. })
    ));
    let mut infinite = bytes.clone();
    infinite[20 * 3..][..2].copy_from_slice(&f16::INFINITY.to_le_bytes());
    let bad = KernelError::BadNumber {
        row: 1,
        first_col: 32,
        end_col: 64,
    };
    assert_eq!(repack(16, 64, &infinite), Some(bad));
    let nan = [f32::NAN; 32].map(f32::to_le_bytes).concat();
    assert!(matches!(
        Matrix::repack(BlockFormat::F32, 1, 32, &nan),
        Err(KernelError::BadNumber { row: 0, .. })
    ));
}

#[test]
fn an_unknown_or_missing_instruction_set_is_an_error() {
    assert_eq!(
        Isa::available().last().map(|isa| isa.name()),
        Some("portable")
    );
    assert_eq!(
        Isa::named("sse9"),
        Err(KernelError::UnknownIsa("sse9".into()))
    );
    for isa in Isa::available() {
        assert_eq!(Isa::named(isa.name()), Ok(isa));
    }
}

#[test]
fn rows_in_two_terms_have_the_bits_of_one_and_are_a_hundred_times_as_exact() {
    let cols = 96;
    let weight = vec![1.0; cols];
    let bytes = random_bytes(BlockFormat::Q8_0, 32, cols, 44);
    let w = Matrix::repack(BlockFormat::Q8_0, 32, cols, &bytes).expect("well formed");
    let exact = reference_weights(BlockFormat::Q8_0, &bytes);
    let pool = &mut Pool::new(2).expect("the system gives it");
    for rows in [1, 3, 8, 19] {
        let x = noise(rows * cols, 41);
        let mut plain = vec![0.0; rows * cols];
        let mut first: Option<Vec<f32>> = None;
        for isa in instruction_sets() {
            let mut a = Activations::with_capacity(rows, 2 * cols);
            let (mut one, mut two) = (vec![0.0; rows * 32], vec![0.0; rows * 32]);
            a.quantize_rms_norm(isa, pool, &x, &weight, 1e-5, rows, cols);
            matmul(isa, pool, &w, &a, rows, &mut one, false);
            a.quantize_rms_norm_in_two(isa, pool, &x, &weight, 1e-5, rows, cols);
            matmul(isa, pool, &w, &a, rows, &mut two, false);
            assert_same_bits(&one, &two, "the first terms");
            matmul_rest(isa, pool, &mut [(&w, &mut two)], &a, rows);
            rms_norm(isa, &x, &weight, 1e-5, &mut plain);
            let error = |out: &[f32]| -> f64 {
                let rows = plain.chunks_exact(cols).zip(out.chunks_exact(32));
                let errors = rows.flat_map(|(x, out)| {
                    let dots = exact
                        .chunks_exact(cols)
                        .map(move |w| w.iter().zip(x).map(|(w, x)| w * f64::from(*x)).sum::<f64>());
                    dots.zip(out)
                        .map(|(dot, out)| (dot - f64::from(*out)).abs())
                });
                errors.sum()
            };
            assert!(
                error(&two) < error(&one) / 100.0,
                "{} {}",
                error(&one),
                error(&two)
            );
            assert_same_bits(first.get_or_insert_with(|| two.clone()), &two, isa.name());
        }
    }
}

#[test]
fn fused_quantisation_has_the_bits_of_the_separate_steps() {
    let (rows, cols) = (5, 96);
    let (x, y, weight) = (
        noise(rows * cols, 41),
        noise(rows * cols, 42),
        noise(cols, 43),
    );
    let bytes = random_bytes(BlockFormat::Q8_0, 16, cols, 44);
    let w = Matrix::repack(BlockFormat::Q8_0, 16, cols, &bytes).expect("well formed");
    let mut first: Option<[Vec<f32>; 2]> = None;
    let pool = &mut Pool::new(2).expect("the system gives it");
    for isa in instruction_sets() {
        let mut a = Activations::with_capacity(rows, cols);
        let result = |a: &Activations| {
            let mut out = vec![0.0; rows * 16];
            matmul(
                isa,
                &mut Pool::new(1).expect("the system gives it"),
                &w,
                a,
                rows,
                &mut out,
                false,
            );
            out
        };
        a.quantize_rms_norm(isa, pool, &x, &weight, 1e-5, rows, cols);
        let normed = result(&a);
        let mut plain = vec![0.0; rows * cols];
        rms_norm(isa, &x, &weight, 1e-5, &mut plain);
        a.quantize(isa, pool, &plain, rows, cols);
        assert_same_bits(&normed, &result(&a), "fused norm");
        a.quantize_gated(isa, pool, Activation::Silu, &x, &y, rows, cols);
        let silu = result(&a);
        let first = first.get_or_insert_with(|| [normed.clone(), silu.clone()]);
        assert_same_bits(&first[0], &normed, isa.name());
        assert_same_bits(&first[1], &silu, isa.name());
        for (row, out) in silu.chunks_exact(16).enumerate() {
            let exact: Vec<f64> = (row * cols..(row + 1) * cols)
                .map(|i| f64::from(x[i]) / (1.0 + (-f64::from(x[i])).exp()) * f64::from(y[i]))
                .collect();
            let weights = reference_weights(BlockFormat::Q8_0, &bytes);
            for (o, w) in weights.chunks_exact(cols).enumerate() {
                let dot: f64 = w.iter().zip(&exact).map(|(w, x)| w * x).sum();
                let size: f64 = w.iter().zip(&exact).map(|(w, x)| (w * x).abs()).sum();
                assert!(
                    (f64::from(out[o]) - dot).abs() < 0.02 * size,
                    "{} for {dot}",
                    out[o]
                );
            }
        }
    }
}

#[test]
fn zero_and_tiny_rows_quantise_to_zero() {
    let bytes = random_bytes(BlockFormat::Q4_1, 16, 32, 1);
    let w = Matrix::repack(BlockFormat::Q4_1, 16, 32, &bytes).expect("well formed");
    for isa in instruction_sets() {
        for x in [0.0, -0.0, f32::MIN_POSITIVE, 1e-40] {
            assert_eq!(bits(&product(isa, 1, &w, &[x; 32], 1)), [0; 16], "{x:e}");
        }
    }
}

#[test]
fn rms_norm_agrees_with_exact_arithmetic() {
    let (rows, cols) = (3, 48);
    let (x, weight) = (noise(rows * cols, 51), noise(cols, 52));
    let mut outs = Vec::new();
    for isa in instruction_sets() {
        let mut out = vec![0.0; rows * cols];
        rms_norm(isa, &x, &weight, 1e-5, &mut out);
        for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact(cols)) {
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / cols as f64;
            for (i, out) in out.iter().enumerate() {
                let exact = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
                assert!(
                    (f64::from(*out) - exact).abs() <= 1e-6 * exact.abs(),
                    "{out} for {exact}"
                );
            }
        }
        outs.push(out);
    }
    outs.iter()
        .for_each(|out| assert_same_bits(&outs[0], out, "norm"));
}

#[test]
fn softmax_agrees_with_exact_arithmetic_at_any_length() {
    for len in [1, 15, 16, 17, 100] {
        let mut x: Vec<f32> = noise(len, len as u64).iter().map(|x| x * 3.0).collect();
        if len > 15 {
            x[7] = f32::NEG_INFINITY;
        }
        let greatest = x.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
        let sum: f64 = x.iter().map(|x| f64::from(x - greatest).exp()).sum();
        let mut outs = Vec::new();
        for isa in instruction_sets() {
            let mut p = x.clone();
            let log_sum = softmax_in_place(isa, &mut p);
            assert!((f64::from(log_sum) - (f64::from(greatest) + sum.ln())).abs() < 1e-5);
            for (p, x) in p.iter().zip(&x) {
                let exact = f64::from(x - greatest).exp() / sum;
                assert!(
                    (f64::from(*p) - exact).abs() <= 3e-6 * exact + 1e-37,
                    "{p:e} for {exact:e}"
                );
            }
            outs.push(p);
        }
        outs.iter()
            .for_each(|p| assert_same_bits(&outs[0], p, "softmax"));
    }
}

#[test]
fn rope_rotates_pairs_by_position_and_frequency() {
    let (d, position) = (8, 5);
    for style in [RopeStyle::Interleaved, RopeStyle::HalfSplit] {
        let table = RopeTable::new(style, d, 10_000.0, &[], 16);
        let original = noise(2 * d, 61);
        let mut x = original.clone();
        rope_in_place(&table, &mut x, d, position);
        for head in 0..2 {
            for i in 0..d / 2 {
                let (a, b) = match style {
                    RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                    RopeStyle::HalfSplit => (i, i + d / 2),
                };
                let angle = position as f64 * 10_000f64.powf(-2.0 * i as f64 / d as f64);
                let (x0, y0) = (
                    f64::from(original[head * d + a]),
                    f64::from(original[head * d + b]),
                );
                let size = 1e-6 * (x0.abs() + y0.abs());
                let near = |got: f32, exact: f64| (f64::from(got) - exact).abs() <= size;
                assert!(near(x[head * d + a], x0 * angle.cos() - y0 * angle.sin()));
                assert!(near(x[head * d + b], x0 * angle.sin() + y0 * angle.cos()));
            }
        }
        let mut unmoved = original.clone();
        rope_in_place(&table, &mut unmoved, d, 0);
        assert_same_bits(&unmoved, &original, "position 0");
    }
}

#[test]
fn rope_leaves_the_elements_beyond_the_rotary_size_alone() {
    let table = RopeTable::new(RopeStyle::HalfSplit, 4, 10_000.0, &[1.0, 4.0], 8);
    let original = noise(8, 3);
    let mut x = original.clone();
    rope_in_place(&table, &mut x, 8, 3);
    assert_same_bits(&x[4..], &original[4..], "the rest of the head");
    assert!(x[..4] != original[..4]);
}

/// Sequences with random keys and values, in scattered blocks.
pub(super) struct Story {
    kv: KvStore,
    tables: Vec<Vec<u32>>,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    heads: usize,
    kv_heads: usize,
    d: usize,
}

impl Story {
    pub(super) fn new(
        isa: Isa,
        lengths: &[usize],
        heads: usize,
        kv_heads: usize,
        d: usize,
    ) -> Story {
        let blocks: usize = lengths.iter().map(|n| n.div_ceil(BLOCK_TOKENS)).sum();
        let mut kv = KvStore::new(2, blocks, kv_heads, d).expect("the system gives it");
        let mut story = Story {
            kv: KvStore::new(0, 0, 1, 16).expect("the system gives it"),
            tables: vec![],
            keys: vec![],
            values: vec![],
            heads,
            kv_heads,
            d,
        };
        let mut free: Vec<u32> = (0..blocks as u32).rev().collect();
        let mut random = Random(71);
        for (s, length) in lengths.iter().enumerate() {
            let table: Vec<u32> = (0..length.div_ceil(BLOCK_TOKENS))
                .map(|_| free.swap_remove(random.next() as usize % free.len()))
                .collect();
            let keys = noise(length * kv_heads * d, 100 + s as u64);
            let values = noise(length * kv_heads * d, 200 + s as u64);
            for token in 0..*length {
                let at = token * kv_heads * d..(token + 1) * kv_heads * d;
                let block = table[token / BLOCK_TOKENS];
                kv.write(
                    isa,
                    1,
                    block,
                    token % BLOCK_TOKENS,
                    &keys[at.clone()],
                    &values[at],
                );
            }
            story.tables.push(table);
            story.keys.push(keys);
            story.values.push(values);
        }
        story.kv = kv;
        story
    }

    fn query(&self, sequence: usize, position: usize) -> Vec<f32> {
        noise(self.heads * self.d, (1000 * sequence + position) as u64 + 5)
    }

    pub(super) fn shape(&self) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            scale: 1.0 / (self.d as f32).sqrt(),
            window: None,
            softcap: None,
        }
    }

    /// One call for all `rows` of (sequence, position).
    pub(super) fn attend(
        &self,
        isa: Isa,
        threads: usize,
        shape: &AttentionShape,
        rows: &[(usize, usize)],
    ) -> Vec<f32> {
        let q: Vec<f32> = rows.iter().flat_map(|(s, p)| self.query(*s, *p)).collect();
        let metas: Vec<RowMeta<'_>> = rows
            .iter()
            .map(|(s, p)| RowMeta {
                position: *p,
                block_table: &self.tables[*s],
            })
            .collect();
        let mut out = vec![f32::NAN; q.len()];
        let mut scratch = AttentionScratch::default();
        attention(
            isa,
            &mut Pool::new(threads).expect("the system gives it"),
            &mut scratch,
            shape,
            &q,
            &self.kv.view(1),
            &metas,
            &mut out,
        );
        out
    }

    /// The definition, in f64, from the f16 of the keys and values.
    pub(super) fn exact(
        &self,
        shape: &AttentionShape,
        sequence: usize,
        position: usize,
    ) -> Vec<f64> {
        let (d, stored) = (self.d, |x: f32| f16::from_f32(x).to_f64());
        let q = self.query(sequence, position);
        let first = shape.window.map_or(0, |w| (position + 1).saturating_sub(w));
        let mut out = Vec::new();
        for head in 0..self.heads {
            let at = |token: usize| (token * self.kv_heads + head * self.kv_heads / self.heads) * d;
            let score = |token: usize| {
                let dot: f64 = (0..d)
                    .map(|i| {
                        f64::from(q[head * d + i]) * stored(self.keys[sequence][at(token) + i])
                    })
                    .sum();
                let x = dot * f64::from(shape.scale);
                shape
                    .softcap
                    .map_or(x, |c| f64::from(c) * (x / f64::from(c)).tanh())
            };
            let scores: Vec<f64> = (first..=position).map(score).collect();
            let greatest = scores.iter().fold(f64::NEG_INFINITY, |m, x| m.max(*x));
            let weights: Vec<f64> = scores.iter().map(|x| (x - greatest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            out.extend((0..d).map(|i| {
                let value = |token: usize| stored(self.values[sequence][at(token) + i]);
                weights
                    .iter()
                    .enumerate()
                    .map(|(j, w)| w / sum * value(first + j))
                    .sum::<f64>()
            }));
        }
        out
    }
}

const POSITIONS: [usize; 9] = [0, 1, 30, 31, 32, 255, 256, 511, 539];

#[test]
fn attention_agrees_with_its_definition() {
    for (heads, kv_heads, d) in [
        (9, 3, 64),
        (7, 1, 32),
        (2, 2, 80),
        (26, 2, 16),
        (8, 2, 256),
        (4, 1, 256),
    ] {
        for isa in instruction_sets() {
            let story = Story::new(isa, &[540], heads, kv_heads, d);
            for (window, softcap) in [
                (None, None),
                (Some(40), None),
                (None, Some(5.0)),
                (Some(300), Some(2.0)),
            ] {
                let shape = AttentionShape {
                    window,
                    softcap,
                    ..story.shape()
                };
                for position in POSITIONS {
                    let got = story.attend(isa, 1, &shape, &[(0, position)]);
                    for (got, exact) in got.iter().zip(story.exact(&shape, 0, position)) {
                        assert!(
                            (f64::from(*got) - exact).abs() < 2e-4,
                            "{} {heads}/{kv_heads}x{d} {shape:?} at {position}: {got} for {exact}",
                            isa.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn attention_gives_a_row_the_same_bits_in_every_batch() {
    let portable = Isa::named("portable").expect("always there");
    for (heads, kv_heads, d) in [(9, 3, 64), (5, 1, 48), (14, 2, 64), (4, 1, 256)] {
        let lengths = [540, 90, 300];
        let mut rows: Vec<(usize, usize)> = POSITIONS.iter().map(|p| (0, *p)).collect();
        // A prefill chunk across a span, decode rows of others, and draft rows.
        rows.extend((245..275).map(|p| (0, p)));
        rows.push((1, 89));
        rows.extend((290..300).map(|p| (2, p)));
        rows.extend([(2, 299), (0, 539)]);
        for window in [None, Some(33), Some(270)] {
            let story = Story::new(portable, &lengths, heads, kv_heads, d);
            let shape = AttentionShape {
                window,
                ..story.shape()
            };
            let alone: Vec<f32> = rows
                .iter()
                .flat_map(|row| story.attend(portable, 1, &shape, &[*row]))
                .collect();
            for isa in instruction_sets() {
                let story = Story::new(isa, &lengths, heads, kv_heads, d);
                for threads in [1, 2, 3] {
                    let what = format!("{} {threads} threads window {window:?}", isa.name());
                    assert_same_bits(&story.attend(isa, threads, &shape, &rows), &alone, &what);
                    for (i, row) in rows.iter().enumerate().step_by(7) {
                        let one = story.attend(isa, threads, &shape, &[*row]);
                        assert_same_bits(&one, &alone[i * heads * d..][..heads * d], &what);
                    }
                }
            }
        }
    }
}

#[test]
fn attention_gives_the_branches_of_a_draft_the_bits_they_have_alone() {
    for (heads, kv_heads, d) in [(9, 3, 64), (4, 2, 80), (2, 1, 256)] {
        for isa in instruction_sets() {
            let mut story = Story::new(isa, &[540, 300], heads, kv_heads, d);
            let (main, other) = (story.tables[0].clone(), story.tables[1].clone());
            let branch = |shared: usize, own: &[u32]| [&main[..shared], own].concat();
            // Parted in the last block, before it and long before, and the same blocks named twice.
            story.tables.push(branch(16, &other[..1]));
            story.tables.push(branch(15, &other[1..3]));
            story.tables.push(branch(9, &other[3..9]));
            story.tables.push(branch(16, &other[..1]));
            let rows: Vec<(usize, usize)> = (508..514)
                .map(|p| (0, p))
                .chain((510..515).map(|p| (2, p)))
                .chain([(3, 509), (3, 510), (3, 513), (4, 471), (5, 513), (2, 512)])
                .chain([(4, 300), (4, 301), (1, 299), (0, 539), (0, 3)])
                .collect();
            for threads in [1, 2] {
                let together = story.attend(isa, threads, &story.shape(), &rows);
                for (row, bits) in rows.iter().zip(together.chunks_exact(heads * d)) {
                    let alone = story.attend(isa, 1, &story.shape(), &[*row]);
                    let what = format!("{} {threads} threads, row {row:?}", isa.name());
                    assert_same_bits(bits, &alone, &what);
                }
            }
        }
    }
}

#[test]
fn attention_does_not_look_past_its_position_even_at_poisoned_tokens() {
    for isa in instruction_sets() {
        let mut story = Story::new(isa, &[64], 9, 3, 64);
        let clean = story.attend(isa, 1, &story.shape(), &[(0, 39)]);
        let poison = vec![f32::INFINITY; 192];
        let nan = vec![f32::NAN; 192];
        for token in 40..64 {
            let block = story.tables[0][token / BLOCK_TOKENS];
            story
                .kv
                .write(isa, 1, block, token % BLOCK_TOKENS, &nan, &poison);
        }
        assert_same_bits(
            &story.attend(isa, 1, &story.shape(), &[(0, 39)]),
            &clean,
            isa.name(),
        );
        let poisoned = story.attend(isa, 1, &story.shape(), &[(0, 39), (0, 40)]);
        assert_same_bits(
            &poisoned[..clean.len()],
            &clean,
            "beside a row that sees the poison",
        );
    }
}

#[test]
fn a_copied_block_holds_the_same_tokens_in_every_layer() {
    let isa = Isa::available()[0];
    let mut kv = KvStore::new(3, 4, 2, 32).expect("the system gives it");
    for layer in 0..3 {
        for token in 0..BLOCK_TOKENS {
            let (k, v) = (noise(64, layer as u64), noise(64, token as u64));
            kv.write(isa, layer, 1, token, &k, &v);
        }
    }
    kv.copy_block(1, 3);
    let q = noise(4 * 32, 1);
    let shape = AttentionShape {
        heads: 4,
        scale: 0.2,
        window: None,
        softcap: None,
    };
    for layer in 0..3 {
        let attend = |block: u32| {
            let mut out = vec![0.0; q.len()];
            let rows = [RowMeta {
                position: 31,
                block_table: &[block],
            }];
            let scratch = &mut AttentionScratch::default();
            attention(
                isa,
                &mut Pool::new(1).expect("the system gives it"),
                scratch,
                &shape,
                &q,
                &kv.view(layer),
                &rows,
                &mut out,
            );
            out
        };
        assert_same_bits(&attend(1), &attend(3), "copy");
        assert!(attend(3) != attend(0), "an empty block differs");
    }
    assert_eq!(
        KvStore::bytes_per_block(30, 3, 64),
        32 * 23_040,
        "SmolLM2: 22.5 KiB a token"
    );
}

#[test]
fn a_pool_runs_every_part_once_and_sees_its_writes() {
    use std::sync::atomic::{AtomicU32, Ordering};
    let mut pool = Pool::new(3).expect("the system gives it");
    for round in 0..2000 {
        pool.set_threads(round % 5);
        assert!((1..=3).contains(&pool.threads()));
        let parts = round % 40;
        let counts: Vec<AtomicU32> = (0..parts).map(|_| AtomicU32::new(0)).collect();
        pool.run(parts, |part| {
            counts[part].fetch_add(1, Ordering::Relaxed);
        });
        assert!(
            counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
            "round {round}"
        );
        if round % 500 == 0 {
            // Long enough that the workers park.
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

#[test]
fn a_panicking_part_reaches_the_caller_and_leaves_the_pool_usable() {
    for threads in [1, 2] {
        let mut pool = Pool::new(threads).expect("the system gives it");
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(8, |part| assert!(part != 5, "part 5 panics on purpose"));
        }));
        assert!(panicked.is_err());
        let sum = std::sync::atomic::AtomicUsize::new(0);
        pool.run(8, |part| {
            sum.fetch_add(part, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 28);
    }
}

const SOURCES: [(&str, &str); 15] = [
    ("activations.rs", include_str!("activations.rs")),
    ("attention.rs", include_str!("attention.rs")),
    ("bytes.rs", include_str!("bytes.rs")),
    ("formats.rs", include_str!("formats.rs")),
    ("isa.rs", include_str!("isa.rs")),
    ("kv.rs", include_str!("kv.rs")),
    ("lanes.rs", include_str!("lanes.rs")),
    ("lanes_x86.rs", include_str!("lanes_x86.rs")),
    ("matmul.rs", include_str!("matmul.rs")),
    ("matmul_avx2.rs", include_str!("matmul_avx2.rs")),
    ("matmul_avx512.rs", include_str!("matmul_avx512.rs")),
    ("matrix.rs", include_str!("matrix.rs")),
    ("pool.rs", include_str!("pool.rs")),
    ("rope.rs", include_str!("rope.rs")),
    ("rows.rs", include_str!("rows.rs")),
];

#[test]
fn the_table_of_unsafe_blocks_is_true() {
    let table = include_str!("mod.rs");
    for (file, source) in SOURCES {
        let code = source.lines().filter(|l| !l.trim_start().starts_with("//"));
        let count: usize = code
            .map(|l| l.matches("unsafe {").count() + l.matches("unsafe impl").count())
            .sum();
        let row = table
            .lines()
            .find(|l| l.starts_with(&format!("//! | `{file}` |")));
        let stated = row.map_or(Some(0), |row| row.split('|').nth(2)?.trim().parse().ok());
        assert_eq!(
            stated,
            Some(count),
            "{file}: the table in mod.rs is out of date"
        );
    }
}

#[test]
fn sums_of_logits_are_those_of_f64_and_the_same_bits_everywhere() {
    let mut random = Random(77);
    for length in [1, 15, 16, 17, 48, 1_000, 49_152] {
        let mut x: Vec<f32> = (0..length)
            .map(|_| (random.next() % 40_000) as f32 / 1_000.0 - 20.0)
            .collect();
        if length > 20 {
            x[3] = f32::NEG_INFINITY;
        }
        let greatest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let d = |x: &f32| f64::from((x - greatest).max(-87.0));
        let sum: f64 = x.iter().map(|x| d(x).exp()).sum();
        let weighted: f64 = x.iter().map(|x| d(x).exp() * d(x)).sum();
        let portable = Isa::named("portable").expect("it runs anywhere");
        let expected = logit_sums(portable, &x);
        assert_eq!(expected.greatest, greatest, "{length}");
        let close = |a: f32, b: f64| (f64::from(a) - b).abs() <= 1e-5 * (1.0 + b.abs());
        assert!(close(expected.sum, sum), "{length}: {expected:?}, {sum}");
        assert!(
            close(expected.weighted, weighted),
            "{length}: {expected:?}, {weighted}"
        );
        for isa in Isa::available() {
            assert_eq!(logit_sums(isa, &x), expected, "{length}, {}", isa.name());
        }
    }
}

#[test]
fn memory_that_the_system_does_not_give_is_an_error_that_says_what_to_do() {
    // More than an address can reach.
    let error = KvStore::new(1, 1 << 40, 1, 16).expect_err("2 PiB");
    assert!(matches!(error, KernelError::NoMemory { bytes, .. } if bytes == 1 << 51));
    assert!(error.to_string().contains("kv_bytes"), "{error}");
}
