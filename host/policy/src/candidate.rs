//! A component that has passed every check of its bytes, and is now tried out: compiled,
//! linked, measured. Nothing here decides whether it serves; [`crate::admit`] does.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use homeostat_hooks::Hook;
use wasmtime::component::{Component, InstancePre};

use crate::admit::{Admission, AdmissionError, Kind, Stage, micros_since};
use crate::bindings::{classifier, learner, router, validator};
use crate::cache::{self, Artifact};
use crate::call::{Cost, GuestNames, Policy};
use crate::compiler;
use crate::config::{Limits, PolicyOptions};
use crate::cost::{self, CostCard};
use crate::engine::{FUEL_MAX, MEMORIES_MAX, PolicyEngine, TABLES_MAX};
use crate::fault;
use crate::grants::Uses;
use crate::host::{self, HostState, Powers};
use crate::inspect::Shape;
use crate::migrate;
use crate::probe::{self, Findings};
use crate::state::Bucket;

/// How much longer than its deadline a call may take while its fuel is counted: code that
/// counts is two to three times slower, and the machine may be busy.
const METERED_PATIENCE: u32 = 20;

/// A component that may be tried out.
pub(crate) struct Candidate<'a> {
    pub with: &'a Admission<'a>,
    pub name: &'a str,
    pub bytes: &'a [u8],
    pub digest: [u8; 32],
    pub limits: Limits,
    pub hooks: &'a [Hook],
    pub shape: &'a Shape,
    pub options: &'a PolicyOptions,
}

/// Machine code, loaded.
pub(crate) struct Compiled {
    pub component: Component,
    pub micros: u64,
    pub from_cache: bool,
    pub warnings: Vec<String>,
}

/// A candidate that was tried out on an engine.
pub(crate) struct Tried {
    pub compiled: Compiled,
    pub policy: Policy,
    /// The policy on a copy of its state.
    pub scratch: Arc<Policy>,
    pub findings: Findings,
    pub cost: CostCard,
    /// Bytes of a used slot that its engine clears in place; none without a pool.
    pub keep_resident: Option<usize>,
}

impl Candidate<'_> {
    /// Compiled, linked, probed and measured: on the first engine of the room, and on one with
    /// a larger pool where it turns out to need that.
    pub fn try_out(&self) -> Result<Tried, AdmissionError> {
        let engines = self.with.engines;
        let tried = self.try_on(engines.first())?;
        let pooled = tried.keep_resident.is_some();
        let missing = cost::missing_bytes(&tried.cost).filter(|_| pooled);
        let larger = missing.and_then(|missing| {
            let kept = engines.first().keep_resident as u64;
            engines.keeping(self.with.config, kept + missing)
        });
        match larger {
            Some(engine) => self.try_on(&engine),
            None => Ok(tried),
        }
    }

    fn try_on(&self, engine: &PolicyEngine) -> Result<Tried, AdmissionError> {
        let compiled = self.compile(engine)?;
        self.check_resources(&compiled.component)?;
        let mut policy = self.link(engine, &compiled.component)?;
        let state = migrate::prepare(&mut policy, self.with.state, self.with.table, self.shape)?;
        let scratch = self.scratch(&policy, &state);
        let findings = probe::probe(&scratch, self.hooks)?;
        Ok(Tried {
            cost: cost::times(&scratch, self.hooks)?,
            keep_resident: engine.pooled.then_some(engine.keep_resident),
            compiled,
            policy,
            scratch,
            findings,
        })
    }

    /// Machine code from the cache if it is there and good, else from the compiler.
    pub fn compile(&self, engine: &PolicyEngine) -> Result<Compiled, AdmissionError> {
        let started = Instant::now();
        let id = cache::Id::new(&engine.engine, &self.digest);
        let cache = self.with.cache.as_ref().ok().and_then(Option::as_ref);
        let done = |component, from_cache, warnings| Compiled {
            component,
            micros: micros_since(started),
            from_cache,
            warnings,
        };
        if let Some((cache, artifact)) = cache.and_then(|c| Some((c, c.get(id)?))) {
            match load(engine, &artifact) {
                Ok(component) => return Ok(done(component, true, Vec::new())),
                Err(refusal) if refusal.stage == Stage::Resources => return Err(refusal),
                // It is what this host wrote, and yet not what it can run.
                Err(_) => cache.put_aside(id),
            }
        }
        let artifact = compiler::compile(&self.with.config.compiler, engine, self.bytes)?;
        let component = load(engine, &artifact)?;
        let kept = cache.map_or(Ok(()), |cache| cache.put(id, &artifact));
        let not_kept = |why| format!("its code is not kept for the next start: {why}");
        let warnings = kept.err().map(not_kept).into_iter().collect();
        Ok(done(component, false, warnings))
    }

    /// What it declares fits into the limits, so that an instance can always be made.
    pub fn check_resources(&self, component: &Component) -> Result<(), AdmissionError> {
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
        if bytes > self.limits.memory_bytes {
            return refuse(format!(
                "a memory begins with {bytes} bytes, limit {} (limits.memory_bytes)",
                self.limits.memory_bytes
            ));
        }
        let elements = needs.max_initial_table_size.unwrap_or(0);
        let room = self.with.config.limits.table_elements;
        if elements > self.limits.table_elements.min(room) {
            return refuse(format!(
                "a table begins with {elements} elements, limit {} (limits.table_elements)",
                self.limits.table_elements
            ));
        }
        Ok(())
    }

    /// Links it, and gives it what it was granted.
    pub fn link(
        &self,
        engine: &PolicyEngine,
        component: &Component,
    ) -> Result<Policy, AdmissionError> {
        let (pre, guests) = link(engine, component, self.hooks, self.shape)?;
        Ok(Policy {
            digest: cache::hex(&self.digest),
            fallback: self.options.fallback.unwrap_or_default(),
            guests,
            pre,
            powers: self.powers(self.limits, self.with.state.bucket(self.name, 0)),
            stored: Arc::default(),
            imports: self.shape.imports.clone().into(),
            fuel: engine.metered.then_some(FUEL_MAX),
            cost: Cost::default(),
            ensemble: None,
        })
    }

    /// The same policy on a copy of this state, for trying it out. Where fuel is counted its
    /// code is slower, and what it counts must not depend on the clock.
    pub fn scratch(&self, policy: &Policy, state: &Bucket) -> Arc<Policy> {
        let mut limits = self.limits;
        if policy.fuel.is_some() {
            limits.deadline_ms = limits.deadline_ms.saturating_mul(METERED_PATIENCE);
        }
        let copy = self.with.state.scratch(state);
        Arc::new(policy.with_powers(self.powers(limits, copy)))
    }

    fn powers(&self, limits: Limits, bucket: Arc<Bucket>) -> Arc<Powers> {
        Arc::new(Powers {
            name: self.name.into(),
            grants: self.options.grants.clone().unwrap_or_default(),
            settings: self.options.settings.clone().unwrap_or_default(),
            limits,
            bucket,
            models: Arc::clone(self.with.models),
            uses: Uses::default(),
            asks_early: AtomicBool::new(false),
        })
    }

    /// The whole cost card, within the budget. Fuel takes a second compilation, so only who
    /// needs it pays for it.
    pub fn within_budget(&self, tried: &Tried) -> Result<CostCard, AdmissionError> {
        let budget = &self.with.config.budget;
        let (policy, memory) = (&tried.scratch, tried.findings.memory_bytes);
        let mut card = tried.cost.clone();
        if self.with.kind == Kind::Check || budget.fuel.is_some() {
            let engine = PolicyEngine::metered(self.with.config).map_err(no_engine)?;
            let component = self.compile(&engine)?.component;
            let metered = self.scratch(&self.link(&engine, &component)?, &policy.powers.bucket);
            cost::fuel_and_pages(&metered, self.hooks, &mut card)?;
        }
        if cost::over(budget, &card, memory).is_some() {
            card = card.better_of(cost::times(policy, self.hooks)?);
        }
        match cost::over(budget, &card, memory) {
            None => Ok(card),
            Some(text) => Err(AdmissionError::new(Stage::Budget, text)
                .help("make it cheaper, or raise the budget if it is worth that")),
        }
    }
}

/// Links the imports, whose types are compared here, and finds the functions of the hooks.
pub(crate) fn link(
    engine: &PolicyEngine,
    component: &Component,
    hooks: &[Hook],
    shape: &Shape,
) -> Result<(InstancePre<HostState>, GuestNames), AdmissionError> {
    let pre = host::linker(&engine.engine, shape.wasi)
        .and_then(|linker| linker.instantiate_pre(component))
        .map_err(|error| wrong_types(&error))?;
    let guests = find_guests(&pre, hooks, shape)?;
    Ok((pre, guests))
}

/// Machine code that this engine can run.
pub(crate) fn load(
    engine: &PolicyEngine,
    artifact: &Artifact,
) -> Result<Component, AdmissionError> {
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
    let component = cache::load(&engine.engine, artifact).map_err(refuse)?;
    component.initialize_copy_on_write_image().map_err(refuse)?;
    Ok(component)
}

pub(crate) fn wrong_types(error: &wasmtime::Error) -> AdmissionError {
    AdmissionError::new(Stage::World, fault::chain(error)).help(
        "the names fit, the types do not: its copy of wit/ probably differs from this host's; \
         build against this host's wit/",
    )
}

/// Finds the functions of every hook by name; the first instance compares their types.
fn find_guests(
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

fn no_engine(error: wasmtime::Error) -> AdmissionError {
    let text = format!("no engine to measure it: {}", fault::chain(&error));
    AdmissionError::new(Stage::Budget, text)
}
