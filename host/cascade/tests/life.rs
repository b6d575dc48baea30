//! The life of a request, told with tiers and policies that follow a script.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use homeostat_cascade::*;
use homeostat_hooks::*;

/// What a scripted tier does when it is asked.
#[derive(Clone)]
enum Script {
    Says(Vec<(&'static str, f32)>),
    Refuses(&'static str, TierFault),
    BreaksAfter(&'static str),
    NeverEnds(Arc<AtomicBool>),
}

struct ScriptedTier {
    id: &'static str,
    rank: u32,
    script: Script,
    asked: Arc<AtomicUsize>,
}

fn tier_error(code: &'static str, fault: TierFault) -> TierError {
    TierError {
        fault,
        code,
        message: format!("scripted {code}"),
        retryable: true,
        retry_after_ms: None,
    }
}

/// Sets its flag when it is dropped: proof that a generation was cancelled.
struct OnDrop(Arc<AtomicBool>);
impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Tier for ScriptedTier {
    fn id(&self) -> &str {
        self.id
    }
    fn view(&self) -> TierView {
        TierView {
            id: self.id.into(),
            rank: self.rank,
            ready: true,
            ..TierView::default()
        }
    }
    fn generate(&self, _: GenerateCall) -> BoxFuture<'static, Result<TokenStream, TierError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let script = self.script.clone();
        async move {
            let token = |text: &str, p: f32| {
                Ok(TierEvent::Token(Token {
                    text: text.into(),
                    logprob: Some(p),
                    ..Token::default()
                }))
            };
            let events: Vec<Result<TierEvent, TierError>> = match script {
                Script::Refuses(code, fault) => return Err(tier_error(code, fault)),
                Script::Says(words) => {
                    let n = words.len() as u32;
                    let end = TierEvent::Finished {
                        finish: Finish::Stop,
                        prompt_tokens: 7,
                        completion_tokens: n,
                    };
                    words
                        .iter()
                        .map(|(w, p)| token(w, *p))
                        .chain([Ok(end)])
                        .collect()
                }
                Script::BreaksAfter(word) => {
                    vec![
                        token(word, -0.1),
                        Err(tier_error("broken", TierFault::Tier)),
                    ]
                }
                Script::NeverEnds(dropped) => {
                    let guard = OnDrop(dropped);
                    let first = futures::stream::iter([token("and ", -0.1)]);
                    let rest = futures::stream::pending().map(move |x| {
                        let _ = &guard;
                        x
                    });
                    return Ok(first.chain(rest).boxed());
                }
            };
            Ok(futures::stream::iter(events).boxed())
        }
        .boxed()
    }
}

/// Policies that answer what they are told; verdicts are used up one by one.
struct Scripted {
    decision: Decision,
    verdicts: Arc<Mutex<VecDeque<Verdict>>>,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
}

struct ScriptedSession(
    Decision,
    Arc<Mutex<VecDeque<Verdict>>>,
    Arc<Mutex<Vec<Outcome>>>,
);

impl Policies for Scripted {
    fn begin(&self, _: Arc<Request>, _: Arc<Snapshot>) -> Box<dyn Session> {
        let (verdicts, outcomes) = (self.verdicts.clone(), self.outcomes.clone());
        Box::new(ScriptedSession(self.decision.clone(), verdicts, outcomes))
    }
}

impl Session for ScriptedSession {
    fn classify(&mut self) -> HookReply<Classification> {
        builtin::reply(Classification::default())
    }
    fn route(&mut self, _: &Classification, _: &[TierView]) -> HookReply<Decision> {
        builtin::reply(self.0.clone())
    }
    fn validate(&mut self, answer: &Answer) -> HookReply<Verdict> {
        let next = self.1.lock().unwrap().pop_front();
        builtin::reply(next.unwrap_or_else(|| builtin::validate(answer)))
    }
    fn learn(&mut self, outcome: &Outcome) {
        self.2.lock().unwrap().push(outcome.clone());
    }
}

fn plan(tiers: &[&str]) -> Decision {
    let step = |t: &&str| Step {
        tier: (*t).into(),
        accept_threshold: 0.5,
        ..Step::default()
    };
    Decision::Plan(Plan {
        steps: tiers.iter().map(step).collect(),
        ..Plan::default()
    })
}

fn accept(confidence: f32) -> Verdict {
    Verdict::Accept(Assessment {
        confidence,
        findings: vec![],
    })
}

fn escalate(confidence: f32) -> Verdict {
    Verdict::Escalate(Assessment {
        confidence,
        findings: vec![],
    })
}

struct World {
    cascade: Arc<Cascade>,
    small_asked: Arc<AtomicUsize>,
    large_asked: Arc<AtomicUsize>,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
}

fn world(decision: Decision, verdicts: Vec<Verdict>, small: Script, large: Script) -> World {
    let asked = [Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0))];
    let tiers: Vec<Arc<dyn Tier>> = vec![
        Arc::new(ScriptedTier {
            id: "large",
            rank: 1,
            script: large,
            asked: asked[1].clone(),
        }),
        Arc::new(ScriptedTier {
            id: "small",
            rank: 0,
            script: small,
            asked: asked[0].clone(),
        }),
    ];
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let verdicts = Arc::new(Mutex::new(VecDeque::from(verdicts)));
    let policies = Arc::new(Scripted {
        decision,
        verdicts,
        outcomes: outcomes.clone(),
    });
    let snapshot = Arc::new(Snapshot::default());
    let cascade = Cascade::new(
        policies,
        tiers,
        Arc::new(move || snapshot.clone()),
        CascadeConfig {
            joules_of: Some(Arc::new(|id| {
                (id == "req-1").then(|| Sample::measured(3.5))
            })),
            ..CascadeConfig::default()
        },
    );
    let [small_asked, large_asked] = asked;
    World {
        cascade: Arc::new(cascade),
        small_asked,
        large_asked,
        outcomes,
    }
}

fn job(stream: bool) -> Job {
    let message = Message {
        role: Role::User,
        content: "why?".into(),
    };
    Job {
        id: "req-1".into(),
        endpoint: Endpoint::Chat,
        model: "auto".into(),
        prompt: Prompt::Chat(vec![message]),
        sampling: Sampling::default(),
        max_tokens: None,
        stream,
        output: OutputFormat::Text,
        tenant: None,
        sharer: None,
        priority: 0,
        deadline_ms: None,
        attributes: vec![],
        purse: None,
    }
}

async fn read(reply: Reply) -> (Head, String, Option<ReplyEvent>) {
    let mut text = String::new();
    let mut last = None;
    let mut events = reply.events;
    while let Some(event) = events.next().await {
        if let ReplyEvent::Token(token) = &event {
            text.push_str(&token.text);
        }
        last = Some(event);
    }
    (reply.head, text, last)
}

/// The record is closed after the client has its answer; wait for it.
async fn record(world: &World) -> Arc<DecisionRecord> {
    loop {
        if let Some(record) = world.cascade.record("req-1") {
            return record;
        }
        tokio::task::yield_now().await;
    }
}

const YES: Script = Script::Says(Vec::new());

fn says(words: &[(&'static str, f32)]) -> Script {
    Script::Says(words.to_vec())
}

#[tokio::test]
async fn an_accepted_first_answer_never_reaches_the_larger_tier() {
    let w = world(
        plan(&["small", "large"]),
        vec![accept(0.9)],
        says(&[("be", -0.1), ("cause", -0.1)]),
        YES,
    );
    let (head, text, last) = read(w.cascade.run(job(true)).await.unwrap()).await;
    assert_eq!(
        (head.tier.as_str(), text.as_str(), head.escalations),
        ("small", "because", 0)
    );
    assert!(
        matches!(last, Some(ReplyEvent::Finished { usage, .. }) if usage.completion_tokens == 2)
    );
    assert_eq!(w.large_asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_doubted_answer_is_never_seen_and_the_next_tier_answers() {
    for stream in [false, true] {
        let w = world(
            plan(&["small", "large"]),
            vec![escalate(0.2)],
            says(&[("wrong", -3.0)]),
            says(&[("right", -0.1)]),
        );
        let (head, text, _) = read(w.cascade.run(job(stream)).await.unwrap()).await;
        assert_eq!(
            (head.tier.as_str(), text.as_str(), head.escalations),
            ("large", "right", 1)
        );
        let r = record(&w).await;
        assert_eq!(r.steps.len(), 2);
        assert!(!r.steps[0].sent && r.steps[1].sent);
        assert!(matches!(
            r.steps[0].verdict.as_ref().unwrap().value,
            Verdict::Escalate(_)
        ));
        assert_eq!(r.usage.generated_tokens_all_steps, 2);
        assert_eq!(r.usage.completion_tokens, 1);
        assert!(matches!(&r.ending, Ending::Sent { tier, step: 1 } if tier == "large"));
    }
}

#[tokio::test]
async fn the_last_step_of_a_stream_is_live() {
    let dropped = Arc::new(AtomicBool::new(false));
    let w = world(
        plan(&["small"]),
        vec![],
        Script::NeverEnds(dropped.clone()),
        YES,
    );
    let reply = w.cascade.run(job(true)).await.unwrap();
    let mut events = reply.events;
    let first = events.next().await.unwrap();
    assert!(
        matches!(first, ReplyEvent::Token(t) if t.text == "and "),
        "text before the end"
    );
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_generation() {
    let dropped = Arc::new(AtomicBool::new(false));
    let w = world(
        plan(&["small"]),
        vec![],
        Script::NeverEnds(dropped.clone()),
        YES,
    );
    drop(w.cascade.run(job(true)).await.unwrap());
    let r = record(&w).await;
    assert!(matches!(r.ending, Ending::Cancelled));
    assert!(
        dropped.load(Ordering::SeqCst),
        "the tier's stream was dropped"
    );
}

#[tokio::test]
async fn a_client_that_goes_away_before_the_first_text_cancels_as_well() {
    let dropped = Arc::new(AtomicBool::new(false));
    let w = world(
        plan(&["small", "large"]),
        vec![],
        Script::NeverEnds(dropped.clone()),
        YES,
    );
    let mut running = Box::pin(w.cascade.run(job(false)));
    while w.small_asked.load(Ordering::SeqCst) == 0 {
        assert!(futures::poll!(&mut running).is_pending());
        tokio::task::yield_now().await;
    }
    drop(running);
    assert!(matches!(record(&w).await.ending, Ending::Cancelled));
    assert!(dropped.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_tier_that_refuses_is_skipped() {
    let w = world(
        plan(&["small", "large"]),
        vec![],
        Script::Refuses("queue_full", TierFault::Tier),
        says(&[("hello", -0.1)]),
    );
    let (head, text, _) = read(w.cascade.run(job(true)).await.unwrap()).await;
    assert_eq!((head.tier.as_str(), text.as_str()), ("large", "hello"));
    assert_eq!(
        record(&w).await.steps[0].error.as_ref().unwrap().code,
        "queue_full"
    );
}

#[tokio::test]
async fn when_the_better_tier_fails_the_doubted_answer_is_sent_after_all() {
    let w = world(
        plan(&["small", "large"]),
        vec![escalate(0.3)],
        says(&[("maybe", -1.0)]),
        Script::Refuses("unavailable", TierFault::Tier),
    );
    let (head, text, _) = read(w.cascade.run(job(true)).await.unwrap()).await;
    assert_eq!((head.tier.as_str(), text.as_str()), ("small", "maybe"));
    let r = record(&w).await;
    assert!(r.notes[0].contains("later step failed"), "{:?}", r.notes);
    assert!(r.steps[0].sent);
}

#[tokio::test]
async fn with_every_tier_failing_the_last_error_is_the_answer() {
    let no = |code| Script::Refuses(code, TierFault::Tier);
    let w = world(
        plan(&["small", "large"]),
        vec![],
        no("queue_full"),
        no("unavailable"),
    );
    match w.cascade.run(job(true)).await {
        Err(Refused::Tier(e)) => assert_eq!(e.code, "unavailable"),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("expected a refusal"),
    }
}

#[tokio::test]
async fn a_request_at_fault_is_not_tried_elsewhere() {
    let small = Script::Refuses("invalid_value", TierFault::Client);
    let w = world(
        plan(&["small", "large"]),
        vec![],
        small,
        says(&[("no", -0.1)]),
    );
    assert!(
        matches!(w.cascade.run(job(false)).await, Err(Refused::Tier(e)) if e.code == "invalid_value")
    );
    assert_eq!(w.large_asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn what_only_this_tier_refuses_is_tried_elsewhere_and_the_last_refusal_is_the_answer() {
    for code in [CONTEXT_LENGTH_EXCEEDED, CONVERSATION_REFUSED] {
        let no = || Script::Refuses(code, TierFault::Client);
        let both = || plan(&["small", "large"]);
        let w = world(both(), vec![], no(), says(&[("yes", -0.1)]));
        let (head, text, _) = read(w.cascade.run(job(true)).await.unwrap()).await;
        assert_eq!((head.tier.as_str(), text.as_str()), ("large", "yes"));
        let w = world(both(), vec![], no(), no());
        let Err(Refused::Tier(refused)) = w.cascade.run(job(true)).await else {
            panic!("{code}: expected the tier's refusal");
        };
        assert_eq!((refused.code, refused.fault), (code, TierFault::Client));
        assert_eq!(w.large_asked.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_failure_in_the_middle_of_a_live_answer_is_told_in_the_stream() {
    let w = world(plan(&["small"]), vec![], Script::BreaksAfter("half"), YES);
    let (_, text, last) = read(w.cascade.run(job(true)).await.unwrap()).await;
    assert_eq!(text, "half");
    assert!(matches!(last, Some(ReplyEvent::Failed(e)) if e.code == "broken"));
    assert!(matches!(record(&w).await.ending, Ending::Failed { .. }));
}

#[tokio::test]
async fn a_failure_in_the_middle_of_a_held_answer_is_invisible() {
    let w = world(
        plan(&["small", "large"]),
        vec![],
        Script::BreaksAfter("half"),
        says(&[("whole", -0.1)]),
    );
    let (_, text, _) = read(w.cascade.run(job(true)).await.unwrap()).await;
    assert_eq!(text, "whole");
}

#[tokio::test]
async fn a_direct_answer_needs_no_tier() {
    let answer = DirectAnswer {
        text: "391".into(),
        method: "arithmetic".into(),
    };
    let w = world(Decision::Answer(answer), vec![], YES, YES);
    let (head, text, _) = read(w.cascade.run(job(false)).await.unwrap()).await;
    assert_eq!((head.tier.as_str(), text.as_str()), ("direct", "391"));
    assert_eq!(head.method.as_deref(), Some("arithmetic"));
    assert_eq!(
        w.small_asked.load(Ordering::SeqCst) + w.large_asked.load(Ordering::SeqCst),
        0
    );
}

#[tokio::test]
async fn a_text_that_no_tier_has_shaped_is_sent_only_in_the_form_asked_for() {
    let direct = |text: &str| {
        Decision::Answer(DirectAnswer {
            text: text.into(),
            method: "arithmetic".into(),
        })
    };
    let amended = Verdict::Amend(Amendment {
        text: "4".into(),
        assessment: Assessment {
            confidence: 1.0,
            findings: vec![],
        },
    });
    let choice = || OutputFormat::Choice(vec!["four".into(), "five".into()]);
    for (decision, verdict, output, expected, replanned) in [
        (direct("4"), vec![], choice(), "four", true),
        (direct("five"), vec![], choice(), "five", false),
        (
            direct("4"),
            vec![],
            OutputFormat::Regex("f.*".into()),
            "four",
            true,
        ),
        (direct("4"), vec![], OutputFormat::JsonObject, "4", false),
        (
            plan(&["small"]),
            vec![amended.clone()],
            choice(),
            "four",
            false,
        ),
        (
            plan(&["small"]),
            vec![amended],
            OutputFormat::Text,
            "4",
            false,
        ),
    ] {
        // Whichever tier the built-in router prefers.
        let four = || says(&[("four", -0.1)]);
        let w = world(decision, verdict, four(), four());
        let mut asked = job(false);
        asked.output = output.clone();
        let (_, text, _) = read(w.cascade.run(asked).await.unwrap()).await;
        assert_eq!(text, expected, "{output:?}");
        let record = record(&w).await;
        let reply = record.decision.as_ref().expect("a decision");
        assert_eq!(reply.fault.is_some(), replanned, "{output:?}");
        assert!(!replanned || matches!(reply.value, Decision::Plan(_)));
    }
}

#[tokio::test]
async fn a_refusal_reaches_the_client_with_its_reason_and_is_recorded() {
    let no = Rejection {
        kind: Refusal::BudgetExhausted,
        message: "spent".into(),
        retry_after_ms: Some(5),
    };
    let w = world(Decision::Reject(no.clone()), vec![], YES, YES);
    assert!(matches!(w.cascade.run(job(false)).await, Err(Refused::Policy(r)) if r == no));
    assert!(matches!(&record(&w).await.ending, Ending::Refused { message } if message == "spent"));
}

#[tokio::test]
async fn a_validator_may_amend_or_reject_what_was_not_sent_yet() {
    let better = Amendment {
        text: "better".into(),
        assessment: Assessment {
            confidence: 1.0,
            findings: vec![],
        },
    };
    let w = world(
        plan(&["small"]),
        vec![Verdict::Amend(better)],
        says(&[("worse", -0.1)]),
        YES,
    );
    let (_, text, _) = read(w.cascade.run(job(false)).await.unwrap()).await;
    assert_eq!(text, "better");

    let no = Rejection {
        kind: Refusal::Unreliable,
        message: "no".into(),
        retry_after_ms: None,
    };
    let w = world(
        plan(&["small"]),
        vec![Verdict::Reject(no)],
        says(&[("bad", -0.1)]),
        YES,
    );
    assert!(matches!(
        w.cascade.run(job(false)).await,
        Err(Refused::Policy(_))
    ));
}

#[tokio::test]
async fn an_unknown_model_is_refused_with_the_known_names() {
    let w = world(plan(&["small"]), vec![], YES, YES);
    let mut wrong = job(false);
    wrong.model = "gpt-9".into();
    let Err(refused) = w.cascade.run(wrong).await else {
        panic!("expected a refusal")
    };
    let text = refused.to_string();
    assert!(
        text.contains("gpt-9") && text.contains("small") && text.contains("large"),
        "{text}"
    );
}

#[tokio::test]
async fn a_named_model_is_the_only_candidate() {
    let w = world(plan(&["large"]), vec![], YES, says(&[("big", -0.1)]));
    let mut named = job(false);
    named.model = "large".into();
    read(w.cascade.run(named).await.unwrap()).await;
    let r = record(&w).await;
    assert_eq!(
        r.tiers.iter().map(|t| t.id.as_str()).collect::<Vec<_>>(),
        ["large"]
    );
}

#[tokio::test]
async fn a_deadline_ends_a_request_that_hangs() {
    let dropped = Arc::new(AtomicBool::new(false));
    let w = world(
        plan(&["small", "large"]),
        vec![],
        Script::NeverEnds(dropped.clone()),
        YES,
    );
    let mut hurried = job(false);
    hurried.deadline_ms = Some(50);
    let Err(Refused::Tier(e)) = w.cascade.run(hurried).await else {
        panic!("expected a refusal")
    };
    assert_eq!(e.code, "deadline_exceeded");
    record(&w).await;
    assert!(
        dropped.load(Ordering::SeqCst),
        "the generation was cancelled"
    );
}

#[tokio::test]
async fn policies_that_learn_hear_the_outcome() {
    let w = world(
        plan(&["small"]),
        vec![accept(0.8)],
        says(&[("a", -0.1), ("b", -0.1)]),
        YES,
    );
    read(w.cascade.run(job(false)).await.unwrap()).await;
    loop {
        if let Some(outcome) = w.outcomes.lock().unwrap().first() {
            assert_eq!(outcome.tier.as_deref(), Some("small"));
            assert_eq!(outcome.confidence, Some(0.8));
            assert_eq!((outcome.prompt_tokens, outcome.generated_tokens), (7, 2));
            assert_eq!(outcome.joules, Some(Sample::measured(3.5)));
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_record_is_json_that_tells_the_story() {
    let w = world(
        plan(&["small", "large"]),
        vec![escalate(0.2)],
        says(&[("wrong", -3.0)]),
        says(&[("right", -0.1)]),
    );
    read(w.cascade.run(job(false)).await.unwrap()).await;
    let json = serde_json::to_value(&*record(&w).await).unwrap();
    assert_eq!(json["ending"], "sent");
    assert_eq!(json["tier"], "large");
    assert_eq!(
        json["steps"][0]["verdict"]["value"]["escalate"]["confidence"],
        0.2f32 as f64
    );
    assert_eq!(json["decision"]["by"]["by"], "built-in");
}

/// A validator that is slower than anybody's patience.
struct SlowJudge;

impl Policies for SlowJudge {
    fn begin(&self, request: Arc<Request>, snapshot: Arc<Snapshot>) -> Box<dyn Session> {
        Box::new(SlowSession(BuiltIn.begin(request, snapshot)))
    }
}

struct SlowSession(Box<dyn Session>);

impl Session for SlowSession {
    fn classify(&mut self) -> HookReply<Classification> {
        self.0.classify()
    }
    fn route(&mut self, _: &Classification, _: &[TierView]) -> HookReply<Decision> {
        builtin::reply(plan(&["small"]))
    }
    fn validate(&mut self, answer: &Answer) -> HookReply<Verdict> {
        std::thread::sleep(std::time::Duration::from_millis(400));
        self.0.validate(answer)
    }
    fn learn(&mut self, outcome: &Outcome) {
        self.0.learn(outcome)
    }
}

#[tokio::test]
async fn an_answer_that_was_sent_whole_stays_sent_whatever_its_validator_takes() {
    let small = ScriptedTier {
        id: "small",
        rank: 0,
        script: says(&[("done", -0.1)]),
        asked: Arc::new(AtomicUsize::new(0)),
    };
    let cascade = Arc::new(Cascade::new(
        Arc::new(SlowJudge),
        vec![Arc::new(small)],
        Arc::new(|| Arc::new(Snapshot::default())),
        CascadeConfig::default(),
    ));
    let mut hurried = job(true);
    hurried.deadline_ms = Some(200);
    let reply = cascade.run(hurried).await.unwrap();
    let mut events = reply.events;
    while !matches!(events.next().await, Some(ReplyEvent::Finished { .. })) {}
    // The client leaves, and the deadline passes, while the verdict is still awaited.
    drop(events);
    let record = loop {
        if let Some(record) = cascade.record("req-1") {
            break record;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert!(
        matches!(record.ending, Ending::Sent { .. }),
        "{:?}",
        record.ending
    );
    assert!(record.steps[0].verdict.is_some());
}
