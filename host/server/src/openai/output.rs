//! What a client wants its answer to look like: OpenAI's `response_format`, and vLLM's
//! `structured_outputs` with its older names `guided_json`, `guided_regex`, `guided_choice`
//! and `guided_grammar`.
//!
//! Only the wire is read here. Whether a schema or an expression can be used is for the
//! tier to say that has to keep to it. Two forms for one answer are refused, since one of
//! them would be broken. A schema is kept to whether or not it says `strict`.

use homeostat_cascade::OutputFormat;
use serde_json::Value as Json;

use super::error::ApiError;
use super::fields::{Fields, kind};

/// What a schema is called when its client gives no name; servers of other makes need one.
const NAMELESS: &str = "answer";

/// The form that the request asks for, whichever field says so.
pub fn format(fields: &mut Fields) -> Result<OutputFormat, ApiError> {
    let mut asked = Vec::new();
    asked.extend(response_format(fields)?.map(|form| ("response_format".to_owned(), form)));
    for (field, read) in READERS {
        asked.extend(read(fields, &format!("guided_{field}"))?);
    }
    if let Some(mut inner) = fields.object("structured_outputs")? {
        for (field, read) in READERS {
            asked.extend(read(&mut inner, field)?);
        }
        if inner.flag("json_object")? == Some(true) {
            asked.push((inner.name("json_object"), OutputFormat::JsonObject));
        }
        let left = inner.name("");
        if let Some(field) = inner.ignored().first() {
            let name = format!("{left}{field}");
            return Err(ApiError::unsupported(
                &name,
                format!("{name} is not supported by this server"),
            ));
        }
    }
    match asked.as_slice() {
        [(first, _), (second, _), ..] => Err(ApiError::invalid(
            second,
            format!(
                "{first} and {second} both say what the answer must look like: give one of them"
            ),
        )),
        _ => Ok(asked.pop().map(|(_, form)| form).unwrap_or_default()),
    }
}

/// A form, and the full name of the field that asked for it.
type Named = Option<(String, OutputFormat)>;
type Reader = fn(&mut Fields, &str) -> Result<Named, ApiError>;

/// Field of `structured_outputs`, and what reads it.
const READERS: [(&str, Reader); 4] = [
    ("json", json),
    ("regex", regex),
    ("choice", choice),
    ("grammar", grammar),
];

fn response_format(fields: &mut Fields) -> Result<Option<OutputFormat>, ApiError> {
    let Some(mut format) = fields.object("response_format")? else {
        return Ok(None);
    };
    #[derive(Clone, Copy)]
    enum Kind {
        Text,
        Object,
        Schema,
    }
    let kinds = [
        ("text", Kind::Text),
        ("json_object", Kind::Object),
        ("json_schema", Kind::Schema),
    ];
    match format.word("type", &kinds)? {
        None => Err(ApiError::invalid(
            "response_format.type",
            "response_format.type is missing, expected one of text, json_object, json_schema",
        )),
        Some(Kind::Text) => Ok(None),
        Some(Kind::Object) => Ok(Some(OutputFormat::JsonObject)),
        Some(Kind::Schema) => {
            let missing = || {
                let name = "response_format.json_schema.schema";
                ApiError::invalid(name, format!("{name} is missing, expected a JSON schema"))
            };
            let mut spec = format.object("json_schema")?.ok_or_else(missing)?;
            let name = spec.text("name")?.unwrap_or_else(|| NAMELESS.into());
            let place = spec.name("schema");
            let schema = spec.take("schema").ok_or_else(missing)?;
            Ok(Some(OutputFormat::JsonSchema {
                name,
                schema: object(&place, schema)?,
            }))
        }
    }
}

fn object(name: &str, schema: Json) -> Result<Json, ApiError> {
    match schema {
        Json::Object(_) => Ok(schema),
        other => {
            let what = format!(
                "{name} is {}, expected a JSON schema (an object)",
                kind(&other)
            );
            Err(ApiError::invalid(name, what))
        }
    }
}

/// A schema, as an object or as its text.
fn json(fields: &mut Fields, field: &str) -> Result<Named, ApiError> {
    let name = fields.name(field);
    let schema = match fields.take(field) {
        None => return Ok(None),
        Some(Json::String(text)) => serde_json::from_str(&text)
            .map_err(|e| ApiError::invalid(&name, format!("{name} is not valid JSON: {e}")))?,
        Some(value) => value,
    };
    let schema = object(&name, schema)?;
    Ok(Some((
        name,
        OutputFormat::JsonSchema {
            name: NAMELESS.into(),
            schema,
        },
    )))
}

fn regex(fields: &mut Fields, field: &str) -> Result<Named, ApiError> {
    let name = fields.name(field);
    Ok(fields
        .text(field)?
        .map(|text| (name, OutputFormat::Regex(text))))
}

fn grammar(fields: &mut Fields, field: &str) -> Result<Named, ApiError> {
    let name = fields.name(field);
    Ok(fields
        .text(field)?
        .map(|text| (name, OutputFormat::Grammar(text))))
}

fn choice(fields: &mut Fields, field: &str) -> Result<Named, ApiError> {
    let name = fields.name(field);
    let Some(list) = fields.list(field)? else {
        return Ok(None);
    };
    let text = |(at, value): (usize, Json)| match value {
        Json::String(text) => Ok(text),
        other => {
            let what = format!("{name}[{at}] is {}, expected a string", kind(&other));
            Err(ApiError::invalid(format!("{name}[{at}]"), what))
        }
    };
    let choices: Vec<String> = list
        .into_iter()
        .enumerate()
        .map(text)
        .collect::<Result<_, _>>()?;
    Ok(Some((name, OutputFormat::Choice(choices))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: Json) -> Result<OutputFormat, ApiError> {
        format(&mut Fields::of("", body).expect("an object"))
    }

    fn schema(schema: Json) -> OutputFormat {
        OutputFormat::JsonSchema {
            name: "answer".into(),
            schema,
        }
    }

    #[test]
    fn every_way_to_ask_for_a_form_is_understood() {
        let with_null = json!({"const": null});
        let openai = json!({"name": "n", "strict": true, "schema": with_null});
        for (body, expected) in [
            (json!({}), OutputFormat::Text),
            (json!({"response_format": null}), OutputFormat::Text),
            (
                json!({"response_format": {"type": "text"}, "guided_regex": "a"}),
                OutputFormat::Regex("a".into()),
            ),
            (
                json!({"response_format": {"type": "json_object"}}),
                OutputFormat::JsonObject,
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": openai}}),
                OutputFormat::JsonSchema {
                    name: "n".into(),
                    schema: with_null.clone(),
                },
            ),
            (json!({"guided_json": with_null}), schema(with_null.clone())),
            (
                json!({"guided_json": "{\"const\": null}"}),
                schema(with_null.clone()),
            ),
            (
                json!({"guided_choice": ["a", "b"]}),
                OutputFormat::Choice(vec!["a".into(), "b".into()]),
            ),
            (
                json!({"guided_grammar": "start: \"a\""}),
                OutputFormat::Grammar("start: \"a\"".into()),
            ),
            (
                json!({"structured_outputs": {"json": with_null}}),
                schema(with_null.clone()),
            ),
            (
                json!({"structured_outputs": {"regex": "a", "json": null}}),
                OutputFormat::Regex("a".into()),
            ),
            (
                json!({"structured_outputs": {"json_object": true}}),
                OutputFormat::JsonObject,
            ),
        ] {
            assert_eq!(
                read(body.clone()).expect("a good request"),
                expected,
                "{body}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let nothing = "response_format.json_schema.schema";
        for (body, param, words) in [
            (
                json!({"response_format": {"type": "xml"}}),
                "response_format.type",
                "json_object",
            ),
            (
                json!({"response_format": {}}),
                "response_format.type",
                "missing",
            ),
            (
                json!({"response_format": {"type": "json_schema"}}),
                nothing,
                "missing",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}),
                nothing,
                "a number",
            ),
            (json!({"guided_json": "{"}), "guided_json", "not valid JSON"),
            (json!({"guided_json": "[]"}), "guided_json", "an array"),
            (json!({"guided_regex": 3}), "guided_regex", "a string"),
            (json!({"guided_choice": "a"}), "guided_choice", "an array"),
            (
                json!({"guided_choice": ["a", 1]}),
                "guided_choice[1]",
                "a number",
            ),
            (
                json!({"guided_regex": "a", "guided_choice": ["a"]}),
                "guided_choice",
                "guided_regex and",
            ),
            (
                json!({"response_format": {"type": "json_object"}, "guided_regex": "a"}),
                "guided_regex",
                "response_format and guided_regex",
            ),
            (
                json!({"structured_outputs": {"regex": "a", "json_object": true}}),
                "structured_outputs.json_object",
                "give one of them",
            ),
            (
                json!({"structured_outputs": {"structural_tag": "a"}}),
                "structured_outputs.structural_tag",
                "not supported",
            ),
        ] {
            let error = read(body.clone()).expect_err("a bad request");
            assert_eq!(error.param.as_deref(), Some(param), "{body}");
            assert!(error.message.contains(words), "{body}: {}", error.message);
        }
    }
}
