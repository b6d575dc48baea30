//! Reading the small text files of sysfs and procfs.
//!
//! Any failure is `None`: an attribute that vanished, is unreadable or holds nonsense is
//! the same thing to a caller, namely no reading. Whoever must explain a failure (RAPL's
//! permissions) opens the file itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The file's text without surrounding space.
pub fn text(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

/// The file's only word as a number.
pub fn number<T: FromStr>(path: impl AsRef<Path>) -> Option<T> {
    text(path)?.parse().ok()
}

/// The folder's entries, sorted by name, so that numbering does not depend on the order in
/// which a driver registered; empty if the folder does not exist.
pub fn entries(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    paths
}

/// The last part of a path; empty where it has none.
pub fn name(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).unwrap_or("")
}
