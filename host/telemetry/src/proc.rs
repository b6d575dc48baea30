//! CPU, memory and pressure from procfs.
//!
//! CPU use and PSI are shares of an interval, computed from the kernel's running totals;
//! the kernel's own averages reach back 10 s and more, too long for a decision now. The
//! first tick has no interval and says nothing. Where there is no procfs at all (macOS,
//! Windows) sysinfo answers for use and memory; its thermometers are not used, since it
//! merges chips of one name and keeps dead sensors alive.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use homeostat_hooks::DeviceKind;

use crate::reading::{Reading, Signal};
use crate::sampler::{Provider, Tick};
use crate::sysfs;

/// The window of the pressure ratios.
const WINDOW_MS: u64 = 1_000;
/// CPU use over less than this is noise of the kernel's 10 ms ticks.
const SHORTEST_CPU_WINDOW_MS: u64 = 200;

/// A running total and its recent past.
#[derive(Debug, Default)]
struct Total {
    past: VecDeque<(u64, u64)>,
}

impl Total {
    /// Takes the total at `now_ms`; gives its growth and the time over which it grew, about
    /// [`WINDOW_MS`]. `None` at first, after a gap, and when the total went backwards.
    fn grown(&mut self, total: u64, now_ms: u64) -> Option<(u64, u64)> {
        if self.past.back().is_some_and(|&(_, last)| total < last) {
            self.past.clear();
        }
        self.past.push_back((now_ms, total));
        // The oldest entry kept is the youngest that is at least a window old.
        while self.past.len() > 2 && now_ms.saturating_sub(self.past[1].0) >= WINDOW_MS {
            self.past.pop_front();
        }
        let &(since, first) = self.past.front()?;
        let elapsed = now_ms.saturating_sub(since);
        (elapsed > 0).then(|| (total - first, elapsed))
    }
}

/// The procfs reader.
pub struct Proc {
    root: PathBuf,
    model: Option<String>,
    busy: Total,
    all: Total,
    pressure: [Total; 4],
    elsewhere: Option<sysinfo::System>,
}

impl Proc {
    /// Reads below `root`, normally `/proc`.
    pub fn new(root: &Path) -> Self {
        let system_has_none = root == Path::new("/proc") && !root.join("stat").exists();
        Self {
            model: cpu_model(root),
            root: root.to_owned(),
            busy: Total::default(),
            all: Total::default(),
            pressure: Default::default(),
            elsewhere: system_has_none
                .then(sysinfo::System::new)
                .and_then(Result::ok),
        }
    }

    fn utilization(&mut self, now_ms: u64) -> Option<(f64, u64)> {
        let stat = sysfs::text(self.root.join("stat"))?;
        let (busy, all) = cpu_times(&stat)?;
        let busy = self.busy.grown(busy, now_ms);
        let (all, elapsed) = self.all.grown(all, now_ms)?;
        let (busy, _) = busy?;
        (all > 0 && elapsed >= SHORTEST_CPU_WINDOW_MS)
            .then(|| ((busy as f64 / all as f64).min(1.0), elapsed))
    }

    fn pressures(&mut self, tick: &mut Tick<'_>) {
        let files = ["cpu", "memory", "io"]
            .map(|name| sysfs::text(self.root.join("pressure").join(name)).unwrap_or_default());
        let [cpu, memory, io] = files.each_ref().map(String::as_str);
        let totals = [
            stall_us(cpu, "some"),
            stall_us(memory, "some"),
            stall_us(memory, "full"),
            stall_us(io, "some"),
        ];
        let mut ratios = [None; 4];
        for ((ratio, past), total) in ratios.iter_mut().zip(&mut self.pressure).zip(totals) {
            let Some(total) = total else { continue };
            *ratio = past
                .grown(total, tick.now_ms)
                .map(|(us, ms)| ((us as f64 / 1000.0 / ms as f64) as f32).min(1.0));
        }
        let pressure = &mut tick.readings.pressure;
        [
            pressure.cpu_some_ratio,
            pressure.memory_some_ratio,
            pressure.memory_full_ratio,
            pressure.io_some_ratio,
        ] = ratios;
    }

    fn memory(&self, tick: &mut Tick<'_>) -> bool {
        let Some(memory) = sysfs::text(self.root.join("meminfo")) else {
            return false;
        };
        let total = kib(&memory, "MemTotal:");
        let available = kib(&memory, "MemAvailable:");
        let pressure = &mut tick.readings.pressure;
        pressure.memory_limit_bytes = total;
        pressure.memory_used_bytes = match (total, available) {
            (Some(total), Some(available)) => Some(total.saturating_sub(available)),
            _ => None,
        };
        pressure.swap_used_bytes = match (kib(&memory, "SwapTotal:"), kib(&memory, "SwapFree:")) {
            (Some(total), Some(free)) => Some(total.saturating_sub(free)),
            _ => None,
        };
        total.is_some()
    }

    /// Writes CPU use down; the device exists from the first value on.
    fn record_cpu(&self, busy: f64, window_ms: u64, tick: &mut Tick<'_>) {
        let reading = Reading {
            window_ms: window_ms as u32,
            ..Reading::instant(busy, tick.now_ms, tick.period_ms)
        };
        let cpu = tick.readings.device("cpu.0", DeviceKind::Cpu);
        if cpu.model.is_empty() {
            cpu.model = self.model.clone().unwrap_or_default();
        }
        if cpu.record(Signal::Utilization, reading).is_err() {
            tick.recorder.error("proc", "absurd");
        }
    }
}

impl Provider for Proc {
    fn name(&self) -> &'static str {
        "proc"
    }

    fn read(&mut self, tick: &mut Tick<'_>) -> bool {
        if let Some(mut system) = self.elsewhere.take() {
            let answered = ask_sysinfo(&mut system, self, tick);
            self.elsewhere = Some(system);
            return answered;
        }
        if let Some((busy, window_ms)) = self.utilization(tick.now_ms) {
            self.record_cpu(busy, window_ms, tick);
        }
        self.pressures(tick);
        self.memory(tick)
    }
}

fn ask_sysinfo(system: &mut sysinfo::System, proc: &Proc, tick: &mut Tick<'_>) -> bool {
    system.refresh_cpu_usage();
    system.refresh_memory();
    let busy = f64::from(system.global_cpu_usage()) / 100.0;
    // Its first answer compares with nothing and is 0, which is not a measurement.
    if busy > 0.0 {
        proc.record_cpu(busy.min(1.0), u64::from(tick.period_ms), tick);
    }
    let total = system.total_memory();
    let pressure = &mut tick.readings.pressure;
    if total == 0 {
        return false;
    }
    pressure.memory_limit_bytes = Some(total);
    pressure.memory_used_bytes = Some(total.saturating_sub(system.available_memory()));
    pressure.swap_used_bytes = Some(system.used_swap());
    true
}

/// Busy and total time of all CPUs, in the kernel's ticks. Waiting for IO is not work;
/// guest time is already within user time; stolen time is busy, but for somebody else.
pub(crate) fn cpu_times(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find(|line| line.starts_with("cpu "))?;
    let times: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .map(|field| field.parse().ok())
        .collect::<Option<_>>()?;
    let &[user, nice, system, idle, iowait, irq, softirq, ..] = times.as_slice() else {
        return None;
    };
    let busy = user + nice + system + irq + softirq;
    Some((busy, busy + idle + iowait + times.get(7).unwrap_or(&0)))
}

/// The running total of one line of a PSI file, µs.
fn stall_us(text: &str, line: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.split(' ').next() == Some(line))?;
    line.split(' ')
        .find_map(|word| word.strip_prefix("total="))?
        .parse()
        .ok()
}

/// One line of meminfo, in bytes.
fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

fn cpu_model(root: &Path) -> Option<String> {
    let text = sysfs::text(root.join("cpuinfo"))?;
    let line = text
        .lines()
        .find(|line| line.starts_with("model name") || line.starts_with("Model"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;
    use homeostat_hooks::Pressure;

    #[test]
    fn cpu_use_is_the_busy_share_of_the_last_interval() {
        let mut fixture = Fixture::new();
        fixture.write("cpuinfo", "processor: 0\nmodel name\t: Tiny CPU @ 1 GHz\n");
        fixture.write("stat", "cpu  1000 0 0 9000 0 0 0 0 0 0\ncpu0 1 2 3 4\n");
        let mut proc = Proc::new(&fixture.path(""));
        fixture.read(&mut proc, 0);
        assert!(fixture.readings.devices.is_empty(), "no interval yet");
        fixture.write("stat", "cpu  1060 0 15 9020 3 0 0 2 0 0\ncpu0 1 2 3 4\n");
        fixture.read(&mut proc, 1_000);
        let cpu = fixture.device("cpu.0", 1_000).expect("listed");
        assert_eq!(cpu.model, "Tiny CPU @ 1 GHz");
        let busy = cpu.utilization_ratio.expect("measured");
        assert!((busy.value - 0.75).abs() < 1e-9, "{}", busy.value);
        assert_eq!(busy.window_ms, 1_000);
        assert_eq!(cpu.temperature_celsius, None);
    }

    #[test]
    fn pressure_is_the_share_of_the_last_second_from_the_totals() {
        let mut fixture = Fixture::new();
        let mut proc = Proc::new(&fixture.path(""));
        for tenth in 0..=20u64 {
            let some = 5_000 * tenth;
            fixture.write(
                "pressure/memory",
                &format!("some avg10=9.00 avg60=0.00 total={some}\nfull avg10=9.00 total=7\n"),
            );
            fixture.read(&mut proc, 100 * tenth);
        }
        let pressure = fixture.readings.pressure;
        let some = pressure.memory_some_ratio.expect("measured");
        assert!((some - 0.05).abs() < 1e-6, "{some}");
        assert_eq!(pressure.memory_full_ratio, Some(0.0), "present and calm");
        assert_eq!(pressure.cpu_some_ratio, None, "absent, not 0");
        assert_eq!(pressure.io_some_ratio, None);
    }

    #[test]
    fn a_pressure_file_that_vanishes_leaves_no_value_behind() {
        let mut fixture = Fixture::new();
        let mut proc = Proc::new(&fixture.path(""));
        for now in [0, 500] {
            fixture.write("pressure/cpu", "some avg10=0.00 total=10\n");
            fixture.read(&mut proc, now);
        }
        assert_eq!(fixture.readings.pressure.cpu_some_ratio, Some(0.0));
        fixture.remove("pressure/cpu");
        fixture.read(&mut proc, 600);
        assert_eq!(fixture.readings.pressure.cpu_some_ratio, None);
    }

    #[test]
    fn memory_in_use_is_what_is_not_available() {
        let mut fixture = Fixture::new();
        fixture.write(
            "meminfo",
            "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\nSwapTotal: 50 kB\nSwapFree: 20 kB\n",
        );
        let mut proc = Proc::new(&fixture.path(""));
        assert!(fixture.read(&mut proc, 0));
        let pressure = fixture.readings.pressure;
        assert_eq!(pressure.memory_limit_bytes, Some(1000 * 1024));
        assert_eq!(pressure.memory_used_bytes, Some(600 * 1024));
        assert_eq!(pressure.swap_used_bytes, Some(30 * 1024));
    }

    #[test]
    fn nonsense_in_the_files_is_no_reading_and_no_panic() {
        let mut fixture = Fixture::new();
        for (path, text) in [
            ("stat", "cpu  1 2 x\n"),
            ("meminfo", "MemTotal: 99999999999999999999 kB\n"),
            ("pressure/cpu", "some total=-4\n"),
            ("pressure/memory", "\u{0}\u{0}"),
        ] {
            fixture.write(path, text);
        }
        let mut proc = Proc::new(&fixture.path(""));
        for now in [0, 1_000] {
            assert!(!fixture.read(&mut proc, now));
        }
        assert!(fixture.readings.devices.is_empty());
        assert_eq!(fixture.readings.pressure, Pressure::default());
    }

    #[test]
    fn without_procfs_sysinfo_answers_for_memory() {
        let mut fixture = Fixture::new();
        let mut proc = Proc::new(&fixture.path(""));
        proc.elsewhere = Some(sysinfo::System::new().expect("supported here"));
        assert!(fixture.read(&mut proc, 0));
        let limit = fixture.readings.pressure.memory_limit_bytes.expect("known");
        let used = fixture.readings.pressure.memory_used_bytes.expect("known");
        assert!(0 < used && used < limit, "{used} of {limit}");
    }
}
