//! One compute thread or several? Chosen per step from the times that steps took.
//!
//! It exists because a second thread nearly halves a step on an idle core and lengthens it on a
//! core that somebody else is using, and nobody tells which it is. The answer differs by the size
//! of a step, so four sizes are judged apart.
//!
//! It refuses to be greedy: a thread more must make steps a quarter faster per core it adds,
//! or it is not worth taking from the rest of the machine. It refuses to judge by one step: the
//! faster third of the last few decides, because disturbances only ever slow a step down. What
//! was not used lately is tried again only rarely.

use std::time::Duration;

/// Sizes of steps that are judged apart: up to so many rows.
const SIZES: [usize; 4] = [1, 8, 32, usize::MAX];
/// A thread count must be this much faster, per doubling of the cores, to be taken …
const WORTH_TAKING: f64 = 1.25;
/// … and this much to be kept.
const WORTH_KEEPING: f64 = 1.15;
/// Times remembered per size and thread count.
const REMEMBERED: usize = 7;
/// Steps in a row that a trial takes: enough to outvote what was remembered before.
const TRIAL_STEPS: u32 = 5;
/// Steps between two trials of what is not used; doubled, up to the second, as long as trials
/// change nothing: half a percent of all steps then.
const TRIAL_EVERY: u32 = 32;
const TRIAL_EVERY_AT_MOST: u32 = 1_024;

/// Chooses the number of compute threads of every step.
#[derive(Debug, Clone)]
pub struct ThreadChooser {
    /// Thread counts that are considered, ascending.
    counts: Vec<usize>,
    sizes: [Size; SIZES.len()],
}

/// What is known about steps of one size.
#[derive(Debug, Clone)]
struct Size {
    times: Vec<Times>,
    /// Index of the thread count in use.
    current: usize,
    /// A thread count on trial, and the steps left of it.
    trial: Option<(usize, u32)>,
    next_trial: u32,
    interval: u32,
}

/// The last times of one thread count, as time per unit of work.
#[derive(Debug, Clone, Default)]
struct Times {
    last: [f64; REMEMBERED],
    observed: usize,
}

impl ThreadChooser {
    /// # Panics
    /// Without a thread.
    pub fn new(max: usize) -> Self {
        assert!(max > 0, "a step needs a thread");
        // With many cores: powers of two and all. Trials of every number would never end.
        let mut counts: Vec<usize> = (0..usize::BITS)
            .map(|b| 1 << b)
            .take_while(|n| *n < max)
            .collect();
        counts.push(max);
        let size = Size {
            times: vec![Times::default(); counts.len()],
            current: counts.len() - 1,
            trial: None,
            next_trial: TRIAL_EVERY,
            interval: TRIAL_EVERY,
        };
        Self {
            counts,
            sizes: std::array::from_fn(|_| size.clone()),
        }
    }

    /// Threads for the next step, of `rows` rows.
    pub fn choose(&mut self, rows: usize) -> usize {
        let size = &mut self.sizes[size_of(rows)];
        let chosen = size.choose();
        self.counts[chosen]
    }

    /// Threads that steps of `rows` rows get at present.
    pub fn current(&self, rows: usize) -> usize {
        self.counts[self.sizes[size_of(rows)].current]
    }

    /// A step of `rows` rows on `threads` threads took `took`.
    pub fn observe(&mut self, rows: usize, threads: usize, took: Duration) {
        let Some(index) = self.counts.iter().position(|n| *n == threads) else {
            return;
        };
        let size = &mut self.sizes[size_of(rows)];
        size.times[index].push(took.as_secs_f64() / work(rows));
        if let Some((on_trial, left)) = size.trial
            && on_trial == index
        {
            size.trial = (left > 1).then_some((on_trial, left - 1));
        }
        if size.trial.is_none() {
            size.decide(&self.counts);
        }
    }
}

impl Size {
    fn choose(&mut self) -> usize {
        // First everything is measured once.
        if let Some(unknown) = self.times.iter().rposition(|t| t.typical().is_none()) {
            return unknown;
        }
        if self.trial.is_none() && self.times.len() > 1 {
            self.next_trial -= 1;
            if self.next_trial == 0 {
                self.next_trial = self.interval;
                self.interval = (2 * self.interval).min(TRIAL_EVERY_AT_MOST);
                self.trial = Some((self.neighbour(), TRIAL_STEPS));
            }
        }
        self.trial.map_or(self.current, |(index, _)| index)
    }

    /// Who is tried next: in turn the thread count above and the one below.
    fn neighbour(&mut self) -> usize {
        let (above, below) = (self.current + 1, self.current.checked_sub(1));
        let above = (above < self.times.len()).then_some(above);
        let oldest_first = |a: usize, b: usize| {
            if self.times[a].observed <= self.times[b].observed {
                a
            } else {
                b
            }
        };
        match (above, below) {
            (Some(a), Some(b)) => oldest_first(a, b),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => self.current,
        }
    }

    fn decide(&mut self, counts: &[usize]) {
        let times: Option<Vec<f64>> = self.times.iter().map(Times::typical).collect();
        let Some(times) = times else {
            return;
        };
        let mut best = 0;
        for more in 1..counts.len() {
            let cores = counts[more] as f64 / counts[best] as f64;
            let worth = if more == self.current {
                WORTH_KEEPING
            } else {
                WORTH_TAKING
            };
            // Per doubling: four threads against one need 1.25 twice.
            if times[best] / times[more] >= worth.powf(cores.log2()) {
                best = more;
            }
        }
        if best != self.current {
            self.current = best;
            self.interval = TRIAL_EVERY;
            self.next_trial = TRIAL_EVERY;
        }
    }
}

impl Times {
    fn push(&mut self, time: f64) {
        self.last[self.observed % REMEMBERED] = time;
        self.observed += 1;
    }

    /// `None` before there are enough of them for one to be an accident.
    fn typical(&self) -> Option<f64> {
        if self.observed < TRIAL_STEPS as usize {
            return None;
        }
        let mut sorted = self.last;
        let known = &mut sorted[..self.observed.min(REMEMBERED)];
        known.sort_by(f64::total_cmp);
        Some(known[(known.len() - 1) / 3])
    }
}

fn size_of(rows: usize) -> usize {
    SIZES
        .iter()
        .position(|most| rows <= *most)
        .unwrap_or(SIZES.len() - 1)
}

/// Rows to comparable units, so that steps of different sizes in one class can be compared: the
/// measured row scaling of a small model, roughly a tenth of the first row for each further one.
fn work(rows: usize) -> f64 {
    1.0 + 0.11 * (rows.max(1) - 1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix;

    /// Time of a step on `threads` threads of a machine whose second core is free or not.
    fn took(random: &mut SplitMix, rows: usize, threads: usize, stolen: bool) -> Duration {
        let one = work(rows) * 1_000.0;
        let mut micros = match (threads, stolen) {
            (1, _) => one,
            (_, false) => one / 1.7,
            (_, true) => one * 1.6,
        };
        micros *= 1.0 + random.below(10) as f64 / 100.0;
        if random.below(15) == 0 {
            micros *= 10.0;
        }
        Duration::from_micros(micros as u64)
    }

    /// Runs steps of `rows` rows; returns how many of them used two threads.
    fn run(
        chooser: &mut ThreadChooser,
        random: &mut SplitMix,
        rows: usize,
        steps: usize,
        stolen: bool,
    ) -> usize {
        let mut with_two = 0;
        for _ in 0..steps {
            let threads = chooser.choose(rows);
            with_two += usize::from(threads == 2);
            chooser.observe(rows, threads, took(random, rows, threads, stolen));
        }
        with_two
    }

    #[test]
    fn a_free_core_is_used_and_a_stolen_one_is_not() {
        for seed in 0..200 {
            let mut random = SplitMix::new(seed);
            for rows in [1, 5, 20, 100] {
                let mut quiet = ThreadChooser::new(2);
                let with_two = run(&mut quiet, &mut random, rows, 1_000, false);
                assert!(with_two > 900, "seed {seed}, {rows} rows: {with_two}");
                let mut stolen = ThreadChooser::new(2);
                let with_two = run(&mut stolen, &mut random, rows, 1_000, true);
                assert!(with_two < 100, "seed {seed}, {rows} rows: {with_two}");
            }
        }
    }

    #[test]
    fn it_follows_when_the_core_is_stolen_and_given_back() {
        for seed in 0..200 {
            let mut random = SplitMix::new(seed);
            let mut chooser = ThreadChooser::new(2);
            run(&mut chooser, &mut random, 1, 300, false);
            let with_two = run(&mut chooser, &mut random, 1, 100, true);
            assert!(
                with_two < 20,
                "seed {seed}: {with_two} slow steps before it noticed"
            );
            run(&mut chooser, &mut random, 1, 3_000, true);
            run(&mut chooser, &mut random, 1, 2_200, false);
            let with_two = run(&mut chooser, &mut random, 1, 500, false);
            assert!(
                with_two > 400,
                "seed {seed}: {with_two} of 500 after the core was back"
            );
        }
    }

    #[test]
    fn trials_are_rare_when_they_change_nothing() {
        let mut random = SplitMix::new(1);
        let mut chooser = ThreadChooser::new(2);
        run(&mut chooser, &mut random, 1, 3_000, true);
        let tried = run(&mut chooser, &mut random, 1, 10_000, true);
        assert!((1..150).contains(&tried), "{tried} of 10000");
    }

    #[test]
    fn a_gain_too_small_for_a_core_is_left_to_others() {
        let mut chooser = ThreadChooser::new(2);
        for _ in 0..500 {
            let threads = chooser.choose(1);
            let micros = if threads == 2 { 900 } else { 1_000 };
            chooser.observe(1, threads, Duration::from_micros(micros));
        }
        assert_eq!(chooser.choose(1), 1);
    }

    #[test]
    fn every_choice_is_among_the_threads_there_are() {
        for seed in 0..50 {
            let mut random = SplitMix::new(seed);
            let max = 1 + random.below(20);
            let mut chooser = ThreadChooser::new(max);
            for _ in 0..2_000 {
                let rows = 1 + random.below(60);
                let threads = chooser.choose(rows);
                assert!((1..=max).contains(&threads), "seed {seed}");
                let micros = 1 + random.below(1_000) as u64;
                chooser.observe(rows, threads, Duration::from_micros(micros));
            }
            chooser.observe(1, max + 7, Duration::ZERO);
        }
        assert_eq!(ThreadChooser::new(1).choose(9), 1);
    }
}
