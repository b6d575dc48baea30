//! A policy that misbehaves is its own problem: requests that are served beside it, by
//! another policy or by the same one, do not notice.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use homeostat_hooks::{FaultKind, Hook, Policies};
use homeostat_policy::{LimitChanges, RoomConfig};
use homeostat_tests::scene;
use homeostat_tests::{GUESTS, text_guest};

use crate::{impatient, is_component, patient};

/// Timeouts that must have struck before a test has seen enough.
const TIMEOUTS: u64 = 20;

#[test]
fn a_policy_that_loops_does_not_disturb_the_one_beside_it() {
    let room = scene::room();
    let mut looping = scene::limited("looping", GUESTS, impatient());
    looping.hooks = Some(vec![Hook::Classify]);
    room.put(scene::limited("calm", &text_guest::telling(7), impatient()))
        .unwrap_or_else(|e| panic!("{e}"));
    room.put(looping).unwrap_or_else(|e| panic!("{e}"));

    let timeouts = AtomicU64::new(0);
    let answers = std::thread::scope(|scope| {
        let looping = [(); 2].map(|()| {
            scope.spawn(|| {
                while timeouts.load(Ordering::Relaxed) < TIMEOUTS {
                    let request = scene::asking("looping", "loops_forever");
                    let reply = room.begin(request, Default::default()).classify();
                    assert_eq!(reply.fault.map(|f| f.kind), Some(FaultKind::Deadline));
                    timeouts.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let mut answers = 0;
        while looping.iter().any(|thread| !thread.is_finished()) {
            let request = scene::asking("calm", "Hello.");
            let reply = room
                .begin(request, Default::default())
                .route(&Default::default(), &scene::tiers());
            assert!(is_component(&reply), "{reply:?}");
            assert_eq!(text_guest::told(&reply.value), Some(7));
            answers += 1;
        }
        answers
    });
    assert!(answers > 0);
    let faults = &room.stats().hooks["route"].faults;
    assert_eq!(faults.values().sum::<u64>(), 0, "{faults:?}");
}

#[test]
fn timeouts_of_others_do_not_shorten_a_long_call() {
    // The long call has two minutes; around it, others are ended after milliseconds.
    let room = scene::room();
    let mut long = scene::limited("long", GUESTS, patient());
    long.hooks = Some(vec![Hook::Route]);
    let mut looping = scene::limited("looping", GUESTS, impatient());
    looping.hooks = Some(vec![Hook::Classify]);
    for offer in [long, looping] {
        room.put(offer).unwrap_or_else(|e| panic!("{e}"));
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looping = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let request = scene::asking("looping", "loops_forever");
                let reply = room.begin(request, Default::default()).classify();
                assert_eq!(reply.fault.map(|f| f.kind), Some(FaultKind::Deadline));
            }
        });
        // The call must have been long enough for several timeouts to strike.
        let struck = || room.stats().hooks["classify"].faults["deadline"];
        while struck() < 5 && !looping.is_finished() {
            let request = scene::asking("long", "floods_the_log");
            let reply = room
                .begin(request, Default::default())
                .route(&Default::default(), &scene::tiers());
            assert!(is_component(&reply), "{reply:?}");
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn requests_of_one_policy_do_not_share_a_fate() {
    let room = scene::room();
    room.put(scene::limited("guest", GUESTS, impatient()))
        .unwrap_or_else(|e| panic!("{e}"));
    std::thread::scope(|scope| {
        let bad = ["loops_forever", "traps", "grows_memory"].map(|guest| {
            let room = &room;
            scope.spawn(move || {
                for _ in 0..8 {
                    let request = scene::asking("bad", guest);
                    let reply = room.begin(request, Default::default()).classify();
                    assert!(reply.fault.is_some(), "{guest}: {reply:?}");
                }
            })
        });
        while bad.iter().any(|thread| !thread.is_finished()) {
            let replies = scene::serve(&room, scene::asking("good", "Hello."));
            assert!(is_component(&replies.classify), "{:?}", replies.classify);
            assert!(is_component(&replies.route), "{:?}", replies.route);
            assert!(is_component(&replies.validate), "{:?}", replies.validate);
        }
    });
    assert_eq!(room.stats().instances, 0);
}

#[test]
fn more_requests_than_instances_wait_for_their_turn() {
    let room = scene::room_with(RoomConfig {
        instances: 2,
        wait_ms: 120_000,
        ..RoomConfig::default()
    });
    let limits = LimitChanges {
        deadline_ms: Some(120_000),
        ..LimitChanges::default()
    };
    room.put(scene::limited("guest", GUESTS, limits))
        .unwrap_or_else(|e| panic!("{e}"));
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let replies = scene::serve(&room, scene::asking("good", "Hello."));
                    assert!(is_component(&replies.validate), "{:?}", replies.validate);
                }
            });
        }
    });
    let stats = room.stats();
    assert_eq!((stats.instances, stats.waits_given_up), (0, 0));
}
