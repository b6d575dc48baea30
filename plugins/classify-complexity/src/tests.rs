//! Numbers as the host's prompt classifier gives them, made up.

use super::*;

fn settings() -> Settings {
    Settings::read(|_| None).expect("the defaults are good")
}

/// A prompt of this complexity that asks for code.
fn numbers(complexity: f32) -> Vec<f32> {
    let mut numbers = vec![complexity, 0.1, 0.2, 0.3, 4.0, 0.5, 0.6, 0.9];
    numbers.extend([0.0; TASKS.len()]);
    numbers[12] = 0.9;
    numbers
}

fn at(complexity: f32) -> Classification {
    let found = classify(&numbers(complexity), &settings()).expect("good numbers");
    homeostat_sdk::check::classification(&found).expect("three probabilities");
    found
}

#[test]
fn at_its_threshold_a_class_is_as_likely_as_not() {
    let settings = settings();
    assert!((at(settings.medium).p_simple - 0.5).abs() < 1e-6);
    assert!((at(settings.complex).p_complex - 0.5).abs() < 1e-6);
    let between = at((settings.medium + settings.complex) / 2.0);
    assert!(between.p_medium > 0.6, "{between:?}");
    // σ(1) one temperature above.
    let above = at(settings.complex + settings.temperature).p_complex;
    assert!((above - 0.731_058_6).abs() < 1e-4, "{above}");
}

#[test]
fn more_complex_is_never_called_simpler() {
    let mut before = at(0.0);
    for step in 1..=150 {
        let now = at(step as f32 / 100.0);
        assert!(now.p_simple <= before.p_simple, "{step} %");
        assert!(now.p_complex >= before.p_complex, "{step} %");
        before = now;
    }
    assert!(at(0.0).p_simple > 0.9 && at(1.5).p_complex > 0.99);
}

#[test]
fn scores_are_passed_on_by_their_names() {
    let found = at(1.25);
    assert_eq!(found.task, Task::CodeGeneration);
    let dimensions: Vec<(&str, f32)> = found.dimensions.iter().map(|(n, x)| (&**n, *x)).collect();
    assert_eq!(
        dimensions,
        [
            ("complexity", 1.0),
            ("creativity", 0.1),
            ("reasoning", 0.2),
            ("contextual-knowledge", 0.3),
            ("domain-knowledge", 0.5),
            ("constraints", 0.6),
        ]
    );
    let attribute = |name: &str| found.attributes.iter().find(|(n, _)| n == name);
    let complexity = attribute("complexity").map(|(_, value)| value);
    assert_eq!(complexity, Some(&Value::Number(1.25)));
    let few_shots = attribute("few-shots").map(|(_, value)| value);
    assert_eq!(few_shots, Some(&Value::Number(4.0)));
}

#[test]
fn numbers_of_another_model_are_refused() {
    let mut broken = numbers(0.3);
    broken[5] = f32::NAN;
    for numbers in [&[0.6_f32, 0.8][..], &[], &numbers(0.3)[1..], &broken] {
        let refused = classify(numbers, &settings());
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    }
}

#[test]
fn settings_that_cannot_be_meant_are_refused_by_name() {
    let with = |key: &'static str, value: &'static str| {
        Settings::read(move |asked| (asked == key).then(|| value.to_owned()))
    };
    assert_eq!(with("complex", "0.6").expect("good").complex, 0.6);
    assert_eq!(with("classifier", "mine").expect("good").classifier, "mine");
    for (key, value) in [
        ("medium", "0.4"),
        ("medium", "hard"),
        ("medium", "NaN"),
        ("complex", "0.1"),
        ("complex", "1.1"),
        ("temperature", "0"),
    ] {
        let refused = with(key, value).expect_err("it cannot be meant");
        let text = refused.to_string();
        assert!(matches!(refused, Error::InvalidArgument(_)), "{text}");
        assert!(text.contains(key), "{text}");
    }
}
