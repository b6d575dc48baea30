//! What must be equal to the last bit: an answer does not know its neighbours, its chunks, its
//! preemptions or the number of threads. Compared are tokens, text and the bits of every
//! log-probability. A failure names the seed.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::tiny::{self, Answer, Collect, END, engine, random_request, submit, wait};
use crate::kernels::{Isa, WeightTarget};
use crate::model::decoder::{DecoderRunner, RunnerSize};
use crate::model::source::ModelSource;
use crate::model::weights::DecoderWeights;
use crate::random::SplitMix;
use crate::scheduler::Limits;
use crate::sequence::{Order, Purpose, Sequence, SequenceId};
use crate::speculation::model::DraftModelLimits;
use crate::speculation::{Draft, DraftModel, DraftRequest, Drafter};
use crate::stats::{EngineStats, StatsCell};
use crate::step::Core;
use crate::{
    DrafterKind, Engine, EngineConfig, GenerationRequest, PoolLimits, Prompt, SpeculationConfig,
};

fn requests(seed: u64, count: usize) -> Vec<GenerationRequest> {
    let mut random = SplitMix::new(seed);
    (0..count).map(|_| random_request(&mut random)).collect()
}

/// The answers to `requests`, all submitted at once.
fn together(requests: &[GenerationRequest], change: impl FnOnce(&mut EngineConfig)) -> Vec<Answer> {
    let engine = engine(change);
    let waiting: Vec<_> = requests
        .iter()
        .map(|r| submit(&engine.handle(), r.clone()))
        .collect();
    waiting.into_iter().map(wait).collect()
}

/// The answers to `requests`, each with the engine to itself and its prompt in one chunk.
fn alone(requests: &[GenerationRequest]) -> Vec<Answer> {
    let engine = engine(|c| {
        c.max_batch_tokens = 512;
        c.prefix_cache = false;
        c.speculation.drafters.clear();
    });
    requests
        .iter()
        .map(|r| wait(submit(&engine.handle(), r.clone())))
        .collect()
}

#[test]
fn a_batch_gives_what_each_gets_alone() {
    for seed in 0..6 {
        let requests = requests(seed, 9);
        assert_eq!(together(&requests, |_| ()), alone(&requests), "seed {seed}");
    }
}

#[test]
fn any_chunking_gives_what_one_shot_gives() {
    let requests = requests(77, 6);
    let expected = alone(&requests);
    for max_batch_tokens in [7, 8, 31, 32, 33, 100] {
        let chunked = together(&requests, |c| {
            c.max_sequences = 6;
            c.max_batch_tokens = max_batch_tokens;
        });
        assert_eq!(chunked, expected, "{max_batch_tokens} rows per step");
    }
}

/// Drives the step without a thread, so that everybody arrives at once. Returns the answers and
/// how often somebody had to give way.
fn with_blocks(requests: &[GenerationRequest], total_blocks: usize) -> (Vec<Answer>, u64) {
    let (answers, stats) = stepped(requests, total_blocks, None);
    (answers, stats.num_preemptions_total)
}

/// As [`with_blocks`], with somebody to propose up to 8 tokens, who also makes prefixes findable.
fn stepped(
    requests: &[GenerationRequest],
    total_blocks: usize,
    drafter: Option<Box<dyn Drafter>>,
) -> (Vec<Answer>, EngineStats) {
    let isa = Isa::detect().expect("a sane environment");
    stepped_on(isa, requests, total_blocks, drafter)
}

fn stepped_on(
    isa: Isa,
    requests: &[GenerationRequest],
    total_blocks: usize,
    drafter: Option<Box<dyn Drafter>>,
) -> (Vec<Answer>, EngineStats) {
    let (_folder, path) = tiny::on_disk();
    let weights = DecoderWeights::load(
        &ModelSource::open(&path).expect("a good file"),
        WeightTarget::Q8_0,
    )
    .expect("good weights");
    let limits = Limits {
        max_sequences: 8,
        max_batch_tokens: 64,
        max_logit_rows: 40,
        context_tokens: 2_048,
        total_blocks,
    };
    let size = RunnerSize {
        threads: 1,
        blocks: total_blocks,
        max_rows: limits.max_batch_tokens,
        max_logit_rows: limits.max_logit_rows,
        context_tokens: limits.context_tokens,
    };
    let runner = Box::new(DecoderRunner::new(weights, isa, size).expect("the system gives it"));
    let stats = Arc::new(StatsCell::default());
    let mut core = Core::new(limits, runner, tiny::tokenizer(), Arc::clone(&stats));
    if let Some(drafter) = drafter {
        core = core.with_prefix_cache([1; 32]).with_drafter(drafter, None);
    }
    let mut events = Vec::new();
    for (id, request) in requests.iter().enumerate() {
        let Prompt::Tokens(tokens) = request.prompt.clone() else {
            unreachable!("made of tokens")
        };
        let end = limits
            .admit(tokens.len(), request.max_new_tokens)
            .expect("it fits alone");
        let (sender, receiver) = channel();
        events.push(receiver);
        let mut sequence = Sequence::new(Order {
            id: SequenceId(id as u64),
            tokens,
            purpose: Purpose::Generate { end },
            params: request.params.clone(),
            default_seed: 0,
            stops: Vec::new(),
            arrived: Duration::ZERO,
            sink: Box::new(Collect(sender)),
        });
        sequence.max_draft_tokens = 8;
        sequence.draft_hint = request.draft_hint.clone();
        core.add(sequence);
    }
    while !core.is_idle() {
        core.step(Duration::ZERO);
        core.deliver(Duration::ZERO);
    }
    (events.into_iter().map(wait).collect(), stats.read())
}

/// Knows the answers, and proposes trees in which a token is right `right` times in ten.
struct Knowing {
    answers: Vec<Vec<u32>>,
    random: SplitMix,
    right: usize,
}

impl Drafter for Knowing {
    fn propose(&mut self, requests: &[DraftRequest<'_>], drafts: &mut [Draft]) {
        for (request, draft) in requests.iter().zip(drafts) {
            let answer = &self.answers[request.id.0 as usize];
            let known = &answer[request.tokens.len() - request.num_prompt_tokens..];
            for _branch in 0..self.random.below(4) {
                let depth = self.random.below(request.max_depth + 1);
                let mut parent = None;
                for token in known.iter().take(depth) {
                    let right = self.random.below(10) < self.right;
                    let token = if right {
                        *token
                    } else {
                        self.random.below(256) as u32
                    };
                    if draft.len() == request.max_nodes {
                        break;
                    }
                    parent = draft.push(token, parent, 0);
                }
            }
        }
    }

    fn observe(&mut self, _: SequenceId, _: &[u32], _: usize, _: usize) {}

    fn forget(&mut self, _: SequenceId) {}
}

#[test]
fn any_draft_gives_what_no_draft_gives() {
    let mut accepted = 0;
    for seed in 0..6 {
        let mut requests = requests(seed, 8);
        for request in &mut requests {
            request.max_new_tokens = Some(60);
        }
        let (plain, _) = stepped(&requests, 200, None);
        // The last pool is so small that drafts find no blocks and sequences give way.
        for (right, blocks) in [(0, 200), (5, 200), (8, 200), (10, 200), (8, 9)] {
            let answers = plain.iter().map(|a| a.tokens.iter().map(|t| t.0).collect());
            let drafter = Knowing {
                answers: answers.collect(),
                random: SplitMix::new(seed),
                right,
            };
            let (drafted, stats) = stepped(&requests, blocks, Some(Box::new(drafter)));
            assert_eq!(
                drafted, plain,
                "seed {seed}, {right} of 10 right, {blocks} blocks"
            );
            accepted += stats.spec_decode_num_accepted_tokens_total;
        }
    }
    assert!(accepted > 500, "{accepted} accepted tokens prove nothing");
}

/// Prompts that repeat themselves, so that drafters have something to find.
fn repetitive(seed: u64) -> Vec<GenerationRequest> {
    let mut random = SplitMix::new(seed);
    let mut requests = requests(seed, 8);
    for request in &mut requests {
        let phrase: Vec<u32> = (0..4 + random.below(12))
            .map(|_| random.below(256) as u32)
            .collect();
        request.prompt = Prompt::Tokens(phrase.repeat(6));
        request.max_new_tokens = Some(90);
        request.params.repetition_penalty = 1.0;
        // A random model repeats itself when it is let off the leash.
        request.params.temperature *= 0.3;
    }
    requests
}

#[test]
fn every_drafter_and_length_gives_what_none_gives() {
    let (_folder, path) = tiny::on_disk();
    let both = vec![DrafterKind::Ngram, DrafterKind::Suffix];
    let mut accepted = [0; 4];
    for seed in 0..3 {
        let requests = repetitive(seed);
        let expected = alone(&requests);
        let drafters = [
            (vec![DrafterKind::Ngram], None),
            (vec![DrafterKind::Suffix], None),
            (Vec::new(), Some(path.clone())),
            (both.clone(), Some(path.clone())),
        ];
        for ((drafters, draft_model), accepted) in drafters.into_iter().zip(&mut accepted) {
            for max_draft_tokens in [1, 4, 16] {
                let engine = engine(|c| {
                    c.speculation = SpeculationConfig {
                        drafters: drafters.clone(),
                        draft_model: draft_model.clone(),
                        max_draft_tokens,
                        remember_answers: Some(PoolLimits {
                            tenants: 2,
                            tokens: 4_096,
                        }),
                    };
                });
                // The second time the first answers are remembered.
                for round in 0..2 {
                    let waiting: Vec<_> = requests
                        .iter()
                        .map(|r| submit(&engine.handle(), r.clone()))
                        .collect();
                    let answers: Vec<Answer> = waiting.into_iter().map(wait).collect();
                    assert_eq!(
                        answers,
                        expected,
                        "seed {seed}, {drafters:?}, draft model {}, {max_draft_tokens} tokens, round {round}",
                        draft_model.is_some()
                    );
                }
                *accepted += engine
                    .handle()
                    .stats()
                    .spec_decode_num_accepted_tokens_total;
            }
        }
    }
    // A model as large as its target does not pay, and is hardly asked.
    let [ngram, suffix, model, all] = accepted;
    assert!(
        [ngram, suffix, all].iter().all(|a| *a > 20) && model > 0,
        "{accepted:?} prove nothing"
    );
}

/// Has nothing to say: what is drafted beside it is a hint's.
struct Silent;

impl Drafter for Silent {
    fn propose(&mut self, _: &[DraftRequest<'_>], _: &mut [Draft]) {}

    fn observe(&mut self, _: SequenceId, _: &[u32], proposed: usize, _: usize) {
        assert_eq!(proposed, 0, "it gets no credit");
    }

    fn forget(&mut self, _: SequenceId) {}
}

#[test]
fn any_hint_gives_what_none_gives_and_a_good_one_is_used() {
    let mut accepted = [0; 3];
    for seed in 0..4 {
        let mut requests = requests(seed, 8);
        for request in &mut requests {
            request.max_new_tokens = Some(60);
        }
        let (plain, _) = stepped(&requests, 200, None);
        let mut random = SplitMix::new(seed);
        for (kind, accepted) in accepted.iter_mut().enumerate() {
            for (request, answer) in requests.iter_mut().zip(&plain) {
                let said: Vec<u32> = answer.tokens.iter().map(|t| t.0).collect();
                request.draft_hint = match kind {
                    0 => said,
                    // Another beginning, from which the answer comes back.
                    1 => [&[7, 7, 7], &said[said.len() / 3..]].concat(),
                    _ => (0..60).map(|_| random.below(256) as u32).collect(),
                };
            }
            for blocks in [200, 9] {
                let (hinted, stats) = stepped(&requests, blocks, Some(Box::new(Silent)));
                assert_eq!(hinted, plain, "seed {seed}, hint {kind}, {blocks} blocks");
                *accepted += stats.spec_decode_num_accepted_tokens_total;
            }
        }
    }
    let [said, mended, noise] = accepted;
    assert!(
        said > mended && mended > 200 && noise < 50,
        "{accepted:?} accepted"
    );
}

#[test]
fn a_draft_model_gives_what_no_draft_gives() {
    let (_folder, path) = tiny::on_disk();
    let source = ModelSource::open(&path).expect("a good file");
    let mut accepted = 0;
    for seed in 0..3 {
        let requests = repetitive(seed);
        let (plain, _) = stepped(&requests, 200, None);
        let weights = DecoderWeights::load(&source, WeightTarget::Q4_0).expect("good weights");
        let size = RunnerSize {
            threads: 1,
            blocks: 100,
            max_rows: 64,
            max_logit_rows: 40,
            context_tokens: 2_048,
        };
        let runner = DecoderRunner::new(weights, Isa::detect().expect("a sane environment"), size)
            .expect("the system gives it");
        let limits = DraftModelLimits {
            blocks: size.blocks,
            max_rows: size.max_rows,
            max_logit_rows: size.max_logit_rows,
            context_tokens: size.context_tokens,
        };
        let drafter = DraftModel::new(Box::new(runner), limits);
        let (drafted, stats) = stepped(&requests, 200, Some(Box::new(drafter)));
        assert_eq!(drafted, plain, "seed {seed}");
        accepted += stats.spec_decode_num_accepted_tokens_total;
    }
    assert!(accepted > 200, "{accepted} accepted tokens prove nothing");
}

#[test]
fn a_prefix_hit_gives_what_a_cold_start_gives() {
    let engine = engine(|c| c.prefix_cache = true);
    let cold_engine = engine_without_cache();
    for seed in 0..4 {
        let mut random = SplitMix::new(seed);
        let text: Vec<u32> = (0..200).map(|_| random.below(256) as u32).collect();
        let mut previous = text.clone();
        for turn in 0..12 {
            // An old beginning, cut anywhere, and something new.
            let mut prompt = previous[..1 + random.below(previous.len())].to_vec();
            prompt.extend((0..random.below(60)).map(|_| random.below(256) as u32));
            let mut request = random_request(&mut random);
            request.prompt = Prompt::Tokens(prompt.clone());
            let cold = wait(submit(&cold_engine.handle(), request.clone()));
            let hit = wait(submit(&engine.handle(), request));
            assert_eq!(hit, cold, "seed {seed}, turn {turn}");
            previous = prompt;
            previous.extend(cold.tokens.iter().map(|t| t.0));
            previous.extend_from_slice(&text);
        }
    }
    let stats = engine.handle().stats();
    assert!(stats.prefix_cache_hits_total > 1_000, "{stats:?}");
    assert_eq!(cold_engine.handle().stats().prefix_cache_hits_total, 0);
}

fn engine_without_cache() -> Engine {
    engine(|c| c.prefix_cache = false)
}

#[test]
fn a_preempted_sequence_gives_what_an_undisturbed_one_gives() {
    let mut preemptions = 0;
    for seed in 0..4 {
        let mut requests = requests(seed, 8);
        for request in &mut requests {
            request.params.logit_bias = vec![(END, -100.0)];
            request.max_new_tokens = Some(100);
        }
        let (roomy, none) = with_blocks(&requests, 200);
        // The longest request needs eight blocks; nine are not enough for several of them.
        let (crowded, some) = with_blocks(&requests, 9);
        assert_eq!(none, 0);
        assert_eq!(crowded, roomy, "seed {seed}, {some} preemptions");
        preemptions += some;
    }
    assert!(
        preemptions > 10,
        "the pool must run dry for this test to mean anything"
    );
}

#[test]
fn every_instruction_set_gives_what_the_portable_code_gives() {
    let portable = Isa::named("portable").expect("it runs anywhere");
    for seed in 40..44 {
        let requests = requests(seed, 6);
        let (expected, _) = stepped_on(portable, &requests, 200, None);
        for isa in Isa::available() {
            let (answers, _) = stepped_on(isa, &requests, 200, None);
            assert_eq!(answers, expected, "seed {seed}, {}", isa.name());
        }
    }
}

#[test]
fn one_thread_gives_what_several_give() {
    let requests = requests(9, 6);
    let single = together(&requests, |c| c.threads = 1);
    for threads in [2, 3] {
        assert_eq!(
            together(&requests, |c| c.threads = threads),
            single,
            "{threads} threads"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_text_and_another_seed_another() {
    let mut request = requests(3, 1).remove(0);
    request.params.temperature = 1.3;
    request.max_new_tokens = Some(60);
    let other = {
        let mut other = request.clone();
        other.params.seed = request.params.seed.map(|s| s + 1);
        other
    };
    let [first, again, different] = &alone(&[request.clone(), request, other])[..] else {
        unreachable!()
    };
    assert_eq!(first, again);
    assert_ne!(first.tokens, different.tokens);
}

#[test]
fn a_score_reports_what_generation_reported() {
    let engine = engine(|c| c.max_batch_tokens = 40);
    let handle = engine.handle();
    let mut request = GenerationRequest::new("the inn and the ant");
    request.params.temperature = 0.0;
    // Plain ASCII bytes, without the letters that merges are made of, read back as they were written.
    let forbidden = (128..264).chain(b"thinae".iter().map(|b| u32::from(*b)));
    request.params.logit_bias = forbidden.map(|t| (t, -100.0)).collect();
    request.max_new_tokens = Some(70);
    let answer = wait(submit(&handle, request));
    let scored = handle
        .score(None, 0, "the inn and the ant", &answer.text)
        .expect("a good request");
    let bits: Vec<(u32, u32)> = scored
        .iter()
        .map(|s| (s.token_id, s.logprob.to_bits()))
        .collect();
    let expected: Vec<(u32, u32)> = answer.tokens.iter().map(|(t, l, _)| (*t, *l)).collect();
    assert_eq!(bits, expected);
}
