//! An upgrade whose state has another form.
//!
//! The component says its version and turns a copy of the older state into its own
//! (`wit/migration.wit`). That happens twice: at admission, on a copy that is then shown to
//! the probes, so that a migration which fails or spoils something refuses the component;
//! and when it is put, with what the older version has learned meanwhile. Nothing is ever
//! written to the older version's bucket.

use std::sync::Arc;
use std::time::Duration;

use homeostat_hooks::Fault;

use crate::admit::{AdmissionError, Stage};
use crate::bindings::types;
use crate::call::{Instance, Policy};
use crate::fault;
use crate::host::Asked;
use crate::inspect::Shape;
use crate::limit::Permit;
use crate::state::{Bucket, StateStore};

const INTERFACE: &str = "homeostat:policy/state-migration@0.1.0";
/// Highest version: each may have a file, and the newest is looked for.
const VERSION_MAX: u32 = 1000;
/// How long a put waits for the disk.
const PATIENCE: Duration = Duration::from_secs(30);

/// Gives the policy the bucket of its version, and answers a copy of what will be in it.
pub(crate) fn prepare(
    policy: &mut Policy,
    store: &StateStore,
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
    if store.has(&name, version) {
        return Ok(store.scratch(&policy.powers.bucket));
    }
    policy.takes_over = store.newest_below(&name, version);
    match policy.takes_over {
        None => Ok(store.scratch(&policy.powers.bucket)),
        Some(from) => migrated(policy, store, from),
    }
}

/// Fills the bucket of a policy that is about to serve.
pub(crate) fn take_over(policy: &Policy, store: &StateStore) -> Result<(), AdmissionError> {
    let bucket = &policy.powers.bucket;
    let Some(from) = policy.takes_over.filter(|_| bucket.is_empty()) else {
        return Ok(());
    };
    let state = migrated(policy, store, from)?;
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
    Ok(())
}

/// A copy of an older state, as the policy turns it into its own.
fn migrated(policy: &Policy, store: &StateStore, from: u32) -> Result<Arc<Bucket>, AdmissionError> {
    let copy = store.scratch(&store.bucket(policy.name(), from));
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
    let mut instance = Instance::new(&policy, &asked, Permit::admission(), deadline)?;
    call(&mut instance, &policy)
}
