//! The checks. Each looks at one thing and says what it found, also when all is well.

use homeostat_sdk::*;

use crate::text::{cut, plain, whole_sentences, words};
use crate::{grounded, json};

/// Attribute of an answer, in nats: how unsure its tier was where to begin. Other servers do not
/// tell it of theirs.
const FIRST_TOKEN_ENTROPY: &str = "homeostat.first-token-entropy";

/// One check with its weight.
pub(crate) struct Check {
    pub(crate) finding: Finding,
    /// What a failure takes off the confidence, in log-odds.
    pub(crate) shift: f32,
    /// Whether the answer is unusable when it fails.
    pub(crate) hard: bool,
}

/// Log-odds that a failed check takes off. Arithmetic is measured on recorded answers of
/// Mixtral-8x7B to GSM8K: of 480 whose equations all hold 71.3 % are right, of 29 with a
/// wrong equation 10.3 %. On the part held out: 68.7 % of 99, none of 4. The others are
/// set by hand.
const ARITHMETIC: f32 = -3.0;
const UNGROUNDED: f32 = -1.5;
const REFUSAL: f32 = -2.0;
const TRUNCATED: f32 = -1.5;
const ECHO: f32 = -3.0;
const LOOP: f32 = -4.0;

fn check(name: &str, passed: bool, detail: impl Into<String>, shift: f32) -> Check {
    Check {
        finding: Finding {
            check: name.to_owned(),
            passed,
            detail: detail.into(),
        },
        shift,
        hard: false,
    }
}

/// Every check that applies to this answer.
pub(crate) fn all(request: &Request, answer: &Answer) -> Vec<Check> {
    let mut checks = vec![not_empty(answer)];
    if answer.text.trim().is_empty() {
        return checks;
    }
    checks.extend(well_formed(request, answer));
    checks.extend(arithmetic_holds(&answer.text));
    checks.extend(stays_with_source(request, &answer.text));
    checks.push(repetition(answer));
    checks.push(refusal(answer));
    checks.push(complete(request, answer));
    checks.push(no_echo(request, answer));
    checks
}

/// The checks that an answer can already have failed before its end. A number, a name or a
/// quotation may still become another one, so those are looked for in whole sentences only.
pub(crate) fn so_far(request: &Request, answer: &Answer) -> Vec<Check> {
    let said = whole_sentences(&answer.text);
    let mut checks = vec![repetition(answer), refusal(answer)];
    checks.extend(arithmetic_holds(said));
    checks.extend(stays_with_source(request, said));
    checks
}

/// Whether the tier knew where to begin. `None` where the operator has set no bound or the tier
/// does not tell. It shifts nothing: no recorded answer holds an entropy, so no weight of it
/// could be fitted, and what it means differs with the model. Above the bound a step is left.
pub(crate) fn beginning(answer: &Answer, most: Option<f64>) -> Option<Check> {
    let most = most?;
    let mut told = answer.attributes.iter();
    let (_, Value::Number(nats)) = told.find(|(key, _)| key == FIRST_TOKEN_ENTROPY)? else {
        return None;
    };
    let detail = format!("the first token was chosen with {nats:.2} nats of doubt, at most {most}");
    Some(check("first-token", *nats <= most, detail, 0.0))
}

fn not_empty(answer: &Answer) -> Check {
    let passed = !answer.text.trim().is_empty();
    let detail = if passed {
        format!("{} bytes", answer.text.len())
    } else {
        "the answer is empty".to_owned()
    };
    Check {
        hard: true,
        ..check("not-empty", passed, detail, -6.0)
    }
}

fn well_formed(request: &Request, answer: &Answer) -> Option<Check> {
    if request.response_format == ResponseFormat::Text {
        return None;
    }
    let result = json::check(&answer.text, request.response_format);
    let detail = match &result {
        Ok(()) => "it parses".to_owned(),
        Err(e) => format!("not the JSON that was asked for: {e}"),
    };
    Some(Check {
        hard: true,
        ..check("json", result.is_ok(), detail, -6.0)
    })
}

fn arithmetic_holds(text: &str) -> Option<Check> {
    let claims = arithmetic::claims(text);
    let wrong = claims.iter().find(|c| !c.holds);
    let detail = match wrong {
        Some(c) => format!(
            "{} is {}, not {}",
            cut(&c.expression, 80),
            c.actual,
            c.stated
        ),
        None => format!("{} equations hold", claims.len()),
    };
    (!claims.is_empty()).then(|| check("arithmetic", wrong.is_none(), detail, ARITHMETIC))
}

fn stays_with_source(request: &Request, text: &str) -> Option<Check> {
    let invented = grounded::invented(request, text)?;
    let mut found = Vec::new();
    for (what, items) in [
        ("number", &invented.numbers),
        ("name", &invented.names),
        ("quotation", &invented.quotes),
    ] {
        if let Some(first) = items.first() {
            found.push(format!("{what} {:?}", cut(first, 60)));
        }
    }
    // One unknown name may be a word that the text only circumscribes.
    let passed =
        invented.numbers.is_empty() && invented.quotes.is_empty() && invented.names.len() < 2;
    let detail = if found.is_empty() {
        "all numbers, names and quotations stand in the text".to_owned()
    } else {
        format!("not in the text: {}", found.join(", "))
    };
    Some(check("grounded", passed, detail, UNGROUNDED))
}

/// The end of the answer says the same thing again and again.
fn repetition(answer: &Answer) -> Check {
    // The last 400 words: a loop, once begun, does not end.
    let words = words(&answer.text);
    let tail = &words[words.len().saturating_sub(400)..];
    for period in 1..=60 {
        let same = tail
            .iter()
            .rev()
            .zip(tail.iter().rev().skip(period))
            .take_while(|(a, b)| a == b)
            .count();
        let times = same / period + 1;
        // Short things are said thrice in earnest ("no, no, no"); a counted list is no loop
        // since its numbers differ.
        if times >= 3 && same + period >= 18 {
            let phrase = tail[tail.len() - period..].join(" ");
            let detail = format!("{:?} stands {times} times at the end", cut(&phrase, 60));
            return check("repetition", false, detail, LOOP);
        }
    }
    check("repetition", true, "no loop", LOOP)
}

const REFUSALS: [&str; 16] = [
    "i'm sorry, but i can",
    "i am sorry, but i can",
    "i'm sorry, i can",
    "i cannot help",
    "i can't help",
    "i cannot assist",
    "i can't assist",
    "i cannot provide",
    "i can't provide",
    "i'm unable to",
    "i am unable to",
    "i'm not able to",
    "i am not able to",
    "as an ai",
    "i don't have access",
    "i do not have access",
];

/// The answer begins by refusing. Later in the text the same words are often a quotation.
fn refusal(answer: &Answer) -> Check {
    let beginning: String = answer.text.chars().take(160).collect();
    let beginning = plain(&beginning).replace('’', "'");
    match REFUSALS.iter().find(|r| beginning.contains(*r)) {
        Some(words) => check(
            "refusal",
            false,
            format!("it begins with {words:?}"),
            REFUSAL,
        ),
        None => check("refusal", true, "none", REFUSAL),
    }
}

/// Cut off by a limit that the client did not set.
fn complete(request: &Request, answer: &Answer) -> Check {
    let ends = answer
        .text
        .trim_end()
        .ends_with(['.', '!', '?', '"', '”', ')', '}', ']', '`', '。']);
    let cut_off = answer.finish == Finish::Length && !ends && request.max_tokens.is_none();
    let detail = match (cut_off, answer.finish) {
        (true, _) => "cut off in the middle of a sentence",
        (false, Finish::Length) => "ended by a length limit",
        (false, _) => "ended by itself",
    };
    check("complete", !cut_off, detail, TRUNCATED)
}

/// The question again instead of an answer.
fn no_echo(request: &Request, answer: &Answer) -> Check {
    let question = words(request.question());
    let said = words(&answer.text);
    let echo = question.len() >= 4
        && said.starts_with(&question)
        && said.len() < question.len() + question.len() / 4 + 2;
    let detail = if echo {
        "the answer repeats the question"
    } else {
        "none"
    };
    check("echo", !echo, detail, ECHO)
}
