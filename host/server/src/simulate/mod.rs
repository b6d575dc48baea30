//! `homeostat simulate`: a host on a machine that does not exist, through a day that never was.
//!
//! Cascade, policies (the components, in the policy room), sampler, state machine and ledger
//! are the server's own; the machine, the tiers, the clock and the people are not. Everything
//! follows from one seed: [`day`] what happens, [`traffic`] who asks what, [`machine`] the chip
//! that answers, [`judgement`] who decides, [`life`] one host's day, [`score`] what it was
//! worth, [`compare`] several hosts side by side, [`picture`] the day as an SVG.
//!
//! It refuses to invent quality: right and wrong are those of recorded answers. It cannot say
//! what another machine or other people would give; its numbers compare hosts with each other.

mod compare;
mod day;
mod judgement;
mod life;
mod machine;
mod picture;
mod score;
#[cfg(test)]
mod tests;
mod tier;
mod traffic;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::Failure;

pub use compare::{Scene, scores, tuned_threshold, under_cap};
pub use day::Day;
pub use judgement::{Judgement, Part, THRESHOLD};
pub use score::{MEASURES, Score};

/// Requests per second, mean over a quiet day: one every twenty seconds, a small office.
const REQUESTS_PER_S: f64 = 0.05;
/// Price of energy, share of the router's own: its preset gives up more right answers for a
/// joule than somebody would who has bought the large tier.
const ENERGY_PRICE: f64 = 0.4;

#[derive(Debug, Subcommand)]
pub enum SimulateCommand {
    /// One eventful day of three hosts side by side: a static one, one under a power cap of
    /// the metabolic host's mean watts, and the metabolic one.
    ///
    /// A crowd, a heat wave, a lost thermometer, dear electricity and a power failure come one
    /// after another. Right answers are recorded ones.
    Day {
        #[command(flatten)]
        world: World,
        /// Picture to write.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
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
    /// Requests per second, mean over a quiet day.
    #[arg(long, value_name = "RATE", default_value_t = REQUESTS_PER_S)]
    pub requests_per_s: f64,
    /// The metabolic router's setting `energy-price`, a factor of its profile's price.
    #[arg(long, value_name = "FACTOR", default_value_t = ENERGY_PRICE)]
    pub energy_price: f64,
    /// Where all random numbers begin.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
}

/// Runs a simulation.
pub fn run(command: SimulateCommand) -> Result<(), Failure> {
    match command {
        SimulateCommand::Day { world, svg, json } => {
            let scene = Scene::open(&world)?;
            let day = Day::eventful(world.seed, world.requests_per_s);
            compare::day(&scene, &day, svg.as_deref(), json.as_deref())
        }
    }
}
