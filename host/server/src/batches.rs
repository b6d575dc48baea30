//! Smaller batches while the machine's memory runs short.
//!
//! Every sequence makes another part of its engine's KV memory resident, so what runs beside
//! each other decides what the host takes next. While memory is a cause of the metabolic state,
//! engines let fewer sequences in; those that run go on. It refuses to react to a full KV cache
//! as such: that one is reserved, and the engine's scheduler knows better how to live with it.

use homeostat_hooks::Snapshot;
use homeostat_telemetry::Thresholds;

/// Of the configured sequences one in so many may begin. Half would still grow at half the
/// pace; with one alone, a small model's steps would cost nearly as much as those of eight.
const NARROW: usize = 4;

/// What engines may run at once, by the machine's memory.
pub struct Batches {
    /// As configured, by engine.
    widest: Vec<usize>,
    thresholds: Thresholds,
    narrow: bool,
}

impl Batches {
    /// All engines are as wide as configured.
    pub fn new(widest: Vec<usize>) -> Self {
        Self {
            widest,
            thresholds: Thresholds::default(),
            narrow: false,
        }
    }

    /// Sequences that each engine may run from now on; empty when nothing has changed.
    pub fn changed(&mut self, snapshot: &Snapshot) -> Vec<usize> {
        // The cause has hysteresis, so what was narrowed stays so until it leaves.
        let narrow =
            snapshot.metabolism.causes.memory && (self.narrow || self.is_machine_short(snapshot));
        if narrow == self.narrow {
            return Vec::new();
        }
        self.narrow = narrow;
        tracing::info!(narrow, "batches follow the machine's memory");
        let divisor = if narrow { NARROW } else { 1 };
        self.widest.iter().map(|w| w.div_ceil(divisor)).collect()
    }

    /// Whether it is the machine's memory, and not only the KV cache, that is full.
    fn is_machine_short(&self, snapshot: &Snapshot) -> bool {
        let pressure = &snapshot.pressure;
        let used = match (pressure.memory_used_bytes, pressure.memory_limit_bytes) {
            (Some(used), Some(limit)) if limit > 0 => Some(used as f64 / limit as f64),
            _ => None,
        };
        let limits = &self.thresholds;
        [
            (used, &limits.memory_used),
            (
                pressure.memory_some_ratio.map(f64::from),
                &limits.memory_some,
            ),
            (
                pressure.memory_full_ratio.map(f64::from),
                &limits.memory_full,
            ),
        ]
        .into_iter()
        .any(|(value, ladder)| {
            let first = ladder.enter.into_iter().find(|t| t.is_finite());
            value
                .zip(first)
                .is_some_and(|(value, first)| value >= first)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(used: u64, kv: f32, cause: bool) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.pressure.memory_used_bytes = Some(used);
        snapshot.pressure.memory_limit_bytes = Some(100);
        snapshot.pressure.kv_used_ratio = Some(kv);
        snapshot.metabolism.causes.memory = cause;
        snapshot
    }

    #[test]
    fn a_full_machine_narrows_every_engine_once_until_the_cause_leaves() {
        let mut batches = Batches::new(vec![32, 2]);
        assert!(batches.changed(&machine(50, 0.2, false)).is_empty());
        assert_eq!(batches.changed(&machine(96, 0.2, true)), [8, 1]);
        assert!(batches.changed(&machine(96, 0.2, true)).is_empty());
        // Better, but the cause still holds.
        assert!(batches.changed(&machine(80, 0.2, true)).is_empty());
        assert_eq!(batches.changed(&machine(80, 0.2, false)), [32, 2]);
    }

    #[test]
    fn a_full_kv_cache_or_an_untold_machine_narrows_nobody() {
        let mut batches = Batches::new(vec![32]);
        assert!(batches.changed(&machine(50, 0.99, true)).is_empty());
        let mut untold = machine(96, 0.1, true);
        untold.pressure.memory_used_bytes = None;
        assert!(batches.changed(&untold).is_empty());
        untold.pressure.memory_full_ratio = Some(0.3);
        assert_eq!(batches.changed(&untold), [8]);
    }
}
