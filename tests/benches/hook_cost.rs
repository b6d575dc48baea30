//! What does one hook call cost?
//!
//! The same component and the same records, through the policy room and through bare
//! wasmtime, in one run: what lies between is the price of limits, checks, counters and
//! swaps. *Fresh* is a request that makes its own instance; *pinned* a further call on an
//! instance that is there. `crossing` is a hand-written guest that answers at once, so it
//! costs what the boundary costs; the others are the default policies at work.
//!
//! `cargo bench -p homeostat-tests --bench hook_cost [-- --keep] [FILE.wasm…]`: with
//! `--keep` the result goes to `tests/results/<date>-<machine>/hook_cost.json`; components
//! that are named are measured instead of ours, each at the hook that its name begins with.

#[path = "hook_cost/bare.rs"]
mod bare;
#[path = "hook_cost/results.rs"]
mod results;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use homeostat_hooks::{Hook, Policies, Request, Session, Snapshot};
use homeostat_policy::{Offer, PolicyRoom, RecordConfig, RoomConfig};
use homeostat_tests::scene;
use homeostat_tests::{default_policies, text_guest};

use results::{Results, Row};

/// Timed calls of each kind, after a tenth as many that are not.
const CALLS: usize = 5_000;

/// A policy to be measured, and the hook at which it is asked.
struct Subject {
    name: String,
    hook: Hook,
    bytes: Vec<u8>,
}

fn subjects() -> Vec<Subject> {
    let named: Vec<Subject> = std::env::args().filter_map(|a| subject_in(&a)).collect();
    if !named.is_empty() {
        return named;
    }
    let crossing = Hook::ALL.map(|hook| Subject {
        name: "crossing".into(),
        hook,
        bytes: text_guest::telling(1),
    });
    let policies = default_policies().filter_map(|(name, bytes)| {
        Some(Subject {
            name: name.into(),
            hook: hook_of(name)?,
            bytes: bytes.to_vec(),
        })
    });
    crossing.into_iter().chain(policies).collect()
}

fn hook_of(name: &str) -> Option<Hook> {
    Hook::ALL
        .into_iter()
        .find(|hook| name.starts_with(hook.as_str()))
}

/// The component that an argument names.
fn subject_in(argument: &str) -> Option<Subject> {
    let name = Path::new(argument)
        .file_name()?
        .to_str()?
        .strip_suffix(".wasm")?;
    let bytes = std::fs::read(argument).unwrap_or_else(|e| panic!("{argument}: {e}"));
    Some(Subject {
        name: name.into(),
        hook: hook_of(name).unwrap_or_else(|| panic!("{argument}: which hook is it for?")),
        bytes,
    })
}

/// Nanoseconds of every call.
pub fn measure(mut one: impl FnMut()) -> Vec<u64> {
    for _ in 0..CALLS / 10 {
        one();
    }
    (0..CALLS)
        .map(|_| {
            let started = Instant::now();
            one();
            u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX)
        })
        .collect()
}

/// Two kinds of calls in turn, so that what else the machine does hits both alike. `settle`
/// comes between rounds.
fn measure_in_turn(
    mut one: impl FnMut(),
    mut other: impl FnMut(),
    mut settle: impl FnMut(u64),
) -> [Vec<u64>; 2] {
    const ROUND: usize = 20;
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..CALLS / ROUND {
        for _ in 0..ROUND {
            for (calls, times) in [&mut one as &mut dyn FnMut(), &mut other]
                .into_iter()
                .zip(&mut times)
            {
                let started = Instant::now();
                calls();
                times.push(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
            }
        }
        settle(((round + 1) * ROUND) as u64);
    }
    // The first tenth warms up.
    times.map(|times| times[CALLS / 10..].to_vec())
}

/// A fresh call with and without a recorder. The writer's thread is let finish between
/// rounds, as it does on any machine that is not asked 20,000 times a second.
fn with_a_recorder(subject: &Subject, asked: &Asked, results: &mut Results) {
    let folder = tempfile::tempdir().unwrap_or_else(|e| panic!("no folder: {e}"));
    let plain = scene::room();
    let recorded = scene::room_with(RoomConfig {
        record: RecordConfig {
            dir: Some(folder.path().to_path_buf()),
            ..RecordConfig::default()
        },
        ..RoomConfig::default()
    });
    put(&plain, subject);
    put(&recorded, subject);
    let settle = |sent| {
        let done = || {
            recorded
                .stats()
                .recorded
                .map_or(0, |r| r.written + r.dropped)
        };
        while done() < sent {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    };
    let times = measure_in_turn(
        || call(&mut *asked.begin(&plain), subject.hook),
        || call(&mut *asked.begin(&recorded), subject.hook),
        settle,
    );
    let dropped = recorded.stats().recorded.map_or(0, |r| r.dropped);
    assert_eq!(dropped, 0, "a dropped recording is cheaper than a kept one");
    for (how, times) in ["room, in turn", "room, recorded"].into_iter().zip(times) {
        results.add(Row::new(&subject.name, subject.hook.as_str(), how, times));
    }
}

/// What every call is asked about.
pub struct Asked {
    request: Arc<Request>,
    snapshot: Arc<Snapshot>,
}

impl Asked {
    fn begin(&self, room: &PolicyRoom) -> Box<dyn Session> {
        room.begin(Arc::clone(&self.request), Arc::clone(&self.snapshot))
    }
}

/// One call; a fallback's answer would not be the component's cost.
fn call(session: &mut dyn Session, hook: Hook) {
    let fault = match hook {
        Hook::Classify => session.classify().fault,
        Hook::Route => session.route(&Default::default(), &scene::tiers()).fault,
        Hook::Validate => session.validate(&scene::answer()).fault,
    };
    assert_eq!(fault, None, "{} at {} failed", "the policy", hook.as_str());
}

fn put(room: &PolicyRoom, subject: &Subject) {
    let offer = Offer {
        hooks: Some(vec![subject.hook]),
        ..scene::offer(&subject.name, &subject.bytes)
    };
    room.put(offer)
        .unwrap_or_else(|e| panic!("{}: {e}", subject.name));
}

fn through_the_room(subject: &Subject, asked: &Asked, results: &mut Results) {
    let room = scene::room();
    put(&room, subject);
    let fresh = measure(|| call(&mut *asked.begin(&room), subject.hook));
    results.add(Row::new(
        &subject.name,
        subject.hook.as_str(),
        "room, fresh",
        fresh,
    ));
    // An instance is kept for the hooks that may still come: after `validate` that is
    // `validate` again; the others need a policy that serves several.
    let pinned = subject.hook == Hook::Validate || subject.name == "crossing";
    if pinned {
        room.put(scene::offer(&subject.name, &subject.bytes))
            .unwrap_or_else(|e| panic!("{}: {e}", subject.name));
        let mut session = asked.begin(&room);
        call(&mut *session, subject.hook);
        let pinned = measure(|| call(&mut *session, subject.hook));
        results.add(Row::new(
            &subject.name,
            subject.hook.as_str(),
            "room, pinned",
            pinned,
        ));
    }
}

/// All that the hooks add to a request: three policies, three instances.
fn one_request(subjects: &[Subject], asked: &Asked, results: &mut Results) {
    let room = scene::room();
    for subject in subjects.iter().filter(|s| s.name != "crossing") {
        put(&room, subject);
    }
    let whole = measure(|| {
        let replies = scene::serve_in(&mut *asked.begin(&room));
        assert!(replies.classify.fault.is_none() && replies.validate.fault.is_none());
    });
    results.add(Row::new(
        "default policies",
        "all three",
        "room, fresh",
        whole,
    ));
}

fn main() {
    let asked = Asked {
        request: scene::asking("request-1", "Explain in two sentences why the sky is blue."),
        snapshot: Arc::default(),
    };
    let subjects = subjects();
    let mut results = Results::default();
    for subject in &subjects {
        through_the_room(subject, &asked, &mut results);
        with_a_recorder(subject, &asked, &mut results);
        bare::through_wasmtime(subject, &asked, &mut results)
            .unwrap_or_else(|e| panic!("{}: {e:#}", subject.name));
    }
    if subjects.iter().any(|s| s.name == "crossing") {
        one_request(&subjects, &asked, &mut results);
    }
    results.print();
    if std::env::args().any(|argument| argument == "--keep") {
        let file = results
            .keep()
            .unwrap_or_else(|e| panic!("the results cannot be kept: {e}"));
        println!("kept in {}", file.display());
    }
}
