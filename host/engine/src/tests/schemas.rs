//! Answers to generated JSON schemas, judged by a validator that shares nothing with the engine.
//!
//! The tiny model's weights are random, so nothing but the constraint makes its answers JSON.

use serde_json::{Map, Value, json};

use super::tiny::{self, Answer};
use crate::constraint::{Constraints, Grammar};
use crate::events::FinishReason;
use crate::random::SplitMix;
use crate::{EngineConfig, GenerationRequest, Prompt, SamplingParams};

const SCHEMAS: usize = 200;
/// Enough for most answers, since every string, number and list is bounded or ends by chance.
const MAX_NEW_TOKENS: usize = 300;

/// Writes schemas that this engine promises to keep to, of every kind it knows.
struct SchemaWriter {
    random: SplitMix,
    definitions: Map<String, Value>,
}

impl SchemaWriter {
    fn one_of<T: Copy>(&mut self, options: &[T]) -> T {
        options[self.random.below(options.len())]
    }

    fn schema(&mut self, depth: usize) -> Value {
        let leaves = 8;
        let kinds = if depth == 0 { leaves } else { leaves + 6 };
        match self.random.below(kinds) {
            0 => json!({"type": "boolean"}),
            1 => json!({"type": "null"}),
            2 => self.integer(),
            3 => self.number(),
            4 => self.string(),
            5 => self.pattern(),
            6 => json!({"const": self.literal()}),
            7 => json!({"enum": [self.literal(), self.literal(), self.literal()]}),
            8 => self.array(depth),
            9 | 10 => self.object(depth),
            11 => json!({"anyOf": [self.schema(depth - 1), self.schema(depth - 1)]}),
            12 => self.exclusive(depth),
            _ => self.reference(depth),
        }
    }

    fn literal(&mut self) -> Value {
        self.one_of(&[
            &json!("the"),
            &json!("a \"b\" \\ c"),
            &json!("日本 🦀"),
            &json!(""),
            &json!(-17),
            &json!(2.5),
            &json!(true),
            &json!(null),
            &json!([1, "in"]),
            &json!({"k": [null]}),
        ])
        .clone()
    }

    fn integer(&mut self) -> Value {
        let low = self.random.below(2_000) as i64 - 1_000;
        let high = low + self.random.below(300) as i64;
        match self.random.below(3) {
            0 => json!({"type": "integer", "minimum": low, "maximum": high}),
            1 => json!({"type": "integer", "exclusiveMinimum": low, "maximum": high + 2}),
            _ => {
                json!({"type": "integer", "multipleOf": self.one_of(&[2, 5]), "minimum": 0, "maximum": 5_000})
            }
        }
    }

    fn number(&mut self) -> Value {
        let low = self.random.below(200) as f64 / 4.0 - 20.0;
        json!({"type": "number", "minimum": low, "maximum": low + 1.5 + self.random.below(40) as f64})
    }

    fn string(&mut self) -> Value {
        let least = self.random.below(4);
        json!({"type": "string", "minLength": least, "maxLength": least + self.random.below(8)})
    }

    fn pattern(&mut self) -> Value {
        let pattern = self.one_of(&[
            "^[a-z]{2,5}$",
            "^\\d{3}-\\d{2}$",
            "^(foo|bar|the){1,3}$",
            "^[A-Z][a-z]{0,6}( [A-Z][a-z]{0,6}){0,2}$",
            "^(é|🦀|\"){1,3}$",
            "x{2}",
        ]);
        match pattern {
            "x{2}" => json!({"type": "string", "pattern": pattern, "maxLength": 6}),
            _ => json!({"type": "string", "pattern": pattern}),
        }
    }

    fn array(&mut self, depth: usize) -> Value {
        let least = self.random.below(3);
        let mut array =
            json!({"type": "array", "items": self.schema(depth - 1), "minItems": least});
        array["maxItems"] = json!(least + self.random.below(3));
        if self.random.below(3) == 0 {
            array["prefixItems"] = json!([self.schema(depth - 1)]);
        }
        array
    }

    fn object(&mut self, depth: usize) -> Value {
        let names = ["the name", "in", "an \"id\" größe", "x"];
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for name in names.iter().take(1 + self.random.below(names.len())) {
            properties.insert((*name).to_owned(), self.schema(depth - 1));
            if self.random.below(3) > 0 {
                required.push(*name);
            }
        }
        let additional = match self.random.below(4) {
            0 => json!({"type": "integer", "minimum": 0, "maximum": 9}),
            _ => json!(false),
        };
        json!({
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": additional,
        })
    }

    /// Branches of different types, as `oneOf` wants them.
    fn exclusive(&mut self, depth: usize) -> Value {
        let list = json!({"type": "array", "items": self.schema(depth - 1), "maxItems": 2});
        match self.random.below(3) {
            0 => json!({"oneOf": [self.integer(), self.string()]}),
            1 => json!({"oneOf": [self.object(depth), list, {"type": "null"}]}),
            _ => json!({"type": ["string", "null"], "maxLength": 5}),
        }
    }

    /// A definition: a new one, or a list that refers to itself.
    fn reference(&mut self, depth: usize) -> Value {
        let name = format!("d{}", self.definitions.len());
        let pointer = format!("#/$defs/{name}");
        // Its place is taken before anything inside it takes one.
        self.definitions.insert(name.clone(), Value::Null);
        let definition = match self.random.below(3) {
            0 => {
                let next = json!({"anyOf": [{"type": "null"}, {"$ref": pointer}]});
                let properties = json!({"value": self.schema(0), "next": next});
                json!({"type": "object", "properties": properties, "required": ["value"], "additionalProperties": false})
            }
            _ => self.schema(depth - 1),
        };
        self.definitions.insert(name, definition);
        json!({"$ref": pointer})
    }
}

fn schema(seed: u64) -> Value {
    let mut writer = SchemaWriter {
        random: SplitMix::new(seed),
        definitions: Map::new(),
    };
    // Most people ask for objects.
    let mut schema = match seed % 4 {
        0 => writer.schema(3),
        _ => writer.object(2),
    };
    if !writer.definitions.is_empty() {
        schema["$defs"] = Value::Object(writer.definitions);
    }
    schema
}

fn request(seed: u64, temperature: f32) -> GenerationRequest {
    GenerationRequest {
        prompt: Prompt::Text(format!("the answer in an hour, {seed}:")),
        params: SamplingParams {
            temperature,
            seed: Some(seed),
            ..SamplingParams::default()
        },
        max_new_tokens: Some(MAX_NEW_TOKENS),
        constraint: Some(Grammar::JsonSchema(schema(seed))),
        ..GenerationRequest::new("")
    }
}

/// The answers of one engine to all schemas, at temperatures 0 and 1, and how many tokens of drafts
/// they contain.
fn answers(
    max_draft_tokens: Option<usize>,
    change: impl FnOnce(&mut EngineConfig),
) -> (Vec<(u64, f32, Answer)>, u64) {
    let engine = tiny::engine(|config| {
        config.max_waiting = 2 * SCHEMAS;
        change(config);
    });
    let handle = engine.handle();
    let asked: Vec<_> = (0..SCHEMAS as u64)
        .flat_map(|seed| [(seed, 0.0), (seed, 1.0)])
        .map(|(seed, temperature)| {
            let request = GenerationRequest {
                max_draft_tokens,
                ..request(seed, temperature)
            };
            let (sender, events) = std::sync::mpsc::channel();
            let sink = Box::new(tiny::Collect(sender));
            let submitted = handle.submit(request, sink);
            submitted.unwrap_or_else(|e| panic!("schema {seed}: {}: {e}", schema(seed)));
            (seed, temperature, events)
        })
        .collect();
    let answers = asked
        .into_iter()
        .map(|(seed, t, events)| (seed, t, tiny::wait(events)))
        .collect();
    let stats = handle.stats();
    (answers, stats.spec_decode_num_accepted_tokens_total)
}

/// Every answer that came to its end is valid; every other one is the beginning of one.
fn check(answers: &[(u64, f32, Answer)]) {
    let tokenizer = tiny::tokenizer();
    let constraints = Constraints::new(&tokenizer).expect("the tiny vocabulary will do");
    let mut finished = 0;
    for (seed, temperature, answer) in answers {
        let schema = schema(*seed);
        let story = format!("schema {seed} at {temperature}: {schema}\n{}", answer.text);
        if answer.reason == FinishReason::Stop {
            finished += 1;
            let value: Value =
                serde_json::from_str(&answer.text).unwrap_or_else(|e| panic!("{e}: {story}"));
            let validator =
                jsonschema::validator_for(&schema).unwrap_or_else(|e| panic!("{e}: {story}"));
            if let Err(error) = validator.validate(&value) {
                panic!("{error}: {story}");
            }
        } else {
            assert_eq!(answer.tokens.len(), MAX_NEW_TOKENS, "{story}");
        }
        let mut place = constraints
            .compile(&Grammar::JsonSchema(schema))
            .expect(&story);
        for (token, ..) in &answer.tokens {
            place
                .accept(*token)
                .unwrap_or_else(|e| panic!("{e}: {story}"));
        }
        assert_eq!(
            place.is_complete(),
            answer.reason == FinishReason::Stop,
            "{story}"
        );
    }
    let share = finished as f64 / answers.len() as f64;
    assert!(
        share > 0.6,
        "only {finished} of {} answers came to their end",
        answers.len()
    );
}

#[test]
fn answers_to_generated_schemas_are_valid_with_and_without_speculation() {
    let (plain, guessed) = answers(Some(0), |_| ());
    assert_eq!(guessed, 0, "no draft was wanted");
    check(&plain);
    let (forced, guessed) = answers(None, |config| config.speculation.drafters.clear());
    assert!(guessed > 0, "what a grammar forces needs no drafter");
    let (drafted, _) = answers(None, |_| ());
    for ((plain, forced), drafted) in plain.iter().zip(&forced).zip(&drafted) {
        assert_eq!(
            (plain, plain),
            (forced, drafted),
            "a draft changed the answer to schema {}",
            plain.0
        );
    }
}
