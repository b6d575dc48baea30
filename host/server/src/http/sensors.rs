//! `POST /admin/v1/telemetry`: readings from outside, by whoever measures what this host
//! cannot: a power strip, a rack controller, a microcontroller.
//!
//! Values bear the names that they have in a snapshot. A device appears as
//! `external.<id>`; all readings of one push are taken, or none.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use homeostat_hooks::{DeviceKind, Origin};
use homeostat_telemetry::{ExternalReading, Signal};
use serde::{Deserialize, Serialize};

use super::body;
use crate::house::House;
use crate::openai::error::ApiError;

/// Hundreds of devices.
const PUSH_MAX: body::Limit = body::Limit {
    bytes: 64 << 10,
    by: "for readings",
};
/// How often a sender may say that it pushes: slower than this it is of no use.
const PERIOD_MS: std::ops::RangeInclusive<u32> = 100..=300_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Push {
    devices: Vec<PushedDevice>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PushedDevice {
    id: String,
    #[serde(default = "outside")]
    kind: DeviceKind,
    #[serde(default = "second")]
    period_ms: u32,
    #[serde(default)]
    window_ms: u32,
    #[serde(default)]
    origin: Origin,
    temperature_celsius: Option<f64>,
    memory_temperature_celsius: Option<f64>,
    thermal_margin_celsius: Option<f64>,
    power_watts: Option<f64>,
    power_limit_watts: Option<f64>,
    energy_joules: Option<f64>,
    utilization_ratio: Option<f64>,
    memory_used_bytes: Option<f64>,
    memory_total_bytes: Option<f64>,
    clock_ratio: Option<f64>,
}

fn outside() -> DeviceKind {
    DeviceKind::External
}

fn second() -> u32 {
    1_000
}

impl PushedDevice {
    fn readings(self) -> impl Iterator<Item = ExternalReading> {
        let values = [
            (Signal::Temperature, self.temperature_celsius),
            (Signal::MemoryTemperature, self.memory_temperature_celsius),
            (Signal::ThermalMargin, self.thermal_margin_celsius),
            (Signal::Power, self.power_watts),
            (Signal::PowerLimit, self.power_limit_watts),
            (Signal::Energy, self.energy_joules),
            (Signal::Utilization, self.utilization_ratio),
            (Signal::MemoryUsed, self.memory_used_bytes),
            (Signal::MemoryTotal, self.memory_total_bytes),
            (Signal::Clock, self.clock_ratio),
        ];
        values.into_iter().filter_map(move |(signal, value)| {
            Some(ExternalReading {
                device: self.id.clone(),
                kind: self.kind,
                signal,
                value: value?,
                period_ms: self.period_ms,
                window_ms: self.window_ms,
                origin: self.origin,
            })
        })
    }
}

/// What was taken.
#[derive(Serialize)]
pub struct Taken {
    readings: usize,
}

pub async fn push(
    State(house): State<Arc<House>>,
    request: Request,
) -> Result<Json<Taken>, ApiError> {
    let (parts, body) = request.into_parts();
    let bytes = body::json(&parts.headers, body, PUSH_MAX).await?;
    let push: Push = serde_json::from_slice(&bytes)
        .map_err(|e| ApiError::bad_request(format!("these are no readings: {e}")))?;
    let mut readings = Vec::new();
    for device in push.devices {
        if !PERIOD_MS.contains(&device.period_ms) {
            let what = format!(
                "period_ms of {:?} is {}, expected {} to {}",
                device.id,
                device.period_ms,
                PERIOD_MS.start(),
                PERIOD_MS.end()
            );
            return Err(ApiError::invalid("period_ms", what));
        }
        readings.extend(device.readings());
    }
    let taken = readings.len();
    house
        .telemetry
        .push_external(readings)
        .map_err(|refused| ApiError::invalid("devices", refused.to_string()))?;
    Ok(Json(Taken { readings: taken }))
}
