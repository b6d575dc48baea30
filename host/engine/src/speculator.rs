//! Asks the drafters between two steps, and tells them what held.
//!
//! It exists to keep speculation out of the step: the step sees a sequence's draft and verifies
//! it, whoever has made it. It refuses drafts that reach beyond the last token a sequence may
//! have, so that a sequence ends where it would have ended, and tokens that a sequence's grammar
//! does not allow, since they cannot be chosen. Where a grammar leaves no choice, its own text is
//! the draft: nothing else can be as sure. A hint that came with the request goes before the drafters'
//! guesses for as long as the answer follows it.

use std::time::Duration;

use crate::constraint::{Constraint, ConstraintError};
use crate::cost::StepCost;
use crate::scheduler::Limits;
use crate::sequence::{Purpose, Sequence, SequenceId};
use crate::speculation::goodput::Load;
use crate::speculation::hint::{self, HINTED};
use crate::speculation::{Candidate, Draft, DraftNode, DraftRequest, Drafter, Goodput};

/// The drafter's number on what a grammar forces; drafters are numbered from 0.
const FORCED: u8 = u8::MAX;

/// By default nobody guesses, and only what a grammar forces is a draft; without a grammar that
/// costs nothing.
#[derive(Default)]
pub struct Speculator {
    drafter: Option<Box<dyn Drafter>>,
    /// Decides how much of every draft is worth its rows; `None` verifies them whole.
    goodput: Option<Goodput>,
    drafts: Vec<Draft>,
    lengths: Vec<usize>,
    /// Whether the drafter was asked since its time was charged.
    asked: bool,
}

impl Speculator {
    pub fn new(drafter: Box<dyn Drafter>, goodput: Option<Goodput>) -> Self {
        Self {
            drafter: Some(drafter),
            goodput,
            ..Self::default()
        }
    }

    /// Gives every decoding sequence that may have one a new draft, as long as it is worth.
    pub fn propose(&mut self, running: &mut [Sequence], limits: &Limits, cost: &StepCost) {
        let guesses = self.drafter.is_some();
        let wanted = running.iter().filter_map(|s| request(s, guesses));
        let mut requests: Vec<DraftRequest<'_>> = wanted.collect();
        if let Some(goodput) = &self.goodput {
            let ask = |r: &mut DraftRequest<'_>| r.may_compute = goodput.affords_computing(r.id);
            requests.iter_mut().for_each(ask);
        }
        let count = requests.len();
        if count == 0 {
            return;
        }
        if self.drafts.len() < count {
            self.drafts.resize_with(count, Draft::default);
        }
        let drafts = &mut self.drafts[..count];
        drafts.iter_mut().for_each(Draft::clear);
        if let Some(drafter) = &mut self.drafter {
            drafter.propose(&requests, drafts);
        }
        self.asked = true;
        let asked = running.iter().filter(|s| request(s, guesses).is_some());
        for ((sequence, request), draft) in asked.zip(&requests).zip(drafts.iter_mut()) {
            if guesses {
                let generated = &sequence.tokens[sequence.num_prompt_tokens..];
                hint::propose(&sequence.draft_hint, generated, request.max_depth, draft);
            }
            draft.truncate(request.max_nodes);
        }
        let depths: Vec<usize> = requests.iter().map(|r| r.max_depth).collect();
        let speculating = running.iter_mut().filter(|s| request(s, guesses).is_some());
        for ((sequence, draft), depth) in speculating.zip(drafts.iter_mut()).zip(depths) {
            if let Some(constraint) = &mut sequence.constraint
                && constrain(constraint, draft, depth).is_err()
            {
                // The step will meet the same error where it can be told to the reader.
                draft.clear();
            }
        }
        if let Some(goodput) = &mut self.goodput {
            let speculating = running.iter().filter(|s| request(s, guesses).is_some());
            let candidates: Vec<Candidate<'_>> = speculating
                .zip(drafts.iter())
                .map(|(sequence, draft)| Candidate {
                    id: sequence.id,
                    context: sequence.tokens.len(),
                    draft,
                })
                .collect();
            let load = load(running, limits);
            goodput.plan(&candidates, load, cost, &mut self.lengths);
            for (draft, length) in self.drafts.iter_mut().zip(&self.lengths) {
                draft.truncate(*length);
            }
        }
        let speculating = running.iter_mut().filter(|s| request(s, guesses).is_some());
        for (sequence, draft) in speculating.zip(&mut self.drafts) {
            std::mem::swap(&mut sequence.draft, draft);
        }
    }

    /// The last proposal took so long: those for whom a model was run pay for it.
    pub fn charge(&mut self, took: Duration) {
        let asked = std::mem::take(&mut self.asked);
        if let (true, Some(drafter), Some(goodput)) = (asked, &self.drafter, &mut self.goodput) {
            goodput.charge(drafter.computed_for(), took);
        }
    }

    /// Compute threads that drafters may use from now on.
    pub fn set_threads(&mut self, threads: usize) {
        if let Some(drafter) = &mut self.drafter {
            drafter.set_threads(threads);
        }
    }

    /// The target has kept `accepted` of `proposed` tokens, down to the draft's node `last`.
    pub fn observe(
        &mut self,
        sequence: &Sequence,
        proposed: usize,
        accepted: usize,
        last: Option<u16>,
    ) {
        let is_given = |node: &DraftNode| matches!(node.drafter, FORCED | HINTED);
        let (by_drafter, held) = match sequence.draft.nodes().first().is_some_and(is_given) {
            true => (0, 0),
            false => (proposed, accepted),
        };
        if let Some(drafter) = &mut self.drafter {
            drafter.observe(sequence.id, &sequence.tokens, by_drafter, held);
        }
        if let Some(goodput) = &mut self.goodput {
            goodput.observe(sequence.id, last);
        }
    }

    pub fn forget(&mut self, id: SequenceId) {
        if let Some(drafter) = &mut self.drafter {
            drafter.forget(id);
        }
        if let Some(goodput) = &mut self.goodput {
            goodput.forget(id);
        }
    }
}

/// Makes the draft one that the grammar allows: the text that it forces if there is such, else what
/// is allowed of the draft.
fn constrain(
    constraint: &mut Constraint,
    draft: &mut Draft,
    max_depth: usize,
) -> Result<(), ConstraintError> {
    let forced = constraint.forced()?;
    if !forced.is_empty() {
        draft.clear();
        let mut last = None;
        for token in forced.iter().take(max_depth) {
            last = draft.push(*token, last, FORCED);
            last.into_iter().for_each(|n| draft.set_confidence(n, 1.0));
        }
        return Ok(());
    }
    let mut allowed = vec![false; draft.len()];
    for path in draft.paths() {
        let token = |node: &u16| draft.nodes()[usize::from(*node)].token;
        let tokens: Vec<u32> = path.iter().map(token).collect();
        let valid = constraint.valid_prefix_len(&tokens);
        path[..valid]
            .iter()
            .for_each(|node| allowed[usize::from(*node)] = true);
    }
    draft.retain(&allowed);
    Ok(())
}

/// What the next step computes beside the drafts, and the rows it has left for them.
fn load(running: &[Sequence], limits: &Limits) -> Load {
    let decoding = running.iter().filter(|s| s.is_decoding()).count();
    let reading = running.iter().filter(|s| !s.is_decoding());
    let other: usize = reading.map(Sequence::num_pending_tokens).sum();
    let room = limits.max_batch_tokens.min(limits.max_logit_rows);
    Load {
        other_rows: other.min(limits.max_batch_tokens - decoding),
        max_nodes: room - decoding,
    }
}

/// What to ask for a sequence; `None` where nothing may be proposed, or where nobody `guesses` and
/// no grammar forces anything.
fn request(sequence: &Sequence, guesses: bool) -> Option<DraftRequest<'_>> {
    if !guesses && sequence.constraint.is_none() {
        return None;
    }
    let Purpose::Generate { end } = sequence.purpose else {
        return None;
    };
    // The pending token's own row decides one token, so the last one needs no draft.
    let left = end.saturating_sub(sequence.tokens.len() + 1);
    let max_depth = left.min(sequence.max_draft_tokens);
    (max_depth > 0 && sequence.is_decoding()).then_some(DraftRequest {
        id: sequence.id,
        tokens: &sequence.tokens,
        num_prompt_tokens: sequence.num_prompt_tokens,
        tenant: sequence.tenant,
        seed: sequence.seed,
        params: &sequence.params,
        counts: &sequence.counts,
        max_depth,
        max_nodes: sequence.max_draft_tokens,
        may_compute: true,
    })
}
