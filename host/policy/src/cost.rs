//! What a policy costs, measured before it serves.
//!
//! After the probes have shown that it answers soundly, one ordinary request is run
//! through it again and again, on instances of its own and under its limits, for a
//! bounded number of runs and a bounded time. The numbers are those of this machine under
//! its present load; fuel is not: it counts instructions, and is the same everywhere.
//!
//! A budget refuses by the number that failed. It never looks at one run: the slowest of
//! a few on a busy machine says nothing about a policy, so a time over the budget is
//! measured once more and the better result counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use homeostat_hooks::{Fault, FaultKind, Hook};
use serde::Serialize;

use crate::admit::{AdmissionError, Stage};
use crate::call::{Instance, Policy};
use crate::config::{Budget, RoomConfig};
use crate::host::Asked;
use crate::limit::Permit;
use crate::probe::{self, Probe};

/// Runs of one measurement: a 99th percentile needs a hundred.
const RUNS_MAX: usize = 200;
/// A policy that takes milliseconds is known well enough after fewer.
const RUNS_MIN: usize = 5;
/// How long a measurement may take: what an operator does not notice beside the compiler.
const TIME_MAX: Duration = Duration::from_millis(250);
/// Runs that count the pages which an instance touches.
const PAGE_RUNS: usize = 3;

/// Faults of a request that are not worth a word: 64 KiB, a tenth of a fresh instance.
const FAULTS_FINE: u64 = 16;

/// Two points of a distribution, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// Half were at most this long.
    pub p50_micros: u64,
    /// 99 of 100 were at most this long; with fewer than a hundred runs, the longest.
    pub p99_micros: u64,
}

/// What one policy costs on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CostCard {
    /// Requests that were run.
    pub runs: u64,
    /// To make an instance, its own initialisation included.
    pub instantiate: Spread,
    /// One call, by hook.
    pub calls: BTreeMap<&'static str, Spread>,
    /// Page faults of one request, an instance included, once the pool is warm: pages beyond
    /// `policies.keep_resident_bytes` are touched anew by every request. None where the
    /// kernel does not count them.
    pub page_faults: Option<u64>,
    /// Fuel of one call, by hook: about one a WebAssembly instruction. Only measured where
    /// a budget asks for it, and by `homeostat policy check`.
    pub fuel: Option<BTreeMap<&'static str, u64>>,
    /// Memory that one request touches in a fresh instance, by the page faults that it
    /// takes. Measured together with fuel.
    pub touched_bytes: Option<u64>,
}

impl CostCard {
    /// The times of the measurement that a busy machine disturbed less.
    pub(crate) fn better_of(mut self, other: Self) -> Self {
        let smaller = |a: &mut Spread, b: Spread| {
            a.p50_micros = a.p50_micros.min(b.p50_micros);
            a.p99_micros = a.p99_micros.min(b.p99_micros);
        };
        smaller(&mut self.instantiate, other.instantiate);
        for (hook, times) in &mut self.calls {
            smaller(times, other.calls.get(hook).copied().unwrap_or(*times));
        }
        self
    }
}

/// One request: how long the instance took, and each hook.
struct Run {
    instantiation: Duration,
    calls: Vec<(&'static str, Duration, u64)>,
}

/// Measures times.
pub(crate) fn times(policy: &Arc<Policy>, hooks: &[Hook]) -> Result<CostCard, AdmissionError> {
    let probe = probe::ordinary();
    let mut instantiations = Vec::new();
    let mut calls: BTreeMap<&'static str, Vec<Duration>> = BTreeMap::new();
    let mut faults = Vec::new();
    let started = Instant::now();
    while instantiations.len() < RUNS_MIN
        || (instantiations.len() < RUNS_MAX && started.elapsed() < TIME_MAX)
    {
        let before = faults_of_this_thread();
        let run = run(policy, hooks, &probe).map_err(failed)?;
        let after = faults_of_this_thread();
        faults.extend(before.zip(after).map(|(b, a)| a.saturating_sub(b)));
        instantiations.push(run.instantiation);
        for (hook, time, _) in run.calls {
            calls.entry(hook).or_default().push(time);
        }
    }
    let calls = calls.into_iter();
    faults.sort_unstable();
    Ok(CostCard {
        runs: instantiations.len() as u64,
        instantiate: spread(instantiations),
        calls: calls.map(|(hook, times)| (hook, spread(times))).collect(),
        page_faults: faults.get(faults.len() / 2).copied(),
        fuel: None,
        touched_bytes: None,
    })
}

fn failed(fault: Fault) -> AdmissionError {
    let text = format!("it answered the probes and failed when it was measured: {fault}");
    AdmissionError::new(Stage::Probe, text)
}

fn spread(mut times: Vec<Duration>) -> Spread {
    times.sort_unstable();
    let at = |share: f64| {
        let rank = (times.len() as f64 * share).ceil() as usize;
        let time = times.get(rank.clamp(1, times.len().max(1)) - 1);
        time.map_or(0, |t| u64::try_from(t.as_micros()).unwrap_or(u64::MAX))
    };
    Spread {
        p50_micros: at(0.5),
        p99_micros: at(0.99),
    }
}

/// Measures what does not depend on the machine's speed, with a policy of the metered
/// engine.
pub(crate) fn fuel_and_pages(
    policy: &Arc<Policy>,
    hooks: &[Hook],
    card: &mut CostCard,
) -> Result<(), AdmissionError> {
    let probe = probe::ordinary();
    let mut touched = Vec::new();
    for _ in 0..PAGE_RUNS {
        let before = faults_of_this_thread();
        let run = run(policy, hooks, &probe).map_err(failed)?;
        if let (Some(before), Some(after)) = (before, faults_of_this_thread()) {
            touched.push(after.saturating_sub(before) * page_bytes());
        }
        // A policy that draws random numbers may differ from run to run.
        let most = card.fuel.get_or_insert_default();
        for (hook, _, fuel) in run.calls {
            let before = most.entry(hook).or_default();
            *before = fuel.max(*before);
        }
    }
    // The first runs also touch what belongs to the host.
    card.touched_bytes = touched.into_iter().min();
    Ok(())
}

/// One request through an instance of its own. A deadline that passes is a time like any
/// other here, and ends the request: the probes have judged it, and this machine is busy.
fn run(policy: &Arc<Policy>, hooks: &[Hook], probe: &Probe) -> Result<Run, Fault> {
    let asked = Arc::new(Asked::new(
        Arc::new(probe.request.clone()),
        Arc::new(probe.snapshot.clone()),
    ));
    let started = Instant::now();
    let made = Instance::new(policy, &asked, Permit::spare(), policy.deadline());
    let mut run = Run {
        instantiation: started.elapsed(),
        calls: Vec::new(),
    };
    let mut instance = match made {
        Err(fault) if fault.kind == FaultKind::Deadline => return Ok(run),
        other => other?,
    };
    for hook in hooks {
        let (started, before) = (Instant::now(), instance.fuel_used());
        let answer = probe::ask(&mut instance, policy, *hook, probe);
        let used = before.zip(instance.fuel_used());
        let fuel = used.map_or(0, |(before, after)| after - before);
        run.calls.push((hook.as_str(), started.elapsed(), fuel));
        match answer {
            Err(fault) if fault.kind == FaultKind::Deadline => break,
            // A model that is not ready yet says nothing against the policy.
            Err(fault) if !probe::is_unavailable(&fault) => return Err(fault),
            _ => {}
        }
    }
    Ok(run)
}

/// Minor page faults of this thread so far; none where the kernel does not tell.
fn faults_of_this_thread() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").ok()?;
    // The name in brackets may contain anything; minflt is the eighth field after it.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(7)?.parse().ok()
}

fn page_bytes() -> u64 {
    #[cfg(unix)]
    return rustix::param::page_size() as u64;
    #[cfg(not(unix))]
    4096
}

/// What a policy costs against what it may cost; `None` = within the budget.
pub(crate) fn over(budget: &Budget, card: &CostCard, memory_bytes: u64) -> Option<String> {
    let too_much = |what: &str, is: u64, limit: Option<u64>, key: &str| {
        let limit = limit.filter(|limit| is > *limit)?;
        Some(format!(
            "{what} is {is}, budget {limit} (policies.budget.{key})"
        ))
    };
    let instantiate = card.instantiate.p99_micros;
    let mut found = too_much(
        "the 99th percentile of instantiation in microseconds",
        instantiate,
        budget.instantiate_p99_micros,
        "instantiate_p99_micros",
    );
    for (hook, times) in &card.calls {
        let what = format!("the 99th percentile of {hook} in microseconds");
        let limit = budget.call_p99_micros;
        found = found.or_else(|| too_much(&what, times.p99_micros, limit, "call_p99_micros"));
    }
    for (hook, fuel) in card.fuel.iter().flatten() {
        let what = format!("the fuel of one {hook}");
        found = found.or_else(|| too_much(&what, *fuel, budget.fuel, "fuel"));
    }
    found.or_else(|| {
        let what = "the memory of one instance in bytes";
        too_much(what, memory_bytes, budget.memory_bytes, "memory_bytes")
    })
}

/// Bytes that every request touches anew, beyond what its slot of the pool keeps; none where
/// that is not worth a word.
pub(crate) fn missing_bytes(card: &CostCard) -> Option<u64> {
    let faults = card.page_faults.filter(|faults| *faults > FAULTS_FINE)?;
    Some(faults * page_bytes())
}

/// Advice about a setting of the room that does not suit this policy, whose slots keep so many
/// bytes.
pub(crate) fn advice(config: &RoomConfig, kept: Option<usize>, card: &CostCard) -> Option<String> {
    // Where nothing is kept the kernel cannot tell what to keep.
    let kept = kept.filter(|kept| *kept > 0)?;
    let missing = missing_bytes(card)?;
    let enough = card.touched_bytes.unwrap_or(kept as u64 + missing);
    Some(format!(
        "each request touches {missing} bytes anew, beyond the {kept} that its slot keeps. \
         policies.keep_resident_max_bytes = {} would spare that, if there is memory for it in \
         each of the {} slots (policies.instances)",
        enough.next_power_of_two(),
        config.instances
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_read_at_its_ranks() {
        let times = |n: u64| (1..=n).rev().map(Duration::from_micros).collect();
        let at = |n| {
            let s = spread(times(n));
            (s.p50_micros, s.p99_micros)
        };
        assert_eq!(at(200), (100, 198));
        assert_eq!(at(5), (3, 5));
        assert_eq!(at(1), (1, 1));
        assert_eq!(at(0), (0, 0));
    }

    #[test]
    fn the_number_that_failed_is_told_with_its_key() {
        let card = CostCard {
            instantiate: Spread {
                p50_micros: 5,
                p99_micros: 50,
            },
            calls: [(
                "route",
                Spread {
                    p50_micros: 7,
                    p99_micros: 70,
                },
            )]
            .into(),
            fuel: Some([("route", 1_000)].into()),
            ..CostCard::default()
        };
        let of = |budget: Budget| over(&budget, &card, 4096);
        assert_eq!(of(Budget::default()), None);
        let exact = Budget {
            instantiate_p99_micros: Some(50),
            call_p99_micros: Some(70),
            memory_bytes: Some(4096),
            fuel: Some(1_000),
        };
        assert_eq!(of(exact), None);
        for (budget, words) in [
            (
                Budget {
                    instantiate_p99_micros: Some(49),
                    ..exact
                },
                "is 50, budget 49",
            ),
            (
                Budget {
                    call_p99_micros: Some(69),
                    ..exact
                },
                "route in microseconds is 70",
            ),
            (
                Budget {
                    memory_bytes: Some(4095),
                    ..exact
                },
                "policies.budget.memory_bytes",
            ),
            (
                Budget {
                    fuel: Some(999),
                    ..exact
                },
                "the fuel of one route is 1000, budget 999",
            ),
        ] {
            let text = of(budget).unwrap();
            assert!(text.contains(words), "{text}");
        }
    }
}
