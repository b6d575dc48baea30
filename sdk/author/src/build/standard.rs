//! Settings, state and log under another name, while a tool works.
//!
//! The tools of JavaScript and Python put a trap in the place of everything that is called
//! `wasi:`, which leaves a policy without clocks, files and random numbers, as it should be.
//! But the interfaces of settings, state and log are called so as well, and the host has
//! them. So they have another name in the stage, and get their own back in the component.

use std::fs;
use std::path::Path;

use crate::Error;

/// Their packages.
const PACKAGES: [&str; 3] = ["config", "keyvalue", "logging"];
/// What they are called, and what meanwhile: as long, so that a component keeps its shape.
const NAMESPACE: &str = "wasi:";
const MEANWHILE: &str = "host:";

/// Files in which a name may stand.
const ENDINGS: [&str; 5] = ["wit", "js", "mjs", "ts", "py"];

/// Where a component's header ends and its sections begin.
const HEADER_BYTES: usize = 8;
/// The section that lists what a component imports.
const IMPORTS: u8 = 10;

/// Renames them in all files of a stage.
pub fn disguise(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.is_dir() {
            disguise(&path)?;
            continue;
        }
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or("");
        if !ENDINGS.contains(&ending) {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
        let renamed = disguised(&text);
        if renamed != text {
            fs::write(&path, renamed).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

/// The same text with the names that they have meanwhile.
pub fn disguised(text: &str) -> String {
    PACKAGES.iter().fold(text.to_owned(), |text, package| {
        text.replace(
            &format!("{NAMESPACE}{package}"),
            &format!("{MEANWHILE}{package}"),
        )
    })
}

/// Gives them their names back where a host looks: in the imports of the component. What is
/// inside keeps the other name, which nobody sees.
pub fn restore(mut component: Vec<u8>) -> Result<Vec<u8>, Error> {
    let mut at = HEADER_BYTES;
    while at < component.len() {
        let (begin, end) = section_at(&component, at).ok_or_else(|| {
            Error::Contract("the tool made a component whose sections cannot be read".into())
        })?;
        if component[at] == IMPORTS {
            rename(&mut component[begin..end]);
        }
        at = end;
    }
    Ok(component)
}

/// Where the content of the section at this place begins and ends.
fn section_at(component: &[u8], at: usize) -> Option<(usize, usize)> {
    let mut length = 0_usize;
    for (i, byte) in component.get(at + 1..)?.iter().take(5).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            let begin = at + 2 + i;
            let end = begin.checked_add(length)?;
            return (end <= component.len()).then_some((begin, end));
        }
    }
    None
}

fn rename(bytes: &mut [u8]) {
    for package in PACKAGES {
        let meanwhile = format!("{MEANWHILE}{package}/");
        let mut at = 0;
        while let Some(found) = bytes[at..]
            .windows(meanwhile.len())
            .position(|w| w == meanwhile.as_bytes())
        {
            let place = at + found;
            bytes[place..place + NAMESPACE.len()].copy_from_slice(NAMESPACE.as_bytes());
            at = place + meanwhile.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(id: u8, content: &str) -> Vec<u8> {
        assert!(content.len() < 128);
        [&[id, content.len() as u8], content.as_bytes()].concat()
    }

    #[test]
    fn only_the_imports_of_the_component_get_their_names_back() {
        let header = *b"\0asm\x0d\0\x01\0";
        let inside = section(1, "host:config/store is a text of the author");
        let imports = section(10, "..host:config/store@0.2.0-rc.1..host:other/x..");
        let more = section(10, "host:logging/logging host:keyvalue/atomics");
        let all = [&header[..], &inside, &imports, &inside, &more].concat();
        let restored = restore(all.clone()).expect("it is well formed");
        let imports = section(10, "..wasi:config/store@0.2.0-rc.1..host:other/x..");
        let more = section(10, "wasi:logging/logging wasi:keyvalue/atomics");
        assert_eq!(
            restored,
            [&header[..], &inside, &imports, &inside, &more].concat()
        );
        assert!(restore(all[..all.len() - 1].to_vec()).is_err());
    }

    #[test]
    fn clocks_and_files_keep_their_names() {
        let text = "import wasi:config/store@0.2.0-rc.1; import wasi:clocks/wall-clock@0.2.0;";
        assert_eq!(
            disguised(text),
            "import host:config/store@0.2.0-rc.1; import wasi:clocks/wall-clock@0.2.0;"
        );
    }
}
