//! A virtual machine room: a device that draws power, heats, is cooled, is slowed down when
//! too hot, and is seen only through sensors as coarse and late as real ones.
//!
//! It stands in for hardware in tests and in the simulator. Power comes from the work that
//! is asked for ([`Roofline`] tells what a step of a model takes); heat flows through a
//! chain of nodes to the air; a fan, leakage and the weather make the chain differ from
//! what a predictor assumes. Everything that it writes into readings says that it is
//! simulated. It refuses to read a clock: time passes by [`Plant::advance`], and equal
//! seeds and equal work give equal machines.

use std::collections::VecDeque;

use homeostat_hooks::{DeviceKind, Origin, Supply, ThrottleReasons};

use crate::reading::{Absurd, DeviceReadings, Reading, Signal};

/// Inner step. A twentieth of the shortest time constant in use.
const STEP_MS: u64 = 5;

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, good enough for a simulated world.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform from 0 up to and without 1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform between two bounds.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform among `0..count`; 0 if there is nothing to choose from.
    pub fn below(&mut self, count: u64) -> u64 {
        (self.unit() * count as f64) as u64
    }

    /// Normal with mean 0 and deviation 1.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// What moving bytes and computing costs on a device, in time and energy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roofline {
    /// Power while nothing is done, W.
    pub static_watts: f64,
    /// Energy per byte of memory traffic, J.
    pub joules_per_byte: f64,
    /// Energy per floating-point operation, J.
    pub joules_per_flop: f64,
    /// Memory bandwidth, B/s.
    pub bytes_per_s: f64,
    /// Compute, FLOP/s.
    pub flops_per_s: f64,
    /// Time of a step in which neither is busy, s.
    pub overhead_s: f64,
}

impl Roofline {
    /// A data-centre GPU of the H200's class. The rates were measured on one; the energies
    /// are fitted to its published decode power and are guesses otherwise.
    pub const fn datacenter_gpu() -> Self {
        Self {
            static_watts: 110.0,
            joules_per_byte: 40e-12,
            joules_per_flop: 0.77e-12,
            bytes_per_s: 4.3e12,
            flops_per_s: 780e12,
            overhead_s: 1.5e-3,
        }
    }

    /// Time of a step at full clocks, s.
    pub fn step_seconds(&self, bytes: f64, flops: f64) -> f64 {
        (bytes / self.bytes_per_s).max(flops / self.flops_per_s) + self.overhead_s
    }

    /// Energy of a step without the static power, J.
    pub fn work_joules(&self, bytes: f64, flops: f64) -> f64 {
        bytes * self.joules_per_byte + flops * self.joules_per_flop
    }

    /// Energy of a step with all power drawn meanwhile, J.
    pub fn step_joules(&self, bytes: f64, flops: f64) -> f64 {
        self.static_watts * self.step_seconds(bytes, flops) + self.work_joules(bytes, flops)
    }
}

/// One node of the chain along which heat leaves: what it stores and what it takes to pass
/// on to the next node or, from the last one, to the air.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Node {
    /// Heat capacity, J/K.
    pub joules_per_kelvin: f64,
    /// Thermal resistance to the next node, K/W.
    pub kelvin_per_watt: f64,
}

/// A fan that follows the last node and lowers its resistance to the air.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fan {
    /// Slowest speed, share of the fastest, at and below `slow_celsius`.
    pub slow_ratio: f64,
    /// Where it begins to speed up.
    pub slow_celsius: f64,
    /// Where it runs at full speed.
    pub fast_celsius: f64,
    /// Its inertia, s.
    pub lag_s: f64,
    /// The last node's resistance falls with this power of the speed.
    pub exponent: f64,
}

/// The air around.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ambient {
    /// Mean.
    pub celsius: f64,
    /// It swings by this much up and down.
    pub swing_celsius: f64,
    /// Once in this time, s.
    pub swing_period_s: f64,
}

/// When the device slows itself down.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Throttle {
    /// Slowdown at this temperature of the die.
    pub limit_celsius: f64,
    /// Back to full clocks this far below it.
    pub release_kelvin: f64,
    /// Clocks meanwhile, share of the fastest.
    pub clock_ratio: f64,
    /// Board power is clipped here, W.
    pub limit_watts: f64,
}

/// How power is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerSensor {
    /// Mean over the last second.
    Average,
    /// Mean over the last 25 ms of every 100 ms; what happens between is never seen.
    PartTime,
}

/// How the device is seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sensors {
    /// Temperature is told in steps of this, rounded down; 0 = exactly.
    pub celsius_step: f64,
    /// Power.
    pub power: PowerSensor,
    /// The energy counter changes once in this time.
    pub counter_refresh_ms: u64,
}

/// A battery.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatterySpec {
    /// Energy when full, Wh.
    pub capacity_wh: f64,
    /// Voltage, V.
    pub volts: f64,
    /// Internal resistance, Ω: what it turns into heat of its own.
    pub ohms: f64,
    /// Power at which it is charged while there is a grid, W.
    pub charge_watts: f64,
}

/// A machine as its maker would describe it.
#[derive(Debug, Clone, PartialEq)]
pub struct PlantSpec {
    /// Work and power.
    pub roofline: Roofline,
    /// From the die outwards; at least one.
    pub nodes: Vec<Node>,
    /// Fan, if it has one.
    pub fan: Option<Fan>,
    /// Power grows by this share per kelvin of the die above 60 °C.
    pub leakage_per_kelvin: f64,
    /// Air.
    pub ambient: Ambient,
    /// Slowdown.
    pub throttle: Throttle,
    /// Sensors.
    pub sensors: Sensors,
    /// Battery that feeds it, if any.
    pub battery: Option<BatterySpec>,
}

impl PlantSpec {
    /// A die on a sink, and nothing else: the machine that a linear predictor assumes.
    pub fn linear() -> Self {
        Self {
            roofline: Roofline::datacenter_gpu(),
            nodes: vec![
                Node {
                    joules_per_kelvin: 60.0,
                    kelvin_per_watt: 0.03,
                },
                Node {
                    joules_per_kelvin: 1_100.0,
                    kelvin_per_watt: 0.055,
                },
            ],
            fan: None,
            leakage_per_kelvin: 0.0,
            ambient: Ambient {
                celsius: 38.0,
                swing_celsius: 0.0,
                swing_period_s: 3_600.0,
            },
            throttle: Throttle {
                limit_celsius: 87.0,
                release_kelvin: 3.0,
                clock_ratio: 0.6,
                limit_watts: 700.0,
            },
            sensors: Sensors {
                celsius_step: 1.0,
                power: PowerSensor::PartTime,
                counter_refresh_ms: 20,
            },
            battery: None,
        }
    }

    /// Die, spreader and sink with a fan, leakage and changing air: a machine that no
    /// linear predictor describes.
    pub fn mismatched() -> Self {
        Self {
            nodes: vec![
                Node {
                    joules_per_kelvin: 20.0,
                    kelvin_per_watt: 0.015,
                },
                Node {
                    joules_per_kelvin: 180.0,
                    kelvin_per_watt: 0.02,
                },
                Node {
                    joules_per_kelvin: 1_200.0,
                    kelvin_per_watt: 0.045,
                },
            ],
            fan: Some(Fan {
                slow_ratio: 0.45,
                slow_celsius: 45.0,
                fast_celsius: 70.0,
                lag_s: 4.0,
                exponent: 0.6,
            }),
            leakage_per_kelvin: 0.002,
            ambient: Ambient {
                celsius: 36.0,
                swing_celsius: 3.0,
                swing_period_s: 1_500.0,
            },
            ..Self::linear()
        }
    }

    /// A hand-held device without a fan: heat leaves over minutes, and 3 W are all that it
    /// can sustain.
    pub fn phone() -> Self {
        Self {
            roofline: Roofline {
                static_watts: 0.8,
                joules_per_byte: 60e-12,
                joules_per_flop: 2e-12,
                bytes_per_s: 50e9,
                flops_per_s: 1e12,
                overhead_s: 1e-3,
            },
            nodes: vec![
                Node {
                    joules_per_kelvin: 4.0,
                    kelvin_per_watt: 2.25,
                },
                Node {
                    joules_per_kelvin: 80.0,
                    kelvin_per_watt: 6.75,
                },
            ],
            ambient: Ambient {
                celsius: 24.0,
                swing_celsius: 1.0,
                swing_period_s: 3_600.0,
            },
            throttle: Throttle {
                limit_celsius: 51.0,
                release_kelvin: 2.0,
                clock_ratio: 0.5,
                limit_watts: 8.0,
            },
            battery: Some(BatterySpec {
                capacity_wh: 17.0,
                volts: 3.85,
                ohms: 0.1,
                charge_watts: 15.0,
            }),
            ..Self::linear()
        }
    }

    /// A small machine beside a desk: one chip with memory of its own, a fan, and a battery
    /// for when the grid fails. Rates and powers are those that makers and reviewers state for
    /// chips of 120 W with a quarter of a terabyte per second; the heat path is a guess that
    /// slows down at full load in air of 42 °C.
    pub fn desk_box() -> Self {
        Self {
            roofline: Roofline {
                static_watts: 18.0,
                joules_per_byte: 271e-12,
                joules_per_flop: 6.1e-12,
                bytes_per_s: 210e9,
                flops_per_s: 15e12,
                overhead_s: 1.5e-3,
            },
            nodes: vec![
                Node {
                    joules_per_kelvin: 15.0,
                    kelvin_per_watt: 0.12,
                },
                Node {
                    joules_per_kelvin: 120.0,
                    kelvin_per_watt: 0.13,
                },
                Node {
                    joules_per_kelvin: 700.0,
                    kelvin_per_watt: 0.42,
                },
            ],
            fan: Some(Fan {
                slow_ratio: 0.5,
                slow_celsius: 45.0,
                fast_celsius: 70.0,
                lag_s: 4.0,
                exponent: 0.6,
            }),
            leakage_per_kelvin: 0.002,
            ambient: Ambient {
                celsius: 26.0,
                swing_celsius: 0.0,
                swing_period_s: 3_600.0,
            },
            throttle: Throttle {
                limit_celsius: 95.0,
                release_kelvin: 4.0,
                clock_ratio: 0.5,
                limit_watts: 120.0,
            },
            sensors: Sensors {
                celsius_step: 1.0,
                power: PowerSensor::Average,
                counter_refresh_ms: 50,
            },
            battery: Some(BatterySpec {
                capacity_wh: 60.0,
                volts: 24.0,
                ohms: 0.1,
                charge_watts: 60.0,
            }),
        }
    }
}

/// A running machine.
#[derive(Debug, Clone)]
pub struct Plant {
    spec: PlantSpec,
    now_ms: u64,
    celsius: Vec<f64>,
    fan_ratio: f64,
    watts: f64,
    joules: f64,
    throttled: bool,
    throttled_ms: u64,
    clipped: bool,
    work_joules: f64,
    counter_mj: u64,
    /// Where in its period the counter changes.
    counter_phase_ms: u64,
    window: (f64, u64),
    /// Power in each inner step of the last second, where the sensor tells their mean.
    second: VecDeque<f64>,
    instant_watts: f64,
    charge_wh: f64,
    drain_watts: f64,
    on_grid: bool,
    /// Sensors that do not answer.
    silent: Vec<Signal>,
}

impl Plant {
    /// A machine that has been idle long enough to be as warm as idling makes it.
    pub fn new(spec: PlantSpec, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let nodes = spec.nodes.len();
        let mut plant = Self {
            now_ms: 0,
            celsius: vec![spec.ambient.celsius; nodes],
            fan_ratio: spec.fan.map_or(1.0, |fan| fan.slow_ratio),
            watts: spec.roofline.static_watts,
            joules: 0.0,
            throttled: false,
            throttled_ms: 0,
            clipped: false,
            work_joules: 0.0,
            counter_mj: 0,
            counter_phase_ms: random.below(spec.sensors.counter_refresh_ms),
            window: (0.0, 0),
            second: VecDeque::new(),
            instant_watts: spec.roofline.static_watts,
            charge_wh: spec.battery.map_or(0.0, |battery| battery.capacity_wh),
            drain_watts: 0.0,
            on_grid: spec.battery.is_none(),
            silent: Vec::new(),
            spec,
        };
        let mut below = plant.spec.ambient.celsius;
        for i in (0..nodes).rev() {
            below += plant.resistance(i) * plant.watts;
            plant.celsius[i] = below;
        }
        plant
    }

    /// Lets time pass while work is asked for that would draw `work_watts` above the static
    /// power at full clocks.
    pub fn advance(&mut self, elapsed_ms: u64, work_watts: f64) {
        let until = self.now_ms + elapsed_ms;
        while self.now_ms < until {
            let step_ms = STEP_MS.min(until - self.now_ms);
            self.step(step_ms, work_watts.max(0.0));
            self.now_ms += step_ms;
            self.sense(step_ms);
        }
    }

    fn step(&mut self, step_ms: u64, asked_watts: f64) {
        let dt = step_ms as f64 / 1000.0;
        let throttle = self.spec.throttle;
        let die = self.celsius[0];
        self.throttled = match self.throttled {
            true => die > throttle.limit_celsius - throttle.release_kelvin,
            false => die >= throttle.limit_celsius,
        };
        if self.throttled {
            self.throttled_ms += step_ms;
        }
        let leaking = self.leakage_ratio();
        let idle = self.spec.roofline.static_watts;
        let mut work = asked_watts * self.clock_ratio();
        self.clipped = (idle + work) * leaking > throttle.limit_watts;
        if self.clipped {
            work = (throttle.limit_watts / leaking - idle).max(0.0);
        }
        let fed = f64::from(u8::from(self.is_fed()));
        work *= fed;
        self.work_joules += work * dt;
        // A regulator follows its load within some twenty milliseconds.
        let target = (idle * fed + work) * leaking;
        self.watts += (target - self.watts) * (1.0 - (-dt / 0.02).exp());
        self.joules += self.watts * dt;
        self.heat(dt);
        if let Some(battery) = self.spec.battery {
            let amperes = self.watts / battery.volts;
            self.drain_watts = match self.on_grid {
                true => -battery.charge_watts,
                false => self.watts + amperes * amperes * battery.ohms,
            };
            let left = self.charge_wh - self.drain_watts * dt / 3_600.0;
            self.charge_wh = left.clamp(0.0, battery.capacity_wh);
        }
    }

    /// Leaking grows with heat: what all power is multiplied with.
    pub fn leakage_ratio(&self) -> f64 {
        1.0 + self.spec.leakage_per_kelvin * (self.celsius[0] - 60.0)
    }

    /// Whether it has power: from the grid, or from a battery that is not empty.
    pub fn is_fed(&self) -> bool {
        self.on_grid || self.spec.battery.is_none() || self.charge_wh > 0.0
    }

    /// Plugs it in or out. A machine with a battery begins unplugged, one without never is.
    pub fn set_on_grid(&mut self, on_grid: bool) {
        self.on_grid = on_grid || self.spec.battery.is_none();
    }

    /// Sensors that do not answer from now on; all others do.
    pub fn set_silent(&mut self, silent: &[Signal]) {
        self.silent = silent.to_vec();
    }

    fn heat(&mut self, dt: f64) {
        let last = self.celsius.len() - 1;
        if let Some(fan) = self.spec.fan {
            let warm = (self.celsius[last] - fan.slow_celsius)
                / (fan.fast_celsius - fan.slow_celsius).max(f64::EPSILON);
            let target = fan.slow_ratio + (1.0 - fan.slow_ratio) * warm.clamp(0.0, 1.0);
            self.fan_ratio += (target - self.fan_ratio) * (1.0 - (-dt / fan.lag_s).exp());
        }
        let air = self.ambient_celsius();
        let mut inflow = self.watts;
        for i in 0..=last {
            let next = if i == last { air } else { self.celsius[i + 1] };
            let outflow = (self.celsius[i] - next) / self.resistance(i);
            self.celsius[i] += (inflow - outflow) / self.spec.nodes[i].joules_per_kelvin * dt;
            inflow = outflow;
        }
    }

    fn resistance(&self, node: usize) -> f64 {
        let own = self.spec.nodes[node].kelvin_per_watt;
        match self.spec.fan {
            Some(fan) if node + 1 == self.spec.nodes.len() => {
                own * self.fan_ratio.powf(-fan.exponent)
            }
            _ => own,
        }
    }

    fn sense(&mut self, step_ms: u64) {
        let sensors = self.spec.sensors;
        let refresh = sensors.counter_refresh_ms.max(STEP_MS);
        if (self.now_ms + self.counter_phase_ms) % refresh < step_ms {
            self.counter_mj = (self.joules * 1e3) as u64;
        }
        match sensors.power {
            PowerSensor::Average => {
                if self.second.len() == (1_000 / STEP_MS) as usize {
                    self.second.pop_front();
                }
                self.second.push_back(self.watts);
            }
            PowerSensor::PartTime => {
                let at = self.now_ms % 100;
                if at == 0 || at > 75 {
                    self.window.0 += self.watts * step_ms as f64;
                    self.window.1 += step_ms;
                }
                if at == 0 {
                    self.instant_watts = self.window.0 / self.window.1.max(1) as f64;
                    self.window = (0.0, 0);
                }
            }
        }
    }

    /// Simulated time, ms.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// The machine's description.
    pub fn spec(&self) -> &PlantSpec {
        &self.spec
    }

    /// Changes the air, as a heat wave or a broken air conditioning does.
    pub fn set_ambient(&mut self, ambient: Ambient) {
        self.spec.ambient = ambient;
    }

    /// Air at this moment, °C.
    pub fn ambient_celsius(&self) -> f64 {
        let ambient = self.spec.ambient;
        let turns = self.now_ms as f64 / 1000.0 / ambient.swing_period_s;
        ambient.celsius + ambient.swing_celsius * (std::f64::consts::TAU * turns).sin()
    }

    /// The die's true temperature, °C; no sensor shows it so exactly.
    pub fn die_celsius(&self) -> f64 {
        self.celsius[0]
    }

    /// True power, W.
    pub fn watts(&self) -> f64 {
        self.watts
    }

    /// True energy since the start, J.
    pub fn joules(&self) -> f64 {
        self.joules
    }

    /// Energy that went into the work asked for since the start, J; less than what was
    /// asked for while the machine was slowed down.
    pub fn work_joules(&self) -> f64 {
        self.work_joules
    }

    /// Clocks, share of the fastest.
    pub fn clock_ratio(&self) -> f64 {
        match self.throttled {
            true => self.spec.throttle.clock_ratio,
            false => 1.0,
        }
    }

    /// Time spent slowed down by heat, ms.
    pub fn throttled_ms(&self) -> u64 {
        self.throttled_ms
    }

    /// Why it is slow.
    pub fn throttle_reasons(&self) -> ThrottleReasons {
        ThrottleReasons {
            thermal_hardware: self.throttled,
            power_cap: self.clipped,
            ..ThrottleReasons::default()
        }
    }

    /// Temperature as its sensor tells it, °C.
    pub fn temperature(&self) -> f64 {
        match self.spec.sensors.celsius_step {
            step if step > 0.0 => (self.celsius[0] / step).floor() * step,
            _ => self.celsius[0],
        }
    }

    /// Power as its sensor tells it, W.
    pub fn power(&self) -> f64 {
        // Summed when it is asked for: the inner steps are many, the questions few.
        match self.second.len() {
            0 => self.instant_watts,
            steps => self.second.iter().sum::<f64>() / steps as f64,
        }
    }

    /// The energy counter, mJ.
    pub fn counter_mj(&self) -> u64 {
        self.counter_mj
    }

    /// The battery as its firmware tells it, in whole percents.
    pub fn supply(&self) -> Option<Supply> {
        let battery = self.spec.battery?;
        let charge = self.charge_wh / battery.capacity_wh;
        let left_s = self.charge_wh / self.drain_watts.max(1e-3) * 3_600.0;
        let draining = !self.on_grid;
        Some(Supply {
            on_battery: draining,
            charge_ratio: Some(((charge * 100.0).floor() / 100.0) as f32),
            drain_watts: draining.then_some(self.drain_watts as f32),
            time_left_s: draining.then_some(left_s.min(f64::from(u32::MAX)) as u32),
        })
    }

    /// Writes down what the sensors tell, as a provider would that asks every `period_ms`.
    pub fn write_to(&self, device: &mut DeviceReadings, period_ms: u32) -> Result<(), Absurd> {
        let reading = |value, window_ms| Reading {
            window_ms,
            origin: Origin::Simulated,
            ..Reading::instant(value, self.now_ms, period_ms)
        };
        let window_ms = match self.spec.sensors.power {
            PowerSensor::Average => 1_000,
            PowerSensor::PartTime => 25,
        };
        let limit = self.spec.throttle.limit_celsius;
        for (signal, value, window_ms) in [
            (Signal::Temperature, self.temperature(), 0),
            (Signal::ThermalMargin, limit - self.temperature(), 0),
            (Signal::Power, self.power(), window_ms),
            (Signal::PowerLimit, self.spec.throttle.limit_watts, 0),
            (Signal::Energy, self.counter_mj as f64 / 1e3, 0),
            (Signal::Clock, self.clock_ratio(), 0),
        ] {
            if !self.silent.contains(&signal) {
                device.record(signal, reading(value, window_ms))?;
            }
        }
        device.record_throttle(self.throttle_reasons(), self.now_ms);
        Ok(())
    }

    /// Readings of a device of this machine's kind, nothing written yet.
    pub fn blank_readings() -> DeviceReadings {
        DeviceReadings::new(DeviceKind::Gpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_load_ends_at_the_temperature_that_the_resistances_give() {
        let mut plant = Plant::new(PlantSpec::linear(), 1);
        assert!((plant.die_celsius() - (38.0 + 110.0 * 0.085)).abs() < 1e-9);
        plant.advance(1_200_000, 300.0);
        let expected = 38.0 + 410.0 * 0.085;
        assert!((plant.die_celsius() - expected).abs() < 0.01);
        assert_eq!(plant.temperature(), expected.floor());
        assert_eq!(plant.throttled_ms(), 0);
    }

    #[test]
    fn energy_is_the_integral_of_power_and_the_counter_shows_it_late() {
        let mut plant = Plant::new(PlantSpec::linear(), 2);
        plant.advance(10_000, 0.0);
        assert!((plant.joules() - 1_100.0).abs() < 1e-6);
        plant.advance(10_000, 190.0);
        let expected = 1_100.0 + 3_000.0 - 190.0 * 0.02;
        assert!(
            (plant.joules() - expected).abs() < 1.0,
            "{}",
            plant.joules()
        );
        let late = plant.joules() - plant.counter_mj() as f64 / 1e3;
        assert!((0.0..=300.0 * 0.021).contains(&late), "{late}");
        assert!((plant.power() - 300.0).abs() < 1e-3);
    }

    #[test]
    fn heat_slows_it_down_until_it_has_cooled_and_work_is_lost_meanwhile() {
        let mut plant = Plant::new(PlantSpec::linear(), 3);
        let (mut hottest, mut seen_slow) = (0.0f64, false);
        for _ in 0..6_000 {
            plant.advance(100, 590.0);
            hottest = hottest.max(plant.die_celsius());
            seen_slow |= plant.throttle_reasons().thermal_hardware;
        }
        assert!(seen_slow && plant.throttled_ms() > 10_000);
        assert!(hottest < 87.5, "{hottest}");
        assert!(plant.work_joules() < 590.0 * 600.0 * 0.999);
    }

    #[test]
    fn the_fan_works_against_the_heat_and_leakage_with_it() {
        let hot_at = |change: fn(&mut PlantSpec)| {
            let mut spec = PlantSpec::mismatched();
            spec.ambient.swing_celsius = 0.0;
            change(&mut spec);
            let mut plant = Plant::new(spec, 4);
            plant.advance(1_800_000, 400.0);
            plant.die_celsius()
        };
        let usual = hot_at(|_| {});
        let stuck = hot_at(|spec| {
            let slow = spec.fan.map(|fan| fan.slow_ratio);
            spec.nodes[2].kelvin_per_watt *= slow.expect("it has one").powf(-0.6);
            spec.fan = None;
        });
        let tight = hot_at(|spec| spec.leakage_per_kelvin = 0.0);
        assert!(
            usual + 3.0 < stuck && tight < usual,
            "{usual} {stuck} {tight}"
        );
    }

    #[test]
    fn a_battery_runs_down_in_whole_percents() {
        let mut plant = Plant::new(PlantSpec::phone(), 5);
        plant.advance(3_600_000, 1.2);
        let supply = plant.supply().expect("it has one");
        let percent = f64::from(supply.charge_ratio.expect("known")) * 100.0;
        assert_eq!(
            percent.round(),
            88.0,
            "2 W of 17 Wh for an hour, and losses"
        );
        assert!((percent - percent.round()).abs() < 1e-4);
        assert!(supply.time_left_s.expect("known") > 7 * 3_600);
    }

    #[test]
    fn the_grid_charges_the_battery_and_without_both_the_machine_is_off() {
        let mut plant = Plant::new(PlantSpec::desk_box(), 7);
        let charge = |plant: &Plant| plant.supply().and_then(|s| s.charge_ratio);
        plant.advance(2_400_000, 40.0);
        let left = charge(&plant).expect("told");
        assert!(plant.is_fed() && left < 0.4, "{left}");
        plant.set_on_grid(true);
        plant.advance(600_000, 40.0);
        assert!(charge(&plant).expect("told") > left);
        assert!(
            plant
                .supply()
                .is_some_and(|s| !s.on_battery && s.time_left_s.is_none())
        );
        plant.set_on_grid(false);
        plant.advance(2 * 3_600_000, 40.0);
        assert!(!plant.is_fed());
        let (joules, work) = (plant.joules(), plant.work_joules());
        plant.advance(60_000, 40.0);
        assert!(plant.joules() - joules < 1e-3 && plant.work_joules() == work);
    }

    #[test]
    fn a_silent_sensor_leaves_its_last_reading_to_grow_old() {
        let mut plant = Plant::new(PlantSpec::desk_box(), 8);
        let mut device = Plant::blank_readings();
        plant.write_to(&mut device, 100).expect("plausible");
        plant.set_silent(&[Signal::Temperature, Signal::ThermalMargin]);
        plant.advance(1_000, 10.0);
        plant.write_to(&mut device, 100).expect("plausible");
        let at = |signal| device.last(signal).map(|r| r.at_ms);
        assert_eq!(
            (at(Signal::Temperature), at(Signal::Power)),
            (Some(0), Some(1_000))
        );
    }

    #[test]
    fn what_it_writes_down_says_that_it_is_simulated() {
        let plant = Plant::new(PlantSpec::linear(), 6);
        let mut device = Plant::blank_readings();
        plant.write_to(&mut device, 100).expect("plausible");
        let seen = device.device("gpu.0", 0).expect("readings");
        let margin = seen.thermal_margin_celsius.expect("written");
        assert_eq!((margin.value, margin.origin), (40.0, Origin::Simulated));
        assert_eq!(seen.throttle, Some(ThrottleReasons::default()));
    }
}
