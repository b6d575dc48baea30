//! Python: componentize-py puts CPython and the module, already imported, into one
//! component. WASI is stubbed, so a policy has no clock and no fresh random numbers.

use std::path::Path;
use std::process::Command;

use crate::build::stage::{Stage, WORLD};
use crate::build::{requirements, standard};
use crate::{Error, Language, tools};

/// The author's module.
const MODULE: &str = "policy";

/// Fixed names for the modules of imports: left alone, a name depends on what else is
/// imported.
const NAMES: [(&str, &str); 4] = [
    ("wasi:config/store@0.2.0-rc.1", "config"),
    ("wasi:keyvalue/store@0.2.0-draft", "keyvalue"),
    ("wasi:keyvalue/atomics@0.2.0-draft", "atomics"),
    ("wasi:logging/logging@0.1.0-draft", "logging"),
];

pub fn build(folder: &Path, cache: &Path) -> Result<Vec<u8>, Error> {
    if !folder.join(MODULE).with_extension("py").is_file() {
        return Err(Error::Folder {
            folder: folder.to_owned(),
            reason: "policy.py, the module that holds the hooks, is missing".into(),
        });
    }
    let stage = Stage::of(folder, Language::Python)?;
    standard::disguise(&stage.path(""))?;
    let python = tools::python(cache)?;
    let packages = requirements::install(folder, &python)?;
    let out = stage.path("build.wasm");
    let mut tool = Command::new(python.with_file_name("componentize-py"));
    tool.arg("--quiet")
        .arg("--wit-path")
        .arg(stage.path("wit"))
        .args(["--world", WORLD]);
    let world = &stage.resolve.worlds[stage.world];
    for (interface, name) in NAMES {
        let imported = world
            .imports
            .keys()
            .any(|key| stage.resolve.name_world_key(key) == interface);
        if imported {
            tool.arg("--import-interface-name")
                .arg(format!("{}={name}", standard::disguised(interface)));
        }
    }
    tool.args(["componentize", "--stub-wasi", "--python-path"])
        .arg(stage.path(""));
    if let Some(packages) = packages {
        tool.arg("--python-path").arg(packages);
    }
    tool.arg("--output")
        .arg(&out)
        .arg(MODULE)
        // A virtual environment around us is not the policy's.
        .env_remove("VIRTUAL_ENV")
        .current_dir(stage.path(""));
    tools::run(
        tool,
        "componentize-py",
        "Python",
        "Remove the tool's folder from the cache",
    )?;
    standard::restore(std::fs::read(&out).map_err(Error::io(&out))?)
}
