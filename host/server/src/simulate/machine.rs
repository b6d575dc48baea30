//! The machine of a simulated host: one virtual chip that two tiers share, its sensors, and
//! the books of its energy.
//!
//! The chip is a [`Plant`]; sampler, state machine and ledger are the server's own. A step of
//! a tier takes the time and the energy that its bytes and operations take on that chip;
//! heat, a power cap and an empty battery change both. Time comes in with every
//! [`Machine::tick`]; between two ticks only requests come and go. It refuses to know what is
//! asked, and to decide anything but who computes next: whoever has had least.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use homeostat_cascade::{TierError, TierEvent, TierFault, Token};
use homeostat_engine::{Device, EngineStats};
use homeostat_hooks::{
    Budget, BudgetUnit, DeviceKind, Finish, MetabolicState, Profile, Sample, Snapshot, TierKind,
    TierView,
};
use homeostat_telemetry::ledger::{
    Accounts, Devices, Ledger, ModelCost, Phase, SequenceWork, Step,
};
use homeostat_telemetry::plant::{Ambient, Plant, PlantSpec, Roofline};
use homeostat_telemetry::{
    Config, DeviceReadings, Inputs, NvmlLibrary, PowerPlan, Provider, Reading, Recorder, Sampler,
    Signal, Tick,
};
use tokio::sync::mpsc::UnboundedSender;

use super::day::{Surroundings, Thermometer, USD_PER_KWH};
use super::traffic::Told;
use crate::energy::{PlannedPower, TierLoad};
use crate::tiers::{AnswerInHand, Drafts, Load, Usual, WorkInHand};

/// Time between two ticks: the server's sampling period.
pub const TICK_MS: u64 = 100;
/// The tiers' names, smallest first.
pub const TIERS: [&str; 2] = ["small", "large"];
/// The chip's name in snapshots.
const CHIP: &str = "soc.0";
/// What the thermometer tells.
const HEAT: [Signal; 2] = [Signal::Temperature, Signal::ThermalMargin];
/// What a broken one answers, °C: all bits set.
const ABSURD_CELSIUS: f64 = 255.0;

/// Sequences that a tier computes together.
const SLOTS: usize = 8;
/// Prompt tokens of one step.
const PREFILL_TOKENS: u32 = 512;
/// Probability that a draft token is what the model says, given that those before it were.
pub const ACCEPTED: f64 = 0.35;
/// Weight of the newest answer in the mean times that a router is shown.
const MEAN_WEIGHT: f64 = 0.2;

/// Share of the energy of moving a byte that falls with the square of the clock, as all of the
/// energy of an operation does. The rest is memory's, which has a clock of its own.
pub const CORE_SHARE: f64 = 0.4;
/// Slowest clock at which the voltage still falls, share of the fastest; below it a cap can only
/// make the chip wait. So a cap saves up to about 28 % of the energy of writing an answer before
/// it costs time: what operators of capped chips report, or a little more.
pub const SLOWEST: f64 = 0.7;
/// Host budget of money: what its full power costs at the ordinary price.
const BUDGET_USD_PER_HOUR: f64 = 0.120 * USD_PER_KWH;

/// Sizes of the two tiers: models of 4 and 32 thousand million parameters in four and a half
/// bits, with grouped heads.
const COSTS: [ModelCost; 2] = [
    ModelCost {
        weight_bytes: 2.4e9,
        kv_bytes_per_token: 147_456.0,
        flops_per_token: 8e9,
        flops_per_context_token: 600e3,
    },
    ModelCost {
        weight_bytes: 18.5e9,
        kv_bytes_per_token: 262_144.0,
        flops_per_token: 64e9,
        flops_per_context_token: 1.3e6,
    },
];

/// A request that came to a tier.
pub struct Arrival {
    /// Whose energy it is; several steps of one request carry the same.
    pub account: u64,
    /// What it will say.
    pub told: Told,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Most tokens of the answer.
    pub max_tokens: Option<u32>,
    /// Most draft tokens of a step.
    pub max_draft_tokens: u32,
    /// Where its answer goes; closed when nobody waits for it any more.
    pub events: UnboundedSender<Result<TierEvent, TierError>>,
}

struct Sequence {
    arrival: Arrival,
    came_us: u64,
    /// What it met when it came.
    load: Load,
    /// When its prompt began to be read.
    began_us: Option<u64>,
    first_us: Option<u64>,
    prefilled: u32,
    done: u32,
    /// Drafts that are accepted in the mean and were not counted yet.
    accepted: f64,
}

impl Sequence {
    fn tokens(&self) -> u32 {
        let told = self.arrival.told.tokens;
        self.arrival
            .max_tokens
            .map_or(told, |most| told.min(most))
            .max(1)
    }

    /// Time that one token of its prompt took, which has been read at `now_us`, ms.
    fn prefill_ms(&self, now_us: u64) -> f64 {
        let read_us = now_us - self.began_us.unwrap_or(now_us);
        read_us as f64 / 1e3 / f64::from(self.arrival.prompt_tokens.max(1))
    }

    /// As a server sees it: what it will say nobody knows there.
    fn now(&self) -> AnswerInHand {
        AnswerInHand {
            written: self.done as usize,
            most: self.arrival.max_tokens.map(|most| most as usize),
            prompt_tokens: self.arrival.prompt_tokens as usize,
        }
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    computed_us: u64,
    ttft_ms: Option<f64>,
    /// Of one token of a prompt.
    prefill_ms: Option<f64>,
    tpot_ms: Option<f64>,
    answer_tokens: Option<f64>,
    drafts: Drafts,
    stats: EngineStats,
    /// Of the newest prompt: the next one is taken to be as long.
    prompt_tokens: u32,
    /// As it stood at the last tick: what a router is shown.
    shown: (u32, u32),
}

impl Queue {
    /// As a local tier tells it; `None` before the first answer.
    fn work_in_hand(&self) -> Option<WorkInHand> {
        let (tpot_ms, tokens) = self.tpot_ms.zip(self.answer_tokens)?;
        let usual = Usual {
            tpot_ms,
            prefill_ms: self.prefill_ms,
            tokens,
        };
        let in_hand = self.running.iter().chain(&self.waiting);
        let answers: Vec<AnswerInHand> = in_hand.map(Sequence::now).collect();
        Some(WorkInHand::of(usual, SLOTS, &answers))
    }
}

/// A step that is being computed.
struct InFlight {
    tier: usize,
    start_us: u64,
    until_us: u64,
    /// Power above the static one.
    watts: f64,
    cost: ModelCost,
    works: Vec<SequenceWork>,
    /// Draft tokens that each decoding sequence verifies.
    drafts: u32,
}

/// What one tick was like.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Power that was drawn.
    pub watts: f64,
    /// The chip's true temperature.
    pub celsius: f64,
    /// Requests that wait or run.
    pub requests: u32,
    /// Metabolic state.
    pub state: MetabolicState,
    /// What this tick has added to the day.
    pub added: Sums,
}

/// What a whole day added up to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sums {
    /// All energy, J.
    pub joules: f64,
    /// What it cost.
    pub usd: f64,
    /// Time in which the hardware slowed itself down.
    pub throttled_s: f64,
    /// Time without power.
    pub off_s: f64,
    /// Highest temperature.
    pub hottest_celsius: f64,
    /// Changes of the metabolic state.
    pub state_changes: u64,
    /// The most of them in one hour.
    pub state_changes_in_an_hour: u64,
    /// Tokens that each tier wrote.
    pub tokens: [u64; 2],
}

/// The answers that a request had begun.
#[derive(Default)]
struct Answers {
    begun: u32,
    ended: Vec<Written>,
}

/// An answer that came to its end.
struct Written {
    tier: usize,
    load: Load,
    might_guess: bool,
    tokens: u32,
    tpot_ms: f64,
}

struct Inner {
    plant: Arc<Mutex<Plant>>,
    roofline: Roofline,
    sampler: Sampler,
    inputs: Inputs,
    planned: PlannedPower,
    ledger: Ledger,
    devices: Devices,
    cap_watts: f64,
    inbox: Vec<(usize, Arrival, u64)>,
    over: Vec<u64>,
    queues: [Queue; 2],
    in_flight: Option<InFlight>,
    snapshot: Arc<Snapshot>,
    qualities: [(f32, f32, f32); 2],
    plan: Option<PowerPlan>,
    thermometer: Arc<Mutex<Thermometer>>,
    answers: HashMap<u64, Answers>,
    receipts: HashMap<u64, f64>,
    now_us: u64,
    is_on: bool,
    hour: (u64, u64),
    sums: Sums,
}

/// The machine, shared by its tiers.
pub struct Machine(Mutex<Inner>);

/// The sensors, as a provider of the sampler.
struct Sensors {
    plant: Arc<Mutex<Plant>>,
    thermometer: Arc<Mutex<Thermometer>>,
}

impl Provider for Sensors {
    fn name(&self) -> &'static str {
        "plant"
    }

    fn is_paced(&self) -> bool {
        false
    }

    fn read(&mut self, tick: &mut Tick<'_>) -> bool {
        let plant = held(&self.plant);
        tick.readings.supply = plant.supply();
        let device = tick.readings.device(CHIP, DeviceKind::Soc);
        let before = HEAT.map(|signal| device.last(signal).map(|reading| reading.value));
        let told = plant.write_to(device, tick.period_ms);
        match *held(&self.thermometer) {
            Thermometer::Fine | Thermometer::Silent => {}
            Thermometer::Stuck => stand_still(device, before),
            Thermometer::Absurd => {
                let absurd = Reading::instant(ABSURD_CELSIUS, tick.now_ms, tick.period_ms);
                if device.record(Signal::Temperature, absurd).is_err() {
                    tick.recorder.error("plant", "absurd");
                }
            }
        }
        told.is_ok()
    }
}

/// The thermometer tells anew what it told before.
fn stand_still(device: &mut DeviceReadings, before: [Option<f64>; 2]) {
    for (signal, value) in HEAT.into_iter().zip(before) {
        if let (Some(value), Some(&now)) = (value, device.last(signal)) {
            // Cannot be absurd: it was accepted before.
            let _ = device.record(signal, Reading { value, ..now });
        }
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a machine is told when it is built.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Cap on its power; infinite = only the chip's own.
    pub cap_watts: f64,
    /// What its operator wishes of its power by the clock; the day begins at midnight.
    pub plan: Option<PowerPlan>,
    /// Whether the state machine sees a forecast.
    pub looks_ahead: bool,
    /// Share of right answers of each tier on simple, medium and complex requests.
    pub qualities: [(f32, f32, f32); 2],
    /// What its sensors' phases are drawn from.
    pub seed: u64,
}

impl Machine {
    /// A machine that has been idle for long.
    pub fn new(settings: Settings) -> Self {
        let spec = PlantSpec::desk_box();
        let cap_watts = settings.cap_watts.min(spec.throttle.limit_watts);
        let roofline = spec.roofline;
        let mut plant = Plant::new(spec, settings.seed);
        plant.set_on_grid(true);
        let plant = Arc::new(Mutex::new(plant));
        let config = Config {
            profile: Profile::Edge,
            period_ms: TICK_MS as u32,
            nvml: NvmlLibrary::Off,
            power_cap_watts: settings.cap_watts.is_finite().then_some(settings.cap_watts),
            ..Config::default()
        };
        let thermometer = Arc::<Mutex<Thermometer>>::default();
        let sensors: Vec<Box<dyn Provider>> = vec![Box::new(Sensors {
            plant: Arc::clone(&plant),
            thermometer: Arc::clone(&thermometer),
        })];
        let sampler = Sampler::new(config, sensors, Recorder::default());
        let sampler = match settings.looks_ahead {
            true => sampler,
            false => sampler.without_forecast(),
        };
        let mut ledger = Ledger::new(None);
        let device = ledger.device(CHIP, DeviceKind::Soc);
        Self(Mutex::new(Inner {
            plant,
            roofline,
            sampler,
            inputs: Inputs::default(),
            planned: PlannedPower::default(),
            ledger,
            devices: Devices::of(device.as_slice()),
            cap_watts,
            inbox: Vec::new(),
            over: Vec::new(),
            queues: Default::default(),
            in_flight: None,
            snapshot: Arc::default(),
            qualities: settings.qualities,
            plan: settings.plan,
            thermometer,
            answers: HashMap::new(),
            receipts: HashMap::new(),
            now_us: 0,
            is_on: true,
            hour: (0, 0),
            sums: Sums::default(),
        }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        held(&self.0)
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.inner().snapshot)
    }

    /// A request for a tier; it is seen at the next tick.
    pub fn arrive(&self, tier: usize, arrival: Arrival, at_ms: u64) {
        self.inner().inbox.push((tier, arrival, at_ms * 1_000));
    }

    /// Nothing more will be computed for this account.
    pub fn is_over(&self, account: u64) {
        self.inner().over.push(account);
    }

    /// What a router is shown of a tier.
    pub fn view(&self, tier: usize) -> TierView {
        let inner = self.inner();
        let queue = &inner.queues[tier];
        let simulated = |value| Sample {
            origin: homeostat_hooks::Origin::Simulated,
            ..Sample::measured(value)
        };
        let cost = COSTS[tier];
        let alone = (cost.weight_bytes, cost.flops_per_token);
        let load = met_beside(queue.shown.0 + queue.shown.1, queue.prompt_tokens);
        TierView {
            id: TIERS[tier].into(),
            kind: TierKind::Simulated,
            model: TIERS[tier].into(),
            rank: tier as u32,
            quality: inner.qualities[tier],
            parameters: Some((cost.flops_per_token / 2.0) as u64),
            context_tokens: 8_192,
            ready: inner.is_on,
            num_requests_running: queue.shown.0,
            num_requests_waiting: queue.shown.1,
            ttft_ms: queue.ttft_ms.map(simulated),
            tpot_ms: queue.tpot_ms.map(simulated),
            // Of one sequence alone: what a maker would state, and no measurement.
            joules_per_token: Some(Sample {
                origin: homeostat_hooks::Origin::Modelled,
                ..simulated(inner.roofline.work_joules(alone.0, alone.1))
            }),
            can_speculate: true,
            attributes: queue.drafts.attributes(load, &queue.stats),
            ..TierView::default()
        }
    }

    /// Lets the time since the last tick pass.
    pub fn tick(&self, now_ms: u64, around: &Surroundings) -> Seen {
        self.inner().tick(now_ms, around)
    }

    /// Energy of a request, J, if its books are closed.
    pub fn joules(&self, account: u64) -> Option<f64> {
        self.inner().receipts.get(&account).copied()
    }

    /// What a request has used so far, J, with what is only expected of it.
    pub fn taken(&self, account: u64) -> Option<Sample> {
        let receipt = self.inner().ledger.receipt(account)?;
        Some(Sample {
            origin: receipt.origin,
            relative_error: Some(receipt.relative_error as f32),
            ..Sample::measured(receipt.joules())
        })
    }

    /// What the day added up to, and the ledger's accounts of the chip.
    pub fn sums(&self) -> (Sums, Accounts) {
        let inner = self.inner();
        let accounts = inner.ledger.accounts().next();
        (
            inner.sums,
            accounts.map_or_else(Accounts::default, |(_, a)| a),
        )
    }
}

impl Inner {
    fn tick(&mut self, now_ms: u64, around: &Surroundings) -> Seen {
        let until_us = now_ms * 1_000;
        let sums = self.sums;
        self.surround(around);
        self.take_arrivals();
        self.is_on = held(&self.plant).is_fed();
        if !self.is_on {
            self.fail_all();
            self.now_us = until_us;
        }
        let mut joules = 0.0;
        while self.now_us < until_us {
            joules += self.compute(until_us);
        }
        let before = held(&self.plant).joules();
        {
            let mut plant = held(&self.plant);
            let elapsed_s = TICK_MS as f64 / 1e3;
            // The plant divides by its clocks what a slowed step was already told to draw.
            let clock = plant.clock_ratio();
            plant.advance(TICK_MS, joules / elapsed_s / clock);
        }
        self.pay(before, around, now_ms);
        self.observe(now_ms);
        self.settle(until_us, &sums)
    }

    fn surround(&mut self, around: &Surroundings) {
        let mut plant = held(&self.plant);
        plant.set_ambient(Ambient {
            celsius: around.air_celsius,
            swing_celsius: 0.0,
            swing_period_s: 3_600.0,
        });
        plant.set_on_grid(around.on_grid);
        plant.set_silent(match around.thermometer {
            Thermometer::Fine | Thermometer::Stuck => &[],
            Thermometer::Silent | Thermometer::Absurd => &HEAT,
        });
        *held(&self.thermometer) = around.thermometer;
    }

    fn take_arrivals(&mut self) {
        let mut inbox = std::mem::take(&mut self.inbox);
        // Which of two requests of one moment comes first must not depend on a real clock.
        inbox.sort_by_key(|(tier, arrival, at_us)| (*at_us, arrival.account, *tier));
        for (tier, arrival, came_us) in inbox {
            self.answers.entry(arrival.account).or_default().begun += 1;
            let queue = &mut self.queues[tier];
            queue.prompt_tokens = arrival.prompt_tokens;
            let others = (queue.running.len() + queue.waiting.len()) as u32;
            let load = met_beside(others, arrival.prompt_tokens);
            queue.waiting.push_back(Sequence {
                arrival,
                came_us,
                load,
                began_us: None,
                first_us: None,
                prefilled: 0,
                done: 0,
                accepted: 0.0,
            });
        }
        for queue in &mut self.queues {
            queue.waiting.retain(|s| !s.arrival.events.is_closed());
            queue.running.retain(|s| !s.arrival.events.is_closed());
        }
    }

    fn fail_all(&mut self) {
        self.in_flight = None;
        for queue in &mut self.queues {
            let all = queue.running.drain(..).chain(queue.waiting.drain(..));
            for sequence in all {
                let gone = TierError {
                    fault: TierFault::Tier,
                    code: "no_power",
                    message: "the battery is empty".into(),
                    retryable: true,
                    retry_after_ms: None,
                };
                let _ = sequence.arrival.events.send(Err(gone));
            }
        }
    }

    /// Computes until a step ends, or until this time; returns the energy above the static
    /// power, J.
    fn compute(&mut self, until_us: u64) -> f64 {
        if self.in_flight.is_none() {
            self.in_flight = self.begin();
        }
        let Some(step) = &self.in_flight else {
            // Nothing to do before the next request of this interval, if there is one.
            let waiting = self.queues.iter().flat_map(|queue| &queue.waiting);
            let next = waiting
                .map(|s| s.came_us)
                .filter(|at| *at > self.now_us)
                .min();
            self.now_us = next.unwrap_or(until_us).min(until_us);
            return 0.0;
        };
        let end_us = step.until_us.min(until_us);
        let joules = step.watts * (end_us - self.now_us) as f64 / 1e6;
        self.now_us = end_us;
        if step.until_us == end_us
            && let Some(step) = self.in_flight.take()
        {
            self.finish(step);
        }
        joules
    }

    /// The next step of the tier that has had least time.
    fn begin(&mut self) -> Option<InFlight> {
        let now_us = self.now_us;
        for queue in &mut self.queues {
            while queue.running.len() < SLOTS
                && queue.waiting.front().is_some_and(|s| s.came_us <= now_us)
            {
                queue.running.extend(queue.waiting.pop_front());
            }
        }
        let busy = |tier: &usize| !self.queues[*tier].running.is_empty();
        let tier = (0..2)
            .filter(busy)
            .min_by_key(|t| self.queues[*t].computed_us)?;
        // Who was idle has not saved up time.
        let least_us = self.queues[tier].computed_us;
        for queue in &mut self.queues {
            queue.computed_us = queue.computed_us.max(least_us);
        }
        let drafts = self.drafts(tier);
        let (works, cost) = self.work(tier, drafts);
        let (bytes, flops) = (cost.step_bytes(&works), cost.step_flops(&works));
        let (seconds, watts) = self.pace(bytes, flops);
        let length_us = ((seconds * 1e6) as u64).max(1);
        self.queues[tier].computed_us += length_us;
        Some(InFlight {
            tier,
            start_us: now_us,
            until_us: now_us + length_us,
            watts,
            cost,
            works,
            drafts,
        })
    }

    /// What each running sequence does in the next step.
    fn work(&self, tier: usize, drafts: u32) -> (Vec<SequenceWork>, ModelCost) {
        let mut prompt_left = PREFILL_TOKENS;
        let mut works = Vec::new();
        for sequence in &self.queues[tier].running {
            let unread = sequence.arrival.prompt_tokens - sequence.prefilled;
            let computed = match unread {
                0 => 1 + drafts.min(sequence.arrival.max_draft_tokens),
                unread => unread.min(prompt_left),
            };
            if computed == 0 {
                continue;
            }
            if unread > 0 {
                prompt_left -= computed;
            }
            works.push(SequenceWork {
                request: sequence.arrival.account,
                phase: match unread {
                    0 => Phase::Decode,
                    _ => Phase::Prefill,
                },
                computed_tokens: computed,
                context_tokens: sequence.prefilled + sequence.done,
                rejected_tokens: 0,
            });
        }
        (works, COSTS[tier])
    }

    /// As many drafts as make a token cheapest in time, as the engine's own rule has it: it
    /// measures its steps, so it knows what cap and heat make of them.
    fn drafts(&self, tier: usize) -> u32 {
        let running = &self.queues[tier].running;
        let most = running.iter().map(|s| s.arrival.max_draft_tokens).max();
        let seconds_per_token = |drafts: &u32| {
            let (works, cost) = self.work(tier, *drafts);
            let decoding = works.iter().filter(|w| w.phase == Phase::Decode);
            let tokens: f64 = decoding
                .map(|work| 1.0 + accepted_of(work.computed_tokens - 1))
                .sum();
            let (seconds, _) = self.pace(cost.step_bytes(&works), cost.step_flops(&works));
            seconds / tokens.max(1.0)
        };
        (0..=most.unwrap_or(0).min(15))
            .min_by(|a, b| seconds_per_token(a).total_cmp(&seconds_per_token(b)))
            .unwrap_or(0)
    }

    /// Time of a step, s, and its power above the static one, W: as fast as cap and heat let it.
    fn pace(&self, bytes: f64, flops: f64) -> (f64, f64) {
        let plant = held(&self.plant);
        let roofline = self.roofline;
        let at = |clock: f64| {
            let memory = roofline.joules_per_byte * bytes;
            let core = roofline.joules_per_flop * flops + CORE_SHARE * memory;
            let joules = (1.0 - CORE_SHARE) * memory + core * clock * clock;
            (roofline.step_seconds(bytes, flops / clock), joules)
        };
        let allowed = (self.cap_watts / plant.leakage_ratio() - roofline.static_watts).max(1.0);
        let watts = |(seconds, joules): (f64, f64)| joules / seconds;
        let (mut low, mut high) = (SLOWEST, 1.0);
        if watts(at(high)) <= allowed {
            low = high;
        }
        for _ in 0..12 {
            let middle = (low + high) / 2.0;
            match watts(at(middle)) <= allowed {
                true => low = middle,
                false => high = middle,
            }
        }
        let (mut seconds, joules) = at(low);
        seconds = seconds.max(joules / allowed);
        // Heat divides the clock; the voltage, and with it the energy, stays.
        seconds /= plant.clock_ratio();
        (seconds, joules / seconds)
    }

    /// A step is done: tokens go out, the ledger hears of it.
    fn finish(&mut self, mut step: InFlight) {
        let now_us = step.until_us;
        let queue = &mut self.queues[step.tier];
        for work in &mut step.works {
            let place = queue
                .running
                .iter()
                .position(|s| s.arrival.account == work.request);
            let Some(place) = place else { continue };
            let sequence = &mut queue.running[place];
            let new = match work.phase {
                Phase::Prefill => {
                    sequence.began_us = sequence.began_us.or(Some(step.start_us));
                    sequence.prefilled += work.computed_tokens;
                    u32::from(sequence.prefilled == sequence.arrival.prompt_tokens)
                }
                Phase::Decode => {
                    let drafts = work.computed_tokens - 1;
                    sequence.accepted += accepted_of(drafts.min(step.drafts));
                    let accepted = (sequence.accepted as u32).min(drafts);
                    sequence.accepted -= f64::from(accepted);
                    work.rejected_tokens = drafts - accepted;
                    let stats = &mut queue.stats;
                    stats.spec_decode_num_draft_tokens_total += u64::from(drafts);
                    stats.spec_decode_num_accepted_tokens_total += u64::from(accepted);
                    1 + accepted
                }
            };
            let new = new.min(sequence.tokens() - sequence.done);
            if new == 0 {
                continue;
            }
            self.sums.tokens[step.tier] += u64::from(new);
            if sequence
                .first_us
                .replace(sequence.first_us.unwrap_or(now_us))
                .is_none()
            {
                mix(&mut queue.ttft_ms, (now_us - sequence.came_us) as f64 / 1e3);
                mix(&mut queue.prefill_ms, sequence.prefill_ms(now_us));
            }
            sequence.say(new);
            if sequence.done == sequence.tokens() {
                let sequence = queue.running.remove(place);
                mix(&mut queue.answer_tokens, f64::from(sequence.done));
                let writing_us = now_us - sequence.first_us.unwrap_or(now_us);
                if sequence.done > 1 {
                    let tpot_ms = writing_us as f64 / 1e3 / f64::from(sequence.done - 1);
                    mix(&mut queue.tpot_ms, tpot_ms);
                    let answers = self.answers.entry(work.request).or_default();
                    answers.ended.push(Written {
                        tier: step.tier,
                        load: sequence.load,
                        might_guess: sequence.arrival.max_draft_tokens > 0,
                        tokens: sequence.done,
                        tpot_ms,
                    });
                }
                sequence.end();
            }
        }
        self.ledger.step(Step {
            start_us: step.start_us,
            end_us: step.until_us,
            devices: self.devices,
            cost: Some(step.cost),
            sequences: step.works,
        });
    }

    /// Books money, and the budget that a policy sees.
    fn pay(&mut self, before_joules: f64, around: &Surroundings, now_ms: u64) {
        let (joules, celsius, throttled_ms) = {
            let plant = held(&self.plant);
            (plant.joules(), plant.die_celsius(), plant.throttled_ms())
        };
        let usd = (joules - before_joules) / 3.6e6 * around.usd_per_kwh;
        let sums = &mut self.sums;
        sums.joules = joules;
        sums.usd += usd;
        sums.throttled_s = throttled_ms as f64 / 1e3;
        sums.off_s += f64::from(u8::from(!self.is_on)) * TICK_MS as f64 / 1e3;
        sums.hottest_celsius = sums.hottest_celsius.max(celsius);
        let left_ms = 3_600_000 - now_ms % 3_600_000;
        let used = match self.inputs.budgets.first() {
            Some(budget) if left_ms <= 3_600_000 - TICK_MS => budget.used,
            _ => 0.0,
        };
        let mut budgets = vec![Budget {
            scope: "host".into(),
            unit: BudgetUnit::Usd,
            limit: BUDGET_USD_PER_HOUR,
            used: used + usd,
            window_left_s: Some((left_ms / 1_000) as u32),
        }];
        if let Some(plan) = &self.plan {
            budgets.extend(plan.budgets(&self.snapshot, (now_ms / 1_000) as i64));
        }
        self.inputs.budgets = budgets;
    }

    fn observe(&mut self, now_ms: u64) {
        let before = self.snapshot.metabolism.state;
        let snapshot = self.sampler.tick(now_ms, &self.inputs);
        self.ledger.moved(&self.sampler.take_energy_moves());
        self.ledger.sense(&snapshot);
        let hour = now_ms / 3_600_000;
        if self.hour.0 != hour {
            self.hour = (hour, 0);
        }
        if snapshot.metabolism.state != before {
            self.hour.1 += 1;
            self.sums.state_changes += 1;
            let most = &mut self.sums.state_changes_in_an_hour;
            *most = (*most).max(self.hour.1);
        }
        self.snapshot = Arc::new(snapshot);
        self.plan_power();
    }

    /// Tells the next ticks what the chip is about to draw, as a server does after every snapshot.
    fn plan_power(&mut self) {
        if !self.is_on {
            // A server that is off plans nothing, and what it draws then is not what it draws idle.
            self.planned = PlannedPower::default();
            self.inputs.planned_watts.clear();
            return;
        }
        let loads = self.queues.each_ref().map(|queue| TierLoad {
            // By this name the processors of a machine are meant, and the chip has them.
            device: Device::Cpu,
            runs: !queue.running.is_empty(),
            work: queue.work_in_hand(),
        });
        for (id, watts) in self.planned.plan(&self.snapshot, &loads) {
            match watts.is_empty() {
                true => self.inputs.planned_watts.remove(&id),
                false => self.inputs.planned_watts.insert(id, watts),
            };
        }
    }

    /// The books of a request are closed: what its answers took, as a local tier tells it.
    fn learn(&mut self, account: u64, decode_uj: u64) {
        let answers = self.answers.remove(&account).unwrap_or_default();
        // Of several answers nobody tells which took what.
        let joules = (answers.begun == 1).then_some(decode_uj as f64 / 1e6);
        for one in answers.ended {
            let tokens = one.tokens as usize;
            let drafts = &mut self.queues[one.tier].drafts;
            drafts.take(one.load, one.might_guess, tokens, one.tpot_ms, joules);
        }
    }

    fn settle(&mut self, now_us: u64, before: &Sums) -> Seen {
        for account in self.over.drain(..) {
            self.ledger.finish(account);
        }
        let known_us = self.in_flight.as_ref().map_or(now_us, |step| step.start_us);
        self.ledger.advance(known_us, now_us);
        for (account, receipt) in self.ledger.newly_settled() {
            self.learn(account, receipt.decode_uj);
            self.receipts.insert(account, receipt.joules());
        }
        for queue in &mut self.queues {
            queue.shown = (queue.running.len() as u32, queue.waiting.len() as u32);
        }
        let plant = held(&self.plant);
        Seen {
            watts: plant.watts(),
            celsius: plant.die_celsius(),
            requests: self.queues.iter().map(|q| q.shown.0 + q.shown.1).sum(),
            state: self.snapshot.metabolism.state,
            added: self.sums.since(before),
        }
    }
}

impl Sums {
    /// What was added since; highest and most stay what they are.
    fn since(self, before: &Self) -> Self {
        Self {
            joules: self.joules - before.joules,
            usd: self.usd - before.usd,
            throttled_s: self.throttled_s - before.throttled_s,
            off_s: self.off_s - before.off_s,
            state_changes: self.state_changes - before.state_changes,
            tokens: [0, 1].map(|tier| self.tokens[tier] - before.tokens[tier]),
            ..self
        }
    }
}

impl Sequence {
    /// The next tokens go out. A client that has gone is noticed at the next tick.
    fn say(&mut self, new: u32) {
        let text = &self.arrival.told.text;
        let cut = |done: u32| {
            let mut at = text.len() * done as usize / self.arrival.told.tokens as usize;
            while !text.is_char_boundary(at) {
                at += 1;
            }
            at
        };
        let piece = text[cut(self.done)..cut(self.done + new)].to_owned();
        self.done += new;
        let _ = self.arrival.events.send(Ok(TierEvent::Token(Token {
            text: piece,
            ..Token::default()
        })));
    }

    fn end(self) {
        let finish = match self.done < self.arrival.told.tokens {
            true => Finish::Length,
            false => Finish::Stop,
        };
        let _ = self.arrival.events.send(Ok(TierEvent::Finished {
            finish,
            prompt_tokens: self.arrival.prompt_tokens,
            completion_tokens: self.done,
        }));
    }
}

/// What an answer meets where so many others run or wait.
fn met_beside(others: u32, prompt_tokens: u32) -> Load {
    Load::beside((others as usize).min(SLOTS - 1), prompt_tokens as usize)
}

/// Drafts that are accepted in the mean.
fn accepted_of(drafts: u32) -> f64 {
    (1..=drafts).map(|place| ACCEPTED.powi(place as i32)).sum()
}

fn mix(mean: &mut Option<f64>, new: f64) {
    *mean = Some(mean.map_or(new, |mean| mean + MEAN_WEIGHT * (new - mean)));
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn power_is_planned_once_answers_have_shown_what_the_chip_draws_and_how_long_one_takes() {
        let machine = Machine::new(Settings {
            cap_watts: f64::INFINITY,
            plan: None,
            looks_ahead: true,
            qualities: Default::default(),
            seed: 1,
        });
        let around = Surroundings {
            air_celsius: 26.0,
            on_grid: true,
            thermometer: Thermometer::Fine,
            usd_per_kwh: USD_PER_KWH,
        };
        let (events, _client) = mpsc::unbounded_channel();
        // Some five seconds of the small tier.
        let asked = |account: u64, at_ms: u64| {
            let arrival = Arrival {
                account,
                told: Told {
                    text: "word ".repeat(400).into(),
                    tokens: 400,
                    is_right: true,
                },
                prompt_tokens: 10,
                max_tokens: None,
                max_draft_tokens: 0,
                events: events.clone(),
            };
            machine.arrive(0, arrival, at_ms);
        };
        let planned_after = |ticks: std::ops::Range<u64>| {
            for tick in ticks {
                machine.tick(tick * TICK_MS, &around);
            }
            machine.inner().inputs.planned_watts.get(CHIP).cloned()
        };
        assert_eq!(planned_after(1..31), None);
        asked(1, 3_010);
        assert_eq!(planned_after(31..61), None, "the first is not over");
        let idle = planned_after(61..131).expect("both powers are known");
        asked(2, 13_010);
        let busy = planned_after(131..136).expect("so is the work");
        let ends = |watts: &[f64]| (watts[0], watts[watts.len() - 1]);
        let ((now, later), (at_work, afterwards)) = (ends(&idle), ends(&busy));
        assert!((now - later).abs() < 1e-9, "{idle:?}");
        assert!(at_work > now + 20.0, "{busy:?} {idle:?}");
        assert!(at_work > afterwards + 20.0, "{busy:?}");
    }
}
