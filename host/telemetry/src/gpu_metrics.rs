//! The binary table `gpu_metrics` of AMD's driver, as far as hwmon does not say it better:
//! the energy counter of data-centre boards and why a board is slow.
//!
//! The table has a version in its head and a layout for each. Only layouts whose unit or
//! meaning the kernel states are read: energy from 1.4 and 1.5 (in 2⁻¹⁶ J; older versions
//! have a field of that name and no unit), reasons from 1.3. Anything else is no reading. It
//! refuses the hot-spot bit: on current boards it is set at rest.

use homeostat_hooks::ThrottleReasons;

/// What a table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct GpuMetrics {
    /// Running total of energy, µJ.
    pub energy_uj: Option<u64>,
    /// Why the board is slow now.
    pub throttle: Option<ThrottleReasons>,
}

/// Offsets of `energy_accumulator`, by content revision of format 1.
const ENERGY_1_4: usize = 24;
const ENERGY_1_5: usize = 88;
/// Offset of `indep_throttle_status` in 1.3.
const THROTTLE_1_3: usize = 112;

/// The groups of the independent throttle bits: limits of power, of current, of
/// temperature, and the two lines by which a board is told to stop.
const POWER_BITS: u64 = 0xff;
const CURRENT_BITS: u64 = 0xff << 16;
const TEMPERATURE_BITS: u64 = 0x3fff << 32;
const HOT_SPOT_BIT: u64 = 1 << 36;
const HOT_LINE_BITS: u64 = 0b11 << 46;

impl GpuMetrics {
    /// Reads a table; unknown versions and short files say nothing.
    pub fn parse(table: &[u8]) -> Self {
        let revision = match table {
            [_, _, 1, revision, ..] => *revision,
            _ => return Self::default(),
        };
        // All ones is what the driver writes where the firmware tells nothing.
        let word = |at: usize| -> Option<u64> {
            let bytes = table.get(at..at + 8)?.try_into().ok()?;
            Some(u64::from_le_bytes(bytes)).filter(|value| *value != u64::MAX)
        };
        match revision {
            3 => Self {
                throttle: word(THROTTLE_1_3).map(reasons),
                ..Self::default()
            },
            4 => Self::with_energy(word(ENERGY_1_4)),
            5 => Self::with_energy(word(ENERGY_1_5)),
            _ => Self::default(),
        }
    }

    fn with_energy(units: Option<u64>) -> Self {
        // Thousandths of a unit of 2⁻¹⁶ J are lost, not joules.
        let microjoules = |units: u64| (u128::from(units) * 1_000_000 / 65_536) as u64;
        Self {
            energy_uj: units.map(microjoules),
            ..Self::default()
        }
    }
}

fn reasons(bits: u64) -> ThrottleReasons {
    let any = |mask: u64| bits & mask != 0;
    ThrottleReasons {
        thermal_software: any(TEMPERATURE_BITS & !HOT_SPOT_BIT),
        thermal_hardware: any(HOT_LINE_BITS),
        power_cap: any(POWER_BITS),
        power_brake: false,
        undervoltage: false,
        other: any(CURRENT_BITS),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A table of that revision with one word in it.
    pub(crate) fn table(revision: u8, at: usize, value: u64) -> Vec<u8> {
        let mut table = vec![0u8; at + 8];
        table[2] = 1;
        table[3] = revision;
        table[at..].copy_from_slice(&value.to_le_bytes());
        table
    }

    #[test]
    fn the_energy_counter_has_its_resolution() {
        let metrics = GpuMetrics::parse(&table(4, ENERGY_1_4, 65_536 * 7));
        assert_eq!(metrics.energy_uj, Some(7_000_000));
        let metrics = GpuMetrics::parse(&table(5, ENERGY_1_5, 65_536));
        assert_eq!(metrics.energy_uj, Some(1_000_000));
        assert_eq!(metrics.throttle, None);
    }

    #[test]
    fn reasons_are_told_apart_and_the_hot_spot_is_not_believed() {
        let said = |bits| {
            let metrics = GpuMetrics::parse(&table(3, THROTTLE_1_3, bits));
            metrics.throttle.expect("told")
        };
        assert!(said(1 << 2).power_cap);
        assert!(said(1 << 34).thermal_software, "memory too hot");
        assert!(said(1 << 47).thermal_hardware);
        assert!(said(1 << 22).other);
        assert_eq!(said(HOT_SPOT_BIT), ThrottleReasons::default());
    }

    #[test]
    fn unknown_short_and_unsupported_tables_say_nothing() {
        for bytes in [
            Vec::new(),
            vec![0; 3],
            table(9, 24, 1),
            table(4, ENERGY_1_4, u64::MAX),
            table(4, ENERGY_1_4, 5)[..30].to_vec(),
            vec![120, 0, 2, 3, 0, 0, 0, 0],
        ] {
            assert_eq!(GpuMetrics::parse(&bytes), GpuMetrics::default());
        }
    }
}
