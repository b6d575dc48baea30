//! From a sensor to windows of energy.
//!
//! A counter of energy changes every 10 to 100 ms, not when it is read. A window is the
//! time between two *changes*, so the counter's own refresh never splits one; what was used
//! before the first change is not ours to count. Without a counter, or when it stands still
//! while the power sensor says otherwise, windows come from the power's integral and say
//! that they are derived. Without any sensor they follow from processor time and say that
//! they are modelled.
//!
//! It refuses to invent: after a gap the integral of power is not stretched over it, a
//! counter that began anew tells nothing of what was before, and a clock that jumped is a
//! gap.

use std::collections::VecDeque;

use homeostat_hooks::Origin;

use super::receipt::Weakness;
use crate::reading::{CounterStep, EnergyMeter, Signal};

/// Between two readings further apart than this nobody knows what happened.
pub const GAP_US: u64 = 5_000_000;
/// A counter that did not change for this long …
const FROZEN_US: u64 = 2_000_000;
/// … while at least this much was used is frozen; the coarsest counters step by 1 J.
const FROZEN_UJ: f64 = 10e6;
/// A counter that was frozen is believed again after this many changes in a row.
const THAWED_CHANGES: u32 = 5;

/// Energy of one device in one span of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Begin, monotonic.
    pub start_us: u64,
    /// End, monotonic.
    pub end_us: u64,
    /// Energy, µJ.
    pub uj: u64,
    /// Measured from a counter, derived from power, modelled from processor time.
    pub origin: Origin,
    /// It spans a gap: the sum is right, when it was used is not known.
    pub coarse: bool,
}

/// Power of a processor without an energy sensor, as the operator or a table states it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessorPower {
    /// While a logical processor is busy, W, beyond what it draws idle.
    pub busy_watts: f64,
    /// What all of them draw together while idle, W.
    pub idle_watts: f64,
}

/// What can go wrong with a sensor, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MeterFaults {
    /// The counter began anew.
    pub resets: u64,
    /// The counter stood still while energy was used.
    pub freezes: u64,
    /// Time in which nothing is known, µs.
    pub gap_us: u64,
    /// Readings that cannot be true.
    pub absurd: u64,
}

/// Where the windows of a device come from at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Nothing read yet, or only power.
    Power,
    Counter,
    /// The counter is frozen; changes in a row since.
    Frozen {
        changes: u32,
    },
}

/// One device's sensors.
#[derive(Debug, Clone)]
pub struct Meter {
    mode: Mode,
    counter: EnergyMeter,
    /// Origin of the readings themselves.
    readings: Origin,
    /// Last change of the counter.
    edge_us: Option<u64>,
    read_us: Option<u64>,
    coarse: bool,
    power: Option<(u64, f64)>,
    /// Integral of power since the last edge, or of less than 1 µJ left over.
    integral_uj: f64,
    cpu: Option<(u64, u64)>,
    closed: VecDeque<Window>,
    faults: MeterFaults,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            mode: Mode::Power,
            counter: EnergyMeter::default(),
            readings: Origin::Measured,
            edge_us: None,
            read_us: None,
            coarse: false,
            power: None,
            integral_uj: 0.0,
            cpu: None,
            closed: VecDeque::new(),
            faults: MeterFaults::default(),
        }
    }
}

impl Meter {
    /// Where the readings come from that follow: windows of simulated readings are simulated.
    pub fn readings_are(&mut self, origin: Origin) {
        self.readings = origin;
    }

    /// Takes the energy counter at `at_us`; `wraps_at_uj` is its largest value if it starts
    /// anew at 0 by design.
    pub fn counter(&mut self, at_us: u64, raw_uj: u64, wraps_at_uj: Option<u64>) {
        if self.mode == Mode::Power {
            self.mode = Mode::Counter;
            self.integral_uj = 0.0;
        }
        if let Some(read) = self.read_us.replace(at_us) {
            self.coarse |= at_us.saturating_sub(read) > GAP_US;
        }
        match self.counter.take(raw_uj, wraps_at_uj) {
            CounterStep::Grew(0) => self.watch_for_freeze(at_us),
            CounterStep::Grew(uj) => self.changed(at_us, uj),
            CounterStep::Reset => {
                self.faults.resets += 1;
                if let Some(edge) = self.edge_us.take() {
                    self.faults.gap_us += at_us.saturating_sub(edge);
                }
                self.integral_uj = 0.0;
            }
        }
    }

    fn changed(&mut self, at_us: u64, uj: u64) {
        if let Mode::Frozen { changes } = &mut self.mode {
            *changes += 1;
            if *changes < THAWED_CHANGES {
                return;
            }
            // What it caught up with has been counted from power.
            self.mode = Mode::Counter;
        } else if let Some(start_us) = self.edge_us
            && start_us < at_us
        {
            self.closed.push_back(Window {
                start_us,
                end_us: at_us,
                uj,
                origin: self.readings,
                coarse: self.coarse,
            });
        }
        self.edge_us = Some(at_us);
        self.integral_uj = 0.0;
        self.coarse = false;
    }

    fn watch_for_freeze(&mut self, at_us: u64) {
        if let Mode::Frozen { changes } = &mut self.mode {
            *changes = 0;
            return;
        }
        let (Some(edge), Some((power_us, _))) = (self.edge_us, self.power) else {
            return;
        };
        if at_us.saturating_sub(edge) < FROZEN_US || self.integral_uj < FROZEN_UJ {
            return;
        }
        self.faults.freezes += 1;
        self.mode = Mode::Frozen { changes: 0 };
        self.close_integral(edge, power_us);
    }

    /// Takes power drawn at `at_us`; a value that cannot be true is counted and otherwise as
    /// good as not read.
    pub fn power(&mut self, at_us: u64, watts: f64) {
        if !Signal::Power.accepts(watts) {
            self.faults.absurd += 1;
            return;
        }
        let Some((before_us, before)) = self.power.replace((at_us, watts)) else {
            return;
        };
        let elapsed_us = at_us.saturating_sub(before_us);
        if elapsed_us > GAP_US {
            if self.mode != Mode::Counter {
                self.faults.gap_us += elapsed_us;
            }
            return;
        }
        self.integral_uj += (watts + before) / 2.0 * elapsed_us as f64;
        if self.mode != Mode::Counter {
            self.close_integral(before_us, at_us);
        }
    }

    /// Closes a window with the whole µJ of the integral; the rest waits for the next.
    fn close_integral(&mut self, start_us: u64, end_us: u64) {
        if start_us >= end_us {
            return;
        }
        let uj = self.integral_uj.floor();
        self.integral_uj -= uj;
        self.closed.push_back(Window {
            start_us,
            end_us,
            uj: uj as u64,
            origin: Origin::Derived.max_weakness(self.readings),
            coarse: false,
        });
    }

    /// Takes the processor time that this process has used, for a machine without sensors.
    pub fn processor_time(&mut self, at_us: u64, busy_us: u64, power: &ProcessorPower) {
        let Some((before_us, busy_before)) = self.cpu.replace((at_us, busy_us)) else {
            return;
        };
        let elapsed_us = at_us.saturating_sub(before_us);
        if elapsed_us == 0 {
            return;
        }
        // Processor time is counted by the kernel whatever the clock does; idling is not.
        let gap = elapsed_us > GAP_US;
        let idle_us = if gap { 0 } else { elapsed_us };
        if gap {
            self.faults.gap_us += elapsed_us;
        }
        let busy_us = busy_us.saturating_sub(busy_before);
        let uj = self.integral_uj
            + busy_us as f64 * power.busy_watts
            + idle_us as f64 * power.idle_watts;
        self.integral_uj = uj.fract();
        self.closed.push_back(Window {
            start_us: before_us,
            end_us: at_us,
            uj: uj as u64,
            origin: Origin::Modelled,
            coarse: gap,
        });
    }

    /// The oldest window that was closed and not yet taken, if it ended by `until_us`.
    pub fn take_window(&mut self, until_us: u64) -> Option<Window> {
        self.closed.front().filter(|w| w.end_us <= until_us)?;
        self.closed.pop_front()
    }

    /// The counter stands still or stood still a moment ago: what it says is not used.
    pub fn is_suspect(&self) -> bool {
        matches!(self.mode, Mode::Frozen { .. })
    }

    /// What went wrong so far.
    pub fn faults(&self) -> MeterFaults {
        self.faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    fn windows(meter: &mut Meter) -> Vec<Window> {
        std::iter::from_fn(|| meter.take_window(u64::MAX)).collect()
    }

    fn total(windows: &[Window]) -> u64 {
        windows.iter().map(|w| w.uj).sum()
    }

    #[test]
    fn windows_lie_between_the_changes_of_the_counter() {
        let mut meter = Meter::default();
        for (at_ms, raw) in [
            (0, 500),
            (10, 500),
            (20, 700),
            (30, 700),
            (40, 950),
            (50, 1_000),
        ] {
            meter.counter(at_ms * MS, raw, None);
        }
        let spans: Vec<_> = windows(&mut meter)
            .iter()
            .map(|w| (w.start_us / MS, w.end_us / MS, w.uj))
            .collect();
        assert_eq!(spans, [(20, 40, 250), (40, 50, 50)]);
    }

    #[test]
    fn a_counter_that_falls_is_a_reset_that_invents_nothing() {
        let mut meter = Meter::default();
        for (at_ms, raw) in [(0, 0), (10, 100), (20, 300), (30, 40), (40, 90), (50, 150)] {
            meter.counter(at_ms * MS, raw, None);
        }
        let seen = windows(&mut meter);
        assert_eq!(
            total(&seen),
            200 + 60,
            "what lies around the reset is unknown"
        );
        assert_eq!(meter.faults().resets, 1);
        assert_eq!(meter.faults().gap_us, 10 * MS);
    }

    #[test]
    fn a_counter_that_wraps_by_design_loses_nothing() {
        let mut meter = Meter::default();
        for (at_ms, raw) in [(0, 900), (10, 950), (20, 990), (30, 9), (40, 100)] {
            meter.counter(at_ms * MS, raw, Some(999));
        }
        assert_eq!(total(&windows(&mut meter)), 40 + 19 + 91);
        assert_eq!(meter.faults(), MeterFaults::default());
    }

    #[test]
    fn a_frozen_counter_hands_over_to_power_and_back_and_nothing_is_counted_twice() {
        let mut meter = Meter::default();
        let (mut counter, mut truth) = (0u64, 0u64);
        let mut first_edge_uj = None;
        for tick in 0..300u64 {
            let at_us = tick * 100 * MS;
            truth += 20_000_000;
            // Frozen from 5 s to 15 s, then it catches up with a jump.
            if !(50..150).contains(&tick) {
                counter = truth;
            }
            meter.power(at_us, 200.0);
            meter.counter(at_us, counter, None);
            if tick == 1 {
                first_edge_uj = Some(truth);
            }
            let suspect = meter.is_suspect();
            assert_eq!(suspect, (69..154).contains(&tick), "tick {tick}");
        }
        let seen = windows(&mut meter);
        assert_eq!(total(&seen), truth - first_edge_uj.expect("set"));
        assert!(seen.windows(2).all(|w| w[0].end_us == w[1].start_us));
        assert!(seen.iter().any(|w| w.origin == Origin::Derived));
        assert_eq!(meter.faults().freezes, 1);
    }

    #[test]
    fn an_idle_counter_is_not_a_frozen_one() {
        let mut meter = Meter::default();
        for tick in 0..20u64 {
            meter.power(tick * 100 * MS, 3.0);
            meter.counter(tick * 100 * MS, 1_000_000 + (tick / 15), None);
        }
        assert!(!meter.is_suspect());
    }

    #[test]
    fn over_a_gap_a_counter_keeps_its_energy_and_power_invents_none() {
        let mut meter = Meter::default();
        for (at_ms, raw) in [(0, 0), (100, 10), (200, 20), (8_000, 800), (8_100, 810)] {
            meter.counter(at_ms * MS, raw, None);
        }
        let seen = windows(&mut meter);
        assert_eq!(total(&seen), 800);
        let coarse: Vec<bool> = seen.iter().map(|w| w.coarse).collect();
        assert_eq!(coarse, [false, true, false]);

        let mut meter = Meter::default();
        for at_ms in [0, 100, 200, 8_000, 8_100] {
            meter.power(at_ms * MS, 100.0);
        }
        assert_eq!(
            total(&windows(&mut meter)),
            30_000_000,
            "three times 100 ms"
        );
        assert_eq!(meter.faults().gap_us, 7_800 * MS);
    }

    #[test]
    fn a_clock_that_jumps_or_stands_gives_no_energy() {
        let hour = 3_600_000 * MS;
        let mut meter = Meter::default();
        let watts = ProcessorPower {
            busy_watts: 3.0,
            idle_watts: 2.0,
        };
        let mut cpu = Meter::default();
        for at_us in [0, 100 * MS, 100 * MS, hour, hour + 100 * MS, hour] {
            meter.power(at_us, 50.0);
            cpu.processor_time(at_us, 0, &watts);
        }
        assert_eq!(total(&windows(&mut meter)), 2 * 5_000_000);
        assert_eq!(total(&windows(&mut cpu)), 2 * 200_000);
    }

    #[test]
    fn power_that_cannot_be_true_is_skipped_and_makes_no_dip() {
        let mut meter = Meter::default();
        for (at_ms, watts) in [(0, 100.0), (100, f64::NAN), (200, -1.0), (300, 100.0)] {
            meter.power(at_ms * MS, watts);
        }
        assert_eq!(total(&windows(&mut meter)), 30_000_000);
        assert_eq!(meter.faults().absurd, 2);
    }

    #[test]
    fn fractions_of_a_microjoule_are_kept_for_the_next_window() {
        let mut meter = Meter::default();
        for at_us in 0..1_001 {
            meter.power(at_us, 0.25);
        }
        assert_eq!(total(&windows(&mut meter)), 250);
    }

    #[test]
    fn processor_time_is_modelled_and_says_so() {
        let mut meter = Meter::default();
        let power = ProcessorPower {
            busy_watts: 3.0,
            idle_watts: 2.0,
        };
        meter.processor_time(0, 70_000, &power);
        meter.processor_time(1_000_000, 570_000, &power);
        let seen = windows(&mut meter);
        assert_eq!(total(&seen), 1_500_000 + 2_000_000);
        assert_eq!(seen[0].origin, Origin::Modelled);
    }
}
