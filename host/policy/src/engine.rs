//! The one wasmtime engine of the room and its clock.
//!
//! One thread ticks once a millisecond for all stores; every store counts its own
//! deadline in these ticks. The counter is never advanced to stop somebody: it is shared,
//! and would stop everybody.
//!
//! The engine refuses what a policy has no use for (threads, 64-bit memories, garbage
//! collection, exceptions, the asynchronous component model), since every feature is a
//! part of the compiler that untrusted bytes can reach.

use std::time::Duration;

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
    Strategy,
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
/// Instances besides those that serve requests: one component is probed at a time, one
/// shadow asked at a time, and one is on its way to being ready.
const SPARE_INSTANCES: u32 = 3;

/// Fuel of one instance on a metered engine, about one unit an instruction. Ten billion are
/// some seconds: a hundred times what the default deadline lets a policy do.
pub(crate) const FUEL_MAX: u64 = 10_000_000_000;

/// An engine with its ticker.
pub(crate) struct PolicyEngine {
    pub engine: Engine,
    /// False when the pool could not be reserved, or was switched off.
    pub pooled: bool,
    /// Whether its code counts fuel.
    pub metered: bool,
}

impl PolicyEngine {
    /// Builds the engine and starts its ticker.
    ///
    /// Where the address space for the pool cannot be reserved (a container with a limit
    /// on virtual memory), instances are allocated one by one, and a warning says so.
    pub fn new(config: &RoomConfig) -> wasmtime::Result<Self> {
        if config.pooling {
            match Engine::new(&engine_config(config, true)) {
                Ok(engine) => return Self::start(engine, true, false),
                Err(error) => tracing::warn!(
                    "no pool for policy instances ({error:#}); they are allocated one by one, \
                     which is slower. Set policies.pooling = false to silence this"
                ),
            }
        }
        Self::start(Engine::new(&engine_config(config, false))?, false, false)
    }

    /// An engine whose code counts fuel: for cost cards and replays, never for requests, since
    /// counting slows a guest down. It allocates every instance anew, so that the pages which
    /// one touches can be counted; each is given its fuel ([`crate::call::Policy::fuel`]),
    /// without which it stops at once. With a deadline beyond that fuel the same component
    /// with the same arguments and answers ends at the same instruction, whatever else the
    /// machine does.
    pub fn metered(config: &RoomConfig) -> wasmtime::Result<Self> {
        let mut metered = code_config(true);
        metered.max_wasm_stack(config.stack_bytes);
        Self::start(Engine::new(&metered)?, false, true)
    }

    fn start(engine: Engine, pooled: bool, metered: bool) -> wasmtime::Result<Self> {
        let weak = engine.weak();
        std::thread::Builder::new()
            .name("policy-ticker".into())
            .spawn(move || {
                // The thread ends with the last user of the engine.
                while let Some(engine) = weak.upgrade() {
                    engine.increment_epoch();
                    drop(engine);
                    std::thread::sleep(TICK);
                }
            })?;
        Ok(Self {
            engine,
            pooled,
            metered,
        })
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

fn engine_config(room: &RoomConfig, pooling: bool) -> Config {
    let mut config = code_config(false);
    config.max_wasm_stack(room.stack_bytes);
    if pooling {
        let live = room.instances + room.ready_instances + SPARE_INSTANCES;
        // Where the kernel can tell which pages were touched (Linux 6.7), these are
        // cleared in place: 14 µs for a fresh instance and its call, against 24 µs for
        // giving them back. Where it cannot, clearing in place means clearing all of
        // them, which is slower than giving them back.
        let scan = PoolingAllocationConfig::is_pagemap_scan_available();
        let keep_resident = if scan { room.keep_resident_bytes } else { 0 };
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
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    }
    config
}
