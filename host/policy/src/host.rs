//! Everything that a component can learn or do.
//!
//! All imports end in this file: the snapshot, the models, the settings, the state, the
//! log, the clocks and the random numbers. Whoever wants to record what a policy learned,
//! or to replay it, stands here and nowhere else.
//!
//! A power that was not granted answers `denied`. Host calls that wait (the models, a
//! write of state, a WASI poll) get what is left of the call's deadline, since the
//! deadline clock cannot interrupt the host. Handles are bounded by the table; data by
//! the store's host-call fuel.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use homeostat_hooks::{ModelError, Models, Request, Snapshot};
use wasmtime::Engine;
use wasmtime::component::{HasData, HasSelf, Linker, Resource, ResourceTable, ResourceTableError};
use wasmtime_wasi::clocks::WasiClocksView;
use wasmtime_wasi::p2::DynPollable;
use wasmtime_wasi::p2::bindings::clocks::monotonic_clock;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxView, WasiView};

use crate::bindings::homeostat::policy::{models, propose, telemetry};
use crate::bindings::wasi::{config, keyvalue, logging};
use crate::bindings::{FullPolicy, types};
use crate::config::{Grant, Limits};
use crate::convert;
use crate::engine::TICK;
use crate::grants::{Import, Uses};
use crate::limit::Meter;
use crate::log::{GuestLog, Stream};
use crate::state::Bucket;
use crate::tape::{Tape, TapedRng, nanos};
use crate::wave::Spoken;

/// Most tokens that a policy may have generated at once; what the contract says.
const GENERATE_TOKENS_MAX: u32 = 256;
/// Most random bytes of one WASI call.
const RANDOM_BYTES_MAX: u64 = 64 << 10;
/// Proposals kept of one call; the last valid one counts, so a few are enough.
const PROPOSALS_MAX: usize = 4;

/// A model that a guest holds.
pub struct ModelHandle(String);

/// The policy's bucket, as a guest holds it. There is one, so nothing is in it.
pub struct BucketHandle;

/// What a policy was given; shared by all its instances.
pub(crate) struct Powers {
    pub name: Arc<str>,
    pub grants: Vec<Grant>,
    pub settings: BTreeMap<String, String>,
    pub limits: Limits,
    pub bucket: Arc<Bucket>,
    pub models: Arc<dyn Models>,
    pub uses: Uses,
    /// It asks for the snapshot while an instance is made, so none can be made before there
    /// is a request: it would know of another machine than a replay tells it.
    pub asks_early: AtomicBool,
}

impl Powers {
    /// The same powers over another state, counted anew.
    pub fn on(&self, bucket: Arc<Bucket>) -> Self {
        Self {
            name: Arc::clone(&self.name),
            grants: self.grants.clone(),
            settings: self.settings.clone(),
            limits: self.limits,
            bucket,
            models: Arc::clone(&self.models),
            uses: Uses::default(),
            asks_early: AtomicBool::new(false),
        }
    }
}

/// The request that an instance works on, converted at most once.
pub(crate) struct Asked {
    pub request: Arc<Request>,
    snapshot: Arc<Snapshot>,
    request_out: OnceLock<types::Request>,
    snapshot_out: OnceLock<types::Snapshot>,
}

impl Asked {
    pub fn new(request: Arc<Request>, snapshot: Arc<Snapshot>) -> Self {
        Self {
            request,
            snapshot,
            request_out: OnceLock::new(),
            snapshot_out: OnceLock::new(),
        }
    }

    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    pub fn request_out(&self) -> &types::Request {
        self.request_out
            .get_or_init(|| convert::request(&self.request))
    }

    pub fn snapshot_out(&self) -> &types::Snapshot {
        self.snapshot_out
            .get_or_init(|| convert::snapshot(&self.snapshot))
    }
}

/// A provisional answer.
#[derive(Debug)]
pub(crate) enum Proposal {
    Classification(types::Classification),
    Decision(types::Decision),
    Verdict(types::Verdict),
}

/// The host's side of one instance.
pub(crate) struct HostState {
    powers: Arc<Powers>,
    asked: Arc<Asked>,
    pub log: Arc<GuestLog>,
    pub meter: Meter,
    table: ResourceTable,
    wasi: Option<WasiCtx>,
    tape: Option<Arc<Tape>>,
    /// The models that the request pays for; `None` = nobody's request pays.
    models: Option<Arc<dyn Models>>,
    deadline: Instant,
    proposals: Vec<Proposal>,
    /// The instance is being made.
    begins: bool,
}

impl HostState {
    /// `models`: those that the request pays for, if one does.
    pub fn new(
        powers: Arc<Powers>,
        asked: Arc<Asked>,
        tape: Option<Arc<Tape>>,
        models: Option<Arc<dyn Models>>,
    ) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(powers.limits.handles as usize);
        Self {
            log: Arc::new(GuestLog::new(
                Arc::clone(&powers.name),
                powers.limits.log_bytes,
            )),
            meter: Meter::new(&powers.limits),
            table,
            wasi: None,
            tape,
            models,
            deadline: Instant::now(),
            proposals: Vec::new(),
            begins: true,
            powers,
            asked,
        }
    }

    /// The instance is made.
    pub fn made(&mut self) {
        self.begins = false;
    }

    /// From now on it works for this request, which pays for these models; before, it has heard
    /// of none.
    pub fn adopt(&mut self, asked: &Arc<Asked>, models: Option<Arc<dyn Models>>) {
        self.asked = Arc::clone(asked);
        self.models = models;
    }

    /// Its request pays for nothing more.
    pub fn leave_request(&mut self) {
        self.models = None;
    }

    /// Nobody takes notes of it any more.
    pub fn leave_untaped(&mut self) {
        if let Some(tape) = self.tape.take() {
            // WASI's clocks and random numbers have it as well.
            tape.stop();
        }
    }

    /// A call begins: its deadline, and no proposal yet.
    pub fn begin_call(&mut self, deadline: Instant) {
        self.deadline = deadline;
        self.proposals.clear();
    }

    /// The proposals of the call that has ended, oldest first.
    pub fn take_proposals(&mut self) -> Vec<Proposal> {
        std::mem::take(&mut self.proposals)
    }

    pub fn tape(&self) -> Option<&Arc<Tape>> {
        self.tape.as_ref()
    }

    fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn timeout_ms(&self) -> u32 {
        u32::try_from(self.time_left().as_millis()).unwrap_or(u32::MAX)
    }

    fn granted(&self, grant: Grant) -> bool {
        self.powers.grants.contains(&grant)
    }

    fn models(&self) -> Result<&dyn Models, types::Error> {
        self.powers.uses.count(Import::Models);
        if self.granted(Grant::Models) {
            let own = &self.powers.models;
            return Ok(&**self.models.as_ref().unwrap_or(own));
        }
        Err(types::Error::Denied(
            "homeostat:policy/models is not among this policy's grants".into(),
        ))
    }

    /// Copies of arguments, where somebody takes notes.
    fn noted<T>(&self, args: impl FnOnce() -> T) -> Option<T> {
        self.tape.is_some().then(args)
    }

    /// A host call: answered by `live`, or in a replay as it was recorded.
    fn witness<A: Spoken + Clone + 'static>(
        &self,
        call: &'static str,
        args: Option<impl Spoken + 'static>,
        live: impl FnOnce(&Self) -> A,
    ) -> wasmtime::Result<A> {
        match (&self.tape, args) {
            (Some(tape), Some(args)) => Ok(tape.witness(call, args, || live(self))?),
            _ => Ok(live(self)),
        }
    }

    /// A host call that only says something.
    fn note(&self, call: &'static str, args: Option<impl Spoken + 'static>) {
        if let (Some(tape), Some(args)) = (&self.tape, args) {
            tape.note(call, args, ());
        }
    }

    fn propose(&mut self, proposal: Proposal) {
        self.powers.uses.count(Import::Propose);
        if self.proposals.len() == PROPOSALS_MAX {
            self.proposals.remove(0);
        }
        self.proposals.push(proposal);
    }

    /// A call of a model by a handle of the guest; a handle that does not exist traps,
    /// since only a broken binding can have one.
    fn on_model<T, S>(
        &self,
        call: &'static str,
        handle: &Resource<ModelHandle>,
        args: impl FnOnce(String) -> S,
        live: impl FnOnce(&dyn Models, &str, u32) -> Result<T, ModelError>,
    ) -> wasmtime::Result<Result<T, types::Error>>
    where
        T: Spoken + Clone + 'static,
        S: Spoken + 'static,
    {
        let name = &self.table.get(handle)?.0;
        let args = self.noted(|| args(name.clone()));
        self.witness(call, args, |host| {
            let models = host.models()?;
            live(models, name, host.timeout_ms()).map_err(convert::model_error)
        })
    }
}

/// A linker with every import this host knows. Admission has already refused a component
/// that imports what it was not granted; WASI is linked only for those that want it.
pub(crate) fn linker(engine: &Engine, wasi: bool) -> wasmtime::Result<Linker<HostState>> {
    let mut linker = Linker::new(engine);
    if wasi {
        wasmtime_wasi::p2::add_to_linker_sync(&mut linker)?;
        linker.allow_shadowing(true);
        monotonic_clock::add_to_linker::<HostState, BoundedClock>(&mut linker, |s| Bounded(s))?;
        linker.allow_shadowing(false);
    }
    FullPolicy::add_to_linker::<HostState, HasSelf<HostState>>(&mut linker, |s| s)?;
    Ok(linker)
}

// ---- telemetry, propose, logging: always there -----------------------------------------

impl types::Host for HostState {}

impl telemetry::Host for HostState {
    fn current(&mut self) -> wasmtime::Result<types::Snapshot> {
        self.powers.uses.count(Import::Telemetry);
        if self.begins {
            self.powers.asks_early.store(true, Relaxed);
        }
        self.note("homeostat:policy/telemetry#current", Some(()));
        Ok(self.asked.snapshot_out().clone())
    }
}

impl propose::Host for HostState {
    fn propose_classification(&mut self, p: types::Classification) -> wasmtime::Result<()> {
        let args = self.noted(|| convert::classification_in(p.clone()));
        self.note("homeostat:policy/propose#propose-classification", args);
        self.propose(Proposal::Classification(p));
        Ok(())
    }

    fn propose_decision(&mut self, p: types::Decision) -> wasmtime::Result<()> {
        let args = self.noted(|| convert::decision_in(p.clone()));
        self.note("homeostat:policy/propose#propose-decision", args);
        self.propose(Proposal::Decision(p));
        Ok(())
    }

    fn propose_verdict(&mut self, p: types::Verdict) -> wasmtime::Result<()> {
        let args = self.noted(|| convert::verdict_in(p.clone()));
        self.note("homeostat:policy/propose#propose-verdict", args);
        self.propose(Proposal::Verdict(p));
        Ok(())
    }
}

impl logging::logging::Host for HostState {
    fn log(
        &mut self,
        level: logging::logging::Level,
        context: String,
        message: String,
    ) -> wasmtime::Result<()> {
        self.powers.uses.count(Import::Logging);
        let args = self.noted(|| (level_name(level), context.clone(), message.clone()));
        self.note("wasi:logging/logging#log", args);
        self.log.message(level, &context, &message);
        Ok(())
    }
}

fn level_name(level: logging::logging::Level) -> String {
    use logging::logging::Level;
    let name = match level {
        Level::Trace => "trace",
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
        Level::Critical => "critical",
    };
    name.to_string()
}

// ---- models ----------------------------------------------------------------------------

impl models::HostModel for HostState {
    fn info(
        &mut self,
        model: Resource<ModelHandle>,
    ) -> wasmtime::Result<Result<types::Tier, types::Error>> {
        let info = |models: &dyn Models, name: &str, _| models.info(name);
        let tier = self.on_model("homeostat:policy/models#info", &model, |name| name, info)?;
        Ok(tier.map(|tier| convert::tier(&tier)))
    }

    fn count_tokens(
        &mut self,
        model: Resource<ModelHandle>,
        text: String,
    ) -> wasmtime::Result<Result<u32, types::Error>> {
        self.on_model(
            "homeostat:policy/models#count-tokens",
            &model,
            |name| (name, text.clone()),
            |models, name, _| models.count_tokens(name, &text),
        )
    }

    fn embed(
        &mut self,
        model: Resource<ModelHandle>,
        text: String,
    ) -> wasmtime::Result<Result<Vec<f32>, types::Error>> {
        self.on_model(
            "homeostat:policy/models#embed",
            &model,
            |name| (name, text.clone()),
            |models, name, timeout_ms| models.embed(name, &text, timeout_ms),
        )
    }

    fn score(
        &mut self,
        model: Resource<ModelHandle>,
        prompt: String,
        continuation: String,
    ) -> wasmtime::Result<Result<Vec<f32>, types::Error>> {
        let tenant = self.asked.request.tenant.as_deref();
        self.on_model(
            "homeostat:policy/models#score",
            &model,
            |name| (name, prompt.clone(), continuation.clone()),
            |models, name, ms| models.score(tenant, name, &prompt, &continuation, ms),
        )
    }

    fn generate(
        &mut self,
        model: Resource<ModelHandle>,
        prompt: String,
        options: models::GenerateOptions,
    ) -> wasmtime::Result<Result<models::Generated, types::Error>> {
        if options.max_tokens > GENERATE_TOKENS_MAX {
            return Ok(Err(types::Error::InvalidArgument(format!(
                "max-tokens is {}, at most {GENERATE_TOKENS_MAX}",
                options.max_tokens
            ))));
        }
        let options = convert::generate_options(options);
        let tenant = self.asked.request.tenant.as_deref();
        let generated = self.on_model(
            "homeostat:policy/models#generate",
            &model,
            |name| (name, prompt.clone(), options.clone()),
            |models, name, ms| models.generate(tenant, name, &prompt, &options, ms),
        )?;
        Ok(generated.map(convert::generated))
    }

    fn drop(&mut self, model: Resource<ModelHandle>) -> wasmtime::Result<()> {
        self.table.delete(model)?;
        Ok(())
    }
}

impl models::Host for HostState {
    fn names(&mut self) -> wasmtime::Result<Result<Vec<String>, types::Error>> {
        self.witness("homeostat:policy/models#names", Some(()), |host| {
            host.models().map(Models::names)
        })
    }

    fn open(
        &mut self,
        name: String,
    ) -> wasmtime::Result<Result<Resource<ModelHandle>, types::Error>> {
        let args = self.noted(|| name.clone());
        let opened = self.witness("homeostat:policy/models#open", args, |host| {
            let known = host.models()?.names();
            if known.contains(&name) {
                return Ok(());
            }
            let name: String = name.chars().take(80).collect();
            Err(types::Error::InvalidArgument(format!(
                "no model {name:?}; there are {}",
                known.join(", ")
            )))
        })?;
        if let Err(refused) = opened {
            return Ok(Err(refused));
        }
        match self.table.push(ModelHandle(name)) {
            Ok(handle) => Ok(Ok(handle)),
            Err(ResourceTableError::Full) => Ok(Err(types::Error::LimitExceeded(
                "more handles open than limits.handles".into(),
            ))),
            Err(error) => Err(error.into()),
        }
    }
}

// ---- settings --------------------------------------------------------------------------

impl config::store::Host for HostState {
    fn get(
        &mut self,
        key: String,
    ) -> wasmtime::Result<Result<Option<String>, config::store::Error>> {
        self.powers.uses.count(Import::Config);
        let args = self.noted(|| key.clone());
        self.witness("wasi:config/store#get", args, |host| {
            if !host.granted(Grant::Config) {
                return Err(config_denied());
            }
            Ok(host.powers.settings.get(&key).cloned())
        })
    }

    fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, config::store::Error>> {
        self.powers.uses.count(Import::Config);
        self.witness("wasi:config/store#get-all", Some(()), |host| {
            if !host.granted(Grant::Config) {
                return Err(config_denied());
            }
            Ok(host.powers.settings.clone().into_iter().collect())
        })
    }
}

/// The standard interface has no case for this.
fn config_denied() -> config::store::Error {
    config::store::Error::Upstream("denied: wasi:config is not among this policy's grants".into())
}

// ---- state -----------------------------------------------------------------------------

type KvResult<T> = wasmtime::Result<Result<T, keyvalue::store::Error>>;

impl HostState {
    fn on_bucket<T: Spoken + Clone + 'static>(
        &self,
        call: &'static str,
        bucket: &Resource<BucketHandle>,
        args: Option<impl Spoken + 'static>,
        live: impl FnOnce(&Bucket) -> Result<T, String>,
    ) -> KvResult<T> {
        self.powers.uses.count(Import::Keyvalue);
        self.table.get(bucket)?;
        self.witness(call, args, |host| {
            live(&host.powers.bucket).map_err(keyvalue::store::Error::Other)
        })
    }
}

impl keyvalue::store::HostBucket for HostState {
    fn get(&mut self, bucket: Resource<BucketHandle>, key: String) -> KvResult<Option<Vec<u8>>> {
        let args = self.noted(|| key.clone());
        self.on_bucket("wasi:keyvalue/store#get", &bucket, args, |b| b.get(&key))
    }

    fn set(&mut self, bucket: Resource<BucketHandle>, key: String, value: Vec<u8>) -> KvResult<()> {
        let left = self.time_left();
        let args = self.noted(|| (key.clone(), value.clone()));
        self.on_bucket("wasi:keyvalue/store#set", &bucket, args, |b| {
            b.set(key, value, left)
        })
    }

    fn delete(&mut self, bucket: Resource<BucketHandle>, key: String) -> KvResult<()> {
        let left = self.time_left();
        let args = self.noted(|| key.clone());
        self.on_bucket("wasi:keyvalue/store#delete", &bucket, args, |b| {
            b.delete(&key, left)
        })
    }

    fn exists(&mut self, bucket: Resource<BucketHandle>, key: String) -> KvResult<bool> {
        let args = self.noted(|| key.clone());
        self.on_bucket("wasi:keyvalue/store#exists", &bucket, args, |b| {
            b.exists(&key)
        })
    }

    fn list_keys(
        &mut self,
        bucket: Resource<BucketHandle>,
        cursor: Option<u64>,
    ) -> KvResult<keyvalue::store::KeyResponse> {
        self.on_bucket(
            "wasi:keyvalue/store#list-keys",
            &bucket,
            Some(cursor),
            |b| {
                let page = b.list(cursor)?;
                Ok(keyvalue::store::KeyResponse {
                    keys: page.keys,
                    cursor: page.next,
                })
            },
        )
    }

    fn drop(&mut self, bucket: Resource<BucketHandle>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl keyvalue::store::Host for HostState {
    fn open(&mut self, identifier: String) -> KvResult<Resource<BucketHandle>> {
        let args = self.noted(|| identifier.clone());
        let opened = self.witness("wasi:keyvalue/store#open", args, |host| {
            if !host.granted(Grant::Keyvalue) {
                return Err(keyvalue::store::Error::AccessDenied);
            }
            match identifier.as_str() {
                "" | "default" => Ok(()),
                _ => Err(keyvalue::store::Error::NoSuchStore),
            }
        })?;
        if let Err(refused) = opened {
            return Ok(Err(refused));
        }
        match self.table.push(BucketHandle) {
            Ok(handle) => Ok(Ok(handle)),
            Err(ResourceTableError::Full) => Ok(Err(keyvalue::store::Error::Other(
                "more handles open than limits.handles".into(),
            ))),
            Err(error) => Err(error.into()),
        }
    }
}

impl keyvalue::atomics::Host for HostState {
    fn increment(
        &mut self,
        bucket: Resource<BucketHandle>,
        key: String,
        delta: u64,
    ) -> KvResult<u64> {
        let left = self.time_left();
        let args = self.noted(|| (key.clone(), delta));
        self.on_bucket("wasi:keyvalue/atomics#increment", &bucket, args, |b| {
            b.increment(key, delta, left)
        })
    }
}

// ---- WASI: an empty world --------------------------------------------------------------

impl WasiView for HostState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        // Most instances never ask, so this is made at the first question.
        let ctx = self
            .wasi
            .get_or_insert_with(|| empty_world(&self.log, &self.tape));
        WasiCtxView {
            ctx,
            table: &mut self.table,
        }
    }
}

/// No files, no environment, no arguments, no network; output goes to the bounded log.
/// All random numbers of an instance come from one seed, so that one value records them.
fn empty_world(log: &Arc<GuestLog>, tape: &Option<Arc<Tape>>) -> WasiCtx {
    let seed: [u8; 32] = tape.as_ref().map_or_else(rand::random, |tape| tape.seed);
    let mut insecure = seed;
    insecure.reverse();
    let stream = |name| Stream {
        log: Arc::clone(log),
        tape: tape.clone(),
        name,
    };
    let random = |seed, call| TapedRng::new(seed, tape, call);
    WasiCtx::builder()
        .stdout(stream("stdout"))
        .stderr(stream("stderr"))
        .secure_random(random(seed, "wasi:random/random#get-random-bytes"))
        .insecure_random(random(
            insecure,
            "wasi:random/insecure#get-insecure-random-bytes",
        ))
        .insecure_random_seed(u128::from_le_bytes(
            seed[..16].try_into().unwrap_or([0; 16]),
        ))
        .max_random_size(RANDOM_BYTES_MAX)
        .wall_clock(WallClock(tape.clone()))
        .monotonic_clock(MonotonicClock {
            origin: Instant::now(),
            tape: tape.clone(),
        })
        .build()
}

struct WallClock(Option<Arc<Tape>>);

impl HostWallClock for WallClock {
    fn resolution(&self) -> Duration {
        Duration::from_micros(1)
    }

    fn now(&self) -> Duration {
        let live = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
        };
        match &self.0 {
            None => live(),
            Some(tape) => Duration::from_nanos(
                tape.witness_time("wasi:clocks/wall-clock#now", || nanos(live())),
            ),
        }
    }
}

/// Nanoseconds since the instance asked first.
struct MonotonicClock {
    origin: Instant,
    tape: Option<Arc<Tape>>,
}

impl HostMonotonicClock for MonotonicClock {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        let live = || nanos(self.origin.elapsed());
        match &self.tape {
            None => live(),
            Some(tape) => tape.witness_time("wasi:clocks/monotonic-clock#now", live),
        }
    }
}

/// A clock whose alarms never ring after the call's deadline: a guest that sleeps is
/// woken by it, and the deadline then ends the call.
struct BoundedClock;

impl HasData for BoundedClock {
    type Data<'a> = Bounded<'a>;
}

struct Bounded<'a>(&'a mut HostState);

impl monotonic_clock::Host for Bounded<'_> {
    fn now(&mut self) -> wasmtime::Result<u64> {
        self.0.clocks().now()
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        self.0.clocks().resolution()
    }

    fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        let now = self.now()?;
        self.subscribe_duration(when.saturating_sub(now))
    }

    fn subscribe_duration(&mut self, nanos: u64) -> wasmtime::Result<Resource<DynPollable>> {
        // Nobody waits in a replay: what the guest waited for has happened.
        if self.0.tape.as_ref().is_some_and(|tape| tape.is_replay()) {
            return self.0.clocks().subscribe_duration(0);
        }
        let longest = (self.0.time_left() + TICK).as_nanos();
        let longest = u64::try_from(longest).unwrap_or(u64::MAX);
        self.0.clocks().subscribe_duration(nanos.min(longest))
    }
}
