//! How often the judgement errs, simulated; and who sticks to what.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// One canary after the other with these rates of one measure.
struct Rates {
    active: f64,
    candidate: f64,
}

#[derive(Debug, Default)]
struct Verdicts {
    promoted: u64,
    rolled_back: u64,
    /// Calls of the candidate until its verdict, sorted.
    calls: Vec<u64>,
}

impl Verdicts {
    fn calls_at(&self, share: f64) -> u64 {
        let index = ((self.calls.len() - 1) as f64 * share) as usize;
        self.calls[index]
    }
}

fn simulate(canaries: u64, rates: &Rates, config: &CanaryConfig, seed: u64) -> Verdicts {
    let mut random = StdRng::seed_from_u64(seed);
    let mut verdicts = Verdicts::default();
    for _ in 0..canaries {
        let mut arms = Arms::default();
        let judgement = loop {
            if random.random::<f64>() >= config.share {
                let event = random.random::<f64>() < rates.active;
                arms.call(config, Arm::Active, event, QUICK);
                continue;
            }
            let event = random.random::<f64>() < rates.candidate;
            arms.call(config, Arm::Candidate, event, QUICK);
            if let Some(judgement) = arms.judge(config) {
                break judgement;
            }
        };
        match judgement {
            Judgement::Promote(_) => verdicts.promoted += 1,
            Judgement::RollBack(_) => verdicts.rolled_back += 1,
        }
        verdicts.calls.push(arms.candidate_calls());
    }
    verdicts.calls.sort_unstable();
    verdicts
}

/// What every simulated call takes.
const QUICK: Duration = Duration::from_micros(30);
const CANARIES: u64 = 500;
const SEED: u64 = 20_260_417;
/// Errors that a share of `alpha` = 1 % of 500 canaries hardly ever makes: the chance of
/// more than 14, when 5 are expected, is 0.0002.
const ERRORS_MAX: u64 = 14;

fn config() -> CanaryConfig {
    CanaryConfig {
        share: 0.5,
        // So that a rollback is one for being worse, not for the time being up.
        max_calls: u64::MAX,
        ..CanaryConfig::default()
    }
}

#[test]
fn a_good_candidate_is_hardly_ever_rolled_back_and_is_promoted() {
    for rate in [0.0, 0.02, 0.2] {
        let rates = Rates {
            active: rate,
            candidate: rate,
        };
        let verdicts = simulate(CANARIES, &rates, &config(), SEED);
        println!(
            "seed {SEED}, both at {rate}: {} of {CANARIES} rolled back, promoted after p50 {} p95 {} calls",
            verdicts.rolled_back,
            verdicts.calls_at(0.5),
            verdicts.calls_at(0.95)
        );
        assert!(verdicts.rolled_back <= ERRORS_MAX, "{verdicts:?}");
        assert!(verdicts.promoted >= CANARIES - ERRORS_MAX);
        assert!(verdicts.calls[0] >= config().min_calls);
    }
}

#[test]
fn a_candidate_that_is_worse_by_the_tolerance_is_hardly_ever_promoted() {
    let config = config();
    for rate in [0.0, 0.02, 0.2] {
        let rates = Rates {
            active: rate,
            candidate: rate + config.tolerance,
        };
        let verdicts = simulate(CANARIES, &rates, &config, SEED);
        println!(
            "seed {SEED}, {rate} and {}: {} of {CANARIES} promoted, rolled back after p50 {} p95 {} calls",
            rates.candidate,
            verdicts.promoted,
            verdicts.calls_at(0.5),
            verdicts.calls_at(0.95)
        );
        assert!(verdicts.promoted <= ERRORS_MAX, "{verdicts:?}");
    }
}

#[test]
fn a_bad_candidate_falls_quickly() {
    let rates = Rates {
        active: 0.0,
        candidate: 0.2,
    };
    for (share, bound) in [(0.5, 80), (0.1, 40)] {
        let config = CanaryConfig { share, ..config() };
        let verdicts = simulate(CANARIES, &rates, &config, SEED);
        println!(
            "seed {SEED}, faults 0 and 0.2, share {share}: rolled back after p50 {} p95 {} max {} calls",
            verdicts.calls_at(0.5),
            verdicts.calls_at(0.95),
            verdicts.calls_at(1.0)
        );
        assert_eq!(verdicts.rolled_back, CANARIES);
        assert!(verdicts.calls_at(0.5) <= bound, "{verdicts:?}");
    }
}

#[test]
fn what_cannot_be_shown_good_is_rolled_back_in_the_end() {
    let config = CanaryConfig {
        max_calls: 300,
        ..config()
    };
    let rates = Rates {
        active: 0.5,
        candidate: 0.5,
    };
    let verdicts = simulate(20, &rates, &config, SEED);
    assert_eq!(verdicts.rolled_back, 20, "{verdicts:?}");
    assert_eq!(verdicts.calls_at(1.0), 300);
}

fn outcome(tier: Option<&str>, steps_tried: u32, ttft_ms: Option<u32>) -> Outcome {
    Outcome {
        tier: tier.map(str::to_string),
        steps_tried,
        ttft_ms,
        ..Outcome::default()
    }
}

/// The judgement on a candidate that has answered `calls` requests, with first tokens after
/// `ttft_ms`, beside an active policy that had answered `active` before.
fn judged(active: u64, calls: u64, ttft_ms: [Option<u32>; 2]) -> Option<Judgement> {
    // So wide that faults, escalations and refusals are settled by few requests.
    let config = CanaryConfig {
        tolerance: 0.6,
        ..config()
    };
    let mut arms = Arms::default();
    let mut serve = |arm: Arm| {
        arms.call(&config, arm, false, QUICK);
        arms.outcome(arm, &outcome(Some("small"), 1, ttft_ms[arm as usize]));
    };
    (0..active).for_each(|_| serve(Arm::Active));
    (0..calls).for_each(|_| serve(Arm::Candidate));
    arms.judge(&config)
}

#[test]
fn nobody_is_promoted_whose_times_could_not_be_compared() {
    let promoted = |judgement| matches!(judgement, Some(Judgement::Promote(_)));
    let tokens = [Some(9); 2];
    assert!(promoted(judged(BASE_MIN, 400, tokens)));
    // The active policy has no quantiles yet.
    assert_eq!(judged(BASE_MIN - 1, 400, tokens), None);
    // Where one arm has no first tokens at all, calls alone are compared.
    assert!(promoted(judged(BASE_MIN, 400, [None, Some(9)])));
    assert!(promoted(judged(BASE_MIN, 400, [Some(9), None])));
}

#[test]
fn outcomes_are_told_apart() {
    let event = |outcome: &Outcome, measure: Measure| {
        let mut arms = Arms::default();
        arms.outcome(Arm::Candidate, outcome);
        arms.of(measure).candidate().events == 1
    };
    for (name, outcome, unanswered, escalated) in [
        ("sent", outcome(Some("small"), 1, Some(9)), false, false),
        (
            "silent model",
            outcome(Some("small"), 1, None),
            false,
            false,
        ),
        ("escalated", outcome(Some("large"), 2, Some(9)), false, true),
        ("direct", outcome(None, 0, Some(1)), false, false),
        ("refused", outcome(None, 0, None), true, false),
        ("tier failed", outcome(None, 1, None), true, false),
        ("cut in the stream", outcome(None, 1, Some(9)), true, false),
    ] {
        assert_eq!(event(&outcome, Measure::Unanswered), unanswered, "{name}");
        assert_eq!(event(&outcome, Measure::Escalated), escalated, "{name}");
    }
}

#[test]
fn a_candidate_whose_first_tokens_come_later_falls_for_it() {
    let config = config();
    let mut arms = Arms::default();
    let mut random = StdRng::seed_from_u64(SEED);
    let serve_active = |arms: &mut Arms, random: &mut StdRng| {
        let ttft = 100 + random.random_range(0..50);
        arms.outcome(Arm::Active, &outcome(Some("small"), 1, Some(ttft)));
    };
    for _ in 0..200 {
        serve_active(&mut arms, &mut random);
    }
    let verdict = (1..200).find_map(|n| {
        serve_active(&mut arms, &mut random);
        let ttft = 180 + random.random_range(0..50);
        arms.outcome(Arm::Candidate, &outcome(Some("small"), 1, Some(ttft)));
        arms.judge(&config).map(|judgement| (n, judgement))
    });
    let (requests, judgement) = verdict.unwrap();
    println!("seed {SEED}: late tokens seen after {requests} requests");
    assert!(
        matches!(&judgement, Judgement::RollBack(text) if text.starts_with("late-first-token"))
    );
    assert!(requests < 50);
}

fn asked(id: &str, tenant: Option<&str>, conversation: i64) -> Request {
    Request {
        id: id.into(),
        tenant: tenant.map(str::to_string),
        attributes: vec![(CONVERSATION.into(), Value::Integer(conversation))],
        ..Request::default()
    }
}

#[test]
fn a_conversation_a_tenant_or_a_request_keeps_its_place() {
    let first = asked("1", Some("a"), 5);
    let later = asked("2", Some("a"), 5);
    let other = asked("3", Some("b"), 5);
    let another = asked("4", Some("a"), 6);
    let at = |request: &Request, stick_to| place(request, stick_to, 7);
    use StickTo::{Conversation, Request as Each, Tenant};
    assert_eq!(at(&first, Conversation), at(&later, Conversation));
    assert_ne!(at(&first, Conversation), at(&other, Conversation));
    assert_ne!(at(&first, Conversation), at(&another, Conversation));
    assert_eq!(at(&first, Tenant), at(&later, Tenant));
    assert_ne!(at(&first, Tenant), at(&other, Tenant));
    assert_ne!(at(&first, Each), at(&later, Each));
    assert_ne!(place(&first, Tenant, 7), place(&first, Tenant, 8));
    // And the share is a share.
    let taken = (0..10_000)
        .filter(|i| at(&asked(&i.to_string(), None, 5), Each) < 0.1)
        .count();
    assert!((900..1100).contains(&taken), "{taken}");
}
