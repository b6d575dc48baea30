//! `homeostat simulate`: a host on a machine that does not exist, through a day that never was.
//!
//! Cascade, policies (the components, in the policy room), sampler, state machine and ledger
//! are the server's own; the machine, the tiers, the clock and the people are not. Everything
//! follows from one seed: [`day`] what happens, [`traffic`] who asks what, [`machine`] the chip
//! that answers, [`judgement`] who decides, [`noticed`] what its router knows of its validator,
//! [`life`] one host's day, [`score`] what it was worth and [`events`] what it was worth
//! meanwhile, [`compare`] several hosts side by side, [`tune`] at equal watts, [`picture`] the day
//! as an SVG. [`replayed`] asks the router on the states of a machine that did exist.
//!
//! It refuses to invent quality: right and wrong are those of recorded answers. It cannot say
//! what another machine or other people would give; its numbers compare hosts with each other.

mod compare;
mod day;
mod events;
mod judgement;
mod life;
mod machine;
mod noticed;
mod picture;
mod replayed;
mod score;
#[cfg(test)]
mod tests;
mod tier;
mod traffic;
mod tune;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::Failure;

pub use compare::{Busy, Scene, scores};
pub use day::Day;
pub use events::{Events, print as print_events, together};
pub use judgement::{By, DRAFT_TOKENS, Judgement, Part, THRESHOLD};
pub use life::Lived;
pub use score::{DIFFERENCES, MEASURES, Score};
#[cfg(test)]
pub use tests::{write_known_rows, write_rows};
pub use tune::{EQUAL, Tuned, frugal_threshold, tuned_price, tuned_threshold, under_cap};

/// Requests per second, mean over a quiet day: one every twenty seconds, a small office.
const REQUESTS_PER_S: f64 = 0.05;
/// Price of energy, share of the router's own: its preset gives up more right answers for a
/// joule than somebody would who has bought the large tier.
const ENERGY_PRICE: f64 = 0.4;

#[derive(Debug, Subcommand)]
pub enum SimulateCommand {
    /// One eventful day of four hosts side by side: one that always asks the large tier, the
    /// same under a power cap and a static router, both tuned to the metabolic host's mean
    /// watts, and the metabolic one.
    ///
    /// A crowd, a heat wave, a lost thermometer, dear electricity and a power failure come one
    /// after another. Right answers are recorded ones.
    Day {
        #[command(flatten)]
        world: World,
        /// What happens instead, as TOML: hours, requests_per_s, seed; heat, crowd and
        /// price_spike like [{ from_h = 11, to_h = 17 }, 17] (kelvin, or a factor); outage,
        /// sensor_loss, sensor_stuck and sensor_absurd like { from_h = 1, to_h = 2 }.
        #[arg(long, value_name = "FILE")]
        day: Option<PathBuf>,
        /// Picture to write.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
        /// File to write everything to, as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// What the metabolic router would have decided on a machine whose sensors were recorded.
    ///
    /// The recording (`homeostat telemetry record`) goes through the sampler again, and at a
    /// fixed rate the router is asked about a recorded question. An open loop: no decision
    /// changes the recorded machine, so nothing is said of joules.
    Trace {
        #[command(flatten)]
        world: World,
        /// The recording.
        #[arg(long, value_name = "FILE")]
        trace: PathBuf,
        /// File to write everything to, as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

/// What every simulation is told.
#[derive(Debug, Clone, Args)]
pub struct World {
    /// Folder with mmlu.jsonl and gsm8k.jsonl.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Ask all rows: nothing was fitted on any of this folder.
    #[arg(long)]
    pub unseen: bool,
    /// Folder from whose fitted rows the operator knows how good his tiers are [default: the
    /// rows of --data that are not asked; with --unseen there are none]. Rows that are asked are
    /// left out.
    #[arg(long, value_name = "DIR")]
    pub known: Option<PathBuf>,
    /// Requests per second, mean over a quiet day.
    #[arg(long, value_name = "RATE", default_value_t = REQUESTS_PER_S)]
    pub requests_per_s: f64,
    /// The metabolic router's setting `energy-price`, a factor of its profile's price.
    #[arg(long, value_name = "FACTOR", default_value_t = ENERGY_PRICE)]
    pub energy_price: f64,
    /// What every operator wishes of his host's power: TOML with target_watts and
    /// battery_lasts_until as in [budgets]; days begin at midnight UTC.
    #[arg(long, value_name = "FILE")]
    pub power_plan: Option<PathBuf>,
    /// Where all random numbers begin.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
}

/// Runs a simulation.
pub fn run(command: SimulateCommand) -> Result<(), Failure> {
    match command {
        SimulateCommand::Day {
            world,
            day,
            svg,
            json,
        } => {
            let day = match day {
                Some(file) => written(&file, &world)?,
                None => Day::eventful(world.seed, world.requests_per_s),
            };
            let scene = Scene::open(&world)?;
            compare::day(&scene, &day, svg.as_deref(), json.as_deref())
        }
        SimulateCommand::Trace { world, trace, json } => {
            let scene = Scene::open(&world)?;
            replayed::run(&scene, &world, &trace, json.as_deref())
        }
    }
}

fn written(file: &Path, world: &World) -> Result<Day, Failure> {
    let wrong = |e: String| Failure::Config(format!("{}: {e}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
    Day::written(&text, world.seed, world.requests_per_s).map_err(wrong)
}
