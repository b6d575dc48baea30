//! A small file of what this host must remember, replaced in one step.
//!
//! It is written beside itself and renamed, so whoever reads it finds a whole one, old or new. It
//! refuses to wait for the disk: a cut of power may cost what was written last.

use std::path::Path;

/// Puts a new file in the place of the old one.
pub fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, path)
}
