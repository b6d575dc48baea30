//! From a policy's folder to a component.
//!
//! What lies in the folder tells its language. Every language but Rust is built in a copy
//! of the folder, beside the SDK and the contract: those in its own `homeostat/` if it has
//! one, else those of this binary.

mod c;
mod js;
mod python;
mod requirements;
mod stage;
mod standard;

use std::path::{Path, PathBuf};

use crate::{Error, Language};

/// The component of the policy in `folder`; `cache` is where tools are kept
/// ([`crate::tools`]).
pub fn build(folder: &Path, cache: &Path) -> Result<Vec<u8>, Error> {
    let folder = folder.canonicalize().map_err(Error::io(folder))?;
    match language_of(&folder)? {
        Language::Rust => {
            let options = homeostat_componentize::Options {
                target_dir: folder.join("target").join("policy"),
            };
            Ok(homeostat_componentize::build(&folder, &options)?)
        }
        language @ (Language::Js | Language::Ts) => js::build(&folder, cache, language),
        Language::Python => python::build(&folder, cache),
        Language::C => c::build(&folder, cache),
    }
}

/// What lies in the folder tells its language.
pub fn language_of(folder: &Path) -> Result<Language, Error> {
    let marks = [
        ("Cargo.toml", Language::Rust),
        ("tsconfig.json", Language::Ts),
        ("package.json", Language::Js),
        ("pyproject.toml", Language::Python),
    ];
    let found = marks.iter().find(|(file, _)| folder.join(file).is_file());
    if let Some((_, language)) = found {
        return Ok(*language);
    }
    if !files_with(folder, "c")?.is_empty() {
        return Ok(Language::C);
    }
    Err(Error::Folder {
        folder: folder.to_owned(),
        reason: "no policy is here: neither Cargo.toml (Rust) nor package.json (JavaScript), \
                 with tsconfig.json (TypeScript), pyproject.toml (Python) or a .c file (C); \
                 `homeostat policy new` makes a folder"
            .into(),
    })
}

/// Files of one ending straight in a folder, sorted.
fn files_with(folder: &Path, ending: &str) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// What a build reads: everything in the folder but what builds and editors leave behind.
/// Only for telling whether a component is older than its source.
pub fn sources(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if stage::is_left_behind(&path) {
            continue;
        }
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_tells_its_language_or_is_refused() {
        let place = tempfile::tempdir().expect("a folder");
        let folder = place.path();
        let error = language_of(folder).expect_err("it is empty").to_string();
        assert!(error.contains("policy new"), "{error}");
        for (file, language) in [
            ("policy.c", Language::C),
            ("pyproject.toml", Language::Python),
            ("package.json", Language::Js),
            ("tsconfig.json", Language::Ts),
            ("Cargo.toml", Language::Rust),
        ] {
            std::fs::write(folder.join(file), "").expect("a file");
            assert_eq!(language_of(folder).expect("a language"), language);
        }
    }
}
