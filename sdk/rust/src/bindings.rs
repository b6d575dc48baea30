//! What wit-bindgen makes of `wit/`. Policies use the crate's root instead; this is public
//! only because the `export_` macros expand in the policy's crate.
//!
//! The imports are generated once, so that all worlds share one set of types, and every
//! world adds only its exports.

#![allow(
    unsafe_code,
    clippy::allow_attributes_without_reason,
    clippy::undocumented_unsafe_blocks,
    reason = "generated: the component ABI is written in terms of raw pointers"
)]
#![doc(hidden)]

pub mod imports {
    //! Everything that a policy may import.
    wit_bindgen::generate!({
        path: "../../wit",
        world: "homeostat:policy/imports",
        generate_all,
        generate_unused_types: true,
        pub_export_macro: true,
    });
}

pub use imports::homeostat::policy::types;

// One world per exported interface. A policy that exports several invokes several export
// macros, and the encoder merges their worlds; generating the composed worlds of
// `wit/worlds.wit` as well would define the same export macros twice.
macro_rules! world {
    ($module:ident, $world:literal, $macro:literal) => {
        pub mod $module {
            //! One exported interface of the contract.
            wit_bindgen::generate!({
                path: "../../wit",
                inline: "package homeostat:sdk;
                    world classifier { include homeostat:policy/imports@0.1.0; export homeostat:policy/classifier@0.1.0; }
                    world router { include homeostat:policy/imports@0.1.0; export homeostat:policy/router@0.1.0; }
                    world validator { include homeostat:policy/imports@0.1.0; export homeostat:policy/validator@0.1.0; }
                    world learner { include homeostat:policy/imports@0.1.0; export homeostat:policy/learner@0.1.0; }",
                world: $world,
                with: {
                    "homeostat:policy/types@0.1.0": crate::bindings::imports::homeostat::policy::types,
                    "homeostat:policy/telemetry@0.1.0": crate::bindings::imports::homeostat::policy::telemetry,
                    "homeostat:policy/models@0.1.0": crate::bindings::imports::homeostat::policy::models,
                    "homeostat:policy/propose@0.1.0": crate::bindings::imports::homeostat::policy::propose,
                    "wasi:keyvalue/store@0.2.0-draft": crate::bindings::imports::wasi::keyvalue::store,
                    "wasi:keyvalue/atomics@0.2.0-draft": crate::bindings::imports::wasi::keyvalue::atomics,
                    "wasi:config/store@0.2.0-rc.1": crate::bindings::imports::wasi::config::store,
                    "wasi:logging/logging@0.1.0-draft": crate::bindings::imports::wasi::logging::logging,
                },
                pub_export_macro: true,
                export_macro_name: $macro,
            });
        }
    };
}

world!(
    classifier,
    "homeostat:sdk/classifier",
    "__export_classifier"
);
world!(router, "homeostat:sdk/router", "__export_router");
world!(validator, "homeostat:sdk/validator", "__export_validator");
world!(learner, "homeostat:sdk/learner", "__export_learner");
