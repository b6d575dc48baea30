//! From bytes to a policy that may serve, or a sentence that says why not.
//!
//! The pipeline is [`admit`]; each stage that can refuse has a name in [`Stage`]. Nothing
//! that runs is touched until all of it has passed, and the bytes are read once: what was
//! signed and checked is what is compiled.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use homeostat_hooks::{Hook, Models};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::bundle;
use crate::cache::CompileCache;
use crate::call::Policy;
use crate::candidate::Candidate;
use crate::config::{Fallback, PolicyOptions, RoomConfig};
use crate::cost::{self, CostCard};
use crate::engine::Engines;
use crate::grants::{self, Change};
use crate::history::Stored;
use crate::inspect;
use crate::record::Recorder;
use crate::regression::{self, Regression};
use crate::revision::Revisions;
use crate::signature::{self, Provenance, Sealed};
use crate::state::StateStore;
use crate::swap::Table;

/// Where a component was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Getting the bytes.
    Read,
    /// Who signed it, for what, until when, and after which revision.
    Signature,
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
    /// Taking over the state of an older version.
    Migrate,
    /// The golden inputs.
    Probe,
    /// What it costs against what it may cost.
    Budget,
    /// Recorded traffic.
    Replay,
    /// A newer component for the same hook came meanwhile.
    Superseded,
}

impl Stage {
    /// The word used in texts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Signature => "signature",
            Self::Options => "options",
            Self::Component => "component",
            Self::Features => "features",
            Self::Imports => "imports",
            Self::World => "world",
            Self::Compile => "compile",
            Self::Resources => "resources",
            Self::Instantiate => "instantiate",
            Self::Migrate => "migrate",
            Self::Probe => "probe",
            Self::Budget => "budget",
            Self::Replay => "replay",
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
    /// Name of the policy: its state, its log lines and its metrics carry it. Where a
    /// signature counts, the signed name wins.
    pub name: String,
    /// The component, or a bundle.
    pub bytes: Vec<u8>,
    /// Text of the manifest that lies beside a component.
    pub manifest: Option<String>,
    /// Text of its signature.
    pub signature: Option<String>,
    /// Take an older revision than one that was accepted before: an operator insists.
    pub allow_downgrade: bool,
    /// Hooks that it shall serve; none = all that it exports.
    pub hooks: Option<Vec<Hook>>,
    /// Options that win over those of the config.
    pub options: PolicyOptions,
    /// The members of a composition, in the order of its options; none = they are read from
    /// the policies' folder. A restart has them, so that it admits those that served.
    pub members: Vec<Offer>,
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
    /// What it changes at each hook that a component serves now.
    pub changes: Vec<Change>,
    /// Who signed it; none where signatures do not count, or it has none.
    pub provenance: Option<Provenance>,
    /// Who signed the members of a composition, as far as somebody did.
    pub members: Vec<Provenance>,
    /// Size of the component.
    pub size_bytes: u64,
    /// Time to get its machine code.
    pub compile_micros: u64,
    /// Whether the machine code was in the cache.
    pub from_cache: bool,
    /// Most memory that an instance used in a probe.
    pub memory_bytes: u64,
    /// Probes passed.
    pub probes: u64,
    /// What it costs on this machine.
    pub cost: CostCard,
    /// Bytes that the pool clears in place in each of its slots: `policies.keep_resident_bytes`,
    /// or as many as its instances touch. None without a pool.
    pub keep_resident_bytes: Option<usize>,
    /// What it made of recorded traffic; none where it was asked none.
    pub replay: Option<Regression>,
    /// Things that the operator should know.
    pub warnings: Vec<String>,
    /// Time of the exchange itself; none when it was only checked.
    pub swap_micros: Option<u64>,
}

/// What admission works with.
pub(crate) struct Admission<'a> {
    pub config: &'a RoomConfig,
    pub engines: &'a Engines,
    pub state: &'a StateStore,
    pub models: &'a Arc<dyn Models>,
    pub cache: &'a Cache,
    pub revisions: &'a Revisions,
    /// Who serves now.
    pub table: &'a Table,
    pub judge: &'a regression::Judge,
    pub recorder: Option<&'a Recorder>,
    pub kind: Kind,
}

/// What an admission is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It shall serve.
    Put,
    /// It came with the host, so it is trusted as the host is.
    Embedded,
    /// It shall be tried as a shadow or a canary, or has served before: recorded traffic need
    /// not judge it.
    Tried,
    /// Somebody wants to know everything.
    Check,
}

/// The compile cache; none = there shall be none. An error = why there is none although
/// there should be.
pub(crate) type Cache = Result<Option<CompileCache>, String>;

/// Reads a component, once, and no more than the limit.
///
/// # Errors
/// [`Stage::Read`] with the path, when it is no regular file, cannot be read or is too large.
pub fn read_component(path: &Path, max_bytes: u64) -> Result<Vec<u8>, AdmissionError> {
    let refuse = |text: String| AdmissionError::new(Stage::Read, text);
    let mut options = std::fs::File::options();
    options.read(true);
    // A pipe without a writer would keep whoever opens it.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        rustix::fs::OFlags::NONBLOCK.bits().cast_signed(),
    );
    let file = options
        .open(path)
        .map_err(|error| refuse(format!("{} cannot be read: {error}", path.display())))?;
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(refuse(format!("{} is no regular file", path.display())));
    }
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
    let sealed = unseal(with.config, offer)?;
    let provenance = check_signature(with, offer, &sealed)?;
    let shape = inspect::inspect(&sealed.component)?;
    let asked = asked_hooks(offer, provenance.as_ref());
    let hooks = inspect::check_exports(&shape, asked.as_deref())?;
    signature::check_claims(provenance.as_ref(), &inspect::needed_grants(&shape)?)?;
    let options = options_for(with.config, offer, &hooks)?;
    inspect::check_imports(&shape, &hooks, &options)?;

    let candidate = Candidate {
        with,
        name: provenance.as_ref().map_or(&*offer.name, |p| p.name()),
        bytes: &sealed.component,
        digest: Sha256::digest(&sealed.component).into(),
        limits: options.limits(with.config.limits),
        hooks: &hooks,
        shape: &shape,
        options: &options,
    };
    let tried = candidate.try_out()?;
    let cost = candidate.within_budget(&tried)?;
    let replay = match with.kind {
        Kind::Embedded | Kind::Tried => None,
        Kind::Put | Kind::Check => regression::judge(&candidate, with.judge, with.recorder)?,
    };
    let mut policy = tried.policy;
    let instantiate = Duration::from_micros(cost.instantiate.p50_micros);
    policy.cost.measured(instantiate);
    policy.stored = Arc::new(Stored::of(offer, &policy, &sealed, &hooks));

    let changes = grants::changes(with.table, &hooks, &policy);
    let report = Report {
        policy: policy.name().into(),
        digest: policy.digest.clone(),
        unused_grants: grants::unused(&policy.powers.grants, &shape.imports),
        warnings: [
            tried.compiled.warnings,
            tried.findings.warnings,
            changes.iter().filter_map(Change::news).collect(),
            warnings(with, provenance.as_ref(), replay.as_ref()),
            Vec::from_iter(cost::advice(with.config, tried.keep_resident, &cost)),
        ]
        .concat(),
        changes,
        provenance,
        members: Vec::new(),
        generations: Vec::new(),
        size_bytes: sealed.component.len() as u64,
        compile_micros: tried.compiled.micros,
        from_cache: tried.compiled.from_cache,
        memory_bytes: tried.findings.memory_bytes,
        probes: tried.findings.probes,
        cost,
        keep_resident_bytes: tried.keep_resident,
        replay,
        swap_micros: None,
        imports: shape.imports,
        hooks,
    };
    Ok((Arc::new(policy), report))
}

/// The parts of an offer: a bundle's own, or those that came side by side.
fn unseal(config: &RoomConfig, offer: &Offer) -> Result<Sealed, AdmissionError> {
    check_size(offer.bytes.len(), config.max_component_bytes)?;
    if bundle::is_bundle(&offer.bytes) {
        return bundle::unpack(&offer.bytes);
    }
    Ok(Sealed {
        component: offer.bytes.clone(),
        manifest: offer.manifest.clone(),
        signature: offer.signature.clone(),
        cases: None,
    })
}

fn check_signature(
    with: &Admission<'_>,
    offer: &Offer,
    sealed: &Sealed,
) -> Result<Option<Provenance>, AdmissionError> {
    if with.kind == Kind::Embedded {
        return Ok(None);
    }
    let (hooks, downgrade) = (offer.hooks.as_deref(), offer.allow_downgrade);
    signature::check(with.config, with.revisions, sealed, hooks, downgrade)
}

/// The hooks that somebody wants it to serve: the operator, else its signed manifest.
fn asked_hooks(offer: &Offer, provenance: Option<&Provenance>) -> Option<Vec<Hook>> {
    let signed = || Some(provenance?.manifest.hooks.clone());
    offer.hooks.clone().or_else(signed)
}

/// What the operator should know of the host rather than of the policy.
fn warnings(
    with: &Admission<'_>,
    provenance: Option<&Provenance>,
    replay: Option<&Regression>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(provenance) = provenance {
        warnings.extend(provenance.warnings(signature::now()));
    }
    if let Err(why) = with.cache {
        warnings.push(format!("there is no compile cache: {why}"));
    }
    let asked = matches!(with.kind, Kind::Put | Kind::Check) && replay.is_none();
    if let Some(dir) = with.config.replay.dir.as_ref().filter(|_| asked) {
        warnings.push(format!(
            "nothing that it could be asked is recorded in {} (policies.replay.dir): recorded \
             traffic has not judged it",
            dir.display()
        ));
    }
    warnings
}

/// Microseconds since then.
pub(crate) fn micros_since(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970, now.
pub(crate) fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
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
    if !signature::is_name(&offer.name) {
        return refuse("a policy's name is 1 to 64 letters, digits, '-', '_' or '.'");
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
