//! What is kept between requests, in the host's key-value state, which outlives reloads.
//!
//! Read by `route`, written by `learn` alone: a write may wait for the disk, and nobody waits
//! for `learn`. Every tier, budget and conversation has a key of its own, so two requests that
//! end at once overwrite each other's news of the same thing at worst. What cannot be read (no
//! grant, another form) counts as never learned: the router decides as it did on its first day.

use homeostat_sdk::*;

use crate::conversation::{self, Seat};
use crate::figures::Figures;
use crate::prices::BudgetPrice;

/// What concerns one request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    /// What the tiers' answers took, by tier, in the order of the question.
    pub(crate) tiers: Vec<Figures>,
    /// Sum of the prices of this request's budgets, but for those of money.
    pub(crate) budget_price: f32,
    /// Sum of the prices of those.
    pub(crate) money_price: f32,
    /// Where this conversation was answered before.
    pub(crate) seat: Option<Seat>,
}

impl Memory {
    /// Reads it, one key each.
    pub fn read(
        request: &Request,
        tiers: &[Tier],
        snapshot: &Snapshot,
        get: impl Fn(&str) -> Option<Vec<u8>>,
    ) -> Self {
        let text = |key: &str| String::from_utf8(get(key)?).ok();
        let price = |is_money: bool| -> f32 {
            let alike = |b: &Budget| (b.unit == BudgetUnit::Usd) == is_money;
            let budgets = budget_keys(snapshot).filter(|(_, budget)| alike(budget));
            let prices = budgets.filter_map(|(key, _)| BudgetPrice::parse(&text(&key)?));
            prices.map(|p| p.price).sum()
        };
        Self {
            tiers: tiers
                .iter()
                .map(|t| text(&tier_key(&t.id)).map_or_else(Figures::default, Figures::parse))
                .collect(),
            budget_price: price(false),
            money_price: price(true),
            // Whoever has not been answered yet has no seat, whatever others began alike.
            seat: conversation::has_begun(request)
                .then(|| Seat::read(request, text))
                .flatten(),
        }
    }

    /// What is known of the tier at this place of the question.
    pub(crate) fn of(&self, index: usize) -> Figures {
        self.tiers.get(index).cloned().unwrap_or_default()
    }
}

/// Takes what became of a request.
pub fn learn(
    request: &Request,
    outcome: &Outcome,
    snapshot: &Snapshot,
    get: impl Fn(&str) -> Option<Vec<u8>>,
    mut set: impl FnMut(&str, String),
) {
    let text = |key: &str| String::from_utf8(get(key)?).ok();
    for (key, budget) in budget_keys(snapshot) {
        let before = text(&key).and_then(|t| BudgetPrice::parse(&t));
        if let Some(after) = BudgetPrice::after(before, budget, snapshot.monotonic_ms) {
            set(&key, after.to_string());
        }
    }
    let Some(tier) = &outcome.tier else {
        return;
    };
    let key = tier_key(tier);
    let mut figures = text(&key).map_or_else(Figures::default, Figures::parse);
    figures.take(outcome, request.stream, snapshot.monotonic_ms);
    set(&key, figures.to_string());
    let before = Seat::read(request, text);
    if let Some(seat) = conversation::reseated(request, before, tier, snapshot.monotonic_ms) {
        set(&conversation::key(request), seat.to_string());
    }
}

/// Ids and scopes come from the configuration, so there are few of them.
fn tier_key(id: &str) -> String {
    format!("tier.{id}")
}

/// A key for each budget. Those of one unit and scope (an hour's and a day's) are told apart by
/// their order, which is the configuration's.
fn budget_keys(snapshot: &Snapshot) -> impl Iterator<Item = (String, &Budget)> {
    let all = &snapshot.budgets;
    all.iter().enumerate().map(move |(i, budget)| {
        let alike = |other: &&Budget| other.unit == budget.unit && other.scope == budget.scope;
        let before = all[..i].iter().filter(alike).count();
        let key = format!("price.{:?}.{}.{before}", budget.unit, budget.scope);
        (key, budget)
    })
}
