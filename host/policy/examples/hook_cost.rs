//! What does one hook call cost, and how much of it is wasmtime?
//!
//! `cargo run --release -p homeostat-policy --example hook_cost -- policy.wasm [calls]`
//!
//! Prints p50 and p99 of a call on a fresh instance and on a pinned one, through the room
//! (limits, checks, statistics) and on bare wasmtime (same engine settings that matter,
//! same typed call, nothing around it).

use std::sync::Arc;
use std::time::{Duration, Instant};

use homeostat_hooks::{
    Answer, Classification, Decision, GenerateOptions, Generated, Hook, Message, ModelError,
    Models, Policies, Request, Role, Session, Snapshot, TierView,
};
use homeostat_policy::{Grant, Offer, PolicyOptions, PolicyRoom, RoomConfig};

struct NoModels;

impl Models for NoModels {
    fn names(&self) -> Vec<String> {
        Vec::new()
    }
    fn info(&self, name: &str) -> Result<TierView, ModelError> {
        Err(none(name))
    }
    fn count_tokens(&self, name: &str, _: &str) -> Result<u32, ModelError> {
        Err(none(name))
    }
    fn embed(&self, name: &str, _: &str, _: u32) -> Result<Vec<f32>, ModelError> {
        Err(none(name))
    }
    fn score(&self, name: &str, _: &str, _: &str, _: u32) -> Result<Vec<f32>, ModelError> {
        Err(none(name))
    }
    fn generate(
        &self,
        name: &str,
        _: &str,
        _: &GenerateOptions,
        _: u32,
    ) -> Result<Generated, ModelError> {
        Err(none(name))
    }
}

fn none(name: &str) -> ModelError {
    ModelError::Unavailable(format!("no model {name}"))
}

fn request() -> Arc<Request> {
    Arc::new(Request {
        id: "bench".into(),
        model: "auto".into(),
        messages: vec![
            Message {
                role: Role::System,
                content: "You are a helpful assistant.".into(),
            },
            Message {
                role: Role::User,
                content: "Explain in two sentences why the sky is blue.".into(),
            },
        ],
        max_tokens: Some(128),
        ..Request::default()
    })
}

fn tiers() -> Vec<TierView> {
    ["small", "large"]
        .iter()
        .zip(0..)
        .map(|(id, rank)| TierView {
            id: (*id).into(),
            rank,
            ready: true,
            quality: (0.9, 0.6, 0.3),
            context_tokens: 2048,
            ..TierView::default()
        })
        .collect()
}

fn answer() -> Answer {
    Answer {
        tier: "small".into(),
        text: "Air scatters short wavelengths more than long ones. Blue light therefore \
               reaches the eye from all directions."
            .into(),
        logprobs: vec![-0.4; 24],
        accept_threshold: 0.5,
        ..Answer::default()
    }
}

/// One hook call on a session; panics when a fallback answered, since that is no cost of
/// the component.
fn ask(session: &mut dyn Session, hook: Hook, tiers: &[TierView], answer: &Answer) {
    let fault = match hook {
        Hook::Classify => session.classify().fault,
        Hook::Route => session.route(&Classification::default(), tiers).fault,
        Hook::Validate => session.validate(answer).fault,
    };
    assert_eq!(fault, None, "{}", hook.as_str());
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize].as_nanos() as f64 / 1e3;
    println!(
        "{what:<44} p50 {:>9.2} µs   p99 {:>9.2} µs",
        at(0.50),
        at(0.99)
    );
}

fn measure(calls: usize, mut one: impl FnMut()) -> Vec<Duration> {
    for _ in 0..calls / 10 {
        one();
    }
    (0..calls)
        .map(|_| {
            let started = Instant::now();
            one();
            started.elapsed()
        })
        .collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: hook_cost policy.wasm [calls]")?;
    let calls: usize = args.next().map_or(Ok(5000), |n| n.parse())?;
    let bytes = std::fs::read(&path)?;

    let room = PolicyRoom::new(RoomConfig::default(), Arc::new(NoModels))?;
    let report = room.put(Offer {
        name: "bench".into(),
        bytes: bytes.clone(),
        options: PolicyOptions {
            grants: Some(vec![Grant::Models, Grant::Keyvalue, Grant::Config]),
            ..PolicyOptions::default()
        },
        ..Offer::default()
    })?;
    println!(
        "{path}: {} bytes, compiled in {:.1} ms, {} KiB of memory, swapped in {} µs",
        report.size_bytes,
        report.compile_micros as f64 / 1e3,
        report.memory_bytes >> 10,
        report.swap_micros.unwrap_or(0)
    );
    let (request, snapshot) = (request(), Arc::new(Snapshot::default()));
    let (tiers, answer) = (tiers(), answer());
    let begin = || room.begin(Arc::clone(&request), Arc::clone(&snapshot));
    for hook in &report.hooks {
        let word = hook.as_str();
        let fresh = measure(calls, || ask(&mut *begin(), *hook, &tiers, &answer));
        print(&format!("{word}: room, fresh instance and call"), fresh);
        // Only a policy that validates is kept between calls.
        if report.hooks.contains(&Hook::Validate) {
            let mut session = begin();
            ask(&mut *session, *hook, &tiers, &answer);
            let pinned = measure(calls, || ask(&mut *session, *hook, &tiers, &answer));
            print(&format!("{word}: room, pinned instance"), pinned);
        }
    }
    bare::measure_all(&bytes, &report.hooks, calls)?;
    if let Decision::Plan(plan) = begin().route(&Classification::default(), &tiers).value {
        println!("(routed by {})", plan.reason);
    }
    Ok(())
}

/// The same calls with nothing of ours around them.
mod bare {
    #![allow(
        unsafe_code,
        reason = "generated: a typed call skips the type check that `load` has made"
    )]
    #![allow(dead_code, clippy::all, reason = "generated for the whole world")]

    use super::*;
    use wasmtime::component::{Component, Linker};
    use wasmtime::{
        Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store,
    };

    wasmtime::component::bindgen!({ path: "../../wit", world: "full-policy" });

    use exports::homeostat::policy::classifier;
    use exports::homeostat::policy::router;
    use exports::homeostat::policy::validator;
    use homeostat::policy::types;

    fn engine() -> wasmtime::Result<Engine> {
        let mut config = Config::new();
        let mut pool = PoolingAllocationConfig::new();
        if PoolingAllocationConfig::is_pagemap_scan_available() {
            pool.pagemap_scan(Enabled::Auto)
                .linear_memory_keep_resident(4 << 20)
                .table_keep_resident(4 << 20);
        }
        config
            .epoch_interruption(true)
            .concurrency_support(false)
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        Engine::new(&config)
    }

    fn request() -> types::Request {
        let ours = super::request();
        types::Request {
            id: ours.id.clone(),
            endpoint: types::Endpoint::Chat,
            model: ours.model.clone(),
            messages: ours
                .messages
                .iter()
                .map(|m| types::Message {
                    role: types::Role::User,
                    content: m.content.clone(),
                })
                .collect(),
            cut_bytes: 0,
            max_tokens: ours.max_tokens,
            temperature: 0.0,
            response_format: types::ResponseFormat::Text,
            stream: false,
            tenant: None,
            deadline_ms: None,
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

    fn classification() -> types::Classification {
        types::Classification {
            p_simple: 0.5,
            p_medium: 0.25,
            p_complex: 0.25,
            task: types::Task::Other,
            dimensions: Vec::new(),
            confidence: 0.0,
            attributes: Vec::new(),
        }
    }

    fn tiers() -> Vec<types::Tier> {
        super::tiers()
            .into_iter()
            .map(|t| types::Tier {
                id: t.id,
                kind: types::TierKind::Local,
                model: t.model,
                rank: t.rank,
                quality: t.quality,
                parameters: None,
                context_tokens: t.context_tokens,
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
            })
            .collect()
    }

    fn answer() -> types::Answer {
        let ours = super::answer();
        types::Answer {
            step: 0,
            steps_left: 0,
            tier: ours.tier,
            text: ours.text,
            finish: types::Finish::Stop,
            logprobs: ours.logprobs,
            accept_threshold: ours.accept_threshold,
            attributes: Vec::new(),
        }
    }

    pub fn measure_all(
        bytes: &[u8],
        hooks: &[Hook],
        calls: usize,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let engine = engine()?;
        let component = Component::from_binary(&engine, bytes)?;
        let mut linker: Linker<()> = Linker::new(&engine);
        linker.define_unknown_imports_as_traps(&component)?;
        let pre = linker.instantiate_pre(&component)?;
        let (request, snapshot) = (request(), snapshot());
        let store = || {
            let mut store = Store::new(&engine, ());
            store.set_epoch_deadline(u64::MAX / 2);
            store
        };
        // One macro for three hooks, since their guests share no trait.
        macro_rules! bare {
            ($name:expr, $indices:ty, |$guest:ident, $store:ident| $call:expr) => {{
                let indices = <$indices>::new(&pre)?;
                let mut s = store();
                let instance = pre.instantiate(&mut s)?;
                let $guest = indices.load(&mut s, &instance)?;
                let $store = &mut s;
                if let Err(error) = $call {
                    println!("{}: not measured bare: {}", $name, error.root_cause());
                    continue;
                }
                let fresh = measure(calls, || {
                    let mut s = store();
                    let instance = pre.instantiate(&mut s).expect("an instance");
                    let $guest = indices.load(&mut s, &instance).expect("a guest");
                    let $store = &mut s;
                    $call.expect("a call").expect("an answer");
                });
                print(&format!("{}: bare wasmtime, fresh", $name), fresh);
                let mut s = store();
                let instance = pre.instantiate(&mut s)?;
                let $guest = indices.load(&mut s, &instance)?;
                let pinned = measure(calls, || {
                    let $store = &mut s;
                    $call.expect("a call").expect("an answer");
                });
                print(&format!("{}: bare wasmtime, pinned", $name), pinned);
            }};
        }
        for hook in hooks {
            let word = hook.as_str();
            match hook {
                Hook::Classify => bare!(word, classifier::GuestIndices, |g, s| g
                    .call_classify(s, &request, &snapshot)),
                Hook::Route => bare!(word, router::GuestIndices, |g, s| g.call_route(
                    s,
                    &request,
                    &classification(),
                    &tiers(),
                    &snapshot
                )),
                Hook::Validate => bare!(word, validator::GuestIndices, |g, s| g.call_validate(
                    s,
                    &request,
                    &answer(),
                    &snapshot
                )),
            }
        }
        Ok(())
    }
}
