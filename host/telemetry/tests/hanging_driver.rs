//! A driver that hangs for longer than anybody's patience: the device is told to be lost in
//! time, the threads that are stuck inside it stay few, and after its release all of them
//! but one leave.
//!
//! A process of its own, because threads are counted by name.

use std::cell::Cell;
use std::fs;
use std::path::Path;

mod running;

use homeostat_fake_nvml::FakeNvml;
use homeostat_hooks::{Health, Snapshot};
use homeostat_telemetry::{CALL_LIMIT_MS, MAX_ABANDONED, Telemetry};
use running::{start, wait};

/// The pause before the attempt after the last one that is allowed, with room.
const NEXT_PAUSE_MS: u64 = 12_000;

/// Threads of this process that talk to the driver. One that ends while they are counted is
/// none.
fn drivers_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("Linux");
    let names = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.trim() == "nvml").count()
}

fn timeouts(telemetry: &Telemetry) -> u64 {
    let stats = telemetry.stats();
    let nvml = stats.providers.get("nvml");
    nvml.and_then(|p| p.errors.get("timeout").copied())
        .unwrap_or(0)
}

fn health(snapshot: &Snapshot) -> Option<Health> {
    let gpu = snapshot.devices.iter().find(|d| d.id == "gpu.0");
    gpu.map(|gpu| gpu.health)
}

#[test]
fn a_hanging_driver_is_told_in_time_and_holds_few_threads_which_leave_when_it_lets_go() {
    let fake = FakeNvml::new("temperature=50");
    let telemetry = start(&fake, Path::new("/nonexistent"));
    let hung = telemetry.snapshot();
    assert_eq!(health(&hung), Some(Health::Ok));
    assert_eq!(drivers_threads(), 1);

    fake.set("fault=hang");
    let lost = wait(&telemetry, "a lost device", |s| {
        health(s) == Some(Health::Lost)
    });
    let after_ms = lost.monotonic_ms - hung.monotonic_ms;
    println!("lost {after_ms} ms after the driver began to hang");
    assert!(after_ms >= CALL_LIMIT_MS, "a call had its time");
    assert!(after_ms <= 10 * CALL_LIMIT_MS, "{after_ms} ms");

    // Every attempt gets stuck as the first did, until there are enough of them.
    let most = Cell::new(0);
    let count = || most.set(most.get().max(drivers_threads()));
    let full = wait(&telemetry, "as many attempts as are allowed", |_| {
        count();
        timeouts(&telemetry) >= MAX_ABANDONED as u64
    });
    wait(&telemetry, "the time for one more", |s| {
        count();
        s.monotonic_ms >= full.monotonic_ms + NEXT_PAUSE_MS
    });
    let most = most.get();
    println!("at most {most} threads inside the driver");
    assert!(most > 1 && most <= 1 + MAX_ABANDONED, "{most}");
    assert_eq!(
        timeouts(&telemetry),
        MAX_ABANDONED as u64,
        "no fifth attempt"
    );
    assert_eq!(health(&telemetry.snapshot()), Some(Health::Lost));

    fake.set("temperature=51");
    wait(&telemetry, "51 °C", |s| {
        let gpu = s.devices.iter().find(|d| d.id == "gpu.0");
        let celsius = gpu.and_then(|gpu| gpu.temperature_celsius);
        celsius.is_some_and(|c| c.value == 51.0) && health(s) == Some(Health::Ok)
    });
    wait(&telemetry, "one thread alone", |_| drivers_threads() <= 1);
    telemetry.shutdown();
}
