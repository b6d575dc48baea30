//! The wire of another OpenAI-compatible server, seen from a client: what is sent, and
//! what a stream of chunks means.
//!
//! Servers differ. Fields beyond OpenAI's are sent only when the client asked for
//! something that needs them, and every field of a chunk may be missing.

use homeostat_cascade::{
    CONTEXT_LENGTH_EXCEEDED, CONVERSATION_REFUSED, GenerateCall, OutputFormat, Prompt, TierError,
    TierFault, Token,
};
use homeostat_hooks::{Finish, Role};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// How an upstream is made to continue an answer that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prefill {
    /// A last message of the assistant is continued (llama.cpp, Anthropic's, Mistral's).
    #[default]
    TrailingAssistant,
    /// The same, and the flags of vLLM and SGLang.
    ContinueFinalMessage,
    /// By `/completions`, with the conversation written out by the tier's `chat_template`
    /// (llama-cpp-python, whose chats always open a new turn).
    Completions,
    /// It cannot.
    None,
}

/// Path below the base URL, and body.
pub fn request(
    call: &GenerateCall,
    model: &str,
    prefill: Prefill,
    logprobs: bool,
    max_tokens: u32,
) -> (&'static str, Value) {
    let mut body = sampling(call, max_tokens);
    body.insert("model".into(), model.into());
    body.insert("stream".into(), true.into());
    body.insert("stream_options".into(), json!({"include_usage": true}));
    let top = call.sampling.top_logprobs.unwrap_or(0).max(1);
    match &*call.prompt {
        Prompt::Chat(messages) => {
            let mut list: Vec<Value> = messages
                .iter()
                .map(|m| json!({"role": role(m.role), "content": m.content}))
                .collect();
            if !call.answer_prefix.is_empty() {
                list.push(json!({"role": "assistant", "content": call.answer_prefix}));
                if prefill == Prefill::ContinueFinalMessage {
                    body.insert("continue_final_message".into(), true.into());
                    body.insert("add_generation_prompt".into(), false.into());
                }
            }
            body.insert("messages".into(), list.into());
            if logprobs {
                body.insert("logprobs".into(), true.into());
                body.insert("top_logprobs".into(), top.into());
            }
            ("/chat/completions", body.into())
        }
        Prompt::Raw(text) => {
            let prompt = format!("{text}{}", call.answer_prefix);
            body.insert("prompt".into(), prompt.into());
            if logprobs {
                body.insert("logprobs".into(), top.into());
            }
            ("/completions", body.into())
        }
    }
}

fn sampling(call: &GenerateCall, max_tokens: u32) -> Map<String, Value> {
    let s = &call.sampling;
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| body.insert(name.into(), value);
    put("temperature", s.temperature.into());
    put("top_p", s.top_p.into());
    put("max_tokens", call.max_tokens.unwrap_or(max_tokens).into());
    if let Some(seed) = s.seed {
        // Many servers read the seed as a signed number of 32 or 64 bits.
        put("seed", (seed & 0x7fff_ffff).into());
    }
    if !s.stop.is_empty() {
        put("stop", s.stop.clone().into());
    }
    for (name, value, off) in [
        ("frequency_penalty", s.frequency_penalty, 0.0),
        ("presence_penalty", s.presence_penalty, 0.0),
        ("repetition_penalty", s.repetition_penalty, 1.0),
        ("min_p", s.min_p, 0.0),
    ] {
        if value != off {
            put(name, value.into());
        }
    }
    if s.top_k > 0 {
        put("top_k", s.top_k.into());
    }
    if !s.logit_bias.is_empty() {
        let biases = s.logit_bias.iter();
        let map: Map<String, Value> = biases.map(|(t, b)| (t.to_string(), (*b).into())).collect();
        put("logit_bias", map.into());
    }
    if let Some((name, value)) = output(&call.output) {
        put(name, value);
    }
    body
}

/// The field that asks for this form: OpenAI's where it has one, else vLLM's. A server that knows
/// neither may answer in any form.
fn output(output: &OutputFormat) -> Option<(&'static str, Value)> {
    match output {
        OutputFormat::Text => None,
        OutputFormat::JsonObject => Some(("response_format", json!({"type": "json_object"}))),
        OutputFormat::JsonSchema { name, schema } => {
            let spec = json!({"name": name, "schema": schema, "strict": true});
            let format = json!({"type": "json_schema", "json_schema": spec});
            Some(("response_format", format))
        }
        OutputFormat::Regex(text) => Some(("structured_outputs", json!({"regex": text}))),
        OutputFormat::Grammar(text) => Some(("structured_outputs", json!({"grammar": text}))),
        OutputFormat::Choice(texts) => Some(("structured_outputs", json!({"choice": texts}))),
    }
}

pub fn role(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    }
}

/// One chunk of a stream, as tolerant as servers are different.
#[derive(Debug, Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<ChunkChoice>,
    usage: Option<ChunkUsage>,
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct ChunkChoice {
    delta: Option<Delta>,
    text: Option<String>,
    logprobs: Option<ChunkLogprobs>,
    finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Delta {
    content: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ChunkUsage {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
}

/// Chat's format has `content`, the older one parallel arrays.
#[derive(Debug, Deserialize)]
struct ChunkLogprobs {
    content: Option<Vec<ContentLogprob>>,
    tokens: Option<Vec<String>>,
    token_logprobs: Option<Vec<Option<f32>>>,
    top_logprobs: Option<Vec<Option<Map<String, Value>>>>,
}

#[derive(Debug, Deserialize)]
struct ContentLogprob {
    #[serde(default)]
    token: String,
    logprob: Option<f32>,
    #[serde(default)]
    top_logprobs: Vec<ContentLogprob>,
}

/// What a chunk brings.
#[derive(Debug, Default, PartialEq)]
pub struct Piece {
    pub tokens: Vec<Token>,
    pub finish: Option<Finish>,
    /// Prompt and completion tokens.
    pub usage: Option<(u32, u32)>,
}

/// Read one event of a stream.
pub fn read_chunk(tier: &str, data: &str) -> Result<Piece, TierError> {
    let chunk: Chunk = serde_json::from_str(data).map_err(|e| {
        let start: String = data.chars().take(80).collect();
        broken(
            tier,
            format!("sent something that is no chunk ({e}): {start:?}"),
        )
    })?;
    if let Some(error) = chunk.error {
        return Err(broken(tier, format!("failed: {}", message_of(&error))));
    }
    let mut piece = Piece {
        usage: chunk.usage.map(|u| (u.prompt_tokens, u.completion_tokens)),
        ..Piece::default()
    };
    // One answer was asked for; a server that sends others is read as far as the first.
    if let Some(choice) = chunk.choices.into_iter().next() {
        piece.finish = choice.finish_reason.map(|reason| match reason.as_str() {
            "length" => Finish::Length,
            _ => Finish::Stop,
        });
        let text = choice.delta.and_then(|d| d.content).or(choice.text);
        piece.tokens = tokens(text.unwrap_or_default(), choice.logprobs);
    }
    Ok(piece)
}

/// Text and log-probabilities together. A server may hold text back, so the texts of the
/// tokens need not add up to the text sent; then the first token carries all of it.
fn tokens(text: String, logprobs: Option<ChunkLogprobs>) -> Vec<Token> {
    let mut listed = logprobs.map(listed).unwrap_or_default();
    if listed.is_empty() {
        let token = Token {
            text,
            ..Token::default()
        };
        return if token.text.is_empty() {
            Vec::new()
        } else {
            vec![token]
        };
    }
    let joined: String = listed.iter().map(|t| t.text.as_str()).collect();
    if joined != text {
        listed.iter_mut().for_each(|t| t.text.clear());
        listed[0].text = text;
    }
    listed
}

fn listed(logprobs: ChunkLogprobs) -> Vec<Token> {
    if let Some(content) = logprobs.content {
        let tokens = content.into_iter().map(|entry| Token {
            text: entry.token,
            logprob: entry.logprob,
            entropy: None,
            top: entry
                .top_logprobs
                .into_iter()
                .filter_map(|t| Some((t.token, t.logprob?)))
                .collect(),
        });
        return tokens.collect();
    }
    let values = logprobs.token_logprobs.unwrap_or_default();
    let mut tops = logprobs.top_logprobs.unwrap_or_default().into_iter();
    let texts = logprobs.tokens.unwrap_or_default();
    let tokens = texts.into_iter().enumerate().map(|(i, text)| Token {
        text,
        logprob: values.get(i).copied().flatten(),
        entropy: None,
        top: tops
            .next()
            .flatten()
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(text, p)| Some((text, p.as_f64()? as f32)))
            .collect(),
    });
    tokens.collect()
}

/// What an upstream's refusal means to us. `status` is not a success.
pub fn refusal(tier: &str, status: u16, retry_after: Option<u32>, body: &[u8]) -> TierError {
    let value: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let error = value.get("error").unwrap_or(&value);
    let text = if error.is_null() {
        let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
        text.trim().to_string()
    } else {
        message_of(error)
    };
    let code = error.get("code").and_then(Value::as_str).unwrap_or("");
    let too_long = code == CONTEXT_LENGTH_EXCEEDED
        || (text.contains("context") && (text.contains("length") || text.contains("window")));
    let (fault, code, retryable) = match status {
        // llama-cpp-python reports a prompt that is too long as its own failure.
        400 | 413 | 422 | 500 if too_long => (TierFault::Client, CONTEXT_LENGTH_EXCEEDED, false),
        // Another host of this kind.
        400 if code == CONVERSATION_REFUSED => (TierFault::Client, CONVERSATION_REFUSED, false),
        400 | 413 | 422 => (TierFault::Client, "invalid_value", false),
        401 | 403 => (TierFault::Tier, "upstream_auth", false),
        404 | 405 => (TierFault::Tier, "upstream_not_found", false),
        408 | 429 => (TierFault::Tier, "queue_full", true),
        _ => (TierFault::Tier, "unavailable", true),
    };
    TierError {
        fault,
        code,
        message: format!("tier {tier} refused with status {status}: {text}"),
        retryable,
        retry_after_ms: retry_after,
    }
}

/// The upstream broke off or talks nonsense: another try may work.
pub fn broken(tier: &str, what: impl std::fmt::Display) -> TierError {
    TierError {
        fault: TierFault::Tier,
        code: "unavailable",
        message: format!("tier {tier} {what}"),
        retryable: true,
        retry_after_ms: None,
    }
}

fn message_of(error: &Value) -> String {
    let text = error
        .get("message")
        .and_then(Value::as_str)
        .or(error.as_str())
        .or_else(|| error.get("detail").and_then(Value::as_str));
    let text = text.map_or_else(|| error.to_string(), str::to_string);
    text.chars().take(400).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use homeostat_cascade::Sampling;
    use homeostat_hooks::Message;

    use super::*;

    fn call(prompt: Prompt, prefix: &str) -> GenerateCall {
        GenerateCall {
            request_id: "r".into(),
            prompt: Arc::new(prompt),
            sampling: Sampling::default(),
            max_tokens: None,
            max_draft_tokens: 0,
            output: OutputFormat::Text,
            answer_prefix: prefix.into(),
            draft_hint: String::new(),
            sharer: None,
            priority: 0,
            time_left: None,
        }
    }

    fn hi() -> Prompt {
        Prompt::Chat(vec![Message {
            role: Role::User,
            content: "hi".into(),
        }])
    }

    #[test]
    fn a_plain_request_holds_nothing_that_openai_would_refuse() {
        let (path, body) = request(&call(hi(), ""), "big", Prefill::default(), false, 50);
        assert_eq!(path, "/chat/completions");
        let expected = json!({
            "model": "big", "stream": true, "stream_options": {"include_usage": true},
            "temperature": 1.0, "top_p": 1.0, "max_tokens": 50,
            "messages": [{"role": "user", "content": "hi"}],
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn a_form_is_asked_for_in_openais_words_or_else_in_vllms() {
        let schema = json!({"type": "object"});
        let spec = json!({"name": "n", "schema": schema, "strict": true});
        let by_schema = OutputFormat::JsonSchema {
            name: "n".into(),
            schema,
        };
        for (output, field, value) in [
            (OutputFormat::Text, "response_format", Value::Null),
            (
                OutputFormat::JsonObject,
                "response_format",
                json!({"type": "json_object"}),
            ),
            (
                by_schema,
                "response_format",
                json!({"type": "json_schema", "json_schema": spec}),
            ),
            (
                OutputFormat::Choice(vec!["a".into()]),
                "structured_outputs",
                json!({"choice": ["a"]}),
            ),
            (
                OutputFormat::Regex("a".into()),
                "structured_outputs",
                json!({"regex": "a"}),
            ),
        ] {
            let asked = GenerateCall {
                output,
                ..call(hi(), "")
            };
            let (_, body) = request(&asked, "m", Prefill::default(), false, 5);
            assert_eq!(body[field], value);
        }
    }

    #[test]
    fn an_answer_that_has_begun_is_continued_in_the_upstreams_own_way() {
        let (_, body) = request(&call(hi(), "He"), "m", Prefill::TrailingAssistant, true, 5);
        assert_eq!(
            body["messages"][1],
            json!({"role": "assistant", "content": "He"})
        );
        assert_eq!(body["continue_final_message"], Value::Null);
        assert_eq!(body["logprobs"], true);
        let (_, body) = request(
            &call(hi(), "He"),
            "m",
            Prefill::ContinueFinalMessage,
            true,
            5,
        );
        assert_eq!(body["continue_final_message"], true);
        assert_eq!(body["add_generation_prompt"], false);
        let raw = Prompt::Raw("Once".into());
        let (path, body) = request(&call(raw, " upon"), "m", Prefill::None, true, 5);
        assert_eq!(
            (path, &body["prompt"]),
            ("/completions", &json!("Once upon"))
        );
        assert_eq!(body["logprobs"], 1);
    }

    #[test]
    fn chunks_of_many_servers_are_understood() {
        let read = |data| read_chunk("t", data).unwrap();
        let text = |piece: &Piece| {
            piece
                .tokens
                .iter()
                .map(|t| t.text.clone())
                .collect::<String>()
        };
        let plain = read(r#"{"choices":[{"delta":{"content":"Hi"},"finish_reason":null}]}"#);
        assert_eq!((text(&plain).as_str(), plain.finish), ("Hi", None));
        let role = read(r#"{"choices":[{"delta":{"role":"assistant"}}]}"#);
        assert!(role.tokens.is_empty());
        let end = read(r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#);
        assert_eq!(end.finish, Some(Finish::Length));
        let usage = read(r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#);
        assert_eq!(usage.usage, Some((3, 4)));
        let legacy = read(
            r#"{"choices":[{"text":"ab","logprobs":{"tokens":["a","b"],"token_logprobs":[-0.5,null],"top_logprobs":[{"a":-0.5},null]},"finish_reason":"stop"}]}"#,
        );
        assert_eq!(text(&legacy), "ab");
        assert_eq!(legacy.tokens[0].logprob, Some(-0.5));
        assert_eq!(legacy.tokens[0].top, [("a".to_string(), -0.5)]);
        let several = read(
            r#"{"choices":[{"delta":{"content":"ab"},"logprobs":{"content":[{"token":"a","logprob":-1.0,"top_logprobs":[]},{"token":"b","logprob":-2.0}]}}]}"#,
        );
        assert_eq!(several.tokens.len(), 2);
        assert_eq!(several.tokens[1].logprob, Some(-2.0));
    }

    #[test]
    fn text_that_a_server_holds_back_is_neither_lost_nor_doubled() {
        let piece = read_chunk(
            "t",
            r#"{"choices":[{"delta":{"content":"a"},"logprobs":{"content":[{"token":"a","logprob":-1.0},{"token":"STOP","logprob":-2.0}]}}]}"#,
        )
        .unwrap();
        let texts: Vec<&str> = piece.tokens.iter().map(|t| t.text.as_str()).collect();
        assert_eq!(texts, ["a", ""]);
    }

    #[test]
    fn nonsense_and_errors_inside_a_stream_are_the_tiers_fault() {
        for data in ["", "hello", "[1]", r#"{"error":{"message":"boom"}}"#] {
            let error = read_chunk("big", data).unwrap_err();
            assert_eq!(error.fault, TierFault::Tier);
            assert!(error.message.contains("big"), "{}", error.message);
        }
    }

    #[test]
    fn a_refusal_says_whose_fault_it_is() {
        let fault = |status, body: &str| {
            let e = refusal("t", status, None, body.as_bytes());
            (e.fault, e.code, e.retryable)
        };
        let long = r#"{"error":{"message":"maximum context length is 10","code":null}}"#;
        let client = (TierFault::Client, "context_length_exceeded", false);
        assert_eq!(fault(400, long), client);
        let llama = r#"{"error":{"message":"Requested tokens (99) exceed context window of 10"}}"#;
        assert_eq!(fault(500, llama), client);
        let template = r#"{"error":{"message":"no system","code":"conversation_refused"}}"#;
        assert_eq!(fault(400, template).1, CONVERSATION_REFUSED);
        assert_eq!(fault(400, "{}").1, "invalid_value");
        assert_eq!(fault(401, "").1, "upstream_auth");
        assert_eq!(fault(429, ""), (TierFault::Tier, "queue_full", true));
        assert_eq!(fault(502, "<html>"), (TierFault::Tier, "unavailable", true));
    }
}
