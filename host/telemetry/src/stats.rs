//! What the sampler costs and what goes wrong in it: the numbers behind the server's
//! metrics. Written once per tick and by the NVML thread, read by whoever scrapes; never
//! on the path of a request. Where a trace is recorded, every call goes into it from here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::Serialize;

use crate::trace::{TraceCall, TraceWriter};

/// Reads of a provider whose durations are kept: a minute and a half at ten a second.
const DURATIONS_KEPT: usize = 1_024;

/// Counters of one call into a vendor's library.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CallStats {
    /// Calls so far.
    pub calls: u64,
    /// Time spent in them, s.
    pub seconds_total: f64,
    /// Time spent in the last one, s.
    pub seconds_last: f64,
    /// Longest of them, s.
    pub seconds_max: f64,
}

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
    /// What 99 of 100 of the last thousand or so did not exceed, s; `None` before the first.
    pub read_seconds_p99: Option<f64>,
    /// Monotonic time of the last one that gave a value.
    pub answered_ms: Option<u64>,
    /// Present polling period; longer than configured after back-off.
    pub period_ms: u32,
    /// Errors by kind, e.g. `absurd`, `gpu_lost`, `not_supported`, `timeout`.
    pub errors: BTreeMap<&'static str, u64>,
    /// Single calls by name, for providers that talk to a vendor's library.
    pub calls: BTreeMap<&'static str, CallStats>,
}

/// What is known of a device beyond what policies see.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeviceStats {
    /// Values by name; the unit is in the name.
    pub values: BTreeMap<&'static str, f64>,
    /// Time that its clocks were held down, s, by reason, as its driver counts it.
    pub throttled_seconds: BTreeMap<&'static str, f64>,
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
    /// What is known of a device beyond what policies see, by device.
    pub devices: BTreeMap<String, DeviceStats>,
    /// State changes: `transitions[from][to]`, in the order nominal, elevated,
    /// constrained, critical.
    pub transitions: [[u64; 4]; 4],
}

/// One call into a vendor's library, as it is written down.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Called<'a> {
    pub provider: &'static str,
    /// The device that it concerned; empty for calls that concern none.
    pub device: &'a str,
    pub call: &'static str,
    /// Monotonic time at which it began.
    pub at_us: u64,
    pub took: Duration,
}

/// The shared notebook of the counters.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    shared: Arc<Mutex<Recorded>>,
    trace: Option<Arc<TraceWriter>>,
}

#[derive(Debug, Default)]
struct Recorded {
    stats: Stats,
    ticked_ms: u64,
    /// What the last reads of each provider took, s, oldest first.
    durations: BTreeMap<&'static str, VecDeque<f64>>,
}

/// The value that 99 of 100 do not exceed.
fn p99(durations: &VecDeque<f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = durations.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * 99).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

impl Recorder {
    /// A notebook that also writes every call and error into a trace.
    pub fn tracing(trace: Arc<TraceWriter>) -> Self {
        Self {
            trace: Some(trace),
            ..Self::default()
        }
    }

    /// The trace, where one is recorded.
    pub fn trace(&self) -> Option<&Arc<TraceWriter>> {
        self.trace.as_ref()
    }

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

    /// Changes what is known of a device beyond what policies see.
    pub(crate) fn device(&self, device: &str, change: impl FnOnce(&mut DeviceStats)) {
        let mut recorded = self.lock();
        let devices = &mut recorded.stats.devices;
        if !devices.contains_key(device) {
            devices.insert(device.to_owned(), DeviceStats::default());
        }
        if let Some(of_device) = devices.get_mut(device) {
            change(of_device);
        }
    }

    /// Counts one call into a library with its latency; `Err` names the kind of failure,
    /// which is counted as an error too.
    pub(crate) fn call<T: Serialize>(&self, called: Called<'_>, answer: Result<&T, &'static str>) {
        if let Some(trace) = &self.trace {
            trace.call(TraceCall::new(called, answer));
        }
        let seconds = called.took.as_secs_f64();
        let mut recorded = self.lock();
        let provider = recorded.stats.providers.entry(called.provider).or_default();
        let call = provider.calls.entry(called.call).or_default();
        call.calls += 1;
        call.seconds_total += seconds;
        call.seconds_last = seconds;
        call.seconds_max = call.seconds_max.max(seconds);
        if let Err(kind) = answer {
            *provider.errors.entry(kind).or_default() += 1;
        }
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
        let seconds = took.as_secs_f64();
        let mut recorded = self.lock();
        let durations = recorded.durations.entry(provider).or_default();
        if durations.len() == DURATIONS_KEPT {
            durations.pop_front();
        }
        durations.push_back(seconds);
        let provider = recorded.stats.providers.entry(provider).or_default();
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
        let (mut stats, durations) = {
            let recorded = self.lock();
            let age_ms = now_ms.saturating_sub(recorded.ticked_ms);
            let stats = Stats {
                age_ms,
                ..recorded.stats.clone()
            };
            (stats, recorded.durations.clone())
        };
        // Sorting is for whoever scrapes, not for those who wait to write.
        for (provider, durations) in &durations {
            if let Some(of_provider) = stats.providers.get_mut(provider) {
                of_provider.read_seconds_p99 = p99(durations);
            }
        }
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_read_of_a_hundred_does_not_move_the_p99_and_two_do() {
        let p99_with = |slow: u64| {
            let recorder = Recorder::default();
            for n in 0..100 {
                let took = Duration::from_millis(if n < slow { 50 } else { 1 });
                recorder.read("hwmon", took, 100, None);
            }
            recorder.stats(0).providers["hwmon"].read_seconds_p99
        };
        assert_eq!(p99_with(1), Some(0.001));
        assert_eq!(p99_with(2), Some(0.050));
        let recorder = Recorder::default();
        recorder.error("hwmon", "absurd");
        let unread = recorder.stats(0).providers["hwmon"].read_seconds_p99;
        assert_eq!(unread, None, "errors are no reads");
    }

    #[test]
    fn what_was_slow_long_ago_is_forgotten() {
        let recorder = Recorder::default();
        for n in 0..2 * DURATIONS_KEPT {
            let took = Duration::from_millis(if n < DURATIONS_KEPT { 50 } else { 1 });
            recorder.read("hwmon", took, 100, None);
        }
        let of_hwmon = &recorder.stats(0).providers["hwmon"];
        assert_eq!(of_hwmon.read_seconds_p99, Some(0.001));
        assert_eq!(of_hwmon.read_seconds_max, 0.050, "the maximum stays");
    }
}
