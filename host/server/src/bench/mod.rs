//! `homeostat bench`: how good the judgement is, on recorded outcomes.
//!
//! [`curve`], [`detection`], [`calibration`] and [`bootstrap`] are pure: rows in, figures
//! out. [`outcomes`] reads what was recorded, [`ask`] asks a policy through the policy room
//! as a host does, [`routing`] and [`validate`] bring them together, [`svg`] draws.
//! [`days`] lets hosts live through simulated days: what the judgement saves of energy, and
//! which part of it does; [`frontier`] what a share of right answers costs there.
//!
//! Nothing is fitted here: a figure counts only on rows that nothing was fitted on, and
//! each says which rows those are.

pub mod ask;
mod bootstrap;
mod calibration;
mod curve;
mod days;
mod detection;
mod frontier;
mod knn;
pub mod outcomes;
mod routing;
pub mod svg;
mod validate;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::Failure;
use bootstrap::{Bootstrap, Interval};

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// How well a classifier picks the requests that deserve a strong model.
    ///
    /// Beside it: prompt length, k nearest neighbours, random, always one model, an oracle.
    /// Figures are PGR, APGR, CPT, AIQ, deferral curve, ECE and Brier, with intervals.
    Routing {
        /// Folder with mmlu.jsonl, gsm8k.jsonl, mt_bench.jsonl.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        #[command(flatten)]
        common: Common,
        /// Scores of another router to set beside it: lines like {"sha256": "hex of the
        /// prompt's", "score": 0.3}, the highest to the strong model; may be repeated.
        #[arg(long, value_name = "FILE")]
        scores: Vec<PathBuf>,
        /// Picture of the curves to write.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// How well a validator finds wrong answers, beside the answer's length.
    ///
    /// Figures are AUROC, AUPRC, PRR, ECE and Brier, with intervals.
    Validate {
        /// Folder with gsm8k.jsonl: two models' recorded answers.
        #[arg(long, value_name = "DIR", required_unless_present = "answers")]
        data: Option<PathBuf>,
        /// Answers of a running host instead, as tests/bench/collect_answers.py writes them.
        #[arg(long, value_name = "FILE", conflicts_with = "data")]
        answers: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
        /// Picture of the ROC curves to write.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// What the metabolic host saves on simulated days, beside simpler ones.
    ///
    /// At equal watts: hosts that always ask the large tier under a power cap, and static
    /// routers, each tuned with hindsight to the metabolic host's mean watts. At equal quality:
    /// the metabolic host at six prices of energy beside a static router at eight thresholds.
    /// Differences are paired by day. Every day is lived some fifty times.
    Energy {
        #[command(flatten)]
        days: days::Args,
        /// Picture of joules against quality to write.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// What each part of the metabolic host is worth: the same days with each left out in turn.
    Ablation {
        #[command(flatten)]
        days: days::Args,
        /// Set the price of energy of each host anew, so that all draw the same; takes several
        /// times as long.
        #[arg(long)]
        equal_watts: bool,
    },
}

/// What every bench on recorded rows is told.
#[derive(Debug, Args)]
pub struct Common {
    /// A WebAssembly component, or a policy's folder [default: the one that comes with the
    /// host].
    #[arg(long, value_name = "FILE")]
    component: Option<PathBuf>,
    /// Report all rows: nothing was fitted on any of this folder.
    #[arg(long)]
    unseen: bool,
    /// Bootstrap rounds of the 95 % intervals.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    rounds: usize,
    /// Where the random numbers of the intervals begin.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// File to write everything to, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs a bench.
pub fn run(command: BenchCommand) -> Result<(), Failure> {
    match command {
        BenchCommand::Routing {
            data,
            common,
            scores,
            svg,
        } => routing::run(&routing::Plan {
            bootstrap: common.bootstrap(),
            data,
            component: common.component,
            unseen: common.unseen,
            json: common.json,
            scores,
            svg,
        }),
        BenchCommand::Validate {
            data,
            answers,
            common,
            svg,
        } => validate::run(&validate::Plan {
            bootstrap: common.bootstrap(),
            data,
            answers,
            component: common.component,
            unseen: common.unseen,
            json: common.json,
            svg,
        }),
        BenchCommand::Energy { days, svg } => days::energy(&days, svg.as_deref()),
        BenchCommand::Ablation { days, equal_watts } => days::ablation(&days, equal_watts),
    }
}

impl Common {
    fn bootstrap(&self) -> Bootstrap {
        Bootstrap {
            rounds: self.rounds,
            seed: self.seed,
        }
    }
}

/// A figure and its 95 % interval; either may be undefined, and without the one there is none of
/// the other.
#[derive(Debug, Clone, Default)]
struct Figure {
    value: Option<f64>,
    interval: Option<Interval>,
    /// Share of the bootstrap rounds in which it was defined.
    defined_ratio: f64,
}

impl Figure {
    /// Everything that `of` computes from how often each of `rows` rows counts.
    fn all(
        bootstrap: Bootstrap,
        rows: usize,
        of: impl Fn(&[u32]) -> Vec<Option<f64>>,
    ) -> Vec<Self> {
        let values = of(&vec![1; rows]);
        let drawn = bootstrap.drawn(rows, of);
        let figures = values.into_iter().zip(drawn).map(|(value, drawn)| Self {
            value,
            interval: drawn.interval.filter(|_| value.is_some()),
            defined_ratio: drawn.defined_ratio,
        });
        figures.collect()
    }

    fn json(&self) -> Value {
        json!({
            "value": self.value,
            "low": self.interval.map(|i| i.low),
            "high": self.interval.map(|i| i.high),
            "defined_ratio": self.defined_ratio,
        })
    }
}

/// `0.512 [0.480, 0.544]`; `signed` shows a plus. One that is not always defined says how often.
fn shown(figure: &Figure, signed: bool) -> String {
    let number = |value: f64| {
        if signed {
            format!("{value:+.3}")
        } else {
            format!("{value:.3}")
        }
    };
    match (figure.value, figure.interval) {
        (None, _) => "–".to_owned(),
        (Some(value), None) => {
            let share = 100.0 * figure.defined_ratio;
            format!("{} (in {share:.0} % of the rounds)", number(value))
        }
        (Some(value), Some(interval)) => {
            let (low, high) = (number(interval.low), number(interval.high));
            format!("{} [{low}, {high}]", number(value))
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn write(file: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(file, text)
        .map_err(|e| Failure::Failed(format!("cannot write {}: {e}", file.display())))
}
