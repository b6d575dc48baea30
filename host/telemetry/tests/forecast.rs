//! How well temperature is foreseen on two virtual machines: one that is what the predictor
//! assumes and one that is not (three nodes, fan, leakage, changing air), both seen through
//! a thermometer of whole degrees. `-- --nocapture` prints the tables.

use homeostat_telemetry::forecast::{Forecaster, HORIZON_S, Method};
use homeostat_telemetry::plant::{Plant, PlantSpec, Random};

/// One second as the sensors told it.
#[derive(Clone, Copy)]
struct Second {
    celsius: f64,
    watts: f64,
}

/// Random loads of 3 to 60 s on a machine that does not slow down.
fn random_load(spec: &PlantSpec, seed: u64, seconds: usize, watts_max: f64) -> Vec<Vec<Second>> {
    let mut spec = spec.clone();
    spec.throttle.limit_celsius = 1_000.0;
    spec.throttle.limit_watts = 10_000.0;
    let mut random = Random::new(seed);
    let mut plant = Plant::new(spec, seed);
    let (mut watts, mut left) = (0.0, 0);
    let idle = plant.spec().roofline.static_watts;
    (0..seconds)
        .map(|_| {
            if left == 0 {
                watts = random.between(0.0, watts_max - idle);
                left = 3 + random.below(58);
            }
            left -= 1;
            let sample = |_| {
                plant.advance(100, watts);
                Second {
                    celsius: plant.temperature(),
                    watts: plant.power(),
                }
            };
            (0..10).map(sample).collect()
        })
        .collect()
}

fn mean(second: &[Second], of: impl Fn(&Second) -> f64) -> f64 {
    second.iter().map(of).sum::<f64>() / second.len() as f64
}

const LIMIT: f64 = 87.0;
const HORIZONS: [usize; 3] = [5, 10, 30];

/// Mean absolute errors at each horizon.
#[derive(Default, Clone, Copy)]
struct Errors {
    sum: [f64; 3],
    count: [f64; 3],
}

impl Errors {
    fn add(&mut self, horizon: usize, error: f64) {
        self.sum[horizon] += error.abs();
        self.count[horizon] += 1.0;
    }

    fn mae(&self) -> [f64; 3] {
        std::array::from_fn(|i| self.sum[i] / self.count[i])
    }

    fn row(&self) -> String {
        self.mae().map(|e| format!("{e:5.2}")).join(" | ")
    }
}

/// Persistence, slope, bank without and with the plan.
#[derive(Default)]
struct Contest {
    stay: Errors,
    slope: Errors,
    unplanned: Errors,
    planned: Errors,
    reported: f64,
    actual_square: f64,
    actual_count: f64,
}

impl Contest {
    fn run(&mut self, seconds: &[Vec<Second>], passive: bool) {
        let means: Vec<Second> = seconds
            .iter()
            .map(|s| Second {
                celsius: mean(s, |x| x.celsius),
                watts: mean(s, |x| x.watts),
            })
            .collect();
        let plan: Vec<f64> = means.iter().map(|s| s.watts).collect();
        let mut forecaster = Forecaster::new(passive);
        let mut done = 0;
        let mut square = (0.0, 0.0);
        for (tick, sample) in seconds.iter().flatten().enumerate() {
            // The second that ends with this sample; its plan is what follows.
            let ahead = &plan[(tick / 10 + 1).min(plan.len())..];
            let now_ms = tick as u64 * 100;
            if !forecaster.observe(LIMIT - sample.celsius, Some(sample.watts), ahead, now_ms) {
                continue;
            }
            done = tick / 10;
            if done < 300 {
                continue;
            }
            for (h, &horizon) in HORIZONS.iter().enumerate() {
                let Some(then) = means.get(done + horizon) else {
                    continue;
                };
                let error = |margin: Option<f64>| LIMIT - margin.expect("trained") - then.celsius;
                self.stay.add(h, means[done].celsius - then.celsius);
                self.slope
                    .add(h, error(forecaster.margin_by_slope(horizon)));
                self.unplanned
                    .add(h, error(forecaster.margin_by_bank(horizon, &[])));
                self.planned
                    .add(h, error(forecaster.margin_by_bank(horizon, ahead)));
            }
            if let Some(then) = means.get(done + HORIZON_S) {
                let margin = forecaster
                    .margin_by_bank(HORIZON_S, ahead)
                    .expect("trained");
                square.0 += (LIMIT - margin - then.celsius).powi(2);
                square.1 += 1.0;
            }
        }
        assert!(done + 2 >= seconds.len());
        let outlook = forecaster.outlook(&[]).expect("long trained");
        assert_eq!(outlook.method, Method::FilterBank);
        self.reported += outlook.rmse_celsius.expect("checked often");
        self.actual_square += (square.0 / square.1).sqrt();
        self.actual_count += 1.0;
    }
}

#[test]
fn ten_seconds_ahead_it_is_wrong_by_less_than_one_degree_and_thirty_ahead_by_less_than_two() {
    for (name, spec, watts_max, passive) in [
        ("linear, two nodes", PlantSpec::linear(), 650.0, false),
        (
            "mismatched, three nodes",
            PlantSpec::mismatched(),
            650.0,
            false,
        ),
        ("phone, passive", PlantSpec::phone(), 5.0, true),
    ] {
        let mut contest = Contest::default();
        for seed in 1..=6 {
            contest.run(&random_load(&spec, seed, 2_400, watts_max), passive);
        }
        println!("\n{name}: mean absolute error, °C, at 5 | 10 | 30 s (6 seeds of 40 min)");
        println!("  it stays as it is      {}", contest.stay.row());
        println!("  fading slope           {}", contest.slope.row());
        println!("  filter bank, no plan   {}", contest.unplanned.row());
        println!("  filter bank, plan      {}", contest.planned.row());
        let reported = contest.reported / contest.actual_count;
        let actual = contest.actual_square / contest.actual_count;
        println!("  error at 20 s: {reported:.2} reported, {actual:.2} in fact (RMSE)");
        let [_, at_10, at_30] = contest.planned.mae();
        assert!(at_10 <= 1.0 && at_30 <= 2.0, "{name}: {at_10} {at_30}");
        assert!((reported / actual - 1.0).abs() <= 0.2, "{name}");
    }
}
