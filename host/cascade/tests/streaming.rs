//! Validation while the client reads: what leaves never comes back, and what follows fits on.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use homeostat_cascade::*;
use homeostat_hooks::*;
use tokio::sync::Notify;

/// What a tier does next while it answers.
#[derive(Clone)]
enum Beat {
    Says(&'static str),
    /// With this log-probability.
    Thinks(f32),
    /// Chosen from a distribution of this entropy.
    Wonders(f32),
    WaitsFor(Arc<Notify>),
    Hangs,
    Breaks,
    Ends(Finish),
}
use Beat::*;

/// One script per call; the last is used again. `None`: the call is refused.
struct Scripted {
    id: &'static str,
    rank: u32,
    continues: bool,
    scripts: Mutex<VecDeque<Option<Vec<Beat>>>>,
    calls: Arc<Mutex<Vec<GenerateCall>>>,
    /// Somebody waits for a token that will not come.
    hung: Arc<AtomicUsize>,
    /// Answers that are being read.
    open: Arc<AtomicUsize>,
    asked: Arc<Notify>,
}

fn broken() -> TierError {
    TierError {
        fault: TierFault::Tier,
        code: "broken",
        message: "it broke".into(),
        retryable: true,
        retry_after_ms: None,
    }
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An answer in the making: its beats, tokens so far, who is told of a hang, who counts it.
type Playing = (VecDeque<Beat>, u32, Arc<AtomicUsize>, Open);

async fn play(
    (mut beats, said, hung, open): Playing,
) -> Option<(Result<TierEvent, TierError>, Playing)> {
    let token = |text: &str, logprob| {
        Ok(TierEvent::Token(Token {
            text: text.into(),
            logprob: Some(logprob),
            ..Token::default()
        }))
    };
    loop {
        let item = match beats.pop_front()? {
            Says(text) => token(text, -0.1),
            Thinks(logprob) => token("x", logprob),
            Wonders(entropy) => Ok(TierEvent::Token(Token {
                text: "x".into(),
                entropy: Some(entropy),
                ..Token::default()
            })),
            WaitsFor(notify) => {
                notify.notified().await;
                continue;
            }
            Hangs => {
                hung.fetch_add(1, Ordering::SeqCst);
                std::future::pending().await
            }
            Breaks => Err(broken()),
            Ends(finish) => Ok(TierEvent::Finished {
                finish,
                prompt_tokens: 100,
                completion_tokens: said,
            }),
        };
        return Some((item, (beats, said + 1, hung, open)));
    }
}

impl Tier for Scripted {
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
    fn can_continue(&self, _: &Prompt) -> bool {
        self.continues
    }
    fn generate(&self, call: GenerateCall) -> BoxFuture<'static, Result<TokenStream, TierError>> {
        self.calls.lock().unwrap().push(call);
        self.asked.notify_one();
        let mut scripts = self.scripts.lock().unwrap();
        let script = match scripts.len() {
            1 => scripts[0].clone(),
            _ => scripts.pop_front().unwrap(),
        };
        self.open.fetch_add(1, Ordering::SeqCst);
        let (hung, open) = (self.hung.clone(), Open(self.open.clone()));
        async move {
            let beats: VecDeque<Beat> = script.ok_or_else(broken)?.into();
            Ok(futures::stream::unfold((beats, 0, hung, open), play).boxed())
        }
        .boxed()
    }
}

fn tier(id: &'static str, rank: u32, scripts: Vec<Option<Vec<Beat>>>) -> Scripted {
    Scripted {
        id,
        rank,
        continues: true,
        scripts: Mutex::new(scripts.into()),
        calls: Arc::default(),
        hung: Arc::default(),
        open: Arc::default(),
        asked: Arc::default(),
    }
}

type Judge = Arc<dyn Fn(&Answer) -> HookReply<Verdict> + Send + Sync>;

struct Judged(Vec<(&'static str, u32)>, Judge);
struct JudgedSession(Decision, Judge);

impl Policies for Judged {
    fn begin(&self, _: Arc<Request>, _: Arc<Snapshot>) -> Box<dyn Session> {
        let step = |(tier, hold_back): &(&str, u32)| Step {
            tier: (*tier).into(),
            hold_back_tokens: *hold_back,
            accept_threshold: 0.5,
            ..Step::default()
        };
        let plan = Plan {
            steps: self.0.iter().map(step).collect(),
            ..Plan::default()
        };
        Box::new(JudgedSession(Decision::Plan(plan), self.1.clone()))
    }
}

impl Session for JudgedSession {
    fn classify(&mut self) -> HookReply<Classification> {
        builtin::reply(Classification::default())
    }
    fn route(&mut self, _: &Classification, _: &[TierView]) -> HookReply<Decision> {
        builtin::reply(self.0.clone())
    }
    fn validate(&mut self, answer: &Answer) -> HookReply<Verdict> {
        self.1(answer)
    }
    fn learn(&mut self, _: &Outcome) {}
}

fn escalate() -> Verdict {
    Verdict::Escalate(Assessment {
        confidence: 0.1,
        findings: vec![Finding {
            check: "sense".into(),
            passed: false,
            detail: "there is none".into(),
        }],
    })
}

/// Doubts every part of an answer that holds the word, and accepts whole ones.
fn doubts(word: &'static str) -> Judge {
    Arc::new(move |answer| {
        let partial = answer.finish == Finish::Unfinished;
        builtin::reply(match partial && answer.text.contains(word) {
            true => escalate(),
            false => builtin::validate(answer),
        })
    })
}

/// A cascade over these tiers, in the order of a plan with these hold-backs.
fn cascade(tiers: Vec<(Scripted, u32)>, judge: Judge) -> Arc<Cascade> {
    cascade_knowing(Arc::default(), tiers, judge)
}

/// One that knows from an earlier life what is usual for its tiers.
fn cascade_knowing(
    baselines: Arc<Baselines>,
    tiers: Vec<(Scripted, u32)>,
    judge: Judge,
) -> Arc<Cascade> {
    let plan = tiers.iter().map(|(t, hold_back)| (t.id, *hold_back));
    let policies = Arc::new(Judged(plan.collect(), judge));
    let tiers = tiers.into_iter().map(|(t, _)| Arc::new(t) as Arc<dyn Tier>);
    let snapshot = Arc::new(Snapshot::default());
    let snapshots = Arc::new(move || snapshot.clone());
    let limits = CascadeConfig {
        baselines,
        ..CascadeConfig::default()
    };
    Arc::new(Cascade::new(policies, tiers.collect(), snapshots, limits))
}

fn job() -> Job {
    Job {
        id: "req-1".into(),
        endpoint: Endpoint::Chat,
        model: "auto".into(),
        prompt: Prompt::Chat(vec![Message {
            role: Role::User,
            content: "why?".into(),
        }]),
        sampling: Sampling::default(),
        max_tokens: None,
        stream: true,
        output: OutputFormat::Text,
        tenant: None,
        sharer: None,
        priority: 0,
        deadline_ms: None,
        attributes: vec![],
        purse: None,
    }
}

/// Every state of the client's text is the beginning of the next: what is read is appended.
async fn read(reply: Reply) -> (Head, String, ReplyEvent) {
    let (mut text, mut last) = (String::new(), None);
    let mut events = reply.events;
    while let Some(event) = events.next().await {
        assert!(last.is_none(), "nothing follows {last:?}");
        match event {
            ReplyEvent::Token(token) => text.push_str(&token.text),
            other => last = Some(other),
        }
    }
    (reply.head, text, last.expect("a last event"))
}

fn ended(last: ReplyEvent) -> (Finish, Usage, Closing) {
    match last {
        ReplyEvent::Finished {
            finish,
            usage,
            closing,
        } => (finish, usage, closing),
        other => panic!("{other:?}"),
    }
}

async fn record(cascade: &Cascade) -> Arc<DecisionRecord> {
    loop {
        if let Some(record) = cascade.record("req-1") {
            return record;
        }
        tokio::task::yield_now().await;
    }
}

const WORDS: [&str; 12] = [
    "w0 ", "w1 ", "w2 ", "w3 ", "w4 ", "w5 ", "w6 ", "w7 ", "w8 ", "w9 ", "w10 ", "w11. ",
];
/// What is sent of them when four are held back.
const SENT: &str = "w0 w1 w2 w3 w4 w5 w6 w7 ";

fn words(count: usize) -> Vec<Beat> {
    WORDS[..count].iter().map(|w| Says(w)).collect()
}

fn then(mut beats: Vec<Beat>, more: impl IntoIterator<Item = Beat>) -> Option<Vec<Beat>> {
    beats.extend(more);
    Some(beats)
}

fn says(text: &'static str) -> Option<Vec<Beat>> {
    Some(vec![Says(text), Ends(Finish::Stop)])
}

#[tokio::test]
async fn the_first_text_comes_with_the_token_after_those_held_back_and_not_before() {
    for hold_back in [1, 4, 11] {
        let given = hold_back as usize + 1;
        let small = tier("small", 0, vec![then(words(given), [Hangs])]);
        let c = cascade(
            vec![(small, hold_back), (tier("large", 1, vec![None]), 0)],
            doubts("?"),
        );
        let mut events = c.run(job()).await.unwrap().events;
        let first = events.next().await.unwrap();
        assert!(matches!(first, ReplyEvent::Token(t) if t.text == "w0 "));
        // With one token less nothing comes, however long one waits.
        let small = tier("small", 0, vec![then(words(given - 1), [Hangs])]);
        let hung = small.hung.clone();
        let c = cascade(
            vec![(small, hold_back), (tier("large", 1, vec![None]), 0)],
            doubts("?"),
        );
        let mut running = Box::pin(c.run(job()));
        while hung.load(Ordering::SeqCst) == 0 {
            assert!(futures::poll!(&mut running).is_pending());
            tokio::task::yield_now().await;
        }
        assert!(futures::poll!(&mut running).is_pending());
    }
}

#[tokio::test]
async fn an_answer_that_is_doubted_in_the_middle_is_continued_from_what_the_client_has() {
    // It hangs after its last word, so the question is about exactly these.
    let small = tier("small", 0, vec![then(words(12), [Hangs])]);
    let more = vec![Says("w8 "), Says("and "), Says("so on"), Ends(Finish::Stop)];
    let large = tier("large", 1, vec![Some(more)]);
    let (small_open, calls) = (small.open.clone(), large.calls.clone());
    let c = cascade(vec![(small, 4), (large, 0)], doubts("w11"));
    let mut asked = job();
    asked.max_tokens = Some(20);
    let (head, text, last) = read(c.run(asked).await.unwrap()).await;
    assert_eq!(text, format!("{SENT}w8 and so on"));
    assert_eq!(head.tier, "small");
    let (finish, usage, closing) = ended(last);
    assert_eq!((closing.tier.as_str(), closing.escalations), ("large", 1));
    let expected = Usage {
        // The larger tier counts what it went on from as prompt: 100 with these 8.
        prompt_tokens: 92,
        completion_tokens: 8 + 3,
        generated_tokens_all_steps: 12 + 3,
    };
    assert_eq!((finish, usage), (Finish::Stop, expected));
    let [cut] = &closing.cuts[..] else {
        panic!("{closing:?}");
    };
    let counts = (
        cut.sent_tokens,
        cut.seam_bytes,
        cut.dropped_tokens,
        cut.dropped_bytes,
    );
    assert_eq!(counts, (8, SENT.len(), 4, "w8 w9 w10 w11. ".len()));
    assert_eq!(cut.repeated_bytes, Some("w8 ".len()));
    assert_eq!(
        (cut.by, cut.why.as_str()),
        (CutBy::Validator, "sense: there is none")
    );
    {
        let calls = calls.lock().unwrap();
        assert_eq!(calls[0].answer_prefix, SENT);
        assert_eq!(calls[0].draft_hint, "w8 w9 w10 w11. ");
        assert_eq!(calls[0].max_tokens, Some(20 - 8));
    }
    let r = record(&c).await;
    assert!(r.steps[0].sent && r.steps[1].sent);
    assert_eq!(r.steps[0].finish, Some(Finish::Unfinished));
    assert_eq!(r.steps[0].cut.as_ref(), Some(cut));
    assert_eq!(
        (r.steps[1].continued_tokens, r.steps[1].prompt_tokens),
        (8, 100)
    );
    assert!(matches!(&r.ending, Ending::Sent { tier, step: 1 } if tier == "large"));
    assert_eq!(
        small_open.load(Ordering::SeqCst),
        0,
        "its generation was cancelled"
    );
}

#[tokio::test]
async fn an_answer_that_is_doubted_before_anything_left_is_never_seen() {
    let small = tier("small", 0, vec![then(words(4), [Hangs])]);
    let large = tier("large", 1, vec![says("right")]);
    let calls = large.calls.clone();
    let c = cascade(vec![(small, 4), (large, 0)], doubts("w0"));
    let (head, text, last) = read(c.run(job()).await.unwrap()).await;
    assert_eq!((head.tier.as_str(), text.as_str()), ("large", "right"));
    let (_, usage, closing) = ended(last);
    assert_eq!((usage.completion_tokens, usage.prompt_tokens), (1, 100));
    assert_eq!(
        (closing.cuts[0].sent_tokens, closing.cuts[0].dropped_tokens),
        (0, 4)
    );
    assert_eq!(calls.lock().unwrap()[0].answer_prefix, "");
    let r = record(&c).await;
    assert!(!r.steps[0].sent && r.steps[1].sent);
}

#[tokio::test]
async fn an_answer_that_is_whole_and_doubted_is_continued_from_what_the_client_has() {
    let small = tier("small", 0, vec![then(words(12), [Ends(Finish::Stop)])]);
    let large = tier("large", 1, vec![says("but")]);
    let judge: Judge = Arc::new(|a| {
        builtin::reply(match a.finish {
            Finish::Unfinished => Verdict::Undecided,
            _ if a.steps_left > 0 => escalate(),
            _ => builtin::validate(a),
        })
    });
    let c = cascade(vec![(small, 4), (large, 0)], judge);
    let (_, text, _) = read(c.run(job()).await.unwrap()).await;
    assert_eq!(text, format!("{SENT}but"));
    let r = record(&c).await;
    assert_eq!(r.steps[0].finish, Some(Finish::Stop));
    assert_eq!(r.usage.generated_tokens_all_steps, 12 + 1);
}

#[tokio::test]
async fn a_tier_that_begins_to_guess_is_left_within_what_is_held_back() {
    let calm = (0..1_200).map(|i| Thinks([-0.1, -0.3][i % 2]));
    let calm = then(calm.collect(), [Ends(Finish::Stop)]);
    let wild = then(vec![Thinks(-0.2); 10], vec![Thinks(-3.0); 40]);
    let small = tier("small", 0, vec![calm, wild.clone()]);
    let large = tier("large", 1, vec![says("!")]);
    let same_model = || {
        let models = [("small".to_owned(), "m".to_owned())];
        Arc::new(Baselines::new(models.into()))
    };
    let learned = same_model();
    let tiers = vec![(small, 4), (large, 0)];
    let c = cascade_knowing(learned.clone(), tiers, doubts("?"));
    let mut first = job();
    first.id = "req-0".into();
    let (_, text, _) = read(c.run(first).await.unwrap()).await;
    assert_eq!(text.len(), 1_200, "an usual answer is left alone");
    while c.record("req-0").is_none() {
        tokio::task::yield_now().await;
    }
    // After a restart what is usual is known from the first answer on.
    let recalled = same_model();
    assert_eq!(recalled.recall(&learned.text()), Ok(vec![]));
    let small = tier("small", 0, vec![wild]);
    let large = tier("large", 1, vec![says("!")]);
    let restarted = cascade_knowing(recalled, vec![(small, 4), (large, 0)], doubts("?"));
    for c in [c, restarted] {
        let (_, text, last) = read(c.run(job()).await.unwrap()).await;
        // The third wild token passes the limit; the first two are still held back.
        assert_eq!(text, format!("{}!", "x".repeat(12 - 4)));
        let (_, _, closing) = ended(last);
        let cut = &closing.cuts[0];
        assert_eq!(
            (cut.by, cut.sent_tokens, cut.dropped_tokens),
            (CutBy::Surprisal, 8, 5)
        );
        assert!(cut.why.contains("0.20 nats"), "{}", cut.why);
    }
}

#[tokio::test]
async fn when_the_tiers_that_should_go_on_fail_the_answer_that_was_left_is_taken_up_again() {
    let large = tier("large", 1, vec![None]);
    let wait = WaitsFor(large.asked.clone());
    let small = then(words(12), [wait, Says("w12"), Ends(Finish::Stop)]);
    let c = cascade(
        vec![(tier("small", 0, vec![small]), 4), (large, 0)],
        doubts("w11"),
    );
    let (_, text, last) = read(c.run(job()).await.unwrap()).await;
    assert_eq!(text, format!("{}w12", WORDS.concat()));
    let (finish, usage, closing) = ended(last);
    assert_eq!((finish, closing.tier.as_str()), (Finish::Stop, "small"));
    assert!(closing.cuts.is_empty(), "nothing was dropped");
    assert_eq!(
        (usage.completion_tokens, usage.generated_tokens_all_steps),
        (13, 13)
    );
    let r = record(&c).await;
    assert!(
        r.notes.iter().any(|n| n.contains("later step failed")),
        "{:?}",
        r.notes
    );
    assert_eq!(r.steps[1].error.as_ref().unwrap().code, "broken");
}

#[tokio::test]
async fn a_tier_that_breaks_in_the_middle_is_continued_as_well() {
    let small = tier("small", 0, vec![then(words(12), [Breaks])]);
    let large = tier("large", 1, vec![says("on")]);
    let c = cascade(vec![(small, 4), (large, 0)], doubts("?"));
    let (_, text, last) = read(c.run(job()).await.unwrap()).await;
    assert_eq!(text, format!("{SENT}on"));
    assert_eq!(ended(last).2.cuts[0].by, CutBy::Failure);
    // Nobody is left who could go on: the text stays, and the stream says why it ends.
    let small = tier("small", 0, vec![then(words(12), [Breaks])]);
    let c = cascade(
        vec![(small, 4), (tier("large", 1, vec![None]), 0)],
        doubts("?"),
    );
    let (_, text, last) = read(c.run(job()).await.unwrap()).await;
    assert_eq!(text, SENT);
    assert!(matches!(last, ReplyEvent::Failed(e) if e.code == "broken"));
}

#[tokio::test]
async fn a_tier_that_cannot_continue_is_used_only_while_nothing_was_sent() {
    // As the next step: the whole answer is held back.
    let mut large = tier("large", 1, vec![says("right")]);
    large.continues = false;
    let small = tier("small", 0, vec![then(words(12), [Ends(Finish::Stop)])]);
    let judge: Judge = Arc::new(|a| {
        builtin::reply(match a.steps_left {
            0 => builtin::validate(a),
            _ => escalate(),
        })
    });
    let c = cascade(vec![(small, 4), (large, 0)], judge);
    let (_, text, _) = read(c.run(job()).await.unwrap()).await;
    assert_eq!(text, "right");
    let notes = &record(&c).await.notes;
    assert!(notes[0].contains("tier large cannot continue"), "{notes:?}");
    // As a later one: it is passed over, and the record says so.
    let mut large = tier("large", 2, vec![says("right")]);
    large.continues = false;
    let medium = tier("medium", 1, vec![None]);
    let wait = WaitsFor(medium.asked.clone());
    let small = then(words(12), [wait, Ends(Finish::Stop)]);
    let small = tier("small", 0, vec![small]);
    let calls = large.calls.clone();
    let c = cascade(vec![(small, 4), (medium, 4), (large, 0)], doubts("w11"));
    let (_, text, _) = read(c.run(job()).await.unwrap()).await;
    assert_eq!(text, WORDS.concat());
    let r = record(&c).await;
    assert_eq!(r.steps[2].error.as_ref().unwrap().code, CANNOT_CONTINUE);
    assert!(calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_middle_step_continues_and_is_continued() {
    let small = tier("small", 0, vec![then(words(12), [Hangs])]);
    let more = ["a ", "b ", "c ", "d ", "e ", "f ", "g ", "h ", "i. "].map(Says);
    let medium = tier("medium", 1, vec![then(more.to_vec(), [Hangs])]);
    let large = tier("large", 2, vec![says("z")]);
    let calls = large.calls.clone();
    let judge: Judge = Arc::new(|a| {
        builtin::reply(match a.finish {
            Finish::Unfinished if a.text.ends_with("w11. ") => escalate(),
            // It sees the whole text, and the log-probabilities of its own tier.
            Finish::Unfinished if a.text == format!("{SENT}a b c d e f g h i. ") => {
                assert_eq!(a.logprobs.len(), 9);
                escalate()
            }
            _ => builtin::validate(a),
        })
    });
    let c = cascade(vec![(small, 4), (medium, 1), (large, 0)], judge);
    let (_, text, last) = read(c.run(job()).await.unwrap()).await;
    let seen = format!("{SENT}a b c d e f g h ");
    assert_eq!(text, format!("{seen}z"));
    assert_eq!(calls.lock().unwrap()[0].answer_prefix, seen);
    let (_, usage, closing) = ended(last);
    assert_eq!(
        (usage.completion_tokens, usage.prompt_tokens),
        (8 + 8 + 1, 100 - 16)
    );
    assert_eq!(closing.cuts.len(), 2);
}

#[tokio::test]
async fn a_form_that_is_given_holds_for_the_whole_answer() {
    let small = tier("small", 0, vec![then(words(12), [Ends(Finish::Stop)])]);
    let c = cascade(
        vec![(small, 4), (tier("large", 1, vec![says("{}")]), 0)],
        doubts("w"),
    );
    let mut asked = job();
    asked.output = OutputFormat::JsonObject;
    let (_, text, _) = read(c.run(asked).await.unwrap()).await;
    assert_eq!(text, WORDS.concat());
    let r = record(&c).await;
    assert!(
        r.notes[0].contains("the form of the answer is given"),
        "{:?}",
        r.notes
    );
    assert!(r.steps[0].partial_verdicts.is_empty());
}

#[tokio::test]
async fn an_amendment_may_add_to_what_the_client_has_and_not_change_it() {
    for (amended, expected) in [
        (format!("{SENT}better"), format!("{SENT}better")),
        ("better".to_owned(), WORDS.concat()),
    ] {
        let small = tier("small", 0, vec![then(words(12), [Ends(Finish::Stop)])]);
        let judge: Judge = Arc::new(move |a| {
            builtin::reply(match a.finish {
                Finish::Unfinished => Verdict::Undecided,
                _ => Verdict::Amend(Amendment {
                    text: amended.clone(),
                    assessment: Assessment::default(),
                }),
            })
        });
        let c = cascade(vec![(small, 4), (tier("large", 1, vec![None]), 0)], judge);
        let (_, text, _) = read(c.run(job()).await.unwrap()).await;
        assert_eq!(text, expected);
    }
}

#[tokio::test]
async fn what_is_refused_in_the_middle_is_withheld_and_the_stream_says_why() {
    let small = tier("small", 0, vec![then(words(12), [Hangs])]);
    let judge: Judge = Arc::new(|a| {
        builtin::reply(match a.text.contains("w11") {
            true => Verdict::Reject(Rejection {
                kind: Refusal::NotAllowed,
                message: "not this".into(),
                retry_after_ms: None,
            }),
            false => Verdict::Undecided,
        })
    });
    let c = cascade(
        vec![(small, 4), (tier("large", 1, vec![says("no")]), 0)],
        judge,
    );
    let (_, text, last) = read(c.run(job()).await.unwrap()).await;
    assert_eq!(text, SENT);
    let ReplyEvent::Failed(error) = last else {
        panic!("{last:?}");
    };
    assert_eq!(error.code, "answer_rejected");
    assert!(error.message.contains("not this"), "{error}");
    assert!(
        matches!(&record(&c).await.ending, Ending::Refused { message } if message == "not this")
    );
}

#[tokio::test]
async fn a_validator_that_fails_on_a_part_does_not_stop_the_stream_and_is_recorded() {
    let small = tier("small", 0, vec![then(words(12), [Ends(Finish::Stop)])]);
    let judge: Judge = Arc::new(|answer| HookReply {
        fault: Some(Fault::new(FaultKind::Trap, "unreachable")),
        by: AnsweredBy::Fallback {
            name: "v".into(),
            generation: 1,
            fallback: "built-in".into(),
            candidate: false,
        },
        ..builtin::reply(builtin::validate(answer))
    });
    let c = cascade(vec![(small, 4), (tier("large", 1, vec![None]), 0)], judge);
    let (_, text, _) = read(c.run(job()).await.unwrap()).await;
    assert_eq!(text, WORDS.concat());
    let r = record(&c).await;
    assert!(r.fallback());
    let partial = &r.steps[0].partial_verdicts;
    assert!(!partial.is_empty() && partial.iter().all(|v| v.fault.is_some()));
    assert!(partial.iter().all(|v| v.value == Verdict::Undecided));
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_ends_all_that_was_begun() {
    let small = tier("small", 0, vec![then(words(12), [Hangs])]);
    let large = tier("large", 1, vec![Some(vec![Hangs])]);
    let (opened, hung) = ([small.open.clone(), large.open.clone()], large.hung.clone());
    let c = cascade(vec![(small, 4), (large, 0)], doubts("w11"));
    let reply = c.run(job()).await.unwrap();
    while hung.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // The first goes on until the second says something.
    assert!(opened.iter().all(|o| o.load(Ordering::SeqCst) == 1));
    drop(reply);
    let r = record(&c).await;
    assert!(matches!(r.ending, Ending::Cancelled));
    assert!(opened.iter().all(|o| o.load(Ordering::SeqCst) == 0));
}

#[tokio::test]
async fn a_deadline_in_the_middle_ends_the_stream_and_takes_nothing_back() {
    let small = tier("small", 0, vec![then(words(12), [Hangs])]);
    let open = small.open.clone();
    let c = cascade(
        vec![(small, 4), (tier("large", 1, vec![None]), 0)],
        doubts("?"),
    );
    let mut hurried = job();
    hurried.deadline_ms = Some(300);
    let (_, text, last) = read(c.run(hurried).await.unwrap()).await;
    assert_eq!(text, SENT);
    assert!(matches!(last, ReplyEvent::Failed(e) if e.code == "deadline_exceeded"));
    record(&c).await;
    assert_eq!(open.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_slow_validator_makes_a_verdict_late_and_never_a_token() {
    let (question, answer) = std::sync::mpsc::channel::<()>();
    let answer = Mutex::new(answer);
    // Says nothing until the client has all text that can leave without it.
    let judge: Judge = Arc::new(move |a| {
        if a.finish == Finish::Unfinished {
            answer.lock().unwrap().recv().ok();
        }
        builtin::reply(builtin::validate(a))
    });
    let small = tier("small", 0, vec![then(words(12), [Hangs])]);
    let c = cascade(vec![(small, 4), (tier("large", 1, vec![None]), 0)], judge);
    let mut events = c.run(job()).await.unwrap().events;
    let mut text = String::new();
    while text != SENT {
        match events.next().await {
            Some(ReplyEvent::Token(token)) => text.push_str(&token.text),
            other => panic!("{other:?}"),
        }
    }
    drop((question, events));
    record(&c).await;
}

#[tokio::test]
async fn a_validator_is_told_how_unsure_a_tier_began_where_the_tier_tells() {
    let unsure = vec![Wonders(1.5), Wonders(0.25), Ends(Finish::Stop)];
    let untold = vec![Wonders(f32::NAN), Ends(Finish::Stop)];
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = seen.clone();
    let judge: Judge = Arc::new(move |answer| {
        let shown = (answer.tier.clone(), answer.attributes.clone());
        told.lock().unwrap().push(shown);
        builtin::reply(match answer.steps_left {
            0 => builtin::validate(answer),
            _ => escalate(),
        })
    });
    let small = tier("small", 0, vec![Some(unsure)]);
    let large = tier("large", 1, vec![Some(untold)]);
    let c = cascade(vec![(small, 4), (large, 0)], judge);
    read(c.run(job()).await.unwrap()).await;
    record(&c).await;
    let entropy = (
        "homeostat.first-token-entropy".to_owned(),
        Value::Number(1.5),
    );
    let expected = [
        ("small".to_owned(), vec![entropy]),
        ("large".to_owned(), vec![]),
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
}
