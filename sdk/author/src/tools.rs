//! The compilers of other languages: fetched once, at fixed versions, by the package
//! managers of their languages, into a cache of the user.
//!
//! A tool's folder is named after what determines it, so a new version of this crate never
//! meets the tool of an old one. Two processes that need the same tool wait for each other.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::embedded::{below, text, write, write_below};
use crate::{Error, Language};

/// Written last into a tool's folder: without it the folder is unfinished.
const COMPLETE: &str = ".complete";

/// Sets up what a language needs, so that a later build has nothing to fetch; says so on
/// standard error. Rust needs nothing of ours.
pub fn set_up(cache: &Path, language: Language) -> Result<(), Error> {
    match language {
        Language::Rust => Ok(()),
        Language::Js => js(cache).map(drop),
        Language::Ts => js(cache).and_then(|_| typescript(cache)).map(drop),
        Language::Python => python(cache).map(drop),
        Language::C => zig(cache).map(drop),
    }
}

/// The folder with the script that makes components of JavaScript.
pub(crate) fn js(cache: &Path) -> Result<PathBuf, Error> {
    let what = "componentize-qjs with npm (40 MB, once)";
    packages(cache, "js", "sdk/js/tool", what)
}

/// The folder in which TypeScript's compiler is installed.
pub(crate) fn typescript(cache: &Path) -> Result<PathBuf, Error> {
    let what = "TypeScript with npm (30 MB, once)";
    packages(cache, "typescript", "sdk/js/typescript", what)
}

/// The packages that the lock file in a folder of the checkout names.
fn packages(cache: &Path, name: &str, files: &str, what: &str) -> Result<PathBuf, Error> {
    let key: String = below(files).map(|(_, text)| text).collect();
    once(&cache.join("tools"), name, &key, |folder| {
        say(&format!("fetching {what}"));
        write_below(files, folder)?;
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]);
        npm.current_dir(folder);
        run(npm, "npm ci", "JavaScript", NODE_HELP)
    })
}

/// The Python that has componentize-py.
pub(crate) fn python(cache: &Path) -> Result<PathBuf, Error> {
    let requirements = text("sdk/python/tool/requirements.txt");
    let size = "50 MB";
    environment(cache, "python", requirements, size, "Python")
}

/// The Python that has zig, which is a C compiler with a C library for WebAssembly.
pub(crate) fn zig(cache: &Path) -> Result<PathBuf, Error> {
    environment(
        cache,
        "zig",
        text("sdk/c/tool/requirements.txt"),
        "100 MB",
        "C",
    )
}

pub(crate) const NODE_HELP: &str = "Install Node.js 18 or newer with npm (Debian, Ubuntu: \
                         apt-get install nodejs npm)";
const PYTHON_HELP: &str = "Install Python 3.10 or newer with venv (Debian, Ubuntu: \
                           apt-get install python3-venv)";

fn environment(
    cache: &Path,
    name: &str,
    requirements: &str,
    size: &str,
    language: &'static str,
) -> Result<PathBuf, Error> {
    let folder = once(&cache.join("tools"), name, requirements, |folder| {
        let packages: Vec<&str> = requirements
            .lines()
            .filter(|l| !l.starts_with('#'))
            .collect();
        say(&format!(
            "fetching {} with pip ({size}, once)",
            packages.join(", ")
        ));
        let list = folder.join("requirements.txt");
        write(&list, requirements)?;
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv"]).arg(folder.join("venv"));
        run(venv, "python3 -m venv", language, PYTHON_HELP)?;
        let mut pip = Command::new(folder.join("venv/bin/python"));
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .args(["--only-binary", ":all:", "--requirement"])
        .arg(list);
        run(pip, "pip install", language, PYTHON_HELP)
    })?;
    Ok(folder.join("venv/bin/python"))
}

pub(crate) fn say(text: &str) {
    eprintln!("homeostat: {text}");
}

/// The folder of something fetched, below `place`; `make` fills it when it is not there.
pub(crate) fn once(
    place: &Path,
    name: &str,
    key: impl AsRef<[u8]>,
    make: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let digest = Sha256::digest(key);
    let short: String = digest[..6].iter().map(|b| format!("{b:02x}")).collect();
    let folder = place.join(format!("{name}-{short}"));
    if folder.join(COMPLETE).exists() {
        return Ok(folder);
    }
    std::fs::create_dir_all(place).map_err(Error::io(place))?;
    let lock = folder.with_extension("lock");
    let guard = File::create(&lock).map_err(Error::io(&lock))?;
    guard.lock().map_err(Error::io(&lock))?;
    if folder.join(COMPLETE).exists() {
        return Ok(folder);
    }
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
    }
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    make(&folder)?;
    write(&folder.join(COMPLETE), "")?;
    Ok(folder)
}

/// Runs a tool with its output on standard error: standard output is for results.
pub(crate) fn run(
    mut command: Command,
    what: &str,
    language: &'static str,
    help: &'static str,
) -> Result<(), Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::Missing {
                program: program.clone(),
                language,
                help,
            },
            _ => Error::Io {
                path: program.clone().into(),
                source,
            },
        })?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Tool {
        what: what.to_owned(),
        status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_made_once_and_again_after_a_failure() {
        let cache = tempfile::tempdir().expect("a folder");
        let mut tries = 0;
        let fail = |_: &Path| Err(Error::Contract("interrupted".into()));
        assert!(once(cache.path(), "tool", "1", fail).is_err());
        for _ in 0..2 {
            once(cache.path(), "tool", "1", |_| {
                tries += 1;
                Ok(())
            })
            .expect("a tool");
        }
        assert_eq!(tries, 1);
        once(cache.path(), "tool", "2", |_| {
            tries += 1;
            Ok(())
        })
        .expect("another version");
        assert_eq!(tries, 2);
    }

    #[test]
    fn a_program_that_is_missing_is_told_with_the_way_to_get_it() {
        let command = Command::new("no-such-program-of-homeostat");
        let error = run(command, "a build", "C", "Install it").expect_err("it is missing");
        let text = error.to_string();
        assert!(
            text.contains("policies in C") && text.contains("Install it"),
            "{text}"
        );
    }
}
