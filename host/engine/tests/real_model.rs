//! The engine on the real files: SmolLM2-135M-Instruct against candle-transformers, its chat
//! template, equality of batched and lonely answers, and the MiniLM encoder.

use std::io::Cursor;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, Sender, channel};

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use homeostat_engine::batch::{Batch, Span};
use homeostat_engine::kernels::Isa;
use homeostat_engine::model::decoder::{DecoderRunner, RunnerSize};
use homeostat_engine::model::weights::DecoderWeights;
use homeostat_engine::runner::Runner;
use homeostat_engine::{
    ChatMessage, Closed, Encoder, Engine, EngineConfig, EngineHandle, Event, FinishReason,
    GenerationRequest, LoadQuantization, ModelSource, SamplingParams, Sink, TextStream, Tokenizer,
    inspect,
};

/// A file of the model cache. A missing one fails the test: these tests are the proof that the
/// engine is right, and a silent skip would look like one.
fn model_file(name: &str) -> PathBuf {
    let cache = std::env::var_os("HOMEOSTAT_CACHE")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            PathBuf::from(std::env::var_os("HOME").expect("HOME or HOMEOSTAT_CACHE is set"))
                .join(".cache/homeostat")
        });
    let path = cache.join("models").join(name);
    assert!(
        path.exists(),
        "{} is missing: run `make models` first",
        path.display()
    );
    path
}

fn smollm() -> PathBuf {
    model_file("smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf")
}

static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    Engine::load(EngineConfig::new("smollm2", smollm())).expect("the real model loads")
});

struct Collect(Sender<Event>);

impl Sink for Collect {
    fn event(&mut self, event: Event) -> Result<(), Closed> {
        self.0.send(event).map_err(|_| Closed)
    }
}

/// Text pieces, tokens with the bits of their log-probabilities, and the reason of the end.
#[derive(Debug, Clone, PartialEq)]
struct Answer {
    pieces: Vec<String>,
    tokens: Vec<(u32, u32)>,
    reason: FinishReason,
}

fn submit(handle: &EngineHandle, request: GenerationRequest) -> Receiver<Event> {
    let (sender, events) = channel();
    handle
        .submit(request, Box::new(Collect(sender)))
        .expect("an acceptable request");
    events
}

fn wait(events: Receiver<Event>) -> Answer {
    let (mut pieces, mut tokens) = (Vec::new(), Vec::new());
    for event in events {
        match event {
            Event::Token { text, logprob } => {
                pieces.push(text);
                tokens.push((logprob.token_id, logprob.logprob.to_bits()));
            }
            Event::Finished { reason, .. } => {
                return Answer {
                    pieces,
                    tokens,
                    reason,
                };
            }
            Event::Failed(error) => panic!("failed: {error}"),
        }
    }
    panic!("no last event")
}

fn greedy(prompt: &str, tokens: usize) -> GenerationRequest {
    GenerationRequest {
        params: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        max_new_tokens: Some(tokens),
        ..GenerationRequest::new(prompt)
    }
}

const PROMPTS: [&str; 22] = [
    "The capital of France is",
    "Once upon a time there was a small",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "SELECT name, COUNT(*) FROM orders GROUP BY",
    "{\"name\": \"Ada\", \"born\": 1815, \"field\":",
    "Water boils at 100 degrees",
    "Die Hauptstadt von Deutschland ist",
    "El perro come la",
    "1 2 3 4 5 6 7 8",
    "17 * 23 =",
    "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the",
    "fn main() {\n    println!(\"Hello,",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "Dear Sir or Madam,\n\nI am writing to",
    "🦀 and 🐍 are",
    "日本の首都は",
    "ATGCGTACGTTAGC",
    "        \n\n   indentation",
    "A",
    "According to the theory of general relativity, gravity is",
    "Ingredients: flour, water, salt,",
    "- [x] done\n- [ ] open\n- [",
];

/// Our logits at every position of `tokens`, in one pass.
fn our_logits(runner: &mut DecoderRunner, tokens: &[u32]) -> Vec<Vec<f32>> {
    let rows = tokens.len();
    let blocks: Vec<u32> = (0..rows.div_ceil(32) as u32).collect();
    let batch = Batch {
        tokens: tokens.to_vec(),
        positions: (0..rows as u32).collect(),
        spans: vec![Span {
            rows: 0..rows,
            blocks: 0..blocks.len(),
            logits: 0..rows,
        }],
        blocks,
        logit_rows: (0..rows as u32).collect(),
        chunk_logits: std::iter::once(0..rows).collect(),
        mirrors: Vec::new(),
    };
    runner.forward(&batch).expect("a valid batch");
    (0..rows).map(|row| runner.logits(row).to_vec()).collect()
}

/// candle's logits at every position: it only returns the last one, so token by token.
fn candle_logits(model: &mut ModelWeights, tokens: &[u32]) -> Vec<Vec<f32>> {
    model.clear_kv_cache();
    let mut one = |(position, token): (usize, &u32)| {
        let input = Tensor::new(&[[*token]], &Device::Cpu)?;
        model
            .forward(&input, position)?
            .flatten_all()?
            .to_vec1::<f32>()
    };
    tokens
        .iter()
        .enumerate()
        .map(|pair| one(pair).expect("candle computes"))
        .collect()
}

/// The file's weights as floats, in candle: no quantised activations, the truest oracle there is.
fn candle_in_f32(path: &PathBuf) -> ModelWeights {
    let mut file = std::fs::File::open(path).expect("it exists");
    let content = gguf_file::Content::read(&mut file).expect("a good header");
    let names: Vec<String> = content.tensor_infos.keys().cloned().collect();
    let floats = |name: &String| {
        let tensor =
            content.tensor(&mut file.try_clone().expect("a handle"), name, &Device::Cpu)?;
        QTensor::quantize(&tensor.dequantize(&Device::Cpu)?, GgmlDType::F32)
    };
    let tensors: Vec<QTensor> = names
        .iter()
        .map(|name| floats(name).expect("a good tensor"))
        .collect();
    let listed: Vec<(&str, &QTensor)> = names.iter().map(String::as_str).zip(&tensors).collect();
    let metadata: Vec<(&str, &gguf_file::Value)> = content
        .metadata
        .iter()
        .map(|(k, v)| (k.as_str(), v))
        .collect();
    let mut copy = Cursor::new(Vec::new());
    gguf_file::write(&mut copy, &metadata, &listed).expect("memory is writable");
    drop(tensors);
    copy.set_position(0);
    let content = gguf_file::Content::read(&mut copy).expect("just written");
    ModelWeights::from_gguf(content, &mut copy, &Device::Cpu).expect("the same model")
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    logits
        .iter()
        .map(|l| f64::from(l - max) - sum.ln())
        .collect()
}

/// Positions, top-1 agreements, summed and greatest KL(truth ‖ other).
#[derive(Default)]
struct Agreement {
    positions: usize,
    same_top: usize,
    kl_sum: f64,
    kl_max: f64,
}

impl Agreement {
    fn add(&mut self, truth: &[f32], other: &[f32]) {
        let (p, q) = (log_softmax(truth), log_softmax(other));
        let top = |row: &[f64]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]));
        let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
        self.positions += 1;
        self.same_top += usize::from(top(&p) == top(&q));
        self.kl_sum += kl;
        self.kl_max = self.kl_max.max(kl);
    }

    fn top_share(&self) -> f64 {
        self.same_top as f64 / self.positions as f64
    }

    fn mean_kl(&self) -> f64 {
        self.kl_sum / self.positions as f64
    }
}

#[test]
fn logits_agree_with_candle_transformers_at_every_position_of_every_prompt() {
    let path = smollm();
    let source = ModelSource::open(&path).expect("a good file");
    let tokenizer = Tokenizer::read(&source).expect("a good vocabulary");
    let weights = DecoderWeights::load(&source, LoadQuantization::Q8_0).expect("good weights");
    let size = RunnerSize {
        threads: 2,
        blocks: 8,
        max_rows: 128,
        max_logit_rows: 128,
        context_tokens: 256,
    };
    let mut ours = DecoderRunner::new(weights, Isa::detect().expect("a sane environment"), size)
        .expect("the system gives it");
    let mut file = std::fs::File::open(&path).expect("it exists");
    let content = gguf_file::Content::read(&mut file).expect("a good header");
    let mut quantized =
        ModelWeights::from_gguf(content, &mut file, &Device::Cpu).expect("a good file");
    let mut floats = candle_in_f32(&path);
    let (mut our_agreement, mut candle_agreement) = (Agreement::default(), Agreement::default());
    for prompt in PROMPTS {
        let tokens = tokenizer.encode(prompt, true);
        let truth = candle_logits(&mut floats, &tokens);
        let rows = our_logits(&mut ours, &tokens)
            .into_iter()
            .zip(candle_logits(&mut quantized, &tokens));
        for (truth, (ours, candle)) in truth.iter().zip(rows) {
            our_agreement.add(truth, &ours);
            candle_agreement.add(truth, &candle);
        }
    }
    for (name, a) in [
        ("ours", &our_agreement),
        ("candle, quantised", &candle_agreement),
    ] {
        println!(
            "{name} against candle in f32: {} positions of {} prompts, top-1 agreement {:.2} %, KL mean {:.5}, greatest {:.4}",
            a.positions,
            PROMPTS.len(),
            100.0 * a.top_share(),
            a.mean_kl(),
            a.kl_max
        );
    }
    // Activations are rounded to 8 bits in ours and in candle's quantised path; nothing else differs.
    let no_worse = our_agreement.mean_kl() <= 1.25 * candle_agreement.mean_kl();
    assert!(no_worse, "our rounding is coarser than candle's");
    assert!(our_agreement.positions > 200);
    assert!(
        our_agreement.top_share() > 0.95,
        "top-1 {:.4}",
        our_agreement.top_share()
    );
    assert!(
        our_agreement.mean_kl() < 0.01,
        "KL {:.5}",
        our_agreement.mean_kl()
    );
    assert!(
        our_agreement.kl_max < 0.2,
        "greatest KL {:.4}",
        our_agreement.kl_max
    );
}

#[test]
fn a_conversation_is_written_as_the_models_template_says() {
    let handle = ENGINE.handle();
    let rendered = |messages: &[ChatMessage]| {
        handle
            .render_chat(messages, true, None)
            .expect("the model has a template")
    };
    assert_eq!(
        rendered(&[ChatMessage::new("user", "Hi")]),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(
        rendered(&[
            ChatMessage::new("system", "Be brief."),
            ChatMessage::new("user", "Hi")
        ]),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
}

/// With the template's own system message this file answers in broken French, in llama.cpp as
/// here; with a plain one it knows the answer.
#[test]
fn the_answer_to_the_capital_of_france_names_paris() {
    let handle = ENGINE.handle();
    let messages = [
        ChatMessage::new("system", "You are a helpful AI assistant."),
        ChatMessage::new("user", "What is the capital of France?"),
    ];
    let prompt = handle
        .render_chat(&messages, true, None)
        .expect("the model has a template");
    let answer = wait(submit(&handle, greedy(&prompt, 64)));
    let text = answer.pieces.concat();
    assert!(text.contains("Paris"), "{text:?}");
    assert_eq!(answer.reason, FinishReason::Stop, "{text:?}");
    assert!(!text.contains("<|im_end|>"), "{text:?}");
    assert!(
        handle
            .info()
            .end_tokens
            .contains(&answer.tokens.last().expect("tokens").0)
    );
}

/// The expected numbers are llama.cpp's for the same file (llama-cpp-python, `tokenize`).
#[test]
fn tokens_are_those_of_llama_cpp() {
    let source = ModelSource::open(&smollm()).expect("a good file");
    let tokenizer = Tokenizer::read(&source).expect("a good vocabulary");
    let table: [(&str, &[u32]); 9] = [
        ("The capital of France is", &[504, 3575, 282, 4649, 314]),
        (
            "1234567890 and 17*23",
            &[
                33, 34, 35, 36, 37, 38, 39, 40, 41, 32, 284, 216, 33, 39, 26, 34, 35,
            ],
        ),
        ("        \n\n   indentation", &[353, 39892, 20409, 309]),
        (
            "def f(n):\n    if n < 2:\n        return",
            &[
                1604, 275, 24, 94, 727, 472, 585, 304, 2067, 216, 34, 42, 448, 1003,
            ],
        ),
        (
            "日本の首都は",
            &[
                23274, 115, 40993, 26453, 180, 116, 240, 180, 38466, 7365, 124,
            ],
        ),
        (
            "don't I'll you've we're it's",
            &[12420, 982, 339, 3060, 346, 3543, 392, 2316, 357, 506],
        ),
        (
            "SELECT name, COUNT(*) FROM",
            &[23428, 1462, 28, 3214, 23330, 12905, 25, 18451],
        ),
        (
            "  two  spaces\tTab\r\nCRLF",
            &[216, 827, 216, 5600, 197, 30064, 201, 198, 9088, 60, 54],
        ),
        (
            "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n",
            &[1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198],
        ),
    ];
    for (text, expected) in table {
        assert_eq!(tokenizer.encode(text, true), expected, "{text:?}");
    }
}

#[test]
fn a_batch_gives_what_each_gets_alone() {
    let handle = ENGINE.handle();
    let request = |(i, prompt): (usize, &&str)| {
        let mut request = greedy(prompt, 24);
        if i % 2 == 1 {
            request.params = SamplingParams {
                temperature: 1.0,
                top_p: 0.95,
                seed: Some(i as u64),
                ..request.params
            };
        }
        request
    };
    let requests: Vec<GenerationRequest> = PROMPTS.iter().enumerate().map(request).collect();
    let alone: Vec<Answer> = requests
        .iter()
        .map(|r| wait(submit(&handle, r.clone())))
        .collect();
    let waiting: Vec<_> = requests
        .iter()
        .map(|r| submit(&handle, r.clone()))
        .collect();
    let together: Vec<Answer> = waiting.into_iter().map(wait).collect();
    for ((alone, together), prompt) in alone.iter().zip(&together).zip(PROMPTS) {
        assert_eq!(alone, together, "{prompt:?}");
    }
}

#[test]
fn a_prompt_in_chunks_gives_what_one_shot_gives() {
    let long =
        "Bread is made of flour, water and salt, and time does most of the work. ".repeat(12);
    let whole = wait(submit(&ENGINE.handle(), greedy(&long, 16)));
    let mut config = EngineConfig::new("chunked", smollm());
    config.max_sequences = 2;
    config.max_batch_tokens = 37;
    config.threads = 1;
    let chunked = Engine::load(config).expect("the real model loads");
    assert_eq!(wait(submit(&chunked.handle(), greedy(&long, 16))), whole);
}

#[test]
fn a_stop_string_across_tokens_ends_the_answer_before_it() {
    let handle = ENGINE.handle();
    let full = wait(submit(&handle, greedy("Once upon a time there was a", 40)));
    let text = full.pieces.concat();
    // From the middle of one token to the middle of a later one.
    let start = full.pieces[..10].concat().len() + 1;
    let end = full.pieces[..12].concat().len() + 2;
    let stop = text
        .get(start..end)
        .expect("plain English at the cut")
        .to_owned();
    let expected = &text[..text.find(&stop).expect("it occurs")];
    let mut request = greedy("Once upon a time there was a", 40);
    request.stop = vec![stop.clone()];
    let stopped = wait(submit(&handle, request));
    assert_eq!(
        (stopped.pieces.concat().as_str(), stopped.reason),
        (expected, FinishReason::Stop),
        "stop {stop:?}"
    );
}

#[test]
fn text_survives_tokens_and_is_streamed_in_whole_characters() {
    let source = ModelSource::open(&smollm()).expect("a good file");
    let tokenizer = Tokenizer::read(&source).expect("a good vocabulary");
    let mut split_characters = 0;
    for text in PROMPTS.into_iter().chain([
        "naïve café 🧑‍🚀🇫🇷 e\u{301}",
        "\u{0}\u{7f}\u{ad}",
        "1234567890",
    ]) {
        let tokens = tokenizer.encode(text, false);
        assert_eq!(tokenizer.decode(&tokens), text);
        let mut stream = TextStream::new(Vec::new());
        let pieces: Vec<String> = tokens
            .iter()
            .map(|t| stream.push(tokenizer.bytes(*t)).text)
            .collect();
        split_characters += pieces.iter().filter(|p| p.is_empty()).count();
        assert_eq!(pieces.concat() + &stream.finish(), text);
        assert!(!pieces.iter().any(|p| p.contains('\u{FFFD}')), "{text:?}");
    }
    assert!(split_characters > 5, "the emoji are split over tokens");
    assert_eq!(
        tokenizer.encode("2024", false).len(),
        4,
        "digits stand alone in this vocabulary"
    );
    assert_eq!(tokenizer.encode("<|im_start|>user", true)[0], 1);
}

#[test]
fn the_file_describes_itself() {
    let about = inspect(&smollm()).expect("a good file");
    assert_eq!(about.architecture, "llama");
    assert_eq!(
        about.quantization().map(|q| q.to_string()).as_deref(),
        Some("Q4_1")
    );
    assert_eq!(about.kv_bytes_per_token, Some(23_040));
    assert_eq!(
        (about.context_tokens, about.vocabulary),
        (Some(8_192), Some(49_152))
    );
    assert_eq!(about.parameters / 1_000_000, 134);
    assert!(about.has_chat_template);
    let info = ENGINE.handle().info().clone();
    assert_eq!(
        (
            info.kv_bytes_per_token,
            info.context_tokens,
            info.vocabulary
        ),
        (23_040, 8_192, 49_152)
    );
}

#[test]
fn likely_continuations_score_higher_than_unlikely_ones() {
    let handle = ENGINE.handle();
    let total = |text: &str| {
        let scores = handle
            .score(None, 0, "The capital of France is", text)
            .expect("a good request");
        assert_eq!(scores.len(), handle.count_tokens(text, false));
        scores.iter().map(|s| s.logprob).sum::<f32>()
    };
    assert!(total(" Paris.") > total(" cheese."));
    assert_eq!(handle.score(None, 0, "The capital", ""), Ok(Vec::new()));
}

#[test]
fn embeddings_put_similar_sentences_nearer_and_do_not_depend_on_the_batch() {
    let folder = model_file("all-minilm-l6-v2");
    let encoder = Encoder::load(&folder).expect("the real encoder loads");
    let texts = [
        "A man is eating food.",
        "Somebody is having a meal.",
        "The stock market fell sharply on Monday after weak data.",
        "Hi",
    ];
    let together = encoder.embed(&texts).expect("good texts");
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    for (text, of_batch) in texts.iter().zip(&together) {
        let alone = encoder.embed(&[text]).expect("a good text").remove(0);
        let difference = alone
            .vector
            .iter()
            .zip(&of_batch.vector)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(difference < 1e-5, "{text:?} differs by {difference}");
        assert!(
            (dot(&alone.vector, &alone.vector) - 1.0).abs() < 1e-5,
            "unit length"
        );
        assert_eq!(alone.vector.len(), encoder.dimensions());
        assert_eq!(
            (alone.num_tokens, alone.truncated),
            (encoder.count_tokens(text).expect("a good text"), false)
        );
    }
    let similar = dot(&together[0].vector, &together[1].vector);
    let unrelated = dot(&together[0].vector, &together[2].vector);
    assert!(similar > unrelated + 0.3, "{similar} against {unrelated}");
    let long = encoder
        .embed(&["word ".repeat(2_000).as_str()])
        .expect("a long text")
        .remove(0);
    assert_eq!(
        (long.num_tokens, long.truncated),
        (encoder.max_tokens(), true)
    );
    assert_eq!(encoder.embed(&[]).expect("nothing to do"), Vec::new());
}

#[test]
fn a_damaged_encoder_is_refused_by_the_name_of_its_file() {
    let source = model_file("all-minilm-l6-v2");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let refusal = || {
        Encoder::load(folder.path())
            .err()
            .expect("an incomplete folder")
            .to_string()
    };
    assert!(refusal().contains("config.json"));
    std::fs::copy(
        source.join("config.json"),
        folder.path().join("config.json"),
    )
    .expect("copied");
    std::fs::write(folder.path().join("tokenizer.json"), "{\"version\": ").expect("written");
    assert!(refusal().contains("tokenizer.json"));
    std::fs::copy(
        source.join("tokenizer.json"),
        folder.path().join("tokenizer.json"),
    )
    .expect("copied");
    let weights = std::fs::read(source.join("model.safetensors")).expect("read");
    for damaged in [
        &weights[..4],
        &weights[..1_000],
        &weights[..weights.len() - 10],
        &[0xFF; 64],
    ] {
        std::fs::write(folder.path().join("model.safetensors"), damaged).expect("written");
        assert!(refusal().contains("model.safetensors"), "{}", refusal());
    }
}
