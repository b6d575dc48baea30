//! Readings that somebody outside pushes: a power strip, a rack controller, a
//! microcontroller.
//!
//! They pass the same gate as our own sensors. A pushed device lives under `external.`, so
//! it can never speak in the name of a device that the host reads itself, and the number
//! of such devices is bounded.

use std::collections::BTreeMap;

use homeostat_hooks::{DeviceKind, Origin};

use crate::reading::{Absurd, DeviceReadings, Reading, Readings, Signal};

/// Devices that may be pushed; each costs about 600 bytes in every snapshot.
pub const MAX_EXTERNAL_DEVICES: usize = 32;
/// A device of which nothing was heard for this long was taken away on purpose. Until
/// then its silence counts as that of a lost sensor.
pub const FORGET_MS: u64 = 600_000;
/// Longest id, in bytes.
pub const MAX_ID_BYTES: usize = 64;

/// One pushed value.
#[derive(Debug, Clone, PartialEq)]
pub struct ExternalReading {
    /// Name of the device; it appears as `external.<name>`.
    pub device: String,
    /// Kind of the device.
    pub kind: DeviceKind,
    /// What is measured.
    pub signal: Signal,
    /// The value, in the unit of the signal.
    pub value: f64,
    /// How often the sender means to push: silence for three periods makes it stale.
    pub period_ms: u32,
    /// Time over which the sender averaged; 0 = instant.
    pub window_ms: u32,
    /// Where the sender has it from.
    pub origin: Origin,
}

/// Why pushed readings were not taken; the sender is at fault.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The value cannot be true.
    #[error("device {device:?}: {absurd}")]
    Absurd {
        /// Device that it was for.
        device: String,
        /// What was wrong.
        absurd: Absurd,
    },
    /// The id is empty, too long or holds control characters.
    #[error("a device id must have 1 to {MAX_ID_BYTES} printable bytes, got {0:?}")]
    BadId(String),
    /// One device too many.
    #[error("at most {MAX_EXTERNAL_DEVICES} external devices are kept; {0:?} would be one more")]
    TooMany(String),
}

/// The pushed readings, until the sampler collects them.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    devices: BTreeMap<String, DeviceReadings>,
}

impl Mailbox {
    /// Takes all readings or, if one of them is bad, none.
    pub fn push(&mut self, readings: Vec<ExternalReading>, now_ms: u64) -> Result<(), Refused> {
        let mut devices = self.devices.clone();
        for external in readings {
            let name = external.device;
            if name.is_empty() || name.len() > MAX_ID_BYTES || name.chars().any(char::is_control) {
                return Err(Refused::BadId(name));
            }
            if !devices.contains_key(&name) && devices.len() >= MAX_EXTERNAL_DEVICES {
                return Err(Refused::TooMany(name));
            }
            let reading = Reading {
                value: external.value,
                at_ms: now_ms,
                period_ms: external.period_ms,
                window_ms: external.window_ms,
                origin: external.origin,
            };
            devices
                .entry(name.clone())
                .or_insert_with(|| DeviceReadings::new(external.kind))
                .record(external.signal, reading)
                .map_err(|absurd| Refused::Absurd {
                    device: name,
                    absurd,
                })?;
        }
        self.devices = devices;
        Ok(())
    }

    /// Copies what was pushed beside what was read.
    pub fn deliver(&mut self, readings: &mut Readings, now_ms: u64) {
        self.devices.retain(|name, device| {
            let id = format!("external.{name}");
            if device.silent_ms(now_ms) > FORGET_MS {
                readings.devices.remove(&id);
                return false;
            }
            readings.device(&id, device.kind).adopt(device);
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watts(device: &str, value: f64) -> ExternalReading {
        ExternalReading {
            device: device.to_owned(),
            kind: DeviceKind::External,
            signal: Signal::Power,
            value,
            period_ms: 1_000,
            window_ms: 0,
            origin: Origin::Measured,
        }
    }

    #[test]
    fn a_pushed_reading_appears_under_its_own_prefix() {
        let mut mailbox = Mailbox::default();
        mailbox
            .push(vec![watts("strip", 412.5)], 50)
            .expect("taken");
        let mut readings = Readings::default();
        mailbox.deliver(&mut readings, 100);
        let strip = &readings.devices["external.strip"];
        assert_eq!(strip.last(Signal::Power).expect("there").value, 412.5);
    }

    #[test]
    fn one_bad_value_refuses_the_whole_push_and_names_it() {
        let mut mailbox = Mailbox::default();
        let refused = mailbox.push(vec![watts("a", 1.0), watts("b", f64::NAN)], 0);
        let message = refused.expect_err("NaN").to_string();
        assert!(
            message.contains("\"b\"") && message.contains("Power"),
            "{message}"
        );
        let mut readings = Readings::default();
        mailbox.deliver(&mut readings, 100);
        assert!(readings.devices.is_empty());
    }

    #[test]
    fn a_device_that_is_silent_for_long_is_forgotten_and_leaves_its_place() {
        let mut mailbox = Mailbox::default();
        mailbox.push(vec![watts("strip", 1.0)], 0).expect("taken");
        let mut readings = Readings::default();
        mailbox.deliver(&mut readings, FORGET_MS);
        assert!(readings.devices.contains_key("external.strip"));
        mailbox.deliver(&mut readings, FORGET_MS + 1);
        assert!(readings.devices.is_empty() && mailbox.devices.is_empty());
    }

    #[test]
    fn the_number_of_pushed_devices_is_bounded() {
        let mut mailbox = Mailbox::default();
        for i in 0..MAX_EXTERNAL_DEVICES {
            mailbox
                .push(vec![watts(&i.to_string(), 1.0)], 0)
                .expect("room");
        }
        assert_eq!(
            mailbox.push(vec![watts("one more", 1.0)], 0),
            Err(Refused::TooMany("one more".into()))
        );
        mailbox
            .push(vec![watts("0", 2.0)], 1)
            .expect("known already");
    }
}
