//! Exponential averages over samples that do not come on time.
//!
//! The weight of a sample is 1 − exp(−Δt/τ) with the Δt that really passed, so a sampler
//! that was starved or a machine that slept does not bend the time constant. After a gap
//! of more than [`GAP_MS`] the past says nothing: the filter takes the new value as it is.

/// A gap after which a filter starts anew.
pub const GAP_MS: u64 = 5_000;

fn weight(elapsed_ms: u64, tau_ms: f64) -> f64 {
    1.0 - (-(elapsed_ms as f64) / tau_ms).exp()
}

/// An average whose rising and falling edges have their own time constants: danger is
/// believed quickly and forgotten slowly. With equal constants it is a plain average.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ema {
    attack_ms: f64,
    release_ms: f64,
    last: Option<(f64, u64)>,
}

impl Ema {
    /// The same time constant in both directions.
    pub const fn new(tau_ms: u32) -> Self {
        Self::asymmetric(tau_ms, tau_ms)
    }

    /// `attack_ms` while the input is above the average, `release_ms` while it is below.
    pub const fn asymmetric(attack_ms: u32, release_ms: u32) -> Self {
        Self {
            attack_ms: attack_ms as f64,
            release_ms: release_ms as f64,
            last: None,
        }
    }

    /// Takes a finite input at `now_ms` and returns the average. Time that runs backwards
    /// counts as no time.
    pub fn update(&mut self, input: f64, now_ms: u64) -> f64 {
        let value = match self.last {
            Some((value, at)) if now_ms.saturating_sub(at) <= GAP_MS => {
                let tau = if input > value {
                    self.attack_ms
                } else {
                    self.release_ms
                };
                value + weight(now_ms.saturating_sub(at), tau) * (input - value)
            }
            _ => input,
        };
        self.last = Some((value, now_ms));
        value
    }

    /// The average so far.
    pub fn value(&self) -> Option<f64> {
        self.last.map(|(value, _)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_depends_on_elapsed_time_and_not_on_the_number_of_samples() {
        let mut often = Ema::new(1_000);
        let mut rarely = Ema::new(1_000);
        often.update(0.0, 0);
        rarely.update(0.0, 0);
        for now in (100..=2_000).step_by(100) {
            often.update(1.0, now);
        }
        rarely.update(1.0, 2_000);
        let expected = 1.0 - (-2.0f64).exp();
        for average in [often, rarely] {
            let value = average.value().expect("fed");
            assert!((value - expected).abs() < 1e-9, "{value} vs {expected}");
        }
    }

    #[test]
    fn risk_rises_ten_times_faster_than_it_falls() {
        let mut risk = Ema::asymmetric(1_000, 10_000);
        risk.update(0.0, 0);
        let up = risk.update(1.0, 1_000);
        assert!((up - 0.632).abs() < 1e-3);
        let down = risk.update(0.0, 2_000);
        assert!((down - up * (-0.1f64).exp()).abs() < 1e-9);
    }

    #[test]
    fn after_a_long_gap_the_new_value_counts_alone() {
        let mut average = Ema::new(1_000);
        average.update(90.0, 0);
        assert_eq!(average.update(40.0, 5_001), 40.0);
    }

    #[test]
    fn a_clock_that_steps_back_changes_nothing() {
        let mut average = Ema::new(1_000);
        average.update(10.0, 5_000);
        assert_eq!(average.update(99.0, 1_000), 10.0);
    }
}
