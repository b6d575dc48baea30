//! From TOML to records.

use homeostat_hooks::{Hook, Message, Request, Role};
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::{Case, CaseFile, Error, Expectation, Property};

const KEYS: [&str; 10] = [
    "name",
    "ask",
    "request",
    "snapshot",
    "classification",
    "tiers",
    "answer",
    "options",
    "models",
    "expect",
];

pub(crate) fn file(text: &str) -> Result<CaseFile, Error> {
    let mut file: Table = text.parse().map_err(|e| Error::Shape(format!("{e}")))?;
    let hook = file.remove("hook").ok_or_else(|| {
        Error::Shape("hook = \"classify\", \"route\" or \"validate\" is missing".into())
    })?;
    let hook: Hook = record("hook", hook).map_err(Error::Shape)?;
    let shared = match file.remove("given") {
        Some(Value::Table(t)) => t,
        None => Table::new(),
        Some(_) => return Err(Error::Shape("[given] must be a table".into())),
    };
    let options = options(&mut shared.clone()).map_err(Error::Shape)?;
    let properties = match file.remove("properties") {
        Some(Value::Table(t)) => properties(hook, t).map_err(Error::Shape)?,
        None => Vec::new(),
        Some(_) => return Err(Error::Shape("[properties] must be a table".into())),
    };
    let cases = match file.remove("case") {
        Some(Value::Array(a)) if !a.is_empty() => a,
        _ => return Err(Error::Shape("no [[case]] in this file".into())),
    };
    if let Some(key) = file.keys().next() {
        return Err(Error::Shape(format!(
            "unknown key {key:?}, expected hook, [given], [properties] or [[case]]"
        )));
    }
    let cases = cases
        .into_iter()
        .map(|value| {
            let Value::Table(own) = value else {
                return Err(Error::Shape("a case must be a table".into()));
            };
            let name = own
                .get("name")
                .and_then(Value::as_str)
                .unwrap_or("without a name");
            let name = name.to_owned();
            let mut all = shared.clone();
            merge(&mut all, own);
            case(hook, &name, all).map_err(|reason| Error::Case { name, reason })
        })
        .collect::<Result<_, _>>()?;
    Ok(CaseFile {
        hook,
        cases,
        options,
        properties,
    })
}

/// Whoever loads the policy reads them, and knows their keys.
fn options(all: &mut Table) -> Result<Table, String> {
    match all.remove("options") {
        Some(Value::Table(t)) => Ok(t),
        None => Ok(Table::new()),
        Some(_) => Err("options must be a table, as policy.toml is one".into()),
    }
}

/// Most inputs that one property is tried on: a slow policy takes milliseconds for each.
const INPUTS_MAX: u32 = 100_000;

fn properties(hook: Hook, table: Table) -> Result<Vec<(Property, u32)>, String> {
    table
        .into_iter()
        .map(|(key, value)| {
            let known = Property::ALL.into_iter().find(|p| p.as_str() == key);
            let property = known.ok_or_else(|| {
                let all: Vec<&str> = Property::ALL.iter().map(|p| p.as_str()).collect();
                format!(
                    "unknown property {key:?}, expected one of {}",
                    all.join(", ")
                )
            })?;
            if !property.is_about(hook) {
                return Err(format!("{key} says nothing about {}", hook.as_str()));
            }
            let inputs = value.as_integer().and_then(|n| u32::try_from(n).ok());
            match inputs.filter(|n| (1..=INPUTS_MAX).contains(n)) {
                Some(inputs) => Ok((property, inputs)),
                None => Err(format!("{key} = number of inputs, 1 to {INPUTS_MAX}")),
            }
        })
        .collect()
}

/// Tables are merged key by key, everything else is replaced.
pub(crate) fn merge(into: &mut Table, own: Table) {
    for (key, value) in own {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn case(hook: Hook, name: &str, mut all: Table) -> Result<Case, String> {
    if let Some(key) = all.keys().find(|k| !KEYS.contains(&k.as_str())) {
        return Err(format!(
            "unknown key {key:?}, expected one of {}",
            KEYS.join(", ")
        ));
    }
    let mut request: Request = record_or_default("request", &mut all)?;
    if let Some(ask) = all.remove("ask") {
        request.messages.push(Message {
            role: Role::User,
            content: ask.as_str().ok_or("ask must be a text")?.to_owned(),
        });
    }
    let expect: Vec<String> = record_or_default("expect", &mut all)?;
    if expect.is_empty() {
        return Err("it expects nothing".into());
    }
    Ok(Case {
        name: name.to_owned(),
        hook,
        request,
        snapshot: record_or_default("snapshot", &mut all)?,
        classification: record_or_default("classification", &mut all)?,
        tiers: record_or_default("tiers", &mut all)?,
        answer: record_or_default("answer", &mut all)?,
        options: options(&mut all)?,
        models: record_or_default("models", &mut all)?,
        expect: expect
            .iter()
            .map(|line| Expectation::parse(line))
            .collect::<Result<_, _>>()?,
    })
}

fn record_or_default<T: DeserializeOwned + Serialize + Default>(
    name: &str,
    all: &mut Table,
) -> Result<T, String> {
    all.remove(name)
        .map_or_else(|| Ok(T::default()), |value| record(name, value))
}

/// Reads a record and refuses keys that it does not have: the records themselves ignore
/// them, since a host must accept what a later version adds.
fn record<T: DeserializeOwned + Serialize>(name: &str, value: Value) -> Result<T, String> {
    let json = serde_json::to_value(&value).map_err(|e| format!("{name}: {e}"))?;
    let read: T = value.try_into().map_err(|e| format!("{name}: {e}"))?;
    let back = serde_json::to_value(&read).map_err(|e| format!("{name}: {e}"))?;
    match unknown_key(&json, &back) {
        Some(key) => Err(format!("{name} has no field {key:?}")),
        None => Ok(read),
    }
}

/// The first key of `given` that `read` does not have.
fn unknown_key(given: &serde_json::Value, read: &serde_json::Value) -> Option<String> {
    use serde_json::Value::{Array, Object};
    match (given, read) {
        (Object(given), Object(read)) => {
            given.iter().find_map(|(key, value)| match read.get(key) {
                None => Some(key.clone()),
                Some(below) => unknown_key(value, below),
            })
        }
        (Array(given), Array(read)) => given.iter().zip(read).find_map(|(g, r)| unknown_key(g, r)),
        _ => None,
    }
}
