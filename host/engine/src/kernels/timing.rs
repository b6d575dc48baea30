//! How long does a pass over a small model take? Run by hand: `cargo test --release -p
//! homeostat-engine kernels::timing -- --ignored --nocapture --test-threads 1`. It prints and
//! asserts nothing about time: the machine is shared.

use std::time::Instant;

use super::tests::{noise, random_bytes};
use super::*;

const HIDDEN: usize = 576;
const FFN: usize = 1536;
const LAYERS: usize = 30;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const VOCAB: usize = 49152;

struct Layer {
    q: Matrix,
    k: Matrix,
    v: Matrix,
    o: Matrix,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

impl Layer {
    fn new(seed: u64) -> Layer {
        let q4 = |rows: usize, cols: usize| {
            let bytes = random_bytes(BlockFormat::Q4_1, rows, cols, seed + rows as u64);
            Matrix::repack(BlockFormat::Q4_1, rows, cols, &bytes).expect("well formed")
        };
        Layer {
            q: q4(HIDDEN, HIDDEN),
            k: q4(KV_HEADS * HEAD_DIM, HIDDEN),
            v: q4(KV_HEADS * HEAD_DIM, HIDDEN),
            o: q4(HIDDEN, HIDDEN),
            gate: q4(FFN, HIDDEN),
            up: q4(FFN, HIDDEN),
            down: q4(HIDDEN, FFN),
        }
    }
}

impl Layer {
    fn matrices(&mut self) -> [&mut Matrix; 7] {
        let Layer {
            q,
            k,
            v,
            o,
            gate,
            up,
            down,
        } = self;
        [q, k, v, o, gate, up, down]
    }
}

struct Run {
    isa: Isa,
    pool: Pool,
    x: Vec<f32>,
    norm: Vec<f32>,
    hidden: Activations,
    inner: Activations,
    out: [Vec<f32>; 4],
}

impl Run {
    /// One pass over the 210 matrices of SmolLM2-135M, with fused norms and SiLU.
    fn layers(&mut self, layers: &[Layer], rows: usize) {
        let Run {
            isa,
            pool,
            x,
            norm,
            hidden,
            inner,
            out,
        } = self;
        let [wide, up, small, other] = out;
        let x = &mut x[..rows * HIDDEN];
        for layer in layers {
            hidden.quantize_rms_norm(*isa, pool, x, norm, 1e-5, rows, HIDDEN);
            let kv = rows * KV_HEADS * HEAD_DIM;
            let mut qkv: [(&Matrix, &mut [f32]); 3] = [
                (&layer.q, &mut wide[..rows * HIDDEN]),
                (&layer.k, &mut small[..kv]),
                (&layer.v, &mut other[..kv]),
            ];
            matmul_group(*isa, pool, &mut qkv, hidden, rows);
            hidden.quantize(*isa, pool, wide, rows, HIDDEN);
            matmul(*isa, pool, &layer.o, hidden, rows, x, true);
            hidden.quantize_rms_norm(*isa, pool, x, norm, 1e-5, rows, HIDDEN);
            let mut gate_up: [(&Matrix, &mut [f32]); 2] = [
                (&layer.gate, &mut wide[..rows * FFN]),
                (&layer.up, &mut up[..rows * FFN]),
            ];
            matmul_group(*isa, pool, &mut gate_up, hidden, rows);
            inner.quantize_gated(*isa, pool, Activation::Silu, wide, up, rows, FFN);
            matmul(*isa, pool, &layer.down, inner, rows, x, true);
        }
    }
}

/// Best and median of some runs, in ms.
fn time(mut f: impl FnMut()) -> (f64, f64) {
    let mut took: Vec<f64> = (0..40)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    took.sort_by(f64::total_cmp);
    (took[0], took[took.len() / 2])
}

#[test]
#[ignore = "a measurement"]
fn how_long_does_a_pass_over_smollm2_take() {
    let mut layers: Vec<Layer> = (0..LAYERS as u64).map(Layer::new).collect();
    let mut all: Vec<&mut Matrix> = layers.iter_mut().flat_map(Layer::matrices).collect();
    Matrix::gather(&mut all);
    let bytes = random_bytes(BlockFormat::Q8_0, VOCAB, HIDDEN, 7);
    let lm_head = Matrix::repack(BlockFormat::Q8_0, VOCAB, HIDDEN, &bytes).expect("well formed");
    let most = 128;
    for isa in Isa::available() {
        if isa.name() == "portable" {
            continue;
        }
        let mut run = Run {
            isa,
            pool: Pool::new(2).expect("the system gives it"),
            x: noise(most * HIDDEN, 1),
            norm: noise(HIDDEN, 2),
            hidden: Activations::with_capacity(most, HIDDEN),
            inner: Activations::with_capacity(most, FFN),
            out: std::array::from_fn(|_| vec![0.0; most * FFN]),
        };
        let mut logits = vec![0.0; most * VOCAB];
        for threads in [1, 2] {
            run.pool.set_threads(threads);
            for rows in [1, 2, 4, 8, 16, 32, 128] {
                let (best, median) = time(|| run.layers(&layers, rows));
                let (head, head_median) = time(|| {
                    let out = &mut logits[..rows * VOCAB];
                    run.hidden
                        .quantize(isa, &mut run.pool, &run.x, rows, HIDDEN);
                    matmul(isa, &mut run.pool, &lm_head, &run.hidden, rows, out, false);
                });
                println!(
                    "{:>10} {threads} threads {rows:>3} rows: layers {best:6.2} ms (median {median:6.2}), lm_head {head:5.2} ({head_median:5.2})",
                    isa.name()
                );
            }
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn how_long_does_attention_take() {
    for isa in Isa::available() {
        if isa.name() == "portable" {
            continue;
        }
        let blocks = 8192 / BLOCK_TOKENS + 1;
        let mut kv = KvStore::new(LAYERS, blocks, KV_HEADS, HEAD_DIM).expect("the system gives it");
        let vector = noise(KV_HEADS * HEAD_DIM, 3);
        for layer in 0..LAYERS {
            for block in 0..blocks as u32 {
                for offset in 0..BLOCK_TOKENS {
                    kv.write(isa, layer, block, offset, &vector, &vector);
                }
            }
        }
        let table: Vec<u32> = (0..blocks as u32).collect();
        let mut pool = Pool::new(2).expect("the system gives it");
        let mut scratch = AttentionScratch::default();
        let shape = AttentionShape {
            heads: HEADS,
            scale: 0.125,
            window: None,
            softcap: None,
        };
        for threads in [1, 2] {
            pool.set_threads(threads);
            for (rows, context) in [
                (1, 256),
                (1, 1024),
                (1, 4096),
                (8, 1024),
                (128, 128),
                (128, 512),
            ] {
                let q = noise(rows * HEADS * HEAD_DIM, 4);
                let mut out = vec![0.0; q.len()];
                let metas: Vec<RowMeta<'_>> = (0..rows)
                    .map(|i| RowMeta {
                        position: context - rows + i,
                        block_table: &table,
                    })
                    .collect();
                let (best, median) = time(|| {
                    for layer in 0..LAYERS {
                        let view = kv.view(layer);
                        attention(
                            isa,
                            &mut pool,
                            &mut scratch,
                            &shape,
                            &q,
                            &view,
                            &metas,
                            &mut out,
                        );
                    }
                });
                println!(
                    "{:>10} {threads} threads {rows:>3} rows, context {context:>4}: attention {best:6.2} ms (median {median:6.2}) in 30 layers",
                    isa.name()
                );
            }
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn how_long_does_one_block_of_each_format_take() {
    let (outputs, cols) = (768, 768);
    let blocks = (outputs / 16 * cols / QUANT_BLOCK) as f64;
    let x = noise(256 * cols, 1);
    for isa in Isa::available() {
        if isa.name() == "portable" {
            continue;
        }
        for format in super::tests::QUANTISED {
            let bytes = random_bytes(format, outputs, cols, 3);
            let w = Matrix::repack(format, outputs, cols, &bytes).expect("well formed");
            let mut line = format!("{:>10} {format:?}:", isa.name());
            for rows in [1, 2, 3, 4, 6, 8, 16, 64, 256] {
                let pool = &mut Pool::new(1).expect("the system gives it");
                let mut a = Activations::with_capacity(rows, cols);
                a.quantize(isa, pool, &x, rows, cols);
                let mut out = vec![0.0; rows * outputs];
                let best = (0..if rows > 16 { 60 } else { 600 })
                    .map(|_| {
                        let start = Instant::now();
                        matmul(isa, pool, &w, &a, rows, &mut out, false);
                        start.elapsed().as_secs_f64() * 1e9
                    })
                    .fold(f64::INFINITY, f64::min);
                line += &format!(" {rows}: {:.2}", best / blocks / rows as f64);
            }
            println!("{line} ns per block of 16 x 32 and row");
        }
    }
}
