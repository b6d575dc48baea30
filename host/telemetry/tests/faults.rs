//! What sensors do in the field, one test each: they are absent, leave, lie, stand still,
//! begin anew, hang, and come back. A machine is a folder that looks like sysfs and procfs,
//! or the fake NVML; time is an argument where no driver is involved, so minutes of it take
//! milliseconds.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

mod running;

use homeostat_fake_nvml::FakeNvml;
use homeostat_hooks::{Device, DeviceKind, Health, MetabolicState, Origin, Snapshot};
use homeostat_telemetry::ledger::{Ledger, ProcessorPower};
use homeostat_telemetry::{
    Config, Inputs, NvmlLibrary, Provider, Recorder, Sampler, Telemetry, Tick, Trace, TraceHeader,
    TraceWriter,
};
use running::{start, wait};

/// A machine of files, sampled by hand.
struct Machine {
    root: tempfile::TempDir,
    sampler: Sampler,
    recorder: Recorder,
}

impl Machine {
    /// A machine that has these files from the start.
    fn new(files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        for (path, text) in files {
            put(&root, path, text);
        }
        let config = Config {
            sysfs_root: root.path().join("sys"),
            procfs_root: root.path().join("proc"),
            nvml: NvmlLibrary::Off,
            ..Config::default()
        };
        let recorder = Recorder::default();
        let unpaced = |provider| Box::new(Unpaced(provider)) as Box<dyn Provider>;
        let providers = Sampler::file_providers(&config);
        let providers = providers.into_iter().map(unpaced).collect();
        Self {
            root,
            sampler: Sampler::new(config, providers, recorder.clone()),
            recorder,
        }
    }

    fn set(&self, path: &str, text: &str) {
        put(&self.root, path, text);
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn tick(&mut self, now_ms: u64) -> Snapshot {
        self.sampler.tick(now_ms, &Inputs::default())
    }

    /// Ticks every 100 ms; the last snapshot.
    fn run(&mut self, from_ms: u64, to_ms: u64) -> Snapshot {
        let mut last = self.tick(from_ms);
        for now in (from_ms + 100..=to_ms).step_by(100) {
            last = self.tick(now);
        }
        last
    }

    fn errors(&self, provider: &str, kind: &str) -> u64 {
        let stats = self.recorder.stats(0);
        let provider = stats.providers.get(provider);
        provider
            .and_then(|p| p.errors.get(kind))
            .copied()
            .unwrap_or(0)
    }
}

/// A provider that is asked at every tick, however slow the computer is that runs the test.
struct Unpaced(Box<dyn Provider>);

impl Provider for Unpaced {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn period_ms(&self, base_ms: u32) -> u32 {
        self.0.period_ms(base_ms)
    }

    fn is_paced(&self) -> bool {
        false
    }

    fn read(&mut self, tick: &mut Tick<'_>) -> bool {
        self.0.read(tick)
    }
}

fn put(root: &tempfile::TempDir, path: &str, text: &str) {
    let path = root.path().join(path);
    fs::create_dir_all(path.parent().expect("has a folder")).expect("made");
    fs::write(path, text).expect("written");
}

fn device<'a>(snapshot: &'a Snapshot, id: &str) -> &'a Device {
    let found = snapshot.devices.iter().find(|device| device.id == id);
    found.unwrap_or_else(|| panic!("no {id} in {snapshot:#?}"))
}

/// Keeps lines of the log.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

/// The words of one line: its message and its fields.
struct Words(String);

impl tracing::field::Visit for Words {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!("{field}={value:?} ");
    }
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut words = Words(String::new());
        event.record(&mut words);
        self.0.lock().expect("whole").push(words.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// Lines that the log gets while something runs.
fn lines_of<T>(run: impl FnOnce() -> T) -> (T, Vec<String>) {
    let lines = Lines::default();
    let done = tracing::subscriber::with_default(lines.clone(), run);
    let told = std::mem::take(&mut *lines.0.lock().expect("whole"));
    (done, told)
}

const CPU: [(&str, &str); 4] = [
    ("sys/class/hwmon/hwmon0/name", "coretemp"),
    ("sys/class/hwmon/hwmon0/temp1_input", "60000"),
    ("sys/class/hwmon/hwmon0/temp1_label", "Package id 0"),
    ("sys/class/hwmon/hwmon0/temp1_crit", "100000"),
];
const CPU_HEAT: &str = "sys/class/hwmon/hwmon0/temp1_input";

const RAPL: [(&str, &str); 3] = [
    ("sys/class/powercap/intel-rapl:0/name", "package-0"),
    (
        "sys/class/powercap/intel-rapl:0/max_energy_range_uj",
        "262143328850",
    ),
    ("sys/class/powercap/intel-rapl:0/energy_uj", "1000000"),
];
const ENERGY: &str = "sys/class/powercap/intel-rapl:0/energy_uj";

#[test]
fn sensors_that_were_never_there_are_absent_and_no_fault() {
    let mut machine = Machine::new(&[]);
    let (snapshot, lines) = lines_of(|| machine.run(0, 60_000));
    assert_eq!(lines, Vec::<String>::new(), "nothing to tell");
    assert_eq!(snapshot.devices, vec![]);
    assert_eq!(snapshot.supply, None);
    assert_eq!(snapshot.pressure, Default::default());
    assert_eq!(snapshot.metabolism.state, MetabolicState::Nominal);
    assert!(!snapshot.metabolism.causes.sensor);
    let stats = machine.recorder.stats(0);
    let errors: u64 = stats
        .providers
        .values()
        .flat_map(|p| p.errors.values())
        .sum();
    assert_eq!(errors, 0, "{stats:#?}");
}

#[test]
fn a_sensor_lost_mid_run_grows_stale_is_never_cool_and_raises_its_cause() {
    let mut machine = Machine::new(&CPU);
    machine.run(0, 5_000);
    fs::remove_file(machine.path(CPU_HEAT)).expect("removed");
    let at_once = machine.run(5_100, 5_200);
    assert_eq!(
        device(&at_once, "cpu.0").health,
        Health::Ok,
        "one late read"
    );
    let stale = machine.run(5_300, 6_000);
    let cpu = device(&stale, "cpu.0");
    assert_eq!(cpu.health, Health::Stale);
    let old = cpu.temperature_celsius.expect("shown with its age");
    assert_eq!((old.value, old.age_ms), (60.0, 1_000));
    assert!(stale.metabolism.causes.sensor);
    assert!(stale.metabolism.state >= MetabolicState::Constrained);
    let risk = stale.metabolism.risk;
    let blind = machine.run(6_100, 45_000);
    assert_eq!(device(&blind, "cpu.0").temperature_celsius, None, "gone");
    assert!(blind.metabolism.risk > risk, "it is taken to heat");
    assert_eq!(blind.metabolism.state, MetabolicState::Critical, "blind");
}

#[test]
fn values_that_cannot_be_true_never_reach_the_state() {
    let mut machine = Machine::new(&CPU);
    let calm = machine.run(0, 2_000);
    let nonsense = ["255000", "-1000", "0", "4294967295", "nan", "1e99", ""];
    for (text, now) in nonsense.into_iter().zip((2_200..).step_by(200)) {
        machine.set(CPU_HEAT, text);
        let snapshot = machine.tick(now);
        let shown = device(&snapshot, "cpu.0").temperature_celsius;
        assert_eq!(shown.map(|sample| sample.value), Some(60.0), "{text:?}");
        assert_eq!(snapshot.metabolism.risk, calm.metabolism.risk, "{text:?}");
        machine.set(CPU_HEAT, "60000");
        machine.tick(now + 100);
    }
    assert_eq!(
        machine.errors("hwmon", "absurd"),
        6,
        "each but the empty one, which is no value"
    );
    machine.set(CPU_HEAT, "255000");
    machine.run(10_000, 15_000);
    let absurd = machine.errors("hwmon", "absurd");
    assert_eq!(absurd, 7, "a run of them is one fault");
    machine.set(CPU_HEAT, "61000");
    let well = machine.tick(20_000);
    let shown = device(&well, "cpu.0").temperature_celsius;
    assert_eq!(shown.map(|sample| sample.value), Some(61.0));
}

#[test]
fn a_thermometer_that_stands_still_under_a_changing_load_is_suspect() {
    let chip = [
        ("sys/class/hwmon/hwmon0/name", "amdgpu"),
        ("sys/class/hwmon/hwmon0/temp1_input", "55000"),
        ("sys/class/hwmon/hwmon0/power1_input", "40000000"),
    ];
    let power = "sys/class/hwmon/hwmon0/power1_input";
    let mut machine = Machine::new(&chip);
    let steady = machine.run(0, 60_000);
    assert_eq!(device(&steady, "gpu.amd.0").health, Health::Ok);
    machine.set(power, "250000000");
    let loaded = machine.run(60_100, 100_000);
    assert_eq!(device(&loaded, "gpu.amd.0").health, Health::Degraded);
    assert_eq!(machine.errors("sampler", "stuck"), 1, "told once");
    machine.set("sys/class/hwmon/hwmon0/temp1_input", "71000");
    let moved = machine.run(100_100, 100_200);
    assert_eq!(device(&moved, "gpu.amd.0").health, Health::Ok);
}

#[test]
fn a_counter_wraps_without_loss_resets_without_invention_and_stands_still_in_peace() {
    let mut machine = Machine::new(&RAPL);
    let joules = |snapshot: &Snapshot| {
        let energy = device(snapshot, "cpu.0").energy_joules;
        energy.expect("counted").value
    };
    assert_eq!(joules(&machine.tick(0)), 0.0);
    machine.set(ENERGY, "262143328850");
    let before = joules(&machine.tick(1_000));
    machine.set(ENERGY, "1999999");
    let wrapped = joules(&machine.tick(2_000));
    assert!(
        (wrapped - before - 2.0).abs() < 1e-9,
        "{wrapped} - {before}"
    );
    let frozen = joules(&machine.run(2_100, 10_000));
    assert_eq!(frozen, wrapped, "nothing is invented");
    let moves = machine.sampler.take_energy_moves();
    assert_eq!(moves.len(), 3, "a counter that stands still does not move");

    // A GPU's counter does not wrap; a smaller value is a driver that was loaded anew.
    let gpu = [
        ("sys/class/hwmon/hwmon0/name", "xe"),
        ("sys/class/hwmon/hwmon0/energy1_input", "5000000"),
    ];
    let mut machine = Machine::new(&gpu);
    machine.tick(0);
    machine.set("sys/class/hwmon/hwmon0/energy1_input", "10");
    machine.tick(100);
    machine.set("sys/class/hwmon/hwmon0/energy1_input", "1000010");
    let snapshot = machine.tick(200);
    let energy = device(&snapshot, "gpu.intel.0").energy_joules;
    assert_eq!(energy.map(|e| e.value), Some(1.0));
    assert_eq!(machine.errors("hwmon", "counter_reset"), 1);
}

#[test]
fn after_a_suspend_nothing_is_stretched_over_the_gap() {
    let files = [CPU.as_slice(), RAPL.as_slice()].concat();
    let mut machine = Machine::new(&files);
    machine.set(CPU_HEAT, "97000");
    let hot = machine.run(0, 5_000);
    assert!(hot.metabolism.state >= MetabolicState::Constrained);
    // Ten minutes in which nobody looked; the chip has cooled, the counter moved on.
    machine.set(CPU_HEAT, "40000");
    machine.set(ENERGY, "3000000");
    let woken = machine.tick(605_000);
    assert!(
        woken.metabolism.risk < hot.metabolism.risk,
        "the filter starts anew: {:?}",
        woken.metabolism
    );
    let cpu = device(&woken, "cpu.0");
    assert_eq!(cpu.energy_joules.map(|e| e.value), Some(2.0), "counted");
    let watts = cpu.power_watts.expect("derived from the counter").value;
    assert!(watts < 0.01, "2 J in 600 s, not in 0.1 s: {watts} W");
    // A clock that steps back is no time, and no panic.
    let back = machine.tick(604_000);
    assert_eq!(back.monotonic_ms, 604_000);
    let cpu = device(&back, "cpu.0");
    assert_eq!(cpu.energy_joules.map(|e| e.value), Some(2.0));
}

#[test]
fn a_permission_that_is_revoked_leaves_an_old_value_and_says_why() {
    let files = [CPU.as_slice(), RAPL.as_slice()].concat();
    let mut machine = Machine::new(&files);
    machine.run(0, 2_000);
    // Permission bits do not bind a superuser; a folder in the file's place does.
    fs::remove_file(machine.path(ENERGY)).expect("removed");
    fs::create_dir(machine.path(ENERGY)).expect("made");
    let (snapshot, lines) = lines_of(|| machine.run(2_100, 3_000));
    assert_eq!(lines.len(), 1, "the reason, once: {lines:?}");
    for word in [
        "cpu.0",
        "unreadable",
        "dac_read_search",
        "energy_uj readable",
    ] {
        assert!(lines[0].contains(word), "{word} is missing: {}", lines[0]);
    }
    let cpu = device(&snapshot, "cpu.0");
    assert_eq!(cpu.health, Health::Degraded, "heat is there, energy is not");
    assert_eq!(cpu.energy_joules.expect("the last").age_ms, 1_000);
    assert_eq!(machine.errors("rapl", "unreadable"), 10);
    let gone = machine.run(3_100, 33_000);
    assert_eq!(device(&gone, "cpu.0").energy_joules, None);
}

#[test]
fn a_permission_that_is_revoked_leaves_energy_modelled_and_no_time_counts_twice() {
    let mut machine = Machine::new(&RAPL);
    let mut ledger = Ledger::new(Some(ProcessorPower {
        busy_watts: 30.0,
        idle_watts: 5.0,
    }));
    let cpu = ledger.device("cpu.0", DeviceKind::Cpu).expect("first");
    let books = |ledger: &Ledger| ledger.accounts().next().expect("one").1;
    // The package draws 50 W, and so do one and a half processors in the model.
    let rate_uj_per_ms = 50_000;
    for now in (0..=30_000).step_by(100) {
        match now {
            5_000 => {
                fs::remove_file(machine.path(ENERGY)).expect("removed");
                fs::create_dir(machine.path(ENERGY)).expect("made");
            }
            15_000 => fs::remove_dir(machine.path(ENERGY)).expect("removed"),
            _ => {}
        }
        if !(5_000..15_000).contains(&now) {
            let uj = 1_000_000 + rate_uj_per_ms * now;
            machine.set(ENERGY, &uj.to_string());
        }
        ledger.processor_time(cpu, now * 1_000, now * 1_500, 1.0);
        ledger.sense(&machine.tick(now));
        ledger.advance(now * 1_000, now * 1_000);
        if now == 4_900 {
            assert_eq!(books(&ledger).origin, Origin::Measured);
        }
        if now == 14_900 {
            let accounts = books(&ledger);
            assert!(accounts.suspect, "{accounts:?}");
            assert_eq!(accounts.origin, Origin::Modelled);
        }
    }
    let accounts = books(&ledger);
    assert!(!accounts.suspect, "believed again: {accounts:?}");
    assert_eq!((accounts.faults.freezes, accounts.faults.gap_us), (1, 0));
    // Since the first change, which is not ours to count.
    let expected = (30_000 - 100) * rate_uj_per_ms;
    assert!(
        accounts.measured_uj.abs_diff(expected) <= 1_000,
        "{accounts:?}, expected {expected}"
    );
}

#[test]
fn a_starved_sampler_uses_the_time_that_really_passed() {
    let late = [0, 100, 900, 1_000, 3_700, 4_000, 8_400];
    let rate_w = 50.0;
    let mut machine = Machine::new(&RAPL);
    let mut last = None;
    for now in late {
        let uj = 1_000_000 + (rate_w * now as f64 * 1e3) as u64;
        machine.set(ENERGY, &uj.to_string());
        last = Some(machine.tick(now));
    }
    let last = last.expect("several");
    let watts = device(&last, "cpu.0").power_watts.expect("derived").value;
    assert!((watts - rate_w).abs() < 0.01, "{watts}");
    assert_eq!(machine.recorder.stats(9_000).age_ms, 600, "age is told");
}

#[test]
fn of_eight_gpus_only_the_hot_one_is_told_to_be_hot() {
    let fake = FakeNvml::new("count=8\ntemperature=50\n5.temperature=86");
    let telemetry = start(&fake, std::path::Path::new("/nonexistent"));
    let snapshot = telemetry.snapshot();
    assert_eq!(snapshot.devices.len(), 8);
    let hot: BTreeSet<&str> = snapshot
        .devices
        .iter()
        .filter(|d| d.thermal_margin_celsius.expect("told").value < 10.0)
        .map(|d| d.id.as_str())
        .collect();
    assert_eq!(hot, BTreeSet::from(["gpu.5"]));
    let shares = (0..8).map(|n| telemetry.device_degrade_ratio(&format!("gpu.{n}")));
    let shares: Vec<f32> = shares.collect();
    assert!(shares[5] > 0.0, "{shares:?}");
    let cool = shares.iter().enumerate().filter(|(n, _)| *n != 5);
    assert!(
        cool.map(|(_, share)| *share).all(|share| share == 0.0),
        "{shares:?}"
    );
    assert!(telemetry.snapshot().metabolism.degrade_ratio >= shares[5]);
}

/// The bus with one NVIDIA GPU, and a battery that drains.
fn laptop(status: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary folder");
    let gpu = "sys/bus/pci/devices/0000:01:00.0";
    let battery = "sys/class/power_supply/BAT0";
    for (path, text) in [
        (format!("{gpu}/vendor"), "0x10de\n"),
        (format!("{gpu}/class"), "0x030000\n"),
        (format!("{gpu}/power/control"), "auto\n"),
        (format!("{gpu}/power/runtime_status"), status),
        (format!("{battery}/type"), "Battery\n"),
        (format!("{battery}/status"), "Discharging\n"),
        (format!("{battery}/capacity"), "80\n"),
    ] {
        put(&root, &path, text);
    }
    root
}

#[test]
fn a_sleeping_gpu_is_not_woken_and_an_idle_one_on_battery_is_let_go() {
    let status = "sys/bus/pci/devices/0000:01:00.0/power/runtime_status";
    let root = laptop("suspended\n");
    let fake = FakeNvml::new("gpu_util=0");
    let telemetry = start(&fake, root.path());
    wait(&telemetry, "ten ticks", |s| s.sequence >= 10);
    assert_eq!(telemetry.snapshot().devices, vec![]);
    let opened = |telemetry: &Telemetry| {
        let stats = telemetry.stats();
        let nvml = stats.providers.get("nvml");
        nvml.and_then(|p| p.calls.get("init"))
            .map_or(0, |c| c.calls)
    };
    assert_eq!(opened(&telemetry), 0, "the library was not opened");
    // A game begins: somebody else has woken the GPU.
    put(&root, status, "active\n");
    let seen = wait(&telemetry, "gpu.0", |s| !s.devices.is_empty());
    assert_eq!(seen.devices[0].id, "gpu.0");
    // It ends. Idle on battery, the library is closed, so that the GPU may sleep.
    let gone = wait(&telemetry, "an empty list", |s| s.devices.is_empty());
    assert!(
        gone.monotonic_ms - seen.monotonic_ms >= 4_000,
        "idle for 5 s"
    );
    assert!(!gone.metabolism.causes.sensor, "asleep is not lost");
    put(&root, status, "suspended\n");
    let later = wait(&telemetry, "ten more ticks", |s| {
        s.sequence >= gone.sequence + 10
    });
    assert_eq!(later.devices, vec![]);
    assert_eq!(opened(&telemetry), 1);
    put(&root, status, "active\n");
    wait(&telemetry, "gpu.0 again", |s| !s.devices.is_empty());
    assert_eq!(opened(&telemetry), 2);
}

/// A file in memory.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("whole").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_recorded_gpu_is_played_back_snapshot_by_snapshot() {
    let fake = FakeNvml::new("temperature=60\nenergy_mj=1000");
    let config = Config {
        nvml: NvmlLibrary::File(fake.library()),
        ..Config::default()
    };
    let memory = Memory::default();
    let trace = TraceWriter::new(Box::new(memory.clone()), TraceHeader::new(&config));
    let trace = Arc::new(trace.expect("memory does not fail"));
    let telemetry = Telemetry::start_recording(config, Arc::clone(&trace));
    for (state, celsius) in [
        ("temperature=75\nenergy_mj=9000\nthrottle=0x20", 75.0),
        ("temperature=86\nenergy_mj=20000\npower_mw=650000", 86.0),
        ("fault=gpu_lost", 0.0),
        ("temperature=70\nenergy_mj=15", 70.0),
    ] {
        fake.set(state);
        wait(&telemetry, state, |s| {
            let gpu = s.devices.iter().find(|d| d.id == "gpu.0");
            let shown = gpu.and_then(|g| g.temperature_celsius).map(|t| t.value);
            let lost = gpu.is_some_and(|g| g.health == Health::Lost);
            shown == Some(celsius) && !lost || celsius == 0.0 && lost
        });
    }
    telemetry.shutdown();
    trace.finish().expect("written");
    let bytes = memory.0.lock().expect("whole").clone();
    let trace = Trace::read(&bytes[..]).expect("just written");
    let lost = |s: &Snapshot| s.devices.iter().any(|d| d.health == Health::Lost);
    let snapshots = || trace.ticks.iter().filter_map(|t| t.snapshot.as_ref());
    assert!(snapshots().any(lost));
    let calls: BTreeSet<&str> = trace.calls.iter().map(|c| c.call.as_str()).collect();
    assert!(calls.is_superset(&BTreeSet::from(["energy", "fields", "margin", "init"])));

    let recorder = Recorder::default();
    let replay = Box::new(trace.replay());
    let mut sampler = Sampler::new(trace.header.config(), vec![replay], recorder);
    for tick in &trace.ticks {
        let played = sampler.tick(tick.at_ms, &tick.inputs());
        assert_eq!(Some(&played), tick.snapshot.as_ref());
    }
}
