//! How hard does the machine press? One number for prices, a few hard limits, and words
//! for people.
//!
//! Pressure only ever grows with bad news: a hotter, emptier or poorer machine never makes
//! a larger tier cheaper. Absent readings add nothing; the host raises the cause `sensor`
//! when a reading that it once had is gone.
//!
//! What lacks decides who pays: energy is saved by effort, money by dollars, and of heat a tier
//! pays as much as its own device has, once anything is to be shed.

use homeostat_sdk::*;

/// Free memory below this share counts as pressure even before the host says so.
const MEMORY_USED_RATIO_MAX: f64 = 0.95;
/// KV cache above this share: another long sequence would preempt one that runs.
const KV_USED_RATIO_MAX: f32 = 0.9;
/// Budget share from which saving begins.
const BUDGET_SAVING_RATIO: f64 = 0.8;
/// Time on battery from which saving becomes urgent.
const BATTERY_URGENT_S: u32 = 20 * 60;

/// What the machine adds to the price of effort, and what it forbids.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pressure {
    /// Added to the profile's energy price.
    pub(crate) price: f32,
    /// Added to it as well, for tiers on the hottest device.
    pub(crate) heat: f32,
    /// Added to the price of the dearest tier's dollars.
    pub(crate) money: f32,
    /// Whether heat alone asks for less traffic.
    pub(crate) is_heat: bool,
    /// Only the smallest tier.
    pub(crate) smallest_only: bool,
    /// Only what costs the fewest dollars.
    pub(crate) cheapest_only: bool,
    /// No tier of the larger half.
    pub(crate) no_large: bool,
    /// No second try.
    pub(crate) one_step: bool,
    /// Most new tokens.
    pub(crate) max_tokens: Option<u32>,
    /// Why, each with its numbers.
    pub(crate) reasons: Vec<String>,
}

/// Reads the snapshot.
pub(crate) fn read(snapshot: &Snapshot) -> Pressure {
    let mut p = Pressure {
        price: 0.0,
        heat: 0.0,
        money: 0.0,
        is_heat: is_heat(&snapshot.metabolism.causes),
        smallest_only: false,
        cheapest_only: false,
        no_large: false,
        one_step: false,
        max_tokens: None,
        reasons: Vec::new(),
    };
    state(&mut p, snapshot);
    battery(&mut p, snapshot.supply.as_ref());
    for budget in &snapshot.budgets {
        spent(&mut p, budget);
    }
    memory(&mut p, snapshot);
    p
}

/// Whether nothing but heat is known to lack.
fn is_heat(causes: &Causes) -> bool {
    let heat = Causes {
        thermal: causes.thermal,
        ..Causes::default()
    };
    *causes == heat
}

impl Pressure {
    /// All that lacks, for a tier whose device has so much of the heat.
    pub(crate) fn on(&self, heat: f32) -> f32 {
        self.price + self.heat * heat + self.money
    }

    fn cap(&mut self, tokens: u32) {
        self.max_tokens = Some(self.max_tokens.map_or(tokens, |t| t.min(tokens)));
    }
}

/// The host's own judgement, which has hysteresis; raw temperatures do not, so here they
/// serve only as words.
fn state(p: &mut Pressure, snapshot: &Snapshot) {
    let m = &snapshot.metabolism;
    // Risk is that of a slowdown by heat; a state may have another cause.
    p.heat += 0.2 * unit(m.risk);
    let (name, price) = match m.state {
        MetabolicState::Nominal => return,
        MetabolicState::Elevated => ("elevated", 0.15),
        MetabolicState::Constrained => {
            p.one_step = true;
            ("constrained", 0.6)
        }
        MetabolicState::Critical => {
            p.smallest_only = true;
            p.one_step = true;
            p.cap(256);
            ("critical", 1.2)
        }
    };
    match p.is_heat {
        true => p.heat += price,
        false => p.price += price,
    }
    let causes = causes(&m.causes);
    let mut text = format!("state {name}");
    if !causes.is_empty() {
        text.push_str(&format!(" ({})", causes.join(", ")));
    }
    if m.causes.thermal
        && let Some(hot) = hottest(&snapshot.devices)
    {
        text = format!("{hot} → {text}");
    }
    p.reasons.push(text);
}

fn causes(c: &Causes) -> Vec<&'static str> {
    [
        (c.thermal, "thermal"),
        (c.power, "power"),
        (c.budget, "budget"),
        (c.battery, "battery"),
        (c.memory, "memory"),
        (c.sensor, "sensor lost"),
    ]
    .into_iter()
    .filter_map(|(holds, name)| holds.then_some(name))
    .collect()
}

/// The device nearest to its slowdown; without margins, the one with the highest
/// temperature.
fn hottest(devices: &[Device]) -> Option<String> {
    let margin = |d: &&Device| d.thermal_margin_celsius.map(|s| s.value);
    let nearest = devices
        .iter()
        .filter(|d| margin(d).is_some())
        .min_by(|a, b| f64::total_cmp(&margin(a).unwrap_or(0.0), &margin(b).unwrap_or(0.0)));
    let warmest = || {
        devices
            .iter()
            .filter(|d| d.temperature_celsius.is_some())
            .max_by(|a, b| {
                let t = |d: &Device| d.temperature_celsius.map_or(f64::MIN, |s| s.value);
                t(a).total_cmp(&t(b))
            })
    };
    let device = nearest.or_else(warmest)?;
    let mut text = device.id.clone();
    if let Some(t) = device.temperature_celsius {
        text.push_str(&format!(" at {:.0} °C", t.value));
    }
    if let Some(m) = device.thermal_margin_celsius {
        text.push_str(&format!(", margin {:.0} °C", m.value));
    }
    Some(text)
}

fn battery(p: &mut Pressure, supply: Option<&Supply>) {
    let Some(supply) = supply.filter(|s| s.on_battery) else {
        return;
    };
    // An unknown charge is taken as half: neither alarm nor plenty.
    let charge = supply.charge_ratio.map_or(0.5, unit);
    p.price += 0.25 + 0.5 * (1.0 - charge);
    let mut text = match supply.charge_ratio {
        Some(_) => format!("on battery, {:.0} % left", charge * 100.0),
        None => "on battery".to_owned(),
    };
    if let Some(left) = supply.time_left_s {
        text.push_str(&format!(", {} minutes", left / 60));
        if left < BATTERY_URGENT_S {
            p.price += 0.4;
            p.one_step = true;
        }
    }
    p.reasons.push(text);
}

fn spent(p: &mut Pressure, budget: &Budget) {
    let share = if budget.limit > 0.0 {
        budget.used / budget.limit
    } else {
        f64::INFINITY
    };
    if share < BUDGET_SAVING_RATIO || share.is_nan() {
        return;
    }
    let unit = match budget.unit {
        BudgetUnit::Joules => "J",
        BudgetUnit::Watts => "W",
        BudgetUnit::Usd => "USD",
        BudgetUnit::GramsCo2 => "g CO2",
        BudgetUnit::Tokens => "tokens",
    };
    p.reasons.push(format!(
        "budget of {}: {:.1} of {:.1} {unit} used",
        budget.scope, budget.used, budget.limit
    ));
    let price = (share.min(1.0) - BUDGET_SAVING_RATIO) as f32 * 3.0;
    let is_spent = share >= 1.0;
    match budget.unit {
        BudgetUnit::Usd => {
            p.money += price;
            p.cheapest_only |= is_spent;
        }
        _ => {
            p.price += price;
            p.smallest_only |= is_spent;
        }
    }
    if is_spent {
        p.one_step = true;
        p.cap(128);
    }
}

fn memory(p: &mut Pressure, snapshot: &Snapshot) {
    let pressure = &snapshot.pressure;
    let used = match (pressure.memory_used_bytes, pressure.memory_limit_bytes) {
        (Some(used), Some(limit)) if limit > 0 => Some(used as f64 / limit as f64),
        _ => None,
    };
    let full = used.filter(|u| *u > MEMORY_USED_RATIO_MAX);
    let kv = pressure.kv_used_ratio.filter(|r| *r > KV_USED_RATIO_MAX);
    if full.is_none() && kv.is_none() && !snapshot.metabolism.causes.memory {
        return;
    }
    p.no_large = true;
    p.one_step = true;
    p.cap(256);
    p.reasons.push(match (used, kv) {
        (_, Some(kv)) => format!("KV cache {:.0} % full", kv * 100.0),
        (Some(used), None) => format!("memory {:.0} % used", used * 100.0),
        (None, None) => "memory runs short".to_owned(),
    });
}

/// Into 0 to 1; what is no number adds nothing.
pub(crate) fn unit(value: f32) -> f32 {
    if value.is_nan() {
        0.0
    } else {
        value.clamp(0.0, 1.0)
    }
}
