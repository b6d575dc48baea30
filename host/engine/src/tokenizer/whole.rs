//! Tokens that are recognised in a text as a whole, before it is cut.
//!
//! A vocabulary may have thousands of them and a message eight million characters, so they are
//! looked for together (Aho and Corasick, "Efficient string matching"), in time that grows with
//! the text alone.

use std::collections::HashSet;
use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

/// Bytes that the texts of all of them may have. Gemma 3, which has the most, has about a
/// hundred thousand; the automaton takes some fifty times as much.
const MAX_BYTES: usize = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WholeToken {
    pub id: u32,
    pub control: bool,
}

/// A token and the bytes where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub at: Range<usize>,
    pub token: WholeToken,
}

pub(super) struct WholeTokens {
    automaton: AhoCorasick,
    /// By the automaton's numbers.
    tokens: Vec<WholeToken>,
}

impl WholeTokens {
    /// No text may be empty. Of tokens with the same text the first counts.
    pub fn new<'a>(listed: impl Iterator<Item = &'a (String, WholeToken)>) -> Result<Self, String> {
        let mut seen = HashSet::new();
        let (texts, tokens): (Vec<&str>, Vec<WholeToken>) = listed
            .map(|(text, token)| (text.as_str(), *token))
            .filter(|(text, _)| seen.insert(*text))
            .unzip();
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        if bytes > MAX_BYTES {
            return Err(format!(
                "{} control and added tokens have {bytes} bytes of text, at most {MAX_BYTES} are read",
                texts.len()
            ));
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts)
            .map_err(|e| e.to_string())?;
        Ok(Self { automaton, tokens })
    }

    /// The one that begins first; of several that begin there, the longest.
    pub fn first(&self, text: &str) -> Option<Found> {
        let found = self.automaton.find(text)?;
        Some(Found {
            at: found.range(),
            token: self.tokens[found.pattern().as_usize()],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix;

    /// Every place, every token.
    fn naive(listed: &[(String, WholeToken)], text: &str) -> Option<Found> {
        text.char_indices().find_map(|(start, _)| {
            let begins = |(token, _): &&(String, WholeToken)| text[start..].starts_with(token);
            // The first of the longest: `max_by_key` would take the last.
            let longest = listed.iter().filter(begins).rev();
            let (token, whole) = longest.max_by_key(|(token, _)| token.len())?;
            Some(Found {
                at: start..start + token.len(),
                token: *whole,
            })
        })
    }

    fn random_text(random: &mut SplitMix, longest: usize) -> String {
        let letters = ['<', '|', 'a', 'b', 'é', '\u{2581}'];
        (0..=random.below(longest))
            .map(|_| letters[random.below(letters.len())])
            .collect()
    }

    #[test]
    fn the_automaton_finds_what_looking_for_each_token_at_each_place_finds() {
        let mut random = SplitMix::new(8);
        let mut met = [0, 0];
        for round in 0..500 {
            // Few and many: the library has another automaton for each.
            let count = if round % 10 == 0 {
                300
            } else {
                random.below(12)
            };
            let listed: Vec<(String, WholeToken)> = (0..count as u32)
                .map(|id| {
                    let control = random.below(2) == 0;
                    (random_text(&mut random, 5), WholeToken { id, control })
                })
                .collect();
            let whole = WholeTokens::new(listed.iter()).expect("small");
            for _ in 0..20 {
                let text = random_text(&mut random, 30);
                let mut rest = text.as_str();
                loop {
                    let found = whole.first(rest);
                    assert_eq!(found, naive(&listed, rest), "{rest:?} of {text:?}");
                    met[usize::from(found.is_some())] += 1;
                    let Some(found) = found else { break };
                    rest = &rest[found.at.end..];
                }
            }
        }
        assert!(met.iter().all(|n| *n > 1_000), "{met:?}");
    }

    #[test]
    fn more_text_of_tokens_than_any_vocabulary_has_is_refused() {
        let token = |id: u32| {
            let control = true;
            (
                "x".repeat(1 << 20) + &id.to_string(),
                WholeToken { id, control },
            )
        };
        let listed: Vec<_> = (0..4).map(token).collect();
        let problem = WholeTokens::new(listed.iter()).err().expect("too much");
        assert!(problem.contains("4 control and added tokens"), "{problem}");
    }
}
