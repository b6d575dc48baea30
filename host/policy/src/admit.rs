//! From bytes to a policy that may serve, or a sentence that says why not.
//!
//! The pipeline is [`admit`]; each stage that can refuse has a name in [`Stage`]. Nothing
//! that runs is touched until all of it has passed, and the bytes are read once: what was
//! checked is what is compiled.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use homeostat_hooks::{Hook, Models};
use serde::Serialize;
use sha2::{Digest, Sha256};
use wasmtime::component::{Component, InstancePre};

use crate::bindings::{classifier, learner, router, validator};
use crate::call::{GuestNames, Policy};
use crate::config::{Fallback, Limits, PolicyOptions, RoomConfig};
use crate::engine::{MEMORIES_MAX, PolicyEngine, TABLES_MAX};
use crate::fault;
use crate::host::{self, HostState, Powers};
use crate::inspect::{self, Shape};
use crate::probe;
use crate::state::StateStore;

/// Where a component was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Getting the bytes.
    Read,
    /// The options that came with it.
    Options,
    /// Is it a component, and whole?
    Component,
    /// WebAssembly features beyond the allowed ones.
    Features,
    /// Imports that are unknown or not granted.
    Imports,
    /// Hooks, versions and types of the contract.
    World,
    /// Compilation to machine code.
    Compile,
    /// Memories and tables within the limits.
    Resources,
    /// The first real instance.
    Instantiate,
    /// The golden inputs.
    Probe,
    /// A newer component for the same hook came meanwhile.
    Superseded,
}

impl Stage {
    /// The word used in texts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Options => "options",
            Self::Component => "component",
            Self::Features => "features",
            Self::Imports => "imports",
            Self::World => "world",
            Self::Compile => "compile",
            Self::Resources => "resources",
            Self::Instantiate => "instantiate",
            Self::Probe => "probe",
            Self::Superseded => "superseded",
        }
    }
}

/// Why a component was refused. Whatever served before still serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AdmissionError {
    /// Where.
    pub stage: Stage,
    /// What is wrong.
    pub text: String,
    /// What to do.
    pub help: Option<String>,
}

impl AdmissionError {
    pub(crate) fn new(stage: Stage, text: impl Into<String>) -> Self {
        Self {
            stage,
            text: text.into(),
            help: None,
        }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for AdmissionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused at {}: {}", self.stage.as_str(), self.text)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for AdmissionError {}

/// A component that somebody wants to put.
#[derive(Debug, Clone, Default)]
pub struct Offer {
    /// Name of the policy: its state, its log lines and its metrics carry it.
    pub name: String,
    /// The component.
    pub bytes: Vec<u8>,
    /// Hooks that it shall serve; none = all that it exports.
    pub hooks: Option<Vec<Hook>>,
    /// Options that win over those of the config.
    pub options: PolicyOptions,
}

/// What admission found out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Name of the policy.
    pub policy: String,
    /// Hex sha256 of the component.
    pub digest: String,
    /// Hooks that it serves.
    pub hooks: Vec<Hook>,
    /// Generation at each of `hooks`; empty when it was only checked.
    pub generations: Vec<u64>,
    /// What it imports.
    pub imports: Vec<String>,
    /// Powers that it was granted and does not import.
    pub unused_grants: Vec<String>,
    /// Size of the component.
    pub size_bytes: u64,
    /// Time to compile.
    pub compile_micros: u64,
    /// Median time to make an instance, over all probes.
    pub instantiate_micros: u64,
    /// Longest call of a probe.
    pub slowest_call_micros: u64,
    /// Most memory that an instance used in a probe.
    pub memory_bytes: u64,
    /// Probes passed.
    pub probes: u64,
    /// Things that the operator should know.
    pub warnings: Vec<String>,
    /// Time of the exchange itself; none when it was only checked.
    pub swap_micros: Option<u64>,
}

/// What admission works with.
pub(crate) struct Admission<'a> {
    pub config: &'a RoomConfig,
    pub engine: &'a PolicyEngine,
    pub state: &'a StateStore,
    pub models: &'a Arc<dyn Models>,
}

/// Reads a component, once, and no more than the limit.
///
/// # Errors
/// [`Stage::Read`] with the path, when it cannot be read or is too large.
pub fn read_component(path: &Path, max_bytes: u64) -> Result<Vec<u8>, AdmissionError> {
    let refuse = |text: String| AdmissionError::new(Stage::Read, text);
    let file = std::fs::File::open(path)
        .map_err(|error| refuse(format!("{} cannot be read: {error}", path.display())))?;
    let mut bytes = Vec::new();
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| refuse(format!("{} cannot be read: {error}", path.display())))?;
    check_size(bytes.len(), max_bytes)?;
    Ok(bytes)
}

fn check_size(len: usize, max_bytes: u64) -> Result<(), AdmissionError> {
    if len as u64 <= max_bytes {
        return Ok(());
    }
    Err(
        AdmissionError::new(Stage::Read, format!("more than {max_bytes} bytes"))
            .help("strip it, or raise policies.max_component_bytes"),
    )
}

/// The whole pipeline. Takes seconds for large components: never on the path of a request.
pub(crate) fn admit(
    with: &Admission<'_>,
    offer: &Offer,
) -> Result<(Arc<Policy>, Report), AdmissionError> {
    check_size(offer.bytes.len(), with.config.max_component_bytes)?;
    let shape = inspect::inspect(&offer.bytes)?;
    let hooks = inspect::check_exports(&shape, offer.hooks.as_deref())?;
    let options = options_for(with.config, offer, &hooks)?;
    inspect::check_imports(&shape, &hooks, &options)?;

    let started = Instant::now();
    let component = compile(with, &offer.bytes)?;
    let compile_micros = micros_since(started);

    let limits = options.limits(with.config.limits);
    check_resources(with, &component, &limits)?;
    let pre = link(with, &component, &shape)?;
    let policy = Policy {
        digest: hex(&Sha256::digest(&offer.bytes)),
        fallback: options.fallback.unwrap_or_default(),
        guests: find_guests(&pre, &hooks, &shape)?,
        pre,
        powers: powers(with, offer, &options, limits),
        fuel: None,
    };
    let scratch = Arc::new(policy.with_powers(Arc::new(Powers {
        name: Arc::clone(&policy.powers.name),
        grants: policy.powers.grants.clone(),
        settings: policy.powers.settings.clone(),
        limits,
        bucket: with.state.scratch(&offer.name),
        models: Arc::clone(with.models),
    })));
    let findings = probe::probe(&scratch, &hooks)?;

    let report = Report {
        policy: offer.name.clone(),
        digest: policy.digest.clone(),
        unused_grants: unused_grants(&policy, &shape),
        imports: shape.imports,
        hooks,
        generations: Vec::new(),
        size_bytes: offer.bytes.len() as u64,
        compile_micros,
        instantiate_micros: findings.instantiate_micros,
        slowest_call_micros: findings.slowest_call_micros,
        memory_bytes: findings.memory_bytes,
        probes: findings.probes,
        warnings: findings.warnings,
        swap_micros: None,
    };
    Ok((Arc::new(policy), report))
}

/// Microseconds since then.
pub(crate) fn micros_since(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The options that hold: those of the offer, completed by those of its hooks.
fn options_for(
    config: &RoomConfig,
    offer: &Offer,
    hooks: &[Hook],
) -> Result<PolicyOptions, AdmissionError> {
    let options = hooks
        .iter()
        .fold(offer.options.clone(), |o, hook| o.or(config.options(*hook)));
    let refuse = |text: &str| Err(AdmissionError::new(Stage::Options, text));
    if offer.name.is_empty() || offer.name.len() > 64 {
        return refuse("a policy's name has 1 to 64 bytes");
    }
    if options.fallback == Some(Fallback::Reject) && hooks != [Hook::Validate] {
        return refuse(
            "fallback = \"reject\" is for validate alone: without classify and route \
                       nothing could be answered",
        );
    }
    let limits = options.limits(config.limits);
    if limits.deadline_ms == 0 {
        return refuse("limits.deadline_ms is 0: no call could ever end in time");
    }
    if limits.table_elements > config.limits.table_elements {
        return refuse(
            "limits.table_elements of a policy is larger than \
                       policies.limits.table_elements, which the pool is made for",
        );
    }
    Ok(options)
}

fn compile(with: &Admission<'_>, bytes: &[u8]) -> Result<Component, AdmissionError> {
    let refuse = |error: wasmtime::Error| {
        let text = fault::chain(&error);
        // Where instances are pooled, what can never fit into the pool ends here.
        let stage = if text.contains("does not fit in pooling allocator") {
            Stage::Resources
        } else {
            Stage::Compile
        };
        AdmissionError::new(stage, text)
    };
    let component = Component::from_binary(&with.engine.engine, bytes).map_err(refuse)?;
    component.initialize_copy_on_write_image().map_err(refuse)?;
    Ok(component)
}

/// What it declares fits into the limits, so that an instance can always be made.
fn check_resources(
    with: &Admission<'_>,
    component: &Component,
    limits: &Limits,
) -> Result<(), AdmissionError> {
    let refuse = |text: String| Err(AdmissionError::new(Stage::Resources, text));
    let Some(needs) = component.resources_required() else {
        return refuse("it imports modules or components, so its needs are unknown".into());
    };
    if needs.num_memories > MEMORIES_MAX || needs.num_tables > TABLES_MAX {
        return refuse(format!(
            "it has {} memories and {} tables, at most {MEMORIES_MAX} and {TABLES_MAX}",
            needs.num_memories, needs.num_tables
        ));
    }
    let pages = needs.max_initial_memory_size.unwrap_or(0);
    let bytes = pages.saturating_mul(64 << 10);
    if bytes > limits.memory_bytes {
        return refuse(format!(
            "a memory begins with {bytes} bytes, limit {} (limits.memory_bytes)",
            limits.memory_bytes
        ));
    }
    let elements = needs.max_initial_table_size.unwrap_or(0);
    if elements > limits.table_elements.min(with.config.limits.table_elements) {
        return refuse(format!(
            "a table begins with {elements} elements, limit {} (limits.table_elements)",
            limits.table_elements
        ));
    }
    Ok(())
}

/// Links the imports; their types are compared here.
fn link(
    with: &Admission<'_>,
    component: &Component,
    shape: &Shape,
) -> Result<InstancePre<HostState>, AdmissionError> {
    host::linker(&with.engine.engine, shape.wasi)
        .and_then(|linker| linker.instantiate_pre(component))
        .map_err(|error| wrong_types(&error))
}

pub(crate) fn wrong_types(error: &wasmtime::Error) -> AdmissionError {
    AdmissionError::new(Stage::World, fault::chain(error)).help(
        "the names fit, the types do not: its copy of wit/ probably differs from this host's; \
         build against this host's wit/",
    )
}

/// Finds the functions of every hook by name; the first instance compares their types.
pub(crate) fn find_guests(
    pre: &InstancePre<HostState>,
    hooks: &[Hook],
    shape: &Shape,
) -> Result<GuestNames, AdmissionError> {
    let wanted = |hook| hooks.contains(&hook);
    let learns = shape
        .exports
        .iter()
        .any(|e| e.starts_with("homeostat:policy/learner@"));
    let mut names = GuestNames::default();
    let found: wasmtime::Result<()> = (|| {
        if wanted(Hook::Classify) {
            names.classifier = Some(classifier::GuestIndices::new(pre)?);
        }
        if wanted(Hook::Route) {
            names.router = Some(router::GuestIndices::new(pre)?);
        }
        if wanted(Hook::Validate) {
            names.validator = Some(validator::GuestIndices::new(pre)?);
        }
        if learns {
            names.learner = Some(learner::GuestIndices::new(pre)?);
        }
        Ok(())
    })();
    found.map_err(|error| wrong_types(&error))?;
    Ok(names)
}

fn powers(
    with: &Admission<'_>,
    offer: &Offer,
    options: &PolicyOptions,
    limits: Limits,
) -> Arc<Powers> {
    Arc::new(Powers {
        name: offer.name.as_str().into(),
        grants: options.grants.clone().unwrap_or_default(),
        settings: options.settings.clone().unwrap_or_default(),
        limits,
        bucket: with.state.bucket(&offer.name),
        models: Arc::clone(with.models),
    })
}

fn unused_grants(policy: &Policy, shape: &Shape) -> Vec<String> {
    let imported = |package: &str| shape.imports.iter().any(|i| i.starts_with(package));
    policy
        .powers
        .grants
        .iter()
        .filter(|grant| {
            !imported(match grant {
                crate::config::Grant::Models => "homeostat:policy/models@",
                crate::config::Grant::Keyvalue => "wasi:keyvalue/",
                crate::config::Grant::Config => "wasi:config/",
            })
        })
        .map(|grant| grant.as_str().to_string())
        .collect()
}
