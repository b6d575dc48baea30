//! The user's view of Homeostat: what the tests in `tests/tests` share.
//!
//! The tests use public interfaces only, with components compiled from source: the guests
//! that misbehave (`tests/guests`) and the policies in Rust (`plugins/`).

pub mod scene;
pub mod text_guest;

include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// What the host comes with, one of each hook.
const DEFAULTS: [&str; 3] = ["classify-lexical", "route-metabolic", "validate-facts"];

/// The default policies: name, component.
pub fn default_policies() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    POLICIES
        .iter()
        .copied()
        .filter(|(name, _)| DEFAULTS.contains(name))
}
