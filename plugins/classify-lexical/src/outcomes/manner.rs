//! From text to numbers, for the second head: how the choices differ, what kind of words are
//! used and what is asked; in step with `models/train/fit_outcomes.py`.

use std::iter;
use std::ops::Range;

use super::features::{Features, Text, log, set, trimmed};
use super::words::{ASKING, BEST, FOLLOWING, LOGIC, NEGATION, PLAIN};
use crate::prompt::{Kind, Token, numbers, value};

/// Features of [`Text::rivals`].
pub const RIVALS: usize = 20;
/// Features of [`Text::manner`].
pub const MANNERS: usize = 24;
/// Choices that are compared in pairs; bounds the time of a long list.
const RIVALS_MAX: usize = 10;
/// For features of numbers, where not every choice has one.
const FEW_NUMBERS: f64 = -1.0;
/// Beginnings of choices about all the others.
const SWEEPING: [&[u8]; 4] = [b"of the above", b"of these", b"all of", b"none of"];
/// Endings of words that one learns at school.
const LEARNED: [&[u8]; 12] = [
    b"tion", b"ism", b"ity", b"logy", b"ous", b"ive", b"ment", b"ence", b"ance", b"ical", b"ate",
    b"ary",
];
const BENT: [&[u8]; 3] = [b"ing", b"ly", b"ed"];

/// What is counted of words in some part of the text.
#[derive(Default)]
struct Words {
    count: usize,
    letters: usize,
    plain: usize,
    of: usize,
}

impl Words {
    fn share(&self, part: usize) -> f64 {
        part as f64 / self.count.max(1) as f64
    }
}

impl Text<'_> {
    /// What kind of words are used, and what is asked.
    pub fn manner(&self) -> [f64; MANNERS] {
        let mut features = Features::<MANNERS>::default();
        self.wording(&mut features);
        self.aim(&mut features);
        features.values
    }

    /// How the choices differ from each other and agree with the question.
    pub fn rivals(&self) -> [f64; RIVALS] {
        let mut features = Features::<RIVALS>::default();
        self.offers_differ(&mut features);
        self.likeness(&mut features);
        self.make_up(&mut features);
        features.values
    }

    fn offers_differ(&self, f: &mut Features<RIVALS>) {
        let k = self.choices.len().max(1) as f64;
        let bare: Vec<&[u8]> = self.choices.iter().map(|c| self.bare(c)).collect();
        let share = |wanted: fn(&[u8]) -> bool| {
            let found = bare.iter().filter(|c| wanted(c)).count();
            found as f64 / k
        };
        let words = self.offered().filter(|t| t.kind == Kind::Letter).count();
        let lengths: Vec<f64> = bare.iter().map(|c| log(c.len())).collect();
        f.push(spread(&lengths));
        f.push((words as f64 / k).ln_1p());
        f.flag(self.offered().any(|t| self.sweeps(t)));
        let pairing = |t: &Token| matches!(self.prompt.lower(t), b"both" | b"neither" | b"either");
        f.flag(self.firsts().any(pairing));
        f.push(share(|c| c.iter().filter(|b| **b == b',').count() == 1));
        f.push(share(|c| c.contains(&b';')));
    }

    /// How they begin, and what tokens they are made of.
    fn make_up(&self, f: &mut Features<RIVALS>) {
        let first = set(self.firsts()).len();
        f.flag(first == 1);
        f.push(first as f64 / self.choices.len().max(1) as f64);
        let (mut tokens, mut capital, mut digits, mut signs) = (0usize, 0, 0, 0);
        for token in self.offered() {
            tokens += 1;
            capital += usize::from(self.raw(token)[0].is_ascii_uppercase());
            digits += usize::from(token.kind == Kind::Digit);
            signs += usize::from(token.kind == Kind::Sign);
        }
        for count in [capital, digits, signs] {
            f.push(count as f64 / tokens.max(1) as f64);
        }
        let bare: Vec<&[u8]> = self.choices.iter().map(|c| self.bare(c)).collect();
        offered_numbers(f, &bare);
    }

    /// What the choices share with each other, and with the question.
    fn likeness(&self, f: &mut Features<RIVALS>) {
        let compared = self.choices.iter().take(RIVALS_MAX);
        let sets: Vec<Vec<u32>> = compared.map(|c| set(self.within(c).iter())).collect();
        let mut alike = Vec::with_capacity(RIVALS_MAX * RIVALS_MAX / 2);
        for (i, one) in sets.iter().enumerate() {
            for other in &sets[..i] {
                let both = common(one, other);
                let either = one.len() + other.len() - both;
                alike.push(both as f64 / either.max(1) as f64);
            }
        }
        let asked = self.content(&(0..self.question_end));
        let told = self.choices.iter().map(|c| {
            let content = self.content(c);
            common(&content, &asked) as f64 / content.len().max(1) as f64
        });
        let told: Vec<f64> = told.collect();
        f.push(alike.iter().sum::<f64>() / alike.len().max(1) as f64);
        for values in [&alike, &told] {
            f.push(values.iter().copied().reduce(f64::max).unwrap_or(0.0));
            f.push(values.iter().copied().reduce(f64::min).unwrap_or(0.0));
        }
        f.push(spread(&told));
    }

    /// What kind of words: learned, plain, names, years.
    fn wording(&self, f: &mut Features<MANNERS>) {
        let asked = self.counted(iter::once(0..self.question_end));
        let offered = self.counted(self.choices.iter().cloned());
        let (mut words, mut learned, mut bent, mut plural, mut short) = (0usize, 0, 0, 0, 0);
        let (mut longest, mut years, mut other) = (0, 0, 0);
        for token in &self.prompt.tokens {
            let lower = self.prompt.lower(token);
            let size = lower.len();
            if token.kind != Kind::Letter {
                other += usize::from(token.kind == Kind::Sign);
                let year = matches!(lower, [b'1', b'5'..=b'9', _, _] | [b'2', b'0', _, _]);
                years += usize::from(token.kind == Kind::Digit && year);
                continue;
            }
            let ends = |endings: &[&[u8]]| endings.iter().any(|e| lower.ends_with(e));
            words += 1;
            longest = size.max(longest);
            learned += usize::from(size > 5 && ends(&LEARNED));
            bent += usize::from(size > 4 && ends(&BENT));
            plural += usize::from(size > 3 && lower[size - 1] == b's');
            short += usize::from(size <= 3);
        }
        f.push(asked.share(asked.plain));
        f.push(offered.share(offered.plain));
        f.push(asked.share(asked.of));
        for count in [learned, bent, plural, short] {
            f.push(count as f64 / words.max(1) as f64);
        }
        f.push(asked.share(asked.letters));
        f.push(offered.share(offered.letters));
        f.push(longest as f64);
        self.names(f);
        f.push(log(years));
        let bytes = self.prompt.bytes;
        for wanted in [u8::is_ascii_digit, u8::is_ascii_uppercase] {
            let found = bytes.iter().filter(|b| wanted(b)).count();
            f.push(found as f64 / bytes.len().max(1) as f64);
        }
        f.push(other as f64 / self.prompt.tokens.len().max(1) as f64);
    }

    /// Words of the question with a capital that begin no sentence.
    fn names(&self, f: &mut Features<MANNERS>) {
        let (mut inner, mut names) = (0usize, 0);
        for pair in self.within(&(0..self.question_end)).windows(2) {
            let begins = matches!(self.raw(&pair[0]), b"." | b"?" | b"!" | b":" | b"\"");
            if pair[1].kind == Kind::Letter && !begins {
                let raw = self.raw(&pair[1]);
                inner += 1;
                names += usize::from(raw.len() > 1 && raw[0].is_ascii_uppercase());
            }
        }
        f.push(log(names));
        f.push(names as f64 / inner.max(1) as f64);
    }

    /// The last sentence of the question, which says what is asked, and whether it breaks off.
    fn aim(&self, f: &mut Features<MANNERS>) {
        let question = &self.prompt.bytes[..self.question_end];
        let end = question.len() - blank_end(question);
        let bare = &question[..end];
        let ends = |i: &usize| match bare[*i] {
            b'\n' => true,
            b'.' | b'?' | b'!' => bare[i + 1] == b' ',
            _ => false,
        };
        let start = (0..end.saturating_sub(1)).rfind(ends).map_or(0, |i| i + 1);
        let last = self.indices(&(start..self.question_end));
        let (tokens, known) = (&self.prompt.tokens[last.clone()], &self.known[last]);
        f.push(log(end - start));
        f.push((end - start) as f64 / end.max(1) as f64);
        f.flag(known.first().is_some_and(|lists| lists & ASKING != 0));
        for list in [FOLLOWING, BEST, NEGATION, LOGIC] {
            f.flag(known.iter().any(|lists| lists & list != 0));
        }
        let word = tokens.iter().rposition(|t| t.kind == Kind::Letter);
        f.flag(word.is_some_and(|at| known[at] & PLAIN != 0));
    }

    fn bare(&self, choice: &Range<usize>) -> &[u8] {
        trimmed(&self.prompt.bytes[choice.clone()])
    }

    /// The first token of every choice that has one.
    fn firsts(&self) -> impl Iterator<Item = &Token> {
        self.choices.iter().filter_map(|c| self.within(c).first())
    }

    /// Tokens of all choices.
    pub(super) fn offered(&self) -> impl Iterator<Item = &Token> {
        self.choices.iter().flat_map(|c| self.within(c))
    }

    /// Whether words about all choices begin here.
    fn sweeps(&self, token: &Token) -> bool {
        let rest = &self.prompt.lowered[token.start as usize..];
        matches!(rest[0], b'o' | b'a' | b'n') && SWEEPING.iter().any(|s| rest.starts_with(s))
    }

    /// Hashes of the words that say something, sorted, each once.
    fn content(&self, range: &Range<usize>) -> Vec<u32> {
        let tokens = self.indices(range);
        let known = &self.known[tokens.clone()];
        let tokens = self.prompt.tokens[tokens].iter().zip(known);
        let telling = tokens.filter(|(t, lists)| t.kind == Kind::Letter && **lists & PLAIN == 0);
        set(telling.map(|(t, _)| t))
    }

    fn counted(&self, ranges: impl Iterator<Item = Range<usize>>) -> Words {
        let mut words = Words::default();
        for at in ranges.flat_map(|range| self.indices(&range)) {
            let token = &self.prompt.tokens[at];
            if token.kind == Kind::Letter {
                words.count += 1;
                words.letters += (token.end - token.start) as usize;
                words.plain += usize::from(self.known[at] & PLAIN != 0);
                words.of += usize::from(self.prompt.lower(token) == b"of");
            }
        }
        words
    }
}

/// How many choices have a number, how far these lie apart, and whether they are in order.
fn offered_numbers(f: &mut Features<RIVALS>, bare: &[&[u8]]) {
    let values = bare.iter().filter_map(|c| numbers(c).next());
    let values: Vec<f64> = values.map(|n| value(n).min(1e9)).collect();
    f.push(values.len() as f64 / bare.len().max(1) as f64);
    if values.is_empty() || values.len() < bare.len() {
        f.push(FEW_NUMBERS);
        f.push(FEW_NUMBERS);
        return;
    }
    let largest = values.iter().copied().fold(0.0, f64::max);
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    f.push(largest.ln_1p() - least.ln_1p());
    f.flag(values.is_sorted() || values.is_sorted_by(|a, b| a >= b));
}

/// Standard deviation.
fn spread(values: &[f64]) -> f64 {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares = values.iter().map(|v| (v - mean) * (v - mean));
    (squares.sum::<f64>() / count).sqrt()
}

/// How many hashes two sorted sets have in common.
fn common(one: &[u32], other: &[u32]) -> usize {
    let found = one.iter().filter(|h| other.binary_search(h).is_ok());
    found.count()
}

/// Blanks at the end.
fn blank_end(bytes: &[u8]) -> usize {
    let blank = |b: &&u8| crate::prompt::kind(**b) == Kind::Blank;
    bytes.iter().rev().take_while(blank).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Prompt;

    fn rivals(text: &str) -> [f64; RIVALS] {
        Text::of(&Prompt::read(text)).rivals()
    }

    #[test]
    fn numbers_in_order_and_words_about_all_choices_are_seen() {
        let ordered = rivals("How many?\nA. 9\nB. 5 kg\nC. 1\nAnswer:");
        assert_eq!(ordered[17], 1.0, "each has a number");
        assert!(
            (ordered[18] - 5f64.ln()).abs() < 1e-9,
            "ten to two, plus one"
        );
        assert_eq!(ordered[19], 1.0, "falling is an order too");
        assert_eq!(rivals("How many?\nA. 9\nB. 1\nC. 5\n")[19], 0.0);
        assert_eq!(rivals("How many?\nA. 9\nB. one\nC. 5\n")[19], FEW_NUMBERS);
        assert_eq!(rivals("Who?\nA. he\nB. she\nC. None of them\n")[2], 1.0);
        assert_eq!(rivals("Who?\nA. he\nB. she\nC. none\n")[2], 0.0);
    }

    #[test]
    fn choices_are_compared_with_each_other_and_with_the_question() {
        let same = rivals("Of cells?\nA. red cells\nB. red cells\nC. red cells\n");
        assert_eq!(same[6..9], [1.0; 3], "every pair is alike");
        assert_eq!(
            same[9..12],
            [0.5, 0.5, 0.0],
            "one word of two is asked about"
        );
        let apart = rivals("Of cells?\nA. red\nB. blue\nC. cells\n");
        assert_eq!(apart[6..9], [0.0; 3]);
        assert_eq!(apart[9..11], [1.0, 0.0]);
    }

    #[test]
    fn the_last_sentence_is_what_is_asked() {
        let aims = |text: &str| -> Vec<f64> {
            let manner = Text::of(&Prompt::read(text)).manner();
            manner[MANNERS - 8..].to_vec()
        };
        let asked = aims("He is not well. What is best? ");
        assert_eq!(asked[0], log(" What is best?".len()));
        assert_eq!(asked[2..], [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
        let broken = aims("What is it? The following is not the");
        assert_eq!(broken[2..], [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]);
    }
}
