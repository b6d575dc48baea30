//! Equations that a text claims, such as `17 * 23 = 391` within a sentence.
//!
//! A false alarm costs an escalation, so what is unsure is passed over: equations with an
//! unknown, with units in between, or chains that people write as they think
//! (`2 + 3 = 5 * 2 = 10`).

use crate::evaluate::evaluate_tokens;
use crate::tokens::{self, Spanned, Token};
use crate::{Error, Number};

/// Equations looked at in one text; enough for any worked solution.
const CLAIMS_MAX: usize = 64;
/// Tokens of an expression that are looked at to the left of an equals sign.
const TOKENS_MAX: usize = 48;

/// One equation of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// The left side as it stands in the text.
    pub expression: String,
    /// What the text says it is.
    pub stated: Number,
    /// What it is.
    pub actual: Number,
    /// Whether they agree, roundings forgiven.
    pub holds: bool,
}

/// The equations in `text` whose left side is an expression with at least one operator and
/// whose right side is a number.
pub fn claims(text: &str) -> Vec<Claim> {
    text.match_indices(['=', '≈'])
        .filter_map(|(at, sign)| claim(text, at, at + sign.len()))
        .take(CLAIMS_MAX)
        .collect()
}

fn claim(text: &str, left_end: usize, right_start: usize) -> Option<Claim> {
    let (stated, decimals) = stated(&text[right_start..])?;
    let (expression, actual) = expression_before(&text[..left_end])?;
    Some(Claim {
        expression,
        stated,
        actual,
        holds: actual.agrees_with(stated, decimals),
    })
}

/// The number right of the equals sign with its decimals; `None` when the right side goes
/// on calculating.
fn stated(right: &str) -> Option<(Number, u32)> {
    let line = right.split(['\n', '=', '<', '>']).next()?;
    let start = line.len() - line.trim_start().len();
    let (negative, start) = match tokens::next(line, start, &[])? {
        s if s.token == Token::Minus => (true, s.end),
        _ => (false, start),
    };
    let number = tokens::next(line, start, &[])?;
    let Token::Number(value) = number.token else {
        return None;
    };
    let rest = line[number.end..].trim_start();
    // "= 1/3", "= 5 * 2", "= 2x", "= 10^6", "= 5 million": the number is not all.
    let follows = rest.chars().next();
    let touching = rest.len() == line.len() - number.end;
    let goes_on = follows.is_some_and(|c| "+-−–*×·⋅/÷^²³(%√".contains(c))
        || (touching && follows.is_some_and(char::is_alphabetic))
        || [
            "x ", "times", "million", "billion", "trillion", "thousand", "hundred", "mod",
        ]
        .iter()
        .any(|w| rest.starts_with(w));
    if goes_on {
        return None;
    }
    let written = &line[number.start..number.end];
    let decimals = written.split_once('.').map_or(0, |(_, d)| d.len() as u32);
    let value = if negative {
        value.negate().ok()?
    } else {
        value
    };
    Some((value, decimals))
}

/// The longest expression that ends where `left` ends, on its last line.
fn expression_before(left: &str) -> Option<(String, Number)> {
    let line_start = left
        .rfind(['\n', '=', '<', '>', ':', ';', '≈'])
        .map_or(0, |at| {
            at + left[at..].chars().next().map_or(1, char::len_utf8)
        });
    let line = &left[line_start..];
    let run = last_run(line)?;
    let first = run.first()?;
    if !stands_alone(&line[..first.start], first.token) {
        return None;
    }
    let operators = run.iter().filter(|s| {
        matches!(
            s.token,
            Token::Plus
                | Token::Minus
                | Token::Times
                | Token::Divide
                | Token::Power
                | Token::Of
                | Token::Modulo
        )
    });
    if operators.count() == 0 {
        return None;
    }
    match evaluate_tokens(&run) {
        Ok(value) => Some((line[first.start..].trim().to_owned(), value)),
        Err(Error::NotAnExpression | Error::Ambiguous | Error::Undefined | Error::TooLarge) => None,
    }
}

/// The tokens at the end of `line` with nothing but blanks between and after them.
fn last_run(line: &str) -> Option<Vec<Spanned>> {
    let mut run: Vec<Spanned> = Vec::new();
    let mut at = 0;
    while let Some(c) = line[at..].chars().next() {
        if c.is_whitespace() {
            at += c.len_utf8();
            continue;
        }
        match tokens::next(line, at, &run) {
            Some(spanned) => {
                at = spanned.end;
                run.push(spanned);
            }
            None => {
                run.clear();
                // Past the whole word, so that no operator is found inside it.
                let word = line[at..]
                    .find(|c: char| !c.is_alphanumeric())
                    .unwrap_or(line.len() - at);
                at += word.max(c.len_utf8());
            }
        }
    }
    (!run.is_empty() && run.len() <= TOKENS_MAX).then_some(run)
}

/// Whether an expression may begin here: after a word or punctuation, but not after an
/// unknown (`x - 3 + 5 = 12`) whose operator would be taken for a sign.
fn stands_alone(before: &str, first: Token) -> bool {
    let trimmed = before.trim_end();
    let Some(last) = trimmed.chars().next_back() else {
        return true;
    };
    if !matches!(
        first,
        Token::Number(_) | Token::Open | Token::SquareRoot | Token::Absolute
    ) {
        // It begins with an operator: something before it is missing.
        return false;
    }
    if trimmed.len() == before.len() && last.is_alphanumeric() {
        return false;
    }
    let word = trimmed
        .rsplit(|c: char| !c.is_alphanumeric())
        .next()
        .unwrap_or_default();
    word.chars().count() != 1 || word.eq_ignore_ascii_case("a")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(String, bool)> {
        claims(text)
            .into_iter()
            .map(|c| (c.expression, c.holds))
            .collect()
    }

    #[test]
    fn right_and_wrong_equations_are_told_apart() {
        assert_eq!(found("So 17 * 23 = 391."), [("17 * 23".into(), true)]);
        assert_eq!(found("So 17 * 23 = 401."), [("17 * 23".into(), false)]);
        assert_eq!(found("9 * $2 = $<<9*2=18>>18"), [("9*2".into(), true)]);
        assert_eq!(found("That is 3 + 4 = 7 eggs"), [("3 + 4".into(), true)]);
        assert_eq!(
            found("(1,200 - 200) / 4 = 250"),
            [("(1,200 - 200) / 4".into(), true)]
        );
        assert_eq!(found("2 - 5 = -3"), [("2 - 5".into(), true)]);
    }

    #[test]
    fn a_rounded_result_holds() {
        for text in [
            "2/3 = 0.67",
            "2/3 = 0.66",
            "10 / 4 = 2.5",
            "100 / 7 ≈ 14.29",
            "100 / 7 = 14",
            "64/3.5 = 18.285714285714285",
        ] {
            assert_eq!(
                found(text).iter().map(|f| f.1).collect::<Vec<_>>(),
                [true],
                "{text}"
            );
        }
        for text in ["2/3 = 0.76", "10 / 4 = 2.8", "10 / 4 = 4"] {
            assert_eq!(
                found(text).iter().map(|f| f.1).collect::<Vec<_>>(),
                [false],
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_unsure_is_passed_over() {
        for text in [
            "x - 3 + 5 = 12",
            "2x + 3 = 7",
            "y = 5",
            "f(2) = 9",
            "2 + 3 = 5 * 2",
            "5 eggs * 2 dollars = 10 dollars",
            "3 * 4 = 2 million",
            "a == b",
            "n + 1 = 2",
            "= 4",
        ] {
            assert_eq!(found(text), [], "{text}");
        }
    }

    #[test]
    fn a_chain_is_checked_link_by_link() {
        assert_eq!(found("4 * 5 = 20 = 20"), [("4 * 5".into(), true)]);
    }
}
