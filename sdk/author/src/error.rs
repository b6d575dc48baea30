//! Why an author did not get what was asked for.

use std::path::PathBuf;

/// Each text says what happened and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder that is no policy.
    #[error("{}: {reason}", folder.display())]
    Folder {
        /// Which.
        folder: PathBuf,
        /// What is missing, and what would help.
        reason: String,
    },
    /// A program that is not on this machine.
    #[error("{program} is missing, which policies in {language} need. {help}")]
    Missing {
        /// The program.
        program: String,
        /// What for.
        language: &'static str,
        /// How to get it.
        help: &'static str,
    },
    /// A program that ran and failed; its own messages are on standard error.
    #[error("{what} failed ({status}); its messages are above")]
    Tool {
        /// What it was doing.
        what: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// A module that does not fit the contract.
    #[error("this does not make a component: {0}")]
    Encode(String),
    /// The contract in the folder.
    #[error("the contract cannot be read: {0}")]
    Contract(String),
    /// Rust has a builder of its own.
    #[error(transparent)]
    Rust(#[from] homeostat_componentize::BuildError),
}

impl Error {
    /// For `map_err` on what concerns one path.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
