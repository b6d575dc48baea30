//! The engine room: models, KV blocks, scheduler, forward passes, sampling, tokenizers.
//!
//! One request's way: [`EngineHandle::submit`] → `inbox` → [`sequence`] waiting → [`scheduler`] →
//! [`batch`] → [`runner`] → [`sampler`] → commit → [`Sink`]. The middle part is [`step`], which
//! fits on one screen.
//!
//! The room knows neither WebAssembly nor HTTP, is not async, and reads a clock in one module
//! only ([`engine`]). It promises that a sequence's text does not depend on what is batched
//! beside it, on how its prompt was chunked, or on whether it was preempted.

pub mod batch;
pub mod block;
mod branches;
mod chat_template;
pub mod constraint;
pub mod cost;
mod device;
mod encoder;
mod engine;
mod events;
mod gguf;
mod inspect;
pub mod kernels;
pub mod model;
mod observer;
mod prefix;
mod prompt_classifier;
pub mod queue;
mod random;
pub mod runner;
mod safetensors;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod speculation;
mod speculator;
mod stats;
pub mod step;
#[cfg(test)]
mod tests;
pub mod threads;
mod tokenizer;

pub use chat_template::{ChatMessage, ChatTemplate, TemplateError};
pub use constraint::{Constraint, ConstraintError, Constraints, Grammar, TokenMask};
pub use device::{Device, DeviceError};
pub use encoder::texts::Computed;
pub use encoder::{Embedding, Encoder, EncoderError};
pub use engine::{
    DrafterKind, Engine, EngineConfig, EngineHandle, GenerationRequest, LoadError,
    LoadQuantization, MAX_DRAFT_TOKENS, MAX_STOP_BYTES, MAX_STOPS, ModelInfo, Prompt, ScoreError,
    Shutdown, SpeculationConfig, SubmitError, max_logit_rows,
};
pub use events::{
    Closed, EngineError, Event, FinishReason, Sink, Timings, TokenLogprob, TopLogprob, Usage,
};
pub use gguf::{Gguf, GgufError, Header, TensorInfo, TensorType, Value};
pub use inspect::{Experts, Inspection, TypeTotal, inspect};
pub use model::ModelError;
pub use model::source::ModelSource;
pub use observer::{SequenceStep, StepObserver};
pub use prompt_classifier::{PROMPT_VECTOR, PromptClassifier, PromptScores};
pub use queue::MAX_TENANT_WEIGHT;
pub use safetensors::{Safetensors, SafetensorsError, StoredTensor};
pub use sampler::{MAX_LOGIT_BIAS, MAX_TOP_LOGPROBS, ParamError, SamplingParams};
pub use sequence::SequenceId;
pub use speculation::PoolLimits;
pub use stats::{DRAFT_POSITIONS, EngineStats, ITERATION_TOKEN_BOUNDS};
pub use tokenizer::{Piece, TextStream, Tokenizer, TokenizerError};
