//! One test for every guest, by its name: "a policy that …". Each is admitted, misbehaves
//! when a request names it, and the same things must hold every time: an answer that the
//! host can act on, a fault of the right kind, a next request that is served as if
//! nothing had been, and no memory kept.

use std::sync::{Arc, Mutex, OnceLock, Weak};

use homeostat_hooks::{
    AnsweredBy, Decision, FaultKind, GenerateOptions, Generated, Hook, HookReply, ModelError,
    Models, Policies, Snapshot, TierView, Value, builtin,
};
use homeostat_policy::{Deny, Grant, LimitChanges, PolicyRoom, RoomConfig, Stage, StateStatus};
use homeostat_tests::scene::{self, Replies};
use homeostat_tests::{GUESTS, text_guest};

use crate::{impatient, is_component, patient};

// A guest without a test of its name does not compile.
macro_rules! has_a_test {
    ($guest:ident) => {
        const _: fn() = $guest;
    };
}
homeostat_tests::foreach_guest!(has_a_test);

/// What a process may grow by while a guest does its worst; its limits are 64 MiB of
/// memory, or 512 MiB where a test raises them.
const GROWTH_BYTES_MAX: u64 = 640 << 20;

/// The faults of classify, route and validate; `None` = the component answered.
type Faults = [Option<FaultKind>; 3];

/// The kind of the fault when the fallback answered, and nothing when the component did.
fn outcome<T>(reply: &HookReply<T>) -> Option<FaultKind> {
    match (&reply.by, &reply.fault) {
        (AnsweredBy::Fallback { fallback, name, .. }, Some(fault)) => {
            assert_eq!((fallback.as_str(), name.as_str()), ("built-in", "guest"));
            assert!(!fault.detail.is_empty());
            Some(fault.kind)
        }
        (
            AnsweredBy::Component {
                proposed: false, ..
            },
            None,
        ) => None,
        other => panic!("neither an answer nor a fallback: {other:?}"),
    }
}

fn outcomes(replies: &Replies) -> Faults {
    [
        outcome(&replies.classify),
        outcome(&replies.route),
        outcome(&replies.validate),
    ]
}

/// Lets the guest of this name misbehave in a room of its own and checks all that must
/// hold whatever it does.
fn misbehave(guest: &str, limits: LimitChanges, expected: Faults) -> (PolicyRoom, Replies) {
    let room = scene::room();
    room.put(scene::limited("guest", GUESTS, limits))
        .unwrap_or_else(|e| panic!("guests are honest at the probes: {e}"));
    let before = scene::resident_bytes();
    let request = scene::asking("request-1", guest);
    let replies = scene::serve(&room, request.clone());
    assert_eq!(outcomes(&replies), expected, "{replies:#?}");

    // The fallback is the answer of a host without policies.
    if expected[0].is_some() {
        assert_eq!(replies.classify.value, builtin::classify(&request));
    }
    if expected[1].is_some() {
        let classification = &replies.classify.value;
        let plain = builtin::route(classification, &scene::tiers(), &Snapshot::default());
        assert_eq!(replies.route.value, plain);
    }
    if expected[2].is_some() {
        assert_eq!(replies.validate.value, builtin::validate(&scene::answer()));
    }
    is_as_before(&room, before);
    let stats = room.stats();
    for (hook, fault) in Hook::ALL.into_iter().zip(expected) {
        let counters = &stats.hooks[hook.as_str()];
        let told: u64 = counters.faults.values().sum();
        assert_eq!(told, u64::from(fault.is_some()), "{hook:?}: {counters:?}");
        if let Some(kind) = fault {
            assert_eq!(counters.faults[kind.as_str()], 1, "{hook:?}: {counters:?}");
        }
    }
    (room, replies)
}

/// The next request is served, no instance is left, and the memory came back.
fn is_as_before(room: &PolicyRoom, resident_before: u64) {
    let next = scene::serve(room, scene::asking("request-2", "Hello."));
    assert_eq!(
        outcomes(&next),
        [None, None, None],
        "the next request: {next:#?}"
    );
    assert_eq!(room.stats().instances, 0, "an instance is left");
    let growth = scene::resident_bytes().saturating_sub(resident_before);
    assert!(
        growth < GROWTH_BYTES_MAX,
        "the process grew by {growth} bytes"
    );
}

fn detail<T>(reply: &HookReply<T>) -> &str {
    reply.fault.as_ref().map_or("", |fault| &fault.detail)
}

const ALL_TRAP: Faults = [Some(FaultKind::Trap); 3];
const ALL_DEADLINE: Faults = [Some(FaultKind::Deadline); 3];
const ALL_MEMORY: Faults = [Some(FaultKind::Memory); 3];
const ALL_INVALID: Faults = [Some(FaultKind::Invalid); 3];

// ---- in Rust ---------------------------------------------------------------------------

#[test]
fn loops_forever() {
    let (_, replies) = misbehave("loops_forever", impatient(), ALL_DEADLINE);
    assert!(
        detail(&replies.classify).contains("150 ms"),
        "it says which limit"
    );
}

#[test]
fn traps() {
    misbehave("traps", patient(), ALL_TRAP);
}

#[test]
fn traps_once_and_remembers() {
    let expected = [Some(FaultKind::Trap), None, None];
    let (_, replies) = misbehave("traps_once_and_remembers", patient(), expected);
    match &replies.route.value {
        Decision::Plan(plan) => assert_eq!(plan.reason, "1", "the dead instance was called"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn overflows_the_stack() {
    let (_, replies) = misbehave("overflows_the_stack", patient(), ALL_TRAP);
    assert!(
        detail(&replies.classify).contains("stack"),
        "{}",
        detail(&replies.classify)
    );
}

#[test]
fn grows_memory() {
    let (_, replies) = misbehave("grows_memory", patient(), ALL_MEMORY);
    assert!(detail(&replies.classify).contains("limits.memory_bytes"));
}

#[test]
fn answers_256_megabytes() {
    let expected = [None, Some(FaultKind::Memory), None];
    let (_, replies) = misbehave("answers_256_megabytes", patient(), expected);
    assert!(detail(&replies.route).contains("limits.memory_bytes"));

    // With memory enough to write the answer down, the host still does not copy it.
    let roomy = LimitChanges {
        memory_bytes: Some(512 << 20),
        ..patient()
    };
    let (_, replies) = misbehave("answers_256_megabytes", roomy, expected);
    assert!(detail(&replies.route).contains("limits.hostcall_bytes"));
}

#[test]
fn answers_many_small_strings() {
    let expected = [None, None, Some(FaultKind::Memory)];
    misbehave("answers_many_small_strings", patient(), expected);
}

#[test]
fn answers_nonsense() {
    let (room, replies) = misbehave("answers_nonsense", patient(), ALL_INVALID);
    assert!(detail(&replies.classify).contains("NaN"));
    assert!(detail(&replies.route).contains("no-such-tier"));
    assert!(detail(&replies.validate).contains("undecided"));

    // With one candidate it answers a plan without steps.
    let request = scene::asking("request-3", "answers_nonsense");
    let mut session = room.begin(request, Default::default());
    let route = session.route(&Default::default(), &scene::tiers()[..1]);
    assert_eq!(outcome(&route), Some(FaultKind::Invalid));
    assert!(detail(&route).contains("0 steps"));
}

#[test]
fn answers_out_of_range() {
    let (_, replies) = misbehave("answers_out_of_range", patient(), ALL_INVALID);
    assert!(detail(&replies.classify).contains("expected 1"));
    assert!(detail(&replies.route).contains("65536 draft tokens"));
    assert!(detail(&replies.validate).contains("without text"));
}

#[test]
fn answers_an_error() {
    let (_, replies) = misbehave("answers_an_error", patient(), ALL_INVALID);
    assert!(detail(&replies.route).contains("does not feel well"));
}

#[test]
fn calls_a_denied_import() {
    let room = scene::room();
    let mut offer = scene::limited("guest", GUESTS, patient());
    offer.options.grants = Some(vec![Grant::Keyvalue, Grant::Config]);
    let refusal = room
        .put(offer.clone())
        .expect_err("it imports models without the grant");
    assert_eq!(refusal.stage, Stage::Imports);
    assert!(
        refusal.text.contains("homeostat:policy/models@0.1.0"),
        "{refusal}"
    );
    assert!(
        refusal.to_string().contains("grants"),
        "it says what to do: {refusal}"
    );

    // Where the operator prefers to find out at run time, the call answers `denied`.
    offer.options.deny = Some(Deny::Stub);
    room.put(offer).unwrap_or_else(|e| panic!("{e}"));
    let replies = scene::serve(&room, scene::asking("request-1", "calls_a_denied_import"));
    assert_eq!(outcomes(&replies), [Some(FaultKind::Denied); 3]);
    is_as_before(&room, scene::resident_bytes());
}

#[test]
fn floods_the_log() {
    let (room, _) = misbehave("floods_the_log", patient(), [None; 3]);
    let stats = room.stats();
    for hook in Hook::ALL {
        let dropped = stats.hooks[hook.as_str()].log_bytes_dropped;
        assert!(dropped > 60_000_000, "{hook:?} dropped {dropped} bytes");
    }
}

#[test]
fn passes_a_huge_argument() {
    let (_, replies) = misbehave("passes_a_huge_argument", patient(), ALL_MEMORY);
    assert!(detail(&replies.classify).contains("limits.hostcall_bytes"));
}

#[test]
fn stores_a_huge_value() {
    let (room, replies) = misbehave("stores_a_huge_value", patient(), ALL_MEMORY);
    assert!(detail(&replies.classify).contains("limits.hostcall_bytes"));
    assert_eq!(room.state_status()[0].keys, 0, "something was stored");
}

#[test]
fn fills_its_state() {
    // The quota is an error value; this guest passes it on as its own.
    let (room, replies) = misbehave("fills_its_state", patient(), ALL_INVALID);
    assert!(
        detail(&replies.classify).contains("policies.state.bytes"),
        "{replies:#?}"
    );
    let kept = &room.state_status()[0];
    assert!(kept.bytes <= 1 << 20 && kept.keys > 200, "{kept:?}");
}

#[test]
fn leaks_handles() {
    // The limit is an error value; this guest passes it on as its own.
    let (_, replies) = misbehave("leaks_handles", patient(), ALL_INVALID);
    assert!(
        detail(&replies.classify).contains("limits.handles"),
        "{replies:#?}"
    );
}

#[test]
fn sleeps_in_a_host_call() {
    // The model overstays ten times; the deadline holds as soon as it comes back.
    misbehave("sleeps_in_a_host_call", impatient(), ALL_DEADLINE);
}

/// Models that ask the room itself before they answer, and note for whom they were asked.
#[derive(Default)]
struct AskBack {
    room: OnceLock<Weak<PolicyRoom>>,
    tenants: Mutex<Vec<Option<String>>>,
}

impl Models for AskBack {
    fn names(&self) -> Vec<String> {
        vec!["small".into()]
    }

    fn info(&self, name: &str) -> Result<TierView, ModelError> {
        Err(ModelError::Unavailable(name.into()))
    }

    fn count_tokens(&self, name: &str, _: &str) -> Result<u32, ModelError> {
        Err(ModelError::Unavailable(name.into()))
    }

    fn embed(&self, name: &str, _: &str, _: u32) -> Result<Vec<f32>, ModelError> {
        Err(ModelError::Unavailable(name.into()))
    }

    fn score(
        &self,
        _: Option<&str>,
        name: &str,
        _: &str,
        _: &str,
        _: u32,
    ) -> Result<Vec<f32>, ModelError> {
        Err(ModelError::Unavailable(name.into()))
    }

    fn generate(
        &self,
        tenant: Option<&str>,
        _: &str,
        _: &str,
        _: &GenerateOptions,
        _: u32,
    ) -> Result<Generated, ModelError> {
        let mut tenants = self.tenants.lock().expect("nobody panics with it");
        tenants.push(tenant.map(str::to_owned));
        drop(tenants);
        let room = self
            .room
            .get()
            .and_then(Weak::upgrade)
            .expect("the room lives");
        let request = scene::asking("inside", "asks_a_model_that_asks_back");
        room.begin(request, Default::default()).classify();
        Ok(Generated::default())
    }
}

#[test]
fn asks_a_model_that_asks_back() {
    // Every round holds an instance, so the last one finds none and the built-in answer
    // ends the circle.
    let models = Arc::new(AskBack::default());
    let config = RoomConfig {
        instances: 4,
        ..RoomConfig::default()
    };
    let room = Arc::new(PolicyRoom::new(config, models.clone()).expect("a room opens"));
    assert!(models.room.set(Arc::downgrade(&room)).is_ok());
    room.put(scene::limited("guest", GUESTS, patient()))
        .unwrap_or_else(|e| panic!("{e}"));
    let mut request = scene::asking("request-1", "asks_a_model_that_asks_back");
    Arc::make_mut(&mut request).tenant = Some("acme".into());
    let reply = room.begin(request, Default::default()).classify();
    assert!(is_component(&reply), "{reply:?}");
    let stats = room.stats();
    assert_eq!((stats.waits_given_up, stats.instances), (1, 0));
    // The models learn for whom: the questions inside are for requests of nobody.
    let tenants = models.tenants.lock().expect("nobody panics with it");
    assert_eq!(tenants[0].as_deref(), Some("acme"));
    assert_eq!(tenants[1..], [None, None, None]);
}

#[test]
fn proposes_then_loops() {
    let room = scene::room();
    room.put(scene::limited("guest", GUESTS, impatient()))
        .unwrap_or_else(|e| panic!("{e}"));
    let replies = scene::serve(&room, scene::asking("request-1", "proposes_then_loops"));
    for (by, fault) in [
        (&replies.classify.by, &replies.classify.fault),
        (&replies.validate.by, &replies.validate.fault),
    ] {
        assert!(
            matches!(by, AnsweredBy::Component { proposed: true, .. }),
            "{by:?}"
        );
        assert_eq!(fault.as_ref().map(|f| f.kind), Some(FaultKind::Deadline));
    }
    assert_eq!(
        replies.classify.value.p_simple, 0.7,
        "the proposal is the answer"
    );
    // It proposes no decision, and a proposal for another hook is none for this one.
    assert_eq!(outcome(&replies.route), Some(FaultKind::Deadline));
    is_as_before(&room, scene::resident_bytes());
}

#[test]
fn panics_for_one_percent() {
    let room = scene::room();
    room.put(scene::limited("guest", GUESTS, patient()))
        .unwrap_or_else(|e| panic!("{e}"));
    for number in 0..1000 {
        let id = format!("request-{number:04}");
        let replies = scene::serve(&room, scene::asking(&id, "panics_for_one_percent"));
        let unlucky = number % 100 == 0;
        let expected = if unlucky { ALL_TRAP } else { [None; 3] };
        assert_eq!(outcomes(&replies), expected, "{id}");
    }
    let stats = room.stats();
    assert_eq!(stats.hooks["route"].faults["trap"], 10);
    assert_eq!(stats.instances, 0);
}

#[test]
fn remembers_in_a_global() {
    let room = scene::room();
    room.put(scene::limited("guest", GUESTS, patient()))
        .unwrap_or_else(|e| panic!("{e}"));
    for _ in 0..5 {
        let replies = scene::serve(&room, scene::asking("request-1", "remembers_in_a_global"));
        let calls = ("calls".to_owned(), Value::Integer(1));
        assert_eq!(
            replies.classify.value.attributes,
            [calls],
            "a fresh instance per request"
        );
        match &replies.route.value {
            Decision::Plan(plan) => assert_eq!(plan.reason, "2", "one instance for all hooks"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn counts_in_keyvalue() {
    let room = scene::room();
    let mut counted = 0;
    for _ in 0..3 {
        // The same policy, put again: its state stays.
        room.put(scene::limited("guest", GUESTS, patient()))
            .unwrap_or_else(|e| panic!("{e}"));
        for _ in 0..4 {
            let replies = scene::serve(&room, scene::asking("request-1", "counts_in_keyvalue"));
            let calls = ("calls".to_owned(), Value::Integer(counted + 1));
            assert_eq!(replies.classify.value.attributes, [calls]);
            counted += 3;
        }
    }
    // Another policy has a state of its own.
    room.put(scene::limited("other", GUESTS, patient()))
        .unwrap_or_else(|e| panic!("{e}"));
    let replies = scene::serve(&room, scene::asking("request-1", "counts_in_keyvalue"));
    let calls = ("calls".to_owned(), Value::Integer(1));
    assert_eq!(replies.classify.value.attributes, [calls]);
}

#[test]
fn counts_in_keyvalue_from_many_requests_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = || RoomConfig {
        state_dir: Some(folder.path().to_owned()),
        ..RoomConfig::default()
    };
    let count = |room: &PolicyRoom| {
        let reply = scene::serve(room, scene::asking("request", "counts_in_keyvalue")).classify;
        match reply.value.attributes.as_slice() {
            [(key, Value::Integer(calls))] if key == "calls" => *calls,
            other => panic!("{other:?}"),
        }
    };
    let put = |room: &PolicyRoom| {
        room.put(scene::limited("guest", GUESTS, patient()))
            .unwrap_or_else(|e| panic!("{e}"));
    };
    let room = scene::room_with(config());
    put(&room);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    count(&room);
                }
            });
        }
        // The same policy put again under them.
        put(&room);
    });
    let (requests, hooks) = (8 * 20, 3);
    assert_eq!(count(&room), requests * hooks + 1);
    drop(room);
    let room = scene::room_with(config());
    put(&room);
    assert_eq!(count(&room), (requests + 1) * hooks + 1, "over a restart");
}

// ---- as text ---------------------------------------------------------------------------

/// Asks the router of this name with "polite" or "greedy".
fn ask_router(room: &PolicyRoom, manner: &str) -> HookReply<Decision> {
    let mut session = room.begin(scene::asking("request-1", manner), Default::default());
    session.route(&Default::default(), &scene::tiers())
}

fn text_room(guest: &str, limits: LimitChanges) -> PolicyRoom {
    let room = scene::room();
    room.put(scene::limited(
        "guest",
        &text_guest::component(guest),
        limits,
    ))
    .unwrap_or_else(|e| panic!("guests are honest at the probes: {e}"));
    room
}

/// The greedy manner ends as `kind`, and the next request is served.
fn ends_as(room: &PolicyRoom, kind: FaultKind) {
    let before = scene::resident_bytes();
    let reply = ask_router(room, "greedy");
    assert_eq!(outcome(&reply), Some(kind), "{reply:#?}");
    let next = ask_router(room, "Hello.");
    assert_eq!(
        text_guest::told(&next.value),
        Some(0),
        "the next request: {next:#?}"
    );
    assert!(is_component(&next));
    assert_eq!(room.stats().instances, 0, "an instance is left");
    let growth = scene::resident_bytes().saturating_sub(before);
    assert!(
        growth < GROWTH_BYTES_MAX,
        "the process grew by {growth} bytes"
    );
}

#[test]
fn loops_in_initialisation() {
    let room = scene::room();
    room.put(scene::offer("before", &text_guest::telling(1)))
        .unwrap_or_else(|e| panic!("{e}"));
    let looping = text_guest::component("loops_in_initialisation");
    let refusal = room
        .put(scene::limited("guest", &looping, impatient()))
        .expect_err("it can never be called");
    assert_eq!(refusal.stage, Stage::Instantiate, "{refusal}");
    assert!(refusal.text.contains("deadline"), "{refusal}");
    assert_eq!(
        text_guest::told(&ask_router(&room, "Hello.").value),
        Some(1)
    );
}

#[test]
fn grows_several_memories() {
    let room = text_room("grows_several_memories", patient());
    let pages = text_guest::told(&ask_router(&room, "polite").value).expect("a number");
    let limit = 64 << 20 >> 16;
    assert!(
        pages <= limit,
        "four memories got {pages} pages, together they may have {limit}"
    );
    assert!(pages > limit / 2, "they got only {pages} pages of {limit}");
    ends_as(&room, FaultKind::Memory);
}

#[test]
fn asks_for_more_tables() {
    let room = text_room("asks_for_more_tables", patient());
    let elements = text_guest::told(&ask_router(&room, "polite").value).expect("a number");
    let limit = 20_000;
    assert!(
        elements <= limit,
        "two tables got {elements} elements of {limit}"
    );
    assert!(
        elements > limit / 2,
        "they got only {elements} elements of {limit}"
    );
    ends_as(&room, FaultKind::Memory);
}

#[test]
fn fills_memory_for_ever() {
    ends_as(
        &text_room("fills_memory_for_ever", impatient()),
        FaultKind::Deadline,
    );
}

#[test]
fn points_outside_its_memory() {
    ends_as(
        &text_room("points_outside_its_memory", patient()),
        FaultKind::Trap,
    );
}

#[test]
fn divides_by_zero() {
    ends_as(&text_room("divides_by_zero", patient()), FaultKind::Trap);
}

#[test]
fn reads_outside_its_memory() {
    let guest = "reads_outside_its_memory";
    ends_as(&text_room(guest, patient()), FaultKind::Trap);
}

#[test]
fn recurses_through_the_host() {
    let room = text_room("recurses_through_the_host", patient());
    let reply = ask_router(&room, "greedy");
    let told = detail(&reply);
    assert!(told.contains("cannot leave component instance"), "{told}");
    ends_as(&room, FaultKind::Trap);
}

#[test]
fn fails_to_migrate() {
    let room = scene::room();
    room.put(scene::limited("guest", GUESTS, patient()))
        .unwrap_or_else(|e| panic!("{e}"));
    let count = || scene::serve(&room, scene::asking("request-1", "counts_in_keyvalue"));
    count();
    let before = room.export_state("guest");
    let newer = text_guest::component("fails_to_migrate");
    let refusal = room
        .put(scene::limited("guest", &newer, patient()))
        .expect_err("its migration fails");
    assert_eq!(refusal.stage, Stage::Migrate, "{refusal}");
    assert!(refusal.text.contains("told"), "{refusal}");
    let of_version_0 = |s: &StateStatus| s.version == 0;
    let kept = room.state_status().into_iter().find(of_version_0);
    assert_eq!(kept.map(|s| s.keys), Some(1), "the old state is there");
    let calls = count().classify.value.attributes;
    assert_eq!(calls, [("calls".to_owned(), Value::Integer(4))]);
    assert!(before.is_some_and(|b| b.entries.len() == 1));
    let after = room.export_state("guest");
    let after = after.expect("what serves is exported");
    assert_eq!((after.version, after.entries.len()), (0, 1));
    // Where there is no older state, there is nothing to fail at.
    let mut other = scene::limited("other", &newer, patient());
    other.hooks = Some(vec![Hook::Route]);
    room.put(other).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn answers_what_is_not_text() {
    ends_as(
        &text_room("answers_what_is_not_text", patient()),
        FaultKind::Trap,
    );
}

#[test]
fn leaves_a_secret_behind() {
    // One instance at a time, so that each gets the memory of the one before.
    for pooling in [true, false] {
        let room = scene::room_with(RoomConfig {
            instances: 1,
            pooling,
            ..RoomConfig::default()
        });
        let guest = text_guest::component("leaves_a_secret_behind");
        room.put(scene::limited("guest", &guest, patient()))
            .unwrap_or_else(|e| panic!("{e}"));
        for _ in 0..20 {
            let reply = ask_router(&room, "polite");
            assert_eq!(
                text_guest::told(&reply.value),
                Some(0),
                "words of another request"
            );
        }
    }
}
