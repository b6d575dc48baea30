//! What an operator can say about policies: the `[policies]` table of `homeostat.toml`
//! and the `.toml` beside a component.
//!
//! Plain data with every default and its reason. An unknown key is refused, since a
//! misspelt limit that silently keeps its default is worse than an error.

use std::collections::BTreeMap;
use std::path::PathBuf;

use homeostat_hooks::Hook;
use serde::{Deserialize, Serialize};

use crate::record::RecordConfig;

/// The policy room.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoomConfig {
    /// Folder that is watched for `<hook>.wasm` and `<hook>-<name>.wasm`; none = only
    /// embedded policies and those put through the admin API.
    pub dir: Option<PathBuf>,
    /// How often the folder is read. 200 ms feels immediate after a copy and costs a
    /// directory listing.
    pub poll_ms: u64,
    /// Where the policies' key-value state is kept over restarts; none = in memory only.
    pub state_dir: Option<PathBuf>,
    /// Most instances alive at once. One lives from the first hook of a request that it
    /// serves to the last, so with separate policies it is gone while a model writes.
    /// 64 instances use up to 64 x `limits.memory_bytes`, but a Rust policy touches less
    /// than 2 MiB of it.
    pub instances: u32,
    /// How long a request waits for an instance before the fallback answers. Longer than
    /// any healthy call, shorter than what a person notices.
    pub wait_ms: u32,
    /// Instances come from a pool of reserved memory, which makes a fresh one cost
    /// microseconds. Off = ordinary allocation: slower, but without the code that the
    /// pooling advisories of 2026 were about.
    pub pooling: bool,
    /// Bytes of a used memory slot that are cleared in place instead of being given back
    /// to the system, which saves the page faults of the next instance. Only where the
    /// kernel can tell which pages were touched (Linux 6.7 and later).
    pub keep_resident_bytes: usize,
    /// Stack of a guest. 512 KiB is wasmtime's default; host threads have 2 MiB.
    pub stack_bytes: usize,
    /// Largest component that is read. Python components have 35 MB.
    pub max_component_bytes: u64,
    /// Earlier generations kept per hook for `rollback`.
    pub keep_generations: usize,
    /// Limits of every call, unless a policy's own table says otherwise.
    pub limits: Limits,
    /// When a policy that keeps failing is left alone for a while.
    pub breaker: BreakerConfig,
    /// What is kept of decisions, to explain and replay them.
    pub record: RecordConfig,
    /// Options of whatever policy serves `classify`.
    pub classify: PolicyOptions,
    /// Options of whatever policy serves `route`.
    pub route: PolicyOptions,
    /// Options of whatever policy serves `validate`.
    pub validate: PolicyOptions,
}

impl Default for RoomConfig {
    fn default() -> Self {
        Self {
            dir: None,
            poll_ms: 200,
            state_dir: None,
            instances: 64,
            wait_ms: 50,
            pooling: true,
            keep_resident_bytes: 4 << 20,
            stack_bytes: 512 << 10,
            max_component_bytes: 64 << 20,
            keep_generations: 3,
            limits: Limits::default(),
            breaker: BreakerConfig::default(),
            record: RecordConfig::default(),
            classify: PolicyOptions::default(),
            route: PolicyOptions::default(),
            validate: PolicyOptions::default(),
        }
    }
}

impl RoomConfig {
    /// The options that `homeostat.toml` gives for a hook.
    pub fn options(&self, hook: Hook) -> &PolicyOptions {
        match hook {
            Hook::Classify => &self.classify,
            Hook::Route => &self.route,
            Hook::Validate => &self.validate,
        }
    }
}

/// What one call may use. Every number has a unit; none can be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Wall-clock time of one hook call, host calls included. Rust policies take
    /// microseconds, Python some milliseconds; 100 ms forgives a busy two-core machine
    /// and is still shorter than a model's first token.
    pub deadline_ms: u32,
    /// All linear memories of one instance together. CPython needs about 40 MiB.
    pub memory_bytes: u64,
    /// Elements of all tables of one instance together. CPython has about 6,000.
    pub table_elements: u64,
    /// Data that a guest hands to the host in one call or answer. Four times the longest
    /// text that an answer may have.
    pub hostcall_bytes: u64,
    /// Handles (models, buckets, streams) that one instance holds at once.
    pub handles: u32,
    /// Log text of one call; the rest is dropped and counted.
    pub log_bytes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline_ms: 100,
            memory_bytes: 64 << 20,
            table_elements: 20_000,
            hostcall_bytes: 1 << 20,
            handles: 1024,
            log_bytes: 8 << 10,
        }
    }
}

/// Limits of one policy that differ from the room's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitChanges {
    /// See [`Limits::deadline_ms`].
    pub deadline_ms: Option<u32>,
    /// See [`Limits::memory_bytes`].
    pub memory_bytes: Option<u64>,
    /// See [`Limits::table_elements`].
    pub table_elements: Option<u64>,
    /// See [`Limits::hostcall_bytes`].
    pub hostcall_bytes: Option<u64>,
    /// See [`Limits::handles`].
    pub handles: Option<u32>,
    /// See [`Limits::log_bytes`].
    pub log_bytes: Option<u32>,
}

impl LimitChanges {
    fn or(self, other: Self) -> Self {
        Self {
            deadline_ms: self.deadline_ms.or(other.deadline_ms),
            memory_bytes: self.memory_bytes.or(other.memory_bytes),
            table_elements: self.table_elements.or(other.table_elements),
            hostcall_bytes: self.hostcall_bytes.or(other.hostcall_bytes),
            handles: self.handles.or(other.handles),
            log_bytes: self.log_bytes.or(other.log_bytes),
        }
    }

    fn over(self, base: Limits) -> Limits {
        Limits {
            deadline_ms: self.deadline_ms.unwrap_or(base.deadline_ms),
            memory_bytes: self.memory_bytes.unwrap_or(base.memory_bytes),
            table_elements: self.table_elements.unwrap_or(base.table_elements),
            hostcall_bytes: self.hostcall_bytes.unwrap_or(base.hostcall_bytes),
            handles: self.handles.unwrap_or(base.handles),
            log_bytes: self.log_bytes.unwrap_or(base.log_bytes),
        }
    }
}

/// A power beyond telemetry, proposing and logging.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grant {
    /// `homeostat:policy/models`: ask the host's models.
    Models,
    /// `wasi:keyvalue`: state that outlives requests, reloads and restarts.
    Keyvalue,
    /// `wasi:config`: read the policy's settings.
    Config,
}

impl Grant {
    /// The word in the config.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Models => "models",
            Self::Keyvalue => "keyvalue",
            Self::Config => "config",
        }
    }
}

/// What becomes of a component that imports a power which it was not given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Deny {
    /// It is refused by name: nobody finds out at the first request.
    #[default]
    Refuse,
    /// It is loaded, and every such call answers `denied`.
    Stub,
}

/// Who answers when a policy fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fallback {
    /// The built-in answer.
    #[default]
    BuiltIn,
    /// The generation before this one; the built-in answer if that fails as well.
    Previous,
    /// Only for `validate`: refuse the answer (fail closed).
    Reject,
}

/// Options of one policy: `[policies.<hook>]`, and the `.toml` beside a component, which
/// wins key by key.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyOptions {
    /// Hooks that the component serves; only meaningful beside a component. Without it
    /// the file's name says.
    pub hooks: Option<Vec<Hook>>,
    /// Powers it is given.
    pub grants: Option<Vec<Grant>>,
    /// What happens to powers that it was not given.
    pub deny: Option<Deny>,
    /// What it reads through `wasi:config`.
    pub settings: Option<BTreeMap<String, String>>,
    /// Limits that differ from the room's.
    pub limits: LimitChanges,
    /// Who answers when it fails.
    pub fallback: Option<Fallback>,
}

impl PolicyOptions {
    /// These options, completed by `other`.
    pub fn or(&self, other: &Self) -> Self {
        Self {
            hooks: self.hooks.clone().or_else(|| other.hooks.clone()),
            grants: self.grants.clone().or_else(|| other.grants.clone()),
            deny: self.deny.or(other.deny),
            settings: self.settings.clone().or_else(|| other.settings.clone()),
            limits: self.limits.or(other.limits),
            fallback: self.fallback.or(other.fallback),
        }
    }

    /// The limits that hold, given the room's.
    pub fn limits(&self, room: Limits) -> Limits {
        self.limits.over(room)
    }
}

/// When a failing policy is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerConfig {
    /// Faults in a row that open the breaker. Five tell a broken policy from one bad
    /// request, and cost at most five deadlines.
    pub faults: u32,
    /// First pause; it doubles with every failed trial.
    pub pause_ms: u64,
    /// Longest pause.
    pub max_pause_ms: u64,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            faults: 5,
            pause_ms: 1_000,
            max_pause_ms: 60_000,
        }
    }
}
