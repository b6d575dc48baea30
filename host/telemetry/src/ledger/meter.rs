//! From a sensor to windows of energy.
//!
//! A counter of energy changes every 10 to 100 ms, not when it is read. A window is the
//! time between two *changes*, so the counter's own refresh never splits one; what was used
//! before the first change is not ours to count. Without a counter, when it stands still
//! while the power sensor says otherwise, or when it cannot be read any more, windows come
//! from the power's integral and say that they are derived. Without any sensor, or when none
//! can be read any more, they follow from processor time and say that they are modelled.
//!
//! It refuses to invent: after a gap the integral of power is not stretched over it, a
//! counter that began anew tells nothing of what was before, and a clock that jumped is a
//! gap. It refuses to cover a time twice: whoever takes over begins where windows end.

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
/// A counter that was not read for this long, and for twice as long as it took between the
/// last two times, is as good as frozen: no sensor of ours is asked less often than every
/// two seconds, and what is pushed from outside has a rhythm of its own.
const UNREAD_US: u64 = 3_000_000;
/// A counter that was frozen is believed again after this many changes in a row.
const THAWED_CHANGES: u32 = 5;
/// Readings of processor time that are kept while a sensor tells; of ten a second these are
/// more than enough until it is known to be silent.
const PROCESSOR_KEPT: usize = 128;

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
    /// It follows from what this process did alone: no other program has a part in it.
    pub own: bool,
}

/// Power of a processor without an energy sensor, as the operator or a table states it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessorPower {
    /// While a logical processor is busy, W, beyond what it draws idle.
    pub busy_watts: f64,
    /// What all of them draw together while idle, W.
    pub idle_watts: f64,
}

/// Processor time of this process, as it was read once.
#[derive(Debug, Clone, Copy)]
struct ProcessorReading {
    at_us: u64,
    busy_us: u64,
    /// Time up to here that lies between readings close together: of that alone it is known
    /// that somebody idled.
    seen_us: u64,
}

/// A time without a reading of power, since the counter's last change. The counter may yet
/// tell what was used in it; if it does not, nobody knows.
#[derive(Debug, Clone, Copy)]
struct PowerGap {
    start_us: u64,
    end_us: u64,
    /// Integral of power from the counter's last change up to the gap.
    before_uj: f64,
}

/// What can go wrong with a sensor, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MeterFaults {
    /// The counter began anew.
    pub resets: u64,
    /// The counter stood still while energy was used, or was not read any more.
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
    /// The counter is frozen or not read any more; changes in a row since.
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
    /// Since when the counter stands still: its last change, its first reading or its reset.
    still_us: Option<u64>,
    read_us: Option<u64>,
    /// Time between the last two times that the counter was read.
    read_every_us: u64,
    coarse: bool,
    power: Option<(u64, f64)>,
    /// Time between the last two times that power was read.
    power_every_us: u64,
    power_gap: Option<PowerGap>,
    /// Integral of power since the last edge or the last gap, or of less than 1 µJ left over.
    integral_uj: f64,
    /// From the last one that windows cover to the newest.
    processor: VecDeque<ProcessorReading>,
    processor_power: Option<ProcessorPower>,
    /// Where the windows end, and where one begins that the next change will close.
    covered_us: Option<u64>,
    /// The last window followed from processor time.
    is_modelled: bool,
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
            still_us: None,
            read_us: None,
            read_every_us: 0,
            coarse: false,
            power: None,
            power_every_us: 0,
            power_gap: None,
            integral_uj: 0.0,
            processor: VecDeque::new(),
            processor_power: None,
            covered_us: None,
            is_modelled: false,
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
            self.begin_anew(at_us);
        }
        if let Some(read) = self.read_us.replace(at_us) {
            self.read_every_us = at_us.saturating_sub(read);
            self.coarse |= self.read_every_us > GAP_US;
        }
        match self.counter.take(raw_uj, wraps_at_uj) {
            CounterStep::Grew(0) => self.watch_for_freeze(at_us),
            CounterStep::Grew(uj) => self.changed(at_us, uj),
            CounterStep::Reset => {
                self.faults.resets += 1;
                if let Some(edge) = self.edge_us.take() {
                    self.faults.gap_us += at_us.saturating_sub(edge);
                }
                self.begin_anew(at_us);
            }
        }
    }

    /// From here on the counter is compared with power.
    fn begin_anew(&mut self, at_us: u64) {
        self.still_us = Some(at_us);
        self.power_gap = None;
        self.integral_uj = 0.0;
    }

    fn changed(&mut self, at_us: u64, uj: u64) {
        if let Mode::Frozen { changes } = &mut self.mode {
            *changes += 1;
            if *changes < THAWED_CHANGES {
                return;
            }
            // What it caught up with has been counted from power or processor time.
            self.mode = Mode::Counter;
            self.hand_back(at_us);
        } else if self.edge_us.is_none() && self.is_modelled {
            // The model ends where the counter begins.
            self.integral_uj = 0.0;
            self.close_modelled(at_us);
        } else if let Some(start_us) = self.edge_us
            && start_us < at_us
        {
            self.close(Window {
                start_us,
                end_us: at_us,
                uj,
                origin: self.readings,
                coarse: self.coarse,
                own: false,
            });
        }
        // Within what is covered nothing can begin: then the next change is the first.
        self.edge_us = (self.covered_us <= Some(at_us)).then_some(at_us);
        self.covered_us = self.covered_us.max(self.edge_us);
        self.begin_anew(at_us);
        self.coarse = false;
    }

    /// A move of the counter is known before the power that was read after it: up to the move
    /// the device is taken to have drawn what it drew last.
    fn hand_back(&mut self, at_us: u64) {
        let (Some(covered_us), Some((power_us, watts))) = (self.covered_us, self.power) else {
            return;
        };
        // What lies before the last power without a window is a gap that was counted.
        let start_us = covered_us.max(power_us);
        if start_us >= at_us || self.is_modelled {
            return;
        }
        let open_us = at_us - start_us;
        if open_us > GAP_US {
            self.faults.gap_us += open_us;
            return;
        }
        self.integral_uj += watts * open_us as f64;
        self.close_integral(start_us, at_us);
    }

    fn close(&mut self, window: Window) {
        self.covered_us = self.covered_us.max(Some(window.end_us));
        self.is_modelled = window.own;
        self.closed.push_back(window);
    }

    fn watch_for_freeze(&mut self, at_us: u64) {
        if let Mode::Frozen { changes } = &mut self.mode {
            *changes = 0;
            return;
        }
        let (Some(still), Some((power_us, _))) = (self.still_us, self.power) else {
            return;
        };
        if at_us.saturating_sub(still) >= FROZEN_US && self.integral_uj >= FROZEN_UJ {
            self.give_up_counter(power_us);
        }
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
        self.power_every_us = elapsed_us;
        let start_us = before_us.max(self.covered_us.unwrap_or(0));
        let open_us = at_us.saturating_sub(start_us);
        if elapsed_us > GAP_US {
            match self.mode {
                Mode::Counter => self.note_power_gap(start_us, at_us),
                Mode::Power | Mode::Frozen { .. } => self.faults.gap_us += open_us,
            }
            return;
        }
        // Power is taken to change evenly, and only what no window covers is counted.
        let covered = (start_us - before_us) as f64 / elapsed_us.max(1) as f64;
        let at_start = before + (watts - before) * covered;
        self.integral_uj += (watts + at_start) / 2.0 * open_us as f64;
        match self.mode {
            Mode::Counter if self.is_unread(at_us) => self.give_up_counter(at_us),
            Mode::Counter => {}
            Mode::Power | Mode::Frozen { .. } => self.close_integral(start_us, at_us),
        }
    }

    /// Nobody could read the counter for longer than its schedule explains.
    fn is_unread(&self, at_us: u64) -> bool {
        let patience_us = UNREAD_US.max(2 * self.read_every_us);
        self.read_us
            .is_some_and(|read| at_us.saturating_sub(read) > patience_us)
    }

    /// Several gaps since one change are one: what was drawn between them is forgotten.
    fn note_power_gap(&mut self, start_us: u64, end_us: u64) {
        let first = PowerGap {
            start_us,
            end_us,
            before_uj: self.integral_uj,
        };
        let gap = self.power_gap.unwrap_or(first);
        self.power_gap = Some(PowerGap { end_us, ..gap });
        self.integral_uj = 0.0;
    }

    /// What was used since the counter's last change follows from power up to `until_us`,
    /// except in a gap of both; without such a change it is not known since when.
    fn give_up_counter(&mut self, until_us: u64) {
        self.faults.freezes += 1;
        self.mode = Mode::Frozen { changes: 0 };
        let mut start_us = self.edge_us.take();
        if let Some(gap) = self.power_gap.take() {
            let since_uj = std::mem::replace(&mut self.integral_uj, gap.before_uj);
            self.close_since(start_us, gap.start_us);
            self.integral_uj += since_uj;
            self.faults.gap_us += gap.end_us.saturating_sub(gap.start_us);
            start_us = Some(gap.end_us);
        }
        self.close_since(start_us, until_us);
    }

    /// Closes a window with the integral, or without a beginning counts the time as a gap.
    fn close_since(&mut self, start_us: Option<u64>, end_us: u64) {
        if let Some(start_us) = start_us {
            return self.close_integral(start_us, end_us);
        }
        let known_us = self.still_us.max(self.covered_us).unwrap_or(end_us);
        self.faults.gap_us += end_us.saturating_sub(known_us);
        self.integral_uj = 0.0;
    }

    /// Closes a window with the whole µJ of the integral; the rest waits for the next.
    fn close_integral(&mut self, start_us: u64, end_us: u64) {
        if start_us >= end_us {
            return;
        }
        let uj = self.integral_uj.floor();
        self.integral_uj -= uj;
        self.close(Window {
            start_us,
            end_us,
            uj: uj as u64,
            origin: Origin::Derived.max_weakness(self.readings),
            coarse: false,
            own: false,
        });
    }

    /// Takes the processor time that this process has used and what that draws. While a
    /// sensor tells, it is only kept; without one, or once none has told for longer than its
    /// schedule explains, windows follow from it, from where those of the sensor ended.
    pub fn processor_time(&mut self, at_us: u64, busy_us: u64, power: &ProcessorPower) {
        self.processor_power = Some(*power);
        let before = self.processor.back().copied();
        let seen_us = before.map_or(0, |before| {
            let elapsed_us = at_us.saturating_sub(before.at_us);
            before.seen_us + if elapsed_us > GAP_US { 0 } else { elapsed_us }
        });
        self.processor.push_back(ProcessorReading {
            at_us,
            busy_us,
            seen_us,
        });
        // As of the last look: who did not look for long cannot say who was silent.
        if before.is_some_and(|before| self.is_silent(before.at_us)) {
            if self.mode == Mode::Counter {
                self.faults.freezes += 1;
                self.mode = Mode::Frozen { changes: 0 };
                self.edge_us = None;
                self.power_gap = None;
                self.integral_uj = 0.0;
            }
            self.close_modelled(at_us);
        }
        self.forget_processor_time();
    }

    /// Neither the counter nor power has told anything for longer than its schedule explains;
    /// power that comes more seldom than a gap is long makes no windows anyway.
    fn is_silent(&self, at_us: u64) -> bool {
        let counts = self.mode == Mode::Counter && !self.is_unread(at_us);
        let patience_us = (2 * self.power_every_us).clamp(UNREAD_US, GAP_US);
        let draws = self
            .power
            .is_some_and(|(power_us, _)| at_us.saturating_sub(power_us) <= patience_us);
        !counts && !draws
    }

    /// Closes windows up to `until_us` of the processor time that no window covers yet.
    fn close_modelled(&mut self, until_us: u64) {
        let Some(power) = self.processor_power else {
            return;
        };
        for at in 1..self.processor.len() {
            let (from, to) = (self.processor[at - 1], self.processor[at]);
            let start_us = from.at_us.max(self.covered_us.unwrap_or(0));
            let end_us = to.at_us.min(until_us);
            if start_us >= end_us {
                continue;
            }
            let long_us = to.at_us - from.at_us;
            let part = (end_us - start_us) as f64 / long_us as f64;
            // Processor time is counted by the kernel whatever the clock does; idling is not.
            let busy_us = part * to.busy_us.saturating_sub(from.busy_us) as f64;
            let idle_us = part * (to.seen_us - from.seen_us).min(long_us) as f64;
            self.faults.gap_us += (end_us - start_us).saturating_sub(idle_us.round() as u64);
            let uj = self.integral_uj + busy_us * power.busy_watts + idle_us * power.idle_watts;
            self.integral_uj = uj.fract();
            self.close(Window {
                start_us,
                end_us,
                uj: uj as u64,
                origin: Origin::Modelled,
                coarse: long_us > GAP_US,
                own: true,
            });
        }
    }

    /// What windows cover is not needed any more. If nothing is covered for long, as beside
    /// a counter that stands still, two steps become one: sums stay.
    fn forget_processor_time(&mut self) {
        while self.processor.len() > 1 && Some(self.processor[1].at_us) <= self.covered_us {
            self.processor.pop_front();
        }
        if self.processor.len() > PROCESSOR_KEPT {
            self.processor.remove(1);
        }
    }

    /// A sensor has told something once.
    pub fn has_sensor(&self) -> bool {
        self.mode != Mode::Power || self.power.is_some()
    }

    /// The oldest window that was closed and not yet taken, if it ended by `until_us`.
    pub fn take_window(&mut self, until_us: u64) -> Option<Window> {
        self.closed.front().filter(|w| w.end_us <= until_us)?;
        self.closed.pop_front()
    }

    /// The counter stands still or is not read, or was a moment ago: what it says is not used.
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
    const PROCESSORS: ProcessorPower = ProcessorPower {
        busy_watts: 3.0,
        idle_watts: 2.0,
    };

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
        // Told with the power, or as a move: earlier, and before it.
        for early_us in [0, 30 * MS] {
            let mut meter = Meter::default();
            let (mut counter, mut first_edge_uj) = (0, None);
            for tick in 0..300u64 {
                let at_us = (tick + 1) * 100 * MS;
                let moved_us = at_us - early_us;
                // 200 W. Frozen from 5 s to 15 s, then it catches up with a jump.
                if !(50..150).contains(&tick) {
                    counter = 200 * moved_us;
                }
                if early_us > 0 {
                    meter.counter(moved_us, counter, None);
                }
                meter.power(at_us, 200.0);
                if early_us == 0 {
                    meter.counter(moved_us, counter, None);
                }
                if tick == 1 {
                    first_edge_uj = Some(counter);
                }
                let suspect = meter.is_suspect();
                assert_eq!(suspect, (69..154).contains(&tick), "tick {tick}");
            }
            let seen = windows(&mut meter);
            assert_eq!(total(&seen), counter - first_edge_uj.expect("set"));
            assert!(seen.windows(2).all(|w| w[0].end_us == w[1].start_us));
            assert!(seen.iter().any(|w| w.origin == Origin::Derived));
            let expected = MeterFaults {
                freezes: 1,
                ..MeterFaults::default()
            };
            assert_eq!(meter.faults(), expected);
        }
    }

    #[test]
    fn a_counter_that_never_moves_or_not_since_a_reset_does_not_hide_the_power() {
        for (resets_at, measured_uj, from_ms, gap_ms) in
            [(0, 0, 2_000, 2_000), (30, 28 * 20_000_000, 5_000, 2_100)]
        {
            let mut meter = Meter::default();
            for tick in 0..100u64 {
                let at_us = tick * 100 * MS;
                meter.power(at_us, 200.0);
                let counted = if tick < resets_at { tick + 1 } else { 0 };
                meter.counter(at_us, counted * 20_000_000, None);
            }
            assert!(meter.is_suspect());
            let seen = windows(&mut meter);
            let derived = seen.iter().filter(|w| w.origin == Origin::Derived);
            let derived: Vec<Window> = derived.copied().collect();
            assert_eq!(derived.first().map(|w| w.start_us), Some(from_ms * MS));
            assert_eq!(total(&derived), (9_900 - from_ms) * 200_000);
            assert_eq!(total(&seen) - total(&derived), measured_uj);
            let faults = meter.faults();
            assert_eq!((faults.freezes, faults.gap_us), (1, gap_ms * MS));
        }
    }

    #[test]
    fn a_gap_of_both_after_which_only_power_is_read_is_a_gap_and_no_window() {
        let mut meter = Meter::default();
        // Nobody looks from 5 s to 12 s; then the counter cannot be read any more.
        for tick in (0..50u64).chain(120..150) {
            let at_us = tick * 100 * MS;
            meter.power(at_us, 200.0);
            if tick < 50 {
                meter.counter(at_us, 200 * at_us, None);
            }
        }
        let seen = windows(&mut meter);
        let inside = |w: &&Window| w.end_us > 4_900 * MS && w.start_us < 12_000 * MS;
        assert_eq!(seen.iter().find(inside), None);
        // From the first change at 100 ms to 4.9 s, and from 12 s to 14.9 s.
        assert_eq!(total(&seen), (4_800 + 2_900) * 200_000);
        let faults = meter.faults();
        assert_eq!((faults.freezes, faults.gap_us), (1, 7_100 * MS));
    }

    #[test]
    fn a_counter_that_cannot_be_read_any_more_hands_over_to_power_and_back() {
        let mut meter = Meter::default();
        let mut truth = 0u64;
        let mut first_edge_uj = None;
        for tick in 0..300u64 {
            let at_us = tick * 100 * MS;
            truth += 20_000_000;
            meter.power(at_us, 200.0);
            // A permission is revoked from 5 s to 15 s; the counter itself goes on.
            if !(50..150).contains(&tick) {
                meter.counter(at_us, truth, None);
            }
            if tick == 1 {
                first_edge_uj = Some(truth);
            }
            let suspect = meter.is_suspect();
            assert_eq!(suspect, (80..154).contains(&tick), "tick {tick}");
        }
        let seen = windows(&mut meter);
        assert_eq!(total(&seen), truth - first_edge_uj.expect("set"));
        assert!(seen.windows(2).all(|w| w[0].end_us == w[1].start_us));
        let derived = seen.iter().filter(|w| w.origin == Origin::Derived);
        let (from, to) = derived.fold((u64::MAX, 0), |(from, to), w| {
            (from.min(w.start_us), to.max(w.end_us))
        });
        assert_eq!((from / MS, to / MS), (4_900, 15_400));
        assert_eq!(meter.faults().freezes, 1);
    }

    #[test]
    fn a_counter_that_is_read_seldom_is_not_an_unread_one() {
        for (every, freezes) in [(20, 0), (60, 1)] {
            let mut meter = Meter::default();
            for tick in 0..1_200u64 {
                let at_us = tick * 100 * MS;
                meter.power(at_us, 200.0);
                if tick % every == 0 {
                    meter.counter(at_us, tick * 20_000_000, None);
                }
            }
            // The rhythm of a pushed counter is known from its second reading on.
            assert_eq!(meter.faults().freezes, freezes, "every {every} ticks");
            assert!(!meter.is_suspect(), "every {every} ticks");
        }
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
        let mut cpu = Meter::default();
        for at_us in [0, 100 * MS, 100 * MS, hour, hour + 100 * MS, hour] {
            meter.power(at_us, 50.0);
            cpu.processor_time(at_us, 0, &PROCESSORS);
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
        meter.processor_time(0, 70_000, &PROCESSORS);
        meter.processor_time(1_000_000, 570_000, &PROCESSORS);
        let seen = windows(&mut meter);
        assert_eq!(total(&seen), 1_500_000 + 2_000_000);
        assert_eq!(seen[0].origin, Origin::Modelled);
    }

    /// A processor whose package draws 20 W, with one and a half processors busy for this
    /// process, ten times a second and a moment after its sensor as in the server.
    fn package(meter: &mut Meter, tick: u64, counts: bool, draws: bool) {
        let at_us = tick * 100 * MS;
        meter.processor_time(at_us + 30 * MS, tick * 150 * MS, &PROCESSORS);
        if draws {
            meter.power(at_us, 20.0);
        }
        if counts {
            meter.counter(at_us, tick * 2_000_000, None);
        }
    }

    fn between(windows: &[Window], from_ms: u64, to_ms: u64) -> Vec<Window> {
        let inside = |w: &&Window| w.start_us >= from_ms * MS && w.end_us <= to_ms * MS;
        windows.iter().filter(inside).copied().collect()
    }

    #[test]
    fn a_counter_that_left_is_followed_by_the_model_until_it_is_back_and_no_time_is_covered_twice()
    {
        // Whether power comes of the same sensor, as it does from powercap. The model ends
        // where power begins again, or else where the counter is believed again.
        for (draws, model_ends_ms, measured_ms) in [(false, 15_500, 15_500), (true, 15_030, 15_400)]
        {
            let mut meter = Meter::default();
            for tick in 0..300 {
                let there = !(50..150).contains(&tick);
                package(&mut meter, tick, there, there && draws);
                let suspect = (80..154).contains(&tick);
                assert_eq!(meter.is_suspect(), suspect, "tick {tick}, power {draws}");
            }
            let seen = windows(&mut meter);
            assert!(seen.windows(2).all(|w| w[0].end_us == w[1].start_us));
            assert_eq!(seen[0].start_us, 100 * MS);
            assert_eq!(seen.last().map(|w| w.end_us), Some(29_900 * MS));

            let modelled = between(&seen, 4_900, model_ends_ms);
            assert!(modelled.iter().all(|w| w.origin == Origin::Modelled));
            assert!(modelled.iter().all(|w| w.own && !w.coarse));
            // 1.5 processors of 3 W, and 2 W.
            let expected = (model_ends_ms - 4_900) * 6_500;
            assert!(total(&modelled).abs_diff(expected) <= 2, "power {draws}");

            let derived = between(&seen, model_ends_ms, measured_ms);
            assert!(derived.iter().all(|w| w.origin == Origin::Derived));
            assert!(total(&derived).abs_diff((measured_ms - model_ends_ms) * 20_000) <= 1);

            let measured = seen.iter().filter(|w| w.origin == Origin::Measured);
            let measured: Vec<Window> = measured.copied().collect();
            assert_eq!(
                measured.len() + modelled.len() + derived.len(),
                seen.len(),
                "each in its time"
            );
            assert_eq!(total(&measured), (4_800 + 29_900 - measured_ms) * 20_000);
            let expected = MeterFaults {
                freezes: 1,
                ..MeterFaults::default()
            };
            assert_eq!(meter.faults(), expected);
        }
    }

    #[test]
    fn beside_a_sensor_that_tells_nothing_is_modelled_even_if_it_stands_still() {
        let mut counted = Meter::default();
        let mut drawing = Meter::default();
        let mut idle = Meter::default();
        for tick in 0..2_000 {
            package(&mut counted, tick, true, false);
            package(&mut drawing, tick, false, true);
            idle.processor_time(tick * 100 * MS, 0, &PROCESSORS);
            idle.counter(tick * 100 * MS, 1, None);
        }
        assert!(idle.processor.len() <= PROCESSOR_KEPT);
        assert_eq!(total(&windows(&mut counted)), 1_998 * 2_000_000);
        assert_eq!(total(&windows(&mut drawing)), 1_999 * 2_000_000);
        assert!(windows(&mut idle).is_empty());
        // Then it leaves: all the time is covered, by what is known of it.
        idle.processor_time(203_000 * MS, 300 * MS, &PROCESSORS);
        idle.processor_time(203_100 * MS, 300 * MS, &PROCESSORS);
        let seen = windows(&mut idle);
        assert!(seen.windows(2).all(|w| w[0].end_us == w[1].start_us));
        assert_eq!(seen[0].start_us, 0);
        assert!(total(&seen).abs_diff(203_100_000 * 2 + 900_000) <= 2);
    }

    #[test]
    fn power_alone_that_left_is_followed_by_the_model_and_leaves_no_gap() {
        let mut meter = Meter::default();
        for tick in 0..300 {
            package(&mut meter, tick, false, !(50..150).contains(&tick));
        }
        let seen = windows(&mut meter);
        assert!(seen.windows(2).all(|w| w[0].end_us == w[1].start_us));
        assert!(total(&between(&seen, 4_900, 15_030)).abs_diff((15_030 - 4_900) * 6_500) <= 2);
        let derived = seen.iter().filter(|w| w.origin == Origin::Derived);
        let derived: Vec<Window> = derived.copied().collect();
        assert!(total(&derived).abs_diff((4_900 + 29_900 - 15_030) * 20_000) <= 2);
        assert_eq!(meter.faults(), MeterFaults::default());
    }

    #[test]
    fn whoever_did_not_look_for_long_does_not_take_the_sensor_for_silent() {
        let mut meter = Meter::default();
        for tick in (0..20).chain(120..140) {
            package(&mut meter, tick, true, false);
        }
        let seen = windows(&mut meter);
        assert!(seen.iter().all(|w| w.origin == Origin::Measured));
        assert_eq!(seen.iter().filter(|w| w.coarse).count(), 1);
        assert_eq!(total(&seen), 138 * 2_000_000);
        assert_eq!(meter.faults(), MeterFaults::default());
    }
}
