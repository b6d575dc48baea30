//! Does the answer stay with the text that was supplied?
//!
//! Only where a text *was* supplied and the task is to stay with it: a question about a
//! passage, a summary, an extraction. Then a number, a name or a quotation of the answer
//! that stands nowhere in the conversation was most likely invented.

use homeostat_sdk::{Request, Role};

use crate::text::{plain, words};

/// A supplied text has at least this many characters; less is a question, not a source.
const CONTEXT_CHARS_MIN: usize = 300;

/// Words with which people point at the text they supply.
const POINTERS: [&str; 18] = [
    "according to",
    "based on the",
    "from the text",
    "from the passage",
    "in the text",
    "in the passage",
    "the following text",
    "the following passage",
    "the following article",
    "the following document",
    "the following context",
    "context:",
    "passage:",
    "article:",
    "document:",
    "summarize",
    "summarise",
    "extract",
];

/// What the answer has and the conversation has not.
pub(crate) struct Invented {
    pub(crate) numbers: Vec<String>,
    pub(crate) names: Vec<String>,
    pub(crate) quotes: Vec<String>,
}

/// `None` when no text was supplied.
pub(crate) fn invented(request: &Request, answer: &str) -> Option<Invented> {
    // What was cut out of the messages may hold what seems to be missing.
    if request.cut_bytes > 0 {
        return None;
    }
    let said: Vec<&str> = request
        .messages
        .iter()
        .filter(|m| m.role != Role::Assistant)
        .map(|m| m.content.as_str())
        .collect();
    let said = said.join("\n");
    let source = plain(&said);
    let points = POINTERS.iter().any(|p| source.contains(p));
    if source.chars().count() < CONTEXT_CHARS_MIN || !points {
        return None;
    }
    let source_words = words(&said);
    Some(Invented {
        numbers: missing_numbers(&said, answer),
        names: missing_names(&source_words, answer),
        quotes: missing_quotes(&source, answer),
    })
}

/// Numbers as written, thousands commas removed.
fn numbers(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let digits = &rest[start..];
        let end = digits
            .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | ',')))
            .unwrap_or(digits.len());
        let written = digits[..end].trim_end_matches(['.', ',']);
        found.push(written.replace(',', ""));
        rest = &digits[end..];
    }
    found
}

/// Numbers up to ten are left out: people and models count lists with them.
fn missing_numbers(source: &str, answer: &str) -> Vec<String> {
    let known = numbers(source);
    let mut missing: Vec<String> = numbers(answer)
        .into_iter()
        .filter(|n| n.parse::<f64>().is_ok_and(|v| v > 10.0) && !known.contains(n))
        .collect();
    missing.dedup();
    missing
}

/// Capitalised words in the middle of a sentence of which the source has no form.
fn missing_names(source: &[String], answer: &str) -> Vec<String> {
    let mut missing: Vec<String> = Vec::new();
    let mut begins = true;
    for token in answer.split_whitespace() {
        let word = token.trim_matches(|c: char| !c.is_alphanumeric());
        let word = word
            .strip_suffix("'s")
            .or_else(|| word.strip_suffix("’s"))
            .unwrap_or(word);
        let capital = word.chars().next().is_some_and(char::is_uppercase);
        let opened = token.starts_with(['"', '“', '(', '*', '#', '-']);
        if capital && !begins && !opened && word.chars().count() > 2 {
            let parts = words(word);
            let known = parts.iter().all(|p| {
                source.iter().any(|s| {
                    s == p
                        || (p.len() > 4 && s.starts_with(&p[..p.floor_char_boundary(p.len() - 1)]))
                })
            });
            if !known {
                missing.push(word.to_owned());
            }
        }
        begins = token.ends_with(['.', '!', '?', ':', ';', '"', '”', '*']) || token == "-";
    }
    missing.dedup();
    missing
}

/// Quotations of at least three words that do not stand in the source.
fn missing_quotes(source: &str, answer: &str) -> Vec<String> {
    let mut missing = Vec::new();
    for (open, close) in [('"', '"'), ('“', '”')] {
        let mut rest = answer;
        while let Some((_, after)) = rest.split_once(open) {
            let Some((quote, next)) = after.split_once(close) else {
                break;
            };
            let inside = plain(quote);
            let inside = inside.trim_end_matches(['.', ',', '!', '?']);
            if inside.split(' ').count() >= 3 && !source.contains(inside) {
                missing.push(quote.to_owned());
            }
            rest = next;
        }
    }
    missing
}
