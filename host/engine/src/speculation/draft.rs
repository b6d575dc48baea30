//! A draft: a small tree of tokens that may come next, and who proposes such trees.
//!
//! The tree's root is the last committed token. Nodes lie in the order of their worth, parents
//! before children, so that cutting the tail off always leaves a tree, and the better part of it.
//! A chain is a tree without branches.
//!
//! It refuses two equal children of one parent: at most one of them could ever be accepted, and
//! the other would be a row paid for nothing.

use crate::sampler::{SamplingParams, TokenCounts};
use crate::sequence::SequenceId;

/// Nodes that a draft can have at most, whatever its caller allows: node numbers are 16 bits, and
/// no machine verifies that many rows for one sequence at a profit.
pub const MAX_NODES: usize = 1_024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DraftNode {
    pub token: u32,
    /// Number of the node before it; `None` for a child of the last committed token.
    pub parent: Option<u16>,
    /// Which drafter proposed it: an index for metrics and for the length controller.
    pub drafter: u8,
}

/// A tree of proposed tokens. Reused from step to step; allocates nothing once it has grown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draft {
    nodes: Vec<DraftNode>,
    depths: Vec<u16>,
    confidences: Vec<u8>,
}

impl Draft {
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.depths.clear();
        self.confidences.clear();
    }

    /// Adds a node and returns its number. An equal child of the same parent is returned instead
    /// of a second one. `None` when the draft is full, or when the parent does not exist.
    pub fn push(&mut self, token: u32, parent: Option<u16>, drafter: u8) -> Option<u16> {
        if let Some(there) = self.child(parent, token) {
            return Some(there);
        }
        if self.nodes.len() == MAX_NODES {
            return None;
        }
        let depth = match parent {
            Some(parent) => self.depths.get(usize::from(parent))? + 1,
            None => 1,
        };
        let node = self.nodes.len() as u16;
        self.nodes.push(DraftNode {
            token,
            parent,
            drafter,
        });
        self.depths.push(depth);
        self.confidences.push(0);
        Some(node)
    }

    /// The child of `parent` that carries `token`: how a verifier walks down the tree.
    pub fn child(&self, parent: Option<u16>, token: u32) -> Option<u16> {
        // Children come after their parent, so the scan starts there; trees are small.
        let first = parent.map_or(0, |p| usize::from(p) + 1);
        let matching = |node: &DraftNode| node.parent == parent && node.token == token;
        let found = self.nodes.get(first..)?.iter().position(matching)?;
        Some((first + found) as u16)
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub fn nodes(&self) -> &[DraftNode] {
        &self.nodes
    }

    /// Tokens of the longest path; 0 for an empty draft.
    pub fn depth(&self) -> usize {
        self.depths.iter().copied().max().map_or(0, usize::from)
    }

    /// How many tokens after the last committed one the node stands; 1 for a child of the root.
    pub fn depth_of(&self, node: u16) -> usize {
        usize::from(self.depths[usize::from(node)])
    }

    /// Every node has at most one child, and the root too.
    pub fn is_chain(&self) -> bool {
        self.depth() == self.len()
    }

    /// Nodes without children, ascending: one per path.
    pub fn leaves(&self) -> impl Iterator<Item = u16> {
        let is_parent = |node: u16| self.nodes.iter().any(|n| n.parent == Some(node));
        (0..self.nodes.len() as u16).filter(move |node| !is_parent(*node))
    }

    /// Replaces `path` by the node numbers from a child of the root down to `node`.
    pub fn path_to(&self, node: u16, path: &mut Vec<u16>) {
        path.clear();
        let mut at = Some(node);
        while let Some(node) = at {
            path.push(node);
            at = self.nodes[usize::from(node)].parent;
        }
        path.reverse();
    }

    /// Every path from a child of the root to a leaf.
    pub fn paths(&self) -> impl Iterator<Item = Vec<u16>> {
        self.leaves().map(|leaf| {
            let mut path = Vec::with_capacity(self.depth_of(leaf));
            self.path_to(leaf, &mut path);
            path
        })
    }

    /// Keeps the nodes that are marked, and of those only the ones whose parents are kept.
    pub fn retain(&mut self, marked: &[bool]) {
        let nodes = std::mem::take(&mut self.nodes);
        let confidences = std::mem::take(&mut self.confidences);
        self.clear();
        let mut new_numbers: Vec<Option<u16>> = Vec::with_capacity(nodes.len());
        for ((node, confidence), marked) in nodes.iter().zip(confidences).zip(marked) {
            let parent = node.parent.map(|p| new_numbers[usize::from(p)]);
            let kept = match parent {
                None if *marked => self.push(node.token, None, node.drafter),
                Some(Some(parent)) if *marked => self.push(node.token, Some(parent), node.drafter),
                _ => None,
            };
            if let Some(kept) = kept {
                self.confidences[usize::from(kept)] = confidence;
            }
            new_numbers.push(kept);
        }
    }

    /// Keeps the first `nodes` nodes.
    pub fn truncate(&mut self, nodes: usize) {
        self.nodes.truncate(nodes);
        self.depths.truncate(nodes);
        self.confidences.truncate(nodes);
    }

    /// Its drafter's own idea of how likely the node is to hold once its parent has, from 1 to 255;
    /// 0 when the drafter did not say. The length controller learns what it is worth.
    pub fn confidence(&self, node: u16) -> u8 {
        self.confidences[usize::from(node)]
    }

    /// Says how likely a node is, from 0 to 1, to hold once its parent has.
    pub fn set_confidence(&mut self, node: u16, chance: f64) {
        self.confidences[usize::from(node)] = (chance * 255.0).clamp(1.0, 255.0) as u8;
    }

    /// Puts one drafter's number on every node.
    pub fn set_drafter(&mut self, drafter: u8) {
        self.nodes.iter_mut().for_each(|n| n.drafter = drafter);
    }
}

/// The chance of a continuation that followed `count` of the `total` times after `agreement` equal
/// tokens: one occurrence after a short agreement proves little, after a long one nearly all.
pub(super) fn trust(count: f64, total: f64, agreement: usize) -> f64 {
    count / (total + 2.0 / (1.0 + agreement as f64))
}

/// What a drafter may know about a sequence when it guesses.
#[derive(Debug, Clone, Copy)]
pub struct DraftRequest<'a> {
    pub id: SequenceId,
    /// Prompt and answer so far, all committed. Never empty.
    pub tokens: &'a [u32],
    pub num_prompt_tokens: usize,
    /// Whose sequence it is: nothing learned from one tenant is shown to another.
    pub tenant: u64,
    /// The sequence's random key, so that a drafter which samples can use the target's noise.
    pub seed: u64,
    pub params: &'a SamplingParams,
    /// Penalties as they stand at the last committed token.
    pub counts: &'a TokenCounts,
    /// Longest path and most nodes that the caller can use. 0: no draft is wanted.
    pub max_depth: usize,
    pub max_nodes: usize,
    /// Whether the sequence can pay for a draft that takes a model's time.
    pub may_compute: bool,
}

impl DraftRequest<'_> {
    pub(super) fn is_wanted(&self) -> bool {
        self.max_depth > 0 && self.max_nodes > 0
    }
}

/// Somebody who guesses. Being wrong, slow or silent costs speed only.
pub trait Drafter: Send {
    /// Proposes for each request into the draft of the same index, which is empty when it is
    /// called. Leaving one empty is always allowed.
    fn propose(&mut self, requests: &[DraftRequest<'_>], drafts: &mut [Draft]);

    /// What the target said: of `proposed` tokens that were verified, `accepted` held, along the
    /// one path that was followed. `tokens` is everything committed now.
    fn observe(&mut self, id: SequenceId, tokens: &[u32], proposed: usize, accepted: usize);

    /// The sequence has ended: forget it. Unknown sequences are no matter.
    fn forget(&mut self, id: SequenceId);

    /// Sequences for which a model was run by the last proposal, whatever came of it.
    fn computed_for(&self) -> &[SequenceId] {
        &[]
    }

    /// Compute threads that it may use from now on.
    fn set_threads(&mut self, _threads: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix;

    #[test]
    fn nodes_that_are_not_kept_take_what_follows_them_along() {
        let mut draft = Draft::default();
        let a = draft.push(7, None, 3);
        let b = draft.push(8, a, 3);
        draft.push(9, None, 3);
        draft.push(10, b, 3);
        draft.push(11, Some(2), 3);
        draft.set_confidence(2, 1.0);
        draft.retain(&[true, false, true, true, true]);
        let kept = |token, parent| DraftNode {
            token,
            parent,
            drafter: 3,
        };
        assert_eq!(
            draft.nodes(),
            [kept(7, None), kept(9, None), kept(11, Some(1))]
        );
        assert_eq!((draft.depth(), draft.confidence(1)), (2, 255));
    }

    #[test]
    fn an_equal_child_of_the_same_parent_is_the_same_node() {
        let mut draft = Draft::default();
        let a = draft.push(7, None, 0);
        let b = draft.push(8, a, 0);
        assert_eq!((a, b), (Some(0), Some(1)));
        assert_eq!(draft.push(7, None, 1), Some(0));
        assert_eq!(draft.push(8, None, 0), Some(2), "another parent");
        assert_eq!(draft.push(9, Some(77), 0), None, "no such parent");
        assert_eq!((draft.len(), draft.depth()), (3, 2));
        assert_eq!(draft.paths().collect::<Vec<_>>(), [vec![0, 1], vec![2]]);
        assert!(!draft.is_chain());
        draft.truncate(2);
        assert!(draft.is_chain());
        draft.clear();
        assert!(draft.is_empty() && draft.is_chain() && draft.depth() == 0);
    }

    #[test]
    fn a_full_draft_takes_no_more() {
        let mut draft = Draft::default();
        for token in 0..MAX_NODES as u32 {
            assert!(draft.push(token, None, 0).is_some());
        }
        assert_eq!(draft.push(MAX_NODES as u32, None, 0), None);
        assert_eq!(draft.push(5, None, 0), Some(5));
    }

    /// The oracle is the set of token strings that the tree contains.
    #[test]
    fn a_tree_of_random_strings_contains_exactly_their_prefixes() {
        for seed in 0..200 {
            let mut random = SplitMix::new(seed);
            let mut draft = Draft::default();
            let mut expected = std::collections::BTreeSet::new();
            for _ in 0..random.below(12) {
                let mut parent = None;
                let mut string = Vec::new();
                for _ in 0..random.below(6) {
                    let token = random.below(3) as u32;
                    parent = draft.push(token, parent, 0);
                    string.push(token);
                    expected.insert(string.clone());
                }
            }
            assert_eq!(draft.len(), expected.len(), "seed {seed}");
            let mut path = Vec::new();
            for node in 0..draft.len() as u16 {
                draft.path_to(node, &mut path);
                assert_eq!(path.len(), draft.depth_of(node), "seed {seed}");
                let token = |n: &u16| draft.nodes()[usize::from(*n)].token;
                let string: Vec<u32> = path.iter().map(token).collect();
                assert!(expected.contains(&string), "seed {seed}: {string:?}");
                let mut at = None;
                for token in &string {
                    at = draft.child(at, *token);
                    assert!(at.is_some(), "seed {seed}");
                }
                assert_eq!(at, Some(node), "seed {seed}");
            }
            let covered: std::collections::BTreeSet<u16> = draft.paths().flatten().collect();
            assert_eq!(
                covered.len(),
                draft.len(),
                "seed {seed}: paths cover the tree"
            );
        }
    }
}
