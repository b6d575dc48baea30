//! What an operator can say about policies: the `[policies]` table of `homeostat.toml`
//! and the `.toml` beside a component.
//!
//! Plain data with every default and its reason. An unknown key is refused, since a
//! misspelt limit that silently keeps its default is worse than an error.

use std::collections::BTreeMap;
use std::path::PathBuf;

use homeostat_hooks::Hook;
use serde::{Deserialize, Serialize};

use crate::canary::StickTo;
use crate::compose::Compose;
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
    /// Where the policies' key-value state is kept over restarts, and which policies were
    /// active; none = in memory only, and a restart begins with the folder.
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
    /// As much is kept for a component whose instances touch more than that, in a pool of its
    /// own that is sized when it is admitted. CPython touches about 10 MiB, so 64 instances of
    /// it may hold 1 GiB; the same as `keep_resident_bytes` = no component has its own pool.
    pub keep_resident_max_bytes: usize,
    /// Stack of a guest, at most 1 MiB. 512 KiB is wasmtime's default.
    pub stack_bytes: usize,
    /// Largest component that is read. Python components have 18 MB, and their packages.
    pub max_component_bytes: u64,
    /// Earlier generations kept per hook for `rollback`.
    pub keep_generations: usize,
    /// Whether a policy must be signed by one of `trusted_keys`.
    pub signature: SignatureMode,
    /// Who may sign policies: a name for people, and what `homeostat policy keygen` wrote
    /// into the `.pub` file.
    pub trusted_keys: BTreeMap<String, String>,
    /// Where the highest accepted revision of every signed policy is remembered, so that an
    /// older one is refused after a restart as well; none = in memory only.
    pub revisions_file: Option<PathBuf>,
    /// Where components become machine code, and what that may take.
    pub compiler: CompilerConfig,
    /// Machine code that was made before.
    pub cache: CacheConfig,
    /// What a policy may cost; a dearer one is refused.
    pub budget: Budget,
    /// Recorded traffic that a policy must answer before it serves.
    pub replay: ReplayConfig,
    /// Instances kept ready over all policies that are dear to instantiate, so that their
    /// requests pay the call alone. Eight outlast a burst, and hold at most
    /// 8 x `limits.memory_bytes`; Rust policies are not dear and use none.
    pub ready_instances: u32,
    /// From which measured cost on an instantiation is dear. Handing an instance over
    /// costs some microseconds and a wake-up, so it must save much more than that.
    pub ready_above_micros: u64,
    /// Limits of every call, unless a policy's own table says otherwise.
    pub limits: Limits,
    /// When a policy that keeps failing is left alone for a while.
    pub breaker: BreakerConfig,
    /// Candidates that are asked and not listened to.
    pub shadow: ShadowConfig,
    /// Candidates that serve a share of the requests.
    pub canary: CanaryConfig,
    /// How much a policy may keep, and when it is told that it is kept.
    pub state: StateConfig,
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
            keep_resident_max_bytes: 32 << 20,
            stack_bytes: 512 << 10,
            max_component_bytes: 64 << 20,
            keep_generations: 3,
            signature: SignatureMode::default(),
            trusted_keys: BTreeMap::new(),
            revisions_file: None,
            compiler: CompilerConfig::default(),
            cache: CacheConfig::default(),
            budget: Budget::default(),
            replay: ReplayConfig::default(),
            ready_instances: 8,
            ready_above_micros: 200,
            limits: Limits::default(),
            breaker: BreakerConfig::default(),
            shadow: ShadowConfig::default(),
            canary: CanaryConfig::default(),
            state: StateConfig::default(),
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
    /// Log of one call, 64 bytes a line included; the rest is dropped and counted.
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

/// Whether signatures count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SignatureMode {
    /// Nobody looks at them.
    #[default]
    Off,
    /// A policy without one is taken; one whose signature is wrong is not. This tells
    /// mistakes, not attackers, who would leave the signature out.
    Optional,
    /// A policy without a good one is refused.
    Required,
}

/// The process that compiles. Compiling hostile bytes can take any amount of time and
/// memory, so it happens where running out of either ends nothing but itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompilerConfig {
    /// Address space beyond what the process begins with. CPython takes 430 MiB.
    pub memory_bytes: u64,
    /// Processor time. CPython takes 15 s where fuel is counted, on a shared core of an EPYC.
    pub cpu_seconds: u64,
    /// Wall-clock time: the child yields to the requests, so on a busy machine it takes
    /// several times its processor time.
    pub wall_seconds: u64,
    /// Machine code of one component. CPython makes 38 MiB.
    pub artifact_bytes: u64,
    /// The program that compiles when it is called with [`crate::COMPILE_CHILD`]; none =
    /// inside this process and without these limits, for trusted components only. It is no
    /// key of the file: the server names itself.
    #[serde(skip)]
    pub program: Option<PathBuf>,
}

impl Default for CompilerConfig {
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 30,
            cpu_seconds: 120,
            wall_seconds: 600,
            artifact_bytes: 128 << 20,
            program: None,
        }
    }
}

/// The compile cache.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Its folder, which belongs to this user alone; none = no cache.
    pub dir: Option<PathBuf>,
    /// All entries together; what was unused longest leaves first. 0 = no cache. A Rust
    /// policy takes about 1 MB, a Python one 34.
    pub max_bytes: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            dir: None,
            max_bytes: 1 << 30,
        }
    }
}

/// What a policy may cost, as measured at admission. Not set = not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// 99 of 100 instances must be made within this.
    pub instantiate_p99_micros: Option<u64>,
    /// 99 of 100 calls of each hook must end within this.
    pub call_p99_micros: Option<u64>,
    /// Most memory that an instance may hold after the probes.
    pub memory_bytes: Option<u64>,
    /// Most fuel (about one a WebAssembly instruction) that a call of a hook may take. It
    /// is the same on every machine; finding it out compiles the policy a second time.
    pub fuel: Option<u64>,
}

/// `[policies.replay]`: recorded traffic that every policy must answer before it serves, but
/// for those that come with the host.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplayConfig {
    /// Folder of recordings, of this host or another; none = nobody is asked.
    pub dir: Option<PathBuf>,
    /// Share of the recorded calls that may be decided otherwise: other tiers, another class,
    /// another verdict, or a question to the host that was not recorded. A policy that shall
    /// change more is put with a larger share, or tried as a shadow and a canary.
    pub max_changed: f64,
    /// The newest requests that are asked. 500 take a Rust policy a tenth of a second, a
    /// Python one ten.
    pub max_requests: u32,
    /// Wall-clock time after which no further request is asked and the policy is refused: no
    /// other is admitted meanwhile. One request may take some seconds more, by its fuel.
    pub max_seconds: u64,
}

impl Default for ReplayConfig {
    fn default() -> Self {
        Self {
            dir: None,
            max_changed: 0.1,
            max_requests: 500,
            max_seconds: 60,
        }
    }
}

/// What one policy may keep in `wasi:keyvalue`. State is for counters and small tables;
/// who needs more needs a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct StateConfig {
    /// All keys and values together. They live in memory as well, so 64 policies cost at
    /// most 64 MiB.
    pub bytes: u64,
    /// Keys. `list-keys` answers them in pages of 256.
    pub keys: u32,
    /// Longest key.
    pub key_bytes: u32,
    /// Longest value. It is written whole at every change, so this bounds one commit.
    pub value_bytes: u32,
    /// When a write is acknowledged to the policy.
    pub durability: Durability,
}

impl Default for StateConfig {
    fn default() -> Self {
        Self {
            bytes: 1 << 20,
            keys: 4096,
            key_bytes: 256,
            value_bytes: 256 << 10,
            durability: Durability::Sync,
        }
    }
}

/// When a policy hears that its write was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// When it is on the disk. It costs the hook one commit, which it shares with the
    /// requests beside it; `learn` runs outside the client's time.
    #[default]
    Sync,
    /// At once; it reaches the disk within 250 ms. What a killed process had not written
    /// by then is lost although it was acknowledged.
    Deferred,
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
/// wins key by key. `hooks` and `compose` are of one component, so they stand beside it only.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyOptions {
    /// Hooks that the component serves. Without it the file's name says.
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
    /// Other policies that answer together with it.
    pub compose: Option<Compose>,
}

impl PolicyOptions {
    /// These options, completed by `other`, which are not of this component.
    pub fn or(&self, other: &Self) -> Self {
        Self {
            hooks: self.hooks.clone(),
            grants: self.grants.clone().or_else(|| other.grants.clone()),
            deny: self.deny.or(other.deny),
            settings: self.settings.clone().or_else(|| other.settings.clone()),
            limits: self.limits.or(other.limits),
            fallback: self.fallback.or(other.fallback),
            compose: self.compose.clone(),
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

/// What a shadow may use.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShadowConfig {
    /// Share of one core that the shadows of a room work at most, above 0 and at most 1.
    /// A tenth of a core is not felt, and enough for a thousand Rust calls a second.
    pub share: f64,
    /// Questions that wait for it; more are dropped and counted. What waits longer than
    /// this is better asked about a later request.
    pub queue: usize,
    /// Questions to the models that one shadow may ask over its whole life; then, or with
    /// 0 at once, they answer `limit-exceeded`. Models are what requests wait for.
    pub model_calls: u64,
}

impl Default for ShadowConfig {
    fn default() -> Self {
        Self {
            share: 0.1,
            queue: 64,
            model_calls: 100,
        }
    }
}

/// How a canary is served and judged.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CanaryConfig {
    /// Share of the requests that the candidate serves, above 0 and at most ½.
    pub share: f64,
    /// What has one policy for all its requests.
    pub stick_to: StickTo,
    /// Calls that the candidate must have answered before it is promoted.
    pub min_calls: u64,
    /// Calls after which a candidate that is not shown to be good goes.
    pub max_calls: u64,
    /// Most by which a rate (of faults, slow calls, late first tokens, escalations,
    /// requests without an answer) may be higher than the active policy's: 0.05 is shown
    /// within some hundred calls where rates are low, and some thousand at 0.3.
    pub tolerance: f64,
    /// Share of good candidates that may be rolled back, and of bad ones that may be
    /// promoted.
    pub alpha: f64,
    /// A call is only slow when it takes longer than this, however quick the active policy
    /// is: between 20 and 40 microseconds nobody is harmed.
    pub slow_ms: f64,
}

impl Default for CanaryConfig {
    fn default() -> Self {
        Self {
            share: 0.1,
            stick_to: StickTo::default(),
            min_calls: 200,
            max_calls: 10_000,
            tolerance: 0.05,
            alpha: 0.01,
            slow_ms: 2.0,
        }
    }
}
