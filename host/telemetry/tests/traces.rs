//! Recordings of machines, and what must hold of every one: it plays back without a fault,
//! and its ticks tell what its raw calls told.
//!
//! Real ones lie in `traces/`, as `homeostat telemetry record` wrote them, `.jsonl` or
//! `.jsonl.gz`; a file that is put there is tested from then on. One is recorded here and
//! now, of the fake NVML, so that there is always one.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use homeostat_fake_nvml::FakeNvml;
use homeostat_telemetry::{
    Config, NvmlLibrary, Reading, Recorder, Sampler, Signal, Telemetry, Trace, TraceHeader,
    TraceWriter,
};

/// The instant power of the GPU among NVML's fields.
const INSTANT_POWER: u64 = 186;
/// Below this length the integral of power is too coarse to be compared with a counter.
const LONG_MS: u64 = 30_000;

fn read(path: &Path) -> Trace {
    let file = File::open(path).expect("readable");
    let source: Box<dyn BufRead> = match path.extension().and_then(|e| e.to_str()) {
        Some("gz") => Box::new(BufReader::new(flate2::read::GzDecoder::new(file))),
        _ => Box::new(BufReader::new(file)),
    };
    Trace::read(source).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A recording of the fake NVML with a load that comes and goes.
fn recorded_now() -> Trace {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("trace.jsonl");
    let fake = FakeNvml::new("energy_mj=5000\npower_mw=100000");
    let config = Config {
        nvml: NvmlLibrary::File(fake.library()),
        ..Config::default()
    };
    let sink = Box::new(File::create(&path).expect("made"));
    let trace = TraceWriter::new(sink, TraceHeader::new(&config)).expect("written");
    let trace = Arc::new(trace);
    let telemetry = Telemetry::start_recording(config, Arc::clone(&trace));
    for step in 1..=40u64 {
        let watts = if step / 8 % 2 == 0 { 100 } else { 400 };
        fake.set(&format!(
            "energy_mj={}\npower_mw={}\ntemperature={}",
            5_000 + 17_000 * step,
            1_000 * watts,
            50 + step / 4
        ));
        std::thread::sleep(Duration::from_millis(50));
    }
    telemetry.shutdown();
    trace.finish().expect("written");
    read(&path)
}

fn traces() -> Vec<(String, Trace)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces");
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut traces: Vec<(String, Trace)> = files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|e| e == "jsonl" || e == "gz"))
        .map(|path| (path.display().to_string(), read(&path)))
        .collect();
    traces.push(("recorded now".into(), recorded_now()));
    traces
}

/// The readings of one signal of `gpu.0`, in order.
fn readings(trace: &Trace, signal: Signal) -> Vec<Reading> {
    let devices = trace.ticks.iter().flat_map(|tick| &tick.devices);
    devices
        .filter(|device| device.id == "gpu.0")
        .flat_map(|device| &device.readings)
        .filter(|(of, _)| *of == signal)
        .map(|(_, reading)| *reading)
        .collect()
}

/// The raw numbers of one call on `gpu.0`, in order.
fn raw(trace: &Trace, call: &str) -> Vec<u64> {
    let calls = trace.calls.iter();
    calls
        .filter(|c| c.device == "gpu.0" && c.call == call)
        .filter_map(|c| c.raw.as_u64())
        .collect()
}

#[test]
fn every_recording_plays_back_without_a_fault() {
    for (name, trace) in traces() {
        let recorder = Recorder::default();
        let replay = Box::new(trace.replay());
        let config = trace.header.config();
        let mut sampler = Sampler::new(config, vec![replay], recorder.clone());
        let mut before = None;
        for tick in &trace.ticks {
            assert!(before < Some(tick.at_ms), "{name}: {} ms", tick.at_ms);
            before = Some(tick.at_ms);
            let snapshot = sampler.tick(tick.at_ms, &tick.inputs());
            let recorded = tick.snapshot.as_ref();
            let devices = recorded.map_or(snapshot.devices.len(), |s| s.devices.len());
            assert_eq!(snapshot.devices.len(), devices, "{name}");
        }
        let stats = recorder.stats(0);
        for (provider, of_provider) in &stats.providers {
            assert!(
                of_provider.errors.is_empty(),
                "{name}: {provider}: {of_provider:?}"
            );
        }
        assert!(stats.ticks > 10, "{name} is empty");
    }
}

#[test]
fn ticks_tell_what_the_raw_calls_told() {
    for (name, trace) in traces() {
        let energies = raw(&trace, "energy");
        assert!(energies.is_sorted(), "{name}: a counter ran backwards");
        let first = energies[0];
        let counted: BTreeSet<u64> = energies.iter().map(|mj| mj - first).collect();
        let told = readings(&trace, Signal::Energy);
        for reading in &told {
            let mj = (reading.value * 1e3).round() as u64;
            assert!(
                counted.contains(&mj),
                "{name}: {reading:?} was never counted"
            );
        }
        assert!(told.last().expect("energy").value > 0.0, "{name}");

        let celsius: BTreeSet<u64> = raw(&trace, "temperature").into_iter().collect();
        for reading in readings(&trace, Signal::Temperature) {
            assert!(
                celsius.contains(&(reading.value as u64)),
                "{name}: {reading:?}"
            );
        }
        let fields = trace.calls.iter().filter(|c| c.call == "fields");
        let answers = fields.filter_map(|c| c.raw.as_array()).flatten();
        let milliwatts: BTreeSet<u64> = answers
            .filter(|a| a["field"]["id"] == INSTANT_POWER && a["field"]["scope"] == "gpu")
            .filter_map(|a| a["value"].as_f64())
            .map(|mw| mw as u64)
            .collect();
        for reading in readings(&trace, Signal::Power) {
            let mw = (reading.value * 1e3).round() as u64;
            assert!(
                milliwatts.contains(&mw),
                "{name}: {reading:?} was never told"
            );
        }
    }
}

#[test]
fn moves_of_the_counter_are_finer_than_ticks_and_add_up() {
    for (name, trace) in traces() {
        let devices = trace.ticks.iter().flat_map(|tick| &tick.devices);
        let moves: Vec<(u64, u64)> = devices.flat_map(|d| d.energy_moves.clone()).collect();
        assert!(moves.is_sorted(), "{name}: {moves:?}");
        assert!(moves.len() > 10, "{name}");
        let (_, last_uj) = *moves.last().expect("some");
        let told = *readings(&trace, Signal::Energy).last().expect("some");
        let difference = told.value * 1e6 - last_uj as f64;
        assert!(difference.abs() < 1.0, "{name}: {difference} µJ");
    }
}

#[test]
fn over_a_long_recording_counter_and_power_agree() {
    for (name, trace) in traces() {
        let energy = readings(&trace, Signal::Energy);
        let power = readings(&trace, Signal::Power);
        let (Some(first), Some(last)) = (energy.first(), energy.last()) else {
            continue;
        };
        if last.at_ms - first.at_ms < LONG_MS {
            continue;
        }
        let joules: f64 = power
            .windows(2)
            .map(|w| (w[0].value + w[1].value) / 2.0 * (w[1].at_ms - w[0].at_ms) as f64 / 1e3)
            .sum();
        let ratio = joules / (last.value - first.value);
        assert!((0.85..1.15).contains(&ratio), "{name}: {ratio}");
    }
}
