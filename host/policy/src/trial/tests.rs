//! Candidates on live traffic: what a bad one costs, what a good one takes, and what
//! becomes of both when something else happens.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use homeostat_hooks::{
    AnsweredBy, CONVERSATION, Classification, GenerateOptions, Generated, HookReply, Message,
    ModelError, Models, Policies, Request, Role, Session, Snapshot, TierView, Value,
};

use super::*;
use crate::config::{CanaryConfig, Grant, Limits, PolicyOptions, RoomConfig, ShadowConfig};
use crate::guests::{self, FakeModels};
use crate::room::PolicyRoom;
use crate::shadow::Difference;

fn room_with(config: RoomConfig) -> PolicyRoom {
    PolicyRoom::new(config, Arc::new(FakeModels)).expect("a room")
}

/// Half of the requests are the candidate's; each request is on its own.
fn config() -> RoomConfig {
    RoomConfig {
        instances: 8,
        limits: Limits {
            // Guests end by themselves, however busy the machine is.
            deadline_ms: 60_000,
            ..Limits::default()
        },
        canary: CanaryConfig {
            share: 0.5,
            stick_to: StickTo::Request,
            // However busy the machine that runs this, no call counts as slow.
            slow_ms: 60_000.0,
            ..CanaryConfig::default()
        },
        shadow: ShadowConfig {
            share: 1.0,
            queue: 1000,
            ..ShadowConfig::default()
        },
        ..RoomConfig::default()
    }
}

fn room() -> PolicyRoom {
    room_with(config())
}

fn offer(name: &str, bytes: Vec<u8>) -> Offer {
    Offer {
        name: name.into(),
        bytes,
        ..Offer::default()
    }
}

fn good() -> Vec<u8> {
    guests::classifier("", "", "")
}

/// The first byte of the id.
const FIRST: &str = "(i32.load8_u (i32.load (local.get 0)))";

/// Traps when the id begins with 0 or 1: one request in five of [`asked`].
fn fails_every_fifth() -> Vec<u8> {
    let cases = format!("(if (i32.lt_u {FIRST} (i32.const 50)) (then unreachable))");
    guests::classifier("", "", &cases)
}

/// Request number `n`; its id begins with the last digit of `n`.
fn asked(n: usize) -> Arc<Request> {
    Arc::new(Request {
        id: format!("{}-{n:06}", n % 10),
        messages: vec![Message {
            role: Role::User,
            content: format!("What is {n}?"),
        }],
        ..Request::default()
    })
}

fn session(room: &PolicyRoom, request: Arc<Request>) -> Box<dyn Session> {
    room.begin(request, Arc::new(Snapshot::default()))
}

/// A whole request that a model answers.
fn serve(room: &PolicyRoom, n: usize) -> HookReply<Classification> {
    let mut session = session(room, asked(n));
    let reply = session.classify();
    session.learn(&Outcome {
        tier: Some("small".into()),
        steps_tried: 1,
        ttft_ms: Some(20),
        ..Outcome::default()
    });
    reply
}

fn by_candidate<T>(reply: &HookReply<T>) -> bool {
    match reply.by {
        AnsweredBy::BuiltIn => false,
        AnsweredBy::Component { candidate, .. } | AnsweredBy::Fallback { candidate, .. } => {
            candidate
        }
    }
}

fn status(room: &PolicyRoom) -> TrialStatus {
    room.trial(Hook::Classify).expect("a trial")
}

fn active(room: &PolicyRoom) -> (String, u64) {
    let active = room.status()[0].active.clone().expect("a policy");
    (active.policy, active.generation)
}

fn canary(room: &PolicyRoom, name: &str, bytes: Vec<u8>) -> TrialStatus {
    let started = room.start_canary(
        Hook::Classify,
        Some(offer(name, bytes)),
        CanaryChanges::default(),
    );
    started.unwrap_or_else(|e| panic!("{e}"))
}

// ---- canaries --------------------------------------------------------------------------

#[test]
fn a_candidate_that_fails_every_fifth_request_is_rolled_back_and_no_answer_is_lost() {
    let room = room();
    room.put(offer("good", good())).unwrap();
    let before = active(&room);
    canary(&room, "bad", fails_every_fifth());
    let mut requests = 0;
    while status(&room).ended.is_none() {
        let reply = serve(&room, requests);
        assert_eq!(reply.value.p_complex, 0.5, "an answer was lost");
        if let Some(fault) = &reply.fault {
            assert!(by_candidate(&reply), "{fault}");
            assert!(
                matches!(&reply.by, AnsweredBy::Fallback { fallback, .. } if fallback == "previous: good"),
                "{:?}",
                reply.by
            );
        }
        requests += 1;
        assert!(requests < 1000, "{:?}", status(&room));
    }
    let trial = status(&room);
    let ended = trial.ended.unwrap();
    println!("rolled back after {requests} requests: {}", ended.reason);
    assert_eq!(ended.how, TrialEnding::RolledBack);
    assert!(ended.reason.starts_with("fault: "), "{}", ended.reason);
    assert_eq!(active(&room), before, "nothing was swapped");
    assert!((0..100).all(|n| !by_candidate(&serve(&room, n))));
    let ended = room.stats().trials_ended;
    assert!(ended.contains(&(Hook::Classify, TrialEnding::RolledBack, 1)));
}

#[test]
fn a_good_candidate_is_promoted_after_its_minimum_of_calls() {
    let room = room();
    room.put(offer("old", good())).unwrap();
    let before = active(&room).1;
    let started = canary(&room, "new", good()).canary.unwrap();
    assert_eq!((started.share, started.stick_to), (0.5, StickTo::Request));
    let mut candidates = 0;
    let mut requests = 0;
    while status(&room).ended.is_none() {
        let reply = serve(&room, requests);
        if let AnsweredBy::Component {
            name,
            candidate: true,
            generation,
            ..
        } = &reply.by
        {
            assert_eq!((name.as_str(), *generation), ("new", started.generation));
            candidates += 1;
        }
        requests += 1;
        assert!(requests < 5000, "{:?}", status(&room));
    }
    let ended = status(&room).ended.unwrap();
    println!("promoted after {requests} requests: {}", ended.reason);
    assert_eq!(ended.how, TrialEnding::Promoted, "{}", ended.reason);
    assert!(candidates >= 200, "{candidates} calls are too few");
    let (name, generation) = active(&room);
    assert_eq!(name, "new");
    assert!(generation > before);
    assert_eq!(
        room.status()[0].kept[0].policy,
        "old",
        "kept for a rollback"
    );
    assert!((0..100).all(|n| !by_candidate(&serve(&room, n))));
}

#[test]
fn a_candidate_that_needs_second_steps_is_rolled_back_for_it() {
    let room = room();
    room.put(offer("old", good())).unwrap();
    canary(&room, "new", good());
    for n in 0.. {
        let mut session = session(&room, asked(n));
        let climbs = by_candidate(&session.classify()) && n % 3 == 0;
        session.learn(&Outcome {
            tier: Some("small".into()),
            steps_tried: 1 + u32::from(climbs),
            ttft_ms: Some(20),
            ..Outcome::default()
        });
        if let Some(ended) = status(&room).ended {
            println!("after {n} requests: {}", ended.reason);
            assert_eq!(ended.how, TrialEnding::RolledBack);
            assert!(ended.reason.starts_with("escalated: "), "{}", ended.reason);
            return;
        }
        assert!(n < 1000, "{:?}", status(&room));
    }
}

#[test]
fn a_candidate_that_its_breaker_gives_up_on_is_rolled_back_at_once() {
    let room = room_with(RoomConfig {
        breaker: crate::BreakerConfig {
            faults: 2,
            ..crate::BreakerConfig::default()
        },
        ..config()
    });
    room.put(offer("good", good())).unwrap();
    let never = guests::classifier("", "", "unreachable");
    canary(&room, "never", never);
    for n in 0..100 {
        assert_eq!(serve(&room, n).value.p_complex, 0.5);
    }
    let ended = status(&room).ended.unwrap();
    assert_eq!(ended.how, TrialEnding::RolledBack);
    assert!(ended.reason.contains("breaker"), "{}", ended.reason);
}

#[test]
fn the_request_that_decides_waits_for_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    let begin = || {
        let room = room_with(RoomConfig {
            state_dir: Some(dir.path().to_path_buf()),
            ..config()
        });
        room.recall();
        room.resume_trials();
        room
    };
    let room = begin();
    room.put(offer("good", good())).unwrap();
    canary(&room, "bad", guests::classifier("", "", "unreachable"));
    let disk = room.hold_record();
    let mut requests = 0;
    while status(&room).ended.is_none() {
        serve(&room, requests);
        requests += 1;
    }
    assert_eq!(status(&room).ended.unwrap().how, TrialEnding::RolledBack);
    drop(disk);
    drop(room);
    assert_eq!(
        begin().trial(Hook::Classify),
        None,
        "it is written all the same"
    );
}

#[test]
fn a_conversation_keeps_its_policy_and_both_policies_have_conversations() {
    let room = room();
    room.put(offer("old", good())).unwrap();
    let changes = CanaryChanges {
        share: Some(0.3),
        stick_to: Some(StickTo::Conversation),
    };
    room.start_canary(Hook::Classify, Some(offer("new", good())), changes)
        .unwrap();
    let mut arms = BTreeSet::new();
    for talk in 0..60 {
        let turns: Vec<bool> = (0..3)
            .map(|turn| {
                let mut request = (*asked(talk)).clone();
                request.id = format!("turn-{turn}-of-{talk}");
                let number = Value::Integer(talk as i64);
                request.attributes.push((CONVERSATION.into(), number));
                by_candidate(&session(&room, Arc::new(request)).classify())
            })
            .collect();
        assert!(turns.iter().all(|t| *t == turns[0]), "{talk}: {turns:?}");
        arms.insert(turns[0]);
    }
    assert_eq!(arms.len(), 2, "one policy took everything");
}

#[test]
fn a_swap_ends_the_canary_and_its_requests_finish_on_the_candidate() {
    let room = room();
    room.put(offer("old", good())).unwrap();
    canary(&room, "new", guests::all_hooks());
    let taken = (0..).find(|n| by_candidate(&session(&room, asked(*n)).classify()));
    let mut begun = session(&room, asked(taken.unwrap()));
    room.put(offer("newer", good())).unwrap();
    let reply = begun.classify();
    assert!(by_candidate(&reply) && reply.fault.is_none(), "{reply:?}");
    begun.learn(&Outcome::default());
    let ended = status(&room).ended.unwrap();
    assert_eq!(ended.how, TrialEnding::Replaced);
    assert_eq!(active(&room).0, "newer");
    assert!((0..100).all(|n| !by_candidate(&serve(&room, n))));
}

#[test]
fn a_second_trial_at_a_hook_is_refused_and_another_hook_is_free() {
    let room = room();
    canary(&room, "new", good());
    let again = room.start_shadow(Hook::Classify, offer("other", good()));
    let error = again.unwrap_err().to_string();
    assert!(error.contains("canary of new runs at classify"), "{error}");
    room.start_shadow(Hook::Route, offer("r", guests::router("r")))
        .unwrap();
    let wrong = room.stop_trial(Hook::Classify, TrialMode::Shadow);
    assert_eq!(
        wrong.unwrap_err(),
        TrialError::NoneRuns(Hook::Classify, TrialMode::Shadow)
    );
    let stopped = room.stop_trial(Hook::Classify, TrialMode::Canary).unwrap();
    assert_eq!(stopped.ended.unwrap().how, TrialEnding::Stopped);
    assert!(
        room.status()[0].active.is_none(),
        "the built-in answer stays"
    );
    for share in [0.0, 0.51, f64::NAN] {
        let changes = CanaryChanges {
            share: Some(share),
            ..CanaryChanges::default()
        };
        let refused = room.start_canary(Hook::Classify, Some(offer("x", good())), changes);
        assert!(matches!(refused, Err(TrialError::Parameter(_))), "{share}");
    }
}

#[test]
fn a_refused_candidate_starts_nothing() {
    let room = room();
    let refused = room.start_canary(
        Hook::Classify,
        Some(offer("junk", b"junk".to_vec())),
        CanaryChanges::default(),
    );
    assert!(matches!(refused, Err(TrialError::Refused(_))));
    assert_eq!(room.trial(Hook::Classify), None);
}

#[test]
fn the_operator_promotes_a_shadow_by_way_of_a_canary() {
    let room = room();
    room.put(offer("old", good())).unwrap();
    let none = room.start_canary(Hook::Classify, None, CanaryChanges::default());
    assert_eq!(
        none.unwrap_err(),
        TrialError::NoneRuns(Hook::Classify, TrialMode::Shadow)
    );
    room.start_shadow(Hook::Classify, offer("new", good()))
        .unwrap();
    let moved = room.start_canary(Hook::Classify, None, CanaryChanges::default());
    assert_eq!(moved.unwrap().policy, "new");
    room.promote_trial(Hook::Classify, TrialMode::Canary)
        .unwrap();
    assert_eq!(active(&room).0, "new");
}

// ---- breakers and generations ----------------------------------------------------------

#[test]
fn a_swap_closes_the_breaker_even_while_the_next_policy_is_admitted() {
    let room = room();
    let bad = guests::classifier("", "", "unreachable");
    room.put(offer("bad", bad)).unwrap();
    for n in 0..5 {
        assert!(serve(&room, n).fault.is_some());
    }
    let open = |room: &PolicyRoom| room.status()[0].active.clone().unwrap().breaker_open;
    assert!(open(&room));
    std::thread::scope(|scope| {
        let busy = room.hold_admission();
        let put = scope.spawn(|| {
            let mut offer = offer("good", good());
            offer.hooks = Some(vec![Hook::Classify]);
            room.put(offer)
        });
        while room.newest_ticket(Hook::Classify) < 1 {
            std::thread::yield_now();
        }
        assert!(open(&room), "the old one is still left alone");
        assert!(matches!(serve(&room, 5).by, AnsweredBy::Fallback { .. }));
        drop(busy);
        put.join().unwrap().unwrap();
    });
    assert!(!open(&room));
    let reply = serve(&room, 6);
    assert!(reply.fault.is_none(), "{reply:?}");
}

#[test]
fn rollback_goes_to_any_kept_generation_and_loses_none() {
    let room = room();
    for name in ["a", "b", "c"] {
        room.put(offer(name, good())).unwrap();
    }
    let missing = room.rollback_to(Hook::Classify, 9).unwrap_err();
    assert!(missing.to_string().contains("[1, 2] are"), "{missing}");
    let back = room.rollback_to(Hook::Classify, 1).unwrap();
    assert_eq!(back.active.unwrap().policy, "a");
    let kept: Vec<_> = back.kept.iter().map(|g| g.policy.as_str()).collect();
    assert_eq!(kept, ["c", "b"]);
    let forth = room.rollback_to(Hook::Classify, 3).unwrap();
    assert_eq!(forth.active.unwrap().policy, "c");
    assert!(serve(&room, 1).fault.is_none());
}

// ---- shadows ---------------------------------------------------------------------------

/// Waits until a shadow has been through everything that it was given.
fn seen(room: &PolicyRoom, calls: u64) -> ShadowStatus {
    loop {
        let shadow = status(room).shadow.unwrap();
        if shadow.calls >= calls {
            return shadow;
        }
        std::thread::yield_now();
    }
}

#[test]
fn differences_and_faults_of_a_shadow_are_counted_and_nobody_hears_its_answers() {
    let room = room();
    room.put(offer("old", good())).unwrap();
    // Ids that begin with 0 are simple to it; those with 1 it cannot stand.
    let cases = format!(
        "(if (i32.eq {FIRST} (i32.const 48)) (then
            (drop (call $good))
            (f32.store (i32.const 1028) (f32.const 1))
            (f32.store (i32.const 1032) (f32.const 0))
            (f32.store (i32.const 1036) (f32.const 0))
            (return (i32.const 1024))))
         (if (i32.eq {FIRST} (i32.const 49)) (then unreachable))"
    );
    room.start_shadow(
        Hook::Classify,
        offer("new", guests::classifier("", "", &cases)),
    )
    .unwrap();
    for n in 0..100 {
        let reply = serve(&room, n);
        assert!(matches!(&reply.by, AnsweredBy::Component { name, .. } if name == "old"));
        assert_eq!(reply.value.p_complex, 0.5);
    }
    let shadow = seen(&room, 100);
    assert_eq!((shadow.calls, shadow.same), (100, 80));
    let row = |to: &str| Difference {
        from: "complex".into(),
        to: to.into(),
        calls: 10,
    };
    let mut differences = shadow.differences;
    differences.sort_by_key(|d| d.to.clone());
    assert_eq!(differences, [row("fault: trap"), row("simple")]);
    assert_eq!(shadow.faults["trap"], 10);
    assert_eq!(shadow.active_times.count, 100);
    assert_eq!(shadow.candidate_times.count, 100);
    assert_eq!((shadow.dropped_full, shadow.dropped_busy), (0, 0));
    let counters = &room.stats().hooks["classify"];
    assert_eq!(counters.faults["trap"], 0, "a shadow's faults are its own");
    assert_eq!(counters.times.count, 100);
}

#[test]
fn a_shadow_that_hangs_fills_its_queue_and_no_request_waits_for_it() {
    let config = RoomConfig {
        shadow: ShadowConfig {
            queue: 4,
            share: 1.0,
            ..ShadowConfig::default()
        },
        ..config()
    };
    let room = room_with(config);
    room.put(offer("old", good())).unwrap();
    room.start_shadow(Hook::Classify, offer("new", good()))
        .unwrap();
    let hanging = room.hold_shadows();
    for n in 0..10 {
        assert!(serve(&room, n).fault.is_none());
    }
    let shadow = status(&room).shadow.unwrap();
    assert_eq!((shadow.calls, shadow.dropped_full), (0, 6));
    drop(hanging);
    assert_eq!(seen(&room, 4).calls, 4);
    // And its end does not wait for it either.
    let hanging = room.hold_shadows();
    serve(&room, 11);
    room.stop_trial(Hook::Classify, TrialMode::Shadow).unwrap();
    assert!(serve(&room, 12).fault.is_none());
    drop(hanging);
}

#[test]
fn a_busy_house_asks_no_shadow() {
    let config = RoomConfig {
        instances: 1,
        ..config()
    };
    let room = room_with(config);
    room.put(offer("all", guests::all_hooks())).unwrap();
    room.start_shadow(Hook::Classify, offer("new", good()))
        .unwrap();
    // Its instance is kept for the hooks to come, and it is the only one.
    let mut session = session(&room, asked(1));
    session.classify();
    drop(session);
    let shadow = status(&room).shadow.unwrap();
    assert_eq!((shadow.calls, shadow.dropped_busy), (0, 1));
}

#[test]
fn a_shadow_writes_to_a_copy_of_its_state() {
    let counting = || Offer {
        options: PolicyOptions {
            grants: Some(vec![Grant::Keyvalue]),
            ..PolicyOptions::default()
        },
        ..offer("counts", crate::tests::counting())
    };
    let room = room();
    room.put(counting()).unwrap();
    let count = |n| (serve(&room, n).value.confidence * 10_000.0).round() as u32;
    assert_eq!((count(0), count(1)), (1, 2));
    room.start_shadow(Hook::Classify, counting()).unwrap();
    for n in 2..10 {
        count(n);
    }
    assert_eq!(seen(&room, 8).faults.values().sum::<u64>(), 0);
    assert_eq!(count(10), 11, "the shadow counted in the real state");
}

#[test]
fn a_shadow_asks_the_models_within_its_budget() {
    let config = RoomConfig {
        shadow: ShadowConfig {
            model_calls: 3,
            share: 1.0,
            ..ShadowConfig::default()
        },
        ..config()
    };
    let room = room_with(config);
    room.put(offer("old", good())).unwrap();
    let asking = Offer {
        options: PolicyOptions {
            grants: Some(vec![Grant::Models]),
            ..PolicyOptions::default()
        },
        ..offer("asks", guests::embedding())
    };
    room.start_shadow(Hook::Classify, asking).unwrap();
    for n in 0..5 {
        serve(&room, n);
    }
    let shadow = seen(&room, 5);
    assert_eq!(shadow.model_calls_left, 0);
    // The guest traps when the model does not answer.
    assert_eq!(shadow.faults.get("trap"), Some(&2));
}

/// Models that take notes of who pays for what is embedded: a request by its id, or nobody.
struct Noted {
    payers: Arc<Mutex<Vec<Option<String>>>>,
    payer: Option<String>,
}

impl Models for Noted {
    fn at_the_expense_of(self: Arc<Self>, request: &Request) -> Option<Arc<dyn Models>> {
        Some(Arc::new(Self {
            payers: Arc::clone(&self.payers),
            payer: Some(request.id.clone()),
        }))
    }

    fn names(&self) -> Vec<String> {
        FakeModels.names()
    }

    fn info(&self, name: &str) -> Result<TierView, ModelError> {
        FakeModels.info(name)
    }

    fn count_tokens(&self, name: &str, text: &str) -> Result<u32, ModelError> {
        FakeModels.count_tokens(name, text)
    }

    fn embed(&self, name: &str, text: &str, timeout_ms: u32) -> Result<Vec<f32>, ModelError> {
        self.payers.lock().unwrap().push(self.payer.clone());
        FakeModels.embed(name, text, timeout_ms)
    }

    fn score(
        &self,
        tenant: Option<&str>,
        name: &str,
        prompt: &str,
        continuation: &str,
        timeout_ms: u32,
    ) -> Result<Vec<f32>, ModelError> {
        FakeModels.score(tenant, name, prompt, continuation, timeout_ms)
    }

    fn generate(
        &self,
        tenant: Option<&str>,
        name: &str,
        prompt: &str,
        options: &GenerateOptions,
        timeout_ms: u32,
    ) -> Result<Generated, ModelError> {
        FakeModels.generate(tenant, name, prompt, options, timeout_ms)
    }
}

#[test]
fn a_request_pays_for_what_its_policies_ask_and_nobody_for_a_shadow_or_a_probe() {
    let payers = Arc::new(Mutex::new(Vec::new()));
    let models = Noted {
        payers: Arc::clone(&payers),
        payer: None,
    };
    let room = PolicyRoom::new(config(), Arc::new(models)).expect("a room");
    let told = || std::mem::take(&mut *payers.lock().unwrap());
    let asking = |name: &str| Offer {
        options: PolicyOptions {
            grants: Some(vec![Grant::Models]),
            ..PolicyOptions::default()
        },
        ..offer(name, guests::embedding())
    };
    room.put(asking("active")).unwrap();
    assert!(told().iter().all(Option::is_none), "probes have no request");
    serve(&room, 1);
    assert_eq!(told(), [Some(asked(1).id.clone())]);

    room.start_shadow(Hook::Classify, asking("shadow")).unwrap();
    told();
    serve(&room, 2);
    seen(&room, 1);
    let mut both = told();
    both.sort();
    assert_eq!(both, [None, Some(asked(2).id.clone())]);
    room.stop_trial(Hook::Classify, TrialMode::Shadow).unwrap();

    // A canary is listened to.
    let candidate = Some(asking("canary"));
    room.start_canary(Hook::Classify, candidate, CanaryChanges::default())
        .unwrap();
    told();
    let mut served = [0, 0];
    for n in 3..40 {
        let arm = usize::from(by_candidate(&serve(&room, n)));
        served[arm] += 1;
        assert_eq!(told(), [Some(asked(n).id.clone())], "{arm}");
    }
    assert!(served.iter().all(|requests| *requests > 0), "{served:?}");
}
