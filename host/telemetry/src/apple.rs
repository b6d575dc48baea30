//! Power, temperatures and use of Apple's chips, through the crate `macmon`.
//!
//! The counters behind it need no superuser and are a private interface of the system. An
//! answer covers an interval during which the library blocks, so a thread of its own asks
//! and the sampler takes the last answer; the thread is told to leave and never waited for.
//! Temperatures are means over sensors whose names change with every chip, and no limit is
//! told: margins follow from the assumed one and say that they are modelled.
//!
//! It refuses to believe in a processor that draws nothing: in a virtual machine all
//! counters read 0, and then no power is told. The provider itself has never been run, since
//! no such machine was at hand; what is tested everywhere is the way from its numbers to
//! readings.

use homeostat_hooks::{DeviceKind, Origin};

use crate::reading::{Reading, Signal};
use crate::sampler::Tick;

#[cfg(all(target_os = "macos", target_arch = "aarch64"))]
pub(crate) use provider::Apple;

const CPU: (&str, DeviceKind) = ("cpu.0", DeviceKind::Cpu);
const GPU: (&str, DeviceKind) = ("gpu.apple.0", DeviceKind::Gpu);
const NPU: (&str, DeviceKind) = ("npu.apple.0", DeviceKind::Npu);
const HOST: (&str, DeviceKind) = ("host.0", DeviceKind::Host);

/// What the library says of one interval, as far as it is used.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct ChipMetrics {
    pub cpu_watts: f32,
    pub gpu_watts: f32,
    /// Of the neural engine.
    pub ane_watts: f32,
    /// Of the whole machine, estimated by its firmware; 0 = it does not say.
    pub system_watts: f32,
    pub cpu_celsius: Option<f32>,
    pub gpu_celsius: Option<f32>,
    pub gpu_active_ratio: f32,
    /// Memory that processor and graphics share.
    pub memory_used_bytes: u64,
    pub memory_total_bytes: u64,
}

impl ChipMetrics {
    /// Writes down an interval that ended at `at_ms`.
    pub fn write_to(&self, tick: &mut Tick<'_>, at_ms: u64, interval_ms: u32) {
        for ((id, kind), signal, value) in self.values() {
            let (origin, window_ms) = match signal {
                // The growth of a counter over the interval.
                Signal::Power => (Origin::Derived, interval_ms),
                Signal::Utilization => (Origin::Measured, interval_ms),
                _ => (Origin::Measured, 0),
            };
            let reading = Reading {
                origin,
                window_ms,
                ..Reading::instant(value, at_ms, interval_ms)
            };
            let device = tick.readings.device(id, kind);
            if device.record(signal, reading).is_err() {
                tick.recorder.error("apple", "absurd");
            }
        }
    }

    /// What is known, by device.
    fn values(&self) -> impl Iterator<Item = ((&'static str, DeviceKind), Signal, f64)> {
        let powered = self.cpu_watts > 0.0;
        let watts = |watts: f32| powered.then_some(f64::from(watts));
        let used = self.memory_used_bytes as f64;
        let total = Some(self.memory_total_bytes as f64).filter(|bytes| *bytes > 0.0);
        let busy = f64::from(self.gpu_active_ratio.min(1.0));
        [
            (CPU, Signal::Power, watts(self.cpu_watts)),
            (GPU, Signal::Power, watts(self.gpu_watts)),
            (NPU, Signal::Power, watts(self.ane_watts)),
            (
                HOST,
                Signal::Power,
                watts(self.system_watts).filter(|watts| *watts > 0.0),
            ),
            (CPU, Signal::Temperature, self.cpu_celsius.map(f64::from)),
            (GPU, Signal::Temperature, self.gpu_celsius.map(f64::from)),
            // A chip without power counters has none of its use either.
            (GPU, Signal::Utilization, powered.then_some(busy)),
            (GPU, Signal::MemoryUsed, total.map(|_| used)),
            (GPU, Signal::MemoryTotal, total),
        ]
        .into_iter()
        .filter_map(|(device, signal, value)| Some((device, signal, value?)))
    }
}

#[cfg(all(target_os = "macos", target_arch = "aarch64"))]
mod provider {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex, PoisonError};
    use std::time::{Duration, Instant};

    use super::ChipMetrics;
    use crate::config::Config;
    use crate::sampler::{Provider, Tick};
    use crate::stats::Recorder;

    /// Shorter intervals hold too few of the counters' own steps.
    const INTERVAL_MS: u32 = 500;
    /// After a failure.
    const PAUSE: Duration = Duration::from_secs(10);
    /// Longest time that the start waits for the first answer: four intervals.
    const FIRST_ANSWER: Duration = Duration::from_millis(4 * INTERVAL_MS as u64);

    #[derive(Default)]
    struct Slot {
        /// The last answer and when its interval ended.
        last: Mutex<Option<(ChipMetrics, u64)>>,
        /// The first question was answered, or will not be.
        settled: AtomicBool,
        stop: AtomicBool,
    }

    /// The provider of Apple's chips.
    pub(crate) struct Apple {
        slot: Arc<Slot>,
    }

    impl Apple {
        /// Starts the thread that asks and waits for its first answer, so that the first
        /// snapshot already shows the chip: who keeps books of energy looks at that one to
        /// learn whether a sensor tells the processor's. `None` where the sensors are a test's
        /// folder, in which this machine has no place.
        pub fn start(config: &Config, epoch: Instant, recorder: &Recorder) -> Option<Self> {
            if config.sysfs_root != Config::default().sysfs_root {
                return None;
            }
            let slot = Arc::new(Slot::default());
            let thread = {
                let (slot, recorder) = (Arc::clone(&slot), recorder.clone());
                std::thread::Builder::new()
                    .name("apple".into())
                    .spawn(move || watch(&slot, epoch, &recorder))
            };
            match thread {
                Ok(_) => {
                    let deadline = Instant::now() + FIRST_ANSWER;
                    while !slot.settled.load(Ordering::Acquire) && Instant::now() < deadline {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Some(Self { slot })
                }
                Err(error) => {
                    tracing::error!(%error, "cannot start the thread for Apple's sensors; they are not seen");
                    None
                }
            }
        }
    }

    fn watch(slot: &Slot, epoch: Instant, recorder: &Recorder) {
        let mut chip = match macmon::Sampler::new() {
            Ok(chip) => chip,
            Err(error) => {
                tracing::info!(%error, "no sensors of an Apple chip, hence no power and no heat");
                slot.settled.store(true, Ordering::Release);
                return;
            }
        };
        while !slot.stop.load(Ordering::Acquire) {
            match chip.get_metrics(INTERVAL_MS) {
                Ok(metrics) => {
                    let answer = (
                        ChipMetrics::from(&metrics),
                        epoch.elapsed().as_millis() as u64,
                    );
                    *slot.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
                    slot.settled.store(true, Ordering::Release);
                }
                Err(_) => {
                    slot.settled.store(true, Ordering::Release);
                    recorder.error("apple", "failed");
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    impl From<&macmon::Metrics> for ChipMetrics {
        fn from(metrics: &macmon::Metrics) -> Self {
            Self {
                cpu_watts: metrics.cpu_power,
                gpu_watts: metrics.gpu_power,
                ane_watts: metrics.ane_power,
                system_watts: metrics.sys_power,
                cpu_celsius: metrics.temp.cpu_temp_avg,
                gpu_celsius: metrics.temp.gpu_temp_avg,
                gpu_active_ratio: metrics.gpu_active_ratio,
                memory_used_bytes: metrics.memory.ram_usage,
                memory_total_bytes: metrics.memory.ram_total,
            }
        }
    }

    impl Provider for Apple {
        fn name(&self) -> &'static str {
            "apple"
        }

        fn read(&mut self, tick: &mut Tick<'_>) -> bool {
            let last = *self
                .slot
                .last
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some((metrics, at_ms)) = &last {
                metrics.write_to(tick, *at_ms, INTERVAL_MS);
            }
            last.is_some()
        }
    }

    impl Drop for Apple {
        fn drop(&mut self) {
            self.slot.stop.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::Readings;
    use crate::stats::Recorder;

    /// Numbers like those of a laptop that answers a question.
    const BUSY: ChipMetrics = ChipMetrics {
        cpu_watts: 6.25,
        gpu_watts: 18.5,
        ane_watts: 0.0,
        system_watts: 31.0,
        cpu_celsius: Some(71.5),
        gpu_celsius: Some(64.0),
        gpu_active_ratio: 0.75,
        memory_used_bytes: 20 << 30,
        memory_total_bytes: 36 << 30,
    };

    fn written(metrics: &ChipMetrics) -> (Readings, u64) {
        let (mut readings, recorder) = (Readings::default(), Recorder::default());
        let mut tick = Tick {
            now_ms: 5_100,
            period_ms: 100,
            readings: &mut readings,
            recorder: &recorder,
        };
        metrics.write_to(&mut tick, 5_000, 500);
        let stats = recorder.stats(0);
        let errors = stats.providers.get("apple").map(|p| p.errors["absurd"]);
        (readings, errors.unwrap_or(0))
    }

    fn value(readings: &Readings, id: &str, signal: Signal) -> Option<f64> {
        Some(readings.devices.get(id)?.last(signal)?.value)
    }

    #[test]
    fn each_part_of_the_chip_has_its_power_and_the_machine_the_sum() {
        let (readings, errors) = written(&BUSY);
        assert_eq!(errors, 0);
        let watts = |id| value(&readings, id, Signal::Power);
        assert_eq!(watts("cpu.0"), Some(6.25));
        assert_eq!(watts("gpu.apple.0"), Some(18.5));
        assert_eq!(watts("npu.apple.0"), Some(0.0), "idle is a value");
        assert_eq!(watts("host.0"), Some(31.0));
        let gpu = |signal| value(&readings, "gpu.apple.0", signal);
        assert_eq!(gpu(Signal::Temperature), Some(64.0));
        assert_eq!(gpu(Signal::Utilization), Some(0.75));
        assert_eq!(gpu(Signal::MemoryTotal), Some((36u64 << 30) as f64));
        assert_eq!(value(&readings, "cpu.0", Signal::Temperature), Some(71.5));
        let power = readings.devices["gpu.apple.0"].last(Signal::Power);
        let power = power.expect("just read");
        assert_eq!((power.origin, power.window_ms), (Origin::Derived, 500));
        assert_eq!((power.at_ms, power.period_ms), (5_000, 500));
    }

    #[test]
    fn a_virtual_machine_has_its_memory_and_nothing_else() {
        let (readings, errors) = written(&ChipMetrics {
            memory_used_bytes: 2 << 30,
            memory_total_bytes: 8 << 30,
            ..ChipMetrics::default()
        });
        assert_eq!(errors, 0);
        let ids: Vec<&str> = readings.devices.keys().map(String::as_str).collect();
        assert_eq!(ids, ["gpu.apple.0"]);
        assert_eq!(value(&readings, "gpu.apple.0", Signal::Power), None);
        assert_eq!(value(&readings, "gpu.apple.0", Signal::Utilization), None);
    }

    #[test]
    fn a_sensor_that_lies_is_absent_and_counted() {
        let (readings, errors) = written(&ChipMetrics {
            gpu_celsius: Some(f32::NAN),
            cpu_celsius: Some(-1.0),
            ..BUSY
        });
        assert_eq!(errors, 2);
        assert_eq!(value(&readings, "cpu.0", Signal::Temperature), None);
        assert!(value(&readings, "cpu.0", Signal::Power).is_some());
    }
}
