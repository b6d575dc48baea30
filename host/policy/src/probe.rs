//! Golden inputs: what every policy must answer soundly before it serves.
//!
//! Each probe is a whole request on an instance of its own, under the full limits. A
//! fault or an answer that fails the checks refuses the component with the probe's name.

use std::sync::Arc;

use homeostat_hooks::{
    Answer, Causes, Classification, Decision, Device, DeviceKind, Fault, FaultKind, Forecast,
    Health, Hook, Message, MetabolicState, Outcome, Request, Role, Sample, Snapshot,
    SpeculationHint, ThrottleReasons, TierView, builtin, check,
};

use crate::admit::{AdmissionError, Stage};
use crate::call::{Instance, Policy};
use crate::candidate::wrong_types;
use crate::convert;
use crate::fault;
use crate::host::Asked;
use crate::limit::Permit;

/// What the probes measured.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub probes: u64,
    pub memory_bytes: u64,
    pub warnings: Vec<String>,
}

pub(crate) struct Probe {
    name: &'static str,
    pub request: Request,
    pub snapshot: Snapshot,
    tiers: Vec<TierView>,
}

/// Runs all probes on all hooks.
pub(crate) fn probe(policy: &Arc<Policy>, hooks: &[Hook]) -> Result<Findings, AdmissionError> {
    check_types(policy, hooks)?;
    let mut findings = Findings::default();
    for probe in probes() {
        let run = |findings: &mut Findings| run(policy, hooks, &probe, findings);
        // The first touch of cold pages on a busy machine may exceed a deadline that
        // holds ever after; an endless loop exceeds it twice.
        let outcome = match run(&mut findings) {
            Err(refusal) if refusal.1.kind == FaultKind::Deadline => run(&mut findings),
            other => other,
        };
        match outcome {
            Ok(()) => {}
            Err((hook, fault)) if is_unavailable(&fault) => {
                findings.warnings.push(format!(
                    "probe {} of {hook}: {} (taken as passing)",
                    probe.name, fault.detail
                ));
            }
            Err((hook, fault)) => return Err(refused(probe.name, hook, &fault)),
        }
        findings.probes += 1;
    }
    Ok(findings)
}

/// Whether a policy found only that its model is not there.
pub(crate) fn is_unavailable(fault: &Fault) -> bool {
    fault.detail.starts_with(fault::UNAVAILABLE)
}

fn refused(probe: &str, hook: &'static str, fault: &Fault) -> AdmissionError {
    let stage = if hook == INITIALISATION {
        Stage::Instantiate
    } else {
        Stage::Probe
    };
    AdmissionError::new(stage, format!("probe {probe} of {hook} ended as {fault}"))
        .help("`homeostat policy check` shows the same without a server")
}

const INITIALISATION: &str = "initialisation";

/// The first real instance, and the types of every function that will be called.
fn check_types(policy: &Arc<Policy>, hooks: &[Hook]) -> Result<(), AdmissionError> {
    let asked = Arc::new(Asked::new(Arc::default(), Arc::default()));
    let instance = || Instance::new(policy, &asked, Permit::spare(), policy.deadline());
    let made = match instance() {
        Err(fault) if fault.kind == FaultKind::Deadline => instance(),
        other => other,
    };
    let mut made =
        made.map_err(|fault| AdmissionError::new(Stage::Instantiate, fault.to_string()))?;
    made.check_types(hooks).map_err(|error| wrong_types(&error))
}

type Refusal = (&'static str, Fault);

/// One request through the hooks.
fn run(
    policy: &Arc<Policy>,
    hooks: &[Hook],
    probe: &Probe,
    findings: &mut Findings,
) -> Result<(), Refusal> {
    let asked = Arc::new(Asked::new(
        Arc::new(probe.request.clone()),
        Arc::new(probe.snapshot.clone()),
    ));
    let mut instance = Instance::new(policy, &asked, Permit::spare(), policy.deadline())
        .map_err(|fault| (INITIALISATION, fault))?;
    let mut classification = builtin::classify(&probe.request);
    if hooks.contains(&Hook::Classify) {
        classification = classify(&mut instance, policy).map_err(|f| ("classify", f))?;
    }
    if hooks.contains(&Hook::Route) {
        route(&mut instance, policy, &classification, &probe.tiers).map_err(|f| ("route", f))?;
    }
    if hooks.contains(&Hook::Validate) {
        validate(&mut instance, policy).map_err(|f| ("validate", f))?;
    }
    if policy.guests.learner.is_some() {
        let outcome = convert::outcome(&Outcome::default());
        instance
            .learn(policy.deadline(), &outcome)
            .map_err(|f| ("learn", f))?;
    }
    findings.memory_bytes = findings.memory_bytes.max(instance.memory_bytes());
    Ok(())
}

fn invalid(error: check::Invalid) -> Fault {
    Fault::new(FaultKind::Invalid, error.0)
}

fn classify(instance: &mut Instance, policy: &Policy) -> Result<Classification, Fault> {
    let answer = instance.classify(policy.deadline())?;
    check::classification(&answer).map_err(invalid)?;
    Ok(answer)
}

fn route(
    instance: &mut Instance,
    policy: &Policy,
    classification: &Classification,
    tiers: &[TierView],
) -> Result<Decision, Fault> {
    let classification = convert::classification(classification);
    let views: Vec<_> = tiers.iter().map(convert::tier).collect();
    let answer = instance.route(policy.deadline(), &classification, &views)?;
    check::decision(&answer, tiers).map_err(invalid)?;
    Ok(answer)
}

/// A plain answer.
const PLAIN: &str = "Paris is the capital of France.";

/// An empty answer, a plain one and a long one, as a first and as a last step.
fn validate(instance: &mut Instance, policy: &Policy) -> Result<(), Fault> {
    let long = "long ".repeat(4096);
    for (text, steps_left) in [("", 1), (PLAIN, 1), (PLAIN, 0), (&*long, 0)] {
        validate_text(instance, policy, text, steps_left)?;
    }
    Ok(())
}

fn validate_text(
    instance: &mut Instance,
    policy: &Policy,
    text: &str,
    steps_left: u32,
) -> Result<(), Fault> {
    let answer = Answer {
        tier: "small".into(),
        text: text.into(),
        steps_left,
        logprobs: vec![-0.3; text.len() / 4],
        accept_threshold: 0.5,
        ..Answer::default()
    };
    let verdict = instance.validate(policy.deadline(), &convert::answer(&answer))?;
    check::verdict(&verdict, &answer).map_err(invalid)
}

/// The request that costs are measured with.
pub(crate) fn ordinary() -> Probe {
    let mut snapshot = hot();
    snapshot.metabolism = Default::default();
    Probe {
        name: "normal",
        request: asked(&[
            (Role::System, "You are helpful."),
            (Role::User, "What is the capital of France?"),
        ]),
        snapshot,
        tiers: vec![
            tier("small", 0, true),
            tier("medium", 1, true),
            tier("large", 2, false),
        ],
    }
}

/// One question about a probe's request.
pub(crate) fn ask(
    instance: &mut Instance,
    policy: &Policy,
    hook: Hook,
    probe: &Probe,
) -> Result<(), Fault> {
    match hook {
        Hook::Classify => classify(instance, policy).map(drop),
        Hook::Route => {
            let classification = builtin::classify(&probe.request);
            route(instance, policy, &classification, &probe.tiers).map(drop)
        }
        Hook::Validate => validate_text(instance, policy, PLAIN, 0),
    }
}

fn asked(messages: &[(Role, &str)]) -> Request {
    Request {
        id: "probe".into(),
        model: "auto".into(),
        messages: messages
            .iter()
            .map(|(role, content)| Message {
                role: *role,
                content: (*content).to_string(),
            })
            .collect(),
        max_tokens: Some(64),
        temperature: 0.7,
        ..Request::default()
    }
}

fn tier(id: &str, rank: u32, ready: bool) -> TierView {
    TierView {
        id: id.into(),
        model: format!("{id}-model"),
        rank,
        quality: (0.9, 0.6 + 0.1 * rank as f32, 0.2 + 0.2 * rank as f32),
        parameters: Some(135_000_000 << rank),
        context_tokens: 2048,
        ready,
        ttft_ms: Some(Sample::measured(50.0)),
        tpot_ms: Some(Sample::measured(10.0 * f64::from(rank + 1))),
        joules_per_token: (rank == 0).then(|| Sample::measured(0.05)),
        can_speculate: true,
        gives_logprobs: rank == 0,
        ..TierView::default()
    }
}

fn hot() -> Snapshot {
    let mut snapshot = Snapshot {
        sequence: 7,
        monotonic_ms: 700,
        devices: vec![Device {
            id: "gpu.0".into(),
            kind: DeviceKind::Gpu,
            model: "probe".into(),
            health: Health::Ok,
            temperature_celsius: Some(Sample::measured(91.0)),
            thermal_margin_celsius: Some(Sample::measured(-3.0)),
            power_watts: Some(Sample::measured(299.0)),
            power_limit_watts: Some(Sample::measured(300.0)),
            throttle: Some(ThrottleReasons {
                thermal_hardware: true,
                power_cap: true,
                ..ThrottleReasons::default()
            }),
            forecast: Some(Forecast {
                horizon_ms: 10_000,
                margin_celsius: -4.0,
                time_to_throttle_ms: Some(0),
                rmse_celsius: 0.5,
            }),
            ..Device::default()
        }],
        ..Snapshot::default()
    };
    snapshot.metabolism.state = MetabolicState::Critical;
    snapshot.metabolism.causes = Causes {
        thermal: true,
        power: true,
        ..Causes::default()
    };
    snapshot.metabolism.risk = 1.0;
    snapshot.metabolism.degrade_ratio = 1.0;
    snapshot.metabolism.speculation = SpeculationHint::Avoid;
    snapshot
}

fn probes() -> Vec<Probe> {
    let normal = || {
        asked(&[
            (Role::System, "You are helpful."),
            (Role::User, "What is the capital of France?"),
        ])
    };
    let small = || vec![tier("small", 0, true)];
    let several = || {
        vec![
            tier("small", 0, true),
            tier("medium", 1, true),
            tier("large", 2, false),
        ]
    };
    let probe = |name, request, snapshot, tiers| Probe {
        name,
        request,
        snapshot,
        tiers,
    };
    let huge = "x ".repeat(32 << 10);
    let foreign = "¿Qué hora es? 今何時ですか？ \u{202e}🙂 \0 e\u{301}";
    vec![
        ordinary(),
        probe("one-tier", normal(), Snapshot::default(), small()),
        probe("absent-telemetry", normal(), Snapshot::default(), several()),
        probe("hot-telemetry", normal(), hot(), several()),
        probe("empty-messages", asked(&[]), Snapshot::default(), several()),
        probe(
            "empty-text",
            asked(&[(Role::User, "")]),
            Snapshot::default(),
            several(),
        ),
        probe(
            "huge-text",
            asked(&[(Role::User, &huge)]),
            Snapshot::default(),
            several(),
        ),
        probe(
            "non-ascii",
            asked(&[(Role::User, foreign)]),
            Snapshot::default(),
            several(),
        ),
    ]
}

/// The inputs of all probes, for tests of other modules.
#[cfg(test)]
pub(crate) fn scenes() -> Vec<(Request, Snapshot, Vec<TierView>)> {
    let each = probes().into_iter();
    each.map(|p| (p.request, p.snapshot, p.tiers)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;

    #[test]
    fn the_built_in_answers_pass_every_probe() {
        for probe in probes() {
            let c = builtin::classify(&probe.request);
            assert_eq!(check::classification(&c), Ok(()), "{}", probe.name);
            let d = builtin::route(&c, &probe.tiers, &probe.snapshot);
            assert_eq!(check::decision(&d, &probe.tiers), Ok(()), "{}", probe.name);
        }
    }

    #[test]
    fn the_huge_probe_fits_into_a_call() {
        let limits = Limits::default();
        for probe in probes() {
            let bytes: usize = probe.request.messages.iter().map(|m| m.content.len()).sum();
            assert!(bytes <= 64 << 10 && (bytes as u64) < limits.hostcall_bytes);
        }
    }
}
