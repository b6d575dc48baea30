//! The room, seen from its doors: what serves, what is refused, what happens when a guest
//! misbehaves.

mod cost;
mod machine_code;
mod trust;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use homeostat_hooks::{
    Answer, AnsweredBy, Classification, Decision, FaultKind, Hook, HookReply, Outcome, Policies,
    Session, Snapshot, TierView, Verdict,
};

mod restarts;
mod upgrades;

use crate::guests::{self, FakeModels, request};
use crate::{
    AdmissionError, BreakerConfig, Deny, Fallback, Grant, LimitChanges, Offer, PolicyOptions,
    PolicyRoom, RoomConfig, Stage, TrialMode,
};

fn room_with(config: RoomConfig) -> PolicyRoom {
    PolicyRoom::new(config, Arc::new(FakeModels)).expect("a room")
}

fn room() -> PolicyRoom {
    room_with(RoomConfig {
        instances: 8,
        ..RoomConfig::default()
    })
}

fn offer(name: &str, bytes: Vec<u8>) -> Offer {
    Offer {
        name: name.into(),
        bytes,
        ..Offer::default()
    }
}

fn granted(name: &str, bytes: Vec<u8>, grants: &[Grant]) -> Offer {
    Offer {
        options: PolicyOptions {
            grants: Some(grants.to_vec()),
            ..PolicyOptions::default()
        },
        ..offer(name, bytes)
    }
}

fn begin(room: &PolicyRoom, id_len: usize) -> Box<dyn Session> {
    room.begin(request(id_len), Arc::new(Snapshot::default()))
}

fn classify(room: &PolicyRoom, id_len: usize) -> HookReply<Classification> {
    begin(room, id_len).classify()
}

fn tiers() -> Vec<TierView> {
    vec![TierView {
        id: "small".into(),
        ready: true,
        ..TierView::default()
    }]
}

fn routed(room: &PolicyRoom) -> String {
    let reply = begin(room, 7).route(&Classification::default(), &tiers());
    match reply.value {
        Decision::Answer(answer) => answer.text,
        other => format!("{other:?}"),
    }
}

fn is_component<T>(reply: &HookReply<T>) -> bool {
    matches!(
        reply.by,
        AnsweredBy::Component {
            proposed: false,
            ..
        }
    )
}

/// Puts a classifier that does `then` at ids of length 7 and answers what came of it.
fn misbehaving(head: &str, extra: &str, then: &str) -> (PolicyRoom, HookReply<Classification>) {
    let room = room();
    let guest = guests::classifier_when(7, head, extra, then);
    room.put(offer("bad", guest)).expect("good at probes");
    let reply = classify(&room, 7);
    (room, reply)
}

/// The fallback answered with this fault, and the next request is served as if nothing
/// had been.
fn assert_fault(room: &PolicyRoom, reply: &HookReply<Classification>, kind: FaultKind) {
    let fault = reply.fault.as_ref().expect("a fault");
    assert_eq!(fault.kind, kind, "{fault}");
    assert!(
        matches!(&reply.by, AnsweredBy::Fallback { fallback, .. } if fallback == "built-in"),
        "{:?}",
        reply.by
    );
    assert!(is_component(&classify(room, 8)), "the next request");
    let stats = room.stats();
    assert_eq!(stats.hooks["classify"].faults[kind.as_str()], 1);
    assert_eq!(stats.hooks["classify"].fallbacks, 1);
    assert_eq!(stats.instances, 0, "an instance leaked");
}

fn refused(room: &PolicyRoom, offer: Offer) -> AdmissionError {
    room.put(offer).expect_err("it must be refused")
}

// ---- serving ---------------------------------------------------------------------------

#[test]
fn without_policies_every_hook_has_its_built_in_answer() {
    let room = room();
    let mut session = begin(&room, 7);
    let classified = session.classify();
    assert_eq!(classified.by, AnsweredBy::BuiltIn);
    let decision = session.route(&classified.value, &tiers());
    assert_eq!(decision.by, AnsweredBy::BuiltIn);
    assert_eq!(session.validate(&Answer::default()).by, AnsweredBy::BuiltIn);
    session.learn(&Outcome::default());
}

#[test]
fn a_good_component_serves_and_the_reply_names_it() {
    let room = room();
    let report = room
        .put(offer("count", guests::classifier("", "", "")))
        .unwrap();
    assert_eq!(report.hooks, [Hook::Classify]);
    assert_eq!(report.generations, [1]);
    assert!(report.probes >= 8 && report.swap_micros.is_some());
    let reply = classify(&room, 7);
    match &reply.by {
        AnsweredBy::Component {
            name,
            generation,
            digest,
            proposed,
            candidate,
        } => {
            assert_eq!((name.as_str(), *generation), ("count", 1));
            assert_eq!((*proposed, *candidate), (false, false));
            assert_eq!(*digest, report.digest[..12]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(reply.value.p_complex, 0.5);
}

#[test]
fn one_request_keeps_one_instance_for_all_hooks_and_the_next_gets_a_fresh_one() {
    let room = room();
    let report = room.put(offer("all", guests::all_hooks())).unwrap();
    assert_eq!(report.hooks, Hook::ALL);
    for _ in 0..2 {
        let mut session = begin(&room, 7);
        let first = session.classify().value;
        let second = session.classify().value;
        assert_eq!((first.confidence, second.confidence), (0.01, 0.02));
        assert_eq!(room.stats().instances, 1);
        session.route(&first, &tiers());
        for n in 1..=3 {
            let reply = session.validate(&Answer::default());
            match reply.value {
                Verdict::Accept(a) => assert_eq!(a.confidence, n as f32 / 100.0),
                other => panic!("{other:?}"),
            }
        }
        session.learn(&Outcome::default());
        assert_eq!(room.stats().instances, 0);
    }
    assert_eq!(room.stats().hooks["classify"].times.count, 4);
}

#[test]
fn no_instance_is_held_when_no_later_hook_needs_it() {
    let room = room();
    room.put(offer("c", guests::classifier("", "", "")))
        .unwrap();
    room.put(offer("r", guests::router("r"))).unwrap();
    let mut session = begin(&room, 7);
    let c = session.classify().value;
    assert_eq!(room.stats().instances, 0);
    session.route(&c, &tiers());
    assert_eq!(room.stats().instances, 0);
}

#[test]
fn without_the_pool_everything_works_the_same() {
    let room = room_with(RoomConfig {
        pooling: false,
        ..RoomConfig::default()
    });
    assert!(!room.stats().pooled);
    room.put(offer("r", guests::router("plain"))).unwrap();
    assert_eq!(routed(&room), "plain");
}

// ---- misbehaviour ----------------------------------------------------------------------

#[test]
fn an_endless_loop_is_a_deadline() {
    let (room, reply) = misbehaving("", "", "(loop $l (br $l))");
    assert_fault(&room, &reply, FaultKind::Deadline);
}

#[test]
fn a_trap_is_a_trap_and_the_fault_names_the_function() {
    let (room, reply) = misbehaving("", "(func $culprit unreachable)", "(call $culprit)");
    assert!(reply.fault.as_ref().unwrap().detail.contains("culprit"));
    assert_fault(&room, &reply, FaultKind::Trap);
}

#[test]
fn endless_recursion_is_a_trap_and_the_host_lives() {
    let deep = "(func $deep (param i32) (result i32)
        (i32.add (call $deep (i32.add (local.get 0) (i32.const 1))) (i32.const 1)))";
    let (room, reply) = misbehaving("", deep, "(drop (call $deep (i32.const 0)))");
    assert!(reply.fault.as_ref().unwrap().detail.contains("stack"));
    assert_fault(&room, &reply, FaultKind::Trap);
}

#[test]
fn a_stack_that_the_hosts_threads_do_not_have_is_given_to_no_guest() {
    let config = |stack_bytes| RoomConfig {
        stack_bytes,
        instances: 8,
        ..RoomConfig::default()
    };
    for wrong in [0, 2 << 20] {
        let refused = PolicyRoom::new(config(wrong), Arc::new(FakeModels)).err();
        let text = refused.unwrap().to_string();
        assert!(text.contains("stack_bytes is"), "{text}");
    }
    let room = room_with(config(1 << 20));
    let recursion = "(func $deep (result i32) (i32.add (call $deep) (i32.const 1)))";
    let guest = guests::classifier_when(7, "", recursion, "(drop (call $deep))");
    room.put(offer("bad", guest)).unwrap();
    // On a thread as every thread is that serves requests.
    let reply = std::thread::scope(|scope| scope.spawn(|| classify(&room, 7)).join());
    assert_fault(&room, &reply.unwrap(), FaultKind::Trap);
}

#[test]
fn a_memory_bomb_is_memory() {
    let (room, reply) = misbehaving(
        "",
        "",
        "(loop $l (call $grow_or_die (i32.const 1048576)) (br $l))",
    );
    assert_fault(&room, &reply, FaultKind::Memory);
}

#[test]
fn a_bomb_over_two_memories_reaches_the_limit_of_their_sum() {
    let extra = "(memory $b 0) (memory $c 0)
        (func $two
          (local $got i32)
          (local.set $got (i32.add
            (i32.ge_s (memory.grow $b (i32.const 600)) (i32.const 0))
            (i32.ge_s (memory.grow $c (i32.const 600)) (i32.const 0))))
          (if (i32.ne (local.get $got) (i32.const 2)) (then unreachable)))";
    let (room, reply) = misbehaving("", extra, "(call $two)");
    assert_fault(&room, &reply, FaultKind::Memory);
}

#[test]
fn an_answer_larger_than_the_limit_is_memory() {
    let huge = "(call $grow_or_die (i32.const 4194304))
        (i32.store8 (i32.const 1024) (i32.const 1))
        (i32.store8 (i32.const 1028) (i32.const 5))
        (i32.store (i32.const 1032) (i32.const 131072))
        (i32.store (i32.const 1036) (i32.const 4000000))
        (return (i32.const 1024))";
    let (room, reply) = misbehaving("", "", huge);
    assert!(
        reply
            .fault
            .as_ref()
            .unwrap()
            .detail
            .contains("hostcall_bytes")
    );
    assert_fault(&room, &reply, FaultKind::Memory);
}

#[test]
fn nonsense_is_invalid_and_says_what_was_expected() {
    let nan = "(drop (call $good)) (f32.store (i32.const 1028) (f32.const nan)) (return (i32.const 1024))";
    let (room, reply) = misbehaving("", "", nan);
    assert!(reply.fault.as_ref().unwrap().detail.contains("p-simple"));
    assert_fault(&room, &reply, FaultKind::Invalid);
}

#[test]
fn an_answer_outside_the_memory_is_a_trap() {
    let (room, reply) = misbehaving("", "", "(return (i32.const -8))");
    assert_fault(&room, &reply, FaultKind::Trap);
}

#[test]
fn the_guests_own_denied_is_denied_and_its_other_errors_are_invalid() {
    let error = |case: u32| {
        format!(
            "(i32.store8 (i32.const 1024) (i32.const 1))
             (i32.store8 (i32.const 1028) (i32.const {case}))
             (i64.store align=4 (i32.const 1032) (i64.const 0))
             (return (i32.const 1024))"
        )
    };
    let (room, reply) = misbehaving("", "", &error(0));
    assert_fault(&room, &reply, FaultKind::Denied);
    let (room, reply) = misbehaving("", "", &error(2));
    assert_fault(&room, &reply, FaultKind::Invalid);
}

const LOG: &str = r#"(import "wasi:logging/logging@0.1.0-draft" "log"
    (func $log (param i32 i32 i32 i32 i32)))"#;

#[test]
fn a_log_flood_is_cut_and_counted_and_the_answer_stands() {
    let flood = "(global.set $n (i32.const 100))
        (loop $l
          (call $log (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1000))
          (global.set $n (i32.sub (global.get $n) (i32.const 1)))
          (br_if $l (global.get $n)))";
    let (room, reply) = misbehaving(LOG, "(global $n (mut i32) (i32.const 0))", flood);
    assert!(is_component(&reply), "{:?}", reply.fault);
    let dropped = room.stats().hooks["classify"].log_bytes_dropped;
    // A line takes 64 bytes, and its context here one.
    assert_eq!(dropped, 100 * (64 + 1 + 1000) - (8 << 10));
}

#[test]
fn a_huge_argument_to_a_host_call_is_memory() {
    let shout = "(call $grow_or_die (i32.const 4194304))
        (call $log (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 4000000))";
    let (room, reply) = misbehaving(LOG, "", shout);
    assert_fault(&room, &reply, FaultKind::Memory);
}

const PROPOSE: &str = r#"(import "homeostat:policy/propose@0.1.0" "propose-classification"
    (func $propose (param f32 f32 f32 i32 i32 i32 f32 i32 i32)))"#;

fn propose(simple: &str, complex: &str) -> String {
    format!(
        "(call $propose (f32.const {simple}) (f32.const 0) (f32.const {complex})
            (i32.const 0) (i32.const 0) (i32.const 0) (f32.const 0.5) (i32.const 0) (i32.const 0))"
    )
}

#[test]
fn the_last_valid_proposal_is_used_when_the_deadline_comes_first() {
    let then = format!(
        "{} {} {} (loop $l (br $l))",
        propose("1", "0"),
        propose("0.25", "0.75"),
        propose("9", "9"),
    );
    let (room, reply) = misbehaving(PROPOSE, "", &then);
    assert_eq!(reply.value.p_complex, 0.75);
    assert_eq!(reply.fault.as_ref().unwrap().kind, FaultKind::Deadline);
    assert!(matches!(
        reply.by,
        AnsweredBy::Component { proposed: true, .. }
    ));
    let stats = room.stats();
    assert_eq!(stats.hooks["classify"].proposed, 1);
    assert_eq!(stats.hooks["classify"].fallbacks, 0);
}

#[test]
fn an_instance_that_trapped_is_not_used_again_in_the_same_request() {
    let room = room();
    let trap = "(if (i32.eq (call $id_len (local.get 0)) (i32.const 7)) (then
        (if (i32.eqz (global.get $calls)) (then (drop (call $good)) (return (i32.const 1024))))
        unreachable))";
    room.put(offer("once", guests::classifier("", "", trap)))
        .unwrap();
    // Kept between calls only if the policy validates too, so ask twice in one session.
    let mut session = begin(&room, 7);
    assert_eq!(session.classify().value.confidence, 0.01);
    assert_eq!(
        session.classify().value.confidence,
        0.01,
        "a fresh instance"
    );

    room.put(offer("all", guests::all_hooks())).unwrap();
    let mut session = begin(&room, 9);
    assert_eq!(session.classify().value.confidence, 0.01);
    let verdict = session.validate(&Answer::default());
    assert_eq!(verdict.fault.unwrap().kind, FaultKind::Trap);
    assert_eq!(
        session.classify().value.confidence,
        0.01,
        "a fresh instance"
    );
}

#[test]
fn one_policys_deadline_does_not_interrupt_another() {
    let room = Arc::new(room_with(RoomConfig {
        breaker: BreakerConfig {
            faults: u32::MAX,
            ..BreakerConfig::default()
        },
        ..RoomConfig::default()
    }));
    let looping = guests::classifier_when(7, "", "", "(loop $l (br $l))");
    room.put(offer("looping", looping)).unwrap();
    room.put(offer("r", guests::router("calm"))).unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let noisy: Vec<_> = (0..2)
        .map(|_| {
            let (room, stop) = (Arc::clone(&room), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut faults = 0;
                while !stop.load(Ordering::Relaxed) {
                    let reply = classify(&room, 7);
                    assert_eq!(reply.fault.unwrap().kind, FaultKind::Deadline);
                    faults += 1;
                }
                faults
            })
        })
        .collect();
    let mut calm = 0;
    while room.stats().hooks["classify"].faults["deadline"] < 4 {
        assert_eq!(routed(&room), "calm");
        calm += 1;
    }
    stop.store(true, Ordering::Relaxed);
    let faults: u32 = noisy.into_iter().map(|t| t.join().unwrap()).sum();
    assert!(faults >= 4 && calm > 0);
    assert_eq!(room.stats().hooks["route"].faults.values().sum::<u64>(), 0);
}

const SCORE: &str = r#"
  (import "homeostat:policy/models@0.1.0" "open" (func $open (param i32 i32 i32)))
  (import "homeostat:policy/models@0.1.0" "[method]model.score"
    (func $score (param i32 i32 i32 i32 i32 i32)))"#;
const TINY: &str = r#"(data (i32.const 3000) "tiny")"#;

#[test]
fn a_host_call_that_waits_gets_what_is_left_of_the_deadline() {
    let wait = "(call $open (i32.const 3000) (i32.const 4) (i32.const 4096))
        (if (i32.load8_u (i32.const 4096)) (then unreachable))
        (loop $l
          (call $score (i32.load (i32.const 4100)) (i32.const 0) (i32.const 1)
            (i32.const 0) (i32.const 1) (i32.const 4128))
          (br $l))";
    let room = room();
    let guest = guests::classifier_when(7, SCORE, TINY, wait);
    room.put(granted("waits", guest, &[Grant::Models])).unwrap();
    let reply = classify(&room, 7);
    assert_fault(&room, &reply, FaultKind::Deadline);
}

#[test]
fn handles_that_are_never_given_back_end_at_the_limit_and_with_the_instance() {
    // Opens until it is refused; anything but error.limit-exceeded (case 3) is a trap.
    let leak = "(loop $l
          (call $open (i32.const 3000) (i32.const 4) (i32.const 4096))
          (br_if $l (i32.eqz (i32.load8_u (i32.const 4096)))))
        (if (i32.ne (i32.load8_u (i32.const 4100)) (i32.const 3)) (then unreachable))";
    let room = room();
    let guest = guests::classifier_when(7, SCORE, TINY, leak);
    room.put(granted("leaks", guest, &[Grant::Models])).unwrap();
    for _ in 0..3 {
        let reply = classify(&room, 7);
        assert!(is_component(&reply), "{:?}", reply.fault);
    }
}

/// The contract with imports of WASI in a world of its own, `wasi-policy`, and these packages
/// beside it.
pub(crate) fn contract_with_wasi(imports: &[&str], packages: &[(&str, &str)]) -> tempfile::TempDir {
    let imports: Vec<String> = imports.iter().map(|i| format!("import {i};")).collect();
    let classify = "world classify-policy {";
    let world = format!(
        "world wasi-policy {{ include classify-policy; {} }} {classify}",
        imports.concat()
    );
    let dir = changed_contract(classify, &world);
    for (package, text) in packages {
        let deps = dir.path().join("deps").join(package);
        std::fs::create_dir_all(&deps).unwrap();
        std::fs::write(deps.join("all.wit"), text).unwrap();
    }
    dir
}

/// As much of WASI 0.2 as a guest needs to sleep and to leave.
fn contract_with_alarms() -> tempfile::TempDir {
    contract_with_wasi(
        &[
            "wasi:clocks/monotonic-clock@0.2.3",
            "wasi:cli/exit@0.2.3",
            "wasi:cli/environment@0.2.3",
        ],
        &[
            (
                "io",
                "package wasi:io@0.2.3;
                 interface poll { resource pollable { block: func(); } }",
            ),
            (
                "clocks",
                "package wasi:clocks@0.2.3;
                 interface monotonic-clock {
                     use wasi:io/poll@0.2.3.{pollable};
                     subscribe-duration: func(when: u64) -> pollable;
                 }",
            ),
            (
                "cli",
                "package wasi:cli@0.2.3;
                 interface exit { exit: func(status: result); }
                 interface environment {
                     get-environment: func() -> list<tuple<string, string>>;
                 }",
            ),
        ],
    )
}

#[test]
fn wasi_is_an_empty_world_in_which_nobody_sleeps_past_the_deadline() {
    let wit = contract_with_alarms();
    let head = r#"
      (import "wasi:clocks/monotonic-clock@0.2.3" "subscribe-duration"
        (func $alarm (param i64) (result i32)))
      (import "wasi:io/poll@0.2.3" "[method]pollable.block" (func $block (param i32)))
      (import "wasi:cli/exit@0.2.3" "exit" (func $exit (param i32)))
      (import "wasi:cli/environment@0.2.3" "get-environment" (func $environment (param i32)))"#;
    let cases = "
      (if (i32.eq (call $id_len (local.get 0)) (i32.const 7))
        (then (call $block (call $alarm (i64.const 3600000000000)))
              (loop $l (br $l))))
      (if (i32.eq (call $id_len (local.get 0)) (i32.const 9)) (then (call $exit (i32.const 1))))
      (if (i32.eq (call $id_len (local.get 0)) (i32.const 10))
        (then (call $environment (i32.const 4096))
              (if (i32.load (i32.const 4100)) (then unreachable))))";
    let text = guests::classifier_text(head, "", cases);
    let guest = guests::component_of(wit.path(), "wasi-policy", &text);
    let room = room();
    room.put(offer("wasi", guest)).unwrap();
    let reply = classify(&room, 10);
    assert!(is_component(&reply), "{:?}", reply.fault);
    let left = classify(&room, 9).fault.unwrap();
    assert_eq!(left.kind, FaultKind::Trap);
    assert!(left.detail.contains("exit(1)"), "{left}");
    let reply = classify(&room, 7);
    assert_eq!(reply.fault.unwrap().kind, FaultKind::Deadline);
}

// ---- bounds of the room ----------------------------------------------------------------

#[test]
fn a_full_house_waits_then_the_fallback_answers_and_no_policy_is_blamed() {
    let room = room_with(RoomConfig {
        instances: 1,
        wait_ms: 5,
        ..RoomConfig::default()
    });
    room.put(offer("all", guests::all_hooks())).unwrap();
    let mut holder = begin(&room, 7);
    holder.classify();
    for _ in 0..10 {
        let reply = classify(&room, 7);
        let fault = reply.fault.unwrap();
        assert_eq!(fault.kind, FaultKind::Deadline);
        assert!(fault.detail.contains("no instance free"), "{fault}");
    }
    drop(holder);
    assert!(is_component(&classify(&room, 7)), "the breaker stayed shut");
    assert_eq!(room.stats().waits_given_up, 10);
}

#[test]
fn a_policy_that_keeps_failing_is_left_alone_and_tried_again_later() {
    let clock = Arc::new(AtomicU64::new(0));
    let now = Arc::clone(&clock);
    let room = PolicyRoom::with_clock(
        RoomConfig::default(),
        Arc::new(FakeModels),
        Box::new(move || now.load(Ordering::Relaxed)),
    )
    .unwrap();
    let guest = guests::classifier_when(7, "", "", "unreachable");
    room.put(offer("bad", guest.clone())).unwrap();
    for _ in 0..5 {
        classify(&room, 7);
    }
    let alone = classify(&room, 8);
    assert!(alone.fault.unwrap().detail.contains("left alone"));
    let stats = &room.stats().hooks["classify"];
    assert_eq!(
        (stats.faults["trap"], stats.left_alone, stats.fallbacks),
        (5, 1, 6)
    );
    clock.store(1000, Ordering::Relaxed);
    assert!(is_component(&classify(&room, 8)), "the trial succeeds");
    assert!(is_component(&classify(&room, 8)), "and closes the breaker");

    for _ in 0..5 {
        classify(&room, 7);
    }
    assert!(!is_component(&classify(&room, 8)));
    room.put(offer("bad", guest)).unwrap();
    assert!(is_component(&classify(&room, 8)), "a swap resets it");
}

// ---- fallbacks -------------------------------------------------------------------------

fn with_fallback(name: &str, bytes: Vec<u8>, fallback: Fallback) -> Offer {
    Offer {
        options: PolicyOptions {
            fallback: Some(fallback),
            ..PolicyOptions::default()
        },
        ..offer(name, bytes)
    }
}

#[test]
fn the_generation_before_answers_when_so_configured() {
    let room = room();
    room.put(offer("old", guests::classifier("", "", "")))
        .unwrap();
    let bad = guests::classifier_when(7, "", "", "unreachable");
    room.put(with_fallback("new", bad, Fallback::Previous))
        .unwrap();
    let reply = classify(&room, 7);
    assert_eq!(reply.fault.unwrap().kind, FaultKind::Trap);
    match reply.by {
        AnsweredBy::Fallback { fallback, name, .. } => {
            assert_eq!((name.as_str(), fallback.as_str()), ("new", "previous: old"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(reply.value.p_complex, 0.5, "the old policy's answer");
}

#[test]
fn after_a_rollback_nobody_falls_back_to_what_was_rolled_back() {
    let room = room();
    let fails = |len| guests::classifier_when(len, "", "", "unreachable");
    let fallback = |room: &PolicyRoom, len| match classify(room, len).by {
        AnsweredBy::Fallback { fallback, .. } => fallback,
        other => panic!("{other:?}"),
    };
    room.put(with_fallback("a", fails(7), Fallback::Previous))
        .unwrap();
    room.put(with_fallback("b", fails(8), Fallback::Previous))
        .unwrap();
    room.put(with_fallback("c", fails(9), Fallback::Previous))
        .unwrap();
    assert_eq!(fallback(&room, 9), "previous: b");
    room.rollback(Hook::Classify).unwrap();
    assert_eq!(fallback(&room, 8), "previous: a");
    room.rollback(Hook::Classify).unwrap();
    assert_eq!(fallback(&room, 7), "built-in");
    room.rollback_to(Hook::Classify, 4).unwrap_err();
    room.put(with_fallback("b", fails(8), Fallback::Previous))
        .unwrap();
    let kept = room.status()[0].kept[0].generation;
    room.rollback_to(Hook::Classify, kept).unwrap();
    assert_eq!(
        fallback(&room, 7),
        "built-in",
        "b was kept, and rolled back"
    );
}

#[test]
fn a_validator_may_fail_closed_and_nobody_else_may() {
    let room = room();
    room.put(with_fallback("v", guests::validator(), Fallback::Reject))
        .unwrap();
    let reply = begin(&room, 9).validate(&Answer::default());
    assert!(
        matches!(reply.value, Verdict::Reject(_)),
        "{:?}",
        reply.value
    );
    let refusal = refused(
        &room,
        with_fallback("r", guests::router("r"), Fallback::Reject),
    );
    assert_eq!(refusal.stage, Stage::Options);
}

// ---- admission -------------------------------------------------------------------------

#[test]
fn what_is_no_component_is_refused_with_what_to_do() {
    let room = room();
    room.put(offer("good", guests::router("still here")))
        .unwrap();
    let core = guests::core_module("(module)");
    for (bytes, word) in [
        (vec![], "empty"),
        (b"hello".to_vec(), "not WebAssembly"),
        (b"(component)".to_vec(), "text"),
        (core[..6].to_vec(), "header"),
        (core, "core module"),
        (b"\0asm\x0d\0\x02\0".to_vec(), "version"),
    ] {
        let refusal = refused(&room, offer("bad", bytes));
        assert_eq!(refusal.stage, Stage::Component);
        assert!(refusal.text.contains(word), "{refusal}");
        assert!(refusal.help.is_some());
    }
    assert_eq!(routed(&room), "still here");
    assert_eq!(room.stats().refused, 6);
}

#[test]
fn every_prefix_of_a_component_is_an_error_and_never_a_panic() {
    let whole = guests::router("x");
    let shape = crate::inspect::inspect(&whole).unwrap();
    let mut accepted = 0;
    for len in 0..whole.len() {
        let cut = crate::inspect::inspect(&whole[..len])
            .and_then(|cut| crate::inspect::check_exports(&cut, None).map(|_| cut));
        // What follows the last export are names for debuggers: without them the
        // component is still whole.
        if let Ok(cut) = cut {
            assert_eq!(cut, shape, "{len} of {} bytes", whole.len());
            accepted += 1;
        }
    }
    assert!(accepted <= 2, "{accepted} prefixes pass for the whole");
}

#[test]
fn flipped_bits_are_refused_or_harmless_and_never_a_panic() {
    let room = room();
    let whole = guests::router("x");
    // Every byte is too slow with the compiler behind it; a stride that is coprime to
    // the layout visits all sections.
    for at in (0..whole.len()).step_by(97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        let _ = room.check(&offer("flip", bytes));
    }
    room.put(offer("good", whole)).unwrap();
    assert_eq!(routed(&room), "x");
}

#[test]
fn features_beyond_the_list_are_refused_by_name() {
    let wat = r#"(component (core module (memory 1 1 shared)))"#;
    let refusal = refused(&room(), offer("t", wat::parse_str(wat).unwrap()));
    assert_eq!(refusal.stage, Stage::Features, "{refusal}");
    let wat = r#"(component (core module (memory i64 1)))"#;
    let refusal = refused(&room(), offer("m", wat::parse_str(wat).unwrap()));
    assert_eq!(refusal.stage, Stage::Features, "{refusal}");
}

const MODELS: &str =
    r#"(import "homeostat:policy/models@0.1.0" "names" (func $names (param i32)))"#;

#[test]
fn a_power_that_was_not_granted_is_refused_by_name_with_the_line_to_write() {
    let room = room();
    let guest = guests::classifier_when(7, MODELS, "", "(call $names (i32.const 4096))");
    let refusal = refused(&room, offer("m", guest.clone()));
    assert_eq!(refusal.stage, Stage::Imports);
    assert!(refusal.text.contains("homeostat:policy/models@0.1.0"));
    let help = refusal.help.unwrap();
    assert!(help.contains(r#"grants = ["models"]"#) && help.contains("[policies.classify]"));
    let report = room.put(granted("m", guest, &[Grant::Models])).unwrap();
    assert!(report.unused_grants.is_empty());
    assert!(is_component(&classify(&room, 7)));
}

#[test]
fn a_denying_stub_answers_denied_and_never_traps() {
    // names() -> result<list<string>, error>: at 4096 the case, at 4100 the error's case.
    let ask = "(call $names (i32.const 4096))
        (if (i32.or (i32.ne (i32.load8_u (i32.const 4096)) (i32.const 1))
                    (i32.ne (i32.load8_u (i32.const 4100)) (i32.const 0)))
          (then unreachable))";
    let guest = guests::classifier_when(7, MODELS, "", ask);
    let room = room();
    let mut stubbed = offer("m", guest);
    stubbed.options.deny = Some(Deny::Stub);
    room.put(stubbed).unwrap();
    let reply = classify(&room, 7);
    assert!(is_component(&reply), "{:?}", reply.fault);
}

#[test]
fn unknown_and_forbidden_imports_and_other_drafts_are_refused_by_name() {
    let with_import = |import: &str| {
        let wat = format!(
            r#"(component (import "{import}" (instance))
                 (instance $i) (export "homeostat:policy/router@0.1.0" (instance $i)))"#
        );
        refused(&room(), offer("i", wat::parse_str(wat).unwrap()))
    };
    for (import, word) in [
        ("wasi:http/types@0.2.3", "network"),
        ("wasi:sockets/tcp@0.2.3", "network"),
        ("wasi:nn/tensor@0.2.0", "does not have"),
        ("wasi:cli/environment@0.3.0", "does not have"),
        ("some:body/else@1.0.0", "does not know"),
        ("homeostat:policy/gpu@0.1.0", "does not know"),
        (
            "wasi:keyvalue/store@0.2.0-draft2",
            "wasi:keyvalue/store@0.2.0-draft",
        ),
        ("wasi:config/store@0.2.0", "wasi:config/store@0.2.0-rc.1"),
    ] {
        let refusal = with_import(import);
        assert_eq!(refusal.stage, Stage::Imports, "{refusal}");
        assert!(
            refusal.text.contains(import) && refusal.text.contains(word),
            "{refusal}"
        );
    }
    let refusal = with_import("homeostat:policy/telemetry@0.2.0");
    assert_eq!(refusal.stage, Stage::World);
    assert!(refusal.text.contains("0.2.0") && refusal.text.contains("0.1.0"));
}

#[test]
fn another_version_of_the_contract_is_refused_with_both_versions() {
    let wat = r#"(component (instance $i) (export "homeostat:policy/router@0.2.0" (instance $i)))"#;
    let refusal = refused(&room(), offer("v", wat::parse_str(wat).unwrap()));
    assert_eq!(refusal.stage, Stage::World);
    assert!(
        refusal.text.contains("0.2.0") && refusal.text.contains("0.1.0"),
        "{refusal}"
    );
    let wat = r#"(component (instance $i) (export "homeostat:policy/router@0.1.0" (instance $i)))"#;
    let refusal = refused(&room(), offer("e", wat::parse_str(wat).unwrap()));
    assert_eq!(refusal.stage, Stage::World);
    assert!(refusal.text.contains("route"), "{refusal}");
}

#[test]
fn a_hook_that_is_not_exported_is_refused_with_what_is() {
    let mut wrong = offer("r", guests::router("r"));
    wrong.hooks = Some(vec![Hook::Validate]);
    let refusal = refused(&room(), wrong);
    assert_eq!(refusal.stage, Stage::World);
    assert!(refusal.text.contains("validate") && refusal.text.contains("router"));
    let nothing = wat::parse_str("(component)").unwrap();
    assert!(
        refused(&room(), offer("n", nothing))
            .text
            .contains("nothing")
    );
}

/// A copy of the contract in which `from` stands as `to`.
pub(crate) fn changed_contract(from: &str, to: &str) -> tempfile::TempDir {
    fn copy(from: &std::path::Path, to: &std::path::Path, change: &dyn Fn(String) -> String) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let target = to.join(path.file_name().unwrap());
            if path.is_dir() {
                copy(&path, &target, change);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                std::fs::write(target, change(text)).unwrap();
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let wit = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit");
    copy(&wit, dir.path(), &|text| text.replace(from, to));
    dir
}

#[test]
fn types_that_differ_are_found_before_the_first_request() {
    let text = guests::classifier_text("", "", "");
    for (from, to) in [
        (
            "        brainstorming,",
            "        brainstorming,\n        daydreaming,",
        ),
        ("        p-simple: f32,", "        p-simple: f64,"),
        (
            "        cut-bytes: u64,",
            "        cut-bytes: u64,\n        more: u8,",
        ),
    ] {
        let wit = changed_contract(from, to);
        let guest = guests::component_of(wit.path(), "classify-policy", &text);
        let refusal = refused(&room(), offer("t", guest));
        assert_eq!(refusal.stage, Stage::World, "{from}: {refusal}");
        assert!(refusal.help.unwrap().contains("wit/"));
    }
}

#[test]
fn a_loop_in_initialisation_is_refused_at_instantiation() {
    let text = guests::classifier_text("", "(func $s (loop $l (br $l))) (start $s)", "");
    let room = room();
    let refusal = refused(
        &room,
        offer("s", guests::component("classify-policy", &text)),
    );
    assert_eq!(refusal.stage, Stage::Instantiate, "{refusal}");
    assert!(refusal.text.contains("deadline"), "{refusal}");
    assert_eq!(classify(&room, 7).by, AnsweredBy::BuiltIn);
}

#[test]
fn a_policy_that_fails_a_probe_is_refused_with_its_name() {
    // Empty messages: request.messages has its length at offset 24.
    let text = guests::classifier_text("", "", "");
    let text = text.replace(
        "(param i32) (result i32)\n    (if (i32.eq",
        "(param i32) (result i32)\n    (if (i32.eqz (i32.load offset=24 (local.get 0))) (then unreachable))\n    (if (i32.eq",
    );
    let refusal = refused(
        &room(),
        offer("p", guests::component("classify-policy", &text)),
    );
    assert_eq!(refusal.stage, Stage::Probe, "{refusal}");
    assert!(refusal.text.contains("empty-messages"), "{refusal}");
}

#[test]
fn what_it_declares_must_fit_the_limits() {
    let text = guests::classifier_text("", "(memory $big 2000)", "");
    let refusal = refused(
        &room(),
        offer("b", guests::component("classify-policy", &text)),
    );
    assert_eq!(refusal.stage, Stage::Resources, "{refusal}");
    let text = guests::classifier_text("", "(table 100000 funcref)", "");
    let refusal = refused(
        &room(),
        offer("t", guests::component("classify-policy", &text)),
    );
    assert_eq!(refusal.stage, Stage::Resources, "{refusal}");
    let small = RoomConfig {
        max_component_bytes: 100,
        ..RoomConfig::default()
    };
    let refusal = refused(&room_with(small), offer("r", guests::router("r")));
    assert_eq!(refusal.stage, Stage::Read);
}

#[test]
fn limits_of_one_policy_win_over_the_rooms() {
    let grow = "(call $grow_or_die (i32.const 8388608))";
    let guest = guests::classifier_when(7, "", "", grow);
    let room = room();
    room.put(offer("free", guest.clone())).unwrap();
    assert!(is_component(&classify(&room, 7)));
    let mut tight = offer("tight", guest);
    tight.options.limits = LimitChanges {
        memory_bytes: Some(1 << 20),
        ..LimitChanges::default()
    };
    room.put(tight).unwrap();
    assert_eq!(classify(&room, 7).fault.unwrap().kind, FaultKind::Memory);
}

// ---- state and settings ----------------------------------------------------------------

const KEYVALUE: &str = r#"
  (import "wasi:keyvalue/store@0.2.0-draft" "open" (func $open (param i32 i32 i32)))
  (import "wasi:keyvalue/atomics@0.2.0-draft" "increment"
    (func $increment (param i32 i32 i32 i64 i32)))"#;

const COUNT: &str = r#"(call $open (i32.const 0) (i32.const 0) (i32.const 4096))
        (if (i32.load8_u (i32.const 4096)) (then unreachable))
        (call $increment (i32.load (i32.const 4100)) (i32.const 3000) (i32.const 1)
          (i64.const 1) (i32.const 4128))
        (if (i32.load8_u (i32.const 4128)) (then unreachable))
        (drop (call $good))
        (f32.store (i32.const 1052)
          (f32.div (f32.convert_i64_u (i64.load (i32.const 4136))) (f32.const 10000)))
        (return (i32.const 1024))"#;

/// Counts its calls in the host's state; the confidence is 0.0001 x the count.
pub(crate) fn counting() -> Vec<u8> {
    guests::classifier(KEYVALUE, r#"(data (i32.const 3000) "n")"#, COUNT)
}

/// What [`counting`] has counted, this call included.
fn count(room: &PolicyRoom) -> u32 {
    let reply = classify(room, 7);
    assert!(is_component(&reply), "{:?}", reply.fault);
    (reply.value.confidence * 10_000.0).round() as u32
}

/// A room whose policies keep their state in this folder.
fn room_that_keeps(state: &std::path::Path) -> PolicyRoom {
    room_with(RoomConfig {
        state_dir: Some(state.to_path_buf()),
        ..RoomConfig::default()
    })
}

#[test]
fn state_belongs_to_the_policy_and_outlives_instances_swaps_and_the_room() {
    let dir = tempfile::tempdir().unwrap();
    let put = |room: &PolicyRoom, name: &str| {
        room.put(granted(name, counting(), &[Grant::Keyvalue]))
            .unwrap();
    };
    let room = room_that_keeps(dir.path());
    put(&room, "a");
    assert_eq!((count(&room), count(&room)), (1, 2));
    put(&room, "a");
    assert_eq!(count(&room), 3, "over a swap");
    put(&room, "b");
    assert_eq!(count(&room), 1, "another policy has its own");
    drop(room);
    let room = room_that_keeps(dir.path());
    put(&room, "a");
    assert_eq!(count(&room), 4, "over a restart");
}

// ---- swapping --------------------------------------------------------------------------

#[test]
fn a_request_in_flight_finishes_on_its_generation() {
    let room = room();
    room.put(offer("a", guests::router("a"))).unwrap();
    let mut session = begin(&room, 7);
    room.put(offer("b", guests::router("b"))).unwrap();
    let reply = session.route(&Classification::default(), &tiers());
    assert!(matches!(&reply.by, AnsweredBy::Component { name, generation: 1, .. } if name == "a"));
    assert_eq!(routed(&room), "b");
}

#[test]
fn rollback_walks_back_through_what_is_kept_and_unload_leaves_the_built_in() {
    let room = room();
    for text in ["a", "b", "c", "d", "e"] {
        room.put(offer(text, guests::router(text))).unwrap();
    }
    assert_eq!(room.status()[1].kept.len(), 3);
    for text in ["d", "c", "b"] {
        let status = room.rollback(Hook::Route).unwrap();
        assert_eq!(status.active.unwrap().policy, text);
        assert_eq!(routed(&room), text);
    }
    assert!(room.rollback(Hook::Route).is_err());
    assert_eq!(routed(&room), "b");
    assert_eq!(room.unload(Hook::Route).active, None);
    let reply = begin(&room, 7).route(&Classification::default(), &tiers());
    assert_eq!(reply.by, AnsweredBy::BuiltIn);
    room.rollback(Hook::Route).unwrap();
    assert_eq!(routed(&room), "b");
}

#[test]
fn a_refused_component_leaves_the_running_one_and_status_shows_both() {
    let room = room();
    room.put(offer("good", guests::router("good"))).unwrap();
    let mut bad = offer("bad", b"junk".to_vec());
    bad.hooks = Some(vec![Hook::Route]);
    refused(&room, bad);
    let status = &room.status()[1];
    assert_eq!(status.active.as_ref().unwrap().policy, "good");
    let attempt = status.last_attempt.as_ref().unwrap();
    assert_eq!((attempt.policy.as_str(), attempt.accepted), ("bad", false));
    assert!(attempt.text.contains("not WebAssembly"));
    assert_eq!(routed(&room), "good");
}

#[test]
fn of_two_components_that_come_while_one_is_admitted_the_newer_wins() {
    let room = Arc::new(room());
    let busy = room.hold_admission();
    let put = |text: &'static str| {
        let room = Arc::clone(&room);
        std::thread::spawn(move || {
            let mut offer = offer(text, guests::router(text));
            offer.hooks = Some(vec![Hook::Route]);
            room.put(offer)
        })
    };
    let waiting = |n| {
        while room.newest_ticket(Hook::Route) < n {
            std::thread::yield_now();
        }
    };
    let older = put("older");
    waiting(1);
    let newer = put("newer");
    waiting(2);
    drop(busy);
    assert_eq!(older.join().unwrap().unwrap_err().stage, Stage::Superseded);
    assert!(newer.join().unwrap().is_ok());
    assert_eq!(routed(&room), "newer");
}

#[test]
fn what_somebody_does_while_a_component_is_admitted_is_not_undone_by_it() {
    type Deed = fn(&PolicyRoom);
    let deeds: [(&str, Deed); 3] = [
        ("a", |room| drop(room.rollback(Hook::Route).unwrap())),
        ("", |room| drop(room.unload(Hook::Route))),
        ("tried", |room| {
            drop(room.promote_trial(Hook::Route, TrialMode::Shadow).unwrap());
        }),
    ];
    for (serves, deed) in deeds {
        let room = Arc::new(room());
        room.put(offer("a", guests::router("a"))).unwrap();
        room.put(offer("b", guests::router("b"))).unwrap();
        room.start_shadow(Hook::Route, offer("tried", guests::router("tried")))
            .unwrap();
        let busy = room.hold_admission();
        let begun = room.tickets();
        let put = {
            let room = Arc::clone(&room);
            std::thread::spawn(move || room.put(offer("all", guests::all_hooks())))
        };
        while room.tickets() == begun {
            std::thread::yield_now();
        }
        deed(&room);
        drop(busy);
        let report = put.join().unwrap().unwrap();
        assert_eq!(report.hooks, [Hook::Classify, Hook::Validate], "{serves}");
        assert_eq!(report.generations.len(), 2);
        let said = |w: &String| w.contains("does not serve route");
        assert!(report.warnings.iter().any(said), "{:?}", report.warnings);
        let active = room.status()[1].active.clone();
        assert_eq!(active.map_or(String::new(), |g| g.policy), serves);
        // Who comes later is not late.
        put_one(&room, "later");
        assert_eq!(routed(&room), "later");
    }
}

#[test]
fn a_component_whose_only_hook_was_changed_meanwhile_is_superseded() {
    let room = Arc::new(room());
    put_one(&room, "a");
    let busy = room.hold_admission();
    let begun = room.tickets();
    let put = {
        let room = Arc::clone(&room);
        std::thread::spawn(move || room.put(offer("b", guests::router("b"))))
    };
    while room.tickets() == begun {
        std::thread::yield_now();
    }
    room.unload(Hook::Route);
    drop(busy);
    assert_eq!(put.join().unwrap().unwrap_err().stage, Stage::Superseded);
    assert_eq!(room.status()[1].active, None);
}

fn put_one(room: &PolicyRoom, text: &str) {
    room.put(offer(text, guests::router(text))).unwrap();
}

#[test]
fn swaps_under_load_lose_no_request() {
    let room = Arc::new(room());
    room.put(offer("a", guests::router("a"))).unwrap();
    room.put(offer("b", guests::router("b"))).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (room, stop) = (Arc::clone(&room), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut seen = [0_u32; 2];
                while !stop.load(Ordering::Relaxed) {
                    match routed(&room).as_str() {
                        "a" => seen[0] += 1,
                        "b" => seen[1] += 1,
                        other => panic!("{other}"),
                    }
                }
                seen
            })
        })
        .collect();
    let policies = [
        offer("a", guests::router("a")),
        offer("b", guests::router("b")),
    ];
    for round in 0..20 {
        room.put(policies[round % 2].clone()).unwrap();
        if round % 4 == 3 {
            room.rollback(Hook::Route).unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    let seen = clients
        .into_iter()
        .map(|t| t.join().unwrap())
        .fold([0; 2], |sum, s| [sum[0] + s[0], sum[1] + s[1]]);
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
    let stats = room.stats();
    assert_eq!(stats.hooks["route"].fallbacks, 0);
    assert_eq!(stats.instances, 0);
    assert_eq!(stats.swaps.count, 2 + 20 + 5);
}

// ---- the folder ------------------------------------------------------------------------

struct Folder {
    dir: tempfile::TempDir,
    room: PolicyRoom,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let room = room_with(RoomConfig {
            dir: Some(dir.path().to_path_buf()),
            poll_ms: 10,
            instances: 8,
            ..RoomConfig::default()
        });
        room.embed(offer("default", guests::router("default")))
            .unwrap();
        Self { dir, room }
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.dir.path().join(name), bytes).unwrap();
    }

    /// Waits until the room is as wanted; only a hang fails by time.
    fn until(&self, what: &str, wanted: impl Fn(&PolicyRoom) -> bool) {
        for _ in 0..6000 {
            if wanted(&self.room) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("never {what}: {:?}", self.room.status());
    }

    fn until_routed(&self, text: &str) {
        self.until(text, |room| routed(room) == text);
    }
}

#[test]
fn files_load_swap_and_leave_and_the_embedded_policy_comes_back() {
    let folder = Folder::new();
    folder.write("route.wasm", &guests::router("first"));
    folder.room.watch();
    assert_eq!(
        routed(&folder.room),
        "first",
        "what is there at start serves at once"
    );
    folder.write("route.wasm", &guests::router("second"));
    folder.until_routed("second");
    folder.write("route-mine.wasm", &guests::router("mine"));
    folder.until_routed("mine");
    folder.write("notes.wasm", b"not a hook's file");
    std::fs::remove_file(folder.dir.path().join("route-mine.wasm")).unwrap();
    folder.until_routed("second");
    std::fs::remove_file(folder.dir.path().join("route.wasm")).unwrap();
    folder.until_routed("default");
}

#[test]
fn removing_a_file_leaves_what_was_put_by_hand_since() {
    let folder = Folder::new();
    folder.write("route.wasm", &guests::router("file"));
    folder.room.watch();
    folder
        .room
        .put(offer("hand", guests::router("by hand")))
        .unwrap();
    std::fs::remove_file(folder.dir.path().join("route.wasm")).unwrap();
    // A later change of the folder is seen after the removal was.
    folder.write("classify.wasm", &guests::classifier("", "", ""));
    folder.until("seen", |room| is_component(&classify(room, 7)));
    assert_eq!(routed(&folder.room), "by hand");
}

#[test]
fn a_file_copied_again_takes_over_from_what_was_put_by_hand() {
    let folder = Folder::new();
    let file = guests::router("file");
    folder.write("route.wasm", &file);
    folder.room.watch();
    let by_hand = offer("hand", guests::router("by hand"));
    folder.room.put(by_hand).unwrap();
    assert_eq!(routed(&folder.room), "by hand");
    // The same bytes as before: only the time of the file tells that it is meant.
    folder.write("route.wasm", &file);
    folder.until_routed("file");
    folder.write("route-other.wasm", &guests::router("other"));
    folder.until_routed("other");
    folder.write("route.wasm", &file);
    folder.until_routed("file");
}

#[test]
fn a_copy_in_progress_is_not_a_broken_policy_and_a_broken_one_changes_nothing() {
    let folder = Folder::new();
    folder.room.watch();
    let whole = guests::router("whole");
    folder.write("route.wasm", &whole[..whole.len() / 2]);
    folder.until("told", |room| {
        room.status()[1]
            .last_attempt
            .as_ref()
            .is_some_and(|a| !a.accepted)
    });
    assert_eq!(routed(&folder.room), "default");
    folder.write("route.wasm", &whole);
    folder.until_routed("whole");
}

#[test]
fn a_name_that_no_manifest_could_have_is_refused_from_everywhere() {
    let room = room();
    for name in ["", "a b", "a/b", "größe", "a\nb"] {
        let refusal = refused(&room, offer(name, guests::router("x")));
        assert_eq!(refusal.stage, Stage::Options, "{name:?}");
        assert!(refusal.text.contains("1 to 64 letters"), "{refusal}");
    }
}

#[test]
fn what_is_of_one_component_is_refused_in_the_table_of_a_hook() {
    for text in [
        "hooks = [\"route\"]",
        "[compose]\nmode = \"vote\"\nmembers = [\"b.wasm\"]",
    ] {
        let config = RoomConfig {
            route: crate::parse_options(text).unwrap(),
            ..RoomConfig::default()
        };
        let refused = PolicyRoom::new(config, Arc::new(FakeModels)).err();
        let text = refused.unwrap().to_string();
        assert!(
            text.starts_with("policies.route: hooks and compose"),
            "{text}"
        );
    }
}

#[test]
fn options_beside_a_component_are_read_and_unknown_keys_are_refused() {
    let folder = Folder::new();
    folder.room.watch();
    folder.write("classify-count.toml", b"grants = [\"keyvalue\"]\n");
    folder.write("classify-count.wasm", &counting());
    folder.until("counting", |room| is_component(&classify(room, 7)));
    folder.write("classify-count.toml", b"grant = [\"keyvalue\"]\n");
    folder.until("told", |room| {
        room.status()[0]
            .last_attempt
            .as_ref()
            .is_some_and(|a| a.text.contains("unknown field `grant`"))
    });
    assert!(is_component(&classify(&folder.room, 7)));
}

#[cfg(unix)]
#[test]
fn the_end_does_not_wait_for_a_component_that_is_being_admitted() {
    let folder = Folder::new();
    folder.room.watch();
    let busy = folder.room.hold_admission();
    let before = folder.room.newest_ticket(Hook::Route);
    folder.write("route.wasm", &guests::router("late"));
    while folder.room.newest_ticket(Hook::Route) == before {
        std::thread::yield_now();
    }
    // It stands before the admission, which does not end.
    folder.room.end_watch();
    assert_eq!(routed(&folder.room), "default");
    drop(busy);
}

#[cfg(unix)]
#[test]
fn a_pipe_where_a_text_should_be_keeps_nobody_waiting() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let folder = Folder::new();
    folder.room.watch();
    for name in ["route.toml", "route.sig", "route.policy.toml"] {
        let pipe = folder.dir.path().join(name);
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        folder.write("route.wasm", &guests::router(name));
        folder.until("refused", |room| {
            let attempt = room.status()[1].last_attempt.clone();
            attempt.is_some_and(|a| !a.accepted && a.text.contains("no regular file"))
        });
        std::fs::remove_file(&pipe).unwrap();
        folder.until_routed(name);
    }
}

#[test]
fn a_link_that_is_pointed_elsewhere_is_a_swap_and_a_lost_folder_changes_nothing() {
    let folder = Folder::new();
    let store = tempfile::tempdir().unwrap();
    for text in ["one", "two"] {
        std::fs::write(store.path().join(text), guests::router(text)).unwrap();
    }
    let link = folder.dir.path().join("route.wasm");
    std::os::unix::fs::symlink(store.path().join("one"), &link).unwrap();
    folder.room.watch();
    folder.until_routed("one");
    let fresh = folder.dir.path().join("new");
    std::os::unix::fs::symlink(store.path().join("two"), &fresh).unwrap();
    std::fs::rename(&fresh, &link).unwrap();
    folder.until_routed("two");

    let aside = store.path().join("aside");
    std::fs::rename(folder.dir.path(), &aside).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(routed(&folder.room), "two");
    std::fs::rename(&aside, folder.dir.path()).unwrap();
}
