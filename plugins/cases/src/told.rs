//! Cases and replies as text: what differs from the default, as it would stand in a
//! `cases.toml`.

use serde::Serialize;
use serde_json::Value;

use crate::{Case, Reply, expect};

/// A reply in one line.
pub fn reply(reply: &Reply) -> String {
    let facts = expect::facts(reply, &[]);
    let story: Vec<String> = facts.iter().map(|(n, f)| format!("{n}: {f}")).collect();
    story.join(" · ")
}

/// The records of a case.
pub fn case(case: &Case) -> String {
    let mut table = toml::Table::new();
    let mut put = |name: &str, value: Option<Value>| {
        let value = value.and_then(|v| toml::Value::try_from(v).ok());
        table.extend(value.map(|v| (name.to_owned(), v)));
    };
    put("request", difference(&case.request));
    put("snapshot", difference(&case.snapshot));
    put("classification", difference(&case.classification));
    put("answer", difference(&case.answer));
    let tiers: Vec<Value> = case.tiers.iter().filter_map(difference).collect();
    put("tiers", (!tiers.is_empty()).then_some(Value::Array(tiers)));
    let models: Vec<Value> = case.models.iter().filter_map(difference).collect();
    put(
        "models",
        (!models.is_empty()).then_some(Value::Array(models)),
    );
    let text = table.to_string();
    text.lines().map(|line| format!("  {line}\n")).collect()
}

fn difference<T: Serialize + Default>(record: &T) -> Option<Value> {
    let json = |record: &T| serde_json::to_value(record).unwrap_or_default();
    without(json(record), &json(&T::default()))
}

/// What of `value` is not in `default`; what is absent has no words in TOML.
fn without(value: Value, default: &Value) -> Option<Value> {
    if value == *default || value.is_null() {
        return None;
    }
    Some(match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .filter_map(|(key, value)| {
                    let kept = without(value, default.get(&key).unwrap_or(&Value::Null))?;
                    Some((key, kept))
                })
                .collect(),
        ),
        Value::Array(items) => {
            let items = items.into_iter();
            Value::Array(
                items
                    .filter_map(|item| without(item, &Value::Null))
                    .collect(),
            )
        }
        other => other,
    })
}
