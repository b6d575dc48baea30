//! Is the candidate worse than the policy that serves? Answered while the evidence comes in.
//!
//! Everything that is compared is a rate: of faults, of slow calls, of late first tokens.
//! Each arm keeps a [`Tally`]. A look at every observation would fool a fixed-sample test,
//! so the evidence is an *e-process*: the likelihood of what was seen under a mixture of
//! all rates (Jeffreys' prior, one per arm), divided by the largest likelihood that any
//! pair of rates within the hypothesis gives. Whatever pair is true, the quotient stays
//! below 1/α for ever with probability 1 − α (Ville's inequality), so one may stop at any
//! time. It is exact for small counts and for rates near 0, where normal approximations are
//! not (Robbins 1970; Wasserman, Ramdas and Balakrishnan 2020, "Universal inference").
//!
//! What it assumes: an arm's rate does not change while the canary runs. A change that
//! meets both arms at once is shared by them, since a hash deals requests out.

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

/// ln of the evidence against "the candidate's rate is at most the active one's".
pub(crate) fn worse(active: &Tally, candidate: &Tally) -> f64 {
    let (a, c) = rates(active, candidate);
    against(active, candidate, c <= a, 0.0)
}

/// ln of the evidence against "the candidate's rate is the active one's plus `tolerance`,
/// or more".
pub(crate) fn not_much_worse(active: &Tally, candidate: &Tally, tolerance: f64) -> f64 {
    let (a, c) = rates(active, candidate);
    against(active, candidate, c >= a + tolerance, tolerance)
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
    fn two_histories_by_hand() {
        // One event in one trial each: mixture ½ · ½; equal rates of 1 explain it fully.
        let one = tally(1, 1);
        assert!((worse(&one, &one) - 0.25f64.ln()).abs() < 1e-12);
        // Active 0 of 1, candidate 1 of 1: the best equal rate is ½, likelihood ¼.
        assert!((worse(&tally(1, 0), &one) - 1.0f64.ln()).abs() < 1e-9);
        // The same against "candidate ≥ active + 0": fits fully with rates 0 and 1.
        assert!((not_much_worse(&tally(1, 0), &one, 0.0) - 0.25f64.ln()).abs() < 1e-9);
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
    fn evidence_needs_both_arms() {
        let nothing = Tally::default();
        assert!(worse(&nothing, &tally(50, 50)) <= 0.0);
        assert!(not_much_worse(&nothing, &tally(500, 0), 0.05) <= 0.0);
        assert!(worse(&tally(500, 0), &nothing) <= 0.0);
    }
}
