//! A policy whose state has another form than the one before it.

use super::*;
use crate::{CanaryChanges, StickTo, TrialEnding};

/// [`counting`] with a state of form `version`: what it takes over is larger by 10 and the
/// older version.
fn migrating(version: u32) -> Vec<u8> {
    let wit = changed_contract(
        "world classify-policy {",
        "world migrating-classify-policy { include classify-policy; include migrating-policy; }
         @since(version = 0.1.0)
         world classify-policy {",
    );
    let migrate = format!(
        r#"(data (i32.const 3000) "n")
        (func (export "homeostat:policy/state-migration@0.1.0#version") (result i32)
          (i32.const {version}))
        (func (export "homeostat:policy/state-migration@0.1.0#migrate")
          (param $from i32) (result i32)
          (call $open (i32.const 0) (i32.const 0) (i32.const 4096))
          (call $increment (i32.load (i32.const 4100)) (i32.const 3000) (i32.const 1)
            (i64.add (i64.const 10) (i64.extend_i32_u (local.get $from))) (i32.const 4128))
          (i32.store8 (i32.const 1024) (i32.load8_u (i32.const 4128)))
          (i32.const 1024))"#
    );
    let text = guests::classifier_text(KEYVALUE, &migrate, COUNT);
    guests::component_of(wit.path(), "migrating-classify-policy", &text)
}

#[test]
fn an_upgrade_takes_over_the_state_and_a_rollback_finds_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let put = |room: &PolicyRoom, bytes: Vec<u8>| {
        room.put(granted("p", bytes, &[Grant::Keyvalue])).unwrap();
    };
    let room = room_that_keeps(dir.path());
    put(&room, counting());
    assert_eq!((count(&room), count(&room)), (1, 2));
    // From version 0: 10 more. The probes' counts are not in it.
    put(&room, migrating(1));
    assert_eq!((count(&room), count(&room)), (13, 14));
    // Put again, it goes on with its own.
    put(&room, migrating(1));
    assert_eq!(count(&room), 15);
    put(&room, migrating(5));
    assert_eq!(
        count(&room),
        15 + 10 + 1 + 1,
        "the newest older version is taken"
    );
    room.rollback(Hook::Classify).unwrap();
    room.rollback(Hook::Classify).unwrap();
    assert_eq!(count(&room), 16, "version 1 as it was left");
    room.rollback(Hook::Classify).unwrap();
    assert_eq!(count(&room), 3, "version 0 as it was left");
    drop(room);
    let room = room_that_keeps(dir.path());
    put(&room, migrating(5));
    assert_eq!(count(&room), 28, "over a restart");
}

#[test]
fn a_check_migrates_nothing() {
    let room = room();
    room.put(granted("p", counting(), &[Grant::Keyvalue]))
        .unwrap();
    classify(&room, 7);
    let before = room.export_state("p").unwrap();
    room.check(&granted("p", migrating(1), &[Grant::Keyvalue]))
        .unwrap();
    assert_eq!(room.export_state("p"), Some(before), "what serves");
    assert_eq!(room.state_status().iter().map(|s| s.keys).max(), Some(1));
    assert_eq!(room.state_status()[1].keys, 0);
    let refusal = room
        .put(granted("p", migrating(0), &[Grant::Keyvalue]))
        .unwrap_err();
    assert_eq!(refusal.stage, Stage::Migrate, "{refusal}");
}

/// Request number `n`: whether the candidate answered it, and what was counted.
fn asked(room: &PolicyRoom, n: u32) -> (bool, u32) {
    let asked = homeostat_hooks::Request {
        id: format!("{n:07}"),
        ..(*request(7)).clone()
    };
    let mut session = room.begin(Arc::new(asked), Arc::new(Snapshot::default()));
    let reply = session.classify();
    session.learn(&Outcome {
        tier: Some("small".into()),
        steps_tried: 1,
        ttft_ms: Some(20),
        ..Outcome::default()
    });
    assert!(reply.fault.is_none(), "{:?}", reply.fault);
    let candidate = matches!(reply.by, AnsweredBy::Component { candidate, .. } if candidate);
    (
        candidate,
        (reply.value.confidence * 10_000.0).round() as u32,
    )
}

fn candidate() -> Offer {
    granted("p", migrating(1), &[Grant::Keyvalue])
}

fn canary(room: &PolicyRoom, share: f64) {
    let changes = CanaryChanges {
        share: Some(share),
        stick_to: Some(StickTo::Request),
    };
    room.start_canary(Hook::Classify, Some(candidate()), changes)
        .unwrap();
}

/// Keys of version 1, and whether they are on the disk.
fn version_1(room: &PolicyRoom) -> (usize, bool) {
    let of_it = |s: &crate::StateStatus| s.version == 1;
    let status = room.state_status().into_iter().find(of_it).unwrap();
    (status.keys, status.on_disk)
}

#[test]
fn a_shadow_fills_no_state_and_takes_it_over_when_it_is_promoted() {
    let dir = tempfile::tempdir().unwrap();
    let room = room_that_keeps(dir.path());
    room.put(granted("p", counting(), &[Grant::Keyvalue]))
        .unwrap();
    assert_eq!(count(&room), 1);
    room.start_shadow(Hook::Classify, candidate()).unwrap();
    assert_eq!((count(&room), count(&room)), (2, 3));
    assert_eq!(version_1(&room).0, 0);
    room.promote_trial(Hook::Classify, TrialMode::Shadow)
        .unwrap();
    assert_eq!(version_1(&room), (1, true));
    assert_eq!(count(&room), 3 + 10 + 1, "what was counted meanwhile");
}

#[test]
fn what_a_canary_has_counted_goes_with_it_however_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let room = room_that_keeps(dir.path());
    room.put(granted("p", counting(), &[Grant::Keyvalue]))
        .unwrap();
    let mut old = count(&room);
    let mut numbers = 0..;
    for promoted in [false, true] {
        canary(&room, 0.5);
        let (old_before, mut new) = (old, old + 10);
        for n in numbers.by_ref().take(20) {
            let (candidate, counted) = asked(&room, n);
            let expected = if candidate { &mut new } else { &mut old };
            *expected += 1;
            assert_eq!(counted, *expected);
        }
        assert!(new > old_before + 10 && old > old_before, "both were asked");
        assert!(!version_1(&room).1, "in memory");
        assert_eq!(room.export_state("p").unwrap().version, 0, "what serves");
        if promoted {
            room.promote_trial(Hook::Classify, TrialMode::Canary)
                .unwrap();
        } else {
            room.stop_trial(Hook::Classify, TrialMode::Canary).unwrap();
        }
    }
    assert_eq!(count(&room), old + 10 + 1);
    drop(room);
    let room = room_that_keeps(dir.path());
    room.put(candidate()).unwrap();
    assert_eq!(count(&room), old + 10 + 2, "it goes on with its own");
}

#[test]
fn a_canary_that_promotes_itself_takes_over_what_was_counted_until_then() {
    let room = room_with(RoomConfig {
        limits: crate::Limits {
            deadline_ms: 60_000,
            ..crate::Limits::default()
        },
        canary: crate::CanaryConfig {
            slow_ms: 60_000.0,
            ..crate::CanaryConfig::default()
        },
        ..RoomConfig::default()
    });
    room.put(granted("p", counting(), &[Grant::Keyvalue]))
        .unwrap();
    count(&room);
    canary(&room, 0.25);
    let mut old = 0;
    for n in 0.. {
        let (candidate, counted) = asked(&room, n);
        let trial = room.trial(Hook::Classify).unwrap();
        if let Some(ended) = trial.ended {
            assert_eq!(ended.how, TrialEnding::Promoted, "{}", ended.reason);
            break;
        }
        if !candidate {
            old = counted;
        }
        assert!(n < 20_000, "{trial:?}");
    }
    // A few are lost that the old one has counted since its state was read; the candidate
    // itself has counted a third as many.
    let now = count(&room);
    assert!(now > old * 3 / 4, "{now}, {old} before");
}

#[test]
fn a_component_that_was_overtaken_leaves_no_state_for_the_next() {
    let room = Arc::new(room());
    room.put(granted("p", counting(), &[Grant::Keyvalue]))
        .unwrap();
    assert_eq!(count(&room), 1);
    let busy = room.hold_admission();
    let begun = room.tickets();
    let put = {
        let room = Arc::clone(&room);
        std::thread::spawn(move || room.put(candidate()))
    };
    while room.tickets() == begun {
        std::thread::yield_now();
    }
    room.unload(Hook::Classify);
    drop(busy);
    assert_eq!(put.join().unwrap().unwrap_err().stage, Stage::Superseded);
    assert_eq!(version_1(&room).0, 0);
    room.rollback(Hook::Classify).unwrap();
    assert_eq!((count(&room), count(&room)), (2, 3));
    room.put(candidate()).unwrap();
    assert_eq!(count(&room), 3 + 10 + 1);
}
