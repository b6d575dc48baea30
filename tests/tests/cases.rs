//! The cases of the default policies, through their components in the policy room. The
//! same files run against the plain functions in `plugins/`: what passes there and fails
//! here was lost on the way through the contract.

use std::path::Path;

use homeostat_cases::Case;
use homeostat_hooks::Hook;
use homeostat_policy::LimitChanges;
use homeostat_tests::{POLICIES, scene};

fn cases_of(policy: &str) -> (String, Vec<Case>) {
    let file = format!("plugins/{policy}/cases.toml");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(&file);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{file}: every policy has cases ({e})"));
    let read = homeostat_cases::read(&text).unwrap_or_else(|e| panic!("{file}: {e}"));
    (file, read.cases)
}

#[test]
fn every_case_holds_in_the_component() {
    let mut failed = Vec::new();
    let mut run = 0;
    for (policy, bytes) in POLICIES {
        let (file, cases) = cases_of(policy);
        let room = scene::room();
        let limits = LimitChanges {
            deadline_ms: Some(120_000),
            ..LimitChanges::default()
        };
        room.put(scene::limited(policy, bytes, limits))
            .unwrap_or_else(|e| panic!("{policy}: {e}"));
        for case in &cases {
            // It must be the component that answered, not its fallback.
            let asked = homeostat_cases::ask(&room, case).reply;
            let misses = asked.map_or_else(|f| vec![f.to_string()], |r| case.misses(&r));
            failed.extend(
                misses
                    .iter()
                    .map(|miss| format!("{file}: {:?}: {miss}", case.name)),
            );
            run += 1;
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {run} cases:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

#[test]
fn the_default_policies_are_the_three_hooks() {
    let names: Vec<&str> = POLICIES.iter().map(|(name, _)| *name).collect();
    for hook in Hook::ALL {
        let prefix = format!("{}-", hook.as_str());
        assert!(
            names.iter().any(|name| name.starts_with(&prefix)),
            "no folder of plugins/ begins with {prefix}: {names:?}"
        );
    }
}
