//! The wasmtime engines of the room and their clock.
//!
//! One thread ticks once a millisecond for all stores; every store counts its own
//! deadline in these ticks. The counter is never advanced to stop somebody: it is shared,
//! and would stop everybody.
//!
//! A pool is fixed when its engine is made, and components differ: a Rust policy touches some
//! pages of its slot, CPython some thousand. So there is an engine for the small ones, and
//! one for each larger size that some component turns out to need.
//!
//! The engine refuses what a policy has no use for (threads, 64-bit memories, garbage
//! collection, exceptions, the asynchronous component model), since every feature is a
//! part of the compiler that untrusted bytes can reach.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use wasmtime::{
    Config, Enabled, Engine, EngineWeak, InstanceAllocationStrategy, OptLevel,
    PoolingAllocationConfig, Strategy,
};

use crate::config::RoomConfig;

/// One tick of the deadline clock.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// Memories that one component may have: its own, and those of an adapter or two.
pub(crate) const MEMORIES_MAX: u32 = 4;
/// Tables that one component may have; dynamically linked Python has several.
pub(crate) const TABLES_MAX: u32 = 16;
/// Core instances in one component; dynamically linked Python has about 60.
const CORE_INSTANCES_MAX: u32 = 128;
/// Most stack of a guest: half of what threads have by default, and as much is left for the
/// host below it. A guest that recurses further than its thread would end the process.
pub(crate) const STACK_BYTES_MAX: usize = 1 << 20;
/// Instances besides those that serve requests: one component is probed at a time, one
/// shadow asked at a time, and one is on its way to being ready.
const SPARE_INSTANCES: u32 = 3;

/// Fuel of one instance on a metered engine, about one unit an instruction. Ten billion are
/// some seconds: a hundred times what the default deadline lets a policy do.
pub(crate) const FUEL_MAX: u64 = 10_000_000_000;

/// An engine. Clones are the same one.
#[derive(Clone)]
pub(crate) struct PolicyEngine {
    pub engine: Engine,
    /// False when the pool could not be reserved, or was switched off.
    pub pooled: bool,
    /// Whether its code counts fuel.
    pub metered: bool,
    /// Bytes of a used slot of the pool that are cleared in place; 0 where the kernel cannot
    /// tell which were touched.
    pub keep_resident: usize,
}

impl PolicyEngine {
    /// An engine whose code counts fuel: for cost cards and replays, never for requests, since
    /// counting slows a guest down. It allocates every instance anew, so that the pages which
    /// one touches can be counted; each is given its fuel ([`crate::call::Policy::fuel`]),
    /// without which it stops at once. With a deadline beyond that fuel the same component
    /// with the same arguments and answers ends at the same instruction, whatever else the
    /// machine does.
    pub fn metered(config: &RoomConfig) -> wasmtime::Result<Self> {
        let mut metered = code_config(true);
        metered.max_wasm_stack(config.stack_bytes);
        let engine = Engine::new(&metered)?;
        Ticker::default().tick(&engine)?;
        Ok(Self {
            engine,
            pooled: false,
            metered: true,
            keep_resident: 0,
        })
    }
}

/// The engines of a room. They run the same code and differ in their pools: a component that
/// touches more than the first one keeps resident is served by one that keeps as much as it
/// needs ([`RoomConfig::keep_resident_max_bytes`]). Components with the same needs share one,
/// and it goes with the last of them.
pub(crate) struct Engines {
    first: PolicyEngine,
    larger: Mutex<Vec<(usize, EngineWeak)>>,
    ticker: Ticker,
}

impl Engines {
    /// Builds the first engine and starts the clock.
    ///
    /// Where the address space for the pool cannot be reserved (a container with a limit
    /// on virtual memory), instances are allocated one by one, and a warning says so.
    pub fn new(config: &RoomConfig) -> wasmtime::Result<Self> {
        let ticker = Ticker::default();
        let keep_resident = in_place(config.keep_resident_bytes);
        let pool = config.pooling.then(|| pool(config, keep_resident));
        let engine = match pool.map(|pool| Engine::new(&engine_config(config, Some(pool)))) {
            Some(Ok(engine)) => Some(engine),
            Some(Err(error)) => {
                tracing::warn!(
                    "no pool for policy instances ({error:#}); they are allocated one by one, \
                     which is slower. Set policies.pooling = false to silence this"
                );
                None
            }
            None => None,
        };
        let pooled = engine.is_some();
        let engine = match engine {
            Some(engine) => engine,
            None => Engine::new(&engine_config(config, None))?,
        };
        ticker.tick(&engine)?;
        Ok(Self {
            first: PolicyEngine {
                engine,
                pooled,
                metered: false,
                keep_resident,
            },
            larger: Mutex::default(),
            ticker,
        })
    }

    /// The one that every component meets first.
    pub fn first(&self) -> &PolicyEngine {
        &self.first
    }

    /// One that keeps this much of a slot resident, within what the configuration allows;
    /// `None` where that is no more than the first one keeps, or there is no room for its pool.
    pub fn keeping(&self, config: &RoomConfig, bytes: u64) -> Option<PolicyEngine> {
        let most = config.keep_resident_max_bytes;
        let wanted = usize::try_from(bytes).unwrap_or(most).next_power_of_two();
        let keep_resident = in_place(wanted.min(most));
        if !self.first.pooled || keep_resident <= self.first.keep_resident {
            return None;
        }
        let mut larger = self.larger.lock().unwrap_or_else(PoisonError::into_inner);
        larger.retain(|(_, engine)| engine.upgrade().is_some());
        let known = larger.iter().find(|(kept, _)| *kept == keep_resident);
        let engine = match known.and_then(|(_, engine)| engine.upgrade()) {
            Some(engine) => engine,
            None => {
                let pool = pool(config, keep_resident);
                let made = Engine::new(&engine_config(config, Some(pool))).and_then(|engine| {
                    self.ticker.tick(&engine)?;
                    Ok(engine)
                });
                match made {
                    Ok(engine) => {
                        larger.push((keep_resident, engine.weak()));
                        engine
                    }
                    Err(error) => {
                        tracing::warn!("no pool that keeps {keep_resident} bytes: {error:#}");
                        return None;
                    }
                }
            }
        };
        Some(PolicyEngine {
            engine,
            keep_resident,
            ..self.first
        })
    }
}

/// One thread that ticks for several engines; it ends with the last user of the last of them.
#[derive(Default)]
struct Ticker(Arc<Mutex<Vec<EngineWeak>>>);

impl Ticker {
    fn tick(&self, engine: &Engine) -> wasmtime::Result<()> {
        let mut engines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        engines.push(engine.weak());
        if engines.len() > 1 {
            return Ok(());
        }
        let all = Arc::clone(&self.0);
        std::thread::Builder::new()
            .name("policy-ticker".into())
            .spawn(move || {
                loop {
                    std::thread::sleep(TICK);
                    let mut engines = all.lock().unwrap_or_else(PoisonError::into_inner);
                    engines.retain(|engine| match engine.upgrade() {
                        Some(engine) => {
                            engine.increment_epoch();
                            true
                        }
                        None => false,
                    });
                    if engines.is_empty() {
                        return;
                    }
                }
            })?;
        Ok(())
    }
}

/// Everything that shapes machine code, and nothing else: the process that compiles knows
/// this and no more of the configuration.
pub(crate) fn code_config(metered: bool) -> Config {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        // NaN bits must not depend on the machine, or a replay could differ.
        .cranelift_nan_canonicalization(true)
        // Compilation takes at most one core from the requests that are being served.
        .parallel_compilation(false)
        .epoch_interruption(true)
        .consume_fuel(metered)
        .wasm_component_model(true)
        .concurrency_support(false)
        .wasm_memory64(false)
        .wasm_relaxed_simd(true)
        .relaxed_simd_deterministic(true);
    config
}

fn engine_config(room: &RoomConfig, pool: Option<PoolingAllocationConfig>) -> Config {
    let mut config = code_config(false);
    config.max_wasm_stack(room.stack_bytes);
    if let Some(pool) = pool {
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    }
    config
}

/// Where the kernel can tell which pages were touched (Linux 6.7), these are cleared in place:
/// 14 µs for a fresh instance and its call, against 24 µs for giving them back. Where it
/// cannot, clearing in place means clearing all of them, which is slower than giving them
/// back.
fn in_place(keep_resident: usize) -> usize {
    match PoolingAllocationConfig::is_pagemap_scan_available() {
        true => keep_resident,
        false => 0,
    }
}

fn pool(room: &RoomConfig, keep_resident: usize) -> PoolingAllocationConfig {
    let live = room.instances + room.ready_instances + SPARE_INSTANCES;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(live)
        .total_core_instances(live.saturating_mul(CORE_INSTANCES_MAX))
        .max_core_instances_per_component(CORE_INSTANCES_MAX)
        .total_memories(live * MEMORIES_MAX)
        .max_memories_per_component(MEMORIES_MAX)
        .total_tables(live * TABLES_MAX)
        .max_tables_per_component(TABLES_MAX)
        .max_tables_per_module(TABLES_MAX)
        .max_memories_per_module(MEMORIES_MAX)
        // The meter of each store limits what is used; the pool only reserves.
        .max_memory_size(1 << 32)
        .table_elements(room.limits.table_elements as usize)
        .max_component_instance_size(4 << 20)
        .max_core_instance_size(4 << 20)
        .pagemap_scan(Enabled::Auto)
        .linear_memory_keep_resident(keep_resident)
        .table_keep_resident(keep_resident);
    pool
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_with_the_same_needs_share_an_engine_that_is_known_once() {
        let config = RoomConfig {
            instances: 2,
            ..RoomConfig::default()
        };
        let engines = Engines::new(&config).unwrap();
        let needs = 2 * config.keep_resident_bytes as u64;
        let shared: Vec<_> = (0..3).map(|_| engines.keeping(&config, needs)).collect();
        let known = engines.larger.lock().unwrap().len();
        // Where the kernel cannot tell touched pages there is no larger pool.
        let clears = PoolingAllocationConfig::is_pagemap_scan_available();
        assert_eq!(known, usize::from(clears));
        assert!(shared.iter().all(|engine| engine.is_some() == clears));
    }
}
