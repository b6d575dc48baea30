//! What can be gained by guessing, by kind of prompt, before an engine spends a row on it?
//!
//! `cargo run --release -p homeostat-engine --example speculate -- \
//!      spec_bench.jsonl model.gguf streams.json [prompts per kind] [first prompt of each kind]`
//!
//! Writes the greedy answer of the model to prompts of each kind into `streams.json` (or reads
//! them from there, if the file exists), measures what passes over 1 to 8 rows cost on this
//! machine, and then lets each drafter guess its way along the answers. An answer that is fixed
//! beforehand says exactly which guesses would have been accepted, so nothing has to be verified
//! again for every setting. `edit` prompts are made from the summarisation prompts: the model is
//! asked to return a passage corrected.
//!
//! `×` is tokens per second over those of plain decoding, by the measured cost of rows; a model as
//! small as SmolLM2-135M often ends in a loop when it is greedy, which is easy to guess, so
//! answers that loop are counted apart.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use homeostat_engine::batch::{Batch, Span};
use homeostat_engine::cost::StepCost;
use homeostat_engine::kernels::{Isa, WeightTarget};
use homeostat_engine::model::decoder::{DecoderRunner, RunnerSize};
use homeostat_engine::model::source::ModelSource;
use homeostat_engine::model::weights::DecoderWeights;
use homeostat_engine::runner::Runner;
use homeostat_engine::sampler::{SamplingParams, TokenCounts};
use homeostat_engine::speculation::goodput::Load;
use homeostat_engine::speculation::{
    Candidate, Cascade, Draft, DraftRequest, Drafter, Goodput, Ngram, Suffix,
};
use homeostat_engine::{
    ChatMessage, Closed, Engine, EngineConfig, EngineHandle, Event, GenerationRequest, Prompt,
    SequenceId, Shutdown, Sink,
};

const NEW_TOKENS: usize = 128;
const LONGEST_DRAFT: usize = 7;

/// One prompt and its greedy answer, as tokens.
#[derive(serde::Serialize, serde::Deserialize)]
struct Stream {
    kind: String,
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

impl Stream {
    /// The last half or more of the answer repeats one pattern.
    fn loops(&self) -> bool {
        let tail = &self.answer[self.answer.len() / 2..];
        (1..=tail.len() / 3).any(|period| tail[period..] == tail[..tail.len() - period])
    }
}

struct Collect(Sender<Option<u32>>);

impl Sink for Collect {
    fn event(&mut self, event: Event) -> Result<(), Closed> {
        let token = match event {
            Event::Token { logprob, .. } => Some(logprob.token_id),
            Event::Failed(error) => panic!("{error}"),
            Event::Finished { .. } => None,
        };
        self.0.send(token).map_err(|_| Closed)
    }
}

fn greedy(handle: &EngineHandle, prompt: &[u32]) -> Vec<u32> {
    let (sender, tokens) = channel();
    let request = GenerationRequest {
        prompt: Prompt::Tokens(prompt.to_vec()),
        params: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        max_new_tokens: Some(NEW_TOKENS),
        max_draft_tokens: Some(0),
        ..GenerationRequest::new("")
    };
    handle
        .submit(request, Box::new(Collect(sender)))
        .expect("an acceptable request");
    tokens.iter().map_while(|token| token).collect()
}

/// Prompts by kind: the chat categories of Spec-Bench count as one, and `edit` is made here.
fn prompts(file: &Path, first: usize, per_kind: usize) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(file).expect("the prompts can be read");
    let mut by_kind: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let row: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
        let field = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
        let (category, prompt) = (field(&row["category"]), field(&row["turns"][0]));
        if let Some(passage) = prompt.strip_prefix("Summarize: ") {
            let passage: String = passage.split_inclusive(". ").take(5).collect();
            let edit = format!(
                "Correct the spelling mistakes in this text and return the whole corrected text:\n\n{passage}"
            );
            by_kind.entry("edit".into()).or_default().push(edit);
        }
        let kind = match category.as_str() {
            "summarization" | "translation" | "qa" | "math_reasoning" | "rag" => &category,
            _ => "chat",
        };
        by_kind.entry(kind.to_owned()).or_default().push(prompt);
    }
    let of_kind = |(kind, prompts): (String, Vec<String>)| {
        let chosen = prompts.into_iter().skip(first).take(per_kind);
        chosen
            .map(move |prompt| (kind.clone(), prompt))
            .collect::<Vec<_>>()
    };
    by_kind.into_iter().flat_map(of_kind).collect()
}

fn generate(model: &str, prompts: Vec<(String, String)>) -> Vec<Stream> {
    let engine = Engine::load(EngineConfig::new("model", model)).expect("the model loads");
    let handle = engine.handle();
    let stream = |(kind, text): (String, String)| {
        let messages = [ChatMessage::new("user", text)];
        let prompt = handle
            .render_chat(&messages, true, None)
            .expect("the model has a chat template");
        let prompt = handle.tokenize(&prompt, true);
        let answer = greedy(&handle, &prompt);
        eprintln!(
            "{kind}: {} tokens, {} generated",
            prompt.len(),
            answer.len()
        );
        Stream {
            kind,
            prompt,
            answer,
        }
    };
    let streams = prompts.into_iter().map(stream).collect();
    engine.shutdown(Shutdown::Drain);
    streams
}

/// Seconds of the fastest of some passes over 1 to 8 rows of one sequence with 300 tokens before.
fn row_costs(model: &str) -> Vec<f64> {
    let source = ModelSource::open(Path::new(model)).expect("the model can be read");
    let weights = DecoderWeights::load(&source, WeightTarget::Q8_0).expect("the model can be run");
    let size = RunnerSize {
        threads: 1,
        blocks: 16,
        max_rows: 512,
        max_logit_rows: 16,
        context_tokens: 512,
    };
    let mut runner = DecoderRunner::new(weights, Isa::detect().expect("a known processor"), size)
        .expect("the system gives it");
    let batch = |first: usize, rows: usize, logits: usize| Batch {
        tokens: (first..first + rows).map(|t| t as u32 + 1_000).collect(),
        positions: (first..first + rows).map(|p| p as u32).collect(),
        spans: vec![Span {
            rows: 0..rows,
            blocks: 0..16,
            logits: 0..logits,
        }],
        blocks: (0..16).collect(),
        logit_rows: (rows - logits..rows).map(|r| r as u32).collect(),
        ..Batch::default()
    };
    runner.forward(&batch(0, 300, 1)).expect("a good batch");
    let mut best = vec![f64::MAX; 1 + LONGEST_DRAFT];
    for _ in 0..40 {
        for (rows, best) in (1..).zip(&mut best) {
            let batch = batch(300, rows, rows);
            let began = Instant::now();
            runner.forward(&batch).expect("a good batch");
            *best = best.min(began.elapsed().as_secs_f64());
        }
    }
    best
}

#[derive(Default, Clone, Copy)]
struct Tally {
    steps: usize,
    tokens: usize,
    proposed: usize,
    accepted: usize,
    seconds: f64,
}

/// How many nodes of each draft are verified.
enum Lengths {
    All,
    Measured(Box<(Goodput, StepCost)>),
}

impl Lengths {
    fn choose(&mut self, id: SequenceId, context: usize, draft: &Draft) -> usize {
        let Self::Measured(controller) = self else {
            return draft.len();
        };
        let (goodput, cost) = &mut **controller;
        let mut out = Vec::new();
        let load = Load {
            other_rows: 0,
            max_nodes: LONGEST_DRAFT,
        };
        goodput.plan(&[Candidate { id, context, draft }], load, cost, &mut out);
        out[0]
    }

    fn observe(&mut self, id: SequenceId, accepted: Option<u16>) {
        if let Self::Measured(controller) = self {
            controller.0.observe(id, accepted);
        }
    }
}

/// Walks along an answer as an engine would.
fn replay(
    drafter: &mut dyn Drafter,
    lengths: &mut Lengths,
    (id, stream): (SequenceId, &Stream),
    costs: &[f64],
) -> Tally {
    let whole: Vec<u32> = stream
        .prompt
        .iter()
        .chain(&stream.answer)
        .copied()
        .collect();
    let (params, counts) = (SamplingParams::default(), TokenCounts::default());
    let mut drafts = [Draft::default()];
    let mut tally = Tally::default();
    // The first token comes with the prompt.
    let mut at = stream.prompt.len() + 1;
    while at < whole.len() {
        let longest = LONGEST_DRAFT.min(whole.len() - at - 1);
        let request = DraftRequest {
            id,
            tokens: &whole[..at],
            num_prompt_tokens: stream.prompt.len(),
            tenant: 0,
            seed: 0,
            params: &params,
            counts: &counts,
            max_depth: longest,
            max_nodes: LONGEST_DRAFT,
            may_compute: true,
        };
        drafts[0].clear();
        drafter.propose(&[request], &mut drafts);
        let nodes = lengths.choose(id, at, &drafts[0]);
        drafts[0].truncate(nodes);
        let (mut node, mut accepted) = (None, 0);
        while let Some(next) = drafts[0].child(node, whole[at + accepted]) {
            (node, accepted) = (Some(next), accepted + 1);
        }
        at += accepted + 1;
        drafter.observe(id, &whole[..at], nodes, accepted);
        if nodes > 0 {
            lengths.observe(id, node);
        }
        tally.steps += 1;
        tally.tokens += accepted + 1;
        tally.proposed += nodes;
        tally.accepted += accepted;
        tally.seconds += costs[nodes];
    }
    drafter.forget(id);
    tally
}

fn learned(costs: &[f64]) -> StepCost {
    let mut cost = StepCost::default();
    for _ in 0..100 {
        for (rows, seconds) in (1..).zip(costs) {
            cost.observe(rows, rows, 300 * rows, Duration::from_secs_f64(*seconds));
        }
    }
    cost
}

fn print_row(name: &str, streams: &[Stream], tallies: &[Tally], plain: f64) {
    let kinds: BTreeMap<&str, ()> = streams.iter().map(|s| (&*s.kind, ())).collect();
    print!("{name:<28}");
    for kind in kinds.keys() {
        let sum = |loops: bool| {
            let of_kind = |s: &Stream| s.kind == *kind && (loops || !s.loops());
            let chosen = streams.iter().zip(tallies).filter(|(s, _)| of_kind(s));
            chosen.fold(Tally::default(), |sum, (_, t)| Tally {
                steps: sum.steps + t.steps,
                tokens: sum.tokens + t.tokens,
                proposed: sum.proposed + t.proposed,
                accepted: sum.accepted + t.accepted,
                seconds: sum.seconds + t.seconds,
            })
        };
        let (all, straight) = (sum(true), sum(false));
        let speed = |t: Tally| plain * t.tokens as f64 / t.seconds;
        print!(
            "  {:>4.2} {:>4.0}% {:>5.2}×{:>5.2}×",
            all.tokens as f64 / all.steps as f64,
            100.0 * all.accepted as f64 / all.proposed.max(1) as f64,
            speed(all),
            speed(straight),
        );
    }
    println!();
}

fn print_head(streams: &[Stream]) {
    let mut kinds: BTreeMap<&str, (usize, usize, usize)> = BTreeMap::new();
    for stream in streams {
        let of_kind = kinds.entry(&stream.kind).or_default();
        of_kind.0 += 1;
        of_kind.1 += usize::from(stream.loops());
        of_kind.2 += stream.prompt.len();
    }
    for (kind, (count, loops, tokens)) in &kinds {
        println!(
            "{kind}: {count} answers, {loops} loop, prompts of {} tokens",
            tokens / count
        );
    }
    println!("per kind: tokens per step, share of proposed tokens accepted, ×, × without loops");
    print!("{:<28}", "");
    kinds.keys().for_each(|kind| print!("  {kind:^22}"));
    println!();
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, model, kept, rest @ ..] = &arguments[..] else {
        eprintln!("arguments: spec_bench.jsonl model.gguf streams.json [per kind] [first]");
        std::process::exit(2);
    };
    let number = |i: usize, default| {
        let given: Option<&String> = rest.get(i);
        given.map_or(default, |n| n.parse().expect("a number"))
    };
    if !Path::new(kept).exists() {
        let prompts = prompts(Path::new(file), number(1, 0), number(0, 6));
        let streams = serde_json::to_string(&generate(model, prompts)).expect("plain numbers");
        std::fs::write(kept, streams).expect("the streams can be written");
    }
    let streams = std::fs::read_to_string(kept).expect("the streams can be read");
    let streams: Vec<Stream> = serde_json::from_str(&streams).expect("this program wrote them");
    let costs = row_costs(model);
    let ratios: Vec<String> = costs
        .iter()
        .map(|c| format!("{:.2}", c / costs[0]))
        .collect();
    println!(
        "1 row: {:.2} ms; 1 to 8 rows: {}",
        1e3 * costs[0],
        ratios.join(" ")
    );
    print_head(&streams);
    let both = || {
        Cascade::new(vec![
            Box::new(Ngram::default()),
            Box::new(Suffix::default()),
        ])
    };
    let fixed: [(&str, Box<dyn Drafter>); 4] = [
        ("ngram 1-5, all", Box::new(Ngram::new(1, 5))),
        ("ngram, all", Box::new(Ngram::default())),
        ("suffix, all", Box::new(Suffix::default())),
        ("ngram then suffix, all", Box::new(both())),
    ];
    let measured: [(&str, Box<dyn Drafter>); 4] = [
        ("ngram 1-5, goodput", Box::new(Ngram::new(1, 5))),
        ("ngram, goodput", Box::new(Ngram::default())),
        ("suffix, goodput", Box::new(Suffix::default())),
        ("ngram then suffix, goodput", Box::new(both())),
    ];
    let controlled = || Lengths::Measured(Box::new((Goodput::default(), learned(&costs))));
    let fixed = fixed.into_iter().map(|(name, d)| (name, d, Lengths::All));
    let measured = measured
        .into_iter()
        .map(|(name, d)| (name, d, controlled()));
    for (name, mut drafter, mut lengths) in fixed.chain(measured) {
        let one = |(id, stream)| {
            replay(
                &mut *drafter,
                &mut lengths,
                (SequenceId(id), stream),
                &costs,
            )
        };
        let tallies: Vec<Tally> = (0..).zip(&streams).map(one).collect();
        print_row(name, &streams, &tallies, costs[0]);
    }
}
