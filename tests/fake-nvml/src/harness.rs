//! Finding, placing and steering the fake library from a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILE: &str = "libhomeostat_fake_nvml.so";

/// The built library. Cargo puts it beside the test program when the test's crate depends
/// on this one, or one folder up when it was built by name; if it is in neither place it
/// is built now with the cargo that runs the test.
///
/// # Panics
/// If it cannot be built.
pub fn library() -> PathBuf {
    let program = std::env::current_exe().expect("a running program has a path");
    let beside = program.parent().expect("a program lies in a folder");
    let above = beside.parent().unwrap_or(beside);
    let find = || {
        [beside, above]
            .map(|f| f.join(FILE))
            .into_iter()
            .find(|p| p.exists())
    };
    if let Some(found) = find() {
        return found;
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "-p", env!("CARGO_PKG_NAME")])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(
        status.as_ref().is_ok_and(|s| s.success()),
        "building the fake NVML failed: {status:?}"
    );
    find().expect("cargo said that it built the library")
}

/// A copy of the library with a state file of its own, in a temporary folder.
pub struct FakeNvml {
    folder: tempfile::TempDir,
}

impl FakeNvml {
    /// A library that answers from these `key=value` lines.
    ///
    /// # Panics
    /// If files cannot be written.
    pub fn new(state: &str) -> Self {
        Self::placed(fs::read(library()).expect("the library is readable"), state)
    }

    /// The same, but `symbol` does not exist in it, as in an older driver. Its name is
    /// overwritten in the file: the loader finds names by hash and then by comparison, so
    /// a changed name is never found.
    ///
    /// # Panics
    /// If the library has no such symbol.
    pub fn without(symbol: &str, state: &str) -> Self {
        let mut library = fs::read(library()).expect("the library is readable");
        let name = format!("{symbol}\0");
        let mut found = 0;
        let mut from = 0;
        while let Some(at) = find(&library[from..], name.as_bytes()) {
            library[from + at] = b'X';
            from += at + name.len();
            found += 1;
        }
        assert!(found > 0, "the fake NVML has no symbol {symbol}");
        Self::placed(library, state)
    }

    fn placed(library: Vec<u8>, state: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fake = Self { folder };
        fs::write(fake.library(), library).expect("the copy is written");
        fake.set(state);
        fake
    }

    /// The copy's path.
    pub fn library(&self) -> PathBuf {
        self.folder.path().join("libnvidia-ml.so")
    }

    /// The state file's path.
    pub fn state(&self) -> PathBuf {
        self.library().with_extension("state")
    }

    /// Replaces the state; the next call sees it. The file is swapped in one step, so no
    /// call sees half of it.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn set(&self, state: &str) {
        let fresh: &Path = &self.folder.path().join("next");
        fs::write(fresh, state).expect("the state is written");
        fs::rename(fresh, self.state()).expect("the state is moved into place");
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
