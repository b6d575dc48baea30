//! `cargo run --release -p homeostat-componentize --example componentize -- OUT CRATE…`
//! writes one `.wasm` component per policy crate into the folder OUT.

use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let out = arguments.next().ok_or("expected: OUT CRATE…")?;
    let crates: Vec<PathBuf> = arguments.collect();
    let dirs: Vec<&Path> = crates.iter().map(PathBuf::as_path).collect();
    let options = homeostat_componentize::Options {
        target_dir: out.join("target"),
    };
    let components = homeostat_componentize::build_many(&dirs, &options)?;
    for (dir, component) in dirs.iter().zip(components) {
        let name = dir.canonicalize()?;
        let name = name.file_name().ok_or("a crate folder has a name")?;
        std::fs::write(out.join(name).with_extension("wasm"), component)?;
    }
    Ok(())
}
