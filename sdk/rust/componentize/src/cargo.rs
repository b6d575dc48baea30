//! The one conversation with cargo.
//!
//! The caller is often itself a child of cargo and carries dozens of its variables. They
//! describe another compilation (its target, its flags, its wrapper, its profile), so all
//! but those that say where crates come from are removed.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::BuildError;
use crate::toolchain::{TARGET, Toolchain};

/// Variables of an outer cargo that the inner one should see as well: where crates are
/// kept and fetched, how to print, how many jobs may run.
const KEPT: [&str; 8] = [
    "CARGO_HOME",
    "CARGO_MAKEFLAGS",
    "CARGO_NET_",
    "CARGO_HTTP_",
    "CARGO_REGISTRY_",
    "CARGO_REGISTRIES_",
    "CARGO_SOURCE_",
    "CARGO_TERM_",
];

/// The profile of policies: one codegen unit, link-time optimisation over all of it, no
/// names. Optimising for speed instead of size costs a twelfth more bytes (219 against
/// 202 KiB of core module, mean of the three default policies), and a policy is loaded
/// once but called for every request.
const PROFILE: [&str; 9] = [
    "profile.release.opt-level=3",
    "profile.release.lto=\"fat\"",
    "profile.release.codegen-units=1",
    "profile.release.panic=\"abort\"",
    "profile.release.strip=true",
    "profile.release.debug=false",
    "profile.release.incremental=false",
    "profile.release.overflow-checks=false",
    "profile.release.debug-assertions=false",
];

/// A crate that makes one WebAssembly module.
pub(crate) struct PolicyCrate {
    pub(crate) name: String,
    manifest: PathBuf,
    workspace_root: PathBuf,
}

impl PolicyCrate {
    /// Asks cargo for the crate's name and workspace.
    pub(crate) fn read(crate_dir: &Path, toolchain: &Toolchain) -> Result<Self, BuildError> {
        let not_a_policy = |reason: &str| BuildError::NotAPolicyCrate {
            crate_dir: crate_dir.to_owned(),
            reason: reason.to_owned(),
        };
        let manifest = crate_dir
            .join("Cargo.toml")
            .canonicalize()
            .map_err(|_| not_a_policy("there is no Cargo.toml in this folder"))?;
        let mut command = clean(toolchain);
        command
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .arg("--manifest-path")
            .arg(&manifest)
            .stderr(Stdio::inherit());
        let output = command.output().map_err(|e| cannot_run(toolchain, e))?;
        let metadata: Value = serde_json::from_slice(&output.stdout)
            .map_err(|_| not_a_policy("cargo cannot read its Cargo.toml; its message is above"))?;
        let package = metadata["packages"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|p| p["manifest_path"].as_str().map(Path::new) == Some(&manifest))
            .ok_or_else(|| not_a_policy("its Cargo.toml describes no package"))?;
        if !package["targets"]
            .as_array()
            .into_iter()
            .flatten()
            .any(is_cdylib)
        {
            return Err(not_a_policy(
                "a policy needs crate-type = [\"cdylib\"] under [lib] in its Cargo.toml",
            ));
        }
        Ok(Self {
            name: package["name"].as_str().unwrap_or_default().to_owned(),
            workspace_root: metadata["workspace_root"]
                .as_str()
                .unwrap_or_default()
                .into(),
            manifest,
        })
    }
}

fn is_cdylib(target: &Value) -> bool {
    let kinds = target["kind"].as_array().into_iter().flatten();
    kinds.into_iter().any(|kind| kind == "cdylib")
}

fn cannot_run(toolchain: &Toolchain, source: std::io::Error) -> BuildError {
    BuildError::Run {
        program: toolchain.cargo.display().to_string(),
        source,
    }
}

/// Compiles the crates, workspace by workspace, and returns the path of each one's module.
pub(crate) fn compile(
    crates: &[PolicyCrate],
    toolchain: &Toolchain,
    target_dir: &Path,
) -> Result<Vec<PathBuf>, BuildError> {
    let mut modules: Vec<Option<PathBuf>> = vec![None; crates.len()];
    while let Some(first) = modules.iter().position(Option::is_none) {
        let root = &crates[first].workspace_root;
        let together: Vec<usize> = (0..crates.len())
            .filter(|&i| crates[i].workspace_root == *root)
            .collect();
        let members: Vec<&PolicyCrate> = together.iter().map(|&i| &crates[i]).collect();
        let messages = run(&members, toolchain, target_dir)?;
        for i in together {
            let module = module_of(&messages, &crates[i].manifest);
            modules[i] = Some(module.ok_or_else(|| BuildError::Encode {
                name: crates[i].name.clone(),
                reason: "cargo compiled it but made no .wasm file".to_owned(),
            })?);
        }
    }
    Ok(modules.into_iter().flatten().collect())
}

/// Cargo's messages, one JSON object a line; compiler output goes to standard error.
fn run(
    crates: &[&PolicyCrate],
    toolchain: &Toolchain,
    target_dir: &Path,
) -> Result<Vec<u8>, BuildError> {
    let mut command = clean(toolchain);
    command
        .args(["build", "--release", "--lib", "--target", TARGET])
        .arg("--message-format=json-render-diagnostics")
        .arg("--manifest-path")
        .arg(&crates[0].manifest)
        .arg("--target-dir")
        .arg(target_dir);
    for policy in crates {
        command.args(["-p", &policy.name]);
    }
    for setting in PROFILE {
        command.args(["--config", setting]);
    }
    if let Some(build_std) = &toolchain.build_std {
        command
            .arg("-Zbuild-std=std,panic_abort")
            // Without the default features, which would compile a reader of debug
            // information that a module without files could never use.
            .arg("-Zbuild-std-features=panic-unwind")
            .env("RUSTC_BOOTSTRAP", "1")
            .env(
                "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER",
                &build_std.linker,
            );
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", path_flags(toolchain));
    command.stdout(Stdio::piped()).stderr(Stdio::inherit());
    let output = command.output().map_err(|e| cannot_run(toolchain, e))?;
    if !output.status.success() {
        let names: Vec<&str> = crates.iter().map(|c| c.name.as_str()).collect();
        return Err(BuildError::Compile {
            status: output.status,
            crates: names.join(", "),
        });
    }
    Ok(output.stdout)
}

fn module_of(messages: &[u8], manifest: &Path) -> Option<PathBuf> {
    messages
        .split(|&b| b == b'\n')
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
        .filter(|m| m["reason"] == "compiler-artifact")
        .filter(|m| m["manifest_path"].as_str().map(Path::new) == Some(manifest))
        .filter_map(|m| {
            let files = m["filenames"].as_array()?.clone();
            let mut wasm = files
                .iter()
                .filter_map(Value::as_str)
                .filter(|f| f.ends_with(".wasm"));
            wasm.next().map(PathBuf::from)
        })
        .next()
}

/// Panic messages name source files; without this the bytes would depend on the machine,
/// and tell about it. Cargo names members of the workspace relative to its root anyway.
/// The root itself is not mapped, since flags that differ between workspaces would compile
/// the standard library once for each.
fn path_flags(toolchain: &Toolchain) -> OsString {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| {
            let home = std::env::var_os("HOME")?;
            Some(PathBuf::from(home).join(".cargo"))
        });
    let sources = toolchain.sysroot.join("lib/rustlib/src/rust");
    let real_sources = sources.canonicalize().ok();
    let mapped = [
        (home, "cargo"),
        (Some(sources), "rust"),
        (real_sources, "rust"),
    ];
    let mut flags = OsString::new();
    for (from, to) in mapped {
        let Some(from) = from else { continue };
        if !flags.is_empty() {
            flags.push("\x1f");
        }
        flags.push("--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    flags
}

fn clean(toolchain: &Toolchain) -> Command {
    let mut command = Command::new(&toolchain.cargo);
    for (name, _) in std::env::vars_os() {
        if describes_another_build(&name) {
            command.env_remove(&name);
        }
    }
    command.env("RUSTC", &toolchain.rustc);
    command
}

fn describes_another_build(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    if name.starts_with("CARGO") {
        return !KEPT.iter().any(|kept| name.starts_with(kept));
    }
    let exact = [
        "DEBUG",
        "HOST",
        "LD_LIBRARY_PATH",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "TARGET",
    ];
    exact.contains(&name)
        || name.starts_with("DEP_")
        || ["RUSTC", "RUSTDOC", "RUSTFLAGS"]
            .iter()
            .any(|p| name.starts_with(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_describes_the_outer_build_does_not_reach_the_inner_one() {
        for name in [
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET",
            "CARGO_PROFILE_RELEASE_LTO",
            "RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_BOOTSTRAP",
            "OUT_DIR",
            "TARGET",
        ] {
            assert!(describes_another_build(OsStr::new(name)), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "PATH",
            "HOME",
            "RUSTUP_HOME",
        ] {
            assert!(!describes_another_build(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn a_module_is_found_by_its_manifest_not_by_its_place() {
        let lines = br#"noise
{"reason":"compiler-artifact","manifest_path":"/a/Cargo.toml","filenames":["/t/liba.rlib"]}
{"reason":"compiler-artifact","manifest_path":"/b/Cargo.toml","filenames":["/t/b.wasm"]}
{"reason":"compiler-artifact","manifest_path":"/a/Cargo.toml","filenames":["/t/a.wasm","/t/liba.rlib"]}"#;
        assert_eq!(
            module_of(lines, Path::new("/a/Cargo.toml")),
            Some("/t/a.wasm".into())
        );
        assert_eq!(module_of(lines, Path::new("/c/Cargo.toml")), None);
    }

    #[test]
    fn a_folder_without_a_manifest_is_refused_by_name() {
        let toolchain = Toolchain {
            rustc: "rustc".into(),
            cargo: "cargo".into(),
            build_std: None,
            sysroot: PathBuf::new(),
        };
        let Err(error) = PolicyCrate::read(Path::new("no-such-crate"), &toolchain) else {
            panic!("a crate was found where there is none");
        };
        assert!(error.to_string().contains("no-such-crate"), "{error}");
    }
}
