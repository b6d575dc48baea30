//! The local tier and the models of policies, with the real model of the cache.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use homeostat_cascade::{
    GenerateCall, OutputFormat, Prompt, Sampling, Tier, TierError, TierEvent, TierFault, Token,
};
use homeostat_engine::{Engine, EngineConfig, SequenceStep, Shutdown, StepObserver};
use homeostat_hooks::{
    Finish, GenerateOptions, Message, ModelError, Models, Request, Role, TierKind, TierView, Value,
};

use super::device::{DeviceState, TierDevice};
use super::local::{LocalTier, Wishes};
use super::models::HostModels;
use crate::budgets::Budgets;
use crate::config::{Config, EnergyConfig, EnergyMode};
use crate::energy::Energy;
use crate::metrics::Metrics;
use crate::models::Shelf;
use crate::openai::request::sharer_of_tenant;

/// One engine for the tests of this file that share it.
static ENGINE: LazyLock<Engine> = LazyLock::new(engine);

fn engine() -> Engine {
    let shelf = Shelf::open(&Config::default()).unwrap();
    let file = shelf.verified("smollm2-135m-instruct").unwrap();
    Engine::load(EngineConfig::new("small", file)).unwrap()
}

fn tier() -> LocalTier {
    tier_over(&ENGINE)
}

fn tier_over(engine: &Engine) -> LocalTier {
    let view = TierView {
        id: "small".into(),
        kind: TierKind::Local,
        usd_per_mtok_prompt: Some(1e6),
        usd_per_mtok_output: Some(1e3),
        ..TierView::default()
    };
    let wishes = Wishes {
        max_tokens: 12,
        system: Some(String::new()),
    };
    let times = Metrics::new().unwrap().times_of("small");
    LocalTier::new(view, engine.handle(), wishes, times)
}

fn call(question: &str) -> GenerateCall {
    GenerateCall {
        request_id: "r".into(),
        prompt: Arc::new(Prompt::Chat(vec![Message {
            role: Role::User,
            content: question.into(),
        }])),
        sampling: Sampling {
            temperature: 0.0,
            ..Sampling::default()
        },
        max_tokens: None,
        max_draft_tokens: 0,
        output: OutputFormat::Text,
        answer_prefix: String::new(),
        draft_hint: String::new(),
        sharer: None,
        priority: 0,
        time_left: None,
    }
}

async fn ask(call: GenerateCall) -> Result<(Vec<Token>, TierEvent), TierError> {
    let mut stream = tier().generate(call).await?;
    let mut tokens = Vec::new();
    while let Some(event) = stream.next().await {
        match event? {
            TierEvent::Token(token) => tokens.push(token),
            finished => return Ok((tokens, finished)),
        }
    }
    panic!("the stream has no end");
}

fn text(tokens: &[Token]) -> String {
    tokens.iter().map(|t| t.text.as_str()).collect()
}

#[tokio::test]
async fn a_question_is_answered_with_log_probabilities_and_counted() {
    let (tokens, end) = ask(call("What is the capital of France?")).await.unwrap();
    assert!(text(&tokens).contains("Paris"), "{}", text(&tokens));
    assert!(tokens.iter().all(|t| t.logprob.is_some_and(|l| l <= 0.0)));
    // Nats of a vocabulary of 49,152 tokens.
    let possible = 0.0..=11.0;
    assert!(
        tokens
            .iter()
            .all(|t| t.entropy.is_some_and(|e| possible.contains(&e)))
    );
    let TierEvent::Finished {
        finish,
        prompt_tokens,
        completion_tokens,
    } = end
    else {
        panic!("{end:?}");
    };
    assert_eq!(finish, Finish::Stop);
    assert!(prompt_tokens > 10);
    // The end token is counted and is no part of the answer.
    assert_eq!(completion_tokens as usize, tokens.len() + 1);
}

#[tokio::test]
async fn without_a_wish_an_answer_ends_at_the_tiers_own_limit() {
    let (_, end) = ask(call("Write a long story about the sea."))
        .await
        .unwrap();
    let TierEvent::Finished {
        finish,
        completion_tokens,
        ..
    } = end
    else {
        panic!("{end:?}");
    };
    assert_eq!((finish, completion_tokens), (Finish::Length, 12));
}

#[tokio::test]
async fn an_answer_that_has_begun_is_continued() {
    let mut begun = call("What is the capital of France?");
    begun.answer_prefix = "The capital of France is".into();
    let (tokens, _) = ask(begun).await.unwrap();
    assert!(text(&tokens).starts_with(" Paris"), "{}", text(&tokens));
}

#[tokio::test]
async fn an_answer_that_was_left_goes_on_as_if_it_had_not_been_and_its_rest_is_the_draft() {
    let engine = engine();
    let tier = tier_over(&engine);
    assert!(tier.can_continue(&call("").prompt));
    let said = |asked: GenerateCall| {
        let asked = GenerateCall {
            max_tokens: Some(40),
            ..asked
        };
        let tier = &tier;
        async move {
            let stream = tier.generate(asked).await.unwrap();
            let texts = stream.filter_map(|event| async move {
                match event.unwrap() {
                    TierEvent::Token(token) => Some(token.text),
                    TierEvent::Finished { .. } => None,
                }
            });
            texts.collect::<Vec<String>>().await
        }
    };
    let question = || call("Write a long story about the sea.");
    let whole = said(question()).await;
    let (seen, dropped) = (whole[..20].concat(), whole[20..].concat());
    let before = engine
        .handle()
        .stats()
        .spec_decode_num_accepted_tokens_total;
    let continued = said(GenerateCall {
        answer_prefix: seen,
        draft_hint: dropped.clone(),
        max_draft_tokens: 7,
        ..question()
    });
    let continued = continued.await.concat();
    assert!(continued.starts_with(&dropped), "{continued:?} {dropped:?}");
    let accepted = engine
        .handle()
        .stats()
        .spec_decode_num_accepted_tokens_total
        - before;
    assert!(accepted >= 5, "{accepted} of 20 dropped tokens were used");
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_the_clients_fault_with_both_numbers() {
    let context = ENGINE.handle().info().context_tokens;
    for words in [9000, 40_000] {
        let mut long = call(&"word ".repeat(words));
        long.max_tokens = (words == 9000).then_some(5);
        let error = ask(long).await.unwrap_err();
        assert_eq!(error.fault, TierFault::Client);
        assert_eq!(error.code, "context_length_exceeded");
        assert!(
            error.message.contains(&context.to_string()),
            "{}",
            error.message
        );
        assert!(!error.retryable);
    }
}

#[tokio::test]
async fn an_impossible_parameter_is_the_clients_fault() {
    let mut bad = call("hi");
    bad.sampling.logit_bias = vec![(99_999_999, 1.0)];
    let error = ask(bad).await.unwrap_err();
    assert_eq!(
        (error.fault, error.code),
        (TierFault::Client, "invalid_value")
    );
}

#[tokio::test]
async fn an_answer_has_the_form_that_was_asked_for() {
    let mut asked = call("Is the sky blue? Answer with one word.");
    asked.output = OutputFormat::Choice(vec!["certainly".into(), "never".into()]);
    let (tokens, end) = ask(asked).await.unwrap();
    assert!(["certainly", "never"].contains(&text(&tokens).as_str()));
    assert!(
        matches!(
            end,
            TierEvent::Finished {
                finish: Finish::Stop,
                ..
            }
        ),
        "{end:?}"
    );
}

#[tokio::test]
async fn a_form_that_cannot_be_kept_to_is_the_clients_fault() {
    let mut asked = call("hi");
    asked.output = OutputFormat::JsonSchema {
        name: "n".into(),
        schema: serde_json::json!({"properties": {"a": {"not": {}}}}),
    };
    let error = ask(asked).await.unwrap_err();
    assert_eq!(
        (error.fault, error.code),
        (TierFault::Client, "invalid_grammar")
    );
    assert!(
        error.message.contains("#/properties/a"),
        "{}",
        error.message
    );
    let mut begun = call("hi");
    begun.output = OutputFormat::JsonObject;
    begun.answer_prefix = "{".into();
    assert_eq!(ask(begun).await.unwrap_err().code, "cannot_continue");
}

#[tokio::test]
async fn a_dropped_answer_ends_its_sequence() {
    let mut long = call("Write a long story about a lighthouse.");
    long.max_tokens = Some(4000);
    long.sampling.logit_bias = vec![(2, -100.0), (0, -100.0)];
    let mut stream = tier().generate(long).await.unwrap();
    stream.next().await.unwrap().unwrap();
    let cancelled = tokio::task::spawn_blocking(move || {
        drop(stream);
        // Generous: the test hangs here if nobody cancels. Other tests' sequences are
        // short, so at some moment nothing runs.
        (0..60_000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            ENGINE.handle().stats().num_requests_running == 0
        })
    });
    assert!(cancelled.await.unwrap());
}

#[test]
fn a_client_that_leaves_while_its_prompt_is_tokenised_ends_its_sequence() {
    let engine = engine();
    let tier = tier_over(&engine);
    // One thread for work that blocks: what is asked of it is done in turn.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut asked = tier.generate(call(&"word ".repeat(4_000)));
        assert!(futures::poll!(&mut asked).is_pending());
        drop(asked);
        tokio::task::spawn_blocking(|| ()).await.unwrap();
    });
    let handle = engine.handle();
    // Generous: the test hangs here if nobody ends it. Its prompt has 4,000 tokens.
    let ended = (0..60_000).any(|_| {
        std::thread::sleep(Duration::from_millis(1));
        handle.stats().requests_finished_total == 1
    });
    let stats = handle.stats();
    assert!(ended, "{stats:?}");
    assert!(stats.iteration_tokens_total < 2_000, "{stats:?}");
}

#[test]
fn a_tier_is_ready_for_as_long_as_its_engine_takes_requests() {
    let engine = engine();
    let tier = tier_over(&engine);
    assert!(tier.view().ready);
    engine.shutdown(Shutdown::Cancel);
    assert!(!tier.view().ready);
}

#[test]
fn a_tier_whose_device_is_lost_is_ready_again_when_the_device_comes_back() {
    let tier = tier();
    let gone = Arc::new(AtomicBool::new(false));
    let seen = gone.clone();
    tier.stand_on(TierDevice {
        id: "gpu.0".into(),
        state: Box::new(move || DeviceState {
            lost: seen.load(Ordering::SeqCst),
            degrade_ratio: Some(0.25),
        }),
    });
    for lost in [false, true, false] {
        gone.store(lost, Ordering::SeqCst);
        assert_eq!(tier.view().ready, !lost);
    }
    let attributes = tier.view().attributes;
    for (key, value) in [
        ("homeostat.device", Value::Text("gpu.0".into())),
        ("homeostat.device-degrade-ratio", Value::Number(0.25)),
    ] {
        let told = attributes.iter().find(|(name, _)| name == key);
        assert_eq!(told, Some(&(key.to_owned(), value)));
    }
}

#[tokio::test]
async fn what_is_asked_and_not_yet_answered_is_work_in_hand() {
    let tier = tier();
    let ask = || tier.generate(call("Write a long story about the sea."));
    assert_eq!(tier.work_in_hand(), None, "who knows how long one takes?");
    let first = ask().await.unwrap();
    first.for_each(|_| async {}).await;
    let done = tier.work_in_hand().expect("one answer");
    assert!(
        done.tpot_ms > 0.0 && done.tokens_left.is_empty(),
        "{done:?}"
    );
    let mut second = ask().await.unwrap();
    second.next().await.unwrap().unwrap();
    // The first had twelve.
    assert_eq!(tier.work_in_hand().unwrap().tokens_left, [11.0]);
    // It has written, so its prompt is read.
    assert_eq!(tier.work_in_hand().unwrap().prefill_ms, 0.0);
    drop(second);
    assert!(tier.work_in_hand().unwrap().tokens_left.is_empty());
}

#[test]
fn what_policies_ask_is_cached_for_their_tenant_alone() {
    let engine = engine();
    let tier = Arc::new(tier_over(&engine));
    let models = HostModels::new(vec![tier.clone()], Vec::new(), None).unwrap();
    let prompt = "word ".repeat(100);
    let hits = || engine.handle().stats().prefix_cache_hits_total;
    let ask = |tenant| {
        let options = GenerateOptions {
            max_tokens: 1,
            ..GenerateOptions::default()
        };
        let answer = models.generate(tenant, "small", &prompt, &options, 60_000);
        answer.unwrap();
        hits()
    };
    assert_eq!(ask(Some("acme")), 0);
    assert_eq!(ask(Some("other")), 0);
    assert_eq!(ask(None), 0);
    // A client without a name, and a tenant's own client.
    let client = |sharer: Option<String>| {
        let raw = GenerateCall {
            prompt: Arc::new(Prompt::Raw(prompt.clone())),
            sharer,
            ..call("")
        };
        futures::executor::block_on(async {
            let stream = tier.generate(raw).await.unwrap();
            stream.for_each(|_| async {}).await;
        });
        hits()
    };
    assert_eq!(client(None), 0);
    let of_tenant = client(Some(sharer_of_tenant("acme")));
    assert!(of_tenant > 0);
    assert!(ask(Some("other")) > of_tenant);
}

/// The accounts on which an engine has computed.
struct Heard(Arc<Mutex<BTreeSet<u64>>>);

impl StepObserver for Heard {
    fn began(&mut self, _: Duration) {}

    fn ended(&mut self, _: Duration, _: Duration, sequences: &[SequenceStep]) {
        let accounts = sequences.iter().map(|sequence| sequence.account);
        self.0.lock().unwrap().extend(accounts);
    }
}

#[test]
fn what_a_policy_asks_is_computed_on_its_requests_account_and_costs_what_its_tokens_do() {
    let limits = "[limits.h]\nunit = \"usd\"\nlimit = 1000\nper = \"day\"";
    let limits = toml::from_str(limits).unwrap();
    let budgets = Arc::new(Budgets::open(&limits, None, None, Box::new(|| 0)).unwrap());
    let off = EnergyConfig {
        mode: EnergyMode::Off,
        ..EnergyConfig::default()
    };
    let energy = Arc::new(Energy::new(&off, Path::new("/none"), Instant::now()));
    let engine = engine();
    let heard = Arc::new(Mutex::new(BTreeSet::new()));
    engine
        .handle()
        .observe_steps(Box::new(Heard(heard.clone())));
    let tier = Arc::new(tier_over(&engine));
    let models = Arc::new(HostModels::new(vec![tier], Vec::new(), None).unwrap());
    models.keep_books(&energy, &budgets);
    let options = GenerateOptions {
        max_tokens: 2,
        ..GenerateOptions::default()
    };
    let (prompt, continuation) = ("The capital of France", " is Paris");
    let ask = |id: &str, question: &dyn Fn(&dyn Models)| {
        let request = Request {
            id: id.into(),
            ..Request::default()
        };
        let purse = budgets.purse_of_texts(id, (None, None), 0);
        let paid = models.clone().at_the_expense_of(&request);
        drop(purse);
        question(&*paid.expect("books are kept"));
        budgets.status()[0].spent
    };
    let generate = |models: &dyn Models| {
        let answer = models.generate(None, "small", prompt, &options, 60_000);
        assert_eq!(answer.unwrap().logprobs.len(), 2);
    };
    let score = |models: &dyn Models| {
        let scores = models.score(None, "small", prompt, continuation, 60_000);
        assert!(!scores.unwrap().is_empty());
    };
    let late = |models: &dyn Models| {
        let long = GenerateOptions {
            max_tokens: 2000,
            ..options.clone()
        };
        let answer = models.generate(None, "small", prompt, &long, 0);
        assert!(matches!(answer, Err(ModelError::Unavailable(_))));
    };
    // A token that is read costs a dollar, one that is written a thousandth.
    let tokens = |text, special| engine.handle().count_tokens(text, special) as f64;
    let read = tokens(prompt, true);
    let generated = ask("generates", &generate);
    assert!((generated - read - 0.002).abs() < 1e-6, "{generated}");
    let scored = ask("scores", &score);
    let cost = read + tokens(continuation, false);
    assert!((scored - generated - cost).abs() < 1e-6, "{scored}");
    // What is too late was read all the same, as far as anybody knows.
    let spent = ask("late", &late);
    let cost = spent - scored - read;
    assert!((-1e-6..2.1).contains(&cost), "{cost}");
    let own: &dyn Models = &*models;
    generate(own);
    assert_eq!(budgets.status()[0].spent, spent, "no request pays");
    engine.shutdown(Shutdown::Drain);
    let accounts = ["generates", "scores"].map(|id| energy.questions_of(id).account());
    let heard = heard.lock().unwrap();
    assert!(heard.contains(&0) && heard.is_superset(&accounts.into()));
    assert!(!accounts.contains(&0) && accounts[0] != accounts[1]);
}

#[test]
fn policies_may_count_score_and_generate_within_their_time() {
    let models = HostModels::new(vec![Arc::new(tier())], Vec::new(), None).unwrap();
    assert_eq!(
        models
            .count_tokens("small", "The capital of France")
            .unwrap(),
        4
    );
    let likely = models.score(None, "small", "The capital of France is", " Paris", 60_000);
    let unlikely = models.score(None, "small", "The capital of France is", " banana", 60_000);
    assert!(likely.unwrap()[0] > unlikely.unwrap()[0]);
    let options = GenerateOptions {
        max_tokens: 2,
        ..GenerateOptions::default()
    };
    let answer = models.generate(None, "small", "The capital of France is", &options, 60_000);
    let answer = answer.unwrap();
    assert!(answer.text.starts_with(" Paris"), "{}", answer.text);
    assert_eq!(answer.logprobs.len(), 2);
    let hurried = GenerateOptions {
        max_tokens: 2000,
        ..options
    };
    let late = models.generate(None, "small", "Once upon a time", &hurried, 1);
    assert!(matches!(late, Err(ModelError::Unavailable(_))), "{late:?}");
}
