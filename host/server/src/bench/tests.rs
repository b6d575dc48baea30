//! Benches from end to end, with the policies that come with the host.

use std::path::Path;

use serde_json::Value;

use super::*;

const ROUNDS: Bootstrap = Bootstrap {
    rounds: 50,
    seed: 1,
};

fn routing_plan(data: &Path, out: &Path, unseen: bool) -> routing::Plan {
    routing::Plan {
        data: data.to_owned(),
        component: None,
        scores: vec![out.join("given.jsonl")],
        unseen,
        bootstrap: ROUNDS,
        json: Some(out.join("routing.json")),
        svg: Some(out.join("routing.svg")),
    }
}

fn read_json(file: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file).expect("written")).expect("JSON")
}

/// Eighty questions; the weak model is wrong on the forty longest, the strong one on none.
fn write_rows(dir: &Path) {
    let (mut rows, mut scores) = (String::new(), String::new());
    for i in 0..80 {
        let prompt = format!("What is the {} of number {i}?", "very ".repeat(i));
        let row = json!({
            "prompt": prompt, "weak": i < 40, "strong": true, "subject": format!("s{}", i % 4),
            "weak_response": format!("It is {}.", "long ".repeat(i)), "strong_response": "Six.",
        });
        rows += &format!("{row}\n");
        let digest = <sha2::Sha256 as sha2::Digest>::digest(&prompt);
        scores += &format!(
            "{}\n",
            json!({"sha256": hex(&digest), "score": -(i as f64)})
        );
    }
    std::fs::write(dir.join("gsm8k.jsonl"), rows).expect("a file");
    std::fs::write(dir.join("given.jsonl"), scores).expect("a file");
}

#[test]
fn routing_reports_every_scorer_with_its_interval_and_draws_it() {
    let dir = tempfile::tempdir().expect("a folder");
    write_rows(dir.path());
    routing::run(&routing_plan(dir.path(), dir.path(), true)).expect("a report");
    let report = read_json(&dir.path().join("routing.json"));
    let set = &report["sets"][0];
    assert_eq!((&set["rows"], &set["set"]), (&json!(80), &json!("gsm8k")));
    let apgr = |name: &str| {
        let scorers = set["scorers"].as_array().expect("a list");
        let found = scorers.iter().find(|s| s["name"] == name);
        let figure = &found.unwrap_or_else(|| panic!("no {name}"))["figures"]["apgr"];
        let ends = figure["low"].as_f64().zip(figure["high"].as_f64());
        assert_eq!(ends.is_some(), figure["value"].is_number(), "{name}");
        figure["value"].as_f64()
    };
    // The longest forty first: the gap is closed at half of the calls, in even steps.
    let best = 1.0 - 0.5 / 2.0;
    for (name, expected) in [
        ("prompt length", Some(best)),
        ("oracle", Some(best)),
        ("random", Some(0.5)),
        ("given", Some(1.0 - best)),
        ("always weak", None),
        ("always strong", None),
    ] {
        let found = apgr(name);
        let off = found.zip(expected).map(|(found, e)| (found - e).abs());
        assert!(off.is_none_or(|off| off < 1e-9), "{name}: {found:?}");
        assert_eq!(found.is_some(), expected.is_some(), "{name}");
    }
    for name in ["classify-lexical", "k nearest", "k nearest, other subjects"] {
        assert!(apgr(name).is_some(), "{name}");
    }
    // Its p-simple, and by an attribute what its second head says of the weak model.
    let claims = set["calibration"].as_array().expect("a list");
    assert!(claims.len() == 2 && claims.iter().all(|c| c["ece"]["value"].is_number()));
    let picture = std::fs::read_to_string(dir.path().join("routing.svg")).expect("a picture");
    assert!(picture.starts_with("<svg ") && picture.contains("classify-lexical (APGR"));
}

#[test]
fn rows_that_were_fitted_on_are_not_reported() {
    let dir = tempfile::tempdir().expect("a folder");
    write_rows(dir.path());
    routing::run(&routing_plan(dir.path(), dir.path(), false)).expect("a report");
    let set = &read_json(&dir.path().join("routing.json"))["sets"][0];
    let sets = outcomes::read(dir.path()).expect("rows");
    let held = sets[0].rows.iter().filter(|row| row.part() == 0).count();
    assert!(held > 0 && held < 80);
    assert_eq!(set["rows"], json!(held));
    assert!(set["split"].as_str().expect("words").contains("mod 5 = 0"));
}

fn validate_plan(data: Option<&Path>, answers: Option<&Path>, out: &Path) -> validate::Plan {
    validate::Plan {
        data: data.map(Path::to_owned),
        answers: answers.map(Path::to_owned),
        component: None,
        unseen: true,
        bootstrap: ROUNDS,
        json: Some(out.join("validate.json")),
        svg: Some(out.join("validate.svg")),
    }
}

/// Answers of a running host: of the same text, so only the log-probabilities tell.
#[test]
fn validate_judges_collected_answers_by_their_log_probabilities() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("answers.jsonl");
    let row = |i: usize| {
        let right = i.is_multiple_of(2);
        let logprob = if right { -0.05 } else { -1.5 };
        json!({
            "prompt": format!("What is number {i}?"), "answer": "It is the number itself.",
            "right": right, "logprobs": vec![logprob; 6], "model": "small", "gold": "1",
        })
    };
    let rows: String = (0..60).map(|i| format!("{}\n", row(i))).collect();
    std::fs::write(&file, rows).expect("a file");
    validate::run(&validate_plan(None, Some(&file), dir.path())).expect("a report");
    let report = read_json(&dir.path().join("validate.json"));
    assert_eq!(report["logprobs"], "log-probabilities of 60 of 60 rows");
    let all = report["answers"].as_array().expect("a list");
    assert_eq!((all.len(), &all[0]["wrong"]), (1, &json!(30)));
    let auroc = |scorer: usize| all[0]["scorers"][scorer]["figures"]["auroc"]["value"].as_f64();
    assert!(auroc(0) > Some(0.99), "{:?}", auroc(0));
    assert_eq!(auroc(1), Some(0.5));
    std::fs::write(&file, "{\"prompt\": 1}\n").expect("a file");
    let error = validate::run(&validate_plan(None, Some(&file), dir.path()));
    let error = error.expect_err("no answer").to_string();
    assert!(error.contains("answers.jsonl:1"), "{error}");
}

/// Of the same text and as sure: only the reason why they end tells.
#[test]
fn validate_shows_the_validator_that_an_answer_was_cut() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("answers.jsonl");
    let row = |i: usize| {
        let right = i.is_multiple_of(2);
        json!({
            "prompt": format!("What is number {i}?"), "answer": "It is the number after the one",
            "right": right, "logprobs": [-0.3, -0.3, -0.3],
            "finish": if right { "stop" } else { "length" },
        })
    };
    let rows: String = (0..60).map(|i| format!("{}\n", row(i))).collect();
    std::fs::write(&file, rows).expect("a file");
    validate::run(&validate_plan(None, Some(&file), dir.path())).expect("a report");
    let report = read_json(&dir.path().join("validate.json"));
    let words = "log-probabilities of 60 of 60 rows; 30 answers end at a token limit";
    assert_eq!(report["logprobs"], words);
    let auroc = &report["answers"][0]["scorers"][0]["figures"]["auroc"]["value"];
    assert_eq!(auroc.as_f64(), Some(1.0));
}

#[test]
fn validate_reports_the_validator_beside_length() {
    let dir = tempfile::tempdir().expect("a folder");
    write_rows(dir.path());
    let plan = validate_plan(Some(dir.path()), None, dir.path());
    validate::run(&plan).expect("a report");
    let picture = std::fs::read_to_string(dir.path().join("validate.svg")).expect("a picture");
    // Two scorers in two panels; of answers that are all right there is no curve.
    assert_eq!(picture.matches("<polyline").count(), 4);
    assert!(
        picture.contains("strong model's answers: 0 wrong of 80"),
        "{picture}"
    );
    let report = read_json(&dir.path().join("validate.json"));
    let weak = &report["answers"][0];
    assert_eq!((&weak["answers"], &weak["wrong"]), (&json!(80), &json!(40)));
    let [ours, length] = [0, 1].map(|i| &weak["scorers"][i]["figures"]);
    assert_eq!(weak["scorers"][0]["name"], "validate-facts");
    assert!(ours["ece"]["value"].is_number() && length["ece"]["value"].is_null());
    // Here the longer answers are exactly the wrong ones.
    for figure in ["auroc", "auprc", "prr"] {
        let found = length[figure]["value"].as_f64().expect("a figure");
        assert!((found - 1.0).abs() < 1e-9, "{figure} {found}");
    }
    // The strong model is never wrong: nothing to find.
    assert!(report["answers"][1]["scorers"][0]["figures"]["auroc"]["value"].is_null());
}

#[test]
fn a_folder_without_outcomes_is_refused_with_what_was_expected() {
    let dir = tempfile::tempdir().expect("a folder");
    let error = routing::run(&routing::Plan {
        scores: Vec::new(),
        ..routing_plan(dir.path(), dir.path(), false)
    });
    let error = error.expect_err("nothing there").to_string();
    assert!(error.contains("mmlu.jsonl"), "{error}");
}

/// The figures themselves are in `weights.txt`; this guards that the component, asked as a
/// host asks it, has them.
#[test]
fn the_classifier_ranks_recorded_requests_better_than_their_length() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/routing");
    if !data.join("mmlu.jsonl").exists() {
        eprintln!("skipped: no recorded data");
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let plan = routing::Plan {
        scores: Vec::new(),
        ..routing_plan(&data, dir.path(), false)
    };
    routing::run(&plan).expect("a report");
    let report = read_json(&dir.path().join("routing.json"));
    for (set, least) in [(0, 0.66), (1, 0.6)] {
        let scorer = &report["sets"][set]["scorers"][0];
        let apgr = scorer["figures"]["apgr"]["value"].as_f64();
        assert!(
            apgr > Some(least),
            "{}: {apgr:?}",
            report["sets"][set]["set"]
        );
    }
}
