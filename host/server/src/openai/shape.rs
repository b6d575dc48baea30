//! From answers to the JSON that OpenAI clients read, whole or as a stream.
//!
//! The only place that knows how an answer looks on the wire. Besides OpenAI's fields
//! every answer carries a `homeostat` object (OpenAI's clients keep unknown fields):
//! which tier answered, and where the story of the decision can be read.

use homeostat_cascade::{Closing, Cut, Head, Token, Usage};
use homeostat_hooks::{Endpoint, Finish};
use serde::Serialize;

use super::request::job_id;
use crate::energy::EnergyReceipt;

/// What all parts of one response share.
#[derive(Debug, Clone)]
pub struct Shape {
    pub endpoint: Endpoint,
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The tier of the first answer.
    pub model: String,
    /// Whether the client reads log-probabilities.
    pub logprobs: bool,
    /// Whether a stream ends with the usage.
    pub include_usage: bool,
}

/// One complete answer.
#[derive(Debug)]
pub struct Whole {
    pub head: Head,
    pub text: String,
    /// Kept only when log-probabilities were asked for.
    pub tokens: Vec<Token>,
    pub finish: Finish,
    pub usage: Usage,
}

/// What a response says about the decision behind it.
#[derive(Debug, Clone, Serialize)]
pub struct About {
    tier: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    escalations: u32,
    fallback: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    generated_tokens_all_steps: Option<u32>,
    /// Where a tier was left while the client read; at the end of a stream.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cuts: Vec<Cut>,
    decision: String,
    /// The other answers' decisions, with `n` above 1.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    more_decisions: Vec<String>,
}

impl About {
    /// About the first of `n` answers.
    pub fn new(head: &Head, id: &str, n: u32) -> Self {
        let path = |index| format!("/admin/v1/decisions/{}", job_id(id, index));
        Self {
            tier: head.tier.clone(),
            method: head.method.clone(),
            escalations: head.escalations,
            fallback: head.fallback,
            generated_tokens_all_steps: None,
            cuts: Vec::new(),
            decision: path(0),
            more_decisions: (1..n).map(path).collect(),
        }
    }

    /// The answer `index` of a stream is over. Of the others their decisions tell.
    pub fn close(&mut self, index: u32, closing: Closing) {
        if index == 0 {
            self.tier = closing.tier;
            self.escalations = closing.escalations;
            self.cuts = closing.cuts;
        }
    }
}

#[derive(Serialize)]
struct Response<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice<'a>>,
    /// The outer option: whether the field is there; the inner: whether it is null.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<WireUsage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    homeostat: Option<&'a About>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    #[serde(flatten)]
    content: Content<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Content<'a> {
    Delta(Delta<'a>),
    Message(FullMessage<'a>),
    Text(&'a str),
}

#[derive(Serialize, Default)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[derive(Serialize)]
struct FullMessage<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Logprobs<'a> {
    Chat {
        content: Vec<TokenLogprob<'a>>,
    },
    Completion {
        tokens: Vec<&'a str>,
        token_logprobs: Vec<Option<f32>>,
        top_logprobs: Vec<serde_json::Map<String, serde_json::Value>>,
        text_offset: Vec<usize>,
    },
}

#[derive(Serialize)]
struct TokenLogprob<'a> {
    token: &'a str,
    logprob: f32,
    bytes: &'a [u8],
    top_logprobs: Vec<TopLogprob<'a>>,
}

#[derive(Serialize)]
struct TopLogprob<'a> {
    token: &'a str,
    logprob: f32,
    bytes: &'a [u8],
}

#[derive(Serialize)]
struct WireUsage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    energy: Option<EnergyReceipt>,
}

impl WireUsage {
    fn new(u: Usage, energy: Option<EnergyReceipt>) -> Self {
        Self {
            prompt_tokens: u.prompt_tokens,
            completion_tokens: u.completion_tokens,
            total_tokens: u.prompt_tokens.saturating_add(u.completion_tokens),
            energy,
        }
    }
}

impl Shape {
    /// The first chunk of a stream: who answers.
    pub fn opening(&self, index: u32, about: Option<&About>) -> String {
        let content = self.piece("", Some("assistant"));
        self.chunk(vec![choice(index, content, None, None)], about)
    }

    /// A chunk with text. `offset`: characters that this answer had before it.
    pub fn text(&self, index: u32, token: &Token, offset: usize) -> String {
        let logprobs = self
            .logprobs
            .then(|| self.logprobs_of(std::slice::from_ref(token), offset));
        let content = self.piece(&token.text, None);
        self.chunk(vec![choice(index, content, logprobs, None)], None)
    }

    /// The last chunk of an answer.
    pub fn ending(&self, index: u32, finish: Finish) -> String {
        let content = match self.endpoint {
            Endpoint::Chat => Content::Delta(Delta::default()),
            Endpoint::Completion => Content::Text(""),
        };
        let choice = choice(index, content, None, Some(reason(finish)));
        self.chunk(vec![choice], None)
    }

    /// The chunk after the last answer: usage and no choice.
    pub fn usage(&self, usage: Usage, energy: Option<EnergyReceipt>, about: &About) -> String {
        let about = About {
            generated_tokens_all_steps: Some(usage.generated_tokens_all_steps),
            ..about.clone()
        };
        let mut response = self.response(self.chunk_object(), Vec::new());
        response.usage = Some(Some(WireUsage::new(usage, energy)));
        response.homeostat = Some(&about);
        json(&response)
    }

    /// A whole response of one or more answers.
    pub fn whole(&self, answers: &[Whole], energy: Option<EnergyReceipt>) -> String {
        let numbered = answers.iter().zip(0..);
        let choices = numbered.map(|(answer, index)| {
            let content = match self.endpoint {
                Endpoint::Chat => Content::Message(FullMessage {
                    role: "assistant",
                    content: &answer.text,
                    refusal: None,
                }),
                Endpoint::Completion => Content::Text(&answer.text),
            };
            let logprobs = self.logprobs.then(|| self.logprobs_of(&answer.tokens, 0));
            choice(index, content, logprobs, Some(reason(answer.finish)))
        });
        let object = match self.endpoint {
            Endpoint::Chat => "chat.completion",
            Endpoint::Completion => "text_completion",
        };
        let mut response = self.response(object, choices.collect());
        let usage = total(answers.iter().map(|a| a.usage));
        response.usage = Some(Some(WireUsage::new(usage, energy)));
        let about = answers.first().map(|a| About {
            generated_tokens_all_steps: Some(usage.generated_tokens_all_steps),
            ..About::new(&a.head, &self.id, answers.len() as u32)
        });
        response.homeostat = about.as_ref();
        json(&response)
    }

    fn piece<'a>(&self, text: &'a str, role: Option<&'static str>) -> Content<'a> {
        match self.endpoint {
            Endpoint::Chat => Content::Delta(Delta {
                role,
                content: Some(text),
            }),
            Endpoint::Completion => Content::Text(text),
        }
    }

    fn chunk(&self, choices: Vec<Choice<'_>>, about: Option<&About>) -> String {
        let mut response = self.response(self.chunk_object(), choices);
        response.usage = self.include_usage.then_some(None);
        json(&Response {
            homeostat: about,
            ..response
        })
    }

    fn chunk_object(&self) -> &'static str {
        match self.endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completion => "text_completion",
        }
    }

    fn response<'a>(&'a self, object: &'static str, choices: Vec<Choice<'a>>) -> Response<'a> {
        Response {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            choices,
            usage: None,
            homeostat: None,
        }
    }

    /// Tokens without a log-probability (a direct answer, a remote tier that gives none)
    /// are left out for chats, where the field must be a number, and null otherwise.
    fn logprobs_of<'a>(&self, tokens: &'a [Token], offset: usize) -> Logprobs<'a> {
        match self.endpoint {
            Endpoint::Chat => Logprobs::Chat {
                content: tokens.iter().filter_map(chat_logprob).collect(),
            },
            Endpoint::Completion => {
                let mut at = offset;
                let text_offset = tokens.iter().map(|t| {
                    let here = at;
                    at += t.text.chars().count();
                    here
                });
                Logprobs::Completion {
                    text_offset: text_offset.collect(),
                    tokens: tokens.iter().map(|t| t.text.as_str()).collect(),
                    token_logprobs: tokens.iter().map(|t| t.logprob).collect(),
                    top_logprobs: tokens.iter().map(top_map).collect(),
                }
            }
        }
    }
}

/// Usage of several answers to one prompt: the prompt is counted once, as OpenAI does.
pub fn total(usages: impl Iterator<Item = Usage>) -> Usage {
    usages.fold(Usage::default(), |sum, u| Usage {
        prompt_tokens: sum.prompt_tokens.max(u.prompt_tokens),
        completion_tokens: sum.completion_tokens + u.completion_tokens,
        generated_tokens_all_steps: sum.generated_tokens_all_steps + u.generated_tokens_all_steps,
    })
}

fn choice<'a>(
    index: u32,
    content: Content<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
) -> Choice<'a> {
    Choice {
        index,
        content,
        logprobs,
        finish_reason,
    }
}

fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Length => "length",
        Finish::Stop | Finish::Unfinished => "stop",
    }
}

fn chat_logprob(token: &Token) -> Option<TokenLogprob<'_>> {
    Some(TokenLogprob {
        token: &token.text,
        logprob: finite(token.logprob?),
        bytes: token.text.as_bytes(),
        top_logprobs: token
            .top
            .iter()
            .map(|(text, logprob)| TopLogprob {
                token: text,
                logprob: finite(*logprob),
                bytes: text.as_bytes(),
            })
            .collect(),
    })
}

fn top_map(token: &Token) -> serde_json::Map<String, serde_json::Value> {
    let pairs = token.top.iter();
    pairs
        .map(|(text, logprob)| (text.clone(), finite(*logprob).into()))
        .collect()
}

/// JSON has no infinity; OpenAI writes -9999 for a token that cannot occur.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() {
        logprob
    } else {
        -9999.0
    }
}

fn json(response: &Response<'_>) -> String {
    serde_json::to_string(response).expect("strings and finite numbers always serialise")
}

#[cfg(test)]
mod tests {
    use homeostat_cascade::CutBy;

    use super::*;

    fn shape(endpoint: Endpoint) -> Shape {
        Shape {
            endpoint,
            id: "id-1".into(),
            created: 7,
            model: "small".into(),
            logprobs: false,
            include_usage: false,
        }
    }

    fn head() -> Head {
        Head {
            request_id: "id-1".into(),
            tier: "small".into(),
            receipt: None,
            method: None,
            policies: Vec::new(),
            fallback: false,
            escalations: 0,
        }
    }

    fn token(text: &str, logprob: Option<f32>) -> Token {
        Token {
            text: text.into(),
            logprob,
            entropy: None,
            top: logprob.iter().map(|l| (text.to_string(), *l)).collect(),
        }
    }

    fn whole(text: &str) -> Whole {
        Whole {
            head: head(),
            text: text.into(),
            tokens: vec![token(text, Some(-0.5))],
            finish: Finish::Stop,
            usage: Usage {
                prompt_tokens: 3,
                completion_tokens: 2,
                generated_tokens_all_steps: 5,
            },
        }
    }

    #[test]
    fn a_whole_chat_answer_looks_as_openai_writes_it() {
        assert_eq!(
            shape(Endpoint::Chat).whole(&[whole("Hi")], None),
            concat!(
                r#"{"id":"id-1","object":"chat.completion","created":7,"model":"small","choices":"#,
                r#"[{"index":0,"message":{"role":"assistant","content":"Hi","refusal":null},"#,
                r#""logprobs":null,"finish_reason":"stop"}],"#,
                r#""usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5},"#,
                r#""homeostat":{"tier":"small","escalations":0,"fallback":false,"#,
                r#""generated_tokens_all_steps":5,"decision":"/admin/v1/decisions/id-1"}}"#
            )
        );
    }

    #[test]
    fn chunks_of_a_chat_carry_role_then_text_then_reason_then_usage() {
        let mut shape = shape(Endpoint::Chat);
        let prefix = r#"{"id":"id-1","object":"chat.completion.chunk","created":7,"model":"small","choices":"#;
        assert_eq!(
            shape.opening(0, None),
            format!(
                r#"{prefix}[{{"index":0,"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}]}}"#
            )
        );
        assert_eq!(
            shape.text(1, &token("é", None), 0),
            format!(
                r#"{prefix}[{{"index":1,"delta":{{"content":"é"}},"logprobs":null,"finish_reason":null}}]}}"#
            )
        );
        shape.include_usage = true;
        assert_eq!(
            shape.ending(0, Finish::Length),
            format!(
                r#"{prefix}[{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":"length"}}],"usage":null}}"#
            )
        );
        let usage = shape.usage(whole("x").usage, None, &About::new(&head(), "id-1", 2));
        assert!(usage.starts_with(&format!(
            r#"{prefix}[],"usage":{{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}"#
        )));
        assert!(usage.contains(r#""more_decisions":["/admin/v1/decisions/id-1.1"]"#));
    }

    #[test]
    fn the_end_of_a_stream_tells_where_its_tiers_changed() {
        let cut = Cut {
            tier: "small".into(),
            at_ms: 40,
            by: CutBy::Surprisal,
            why: "it guesses".into(),
            sent_tokens: 8,
            seam_bytes: 30,
            dropped_tokens: 4,
            dropped_bytes: 15,
            repeated_bytes: Some(3),
        };
        let mut about = About::new(&head(), "id-1", 2);
        let closing = |tier: &str| Closing {
            tier: tier.into(),
            escalations: 1,
            cuts: vec![cut.clone()],
        };
        about.close(1, closing("other"));
        assert!(about.cuts.is_empty(), "it is about the first answer");
        about.close(0, closing("large"));
        let usage = shape(Endpoint::Chat).usage(whole("x").usage, None, &about);
        for told in [
            r#""tier":"large","escalations":1"#,
            r#""cuts":[{"tier":"small","at_ms":40,"by":"surprisal","why":"it guesses","sent_tokens":8"#,
            r#""dropped_tokens":4"#,
        ] {
            assert!(usage.contains(told), "{usage}");
        }
    }

    #[test]
    fn log_probabilities_of_a_chat_come_with_bytes() {
        let mut shape = shape(Endpoint::Chat);
        shape.logprobs = true;
        let text = shape.text(0, &token("é", Some(-0.5)), 0);
        assert!(
            text.contains(
                r#""logprobs":{"content":[{"token":"é","logprob":-0.5,"bytes":[195,169],"top_logprobs":[{"token":"é","logprob":-0.5,"bytes":[195,169]}]}]}"#
            ),
            "{text}"
        );
        let never = shape.text(0, &token("x", Some(f32::NEG_INFINITY)), 0);
        assert!(never.contains(r#""logprob":-9999.0"#), "{never}");
    }

    #[test]
    fn log_probabilities_of_a_completion_come_with_offsets_in_characters() {
        let mut shape = shape(Endpoint::Completion);
        shape.logprobs = true;
        let mut answer = whole("éx");
        answer.tokens = vec![token("é", Some(-0.5)), token("x", None)];
        let text = shape.whole(&[answer], None);
        assert!(
            text.contains(
                r#""text":"éx","logprobs":{"tokens":["é","x"],"token_logprobs":[-0.5,null],"top_logprobs":[{"é":-0.5},{}],"text_offset":[0,1]}"#
            ),
            "{text}"
        );
    }

    #[test]
    fn the_prompt_of_several_answers_is_counted_once() {
        let sum = total([whole("a").usage, whole("b").usage].into_iter());
        assert_eq!((sum.prompt_tokens, sum.completion_tokens), (3, 4));
    }
}
