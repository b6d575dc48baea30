//! Questions that need no model: arithmetic, units, dates.
//!
//! A calculator is right where a small model guesses, and it costs nothing. But it may
//! answer only when the *whole* question is one it understands: "write an essay about
//! 2+2" is not arithmetic, "what is 9/11?" is not a division, and an application whose
//! system prompt asks for a role or a form gets what it asked for, from a model. When in
//! doubt it is silent; the model then answers as if this module did not exist.

mod dates;
mod units;

use homeostat_sdk::*;

/// Longest question looked at, in bytes; no calculation of a person is longer.
const QUESTION_BYTES_MAX: usize = 300;

/// The answer, if the whole request is one of those questions.
pub fn answer(request: &Request) -> Option<DirectAnswer> {
    if !is_plain(request) {
        return None;
    }
    let question = request.question();
    if question.len() > QUESTION_BYTES_MAX {
        return None;
    }
    let (text, asks) = strip(question);
    let found = |method: &str, text: String| {
        Some(DirectAnswer {
            text,
            method: method.to_owned(),
        })
    };
    if let Some(text) = arithmetic_answer(text, asks) {
        return found("arithmetic", text);
    }
    let text = text.to_lowercase();
    if let Some(text) = units::answer(&text) {
        return found("units", text);
    }
    dates::answer(&text).and_then(|text| found("dates", text))
}

/// Chat, free text, no particular model asked for, nothing cut, and no instructions
/// beyond the customary ones.
fn is_plain(request: &Request) -> bool {
    let last_is_user = request
        .messages
        .last()
        .is_some_and(|m| m.role == Role::User);
    request.endpoint == Endpoint::Chat
        && request.response_format == ResponseFormat::Text
        && matches!(request.model.as_str(), "" | "auto")
        && request.cut_bytes == 0
        && last_is_user
        && request.messages.iter().all(|m| match m.role {
            Role::System => is_customary(&m.content),
            Role::Tool => false,
            Role::User | Role::Assistant => true,
        })
}

fn is_customary(system: &str) -> bool {
    let text = system.trim().trim_end_matches('.').to_lowercase();
    [
        "you are a helpful assistant",
        "you are a helpful ai assistant",
        "",
    ]
    .contains(&text.as_str())
}

/// How clearly a calculation is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Asks {
    /// The bare expression.
    Bare,
    /// "What is …?", which may also ask for a meaning.
    What,
    /// "Calculate …", "… = ?".
    Clearly,
}

const PREFIXES: [(&str, Asks); 24] = [
    ("please", Asks::Bare),
    ("can you", Asks::Bare),
    ("could you", Asks::Bare),
    ("hi,", Asks::Bare),
    ("hello,", Asks::Bare),
    ("tell me", Asks::Bare),
    ("what is the result of", Asks::Clearly),
    ("what is the value of", Asks::Clearly),
    ("what's the result of", Asks::Clearly),
    ("the result of", Asks::Clearly),
    ("the value of", Asks::Clearly),
    ("how much is", Asks::Clearly),
    ("how much are", Asks::Clearly),
    ("calculate", Asks::Clearly),
    ("compute", Asks::Clearly),
    ("evaluate", Asks::Clearly),
    ("what does", Asks::What),
    ("what is", Asks::What),
    ("what are", Asks::What),
    ("what's", Asks::What),
    ("whats", Asks::What),
    ("solve", Asks::Clearly),
    ("the", Asks::Bare),
    (":", Asks::Bare),
];

const SUFFIXES: [(&str, Asks); 8] = [
    ("please", Asks::Bare),
    ("equal to", Asks::Clearly),
    ("equals", Asks::Clearly),
    ("equal", Asks::Clearly),
    ("=", Asks::Clearly),
    ("?", Asks::Bare),
    ("!", Asks::Bare),
    (".", Asks::Bare),
];

/// The question without the words around it.
fn strip(question: &str) -> (&str, Asks) {
    let mut text = question.trim();
    let mut asks = Asks::Bare;
    let mut note = |kind: Asks| {
        if kind > asks {
            asks = kind;
        }
    };
    loop {
        let before = text.len();
        for (prefix, kind) in PREFIXES {
            let Some(start) = text.get(..prefix.len()) else {
                continue;
            };
            let rest = &text[prefix.len()..];
            let whole = !rest.starts_with(|c: char| c.is_alphanumeric());
            if start.eq_ignore_ascii_case(prefix) && whole {
                note(kind);
                text = rest.trim_start();
            }
        }
        for (suffix, kind) in SUFFIXES {
            let at = text.len().checked_sub(suffix.len());
            let Some((rest, end)) = at.and_then(|at| text.split_at_checked(at)) else {
                continue;
            };
            let whole = !suffix.starts_with(char::is_alphabetic)
                || rest.ends_with(|c: char| !c.is_alphanumeric());
            if end.eq_ignore_ascii_case(suffix) && whole {
                note(kind);
                text = rest.trim_end();
            }
        }
        if text.len() == before {
            return (text, asks);
        }
    }
}

fn arithmetic_answer(text: &str, asks: Asks) -> Option<String> {
    let calculates = text.chars().any(|c| {
        !c.is_ascii_digit() && !matches!(c, '.' | ',' | ' ' | '$' | '€' | '£' | '(' | ')')
    });
    if !calculates || is_name_like(text, asks) {
        return None;
    }
    let value = arithmetic::evaluate(text).ok()?;
    Some(shown(value))
}

/// Dates, phone numbers, fractions and names such as 9/11 look like calculations: digits
/// joined by `-` or `/` without blanks. They are calculated only when that is clearly
/// asked for, and a date or phone number not even then.
fn is_name_like(text: &str, asks: Asks) -> bool {
    let joined = text
        .chars()
        .all(|c| c.is_ascii_digit() || matches!(c, '-' | '/'));
    let joints = text.chars().filter(|c| matches!(c, '-' | '/')).count();
    joined && (asks != Asks::Clearly || joints > 1)
}

/// All digits where they are few, else six significant ones, and then it says so.
fn shown(value: arithmetic::Number) -> String {
    let text = value.to_string();
    if value.is_shown_exactly() {
        return text;
    }
    let v = value.to_f64();
    let magnitude = if v == 0.0 {
        0
    } else {
        v.abs().log10().floor() as i32
    };
    // Never more decimals than the exact text has, never fewer than none.
    let decimals = (9 - magnitude).clamp(0, 10) as usize;
    let rounded = format!("{v:.decimals$}");
    let rounded = if rounded.contains('.') {
        rounded.trim_end_matches('0').trim_end_matches('.')
    } else {
        &rounded
    };
    if matches!(rounded, "0" | "-0") {
        return format!("about {v:e}");
    }
    format!("about {rounded}")
}
