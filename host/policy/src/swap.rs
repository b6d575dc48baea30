//! Which policy serves which hook, and how that changes.
//!
//! A [`Table`] is immutable. A request takes the table that is there when it begins and
//! keeps it to its end, so a swap is one exchange of a pointer: no request sees half of
//! it, and a policy that serves several hooks takes all of them at once. What was active
//! is kept, a few generations deep.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use homeostat_hooks::{Hook, Request};
use serde::Serialize;

use crate::breaker::Breaker;
use crate::call::Policy;
use crate::canary::Canary;
use crate::config::Grant;
use crate::grants;
use crate::history::{Entry, HookRecord, Stored, TrialRecord};
use crate::migrate::with_members;
use crate::stats::Counters;
use crate::trial::{Trial, TrialStatus};

/// One policy at one hook, from a swap to the next.
pub(crate) struct Generation {
    pub hook: Hook,
    pub number: u64,
    pub policy: Arc<Policy>,
    /// Who served before, for the fallback `previous`.
    pub previous: Option<Arc<Policy>>,
    pub breaker: Breaker,
    pub counters: Counters,
    /// It serves as a canary: when it fails, the active policy answers.
    pub candidate: bool,
}

/// Who serves each hook; none = the built-in answer.
#[derive(Clone, Default)]
pub(crate) struct Table {
    slots: [Option<Arc<Generation>>; 3],
    /// Candidates that are tried against those generations.
    trials: [Option<Arc<Trial>>; 3],
}

impl Table {
    pub fn get(&self, hook: Hook) -> Option<&Arc<Generation>> {
        self.slots[hook as usize].as_ref()
    }

    pub fn set(&mut self, hook: Hook, generation: Option<Arc<Generation>>) {
        self.slots[hook as usize] = generation;
    }

    pub fn trial(&self, hook: Hook) -> Option<&Arc<Trial>> {
        self.trials[hook as usize].as_ref()
    }

    pub fn put_trial(&mut self, hook: Hook, trial: Arc<Trial>) {
        self.trials[hook as usize] = Some(trial);
    }

    pub fn take_trial(&mut self, hook: Hook) -> Option<Arc<Trial>> {
        self.trials[hook as usize].take()
    }

    /// The table that this request works with: canaries stand in it where they take it.
    pub fn for_request(table: Arc<Self>, request: &Request) -> Arc<Self> {
        let canaries = table.trials.iter().flatten().filter_map(|t| t.as_canary());
        let taken: Vec<&Canary> = canaries.filter(|c| c.takes(request)).collect();
        if taken.is_empty() {
            return table;
        }
        let mut own = Self::clone(&table);
        for canary in taken {
            own.set(canary.hook(), Some(Arc::clone(&canary.candidate)));
        }
        Arc::new(own)
    }

    /// Whether a policy that this table's requests meet may ask models.
    pub fn asks_models(&self) -> bool {
        self.slots.iter().flatten().any(|generation| {
            let policies = std::iter::once(&generation.policy).chain(&generation.previous);
            let mut all = policies.flat_map(|policy| with_members(policy));
            all.any(|policy| policy.powers.grants.contains(&Grant::Models))
        })
    }

    /// Every policy that requests may meet, each once.
    pub fn policies(&self) -> Vec<&Arc<Policy>> {
        let active = self.slots.iter().flatten().map(|g| &g.policy);
        let canaries = self.trials.iter().flatten();
        let canaries = canaries.filter_map(|t| t.as_canary().map(|_| &t.policy));
        let mut all: Vec<&Arc<Policy>> = Vec::new();
        for policy in active.chain(canaries) {
            if !all.iter().any(|p| Arc::ptr_eq(p, policy)) {
                all.push(policy);
            }
        }
        all
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
    /// The last generation number that was given out, in this life or before.
    pub last_number: u64,
    /// The number that the next generation had in the life before: it is that one again.
    pub recalled_number: Option<u64>,
    /// Of whoever last changed by hand what serves: a put that began earlier and ends later
    /// does not undo it.
    pub ticket: u64,
    pub kept: VecDeque<Arc<Generation>>,
    /// Older than `kept`: of the host's life before, not compiled in this one. The oldest
    /// first.
    pub stored: VecDeque<Entry>,
    /// An operator took the policy away, and nobody has put another since.
    pub unloaded: bool,
    pub embedded: Option<Arc<Policy>>,
    pub last_attempt: Option<Attempt>,
    pub last_trial: Option<TrialStatus>,
    /// The trial of the host's life before, until it goes on.
    pub to_resume: Option<TrialRecord>,
    /// By [`crate::trial::TrialEnding`].
    pub trials_ended: [u64; 4],
}

impl Book {
    /// The number of a generation that is being made.
    pub fn number(&mut self) -> u64 {
        self.recalled_number.take().unwrap_or_else(|| {
            self.last_number += 1;
            self.last_number
        })
    }

    /// Keeps a generation that is no longer active, and forgets the oldest.
    pub fn keep(&mut self, generation: Arc<Generation>, at_most: usize) {
        self.kept.push_back(generation);
        while self.kept.len() + self.stored.len() > at_most {
            if self.stored.pop_front().is_none() {
                self.kept.pop_front();
            }
        }
    }

    /// The numbers that a rollback can ask for, oldest first.
    pub fn numbers_kept(&self) -> Vec<u64> {
        let stored = self.stored.iter().map(|e| e.generation);
        stored.chain(self.kept.iter().map(|g| g.number)).collect()
    }

    /// What a restart has to know.
    pub fn record(&self, table: &Table, hook: Hook) -> HookRecord {
        let entry = |generation: &Arc<Generation>| {
            let policy = &generation.policy;
            let embedded = self.embedded.as_ref();
            Entry {
                generation: generation.number,
                policy: Stored {
                    embedded: embedded.is_some_and(|e| Arc::ptr_eq(e, policy)),
                    ..Stored::clone(&policy.stored)
                },
            }
        };
        HookRecord {
            numbers: self.last_number,
            active: table.get(hook).map(entry),
            kept: self
                .stored
                .iter()
                .cloned()
                .chain(self.kept.iter().map(entry))
                .collect(),
            unloaded: self.unloaded,
            trial: table
                .trial(hook)
                .map(|trial| trial.record())
                .or_else(|| self.to_resume.clone()),
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

impl From<&Entry> for GenerationInfo {
    fn from(entry: &Entry) -> Self {
        Self {
            policy: entry.policy.name.clone(),
            generation: entry.generation,
            digest: entry.policy.digest.clone(),
            breaker_open: false,
            uses: BTreeMap::new(),
            hints: Vec::new(),
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
    /// The candidate that is tried, or the last one that was.
    pub trial: Option<TrialStatus>,
}
