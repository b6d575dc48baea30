//! Prompt lookup: what followed the last tokens when they occurred before?
//!
//! It exists because answers copy: summaries, edits, code and retrieved passages repeat their
//! prompt, and finding the place costs a few table look-ups. The longest suffix that occurred
//! before wins, and of several places the most recent one.
//! Source: Saxena 2023, "Prompt Lookup Decoding"; the longest-suffix rule as in vLLM's n-gram
//! proposer.
//!
//! It refuses to rescan. The index grows by a bounded amount of work per token, and only for
//! sequences that were asked about. Two hashes that collide cost a comparison, never a wrong
//! draft.

use std::collections::HashMap;

use super::draft::{Draft, DraftRequest, Drafter, trust};
use crate::random::keyed;
use crate::sequence::SequenceId;

/// Tokens of one sequence that are indexed at most; 24 bytes or so per token and suffix length.
/// Beyond it the sequence is no longer asked about.
const MAX_INDEXED_TOKENS: usize = 1 << 17;
/// Agreement beyond this many tokens adds no confidence worth measuring.
const MAX_AGREEMENT: usize = 32;

/// Suffix lengths that are looked for. Set from the offline study (`examples/speculate.rs`).
pub const MIN_MATCH: usize = 2;
pub const MAX_MATCH: usize = 5;

/// Proposes by looking the last tokens up in the sequence's own past.
pub struct Ngram {
    min: usize,
    max: usize,
    sequences: HashMap<SequenceId, Index>,
}

impl Default for Ngram {
    fn default() -> Self {
        Self::new(MIN_MATCH, MAX_MATCH)
    }
}

impl Ngram {
    /// Looks for suffixes of `max` tokens, then shorter ones down to `min`.
    ///
    /// # Panics
    /// Unless `1 <= min <= max`.
    pub fn new(min: usize, max: usize) -> Self {
        assert!(
            (1..=max).contains(&min),
            "suffixes of {min} to {max} tokens"
        );
        Self {
            min,
            max,
            sequences: HashMap::new(),
        }
    }
}

impl Drafter for Ngram {
    fn propose(&mut self, requests: &[DraftRequest<'_>], drafts: &mut [Draft]) {
        for (request, draft) in requests.iter().zip(drafts) {
            if !request.is_wanted() || request.tokens.len() > MAX_INDEXED_TOKENS {
                continue;
            }
            let index = self.sequences.entry(request.id).or_default();
            index.extend(request.tokens, self.min, self.max);
            if let Some(from) = index.find(request.tokens, self.min, self.max) {
                let length = request.max_depth.min(request.max_nodes);
                copy(request.tokens, from, length, draft);
            }
        }
    }

    fn observe(&mut self, _: SequenceId, _: &[u32], _: usize, _: usize) {}

    fn forget(&mut self, id: SequenceId) {
        self.sequences.remove(&id);
    }
}

/// Continues `tokens` as it went on at `from`. Where the copy reaches the end it goes on with what
/// it has itself proposed, so that a text which repeats itself is drafted to any length.
fn copy(tokens: &[u32], from: usize, length: usize, draft: &mut Draft) {
    let period = tokens.len() - from;
    let agreement = agreement(tokens, from);
    let mut parent = None;
    for i in 0..length {
        parent = draft.push(tokens[from + i % period], parent, 0);
        let Some(node) = parent else {
            break;
        };
        draft.set_confidence(node, trust(1.0, 1.0, agreement + i));
    }
}

/// How many tokens before `from` equal those at the end.
fn agreement(tokens: &[u32], from: usize) -> usize {
    let before = tokens[..from].iter().rev();
    let last = tokens.iter().rev();
    before
        .zip(last)
        .take(MAX_AGREEMENT)
        .take_while(|(a, b)| a == b)
        .count()
}

/// Where each n-gram of a sequence was last followed by something.
#[derive(Default)]
struct Index {
    /// Hash of an n-gram, n included → the position after its latest occurrence.
    followers: HashMap<u64, u32>,
    /// Positions below this one are in the table.
    indexed: usize,
}

impl Index {
    /// Takes in the tokens that are new since the last time.
    fn extend(&mut self, tokens: &[u32], min: usize, max: usize) {
        for at in self.indexed..tokens.len() {
            for (n, hash) in suffix_hashes(&tokens[..at], max) {
                if n >= min {
                    self.followers.insert(hash, at as u32);
                }
            }
        }
        self.indexed = tokens.len();
    }

    /// The position whose token followed the longest suffix, the latest one if there are several.
    fn find(&self, tokens: &[u32], min: usize, max: usize) -> Option<usize> {
        let mut best = None;
        for (n, hash) in suffix_hashes(tokens, max) {
            if n < min {
                continue;
            }
            // An n-gram that never occurred before is part of no longer one that did.
            let Some(at) = self.followers.get(&hash).map(|at| *at as usize) else {
                break;
            };
            if tokens[at - n..at] == tokens[tokens.len() - n..] {
                best = Some(at);
            }
        }
        best
    }
}

/// The hashes of the suffixes of `tokens`, from one token up to `max`.
fn suffix_hashes(tokens: &[u32], max: usize) -> impl Iterator<Item = (usize, u64)> {
    let mut hash = 0;
    let newest_first = tokens.iter().rev().take(max);
    newest_first.zip(1..).map(move |(token, n)| {
        hash = keyed(hash, u64::from(*token));
        (n, hash)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix;
    use crate::sampler::{SamplingParams, TokenCounts};

    fn tokens_of(draft: &Draft) -> Vec<u32> {
        assert!(draft.is_chain());
        draft.nodes().iter().map(|n| n.token).collect()
    }

    fn propose(drafter: &mut Ngram, id: u64, tokens: &[u32], depth: usize) -> Vec<u32> {
        let request = DraftRequest {
            id: SequenceId(id),
            tokens,
            num_prompt_tokens: 1,
            tenant: 0,
            seed: 0,
            params: &SamplingParams::default(),
            counts: &TokenCounts::default(),
            max_depth: depth,
            max_nodes: 1_000,
            may_compute: true,
        };
        let mut drafts = [Draft::default()];
        drafter.propose(&[request], &mut drafts);
        tokens_of(&drafts[0])
    }

    /// By definition: every place, longest suffix first, latest place first.
    fn expected(tokens: &[u32], min: usize, max: usize, depth: usize) -> Vec<u32> {
        let end = tokens.len();
        for n in (min..=max.min(end)).rev() {
            for at in (n..end).rev() {
                if tokens[at - n..at] == tokens[end - n..] {
                    let mut whole = tokens.to_vec();
                    for i in 0..depth {
                        whole.push(whole[at + i]);
                    }
                    return whole.split_off(end);
                }
            }
        }
        Vec::new()
    }

    #[test]
    fn the_draft_is_what_followed_the_longest_suffix_most_recently() {
        for seed in 0..300 {
            let mut random = SplitMix::new(seed);
            let min = 1 + random.below(3);
            let max = min + random.below(5);
            let mut drafter = Ngram::new(min, max);
            let alphabet = 2 + random.below(5);
            let mut tokens = vec![0];
            for _ in 0..80 {
                // Several tokens at a time, as speculation commits them.
                for _ in 0..1 + random.below(4) {
                    tokens.push(random.below(alphabet) as u32);
                }
                let depth = 1 + random.below(9);
                assert_eq!(
                    propose(&mut drafter, 3, &tokens, depth),
                    expected(&tokens, min, max, depth),
                    "seed {seed}: {tokens:?}"
                );
            }
        }
    }

    #[test]
    fn a_loop_is_drafted_to_any_length() {
        let mut drafter = Ngram::new(2, 4);
        let draft = propose(&mut drafter, 0, &[9, 1, 2, 3, 1, 2, 3, 1], 8);
        assert_eq!(draft, [2, 3, 1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn sequences_do_not_see_each_other_and_are_forgotten() {
        let mut drafter = Ngram::new(1, 4);
        assert_eq!(propose(&mut drafter, 0, &[1, 2, 1], 1), [2]);
        assert!(propose(&mut drafter, 1, &[5, 6, 7, 1], 1).is_empty());
        drafter.forget(SequenceId(0));
        assert_eq!(drafter.sequences.len(), 1);
        // A number that comes back (after a preemption for good) starts from nothing.
        assert_eq!(propose(&mut drafter, 0, &[3, 4, 3], 1), [4]);
    }

    #[test]
    fn no_draft_is_made_and_nothing_indexed_when_none_is_wanted() {
        let mut drafter = Ngram::default();
        assert!(propose(&mut drafter, 0, &[1, 2, 3, 1, 2], 0).is_empty());
        assert!(drafter.sequences.is_empty());
    }

    #[test]
    fn agreement_counts_the_tokens_before_the_place() {
        let tokens = [7, 1, 2, 3, 4, 9, 8, 1, 2, 3, 4];
        assert_eq!(agreement(&tokens, 5), 4);
        assert_eq!(agreement(&tokens, 4), 0);
        assert_eq!(agreement(&[1; 100], 99), MAX_AGREEMENT);
    }
}
