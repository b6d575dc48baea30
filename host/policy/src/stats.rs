//! What the room counts, as plain data for whoever publishes it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use homeostat_hooks::{FaultKind, Hook};
use serde::Serialize;

use crate::cache::CacheStats;
use crate::compose::MemberStats;
use crate::record::RecordStats;
use crate::trial::{TrialEnding, TrialStatus};

const KINDS: [FaultKind; 5] = [
    FaultKind::Trap,
    FaultKind::Deadline,
    FaultKind::Memory,
    FaultKind::Invalid,
    FaultKind::Denied,
];

/// Four buckets an octave: a quantile is at most 19 % too high.
const PER_OCTAVE: u32 = 4;
/// 2^6 ns is below any call, 2^34 ns (17 s) above any deadline that makes sense.
const FIRST_OCTAVE: u32 = 6;
const OCTAVES: u32 = 28;
const BUCKETS: usize = (OCTAVES * PER_OCTAVE) as usize;

/// Durations in fixed buckets; recording is one atomic addition.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_nanos: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum_nanos: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    pub fn record(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(nanos)].fetch_add(1, Relaxed);
        self.sum_nanos.fetch_add(nanos, Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.counts().iter().sum()
    }

    /// Upper edge of the bucket of this quantile; none = no data.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let counts = self.counts();
        quantile(&counts, counts.iter().sum(), q)
    }

    fn counts(&self) -> Vec<u64> {
        self.buckets.iter().map(|b| b.load(Relaxed)).collect()
    }

    pub fn summary(&self) -> Times {
        let counts = self.counts();
        let count = counts.iter().sum();
        Times {
            count,
            sum_micros: self.sum_nanos.load(Relaxed) as f64 / 1e3,
            p50_micros: quantile(&counts, count, 0.50),
            p99_micros: quantile(&counts, count, 0.99),
        }
    }
}

fn bucket_of(nanos: u64) -> usize {
    if nanos < 1 << FIRST_OCTAVE {
        return 0;
    }
    let octave = nanos.ilog2();
    // The two bits after the leading one say which quarter of the octave.
    let quarter = (nanos >> (octave - 2)) & 3;
    let bucket = u64::from((octave - FIRST_OCTAVE) * PER_OCTAVE) + quarter;
    (bucket as usize).min(BUCKETS - 1)
}

/// Upper edge of a bucket in microseconds.
fn edge_micros(bucket: usize) -> f64 {
    let octave = FIRST_OCTAVE + bucket as u32 / PER_OCTAVE;
    let quarter = (bucket as u32 % PER_OCTAVE + 1) as f64;
    (1u64 << octave) as f64 * (1.0 + quarter / 4.0) / 1e3
}

fn quantile(counts: &[u64], count: u64, q: f64) -> Option<f64> {
    if count == 0 {
        return None;
    }
    let rank = (q * count as f64).ceil() as u64;
    let mut seen = 0;
    for (bucket, n) in counts.iter().enumerate() {
        seen += n;
        if seen >= rank {
            return Some(edge_micros(bucket));
        }
    }
    None
}

/// Durations, summed up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Times {
    /// How many.
    pub count: u64,
    /// All together.
    pub sum_micros: f64,
    /// Half were at most this long (bucket edge, up to 19 % too high); none = no data.
    pub p50_micros: Option<f64>,
    /// 99 of 100 were at most this long.
    pub p99_micros: Option<f64>,
}

/// Counters of one hook, or of one generation of it.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub times: Histogram,
    pub faults: [AtomicU64; 5],
    pub fallbacks: AtomicU64,
    pub left_alone: AtomicU64,
    pub proposed: AtomicU64,
    pub log_bytes_dropped: AtomicU64,
}

impl Counters {
    pub fn fault(&self, kind: FaultKind) {
        if let Some(i) = KINDS.iter().position(|k| *k == kind) {
            self.faults[i].fetch_add(1, Relaxed);
        }
    }

    pub fn read(&self) -> CounterStats {
        CounterStats {
            times: self.times.summary(),
            faults: KINDS
                .iter()
                .zip(&self.faults)
                .map(|(kind, n)| (kind.as_str(), n.load(Relaxed)))
                .collect(),
            fallbacks: self.fallbacks.load(Relaxed),
            left_alone: self.left_alone.load(Relaxed),
            proposed: self.proposed.load(Relaxed),
            log_bytes_dropped: self.log_bytes_dropped.load(Relaxed),
        }
    }
}

/// Counters, read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CounterStats {
    /// Calls, with their durations (waiting for an instance included).
    pub times: Times,
    /// Faults by kind; all five kinds are always there.
    pub faults: BTreeMap<&'static str, u64>,
    /// Answers given by a fallback.
    pub fallbacks: u64,
    /// Of those, the ones for which the policy was not asked: its breaker was open.
    pub left_alone: u64,
    /// Answers taken from a proposal because the call did not end.
    pub proposed: u64,
    /// Log text that was over the limit.
    pub log_bytes_dropped: u64,
}

/// One generation that is active or kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GenerationStats {
    /// Its hook.
    pub hook: Hook,
    /// Name of its policy.
    pub policy: String,
    /// Its number.
    pub generation: u64,
    /// Serving now.
    pub active: bool,
    /// Left alone by its breaker.
    pub breaker_open: bool,
    /// Counters.
    pub counters: CounterStats,
    /// Of a composed policy: those that answer together with it.
    pub members: Vec<MemberStats>,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoomStats {
    /// Totals per hook over all generations.
    pub hooks: BTreeMap<&'static str, CounterStats>,
    /// Active and kept generations.
    pub generations: Vec<GenerationStats>,
    /// Instances alive, of `instances_max`.
    pub instances: u32,
    /// Bound on live instances.
    pub instances_max: u32,
    /// Calls that had to wait for an instance.
    pub waits: u64,
    /// Calls that got none in time.
    pub waits_given_up: u64,
    /// Swaps, with the time of the exchange itself.
    pub swaps: Times,
    /// Components that were refused.
    pub refused: u64,
    /// Whether instances come from the pool.
    pub pooled: bool,
    /// What the compile cache did; none = there is none.
    pub compile_cache: Option<CacheStats>,
    /// Instances kept ready of policies that are dear to instantiate.
    pub ready: usize,
    /// Requests that found one.
    pub ready_taken: u64,
    /// The trial of each hook: the one that runs, or the last one.
    pub trials: Vec<TrialStatus>,
    /// Trials that have ended, by hook and how.
    pub trials_ended: Vec<(Hook, TrialEnding, u64)>,
    /// What the recorder wrote and dropped; none where nothing is recorded.
    pub recorded: Option<RecordStats>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_at_most_a_quarter_octave_too_high() {
        let histogram = Histogram::default();
        for micros in 1..=1000u64 {
            histogram.record(Duration::from_micros(micros));
        }
        let times = histogram.summary();
        assert_eq!(times.count, 1000);
        for (got, exact) in [(times.p50_micros, 500.0), (times.p99_micros, 990.0)] {
            let got = got.unwrap();
            assert!(got >= exact && got <= exact * 1.25, "{got} for {exact}");
        }
    }

    #[test]
    fn extreme_durations_have_a_bucket_and_no_data_has_no_quantile() {
        assert_eq!(Histogram::default().summary().p50_micros, None);
        let histogram = Histogram::default();
        histogram.record(Duration::ZERO);
        histogram.record(Duration::from_secs(1_000_000));
        assert_eq!(histogram.summary().count, 2);
        let mut last = 0;
        for shift in 0..64 {
            let bucket = bucket_of(1 << shift);
            assert!(bucket >= last && bucket < BUCKETS);
            last = bucket;
        }
    }
}
