//! Which of a board's questions are due at a poll.
//!
//! Most calls take microseconds and are made at every poll or once a second. Two take
//! milliseconds on the boards of today, the live margin and the counters of slowdowns: they
//! are asked every few seconds, never in the same poll, and no two boards of a machine ask
//! theirs at once. It refuses to know what a call costs here and now: that is the pace's and
//! the counter's business.

/// Questions that are asked less often than at every poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    /// Use, memory, power limit, performance state.
    Slow,
    /// The live margin. Between two questions it follows from the temperature.
    Margin,
    /// Counters of the time that clocks were held down; the bits that say it of this moment
    /// are asked at every poll.
    Violations,
    /// What does not change while the driver runs.
    Static,
}

/// How often the slow questions are asked: use itself is a mean over up to a second.
pub(super) const SLOW_MS: u32 = 1_000;

impl Tier {
    fn period_ms(self) -> u64 {
        match self {
            Tier::Slow => u64::from(SLOW_MS),
            Tier::Margin => 2_000,
            Tier::Violations => 5_000,
            Tier::Static => 60_000,
        }
    }
}

/// What is due at one poll beside the questions of every poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub slow: bool,
    pub margin: bool,
    pub violations: bool,
    pub unchanging: bool,
}

/// The timetable of one board.
#[derive(Debug)]
pub(super) struct Tiers {
    /// The board's place among all, from 1, and how many they are.
    place: u64,
    boards: u64,
    due_ms: [Option<u64>; 4],
}

impl Tiers {
    /// Of the board with this index among so many.
    pub fn of(index: u32, boards: u32) -> Self {
        Self {
            place: u64::from(index) + 1,
            boards: u64::from(boards.max(1)),
            due_ms: [None; 4],
        }
    }

    /// What is to be asked at this poll. The first asks everything, so that the first
    /// snapshot is whole.
    pub fn take(&mut self, now_ms: u64) -> Due {
        let first = self.due_ms[Tier::Margin as usize].is_none();
        let margin = self.is_due(Tier::Margin, now_ms);
        Due {
            slow: self.is_due(Tier::Slow, now_ms),
            margin,
            // One dear question in a poll is enough.
            violations: (first || !margin) && self.is_due(Tier::Violations, now_ms),
            unchanging: self.is_due(Tier::Static, now_ms),
        }
    }

    fn is_due(&mut self, tier: Tier, now_ms: u64) -> bool {
        let due = &mut self.due_ms[tier as usize];
        let pause_ms = match *due {
            // Each board goes on from a place of its own within the period.
            None => tier.period_ms() * self.place / self.boards,
            Some(at) if at <= now_ms => tier.period_ms(),
            Some(_) => return false,
        };
        *due = Some(now_ms + pause_ms);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::io::BufReader;
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::nvml::calls::Call;
    use crate::nvml::counter::CounterWatch;
    use crate::pace::Pace;
    use crate::trace::Trace;

    /// What `Card` asks in each tier; the energy counter has a schedule of its own.
    const EVERY_POLL: [Call; 4] = [
        Call::FastFields,
        Call::Temperature,
        Call::Throttle,
        Call::Clock,
    ];
    const SLOW: [Call; 4] = [
        Call::Memory,
        Call::Utilization,
        Call::PowerLimit,
        Call::PerformanceState,
    ];
    const UNCHANGING: [Call; 5] = [
        Call::Name,
        Call::PowerLimits,
        Call::Limits,
        Call::SlowdownThreshold,
        Call::OperatingThreshold,
    ];

    /// What the calls cost on a real board, each in the order in which it was recorded and
    /// then from the beginning.
    struct Costs {
        recorded: BTreeMap<String, Vec<u64>>,
        asked: BTreeMap<&'static str, usize>,
        now_us: u64,
        spent_us: u64,
    }

    impl Costs {
        fn of(trace: &str) -> Self {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces");
            let file = File::open(folder.join(trace)).expect("the trace is in the repository");
            let lines = BufReader::new(flate2::read::GzDecoder::new(file));
            let mut recorded: BTreeMap<String, Vec<u64>> = BTreeMap::new();
            for call in Trace::read(lines).expect("a trace").calls {
                recorded.entry(call.call).or_default().push(call.took_ns);
            }
            Self {
                recorded,
                asked: BTreeMap::new(),
                now_us: 0,
                spent_us: 0,
            }
        }

        fn ask(&mut self, call: Call) -> Duration {
            let costs = &self.recorded[call.name()];
            let asked = self.asked.entry(call.name()).or_default();
            let took = Duration::from_nanos(costs[*asked % costs.len()]);
            *asked += 1;
            self.now_us += took.as_micros() as u64;
            self.spent_us += took.as_micros() as u64;
            took
        }

        /// The counter is taken to move ten times a second, as that board's did.
        fn ask_counter(&mut self, watch: &mut CounterWatch) {
            let took = self.ask(Call::Energy);
            watch.take(self.now_us / 100_000, self.now_us, took);
        }

        /// One poll, as `Card::poll` makes it; what it took, ms.
        fn poll(&mut self, due: Due, first: bool, watch: &mut CounterWatch) -> f64 {
            let before_us = self.spent_us;
            if due.unchanging {
                for call in UNCHANGING {
                    self.ask(call);
                }
            }
            if first {
                self.ask(Call::MaxClock);
                self.ask_counter(watch);
            }
            let margin = due.margin.then_some(Call::Margin);
            let violations = due.violations.then_some(Call::Violations);
            let slow = SLOW.into_iter().filter(|_| due.slow);
            let asked = EVERY_POLL.into_iter().chain(margin).chain(slow);
            for call in asked.chain(violations) {
                self.ask(call);
            }
            (self.spent_us - before_us) as f64 / 1e3
        }
    }

    #[test]
    fn a_real_board_is_asked_within_its_budget() {
        let mut costs = Costs::of("h100-2026-11-26.jsonl.gz");
        let (mut tiers, mut pace) = (Tiers::of(0, 1), Pace::new(100));
        let mut watch = CounterWatch::among(1);
        let mut polls = Vec::new();
        while costs.now_us < 600_000_000 {
            let began_ms = costs.now_us / 1_000;
            let due = tiers.take(began_ms);
            let took_ms = costs.poll(due, polls.is_empty(), &mut watch);
            polls.push(took_ms);
            pace.polled(began_ms, Duration::from_secs_f64(took_ms / 1e3));
            let until_us = (began_ms + u64::from(pace.period_ms())) * 1_000;
            while costs.now_us < until_us {
                match watch.due_us() <= costs.now_us {
                    true => costs.ask_counter(&mut watch),
                    false => costs.now_us = until_us.min(watch.due_us()),
                }
            }
        }
        polls.sort_by(f64::total_cmp);
        let p99 = polls[polls.len() * 99 / 100];
        let duty = costs.spent_us as f64 / costs.now_us as f64;
        let every_ms = costs.now_us as f64 / 1e3 / polls.len() as f64;
        println!(
            "a poll every {every_ms:.0} ms, p99 {p99:.2} ms, {:.3} % of the time in calls",
            100.0 * duty
        );
        assert!(p99 < 5.0, "{p99} ms");
        assert!(duty < 0.005, "{duty} of the time");
        assert!(every_ms < 150.0, "dear calls do not slow the cheap ones");
    }

    #[test]
    fn the_first_poll_asks_everything_and_later_ones_at_most_one_dear_question() {
        let mut tiers = Tiers::of(0, 1);
        let all = tiers.take(30);
        assert!(all.slow && all.margin && all.violations && all.unchanging);
        let (mut margins, mut violations) = (0, 0);
        for now in (130..60_000).step_by(100) {
            let due = tiers.take(now);
            assert!(!(due.margin && due.violations), "at {now} ms");
            assert!(!due.unchanging);
            margins += u32::from(due.margin);
            violations += u32::from(due.violations);
        }
        assert_eq!(margins, 29);
        assert!((10..=11).contains(&violations), "{violations}");
    }

    #[test]
    fn eight_boards_never_ask_for_their_margins_in_one_poll() {
        let mut boards: Vec<Tiers> = (0..8).map(|index| Tiers::of(index, 8)).collect();
        for board in &mut boards {
            assert!(board.take(0).margin, "the first snapshot is whole");
        }
        for now in (100..30_000).step_by(100) {
            let margins = boards.iter_mut().map(|board| board.take(now).margin);
            let asking = margins.filter(|margin| *margin).count();
            assert!(asking <= 1, "{asking} at {now} ms");
        }
    }
}
