//! The real NVML code against a library that lies on demand.
//!
//! `homeostat-fake-nvml` is a dev-dependency, so cargo puts its shared library beside this
//! test's program; should it be missing there, the harness builds it with
//! `cargo build --release -p homeostat-fake-nvml`. Every test uses a copy of its own with
//! a state file of its own. Time is real here (a hanging call hangs really); waiting is for
//! a condition, with a deadline only so that a failure ends.

use std::path::Path;
use std::time::Duration;

mod running;

use homeostat_fake_nvml::FakeNvml;
use homeostat_hooks::{Device, Health, MetabolicState, Origin, Snapshot};
use homeostat_telemetry::{Config, NvmlLibrary, Telemetry, probe_nvml};
use running::wait;

fn start(fake: &FakeNvml) -> Telemetry {
    running::start(fake, Path::new("/nonexistent"))
}

fn gpu<'a>(snapshot: &'a Snapshot, id: &str) -> Option<&'a Device> {
    snapshot.devices.iter().find(|device| device.id == id)
}

fn celsius(snapshot: &Snapshot) -> Option<f64> {
    Some(gpu(snapshot, "gpu.0")?.temperature_celsius?.value)
}

fn errors(telemetry: &Telemetry, kind: &str) -> u64 {
    let stats = telemetry.stats();
    let nvml = stats.providers.get("nvml");
    nvml.and_then(|p| p.errors.get(kind)).copied().unwrap_or(0)
}

#[test]
fn the_first_snapshot_shows_the_gpu_with_every_value_and_its_unit() {
    let fake = FakeNvml::new(
        "temperature=61\nmemory_temperature=70\npower_mw=250500\npower_limit_mw=700000\n\
         clock_mhz=990\ngpu_util=40\nmemory_used=1073741824\nmemory_total=2147483648\n\
         throttle=0x4\nname=NVIDIA Test",
    );
    let telemetry = start(&fake);
    let snapshot = telemetry.snapshot();
    let device = gpu(&snapshot, "gpu.0").expect("seen at once");
    let value = |sample: Option<homeostat_hooks::Sample>| sample.map(|s| s.value);
    assert_eq!(device.model, "NVIDIA Test");
    assert_eq!(device.health, Health::Ok);
    assert_eq!(value(device.temperature_celsius), Some(61.0));
    assert_eq!(value(device.memory_temperature_celsius), Some(70.0));
    assert_eq!(value(device.thermal_margin_celsius), Some(26.0));
    assert_eq!(value(device.power_watts), Some(250.5));
    assert_eq!(
        device.power_watts.map(|s| s.window_ms),
        Some(0),
        "the instant one"
    );
    assert_eq!(value(device.power_limit_watts), Some(700.0));
    assert_eq!(value(device.clock_ratio), Some(0.5));
    assert_eq!(value(device.utilization_ratio), Some(0.4));
    assert_eq!(device.memory_used_bytes, Some(1 << 30));
    assert_eq!(device.memory_total_bytes, Some(2 << 30));
    let throttle = device.throttle.expect("told");
    assert!(throttle.power_cap && !throttle.thermal_hardware);
    assert_eq!(
        value(device.energy_joules),
        Some(0.0),
        "counted from our start"
    );
    assert!(!snapshot.simulated);
}

#[test]
fn the_state_follows_the_temperature_up_at_once_and_down_with_hysteresis() {
    let fake = FakeNvml::new("temperature=50");
    let telemetry = start(&fake);
    let cool = telemetry.snapshot();
    assert_eq!(cool.metabolism.state, MetabolicState::Nominal);
    assert_eq!(cool.metabolism.degrade_ratio, 0.0);
    fake.set("temperature=86");
    let hot = wait(&telemetry, "a constrained state", |s| {
        s.metabolism.state >= MetabolicState::Constrained
    });
    assert!(hot.metabolism.causes.thermal && hot.metabolism.degrade_ratio > 0.0);
    fake.set("temperature=50");
    let cooled = wait(&telemetry, "50 °C", |s| celsius(s) == Some(50.0));
    assert!(
        cooled.metabolism.state >= MetabolicState::Constrained,
        "hysteresis: {:?}",
        cooled.metabolism
    );
    let settled = wait(&telemetry, "nominal again", |s| {
        s.metabolism.state == MetabolicState::Nominal
    });
    assert!(settled.monotonic_ms - cooled.monotonic_ms >= 20_000);
}

#[test]
fn at_86_degrees_the_very_first_snapshot_is_constrained() {
    let telemetry = start(&FakeNvml::new("temperature=86"));
    let metabolism = telemetry.snapshot().metabolism;
    assert!(
        metabolism.state >= MetabolicState::Constrained,
        "{metabolism:?}"
    );
    assert!(metabolism.causes.thermal && metabolism.degrade_ratio > 0.0);
}

#[test]
fn without_the_library_there_is_no_gpu_and_no_alarm() {
    let telemetry = Telemetry::start(Config {
        nvml: NvmlLibrary::File("/nonexistent/libnvidia-ml.so.1".into()),
        ..Config::default()
    });
    let snapshot = telemetry.snapshot();
    assert_eq!(gpu(&snapshot, "gpu.0"), None);
    assert!(!snapshot.metabolism.causes.sensor);
    assert_eq!(errors(&telemetry, "no_library"), 1);
}

#[test]
fn a_lost_gpu_is_shown_as_lost_and_comes_back() {
    let fake = FakeNvml::new("count=2\nenergy_mj=1000");
    let telemetry = start(&fake);
    assert!(gpu(&telemetry.snapshot(), "gpu.1").is_some());
    fake.set("count=2\n1.fault=gpu_lost\nenergy_mj=5000");
    let lost = wait(&telemetry, "gpu.1 lost", |s| {
        gpu(s, "gpu.1").is_some_and(|d| d.health == Health::Lost)
    });
    assert_eq!(gpu(&lost, "gpu.0").expect("healthy").health, Health::Ok);
    let alarmed = wait(&telemetry, "the sensor cause", |s| {
        s.metabolism.causes.sensor
    });
    assert_eq!(alarmed.metabolism.state, MetabolicState::Constrained);
    // The driver was reset: its counter begins anew.
    fake.set("count=2\nenergy_mj=10");
    wait(&telemetry, "gpu.1 back", |s| {
        gpu(s, "gpu.1").is_some_and(|d| d.health == Health::Ok)
    });
    assert!(errors(&telemetry, "gpu_lost") >= 1);
    fake.set("count=2\nenergy_mj=1010");
    let counted = wait(&telemetry, "5 J in all", |s| {
        let energy = gpu(s, "gpu.0").and_then(|d| d.energy_joules);
        energy.is_some_and(|e| (e.value - 5.0).abs() < 1e-9)
    });
    assert!(counted.metabolism.risk < 1.0);
    assert!(errors(&telemetry, "counter_reset") >= 1);
}

#[test]
fn a_call_that_hangs_loses_the_device_without_stopping_the_sampler() {
    let fake = FakeNvml::new("temperature=50");
    let telemetry = start(&fake);
    fake.set("fault.temperature=hang");
    let lost = wait(&telemetry, "gpu.0 lost", |s| {
        gpu(s, "gpu.0").is_some_and(|d| d.health == Health::Lost)
    });
    assert!(errors(&telemetry, "timeout") >= 1);
    // A fresh thread meets the same hang; the sampler goes on meanwhile.
    let later = wait(&telemetry, "twenty more ticks", |s| {
        s.sequence >= lost.sequence + 20
    });
    assert!(later.metabolism.causes.sensor);
    assert_ne!(later.metabolism.state, MetabolicState::Nominal);
    fake.set("temperature=51");
    let back = wait(&telemetry, "51 °C", |s| celsius(s) == Some(51.0));
    assert_eq!(gpu(&back, "gpu.0").expect("back").health, Health::Ok);
    telemetry.shutdown();
}

#[test]
fn shutting_down_does_not_wait_for_a_call_that_hangs() {
    let fake = FakeNvml::new("");
    let telemetry = start(&fake);
    fake.set("fault=hang");
    wait(&telemetry, "a lost device", |s| {
        gpu(s, "gpu.0").is_some_and(|d| d.health == Health::Lost)
    });
    // The hang is never released: a join would wait for ever.
    telemetry.shutdown();
    fake.set("");
}

#[test]
fn what_a_board_does_not_support_is_absent_and_asked_once() {
    let fake = FakeNvml::new(
        "fault.energy=not_supported\nfault.field.82=not_supported\nfault.clock=not_supported\n\
         fault.utilization=no_permission",
    );
    let telemetry = start(&fake);
    let first = telemetry.snapshot();
    let later = wait(&telemetry, "ten ticks", |s| {
        s.sequence >= first.sequence + 10
    });
    let device = gpu(&later, "gpu.0").expect("listed");
    assert_eq!(device.energy_joules, None);
    assert_eq!(device.memory_temperature_celsius, None);
    assert_eq!(device.clock_ratio, None);
    assert_eq!(device.utilization_ratio, None);
    assert!(device.temperature_celsius.is_some() && device.health == Health::Ok);
    assert_eq!(
        errors(&telemetry, "not_supported"),
        2,
        "energy and clock, once each"
    );
    assert_eq!(errors(&telemetry, "no_permission"), 1);
}

#[test]
fn values_that_cannot_be_true_are_absent_and_counted() {
    let fake = FakeNvml::new(
        "temperature=255\npower_mw=4294967295\ngpu_util=700\nclock_mhz=999999\nmargin=-2000",
    );
    let telemetry = start(&fake);
    let snapshot = telemetry.snapshot();
    let device = gpu(&snapshot, "gpu.0").expect("listed");
    assert_eq!(device.temperature_celsius, None);
    assert_eq!(device.thermal_margin_celsius, None);
    assert_eq!(device.power_watts, None);
    assert_eq!(device.utilization_ratio, None);
    assert_eq!(device.clock_ratio, None);
    assert!(device.memory_total_bytes.is_some());
    assert_eq!(snapshot.metabolism.state, MetabolicState::Nominal);
    assert!(errors(&telemetry, "absurd") >= 5);
}

#[test]
fn a_sensor_that_begins_to_lie_grows_stale_and_alarms() {
    let fake = FakeNvml::new("temperature=60\nfault.margin=not_supported");
    let telemetry = start(&fake);
    assert_eq!(celsius(&telemetry.snapshot()), Some(60.0));
    fake.set("temperature=4294967295\nfault.margin=not_supported");
    let alarmed = wait(&telemetry, "the sensor cause", |s| {
        s.metabolism.causes.sensor
    });
    let device = gpu(&alarmed, "gpu.0").expect("listed");
    assert_eq!(device.health, Health::Degraded);
    let old = device
        .temperature_celsius
        .expect("still shown, with its age");
    assert!(old.value == 60.0 && old.age_ms > 300, "{old:?}");
}

#[test]
fn between_two_live_margins_the_margin_follows_the_temperature() {
    let fake = FakeNvml::new("temperature=50\nmargin=30");
    let telemetry = start(&fake);
    let margin = |s: &Snapshot| gpu(s, "gpu.0").and_then(|d| d.thermal_margin_celsius);
    wait(&telemetry, "the live margin", |s| {
        margin(s).is_some_and(|m| (m.value, m.origin) == (30.0, Origin::Measured))
    });
    fake.set("temperature=53\nmargin=27");
    wait(&telemetry, "3 °C less", |s| {
        margin(s).is_some_and(|m| (m.value, m.origin) == (27.0, Origin::Derived))
    });
    // The memory has warmed, which the core's thermometer does not tell.
    fake.set("temperature=53\nmargin=20");
    wait(&telemetry, "the live margin again", |s| {
        margin(s).is_some_and(|m| (m.value, m.origin) == (20.0, Origin::Measured))
    });
}

#[test]
fn a_live_margin_that_fails_falls_back_to_the_thresholds_and_comes_back() {
    let fake = FakeNvml::new("temperature=50\nmargin=30");
    let telemetry = start(&fake);
    let told = |s: &Snapshot| {
        let margin = gpu(s, "gpu.0").and_then(|d| d.thermal_margin_celsius);
        margin.map(|m| (m.value, m.origin))
    };
    fake.set("temperature=53\nfault.margin=unknown");
    // 87 °C less 53 °C: by the last live margin it would be 27 °C.
    wait(&telemetry, "the margin to the threshold", |s| {
        told(s) == Some((34.0, Origin::Derived))
    });
    fake.set("temperature=53\nmargin=25");
    wait(&telemetry, "the live margin again", |s| {
        told(s) == Some((25.0, Origin::Measured))
    });
}

#[test]
fn an_old_driver_without_the_newer_symbols_still_gives_a_margin() {
    let fake = FakeNvml::without(
        "nvmlDeviceGetMarginTemperature",
        "temperature=80\nfault.field.194=not_supported\nfault.field.196=not_supported",
    );
    let telemetry = start(&fake);
    let snapshot = telemetry.snapshot();
    let margin = gpu(&snapshot, "gpu.0").and_then(|d| d.thermal_margin_celsius);
    let margin = margin.expect("from the thresholds");
    assert_eq!((margin.value, margin.origin), (7.0, Origin::Derived));
    assert_eq!(errors(&telemetry, "missing_symbol"), 1);
}

#[test]
fn a_driver_that_states_no_limit_at_all_leaves_a_modelled_margin() {
    let fake = FakeNvml::new("temperature=80\nfault.margin=unknown\nfault.threshold=not_supported");
    let telemetry = start(&fake);
    let snapshot = telemetry.snapshot();
    let margin = gpu(&snapshot, "gpu.0").and_then(|d| d.thermal_margin_celsius);
    let margin = margin.expect("assumed");
    assert_eq!((margin.value, margin.origin), (7.0, Origin::Modelled));
}

#[test]
fn without_memory_info_the_rest_is_there() {
    let fake = FakeNvml::without("nvmlDeviceGetMemoryInfo_v2", "");
    let telemetry = start(&fake);
    let snapshot = telemetry.snapshot();
    let device = gpu(&snapshot, "gpu.0").expect("listed");
    assert_eq!(device.memory_total_bytes, None);
    assert!(device.power_watts.is_some());
}

#[test]
fn without_instant_power_the_average_is_used_and_says_its_window() {
    let fake = FakeNvml::new("fault.field.186=not_supported\npower_mw=1\npower_average_mw=300000");
    let telemetry = start(&fake);
    let snapshot = telemetry.snapshot();
    let power = gpu(&snapshot, "gpu.0").and_then(|d| d.power_watts);
    let power = power.expect("averaged");
    assert_eq!((power.value, power.window_ms), (300.0, 1_000));
}

#[test]
fn a_driver_that_is_being_replaced_is_opened_again() {
    let fake = FakeNvml::new("");
    let telemetry = start(&fake);
    fake.set("fault=version_mismatch\nfault.init=version_mismatch");
    wait(&telemetry, "gpu.0 lost", |s| {
        gpu(s, "gpu.0").is_some_and(|d| d.health == Health::Lost)
    });
    fake.set("temperature=47");
    let back = wait(&telemetry, "47 °C", |s| celsius(s) == Some(47.0));
    assert_eq!(gpu(&back, "gpu.0").expect("back").health, Health::Ok);
    assert!(errors(&telemetry, "version_mismatch") >= 1);
}

#[test]
fn where_only_the_module_tells_its_power_that_is_the_power() {
    let fake = FakeNvml::new(
        "fault.field.186=not_supported\nfield.186.module=640000\npower_average_mw=1000",
    );
    let telemetry = start(&fake);
    let snapshot = telemetry.snapshot();
    let power = gpu(&snapshot, "gpu.0").and_then(|d| d.power_watts);
    let power = power.expect("of the module");
    assert_eq!((power.value, power.window_ms), (640.0, 0));
    let stats = telemetry.stats();
    let values = &stats.devices["gpu.0"].values;
    assert_eq!(values.get("module_power_watts"), Some(&640.0));
    assert_eq!(values.get("memory_power_watts"), None, "absent, not 0");
}

#[test]
fn power_of_the_memory_is_told_to_operators() {
    let fake = FakeNvml::new("power_mw=500000\nfield.186.memory=90500");
    let telemetry = start(&fake);
    let snapshot = telemetry.snapshot();
    let power = gpu(&snapshot, "gpu.0").and_then(|d| d.power_watts);
    assert_eq!(power.map(|p| p.value), Some(500.0), "of the GPU");
    let stats = telemetry.stats();
    let values = &stats.devices["gpu.0"].values;
    assert_eq!(values.get("memory_power_watts"), Some(&90.5));
}

/// The reason bits that follow from counters, with numbers of a driver's own.
fn slowed_by_counter(driver: &str, field: &str) -> (bool, Option<f64>) {
    let state = |ns: u64| format!("driver={driver}\n{field}={ns}");
    let fake = FakeNvml::new(&state(5_000_000_000));
    let telemetry = start(&fake);
    let calls_of = |call: &str| {
        let stats = telemetry.stats();
        let calls = &stats.providers["nvml"].calls;
        calls.get(call).map_or(0, |call| call.calls)
    };
    let before = telemetry.snapshot();
    let said = gpu(&before, "gpu.0").and_then(|d| d.throttle);
    assert!(!said.expect("told").thermal_hardware, "not since we look");
    let (looked, polled) = (calls_of("violations"), calls_of("temperature"));
    fake.set(&state(5_400_000_000));
    // However seldom it is polled: before the third look the second was made known. A counter
    // that the driver does not have is looked at once.
    let later = wait(&telemetry, "a slowdown or looks at the counters", |s| {
        let throttle = gpu(s, "gpu.0").and_then(|d| d.throttle);
        let looks = calls_of("violations") - looked;
        let long = s.monotonic_ms >= before.monotonic_ms + 12_000;
        let never = long && calls_of("temperature") >= polled + 8 && looks == 0;
        throttle.is_some_and(|t| t.thermal_hardware) || looks >= 3 || never
    });
    let slowed = gpu(&later, "gpu.0").and_then(|d| d.throttle);
    let stats = telemetry.stats();
    let throttled = &stats
        .devices
        .get("gpu.0")
        .map(|d| d.throttled_seconds.clone());
    let seconds = throttled
        .as_ref()
        .and_then(|t| t.get("thermal_hardware").copied());
    (slowed.is_some_and(|t| t.thermal_hardware), seconds)
}

#[test]
fn a_slowdown_between_two_looks_is_seen_by_its_counter() {
    // The same counter has another number from driver 580.82 on.
    assert_eq!(
        slowed_by_counter("580.159.03", "field.270"),
        (true, Some(5.4))
    );
    assert_eq!(
        slowed_by_counter("570.86.15", "field.252"),
        (true, Some(5.4))
    );
    assert_eq!(slowed_by_counter("580.159.03", "field.252"), (false, None));
}

#[test]
fn polled_as_seldom_as_can_be_a_slowdown_is_still_seen_by_its_counter_and_ends() {
    let state = |ns: u64| format!("fault.temperature=slow\ndriver=580.159.03\nfield.270={ns}");
    let fake = FakeNvml::new(&state(5_000_000_000));
    let telemetry = start(&fake);
    wait(&telemetry, "the longest period", |_| {
        telemetry.stats().providers["nvml"].period_ms >= 2_000
    });
    let slowed = |s: &Snapshot| {
        let throttle = gpu(s, "gpu.0").and_then(|d| d.throttle);
        throttle.is_some_and(|t| t.thermal_hardware)
    };
    fake.set(&state(9_000_000_000));
    wait(&telemetry, "the slowdown", slowed);
    wait(&telemetry, "its end", |s| !slowed(s));
}

#[test]
fn every_call_has_its_latency_and_the_counter_its_moves() {
    let fake = FakeNvml::new("energy_mj=1000");
    let telemetry = start(&fake);
    fake.set("energy_mj=3500");
    wait(&telemetry, "2.5 J", |s| {
        let energy = gpu(s, "gpu.0").and_then(|d| d.energy_joules);
        energy.is_some_and(|e| e.value == 2.5)
    });
    let stats = telemetry.stats();
    let calls = &stats.providers["nvml"].calls;
    for call in [
        "init",
        "energy",
        "fields",
        "temperature",
        "margin",
        "clock_event_reasons",
        "clock_sm",
        "memory",
        "utilization",
        "enforced_power_limit",
        "temperature_limits",
    ] {
        let call = calls
            .get(call)
            .unwrap_or_else(|| panic!("{call} was not made"));
        assert!(call.calls >= 1 && call.seconds_max > 0.9 * call.seconds_total / call.calls as f64);
    }
    assert!(calls["energy"].calls > calls["memory"].calls, "tiers");
    let moves = telemetry.energy_moves(0);
    let sums: Vec<u64> = moves.iter().map(|m| m.total_uj).collect();
    assert_eq!(sums, [0, 2_500_000]);
    assert!(moves[0].at_us < moves[1].at_us && moves[0].device == "gpu.0");
    assert_eq!(telemetry.energy_moves(moves[1].sequence), vec![]);
}

#[test]
fn slow_calls_are_made_less_often_and_that_is_told() {
    let fake = FakeNvml::new("fault.temperature=slow");
    let telemetry = start(&fake);
    wait(&telemetry, "back-off", |_| {
        telemetry.stats().providers["nvml"].period_ms >= 400
    });
    let stats = telemetry.stats();
    assert!(stats.providers["nvml"].calls["temperature"].seconds_max > 0.005);
    fake.set("");
    wait(&telemetry, "the base period again", |_| {
        telemetry.stats().providers["nvml"].period_ms <= 250
    });
}

#[test]
fn a_probe_tells_which_questions_a_board_answers() {
    let fake = FakeNvml::new("fault.energy=not_supported\ntemperature=61\nfield.74=12");
    let library = NvmlLibrary::File(fake.library());
    let reports = probe_nvml(&library, 3, Duration::from_millis(20)).expect("it opens");
    let report = |call: &str| {
        let found = reports.iter().find(|r| r.call == call);
        found.unwrap_or_else(|| panic!("{call} is missing"))
    };
    assert_eq!(report("temperature").answer, Some(61.into()));
    assert_eq!(report("energy").error, Some("not_supported"));
    assert_eq!(report("field 74").answer, Some(12.0.into()));
    assert_eq!(report("field 186 memory").error, Some("not_supported"));
    assert_eq!(report("violation power").answer, Some(12.into()));
    let temperature = report("temperature");
    assert!(temperature.asked == 3 && temperature.p50_us <= temperature.max_us);
    let changes = temperature.changes.expect("watched");
    assert!(changes.changes == 0 && changes.shortest_ms.is_none() && changes.asked > 0);
    let missing = NvmlLibrary::File("/nonexistent/libnvidia-ml.so.1".into());
    let error = probe_nvml(&missing, 1, Duration::ZERO).expect_err("no library");
    assert!(error.contains("does not open"), "{error}");
    let off = probe_nvml(&NvmlLibrary::Off, 1, Duration::ZERO);
    assert_eq!(off.expect("nothing to ask"), vec![]);
}
