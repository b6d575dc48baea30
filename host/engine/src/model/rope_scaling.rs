//! Ways to stretch a rotation beyond the context it was trained with.
//!
//! All of them come down to a divisor per pair of elements, and YaRN to a factor on the scores, so
//! the kernels know none of them. Refused, by name, where a file asks for them: NTK that depends on
//! the length, LongRoPE, and sections for images (M-RoPE).
//!
//! Sources: linear, Chen et al. 2023, "Extending Context Window of Large Language Models via
//! Positional Interpolation"; YaRN, Peng et al. 2023; the bands of Llama 3 from the configuration
//! of its release, as Hugging Face's `transformers` reads it.

use std::f64::consts::TAU;

/// One way, with its numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// Every angle is divided by the factor.
    Linear {
        factor: f64,
    },
    /// Long waves are divided, short ones are not, those between partly.
    Llama3 {
        factor: f64,
        low_frequency_factor: f64,
        high_frequency_factor: f64,
        original_context: f64,
    },
    /// The same by the number of turns within the original context.
    Yarn {
        factor: f64,
        original_context: f64,
        beta_fast: f64,
        beta_slow: f64,
        /// Multiplies queries and keys; `None` is 0.1 ln(factor) + 1.
        attention_factor: Option<f64>,
    },
}

impl RopeScaling {
    /// What would divide by zero or turn an angle into no number.
    pub fn problem(&self) -> Option<String> {
        let numbers: Vec<f64> = match *self {
            Self::None => Vec::new(),
            Self::Linear { factor } => vec![factor],
            Self::Llama3 {
                factor,
                low_frequency_factor,
                high_frequency_factor,
                original_context,
            } => vec![
                factor,
                low_frequency_factor,
                original_context,
                high_frequency_factor - low_frequency_factor,
            ],
            Self::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
            } => vec![
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor.unwrap_or(1.0),
            ],
        };
        let bad = numbers.iter().any(|v| !(*v > 0.0 && *v < 1e12));
        bad.then(|| format!("{self:?}: every number, and every distance, must be above 0"))
    }

    /// The divisor of every pair's angle; empty means 1.
    pub fn divisors(&self, dim: usize, base: f64) -> Vec<f32> {
        let pairs = 0..dim / 2;
        let frequency = |i: usize| base.powf(-2.0 * i as f64 / dim as f64);
        match *self {
            Self::None => Vec::new(),
            Self::Linear { factor } => pairs.map(|_| factor as f32).collect(),
            Self::Llama3 {
                factor,
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_context,
            } => pairs
                .map(|i| {
                    let turns = original_context * frequency(i) / TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 / ((1.0 - kept) / factor + kept)) as f32
                })
                .collect(),
            Self::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                ..
            } => {
                let pair_with = |turns: f64| {
                    dim as f64 * (original_context / (turns * TAU)).ln() / (2.0 * base.ln())
                };
                let last = dim as f64 - 1.0;
                let low = pair_with(beta_fast).floor().clamp(0.0, last);
                let high = pair_with(beta_slow).ceil().clamp(0.0, last);
                let width = (high - low).max(0.001);
                pairs
                    .map(|i| {
                        let divided = ((i as f64 - low) / width).clamp(0.0, 1.0);
                        (1.0 / (divided / factor + (1.0 - divided))) as f32
                    })
                    .collect()
            }
        }
    }

    /// What scores are multiplied with: queries and keys both carry the attention factor.
    pub fn score_factor(&self) -> f64 {
        match *self {
            Self::Yarn {
                factor,
                attention_factor,
                ..
            } => {
                let own = if factor > 1.0 {
                    0.1 * factor.ln() + 1.0
                } else {
                    1.0
                };
                attention_factor.unwrap_or(own).powi(2)
            }
            _ => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published formula of Llama 3, written as it is published: by wavelength.
    #[test]
    fn llama_3_bands_are_those_of_its_release() {
        let (factor, low, high, original) = (8.0, 1.0, 4.0, 8192.0);
        let scaling = RopeScaling::Llama3 {
            factor,
            low_frequency_factor: low,
            high_frequency_factor: high,
            original_context: original,
        };
        let (dim, base) = (128, 500_000.0f64);
        let divisors = scaling.divisors(dim, base);
        for (i, divisor) in divisors.iter().enumerate() {
            let frequency = 1.0 / base.powf(2.0 * i as f64 / dim as f64);
            let wavelength = TAU / frequency;
            let scaled = if wavelength < original / high {
                frequency
            } else if wavelength > original / low {
                frequency / factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            };
            let found = frequency / f64::from(*divisor);
            assert!(
                (found / scaled - 1.0).abs() < 1e-6,
                "pair {i}: {found} {scaled}"
            );
        }
        assert_eq!((divisors[0], divisors[63]), (1.0, 8.0));
        assert!(
            divisors.iter().any(|d| *d > 1.1 && *d < 7.9),
            "some lie between"
        );
    }

    #[test]
    fn yarn_leaves_short_waves_and_divides_long_ones() {
        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            original_context: 32_768.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
        };
        let divisors = yarn.divisors(128, 1_000_000.0);
        // Qwen 2.5: 32768 positions are 32 turns of pair 23.6 and one of pair 39.7.
        assert!(divisors[..=23].iter().all(|d| *d == 1.0));
        assert!(divisors[40..].iter().all(|d| *d == 4.0));
        assert!(divisors.windows(2).all(|pair| pair[0] <= pair[1]));
        let expected = (0.1 * 4f64.ln() + 1.0).powi(2);
        assert!((yarn.score_factor() - expected).abs() < 1e-12);
    }

    #[test]
    fn numbers_that_make_no_angle_are_refused() {
        for scaling in [
            RopeScaling::Linear { factor: 0.0 },
            RopeScaling::Linear { factor: f64::NAN },
            RopeScaling::Llama3 {
                factor: 8.0,
                low_frequency_factor: 4.0,
                high_frequency_factor: 4.0,
                original_context: 8192.0,
            },
        ] {
            assert!(scaling.problem().is_some(), "{scaling:?}");
        }
        assert_eq!(RopeScaling::Linear { factor: 2.0 }.problem(), None);
    }
}
