//! What a policy may, what it asks for, and what it really uses.
//!
//! Three questions of an operator: what does this upgrade want that the policy which
//! serves now does not have; which power was given and is not imported; which is imported
//! and never called. The first two are answered at admission, the last by counting.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use homeostat_hooks::Hook;
use serde::Serialize;

use crate::call::Policy;
use crate::config::Grant;
use crate::swap::Table;

/// Calls after which an unused power is worth a word. A policy that needs its state once
/// in a thousand requests should have it.
const HINT_CALLS_MIN: u64 = 1_000;

/// An interface of the host that a policy can call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Import {
    Telemetry,
    Propose,
    Logging,
    Models,
    Keyvalue,
    Config,
}

impl Import {
    const ALL: [Self; 6] = [
        Self::Telemetry,
        Self::Propose,
        Self::Logging,
        Self::Models,
        Self::Keyvalue,
        Self::Config,
    ];

    /// How its name begins in a component.
    fn prefix(self) -> &'static str {
        match self {
            Self::Telemetry => "homeostat:policy/telemetry",
            Self::Propose => "homeostat:policy/propose",
            Self::Logging => "wasi:logging",
            Self::Models => "homeostat:policy/models",
            Self::Keyvalue => "wasi:keyvalue",
            Self::Config => "wasi:config",
        }
    }

    fn of(grant: Grant) -> Self {
        match grant {
            Grant::Models => Self::Models,
            Grant::Keyvalue => Self::Keyvalue,
            Grant::Config => Self::Config,
        }
    }
}

/// How often each interface was called, by all instances of one policy.
#[derive(Debug, Default)]
pub(crate) struct Uses([AtomicU64; 6]);

impl Uses {
    pub fn count(&self, import: Import) {
        self.0[import as usize].fetch_add(1, Relaxed);
    }

    fn of(&self, import: Import) -> u64 {
        self.0[import as usize].load(Relaxed)
    }

    /// The interfaces among `imports`, with the number of calls.
    pub fn read(&self, imports: &[String]) -> BTreeMap<&'static str, u64> {
        let all = Import::ALL.into_iter();
        all.filter(|import| is_imported(imports, *import))
            .map(|import| (import.prefix(), self.of(import)))
            .collect()
    }
}

fn is_imported(imports: &[String], import: Import) -> bool {
    imports.iter().any(|name| {
        let rest = name.strip_prefix(import.prefix());
        rest.is_some_and(|rest| rest.starts_with(['/', '@']))
    })
}

/// Powers that a policy was granted and does not import.
pub(crate) fn unused(grants: &[Grant], imports: &[String]) -> Vec<String> {
    grants
        .iter()
        .filter(|grant| !is_imported(imports, Import::of(**grant)))
        .map(|grant| grant.as_str().to_string())
        .collect()
}

/// Powers that could be taken away from a policy that has answered `calls` hook calls.
pub(crate) fn hints(policy: &Policy, calls: u64) -> Vec<String> {
    if calls < HINT_CALLS_MIN {
        return Vec::new();
    }
    let unneeded = policy.powers.grants.iter().filter_map(|grant| {
        let import = Import::of(*grant);
        if !is_imported(&policy.imports, import) {
            return Some(format!("granted {}, not imported", grant.as_str()));
        }
        let never = policy.powers.uses.of(import) == 0;
        never.then(|| format!("granted {}, never called in {calls} calls", grant.as_str()))
    });
    unneeded.collect()
}

/// What an upgrade changes at one hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The hook.
    pub hook: Hook,
    /// Who serves it now.
    pub from: String,
    /// As which generation.
    pub from_generation: u64,
    /// Whether it is the same component.
    pub same_component: bool,
    /// Interfaces that only the new one imports.
    pub new_imports: Vec<String>,
    /// Interfaces that only the old one imports.
    pub removed_imports: Vec<String>,
    /// Powers that only the new one is granted.
    pub new_grants: Vec<String>,
    /// Powers that only the old one was granted.
    pub removed_grants: Vec<String>,
}

impl Change {
    /// What this upgrade gets that was not there, in a sentence; none if it gets nothing.
    pub(crate) fn news(&self) -> Option<String> {
        let more = [&self.new_imports[..], &self.new_grants].concat();
        (!more.is_empty()).then(|| {
            format!(
                "at {} it asks for more than {}, which serves now: {}",
                self.hook.as_str(),
                self.from,
                more.join(", ")
            )
        })
    }
}

/// Compares a policy with those that serve its hooks now.
pub(crate) fn changes(table: &Table, hooks: &[Hook], new: &Policy) -> Vec<Change> {
    let compare = |hook: &Hook| {
        let active = table.get(*hook)?;
        let old = &active.policy;
        let words = |policy: &Policy| -> Vec<String> {
            let grants = policy.powers.grants.iter();
            grants.map(|grant| grant.as_str().to_string()).collect()
        };
        Some(Change {
            hook: *hook,
            from: old.name().to_string(),
            from_generation: active.number,
            same_component: old.digest == new.digest,
            new_imports: without(&new.imports, &old.imports),
            removed_imports: without(&old.imports, &new.imports),
            new_grants: without(&words(new), &words(old)),
            removed_grants: without(&words(old), &words(new)),
        })
    };
    hooks.iter().filter_map(compare).collect()
}

fn without(these: &[String], those: &[String]) -> Vec<String> {
    let missing = these.iter().filter(|name| !those.contains(name));
    missing.cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_found_by_its_whole_name() {
        let imports = vec!["wasi:config/store@0.2.0-rc.1".to_string()];
        assert!(is_imported(&imports, Import::Config));
        let longer = vec!["wasi:configuration/store@1.0.0".to_string()];
        assert!(!is_imported(&longer, Import::Config));
        assert_eq!(
            unused(&[Grant::Config, Grant::Models], &imports),
            ["models"]
        );
    }

    #[test]
    fn only_what_is_imported_is_counted() {
        let uses = Uses::default();
        uses.count(Import::Models);
        uses.count(Import::Models);
        let imports = vec!["homeostat:policy/models@0.1.0".to_string()];
        let read = uses.read(&imports);
        assert_eq!(
            read.into_iter().collect::<Vec<_>>(),
            [("homeostat:policy/models", 2)]
        );
    }
}
