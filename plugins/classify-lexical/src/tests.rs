//! Cases as text, and texts of every kind. How well it ranks recorded requests is
//! measured by `homeostat bench routing`, and tested there.

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
