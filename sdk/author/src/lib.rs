//! What a policy's author needs besides an editor: a folder to begin with ([`begin`]), a
//! component made of it ([`build`]), and the contract as text ([`contract`]).
//!
//! Everything that a folder needs from Homeostat is in the binary; the compilers of other
//! languages are not. Those are fetched once by their own package managers into a cache
//! ([`tools`]), at versions that this crate fixes, and never during a request.
//!
//! It refuses to guess: a folder whose language cannot be told, a tool that is missing, a
//! name that no package may have are errors that say what to do.

pub mod begin;
pub mod build;
pub mod contract;
mod embedded;
mod error;
pub mod tools;

pub use build::build;
pub use error::Error;

/// A language that policies are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Language {
    /// Rust.
    Rust,
    /// JavaScript.
    Js,
    /// TypeScript: JavaScript that a compiler of types has read first.
    Ts,
    /// Python.
    Python,
    /// C.
    C,
}

impl Language {
    /// All of them.
    pub const ALL: [Language; 5] = [Self::Rust, Self::Js, Self::Ts, Self::Python, Self::C];

    /// The word of the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Js => "js",
            Self::Ts => "ts",
            Self::Python => "python",
            Self::C => "c",
        }
    }

    /// The folder of its SDK below `sdk/`.
    pub fn sdk(self) -> &'static str {
        match self {
            Self::Ts => Self::Js.as_str(),
            other => other.as_str(),
        }
    }
}
