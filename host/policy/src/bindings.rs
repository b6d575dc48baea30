//! The contract in Rust, generated from `wit/`.
//!
//! Nothing is written by hand here: a difference between the contract and the host would
//! be a compile error in [`crate::convert`] or [`crate::host`].

#![allow(
    unsafe_code,
    reason = "generated: a typed call skips the type check that `load` has made"
)]
#![allow(
    dead_code,
    clippy::all,
    reason = "generated: whole-world helpers that this room does not use"
)]

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "full-policy",
    imports: { default: trappable },
    additional_derives: [Clone, PartialEq],
    with: {
        "homeostat:policy/models.model": crate::host::ModelHandle,
        "wasi:keyvalue/store.bucket": crate::host::BucketHandle,
    },
});

pub use exports::homeostat::policy::{classifier, learner, router, validator};
pub use homeostat::policy::types;
