//! One admitted policy, one instance of it, one call.
//!
//! An instance belongs to one request. It is made at the first hook that the request
//! needs of it and thrown away after the last; an instance that trapped is never called
//! again, since its memory is in an unknown state.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use homeostat_hooks as h;
use homeostat_hooks::{Fault, FaultKind};
use wasmtime::component::InstancePre;
use wasmtime::{Engine, Store};

use crate::bindings::{classifier, learner, router, types, validator};
use crate::compose::Ensemble;
use crate::config::{Fallback, Limits};
use crate::convert;
use crate::engine::TICK;
use crate::fault;
use crate::history::Stored;
use crate::host::{Asked, HostState, Powers, Proposal};
use crate::limit::Permit;
use crate::tape::Tape;

/// What admission has accepted: compiled, linked, checked.
pub(crate) struct Policy {
    pub powers: Arc<Powers>,
    /// Hex sha256 of the component.
    pub digest: String,
    pub fallback: Fallback,
    pub guests: GuestNames,
    pub pre: InstancePre<HostState>,
    /// Names of its outer imports.
    pub imports: Arc<[String]>,
    /// Fuel of every instance; only where the engine is metered.
    pub fuel: Option<u64>,
    pub cost: Cost,
    /// How it can be admitted again after a restart.
    pub stored: Arc<Stored>,
    /// Who answers together with it.
    pub ensemble: Option<Ensemble>,
}

/// What it costs to make an instance: the least that was measured, since a busy machine
/// only ever adds to it.
#[derive(Debug, Default)]
pub(crate) struct Cost(AtomicU64);

impl Cost {
    /// 0 = not measured.
    pub fn nanos(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub fn measured(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1);
        // Two requests that measure together may lose one value; the next call brings another.
        let least = self.nanos();
        if least == 0 || nanos < least {
            self.0.store(nanos, Relaxed);
        }
    }

    pub fn forget(&self) {
        self.0.store(0, Relaxed);
    }
}

/// Where the exported hooks are; looked up once.
#[derive(Clone, Default)]
pub(crate) struct GuestNames {
    pub classifier: Option<classifier::GuestIndices>,
    pub router: Option<router::GuestIndices>,
    pub validator: Option<validator::GuestIndices>,
    pub learner: Option<learner::GuestIndices>,
}

impl Policy {
    pub fn name(&self) -> &str {
        &self.powers.name
    }

    pub fn limits(&self) -> &Limits {
        &self.powers.limits
    }

    /// The same code with other powers: probes work on a copy of the state.
    pub fn with_powers(&self, powers: Arc<Powers>) -> Self {
        Self {
            powers,
            digest: self.digest.clone(),
            fallback: self.fallback,
            guests: self.guests.clone(),
            pre: self.pre.clone(),
            imports: Arc::clone(&self.imports),
            fuel: self.fuel,
            cost: Cost::default(),
            stored: Arc::clone(&self.stored),
            ensemble: None,
        }
    }

    /// When a call that begins now must have ended.
    pub fn deadline(&self) -> Instant {
        self.deadline_from(Instant::now())
    }

    /// When a call that began then must have ended.
    pub fn deadline_from(&self, begun: Instant) -> Instant {
        begun + Duration::from_millis(u64::from(self.limits().deadline_ms))
    }

    fn engine(&self) -> &Engine {
        self.pre.engine()
    }
}

/// A live instance with its store.
pub(crate) struct Instance {
    // Dropped in this order: the slot in the pool is free before its permit is.
    store: Store<HostState>,
    guests: Guests,
    asked: Arc<Asked>,
    broken: bool,
    permit: Permit,
}

struct Guests {
    raw: wasmtime::component::Instance,
    policy: Arc<Policy>,
    classifier: Option<classifier::Guest>,
    router: Option<router::Guest>,
    validator: Option<validator::Guest>,
    learner: Option<learner::Guest>,
}

/// A getter that finds a hook at its first call; the types are checked there.
macro_rules! guest {
    ($name:ident, $guest:ty) => {
        fn $name(&mut self, store: &mut Store<HostState>) -> wasmtime::Result<&$guest> {
            if self.$name.is_none() {
                let names = &self.policy.guests.$name;
                let names = names.as_ref().ok_or_else(|| {
                    wasmtime::format_err!(concat!("no ", stringify!($name), " is exported"))
                })?;
                self.$name = Some(names.load(store, &self.raw)?);
            }
            self.$name
                .as_ref()
                .ok_or_else(|| wasmtime::format_err!("a guest was loaded and is gone"))
        }
    };
}

impl Guests {
    guest!(classifier, classifier::Guest);
    guest!(router, router::Guest);
    guest!(validator, validator::Guest);
    guest!(learner, learner::Guest);
}

impl Instance {
    /// Makes an instance; runs the component's own initialisation within the deadline.
    ///
    /// # Errors
    /// A fault of the policy: trap, deadline or memory during initialisation.
    pub fn new(
        policy: &Arc<Policy>,
        asked: &Arc<Asked>,
        permit: Permit,
        deadline: Instant,
    ) -> Result<Self, Fault> {
        Self::taped(policy, asked, permit, deadline, None, None)
    }

    /// As [`Self::new`]; what it asks the host goes through this tape, and what it asks models to
    /// these, which its request pays for.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn taped(
        policy: &Arc<Policy>,
        asked: &Arc<Asked>,
        permit: Permit,
        deadline: Instant,
        tape: Option<Arc<Tape>>,
        models: Option<Arc<dyn h::Models>>,
    ) -> Result<Self, Fault> {
        let state = HostState::new(Arc::clone(&policy.powers), Arc::clone(asked), tape, models);
        let mut store = Store::new(policy.engine(), state);
        store.limiter(|state| &mut state.meter);
        store.set_hostcall_fuel(
            usize::try_from(policy.limits().hostcall_bytes).unwrap_or(usize::MAX),
        );
        // The host's table refuses first, with an error value; this bounds handles that
        // the parts of a component pass among themselves.
        store.set_max_component_handles(2 * policy.limits().handles as usize);
        store.set_epoch_deadline(ticks_until(deadline));
        if let Some(fuel) = policy.fuel {
            store.set_fuel(fuel).map_err(|error| {
                Fault::new(
                    FaultKind::Invalid,
                    format!("host: no fuel can be given: {error}"),
                )
            })?;
        }
        store.data_mut().begin_call(deadline);
        let raw = policy.pre.instantiate(&mut store).map_err(|error| {
            let refusal = store.data_mut().meter.take_refusal();
            let mut fault = fault::of_error(&error, refusal, policy.limits().deadline_ms);
            fault.detail.insert_str(0, "during initialisation: ");
            fault
        })?;
        store.data_mut().made();
        Ok(Self {
            store,
            guests: Guests {
                raw,
                policy: Arc::clone(policy),
                classifier: None,
                router: None,
                validator: None,
                learner: None,
            },
            asked: Arc::clone(asked),
            broken: false,
            permit,
        })
    }

    /// Calls a function of an exported interface that is no hook.
    ///
    /// # Errors
    /// What the guest answered, or how it failed; a trap where there is no such function.
    pub fn call_export<A, T>(
        &mut self,
        interface: &str,
        function: &str,
        arguments: A,
        deadline: Instant,
    ) -> Result<T, Fault>
    where
        A: wasmtime::component::Lower + wasmtime::component::ComponentNamedList,
        (T,): wasmtime::component::Lift + wasmtime::component::ComponentNamedList,
    {
        self.call(deadline, |guests, store| {
            let raw = &guests.raw;
            let interface = raw.get_export_index(&mut *store, None, interface);
            let function =
                interface.and_then(|i| raw.get_export_index(&mut *store, Some(&i), function));
            let function =
                function.ok_or_else(|| wasmtime::format_err!("no such function is exported"))?;
            let typed = raw.get_typed_func::<A, (T,)>(&mut *store, &function)?;
            Ok(Ok(typed.call(&mut *store, arguments)?.0))
        })
    }

    /// An instance that was kept ready is from now on this request's, which pays for these models.
    pub fn adopt(
        &mut self,
        asked: &Arc<Asked>,
        permit: Permit,
        models: Option<Arc<dyn h::Models>>,
    ) {
        self.asked = Arc::clone(asked);
        self.store.data_mut().adopt(asked, models);
        self.permit = permit;
    }

    /// Its request pays for nothing more.
    pub fn leave_request(&mut self) {
        self.store.data_mut().leave_request();
    }

    /// The request that it was given to is not recorded.
    pub fn leave_untaped(&mut self) {
        self.store.data_mut().leave_untaped();
    }

    /// Compares the types of the hooks' functions with the contract's.
    ///
    /// # Errors
    /// What differs, in wasmtime's words.
    pub fn check_types(&mut self, hooks: &[h::Hook]) -> wasmtime::Result<()> {
        let (guests, store) = (&mut self.guests, &mut self.store);
        for hook in hooks {
            match hook {
                h::Hook::Classify => guests.classifier(store).map(|_| ())?,
                h::Hook::Route => guests.router(store).map(|_| ())?,
                h::Hook::Validate => guests.validator(store).map(|_| ())?,
            }
        }
        if guests.policy.guests.learner.is_some() {
            guests.learner(store)?;
        }
        Ok(())
    }

    /// Whose instance it is.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.guests.policy
    }

    /// Whether it is an instance of this policy.
    pub fn is_of(&self, policy: &Arc<Policy>) -> bool {
        Arc::ptr_eq(&self.guests.policy, policy)
    }

    /// A call of it has trapped: it must not be called again.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Memory in use, over all linear memories.
    pub fn memory_bytes(&self) -> u64 {
        self.store.data().meter.memory_bytes()
    }

    /// Fuel used since the instance was made, initialisation included; none without a
    /// metered engine.
    pub fn fuel_used(&self) -> Option<u64> {
        let given = self.guests.policy.fuel?;
        Some(given - self.store.get_fuel().ok()?)
    }

    /// The tape that takes notes of it.
    pub fn tape(&self) -> Option<&Arc<Tape>> {
        self.store.data().tape()
    }

    /// What was proposed during the last call, oldest first.
    pub fn take_proposals(&mut self) -> Vec<Proposal> {
        self.store.data_mut().take_proposals()
    }

    /// Bytes of log that the last call dropped.
    pub fn take_dropped_log_bytes(&mut self) -> u64 {
        self.store.data().log.next_call()
    }

    pub fn classify(&mut self, deadline: Instant) -> Result<h::Classification, Fault> {
        let asked = Arc::clone(&self.asked);
        self.call(deadline, |guests, store| {
            let guest = guests.classifier(store)?;
            guest.call_classify(store, asked.request_out(), asked.snapshot_out())
        })
        .map(convert::classification_in)
    }

    pub fn route(
        &mut self,
        deadline: Instant,
        classification: &types::Classification,
        tiers: &[types::Tier],
    ) -> Result<h::Decision, Fault> {
        let asked = Arc::clone(&self.asked);
        self.call(deadline, |guests, store| {
            let guest = guests.router(store)?;
            let (request, snapshot) = (asked.request_out(), asked.snapshot_out());
            guest.call_route(store, request, classification, tiers, snapshot)
        })
        .map(convert::decision_in)
    }

    pub fn validate(
        &mut self,
        deadline: Instant,
        answer: &types::Answer,
    ) -> Result<h::Verdict, Fault> {
        let asked = Arc::clone(&self.asked);
        self.call(deadline, |guests, store| {
            let guest = guests.validator(store)?;
            guest.call_validate(store, asked.request_out(), answer, asked.snapshot_out())
        })
        .map(convert::verdict_in)
    }

    pub fn learn(&mut self, deadline: Instant, outcome: &types::Outcome) -> Result<(), Fault> {
        let asked = Arc::clone(&self.asked);
        self.call(deadline, |guests, store| {
            let guest = guests.learner(store)?;
            guest
                .call_learn(store, asked.request_out(), outcome)
                .map(Ok)
        })
    }

    fn call<T>(
        &mut self,
        deadline: Instant,
        run: impl FnOnce(
            &mut Guests,
            &mut Store<HostState>,
        ) -> wasmtime::Result<Result<T, types::Error>>,
    ) -> Result<T, Fault> {
        if self.broken {
            return Err(Fault::new(
                FaultKind::Trap,
                "an instance that trapped was called again",
            ));
        }
        self.store.set_epoch_deadline(ticks_until(deadline));
        self.store.data_mut().begin_call(deadline);
        match run(&mut self.guests, &mut self.store) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(fault::of_guest(error)),
            Err(error) => {
                self.broken = true;
                let refusal = self.store.data_mut().meter.take_refusal();
                let deadline_ms = self.guests.policy.limits().deadline_ms;
                Err(fault::of_error(&error, refusal, deadline_ms))
            }
        }
    }
}

/// Ticks of the deadline clock that may still pass; one more than the time left, since
/// the present tick has already begun.
fn ticks_until(deadline: Instant) -> u64 {
    let left = deadline.saturating_duration_since(Instant::now());
    let ticks = left.as_nanos().div_ceil(TICK.as_nanos());
    u64::try_from(ticks).unwrap_or(u64::MAX / 2) + 1
}
