//! The draft model against a scripted runner and against itself: it keeps in step with what is
//! committed, loses no block, and never fails its target.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use super::*;
use crate::block::BlockCopy;
use crate::kernels::{Isa, WeightTarget};
use crate::model::decoder::{DecoderRunner, RunnerSize};
use crate::model::source::ModelSource;
use crate::model::weights::DecoderWeights;
use crate::random::{SplitMix, keyed};
use crate::runner::RunnerError;
use crate::sampler::{SamplingParams, TokenCounts};
use crate::tests::tiny;

const VOCABULARY: usize = 64;
/// A batch that contains this token fails; the next one panics.
const SPOILT: u32 = 62;
const POISON: u32 = 63;

/// Its next token is a hash of everything its blocks show; it counts its passes.
struct Scripted {
    slots: Vec<Option<(u32, u32)>>,
    logits: Vec<Vec<f32>>,
    passes: Arc<AtomicUsize>,
}

fn successor(history: impl Iterator<Item = u32>) -> u32 {
    let hash = history.fold(3, |hash, token| keyed(hash, u64::from(token)));
    (hash % 60) as u32
}

impl Runner for Scripted {
    fn forward(&mut self, batch: &Batch) -> Result<(), RunnerError> {
        self.passes.fetch_add(1, Relaxed);
        assert!(!batch.tokens.contains(&POISON), "poisoned on purpose");
        if batch.tokens.contains(&SPOILT) {
            return Err(RunnerError("spoilt on purpose".into()));
        }
        self.logits.clear();
        for span in &batch.spans {
            let blocks = &batch.blocks[span.blocks.clone()];
            let slot = |p: u32| {
                blocks[p as usize / BLOCK_SIZE] as usize * BLOCK_SIZE + p as usize % BLOCK_SIZE
            };
            for row in span.rows.clone() {
                let position = batch.positions[row];
                self.slots[slot(position)] = Some((batch.tokens[row], position));
            }
            for index in span.logits.clone() {
                let last = batch.positions[batch.logit_rows[index] as usize];
                let seen = (0..=last).map(|p| match self.slots[slot(p)] {
                    Some((token, position)) if position == p => token,
                    other => panic!("position {p} holds {other:?}"),
                });
                let mut row = vec![0.0; VOCABULARY];
                row[successor(seen) as usize] = 30.0;
                self.logits.push(row);
            }
        }
        Ok(())
    }

    fn logits(&self, index: usize) -> &[f32] {
        &self.logits[index]
    }

    fn copy_blocks(&mut self, _: &[BlockCopy]) {}
}

fn scripted(limits: DraftModelLimits) -> (DraftModel, Arc<AtomicUsize>) {
    let passes = Arc::default();
    let runner = Scripted {
        slots: vec![None; limits.blocks * BLOCK_SIZE],
        logits: Vec::new(),
        passes: Arc::clone(&passes),
    };
    (DraftModel::new(Box::new(runner), limits), passes)
}

const ROOMY: DraftModelLimits = DraftModelLimits {
    blocks: 40,
    max_rows: 256,
    max_logit_rows: 8,
    context_tokens: 500,
};

fn propose<'a>(drafter: &mut DraftModel, of: &[(u64, &'a [u32], usize)]) -> Vec<Vec<u32>> {
    let params = SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    };
    let counts = TokenCounts::default();
    let request = |(id, tokens, depth): &(u64, &'a [u32], usize)| DraftRequest {
        id: SequenceId(*id),
        tokens,
        num_prompt_tokens: 1,
        tenant: 0,
        seed: 1,
        params: &params,
        counts: &counts,
        max_depth: *depth,
        max_nodes: 100,
        may_compute: true,
    };
    let requests: Vec<DraftRequest<'_>> = of.iter().map(request).collect();
    let mut drafts = vec![Draft::default(); of.len()];
    drafter.propose(&requests, &mut drafts);
    assert!(drafts.iter().all(Draft::is_chain));
    let tokens = |d: &Draft| d.nodes().iter().map(|n| n.token).collect();
    drafts.iter().map(tokens).collect()
}

/// What the scripted model says next, by definition.
fn expected(tokens: &[u32], depth: usize) -> Vec<u32> {
    let mut whole = tokens.to_vec();
    for _ in 0..depth {
        whole.push(successor(whole.iter().copied()));
    }
    whole.split_off(tokens.len())
}

fn assert_conserved(drafter: &DraftModel) {
    drafter
        .pool
        .assert_conserved(drafter.sequences.values().map(|k| &k.table));
}

#[test]
fn random_acceptances_leave_the_draft_model_in_step_with_the_target() {
    for seed in 0..60 {
        let mut random = SplitMix::new(seed);
        let (mut drafter, _) = scripted(ROOMY);
        let mut texts: Vec<Vec<u32>> = (0..4)
            .map(|_| {
                (0..1 + random.below(70))
                    .map(|_| random.below(60) as u32)
                    .collect()
            })
            .collect();
        for _ in 0..40 {
            let depths: Vec<usize> = texts.iter().map(|_| random.below(6)).collect();
            let asked: Vec<(u64, &[u32], usize)> = (texts.iter().zip(&depths).zip(0..))
                .map(|((text, depth), id)| (id, &text[..], *depth))
                .collect();
            let drafts = propose(&mut drafter, &asked);
            assert_conserved(&drafter);
            for ((text, depth), draft) in texts.iter_mut().zip(depths).zip(drafts) {
                assert_eq!(draft, expected(text, depth), "seed {seed}");
                // Some of it holds; then the target says something of its own.
                text.extend(&draft[..random.below(draft.len() + 1)]);
                text.push(random.below(60) as u32);
            }
            if random.below(8) == 0 {
                let id = random.below(4);
                drafter.forget(SequenceId(id as u64));
                texts[id] = vec![random.below(60) as u32];
            }
        }
        (0..4).for_each(|id| drafter.forget(SequenceId(id)));
        assert_eq!(drafter.pool.free(), ROOMY.blocks, "seed {seed}");
    }
}

#[test]
fn all_requests_share_one_pass_per_draft_position() {
    let (mut drafter, passes) = scripted(ROOMY);
    let texts: [&[u32]; 3] = [&[1, 2, 3], &[4], &[5, 6]];
    propose(
        &mut drafter,
        &[(0, texts[0], 4), (1, texts[1], 2), (2, texts[2], 4)],
    );
    assert_eq!(passes.load(Relaxed), 4);
}

#[test]
fn a_full_pool_means_silence_and_not_failure() {
    let (mut drafter, _) = scripted(DraftModelLimits { blocks: 2, ..ROOMY });
    let long = vec![7; 60];
    let drafts = propose(&mut drafter, &[(0, &long, 3), (1, &[9, 9], 3)]);
    assert_eq!(drafts[0].len(), 3);
    assert!(drafts[1].is_empty(), "no block is left for it");
    drafter.forget(SequenceId(0));
    assert_eq!(
        propose(&mut drafter, &[(1, &[9, 9], 3)])[0],
        expected(&[9, 9], 3)
    );
    assert_conserved(&drafter);
}

#[test]
fn a_long_prompt_is_caught_up_with_over_several_proposals() {
    let limits = DraftModelLimits {
        max_rows: 50,
        ..ROOMY
    };
    let (mut drafter, passes) = scripted(limits);
    let long: Vec<u32> = (0..120).map(|i| i % 50).collect();
    for _ in 0..2 {
        assert!(propose(&mut drafter, &[(0, &long, 3)])[0].is_empty());
    }
    assert_eq!(passes.load(Relaxed), 2);
    assert_eq!(
        propose(&mut drafter, &[(0, &long, 3)])[0],
        expected(&long, 3)
    );
}

#[test]
fn drafts_end_with_the_context() {
    let limits = DraftModelLimits {
        context_tokens: 10,
        ..ROOMY
    };
    let (mut drafter, _) = scripted(limits);
    let lengths: Vec<usize> = [8, 10, 11]
        .iter()
        .zip(0..)
        .map(|(n, id)| propose(&mut drafter, &[(id, &vec![3; *n], 6)])[0].len())
        .collect();
    // Positions 8 and 9 can be computed, so three tokens can be guessed.
    assert_eq!(lengths, [3, 1, 0]);
}

#[test]
fn a_failing_model_falls_silent_and_gives_its_blocks_back() {
    let (mut drafter, passes) = scripted(ROOMY);
    assert!(propose(&mut drafter, &[(0, &[1, SPOILT], 3)])[0].is_empty());
    assert_eq!(
        propose(&mut drafter, &[(1, &[1, 2], 3)])[0].len(),
        3,
        "one failure is forgiven"
    );
    for bad in [POISON, SPOILT, POISON] {
        assert!(propose(&mut drafter, &[(2, &[bad], 3)])[0].is_empty());
    }
    drafter.forget(SequenceId(1));
    assert_eq!(drafter.pool.free(), ROOMY.blocks);
    let before = passes.load(Relaxed);
    assert!(propose(&mut drafter, &[(1, &[1, 2], 3)])[0].is_empty());
    assert_eq!(passes.load(Relaxed), before, "it is asked no more");
}

fn sampled<'a>(tokens: &'a [u32], params: &'a SamplingParams, depth: usize) -> DraftRequest<'a> {
    static NO_PENALTIES: OnceLock<TokenCounts> = OnceLock::new();
    DraftRequest {
        id: SequenceId(1),
        tokens,
        num_prompt_tokens: 40,
        tenant: 0,
        seed: 99,
        params,
        counts: NO_PENALTIES.get_or_init(TokenCounts::default),
        max_depth: depth,
        max_nodes: 10,
        may_compute: true,
    }
}

#[test]
fn a_model_that_drafts_for_itself_is_always_right_at_any_temperature() {
    let (_folder, path) = tiny::on_disk();
    let source = ModelSource::open(&path).expect("a good file");
    let runner = || {
        let weights = DecoderWeights::load(&source, WeightTarget::Q8_0).expect("a good model");
        let size = RunnerSize {
            threads: 1,
            blocks: ROOMY.blocks,
            max_rows: ROOMY.max_rows,
            max_logit_rows: ROOMY.max_logit_rows,
            context_tokens: ROOMY.context_tokens,
        };
        DecoderRunner::new(
            weights,
            Isa::named("portable").expect("it runs anywhere"),
            size,
        )
        .expect("the system gives it")
    };
    let params = SamplingParams::default();
    // A random model is never sure of anything, so every guess must be let through: a likely one
    // is made by sharpening.
    let sharp = SamplingParams {
        temperature: 0.0,
        ..params.clone()
    };
    for params in [&params, &sharp] {
        let mut guesses = 0;
        let mut tokens: Vec<u32> = (0..40).map(|i| i * 5 % 250).collect();
        let mut target = DraftModel::new(Box::new(runner()), ROOMY);
        let mut drafter = DraftModel::new(Box::new(runner()), ROOMY);
        for depth in [4, 3, 1, 6] {
            let mut alone = Vec::new();
            let mut drafts = [Draft::default()];
            drafter.propose(&[sampled(&tokens, params, depth)], &mut drafts);
            // The target takes one token at a time.
            for _ in 0..depth {
                let mut one = [Draft::default()];
                target.propose(&[sampled(&tokens, params, 1)], &mut one);
                let Some(node) = one[0].nodes().first() else {
                    break;
                };
                alone.push(node.token);
                tokens.push(node.token);
            }
            let drafted: Vec<u32> = drafts[0].nodes().iter().map(|n| n.token).collect();
            assert_eq!(drafted, alone);
            guesses += drafted.len();
            tokens.push(depth as u32);
        }
        assert!(guesses > 0, "nothing was compared");
    }
}

#[test]
fn models_of_other_vocabularies_are_refused_with_the_difference() {
    let target = tiny::tokenizer();
    assert_eq!(same_vocabulary(&target, &target), Ok(()));
    let other = |tokens: &[&str], end: u32| {
        let mut w = tiny::Writer::default();
        let texts: Vec<String> = tokens.iter().map(|t| (*t).to_owned()).collect();
        w.text("general.architecture", "llama");
        w.text("tokenizer.ggml.model", "gpt2");
        w.text("tokenizer.ggml.pre", "smollm");
        w.texts("tokenizer.ggml.tokens", &texts);
        w.texts("tokenizer.ggml.merges", &[]);
        w.uint("tokenizer.ggml.eos_token_id", end);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("vocabulary.gguf");
        std::fs::write(&path, w.finish().0).expect("the temporary folder is writable");
        Tokenizer::read(&ModelSource::open(&path).expect("a good file")).expect("a vocabulary")
    };
    let small = other(&["a", "b", "c"], 2);
    let difference = same_vocabulary(&target, &small).expect_err("sizes differ");
    assert!(difference.to_string().contains("264"), "{difference}");
    let swapped = same_vocabulary(&small, &other(&["a", "c", "b"], 2));
    let swapped = swapped.expect_err("tokens differ").to_string();
    assert!(swapped.contains("token 1 is \"c\""), "{swapped}");
    let ends = same_vocabulary(&small, &other(&["a", "b", "c"], 1));
    assert!(
        matches!(ends, Err(VocabularyMismatch::Ends { .. })),
        "{ends:?}"
    );
}
