//! The arrows of the house: which crate may know which other, and the one home of each
//! technology. A manifest decides what can be named at all; sources are read as well,
//! because a room could pass its technology on through a `pub use`.

use crate::source::{code_only, words};
use crate::tree::Tree;

/// A crate of ours: its folder, what it may depend on, and what its tests and build script
/// may use besides.
struct Room {
    folder: &'static str,
    knows: &'static [&'static str],
    tools: &'static [&'static str],
}

const HOOKS: &str = "homeostat-hooks";
const COMPONENTIZE: &str = "homeostat-componentize";

const ROOMS: &[Room] = &[
    // Plain words; knows nobody.
    room("host/hooks", &[], &[]),
    room("host/policy", &[HOOKS], &[]),
    // Offers a synchronous handle; the server makes a tier of it.
    room("host/engine", &[], &[]),
    // Its tests load the fake driver library.
    room("host/telemetry", &[HOOKS], &["homeostat-fake-nvml"]),
    room("host/cascade", &[HOOKS], &[]),
    // Knows everybody; its build script embeds the default policies, `homeostat policy
    // build` makes those of others, and `homeostat policy test` asks them their cases.
    room(
        "host/server",
        &[
            HOOKS,
            "homeostat-policy",
            "homeostat-engine",
            "homeostat-telemetry",
            "homeostat-cascade",
            "homeostat-author",
            "homeostat-cases",
        ],
        &[COMPONENTIZE],
    ),
    // The author's tools know the hooks by name, and how Rust is built.
    room("sdk/author", &[HOOKS, COMPONENTIZE], &[]),
    room("sdk/rust", &[HOOKS], &[]),
    room("sdk/rust/componentize", &[], &[]),
    room("sdk/rust/template", &["homeostat-sdk"], &[]),
    // Libraries of the policies: what they share, and the reader of their cases.
    room("plugins/arithmetic", &[], &[]),
    room("plugins/cases", &[HOOKS], &[]),
    room(
        "plugins/",
        &["homeostat-sdk", "arithmetic"],
        &["homeostat-cases"],
    ),
    room("tests/guests", &["homeostat-sdk"], &[]),
    room("tests/fake-nvml", &[], &[]),
    // As a user's own: the SDK, and a library that they share.
    room("tests/e2e/policies/", &["homeostat-sdk", "answer"], &[]),
    // The user's view: everything that is public.
    room(
        "tests",
        &[
            HOOKS,
            "homeostat-policy",
            "homeostat-engine",
            "homeostat-telemetry",
            "homeostat-cascade",
            "homeostat-cases",
            COMPONENTIZE,
        ],
        &[COMPONENTIZE],
    ),
];

const fn room(
    folder: &'static str,
    knows: &'static [&'static str],
    tools: &'static [&'static str],
) -> Room {
    Room {
        folder,
        knows,
        tools,
    }
}

/// A technology, the beginnings of the names of its crates, and the folders that may name
/// them.
const HOMES: &[(&str, &[&str], &[&str])] = &[
    (
        "WebAssembly",
        &["wasmtime"],
        // The benchmark measures what the room adds to bare wasmtime.
        &["host/policy/", "tests/benches/", "tests/Cargo.toml"],
    ),
    ("tensors", &["candle"], &["host/engine/"]),
    ("HTTP", &["axum", "hyper"], &["host/server/"]),
    (
        "sensors",
        &["nvml_wrapper", "nvml-wrapper", "sysinfo"],
        &["host/telemetry/"],
    ),
];

/// The sections of a manifest that bring a crate in: `true` = into the room itself,
/// `false` = only into its tests and build script.
fn dependencies(manifest: &toml::Table) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    let mut tables = vec![manifest];
    if let Some(targets) = manifest.get("target").and_then(|t| t.as_table()) {
        tables.extend(targets.values().filter_map(|t| t.as_table()));
    }
    for table in tables {
        for (section, into_the_room) in [
            ("dependencies", true),
            ("dev-dependencies", false),
            ("build-dependencies", false),
        ] {
            let names = table.get(section).and_then(|t| t.as_table());
            for (name, value) in names.into_iter().flatten() {
                // A renamed crate is known by its real name.
                let real = value.get("package").and_then(|p| p.as_str());
                found.push((real.unwrap_or(name).to_owned(), into_the_room));
            }
        }
    }
    found
}

fn room_of(folder: &str) -> Option<&'static Room> {
    let exact = ROOMS.iter().find(|r| r.folder == folder);
    exact.or_else(|| {
        let group = |r: &&Room| r.folder.ends_with('/') && folder.starts_with(r.folder);
        ROOMS.iter().find(group)
    })
}

/// Manifests of crates, with the folder each is in.
fn manifests(tree: &Tree) -> Vec<(String, toml::Table)> {
    tree.files()
        .filter_map(|path| {
            path.strip_suffix("/Cargo.toml")
                .map(|folder| (path, folder))
        })
        .map(|(path, folder)| {
            let table = tree
                .text(path)
                .parse()
                .unwrap_or_else(|e| panic!("{path}: {e}"));
            (folder.to_owned(), table)
        })
        // A workspace's own manifest brings nothing in.
        .filter(|(_, table): &(String, toml::Table)| table.contains_key("package"))
        .collect()
}

#[test]
fn rooms_know_only_whom_the_plan_lets_them_know() {
    let tree = Tree::read();
    let all = manifests(&tree);
    let ours: Vec<&str> = all
        .iter()
        .filter_map(|(_, m)| m.get("package")?.get("name")?.as_str())
        .collect();
    let mut wrong = Vec::new();
    for (folder, manifest) in &all {
        let Some(room) = room_of(folder) else {
            wrong.push(format!(
                "{folder}: a crate without a place in the plan. Add it to ROOMS in \
                 tests/tests/tidy/arrows.rs and to the map in host/README.md"
            ));
            continue;
        };
        for (name, into_the_room) in dependencies(manifest) {
            let allowed = room.knows.contains(&name.as_str())
                || (!into_the_room && room.tools.contains(&name.as_str()));
            if ours.contains(&name.as_str()) && !allowed {
                wrong.push(format!(
                    "{folder} depends on {name}: neighbours are strangers (host/README.md, \
                     Arrows). Pass plain records of homeostat-hooks through the server instead"
                ));
            }
        }
    }
    crate::report(wrong);
}

#[test]
fn each_technology_has_one_home() {
    let tree = Tree::read();
    let mut wrong = Vec::new();
    for (folder, manifest) in manifests(&tree) {
        for (name, _) in dependencies(&manifest) {
            note_if_far_from_home(&format!("{folder}/Cargo.toml"), 0, &name, &mut wrong);
        }
    }
    for file in tree.with_extension("rs") {
        let code = code_only(&tree.text(file));
        let words = words(&code);
        for word in &words {
            // A crate is named by a path; a function may be called `hyper` if it likes.
            let path = code[word.at + word.text.len()..].starts_with("::");
            let used =
                code[..word.at].ends_with("use ") || code[..word.at].ends_with("extern crate ");
            if path || used {
                note_if_far_from_home(file, word.line, word.text, &mut wrong);
            }
        }
    }
    crate::report(wrong);
}

fn note_if_far_from_home(file: &str, line: usize, name: &str, wrong: &mut Vec<String>) {
    for (technology, prefixes, homes) in HOMES {
        let named = prefixes.iter().any(|prefix| {
            let rest = name.strip_prefix(prefix);
            rest.is_some_and(|r| r.is_empty() || r.starts_with(['_', '-']))
        });
        if named && !homes.iter().any(|home| file.starts_with(home)) {
            wrong.push(format!(
                "{file}:{line} names {name}. The only home of {technology} is {}: ask that room \
                 for what you need, in plain records",
                homes[0]
            ));
        }
    }
}
