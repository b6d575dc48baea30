//! What of a plan is still worth a try, told with tiers that say their names.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use homeostat_cascade::*;
use homeostat_hooks::*;

/// A tier whose answer is its own name.
struct Named {
    id: &'static str,
    rank: u32,
    refuses: bool,
    /// Whether its device is there.
    ready: Arc<AtomicBool>,
}

impl Tier for Named {
    fn id(&self) -> &str {
        self.id
    }
    fn view(&self) -> TierView {
        TierView {
            id: self.id.into(),
            rank: self.rank,
            ready: self.ready.load(Ordering::SeqCst),
            ..TierView::default()
        }
    }
    fn generate(&self, _: GenerateCall) -> BoxFuture<'static, Result<TokenStream, TierError>> {
        let (id, refuses) = (self.id, self.refuses);
        async move {
            if refuses {
                return Err(TierError::host("queue_full", "scripted"));
            }
            let token = TierEvent::Token(Token {
                text: id.into(),
                ..Token::default()
            });
            let end = TierEvent::Finished {
                finish: Finish::Stop,
                prompt_tokens: 3,
                completion_tokens: 1,
            };
            Ok(futures::stream::iter([Ok(token), Ok(end)]).boxed())
        }
        .boxed()
    }
}

/// What the validator says of an answer.
type Judge = Arc<dyn Fn(&Answer) -> Verdict + Send + Sync>;

/// Doubted where that is less than is asked for.
fn so_sure(answer: &Answer, confidence: f32) -> Verdict {
    let assessment = Assessment {
        confidence,
        findings: vec![],
    };
    match confidence < answer.accept_threshold {
        true => Verdict::Escalate(assessment),
        false => Verdict::Accept(assessment),
    }
}

/// Plans all three tiers, and says what its judge says.
struct Judged(Plan, Judge);
struct JudgedSession(Plan, Judge);

impl Policies for Judged {
    fn begin(&self, _: Arc<Request>, _: Arc<Snapshot>) -> Box<dyn Session> {
        Box::new(JudgedSession(self.0.clone(), self.1.clone()))
    }
}

impl Session for JudgedSession {
    fn classify(&mut self) -> HookReply<Classification> {
        builtin::reply(Classification::default())
    }
    fn route(&mut self, _: &Classification, _: &[TierView]) -> HookReply<Decision> {
        builtin::reply(Decision::Plan(self.0.clone()))
    }
    fn validate(&mut self, answer: &Answer) -> HookReply<Verdict> {
        builtin::reply(self.1(answer))
    }
    fn learn(&mut self, _: &Outcome) {}
}

const TIERS: [&str; 3] = ["small", "middle", "large"];

/// All three tiers, with what the router expects of each.
fn plan(expected: &[(f64, f64)]) -> Plan {
    let step = |tier: &&str| Step {
        tier: (*tier).into(),
        accept_threshold: 0.9,
        ..Step::default()
    };
    let told = expected.iter().enumerate().flat_map(|(place, told)| {
        let key = |what: &str| format!("homeostat.step.{place}.{what}");
        [
            (key("quality"), Value::Number(told.0)),
            (key("price"), Value::Number(told.1)),
        ]
    });
    Plan {
        steps: TIERS.iter().map(step).collect(),
        attributes: told.collect(),
        ..Plan::default()
    }
}

/// What is told of a question of middling difficulty.
const TOLD: [(f64, f64); 3] = [(0.4, 0.05), (0.7, 0.15), (0.9, 0.35)];

type Machine = Arc<Mutex<Metabolism>>;

/// A job's whole life with these policies; the tier of that name refuses.
async fn lived(plan: Plan, judge: Judge, machine: Machine, refuses: &str) -> Arc<DecisionRecord> {
    let ready = Arc::new(AtomicBool::new(true));
    lived_on(plan, judge, machine, refuses, ready).await
}

/// The same where the large tier is ready only as long as this says.
async fn lived_on(
    plan: Plan,
    judge: Judge,
    machine: Machine,
    refuses: &str,
    large_is_ready: Arc<AtomicBool>,
) -> Arc<DecisionRecord> {
    let tier = |(rank, id): (usize, &'static str)| {
        Arc::new(Named {
            id,
            rank: rank as u32,
            refuses: id == refuses,
            ready: match id {
                "large" => large_is_ready.clone(),
                _ => Arc::new(AtomicBool::new(true)),
            },
        }) as Arc<dyn Tier>
    };
    let snapshots = move || {
        Arc::new(Snapshot {
            metabolism: *machine.lock().unwrap(),
            ..Snapshot::default()
        })
    };
    let cascade = Arc::new(Cascade::new(
        Arc::new(Judged(plan, judge)),
        TIERS.into_iter().enumerate().map(tier).collect(),
        Arc::new(snapshots),
        CascadeConfig::default(),
    ));
    let job = Job {
        id: "req-1".into(),
        endpoint: Endpoint::Completion,
        model: "auto".into(),
        prompt: Prompt::Raw("why?".into()),
        sampling: Sampling::default(),
        max_tokens: None,
        stream: false,
        output: OutputFormat::Text,
        tenant: None,
        sharer: None,
        priority: 0,
        deadline_ms: None,
        attributes: vec![],
        purse: None,
    };
    let reply = cascade.run(job).await.expect("an answer");
    reply.events.collect::<Vec<_>>().await;
    loop {
        if let Some(record) = cascade.record("req-1") {
            return record;
        }
        tokio::task::yield_now().await;
    }
}

/// The validator is so sure of the small tier's answers, and very sure of the others'.
fn sure(of_small: f32) -> Judge {
    Arc::new(move |answer| match answer.tier.as_str() {
        "small" => so_sure(answer, of_small),
        _ => so_sure(answer, 0.95),
    })
}

fn tried(record: &DecisionRecord) -> Vec<&str> {
    record.steps.iter().map(|s| s.tier.as_str()).collect()
}

fn sent(record: &DecisionRecord) -> &str {
    match &record.ending {
        Ending::Sent { tier, .. } => tier,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_asked_next_depends_on_the_confidence_in_what_is_there() {
    for (confidence, expected, skipped) in [
        (0.05, vec!["small", "large"], Some("middle 0.55 − 0.05")),
        (0.5, vec!["small", "middle"], None),
        (0.8, vec!["small"], Some("large 0.93 − 0.80 − 0.35 = -0.22")),
    ] {
        let record = lived(plan(&TOLD), sure(confidence), Machine::default(), "").await;
        assert_eq!(tried(&record), expected, "{confidence}");
        assert_eq!(sent(&record), expected[expected.len() - 1]);
        let notes = record.notes.join("\n");
        assert_eq!(skipped.is_none(), notes.is_empty(), "{notes}");
        assert!(notes.contains(skipped.unwrap_or("")), "{notes}");
    }
}

#[tokio::test]
async fn when_the_machine_turns_critical_in_the_middle_the_best_answer_in_hand_is_sent() {
    let machine = Machine::default();
    let turning = machine.clone();
    let judge: Judge = Arc::new(move |answer| match answer.tier.as_str() {
        "small" => so_sure(answer, 0.3),
        // Worse than the small one's.
        _ => {
            turning.lock().unwrap().state = MetabolicState::Critical;
            so_sure(answer, 0.2)
        }
    });
    // The middle tier costs nothing, so it is next.
    let mut told = TOLD;
    told[1].1 = 0.0;
    let record = lived(plan(&told), judge, machine, "").await;
    assert_eq!(tried(&record), ["small", "middle"]);
    assert_eq!(sent(&record), "small");
    assert!(record.steps[0].sent && !record.steps[1].sent);
    let note = record.notes.join("\n");
    assert!(note.contains("large is larger than small"), "{note}");
    assert!(note.contains("from nominal with 0 %"), "{note}");
    assert!(!note.contains("failed"), "{note}");
}

#[tokio::test]
async fn a_plan_that_tells_nothing_is_run_as_it_was_made() {
    let record = lived(plan(&[]), sure(0.8), Machine::default(), "").await;
    assert_eq!(tried(&record), ["small", "middle"]);
    assert_eq!(record.notes, Vec::<String>::new());
    // Half of what would be needed is nothing.
    let record = lived(plan(&TOLD[..2]), sure(0.8), Machine::default(), "").await;
    assert_eq!(tried(&record), ["small", "middle"]);
}

#[tokio::test]
async fn a_tier_that_was_passed_over_is_asked_when_the_better_one_refuses() {
    let places = Arc::new(Mutex::new(Vec::new()));
    let (seen, judge) = (places.clone(), sure(0.05));
    let judge: Judge = Arc::new(move |answer| {
        seen.lock().unwrap().push((answer.step, answer.steps_left));
        judge(answer)
    });
    let record = lived(plan(&TOLD), judge, Machine::default(), "large").await;
    assert_eq!(tried(&record), ["small", "large", "middle"]);
    assert_eq!(sent(&record), "middle");
    // Validators are told places in the plan, whatever the order.
    assert_eq!(*places.lock().unwrap(), [(0, 2), (1, 0)]);
    assert!(matches!(record.ending, Ending::Sent { step: 2, .. }));
}

/// The plan, by a threshold that an operator has set.
fn promised() -> Plan {
    let mut plan = plan(&TOLD);
    let set = "homeostat.threshold-is-set".to_owned();
    plan.attributes.push((set, Value::Boolean(true)));
    plan
}

#[tokio::test]
async fn what_is_below_a_threshold_that_an_operator_set_is_not_sent_to_save_a_price() {
    // Neither tier gains anything by the router's sum: it is enough for skipping both of its own.
    let own = lived(plan(&TOLD), sure(0.85), Machine::default(), "").await;
    assert_eq!(tried(&own), ["small"]);
    let record = lived(promised(), sure(0.85), Machine::default(), "").await;
    assert_eq!(tried(&record), ["small", "middle"]);
    assert_eq!(sent(&record), "middle");
    assert_eq!(record.notes, Vec::<String>::new());
}

#[tokio::test]
async fn a_threshold_that_was_set_lets_a_critical_machine_begin_nothing_larger() {
    let machine = Machine::default();
    let turning = machine.clone();
    let judge: Judge = Arc::new(move |answer| {
        turning.lock().unwrap().state = MetabolicState::Critical;
        so_sure(answer, 0.85)
    });
    let record = lived(promised(), judge, machine, "").await;
    assert_eq!(tried(&record), ["small"]);
    assert_eq!(sent(&record), "small");
    let note = record.notes.join("\n");
    assert!(note.contains("middle is larger than small"), "{note}");
}

#[tokio::test]
async fn an_answer_that_was_left_whatever_else_speaks_for_it_is_weighed_by_nothing() {
    // As sure as is asked, and left all the same: a check has failed that is no confidence.
    let judge: Judge = Arc::new(|answer| match answer.tier.as_str() {
        "small" => Verdict::Escalate(Assessment {
            confidence: 0.92,
            findings: vec![],
        }),
        _ => so_sure(answer, 0.95),
    });
    let record = lived(plan(&TOLD), judge, Machine::default(), "").await;
    assert_eq!(tried(&record), ["small", "middle"]);
    assert_eq!(sent(&record), "middle");
}

#[tokio::test]
async fn a_tier_that_was_lost_meanwhile_is_not_begun_and_the_one_passed_over_is() {
    let ready = Arc::new(AtomicBool::new(true));
    let lost = ready.clone();
    let judge: Judge = Arc::new(move |answer| match answer.tier.as_str() {
        // The large tier would be next.
        "small" => {
            lost.store(false, Ordering::SeqCst);
            so_sure(answer, 0.05)
        }
        _ => so_sure(answer, 0.95),
    });
    let record = lived_on(plan(&TOLD), judge, Machine::default(), "", ready).await;
    assert_eq!(tried(&record), ["small", "large", "middle"]);
    assert_eq!(sent(&record), "middle");
    let error = record.steps[1].error.as_ref().expect("it was not begun");
    assert_eq!(error.code, "tier_not_ready");
    assert!(error.message.contains("large"), "{error}");
}
