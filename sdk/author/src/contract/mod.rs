//! The contract as text for people and editors, made from `wit/` and nothing else: the
//! reference ([`reference`]) and JavaScript's types ([`typescript`]).
//!
//! Both are kept in the tree, where they can be read without a tool; a test compares them
//! with what is made here, and `examples/contract.rs` writes them anew.

mod reference;
mod typescript;

pub use reference::reference;
pub use typescript::typescript;

use std::path::Path;

use wit_parser::{Docs, Interface, Resolve};

use crate::Error;

/// Namespace of the interfaces that are ours.
const OURS: &str = "homeostat";

/// Reads the contract in a folder like `wit/`.
pub fn read(folder: &Path) -> Result<Resolve, Error> {
    let mut resolve = Resolve::default();
    let contract = |e: String| Error::Contract(e);
    resolve
        .push_dir(folder)
        .map_err(|e| contract(format!("{e:#}")))?;
    Ok(resolve)
}

/// Our interfaces, in the order in which the contract has them.
fn interfaces(resolve: &Resolve) -> impl Iterator<Item = &Interface> {
    let ours = resolve
        .packages
        .iter()
        .filter(|(_, p)| p.name.namespace == OURS);
    ours.flat_map(|(_, p)| p.interfaces.values().map(|id| &resolve.interfaces[*id]))
}

/// The lines of a doc comment. A ruler between groups of types (`// ----`) is none of it.
fn lines(docs: &Docs) -> impl Iterator<Item = &str> {
    let text = docs.contents.as_deref().unwrap_or_default().trim();
    let text = match text.split_once('\n') {
        Some((ruler, rest)) if ruler.starts_with("----") => rest.trim(),
        _ => text,
    };
    text.lines().map(str::trim_end)
}
