//! SentencePiece's byte-pair merges, as GGUF files carry them: pieces with scores, no merge list.
//!
//! It exists because the library wants a list of merges in order, and such a list cannot say what
//! SentencePiece does with equal scores: the leftmost pair goes first. It refuses nothing: a
//! character without a piece is spelled in bytes, and a byte without a token is the unknown token.
//!
//! Source of the algorithm: Kudo and Richardson 2018, "SentencePiece"; Sennrich et al. 2016.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::SPACE;

pub(super) struct SentencePiece {
    pieces: HashMap<String, (u32, f32)>,
    byte_tokens: Vec<Option<u32>>,
    unknown: Option<u32>,
    space_prefix: bool,
}

/// A stretch of the text and its neighbours; one that was merged into its left neighbour is empty.
struct Symbol {
    start: usize,
    end: usize,
    left: Option<usize>,
    right: Option<usize>,
}

/// Two neighbours whose union is a piece. Stale once either has changed: then the ends differ.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    end: usize,
}

impl Ord for Pair {
    /// The greatest score first, then the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.total_cmp(&other.score);
        by_score.then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl SentencePiece {
    /// `pieces`: text, number and score of what merging may produce.
    pub fn new(
        pieces: impl Iterator<Item = (String, u32, f32)>,
        byte_tokens: Vec<Option<u32>>,
        unknown: Option<u32>,
        space_prefix: bool,
    ) -> Self {
        Self {
            pieces: pieces
                .map(|(text, id, score)| (text, (id, score)))
                .collect(),
            byte_tokens,
            unknown,
            space_prefix,
        }
    }

    pub fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let mut spaced = text.replace(' ', "\u{2581}");
        if self.space_prefix {
            spaced.insert(0, SPACE);
        }
        let mut symbols: Vec<Symbol> = spaced
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol {
                start,
                end: start + c.len_utf8(),
                left: i.checked_sub(1),
                right: Some(i + 1),
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.right = None;
        }
        let mut pairs = BinaryHeap::new();
        for left in 1..symbols.len() {
            self.consider(&spaced, &symbols, Some(left - 1), Some(left), &mut pairs);
        }
        while let Some(pair) = pairs.pop() {
            let (left, right) = (&symbols[pair.left], &symbols[pair.right]);
            let fresh = left.start < left.end
                && right.start < right.end
                && left.right == Some(pair.right)
                && right.end == pair.end;
            if fresh {
                merge(&mut symbols, &pair);
                let (before, after) = (symbols[pair.left].left, symbols[pair.left].right);
                self.consider(&spaced, &symbols, before, Some(pair.left), &mut pairs);
                self.consider(&spaced, &symbols, Some(pair.left), after, &mut pairs);
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.start < symbol.end) {
            let text = &spaced[symbol.start..symbol.end];
            match self.pieces.get(text) {
                Some((id, _)) => ids.push(*id),
                None => ids.extend(text.bytes().filter_map(|b| self.byte(b))),
            }
        }
    }

    fn byte(&self, byte: u8) -> Option<u32> {
        self.byte_tokens[usize::from(byte)].or(self.unknown)
    }

    fn consider(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: Option<usize>,
        right: Option<usize>,
        pairs: &mut BinaryHeap<Pair>,
    ) {
        let (Some(left), Some(right)) = (left, right) else {
            return;
        };
        let end = symbols[right].end;
        if let Some((_, score)) = self.pieces.get(&text[symbols[left].start..end]) {
            pairs.push(Pair {
                score: *score,
                left,
                right,
                end,
            });
        }
    }
}

fn merge(symbols: &mut [Symbol], pair: &Pair) {
    let (end, after) = (symbols[pair.right].end, symbols[pair.right].right);
    symbols[pair.left].end = end;
    symbols[pair.left].right = after;
    symbols[pair.right].start = end;
    if let Some(after) = after {
        symbols[after].left = Some(pair.left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix;

    /// The definition, without a heap: merge the best pair, the leftmost of equals, until none is left.
    fn by_definition(pieces: &HashMap<String, (u32, f32)>, text: &str) -> Vec<String> {
        let mut symbols: Vec<String> = text.chars().map(String::from).collect();
        loop {
            let mut best: Option<(usize, f32)> = None;
            for (i, pair) in symbols.windows(2).enumerate() {
                if let Some((_, score)) = pieces.get(&pair.concat())
                    && best.is_none_or(|(_, most)| *score > most)
                {
                    best = Some((i, *score));
                }
            }
            let Some((i, _)) = best else { return symbols };
            let right = symbols.remove(i + 1);
            symbols[i].push_str(&right);
        }
    }

    #[test]
    fn merges_are_those_of_the_definition() {
        let mut random = SplitMix::new(7);
        for seed in 0..200 {
            let letters = ["a", "b", "c", "\u{2581}"];
            let mut pieces: HashMap<String, (u32, f32)> = HashMap::new();
            let count = 4 + random.below(40);
            for id in 0..count as u32 {
                let length = 1 + random.below(4);
                let text: String = (0..length).map(|_| letters[random.below(4)]).collect();
                // Few scores, so that many are equal.
                pieces.insert(text, (id, -(random.below(5) as f32)));
            }
            let own = SentencePiece {
                pieces: pieces.clone(),
                byte_tokens: vec![None; 256],
                unknown: Some(9_999),
                space_prefix: false,
            };
            let length = 1 + random.below(30);
            let text: String = (0..length).map(|_| letters[random.below(4)]).collect();
            let mut found = Vec::new();
            own.encode(&text, &mut found);
            let expected: Vec<u32> = by_definition(&pieces, &text)
                .iter()
                .flat_map(|piece| match pieces.get(piece) {
                    Some((id, _)) => vec![*id],
                    None => vec![9_999; piece.len()],
                })
                .collect();
            assert_eq!(found, expected, "seed {seed}: {text:?}");
        }
    }

    #[test]
    fn what_has_no_piece_is_spelled_in_bytes() {
        let mut byte_tokens = vec![None; 256];
        (0..256u32).for_each(|b| byte_tokens[b as usize] = Some(b + 3));
        let pieces = [
            ("\u{2581}".to_owned(), 300, -1.0),
            ("a".to_owned(), 301, -2.0),
        ];
        let own = SentencePiece::new(pieces.into_iter(), byte_tokens, Some(0), true);
        let mut ids = Vec::new();
        own.encode("a é", &mut ids);
        assert_eq!(ids, [300, 301, 300, 0xC3 + 3, 0xA9 + 3]);
    }
}
