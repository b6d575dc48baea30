//! A policy whose state has another form than the one before it.

use super::*;

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
    room.check(&granted("p", migrating(1), &[Grant::Keyvalue]))
        .unwrap();
    assert_eq!(room.state_status().iter().map(|s| s.keys).max(), Some(1));
    assert_eq!(room.state_status()[1].keys, 0);
    let refusal = room
        .put(granted("p", migrating(0), &[Grant::Keyvalue]))
        .unwrap_err();
    assert_eq!(refusal.stage, Stage::Migrate, "{refusal}");
}
