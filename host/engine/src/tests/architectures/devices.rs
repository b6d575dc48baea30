//! The runner on candle's tensors against the same reference as the CPU's own: every family, every
//! kind of file, ragged batches, shared prefixes, copied blocks, mirrored rows. Within tolerances:
//! a device promises no bits.
//!
//! What runs here in every build uses candle's CPU device and so everything but the call of flash
//! attention; the tests that say so need a GPU, and are run there by
//! `cargo test --release -p homeostat-engine --features cuda -- --ignored cuda`.

use std::path::Path;

use candle_core::Device;

use super::blueprint::{Blueprint, FAMILIES, Family, Stored};
use super::reference::Reference;
use super::{POSITIONS, divergence, engine_logits, folder, tokens, wide};
use crate::batch::{Batch, Mirror, Span};
use crate::block::{BLOCK_SIZE, BlockCopy, BlockId};
use crate::model::decoder::RunnerSize;
use crate::model::source::ModelSource;
use crate::model::{CandleRunner, DeviceWeights};
use crate::runner::Runner;

/// What half-precision keys, values and 8-bit activations may cost.
const BOUND: f64 = 0.01;
/// Batches differ from each other by the order of sums only.
const ROUNDING: f64 = 1e-5;

fn on_device(path: &Path, device: &Device) -> CandleRunner {
    let source = ModelSource::open(path).expect("a good model");
    let weights = DeviceWeights::load(&source, device).expect("good weights");
    let size = RunnerSize {
        threads: 1,
        blocks: 16,
        max_rows: 128,
        max_logit_rows: 128,
        context_tokens: 512,
    };
    CandleRunner::new(weights, size).expect("a small cache")
}

/// Rows `first..` of `tokens` for every sequence, and its blocks; logits of every row.
fn ragged(sequences: &[(&[u32], usize, &[u32])]) -> Batch {
    let mut batch = Batch::default();
    for (tokens, first, blocks) in sequences {
        let (row, block) = (batch.tokens.len(), batch.blocks.len());
        batch.tokens.extend(&tokens[*first..]);
        batch.positions.extend(*first as u32..tokens.len() as u32);
        batch.blocks.extend(*blocks);
        batch.spans.push(Span {
            rows: row..batch.tokens.len(),
            blocks: block..batch.blocks.len(),
            logits: row..batch.tokens.len(),
        });
    }
    batch.logit_rows = (0..batch.tokens.len() as u32).collect();
    batch
}

fn run(runner: &mut CandleRunner, batch: &Batch) -> Vec<Vec<f64>> {
    runner.forward(batch).expect("a valid batch");
    let rows: Vec<Vec<f32>> = (0..batch.logit_rows.len())
        .map(|row| runner.logits(row).to_vec())
        .collect();
    wide(&rows)
}

fn top(row: &[f64]) -> usize {
    let greatest = |a: &(usize, &f64), b: &(usize, &f64)| a.1.total_cmp(b.1);
    row.iter().enumerate().max_by(greatest).expect("logits").0
}

/// Rows whose greatest logit is the reference's.
fn agreeing(truth: &[Vec<f64>], found: &[Vec<f64>]) -> usize {
    let pairs = truth.iter().zip(found);
    pairs.filter(|(a, b)| top(a) == top(b)).count()
}

/// Every family from every kind of file, in one batch and in chunks.
fn families_agree_with_the_reference(device: &Device) {
    let folder = folder();
    let mut wrong = Vec::new();
    for family in FAMILIES {
        let blueprint = Blueprint::of(family).within_gguf();
        let tensors = blueprint.tensors();
        let tokens = tokens(2, POSITIONS);
        let reference = Reference {
            blueprint: &blueprint,
            tensors: &tensors,
            mistake: None,
        };
        let truth = reference.logits(&tokens);
        let files = [
            blueprint.write_gguf(folder.path()),
            blueprint.write_folder(folder.path(), Stored::F32, 1),
            blueprint.write_folder(folder.path(), Stored::F16, 1),
            blueprint.write_folder(folder.path(), Stored::BF16, 3),
        ];
        for path in files {
            for chunk in [128, 7] {
                let mut runner = on_device(&path, device);
                let found = wide(&engine_logits(&mut runner, &tokens, chunk));
                let (kl, same) = (divergence(&truth, &found), agreeing(&truth, &found));
                println!("{family:?} {path:?}, {chunk} rows: KL {kl:.2e}, top {same}");
                if kl.is_nan() || kl >= BOUND || same * 10 < POSITIONS * 9 {
                    wrong.push(format!("{path:?}: KL {kl}, {same} of {POSITIONS} alike"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn neighbours_change_little(device: &Device) {
    let folder = folder();
    for family in [Family::Gemma3, Family::Qwen2Moe, Family::Mistral] {
        let path = Blueprint::of(family).write_folder(folder.path(), Stored::F32, 1);
        let all: Vec<Vec<u32>> = [70, 33, 1].map(|n| tokens(n as u64, n)).into();
        let tables: [&[u32]; 3] = [&[7, 2, 9], &[0, 5], &[3]];
        let alone: Vec<_> = all
            .iter()
            .zip(tables)
            .map(|(tokens, table)| {
                run(
                    &mut on_device(&path, device),
                    &ragged(&[(tokens, 0, table)]),
                )
            })
            .collect();
        let mut runner = on_device(&path, device);
        // One decodes while the others begin: 69 tokens of the first are there already.
        run(&mut runner, &ragged(&[(&all[0][..69], 0, tables[0])]));
        let batch = ragged(&[
            (&all[1], 0, tables[1]),
            (&all[0], 69, tables[0]),
            (&all[2], 0, tables[2]),
        ]);
        let found = run(&mut runner, &batch);
        let pieces = [
            (&alone[1][..], &found[..33]),
            (&alone[0][69..], &found[33..34]),
            (&alone[2][..], &found[34..]),
        ];
        for (alone, together) in pieces {
            let kl = divergence(alone, together);
            assert!(kl < ROUNDING, "{family:?}: KL {kl}");
        }
    }
}

fn blocks_are_shared_copied_and_mirrored(device: &Device) {
    let folder = folder();
    let path = Blueprint::of(Family::Gemma2).write_folder(folder.path(), Stored::F32, 1);
    let mut first = tokens(8, 40);
    let whole = run(
        &mut on_device(&path, device),
        &ragged(&[(&first, 0, &[4, 6])]),
    );

    // A second sequence takes the first's full block and computes the rest in its own.
    let mut runner = on_device(&path, device);
    run(&mut runner, &ragged(&[(&first, 0, &[4, 6])]));
    let shared = run(&mut runner, &ragged(&[(&first, BLOCK_SIZE, &[4, 11])]));
    let kl = divergence(&whole[BLOCK_SIZE..], &shared);
    assert!(kl < ROUNDING, "a shared prefix: KL {kl}");

    // A fork copies the last block and goes on alone; the original changes afterwards.
    let copy = BlockCopy {
        from: BlockId(6),
        to: BlockId(9),
    };
    runner.copy_blocks(&[copy]);
    let other = tokens(9, 40);
    run(&mut runner, &ragged(&[(&other, BLOCK_SIZE, &[4, 6])]));
    first.extend([17, 42]);
    let expected = run(
        &mut on_device(&path, device),
        &ragged(&[(&first, 0, &[0, 1])]),
    );
    let forked = run(&mut runner, &ragged(&[(&first, 40, &[4, 9])]));
    let kl = divergence(&expected[40..], &forked);
    assert!(kl < ROUNDING, "a copied block: KL {kl}");

    // A row that is mirrored to another block is seen from there, in the same pass.
    let mut runner = on_device(&path, device);
    run(&mut runner, &ragged(&[(&first[..BLOCK_SIZE], 0, &[4])]));
    let trunk = &first[..BLOCK_SIZE + 1];
    let mut batch = ragged(&[
        (trunk, BLOCK_SIZE, &[4, 2]),
        (&first[..BLOCK_SIZE + 2], BLOCK_SIZE + 1, &[4, 13]),
    ]);
    let mirror = Mirror { row: 0, block: 13 };
    batch.mirrors.push(mirror);
    let branch = run(&mut runner, &batch);
    let kl = divergence(&expected[BLOCK_SIZE..BLOCK_SIZE + 2], &branch);
    assert!(kl < ROUNDING, "a mirrored row: KL {kl}");
    batch.mirrors.clear();
    let mut without = on_device(&path, device);
    run(&mut without, &ragged(&[(&first[..BLOCK_SIZE], 0, &[4])]));
    let blind = run(&mut without, &batch);
    let kl = divergence(&expected[BLOCK_SIZE + 1..BLOCK_SIZE + 2], &blind[1..]);
    assert!(
        kl > ROUNDING,
        "without the mirror nobody would notice: KL {kl}"
    );
}

#[test]
fn logits_in_tensors_agree_with_the_reference_in_every_family() {
    families_agree_with_the_reference(&Device::Cpu);
}

#[test]
fn neighbours_in_tensors_change_a_row_by_rounding_only() {
    neighbours_change_little(&Device::Cpu);
}

#[test]
fn blocks_in_tensors_are_shared_copied_and_mirrored() {
    blocks_are_shared_copied_and_mirrored(&Device::Cpu);
}

#[test]
fn a_batch_that_breaks_the_scheduler_s_promises_is_refused_on_a_device() {
    let folder = folder();
    let path = Blueprint::of(Family::Llama).write_folder(folder.path(), Stored::F32, 1);
    let mut runner = on_device(&path, &Device::Cpu);
    let tokens = tokens(1, 40);
    let good = || ragged(&[(&tokens, 0, &[1, 2])]);
    let mut refuse = |what: &str, change: fn(&mut Batch), words: &str| {
        let mut batch = good();
        change(&mut batch);
        let error = runner.forward(&batch).expect_err(what).to_string();
        assert!(error.contains(words), "{what}: {error}");
    };
    refuse(
        "block",
        |b| b.blocks[1] = 16,
        "a block that the cache has not",
    );
    refuse(
        "few blocks",
        |b| b.spans[0].blocks = 0..1,
        "rows without blocks",
    );
    refuse("gap", |b| b.positions[39] = 41, "do not follow");
    refuse("lost rows", |b| b.spans.clear(), "rows of nobody");
    refuse(
        "token",
        |b| b.tokens[3] = u32::MAX,
        "outside the vocabulary",
    );
    let mirror = Mirror { row: 40, block: 3 };
    let mut batch = good();
    batch.mirrors.push(mirror);
    let error = runner.forward(&batch).expect_err("no such row");
    assert!(error.to_string().contains("mirrors a row"), "{error}");
    runner.forward(&good()).expect("a good batch afterwards");
}

/// As the engine starts one: what it computed for nobody changes nothing for anybody.
#[test]
fn a_runner_that_is_warm_answers_as_a_cold_one() {
    let folder = folder();
    for family in [Family::Gemma3, Family::Qwen2Moe] {
        let path = Blueprint::of(family).write_folder(folder.path(), Stored::F32, 1);
        let tokens = tokens(3, 40);
        let batch = ragged(&[(&tokens, 0, &[0, 2])]);
        let cold = run(&mut on_device(&path, &Device::Cpu), &batch);
        let mut runner = on_device(&path, &Device::Cpu);
        runner.warm_up().expect("any runner can be warmed");
        assert!(run(&mut runner, &batch) == cold, "{family:?}");
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::*;
    use crate::EngineConfig;
    use crate::random::SplitMix;
    use crate::tests::architectures::{answers, engine};
    use crate::tests::tiny::random_request;

    fn gpu() -> Device {
        Device::new_cuda(0).expect("an NVIDIA GPU")
    }

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn logits_on_cuda_agree_with_the_reference_in_every_family() {
        families_agree_with_the_reference(&gpu());
    }

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn neighbours_on_cuda_change_a_row_by_rounding_only() {
        neighbours_change_little(&gpu());
    }

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn blocks_on_cuda_are_shared_copied_and_mirrored() {
        blocks_are_shared_copied_and_mirrored(&gpu());
    }

    /// As the engine does it. Each thread has a stream of its own on the device, so weights that
    /// are not there yet when another thread computes would be seen here.
    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn weights_loaded_by_one_thread_on_cuda_serve_another() {
        let folder = folder();
        let path = Blueprint::of(Family::Qwen3).write_folder(folder.path(), Stored::F32, 1);
        let tokens = tokens(3, 40);
        let batch = ragged(&[(&tokens, 0, &[7, 2])]);
        let device = gpu();
        let expected = run(&mut on_device(&path, &device), &batch);
        for _ in 0..20 {
            let mut runner = on_device(&path, &device);
            let found = std::thread::scope(|scope| {
                let elsewhere = scope.spawn(|| run(&mut runner, &batch));
                elsewhere.join().expect("the same batch again")
            });
            let kl = divergence(&expected, &found);
            assert!(kl < ROUNDING, "on another thread: KL {kl}");
        }
    }

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn an_engine_on_cuda_answers_everybody() {
        let folder = folder();
        for family in FAMILIES {
            let path = Blueprint::of(family).write_gguf(folder.path());
            let mut random = SplitMix::new(5);
            let requests: Vec<_> = (0..7).map(|_| random_request(&mut random)).collect();
            let change = |c: &mut EngineConfig| c.device = crate::Device::Cuda(0);
            let found = answers(&engine(&path, change), &requests, true);
            assert!(found.iter().all(|a| !a.tokens.is_empty()), "{family:?}");
        }
    }
}
