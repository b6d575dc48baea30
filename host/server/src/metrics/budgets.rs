//! What is left of the budgets, as `/metrics` shows it. `limit = spent + reserved + left`, each
//! in the unit of its budget.

use super::{Moment, Result};
use crate::budgets::BudgetStatus;

pub fn budgets(now: &mut Moment, all: &[BudgetStatus]) -> Result<()> {
    for budget in all {
        let labels = [
            ("budget", budget.name.as_str()),
            ("scope", &budget.scope),
            ("unit", budget.unit.name()),
        ];
        for (name, help, value) in [
            (
                "homeostat_budget_limit",
                "Limit of the present window.",
                budget.limit,
            ),
            (
                "homeostat_budget_spent",
                "Spent in the present window.",
                budget.spent,
            ),
            (
                "homeostat_budget_reserved",
                "Set aside for requests that run or wait for their receipt.",
                budget.reserved,
            ),
            (
                "homeostat_budget_left",
                "Left in the present window; below zero when requests turned out dearer.",
                budget.left,
            ),
            (
                "homeostat_budget_refused",
                "Requests refused for want of it, since the start.",
                budget.refused as f64,
            ),
        ] {
            now.set(name, help, &labels, value)?;
        }
    }
    Ok(())
}
