//! Budgets from the outside: jobs that are served, cut off, refused and settled late, and what
//! the books say after every move.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use futures::{FutureExt, StreamExt};
use homeostat_cascade::{
    Begun, OutputFormat, Purse as CascadePurse, Sampling, TierError, TierEvent, Token, TokenStream,
};
use homeostat_hooks::{BudgetUnit, Endpoint, Finish, Sample, TierKind, TierView};

use super::*;

/// 2026-11-26T10:00:00Z.
const TEN: i64 = 1_795_687_200;

/// Budgets with a clock and a ledger in the hands of the test.
struct World {
    budgets: Arc<Budgets>,
    now_s: Arc<AtomicI64>,
    receipts: Arc<Mutex<HashMap<String, Taken>>>,
}

fn world(toml: &str) -> World {
    reopened(toml, None, TEN)
}

fn reopened(toml: &str, file: Option<&Path>, now_s: i64) -> World {
    let now_s = Arc::new(AtomicI64::new(now_s));
    let receipts = Arc::new(Mutex::new(HashMap::<String, Taken>::new()));
    let (clock, ledger) = (now_s.clone(), receipts.clone());
    let budgets = Budgets::open(
        &toml::from_str(toml).unwrap(),
        file.map(Path::to_path_buf),
        Some(Box::new(move |id| ledger.lock().unwrap().get(id).copied())),
        Box::new(move || clock.load(Ordering::SeqCst)),
    );
    World {
        budgets: Arc::new(budgets.unwrap()),
        now_s,
        receipts,
    }
}

impl World {
    fn status(&self, name: &str) -> BudgetStatus {
        let all = self.budgets.status();
        all.into_iter().find(|b| b.name == name).unwrap()
    }

    fn purse(&self, id: &str, tenant: Option<&str>) -> Option<Arc<Purse>> {
        self.budgets.purse(&job(id, tenant), None)
    }

    fn settle(&self, id: &str, prefill_uj: u64, decode_uj: u64) {
        self.tell(id, prefill_uj, decode_uj, true);
        self.budgets.settle_waiting(|_, _| false);
    }

    fn tell(&self, id: &str, prefill_uj: u64, decode_uj: u64, settled: bool) {
        self.say(
            id,
            Taken {
                prefill_uj,
                decode_uj,
                policy_uj: 0,
                settled,
            },
        );
    }

    fn say(&self, id: &str, taken: Taken) {
        self.receipts.lock().unwrap().insert(id.into(), taken);
    }

    fn wait(&self, seconds: i64) {
        self.now_s.fetch_add(seconds, Ordering::SeqCst);
        self.budgets.tick();
    }
}

/// Ten tokens of prompt and an answer of at most ten.
fn job(id: &str, tenant: Option<&str>) -> Job {
    Job {
        id: id.into(),
        endpoint: Endpoint::Completion,
        model: "auto".into(),
        prompt: Prompt::Raw("x".repeat(40)),
        sampling: Sampling::default(),
        max_tokens: Some(10),
        stream: false,
        output: OutputFormat::Text,
        tenant: tenant.map(str::to_string),
        sharer: None,
        priority: 0,
        deadline_ms: None,
        attributes: Vec::new(),
        purse: None,
    }
}

/// A tier whose answer of ten tokens costs ten times `joules`.
fn tier(id: &str, kind: TierKind, joules: f64) -> TierView {
    TierView {
        id: id.into(),
        kind,
        joules_per_token: Some(Sample::measured(joules)),
        ..TierView::default()
    }
}

fn two() -> Vec<TierView> {
    vec![
        tier("small", TierKind::Remote, 1.0),
        tier("large", TierKind::Remote, 5.0),
    ]
}

fn ids(payable: &homeostat_cascade::Payable) -> Vec<&str> {
    payable.tiers.iter().map(|t| t.id.as_str()).collect()
}

/// A stream of so many tokens; its end comes only if it is said to.
fn tokens(n: u32, ends: bool) -> TokenStream {
    let token = |_| Ok(TierEvent::Token(Token::default()));
    let end = TierEvent::Finished {
        finish: Finish::Stop,
        prompt_tokens: 10,
        completion_tokens: n,
    };
    let end = futures::stream::iter(ends.then_some(Ok(end)));
    let answer = futures::stream::iter(0..n).map(token).chain(end);
    answer.chain(futures::stream::pending()).boxed()
}

/// What the purse makes of a tier's stream.
fn stream_of(purse: &Arc<Purse>, tier: &str, tokens: TokenStream) -> TokenStream {
    let begun = purse.clone().pay(tier, async { Ok(tokens) }.boxed());
    let stream = begun.now_or_never().expect("at once");
    stream.unwrap_or_else(|e| panic!("{e}"))
}

/// Begins a step and reads what its stream has to give.
fn serve(purse: &Arc<Purse>, tier: &str, n: u32, ends: bool) {
    purse.begin(tier).unwrap();
    let mut stream = stream_of(purse, tier, tokens(n, ends));
    while let Some(Some(event)) = stream.next().now_or_never() {
        event.unwrap();
    }
}

const DAY_OF_A: &str = r#"
[limits.a]
tenant = "acme"
unit = "joules"
limit = 100
per = "day"
"#;

#[test]
fn a_budget_leads_from_the_large_tier_to_the_small_one_and_then_to_a_refusal() {
    let w = world(DAY_OF_A);
    let mut served = Vec::new();
    let refused = loop {
        let purse = w
            .purse(&format!("r{}", served.len()), Some("acme"))
            .unwrap();
        match purse.open(two()) {
            Ok(payable) => {
                let last = payable.tiers.last().unwrap().id.clone();
                assert_eq!(payable.budgets[0].unit, BudgetUnit::Joules);
                assert_eq!(payable.budgets[0].scope, "acme");
                serve(&purse, &last, 10, true);
                served.push(last);
            }
            Err(refused) => break refused,
        }
    };
    // 100 J are two answers of 50 J; after 45 J more than 50 J would be left for none.
    assert_eq!(served, ["large", "large"]);
    for word in [
        "budget a",
        "0 of 100.0 J",
        "this day",
        "small",
        "10.00 J",
        "14 h 0 min",
    ] {
        assert!(
            refused.message.contains(word),
            "{}: {word}",
            refused.message
        );
    }
    assert_eq!(refused.retry_after_ms, Some(14 * 3_600_000));
    let a = w.status("a");
    assert_eq!(
        (a.spent, a.reserved, a.left, a.refused),
        (100.0, 0.0, 0.0, 1)
    );

    w.budgets.set_limit("a", 125.0).unwrap();
    let purse = w.purse("next", Some("acme")).unwrap();
    assert_eq!(ids(&purse.open(two()).unwrap()), ["small"]);
    assert!(
        w.purse("other", Some("bcme")).is_none(),
        "another tenant has no budget"
    );
    w.wait(14 * 3_600);
    let purse = w.purse("tomorrow", Some("acme")).unwrap();
    assert_eq!(ids(&purse.open(two()).unwrap()), ["small", "large"]);
}

#[test]
fn what_is_reserved_shrinks_to_the_chosen_tier_and_comes_back_when_the_client_leaves() {
    let w = world(DAY_OF_A);
    let purse = w.purse("r", Some("acme")).unwrap();
    purse.open(two()).unwrap();
    assert_eq!(w.status("a").reserved, 50.0);
    purse.begin("small").unwrap();
    assert_eq!(w.status("a").reserved, 10.0);
    let mut stream = stream_of(&purse, "small", tokens(10, true));
    for _ in 0..3 {
        stream.next().now_or_never().unwrap();
    }
    // The request ends first, its stream a moment later.
    drop(purse);
    assert_eq!(w.status("a").reserved, 10.0);
    drop(stream);
    let a = w.status("a");
    assert_eq!((a.spent, a.reserved, a.left), (3.0, 0.0, 97.0));
    let unused = w.purse("direct", Some("acme")).unwrap();
    unused.open(two()).unwrap();
    drop(unused);
    assert_eq!(w.status("a").spent, 3.0);
}

#[test]
fn a_refusal_for_what_others_only_reserve_may_be_retried_at_once() {
    let w = world(DAY_OF_A);
    let holders: Vec<_> = (0..2)
        .map(|i| {
            let purse = w.purse(&format!("h{i}"), Some("acme")).unwrap();
            purse.open(two()).unwrap();
            purse
        })
        .collect();
    let refused = w.purse("r", Some("acme")).unwrap().open(two()).unwrap_err();
    assert_eq!(refused.retry_after_ms, Some(1_000));
    assert!(
        refused.message.contains("100.0 J are reserved"),
        "{}",
        refused.message
    );
    drop(holders);
    assert!(w.purse("r", Some("acme")).unwrap().open(two()).is_ok());
}

#[test]
fn a_second_step_is_paid_beside_the_first_or_refused() {
    let w = world(&DAY_OF_A.replace("100", "55"));
    let purse = w.purse("r", Some("acme")).unwrap();
    purse.open(two()).unwrap();
    serve(&purse, "small", 10, true);
    let error = purse.begin("large").unwrap_err();
    assert_eq!(error.code, "budget_exhausted");
    assert!(error.retry_after_ms.is_some());
    // What the first step took stays reserved, and is paid.
    drop(purse);
    assert_eq!(w.status("a").spent, 10.0);
    w.budgets.set_limit("a", 75.0).unwrap();
    let purse = w.purse("s", Some("acme")).unwrap();
    purse.open(two()).unwrap();
    serve(&purse, "small", 10, true);
    serve(&purse, "large", 10, true);
    drop(purse);
    assert_eq!(w.status("a").spent, 70.0);
}

#[test]
fn a_step_that_was_left_and_still_runs_is_paid_beside_the_next() {
    let w = world(DAY_OF_A);
    let purse = w.purse("r", Some("acme")).unwrap();
    purse.open(two()).unwrap();
    purse.begin("small").unwrap();
    let mut left = stream_of(&purse, "small", tokens(4, false));
    while let Some(Some(event)) = left.next().now_or_never() {
        event.unwrap();
    }
    purse.begin("large").unwrap();
    // Four tokens are written and not over; the large tier's ten are to come.
    assert_eq!(w.status("a").reserved, 4.0 * 1.0 + 10.0 * 5.0);
}

#[test]
fn who_leaves_before_the_tier_answers_pays_the_prompt_and_who_is_refused_nothing() {
    let w = world(&DAY_OF_A.replace("joules", "usd"));
    let sold = || TierView {
        usd_per_mtok_prompt: Some(1e6),
        usd_per_mtok_output: Some(1e-3),
        ..tier("sold", TierKind::Remote, 1.0)
    };
    let begun = |id: &str, answer: Begun| {
        let purse = w.purse(id, Some("acme")).unwrap();
        purse.open(vec![sold()]).unwrap();
        purse.begin("sold").unwrap();
        purse.clone().pay("sold", answer)
    };
    let full = TierError::host("queue_full", "come again");
    let refused = begun("r", async { Err(full) }.boxed());
    let refused = refused.now_or_never().expect("at once");
    assert!(refused.is_err());
    drop(refused);
    let a = w.status("a");
    assert_eq!((a.spent, a.reserved), (0.0, 0.0));
    let left = begun("s", futures::future::pending().boxed());
    assert!(w.status("a").reserved > 0.0);
    drop(left);
    // One dollar a token, four bytes a token.
    let a = w.status("a");
    assert_eq!((a.spent, a.reserved), (10.0, 0.0));
}

#[test]
fn texts_that_are_embedded_are_paid_by_their_receipt_and_then_reserved_by_what_they_took() {
    let w = world(DAY_OF_A);
    let embed = |id: &str| {
        let purse = w.budgets.purse_of_texts(id, (Some("acme"), None), 400);
        let purse = purse.expect("acme pays");
        let encoder = TierView {
            joules_per_token: None,
            ..tier("encoder", TierKind::Local, 0.0)
        };
        purse.open(vec![encoder]).map(|_| purse)
    };
    let purse = embed("r").expect("the day has begun");
    assert_eq!(w.status("a").reserved, 0.0, "nobody knows what it takes");
    purse.has_read("encoder", 100);
    drop(purse);
    w.settle("r", 20_000_000, 0);
    assert_eq!(w.status("a").spent, 20.0);
    let purse = embed("s").expect("there is enough");
    assert_eq!(w.status("a").reserved, 20.0);
    // A text that was refused is not paid.
    drop(purse);
    assert_eq!(w.status("a").reserved, 0.0);
    w.budgets.set_limit("a", 39.0).unwrap();
    let refused = embed("t").unwrap_err();
    assert_eq!(refused.kind, Refusal::BudgetExhausted);
    assert!(refused.message.contains("20.00 J"), "{}", refused.message);
}

#[test]
fn what_policies_ask_is_paid_by_the_receipt_even_beside_an_answer_that_needs_none() {
    let w = world(DAY_OF_A);
    assert!(w.budgets.purse_in_use("r").is_none());
    let purse = w.purse("r", Some("acme")).unwrap();
    purse.open(two()).unwrap();
    serve(&purse, "small", 10, true);
    // Who asks for the request holds its purse, and may hold it longer than the answer.
    let policies = w.budgets.purse_in_use("r").expect("it is open");
    drop(purse);
    assert_eq!(w.status("a").reserved, 10.0);
    policies.was_asked(&tier("judge", TierKind::Local, 0.5), [80, 4]);
    drop(policies);
    assert!(w.budgets.purse_in_use("r").is_none());
    let taken = Taken {
        prefill_uj: 0,
        decode_uj: 0,
        policy_uj: 7_000_001,
        settled: false,
    };
    w.say("r", taken);
    w.budgets.tick();
    assert_eq!(w.status("a").reserved, 10.0, "the receipt is not settled");
    w.say(
        "r",
        Taken {
            settled: true,
            ..taken
        },
    );
    w.budgets.tick();
    let a = w.status("a");
    assert_eq!((a.spent, a.reserved), (17.000001, 0.0));
}

#[test]
fn a_second_step_is_not_begun_with_what_policies_have_used_up() {
    let w = world(&DAY_OF_A.replace("100", "62"));
    let purse = w.purse("r", Some("acme")).unwrap();
    purse.open(two()).unwrap();
    serve(&purse, "small", 10, true);
    // With four tokens of 0.75 J it has used 13 J, and 50 J more are not there.
    let judge = tier("judge", TierKind::Local, 0.75);
    purse.was_asked(&judge, [80, 4]);
    assert_eq!(purse.begin("large").unwrap_err().code, "budget_exhausted");
    drop(purse);
    // No receipt ever: the tokens tell.
    w.wait(RECEIPT_PATIENCE_S + 1);
    let a = w.status("a");
    assert_eq!((a.spent, a.reserved), (13.0, 0.0));
}

#[test]
fn a_local_answer_pays_what_its_receipt_says_however_late_it_comes() {
    let w = world(DAY_OF_A);
    let local = || vec![tier("own", TierKind::Local, 2.0)];
    let purse = w.purse("r", Some("acme")).unwrap();
    purse.open(local()).unwrap();
    serve(&purse, "own", 10, true);
    drop(purse);
    w.wait(RECEIPT_PATIENCE_S);
    let a = w.status("a");
    assert_eq!((a.spent, a.reserved), (0.0, 20.0));
    // A slow reader keeps it open for as long as he likes.
    w.tell("r", 1_000_001, 0, false);
    w.wait(10 * RECEIPT_PATIENCE_S);
    assert_eq!(w.status("a").reserved, 20.0);
    w.settle("r", 1_000_001, 32_000_000);
    let a = w.status("a");
    assert_eq!((a.spent, a.reserved, a.left), (33.000001, 0.0, 66.999999));
    // What was learned is expected of the next.
    let purse = w.purse("s", Some("acme")).unwrap();
    purse.open(local()).unwrap();
    assert_eq!(w.status("a").reserved, 33.000001);
    serve(&purse, "own", 5, true);
    drop(purse);
    // No receipt ever: the tokens tell.
    w.wait(RECEIPT_PATIENCE_S + 1);
    let a = w.status("a");
    assert_eq!(a.reserved, 0.0);
    assert!(
        (a.spent - (33.000001 + 1.000001 + 16.0)).abs() < 1e-6,
        "{a:?}"
    );
    // And of a host that leaves in the middle, what is known by then.
    let purse = w.purse("t", Some("acme")).unwrap();
    purse.open(local()).unwrap();
    serve(&purse, "own", 5, true);
    drop(purse);
    w.tell("t", 0, 4_000_000, false);
    w.budgets.close();
    assert!((w.status("a").spent - a.spent - 4.0).abs() < 1e-6);
}

#[test]
fn a_key_a_tenant_and_the_host_pay_together_and_the_poorest_decides() {
    let w = world(
        r#"
        usd_per_kwh = 3.6
        grams_co2_per_kwh = 360
        [limits.carbon]
        unit = "grams-co2"
        limit = 1
        per = "month"
        [limits.money]
        tenant = "acme"
        unit = "usd"
        limit = 0.00004
        per = "hour"
        [limits.one-key]
        key = "sk-1"
        unit = "joules"
        limit = 45
        per = "day"
        "#,
    );
    let of = |key: Option<&str>, tenant: Option<&str>| {
        let purse = w.budgets.purse(&job("r", tenant), key).unwrap();
        purse.paid_by().join(",")
    };
    assert_eq!(of(None, None), "carbon");
    assert_eq!(of(Some("sk-2"), Some("acme")), "carbon,money");
    assert_eq!(of(Some("sk-1"), Some("acme")), "carbon,money,one-key");
    let own = || vec![tier("own", TierKind::Local, 3.0)];
    let purse = w
        .budgets
        .purse(&job("r", Some("acme")), Some("sk-1"))
        .unwrap();
    let told = purse.open(own()).unwrap().budgets;
    let scopes: Vec<_> = told.iter().map(|b| b.scope.as_str()).collect();
    assert_eq!(scopes, ["host", "acme", "key:one-key"]);
    serve(&purse, "own", 10, true);
    drop(purse);
    w.settle("r", 0, 30_000_000);
    // 30 J are 8.3e-6 kWh.
    assert_eq!(w.status("carbon").spent, 0.003);
    assert_eq!(w.status("money").spent, 0.00003);
    assert_eq!(w.status("one-key").spent, 30.0);
    let refused = |key| {
        let purse = w.budgets.purse(&job("s", Some("acme")), Some(key)).unwrap();
        purse.open(own()).unwrap_err().message
    };
    assert!(refused("sk-2").contains("budget money"));
    w.budgets.set_limit("money", 1.0).unwrap();
    assert!(refused("sk-1").contains("budget one-key"));
    assert_eq!(
        w.status("carbon").reserved,
        0.0,
        "nobody pays for a refusal"
    );
    let host = w.budgets.of_host();
    assert_eq!((host.len(), host[0].unit), (1, BudgetUnit::GramsCo2));
    // 30 days of November, of which 25 days and 10 hours are over.
    assert_eq!(host[0].window_left_s, Some(4 * 86_400 + 14 * 3_600));
}

#[test]
fn a_restart_forgets_what_was_reserved_and_remembers_what_was_spent() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("spendings.json");
    let w = reopened(DAY_OF_A, Some(&file), TEN);
    let purse = w.purse("r", Some("acme")).unwrap();
    purse.open(two()).unwrap();
    serve(&purse, "small", 7, true);
    drop(purse);
    let open = w.purse("s", Some("acme")).unwrap();
    open.open(two()).unwrap();
    w.wait(1);
    let spent = |toml: &str, now_s| {
        let a = reopened(toml, Some(&file), now_s).status("a");
        (a.spent, a.reserved)
    };
    assert_eq!(spent(DAY_OF_A, TEN + 60), (7.0, 0.0));
    assert_eq!(
        spent(&DAY_OF_A.replace("day", "month"), TEN + 60),
        (0.0, 0.0)
    );
    assert_eq!(spent(DAY_OF_A, TEN + 86_400), (0.0, 0.0));
    // The host that leaves settles and writes what is still open.
    serve(&open, "small", 2, false);
    drop(open);
    w.budgets.close();
    assert_eq!(spent(DAY_OF_A, TEN + 60), (9.0, 0.0));
    std::fs::write(&file, "{\"format\":1,").unwrap();
    let config = toml::from_str(DAY_OF_A).unwrap();
    let clock = || Box::new(|| TEN) as Clock;
    let error = Budgets::open(&config, Some(file.clone()), None, clock())
        .err()
        .unwrap();
    assert!(
        error.contains("spendings.json") && error.contains("remove it"),
        "{error}"
    );
    std::fs::write(&file, r#"{"format":2,"budgets":{}}"#).unwrap();
    let error = Budgets::open(&config, Some(file), None, clock())
        .err()
        .unwrap();
    assert!(error.contains("format 2"), "{error}");
}

#[test]
fn a_limit_that_is_no_amount_and_a_budget_that_is_none_are_refused() {
    let w = world(DAY_OF_A);
    let refused = |name: &str, limit| w.budgets.set_limit(name, limit).unwrap_err();
    assert_eq!(refused("b", 1.0), Refused::Unknown(vec!["a".into()]));
    for limit in [-1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(refused("a", limit), Refused::Limit(1e12));
    }
    w.budgets.set_limit("a", 0.0).unwrap();
    assert!(w.purse("r", Some("acme")).unwrap().open(two()).is_err());
}

/// A small generator: one seed, one story.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// What the books must say of a host that works and of nothing else.
#[derive(Default)]
struct Story {
    running: Vec<(String, Arc<Purse>, u32)>,
    /// Over and not settled, with what the receipt will say.
    late: Vec<(String, u64)>,
    settled_uj: u64,
    /// Spent in windows that are over.
    before: i64,
    served: u32,
}

/// `limit = spent + reserved + left`, and all that was ever spent is all that was settled.
fn balance(w: &World, story: &Story, seed: u64) {
    let books = w.budgets.books(w.budgets.now_s());
    let account = &books.accounts[0];
    let sum = account.spent() + account.reserved() + account.left();
    assert_eq!(account.limit(), sum, "seed {seed}");
    let spent = story.before + account.spent();
    assert_eq!(spent, story.settled_uj as i64, "seed {seed}");
    if story.running.is_empty() && story.late.is_empty() {
        assert_eq!(account.reserved(), 0, "seed {seed}");
    }
}

fn one_move(w: &World, story: &mut Story, random: &mut Random) {
    match random.below(9) {
        0..=2 => {
            let id = format!("r{}", story.served);
            story.served += 1;
            let purse = w.purse(&id, None).unwrap();
            let candidates = ["own-1", "own-2"].map(|id| tier(id, TierKind::Local, 0.4));
            if purse.open(candidates.to_vec()).is_ok() {
                story.running.push((id, purse, 0));
            }
        }
        3 | 4 if !story.running.is_empty() => {
            let at = random.below(story.running.len() as u64) as usize;
            let (_, purse, steps) = &mut story.running[at];
            let name = ["own-1", "own-2"][random.below(2) as usize];
            let offered = purse.begin(name).is_ok();
            if offered {
                let mut stream = stream_of(purse, name, tokens(9, true));
                for _ in 0..random.below(11) {
                    stream.next().now_or_never();
                }
                *steps += 1;
            }
        }
        5 if !story.running.is_empty() => {
            let at = random.below(story.running.len() as u64) as usize;
            let (id, purse, steps) = story.running.swap_remove(at);
            drop(purse);
            if steps > 0 {
                story.late.push((id, random.below(9_000_000)));
            }
        }
        6 if !story.late.is_empty() => {
            let at = random.below(story.late.len() as u64) as usize;
            let (id, uj) = story.late.swap_remove(at);
            w.settle(&id, uj / 3, uj - uj / 3);
            story.settled_uj += uj;
        }
        7 => {
            let limit = random.below(60) as f64 / 2.0;
            w.budgets.set_limit("h", limit).unwrap();
        }
        _ => {
            let seconds = random.below(3) as i64;
            let books = w.budgets.books(w.budgets.now_s());
            let ends = books.accounts[0].window.end_s;
            let spent = books.accounts[0].spent();
            drop(books);
            if w.now_s.load(Ordering::SeqCst) + seconds >= ends {
                story.before += spent;
            }
            w.now_s.fetch_add(seconds, Ordering::SeqCst);
        }
    }
}

#[test]
fn whatever_happens_in_whatever_order_the_books_balance_to_the_microjoule() {
    for seed in 0..200 {
        // The hour ends in the middle of the story.
        let toml = "[limits.h]\nunit = \"joules\"\nlimit = 20\nper = \"hour\"";
        let w = reopened(toml, None, TEN - 60);
        let (mut random, mut story) = (Random(seed), Story::default());
        for _ in 0..400 {
            one_move(&w, &mut story, &mut random);
            balance(&w, &story, seed);
        }
        story.running.retain(|(_, _, steps)| *steps > 0);
        for (id, purse, _) in story.running.drain(..) {
            drop(purse);
            story.late.push((id, 1));
        }
        for (id, uj) in std::mem::take(&mut story.late) {
            w.settle(&id, 0, uj);
            story.settled_uj += uj;
        }
        balance(&w, &story, seed);
        assert!(story.settled_uj > 0, "seed {seed}: somebody was served");
    }
}

#[test]
fn requests_that_run_at_once_never_spend_more_than_there_is() {
    let toml = "[limits.h]\nunit = \"joules\"\nlimit = 3000\nper = \"month\"";
    let w = world(toml);
    let served: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let w = &w;
                scope.spawn(move || {
                    let (mut random, mut spent) = (Random(thread), 0);
                    for n in 0..500 {
                        let purse = w.purse(&format!("{thread}.{n}"), None).unwrap();
                        let Ok(payable) = purse.open(two()) else {
                            continue;
                        };
                        let tier =
                            &payable.tiers[random.below(payable.tiers.len() as u64) as usize];
                        let joules = tier.joules_per_token.unwrap().value as u64;
                        let written = random.below(11) as u32;
                        serve(&purse, &tier.id, written, written == 10);
                        spent += joules * u64::from(written);
                        assert!(w.status("h").left >= 0.0);
                    }
                    spent
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let h = w.status("h");
    assert_eq!(h.spent, served.iter().sum::<u64>() as f64);
    assert_eq!((h.reserved, h.limit), (0.0, h.spent + h.left));
    // It ran dry: less is left than the cheapest answer takes.
    assert!(h.left < 10.0 && h.refused > 0, "{h:?}");
}
