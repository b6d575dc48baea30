//! Every architecture against its oracles: a reference in f64 for all of it, candle for the
//! reference, and, to the last bit, itself: from either kind of file, in any batch and any chunks.

mod blueprint;
mod candle;
mod devices;
mod folders;
mod reference;

use std::path::{Path, PathBuf};

use blueprint::{Blueprint, FAMILIES, Family, Stored};
use reference::{Mistake, Reference};

use crate::batch::{Batch, Span};
use crate::block::BLOCK_SIZE;
use crate::kernels::{Isa, WeightTarget};
use crate::model::decoder::{DecoderRunner, RunnerSize};
use crate::model::source::ModelSource;
use crate::model::weights::DecoderWeights;
use crate::random::SplitMix;
use crate::runner::Runner;
use crate::tests::tiny::{Answer, random_request, submit, wait};
use crate::{Engine, EngineConfig, GenerationRequest};

const POSITIONS: usize = 70;

fn tokens(seed: u64, count: usize) -> Vec<u32> {
    let mut random = SplitMix::new(seed);
    (0..count).map(|_| random.below(256) as u32).collect()
}

fn runner(path: &Path, target: WeightTarget, threads: usize) -> DecoderRunner {
    let source = ModelSource::open(path).expect("a good model");
    let weights = DecoderWeights::load(&source, target).expect("good weights");
    let size = RunnerSize {
        threads,
        blocks: 16,
        max_rows: 128,
        max_logit_rows: 128,
        context_tokens: 512,
    };
    DecoderRunner::new(weights, Isa::detect().expect("a sane environment"), size)
        .expect("the system gives it")
}

/// Logits at every position, computed in chunks of these many rows.
fn engine_logits(runner: &mut dyn Runner, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    let mut logits = Vec::new();
    for first in (0..tokens.len()).step_by(chunk) {
        let rows = chunk.min(tokens.len() - first);
        let blocks: Vec<u32> = (0..(first + rows).div_ceil(BLOCK_SIZE) as u32).collect();
        let batch = Batch {
            tokens: tokens[first..first + rows].to_vec(),
            positions: (first as u32..(first + rows) as u32).collect(),
            spans: vec![Span {
                rows: 0..rows,
                blocks: 0..blocks.len(),
                logits: 0..rows,
            }],
            blocks,
            logit_rows: (0..rows as u32).collect(),
            chunk_logits: std::iter::once(0..rows).collect(),
            mirrors: Vec::new(),
        };
        runner.forward(&batch).expect("a valid batch");
        logits.extend((0..rows).map(|row| runner.logits(row).to_vec()));
    }
    logits
}

fn wide(rows: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let widen = |row: &Vec<f32>| row.iter().map(|x| f64::from(*x)).collect();
    rows.iter().map(widen).collect()
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let greatest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - greatest).exp()).sum();
    logits.iter().map(|l| l - greatest - sum.ln()).collect()
}

/// KL(truth ‖ other) at every position.
fn divergences(truth: &[Vec<f64>], other: &[Vec<f64>]) -> Vec<f64> {
    assert_eq!(truth.len(), other.len());
    let one = |(truth, other): (&Vec<f64>, &Vec<f64>)| -> f64 {
        let (p, q) = (log_softmax(truth), log_softmax(other));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
    };
    truth.iter().zip(other).map(one).collect()
}

/// Their mean.
fn divergence(truth: &[Vec<f64>], other: &[Vec<f64>]) -> f64 {
    divergences(truth, other).iter().sum::<f64>() / truth.len() as f64
}

/// Their mean without the worst tenth: where two experts are nearly as likely, any rounding may take
/// the other one, and the position is another's.
fn divergence_but_for_ties(truth: &[Vec<f64>], other: &[Vec<f64>]) -> f64 {
    let mut all = divergences(truth, other);
    all.sort_by(f64::total_cmp);
    all.truncate(truth.len() * 9 / 10);
    all.iter().sum::<f64>() / all.len() as f64
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// What rounding activations to 8 bits may cost these models, which are made to be sensitive.
const BOUND: f64 = 0.01;
/// The smallest mistake must cost this much more than the rounding.
const TEETH: f64 = 10.0;

#[test]
fn the_reference_agrees_with_candle() {
    for family in FAMILIES {
        let blueprint = Blueprint::of(family).within_candle();
        let tensors = blueprint.tensors();
        let tokens = tokens(1, 40);
        let reference = Reference {
            blueprint: &blueprint,
            tensors: &tensors,
            mistake: None,
        };
        let ours = reference.logits(&tokens);
        let theirs = wide(&candle::logits(&blueprint, &tensors, &tokens));
        let distance = |(a, b): (&Vec<f64>, &Vec<f64>)| {
            let gap = a.iter().zip(b).map(|(a, b)| (a - b).abs());
            gap.fold(0.0, f64::max)
        };
        let worst = ours.iter().zip(&theirs).map(distance).fold(0.0, f64::max);
        println!("{family:?}: greatest difference of a logit {worst:.2e}");
        assert!(worst < 2e-3, "{family:?}: {worst}");
    }
}

/// What would be wrong with a family if one step were forgotten or mistaken.
fn mistakes(family: Family) -> Vec<Mistake> {
    use Mistake::*;
    let mut all = vec![WrongPairs];
    all.extend(match family {
        Family::Llama => vec![NoScaling, NoOutputBias],
        Family::Mistral => vec![NoWindow, WindowOneWider],
        Family::Mixtral => vec![NotRenormalised, OneExpert],
        Family::Qwen2 => vec![NoBias, NoScaling],
        Family::Qwen3 => vec![NoHeadNorms],
        Family::Qwen2Moe => vec![NoBias, Renormalised, NoSharedExpert, NoSharedGate],
        Family::Qwen3Moe => vec![NoHeadNorms, NotRenormalised],
        Family::Gemma2 => vec![
            NormLacksOne,
            Silu,
            NoEmbeddingScale,
            NoAttentionCap,
            NoFinalCap,
            NoPostNorms,
            NoWindow,
            WindowOneWider,
            LocalEverywhere,
        ],
        Family::Gemma3 => vec![
            NormLacksOne,
            NoHeadNorms,
            Silu,
            NoEmbeddingScale,
            NoPostNorms,
            OneRotation,
            NoScaling,
            NoWindow,
            WindowOneWider,
            LocalEverywhere,
        ],
    });
    all
}

/// What is wrong, if anything.
fn compare(blueprint: &Blueprint, path: &Path, mistakes: &[Mistake]) -> Vec<String> {
    let tensors = blueprint.tensors();
    let tokens = tokens(2, POSITIONS);
    let ours = wide(&engine_logits(
        &mut runner(path, WeightTarget::Q8_0, 1),
        &tokens,
        128,
    ));
    let truth = |mistake| {
        let reference = Reference {
            blueprint,
            tensors: &tensors,
            mistake,
        };
        let logits = reference.logits(&tokens);
        match blueprint.experts > 0 {
            true => divergence_but_for_ties(&logits, &ours),
            false => divergence(&logits, &ours),
        }
    };
    let own = truth(None);
    let family = blueprint.family;
    println!("{family:?}: KL {own:.6}");
    let mut wrong = Vec::new();
    if own >= BOUND {
        wrong.push(format!("{family:?}: KL {own} from the reference"));
    }
    for mistake in mistakes {
        let mistaken = truth(Some(*mistake));
        println!("{family:?}: {mistake:?} would give KL {mistaken:.4}");
        if mistaken <= TEETH * own {
            wrong.push(format!(
                "{family:?}: {mistake:?} gives KL {mistaken} only: nobody would see it"
            ));
        }
    }
    wrong
}

#[test]
fn logits_from_a_folder_agree_with_the_reference_and_any_mistake_would_show() {
    let folder = folder();
    let mut wrong = Vec::new();
    for family in FAMILIES {
        let blueprint = Blueprint::of(family);
        let path = blueprint.write_folder(folder.path(), Stored::F32, 1);
        let mut mistakes = mistakes(family);
        if blueprint.gemma() {
            mistakes.push(Mistake::ScaleOfTheHead);
        }
        wrong.extend(compare(&blueprint, &path, &mistakes));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn logits_from_a_gguf_file_agree_with_the_reference() {
    let folder = folder();
    let mut wrong = Vec::new();
    for family in FAMILIES {
        let blueprint = Blueprint::of(family).within_gguf();
        let path = blueprint.write_gguf(folder.path());
        wrong.extend(compare(&blueprint, &path, &mistakes(family)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_kind_of_file_gives_the_same_bits() {
    let folder = folder();
    for family in FAMILIES {
        let blueprint = Blueprint::of(family).within_gguf();
        let tokens = tokens(3, POSITIONS);
        let logits =
            |path: PathBuf| engine_logits(&mut runner(&path, WeightTarget::Q8_0, 1), &tokens, 128);
        let expected = logits(blueprint.write_folder(folder.path(), Stored::F32, 1));
        for (stored, shards) in [(Stored::F16, 1), (Stored::BF16, 1), (Stored::F32, 3)] {
            let found = logits(blueprint.write_folder(folder.path(), stored, shards));
            assert!(
                found == expected,
                "{family:?} {stored:?} in {shards} shards"
            );
        }
        // Llama's GGUF files have permuted rows, and so another order of sums.
        if blueprint.gguf_name() != "llama" {
            let found = logits(blueprint.write_gguf(folder.path()));
            assert!(found == expected, "{family:?} from GGUF");
        }
    }
}

#[test]
fn chunks_and_threads_change_no_bit() {
    let folder = folder();
    for family in FAMILIES {
        let path = Blueprint::of(family).write_gguf(folder.path());
        let tokens = tokens(4, POSITIONS);
        let expected = engine_logits(&mut runner(&path, WeightTarget::Q8_0, 1), &tokens, 128);
        for (chunk, threads) in [(1, 1), (7, 1), (32, 1), (33, 2), (128, 3)] {
            let mut runner = runner(&path, WeightTarget::Q8_0, threads);
            let found = engine_logits(&mut runner, &tokens, chunk);
            assert!(
                found == expected,
                "{family:?}: {chunk} rows, {threads} threads"
            );
        }
    }
}

#[test]
fn four_bits_are_coarser_and_still_the_same_model() {
    let folder = folder();
    let blueprint = Blueprint::of(Family::Qwen3);
    let path = blueprint.write_folder(folder.path(), Stored::BF16, 1);
    let tokens = tokens(5, POSITIONS);
    let tensors = blueprint.tensors();
    let reference = Reference {
        blueprint: &blueprint,
        tensors: &tensors,
        mistake: None,
    };
    let truth = reference.logits(&tokens);
    let loss = |target| {
        let mut runner = runner(&path, target, 1);
        divergence(&truth, &wide(&engine_logits(&mut runner, &tokens, 128)))
    };
    let (q8, q4_1, q4_0) = (
        loss(WeightTarget::Q8_0),
        loss(WeightTarget::Q4_1),
        loss(WeightTarget::Q4_0),
    );
    println!("KL: Q8_0 {q8:.6}, Q4_1 {q4_1:.4}, Q4_0 {q4_0:.4}");
    assert!(q8 < q4_1 && q4_1 < q4_0 && q4_0 < 1.0);
}

/// An engine over a model of this family.
fn engine(path: &Path, change: impl FnOnce(&mut EngineConfig)) -> Engine {
    let mut config = EngineConfig::new("tiny", path);
    config.threads = 1;
    change(&mut config);
    Engine::load(config).expect("the model loads")
}

fn answers(engine: &Engine, requests: &[GenerationRequest], at_once: bool) -> Vec<Answer> {
    let start = |r: &GenerationRequest| submit(&engine.handle(), r.clone());
    if !at_once {
        return requests.iter().map(|r| wait(start(r))).collect();
    }
    let waiting: Vec<_> = requests.iter().map(start).collect();
    waiting.into_iter().map(wait).collect()
}

#[test]
fn a_batch_gives_what_each_gets_alone_in_every_architecture() {
    let folder = folder();
    for family in FAMILIES {
        let path = Blueprint::of(family).write_gguf(folder.path());
        let mut random = SplitMix::new(60 + family as u64);
        let requests: Vec<_> = (0..7).map(|_| random_request(&mut random)).collect();
        let alone = answers(
            &engine(&path, |c| c.max_batch_tokens = 256),
            &requests,
            false,
        );
        let together = engine(&path, |c| {
            c.max_sequences = 5;
            c.max_batch_tokens = 40;
        });
        assert_eq!(answers(&together, &requests, true), alone, "{family:?}");
    }
}
