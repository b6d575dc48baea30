//! Builds Rust policy crates into WebAssembly components.
//!
//! Two callers: build scripts that embed policies into the host, and
//! `homeostat policy build`. Both need the same three steps: find a Rust compiler that
//! can make WebAssembly ([`Toolchain`]), let cargo compile the crates to core modules,
//! wrap each module into a component.
//!
//! It refuses to guess: a machine that lacks the WebAssembly standard library gets an
//! error that names both ways to install it, never a silent skip. It downloads nothing
//! by itself (cargo may fetch crates) and it writes only below [`Options::target_dir`].
//!
//! The same sources, compiler and lock file give the same bytes: paths of the machine
//! are mapped away and every profile setting is passed explicitly, so neither the
//! caller's profile nor its `RUSTFLAGS` leak in.

mod cargo;
mod toolchain;

use std::path::{Path, PathBuf};

pub use toolchain::Toolchain;

/// Where the work is done.
#[derive(Debug, Clone)]
pub struct Options {
    /// Cargo's target folder for WebAssembly. It must not be the target folder of a cargo
    /// that waits for this one: two cargos on one folder would wait for each other.
    pub target_dir: PathBuf,
}

/// Why there is no component.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The machine cannot compile to WebAssembly; the text says how to change that.
    #[error("{0}")]
    NoToolchain(String),
    /// A folder is not a policy crate.
    #[error("{}: {reason}", crate_dir.display())]
    NotAPolicyCrate {
        /// The folder that was given.
        crate_dir: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// Cargo could not be run.
    #[error("cannot run {program}: {source}")]
    Run {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// Cargo ran and failed; its messages are on standard error.
    #[error(
        "cargo failed ({status}) while compiling {crates} to WebAssembly; its messages are above"
    )]
    Compile {
        /// How cargo ended.
        status: std::process::ExitStatus,
        /// Names of the crates.
        crates: String,
    },
    /// A file that cargo made could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The core module is no policy: it exports none of the contract's worlds, or another
    /// version of them.
    #[error("{name} does not make a component: {reason}")]
    Encode {
        /// The crate.
        name: String,
        /// What the encoder says.
        reason: String,
    },
}

/// Builds the policy crate in `crate_dir` and returns the component's bytes.
pub fn build(crate_dir: &Path, options: &Options) -> Result<Vec<u8>, BuildError> {
    let mut components = build_many(&[crate_dir], options)?;
    Ok(components.remove(0))
}

/// Builds several policy crates, in the order given. Crates of one workspace share one
/// run of cargo, because compiling the standard library is the dear part.
pub fn build_many(crate_dirs: &[&Path], options: &Options) -> Result<Vec<Vec<u8>>, BuildError> {
    let toolchain = Toolchain::find()?;
    eprintln!("componentize: {toolchain}");
    let crates = crate_dirs
        .iter()
        .map(|dir| cargo::PolicyCrate::read(dir, &toolchain))
        .collect::<Result<Vec<_>, _>>()?;
    let modules = cargo::compile(&crates, &toolchain, &options.target_dir)?;
    crates
        .iter()
        .zip(modules)
        .map(|(policy, path)| {
            let module =
                std::fs::read(&path).map_err(|source| BuildError::Read { path, source })?;
            let component = encode(&module).map_err(|reason| BuildError::Encode {
                name: policy.name.clone(),
                reason,
            })?;
            eprintln!(
                "componentize: {} is {} KiB ({} KiB as a core module)",
                policy.name,
                component.len().div_ceil(1024),
                module.len().div_ceil(1024)
            );
            Ok(component)
        })
        .collect()
}

/// Wraps a core module that carries wit-bindgen's type sections into a component. The
/// error is the encoder's text with its causes.
pub fn encode(module: &[u8]) -> Result<Vec<u8>, String> {
    wit_component::ComponentEncoder::default()
        .validate(true)
        .module(module)
        .and_then(|encoder| encoder.encode())
        .map_err(|e| format!("{e:#}"))
}
