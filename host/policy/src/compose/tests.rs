//! Chains, hedges and votes of small guests in a folder.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use homeostat_hooks::{
    AnsweredBy, Classification, GenerateOptions, Generated, HookReply, ModelError, Models,
    Policies, TierView,
};

use super::*;
use crate::guests::{self, FakeModels, request};
use crate::{Grant, Limits, Offer, PolicyOptions, PolicyRoom, RoomConfig, Stage};

/// A classifier that is sure of one class, and traps at ids of this length.
fn sure_of(class: usize, traps_at: usize) -> Vec<u8> {
    let p = |i: usize| if i == class { 1 } else { 0 };
    let cases = format!(
        "(if (i32.eq (call $id_len (local.get 0)) (i32.const {traps_at})) (then unreachable))
         (drop (call $good))
         (f32.store (i32.const 1028) (f32.const {}))
         (f32.store (i32.const 1032) (f32.const {}))
         (f32.store (i32.const 1036) (f32.const {}))
         (return (i32.const 1024))",
        p(0),
        p(1),
        p(2)
    );
    guests::classifier("", "", &cases)
}

const SIMPLE: usize = 0;
const MEDIUM: usize = 1;
const COMPLEX: usize = 2;
const NEVER: usize = 99;

fn put(dir: &Path, mode: Mode, main: Vec<u8>, members: &[(&str, Vec<u8>)]) -> PolicyRoom {
    for (name, bytes) in members {
        std::fs::write(dir.join(format!("{name}.wasm")), bytes).unwrap();
    }
    let room = PolicyRoom::new(
        RoomConfig {
            dir: Some(dir.to_path_buf()),
            limits: Limits {
                deadline_ms: 60_000,
                ..Limits::default()
            },
            ..RoomConfig::default()
        },
        Arc::new(FakeModels),
    )
    .unwrap();
    let files = members.iter().map(|(name, _)| format!("{name}.wasm"));
    let mut offer = composed(mode, main, files);
    // Long enough for a busy machine; the endless loop waits for it once.
    offer.options.limits.deadline_ms = Some(2_000);
    room.put(offer).unwrap_or_else(|e| panic!("{e}"));
    room
}

fn composed(mode: Mode, main: Vec<u8>, files: impl IntoIterator<Item = String>) -> Offer {
    Offer {
        name: "main".into(),
        bytes: main,
        options: PolicyOptions {
            compose: Some(Compose {
                mode,
                members: files.into_iter().map(PathBuf::from).collect(),
            }),
            ..PolicyOptions::default()
        },
        ..Offer::default()
    }
}

fn ask(room: &PolicyRoom, id_len: usize) -> HookReply<Classification> {
    room.begin(request(id_len), Arc::default()).classify()
}

fn members(room: &PolicyRoom) -> Vec<(String, u64, u64, u64)> {
    let stats = room.stats().generations.remove(0).members;
    let each = stats.into_iter();
    each.map(|m| (m.policy, m.calls, m.faults, m.answered))
        .collect()
}

#[test]
fn a_chain_goes_on_where_one_fails_and_the_generation_has_not_failed() {
    let dir = tempfile::tempdir().unwrap();
    let rest = [
        ("second", sure_of(MEDIUM, 8)),
        ("third", sure_of(COMPLEX, NEVER)),
    ];
    let room = put(dir.path(), Mode::Chain, sure_of(SIMPLE, 7), &rest);
    assert_eq!(ask(&room, 6).value.p_simple, 1.0);
    let reply = ask(&room, 7);
    assert_eq!((reply.value.p_medium, reply.fault), (1.0, None));
    assert!(matches!(reply.by, AnsweredBy::Component { name, .. } if name == "main"));
    assert_eq!(
        members(&room),
        [("second".into(), 1, 0, 1), ("third".into(), 0, 0, 0)]
    );
    assert_eq!(room.stats().instances, 0);
}

#[test]
fn a_hedge_takes_the_slow_answer_in_time_and_the_fast_one_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let slow = guests::classifier_when(7, "", "", "(loop $l (br $l))");
    let room = put(
        dir.path(),
        Mode::Hedge,
        slow,
        &[("fast", sure_of(SIMPLE, 8))],
    );
    assert_eq!(
        ask(&room, 6).value.p_complex,
        0.5,
        "the slow one was in time"
    );
    let reply = ask(&room, 7);
    assert_eq!((reply.value.p_simple, reply.fault), (1.0, None));
    assert_eq!(ask(&room, 8).value.p_complex, 0.5, "the fast one failed");
    assert_eq!(members(&room), [("fast".into(), 3, 1, 1)]);
}

/// Models that answer when as many have asked at once as are awaited, and else not at all.
struct Meeting {
    awaited: usize,
    asking: Mutex<usize>,
    met: Condvar,
}

impl Models for Meeting {
    fn names(&self) -> Vec<String> {
        FakeModels.names()
    }

    fn info(&self, name: &str) -> Result<TierView, ModelError> {
        FakeModels.info(name)
    }

    fn count_tokens(&self, name: &str, text: &str) -> Result<u32, ModelError> {
        FakeModels.count_tokens(name, text)
    }

    fn embed(&self, _: &str, _: &str, timeout_ms: u32) -> Result<Vec<f32>, ModelError> {
        let mut asking = self.asking.lock().unwrap();
        *asking += 1;
        self.met.notify_all();
        let patience = Duration::from_millis(timeout_ms.into());
        let apart = |asking: &mut usize| *asking < self.awaited;
        let waited = self.met.wait_timeout_while(asking, patience, apart);
        match waited.unwrap().1.timed_out() {
            true => Err(ModelError::Unavailable("nobody else came".into())),
            false => Ok(vec![1.0]),
        }
    }

    fn score(
        &self,
        _: Option<&str>,
        _: &str,
        _: &str,
        _: &str,
        _: u32,
    ) -> Result<Vec<f32>, ModelError> {
        Ok(Vec::new())
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

/// A hedge of two policies that wait for each other, in a house with so many instances.
fn meeting(dir: &Path, awaited: usize, instances: u32) -> PolicyRoom {
    std::fs::write(dir.join("fast.wasm"), guests::embedding()).unwrap();
    std::fs::write(dir.join("fast.toml"), "grants = [\"models\"]").unwrap();
    let models = Arc::new(Meeting {
        awaited,
        asking: Mutex::new(0),
        met: Condvar::new(),
    });
    let room = PolicyRoom::new(
        RoomConfig {
            dir: Some(dir.to_path_buf()),
            instances,
            limits: Limits {
                deadline_ms: 10_000,
                ..Limits::default()
            },
            ..RoomConfig::default()
        },
        Arc::clone(&models) as Arc<dyn Models>,
    )
    .unwrap();
    // The probes meet nobody.
    *models.asking.lock().unwrap() = awaited;
    let offer = Offer {
        name: "slow".into(),
        bytes: guests::embedding(),
        options: PolicyOptions {
            grants: Some(vec![Grant::Models]),
            compose: Some(Compose {
                mode: Mode::Hedge,
                members: vec!["fast.wasm".into()],
            }),
            ..PolicyOptions::default()
        },
        ..Offer::default()
    };
    room.put(offer).unwrap_or_else(|e| panic!("{e}"));
    *models.asking.lock().unwrap() = 0;
    room
}

#[test]
fn the_policies_of_a_hedge_work_at_the_same_time() {
    let dir = tempfile::tempdir().unwrap();
    let room = meeting(dir.path(), 2, 8);
    let reply = ask(&room, 6);
    assert_eq!(reply.fault, None);
    assert_eq!(members(&room), [("fast".into(), 1, 0, 0)], "both answered");
    assert_eq!(room.stats().instances, 0);
}

#[test]
fn in_a_house_with_one_instance_the_policies_of_a_hedge_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let room = meeting(dir.path(), 1, 1);
    assert_eq!(ask(&room, 6).fault, None);
    assert_eq!(members(&room), [("fast".into(), 1, 0, 0)]);
    assert_eq!(
        room.stats().waits,
        0,
        "nobody waited for the other's instance"
    );
}

#[test]
fn a_vote_is_won_by_the_commonest_class_and_a_fault_has_no_vote() {
    let dir = tempfile::tempdir().unwrap();
    let rest = [("b", sure_of(MEDIUM, NEVER)), ("c", sure_of(MEDIUM, 7))];
    let room = put(dir.path(), Mode::Vote, sure_of(COMPLEX, 8), &rest);
    assert_eq!(ask(&room, 6).value.p_medium, 1.0, "two of three");
    assert_eq!(ask(&room, 7).value.p_complex, 1.0, "of equals the first");
    assert_eq!(ask(&room, 8).value.p_medium, 1.0, "the first failed");
}

#[test]
fn when_all_fail_the_fallback_answers_and_the_fault_is_the_components_own() {
    let dir = tempfile::tempdir().unwrap();
    let room = put(
        dir.path(),
        Mode::Vote,
        sure_of(SIMPLE, 7),
        &[("b", sure_of(SIMPLE, 7))],
    );
    let reply = ask(&room, 7);
    assert!(matches!(reply.by, AnsweredBy::Fallback { .. }), "{reply:?}");
    assert_eq!(room.stats().hooks["classify"].fallbacks, 1);
}

#[test]
fn members_that_are_missing_broken_or_too_many_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let room = put(
        dir.path(),
        Mode::Chain,
        sure_of(SIMPLE, NEVER),
        &[("b", sure_of(SIMPLE, NEVER))],
    );
    std::fs::write(dir.path().join("junk.wasm"), b"junk").unwrap();
    std::fs::write(dir.path().join("vague.wasm"), sure_of(SIMPLE, NEVER)).unwrap();
    std::fs::write(dir.path().join("vague.toml"), "limitz = 3").unwrap();
    for (members, stage, word) in [
        (vec!["nowhere.wasm"], Stage::Read, "nowhere.wasm"),
        (vec!["junk.wasm"], Stage::Component, "junk.wasm"),
        (vec![], Stage::Options, "0 members"),
        (vec!["b.wasm"; 5], Stage::Options, "5 members"),
        (vec!["../b.wasm"], Stage::Options, "not below"),
        (vec!["/b.wasm"], Stage::Options, "not below"),
        (vec!["vague.wasm"], Stage::Options, "limitz"),
    ] {
        let members = members.into_iter().map(str::to_string);
        let refusal = room.put(composed(Mode::Chain, sure_of(SIMPLE, NEVER), members));
        let refusal = refusal.unwrap_err();
        assert_eq!(refusal.stage, stage, "{refusal}");
        assert!(refusal.text.contains(word), "{refusal}");
    }
    assert_eq!(
        ask(&room, 6).value.p_simple,
        1.0,
        "the old one still serves"
    );
}

#[test]
fn a_restart_has_the_members_that_served_whatever_lies_in_the_folder_now() {
    let dir = tempfile::tempdir().unwrap();
    let (policies, state) = (dir.path().join("policies"), dir.path().join("state"));
    std::fs::create_dir(&policies).unwrap();
    let begin = || {
        let config = RoomConfig {
            dir: Some(policies.clone()),
            state_dir: Some(state.clone()),
            limits: Limits {
                deadline_ms: 60_000,
                ..Limits::default()
            },
            ..RoomConfig::default()
        };
        let room = PolicyRoom::new(config, Arc::new(FakeModels)).unwrap();
        room.recall();
        room
    };
    let member = |class| std::fs::write(policies.join("b.wasm"), sure_of(class, NEVER)).unwrap();
    let put = |room: &PolicyRoom| {
        let offer = composed(Mode::Chain, sure_of(SIMPLE, 7), ["b.wasm".to_string()]);
        room.put(offer).unwrap_or_else(|e| panic!("{e}"));
    };
    let stored = || std::fs::read_dir(state.join("sha256")).unwrap().count();
    member(MEDIUM);
    let room = begin();
    put(&room);
    assert_eq!(ask(&room, 7).value.p_medium, 1.0);
    assert_eq!(stored(), 2, "the component and its member");
    drop(room);
    member(COMPLEX);
    let room = begin();
    assert_eq!(ask(&room, 7).value.p_medium, 1.0);
    put(&room);
    assert_eq!(ask(&room, 7).value.p_complex, 1.0, "a put reads the folder");
    drop(room);
    let room = begin();
    assert_eq!(ask(&room, 7).value.p_complex, 1.0);
    room.rollback(homeostat_hooks::Hook::Classify).unwrap();
    assert_eq!(ask(&room, 7).value.p_medium, 1.0, "of the life before");
}
