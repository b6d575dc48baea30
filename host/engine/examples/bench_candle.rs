//! candle-transformers on the same file, as a peer of `tests/bench/run.py`, and as the judge of
//! accuracy: the file's weights as floats, with nothing rounded on the way.
//!
//! `bench_candle speed …gguf`: commands on standard input as for `bench`.
//! `bench_candle logits …gguf ours|f32 prompts.json out.f32`: the logits at every position of
//! every prompt, ours or candle's in f32, row after row, as little-endian floats.

use std::fs::File;
use std::io::{BufRead, BufWriter, Cursor, Write};
use std::path::Path;
use std::time::Instant;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{D, Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use homeostat_engine::batch::{Batch, Span};
use homeostat_engine::block::BLOCK_SIZE;
use homeostat_engine::kernels::Isa;
use homeostat_engine::model::decoder::{DecoderRunner, RunnerSize};
use homeostat_engine::model::weights::DecoderWeights;
use homeostat_engine::runner::Runner;
use homeostat_engine::{LoadQuantization, ModelSource};
use serde::Deserialize;
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
enum Command {
    /// What else a command says holds anyway: an end token is a token like others here, nothing
    /// is drafted and nothing remembered.
    Generate {
        prompts: Vec<Vec<u32>>,
        new_tokens: usize,
    },
}

/// Prompts of one length, as one batch; candle knows no other.
fn generate(
    model: &mut ModelWeights,
    prompts: &[Vec<u32>],
    new_tokens: usize,
) -> Result<Value, Failure> {
    let (count, length) = (prompts.len(), prompts[0].len());
    if prompts.iter().any(|p| p.len() != length) {
        return Err("candle reads prompts of one length only".into());
    }
    model.clear_kv_cache();
    let began = Instant::now();
    let mut input = Tensor::new(prompts.concat(), &Device::Cpu)?.reshape((count, length))?;
    let mut position = 0;
    let mut first = 0.0;
    let mut tokens = vec![Vec::new(); count];
    for step in 0..new_tokens {
        let read = input.dim(1)?;
        let logits = model.forward(&input, position)?;
        position += read;
        let next = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
        for (tokens, token) in tokens.iter_mut().zip(&next) {
            tokens.push(*token);
        }
        input = Tensor::new(next, &Device::Cpu)?.reshape((count, 1))?;
        if step == 0 {
            first = began.elapsed().as_secs_f64();
        }
    }
    let last = began.elapsed().as_secs_f64();
    Ok(json!({"first": vec![first; count], "last": vec![last; count], "tokens": tokens}))
}

fn speed(path: &Path) -> Result<(), Failure> {
    let mut file = File::open(path)?;
    let content = gguf_file::Content::read(&mut file)?;
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", json!({"model": "quantized_llama"}))?;
    out.flush()?;
    for line in std::io::stdin().lock().lines() {
        let Command::Generate {
            prompts,
            new_tokens,
        } = serde_json::from_str(&line?)?;
        let answer = generate(&mut model, &prompts, new_tokens);
        let answer = answer.unwrap_or_else(|error| json!({ "error": error.to_string() }));
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

/// The file's weights as floats: candle's quantised path would round its activations.
fn in_f32(path: &Path) -> Result<ModelWeights, Failure> {
    let mut file = File::open(path)?;
    let content = gguf_file::Content::read(&mut file)?;
    let mut tensors = Vec::new();
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(&mut file, name, &Device::Cpu)?;
        let floats = QTensor::quantize(&tensor.dequantize(&Device::Cpu)?, GgmlDType::F32)?;
        tensors.push((name.as_str(), floats));
    }
    let listed: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, t)| (*name, t)).collect();
    let metadata: Vec<(&str, &gguf_file::Value)> = content
        .metadata
        .iter()
        .map(|(k, v)| (k.as_str(), v))
        .collect();
    let mut copy = Cursor::new(Vec::new());
    gguf_file::write(&mut copy, &metadata, &listed)?;
    drop(listed);
    drop(tensors);
    copy.set_position(0);
    let content = gguf_file::Content::read(&mut copy)?;
    Ok(ModelWeights::from_gguf(content, &mut copy, &Device::Cpu)?)
}

fn write_rows(out: &mut impl Write, rows: &[f32]) -> std::io::Result<()> {
    rows.iter()
        .try_for_each(|x| out.write_all(&x.to_le_bytes()))
}

/// candle returns the logits of the last position only, so token by token.
fn truth(path: &Path, prompts: &[Vec<u32>], out: &mut impl Write) -> Result<(), Failure> {
    let mut model = in_f32(path)?;
    for tokens in prompts {
        model.clear_kv_cache();
        for (position, token) in tokens.iter().enumerate() {
            let input = Tensor::new(&[[*token]], &Device::Cpu)?;
            let logits = model.forward(&input, position)?.flatten_all()?;
            write_rows(out, &logits.to_vec1::<f32>()?)?;
        }
    }
    Ok(())
}

fn ours(path: &Path, prompts: &[Vec<u32>], out: &mut impl Write) -> Result<(), Failure> {
    let weights = DecoderWeights::load(&ModelSource::open(path)?, LoadQuantization::default())?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(1);
    let blocks = longest.div_ceil(BLOCK_SIZE);
    let size = RunnerSize {
        threads: 2,
        blocks,
        max_rows: longest,
        max_logit_rows: longest,
        context_tokens: blocks * BLOCK_SIZE,
    };
    let mut runner =
        DecoderRunner::new(weights, Isa::detect()?, size).expect("the system gives it");
    for tokens in prompts {
        let rows = tokens.len();
        let blocks: Vec<u32> = (0..rows.div_ceil(BLOCK_SIZE) as u32).collect();
        let batch = Batch {
            tokens: tokens.clone(),
            positions: (0..rows as u32).collect(),
            spans: vec![Span {
                rows: 0..rows,
                blocks: 0..blocks.len(),
                logits: 0..rows,
            }],
            blocks,
            logit_rows: (0..rows as u32).collect(),
            ..Batch::default()
        };
        runner.forward(&batch)?;
        for row in 0..rows {
            write_rows(out, runner.logits(row))?;
        }
    }
    Ok(())
}

fn logits(path: &Path, whose: &str, prompts: &str, out: &str) -> Result<(), Failure> {
    let prompts: Vec<Vec<u32>> = serde_json::from_reader(File::open(prompts)?)?;
    let mut out = BufWriter::new(File::create(out)?);
    match whose {
        "ours" => ours(path, &prompts, &mut out)?,
        "f32" => truth(path, &prompts, &mut out)?,
        other => return Err(format!("{other:?} is neither ours nor f32").into()),
    }
    Ok(out.flush()?)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["speed", path] => speed(Path::new(path)),
        ["logits", path, whose, prompts, out] => logits(Path::new(path), whose, prompts, out),
        _ => Err("usage: bench_candle speed FILE | logits FILE ours|f32 PROMPTS OUT".into()),
    };
    if let Err(error) = done {
        eprintln!("bench_candle: {error}");
        std::process::exit(1);
    }
}
