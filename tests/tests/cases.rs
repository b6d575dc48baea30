//! The cases of the default policies, through their components in the policy room. The
//! same files run against the plain functions in `plugins/`: what passes there and fails
//! here was lost on the way through the contract.

use std::path::Path;
use std::sync::Arc;

use homeostat_cases::{Case, Reply};
use homeostat_hooks::{Hook, HookReply, Policies};
use homeostat_policy::{LimitChanges, PolicyRoom};
use homeostat_tests::{POLICIES, scene};

fn cases_of(policy: &str) -> (String, Vec<Case>) {
    let file = format!("plugins/{policy}/cases.toml");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(&file);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{file}: every policy has cases ({e})"));
    let cases = homeostat_cases::read(&text).unwrap_or_else(|e| panic!("{file}: {e}"));
    (file, cases)
}

/// Asks the component, and insists that it was the component that answered.
fn reply(room: &PolicyRoom, case: &Case) -> Result<Reply, String> {
    fn own<T>(reply: HookReply<T>, wrap: fn(T) -> Reply) -> Result<Reply, String> {
        match reply.fault {
            None => Ok(wrap(reply.value)),
            Some(fault) => Err(format!("the component failed: {fault}")),
        }
    }
    let mut session = room.begin(
        Arc::new(case.request.clone()),
        Arc::new(case.snapshot.clone()),
    );
    match case.hook {
        Hook::Classify => own(session.classify(), Reply::Classification),
        Hook::Route => own(
            session.route(&case.classification, &case.tiers),
            Reply::Decision,
        ),
        Hook::Validate => own(session.validate(&case.answer), Reply::Verdict),
    }
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
        assert!(!cases.is_empty(), "{file} holds no case");
        for case in &cases {
            let misses = reply(&room, case).map_or_else(|e| vec![e], |r| case.misses(&r));
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
