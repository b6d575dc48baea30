//! How often an energy counter moves, and when it did.
//!
//! A driver refreshes its energy counter every 10 ms on one board and every 100 ms on
//! another, and says nowhere which. So right after a board was opened its counter is asked
//! every millisecond until it has moved a few times; the shortest gap between two moves is
//! its period. From then on it is asked twice in a period, so every move is seen within
//! half of one and the time between two moves is a window that no refresh splits.
//!
//! It refuses to be expensive: a call above [`SLOW_CALL`] ends the inference, and asking all
//! boards' counters together takes a quarter of a percent of the time, as far as the longest
//! step of two seconds allows. A counter that is dear to ask has coarser windows.

use std::collections::VecDeque;
use std::time::Duration;

use crate::pace::{DUTY, LONGEST_MS};

/// The counter is asked this often while its period is inferred.
const PROBE_STEP_US: u64 = 1_000;
/// Moves that are awaited, and for how long: idle boards move theirs too.
const PROBE_MOVES: u32 = 12;
const PROBE_US: u64 = 1_500_000;
/// A move that was seen this long after the question before is too uncertain to measure by.
const CERTAIN_US: u64 = 3 * PROBE_STEP_US;
/// A call that holds the driver for this long disturbs others.
const SLOW_CALL: Duration = Duration::from_millis(5);

const SHORTEST_STEP_US: u64 = 5_000;
const LONGEST_STEP_US: u64 = 100_000;
/// However dear asking is, nobody waits longer for a counter: energy is booked by its moves.
const DEAR_STEP_US: u64 = LONGEST_MS as u64 * 1_000;
/// Moves kept for whoever collects them, ten times a second: more than a second's worth.
const MOVES_KEPT: usize = 256;

/// A move of the counter: when it was seen, and to what value, mJ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Move {
    pub at_us: u64,
    pub mj: u64,
}

/// The watch over one counter.
#[derive(Debug)]
pub(super) struct CounterWatch {
    /// Counters that share the time for asking.
    counters: u32,
    began_us: Option<u64>,
    asked_us: u64,
    moves_seen: u32,
    /// The last move, if it was seen soon enough after the question before.
    certain_move_us: Option<u64>,
    shortest_us: Option<u64>,
    inferred: bool,
    mean_cost_us: f64,
    due_us: u64,
    moves: VecDeque<Move>,
}

impl CounterWatch {
    /// Of one counter among so many.
    pub fn among(counters: u32) -> Self {
        Self {
            counters,
            began_us: None,
            asked_us: 0,
            moves_seen: 0,
            certain_move_us: None,
            shortest_us: None,
            inferred: false,
            mean_cost_us: 0.0,
            due_us: 0,
            moves: VecDeque::new(),
        }
    }

    /// Takes one answer that came at `now_us` and cost `cost`.
    pub fn take(&mut self, mj: u64, now_us: u64, cost: Duration) {
        let began_us = *self.began_us.get_or_insert(now_us);
        let certain = now_us.saturating_sub(self.asked_us) <= CERTAIN_US;
        self.asked_us = now_us;
        self.mean_cost_us += 0.05 * (cost.as_secs_f64() * 1e6 - self.mean_cost_us);
        if self.moves.back().is_none_or(|last| last.mj != mj) {
            self.moved(Move { at_us: now_us, mj }, certain);
        }
        self.inferred |= self.moves_seen > PROBE_MOVES
            || now_us.saturating_sub(began_us) > PROBE_US
            || cost > SLOW_CALL;
        self.due_us = now_us + self.step_us();
    }

    /// Takes note that there was no answer: the next question waits.
    pub fn postpone(&mut self, now_us: u64) {
        self.due_us = now_us + LONGEST_STEP_US;
    }

    fn moved(&mut self, moved: Move, certain: bool) {
        if self.moves.len() == MOVES_KEPT {
            self.moves.pop_front();
        }
        self.moves.push_back(moved);
        self.moves_seen += 1;
        if self.inferred {
            return;
        }
        // The first value is no move: nobody saw what was there before.
        let here = (certain && self.moves_seen > 1).then_some(moved.at_us);
        if let (Some(before), Some(here)) = (self.certain_move_us, here) {
            let gap = here - before;
            self.shortest_us = Some(self.shortest_us.map_or(gap, |s| s.min(gap)));
        }
        self.certain_move_us = here;
    }

    /// When the counter should be asked next.
    pub fn due_us(&self) -> u64 {
        self.due_us
    }

    /// The counter's period, once it was inferred.
    pub fn period_us(&self) -> Option<u64> {
        self.shortest_us.filter(|_| self.inferred)
    }

    /// Time between two questions now, ms.
    pub fn step_ms(&self) -> u32 {
        self.step_us().div_ceil(1_000) as u32
    }

    /// The last moves, oldest first.
    pub fn moves(&self) -> Vec<Move> {
        self.moves.iter().copied().collect()
    }

    fn step_us(&self) -> u64 {
        if !self.inferred {
            return PROBE_STEP_US;
        }
        let half = self.shortest_us.map_or(LONGEST_STEP_US, |us| us / 2);
        let dear = self.mean_cost_us * f64::from(DUTY) * f64::from(self.counters);
        half.clamp(SHORTEST_STEP_US, LONGEST_STEP_US)
            .max((dear as u64).min(DEAR_STEP_US))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks a counter that moves every `period_us` from `phase_us` on whenever the watch
    /// wants it, `late_us` late, for two seconds.
    fn watched(period_us: u64, late_us: impl Fn(u64) -> u64, cost: Duration) -> CounterWatch {
        watched_among(1, period_us, late_us, cost)
    }

    fn watched_among(
        counters: u32,
        period_us: u64,
        late_us: impl Fn(u64) -> u64,
        cost: Duration,
    ) -> CounterWatch {
        let mut watch = CounterWatch::among(counters);
        let mut now = 0;
        for asked in 0.. {
            if now > 2_000_000 {
                break;
            }
            watch.take((now + 7_300) / period_us, now, cost);
            now = watch.due_us() + late_us(asked);
        }
        watch
    }

    #[test]
    fn the_period_is_the_shortest_gap_between_two_moves() {
        for period_ms in [10, 20, 100] {
            let watch = watched(period_ms * 1_000, |_| 0, Duration::from_micros(10));
            let found = watch.period_us().expect("inferred");
            assert!(
                found.abs_diff(period_ms * 1_000) <= PROBE_STEP_US,
                "{found}"
            );
        }
    }

    #[test]
    fn afterwards_it_is_asked_twice_in_a_period_and_not_more_often_than_it_may_cost() {
        let step = |watch: &CounterWatch| watch.due_us() - watch.asked_us;
        let cheap = watched(20_000, |_| 0, Duration::from_micros(10));
        assert!(step(&cheap).abs_diff(10_000) <= 500, "{}", step(&cheap));
        let dear = watched(20_000, |_| 0, Duration::from_micros(400));
        let quarter = step(&dear).abs_diff(160_000);
        assert!(quarter <= 4_000, "0.25 % of the time: {}", step(&dear));
        let eight = watched_among(8, 20_000, |_| 0, Duration::from_micros(400));
        let together = step(&eight).abs_diff(1_280_000);
        assert!(together <= 32_000, "all of them: {}", step(&eight));
        let slow = watched(100_000, |_| 0, Duration::from_millis(6));
        assert_eq!(slow.period_us(), None, "one slow call ends the inference");
        assert!(step(&slow) <= DEAR_STEP_US);
    }

    #[test]
    fn questions_that_come_late_do_not_shorten_the_period() {
        let late = |asked: u64| if asked % 50 == 49 { 9_000 } else { 0 };
        let watch = watched(20_000, late, Duration::from_micros(10));
        let found = watch.period_us().expect("some gaps are certain");
        assert!(found >= 19_000, "{found}");
    }

    #[test]
    fn a_counter_that_stands_still_has_no_period_and_is_asked_at_the_base_rate() {
        let watch = watched(1_000_000_000, |_| 0, Duration::from_micros(10));
        assert_eq!(watch.period_us(), None);
        assert_eq!(watch.due_us() - watch.asked_us, LONGEST_STEP_US);
        assert_eq!(watch.moves().len(), 1);
    }
}
