//! What a swap of an admitted policy takes, and whether memory stays where it is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use homeostat_hooks::Hook;

use crate::results::{Row, Swaps};
use crate::{Bench, Subject, call, hook_of, nanos, put};

use homeostat_tests::POLICIES;

/// Swaps that are timed.
const SWAPS: usize = 1_000;

/// One router takes another's place a thousand times, while requests are asked: by a rollback
/// to the generation before, which is the swap of an admitted policy and all that an operator
/// waits for.
pub fn thousand(bench: &mut Bench) {
    let room = bench.room(|_| {});
    let router = POLICIES
        .iter()
        .find(|(name, _)| hook_of(name) == Some(Hook::Route))
        .unwrap_or_else(|| panic!("no default policy routes"));
    for name in ["one", "other"] {
        let subject = Subject {
            name: name.into(),
            hook: Hook::Route,
            bytes: router.1.to_vec(),
        };
        put(&room, &subject, Some(vec![Hook::Route]));
    }
    let (ended, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut times, mut resident) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Relaxed) {
                call(&mut *bench.begin(&room), Hook::Route);
                asked.fetch_add(1, Relaxed);
            }
        });
        for n in 0..=SWAPS {
            if n % 100 == 0 {
                resident.extend(resident_bytes());
            }
            let kept = room.status()[Hook::Route as usize].kept[0].generation;
            let started = Instant::now();
            let swapped = room.rollback_to(Hook::Route, kept);
            times.push(nanos(started.elapsed()));
            swapped.unwrap_or_else(|e| panic!("{e}"));
            // The other thread shall meet every policy.
            let seen = asked.load(Relaxed);
            while asked.load(Relaxed) == seen {
                std::thread::yield_now();
            }
        }
        ended.store(true, Relaxed);
    });
    let row = Row::new("two routers", "route", "swap", times);
    bench.results.add(row);
    bench.results.swaps = Some(Swaps {
        requests: asked.load(Relaxed),
        resident_bytes: resident,
    });
}

/// Memory of this process; none where the kernel does not tell.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}
