//! The rival: the same component and the same records on wasmtime with a pool, and nothing
//! of ours around the call; and the same once more with everything that makes a policy safe
//! to run (deadlines, limits of memory, tables, handles and copied bytes), so that the price
//! of limits and the price of the room stand apart.

use std::sync::Arc;
use std::time::Instant;

use homeostat_hooks::{Hook, Request};
use homeostat_policy::RoomConfig;
use homeostat_tests::scene;
use wasmtime::component::{Component, InstancePre, Linker, Resource};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store,
    StoreLimits, StoreLimitsBuilder,
};

use crate::results::{Parts, Results};
use crate::{Subject, measure, nanos};

mod contract {
    #![allow(
        unsafe_code,
        reason = "generated: a typed call skips the type check that `load` has made"
    )]
    #![allow(dead_code, clippy::all, reason = "generated for the whole world")]

    wasmtime::component::bindgen!({ path: "../wit", world: "full-policy" });
}

use contract::exports::homeostat::policy::{classifier, router, validator};
use contract::homeostat::policy::types;
use contract::wasi::config::store::Error as ConfigError;
use contract::wasi::keyvalue::store::Error as KeyvalueError;

/// What a call is asked about, in the contract's records.
struct Arguments {
    request: types::Request,
    snapshot: types::Snapshot,
    classification: types::Classification,
    tiers: Vec<types::Tier>,
    answer: types::Answer,
}

pub fn through_wasmtime(
    subject: &Subject,
    request: &Arc<Request>,
    results: &mut Results,
) -> wasmtime::Result<()> {
    let arguments = arguments(request);
    for (limits, ways) in [
        (false, ["bare, fresh", "bare, pinned"]),
        (true, ["limits, fresh", "limits, pinned"]),
    ] {
        let engine = engine(limits)?;
        let component = Component::from_binary(&engine, &subject.bytes)?;
        component.initialize_copy_on_write_image()?;
        let mut linker: Linker<StoreLimits> = Linker::new(&engine);
        linker.define_unknown_imports_as_traps(&component)?;
        // The imports that default policies call: no key is set, and nothing is kept.
        linker.allow_shadowing(true);
        linker
            .instance("wasi:config/store@0.2.0-rc.1")?
            .func_wrap("get", |_, (_,): (String,)| {
                Ok((Ok::<Option<String>, ConfigError>(None),))
            })?;
        linker
            .instance("wasi:keyvalue/store@0.2.0-draft")?
            .func_wrap("open", |_, (_,): (String,)| {
                Ok((Err::<Resource<()>, _>(KeyvalueError::AccessDenied),))
            })?;
        let bare = Bare {
            pre: linker.instantiate_pre(&component)?,
            limits,
            calls: subject.calls(),
        };
        let measured = match subject.hook {
            Hook::Classify => bare.classify(&arguments)?,
            Hook::Route => bare.route(&arguments)?,
            Hook::Validate => bare.validate(&arguments)?,
        };
        results.add(subject.row(ways[0], measured.fresh));
        results.add(subject.row(ways[1], measured.pinned));
        if !limits {
            results
                .parts
                .push(Parts::new(&subject.name, subject.hook, measured.parts));
        }
    }
    Ok(())
}

/// With limits: the compiler's settings of the room, which make deadlines possible.
fn engine(limits: bool) -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    let mut pool = PoolingAllocationConfig::new();
    // As the room does: a rival that clears memory the slow way is no rival.
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        let bytes = RoomConfig::default().keep_resident_max_bytes;
        pool.pagemap_scan(Enabled::Auto)
            .linear_memory_keep_resident(bytes)
            .table_keep_resident(bytes);
    }
    config
        .concurrency_support(false)
        .epoch_interruption(limits)
        .cranelift_nan_canonicalization(limits)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config)
}

/// What the five parts of a fresh call are, in order.
pub const PARTS: [&str; 5] = ["store", "instantiate", "find the hook", "call", "drop"];

struct Measured {
    fresh: Vec<u64>,
    pinned: Vec<u64>,
    parts: [Vec<u64>; 5],
}

struct Bare {
    pre: InstancePre<StoreLimits>,
    limits: bool,
    calls: usize,
}

impl Bare {
    fn store(&self) -> Store<StoreLimits> {
        let limits = RoomConfig::default().limits;
        let memory = usize::try_from(limits.memory_bytes).unwrap_or(usize::MAX);
        let mut store = Store::new(
            self.pre.engine(),
            StoreLimitsBuilder::new().memory_size(memory).build(),
        );
        if self.limits {
            store.limiter(|limits| limits);
            store.set_hostcall_fuel(1 << 20);
            store.set_max_component_handles(2048);
            store.set_epoch_deadline(100);
        }
        store
    }
}

/// Fresh and pinned times of one hook. A macro, since the three guests share no trait.
macro_rules! hook {
    ($name:ident, $interface:ident, |$guest:ident, $store:ident, $arguments:ident| $call:expr) => {
        impl Bare {
            fn $name(&self, $arguments: &Arguments) -> wasmtime::Result<Measured> {
                let indices = $interface::GuestIndices::new(&self.pre)?;
                let mut parts: [Vec<u64>; 5] = Default::default();
                let fresh = measure(self.calls, || {
                    let mut at = [Instant::now(); 6];
                    let mut store = self.store();
                    at[1] = Instant::now();
                    let instance = self.pre.instantiate(&mut store).expect("an instance");
                    at[2] = Instant::now();
                    let $guest = indices.load(&mut store, &instance).expect("a guest");
                    at[3] = Instant::now();
                    let $store = &mut store;
                    $call.expect("a call").expect("an answer");
                    at[4] = Instant::now();
                    drop(store);
                    at[5] = Instant::now();
                    for (n, times) in parts.iter_mut().enumerate() {
                        times.push(nanos(at[n + 1] - at[n]));
                    }
                });
                let mut store = self.store();
                let instance = self.pre.instantiate(&mut store)?;
                let $guest = indices.load(&mut store, &instance)?;
                let pinned = measure(self.calls, || {
                    let $store = &mut store;
                    if self.limits {
                        $store.set_epoch_deadline(100);
                    }
                    $call.expect("a call").expect("an answer");
                });
                Ok(Measured {
                    fresh,
                    pinned,
                    parts,
                })
            }
        }
    };
}

hook!(classify, classifier, |guest, store, a| guest.call_classify(
    store,
    &a.request,
    &a.snapshot
));
hook!(route, router, |guest, store, a| guest.call_route(
    store,
    &a.request,
    &a.classification,
    &a.tiers,
    &a.snapshot
));
hook!(validate, validator, |guest, store, a| guest.call_validate(
    store,
    &a.request,
    &a.answer,
    &a.snapshot
));

fn arguments(asked: &Request) -> Arguments {
    let answer = scene::answer();
    Arguments {
        request: request(asked),
        snapshot: snapshot(),
        classification: types::Classification {
            p_simple: 1.0 / 3.0,
            p_medium: 1.0 / 3.0,
            p_complex: 1.0 / 3.0,
            task: types::Task::Other,
            dimensions: Vec::new(),
            confidence: 0.0,
            attributes: Vec::new(),
        },
        tiers: scene::tiers().into_iter().map(tier).collect(),
        answer: types::Answer {
            step: answer.step,
            steps_left: answer.steps_left,
            tier: answer.tier,
            text: answer.text,
            finish: types::Finish::Stop,
            logprobs: answer.logprobs,
            accept_threshold: answer.accept_threshold,
            attributes: Vec::new(),
        },
    }
}

fn request(asked: &Request) -> types::Request {
    let message = |m: &homeostat_hooks::Message| types::Message {
        role: types::Role::User,
        content: m.content.clone(),
    };
    types::Request {
        id: asked.id.clone(),
        endpoint: types::Endpoint::Chat,
        model: asked.model.clone(),
        messages: asked.messages.iter().map(message).collect(),
        cut_bytes: 0,
        max_tokens: None,
        temperature: 0.0,
        response_format: types::ResponseFormat::Text,
        stream: false,
        tenant: None,
        deadline_ms: None,
        attributes: Vec::new(),
    }
}

fn tier(tier: homeostat_hooks::TierView) -> types::Tier {
    types::Tier {
        id: tier.id,
        kind: types::TierKind::Local,
        model: tier.model,
        rank: tier.rank,
        quality: tier.quality,
        parameters: None,
        context_tokens: tier.context_tokens,
        ready: true,
        num_requests_running: 0,
        num_requests_waiting: 0,
        ttft_ms: None,
        tpot_ms: None,
        joules_per_token: None,
        usd_per_mtok_prompt: None,
        usd_per_mtok_output: None,
        can_speculate: false,
        gives_logprobs: false,
        attributes: Vec::new(),
    }
}

fn snapshot() -> types::Snapshot {
    types::Snapshot {
        sequence: 0,
        monotonic_ms: 0,
        profile: types::Profile::Edge,
        devices: Vec::new(),
        pressure: types::Pressure {
            cpu_some_ratio: None,
            memory_some_ratio: None,
            memory_full_ratio: None,
            io_some_ratio: None,
            memory_used_bytes: None,
            memory_limit_bytes: None,
            swap_used_bytes: None,
            kv_used_ratio: None,
        },
        supply: None,
        budgets: Vec::new(),
        metabolism: types::Metabolism {
            state: types::MetabolicState::Nominal,
            causes: types::Cause::empty(),
            risk: 0.0,
            degrade_ratio: 0.0,
            speculation: types::SpeculationHint::Neutral,
            since_ms: 0,
        },
        simulated: false,
        attributes: Vec::new(),
    }
}
