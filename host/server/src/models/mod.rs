//! Model files: which there are, where they lie, and how they get there.
//!
//! A manifest names a package and, for every file in it, size and sha256. Nothing is
//! loaded that does not match its manifest: a truncated download or a changed file is
//! refused by name before an engine sees it.

mod cache;
mod manifest;
mod pull;

pub use cache::{CacheError, ModelCache};
pub use manifest::{Manifest, Manifests};
pub use pull::pull;
