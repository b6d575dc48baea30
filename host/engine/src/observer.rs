//! Who wants to know what every step computed, and for whom.
//!
//! It exists for whoever accounts for energy: the engine tells when a step began, when it
//! ended and what each request had in it. Without an observer nothing is collected. It
//! refuses to know what a request costs, and an observer may not make the engine wait.

use std::time::Duration;

/// Hears of steps, on the engine's thread.
pub trait StepObserver: Send {
    /// A step begins, at this time of the engine's clock. What it will compute is not known.
    fn began(&mut self, at: Duration);
    /// The step has ended. `sequences` is empty when there was nothing to compute.
    fn ended(&mut self, began: Duration, ended: Duration, sequences: &[SequenceStep]);
}

/// What one sequence had computed in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceStep {
    /// As the request said, see [`GenerationRequest::account`](crate::GenerationRequest::account).
    pub account: u64,
    /// A part of the prompt, or what a preemption makes necessary again.
    pub prefill: bool,
    /// Rows of the forward pass, guesses included.
    pub computed_tokens: u32,
    /// Tokens of the sequence that were computed before.
    pub context_tokens: u32,
    /// Guesses that did not hold.
    pub rejected_tokens: u32,
}

/// The observer and what it will be told of the running step.
#[derive(Default)]
pub struct StepRecord {
    observer: Option<Box<dyn StepObserver>>,
    began: Duration,
    sequences: Vec<SequenceStep>,
}

impl StepRecord {
    /// From now on this one hears of steps.
    pub fn observe(&mut self, observer: Box<dyn StepObserver>) {
        self.observer = Some(observer);
    }

    pub fn begin(&mut self, now: Duration) {
        self.began = now;
        self.sequences.clear();
        if let Some(observer) = &mut self.observer {
            observer.began(now);
        }
    }

    /// One sequence is in the step, as number so and so of its chunks.
    pub fn add(&mut self, sequence: SequenceStep) {
        if self.observer.is_some() {
            self.sequences.push(sequence);
        }
    }

    /// Guesses of the sequence of this chunk did not hold.
    pub fn reject(&mut self, chunk: usize, tokens: usize) {
        if let Some(sequence) = self.sequences.get_mut(chunk) {
            sequence.rejected_tokens += tokens as u32;
        }
    }

    pub fn end(&mut self, now: Duration) {
        if let Some(observer) = &mut self.observer {
            observer.ended(self.began, now, &self.sequences);
        }
        self.sequences.clear();
    }
}
