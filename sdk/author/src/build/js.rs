//! JavaScript: componentize-qjs puts QuickJS and the module, already read, into one
//! component. WASI is stubbed, so a policy has no clock and no random numbers.
//!
//! A folder with a tsconfig.json is TypeScript: its own compiler checks the types by that
//! file, and only what has no mistake becomes JavaScript.

use std::path::Path;
use std::process::Command;

use crate::build::stage::{Stage, WORLD};
use crate::build::standard;
use crate::{Error, Language, tools};

/// Where tsc writes in the stage.
const EMITTED: &str = "build.emitted";

pub fn build(folder: &Path, cache: &Path, language: Language) -> Result<Vec<u8>, Error> {
    let stage = Stage::of(folder, language)?;
    standard::disguise(&stage.path(""))?;
    stage.bring(folder, "node_modules")?;
    let tool = tools::js(cache)?;
    let main = main_of(&stage, folder)?;
    let source = match language {
        Language::Ts => emit(&stage, cache, &main)?,
        _ => main,
    };
    let out = stage.path("build.wasm");
    let mut node = Command::new("node");
    node.arg(tool.join("build.mjs"))
        .arg(stage.path(&source))
        .arg(stage.path("wit"))
        .arg(WORLD)
        .arg(&out)
        .current_dir(stage.path(""));
    tools::run(node, "componentize-qjs", "JavaScript", tools::NODE_HELP)?;
    standard::restore(std::fs::read(&out).map_err(Error::io(&out))?)
}

/// `main` of package.json: the module that exports the hooks.
fn main_of(stage: &Stage, folder: &Path) -> Result<String, Error> {
    let refuse = |reason: String| Error::Folder {
        folder: folder.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(stage.path("package.json")).map_err(|e| {
        refuse(format!(
            "package.json, which names the policy's module: {e}"
        ))
    })?;
    let package: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| refuse(format!("package.json: {e}")))?;
    let main = package["main"].as_str().unwrap_or("policy.js").to_owned();
    if stage.path(&main).is_file() {
        return Ok(main);
    }
    Err(refuse(format!(
        "{main}, which package.json names as main, is missing"
    )))
}

/// Checks the types and makes JavaScript; answers the name of what `main` became. What
/// tsconfig.json says of types is the author's, where and what to write is ours: an editor's
/// `noEmit` is no wish for an empty component.
fn emit(stage: &Stage, cache: &Path, main: &str) -> Result<String, Error> {
    let tool = tools::typescript(cache)?;
    let mut tsc = Command::new("node");
    tsc.arg(tool.join("node_modules/typescript/lib/tsc.js"))
        .args(["--project", "tsconfig.json", "--rootDir", "."])
        .args(["--noEmit", "false", "--noEmitOnError", "true"])
        .args(["--outDir", EMITTED])
        // By bare names, as messages will have them.
        .current_dir(stage.path(""));
    tools::run(tsc, "tsc", "TypeScript", tools::NODE_HELP)?;
    let emitted = main.strip_suffix("ts").map(|stem| format!("{stem}js"));
    Ok(format!("{EMITTED}/{}", emitted.as_deref().unwrap_or(main)))
}
