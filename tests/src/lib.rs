//! The user's view of Homeostat: what the tests in `tests/tests` share.
//!
//! The tests use public interfaces only, with components compiled from source: the guests
//! that misbehave (`tests/guests`) and the default policies (`plugins/`).

pub mod scene;
pub mod text_guest;

include!(concat!(env!("OUT_DIR"), "/guests.rs"));
