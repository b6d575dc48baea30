//! Builds the default policies and hands them to the binary, so that a host without any
//! file has judgement of its own.

use std::path::{Path, PathBuf};

use homeostat_componentize::{Options, build_many};

/// Folder below `plugins/`, which is also the name of the policy.
const POLICIES: [&str; 3] = ["classify-lexical", "route-metabolic", "validate-facts"];

fn main() {
    let here = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets it"));
    let root = here
        .ancestors()
        .nth(2)
        .expect("the crate is two folders deep");
    for watched in [
        "plugins/arithmetic",
        "sdk/rust/src",
        "sdk/rust/componentize/src",
        "wit",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    let crates: Vec<PathBuf> = POLICIES
        .iter()
        .map(|p| root.join("plugins").join(p))
        .collect();
    let crates: Vec<&Path> = crates.iter().map(PathBuf::as_path).collect();
    for folder in &crates {
        println!("cargo::rerun-if-changed={}", folder.display());
    }
    // OUT_DIR is <target>/<profile>/build/<package>/out. The tests build their guests in
    // the same folder, so that the standard library is compiled once.
    let target = out
        .ancestors()
        .nth(4)
        .expect("OUT_DIR lies in a target folder");
    let options = Options {
        target_dir: target.join("policies"),
    };
    let components = build_many(&crates, &options).unwrap_or_else(|error| {
        eprintln!("the default policies cannot be built: {error}");
        std::process::exit(1);
    });
    for (name, bytes) in POLICIES.iter().zip(components) {
        let file = out.join(format!("{name}.wasm"));
        std::fs::write(&file, bytes).expect("the build folder can be written");
    }
}
