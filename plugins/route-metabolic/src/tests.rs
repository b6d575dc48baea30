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
        &Memory::default(),
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
                attributes: self
                    .flip()
                    .then(|| joining(self.ratio() * 2.0))
                    .into_iter()
                    .collect(),
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

    /// What requests before this one may have left behind, and one that they could be.
    fn kept(&mut self, tiers: &[Tier], snapshot: &Snapshot) -> (Kept, Request) {
        let kept = Kept::default();
        let request = turn(3);
        for n in 0..self.next() % 40 {
            let tier = &tiers[self.next() as usize % tiers.len()].id;
            let outcome = Outcome {
                tier: Some(tier.clone()),
                steps_tried: 1 + u32::from(self.flip()),
                confidence: self.flip().then(|| self.ratio()),
                generated_tokens: self.next() as u32 % 100,
                ttft_ms: self.flip().then(|| self.next() as u32 % 500),
                total_ms: self.next() as u32 % 2000,
                joules: self.sample(300.0),
                ..Outcome::default()
            };
            let then = Snapshot {
                monotonic_ms: n * 1000,
                budgets: vec![Budget {
                    limit: 100.0,
                    used: n as f64 * 4.0,
                    window_left_s: Some(40),
                    ..Budget::default()
                }],
                ..snapshot.clone()
            };
            kept.learn(&request, &outcome, &then);
        }
        (kept, request)
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
    remembering(r, c, t, s, &Kept::default())
}

fn remembering(r: &Request, c: &Classification, t: &[Tier], s: &Snapshot, kept: &Kept) -> Decision {
    let memory = Memory::read(r, t, s, |key| kept.get(key));
    route(r, c, t, s, &Settings::preset(s.profile), &memory)
}

/// The host's key-value state.
#[derive(Default)]
struct Kept(std::cell::RefCell<std::collections::BTreeMap<String, Vec<u8>>>);

impl Kept {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.0.borrow().get(key).cloned()
    }

    fn learn(&self, request: &Request, outcome: &Outcome, snapshot: &Snapshot) {
        let set = |key: &str, text: String| {
            self.0
                .borrow_mut()
                .insert(key.to_owned(), text.into_bytes());
        };
        learn(request, outcome, snapshot, |key| self.get(key), set);
    }
}

/// The turn so and so of one conversation, from 1.
/// A request for which the classifier is sure that the small tier nearly suffices.
fn mostly_simple() -> Classification {
    Classification {
        p_simple: 0.9,
        p_medium: 0.1,
        p_complex: 0.0,
        confidence: 0.9,
        ..Classification::default()
    }
}

fn turn(number: usize) -> Request {
    let say = |role, content: &str| Message {
        role,
        content: content.to_owned(),
    };
    let mut messages = vec![say(Role::User, "Tell me about primes.")];
    for _ in 1..number {
        messages.push(say(Role::Assistant, "They are numbers."));
        messages.push(say(Role::User, "Prove that there are infinitely many."));
    }
    Request {
        id: format!("req-{number}"),
        messages,
        ..Request::default()
    }
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
fn whatever_it_has_learned_a_hotter_machine_never_picks_a_larger_first_tier() {
    use MetabolicState::{Constrained, Critical, Elevated, Nominal};
    for seed in 0..SEEDS {
        let mut random = Seeded(seed);
        let (tiers, mut snapshot) = (random.tiers(), random.snapshot());
        let c = random.classification();
        let (kept, request) = random.kept(&tiers, &snapshot);
        snapshot.monotonic_ms = random.next() % 60_000;
        snapshot.budgets = vec![Budget {
            limit: 100.0,
            used: 10.0,
            ..Budget::default()
        }];
        let mut coolest = None;
        for state in [Nominal, Elevated, Constrained, Critical] {
            snapshot.metabolism.state = state;
            let decision = remembering(&request, &c, &tiers, &snapshot, &kept);
            assert_eq!(check::decision(&decision, &tiers), Ok(()), "seed {seed}");
            let rank = first_rank(&decision, &tiers);
            assert!(coolest.is_none() || rank <= coolest, "seed {seed}");
            coolest = rank.or(coolest);
        }
    }
}

/// A small, a middle and a large tier; the classifier finds the request hard.
fn three_tiers() -> (Vec<Tier>, Classification) {
    let tier = |id: &str, rank, quality, parameters| Tier {
        id: id.into(),
        rank,
        ready: true,
        quality,
        parameters: Some(parameters),
        ..Tier::default()
    };
    let tiers = vec![
        tier("small", 0, (0.8, 0.4, 0.15), 135_000_000),
        tier("middle", 1, (0.9, 0.7, 0.5), 900_000_000),
        tier("large", 2, (0.97, 0.88, 0.8), 1_700_000_000),
    ];
    let classification = Classification {
        p_simple: 0.1,
        p_medium: 0.3,
        p_complex: 0.6,
        confidence: 0.9,
        ..Classification::default()
    };
    (tiers, classification)
}

/// What one more answer adds, as the host tells it.
fn joining(ratio: f32) -> Attribute {
    let ratio = Value::Number(f64::from(ratio));
    ("homeostat.joules-joining-ratio".to_owned(), ratio)
}

#[test]
fn a_large_tier_that_is_at_work_is_joined_for_what_would_not_wake_it() {
    let (tiers, hard) = three_tiers();
    let mut tiers = [tiers[0].clone(), tiers[2].clone()];
    let easy = Classification {
        p_simple: 1.0,
        p_medium: 0.0,
        p_complex: 0.0,
        ..hard
    };
    let mut begun_with = |ratio| {
        tiers[1].attributes = vec![joining(ratio)];
        let snapshot = Snapshot {
            profile: Profile::Edge,
            ..Snapshot::default()
        };
        plan_of(ask(&turn(1), &easy, &tiers, &snapshot)).steps[0]
            .tier
            .clone()
    };
    let tiers = [1.2, 0.2, 0.0, f32::NAN].map(&mut begun_with);
    // What is no share of anything is not believed.
    assert_eq!(tiers, ["small", "large", "small", "small"]);
}

#[test]
fn which_tier_is_the_smallest_does_not_depend_on_who_is_in_its_batch() {
    let (tiers, hard) = three_tiers();
    let mut tiers = [tiers[0].clone(), tiers[2].clone()];
    // The small one would have to be woken, on the hotter device; the large one is at work.
    for (tier, (ratio, degrade)) in tiers.iter_mut().zip([(4.0, 1.0), (0.2, 0.1)]) {
        let degrade = Value::Number(degrade);
        let degrade = ("homeostat.device-degrade-ratio".to_owned(), degrade);
        tier.attributes = vec![joining(ratio), degrade];
        tier.parameters = Some(1_000 + u64::from(tier.rank) * 1_000);
    }
    let critical = Snapshot {
        metabolism: Metabolism {
            state: MetabolicState::Critical,
            causes: Causes {
                thermal: true,
                ..Causes::default()
            },
            degrade_ratio: 1.0,
            ..Metabolism::default()
        },
        ..Snapshot::default()
    };
    let plan = plan_of(ask(&turn(1), &hard, &tiers, &critical));
    assert_eq!(plan.steps[0].tier, "small", "{}", plan.reason);
}

fn plan_of(decision: Decision) -> Plan {
    match decision {
        Decision::Plan(plan) => plan,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_request_on_one_machine_gets_three_decisions_from_three_profiles() {
    let (tiers, classification) = three_tiers();
    let mut seen = Vec::new();
    for profile in [Profile::Datacenter, Profile::Edge, Profile::Mcu] {
        let snapshot = Snapshot {
            profile,
            ..Snapshot::default()
        };
        let plan = plan_of(ask(&turn(1), &classification, &tiers, &snapshot));
        let ids: Vec<&str> = plan.steps.iter().map(|s| s.tier.as_str()).collect();
        let threshold = (plan.steps[0].accept_threshold * 100.0).round();
        seen.push((ids.join(", "), threshold));
    }
    let table = [("large", 76.0), ("middle, large", 61.0), ("small", 46.0)];
    let expected: Vec<(String, f32)> = table.map(|(ids, t)| (ids.to_owned(), t)).into();
    assert_eq!(seen, expected);
}

fn answered(tier: &str, confidence: f32) -> Outcome {
    Outcome {
        tier: Some(tier.into()),
        steps_tried: 1,
        confidence: Some(confidence),
        ..Outcome::default()
    }
}

/// Turns of one conversation, one every five seconds, every other one easy and every third one
/// escalated where it can be, while heat comes and goes. When it was answered by another tier.
fn switches(profile: Profile, kept: &Kept) -> Vec<u64> {
    let (mut tiers, hard) = three_tiers();
    // Light enough for every profile to want it.
    tiers[1].parameters = Some(600_000_000);
    let easy = Classification {
        p_simple: 1.0,
        p_medium: 0.0,
        p_complex: 0.0,
        ..hard.clone()
    };
    let (mut tier, mut switches) = (None, Vec::new());
    for number in 1..200 {
        let c = if number % 2 == 0 { &hard } else { &easy };
        let mut snapshot = Snapshot {
            profile,
            monotonic_ms: number as u64 * 5_000,
            ..Snapshot::default()
        };
        if number / 10 % 2 == 1 {
            snapshot.metabolism.state = MetabolicState::Elevated;
            snapshot.metabolism.causes.thermal = true;
            snapshot.metabolism.degrade_ratio = 1.0;
        }
        let plan = plan_of(remembering(&turn(number), c, &tiers, &snapshot, kept));
        let doubted = number % 3 == 0;
        let tried = if doubted { plan.steps.len() } else { 1 };
        let sent = plan.steps[tried - 1].tier.clone();
        let outcome = Outcome {
            steps_tried: tried as u32,
            ..answered(&sent, 0.9)
        };
        kept.learn(&turn(number), &outcome, &snapshot);
        if tier.as_ref().is_some_and(|t| *t != sent) {
            switches.push(snapshot.monotonic_ms);
        }
        tier = Some(sent);
    }
    switches
}

#[test]
fn a_conversation_changes_its_tier_at_most_once_in_a_dwell_time() {
    for profile in [Profile::Datacenter, Profile::Edge, Profile::Mcu] {
        let kept = Kept::default();
        let switches = switches(profile, &kept);
        let dwell_ms = u64::from(Settings::preset(profile).dwell_s) * 1000;
        assert!(switches.len() >= 5, "{profile:?} {switches:?}");
        let dwelt = |pair: &[u64]| pair[1] - pair[0] >= dwell_ms;
        assert!(switches.windows(2).all(dwelt), "{profile:?} {switches:?}");
        // What is forbidden is forbidden within the dwell time too.
        let critical = Snapshot {
            profile,
            monotonic_ms: switches[switches.len() - 1] + 1000,
            metabolism: Metabolism {
                state: MetabolicState::Critical,
                ..Metabolism::default()
            },
            ..Snapshot::default()
        };
        let (tiers, hard) = three_tiers();
        let plan = plan_of(remembering(&turn(3), &hard, &tiers, &critical, &kept));
        assert_eq!(plan.steps[0].tier, "small");
    }
}

#[test]
fn no_doubt_moves_a_conversation_that_has_just_moved() {
    let (tiers, hard) = three_tiers();
    let kept = Kept::default();
    let at = |second: u64| Snapshot {
        monotonic_ms: second * 1000,
        ..Snapshot::default()
    };
    // The second turn begins with the same tier, and is escalated to a larger one.
    kept.learn(&turn(2), &answered("small", 0.9), &at(0));
    let escalated = Outcome {
        steps_tried: 2,
        ..answered("middle", 0.9)
    };
    kept.learn(&turn(3), &escalated, &at(100));
    let planned = |second| {
        let plan = plan_of(remembering(&turn(4), &hard, &tiers, &at(second), &kept));
        let ids: Vec<String> = plan.steps.into_iter().map(|s| s.tier).collect();
        (ids.join(", "), plan.reason)
    };
    let (tiers, reason) = planned(105);
    assert_eq!(tiers, "middle", "{reason}");
    let keeps = "the conversation changed its tier 5 s ago and keeps it";
    assert!(reason.contains(keeps), "{reason}");
    assert_eq!(planned(165).0, "middle, large");
}

#[test]
fn a_share_of_conversations_is_moved_and_none_changes_sides() {
    let (tiers, hard) = three_tiers();
    let kept = Kept::default();
    let mut moved = 0;
    for conversation in 0..1000u64 {
        let firsts = [1, 2, 3].map(|number| {
            let mut request = turn(number);
            request.messages[0].content = format!("Tell me about the prime number {conversation}.");
            let snapshot = Snapshot {
                monotonic_ms: conversation * 100 + number as u64 * 10_000,
                metabolism: Metabolism {
                    degrade_ratio: 0.3,
                    ..Metabolism::default()
                },
                ..Snapshot::default()
            };
            let plan = plan_of(remembering(&request, &hard, &tiers, &snapshot, &kept));
            let first = plan.steps[0].tier.clone();
            kept.learn(&request, &answered(&first, 0.9), &snapshot);
            first
        });
        assert!(firsts.iter().all(|f| *f == firsts[0]), "{firsts:?}");
        assert!(matches!(firsts[0].as_str(), "small" | "middle"));
        moved += u32::from(firsts[0] == "small");
    }
    assert!((250..350).contains(&moved), "{moved} of 1000");
}

#[test]
fn what_the_classifier_does_not_know_is_moved_down_by_one_tier_at_most() {
    let (mut tiers, mut classification) = three_tiers();
    tiers[2].quality = (0.99, 0.97, 0.95);
    let snapshot = |risk| Snapshot {
        profile: Profile::Datacenter,
        metabolism: Metabolism {
            state: MetabolicState::Constrained,
            degrade_ratio: 1.0,
            risk,
            ..Metabolism::default()
        },
        ..Snapshot::default()
    };
    let first = |c: &Classification, risk| {
        plan_of(ask(&turn(1), c, &tiers, &snapshot(risk))).steps[0]
            .tier
            .clone()
    };
    assert_eq!(first(&classification, 1.0), "small");
    classification.confidence = 0.3;
    assert_eq!(first(&classification, 1.0), "middle");
    assert_eq!(first(&classification, 0.0), "middle");
}

#[test]
fn a_budget_above_its_pace_makes_tiers_dear_and_says_so() {
    let (tiers, classification) = three_tiers();
    let kept = Kept::default();
    let machine = |second: u32, watts: f64| Snapshot {
        profile: Profile::Datacenter,
        monotonic_ms: u64::from(second) * 1000,
        budgets: vec![Budget {
            scope: "host".into(),
            limit: 36_000.0,
            used: watts * f64::from(second),
            window_left_s: Some(3600 - second),
            ..Budget::default()
        }],
        ..Snapshot::default()
    };
    let decide = |second, watts| {
        let snapshot = machine(second, watts);
        let plan = plan_of(remembering(
            &turn(1),
            &classification,
            &tiers,
            &snapshot,
            &kept,
        ));
        kept.learn(&turn(1), &answered("large", 0.9), &snapshot);
        (plan.steps[0].tier.clone(), plan.reason)
    };
    assert_eq!(decide(0, 20.0).0, "large");
    (1..90).for_each(|second| drop(decide(second, 20.0)));
    let (tier, reason) = decide(90, 20.0);
    assert_ne!(tier, "large");
    assert!(
        reason.contains("budgets spent above their pace cost 0.8"),
        "{reason}"
    );
    // As much in all, but nothing more: the price falls again.
    for second in 91..300 {
        kept.learn(
            &turn(1),
            &answered("small", 0.9),
            &Snapshot {
                monotonic_ms: second * 1000,
                ..machine(90, 20.0)
            },
        );
    }
    assert_eq!(decide(91, 20.0).0, "large");
}

/// An hour of hard requests, one a second, that would all go to the large tier and spend three
/// times the budget: what is used of it after half of the hour, and after all of it.
fn hour(learns: bool) -> [f64; 2] {
    let (tiers, hard) = three_tiers();
    let kept = Kept::default();
    let limit = 12_000.0;
    let (mut used, mut half) = (0.0, 0.0);
    for second in 0..3600u32 {
        let snapshot = Snapshot {
            profile: Profile::Datacenter,
            monotonic_ms: u64::from(second) * 1000,
            budgets: vec![Budget {
                scope: "host".into(),
                limit,
                used,
                window_left_s: Some(3600 - second),
                ..Budget::default()
            }],
            ..Snapshot::default()
        };
        if second == 1800 {
            half = used;
        }
        let plan = plan_of(remembering(&turn(1), &hard, &tiers, &snapshot, &kept));
        let first = plan.steps[0].tier.clone();
        if learns {
            kept.learn(&turn(1), &answered(&first, 0.9), &snapshot);
        }
        used += match first.as_str() {
            "small" => 1.0,
            "middle" => 5.0,
            _ => 10.0,
        };
    }
    [half, used].map(|used| used / limit)
}

#[test]
fn what_is_learned_of_a_budget_makes_it_last_its_window() {
    let [half, whole] = hour(true);
    assert!((0.4..0.6).contains(&half), "{half}");
    assert!((0.85..1.0).contains(&whole), "{whole}");
    // By its share alone it is saved too late.
    let [half, whole] = hour(false);
    assert!(half > 0.8 && whole > 1.0, "{half} {whole}");
}

fn nearly_spent(unit: BudgetUnit, used: f64) -> Snapshot {
    Snapshot {
        budgets: vec![Budget {
            unit,
            limit: 100.0,
            used,
            ..Budget::default()
        }],
        ..Snapshot::default()
    }
}

#[test]
fn a_budget_of_dollars_makes_dear_tiers_dear_and_not_large_ones() {
    let (mut tiers, hard) = three_tiers();
    tiers.remove(1);
    let easy = Classification {
        p_simple: 1.0,
        p_medium: 0.0,
        p_complex: 0.0,
        ..hard.clone()
    };
    let first = |c: &Classification, tiers: &[Tier], snapshot: &Snapshot| {
        plan_of(ask(&turn(1), c, tiers, snapshot)).steps[0]
            .tier
            .clone()
    };
    let dollars = |used| nearly_spent(BudgetUnit::Usd, used);
    let joules = nearly_spent(BudgetUnit::Joules, 95.0);
    // Without prices they can only be those of electricity.
    assert_eq!(first(&hard, &tiers, &dollars(10.0)), "large");
    assert_eq!(first(&hard, &tiers, &joules), "small");
    assert_eq!(first(&hard, &tiers, &dollars(95.0)), "small");
    assert_eq!(first(&hard, &tiers, &dollars(100.0)), "small");
    // A small remote tier that is dear, and a large one that costs nothing but effort.
    tiers[0].kind = TierKind::Remote;
    tiers[0].usd_per_mtok_output = Some(1.0);
    assert_eq!(first(&easy, &tiers, &dollars(10.0)), "small");
    assert_eq!(first(&easy, &tiers, &joules), "small");
    assert_eq!(first(&easy, &tiers, &dollars(95.0)), "large");
    let spent = plan_of(ask(&turn(1), &easy, &tiers, &dollars(100.0)));
    assert_eq!(spent.steps[0].tier, "large");
    assert!(
        spent.reason.contains("1 dearer left out"),
        "{}",
        spent.reason
    );
    // So does one that is spent above its pace.
    let kept = Kept::default();
    let at = |second: u32| {
        let mut snapshot = dollars(f64::from(second));
        snapshot.monotonic_ms = u64::from(second) * 1000;
        snapshot.budgets[0].window_left_s = Some(3600 - second);
        snapshot
    };
    (0..70).for_each(|second| kept.learn(&turn(1), &answered("small", 0.9), &at(second)));
    let plan = plan_of(remembering(&turn(1), &easy, &tiers, &at(70), &kept));
    assert_eq!(plan.steps[0].tier, "large");
    let above = "budgets of money above their pace cost 0.69";
    assert!(plan.reason.contains(above), "{}", plan.reason);
}

/// Equal tiers on GPUs of which so much of the load should go elsewhere.
fn on_gpus(degrade_ratios: &[f64]) -> Vec<Tier> {
    let (tiers, _) = three_tiers();
    let tier = |(i, ratio): (usize, &f64)| Tier {
        id: format!("gpu-{i}"),
        rank: i as u32,
        attributes: vec![(
            "homeostat.device-degrade-ratio".to_owned(),
            Value::Number(*ratio),
        )],
        ..tiers[1].clone()
    };
    degrade_ratios.iter().enumerate().map(tier).collect()
}

fn hot(state: MetabolicState, degrade_ratio: f32, risk: f32) -> Snapshot {
    Snapshot {
        metabolism: Metabolism {
            state,
            causes: Causes {
                thermal: true,
                ..Causes::default()
            },
            degrade_ratio,
            risk,
            ..Metabolism::default()
        },
        ..Snapshot::default()
    }
}

#[test]
fn a_tier_on_a_hot_device_is_avoided_and_its_equals_on_cool_ones_are_not() {
    use MetabolicState::{Constrained, Critical, Elevated, Nominal};
    let (three, hard) = three_tiers();
    let first = |tiers: &[Tier], snapshot: &Snapshot| {
        plan_of(ask(&turn(1), &hard, tiers, snapshot)).steps[0]
            .tier
            .clone()
    };
    let mut ratios = [0.1; 8];
    ratios[0] = 0.9;
    let eight = on_gpus(&ratios);
    for state in [Nominal, Elevated, Constrained, Critical] {
        assert_eq!(first(&eight, &hot(state, 0.9, 0.5)), "gpu-1", "{state:?}");
    }
    assert_eq!(first(&eight, &Snapshot::default()), "gpu-0");
    // What the whole host lacks no cool device has.
    let mut power = hot(Constrained, 0.9, 0.0);
    power.metabolism.causes.power = true;
    assert_eq!(first(&eight, &power), "gpu-0");
    // Work is moved from a hot device to a cool one, and never the other way.
    let mut two = vec![three[0].clone(), three[2].clone()];
    let all = hot(Nominal, 1.0, 0.0);
    assert_eq!(first(&two, &all), "small");
    let mut tell = |ratios: [f64; 2]| {
        for (tier, ratio) in two.iter_mut().zip(ratios) {
            let key = "homeostat.device-degrade-ratio".to_owned();
            tier.attributes = vec![(key, Value::Number(ratio))];
        }
        first(&two, &all)
    };
    assert_eq!(tell([0.0, 1.0]), "small");
    assert_eq!(tell([1.0, 0.0]), "large");
}

#[test]
fn a_tier_that_was_silent_for_long_loses_against_its_equal_and_wins_while_it_is_warm() {
    let (_, hard) = three_tiers();
    let mut tiers = on_gpus(&[0.0, 0.0]);
    for tier in &mut tiers {
        tier.ttft_ms = Some(Sample::measured(100.0));
        tier.tpot_ms = Some(Sample::measured(5.0));
    }
    let kept = Kept::default();
    let streamed = Request {
        stream: true,
        ..turn(1)
    };
    let at = |monotonic_ms| Snapshot {
        profile: Profile::Mcu,
        monotonic_ms,
        ..Snapshot::default()
    };
    let answer = |began_ms: u64, ttft_ms| {
        let outcome = Outcome {
            ttft_ms: Some(ttft_ms),
            total_ms: ttft_ms + 100,
            ..answered("gpu-0", 0.9)
        };
        kept.learn(&streamed, &outcome, &at(began_ms));
    };
    answer(0, 100);
    for round in 1..5 {
        // After a silence of more than six minutes its model is loaded again.
        answer(round * 400_000, 8_000);
        answer(round * 400_000 + 10_000, 100);
    }
    let last = 4 * 400_000 + 10_200;
    let first = |tiers: &[Tier], now_ms| {
        let plan = remembering(&streamed, &hard, tiers, &at(now_ms), &kept);
        plan_of(plan).steps[0].tier.clone()
    };
    assert_eq!(first(&tiers, last + 1_000), "gpu-0");
    assert_eq!(first(&tiers, last + 360_000), "gpu-1");
    // Whoever works is there.
    tiers[0].num_requests_running = 1;
    assert_eq!(first(&tiers, last + 360_000), "gpu-0");
}

#[test]
fn every_step_tells_what_is_expected_of_it() {
    let (tiers, hard) = three_tiers();
    let plan = plan_of(ask(&turn(1), &hard, &tiers, &Snapshot::default()));
    let told = |key: &str| match plan.attributes.iter().find(|(name, _)| name == key) {
        Some((_, Value::Number(number))) => *number,
        other => panic!("{key}: {other:?}"),
    };
    let ids: Vec<&str> = plan.steps.iter().map(|s| s.tier.as_str()).collect();
    assert_eq!(ids, ["middle", "large"]);
    // As the reason says: middle 0.62−0.13, large 0.85−0.25.
    for (key, expected) in [
        ("homeostat.step.0.quality", 0.618),
        ("homeostat.step.0.price", 0.25 * 0.9 / 1.7),
        ("homeostat.step.1.quality", 0.84865),
        ("homeostat.step.1.price", 0.25),
    ] {
        assert!((told(key) - expected).abs() < 1e-4, "{key}: {}", told(key));
    }
    assert_eq!(plan.attributes.len(), 5, "{:?}", plan.attributes);
}

#[test]
fn a_threshold_that_was_set_is_lowered_by_need_alone_and_the_reason_says_so() {
    let (tiers, _) = three_tiers();
    let medium = mostly_simple();
    let kept = Kept::default();
    for tier in ["small", "middle", "large"] {
        for _ in 0..60 {
            let outcome = answered(tier, 0.3);
            kept.learn(&Request::default(), &outcome, &Snapshot::default());
        }
    }
    let planned = |set: Option<&str>, state| {
        let config = |key: &str| set.filter(|_| key == "accept-threshold").map(str::to_owned);
        let settings = Settings::read(Profile::Edge, config).expect("settings");
        let snapshot = hot(state, 0.0, 0.0);
        let memory = Memory::read(&turn(1), &tiers, &snapshot, |key| kept.get(key));
        let request = turn(1);
        let decision = route(&request, &medium, &tiers, &snapshot, &settings, &memory);
        let plan = plan_of(decision);
        // The host weighs no price against what was set, so it has to know.
        let told = (
            "homeostat.threshold-is-set".to_owned(),
            Value::Boolean(true),
        );
        assert_eq!(plan.attributes.contains(&told), set.is_some());
        (plan.steps[0].accept_threshold, plan.reason)
    };
    let (threshold, _) = planned(None, MetabolicState::Nominal);
    assert!((threshold - 0.3).abs() < 1e-3, "the yardstick: {threshold}");
    let (threshold, reason) = planned(Some("0.62"), MetabolicState::Nominal);
    assert!(
        threshold >= 0.62 && !reason.contains("calibrated"),
        "{reason}"
    );
    let (threshold, reason) = planned(Some("0.62"), MetabolicState::Elevated);
    assert!(threshold < 0.62, "{threshold}");
    let lowered = "accepts from 0.58, calibrated 0.62";
    assert!(reason.contains(lowered), "{reason}");
    assert!(planned(Some("0.99"), MetabolicState::Nominal).0 >= 0.99);
}

#[test]
fn an_answer_is_not_asked_for_more_confidence_than_the_last_tier_has() {
    let (tiers, _) = three_tiers();
    let medium = mostly_simple();
    let kept = Kept::default();
    let threshold = |kept: &Kept| {
        let plan = plan_of(remembering(
            &turn(1),
            &medium,
            &tiers,
            &Snapshot::default(),
            kept,
        ));
        assert!(plan.steps.len() > 1, "{}", plan.reason);
        let last = plan.steps[plan.steps.len() - 1].tier.clone();
        (plan.steps[0].accept_threshold, last)
    };
    let (before, last) = threshold(&kept);
    for n in 0..60 {
        let confidence = 0.3 + 0.01 * n as f32 / 2.0;
        kept.learn(
            &Request::default(),
            &answered(&last, confidence),
            &Snapshot::default(),
        );
    }
    // The sixth smallest of sixty, at most one in ten below.
    let (after, _) = threshold(&kept);
    assert!(
        before > 0.5 && (after - 0.33).abs() < 0.011,
        "{before} {after}"
    );
}

#[test]
fn between_two_tiers_the_classifiers_second_opinion_decides_as_far_as_it_knows_such_requests() {
    let (mut tiers, mut classification) = three_tiers();
    tiers.remove(1);
    let first = |c: &Classification, tiers: &[Tier]| {
        plan_of(ask(&turn(1), c, tiers, &Snapshot::default())).steps[0]
            .tier
            .clone()
    };
    assert_eq!(first(&classification, &tiers), "large");
    let told = |key: &str, value| (key.to_owned(), Value::Number(value));
    classification.attributes = vec![told("weak-right", 0.97), told("strong-gain", 0.0)];
    assert_eq!(first(&classification, &tiers), "small");
    classification.confidence = 0.3;
    let known = first(&classification, &tiers);
    classification.attributes.clear();
    assert_eq!(first(&classification, &tiers), known, "it does not know");
}

#[test]
fn a_classifier_that_is_too_sure_is_cooled_down_to_what_it_is_worth() {
    let (tiers, _) = three_tiers();
    let sure = Classification {
        p_simple: 0.96,
        p_medium: 0.02,
        p_complex: 0.02,
        confidence: 1.0,
        ..Classification::default()
    };
    let first = |temperature| {
        let settings = Settings {
            temperature,
            ..Settings::preset(Profile::Datacenter)
        };
        let (request, memory) = (turn(1), Memory::default());
        let snapshot = Snapshot::default();
        let decision = route(&request, &sure, &tiers, &snapshot, &settings, &memory);
        plan_of(decision).reason
    };
    assert!(first(1.0).contains("small 0.78"), "{}", first(1.0));
    // Of nearly equal shares.
    assert!(first(10.0).contains("small 0.50"), "{}", first(10.0));
}

#[test]
fn learned_joules_stand_in_for_sizes_that_nobody_tells() {
    let (mut tiers, classification) = three_tiers();
    tiers.iter_mut().for_each(|t| t.parameters = None);
    let kept = Kept::default();
    let dear = |kept: &Kept| {
        let snapshot = Snapshot::default();
        plan_of(remembering(
            &turn(1),
            &classification,
            &tiers,
            &snapshot,
            kept,
        ))
        .reason
    };
    // By rank a third, two thirds and all of it.
    assert!(dear(&kept).contains("small 0.32−0.08"), "{}", dear(&kept));
    for (tier, joules) in [("small", 1.0), ("middle", 10.0), ("large", 100.0)] {
        for _ in 0..3 {
            let outcome = Outcome {
                generated_tokens: 10,
                joules: Some(Sample::measured(joules)),
                ..answered(tier, 0.9)
            };
            kept.learn(&Request::default(), &outcome, &Snapshot::default());
        }
    }
    let reason = dear(&kept);
    assert!(
        reason.contains("small 0.32−0.00") && reason.contains("large 0.85−0.25"),
        "{reason}"
    );
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
        ("dwell-seconds", "-1"),
        ("classifier-temperature", "0"),
        ("direct-answers", "maybe"),
    ] {
        let error = set(key, value).expect_err(key).to_string();
        assert!(error.contains(key) && error.contains(value), "{error}");
    }
}
