//! `[budgets]` as written in the file, and what is wrong with it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use homeostat_telemetry::{HOURS, PowerPlan};
use serde::{Deserialize, Serialize};

use super::account::Unit;
use super::window::Per;
use crate::config::{Config, EnergyMode};

/// The clocks of the earth, hours ahead of UTC.
const OFFSETS: std::ops::RangeInclusive<f64> = -12.0..=14.0;

/// `[budgets]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetsConfig {
    pub spendings_file: Option<PathBuf>,
    pub utc_offset_hours: f64,
    pub usd_per_kwh: Option<ByHour>,
    pub grams_co2_per_kwh: Option<ByHour>,
    pub target_watts: Option<ByHour>,
    pub battery_lasts_until: Option<String>,
    pub limits: BTreeMap<String, Limit>,
}

/// One of `[budgets.limits.NAME]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    pub tenant: Option<String>,
    pub key: Option<String>,
    pub unit: Unit,
    pub limit: f64,
    pub per: Per,
}

/// A value of the whole day, or one for each of its hours.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(
    untagged,
    expecting = "expected a number, or 24 numbers, one for each hour of the day"
)]
pub enum ByHour {
    Always(f64),
    Hours([f64; HOURS]),
}

impl ByHour {
    pub fn hours(&self) -> [f64; HOURS] {
        match self {
            Self::Always(value) => [*value; HOURS],
            Self::Hours(hours) => *hours,
        }
    }
}

impl BudgetsConfig {
    pub fn utc_offset_s(&self) -> i64 {
        (self.utc_offset_hours * 3_600.0).round() as i64
    }

    /// What telemetry is told of the power that may be drawn.
    pub fn power_plan(&self) -> PowerPlan {
        PowerPlan {
            target_watts: self.target_watts.as_ref().map(ByHour::hours),
            battery_until_s: self.battery_lasts_until.as_deref().and_then(second_of_day),
            utc_offset_s: self.utc_offset_s(),
        }
    }

    /// Whether anything is limited at all.
    pub fn says_something(&self) -> bool {
        let power = self.target_watts.is_some() || self.battery_lasts_until.is_some();
        power || !self.limits.is_empty()
    }

    pub fn check(&self, config: &Config) -> Result<(), String> {
        if !OFFSETS.contains(&self.utc_offset_hours) {
            return Err(format!(
                "budgets.utc_offset_hours is {}, expected {} to {}",
                self.utc_offset_hours,
                OFFSETS.start(),
                OFFSETS.end()
            ));
        }
        for (key, table) in [
            ("usd_per_kwh", &self.usd_per_kwh),
            ("grams_co2_per_kwh", &self.grams_co2_per_kwh),
            ("target_watts", &self.target_watts),
        ] {
            let hours = table.as_ref().map(ByHour::hours).unwrap_or_default();
            if let Some(bad) = hours.iter().find(|v| !(0.0..=1e9).contains(*v)) {
                return Err(format!("budgets.{key} has {bad}, expected 0 or more"));
            }
        }
        if let Some(time) = &self.battery_lasts_until
            && second_of_day(time).is_none()
        {
            return Err(format!(
                "budgets.battery_lasts_until is {time:?}, expected a time of day like \"18:00\""
            ));
        }
        for (name, limit) in &self.limits {
            limit
                .check(self, config)
                .map_err(|what| format!("budgets.limits.{name}: {what}"))?;
        }
        Ok(())
    }
}

impl Limit {
    fn check(&self, budgets: &BudgetsConfig, config: &Config) -> Result<(), String> {
        if !(0.0..=self.unit.max()).contains(&self.limit) {
            let max = self.unit.max();
            return Err(format!("limit is {}, expected 0 to {max}", self.limit));
        }
        let keys = &config.server.api_keys;
        match (&self.tenant, &self.key) {
            (Some(_), Some(_)) => return Err("give tenant or key, not both".into()),
            (Some(tenant), None) if !keys.values().any(|t| t == tenant) => {
                return Err(format!(
                    "names {tenant:?}, which is no tenant of server.api_keys"
                ));
            }
            // The key itself is a secret, and errors are logged.
            (None, Some(key)) if !keys.contains_key(key) => {
                return Err("its key is none of server.api_keys".into());
            }
            _ => {}
        }
        self.can_be_counted(budgets, config)
    }

    /// A budget that nothing is ever booked on would look like one that is kept.
    fn can_be_counted(&self, budgets: &BudgetsConfig, config: &Config) -> Result<(), String> {
        let states_joules = config.tiers.iter().any(|t| t.joules_per_token.is_some());
        let knows_joules = config.energy.mode != EnergyMode::Off || states_joules;
        let has_price = |t: &crate::config::TierConfig| {
            t.usd_per_mtok_prompt.is_some() || t.usd_per_mtok_output.is_some()
        };
        let joules = "energy.mode is off and no tier states joules_per_token";
        match self.unit {
            Unit::Joules if !knows_joules => Err(format!("counts joules, but {joules}")),
            Unit::GramsCo2 if !knows_joules => {
                Err(format!("counts carbon by joules, but {joules}"))
            }
            Unit::GramsCo2 if budgets.grams_co2_per_kwh.is_none() => {
                Err("counts grams-co2, but budgets.grams_co2_per_kwh is not set".into())
            }
            Unit::Usd if budgets.usd_per_kwh.is_none() && !config.tiers.iter().any(has_price) => {
                Err(
                    "counts usd, but budgets.usd_per_kwh is not set and no tier states \
                     usd_per_mtok_prompt or usd_per_mtok_output"
                        .into(),
                )
            }
            _ => Ok(()),
        }
    }
}

/// `18:00`.
fn second_of_day(time: &str) -> Option<i64> {
    let (hours, minutes) = time.split_once(':')?;
    let number = |text: &str, below: i64| {
        let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        let value: i64 = text.parse().ok().filter(|_| digits)?;
        (value < below).then_some(value)
    };
    Some(number(hours, 24)? * 3_600 + number(minutes, 60)? * 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str = "[server]\napi_keys = { \"sk-1\" = \"acme\" }\n[budgets]\n";

    fn refused(lines: &str, words: &[&str]) {
        let text = format!("{KEYS}{lines}");
        let error = Config::parse("t", &text).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{error}: {word}");
        }
        assert!(!error.contains("sk-"), "{error}");
    }

    fn read(lines: &str) -> BudgetsConfig {
        Config::parse("t", &format!("{KEYS}{lines}"))
            .unwrap()
            .budgets
    }

    #[test]
    fn a_table_has_a_value_for_every_hour_or_one_for_all() {
        let hours: Vec<String> = (0..24).map(|h| format!("{h}.5")).collect();
        let read = read(&format!(
            "usd_per_kwh = [{}]\ntarget_watts = 90",
            hours.join(",")
        ));
        assert_eq!(read.usd_per_kwh.as_ref().unwrap().hours()[23], 23.5);
        assert_eq!(read.power_plan().target_watts, Some([90.0; HOURS]));
        refused("usd_per_kwh = [1, 2]", &["line 4", "24 numbers"]);
        refused("target_watts = -1", &["target_watts", "-1"]);
    }

    #[test]
    fn a_time_of_day_is_hours_and_minutes() {
        let plan = read("battery_lasts_until = \"18:30\"\nutc_offset_hours = -3.5").power_plan();
        assert_eq!(plan.battery_until_s, Some(66_600));
        assert_eq!(plan.utc_offset_s, -12_600);
        for bad in ["24:00", "18", "6:00", "18:60", "+1:00", "18:0é"] {
            refused(&format!("battery_lasts_until = \"{bad}\""), &[bad, "18:00"]);
        }
        refused("utc_offset_hours = 15", &["15", "-12 to 14"]);
    }

    #[test]
    fn a_budget_names_who_has_a_key_and_what_can_be_counted() {
        let limit =
            |fields: &str| format!("[budgets.limits.b]\nlimit = 5\nper = \"day\"\n{fields}");
        let good = limit("unit = \"joules\"\ntenant = \"acme\"");
        assert_eq!(read(&good).limits["b"].limit, 5.0);
        assert!(read(&limit("unit = \"joules\"\nkey = \"sk-1\"")).says_something());
        refused(
            &limit("unit = \"joules\"\ntenant = \"acne\""),
            &["limits.b", "acne"],
        );
        refused(
            &limit("unit = \"joules\"\nkey = \"sk-2\""),
            &["its key", "api_keys"],
        );
        let both = "unit = \"joules\"\nkey = \"sk-1\"\ntenant = \"acme\"";
        refused(&limit(both), &["not both"]);
        refused(&limit("unit = \"watts\""), &["watts", "joules"]);
        refused(
            &limit("unit = \"usd\""),
            &["usd_per_kwh", "usd_per_mtok_output"],
        );
        refused(&limit("unit = \"grams-co2\""), &["grams_co2_per_kwh"]);
        let off = format!("{}\n[energy]\nmode = \"off\"", limit("unit = \"joules\""));
        refused(&off, &["energy.mode", "joules_per_token"]);
        let endless = "[budgets.limits.b]\nlimit = -1\nper = \"day\"\nunit = \"joules\"";
        refused(endless, &["limit is -1", "0 to"]);
        refused(
            "[budgets.limits.b]\nunit = \"joules\"",
            &["missing field", "limit"],
        );
    }
}
