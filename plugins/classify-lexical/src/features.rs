//! From text to numbers, for the first head; in step with `models/train/fit_classifier.py`.

use crate::prompt::{Fnv, Kind, Prompt, sentences, value};

/// Features of [`Text::shape`].
pub const SHAPES: usize = 13;

const SHAPE_WORDS: [&[&str]; 5] = [
    &[
        "half", "third", "quarter", "fifth", "twice", "thrice", "times", "double", "triple",
    ],
    &["if", "then", "after", "before", "until", "when"],
    &["more", "less", "fewer", "than", "older", "younger"],
    &["each", "every", "per"],
    &[
        "hour", "minute", "day", "week", "month", "year", "hours", "minutes", "days", "weeks",
        "months", "years",
    ],
];

/// A prompt as the first head reads it.
pub struct Text<'a> {
    prompt: &'a Prompt<'a>,
    choice: bool,
}

impl<'a> Text<'a> {
    /// Looks for choices.
    pub fn of(prompt: &'a Prompt<'a>) -> Self {
        Self {
            prompt,
            choice: choices(prompt.bytes) >= 3,
        }
    }

    /// Lower-case tokens; a number is up to four zeros.
    pub fn tokens(&self) -> impl Iterator<Item = &'a [u8]> {
        let prompt = self.prompt;
        prompt.tokens.iter().map(|token| match token.kind {
            Kind::Digit => &b"0000"[..((token.end - token.start) as usize).min(4)],
            _ => prompt.lower(token),
        })
    }

    /// Whether it offers at least three lettered choices.
    pub fn is_choice(&self) -> bool {
        self.choice
    }

    /// Hash of every 1-gram and 2-gram with its weight; the whole has unit length.
    pub fn grams(&self) -> Vec<(u32, f32)> {
        let mut hashes = Vec::with_capacity(2 * self.prompt.tokens.len());
        let mut before: Option<Fnv> = None;
        for token in self.tokens() {
            hashes.push(Fnv::of_token(token));
            if let Some(before) = before {
                hashes.push(before.push(b" ").push(token).end());
            }
            before = Some(Fnv::START.push(b"2").push(token));
        }
        hashes.sort_unstable();
        let mut grams: Vec<(u32, f32)> = Vec::with_capacity(hashes.len());
        let mut length = 0.0;
        for same in hashes.chunk_by(|a, b| a == b) {
            let value = 1.0 + (same.len() as f32).ln();
            length += value * value;
            grams.push((same[0], value));
        }
        let scale = if length > 0.0 {
            1.0 / length.sqrt()
        } else {
            1.0
        };
        for (_, value) in &mut grams {
            *value *= scale;
        }
        grams
    }

    /// Lengths, numbers and words that word problems are made of.
    pub fn shape(&self) -> [f32; SHAPES] {
        let bytes = self.prompt.bytes;
        let (mut count, mut largest, mut decimals) = (0u32, 0.0f64, false);
        for number in self.prompt.numbers() {
            count += 1;
            decimals |= number.contains(&b'.');
            largest = largest.max(value(number));
        }
        let ends = sentences(bytes);
        let mut lists = [0u32; SHAPE_WORDS.len()];
        let mut long = 0;
        for token in self.tokens() {
            long += u32::from(token.len() >= 8);
            for (list, words) in lists.iter_mut().zip(SHAPE_WORDS) {
                *list += u32::from(words.iter().any(|w| w.as_bytes() == token));
            }
        }
        let percent =
            bytes.contains(&b'%') || self.prompt.lowered.windows(7).any(|w| w == b"percent");
        let dollars = bytes.iter().filter(|b| **b == b'$').count();
        [
            (bytes.len() as f32).ln_1p(),
            (count as f32).ln_1p(),
            ends as f32 / 5.0,
            largest.min(1e9).ln_1p() as f32,
            f32::from(u8::from(percent)),
            dollars as f32 / 5.0,
            lists[0] as f32 / 3.0,
            lists[1] as f32 / 3.0,
            lists[2] as f32 / 3.0,
            lists[3] as f32 / 3.0,
            lists[4] as f32 / 3.0,
            f32::from(u8::from(decimals)),
            long as f32 / 10.0,
        ]
    }
}

/// Lines that begin like a choice: `A. `, `B) `.
fn choices(bytes: &[u8]) -> usize {
    bytes
        .split(|b| *b == b'\n')
        .filter(|line| matches!(line, [b'A'..=b'D', b'.' | b')', b' ', ..]))
        .count()
}
