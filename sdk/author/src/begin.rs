//! A new folder with a policy that builds, passes its cases and answers something sensible.
//!
//! What it holds is the author's from then on, the copy of the SDK in `homeostat/` included:
//! a later host builds it as this one did. An existing folder is never written into.

use std::collections::BTreeSet;
use std::path::Path;

use homeostat_hooks::Hook;
use toml::{Table, Value};

use crate::embedded::{self, text, write, write_below};
use crate::{Error, Language};

/// The name that all templates carry, replaced by the author's.
const TEMPLATE_NAME: &str = "my-policy";

/// Longest name: it becomes a crate, a package and a policy, and is shown in tables.
const NAME_BYTES_MAX: usize = 40;

/// Folder of the SDK inside a policy's folder.
pub const SDK_FOLDER: &str = "homeostat";

/// Makes `folder` and everything in it; its last part is the policy's name.
pub fn begin(folder: &Path, language: Language, hook: Hook) -> Result<(), Error> {
    let refuse = |reason: &str| {
        Err(Error::Folder {
            folder: folder.to_owned(),
            reason: reason.to_owned(),
        })
    };
    let name = folder.file_name().and_then(|n| n.to_str()).unwrap_or("");
    if !is_name(name) {
        return refuse(
            "a policy's name has up to 40 lower-case letters, digits and hyphens, and begins \
             with a letter",
        );
    }
    if folder.exists() {
        return refuse("it exists; give another name, or remove it first");
    }
    let named =
        |file: &str, text: &str| write(&folder.join(file), &text.replace(TEMPLATE_NAME, name));
    let template = format!("sdk/{}/template", language.sdk());
    let (source, ending) = match language {
        Language::Rust => ("src/lib.rs", "rs"),
        Language::Js => ("policy.js", "js"),
        Language::Ts => ("policy.ts", "ts"),
        Language::Python => ("policy.py", "py"),
        Language::C => ("policy.c", "c"),
    };
    manifest(folder, language, source, &named)?;
    // Rust's router is a crate of its own, so that it is compiled and tested here.
    let from = match (language, hook) {
        (Language::Rust, Hook::Route) => format!("{template}/src/lib.rs"),
        _ => format!("{template}/{}.{ending}", hook.as_str()),
    };
    named(source, text(&from))?;
    write_below("wit", &folder.join(SDK_FOLDER).join("wit"))?;
    if language != Language::Rust {
        write(&folder.join("world.wit"), &world(hook))?;
    }
    write(
        &folder.join("cases.toml"),
        text(&format!("sdk/template/{}.toml", hook.as_str())),
    )?;
    write(
        &folder.join("policy.toml"),
        text("sdk/template/policy.toml"),
    )?;
    let left_behind = "/build/\n/target/\n/node_modules/\n*.wasm\n";
    write(&folder.join(".gitignore"), left_behind)?;
    let readme = text("sdk/template/begin.md")
        .replace("SOURCE", source)
        .replace("HOOK", hook.as_str());
    named("README.md", &readme)
}

/// The SDK, and the files in which the language's own tools read what a folder is.
fn manifest(
    folder: &Path,
    language: Language,
    source: &str,
    named: &dyn Fn(&str, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    match language {
        Language::Rust => {
            let cargo = text("sdk/rust/template/Cargo.toml");
            named("Cargo.toml", &away_from_checkout(cargo))?;
            // The versions that this host was built with; cargo drops what is not needed.
            write(&folder.join("Cargo.lock"), text("Cargo.lock"))?;
            return write_rust_sdk(&folder.join(SDK_FOLDER));
        }
        Language::Js | Language::Ts => {
            let package = text("sdk/js/template/package.json");
            named("package.json", &package.replace("policy.js", source))?;
        }
        Language::Python => named("pyproject.toml", text("sdk/python/template/pyproject.toml"))?,
        Language::C => {}
    }
    if language == Language::Ts {
        named("tsconfig.json", text("sdk/js/template/tsconfig.json"))?;
    }
    let sdk = format!("sdk/{}/homeostat", language.sdk());
    write_below(&sdk, &folder.join(SDK_FOLDER))
}

fn is_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// The world of a policy that answers one hook: the powers that need no permission, and
/// the others as comments.
fn world(hook: Hook) -> String {
    let interface = interface(hook);
    format!(
        "package local:policy;

/// What this policy may ask of the host, and what it answers. A line less is a power less.
world policy {{
    import homeostat:policy/propose@0.1.0;
    import wasi:logging/logging@0.1.0-draft;
    // Powers that the operator must grant (policy.toml):
    // import wasi:config/store@0.2.0-rc.1;
    // import wasi:keyvalue/store@0.2.0-draft;
    // import wasi:keyvalue/atomics@0.2.0-draft;
    // import homeostat:policy/models@0.1.0;

    export homeostat:policy/{interface}@0.1.0;
}}
"
    )
}

/// The interface that answers a hook.
pub fn interface(hook: Hook) -> &'static str {
    match hook {
        Hook::Classify => "classifier",
        Hook::Route => "router",
        Hook::Validate => "validator",
    }
}

/// The template's manifest with the SDK beside it instead of above it.
fn away_from_checkout(manifest: &str) -> String {
    manifest
        .replace("path = \"..\"", "path = \"homeostat/sdk/rust\"")
        .replace("[workspace]", "[workspace]\nexclude = [\"homeostat\"]")
}

/// Hooks and SDK as a workspace of their own, at the places relative to each other and to
/// `wit/` that their sources expect.
fn write_rust_sdk(into: &Path) -> Result<(), Error> {
    let members = ["host/hooks", "sdk/rust"];
    for member in members {
        let manifest = format!("{member}/Cargo.toml");
        write(&into.join(&manifest), text(&manifest))?;
        write_below(&format!("{member}/src"), &into.join(member).join("src"))?;
    }
    write(&into.join("Cargo.toml"), &workspace(&members))
}

/// The root manifest of this checkout, without what these members do not inherit.
fn workspace(members: &[&str]) -> String {
    let parse = |name: &str| -> Table {
        let parsed = embedded::text(name).parse();
        parsed.unwrap_or_else(|e| panic!("{name} is embedded and parses: {e}"))
    };
    let mut root = parse("Cargo.toml");
    let mut inherited = BTreeSet::new();
    for member in members {
        let manifest = parse(&format!("{member}/Cargo.toml"));
        let dependencies = manifest.get("dependencies").and_then(Value::as_table);
        inherited.extend(
            dependencies
                .into_iter()
                .flatten()
                .map(|(name, _)| name.clone()),
        );
    }
    root.remove("profile");
    if let Some(Value::Table(workspace)) = root.get_mut("workspace") {
        workspace.insert("members".into(), members.to_vec().into());
        if let Some(Value::Table(all)) = workspace.get_mut("dependencies") {
            all.retain(|name, _| inherited.contains(name));
        }
    }
    root.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).expect("a folder") {
            found.push(
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned(),
            );
        }
        found.sort();
        found
    }

    #[test]
    fn every_language_and_hook_has_a_folder_without_the_template_name() {
        let place = tempfile::tempdir().expect("a folder");
        for language in Language::ALL {
            for hook in Hook::ALL {
                let name = format!("{}-{}", language.as_str(), hook.as_str());
                let folder = place.path().join(&name);
                begin(&folder, language, hook).expect("a new folder");
                let told = crate::build::language_of(&folder);
                assert_eq!(told.expect("a language"), language);
                let here = files(&folder);
                for file in ["README.md", "cases.toml", "homeostat", "policy.toml"] {
                    assert!(here.iter().any(|f| f == file), "{name}: {file} of {here:?}");
                }
                for file in here.iter().filter(|f| folder.join(f).is_file()) {
                    let text = std::fs::read_to_string(folder.join(file)).expect("text");
                    assert!(!text.contains(TEMPLATE_NAME), "{name}/{file}: {text}");
                }
                let wit = std::fs::read_to_string(folder.join("homeostat/wit/types.wit"));
                assert!(wit.expect("the contract").contains("record snapshot"));
            }
        }
    }

    #[test]
    fn a_folder_that_exists_and_a_name_that_is_none_are_refused() {
        let place = tempfile::tempdir().expect("a folder");
        let text = |e: Result<(), Error>| e.expect_err("a refusal").to_string();
        let error = text(begin(place.path(), Language::C, Hook::Route));
        assert!(error.contains("name"), "{error}");
        let folder = place.path().join("mine");
        begin(&folder, Language::C, Hook::Route).expect("a new folder");
        let error = text(begin(&folder, Language::C, Hook::Route));
        assert!(error.contains("exists"), "{error}");
        for name in ["Mine", "9", "a_b", "", &"a".repeat(41)] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn the_copied_workspace_has_what_its_members_inherit() {
        let root: Table = workspace(&["host/hooks", "sdk/rust"])
            .parse()
            .expect("TOML");
        let all = root["workspace"]["dependencies"]
            .as_table()
            .expect("a table");
        let names: Vec<&str> = all.keys().map(String::as_str).collect();
        for name in ["homeostat-hooks", "serde", "thiserror", "wit-bindgen"] {
            assert!(names.contains(&name), "{names:?}");
        }
        assert!(!names.contains(&"wasmtime"), "{names:?}");
    }
}
