//! An upgrade whose state has another form.
//!
//! The component says its version and turns a copy of the older state into its own
//! (`wit/migration.wit`). That happens twice: at admission, on a copy that is then shown to
//! the probes, so that a migration which fails or spoils something refuses the component;
//! and when it begins to serve, with what the older version has learned meanwhile. In
//! between, a candidate works on what is lent to it and kept nowhere: a shadow on a copy, a
//! canary on the bucket of its version, in memory. What a canary has learned goes with it,
//! however it ends: the older version has learned more. Nothing is ever written to the older
//! version's bucket.

use std::sync::Arc;
use std::time::Duration;

use homeostat_hooks::{Fault, Hook};

use crate::admit::{AdmissionError, Stage};
use crate::bindings::types;
use crate::call::{Instance, Policy};
use crate::fault;
use crate::host::Asked;
use crate::inspect::Shape;
use crate::limit::Permit;
use crate::state::{Bucket, StateStore};
use crate::swap::Table;

const INTERFACE: &str = "homeostat:policy/state-migration@0.1.0";
/// Highest version: each may have a file, and the newest is looked for.
const VERSION_MAX: u32 = 1000;
/// How long a put waits for the disk.
const PATIENCE: Duration = Duration::from_secs(30);

/// Gives the policy the bucket of its version, and answers a copy of what will be in it.
pub(crate) fn prepare(
    policy: &mut Policy,
    store: &StateStore,
    table: &Table,
    shape: &Shape,
) -> Result<Arc<Bucket>, AdmissionError> {
    let unversioned = store.scratch(&policy.powers.bucket);
    if !is_exported(shape) {
        return Ok(unversioned);
    }
    let version = call(policy, unversioned, |instance, policy| {
        instance.call_export(INTERFACE, "version", (), policy.deadline())
    });
    let version: u32 = version.map_err(|fault| refused(&fault))?;
    if !(1..=VERSION_MAX).contains(&version) {
        let text = format!("its state has version {version}, expected 1 to {VERSION_MAX}");
        return Err(AdmissionError::new(Stage::Migrate, text));
    }
    let name = Arc::clone(&policy.powers.name);
    policy.powers = Arc::new(policy.powers.on(store.bucket(&name, version)));
    copy(policy, store, table)
}

/// A copy of what the policy would begin with.
pub(crate) fn copy(
    policy: &Policy,
    store: &StateStore,
    table: &Table,
) -> Result<Arc<Bucket>, AdmissionError> {
    match older(policy, store, table)? {
        None => Ok(store.scratch(&policy.powers.bucket)),
        Some(from) => migrated(policy, store, from),
    }
}

/// Whether the policy, or a member of it, has an older state to take over before it serves.
pub(crate) fn is_due(policy: &Policy, store: &StateStore, table: &Table) -> bool {
    let due = |policy| older(policy, store, table).is_ok_and(|from| from.is_some());
    with_members(policy).any(due)
}

/// Lets a canary have its older state, as the policy turns it into its own. Only inside an
/// admission, as all that fills buckets.
pub(crate) fn lend(
    policy: &Policy,
    store: &StateStore,
    table: &Table,
) -> Result<(), AdmissionError> {
    for policy in with_members(policy) {
        if let Some(from) = older(policy, store, table)? {
            let state = migrated(policy, store, from)?;
            policy.powers.bucket.lend(state.entries());
        }
    }
    Ok(())
}

/// Buckets that were filled for a policy; vacant again unless it serves.
#[must_use = "they are vacant again at once"]
pub(crate) struct Filled(Vec<Arc<Bucket>>);

impl Filled {
    /// The policy serves.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        for bucket in &self.0 {
            bucket.discard();
        }
    }
}

/// Fills the buckets of a policy that is about to serve. Only inside an admission.
pub(crate) fn take_over(
    policy: &Policy,
    store: &StateStore,
    table: &Table,
) -> Result<Filled, AdmissionError> {
    let mut filled = Filled(Vec::new());
    for policy in with_members(policy) {
        let Some(from) = older(policy, store, table)? else {
            continue;
        };
        let state = migrated(policy, store, from)?;
        let bucket = &policy.powers.bucket;
        filled.0.push(Arc::clone(bucket));
        bucket.replace(state.entries(), PATIENCE).map_err(|error| {
            AdmissionError::new(Stage::Migrate, format!("its new state: {error}"))
                .help("the older state is as it was")
        })?;
        tracing::info!(
            policy = policy.name(),
            from,
            to = bucket.version(),
            "state was taken over"
        );
    }
    Ok(filled)
}

/// The version whose state this policy would take over; none where it has its own, or another
/// works with its bucket now.
fn older(
    policy: &Policy,
    store: &StateStore,
    table: &Table,
) -> Result<Option<u32>, AdmissionError> {
    let bucket = &policy.powers.bucket;
    if bucket.version() == 0 {
        return Ok(None);
    }
    bucket.check_open().map_err(|why| unopened(&why))?;
    let mut serving = Hook::ALL.iter().filter_map(|hook| table.get(*hook));
    let in_use = serving.any(|generation| {
        let mut all = with_members(&generation.policy);
        all.any(|p| Arc::ptr_eq(&p.powers.bucket, bucket))
    });
    if in_use || !bucket.is_vacant() {
        return Ok(None);
    }
    Ok(store.newest_below(policy.name(), bucket.version()))
}

/// A policy and those that answer together with it.
pub(crate) fn with_members(policy: &Policy) -> impl Iterator<Item = &Policy> {
    let members = policy.ensemble.iter().flat_map(|e| &e.members);
    std::iter::once(policy).chain(members.map(|member| &*member.policy))
}

/// A copy of an older state, as the policy turns it into its own.
fn migrated(policy: &Policy, store: &StateStore, from: u32) -> Result<Arc<Bucket>, AdmissionError> {
    let bucket = store.bucket(policy.name(), from);
    bucket.check_open().map_err(|why| unopened(&why))?;
    let copy = store.scratch(&bucket);
    let outcome = call(policy, Arc::clone(&copy), |instance, policy| {
        let deadline = policy.deadline();
        let answer: Result<(), types::Error> =
            instance.call_export(INTERFACE, "migrate", (from,), deadline)?;
        answer.map_err(fault::of_guest)
    });
    outcome.map(|()| copy).map_err(|fault| refused(&fault))
}

/// By its name without the patch version, which wasmtime compares as semver does.
fn is_exported(shape: &Shape) -> bool {
    let name = |export: &str| export.split('@').next().map(str::to_string);
    shape.exports.iter().any(|e| name(e) == name(INTERFACE))
}

fn unopened(why: &str) -> AdmissionError {
    AdmissionError::new(Stage::Migrate, why)
        .help("what it has to take over is unknown; put it again when the file can be opened")
}

fn refused(fault: &Fault) -> AdmissionError {
    AdmissionError::new(Stage::Migrate, format!("state-migration ended as {fault}"))
        .help("the older state is as it was, and whoever served still serves")
}

/// One call on an instance that has this bucket.
fn call<T>(
    policy: &Policy,
    bucket: Arc<Bucket>,
    call: impl FnOnce(&mut Instance, &Policy) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let policy = Arc::new(policy.with_powers(Arc::new(policy.powers.on(bucket))));
    let asked = Arc::new(Asked::new(Arc::default(), Arc::default()));
    let deadline = policy.deadline();
    let mut instance = Instance::new(&policy, &asked, Permit::spare(), deadline)?;
    call(&mut instance, &policy)
}
