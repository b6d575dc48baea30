//! Recorded decisions, without a running host: `explain --log` and `policy replay`.

use std::path::Path;

use homeostat_hooks::Hook;
use homeostat_policy::bundle::read_policy;
use homeostat_policy::{
    Candidate, PolicyOptions, RecordLog, Replayer, RoomConfig, explain, parse_options,
};

use super::{execute, print_json};
use crate::Failure;
use crate::cli::ConfigArgs;
use crate::config::Config;

/// `homeostat explain ID --log DIR`.
pub fn explain_from_log(
    dir: &Path,
    id: &str,
    set: &[(String, String)],
    json: bool,
) -> Result<(), Failure> {
    let log = RecordLog::open(dir).map_err(Failure::failed)?;
    let recording = log.find(id).map_err(Failure::failed)?;
    let explained = explain(&log, &replayer()?, &recording, set).map_err(Failure::failed)?;
    if json {
        return print_json(&serde_json::to_value(&explained).map_err(Failure::failed)?);
    }
    print!("{}", explained.text());
    Ok(())
}

/// `homeostat policy replay`; `execute` is how many moved routes the models answer again,
/// with the tiers of which configuration.
pub fn candidate(
    file: &Path,
    log: &Path,
    hook: Option<Hook>,
    execute: Option<(usize, &ConfigArgs)>,
    json: bool,
) -> Result<(), Failure> {
    let limit = RoomConfig::default().max_component_bytes;
    let stem = file.file_stem().and_then(|s| s.to_str());
    let candidate = Candidate {
        name: stem.unwrap_or("candidate").to_string(),
        bytes: read_policy(file, limit).map_err(Failure::failed)?.component,
        options: options_beside(file)?,
        hook,
        sample: execute.map_or(0, |(count, _)| count),
    };
    // Before the work: a file that cannot be used is told at once.
    let config = execute.map(|(_, args)| Config::load(args.config.as_deref()));
    let config = config.transpose()?;
    let log = RecordLog::open(log).map_err(Failure::failed)?;
    let report = replayer()?.candidate(&log, &candidate);
    let report = report.map_err(Failure::failed)?;
    let mut value = serde_json::to_value(&report).map_err(Failure::failed)?;
    if !json {
        print!("{}", report.text());
    }
    if let Some(config) = config {
        let moved = report.moved(Hook::Route);
        let executed = execute::execute(&config, &log, moved, &report.sample)?;
        if !json {
            print!("{}", executed.text());
        }
        value["executed"] = serde_json::to_value(&executed).map_err(Failure::failed)?;
    }
    if json {
        return print_json(&value);
    }
    Ok(())
}

fn replayer() -> Result<Replayer, Failure> {
    Replayer::new(&RoomConfig::default()).map_err(Failure::failed)
}

/// What the .toml beside a component says.
fn options_beside(file: &Path) -> Result<PolicyOptions, Failure> {
    let beside = file.with_extension("toml");
    let text = match std::fs::read_to_string(&beside) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(PolicyOptions::default());
        }
        Err(error) => return Err(Failure::Failed(format!("{}: {error}", beside.display()))),
    };
    parse_options(&text).map_err(|e| Failure::Config(format!("{}: {e}", beside.display())))
}
