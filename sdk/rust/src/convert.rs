//! Between wit-bindgen's records and those of `homeostat-hooks`, field by field.
//!
//! Every conversion moves; none can fail. A field that is added to one side only does not
//! compile.

use homeostat_hooks as plain;

use crate::Error;
use crate::bindings::imports::homeostat::policy::models as wit_models;
use crate::bindings::types as wit;

/// One field: as it is, converted, every element converted, or the inside converted.
macro_rules! field {
    ($from:ident . $field:ident) => {
        $from.$field
    };
    ($from:ident . $field:ident into) => {
        $from.$field.into()
    };
    ($from:ident . $field:ident each) => {
        $from.$field.into_iter().map(Into::into).collect()
    };
    ($from:ident . $field:ident opt) => {
        $from.$field.map(Into::into)
    };
    ($from:ident . $field:ident pairs) => {
        $from
            .$field
            .into_iter()
            .map(|(k, v)| (k, v.into()))
            .collect()
    };
}

macro_rules! record {
    ($from:path => $to:path { $($field:ident $($how:ident)?),* $(,)? }) => {
        impl From<$from> for $to {
            fn from(from: $from) -> Self {
                Self { $($field: field!(from.$field $($how)?)),* }
            }
        }
    };
}

macro_rules! cases {
    ($from:path => $to:path { $($case:ident),* $(,)? }) => {
        impl From<$from> for $to {
            fn from(from: $from) -> Self {
                use $from as From;
                match from { $(From::$case => Self::$case),* }
            }
        }
    };
}

macro_rules! variants {
    ($from:path => $to:path { $($case:ident $($how:ident)?),* $(,)? }) => {
        impl From<$from> for $to {
            fn from(from: $from) -> Self {
                use $from as From;
                match from { $(From::$case(v) => Self::$case(variants!(@ v $($how)?))),* }
            }
        }
    };
    (@ $v:ident) => { $v };
    (@ $v:ident into) => { $v.into() };
}

// ---- both ways ----------------------------------------------------------------------

variants!(wit::Value => plain::Value { Boolean, Integer, Number, Text });
variants!(plain::Value => wit::Value { Boolean, Integer, Number, Text });
variants!(wit::Error => Error { Denied, Unavailable, InvalidArgument, LimitExceeded, Internal, Other });
variants!(Error => wit::Error { Denied, Unavailable, InvalidArgument, LimitExceeded, Internal, Other });
cases!(wit::Task => plain::Task {
    OpenQa, ClosedQa, Summarization, TextGeneration, CodeGeneration, Chatbot, Classification,
    Rewrite, Brainstorming, Extraction, Other,
});
cases!(plain::Task => wit::Task {
    OpenQa, ClosedQa, Summarization, TextGeneration, CodeGeneration, Chatbot, Classification,
    Rewrite, Brainstorming, Extraction, Other,
});
record!(wit::Classification => plain::Classification {
    p_simple, p_medium, p_complex, task into, dimensions, confidence, attributes pairs,
});
record!(plain::Classification => wit::Classification {
    p_simple, p_medium, p_complex, task into, dimensions, confidence, attributes pairs,
});

// ---- from the host ------------------------------------------------------------------

cases!(wit::Role => plain::Role { System, User, Assistant, Tool });
cases!(wit::Endpoint => plain::Endpoint { Chat, Completion });
cases!(wit::ResponseFormat => plain::ResponseFormat { Text, JsonObject, JsonSchema });
record!(wit::Message => plain::Message { role into, content });
record!(wit::Request => plain::Request {
    id, endpoint into, model, messages each, cut_bytes, max_tokens, temperature,
    response_format into, stream, tenant, deadline_ms, attributes pairs,
});

cases!(wit::Origin => plain::Origin { Measured, Derived, Modelled, Simulated });
record!(wit::Sample => plain::Sample { value, age_ms, window_ms, origin into, relative_error });
cases!(wit::DeviceKind => plain::DeviceKind { Gpu, Cpu, Soc, Npu, Host, External });
cases!(wit::Health => plain::Health { Ok, Degraded, Stale, Lost });
record!(wit::Forecast => plain::Forecast {
    horizon_ms, margin_celsius, time_to_throttle_ms, rmse_celsius,
});
record!(wit::Device => plain::Device {
    id, kind into, model, health into, temperature_celsius opt, memory_temperature_celsius opt,
    thermal_margin_celsius opt, power_watts opt, power_limit_watts opt, energy_joules opt,
    utilization_ratio opt, memory_used_bytes, memory_total_bytes, clock_ratio opt, throttle opt,
    forecast opt,
});
record!(wit::Pressure => plain::Pressure {
    cpu_some_ratio, memory_some_ratio, memory_full_ratio, io_some_ratio, memory_used_bytes,
    memory_limit_bytes, swap_used_bytes, kv_used_ratio,
});
record!(wit::Supply => plain::Supply { on_battery, charge_ratio, drain_watts, time_left_s });
cases!(wit::BudgetUnit => plain::BudgetUnit { Joules, Watts, Usd, GramsCo2, Tokens });
record!(wit::Budget => plain::Budget { scope, unit into, limit, used, window_left_s });
cases!(wit::MetabolicState => plain::MetabolicState { Nominal, Elevated, Constrained, Critical });
cases!(wit::SpeculationHint => plain::SpeculationHint { Prefer, Neutral, Avoid });
record!(wit::Metabolism => plain::Metabolism {
    state into, causes into, risk, degrade_ratio, speculation into, since_ms,
});
cases!(wit::Profile => plain::Profile { Datacenter, Edge, Mcu });
record!(wit::Snapshot => plain::Snapshot {
    sequence, monotonic_ms, profile into, devices each, pressure into, supply opt, budgets each,
    metabolism into, simulated, attributes pairs,
});

impl From<wit::ThrottleReasons> for plain::ThrottleReasons {
    fn from(flags: wit::ThrottleReasons) -> Self {
        Self {
            thermal_software: flags.contains(wit::ThrottleReasons::THERMAL_SOFTWARE),
            thermal_hardware: flags.contains(wit::ThrottleReasons::THERMAL_HARDWARE),
            power_cap: flags.contains(wit::ThrottleReasons::POWER_CAP),
            power_brake: flags.contains(wit::ThrottleReasons::POWER_BRAKE),
            undervoltage: flags.contains(wit::ThrottleReasons::UNDERVOLTAGE),
            other: flags.contains(wit::ThrottleReasons::OTHER),
        }
    }
}

impl From<wit::Cause> for plain::Causes {
    fn from(flags: wit::Cause) -> Self {
        Self {
            thermal: flags.contains(wit::Cause::THERMAL),
            power: flags.contains(wit::Cause::POWER),
            budget: flags.contains(wit::Cause::BUDGET),
            battery: flags.contains(wit::Cause::BATTERY),
            memory: flags.contains(wit::Cause::MEMORY),
            sensor: flags.contains(wit::Cause::SENSOR),
        }
    }
}

cases!(wit::TierKind => plain::TierKind { Local, Remote, Simulated });
record!(wit::Tier => plain::TierView {
    id, kind into, model, rank, quality, parameters, context_tokens, ready, num_requests_running,
    num_requests_waiting, ttft_ms opt, tpot_ms opt, joules_per_token opt, usd_per_mtok_prompt,
    usd_per_mtok_output, can_speculate, gives_logprobs, attributes pairs,
});

cases!(wit::Finish => plain::Finish { Unfinished, Stop, Length });
record!(wit::Answer => plain::Answer {
    step, steps_left, tier, text, finish into, logprobs, accept_threshold, attributes pairs,
});
record!(wit::Outcome => plain::Outcome {
    tier, steps_tried, confidence, prompt_tokens, generated_tokens, ttft_ms, total_ms, joules opt,
});
record!(wit_models::Generated => plain::Generated { text, logprobs, finished });

// ---- to the host --------------------------------------------------------------------

cases!(plain::Refusal => wit::Refusal {
    Overloaded, BudgetExhausted, NotAllowed, Unsupported, Unreliable,
});
record!(plain::Step => wit::Step {
    tier, max_draft_tokens, max_tokens, hold_back_tokens, accept_threshold,
});
record!(plain::Plan => wit::Plan { steps each, reason, attributes pairs });
record!(plain::DirectAnswer => wit::DirectAnswer { text, method });
record!(plain::Rejection => wit::Rejection { kind into, message, retry_after_ms });
variants!(plain::Decision => wit::Decision { Plan into, Answer into, Reject into });

record!(plain::Finding => wit::Finding { check, passed, detail });
record!(plain::Assessment => wit::Assessment { confidence, findings each });
record!(plain::Amendment => wit::Amendment { text, assessment into });
record!(plain::GenerateOptions => wit_models::GenerateOptions { max_tokens, temperature, seed, stop });

impl From<plain::Verdict> for wit::Verdict {
    fn from(verdict: plain::Verdict) -> Self {
        match verdict {
            plain::Verdict::Accept(a) => Self::Accept(a.into()),
            plain::Verdict::Escalate(a) => Self::Escalate(a.into()),
            plain::Verdict::Amend(a) => Self::Amend(a.into()),
            plain::Verdict::Reject(r) => Self::Reject(r.into()),
            plain::Verdict::Undecided => Self::Undecided,
        }
    }
}
