//! From text to tokens: signs, numbers and the English words for operators.

use crate::{Error, Number};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Token {
    Number(Number),
    Plus,
    Minus,
    Times,
    Divide,
    Power,
    Percent,
    Of,
    Modulo,
    Open,
    Close,
    SquareRoot,
    Absolute,
    Squared,
    Cubed,
}

/// A token with the bytes of text that it covers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spanned {
    pub(crate) token: Token,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Operators in words; longer ones first, since some begin with others.
const WORDS: [(&str, Token); 16] = [
    ("to the power of", Token::Power),
    ("raised to", Token::Power),
    ("square root of", Token::SquareRoot),
    ("multiplied by", Token::Times),
    ("divided by", Token::Divide),
    ("squared", Token::Squared),
    ("percent", Token::Percent),
    ("modulo", Token::Modulo),
    ("cubed", Token::Cubed),
    ("times", Token::Times),
    ("minus", Token::Minus),
    ("plus", Token::Plus),
    ("sqrt", Token::SquareRoot),
    ("mod", Token::Modulo),
    ("abs", Token::Absolute),
    ("of", Token::Of),
];

/// All tokens of `text`, or an error at the first thing that is no arithmetic.
pub(crate) fn all(text: &str) -> Result<Vec<Spanned>, Error> {
    let mut tokens: Vec<Spanned> = Vec::new();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        if c.is_whitespace() {
            at += c.len_utf8();
            continue;
        }
        let spanned = next(text, at, &tokens).ok_or(Error::NotAnExpression)?;
        at = spanned.end;
        tokens.push(spanned);
    }
    Ok(tokens)
}

/// The token that begins at byte `at`; `None` when nothing arithmetic does.
pub(crate) fn next(text: &str, at: usize, before: &[Spanned]) -> Option<Spanned> {
    let rest = &text[at..];
    let c = rest.chars().next()?;
    let spanned = |token, len| {
        Some(Spanned {
            token,
            start: at,
            end: at + len,
        })
    };
    if c.is_ascii_digit() || c == '.' {
        let len = number_len(rest);
        return spanned(Token::Number(Number::parse(&rest[..len])?), len);
    }
    // A currency sign before a number says nothing about its value.
    if matches!(c, '$' | '€' | '£') {
        let inside = next(text, at + c.len_utf8(), before)?;
        return matches!(inside.token, Token::Number(_)).then_some(Spanned {
            start: at,
            ..inside
        });
    }
    if rest.starts_with("**") {
        return spanned(Token::Power, 2);
    }
    let sign = match c {
        '+' => Token::Plus,
        '-' | '−' | '–' => Token::Minus,
        '*' | '×' | '·' | '⋅' => Token::Times,
        '/' | '÷' => Token::Divide,
        '^' => Token::Power,
        '%' => Token::Percent,
        '(' | '[' => Token::Open,
        ')' | ']' => Token::Close,
        '√' => Token::SquareRoot,
        '²' => Token::Squared,
        '³' => Token::Cubed,
        _ => return word(rest, before).and_then(|(token, len)| spanned(token, len)),
    };
    spanned(sign, c.len_utf8())
}

/// Bytes of the number that `text` begins with. A comma belongs to it only before exactly
/// three digits, a point only before a digit, so a sentence's own comma or stop does not.
fn number_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |from: usize| {
        bytes[from..]
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .count()
    };
    let mut len = digits(0);
    while len > 0 && bytes.get(len) == Some(&b',') && digits(len + 1) == 3 {
        len += 4;
    }
    if bytes.get(len) == Some(&b'.') && bytes.get(len + 1).is_some_and(u8::is_ascii_digit) {
        len += 1 + digits(len + 1);
    }
    len.max(1)
}

fn word(text: &str, before: &[Spanned]) -> Option<(Token, usize)> {
    let ends = |len: usize| {
        text.as_bytes()
            .get(len)
            .is_none_or(|b| !b.is_ascii_alphanumeric())
    };
    for (word, token) in WORDS {
        let matches = text
            .get(..word.len())
            .is_some_and(|t| t.eq_ignore_ascii_case(word));
        if matches && ends(word.len()) {
            return Some((token, word.len()));
        }
    }
    // "3 x 4", "3x4": only between numbers, for x is also everybody's unknown.
    let after_number = matches!(before.last()?.token, Token::Number(_) | Token::Close);
    let after_x = text.strip_prefix(['x', 'X'])?;
    let number_follows = after_x
        .trim_start_matches([' ', '$', '('])
        .starts_with(|c: char| c.is_ascii_digit());
    (after_number && number_follows).then_some((Token::Times, 1))
}
