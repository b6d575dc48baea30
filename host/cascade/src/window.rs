//! What a client may see already of an answer that may still be left, and when the validator is
//! asked about it.
//!
//! A plain state machine over the tokens of one step. It refuses to let the newest tokens out, and
//! to let the seam where another tier may go on fall into what could become a stop string: a stop
//! string of which the half was sent could neither be taken back nor be found by the next tier.

use crate::surprisal::Cusum;
use crate::tier::Token;

/// Tokens between two questions at the ends of sentences, and wherever there are none. Both grow
/// with the answer, so that a long one is asked about a logarithmic number of times.
const SENTENCE_TOKENS_MIN: usize = 8;
const UNASKED_TOKENS_MAX: usize = 32;
const UNASKED_SHARE: usize = 8;

/// Watches one answer.
pub(crate) struct Window {
    hold_back: usize,
    stops: Vec<String>,
    cusum: Option<Cusum>,
    /// Tokens that the validator was shown last.
    asked_at: usize,
}

impl Window {
    pub(crate) fn new(hold_back: u32, stops: &[String], cusum: Option<Cusum>) -> Self {
        Self {
            hold_back: hold_back as usize,
            stops: stops.to_vec(),
            cusum,
            asked_at: 0,
        }
    }

    /// One more token: why the answer should be left, if its surprisal says so.
    pub(crate) fn take(&mut self, token: &Token) -> Option<String> {
        self.cusum.as_mut()?.take(token.logprob?)
    }

    /// How many of `tokens` the client may have. It has `sent` of them, and `seen` ends with them.
    pub(crate) fn sendable(&self, seen: &str, tokens: &[Token], sent: usize) -> usize {
        let most = tokens.len().saturating_sub(self.hold_back).max(sent);
        if self.stops.is_empty() {
            return most;
        }
        let clean = |count: &usize| {
            let new = tokens[sent..*count].iter().map(|t| t.text.as_str());
            let text: String = std::iter::once(tail(seen, &self.stops))
                .chain(new)
                .collect();
            !self.stops.iter().any(|stop| begins_at_end(&text, stop))
        };
        (sent + 1..=most).rev().find(clean).unwrap_or(sent)
    }

    /// Whether the validator should be asked about these tokens: at the ends of sentences, every so
    /// many tokens, and at the last moment before the first of them leaves.
    pub(crate) fn is_due(&self, tokens: &[Token]) -> bool {
        let unasked = tokens.len() - self.asked_at;
        let share = tokens.len() / UNASKED_SHARE;
        let leaves = self.asked_at == 0 && tokens.len() >= self.hold_back;
        let ends = tokens.last().is_some_and(|t| ends_sentence(&t.text));
        leaves
            || unasked >= UNASKED_TOKENS_MAX.max(share)
            || (ends && unasked >= SENTENCE_TOKENS_MIN.max(share / 2))
    }

    /// The validator is being asked about so many tokens.
    pub(crate) fn asked(&mut self, tokens: usize) {
        self.asked_at = tokens;
    }
}

fn ends_sentence(text: &str) -> bool {
    text.contains('\n') || text.trim_end().ends_with(['.', '!', '?', '。', '！', '？'])
}

/// The end of `text` that a stop string could begin in.
fn tail<'a>(text: &'a str, stops: &[String]) -> &'a str {
    let longest = stops.iter().map(String::len).max().unwrap_or(0);
    let mut from = text.len().saturating_sub(longest);
    while !text.is_char_boundary(from) {
        from -= 1;
    }
    &text[from..]
}

/// Whether `text` ends with a beginning of `stop`.
fn begins_at_end(text: &str, stop: &str) -> bool {
    let mut beginnings = stop.char_indices().skip(1).map(|(end, _)| &stop[..end]);
    beginnings.any(|b| text.ends_with(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(words: &[&str]) -> Vec<Token> {
        let token = |text: &&str| Token {
            text: (*text).into(),
            ..Token::default()
        };
        words.iter().map(token).collect()
    }

    fn window(hold_back: u32, stops: &[&str]) -> Window {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        Window::new(hold_back, &stops, None)
    }

    #[test]
    fn the_newest_tokens_stay() {
        let three = tokens(&["a", "b", "c"]);
        for (hold_back, expected) in [(0, 3), (1, 2), (2, 1), (3, 0), (9, 0)] {
            assert_eq!(window(hold_back, &[]).sendable("", &three, 0), expected);
        }
        assert_eq!(window(9, &[]).sendable("a", &three, 1), 1, "never back");
    }

    #[test]
    fn a_seam_never_falls_into_what_could_become_a_stop_string() {
        let w = window(1, &["END", "\n\n"]);
        assert_eq!(w.sendable("", &tokens(&["a", "E", "N", "x"]), 0), 1);
        assert_eq!(w.sendable("", &tokens(&["a", "E", "x", "y"]), 0), 3);
        assert_eq!(w.sendable("a", &tokens(&["a", "\n", "b"]), 1), 1);
        assert_eq!(w.sendable("E", &tokens(&["E", "N", "b"]), 1), 1);
        // One character: there is no half of it.
        assert_eq!(window(1, &["é"]).sendable("", &tokens(&["e", "a"]), 0), 1);
    }

    #[test]
    fn the_validator_is_asked_before_text_leaves_at_sentences_and_ever_more_rarely() {
        let mut w = window(4, &[]);
        let word = tokens(&["word "; 5_000]);
        let due: Vec<usize> = (1..=word.len())
            .filter(|n| {
                let due = w.is_due(&word[..*n]);
                if due {
                    w.asked(*n);
                }
                due
            })
            .collect();
        assert_eq!(due[..3], [4, 36, 68]);
        assert!(due.len() < 60, "{} questions", due.len());
        let mut text = tokens(&["word "; 12]);
        text.extend(tokens(&["end. "]));
        w.asked(4);
        assert!(w.is_due(&text));
        w.asked(6);
        assert!(!w.is_due(&text), "too soon");
    }
}
