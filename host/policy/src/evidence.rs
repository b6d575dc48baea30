//! Is the candidate worse than the policy that serves? Answered while the evidence comes in.
//!
//! Everything that is compared is a rate: of faults, of slow calls, of late first tokens. A
//! look after every observation would fool a test of fixed size, so both kinds of evidence
//! are *e-processes*: whatever the true rates within the hypothesis are, they stay below 1/α
//! for ever with probability 1 − α (Ville's inequality), and one may stop at any time. Both
//! are exact for small counts and for rates near 0, where normal approximations are not.
//!
//! * **Worse** ([`Pair::worse`]) must be seen quickly. Observations are taken in blocks that
//!   hold some of both arms; each multiplies the evidence by a bet whose stakes were fixed
//!   by the blocks before (Turner, Ly and Grünwald 2024, "Generic e-variables for exact
//!   sequential k-sample tests"). Rates may drift, as long as they drift in both arms.
//! * **Not much worse** ([`Pair::not_much_worse`]) may take its time. The likelihood under
//!   Jeffreys' prior is divided by the largest one that the hypothesis allows (Wasserman,
//!   Ramdas and Balakrishnan 2020, "Universal inference"). It takes an arm's rate for
//!   constant.
//!
//! Both take observations for independent. A conversation that keeps its policy gives
//! observations that resemble each other, so a canary of few conversations knows less than
//! it believes.

/// Steps of the golden-section search; each makes the interval 0.618 times as long.
const SEARCH_STEPS: u32 = 48;

/// How often something happened in one arm.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub trials: u64,
    pub events: u64,
    /// ln of the probability of exactly this history under Jeffreys' prior.
    log_mixture: f64,
}

impl Tally {
    pub fn add(&mut self, event: bool) {
        let alike = if event {
            self.events
        } else {
            self.trials - self.events
        };
        self.log_mixture += ((alike as f64 + 0.5) / (self.trials as f64 + 1.0)).ln();
        self.trials += 1;
        self.events += u64::from(event);
    }

    /// Share of trials in which it happened; none = no data.
    pub fn rate(&self) -> Option<f64> {
        (self.trials > 0).then(|| self.events as f64 / self.trials as f64)
    }

    fn log_likelihood(&self, rate: f64) -> f64 {
        let term = |count: u64, p: f64| {
            if count == 0 {
                0.0
            } else {
                count as f64 * p.ln()
            }
        };
        term(self.events, rate) + term(self.trials - self.events, 1.0 - rate)
    }
}

/// Observations and how many of them were events.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    trials: u64,
    events: u64,
}

impl Count {
    fn add(&mut self, other: Count) {
        self.trials += other.trials;
        self.events += other.events;
    }

    /// The rate that one would bet on, never 0 or 1.
    fn guess(self) -> f64 {
        (self.events as f64 + 0.5) / (self.trials as f64 + 1.0)
    }

    /// ln of the likelihood at `rate` over that at `other`.
    fn log_ratio(self, rate: f64, other: f64) -> f64 {
        let others = (self.trials - self.events) as f64;
        self.events as f64 * (rate / other).ln() + others * ((1.0 - rate) / (1.0 - other)).ln()
    }
}

/// One measure of both arms; 0 is the active one, 1 the candidate.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pair {
    arms: [Tally; 2],
    /// The block that is being filled, and all that were before it.
    open: [Count; 2],
    closed: [Count; 2],
    log_worse: f64,
}

impl Pair {
    pub fn add(&mut self, arm: usize, event: bool) {
        self.arms[arm].add(event);
        self.open[arm].add(Count {
            trials: 1,
            events: event.into(),
        });
        if self.open.iter().all(|count| count.trials > 0) {
            self.close_block();
        }
    }

    /// Bets on this block what the blocks before it have taught. With the pooled rate below
    /// the line, no common rate makes the expected factor larger than 1 (by the inequality
    /// of the arithmetic and geometric means), and no lower rate of the candidate does.
    fn close_block(&mut self) {
        let [active, candidate] = std::mem::take(&mut self.open);
        let [a, c] = self.closed.map(Count::guess);
        if c > a {
            let (n, m) = (active.trials as f64, candidate.trials as f64);
            let pooled = (n * a + m * c) / (n + m);
            self.log_worse += active.log_ratio(a, pooled) + candidate.log_ratio(c, pooled);
        }
        self.closed[0].add(active);
        self.closed[1].add(candidate);
    }

    pub fn active(&self) -> &Tally {
        &self.arms[0]
    }

    pub fn candidate(&self) -> &Tally {
        &self.arms[1]
    }

    /// ln of the evidence against "the candidate's rate is at most the active one's".
    pub fn worse(&self) -> f64 {
        self.log_worse
    }

    /// ln of the evidence against "the candidate's rate is the active one's plus
    /// `tolerance`, or more".
    pub fn not_much_worse(&self, tolerance: f64) -> f64 {
        let [active, candidate] = &self.arms;
        let (a, c) = rates(active, candidate);
        against(active, candidate, c >= a + tolerance, tolerance)
    }
}

/// The likeliest rates. An arm without data fits every rate.
fn rates(active: &Tally, candidate: &Tally) -> (f64, f64) {
    let a = active.rate().or(candidate.rate()).unwrap_or(0.0);
    (a, candidate.rate().unwrap_or(a))
}

/// `inside`: the likeliest rates belong to the hypothesis. Otherwise its likeliest pair
/// lies on its edge, candidate = active + `gap`, since the likelihood is concave.
fn against(active: &Tally, candidate: &Tally, inside: bool, gap: f64) -> f64 {
    let best = if inside {
        let (a, c) = rates(active, candidate);
        active.log_likelihood(a) + candidate.log_likelihood(c)
    } else {
        highest(1.0 - gap, |rate| {
            active.log_likelihood(rate) + candidate.log_likelihood(rate + gap)
        })
    };
    active.log_mixture + candidate.log_mixture - best
}

/// The highest value of a concave function over 0 ..= `end`.
fn highest(end: f64, f: impl Fn(f64) -> f64) -> f64 {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let (mut low, mut high) = (0.0, end);
    let (mut left, mut right) = (high - GOLDEN * (high - low), low + GOLDEN * (high - low));
    let (mut at_left, mut at_right) = (f(left), f(right));
    for _ in 0..SEARCH_STEPS {
        if at_left < at_right {
            low = left;
            (left, at_left) = (right, at_right);
            right = low + GOLDEN * (high - low);
            at_right = f(right);
        } else {
            high = right;
            (right, at_right) = (left, at_left);
            left = high - GOLDEN * (high - low);
            at_left = f(left);
        }
    }
    // The ends themselves count too: rates of exactly 0 and 1 are the likeliest ones there.
    at_left.max(at_right).max(f(0.0)).max(f(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(trials: u64, events: u64) -> Tally {
        let mut tally = Tally::default();
        for i in 0..trials {
            tally.add(i < events);
        }
        tally
    }

    #[test]
    fn a_mixture_does_not_depend_on_the_order_of_what_happened() {
        let mut other = Tally::default();
        for i in 0..100 {
            other.add(i % 10 == 0);
        }
        assert!((other.log_mixture - tally(100, 10).log_mixture).abs() < 1e-9);
    }

    #[test]
    fn histories_by_hand() {
        let pair = |active: (u64, u64), candidate: (u64, u64)| Pair {
            arms: [tally(active.0, active.1), tally(candidate.0, candidate.1)],
            ..Pair::default()
        };
        // Active 0 of 1, candidate 1 of 1: mixture ½ · ½; rates 0 and 1 explain it fully.
        let found = pair((1, 0), (1, 1)).not_much_worse(0.0);
        assert!((found - 0.25f64.ln()).abs() < 1e-9, "{found}");
        // The other way round the best pair with candidate ≥ active is ½ and ½.
        let found = pair((1, 1), (1, 0)).not_much_worse(0.0);
        assert!(found.abs() < 1e-9, "{found}");
    }

    #[test]
    fn the_first_blocks_of_bets_by_hand() {
        let mut pair = Pair::default();
        for event in [false, true] {
            pair.add(0, false);
            pair.add(1, event);
            // Without a past both guesses are ½, then both are ¼: no bet.
            assert_eq!(pair.worse(), 0.0);
        }
        // Guesses are now ½ / 3 and 1.5 / 3, the pooled rate ⅓.
        pair.add(0, false);
        pair.add(1, true);
        let factor: f64 = (5.0 / 6.0) / (2.0 / 3.0) * (0.5 / (1.0 / 3.0));
        assert!((pair.worse() - factor.ln()).abs() < 1e-12);
    }

    /// The claim under the bets, checked over blocks, guesses and true rates.
    #[test]
    fn no_bet_is_favourable_where_the_candidate_is_not_worse() {
        let steps: Vec<f64> = (1..20).map(|i| f64::from(i) / 20.0).collect();
        for (n, m) in [(1, 1), (9, 1), (1, 4)] {
            for a in &steps {
                for c in steps.iter().filter(|c| *c > a) {
                    let pooled = (n as f64 * a + m as f64 * c) / f64::from(n + m);
                    let mean = |rate: f64, true_rate: f64| {
                        true_rate * rate / pooled
                            + (1.0 - true_rate) * (1.0 - rate) / (1.0 - pooled)
                    };
                    for active in &steps {
                        for candidate in steps.iter().filter(|c| *c <= active) {
                            let expected = mean(*a, *active).powi(n) * mean(*c, *candidate).powi(m);
                            assert!(
                                expected <= 1.0 + 1e-12,
                                "{n} {m} {a} {c} {active} {candidate}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_search_finds_what_a_grid_finds() {
        let (active, candidate) = (tally(300, 21), tally(80, 3));
        for gap in [0.0, 0.01, 0.05, 0.3] {
            let f = |r: f64| active.log_likelihood(r) + candidate.log_likelihood(r + gap);
            let grid = (1..100_000)
                .map(|i| f((1.0 - gap) * i as f64 / 100_000.0))
                .fold(f64::NEG_INFINITY, f64::max);
            let found = highest(1.0 - gap, f);
            assert!((found - grid).abs() < 1e-3 && found >= grid - 1e-9, "{gap}");
        }
    }

    #[test]
    fn one_arm_alone_is_never_worse() {
        for arm in [0, 1] {
            let mut pair = Pair::default();
            for _ in 0..50 {
                pair.add(arm, true);
            }
            assert_eq!(pair.worse(), 0.0);
        }
    }
}
