//! Decides which tokens are computed in the next step.
//!
//! It exists to keep every row of a step worth its cost: running sequences first, then chunks of
//! prompts, then newcomers, all in one ragged batch under a token budget. There is no prefill or
//! decode phase; each sequence's `num_computed_tokens` catches up with its tokens (vLLM's idea).
//!
//! Three rules keep it free of livelock. A sequence is admitted only if its whole prompt fits and
//! every running sequence keeps a block to grow into. When the pool runs dry drafts are dropped
//! first, then the newest running sequence gives way and is recomputed later. And a request that could not fit alone is refused
//! at the door ([`Limits::admit`]), with the numbers; so the oldest always finishes.
//!
//! It refuses to wait, to look at a clock, and to know what a model is.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::block::{BLOCK_SIZE, BlockCopy, BlockPool, blocks_for};
use crate::queue::{FairQueue, victim};
use crate::sequence::{Purpose, Sequence, SequenceId, State};

/// The bounds of a step and of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub max_sequences: usize,
    /// Rows of one forward pass.
    pub max_batch_tokens: usize,
    /// Rows of one forward pass that get logits.
    pub max_logit_rows: usize,
    pub context_tokens: usize,
    pub total_blocks: usize,
}

/// A request that no amount of waiting would serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    ContextTooLong {
        prompt_tokens: usize,
        max_new_tokens: usize,
        limit: usize,
    },
    NeverFits {
        blocks_needed: usize,
        blocks_total: usize,
    },
}

impl Limits {
    /// The total length a request may reach, or why it can never be served. Without a wish for
    /// `max_new_tokens` it is whatever context and pool leave.
    pub fn admit(
        &self,
        prompt_tokens: usize,
        max_new_tokens: Option<usize>,
    ) -> Result<usize, Refusal> {
        let new_tokens = max_new_tokens.unwrap_or(1);
        let end = prompt_tokens.saturating_add(new_tokens);
        if end > self.context_tokens {
            return Err(Refusal::ContextTooLong {
                prompt_tokens,
                max_new_tokens: new_tokens,
                limit: self.context_tokens,
            });
        }
        // The last token is never computed: nothing follows it.
        let blocks_needed = blocks_for(end - 1);
        if blocks_needed > self.total_blocks {
            return Err(Refusal::NeverFits {
                blocks_needed,
                blocks_total: self.total_blocks,
            });
        }
        let most = self.context_tokens.min(self.total_blocks * BLOCK_SIZE + 1);
        Ok(max_new_tokens.map_or(most, |_| end))
    }
}

/// Consecutive tokens of one running sequence that are computed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Index into [`Scheduler::running`].
    pub index: usize,
    pub id: SequenceId,
    pub rows: usize,
}

/// The chunks taken so far and what is left of the step's budgets.
struct Plan {
    chunks: Vec<Chunk>,
    rows_left: usize,
    logits_left: usize,
    /// Of those, what scores may take: they can wait, and the answers beside them must get on.
    scores_left: usize,
}

impl Plan {
    fn new(limits: &Limits) -> Self {
        Self {
            chunks: Vec::new(),
            rows_left: limits.max_batch_tokens,
            logits_left: limits.max_logit_rows,
            scores_left: limits.max_logit_rows.div_ceil(2),
        }
    }

    fn has_room(&self) -> bool {
        self.rows_left > 0 && self.logits_left > 0
    }

    fn push(&mut self, chunk: Chunk, logits: usize) {
        self.rows_left -= chunk.rows;
        self.logits_left -= logits;
        self.chunks.push(chunk);
    }

    /// As much of a sequence's pending tokens as the budgets allow, if that is any.
    fn take_prefill(&mut self, running: &[Sequence], index: usize) -> Option<Chunk> {
        let sequence = &running[index];
        let scores = matches!(sequence.purpose, Purpose::Score { .. });
        let logits_left = match scores {
            true => self.logits_left.min(self.scores_left),
            false => self.logits_left,
        };
        let mut rows = sequence.num_pending_tokens().min(self.rows_left);
        rows -= sequence.logit_rows(rows).len().saturating_sub(logits_left);
        if rows == 0 {
            return None;
        }
        let logits = sequence.logit_rows(rows).len();
        self.scores_left -= if scores { logits } else { 0 };
        let id = sequence.id;
        let chunk = Chunk { index, id, rows };
        self.push(chunk, logits);
        Some(chunk)
    }
}

pub struct Scheduler {
    limits: Limits,
    /// Sequences that may run at present, at most as many as the limits say.
    max_running: usize,
    waiting: FairQueue,
    /// Oldest admission first.
    running: Vec<Sequence>,
    /// After a step that failed without a culprit, its sequences run alone, one per step.
    suspects: VecDeque<SequenceId>,
    num_preemptions: u64,
    /// What the runner must copy before the next pass.
    copies: Vec<BlockCopy>,
    prefix: PrefixCounts,
}

/// Tokens of admitted sequences that were looked up in the prefix cache, and those found there.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PrefixCounts {
    pub queries: u64,
    pub hits: u64,
}

impl Scheduler {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            max_running: limits.max_sequences,
            waiting: FairQueue::default(),
            running: Vec::new(),
            suspects: VecDeque::new(),
            num_preemptions: 0,
            copies: Vec::new(),
            prefix: PrefixCounts::default(),
        }
    }

    /// From the next step on nobody joins `most` sequences that run already. Those that run go on:
    /// to put them out would cost their work, and the pool has their blocks anyway.
    pub fn set_max_running(&mut self, most: usize) {
        self.max_running = most.clamp(1, self.limits.max_sequences);
    }

    pub fn max_running(&self) -> usize {
        self.max_running
    }

    /// Shares of tenants other than 1; to be called before anybody waits.
    pub fn set_tenant_weights(&mut self, weights: HashMap<u64, u32>) {
        debug_assert!(self.waiting.is_empty());
        self.waiting = FairQueue::new(weights);
    }

    pub fn add(&mut self, sequence: Sequence) {
        debug_assert_eq!(sequence.state, State::Waiting);
        self.waiting.push(sequence);
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    pub fn running_mut(&mut self) -> &mut [Sequence] {
        &mut self.running
    }

    /// Sequences that gave way and have not come back.
    pub fn num_preempted(&self) -> usize {
        self.waiting.num_preempted()
    }

    pub fn num_preemptions(&self) -> u64 {
        self.num_preemptions
    }

    pub fn prefix_counts(&self) -> PrefixCounts {
        self.prefix
    }

    /// Copies that the plan rests on; they are the runner's first work of the step.
    pub fn copies(&self) -> &[BlockCopy] {
        &self.copies
    }

    /// The copies are made.
    pub fn clear_copies(&mut self) {
        self.copies.clear();
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    pub fn sequences_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.running.iter_mut().chain(self.waiting.iter_mut())
    }

    /// Takes a sequence out, wherever it is.
    pub fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        if let Some(index) = self.running.iter().position(|s| s.id == id) {
            return Some(self.running.remove(index));
        }
        self.waiting.remove(id)
    }

    /// Takes the sequences out that the last step finished.
    pub fn take_finished(&mut self) -> Vec<Sequence> {
        self.running.extract_if(.., |s| s.is_finished()).collect()
    }

    /// From the next step on, each of these runs alone until it has been part of a step.
    pub fn isolate(&mut self, ids: impl Iterator<Item = SequenceId>) {
        self.suspects.extend(ids);
    }

    /// Takes those out whose deadline has passed before they began.
    pub fn expired(&mut self, now: Duration) -> Vec<Sequence> {
        self.waiting.expired(now)
    }

    /// The chunks of the next step; empty when there is nothing to do. `now` is the engine's time.
    /// `prefill_rows` bounds the prompt rows beside decoding ones.
    pub fn schedule(
        &mut self,
        pool: &mut BlockPool,
        now: Duration,
        prefill_rows: usize,
    ) -> Vec<Chunk> {
        self.make_room_for_decoding(pool);
        let mut plan = Plan::new(&self.limits);
        if let Some(suspect) = self.next_suspect() {
            plan.take_prefill(&self.running, suspect);
            return plan.chunks;
        }
        for (index, sequence) in self
            .running
            .iter()
            .enumerate()
            .filter(|(_, s)| s.is_decoding())
        {
            plan.push(
                Chunk {
                    index,
                    id: sequence.id,
                    rows: 1,
                },
                1,
            );
        }
        self.place_drafts(pool, &mut plan);
        if !plan.chunks.is_empty() {
            plan.rows_left = plan.rows_left.min(prefill_rows);
        }
        for index in 0..self.running.len() {
            if !self.running[index].is_decoding() {
                plan.take_prefill(&self.running, index);
            }
        }
        plan.chunks.iter().for_each(|chunk| self.charge(chunk));
        while plan.has_room() && self.admit_next(pool, now) {
            let taken = plan.take_prefill(&self.running, self.running.len() - 1);
            taken.iter().for_each(|chunk| self.charge(chunk));
        }
        plan.chunks
    }

    /// Puts the rows of a chunk to its tenant's account.
    fn charge(&mut self, chunk: &Chunk) {
        let sequence = &self.running[chunk.index];
        let rows = chunk.rows + sequence.draft.len();
        self.waiting
            .charge(sequence.tenant, sequence.priority, rows);
    }

    /// Every decoding sequence gets the block its next token needs, or the newest give way.
    fn make_room_for_decoding(&mut self, pool: &mut BlockPool) {
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            let tokens = sequence.num_computed_tokens + sequence.num_pending_tokens();
            if sequence.table.grow(pool, tokens) {
                index += 1;
                continue;
            }
            let victim = victim(&self.running);
            let mut sequence = self.running.remove(victim);
            sequence.preempt(pool);
            self.waiting.push_preempted(sequence);
            self.num_preemptions += 1;
            // Everybody before `index` keeps its block and its place, or has just moved up.
            index -= usize::from(victim < index);
        }
    }

    /// Drafts get what the decoding rows leave: rows, logits, and blocks that nobody else is about
    /// to need. Dropping a draft is the first relief, long before anybody gives way.
    fn place_drafts(&mut self, pool: &mut BlockPool, plan: &mut Plan) {
        let reserve = self.num_growing();
        for chunk in &mut plan.chunks {
            let sequence = &mut self.running[chunk.index];
            let room = plan.rows_left.min(plan.logits_left);
            sequence.draft.truncate(room);
            sequence.place_draft(pool, reserve, &mut self.copies);
            plan.rows_left -= sequence.draft.len();
            plan.logits_left -= sequence.draft.len();
        }
    }

    /// Running sequences that may need another block.
    fn num_growing(&self) -> usize {
        self.running.iter().filter(|s| s.may_grow()).count()
    }

    fn next_suspect(&mut self) -> Option<usize> {
        while let Some(id) = self.suspects.pop_front() {
            // Suspects that were cancelled or preempted meanwhile are met again in the usual way.
            if let Some(index) = self.running.iter().position(|s| s.id == id) {
                return Some(index);
            }
        }
        None
    }

    /// Moves the first waiting sequence to running if its tokens fit beside everybody's growth.
    fn admit_next(&mut self, pool: &mut BlockPool, now: Duration) -> bool {
        if self.running.len() >= self.max_running {
            return false;
        }
        let Some(next) = self.waiting.peek(now) else {
            return false;
        };
        let pending = next.num_pending_tokens();
        let skippable = &next.tokens[..next.num_skippable_tokens()];
        let hit = pool.find_prefix(next.tenant, skippable);
        let (found, free) = match &hit {
            Some(hit) => (hit.blocks.len(), pool.free() - pool.free_among(hit)),
            None => (0, pool.free()),
        };
        // Everybody who may still grow may need one more block before somebody ends.
        if blocks_for(pending) - found + self.num_growing() > free {
            return false;
        }
        let mut sequence = self.waiting.pop(now).expect("there is a next one");
        if let Some(hit) = &hit {
            sequence.adopt(pool, hit);
            // Who comes back finds its own blocks: that is no hit of a prompt.
            if sequence.milestones.started.is_none() {
                self.prefix.queries += pending as u64;
                self.prefix.hits += hit.tokens() as u64;
            }
        }
        let grown = sequence.table.grow(pool, pending);
        assert!(grown, "enough blocks are free");
        if let Some((from, _)) = hit.and_then(|hit| hit.partial) {
            let to = sequence.table.blocks()[sequence.num_computed_tokens / BLOCK_SIZE];
            self.copies.push(BlockCopy { from, to });
        }
        sequence.state = State::Running;
        self.running.push(sequence);
        true
    }
}
