//! The policies that come with the binary.

use homeostat_hooks::Hook;
use homeostat_policy::config::{Grant, PolicyOptions};
use homeostat_policy::{Offer, PolicyRoom};

use crate::config::Config;

/// Hook, name, component.
const POLICIES: [(Hook, &str, &[u8]); 3] = [
    (
        Hook::Classify,
        "classify-lexical",
        include_bytes!(concat!(env!("OUT_DIR"), "/classify-lexical.wasm")),
    ),
    (
        Hook::Route,
        "route-metabolic",
        include_bytes!(concat!(env!("OUT_DIR"), "/route-metabolic.wasm")),
    ),
    (
        Hook::Validate,
        "validate-facts",
        include_bytes!(concat!(env!("OUT_DIR"), "/validate-facts.wasm")),
    ),
];

/// Put the embedded policies into the room. One that the configured limits refuse is
/// told in the log; its hook has the built-in answer, and the host starts all the same.
pub fn load(room: &PolicyRoom, config: &Config) {
    for (hook, name, bytes) in POLICIES {
        let offer = Offer {
            name: name.into(),
            bytes: bytes.to_vec(),
            hooks: Some(vec![hook]),
            options: options(hook, config),
            ..Offer::default()
        };
        match room.embed(offer) {
            Ok(report) => tracing::info!(
                policy = name,
                hook = hook.as_str(),
                compile_micros = report.compile_micros,
                "embedded policy"
            ),
            Err(refused) => tracing::error!(policy = name, "embedded policy: {refused}"),
        }
    }
}

/// The configured options of a hook, and what our own policies need besides: they read
/// the machine's profile, and the router keeps what it has learned, whatever other policies
/// of that hook are granted.
fn options(hook: Hook, config: &Config) -> PolicyOptions {
    let mut options = config.policies.options(hook).clone();
    let grants = options.grants.get_or_insert_default();
    let needed = match hook {
        Hook::Route => &[Grant::Config, Grant::Keyvalue][..],
        Hook::Classify | Hook::Validate => &[Grant::Config],
    };
    for grant in needed {
        if !grants.contains(grant) {
            grants.push(*grant);
        }
    }
    let settings = options.settings.get_or_insert_default();
    let profile = config.telemetry.profile_word();
    settings
        .entry("profile".into())
        .or_insert_with(|| profile.into());
    options
}
