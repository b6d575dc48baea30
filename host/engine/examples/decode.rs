//! How fast does this machine read a prompt and write an answer?
//!
//! `cargo run --release -p homeostat-engine --example decode [model.gguf]`
//!
//! Prints prefill tokens/s (512 tokens), and decode tokens/s with 1 and with 8 streams. End
//! tokens are forbidden, so that every stream writes its full length. The prompts repeat, so prefix
//! cache and speculation are off: with them the figures would be those of work that was not done.
//! The program fails if either has been used.

use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use homeostat_engine::{
    Closed, Engine, EngineConfig, EngineHandle, Event, GenerationRequest, Prompt, SamplingParams,
    Shutdown, Sink,
};

struct Finish(Sender<()>);

impl Sink for Finish {
    fn event(&mut self, event: Event) -> Result<(), Closed> {
        match event {
            Event::Token { .. } => Ok(()),
            _ => self.0.send(()).map_err(|_| Closed),
        }
    }
}

/// Seconds until `streams` requests with `prompt_tokens` tokens each have written `new_tokens` tokens.
fn seconds(handle: &EngineHandle, streams: usize, prompt_tokens: usize, new_tokens: usize) -> f64 {
    let (sender, finished) = channel();
    let text =
        "The history of bread is long, and most of it was baked before anybody wrote it down. "
            .repeat(60);
    let tokens = handle.tokenize(&text, false);
    let began = Instant::now();
    for stream in 0..streams {
        let request = GenerationRequest {
            prompt: Prompt::Tokens(tokens[stream..stream + prompt_tokens].to_vec()),
            params: SamplingParams {
                temperature: 0.0,
                logit_bias: handle
                    .info()
                    .end_tokens
                    .iter()
                    .map(|t| (*t, -100.0))
                    .collect(),
                ..SamplingParams::default()
            },
            max_new_tokens: Some(new_tokens),
            ..GenerationRequest::new("")
        };
        handle
            .submit(request, Box::new(Finish(sender.clone())))
            .expect("the request is small");
    }
    drop(sender);
    finished.iter().for_each(drop);
    began.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let cache = std::env::var_os("HOMEOSTAT_CACHE")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let home = std::env::var_os("HOME").expect("HOME is set, or HOMEOSTAT_CACHE");
            PathBuf::from(home).join(".cache/homeostat")
        });
    let default = cache.join("models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::args_os().nth(1).map_or(default, PathBuf::from);
    let mut config = EngineConfig::new("decode", path);
    // Nothing is remembered from one run to the next, and every token is computed for itself.
    config.prefix_cache = false;
    config.speculation.drafters.clear();
    if let Some(threads) = std::env::var("THREADS").ok().and_then(|t| t.parse().ok()) {
        config.threads = threads;
    }
    let began = Instant::now();
    let engine = match Engine::load(config) {
        Ok(engine) => engine,
        Err(error) => {
            eprintln!("{error}\nRun `make models` first, or give the path of a GGUF file.");
            std::process::exit(1);
        }
    };
    let handle = engine.handle();
    let info = handle.info();
    println!(
        "{} {} | {} | {} threads | loaded in {:.2} s",
        info.architecture,
        info.quantization,
        info.isa,
        info.threads,
        began.elapsed().as_secs_f64()
    );
    let repeat = |streams, prompt, new| {
        median(
            (0..5)
                .map(|_| seconds(&handle, streams, prompt, new))
                .collect(),
        )
    };
    seconds(&handle, 1, 512, 8);
    let prefill = repeat(1, 512, 1);
    println!("prefill, 512 tokens:     {:7.0} tokens/s", 512.0 / prefill);
    for (streams, new_tokens) in [(1, 128), (8, 128)] {
        // The same work with one new token is what reading the prompts costs.
        let reading = repeat(streams, 16, 1);
        let writing = repeat(streams, 16, new_tokens) - reading;
        println!(
            "decode, {streams} stream(s):     {:7.0} tokens/s in total",
            (streams * (new_tokens - 1)) as f64 / writing
        );
    }
    let stats = handle.stats();
    println!("{stats:#?}");
    assert_eq!(stats.prefix_cache_hits_total, 0, "prompts were not read");
    assert_eq!(stats.spec_decode_num_drafts_total, 0, "tokens were guessed");
    engine.shutdown(Shutdown::Drain);
}
