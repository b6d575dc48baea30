//! C: bindings are generated from the contract, zig compiles them with the author's files
//! and its C library to one core module, which becomes a component.
//!
//! What of that library the program uses may ask the first WASI for files or clocks; the
//! standard adapter turns it to the second, where the host has an empty world for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wit_bindgen_core::Files;
use wit_component::ComponentEncoder;

use crate::build::files_with;
use crate::build::stage::Stage;
use crate::{Error, Language, tools};

/// Name of the generated header and source, and prefix of the few names in them that
/// belong to no interface.
const BINDINGS: &str = "contract";

/// Optimised for speed: a policy is loaded once and called for every request. The GNU
/// dialect, since the strict one hides POSIX.
const FLAGS: [&str; 7] = [
    "-target",
    "wasm32-wasi",
    "-mexec-model=reactor",
    "-std=gnu17",
    "-O2",
    "-Wall",
    "-Wextra",
];

pub fn build(folder: &Path, cache: &Path) -> Result<Vec<u8>, Error> {
    let mut stage = Stage::of(folder, Language::C)?;
    let python = tools::zig(cache)?;
    let generated = generate(&mut stage)?;
    show_header(&stage, folder)?;
    let sources = files_with(&stage.path(""), "c")?;
    let module = stage.path("build.core.wasm");
    let mut zig = Command::new(&python);
    zig.args(["-m", "ziglang", "cc"])
        .args(FLAGS)
        .args(["-I", "homeostat"])
        // By their bare names, as messages will have them.
        .args(sources.iter().filter_map(|path| path.file_name()))
        // The generated code is as its generator left it.
        .arg("-Wno-unused-parameter")
        .args(&generated)
        .args(["-Wl,--gc-sections", "-Wl,--strip-all"])
        // zig's own default is 16 MiB, which every instance would have to map.
        .args(["-Wl,-z,stack-size=1048576", "-o"])
        .arg(&module)
        .env(
            "ZIG_GLOBAL_CACHE_DIR",
            cache.join("tools").join("zig-cache"),
        )
        .env("ZIG_LOCAL_CACHE_DIR", stage.path("build.zig-cache"))
        .current_dir(stage.path(""));
    tools::run(
        zig,
        "zig cc",
        "C",
        "Remove the tool's folder from the cache",
    )?;
    encode(&fs::read(&module).map_err(Error::io(&module))?)
}

/// Writes the bindings where the SDK's header finds them; answers the C file and the
/// object that carries the world's types.
fn generate(stage: &mut Stage) -> Result<[PathBuf; 2], Error> {
    let options = wit_bindgen_c::Opts {
        rename_world: Some(BINDINGS.into()),
        ..wit_bindgen_c::Opts::default()
    };
    let mut files = Files::default();
    options
        .build()
        .generate(&mut stage.resolve, stage.world, &mut files)
        .map_err(|e| Error::Contract(format!("{e:#}")))?;
    let folder = stage.path("homeostat");
    for (name, content) in files.iter() {
        let path = folder.join(name);
        fs::write(&path, content).map_err(Error::io(&path))?;
    }
    Ok([".c", "_component_type.o"].map(|ending| folder.join(format!("{BINDINGS}{ending}"))))
}

/// Leaves the generated header in the author's `build/`, for eyes and editors.
fn show_header(stage: &Stage, folder: &Path) -> Result<(), Error> {
    let build = folder.join("build");
    fs::create_dir_all(&build).map_err(Error::io(&build))?;
    let header = format!("{BINDINGS}.h");
    let from = stage.path("homeostat").join(&header);
    let to = build.join(&header);
    fs::copy(from, &to).map(drop).map_err(Error::io(&to))
}

fn encode(module: &[u8]) -> Result<Vec<u8>, Error> {
    let bad = |e| Error::Encode(format!("{e:#}"));
    let mut encoder = ComponentEncoder::default();
    encoder.validate(true).module(module).map_err(bad)?;
    encoder
        .adapter(
            WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME,
            WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
        )
        .map_err(bad)?;
    encoder.encode().map_err(bad)
}
