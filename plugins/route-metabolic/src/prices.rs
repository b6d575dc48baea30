//! What one unit of effort, or of money, costs because a budget is being spent.
//!
//! Dual ascent: while a budget is spent faster than its pace, its price rises; while slower, it
//! falls, to nothing at last. So the price settles where the budget lasts exactly as long as its
//! window, without anybody stating what a joule is worth. The pace is what is left of the budget
//! over the time that is left, so a slow morning makes a generous afternoon.

use std::fmt;

use homeostat_sdk::{Budget, BudgetUnit};

/// What twice the pace adds in a second, and silence takes away: a minute of it weighs as much
/// as the state `constrained`.
const RATE_PER_S: f64 = 0.01;
/// Nothing is worth more than this: the smallest tier is cheapest long before.
const PRICE_MAX: f64 = 2.0;
/// Spending is looked at over at least this …
const LOOK_MS: u64 = 1_000;
/// … and counts for at most this: longer silences say nothing about the present pace.
const LOOK_MAX_MS: u64 = 60_000;
/// A look from before the last one is that of a request which took long, up to this; from
/// earlier it is one of another life of the host.
const LATE_MS: u64 = 600_000;

/// The price of one budget, and when it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct BudgetPrice {
    /// In the currency of `worth`, for the largest tier's effort; of a budget of money, for the
    /// dearest tier's dollars.
    pub(crate) price: f32,
    used: f64,
    at_ms: u64,
}

impl BudgetPrice {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let price: f32 = words.next()?.parse().ok()?;
        Some(Self {
            price: price.is_finite().then_some(price.max(0.0))?,
            used: words.next()?.parse().ok()?,
            at_ms: words.next()?.parse().ok()?,
        })
    }

    /// The price after this look; `None` when it is too soon for one.
    pub(crate) fn after(before: Option<Self>, budget: &Budget, now_ms: u64) -> Option<Self> {
        let usable = |x: f64| x.is_finite() && x >= 0.0;
        if !usable(budget.used) || !usable(budget.limit) {
            return None;
        }
        let fresh = |price: f32| Self {
            price,
            used: budget.used,
            at_ms: now_ms,
        };
        let Some(before) = before else {
            return Some(fresh(0.0));
        };
        let Some(elapsed_ms) = now_ms.checked_sub(before.at_ms) else {
            let is_late = before.at_ms - now_ms < LATE_MS;
            return (!is_late).then(|| fresh(before.price));
        };
        if elapsed_ms < LOOK_MS {
            return None;
        }
        // What is used may fall: a reservation came back, or a new window began. A fall counts
        // as a rise does, or prices would climb by what requests reserve and give back.
        let excess = excess(budget, before.used, elapsed_ms)?;
        let step = RATE_PER_S * elapsed_ms.min(LOOK_MAX_MS) as f64 / 1e3 * excess;
        let price = (f64::from(before.price) + step).clamp(0.0, PRICE_MAX);
        Some(fresh(price as f32))
    }
}

impl fmt::Display for BudgetPrice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.price, self.used, self.at_ms)
    }
}

/// Spending over its pace, −1 (nothing is spent) to 1 (twice the pace, and more). `None` where a
/// budget has no pace, since its window has no end.
fn excess(budget: &Budget, used_before: f64, elapsed_ms: u64) -> Option<f64> {
    // Power is spent as it is drawn: its pace is its limit.
    let (spent, pace) = match budget.unit {
        BudgetUnit::Watts => (budget.used, budget.limit),
        _ => {
            let elapsed_s = elapsed_ms as f64 / 1e3;
            let left_s = f64::from(budget.window_left_s?) + elapsed_s;
            let left = (budget.limit - used_before).max(0.0);
            ((budget.used - used_before) / elapsed_s, left / left_s)
        }
    };
    let ratio = if pace > 0.0 { spent / pace } else { 2.0 };
    Some((ratio - 1.0).clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joules(used: f64, window_left_s: u32) -> Budget {
        Budget {
            limit: 3600.0,
            used,
            window_left_s: Some(window_left_s),
            ..Budget::default()
        }
    }

    /// The price after an hour in which so many J/s are spent, looked at every second.
    fn hour(watts: f64) -> Vec<f32> {
        let mut price = None;
        (0..3600)
            .map(|s| {
                let budget = joules(watts * f64::from(s), 3600 - s);
                price = BudgetPrice::after(price, &budget, u64::from(s) * 1000).or(price);
                price.expect("the first look stores it").price
            })
            .collect()
    }

    #[test]
    fn it_rises_above_the_pace_falls_below_it_and_is_nothing_within_it() {
        assert!(hour(0.9).iter().all(|p| *p < 1e-3));
        let above = hour(1.5);
        assert!(above.is_sorted() && above[60] > 0.2 && above[3599] == PRICE_MAX as f32);
        let high = BudgetPrice {
            price: 1.0,
            used: 100.0,
            at_ms: 0,
        };
        let idle = BudgetPrice::after(Some(high), &joules(100.0, 1000), 10_000);
        assert!(idle.expect("a look").price < 0.95);
    }

    #[test]
    fn watts_are_compared_with_their_limit_and_an_endless_window_says_nothing() {
        let watts = |used| Budget {
            unit: BudgetUnit::Watts,
            limit: 100.0,
            used,
            ..Budget::default()
        };
        let first = BudgetPrice::after(None, &watts(150.0), 0);
        let second = BudgetPrice::after(first, &watts(150.0), 10_000);
        assert!((second.expect("a look").price - 0.05).abs() < 1e-6);
        let endless = Budget {
            window_left_s: None,
            ..joules(10.0, 0)
        };
        let first = BudgetPrice::after(None, &endless, 0);
        assert_eq!(BudgetPrice::after(first, &endless, 10_000), None);
    }

    #[test]
    fn what_is_reserved_and_given_back_moves_no_price() {
        let mut price = Some(BudgetPrice {
            price: 0.5,
            used: 100.0,
            at_ms: 0,
        });
        for look in 1..=200u32 {
            // Nothing is spent; every second look sees what others have reserved.
            let used = if look % 2 == 1 { 1_100.0 } else { 100.0 };
            let budget = joules(used, 3600);
            price = BudgetPrice::after(price, &budget, u64::from(look) * 2_000).or(price);
        }
        assert!(price.expect("stored").price <= 0.52);
    }

    #[test]
    fn a_late_look_changes_nothing_and_a_restart_and_a_new_window_nearly_nothing() {
        let before = BudgetPrice {
            price: 0.5,
            used: 3000.0,
            at_ms: 700_000,
        };
        let look = |budget: &Budget, now_ms| BudgetPrice::after(Some(before), budget, now_ms);
        assert_eq!(look(&joules(2999.0, 100), 690_000), None);
        let restarted = look(&joules(3001.0, 100), 10).expect("a look");
        assert_eq!((restarted.price, restarted.used), (0.5, 3001.0));
        let renewed = look(&joules(1.0, 3600), 705_000).expect("a look");
        assert!((renewed.price - 0.45).abs() < 1e-6 && renewed.used == 1.0);
        assert_eq!(BudgetPrice::parse(&before.to_string()), Some(before));
        for wrong in ["", "x 1 2", "NaN 1 2", "0.5 1"] {
            assert_eq!(BudgetPrice::parse(wrong), None, "{wrong}");
        }
    }
}
