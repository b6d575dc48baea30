//! What counts in a question and its worked answer; in step with `models/train/fit_answers.py`.

use super::read::{
    Step, Token, asked, breaks_off, last_sentence, offers_choices, read, steps, words,
};
use super::weights::COUNT;

/// Numbers of a question, as many as any that was fitted on has; more is a table or a document, and
/// most of its numbers are not asked about.
const NUMBERS_MAX: usize = 13;
/// Words of a question, likewise.
const WORDS_MAX: usize = 125;

/// Words by which a question asks for a number.
const ASKS: [&str; 8] = [
    "how",
    "what",
    "what's",
    "what’s",
    "calculate",
    "compute",
    "determine",
    "find",
];

/// Numbers in words, as far as questions have them; of a half and a third what one divides by.
const NUMERALS: [(&str, f64); 29] = [
    ("one", 1.0),
    ("two", 2.0),
    ("three", 3.0),
    ("four", 4.0),
    ("five", 5.0),
    ("six", 6.0),
    ("seven", 7.0),
    ("eight", 8.0),
    ("nine", 9.0),
    ("ten", 10.0),
    ("eleven", 11.0),
    ("twelve", 12.0),
    ("fifteen", 15.0),
    ("twenty", 20.0),
    ("thirty", 30.0),
    ("forty", 40.0),
    ("fifty", 50.0),
    ("sixty", 60.0),
    ("hundred", 100.0),
    ("thousand", 1000.0),
    ("dozen", 12.0),
    ("twice", 2.0),
    ("double", 2.0),
    ("couple", 2.0),
    ("half", 2.0),
    ("triple", 3.0),
    ("thrice", 3.0),
    ("third", 3.0),
    ("quarter", 4.0),
];

const REASONS: [&str; 2] = ["since", "because"];
const TURNS: [&str; 11] = [
    "however",
    "but",
    "although",
    "though",
    "actually",
    "wait",
    "sorry",
    "apologize",
    "mistake",
    "instead",
    "incorrect",
];

/// The features, in the order of their weights; `None` where the head was not fitted: the question
/// does not ask for a number or has fewer than two, the answer computes nothing, or there is code.
pub(super) fn of(question: &str, answer: &str) -> Option<[f64; COUNT]> {
    if question.contains('`') || answer.contains('`') {
        return None;
    }
    let question = read(question)?;
    let asking = asked(&question);
    let asks = words(asking).any(|word| is_in(word, &ASKS));
    let numbers = || question.iter().filter_map(Token::number);
    let is_long = numbers().count() > NUMBERS_MAX || words(&question).count() > WORDS_MAX;
    if !asks || is_long || offers_choices(&question) {
        return None;
    }
    let answer = read(answer)?;
    let steps = steps(&answer);
    if steps.is_empty() {
        return None;
    }
    let digits = distinct(numbers());
    let numerals = words(&question).filter_map(numeral);
    let known = distinct(digits.iter().copied().chain(numerals));
    if known.len() < 2 {
        return None;
    }
    let said: Vec<f64> = answer.iter().filter_map(Token::number).collect();
    // A share may be written in hundredths.
    let is_unused = |n: &&f64| !among(**n, &said) && !among(**n / 100.0, &said);
    let unused = digits.iter().filter(is_unused).count();
    let end = end(&answer, &steps);
    let is_end = |value: f64| end.is_some_and(|end| same(value.abs(), end));
    let results = steps.iter().filter_map(|step| step.result);
    let broken = results.filter(|r| is_fraction(*r) && !is_end(*r)).count();
    let said_of = |list: &[&str]| words(&answer).filter(|word| is_in(word, list)).count();
    Some([
        log(words(&question).count()),
        log(words(asking).count()),
        log(known.len()),
        unused as f64 / digits.len().max(1) as f64,
        f64::from(u8::from(breaks_off(&answer))),
        log(unused_results(&steps, is_end)),
        log(said_of(&REASONS)),
        log(said_of(&TURNS)),
        log(broken),
    ])
}

fn log(count: usize) -> f64 {
    (count as f64).ln_1p()
}

fn is_in(word: &str, list: &[&str]) -> bool {
    list.iter().any(|listed| listed.eq_ignore_ascii_case(word))
}

fn numeral(word: &str) -> Option<f64> {
    let mut all = NUMERALS.iter();
    let found = all.find(|(written, _)| written.eq_ignore_ascii_case(word));
    found.map(|(_, value)| *value)
}

/// Roundings forgiven.
fn same(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(b.abs()).max(1.0)
}

fn among(value: f64, values: &[f64]) -> bool {
    values.iter().any(|other| same(value, *other))
}

fn is_fraction(value: f64) -> bool {
    !same(value, (value + 0.5).floor())
}

fn distinct(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut found: Vec<f64> = Vec::new();
    for number in numbers {
        if !among(number, &found) {
            found.push(number);
        }
    }
    found
}

/// The number that the answer ends with: of its last sentence the last one that a step gave, or
/// else the last one.
fn end(answer: &[Token<'_>], steps: &[Step]) -> Option<f64> {
    let sentence = last_sentence(answer);
    let numbers: Vec<f64> = sentence.iter().filter_map(Token::number).collect();
    let results: Vec<f64> = steps.iter().filter_map(|step| step.result).collect();
    let given = numbers.iter().rev().find(|n| among(**n, &results));
    given.or(numbers.last()).copied()
}

/// Results that neither a later step nor the end uses.
fn unused_results(steps: &[Step], is_end: impl Fn(f64) -> bool) -> usize {
    let Some((_, earlier)) = steps.split_last() else {
        return 0;
    };
    let is_unused = |at: usize, result: f64| {
        let mut later = steps[at + 1..].iter();
        !is_end(result) && !later.any(|step| among(result.abs(), &step.operands))
    };
    let results = earlier.iter().map(|step| step.result).enumerate();
    results
        .filter(|(at, result)| result.is_some_and(|r| is_unused(*at, r)))
        .count()
}
