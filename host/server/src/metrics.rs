//! `/metrics`: what Prometheus reads.
//!
//! What a model does has vLLM's names with our prefix and its label `model_name`, so that a
//! dashboard for vLLM serves after one replacement; a step of a plan is what vLLM calls a
//! request. What vLLM does not know (tiers, hooks, the client's view of a cascade, the
//! machine) has names of its own.
//!
//! Counters and histograms are fed with every closed decision record, so they tell the same
//! story as the record; those that only an engine knows are read from it when somebody asks,
//! into families of that moment, like all gauges. A reading that does not exist has no line at
//! all, because 0 would be a lie.

mod budgets;
mod sensors;

use homeostat_cascade::{DecisionRecord, Ending, StepRecord};
use homeostat_engine::{DRAFT_POSITIONS, EngineHandle, EngineStats, ITERATION_TOKEN_BOUNDS};
use homeostat_hooks::{
    AnsweredBy, Device, Endpoint, Finish, Forecast, Hook, HookReply, MetabolicState, Origin,
    Snapshot, TierView,
};
use homeostat_policy::{RoomStats, TrialStatus};
use homeostat_telemetry::ledger::Accounts;
use prometheus::proto::{Bucket, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry,
    TextEncoder,
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
const TPOT_SECONDS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0,
];
const REQUEST_SECONDS: [f64; 11] = [
    0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 240.0,
];
/// From a small model's short answer to a large one's long answer.
const REQUEST_JOULES: [f64; 12] = [
    0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4,
];
/// Tokens of a prompt or an answer: vLLM's 1-2-5 steps.
const TOKENS: [f64; 16] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5,
];
/// vLLM's label.
const MODEL: &str = "model_name";

type Result<T> = std::result::Result<T, prometheus::Error>;

/// All counters of this process.
pub struct Metrics {
    registry: Registry,
    http_requests: IntCounterVec,
    requests: IntCounterVec,
    answer_seconds: HistogramVec,
    answer_ttft_seconds: HistogramVec,
    escalations: IntCounterVec,
    stream_cuts: IntCounterVec,
    tier_failures: IntCounterVec,
    request_joules: Histogram,
    models: ModelMetrics,
    hooks: HookMetrics,
}

/// What models do, by model, under vLLM's names.
struct ModelMetrics {
    success: IntCounterVec,
    e2e_seconds: HistogramVec,
    ttft_seconds: HistogramVec,
    tpot_seconds: HistogramVec,
    inter_token_seconds: HistogramVec,
    queue_seconds: HistogramVec,
    prompt_tokens: HistogramVec,
    generation_tokens: HistogramVec,
    unsent_tokens: IntCounterVec,
}

/// Times of one local tier that are in no decision record.
pub struct TierTimes {
    /// From arrival at the engine to the first step.
    pub queue: Histogram,
    /// Between two tokens of one answer as they arrive.
    pub inter_token: Histogram,
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
            answer_seconds: histogram(
                &r,
                "homeostat_answer_duration_seconds",
                "Time of a whole request for an answer, all steps and hooks.",
                &["endpoint"],
                &REQUEST_SECONDS,
            )?,
            answer_ttft_seconds: histogram(
                &r,
                "homeostat_answer_time_to_first_token_seconds",
                "Time to the first text that the client saw, by the tier that answered.",
                &["tier"],
                &TTFT_SECONDS,
            )?,
            escalations: count(
                "homeostat_escalations_total",
                "Answers that were not accepted, by their tier.",
                &["tier"],
            )?,
            stream_cuts: count(
                "homeostat_stream_cuts_total",
                "Answers that were left while the client read, by tier and who found them wanting: \
                 validator, surprisal, failure.",
                &["tier", "by"],
            )?,
            request_joules: {
                let name = "homeostat_request_energy_joules";
                let help = "Energy of a request by local tiers, once it is settled.";
                let options = HistogramOpts::new(name, help).buckets(REQUEST_JOULES.to_vec());
                let joules = Histogram::with_opts(options)?;
                r.register(Box::new(joules.clone()))?;
                joules
            },
            tier_failures: count(
                "homeostat_tier_failures_total",
                "Steps that failed, by tier and error code.",
                &["tier", "code"],
            )?,
            models: ModelMetrics::new(&r)?,
            hooks: HookMetrics::new(&r)?,
            registry: r,
        })
    }

    /// Where a local tier writes the times that only it knows.
    pub fn times_of(&self, model: &str) -> TierTimes {
        TierTimes {
            queue: self.models.queue_seconds.with_label_values(&[model]),
            inter_token: self.models.inter_token_seconds.with_label_values(&[model]),
        }
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
        let all = self.answer_seconds.with_label_values(&[endpoint]);
        all.observe(seconds);
        if let (Some(ms), Ending::Sent { tier, .. }) = (record.ttft_ms, &record.ending) {
            let first = self.answer_ttft_seconds.with_label_values(&[tier.as_str()]);
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
        self.models.record(step);
        if let Some(error) = &step.error {
            let labels = [tier, error.code];
            self.tier_failures.with_label_values(&labels).inc();
        } else if step.cut.is_some() || (!step.sent && step.verdict.is_some()) {
            self.escalations.with_label_values(&[tier]).inc();
        }
        for reply in step.verdict.iter().chain(&step.partial_verdicts) {
            self.hooks.record(Hook::Validate, reply);
        }
        if let Some(cut) = step.cut.as_ref().filter(|_| step.sent) {
            let labels = [tier, cut.by.as_str()];
            self.stream_cuts.with_label_values(&labels).inc();
        }
    }

    /// Everything, in Prometheus' text format.
    pub fn text(&self, house: &House) -> std::result::Result<String, String> {
        let mut families = self.registry.gather();
        // Once: what is attributed, idle and unattributed adds up to what was measured.
        let accounts = house.energy.accounts();
        let now = gauges(house, &accounts).map_err(|e| format!("metrics: {e}"))?;
        families.extend(now.gather());
        families.extend(self.counters_of_engines(house));
        families.extend(books(&accounts));
        TextEncoder::new()
            .encode_to_string(&families)
            .map_err(|e| format!("metrics: {e}"))
    }

    /// A request's energy was settled.
    pub fn energy(&self, joules: f64) {
        self.request_joules.observe(joules);
    }

    /// What engines count themselves. Tokens of remote tiers come from the records.
    fn counters_of_engines(&self, house: &House) -> Vec<MetricFamily> {
        let engines: Vec<(&str, EngineStats)> = house
            .local_tiers
            .iter()
            .map(|tier| tier.engine())
            .map(|engine| (engine.info().name.as_str(), engine.stats()))
            .collect();
        let mut families: Vec<MetricFamily> = ENGINE_COUNTERS
            .iter()
            .map(|(name, help, value)| {
                let each = engines.iter().map(|(model, stats)| (*model, value(stats)));
                counter_family(
                    name,
                    help,
                    each.map(|(m, v)| plain(&[(MODEL, m)], v)).collect(),
                )
            })
            .collect();
        let remote = house.cascade.tiers().iter().map(|tier| tier.id());
        let remote = remote.filter(|id| engines.iter().all(|(name, _)| name != id));
        let remote: Vec<(&str, [u64; 2])> = remote.map(|id| (id, self.models.tokens(id))).collect();
        let both: [fn(&EngineStats) -> u64; 2] = [
            |stats| stats.prompt_tokens_total,
            |stats| stats.generation_tokens_total,
        ];
        let names = [
            ("homeostat_prompt_tokens_total", "Prompt tokens read."),
            (
                "homeostat_generation_tokens_total",
                "Tokens generated, sent or not.",
            ),
        ];
        for (i, (name, help)) in names.into_iter().enumerate() {
            let local = engines
                .iter()
                .map(|(model, stats)| (*model, both[i](stats)));
            let all = local.chain(remote.iter().map(|(model, tokens)| (*model, tokens[i])));
            families.push(counter_family(
                name,
                help,
                all.map(|(m, v)| plain(&[(MODEL, m)], v)).collect(),
            ));
        }
        families.push(accepted_by_position(&engines));
        families.push(tokens_of_steps(&engines));
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}

/// vLLM's counters that an engine keeps: name, help, value.
type EngineCounter = (&'static str, &'static str, fn(&EngineStats) -> u64);
const ENGINE_COUNTERS: [EngineCounter; 6] = [
    (
        "homeostat_num_preemptions_total",
        "Sequences that gave their memory back and began anew.",
        |stats| stats.num_preemptions_total,
    ),
    (
        "homeostat_prefix_cache_queries_total",
        "Prompt tokens looked up in the prefix cache.",
        |stats| stats.prefix_cache_queries_total,
    ),
    (
        "homeostat_prefix_cache_hits_total",
        "Prompt tokens found in the prefix cache.",
        |stats| stats.prefix_cache_hits_total,
    ),
    (
        "homeostat_spec_decode_num_drafts_total",
        "Drafts verified.",
        |stats| stats.spec_decode_num_drafts_total,
    ),
    (
        "homeostat_spec_decode_num_draft_tokens_total",
        "Tokens of these drafts.",
        |stats| stats.spec_decode_num_draft_tokens_total,
    ),
    (
        "homeostat_spec_decode_num_accepted_tokens_total",
        "Draft tokens accepted.",
        |stats| stats.spec_decode_num_accepted_tokens_total,
    ),
];

fn accepted_by_position(engines: &[(&str, EngineStats)]) -> MetricFamily {
    let each = engines.iter().flat_map(|(model, stats)| {
        (0..DRAFT_POSITIONS).map(move |position| {
            let labels = [(MODEL, *model), ("position", &position.to_string())];
            plain(
                &labels,
                stats.spec_decode_num_accepted_tokens_per_pos[position],
            )
        })
    });
    let help = "Draft tokens accepted, by their place in the draft; the last counts all beyond.";
    let name = "homeostat_spec_decode_num_accepted_tokens_per_pos_total";
    counter_family(name, help, each.collect())
}

/// vLLM calls this histogram a total.
fn tokens_of_steps(engines: &[(&str, EngineStats)]) -> MetricFamily {
    let each = engines.iter().map(|(model, stats)| {
        let mut histogram = prometheus::proto::Histogram::default();
        let mut below = 0;
        let buckets = ITERATION_TOKEN_BOUNDS
            .iter()
            .zip(stats.iteration_tokens_buckets);
        let bucket = |(bound, count): (&u64, u64)| {
            below += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound as f64);
            bucket.set_cumulative_count(below);
            bucket
        };
        histogram.set_bucket(buckets.map(bucket).collect());
        histogram.set_sample_count(stats.iteration_tokens_buckets.iter().sum());
        histogram.set_sample_sum(stats.iteration_tokens_total as f64);
        let mut metric = Metric::from_label(pairs(&[(MODEL, model)]));
        metric.set_histogram(histogram);
        metric
    });
    let mut family = MetricFamily::default();
    family.set_name("homeostat_iteration_tokens_total".into());
    family.set_help("Rows of a step: prompt tokens, decoded tokens, drafts.".into());
    family.set_field_type(MetricType::HISTOGRAM);
    family.set_metric(each.collect());
    family
}

fn counter_family(name: &str, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.into());
    family.set_help(help.into());
    family.set_field_type(MetricType::COUNTER);
    family.set_metric(metrics);
    family
}

/// The energy books of every device: what was measured, and where it went. Each says by what the
/// device was told at worst, since a sum is worth no more.
fn books(accounts: &[(String, Accounts)]) -> Vec<MetricFamily> {
    let family = |name: &str, help: &str, each: &dyn Fn(&Accounts) -> Vec<Labelled>| {
        let metrics = accounts.iter().flat_map(|(device, accounts)| {
            each(accounts).into_iter().map(move |(label, value, uj)| {
                let mut labels = vec![
                    ("device", device.as_str()),
                    ("origin", origin(accounts.origin)),
                ];
                labels.extend((!label.is_empty()).then_some((label, value)));
                number(&labels, uj as f64 / 1e6)
            })
        });
        counter_family(name, help, metrics.collect())
    };
    let mut families = vec![
        family(
            "homeostat_energy_measured_joules_total",
            "Energy that a device used; `origin` is the weakest of what it was told by.",
            &|a| vec![("", "", a.measured_uj)],
        ),
        family(
            "homeostat_energy_attributed_joules_total",
            "Of it: energy that requests used; `policy` is what policies asked models for them.",
            &|a| {
                vec![
                    ("phase", "prefill", a.prefill_uj),
                    ("phase", "decode", a.decode_uj),
                    ("phase", "policy", a.policy_uj),
                ]
            },
        ),
        family(
            "homeostat_energy_idle_joules_total",
            "Of it: energy while nobody had work.",
            &|a| vec![("", "", a.idle_uj)],
        ),
        family(
            "homeostat_energy_unattributed_joules_total",
            "Of it: energy of other programs (foreign), of requests that were settled already \
             (late), of steps whose log was lost, of what the host asked for itself (host).",
            &|a| {
                let of = a.unattributed;
                vec![
                    ("reason", "foreign", of.foreign_uj),
                    ("reason", "late", of.late_uj),
                    ("reason", "lost", of.lost_uj),
                    ("reason", "host", of.host_uj),
                ]
            },
        ),
    ];
    families.retain(|family| !family.get_metric().is_empty());
    families
}

/// A label, its value, and µJ.
type Labelled = (&'static str, &'static str, u64);

fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Measured => "measured",
        Origin::Derived => "derived",
        Origin::Modelled => "modelled",
        Origin::Simulated => "simulated",
    }
}

/// One counter's value.
fn plain(labels: &[(&str, &str)], value: u64) -> Metric {
    number(labels, value as f64)
}

fn number(labels: &[(&str, &str)], value: f64) -> Metric {
    let mut counter = prometheus::proto::Counter::default();
    counter.set_value(value);
    let mut metric = Metric::from_label(pairs(labels));
    metric.set_counter(counter);
    metric
}

fn pairs(labels: &[(&str, &str)]) -> Vec<LabelPair> {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_string());
        pair.set_value(value.to_string());
        pair
    };
    labels.iter().map(pair).collect()
}

impl ModelMetrics {
    fn new(r: &Registry) -> Result<Self> {
        let each = |name: &str, help: &str, buckets: &[f64]| {
            histogram(r, &format!("homeostat_{name}"), help, &[MODEL], buckets)
        };
        Ok(Self {
            success: counter(
                r,
                "homeostat_request_success_total",
                "Steps that a model ended, by reason: stop, length, abort, error.",
                &[MODEL, "finished_reason"],
            )?,
            e2e_seconds: each(
                "e2e_request_latency_seconds",
                "Time of a model's whole answer.",
                &REQUEST_SECONDS,
            )?,
            ttft_seconds: each(
                "time_to_first_token_seconds",
                "Time from asking a model to its first token.",
                &TTFT_SECONDS,
            )?,
            tpot_seconds: each(
                "request_time_per_output_token_seconds",
                "Mean time of an answer's tokens after the first, one value per answer.",
                &TPOT_SECONDS,
            )?,
            inter_token_seconds: each(
                "inter_token_latency_seconds",
                "Time between two tokens of an answer, one value per token; local tiers.",
                &TPOT_SECONDS,
            )?,
            queue_seconds: each(
                "request_queue_time_seconds",
                "Time from arrival at the engine to the first step; local tiers.",
                &REQUEST_SECONDS,
            )?,
            prompt_tokens: each("request_prompt_tokens", "Tokens of a prompt.", &TOKENS)?,
            generation_tokens: each("request_generation_tokens", "Tokens of an answer.", &TOKENS)?,
            unsent_tokens: counter(
                r,
                "homeostat_unsent_tokens_total",
                "Tokens of answers that no client saw, because a validator or a fault came between.",
                &[MODEL],
            )?,
        })
    }

    fn record(&self, step: &StepRecord) {
        let model = [step.tier.as_str()];
        let reason = match (&step.error, step.finish) {
            (Some(_), _) => "error",
            (None, Some(Finish::Stop)) => "stop",
            (None, Some(Finish::Length)) => "length",
            (None, Some(Finish::Unfinished) | None) => "abort",
        };
        let labels = [model[0], reason];
        self.success.with_label_values(&labels).inc();
        let tokens = step.completion_tokens;
        let dropped = step.cut.as_ref().map(|cut| cut.dropped_tokens);
        let unsent = if step.sent {
            dropped.unwrap_or(0)
        } else {
            tokens
        };
        let counter = self.unsent_tokens.with_label_values(&model);
        counter.inc_by(unsent.into());
        if step.prompt_tokens > 0 {
            let prompt = self.prompt_tokens.with_label_values(&model);
            prompt.observe(step.prompt_tokens.into());
            let generated = self.generation_tokens.with_label_values(&model);
            generated.observe(tokens.into());
        }
        if step.finish.is_some() {
            let all = self.e2e_seconds.with_label_values(&model);
            all.observe(f64::from(step.total_ms) / 1e3);
        }
        let Some(first) = step.ttft_ms else {
            return;
        };
        let ttft = self.ttft_seconds.with_label_values(&model);
        ttft.observe(f64::from(first) / 1e3);
        if tokens > 1 {
            let rest = f64::from(step.total_ms.saturating_sub(first)) / 1e3;
            let mean = rest / f64::from(tokens - 1);
            self.tpot_seconds.with_label_values(&model).observe(mean);
        }
    }

    /// Prompt and generated tokens of a tier, as its records tell.
    fn tokens(&self, model: &str) -> [u64; 2] {
        let sum = |of: &HistogramVec| of.with_label_values(&[model]).get_sample_sum() as u64;
        [sum(&self.prompt_tokens), sum(&self.generation_tokens)]
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
fn gauges(house: &House, accounts: &[(String, Accounts)]) -> Result<Registry> {
    let mut now = Moment::default();
    for tier in house.cascade.tiers() {
        load(&mut now, &tier.view())?;
    }
    for tier in &house.local_tiers {
        engine(&mut now, tier.engine())?;
    }
    policies(&mut now, &house.policies.stats())?;
    machine(&mut now, &(house.snapshots)())?;
    sensors::sensors(&mut now, &house.telemetry.stats())?;
    budgets::budgets(&mut now, &house.budgets.status())?;
    trust(&mut now, accounts)?;
    Ok(now.registry)
}

fn load(now: &mut Moment, view: &TierView) -> Result<()> {
    now.set(
        "homeostat_tier_ready",
        "Whether a tier answers.",
        &[("tier", view.id.as_str())],
        f64::from(view.ready),
    )?;
    let id = [(MODEL, view.id.as_str())];
    for (name, help, value) in [
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
    let id = [(MODEL, engine.info().name.as_str())];
    now.set(
        "homeostat_kv_cache_usage_perc",
        "Used share of the KV cache, 0 to 1.",
        &id,
        stats.kv_cache_usage,
    )?;
    now.set(
        "homeostat_max_requests_running",
        "Sequences that may run at present: fewer while memory runs short.",
        &id,
        stats.max_requests_running as f64,
    )?;
    let threads = Some(stats.compute_threads).filter(|n| *n > 0);
    now.maybe(
        "homeostat_compute_threads",
        "Threads that compute a step at present.",
        &id,
        threads.map(|n| n as f64),
    )
}

/// How far the energy books of a device can be believed.
fn trust(now: &mut Moment, accounts: &[(String, Accounts)]) -> Result<()> {
    for (device, books) in accounts {
        let id = [("device", device.as_str())];
        now.set(
            "homeostat_energy_meter_suspect",
            "1 while a device's energy counter stands still or did a moment ago, and its power is \
             used instead.",
            &id,
            f64::from(books.suspect),
        )?;
        now.maybe(
            "homeostat_energy_fit_error_ratio",
            "What the learned costs of bytes, operations and time miss of a device's energy, root \
             mean square as a share of it.",
            &id,
            books.fit_error,
        )?;
    }
    Ok(())
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
    now.set(
        "homeostat_policy_instances_ready",
        "Instances kept ready of policies that are dear to instantiate.",
        &[],
        room.ready as f64,
    )?;
    now.set(
        "homeostat_policy_instances_ready_taken",
        "Requests that found an instance ready, since the start.",
        &[],
        room.ready_taken as f64,
    )?;
    for trial in room.trials.iter().filter(|t| t.ended.is_none()) {
        trial_running(now, trial)?;
    }
    for (hook, how, count) in &room.trials_ended {
        let labels = [("hook", hook.as_str()), ("how", how.as_str())];
        let help = "Shadows and canaries that have ended since the start.";
        now.set(
            "homeostat_policy_trials_ended",
            help,
            &labels,
            *count as f64,
        )?;
    }
    if let Some(recorded) = room.recorded {
        let written = "homeostat_policy_recordings_written";
        now.set(written, "Decisions recorded.", &[], recorded.written as f64)?;
        let dropped = "homeostat_policy_recordings_dropped";
        let help = "Recordings lost: too many waited, or the disk failed.";
        now.set(dropped, help, &[], recorded.dropped as f64)?;
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

/// A candidate that is being tried.
fn trial_running(now: &mut Moment, trial: &TrialStatus) -> Result<()> {
    let labels = [
        ("hook", trial.hook.as_str()),
        ("policy", trial.policy.as_str()),
    ];
    if let Some(shadow) = &trial.shadow {
        let faults: u64 = shadow.faults.values().sum();
        let dropped = shadow.dropped_full + shadow.dropped_busy;
        for (name, help, value) in [
            (
                "homeostat_policy_shadow_calls",
                "Questions that the shadow was asked.",
                shadow.calls,
            ),
            (
                "homeostat_policy_shadow_same",
                "Those it answered as the active policy did.",
                shadow.same,
            ),
            (
                "homeostat_policy_shadow_faults",
                "Those that ended as a fault of the shadow.",
                faults,
            ),
            (
                "homeostat_policy_shadow_dropped",
                "Questions dropped to spare the requests.",
                dropped,
            ),
        ] {
            now.set(name, help, &labels, value as f64)?;
        }
    }
    if let Some(canary) = &trial.canary {
        let help = "Share of the requests that the canary serves.";
        now.set("homeostat_policy_canary_share", help, &labels, canary.share)?;
        for m in &canary.measures {
            for (arm, events, of) in [
                ("active", m.active, m.active_of),
                ("candidate", m.candidate, m.candidate_of),
            ] {
                let [hook, policy] = labels;
                let labels = [hook, policy, ("arm", arm), ("measure", m.measure)];
                let help = "Calls or requests of each arm while the canary runs.";
                now.set("homeostat_policy_canary_of", help, &labels, of as f64)?;
                let help = "Of those, the faulty, slow, late, escalated or unanswered ones.";
                now.set(
                    "homeostat_policy_canary_events",
                    help,
                    &labels,
                    events as f64,
                )?;
            }
        }
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

/// What is expected of a device's heat.
fn expected(now: &mut Moment, id: &[(&str, &str)], forecast: Option<Forecast>) -> Result<()> {
    let Some(forecast) = forecast else {
        return Ok(());
    };
    now.set(
        "homeostat_forecast_margin_celsius",
        "Expected distance to the first slowdown, 20 s ahead.",
        id,
        forecast.margin_celsius.into(),
    )?;
    now.set(
        "homeostat_forecast_rmse_celsius",
        "How wrong these expectations were so far, root mean square.",
        id,
        forecast.rmse_celsius.into(),
    )?;
    now.maybe(
        "homeostat_time_to_throttle_seconds",
        "When a slowdown is expected, if within 300 s.",
        id,
        forecast.time_to_throttle_ms.map(|ms| f64::from(ms) / 1e3),
    )
}

fn device(now: &mut Moment, d: &Device) -> Result<()> {
    let id = [("device", d.id.as_str())];
    expected(now, &id, d.forecast)?;
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
