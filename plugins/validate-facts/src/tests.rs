//! Cases as text, and verdicts over random answers.

use homeostat_cases::Reply;

use super::*;

#[test]
fn every_case_of_cases_toml_holds() {
    homeostat_cases::run(include_str!("../cases.toml"), |case| {
        match Settings::read(|key| case.setting(key)) {
            Ok(settings) => Reply::Verdict(validate(&case.request, &case.answer, settings)),
            Err(error) => Reply::Error(error.to_string()),
        }
    });
}

/// As it comes, but for what it refuses.
fn strict(strict: bool) -> Settings {
    Settings {
        strict,
        ..Settings::default()
    }
}

#[test]
fn a_sentence_is_whole_when_a_blank_follows() {
    for (text, whole) in [
        ("", ""),
        ("17 * 23 = 4", ""),
        ("17 * 23 = 401.", ""),
        ("17 * 23 = 401. And", "17 * 23 = 401. "),
        ("It is 4.5 m", ""),
        ("He said “no.” Then", "He said “no.” "),
        ("One\nTwo", "One\n"),
        ("一。二", "一。"),
    ] {
        assert_eq!(text::whole_sentences(text), whole, "{text:?}");
    }
}

fn asked_for_json(text: &str, steps_left: u32) -> (Request, Answer) {
    let request = Request {
        response_format: ResponseFormat::JsonObject,
        ..Request::default()
    };
    let answer = Answer {
        text: text.into(),
        steps_left,
        accept_threshold: 0.5,
        ..Answer::default()
    };
    (request, answer)
}

#[test]
fn only_a_strict_operator_refuses_and_only_on_the_last_step() {
    let (request, answer) = asked_for_json("{\"a\": ", 0);
    assert!(
        matches!(validate(&request, &answer, strict(false)), Verdict::Accept(a) if a.confidence < 0.1)
    );
    match validate(&request, &answer, strict(true)) {
        Verdict::Reject(r) => assert!(r.message.contains("JSON"), "{}", r.message),
        other => panic!("{other:?}"),
    }
    let (request, answer) = asked_for_json("{\"a\": ", 1);
    assert!(matches!(
        validate(&request, &answer, strict(true)),
        Verdict::Escalate(_)
    ));
}

#[test]
fn random_answers_get_verdicts_that_the_host_can_act_on() {
    let pieces = [
        "17 * 23 = 391",
        "17*23=400 ",
        "no no no no ",
        "\u{fffd}",
        "“",
        "\"a b c\"",
        "```json",
        "{\"a\":1}",
        "```",
        "\n",
        "I cannot help",
        "é",
        "Summarize ",
        "Paris ",
        "1,000,000.5.",
        "= ",
        "",
    ];
    let mut seed = 7u64;
    let mut next = move || {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) as usize
    };
    let formats = [
        ResponseFormat::Text,
        ResponseFormat::JsonObject,
        ResponseFormat::JsonSchema,
    ];
    let finishes = [Finish::Unfinished, Finish::Stop, Finish::Length];
    for round in 0..5000 {
        let mut text = |n: usize| {
            (0..n)
                .map(|_| pieces[next() % pieces.len()])
                .collect::<String>()
        };
        let (content, said) = (text(30), text(12));
        let request = Request {
            messages: vec![Message {
                role: Role::User,
                content,
            }],
            response_format: formats[next() % 3],
            ..Request::default()
        };
        let answer = Answer {
            text: said,
            finish: finishes[next() % 3],
            steps_left: next() as u32 % 2,
            logprobs: vec![-(next() as f32 % 30.0); next() % 5],
            accept_threshold: 0.5,
            ..Answer::default()
        };
        let verdict = validate(&request, &answer, strict(next() % 2 == 0));
        assert_eq!(
            check::verdict(&verdict, &answer),
            Ok(()),
            "round {round}: {answer:?}"
        );
    }
}
