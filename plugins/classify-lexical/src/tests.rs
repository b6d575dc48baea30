//! Cases as text, properties, and the figures of `weights.txt` on the rows held out.

use homeostat_cases::Reply;

use super::*;

#[test]
fn every_case_of_cases_toml_holds() {
    homeostat_cases::run(include_str!("../cases.toml"), |case| {
        Reply::Classification(classify(&case.request))
    });
}

fn asked(text: &str) -> Request {
    Request {
        messages: vec![Message {
            role: Role::User,
            content: text.into(),
        }],
        ..Request::default()
    }
}

#[test]
fn every_text_gets_probabilities() {
    let mut seed = 1u64;
    let pieces = [
        "A. ",
        "\n",
        "B) ",
        "C. x\n",
        "12.5",
        ",",
        "é",
        "\u{fffd}",
        "half ",
        "```",
        "?",
        "the cell ",
        "$",
        "%",
        "a\u{0}b",
    ];
    for _ in 0..3000 {
        let mut text = String::new();
        for _ in 0..20 {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            text.push_str(pieces[(seed >> 33) as usize % pieces.len()]);
        }
        assert_eq!(
            check::classification(&classify(&asked(&text))),
            Ok(()),
            "{text:?}"
        );
    }
    for text in [
        "",
        " ",
        &"x".repeat(1 << 20),
        &"é".repeat(20_000),
        &"A. a\n".repeat(10_000),
    ] {
        assert_eq!(check::classification(&classify(&asked(text))), Ok(()));
    }
}

/// Area over ten equal steps of the strong share, of what a strong model adds.
fn apgr(rows: &mut [(f32, f32, f32)]) -> f32 {
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    let n = rows.len();
    let mean = |f: fn(&(f32, f32, f32)) -> f32, rows: &[(f32, f32, f32)]| {
        rows.iter().map(f).sum::<f32>() / n as f32
    };
    let (weak, strong) = (mean(|r| r.1, rows), mean(|r| r.2, rows));
    let at = |share: usize| -> f32 {
        let k = (n * share + 5) / 10;
        rows[..k].iter().map(|r| r.2 - r.1).sum::<f32>() / n as f32
    };
    let area: f32 = (0..10).map(|i| (at(i) + at(i + 1)) / 20.0).sum();
    area / (strong - weak)
}

/// The figures themselves are in `weights.txt`, computed on rows held out by the script
/// that fitted. This only guards that the Rust reader ranks recorded requests as well as
/// that: hashing, quantisation and calibration included.
#[test]
fn recorded_requests_are_ranked_better_than_by_chance() {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/routing/");
    for (name, least, gain_least) in [("mmlu.jsonl", 0.6, 0.68), ("gsm8k.jsonl", 0.55, 0.65)] {
        let Ok(file) = std::fs::read_to_string(format!("{data}{name}")) else {
            eprintln!("skipped: no recorded data");
            return;
        };
        let (mut by_classes, mut by_gain) = (Vec::new(), Vec::new());
        for line in file.lines() {
            let row: serde_json::Value = serde_json::from_str(line).expect("JSON lines");
            let prompt = row["prompt"].as_str().expect("a prompt");
            let c = classify(&asked(prompt));
            let gain = outcomes::expected(&Prompt::read(prompt)).strong_gain as f32;
            let right = |who: &str| f32::from(u8::from(row[who] == true));
            let (weak, strong) = (right("weak"), right("strong"));
            by_classes.push((c.p_complex + 0.5 * c.p_medium, weak, strong));
            by_gain.push((gain, weak, strong));
        }
        for (mut rows, least) in [(by_classes, least), (by_gain, gain_least)] {
            let found = apgr(&mut rows);
            assert!(
                found > least,
                "{name}: APGR {found}, expected more than {least}"
            );
        }
    }
}
