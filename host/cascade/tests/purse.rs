//! What a purse may forbid, and what it hears of a request.

use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use homeostat_cascade::*;
use homeostat_hooks::*;

/// A tier whose answer is its own name.
struct Named(&'static str, u32);

impl Tier for Named {
    fn id(&self) -> &str {
        self.0
    }
    fn view(&self) -> TierView {
        TierView {
            id: self.0.into(),
            rank: self.1,
            ready: true,
            ..TierView::default()
        }
    }
    fn generate(&self, _: GenerateCall) -> BoxFuture<'static, Result<TokenStream, TierError>> {
        let token = TierEvent::Token(Token {
            text: self.0.into(),
            // Sure of nothing: where there is a next step, it is taken.
            logprob: Some(-9.0),
            ..Token::default()
        });
        let end = TierEvent::Finished {
            finish: Finish::Stop,
            prompt_tokens: 3,
            completion_tokens: 1,
        };
        let events = futures::stream::iter([Ok(token), Ok(end)]).boxed();
        async move { Ok(events) }.boxed()
    }
}

/// Pays for so many steps on the tiers that it likes.
#[derive(Debug, Default)]
struct Scripted {
    payable: Vec<&'static str>,
    steps: usize,
    heard: Mutex<Vec<String>>,
}

impl Purse for Scripted {
    fn open(&self, candidates: Vec<TierView>) -> Result<Payable, Rejection> {
        let tiers = candidates.into_iter();
        let tiers = tiers.filter(|t| self.payable.contains(&t.id.as_str()));
        let tiers: Vec<TierView> = tiers.collect();
        if tiers.is_empty() {
            return Err(Rejection {
                kind: Refusal::BudgetExhausted,
                message: "empty".into(),
                retry_after_ms: Some(9),
            });
        }
        let mine = Budget {
            scope: "acme".into(),
            limit: 5.0,
            ..Budget::default()
        };
        Ok(Payable {
            tiers,
            budgets: vec![mine],
        })
    }

    fn begin(&self, tier: &str) -> Result<(), TierError> {
        let mut heard = self.heard.lock().unwrap();
        heard.push(format!("begin {tier}"));
        match heard.iter().filter(|h| h.starts_with("begin")).count() > self.steps {
            true => Err(TierError {
                fault: TierFault::Tier,
                code: "budget_exhausted",
                message: "no more".into(),
                retryable: true,
                retry_after_ms: None,
            }),
            false => Ok(()),
        }
    }

    fn pay(self: Arc<Self>, tier: &str, begun: Begun) -> Begun {
        self.heard.lock().unwrap().push(format!("pay {tier}"));
        begun
    }
}

fn cascade() -> Arc<Cascade> {
    cascade_of(CascadeConfig::default())
}

fn cascade_of(limits: CascadeConfig) -> Arc<Cascade> {
    let watts = Budget {
        scope: "host".into(),
        unit: BudgetUnit::Watts,
        ..Budget::default()
    };
    let joules = Budget {
        scope: "host".into(),
        ..Budget::default()
    };
    let snapshot = Arc::new(Snapshot {
        budgets: vec![joules, watts],
        ..Snapshot::default()
    });
    Arc::new(Cascade::new(
        Arc::new(BuiltIn),
        vec![Arc::new(Named("large", 1)), Arc::new(Named("small", 0))],
        Arc::new(move || snapshot.clone()),
        limits,
    ))
}

fn job(purse: &Arc<Scripted>) -> Job {
    Job {
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
        attributes: Vec::new(),
        purse: Some(purse.clone()),
    }
}

async fn tier_of(cascade: &Arc<Cascade>, purse: &Arc<Scripted>) -> String {
    let reply = cascade.run(job(purse)).await.expect("an answer");
    let tier = reply.head.tier.clone();
    reply.events.collect::<Vec<_>>().await;
    while cascade.record("req-1").is_none() {
        tokio::task::yield_now().await;
    }
    tier
}

#[tokio::test]
async fn a_tier_that_cannot_be_paid_is_no_candidate_and_policies_see_the_purse() {
    let cascade = cascade();
    let purse = Arc::new(Scripted {
        payable: vec!["large"],
        steps: 1,
        ..Scripted::default()
    });
    assert_eq!(tier_of(&cascade, &purse).await, "large");
    assert_eq!(*purse.heard.lock().unwrap(), ["begin large", "pay large"]);
    let record = cascade.record("req-1").unwrap();
    assert_eq!(record.tiers.len(), 1);
    let budgets = &record.snapshot.budgets;
    let seen: Vec<_> = budgets.iter().map(|b| (b.scope.as_str(), b.unit)).collect();
    // Power stays; the older joules are replaced.
    let expected = [("host", BudgetUnit::Watts), ("acme", BudgetUnit::Joules)];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn what_cannot_pay_for_any_tier_is_refused_before_a_policy_is_asked() {
    let cascade = cascade();
    let purse = Arc::new(Scripted::default());
    let Err(Refused::Policy(rejection)) = cascade.run(job(&purse)).await else {
        panic!("expected a refusal");
    };
    assert_eq!(rejection.kind, Refusal::BudgetExhausted);
    assert_eq!(rejection.retry_after_ms, Some(9));
    assert!(purse.heard.lock().unwrap().is_empty());
    let record = cascade.record("req-1").expect("it can be explained");
    assert!(
        matches!(&record.ending, Ending::Refused { message } if message.contains("empty")),
        "{:?}",
        record.ending
    );
    assert_eq!(record.tiers.len(), 2);
}

#[tokio::test]
async fn who_is_refused_again_and_again_drives_nobody_elses_decisions_out() {
    let limits = CascadeConfig {
        records_max: 16,
        ..CascadeConfig::default()
    };
    let cascade = cascade_of(limits);
    let payable = Arc::new(Scripted {
        payable: vec!["small"],
        steps: 1,
        ..Scripted::default()
    });
    tier_of(&cascade, &payable).await;
    let empty = Arc::new(Scripted::default());
    for n in 0..100 {
        let refused = Job {
            id: format!("refused-{n}"),
            ..job(&empty)
        };
        assert!(cascade.run(refused).await.is_err());
    }
    assert!(cascade.record("req-1").is_some());
    // An eighth of them, the newest.
    let ids = cascade.recent(16);
    let ids: Vec<&str> = ids.iter().map(|record| record.id.as_str()).collect();
    assert_eq!(ids, ["refused-99", "refused-98", "req-1"]);
}

#[tokio::test]
async fn when_the_second_step_cannot_be_paid_the_first_answer_is_sent() {
    let cascade = cascade();
    let purse = Arc::new(Scripted {
        payable: vec!["small", "large"],
        steps: 1,
        ..Scripted::default()
    });
    assert_eq!(tier_of(&cascade, &purse).await, "small");
    let heard = ["begin small", "pay small", "begin large"];
    assert_eq!(*purse.heard.lock().unwrap(), heard);
    let record = cascade.record("req-1").unwrap();
    let error = record.steps[1].error.as_ref().unwrap();
    assert_eq!(error.code, "budget_exhausted");
}
