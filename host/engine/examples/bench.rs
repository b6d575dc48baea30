//! The engine as `tests/bench/run.py` measures it: commands on standard input, answers on
//! standard output, one JSON object a line.
//!
//! It exists so that a benchmark in another language can time this engine without a server in
//! between. It decides nothing about what is measured; the peers speak the same lines.
//!
//! `bench '{"model": "…gguf", "threads": 2, "kv_bytes": 134217728, "prefix_cache": false}'`, and
//! for a GPU with `"device": "cuda:0", "max_batch_tokens": 8192, "max_sequences": 64` in it.

use std::io::{BufRead, Write};
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use homeostat_engine::{
    ChatMessage, Closed, Engine, EngineConfig, EngineHandle, Event, GenerationRequest, Prompt,
    SamplingParams, Shutdown, Sink,
};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    model: String,
    threads: usize,
    kv_bytes: u64,
    prefix_cache: bool,
    device: Option<String>,
    max_batch_tokens: Option<usize>,
    max_sequences: Option<usize>,
}

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
enum Command {
    /// The tokens of a plain text.
    Tokenize { text: String },
    /// The text of tokens.
    Detokenize { tokens: Vec<u32> },
    /// The tokens of a conversation of one message.
    Render { text: String },
    /// All prompts at once; greedily; with `ignore_end` every answer has its full length.
    Generate {
        prompts: Vec<Vec<u32>>,
        new_tokens: usize,
        ignore_end: bool,
        /// Whether drafts are allowed.
        draft: bool,
        /// Whose requests they are: nothing is remembered from one to another.
        tenant: String,
    },
    /// What the process holds.
    Memory,
}

/// Tells when each token of one answer came.
struct Clock {
    index: usize,
    events: Sender<(usize, Instant, Option<u32>)>,
}

impl Sink for Clock {
    fn event(&mut self, event: Event) -> Result<(), Closed> {
        let token = match event {
            Event::Token { logprob, .. } => Some(logprob.token_id),
            Event::Finished { .. } => None,
            Event::Failed(error) => {
                eprintln!("bench: {error}");
                None
            }
        };
        let told = self.events.send((self.index, Instant::now(), token));
        told.map_err(|_| Closed)
    }
}

/// Seconds from the first submission to the first and to the last token of each answer, and the
/// tokens. `like` is what the requests have in common.
fn generate(
    handle: &EngineHandle,
    prompts: Vec<Vec<u32>>,
    like: &GenerationRequest,
) -> Result<Value, String> {
    let count = prompts.len();
    let (sender, events) = channel();
    let began = Instant::now();
    for (index, tokens) in prompts.into_iter().enumerate() {
        let request = GenerationRequest {
            prompt: Prompt::Tokens(tokens),
            ..like.clone()
        };
        let events = sender.clone();
        let submitted = handle.submit(request, Box::new(Clock { index, events }));
        submitted.map_err(|e| e.to_string())?;
    }
    drop(sender);
    let (mut first, mut last) = (vec![None; count], vec![None; count]);
    let mut tokens = vec![Vec::new(); count];
    for (index, at, token) in events {
        let Some(token) = token else { continue };
        let seconds = at.duration_since(began).as_secs_f64();
        first[index].get_or_insert(seconds);
        last[index] = Some(seconds);
        tokens[index].push(token);
    }
    Ok(json!({"first": first, "last": last, "tokens": tokens}))
}

fn memory() -> Result<Value, String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|e| e.to_string())?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib * 1024)
    };
    Ok(json!({"resident": bytes("VmRSS:"), "peak": bytes("VmHWM:")}))
}

fn obey(handle: &EngineHandle, line: &str) -> Result<Value, String> {
    match serde_json::from_str(line).map_err(|e| e.to_string())? {
        Command::Tokenize { text } => Ok(json!({"tokens": handle.tokenize(&text, false)})),
        Command::Detokenize { tokens } => Ok(json!({"text": handle.detokenize(&tokens)})),
        Command::Render { text } => {
            let message = ChatMessage::new("user", text.as_str());
            let rendered = handle.render_chat(&[message], true, None);
            let rendered = rendered.map_err(|e| e.to_string())?;
            Ok(json!({"tokens": handle.tokenize(&rendered, true)}))
        }
        Command::Generate {
            prompts,
            new_tokens,
            ignore_end,
            draft,
            tenant,
        } => {
            let ends = handle.info().end_tokens.iter().map(|t| (*t, -100.0));
            let like = GenerationRequest {
                params: SamplingParams {
                    temperature: 0.0,
                    logit_bias: ends.filter(|_| ignore_end).collect(),
                    ..SamplingParams::default()
                },
                max_new_tokens: Some(new_tokens),
                max_draft_tokens: (!draft).then_some(0),
                tenant: Some(tenant),
                ..GenerationRequest::new("")
            };
            generate(handle, prompts, &like)
        }
        Command::Memory => memory(),
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let settings = std::env::args().nth(1).ok_or("settings are missing")?;
    let settings: Settings = serde_json::from_str(&settings)?;
    let mut config = EngineConfig::new("bench", settings.model);
    config.threads = settings.threads;
    config.kv_bytes = settings.kv_bytes;
    config.prefix_cache = settings.prefix_cache;
    if let Some(device) = settings.device {
        config.device = device.parse()?;
    }
    config.max_batch_tokens = settings.max_batch_tokens.unwrap_or(config.max_batch_tokens);
    config.max_sequences = settings.max_sequences.unwrap_or(config.max_sequences);
    let engine = Engine::load(config)?;
    let handle = engine.handle();
    let info = handle.info();
    let ready = json!({
        "isa": info.isa,
        "threads": info.threads,
        "kv_bytes_per_token": info.kv_bytes_per_token,
        "kv_blocks": info.kv_blocks,
    });
    let mut out = std::io::stdout().lock();
    writeln!(out, "{ready}")?;
    out.flush()?;
    for line in std::io::stdin().lock().lines() {
        let answer = obey(&handle, &line?).unwrap_or_else(|error| json!({ "error": error }));
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    engine.shutdown(Shutdown::Cancel);
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        eprintln!("bench: {error}");
        std::process::exit(1);
    }
}
