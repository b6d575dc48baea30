//! Executed routes, on tiers that answer with a fixed number of tokens.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use futures::future::BoxFuture;
use futures::{FutureExt, stream};
use homeostat_cascade::{GenerateCall, TierError, TierEvent, Token, TokenStream};
use homeostat_hooks::{Device, DirectAnswer, Finish, Message, Plan, Role, Sample, Step};

use super::*;

/// A tier that answers with so many tokens.
struct Counts(&'static str, u32);

impl Tier for Counts {
    fn id(&self) -> &str {
        self.0
    }

    fn view(&self) -> TierView {
        TierView {
            id: self.0.into(),
            rank: self.1,
            joules_per_token: Some(Sample {
                origin: Origin::Modelled,
                ..Sample::measured(0.5)
            }),
            usd_per_mtok_prompt: Some(1e6),
            usd_per_mtok_output: Some(2e6),
            ..TierView::default()
        }
    }

    fn generate(&self, _: GenerateCall) -> BoxFuture<'static, Result<TokenStream, TierError>> {
        let token = Token {
            text: "word ".into(),
            logprob: Some(-0.1),
            ..Token::default()
        };
        let mut events: Vec<Result<TierEvent, TierError>> = (0..self.1)
            .map(|_| Ok(TierEvent::Token(token.clone())))
            .collect();
        events.push(Ok(TierEvent::Finished {
            finish: Finish::Stop,
            prompt_tokens: 3,
            completion_tokens: self.1,
        }));
        async move { Ok(stream::iter(events).boxed()) }.boxed()
    }
}

fn decided(tiers: &[&str]) -> Decided {
    let step = |tier: &&str| Step {
        tier: (*tier).into(),
        ..Step::default()
    };
    Decided {
        decision: Decision::Plan(Plan {
            steps: tiers.iter().map(step).collect(),
            ..Plan::default()
        }),
        label: tiers.join(" > "),
        promise: Promise {
            tokens: Some(7.0),
            joules: Some((3.5, Origin::Measured)),
            ..Promise::default()
        },
    }
}

fn moved(recorded: Decided, candidate: Decided) -> Moved {
    let request = Request {
        id: "request-1".into(),
        messages: vec![Message {
            role: Role::User,
            content: "Why is the sky blue?".into(),
        }],
        ..Request::default()
    };
    Moved {
        request,
        classification: Classification::default(),
        recorded,
        candidate,
        validator: None,
    }
}

/// Devices whose counter moves by a joule between two looks, or none.
fn stage(devices: usize) -> Stage {
    let looks = AtomicU32::new(0);
    Stage {
        tiers: vec![Arc::new(Counts("small", 4)), Arc::new(Counts("large", 9))],
        judges: Judges::new(),
        snapshots: Arc::new(move || {
            let joules = f64::from(looks.fetch_add(1, Relaxed));
            let device = |n: usize| Device {
                id: format!("gpu.{n}"),
                kind: DeviceKind::Gpu,
                energy_joules: Some(Sample::measured(joules)),
                ..Device::default()
            };
            Arc::new(Snapshot {
                devices: (0..devices).map(device).collect(),
                ..Snapshot::default()
            })
        }),
        settle: Duration::ZERO,
        top_p: 1.0,
    }
}

#[tokio::test]
async fn both_decisions_are_answered_and_counted() {
    let run = stage(0)
        .run(&moved(decided(&["small"]), decided(&["large"])))
        .await;
    let (old, new) = (&run.recorded.real, &run.candidate.real);
    assert_eq!((old.tokens, new.tokens), (4, 9));
    assert_eq!(old.joules, Some((2.0, Origin::Modelled)));
    assert_eq!(new.joules, Some((4.5, Origin::Modelled)));
    assert_eq!((old.usd, new.usd), (Some(11.0), Some(21.0)));
    assert!(!old.verdict.is_empty() && old.verdict == new.verdict);
    let executed = Executed {
        moved: 5,
        runs: vec![run],
        left_out: vec![("request-2".into(), "why not".into())],
    };
    let text = executed.text();
    for words in [
        "executed 1 of 5 moved routes",
        "not executed request-2: why not",
        "small: 4 tokens",
        "2.000 J modelled",
        "predicted 7 tokens, 3.500 J measured",
    ] {
        assert!(text.contains(words), "{words} is not in\n{text}");
    }
}

#[tokio::test]
async fn counters_win_over_the_model_and_their_sum_is_told_as_measured() {
    let run = stage(2)
        .run(&moved(decided(&["small"]), decided(&["large"])))
        .await;
    // The run itself looks once, between the two looks around it.
    assert_eq!(run.recorded.real.joules, Some((4.0, Origin::Measured)));
}

#[tokio::test]
async fn an_answer_without_a_model_takes_nothing_and_a_refusal_is_told() {
    let direct = Decided {
        decision: Decision::Answer(DirectAnswer {
            text: "391".into(),
            method: "arithmetic".into(),
        }),
        label: "answer (arithmetic)".into(),
        promise: Promise::default(),
    };
    let run = stage(0).run(&moved(direct, decided(&["gone"]))).await;
    let (old, new) = (&run.recorded.real, &run.candidate.real);
    assert_eq!((old.tokens, old.joules, old.good), (0, None, true));
    assert!(new.verdict.contains("gone"), "{}", new.verdict);
    assert!(!new.good);
}

#[test]
fn what_cannot_be_run_here_is_named_with_its_reason() {
    let config = Config::default();
    let good = moved(decided(&["smollm2"]), decided(&["smollm2"]));
    let mut cut = good.clone();
    cut.request.cut_bytes = 9;
    let mut shaped = good.clone();
    let form = Value::Text("regex".into());
    shaped.request.attributes = vec![("homeostat.output".into(), form)];
    let mut schema = good.clone();
    schema.request.response_format = ResponseFormat::JsonSchema;
    let elsewhere = moved(decided(&["smollm2"]), decided(&["large"]));
    let sample = [good, cut, shaped, schema, elsewhere];
    let (runnable, left_out) = runnable(&config, &sample);
    assert_eq!(runnable.len(), 1);
    let reasons: Vec<&str> = left_out.iter().map(|(_, why)| why.as_str()).collect();
    for (why, words) in reasons.iter().zip([
        "without 9 bytes",
        "regex",
        "schema is not recorded",
        "tier large is not in this configuration, which has smollm2",
    ]) {
        assert!(why.contains(words), "{why}");
    }
    let failure = execute(&config, &log(), 1, &sample[4..]).unwrap_err();
    assert!(failure.to_string().contains("--config"), "{failure}");
}

#[test]
fn a_recorded_schema_shapes_the_answer_and_the_hosts_own_attributes_are_not_sent_twice() {
    let mut request = moved(decided(&[]), decided(&[])).request;
    request.response_format = ResponseFormat::JsonSchema;
    request.attributes = vec![
        (
            "homeostat.json-schema".into(),
            Value::Text(r#"{"type":"object"}"#.into()),
        ),
        ("team".into(), Value::Text("a".into())),
    ];
    let job = job(&request, 1.0).unwrap();
    assert!(matches!(job.output, OutputFormat::JsonSchema { .. }));
    assert_eq!(job.attributes.len(), 1);
}

#[test]
fn only_the_tiers_that_are_asked_are_loaded_and_they_remember_nothing() {
    let mut config = Config::default();
    config.tiers.push(TierConfig {
        id: "other".into(),
        ..TierConfig::default()
    });
    let moved = moved(decided(&["smollm2"]), decided(&["smollm2"]));
    let narrowed = narrowed(&config, &[&moved]);
    let ids: Vec<&str> = narrowed.tiers.iter().map(|t| t.id.as_str()).collect();
    assert_eq!(ids, ["smollm2"]);
    assert!(!narrowed.tiers[0].prefix_cache && !narrowed.encoder.enabled);
}

/// A log that nobody reads.
fn log() -> RecordLog {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("decisions-00000000.jsonl"), "").unwrap();
    RecordLog::open(dir.path()).unwrap()
}
