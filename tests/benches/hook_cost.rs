//! What does one hook call cost, and where does each microsecond go?
//!
//! The same component and the same records, through the policy room and through bare
//! wasmtime, in one run: what lies between is the price of limits, checks, counters and
//! swaps. *Fresh* is a request that makes its own instance, *ready* one that finds an
//! instance made ahead, *pinned* a further call on an instance that is there. `crossing` is a
//! hand-written guest that answers at once, so it costs what the boundary costs; the others
//! are policies at work.
//!
//! `cargo bench --bench hook_cost [-- --keep] [FILE.wasm…]`: with `--keep` the result goes to
//! `tests/bench/results/<date>-<machine>-hooks.json`; components that are named are measured
//! too, each at the hook that its name begins with. `make bench` names one router and one
//! validator in each of the four languages.

#[path = "hook_cost/bare.rs"]
mod bare;
#[path = "hook_cost/results.rs"]
mod results;
#[path = "hook_cost/swaps.rs"]
mod swaps;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use homeostat_hooks::{Hook, Policies, Request, Session, Snapshot};
use homeostat_policy::{CacheConfig, Offer, PolicyRoom, RecordConfig, RoomConfig};
use homeostat_tests::scene;
use homeostat_tests::{default_policies, text_guest};

use results::{Results, Row};

/// Timed calls of each kind, after a tenth as many that are not.
const CALLS: usize = 5_000;
/// Calls of a policy that takes about a millisecond: as many would take a minute.
const DEAR_CALLS: usize = 1_000;
/// From this size on a component is an interpreter's.
const DEAR_BYTES: usize = 1 << 20;

/// A policy to be measured, and the hook at which it is asked.
struct Subject {
    name: String,
    hook: Hook,
    bytes: Vec<u8>,
}

impl Subject {
    fn calls(&self) -> usize {
        if self.bytes.len() < DEAR_BYTES {
            CALLS
        } else {
            DEAR_CALLS
        }
    }

    fn row(&self, way: &str, times: Vec<u64>) -> Row {
        Row::new(&self.name, self.hook.as_str(), way, times)
    }
}

fn subjects() -> Vec<Subject> {
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
    let named = std::env::args().filter_map(|argument| subject_in(&argument));
    crossing.into_iter().chain(policies).chain(named).collect()
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

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds of every call. `before` is not timed.
fn measure_after(calls: usize, mut before: impl FnMut(), mut one: impl FnMut()) -> Vec<u64> {
    for _ in 0..calls / 10 {
        before();
        one();
    }
    (0..calls)
        .map(|_| {
            before();
            let started = Instant::now();
            one();
            nanos(started.elapsed())
        })
        .collect()
}

/// Nanoseconds of every call.
fn measure(calls: usize, one: impl FnMut()) -> Vec<u64> {
    measure_after(calls, || {}, one)
}

/// Two kinds of calls in turn, so that what else the machine does hits both alike. `settle`
/// comes between rounds.
fn measure_in_turn(
    calls: usize,
    mut one: impl FnMut(),
    mut other: impl FnMut(),
    mut settle: impl FnMut(u64),
) -> [Vec<u64>; 2] {
    const ROUND: usize = 20;
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..calls / ROUND {
        for _ in 0..ROUND {
            for (call, times) in [&mut one as &mut dyn FnMut(), &mut other]
                .into_iter()
                .zip(&mut times)
            {
                let started = Instant::now();
                call();
                times.push(nanos(started.elapsed()));
            }
        }
        settle(((round + 1) * ROUND) as u64);
    }
    // The first tenth warms up.
    times.map(|times| times[calls / 10..].to_vec())
}

/// What the runs of all subjects share.
pub struct Bench {
    request: Arc<Request>,
    snapshot: Arc<Snapshot>,
    /// Machine code of what was compiled already.
    compiled: tempfile::TempDir,
    results: Results,
}

impl Bench {
    fn new() -> Self {
        Self {
            request: scene::asking("request-1", "Explain in two sentences why the sky is blue."),
            snapshot: Arc::default(),
            compiled: tempfile::tempdir().unwrap_or_else(|e| panic!("no folder: {e}")),
            results: Results::default(),
        }
    }

    /// A room in which nothing is kept ready unless `change` says so.
    fn room(&self, change: impl FnOnce(&mut RoomConfig)) -> PolicyRoom {
        let mut config = RoomConfig {
            ready_instances: 0,
            cache: CacheConfig {
                dir: Some(self.compiled.path().join("policies")),
                ..CacheConfig::default()
            },
            ..RoomConfig::default()
        };
        // On a busy machine a deadline would end what shall be timed.
        config.limits.deadline_ms = 10_000;
        change(&mut config);
        scene::room_with(config)
    }

    fn begin(&self, room: &PolicyRoom) -> Box<dyn Session> {
        room.begin(Arc::clone(&self.request), Arc::clone(&self.snapshot))
    }

    fn through_the_room(&mut self, subject: &Subject) {
        let room = self.room(|_| {});
        put(&room, subject, Some(vec![subject.hook]));
        let fresh = measure(subject.calls(), || {
            call(&mut *self.begin(&room), subject.hook);
        });
        self.results.add(subject.row("room, fresh", fresh));
        // An instance is kept for the hooks that may still come: after `validate` that is
        // `validate` again; the others need a policy that serves several.
        if subject.hook == Hook::Validate || subject.name == "crossing" {
            put(&room, subject, None);
            let mut session = self.begin(&room);
            call(&mut *session, subject.hook);
            let pinned = measure(subject.calls(), || call(&mut *session, subject.hook));
            self.results.add(subject.row("room, pinned", pinned));
        }
    }

    /// A request that finds an instance made ahead: the time between two requests is not
    /// timed, as it is not waited for where requests come less often than instances are made.
    fn with_ready_instances(&mut self, subject: &Subject) {
        let room = self.room(|config| {
            config.ready_instances = 8;
            config.ready_above_micros = 0;
        });
        put(&room, subject, Some(vec![subject.hook]));
        let full = || {
            while room.stats().ready < 8 {
                std::thread::yield_now();
            }
        };
        let calls = subject.calls();
        let ready = measure_after(calls, full, || call(&mut *self.begin(&room), subject.hook));
        self.results.add(subject.row("room, ready", ready));
    }

    /// A fresh call with and without a recorder. The writer's thread is let finish between
    /// rounds, as it does on any machine that is not asked 20,000 times a second.
    fn with_a_recorder(&mut self, subject: &Subject) {
        let folder = tempfile::tempdir().unwrap_or_else(|e| panic!("no folder: {e}"));
        let plain = self.room(|_| {});
        let recorded = self.room(|config| {
            config.record = RecordConfig {
                dir: Some(folder.path().to_path_buf()),
                ..RecordConfig::default()
            };
        });
        put(&plain, subject, Some(vec![subject.hook]));
        put(&recorded, subject, Some(vec![subject.hook]));
        let settle = |sent| {
            let done = || {
                recorded
                    .stats()
                    .recorded
                    .map_or(0, |r| r.written + r.dropped)
            };
            while done() < sent {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let times = measure_in_turn(
            subject.calls(),
            || call(&mut *self.begin(&plain), subject.hook),
            || call(&mut *self.begin(&recorded), subject.hook),
            settle,
        );
        let dropped = recorded.stats().recorded.map_or(0, |r| r.dropped);
        assert_eq!(dropped, 0, "a dropped recording is cheaper than a kept one");
        for (way, times) in ["room, in turn", "room, recorded"].into_iter().zip(times) {
            self.results.add(subject.row(way, times));
        }
    }

    /// All that the hooks add to a request: three policies, three instances.
    fn one_request(&mut self) {
        let room = self.room(|_| {});
        for (name, bytes) in default_policies() {
            if let Some(hook) = hook_of(name) {
                let subject = Subject {
                    name: name.into(),
                    hook,
                    bytes: bytes.to_vec(),
                };
                put(&room, &subject, Some(vec![hook]));
            }
        }
        let whole = measure(CALLS, || {
            let replies = scene::serve_in(&mut *self.begin(&room));
            assert!(replies.classify.fault.is_none() && replies.validate.fault.is_none());
        });
        let row = Row::new("default policies", "all three", "room, fresh", whole);
        self.results.add(row);
    }
}

/// One call; a fallback's answer would not be the component's cost.
fn call(session: &mut dyn Session, hook: Hook) {
    let fault = match hook {
        Hook::Classify => session.classify().fault,
        Hook::Route => session.route(&Default::default(), &scene::tiers()).fault,
        Hook::Validate => session.validate(&scene::answer()).fault,
    };
    assert_eq!(fault, None, "the policy at {} failed", hook.as_str());
}

fn put(room: &PolicyRoom, subject: &Subject, hooks: Option<Vec<Hook>>) {
    let offer = Offer {
        hooks,
        ..scene::offer(&subject.name, &subject.bytes)
    };
    room.put(offer)
        .unwrap_or_else(|e| panic!("{}: {e}", subject.name));
}

fn main() {
    let mut bench = Bench::new();
    for subject in subjects() {
        bench.through_the_room(&subject);
        bench.with_ready_instances(&subject);
        bench.with_a_recorder(&subject);
        bare::through_wasmtime(&subject, &bench.request.clone(), &mut bench.results)
            .unwrap_or_else(|e| panic!("{}: {e:#}", subject.name));
    }
    bench.one_request();
    swaps::thousand(&mut bench);
    bench.results.print();
    if std::env::args().any(|argument| argument == "--keep") {
        let file = bench
            .results
            .keep()
            .unwrap_or_else(|e| panic!("the results cannot be kept: {e}"));
        println!("kept in {}", file.display());
    }
}
