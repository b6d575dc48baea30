//! Splitting a whole number into whole parts that add up to it.
//!
//! Each part gets its proportional share rounded down; what is left goes, one by one, to
//! the largest remainders. All in integers, so the books balance to the last micro-joule
//! however many windows there were. It refuses negative and impossible weights: they count
//! as nothing.

/// Weights become integers of this many bits: shares are exact to one part in 10¹².
const WEIGHT_BITS: i32 = 40;

/// Splits `total` in proportion to the weights; all weights zero = equally. Of equal
/// remainders the one with the smaller key is served first, so the outcome does not depend
/// on the order of the parts. Nothing to split among = nothing.
pub fn apportion<K: Ord>(total: u64, parts: &[(K, f64)]) -> Vec<u64> {
    let usable = |weight: f64| {
        if weight.is_finite() {
            weight.max(0.0)
        } else {
            0.0
        }
    };
    let heaviest = parts.iter().map(|p| usable(p.1)).fold(0.0, f64::max);
    let unit = f64::from(2.0f32.powi(WEIGHT_BITS));
    let weight = |part: &(K, f64)| match heaviest > 0.0 {
        true => (usable(part.1) / heaviest * unit).round() as u128,
        false => 1,
    };
    let whole: u128 = parts.iter().map(weight).sum();
    let mut shares = Vec::with_capacity(parts.len());
    let mut remainders = Vec::with_capacity(parts.len());
    let mut left = total;
    for (i, part) in parts.iter().enumerate() {
        let product = u128::from(total) * weight(part);
        let share = (product / whole) as u64;
        shares.push(share);
        left -= share;
        remainders.push((product % whole, i));
    }
    remainders.sort_by(|(a, i), (b, j)| b.cmp(a).then_with(|| parts[*i].0.cmp(&parts[*j].0)));
    for (_, i) in remainders.into_iter().take(left as usize) {
        shares[i] += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plant::Random;

    fn split(total: u64, weights: &[f64]) -> Vec<u64> {
        let parts: Vec<(usize, f64)> = weights.iter().copied().enumerate().collect();
        apportion(total, &parts)
    }

    #[test]
    fn what_is_left_over_goes_to_the_largest_remainders() {
        assert_eq!(split(10, &[1.0, 1.0, 1.0]), [4, 3, 3]);
        assert_eq!(split(10, &[0.26, 0.26, 0.48]), [3, 2, 5]);
        assert_eq!(split(0, &[1.0, 2.0]), [0, 0]);
        assert_eq!(split(7, &[0.0, 0.0]), [4, 3]);
        assert_eq!(split(7, &[f64::NAN, -3.0, 1.0]), [0, 0, 7]);
        assert_eq!(split(u64::MAX, &[1.0]), [u64::MAX]);
        assert_eq!(split(5, &[]), [] as [u64; 0]);
    }

    #[test]
    fn parts_add_up_and_are_within_one_of_their_share_whatever_the_weights() {
        let mut random = Random::new(7);
        for _ in 0..100_000 {
            let count = 1 + random.below(9) as usize;
            let total = random.bits() >> random.below(60);
            let weights: Vec<f64> = (0..count)
                .map(|_| 10f64.powf(random.between(-9.0, 9.0)))
                .collect();
            let parts = split(total, &weights);
            assert_eq!(
                parts.iter().map(|&p| u128::from(p)).sum::<u128>(),
                u128::from(total)
            );
            let whole: f64 = weights.iter().sum();
            for (part, weight) in parts.iter().zip(&weights) {
                let exact = total as f64 * weight / whole;
                assert!((*part as f64 - exact).abs() <= 1.0 + exact.max(total as f64) * 1e-11);
            }
        }
    }

    #[test]
    fn the_order_of_the_parts_does_not_matter() {
        let forth = apportion(11, &[(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]);
        let back = apportion(11, &[(4, 2.0), (3, 1.0), (2, 1.0), (1, 1.0)]);
        assert_eq!(forth, back.into_iter().rev().collect::<Vec<_>>());
    }
}
