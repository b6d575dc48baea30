//! The device under a local tier, as the machine's senses tell it.
//!
//! Work should leave what is hot, and not everything beside it. So a tier says where it computes,
//! `homeostat.device`, and which share of that device's work should go elsewhere,
//! `homeostat.device-degrade-ratio`; and a device that does not answer any more takes its tiers
//! out of the candidates until it answers again. It refuses to guess: of a device without a
//! thermometer no share is told, and what holds for the whole host stands.

use homeostat_engine::Device;
use homeostat_hooks::{Attribute, Device as Seen, DeviceKind, Health, Snapshot, Value};

/// What is known of a device at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DeviceState {
    /// It does not answer any more.
    pub lost: bool,
    /// Share of its work that should go elsewhere, 0 to 1; `None` where nobody feels its heat.
    pub degrade_ratio: Option<f32>,
}

/// Where a tier computes, and who says how that device is. Every request asks, so nobody may wait.
pub struct TierDevice {
    /// `cpu`, or the GPU's name in snapshots.
    pub id: String,
    pub state: Box<dyn Fn() -> DeviceState + Send + Sync>,
}

impl TierDevice {
    /// What routers are shown of it.
    pub fn attributes(&self, state: DeviceState) -> Vec<Attribute> {
        let id = Value::Text(self.id.clone());
        let ratio = state.degrade_ratio.map(|ratio| {
            let ratio = Value::Number(ratio.into());
            ("homeostat.device-degrade-ratio".to_owned(), ratio)
        });
        let device = ("homeostat.device".to_owned(), id);
        [Some(device), ratio].into_iter().flatten().collect()
    }
}

/// The name of a device in snapshots. Processors have one name together: an engine's threads
/// run on whichever is free.
pub fn device_id(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".to_owned(),
        Device::Cuda(number) => format!("gpu.{number}"),
    }
}

/// Whether a reading is one of the device itself.
pub fn is_part_of(device: Device, seen: &Seen) -> bool {
    match device {
        Device::Cpu => matches!(seen.kind, DeviceKind::Cpu | DeviceKind::Soc),
        Device::Cuda(_) => seen.id == device_id(device),
    }
}

/// How a device is in a snapshot. `ratio_of` knows which share of the work on a device of the
/// snapshot should go elsewhere, 0 to 1.
pub fn device_state(
    device: Device,
    snapshot: &Snapshot,
    ratio_of: impl Fn(&str) -> f32,
) -> DeviceState {
    let felt =
        |seen: &&Seen| seen.temperature_celsius.is_some() || seen.thermal_margin_celsius.is_some();
    let own = |seen: &&Seen| is_part_of(device, seen);
    // Heat of the whole machine or of its room is everybody's.
    let shared = |seen: &&Seen| matches!(seen.kind, DeviceKind::Host | DeviceKind::External);
    let felt = snapshot.devices.iter().filter(felt);
    let is_felt = felt.clone().any(|seen| own(&seen));
    let ratios = felt
        .filter(|seen| own(seen) || shared(seen))
        .map(|seen| ratio_of(&seen.id));
    let lost = |seen: &Seen| is_part_of(device, seen) && seen.health == Health::Lost;
    DeviceState {
        // A processor that did not answer would not ask.
        lost: device != Device::Cpu && snapshot.devices.iter().any(lost),
        degrade_ratio: is_felt.then(|| ratios.fold(0.0, f32::max)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homeostat_hooks::Sample;

    fn seen(id: &str, kind: DeviceKind) -> Seen {
        Seen {
            id: id.into(),
            kind,
            temperature_celsius: Some(Sample::measured(60.0)),
            ..Seen::default()
        }
    }

    fn machine() -> Snapshot {
        Snapshot {
            devices: vec![
                seen("cpu.0", DeviceKind::Cpu),
                seen("gpu.0", DeviceKind::Gpu),
                seen("gpu.1", DeviceKind::Gpu),
            ],
            ..Snapshot::default()
        }
    }

    /// The first GPU is hot.
    fn ratio_of(id: &str) -> f32 {
        if id == "gpu.0" { 0.75 } else { 0.25 }
    }

    #[test]
    fn heat_of_one_gpu_is_that_gpus_and_heat_of_the_room_is_everybodys() {
        let mut machine = machine();
        let ratio =
            |device, machine: &Snapshot| device_state(device, machine, ratio_of).degrade_ratio;
        assert_eq!(ratio(Device::Cuda(0), &machine), Some(0.75));
        assert_eq!(ratio(Device::Cuda(1), &machine), Some(0.25));
        assert_eq!(ratio(Device::Cpu, &machine), Some(0.25));
        machine
            .devices
            .push(seen("external.room", DeviceKind::External));
        let room = |id: &str| if id == "external.room" { 1.0 } else { 0.0 };
        for device in [Device::Cpu, Device::Cuda(1)] {
            let state = device_state(device, &machine, room);
            assert_eq!(state.degrade_ratio, Some(1.0), "{device}");
        }
    }

    #[test]
    fn of_a_device_that_nobody_feels_no_share_is_told() {
        let mut machine = machine();
        machine.devices[0].temperature_celsius = None;
        assert_eq!(
            device_state(Device::Cpu, &machine, ratio_of),
            DeviceState::default()
        );
        let state = device_state(Device::Cuda(7), &machine, ratio_of);
        assert_eq!(state, DeviceState::default());
    }

    #[test]
    fn a_gpu_that_is_lost_takes_nobody_with_it() {
        let mut machine = machine();
        machine.devices[1].health = Health::Lost;
        machine.devices[0].health = Health::Lost;
        let lost = |device| device_state(device, &machine, ratio_of).lost;
        assert!(lost(Device::Cuda(0)));
        assert!(!lost(Device::Cuda(1)) && !lost(Device::Cpu));
    }
}
