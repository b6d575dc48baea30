//! The files of the checkout that travel in the binary.

use std::path::Path;

use crate::Error;

include!(concat!(env!("OUT_DIR"), "/files.rs"));

/// The text of one file; a name that is not there is a mistake of this crate.
pub fn text(name: &str) -> &'static str {
    let found = FILES.iter().find(|(file, _)| *file == name);
    found.map_or_else(|| panic!("{name} is not embedded"), |(_, text)| text)
}

/// All files below a folder: their name below it, and their text.
pub fn below(folder: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    FILES.iter().filter_map(move |(file, text)| {
        let name = file.strip_prefix(folder)?.strip_prefix('/')?;
        Some((name, *text))
    })
}

/// Writes a file and the folders above it.
pub fn write(path: &Path, text: &str) -> Result<(), Error> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
    }
    std::fs::write(path, text).map_err(Error::io(path))
}

/// Writes all files below a folder of the checkout.
pub fn write_below(folder: &str, into: &Path) -> Result<(), Error> {
    below(folder).try_for_each(|(name, text)| write(&into.join(name), text))
}
