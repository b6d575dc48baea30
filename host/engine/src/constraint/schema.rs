//! JSON Schema between the client and the compiler.
//!
//! It exists because llguidance says what is wrong with a schema but seldom where, and refuses a
//! `oneOf` whose branches it has not looked up. It refuses to weaken a schema: what cannot be kept
//! to is an error, never a warning.

use serde_json::{Map, Value};

/// Levels of arrays and objects in a schema. The compiler recurses, and schemas that people and
/// their tools write stay below twenty.
pub const MAX_DEPTH: usize = 64;

/// Whitespace between the parts of a JSON text: one blank, or one line break with its indentation.
/// Unbounded, a small model that is unsure of the next key can write blanks until its tokens are
/// used up.
const WHITESPACE: &str = r" |\r?\n[ \t]{0,32}";

/// Parts tried while a refusal is traced to its place: at most this many small compilations.
const MAX_TRIALS: usize = 64;

/// The schema as the compiler gets it; `limit` bounds its bytes.
pub fn prepared(schema: &Value, limit: usize) -> Result<Value, String> {
    if depth_exceeds(schema, MAX_DEPTH) {
        return Err(format!("it is nested deeper than {MAX_DEPTH} levels"));
    }
    let mut schema = match schema {
        Value::Bool(true) => Value::Object(Map::new()),
        Value::Object(_) => schema.clone(),
        _ => return Err("it must be an object".into()),
    };
    // The compiler's options, one of which lets unsupported keywords pass.
    if schema.get("x-guidance").is_some() {
        return Err("x-guidance is not supported".into());
    }
    let root = schema.clone();
    let mut room = limit;
    look_up_branches(&mut schema, &root, &mut room);
    let options = llguidance::JsonCompileOptions {
        whitespace_pattern: Some(WHITESPACE.into()),
        ..Default::default()
    };
    options.apply_to(&mut schema);
    Ok(schema)
}

fn depth_exceeds(value: &Value, levels: usize) -> bool {
    let below = |inner: &Value| levels == 0 || depth_exceeds(inner, levels - 1);
    match value {
        Value::Array(items) => items.iter().any(below),
        Value::Object(entries) => entries.values().any(below),
        _ => false,
    }
}

/// Puts in place of a reference among the branches of a `oneOf` what it refers to, one level deep,
/// so that the compiler can see that the branches exclude each other. Stops when `room` bytes have
/// been added: what is left is then refused, and never taken for `anyOf`.
fn look_up_branches(schema: &mut Value, root: &Value, room: &mut usize) {
    let parts: Box<dyn Iterator<Item = &mut Value>> = match schema {
        Value::Array(items) => Box::new(items.iter_mut()),
        Value::Object(entries) => {
            if let Some(Value::Array(branches)) = entries.get_mut("oneOf") {
                branches
                    .iter_mut()
                    .for_each(|branch| look_up(branch, root, room));
            }
            Box::new(entries.values_mut())
        }
        _ => return,
    };
    parts.for_each(|part| look_up_branches(part, root, room));
}

fn look_up(branch: &mut Value, root: &Value, room: &mut usize) {
    let Some(pointer) = branch.get("$ref").and_then(Value::as_str) else {
        return;
    };
    let alone = branch.as_object().is_some_and(|entries| entries.len() == 1);
    let target = pointer
        .strip_prefix('#')
        .and_then(|path| root.pointer(path));
    if let (true, Some(target @ Value::Object(_))) = (alone, target) {
        let bytes = target.to_string().len();
        if bytes <= *room {
            *room -= bytes;
            *branch = target.clone();
        }
    }
}

/// The smallest part of the schema that is refused with the same words, as a JSON pointer; `#` is
/// all of it. `refusal` compiles a schema and gives the words.
pub fn place(schema: &Value, words: &str, refusal: impl Fn(&Value) -> Option<String>) -> String {
    let mut trials = 0;
    let (mut pointer, mut here) = (String::from("#"), schema);
    loop {
        let culprit = parts(here).into_iter().find(|(_, part)| {
            trials += 1;
            trials <= MAX_TRIALS && refusal(&alone(part, schema)).as_deref() == Some(words)
        });
        match culprit {
            Some((path, part)) => (pointer, here) = (pointer + &path, part),
            None => return pointer,
        }
    }
}

/// A part with the definitions that it may refer to.
fn alone(part: &Value, root: &Value) -> Value {
    let mut part = part.clone();
    if let Some(entries) = part.as_object_mut() {
        for name in ["$defs", "definitions"] {
            if let Some(definitions) = root.get(name) {
                entries.entry(name).or_insert_with(|| definitions.clone());
            }
        }
    }
    part
}

/// The schemas directly inside a schema, with the path to each.
fn parts(schema: &Value) -> Vec<(String, &Value)> {
    let escaped = |name: &str| name.replace('~', "~0").replace('/', "~1");
    let mut parts = Vec::new();
    for (keyword, value) in schema.as_object().into_iter().flatten() {
        match (keyword.as_str(), value) {
            (
                "properties" | "patternProperties" | "$defs" | "definitions",
                Value::Object(inner),
            ) => {
                let named = inner.iter();
                parts.extend(named.map(|(name, s)| (format!("/{keyword}/{}", escaped(name)), s)));
            }
            ("anyOf" | "oneOf" | "allOf" | "prefixItems" | "items", Value::Array(inner)) => {
                let numbered = inner.iter().enumerate();
                parts.extend(numbered.map(|(i, s)| (format!("/{keyword}/{i}"), s)));
            }
            ("items" | "additionalProperties" | "additionalItems", Value::Object(_)) => {
                parts.push((format!("/{keyword}"), value));
            }
            _ => (),
        }
    }
    parts
}
