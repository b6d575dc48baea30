//! Between the host's records and the contract's, field by field.
//!
//! The two are the same records twice: the host's know nothing of WebAssembly, the
//! contract's are generated. A field that is missing on one side does not compile.

use homeostat_hooks as h;

use crate::bindings::homeostat::policy::models as m;
use crate::bindings::types as w;

/// An enum with the same cases on both sides.
macro_rules! same_cases {
    ($name:ident: $from:ty => $to:ty { $($case:ident),+ $(,)? }) => {
        fn $name(value: $from) -> $to {
            match value {
                $(<$from>::$case => <$to>::$case,)+
            }
        }
    };
}

same_cases!(role: h::Role => w::Role { System, User, Assistant, Tool });
same_cases!(endpoint: h::Endpoint => w::Endpoint { Chat, Completion });
same_cases!(format: h::ResponseFormat => w::ResponseFormat { Text, JsonObject, JsonSchema });
same_cases!(origin: h::Origin => w::Origin { Measured, Derived, Modelled, Simulated });
same_cases!(device_kind: h::DeviceKind => w::DeviceKind { Gpu, Cpu, Soc, Npu, Host, External });
same_cases!(health: h::Health => w::Health { Ok, Degraded, Stale, Lost });
same_cases!(budget_unit: h::BudgetUnit => w::BudgetUnit { Joules, Watts, Usd, GramsCo2, Tokens });
same_cases!(state: h::MetabolicState => w::MetabolicState {
    Nominal, Elevated, Constrained, Critical,
});
same_cases!(hint: h::SpeculationHint => w::SpeculationHint { Prefer, Neutral, Avoid });
same_cases!(profile: h::Profile => w::Profile { Datacenter, Edge, Mcu });
same_cases!(tier_kind: h::TierKind => w::TierKind { Local, Remote, Simulated });
same_cases!(finish: h::Finish => w::Finish { Unfinished, Stop, Length });
same_cases!(task_out: h::Task => w::Task {
    OpenQa, ClosedQa, Summarization, TextGeneration, CodeGeneration, Chatbot, Classification,
    Rewrite, Brainstorming, Extraction, Other,
});
same_cases!(task_in: w::Task => h::Task {
    OpenQa, ClosedQa, Summarization, TextGeneration, CodeGeneration, Chatbot, Classification,
    Rewrite, Brainstorming, Extraction, Other,
});
same_cases!(refusal: w::Refusal => h::Refusal {
    Overloaded, BudgetExhausted, NotAllowed, Unsupported, Unreliable,
});

// ---- to the guest ----------------------------------------------------------------------

fn attributes(list: &[h::Attribute]) -> Vec<(String, w::Value)> {
    list.iter()
        .map(|(key, value)| (key.clone(), value_out(value)))
        .collect()
}

fn value_out(value: &h::Value) -> w::Value {
    match value {
        h::Value::Boolean(v) => w::Value::Boolean(*v),
        h::Value::Integer(v) => w::Value::Integer(*v),
        h::Value::Number(v) => w::Value::Number(*v),
        h::Value::Text(v) => w::Value::Text(v.clone()),
    }
}

fn sample(s: h::Sample) -> w::Sample {
    w::Sample {
        value: s.value,
        age_ms: s.age_ms,
        window_ms: s.window_ms,
        origin: origin(s.origin),
        relative_error: s.relative_error,
    }
}

fn samples(s: Option<h::Sample>) -> Option<w::Sample> {
    s.map(sample)
}

pub(crate) fn request(r: &h::Request) -> w::Request {
    w::Request {
        id: r.id.clone(),
        endpoint: endpoint(r.endpoint),
        model: r.model.clone(),
        messages: r
            .messages
            .iter()
            .map(|message| w::Message {
                role: role(message.role),
                content: message.content.clone(),
            })
            .collect(),
        cut_bytes: r.cut_bytes,
        max_tokens: r.max_tokens,
        temperature: r.temperature,
        response_format: format(r.response_format),
        stream: r.stream,
        tenant: r.tenant.clone(),
        deadline_ms: r.deadline_ms,
        attributes: attributes(&r.attributes),
    }
}

fn throttle(t: h::ThrottleReasons) -> w::ThrottleReasons {
    let mut flags = w::ThrottleReasons::empty();
    for (set, flag) in [
        (t.thermal_software, w::ThrottleReasons::THERMAL_SOFTWARE),
        (t.thermal_hardware, w::ThrottleReasons::THERMAL_HARDWARE),
        (t.power_cap, w::ThrottleReasons::POWER_CAP),
        (t.power_brake, w::ThrottleReasons::POWER_BRAKE),
        (t.undervoltage, w::ThrottleReasons::UNDERVOLTAGE),
        (t.other, w::ThrottleReasons::OTHER),
    ] {
        if set {
            flags |= flag;
        }
    }
    flags
}

fn causes(c: h::Causes) -> w::Cause {
    let mut flags = w::Cause::empty();
    for (set, flag) in [
        (c.thermal, w::Cause::THERMAL),
        (c.power, w::Cause::POWER),
        (c.budget, w::Cause::BUDGET),
        (c.battery, w::Cause::BATTERY),
        (c.memory, w::Cause::MEMORY),
        (c.sensor, w::Cause::SENSOR),
    ] {
        if set {
            flags |= flag;
        }
    }
    flags
}

fn device(d: &h::Device) -> w::Device {
    w::Device {
        id: d.id.clone(),
        kind: device_kind(d.kind),
        model: d.model.clone(),
        health: health(d.health),
        temperature_celsius: samples(d.temperature_celsius),
        memory_temperature_celsius: samples(d.memory_temperature_celsius),
        thermal_margin_celsius: samples(d.thermal_margin_celsius),
        power_watts: samples(d.power_watts),
        power_limit_watts: samples(d.power_limit_watts),
        energy_joules: samples(d.energy_joules),
        utilization_ratio: samples(d.utilization_ratio),
        memory_used_bytes: d.memory_used_bytes,
        memory_total_bytes: d.memory_total_bytes,
        clock_ratio: samples(d.clock_ratio),
        throttle: d.throttle.map(throttle),
        forecast: d.forecast.map(|f| w::Forecast {
            horizon_ms: f.horizon_ms,
            margin_celsius: f.margin_celsius,
            time_to_throttle_ms: f.time_to_throttle_ms,
            rmse_celsius: f.rmse_celsius,
        }),
    }
}

fn pressure(p: h::Pressure) -> w::Pressure {
    w::Pressure {
        cpu_some_ratio: p.cpu_some_ratio,
        memory_some_ratio: p.memory_some_ratio,
        memory_full_ratio: p.memory_full_ratio,
        io_some_ratio: p.io_some_ratio,
        memory_used_bytes: p.memory_used_bytes,
        memory_limit_bytes: p.memory_limit_bytes,
        swap_used_bytes: p.swap_used_bytes,
        kv_used_ratio: p.kv_used_ratio,
    }
}

pub(crate) fn snapshot(s: &h::Snapshot) -> w::Snapshot {
    w::Snapshot {
        sequence: s.sequence,
        monotonic_ms: s.monotonic_ms,
        profile: profile(s.profile),
        devices: s.devices.iter().map(device).collect(),
        pressure: pressure(s.pressure),
        supply: s.supply.map(|s| w::Supply {
            on_battery: s.on_battery,
            charge_ratio: s.charge_ratio,
            drain_watts: s.drain_watts,
            time_left_s: s.time_left_s,
        }),
        budgets: s
            .budgets
            .iter()
            .map(|b| w::Budget {
                scope: b.scope.clone(),
                unit: budget_unit(b.unit),
                limit: b.limit,
                used: b.used,
                window_left_s: b.window_left_s,
            })
            .collect(),
        metabolism: w::Metabolism {
            state: state(s.metabolism.state),
            causes: causes(s.metabolism.causes),
            risk: s.metabolism.risk,
            degrade_ratio: s.metabolism.degrade_ratio,
            speculation: hint(s.metabolism.speculation),
            since_ms: s.metabolism.since_ms,
        },
        simulated: s.simulated,
        attributes: attributes(&s.attributes),
    }
}

pub(crate) fn classification(c: &h::Classification) -> w::Classification {
    w::Classification {
        p_simple: c.p_simple,
        p_medium: c.p_medium,
        p_complex: c.p_complex,
        task: task_out(c.task),
        dimensions: c.dimensions.clone(),
        confidence: c.confidence,
        attributes: attributes(&c.attributes),
    }
}

pub(crate) fn tier(t: &h::TierView) -> w::Tier {
    w::Tier {
        id: t.id.clone(),
        kind: tier_kind(t.kind),
        model: t.model.clone(),
        rank: t.rank,
        quality: t.quality,
        parameters: t.parameters,
        context_tokens: t.context_tokens,
        ready: t.ready,
        num_requests_running: t.num_requests_running,
        num_requests_waiting: t.num_requests_waiting,
        ttft_ms: samples(t.ttft_ms),
        tpot_ms: samples(t.tpot_ms),
        joules_per_token: samples(t.joules_per_token),
        usd_per_mtok_prompt: t.usd_per_mtok_prompt,
        usd_per_mtok_output: t.usd_per_mtok_output,
        can_speculate: t.can_speculate,
        gives_logprobs: t.gives_logprobs,
        attributes: attributes(&t.attributes),
    }
}

pub(crate) fn answer(a: &h::Answer) -> w::Answer {
    w::Answer {
        step: a.step,
        steps_left: a.steps_left,
        tier: a.tier.clone(),
        text: a.text.clone(),
        finish: finish(a.finish),
        logprobs: a.logprobs.clone(),
        accept_threshold: a.accept_threshold,
        attributes: attributes(&a.attributes),
    }
}

pub(crate) fn outcome(o: &h::Outcome) -> w::Outcome {
    w::Outcome {
        tier: o.tier.clone(),
        steps_tried: o.steps_tried,
        confidence: o.confidence,
        prompt_tokens: o.prompt_tokens,
        generated_tokens: o.generated_tokens,
        ttft_ms: o.ttft_ms,
        total_ms: o.total_ms,
        joules: samples(o.joules),
    }
}

pub(crate) fn generated(g: h::Generated) -> m::Generated {
    m::Generated {
        text: g.text,
        logprobs: g.logprobs,
        finished: g.finished,
    }
}

pub(crate) fn model_error(error: h::ModelError) -> w::Error {
    match error {
        h::ModelError::Unavailable(t) => w::Error::Unavailable(t),
        h::ModelError::InvalidArgument(t) => w::Error::InvalidArgument(t),
        h::ModelError::LimitExceeded(t) => w::Error::LimitExceeded(t),
        h::ModelError::Internal(t) => w::Error::Internal(t),
    }
}

// ---- from the guest --------------------------------------------------------------------

fn attributes_in(list: Vec<(String, w::Value)>) -> Vec<h::Attribute> {
    list.into_iter()
        .map(|(key, value)| (key, value_in(value)))
        .collect()
}

fn value_in(value: w::Value) -> h::Value {
    match value {
        w::Value::Boolean(v) => h::Value::Boolean(v),
        w::Value::Integer(v) => h::Value::Integer(v),
        w::Value::Number(v) => h::Value::Number(v),
        w::Value::Text(v) => h::Value::Text(v),
    }
}

pub(crate) fn generate_options(o: m::GenerateOptions) -> h::GenerateOptions {
    h::GenerateOptions {
        max_tokens: o.max_tokens,
        temperature: o.temperature,
        seed: o.seed,
        stop: o.stop,
    }
}

pub(crate) fn classification_in(c: w::Classification) -> h::Classification {
    h::Classification {
        p_simple: c.p_simple,
        p_medium: c.p_medium,
        p_complex: c.p_complex,
        task: task_in(c.task),
        dimensions: c.dimensions,
        confidence: c.confidence,
        attributes: attributes_in(c.attributes),
    }
}

fn rejection(r: w::Rejection) -> h::Rejection {
    h::Rejection {
        kind: refusal(r.kind),
        message: r.message,
        retry_after_ms: r.retry_after_ms,
    }
}

pub(crate) fn decision_in(d: w::Decision) -> h::Decision {
    match d {
        w::Decision::Plan(p) => h::Decision::Plan(h::Plan {
            steps: p
                .steps
                .into_iter()
                .map(|s| h::Step {
                    tier: s.tier,
                    max_draft_tokens: s.max_draft_tokens,
                    max_tokens: s.max_tokens,
                    hold_back_tokens: s.hold_back_tokens,
                    accept_threshold: s.accept_threshold,
                })
                .collect(),
            reason: p.reason,
            attributes: attributes_in(p.attributes),
        }),
        w::Decision::Answer(a) => h::Decision::Answer(h::DirectAnswer {
            text: a.text,
            method: a.method,
        }),
        w::Decision::Reject(r) => h::Decision::Reject(rejection(r)),
    }
}

fn assessment(a: w::Assessment) -> h::Assessment {
    h::Assessment {
        confidence: a.confidence,
        findings: a
            .findings
            .into_iter()
            .map(|f| h::Finding {
                check: f.check,
                passed: f.passed,
                detail: f.detail,
            })
            .collect(),
    }
}

pub(crate) fn verdict_in(v: w::Verdict) -> h::Verdict {
    match v {
        w::Verdict::Accept(a) => h::Verdict::Accept(assessment(a)),
        w::Verdict::Escalate(a) => h::Verdict::Escalate(assessment(a)),
        w::Verdict::Amend(a) => h::Verdict::Amend(h::Amendment {
            text: a.text,
            assessment: assessment(a.assessment),
        }),
        w::Verdict::Reject(r) => h::Verdict::Reject(rejection(r)),
        w::Verdict::Undecided => h::Verdict::Undecided,
    }
}
