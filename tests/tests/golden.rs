//! Components that were built long ago must still serve: the golden ones of every language
//! answer their cases, and a component whose runtime asks WASI for the world finds it empty.

use std::path::{Path, PathBuf};

use homeostat_cases::{Asked, Reply, ToldModels, ask, read};
use homeostat_hooks::{Decision, Hook};
use homeostat_policy::{LimitChanges, Offer, PolicyRoom};
use homeostat_tests::scene;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A room with this golden component, which is given nothing.
fn room_with(name: &str) -> PolicyRoom {
    let file = root()
        .join("tests/golden")
        .join(name)
        .with_extension("wasm");
    let bytes = std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let limits = LimitChanges {
        deadline_ms: Some(120_000),
        ..LimitChanges::default()
    };
    let mut offer = scene::limited(name, &bytes, limits);
    offer.options.grants = None;
    let room = scene::room();
    room.put(Offer {
        hooks: Some(vec![Hook::Route]),
        ..offer
    })
    .unwrap_or_else(|e| panic!("{name}: {e}"));
    room
}

#[test]
fn the_golden_component_of_every_language_answers_its_cases() {
    let cases = root().join("plugins/route-thermal/cases.toml");
    let text = std::fs::read_to_string(cases).expect("the cases are there");
    let file = read(&text).unwrap_or_else(|e| panic!("{e}"));
    for name in ["route-thermal-rust", "route-thermal-c", "route-thermal-js"] {
        let room = room_with(name);
        for case in &file.cases {
            let Asked { reply, .. } = ask(&room, &ToldModels::default(), case);
            let misses = case.misses(&reply);
            assert!(misses.is_empty(), "{name}: {}: {misses:?}", case.name);
        }
        for (property, inputs) in &file.properties {
            let held = property.check(&file, (&room, &ToldModels::default()), *inputs, 1);
            held.unwrap_or_else(|e| panic!("{name}: {}: {e}", property.as_str()));
        }
    }
}

#[test]
fn a_component_that_asks_wasi_for_the_world_finds_it_empty() {
    let room = room_with("asks-wasi");
    let text = "hook = \"route\"\n[[case]]\nname = \"a\"\nask = \"hi\"\n\
                tiers = [{ id = \"small\", ready = true }]\nexpect = [\"kind is plan\"]\n";
    let file = read(text).unwrap_or_else(|e| panic!("{e}"));
    let reply = ask(&room, &ToldModels::default(), &file.cases[0]).reply;
    let Reply::Decision(Decision::Plan(plan)) = reply else {
        panic!("it does not answer: {reply:?}");
    };
    let found = "read 0, write 0, environment 0, input 0, clock 1";
    assert_eq!(plan.reason, found);
    assert!(!Path::new("left-behind.txt").exists());
}
