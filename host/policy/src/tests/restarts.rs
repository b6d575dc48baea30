//! What a host finds again after it has ended, and engines that know nothing of each other.

use super::*;
use crate::{CanaryChanges, NothingKept};

/// Two folders that outlive rooms: policies and state.
struct Lives {
    dir: tempfile::TempDir,
}

impl Lives {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("policies")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// As the server starts: recall, embed, watch.
    fn begin(&self) -> PolicyRoom {
        let room = room_with(RoomConfig {
            dir: Some(self.path("policies")),
            state_dir: Some(self.path("state")),
            poll_ms: 10,
            instances: 8,
            ..RoomConfig::default()
        });
        room.recall();
        room.embed(offer("default", guests::router("default")))
            .unwrap();
        room.resume_trials();
        room.watch();
        room
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path("policies/route.wasm"), guests::router(text)).unwrap();
    }
}

fn put_router(room: &PolicyRoom, text: &str) {
    room.put(offer(text, guests::router(text))).unwrap();
}

/// Who serves `route` and who did: name, number, digest.
fn history(room: &PolicyRoom) -> Vec<(String, u64, String)> {
    let slot = &room.status()[1];
    let all = slot.active.iter().chain(&slot.kept);
    all.map(|g| (g.policy.clone(), g.generation, g.digest.clone()))
        .collect()
}

fn generation(room: &PolicyRoom) -> u64 {
    room.status()[1].active.as_ref().unwrap().generation
}

#[test]
fn what_was_put_serves_after_a_restart_and_can_be_rolled_back_to() {
    let lives = Lives::new();
    let room = lives.begin();
    assert_eq!(routed(&room), "default");
    for text in ["one", "two", "three"] {
        put_router(&room, text);
    }
    let before = history(&room);
    drop(room);
    for _ in 0..2 {
        let room = lives.begin();
        assert_eq!(routed(&room), "three");
        assert_eq!(history(&room), before);
    }
    let room = lives.begin();
    room.rollback(Hook::Route).unwrap();
    assert_eq!(routed(&room), "two");
    drop(room);
    let room = lives.begin();
    assert_eq!(routed(&room), "two", "a rollback is remembered");
    room.rollback(Hook::Route).unwrap();
    room.rollback(Hook::Route).unwrap();
    assert_eq!(
        routed(&room),
        "default",
        "what came with the host was kept as well"
    );
    assert!(room.rollback(Hook::Route).is_err());
    let stored = std::fs::read_dir(lives.path("state/sha256"))
        .unwrap()
        .count();
    assert!(stored <= 3, "{stored} components are stored");
}

#[test]
fn a_swap_that_a_restart_will_not_know_says_so() {
    let lives = Lives::new();
    let room = lives.begin();
    put_router(&room, "one");
    // The disk takes components and no record.
    let in_the_way = lives.path("state/active.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let report = room.put(offer("two", guests::router("two"))).unwrap();
    let told = |text: &str| text.contains("a restart begins with what was active before");
    assert!(report.warnings.iter().any(|w| told(w)), "{report:?}");
    assert_eq!(routed(&room), "two");
    let attempt = |status: crate::SlotStatus| status.last_attempt.unwrap().text;
    let text = attempt(room.rollback(Hook::Route).unwrap());
    assert!(text.contains("rolled back") && told(&text), "{text}");
    let text = attempt(room.unload(Hook::Route));
    assert!(text.contains("unloaded") && told(&text), "{text}");
    room.put(offer("three", guests::router("three"))).unwrap();
    drop(room);
    std::fs::remove_dir(&in_the_way).unwrap();
    let room = lives.begin();
    assert_eq!(routed(&room), "one", "what the record names is still there");
}

#[test]
fn a_kept_generation_that_cannot_serve_now_stays_kept_and_says_why() {
    let lives = Lives::new();
    let room = lives.begin();
    for text in ["one", "two", "three"] {
        put_router(&room, text);
    }
    let before = history(&room);
    drop(room);
    let room = lives.begin();
    let (_, number, digest) = before[1].clone();
    let component = lives.path("state/sha256").join(digest);
    // A disk that fails for a while.
    let away = component.with_extension("away");
    std::fs::rename(&component, &away).unwrap();
    for to in [None, Some(number)] {
        let refused = match to {
            None => room.rollback(Hook::Route),
            Some(number) => room.rollback_to(Hook::Route, number),
        };
        match refused.unwrap_err() {
            NothingKept::CannotServe {
                generation, why, ..
            } => {
                assert_eq!(generation, number);
                assert!(why.contains("stored component"), "{why}");
            }
            other => panic!("{other}"),
        }
        assert_eq!(history(&room), before, "it is kept as it was");
    }
    std::fs::rename(&away, &component).unwrap();
    room.rollback(Hook::Route).unwrap();
    assert_eq!(routed(&room), "two");
}

#[test]
fn a_rollback_over_a_restart_waits_for_the_put_that_would_forget_its_component() {
    let lives = Lives::new();
    let room = lives.begin();
    put_router(&room, "one");
    put_router(&room, "two");
    drop(room);
    let room = Arc::new(lives.begin());
    let busy = room.hold_admission();
    let back = {
        let room = Arc::clone(&room);
        std::thread::spawn(move || room.rollback(Hook::Route))
    };
    let one = || history(&room).iter().any(|(name, ..)| name == "one");
    for _ in 0..1000 {
        assert!(one(), "whoever has the lock would forget its component");
        std::thread::yield_now();
    }
    drop(busy);
    back.join().unwrap().unwrap();
    assert_eq!(routed(&room), "one");
    drop(room);
    assert_eq!(routed(&lives.begin()), "one");
}

/// The trial at `route`, if one runs: how, whose, and the canary's share.
fn trial(room: &PolicyRoom) -> Option<(TrialMode, String, Option<f64>)> {
    let trial = room.trial(Hook::Route).filter(|t| t.ended.is_none())?;
    let share = trial.canary.map(|canary| canary.share);
    Some((trial.mode, trial.policy, share))
}

#[test]
fn a_trial_goes_on_after_a_restart_against_the_policy_that_it_was_measured_against() {
    let lives = Lives::new();
    let room = lives.begin();
    put_router(&room, "one");
    let candidate = offer("candidate", guests::router("candidate"));
    room.start_shadow(Hook::Route, candidate).unwrap();
    drop(room);
    for _ in 0..2 {
        let room = lives.begin();
        assert_eq!(routed(&room), "one");
        let shadow = Some((TrialMode::Shadow, "candidate".into(), None));
        assert_eq!(trial(&room), shadow);
    }
    let room = lives.begin();
    let changes = CanaryChanges {
        share: Some(0.25),
        ..CanaryChanges::default()
    };
    room.start_canary(Hook::Route, None, changes).unwrap();
    drop(room);
    let room = lives.begin();
    let canary = Some((TrialMode::Canary, "candidate".into(), Some(0.25)));
    assert_eq!(trial(&room), canary);
    room.promote_trial(Hook::Route, TrialMode::Canary).unwrap();
    drop(room);
    let room = lives.begin();
    assert_eq!((routed(&room), trial(&room)), ("candidate".into(), None));
}

#[test]
fn no_number_is_given_twice_and_a_canary_keeps_its_own_over_restarts() {
    let lives = Lives::new();
    let room = lives.begin();
    put_router(&room, "one");
    let canary = |room: &PolicyRoom| {
        let candidate = offer("candidate", guests::router("candidate"));
        let started = room.start_canary(Hook::Route, Some(candidate), CanaryChanges::default());
        started.unwrap().canary.unwrap().generation
    };
    let (active, first) = (generation(&room), canary(&room));
    room.stop_trial(Hook::Route, TrialMode::Canary).unwrap();
    let second = canary(&room);
    assert!(active < first && first < second);
    drop(room);
    for _ in 0..2 {
        let room = lives.begin();
        let status = room.trial(Hook::Route).unwrap();
        assert_eq!(status.canary.unwrap().generation, second);
        assert_eq!(generation(&room), active);
    }
    let room = lives.begin();
    room.stop_trial(Hook::Route, TrialMode::Canary).unwrap();
    drop(room);
    let room = lives.begin();
    assert_eq!(generation(&room), active);
    put_router(&room, "two");
    assert!(generation(&room) > second, "{} again", generation(&room));
}

#[test]
fn a_trial_does_not_go_on_against_another_policy_or_with_changed_bytes() {
    let lives = Lives::new();
    let room = lives.begin();
    let start = |room: &PolicyRoom| {
        let candidate = offer("candidate", guests::router("candidate"));
        room.start_shadow(Hook::Route, candidate).unwrap().digest
    };
    start(&room);
    drop(room);
    lives.write("newer");
    let room = lives.begin();
    assert_eq!((routed(&room), trial(&room)), ("newer".into(), None));
    let digest = start(&room);
    drop(room);
    let path = lives.path("state/sha256").join(&digest);
    std::fs::write(&path, guests::router("evil")).unwrap();
    let room = lives.begin();
    assert_eq!((routed(&room), trial(&room)), ("newer".into(), None));
    let attempt = room.status()[1].last_attempt.clone().unwrap();
    assert!(
        attempt.text.contains("shadow does not go on"),
        "{attempt:?}"
    );
    drop(room);
    assert_eq!(routed(&lives.begin()), "newer");
}

#[test]
fn what_was_taken_away_stays_away_until_somebody_puts_again() {
    let lives = Lives::new();
    let room = lives.begin();
    put_router(&room, "one");
    room.unload(Hook::Route);
    drop(room);
    let room = lives.begin();
    assert_eq!(room.status()[1].active, None);
    room.rollback(Hook::Route).unwrap();
    assert_eq!(routed(&room), "one");
}

#[test]
fn a_file_that_has_not_changed_leaves_what_was_put_and_one_that_has_takes_over() {
    let lives = Lives::new();
    lives.write("file");
    let room = lives.begin();
    assert_eq!(routed(&room), "file");
    let number = generation(&room);
    drop(room);
    let room = lives.begin();
    assert_eq!((routed(&room), generation(&room)), ("file".into(), number));
    put_router(&room, "by-hand");
    drop(room);
    assert_eq!(routed(&lives.begin()), "by-hand");
    lives.write("newer");
    let room = lives.begin();
    assert_eq!(routed(&room), "newer", "it changed while no host ran");
    drop(room);
    std::fs::remove_file(lives.path("policies/route.wasm")).unwrap();
    assert_eq!(
        routed(&lives.begin()),
        "default",
        "removed while no host ran"
    );
}

#[test]
fn a_file_that_was_broken_meanwhile_leaves_the_last_good_one() {
    let lives = Lives::new();
    lives.write("good");
    drop(lives.begin());
    std::fs::write(lives.path("policies/route.wasm"), b"\0asm garbage").unwrap();
    for _ in 0..2 {
        let room = lives.begin();
        assert_eq!(routed(&room), "good");
        let attempt = room.status()[1].last_attempt.clone().unwrap();
        assert!(!attempt.accepted, "{attempt:?}");
    }
}

#[test]
fn a_stored_component_that_was_changed_is_never_compiled_and_the_one_before_serves() {
    let lives = Lives::new();
    let room = lives.begin();
    put_router(&room, "one");
    put_router(&room, "two");
    let digest = room.status()[1].active.as_ref().unwrap().digest.clone();
    drop(room);
    let path = lives.path("state/sha256").join(&digest);
    std::fs::write(&path, guests::router("evil")).unwrap();
    let room = lives.begin();
    assert_eq!(routed(&room), "one");
    let attempt = room.status()[1].last_attempt.clone().unwrap();
    assert!(attempt.text.contains("set aside"), "{attempt:?}");
    assert!(path.with_extension("damaged").exists());
}

#[test]
fn one_policy_at_several_hooks_is_recalled_as_one() {
    let lives = Lives::new();
    let room = lives.begin();
    room.put(offer("all", guests::all_hooks())).unwrap();
    drop(room);
    let room = lives.begin();
    let mut session = begin(&room, 7);
    session.classify();
    assert_eq!(room.stats().instances, 1, "kept for the later hooks");
    assert_eq!(routed(&room), "all");
}

#[test]
fn a_second_host_on_the_folder_serves_and_writes_nothing() {
    let lives = Lives::new();
    let first = lives.begin();
    put_router(&first, "one");
    let second = lives.begin();
    assert_eq!(routed(&second), "default");
    put_router(&second, "two");
    drop((first, second));
    assert_eq!(routed(&lives.begin()), "one");
}

#[test]
fn a_policy_of_another_engine_is_an_error_and_nothing_worse() {
    use crate::engine::Engines;
    use crate::host::linker;
    use wasmtime::component::Component;

    let engine = |pooling| {
        let config = RoomConfig {
            pooling,
            instances: 1,
            ..RoomConfig::default()
        };
        Engines::new(&config).unwrap().first().engine.clone()
    };
    let (one, two) = (engine(true), engine(false));
    let component = Component::from_binary(&one, &guests::router("x")).unwrap();
    // Linking is the only door between a component and an engine.
    let mixed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let linker = linker(&two, false).unwrap();
        linker.instantiate_pre(&component).is_err()
    }));
    assert!(
        mixed.unwrap_or(true),
        "a component was linked to a foreign engine"
    );
    // Rooms share bytes and nothing else: each compiles for itself.
    let rooms = [
        room(),
        room_with(RoomConfig {
            pooling: false,
            ..RoomConfig::default()
        }),
    ];
    for room in &rooms {
        put_router(room, "x");
        assert_eq!(routed(room), "x");
    }
}
