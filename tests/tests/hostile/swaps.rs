//! Policies change under running requests: nobody fails, and no request sees two of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use homeostat_hooks::{AnsweredBy, Hook, HookReply, Policies, Snapshot, Verdict, builtin};
use homeostat_policy::PolicyRoom;
use homeostat_tests::scene::{self, Replies};
use homeostat_tests::{default_policies, text_guest};

use crate::{is_component, patient};

/// What 800 swaps may leave behind. Components that are kept too long would cost 800 times
/// their machine code, 100 KiB each.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// What a request was told, and by which generation. Panics where its hooks disagree.
fn one_voice(replies: &Replies) -> (u32, u64) {
    fn generation<T: std::fmt::Debug>(reply: &HookReply<T>) -> u64 {
        assert!(is_component(reply), "a failed request: {reply:?}");
        match reply.by {
            AnsweredBy::Component { generation, .. } => generation,
            _ => unreachable!("it is a component"),
        }
    }
    let told = text_guest::told(&replies.route.value).expect("a number");
    let percent = |confidence: f32| (confidence * 100.0).round() as u32;
    let verdict = match &replies.validate.value {
        Verdict::Accept(assessment) => percent(assessment.confidence),
        other => panic!("{other:?}"),
    };
    let classified = percent(replies.classify.value.confidence);
    assert_eq!(
        (classified, verdict),
        (told, told),
        "two policies in one request"
    );
    let number = generation(&replies.route);
    let others = (generation(&replies.classify), generation(&replies.validate));
    assert_eq!(others, (number, number), "two generations in one request");
    (told, number)
}

/// Requests until `stop`; counts how often each of two behaviours answered.
fn client(room: &PolicyRoom, stop: &AtomicBool) -> [u64; 2] {
    let mut seen = [0, 0];
    let mut last = 0;
    while !stop.load(Ordering::Relaxed) {
        let (told, generation) = one_voice(&scene::serve(room, scene::asking("request", "Hello.")));
        assert!(generation >= last, "generation {generation} after {last}");
        last = generation;
        seen[told as usize - 1] += 1;
        // Leaves the machine to the compiler now and then.
        std::thread::sleep(Duration::from_micros(500));
    }
    seen
}

#[test]
fn a_thousand_swaps_under_eight_clients_fail_no_request() {
    let room = scene::room();
    let behaviours = [1, 2].map(|n| scene::limited("told", &text_guest::telling(n), patient()));
    room.put(behaviours[0].clone())
        .unwrap_or_else(|e| panic!("{e}"));
    let stop = AtomicBool::new(false);
    let mut warm_bytes = 0;
    let seen = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| client(&room, &stop)))
            .collect();
        for swap in 1..=1000 {
            if swap == 200 {
                warm_bytes = scene::resident_bytes();
            }
            if let Err(refusal) = room.put(behaviours[swap % 2].clone()) {
                stop.store(true, Ordering::Relaxed);
                panic!("swap {swap}: {refusal}");
            }
        }
        stop.store(true, Ordering::Relaxed);
        let seen = clients
            .into_iter()
            .map(|c| c.join().expect("no request failed"));
        seen.fold([0, 0], |sum, s| [sum[0] + s[0], sum[1] + s[1]])
    });
    assert!(
        seen[0] > 0 && seen[1] > 0,
        "one behaviour was never seen: {seen:?}"
    );
    // The other tests of this binary take memory and give it back; a minute of it is a leak.
    let growth = || scene::resident_bytes().saturating_sub(warm_bytes);
    for _ in 0..600 {
        if growth() < GROWTH_BYTES_MAX {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("800 swaps after the first 200: {} bytes more", growth());
    assert!(
        growth() < GROWTH_BYTES_MAX,
        "memory grows with every swap: {} bytes",
        growth()
    );
    let stats = room.stats();
    assert!(stats.swaps.count >= 1000, "{:?}", stats.swaps);
    for (hook, counters) in &stats.hooks {
        assert_eq!(counters.fallbacks, 0, "{hook}: {counters:?}");
        assert_eq!(
            counters.faults.values().sum::<u64>(),
            0,
            "{hook}: {counters:?}"
        );
    }
    assert_eq!(stats.instances, 0);
    println!(
        "1,000 swaps, {} and {} requests on each side, swap p50 {:?} p99 {:?} micros",
        seen[0], seen[1], stats.swaps.p50_micros, stats.swaps.p99_micros
    );
}

#[test]
fn a_request_that_has_begun_keeps_its_policy() {
    let room = scene::room();
    for number in [1, 2] {
        let offer = scene::limited("told", &text_guest::telling(number), patient());
        room.put(offer).unwrap_or_else(|e| panic!("{e}"));
        let mut session = room.begin(scene::asking("request", "Hello."), Default::default());
        let next = scene::limited("told", &text_guest::telling(number + 10), patient());
        room.put(next).unwrap_or_else(|e| panic!("{e}"));
        for hook in Hook::ALL {
            room.unload(hook);
        }
        assert_eq!(one_voice(&scene::serve_in(&mut *session)).0, number);
    }
}

#[test]
fn rollback_restores_what_served_before() {
    let room = scene::room();
    let put = |number| {
        let offer = scene::limited("told", &text_guest::telling(number), patient());
        room.put(offer).unwrap_or_else(|e| panic!("{e}"));
    };
    let told = || one_voice(&scene::serve(&room, scene::asking("request", "Hello."))).0;
    put(1);
    put(2);
    assert_eq!(told(), 2);
    for hook in Hook::ALL {
        room.rollback(hook).unwrap_or_else(|e| panic!("{e}"));
    }
    assert_eq!(told(), 1);
}

#[test]
fn without_policies_the_built_in_answers_remain() {
    let room = scene::room();
    for (name, bytes) in default_policies() {
        room.put(scene::limited(name, bytes, patient()))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let request = scene::asking("request", "What is the capital of France?");
    let served = scene::serve(&room, request.clone());
    assert!(is_component(&served.classify), "{:?}", served.classify);
    for hook in Hook::ALL {
        room.unload(hook);
    }
    let replies = scene::serve(&room, request.clone());
    assert_eq!(replies.classify.by, AnsweredBy::BuiltIn);
    assert_eq!(replies.route.by, AnsweredBy::BuiltIn);
    assert_eq!(replies.validate.by, AnsweredBy::BuiltIn);
    let classification = builtin::classify(&request);
    assert_eq!(replies.classify.value, classification);
    let plain = builtin::route(&classification, &scene::tiers(), &Snapshot::default());
    assert_eq!(replies.route.value, plain);
    assert_eq!(replies.validate.value, builtin::validate(&scene::answer()));
}
