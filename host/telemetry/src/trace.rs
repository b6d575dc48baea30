//! Recordings of real machines, as JSON lines, and the provider that plays them back.
//!
//! The first line says what was recorded and how. Then follow, in the order in which they
//! happened: every `call` into a vendor's library with its raw answer and latency, and every
//! `tick` of the sampler with what the providers changed and the snapshot that came of it.
//! Calls are for people who study a sensor; playing back uses the ticks alone, so the same
//! state machine over a recording gives the same snapshots as it gave over the machine.
//!
//! What would tell whose machine it was (UUIDs, host names) is not recorded. It refuses to
//! smooth: what a sensor said stands there, also where it was absurd.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use homeostat_hooks::{DeviceKind, Pressure, Profile, Snapshot, Supply, ThrottleReasons};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{Config, NvmlLibrary};
use crate::reading::{ContainerMemory, DeviceReadings, Reading, Readings, Signal};
use crate::sampler::{Inputs, Provider, Tick};
use crate::stats::Called;

/// Version of the format. A reader refuses any other.
pub const TRACE_FORMAT: u32 = 1;

/// The first line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceHeader {
    /// [`TRACE_FORMAT`].
    pub format: u32,
    /// Program that recorded.
    pub program: String,
    /// Profile of the state machine.
    pub profile: Profile,
    /// Sampling period.
    pub period_ms: u32,
    /// The operator's cap, if there was one.
    pub power_cap_watts: Option<f64>,
    /// Wall clock at monotonic time 0, ms since 1970; only here does a wall clock appear.
    pub started_unix_ms: u64,
}

impl TraceHeader {
    /// The header of a recording that begins now.
    pub fn new(config: &Config) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            format: TRACE_FORMAT,
            program: concat!("homeostat ", env!("CARGO_PKG_VERSION")).to_owned(),
            profile: config.profile,
            period_ms: config.period_ms,
            power_cap_watts: config.power_cap_watts,
            started_unix_ms: now.map_or(0, |since| since.as_millis() as u64),
        }
    }

    /// The configuration under which a playback gives the recorded snapshots.
    pub fn config(&self) -> Config {
        Config {
            profile: self.profile,
            period_ms: self.period_ms,
            power_cap_watts: self.power_cap_watts,
            nvml: NvmlLibrary::Off,
            ..Config::default()
        }
    }
}

/// One call into a vendor's library.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceCall {
    /// Monotonic time at which it began, µs.
    pub at_us: u64,
    /// Time it took, ns.
    pub took_ns: u64,
    /// Whose library.
    pub provider: String,
    /// Device, empty for calls that concern none.
    pub device: String,
    /// Name of the call.
    pub call: String,
    /// The answer as it came, in the library's unit; `null` if it failed.
    pub raw: Value,
    /// Kind of the failure.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

impl TraceCall {
    pub(crate) fn new<T: Serialize>(called: Called<'_>, answer: Result<&T, &'static str>) -> Self {
        // Raw answers are plain records of numbers and texts, which JSON can always hold.
        let raw = answer.ok().and_then(|raw| serde_json::to_value(raw).ok());
        Self {
            at_us: called.at_us,
            took_ns: called.took.as_nanos() as u64,
            provider: called.provider.to_owned(),
            device: called.device.to_owned(),
            call: called.call.to_owned(),
            raw: raw.unwrap_or(Value::Null),
            error: answer.err().map(str::to_owned),
        }
    }
}

/// What changed of one device since the tick before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceDevice {
    /// Id.
    pub id: String,
    /// Kind.
    pub kind: DeviceKind,
    /// Model name.
    pub model: String,
    /// Does not answer any more.
    pub lost: bool,
    /// New readings; those that are not listed stay.
    pub readings: Vec<(Signal, Reading)>,
    /// Why it is slow, and when it said so, if that is new.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub throttle: Option<(ThrottleReasons, u64)>,
    /// When its energy counter moved, µs, and the sum then, µJ.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub energy_moves: Vec<(u64, u64)>,
}

/// What concerns the whole machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TraceHost {
    /// Pressure.
    pub pressure: Pressure,
    /// The container's memory.
    pub container_memory: Option<ContainerMemory>,
    /// Battery.
    pub supply: Option<Supply>,
    /// Processes killed for want of memory.
    pub oom_kills: Option<u64>,
}

impl TraceHost {
    fn of(readings: &Readings) -> Self {
        Self {
            pressure: readings.pressure,
            container_memory: readings.container_memory,
            supply: readings.supply,
            oom_kills: readings.oom_kills,
        }
    }
}

/// One tick of the sampler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceTick {
    /// Monotonic time.
    pub at_ms: u64,
    /// Devices of which something is new.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub devices: Vec<TraceDevice>,
    /// Devices that are there no more.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub removed: Vec<String>,
    /// The machine as a whole, if that is new.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host: Option<TraceHost>,
    /// Power that devices were about to draw, W: what others had told the forecast.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub planned_watts: BTreeMap<String, Vec<f64>>,
    /// What came of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub snapshot: Option<Snapshot>,
}

impl TraceTick {
    /// What others had told the sampler when the snapshot was taken.
    pub fn inputs(&self) -> Inputs {
        let mut inputs = Inputs {
            planned_watts: self.planned_watts.clone(),
            ..Inputs::default()
        };
        if let Some(snapshot) = &self.snapshot {
            inputs.kv_used_ratio = snapshot.pressure.kv_used_ratio;
            inputs.budgets.clone_from(&snapshot.budgets);
        }
        inputs
    }

    fn between(before: &Readings, now: &Readings, at_ms: u64) -> Self {
        let changed = now
            .devices
            .iter()
            .filter_map(|(id, device)| device_change(id, before.devices.get(id), device));
        let gone = before.devices.keys();
        let host = TraceHost::of(now);
        Self {
            at_ms,
            devices: changed.collect(),
            removed: gone
                .filter(|id| !now.devices.contains_key(*id))
                .cloned()
                .collect(),
            host: (host != TraceHost::of(before)).then_some(host),
            planned_watts: BTreeMap::new(),
            snapshot: None,
        }
    }

    /// Writes the changes into `readings`, `shift_ms` later than they were recorded.
    fn apply(&self, readings: &mut Readings, shift_ms: i64) -> Result<(), crate::Absurd> {
        let shifted = |at: u64| at.saturating_add_signed(shift_ms);
        for id in &self.removed {
            readings.devices.remove(id);
        }
        for change in &self.devices {
            let device = readings.device(&change.id, change.kind);
            device.model.clone_from(&change.model);
            device.lost = change.lost;
            for &(signal, reading) in &change.readings {
                let at_ms = shifted(reading.at_ms);
                device.record(signal, Reading { at_ms, ..reading })?;
            }
            if let Some((reasons, at)) = change.throttle {
                device.record_throttle(reasons, shifted(at));
            }
            for &(at_us, total_uj) in &change.energy_moves {
                let at_us = at_us.saturating_add_signed(shift_ms * 1_000);
                device.record_energy_move(at_us, total_uj);
            }
        }
        if let Some(host) = &self.host {
            readings.pressure = host.pressure;
            readings.container_memory = host.container_memory;
            readings.supply = host.supply;
            readings.oom_kills = host.oom_kills;
        }
        Ok(())
    }
}

fn device_change(
    id: &str,
    before: Option<&DeviceReadings>,
    now: &DeviceReadings,
) -> Option<TraceDevice> {
    let old = |signal| before.and_then(|device| device.last(signal));
    let readings: Vec<(Signal, Reading)> = now
        .readings()
        .filter(|&(signal, reading)| old(signal) != Some(reading))
        .map(|(signal, reading)| (signal, *reading))
        .collect();
    let throttle = now
        .last_throttle()
        .filter(|last| before.and_then(DeviceReadings::last_throttle) != Some(*last));
    let named = |device: &DeviceReadings| (device.kind, device.lost, device.model.clone());
    let same = before.is_some_and(|before| named(before) == named(now))
        && readings.is_empty()
        && throttle.is_none()
        && now.energy_moves().is_empty();
    (!same).then(|| TraceDevice {
        id: id.to_owned(),
        kind: now.kind,
        model: now.model.clone(),
        lost: now.lost,
        readings,
        throttle,
        energy_moves: now.energy_moves().to_vec(),
    })
}

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Header(TraceHeader),
    Call(TraceCall),
    Tick(Box<TraceTick>),
}

/// Writes a trace. Shared by the sampler and the threads of vendors' libraries; a failing
/// disk ends the recording and disturbs nobody.
pub struct TraceWriter {
    out: Mutex<Out>,
}

struct Out {
    sink: Box<dyn Write + Send>,
    before: Readings,
    failed: Option<io::Error>,
}

impl std::fmt::Debug for TraceWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TraceWriter").finish_non_exhaustive()
    }
}

impl TraceWriter {
    /// Begins a recording with its header.
    ///
    /// # Errors
    /// The sink's own.
    pub fn new(mut sink: Box<dyn Write + Send>, header: TraceHeader) -> io::Result<Self> {
        put(&mut sink, &Line::Header(header))?;
        Ok(Self {
            out: Mutex::new(Out {
                sink,
                before: Readings::default(),
                failed: None,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn call(&self, call: TraceCall) {
        self.lock().put(&Line::Call(call));
    }

    /// What the providers changed since the tick before.
    pub(crate) fn changes(&self, at_ms: u64, readings: &Readings) -> TraceTick {
        let mut out = self.lock();
        let tick = TraceTick::between(&out.before, readings, at_ms);
        out.before = readings.clone();
        tick
    }

    pub(crate) fn tick(&self, mut tick: TraceTick, snapshot: &Snapshot) {
        tick.snapshot = Some(snapshot.clone());
        self.lock().put(&Line::Tick(Box::new(tick)));
    }

    /// Writes what is still held back, and says what went wrong since the beginning.
    ///
    /// # Errors
    /// The first failure of the sink; nothing after it was recorded.
    pub fn finish(&self) -> io::Result<()> {
        let mut out = self.lock();
        match out.failed.take() {
            Some(error) => Err(error),
            None => out.sink.flush(),
        }
    }
}

impl Out {
    fn put(&mut self, line: &Line) {
        if self.failed.is_none() {
            self.failed = put(&mut self.sink, line).err();
        }
    }
}

fn put(sink: &mut Box<dyn Write + Send>, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    sink.write_all(&text)
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file itself.
    #[error("cannot read the trace: {0}")]
    Io(#[from] io::Error),
    /// A line is not what it should be.
    #[error("line {line} of the trace is no valid record: {source}")]
    Malformed {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// It does not begin with a header.
    #[error("the trace does not begin with a header; is it a recording of `telemetry record`?")]
    NoHeader,
    /// From another version.
    #[error("the trace has format {0}, this program reads format {TRACE_FORMAT}; record it anew")]
    Format(u32),
}

/// A recording in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// The first line.
    pub header: TraceHeader,
    /// All calls, in the order in which they ended.
    pub calls: Vec<TraceCall>,
    /// All ticks.
    pub ticks: Vec<TraceTick>,
}

impl Trace {
    /// Reads a recording. A last line that was cut off (the recorder was killed) is left
    /// out.
    ///
    /// # Errors
    /// See [`TraceError`]; lines are counted from 1.
    pub fn read(source: impl BufRead) -> Result<Self, TraceError> {
        let mut lines = source.split(b'\n').enumerate().peekable();
        let header = match lines.next() {
            Some((_, line)) => serde_json::from_slice(&line?).map_err(|_| TraceError::NoHeader)?,
            None => return Err(TraceError::NoHeader),
        };
        let Line::Header(header) = header else {
            return Err(TraceError::NoHeader);
        };
        if header.format != TRACE_FORMAT {
            return Err(TraceError::Format(header.format));
        }
        let mut trace = Self {
            header,
            calls: Vec::new(),
            ticks: Vec::new(),
        };
        while let Some((number, line)) = lines.next() {
            match serde_json::from_slice(&line?) {
                Ok(Line::Call(call)) => trace.calls.push(call),
                Ok(Line::Tick(tick)) => trace.ticks.push(*tick),
                Ok(Line::Header(_)) => return Err(TraceError::NoHeader),
                Err(source) if source.is_eof() && lines.peek().is_none() => {}
                Err(source) => {
                    return Err(TraceError::Malformed {
                        line: number + 1,
                        source,
                    });
                }
            }
        }
        Ok(trace)
    }

    /// A provider that plays the recording back. Its first tick is played when it is first
    /// asked, whenever that is; the rest follows at the recorded distances, by the clock of
    /// whoever asks.
    pub fn replay(&self) -> Replay {
        Replay {
            ticks: self.ticks.clone(),
            next: 0,
            shift_ms: None,
        }
    }
}

/// A recording as a provider.
#[derive(Debug, Clone)]
pub struct Replay {
    ticks: Vec<TraceTick>,
    next: usize,
    shift_ms: Option<i64>,
}

impl Replay {
    /// Whether everything was played; from then on the last readings grow old.
    pub fn is_over(&self) -> bool {
        self.next == self.ticks.len()
    }
}

impl Provider for Replay {
    fn name(&self) -> &'static str {
        "replay"
    }

    fn is_paced(&self) -> bool {
        false
    }

    fn read(&mut self, tick: &mut Tick<'_>) -> bool {
        let Some(first) = self.ticks.first() else {
            return false;
        };
        let start = tick.now_ms as i64 - first.at_ms as i64;
        let shift_ms = *self.shift_ms.get_or_insert(start);
        let before = self.next;
        while let Some(recorded) = self.ticks.get(self.next)
            && recorded.at_ms.saturating_add_signed(shift_ms) <= tick.now_ms
        {
            if recorded.apply(tick.readings, shift_ms).is_err() {
                // Somebody edited the file: what was recorded had passed the gate.
                tick.recorder.error("replay", "absurd");
            }
            self.next += 1;
        }
        self.next > before
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use homeostat_hooks::{Budget, BudgetUnit, Origin};

    use super::*;
    use crate::sampler::Sampler;
    use crate::stats::Recorder;

    /// A sink whose bytes the test sees.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("whole").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A machine that does a bit of everything that a recording must hold: it heats, loses
    /// and regains a device, removes one, moves its counter, slows down.
    struct Eventful;

    impl Provider for Eventful {
        fn name(&self) -> &'static str {
            "eventful"
        }

        fn is_paced(&self) -> bool {
            false
        }

        fn read(&mut self, tick: &mut Tick<'_>) -> bool {
            let now = tick.now_ms;
            let n = now as f64 / 100.0;
            let gpu = tick.readings.device("gpu.0", DeviceKind::Gpu);
            gpu.model = "Test".into();
            gpu.lost = (4_000..5_000).contains(&now);
            let mut put = |signal, value| {
                let _ = gpu.record(signal, Reading::instant(value, now, 100));
            };
            put(Signal::Temperature, 45.0 + n * 0.37);
            put(Signal::Power, 100.0 + 7.0 * (n % 13.0) / 3.0);
            put(Signal::PowerLimit, 300.0);
            put(Signal::Energy, n.min(40.0) * 11.1);
            if now.is_multiple_of(300) {
                let at_us = (now * 1_000).saturating_sub(37);
                gpu.record_energy_move(at_us, (n * 11.1e6) as u64);
            }
            let slow = ThrottleReasons {
                thermal_software: now > 9_000,
                ..ThrottleReasons::default()
            };
            gpu.record_throttle(slow, now);
            if now < 3_000 {
                let other = tick.readings.device("gpu.1", DeviceKind::Gpu);
                let watts = Reading {
                    origin: Origin::Derived,
                    ..Reading::instant(30.0 + n, now, 100)
                };
                let _ = other.record(Signal::Power, watts);
            } else {
                tick.readings.devices.remove("gpu.1");
            }
            tick.readings.pressure.memory_used_bytes = Some(now);
            tick.readings.pressure.memory_limit_bytes = Some(20_000);
            tick.readings.oom_kills = Some(now / 7_000);
            true
        }
    }

    fn inputs(now: u64) -> Inputs {
        let budget = Budget {
            scope: "host".into(),
            unit: BudgetUnit::Joules,
            limit: 100.0,
            used: now as f64 / 200.0,
            ..Budget::default()
        };
        Inputs {
            kv_used_ratio: Some(now as f32 / 30_000.0),
            budgets: vec![budget],
            planned_watts: BTreeMap::from([("gpu.0".to_owned(), vec![200.0, now as f64])]),
        }
    }

    /// A recording of 12 s, as bytes, with one call in it.
    fn recording() -> Vec<u8> {
        let sink = Shared::default();
        let config = Config::default();
        let trace = TraceWriter::new(Box::new(sink.clone()), TraceHeader::new(&config));
        let recorder = Recorder::tracing(Arc::new(trace.expect("memory does not fail")));
        let called = Called {
            provider: "nvml",
            device: "gpu.0",
            call: "energy",
            at_us: 3,
            took: Duration::from_micros(7),
        };
        recorder.call(called, Ok(&41_u64));
        recorder.call::<u64>(called, Err("not_supported"));
        let mut sampler = Sampler::new(config, vec![Box::new(Eventful)], recorder.clone());
        for now in (0..12_000).step_by(100) {
            sampler.tick(now, &inputs(now));
        }
        recorder.trace().expect("is on").finish().expect("written");
        sink.0.lock().expect("whole").clone()
    }

    #[test]
    fn a_recording_played_back_gives_the_same_snapshots() {
        let trace = Trace::read(&recording()[..]).expect("just written");
        assert_eq!(trace.ticks.len(), 120);
        let config = trace.header.config();
        let replay: Vec<Box<dyn Provider>> = vec![Box::new(trace.replay())];
        let mut sampler = Sampler::new(config, replay, Recorder::default());
        let mut states = std::collections::BTreeSet::new();
        for tick in &trace.ticks {
            let recorded = tick.snapshot.as_ref().expect("recorded");
            let told = tick.inputs();
            assert_eq!(told.planned_watts, inputs(tick.at_ms).planned_watts);
            let played = sampler.tick(tick.at_ms, &told);
            assert_eq!(&played, recorded, "at {} ms", tick.at_ms);
            states.insert(format!("{:?}", played.metabolism.state));
        }
        assert!(states.len() >= 2, "it was eventful: {states:?}");
        assert!(sampler.take_energy_moves().len() > 10);
    }

    #[test]
    fn played_back_later_everything_is_later_by_the_same_time() {
        let trace = Trace::read(&recording()[..]).expect("just written");
        let mut replay = trace.replay();
        let mut readings = Readings::default();
        for tick in &trace.ticks {
            replay.read(&mut Tick {
                now_ms: tick.at_ms + 1_000_000,
                period_ms: 100,
                readings: &mut readings,
                recorder: &Recorder::default(),
            });
        }
        assert!(replay.is_over());
        let power = *readings.devices["gpu.0"].last(Signal::Power).expect("last");
        assert_eq!(power.at_ms, 1_000_000 + 11_900);
    }

    #[test]
    fn calls_keep_their_raw_answers_and_failures() {
        let trace = Trace::read(&recording()[..]).expect("just written");
        assert_eq!(trace.calls[0].raw, Value::from(41));
        assert_eq!(trace.calls[0].took_ns, 7_000);
        assert_eq!(trace.calls[1].error.as_deref(), Some("not_supported"));
        assert_eq!(trace.calls[1].raw, Value::Null);
    }

    #[test]
    fn a_cut_off_last_line_is_left_out_and_any_other_damage_named_by_its_line() {
        let whole = recording();
        let cut = Trace::read(&whole[..whole.len() - 10]).expect("the rest is good");
        assert_eq!(cut.ticks.len(), 119);
        let mut damaged = whole.clone();
        let third = whole
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n')
            .nth(1);
        let (at, _) = third.expect("many lines");
        damaged[at + 3] = b'#';
        let error = Trace::read(&damaged[..]).expect_err("damaged").to_string();
        assert!(error.contains("line 3"), "{error}");
        let text = String::from_utf8(whole).expect("JSON");
        let newer = text.replacen("\"format\":1", "\"format\":9", 1);
        let error = Trace::read(newer.as_bytes()).expect_err("newer");
        assert!(matches!(error, TraceError::Format(9)));
        for nothing in [&b""[..], b"\n", b"{}\n", b"hello\n"] {
            let error = Trace::read(nothing).expect_err("no header");
            assert!(matches!(error, TraceError::NoHeader), "{error}");
        }
    }

    #[test]
    fn a_full_disk_ends_the_recording_and_is_told_at_the_end() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let config = Config::default();
        let trace = TraceWriter::new(Box::new(Full(2)), TraceHeader::new(&config));
        let recorder = Recorder::tracing(Arc::new(trace.expect("room for one line")));
        let mut sampler = Sampler::new(config, vec![Box::new(Eventful)], recorder.clone());
        let mut sequence = 0;
        for now in (0..1_000).step_by(100) {
            sequence = sampler.tick(now, &inputs(now)).sequence;
        }
        assert_eq!(sequence, 10, "sampling goes on");
        let error = recorder.trace().expect("is on").finish().expect_err("full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
