//! Asks the drafters between two steps, and tells them what held.
//!
//! It exists to keep speculation out of the step: the step sees a sequence's draft and verifies
//! it, whoever has made it. It refuses drafts that reach beyond the last token a sequence may
//! have, so that a sequence ends where it would have ended.

use crate::sequence::{Purpose, Sequence, SequenceId};
use crate::speculation::{Draft, DraftRequest, Drafter};

pub struct Speculator {
    drafter: Box<dyn Drafter>,
    drafts: Vec<Draft>,
}

impl Speculator {
    pub fn new(drafter: Box<dyn Drafter>) -> Self {
        Self {
            drafter,
            drafts: Vec::new(),
        }
    }

    /// Gives every decoding sequence that may have one a new draft.
    pub fn propose(&mut self, running: &mut [Sequence]) {
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
        let speculating = running.iter_mut().filter(|s| request(s).is_some());
        for (sequence, draft) in speculating.zip(drafts) {
            draft.truncate(sequence.max_draft_tokens);
            std::mem::swap(&mut sequence.draft, draft);
        }
    }

    /// The target has kept `accepted` of `proposed` tokens.
    pub fn observe(&mut self, sequence: &Sequence, proposed: usize, accepted: usize) {
        self.drafter
            .observe(sequence.id, &sequence.tokens, proposed, accepted);
    }

    pub fn forget(&mut self, id: SequenceId) {
        self.drafter.forget(id);
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
