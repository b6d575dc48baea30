//! Random histories through the real step, with a scripted runner in place of a model.
//!
//! The runner keeps a shadow of the KV memory: which token of which position was written to
//! each slot. A row's logits are a hash of everything it can see *through its block table*, so a
//! block that was given away, overwritten or not recomputed changes the text, and the text is
//! compared with one computed without any engine. The books of the pool are checked after every
//! step by the step itself. Prompts share beginnings, drafts are trees of right and wrong guesses,
//! pools are so small that prefixes are evicted and sequences give way, and at times somebody else
//! takes what is left of them. Everything follows from one seed, which a failure prints.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::tiny::{self, Collect};
use crate::batch::Batch;
use crate::block::{BLOCK_SIZE, BlockCopy};
use crate::events::{EngineError, Event, FinishReason};
use crate::random::{SplitMix, keyed};
use crate::runner::{Runner, RunnerError};
use crate::sampler::SamplingParams;
use crate::scheduler::Limits;
use crate::sequence::{Order, Purpose, Sequence, SequenceId};
use crate::speculation::{Draft, DraftRequest, Drafter, Goodput};
use crate::step::Core;
use crate::tokenizer::Tokenizer;

/// A sequence that contains this token makes every forward pass with it panic.
const POISON: u32 = 250;
/// And this one makes it fail.
const SPOILT: u32 = 251;

pub struct Scripted {
    slots: Vec<Option<(u32, u32)>>,
    logits: Vec<Vec<f32>>,
}

impl Scripted {
    pub fn new(blocks: usize) -> Self {
        Self {
            slots: vec![None; blocks * BLOCK_SIZE],
            logits: Vec::new(),
        }
    }
}

/// The token that follows `history`, and nothing else is ever likely.
pub fn successor(history: impl Iterator<Item = u32>) -> u32 {
    let hash = history.fold(17, |hash, token| keyed(hash, u64::from(token)));
    // Byte tokens only; one in 64 is the end.
    if hash % 64 == 0 {
        tiny::END
    } else {
        ((hash >> 8) % 250) as u32
    }
}

impl Runner for Scripted {
    fn forward(&mut self, batch: &Batch) -> Result<(), RunnerError> {
        assert!(!batch.tokens.contains(&POISON), "poisoned on purpose");
        if batch.tokens.contains(&SPOILT) {
            return Err(RunnerError("spoilt on purpose".into()));
        }
        self.logits.clear();
        let slot = |blocks: &[u32], position: usize| {
            blocks[position / BLOCK_SIZE] as usize * BLOCK_SIZE + position % BLOCK_SIZE
        };
        for span in &batch.spans {
            let blocks = &batch.blocks[span.blocks.clone()];
            for row in span.rows.clone() {
                let position = batch.positions[row];
                self.slots[slot(blocks, position as usize)] = Some((batch.tokens[row], position));
            }
        }
        for mirror in &batch.mirrors {
            let row = mirror.row as usize;
            let position = batch.positions[row];
            let at = mirror.block as usize * BLOCK_SIZE + position as usize % BLOCK_SIZE;
            self.slots[at] = Some((batch.tokens[row], position));
        }
        for span in &batch.spans {
            let blocks = &batch.blocks[span.blocks.clone()];
            for index in span.logits.clone() {
                let last = batch.positions[batch.logit_rows[index] as usize];
                let seen = (0..=last).map(|p| match self.slots[slot(blocks, p as usize)] {
                    Some((token, position)) if position == p => token,
                    other => panic!("position {p} holds {other:?}"),
                });
                let mut row = vec![0.0; tiny::VOCABULARY];
                row[successor(seen) as usize] = 50.0;
                self.logits.push(row);
            }
        }
        Ok(())
    }

    fn logits(&self, index: usize) -> &[f32] {
        &self.logits[index]
    }

    fn copy_blocks(&mut self, copies: &[BlockCopy]) {
        for copy in copies {
            let from = copy.from.0 as usize * BLOCK_SIZE;
            self.slots
                .copy_within(from..from + BLOCK_SIZE, copy.to.0 as usize * BLOCK_SIZE);
        }
    }
}

/// The answer by definition: no engine, no blocks, no batch.
pub fn expected_tokens(prompt: &[u32], end: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    while tokens.len() < end {
        let next = successor(tokens.iter().copied());
        tokens.push(next);
        if next == tiny::END {
            break;
        }
    }
    tokens.split_off(prompt.len())
}

/// Proposes trees whose branches are right or wrong at random, deep or broad.
struct Guesser {
    random: SplitMix,
}

impl Drafter for Guesser {
    fn propose(&mut self, requests: &[DraftRequest<'_>], drafts: &mut [Draft]) {
        for (request, draft) in requests.iter().zip(drafts) {
            for _ in 0..self.random.below(4) {
                let mut history = request.tokens.to_vec();
                let mut parent = None;
                for _ in 0..self.random.below(request.max_depth + 1) {
                    let right = successor(history.iter().copied());
                    let token = match self.random.below(4) {
                        0 => self.random.below(250) as u32,
                        _ => right,
                    };
                    if draft.len() == request.max_nodes {
                        break;
                    }
                    parent = draft.push(token, parent, 0);
                    history.push(token);
                }
            }
        }
    }

    fn observe(&mut self, _: SequenceId, _: &[u32], proposed: usize, accepted: usize) {
        assert!(accepted <= proposed);
    }

    fn forget(&mut self, _: SequenceId) {}
}

struct Client {
    id: SequenceId,
    prompt: Vec<u32>,
    end: usize,
    events: Option<Receiver<Event>>,
    received: Vec<u32>,
    cancelled: bool,
    last: Option<Event>,
}

impl Client {
    fn read(&mut self) {
        let Some(events) = &self.events else { return };
        while let Ok(event) = events.try_recv() {
            assert!(self.last.is_none(), "nothing comes after the last event");
            match event {
                Event::Token { logprob, .. } => self.received.push(logprob.token_id),
                last => self.last = Some(last),
            }
        }
    }

    fn check(&self, seed: u64) {
        let expected = expected_tokens(&self.prompt, self.end);
        let poisoned = self.prompt.contains(&POISON) || self.prompt.contains(&SPOILT);
        match &self.last {
            Some(Event::Finished {
                reason: FinishReason::Cancelled,
                ..
            }) => {
                assert!(
                    self.cancelled,
                    "seed {seed}: nobody cancelled {:?}",
                    self.id
                );
                assert!(expected.starts_with(&self.received), "seed {seed}");
            }
            Some(Event::Finished { reason, usage, .. }) => {
                assert!(!poisoned, "seed {seed}: a poisoned sequence finished");
                assert_eq!(self.received, expected, "seed {seed}, {:?}", self.id);
                assert_eq!(
                    (usage.prompt_tokens, usage.completion_tokens),
                    (self.prompt.len(), expected.len())
                );
                let ended = expected.last() == Some(&tiny::END);
                assert_eq!(
                    *reason,
                    if ended {
                        FinishReason::Stop
                    } else {
                        FinishReason::Length
                    },
                    "seed {seed}"
                );
            }
            Some(Event::Failed(error)) => {
                assert!(
                    poisoned,
                    "seed {seed}: {:?} failed without being poisoned: {error}",
                    self.id
                );
                assert!(matches!(
                    error,
                    EngineError::Internal(_) | EngineError::Model(_)
                ));
            }
            Some(Event::Token { .. }) => unreachable!("tokens are not last events"),
            None => assert!(
                self.events.is_none(),
                "seed {seed}: {:?} got no last event",
                self.id
            ),
        }
    }
}

/// Names the seed whatever panics, the step's own books included.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the seed was {}", self.0);
        }
    }
}

struct World {
    random: SplitMix,
    limits: Limits,
    core: Core,
    clients: Vec<Client>,
    now: Duration,
    steps: u64,
}

impl World {
    fn new(seed: u64, tokenizer: &Arc<Tokenizer>) -> Self {
        let mut random = SplitMix::new(seed);
        let max_sequences = 1 + random.below(8);
        let limits = Limits {
            max_sequences,
            max_batch_tokens: max_sequences + 1 + random.below(60),
            max_logit_rows: max_sequences + random.below(40),
            context_tokens: 200,
            total_blocks: 2 + random.below(10),
        };
        let runner = Box::new(Scripted::new(limits.total_blocks));
        let mut core = Core::new(limits, runner, Arc::clone(tokenizer), Arc::default());
        if random.below(4) > 0 {
            core = core.with_prefix_cache([seed as u8; 32]);
        }
        if random.below(4) > 0 {
            let goodput = (random.below(2) == 0).then(Goodput::default);
            let random = SplitMix::new(seed ^ 0xD4AF7);
            core = core.with_drafter(Box::new(Guesser { random }), goodput);
        }
        Self {
            random,
            limits,
            core,
            clients: Vec::new(),
            now: Duration::ZERO,
            steps: 0,
        }
    }

    fn arrive(&mut self, poison_one_in: usize) {
        // Few beginnings, so that prefixes repeat, end in the middle of blocks, and are evicted.
        let beginning = self.random.below(3) as u32;
        let common = self.random.below(110) as u32;
        let mut prompt: Vec<u32> = (0..common).map(|i| (i * 7 + beginning) % 250).collect();
        prompt.extend((0..1 + self.random.below(30)).map(|_| self.random.below(250) as u32));
        if poison_one_in > 0 && self.random.below(poison_one_in) == 0 {
            let at = self.random.below(prompt.len());
            prompt[at] = [POISON, SPOILT][self.random.below(2)];
        }
        let Ok(end) = self
            .limits
            .admit(prompt.len(), Some(1 + self.random.below(60)))
        else {
            return;
        };
        let id = SequenceId(self.clients.len() as u64);
        let (sender, events) = channel();
        let mut sequence = Sequence::new(Order {
            id,
            tokens: prompt.clone(),
            purpose: Purpose::Generate { end },
            params: SamplingParams {
                temperature: [0.0, 1.0][self.random.below(2)],
                ..SamplingParams::default()
            },
            default_seed: self.random.next(),
            stops: Vec::new(),
            arrived: self.now,
            sink: Box::new(Collect(sender)),
        });
        sequence.tenant = self.random.next() % 3;
        sequence.priority = self.random.below(3) as i8;
        sequence.max_draft_tokens = self.random.below(9);
        self.core.add(sequence);
        let events = Some(events);
        self.clients.push(Client {
            id,
            prompt,
            end,
            events,
            received: Vec::new(),
            cancelled: false,
            last: None,
        });
    }

    fn disturb(&mut self) {
        let pick = self.random.below(self.clients.len().max(1));
        let Some(client) = self.clients.get_mut(pick) else {
            return;
        };
        match self.random.below(2) {
            0 => {
                client.cancelled = true;
                self.core.cancel(client.id);
            }
            _ => client.events = None,
        }
    }

    fn step(&mut self) {
        self.core.step(self.now);
        self.now += Duration::from_millis(1);
        self.core.deliver(self.now);
        self.now += Duration::from_millis(1);
        self.steps += 1;
        self.clients.iter_mut().for_each(Client::read);
    }

    /// Somebody else holds some of the free blocks, or all of them, or gives them back.
    fn starve(&mut self) {
        let blocks = match self.random.below(3) {
            0 => self.limits.total_blocks,
            1 => self.random.below(self.limits.total_blocks),
            _ => 0,
        };
        self.core.hold_back(blocks);
    }

    fn run(&mut self, seed: u64, length: usize, poison_one_in: usize) {
        let _named = Named(seed);
        for _ in 0..length {
            if self.random.below(4) == 0 {
                self.arrive(poison_one_in);
            }
            if self.random.below(12) == 0 {
                self.disturb();
            }
            if self.random.below(20) == 0 {
                self.starve();
            }
            self.step();
        }
        self.core.hold_back(0);
        let mut patience = 100_000;
        while !self.core.is_idle() {
            self.step();
            patience -= 1;
            assert!(patience > 0, "seed {seed}: the engine never becomes idle");
        }
        self.clients.iter().for_each(|client| client.check(seed));
    }
}

fn run(seeds: std::ops::Range<u64>, length: usize, poison_one_in: usize) -> u64 {
    let tokenizer = tiny::tokenizer();
    let one = |seed| {
        let mut world = World::new(seed, &tokenizer);
        world.run(seed, length, poison_one_in);
        world.steps
    };
    seeds.map(one).sum()
}

#[test]
fn every_history_ends_with_the_right_text_and_no_block_lost() {
    let steps = run(0..300, 350, 0);
    assert!(steps > 100_000, "{steps} steps");
}

#[test]
fn a_poisoned_request_ends_alone() {
    run(1_000..1_040, 200, 6);
}

#[test]
fn what_can_never_fit_is_refused_with_the_numbers() {
    use crate::scheduler::Refusal;
    let limits = Limits {
        max_sequences: 1,
        max_batch_tokens: 8,
        max_logit_rows: 1,
        context_tokens: 100,
        total_blocks: 2,
    };
    let too_long = Refusal::ContextTooLong {
        prompt_tokens: 90,
        max_new_tokens: 11,
        limit: 100,
    };
    assert_eq!(limits.admit(90, Some(11)), Err(too_long));
    assert_eq!(
        limits.admit(60, Some(6)),
        Err(Refusal::NeverFits {
            blocks_needed: 3,
            blocks_total: 2
        })
    );
    assert_eq!(
        limits.admit(60, Some(5)),
        Ok(65),
        "the last token needs no room"
    );
    assert_eq!(limits.admit(60, None), Ok(65));
    assert!(limits.admit(usize::MAX, Some(2)).is_err());
}
