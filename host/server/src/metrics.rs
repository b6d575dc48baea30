//! `/metrics`: what Prometheus reads.
//!
//! Counters and histograms live here and are fed with every closed decision record, so
//! they tell the same story as the record. Gauges are read when somebody asks, into a
//! registry of that moment: a reading that does not exist has no line at all, because 0
//! would be a lie. Engine figures have vLLM's names with our prefix.

use homeostat_cascade::{DecisionRecord, Ending, StepRecord};
use homeostat_engine::EngineHandle;
use homeostat_hooks::{
    AnsweredBy, Device, Endpoint, Hook, HookReply, MetabolicState, Snapshot, TierView,
};
use homeostat_policy::RoomStats;
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder,
};

use crate::house::House;

/// From a policy's microseconds to its longest deadline.
const HOOK_SECONDS: [f64; 12] = [
    1e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 5e-3, 2e-2, 1e-1,
];
/// vLLM's buckets for the first token, thinned.
const TTFT_SECONDS: [f64; 12] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.25, 0.5, 1.0, 2.5, 7.5, 20.0,
];
/// vLLM's buckets for one output token, with finer ones for small models.
const TPOT_SECONDS: [f64; 11] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0,
];
const REQUEST_SECONDS: [f64; 11] = [
    0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 240.0,
];

type Result<T> = std::result::Result<T, prometheus::Error>;

/// All counters of this process.
pub struct Metrics {
    registry: Registry,
    http_requests: IntCounterVec,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    ttft_seconds: HistogramVec,
    tpot_seconds: HistogramVec,
    prompt_tokens: IntCounterVec,
    generation_tokens: IntCounterVec,
    escalations: IntCounterVec,
    tier_failures: IntCounterVec,
    hooks: HookMetrics,
}

/// Counters of hook calls, by hook and policy.
struct HookMetrics {
    calls: IntCounterVec,
    faults: IntCounterVec,
    fallbacks: IntCounterVec,
    seconds: HistogramVec,
}

impl Metrics {
    pub fn new() -> Result<Self> {
        let r = Registry::new();
        let count = |name: &str, help: &str, labels: &[&str]| counter(&r, name, help, labels);
        let time = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            histogram(&r, name, help, labels, buckets)
        };
        Ok(Self {
            http_requests: count(
                "homeostat_http_requests_total",
                "HTTP requests by path and status.",
                &["path", "status"],
            )?,
            requests: count(
                "homeostat_requests_total",
                "Requests for answers by endpoint, answering tier and how they ended.",
                &["endpoint", "tier", "ending"],
            )?,
            request_seconds: time(
                "homeostat_e2e_request_latency_seconds",
                "Time of a whole request for an answer.",
                &["endpoint"],
                &REQUEST_SECONDS,
            )?,
            ttft_seconds: time(
                "homeostat_time_to_first_token_seconds",
                "Time to the first text that the client saw.",
                &["tier"],
                &TTFT_SECONDS,
            )?,
            tpot_seconds: time(
                "homeostat_time_per_output_token_seconds",
                "Mean time of an answer's tokens after the first.",
                &["tier"],
                &TPOT_SECONDS,
            )?,
            prompt_tokens: count(
                "homeostat_prompt_tokens_total",
                "Prompt tokens by tier, all steps.",
                &["tier"],
            )?,
            generation_tokens: count(
                "homeostat_generation_tokens_total",
                "Generated tokens by tier; sent = whether a client saw them.",
                &["tier", "sent"],
            )?,
            escalations: count(
                "homeostat_escalations_total",
                "Answers that were not accepted, by their tier.",
                &["tier"],
            )?,
            tier_failures: count(
                "homeostat_tier_failures_total",
                "Steps that failed, by tier and error code.",
                &["tier", "code"],
            )?,
            hooks: HookMetrics::new(&r)?,
            registry: r,
        })
    }

    pub fn http_request(&self, path: &str, status: u16) {
        let labels = [path, &status.to_string()];
        self.http_requests.with_label_values(&labels).inc();
    }

    /// Count a closed decision.
    pub fn record(&self, record: &DecisionRecord) {
        let endpoint = match record.request.endpoint {
            Endpoint::Chat => "chat",
            Endpoint::Completion => "completion",
        };
        let (tier, ending) = ending(&record.ending);
        let labels = [endpoint, tier, ending];
        self.requests.with_label_values(&labels).inc();
        let seconds = f64::from(record.total_ms) / 1e3;
        let all = self.request_seconds.with_label_values(&[endpoint]);
        all.observe(seconds);
        if let (Some(ms), Ending::Sent { tier, .. }) = (record.ttft_ms, &record.ending) {
            let first = self.ttft_seconds.with_label_values(&[tier.as_str()]);
            first.observe(f64::from(ms) / 1e3);
        }
        if let Some(reply) = &record.classification {
            self.hooks.record(Hook::Classify, reply);
        }
        if let Some(reply) = &record.decision {
            self.hooks.record(Hook::Route, reply);
        }
        for step in &record.steps {
            self.step(step);
        }
    }

    fn step(&self, step: &StepRecord) {
        let tier = step.tier.as_str();
        let sent = if step.sent { "true" } else { "false" };
        self.prompt_tokens
            .with_label_values(&[tier])
            .inc_by(step.prompt_tokens.into());
        self.generation_tokens
            .with_label_values(&[tier, sent])
            .inc_by(step.completion_tokens.into());
        if let Some(error) = &step.error {
            let labels = [tier, error.code];
            self.tier_failures.with_label_values(&labels).inc();
        } else if !step.sent && step.verdict.is_some() {
            self.escalations.with_label_values(&[tier]).inc();
        }
        if let Some(reply) = &step.verdict {
            self.hooks.record(Hook::Validate, reply);
        }
        if let (Some(first), true) = (step.ttft_ms, step.completion_tokens > 1) {
            let rest = f64::from(step.total_ms.saturating_sub(first)) / 1e3;
            let mean = rest / f64::from(step.completion_tokens - 1);
            self.tpot_seconds.with_label_values(&[tier]).observe(mean);
        }
    }

    /// Everything, in Prometheus' text format.
    pub fn text(&self, house: &House) -> std::result::Result<String, String> {
        let mut families = self.registry.gather();
        let now = gauges(house).map_err(|e| format!("metrics: {e}"))?;
        families.extend(now.gather());
        TextEncoder::new()
            .encode_to_string(&families)
            .map_err(|e| format!("metrics: {e}"))
    }
}

impl HookMetrics {
    fn new(r: &Registry) -> Result<Self> {
        let labels = ["hook", "policy"];
        let fallbacks = "Hook calls that a fallback answered, by the policy that failed.";
        Ok(Self {
            calls: counter(r, "homeostat_hook_calls_total", "Hook calls.", &labels)?,
            faults: counter(
                r,
                "homeostat_hook_faults_total",
                "Faults of policies: trap, deadline, memory, invalid, denied.",
                &["hook", "policy", "kind"],
            )?,
            fallbacks: counter(r, "homeostat_hook_fallbacks_total", fallbacks, &labels)?,
            seconds: histogram(
                r,
                "homeostat_hook_duration_seconds",
                "Time of a hook call, waiting for an instance included.",
                &labels,
                &HOOK_SECONDS,
            )?,
        })
    }

    fn record<T>(&self, hook: Hook, reply: &HookReply<T>) {
        let policy = match &reply.by {
            AnsweredBy::BuiltIn => "built-in",
            AnsweredBy::Component { name, .. } | AnsweredBy::Fallback { name, .. } => name.as_str(),
        };
        let labels = [hook.as_str(), policy];
        self.calls.with_label_values(&labels).inc();
        let seconds = self.seconds.with_label_values(&labels);
        seconds.observe(reply.micros as f64 / 1e6);
        if let Some(fault) = &reply.fault {
            let labels = [hook.as_str(), policy, fault.kind.as_str()];
            self.faults.with_label_values(&labels).inc();
        }
        if matches!(reply.by, AnsweredBy::Fallback { .. }) {
            self.fallbacks.with_label_values(&labels).inc();
        }
    }
}

fn counter(r: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
    let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
    r.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn histogram(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
    buckets: &[f64],
) -> Result<HistogramVec> {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    let histogram = HistogramVec::new(options, labels)?;
    r.register(Box::new(histogram.clone()))?;
    Ok(histogram)
}

fn ending(ending: &Ending) -> (&str, &'static str) {
    match ending {
        Ending::Running => ("", "running"),
        Ending::Sent { tier, .. } => (tier, "sent"),
        Ending::Direct { .. } => ("direct", "direct"),
        Ending::Refused { .. } => ("", "refused"),
        Ending::Failed { .. } => ("", "failed"),
        Ending::Cancelled => ("", "cancelled"),
    }
}

/// The gauges of this moment.
fn gauges(house: &House) -> Result<Registry> {
    let mut now = Moment::default();
    for tier in house.cascade.tiers() {
        load(&mut now, &tier.view())?;
    }
    for tier in &house.local_tiers {
        engine(&mut now, tier.engine())?;
    }
    policies(&mut now, &house.policies.stats())?;
    machine(&mut now, &(house.snapshots)())?;
    Ok(now.registry)
}

fn load(now: &mut Moment, view: &TierView) -> Result<()> {
    let id = [("tier", view.id.as_str())];
    for (name, help, value) in [
        (
            "homeostat_tier_ready",
            "Whether a tier answers.",
            f64::from(view.ready),
        ),
        (
            "homeostat_num_requests_running",
            "Sequences running.",
            view.num_requests_running.into(),
        ),
        (
            "homeostat_num_requests_waiting",
            "Sequences waiting.",
            view.num_requests_waiting.into(),
        ),
    ] {
        now.set(name, help, &id, value)?;
    }
    Ok(())
}

fn engine(now: &mut Moment, engine: &EngineHandle) -> Result<()> {
    let stats = engine.stats();
    let id = [("tier", engine.info().name.as_str())];
    let share = "Used share of the KV cache, 0 to 1.";
    now.set(
        "homeostat_kv_cache_usage_perc",
        share,
        &id,
        stats.kv_cache_usage,
    )?;
    let preempted = stats.num_preemptions_total as f64;
    now.set(
        "homeostat_num_preemptions",
        "Preemptions since the start.",
        &id,
        preempted,
    )
}

fn policies(now: &mut Moment, room: &RoomStats) -> Result<()> {
    for (name, help, value) in [
        (
            "homeostat_policy_swaps",
            "Swaps since the start.",
            room.swaps.count as f64,
        ),
        (
            "homeostat_policy_refused",
            "Components refused since the start.",
            room.refused as f64,
        ),
        (
            "homeostat_policy_instances",
            "Instances alive.",
            room.instances.into(),
        ),
    ] {
        now.set(name, help, &[], value)?;
    }
    for active in room.generations.iter().filter(|g| g.active) {
        let labels = [("hook", active.hook.as_str()), ("policy", &active.policy)];
        let help = "Generation that serves a hook.";
        now.set(
            "homeostat_policy_generation",
            help,
            &labels,
            active.generation as f64,
        )?;
    }
    Ok(())
}

fn machine(now: &mut Moment, snapshot: &Snapshot) -> Result<()> {
    for d in &snapshot.devices {
        device(now, d)?;
    }
    let p = &snapshot.pressure;
    for (resource, kind, value) in [
        ("cpu", "some", p.cpu_some_ratio),
        ("memory", "some", p.memory_some_ratio),
        ("memory", "full", p.memory_full_ratio),
        ("io", "some", p.io_some_ratio),
    ] {
        let labels = [("resource", resource), ("kind", kind)];
        now.maybe(
            "homeostat_hw_pressure_ratio",
            "Share of time that tasks waited.",
            &labels,
            value.map(f64::from),
        )?;
    }
    let m = &snapshot.metabolism;
    let all = [
        (MetabolicState::Nominal, "nominal"),
        (MetabolicState::Elevated, "elevated"),
        (MetabolicState::Constrained, "constrained"),
        (MetabolicState::Critical, "critical"),
    ];
    for (state, word) in all {
        let here = f64::from(m.state == state);
        now.set(
            "homeostat_metabolic_state",
            "1 for the present state.",
            &[("state", word)],
            here,
        )?;
    }
    now.set(
        "homeostat_metabolic_risk",
        "Risk of slowdown, 0 to 1.",
        &[],
        m.risk.into(),
    )?;
    let degrade = m.degrade_ratio.into();
    now.set(
        "homeostat_degrade_ratio",
        "Share of traffic that should move down.",
        &[],
        degrade,
    )
}

fn device(now: &mut Moment, d: &Device) -> Result<()> {
    let id = [("device", d.id.as_str())];
    let value = |s: Option<homeostat_hooks::Sample>| s.map(|s| s.value);
    for (name, help, value) in [
        (
            "homeostat_hw_temperature_celsius",
            "Core temperature.",
            value(d.temperature_celsius),
        ),
        (
            "homeostat_hw_memory_temperature_celsius",
            "Memory temperature.",
            value(d.memory_temperature_celsius),
        ),
        (
            "homeostat_hw_thermal_margin_celsius",
            "Distance to the first slowdown.",
            value(d.thermal_margin_celsius),
        ),
        (
            "homeostat_hw_power_watts",
            "Power drawn.",
            value(d.power_watts),
        ),
        (
            "homeostat_hw_power_limit_watts",
            "Power limit in force.",
            value(d.power_limit_watts),
        ),
        (
            "homeostat_hw_energy_joules",
            "Energy since the host started.",
            value(d.energy_joules),
        ),
        (
            "homeostat_hw_utilization_ratio",
            "Busy share, 0 to 1.",
            value(d.utilization_ratio),
        ),
        (
            "homeostat_hw_clock_ratio",
            "Clock as a share of its maximum.",
            value(d.clock_ratio),
        ),
        (
            "homeostat_hw_memory_used_bytes",
            "Memory in use.",
            d.memory_used_bytes.map(|b| b as f64),
        ),
        (
            "homeostat_hw_memory_total_bytes",
            "Memory in all.",
            d.memory_total_bytes.map(|b| b as f64),
        ),
    ] {
        now.maybe(name, help, &id, value)?;
    }
    Ok(())
}

/// A registry of one moment; a gauge exists from the first value on.
#[derive(Default)]
struct Moment {
    registry: Registry,
    labelled: std::collections::HashMap<&'static str, GaugeVec>,
}

impl Moment {
    fn maybe(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &[(&str, &str)],
        value: Option<f64>,
    ) -> Result<()> {
        value.map_or(Ok(()), |v| self.set(name, help, labels, v))
    }

    fn set(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &[(&str, &str)],
        value: f64,
    ) -> Result<()> {
        if labels.is_empty() {
            let gauge = Gauge::with_opts(Opts::new(name, help))?;
            gauge.set(value);
            return self.registry.register(Box::new(gauge));
        }
        let gauge = match self.labelled.get(name) {
            Some(gauge) => gauge,
            None => {
                let names: Vec<&str> = labels.iter().map(|(name, _)| *name).collect();
                let gauge = GaugeVec::new(Opts::new(name, help), &names)?;
                self.registry.register(Box::new(gauge.clone()))?;
                self.labelled.entry(name).or_insert(gauge)
            }
        };
        let values: Vec<&str> = labels.iter().map(|(_, value)| *value).collect();
        gauge.with_label_values(&values).set(value);
        Ok(())
    }
}
