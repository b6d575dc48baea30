//! Days from end to end, with the policies that come with the host.

use std::path::Path;
use std::sync::Arc;

use homeostat_hooks::{Decision, Message, Policies, Request, Role};
use homeostat_telemetry::TRACE_FORMAT;
use homeostat_telemetry::ledger::Accounts;
use homeostat_telemetry::plant::Random;
use serde_json::{Value, json};

use super::day::{Surroundings, Thermometer};
use super::machine::{Machine, Settings};
use super::score::is_exact;
use super::*;

/// Two hundred questions; the small tier is wrong on the long ones, the large one on none.
pub fn write_rows(dir: &Path) {
    write_rows_about("number", dir);
}

/// Two hundred others of the same kind, in a folder that is made.
pub fn write_known_rows(dir: &Path) {
    std::fs::create_dir_all(dir).expect("a folder");
    write_rows_about("figure", dir);
}

fn write_rows_about(what: &str, dir: &Path) {
    let mut rows = String::new();
    for i in 0..200 {
        let prompt = format!("What is the {}of {what} {i}?", "very ".repeat(i % 80));
        let weak = prompt.len() < 200;
        let row = json!({
            "prompt": prompt, "weak": weak, "strong": true, "subject": "numbers",
            "weak_response": format!("It is number {i}, as far as I can tell, and no other."),
            "strong_response": "It is the one that comes after the number before it. ".repeat(2),
        });
        rows += &format!("{row}\n");
    }
    std::fs::write(dir.join("gsm8k.jsonl"), rows).expect("a file");
}

fn world(data: &Path) -> World {
    World {
        data: data.to_owned(),
        unseen: true,
        known: None,
        requests_per_s: 0.2,
        energy_price: 0.5,
        power_plan: None,
        seed: 1,
    }
}

fn short_day(seed: u64) -> Day {
    Day {
        hours: 0.5,
        ..Day::eventful(seed, 0.2)
    }
}

fn picture_of(seed: u64) -> (String, Value) {
    let dir = tempfile::tempdir().expect("a folder");
    write_rows(dir.path());
    let scene = Scene::open(&world(dir.path())).expect("a scene");
    let (svg, file) = (dir.path().join("day.svg"), dir.path().join("day.json"));
    compare::day(&scene, &short_day(seed), Some(&svg), Some(&file)).expect("a day");
    let read = |file| std::fs::read_to_string(file).expect("written");
    let picture = read(&svg);
    assert!(picture.starts_with("<svg ") && picture.contains("metabolic: "));
    (
        read(&file),
        serde_json::from_str(&read(&file)).expect("JSON"),
    )
}

#[test]
fn one_seed_gives_one_day_byte_for_byte() {
    let (text, report) = picture_of(7);
    assert_eq!(text, picture_of(7).0);
    assert_ne!(text, picture_of(8).0);
    let hosts = report["hosts"].as_array().expect("a list");
    let figure = |host: usize, name: &str| hosts[host]["figures"][name].as_f64().expect("a figure");
    assert_eq!(figure(0, "large_ratio"), 1.0);
    let metabolic = hosts.len() - 1;
    assert!(figure(metabolic, "large_ratio") < 1.0);
    assert!(figure(metabolic, "watts") < figure(0, "watts"));
    assert!(
        hosts[metabolic - 1]["host"]
            .as_str()
            .expect("a name")
            .starts_with("static router")
    );
    for host in hosts {
        let of = |name: &str| host["ledger_uj"][name].as_u64().expect("a sum");
        assert_eq!(
            of("measured"),
            of("requests") + of("idle") + of("unattributed")
        );
        assert!(of("requests") > 0, "{host}");
    }
}

#[test]
fn books_that_miss_a_microjoule_are_not_exact() {
    let books = Accounts {
        measured_uj: 10,
        prefill_uj: 4,
        idle_uj: 6,
        ..Accounts::default()
    };
    assert!(
        is_exact(&books)
            && !is_exact(&Accounts {
                idle_uj: 5,
                ..books
            })
    );
}

#[test]
fn the_router_is_told_what_its_validator_notices_on_rows_that_are_not_asked() {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, rows: Vec<Value>| {
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        std::fs::write(dir.path().join(name), lines).expect("a file");
    };
    // One sum in four is right, and another one is wrong for everybody to see.
    let sum = |i: usize| {
        let begins = match i % 4 {
            1 => "2 + 2 = 5. So it is",
            _ => "It is",
        };
        json!({
            "prompt": format!("What is the name of number {i} in the book?"),
            "weak": i.is_multiple_of(4), "strong": true,
            "weak_response": format!("{begins} number {i}."), "strong_response": "Six.",
        })
    };
    // Of a choice no answer was recorded, and there is nothing in words to be noticed.
    let choice = |i: usize| {
        let prompt = format!("Which of the letters in the book is letter {i}?");
        json!({"prompt": prompt, "weak": false, "strong": true})
    };
    write("gsm8k.jsonl", (0..400).map(sum).collect());
    write("mmlu.jsonl", (0..100).map(choice).collect());
    let recorded = traffic::Recorded::read(dir.path(), false, None).expect("rows");
    let [choices, sums] = recorded.known.as_slice() else {
        panic!("two sets");
    };
    let share = |noticed: bool| {
        let told = |row: &&crate::bench::outcomes::Row| {
            let answers = row.answers.as_ref().expect("recorded");
            row.outcome.weak < 0.5 && (!noticed || answers[0].contains('='))
        };
        sums.iter().filter(told).count() as f64 / sums.len() as f64
    };
    assert!(choices.iter().all(|row| row.answers.is_none()));
    let scene = Scene::open(&World {
        unseen: false,
        ..world(dir.path())
    });
    let told = &scene.expect("a scene").as_json()["assumptions"];
    let noticed = told["noticed_ratio"].as_f64().expect("a share");
    let expected = share(true) / (share(false) + 1.0);
    assert!((noticed - expected).abs() < 1e-9, "{noticed} {expected}");
    assert_eq!(told["doubted_ratio"], json!(0.0));
}

#[test]
fn the_router_accepts_from_the_confidence_below_which_answers_are_counted() {
    let dir = tempfile::tempdir().expect("a folder");
    write_rows(dir.path());
    let scene = Scene::open(&world(dir.path())).expect("a scene");
    let room = scene.room(scene.metabolic()).expect("policies");
    let question = scene.question(&mut Random::new(1));
    let request = Request {
        messages: vec![Message {
            role: Role::User,
            content: question.to_string(),
        }],
        ..Request::default()
    };
    let mut session = room.begin(Arc::new(request), Arc::default());
    let classification = session.classify().value;
    let decision = session.route(&classification, &scene.idle_tiers());
    let Decision::Plan(plan) = decision.value else {
        panic!("no plan");
    };
    let asked = f64::from(plan.steps[0].accept_threshold);
    // What is hard must convince a little more.
    let more = asked - noticed::ACCEPT_THRESHOLD;
    assert!((0.0..0.101).contains(&more), "{asked}");
}

#[test]
fn a_machine_without_power_answers_nobody_and_draws_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    write_rows(dir.path());
    let scene = Scene::open(&world(dir.path())).expect("a scene");
    let dark = |hours| Day {
        hours,
        outage: Some(day::Span {
            from_h: 0.0,
            to_h: 24.0,
        }),
        crowd: None,
        ..Day::eventful(5, 0.3)
    };
    let busy = [scene.busy(dark(5.0))];
    let large = [(Judgement::AlwaysLarge, f64::INFINITY)];
    let lived = scene.live(&busy, &large).expect("a day");
    let lived = &lived[0][0];
    // 150 Wh at a fully busy 70 W or so.
    assert!(
        (1.5..4.0).contains(&(5.0 - lived.sums.off_s / 3_600.0)),
        "{}",
        lived.sums.off_s
    );
    let late = lived.ended.iter().filter(|e| e.at_ms > 3 * 3_600_000);
    assert!(late.clone().count() > 0 && late.clone().all(|e| e.tier.is_none()));
    assert!(lived.sums.joules < 60.0 * 3_600.0);
}

#[test]
fn a_cap_is_found_that_costs_the_watts_asked_for() {
    let dir = tempfile::tempdir().expect("a folder");
    write_rows(dir.path());
    let scene = Scene::open(&world(dir.path())).expect("a scene");
    let days = [scene.busy(short_day(9))];
    let large = Judgement::AlwaysLarge;
    let free = scene.live(&days, &[(large, f64::INFINITY)]).expect("a day");
    let free = compare::total(&free[0], &days).watts();
    let found = under_cap(&scene, &days, large, free, 0.8 * free).expect("days");
    let found = found.expect("a cap");
    let (cap, watts) = (found.setting, compare::total(&found.lived, &days).watts());
    assert!(
        (watts / free - 0.8).abs() < 0.02 && cap < 120.0,
        "{cap} {watts} {free}"
    );
    assert!((found.off - (watts / (0.8 * free) - 1.0)).abs() < 1e-9);
    for enough in [free, 2.0 * free] {
        let none = under_cap(&scene, &days, large, free, enough).expect("days");
        assert!(none.is_none(), "{free} W are no more than {enough} W");
    }
}

#[test]
fn a_static_router_is_tuned_to_watts_and_says_how_far_it_missed() {
    let dir = tempfile::tempdir().expect("a folder");
    write_rows(dir.path());
    let scene = Scene::open(&world(dir.path())).expect("a scene");
    let days = [scene.busy(Day {
        hours: 0.5,
        ..Day::eventful(9, 1.0)
    })];
    let ends = [0.0, 1.0].map(|share| {
        let host = frugal_threshold(&scene, By::Hardness, share);
        let lived = scene.live(&days, &[(host, f64::INFINITY)]).expect("a day");
        compare::total(&lived[0], &days).watts()
    });
    let target = (ends[0] + ends[1]) / 2.0;
    assert!(ends[1] > 1.2 * ends[0], "{ends:?}");
    let off = By::ALL.map(|by| {
        let found = tuned_threshold(&scene, &days, by, target).expect("a threshold");
        let watts = compare::total(&found.lived, &days).watts();
        assert!((found.off - (watts / target - 1.0)).abs() < 1e-9);
        assert_eq!(found.unequal().is_some(), found.off.abs() > EQUAL);
        found.off.abs()
    });
    assert!(off[0].min(off[1]) < 0.05, "{off:?} {ends:?}");
}

/// Rows on which the small tier is nearly always wrong and the large one never.
fn write_hard_rows(what: &str, dir: &Path) {
    std::fs::create_dir_all(dir).expect("a folder");
    let row = |i: usize| {
        json!({
            "prompt": format!("What is the name of {what} {i} in the book?"),
            "weak": i.is_multiple_of(10), "strong": true, "subject": "numbers",
            "weak_response": "Seven.",
            "strong_response": "It is the one that comes after the number before it. ".repeat(2),
        })
    };
    let rows: String = (0..200).map(|i| format!("{}\n", row(i))).collect();
    std::fs::write(dir.join("gsm8k.jsonl"), rows).expect("a file");
}

/// A metabolic host to which nothing but its machine forbids the large tier, alone on a day.
fn lived_under(plan: Option<&str>, day: Day) -> Lived {
    // The scene says what is metabolic.
    lived(None, plan, day)
}

fn lived_by(judgement: Judgement, day: Day) -> Lived {
    lived(Some(judgement), None, day)
}

fn lived(judgement: Option<Judgement>, plan: Option<&str>, day: Day) -> Lived {
    let dir = tempfile::tempdir().expect("a folder");
    let known = dir.path().join("known");
    write_hard_rows("number", dir.path());
    write_hard_rows("figure", &known);
    let file = dir.path().join("plan.toml");
    std::fs::write(&file, plan.unwrap_or_default()).expect("a file");
    let world = World {
        known: Some(known),
        energy_price: 0.0,
        power_plan: plan.map(|_| file),
        ..world(dir.path())
    };
    let scene = Scene::open(&world).expect("a scene");
    let judgement = judgement.unwrap_or_else(|| scene.metabolic());
    let host = (judgement, f64::INFINITY);
    let mut lived = scene.live(&[scene.busy(day)], &[host]).expect("a day");
    lived.remove(0).remove(0)
}

/// Share of the answers that the large tier gave to requests of these hours.
fn large_share(lived: &Lived, hours: std::ops::Range<f64>) -> f64 {
    let at = |e: &&life::Ended| hours.contains(&(e.at_ms as f64 / 3.6e6));
    let answered = lived.ended.iter().filter(at).filter_map(|e| e.tier);
    let (large, all) = answered.fold((0.0, 0.0), |(large, all), tier| {
        (large + f64::from(u8::from(tier == 1)), all + 1.0)
    });
    assert!(all > 20.0, "{all}");
    large / all
}

#[test]
fn power_follows_a_curve_of_targets_and_the_large_tier_comes_back() {
    let mut watts = [200.0; 24];
    watts[1] = 30.0;
    let plan = format!("target_watts = {watts:?}");
    let day = Day {
        hours: 3.0,
        requests_per_s: 0.6,
        ..Day::default()
    };
    let lived = lived_under(Some(&plan), day);
    // Six points an hour; the first half of the hour is for getting there.
    let low = &lived.points[9..12];
    let mean = low.iter().map(|p| p.watts).sum::<f64>() / low.len() as f64;
    let shares = [0.0, 1.5, 2.5].map(|from| large_share(&lived, from..from + 0.5));
    let all: Vec<f64> = lived.points.iter().map(|p| p.watts.round()).collect();
    assert!(mean <= 30.0 * 1.1, "{mean} {shares:?} {all:?}");
    assert!(shares[1] < 0.7 * shares[0], "{mean} {shares:?} {all:?}");
    assert!(shares[2] > 0.8 * shares[0], "{mean} {shares:?} {all:?}");
}

/// 60 Wh. The large tier alone draws some 50 W, the small one some 18 W. Whoever has no time named
/// saves as the charge falls; whoever has, from the beginning.
#[test]
fn a_battery_lasts_until_the_time_that_is_named() {
    let day = Day {
        hours: 2.6,
        requests_per_s: 1.0,
        outage: Some(day::Span {
            from_h: 0.0,
            to_h: 2.6,
        }),
        ..Day::default()
    };
    let planned = lived_under(Some("battery_lasts_until = \"02:36\""), day.clone());
    let unplanned = lived_under(None, day.clone());
    let careless = lived_by(Judgement::AlwaysLarge, day);
    let first = |lived: &Lived| lived.points[..3].iter().map(|p| p.watts).sum::<f64>() / 3.0;
    let watts = [&planned, &unplanned, &careless].map(first);
    let off = [&planned, &careless].map(|lived| lived.sums.off_s);
    assert_eq!(off[0], 0.0, "{off:?} {watts:?}");
    assert!(off[1] > 0.0, "{off:?} {watts:?}");
    assert!(watts[0] < 0.7 * watts[1], "{off:?} {watts:?}");
}

#[test]
fn in_a_hot_busy_half_day_the_static_host_is_slowed_down_and_the_metabolic_one_is_not() {
    let day = Day {
        hours: 6.0,
        requests_per_s: 1.2,
        heat: Some((
            day::Span {
                from_h: 0.0,
                to_h: 6.0,
            },
            25.0,
        )),
        ..Day::default()
    };
    let ours = lived_under(None, day.clone());
    let fixed = lived_by(Judgement::AlwaysLarge, day);
    let throttled = [&ours, &fixed].map(|lived| lived.sums.throttled_s);
    let large = large_share(&ours, 0.0..6.0);
    assert!(large > 0.1, "{large} {throttled:?}");
    assert_eq!(throttled[0], 0.0, "{large} {throttled:?}");
    assert!(throttled[1] > 0.0, "{large} {throttled:?}");
}

#[test]
fn an_absurd_thermometer_counts_as_lost_and_a_stuck_one_stands_still() {
    let machine = Machine::new(Settings {
        cap_watts: f64::INFINITY,
        plan: None,
        looks_ahead: true,
        qualities: Default::default(),
        seed: 1,
    });
    let run = |seconds: std::ops::Range<u64>, air_celsius, thermometer| {
        let around = Surroundings {
            air_celsius,
            on_grid: true,
            thermometer,
            usd_per_kwh: 0.3,
        };
        let mut seen = f64::NAN;
        for tick in seconds.start * 10 + 1..=seconds.end * 10 {
            seen = machine.tick(tick * 100, &around).celsius;
        }
        let snapshot = machine.snapshot();
        let told = snapshot.devices[0].temperature_celsius.expect("told once");
        (seen, told, snapshot.metabolism.causes.sensor)
    };
    let (true_celsius, told, is_lost) = run(0..10, 26.0, Thermometer::Fine);
    assert!((true_celsius - told.value).abs() <= 1.0 && !is_lost);
    let (_, absurd, is_lost) = run(10..20, 26.0, Thermometer::Absurd);
    assert!(is_lost && absurd.age_ms > 9_000, "{absurd:?}");
    assert_eq!(absurd.value, told.value);
    let (before, told, _) = run(20..30, 26.0, Thermometer::Fine);
    let (after, stuck, _) = run(30..150, 60.0, Thermometer::Stuck);
    assert!(after - before > 3.0, "{before} {after}");
    assert!(
        stuck.value == told.value && stuck.age_ms < 1_000,
        "{stuck:?}"
    );
}

#[test]
fn a_recorded_trace_is_replayed_and_the_router_asked_on_its_states() {
    let dir = tempfile::tempdir().expect("a folder");
    write_rows(dir.path());
    let trace = dir.path().join("trace.jsonl");
    let mut lines = vec![
        json!({
        "header": {
            "format": TRACE_FORMAT, "program": "a test", "profile": "edge",
            "period_ms": 100, "power_cap_watts": null, "started_unix_ms": 0,
        }})
        .to_string(),
    ];
    lines.extend((0..300).map(|tick| json!({"tick": {"at_ms": tick * 100}}).to_string()));
    std::fs::write(&trace, lines.join("\n")).expect("a file");
    let out = dir.path().join("trace.json");
    let world = world(dir.path());
    let scene = Scene::open(&world).expect("a scene");
    replayed::run(&scene, &world, &trace, Some(&out)).expect("decisions");
    let text = std::fs::read_to_string(&out).expect("written");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let states = report["states"].as_array().expect("a list");
    let asked = states.iter().map(|s| s["decided"]["requests"].as_u64());
    // One in five seconds, of half a minute less a tick.
    assert_eq!(asked.sum::<Option<u64>>(), Some(5), "{report}");
}
