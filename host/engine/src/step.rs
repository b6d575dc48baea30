//! One step of the engine: schedule, forward, sample, commit. And the delivery after it.
//!
//! It exists as a plain state machine without threads, clocks or IO, so that tests drive it with
//! scripted runners and seeds. The step calls no outside code; events are kept until
//! [`Core::deliver`], where a reader that is gone or broken can harm nobody but itself.
//!
//! It refuses to let one sequence take others down. When a step panics or fails while one
//! sequence is being committed, that one ends; when it happens in the common forward pass, the
//! sequences of the batch run alone until the culprit has shown itself.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::batch::Batch;
use crate::block::BlockPool;
#[cfg(test)]
use crate::block::{BLOCK_SIZE, BlockTable};
use crate::cost::StepCost;
use crate::events::{EngineError, Event, FinishReason, TokenLogprob, TopLogprob, Usage};
use crate::observer::{SequenceStep, StepObserver, StepRecord};
use crate::runner::Runner;
use crate::sampler::{RowReport, RowStatistics, Sampler};
use crate::scheduler::{Chunk, Limits, Scheduler};
use crate::sequence::{Outcome, Purpose, Sequence, SequenceId, State};
use crate::speculation::{Drafter, Goodput};
use crate::speculator::Speculator;
use crate::stats::{StatsCell, StepWork};
use crate::threads::ThreadChooser;
use crate::tokenizer::Tokenizer;

/// Fewer prompt rows than these are not worth a step's fixed cost, whatever the budget says.
const LEAST_PREFILL_ROWS: usize = 16;

pub struct Core {
    scheduler: Scheduler,
    pool: BlockPool,
    runner: Box<dyn Runner>,
    tokenizer: Arc<Tokenizer>,
    sampler: Sampler,
    batch: Batch,
    /// Sequences that have ended and whose last events are not sent yet.
    finished: Vec<Sequence>,
    /// Whose tokens the step is committing: the culprit if it panics there.
    committing: Option<SequenceId>,
    /// What the last step did and when it began.
    work: StepWork,
    began: Duration,
    record: StepRecord,
    speculator: Speculator,
    step_budget: Option<Duration>,
    /// What steps cost on this machine, learned from every one.
    cost: StepCost,
    threads: ThreadChooser,
    stats: Arc<StatsCell>,
    /// Blocks that a test has taken away.
    #[cfg(test)]
    held_back: BlockTable,
}

/// A step that did not come to its end.
struct StepFault {
    culprit: Option<SequenceId>,
    error: EngineError,
}

impl Core {
    pub fn new(
        limits: Limits,
        runner: Box<dyn Runner>,
        tokenizer: Arc<Tokenizer>,
        stats: Arc<StatsCell>,
    ) -> Self {
        stats.total_blocks.store(limits.total_blocks, Relaxed);
        stats.max_running.store(limits.max_sequences, Relaxed);
        let threads = ThreadChooser::new(runner.max_threads());
        Self {
            scheduler: Scheduler::new(limits),
            pool: BlockPool::new(limits.total_blocks),
            runner,
            tokenizer,
            sampler: Sampler::default(),
            batch: Batch::default(),
            finished: Vec::new(),
            committing: None,
            work: StepWork::default(),
            began: Duration::ZERO,
            record: StepRecord::default(),
            speculator: Speculator::default(),
            step_budget: None,
            cost: StepCost::default(),
            threads,
            stats,
            #[cfg(test)]
            held_back: BlockTable::default(),
        }
    }

    /// Leaves the engine without `blocks` of its free blocks, or without all of them if there are
    /// fewer, until it is called again: allocation that fails where it did not before.
    #[cfg(test)]
    pub fn hold_back(&mut self, blocks: usize) {
        self.held_back.truncate(&mut self.pool, 0);
        let tokens = blocks.min(self.pool.free()) * BLOCK_SIZE;
        assert!(self.held_back.grow(&mut self.pool, tokens), "they are free");
    }

    /// Keeps what is computed findable for prompts that begin the same way.
    pub fn with_prefix_cache(mut self, secret: [u8; 32]) -> Self {
        self.pool = BlockPool::with_prefix_cache(self.pool.total(), secret);
        self
    }

    /// Lets `drafter` propose tokens to sequences that may have drafts. With `goodput`, only as
    /// many are verified as measured step times and acceptance make worth it.
    pub fn with_drafter(mut self, drafter: Box<dyn Drafter>, goodput: Option<Goodput>) -> Self {
        self.speculator = Speculator::new(drafter, goodput);
        self
    }

    /// Lets prefill delay running answers by about this much at a time, as far as step times can
    /// be predicted.
    pub fn with_step_budget(mut self, budget: Duration) -> Self {
        self.step_budget = Some(budget);
        self
    }

    /// Shares of tenants other than 1.
    pub fn with_tenant_weights(mut self, weights: HashMap<u64, u32>) -> Self {
        self.scheduler.set_tenant_weights(weights);
        self
    }

    /// Tells `observer` of every step from now on.
    pub fn observe(&mut self, observer: Box<dyn StepObserver>) {
        self.record.observe(observer);
    }

    /// Lets at most so many sequences be computed together from the next step on.
    pub fn set_max_running(&mut self, most: usize) {
        self.scheduler.set_max_running(most);
        self.stats
            .max_running
            .store(self.scheduler.max_running(), Relaxed);
    }

    pub fn add(&mut self, sequence: Sequence) {
        self.scheduler.add(sequence);
    }

    /// Nothing to compute and nothing to tell.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.finished.is_empty()
    }

    /// Ends a sequence in whatever state it is; unknown and ended ones are no matter.
    pub fn cancel(&mut self, id: SequenceId) {
        self.end(id, Outcome::Done(FinishReason::Cancelled));
    }

    pub fn cancel_all(&mut self) {
        let ids: Vec<SequenceId> = self.scheduler.sequences_mut().map(|s| s.id).collect();
        ids.into_iter().for_each(|id| self.cancel(id));
    }

    /// Computes the next batch, if there is anything to compute. `now` is the time at its start.
    #[cfg(test)]
    pub fn step(&mut self, now: Duration) {
        self.draft(now);
        self.advance(now);
    }

    /// Takes the time of the last [`Self::draft`] into what drafts are worth.
    pub fn drafted(&mut self, took: Duration) {
        self.speculator.charge(took);
    }

    /// Computes the next batch with the drafts there are. `now` is the time at its start.
    pub fn advance(&mut self, now: Duration) {
        for mut sequence in self.scheduler.expired(now) {
            let waited = now.saturating_sub(sequence.milestones.arrived);
            let outcome = Outcome::Failed(EngineError::DeadlineExceeded { waited });
            sequence.finish(&mut self.pool, outcome);
            self.finished.push(sequence);
        }
        let prefill_rows = self.prefill_rows();
        let chunks = self.scheduler.schedule(&mut self.pool, now, prefill_rows);
        self.begin(&chunks, now);
        if chunks.is_empty() {
            return;
        }
        // Sequences are only changed by `commit`, one at a time, so a panic leaves whole states
        // behind: some committed, the rest as they were.
        let attempt = catch_unwind(AssertUnwindSafe(|| self.compute(&chunks)));
        if let Err(fault) = attempt.unwrap_or_else(|panic| Err(self.panicked(&*panic))) {
            self.contain(fault, &chunks);
        }
        if !self.scheduler.copies().is_empty() {
            self.distrust_blocks();
        }
        // After a fault nothing of a draft was committed, and its blocks go back.
        for sequence in self.scheduler.running_mut() {
            sequence.drop_draft(&mut self.pool);
        }
        self.finished.extend(self.scheduler.take_finished());
        self.check_books();
    }

    /// Asks the drafters, before every step. One that panics is not asked again; the answers go on
    /// without. `now` is the time at its start: what guessing takes belongs to the step.
    pub fn draft(&mut self, now: Duration) {
        self.record.begin(now);
        let limits = *self.scheduler.limits();
        self.speculator.set_threads(self.threads.current(1));
        let running = self.scheduler.running_mut();
        let asked = AssertUnwindSafe(|| self.speculator.propose(running, &limits, &self.cost));
        if let Err(panic) = catch_unwind(asked) {
            let message = message_of(&*panic);
            tracing::error!(message, "a drafter panicked; nobody guesses from here on");
            self.speculator = Speculator::default();
            let running = self.scheduler.running_mut();
            running.iter_mut().for_each(|s| s.draft.clear());
        }
    }

    /// Prompt rows that may join a step in which somebody is waiting for the next token.
    fn prefill_rows(&self) -> usize {
        let Some(budget) = self.step_budget else {
            return usize::MAX;
        };
        let running = self.scheduler.running();
        let decoding = running.iter().filter(|s| s.is_decoding());
        let (rows, context) = decoding.fold((0, 0), |(rows, context), s| {
            (rows + 1, context + s.tokens.len())
        });
        // What is read next is read from here on; a newcomer begins at its beginning.
        let reading = running.iter().find(|s| !s.is_decoding());
        let position = reading.map_or(0, |s| s.num_computed_tokens);
        let within = self.cost.rows_within(budget, context, position);
        within.saturating_sub(rows).max(LEAST_PREFILL_ROWS)
    }

    fn compute(&mut self, chunks: &[Chunk]) -> Result<(), StepFault> {
        self.runner.copy_blocks(self.scheduler.copies());
        self.scheduler.clear_copies();
        self.batch.fill(chunks, self.scheduler.running());
        let failed = |e: crate::runner::RunnerError| StepFault {
            culprit: None,
            error: EngineError::Model(e.0),
        };
        let batch = &self.batch;
        self.stats.stepped(batch.rows());
        self.work.rows = batch.rows();
        self.work.logit_rows = batch.logit_rows.len();
        self.work.context = batch.positions.iter().map(|p| *p as usize + 1).sum();
        self.work.threads = self.threads.choose(batch.rows());
        self.runner.set_threads(self.work.threads);
        self.runner.forward(batch).map_err(failed)?;
        for (i, chunk) in chunks.iter().enumerate() {
            self.committing = Some(chunk.id);
            if let Err(error) = self.commit(i, chunk) {
                let outcome = Outcome::Failed(error);
                self.scheduler.running_mut()[chunk.index].finish(&mut self.pool, outcome);
            }
            self.committing = None;
        }
        Ok(())
    }

    /// Makes the computed rows count, and appends or reports what their logits say.
    fn commit(&mut self, index: usize, chunk: &Chunk) -> Result<(), EngineError> {
        let sequence = &mut self.scheduler.running_mut()[chunk.index];
        let rows = self.batch.chunk_logits[index].clone();
        match sequence.purpose {
            Purpose::Generate { end } => {
                let (accepted, outcome) = self.verify(index, chunk, rows, end)?;
                let sequence = &mut self.scheduler.running_mut()[chunk.index];
                sequence.num_computed_tokens += chunk.rows + accepted;
                sequence.publish(&mut self.pool);
                if let Some(reason) = outcome {
                    sequence.finish(&mut self.pool, Outcome::Done(reason));
                }
            }
            Purpose::Score { ref mut next, top } => {
                for row in rows {
                    let logits = self.runner.logits(row);
                    let token = sequence.tokens[*next];
                    let report = RowStatistics::of(logits)?.report(logits, token, top);
                    let text =
                        String::from_utf8_lossy(self.tokenizer.display_bytes(token)).into_owned();
                    sequence.outgoing.push(Event::Token {
                        text,
                        logprob: described(&self.tokenizer, token, &report),
                    });
                    *next += 1;
                }
                sequence.num_computed_tokens += chunk.rows;
                sequence.publish(&mut self.pool);
                if sequence.num_pending_tokens() == 0 {
                    sequence.finish(&mut self.pool, Outcome::Done(FinishReason::Scored));
                }
            }
        }
        Ok(())
    }

    /// Chooses the tokens that the computed rows decide: the one after the pending token, and as long
    /// as the choice is a token that the draft has proposed there, the next. Every token is chosen
    /// by the rule that would have chosen it without a draft, so the draft cannot change the text.
    /// Returns how many proposed tokens are now part of the sequence, and whether it ended.
    fn verify(
        &mut self,
        index: usize,
        chunk: &Chunk,
        rows: std::ops::Range<usize>,
        end: usize,
    ) -> Result<(usize, Option<FinishReason>), EngineError> {
        let sequence = &mut self.scheduler.running_mut()[chunk.index];
        if rows.is_empty() {
            return Ok((0, None));
        }
        let (mut node, mut accepted) = (None, 0);
        let outcome = loop {
            let mask = sequence.constraint.as_mut().map(|c| c.mask());
            let picked = self.sampler.pick(
                self.runner.logits(rows.start + sequence.branches.row(node)),
                &sequence.params,
                &sequence.counts,
                mask.transpose()?,
                sequence.seed,
                sequence.tokens.len(),
            )?;
            self.stats.generation_tokens.fetch_add(1, Relaxed);
            append(sequence, &self.tokenizer, picked.token, &picked.report);
            if let Some(constraint) = &mut sequence.constraint {
                constraint.accept(picked.token)?;
            }
            let outcome = ending(sequence, &self.tokenizer, end);
            let next = match sequence.branches.is_empty() {
                true => None,
                false => sequence.draft.child(node, picked.token),
            };
            accepted += usize::from(next.is_some());
            node = next.or(node);
            if outcome.is_some() || next.is_none() {
                break outcome;
            }
        };
        let proposed = match sequence.branches.is_empty() {
            true => 0,
            false => sequence.draft.len(),
        };
        if proposed > 0 {
            self.speculator.observe(sequence, proposed, accepted, node);
            self.stats.verified(proposed, accepted);
            self.record.reject(index, proposed - accepted);
        }
        sequence.settle_draft(node, &mut self.pool);
        Ok((accepted, outcome))
    }

    /// Sends what the step made known. `now` is the time at its end; sinks run here and nowhere else.
    pub fn deliver(&mut self, now: Duration) {
        self.record.end(now);
        self.learn(now.saturating_sub(self.began));
        let mut gone = Vec::new();
        for sequence in self.scheduler.running_mut() {
            if sequence.milestones.first_token.is_none() && !sequence.outgoing.is_empty() {
                sequence.milestones.first_token = Some(now);
            }
            if !send_outgoing(sequence) {
                gone.push(sequence.id);
            }
        }
        gone.into_iter().for_each(|id| self.cancel(id));
        // Before anybody hears the end of its answer: what it then reads includes it.
        self.publish();
        for mut sequence in std::mem::take(&mut self.finished) {
            self.speculator.forget(sequence.id);
            self.settle(&mut sequence, now);
        }
    }

    /// Takes the time of the last step into everything that is chosen by time.
    fn learn(&mut self, took: Duration) {
        let work = std::mem::take(&mut self.work);
        if work.rows == 0 || took.is_zero() {
            return;
        }
        self.cost
            .observe(work.rows, work.logit_rows, work.context, took);
        self.threads.observe(work.rows, work.threads, took);
        self.stats.compute_threads.store(work.threads, Relaxed);
    }

    /// The last events of a sequence that has ended.
    fn settle(&mut self, sequence: &mut Sequence, now: Duration) {
        if !sequence.outgoing.is_empty() {
            sequence.milestones.first_token.get_or_insert(now);
        }
        let times = sequence.milestones;
        if times.started.is_none() {
            self.stats.waiting.fetch_sub(1, Relaxed);
        }
        let State::Finished(outcome) = &sequence.state else {
            unreachable!("only finished sequences are settled");
        };
        let last = match outcome {
            Outcome::Failed(error) => Event::Failed(error.clone()),
            Outcome::Done(reason) => Event::Finished {
                reason: *reason,
                usage: Usage {
                    prompt_tokens: sequence.num_prompt_tokens,
                    completion_tokens: sequence.num_generated_tokens(),
                },
                timings: times.timings(now),
            },
        };
        let counter = if matches!(last, Event::Failed(_)) {
            &self.stats.failed
        } else {
            &self.stats.finished
        };
        counter.fetch_add(1, Relaxed);
        sequence.outgoing.push(last);
        send_outgoing(sequence);
    }

    fn begin(&mut self, chunks: &[Chunk], now: Duration) {
        self.began = now;
        self.work = StepWork::default();
        for chunk in chunks {
            let sequence = &mut self.scheduler.running_mut()[chunk.index];
            let drafted = match sequence.branches.is_empty() {
                true => 0,
                false => sequence.draft.len(),
            };
            self.record.add(SequenceStep {
                account: sequence.account,
                prefill: !sequence.is_decoding(),
                computed_tokens: (chunk.rows + drafted) as u32,
                context_tokens: sequence.num_computed_tokens as u32,
                rejected_tokens: 0,
            });
            if sequence.milestones.started.is_none() {
                sequence.milestones.started = Some(now);
                self.stats
                    .prompt_tokens
                    .fetch_add(sequence.num_prompt_tokens as u64, Relaxed);
                self.stats.waiting.fetch_sub(1, Relaxed);
            }
        }
    }

    fn panicked(&mut self, panic: &(dyn std::any::Any + Send)) -> StepFault {
        let message = message_of(panic);
        tracing::error!(message, "a step of the engine panicked");
        StepFault {
            culprit: self.committing.take(),
            error: EngineError::Internal(message.to_owned()),
        }
    }

    /// Ends the culprit, or looks for it by letting each suspect run alone.
    fn contain(&mut self, fault: StepFault, chunks: &[Chunk]) {
        match (fault.culprit, chunks) {
            (Some(id), _) => self.end(id, Outcome::Failed(fault.error)),
            (None, [only]) => self.end(only.id, Outcome::Failed(fault.error)),
            (None, several) => self.scheduler.isolate(several.iter().map(|c| c.id)),
        }
    }

    /// Copies that did not come to their end leave blocks that hold nobody knows what.
    fn distrust_blocks(&mut self) {
        self.scheduler.clear_copies();
        let running: Vec<SequenceId> = self.scheduler.running().iter().map(|s| s.id).collect();
        let error = EngineError::Internal("KV blocks could not be copied".to_owned());
        for id in running {
            self.end(id, Outcome::Failed(error.clone()));
        }
    }

    fn end(&mut self, id: SequenceId, outcome: Outcome) {
        if let Some(mut sequence) = self.scheduler.remove(id) {
            if !sequence.is_finished() {
                sequence.finish(&mut self.pool, outcome);
            }
            self.finished.push(sequence);
        }
    }

    fn publish(&self) {
        self.stats
            .running
            .store(self.scheduler.running().len(), Relaxed);
        self.stats
            .preempted
            .store(self.scheduler.num_preempted(), Relaxed);
        self.stats.used_blocks.store(self.pool.used(), Relaxed);
        self.stats
            .preemptions
            .store(self.scheduler.num_preemptions(), Relaxed);
        let prefix = self.scheduler.prefix_counts();
        self.stats
            .prefix_cache_queries
            .store(prefix.queries, Relaxed);
        self.stats.prefix_cache_hits.store(prefix.hits, Relaxed);
    }

    /// Conservation of blocks, after every step of a debug build or a test.
    fn check_books(&mut self) {
        if cfg!(any(test, debug_assertions)) {
            let tables = self.scheduler.running().iter().map(|s| &s.table);
            #[cfg(test)]
            let tables = tables.chain([&self.held_back]);
            self.pool.assert_conserved(tables);
        }
    }
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or(panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message")
}

/// Adds a generated token to the sequence and tells what became certain of the text.
fn append(sequence: &mut Sequence, tokenizer: &Tokenizer, token: u32, report: &RowReport) {
    sequence.tokens.push(token);
    sequence.counts.count(token);
    let logprob = described(tokenizer, token, report);
    sequence.outgoing.push(Event::Token {
        text: String::new(),
        logprob,
    });
}

/// Feeds the newest token's bytes to the text stream, puts the text into its event, and says
/// whether the sequence ends with it.
fn ending(sequence: &mut Sequence, tokenizer: &Tokenizer, end: usize) -> Option<FinishReason> {
    let token = *sequence.tokens.last()?;
    let (mut text, mut reason) = if tokenizer.ends().contains(&token) {
        (String::new(), Some(FinishReason::Stop))
    } else {
        let piece = sequence.text.push(tokenizer.bytes(token));
        let complete = sequence
            .constraint
            .as_ref()
            .is_some_and(|c| c.is_complete());
        let over = piece.stopped || complete;
        (piece.text, over.then_some(FinishReason::Stop))
    };
    if reason.is_none() && sequence.tokens.len() >= end {
        reason = Some(FinishReason::Length);
    }
    if reason.is_some() {
        // After a stop string nothing is left; otherwise what was held back is certain now.
        text.push_str(&sequence.text.finish());
    }
    if let Some(Event::Token { text: of_event, .. }) = sequence.outgoing.last_mut() {
        *of_event = text;
    }
    reason
}

fn described(tokenizer: &Tokenizer, token: u32, report: &RowReport) -> TokenLogprob {
    let bytes = |id: u32| tokenizer.display_bytes(id).to_vec();
    let alternative = |&(id, logprob): &(u32, f32)| TopLogprob {
        token_id: id,
        bytes: bytes(id),
        logprob,
    };
    TokenLogprob {
        token_id: token,
        bytes: bytes(token),
        logprob: report.logprob,
        entropy: report.entropy,
        top: report.top.iter().map(alternative).collect(),
    }
}

/// `false` when the reader is gone, now or before. A sink that panics counts as gone.
fn send_outgoing(sequence: &mut Sequence) -> bool {
    let Some(sink) = &mut sequence.sink else {
        return false;
    };
    let events = std::mem::take(&mut sequence.outgoing);
    let sent = catch_unwind(AssertUnwindSafe(|| {
        events.into_iter().try_for_each(|event| sink.event(event))
    }));
    let alive = matches!(sent, Ok(Ok(())));
    if !alive {
        sequence.sink = None;
    }
    alive
}
