//! How near each way of splitting energy comes to the Shapley value, which is the fair
//! split and far too dear to compute while serving: here it is computed by brute force, by
//! running the same scheduler for every subset of the requests. `-- --nocapture` prints
//! the tables.

use std::collections::BTreeMap;

use homeostat_hooks::DeviceKind;
use homeostat_telemetry::ledger::{
    CostFit, DeviceIndex, Devices, Ledger, ModelCost, Phase, SequenceWork, Step, StepCost,
};
use homeostat_telemetry::plant::{Random, Roofline};

const GPU: Roofline = Roofline::datacenter_gpu();

const SMALL: ModelCost = ModelCost {
    weight_bytes: 16e9,
    kv_bytes_per_token: 131_072.0,
    flops_per_token: 16e9,
    flops_per_context_token: 0.0,
};

const LARGE: ModelCost = ModelCost {
    weight_bytes: 70e9,
    kv_bytes_per_token: 163_840.0,
    flops_per_token: 140e9,
    flops_per_context_token: 0.0,
};

/// Shares of the whole game by averaging what each player adds over all orders: for every
/// subset of the others, weighted by how often it comes first.
fn shapley(players: usize, value: impl Fn(u32) -> f64) -> Vec<f64> {
    let values: Vec<f64> = (0..1u32 << players).map(value).collect();
    let factorial = |n: usize| (1..=n).product::<usize>() as f64;
    (0..players)
        .map(|player| {
            let without = (0..1u32 << players).filter(|set| set >> player & 1 == 0);
            let added = without.map(|set| {
                let size = set.count_ones() as usize;
                let orders = factorial(size) * factorial(players - size - 1);
                orders * (values[(set | 1 << player) as usize] - values[set as usize])
            });
            added.sum::<f64>() / factorial(players)
        })
        .collect()
}

/// A request of the trial: when it comes, how long its prompt and its answer are.
#[derive(Debug, Clone, Copy)]
struct Job {
    arrival_s: f64,
    prompt: u32,
    answer: u32,
}

/// One step of the trial's scheduler.
struct Ran {
    start_s: f64,
    seconds: f64,
    joules: f64,
    work: Vec<SequenceWork>,
}

/// Chunked prefill beside decoding, 512 prompt tokens a step; what a simple engine does.
fn serve(cost: &ModelCost, jobs: &[(usize, Job)]) -> Vec<Ran> {
    let mut state: Vec<(u32, u32)> = vec![(0, 0); jobs.len()];
    let mut now = 0.0;
    let mut ran = Vec::new();
    loop {
        let mut budget = 512;
        let mut work = Vec::new();
        for ((player, job), (read, written)) in jobs.iter().zip(&mut state) {
            if job.arrival_s > now || *written >= job.answer {
                continue;
            }
            let (phase, tokens) = match *read < job.prompt {
                true => (Phase::Prefill, budget.min(job.prompt - *read)),
                false => (Phase::Decode, 1),
            };
            if tokens == 0 {
                continue;
            }
            work.push(SequenceWork {
                request: *player as u64,
                phase,
                computed_tokens: tokens,
                context_tokens: *read + *written,
                rejected_tokens: 0,
            });
            match phase {
                Phase::Prefill => {
                    budget -= tokens;
                    *read += tokens;
                }
                Phase::Decode => *written += 1,
            }
        }
        if work.is_empty() {
            let open = jobs.iter().zip(&state).filter(|((_, j), s)| s.1 < j.answer);
            let next = open.map(|((_, j), _)| j.arrival_s).reduce(f64::min);
            match next {
                Some(at) => now = at,
                None => return ran,
            }
            continue;
        }
        let (bytes, flops) = (cost.step_bytes(&work), cost.step_flops(&work));
        let seconds = GPU.step_seconds(bytes, flops);
        ran.push(Ran {
            start_s: now,
            seconds,
            joules: GPU.step_joules(bytes, flops),
            work,
        });
        now += seconds;
    }
}

fn trial(random: &mut Random, players: usize) -> Vec<Job> {
    (0..players)
        .map(|_| {
            let long = random.unit() < 0.3;
            let (prompt, answer) = match long {
                true => (random.between(2_000.0, 6_000.0), random.between(8.0, 40.0)),
                false => (
                    400.0 * (0.6 * random.normal()).exp(),
                    random.between(8.0, 400.0),
                ),
            };
            Job {
                arrival_s: random.between(0.0, 1.2),
                prompt: prompt as u32 + 1,
                answer: answer as u32,
            }
        })
        .collect()
}

/// How a meter shows the energy of the steps.
#[derive(Debug, Clone, Copy)]
enum Sensor {
    /// After every step, exactly.
    EveryStep,
    /// A counter that changes once in so many milliseconds.
    Counter(u64),
    /// Power, mean over the last 25 of every 100 ms.
    PartTimePower,
    /// Power, mean over the last second, read every 100 ms.
    AveragedPower,
}

/// Energy used until a time, J.
fn used(ran: &[Ran], until_s: f64) -> f64 {
    let busy: f64 = ran
        .iter()
        .map(|r| r.joules * ((until_s - r.start_s) / r.seconds).clamp(0.0, 1.0))
        .sum();
    let busy_s: f64 = ran
        .iter()
        .map(|r| (until_s - r.start_s).clamp(0.0, r.seconds))
        .sum();
    busy + GPU.static_watts * (until_s - busy_s)
}

fn us(seconds: f64) -> u64 {
    (seconds * 1e6).round() as u64
}

/// Times and watts or energies that the sensor shows over a trial.
fn sense(ledger: &mut Ledger, gpu: DeviceIndex, sensor: Sensor, ran: &[Ran], from_s: f64) {
    let end = ran.last().map_or(0.0, |r| r.start_s + r.seconds) + 1.2;
    let counter = |ledger: &mut Ledger, at: f64| {
        ledger.counter(gpu, us(from_s + at), us(from_s * 1e3 + used(ran, at)), None);
    };
    match sensor {
        Sensor::EveryStep => ran.iter().for_each(|r| {
            counter(ledger, r.start_s);
            counter(ledger, r.start_s + r.seconds);
        }),
        Sensor::Counter(period_ms) => {
            let period = period_ms as f64 / 1e3;
            for tick in 0..(end / period) as u64 {
                counter(ledger, tick as f64 * period);
            }
        }
        Sensor::PartTimePower | Sensor::AveragedPower => {
            let window = match sensor {
                Sensor::PartTimePower => 0.025,
                _ => 1.0,
            };
            for tick in 0..(end * 10.0) as u64 {
                let at = tick as f64 / 10.0;
                let before = (at - window).max(0.0);
                let watts = match at > before {
                    true => (used(ran, at) - used(ran, before)) / (at - before),
                    false => GPU.static_watts,
                };
                ledger.power(gpu, us(from_s + at), watts);
            }
        }
    }
}

/// Joules of each player by our ledger, which has learned the device on the trials before.
fn by_ledger(
    ledger: &mut Ledger,
    sensor: Sensor,
    cost: Option<ModelCost>,
    ran: &[Ran],
    trial: usize,
    players: usize,
) -> Vec<f64> {
    let gpu = ledger.device("gpu", DeviceKind::Gpu).expect("first");
    let (from_s, base) = (trial as f64 * 100.0, trial as u64 * 100);
    for r in ran {
        let mut sequences = r.work.clone();
        sequences.iter_mut().for_each(|w| w.request += base);
        ledger.step(Step {
            start_us: us(from_s + r.start_s),
            end_us: us(from_s + r.start_s + r.seconds),
            devices: Devices::of(&[gpu]),
            cost,
            sequences,
        });
    }
    sense(ledger, gpu, sensor, ran, from_s);
    ledger.advance(us(from_s + 100.0), us(from_s + 100.0));
    let joules = |player: usize| {
        ledger
            .receipt(base + player as u64)
            .map_or(0.0, |r| r.joules())
    };
    (0..players).map(joules).collect()
}

/// Splits the whole energy of the steps by a weight.
fn by_weight(ran: &[Ran], players: usize, weight: impl Fn(&SequenceWork) -> f64) -> Vec<f64> {
    let mut weights = vec![0.0; players];
    for work in ran.iter().flat_map(|r| &r.work) {
        weights[work.request as usize] += weight(work);
    }
    let whole: f64 = weights.iter().sum();
    let joules: f64 = ran.iter().map(|r| r.joules).sum();
    weights.iter().map(|w| joules * w / whole).collect()
}

/// What everybody's share of every step would be if they were alike.
fn equal_per_step(ran: &[Ran], players: usize) -> Vec<f64> {
    let mut shares = vec![0.0; players];
    for r in ran {
        for work in &r.work {
            shares[work.request as usize] += r.joules / r.work.len() as f64;
        }
    }
    shares
}

/// What the meter shows while each request is alive: everybody pays for everybody.
fn while_alive(ran: &[Ran], players: usize) -> Vec<f64> {
    let alive = |player: usize| {
        let mine = |r: &&Ran| r.work.iter().any(|w| w.request == player as u64);
        let first = ran.iter().position(|r| mine(&r)).expect("served");
        let last = ran.iter().rposition(|r| mine(&r)).expect("served");
        ran[first..=last].iter().map(|r| r.joules).sum()
    };
    (0..players).map(alive).collect()
}

/// Errors of one method against the Shapley value.
#[derive(Default)]
struct Errors(Vec<f64>);

impl Errors {
    fn add(&mut self, shares: &[f64], fair: &[f64]) {
        let error = |(share, fair): (&f64, &f64)| 100.0 * (share / fair - 1.0).abs();
        self.0.extend(shares.iter().zip(fair).map(error));
    }

    fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    fn row(&self) -> String {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let p95 = sorted[sorted.len() * 95 / 100];
        format!("{:6.1} % ({p95:.0})", self.mean())
    }
}

const PLAYERS: usize = 7;
const TRIALS: usize = 25;
/// Trials on which the ledgers only learn the device.
const LEARNING: usize = 5;

const SENSORS: [(&str, Sensor); 5] = [
    ("components, counter after every step", Sensor::EveryStep),
    ("components, counter 20 ms", Sensor::Counter(20)),
    ("components, counter 100 ms", Sensor::Counter(100)),
    ("components, power 25 of 100 ms", Sensor::PartTimePower),
    ("components, power averaged over 1 s", Sensor::AveragedPower),
];

fn table(name: &str, cost: ModelCost) -> BTreeMap<&'static str, Errors> {
    let mut random = Random::new(11);
    let mut methods: BTreeMap<&'static str, Errors> = BTreeMap::new();
    let mut ledgers: Vec<Ledger> = SENSORS.iter().map(|_| Ledger::new(None)).collect();
    let mut tokens = Ledger::new(None);
    for number in 0..LEARNING + TRIALS {
        let jobs = trial(&mut random, PLAYERS);
        let players: Vec<(usize, Job)> = jobs.iter().copied().enumerate().collect();
        let ran = serve(&cost, &players);
        let mut shares: Vec<(&'static str, Vec<f64>)> = Vec::new();
        for ((label, sensor), ledger) in SENSORS.iter().zip(&mut ledgers) {
            let joules = by_ledger(ledger, *sensor, Some(cost), &ran, number, PLAYERS);
            shares.push((*label, joules));
        }
        let step = Sensor::EveryStep;
        let joules = by_ledger(&mut tokens, step, None, &ran, number, PLAYERS);
        shares.push(("by tokens of the step", joules));
        if number < LEARNING {
            continue;
        }
        let subset = |set: u32| {
            let members = players.iter().filter(|(p, _)| set >> p & 1 == 1);
            let members: Vec<(usize, Job)> = members.copied().collect();
            serve(&cost, &members).iter().map(|r| r.joules).sum()
        };
        let fair = shapley(PLAYERS, subset);
        let output = |w: &SequenceWork| f64::from(u8::from(w.phase == Phase::Decode));
        let total = |w: &SequenceWork| f64::from(w.computed_tokens);
        let weighted = |w: &SequenceWork| match w.phase {
            Phase::Prefill => f64::from(w.computed_tokens),
            Phase::Decode => 20.0,
        };
        let whole: f64 = ran.iter().map(|r| r.joules).sum();
        shares.push(("whole device while alive", while_alive(&ran, PLAYERS)));
        shares.push(("equal per request", vec![whole / PLAYERS as f64; PLAYERS]));
        shares.push(("by output tokens", by_weight(&ran, PLAYERS, output)));
        shares.push(("by all tokens", by_weight(&ran, PLAYERS, total)));
        shares.push((
            "by tokens, output 20 times",
            by_weight(&ran, PLAYERS, weighted),
        ));
        shares.push(("equal per step", equal_per_step(&ran, PLAYERS)));
        for (label, shares) in shares {
            methods.entry(label).or_default().add(&shares, &fair);
        }
    }
    println!("\n{name}: error per request against Shapley, mean (95th percentile)");
    let mut rows: Vec<_> = methods.iter().collect();
    rows.sort_by(|a, b| b.1.mean().total_cmp(&a.1.mean()));
    for (label, errors) in rows {
        println!("  {label:40} {}", errors.row());
    }
    methods
}

#[test]
fn the_split_by_components_is_within_ten_percent_of_the_shapley_value_of_the_whole_service() {
    for (name, cost) in [("8B fp16", SMALL), ("70B fp8", LARGE)] {
        let methods = table(name, cost);
        let error = |label: &str| methods[label].mean();
        assert!(
            error("components, counter after every step") <= 10.0,
            "{name}"
        );
        assert!(error("components, counter 20 ms") <= 10.0, "{name}");
        assert!(error("components, counter 100 ms") <= 15.0, "{name}");
        // The cheaper ways must not look better than they are.
        assert!(error("by output tokens") > 30.0, "{name}");
        assert!(error("whole device while alive") > 100.0, "{name}");
    }
}

#[test]
fn within_one_step_the_closed_form_is_within_ten_percent_of_the_shapley_value() {
    let mut random = Random::new(12);
    let mut fit = CostFit::default();
    let mut batch = || -> Vec<SequenceWork> {
        let count = 1 + random.below(6);
        let sequence = |request| {
            let prefill = random.unit() < 0.3;
            SequenceWork {
                request,
                phase: if prefill {
                    Phase::Prefill
                } else {
                    Phase::Decode
                },
                computed_tokens: if prefill {
                    16 + random.below(497) as u32
                } else {
                    1
                },
                context_tokens: random.below(8_000) as u32,
                rejected_tokens: 0,
            }
        };
        (0..count).map(sequence).collect()
    };
    let seconds =
        |work: &[SequenceWork]| GPU.step_seconds(SMALL.step_bytes(work), SMALL.step_flops(work));
    let joules = |work: &[SequenceWork]| match work.is_empty() {
        true => 0.0,
        false => GPU.step_joules(SMALL.step_bytes(work), SMALL.step_flops(work)),
    };
    for _ in 0..2_000 {
        let work = batch();
        let step = StepCost {
            seconds: seconds(&work),
            bytes: SMALL.step_bytes(&work),
            flops: SMALL.step_flops(&work),
        };
        fit.saw_step(&step);
        fit.saw_window(&step, joules(&work));
    }
    let (mut errors, mut worst) = (Errors::default(), 0.0f64);
    for _ in 0..2_000 {
        let work = batch();
        let fair = shapley(work.len(), |set| {
            let members = work.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1);
            joules(&members.map(|(_, w)| *w).collect::<Vec<_>>())
        });
        let (_, parts) = fit.split(seconds(&work), Some(&SMALL), &work);
        let whole: f64 = parts.iter().map(|p| p.weight).sum();
        let shares: Vec<f64> = parts
            .iter()
            .map(|p| p.weight / whole * joules(&work))
            .collect();
        let sum: f64 = shares.iter().sum();
        assert!((sum / joules(&work) - 1.0).abs() < 1e-9);
        errors.add(&shares, &fair);
        worst = errors.0.iter().copied().fold(worst, f64::max);
    }
    println!("single steps: {} worst {worst:.1} %", errors.row());
    assert!(errors.mean() <= 10.0, "{}", errors.mean());
}
