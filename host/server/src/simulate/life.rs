//! One day of one host: the server's cascade over simulated tiers, in virtual time.
//!
//! The clock is tokio's, paused: it moves only when nothing is left to do at a moment, and a
//! call into a policy is something to do. So a day takes as long as its decisions take, and
//! what happens at a moment does not depend on how fast this computer is. Whatever could
//! depend on it (who of two requests of one moment is first) is put in order by the machine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use homeostat_cascade::{
    Cascade, CascadeConfig, DecisionRecord, Ending, Job, OutputFormat, Prompt, Sampling, Tier,
};
use homeostat_hooks::{Endpoint, Finish, Message, MetabolicState, Role};
use homeostat_policy::PolicyRoom;
use homeostat_telemetry::PowerPlan;
use homeostat_telemetry::ledger::Accounts;
use tokio::time::Instant;

use super::day::Day;
use super::events::{Events, Watch};
use super::judgement::{Judgement, Judges};
use super::machine::{Machine, Seen, Settings, Sums, TICK_MS, TIERS};
use super::tier::{SimulatedTier, account, number, request_id};
use super::traffic::Ask;
use crate::Failure;

/// After this nobody waits for an answer any more. A minute: who reads a chat has left.
pub const DEADLINE_MS: u32 = 60_000;
/// After the last request the machine runs on, until every request has ended.
const AFTERWARDS_MS: u64 = 2 * DEADLINE_MS as u64;
/// Ticks that one point of a picture stands for: ten minutes.
pub const TICKS_PER_POINT: u64 = 6_000;

/// One host.
#[derive(Debug, Clone)]
pub struct Host {
    /// Who decides.
    pub judgement: Judgement,
    /// Cap on its power; infinite = none but the chip's own.
    pub cap_watts: f64,
    /// What its operator knows of its tiers: share of right answers on simple, medium and
    /// complex requests.
    pub qualities: [(f32, f32, f32); 2],
    /// What he wishes of its power by the clock.
    pub plan: Option<PowerPlan>,
}

/// What became of one request.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// When it came.
    pub at_ms: u64,
    /// Whose whole answer was sent in time; `None` = nobody's.
    pub tier: Option<usize>,
    /// Whether that answer was right.
    pub is_right: bool,
    /// To the first text that the client saw.
    pub ttft_ms: Option<u32>,
    /// To the last.
    pub total_ms: u32,
    /// Tokens that the client got.
    pub tokens: u32,
    /// Steps that were tried.
    pub steps: u32,
    /// Energy that the ledger booked for it, J.
    pub joules: Option<f64>,
}

/// One point of a picture.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// Mean power.
    pub watts: f64,
    /// Highest temperature.
    pub celsius: f64,
    /// Requests that wait or run, mean.
    pub requests: f64,
    /// Worst state.
    pub state: MetabolicState,
}

/// A day that was lived.
pub struct Lived {
    pub ended: Vec<Ended>,
    pub points: Vec<Point>,
    /// What it was worth during each event, in the day's order.
    pub events: Events,
    pub sums: Sums,
    pub accounts: Accounts,
}

/// What a closed record says of the request with this number.
type Stories = Arc<Mutex<HashMap<usize, Result<Ended, String>>>>;

/// Lets a host live through a day.
pub fn live(
    day: &Day,
    asks: &Arc<Vec<Ask>>,
    host: &Host,
    room: &Arc<PolicyRoom>,
) -> Result<Lived, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        // What policies are asked at one moment they are asked in turn: one learns from another.
        .max_blocking_threads(1)
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(Failure::failed)?;
    runtime.block_on(live_through(day, asks, host, room))
}

async fn live_through(
    day: &Day,
    asks: &Arc<Vec<Ask>>,
    host: &Host,
    room: &Arc<PolicyRoom>,
) -> Result<Lived, Failure> {
    let begun = Instant::now();
    let machine = Arc::new(Machine::new(Settings {
        cap_watts: host.cap_watts,
        looks_ahead: host.judgement.looks_ahead(),
        plan: host.plan.clone(),
        qualities: host.qualities,
        seed: day.seed,
    }));
    let stories = Stories::default();
    let cascade = cascade(asks, host, room, &machine, &stories, begun);
    let mut points = Points::default();
    let mut watch = Watch::over(day);
    let mut next = 0;
    let last_ms = day.ms() + AFTERWARDS_MS;
    for tick in 1..=last_ms / TICK_MS {
        let now_ms = tick * TICK_MS;
        while let Some(ask) = asks.get(next).filter(|ask| ask.at_ms < now_ms) {
            tokio::time::sleep_until(begun + Duration::from_millis(ask.at_ms)).await;
            tokio::spawn(read(Arc::clone(&cascade), job(next, ask)));
            next += 1;
        }
        tokio::time::sleep_until(begun + Duration::from_millis(now_ms)).await;
        let seen = machine.tick(now_ms, &day.surroundings(now_ms));
        points.add(&seen);
        watch.add(now_ms, &seen);
    }
    let (sums, accounts) = machine.sums();
    let mut stories = std::mem::take(&mut *stories.lock().unwrap_or_else(PoisonError::into_inner));
    let mut ended = Vec::with_capacity(asks.len());
    for number in 0..asks.len() {
        let story = stories.remove(&number);
        let story = story.unwrap_or_else(|| Err("it never ended".into()));
        let mut story = story
            .map_err(|why| Failure::Failed(format!("request {} of the day: {why}", number + 1)))?;
        story.joules = machine.joules(account(number));
        ended.push(story);
    }
    Ok(Lived {
        events: watch.close(&ended),
        ended,
        points: points.all,
        sums,
        accounts,
    })
}

fn cascade(
    asks: &Arc<Vec<Ask>>,
    host: &Host,
    room: &Arc<PolicyRoom>,
    machine: &Arc<Machine>,
    stories: &Stories,
    begun: Instant,
) -> Arc<Cascade> {
    let judges = Judges {
        room: Arc::clone(room),
        judgement: host.judgement,
    };
    let tier = |index| -> Arc<dyn Tier> {
        Arc::new(SimulatedTier {
            index,
            machine: Arc::clone(machine),
            asks: Arc::clone(asks),
            begun,
        })
    };
    let (asks, stories) = (Arc::clone(asks), Arc::clone(stories));
    let [watched, seen, booked] = [(); 3].map(|()| Arc::clone(machine));
    let observer = move |record: &DecisionRecord| {
        let Some(number) = number(&record.id) else {
            return;
        };
        watched.is_over(account(number));
        let story = story(record, &asks[number]);
        let mut stories = stories.lock().unwrap_or_else(PoisonError::into_inner);
        stories.insert(number, story);
    };
    Arc::new(Cascade::new(
        Arc::new(judges),
        (0..TIERS.len()).map(tier).collect(),
        Arc::new(move || seen.snapshot()),
        CascadeConfig {
            // Nobody asks for them afterwards.
            records_max: 1,
            observer: Some(Arc::new(observer)),
            joules_of: Some(Arc::new(move |id: &str| booked.taken(account(number(id)?)))),
            ..CascadeConfig::default()
        },
    ))
}

/// A client that reads its answer to the end.
async fn read(cascade: Arc<Cascade>, job: Job) {
    if let Ok(mut reply) = cascade.run(job).await {
        while reply.events.next().await.is_some() {}
    }
}

fn job(number: usize, ask: &Ask) -> Job {
    Job {
        id: request_id(number),
        endpoint: Endpoint::Chat,
        model: "auto".into(),
        prompt: Prompt::Chat(vec![Message {
            role: Role::User,
            content: ask.prompt.to_string(),
        }]),
        sampling: Sampling::default(),
        max_tokens: None,
        stream: true,
        output: OutputFormat::Text,
        tenant: None,
        sharer: None,
        priority: 0,
        deadline_ms: Some(DEADLINE_MS),
        attributes: Vec::new(),
        purse: None,
    }
}

/// A policy that failed would be measured by what its fallback did: that is no result.
fn story(record: &DecisionRecord, ask: &Ask) -> Result<Ended, String> {
    if record.fallback() {
        let fault = record.decision.as_ref().and_then(|d| d.fault.as_ref());
        let fault = fault.map_or_else(String::new, ToString::to_string);
        return Err(format!(
            "a policy failed, and its fallback answered: {fault}"
        ));
    }
    let sent = match &record.ending {
        Ending::Sent { tier, step } => {
            let whole = record
                .steps
                .get(*step as usize)
                .and_then(|step| step.finish);
            let index = TIERS.iter().position(|name| name == tier);
            index.filter(|_| whole == Some(Finish::Stop))
        }
        Ending::Direct { method } => return Err(format!("answered without a model: {method}")),
        _ => None,
    };
    Ok(Ended {
        at_ms: ask.at_ms,
        tier: sent,
        is_right: sent.is_some_and(|tier| ask.told[tier].is_right),
        ttft_ms: record.ttft_ms,
        total_ms: record.total_ms,
        tokens: record.usage.completion_tokens,
        steps: record.steps.len() as u32,
        joules: None,
    })
}

#[derive(Default)]
struct Points {
    all: Vec<Point>,
    ticks: u64,
}

impl Points {
    fn add(&mut self, seen: &Seen) {
        if self.ticks.is_multiple_of(TICKS_PER_POINT) {
            self.all.push(Point {
                watts: 0.0,
                celsius: f64::NEG_INFINITY,
                requests: 0.0,
                state: MetabolicState::Nominal,
            });
        }
        self.ticks += 1;
        let Some(point) = self.all.last_mut() else {
            return;
        };
        let count = ((self.ticks - 1) % TICKS_PER_POINT + 1) as f64;
        point.watts += (seen.watts - point.watts) / count;
        point.requests += (f64::from(seen.requests) - point.requests) / count;
        point.celsius = point.celsius.max(seen.celsius);
        point.state = point.state.max(seen.state);
    }
}
