//! Reads a client's JSON field by field.
//!
//! serde's derived errors name a position but not the parameter, and they cannot tell a
//! client which range was expected. Reading by hand gives errors that say parameter,
//! value and range, and it knows afterwards which fields nobody asked for. `null` counts
//! as absent everywhere, as it does for OpenAI.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::{ApiError, shown};

/// The fields of one JSON object that have not been read yet.
#[derive(Debug)]
pub struct Fields {
    /// Where the object stands, such as `messages[2]`; empty at the top.
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The object in a request body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let text = std::str::from_utf8(body).map_err(|e| {
            ApiError::bad_request(format!(
                "the body is not valid UTF-8: byte {} cannot stand there",
                e.valid_up_to()
            ))
            .code("invalid_utf8")
        })?;
        if text.trim().is_empty() {
            let what = "the body is empty, expected a JSON object";
            return Err(ApiError::bad_request(what).code("invalid_json"));
        }
        let value: Value = serde_json::from_str(text).map_err(|e| {
            ApiError::bad_request(format!("the body is not valid JSON: {e}")).code("invalid_json")
        })?;
        Self::of("", value)
    }

    /// The object `value` that stands at `path`.
    pub fn of(path: impl Into<String>, value: Value) -> Result<Self, ApiError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other => {
                let name = if path.is_empty() { "the body" } else { &path };
                let message = format!("{name} is {}, expected a JSON object", kind(&other));
                Err(ApiError {
                    param: (!path.is_empty()).then(|| path.clone()),
                    ..ApiError::invalid("", message)
                })
            }
        }
    }

    /// The full name of a field of this object.
    pub fn name(&self, field: &str) -> String {
        if self.path.is_empty() {
            field.to_string()
        } else {
            format!("{}.{field}", self.path)
        }
    }

    /// The field as it stands.
    pub fn take(&mut self, field: &str) -> Option<Value> {
        self.map.remove(field).filter(|v| !v.is_null())
    }

    fn wrong<T>(&self, field: &str, value: &Value, expected: &str) -> Result<T, ApiError> {
        let name = self.name(field);
        let message = format!("{name} is {}, expected {expected}", quoted(value));
        Err(ApiError::invalid(name, message))
    }

    pub fn text(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => self.wrong(field, &other, "a string"),
        }
    }

    pub fn flag(&mut self, field: &str) -> Result<Option<bool>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => self.wrong(field, &other, "true or false"),
        }
    }

    pub fn number(
        &mut self,
        field: &str,
        range: RangeInclusive<f32>,
    ) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(field) else {
            return Ok(None);
        };
        match value.as_f64().map(|n| n as f32) {
            Some(n) if range.contains(&n) => Ok(Some(n)),
            _ => {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                self.wrong(field, &value, &expected)
            }
        }
    }

    pub fn integer(
        &mut self,
        field: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(field) else {
            return Ok(None);
        };
        // 16.0 is a whole number too; JavaScript clients write it without the point,
        // others do not.
        let whole = value.as_i64().or_else(|| {
            let n = value.as_f64().filter(|n| n.fract() == 0.0)?;
            (n.abs() < 9e15).then_some(n as i64)
        });
        match whole {
            Some(n) if range.contains(&n) => Ok(Some(n)),
            _ => {
                let expected = format!("a whole number from {} to {}", range.start(), range.end());
                self.wrong(field, &value, &expected)
            }
        }
    }

    pub fn list(&mut self, field: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => self.wrong(field, &other, "an array"),
        }
    }

    pub fn object(&mut self, field: &str) -> Result<Option<Fields>, ApiError> {
        let name = self.name(field);
        self.take(field).map(|v| Fields::of(name, v)).transpose()
    }

    /// One of these words.
    pub fn word<T: Copy>(
        &mut self,
        field: &str,
        words: &[(&str, T)],
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(field) else {
            return Ok(None);
        };
        let known = value
            .as_str()
            .and_then(|text| words.iter().find(|(word, _)| *word == text));
        match known {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                self.wrong(field, &value, &format!("one of {}", all.join(", ")))
            }
        }
    }

    /// Refuse a field that this server cannot honour, unless it says nothing.
    pub fn refuse(&mut self, field: &str, why: &str) -> Result<(), ApiError> {
        match self.take(field) {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(Value::Array(list)) if list.is_empty() => Ok(()),
            Some(_) => {
                let name = self.name(field);
                let message = format!("{name}: {why}");
                Err(ApiError::unsupported(name, message))
            }
        }
    }

    /// Names of the fields that nobody read, in order, for the header that says so.
    pub fn ignored(self) -> Vec<String> {
        let said = self.map.into_iter().filter(|(_, v)| !v.is_null());
        let mut names: Vec<String> = said.map(|(name, _)| name).collect();
        names.sort();
        names
    }

    /// What is left, name by name.
    pub fn rest(self) -> impl Iterator<Item = (String, Value)> {
        self.map.into_iter().filter(|(_, v)| !v.is_null())
    }
}

fn quoted(value: &Value) -> String {
    match value {
        Value::String(text) => shown(text),
        Value::Number(n) => n.to_string(),
        Value::Bool(b) => b.to_string(),
        other => kind(other).into(),
    }
}

/// A JSON value's kind in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
