//! What the engine counts about itself, under vLLM's names.
//!
//! Written by the engine's thread between steps, read by anybody at any time without a lock.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Places of a draft that are counted one by one; what lies beyond counts as the last.
pub const DRAFT_POSITIONS: usize = 16;

/// Upper bounds of the histogram of rows per step. A last, unbounded bucket follows them.
pub const ITERATION_TOKEN_BOUNDS: [u64; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/// A reading. Counters only grow.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EngineStats {
    pub num_requests_running: usize,
    /// How many may run at present.
    pub max_requests_running: usize,
    /// Those included that have begun and gave way.
    pub num_requests_waiting: usize,
    /// Used blocks over all blocks, 0 to 1.
    pub kv_cache_usage: f64,
    pub prompt_tokens_total: u64,
    pub generation_tokens_total: u64,
    pub num_preemptions_total: u64,
    pub requests_finished_total: u64,
    pub requests_failed_total: u64,
    pub steps_total: u64,
    /// Rows of all steps: prompt tokens, decoded tokens and drafts.
    pub iteration_tokens_total: u64,
    /// Steps by their rows: one count per bound of [`ITERATION_TOKEN_BOUNDS`], not cumulative, and
    /// one for what lies above.
    pub iteration_tokens_buckets: [u64; ITERATION_TOKEN_BOUNDS.len() + 1],
    /// Prompt tokens that were looked up in the prefix cache, and those it had.
    pub prefix_cache_queries_total: u64,
    pub prefix_cache_hits_total: u64,
    /// Drafts verified, their tokens, and those of them that were accepted: in all, and by the
    /// place in the draft (0 is the first token).
    pub spec_decode_num_drafts_total: u64,
    pub spec_decode_num_draft_tokens_total: u64,
    pub spec_decode_num_accepted_tokens_total: u64,
    pub spec_decode_num_accepted_tokens_per_pos: [u64; DRAFT_POSITIONS],
    /// Threads that compute a step at present, the engine's own included.
    pub compute_threads: usize,
}

/// What one step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepWork {
    /// Rows of the forward pass, drafts included, and those of them with logits.
    pub rows: usize,
    pub logit_rows: usize,
    /// Tokens whose keys and values were read, over all rows.
    pub context: usize,
    pub threads: usize,
}

#[derive(Default)]
pub struct StatsCell {
    pub running: AtomicUsize,
    pub max_running: AtomicUsize,
    /// Submitted and not yet computed for the first time; bounds the queue.
    pub waiting: AtomicUsize,
    /// Begun, and waiting to be computed again.
    pub preempted: AtomicUsize,
    pub used_blocks: AtomicUsize,
    pub total_blocks: AtomicUsize,
    pub prompt_tokens: AtomicU64,
    pub generation_tokens: AtomicU64,
    pub preemptions: AtomicU64,
    pub finished: AtomicU64,
    pub failed: AtomicU64,
    steps: AtomicU64,
    iteration_tokens: AtomicU64,
    iteration_tokens_buckets: [AtomicU64; ITERATION_TOKEN_BOUNDS.len() + 1],
    pub prefix_cache_queries: AtomicU64,
    pub prefix_cache_hits: AtomicU64,
    pub drafts: AtomicU64,
    pub draft_tokens: AtomicU64,
    pub accepted_tokens: AtomicU64,
    pub accepted_tokens_per_pos: [AtomicU64; DRAFT_POSITIONS],
    pub compute_threads: AtomicUsize,
}

impl StatsCell {
    pub fn read(&self) -> EngineStats {
        EngineStats {
            num_requests_running: self.running.load(Relaxed),
            max_requests_running: self.max_running.load(Relaxed),
            num_requests_waiting: self.waiting.load(Relaxed) + self.preempted.load(Relaxed),
            kv_cache_usage: self.used_blocks.load(Relaxed) as f64
                / self.total_blocks.load(Relaxed).max(1) as f64,
            prompt_tokens_total: self.prompt_tokens.load(Relaxed),
            generation_tokens_total: self.generation_tokens.load(Relaxed),
            num_preemptions_total: self.preemptions.load(Relaxed),
            requests_finished_total: self.finished.load(Relaxed),
            requests_failed_total: self.failed.load(Relaxed),
            steps_total: self.steps.load(Relaxed),
            iteration_tokens_total: self.iteration_tokens.load(Relaxed),
            iteration_tokens_buckets: self
                .iteration_tokens_buckets
                .each_ref()
                .map(|bucket| bucket.load(Relaxed)),
            prefix_cache_queries_total: self.prefix_cache_queries.load(Relaxed),
            prefix_cache_hits_total: self.prefix_cache_hits.load(Relaxed),
            spec_decode_num_drafts_total: self.drafts.load(Relaxed),
            spec_decode_num_draft_tokens_total: self.draft_tokens.load(Relaxed),
            spec_decode_num_accepted_tokens_total: self.accepted_tokens.load(Relaxed),
            spec_decode_num_accepted_tokens_per_pos: self
                .accepted_tokens_per_pos
                .each_ref()
                .map(|place| place.load(Relaxed)),
            compute_threads: self.compute_threads.load(Relaxed),
        }
    }

    /// Counts one step of `rows` rows.
    pub fn stepped(&self, rows: usize) {
        let rows = rows as u64;
        self.steps.fetch_add(1, Relaxed);
        self.iteration_tokens.fetch_add(rows, Relaxed);
        let bucket = ITERATION_TOKEN_BOUNDS.partition_point(|bound| *bound < rows);
        self.iteration_tokens_buckets[bucket].fetch_add(1, Relaxed);
    }

    /// Counts one verified draft of `drafted` tokens, of which the first `accepted` were right.
    pub fn verified(&self, drafted: usize, accepted: usize) {
        debug_assert!(accepted <= drafted, "{accepted} of {drafted} accepted");
        self.drafts.fetch_add(1, Relaxed);
        self.draft_tokens.fetch_add(drafted as u64, Relaxed);
        self.accepted_tokens.fetch_add(accepted as u64, Relaxed);
        for place in 0..accepted {
            let place = place.min(DRAFT_POSITIONS - 1);
            self.accepted_tokens_per_pos[place].fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_fall_into_the_bucket_of_the_first_bound_that_holds_them() {
        let cell = StatsCell::default();
        [1, 8, 9, 1024, 1025, 9000]
            .into_iter()
            .for_each(|rows| cell.stepped(rows));
        let stats = cell.read();
        let bucket = |bound: u64| {
            let at = ITERATION_TOKEN_BOUNDS.iter().position(|b| *b == bound);
            stats.iteration_tokens_buckets[at.unwrap()]
        };
        assert_eq!([1, 8, 16, 1024].map(bucket), [1, 1, 1, 1]);
        assert_eq!(stats.iteration_tokens_buckets.last(), Some(&2));
        assert_eq!(stats.steps_total, 6);
        assert_eq!(stats.iteration_tokens_total, 11_067);
    }

    #[test]
    fn accepted_tokens_add_up_over_their_places() {
        let cell = StatsCell::default();
        cell.verified(7, 3);
        cell.verified(4, 0);
        cell.verified(40, 20);
        let stats = cell.read();
        assert_eq!(stats.spec_decode_num_drafts_total, 3);
        assert_eq!(stats.spec_decode_num_draft_tokens_total, 51);
        assert_eq!(stats.spec_decode_num_accepted_tokens_total, 23);
        let places = stats.spec_decode_num_accepted_tokens_per_pos;
        assert_eq!(places[..4], [2, 2, 2, 1]);
        // Places 15 to 19 of the long draft.
        assert_eq!(places[DRAFT_POSITIONS - 1], 5);
        assert_eq!(places.iter().sum::<u64>(), 23);
    }
}
