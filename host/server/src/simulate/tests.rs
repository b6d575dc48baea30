//! Days from end to end, with the policies that come with the host.

use std::path::Path;

use homeostat_telemetry::ledger::Accounts;
use serde_json::{Value, json};

use super::score::is_exact;
use super::*;

/// Two hundred questions; the small tier is wrong on the long ones, the large one on none.
pub fn write_rows(dir: &Path) {
    let mut rows = String::new();
    for i in 0..200 {
        let prompt = format!("What is the {}of number {i}?", "very ".repeat(i % 80));
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
        requests_per_s: 0.2,
        energy_price: 0.5,
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
    assert!(figure(2, "large_ratio") < 1.0);
    assert!(figure(2, "watts") < figure(0, "watts"));
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
    let (cap, lived) = under_cap(&scene, &days, large, free, 0.8 * free).expect("a cap");
    let watts = compare::total(&lived, &days).watts();
    assert!(
        (watts / free - 0.8).abs() < 0.02 && cap < 120.0,
        "{cap} {watts} {free}"
    );
    let (none, _) = under_cap(&scene, &days, large, free, 2.0 * free).expect("no cap");
    assert!(none.is_infinite());
}
