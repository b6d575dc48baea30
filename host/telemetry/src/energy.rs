//! When energy counters moved, more finely than snapshots tell.
//!
//! A snapshot is taken every 100 ms and a counter may move every 10. Whoever books energy
//! wants the time between two *moves*, which no refresh of the counter splits, so the moves
//! are kept here in the order in which they were seen: those that a provider saw between two
//! ticks, and for other counters the readings themselves, as far as they changed. It refuses
//! to complete anything: a counter that stands still does not move.

use std::collections::{BTreeMap, VecDeque};

use homeostat_hooks::Origin;

use crate::reading::{Readings, Signal};

/// Moves kept for whoever collects them: a hundred a second for 40 s with two devices.
const MOVES_KEPT: usize = 8_192;

/// An energy counter that was seen to move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnergyMove {
    /// Grows by one with every move of any counter.
    pub sequence: u64,
    /// Device.
    pub device: String,
    /// When it was seen, monotonic, µs.
    pub at_us: u64,
    /// Energy since the host started, µJ; over resets and wraps it only grows.
    pub total_uj: u64,
}

/// The moves of one sampler, until they are taken.
#[derive(Debug, Default)]
pub(crate) struct EnergyMoves {
    last_uj: BTreeMap<String, u64>,
    waiting: VecDeque<EnergyMove>,
    sequence: u64,
}

impl EnergyMoves {
    /// Collects what is new after a tick's readings.
    pub fn collect(&mut self, readings: &mut Readings) {
        for (id, device) in &mut readings.devices {
            let mut moves = device.take_energy_moves();
            if moves.is_empty()
                && let Some(told) = device.last(Signal::Energy)
                && told.origin == Origin::Measured
            {
                moves.push((told.at_ms * 1_000, (told.value * 1e6).round() as u64));
            }
            for (at_us, total_uj) in moves {
                self.take(id, at_us, total_uj);
            }
        }
    }

    fn take(&mut self, device: &str, at_us: u64, total_uj: u64) {
        match self.last_uj.get_mut(device) {
            Some(last) if *last >= total_uj => return,
            Some(last) => *last = total_uj,
            None => {
                self.last_uj.insert(device.to_owned(), total_uj);
            }
        }
        self.sequence += 1;
        push(
            &mut self.waiting,
            EnergyMove {
                sequence: self.sequence,
                device: device.to_owned(),
                at_us,
                total_uj,
            },
        );
    }

    /// What was collected since this was asked last, oldest first.
    pub fn drain(&mut self) -> Vec<EnergyMove> {
        self.waiting.drain(..).collect()
    }
}

fn push(moves: &mut VecDeque<EnergyMove>, new: EnergyMove) {
    if moves.len() == MOVES_KEPT {
        moves.pop_front();
    }
    moves.push_back(new);
}

/// The last moves of a running telemetry.
#[derive(Debug, Default)]
pub(crate) struct EnergyLog {
    moves: VecDeque<EnergyMove>,
}

impl EnergyLog {
    pub fn extend(&mut self, new: Vec<EnergyMove>) {
        for moved in new {
            push(&mut self.moves, moved);
        }
    }

    /// The moves after the given one, oldest first.
    pub fn after(&self, sequence: u64) -> Vec<EnergyMove> {
        let newer = self.moves.iter().filter(|m| m.sequence > sequence);
        newer.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use homeostat_hooks::DeviceKind;

    use super::*;
    use crate::reading::Reading;

    fn told(moves: &mut EnergyMoves) -> Vec<(u64, u64)> {
        let new = moves.drain();
        new.iter().map(|m| (m.at_us, m.total_uj)).collect()
    }

    #[test]
    fn what_a_provider_saw_between_two_ticks_comes_before_the_reading() {
        let (mut moves, mut readings) = (EnergyMoves::default(), Readings::default());
        let gpu = readings.device("gpu.0", DeviceKind::Gpu);
        for (at_us, total_uj) in [(20_000, 2_000_000), (120_000, 9_000_000)] {
            gpu.record_energy_move(at_us, total_uj);
        }
        gpu.record(Signal::Energy, Reading::instant(9.0, 200, 100))
            .expect("plausible");
        moves.collect(&mut readings);
        assert_eq!(
            told(&mut moves),
            [(20_000, 2_000_000), (120_000, 9_000_000)]
        );
        moves.collect(&mut readings);
        assert!(told(&mut moves).is_empty(), "each of them once");
    }

    #[test]
    fn a_counter_without_finer_moves_tells_by_its_readings_and_only_when_it_moved() {
        let (mut moves, mut readings) = (EnergyMoves::default(), Readings::default());
        for (at_ms, joules) in [(0, 0.0), (100, 3.5), (200, 3.5), (300, 4.0)] {
            let cpu = readings.device("cpu.0", DeviceKind::Cpu);
            cpu.record(Signal::Energy, Reading::instant(joules, at_ms, 100))
                .expect("plausible");
            moves.collect(&mut readings);
        }
        let expected = [(0, 0), (100_000, 3_500_000), (300_000, 4_000_000)];
        assert_eq!(told(&mut moves), expected);
    }
}
