//! The copy of a policy's folder in which it is built: the author's files, the SDK in
//! `homeostat/`, and the contract in `wit/` as the tools of all languages want it.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use wit_parser::{Resolve, WorldId};

use crate::begin::SDK_FOLDER;
use crate::embedded::write_below;
use crate::{Error, Language};

/// The world in the author's `world.wit`.
pub const WORLD: &str = "policy";

/// A staged policy; dropped with its folder.
pub struct Stage {
    folder: TempDir,
    /// The contract, resolved.
    pub resolve: Resolve,
    /// The author's world in it.
    pub world: WorldId,
}

/// What builds, editors and package managers leave in a folder.
pub fn is_left_behind(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    is_hidden(path)
        || ["build", "target", "node_modules", "__pycache__"].contains(&&*name)
        || name.ends_with(".wasm")
}

fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b".")
}

impl Stage {
    /// Copies and checks; the world must be there and mean something.
    pub fn of(folder: &Path, language: Language) -> Result<Self, Error> {
        let stage = tempfile::tempdir().map_err(Error::io(std::env::temp_dir()))?;
        copy(folder, stage.path(), is_left_behind)?;
        let sdk = stage.path().join(SDK_FOLDER);
        if !sdk.is_dir() {
            write_below(&format!("sdk/{}/homeostat", language.sdk()), &sdk)?;
        }
        let contract = sdk.join("wit");
        if !contract.is_dir() {
            write_below("wit", &contract)?;
        }
        let wit = stage.path().join("wit");
        let world_file = stage.path().join("world.wit");
        if !world_file.is_file() {
            return Err(Error::Folder {
                folder: folder.to_owned(),
                reason: "world.wit is missing: it says which hooks the policy answers and what \
                         it may import; `homeostat policy new` writes one"
                    .into(),
            });
        }
        arrange(&world_file, &contract, &wit)?;
        let mut resolve = Resolve::default();
        let bad = |e: String| Error::Contract(format!("world.wit: {e}"));
        let (package, _) = resolve.push_dir(&wit).map_err(|e| bad(format!("{e:#}")))?;
        let world = resolve
            .select_world(&[package], Some(WORLD))
            .map_err(|e| bad(format!("{e:#}; it must define `world {WORLD}`")))?;
        if resolve.worlds[world].exports.is_empty() {
            return Err(bad(
                "the world exports nothing, so it answers no hook".into()
            ));
        }
        Ok(Self {
            folder: stage,
            resolve,
            world,
        })
    }

    /// A path in the stage.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Brings a folder of the author's that a package manager filled, as it is.
    pub fn bring(&self, folder: &Path, name: &str) -> Result<(), Error> {
        let from = folder.join(name);
        if !from.is_dir() {
            return Ok(());
        }
        copy(&from, &self.path(name), is_hidden)
    }
}

/// The author's world as the main package, the contract and the standard interfaces as
/// what it depends on.
fn arrange(world_file: &Path, contract: &Path, wit: &Path) -> Result<(), Error> {
    let deps = wit.join("deps");
    let ours = deps.join("homeostat-policy");
    fs::create_dir_all(&ours).map_err(Error::io(&ours))?;
    fs::copy(world_file, wit.join("world.wit")).map_err(Error::io(world_file))?;
    for entry in fs::read_dir(contract).map_err(Error::io(contract))? {
        let path = entry.map_err(Error::io(contract))?.path();
        if path.is_file() {
            let name = path.file_name().unwrap_or_default();
            fs::copy(&path, ours.join(name)).map_err(Error::io(&path))?;
        }
    }
    let standard = contract.join("deps");
    if standard.is_dir() {
        copy(&standard, &deps, is_left_behind)?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, is_left_out: fn(&Path) -> bool) -> Result<(), Error> {
    fs::create_dir_all(to).map_err(Error::io(to))?;
    for entry in fs::read_dir(from).map_err(Error::io(from))? {
        let path = entry.map_err(Error::io(from))?.path();
        if is_left_out(&path) {
            continue;
        }
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy(&path, &target, is_left_out)?;
        } else {
            fs::copy(&path, &target).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::begin::begin;
    use homeostat_hooks::Hook;

    #[test]
    fn a_world_that_is_missing_or_empty_is_told() {
        let place = tempfile::tempdir().expect("a folder");
        let folder = place.path().join("mine");
        begin(&folder, Language::Python, Hook::Classify).expect("a folder");
        let stage = Stage::of(&folder, Language::Python).expect("a stage");
        assert!(stage.path("policy.py").is_file());
        assert!(stage.path("homeostat/__init__.py").is_file());
        // Without the copy of the SDK, that of the binary.
        fs::remove_dir_all(folder.join("homeostat")).expect("gone");
        let stage = Stage::of(&folder, Language::Python).expect("a stage");
        assert!(stage.path("homeostat/__init__.py").is_file());

        let told = |text: Option<&str>| {
            let file = folder.join("world.wit");
            match text {
                Some(text) => fs::write(&file, text).expect("written"),
                None => fs::remove_file(&file).expect("removed"),
            }
            let stage = Stage::of(&folder, Language::Python);
            stage.err().expect("a refusal").to_string()
        };
        let empty = told(Some("package local:policy;\nworld policy {}\n"));
        assert!(empty.contains("answers no hook"), "{empty}");
        let other = told(Some("package local:policy;\nworld mine {}\n"));
        assert!(other.contains("world policy"), "{other}");
        let broken = told(Some("package local:policy;\nworld policy {"));
        assert!(broken.contains("world.wit"), "{broken}");
        assert!(told(None).contains("policy new"));
    }
}
