//! One request inside the engine: its tokens, its blocks, its place in life.
//!
//! It exists so that every stage of a step sees the same small state machine:
//! `Waiting → Running → Finished`, with `Running → Waiting` for a preemption. It refuses to
//! reach for the pool, the clock or the model: they are handed in by the step.
//!
//! The invariant that batching, chunking and preemption rest on: the token at position `p` is a
//! function of the tokens before it, the parameters and the seed. Nothing else is consulted, so
//! recomputing a sequence from its tokens is always right.

use std::time::Duration;

use crate::batch::Batch;
use crate::block::{BLOCK_SIZE, BlockCopy, BlockPool, BlockTable, blocks_for};
use crate::branches::Branches;
use crate::constraint::Constraint;
use crate::events::{EngineError, Event, FinishReason, Sink, Timings};
use crate::prefix::{PrefixHit, PrefixKey};
use crate::sampler::{SamplingParams, TokenCounts};
use crate::speculation::Draft;
use crate::tokenizer::TextStream;

/// Names a sequence for its whole life; never used twice by one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Where a sequence is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Waiting,
    Running,
    Finished(Outcome),
}

/// How a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done(FinishReason),
    Failed(EngineError),
}

/// What the sequence is for.
#[derive(Debug)]
pub enum Purpose {
    /// Append tokens until an end, a stop string or `end` tokens in all.
    Generate { end: usize },
    /// Report the log-probabilities of the tokens that are there, from index `next` on.
    Score { next: usize, top: usize },
}

/// When things happened, by the clock that the engine's owner passes in.
#[derive(Debug, Default, Clone, Copy)]
pub struct Milestones {
    pub arrived: Duration,
    pub started: Option<Duration>,
    pub first_token: Option<Duration>,
}

impl Milestones {
    /// What they amount to if everything ends at `now`.
    pub fn timings(&self, now: Duration) -> Timings {
        let since_arrival = |time: Duration| time.saturating_sub(self.arrived);
        Timings {
            queued: since_arrival(self.started.unwrap_or(now)),
            first_token: self.first_token.map(since_arrival),
            total: since_arrival(now),
        }
    }
}

pub struct Sequence {
    pub id: SequenceId,
    pub state: State,
    pub tokens: Vec<u32>,
    pub num_prompt_tokens: usize,
    /// Tokens whose keys and values are in the blocks.
    pub num_computed_tokens: usize,
    pub table: BlockTable,
    /// Full blocks whose content is known to the prefix cache, and the key of the last of them.
    pub num_published_blocks: usize,
    pub prefix: Option<PrefixKey>,
    /// Tokens that may follow and are verified with the next step; never part of `tokens` before.
    pub draft: Draft,
    pub branches: Branches,
    /// Most draft tokens a step may verify for it; 0 is plain decoding.
    pub max_draft_tokens: usize,
    /// What somebody else would have said in its place.
    pub draft_hint: Vec<u32>,
    pub purpose: Purpose,
    pub params: SamplingParams,
    pub seed: u64,
    /// Whose share of the engine's time it takes: a keyed hash, 0 when nobody's.
    pub tenant: u64,
    /// On whose account its steps go; 0 when nobody's.
    pub account: u64,
    /// Lower goes first, as for vLLM.
    pub priority: i8,
    /// By the engine's clock: an answer that has not begun by then is not wanted.
    pub deadline: Option<Duration>,
    /// What the answer must look like, and how far it is.
    pub constraint: Option<Box<Constraint>>,
    pub counts: TokenCounts,
    pub text: TextStream,
    pub milestones: Milestones,
    /// Events made by the step, sent after it.
    pub outgoing: Vec<Event>,
    /// `None` once its reader is gone.
    pub sink: Option<Box<dyn Sink>>,
}

/// What a sequence is made from.
pub struct Order {
    pub id: SequenceId,
    pub tokens: Vec<u32>,
    pub purpose: Purpose,
    pub params: SamplingParams,
    /// Used when the parameters bring no seed.
    pub default_seed: u64,
    pub stops: Vec<String>,
    pub arrived: Duration,
    pub sink: Box<dyn Sink>,
}

impl Sequence {
    /// It is nobody's, of priority 0, without a deadline and free to say anything until its owner says otherwise.
    pub fn new(order: Order) -> Self {
        assert!(
            !order.tokens.is_empty(),
            "a sequence starts from at least one token"
        );
        Self {
            id: order.id,
            state: State::Waiting,
            num_prompt_tokens: order.tokens.len(),
            num_computed_tokens: 0,
            table: BlockTable::default(),
            num_published_blocks: 0,
            prefix: None,
            draft: Draft::default(),
            branches: Branches::default(),
            max_draft_tokens: 0,
            draft_hint: Vec::new(),
            purpose: order.purpose,
            seed: order.params.seed.unwrap_or(order.default_seed),
            tenant: 0,
            account: 0,
            priority: 0,
            deadline: None,
            constraint: None,
            counts: TokenCounts::new(&order.params, &order.tokens),
            params: order.params,
            text: TextStream::new(order.stops),
            tokens: order.tokens,
            milestones: Milestones {
                arrived: order.arrived,
                ..Milestones::default()
            },
            outgoing: Vec::new(),
            sink: Some(order.sink),
        }
    }

    /// Tokens that must be computed before the next one can be chosen (or the score is complete).
    pub fn num_pending_tokens(&self) -> usize {
        let wanted = match self.purpose {
            Purpose::Generate { .. } => self.tokens.len(),
            // Nothing follows the last token, so its own logits are not needed.
            Purpose::Score { .. } => self.tokens.len() - 1,
        };
        wanted - self.num_computed_tokens
    }

    /// One pending token after at least one computed: the cheap row that must not wait.
    pub fn is_decoding(&self) -> bool {
        matches!(self.purpose, Purpose::Generate { .. })
            && self.num_computed_tokens >= self.num_prompt_tokens
            && self.num_pending_tokens() == 1
    }

    /// Which of the next `rows` rows need logits: a range relative to the first of them.
    pub fn logit_rows(&self, rows: usize) -> std::ops::Range<usize> {
        match self.purpose {
            Purpose::Generate { .. } if rows == self.num_pending_tokens() => rows - 1..rows,
            Purpose::Generate { .. } => rows..rows,
            // Token `next` is predicted by the row of the token before it.
            Purpose::Score { next, .. } => {
                (next - 1)
                    .saturating_sub(self.num_computed_tokens)
                    .min(rows)..rows
            }
        }
    }

    pub fn is_finished(&self) -> bool {
        matches!(self.state, State::Finished(_))
    }

    /// Ends the sequence and gives its blocks back; only its owner's last events remain to be sent.
    pub fn finish(&mut self, pool: &mut BlockPool, outcome: Outcome) {
        assert!(!self.is_finished(), "sequence {} finished twice", self.id.0);
        self.release(pool);
        self.state = State::Finished(outcome);
    }

    /// Gives the blocks back and starts over later from the tokens, which include those generated.
    pub fn preempt(&mut self, pool: &mut BlockPool) {
        assert_eq!(
            self.state,
            State::Running,
            "only running sequences are preempted"
        );
        self.release(pool);
        self.state = State::Waiting;
    }

    /// Gives all blocks back. What they hold stays findable until they are overwritten.
    fn release(&mut self, pool: &mut BlockPool) {
        self.drop_draft(pool);
        self.table.truncate(pool, 0);
        self.num_computed_tokens = 0;
        self.num_published_blocks = 0;
        self.prefix = None;
    }

    /// Tokens whose logits nobody reads, so that a cached prefix may stand in for them.
    pub fn num_skippable_tokens(&self) -> usize {
        match self.purpose {
            Purpose::Generate { .. } => self.tokens.len() - 1,
            // Token `next` is predicted by the row of the token before it.
            Purpose::Score { next, .. } => next - 1,
        }
    }

    /// Makes the blocks that have become full findable for others.
    pub fn publish(&mut self, pool: &mut BlockPool) {
        let full = self.num_computed_tokens / BLOCK_SIZE;
        for index in self.num_published_blocks..full {
            let tokens = &self.tokens[index * BLOCK_SIZE..][..BLOCK_SIZE];
            let block = self.table.blocks()[index];
            self.prefix = pool.publish(block, self.tenant, self.prefix, tokens);
        }
        self.num_published_blocks = full;
    }

    /// Begins with what the cache holds of it. A partial hit counts as computed: its copy precedes
    /// everything else of the step.
    pub fn adopt(&mut self, pool: &mut BlockPool, hit: &PrefixHit) {
        self.table.adopt(pool, hit);
        self.num_published_blocks = hit.blocks.len();
        self.prefix = Some(hit.key);
        self.num_computed_tokens = hit.tokens();
    }

    /// Whether its blocks may not be enough for all that it may still say.
    pub fn may_grow(&self) -> bool {
        match self.purpose {
            // The last token is never computed.
            Purpose::Generate { end } => self.table.blocks().len() < blocks_for(end - 1),
            Purpose::Score { .. } => false,
        }
    }

    /// Gives the draft's tokens room in the blocks, or drops the draft.
    pub fn place_draft(
        &mut self,
        pool: &mut BlockPool,
        reserve: usize,
        copies: &mut Vec<BlockCopy>,
    ) {
        let placed = self.draft.is_empty()
            || self.branches.place(
                &self.draft,
                self.num_computed_tokens,
                &mut self.table,
                pool,
                reserve,
                copies,
            );
        if !placed {
            self.draft.clear();
        }
    }

    /// Adds the draft's rows after the pending token's.
    pub fn add_draft(&self, batch: &mut Batch) {
        if !self.branches.is_empty() {
            self.branches
                .fill(&self.draft, self.num_computed_tokens, &self.table, batch);
        }
    }

    /// Keeps the blocks along the draft up to `node` and forgets the rest of it.
    pub fn settle_draft(&mut self, node: Option<u16>, pool: &mut BlockPool) {
        self.branches.settle(node, &mut self.table, pool);
        self.table.truncate(pool, self.tokens.len());
        self.draft.clear();
    }

    /// Forgets the draft: nothing of it was computed.
    pub fn drop_draft(&mut self, pool: &mut BlockPool) {
        self.branches.release(pool);
        self.table.truncate(pool, self.tokens.len());
        self.draft.clear();
    }

    pub fn num_generated_tokens(&self) -> usize {
        match self.purpose {
            Purpose::Generate { .. } => self.tokens.len() - self.num_prompt_tokens,
            Purpose::Score { .. } => 0,
        }
    }
}
