//! Heat, forecast, state and share in a closed loop with a virtual machine: demand changes,
//! a controller says which share of it the small model answers, and the machine heats, slows
//! down and loses work accordingly. `-- --nocapture` prints the tables.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use homeostat_hooks::{DeviceKind, MetabolicState, Profile, Snapshot};
use homeostat_telemetry::filter::Ema;
use homeostat_telemetry::plant::{Ambient, Plant, PlantSpec, Random};
use homeostat_telemetry::{Config, Inputs, Provider, Recorder, Sampler, Tick};

/// What the small model draws for the same demand, and what its answers are worth beside
/// those of the large one.
const SMALL_POWER: f64 = 0.35;
const SMALL_WORTH: f64 = 0.5;

/// Conversations that are open at once, and questions a second from all of them.
const CONVERSATIONS: usize = 200;
const QUESTIONS_PER_S: f64 = 6.67;
/// A conversation that changes its model must be read by the other from its beginning: this
/// share of an answer's work.
const REREAD: f64 = 0.25;

const HOUR_TICKS: u64 = 36_000;

/// The sensors of the virtual machine as a provider of the sampler.
struct Sensors(Arc<Mutex<Plant>>);

impl Provider for Sensors {
    fn name(&self) -> &'static str {
        "plant"
    }

    fn read(&mut self, tick: &mut Tick<'_>) -> bool {
        let plant = self.0.lock().expect("one thread");
        let device = tick.readings.device("gpu.0", DeviceKind::Gpu);
        plant.write_to(device, tick.period_ms).is_ok()
    }
}

/// A demand over time, as a share of what the large model would draw at most.
#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    spec: fn() -> PlantSpec,
    profile: Profile,
    demand: fn(&mut Random, u64) -> f64,
    work_watts: f64,
    ambient: fn(u64) -> Option<Ambient>,
}

fn air(celsius: f64) -> Option<Ambient> {
    Some(Ambient {
        celsius,
        swing_celsius: 0.0,
        swing_period_s: 3_600.0,
    })
}

const SCENARIOS: [Scenario; 4] = [
    Scenario {
        name: "changing load",
        spec: PlantSpec::linear,
        profile: Profile::Edge,
        demand: |random, _| random.between(0.5, 1.0),
        work_watts: 590.0,
        ambient: |_| None,
    },
    Scenario {
        name: "heat wave",
        spec: PlantSpec::mismatched,
        profile: Profile::Edge,
        demand: |random, _| random.between(0.5, 1.0),
        work_watts: 590.0,
        // From 30 to 44 °C and back within the hour.
        ambient: |s| air(37.0 - 7.0 * (std::f64::consts::TAU * s as f64 / 3_600.0).cos()),
    },
    Scenario {
        name: "flash crowds",
        spec: PlantSpec::linear,
        profile: Profile::Datacenter,
        demand: |random, s| match s / 300 % 2 {
            0 => random.between(0.1, 0.3),
            _ => 1.0,
        },
        work_watts: 590.0,
        ambient: |_| None,
    },
    Scenario {
        name: "phone",
        spec: PlantSpec::phone,
        profile: Profile::Mcu,
        demand: |random, _| random.between(0.5, 1.0),
        work_watts: 5.0,
        ambient: |_| None,
    },
];

/// Who decides which share the small model answers.
#[derive(Clone, Copy, PartialEq)]
enum Controller {
    /// Everything to the large model; the hardware protects itself.
    Static,
    /// All or nothing at the margin that the share aims at.
    Threshold,
    /// The same on a 2 s average.
    Smoothed,
    /// The same, and back only 5 °C lower.
    Hysteresis,
    /// The same, and no change within 10 s.
    Dwell,
    /// Half from constrained, all from critical, by the state alone.
    State,
    /// The degrade ratio.
    Share,
    /// The same where nobody tells the forecast what is planned.
    ShareUnplanned,
}

impl Controller {
    /// It has no state of its own: what changes is the host's.
    fn follows_the_host(self) -> bool {
        matches!(
            self,
            Controller::State | Controller::Share | Controller::ShareUnplanned
        )
    }
}

/// A controller with its memory.
struct Control {
    kind: Controller,
    /// Margin to keep.
    target: f64,
    average: Ema,
    moved: bool,
    changed_s: f64,
    changes: u64,
}

impl Control {
    fn new(kind: Controller, profile: Profile) -> Self {
        Self {
            kind,
            target: match profile {
                Profile::Datacenter => 3.0,
                Profile::Edge => 5.0,
                Profile::Mcu => 10.0,
            },
            average: Ema::new(2_000),
            moved: false,
            changed_s: f64::NEG_INFINITY,
            changes: 0,
        }
    }

    fn share(&mut self, margin: f64, snapshot: &Snapshot) -> f64 {
        let now_ms = snapshot.monotonic_ms;
        let average = self.average.update(margin, now_ms);
        let metabolism = &snapshot.metabolism;
        let hot = match self.kind {
            Controller::Static => return 0.0,
            Controller::Share | Controller::ShareUnplanned => {
                return f64::from(metabolism.degrade_ratio);
            }
            Controller::State => match metabolism.state {
                MetabolicState::Nominal | MetabolicState::Elevated => return 0.0,
                MetabolicState::Constrained => return 0.5,
                MetabolicState::Critical => return 1.0,
            },
            Controller::Threshold => margin < self.target,
            Controller::Smoothed => average < self.target,
            Controller::Hysteresis | Controller::Dwell => {
                average < self.target + if self.moved { 5.0 } else { 0.0 }
            }
        };
        let now_s = now_ms as f64 / 1e3;
        let held = self.kind == Controller::Dwell && now_s < self.changed_s + 10.0;
        if hot != self.moved && !held {
            self.moved = hot;
            self.changed_s = now_s;
            self.changes += 1;
        }
        f64::from(u8::from(self.moved))
    }
}

/// What an hour gave.
#[derive(Default, Clone, Copy)]
struct Outcome {
    changes: u64,
    /// Useful work, share of the whole demand served by the large model.
    useful: f64,
    /// The same without what was spent on reading conversations again.
    net: f64,
    /// Share of questions that went to another model than the one before.
    switched: f64,
    throttled_s: f64,
    hottest: f64,
    mean: f64,
    /// Hours in it.
    runs: f64,
    /// Ticks in which the hardware was slowing down and the state did not say critical.
    unseen: u64,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.changes += other.changes;
        self.useful += other.useful;
        self.net += other.net;
        self.switched += other.switched;
        self.throttled_s += other.throttled_s;
        self.hottest = self.hottest.max(other.hottest);
        self.mean += other.mean;
        self.runs += 1.0;
        self.unseen += other.unseen;
    }

    fn row(&self) -> String {
        format!(
            "{:9.0} | {:6.3} | {:6.3} | {:8.1} | {:8.0} | {:7.1} | {:6.1}",
            self.changes as f64 / self.runs,
            self.useful / self.runs,
            self.net / self.runs,
            100.0 * self.switched / self.runs,
            self.throttled_s / self.runs,
            self.mean / self.runs,
            self.hottest
        )
    }
}

/// One machine with its sampler.
struct Host {
    plant: Arc<Mutex<Plant>>,
    sampler: Sampler,
}

impl Host {
    fn new(scenario: &Scenario, seed: u64) -> Self {
        let plant = Arc::new(Mutex::new(Plant::new((scenario.spec)(), seed)));
        let config = Config {
            profile: scenario.profile,
            ..Config::default()
        };
        let sensors: Box<dyn Provider> = Box::new(Sensors(Arc::clone(&plant)));
        Self {
            sampler: Sampler::new(config, vec![sensors], Recorder::default()),
            plant,
        }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Plant) -> T) -> T {
        look(&mut self.plant.lock().expect("one thread"))
    }

    /// The snapshot at this moment, when so much power is planned, if anything is.
    fn snapshot(&mut self, planned_watts: Option<f64>) -> Snapshot {
        let now_ms = self.with(|plant| plant.now_ms());
        let planned = planned_watts.map(|watts| vec![watts]);
        let inputs = Inputs {
            planned_watts: BTreeMap::from_iter(planned.map(|watts| ("gpu.0".to_owned(), watts))),
            ..Inputs::default()
        };
        self.sampler.tick(now_ms, &inputs)
    }
}

/// The conversations, and which model answered each last. Each has its place between 0 and
/// 1 and belongs to the small model while the share lies above it: it does not change sides
/// within itself, and a growing share only ever adds conversations.
struct Conversations {
    places: Vec<f64>,
    on_small: Vec<bool>,
    asked: f64,
    switched: f64,
}

impl Conversations {
    fn new(random: &mut Random) -> Self {
        Self {
            places: (0..CONVERSATIONS).map(|_| random.unit()).collect(),
            on_small: vec![false; CONVERSATIONS],
            asked: 0.0,
            switched: 0.0,
        }
    }

    /// Share of them that belongs to the small model now.
    fn moved(&self, ratio: f64) -> f64 {
        let moved = self.places.iter().filter(|place| **place < ratio);
        moved.count() as f64 / CONVERSATIONS as f64
    }

    /// Perhaps one of them asks in this tick; questions are as many as there is demand.
    fn ask(&mut self, random: &mut Random, ratio: f64, demand: f64) {
        if random.unit() < QUESTIONS_PER_S * 0.1 {
            let who = random.below(CONVERSATIONS as u64) as usize;
            let small = self.places[who] < ratio;
            self.asked += demand;
            self.switched += demand * f64::from(u8::from(small != self.on_small[who]));
            self.on_small[who] = small;
        }
    }
}

/// Demand is drawn anew every 30 s; what the hardware does not deliver is lost.
fn hour(scenario: &Scenario, controller: Controller, seed: u64) -> Outcome {
    let mut host = Host::new(scenario, seed);
    let mut random = Random::new(seed);
    let mut control = Control::new(controller, scenario.profile);
    let mut conversations = Conversations::new(&mut random);
    let mut chance = Random::new(!seed);
    let idle = host.with(|plant| plant.spec().roofline.static_watts);
    let limit = host.with(|plant| plant.spec().throttle.limit_celsius);
    let (mut demand, mut moved, mut state) = (0.0, 0.0, MetabolicState::Nominal);
    let (mut useful, mut asked, mut outcome) = (0.0, 0.0, Outcome::default());
    for tick in 0..HOUR_TICKS {
        if tick % 300 == 0 {
            demand = (scenario.demand)(&mut random, tick / 10);
        }
        if let Some(ambient) = (scenario.ambient)(tick / 10) {
            host.with(|plant| plant.set_ambient(ambient));
        }
        let watts = |moved: f64| demand * scenario.work_watts * (1.0 - moved * (1.0 - SMALL_POWER));
        let planned = (controller != Controller::ShareUnplanned).then(|| idle + watts(moved));
        let snapshot = host.snapshot(planned);
        let celsius = host.with(|plant| plant.temperature());
        let now = snapshot.metabolism.state;
        let told = snapshot.devices.first().and_then(|device| device.throttle);
        let slow = told.is_some_and(|reasons| reasons.thermal_hardware);
        outcome.changes += u64::from(now != state);
        outcome.unseen += u64::from(slow && now != MetabolicState::Critical);
        state = now;
        let ratio = control.share(limit - celsius, &snapshot);
        moved = conversations.moved(ratio);
        conversations.ask(&mut chance, ratio, demand);

        let before = host.with(|plant| plant.work_joules());
        host.with(|plant| plant.advance(100, watts(moved)));
        let done = host.with(|plant| plant.work_joules()) - before;
        let delivered = done / (watts(moved) * 0.1).max(f64::MIN_POSITIVE);
        useful += demand * delivered * (1.0 - moved * (1.0 - SMALL_WORTH));
        asked += demand;
        outcome.mean += celsius / HOUR_TICKS as f64;
        outcome.hottest = outcome.hottest.max(host.with(|plant| plant.die_celsius()));
    }
    outcome.throttled_s = host.with(|plant| plant.throttled_ms()) as f64 / 1e3;
    outcome.useful = useful / asked;
    outcome.switched = conversations.switched / conversations.asked;
    outcome.net = outcome.useful - REREAD * outcome.switched;
    if !controller.follows_the_host() {
        outcome.changes = control.changes;
    }
    outcome
}

const CONTROLLERS: [(&str, Controller); 8] = [
    ("none, hardware slows down", Controller::Static),
    ("raw threshold", Controller::Threshold),
    ("2 s average", Controller::Smoothed),
    ("+ hysteresis", Controller::Hysteresis),
    ("+ dwell", Controller::Dwell),
    ("state alone", Controller::State),
    ("share, and the state as label", Controller::Share),
    ("the same without a plan", Controller::ShareUnplanned),
];

fn hours(scenario: &Scenario, controller: Controller) -> Outcome {
    let mut sum = Outcome::default();
    for seed in 1..=4 {
        sum.add(hour(scenario, controller, seed));
    }
    sum
}

#[test]
fn the_share_keeps_the_machine_from_slowing_down_and_loses_no_useful_work() {
    for scenario in &SCENARIOS {
        println!("\n{}: four hours", scenario.name);
        println!(
            "  {:30} changes/h | useful |    net | switch % | slow s/h | mean °C | max °C",
            "controller"
        );
        let outcomes = CONTROLLERS.map(|(name, controller)| {
            let outcome = hours(scenario, controller);
            println!("  {name:30} {}", outcome.row());
            (controller, outcome)
        });
        let of = |kind: Controller| outcomes.iter().find(|o| o.0 == kind).expect("ran").1;
        let (share, raw) = (of(Controller::Share), of(Controller::Threshold));
        let name = scenario.name;
        // The share follows the margin that is there; only the label looks ahead.
        for of_share in [share, of(Controller::ShareUnplanned)] {
            let changes = of_share.changes as f64;
            assert!(changes <= 60.0 * of_share.runs, "{name}: {changes}");
            assert_eq!(
                of_share.throttled_s, 0.0,
                "{name}: the hardware slowed down"
            );
        }
        // To a rounding of the thermometer the same work, and nothing lost by going to and fro.
        let (useful, of_raw) = (share.useful / share.runs, raw.useful / raw.runs);
        assert!(useful >= of_raw - 0.005, "{name}: {useful} {of_raw}");
        assert!(share.net >= raw.net, "{name}: {} {}", share.net, raw.net);
        assert!(
            of(Controller::Static).throttled_s > 0.0,
            "{name} is no test of anything"
        );
        for (_, outcome) in outcomes {
            assert_eq!(outcome.unseen, 0, "{name}: slow and not critical");
        }
    }
}

#[test]
fn under_constant_load_the_state_settles() {
    for scenario in &SCENARIOS {
        for controller in [Controller::Static, Controller::Share] {
            let mut host = Host::new(scenario, 1);
            host.with(|plant| {
                let steady = Ambient {
                    swing_celsius: 0.0,
                    ..plant.spec().ambient
                };
                plant.set_ambient(steady);
            });
            let idle = host.with(|plant| plant.spec().roofline.static_watts);
            let (mut state, mut last_change, mut share) = (MetabolicState::Nominal, 0, 0.0f64);
            for tick in 0..2 * HOUR_TICKS {
                let kept = 1.0 - share * (1.0 - SMALL_POWER);
                let watts = 0.6 * scenario.work_watts * kept;
                let snapshot = host.snapshot(Some(idle + watts));
                if snapshot.metabolism.state != state {
                    (state, last_change) = (snapshot.metabolism.state, tick);
                }
                if controller == Controller::Share {
                    share = f64::from(snapshot.metabolism.degrade_ratio);
                }
                host.with(|plant| plant.advance(100, watts));
            }
            assert!(
                last_change < HOUR_TICKS,
                "{}: {state:?} at {last_change}",
                scenario.name
            );
        }
    }
}
