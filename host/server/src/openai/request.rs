//! From a client's JSON to a checked request.
//!
//! Whatever leaves this module is sane: every range is checked, every field that this
//! server cannot honour is refused by name, and what nobody reads is listed. No wire
//! type goes further than here.

use homeostat_cascade::{Job, OutputFormat, Prompt, Sampling};
use homeostat_engine::{MAX_LOGIT_BIAS, MAX_STOP_BYTES, MAX_STOPS, MAX_TOP_LOGPROBS};
use homeostat_hooks::{Attribute, Endpoint, Message, Role, Value};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::fields::{Fields, kind};
use super::output;

/// Answers to one request; each of them costs a whole generation.
pub const N_MAX: i64 = 8;
/// Alternatives per token, as for OpenAI.
const TOP_LOGPROBS_MAX: i64 = MAX_TOP_LOGPROBS as i64;
/// New tokens: no context of today holds more, so a larger number is a mistake.
const TOKENS_MAX: i64 = 10_000_000;
/// What `/v1/completions` generates when the client does not say, as for OpenAI.
const COMPLETION_TOKENS_DEFAULT: u32 = 16;

const NO_TOOLS: &str = "tools are not supported by this server; leave the field out, or describe \
                        the tools in a message";

/// How tokens are chosen when the client does not say.
#[derive(Debug, Clone, Copy)]
pub struct SamplingDefaults {
    pub temperature: f32,
    pub top_p: f32,
}

/// A checked request: what to answer, and how to show the answer.
#[derive(Debug)]
pub struct Asked {
    pub endpoint: Endpoint,
    pub model: String,
    pub prompt: Prompt,
    pub sampling: Sampling,
    pub max_tokens: Option<u32>,
    pub n: u32,
    /// Whom the client says it asks for.
    pub user: Option<String>,
    pub priority: i8,
    pub stream: bool,
    pub include_usage: bool,
    /// Whether the client wants to see log-probabilities.
    pub logprobs: bool,
    pub output: OutputFormat,
    pub attributes: Vec<Attribute>,
    /// For `x-homeostat-ignored`.
    pub ignored: Vec<String>,
}

impl Asked {
    /// `POST /v1/chat/completions`.
    pub fn chat(body: &[u8], defaults: SamplingDefaults) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let mut asked = Self::shared(&mut fields, Endpoint::Chat, defaults)?;
        asked.prompt = Prompt::Chat(messages(&mut fields)?);
        for field in ["tools", "functions", "function_call"] {
            fields.refuse(field, NO_TOOLS)?;
        }
        tool_choice(&mut fields)?;
        fields.refuse("parallel_tool_calls", NO_TOOLS)?;
        fields.refuse("audio", "this server answers in text only")?;
        modalities(&mut fields)?;
        let completion = fields.integer("max_completion_tokens", 1..=TOKENS_MAX)?;
        asked.max_tokens = one_cap(asked.max_tokens, completion)?;
        asked.logprobs = fields.flag("logprobs")?.unwrap_or(false);
        let top = fields.integer("top_logprobs", 0..=TOP_LOGPROBS_MAX)?;
        if top.is_some() && !asked.logprobs {
            let why = "top_logprobs is given without logprobs: true";
            return Err(ApiError::invalid("top_logprobs", why));
        }
        asked.sampling.top_logprobs = asked.logprobs.then_some(top.unwrap_or(0) as u8);
        asked.ignored = fields.ignored();
        Ok(asked)
    }

    /// `POST /v1/completions`.
    pub fn completion(body: &[u8], defaults: SamplingDefaults) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let mut asked = Self::shared(&mut fields, Endpoint::Completion, defaults)?;
        asked.prompt = Prompt::Raw(raw_prompt(&mut fields)?);
        fields.refuse("echo", "the prompt is not repeated by this server")?;
        fields.refuse("suffix", "text is continued, not filled in, by this server")?;
        if let Some(best_of) = fields.integer("best_of", 1..=N_MAX)?
            && best_of != i64::from(asked.n)
        {
            let why = format!(
                "best_of is {best_of}, n is {}: this server returns every answer it generates",
                asked.n
            );
            return Err(ApiError::unsupported("best_of", why));
        }
        let top = fields.integer("logprobs", 0..=TOP_LOGPROBS_MAX)?;
        asked.logprobs = top.is_some();
        asked.sampling.top_logprobs = top.map(|n| n as u8);
        asked.max_tokens.get_or_insert(COMPLETION_TOKENS_DEFAULT);
        asked.ignored = fields.ignored();
        Ok(asked)
    }

    /// The fields that both endpoints have.
    fn shared(
        fields: &mut Fields,
        endpoint: Endpoint,
        defaults: SamplingDefaults,
    ) -> Result<Self, ApiError> {
        let stream = fields.flag("stream")?.unwrap_or(false);
        Ok(Self {
            endpoint,
            model: fields.text("model")?.unwrap_or_else(|| "auto".into()),
            prompt: Prompt::Raw(String::new()),
            sampling: sampling(fields, defaults)?,
            max_tokens: fields
                .integer("max_tokens", 1..=TOKENS_MAX)?
                .map(|n| n as u32),
            n: fields.integer("n", 1..=N_MAX)?.unwrap_or(1) as u32,
            user: fields.text("user")?.filter(|user| !user.is_empty()),
            // vLLM's field, in a range that bounds the number of classes.
            priority: fields.integer("priority", -128..=127)?.unwrap_or(0) as i8,
            stream,
            include_usage: stream_options(fields, stream)?,
            logprobs: false,
            output: output::format(fields)?,
            attributes: metadata(fields)?,
            ignored: Vec::new(),
        })
    }

    /// The cascade's job for answer number `index`. Answers to one request differ by
    /// their seed only, so a client that names a seed gets the same set every time.
    pub fn job(&self, id: &str, index: u32, payer: Payer<'_>, deadline_ms: Option<u32>) -> Job {
        let mut sampling = self.sampling.clone();
        sampling.seed = sampling.seed.map(|s| s.wrapping_add(u64::from(index)));
        Job {
            id: job_id(id, index),
            endpoint: self.endpoint,
            model: self.model.clone(),
            prompt: self.prompt.clone(),
            sampling,
            max_tokens: self.max_tokens,
            stream: self.stream,
            output: self.output.clone(),
            tenant: payer.tenant.map(str::to_string),
            sharer: payer.sharer(self.user.as_deref()),
            priority: self.priority,
            deadline_ms,
            attributes: self.attributes.clone(),
            purse: None,
        }
    }
}

/// Who is known to ask.
#[derive(Debug, Clone, Copy, Default)]
pub struct Payer<'a> {
    /// The owner of the key, where the host has keys.
    pub tenant: Option<&'a str>,
    /// What the client sent as its key, where the host has none.
    pub unproven: Option<&'a str>,
}

impl Payer<'_> {
    /// Whose share of the engine's time a request takes. A tenant has one share whatever users it
    /// names; without tenants the names are all there is to go by. A key goes no further than
    /// this, as it may be one for another server.
    fn sharer(&self, user: Option<&str>) -> Option<String> {
        if let Some(tenant) = self.tenant {
            return Some(sharer_of_tenant(tenant));
        }
        let key = self.unproven.map(|key| {
            let digest = Sha256::digest(key.as_bytes());
            digest.iter().map(|byte| format!("{byte:02x}")).collect()
        });
        match (key, user) {
            (None, None) => None,
            (key, user) => Some(format!(
                "key {} user {}",
                key.unwrap_or_else(String::new),
                user.unwrap_or_default()
            )),
        }
    }
}

/// The name under which the engines know a tenant: nobody without a key can take it by naming
/// himself so.
pub fn sharer_of_tenant(tenant: &str) -> String {
    format!("tenant {tenant}")
}

/// The name under which the engines know policies that work for a request without a tenant. No
/// client's begins like it.
pub const SHARER_OF_POLICIES: &str = "policies";

/// The id of answer number `index`, under which its decision is recorded.
pub fn job_id(id: &str, index: u32) -> String {
    if index == 0 {
        id.to_string()
    } else {
        format!("{id}.{index}")
    }
}

fn sampling(fields: &mut Fields, defaults: SamplingDefaults) -> Result<Sampling, ApiError> {
    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
    Ok(Sampling {
        temperature: fields
            .number("temperature", 0.0..=2.0)?
            .unwrap_or(defaults.temperature),
        top_p: top_p(fields)?.unwrap_or(defaults.top_p),
        // -1 means "all" for vLLM, 0 for us and llama.cpp.
        top_k: fields
            .integer("top_k", -1..=i64::from(u32::MAX))?
            .unwrap_or(0)
            .max(0) as u32,
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
        seed: seed.map(|s| s as u64),
        stop: stop(fields)?,
        logit_bias: logit_bias(fields)?,
        frequency_penalty: fields
            .number("frequency_penalty", -2.0..=2.0)?
            .unwrap_or(0.0),
        presence_penalty: fields
            .number("presence_penalty", -2.0..=2.0)?
            .unwrap_or(0.0),
        repetition_penalty: fields
            .number("repetition_penalty", 0.1..=10.0)?
            .unwrap_or(1.0),
        top_logprobs: None,
    })
}

/// A share of 0 would leave no token at all.
fn top_p(fields: &mut Fields) -> Result<Option<f32>, ApiError> {
    match fields.number("top_p", 0.0..=1.0)? {
        Some(0.0) => Err(ApiError::invalid(
            "top_p",
            "top_p is 0, expected a number above 0 and up to 1; temperature 0 always takes the \
             likeliest token",
        )),
        other => Ok(other),
    }
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let list = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Json::Array(list)) => list,
        Some(one) => vec![one],
    };
    if list.len() > MAX_STOPS {
        let what = format!(
            "stop has {} strings, expected at most {MAX_STOPS}",
            list.len()
        );
        return Err(ApiError::invalid("stop", what));
    }
    let texts = list.into_iter().map(|value| match value {
        Json::String(text) if text.is_empty() => Err(ApiError::invalid(
            "stop",
            "stop contains an empty string, which would end every answer at once",
        )),
        Json::String(text) if text.len() > MAX_STOP_BYTES => Err(ApiError::invalid(
            "stop",
            format!(
                "stop contains a string of {} bytes, expected at most {MAX_STOP_BYTES}",
                text.len()
            ),
        )),
        Json::String(text) => Ok(text),
        other => Err(ApiError::invalid(
            "stop",
            format!(
                "stop contains {}, expected a string or an array of strings",
                kind(&other)
            ),
        )),
    });
    texts.collect()
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(map) = fields.object("logit_bias")? else {
        return Ok(Vec::new());
    };
    let wrong = |text: String| ApiError::invalid("logit_bias", text);
    let mut biases = Vec::new();
    for (id, value) in map.rest() {
        let token: u32 = id.parse().map_err(|_| {
            wrong(format!(
                "logit_bias has the key {id:?}, expected a token id"
            ))
        })?;
        let bias = value.as_f64().map(|b| b as f32);
        let bias = bias
            .filter(|b| (-100.0..=100.0).contains(b))
            .ok_or_else(|| {
                wrong(format!(
                    "logit_bias.{id} is {value}, expected a number from -100 to 100"
                ))
            })?;
        biases.push((token, bias));
    }
    if biases.len() > MAX_LOGIT_BIAS {
        return Err(wrong(format!(
            "logit_bias has {} entries, expected at most {MAX_LOGIT_BIAS}",
            biases.len()
        )));
    }
    Ok(biases)
}

fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(mut options) = fields.object("stream_options")? else {
        return Ok(false);
    };
    if !stream {
        let why = "stream_options is given without stream: true";
        return Err(ApiError::invalid("stream_options", why));
    }
    Ok(options.flag("include_usage")?.unwrap_or(false))
}

/// OpenAI's `metadata` reaches policies as attributes: an application can tell its
/// routing policy what it is.
fn metadata(fields: &mut Fields) -> Result<Vec<Attribute>, ApiError> {
    let Some(map) = fields.object("metadata")? else {
        return Ok(Vec::new());
    };
    const ENTRIES_MAX: usize = 16;
    const BYTES_MAX: usize = 512;
    let mut attributes = Vec::new();
    for (key, value) in map.rest() {
        let Json::String(text) = value else {
            let what = format!("metadata.{key} is {}, expected a string", kind(&value));
            return Err(ApiError::invalid(format!("metadata.{key}"), what));
        };
        if key.len() + text.len() > BYTES_MAX || attributes.len() == ENTRIES_MAX {
            let what = format!(
                "metadata may have {ENTRIES_MAX} entries of {BYTES_MAX} bytes, key included"
            );
            return Err(ApiError::invalid("metadata", what));
        }
        let name = format!("metadata.{}", key.to_lowercase());
        attributes.push((name, Value::Text(text)));
    }
    Ok(attributes)
}

fn one_cap(old: Option<u32>, new: Option<i64>) -> Result<Option<u32>, ApiError> {
    let new = new.map(|n| n as u32);
    match (old, new) {
        (Some(a), Some(b)) if a != b => Err(ApiError::invalid(
            "max_tokens",
            format!("max_tokens is {a} and max_completion_tokens is {b}: give one of them"),
        )),
        (a, b) => Ok(b.or(a)),
    }
}

fn tool_choice(fields: &mut Fields) -> Result<(), ApiError> {
    match fields.take("tool_choice") {
        None => Ok(()),
        Some(Json::String(word)) if word == "none" || word == "auto" => Ok(()),
        Some(_) => Err(ApiError::unsupported(
            "tool_choice",
            format!("tool_choice: {NO_TOOLS}"),
        )),
    }
}

fn modalities(fields: &mut Fields) -> Result<(), ApiError> {
    let wanted = fields.list("modalities")?.unwrap_or_default();
    if wanted.iter().all(|m| m == "text") {
        return Ok(());
    }
    let why = "modalities: this server answers in text only";
    Err(ApiError::unsupported("modalities", why))
}

fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let list = fields.list("messages")?.ok_or_else(|| {
        let what = "messages is missing, expected an array of at least one message";
        ApiError::invalid("messages", what).code("missing_required_parameter")
    })?;
    if list.is_empty() {
        let what = "messages is empty, expected at least one message";
        return Err(ApiError::invalid("messages", what).code("empty_array"));
    }
    let numbered = list.into_iter().enumerate();
    numbered
        .map(|(i, value)| message(&format!("messages[{i}]"), value))
        .collect()
}

fn message(path: &str, value: Json) -> Result<Message, ApiError> {
    let mut fields = Fields::of(path, value)?;
    let roles = [
        ("system", Role::System),
        ("developer", Role::System),
        ("user", Role::User),
        ("assistant", Role::Assistant),
        ("tool", Role::Tool),
    ];
    let role = fields.word("role", &roles)?.ok_or_else(|| {
        let what = format!(
            "{path}.role is missing, expected one of system, developer, user, assistant, tool"
        );
        ApiError::invalid(format!("{path}.role"), what)
    })?;
    for field in ["tool_calls", "function_call"] {
        fields.refuse(field, NO_TOOLS)?;
    }
    let name = fields.name("content");
    let content = match fields.take("content") {
        Some(Json::String(text)) => text,
        Some(Json::Array(parts)) => joined(&name, parts)?,
        None => {
            let what = format!("{name} is missing, expected a string or an array of text parts");
            return Err(ApiError::invalid(name, what));
        }
        Some(other) => {
            let what = format!(
                "{name} is {}, expected a string or an array of text parts",
                kind(&other)
            );
            return Err(ApiError::invalid(name, what));
        }
    };
    Ok(Message { role, content })
}

fn joined(path: &str, parts: Vec<Json>) -> Result<String, ApiError> {
    let mut text = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        let mut part = Fields::of(format!("{path}[{i}]"), part)?;
        let name = part.name("type");
        match part.text("type")?.as_deref() {
            Some("text") => {}
            other => {
                let what = format!(
                    "{name} is {}: this server reads text parts only",
                    other.unwrap_or("missing")
                );
                return Err(ApiError::unsupported(name, what));
            }
        }
        let name = part.name("text");
        match part.text("text")? {
            Some(piece) => text.push_str(&piece),
            None => {
                let what = format!("{name} is missing, expected a string");
                return Err(ApiError::invalid(name, what));
            }
        }
    }
    Ok(text)
}

fn raw_prompt(fields: &mut Fields) -> Result<String, ApiError> {
    const EXPECTED: &str = "expected a string, or an array that holds one string";
    let wrong = |what: String| Err(ApiError::invalid("prompt", what));
    let text = match fields.take("prompt") {
        Some(Json::String(text)) => text,
        Some(Json::Array(mut list)) => match (list.len(), list.pop()) {
            (1, Some(Json::String(text))) => text,
            (_, Some(Json::Number(_) | Json::Array(_))) => {
                return Err(ApiError::unsupported(
                    "prompt",
                    format!("prompt holds token ids, which differ from tier to tier; {EXPECTED}"),
                ));
            }
            (n, _) => return wrong(format!("prompt is an array of {n}, {EXPECTED}")),
        },
        Some(other) => return wrong(format!("prompt is {}, {EXPECTED}", kind(&other))),
        None => {
            return Err(
                ApiError::invalid("prompt", format!("prompt is missing, {EXPECTED}"))
                    .code("missing_required_parameter"),
            );
        }
    };
    if text.is_empty() {
        return wrong("prompt is empty, expected text to continue".into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: SamplingDefaults = SamplingDefaults {
        temperature: 0.25,
        top_p: 0.75,
    };

    fn chat(extra: &str) -> Result<Asked, ApiError> {
        let body =
            format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}]{extra}}}"#);
        Asked::chat(body.as_bytes(), DEFAULTS)
    }

    fn completion(fields: &str) -> Result<Asked, ApiError> {
        Asked::completion(format!("{{{fields}}}").as_bytes(), DEFAULTS)
    }

    /// `extra` is refused, naming `param`, and the message contains all of `words`.
    fn refused(result: Result<Asked, ApiError>, param: &str, words: &[&str]) {
        let error = result.expect_err(param);
        assert!(error.status.is_client_error());
        assert_eq!(error.param.as_deref(), Some(param), "{}", error.message);
        for word in words {
            assert!(error.message.contains(word), "{}: {word}", error.message);
        }
    }

    #[test]
    fn what_the_client_does_not_say_is_the_default() {
        let asked = chat("").unwrap();
        assert_eq!(asked.sampling.temperature, 0.25);
        assert_eq!(asked.sampling.top_p, 0.75);
        assert_eq!(asked.max_tokens, None);
        assert_eq!((asked.n, asked.stream, asked.logprobs), (1, false, false));
        assert_eq!(asked.model, "m");
        let model = Asked::chat(br#"{"messages":[{"role":"user","content":"x"}]}"#, DEFAULTS);
        assert_eq!(model.unwrap().model, "auto");
        assert_eq!(completion(r#""prompt":"x""#).unwrap().max_tokens, Some(16));
    }

    #[test]
    fn null_counts_as_absent() {
        let asked = chat(r#","temperature":null,"stop":null,"tools":null,"foo":null"#).unwrap();
        assert_eq!(asked.sampling.temperature, 0.25);
        assert!(asked.ignored.is_empty());
    }

    #[test]
    fn impossible_parameters_are_named_with_value_and_range() {
        for (extra, param, words) in [
            (
                r#","temperature":3.5"#,
                "temperature",
                ["3.5", "from 0 to 2"],
            ),
            (
                r#","temperature":"hot""#,
                "temperature",
                ["\"hot\"", "number"],
            ),
            (r#","top_p":0"#, "top_p", ["is 0", "above 0"]),
            (r#","top_p":1.5"#, "top_p", ["1.5", "from 0 to 1"]),
            (r#","max_tokens":0"#, "max_tokens", ["is 0", "from 1"]),
            (r#","max_tokens":1.5"#, "max_tokens", ["1.5", "whole"]),
            (r#","n":9"#, "n", ["9", "from 1 to 8"]),
            (r#","n":true"#, "n", ["true", "whole number"]),
            (
                r#","presence_penalty":-3"#,
                "presence_penalty",
                ["-3", "-2 to 2"],
            ),
            (r#","logprobs":1"#, "logprobs", ["1", "true or false"]),
            (
                r#","top_logprobs":2"#,
                "top_logprobs",
                ["without", "logprobs"],
            ),
            (r#","stream":"yes""#, "stream", ["yes", "true or false"]),
            (
                r#","stream_options":{}"#,
                "stream_options",
                ["without", "stream"],
            ),
            (r#","stop":[1]"#, "stop", ["a number", "string"]),
            (r#","stop":"""#, "stop", ["empty", "every answer"]),
            (
                r#","logit_bias":{"x":1}"#,
                "logit_bias",
                ["\"x\"", "token id"],
            ),
            (r#","logit_bias":{"1":101}"#, "logit_bias", ["101", "100"]),
            (r#","seed":"a""#, "seed", ["\"a\"", "whole"]),
            (
                r#","response_format":{"type":"xml"}"#,
                "response_format.type",
                ["xml", "json_object"],
            ),
            (
                r#","response_format":{}"#,
                "response_format.type",
                ["missing", "text"],
            ),
            (
                r#","max_tokens":3,"max_completion_tokens":4"#,
                "max_tokens",
                ["3", "4"],
            ),
            (
                r#","metadata":{"a":1}"#,
                "metadata.a",
                ["a number", "string"],
            ),
        ] {
            refused(chat(extra), param, &words);
        }
    }

    #[test]
    fn the_door_lets_in_what_the_engine_takes_and_no_more() {
        let bias = |n: usize| {
            let entries: Vec<String> = (0..n).map(|id| format!("\"{id}\":1")).collect();
            chat(&format!(r#","logit_bias":{{{}}}"#, entries.join(",")))
        };
        let stop = |n: usize| chat(&format!(r#","stop":"{}""#, "x".repeat(n)));
        let biased = bias(MAX_LOGIT_BIAS).unwrap().sampling;
        let params = homeostat_engine::SamplingParams {
            logit_bias: biased.logit_bias,
            ..Default::default()
        };
        assert_eq!(params.check(MAX_LOGIT_BIAS), Ok(()));
        refused(bias(MAX_LOGIT_BIAS + 1), "logit_bias", &["301", "300"]);
        assert!(stop(MAX_STOP_BYTES).is_ok());
        refused(stop(MAX_STOP_BYTES + 1), "stop", &["257 bytes", "256"]);
    }

    #[test]
    fn what_this_server_cannot_do_is_refused_and_not_forgotten() {
        let tools = r#","tools":[{"type":"function"}]"#;
        refused(chat(tools), "tools", &["tools are not supported"]);
        refused(
            chat(r#","tool_choice":"required""#),
            "tool_choice",
            &["not supported"],
        );
        refused(
            chat(r#","modalities":["audio"]"#),
            "modalities",
            &["text only"],
        );
        assert!(chat(r#","tools":[],"tool_choice":"auto""#).is_ok());
        refused(
            completion(r#""prompt":"a","echo":true"#),
            "echo",
            &["repeated"],
        );
        refused(
            completion(r#""prompt":"a","best_of":3"#),
            "best_of",
            &["3", "1"],
        );
        refused(completion(r#""prompt":[1,2]"#), "prompt", &["token ids"]);
        refused(
            completion(r#""prompt":["a","b"]"#),
            "prompt",
            &["array of 2"],
        );
        refused(completion(r#""prompt":"""#), "prompt", &["empty"]);
        refused(completion(""), "prompt", &["missing"]);
    }

    #[test]
    fn messages_that_make_no_sense_are_named_by_their_place() {
        let chat = |messages: &str| {
            Asked::chat(format!(r#"{{"messages":{messages}}}"#).as_bytes(), DEFAULTS)
        };
        refused(chat("[]"), "messages", &["empty"]);
        refused(chat("{}"), "messages", &["array"]);
        refused(chat(r#"["hi"]"#), "messages[0]", &["a string", "object"]);
        refused(
            chat(r#"[{"content":"a"}]"#),
            "messages[0].role",
            &["missing", "user"],
        );
        refused(
            chat(r#"[{"role":"user","content":"a"},{"role":"robot","content":"a"}]"#),
            "messages[1].role",
            &["robot", "assistant"],
        );
        refused(
            chat(r#"[{"role":"user"}]"#),
            "messages[0].content",
            &["missing"],
        );
        refused(
            chat(r#"[{"role":"user","content":7}]"#),
            "messages[0].content",
            &["a number"],
        );
        refused(
            chat(r#"[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]"#),
            "messages[0].content[0].type",
            &["image_url", "text parts only"],
        );
        refused(
            chat(r#"[{"role":"assistant","content":"","tool_calls":[{}]}]"#),
            "messages[0].tool_calls",
            &["not supported"],
        );
    }

    #[test]
    fn text_parts_are_joined_and_developer_means_system() {
        let body = br#"{"messages":[{"role":"developer","content":[
            {"type":"text","text":"a"},{"type":"text","text":"b"}]}]}"#;
        let Prompt::Chat(messages) = Asked::chat(body, DEFAULTS).unwrap().prompt else {
            panic!("a chat has messages");
        };
        assert_eq!(messages[0].role, Role::System);
        assert_eq!(messages[0].content, "ab");
    }

    #[test]
    fn unknown_fields_are_listed_for_the_client() {
        let asked = chat(r#","temprature":1,"usr":"u""#).unwrap();
        assert_eq!(asked.ignored, ["temprature", "usr"]);
    }

    #[test]
    fn a_tenant_has_one_share_and_without_tenants_key_and_user_tell_clients_apart() {
        let asked = chat(r#","user":"u","priority":-3"#).unwrap();
        let job = |payer| asked.job("id", 0, payer, None);
        assert_eq!(job(Payer::default()).priority, -3);
        let tenant = Payer {
            tenant: Some("acme"),
            unproven: None,
        };
        assert_eq!(job(tenant).sharer.as_deref(), Some("tenant acme"));
        let keyed = |key| Payer {
            tenant: None,
            unproven: Some(key),
        };
        let shares = [
            job(Payer::default()).sharer.unwrap(),
            job(keyed("sk-1")).sharer.unwrap(),
            job(keyed("sk-2")).sharer.unwrap(),
        ];
        assert!(
            shares
                .iter()
                .all(|s| !s.contains("sk-") && s.ends_with("user u"))
        );
        assert!(shares[0] != shares[1] && shares[1] != shares[2]);
        let anonymous = chat(r#","user":"""#).unwrap();
        assert_eq!(anonymous.job("id", 0, Payer::default(), None).sharer, None);
        refused(
            chat(r#","priority":128"#),
            "priority",
            &["128", "-128 to 127"],
        );
        refused(chat(r#","user":7"#), "user", &["7", "a string"]);
    }

    #[test]
    fn broken_json_is_refused_with_its_place() {
        for (body, words) in [
            (&b"{\"messages\": [}"[..], vec!["line 1 column 15"]),
            (b"", vec!["empty"]),
            (b"[]", vec!["an array", "object"]),
            (b"{\"a\": \"\xff\"}", vec!["UTF-8", "byte 7"]),
            (b"{\"messages\":[],}", vec!["line 1"]),
        ] {
            let error = Asked::chat(body, DEFAULTS).unwrap_err();
            for word in words {
                assert!(error.message.contains(word), "{}: {word}", error.message);
            }
        }
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(Asked::chat(deep.as_bytes(), DEFAULTS).is_err());
    }

    #[test]
    fn several_answers_have_their_own_ids_and_seeds() {
        let asked = chat(r#","n":3,"seed":7"#).unwrap();
        let jobs: Vec<Job> = (0..3)
            .map(|i| asked.job("id", i, Payer::default(), None))
            .collect();
        let seeds: Vec<_> = jobs.iter().map(|j| j.sampling.seed.unwrap()).collect();
        assert_eq!(seeds, [7, 8, 9]);
        assert_eq!(jobs[0].id, "id");
        assert_eq!(jobs[2].id, "id.2");
    }

    #[test]
    fn metadata_reaches_policies_as_attributes() {
        let asked = chat(r#","metadata":{"App":"mail"}"#).unwrap();
        let expected = ("metadata.app".to_string(), Value::Text("mail".into()));
        assert_eq!(asked.attributes, [expected]);
    }
}
