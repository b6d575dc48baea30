//! Which of our questions a board answers, how long it takes, and how often an answer
//! changes. For people who look at a new board or driver, not for the running host: it asks
//! flat out, without a watchdog, and nothing but reading calls.

use std::time::{Duration, Instant};

use nvml_wrapper::enum_wrappers::device::PerformancePolicy;
use nvml_wrapper::error::{NvmlError, nvml_try};
use nvml_wrapper::{Device, Nvml};
use serde::Serialize;
use serde_json::Value;

use crate::config::NvmlLibrary;
use crate::nvml::calls::{self, Call, Field, Scope};
use crate::nvml::worker::kind;

/// What one question gave.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CallReport {
    /// Device.
    pub device: String,
    /// Name of the question, as in metrics and traces; single fields as `field 186 memory`.
    pub call: String,
    /// The raw answer.
    pub answer: Option<Value>,
    /// Why there is none.
    pub error: Option<&'static str>,
    /// Times that it was asked.
    pub asked: usize,
    /// Median latency, µs.
    pub p50_us: f64,
    /// 99th percentile of the latency, µs.
    pub p99_us: f64,
    /// Longest latency, µs.
    pub max_us: f64,
    /// How often the answer changes, for answers that were watched.
    pub changes: Option<ChangeReport>,
}

/// How often an answer changes when it is asked flat out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ChangeReport {
    /// Time for which it was watched, ms.
    pub watched_ms: u64,
    /// Times that it was asked.
    pub asked: u64,
    /// Changes seen.
    pub changes: u64,
    /// Shortest time between two changes, ms; absent below two changes.
    pub shortest_ms: Option<f64>,
    /// Median time between two changes, ms.
    pub median_ms: Option<f64>,
}

/// Asks every question `times` times, and watches those whose answers move for `watch`
/// each. Takes a few seconds plus seven times `watch` for each device.
///
/// # Errors
/// What the library says where it cannot be opened at all.
pub fn probe_nvml(
    library: &NvmlLibrary,
    times: usize,
    watch: Duration,
) -> Result<Vec<CallReport>, String> {
    let mut builder = Nvml::builder();
    match library {
        NvmlLibrary::Off => return Ok(Vec::new()),
        NvmlLibrary::System => {}
        NvmlLibrary::File(path) => {
            builder.lib_path(path.as_os_str());
        }
    }
    let open = || -> Result<_, NvmlError> {
        let nvml = builder.init()?;
        let count = nvml.device_count()?;
        Ok((nvml, count))
    };
    let (nvml, count) = open().map_err(|error| format!("NVML does not open: {error}"))?;
    let mut reports = vec![report("", "driver_version", times, || {
        json(nvml.sys_driver_version())
    })];
    for index in 0..count {
        let id = format!("gpu.{index}");
        let device = match nvml.device_by_index(index) {
            Ok(device) => device,
            Err(error) => {
                let failed = || Err(NvmlError::GpuLost);
                tracing::warn!(device = %id, %error, "no handle");
                reports.push(report(&id, "device_handle", 1, failed));
                continue;
            }
        };
        for question in questions() {
            let ask = || (question.ask)(&device);
            let mut report = report(&id, &question.name, times, ask);
            if question.moves && report.answer.is_some() {
                report.changes = Some(changes(watch, ask));
            }
            reports.push(report);
        }
    }
    Ok(reports)
}

type Ask = Box<dyn Fn(&Device<'_>) -> Result<Value, NvmlError>>;

struct Question {
    name: String,
    /// Its answer is worth watching.
    moves: bool,
    ask: Ask,
}

fn json<T: Serialize>(answer: Result<T, NvmlError>) -> Result<Value, NvmlError> {
    // Raw answers are plain records of numbers and texts, which JSON can always hold.
    answer.map(|raw| serde_json::to_value(raw).unwrap_or(Value::Null))
}

fn questions() -> Vec<Question> {
    let mut questions = call_questions();
    let gpu = |id| Field::new(id);
    let scoped = [185, 186].into_iter().flat_map(|id| {
        [Scope::Gpu, Scope::Module, Scope::Memory].map(|scope| Field::of(id, scope))
    });
    let single = [
        82, 83, 190, 193, 194, 195, 196, 74, 75, 76, 77, 78, 79, 251, 252, 253, 269, 270, 271,
    ];
    for field in scoped.chain(single.map(gpu)) {
        let scope = match field.scope {
            Scope::Gpu => "",
            Scope::Module => " module",
            Scope::Memory => " memory",
        };
        questions.push(Question {
            name: format!("field {}{scope}", field.id),
            moves: matches!(field.id, 82 | 185 | 186),
            ask: Box::new(move |device| one_field(device, field)),
        });
    }
    for (name, policy) in [
        ("power", PerformancePolicy::Power),
        ("thermal", PerformancePolicy::Thermal),
        ("board_limit", PerformancePolicy::BoardLimit),
        ("reliability", PerformancePolicy::Reliability),
    ] {
        questions.push(Question {
            name: format!("violation {name}"),
            moves: false,
            ask: Box::new(move |device| json(calls::violation(device, policy))),
        });
    }
    questions
}

fn one_field(device: &Device<'_>, field: Field) -> Result<Value, NvmlError> {
    let answers = calls::fields(device, &[field])?;
    for answer in &answers {
        nvml_try(answer.status)?;
    }
    json(Ok(answers.first().and_then(|answer| answer.value)))
}

fn call_questions() -> Vec<Question> {
    let question = |call: Call, ask: Ask| Question {
        name: call.name().to_owned(),
        moves: matches!(call, Call::Energy | Call::Temperature | Call::Utilization),
        ask,
    };
    vec![
        question(Call::Name, Box::new(|d| json(d.name()))),
        question(
            Call::Energy,
            Box::new(|d| json(d.total_energy_consumption())),
        ),
        question(Call::Temperature, Box::new(|d| json(calls::temperature(d)))),
        question(Call::Margin, Box::new(|d| json(calls::margin(d)))),
        question(
            Call::Throttle,
            Box::new(|d| json(calls::clock_event_reasons(d))),
        ),
        question(Call::Clock, Box::new(|d| json(calls::clock(d)))),
        question(Call::MaxClock, Box::new(|d| json(calls::max_clock(d)))),
        question(Call::AveragePower, Box::new(|d| json(d.power_usage()))),
        question(Call::Memory, Box::new(|d| json(calls::memory(d)))),
        question(Call::Utilization, Box::new(|d| json(calls::utilization(d)))),
        question(
            Call::PowerLimit,
            Box::new(|d| json(d.enforced_power_limit())),
        ),
        question(
            Call::PowerLimits,
            Box::new(|d| json(calls::power_limits(d))),
        ),
        question(
            Call::PerformanceState,
            Box::new(|d| json(calls::performance_state(d))),
        ),
        question(
            Call::SlowdownThreshold,
            Box::new(|d| json(calls::slowdown_threshold(d))),
        ),
        question(
            Call::OperatingThreshold,
            Box::new(|d| json(calls::operating_threshold(d))),
        ),
    ]
}

fn report(
    device: &str,
    call: &str,
    times: usize,
    ask: impl Fn() -> Result<Value, NvmlError>,
) -> CallReport {
    let mut latencies_us = Vec::with_capacity(times.max(1));
    let mut last = None;
    for _ in 0..times.max(1) {
        let started = Instant::now();
        let answer = ask();
        latencies_us.push(started.elapsed().as_secs_f64() * 1e6);
        last = Some(answer);
    }
    latencies_us.sort_by(f64::total_cmp);
    let quantile = |q: f64| latencies_us[((latencies_us.len() - 1) as f64 * q).round() as usize];
    let (answer, error) = match last {
        Some(Ok(answer)) => (Some(answer), None),
        Some(Err(error)) => (None, Some(kind(&error))),
        None => (None, None),
    };
    CallReport {
        device: device.to_owned(),
        call: call.to_owned(),
        answer,
        error,
        asked: latencies_us.len(),
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        max_us: quantile(1.0),
        changes: None,
    }
}

fn changes(watch: Duration, ask: impl Fn() -> Result<Value, NvmlError>) -> ChangeReport {
    let started = Instant::now();
    let mut asked = 0;
    let mut last: Option<Value> = None;
    let mut changed: Option<Instant> = None;
    let mut gaps_ms = Vec::new();
    let mut changes = 0;
    while started.elapsed() < watch {
        asked += 1;
        let Ok(answer) = ask() else { continue };
        let before = last.replace(answer.clone());
        if before.is_none_or(|before| before == answer) {
            continue;
        }
        changes += 1;
        let now = Instant::now();
        if let Some(then) = changed.replace(now) {
            gaps_ms.push((now - then).as_secs_f64() * 1e3);
        }
    }
    gaps_ms.sort_by(f64::total_cmp);
    ChangeReport {
        watched_ms: started.elapsed().as_millis() as u64,
        asked,
        changes,
        shortest_ms: gaps_ms.first().copied(),
        median_ms: gaps_ms.get(gaps_ms.len() / 2).copied(),
    }
}
