//! The rival: the same component and the same records on wasmtime with a pool, and
//! nothing of ours around the call.

use homeostat_hooks::Hook;
use homeostat_policy::RoomConfig;
use homeostat_tests::scene;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store,
};

use crate::results::{Results, Row};
use crate::{Asked, Subject, measure};

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
    asked: &Asked,
    results: &mut Results,
) -> wasmtime::Result<()> {
    let engine = engine()?;
    let component = Component::from_binary(&engine, &subject.bytes)?;
    let mut linker: Linker<()> = Linker::new(&engine);
    linker.define_unknown_imports_as_traps(&component)?;
    // The one import that a default policy calls: no key is set.
    linker.allow_shadowing(true);
    linker
        .instance("wasi:config/store@0.2.0-rc.1")?
        .func_wrap("get", |_, (_,): (String,)| {
            Ok((Ok::<Option<String>, ConfigError>(None),))
        })?;
    let pre = linker.instantiate_pre(&component)?;
    let arguments = arguments(asked);
    let (fresh, pinned) = match subject.hook {
        Hook::Classify => classify(&pre, &arguments)?,
        Hook::Route => route(&pre, &arguments)?,
        Hook::Validate => validate(&pre, &arguments)?,
    };
    for (way, nanos) in [("bare, fresh", fresh), ("bare, pinned", pinned)] {
        results.add(Row::new(&subject.name, subject.hook.as_str(), way, nanos));
    }
    Ok(())
}

fn engine() -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    let mut pool = PoolingAllocationConfig::new();
    // As the room does: a rival that clears memory the slow way is no rival.
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        let bytes = RoomConfig::default().keep_resident_bytes;
        pool.pagemap_scan(Enabled::Auto)
            .linear_memory_keep_resident(bytes)
            .table_keep_resident(bytes);
    }
    config
        .concurrency_support(false)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config)
}

/// Fresh and pinned times of one hook. A macro, since the three guests share no trait.
macro_rules! hook {
    ($name:ident, $interface:ident, |$guest:ident, $store:ident, $arguments:ident| $call:expr) => {
        fn $name(
            pre: &InstancePre<()>,
            $arguments: &Arguments,
        ) -> wasmtime::Result<(Vec<u64>, Vec<u64>)> {
            let indices = $interface::GuestIndices::new(pre)?;
            let make = || -> wasmtime::Result<(Store<()>, $interface::Guest)> {
                let mut store = Store::new(pre.engine(), ());
                let instance = pre.instantiate(&mut store)?;
                let guest = indices.load(&mut store, &instance)?;
                Ok((store, guest))
            };
            let fresh = measure(|| {
                let (mut store, $guest) = make().expect("an instance");
                let $store = &mut store;
                $call.expect("a call").expect("an answer");
            });
            let (mut store, $guest) = make()?;
            let pinned = measure(|| {
                let $store = &mut store;
                $call.expect("a call").expect("an answer");
            });
            Ok((fresh, pinned))
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

fn arguments(asked: &Asked) -> Arguments {
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

fn request(asked: &Asked) -> types::Request {
    let message = |m: &homeostat_hooks::Message| types::Message {
        role: types::Role::User,
        content: m.content.clone(),
    };
    types::Request {
        id: asked.request.id.clone(),
        endpoint: types::Endpoint::Chat,
        model: asked.request.model.clone(),
        messages: asked.request.messages.iter().map(message).collect(),
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
