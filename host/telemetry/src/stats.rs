//! What the sampler costs and what goes wrong in it: the numbers behind the server's
//! metrics. Written once per tick and by the NVML thread, read by whoever scrapes; never
//! on the path of a request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Counters of one provider.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ProviderStats {
    /// Reads so far; one read covers everything that the provider reads at one tick.
    pub reads: u64,
    /// Time spent in them, s.
    pub read_seconds_total: f64,
    /// Time spent in the last one, s.
    pub read_seconds_last: f64,
    /// Longest of them, s.
    pub read_seconds_max: f64,
    /// Monotonic time of the last one that gave a value.
    pub answered_ms: Option<u64>,
    /// Present polling period; longer than configured after back-off.
    pub period_ms: u32,
    /// Errors by kind, e.g. `absurd`, `gpu_lost`, `not_supported`, `timeout`.
    pub errors: BTreeMap<&'static str, u64>,
}

/// All counters at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stats {
    /// Ticks so far.
    pub ticks: u64,
    /// Time since the last tick: the age of the snapshot.
    pub age_ms: u64,
    /// Providers by name.
    pub providers: BTreeMap<&'static str, ProviderStats>,
    /// State changes: `transitions[from][to]`, in the order nominal, elevated,
    /// constrained, critical.
    pub transitions: [[u64; 4]; 4],
}

/// The shared notebook of the counters.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    shared: Arc<Mutex<Recorded>>,
}

#[derive(Debug, Default)]
struct Recorded {
    stats: Stats,
    ticked_ms: u64,
}

impl Recorder {
    fn lock(&self) -> MutexGuard<'_, Recorded> {
        // Counters stay meaningful even if a writer died half-way through.
        self.shared
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Counts one error.
    pub fn error(&self, provider: &'static str, kind: &'static str) {
        let mut recorded = self.lock();
        let provider = recorded.stats.providers.entry(provider).or_default();
        *provider.errors.entry(kind).or_default() += 1;
    }

    /// Counts one read, what it took and when the next is planned; `answered_ms` = when it
    /// gave a value, if it did.
    pub fn read(
        &self,
        provider: &'static str,
        took: Duration,
        period_ms: u32,
        answered_ms: Option<u64>,
    ) {
        let mut recorded = self.lock();
        let provider = recorded.stats.providers.entry(provider).or_default();
        let seconds = took.as_secs_f64();
        provider.reads += 1;
        provider.read_seconds_total += seconds;
        provider.read_seconds_last = seconds;
        provider.read_seconds_max = provider.read_seconds_max.max(seconds);
        provider.period_ms = period_ms;
        provider.answered_ms = answered_ms.or(provider.answered_ms);
    }

    pub(crate) fn ticked(&self, now_ms: u64, transitions: [[u64; 4]; 4]) {
        let mut recorded = self.lock();
        recorded.stats.ticks += 1;
        recorded.stats.transitions = transitions;
        recorded.ticked_ms = now_ms;
    }

    /// All counters as of `now_ms`.
    pub fn stats(&self, now_ms: u64) -> Stats {
        let recorded = self.lock();
        Stats {
            age_ms: now_ms.saturating_sub(recorded.ticked_ms),
            ..recorded.stats.clone()
        }
    }
}
