//! Recordings and replays, seen from the room: what was decided is decided again, bit for
//! bit, and what was not recorded is never made up.

use std::path::Path;
use std::sync::Arc;

use homeostat_hooks::{
    Answer, Classification, Hook, HookReply, Outcome, Policies, Snapshot, TierView,
};

use crate::guests::{self, FakeModels, request};
use crate::recording::{Asking, Recording};
use crate::replay::{Played, Replayer};
use crate::tests::contract_with_wasi;
use crate::{
    Candidate, Compose, Explained, Grant, Mode, Offer, PolicyOptions, PolicyRoom, RecordConfig,
    RecordLog, ReplayConfig, RoomConfig, Stage, explain,
};

fn config(dir: &Path) -> RoomConfig {
    RoomConfig {
        instances: 8,
        record: RecordConfig {
            dir: Some(dir.to_path_buf()),
            ..RecordConfig::default()
        },
        ..RoomConfig::default()
    }
}

fn room(config: RoomConfig) -> PolicyRoom {
    PolicyRoom::new(config, Arc::new(FakeModels)).expect("a room")
}

/// With every power, and one setting.
fn put(room: &PolicyRoom, name: &str, bytes: &[u8]) {
    let options = PolicyOptions {
        grants: Some(vec![Grant::Models, Grant::Keyvalue, Grant::Config]),
        settings: Some([("key".to_string(), "value".to_string())].into()),
        ..PolicyOptions::default()
    };
    let offer = Offer {
        name: name.into(),
        bytes: bytes.to_vec(),
        options,
        ..Offer::default()
    };
    room.put(offer)
        .unwrap_or_else(|refused| panic!("{name}: {refused}"));
}

fn classify(room: &PolicyRoom) -> HookReply<Classification> {
    room.begin(request(7), Arc::new(Snapshot::default()))
        .classify()
}

/// All recordings; the room is closed, so all of them are written.
fn recordings(room: PolicyRoom, dir: &Path) -> (RecordLog, Vec<Recording>) {
    drop(room);
    let log = RecordLog::open(dir).expect("a log");
    let mut all = Vec::new();
    log.each(|line| all.push(line.expect("whole lines")))
        .expect("a folder");
    (log, all)
}

fn replayer() -> Replayer {
    Replayer::new(&RoomConfig::default()).expect("an engine")
}

/// The replay has the answers, kinds of faults and host calls of the recording.
fn assert_identical(recording: &Recording, played: &[Vec<Played>]) {
    for (hook, played) in recording.hooks.iter().zip(played) {
        assert_eq!(hook.attempts.len(), played.len());
        for (then, now) in hook.attempts.iter().zip(played) {
            assert_eq!(now.miss, None);
            assert_eq!(now.answer, then.answer);
            let kind = |fault: &Option<homeostat_hooks::Fault>| fault.as_ref().map(|f| f.kind);
            assert_eq!(kind(&now.fault), kind(&then.fault), "{:?}", now.fault);
            assert_eq!(now.host_calls, then.host_calls);
            assert!(now.fuel > 0);
        }
    }
}

// ---- a guest that listens --------------------------------------------------------------

/// The contract with clocks and random numbers.
fn contract_with_clocks() -> tempfile::TempDir {
    contract_with_wasi(
        &[
            "wasi:clocks/wall-clock@0.2.3",
            "wasi:clocks/monotonic-clock@0.2.3",
            "wasi:random/random@0.2.3",
            "wasi:random/insecure-seed@0.2.3",
        ],
        &[
            (
                "clocks",
                "package wasi:clocks@0.2.3;
                 interface wall-clock {
                     record datetime { seconds: u64, nanoseconds: u32 }
                     now: func() -> datetime;
                 }
                 interface monotonic-clock { now: func() -> u64; }",
            ),
            (
                "random",
                "package wasi:random@0.2.3;
                 interface random { get-random-u64: func() -> u64; }
                 interface insecure-seed { insecure-seed: func() -> tuple<u64, u64>; }",
            ),
        ],
    )
}

/// One way to ask the host: what is imported, and what is done with it. Everything learned
/// goes through `$mix` into the confidence.
struct Ask {
    name: &'static str,
    import: &'static str,
    code: &'static str,
}

const BUCKET: &str = r#"(import "wasi:keyvalue/store@0.2.0-draft" "open"
    (func $bucket (param i32 i32 i32)))"#;
const MODEL: &str = r#"(import "homeostat:policy/models@0.1.0" "open"
    (func $model (param i32 i32 i32)))"#;

/// Texts of the guest: 3000 "tiny", 3010 "key", 3020 "other".
const TEXTS: &str = r#"
  (data (i32.const 3000) "tiny") (data (i32.const 3010) "key") (data (i32.const 3020) "other")
  (global $heard (mut i64) (i64.const 1))
  (func $mix (param i64)
    (global.set $heard
      (i64.rotl (i64.add (i64.mul (global.get $heard) (i64.const 0x9e3779b97f4a7c15))
                         (local.get 0)) (i64.const 23))))"#;

fn asks() -> Vec<Ask> {
    let mut all = asks_for_knowledge();
    all.extend(asks_for_the_rest());
    all
}

fn asks_for_knowledge() -> Vec<Ask> {
    let ask = |name, import, code| Ask { name, import, code };
    vec![
        ask(
            "keyvalue, counted",
            r#"(import "wasi:keyvalue/atomics@0.2.0-draft" "increment"
                 (func $increment (param i32 i32 i32 i64 i32)))"#,
            "(call $bucket (i32.const 0) (i32.const 0) (i32.const 4096))
             (call $increment (i32.load (i32.const 4100)) (i32.const 3010) (i32.const 3)
               (i64.const 1) (i32.const 4112))
             (call $mix (i64.load (i32.const 4120)))",
        ),
        ask(
            "keyvalue, set, listed and read",
            r#"(import "wasi:keyvalue/store@0.2.0-draft" "[method]bucket.set"
                 (func $set (param i32 i32 i32 i32 i32 i32)))
               (import "wasi:keyvalue/store@0.2.0-draft" "[method]bucket.get"
                 (func $get (param i32 i32 i32 i32)))
               (import "wasi:keyvalue/store@0.2.0-draft" "[method]bucket.exists"
                 (func $exists (param i32 i32 i32 i32)))
               (import "wasi:keyvalue/store@0.2.0-draft" "[method]bucket.delete"
                 (func $delete (param i32 i32 i32 i32)))
               (import "wasi:keyvalue/store@0.2.0-draft" "[method]bucket.list-keys"
                 (func $list (param i32 i32 i64 i32)))"#,
            "(call $bucket (i32.const 0) (i32.const 0) (i32.const 4096))
             (call $get (i32.load (i32.const 4100)) (i32.const 3010) (i32.const 3) (i32.const 4112))
             (call $mix (i64.load8_u (i32.const 4116)))
             (call $set (i32.load (i32.const 4100)) (i32.const 3010) (i32.const 3)
               (i32.const 3000) (i32.const 4) (i32.const 4112))
             (call $exists (i32.load (i32.const 4100)) (i32.const 3010) (i32.const 3)
               (i32.const 4112))
             (call $mix (i64.load8_u (i32.const 4116)))
             (call $list (i32.load (i32.const 4100)) (i32.const 0) (i64.const 0) (i32.const 4112))
             (call $mix (i64.load32_u (i32.const 4124)))
             (call $delete (i32.load (i32.const 4100)) (i32.const 3020) (i32.const 5)
               (i32.const 4112))",
        ),
        ask(
            "models",
            r#"(import "homeostat:policy/models@0.1.0" "[method]model.embed"
                 (func $embed (param i32 i32 i32 i32)))
               (import "homeostat:policy/models@0.1.0" "[method]model.count-tokens"
                 (func $tokens (param i32 i32 i32 i32)))
               (import "homeostat:policy/models@0.1.0" "names" (func $names (param i32)))"#,
            "(call $names (i32.const 4096))
             (call $model (i32.const 3000) (i32.const 4) (i32.const 4096))
             (call $embed (i32.load (i32.const 4100)) (i32.const 3010) (i32.const 3)
               (i32.const 4112))
             (call $mix (i64.load32_u (i32.load (i32.const 4116))))
             (call $tokens (i32.load (i32.const 4100)) (i32.const 3020) (i32.const 5)
               (i32.const 4112))
             (call $mix (i64.load32_u (i32.const 4116)))
             (call $model (i32.const 3010) (i32.const 3) (i32.const 4096))
             (call $mix (i64.load8_u (i32.const 4096)))",
        ),
    ]
}

fn asks_for_the_rest() -> Vec<Ask> {
    let ask = |name, import, code| Ask { name, import, code };
    vec![
        ask(
            "config",
            r#"(import "wasi:config/store@0.2.0-rc.1" "get"
                 (func $setting (param i32 i32 i32)))"#,
            "(call $setting (i32.const 3010) (i32.const 3) (i32.const 4096))
             (call $mix (i64.load32_u (i32.load (i32.const 4104))))",
        ),
        ask(
            "clocks",
            r#"(import "wasi:clocks/wall-clock@0.2.3" "now" (func $wall (param i32)))
               (import "wasi:clocks/monotonic-clock@0.2.3" "now" (func $since (result i64)))"#,
            "(call $wall (i32.const 4096))
             (call $mix (i64.load (i32.const 4096)))
             (call $mix (i64.load32_u (i32.const 4104)))
             (call $mix (call $since))
             (call $mix (call $since))",
        ),
        ask(
            "random numbers",
            r#"(import "wasi:random/random@0.2.3" "get-random-u64" (func $random (result i64)))
               (import "wasi:random/insecure-seed@0.2.3" "insecure-seed" (func $seed (param i32)))"#,
            "(call $mix (call $random))
             (call $mix (call $random))
             (call $seed (i32.const 4096))
             (call $mix (i64.load (i32.const 4096)))",
        ),
        ask(
            "log",
            r#"(import "wasi:logging/logging@0.1.0-draft" "log"
                 (func $log (param i32 i32 i32 i32 i32)))"#,
            "(call $log (i32.const 2) (i32.const 3000) (i32.const 4)
               (i32.const 3010) (i32.const 3))",
        ),
        ask(
            "telemetry and propose",
            r#"(import "homeostat:policy/telemetry@0.1.0" "current" (func $current (param i32)))
               (import "homeostat:policy/propose@0.1.0" "propose-classification"
                 (func $propose (param f32 f32 f32 i32 i32 i32 f32 i32 i32)))"#,
            "(call $current (i32.const 4096))
             (call $mix (i64.load (i32.const 4096)))
             (call $propose (f32.const 1) (f32.const nan) (f32.const 0) (i32.const 0)
               (i32.const 0) (i32.const 0) (f32.const 0.5) (i32.const 0) (i32.const 0))",
        ),
    ]
}

/// A classifier that asks all this, in order, and more at its end.
fn listener(asks: &[Ask], more: &str) -> Vec<u8> {
    let each = |part: fn(&Ask) -> &'static str| asks.iter().map(part).collect::<String>();
    let (mut head, code) = (each(|ask| ask.import), each(|ask| ask.code));
    for (import, used) in [(BUCKET, "$bucket"), (MODEL, "$model")] {
        if code.contains(used) {
            head.push_str(import);
        }
    }
    let cases = format!(
        "(if (i32.eq (call $id_len (local.get 0)) (i32.const 7)) (then
           {code} {more}
           (drop (call $good))
           (f32.store (i32.const 1052)
             (f32.div (f32.convert_i64_u (i64.and (global.get $heard) (i64.const 0xffffff)))
                      (f32.const 16777216)))
           (return (i32.const 1024))))"
    );
    let wit = contract_with_clocks();
    let text = guests::classifier_text(&head, TEXTS, &cases);
    guests::component_of(wit.path(), "wasi-policy", &text)
}

// ---- bit for bit -----------------------------------------------------------------------

#[test]
fn every_kind_of_host_call_is_replayed_bit_for_bit() {
    let replayer = replayer();
    for ask in asks() {
        let dir = tempfile::tempdir().unwrap();
        let room = room(config(dir.path()));
        let name = ask.name;
        put(&room, "listener", &listener(&[ask], ""));
        let replies: Vec<_> = (0..3).map(|_| classify(&room)).collect();
        assert!(
            replies.iter().all(|r| r.fault.is_none()),
            "{name}: {:?}",
            replies[0].fault
        );
        let (log, all) = recordings(room, dir.path());
        assert_eq!(all.len(), 3, "{name}");
        for (recording, reply) in all.iter().zip(&replies) {
            assert!(
                !recording.hooks[0].attempts[0].host_calls.is_empty(),
                "{name}"
            );
            assert!(recording.receipts_hold(), "{name}");
            let value = &recording.hooks[0].reply.as_ref().unwrap().value;
            let value: Classification = crate::wave::read(value).unwrap();
            assert_eq!(value, reply.value, "{name}");
            let played = replayer.replay(&log, recording).unwrap();
            assert_identical(recording, &played);
        }
        // The host answered differently each time, or the replays would prove nothing.
        if ["keyvalue, counted", "clocks", "random numbers"].contains(&name) {
            let [a, b] = [0, 1].map(|n| replies[n].value.confidence);
            assert_ne!(a, b, "{name}");
        }
    }
}

#[test]
fn a_thousand_replays_give_one_decision_and_one_fuel() {
    let dir = tempfile::tempdir().unwrap();
    let room = room(config(dir.path()));
    put(&room, "listener", &listener(&asks(), ""));
    assert_eq!(classify(&room).fault, None);
    let (log, all) = recordings(room, dir.path());
    let replayer = replayer();
    let first = replayer.replay(&log, &all[0]).unwrap();
    assert_identical(&all[0], &first);
    for _ in 1..1000 {
        assert_eq!(replayer.replay(&log, &all[0]).unwrap(), first);
    }
}

/// How often a whole log is replayed: HOMEOSTAT_REPLAYS, or as often as takes a second.
fn replays() -> usize {
    match std::env::var("HOMEOSTAT_REPLAYS") {
        Ok(count) => count.parse().expect("HOMEOSTAT_REPLAYS is a number"),
        Err(_) => 50,
    }
}

#[test]
fn a_log_replayed_again_and_again_gives_one_decision_and_one_fuel_for_each_request() {
    let dir = tempfile::tempdir().unwrap();
    let room = room(config(dir.path()));
    put(&room, "all", &guests::all_hooks());
    put(&room, "listener", &listener(&asks(), ""));
    let tiers = [TierView {
        id: "small".into(),
        ready: true,
        ..TierView::default()
    }];
    for n in 0..8 {
        let request = homeostat_hooks::Request {
            id: format!("log-{n:03}"),
            ..homeostat_hooks::Request::clone(&request(7))
        };
        let mut session = room.begin(Arc::new(request), Arc::new(Snapshot::default()));
        let class = session.classify().value;
        session.route(&class, &tiers);
        session.validate(&Answer::default());
        session.learn(&Outcome::default());
    }
    let (log, all) = recordings(room, dir.path());
    assert_eq!(all.len(), 8);
    let replayer = replayer();
    let pass = || -> Vec<_> {
        let played = |recording| replayer.replay(&log, recording).unwrap();
        all.iter().map(played).collect()
    };
    let first = pass();
    for (recording, played) in all.iter().zip(&first) {
        assert_identical(recording, played);
    }
    for n in 1..replays() {
        assert_eq!(pass(), first, "pass {n}");
    }
}

#[test]
fn an_instance_that_remembers_is_replayed_from_its_first_call_on() {
    let dir = tempfile::tempdir().unwrap();
    let room = room(config(dir.path()));
    put(&room, "all", &guests::all_hooks());
    let tiers = vec![TierView {
        id: "small".into(),
        ready: true,
        ..TierView::default()
    }];
    let mut session = room.begin(request(7), Arc::new(Snapshot::default()));
    let classified = session.classify().value;
    session.route(&classified, &tiers);
    session.validate(&Answer::default());
    session.validate(&Answer::default());
    session.learn(&Outcome::default());
    drop(session);
    // An instance that trapped has a successor.
    let mut session = room.begin(request(9), Arc::new(Snapshot::default()));
    session.classify();
    assert!(session.validate(&Answer::default()).fault.is_some());
    session.classify();
    drop(session);

    let (log, all) = recordings(room, dir.path());
    let hooks: Vec<Asking> = all[0].hooks.iter().map(|h| h.hook).collect();
    use Asking::{Classify, Learn, Route, Validate};
    assert_eq!(hooks, [Classify, Route, Validate, Validate, Learn]);
    assert_eq!(all[0].policies.len(), 1, "shared things stand there once");
    assert_eq!(all[1].hooks[2].attempts[0].instance, 2);
    let replayer = replayer();
    for recording in &all {
        assert_identical(recording, &replayer.replay(&log, recording).unwrap());
    }
}

/// It draws a random number while it is made, and answers by it.
fn draws_when_made() -> Vec<u8> {
    let import = r#"(import "wasi:random/random@0.2.3" "get-random-u64"
        (func $random (result i64)))"#;
    let init = format!("{TEXTS} (func $init (call $mix (call $random))) (start $init)");
    let cases = "(drop (call $good))
        (f32.store (i32.const 1052)
          (f32.div (f32.convert_i64_u (i64.and (global.get $heard) (i64.const 0xffffff)))
                   (f32.const 16777216)))
        (return (i32.const 1024))";
    let wit = contract_with_clocks();
    let text = guests::classifier_text(import, &init, cases);
    guests::component_of(wit.path(), "wasi-policy", &text)
}

#[test]
fn a_ready_instance_comes_with_what_it_asked_while_it_was_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut half = config(dir.path());
    half.record.share = 0.5;
    let room = room(RoomConfig {
        ready_instances: 2,
        ready_above_micros: 0,
        ..half
    });
    put(&room, "draws", &draws_when_made());
    let mut drawn = Vec::new();
    for n in 0..12 {
        while room.stats().ready != 2 {
            std::thread::yield_now();
        }
        let request = homeostat_hooks::Request {
            id: format!("request-{n}"),
            ..homeostat_hooks::Request::default()
        };
        let mut session = room.begin(Arc::new(request), Arc::new(Snapshot::default()));
        let reply = session.classify();
        assert_eq!(reply.fault, None);
        drawn.push(reply.value.confidence.to_bits());
    }
    assert_eq!(room.stats().ready_taken, 12, "recorded or not");
    let all_drawn = drawn.len();
    drawn.sort_unstable();
    drawn.dedup();
    assert_eq!(
        drawn.len(),
        all_drawn,
        "every instance draws its own number"
    );
    let (log, all) = recordings(room, dir.path());
    assert!(
        (1..12).contains(&all.len()),
        "a share of them: {}",
        all.len()
    );
    for recording in &all {
        let call = &recording.hooks[0].attempts[0];
        assert!(call.host_calls[0].call.starts_with("wasi:random/"));
        assert_eq!(call.instance, 1);
        assert_identical(recording, &replayer().replay(&log, recording).unwrap());
    }
}

/// Answers with this confidence; 0 is an abstention.
fn sure_by(confidence: &str) -> Vec<u8> {
    let cases = format!(
        "(drop (call $good)) (f32.store (i32.const 1052) (f32.const {confidence}))
         (return (i32.const 1024))"
    );
    guests::classifier("", "", &cases)
}

/// A room whose recordings and policies lie beside each other.
fn composed(dir: &Path, mode: Mode, main: &[u8], member: &[u8]) -> PolicyRoom {
    let policies = dir.join("policies");
    std::fs::create_dir(&policies).unwrap();
    std::fs::write(policies.join("member.wasm"), member).unwrap();
    let room = room(RoomConfig {
        dir: Some(policies),
        ..config(&dir.join("recordings"))
    });
    let compose = Compose {
        mode,
        members: vec!["member.wasm".into()],
    };
    let offer = Offer {
        name: "main".into(),
        bytes: main.to_vec(),
        options: PolicyOptions {
            compose: Some(compose),
            ..PolicyOptions::default()
        },
        ..Offer::default()
    };
    room.put(offer)
        .unwrap_or_else(|refused| panic!("{refused}"));
    room
}

#[test]
fn all_members_of_a_composition_are_recorded_and_the_one_that_answered_is_explained() {
    for (mode, main, member) in [
        (Mode::Chain, "0", "0.75"),
        (Mode::Hedge, "0", "0.75"),
        (Mode::Hedge, "0.5", "0.75"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (main, member) = (sure_by(main), sure_by(member));
        let room = composed(dir.path(), mode, &main, &member);
        let answered = room.stats().generations.remove(0).members[0].answered;
        let reply = classify(&room);
        let answered = room.stats().generations.remove(0).members[0].answered - answered;
        let (log, all) = recordings(room, &dir.path().join("recordings"));
        assert_eq!(all[0].hooks[0].attempts.len(), 2, "{mode:?}");
        assert!(all[0].receipts_hold());
        assert_identical(&all[0], &replayer().replay(&log, &all[0]).unwrap());

        let told = explained(&log, &all[0], &[]).unwrap();
        let hook = &told.hooks[0];
        let by = if answered == 1 { &member } else { &main };
        let digest = crate::signature::sha256_hex(by);
        assert_eq!(hook.digest.as_deref(), Some(&*digest), "{mode:?}");
        let again = hook.again.as_ref().expect("it was replayed");
        assert!(again.identical);
        let value: Classification =
            crate::wave::read(again.played.answer.as_deref().unwrap()).unwrap();
        assert_eq!(value, reply.value);

        // Another component in the place of the main one is given what that was given.
        let candidate = Candidate {
            name: "new".into(),
            bytes: main,
            ..Candidate::default()
        };
        let report = replayer().candidate(&log, &candidate).unwrap();
        assert_eq!(report.calls, 1);
        assert_eq!(report.same, 1 - answered, "{report:?}");
    }
}

#[test]
fn what_a_shadow_says_is_not_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let room = room(config(dir.path()));
    put(&room, "serves", &sure_by("0.5"));
    let offer = Offer {
        name: "shadow".into(),
        bytes: sure_by("0.75"),
        ..Offer::default()
    };
    room.start_shadow(Hook::Classify, offer).unwrap();
    classify(&room);
    let asked = || room.trial(Hook::Classify).and_then(|trial| trial.shadow);
    while asked().expect("a shadow").calls == 0 {
        std::thread::yield_now();
    }
    let (_, all) = recordings(room, dir.path());
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].hooks[0].attempts.len(), 1);
    let names: Vec<&str> = all[0].policies.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["serves"]);
}

// ---- candidates ------------------------------------------------------------------------

fn judge(recorded: &[u8], candidate: &[u8]) -> crate::CandidateReport {
    let dir = tempfile::tempdir().unwrap();
    let room = room(config(dir.path()));
    put(&room, "listener", recorded);
    for _ in 0..3 {
        assert_eq!(classify(&room).fault, None);
    }
    let (log, _) = recordings(room, dir.path());
    let candidate = Candidate {
        name: "new".into(),
        bytes: candidate.to_vec(),
        ..Candidate::default()
    };
    replayer().candidate(&log, &candidate).unwrap()
}

#[test]
fn a_candidate_that_asks_the_same_decides_the_same() {
    let bytes = listener(&asks(), "");
    let report = judge(&bytes, &bytes);
    assert_eq!((report.calls, report.same), (3, 3), "{report:?}");
    assert!(report.changed.is_empty() && report.misses.is_empty());
}

#[test]
fn a_candidate_that_asks_something_else_misses_and_nothing_is_invented() {
    let counted = || asks().into_iter().take(1).collect::<Vec<_>>();
    let recorded = listener(&counted(), "");
    // One call more; the same call with another key; a clock that nobody read.
    let again = "(call $increment (i32.load (i32.const 4100)) (i32.const 3010) (i32.const 3)
        (i64.const 1) (i32.const 4112))";
    let report = judge(&recorded, &listener(&counted(), again));
    assert_eq!(report.misses.len(), 3);
    assert!(
        report.misses[0].2.contains("no further host call"),
        "{:?}",
        report.misses[0]
    );
    assert!(report.changed.is_empty() && report.faults.is_empty() && report.same == 0);

    let mut other = counted();
    other[0].code = "(call $bucket (i32.const 0) (i32.const 0) (i32.const 4096))
        (call $increment (i32.load (i32.const 4100)) (i32.const 3020) (i32.const 5)
           (i64.const 1) (i32.const 4112))";
    let report = judge(&recorded, &listener(&other, ""));
    let text = &report.misses[0].2;
    assert!(
        text.contains("\"other\"") && text.contains("\"key\""),
        "{text}"
    );

    let clocks: Vec<Ask> = asks()
        .into_iter()
        .filter(|ask| ask.name == "clocks")
        .collect();
    let report = judge(&recorded, &listener(&clocks, ""));
    assert_eq!(report.misses.len(), 3);
    assert!(
        report.text().contains("wall-clock#now"),
        "{}",
        report.text()
    );
}

#[test]
fn what_a_candidate_only_says_is_no_miss_and_what_it_changes_is_told() {
    let report = judge(
        &guests::classifier("", "", ""),
        &listener(&asks()[6..7], ""),
    );
    assert!(report.misses.is_empty() && report.faults.is_empty());
    assert_eq!(report.changed.len(), 3);
    let change = &report.changed[0];
    assert_eq!(change.difference.as_ref().unwrap().path, "confidence");
    assert_eq!(
        (change.from.as_str(), change.to.as_str()),
        ("complex", "complex")
    );
    assert_eq!(report.moves["classify"]["complex"]["complex"], 3);
    assert!(report.text().contains("from \\ to"), "{}", report.text());

    let traps = guests::classifier_when(7, "", "", "unreachable");
    let report = judge(&guests::classifier("", "", ""), &traps);
    assert_eq!(report.faults.len(), 3);
}

#[test]
fn routes_that_move_are_sampled_by_their_ids_with_all_that_it_takes_to_run_them() {
    let dir = tempfile::tempdir().unwrap();
    let room = room(config(dir.path()));
    put(&room, "v", &guests::validator());
    let small = TierView {
        id: "small".into(),
        ready: true,
        quality: (0.5, 0.5, 0.5),
        ..TierView::default()
    };
    for n in 0..9 {
        let request = homeostat_hooks::Request {
            id: format!("request-{n}"),
            ..homeostat_hooks::Request::clone(&request(7))
        };
        let mut session = room.begin(Arc::new(request), Arc::new(Snapshot::default()));
        let class = session.classify().value;
        session.route(&class, std::slice::from_ref(&small));
        session.validate(&Answer::default());
    }
    let (log, _) = recordings(room, dir.path());
    let sampled = |sample| {
        let candidate = Candidate {
            name: "new".into(),
            bytes: guests::router("r"),
            sample,
            ..Candidate::default()
        };
        replayer().candidate(&log, &candidate).unwrap()
    };
    let report = sampled(3);
    assert_eq!((report.moved(Hook::Route), report.sample.len()), (9, 3));
    let ids = |report: &crate::CandidateReport| -> Vec<String> {
        let each = report.sample.iter();
        each.map(|moved| moved.request.id.clone()).collect()
    };
    assert_eq!(
        ids(&report),
        ids(&sampled(3)),
        "the same log, the same sample"
    );
    assert_eq!(ids(&report)[..2], ids(&sampled(2)));
    assert!(sampled(0).sample.is_empty());

    let moved = &report.sample[0];
    assert_eq!(moved.recorded.label, "small");
    assert!(moved.candidate.label.starts_with("answer"), "{moved:?}");
    let quality = moved.recorded.promise.quality.unwrap();
    assert!((quality - 0.5).abs() < 1e-6, "{quality}");
    assert_eq!(moved.candidate.promise.quality, None);
    let validator = moved.validator.as_ref().expect("one judged");
    let offer = validator.offer(&log, Hook::Validate).unwrap();
    assert_eq!(offer.bytes, guests::validator());
}

#[test]
fn a_candidate_without_the_hook_or_that_is_no_policy_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let room = room(config(dir.path()));
    put(&room, "c", &guests::classifier("", "", ""));
    classify(&room);
    let (log, _) = recordings(room, dir.path());
    let replayer = replayer();
    let refused = |bytes: Vec<u8>, hook| {
        let candidate = Candidate {
            name: "new".into(),
            bytes,
            hook,
            ..Candidate::default()
        };
        replayer.candidate(&log, &candidate).unwrap_err()
    };
    let error = refused(guests::router("r"), Some(Hook::Classify));
    assert!(error.contains("exports no classify"), "{error}");
    refused(b"not wasm".to_vec(), None);
    let candidate = Candidate {
        name: "new".into(),
        bytes: guests::router("r"),
        ..Candidate::default()
    };
    let report = replayer.candidate(&log, &candidate).unwrap();
    assert_eq!(report.calls, 0);
    assert!(
        report.text().contains("none of its hooks"),
        "{}",
        report.text()
    );
}

// ---- explaining ------------------------------------------------------------------------

fn explained(
    log: &RecordLog,
    recording: &Recording,
    set: &[(&str, &str)],
) -> Result<Explained, String> {
    let set: Vec<(String, String)> = set
        .iter()
        .map(|(p, v)| ((*p).into(), (*v).into()))
        .collect();
    explain(log, &replayer(), recording, &set)
}

#[test]
fn an_explanation_shows_the_calls_in_order_and_that_the_replay_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let room = room(config(dir.path()));
    put(&room, "listener", &listener(&asks(), ""));
    classify(&room);
    let (log, all) = recordings(room, dir.path());
    let text = explained(&log, &all[0], &[]).unwrap().text();
    let order = [
        "xxxxxxx",
        "What is the capital of France?",
        "classify by listener@1",
        "host call wasi:keyvalue/store#open(\"\") -> ok",
        "host call wasi:keyvalue/atomics#increment(\"key\", 1) -> ok(1)",
        "host call homeostat:policy/models#embed(\"tiny\", \"key\") -> ok([1])",
        "host call wasi:config/store#get(\"key\") -> ok(some(\"value\"))",
        "host call wasi:clocks/wall-clock#now()",
        "host call wasi:random/random#get-random-bytes",
        "host call wasi:logging/logging#log(\"info\", \"tiny\", \"key\")",
        "host call homeostat:policy/propose#propose-classification({p-simple: 1, p-medium: nan",
        "answer {",
        "replay: the same",
    ];
    let mut rest = text.as_str();
    for words in order {
        let at = rest
            .find(words)
            .unwrap_or_else(|| panic!("{words} is not next in\n{text}"));
        rest = &rest[at..];
    }
}

#[test]
fn a_changed_value_changes_the_built_in_decision_and_both_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let room = room(config(dir.path()));
    let tier = |id: &str, rank| TierView {
        id: id.into(),
        rank,
        ready: true,
        ..TierView::default()
    };
    let mut session = room.begin(request(7), Arc::new(Snapshot::default()));
    let hard = Classification {
        p_simple: 0.0,
        p_medium: 0.0,
        p_complex: 1.0,
        ..Classification::default()
    };
    session.route(&hard, &[tier("small", 0), tier("large", 1)]);
    drop(session);
    let (log, all) = recordings(room, dir.path());
    let hot = explained(&log, &all[0], &[("metabolism.state", "critical")]).unwrap();
    let again = hot.hooks[0].again.as_ref().unwrap();
    let difference = again.difference.as_ref().unwrap();
    assert_eq!(difference.path, "plan.steps.0.tier");
    assert_eq!(
        (difference.from.as_str(), difference.to.as_str()),
        ("\"large\"", "\"small\"")
    );
    assert!(
        hot.text()
            .contains("changed   snapshot.metabolism.state = critical")
    );
    let same = explained(&log, &all[0], &[("large.ready", "true")]).unwrap();
    assert!(same.hooks[0].again.as_ref().unwrap().identical);
    let simple = explained(&log, &all[0], &[("classification.p-complex", "0")]).unwrap();
    assert!(!simple.hooks[0].again.as_ref().unwrap().identical);
    let error = explained(&log, &all[0], &[("metabolism.stat", "critical")]).unwrap_err();
    assert!(error.contains("snapshot.metabolism.state"), "{error}");
}

// ---- what is kept ----------------------------------------------------------------------

#[test]
fn a_torn_last_line_and_a_damaged_one_leave_the_others_readable() {
    let dir = tempfile::tempdir().unwrap();
    let first = room(config(dir.path()));
    put(&first, "c", &guests::classifier("", "", ""));
    classify(&first);
    classify(&first);
    drop(first);
    // A process that was killed in the middle of a write.
    let file = dir.path().join("decisions-00000000.jsonl");
    let whole = std::fs::read(&file).unwrap();
    let second = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
    for cut in (second + 1..whole.len()).step_by(97) {
        std::fs::write(&file, &whole[..cut]).unwrap();
        let log = RecordLog::open(dir.path()).unwrap();
        let (mut good, mut bad) = (0, Vec::new());
        log.each(|line| match line {
            Ok(_) => good += 1,
            Err(damaged) => bad.push(damaged),
        })
        .unwrap();
        assert_eq!((good, bad.len(), bad[0].line), (1, 1, 2), "cut at {cut}");
    }
    // The next process writes beside it.
    let again = room(config(dir.path()));
    put(&again, "c", &guests::classifier("", "", ""));
    classify(&again);
    drop(again);
    let log = RecordLog::open(dir.path()).unwrap();
    let mut lines = Vec::new();
    log.each(|line| lines.push(line.is_ok())).unwrap();
    assert_eq!(lines, [true, false, true]);
    assert!(log.find("xxxxxxx").is_ok());
    assert!(log.find("unknown").unwrap_err().contains("unknown"));
    assert!(RecordLog::open(&dir.path().join("components")).is_err());
}

#[test]
fn a_request_that_is_too_large_is_cut_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = config(dir.path());
    small.record.request_bytes = 2_000;
    let room = room(small);
    let flood = "(global.set $heard (i64.const 0))
        (loop $l
          (call $mix (i64.const 1))
          (call $log (i32.const 2) (i32.const 3000) (i32.const 4) (i32.const 0) (i32.const 100))
          (global.set $turns (i32.add (global.get $turns) (i32.const 1)))
          (br_if $l (i32.lt_u (global.get $turns) (i32.const 50))))";
    let head = asks()[6].import;
    let extra = format!("{TEXTS} (global $turns (mut i32) (i32.const 0))");
    put(
        &room,
        "loud",
        &guests::classifier_when(7, head, &extra, flood),
    );
    assert_eq!(classify(&room).fault, None);
    let (log, all) = recordings(room, dir.path());
    assert!(all[0].truncated);
    assert!(
        std::fs::metadata(dir.path().join("decisions-00000000.jsonl"))
            .unwrap()
            .len()
            < 8_000
    );
    let error = replayer().replay(&log, &all[0]).unwrap_err();
    assert!(error.contains("request_bytes"), "{error}");
    let told = explained(&log, &all[0], &[]).unwrap();
    assert!(told.text().contains("no replay: "), "{}", told.text());
}

#[test]
fn without_prompts_no_text_is_kept_and_a_replay_says_why_it_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let mut quiet = config(dir.path());
    quiet.record.prompts = false;
    let room = room(quiet);
    put(&room, "listener", &listener(&asks(), ""));
    let mut session = room.begin(request(7), Arc::new(Snapshot::default()));
    session.classify();
    session.validate(&Answer {
        text: "a secret answer".into(),
        ..Answer::default()
    });
    drop(session);
    let (log, all) = recordings(room, dir.path());
    let text = std::fs::read_to_string(dir.path().join("decisions-00000000.jsonl")).unwrap();
    for secret in ["capital", "secret", "value\\\")"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    let told = explained(&log, &all[0], &[]).unwrap();
    assert!(
        told.text().contains("policies.record.prompts"),
        "{}",
        told.text()
    );
    assert!(told.text().contains("classify by listener@1"));
    let error = explained(&log, &all[0], &[("metabolism.state", "critical")]).unwrap_err();
    assert!(error.contains("policies.record.prompts"), "{error}");
}

#[test]
fn a_full_queue_drops_and_counts_and_no_request_notices() {
    let dir = tempfile::tempdir().unwrap();
    let mut narrow = config(dir.path());
    narrow.record.queue_bytes = 1;
    let room = room(narrow);
    put(&room, "c", &guests::classifier("", "", ""));
    for _ in 0..5 {
        assert_eq!(classify(&room).fault, None);
    }
    let recorded = room.stats().recorded.unwrap();
    assert_eq!((recorded.written, recorded.dropped), (0, 5));
}

#[test]
fn a_share_of_nothing_records_nothing_and_impossible_numbers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut none = config(dir.path());
    none.record.share = 0.0;
    let quiet = room(none);
    put(&quiet, "c", &guests::classifier("", "", ""));
    classify(&quiet);
    drop(quiet);
    assert!(RecordLog::open(dir.path()).is_err());
    for change in [
        |r: &mut RecordConfig| r.share = 1.5,
        |r: &mut RecordConfig| r.share = f64::NAN,
        |r: &mut RecordConfig| r.files = 0,
    ] {
        let mut bad = config(dir.path());
        change(&mut bad.record);
        let error = PolicyRoom::new(bad, Arc::new(FakeModels)).err().unwrap();
        assert!(error.to_string().contains("policies.record."), "{error}");
    }
}

#[test]
fn a_recording_that_was_changed_no_longer_fits_its_receipts() {
    let dir = tempfile::tempdir().unwrap();
    let room = room(config(dir.path()));
    put(&room, "listener", &listener(&asks(), ""));
    classify(&room);
    let (log, all) = recordings(room, dir.path());
    let mut forged = all[0].clone();
    assert_eq!(explained(&log, &forged, &[]).unwrap().intact, Some(true));
    forged.hooks[0].attempts[0].host_calls[1].answer = "ok(2)".into();
    let told = explained(&log, &forged, &[]).unwrap();
    assert_eq!(told.intact, Some(false));
    // And the guest decides something else when it is told something else.
    assert!(!told.hooks[0].again.as_ref().unwrap().identical);
}

#[test]
fn a_receipt_is_known_before_a_tier_is_asked_and_found_again_in_the_recording() {
    for prompts in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.record.prompts = prompts;
        let room = room(config);
        put(&room, "listener", &listener(&asks(), ""));
        put(&room, "r", &guests::router("r"));
        let tiers = [TierView {
            id: "small".into(),
            ..TierView::default()
        }];
        let given: Vec<String> = (0..2)
            .map(|_| {
                let mut session = room.begin(request(7), Arc::new(Snapshot::default()));
                assert_eq!(session.receipt(), None, "nothing is decided yet");
                let class = session.classify().value;
                session.route(&class, &tiers);
                let receipt = session.receipt().expect("it is recorded");
                session.validate(&Answer::default());
                session.learn(&Outcome::default());
                assert_eq!(session.receipt().as_ref(), Some(&receipt));
                receipt
            })
            .collect();
        assert_ne!(given[0], given[1], "each decision has its own");
        let (_, all) = recordings(room, dir.path());
        let found: Vec<String> = all.iter().filter_map(Recording::receipt).collect();
        assert_eq!(found, given);
        let mut forged = all[0].clone();
        forged.hooks[1].attempts[0].receipt.result = given[0].clone();
        assert_ne!(forged.receipt().as_ref(), Some(&given[0]));
    }
}

#[test]
fn a_component_that_was_changed_or_is_gone_is_not_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let room = room(config(dir.path()));
    put(&room, "c", &guests::classifier("", "", ""));
    classify(&room);
    let (log, all) = recordings(room, dir.path());
    let digest = &all[0].policies[0].digest;
    let file = dir.path().join("components").join(format!("{digest}.wasm"));
    std::fs::write(&file, guests::router("another")).unwrap();
    let error = replayer().replay(&log, &all[0]).unwrap_err();
    assert!(error.contains("not what was recorded"), "{error}");
    std::fs::remove_file(&file).unwrap();
    assert!(replayer().replay(&log, &all[0]).is_err());
}

#[test]
fn what_serves_can_be_replayed_however_many_come_at_another_hook() {
    let dir = tempfile::tempdir().unwrap();
    let room = room(config(dir.path()));
    put(&room, "c", &guests::classifier("", "", ""));
    for n in 0..20 {
        put(&room, "r", &guests::router(&format!("router {n}")));
    }
    classify(&room);
    let (log, all) = recordings(room, dir.path());
    assert_identical(&all[0], &replayer().replay(&log, &all[0]).unwrap());
}

// ---- before it serves ------------------------------------------------------------------

/// A room that recorded classes of this policy, and one that judges by them.
fn judging(recorded: &[u8], max_changed: f64) -> (tempfile::TempDir, PolicyRoom) {
    let dir = tempfile::tempdir().unwrap();
    let first = room(config(dir.path()));
    put(&first, "first", recorded);
    for _ in 0..4 {
        assert_eq!(classify(&first).fault, None);
    }
    drop(first);
    let judging = room(RoomConfig {
        replay: ReplayConfig {
            dir: Some(dir.path().to_path_buf()),
            max_changed,
            ..ReplayConfig::default()
        },
        ..RoomConfig::default()
    });
    (dir, judging)
}

fn offer(bytes: Vec<u8>) -> Offer {
    Offer {
        name: "next".into(),
        bytes,
        ..Offer::default()
    }
}

/// Takes everything to be simple.
fn simple() -> Vec<u8> {
    let cases = "(drop (call $good)) (f32.store (i32.const 1028) (f32.const 1))
         (f32.store (i32.const 1032) (f32.const 0)) (f32.store (i32.const 1036) (f32.const 0))
         (return (i32.const 1024))";
    guests::classifier("", "", cases)
}

#[test]
fn recorded_traffic_judges_a_policy_before_it_serves() {
    let (_dir, room) = judging(&sure_by("0.5"), 0.5);
    let report = room.put(offer(sure_by("0.75"))).unwrap();
    let found = report.replay.expect("it was asked");
    assert_eq!((found.requests, found.calls), (4, 4));
    assert_eq!((found.moved, found.misses), (0, 0), "the class is the same");
    let serving = || room.status()[0].active.clone().map(|active| active.digest);
    let before = serving();

    let traps = guests::classifier_when(7, "", "", "unreachable");
    let asks_more = listener(&asks()[4..5], "");
    for (bytes, words) in [
        (
            traps,
            // The first is enough.
            "1 of 1 recorded calls failed; classify of request xxxxxxx",
        ),
        (simple(), "4 of 4 recorded calls would be decided otherwise"),
        (asks_more, "wall-clock#now"),
    ] {
        for refusal in [
            room.check(&offer(bytes.clone())).unwrap_err(),
            room.put(offer(bytes)).unwrap_err(),
        ] {
            assert_eq!(refusal.stage, Stage::Replay, "{refusal}");
            assert!(refusal.text.contains(words), "{refusal}");
        }
        assert_eq!(serving(), before, "the running one is untouched");
        assert_eq!(classify(&room).value.confidence, 0.75);
    }
    // Whoever wants to change more tries it first.
    room.start_shadow(Hook::Classify, offer(simple())).unwrap();
}

#[test]
fn a_larger_share_lets_a_policy_change_more() {
    let (_dir, room) = judging(&sure_by("0.5"), 1.0);
    let report = room.put(offer(simple())).unwrap();
    assert_eq!(report.replay.unwrap().moved, 4);
}

#[test]
fn a_policy_that_is_slow_with_recorded_traffic_is_refused_in_time() {
    let (dir, _) = judging(&sure_by("0.5"), 0.5);
    let hurried = |max_seconds| {
        room(RoomConfig {
            replay: ReplayConfig {
                dir: Some(dir.path().to_path_buf()),
                max_seconds,
                ..ReplayConfig::default()
            },
            ..RoomConfig::default()
        })
    };
    let refusal = hurried(0).put(offer(sure_by("0.5"))).unwrap_err();
    assert_eq!(refusal.stage, Stage::Replay);
    let words = "1 of 4 recorded requests took more than 0 s";
    assert!(refusal.text.contains(words), "{refusal}");
    hurried(600).put(offer(sure_by("0.5"))).unwrap();
}

#[test]
fn what_nobody_recorded_judges_nobody_and_what_cannot_be_replayed_lets_nobody_pass() {
    let (_dir, judged) = judging(&sure_by("0.5"), 0.1);
    let report = judged.put(offer(guests::router("r"))).unwrap();
    assert_eq!(report.replay, None);
    let warned = |w: &String| w.contains("policies.replay.dir");
    assert!(report.warnings.iter().any(warned), "{:?}", report.warnings);

    let dir = tempfile::tempdir().unwrap();
    let mut quiet = config(dir.path());
    quiet.record.prompts = false;
    let first = room(quiet);
    put(&first, "first", &sure_by("0.5"));
    classify(&first);
    drop(first);
    let judging_by = |dir: &Path| {
        room(RoomConfig {
            replay: ReplayConfig {
                dir: Some(dir.to_path_buf()),
                ..ReplayConfig::default()
            },
            ..RoomConfig::default()
        })
    };
    for (dir, words) in [
        (dir.path().to_path_buf(), "policies.record.prompts"),
        (dir.path().join("nowhere"), "no folder"),
    ] {
        let refusal = judging_by(&dir).put(offer(sure_by("0.5"))).unwrap_err();
        assert_eq!(refusal.stage, Stage::Replay);
        assert!(refusal.text.contains(words), "{refusal}");
    }
}
