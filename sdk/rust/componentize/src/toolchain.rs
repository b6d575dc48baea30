//! Which Rust compiler on this machine can make WebAssembly?
//!
//! Machines get Rust in two ways, and both must work without asking the user to change
//! ways. With rustup the target is one component away. A distribution ships no
//! WebAssembly standard library, but (Debian, Ubuntu, Fedora) its sources; then cargo
//! compiles the standard library itself, which stable compilers permit only to those who
//! say that they know what they do (`RUSTC_BOOTSTRAP=1`). That switch is set for the
//! compilation of policies alone and never reaches the host's own code.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::BuildError;

/// The only target policies are compiled to. No WASI: a policy has no files, clock or
/// environment, so a module that imported them could not be linked.
pub(crate) const TARGET: &str = "wasm32-unknown-unknown";

const HOW_TO_INSTALL: &str =
    "no Rust compiler here can make WebAssembly components. Install one of:
  with rustup:          rustup target add wasm32-unknown-unknown
  with Debian, Ubuntu:  apt-get install rustc-web rust-web-src   (or: rustc rust-src lld)
Looked at:";

/// A compiler that can make WebAssembly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// The compiler.
    pub rustc: PathBuf,
    /// The cargo that belongs to it.
    pub cargo: PathBuf,
    /// Set when the standard library must be compiled from its sources: the linker.
    pub build_std: Option<BuildStd>,
    /// Folder of the compiler's installation.
    pub(crate) sysroot: PathBuf,
}

/// What compiling the standard library takes beyond the compiler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildStd {
    /// LLVM's WebAssembly linker.
    pub linker: PathBuf,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rustc = self.rustc.display();
        match &self.build_std {
            None => write!(f, "compiling with {rustc}"),
            Some(std) => write!(
                f,
                "compiling with {rustc}; the standard library is compiled first (a minute, once), \
                 linker {}",
                std.linker.display()
            ),
        }
    }
}

impl Toolchain {
    /// The first compiler that has the target installed, else the first that has the
    /// sources of its standard library beside it.
    pub fn find() -> Result<Self, BuildError> {
        let compilers: Vec<Compiler> = candidates().into_iter().filter_map(Compiler::ask).collect();
        if let Some(c) = compilers.iter().find(|c| c.target_libdir.is_dir()) {
            return Ok(c.toolchain(None));
        }
        let linker = compilers.iter().find_map(|c| c.linker());
        for compiler in compilers.iter().filter(|c| c.has_std_sources()) {
            if let Some(linker) = &linker {
                return Ok(compiler.toolchain(Some(BuildStd {
                    linker: linker.clone(),
                })));
            }
        }
        let mut text = HOW_TO_INSTALL.to_owned();
        if compilers.is_empty() {
            text.push_str("\n  (no rustc answers on this machine)");
        }
        for c in &compilers {
            let lacks = if c.has_std_sources() {
                "no linker rust-lld or wasm-ld"
            } else {
                "neither the target nor the standard library's sources"
            };
            text.push_str(&format!("\n  {}: {lacks}", c.rustc.display()));
        }
        Err(BuildError::NoToolchain(text))
    }
}

/// The compiler of the cargo that runs us, the one of the search path, and the
/// distribution's, which rustup usually hides.
fn candidates() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::env::var_os("RUSTC")
        .map(PathBuf::from)
        .into_iter()
        .chain(["rustc".into(), "/usr/bin/rustc".into()])
        .collect();
    found.dedup();
    found
}

struct Compiler {
    rustc: PathBuf,
    sysroot: PathBuf,
    target_libdir: PathBuf,
}

impl Compiler {
    /// `None` when it does not run or does not know the target.
    fn ask(rustc: PathBuf) -> Option<Self> {
        let output = Command::new(&rustc)
            .args([
                "--print",
                "sysroot",
                "--print",
                "target-libdir",
                "--target",
                TARGET,
            ])
            .env_remove("LD_LIBRARY_PATH")
            .output()
            .ok()
            .filter(|o| o.status.success())?;
        let text = String::from_utf8(output.stdout).ok()?;
        let mut lines = text.lines();
        Some(Self {
            sysroot: lines.next()?.into(),
            target_libdir: lines.next()?.into(),
            rustc,
        })
    }

    fn toolchain(&self, build_std: Option<BuildStd>) -> Toolchain {
        // A cargo older than its compiler may not know how that version's standard
        // library is put together, so the neighbour is preferred.
        let neighbour = self.sysroot.join("bin").join("cargo");
        Toolchain {
            rustc: self.rustc.clone(),
            cargo: if neighbour.is_file() {
                neighbour
            } else {
                std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
            },
            build_std,
            sysroot: self.sysroot.clone(),
        }
    }

    fn has_std_sources(&self) -> bool {
        self.sysroot
            .join("lib/rustlib/src/rust/library/std/Cargo.toml")
            .is_file()
    }

    /// A linker that runs: distributions ship dangling links when the linker's package is
    /// not installed.
    fn linker(&self) -> Option<PathBuf> {
        let rustlib = self.sysroot.join("lib/rustlib");
        let bundled = std::fs::read_dir(&rustlib)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("bin/rust-lld"));
        let installed = std::env::var_os("PATH").unwrap_or_default();
        let installed: Vec<PathBuf> = std::env::split_paths(&installed)
            .flat_map(|dir| [dir.join("rust-lld"), dir.join("wasm-ld")])
            .collect();
        bundled.chain(installed).find(|path| runs(path))
    }
}

fn runs(linker: &Path) -> bool {
    let mut command = Command::new(linker);
    if linker.ends_with("rust-lld") {
        command.args(["-flavor", "wasm"]);
    }
    command
        .arg("--version")
        .output()
        .is_ok_and(|o| o.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_toolchain_that_is_found_names_files_that_exist() {
        match Toolchain::find() {
            Ok(t) => {
                assert!(t.sysroot.is_dir(), "{t}");
                assert!(t.build_std.is_none_or(|b| b.linker.is_file()));
            }
            Err(e) => assert!(e.to_string().contains("rustup target add"), "{e}"),
        }
    }

    #[test]
    fn a_linker_that_does_not_exist_does_not_run() {
        assert!(!runs(Path::new("no-such-folder/rust-lld")));
    }
}
