//! Asks the drafters between two steps, and tells them what held.
//!
//! It exists to keep speculation out of the step: the step sees a sequence's draft and verifies
//! it, whoever has made it. It refuses drafts that reach beyond the last token a sequence may
//! have, so that a sequence ends where it would have ended.

use crate::cost::StepCost;
use crate::scheduler::Limits;
use crate::sequence::{Purpose, Sequence, SequenceId};
use crate::speculation::goodput::Load;
use crate::speculation::{Candidate, Draft, DraftRequest, Drafter, Goodput};

pub struct Speculator {
    drafter: Box<dyn Drafter>,
    /// Decides how much of every draft is worth its rows; `None` verifies them whole.
    goodput: Option<Goodput>,
    drafts: Vec<Draft>,
    lengths: Vec<usize>,
}

impl Speculator {
    pub fn new(drafter: Box<dyn Drafter>, goodput: Option<Goodput>) -> Self {
        Self {
            drafter,
            goodput,
            drafts: Vec::new(),
            lengths: Vec::new(),
        }
    }

    /// Gives every decoding sequence that may have one a new draft, as long as it is worth.
    pub fn propose(&mut self, running: &mut [Sequence], limits: &Limits, cost: &StepCost) {
        let requests: Vec<DraftRequest<'_>> = running.iter().filter_map(request).collect();
        let count = requests.len();
        if count == 0 {
            return;
        }
        if self.drafts.len() < count {
            self.drafts.resize_with(count, Draft::default);
        }
        let drafts = &mut self.drafts[..count];
        drafts.iter_mut().for_each(Draft::clear);
        self.drafter.propose(&requests, drafts);
        for (request, draft) in requests.iter().zip(drafts.iter_mut()) {
            draft.truncate(request.max_nodes);
        }
        if let Some(goodput) = &mut self.goodput {
            let candidates: Vec<Candidate<'_>> = requests
                .iter()
                .zip(drafts.iter())
                .map(|(request, draft)| Candidate {
                    id: request.id,
                    context: request.tokens.len(),
                    draft,
                })
                .collect();
            let load = load(running, limits);
            goodput.plan(&candidates, load, cost, &mut self.lengths);
            for (draft, length) in self.drafts.iter_mut().zip(&self.lengths) {
                draft.truncate(*length);
            }
        }
        let speculating = running.iter_mut().filter(|s| request(s).is_some());
        for (sequence, draft) in speculating.zip(&mut self.drafts) {
            std::mem::swap(&mut sequence.draft, draft);
        }
    }

    /// The target has kept `accepted` of `proposed` tokens.
    pub fn observe(&mut self, sequence: &Sequence, proposed: usize, accepted: usize) {
        self.drafter
            .observe(sequence.id, &sequence.tokens, proposed, accepted);
        if let Some(goodput) = &mut self.goodput {
            goodput.observe(sequence.id, proposed, accepted);
        }
    }

    pub fn forget(&mut self, id: SequenceId) {
        self.drafter.forget(id);
        if let Some(goodput) = &mut self.goodput {
            goodput.forget(id);
        }
    }
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

/// What to ask for a sequence; `None` where nothing may be proposed.
fn request(sequence: &Sequence) -> Option<DraftRequest<'_>> {
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
    })
}
