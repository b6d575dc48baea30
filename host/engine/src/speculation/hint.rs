//! What somebody else would have said next: a text that came with the request.
//!
//! It exists for answers that are taken over from another model in the middle: the new model often
//! says the same for a while, and again after the sentence that it mends. So the hint is followed
//! from where the newest tokens agree with it, and left where they do not. It refuses to be trusted
//! more than any other draft: the target verifies every token.

use super::draft::{Draft, trust};

/// Tokens of a hint that are looked at; more than a few paragraphs have drifted apart anyway.
pub const MAX_HINT_TOKENS: usize = 1_024;
/// The drafter's number on what a hint says; drafters are numbered from 0.
pub const HINTED: u8 = u8::MAX - 1;
/// Newest tokens that must agree with a place of the hint; at its beginning fewer are there.
const MIN_AGREEMENT: usize = 2;
/// Agreement beyond this many tokens adds no confidence worth measuring.
const MAX_AGREEMENT: usize = 32;

/// Replaces the draft by what the hint says after the tokens that were generated, if it has such a
/// place; at most `length` tokens.
pub fn propose(hint: &[u32], generated: &[u32], length: usize, draft: &mut Draft) {
    let Some((at, agreement)) = place(hint, generated) else {
        return;
    };
    draft.clear();
    let mut parent = None;
    for (i, token) in hint[at..].iter().take(length).enumerate() {
        parent = draft.push(*token, parent, HINTED);
        let Some(node) = parent else {
            break;
        };
        draft.set_confidence(node, trust(1.0, 1.0, agreement + i));
    }
}

/// Where the hint goes on, and how many tokens before that agree. Of equal places the one that is
/// nearest to where the answer would be if it were the hint.
fn place(hint: &[u32], generated: &[u32]) -> Option<(usize, usize)> {
    let agreement = |at: usize| {
        let pairs = hint[..at].iter().rev().zip(generated.iter().rev());
        pairs
            .take(MAX_AGREEMENT)
            .take_while(|(a, b)| a == b)
            .count()
    };
    let places = (1..hint.len()).map(|at| (at, agreement(at)));
    places
        .filter(|(at, agreed)| {
            *agreed >= MIN_AGREEMENT || (*agreed == *at && generated.len() == *at)
        })
        .max_by_key(|(at, agreed)| (*agreed, std::cmp::Reverse(at.abs_diff(generated.len()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposed(hint: &[u32], generated: &[u32]) -> Vec<u32> {
        let mut draft = Draft::default();
        draft.push(99, None, 0);
        propose(hint, generated, 3, &mut draft);
        draft.nodes().iter().map(|n| n.token).collect()
    }

    #[test]
    fn a_hint_is_followed_from_where_the_answer_agrees_with_it() {
        let hint = [1, 2, 3, 4, 5, 6, 7];
        let kept = vec![99];
        assert_eq!(proposed(&hint, &[1]), [2, 3, 4], "its beginning");
        assert_eq!(proposed(&hint, &[1, 2, 3, 4, 5]), [6, 7]);
        assert_eq!(proposed(&hint, &[8]), kept, "another beginning");
        assert_eq!(proposed(&hint, &[8, 4]), kept, "one token is no agreement");
        assert_eq!(proposed(&hint, &[8, 9, 4, 5]), [6, 7], "found again");
        assert_eq!(proposed(&hint, &[1, 2, 3, 4, 5, 6, 7]), kept, "at its end");
        assert_eq!(proposed(&[], &[1]), kept);
        let twice = [1, 2, 5, 0, 1, 2, 6];
        assert_eq!(
            proposed(&twice, &[9, 9, 9, 9, 1, 2]),
            [6],
            "the nearer place"
        );
    }
}
