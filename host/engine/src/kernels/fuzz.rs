//! Every kernel against scalar f64 at random shapes, on a random instruction set and number of
//! threads; and the portable kernel's bits. A failure prints the seed of its round.

use crate::random::SplitMix;

use super::tests::{FORMATS, Story, assert_same_bits, noise, random_bytes, reference_weights};
use super::*;

const ROUNDS: u64 = 60;

/// What a round is about.
struct Round {
    seed: u64,
    random: SplitMix,
    isa: Isa,
    pool: Pool,
}

impl Round {
    fn new(seed: u64) -> Round {
        let mut random = SplitMix::new(seed);
        let isas = Isa::available();
        let isa = isas[random.below(isas.len())];
        let pool = Pool::new(1 + random.below(3)).expect("the system gives it");
        Round {
            seed,
            random,
            isa,
            pool,
        }
    }

    fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.random.below(high - low + 1)
    }

    fn noise(&mut self, len: usize) -> Vec<f32> {
        noise(len, self.random.next())
    }

    #[track_caller]
    fn assert_near(&self, got: f32, exact: f64, allowed: f64, what: &str) {
        assert!(
            (f64::from(got) - exact).abs() <= allowed,
            "seed {}, {}: {what}: {got} for {exact}, allowed {allowed}",
            self.seed,
            self.isa.name()
        );
    }

    #[track_caller]
    fn assert_bits(&self, got: &[f32], portable: &[f32], what: &str) {
        let what = format!("seed {}, {}: {what}", self.seed, self.isa.name());
        assert_same_bits(got, portable, &what);
    }
}

fn portable() -> Isa {
    Isa::named("portable").expect("always there")
}

/// Half a step of the activations' quantisation, per weight, and the sums' own rounding.
fn allowed_error(w: &[f64], x: &[f64]) -> f64 {
    let size: f64 = w.iter().zip(x).map(|(w, x)| (w * x).abs()).sum();
    let blocks = w.chunks_exact(QUANT_BLOCK).zip(x.chunks_exact(QUANT_BLOCK));
    let quantised: f64 = blocks
        .map(|(w, x)| {
            let step = x.iter().fold(0f64, |m, x| m.max(x.abs())) / 254.0;
            w.iter().map(|w| w.abs() * step * 1.01).sum::<f64>()
        })
        .sum();
    quantised + 1e-5 * size + 1e-5
}

#[test]
fn products_at_random_shapes_agree_with_f64() {
    for seed in 0..ROUNDS {
        let mut r = Round::new(seed);
        let format = FORMATS[r.random.below(FORMATS.len())];
        let cols = format.block_cols() * r.between(1, 512 / format.block_cols());
        let (outputs, rows) = (r.between(1, 70), r.between(1, 35));
        let bytes = random_bytes(format, outputs, cols, seed + 1);
        let w = Matrix::repack(format, outputs, cols, &bytes).expect("well formed");
        let weights: Vec<f64> = match format.is_float() {
            // Their own quantisation is somebody else's test.
            true => (0..outputs)
                .flat_map(|o| {
                    let mut row = vec![0.0; cols];
                    w.dequantize_row(o, &mut row);
                    row.into_iter().map(f64::from)
                })
                .collect(),
            false => reference_weights(format, &bytes),
        };
        let x = r.noise(rows * cols);
        let mut a = Activations::with_capacity(rows, cols);
        let mut results = Vec::new();
        for isa in [r.isa, portable()] {
            a.quantize(isa, &mut r.pool, &x, rows, cols);
            let mut out = vec![f32::NAN; rows * outputs];
            matmul(isa, &mut r.pool, &w, &a, rows, &mut out, false);
            results.push(out);
        }
        r.assert_bits(&results[0], &results[1], "product");
        for (x, out) in x.chunks_exact(cols).zip(results[0].chunks_exact(outputs)) {
            let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            for (w, out) in weights.chunks_exact(cols).zip(out) {
                let exact = w.iter().zip(&x).map(|(w, x)| w * x).sum();
                r.assert_near(*out, exact, allowed_error(w, &x), &format!("{format:?}"));
            }
        }
    }
}

/// What a product with the identity gives back: the activations after their quantisation.
fn quantised(r: &mut Round, isa: Isa, a: &Activations) -> Vec<f32> {
    let (rows, cols) = (a.rows(), a.cols());
    let identity: Vec<u8> = (0..cols * cols)
        .flat_map(|i| f32::from(u8::from(i / cols == i % cols)).to_le_bytes())
        .collect();
    let w = Matrix::repack(BlockFormat::F32, cols, cols, &identity).expect("well formed");
    let mut out = vec![f32::NAN; rows * cols];
    matmul(isa, &mut r.pool, &w, a, rows, &mut out, false);
    out
}

#[test]
fn gates_and_norms_at_random_shapes_agree_with_f64() {
    for seed in 0..ROUNDS {
        let mut r = Round::new(seed);
        let (rows, cols) = (r.between(1, 40), 32 * r.between(1, 6));
        let (gate, up, weight) = (r.noise(rows * cols), r.noise(rows * cols), r.noise(cols));
        let mut a = Activations::with_capacity(rows, cols);
        for what in ["silu", "gelu", "norm"] {
            let mut results = Vec::new();
            for isa in [r.isa, portable()] {
                let pool = &mut r.pool;
                match what {
                    "silu" => {
                        a.quantize_gated(isa, pool, Activation::Silu, &gate, &up, rows, cols);
                    }
                    "gelu" => {
                        a.quantize_gated(isa, pool, Activation::GeluTanh, &gate, &up, rows, cols);
                    }
                    _ => a.quantize_rms_norm(isa, pool, &gate, &weight, 1e-6, rows, cols),
                }
                results.push(quantised(&mut r, isa, &a));
            }
            r.assert_bits(&results[0], &results[1], what);
            for (row, out) in results[0].chunks_exact(cols).enumerate() {
                let at = row * cols..(row + 1) * cols;
                let exact = exact_row(what, &gate[at.clone()], &up[at], &weight);
                let blocks = out.chunks_exact(32).zip(exact.chunks_exact(32));
                for (out, exact) in blocks {
                    let greatest = exact.iter().fold(0f64, |m, x| m.max(x.abs()));
                    // Half a step, and the weight 1 that Q8_0 holds as 127 times an f16.
                    let allowed = greatest * (1.01 / 254.0 + 6e-4) + 1e-9;
                    for (out, exact) in out.iter().zip(exact) {
                        r.assert_near(*out, *exact, allowed, what);
                    }
                }
            }
        }
    }
}

fn exact_row(what: &str, gate: &[f32], up: &[f32], weight: &[f32]) -> Vec<f64> {
    let squares: f64 = gate.iter().map(|x| f64::from(*x).powi(2)).sum();
    let rms = (squares / gate.len() as f64 + 1e-6).sqrt();
    let values = gate.iter().zip(up).zip(weight);
    values
        .map(|((g, u), w)| {
            let (g, u, w) = (f64::from(*g), f64::from(*u), f64::from(*w));
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
            match what {
                "silu" => g / (1.0 + (-g).exp()) * u,
                "gelu" => 0.5 * g * (1.0 + inner.tanh()) * u,
                _ => g / rms * w,
            }
        })
        .collect()
}

#[test]
fn rows_of_floats_at_random_shapes_agree_with_f64() {
    for seed in 0..ROUNDS {
        let mut r = Round::new(seed);
        let (rows, cols) = (r.between(1, 9), 16 * r.between(1, 20));
        let (x, y, weight) = (r.noise(rows * cols), r.noise(rows * cols), r.noise(cols));
        let results = [r.isa, portable()].map(|isa| {
            let (mut normed, mut in_place) = (vec![f32::NAN; x.len()], x.clone());
            rms_norm(isa, &x, &weight, 1e-6, &mut normed);
            rms_norm_in_place(isa, &mut in_place, &weight, 1e-6);
            assert_same_bits(&in_place, &normed, "a norm in place is the norm");
            let mut added = y.clone();
            add_rms_norm(isa, &x, &weight, 1e-6, &mut added);
            let mut sum = y.clone();
            add_in_place(&mut sum, &normed);
            assert_same_bits(&added, &sum, "an added norm is the norm, added");
            normed
        });
        r.assert_bits(&results[0], &results[1], "norm");
        for (row, out) in results[0].chunks_exact(cols).enumerate() {
            let x = &x[row * cols..][..cols];
            for (out, exact) in out.iter().zip(exact_row("norm", x, x, &weight)) {
                r.assert_near(*out, exact, 2e-6 * exact.abs(), "norm");
            }
        }
        let mut biased = x.clone();
        add_bias(&mut biased, &weight);
        for (i, b) in biased.iter().enumerate() {
            assert_eq!(
                b.to_bits(),
                (x[i] + weight[i % cols]).to_bits(),
                "seed {seed}"
            );
        }
        caps_and_softmax(&mut r);
    }
}

fn caps_and_softmax(r: &mut Round) {
    let len = r.between(1, 300);
    let x: Vec<f32> = r.noise(len).iter().map(|x| x * 20.0).collect();
    let cap = 1.0 + r.random.below(100) as f32;
    let capped = [r.isa, portable()].map(|isa| {
        let mut x = x.clone();
        softcap_in_place(isa, &mut x, cap);
        x
    });
    r.assert_bits(&capped[0], &capped[1], "cap");
    for (got, x) in capped[0].iter().zip(&x) {
        let exact = f64::from(cap) * (f64::from(*x) / f64::from(cap)).tanh();
        r.assert_near(*got, exact, 1e-6 * f64::from(cap), "cap");
    }
    let shares = [r.isa, portable()].map(|isa| {
        let mut x = x.clone();
        softmax_in_place(isa, &mut x);
        x
    });
    r.assert_bits(&shares[0], &shares[1], "softmax");
    let greatest = x.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
    let sum: f64 = x.iter().map(|x| f64::from(x - greatest).exp()).sum();
    for (got, x) in shares[0].iter().zip(&x) {
        let exact = f64::from(x - greatest).exp() / sum;
        r.assert_near(*got, exact, 4e-6 * exact + 1e-37, "softmax");
    }
}

#[test]
fn attention_at_random_shapes_agrees_with_f64() {
    for seed in 0..ROUNDS / 3 {
        let mut r = Round::new(seed);
        let kv_heads = r.between(1, 3);
        let heads = kv_heads * r.between(1, 14);
        let d = 16 * r.between(1, 16);
        let lengths: Vec<usize> = (0..r.between(1, 3)).map(|_| r.between(1, 600)).collect();
        let story = Story::new(r.isa, &lengths, heads, kv_heads, d);
        let window = (r.random.below(2) == 1).then(|| r.between(1, 400));
        let softcap = (r.random.below(2) == 1).then(|| r.between(1, 50) as f32);
        let shape = AttentionShape {
            window,
            softcap,
            ..story.shape()
        };
        let mut rows = Vec::new();
        for (sequence, length) in lengths.iter().enumerate() {
            let last = r.between(0, length - 1);
            let first = last.saturating_sub(r.between(0, 20));
            rows.extend((first..=last).map(|position| (sequence, position)));
        }
        let got = story.attend(r.isa, r.pool.max_threads(), &shape, &rows);
        r.assert_bits(
            &got,
            &story.attend(portable(), 1, &shape, &rows),
            "attention",
        );
        for (row, out) in rows.iter().zip(got.chunks_exact(heads * d)).step_by(5) {
            for (got, exact) in out.iter().zip(story.exact(&shape, row.0, row.1)) {
                r.assert_near(*got, exact, 5e-4, &format!("{shape:?} at {row:?}"));
            }
        }
    }
}

#[test]
fn rotation_and_storage_of_many_rows_are_those_of_single_rows() {
    for seed in 0..ROUNDS {
        let mut r = Round::new(seed);
        let (heads, kv_heads, d) = (r.between(1, 9), r.between(1, 4), 16 * r.between(1, 8));
        let count = r.between(1, 150);
        let first = r.between(0, 60);
        let blocks = (first + count).div_ceil(BLOCK_TOKENS);
        let table: Vec<u32> = (0..blocks as u32).rev().collect();
        let rows: Vec<RowMeta<'_>> = (first..first + count)
            .map(|position| RowMeta {
                position,
                block_table: &table,
            })
            .collect();
        let style = [RopeStyle::Interleaved, RopeStyle::HalfSplit][r.random.below(2)];
        let rope = RopeTable::new(style, d, 10_000.0, &[], first + count);
        let (mut k, v) = (r.noise(count * kv_heads * d), r.noise(count * kv_heads * d));
        let mut single = k.clone();
        for (row, meta) in single.chunks_exact_mut(kv_heads * d).zip(&rows) {
            rope_in_place(&rope, row, d, meta.position);
        }
        rope_rows(&mut r.pool, &rope, &mut k, d, &rows);
        r.assert_bits(&k, &single, "rotation");
        let mut stores =
            [(); 2].map(|()| KvStore::new(2, blocks, kv_heads, d).expect("the system gives it"));
        stores[0].write_rows(r.isa, &mut r.pool, 1, &rows, &k, &v);
        let tokens = k
            .chunks_exact(kv_heads * d)
            .zip(v.chunks_exact(kv_heads * d));
        for ((k, v), meta) in tokens.zip(&rows) {
            let block = table[meta.position / BLOCK_TOKENS];
            stores[1].write(portable(), 1, block, meta.position % BLOCK_TOKENS, k, v);
        }
        let q = r.noise(count * heads * kv_heads * d);
        let shape = AttentionShape {
            heads: heads * kv_heads,
            scale: 0.1,
            window: None,
            softcap: None,
        };
        // Keys before `first` were never written: both stores hold zeros there.
        let attended = stores.map(|store| {
            let mut out = vec![f32::NAN; q.len()];
            let scratch = &mut AttentionScratch::default();
            let view = &store.view(1);
            attention(
                r.isa,
                &mut r.pool,
                scratch,
                &shape,
                &q,
                view,
                &rows,
                &mut out,
            );
            out
        });
        r.assert_bits(&attended[0], &attended[1], "storage");
    }
}
