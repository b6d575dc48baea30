//! `homeostat serve`: build the house, open the door, drain, leave.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use homeostat_cascade::{Baselines, Cascade, CascadeConfig, DecisionRecord, JoulesOf, Tier};
use homeostat_engine::{
    Encoder, Engine, EngineConfig, PromptClassifier, Shutdown, SpeculationConfig,
};
use homeostat_hooks::{Origin, Sample, TierKind as ViewKind, TierView};
use homeostat_policy::{
    CacheConfig, CompilerConfig, PolicyRoom, RecordConfig, ReplayConfig, RoomConfig,
};
use homeostat_telemetry::Telemetry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::baselines::{KeptBaselines, local_model};
use crate::batches::Batches;
use crate::budgets::{Budgets, Receipts};
use crate::cli::ServeArgs;
use crate::config::{Config, TierConfig, TierKind};
use crate::energy::{Energy, PlannedPower, TierLoad};
use crate::house::{Door, House, Snapshots, unix_seconds};
use crate::metrics::Metrics;
use crate::models::{Shelf, cache_root, is_path};
use crate::openai::request::{SamplingDefaults, sharer_of_tenant};
use crate::tiers::{
    Embedder, HostModels, LocalEncoder, LocalTier, RemoteConfig, RemoteTier, StatedTier,
    TierDevice, Wishes, WrittenOut, device_id, device_state,
};
use crate::{Failure, embedded, http, log};

/// How often memory is looked at from both sides: as often as telemetry samples.
const MEMORY_PERIOD: Duration = Duration::from_millis(100);
/// How often energy is booked: as often as telemetry samples.
const ENERGY_PERIOD: Duration = Duration::from_millis(100);
/// How often budgets are settled: as often as energy is booked.
const BUDGETS_PERIOD: Duration = Duration::from_millis(100);
/// How often budgets are told to telemetry. Between two samplings, of 100 ms unless the operator
/// wants another period, there is always such a moment. So a power that is drawn is in the state of
/// the host at most 200 ms later: 100 until it is sampled, and 100 until the budget that it
/// exceeds is. A limit that changes needs 25 + 100 at most; what a tenant or a key may spend
/// needs neither, as every request asks for it.
const BUDGETS_TOLD_PERIOD: Duration = Duration::from_millis(25);
/// How often it is written what is usual for the tiers' tokens. It is a mean of 20,000 of them, so
/// what a killed host forgets of a minute hardly moves it.
const BASELINES_PERIOD: Duration = Duration::from_secs(60);
/// Its name in the folder of state.
const BASELINES_FILE: &str = "tier-surprisals.json";
/// Context of a remote tier that is not described: what nearly all models have.
const REMOTE_CONTEXT_TOKENS: u32 = 8192;

pub fn serve(args: ServeArgs) -> Result<(), Failure> {
    let config = configured(args)?;
    log::start(&config.log).map_err(Failure::Config)?;
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::failed)?;
    // The port first: whoever starts a second host by mistake learns it at once.
    let listener = runtime.block_on(listen(config.server.listen))?;
    let (engines, telemetry, budgets, baselines) = {
        let _inside = runtime.enter();
        let engines = load_engines(&config)?;
        let (house, telemetry, baselines) = build(&config, &engines)?;
        let drain = Duration::from_secs(config.server.drain_seconds);
        let signals = signals().map_err(Failure::failed)?;
        let budgets = house.budgets.clone();
        runtime.block_on(run(house, listener, drain, signals))?;
        (engines, telemetry, budgets, baselines)
    };
    // Whatever was cut off ends here, before its engine does.
    runtime.shutdown_timeout(Duration::from_secs(1));
    budgets.close();
    baselines.save();
    for engine in engines.local {
        engine.shutdown(Shutdown::Cancel);
    }
    if let Some(telemetry) = Arc::into_inner(telemetry) {
        telemetry.shutdown();
    }
    tracing::info!("stopped");
    Ok(())
}

fn configured(args: ServeArgs) -> Result<Config, Failure> {
    let mut config = Config::load(args.config.config.as_deref())?;
    if let Some(listen) = args.listen {
        config.server.listen = listen;
    }
    if let Some(dir) = args.models_dir {
        config.models.dir = Some(std::path::absolute(dir).map_err(Failure::failed)?);
    }
    if config.server.admin_token.is_none() {
        let token = std::env::var("HOMEOSTAT_ADMIN_TOKEN").ok();
        config.server.admin_token = token.filter(|t| !t.is_empty());
    }
    Ok(config)
}

async fn listen(addr: SocketAddr) -> Result<TcpListener, Failure> {
    let bound = TcpListener::bind(addr).await;
    bound.map_err(|e| Failure::Failed(format!("cannot listen on {addr}: {e}")))
}

/// What holds weights.
pub struct Engines {
    /// In the order of the local ones among the configured tiers.
    local: Vec<Engine>,
    encoder: Option<Arc<dyn Embedder>>,
    /// For policies only: what it gives is no embedding.
    prompt_classifier: Option<Arc<dyn Embedder>>,
}

/// Load all models side by side; the slowest decides how long it takes.
pub fn load_engines(config: &Config) -> Result<Engines, Failure> {
    let shelf = Shelf::open(config)?;
    let files = Files { config, shelf };
    let tiers = config.tiers.iter().filter(|t| t.kind == TierKind::Local);
    std::thread::scope(|scope| {
        let files = &files;
        let encoder = scope.spawn(|| files.load_encoder());
        let classifier = scope.spawn(|| files.load_prompt_classifier());
        let loading: Vec<_> = tiers
            .map(|tier| scope.spawn(move || files.load_tier(tier)))
            .collect();
        let local = loading.into_iter().map(joined).collect::<Result<_, _>>()?;
        Ok(Engines {
            local,
            encoder: joined(encoder)?,
            prompt_classifier: joined(classifier)?,
        })
    })
}

/// The encoder alone; none where the configuration has none.
pub fn load_encoder(config: &Config) -> Result<Option<Arc<dyn Embedder>>, Failure> {
    let shelf = Shelf::open(config)?;
    Files { config, shelf }.load_encoder()
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T, Failure>>) -> Result<T, Failure> {
    let panicked = |_| Failure::Failed("loading a model panicked; its message is above".into());
    thread.join().map_err(panicked)?
}

/// Finds model files.
struct Files<'a> {
    config: &'a Config,
    shelf: Shelf,
}

impl Files<'_> {
    fn load_tier(&self, tier: &TierConfig) -> Result<Engine, Failure> {
        let path = match (&tier.path, &tier.model) {
            (Some(path), _) => self.config.path(path),
            (None, model) => self.shelf.verified(model.as_deref().unwrap_or_default())?,
        };
        let draft = tier.speculation.draft_model.as_deref();
        let draft_model = draft.map(|draft| match is_path(draft) {
            true => Ok(self.config.path(Path::new(draft))),
            false => self.shelf.verified(draft),
        });
        let weights = self.config.server.tenant_weights.iter();
        let defaults = EngineConfig::new(&tier.id, path);
        let engine = EngineConfig {
            max_sequences: tier.max_sequences,
            max_waiting: tier.max_waiting,
            kv_bytes: tier.kv_bytes,
            max_batch_tokens: tier.max_batch_tokens,
            context_tokens: tier.context_tokens.map(|n| n as usize),
            threads: tier.threads.unwrap_or(defaults.threads),
            device: tier.device,
            prefix_cache: tier.prefix_cache,
            speculation: SpeculationConfig {
                drafters: tier.speculation.drafters.clone(),
                draft_model: draft_model.transpose()?,
                max_draft_tokens: tier.speculation.max_draft_tokens,
                remember_answers: tier.speculation.remember_answers,
            },
            load_quantization: Some(tier.load_quantization),
            step_milliseconds: tier.step_milliseconds,
            tenant_weights: weights
                .map(|(tenant, weight)| (sharer_of_tenant(tenant), *weight))
                .collect(),
            seed: RandomState::new().hash_one(unix_seconds()),
            ..defaults
        };
        let loaded = Engine::load(engine);
        loaded.map_err(|e| Failure::Failed(format!("tier {}: {e}", tier.id)))
    }

    fn load_encoder(&self) -> Result<Option<Arc<dyn Embedder>>, Failure> {
        let wanted = &self.config.encoder;
        if !wanted.enabled {
            return Ok(None);
        }
        let folder = match &wanted.path {
            Some(path) => self.config.path(path),
            None => self.shelf.verified(&wanted.model)?,
        };
        let encoder = Encoder::load(&folder)
            .map_err(|e| Failure::Failed(format!("encoder {}: {e}", wanted.id)))?;
        Ok(Some(Arc::new(LocalEncoder {
            id: wanted.id.clone(),
            encoder,
        })))
    }

    fn load_prompt_classifier(&self) -> Result<Option<Arc<dyn Embedder>>, Failure> {
        let Some(wanted) = &self.config.encoder.prompt_classifier else {
            return Ok(None);
        };
        let encoder = PromptClassifier::load(&self.config.path(&wanted.path))
            .map_err(|e| Failure::Failed(format!("prompt classifier {}: {e}", wanted.id)))?;
        Ok(Some(Arc::new(LocalEncoder {
            id: wanted.id.clone(),
            encoder,
        })))
    }
}

type Built = (Arc<House>, Arc<Telemetry>, Arc<KeptBaselines>);

/// Wire the rooms together.
fn build(config: &Config, engines: &Engines) -> Result<Built, Failure> {
    let metrics = Arc::new(Metrics::new().map_err(Failure::failed)?);
    let (local, remote) = tiers(config, engines, &metrics)?;
    let encoders = engines.encoder.iter().chain(&engines.prompt_classifier);
    let models = HostModels::new(local.clone(), remote.clone(), encoders.cloned());
    let models = Arc::new(models.map_err(Failure::failed)?);
    let room = PolicyRoom::new(room_config(config), models.clone());
    let room = Arc::new(room.map_err(|e| Failure::Config(e.to_string()))?);
    room.recall();
    if config.server.embedded_policies {
        embedded::load(&room, config);
    }
    room.resume_trials();
    room.watch();
    let telemetry = Arc::new(Telemetry::start(telemetry_config(config)));
    watch_memory(config, &telemetry, &local);
    let energy = keep_books(config, &telemetry, &local, &metrics);
    if engines.encoder.is_some() || engines.prompt_classifier.is_some() {
        energy.watch_encoder(&telemetry.snapshot());
    }
    let budgets = keep_budgets(config, &telemetry, &energy)?;
    models.keep_books(&energy, &budgets);
    let snapshots: Snapshots = {
        let telemetry = telemetry.clone();
        Arc::new(move || telemetry.snapshot())
    };
    let all = local.iter().map(|t| t.clone() as Arc<dyn Tier>);
    let remote = remote.into_iter();
    let remote = remote.map(|t| Arc::new(StatedTier::new(t, energy.clone())) as Arc<dyn Tier>);
    let all = all.chain(remote).collect();
    let joules_of: JoulesOf = {
        let energy = energy.clone();
        Arc::new(move |job| energy.joules_of(job))
    };
    for (tier, wanted) in local.iter().zip(local_tiers(config)) {
        if energy.is_on() {
            tier.keep_books(receipts(&energy));
        }
        tier.stand_on(device_of(wanted, &telemetry));
    }
    let baselines = keep_baselines(config, &local);
    let limits = cascade_config(config, metrics.clone(), joules_of, baselines.shared());
    let cascade = Cascade::new(room.clone(), all, snapshots.clone(), limits);
    let house = House {
        cascade: Arc::new(cascade),
        local_tiers: local,
        encoder: engines.encoder.clone(),
        policies: room,
        max_component_bytes: config.policies.max_component_bytes as usize,
        snapshots,
        telemetry: telemetry.clone(),
        metrics,
        energy,
        budgets,
        sampling: SamplingDefaults {
            temperature: config.sampling.temperature,
            top_p: config.sampling.top_p,
        },
        door: Door::new(&config.server),
        started: unix_seconds(),
        draining: false.into(),
    };
    if house.door.admin_is_closed() {
        tracing::warn!(
            "the admin API is closed: {} is not loopback and server.admin_token is not set",
            config.server.listen
        );
    }
    Ok((Arc::new(house), telemetry, baselines))
}

pub type Tiers = (Vec<Arc<LocalTier>>, Vec<Arc<dyn Tier>>);

/// The tiers of the configuration over these engines, the local ones apart.
pub fn tiers(config: &Config, engines: &Engines, metrics: &Metrics) -> Result<Tiers, Failure> {
    let mut local = Vec::new();
    let mut remote: Vec<Arc<dyn Tier>> = Vec::new();
    let mut loaded = engines.local.iter();
    for tier in &config.tiers {
        match tier.kind {
            TierKind::Local => {
                let engine = loaded.next().expect("one engine per local tier").handle();
                let info = engine.info();
                let view = TierView {
                    kind: ViewKind::Local,
                    parameters: Some(info.parameters),
                    context_tokens: info.context_tokens as u32,
                    gives_logprobs: true,
                    can_speculate: tier.speculation.is_on(),
                    ..described(tier)
                };
                let wishes = Wishes {
                    max_tokens: tier.max_tokens,
                    system: tier.system.clone(),
                };
                let times = metrics.times_of(&tier.id);
                local.push(Arc::new(LocalTier::new(view, engine, wishes, times)));
            }
            TierKind::Remote => {
                remote.push(Arc::new(RemoteTier::start(remote_config(config, tier)?)))
            }
        }
    }
    Ok((local, remote))
}

/// What the configuration says of a tier.
fn described(tier: &TierConfig) -> TierView {
    let file = tier.path.as_ref().map(|p| p.display().to_string());
    TierView {
        id: tier.id.clone(),
        model: tier.model.clone().or(file).unwrap_or_default(),
        rank: tier.rank,
        quality: tier.quality,
        usd_per_mtok_prompt: tier.usd_per_mtok_prompt,
        usd_per_mtok_output: tier.usd_per_mtok_output,
        joules_per_token: tier.joules_per_token.map(|value| Sample {
            origin: Origin::Modelled,
            ..Sample::measured(value)
        }),
        ..TierView::default()
    }
}

fn remote_config(config: &Config, tier: &TierConfig) -> Result<RemoteConfig, Failure> {
    let key = |name: &String| {
        let missing = || format!("tier {}: the environment has no {name}", tier.id);
        std::env::var(name).map_err(|_| Failure::Config(missing()))
    };
    let template = |file: &Path| {
        let file = config.path(file);
        let wrong = |e: &dyn std::fmt::Display| {
            Failure::Config(format!(
                "tier {}: chat_template {}: {e}",
                tier.id,
                file.display()
            ))
        };
        let source = std::fs::read_to_string(&file).map_err(|e| wrong(&e))?;
        let template = WrittenOut::new(&source).map_err(|e| wrong(&e))?;
        Ok::<_, Failure>(Arc::new(template))
    };
    let url = tier.url.as_deref().unwrap_or_default();
    Ok(RemoteConfig {
        view: TierView {
            kind: ViewKind::Remote,
            context_tokens: tier.context_tokens.unwrap_or(REMOTE_CONTEXT_TOKENS),
            ..described(tier)
        },
        url: url.trim_end_matches('/').to_string(),
        api_key: tier.api_key_env.as_ref().map(key).transpose()?,
        logprobs: tier.logprobs,
        prefill: tier.prefill,
        template: tier.chat_template.as_deref().map(template).transpose()?,
        max_tokens: tier.max_tokens,
        connect_timeout: Duration::from_millis(tier.connect_timeout_ms),
        first_byte_timeout: Duration::from_millis(tier.first_byte_timeout_ms),
        idle_timeout: Duration::from_millis(tier.idle_timeout_ms),
    })
}

pub fn room_config(config: &Config) -> RoomConfig {
    let given = &config.policies;
    let dir = given.dir.clone().unwrap_or_else(|| "policies".into());
    let revisions = given.revisions_file.clone();
    let revisions = revisions.unwrap_or_else(|| "policy-revisions.toml".into());
    RoomConfig {
        dir: Some(config.path(&dir)),
        revisions_file: Some(config.path(&revisions)),
        compiler: CompilerConfig {
            program: own_program(),
            ..given.compiler.clone()
        },
        cache: CacheConfig {
            dir: match &given.cache.dir {
                Some(dir) => Some(config.path(dir)),
                None => cache_root().map(|root| root.join("policies")),
            },
            ..given.cache
        },
        state_dir: given.state_dir.as_ref().map(|d| config.path(d)),
        replay: ReplayConfig {
            dir: given.replay.dir.as_ref().map(|d| config.path(d)),
            ..given.replay.clone()
        },
        record: RecordConfig {
            dir: given.record.dir.as_ref().map(|d| config.path(d)),
            ..given.record.clone()
        },
        ..given.clone()
    }
}

/// This very program, which compiles policies in a process of its own. On Linux by a name
/// that stays right when the file is replaced while the host runs.
fn own_program() -> Option<PathBuf> {
    let own = Path::new("/proc/self/exe");
    match own.exists() {
        true => Some(own.to_path_buf()),
        false => std::env::current_exe().ok(),
    }
}

fn cascade_config(
    config: &Config,
    metrics: Arc<Metrics>,
    joules_of: JoulesOf,
    baselines: Arc<Baselines>,
) -> CascadeConfig {
    let limits = config.cascade;
    CascadeConfig {
        view_bytes_max: limits.view_bytes_max,
        records_max: limits.records_max,
        events_waiting_max: limits.events_waiting_max,
        observer: Some(Arc::new(move |record: &DecisionRecord| {
            metrics.record(record);
            log::request(record);
        })),
        joules_of: Some(joules_of),
        baselines,
    }
}

pub fn telemetry_config(config: &Config) -> homeostat_telemetry::Config {
    let t = &config.telemetry;
    homeostat_telemetry::Config {
        profile: t.profile,
        period_ms: t.period_ms,
        sysfs_root: config.path(&t.sysfs_root),
        procfs_root: config.path(&t.procfs_root),
        nvml: homeostat_telemetry::NvmlLibrary::from_setting(&t.nvml),
        power_cap_watts: t.power_cap_watts,
        ..homeostat_telemetry::Config::default()
    }
}

/// The local ones among the configured tiers, in their order.
fn local_tiers(config: &Config) -> impl Iterator<Item = &TierConfig> {
    config.tiers.iter().filter(|t| t.kind == TierKind::Local)
}

/// What the books say of an answer.
fn receipts(energy: &Arc<Energy>) -> Receipts {
    let energy = energy.clone();
    Box::new(move |job: &str| energy.taken(job))
}

/// The device under a tier, as telemetry sees it for as long as somebody listens.
fn device_of(tier: &TierConfig, telemetry: &Arc<Telemetry>) -> TierDevice {
    let (device, telemetry) = (tier.device, Arc::downgrade(telemetry));
    TierDevice {
        id: device_id(device),
        state: Box::new(move || {
            let state = telemetry.upgrade().map(|telemetry| {
                let ratio_of = |id: &str| telemetry.device_degrade_ratio(id);
                device_state(device, &telemetry.snapshot(), ratio_of)
            });
            state.unwrap_or_default()
        }),
    }
}

/// Tell telemetry how full the KV caches are, and engines what the machine's memory permits,
/// for as long as somebody listens.
fn watch_memory(config: &Config, telemetry: &Arc<Telemetry>, tiers: &[Arc<LocalTier>]) {
    if tiers.is_empty() {
        return;
    }
    let telemetry = Arc::downgrade(telemetry);
    let widest = local_tiers(config).map(|t| t.max_sequences);
    let mut batches = Batches::new(widest.collect());
    let tiers = tiers.to_vec();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(MEMORY_PERIOD);
        loop {
            tick.tick().await;
            let Some(telemetry) = telemetry.upgrade() else {
                return;
            };
            let (mut used, mut all) = (0.0, 0.0);
            for tier in &tiers {
                let blocks = tier.engine().info().kv_blocks as f64;
                used += tier.engine().stats().kv_cache_usage * blocks;
                all += blocks;
            }
            telemetry.set_kv_used_ratio((all > 0.0).then_some((used / all) as f32));
            for (tier, most) in tiers.iter().zip(batches.changed(&telemetry.snapshot())) {
                tier.engine().limit_running(most);
            }
        }
    });
}

/// Book the energy of the local tiers, and tell telemetry what their devices are about to draw,
/// for as long as somebody listens.
fn keep_books(
    config: &Config,
    telemetry: &Arc<Telemetry>,
    tiers: &[Arc<LocalTier>],
    metrics: &Arc<Metrics>,
) -> Arc<Energy> {
    let procfs = config.path(&config.telemetry.procfs_root);
    let energy = Arc::new(Energy::new(&config.energy, &procfs, telemetry.epoch()));
    let snapshot = telemetry.snapshot();
    for (tier, wanted) in tiers.iter().zip(local_tiers(config)) {
        energy.watch(tier.engine(), wanted.device, &snapshot);
    }
    let (telemetry, books) = (Arc::downgrade(telemetry), Arc::downgrade(&energy));
    let metrics = metrics.clone();
    let devices = local_tiers(config).map(|t| t.device);
    let tiers: Vec<_> = tiers.iter().cloned().zip(devices).collect();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(ENERGY_PERIOD);
        let mut told = 0;
        let mut planned = PlannedPower::default();
        loop {
            tick.tick().await;
            let (Some(telemetry), Some(books)) = (telemetry.upgrade(), books.upgrade()) else {
                return;
            };
            let snapshot = telemetry.snapshot();
            let moves = telemetry.energy_moves(told);
            told = moves.last().map_or(told, |moved| moved.sequence);
            let settled = books.tick(&snapshot, &moves);
            settled
                .into_iter()
                .for_each(|joules| metrics.energy(joules));
            let loads = tiers.iter().map(|(tier, device)| TierLoad {
                device: *device,
                runs: tier.engine().stats().num_requests_running > 0,
                work: tier.work_in_hand(),
            });
            let loads: Vec<TierLoad> = loads.collect();
            for (device, watts) in planned.plan(&snapshot, &loads) {
                telemetry.set_planned_watts(&device, watts);
            }
        }
    });
    energy
}

/// Settle budgets and tell telemetry what the host may draw and spend, for as long as somebody
/// listens.
fn keep_budgets(
    config: &Config,
    telemetry: &Arc<Telemetry>,
    energy: &Arc<Energy>,
) -> Result<Arc<Budgets>, Failure> {
    let given = &config.budgets;
    let file = given.spendings_file.as_deref();
    let file = config.path(file.unwrap_or(Path::new("budget-spendings.json")));
    let receipts = energy.is_on().then(|| receipts(energy));
    let now_s = || unix_seconds() as i64;
    let budgets = Budgets::open(given, Some(file), receipts, Box::new(now_s));
    let budgets = Arc::new(budgets.map_err(Failure::Config)?);
    if !given.says_something() {
        return Ok(budgets);
    }
    let settling = Arc::downgrade(&budgets);
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(BUDGETS_PERIOD);
        loop {
            tick.tick().await;
            let Some(budgets) = settling.upgrade() else {
                return;
            };
            budgets.tick();
        }
    });
    let plan = given.power_plan();
    let (telemetry, telling) = (Arc::downgrade(telemetry), Arc::downgrade(&budgets));
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(BUDGETS_TOLD_PERIOD);
        let mut told = None;
        loop {
            tick.tick().await;
            let (Some(telemetry), Some(budgets)) = (telemetry.upgrade(), telling.upgrade()) else {
                return;
            };
            let mut of_host = budgets.of_host();
            of_host.extend(plan.budgets(&telemetry.snapshot(), now_s()));
            if told.as_ref() != Some(&of_host) {
                telemetry.set_budgets(of_host.clone());
                told = Some(of_host);
            }
        }
    });
    Ok(budgets)
}

/// Remember over restarts what is usual for the tiers' tokens, for as long as somebody listens.
fn keep_baselines(config: &Config, local: &[Arc<LocalTier>]) -> Arc<KeptBaselines> {
    let dir = config.policies.state_dir.as_ref();
    let file = dir.map(|dir| config.path(dir).join(BASELINES_FILE));
    let kept = Arc::new(KeptBaselines::open(file, models_behind(config, local)));
    let keeping = Arc::downgrade(&kept);
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(BASELINES_PERIOD);
        loop {
            tick.tick().await;
            let Some(kept) = keeping.upgrade() else {
                return;
            };
            kept.save();
        }
    });
    kept
}

/// Which model each tier has, by the tier's id, in words that change with the model as far as this
/// host can tell. A local one whose file is gone has none.
fn models_behind(config: &Config, local: &[Arc<LocalTier>]) -> HashMap<String, String> {
    let mut local = local.iter();
    let models = config.tiers.iter().filter_map(|tier| {
        let name = described(tier).model;
        let model = match tier.kind {
            TierKind::Local => {
                let tier = local.next().expect("one engine per local tier");
                let info = tier.engine().info();
                local_model(&name, &info.quantization, &info.file).ok()?
            }
            TierKind::Remote => format!("{name} at {}", tier.url.as_deref().unwrap_or_default()),
        };
        Some((tier.id.clone(), model))
    });
    models.collect()
}

/// Serve until a signal comes, then finish what has begun.
async fn run(
    house: Arc<House>,
    listener: TcpListener,
    drain: Duration,
    mut signals: mpsc::Receiver<()>,
) -> Result<(), Failure> {
    let addr = listener.local_addr().map_err(Failure::failed)?;
    let names = house.model_names().join(", ");
    tracing::info!("serving {names} on http://{addr}/v1");
    let app = http::router(house.clone()).into_make_service_with_connect_info::<SocketAddr>();
    // Chunks of a stream are small; without this the kernel would collect them.
    let listener = listener.tap_io(|io| {
        let _ = io.set_nodelay(true);
    });
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = axum::serve(listener, app).with_graceful_shutdown(async move {
        let _ = stopped.await;
    });
    let mut serving = tokio::spawn(serving.into_future());
    signals.recv().await;
    tracing::info!("draining for at most {} s", drain.as_secs());
    house.begin_drain();
    // The receiver lives in the task that is being told.
    let _ = stop.send(());
    tokio::select! {
        ended = &mut serving => {
            ended.map_err(Failure::failed)?.map_err(Failure::failed)?;
        }
        () = tokio::time::sleep(drain) => {
            tracing::warn!("server.drain_seconds are over: what still runs is cut off");
        }
        _ = signals.recv() => {
            tracing::warn!("second signal: what still runs is cut off");
        }
    }
    Ok(())
}

/// One message per SIGTERM or SIGINT.
fn signals() -> std::io::Result<mpsc::Receiver<()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if sender.send(()).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use futures::StreamExt;
    use http_body_util::{BodyExt, Full};

    use super::*;
    use crate::http::testing;

    /// A host with fake tiers on a port of its own.
    async fn started(drain: Duration) -> (String, mpsc::Sender<()>, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, signals) = mpsc::channel(2);
        let house = testing::house(|_| {});
        let served =
            tokio::spawn(async move { run(house, listener, drain, signals).await.unwrap() });
        (url, sender, served)
    }

    async fn stream_of(url: &str, question: &str) -> hyper::Response<hyper::body::Incoming> {
        let client = crate::http_client::http_client(Duration::from_secs(20));
        let body = testing::chat_body(question, r#","stream":true"#);
        let request = hyper::Request::post(format!("{url}/v1/chat/completions"))
            .body(Full::new(body.into()))
            .unwrap();
        client.request(request).await.unwrap()
    }

    #[tokio::test]
    async fn a_draining_host_finishes_what_has_begun_and_takes_nothing_new() {
        let (url, signal, served) = started(Duration::from_secs(600)).await;
        let response = stream_of(&url, "gate").await;
        let mut body = response.into_body().into_data_stream();
        body.next().await.unwrap().unwrap();
        signal.send(()).await.unwrap();
        let addr = url.trim_start_matches("http://").to_string();
        while tokio::net::TcpStream::connect(&addr).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!served.is_finished(), "the stream still runs");
        testing::open_gate();
        let mut rest = Vec::new();
        while let Some(piece) = body.next().await {
            rest.extend_from_slice(&piece.unwrap());
        }
        let rest = String::from_utf8(rest).unwrap();
        assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
        served.await.unwrap();
    }

    #[tokio::test]
    async fn a_drain_ends_when_its_time_is_over_or_at_the_second_signal() {
        for (drain, signals) in [
            (Duration::from_millis(50), 1),
            (Duration::from_secs(600), 2),
        ] {
            let (url, signal, served) = started(drain).await;
            let response = stream_of(&url, "forever").await;
            assert_eq!(response.status(), 200);
            let begun = Instant::now();
            for _ in 0..signals {
                signal.send(()).await.unwrap();
            }
            served.await.unwrap();
            assert!(begun.elapsed() < Duration::from_secs(600));
        }
    }
}
