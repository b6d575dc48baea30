//! Compiles the guests and the policies in Rust, and lists every misbehaviour, so that a
//! guest without a test does not compile.

use std::env;
use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    if let Err(error) = build() {
        // In words: the usual way out would print the error's fields.
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let root = here.join("..");
    for input in [
        "wit",
        "sdk/rust/src",
        "sdk/rust/Cargo.toml",
        "host/hooks/src",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }

    let mut crates = vec![here.join("guests")];
    crates.extend(policies(&root.join("plugins"))?);
    let components = compile(&crates, &out)?;

    let mut code = String::new();
    let mut names = Vec::new();
    for (folder, component) in crates.iter().zip(components) {
        let name = name_of(folder)?;
        let path = out.join(&name).with_extension("wasm");
        fs::write(&path, component)?;
        names.push((name, path));
    }
    let (_, guests) = &names[0];
    writeln!(
        code,
        "/// The component with all guests of `tests/guests/src`."
    )?;
    writeln!(
        code,
        "pub const GUESTS: &[u8] = include_bytes!({guests:?});"
    )?;
    writeln!(
        code,
        "/// The policies in Rust: folder under `plugins/`, component."
    )?;
    writeln!(code, "pub const POLICIES: &[(&str, &[u8])] = &[")?;
    for (name, path) in &names[1..] {
        writeln!(code, "    ({name:?}, include_bytes!({path:?})),")?;
    }
    writeln!(code, "];")?;
    list_guests(&here.join("guests"), &mut code)?;
    fs::write(out.join("guests.rs"), code)?;
    Ok(())
}

/// Folders of policies in Rust: `<hook>-<what>`. The others are libraries of theirs. A new one
/// is a member of the workspace; the folder itself is not watched, since policies in other
/// languages are built in theirs.
fn policies(plugins: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    println!(
        "cargo::rerun-if-changed={}",
        plugins.join("../Cargo.toml").display()
    );
    let mut found = Vec::new();
    for entry in fs::read_dir(plugins)? {
        let folder = entry?.path();
        let name = name_of(&folder)?;
        let hook = name.split_once('-').map_or("", |(hook, _)| hook);
        if ["classify", "route", "validate"].contains(&hook) && folder.join("Cargo.toml").is_file()
        {
            for data in fs::read_dir(&folder)? {
                let data = data?.path();
                if data.extension().is_some_and(|e| e == "bin") {
                    println!("cargo::rerun-if-changed={}", data.display());
                }
            }
            found.push(folder);
        } else {
            println!("cargo::rerun-if-changed={}", folder.join("src").display());
        }
    }
    found.sort();
    Ok(found)
}

/// One run of cargo for all: the standard library is compiled once, into a folder that the
/// host's build script uses as well.
fn compile(crates: &[PathBuf], out: &Path) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    for folder in crates {
        for input in ["src", "Cargo.toml"] {
            println!("cargo::rerun-if-changed={}", folder.join(input).display());
        }
    }
    // OUT_DIR is <target>/<profile>/build/<package>/out.
    let target = out
        .ancestors()
        .nth(4)
        .ok_or("OUT_DIR is not inside a target folder")?;
    let options = homeostat_componentize::Options {
        target_dir: target.join("policies"),
    };
    let folders: Vec<&Path> = crates.iter().map(PathBuf::as_path).collect();
    Ok(homeostat_componentize::build_many(&folders, &options)?)
}

fn name_of(path: &Path) -> Result<String, Box<dyn Error>> {
    let stem = path.file_stem().and_then(|s| s.to_str());
    Ok(stem.ok_or("a file without a name")?.to_owned())
}

/// Writes `foreach_guest!`, which calls a macro with the name of every misbehaviour, and
/// the sources of the guests that are written as text.
fn list_guests(folder: &Path, code: &mut String) -> Result<(), Box<dyn Error>> {
    let mut misbehaviours = Vec::new();
    let mut texts = Vec::new();
    println!("cargo::rerun-if-changed={}", folder.join("wat").display());
    for entry in fs::read_dir(folder.join("src"))?.chain(fs::read_dir(folder.join("wat"))?) {
        let path = entry?.path();
        let name = name_of(&path)?;
        if path.extension().is_some_and(|e| e == "wat") {
            texts.push((name.clone(), path));
        }
        if name != "lib" {
            misbehaviours.push(name);
        }
    }
    misbehaviours.sort();
    texts.sort();
    writeln!(
        code,
        "/// Calls a macro with the name of every misbehaviour."
    )?;
    writeln!(code, "#[macro_export]")?;
    writeln!(code, "macro_rules! foreach_guest {{ ($check:ident) => {{")?;
    for name in misbehaviours {
        writeln!(code, "    $check!({name});")?;
    }
    writeln!(code, "}} }}")?;
    writeln!(code, "pub(crate) const TEXTS: &[(&str, &str)] = &[")?;
    for (name, path) in texts {
        writeln!(code, "    ({name:?}, include_str!({path:?})),")?;
    }
    writeln!(code, "];")?;
    Ok(())
}
