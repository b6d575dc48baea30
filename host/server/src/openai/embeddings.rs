//! `/v1/embeddings`: the request checked, the answer shaped.

use serde::Serialize;
use serde_json::Value as Json;

use super::error::ApiError;
use super::fields::{Fields, kind};
use crate::energy::EnergyReceipt;

/// Texts of one request: OpenAI's limit.
const INPUTS_MAX: usize = 2048;

/// A checked embeddings request.
#[derive(Debug)]
pub struct AskedEmbeddings {
    /// `None`: whichever encoder this server has.
    pub model: Option<String>,
    pub input: Vec<String>,
    pub base64: bool,
    pub dimensions: Option<usize>,
    pub ignored: Vec<String>,
}

impl AskedEmbeddings {
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        Ok(Self {
            model: fields.text("model")?,
            input: input(&mut fields)?,
            base64: fields
                .word("encoding_format", &[("float", false), ("base64", true)])?
                .unwrap_or(false),
            dimensions: fields
                .integer("dimensions", 1..=1_000_000)?
                .map(|n| n as usize),
            ignored: fields.ignored(),
        })
    }

    /// Refuse a size that the encoder does not give.
    pub fn check_dimensions(&self, given: usize) -> Result<(), ApiError> {
        match self.dimensions {
            Some(wanted) if wanted != given => Err(ApiError::unsupported(
                "dimensions",
                format!("dimensions is {wanted}, this encoder gives {given} and cannot shorten"),
            )),
            _ => Ok(()),
        }
    }
}

fn input(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    const EXPECTED: &str = "expected a string or an array of strings";
    let list = match fields.take("input") {
        Some(Json::Array(list)) => list,
        Some(one @ Json::String(_)) => vec![one],
        Some(other) => {
            let what = format!("input is {}, {EXPECTED}", kind(&other));
            return Err(ApiError::invalid("input", what));
        }
        None => {
            let what = format!("input is missing, {EXPECTED}");
            return Err(ApiError::invalid("input", what).code("missing_required_parameter"));
        }
    };
    if list.is_empty() || list.len() > INPUTS_MAX {
        let what = format!("input has {} texts, expected 1 to {INPUTS_MAX}", list.len());
        return Err(ApiError::invalid("input", what));
    }
    let texts = list.into_iter().enumerate().map(|(i, value)| match value {
        Json::String(text) if !text.is_empty() => Ok(text),
        Json::String(_) => Err(ApiError::invalid(
            "input",
            format!("input[{i}] is empty, expected text"),
        )),
        Json::Number(_) | Json::Array(_) => Err(ApiError::unsupported(
            "input",
            format!("input[{i}] holds token ids, which this server does not read; {EXPECTED}"),
        )),
        other => Err(ApiError::invalid(
            "input",
            format!("input[{i}] is {}, {EXPECTED}", kind(&other)),
        )),
    });
    texts.collect()
}

/// The answer's JSON.
pub fn answer(
    model: &str,
    vectors: &[Vec<f32>],
    base64: bool,
    prompt_tokens: u32,
    energy: Option<EnergyReceipt>,
) -> String {
    #[derive(Serialize)]
    struct Answer<'a> {
        object: &'static str,
        data: Vec<Item<'a>>,
        model: &'a str,
        usage: Usage,
    }
    #[derive(Serialize)]
    struct Item<'a> {
        object: &'static str,
        index: usize,
        embedding: Embedding<'a>,
    }
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Embedding<'a> {
        Floats(&'a [f32]),
        Base64(String),
    }
    #[derive(Serialize)]
    struct Usage {
        prompt_tokens: u32,
        total_tokens: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        energy: Option<EnergyReceipt>,
    }
    let data = vectors.iter().enumerate().map(|(index, vector)| Item {
        object: "embedding",
        index,
        embedding: if base64 {
            Embedding::Base64(encode(vector))
        } else {
            Embedding::Floats(vector)
        },
    });
    let answer = Answer {
        object: "list",
        data: data.collect(),
        model,
        usage: Usage {
            prompt_tokens,
            total_tokens: prompt_tokens,
            energy,
        },
    };
    serde_json::to_string(&answer).expect("strings and numbers always serialise")
}

/// Little-endian floats, as OpenAI's client reads them.
fn encode(vector: &[f32]) -> String {
    use base64::Engine;
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str, words: &[&str]) {
        let error = AskedEmbeddings::parse(body.as_bytes()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("input"), "{}", error.message);
        for word in words {
            assert!(error.message.contains(word), "{}: {word}", error.message);
        }
    }

    #[test]
    fn one_text_and_several_texts_are_read() {
        let one = AskedEmbeddings::parse(br#"{"input":"a"}"#).unwrap();
        assert_eq!(one.input, ["a"]);
        let two = br#"{"input":["a","b"],"encoding_format":"base64"}"#;
        let two = AskedEmbeddings::parse(two).unwrap();
        assert_eq!(two.input.len(), 2);
        assert!(two.base64);
    }

    #[test]
    fn inputs_that_cannot_be_embedded_are_refused_by_their_place() {
        refused("{}", &["missing"]);
        refused(r#"{"input":[]}"#, &["0 texts"]);
        refused(r#"{"input":["a",""]}"#, &["input[1]", "empty"]);
        refused(r#"{"input":[1,2]}"#, &["token ids"]);
        refused(r#"{"input":[[1]]}"#, &["token ids"]);
        refused(r#"{"input":{"a":1}}"#, &["an object"]);
    }

    #[test]
    fn base64_holds_the_same_numbers() {
        let text = answer("m", &[vec![1.0, -0.5]], true, 4, None);
        assert!(text.contains(r#""embedding":"AACAPwAAAL8=""#), "{text}");
        let text = answer("m", &[vec![1.0, -0.5]], false, 4, None);
        assert!(text.contains(r#""embedding":[1.0,-0.5]"#), "{text}");
        assert!(text.contains(r#""usage":{"prompt_tokens":4,"total_tokens":4}"#));
    }

    #[test]
    fn a_size_that_the_encoder_does_not_give_is_refused_with_both_numbers() {
        let asked = AskedEmbeddings::parse(br#"{"input":"a","dimensions":128}"#).unwrap();
        let error = asked.check_dimensions(384).unwrap_err();
        assert!(error.message.contains("128") && error.message.contains("384"));
        assert!(asked.check_dimensions(128).is_ok());
    }
}
