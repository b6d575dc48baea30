//! Inputs for properties: a case of the file, changed by a handful of numbers.
//!
//! The numbers are what proptest chooses and shrinks; 0 leaves a thing as the case has it,
//! so the smallest input is the plainest.

use homeostat_hooks::{
    Attribute, Classification, Device, Message, MetabolicState, Role, Sample, SpeculationHint,
    Value,
};
use proptest::prelude::{Strategy, any};

use crate::{Case, CaseFile};

/// Questions of different kinds and lengths; 0 keeps the case's own.
const QUESTIONS: [&str; 6] = [
    "hi",
    "What is 17 * 23?",
    "Prove that there are infinitely many prime numbers, step by step.",
    "Schreibe ein Gedicht über den Herbst – bitte mit Reim! 🍂",
    "def f(x):\n    return x\n# why does this not terminate?",
    "",
];

/// Temperatures at which a machine changes its state, in °C: elevated, constrained, critical.
const STATES_CELSIUS: [f64; 3] = [70.0, 80.0, 90.0];

/// Where the machine slows itself down.
const THROTTLE_CELSIUS: f64 = 95.0;

/// What is changed.
#[derive(Debug, Clone)]
pub struct Knobs {
    case: usize,
    question: usize,
    repeat: usize,
    simple: Option<f32>,
    celsius: Option<u8>,
    more_celsius: u8,
    not_ready: u8,
    busy: u8,
    attributes: Vec<u8>,
    turn: usize,
    absent: u64,
}

/// How they are chosen.
pub fn knobs(cases: usize) -> impl Strategy<Value = Knobs> {
    let asked = (0..cases, 0..=QUESTIONS.len(), 1..40_usize);
    let machine = (
        proptest::option::of(20..110_u8),
        1..60_u8,
        any::<u8>(),
        any::<u8>(),
    );
    let shape = (
        proptest::option::of(0.0..=1.0_f32),
        proptest::collection::vec(0..4_u8, 0..6),
        0..6_usize,
        any::<u64>(),
    );
    (asked, machine, shape).prop_map(|(asked, machine, shape)| Knobs {
        case: asked.0,
        question: asked.1,
        repeat: asked.2,
        celsius: machine.0,
        more_celsius: machine.1,
        not_ready: machine.2,
        busy: machine.3,
        simple: shape.0,
        attributes: shape.1,
        turn: shape.2,
        absent: shape.3,
    })
}

/// The input that they describe.
pub fn case(file: &CaseFile, knobs: &Knobs) -> Case {
    let mut case = file.cases[knobs.case].clone();
    if let Some(question) = knobs.question.checked_sub(1) {
        let content = vec![QUESTIONS[question]; knobs.repeat].join(" ");
        case.request.messages = vec![Message {
            role: Role::User,
            content,
        }];
    }
    if let Some(simple) = knobs.simple {
        case.classification = Classification {
            p_simple: simple,
            p_medium: (1.0 - simple) / 2.0,
            p_complex: (1.0 - simple) / 2.0,
            ..case.classification
        };
    }
    // One that is ready stays so: without any tier most routers rightly give up.
    let kept = case.tiers.iter().position(|t| t.ready);
    for (i, tier) in case.tiers.iter_mut().enumerate() {
        let bit = 1_u8.checked_shl(i as u32).unwrap_or(0);
        tier.ready &= Some(i) == kept || knobs.not_ready & bit == 0;
        tier.num_requests_waiting += u32::from(knobs.busy & bit != 0);
    }
    if let Some(celsius) = knobs.celsius {
        heat(&mut case, f64::from(celsius));
    }
    let added = attributes(&knobs.attributes);
    for list in attribute_lists(&mut case) {
        let known: Vec<String> = list.iter().map(|(key, _)| key.clone()).collect();
        list.extend(
            added
                .iter()
                .filter(|(key, _)| !known.contains(key))
                .cloned(),
        );
    }
    case
}

/// Extensions with keys of their own.
fn attributes(kinds: &[u8]) -> Vec<Attribute> {
    let keys = ["a.key", "b.key", "c.key", "d.key", "e.key", "f.key"];
    let value = |kind: &u8| match kind {
        0 => Value::Boolean(true),
        1 => Value::Integer(-1),
        2 => Value::Number(0.5),
        _ => Value::Text("text".into()),
    };
    let named = keys.iter().zip(kinds);
    named
        .map(|(key, kind)| ((*key).to_owned(), value(kind)))
        .collect()
}

fn attribute_lists(case: &mut Case) -> Vec<&mut Vec<Attribute>> {
    let mut lists = vec![
        &mut case.request.attributes,
        &mut case.snapshot.attributes,
        &mut case.classification.attributes,
        &mut case.answer.attributes,
    ];
    lists.extend(case.tiers.iter_mut().map(|t| &mut t.attributes));
    lists
}

/// The same with every list of attributes in another order.
pub fn reordered(case: &Case, knobs: &Knobs) -> Case {
    let mut other = case.clone();
    for list in attribute_lists(&mut other) {
        list.reverse();
        if !list.is_empty() {
            let turn = knobs.turn % list.len();
            list.rotate_left(turn);
        }
    }
    other
}

/// The same without some of what a machine may not have.
pub fn without_telemetry(case: &Case, knobs: &Knobs) -> Case {
    let mut bare = case.clone();
    let mut bits = knobs.absent;
    let mut gone = || {
        bits = bits.rotate_left(1);
        bits & 1 == 0
    };
    macro_rules! drop_some {
        ($($option:expr),* $(,)?) => { $(if gone() { $option = None; })* };
    }
    let snapshot = &mut bare.snapshot;
    for d in &mut snapshot.devices {
        drop_some!(
            d.temperature_celsius,
            d.memory_temperature_celsius,
            d.thermal_margin_celsius,
            d.power_watts,
            d.power_limit_watts,
            d.energy_joules,
            d.utilization_ratio,
            d.memory_used_bytes,
            d.memory_total_bytes,
            d.clock_ratio,
            d.throttle,
            d.forecast,
        );
    }
    let p = &mut snapshot.pressure;
    drop_some!(
        p.cpu_some_ratio,
        p.memory_some_ratio,
        p.memory_full_ratio,
        p.io_some_ratio,
        p.memory_used_bytes,
        p.memory_limit_bytes,
        p.swap_used_bytes,
        p.kv_used_ratio,
        snapshot.supply,
    );
    if gone() {
        snapshot.devices.clear();
    }
    if gone() {
        snapshot.budgets.clear();
    }
    for t in &mut bare.tiers {
        drop_some!(
            t.parameters,
            t.ttft_ms,
            t.tpot_ms,
            t.joules_per_token,
            t.usd_per_mtok_prompt,
            t.usd_per_mtok_output,
        );
    }
    bare
}

/// The same machine, some degrees hotter; what has no thermometer gets one.
pub fn hotter(case: &Case, knobs: &Knobs) -> Case {
    let mut hotter = case.clone();
    let now = celsius(case).unwrap_or(THROTTLE_CELSIUS - f64::from(knobs.more_celsius));
    heat(&mut hotter, now + f64::from(knobs.more_celsius));
    // A case may have a state of its own, worse than its temperature: heat never mends it.
    let (is, was) = (&mut hotter.snapshot.metabolism, &case.snapshot.metabolism);
    is.state = is.state.max(was.state);
    is.risk = is.risk.max(was.risk);
    is.degrade_ratio = is.degrade_ratio.max(was.degrade_ratio);
    hotter
}

/// Temperature of the hottest device, and the state, for people.
pub fn heat_of(case: &Case) -> String {
    let state = format!("{:?}", case.snapshot.metabolism.state).to_lowercase();
    match celsius(case) {
        Some(celsius) => format!("{celsius} °C ({state})"),
        None => format!("no thermometer ({state})"),
    }
}

fn celsius(case: &Case) -> Option<f64> {
    let devices = case.snapshot.devices.iter();
    let all = devices.filter_map(|d| d.temperature_celsius.map(|t| t.value));
    all.reduce(f64::max)
}

/// Every device at this temperature, and the state that follows from it.
fn heat(case: &mut Case, celsius: f64) {
    let snapshot = &mut case.snapshot;
    if snapshot.devices.is_empty() {
        snapshot.devices.push(Device {
            id: "cpu.package-0".into(),
            ..Device::default()
        });
    }
    for device in &mut snapshot.devices {
        let margin = THROTTLE_CELSIUS - celsius;
        device.temperature_celsius = Some(Sample::measured(celsius));
        device.thermal_margin_celsius = Some(Sample::measured(margin));
        if let Some(forecast) = &mut device.forecast {
            forecast.margin_celsius = margin as f32;
        }
    }
    let level = STATES_CELSIUS.iter().filter(|t| celsius >= **t).count();
    let share = ((celsius - STATES_CELSIUS[0]) / (THROTTLE_CELSIUS - STATES_CELSIUS[0])) as f32;
    let metabolism = &mut snapshot.metabolism;
    metabolism.state = [
        MetabolicState::Nominal,
        MetabolicState::Elevated,
        MetabolicState::Constrained,
        MetabolicState::Critical,
    ][level];
    metabolism.causes.thermal = level > 0;
    metabolism.risk = share.clamp(0.0, 1.0);
    metabolism.degrade_ratio = share.clamp(0.0, 1.0);
    if level > 1 {
        metabolism.speculation = SpeculationHint::Avoid;
    }
}
