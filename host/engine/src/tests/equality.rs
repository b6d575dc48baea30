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
use crate::stats::StatsCell;
use crate::step::Core;
use crate::{EngineConfig, GenerationRequest, Prompt};

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
    let engine = engine(|c| c.max_batch_tokens = 512);
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
    let (_folder, path) = tiny::on_disk();
    let weights = DecoderWeights::load(
        &ModelSource::open(&path).expect("a good file"),
        WeightTarget::Q8_0,
    )
    .expect("good weights");
    let limits = Limits {
        max_sequences: 8,
        max_batch_tokens: 64,
        max_logit_rows: 8,
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
    let isa = Isa::detect().expect("a sane environment");
    let runner = Box::new(DecoderRunner::new(weights, isa, size));
    let stats = Arc::new(StatsCell::default());
    let mut core = Core::new(limits, runner, tiny::tokenizer(), Arc::clone(&stats));
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
        core.add(Sequence::new(Order {
            id: SequenceId(id as u64),
            tokens,
            purpose: Purpose::Generate { end },
            params: request.params.clone(),
            default_seed: 0,
            stops: Vec::new(),
            arrived: Duration::ZERO,
            sink: Box::new(Collect(sender)),
        }));
    }
    while !core.is_idle() {
        core.step(Duration::ZERO);
        core.deliver(Duration::ZERO);
    }
    (
        events.into_iter().map(wait).collect(),
        stats.read().num_preemptions_total,
    )
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
        .score("the inn and the ant", &answer.text)
        .expect("a good request");
    let bits: Vec<(u32, u32)> = scored
        .iter()
        .map(|s| (s.token_id, s.logprob.to_bits()))
        .collect();
    let expected: Vec<(u32, u32)> = answer.tokens.iter().map(|(t, l, _)| (*t, *l)).collect();
    assert_eq!(bits, expected);
}
