//! Compiling in a child process, end to end: this program starts itself, as the server
//! does, and the child is a real one with real limits.

#[path = "../src/guests.rs"]
#[allow(dead_code, reason = "the unit tests use the rest")]
mod guests;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use guests::FakeModels;
use homeostat_hooks::{Classification, Decision, Policies, Snapshot, TierView};
use homeostat_policy::{
    COMPILE_CHILD, CacheConfig, CompilerConfig, Offer, PolicyRoom, RoomConfig, Stage, compile_child,
};

type Test = (&'static str, fn());

const TESTS: [Test; 5] = [
    ("a_component_is_compiled_by_a_child_and_serves", serves),
    (
        "a_compile_bomb_ends_at_a_limit_and_the_host_is_unaffected",
        bombs,
    ),
    ("what_the_reader_refuses_reaches_no_compiler", damaged),
    ("a_program_that_is_no_compiler_is_told", strangers),
    ("a_child_alone_on_a_terminal_says_what_it_is_for", lonely),
];

fn main() -> ExitCode {
    if std::env::args().skip(1).eq(COMPILE_CHILD) {
        return compile_child();
    }
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    if std::env::args().any(|a| a == "--list") {
        for (name, _) in TESTS {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    for (name, test) in TESTS {
        if wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

fn compiler() -> CompilerConfig {
    CompilerConfig {
        program: Some(std::env::current_exe().expect("this program has a path")),
        ..CompilerConfig::default()
    }
}

fn room(compiler: CompilerConfig) -> PolicyRoom {
    let config = RoomConfig {
        instances: 4,
        compiler,
        ..RoomConfig::default()
    };
    PolicyRoom::new(config, Arc::new(FakeModels)).expect("a room")
}

fn offer(bytes: Vec<u8>) -> Offer {
    Offer {
        name: "policy".into(),
        bytes,
        ..Offer::default()
    }
}

fn routed(room: &PolicyRoom) -> String {
    let tiers = [TierView {
        id: "small".into(),
        ready: true,
        ..TierView::default()
    }];
    let mut session = room.begin(guests::request(7), Arc::new(Snapshot::default()));
    match session.route(&Classification::default(), &tiers).value {
        Decision::Answer(answer) => answer.text,
        other => format!("{other:?}"),
    }
}

fn serves() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = RoomConfig {
        instances: 4,
        compiler: compiler(),
        cache: CacheConfig {
            dir: Some(dir.path().join("compiled")),
            ..CacheConfig::default()
        },
        ..RoomConfig::default()
    };
    let room = PolicyRoom::new(config, Arc::new(FakeModels)).expect("a room");
    let report = room.put(offer(guests::router("by a child"))).expect("good");
    assert_eq!(
        (routed(&room).as_str(), report.from_cache),
        ("by a child", false)
    );
    let again = room.put(offer(guests::router("by a child"))).expect("good");
    assert!(again.from_cache);
    // The metered engine's code comes from a child as well.
    let checked = room.check(&offer(guests::all_hooks())).expect("good");
    assert_eq!(checked.cost.fuel.expect("fuel is counted").len(), 3);
}

/// A component with many functions of this many additions each.
fn bomb(functions: usize, additions: usize) -> Vec<u8> {
    let step = "(local.set 0 (i64.mul (i64.add (local.get 0) (local.get 1)) (i64.const 7)))";
    let body = step.repeat(additions);
    let mut extra = String::new();
    for _ in 0..functions {
        extra.push_str("(func (param i64 i64) (result i64) ");
        extra.push_str(&body);
        extra.push_str("(local.get 0))");
    }
    guests::classifier("", &extra, "")
}

fn bombs() {
    let many = bomb(30_000, 40);
    let huge = bomb(1, 250_000);
    for (what, bytes, limits, word) in [
        (
            "many functions, processor time",
            &many,
            CompilerConfig {
                cpu_seconds: 1,
                ..compiler()
            },
            "cpu_seconds",
        ),
        (
            "many functions, wall-clock time",
            &many,
            CompilerConfig {
                wall_seconds: 0,
                ..compiler()
            },
            "wall_seconds",
        ),
        (
            "many functions, memory",
            &many,
            CompilerConfig {
                memory_bytes: 48 << 20,
                ..compiler()
            },
            "memory_bytes",
        ),
        (
            "one huge function, memory",
            &huge,
            CompilerConfig {
                memory_bytes: 48 << 20,
                ..compiler()
            },
            "memory_bytes",
        ),
        (
            "much machine code",
            &many,
            CompilerConfig {
                artifact_bytes: 1 << 20,
                ..compiler()
            },
            "artifact_bytes",
        ),
    ] {
        let room = room(limits);
        let refusal = room.put(offer(bytes.clone())).expect_err(what);
        assert_eq!(refusal.stage, Stage::Compile, "{what}: {refusal}");
        assert!(refusal.text.contains(word), "{what}: {refusal}");
        println!("  {what}: {refusal}");
        assert!(room.status().iter().all(|slot| slot.active.is_none()));
    }
    // A host in which a bomb went off compiles the next one as if nothing had been.
    let room = room(CompilerConfig {
        cpu_seconds: 1,
        ..compiler()
    });
    room.put(offer(guests::router("before"))).expect("good");
    room.put(offer(many)).expect_err("a bomb");
    assert_eq!(routed(&room), "before");
    room.put(offer(guests::router("after"))).expect("good");
    assert_eq!(routed(&room), "after");
}

fn damaged() {
    let mut bytes = guests::router("x");
    let at = bytes.len() / 2;
    bytes[at] ^= 0xff;
    let refusal = room(compiler()).put(offer(bytes)).expect_err("damaged");
    assert_ne!(refusal.stage, Stage::Compile, "{refusal}");
}

fn strangers() {
    for (program, word) in [
        // It complains of the arguments.
        ("/bin/cat", "compile-child"),
        // It repeats them.
        ("/bin/echo", "did not answer with machine code"),
        ("/bin/true", "did not answer with machine code"),
        ("/bin/false", "it said nothing"),
        ("/nowhere/compiler", "cannot be started"),
    ] {
        let limits = CompilerConfig {
            program: Some(PathBuf::from(program)),
            ..CompilerConfig::default()
        };
        let refusal = room(limits)
            .put(offer(guests::router("x")))
            .expect_err(program);
        assert_eq!(refusal.stage, Stage::Compile, "{program}: {refusal}");
        assert!(refusal.text.contains(word), "{program}: {refusal}");
    }
}

fn lonely() {
    let own = std::env::current_exe().expect("this program has a path");
    let done = std::process::Command::new(own)
        .args(COMPILE_CHILD)
        .stdin(std::process::Stdio::null())
        .output()
        .expect("it starts");
    assert!(!done.status.success() && done.stdout.is_empty());
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("started by a host"), "{said}");
}
