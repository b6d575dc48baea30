//! `homeostat simulate trace`: what the metabolic router would have decided on a machine that
//! did exist, as its sensors were recorded.
//!
//! The loop is open: whatever the router decides, the recorded machine did what it did. So
//! there are decisions by state and nothing else; it refuses to say what they would have cost
//! or saved. Tiers are the idle ones of the simulated machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use homeostat_hooks::{
    Decision, Message, MetabolicState, Policies, Request, Role, Snapshot, TierView,
};
use homeostat_policy::PolicyRoom;
use homeostat_telemetry::plant::Random;
use homeostat_telemetry::{Provider, Recorder, Sampler, Trace};
use serde::Serialize;
use serde_json::json;

use super::compare::Scene;
use super::machine::TIERS;
use super::{World, compare};
use crate::Failure;

/// Decisions in one state of the machine.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Decided {
    requests: u64,
    /// That begin with the large tier.
    large: u64,
    /// That have a second step.
    two_steps: u64,
    /// Whose first step may guess ahead.
    drafted: u64,
    /// Whose answer is kept short.
    short: u64,
    refused: u64,
}

impl Decided {
    fn add(&mut self, decision: &Decision) {
        self.requests += 1;
        let Decision::Plan(plan) = decision else {
            self.refused += 1;
            return;
        };
        let Some(first) = plan.steps.first() else {
            return;
        };
        self.large += u64::from(first.tier == TIERS[1]);
        self.two_steps += u64::from(plan.steps.len() > 1);
        self.drafted += u64::from(first.max_draft_tokens > 0);
        self.short += u64::from(first.max_tokens.is_some());
    }
}

/// Runs it.
pub fn run(scene: &Scene, world: &World, file: &Path, json: Option<&Path>) -> Result<(), Failure> {
    let wrong = |e: String| Failure::Failed(format!("{}: {e}", file.display()));
    let source = File::open(file).map_err(|e| wrong(e.to_string()))?;
    let trace = Trace::read(BufReader::new(source)).map_err(|e| wrong(e.to_string()))?;
    let (states, seconds) = decide(scene, world, &trace)?;
    if states.is_empty() {
        return Err(wrong(format!(
            "{seconds:.0} s are too short for a request at {} a second",
            world.requests_per_s
        )));
    }
    print(world, &states, seconds);
    println!("{}", scene.validator_in_words());
    for shortcoming in scene.shortcomings() {
        println!("falls short: {shortcoming}");
    }
    let Some(out) = json else { return Ok(()) };
    let named = states
        .iter()
        .map(|(state, decided)| json!({"state": state, "decided": decided}));
    let whole = json!({
        "simulate": "trace",
        "loop": "open: decisions change nothing of what was recorded",
        "seconds": seconds,
        "requests_per_s": world.requests_per_s,
        "scene": scene.as_json(),
        "states": named.collect::<Vec<_>>(),
    });
    crate::bench::write(out, &format!("{whole:#}\n"))
}

type States = BTreeMap<MetabolicState, Decided>;

/// Plays the recording and asks at a fixed rate; also how long it is, s.
fn decide(scene: &Scene, world: &World, trace: &Trace) -> Result<(States, f64), Failure> {
    let replay: Box<dyn Provider> = Box::new(trace.replay());
    let mut sampler = Sampler::new(trace.header.config(), vec![replay], Recorder::default());
    let (room, tiers) = (scene.room(scene.metabolic())?, scene.idle_tiers());
    let mut random = Random::new(world.seed);
    let mut states = States::new();
    let began_ms = trace.ticks.first().map_or(0, |tick| tick.at_ms);
    let between_ms = 1e3 / world.requests_per_s;
    let (mut asked, mut seconds) = (0u32, 0.0);
    for tick in &trace.ticks {
        let snapshot = Arc::new(sampler.tick(tick.at_ms, &tick.inputs()));
        let gone_ms = tick.at_ms.saturating_sub(began_ms) as f64;
        seconds = gone_ms / 1e3;
        while f64::from(asked + 1) * between_ms <= gone_ms {
            asked += 1;
            let request = request(asked, &scene.question(&mut random));
            let decision = ask(&room, request, &snapshot, &tiers)?;
            let state = snapshot.metabolism.state;
            states.entry(state).or_default().add(&decision);
        }
    }
    Ok((states, seconds))
}

fn request(number: u32, question: &str) -> Request {
    Request {
        id: format!("trace-{number}"),
        messages: vec![Message {
            role: Role::User,
            content: question.to_owned(),
        }],
        stream: true,
        ..Request::default()
    }
}

fn ask(
    room: &PolicyRoom,
    request: Request,
    snapshot: &Arc<Snapshot>,
    tiers: &[TierView],
) -> Result<Decision, Failure> {
    let mut session = room.begin(Arc::new(request), Arc::clone(snapshot));
    let classification = session.classify();
    let reply = session.route(&classification.value, tiers);
    match classification.fault.or(reply.fault) {
        Some(fault) => Err(Failure::Failed(format!(
            "a policy failed on a recorded state: {fault}"
        ))),
        None => Ok(reply.value),
    }
}

fn print(world: &World, states: &States, seconds: f64) {
    let rate = world.requests_per_s;
    println!(
        "{seconds:.0} s of a recorded machine, {rate} requests a second; an open loop: no \
         decision changes what was recorded"
    );
    println!(
        "{:<14}{:>10}{:>10}{:>12}{:>10}{:>10}{:>10}",
        "state", "requests", "large", "two steps", "drafts", "short", "refused"
    );
    for (state, decided) in states {
        let share = |count: u64| compare::percent(count as f64, decided.requests as f64);
        println!(
            "{:<14}{:>10}{:>10}{:>12}{:>10}{:>10}{:>10}",
            format!("{state:?}").to_lowercase(),
            decided.requests,
            share(decided.large),
            share(decided.two_steps),
            share(decided.drafted),
            share(decided.short),
            share(decided.refused),
        );
    }
}
