//! What is asked, and how hard it is.

use serde::{Deserialize, Serialize};

/// A value of an extension attribute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// True or false.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// A finite number.
    Number(f64),
    /// Text.
    Text(String),
}

/// A named extension: lower case, dots; `homeostat.*` belongs to the host.
pub type Attribute = (String, Value);

/// Attribute of a request, an integer: every turn of a conversation has the same, however
/// much of its text is left out, and others hardly ever have it. It is a hash of the
/// messages up to the first of the person.
pub const CONVERSATION: &str = "homeostat.conversation";

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Instructions of the application.
    System,
    /// The person.
    User,
    /// A model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The text.
    pub content: String,
}

/// Which endpoint the request came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    #[default]
    Chat,
    /// `/v1/completions`: one user message holds the raw prompt.
    Completion,
}

/// The form in which the application wants the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResponseFormat {
    /// Free text.
    #[default]
    Text,
    /// One JSON object.
    JsonObject,
    /// JSON that follows a schema (attribute `homeostat.json-schema`).
    JsonSchema,
}

/// A checked request, as every hook of it sees it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Request {
    /// Unique id, the same that the client receives.
    pub id: String,
    /// Where it came in.
    pub endpoint: Endpoint,
    /// The model that the client named: a tier id, or `auto`.
    pub model: String,
    /// The conversation, oldest first.
    pub messages: Vec<Message>,
    /// Bytes of message text left out of `messages` because the request is longer than
    /// the host shows to policies; 0 = nothing.
    pub cut_bytes: u64,
    /// Most new tokens that the client wants.
    pub max_tokens: Option<u32>,
    /// Sampling temperature, 0 or more.
    pub temperature: f32,
    /// Form of the answer.
    pub response_format: ResponseFormat,
    /// Whether the client reads the answer as a stream.
    pub stream: bool,
    /// Who pays, when the server knows.
    pub tenant: Option<String>,
    /// Time left to answer, when the client set a deadline.
    pub deadline_ms: Option<u32>,
    /// Extensions, among them [`CONVERSATION`].
    pub attributes: Vec<Attribute>,
}

impl Request {
    /// The last message of the person; empty when there is none.
    pub fn question(&self) -> &str {
        self.messages
            .iter()
            .rev()
            .find(|m| m.role == Role::User)
            .map_or("", |m| m.content.as_str())
    }
}

/// The task types of NVIDIA's prompt task and complexity classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// A question whose answer must be known.
    OpenQa,
    /// A question about supplied text.
    ClosedQa,
    /// Shorten a text.
    Summarization,
    /// Write a text.
    TextGeneration,
    /// Write or mend code.
    CodeGeneration,
    /// Talk.
    Chatbot,
    /// Sort into classes.
    Classification,
    /// Reword a text.
    Rewrite,
    /// Find ideas.
    Brainstorming,
    /// Take facts out of a text.
    Extraction,
    /// None of these.
    #[default]
    Other,
}

/// How hard a request is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Classification {
    /// Probability that a small model suffices.
    pub p_simple: f32,
    /// Probability that it takes a medium one.
    pub p_medium: f32,
    /// Probability that it takes the largest; the three add up to 1 (± 0.01).
    pub p_complex: f32,
    /// What is asked for.
    pub task: Task,
    /// Named scores, 0 to 1.
    pub dimensions: Vec<(String, f32)>,
    /// How far the classifier trusts itself, 0 to 1.
    pub confidence: f32,
    /// Extensions.
    pub attributes: Vec<Attribute>,
}

impl Default for Classification {
    /// "I do not know": all three equally likely, no confidence.
    fn default() -> Self {
        Self {
            p_simple: 1.0 / 3.0,
            p_medium: 1.0 / 3.0,
            p_complex: 1.0 / 3.0,
            task: Task::Other,
            dimensions: Vec::new(),
            confidence: 0.0,
            attributes: Vec::new(),
        }
    }
}
