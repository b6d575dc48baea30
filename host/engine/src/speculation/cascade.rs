//! Several drafters, the cheapest first.
//!
//! It exists because the cheap ones are silent most of the time and good when they speak: the
//! next drafter is asked only about the sequences for which those before it found nothing.
//! Source: the horizontal half of Chen et al. 2023, "Cascade Speculative Drafting".
//!
//! It refuses to mix: a draft comes from one drafter, so that what is learned about its
//! acceptance is learned about somebody.

use std::collections::HashMap;

use super::draft::{Draft, DraftRequest, Drafter};
use crate::sequence::SequenceId;

/// Asks its drafters in order; itself a [`Drafter`].
#[derive(Default)]
pub struct Cascade {
    drafters: Vec<Box<dyn Drafter>>,
    /// Whose draft each sequence has.
    proposer: HashMap<SequenceId, u8>,
    /// Drafts of the sequences that the next drafter is asked about.
    scratch: Vec<Draft>,
}

impl Cascade {
    /// # Panics
    /// With more drafters than a node's number can name.
    pub fn new(drafters: Vec<Box<dyn Drafter>>) -> Self {
        assert!(drafters.len() < usize::from(u8::MAX), "too many drafters");
        Self {
            drafters,
            ..Self::default()
        }
    }

    pub fn is_empty(&self) -> bool {
        self.drafters.is_empty()
    }
}

impl Drafter for Cascade {
    fn propose(&mut self, requests: &[DraftRequest<'_>], drafts: &mut [Draft]) {
        let wanted = |i: &usize| requests[*i].is_wanted();
        let mut silent: Vec<usize> = (0..requests.len()).filter(wanted).collect();
        for (number, drafter) in self.drafters.iter_mut().enumerate() {
            let asked: Vec<DraftRequest<'_>> = silent.iter().map(|i| requests[*i]).collect();
            self.scratch
                .resize_with(self.scratch.len().max(asked.len()), Draft::default);
            let answers = &mut self.scratch[..asked.len()];
            answers.iter_mut().for_each(Draft::clear);
            drafter.propose(&asked, answers);
            for (answer, i) in answers.iter_mut().zip(&silent) {
                let request = &requests[*i];
                answer.truncate(request.max_nodes);
                if !answer.is_empty() {
                    answer.set_drafter(number as u8);
                    self.proposer.insert(request.id, number as u8);
                    std::mem::swap(answer, &mut drafts[*i]);
                }
            }
            silent.retain(|i| drafts[*i].is_empty());
        }
        for i in silent {
            self.proposer.remove(&requests[i].id);
        }
    }

    fn observe(&mut self, id: SequenceId, tokens: &[u32], proposed: usize, accepted: usize) {
        let proposer = self.proposer.get(&id).map(|n| usize::from(*n));
        for (number, drafter) in self.drafters.iter_mut().enumerate() {
            let (proposed, accepted) = match proposer {
                Some(proposer) if proposer == number => (proposed, accepted),
                _ => (0, 0),
            };
            drafter.observe(id, tokens, proposed, accepted);
        }
    }

    fn forget(&mut self, id: SequenceId) {
        self.proposer.remove(&id);
        self.drafters.iter_mut().for_each(|d| d.forget(id));
    }

    /// Of the last that has run a model: there is one at most.
    fn computed_for(&self) -> &[SequenceId] {
        let mut computed = self.drafters.iter().rev().map(|d| d.computed_for());
        computed.find(|ids| !ids.is_empty()).unwrap_or_default()
    }

    fn set_threads(&mut self, threads: usize) {
        self.drafters
            .iter_mut()
            .for_each(|d| d.set_threads(threads));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::{SamplingParams, TokenCounts};
    use std::sync::{Arc, Mutex};

    type Log = Arc<Mutex<Vec<(&'static str, u64, usize, usize)>>>;

    /// Speaks about the sequences that its rule picks, and writes down what it is told.
    struct Says {
        name: &'static str,
        about: fn(u64) -> bool,
        log: Log,
    }

    impl Drafter for Says {
        fn propose(&mut self, requests: &[DraftRequest<'_>], drafts: &mut [Draft]) {
            for (request, draft) in requests.iter().zip(drafts) {
                let mut log = self.log.lock().expect("no panic before");
                log.push((self.name, request.id.0, 0, 0));
                if (self.about)(request.id.0) {
                    let first = draft.push(100 + request.id.0 as u32, None, 77);
                    draft.push(5, first, 77);
                    draft.push(6, first, 77);
                }
            }
        }

        fn observe(&mut self, id: SequenceId, _: &[u32], proposed: usize, accepted: usize) {
            let mut log = self.log.lock().expect("no panic before");
            log.push((self.name, id.0, proposed, accepted));
        }

        fn forget(&mut self, _: SequenceId) {}
    }

    fn propose(cascade: &mut Cascade, ids: &[u64], max_nodes: usize) -> Vec<Draft> {
        let (params, counts) = (SamplingParams::default(), TokenCounts::default());
        let request = |id: &u64| DraftRequest {
            id: SequenceId(*id),
            tokens: &[1],
            num_prompt_tokens: 1,
            tenant: 0,
            seed: 0,
            params: &params,
            counts: &counts,
            max_depth: 4,
            max_nodes: if *id == 9 { 0 } else { max_nodes },
            may_compute: true,
        };
        let requests: Vec<_> = ids.iter().map(request).collect();
        let mut drafts = vec![Draft::default(); ids.len()];
        cascade.propose(&requests, &mut drafts);
        drafts
    }

    #[test]
    fn the_next_drafter_is_asked_only_where_the_first_is_silent() {
        let log = Log::default();
        let says = |name, about| -> Box<dyn Drafter> {
            let log = Arc::clone(&log);
            Box::new(Says { name, about, log })
        };
        let mut cascade = Cascade::new(vec![
            says("cheap", |id| id % 2 == 0),
            says("dear", |id| id % 3 == 0),
        ]);
        let drafts = propose(&mut cascade, &[0, 1, 2, 3, 9], 2);
        let proposer = |d: &Draft| d.nodes().first().map(|n| (n.token, n.drafter));
        let proposers: Vec<_> = drafts.iter().map(proposer).collect();
        let none = None;
        assert_eq!(
            proposers,
            [Some((100, 0)), none, Some((102, 0)), Some((103, 1)), none]
        );
        assert!(drafts.iter().all(|d| d.len() <= 2), "cut to max_nodes");
        let asked: Vec<_> = log.lock().expect("whole").drain(..).collect();
        let asked: Vec<_> = asked.iter().map(|a| (a.0, a.1)).collect();
        let cheap = [0, 1, 2, 3].map(|id| ("cheap", id));
        let dear = [1, 3].map(|id| ("dear", id));
        assert_eq!(asked, [&cheap[..], &dear[..]].concat());
    }

    #[test]
    fn the_one_who_proposed_gets_the_credit() {
        let log = Log::default();
        let says = |name, about| -> Box<dyn Drafter> {
            let log = Arc::clone(&log);
            Box::new(Says { name, about, log })
        };
        let mut cascade = Cascade::new(vec![says("cheap", |_| false), says("dear", |_| true)]);
        propose(&mut cascade, &[4], 8);
        log.lock().expect("whole").clear();
        cascade.observe(SequenceId(4), &[1, 104, 5, 8], 3, 2);
        cascade.observe(SequenceId(5), &[1, 2], 0, 0);
        let told = log.lock().expect("whole").clone();
        let (cheap, dear) = ("cheap", "dear");
        assert_eq!(
            told,
            [
                (cheap, 4, 0, 0),
                (dear, 4, 3, 2),
                (cheap, 5, 0, 0),
                (dear, 5, 0, 0)
            ]
        );
        cascade.forget(SequenceId(4));
        assert!(cascade.proposer.is_empty());
    }
}
