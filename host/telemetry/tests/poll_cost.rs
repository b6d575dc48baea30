//! What sampling costs: eight boards and the files of a machine, ten times a second.
//!
//! A process of its own, because the time on a processor is read by the names of threads.
//! The fake library rereads its state file some seventy times for one poll of eight boards,
//! which no real one does; its part of its thread's time on a processor is not known apart,
//! only how long its calls took by the clock on the wall, which on a busy machine is more. So
//! what is asserted is the sampler's thread alone, and both threads with the fake library,
//! each with room for slower machines; what follows from the clock is told beside. What the
//! calls of a real board cost, and how seldom the dear ones are made, is replayed in
//! `src/nvml/tiers.rs`.

use std::fs;
use std::path::Path;
use std::time::Duration;

mod running;

use homeostat_fake_nvml::FakeNvml;
use homeostat_telemetry::Telemetry;
use running::{start, wait};

/// After the opening, in which energy counters are asked every millisecond.
const SETTLED_MS: u64 = 4_000;
const WATCHED_MS: u64 = 10_000;
/// Share of one core for the sampler's thread. It takes far less; the rest is room for a machine
/// whose caches somebody else has just emptied.
const BUDGET: f64 = 0.01;

/// What a machine with a processor, a Radeon and a battery shows of itself.
const FILES: [(&str, &str); 22] = [
    ("sys/class/hwmon/hwmon0/name", "coretemp"),
    ("sys/class/hwmon/hwmon0/temp1_input", "60000"),
    ("sys/class/hwmon/hwmon0/temp1_label", "Package id 0"),
    ("sys/class/hwmon/hwmon0/temp1_crit", "100000"),
    ("sys/class/hwmon/hwmon0/temp2_input", "58000"),
    ("sys/class/hwmon/hwmon0/temp3_input", "57000"),
    ("sys/class/hwmon/hwmon1/name", "amdgpu"),
    ("sys/class/hwmon/hwmon1/temp1_input", "55000"),
    ("sys/class/hwmon/hwmon1/temp2_input", "66000"),
    ("sys/class/hwmon/hwmon1/power1_average", "120000000"),
    ("sys/class/hwmon/hwmon1/power1_cap", "250000000"),
    ("sys/class/powercap/intel-rapl:0/name", "package-0"),
    (
        "sys/class/powercap/intel-rapl:0/max_energy_range_uj",
        "262143328850",
    ),
    ("sys/class/powercap/intel-rapl:0/energy_uj", "1000000"),
    ("sys/class/thermal/thermal_zone0/type", "x86_pkg_temp"),
    ("sys/class/thermal/thermal_zone0/temp", "60000"),
    ("sys/class/power_supply/BAT0/type", "Battery"),
    ("sys/class/power_supply/BAT0/status", "Full"),
    ("sys/class/power_supply/BAT0/capacity", "100"),
    ("proc/stat", "cpu  100 0 50 1000 0 0 0 0 0 0\n"),
    (
        "proc/meminfo",
        "MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n",
    ),
    (
        "proc/pressure/memory",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000\n\
         full avg10=0.00 avg60=0.00 avg300=0.00 total=500\n",
    ),
];

/// Names of the sampler's threads in order, and the time that each has spent on a processor, s.
fn processor_seconds() -> Vec<(String, f64)> {
    let mut threads = Vec::new();
    for task in fs::read_dir("/proc/self/task").expect("Linux").flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let name = name.trim().to_owned();
        if matches!(name.as_str(), "telemetry" | "nvml") {
            threads.push((name, on_processor(&task.path()).as_secs_f64()));
        }
    }
    threads.sort_by(|a, b| a.0.cmp(&b.0));
    threads
}

/// To the nanosecond where the kernel counts so, else in its hundredths of a second.
fn on_processor(task: &Path) -> Duration {
    let first = |text: String| -> Option<u64> { text.split(' ').next()?.parse().ok() };
    let exact = fs::read_to_string(task.join("schedstat")).ok();
    if let Some(nanoseconds) = exact.and_then(first) {
        return Duration::from_nanos(nanoseconds);
    }
    let stat = fs::read_to_string(task.join("stat")).expect("a living thread");
    let (_, after_name) = stat.rsplit_once(')').expect("the name stands in brackets");
    // User and system time are the 14th and the 15th word, the 12th and 13th after the name.
    let words = after_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = words.filter_map(|word| word.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

fn library_seconds(telemetry: &Telemetry) -> f64 {
    let stats = telemetry.stats();
    let calls = stats.providers["nvml"].calls.values();
    calls.map(|call| call.seconds_total).sum()
}

#[test]
fn eight_boards_and_the_files_of_a_machine_cost_little_of_a_core() {
    let root = tempfile::tempdir().expect("a temporary folder");
    for (path, text) in FILES {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("has a folder")).expect("made");
        fs::write(path, text).expect("written");
    }
    let fake = FakeNvml::new("count=8");
    let telemetry = start(&fake, root.path());
    let settled = wait(&telemetry, "the end of the opening", |s| {
        s.monotonic_ms >= SETTLED_MS
    });
    let ids: Vec<&str> = settled.devices.iter().map(|d| d.id.as_str()).collect();
    assert!(ids.contains(&"gpu.7") && ids.contains(&"cpu.0"), "{ids:?}");
    let before = processor_seconds();
    let threads: Vec<&str> = before.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(threads, ["nvml", "telemetry"]);
    let in_library = library_seconds(&telemetry);
    // Waiting asks for snapshots and no statistics: that is not what is measured.
    std::thread::sleep(Duration::from_millis(WATCHED_MS));
    let last = telemetry.snapshot();
    let after = processor_seconds();
    let in_library = library_seconds(&telemetry) - in_library;

    let watched_s = (last.monotonic_ms - settled.monotonic_ms) as f64 / 1e3;
    let share = |thread: usize| (after[thread].1 - before[thread].1) / watched_s;
    let (nvml, sampler) = (share(0), share(1));
    println!(
        "{:.3} % of a core for the sampler, {:.3} % for NVML, of which the fake library took at \
         most {:.3} %",
        100.0 * sampler,
        100.0 * nvml,
        100.0 * in_library / watched_s
    );
    let stats = telemetry.stats();
    for (name, provider) in &stats.providers {
        let p99_ms = provider.read_seconds_p99.map(|s| 1e3 * s);
        let period_ms = provider.period_ms;
        println!("{name}: every {period_ms} ms, p99 {p99_ms:?} ms");
    }
    assert!(sampler < BUDGET, "{sampler} of a core");
    let all = nvml + sampler;
    assert!(all < 2.0 * BUDGET, "{all} of a core with the fake library");
    assert!(last.sequence > settled.sequence, "it was not asleep");
}
