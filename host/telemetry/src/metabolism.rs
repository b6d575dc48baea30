//! From readings to one word: how the machine feels, and why.
//!
//! Every cause (heat, power, budget, battery, memory, a lost sensor) climbs its own
//! ladder of four levels; the state is the highest of them. A ladder's way down starts
//! lower than its way up (hysteresis), needs longer evidence (dwell), and a cause that
//! returns soon after it left must stay quiet twice as long the next time. Beside the
//! state, which is for hard rules and people, stands the *degrade ratio*, a continuous
//! share of the traffic that should move to smaller tiers: it reacts at once and cannot
//! flap, so routing follows it. It is told for the host, where the worst device counts, and
//! for each device ([`Shares`]), so that one hot board does not empty seven cool ones.
//!
//! Pure: the answer depends on the readings and on `now_ms`, no clock is read. It refuses
//! to read an absent thermometer as cool: a device that once had a temperature and has
//! lost it is taken to heat at [`BLIND_HEATING_CELSIUS_PER_S`] and raises the cause
//! `sensor`. A device that never had one raises nothing, since every virtual machine is
//! like that.

use std::collections::{BTreeMap, VecDeque};

use homeostat_hooks::{
    Budget, BudgetUnit, Causes, DeviceKind, MetabolicState, Metabolism, Pressure, Profile,
    SpeculationHint, Supply, ThrottleReasons,
};

use crate::filter::{Ema, GAP_MS};
use crate::forecast::{Forecasters, Method, Outlook};
use crate::reading::{DeviceReadings, GONE_MS, Reading, Readings, Signal};

/// A die under full load after idling warms by about this much in its first seconds; the
/// margin that can no longer be read shrinks at this rate.
pub const BLIND_HEATING_CELSIUS_PER_S: f64 = 1.0;

/// Evidence needed to go up: five samples, so that one outlier moves nothing.
const RISE_MS: u64 = 500;
/// Quiet needed to go down one level. Longer from critical and for memory, whose pressure
/// comes in bursts of reclaim.
const FALL_MS: u64 = 10_000;
const FALL_FROM_CRITICAL_MS: u64 = 20_000;
const FALL_MEMORY_MS: u64 = 30_000;
/// A cause that returns within this time after it left doubles its quiet time, up to
/// [`MAX_STRETCH`] times: under the worst oscillation 10 s become 320 s.
const RETURN_MS: u64 = 120_000;
const MAX_STRETCH: u64 = 32;
/// A slowdown expected within this time leaves just enough to let running answers end …
const SOON_S: u32 = 30;
/// … and is over when it is this far away.
const NOT_SOON_S: u32 = 45;
/// What is only foreseen weighs a little less than what is there.
const FORESEEN: f64 = 0.9;
/// Speculation needs this margin to remain, °C.
const ROOMY_SOON_CELSIUS: f64 = 10.0;
/// Power at or above the cap for this long is no spike any more.
const OVER_CAP_MS: u64 = 1_500;
/// A budget that would be used up before its window ends is judged by the use of this time.
const BURN_TAU_MS: u32 = 60_000;
/// Battery time left below which quality must not cost energy any more.
const SHORT_BATTERY_S: u32 = 20 * 60;

const NEVER: f64 = f64::INFINITY;

/// Three steps up and three steps down, on a quantity of which more is worse.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ladder {
    /// Reaching these enters elevated, constrained, critical.
    pub enter: [f64; 3],
    /// Falling below these permits leaving elevated, constrained, critical.
    pub exit: [f64; 3],
}

impl Ladder {
    const fn new(enter: [f64; 3], band: f64) -> Self {
        Self {
            enter,
            exit: [enter[0] - band, enter[1] - band, enter[2] - band],
        }
    }

    fn level(thresholds: &[f64; 3], value: f64) -> u8 {
        (0..3)
            .rev()
            .find(|&i| value >= thresholds[i])
            .map_or(0, |i| i as u8 + 1)
    }
}

/// Thresholds of the state machine. They are argued defaults, not measured optima.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    /// Temperature at which a GPU is assumed to slow down when its driver does not say:
    /// the lowest slowdown point among current data-centre boards.
    pub gpu_limit_celsius: f64,
    /// The same for a CPU; most slow down between 95 and 105 °C.
    pub cpu_limit_celsius: f64,
    /// The margin at which risk begins to grow. 15 °C is what a die climbs in about 10 s
    /// of full load, the time that running answers need to finish.
    pub margin_span_celsius: f64,
    /// A margin at which slowdown may come with the next sample.
    pub critical_margin_celsius: f64,
    /// Risk of slowdown, 0 to 1. Leaving needs 0.15 less: that is two integer degrees.
    pub risk: Ladder,
    /// Power over the operator's cap, 1 s average. Seven points wide because one prefill
    /// more or less moves a GPU by about 5 % of its limit.
    pub power: Ladder,
    /// Used share of a budget.
    pub budget: Ladder,
    /// Used share of the battery, while it discharges.
    pub battery: Ladder,
    /// Used share of the memory limit. Below 5 % free the kernel reclaims constantly.
    pub memory_used: Ladder,
    /// Used share of the KV cache. Above 97 % the next sequence preempts another.
    pub kv_used: Ladder,
    /// Share of time in which some task waited for memory.
    pub memory_some: Ladder,
    /// Share of time in which all tasks waited for memory.
    pub memory_full: Ladder,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            gpu_limit_celsius: 87.0,
            cpu_limit_celsius: 95.0,
            margin_span_celsius: 15.0,
            critical_margin_celsius: 2.0,
            risk: Ladder {
                enter: [0.60, 0.80, 0.95],
                exit: [0.45, 0.65, 0.85],
            },
            power: Ladder::new([0.85, 0.95, 1.0], 0.07),
            budget: Ladder::new([0.75, 0.90, 1.0], 0.05),
            battery: Ladder::new([0.0, 0.70, 0.90], 0.05),
            memory_used: Ladder::new([0.90, 0.95, NEVER], 0.05),
            kv_used: Ladder::new([0.90, 0.97, NEVER], 0.05),
            memory_some: Ladder::new([0.10, NEVER, NEVER], 0.05),
            memory_full: Ladder {
                enter: [NEVER, 0.05, 0.20],
                exit: [NEVER, 0.02, 0.15],
            },
        }
    }
}

impl Thresholds {
    /// The slowdown temperature to assume for a device whose driver names none; `None`
    /// for kinds of which nothing can be assumed.
    pub fn assumed_limit_celsius(&self, kind: DeviceKind) -> Option<f64> {
        match kind {
            DeviceKind::Gpu => Some(self.gpu_limit_celsius),
            DeviceKind::Cpu | DeviceKind::Soc => Some(self.cpu_limit_celsius),
            DeviceKind::Npu | DeviceKind::Host | DeviceKind::External => None,
        }
    }
}

/// Everything that the state depends on.
#[derive(Debug, Clone, Copy)]
pub struct Vitals<'a> {
    /// Last readings.
    pub readings: &'a Readings,
    /// Pressure, with the KV occupancy that the engine pushed.
    pub pressure: &'a Pressure,
    /// Budgets.
    pub budgets: &'a [Budget],
    /// The operator's cap.
    pub power_cap_watts: Option<f64>,
    /// What is expected of the devices.
    pub forecasts: &'a Forecasters,
}

/// What one cause claims at one moment.
#[derive(Debug, Clone, Copy, Default)]
struct Evidence {
    /// Level that the way up argues for.
    enter: u8,
    /// Level above which the way down argues.
    hold: u8,
    /// Level that needs no waiting: the hardware itself says so.
    at_once: u8,
}

impl Evidence {
    fn weigh(&mut self, ladder: &Ladder, value: f64, highest: u8) {
        let enter = Ladder::level(&ladder.enter, value).min(highest);
        let hold = Ladder::level(&ladder.exit, value).min(highest);
        self.claim(enter);
        self.hold = self.hold.max(hold);
    }

    /// Both together.
    fn join(&mut self, other: Self) {
        self.enter = self.enter.max(other.enter);
        self.hold = self.hold.max(other.hold);
        self.at_once = self.at_once.max(other.at_once);
    }

    fn claim(&mut self, level: u8) {
        self.enter = self.enter.max(level);
        self.hold = self.hold.max(level);
    }

    fn insist(&mut self, level: u8) {
        self.claim(level);
        self.at_once = self.at_once.max(level);
    }
}

/// The level of one cause, with hysteresis.
#[derive(Debug, Clone)]
struct Gate {
    level: u8,
    rising: Option<(u8, u64)>,
    quiet_since_ms: Option<u64>,
    left_ms: Option<u64>,
    stretch: u64,
    fall_ms: u64,
}

impl Gate {
    fn new(fall_ms: u64) -> Self {
        Self {
            level: 0,
            rising: None,
            quiet_since_ms: None,
            left_ms: None,
            stretch: 1,
            fall_ms,
        }
    }

    /// `trusting`: nothing was observed before, so there is nothing to flap from.
    fn step(&mut self, evidence: Evidence, now_ms: u64, trusting: bool) {
        if evidence.enter > self.level {
            let (level, since) = match self.rising {
                Some((level, since)) => (level.min(evidence.enter), since),
                None => (evidence.enter, now_ms),
            };
            self.rising = Some((level, since));
            let due = trusting || now_ms.saturating_sub(since) >= RISE_MS;
            let target = evidence.at_once.max(if due { level } else { 0 });
            if target > self.level {
                self.rise_to(target, now_ms);
            }
        } else {
            self.rising = None;
        }
        if evidence.hold < self.level {
            let since = *self.quiet_since_ms.get_or_insert(now_ms);
            if now_ms.saturating_sub(since) >= self.dwell_ms() {
                self.level -= 1;
                self.left_ms = Some(now_ms);
                self.quiet_since_ms = Some(now_ms);
            }
        } else {
            self.quiet_since_ms = None;
        }
    }

    fn rise_to(&mut self, level: u8, now_ms: u64) {
        let returned = self
            .left_ms
            .is_some_and(|left| now_ms.saturating_sub(left) <= RETURN_MS * self.stretch.min(4));
        self.stretch = match returned {
            true => (self.stretch * 2).min(MAX_STRETCH),
            false => 1,
        };
        self.level = level;
        self.rising = None;
        self.quiet_since_ms = None;
    }

    fn dwell_ms(&self) -> u64 {
        let base = match self.level {
            3 => self.fall_ms.max(FALL_FROM_CRITICAL_MS),
            _ => self.fall_ms,
        };
        base * self.stretch
    }
}

/// What is remembered of one device's heat.
#[derive(Debug, Clone)]
struct Heat {
    risk: Ema,
    margin: Ema,
    integral: f64,
    thermal_bits: VecDeque<(u64, bool)>,
}

impl Heat {
    fn new() -> Self {
        Self {
            risk: Ema::asymmetric(1_000, 10_000),
            // Smoothed over the steps of an integer thermometer, but a margin that
            // vanishes is believed within a few samples.
            margin: Ema::asymmetric(2_000, 200),
            integral: 0.0,
            thermal_bits: VecDeque::new(),
        }
    }

    /// Share of the last second in which the device said that heat slows it down.
    fn throttled_ratio(&mut self, slowed: bool, now_ms: u64) -> f64 {
        self.thermal_bits.push_back((now_ms, slowed));
        while let Some(&(at, _)) = self.thermal_bits.front()
            && now_ms.saturating_sub(at) > 1_000
        {
            self.thermal_bits.pop_front();
        }
        let slowed = self.thermal_bits.iter().filter(|(_, s)| *s).count();
        slowed as f64 / self.thermal_bits.len() as f64
    }

    /// Share of traffic to shed so that the margin settles at `target`: proportional part
    /// for now, integral part for a load that stays.
    fn share(&mut self, margin: f64, target: f64, elapsed_ms: u64, now_ms: u64) -> f64 {
        let error = target - self.margin.update(margin, now_ms);
        let elapsed_s = elapsed_ms.min(GAP_MS) as f64 / 1000.0;
        self.integral = (self.integral + error * elapsed_s / 200.0).clamp(0.0, 1.0);
        (0.12 * error + self.integral).clamp(0.0, 1.0)
    }
}

/// Which share of the work should go elsewhere, by device, 0 to 1.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shares {
    /// What concerns the whole host: its power cap, budgets, battery and memory.
    host: f32,
    /// The same or what the device's own heat or its silence asks for, the larger.
    devices: BTreeMap<String, f32>,
}

impl Shares {
    /// Of one device; of one without a thermometer, or that is not known, the host's alone.
    /// The largest over all devices is the host's degrade ratio.
    pub fn of(&self, device_id: &str) -> f32 {
        self.devices.get(device_id).copied().unwrap_or(self.host)
    }
}

/// Index of each cause's gate.
#[derive(Debug, Clone, Copy)]
enum Cause {
    Thermal,
    Power,
    Budget,
    Battery,
    Memory,
    Sensor,
}

const STATES: [MetabolicState; 4] = [
    MetabolicState::Nominal,
    MetabolicState::Elevated,
    MetabolicState::Constrained,
    MetabolicState::Critical,
];

/// The state machine. One per host.
#[derive(Debug, Clone)]
pub struct StateMachine {
    thresholds: Thresholds,
    profile: Profile,
    gates: [Gate; 6],
    heat: BTreeMap<String, Heat>,
    power_ratio: Ema,
    over_cap_since_ms: Option<u64>,
    burns: Vec<Burn>,
    oom_kills: Option<u64>,
    seen_ms: Option<u64>,
    level: u8,
    changed_ms: u64,
    transitions: [[u64; 4]; 4],
    shares: Shares,
}

/// What one look at the heat of all devices gave.
#[derive(Debug, Default)]
struct HeatView {
    evidence: Evidence,
    risk: f64,
    share: f64,
    /// The share of each device that has or had a margin.
    shares: BTreeMap<String, f64>,
    /// Smallest margin over all devices that have one.
    margin: Option<f64>,
    /// The same as it is expected to become.
    margin_soon: Option<f64>,
}

/// How fast one budget is used.
#[derive(Debug, Clone)]
struct Burn {
    used: f64,
    at_ms: u64,
    per_s: Ema,
}

impl Burn {
    /// Use per second, smoothed. A smaller sum than before is a new window of the budget:
    /// the rate stays what it was.
    fn update(&mut self, used: f64, now_ms: u64) -> f64 {
        let elapsed_ms = now_ms.saturating_sub(self.at_ms);
        if elapsed_ms >= 1_000 {
            if used >= self.used {
                let rate = (used - self.used) * 1e3 / elapsed_ms as f64;
                self.per_s.update(rate, now_ms);
            }
            self.used = used;
            self.at_ms = now_ms;
        }
        self.per_s.value().unwrap_or(0.0)
    }
}

impl StateMachine {
    /// A machine that has seen nothing; nominal.
    pub fn new(thresholds: Thresholds, profile: Profile) -> Self {
        let mut gates = [const { None }; 6].map(|_: Option<()>| Gate::new(FALL_MS));
        gates[Cause::Memory as usize] = Gate::new(FALL_MEMORY_MS);
        Self {
            thresholds,
            profile,
            gates,
            heat: BTreeMap::new(),
            power_ratio: Ema::new(1_000),
            over_cap_since_ms: None,
            burns: Vec::new(),
            oom_kills: None,
            seen_ms: None,
            level: 0,
            changed_ms: 0,
            transitions: [[0; 4]; 4],
            shares: Shares::default(),
        }
    }

    /// What of each device's work should go elsewhere, as of the last readings.
    pub fn shares(&self) -> &Shares {
        &self.shares
    }

    /// How often the state went from the first index to the second.
    pub fn transitions(&self) -> [[u64; 4]; 4] {
        self.transitions
    }

    /// Takes one set of readings; `now_ms` never decreases.
    pub fn observe(&mut self, vitals: &Vitals<'_>, now_ms: u64) -> Metabolism {
        let trusting = self.seen_ms.is_none();
        let elapsed_ms = now_ms.saturating_sub(self.seen_ms.unwrap_or(now_ms));
        if elapsed_ms > GAP_MS {
            // Nobody looked: the silence is not evidence of quiet.
            for gate in &mut self.gates {
                gate.quiet_since_ms = None;
                gate.rising = None;
            }
        }
        self.seen_ms = Some(now_ms);

        let heat = self.thermal(vitals, now_ms, elapsed_ms);
        let (power, power_share, power_ratio) = self.power(vitals, now_ms);
        let (budget, budget_share) = self.budget(vitals.budgets, now_ms);
        let (battery, battery_share) = self.battery(vitals.readings.supply.as_ref());
        let (memory, memory_share) = self.memory(vitals);
        let (sensor, sensor_share) = Self::sensor(vitals, now_ms);

        let evidence = [heat.evidence, power, budget, battery, memory, sensor];
        for (gate, evidence) in self.gates.iter_mut().zip(evidence) {
            gate.step(evidence, now_ms, trusting);
        }
        self.settle(now_ms, trusting);

        let of_host = [power_share, budget_share, battery_share, memory_share];
        let of_host = of_host.into_iter().fold(0.0, f64::max);
        let share = of_host.max(heat.share).max(sensor_share);
        self.shares = shares(&heat, of_host, sensor_share, vitals.readings, now_ms);
        Metabolism {
            state: STATES[usize::from(self.level)],
            causes: self.causes(),
            risk: heat.risk as f32,
            degrade_ratio: share as f32,
            speculation: self.speculation(&heat, power_ratio),
            since_ms: now_ms.saturating_sub(self.changed_ms),
        }
    }

    /// The combined level is that of the worst cause.
    fn settle(&mut self, now_ms: u64, trusting: bool) {
        let worst = self.gates.iter().map(|gate| gate.level).max().unwrap_or(0);
        if worst != self.level {
            self.transitions[usize::from(self.level)][usize::from(worst)] += 1;
            self.level = worst;
            self.changed_ms = now_ms;
        } else if trusting {
            self.changed_ms = now_ms;
        }
    }

    fn causes(&self) -> Causes {
        let holds = |cause: Cause| self.gates[cause as usize].level > 0;
        Causes {
            thermal: holds(Cause::Thermal),
            power: holds(Cause::Power),
            budget: holds(Cause::Budget),
            battery: holds(Cause::Battery),
            memory: holds(Cause::Memory),
            sensor: holds(Cause::Sensor),
        }
    }

    /// Speculation spends work that may be thrown away: welcome with headroom, harmful
    /// without, and without knowledge the host has no opinion.
    fn speculation(&self, heat: &HeatView, power_ratio: Option<f64>) -> SpeculationHint {
        let roomy = heat
            .margin
            .is_some_and(|m| m > self.thresholds.margin_span_celsius)
            && heat.margin_soon.is_none_or(|m| m > ROOMY_SOON_CELSIUS)
            && power_ratio.is_none_or(|ratio| ratio < 0.8);
        match self.level {
            0 if roomy => SpeculationHint::Prefer,
            0 | 1 => SpeculationHint::Neutral,
            _ => SpeculationHint::Avoid,
        }
    }

    fn thermal(&mut self, vitals: &Vitals<'_>, now_ms: u64, elapsed_ms: u64) -> HeatView {
        let (span, target) = match self.profile {
            // The share starts where `constrained` starts: quality first.
            Profile::Datacenter => (self.thresholds.margin_span_celsius, 3.0),
            Profile::Edge => (self.thresholds.margin_span_celsius, 5.0),
            // Without a fan heat leaves slowly: begin twice as early.
            Profile::Mcu => (2.0 * self.thresholds.margin_span_celsius, 10.0),
        };
        let mut view = HeatView::default();
        for (id, device) in &vitals.readings.devices {
            let Some(margin) = believed_margin(device, now_ms) else {
                continue;
            };
            let heat = self.heat.entry(id.clone()).or_insert_with(Heat::new);
            let bits = fresh_throttle(device, now_ms);
            let slowed = bits.thermal_software || bits.thermal_hardware;
            let outlook = vitals.forecasts.outlook(id);
            let soon = outlook.map(|o| o.margin_celsius);
            let risk = raw_risk(margin, soon, heat.throttled_ratio(slowed, now_ms), span);
            let risk = heat.risk.update(risk, now_ms);
            let share = heat.share(margin, target, elapsed_ms, now_ms);

            view.evidence.weigh(&self.thresholds.risk, risk, 3);
            view.evidence.join(slowdown_ahead(outlook));
            if margin <= self.thresholds.critical_margin_celsius {
                view.evidence.claim(3);
            }
            if bits.thermal_hardware {
                view.evidence.insist(3);
            }
            view.risk = view.risk.max(risk);
            let share = if bits.thermal_hardware { 1.0 } else { share };
            view.share = view.share.max(share);
            view.shares.insert(id.clone(), share);
            view.margin = Some(view.margin.map_or(margin, |m: f64| m.min(margin)));
            let soon = soon.unwrap_or(margin);
            view.margin_soon = Some(view.margin_soon.map_or(soon, |m: f64| m.min(soon)));
        }
        view
    }

    /// A device at its own limit is slowed by its driver, gently and by design: that may
    /// not be worse than elevated in a data centre, where prefill lives there. The
    /// operator's cap is a promise to somebody and climbs the whole ladder.
    fn power(&mut self, vitals: &Vitals<'_>, now_ms: u64) -> (Evidence, f64, Option<f64>) {
        let own_limit_ceiling = match self.profile {
            Profile::Datacenter => 1,
            Profile::Edge | Profile::Mcu => 2,
        };
        let mut evidence = Evidence::default();
        let mut own_ratio: Option<f64> = None;
        for device in vitals.readings.devices.values() {
            let fresh = |s| {
                device
                    .last(s)
                    .filter(|r| r.is_fresh(now_ms))
                    .map(|r| r.value)
            };
            if let (Some(watts), Some(limit)) = (fresh(Signal::Power), fresh(Signal::PowerLimit)) {
                evidence.weigh(&self.thresholds.power, watts / limit, own_limit_ceiling);
                own_ratio = Some(own_ratio.map_or(watts / limit, |r: f64| r.max(watts / limit)));
            }
            let bits = fresh_throttle(device, now_ms);
            if bits.power_brake {
                evidence.insist(3);
            }
            if bits.undervoltage {
                evidence.claim(2);
            }
            if bits.power_cap && self.profile != Profile::Datacenter {
                evidence.claim(1);
            }
        }
        let cap_ratio = cap_ratio(vitals, now_ms).map(|r| self.power_ratio.update(r, now_ms));
        if let Some(ratio) = cap_ratio {
            evidence.join(self.over_cap(ratio, now_ms));
        }
        let share = cap_ratio.map_or(0.0, |ratio| ramp(ratio, &self.thresholds.power));
        let worst = match (own_ratio, cap_ratio) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        (evidence, share, worst)
    }

    /// The cap's ladder. Its last step needs two seconds in all: a prefill that ends at
    /// once breaks no promise.
    fn over_cap(&mut self, ratio: f64, now_ms: u64) -> Evidence {
        let mut evidence = Evidence::default();
        evidence.weigh(&self.thresholds.power, ratio, 3);
        let since = match evidence.enter == 3 {
            true => *self.over_cap_since_ms.get_or_insert(now_ms),
            false => {
                self.over_cap_since_ms = None;
                now_ms
            }
        };
        if now_ms.saturating_sub(since) < OVER_CAP_MS {
            evidence.enter = evidence.enter.min(2);
        }
        evidence
    }

    fn budget(&mut self, budgets: &[Budget], now_ms: u64) -> (Evidence, f64) {
        let mut evidence = Evidence::default();
        let mut share = 0.0f64;
        self.burns.resize(
            budgets.len(),
            Burn {
                used: f64::INFINITY,
                at_ms: 0,
                per_s: Ema::new(BURN_TAU_MS),
            },
        );
        // A tenant's empty purse is that tenant's matter; only the host's own budgets say
        // something about the host. Watts are power, not a purse.
        let ours = |b: &&Budget| b.scope == "host" && b.unit != BudgetUnit::Watts;
        for (budget, burn) in budgets.iter().zip(&mut self.burns) {
            let Some(used) = used_ratio(budget).filter(|_| ours(&budget)) else {
                continue;
            };
            evidence.weigh(&self.thresholds.budget, used, 3);
            let rate = burn.update(budget.used, now_ms);
            evidence.join(spent_too_early(budget, rate));
            share = share.max(ramp(used, &self.thresholds.budget));
        }
        (evidence, share)
    }

    fn battery(&self, supply: Option<&Supply>) -> (Evidence, f64) {
        let mut evidence = Evidence::default();
        let Some(supply) = supply.filter(|s| s.on_battery) else {
            return (evidence, 0.0);
        };
        if self.profile == Profile::Datacenter {
            // What looks like a battery there is a cache module or a UPS on its own plan.
            return (evidence, 0.0);
        }
        let mut share = 0.0f64;
        evidence.claim(1);
        if let Some(charge) = supply.charge_ratio {
            // A firmware's charge is whole percents; 32 bits hold them a little short.
            let drained = 1.0 - (f64::from(charge) * 1000.0).round() / 1000.0;
            evidence.weigh(&self.thresholds.battery, drained, 3);
            share = share.max(((drained - 0.5) / 0.4).clamp(0.0, 1.0));
        }
        if supply
            .time_left_s
            .is_some_and(|left| left < SHORT_BATTERY_S)
        {
            evidence.claim(2);
            share = share.max(0.5);
        }
        (evidence, share)
    }

    fn memory(&mut self, vitals: &Vitals<'_>) -> (Evidence, f64) {
        let mut evidence = Evidence::default();
        let mut share = 0.0f64;
        let pressure = vitals.pressure;
        let used = match (pressure.memory_used_bytes, pressure.memory_limit_bytes) {
            (Some(used), Some(limit)) if limit > 0 => Some(used as f64 / limit as f64),
            _ => None,
        };
        let limits = &self.thresholds;
        for (value, ladder) in [
            (used, &limits.memory_used),
            (pressure.kv_used_ratio.map(f64::from), &limits.kv_used),
            (
                pressure.memory_some_ratio.map(f64::from),
                &limits.memory_some,
            ),
            (
                pressure.memory_full_ratio.map(f64::from),
                &limits.memory_full,
            ),
        ] {
            let Some(value) = value else { continue };
            evidence.weigh(ladder, value, 3);
            share = share.max(ramp(value, ladder));
        }
        let kills = vitals.readings.oom_kills;
        if let (Some(before), Some(now)) = (self.oom_kills, kills)
            && now > before
        {
            evidence.insist(3);
            share = 1.0;
        }
        self.oom_kills = kills.or(self.oom_kills);
        (evidence, share)
    }

    /// Elevated when a device that could be forecast no longer can; constrained when a
    /// thermometer that existed is silent or stands still against all evidence; critical
    /// when no device that had one answers at all, because then the host steers blind.
    fn sensor(vitals: &Vitals<'_>, now_ms: u64) -> (Evidence, f64) {
        let mut evidence = Evidence::default();
        let mut sighted = 0;
        let mut silent = 0;
        let mut dead = 0;
        for (id, device) in &vitals.readings.devices {
            let Some(margin) = device.last(Signal::ThermalMargin) else {
                continue;
            };
            sighted += 1;
            if is_silent(device, margin, now_ms) {
                silent += 1;
            } else if vitals.forecasts.is_lost(id) {
                evidence.claim(1);
            }
            if device.lost || now_ms.saturating_sub(margin.at_ms) > GONE_MS {
                dead += 1;
            }
        }
        if silent == 0 {
            return (evidence, 0.0);
        }
        evidence.claim(if dead == sighted { 3 } else { 2 });
        // Half the traffic can do without the device whose heat is unknown.
        (evidence, if dead == sighted { 1.0 } else { 0.5 })
    }
}

/// A thermometer that existed does not answer, or stands still against all evidence.
fn is_silent(device: &DeviceReadings, margin: &Reading, now_ms: u64) -> bool {
    device.lost || device.suspect || !margin.is_fresh(now_ms)
}

/// The share of each device: what concerns all, its own heat, and its silence, the largest.
fn shares(
    heat: &HeatView,
    of_host: f64,
    of_silence: f64,
    readings: &Readings,
    now_ms: u64,
) -> Shares {
    let devices = heat.shares.iter().map(|(id, &of_heat)| {
        let silent = readings.devices.get(id).is_some_and(|device| {
            let margin = device.last(Signal::ThermalMargin);
            margin.is_some_and(|margin| is_silent(device, margin, now_ms))
        });
        let of_silence = if silent { of_silence } else { 0.0 };
        (id.clone(), of_host.max(of_heat).max(of_silence) as f32)
    });
    Shares {
        host: of_host as f32,
        devices: devices.collect(),
    }
}

/// The margin as far as it can be known: the last one, minus what a device under load may
/// have warmed since it was read. `None` for a device that never had one.
fn believed_margin(device: &DeviceReadings, now_ms: u64) -> Option<f64> {
    let last = device.last(Signal::ThermalMargin)?;
    if last.is_fresh(now_ms) && !device.lost {
        return Some(last.value);
    }
    let blind_s = now_ms.saturating_sub(last.at_ms).min(GONE_MS) as f64 / 1000.0;
    Some(last.value - BLIND_HEATING_CELSIUS_PER_S * blind_s)
}

fn fresh_throttle(device: &DeviceReadings, now_ms: u64) -> ThrottleReasons {
    device.throttle(now_ms).unwrap_or_default()
}

/// A slowdown that the learned forecast sees coming.
fn slowdown_ahead(outlook: Option<&Outlook>) -> Evidence {
    let mut evidence = Evidence::default();
    let learned = outlook.filter(|o| o.method == Method::FilterBank);
    match learned.and_then(|o| o.time_to_throttle_s) {
        Some(left) if left < SOON_S => evidence.claim(2),
        Some(left) if left < NOT_SOON_S => evidence.hold = 2,
        _ => {}
    }
    evidence
}

/// A budget that at this rate is spent before its window ends.
fn spent_too_early(budget: &Budget, per_s: f64) -> Evidence {
    let mut evidence = Evidence::default();
    if let Some(left_s) = budget.window_left_s
        && budget.limit > 0.0
    {
        let by_then = (budget.used + per_s * f64::from(left_s)) / budget.limit;
        let ladder = Ladder::new([1.0, NEVER, NEVER], 0.1);
        evidence.weigh(&ladder, by_then, 1);
    }
    evidence
}

/// Risk by margin, by the margin that is foreseen, or by the device's own word that heat
/// slows it, the largest.
fn raw_risk(margin: f64, soon: Option<f64>, throttled: f64, span: f64) -> f64 {
    let by_margin = |margin: f64| (1.0 - margin / span).clamp(0.0, 1.0);
    let foreseen = soon.map_or(0.0, |soon| FORESEEN * by_margin(soon));
    let slowed = match throttled {
        t if t > 0.0 => 0.6 + 0.4 * t,
        _ => 0.0,
    };
    by_margin(margin).max(foreseen).max(slowed)
}

/// Power drawn over the operator's cap or over the host's budget in watts, the worse.
fn cap_ratio(vitals: &Vitals<'_>, now_ms: u64) -> Option<f64> {
    let budget = vitals
        .budgets
        .iter()
        .filter(|b| b.scope == "host" && b.unit == BudgetUnit::Watts)
        .filter_map(used_ratio)
        .reduce(f64::max);
    let cap = vitals.power_cap_watts.filter(|cap| *cap > 0.0);
    let drawn = cap.and_then(|cap| Some(total_watts(vitals.readings, now_ms)? / cap));
    match (budget, drawn) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}

/// Power of the whole machine: a sensor for the whole counts alone, otherwise the sum of
/// the parts.
fn total_watts(readings: &Readings, now_ms: u64) -> Option<f64> {
    let watts = |kind_is: fn(DeviceKind) -> bool| {
        readings
            .devices
            .values()
            .filter(|d| kind_is(d.kind))
            .filter_map(|d| d.last(Signal::Power).filter(|r| r.is_fresh(now_ms)))
            .map(|r| r.value)
            .reduce(|a, b| a + b)
    };
    watts(|kind| kind == DeviceKind::Host)
        .or_else(|| watts(|kind| !matches!(kind, DeviceKind::Host | DeviceKind::External)))
}

fn used_ratio(budget: &Budget) -> Option<f64> {
    let ratio = budget.used / budget.limit;
    match ratio.is_finite() {
        true => Some(ratio),
        // A budget of nothing is spent.
        false => (budget.limit == 0.0).then_some(1.0),
    }
}

/// 0 at the first threshold of a ladder, 1 at the last finite one or at 1.
fn ramp(value: f64, ladder: &Ladder) -> f64 {
    let finite = || ladder.enter.into_iter().filter(|t| t.is_finite());
    let start = finite().next().unwrap_or(1.0);
    let end = if ladder.enter[2].is_finite() {
        ladder.enter[2]
    } else {
        1.0
    };
    ((value - start) / (end - start)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plant::{Plant, PlantSpec, Random};
    use crate::stats::Recorder;
    use crate::stuck::StuckWatch;
    use homeostat_hooks::Origin;
    use std::collections::BTreeSet;

    /// A machine with one GPU that slows down at 87 °C, sampled every 100 ms.
    struct Bench {
        machine: StateMachine,
        readings: Readings,
        pressure: Pressure,
        budgets: Vec<Budget>,
        cap: Option<f64>,
        forecasts: Forecasters,
        /// Power that is planned for the GPU.
        plan: Vec<f64>,
        foresees: bool,
        now_ms: u64,
    }

    impl Bench {
        fn new(profile: Profile) -> Self {
            Self {
                machine: StateMachine::new(Thresholds::default(), profile),
                readings: Readings::default(),
                pressure: Pressure::default(),
                budgets: Vec::new(),
                cap: None,
                forecasts: Forecasters::default(),
                plan: Vec::new(),
                foresees: true,
                now_ms: 0,
            }
        }

        fn record(&mut self, signal: Signal, value: f64) {
            let reading = Reading::instant(value, self.now_ms, 100);
            let gpu = self.readings.device("gpu.0", DeviceKind::Gpu);
            gpu.record(signal, reading).expect("plausible");
        }

        fn at(&mut self, celsius: f64) -> Metabolism {
            self.record(Signal::ThermalMargin, 87.0 - celsius);
            self.observe()
        }

        fn observe(&mut self) -> Metabolism {
            let metabolism = self.machine.observe(
                &Vitals {
                    readings: &self.readings,
                    pressure: &self.pressure,
                    budgets: &self.budgets,
                    power_cap_watts: self.cap,
                    forecasts: &self.forecasts,
                },
                self.now_ms,
            );
            self.now_ms += 100;
            metabolism
        }

        /// Holds a condition and gives the last answer.
        fn hold(
            &mut self,
            seconds: f64,
            mut one: impl FnMut(&mut Self) -> Metabolism,
        ) -> Metabolism {
            let ticks = (seconds * 10.0) as usize;
            let mut last = one(self);
            for _ in 1..ticks {
                last = one(self);
            }
            last
        }

        fn changes(&self) -> u64 {
            self.machine.transitions().iter().flatten().sum()
        }
    }

    #[test]
    fn at_86_degrees_the_machine_is_constrained_by_heat_and_at_50_it_is_nominal() {
        for profile in [Profile::Datacenter, Profile::Edge, Profile::Mcu] {
            let hot = Bench::new(profile).at(86.0);
            assert!(
                hot.state >= MetabolicState::Constrained,
                "{profile:?}: {hot:?}"
            );
            assert!(hot.causes.thermal && hot.degrade_ratio > 0.0, "{hot:?}");
            assert_eq!(hot.speculation, SpeculationHint::Avoid);
            let cool = Bench::new(profile).at(50.0);
            assert_eq!(cool.state, MetabolicState::Nominal);
            assert_eq!(cool.causes, Causes::default());
            assert_eq!((cool.risk > 0.0, cool.degrade_ratio), (false, 0.0));
        }
    }

    #[test]
    fn heat_raises_the_state_within_seconds_and_cooling_lowers_it_step_by_step() {
        let mut bench = Bench::new(Profile::Edge);
        bench.hold(5.0, |b| b.at(50.0));
        let hot = bench.hold(5.0, |b| b.at(86.0));
        assert_eq!(hot.state, MetabolicState::Critical);
        let cooled_at = bench.now_ms;
        let mut seen = vec![(hot.state, cooled_at)];
        for _ in 0..1_000 {
            let state = bench.at(50.0).state;
            if state != seen.last().expect("not empty").0 {
                seen.push((state, bench.now_ms));
            }
        }
        let states: Vec<_> = seen.iter().map(|(state, _)| *state).collect();
        assert_eq!(
            states,
            [
                MetabolicState::Critical,
                MetabolicState::Constrained,
                MetabolicState::Elevated,
                MetabolicState::Nominal
            ]
        );
        let waits: Vec<u64> = seen.windows(2).map(|w| w[1].1 - w[0].1).collect();
        assert!(
            waits[0] >= 20_000 && waits[1] >= 10_000 && waits[2] >= 10_000,
            "{waits:?}"
        );
    }

    #[test]
    fn one_hot_sample_among_cool_ones_changes_nothing() {
        let mut bench = Bench::new(Profile::Edge);
        for i in 0..600 {
            bench.at(if i % 10 == 9 { 86.0 } else { 50.0 });
        }
        assert_eq!(bench.changes(), 0);
    }

    #[test]
    fn a_value_that_swings_inside_the_band_changes_nothing_from_either_side() {
        // Risk between 0.47 and 0.59: above the exit and below the entry of elevated.
        let swing = |i: u64| {
            if (i / 7).is_multiple_of(2) {
                79.1
            } else {
                80.8
            }
        };
        let mut below = Bench::new(Profile::Edge);
        below.at(50.0);
        for i in 0..36_000 {
            below.at(swing(i));
        }
        assert_eq!(below.changes(), 0);
        let mut above = Bench::new(Profile::Edge);
        above.hold(3.0, |b| b.at(82.0));
        let entered = above.changes();
        for i in 0..36_000 {
            assert_eq!(above.at(swing(i)).state, MetabolicState::Elevated);
        }
        assert_eq!(above.changes(), entered);
    }

    /// Two-node heat: a die on a sink; the load is drawn anew every 3 to 60 s.
    fn random_hour(seed: u64, mut each: impl FnMut(f64)) {
        let mut random = Random::new(seed);
        let (mut die, mut sink, mut watts, mut until) = (50.0f64, 45.0f64, 0.0, 0.0);
        for tick in 0..36_000 {
            let now_s = f64::from(tick) / 10.0;
            if now_s >= until {
                watts = 110.0 + 590.0 * random.unit();
                until = now_s + 3.0 + 57.0 * random.unit();
            }
            let flow = (die - sink) / 0.03;
            die += (watts - flow) / 60.0 * 0.1;
            sink += (flow - (sink - 38.0) / 0.055) / 1_100.0 * 0.1;
            each(die.floor());
        }
    }

    #[test]
    fn an_hour_of_random_load_changes_the_state_at_most_sixty_times() {
        for seed in 1..=8 {
            let mut bench = Bench::new(Profile::Edge);
            let mut states = BTreeSet::new();
            let (mut raw_changes, mut was_hot, mut hottest) = (0, false, 0.0f64);
            random_hour(seed, |celsius| {
                states.insert(bench.at(celsius + 6.0).state);
                let hot = 87.0 - celsius - 6.0 < 6.0;
                raw_changes += u64::from(hot != was_hot);
                was_hot = hot;
                hottest = hottest.max(celsius + 6.0);
            });
            println!(
                "seed {seed}: {} state changes in an hour (a bare threshold: {raw_changes}), \
                 states {states:?}, hottest {hottest} °C",
                bench.changes()
            );
            assert!(bench.changes() <= 60, "seed {seed}: {}", bench.changes());
            assert!(states.len() > 1, "seed {seed}: the load never mattered");
        }
    }

    #[test]
    fn the_same_readings_give_the_same_states() {
        let trace = |seed| {
            let mut bench = Bench::new(Profile::Edge);
            let mut all = Vec::new();
            random_hour(seed, |celsius| all.push(bench.at(celsius)));
            all
        };
        assert_eq!(trace(42), trace(42));
    }

    #[test]
    fn under_the_worst_oscillation_the_quiet_time_grows_until_it_holds() {
        // Cool just long enough to leave, hot just long enough to enter, for an hour.
        let mut bench = Bench::new(Profile::Edge);
        let mut cooling = false;
        let mut seconds = 0u64;
        for _ in 0..36_000 {
            let state = bench.at(if cooling { 50.0 } else { 83.0 }).state;
            seconds += 1;
            match (cooling, state) {
                (false, MetabolicState::Nominal) | (true, MetabolicState::Elevated) => {}
                _ => cooling = !cooling,
            }
        }
        assert!(seconds == 36_000);
        println!(
            "worst oscillation: {} state changes in an hour",
            bench.changes()
        );
        assert!(bench.changes() <= 60, "{}", bench.changes());
    }

    #[test]
    fn a_lost_thermometer_is_a_cause_and_never_reads_as_cool() {
        let mut bench = Bench::new(Profile::Edge);
        bench.hold(3.0, |b| b.at(60.0));
        let silent = bench.hold(2.0, Bench::observe);
        assert!(silent.causes.sensor, "{silent:?}");
        assert_eq!(silent.state, MetabolicState::Constrained);
        let blind = bench.hold(25.0, Bench::observe);
        assert!(blind.risk > silent.risk, "the margin is believed to shrink");
        assert!(blind.degrade_ratio >= 0.5);
        let gone = bench.hold(30.0, Bench::observe);
        assert_eq!(
            gone.state,
            MetabolicState::Critical,
            "no device is left to see"
        );
        assert!(
            bench.hold(5.0, |b| b.at(60.0)).causes.sensor,
            "ten good seconds are asked"
        );
        let back = bench.hold(120.0, |b| b.at(60.0));
        assert_eq!(
            (back.state, back.causes.sensor),
            (MetabolicState::Nominal, false)
        );
    }

    #[test]
    fn a_machine_that_never_had_a_thermometer_is_nominal_without_a_hint() {
        let mut bench = Bench::new(Profile::Edge);
        let calm = bench.hold(60.0, Bench::observe);
        assert_eq!(calm.state, MetabolicState::Nominal);
        assert_eq!(calm.causes, Causes::default());
        assert_eq!(
            calm.speculation,
            SpeculationHint::Neutral,
            "it does not know"
        );
        assert_eq!(calm.since_ms, 59_900);
    }

    #[test]
    fn the_hardware_s_own_word_needs_no_waiting() {
        let mut bench = Bench::new(Profile::Datacenter);
        bench.hold(3.0, |b| b.at(50.0));
        let now_ms = bench.now_ms;
        let gpu = bench.readings.device("gpu.0", DeviceKind::Gpu);
        let reasons = ThrottleReasons {
            thermal_hardware: true,
            ..ThrottleReasons::default()
        };
        gpu.record_throttle(reasons, now_ms);
        let slowed = bench.at(50.0);
        assert_eq!(slowed.state, MetabolicState::Critical);
        assert_eq!(slowed.degrade_ratio, 1.0);
    }

    #[test]
    fn the_share_grows_with_heat_and_while_heat_stays() {
        let share = |celsius, seconds| {
            Bench::new(Profile::Edge)
                .hold(seconds, |b| b.at(celsius))
                .degrade_ratio
        };
        let by_heat: Vec<f32> = [80.0, 83.0, 85.0, 87.0].map(|c| share(c, 5.0)).to_vec();
        assert!(by_heat.windows(2).all(|w| w[0] < w[1]), "{by_heat:?}");
        assert!(share(85.0, 60.0) > share(85.0, 5.0));
    }

    #[test]
    fn one_hot_device_gives_up_its_own_work_and_a_cap_is_everybodys() {
        let mut bench = Bench::new(Profile::Edge);
        let both = |bench: &mut Bench| {
            let cool = Reading::instant(40.0, bench.now_ms, 100);
            let other = bench.readings.device("gpu.1", DeviceKind::Gpu);
            other
                .record(Signal::ThermalMargin, cool)
                .expect("plausible");
            bench.at(86.0)
        };
        let hot = bench.hold(5.0, both);
        let share = |bench: &Bench, id| bench.machine.shares().of(id);
        assert!(share(&bench, "gpu.0") > 0.0);
        assert_eq!(
            share(&bench, "gpu.0"),
            hot.degrade_ratio,
            "the worst counts"
        );
        assert_eq!((share(&bench, "gpu.1"), share(&bench, "npu.0")), (0.0, 0.0));
        bench.budgets = vec![Budget {
            scope: "host".to_owned(),
            limit: 1_000.0,
            used: 900.0,
            ..Budget::default()
        }];
        bench.hold(1.0, both);
        let cool = share(&bench, "gpu.1");
        assert!(cool > 0.0 && cool == share(&bench, "npu.0"));
        // Its thermometer falls silent: half the work can do without it.
        bench.budgets.clear();
        let alone = bench.hold(2.0, |b| b.at(50.0));
        assert_eq!((share(&bench, "gpu.1"), alone.causes.sensor), (0.5, true));
        assert!(share(&bench, "gpu.0") < 0.5);
    }

    #[test]
    fn a_board_at_its_own_power_limit_is_normal_in_a_data_centre_but_a_cap_is_a_promise() {
        let full_power = |bench: &mut Bench| {
            bench.record(Signal::Power, 699.0);
            bench.record(Signal::PowerLimit, 700.0);
            bench.at(50.0)
        };
        let mut bench = Bench::new(Profile::Datacenter);
        let own = bench.hold(10.0, full_power);
        assert_eq!(own.state, MetabolicState::Elevated);
        assert_eq!(own.degrade_ratio, 0.0);
        bench.cap = Some(600.0);
        let capped = bench.hold(10.0, full_power);
        assert_eq!(capped.state, MetabolicState::Critical);
        assert!(capped.causes.power && capped.degrade_ratio == 1.0);
    }

    #[test]
    fn a_spent_budget_of_the_host_is_critical_and_a_tenant_s_is_not_the_host_s_matter() {
        let budget = |scope: &str, used| Budget {
            scope: scope.to_owned(),
            limit: 1_000.0,
            used,
            ..Budget::default()
        };
        for (used, state) in [
            (700.0, MetabolicState::Nominal),
            (800.0, MetabolicState::Elevated),
            (950.0, MetabolicState::Constrained),
            (1_000.0, MetabolicState::Critical),
        ] {
            let mut bench = Bench::new(Profile::Datacenter);
            bench.budgets = vec![budget("host", used), budget("tenant-a", 5_000.0)];
            let seen = bench.hold(2.0, Bench::observe);
            assert_eq!(seen.state, state, "{used} of 1000");
            assert_eq!(seen.causes.budget, state > MetabolicState::Nominal);
        }
    }

    #[test]
    fn on_battery_the_edge_saves_and_the_data_centre_does_not_care() {
        let supply = |charge| Supply {
            on_battery: true,
            charge_ratio: Some(charge),
            ..Supply::default()
        };
        for (charge, state) in [
            (0.9, MetabolicState::Elevated),
            (0.3, MetabolicState::Constrained),
            (0.1, MetabolicState::Critical),
        ] {
            let mut bench = Bench::new(Profile::Edge);
            bench.readings.supply = Some(supply(charge));
            let seen = bench.hold(1.0, Bench::observe);
            assert_eq!((seen.state, seen.causes.battery), (state, true), "{charge}");
            let mut bench = Bench::new(Profile::Datacenter);
            bench.readings.supply = Some(supply(charge));
            assert_eq!(bench.observe().state, MetabolicState::Nominal);
        }
        let mut bench = Bench::new(Profile::Edge);
        bench.readings.supply = Some(Supply {
            time_left_s: Some(600),
            ..supply(0.9)
        });
        assert_eq!(bench.observe().state, MetabolicState::Constrained);
        bench.readings.supply = Some(Supply::default());
        let on_mains = bench.hold(25.0, Bench::observe);
        assert_eq!(on_mains.state, MetabolicState::Nominal);
    }

    #[test]
    fn memory_pressure_climbs_by_occupancy_and_stalls_and_an_oom_kill_is_critical() {
        let with = |pressure| {
            let mut bench = Bench::new(Profile::Datacenter);
            bench.pressure = pressure;
            bench.hold(1.0, Bench::observe)
        };
        let calm = Pressure {
            memory_used_bytes: Some(50),
            memory_limit_bytes: Some(100),
            kv_used_ratio: Some(0.5),
            memory_some_ratio: Some(0.0),
            memory_full_ratio: Some(0.0),
            cpu_some_ratio: Some(1.0),
            ..Pressure::default()
        };
        assert_eq!(
            with(calm).state,
            MetabolicState::Nominal,
            "CPU pressure is no cause"
        );
        let kv = |ratio| Pressure {
            kv_used_ratio: Some(ratio),
            ..calm
        };
        assert_eq!(with(kv(0.92)).state, MetabolicState::Elevated);
        assert_eq!(with(kv(0.98)).state, MetabolicState::Constrained);
        let stalled = Pressure {
            memory_full_ratio: Some(0.25),
            ..calm
        };
        assert_eq!(with(stalled).state, MetabolicState::Critical);
        assert!(with(stalled).causes.memory);
        let mut bench = Bench::new(Profile::Datacenter);
        bench.readings.oom_kills = Some(4);
        assert_eq!(
            bench.observe().state,
            MetabolicState::Nominal,
            "those were before us"
        );
        bench.readings.oom_kills = Some(5);
        assert_eq!(bench.observe().state, MetabolicState::Critical);
    }

    #[test]
    fn a_gap_in_sampling_is_not_evidence_of_quiet() {
        let mut bench = Bench::new(Profile::Edge);
        bench.hold(2.0, |b| b.at(86.0));
        bench.now_ms += 600_000;
        let after = bench.at(50.0);
        assert_eq!(after.state, MetabolicState::Critical);
        assert_eq!(
            bench.hold(19.0, |b| b.at(50.0)).state,
            MetabolicState::Critical
        );
    }

    #[test]
    fn headroom_is_a_reason_to_speculate() {
        let mut bench = Bench::new(Profile::Edge);
        assert_eq!(bench.at(60.0).speculation, SpeculationHint::Prefer);
        assert_eq!(bench.at(75.0).speculation, SpeculationHint::Neutral);
        bench.record(Signal::Power, 650.0);
        bench.record(Signal::PowerLimit, 700.0);
        assert_eq!(bench.at(60.0).speculation, SpeculationHint::Neutral);
    }

    #[test]
    fn a_modelled_margin_is_believed_like_any_other() {
        let mut bench = Bench::new(Profile::Edge);
        let reading = Reading {
            origin: Origin::Modelled,
            ..Reading::instant(1.0, 0, 100)
        };
        let gpu = bench.readings.device("gpu.0", DeviceKind::Gpu);
        gpu.record(Signal::ThermalMargin, reading)
            .expect("plausible");
        assert!(bench.observe().state >= MetabolicState::Constrained);
    }

    impl Bench {
        /// Reads a simulated machine, forecasts and judges it, then lets 100 ms pass.
        fn watch(&mut self, plant: &mut Plant, work_watts: f64) -> Metabolism {
            self.now_ms = plant.now_ms();
            let gpu = self.readings.device("gpu.0", DeviceKind::Gpu);
            plant.write_to(gpu, 100).expect("plausible");
            let plans = BTreeMap::from([("gpu.0".to_owned(), self.plan.clone())]);
            if self.foresees {
                self.forecasts.observe(&self.readings, &plans, self.now_ms);
            }
            let metabolism = self.observe();
            plant.advance(100, work_watts);
            metabolism
        }

        /// Twenty minutes of loads long enough to warm the sink, after which the forecast is
        /// trained.
        fn train(&mut self, plant: &mut Plant) {
            let mut random = Random::new(9);
            for _ in 0..40 {
                let watts = random.between(0.0, 350.0);
                for _ in 0..300 {
                    self.watch(plant, watts);
                }
            }
            let outlook = self.forecasts.outlook("gpu.0").expect("trained");
            assert_eq!(outlook.method, Method::FilterBank);
        }
    }

    #[test]
    fn a_slowdown_that_is_foreseen_is_a_reason_before_it_is_there() {
        let run = |foresees: bool| {
            let mut bench = Bench::new(Profile::Edge);
            let mut plant = Plant::new(PlantSpec::linear(), 1);
            bench.train(&mut plant);
            if !foresees {
                bench.foresees = false;
                bench.forecasts = Forecasters::default();
            }
            for _ in 0..600 {
                bench.watch(&mut plant, 200.0);
            }
            // A load that the machine cannot bear for much more than a minute.
            bench.plan = vec![700.0];
            let warned = (0..1_800).find(|_| {
                bench.watch(&mut plant, 590.0).state == MetabolicState::Critical
                    || bench.machine.gates[Cause::Thermal as usize].level >= 2
            });
            let margin = 87.0 - plant.die_celsius();
            (f64::from(warned.expect("it gets hot")) / 10.0, margin)
        };
        let ((early_s, early), (late_s, late)) = (run(true), run(false));
        println!("constrained {early_s} s after the load with {early:.1} °C left by forecast");
        println!("constrained {late_s} s after the load with {late:.1} °C left without");
        assert!(early > late + 1.0 && early_s + 5.0 < late_s);
    }

    #[test]
    fn risk_is_attacked_in_a_second_and_released_in_ten() {
        let mut bench = Bench::new(Profile::Edge);
        bench.hold(5.0, |b| b.at(60.0));
        let up = bench.hold(1.0, |b| b.at(87.0)).risk;
        assert!((0.55..0.72).contains(&up), "{up}");
        bench.hold(10.0, |b| b.at(87.0));
        let down = bench.hold(10.0, |b| b.at(60.0)).risk;
        assert!((0.30..0.42).contains(&down), "{down}");
    }

    #[test]
    fn power_over_the_cap_is_critical_after_two_seconds_and_constrained_before() {
        let mut bench = Bench::new(Profile::Datacenter);
        bench.cap = Some(600.0);
        let drawing = |watts| {
            move |bench: &mut Bench| {
                bench.record(Signal::Power, watts);
                bench.observe()
            }
        };
        bench.hold(30.0, drawing(300.0));
        let spike = bench.hold(4.0, drawing(610.0));
        assert_eq!(
            spike.state,
            MetabolicState::Constrained,
            "the mean has just arrived"
        );
        let over = bench.hold(4.0, drawing(620.0));
        assert_eq!(over.state, MetabolicState::Critical);
    }

    #[test]
    fn a_budget_that_burns_too_fast_is_a_cause_long_before_it_is_spent() {
        let budget = |used, window_left_s| Budget {
            scope: "host".to_owned(),
            limit: 1_000.0,
            used,
            window_left_s: Some(window_left_s),
            ..Budget::default()
        };
        for (per_s, state) in [
            (0.2, MetabolicState::Nominal),
            (0.5, MetabolicState::Elevated),
        ] {
            let mut bench = Bench::new(Profile::Datacenter);
            let mut seen = Metabolism::default();
            for second in 0..300u32 {
                let used = per_s * f64::from(second);
                bench.budgets = vec![budget(used, 3_600 - second)];
                seen = bench.hold(1.0, Bench::observe);
            }
            assert_eq!(seen.state, state, "{per_s} a second of 1000 in an hour");
        }
    }

    #[test]
    fn a_thermometer_that_stands_still_while_the_power_moves_is_a_lost_one() {
        let mut bench = Bench::new(Profile::Edge);
        let mut plant = Plant::new(PlantSpec::linear(), 2);
        bench.train(&mut plant);
        let frozen = plant.clone();
        let mut watch = StuckWatch::default();
        let mut seen = Metabolism::default();
        for tick in 0..900u64 {
            let gpu = bench.readings.device("gpu.0", DeviceKind::Gpu);
            plant.write_to(gpu, 100).expect("plausible");
            let stuck = Reading::instant(87.0 - frozen.temperature(), plant.now_ms(), 100);
            gpu.record(Signal::ThermalMargin, stuck).expect("plausible");
            watch.look(&mut bench.readings, &Recorder::default());
            bench.now_ms = plant.now_ms();
            let forecasts = &mut bench.forecasts;
            forecasts.observe(&bench.readings, &BTreeMap::new(), plant.now_ms());
            seen = bench.observe();
            plant.advance(100, if tick / 150 % 2 == 0 { 300.0 } else { 0.0 });
        }
        assert!(seen.causes.sensor, "{seen:?}");
        assert_eq!(seen.state, MetabolicState::Constrained);
        assert!(
            bench.forecasts.outlook("gpu.0").is_none(),
            "it learned nothing from it"
        );
    }
}
