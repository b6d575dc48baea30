//! What devices are about to draw, told to the forecast of their heat.
//!
//! For as long as the work in hand lasts, a device draws what it draws busy. Then it draws what
//! it does in the mean while requests come as they have come lately: idle power if it mostly
//! idles, and hardly less than now if the next request is always at the door. Both powers are
//! learned from the device's own sensor, the way that requests come over the last half minute.
//!
//! It refuses to plan where no power is measured, before it has seen a device both busy and idle,
//! and while nobody knows how long the work will take, be it that no answer was ever written or
//! that what runs is nobody's in hand: then the forecast goes on from the last second, as it does
//! without a plan.

use std::collections::HashMap;

use homeostat_engine::Device;
use homeostat_hooks::{Device as Seen, Origin, Sample, Snapshot};
use homeostat_telemetry::forecast::HORIZON_S;

use crate::mean::Mean;
use crate::tiers::{WorkInHand, is_part_of};

/// Over which requests are taken to come as they came.
const LATELY_MS: f64 = 30_000.0;
/// Weight of the newest reading in the mean power: some five seconds count.
const MEAN_WEIGHT: f64 = 0.02;
/// Readings after which a mean is used.
const READINGS_MIN: u32 = 10;

/// What a local tier is doing.
#[derive(Debug, Clone, PartialEq)]
pub struct TierLoad {
    pub device: Device,
    /// Whether its engine computes at this moment.
    pub runs: bool,
    /// `None` while nobody can say how long it takes.
    pub work: Option<WorkInHand>,
}

/// Means over the coming seconds, W, by the device's id. Empty: nothing is planned.
pub type Plans = Vec<(String, Vec<f64>)>;

/// Plans the power of the devices that tiers compute on.
#[derive(Debug, Default)]
pub struct PlannedPower(HashMap<String, Learned>);

impl PlannedPower {
    /// Takes what was read since the last call and plans from this moment on: to be called with
    /// every snapshot.
    pub fn plan(&mut self, snapshot: &Snapshot, tiers: &[TierLoad]) -> Plans {
        let now_ms = snapshot.monotonic_ms;
        let mut plans = Plans::new();
        for seen in &snapshot.devices {
            let here = tiers.iter().filter(|tier| is_part_of(tier.device, seen));
            let here: Vec<&TierLoad> = here.collect();
            let Some(watts) = measured_watts(seen).filter(|_| !here.is_empty()) else {
                // A plan that was made before its sensor fell silent.
                plans.extend(
                    self.0
                        .remove(&seen.id)
                        .map(|_| (seen.id.clone(), Vec::new())),
                );
                continue;
            };
            let is_busy = here.iter().any(|tier| tier.runs);
            let learned = self.0.entry(seen.id.clone());
            let learned = learned.or_insert_with(|| Learned::since(now_ms, is_busy));
            learned.learn(watts, now_ms, is_busy);
            let power = learned.power().zip(busy_seconds(&here));
            let plan = power.map(|(power, busy_s)| planned_watts(busy_s, power, HORIZON_S));
            plans.push((seen.id.clone(), plan.unwrap_or_default()));
        }
        plans
    }
}

/// Power by a sensor: what is modelled would teach the forecast its own table.
fn measured_watts(seen: &Seen) -> Option<Sample> {
    seen.power_watts.filter(|s| s.origin != Origin::Modelled)
}

/// How long the work in hand of all tiers of one device lasts, s. They run beside each other, and
/// their times were measured that way.
fn busy_seconds(tiers: &[&TierLoad]) -> Option<f64> {
    let each = tiers.iter().map(|tier| match &tier.work {
        Some(work) if !work.tokens_left.is_empty() => Some(seconds_of(work)),
        // What a policy has asked runs as well, and is not in hand.
        _ => (!tier.runs).then_some(0.0),
    });
    each.reduce(|a, b| Some(a?.max(b?))).flatten()
}

/// Prompts are read one after another. Then no schedule is shorter than its longest answer, nor
/// than all of them in full batches.
fn seconds_of(work: &WorkInHand) -> f64 {
    let longest = work.tokens_left.iter().copied().fold(0.0, f64::max);
    let all: f64 = work.tokens_left.iter().sum();
    let writing_ms = work.tpot_ms * longest.max(all / work.width as f64);
    (work.prefill_ms + writing_ms) / 1e3
}

/// What a device draws.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Power {
    busy_watts: f64,
    /// In the mean, as requests have come lately.
    usual_watts: f64,
}

/// Means over each of the coming seconds, W; the last holds for what follows.
fn planned_watts(busy_s: f64, power: Power, horizon_s: usize) -> Vec<f64> {
    let second = |start: usize| {
        let busy = (busy_s - start as f64).clamp(0.0, 1.0);
        busy * power.busy_watts + (1.0 - busy) * power.usual_watts
    };
    (0..=horizon_s).map(second).collect()
}

/// What one device has shown.
#[derive(Debug, Clone, Copy)]
struct Learned {
    idle: Mean,
    busy: Mean,
    /// Share of the time lately in which an engine computed.
    busy_ratio: f64,
    is_busy: bool,
    changed_ms: u64,
    seen_ms: u64,
    read_ms: Option<u64>,
}

impl Learned {
    fn since(now_ms: u64, is_busy: bool) -> Self {
        Self {
            idle: Mean::default(),
            busy: Mean::default(),
            busy_ratio: 0.0,
            is_busy,
            changed_ms: now_ms,
            seen_ms: now_ms,
            read_ms: None,
        }
    }

    fn learn(&mut self, watts: Sample, now_ms: u64, is_busy: bool) {
        let elapsed_ms = now_ms.saturating_sub(self.seen_ms) as f64;
        let share = 1.0 - (-elapsed_ms / LATELY_MS).exp();
        self.busy_ratio += share * (f64::from(is_busy) - self.busy_ratio);
        self.seen_ms = now_ms;
        if self.is_busy != is_busy {
            self.is_busy = is_busy;
            self.changed_ms = now_ms;
        }
        let read_ms = now_ms.saturating_sub(watts.age_ms.into());
        let is_new = self.read_ms.replace(read_ms) != Some(read_ms);
        // A mean over both says nothing of either.
        if is_new && read_ms.saturating_sub(watts.window_ms.into()) >= self.changed_ms {
            let mean = if is_busy {
                &mut self.busy
            } else {
                &mut self.idle
            };
            mean.take(watts.value, MEAN_WEIGHT);
        }
    }

    /// `None` until both are known.
    fn power(&self) -> Option<Power> {
        let (busy_watts, idle_watts) = self
            .busy
            .known(READINGS_MIN)
            .zip(self.idle.known(READINGS_MIN))?;
        Some(Power {
            busy_watts,
            usual_watts: idle_watts + self.busy_ratio * (busy_watts - idle_watts),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homeostat_hooks::DeviceKind;

    fn work(tokens_left: &[f64]) -> WorkInHand {
        WorkInHand {
            tpot_ms: 20.0,
            prefill_ms: 0.0,
            tokens_left: tokens_left.to_vec(),
            width: 4,
        }
    }

    fn tier(runs: bool, tokens_left: &[f64]) -> TierLoad {
        TierLoad {
            device: Device::Cuda(0),
            runs,
            work: Some(work(tokens_left)),
        }
    }

    /// A GPU that draws so much at this time, read at once.
    fn drawing(at_ms: u64, watts: f64) -> Snapshot {
        Snapshot {
            monotonic_ms: at_ms,
            devices: vec![Seen {
                id: "gpu.0".into(),
                kind: DeviceKind::Gpu,
                power_watts: Some(Sample::measured(watts)),
                ..Seen::default()
            }],
            ..Snapshot::default()
        }
    }

    /// Ten seconds idle at 100 W, then ten busy at 400 W.
    fn trained() -> PlannedPower {
        let mut planned = PlannedPower::default();
        for tick in 0..200 {
            let is_busy = tick >= 100;
            let watts = if is_busy { 400.0 } else { 100.0 };
            planned.plan(&drawing(tick * 100, watts), &[tier(is_busy, &[])]);
        }
        planned
    }

    #[test]
    fn work_lasts_as_long_as_its_longest_answer_or_as_full_batches_need() {
        assert_eq!(seconds_of(&work(&[])), 0.0);
        assert_eq!(seconds_of(&work(&[100.0, 10.0])), 2.0);
        // Sixteen of a hundred tokens, four at a time.
        assert_eq!(seconds_of(&work(&[100.0; 16])), 8.0);
        let long_prompt = WorkInHand {
            prefill_ms: 2_500.0,
            ..work(&[100.0])
        };
        assert_eq!(seconds_of(&long_prompt), 4.5);
        let (short, long) = (tier(true, &[50.0]), tier(true, &[150.0]));
        assert_eq!(busy_seconds(&[&short, &long]), Some(3.0));
        let unknown = |runs| TierLoad {
            work: None,
            ..tier(runs, &[])
        };
        assert_eq!(busy_seconds(&[&short, &unknown(true)]), None);
        assert_eq!(busy_seconds(&[&short, &unknown(false)]), Some(1.0));
        // A policy has asked the tier something: nobody says for how long.
        assert_eq!(busy_seconds(&[&short, &tier(true, &[])]), None);
        assert_eq!(busy_seconds(&[&tier(false, &[])]), Some(0.0));
    }

    #[test]
    fn power_is_busy_while_the_work_lasts_and_as_usual_from_then_on() {
        let power = Power {
            busy_watts: 400.0,
            usual_watts: 100.0,
        };
        assert_eq!(planned_watts(1.5, power, 3), [400.0, 250.0, 100.0, 100.0]);
        assert_eq!(planned_watts(0.0, power, 1), [100.0, 100.0]);
        // Beyond the horizon it stays so.
        assert_eq!(planned_watts(60.0, power, 2), [400.0; 3]);
    }

    #[test]
    fn busy_and_idle_power_are_learned_and_what_follows_is_what_came_lately() {
        let mut planned = trained();
        let plans = planned.plan(&drawing(20_000, 400.0), &[tier(true, &[100.0])]);
        let [(id, watts)] = plans.as_slice() else {
            panic!("{plans:?}");
        };
        assert_eq!((id.as_str(), watts.len()), ("gpu.0", HORIZON_S + 1));
        assert!((watts[0] - 400.0).abs() < 1.0, "{watts:?}");
        // It computed for ten of the last thirty seconds: more than idle, and less than busy.
        let after = 100.0 + 300.0 * (1.0 - (-10_000.0 / LATELY_MS).exp());
        assert!((watts[2] - after).abs() < 3.0, "{after} {watts:?}");
        // Five minutes without a request.
        let mut last = Plans::new();
        for tick in 201..3_200 {
            last = planned.plan(&drawing(tick * 100, 100.0), &[tier(false, &[])]);
        }
        assert!((last[0].1[HORIZON_S] - 100.0).abs() < 1.0, "{last:?}");
    }

    #[test]
    fn nothing_is_planned_that_nobody_measures_or_knows() {
        let idle = [tier(false, &[])];
        let mut young = PlannedPower::default();
        let plans = young.plan(&drawing(0, 100.0), &idle);
        let no_plan: Plans = vec![("gpu.0".to_owned(), Vec::new())];
        assert_eq!(plans, no_plan);
        let mut modelled = drawing(20_000, 400.0);
        modelled.devices[0].power_watts = Some(Sample {
            origin: Origin::Modelled,
            ..Sample::measured(400.0)
        });
        let mut planned = trained();
        // What was planned is taken back, once.
        let taken_back = planned.plan(&modelled, &idle);
        assert_eq!(taken_back, no_plan);
        assert!(planned.plan(&modelled, &idle).is_empty());
        let elsewhere = TierLoad {
            device: Device::Cpu,
            ..tier(true, &[100.0])
        };
        let mut planned = PlannedPower::default();
        assert!(planned.plan(&drawing(0, 400.0), &[elsewhere]).is_empty());
    }

    #[test]
    fn a_mean_over_a_change_of_work_teaches_nothing() {
        let mut learned = Learned::since(0, false);
        let slow = |at_ms: u64, is_busy: bool, learned: &mut Learned| {
            let sample = Sample {
                window_ms: 1_000,
                ..Sample::measured(250.0)
            };
            learned.learn(sample, at_ms, is_busy);
        };
        for tick in 10..20 {
            slow(tick * 100, false, &mut learned);
        }
        assert_eq!(learned.idle.count(), 10);
        for tick in 20..30 {
            slow(tick * 100, true, &mut learned);
        }
        assert_eq!(learned.busy.count(), 0);
        slow(3_000, true, &mut learned);
        assert_eq!(learned.busy.count(), 1);
        // The same reading again is none.
        slow(3_000, true, &mut learned);
        assert_eq!(learned.busy.count(), 1);
    }
}
