//! A reader that leaves, in every state a sequence can be in: its blocks come back, its neighbour
//! gets the whole answer, and the step's books balance throughout (the step checks them itself).
//!
//! Reader and engine share this thread. The states inside a step, while a draft is proposed and
//! while it is verified, are met by a drafter and a runner that make the reader leave.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::simulator::{Scripted, expected_tokens, successor};
use super::tiny::{self, Collect};
use crate::batch::Batch;
use crate::block::BlockCopy;
use crate::events::Event;
use crate::runner::{Runner, RunnerError};
use crate::sampler::SamplingParams;
use crate::scheduler::Limits;
use crate::sequence::{Order, Purpose, Sequence, SequenceId};
use crate::speculation::{Draft, DraftRequest, Drafter};
use crate::stats::StatsCell;
use crate::step::Core;

const LEAVER: SequenceId = SequenceId(1);
const NEIGHBOUR: SequenceId = SequenceId(0);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Queued,
    Prefilling,
    Drafting,
    Verifying,
    Streaming,
    Preempted,
}

/// How somebody leaves: the connection breaks, or it says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Gone,
    Cancelled,
}

/// The reader of the leaver, and what is to make it leave inside a step.
struct Door {
    inside: When,
    reader: Mutex<Option<Receiver<Event>>>,
}

impl Door {
    fn leave_if(&self, at: When) {
        if self.inside == at {
            self.reader.lock().expect("nobody panics").take();
        }
    }

    fn has_left(&self) -> bool {
        self.reader.lock().expect("nobody panics").is_none()
    }
}

struct Watched {
    scripted: Scripted,
    door: Arc<Door>,
}

impl Runner for Watched {
    fn forward(&mut self, batch: &Batch) -> Result<(), RunnerError> {
        // More logits than chunks: somebody's draft is verified.
        if batch.logit_rows.len() > batch.chunk_logits.len() {
            self.door.leave_if(When::Verifying);
        }
        self.scripted.forward(batch)
    }

    fn logits(&self, index: usize) -> &[f32] {
        self.scripted.logits(index)
    }

    fn copy_blocks(&mut self, copies: &[BlockCopy]) {
        self.scripted.copy_blocks(copies);
    }
}

/// Proposes three right tokens to the leaver and to nobody else.
struct Guide {
    door: Arc<Door>,
}

impl Drafter for Guide {
    fn propose(&mut self, requests: &[DraftRequest<'_>], drafts: &mut [Draft]) {
        for (request, draft) in requests.iter().zip(drafts) {
            if request.id != LEAVER {
                continue;
            }
            self.door.leave_if(When::Drafting);
            let (mut history, mut parent) = (request.tokens.to_vec(), None);
            for _ in 0..3.min(request.max_depth) {
                let token = successor(history.iter().copied());
                history.push(token);
                parent = draft.push(token, parent, 0);
            }
        }
    }

    fn observe(&mut self, _: SequenceId, _: &[u32], _: usize, _: usize) {}

    fn forget(&mut self, _: SequenceId) {}
}

/// A prompt whose scripted answer is at least this long.
fn prompt(length: usize, answer: usize) -> Vec<u32> {
    (0..)
        .map(|salt| (0..length as u32).map(|i| (i * 5 + salt) % 250).collect())
        .find(|prompt: &Vec<u32>| expected_tokens(prompt, length + answer).len() == answer)
        .expect("one in a few is long enough")
}

/// The engine of one story, and its books.
fn engine(when: When, door: &Arc<Door>) -> (Core, Arc<StatsCell>) {
    let limits = Limits {
        max_sequences: if when == When::Queued { 1 } else { 2 },
        max_batch_tokens: 16,
        max_logit_rows: 16,
        context_tokens: 400,
        // Five hold both at first, and not to the end of either.
        total_blocks: if when == When::Preempted { 5 } else { 20 },
    };
    let runner = Box::new(Watched {
        scripted: Scripted::new(limits.total_blocks),
        door: Arc::clone(door),
    });
    let stats = Arc::new(StatsCell::default());
    let core = Core::new(limits, runner, tiny::tokenizer(), Arc::clone(&stats));
    let mut core = core.with_prefix_cache([7; 32]);
    if matches!(when, When::Drafting | When::Verifying) {
        let door = Arc::clone(door);
        core = core.with_drafter(Box::new(Guide { door }), None);
    }
    (core, stats)
}

/// Asks for this many tokens after the prompt.
fn ask(core: &mut Core, id: SequenceId, tokens: Vec<u32>, answer: usize) -> Receiver<Event> {
    let (sender, receiver) = channel();
    let mut sequence = Sequence::new(Order {
        id,
        purpose: Purpose::Generate {
            end: tokens.len() + answer,
        },
        tokens,
        params: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        default_seed: 0,
        stops: Vec::new(),
        arrived: Duration::ZERO,
        sink: Box::new(Collect(sender)),
    });
    sequence.max_draft_tokens = 8;
    core.add(sequence);
    receiver
}

fn leave(when: When, how: How) {
    let story = format!("{when:?}, {how:?}");
    let door = Arc::new(Door {
        inside: when,
        reader: Mutex::default(),
    });
    let (mut core, stats) = engine(when, &door);
    let staying = prompt(30, 90);
    let neighbour = ask(&mut core, NEIGHBOUR, staying.clone(), 90);
    let leaver = ask(&mut core, LEAVER, prompt(60, 60), 60);
    // As the door does, before anybody is handed to the core.
    stats.waiting.fetch_add(2, Relaxed);
    *door.reader.lock().expect("nobody panics") = Some(leaver);

    let (mut left, mut steps) = (false, 0);
    while !core.is_idle() {
        if !left && reached(when, steps, &door, &stats) {
            left = true;
            // Who has given way waits, and is counted there.
            let waits = matches!(when, When::Queued | When::Preempted);
            let waiting = stats.read().num_requests_waiting;
            assert_eq!(waiting, usize::from(waits), "{story}");
            match how {
                How::Gone => drop(door.reader.lock().expect("nobody panics").take()),
                How::Cancelled => core.cancel(LEAVER),
            }
        }
        core.step(Duration::ZERO);
        core.deliver(Duration::ZERO);
        steps += 1;
        assert!(steps < 1_000, "{story}: the engine never becomes idle");
    }
    let inside = matches!(when, When::Drafting | When::Verifying);
    assert!(left || inside && door.has_left(), "{story}: never reached");

    let received = received(neighbour, &story);
    assert_eq!(received, expected_tokens(&staying, 120), "{story}");
    let stats = stats.read();
    assert_eq!(
        (stats.kv_cache_usage, stats.num_requests_running),
        (0.0, 0),
        "{story}"
    );
    let generated = stats.generation_tokens_total;
    assert!(
        (90..150).contains(&generated),
        "{story}: {generated} tokens, and 60 of them for nobody"
    );
}

/// The tokens of an answer that has come to its end.
fn received(events: Receiver<Event>, story: &str) -> Vec<u32> {
    let mut received = Vec::new();
    for event in events {
        match event {
            Event::Token { logprob, .. } => received.push(logprob.token_id),
            Event::Finished { .. } => {}
            Event::Failed(error) => panic!("{story}: the neighbour failed: {error}"),
        }
    }
    received
}

/// Whether the leaver is now, between two steps, in the state in which it is to leave.
fn reached(when: When, steps: usize, door: &Door, stats: &StatsCell) -> bool {
    let seen = || {
        let reader = door.reader.lock().expect("nobody panics");
        reader.as_ref().is_some_and(|r| r.try_recv().is_ok())
    };
    match when {
        When::Queued => steps == 2,
        // 90 tokens of prompts at 16 a step: the leaver's own begin in the second.
        When::Prefilling => steps == 4 && !seen(),
        When::Streaming => seen(),
        When::Preempted => stats.read().num_preemptions_total > 0,
        When::Drafting | When::Verifying => false,
    }
}

#[test]
fn a_reader_may_leave_in_every_state() {
    for when in [
        When::Queued,
        When::Prefilling,
        When::Streaming,
        When::Preempted,
    ] {
        leave(when, How::Gone);
        leave(when, How::Cancelled);
    }
    leave(When::Drafting, How::Gone);
    leave(When::Verifying, How::Gone);
}

struct Broken;

impl Drafter for Broken {
    fn propose(&mut self, requests: &[DraftRequest<'_>], drafts: &mut [Draft]) {
        for (request, draft) in requests.iter().zip(drafts) {
            draft.push(request.tokens[0], None, 0);
        }
        panic!("a drafter with a defect");
    }

    fn observe(&mut self, _: SequenceId, _: &[u32], _: usize, _: usize) {}

    fn forget(&mut self, _: SequenceId) {}
}

#[test]
fn a_drafter_that_panics_takes_nobody_along() {
    let door = Arc::new(Door {
        inside: When::Streaming,
        reader: Mutex::default(),
    });
    let (core, _) = engine(When::Streaming, &door);
    let mut core = core.with_drafter(Box::new(Broken), None);
    let tokens = prompt(30, 20);
    let events = ask(&mut core, NEIGHBOUR, tokens.clone(), 20);
    while !core.is_idle() {
        core.step(Duration::ZERO);
        core.deliver(Duration::ZERO);
    }
    assert_eq!(received(events, "alone"), expected_tokens(&tokens, 50));
}
