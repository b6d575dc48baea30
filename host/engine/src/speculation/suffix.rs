//! Suffix decoding: continuations of the longest repeated suffix, the frequent ones first.
//!
//! It exists where prompt lookup is too simple: after a suffix that went on in several ways it
//! proposes a small tree, and the longer the text agreed, the further it dares to go. Optionally
//! it remembers finished answers of the same tenant, for agents that say the same things again
//! and again.
//! Source: Oliaro et al. 2024, "SuffixDecoding" (arXiv 2411.04975); the index is the suffix
//! automaton of Blumer et al. 1985, whose last state's suffix link *is* the longest suffix that
//! occurred before.
//!
//! It refuses to grow without bound (every index has a limit on its tokens) and to carry one
//! tenant's words to another. The pool of finished answers is off by default all the same: even
//! within a tenant, the speed of an answer tells that something like it was said before.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::draft::{Draft, DraftRequest, Drafter, trust};
use crate::sequence::SequenceId;

/// Tokens of one sequence that are indexed at most, at some 200 bytes each.
const MAX_INDEXED_TOKENS: usize = 1 << 15;
/// Suffix links followed to count one more occurrence. Chains are a few links long except in text
/// that repeats one short pattern, whose shortest contexts are then counted too low; without the
/// limit such a prompt would cost a square of its length.
const MAX_COUNTED_LINKS: usize = 64;
/// Different continuations of one context that are looked at, the newest first.
const MAX_FANOUT: usize = 32;
/// Tokens that are matched against the pool of finished answers.
const MAX_POOL_MATCH: usize = 32;
/// Tokens from here on separate finished answers; no vocabulary reaches this far.
const SEPARATORS: u32 = 1 << 31;

/// Shortest repeated suffix worth continuing: with confidences learned per node, one token is. Set,
/// like the two below, from the offline study (`examples/speculate.rs`).
const MIN_MATCH: usize = 1;
/// A suffix of n tokens is continued by at most this times n tokens, and two more.
const LENGTH_PER_MATCH: usize = 2;
/// A node is proposed when the frequencies give its path at least this probability.
const MIN_PROBABILITY: f64 = 0.1;

/// What the pool of finished answers may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolLimits {
    /// Tenants remembered at once; the one unused for longest goes first.
    pub tenants: usize,
    /// Tokens remembered per tenant, at some 200 bytes each; the older half goes first.
    pub tokens: usize,
}

/// Proposes from the repetitions of the sequence and, if wanted, of its tenant's earlier answers.
#[derive(Default)]
pub struct Suffix {
    sequences: HashMap<SequenceId, OwnText>,
    pool: Option<Pool>,
    scratch: Draft,
}

struct OwnText {
    automaton: Automaton,
    tenant: u64,
    num_prompt_tokens: usize,
    /// Generated tokens, kept only for the pool.
    answer: Vec<u32>,
}

impl OwnText {
    fn new(request: &DraftRequest<'_>) -> Self {
        Self {
            automaton: Automaton::default(),
            tenant: request.tenant,
            num_prompt_tokens: request.num_prompt_tokens,
            answer: Vec::new(),
        }
    }

    fn extend(&mut self, tokens: &[u32], keep_answer: bool) {
        let new = tokens.get(self.automaton.tokens..).unwrap_or_default();
        new.iter().for_each(|token| self.automaton.push(*token));
        if keep_answer {
            let known = self.num_prompt_tokens + self.answer.len();
            self.answer
                .extend_from_slice(tokens.get(known..).unwrap_or_default());
        }
    }
}

impl Suffix {
    /// Remembers finished answers too, each for its own tenant only, if `pool` says how many.
    pub fn new(pool: Option<PoolLimits>) -> Self {
        let pool = pool.map(|limits| Pool {
            limits,
            tenants: HashMap::new(),
            uses: 0,
        });
        Self {
            pool,
            ..Self::default()
        }
    }

    fn propose_one(&mut self, request: &DraftRequest<'_>, draft: &mut Draft) {
        let new = || OwnText::new(request);
        let own = self.sequences.entry(request.id).or_insert_with(new);
        own.extend(request.tokens, self.pool.is_some());
        let repeated = own.automaton.longest_repeated_suffix();
        let score = grow(&own.automaton, repeated, request, draft);
        let Some(pool) = &mut self.pool else {
            return;
        };
        let Some(earlier) = pool.tenants.get_mut(&request.tenant) else {
            return;
        };
        pool.uses += 1;
        earlier.used = pool.uses;
        let mut best = score;
        for automaton in [&earlier.young, &earlier.old] {
            self.scratch.clear();
            let found = automaton.longest_match(request.tokens);
            let score = grow(automaton, found, request, &mut self.scratch);
            if score > best {
                best = score;
                std::mem::swap(draft, &mut self.scratch);
            }
        }
    }
}

impl Drafter for Suffix {
    fn propose(&mut self, requests: &[DraftRequest<'_>], drafts: &mut [Draft]) {
        for (request, draft) in requests.iter().zip(drafts) {
            if request.is_wanted() && request.tokens.len() <= MAX_INDEXED_TOKENS {
                self.propose_one(request, draft);
            }
        }
    }

    fn observe(&mut self, id: SequenceId, tokens: &[u32], _: usize, _: usize) {
        // The last tokens of an answer are committed after the last proposal.
        if self.pool.is_some()
            && tokens.len() <= MAX_INDEXED_TOKENS
            && let Some(own) = self.sequences.get_mut(&id)
        {
            own.extend(tokens, true);
        }
    }

    fn forget(&mut self, id: SequenceId) {
        if let Some(own) = self.sequences.remove(&id)
            && let Some(pool) = &mut self.pool
        {
            pool.remember(own.tenant, &own.answer);
        }
    }
}

/// Finished answers by tenant.
struct Pool {
    limits: PoolLimits,
    tenants: HashMap<u64, Earlier>,
    uses: u64,
}

/// One tenant's answers. An automaton cannot lose text, so there are two: when the young one is
/// full it becomes the old one, and what was the old one is dropped.
#[derive(Default)]
struct Earlier {
    young: Automaton,
    old: Automaton,
    answers: u32,
    used: u64,
}

impl Pool {
    fn remember(&mut self, tenant: u64, answer: &[u32]) {
        let room = self.limits.tokens / 2;
        // An answer and its separator; one that never fits would only push the others out.
        if answer.is_empty() || answer.len() >= room || self.limits.tenants == 0 {
            return;
        }
        if !self.tenants.contains_key(&tenant) && self.tenants.len() >= self.limits.tenants {
            let oldest = self.tenants.iter().min_by_key(|(_, e)| e.used);
            if let Some(oldest) = oldest.map(|(tenant, _)| *tenant) {
                self.tenants.remove(&oldest);
            }
        }
        self.uses += 1;
        let earlier = self.tenants.entry(tenant).or_default();
        earlier.used = self.uses;
        if earlier.young.tokens + answer.len() + 1 > room {
            earlier.old = std::mem::take(&mut earlier.young);
        }
        answer.iter().for_each(|token| earlier.young.push(*token));
        earlier
            .young
            .push(SEPARATORS + (earlier.answers & (SEPARATORS - 1)));
        earlier.answers = earlier.answers.wrapping_add(1);
    }
}

/// A context in an automaton: its state, and how many tokens of it agree with the sequence.
type Context = (u32, usize);

/// A node that could be added to a draft.
struct Offer {
    probability: f64,
    /// The same, given that its parent holds.
    chance: f64,
    /// Where the token last followed its context: the later one wins a tie.
    recent: u32,
    token: u32,
    parent: Option<u16>,
    state: u32,
    depth: usize,
}

/// Fills `draft` with the likeliest continuations of `context`, best first. Returns how many
/// tokens the frequencies expect to be accepted.
fn grow(
    automaton: &Automaton,
    context: Option<Context>,
    request: &DraftRequest<'_>,
    draft: &mut Draft,
) -> f64 {
    let Some((state, matched)) = context.filter(|(_, matched)| *matched >= MIN_MATCH) else {
        return 0.0;
    };
    let longest = request.max_depth.min(LENGTH_PER_MATCH * matched + 2);
    let mut offers = Vec::new();
    offer(automaton, state, matched, (1.0, None, 0), &mut offers);
    let mut score = 0.0;
    while draft.len() < request.max_nodes {
        let worth = |o: &Offer| (o.probability, o.recent);
        let best = (0..offers.len()).max_by(|a, b| {
            worth(&offers[*a])
                .partial_cmp(&worth(&offers[*b]))
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        let Some(best) = best.map(|i| offers.swap_remove(i)) else {
            break;
        };
        let node = draft.push(best.token, best.parent, 0);
        let Some(number) = node else {
            break;
        };
        draft.set_confidence(number, best.chance);
        score += best.probability;
        if best.depth < longest {
            let at = (best.probability, node, best.depth);
            offer(automaton, best.state, matched + best.depth, at, &mut offers);
        }
    }
    score
}

/// Offers the continuations of `state` as children of a node with this probability and depth.
fn offer(
    automaton: &Automaton,
    state: u32,
    matched: usize,
    (probability, parent, depth): (f64, Option<u16>, usize),
    offers: &mut Vec<Offer>,
) {
    // The newest text has not gone on yet; the longest part of it that has is a suffix link away.
    let mut state = state;
    let mut matched = matched;
    while automaton.continuations(state).next().is_none() {
        state = automaton.states[state as usize].link;
        if state == ROOT || state == NONE {
            return;
        }
        matched = matched.min(automaton.states[state as usize].length as usize);
    }
    if matched < MIN_MATCH {
        return;
    }
    let count = |to: u32| f64::from(automaton.states[to as usize].count.max(1));
    let total: f64 = automaton
        .continuations(state)
        .map(|(_, to)| count(to))
        .sum();
    for (token, to) in automaton.continuations(state) {
        let chance = trust(count(to), total, matched);
        let probability = probability * chance;
        if token < SEPARATORS && probability >= MIN_PROBABILITY {
            offers.push(Offer {
                probability,
                chance,
                recent: automaton.states[to as usize].recent,
                token,
                parent,
                state: to,
                depth: depth + 1,
            });
        }
    }
}

const ROOT: u32 = 0;
const NONE: u32 = u32::MAX;

/// The suffix automaton of a growing text, with occurrence counts.
struct Automaton {
    states: Vec<State>,
    edges: Vec<Edge>,
    /// (state, token) → its edge.
    lookup: HashMap<(u32, u32), u32>,
    last: u32,
    tokens: usize,
}

/// All substrings that end at the same set of positions.
struct State {
    /// Tokens of the longest of them.
    length: u32,
    /// The state of its longest suffix that also ends elsewhere.
    link: u32,
    /// Newest of its edges, which are chained.
    first_edge: u32,
    /// How often they occur.
    count: u32,
    /// The last position at which they end.
    recent: u32,
}

#[derive(Clone, Copy)]
struct Edge {
    token: u32,
    to: u32,
    next: u32,
}

impl Default for Automaton {
    fn default() -> Self {
        let root = State {
            length: 0,
            link: NONE,
            first_edge: NONE,
            count: 0,
            recent: 0,
        };
        Self {
            states: vec![root],
            edges: Vec::new(),
            lookup: HashMap::new(),
            last: ROOT,
            tokens: 0,
        }
    }
}

impl Automaton {
    /// Appends a token to the text. Amortised constant work, apart from hashing.
    fn push(&mut self, token: u32) {
        self.tokens += 1;
        let new = self.add_state(State {
            length: self.tokens as u32,
            link: ROOT,
            first_edge: NONE,
            count: 0,
            recent: 0,
        });
        let mut at = self.last;
        while at != NONE && self.edge(at, token).is_none() {
            self.add_edge(at, token, new);
            at = self.states[at as usize].link;
        }
        if let Some(edge) = (at != NONE).then(|| self.edge(at, token)).flatten() {
            let to = self.edges[edge as usize].to;
            let whole = self.states[at as usize].length + 1 == self.states[to as usize].length;
            let link = if whole { to } else { self.split(at, token, to) };
            self.states[new as usize].link = link;
        }
        self.last = new;
        self.count_occurrence();
    }

    /// Gives the strings of `to` that are at most one token longer than those of `at` a state of
    /// their own: they now end at one more position than the rest.
    fn split(&mut self, at: u32, token: u32, to: u32) -> u32 {
        let old = &self.states[to as usize];
        let clone = State {
            length: self.states[at as usize].length + 1,
            link: old.link,
            first_edge: NONE,
            count: old.count,
            recent: old.recent,
        };
        let clone = self.add_state(clone);
        // Oldest first, so that the newest edge is first in the copy too.
        let mut copied = Vec::new();
        let mut edge = self.states[to as usize].first_edge;
        while edge != NONE {
            copied.push(self.edges[edge as usize]);
            edge = self.edges[edge as usize].next;
        }
        for edge in copied.iter().rev() {
            self.add_edge(clone, edge.token, edge.to);
        }
        let mut at = at;
        while at != NONE {
            match self.edge(at, token) {
                Some(edge) if self.edges[edge as usize].to == to => {
                    self.edges[edge as usize].to = clone;
                }
                _ => break,
            }
            at = self.states[at as usize].link;
        }
        self.states[to as usize].link = clone;
        clone
    }

    fn count_occurrence(&mut self) {
        let recent = self.tokens as u32;
        let mut at = self.last;
        for _ in 0..MAX_COUNTED_LINKS {
            if at == ROOT || at == NONE {
                break;
            }
            let state = &mut self.states[at as usize];
            state.count += 1;
            state.recent = recent;
            at = state.link;
        }
    }

    fn add_state(&mut self, state: State) -> u32 {
        self.states.push(state);
        (self.states.len() - 1) as u32
    }

    fn add_edge(&mut self, from: u32, token: u32, to: u32) {
        let edge = self.edges.len() as u32;
        let next = std::mem::replace(&mut self.states[from as usize].first_edge, edge);
        self.edges.push(Edge { token, to, next });
        self.lookup.insert((from, token), edge);
    }

    fn edge(&self, from: u32, token: u32) -> Option<u32> {
        self.lookup.get(&(from, token)).copied()
    }

    /// Tokens that followed, and the states they led to; the newest first, not all of very many.
    fn continuations(&self, state: u32) -> impl Iterator<Item = (u32, u32)> {
        let first = self.states[state as usize].first_edge;
        let edge = |at: u32| (at != NONE).then(|| self.edges[at as usize]);
        std::iter::successors(edge(first), move |e| edge(e.next))
            .map(|e| (e.token, e.to))
            .take(MAX_FANOUT)
    }

    /// The longest suffix of the text that occurred before.
    fn longest_repeated_suffix(&self) -> Option<Context> {
        let link = self.states[self.last as usize].link;
        (link != NONE && link != ROOT).then(|| (link, self.states[link as usize].length as usize))
    }

    /// The longest suffix of `tokens` (of its last [`MAX_POOL_MATCH`]) that occurs in the text.
    fn longest_match(&self, tokens: &[u32]) -> Option<Context> {
        let (mut at, mut matched) = (ROOT, 0);
        for token in &tokens[tokens.len().saturating_sub(MAX_POOL_MATCH)..] {
            let mut edge = self.edge(at, *token);
            while edge.is_none() && at != ROOT {
                at = self.states[at as usize].link;
                matched = self.states[at as usize].length as usize;
                edge = self.edge(at, *token);
            }
            if let Some(edge) = edge {
                at = self.edges[edge as usize].to;
                matched += 1;
            }
        }
        (matched > 0).then_some((at, matched))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::random::SplitMix;
    use crate::sampler::{SamplingParams, TokenCounts};

    fn propose(drafter: &mut Suffix, id: u64, tenant: u64, prompt: usize, tokens: &[u32]) -> Draft {
        let request = DraftRequest {
            id: SequenceId(id),
            tokens,
            num_prompt_tokens: prompt,
            tenant,
            seed: 0,
            params: &SamplingParams::default(),
            counts: &TokenCounts::default(),
            max_depth: 6,
            max_nodes: 8,
            may_compute: true,
        };
        let mut drafts = [Draft::default()];
        drafter.propose(&[request], &mut drafts);
        std::mem::take(&mut drafts[0])
    }

    fn chain(draft: &Draft) -> Vec<u32> {
        draft.nodes().iter().map(|n| n.token).collect()
    }

    /// Every occurrence of the last `n` tokens that something followed, counted by what followed.
    fn followers(text: &[u32], suffix: &[u32]) -> BTreeMap<u32, u32> {
        let mut counts = BTreeMap::new();
        for window in text.windows(suffix.len() + 1) {
            if window[..suffix.len()] == *suffix {
                *counts.entry(window[suffix.len()]).or_default() += 1;
            }
        }
        counts
    }

    #[test]
    fn the_automaton_knows_the_longest_repeated_suffix_and_what_followed_it() {
        for seed in 0..200 {
            let mut random = SplitMix::new(seed);
            let alphabet = 2 + random.below(6);
            let mut automaton = Automaton::default();
            let mut text = Vec::new();
            for _ in 0..120 {
                text.push(random.below(alphabet) as u32);
                automaton.push(text[text.len() - 1]);
                let longest = (1..text.len())
                    .rev()
                    .find(|n| {
                        let suffix = &text[text.len() - n..];
                        text[..text.len() - 1].windows(*n).any(|w| w == suffix)
                    })
                    .unwrap_or(0);
                let found = automaton.longest_repeated_suffix();
                assert_eq!(
                    found.map_or(0, |(_, n)| n),
                    longest,
                    "seed {seed}: {text:?}"
                );
                let Some((state, n)) = found else { continue };
                let counted: BTreeMap<u32, u32> = automaton
                    .continuations(state)
                    .map(|(token, to)| (token, automaton.states[to as usize].count))
                    .collect();
                let expected = followers(&text, &text[text.len() - n..]);
                assert_eq!(counted, expected, "seed {seed}: {text:?}");
            }
            assert!(automaton.states.len() <= 2 * text.len(), "seed {seed}");
            assert!(automaton.edges.len() <= 3 * text.len(), "seed {seed}");
        }
    }

    #[test]
    fn a_foreign_text_is_matched_at_its_longest_common_suffix() {
        for seed in 0..200 {
            let mut random = SplitMix::new(seed);
            let mut automaton = Automaton::default();
            let text: Vec<u32> = (0..60).map(|_| random.below(4) as u32).collect();
            text.iter().for_each(|token| automaton.push(*token));
            let other: Vec<u32> = (0..40).map(|_| random.below(5) as u32).collect();
            let longest = (1..=MAX_POOL_MATCH)
                .rev()
                .find(|n| text.windows(*n).any(|w| *w == other[other.len() - n..]))
                .unwrap_or(0);
            let found = automaton.longest_match(&other);
            assert_eq!(found.map_or(0, |(_, n)| n), longest, "seed {seed}");
        }
    }

    #[test]
    fn the_frequent_continuation_comes_first_and_the_other_beside_it() {
        let mut drafter = Suffix::default();
        let tokens = [1, 2, 3, 50, 1, 2, 3, 51, 1, 2, 4, 52, 1, 2];
        let draft = propose(&mut drafter, 0, 0, 1, &tokens);
        let roots: Vec<u32> = draft
            .nodes()
            .iter()
            .filter(|n| n.parent.is_none())
            .map(|n| n.token)
            .collect();
        assert_eq!(roots, [3, 4]);
        assert_eq!(draft.nodes()[0].token, 3);
        assert!(draft.confidence(0) > draft.confidence(1));
    }

    #[test]
    fn longer_agreement_gives_a_longer_and_more_confident_draft() {
        let text: Vec<u32> = (0..40).collect();
        let draft = |agreement: usize| {
            let mut tokens = text.clone();
            tokens.push(99);
            tokens.extend(&text[..agreement]);
            propose(&mut Suffix::default(), 0, 0, 1, &tokens)
        };
        assert!(draft(0).is_empty());
        assert!((1..6).contains(&draft(1).len()), "{:?}", draft(1));
        assert_eq!(draft(12).len(), 6, "as long as it was asked for");
        let confidence = [1, 3, 12].map(|n| draft(n).confidence(0));
        assert!(confidence.is_sorted() && confidence[0] < confidence[2]);
    }

    #[test]
    fn a_text_that_repeats_one_token_costs_no_square_and_goes_on() {
        let mut drafter = Suffix::default();
        let mut tokens = vec![5; 20_000];
        assert_eq!(chain(&propose(&mut drafter, 0, 0, 1, &tokens)), [5; 6]);
        tokens.extend([7, 8, 7, 8, 7, 8, 7]);
        assert_eq!(
            chain(&propose(&mut drafter, 0, 0, 1, &tokens)),
            [8, 7, 8, 7, 8, 7]
        );
    }

    #[test]
    fn finished_answers_help_their_own_tenant_only() {
        let answer = [10, 11, 12, 13, 14, 15, 16];
        let limits = PoolLimits {
            tenants: 2,
            tokens: 100,
        };
        let mut drafter = Suffix::new(Some(limits));
        let mut tokens = vec![1, 2];
        tokens.extend(&answer[..3]);
        propose(&mut drafter, 0, 7, 2, &tokens);
        tokens.extend(&answer[3..]);
        drafter.observe(SequenceId(0), &tokens, 0, 0);
        drafter.forget(SequenceId(0));
        let again = [3, 4, 10, 11, 12];
        assert_eq!(
            chain(&propose(&mut drafter, 1, 7, 2, &again)),
            [13, 14, 15, 16],
            "up to the end of the answer, never into the next one"
        );
        assert!(propose(&mut drafter, 2, 8, 2, &again).is_empty());
        assert!(
            propose(&mut drafter, 3, 7, 1, &[9, 1, 2]).is_empty(),
            "the prompt is not remembered"
        );
        assert!(propose(&mut Suffix::default(), 1, 7, 2, &again).is_empty());
    }

    #[test]
    fn the_pool_stays_within_its_limits_and_drops_the_oldest() {
        let limits = PoolLimits {
            tenants: 3,
            tokens: 200,
        };
        for seed in 0..50 {
            let mut random = SplitMix::new(seed);
            let mut drafter = Suffix::new(Some(limits));
            for id in 0..100 {
                let tenant = random.below(6) as u64;
                let length = 1 + random.below(150);
                let tokens: Vec<u32> = (0..length).map(|_| random.below(9) as u32).collect();
                propose(&mut drafter, id, tenant, random.below(length), &tokens);
                drafter.forget(SequenceId(id));
                let pool = drafter.pool.as_ref().expect("it was asked for");
                assert!(pool.tenants.len() <= limits.tenants, "seed {seed}");
                for earlier in pool.tenants.values() {
                    let tokens = earlier.young.tokens + earlier.old.tokens;
                    assert!(tokens <= limits.tokens, "seed {seed}: {tokens}");
                }
            }
            assert!(drafter.sequences.is_empty());
        }
    }
}
