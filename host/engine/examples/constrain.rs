//! What does a constraint cost? Times the vocabulary's preparation, the compilation of typical
//! grammars and the mask at each token of an answer.
//!
//! `cargo run --release -p homeostat-engine --example constrain -- MODEL.gguf`

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use homeostat_engine::{Constraints, Grammar, ModelSource, Tokenizer};
use serde_json::{Value, json};

const ROUNDS: usize = 30;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("which model file?")?;
    let tokenizer = Arc::new(Tokenizer::read(&ModelSource::open(Path::new(&path))?)?);
    let begun = Instant::now();
    let constraints = Constraints::new(&tokenizer)?;
    println!(
        "{} tokens, prepared in {:?}",
        tokenizer.vocabulary(),
        begun.elapsed()
    );
    println!("| grammar | tokens | compile p50 | p99 | mask p50 | p99 | longest | forced |");
    println!("|---|---|---|---|---|---|---|---|");
    for (name, grammar, answer) in schemas().into_iter().chain(expressions()) {
        let tokens = tokenizer.encode(&answer, false);
        let (mut compiling, mut masking, mut forced) = (Vec::new(), Vec::new(), 0);
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            let mut constraint = constraints.compile(&grammar)?;
            compiling.push(begun.elapsed());
            forced = 0;
            for token in &tokens {
                let begun = Instant::now();
                let only = constraint.mask()?.count() == 1;
                masking.push(begun.elapsed());
                forced += usize::from(only);
                constraint.accept(*token)?;
            }
        }
        let [compile, compile_99, _] = spread(compiling);
        let [mask, mask_99, longest] = spread(masking);
        println!(
            "| {name} | {} | {compile:.0?} | {compile_99:.0?} | {mask:.0?} | {mask_99:.0?} | {longest:.0?} | {forced} |",
            tokens.len()
        );
    }
    Ok(())
}

/// Median, 99th percentile and longest.
fn spread(mut times: Vec<Duration>) -> [Duration; 3] {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    [at(0.5), at(0.99), at(1.0)]
}

/// Name, grammar, and an answer that it accepts.
fn schemas() -> Vec<(&'static str, Grammar, String)> {
    let text = json!({"type": "string"});
    let person = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "job": {"enum": ["baker", "doctor", "pilot"]},
            "email": {"type": "string", "pattern": "^[a-z.]+@[a-z]+\\.(com|org)$"},
            "tags": {"type": "array", "items": text, "maxItems": 5},
        },
        "required": ["name", "age", "job"],
        "additionalProperties": false,
    });
    let ann = r#"{"name": "Ann Baker", "age": 41, "job": "pilot", "email": "ann.b@mail.org", "tags": ["kind", "tall"]}"#;
    let call = |name: &str, arguments: Value| {
        let properties = json!({"name": {"const": name}, "arguments": arguments});
        json!({"type": "object", "properties": properties, "required": ["name", "arguments"], "additionalProperties": false})
    };
    let place = json!({"type": "object", "properties": {"city": text, "unit": {"enum": ["C", "F"]}}, "required": ["city"], "additionalProperties": false});
    let find = json!({"type": "object", "properties": {"query": text, "limit": {"type": "integer"}}, "required": ["query"], "additionalProperties": false});
    let calls = json!({"anyOf": [call("get_weather", place), call("search", find)]});
    let wide: serde_json::Map<String, Value> = (0..100)
        .map(|i| (format!("field_{i}"), json!({"type": ["string", "null"]})))
        .collect();
    let wide = json!({"type": "object", "properties": wide, "additionalProperties": false});
    let entries: Vec<String> = (0..100)
        .step_by(5)
        .map(|i| format!("\"field_{i}\": \"value {i}\""))
        .collect();
    let free =
        r#"{"title": "A walk", "when": {"day": 3, "month": "May"}, "steps": [1.5, 2, true, null]}"#;
    let schema = Grammar::JsonSchema;
    vec![
        ("a person", schema(person.clone()), ann.into()),
        (
            "a list of persons",
            schema(json!({"type": "array", "items": person})),
            format!("[{}]", [ann; 4].join(", ")),
        ),
        (
            "a call of one of two tools",
            schema(calls),
            r#"{"name": "get_weather", "arguments": {"city": "Paris", "unit": "C"}}"#.into(),
        ),
        (
            "100 optional fields",
            schema(wide),
            format!("{{{}}}", entries.join(", ")),
        ),
        ("any JSON object", Grammar::JsonObject, free.into()),
    ]
}

/// Those that are no schemas.
fn expressions() -> Vec<(&'static str, Grammar, String)> {
    vec![
        (
            "a date, by expression",
            Grammar::Regex(r"\d{4}-(0[1-9]|1[0-2])-[0-3]\d".into()),
            "2024-11-30".into(),
        ),
        (
            "one of three words",
            Grammar::Choice(
                ["positive", "negative", "neutral"]
                    .map(str::to_owned)
                    .to_vec(),
            ),
            "neutral".into(),
        ),
        (
            "a sum, by grammar",
            Grammar::Lark(
                "start: term (\" + \" term)*\nterm: /[0-9]+/ | \"(\" start \")\"\n".into(),
            ),
            "12 + (3 + 44) + 5 + (6 + (7 + 8))".into(),
        ),
    ]
}
