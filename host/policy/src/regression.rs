//! Recorded traffic that a candidate must answer before it serves.
//!
//! Golden inputs show that a policy answers; recorded requests show that it answers *these*
//! people much as they were answered before. The candidate gets the newest recordings as any
//! replay gives them: nothing is asked of a model, no state is touched. It is refused when
//! one of its calls fails, or when more of them than allowed decide otherwise; the first
//! that fails ends it, and so does the time that it may take, since others wait to be
//! admitted meanwhile. A call that asks the host what nobody recorded counts as one that decides otherwise, since nobody
//! knows what it would decide.
//!
//! A folder in which nothing was recorded for its hooks yet judges nobody, and a warning says
//! so; one whose recordings cannot be replayed lets nobody pass, or the gate would stand open
//! without anybody noticing.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use homeostat_hooks::Hook;
use serde::Serialize;

use crate::admit::{AdmissionError, Stage};
use crate::candidate;
use crate::config::{PolicyOptions, RoomConfig};
use crate::record::{RecordLog, Recorder};
use crate::replay::Replayer;
use crate::rerun::{Candidate, CandidateReport, Rerun};

/// What a policy made of the recorded traffic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Regression {
    /// Recorded requests that it was asked.
    pub requests: u64,
    /// Calls of its hooks.
    pub calls: u64,
    /// Of those, the ones whose outcome is another: other tiers, class or verdict.
    pub moved: u64,
    /// Of those, the ones that asked the host something unrecorded.
    pub misses: u64,
}

/// What judges: made when the first candidate comes.
pub(crate) type Judge = OnceLock<Result<Replayer, String>>;

/// The room's replayer.
pub(crate) fn replayer<'a>(judge: &'a Judge, config: &RoomConfig) -> Result<&'a Replayer, String> {
    let made = judge.get_or_init(|| Replayer::new(config));
    made.as_ref().map_err(Clone::clone)
}

/// Asks a candidate the recorded requests; `None` where there is nothing to ask.
pub(crate) fn judge(
    candidate: &candidate::Candidate<'_>,
    judge: &Judge,
    recorder: Option<&Recorder>,
) -> Result<Option<Regression>, AdmissionError> {
    let config = candidate.with.config;
    let Some(dir) = &config.replay.dir else {
        return Ok(None);
    };
    let refuse = |text: String| AdmissionError::new(Stage::Replay, text);
    let unreadable = |why: String| {
        refuse(format!("policies.replay.dir: {why}"))
            .help("record traffic there (policies.record.dir), or take the setting out")
    };
    if !dir.is_dir() {
        return Err(unreadable(format!("{} is no folder", dir.display())));
    }
    if let Some(recorder) = recorder {
        recorder.flush();
    }
    // A folder in which nothing was recorded yet.
    let Ok(log) = RecordLog::open(dir) else {
        return Ok(None);
    };
    let recordings = log.newest(config.replay.max_requests as usize);
    let recordings = recordings.map_err(unreadable)?;
    let replayer = replayer(judge, config).map_err(refuse)?;
    let component = candidate.compile(&replayer.engine)?.component;
    let policy = Arc::new(candidate.link(&replayer.engine, &component)?);
    let asked = Candidate {
        name: candidate.name.to_string(),
        // Its own, and not those of the policy that was recorded.
        options: PolicyOptions {
            grants: Some(candidate.options.grants.clone().unwrap_or_default()),
            settings: Some(candidate.options.settings.clone().unwrap_or_default()),
            ..candidate.options.clone()
        },
        ..Candidate::default()
    };
    let mut rerun = Rerun::new(policy, &asked).map_err(refuse)?;
    let (asked, most) = (Instant::now(), config.replay.max_seconds);
    for (count, recording) in recordings.iter().enumerate() {
        if count > 0 && asked.elapsed() >= Duration::from_secs(most) {
            return Err(refuse(format!(
                "{count} of {} recorded requests took more than {most} s \
                 (policies.replay.max_seconds)",
                recordings.len()
            ))
            .help(
                "make it quicker, ask it fewer (policies.replay.max_requests), or raise the limit",
            ));
        }
        rerun.request(recording);
        if !rerun.report.faults.is_empty() {
            break;
        }
    }
    weigh(&rerun.report, config.replay.max_changed)
}

fn weigh(report: &CandidateReport, most: f64) -> Result<Option<Regression>, AdmissionError> {
    let refuse = |text: String| AdmissionError::new(Stage::Replay, text);
    let found = Regression {
        requests: report.requests,
        calls: report.calls,
        moved: Hook::ALL.iter().map(|hook| report.moved(*hook)).sum(),
        misses: report.misses.len() as u64,
    };
    if found.calls == 0 {
        let blind = report
            .skipped
            .iter()
            .find(|(why, _)| *why != Rerun::NOT_ITS_HOOKS);
        return match blind {
            Some((why, count)) => Err(refuse(format!(
                "{count} recorded requests cannot be asked, and no other can: {why}"
            ))
            .help("the folder is policies.replay.dir")),
            None => Ok(None),
        };
    }
    if let Some((id, hook, fault)) = report.faults.first() {
        return Err(refuse(format!(
            "{} of {} recorded calls failed; {} of request {id}: {fault}",
            report.faults.len(),
            found.calls,
            hook.as_str()
        )));
    }
    let otherwise = found.moved + found.misses;
    if otherwise as f64 > most * found.calls as f64 {
        let missed = match report.misses.first() {
            None => String::new(),
            Some((_, _, miss)) => format!(
                ", {} of them because it asks what was not recorded ({miss})",
                found.misses
            ),
        };
        return Err(refuse(format!(
            "{otherwise} of {} recorded calls would be decided otherwise{missed}; at most a \
             share of {most} may (policies.replay.max_changed)",
            found.calls
        ))
        .help("`homeostat policy replay` shows them one by one"));
    }
    Ok(Some(found))
}
