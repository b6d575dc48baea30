//! From text to numbers, for the second head; in step with `models/train/fit_outcomes.py`.

use std::ops::Range;

use super::words::{LISTS, WORDS};
use crate::prompt::{Fnv, Kind, Prompt, Token, kind, numbers, sentences, value};

/// Features of [`Text::shape`].
pub const SHAPES: usize = 53 + LISTS;
/// Choices that make a question one of multiple choice.
const CHOICES_MIN: usize = 3;

/// Signs that are counted together.
const SIGNS: [&[u8]; 13] = [
    b"=+*/^<>|_\\{}[]",
    b"=",
    b"(",
    b"\"",
    b",",
    b"-",
    b":;",
    b"'",
    b"$",
    b"%",
    b"/",
    b"^",
    b"<>",
];

/// Words that a question may begin with, each set one feature.
const FIRST: [&[&[u8]]; 5] = [
    &[b"which"],
    &[b"what"],
    &[b"the", b"a", b"an"],
    &[b"in", b"on", b"at", b"for", b"during"],
    &[b"if", b"let", b"suppose", b"find", b"consider"],
];

/// A prompt as the second head reads it.
pub struct Text<'a> {
    pub(super) prompt: &'a Prompt<'a>,
    /// Where the question ends; what follows are choices.
    pub(super) question_end: usize,
    pub(super) choices: Vec<Range<usize>>,
    /// Of every token the lists that it is in, as bits.
    pub(super) known: Vec<u64>,
}

impl<'a> Text<'a> {
    /// Looks for choices.
    pub fn of(prompt: &'a Prompt<'a>) -> Self {
        let (question_end, choices) = parts(prompt.bytes);
        Self {
            prompt,
            question_end,
            choices,
            known: prompt.tokens.iter().map(known).collect(),
        }
    }

    pub(super) fn raw(&self, token: &Token) -> &[u8] {
        &self.prompt.bytes[token.start as usize..token.end as usize]
    }

    /// Whether it offers at least three lettered choices.
    pub fn is_choice(&self) -> bool {
        !self.choices.is_empty()
    }

    /// Every token's hash with its weight; the whole has unit length. Of a number only its
    /// digits count, up to four.
    pub fn bag(&self) -> Vec<(u32, f64)> {
        let hashes = rough(self.prompt.tokens.iter());
        let mut bag = Vec::with_capacity(hashes.len());
        let mut length = 0.0;
        for same in hashes.chunk_by(|a, b| a == b) {
            let weight = 1.0 + (same.len() as f64).ln();
            length += weight * weight;
            bag.push((same[0], weight));
        }
        let scale = if length > 0.0 {
            1.0 / length.sqrt()
        } else {
            1.0
        };
        for (_, weight) in &mut bag {
            *weight *= scale;
        }
        bag
    }

    /// Hashes of the question's tokens and of those of the choices, each once; numbers as in
    /// [`Text::bag`].
    pub fn vocabularies(&self) -> [Vec<u32>; 2] {
        let asked = self.within(&(0..self.question_end)).iter();
        [rough(asked), rough(self.offered())].map(|mut hashes| {
            hashes.dedup();
            hashes
        })
    }

    /// Lengths, signs, numbers and words by which requests of a kind can be told.
    pub fn shape(&self) -> [f64; SHAPES] {
        let mut features = Features::<SHAPES>::default();
        let question = &self.prompt.bytes[..self.question_end];
        let asked = self.within(&(0..self.question_end));
        let words = self.prompt.tokens.iter().filter(|t| t.kind == Kind::Letter);
        let count = words.count().max(1) as f64;
        self.lengths(&mut features, question);
        self.words(&mut features, asked, count);
        self.magnitudes(&mut features, question);
        self.offers(&mut features, asked);
        self.signs(&mut features, question, asked);
        self.lists(&mut features, asked, count);
        features.values
    }

    /// Tokens that begin in a range of bytes.
    pub(super) fn within(&self, range: &Range<usize>) -> &[Token] {
        &self.prompt.tokens[self.indices(range)]
    }

    /// Which tokens begin in a range of bytes.
    pub(super) fn indices(&self, range: &Range<usize>) -> Range<usize> {
        let before = |at: usize| {
            self.prompt
                .tokens
                .partition_point(|t| (t.start as usize) < at)
        };
        before(range.start)..before(range.end)
    }

    fn lengths(&self, f: &mut Features<SHAPES>, question: &[u8]) {
        let lengths = || {
            let bare = self
                .choices
                .iter()
                .map(|c| trimmed(&self.prompt.bytes[c.clone()]));
            bare.map(<[u8]>::len)
        };
        let (longest, shortest) = (
            log(lengths().max().unwrap_or(0)),
            log(lengths().min().unwrap_or(0)),
        );
        f.push(log(self.prompt.bytes.len()));
        f.push(log(question.len()));
        f.push(log(lengths().sum()));
        f.push(longest);
        f.push(shortest);
        f.push(longest - shortest);
        f.push(question.len() as f64 / self.prompt.bytes.len().max(1) as f64);
    }

    /// How long words are, and how many are names or abbreviations.
    fn words(&self, f: &mut Features<SHAPES>, asked: &[Token], count: f64) {
        let (mut letters, mut long, mut longer, mut abbreviations) = (0, 0, 0, 0);
        for token in self.prompt.tokens.iter().filter(|t| t.kind == Kind::Letter) {
            let raw = self.raw(token);
            letters += raw.len();
            long += usize::from(raw.len() >= 9);
            longer += usize::from(raw.len() >= 12);
            let upper =
                raw.iter().any(u8::is_ascii_uppercase) && !raw.iter().any(u8::is_ascii_lowercase);
            abbreviations += usize::from(raw.len() >= 2 && upper);
        }
        let (mut asked_words, mut names) = (0usize, 0usize);
        for token in asked.iter().filter(|t| t.kind == Kind::Letter) {
            asked_words += 1;
            names += usize::from(self.raw(token)[0].is_ascii_uppercase());
        }
        f.push(letters as f64 / count);
        f.push(long as f64 / count);
        f.push(longer as f64 / count);
        f.push(names as f64 / asked_words.max(1) as f64);
        f.push(abbreviations as f64 / count);
    }

    fn magnitudes(&self, f: &mut Features<SHAPES>, question: &[u8]) {
        let (mut count, mut largest, mut least) = (0, 0.0f64, f64::INFINITY);
        for number in numbers(question) {
            let value = value(number);
            count += 1;
            largest = largest.max(value);
            least = least.min(value);
        }
        f.push(log(self.prompt.numbers().count()));
        f.push(log(count));
        f.push(largest.min(1e9).ln_1p());
        f.flag(self.prompt.numbers().any(|n| n.contains(&b'.')));
        f.push(if count > 0 {
            least.min(1e9).ln_1p()
        } else {
            0.0
        });
    }

    /// What the choices are like, and what they share.
    fn offers(&self, f: &mut Features<SHAPES>, asked: &[Token]) {
        let (mut numeric, mut single, mut capital, mut sentence) = (0, 0, 0, 0);
        let mut sets: Vec<Vec<u32>> = Vec::with_capacity(self.choices.len());
        for choice in &self.choices {
            let tokens = self.within(choice);
            let of = |kind: Kind| tokens.iter().filter(move |t| t.kind == kind).count();
            let (words, digits) = (of(Kind::Letter), of(Kind::Digit));
            numeric += usize::from(digits > 0 && words <= 1);
            single += usize::from(digits == 0 && words == 1);
            let bare = trimmed(&self.prompt.bytes[choice.clone()]);
            capital += usize::from(bare.first().is_some_and(u8::is_ascii_uppercase));
            sentence += usize::from(bare.last() == Some(&b'.'));
            sets.push(set(tokens.iter()));
        }
        let k = self.choices.len().max(1) as f64;
        for count in [numeric, single, capital, sentence] {
            f.push(count as f64 / k);
        }
        let all: usize = sets.iter().map(Vec::len).sum();
        let mut union = sets.concat();
        union.sort_unstable();
        // A token that every set has occurs as often as there are sets.
        let common = union.chunk_by(|a, b| a == b);
        let common = common.filter(|same| same.len() == sets.len()).count();
        union.dedup();
        let question = set(asked.iter());
        let repeated = union.iter().filter(|h| question.binary_search(h).is_ok());
        f.push(log(union.len()));
        f.push(common as f64 * k / all.max(1) as f64);
        f.push(repeated.count() as f64 / union.len().max(1) as f64);
        let distinct = set(self.prompt.tokens.iter()).len();
        f.push(distinct as f64 / self.prompt.tokens.len().max(1) as f64);
    }

    fn signs(&self, f: &mut Features<SHAPES>, question: &[u8], asked: &[Token]) {
        let mut seen = [0usize; 256];
        for byte in self.prompt.bytes {
            seen[usize::from(*byte)] += 1;
        }
        for signs in SIGNS {
            f.push(log(signs.iter().map(|s| seen[usize::from(*s)]).sum()));
        }
        let last = trimmed(question).last();
        f.flag(self.prompt.bytes.windows(2).any(|pair| pair == b"__"));
        f.flag(last == Some(&b'?'));
        f.flag(last == Some(&b'.'));
        f.flag(last == Some(&b':'));
        let ends = sentences(question);
        let lines = trimmed(question).iter().filter(|b| **b == b'\n').count();
        let words = || asked.iter().filter(|t| t.kind == Kind::Letter);
        f.push(log(ends));
        f.push(log(lines));
        f.push((words().count() as f64 / ends.max(1) as f64).ln_1p());
        let variables =
            words().filter(|t| !matches!(self.prompt.lower(t), b"a" | b"i" | [_, _, ..]));
        f.push(log(variables.count()));
        f.flag(seen[128..].iter().any(|count| *count > 0));
        let shouted: [&[u8]; 3] = [b"NOT", b"EXCEPT", b"LEAST"];
        f.flag(asked.iter().any(|t| shouted.contains(&self.raw(t))));
    }

    fn lists(&self, f: &mut Features<SHAPES>, asked: &[Token], count: f64) {
        let mut counts = [0u32; LISTS];
        for mut lists in self.known.iter().copied() {
            while lists != 0 {
                counts[lists.trailing_zeros() as usize] += 1;
                lists &= lists - 1;
            }
        }
        for list in counts {
            f.push(f64::from(list) / count.sqrt());
        }
        let first = asked.first().map_or(&b""[..], |t| self.prompt.lower(t));
        for words in FIRST {
            f.flag(words.contains(&first));
        }
    }
}

/// Features in the order in which the fit has them.
pub(super) struct Features<const N: usize> {
    pub(super) values: [f64; N],
    count: usize,
}

impl<const N: usize> Default for Features<N> {
    fn default() -> Self {
        Self {
            values: [0.0; N],
            count: 0,
        }
    }
}

impl<const N: usize> Features<N> {
    pub(super) fn push(&mut self, value: f64) {
        self.values[self.count] = value;
        self.count += 1;
    }

    pub(super) fn flag(&mut self, flag: bool) {
        self.push(f64::from(u8::from(flag)));
    }
}

/// Hashes of tokens, sorted. Of a number only its digits count, up to four.
fn rough<'t>(tokens: impl Iterator<Item = &'t Token>) -> Vec<u32> {
    const ZEROS: &[u8] = b"0000";
    let zeros: [u32; 4] = std::array::from_fn(|i| Fnv::of_token(&ZEROS[..=i]));
    let hash = |t: &Token| match t.kind {
        Kind::Digit => zeros[((t.end - t.start) as usize).min(4) - 1],
        _ => t.hash,
    };
    let mut hashes: Vec<u32> = tokens.map(hash).collect();
    hashes.sort_unstable();
    hashes
}

/// The lists that a word is in, as bits.
fn known(token: &Token) -> u64 {
    if token.kind != Kind::Letter {
        return 0;
    }
    let found = WORDS.binary_search_by_key(&token.hash, |word| word.0);
    found.map_or(0, |at| WORDS[at].1)
}

pub(super) fn log(count: usize) -> f64 {
    (count as f64).ln_1p()
}

/// Hashes of tokens, sorted, each once.
pub(super) fn set<'t>(tokens: impl Iterator<Item = &'t Token>) -> Vec<u32> {
    let mut set: Vec<u32> = tokens.map(|t| t.hash).collect();
    set.sort_unstable();
    set.dedup();
    set
}

/// Where the question ends, and the bytes of every choice.
fn parts(bytes: &[u8]) -> (usize, Vec<Range<usize>>) {
    let mut choices: Vec<Range<usize>> = Vec::new();
    let mut question_end = bytes.len();
    let mut open = false;
    let mut at = 0;
    while at < bytes.len() {
        let line = &bytes[at..];
        if matches!(line, [b'A'..=b'J', b'.' | b')', b' ', ..]) {
            if open && let Some(last) = choices.last_mut() {
                last.end = at;
            }
            if choices.is_empty() {
                question_end = at;
            }
            // What follows the letter may itself be the line of the answer.
            open = !line[3..].starts_with(b"Answer:");
            choices.push(at + 3..if open { bytes.len() } else { at + 3 });
        } else if open && line.starts_with(b"Answer:") {
            if let Some(last) = choices.last_mut() {
                last.end = at;
            }
            open = false;
        }
        at += line
            .iter()
            .position(|b| *b == b'\n')
            .map_or(line.len(), |n| n + 1);
    }
    if choices.len() < CHOICES_MIN {
        return (bytes.len(), Vec::new());
    }
    (question_end, choices)
}

/// Without blanks at both ends; Rust's own `trim_ascii` leaves a vertical tab.
pub(super) fn trimmed(bytes: &[u8]) -> &[u8] {
    let word = |b: &u8| kind(*b) != Kind::Blank;
    let start = bytes.iter().position(word).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(word).map_or(start, |last| last + 1);
    &bytes[start..end]
}
