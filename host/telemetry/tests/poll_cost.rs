//! What sampling costs: eight boards and the files of a machine, ten times a second.
//!
//! A process of its own, because the time on a processor is read by the names of threads.
//! The fake library rereads its state file some seventy times for one poll of eight boards,
//! which no real one does; that time is known from the counters of its calls, told beside
//! and taken out of what is asserted of this program. What the calls of a real board cost
//! is replayed in `src/nvml/tiers.rs`.

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
/// Share of one core.
const BUDGET: f64 = 0.005;

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

/// Time that the sampler's threads have spent on a processor, s, and their names.
fn processor_seconds() -> (f64, Vec<String>) {
    let (mut seconds, mut names) = (0.0, Vec::new());
    for task in fs::read_dir("/proc/self/task").expect("Linux").flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let name = name.trim().to_owned();
        if matches!(name.as_str(), "telemetry" | "nvml") {
            seconds += on_processor(&task.path()).as_secs_f64();
            names.push(name);
        }
    }
    names.sort();
    (seconds, names)
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
fn eight_boards_and_the_files_of_a_machine_cost_less_than_half_a_percent_of_a_core() {
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
    let (before, threads) = processor_seconds();
    assert_eq!(threads, ["nvml", "telemetry"]);
    let in_library = library_seconds(&telemetry);
    // Waiting asks for snapshots and no statistics: that is not what is measured.
    std::thread::sleep(Duration::from_millis(WATCHED_MS));
    let last = telemetry.snapshot();
    let (after, _) = processor_seconds();
    let in_library = library_seconds(&telemetry) - in_library;

    let watched_s = (last.monotonic_ms - settled.monotonic_ms) as f64 / 1e3;
    let all = (after - before) / watched_s;
    let own = (after - before - in_library) / watched_s;
    println!(
        "{:.3} % of a core, {:.3} % without the fake library",
        100.0 * all,
        100.0 * own
    );
    let stats = telemetry.stats();
    for (name, provider) in &stats.providers {
        let p99_ms = provider.read_seconds_p99.map(|s| 1e3 * s);
        let period_ms = provider.period_ms;
        println!("{name}: every {period_ms} ms, p99 {p99_ms:?} ms");
    }
    assert!(own < BUDGET, "{own} of a core");
    assert!(all < 2.0 * BUDGET, "{all} of a core with the fake library");
    let ticks = last.sequence - settled.sequence;
    assert!(ticks as f64 > 5.0 * watched_s, "only {ticks} ticks");
    let calls = &stats.providers["nvml"].calls;
    assert!(
        calls["margin"].calls * 2 < calls["temperature"].calls,
        "what is dear on real boards is asked seldom"
    );
}
