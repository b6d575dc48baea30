//! Model files: which there are, where they lie, how they get there, and what memory they
//! will take.
//!
//! A manifest names a package and, for every file in it, size and sha256; a model of a hub
//! has a record of what was pulled. Nothing is loaded that does not match the one or the
//! other: a truncated download or a changed file is refused by name before an engine sees
//! it.

mod cache;
mod hub;
mod manifest;
mod memory;
mod pull;
mod shelf;
mod transfer;

pub use cache::{CacheError, ModelCache, root as cache_root};
pub use hub::pulled;
pub use manifest::{Manifest, ModelKind};
pub use memory::{Demand, Footprint, Room};
pub use shelf::{Shelf, is_path};
