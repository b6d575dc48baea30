//! How often a source may be asked, given what asking costs.
//!
//! NVIDIA's library takes a lock that the driver needs for the user's own work, and a
//! sensor behind a slow bus holds a CPU core; a monitor that polls such a source at full
//! rate slows down what it watches. A poll above [`SLOW_POLL_MS`] doubles the period, and
//! the mean cost stays at a quarter of a percent of the time, as far as a period of
//! [`LONGEST_MS`] allows: a host asks several sources, and all of them together may take
//! half a percent of a core. The period at most doubles from one poll to the next, so a
//! reading never turns stale by back-off alone.

use std::time::Duration;

use crate::filter::Ema;

/// A poll above this is slow by itself.
const SLOW_POLL_MS: f64 = 5.0;
/// Longest period that back-off leads to: two seconds of heating are a few degrees.
pub(crate) const LONGEST_MS: u32 = 2_000;
/// Mean cost of polling as a share of time, inverted.
pub(crate) const DUTY: u32 = 400;

/// The pace of one source.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    base_ms: u32,
    period_ms: u32,
    next_ms: u64,
    cost_ms: Ema,
}

impl Pace {
    pub fn new(base_ms: u32) -> Self {
        Self {
            base_ms,
            period_ms: base_ms,
            next_ms: 0,
            cost_ms: Ema::new(5_000),
        }
    }

    /// Time between two polls now.
    pub fn period_ms(&self) -> u32 {
        self.period_ms
    }

    /// Whether the next poll is due. A tenth of a period early is on time, so that a
    /// sampler's jitter does not make every second tick miss.
    pub fn is_due(&self, now_ms: u64) -> bool {
        now_ms + u64::from(self.period_ms / 10) >= self.next_ms
    }

    /// Takes what a poll at `now_ms` cost and plans the next.
    pub fn polled(&mut self, now_ms: u64, cost: Duration) {
        let cost_ms = cost.as_secs_f64() * 1000.0;
        let mean = self.cost_ms.update(cost_ms, now_ms);
        let before = self.period_ms;
        let by_poll = match cost_ms > SLOW_POLL_MS {
            true => before * 2,
            false => before - before / 10,
        };
        let by_mean = (mean * f64::from(DUTY)).min(f64::from(LONGEST_MS)) as u32;
        self.period_ms = by_poll
            .max(by_mean)
            .min(before * 2)
            .clamp(self.base_ms, self.base_ms.max(LONGEST_MS));
        self.next_ms = now_ms + u64::from(self.period_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn polls(pace: &mut Pace, now_ms: &mut u64, cost_ms: f64, count: usize) {
        for _ in 0..count {
            pace.polled(*now_ms, Duration::from_secs_f64(cost_ms / 1000.0));
            *now_ms += u64::from(pace.period_ms());
        }
    }

    #[test]
    fn a_cheap_source_is_asked_at_the_base_period() {
        let (mut pace, mut now) = (Pace::new(100), 0);
        polls(&mut pace, &mut now, 0.2, 50);
        assert_eq!(pace.period_ms(), 100);
    }

    #[test]
    fn an_expensive_source_is_asked_for_at_most_a_quarter_percent_of_the_time() {
        let (mut pace, mut now) = (Pace::new(100), 0);
        polls(&mut pace, &mut now, 3.0, 50);
        assert_eq!(pace.period_ms(), 1_200);
        polls(&mut pace, &mut now, 50.0, 50);
        assert_eq!(pace.period_ms(), LONGEST_MS);
        polls(&mut pace, &mut now, 0.1, 100);
        assert_eq!(pace.period_ms(), 100, "it recovers");
    }

    #[test]
    fn the_period_never_more_than_doubles_between_two_polls() {
        let (mut pace, mut now) = (Pace::new(100), 0);
        for cost in [400.0, 0.1, 900.0, 900.0, 900.0] {
            let before = pace.period_ms();
            polls(&mut pace, &mut now, cost, 1);
            assert!(pace.period_ms() <= 2 * before);
        }
    }

    #[test]
    fn a_tick_that_comes_a_little_early_is_on_time() {
        let mut pace = Pace::new(100);
        pace.polled(0, Duration::ZERO);
        assert!(!pace.is_due(80));
        assert!(pace.is_due(95));
    }
}
