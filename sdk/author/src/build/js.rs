//! JavaScript: componentize-qjs puts QuickJS and the module, already read, into one
//! component. WASI is stubbed, so a policy has no clock and no random numbers.

use std::path::Path;
use std::process::Command;

use crate::build::stage::{Stage, WORLD};
use crate::build::standard;
use crate::{Error, Language, tools};

pub fn build(folder: &Path, cache: &Path) -> Result<Vec<u8>, Error> {
    let stage = Stage::of(folder, Language::Js)?;
    standard::disguise(&stage.path(""))?;
    let tool = tools::js(cache)?;
    let source = stage.path(&main_of(&stage, folder)?);
    let out = stage.path("build.wasm");
    let mut node = Command::new("node");
    node.arg(tool.join("build.mjs"))
        .arg(&source)
        .arg(stage.path("wit"))
        .arg(WORLD)
        .arg(&out);
    tools::run(
        node,
        "componentize-qjs",
        "JavaScript",
        "Install Node.js 18 or newer",
    )?;
    standard::restore(std::fs::read(&out).map_err(Error::io(&out))?)
}

/// `main` of package.json: the module that exports the hooks.
fn main_of(stage: &Stage, folder: &Path) -> Result<String, Error> {
    let path = stage.path("package.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let refuse = |reason: String| Error::Folder {
        folder: folder.to_owned(),
        reason,
    };
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
