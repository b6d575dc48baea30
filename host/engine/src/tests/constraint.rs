//! Constraints by themselves: what a mask holds, what is forced, what is taken back, and grammars
//! that are wrong or mean harm.

use std::sync::Arc;

use serde_json::json;

use super::tiny::{self, END, START};
use super::tokenizers;
use crate::constraint::{Constraint, ConstraintError, Constraints, Grammar};
use crate::random::SplitMix;
use crate::tokenizer::Tokenizer;

struct Workshop {
    tokenizer: Arc<Tokenizer>,
    constraints: Constraints,
}

impl Workshop {
    fn new() -> Self {
        let tokenizer = tiny::tokenizer();
        let constraints = Constraints::new(&tokenizer).expect("the tiny vocabulary will do");
        Self {
            tokenizer,
            constraints,
        }
    }

    fn compile(&self, grammar: &Grammar) -> Constraint {
        self.constraints
            .compile(grammar)
            .unwrap_or_else(|e| panic!("{grammar:?}: {e}"))
    }

    fn refusal(&self, grammar: &Grammar) -> String {
        match self.constraints.compile(grammar) {
            Ok(_) => panic!("{grammar:?} is accepted"),
            Err(error) => error.to_string(),
        }
    }

    fn tokens(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text, false)
    }

    /// The bytes of every token that may come next; the end token as `$`.
    fn next(&self, constraint: &mut Constraint) -> Vec<String> {
        let mask = constraint.mask().expect("a way on");
        let shown = |token| match token {
            END => "$".to_owned(),
            _ => String::from_utf8_lossy(self.tokenizer.bytes(token)).into_owned(),
        };
        mask.iter().map(shown).collect()
    }
}

fn choice(texts: &[&str]) -> Grammar {
    Grammar::Choice(texts.iter().map(|t| (*t).to_owned()).collect())
}

fn regex(expression: &str) -> Grammar {
    Grammar::Regex(expression.to_owned())
}

fn accept(constraint: &mut Constraint, tokens: &[u32]) {
    for token in tokens {
        constraint
            .accept(*token)
            .unwrap_or_else(|e| panic!("token {token}: {e}"));
    }
}

/// A random walk to an end, at most `limit` tokens; the text, and whether it ended.
fn walk(work: &Workshop, grammar: &Grammar, random: &mut SplitMix, limit: usize) -> (String, bool) {
    let mut constraint = work.compile(grammar);
    let mut tokens = Vec::new();
    while tokens.len() < limit {
        let allowed: Vec<u32> = constraint.mask().expect("a way on").iter().collect();
        let token = allowed[random.below(allowed.len())];
        constraint.accept(token).expect("it is in the mask");
        if token == END {
            return (work.tokenizer.decode(&tokens), true);
        }
        tokens.push(token);
    }
    (work.tokenizer.decode(&tokens), false)
}

/// Grammars of every kind, with choices, forced stretches and characters of several bytes.
fn samples() -> Vec<Grammar> {
    vec![
        choice(&["the cat", "the dog", "a\n\"b\"/\\", "日本", "日程", "🦀"]),
        regex(r"[0-9]{2,4}-(the|then|in an)? ?x+"),
        regex("(é|è|ê|🦀){1,3}"),
        Grammar::JsonObject,
        Grammar::JsonSchema(json!({
            "type": "object",
            "properties": {
                "the name": {"type": "string", "maxLength": 4},
                "in": {"enum": ["then", "the", 3, null]},
                "list": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
            },
            "required": ["the name", "in"],
            "additionalProperties": false,
        })),
        Grammar::Lark(
            "start: item (\", \" item)*\nitem: /[a-c]{1,3}/ | \"the \" item \".\"\n".into(),
        ),
    ]
}

#[test]
fn the_end_is_allowed_exactly_where_the_grammar_may_end() {
    let work = Workshop::new();
    let mut constraint = work.compile(&regex("a{2,3}"));
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push((work.next(&mut constraint), constraint.is_complete()));
        accept(&mut constraint, &work.tokens("a"));
    }
    seen.push((work.next(&mut constraint), constraint.is_complete()));
    let expected = [
        (vec!["a"], false),
        (vec!["a"], false),
        (vec!["a", "$"], false),
        (vec!["$"], true),
    ];
    for ((next, complete), (expected, expected_complete)) in seen.iter().zip(expected) {
        assert_eq!(
            (next.as_slice(), *complete),
            (
                expected
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .as_slice(),
                expected_complete
            )
        );
    }
    accept(&mut constraint, &[END]);
    assert!(constraint.is_complete() && constraint.mask().expect("no error").is_empty());
    assert_eq!(constraint.accept(END), Err(ConstraintError::Refused(END)));
}

#[test]
fn random_answers_are_those_that_were_asked_for() {
    let work = Workshop::new();
    let mut random = SplitMix::new(11);
    let texts = [
        "the cat",
        "a cat",
        "the/dog\n\"\\",
        "in",
        "inn",
        "日本",
        "🦀",
    ];
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let (text, ended) = walk(&work, &choice(&texts), &mut random, 40);
        assert!(ended && texts.contains(&text.as_str()), "{text:?}");
        seen.insert(text);
    }
    assert_eq!(
        seen.len(),
        texts.len(),
        "every choice can be made: {seen:?}"
    );
    for _ in 0..200 {
        let (text, ended) = walk(&work, &regex("^[a-c]{3}-(the|x){1,2}$"), &mut random, 40);
        let (letters, rest) = text.split_once('-').expect("a dash");
        assert!(ended && letters.len() == 3 && letters.bytes().all(|b| (b'a'..=b'c').contains(&b)));
        assert!(
            ["the", "x", "thethe", "thex", "xthe", "xx"].contains(&rest),
            "{text:?}"
        );
    }
}

#[test]
fn tokens_may_span_the_parts_of_a_grammar_and_parts_of_characters() {
    let work = Workshop::new();
    let mut constraint = work.compile(&regex("(t|x)(he|ho)"));
    assert_eq!(work.next(&mut constraint), ["t", "x", "th", "the"]);
    let mut constraint = work.compile(&choice(&["日本", "日程"]));
    let bytes = "日本".as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        let mask = constraint.mask().expect("a way on").clone();
        let expected: Vec<u32> = match at {
            3 => vec![u32::from(bytes[3]), u32::from("程".as_bytes()[0])],
            _ => vec![u32::from(*byte)],
        };
        assert!(mask.iter().eq(expected.iter().copied()), "byte {at}");
        accept(&mut constraint, &[u32::from(*byte)]);
    }
    assert!(constraint.is_complete());
}

#[test]
fn a_string_counts_characters_and_not_bytes() {
    let work = Workshop::new();
    let schema = json!({"type": "string", "minLength": 2, "maxLength": 2});
    let mut constraint = work.compile(&Grammar::JsonSchema(schema));
    accept(&mut constraint, &work.tokens("\"🦀é"));
    assert_eq!(work.next(&mut constraint), ["\""]);
    accept(&mut constraint, &work.tokens("\""));
    assert!(constraint.is_complete());
}

#[test]
fn forced_text_is_spelled_as_the_model_spells_it() {
    let work = Workshop::new();
    let long = format!("the cat in an {} the end", "hat ".repeat(2_000));
    for text in ["the cat in the hat", "日本 🦀", &long] {
        let mut constraint = work.compile(&choice(&[text]));
        let mut tokens = Vec::new();
        while !constraint.is_complete() {
            let forced = constraint.forced().expect("no error").to_vec();
            assert!(
                !forced.is_empty(),
                "after {:?}",
                work.tokenizer.decode(&tokens)
            );
            assert_eq!(constraint.valid_prefix_len(&forced), forced.len());
            for token in &forced {
                let only = constraint.mask().expect("a way on");
                assert!(only.count() == 1 && only.contains(*token));
                accept(&mut constraint, &[*token]);
            }
            tokens.extend(forced);
        }
        assert_eq!(tokens, work.tokens(text));
    }
    let mut constraint = work.compile(&regex("(the|in) end"));
    assert!(
        constraint.forced().expect("no error").is_empty(),
        "more than one way on"
    );
}

#[test]
fn a_vocabulary_that_begins_texts_with_a_space_spells_forced_text_without_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = tokenizers::gguf(folder.path(), |_| ());
    let tokenizer = Arc::new(tokenizers::read(&path).expect("a good vocabulary"));
    let constraints = Constraints::new(&tokenizer).expect("it will do");
    for text in ["the hat", "in the the", " an ant", "日本 the\nin"] {
        let compiled = constraints.compile(&choice(&[text]));
        let mut constraint = compiled.unwrap_or_else(|e| panic!("{text:?}: {e}"));
        let mut tokens = Vec::new();
        while !constraint.is_complete() {
            let mask = constraint.mask().expect("a way on");
            assert_eq!(mask.count(), 1, "{text:?} after {tokens:?}");
            let token = mask.iter().next().expect("one token");
            accept(&mut constraint, &[token]);
            tokens.push(token);
        }
        assert_eq!(tokenizer.decode(&tokens), text);
        if let Some(word) = text.strip_prefix(' ') {
            assert_eq!(
                tokens,
                tokenizer.encode(word, false),
                "as behind another word"
            );
        }
    }
}

/// What can be seen of a place.
fn seen(constraint: &mut Constraint) -> (Vec<u32>, Vec<u32>, bool) {
    let mask = constraint.mask().expect("a way on").iter().collect();
    let forced = constraint.forced().expect("no error").to_vec();
    (mask, forced, constraint.is_complete())
}

#[test]
fn a_place_is_a_function_of_the_accepted_tokens() {
    let work = Workshop::new();
    for (number, grammar) in samples().iter().enumerate() {
        for seed in 0..12 {
            let mut random = SplitMix::new(seed);
            let mut constraint = work.compile(grammar);
            let mut tokens: Vec<u32> = Vec::new();
            for step in 0..40 {
                let place = format!("grammar {number}, seed {seed}, step {step}, {tokens:?}");
                match random.below(4) {
                    0 => drop(constraint.forced().expect(&place).len()),
                    1 => {
                        let draft: Vec<u32> = (0..4).map(|_| random.below(264) as u32).collect();
                        constraint.valid_prefix_len(&draft);
                    }
                    _ => {
                        let mask = constraint.mask().expect(&place);
                        let allowed: Vec<u32> = mask.iter().collect();
                        if let Some(token) = allowed.get(random.below(allowed.len())) {
                            constraint.accept(*token).expect(&place);
                            tokens.push(*token);
                        }
                    }
                }
                let mut fresh = work.compile(grammar);
                accept(&mut fresh, &tokens);
                assert_eq!(seen(&mut constraint), seen(&mut fresh), "{place}");
            }
        }
    }
}

#[test]
fn asking_for_one_token_agrees_with_the_mask() {
    let work = Workshop::new();
    let mut random = SplitMix::new(5);
    for grammar in &samples() {
        let mut tokens: Vec<u32> = Vec::new();
        for _ in 0..25 {
            let mut one = work.compile(grammar);
            let mut other = work.compile(grammar);
            accept(&mut one, &tokens);
            accept(&mut other, &tokens);
            let mask = one.mask().expect("a way on").clone();
            for token in 0..270 {
                let allowed = other.allows(token).expect("no error");
                assert_eq!(
                    allowed,
                    mask.contains(token),
                    "{grammar:?} {tokens:?} {token}"
                );
                assert_eq!(other.valid_prefix_len(&[token]), usize::from(allowed));
            }
            let allowed: Vec<u32> = mask.iter().collect();
            match allowed.get(random.below(allowed.len())) {
                Some(token) => tokens.push(*token),
                None => break,
            }
        }
    }
}

/// What follows an `x` is forced for a thousand million characters: more than may be followed.
#[test]
fn a_guess_that_leads_to_where_the_limits_end_harms_only_itself() {
    let work = Workshop::new();
    let bomb = "start: \"a\" start | \"b\" | \"x\" BOMB\nBOMB: /((c{1000}){1000}){1000}/\n";
    let mut constraint = work.compile(&Grammar::Lark(bomb.into()));
    let [a, b, c, x] = ['a', 'b', 'c', 'x'].map(u32::from);
    let mut lost = work.compile(&Grammar::Lark(bomb.into()));
    let mut walked = [x, c, c].into_iter().map(|token| lost.accept(token));
    let error = walked.find_map(Result::err).expect("it ends at a limit");
    assert!(matches!(error, ConstraintError::TooComplex(_)), "{error}");
    // Who goes there for good hears it again, and not that no token is allowed.
    assert_eq!(lost.mask().err(), Some(error));
    assert_eq!(constraint.valid_prefix_len(&[a, a]), 2);
    let valid = constraint.valid_prefix_len(&[x, c, c]);
    assert!(valid < 3, "{valid}");
    accept(&mut constraint, &[a, b]);
    assert!(constraint.is_complete());
}

#[test]
fn a_draft_is_valid_up_to_its_first_wrong_token_or_its_end() {
    let work = Workshop::new();
    let mut constraint = work.compile(&regex("a+b"));
    let before = seen(&mut constraint);
    let token = |c: char| c as u32;
    for (draft, valid) in [
        (vec![], 0),
        (vec![token('b')], 0),
        (vec![token('a'), token('a'), token('c'), token('a')], 2),
        (vec![token('a'), token('b'), END, END], 3),
        (vec![token('a'), END], 1),
        (vec![START], 0),
        (vec![99_999], 0),
    ] {
        assert_eq!(constraint.valid_prefix_len(&draft), valid, "{draft:?}");
        assert_eq!(
            seen(&mut constraint),
            before,
            "the place does not change: {draft:?}"
        );
    }
}

#[test]
fn a_token_that_is_refused_changes_nothing() {
    let work = Workshop::new();
    let mut constraint = work.compile(&regex("ab"));
    for token in [u32::from(b'b'), END, START, 0xFF, u32::MAX] {
        assert_eq!(
            constraint.accept(token),
            Err(ConstraintError::Refused(token))
        );
    }
    accept(&mut constraint, &work.tokens("ab"));
    assert!(constraint.is_complete());
}

#[test]
fn control_tokens_are_no_text() {
    let work = Workshop::new();
    let mut constraint = work.compile(&Grammar::Lark("start: <[*]> \"a\"\n".into()));
    let mask = constraint.mask().expect("a way on");
    assert!(mask.contains(u32::from(b'z')) && !mask.contains(START) && !mask.contains(END));
    let mut constraint = work.compile(&Grammar::Lark(format!("start: \"a\" <[{START}]>\n")));
    accept(&mut constraint, &work.tokens("a"));
    assert_eq!(constraint.mask(), Err(ConstraintError::DeadEnd));
    let refused = work.refusal(&Grammar::Lark(format!("start: <[{START}]>\n")));
    assert_eq!(
        refused,
        "the grammar cannot be used: no answer satisfies it"
    );
    let refused = work.refusal(&Grammar::Lark("start: <|im_start|>\n".into()));
    assert!(
        refused.ends_with("special tokens cannot be part of an answer"),
        "{refused}"
    );
}

#[test]
fn a_refusal_says_what_is_wrong_and_where() {
    let work = Workshop::new();
    let deep = (0..70).fold(json!({"type": "null"}), |inner, _| json!({"items": inner}));
    let inside = |schema: serde_json::Value| json!({"type": "object", "properties": {"a/b": {"items": [{"type": "null"}, schema]}}});
    for (schema, words) in [
        (json!({"not": {}}), "at #: Unimplemented keys: [\"not\"]"),
        (
            inside(json!({"type": "strng"})),
            "at #/properties/a~1b/items/1: Invalid type: strng",
        ),
        (
            inside(json!({"pattern": "("})),
            "at #/properties/a~1b/items/1: ",
        ),
        (
            json!({"$defs": {"x": {"uniqueItems": true}}, "anyOf": [{"type": "null"}, {"$ref": "#/$defs/x"}]}),
            "at #/$defs/x: Unimplemented keys: [\"uniqueItems\"]",
        ),
        (
            json!({"type": "integer", "minimum": 5, "maximum": 3}),
            "(5) is greater than maximum (3)",
        ),
        (
            json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}),
            "at #: oneOf",
        ),
        (json!({"$ref": "http://127.0.0.1/x.json"}), "#/..."),
        (json!({"$ref": "#/$defs/nowhere"}), "nowhere"),
        (json!({"$ref": "#"}), "no answer satisfies it"),
        (
            json!({"x-guidance": {"lenient": true}, "not": {}}),
            "x-guidance is not supported",
        ),
        (json!([]), "it must be an object"),
        (json!(false), "it must be an object"),
        (deep, "nested deeper than 64 levels"),
        (
            json!({"enum": ["x".repeat(200_000)]}),
            "at most 131072 are allowed",
        ),
    ] {
        let refused = work.refusal(&Grammar::JsonSchema(schema.clone()));
        assert!(
            refused.starts_with("the JSON schema cannot be used: "),
            "{refused}"
        );
        assert!(refused.contains(words), "{schema}: {refused}");
    }
    for (grammar, words) in [
        (regex("(abc"), "unclosed group"),
        (regex("(?=a)b"), "look-around"),
        (regex(r"(a)\1"), "backreferences"),
        (regex("^$"), "only an empty answer"),
        (choice(&[]), "0 entries"),
        (choice(&["a", ""]), "entry 1 is empty"),
        (Grammar::Choice(vec!["a".into(); 1_025]), "1025 entries"),
        (Grammar::Lark(String::new()), "no start rule"),
        (
            Grammar::Lark("start: foo\n".into()),
            "at 1(8): unknown name: \"foo\"",
        ),
        (
            Grammar::Lark("start: a \"x\"\na[max_tokens=3]: /[a-z]+/\n".into()),
            "not supported in a rule",
        ),
    ] {
        let refused = work.refusal(&grammar);
        assert!(refused.contains(words), "{grammar:?}: {refused}");
    }
}

#[test]
fn branches_that_exclude_each_other_are_recognised_behind_references() {
    let work = Workshop::new();
    let shape = |kind: &str| {
        let properties = json!({"kind": {"const": kind}, "next": {"$ref": "#/$defs/any"}});
        json!({"type": "object", "properties": properties, "required": ["kind"], "additionalProperties": false})
    };
    let schema = json!({
        "$defs": {
            "any": {"oneOf": [{"$ref": "#/$defs/circle"}, {"$ref": "#/$defs/square"}]},
            "circle": shape("circle"),
            "square": shape("square"),
        },
        "$ref": "#/$defs/any",
    });
    let mut constraint = work.compile(&Grammar::JsonSchema(schema));
    accept(
        &mut constraint,
        &work.tokens("{\"kind\": \"circle\", \"next\": {\"kind\": \"square\"}}"),
    );
    assert!(constraint.is_complete());
}

/// Every grammar here asks for more than a request may cost. Each is refused, or its answers end
/// with an error, or it turns out to be harmless; none takes the memory or the thread with it.
#[test]
fn a_grammar_that_means_harm_harms_its_own_request_only() {
    let work = Workshop::new();
    let chain = |names: char, rules: usize, rule: fn(String) -> String| {
        let rules: String = (0..rules)
            .map(|i| format!("{names}{i}: {}\n", rule(format!("{names}{}", i + 1))))
            .collect();
        rules
    };
    let twice = |next: String| format!("{next} {next}");
    let longer = |next: String| format!("{next} \"x\"");
    let nested =
        |open: &str, close: &str| format!("{}a{}", open.repeat(5_000), close.repeat(5_000));
    let arrays =
        json!({"type": "array", "minItems": 1_000_000_000, "items": {"minItems": 1_000_000}});
    let grammars = [
        regex("((a{1000}){1000}){1000}"),
        regex("(((a|b){1000}){1000}){1000}"),
        regex("(a|b)*a(a|b){200}"),
        regex(&nested("(", ")")),
        regex(&"a".repeat(100_000)),
        Grammar::Lark(format!("start: {}\n", nested("(", ")"))),
        Grammar::Lark(format!(
            "start: T0\n{}T4000: \"a\"\n",
            chain('T', 4_000, longer)
        )),
        Grammar::Lark(format!(
            "start: t0\n{}t4000: \"a\"\n",
            chain('t', 4_000, longer)
        )),
        Grammar::Lark(format!("start: T0\n{}T30: \"a\"\n", chain('T', 30, twice))),
        Grammar::Lark(format!("start: t0\n{}t30: \"a\"\n", chain('t', 30, twice))),
        Grammar::Lark("start: a\na: a a | \"x\" | \n".into()),
        Grammar::Lark("start: a\na: a\n".into()),
        Grammar::JsonSchema(
            json!({"type": "string", "pattern": "^a*$", "minLength": 1_000_000_000}),
        ),
        Grammar::JsonSchema(arrays),
        Grammar::JsonSchema(json!({"$ref": {"é": "é".repeat(300)}})),
    ];
    let mut refused = 0;
    for grammar in &grammars {
        let Ok(mut constraint) = work.constraints.compile(grammar) else {
            refused += 1;
            continue;
        };
        for _ in 0..100 {
            let first = match constraint.mask() {
                Ok(mask) => mask.iter().next(),
                Err(ConstraintError::TooComplex(_)) => break,
                Err(other) => panic!("{other}"),
            };
            match first.map(|token| constraint.accept(token)) {
                Some(Ok(())) => (),
                None | Some(Err(ConstraintError::TooComplex(_))) => break,
                Some(Err(other)) => panic!("{other}"),
            }
        }
    }
    assert!(refused >= 5, "the worst are refused at the door: {refused}");
}
