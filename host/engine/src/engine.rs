//! The engine's own thread, and the handle through which the rest of the host speaks to it.
//!
//! It exists to keep one owner for blocks, sequences and weights: everything that changes them
//! happens on one thread, between two steps. The handle tokenises and checks on the caller's
//! thread, so a bad request costs the engine nothing. This is the only module of the room that
//! reads a clock; it passes the time in.
//!
//! It refuses to queue without bound, to start what can never finish, and to die of one request.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::block::BLOCK_SIZE;
use crate::chat_template::{ChatMessage, ChatTemplate, TemplateError};
use crate::constraint::{Constraint, ConstraintError, Constraints, Grammar};
use crate::device::{Device, DeviceError};
use crate::events::{EngineError, Event, FinishReason, Sink, TokenLogprob};
use crate::inspect::describe;
use crate::kernels::{Isa, KernelError, KvStore};
use crate::model::config::DecoderConfig;
use crate::model::decoder::{DecoderRunner, RunnerSize};
use crate::model::source::ModelSource;
use crate::model::weights::DecoderWeights;
use crate::model::{CandleRunner, DeviceWeights, ModelError};
use crate::observer::StepObserver;
use crate::queue::MAX_TENANT_WEIGHT;
use crate::random;
use crate::runner::Runner;
use crate::sampler::{ParamError, SamplingParams};
use crate::scheduler::{Limits, Refusal};
use crate::sequence::{Order, Purpose, Sequence, SequenceId};
use crate::speculation::hint::MAX_HINT_TOKENS;
use crate::speculation::model::DraftModelLimits;
use crate::speculation::{
    Cascade, DraftModel, Drafter, Goodput, Ngram, PoolLimits, Suffix, VocabularyMismatch,
    same_vocabulary,
};
use crate::stats::{EngineStats, StatsCell};
use crate::step::Core;
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Stop strings per request, and bytes of each: matching is linear in both, on the engine's thread.
pub const MAX_STOPS: usize = 16;
pub const MAX_STOP_BYTES: usize = 256;
/// Longest draft that may be configured. Every draft token is a row of the step whether it is
/// accepted or not.
pub const MAX_DRAFT_TOKENS: usize = 64;

/// One engine: one model file, one thread, one pool of KV memory.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// What the model is called outside.
    pub name: String,
    /// A GGUF file, or a folder with `config.json`, safetensors and `tokenizer.json`.
    pub path: PathBuf,
    /// Sequences computed together. Beyond some dozens a CPU gains nothing from more rows, and each
    /// running sequence slows the others.
    pub max_sequences: usize,
    /// Requests that wait to be computed for the first time. More than can be answered within a
    /// client's patience only hides the overload.
    pub max_waiting: usize,
    /// Bytes of KV memory; becomes resident only as it is used. 256 MiB hold 11,650 tokens of a
    /// 135M model.
    pub kv_bytes: u64,
    /// Rows of one step, prefill chunks and decode rows together. A long prompt delays the running
    /// answers by one such step at a time; at 256 a row already costs nearly the least it can.
    pub max_batch_tokens: usize,
    /// Longest prompt plus answer; `None` is the model's own limit.
    pub context_tokens: Option<usize>,
    /// Compute threads, the engine's own included; a GPU needs only the engine's own.
    pub threads: usize,
    /// Where model and draft model run. On a GPU the KV memory is taken at once, and that answers
    /// do not depend on what is batched beside them is promised up to rounding only.
    pub device: Device,
    /// Whether blocks of finished prompts are kept for prompts that begin alike. They are given up
    /// before a running sequence lacks a block, so they cost no capacity.
    pub prefix_cache: bool,
    pub speculation: SpeculationConfig,
    /// What float weights (safetensors, f16 and f32 tensors of a GGUF file) become at load on the
    /// CPU; `None` is Q8_0. A GPU computes with floats as they are. Embedding and head never fall below that, and weights that are quantised in the
    /// file stay as they are.
    pub load_quantization: Option<LoadQuantization>,
    /// Predicted time that the prefill rows of one step may take; `max_batch_tokens` bounds them
    /// too. Running answers stand still for about as long, and readers see a tenth of a second.
    pub step_milliseconds: u32,
    /// Shares of tenants, by [`GenerationRequest::tenant`], from 1 to [`MAX_TENANT_WEIGHT`]; who is
    /// not named has 1. While both wait, a tenant of weight 3 gets three rows for the other's one.
    pub tenant_weights: BTreeMap<String, u32>,
    /// Keys the random numbers of requests without a seed. The host passes something random.
    pub seed: u64,
}

impl EngineConfig {
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            path: path.into(),
            load_quantization: None,
            max_sequences: 32,
            max_waiting: 256,
            kv_bytes: 256 << 20,
            max_batch_tokens: 256,
            context_tokens: None,
            // Parts are stolen, so a second thread on a busy core costs little; more than four
            // gain little for models that are small enough for a CPU.
            threads: std::thread::available_parallelism().map_or(1, |n| n.get().min(4)),
            device: Device::Cpu,
            prefix_cache: true,
            speculation: SpeculationConfig::default(),
            step_milliseconds: 100,
            tenant_weights: BTreeMap::new(),
            seed: 0,
        }
    }

    /// Whether an engine starts with these numbers, whatever the model.
    pub fn check(&self) -> Result<(), ParamError> {
        let within =
            |field, value: usize, low: usize, high: usize| match (low..=high).contains(&value) {
                true => Ok(()),
                false => Err(ParamError::new(
                    field,
                    value,
                    format!("from {low} to {high}"),
                )),
            };
        within("max_sequences", self.max_sequences, 1, 1_024)?;
        within("max_waiting", self.max_waiting, 1, 1 << 20)?;
        within(
            "max_batch_tokens",
            self.max_batch_tokens,
            self.max_sequences + 1,
            65_536,
        )?;
        within("threads", self.threads, 1, 256)?;
        within(
            "step_milliseconds",
            self.step_milliseconds as usize,
            1,
            60_000,
        )?;
        within(
            "speculation.max_draft_tokens",
            self.speculation.max_draft_tokens,
            1,
            MAX_DRAFT_TOKENS,
        )?;
        for weight in self.tenant_weights.values() {
            let weight = *weight as usize;
            within("tenant_weights", weight, 1, MAX_TENANT_WEIGHT as usize)?;
        }
        if self.kv_bytes > 1 << 40 {
            return Err(ParamError::new("kv_bytes", self.kv_bytes, "at most 1 TiB"));
        }
        within(
            "context_tokens",
            self.context_tokens.unwrap_or(1),
            1,
            usize::MAX,
        )
    }
}

/// How answers are guessed ahead and verified. Never changes an answer, only its speed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpeculationConfig {
    /// Who guesses, cheapest first; the next is asked where one has no guess. Empty and without a
    /// draft model: no speculation.
    pub drafters: Vec<DrafterKind>,
    /// A smaller model with the same vocabulary, asked last.
    pub draft_model: Option<PathBuf>,
    /// Longest draft; measured goodput decides how much of it is used, often nothing. From 1 to
    /// [`MAX_DRAFT_TOKENS`].
    pub max_draft_tokens: usize,
    /// What the suffix drafter remembers of finished answers, for later requests of the same
    /// tenant. Off by default: within a tenant too, the speed of an answer tells that something like
    /// it was said before.
    pub remember_answers: Option<PoolLimits>,
}

impl Default for SpeculationConfig {
    fn default() -> Self {
        Self {
            drafters: vec![DrafterKind::Ngram, DrafterKind::Suffix],
            draft_model: None,
            // With the token that is certain anyway a whole step of the kernels: 8 rows.
            max_draft_tokens: 7,
            remember_answers: None,
        }
    }
}

/// A drafter that needs no model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrafterKind {
    /// What followed the last occurrence of the newest tokens in the sequence's own text.
    Ngram,
    /// What most often followed the longest known suffix.
    Suffix,
}

/// Types that float weights can become while they are loaded.
pub use crate::kernels::WeightTarget as LoadQuantization;

/// A model that cannot be served. The messages say whether file, configuration or machine is at fault.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("engine configuration: {0}")]
    Config(#[from] ParamError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("{file}: {source}")]
    Template { file: String, source: TemplateError },
    #[error("{file}: the vocabulary has {tokens} tokens, the embedding {rows} rows")]
    Vocabulary {
        file: String,
        tokens: usize,
        rows: usize,
    },
    #[error("kv_bytes is {kv_bytes}, but one block of {BLOCK_SIZE} tokens takes {block_bytes}")]
    KvTooSmall { kv_bytes: u64, block_bytes: usize },
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("the operating system refused the engine's thread: {0}")]
    Thread(std::io::Error),
    #[error("draft model {file}: {source}")]
    DraftModel {
        file: String,
        source: VocabularyMismatch,
    },
    #[error("the operating system gives no random numbers for the prefix cache's key: {0}")]
    Random(getrandom::Error),
}

impl From<KernelError> for LoadError {
    fn from(error: KernelError) -> Self {
        Self::Model(error.into())
    }
}

/// What is served.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    pub name: String,
    pub file: PathBuf,
    pub architecture: String,
    pub parameters: u64,
    /// ggml's name of the type that most weights have in memory.
    pub quantization: String,
    /// Longest prompt plus answer.
    pub context_tokens: usize,
    pub vocabulary: usize,
    /// Weights as they lie in the file: about what a step reads.
    pub weight_bytes: u64,
    pub kv_bytes_per_token: usize,
    pub kv_blocks: usize,
    pub has_chat_template: bool,
    /// Tokens that end an answer; they appear in events with empty text.
    pub end_tokens: Vec<u32>,
    pub threads: usize,
    /// The instruction set of the kernels.
    pub isa: &'static str,
}

/// Text is tokenised with control tokens recognised; tokens are taken as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct GenerationRequest {
    pub prompt: Prompt,
    pub params: SamplingParams,
    /// Most tokens to generate; `None` is whatever context and KV memory leave.
    pub max_new_tokens: Option<usize>,
    /// The answer ends before the first of these; at most 16 of at most 256 bytes.
    pub stop: Vec<String>,
    /// What the answer must look like; `None` is any text.
    pub constraint: Option<Grammar>,
    /// Whose share of the engine's time this takes; requests of nobody share as one.
    pub tenant: Option<String>,
    /// On whose account its steps are told to a [`StepObserver`]; 0 is nobody's.
    pub account: u64,
    /// From -128 to 127; lower goes first, as for vLLM.
    pub priority: i32,
    /// Most tokens a step may guess ahead for it; `None` is the engine's own bound, 0 is plain
    /// decoding. The answer is the same with any number.
    pub max_draft_tokens: Option<usize>,
    /// Tokens that another model would have said next; the answer is the same with any. Its first
    /// 1,024 are looked at, and only where somebody drafts.
    pub draft_hint: Vec<u32>,
    /// How long it may wait for its turn before it ends with an error.
    pub deadline: Option<Duration>,
}

impl GenerationRequest {
    pub fn new(prompt: impl Into<String>) -> Self {
        let prompt = Prompt::Text(prompt.into());
        Self {
            prompt,
            params: SamplingParams::default(),
            max_new_tokens: None,
            stop: Vec::new(),
            constraint: None,
            tenant: None,
            account: 0,
            priority: 0,
            max_draft_tokens: None,
            draft_hint: Vec::new(),
            deadline: None,
        }
    }
}

/// A request that was not taken. Nothing has happened.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// The host is busy; retry later.
    #[error("{waiting} requests are waiting, and the limit is {limit}; retry later")]
    QueueFull { waiting: usize, limit: usize },
    /// The client's fault.
    #[error(
        "the prompt has {prompt_tokens} tokens and {max_new_tokens} more may be generated, but the context is \
         {limit} tokens; shorten the prompt or ask for less"
    )]
    ContextTooLong {
        prompt_tokens: usize,
        max_new_tokens: usize,
        limit: usize,
    },
    /// The host was given too little memory for such a request; waiting would not help.
    #[error(
        "this request needs {blocks_needed} KV blocks of {BLOCK_SIZE} tokens, but the engine has {blocks_total}; \
         ask for less or raise kv_bytes"
    )]
    NeverFits {
        blocks_needed: usize,
        blocks_total: usize,
    },
    /// The client's fault.
    #[error(transparent)]
    Invalid(#[from] ParamError),
    /// Nearly always the client's fault; the error says so where it is not.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// The host is going down.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// The host's fault: the engine's thread has panicked, and nothing brings it back.
    #[error(
        "the engine has ended by a fault of its own, which the host's log tells; restart the host"
    )]
    Ended,
}

impl From<Refusal> for SubmitError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::ContextTooLong {
                prompt_tokens,
                max_new_tokens,
                limit,
            } => Self::ContextTooLong {
                prompt_tokens,
                max_new_tokens,
                limit,
            },
            Refusal::NeverFits {
                blocks_needed,
                blocks_total,
            } => Self::NeverFits {
                blocks_needed,
                blocks_total,
            },
        }
    }
}

/// A score that was not taken or not finished.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScoreError {
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the score was cancelled")]
    Cancelled,
}

/// What to do with the sequences that are there when the engine is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Finish them all; nothing new is taken.
    Drain,
    /// Cancel them all.
    Cancel,
}

enum Command {
    Add(Box<Sequence>),
    Cancel(SequenceId),
    Observe(Box<dyn StepObserver>),
    LimitRunning(usize),
    Stop(Shutdown),
    #[cfg(test)]
    Panic,
}

struct Shared {
    info: ModelInfo,
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    /// Built by the first request that needs it, on its thread.
    constraints: OnceLock<Result<Constraints, ConstraintError>>,
    limits: Limits,
    max_waiting: usize,
    max_draft_tokens: usize,
    seed: u64,
    stats: Arc<StatsCell>,
    next_id: AtomicU64,
    /// It was told to stop.
    closing: AtomicBool,
    /// Its thread has ended, told or not.
    ended: AtomicBool,
    epoch: Instant,
}

/// A loaded model and its thread. Dropping it cancels what runs and waits for the thread.
pub struct Engine {
    handle: EngineHandle,
    thread: Option<JoinHandle<()>>,
}

/// Speaks to an engine from any thread. Cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
    inbox: Sender<Command>,
}

impl Engine {
    /// Reads and repacks the model and starts its thread. Takes as long as reading the file.
    pub fn load(config: EngineConfig) -> Result<Self, LoadError> {
        config.check()?;
        let isa = Isa::detect()?;
        let source = ModelSource::open(&config.path)?;
        let file = config.path.display().to_string();
        let tokenizer = Arc::new(Tokenizer::read(&source)?);
        let template = chat_template(&source, &tokenizer)?;
        let device = config.device.open()?;
        let weights = Weights::load(&source, &config, device.as_ref())?;
        let rows = weights.config().vocabulary;
        if tokenizer.vocabulary() > rows {
            return Err(LoadError::Vocabulary {
                file,
                tokens: tokenizer.vocabulary(),
                rows,
            });
        }
        let size = runner_size(&config, weights.config())?;
        let info = model_info(
            &config,
            &source,
            weights.config(),
            &tokenizer,
            template.is_some(),
            &size,
            isa,
        )?;
        let limits = Limits {
            max_sequences: config.max_sequences,
            max_batch_tokens: size.max_rows,
            max_logit_rows: size.max_logit_rows,
            context_tokens: size.context_tokens,
            total_blocks: size.blocks,
        };
        let shared = Shared {
            info,
            tokenizer,
            template,
            constraints: OnceLock::new(),
            limits,
            max_waiting: config.max_waiting,
            max_draft_tokens: config.speculation.max_draft_tokens,
            seed: config.seed,
            stats: Arc::default(),
            next_id: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            epoch: Instant::now(),
        };
        let runner = weights.runner(&config, isa, size)?;
        let draft_model = load_draft_model(&config, &shared.tokenizer, size, device.as_ref())?;
        let draft_model = match draft_model {
            Some((weights, size)) => Some((weights.runner(&config, isa, size)?, size)),
            None => None,
        };
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(LoadError::Random)?;
        Self::start(shared, move |limits, tokenizer, stats| {
            let core = Core::new(limits, runner, tokenizer, stats);
            let mut core = scheduled(core, &config);
            if config.prefix_cache {
                core = core.with_prefix_cache(secret);
            }
            let drafters = drafters(&config.speculation, draft_model);
            if !drafters.is_empty() {
                core = core.with_drafter(Box::new(drafters), Some(Goodput::default()));
            }
            core
        })
    }

    fn start(
        shared: Shared,
        core: impl FnOnce(Limits, Arc<Tokenizer>, Arc<StatsCell>) -> Core + Send + 'static,
    ) -> Result<Self, LoadError> {
        let shared = Arc::new(shared);
        let (inbox, commands) = channel();
        let of_thread = Arc::clone(&shared);
        let work = move || {
            let _closed = CloseOnExit(Arc::clone(&of_thread));
            let tokenizer = Arc::clone(&of_thread.tokenizer);
            let core = core(of_thread.limits, tokenizer, Arc::clone(&of_thread.stats));
            serve(core, &commands, of_thread.epoch);
        };
        let name = format!("engine-{}", shared.info.name);
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(work)
            .map_err(LoadError::Thread)?;
        Ok(Self {
            handle: EngineHandle { shared, inbox },
            thread: Some(thread),
        })
    }

    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// Takes nothing new, deals with what is there, and waits for the thread to end.
    pub fn shutdown(mut self, how: Shutdown) {
        self.stop(how);
    }

    fn stop(&mut self, how: Shutdown) {
        self.handle.shared.closing.store(true, Relaxed);
        // A thread that has ended already has nothing to be told.
        let _ = self.handle.inbox.send(Command::Stop(how));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(
                model = self.handle.shared.info.name,
                "the engine's thread had panicked"
            );
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop(Shutdown::Cancel);
        }
    }
}

fn chat_template(
    source: &ModelSource,
    tokenizer: &Tokenizer,
) -> Result<Option<ChatTemplate>, LoadError> {
    let template = source.chat_template()?;
    template
        .map(|text| ChatTemplate::new(&text, tokenizer.begin_text(), tokenizer.end_text()))
        .transpose()
        .map_err(|problem| LoadError::Template {
            file: source.path().display().to_string(),
            source: problem,
        })
}

/// A model's weights, where it will run.
enum Weights {
    Cpu(Box<DecoderWeights>),
    Device(Box<DeviceWeights>),
}

impl Weights {
    fn load(
        source: &ModelSource,
        config: &EngineConfig,
        device: Option<&candle_core::Device>,
    ) -> Result<Self, ModelError> {
        let target = config.load_quantization.unwrap_or_default();
        Ok(match device {
            None => Self::Cpu(Box::new(DecoderWeights::load(source, target)?)),
            Some(device) => Self::Device(Box::new(DeviceWeights::load(source, device)?)),
        })
    }

    fn config(&self) -> &DecoderConfig {
        match self {
            Self::Cpu(weights) => weights.config(),
            Self::Device(weights) => weights.config(),
        }
    }

    fn runner(
        self,
        config: &EngineConfig,
        isa: Isa,
        size: RunnerSize,
    ) -> Result<Box<dyn Runner>, LoadError> {
        match self {
            Self::Cpu(weights) => Ok(Box::new(DecoderRunner::new(*weights, isa, size)?)),
            Self::Device(weights) => {
                let model = weights.config();
                let block = KvStore::bytes_per_block(model.layers, model.kv_heads, model.head_dim);
                let device = config.device;
                let mut runner =
                    CandleRunner::new(*weights, size).map_err(|e| DeviceError::Memory {
                        device,
                        bytes: (block * size.blocks) as u64,
                        problem: e.to_string(),
                    })?;
                let warmed = runner.warm_up();
                warmed.map_err(|e| DeviceError::Compute {
                    device,
                    problem: e.to_string(),
                })?;
                Ok(Box::new(runner))
            }
        }
    }
}

/// Reads the draft model, if there is one. It gets as many KV blocks as its target, of its own size.
fn load_draft_model(
    config: &EngineConfig,
    target: &Tokenizer,
    size: RunnerSize,
    device: Option<&candle_core::Device>,
) -> Result<Option<(Weights, RunnerSize)>, LoadError> {
    let Some(path) = &config.speculation.draft_model else {
        return Ok(None);
    };
    let source = ModelSource::open(path)?;
    same_vocabulary(target, &Tokenizer::read(&source)?).map_err(|source| {
        LoadError::DraftModel {
            file: path.display().to_string(),
            source,
        }
    })?;
    let weights = Weights::load(&source, config, device)?;
    let context_tokens = weights.config().context_tokens.min(size.context_tokens);
    let size = RunnerSize {
        context_tokens,
        ..size
    };
    Ok(Some((weights, size)))
}

/// What the configuration says about whose turn it is, and for how long.
fn scheduled(core: Core, config: &EngineConfig) -> Core {
    let weights = config.tenant_weights.iter();
    let weights = weights.map(|(name, weight)| (tenant_number(name, config.seed), *weight));
    core.with_tenant_weights(weights.collect())
        .with_step_budget(Duration::from_millis(u64::from(config.step_milliseconds)))
}

/// Cheapest first.
fn drafters(
    config: &SpeculationConfig,
    draft_model: Option<(Box<dyn Runner>, RunnerSize)>,
) -> Cascade {
    let drafter = |kind: &DrafterKind| -> Box<dyn Drafter> {
        match kind {
            DrafterKind::Ngram => Box::new(Ngram::default()),
            DrafterKind::Suffix => Box::new(Suffix::new(config.remember_answers)),
        }
    };
    let mut drafters: Vec<_> = config.drafters.iter().map(drafter).collect();
    if let Some((runner, size)) = draft_model {
        let limits = DraftModelLimits {
            blocks: size.blocks,
            max_rows: size.max_rows,
            max_logit_rows: size.max_logit_rows,
            context_tokens: size.context_tokens,
        };
        drafters.push(Box::new(DraftModel::new(runner, limits)));
    }
    Cascade::new(drafters)
}

/// Whatever ends the thread, a panic included, the door is closed behind it; sinks that are dropped
/// without a last event tell their readers the rest.
struct CloseOnExit(Arc<Shared>);

impl Drop for CloseOnExit {
    fn drop(&mut self) {
        self.0.ended.store(true, Relaxed);
    }
}

/// Rows of a step that may have logits: every running sequence may want one; scores share what is
/// left, in chunks.
pub fn max_logit_rows(max_sequences: usize, max_batch_tokens: usize) -> usize {
    max_sequences.max(64).min(max_batch_tokens)
}

fn runner_size(config: &EngineConfig, model: &DecoderConfig) -> Result<RunnerSize, LoadError> {
    let block_bytes = KvStore::bytes_per_block(model.layers, model.kv_heads, model.head_dim);
    let blocks = (config.kv_bytes / block_bytes as u64).min(1 << 31) as usize;
    if blocks == 0 {
        return Err(LoadError::KvTooSmall {
            kv_bytes: config.kv_bytes,
            block_bytes,
        });
    }
    Ok(RunnerSize {
        threads: config.threads,
        blocks,
        max_rows: config.max_batch_tokens,
        max_logit_rows: max_logit_rows(config.max_sequences, config.max_batch_tokens),
        context_tokens: config
            .context_tokens
            .unwrap_or(usize::MAX)
            .min(model.context_tokens),
    })
}

fn model_info(
    config: &EngineConfig,
    source: &ModelSource,
    model: &DecoderConfig,
    tokenizer: &Tokenizer,
    has_chat_template: bool,
    size: &RunnerSize,
    isa: Isa,
) -> Result<ModelInfo, LoadError> {
    let about = describe(source)?;
    Ok(ModelInfo {
        name: config.name.clone(),
        file: config.path.clone(),
        quantization: match about.quantization() {
            // On the CPU floats are not what is in memory.
            Some(kind) if kind.block().0 == 1 && config.device == Device::Cpu => {
                format!("{:?}", config.load_quantization.unwrap_or_default())
            }
            Some(kind) => kind.to_string(),
            None => String::new(),
        },
        weight_bytes: about.weight_bytes(),
        architecture: about.architecture,
        parameters: about.parameters,
        context_tokens: size.context_tokens,
        vocabulary: tokenizer.vocabulary(),
        kv_bytes_per_token: model.kv_bytes_per_token(),
        kv_blocks: size.blocks,
        has_chat_template,
        end_tokens: tokenizer.ends().to_vec(),
        threads: size.threads,
        isa: isa.name(),
    })
}

/// The engine's thread: take commands, step, deliver, until told to stop or everybody is gone.
fn serve(mut core: Core, commands: &Receiver<Command>, epoch: Instant) {
    let mut stopping = false;
    loop {
        loop {
            let command = match core.is_idle() && !stopping {
                true => commands.recv().map_err(|_| TryRecvError::Disconnected),
                false => commands.try_recv(),
            };
            match command {
                Ok(Command::Add(sequence)) => core.add(*sequence),
                Ok(Command::Cancel(id)) => core.cancel(id),
                #[cfg(test)]
                Ok(Command::Panic) => panic!("told to"),
                Ok(Command::Observe(observer)) => core.observe(observer),
                Ok(Command::LimitRunning(most)) => core.set_max_running(most),
                Ok(Command::Stop(how)) => {
                    stopping = true;
                    if how == Shutdown::Cancel {
                        core.cancel_all();
                    }
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    stopping = true;
                    break;
                }
            }
        }
        let before = epoch.elapsed();
        core.draft(before);
        let now = epoch.elapsed();
        core.drafted(now.saturating_sub(before));
        core.advance(now);
        core.deliver(epoch.elapsed());
        if stopping && core.is_idle() {
            break;
        }
    }
    // Requests that were sent while the door closed.
    while let Ok(command) = commands.try_recv() {
        if let Command::Add(mut sequence) = command
            && let Some(sink) = &mut sequence.sink
        {
            let _ = sink.event(Event::Failed(EngineError::ShuttingDown));
        }
    }
}

impl Shared {
    /// Why nothing can be taken.
    fn closed(&self) -> Option<SubmitError> {
        match (self.closing.load(Relaxed), self.ended.load(Relaxed)) {
            (true, _) => Some(SubmitError::ShuttingDown),
            (false, true) => Some(SubmitError::Ended),
            (false, false) => None,
        }
    }

    fn constraints(&self) -> Result<&Constraints, ConstraintError> {
        let built = self
            .constraints
            .get_or_init(|| Constraints::new(&self.tokenizer));
        built.as_ref().map_err(Clone::clone)
    }
}

impl EngineHandle {
    pub fn info(&self) -> &ModelInfo {
        &self.shared.info
    }

    pub fn stats(&self) -> EngineStats {
        self.shared.stats.read()
    }

    /// Whether it takes requests: it was not told to stop, and its thread has not panicked.
    pub fn is_alive(&self) -> bool {
        self.shared.closed().is_none()
    }

    /// Ends the thread as a bug would.
    #[cfg(test)]
    pub fn panic(&self) {
        let _ = self.inbox.send(Command::Panic);
    }

    /// The conversation as the model wants to read it; `answer_prefix` is what its answer begins
    /// with. Control tokens written in a message are marked so that tokenising reads them as text.
    pub fn render_chat(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        answer_prefix: Option<&str>,
    ) -> Result<String, TemplateError> {
        let template = self
            .shared
            .template
            .as_ref()
            .ok_or(TemplateError::Missing)?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let guard = |text: &str| self.shared.tokenizer.guard(text);
        let messages: Vec<ChatMessage> = messages
            .iter()
            .map(|m| ChatMessage {
                role: guard(&m.role),
                content: guard(&m.content),
                name: m.name.as_deref().map(guard),
            })
            .collect();
        let prefix = answer_prefix.map(guard);
        template.render(
            &messages,
            add_generation_prompt,
            prefix.as_deref(),
            now.as_secs(),
        )
    }

    /// With `special`, control tokens written in the text are recognised, as in a rendered chat.
    pub fn tokenize(&self, text: &str, special: bool) -> Vec<u32> {
        self.shared.tokenizer.encode(text, special)
    }

    pub fn count_tokens(&self, text: &str, special: bool) -> usize {
        self.tokenize(text, special).len()
    }

    /// The text of these tokens; control tokens have none.
    pub fn detokenize(&self, tokens: &[u32]) -> String {
        self.shared.tokenizer.decode(tokens)
    }

    /// Takes a request. Its events come to `sink` on the engine's thread, the last one being
    /// `Finished` or `Failed`.
    pub fn submit(
        &self,
        request: GenerationRequest,
        sink: Box<dyn Sink>,
    ) -> Result<SequenceId, SubmitError> {
        let shared = &*self.shared;
        request.params.check(shared.info.vocabulary)?;
        check_stops(&request.stop)?;
        if request.max_new_tokens == Some(0) {
            return Err(ParamError::new("max_new_tokens", 0, "at least 1").into());
        }
        let mut standing = Standing::of(&request, shared.seed)?;
        let place = self.take_place()?;
        let tokens = self.prompt_tokens(request.prompt)?;
        let end = shared.limits.admit(tokens.len(), request.max_new_tokens)?;
        if let Some(grammar) = &request.constraint {
            standing.constraint = Some(Box::new(shared.constraints()?.compile(grammar)?));
        }
        self.enqueue(
            place,
            tokens,
            request.params,
            request.stop,
            Purpose::Generate { end },
            standing,
            sink,
        )
    }

    /// Ends a sequence at the next step; its sink gets `Finished` with `Cancelled`. Unknown and
    /// finished sequences are no matter.
    pub fn cancel(&self, id: SequenceId) {
        // A thread that has ended has no sequences left.
        let _ = self.inbox.send(Command::Cancel(id));
    }

    /// Tells `observer` of every step from the next one on, in the place of who was told before.
    pub fn observe_steps(&self, observer: Box<dyn StepObserver>) {
        // A thread that has ended takes no steps.
        let _ = self.inbox.send(Command::Observe(observer));
    }

    /// Computes at most so many sequences together from the next step on: from 1 to the
    /// configured `max_sequences`, and what lies outside counts as the nearer of them. Those that
    /// run already go on, others wait.
    pub fn limit_running(&self, most: usize) {
        // A thread that has ended runs none.
        let _ = self.inbox.send(Command::LimitRunning(most));
    }

    /// When the engine's clock was 0.
    pub fn epoch(&self) -> Instant {
        self.shared.epoch
    }

    /// How likely the model finds `continuation` after `prompt`, token by token. Waits for the
    /// answer, so never call it on a thread that must not wait. Control tokens are recognised in
    /// the prompt only. `tenant` and `account` are as in a [`GenerationRequest`].
    pub fn score(
        &self,
        tenant: Option<&str>,
        account: u64,
        prompt: &str,
        continuation: &str,
    ) -> Result<Vec<TokenLogprob>, ScoreError> {
        let place = self.take_place()?;
        let mut tokens = self.prompt_tokens(Prompt::Text(prompt.to_owned()))?;
        let next = tokens.len();
        tokens.extend(self.tokenize(continuation, false));
        if tokens.len() == next {
            return Ok(Vec::new());
        }
        self.shared
            .limits
            .admit(tokens.len() - 1, Some(1))
            .map_err(SubmitError::from)?;
        let (sender, events) = channel();
        let purpose = Purpose::Score { next, top: 0 };
        let standing = Standing {
            tenant: tenant.map_or(0, |name| tenant_number(name, self.shared.seed)),
            account,
            ..Standing::default()
        };
        self.enqueue(
            place,
            tokens,
            SamplingParams::default(),
            Vec::new(),
            purpose,
            standing,
            Box::new(sender),
        )?;
        let mut scores = Vec::new();
        for event in events {
            match event {
                Event::Token { logprob, .. } => scores.push(logprob),
                Event::Finished {
                    reason: FinishReason::Scored,
                    ..
                } => return Ok(scores),
                Event::Finished { .. } => return Err(ScoreError::Cancelled),
                Event::Failed(error) => return Err(error.into()),
            }
        }
        Err(self.shared.closed().unwrap_or(SubmitError::Ended).into())
    }

    fn prompt_tokens(&self, prompt: Prompt) -> Result<Vec<u32>, SubmitError> {
        let vocabulary = self.shared.info.vocabulary;
        let tokens = match prompt {
            Prompt::Text(text) => self.tokenize(&text, true),
            Prompt::Tokens(tokens) => tokens,
        };
        if tokens.is_empty() {
            return Err(ParamError::new("prompt", "empty", "at least one token").into());
        }
        match tokens.iter().find(|t| **t as usize >= vocabulary) {
            Some(token) => Err(ParamError::new(
                "prompt",
                format!("token {token}"),
                format!("below {vocabulary}"),
            )
            .into()),
            None => Ok(tokens),
        }
    }

    /// A place in the queue, taken before anything is computed for it.
    fn take_place(&self) -> Result<Place<'_>, SubmitError> {
        let shared = &*self.shared;
        if let Some(closed) = shared.closed() {
            return Err(closed);
        }
        let limit = shared.max_waiting;
        let room = |waiting: usize| (waiting < limit).then_some(waiting + 1);
        let waiting = &shared.stats.waiting;
        match waiting.fetch_update(Relaxed, Relaxed, room) {
            Ok(_) => Ok(Place(&shared.stats)),
            Err(waiting) => Err(SubmitError::QueueFull { waiting, limit }),
        }
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "what a sequence is made of, and its place"
    )]
    fn enqueue(
        &self,
        place: Place<'_>,
        tokens: Vec<u32>,
        params: SamplingParams,
        stops: Vec<String>,
        purpose: Purpose,
        standing: Standing,
        sink: Box<dyn Sink>,
    ) -> Result<SequenceId, SubmitError> {
        let shared = &*self.shared;
        let id = SequenceId(shared.next_id.fetch_add(1, Relaxed));
        let default_seed = random::keyed(shared.seed, id.0);
        let arrived = shared.epoch.elapsed();
        let mut sequence = Sequence::new(Order {
            id,
            tokens,
            purpose,
            params,
            default_seed,
            stops,
            arrived,
            sink,
        });
        sequence.tenant = standing.tenant;
        sequence.account = standing.account;
        sequence.max_draft_tokens = standing.max_draft_tokens.min(shared.max_draft_tokens);
        sequence.draft_hint = standing.draft_hint;
        sequence.priority = standing.priority;
        sequence.constraint = standing.constraint;
        sequence.deadline = standing.patience.and_then(|p| arrived.checked_add(p));
        let sent = self.inbox.send(Command::Add(Box::new(sequence)));
        // Nobody reads the inbox, so the thread has ended by now, or is about to say so.
        sent.map_err(|_| shared.closed().unwrap_or(SubmitError::Ended))?;
        // The step gives it back.
        std::mem::forget(place);
        Ok(id)
    }
}

/// A place in the queue; given back if the request does not get into it.
struct Place<'a>(&'a StatsCell);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

/// A request's standing among others, and in its grammar.
#[derive(Default)]
struct Standing {
    tenant: u64,
    account: u64,
    max_draft_tokens: usize,
    draft_hint: Vec<u32>,
    priority: i8,
    patience: Option<Duration>,
    constraint: Option<Box<Constraint>>,
}

impl Standing {
    fn of(request: &GenerationRequest, seed: u64) -> Result<Self, ParamError> {
        let range = "from -128 to 127";
        let outside = |_| ParamError::new("priority", request.priority, range);
        Ok(Self {
            tenant: request
                .tenant
                .as_ref()
                .map_or(0, |name| tenant_number(name, seed)),
            account: request.account,
            max_draft_tokens: request.max_draft_tokens.unwrap_or(usize::MAX),
            draft_hint: request
                .draft_hint
                .iter()
                .take(MAX_HINT_TOKENS)
                .copied()
                .collect(),
            priority: i8::try_from(request.priority).map_err(outside)?,
            patience: request.deadline,
            constraint: None,
        })
    }
}

/// Keyed, so that nobody can choose a name that meets another's. 0 is everybody without a name.
fn tenant_number(name: &str, seed: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(seed);
    hasher.write(name.as_bytes());
    hasher.finish().max(1)
}

fn check_stops(stops: &[String]) -> Result<(), ParamError> {
    if stops.len() > MAX_STOPS {
        return Err(ParamError::new(
            "stop",
            format!("a list of {}", stops.len()),
            format!("at most {MAX_STOPS} strings"),
        ));
    }
    match stops
        .iter()
        .find(|s| s.is_empty() || s.len() > MAX_STOP_BYTES)
    {
        Some(stop) => {
            let value = format!("a string of {} bytes", stop.len());
            Err(ParamError::new(
                "stop",
                value,
                format!("strings of 1 to {MAX_STOP_BYTES} bytes"),
            ))
        }
        None => Ok(()),
    }
}
