//! Which policy serves which hook, and how that changes.
//!
//! A [`Table`] is immutable. A request takes the table that is there when it begins and
//! keeps it to its end, so a swap is one exchange of a pointer: no request sees half of
//! it, and a policy that serves several hooks takes all of them at once. What was active
//! is kept, a few generations deep.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use homeostat_hooks::Hook;
use serde::Serialize;

use crate::breaker::Breaker;
use crate::call::Policy;
use crate::grants;
use crate::stats::Counters;

/// One policy at one hook, from a swap to the next.
pub(crate) struct Generation {
    pub hook: Hook,
    pub number: u64,
    pub policy: Arc<Policy>,
    /// Who served before, for the fallback `previous`.
    pub previous: Option<Arc<Policy>>,
    pub breaker: Breaker,
    pub counters: Counters,
}

/// Who serves each hook; none = the built-in answer.
#[derive(Clone, Default)]
pub(crate) struct Table {
    slots: [Option<Arc<Generation>>; 3],
}

impl Table {
    pub fn get(&self, hook: Hook) -> Option<&Arc<Generation>> {
        self.slots[hook as usize].as_ref()
    }

    pub fn set(&mut self, hook: Hook, generation: Option<Arc<Generation>>) {
        self.slots[hook as usize] = generation;
    }

    /// Whether any of these hooks is served by this very policy.
    pub fn serves_any(&self, hooks: &[Hook], policy: &Arc<Policy>) -> bool {
        hooks
            .iter()
            .filter_map(|hook| self.get(*hook))
            .any(|generation| Arc::ptr_eq(&generation.policy, policy))
    }
}

/// What the room remembers about one hook besides the table.
#[derive(Default)]
pub(crate) struct Book {
    pub next_number: u64,
    pub kept: VecDeque<Arc<Generation>>,
    pub embedded: Option<Arc<Policy>>,
    pub last_attempt: Option<Attempt>,
}

impl Book {
    /// Keeps a generation that is no longer active, and forgets the oldest.
    pub fn keep(&mut self, generation: Arc<Generation>, at_most: usize) {
        self.kept.push_back(generation);
        while self.kept.len() > at_most {
            self.kept.pop_front();
        }
    }
}

/// The last attempt to put a policy at a hook.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Attempt {
    /// Name of the policy.
    pub policy: String,
    /// Whether it is, or was, active.
    pub accepted: bool,
    /// What happened, for people.
    pub text: String,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
}

/// One generation, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GenerationInfo {
    /// Name of the policy.
    pub policy: String,
    /// Number, counted up at every swap of the hook.
    pub generation: u64,
    /// Hex sha256 of the component.
    pub digest: String,
    /// Left alone by its breaker.
    pub breaker_open: bool,
    /// How often it called each interface that it imports.
    pub uses: BTreeMap<&'static str, u64>,
    /// Powers that could be taken away from it.
    pub hints: Vec<String>,
}

impl Generation {
    pub fn info(&self) -> GenerationInfo {
        GenerationInfo {
            policy: self.policy.name().to_string(),
            generation: self.number,
            digest: self.policy.digest.clone(),
            breaker_open: self.breaker.is_open(),
            uses: self.policy.powers.uses.read(&self.policy.imports),
            hints: grants::hints(&self.policy, self.counters.times.count()),
        }
    }
}

/// One hook: who serves it, who did, and what was tried last.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SlotStatus {
    /// The hook.
    pub hook: Hook,
    /// Serving now; none = the built-in answer.
    pub active: Option<GenerationInfo>,
    /// Kept for rollback, the latest first.
    pub kept: Vec<GenerationInfo>,
    /// The last attempt, successful or not.
    pub last_attempt: Option<Attempt>,
}
