//! Files that are no policies, or were: each is refused with a sentence, at the stage
//! where it belongs, and what served before serves on.

use homeostat_hooks::{Hook, Policies};
use homeostat_policy::{AdmissionError, PolicyRoom, Stage};
use homeostat_tests::GUESTS;
use homeostat_tests::scene;
use homeostat_tests::text_guest::{self, Contract};

use crate::{impatient, is_component, patient};

/// A room in which a good policy serves.
fn served() -> PolicyRoom {
    let room = scene::room();
    room.put(scene::offer("good", &text_guest::telling(1)))
        .unwrap_or_else(|e| panic!("{e}"));
    room
}

/// These bytes are refused, and the good policy does not notice.
fn refusal(room: &PolicyRoom, bytes: &[u8]) -> AdmissionError {
    let refusal = room
        .put(scene::limited("bad", bytes, impatient()))
        .expect_err("it must be refused");
    let reply = room
        .begin(scene::asking("request", "Hello."), Default::default())
        .route(&Default::default(), &scene::tiers());
    assert_eq!(text_guest::told(&reply.value), Some(1), "{reply:?}");
    assert!(is_component(&reply));
    refusal
}

#[test]
fn a_core_module_is_told_apart_from_a_component() {
    let refusal = refusal(&served(), &text_guest::core_module(""));
    assert_eq!(refusal.stage, Stage::Component);
    assert!(refusal.text.contains("core module"), "{refusal}");
    assert!(refusal.help.is_some(), "it says what to do");
}

#[test]
fn files_that_are_no_webassembly_are_refused_by_what_they_are() {
    let room = served();
    for (bytes, word) in [
        (&b""[..], "empty"),
        (b"\0as", "not WebAssembly"),
        (b"\0asm\x0d", "header"),
        (b"\0asm\x0d\0\x01\0", "exports no hook"),
        (b"(component)", "text"),
        (b"#!/bin/sh\necho hello\n", "not WebAssembly"),
        (&[0xff; 4096], "not WebAssembly"),
    ] {
        let refusal = refusal(&room, bytes);
        assert!(refusal.text.contains(word), "{word}: {refusal}");
    }
}

#[test]
fn a_beginning_of_a_component_is_refused_unless_it_has_all_that_was_asked_for() {
    let room = served();
    let small = text_guest::telling(2);
    let (mut refused, mut sound) = (0, 0);
    for whole in [&small[..], GUESTS] {
        for len in (0..whole.len()).step_by(64) {
            let mut offer = scene::limited("cut", &whole[..len], patient());
            offer.hooks = Some(Hook::ALL.to_vec());
            match room.put(offer) {
                Err(refusal) => {
                    let early = matches!(refusal.stage, Stage::Component | Stage::World);
                    assert!(early, "{len} of {} bytes: {refusal}", whole.len());
                    refused += 1;
                }
                // A cut between two sections behind the last hook that was asked for: what
                // is missing is `learn`, or names for debuggers.
                Ok(_) => {
                    let replies = scene::serve(&room, scene::asking("request", "Hello."));
                    let all = is_component(&replies.classify)
                        && is_component(&replies.route)
                        && is_component(&replies.validate);
                    assert!(all, "{len} of {} bytes: {replies:?}", whole.len());
                    sound += 1;
                }
            }
        }
    }
    assert!(
        refused > 100 * (1 + sound),
        "{sound} of {refused} cuts were taken for whole"
    );
}

/// A small generator (xorshift), so that one number repeats a failure.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

#[test]
fn a_component_with_flipped_bits_is_refused_or_runs_within_its_limits() {
    let room = served();
    let whole = text_guest::telling(2);
    let (mut refused, mut admitted) = (0, 0);
    for seed in 1..=400_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut bytes = whole.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
        match room.put(scene::limited("flipped", &bytes, impatient())) {
            Err(_) => refused += 1,
            Ok(_) => {
                // Whatever it does now, the request is answered.
                scene::serve(&room, scene::asking("request", "Hello."));
                admitted += 1;
            }
        }
        assert_eq!(
            room.stats().instances,
            0,
            "seed {seed}: an instance is left"
        );
    }
    println!("400 components with flipped bits: {refused} refused, {admitted} served");
    assert!(
        refused > 0 && admitted > 0,
        "the flips were too tame or too wild"
    );
}

#[test]
fn a_component_of_another_version_is_refused_by_both_numbers() {
    let room = served();
    for version in ["0.2.0", "1.0.0"] {
        let contract = Contract::changed(version, |text| text);
        let refusal = refusal(&room, &text_guest::telling_by(2, &contract));
        assert_eq!(refusal.stage, Stage::World);
        assert!(
            refusal.text.contains(version) && refusal.text.contains("0.1.0"),
            "{refusal}"
        );
    }
}

#[test]
fn a_component_with_other_types_is_refused_though_its_names_are_right() {
    let room = served();
    for (what, from, to) in [
        (
            "a case more",
            "        tool,\n",
            "        tool,\n        /// A machine.\n        robot,\n",
        ),
        (
            "a field of another type",
            "        cut-bytes: u64,",
            "        cut-bytes: u32,",
        ),
        ("a case less", "        /// Money.\n        usd,\n", ""),
    ] {
        let contract = Contract::changed("0.1.0", |text| text.replace(from, to));
        let refusal = refusal(&room, &text_guest::telling_by(2, &contract));
        assert_eq!(refusal.stage, Stage::World, "{what}: {refusal}");
    }
}

#[test]
fn a_component_at_the_wrong_hook_is_told_what_it_exports() {
    let room = served();
    let mut offer = scene::offer(
        "router",
        &text_guest::component("points_outside_its_memory"),
    );
    offer.hooks = Some(vec![Hook::Validate]);
    let refusal = room.put(offer).expect_err("it exports only a router");
    assert_eq!(refusal.stage, Stage::World);
    assert!(
        refusal.text.contains("homeostat:policy/router@0.1.0"),
        "{refusal}"
    );
}

#[test]
fn a_feature_beyond_the_allowed_ones_is_refused_by_stage() {
    let room = served();
    for feature in [
        "(memory $wide i64 1)",
        "(memory $shared 1 1 shared)",
        "(tag $exception)",
        "(type $collected (struct (field i32)))",
    ] {
        let text = format!(
            r#"{feature} (func (export "homeostat:policy/router@0.1.0#route") (param i32) (result i32)
                 (call $tell (i32.const 2)))"#
        );
        let refusal = refusal(&room, &text_guest::router(&text, &Contract::ours()));
        assert_eq!(refusal.stage, Stage::Features, "{feature}: {refusal}");
    }
}

#[test]
fn a_component_that_begins_too_large_is_refused_before_it_runs() {
    let room = served();
    for (what, word) in [
        ("(memory $large 2000)", "memory"),
        ("(table $large 100000 funcref)", "table"),
        (
            "(memory 1) (memory 1) (memory 1) (memory 1) (memory 1)",
            "memories",
        ),
    ] {
        let text = format!(
            r#"{what} (func (export "homeostat:policy/router@0.1.0#route") (param i32) (result i32)
                 (call $tell (i32.const 2)))"#
        );
        let refusal = refusal(&room, &text_guest::router(&text, &Contract::ours()));
        assert_eq!(refusal.stage, Stage::Resources, "{what}: {refusal}");
        assert!(refusal.text.contains(word), "{refusal}");
    }
}
