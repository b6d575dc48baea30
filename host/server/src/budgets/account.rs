//! The books of one budget: `limit = spent + reserved + left`, to the last part, at every
//! moment.
//!
//! Amounts are whole numbers of a part that is small enough for the cheapest request: a
//! micro-joule, which is what receipts count, a billionth of a dollar, a microgram. A request
//! may turn out dearer than what was reserved for it. What is left is then negative, and
//! nobody else is served from it: the debt is known, never hidden.

use homeostat_hooks::{Budget, BudgetUnit};
use serde::{Deserialize, Serialize};

use super::window::{Per, Window};

/// The largest limit, parts: nine times as much still fits the numbers.
pub const PARTS_MAX: i64 = 1_000_000_000_000_000_000;
/// The dearest single request, parts. A thousand of them at once overdraw no number.
const REQUEST_MAX: i64 = 1_000_000_000_000_000;

/// What a budget counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    Joules,
    Usd,
    GramsCo2,
}

impl Unit {
    /// As the configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Joules => "joules",
            Self::Usd => "usd",
            Self::GramsCo2 => "grams-co2",
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Joules => "J",
            Self::Usd => "USD",
            Self::GramsCo2 => "g CO2",
        }
    }

    fn parts_of_one(self) -> f64 {
        match self {
            Self::Joules | Self::GramsCo2 => 1e6,
            Self::Usd => 1e9,
        }
    }

    /// The largest limit.
    pub fn max(self) -> f64 {
        PARTS_MAX as f64 / self.parts_of_one()
    }

    /// A limit in parts.
    pub fn limit(self, amount: f64) -> i64 {
        self.parts(amount, PARTS_MAX)
    }

    /// What a request costs, in parts.
    pub fn cost(self, amount: f64) -> i64 {
        self.parts(amount, REQUEST_MAX)
    }

    fn parts(self, amount: f64, max: i64) -> i64 {
        // What is no number costs nothing: `as` makes it 0.
        ((amount * self.parts_of_one()).round() as i64).clamp(0, max)
    }

    pub fn amount(self, parts: i64) -> f64 {
        parts as f64 / self.parts_of_one()
    }

    fn in_the_contract(self) -> BudgetUnit {
        match self {
            Self::Joules => BudgetUnit::Joules,
            Self::Usd => BudgetUnit::Usd,
            Self::GramsCo2 => BudgetUnit::GramsCo2,
        }
    }
}

/// Who pays from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// Every request.
    Host,
    Tenant(String),
    /// A key, by its digest.
    Key([u8; 32]),
}

impl Owner {
    /// As policies read it. Which key it is, is nobody's business.
    pub fn scope(&self) -> &str {
        match self {
            Self::Host => "host",
            Self::Tenant(tenant) => tenant,
            Self::Key(_) => "key",
        }
    }
}

/// One budget.
#[derive(Debug)]
pub struct Account {
    pub name: String,
    pub owner: Owner,
    pub unit: Unit,
    pub per: Per,
    pub window: Window,
    /// Requests that were refused for want of it.
    pub refused: u64,
    limit: i64,
    spent: i64,
    reserved: i64,
    left: i64,
}

impl Account {
    pub fn new(name: &str, owner: Owner, unit: Unit, limit: f64, per: Per, window: Window) -> Self {
        let limit = unit.limit(limit);
        Self {
            name: name.to_string(),
            owner,
            unit,
            per,
            window,
            refused: 0,
            limit,
            spent: 0,
            reserved: 0,
            left: limit,
        }
    }

    pub fn limit(&self) -> i64 {
        self.limit
    }

    pub fn spent(&self) -> i64 {
        self.spent
    }

    pub fn reserved(&self) -> i64 {
        self.reserved
    }

    /// Negative when requests turned out dearer than expected.
    pub fn left(&self) -> i64 {
        self.left
    }

    /// Whether a request of this expected cost may be served. From an empty budget nothing
    /// may, not even what nobody knows a price for.
    pub fn can_pay(&self, parts: i64) -> bool {
        self.left > 0 && parts <= self.left
    }

    pub fn reserve(&mut self, parts: i64) {
        assert!(parts >= 0 && parts <= self.left.max(0), "asked before");
        self.reserved += parts;
        self.left -= parts;
        self.check();
    }

    pub fn give_back(&mut self, parts: i64) {
        assert!(parts >= 0 && parts <= self.reserved, "reserved before");
        self.reserved -= parts;
        self.left += parts;
        self.check();
    }

    /// What was reserved becomes what it has cost; the difference is left, or owed.
    pub fn settle(&mut self, reserved: i64, cost: i64) {
        assert!(cost >= 0, "nobody is paid for asking");
        self.give_back(reserved);
        self.spent += cost;
        self.left -= cost;
        self.check();
    }

    pub fn set_limit(&mut self, limit: f64) {
        let limit = self.unit.limit(limit);
        self.left += limit - self.limit;
        self.limit = limit;
        self.check();
    }

    /// A new window: nothing is spent. What is reserved stays so and is paid in this one.
    pub fn renew(&mut self, window: Window) {
        self.window = window;
        self.left += self.spent;
        self.spent = 0;
        self.check();
    }

    /// What an earlier run of this host has spent in this window.
    pub fn remember(&mut self, spent: i64) {
        let spent = spent.clamp(0, PARTS_MAX);
        self.left -= spent;
        self.spent += spent;
        self.check();
    }

    /// As policies see it: what is reserved is as good as used.
    pub fn view(&self, unix_s: i64) -> Budget {
        Budget {
            scope: match &self.owner {
                // Two keys are two, and which they are is nobody's business.
                Owner::Key(_) => format!("key:{}", self.name),
                owner => owner.scope().to_string(),
            },
            unit: self.unit.in_the_contract(),
            limit: self.unit.amount(self.limit),
            used: self.unit.amount(self.spent + self.reserved),
            window_left_s: u32::try_from(self.window.end_s - unix_s).ok(),
        }
    }

    fn check(&self) {
        assert!(self.spent >= 0 && self.reserved >= 0, "{self:?}");
        assert_eq!(
            self.limit,
            self.spent + self.reserved + self.left,
            "{self:?}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(limit: f64) -> Account {
        let window = Per::Day.window(0, 0);
        Account::new("a", Owner::Host, Unit::Joules, limit, Per::Day, window)
    }

    #[test]
    fn what_is_dearer_than_expected_is_owed_and_what_is_cheaper_comes_back() {
        let mut a = account(10.0);
        a.reserve(4_000_000);
        a.settle(4_000_000, 1_500_000);
        assert_eq!(
            (a.spent(), a.reserved(), a.left()),
            (1_500_000, 0, 8_500_000)
        );
        a.reserve(8_000_000);
        a.settle(8_000_000, 9_000_000);
        assert_eq!(a.left(), -500_000);
        assert!(!a.can_pay(0), "an empty budget pays nothing");
        a.renew(Per::Day.window(86_400, 0));
        assert_eq!((a.spent(), a.left()), (0, 10_000_000));
    }

    #[test]
    fn a_new_limit_counts_at_once_and_a_new_window_keeps_what_is_reserved() {
        let mut a = account(10.0);
        a.reserve(6_000_000);
        a.set_limit(5.0);
        assert_eq!(a.left(), -1_000_000);
        a.settle(0, 2_000_000);
        a.renew(Per::Day.window(86_400, 0));
        assert_eq!(
            (a.spent(), a.reserved(), a.left()),
            (0, 6_000_000, -1_000_000)
        );
    }

    #[test]
    fn every_unit_holds_the_smallest_request_and_the_largest_limit() {
        for unit in [Unit::Joules, Unit::Usd, Unit::GramsCo2] {
            assert_eq!(unit.limit(unit.max()), PARTS_MAX);
            assert_eq!(unit.limit(f64::INFINITY), PARTS_MAX);
            assert_eq!(unit.cost(f64::NAN), 0);
            assert_eq!(unit.cost(-1.0), 0);
        }
        // One joule at 0.30 USD and 400 g a kWh.
        assert_eq!(Unit::Usd.cost(0.30 / 3.6e6), 83);
        assert_eq!(Unit::GramsCo2.cost(400.0 / 3.6e6), 111);
    }
}
