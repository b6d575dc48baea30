//! Speculation.
mod draft;
pub use draft::{Draft, DraftNode};

use crate::sampler::SamplingParams;
use crate::sequence::SequenceId;

pub struct DraftRequest<'a> {
    pub id: SequenceId,
    pub tokens: &'a [u32],
    pub num_prompt_tokens: usize,
    pub tenant: u64,
    pub seed: u64,
    pub params: &'a SamplingParams,
    pub max_depth: usize,
    pub max_nodes: usize,
}

pub trait Drafter: Send {
    fn name(&self) -> &'static str;
    fn propose(&mut self, requests: &[DraftRequest<'_>], drafts: &mut [Draft]);
    fn observe(&mut self, id: SequenceId, tokens: &[u32], proposed: usize, accepted: usize);
    fn forget(&mut self, id: SequenceId);
}
