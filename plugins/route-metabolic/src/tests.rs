//! Cases as text, and properties over random machines.

use homeostat_cases::{Case, Reply};

use super::*;

fn decide(case: &Case) -> Reply {
    let settings = Settings::preset(case.snapshot.profile);
    Reply::Decision(route(
        &case.request,
        &case.classification,
        &case.tiers,
        &case.snapshot,
        &settings,
    ))
}

#[test]
fn every_case_of_cases_toml_holds() {
    homeostat_cases::run(include_str!("../cases.toml"), decide);
}

/// Numbers from a seed, so that a failure can be repeated.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn ratio(&mut self) -> f32 {
        (self.next() % 1001) as f32 / 1000.0
    }

    fn flip(&mut self) -> bool {
        self.next().is_multiple_of(2)
    }

    fn sample(&mut self, scale: f64) -> Option<Sample> {
        self.flip()
            .then(|| Sample::measured(f64::from(self.ratio()) * scale))
    }

    fn tiers(&mut self) -> Vec<Tier> {
        let remote = self.flip();
        (0..1 + self.next() % 4)
            .map(|i| Tier {
                id: format!("tier-{i}"),
                kind: if remote && i > 0 {
                    TierKind::Remote
                } else {
                    TierKind::Local
                },
                rank: i as u32,
                ready: !self.next().is_multiple_of(8),
                quality: (self.ratio(), self.ratio(), self.ratio()),
                parameters: self.flip().then(|| 1 + self.next()),
                joules_per_token: self.sample(5.0),
                ttft_ms: self.sample(3000.0),
                tpot_ms: self.sample(80.0),
                usd_per_mtok_output: self.flip().then(|| f64::from(self.ratio()) * 10.0),
                can_speculate: self.flip(),
                ..Tier::default()
            })
            .collect()
    }

    fn snapshot(&mut self) -> Snapshot {
        Snapshot {
            profile: [Profile::Datacenter, Profile::Edge, Profile::Mcu][self.next() as usize % 3],
            devices: (0..self.next() % 3)
                .map(|i| Device {
                    id: format!("gpu.{i}"),
                    temperature_celsius: self.sample(100.0),
                    thermal_margin_celsius: self.sample(60.0),
                    ..Device::default()
                })
                .collect(),
            supply: self.flip().then(|| Supply {
                on_battery: self.flip(),
                charge_ratio: self.flip().then(|| self.ratio()),
                time_left_s: self.flip().then(|| self.next() as u32 % 10_000),
                ..Supply::default()
            }),
            metabolism: Metabolism {
                degrade_ratio: self.ratio(),
                ..Metabolism::default()
            },
            ..Snapshot::default()
        }
    }

    fn classification(&mut self) -> Classification {
        let (a, b) = (self.ratio(), self.ratio());
        Classification {
            p_simple: a * b,
            p_medium: a * (1.0 - b),
            p_complex: 1.0 - a,
            confidence: self.ratio(),
            ..Classification::default()
        }
    }

    fn request(&mut self) -> Request {
        Request {
            id: format!("req-{}", self.next()),
            deadline_ms: self.flip().then(|| self.next() as u32 % 5000),
            max_tokens: self.flip().then(|| 1 + self.next() as u32 % 500),
            ..Request::default()
        }
    }
}

fn ask(r: &Request, c: &Classification, t: &[Tier], s: &Snapshot) -> Decision {
    route(r, c, t, s, &Settings::preset(s.profile))
}

fn first_rank(decision: &Decision, tiers: &[Tier]) -> Option<u32> {
    let Decision::Plan(plan) = decision else {
        return None;
    };
    tiers
        .iter()
        .find(|t| t.id == plan.steps[0].tier)
        .map(|t| t.rank)
}

const SEEDS: u64 = 2000;

#[test]
fn a_hotter_machine_never_picks_a_larger_first_tier() {
    use MetabolicState::{Constrained, Critical, Elevated, Nominal};
    for seed in 0..SEEDS {
        let mut random = Seeded(seed);
        let (tiers, mut snapshot) = (random.tiers(), random.snapshot());
        let (c, request) = (random.classification(), random.request());
        let mut coolest = None;
        for (risk, state) in [Nominal, Elevated, Constrained, Critical]
            .into_iter()
            .enumerate()
        {
            snapshot.metabolism.state = state;
            snapshot.metabolism.causes.thermal = state != Nominal;
            snapshot.metabolism.risk = risk as f32 / 3.0;
            let rank = first_rank(&ask(&request, &c, &tiers, &snapshot), &tiers);
            assert!(
                coolest.is_none() || rank <= coolest,
                "seed {seed}: {rank:?} > {coolest:?}"
            );
            coolest = rank.or(coolest);
        }
    }
}

#[test]
fn an_emptier_battery_and_a_fuller_budget_never_pick_a_larger_first_tier() {
    for seed in 0..SEEDS {
        let mut random = Seeded(seed);
        let (tiers, mut snapshot) = (random.tiers(), random.snapshot());
        let (c, request) = (random.classification(), random.request());
        let mut last = None;
        for need in [0.0, 0.3, 0.6, 0.85, 0.95, 1.0] {
            snapshot.supply = Some(Supply {
                on_battery: need > 0.0,
                charge_ratio: Some(1.0 - need as f32),
                ..Supply::default()
            });
            snapshot.budgets = vec![Budget {
                limit: 100.0,
                used: 100.0 * need,
                ..Budget::default()
            }];
            let rank = first_rank(&ask(&request, &c, &tiers, &snapshot), &tiers);
            assert!(last.is_none() || rank <= last, "seed {seed}, need {need}");
            last = rank.or(last);
        }
    }
}

#[test]
fn the_order_of_the_tiers_changes_nothing() {
    for seed in 0..SEEDS {
        let mut random = Seeded(seed);
        let (mut tiers, snapshot) = (random.tiers(), random.snapshot());
        let (c, request) = (random.classification(), random.request());
        let decision = ask(&request, &c, &tiers, &snapshot);
        let turn = random.next() as usize % tiers.len();
        tiers.rotate_left(turn);
        assert_eq!(
            ask(&request, &c, &tiers, &snapshot),
            decision,
            "seed {seed}"
        );
        tiers.reverse();
        assert_eq!(
            ask(&request, &c, &tiers, &snapshot),
            decision,
            "seed {seed}"
        );
    }
}

#[test]
fn every_decision_is_one_that_the_host_can_act_on_even_when_numbers_are_no_numbers() {
    for seed in 0..SEEDS {
        let mut random = Seeded(seed);
        let (mut tiers, mut snapshot) = (random.tiers(), random.snapshot());
        let (mut c, request) = (random.classification(), random.request());
        let wild = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1e300, 0.0];
        let mut pick = || wild[random.next() as usize % wild.len()];
        for tier in &mut tiers {
            tier.tpot_ms = Some(Sample::measured(pick()));
            tier.joules_per_token = Some(Sample::measured(pick()));
            tier.usd_per_mtok_prompt = Some(pick());
            tier.quality.1 = pick() as f32;
        }
        c.confidence = pick() as f32;
        c.p_complex = pick() as f32;
        snapshot.metabolism.risk = pick() as f32;
        snapshot.metabolism.degrade_ratio = pick() as f32;
        snapshot.budgets = vec![Budget {
            limit: pick(),
            used: pick(),
            ..Budget::default()
        }];
        let decision = ask(&request, &c, &tiers, &snapshot);
        assert_eq!(check::decision(&decision, &tiers), Ok(()), "seed {seed}");
    }
}

#[test]
fn a_machine_that_tells_nothing_still_gets_a_plan() {
    let tiers = [Tier {
        id: "only".into(),
        ready: true,
        ..Tier::default()
    }];
    let decision = ask(
        &Request::default(),
        &Classification::default(),
        &tiers,
        &Snapshot::default(),
    );
    assert_eq!(first_rank(&decision, &tiers), Some(0));
}

#[test]
fn settings_that_cannot_be_read_are_refused_by_name() {
    let set = |key: &'static str, value: &'static str| {
        Settings::read(Profile::Edge, move |k| (k == key).then(|| value.to_owned()))
    };
    assert_eq!(set("profile", "mcu"), Ok(Settings::preset(Profile::Mcu)));
    assert_eq!(set("nothing", "x"), Ok(Settings::preset(Profile::Edge)));
    assert!(
        !set("direct-answers", "off")
            .expect("a setting")
            .direct_answers
    );
    for (key, value) in [
        ("profile", "fast"),
        ("energy-price", "cheap"),
        ("energy-price", "NaN"),
        ("accept-threshold", "2"),
        ("direct-answers", "maybe"),
    ] {
        let error = set(key, value).expect_err(key).to_string();
        assert!(error.contains(key) && error.contains(value), "{error}");
    }
}
