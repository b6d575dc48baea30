//! How much power the host may draw, by the clock: a curve of watts to follow, and a battery
//! that must last.
//!
//! A plan becomes budgets in watts, which the state machine and every policy see; what
//! follows from them is theirs to decide. Time comes in as an argument. It refuses to guess:
//! where no sensor tells what is drawn there is no budget, since nobody could keep it.

use homeostat_hooks::{Budget, BudgetUnit, Device, DeviceKind, Snapshot};

/// Hours of a day.
pub const HOURS: usize = 24;
const HOUR_S: i64 = 3_600;
const DAY_S: i64 = HOURS as i64 * HOUR_S;
/// A clock time concerns the hours before it. Half a day: with 18:00 the morning saves and
/// the evening does not, with 02:00 the evening does.
const AHEAD_MAX_S: i64 = DAY_S / 2;

/// The hour of the day, 0 to 23.
pub fn hour_of_day(unix_s: i64, utc_offset_s: i64) -> usize {
    ((unix_s + utc_offset_s).rem_euclid(DAY_S) / HOUR_S) as usize
}

/// What an operator wishes of the power drawn.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PowerPlan {
    /// Power to stay below in each hour of the day, W.
    pub target_watts: Option<[f64; HOURS]>,
    /// On battery: the second of the day until which the charge must last.
    pub battery_until_s: Option<i64>,
    /// What local time is ahead of UTC.
    pub utc_offset_s: i64,
}

impl PowerPlan {
    /// What holds now: at most one budget for the curve and one for the battery, both of
    /// scope `host`. Absent where nothing tells what is drawn, on mains, and more than half
    /// a day before the time.
    pub fn budgets(&self, snapshot: &Snapshot, unix_s: i64) -> Vec<Budget> {
        let curve = self.curve(snapshot, unix_s);
        curve
            .into_iter()
            .chain(self.battery(snapshot, unix_s))
            .collect()
    }

    fn curve(&self, snapshot: &Snapshot, unix_s: i64) -> Option<Budget> {
        let target = self.target_watts?[hour_of_day(unix_s, self.utc_offset_s)];
        let left_s = HOUR_S - (unix_s + self.utc_offset_s).rem_euclid(HOUR_S);
        Some(in_watts(target, drawn_watts(snapshot)?, left_s))
    }

    fn battery(&self, snapshot: &Snapshot, unix_s: i64) -> Option<Budget> {
        let supply = snapshot.supply.filter(|supply| supply.on_battery)?;
        let now_s = (unix_s + self.utc_offset_s).rem_euclid(DAY_S);
        let ahead_s = (self.battery_until_s? - now_s).rem_euclid(DAY_S);
        if !(1..=AHEAD_MAX_S).contains(&ahead_s) {
            return None;
        }
        // The firmware's energy, by way of what it was divided by.
        let drain_watts = f64::from(supply.drain_watts?);
        let left_joules = drain_watts * f64::from(supply.time_left_s?);
        Some(in_watts(left_joules / ahead_s as f64, drain_watts, ahead_s))
    }
}

fn in_watts(limit: f64, used: f64, left_s: i64) -> Budget {
    Budget {
        scope: "host".to_owned(),
        unit: BudgetUnit::Watts,
        limit,
        used,
        window_left_s: u32::try_from(left_s).ok(),
    }
}

/// What the machine draws: a sensor for the whole of it counts alone, otherwise the sum of
/// the parts.
fn drawn_watts(snapshot: &Snapshot) -> Option<f64> {
    let sum = |counts: fn(&Device) -> bool| {
        let devices = snapshot.devices.iter().filter(|d| counts(d));
        devices
            .filter_map(|d| Some(d.power_watts?.value))
            .reduce(|a, b| a + b)
    };
    sum(|d| d.kind == DeviceKind::Host)
        .or_else(|| sum(|d| !matches!(d.kind, DeviceKind::Host | DeviceKind::External)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use homeostat_hooks::{Sample, Supply};

    const NOON: i64 = 12 * HOUR_S;

    fn drawing(parts: &[(DeviceKind, f64)]) -> Snapshot {
        let device = |(kind, watts): &(DeviceKind, f64)| Device {
            kind: *kind,
            power_watts: Some(Sample::measured(*watts)),
            ..Device::default()
        };
        Snapshot {
            devices: parts.iter().map(device).collect(),
            ..Snapshot::default()
        }
    }

    fn on_battery(drain_watts: f32, time_left_s: u32) -> Snapshot {
        Snapshot {
            supply: Some(Supply {
                on_battery: true,
                charge_ratio: Some(0.5),
                drain_watts: Some(drain_watts),
                time_left_s: Some(time_left_s),
            }),
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_curve_gives_the_watts_of_the_hour_until_the_hour_ends() {
        let mut watts = [100.0; HOURS];
        watts[13] = 40.0;
        let plan = PowerPlan {
            target_watts: Some(watts),
            utc_offset_s: HOUR_S,
            ..PowerPlan::default()
        };
        let gpu = drawing(&[(DeviceKind::Gpu, 60.0), (DeviceKind::Cpu, 20.0)]);
        let [budget] = &plan.budgets(&gpu, NOON + 600)[..] else {
            panic!("one budget");
        };
        assert_eq!((budget.limit, budget.used), (40.0, 80.0));
        assert_eq!(budget.window_left_s, Some(3_000));
        assert_eq!(plan.budgets(&gpu, NOON - 1)[0].limit, 100.0);
    }

    #[test]
    fn the_plug_knows_better_than_the_sum_and_without_a_sensor_there_is_no_budget() {
        let plan = PowerPlan {
            target_watts: Some([100.0; HOURS]),
            ..PowerPlan::default()
        };
        let used = |snapshot: &Snapshot| plan.budgets(snapshot, NOON).first().map(|b| b.used);
        let plug = [(DeviceKind::Gpu, 60.0), (DeviceKind::Host, 95.0)];
        assert_eq!(used(&drawing(&plug)), Some(95.0));
        let elsewhere = [(DeviceKind::External, 700.0)];
        assert_eq!(used(&drawing(&elsewhere)), None);
        assert_eq!(used(&Snapshot::default()), None);
    }

    #[test]
    fn a_battery_that_must_last_allows_its_energy_over_the_time_that_is_left() {
        let plan = PowerPlan {
            battery_until_s: Some(18 * HOUR_S),
            ..PowerPlan::default()
        };
        // 4 h at 15 W are left; 6 h are asked for.
        let [budget] = &plan.budgets(&on_battery(15.0, 4 * 3_600), NOON)[..] else {
            panic!("one budget");
        };
        assert_eq!((budget.limit, budget.used), (10.0, 15.0));
        assert_eq!(budget.window_left_s, Some(6 * 3_600));
        // Drawing less, the same charge lasts longer and is allowed the same.
        let saving = plan.budgets(&on_battery(7.5, 8 * 3_600), NOON);
        assert_eq!((saving[0].limit, saving[0].used), (10.0, 7.5));
    }

    #[test]
    fn after_the_time_and_on_mains_nothing_is_asked_and_the_night_is_over_midnight() {
        let at = |until_s, now_s| {
            let plan = PowerPlan {
                battery_until_s: Some(until_s),
                ..PowerPlan::default()
            };
            plan.budgets(&on_battery(10.0, 3_600), now_s).len()
        };
        assert_eq!(at(18 * HOUR_S, 18 * HOUR_S), 0);
        assert_eq!(at(18 * HOUR_S, 19 * HOUR_S), 0);
        assert_eq!(at(2 * HOUR_S, 20 * HOUR_S), 1);
        let mut mains = on_battery(10.0, 3_600);
        mains.supply = mains.supply.map(|supply| Supply {
            on_battery: false,
            ..supply
        });
        let plan = PowerPlan {
            battery_until_s: Some(18 * HOUR_S),
            ..PowerPlan::default()
        };
        assert_eq!(plan.budgets(&mains, NOON), []);
    }
}
