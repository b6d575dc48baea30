//! The cases of the policies in Rust, through their components in the policy room. The
//! same files run against the plain functions in `plugins/`: what passes there and fails
//! here was lost on the way through the contract.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use homeostat_cases::{Bench, Case, CaseFile, ToldModels};
use homeostat_hooks::Hook;
use homeostat_policy::{Offer, PolicyRoom, RoomConfig, parse_options};
use homeostat_tests::{POLICIES, scene};

/// Cases are about decisions: they must not fail on a busy machine.
const DEADLINE_MS: u32 = 120_000;
/// The inputs of a property are the same in every run.
const SEED: u64 = 1;

fn folder(policy: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.join("plugins").join(policy)
}

fn cases_of(policy: &str) -> CaseFile {
    let path = folder(policy).join("cases.toml");
    let text = std::fs::read_to_string(path)
        .unwrap_or_else(|e| panic!("{policy}: every policy has cases.toml ({e})"));
    homeostat_cases::read(&text).unwrap_or_else(|e| panic!("{policy}: {e}"))
}

/// A policy in a room of its own.
fn bench((name, bytes): (&'static str, &'static [u8])) -> Bench<PolicyRoom> {
    let models = Arc::new(ToldModels::default());
    let room = scene::room_of(RoomConfig::default(), models.clone());
    // The defaults have none: the host gives them what they need.
    let policy_toml = std::fs::read_to_string(folder(name).join("policy.toml"))
        .unwrap_or_else(|_| "grants = [\"config\"]".into());
    Bench::new(room, models, policy_toml, move |room, case, text| {
        let mut options = parse_options(text).map_err(|e| e.to_string())?;
        options.limits.deadline_ms = Some(case.deadline_ms().unwrap_or(DEADLINE_MS));
        let offer = Offer {
            options,
            ..scene::offer(name, bytes)
        };
        room.put(offer).map(drop).map_err(|e| e.to_string())
    })
}

/// What a case misses. It must be the component that answered, not its fallback.
fn misses(bench: &mut Bench<PolicyRoom>, case: &Case) -> Vec<String> {
    let asked = bench.ask(case);
    case.missed(&asked.reply, &asked.questions)
}

#[test]
fn every_case_and_property_holds_in_the_component() {
    let mut failed = Vec::new();
    let mut run = 0;
    for policy in POLICIES {
        let file = cases_of(policy.0);
        let mut bench = bench(*policy);
        for case in &file.cases {
            let misses = misses(&mut bench, case).into_iter();
            failed.extend(misses.map(|miss| format!("{}: {:?}: {miss}", policy.0, case.name)));
            run += 1;
        }
        for (property, inputs) in &file.properties {
            let held = bench.check(*property, &file, *inputs, SEED);
            let broken = held.map_err(|e| format!("{}: {}: {e}", policy.0, property.as_str()));
            failed.extend(broken.err());
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {run} cases and their properties:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

#[test]
fn every_hook_has_a_policy_in_rust() {
    let names: Vec<&str> = POLICIES.iter().map(|(name, _)| *name).collect();
    for hook in Hook::ALL {
        let prefix = format!("{}-", hook.as_str());
        assert!(
            names.iter().any(|name| name.starts_with(&prefix)),
            "no folder of plugins/ begins with {prefix}: {names:?}"
        );
    }
}
