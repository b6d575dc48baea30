//! From text to numbers, in step with `models/train/fit_classifier.py`.
//!
//! Everything works on bytes: ASCII letters are lowered, every byte above 127 counts as a
//! letter. That is crude for other scripts, and exactly the same in both languages.

/// Features of [`Text::shape`].
pub const SHAPES: usize = 13;
/// Tokens looked at; bounds the time of a long prompt.
const TOKENS_MAX: usize = 2000;
/// Bytes looked at, for the same reason.
const TEXT_BYTES_MAX: usize = 16_384;

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

/// A prompt, cut into tokens once.
pub struct Text<'a> {
    bytes: &'a [u8],
    /// Lower case, digits as zeros; tokens are ranges of it.
    lowered: Vec<u8>,
    tokens: Vec<std::ops::Range<u32>>,
    choice: bool,
}

#[derive(PartialEq, Clone, Copy)]
enum Kind {
    Letter,
    Digit,
    Blank,
    Sign,
}

fn kind(byte: u8) -> Kind {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | 0x80..=0xff => Kind::Letter,
        b'0'..=b'9' => Kind::Digit,
        b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => Kind::Blank,
        _ => Kind::Sign,
    }
}

impl<'a> Text<'a> {
    /// Reads the beginning of `text`.
    pub fn read(text: &'a str) -> Self {
        let bytes = &text.as_bytes()[..text.len().min(TEXT_BYTES_MAX)];
        let lowered = bytes
            .iter()
            .map(|b| {
                if b.is_ascii_digit() {
                    b'0'
                } else {
                    b.to_ascii_lowercase()
                }
            })
            .collect();
        let mut tokens = Vec::new();
        let mut at = 0;
        while at < bytes.len() && tokens.len() < TOKENS_MAX {
            let this = kind(bytes[at]);
            let same = |b: &&u8| kind(**b) == this;
            let len = match this {
                Kind::Sign => 1,
                _ => bytes[at..].iter().take_while(same).count(),
            };
            let shown = if this == Kind::Digit { len.min(4) } else { len };
            if this != Kind::Blank {
                tokens.push(at as u32..(at + shown) as u32);
            }
            at += len;
        }
        Self {
            bytes,
            lowered,
            tokens,
            choice: choices(bytes) >= 3,
        }
    }

    /// Lower-case tokens; a number is up to four zeros.
    pub fn tokens(&self) -> impl Iterator<Item = &[u8]> {
        self.tokens
            .iter()
            .map(|r| &self.lowered[r.start as usize..r.end as usize])
    }

    /// Whether it offers at least three lettered choices.
    pub fn is_choice(&self) -> bool {
        self.choice
    }

    /// Hash of every 1-gram and 2-gram with its weight; the whole has unit length.
    pub fn grams(&self) -> Vec<(u32, f32)> {
        let mut hashes = Vec::with_capacity(2 * self.tokens.len());
        let mut before: Option<Fnv> = None;
        for token in self.tokens() {
            hashes.push(Fnv::START.push(b"1").push(token).end());
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

    /// Numbers as written, such as `1,200` or `12.5`.
    pub fn numbers(&self) -> impl Iterator<Item = &'a [u8]> {
        let bytes = self.bytes;
        let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < bytes.len() && !digit(at) {
                at += 1;
            }
            let start = at;
            while digit(at)
                || (at > start && matches!(bytes.get(at), Some(b'.' | b',')) && digit(at + 1))
            {
                at += 1;
            }
            (at > start).then(|| &bytes[start..at])
        })
    }

    /// Lengths, numbers and words that word problems are made of.
    pub fn shape(&self) -> [f32; SHAPES] {
        let bytes = self.bytes;
        let (mut count, mut largest, mut decimals) = (0u32, 0.0f64, false);
        for number in self.numbers() {
            count += 1;
            decimals |= number.contains(&b'.');
            largest = largest.max(value(number));
        }
        let ends = (0..bytes.len())
            .filter(|&i| matches!(bytes[i], b'.' | b'?' | b'!'))
            .filter(|&i| matches!(bytes.get(i + 1), None | Some(b' ' | b'\n')))
            .count();
        let mut lists = [0u32; SHAPE_WORDS.len()];
        let mut long = 0;
        for token in self.tokens() {
            long += u32::from(token.len() >= 8);
            for (list, words) in lists.iter_mut().zip(SHAPE_WORDS) {
                *list += u32::from(words.iter().any(|w| w.as_bytes() == token));
            }
        }
        let percent = bytes.contains(&b'%') || self.lowered.windows(7).any(|w| w == b"percent");
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

/// The value of a number as written; several points make it a version, not a number.
fn value(written: &[u8]) -> f64 {
    if written.iter().filter(|b| **b == b'.').count() > 1 {
        return 0.0;
    }
    let digits: String = written
        .iter()
        .filter(|b| **b != b',')
        .map(|b| char::from(*b))
        .collect();
    digits.parse().unwrap_or(0.0)
}

/// Lines that begin like a choice: `A. `, `B) `.
fn choices(bytes: &[u8]) -> usize {
    bytes
        .split(|b| *b == b'\n')
        .filter(|line| matches!(line, [b'A'..=b'D', b'.' | b')', b' ', ..]))
        .count()
}

/// FNV-1a of 32 bits with a final mix, so that its low bits depend on all of it.
#[derive(Clone, Copy)]
pub struct Fnv(u32);

impl Fnv {
    /// The hash of nothing.
    pub const START: Self = Self(2_166_136_261);

    /// Goes on with more bytes.
    #[must_use]
    pub fn push(self, bytes: &[u8]) -> Self {
        Self(
            bytes
                .iter()
                .fold(self.0, |h, b| (h ^ u32::from(*b)).wrapping_mul(16_777_619)),
        )
    }

    /// The mixed hash.
    pub fn end(self) -> u32 {
        let mut h = self.0;
        h ^= h >> 16;
        h = h.wrapping_mul(0x85eb_ca6b);
        h ^ (h >> 13)
    }
}
