//! A prompt, cut into tokens once, for both heads; in step with the scripts that fit them.
//!
//! Everything works on bytes: ASCII letters are lowered, every byte above 127 counts as a
//! letter. That is crude for other scripts, and exactly the same in both languages.

/// Tokens looked at; bounds the time of a long prompt.
const TOKENS_MAX: usize = 2000;
/// Bytes looked at, for the same reason.
const TEXT_BYTES_MAX: usize = 16_384;

/// The beginning of a prompt.
pub struct Prompt<'a> {
    pub(crate) bytes: &'a [u8],
    /// Lower case.
    pub(crate) lowered: Vec<u8>,
    pub(crate) tokens: Vec<Token>,
}

/// Bytes of one kind beside each other, or one sign.
#[derive(Clone, Copy)]
pub(crate) struct Token {
    pub start: u32,
    pub end: u32,
    pub kind: Kind,
    /// Of the token in lower case, digits as they are.
    pub hash: u32,
}

#[derive(PartialEq, Clone, Copy)]
pub(crate) enum Kind {
    Letter,
    Digit,
    Blank,
    Sign,
}

pub(crate) fn kind(byte: u8) -> Kind {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | 0x80..=0xff => Kind::Letter,
        b'0'..=b'9' => Kind::Digit,
        b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => Kind::Blank,
        _ => Kind::Sign,
    }
}

impl<'a> Prompt<'a> {
    /// Reads the beginning of `text`.
    pub fn read(text: &'a str) -> Self {
        let bytes = &text.as_bytes()[..text.len().min(TEXT_BYTES_MAX)];
        let lowered = bytes.to_ascii_lowercase();
        let mut tokens = Vec::with_capacity(bytes.len() / 4);
        let mut at = 0;
        while at < bytes.len() && tokens.len() < TOKENS_MAX {
            let this = kind(bytes[at]);
            let same = |b: &&u8| kind(**b) == this;
            let len = match this {
                Kind::Sign => 1,
                _ => bytes[at..].iter().take_while(same).count(),
            };
            if this != Kind::Blank {
                tokens.push(Token {
                    start: at as u32,
                    end: (at + len) as u32,
                    kind: this,
                    hash: Fnv::of_token(&lowered[at..at + len]),
                });
            }
            at += len;
        }
        Self {
            bytes,
            lowered,
            tokens,
        }
    }

    pub(crate) fn lower(&self, token: &Token) -> &[u8] {
        &self.lowered[token.start as usize..token.end as usize]
    }

    /// Numbers as written, such as `1,200` or `12.5`.
    pub fn numbers(&self) -> impl Iterator<Item = &'a [u8]> {
        numbers(self.bytes)
    }
}

pub(crate) fn numbers(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
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

/// The value of a number as written; several points make it a version, not a number.
pub(crate) fn value(written: &[u8]) -> f64 {
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

/// Marks that end a sentence.
pub(crate) fn sentences(text: &[u8]) -> usize {
    let ends = |i: &usize| {
        matches!(text[*i], b'.' | b'?' | b'!')
            && matches!(text.get(i + 1), None | Some(b' ' | b'\n'))
    };
    (0..text.len()).filter(ends).count()
}

/// FNV-1a of 32 bits with a final mix, so that its low bits depend on all of it.
#[derive(Clone, Copy)]
pub struct Fnv(u32);

impl Fnv {
    /// The hash of nothing.
    pub const START: Self = Self(2_166_136_261);

    /// Of one token; `1` tells it from a pair.
    pub fn of_token(token: &[u8]) -> u32 {
        Self::START.push(b"1").push(token).end()
    }

    /// Goes on with more bytes.
    #[must_use]
    pub fn push(self, bytes: &[u8]) -> Self {
        let step = |h: u32, b: &u8| (h ^ u32::from(*b)).wrapping_mul(16_777_619);
        Self(bytes.iter().fold(self.0, step))
    }

    /// The mixed hash.
    pub fn end(self) -> u32 {
        let mut h = self.0;
        h ^= h >> 16;
        h = h.wrapping_mul(0x85eb_ca6b);
        h ^ (h >> 13)
    }
}
