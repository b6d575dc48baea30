//! Random numbers that depend on who asks and where, never on when.
//!
//! A token at position `p` of a sequence with seed `s` is drawn with a number that is a pure
//! function of `(s, p)`. So the same seed gives the same text whatever is batched beside it,
//! after a preemption, and with or without speculation. It refuses state shared between
//! sequences: a common generator would make every neighbour part of the result.
//!
//! The mixing function is SplitMix64's finaliser (Steele, Lea, Flood: "Fast splittable
//! pseudorandom number generators", 2014).

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Two keys become one that looks unrelated to either.
pub fn keyed(seed: u64, key: u64) -> u64 {
    mix(mix(seed.wrapping_add(GOLDEN)) ^ mix(key.wrapping_mul(GOLDEN).wrapping_add(1)))
}

/// Uniform in [0, 1), with 53 random bits.
pub fn uniform(seed: u64, position: u64) -> f64 {
    (keyed(seed, position) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// A plain sequential generator for simulators and tests.
#[cfg(test)]
pub struct SplitMix(u64);

#[cfg(test)]
impl SplitMix {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// Uniform in `0..bound` (0 when `bound` is 0), with a bias of less than 2^-32.
    pub fn below(&mut self, bound: usize) -> usize {
        (((self.next() >> 32) * bound as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_uniform_over_positions_and_over_seeds() {
        for fixed in [0, 1, 42, u64::MAX] {
            let mut by_position = [0u32; 16];
            let mut by_seed = [0u32; 16];
            for i in 0..16_000 {
                by_position[(uniform(fixed, i) * 16.0) as usize] += 1;
                by_seed[(uniform(i, fixed) * 16.0) as usize] += 1;
            }
            for count in by_position.into_iter().chain(by_seed) {
                // 1000 ± 6 standard deviations.
                assert!(
                    (816..1184).contains(&count),
                    "{fixed}: {by_position:?} {by_seed:?}"
                );
            }
        }
    }

    #[test]
    fn the_number_depends_on_both_keys() {
        assert_eq!(uniform(7, 9), uniform(7, 9));
        assert_ne!(uniform(7, 9), uniform(9, 7));
        assert_ne!(uniform(7, 9), uniform(7, 10));
    }
}
