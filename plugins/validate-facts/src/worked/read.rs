//! Question and answer as tokens, sentences and steps; in step with
//! `models/train/fit_answers.py`.

/// More is longer than anything that was fitted on.
const TOKENS_MAX: usize = 1500;
/// Steps looked at in one answer; enough for any worked solution.
const STEPS_MAX: usize = 64;
/// Numbers looked at to the left of an equals sign.
const OPERANDS_MAX: usize = 6;
/// Lines such as `A) 12` that make a question one of multiple choice.
const CHOICES_MIN: usize = 3;
/// Larger numbers are taken for this one.
const LARGEST: f64 = 1e15;

const BLANKS: [char; 6] = [' ', '\t', '\r', '\u{a0}', '\u{2009}', '\u{202f}'];
/// Beyond ASCII everything else counts as a letter.
const NO_LETTERS: &str = "×÷≈−–’“”€£¢·⋅√\u{a0}\u{2009}\u{202f}";

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind<'a> {
    Word(&'a str),
    /// Never negative: a minus is a sign.
    Number(f64),
    Sign(char),
    /// A mark that ends a sentence.
    End(char),
    /// The end of a line.
    Line,
    /// A calculator's note, such as `<<3*4=12>>`, that does not end. Whole ones are left out.
    OpenNote,
}

/// A token of a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind<'a>,
    /// Whether a blank stands before it.
    pub(super) spaced: bool,
}

impl Token<'_> {
    pub(super) fn number(&self) -> Option<f64> {
        match self.kind {
            Kind::Number(value) => Some(value),
            _ => None,
        }
    }
}

/// The tokens of `text`; `None` when there are too many.
pub(super) fn read(text: &str) -> Option<Vec<Token<'_>>> {
    let mut tokens = Vec::new();
    let (mut rest, mut spaced) = (text, false);
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("<<") {
            let Some(end) = rest.find(">>") else {
                let kind = Kind::OpenNote;
                tokens.push(Token { kind, spaced });
                break;
            };
            rest = &rest[end + 2..];
            continue;
        }
        if BLANKS.contains(&c) {
            rest = &rest[c.len_utf8()..];
            spaced = true;
            continue;
        }
        if tokens.len() == TOKENS_MAX {
            return None;
        }
        let (kind, length) = next(rest, c);
        tokens.push(Token { kind, spaced });
        rest = &rest[length..];
        spaced = false;
    }
    (tokens.len() <= TOKENS_MAX).then_some(tokens)
}

/// The token that `rest` begins with, and its length in bytes. `first` is the first character.
fn next(rest: &str, first: char) -> (Kind<'_>, usize) {
    if first.is_ascii_digit() {
        let length = number_length(rest);
        return (Kind::Number(value(&rest[..length])), length);
    }
    if is_letter(first) {
        let length = word_length(rest);
        return (Kind::Word(&rest[..length]), length);
    }
    let kind = match first {
        '\n' => Kind::Line,
        '.' | '!' | '?' if ends_sentence(&rest[1..]) => Kind::End(first),
        _ => Kind::Sign(first),
    };
    (kind, first.len_utf8())
}

fn is_letter(c: char) -> bool {
    c.is_ascii_alphabetic() || (!c.is_ascii() && !NO_LETTERS.contains(c))
}

/// Bytes of the number that `text` begins with. A comma belongs to it only before exactly
/// three digits, a point only before a digit.
fn number_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |from: usize| {
        let after = bytes[from..].iter();
        after.take_while(|b| b.is_ascii_digit()).count()
    };
    let mut length = digits(0);
    while bytes.get(length) == Some(&b',') && digits(length + 1) == 3 {
        length += 4;
    }
    if bytes.get(length) == Some(&b'.') && digits(length + 1) > 0 {
        length += 1 + digits(length + 1);
    }
    length
}

fn value(written: &str) -> f64 {
    let value = written.replace(',', "").parse::<f64>();
    value.unwrap_or(LARGEST).min(LARGEST)
}

/// Bytes of the word that `text` begins with; an apostrophe within it belongs to it.
fn word_length(text: &str) -> usize {
    let mut length = 0;
    loop {
        let mut ahead = text[length..].chars();
        length += match (ahead.next(), ahead.next()) {
            (Some(c), _) if is_letter(c) => c.len_utf8(),
            (Some(c @ ('\'' | '’')), Some(after)) if is_letter(after) => {
                c.len_utf8() + after.len_utf8()
            }
            _ => return length,
        };
    }
}

fn ends_sentence(after: &str) -> bool {
    let next = after.chars().next();
    next.is_none_or(|c| BLANKS.contains(&c) || matches!(c, '\n' | '"' | '”' | ')' | '*'))
}

/// The words of some tokens.
pub(super) fn words<'a>(tokens: &[Token<'a>]) -> impl Iterator<Item = &'a str> {
    tokens.iter().filter_map(|token| match token.kind {
        Kind::Word(word) => Some(word),
        _ => None,
    })
}

/// What stands between the last two ends of sentences or lines that have something between them.
pub(super) fn last_sentence<'t, 'a>(tokens: &'t [Token<'a>]) -> &'t [Token<'a>] {
    let closes = |token: &Token<'_>| match token.kind {
        Kind::End(_) | Kind::Line => true,
        Kind::Sign(c) => matches!(c, '*' | '"' | ')' | '”' | ']' | '}' | '\\' | '$'),
        _ => false,
    };
    let ends = |token: &Token<'_>| matches!(token.kind, Kind::End(_) | Kind::Line);
    let end = tokens.iter().rposition(|token| !closes(token));
    let tokens = &tokens[..end.map_or(0, |at| at + 1)];
    let start = tokens.iter().rposition(ends);
    &tokens[start.map_or(0, |at| at + 1)..]
}

/// The last sentence with a question mark, or else the last one.
pub(super) fn asked<'t, 'a>(tokens: &'t [Token<'a>]) -> &'t [Token<'a>] {
    let mark = tokens.iter().rposition(|t| t.kind == Kind::End('?'));
    last_sentence(&tokens[..mark.unwrap_or(tokens.len())])
}

/// Whether it is of multiple choice: most of its numbers are no part of the working.
pub(super) fn offers_choices(tokens: &[Token<'_>]) -> bool {
    let offers = |line: &&[Token<'_>]| match line {
        [letter, mark, ..] => {
            matches!(letter.kind, Kind::Word(letter) if letter.len() == 1)
                && matches!(mark.kind, Kind::End('.') | Kind::Sign('.' | ')'))
        }
        _ => false,
    };
    let lines = tokens.split(|token| token.kind == Kind::Line);
    lines.filter(offers).count() >= CHOICES_MIN
}

/// One equation with at least two numbers on its left side.
#[derive(Debug, PartialEq)]
pub(super) struct Step {
    pub(super) operands: Vec<f64>,
    /// The number right of the equals sign, if one follows.
    pub(super) result: Option<f64>,
}

/// The steps of a worked answer. Units may stand between the numbers: that finds more than
/// `arithmetic::claims`, which must not raise a false alarm.
pub(super) fn steps(tokens: &[Token<'_>]) -> Vec<Step> {
    let mut steps = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if !matches!(token.kind, Kind::Sign('=' | '≈')) {
            continue;
        }
        let operands = operands(&tokens[..at]);
        if operands.len() >= 2 {
            let result = result(&tokens[at + 1..]);
            steps.push(Step { operands, result });
        }
        if steps.len() == STEPS_MAX {
            break;
        }
    }
    steps
}

/// Numbers from the end of `left` back to where the expression must have begun.
fn operands(left: &[Token<'_>]) -> Vec<f64> {
    let begins = |token: &Token<'_>| {
        matches!(
            token.kind,
            Kind::End(_) | Kind::Line | Kind::Sign('=' | '≈' | ':' | ';')
        )
    };
    let near = left.iter().rev().take_while(|token| !begins(token));
    near.filter_map(Token::number).take(OPERANDS_MAX).collect()
}

fn result(right: &[Token<'_>]) -> Option<f64> {
    let mut sign = 1.0;
    for token in right {
        match token.kind {
            Kind::Number(value) => return Some(sign * value),
            Kind::Sign('-' | '−') => sign = -1.0,
            Kind::Sign('$' | '€' | '£' | '\\' | '*' | '{' | '(' | '~') => {}
            Kind::Word(word) if word.eq_ignore_ascii_case("boxed") => {}
            _ => return None,
        }
    }
    None
}

/// Whether it ends within an expression, as no finished answer does.
pub(super) fn breaks_off(tokens: &[Token<'_>]) -> bool {
    let mut back = tokens.iter().rev().filter(|t| t.kind != Kind::Line);
    let Some(last) = back.next() else {
        return false;
    };
    // The nearest first.
    let before: Vec<&Token<'_>> = back.take(3).collect();
    let after_operand = is_operand(before.first().copied());
    match last.kind {
        Kind::OpenNote | Kind::Sign('=' | '≈' | '(' | ',') => true,
        Kind::Sign('+' | '-' | '−' | '–' | '×' | '÷' | '/') => after_operand,
        // Without a blank it belongs to what is set in bold.
        Kind::Sign('*') => last.spaced && after_operand,
        Kind::Word(word) => word.eq_ignore_ascii_case("x") && last.spaced && after_operand,
        Kind::Number(value) => is_part(last, value, &before),
        Kind::Sign(_) | Kind::End(_) | Kind::Line => false,
    }
}

fn is_operand(token: Option<&Token<'_>>) -> bool {
    token.is_some_and(|t| matches!(t.kind, Kind::Number(_) | Kind::Sign(')' | '%')))
}

/// Whether a last number is a part of a number, such as `36,00`, or the last operand of an
/// expression that has no equals sign yet.
fn is_part(last: &Token<'_>, value: f64, before: &[&Token<'_>]) -> bool {
    if let [comma, whole, ..] = before
        && comma.kind == Kind::Sign(',')
        && whole.number().is_some()
        && !comma.spaced
        && !last.spaced
    {
        // `36,50` may be a price, and `3,5` a list.
        return value == 0.0;
    }
    let is_currency = |t: &Token<'_>| matches!(t.kind, Kind::Sign('$' | '€' | '£' | '\\'));
    let before = match before {
        [first, rest @ ..] if is_currency(first) => rest,
        all => all,
    };
    let is_operator = |t: &Token<'_>| match t.kind {
        // Without a blank it may be a range, a date or a score.
        Kind::Sign('-' | '–') => t.spaced,
        Kind::Sign('+' | '−' | '×' | '÷' | '*') => true,
        _ => false,
    };
    matches!(before, [sign, operand, ..] if is_operator(sign) && is_operand(Some(*operand)))
}
