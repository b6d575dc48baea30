//! Which questions of which boards are due at a poll.
//!
//! Most calls take microseconds and are made at every poll or once a second. Two take
//! milliseconds on the boards of today, the live margin and the counters of slowdowns: of all
//! boards together one such question is asked in a poll, the one that has waited longest, and
//! then none for a thousand times as long as it took. So the more boards a machine has, and the
//! dearer their answers are, the less often each is asked, and no board's question is put off
//! for ever by another's. It refuses to know what a call costs before it was made.

use std::time::Duration;

use crate::pace::LONGEST_MS;

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
/// How often the live margin is asked where that is cheap enough.
pub(super) const MARGIN_MS: u32 = 2_000;
/// How often the counters of slowdowns are asked where that is cheap enough.
pub(super) const VIOLATIONS_MS: u32 = 5_000;
/// Share of the time that the dear questions of all boards may take, inverted: less than half
/// of what all polling may.
const DEAR_DUTY: u32 = 1_000;
/// However dear one was, the next waits no longer.
const DEAR_PAUSE_MS: u64 = LONGEST_MS as u64;

impl Tier {
    fn period_ms(self) -> u64 {
        match self {
            Tier::Slow => u64::from(SLOW_MS),
            Tier::Margin => u64::from(MARGIN_MS),
            Tier::Violations => u64::from(VIOLATIONS_MS),
            Tier::Static => 60_000,
        }
    }
}

/// What is due at one poll of one board beside the questions of every poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub slow: bool,
    pub margin: bool,
    pub violations: bool,
    pub unchanging: bool,
}

/// The timetable of all boards.
#[derive(Debug)]
pub(super) struct Timetable {
    /// When each board's tiers are due; `None` before the first poll.
    due_ms: Vec<[Option<u64>; 4]>,
    /// When the next dear question may be asked.
    dear_ms: u64,
}

impl Timetable {
    /// Of so many boards.
    pub fn of(boards: usize) -> Self {
        Self {
            due_ms: vec![[None; 4]; boards],
            dear_ms: 0,
        }
    }

    /// What is to be asked of each board at this poll. The first asks everything, so that the
    /// first snapshot is whole.
    pub fn take(&mut self, now_ms: u64) -> Vec<Due> {
        let turn = self.turn(now_ms);
        let boards = 0..self.due_ms.len();
        boards
            .map(|board| Due {
                slow: self.is_due(board, Tier::Slow, now_ms),
                margin: self.is_dear_due(board, Tier::Margin, turn, now_ms),
                violations: self.is_dear_due(board, Tier::Violations, turn, now_ms),
                unchanging: self.is_due(board, Tier::Static, now_ms),
            })
            .collect()
    }

    /// Takes what the dear questions of the poll that has just ended took, all together.
    pub fn asked(&mut self, now_ms: u64, dear: Duration) {
        if dear > Duration::ZERO {
            let pause_ms = (dear * DEAR_DUTY).as_millis() as u64;
            self.dear_ms = now_ms + pause_ms.min(DEAR_PAUSE_MS);
        }
    }

    /// Whose dear question has waited longest; of two at once the one that is asked more
    /// seldom.
    fn turn(&self, now_ms: u64) -> Option<(usize, Tier)> {
        if now_ms < self.dear_ms {
            return None;
        }
        let dear = [Tier::Violations, Tier::Margin];
        let all = dear
            .into_iter()
            .flat_map(|tier| (0..self.due_ms.len()).map(move |board| (board, tier)));
        let due = all.filter_map(|(board, tier)| {
            let at = self.due_ms[board][tier as usize]?;
            (at <= now_ms).then_some((at, board, tier))
        });
        let oldest = due.min_by_key(|(at, ..)| *at)?;
        Some((oldest.1, oldest.2))
    }

    fn is_dear_due(
        &mut self,
        board: usize,
        tier: Tier,
        turn: Option<(usize, Tier)>,
        now_ms: u64,
    ) -> bool {
        let first = self.due_ms[board][tier as usize].is_none();
        (first || turn == Some((board, tier))) && self.is_due(board, tier, now_ms)
    }

    fn is_due(&mut self, board: usize, tier: Tier, now_ms: u64) -> bool {
        let boards = self.due_ms.len() as u64;
        let due = &mut self.due_ms[board][tier as usize];
        let pause_ms = match *due {
            // Each board goes on from a place of its own within the period.
            None => tier.period_ms() * (board as u64 + 1) / boards,
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
    /// then again from the second on: what the first one cost, the opening cost once.
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
            let at = match costs.len() {
                1 => 0,
                all if *asked < all => *asked,
                all => 1 + (*asked - 1) % (all - 1),
            };
            let took = Duration::from_nanos(costs[at]);
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

        /// One poll of one board, as `Card::poll` makes it; what its dear questions took.
        fn poll(&mut self, due: Due, first: bool, watch: &mut CounterWatch) -> Duration {
            if due.unchanging {
                for call in UNCHANGING {
                    self.ask(call);
                }
            }
            if first {
                self.ask(Call::MaxClock);
                self.ask_counter(watch);
            }
            let slow = SLOW.into_iter().filter(|_| due.slow);
            for call in EVERY_POLL.into_iter().chain(slow) {
                self.ask(call);
            }
            let margin = due.margin.then_some(Call::Margin);
            let violations = due.violations.then_some(Call::Violations);
            let dear = margin.into_iter().chain(violations);
            dear.map(|call| self.ask(call)).sum()
        }
    }

    /// Ten minutes of a machine with so many boards.
    struct Watched {
        /// What each poll took, ms, the cheapest first.
        polls_ms: Vec<f64>,
        /// Share of the time that polls took.
        poll_duty: f64,
        /// Share of the time in calls, those of the energy counters included.
        duty: f64,
        every_ms: f64,
        /// The longest that a dear question of a board was not asked, ms.
        unasked_ms: u64,
    }

    impl Watched {
        fn p99_ms(&self) -> f64 {
            self.polls_ms[self.polls_ms.len() * 99 / 100]
        }
    }

    fn watched(boards: usize) -> Watched {
        let mut costs = Costs::of("h100-2026-11-26.jsonl.gz");
        let (mut table, mut pace) = (Timetable::of(boards), Pace::new(100));
        let mut watches: Vec<CounterWatch> = (0..boards)
            .map(|_| CounterWatch::among(boards as u32))
            .collect();
        let mut polls_ms = Vec::new();
        let mut asked_ms = vec![[0u64; 2]; boards];
        let mut unasked_ms = 0u64;
        while costs.now_us < 600_000_000 {
            let began_ms = costs.now_us / 1_000;
            let before_us = costs.spent_us;
            let mut dear = Duration::ZERO;
            for (board, due) in table.take(began_ms).into_iter().enumerate() {
                for (at, is_asked) in [due.margin, due.violations].into_iter().enumerate() {
                    if is_asked {
                        asked_ms[board][at] = began_ms;
                    }
                    unasked_ms = unasked_ms.max(began_ms - asked_ms[board][at]);
                }
                dear += costs.poll(due, polls_ms.is_empty(), &mut watches[board]);
            }
            table.asked(costs.now_us / 1_000, dear);
            let took_us = costs.spent_us - before_us;
            polls_ms.push(took_us as f64 / 1e3);
            pace.polled(began_ms, Duration::from_micros(took_us));
            let until_us = (began_ms + u64::from(pace.period_ms())) * 1_000;
            while costs.now_us < until_us {
                let next = watches.iter_mut().min_by_key(|watch| watch.due_us());
                match next {
                    Some(watch) if watch.due_us() <= costs.now_us => costs.ask_counter(watch),
                    Some(watch) => costs.now_us = until_us.min(watch.due_us()),
                    None => costs.now_us = until_us,
                }
            }
        }
        let all_us = costs.now_us as f64;
        let every_ms = all_us / 1e3 / polls_ms.len() as f64;
        let poll_duty = polls_ms.iter().sum::<f64>() * 1e3 / all_us;
        polls_ms.sort_by(f64::total_cmp);
        let watched = Watched {
            polls_ms,
            poll_duty,
            duty: costs.spent_us as f64 / all_us,
            every_ms,
            unasked_ms,
        };
        println!(
            "{boards} boards: a poll every {every_ms:.0} ms, p99 {:.2} ms, {:.3} % of the time in \
             polls and {:.3} % in calls, no question unasked for {unasked_ms} ms",
            watched.p99_ms(),
            100.0 * poll_duty,
            100.0 * watched.duty
        );
        watched
    }

    #[test]
    fn a_real_board_is_asked_within_its_budget() {
        let one = watched(1);
        assert!(one.p99_ms() < 5.0, "{} ms", one.p99_ms());
        assert!(one.duty < 0.005, "{} of the time", one.duty);
        assert!(
            one.every_ms < 150.0,
            "dear calls do not slow the cheap ones"
        );
        assert!(one.unasked_ms < 10_000, "{} ms", one.unasked_ms);
    }

    #[test]
    fn eight_real_boards_are_polled_often_and_none_of_their_questions_is_forgotten() {
        let eight = watched(8);
        assert!(eight.p99_ms() < 5.0, "{} ms", eight.p99_ms());
        // A quarter of a percent, and what the opening took.
        assert!(eight.poll_duty < 0.003, "{} of the time", eight.poll_duty);
        assert!(eight.every_ms < 500.0, "every {} ms", eight.every_ms);
        assert!(eight.unasked_ms < 60_000, "{} ms", eight.unasked_ms);
    }

    #[test]
    fn the_first_poll_asks_everything_and_later_ones_at_most_one_dear_question() {
        let mut table = Timetable::of(1);
        let all = table.take(30)[0];
        assert!(all.slow && all.margin && all.violations && all.unchanging);
        let (mut margins, mut violations) = (0, 0);
        for now in (130..60_000).step_by(100) {
            let due = table.take(now)[0];
            assert!(!(due.margin && due.violations), "at {now} ms");
            assert!(!due.unchanging);
            margins += u32::from(due.margin);
            violations += u32::from(due.violations);
        }
        assert!((27..=29).contains(&margins), "{margins}");
        assert!((10..=11).contains(&violations), "{violations}");
    }

    #[test]
    fn at_the_longest_period_every_board_is_still_asked_everything() {
        for boards in [1, 8] {
            let mut table = Timetable::of(boards);
            let mut asked = vec![[0u64; 2]; boards];
            table.take(0);
            let mut now = 0;
            for _ in 0..300 {
                now += 2_000;
                let dues = table.take(now);
                let dear = dues
                    .iter()
                    .map(|due| u32::from(due.margin || due.violations));
                assert!(dear.sum::<u32>() <= 1, "at {now} ms");
                for (due, asked) in dues.into_iter().zip(&mut asked) {
                    for (is_asked, at) in [due.margin, due.violations].into_iter().zip(asked) {
                        if is_asked {
                            *at = now;
                        }
                        // All questions of all boards, one in a poll, and the pauses between.
                        let longest_ms = 2_000 * (2 * boards as u64 + 3);
                        assert!(now - *at <= longest_ms, "{boards} boards at {now} ms");
                    }
                }
                table.asked(now, Duration::from_millis(3));
            }
        }
    }

    #[test]
    fn a_dear_answer_puts_off_the_next_and_one_that_cost_nothing_does_not() {
        let mut table = Timetable::of(4);
        assert!(table.take(0).iter().all(|due| due.margin));
        table.asked(0, Duration::ZERO);
        let asking = |table: &mut Timetable, now: u64| {
            let dues = table.take(now);
            dues.iter()
                .filter(|due| due.margin || due.violations)
                .count()
        };
        assert_eq!(asking(&mut table, 2_000), 1);
        table.asked(2_000, Duration::from_millis(1));
        assert_eq!(asking(&mut table, 2_900), 0, "a thousand times as long");
        assert_eq!(asking(&mut table, 3_000), 1);
        table.asked(3_000, Duration::from_secs(1));
        assert_eq!(asking(&mut table, 4_900), 0);
        assert_eq!(asking(&mut table, 5_000), 1, "no longer than two seconds");
    }
}
