//! Puts the contract, the SDKs and the templates into the binary, so that a policy can be
//! begun and built where no checkout of Homeostat is.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Folders and files below the root of the checkout.
const EMBEDDED: [&str; 13] = [
    "Cargo.lock",
    "Cargo.toml",
    "host/hooks/Cargo.toml",
    "host/hooks/src",
    "sdk/c",
    "sdk/template",
    "sdk/js",
    "sdk/python",
    "sdk/rust/Cargo.toml",
    "sdk/rust/README.md",
    "sdk/rust/src",
    "sdk/rust/template",
    "wit",
];

/// What editors, tools and builds leave behind.
const LEFT_OUT: [&str; 5] = [
    "target",
    "build",
    "node_modules",
    "__pycache__",
    "Cargo.lock",
];

fn main() -> io::Result<()> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = here
        .ancestors()
        .nth(2)
        .expect("the crate is two folders deep");
    let mut files = Vec::new();
    for name in EMBEDDED {
        println!("cargo::rerun-if-changed={}", root.join(name).display());
        collect(root, Path::new(name), &mut files)?;
    }
    files.sort();
    let mut code = String::from("const FILES: &[(&str, &str)] = &[\n");
    for name in files {
        let path = root.join(&name);
        let name = name.to_str().expect("our file names are UTF-8");
        writeln!(code, "    ({name:?}, include_str!({path:?})),").expect("a string grows");
    }
    code.push_str("];\n");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("files.rs"), code)
}

fn collect(root: &Path, name: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let path = root.join(name);
    if path.is_file() {
        files.push(name.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(&path)? {
        let file_name = entry?.file_name();
        let left_out = LEFT_OUT.iter().any(|l| file_name == *l)
            || file_name.to_string_lossy().ends_with(".wasm");
        if !left_out {
            collect(root, &name.join(file_name), files)?;
        }
    }
    Ok(())
}
