//! The packages that a Python policy names in `requirements.txt`, installed into the
//! policy's own `build/`, once for every text of that file: later builds need no network.
//!
//! Only wheels in pure Python are taken. One with machine code is made for a processor and
//! a system, and a component is neither; a source archive would run its author's program at
//! build time and may hold C as well. pip is asked for nothing else, so of a package that
//! has both kinds the pure one comes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Error, tools};

/// The file.
const REQUIREMENTS: &str = "requirements.txt";

/// The Python inside the component, that of componentize-py in `sdk/python/tool`: markers
/// and `requires-python` speak of it, not of the Python that runs pip.
const PYTHON: &str = "3.14";

/// The folder with the packages; `None` when the policy names none.
pub fn install(folder: &Path, python: &Path) -> Result<Option<PathBuf>, Error> {
    let file = folder.join(REQUIREMENTS);
    if !file.is_file() {
        return Ok(None);
    }
    let key = key_of(folder, &file)?;
    tools::once(&folder.join("build"), "packages", &key, |into| {
        tools::say("fetching what requirements.txt names with pip (once)");
        pip(folder, python, into)
    })
    .map(Some)
}

/// What determines the packages: the text, and the files beside it that it names.
fn key_of(folder: &Path, file: &Path) -> Result<Vec<u8>, Error> {
    let text = fs::read_to_string(file).map_err(Error::io(file))?;
    let mut key = format!("{PYTHON}\n{text}").into_bytes();
    for word in text.split_whitespace() {
        let named = folder.join(word);
        if named.is_file() {
            key.extend(fs::read(&named).map_err(Error::io(&named))?);
        }
    }
    Ok(key)
}

fn pip(folder: &Path, python: &Path, into: &Path) -> Result<(), Error> {
    let done = Command::new(python)
        .args(["-m", "pip", "install", "--quiet", "--no-input"])
        .args(["--disable-pip-version-check", "--no-compile"])
        .args(["--only-binary", ":all:", "--platform", "any"])
        .args(["--implementation", "py", "--abi", "none"])
        .args(["--python-version", PYTHON, "--requirement", REQUIREMENTS])
        .arg("--target")
        .arg(into)
        // Where relative paths in the file begin.
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(Error::io(python))?;
    let told = String::from_utf8_lossy(&done.stderr);
    eprint!("{told}");
    if done.status.success() {
        return Ok(());
    }
    Err(match why(&told) {
        Some(reason) => Error::Folder {
            folder: folder.to_owned(),
            reason: format!("{REQUIREMENTS} {reason}"),
        },
        None => Error::Tool {
            what: "pip install".into(),
            status: done.status,
        },
    })
}

/// Whose fault it is and what to do, where pip's own words do not say so.
fn why(told: &str) -> Option<String> {
    let between = |begin: &str, end: &str| {
        let (_, rest) = told.split_once(begin)?;
        Some(rest.split(end).next()?.trim().to_owned())
    };
    if told.contains("Retrying (") {
        return Some(
            "cannot be fetched: the package index does not answer. The first build after a \
             change of that file needs it; later ones do not"
                .into(),
        );
    }
    let foreign = " is not a supported wheel";
    if told.contains(foreign)
        && let Some(wheel) = between("ERROR: ", foreign)
    {
        return Some(format!(
            "names {wheel}, which is made for other systems than a component's or for another \
             Python than {PYTHON}. {PURE}"
        ));
    }
    // With versions to name, pip names them.
    if !told.contains("(from versions: none)") {
        return None;
    }
    let package = between("No matching distribution found for ", "\n")?;
    Some(format!(
        "asks for {package}, of which there is no wheel in pure Python for {PYTHON}: the name is \
         wrong, or the package has machine code (C, Rust), or comes as source only. {PURE}"
    ))
}

/// What to do.
const PURE: &str = "That is the package's nature: neither the policy nor the host can change it. \
                    Name a package in pure Python, or, if its source is pure, make a wheel \
                    of it (pip wheel), put it beside policy.py and name it as ./FILE.whl";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pip_says_becomes_what_to_do_only_where_it_does_not_say_so_itself() {
        let none = "ERROR: Could not find a version that satisfies the requirement numpy (from \
                    versions: none)\nERROR: No matching distribution found for numpy\n";
        let text = why(none).expect("a reason");
        assert!(
            text.starts_with("asks for numpy, of which there is no"),
            "{text}"
        );
        assert!(text.contains("the package's nature"), "{text}");
        let file = "ERROR: a-1-cp311-cp311-manylinux_2_17_x86_64.whl is not a supported wheel on \
                    this platform.\n";
        let text = why(file).expect("a reason");
        assert!(
            text.starts_with("names a-1-cp311-cp311-manylinux_2_17_x86_64.whl, which"),
            "{text}"
        );
        let away = format!("WARNING: Retrying (Retry(total=0, …\n{none}");
        let text = why(&away).expect("a reason");
        assert!(text.contains("does not answer"), "{text}");
        let version = none.replace("none", "1.0, 2.0");
        assert_eq!(why(&version), None);
    }

    #[test]
    fn another_text_or_another_wheel_is_another_installation() {
        let place = tempfile::tempdir().expect("a folder");
        let folder = place.path();
        let key = |text: &str, wheel: &str| {
            let file = folder.join(REQUIREMENTS);
            fs::write(&file, text).expect("written");
            fs::write(folder.join("a.whl"), wheel).expect("written");
            key_of(folder, &file).expect("a key")
        };
        let first = key("./a.whl\n", "1");
        assert_eq!(first, key("./a.whl\n", "1"));
        assert_ne!(first, key("./a.whl\n", "2"));
        assert_ne!(first, key("./a.whl\nidna\n", "1"));
    }
}
