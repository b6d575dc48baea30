//! A small model that guesses for a large one.
//!
//! It exists for text that repeats nothing: a model a tenth of the target's size agrees with it
//! on most easy tokens. It keeps its own KV blocks in step with the committed tokens, computes
//! all requests together, one batch per draft position, and draws with the target's noise at the
//! same position: two models with the same opinion then choose the same token at any temperature,
//! where independent draws would mostly differ (coupled sampling: Daliri, Musco, Suresh 2024).
//!
//! It refuses to hurt the target. Without free blocks, with too much to catch up on, or after a
//! failed pass it proposes nothing; after several failures in a row it falls silent for good.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::draft::{Draft, DraftRequest, Drafter};
use crate::batch::{Batch, Span};
use crate::block::{BLOCK_SIZE, BlockPool, BlockTable};
use crate::runner::Runner;
use crate::sampler::Sampler;
use crate::sequence::SequenceId;
use crate::tokenizer::Tokenizer;

/// Failed passes in a row after which the model is asked no more.
const MAX_FAILURES: u32 = 3;
/// A guess below this probability ends the draft: what follows it would hold even less often.
const MIN_PROBABILITY: f32 = 0.2;

/// Two models that do not speak of the same tokens. The fault is the configuration's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VocabularyMismatch {
    #[error(
        "the draft model has {draft} tokens and its target {target}; a draft model must share its target's vocabulary"
    )]
    Size { target: usize, draft: usize },
    #[error(
        "token {token} is {draft:?} for the draft model and {target:?} for its target; a draft model must share its target's vocabulary"
    )]
    Token {
        token: u32,
        target: String,
        draft: String,
    },
    #[error(
        "the draft model ends a text with the tokens {draft:?} and its target with {target:?}; a draft model must share its target's vocabulary"
    )]
    Ends { target: Vec<u32>, draft: Vec<u32> },
}

/// Whether a draft model's token numbers mean the same as its target's.
pub fn same_vocabulary(target: &Tokenizer, draft: &Tokenizer) -> Result<(), VocabularyMismatch> {
    if target.vocabulary() != draft.vocabulary() {
        return Err(VocabularyMismatch::Size {
            target: target.vocabulary(),
            draft: draft.vocabulary(),
        });
    }
    let differs = |id: &u32| target.display_bytes(*id) != draft.display_bytes(*id);
    if let Some(token) = (0..target.vocabulary() as u32).find(differs) {
        let text = |t: &Tokenizer| String::from_utf8_lossy(t.display_bytes(token)).into_owned();
        return Err(VocabularyMismatch::Token {
            token,
            target: text(target),
            draft: text(draft),
        });
    }
    if target.ends() != draft.ends() {
        return Err(VocabularyMismatch::Ends {
            target: target.ends().to_vec(),
            draft: draft.ends().to_vec(),
        });
    }
    Ok(())
}

/// What a draft model may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DraftModelLimits {
    /// KV blocks of its runner.
    pub blocks: usize,
    /// Rows and logit rows of one pass of its runner; also the most tokens that one proposal
    /// catches up on, over all sequences.
    pub max_rows: usize,
    pub max_logit_rows: usize,
    /// Positions its runner can compute.
    pub context_tokens: usize,
}

/// Proposes what a smaller model would say.
pub struct DraftModel {
    runner: Box<dyn Runner>,
    pool: BlockPool,
    limits: DraftModelLimits,
    sequences: HashMap<SequenceId, Kept>,
    sampler: Sampler,
    batch: Batch,
    failures: u32,
    /// Who had a part in the last proposal.
    computed_for: Vec<SequenceId>,
}

/// A sequence as the draft model has computed it.
#[derive(Default)]
struct Kept {
    table: BlockTable,
    /// Tokens whose keys and values are in the blocks. The last ones may be rejected guesses.
    computed: Vec<u32>,
}

/// One request that takes part in a proposal.
struct Part {
    /// Its index among the requests.
    request: usize,
    /// Tokens to guess.
    depth: usize,
    /// Where the guesses stand in the draft.
    parent: Option<u16>,
    /// The token whose row comes next; the first pass takes the committed ones instead.
    next: u32,
}

impl DraftModel {
    pub fn new(runner: Box<dyn Runner>, limits: DraftModelLimits) -> Self {
        Self {
            runner,
            pool: BlockPool::new(limits.blocks),
            limits,
            sequences: HashMap::new(),
            sampler: Sampler::default(),
            batch: Batch::default(),
            failures: 0,
            computed_for: Vec::new(),
        }
    }

    /// Chooses who takes part and makes room for them. Rejected guesses are dropped here.
    fn enter(&mut self, requests: &[DraftRequest<'_>]) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut rows = self.limits.max_rows;
        for (index, request) in requests.iter().enumerate() {
            let length = request.tokens.len();
            // The last guess is never computed, so it needs no room.
            let room = self.limits.context_tokens.saturating_sub(length) + 1;
            let depth = request.max_depth.min(request.max_nodes).min(room);
            let fits = length <= self.limits.context_tokens;
            if depth == 0 || !fits || rows == 0 || !request.may_compute {
                continue;
            }
            if parts.len() == self.limits.max_logit_rows {
                break;
            }
            let kept = self.sequences.entry(request.id).or_default();
            let same = kept.computed.iter().zip(request.tokens);
            // The last token's logits are wanted, so it is computed again if it was before.
            let valid = same.take_while(|(a, b)| a == b).count().min(length - 1);
            kept.computed.truncate(valid);
            kept.table.truncate(&mut self.pool, valid);
            // Longer than what one proposal may cost: a part now, the rest with the next ones.
            let missing = (length - valid).min(rows);
            let complete = valid + missing == length;
            let needed = valid + missing + if complete { depth - 1 } else { 0 };
            if !kept.table.grow(&mut self.pool, needed) {
                continue;
            }
            rows -= missing;
            parts.push(Part {
                request: index,
                depth: if complete { depth } else { 0 },
                parent: None,
                next: 0,
            });
        }
        parts
    }

    /// The first pass: every participant's tokens that are not computed yet.
    fn catch_up(&mut self, requests: &[DraftRequest<'_>], parts: &[Part]) {
        clear(&mut self.batch);
        let mut rows = self.limits.max_rows;
        for part in parts {
            let request = &requests[part.request];
            let Some(kept) = self.sequences.get_mut(&request.id) else {
                continue;
            };
            let missing = (request.tokens.len() - kept.computed.len()).min(rows);
            rows -= missing;
            let new = &request.tokens[kept.computed.len()..][..missing];
            add_rows(&mut self.batch, kept, new, part.depth > 0);
        }
    }

    /// A later pass: the newest guess of everybody who guesses on.
    fn follow_up(&mut self, requests: &[DraftRequest<'_>], parts: &[Part]) {
        clear(&mut self.batch);
        for part in parts {
            if let Some(kept) = self.sequences.get_mut(&requests[part.request].id) {
                add_rows(&mut self.batch, kept, &[part.next], true);
            }
        }
    }

    /// Runs the batch. On a failure nothing of it counts, and everybody in it starts over.
    fn run(&mut self, requests: &[DraftRequest<'_>], parts: &[Part]) -> bool {
        let pass = || self.runner.forward(&self.batch);
        let problem = match catch_unwind(AssertUnwindSafe(pass)) {
            Ok(Ok(())) => {
                self.failures = 0;
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it panicked".to_owned(),
        };
        self.failures += 1;
        tracing::warn!(
            problem,
            failures = self.failures,
            "the draft model could not be run; the target goes on without it"
        );
        for part in parts {
            self.forget(requests[part.request].id);
        }
        false
    }

    /// Draws one guess per participant; those who are done, or have nothing to say, leave.
    fn guess(
        &mut self,
        requests: &[DraftRequest<'_>],
        parts: &mut Vec<Part>,
        drafts: &mut [Draft],
        depth: usize,
    ) {
        let mut row = 0;
        parts.retain_mut(|part| {
            if part.depth == 0 {
                return false;
            }
            let request = &requests[part.request];
            let logits = self.runner.logits(row);
            row += 1;
            let position = request.tokens.len() + depth;
            let picked = self.sampler.pick(
                logits,
                request.params,
                request.counts,
                None,
                request.seed,
                position,
            );
            let Ok(picked) = picked else {
                return false;
            };
            // The report is about the plain distribution; at a temperature of 0 it is the
            // confidence itself, above it still tells a hard position from an easy one.
            if picked.report.logprob < MIN_PROBABILITY.ln() {
                return false;
            }
            part.next = picked.token;
            let draft = &mut drafts[part.request];
            part.parent = draft.push(picked.token, part.parent, 0);
            if let Some(node) = part.parent {
                draft.set_confidence(node, f64::from(picked.report.logprob.exp()));
            }
            part.parent.is_some() && depth + 1 < part.depth
        });
    }
}

impl Drafter for DraftModel {
    fn propose(&mut self, requests: &[DraftRequest<'_>], drafts: &mut [Draft]) {
        self.computed_for.clear();
        if self.failures >= MAX_FAILURES {
            return;
        }
        let mut parts = self.enter(requests);
        let asked = parts.iter().map(|part| requests[part.request].id);
        self.computed_for.extend(asked);
        let mut depth = 0;
        while !parts.is_empty() {
            if depth == 0 {
                self.catch_up(requests, &parts);
            } else {
                self.follow_up(requests, &parts);
            }
            if !self.run(requests, &parts) {
                return;
            }
            self.guess(requests, &mut parts, drafts, depth);
            depth += 1;
        }
    }

    fn observe(&mut self, _: SequenceId, _: &[u32], _: usize, _: usize) {
        // What was rejected shows when the next request's tokens differ from those computed.
    }

    fn forget(&mut self, id: SequenceId) {
        if let Some(mut kept) = self.sequences.remove(&id) {
            kept.table.truncate(&mut self.pool, 0);
        }
    }

    fn computed_for(&self) -> &[SequenceId] {
        &self.computed_for
    }

    fn set_threads(&mut self, threads: usize) {
        self.runner.set_threads(threads);
    }
}

fn clear(batch: &mut Batch) {
    batch.tokens.clear();
    batch.positions.clear();
    batch.spans.clear();
    batch.blocks.clear();
    batch.logit_rows.clear();
    batch.mirrors.clear();
}

/// Adds the next tokens of a sequence, which count as computed from here on.
fn add_rows(batch: &mut Batch, kept: &mut Kept, tokens: &[u32], logits: bool) {
    let first_row = batch.rows();
    let (first_block, first_logit) = (batch.blocks.len(), batch.logit_rows.len());
    let first = kept.computed.len();
    batch.tokens.extend_from_slice(tokens);
    batch
        .positions
        .extend((first..first + tokens.len()).map(|p| p as u32));
    kept.computed.extend_from_slice(tokens);
    let seen = kept.computed.len().div_ceil(BLOCK_SIZE);
    batch
        .blocks
        .extend(kept.table.blocks()[..seen].iter().map(|id| id.0));
    if logits {
        batch.logit_rows.push((batch.rows() - 1) as u32);
    }
    batch.spans.push(Span {
        rows: first_row..batch.rows(),
        blocks: first_block..batch.blocks.len(),
        logits: first_logit..batch.logit_rows.len(),
    });
}

#[cfg(test)]
mod tests;
