//! A complete GGUF model of a few hundred kilobytes: byte-level vocabulary, two Llama layers,
//! random weights from a fixed seed. It says nothing sensible and shows every wrong bit.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use tempfile::TempDir;

use crate::events::{Closed, Event, FinishReason, Sink};
use crate::model::source::ModelSource;
use crate::random::SplitMix;
use crate::tokenizer::Tokenizer;
use crate::{Engine, EngineConfig, EngineHandle, GenerationRequest, Prompt, SamplingParams};

pub const HIDDEN: usize = 64;
pub const VOCABULARY: usize = 264;
pub const END: u32 = 256;
pub const START: u32 = 257;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const FEED_FORWARD: usize = 96;

/// A GGUF file under construction: header entries, then tensors.
#[derive(Default)]
pub struct Writer {
    metadata: Vec<u8>,
    metadata_count: u64,
    directory: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

impl Writer {
    fn key(&mut self, key: &str, kind: u32) {
        put_text(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
        self.metadata_count += 1;
    }

    pub fn uint(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.metadata.extend(value.to_le_bytes());
    }

    pub fn float(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.metadata.extend(value.to_le_bytes());
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        put_text(&mut self.metadata, value);
    }

    pub fn texts(&mut self, key: &str, values: &[String]) {
        self.key(key, 9);
        self.metadata.extend(8u32.to_le_bytes());
        self.metadata.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| put_text(&mut self.metadata, v));
    }

    pub fn ints(&mut self, key: &str, values: &[i32]) {
        self.key(key, 9);
        self.metadata.extend(5u32.to_le_bytes());
        self.metadata.extend((values.len() as u64).to_le_bytes());
        values
            .iter()
            .for_each(|v| self.metadata.extend(v.to_le_bytes()));
    }

    pub fn flag(&mut self, key: &str, value: bool) {
        self.key(key, 7);
        self.metadata.push(u8::from(value));
    }

    pub fn floats(&mut self, key: &str, values: &[f32]) {
        self.key(key, 9);
        self.metadata.extend(6u32.to_le_bytes());
        self.metadata.extend((values.len() as u64).to_le_bytes());
        values
            .iter()
            .for_each(|v| self.metadata.extend(v.to_le_bytes()));
    }

    pub fn tensor(&mut self, name: &str, shape: &[usize], values: impl Iterator<Item = f32>) {
        put_text(&mut self.directory, name);
        self.directory.extend((shape.len() as u32).to_le_bytes());
        shape
            .iter()
            .for_each(|d| self.directory.extend((*d as u64).to_le_bytes()));
        self.directory.extend(0u32.to_le_bytes());
        self.directory
            .extend((self.data.len() as u64).to_le_bytes());
        self.tensor_count += 1;
        values.for_each(|v| self.data.extend(v.to_le_bytes()));
        self.data.resize(self.data.len().next_multiple_of(32), 0);
    }

    /// The file and the length of its header.
    pub fn finish(self) -> (Vec<u8>, usize) {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.tensor_count.to_le_bytes());
        file.extend(self.metadata_count.to_le_bytes());
        file.extend(self.metadata);
        file.extend(self.directory);
        let header = file.len();
        file.resize(header.next_multiple_of(32), 0);
        file.extend(self.data);
        (file, header)
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The bytes of the tiny model and the length of its header.
pub fn file() -> (Vec<u8>, usize) {
    let mut w = Writer::default();
    w.text("general.architecture", "llama");
    for (key, value) in [
        ("block_count", LAYERS),
        ("context_length", 2_048),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", FEED_FORWARD),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("rope.dimension_count", HEAD_DIM),
    ] {
        w.uint(&format!("llama.{key}"), value as u32);
    }
    w.float("llama.attention.layer_norm_rms_epsilon", 1e-5);
    w.float("llama.rope.freq_base", 10_000.0);
    vocabulary(&mut w);
    let mut random = SplitMix::new(20_260_101);
    // Roughly normal, scaled so that activations neither vanish nor explode.
    let mut weights = |n: usize, scale: f32| {
        let values: Vec<f32> = (0..n)
            .map(|_| {
                (0..4)
                    .map(|_| random.below(2_001) as f32 / 1_000.0 - 1.0)
                    .sum::<f32>()
                    * scale
            })
            .collect();
        values.into_iter()
    };
    w.tensor(
        "token_embd.weight",
        &[HIDDEN, VOCABULARY],
        weights(HIDDEN * VOCABULARY, 0.5),
    );
    w.tensor("output_norm.weight", &[HIDDEN], (0..HIDDEN).map(|_| 1.0));
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        for norm in ["attn_norm", "ffn_norm"] {
            w.tensor(&name(norm), &[HIDDEN], (0..HIDDEN).map(|_| 1.0));
        }
        for (part, cols, rows) in [
            ("attn_q", HIDDEN, HEADS * HEAD_DIM),
            ("attn_k", HIDDEN, KV_HEADS * HEAD_DIM),
            ("attn_v", HIDDEN, KV_HEADS * HEAD_DIM),
            ("attn_output", HEADS * HEAD_DIM, HIDDEN),
            ("ffn_gate", HIDDEN, FEED_FORWARD),
            ("ffn_up", HIDDEN, FEED_FORWARD),
            ("ffn_down", FEED_FORWARD, HIDDEN),
        ] {
            w.tensor(&name(part), &[cols, rows], weights(cols * rows, 0.2));
        }
    }
    w.finish()
}

/// Every byte, an end token, a turn token, and a few merges of printable letters.
pub fn words() -> (Vec<String>, [&'static str; 6]) {
    let byte = |b: u8| crate::tokenizer::byte_char(b).to_string();
    let mut tokens: Vec<String> = (0..=255).map(byte).collect();
    tokens.extend(["<|im_end|>".to_owned(), "<|im_start|>".to_owned()]);
    let merges = ["t h", "th e", "Ġ the", "i n", "a n", "Ġ a"];
    tokens.extend(merges.iter().map(|m| m.replace(' ', "")));
    assert_eq!(tokens.len(), VOCABULARY);
    (tokens, merges)
}

pub const TEMPLATE: &str =
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";

pub fn vocabulary(w: &mut Writer) {
    let (tokens, merges) = words();
    let types: Vec<i32> = (0..VOCABULARY)
        .map(|i| if (256..258).contains(&i) { 3 } else { 1 })
        .collect();
    w.text("tokenizer.ggml.model", "gpt2");
    w.text("tokenizer.ggml.pre", "smollm");
    w.texts("tokenizer.ggml.tokens", &tokens);
    w.ints("tokenizer.ggml.token_type", &types);
    w.texts("tokenizer.ggml.merges", &merges.map(str::to_owned));
    w.uint("tokenizer.ggml.eos_token_id", END);
    w.text("tokenizer.chat_template", TEMPLATE);
}

/// The tiny model as a file; it lives as long as the folder.
pub fn on_disk() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, file().0).expect("the temporary folder is writable");
    (folder, path)
}

pub fn tokenizer() -> Arc<Tokenizer> {
    let (_folder, path) = on_disk();
    Arc::new(
        Tokenizer::read(&ModelSource::open(&path).expect("a good file"))
            .expect("a good vocabulary"),
    )
}

/// An engine over the tiny model; `change` adjusts its configuration.
pub fn engine(change: impl FnOnce(&mut EngineConfig)) -> Engine {
    let (_folder, path) = on_disk();
    let mut config = EngineConfig::new("tiny", path);
    config.threads = 1;
    change(&mut config);
    Engine::load(config).expect("the tiny model loads")
}

/// Collects events in a channel.
pub struct Collect(pub Sender<Event>);

impl Sink for Collect {
    fn event(&mut self, event: Event) -> Result<(), Closed> {
        self.0.send(event).map_err(|_| Closed)
    }
}

/// A finished answer, with the bits of every log-probability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub text: String,
    pub tokens: Vec<(u32, u32, u32)>,
    pub reason: FinishReason,
}

pub fn submit(handle: &EngineHandle, request: GenerationRequest) -> Receiver<Event> {
    let (sender, events) = channel();
    handle
        .submit(request, Box::new(Collect(sender)))
        .expect("the request is acceptable");
    events
}

pub fn wait(events: Receiver<Event>) -> Answer {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    for event in events {
        match event {
            Event::Token {
                text: more,
                logprob,
            } => {
                text.push_str(&more);
                tokens.push((
                    logprob.token_id,
                    logprob.logprob.to_bits(),
                    logprob.entropy.to_bits(),
                ));
            }
            Event::Finished { reason, .. } => {
                return Answer {
                    text,
                    tokens,
                    reason,
                };
            }
            Event::Failed(error) => panic!("the sequence failed: {error}"),
        }
    }
    panic!("the events ended without a last one");
}

/// A request of random printable tokens.
pub fn random_request(random: &mut SplitMix) -> GenerationRequest {
    let length = 1 + random.below(150);
    GenerationRequest {
        prompt: Prompt::Tokens((0..length).map(|_| random.below(256) as u32).collect()),
        params: SamplingParams {
            temperature: [0.0, 0.7, 1.3][random.below(3)],
            top_p: [1.0, 0.9][random.below(2)],
            top_k: [0, 40][random.below(2)],
            min_p: [0.0, 0.05][random.below(2)],
            repetition_penalty: [1.0, 1.2][random.below(2)],
            seed: Some(random.next()),
            ..SamplingParams::default()
        },
        max_new_tokens: Some(1 + random.below(80)),
        ..GenerationRequest::new("")
    }
}
