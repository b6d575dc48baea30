//! Guessing tokens ahead, so that one forward pass can confirm several.
//!
//! It exists because a pass over a few rows costs hardly more than a pass over one: whatever can
//! guess the next tokens cheaply turns the difference into speed. A [`Drafter`] proposes a
//! [`Draft`], the target model's own choice decides token by token, and [`goodput`] sees to it
//! that guessing is only paid for where it returns more than it costs.
//!
//! It refuses to influence the text. A draft is a guess about what the sampler will choose
//! anyway; a wrong one costs rows, never a different token. Everything here is a plain state
//! machine: no clock (durations come in), no threads, same inputs same outputs.

pub mod cascade;
pub mod draft;
pub mod goodput;
pub mod hint;
pub mod model;
pub mod ngram;
pub mod suffix;

pub use cascade::Cascade;
pub use draft::{Draft, DraftNode, DraftRequest, Drafter};
pub use goodput::{Candidate, Goodput};
pub use model::{DraftModel, VocabularyMismatch, same_vocabulary};
pub use ngram::Ngram;
pub use suffix::{PoolLimits, Suffix};
