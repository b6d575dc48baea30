//! The `homeostat` binary: the only room that knows all others, and the only home of
//! HTTP.
//!
//! What is where: [`cli`] the command line · [`config`] homeostat.toml · [`serve`] wiring,
//! door, drain · [`house`] what requests share · [`http`] paths · [`openai`] the wire ·
//! [`tiers`] local engine and remote servers · [`models`] model files · [`embedded`]
//! policies in the binary · [`registry`] bundles in OCI registries · [`energy`], [`budgets`]
//! what answers cost and who pays · [`baselines`] what is usual for a tier, over restarts ·
//! [`bench`] how good the judgement is · [`simulate`] hosts on a machine that does not exist ·
//! [`metrics`], [`log`] what watches · [`commands`] everything else that can be asked for.
//!
//! It refuses to infer, to judge, and to let a wire type go below [`openai`].

mod admin_client;
mod baselines;
mod batches;
mod bench;
mod budgets;
mod cli;
mod commands;
mod config;
mod embedded;
mod energy;
mod house;
mod http;
mod http_client;
mod log;
mod mean;
mod metrics;
mod models;
mod openai;
mod registry;
#[cfg(test)]
mod registry_tests;
mod serve;
mod simulate;
mod state_file;
mod tiers;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

/// Why the process ends badly; decides its exit code.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Usage or configuration is wrong: exit code 2, as for wrong arguments.
    #[error("{0}")]
    Config(String),
    /// What was asked for failed or was refused: exit code 1.
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    pub fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<config::ConfigError> for Failure {
    fn from(error: config::ConfigError) -> Self {
        Self::Config(error.to_string())
    }
}

fn main() -> ExitCode {
    // Not for people, so no command of the command line: see homeostat_policy's compiler.
    if std::env::args().skip(1).eq(homeostat_policy::COMPILE_CHILD) {
        return homeostat_policy::compile_child();
    }
    let done = match Cli::parse().command {
        Command::Serve(args) => serve::serve(args),
        Command::Policy(command) => commands::policy(command),
        Command::Models(command) => commands::models(command),
        Command::Bench(command) => bench::run(command),
        Command::Simulate(command) => simulate::run(command),
        Command::Telemetry(args) => commands::telemetry(args),
        Command::Config(command) => commands::config(command),
        Command::Explain {
            id,
            set,
            log,
            json,
            host,
        } => match (id, log) {
            (Some(id), Some(log)) => commands::explain_from_log(&log, &id, &set, json),
            (id, _) => commands::explain(id.as_deref(), &set, json, &host),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("homeostat: {failure}");
            match failure {
                Failure::Config(_) => ExitCode::from(2),
                Failure::Failed(_) => ExitCode::from(1),
            }
        }
    }
}
