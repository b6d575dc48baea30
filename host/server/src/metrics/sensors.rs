//! What the sensors cost, what fails in them, and what of a device no policy sees.

use homeostat_telemetry::{CallStats, DeviceStats, ProviderStats, Stats};

use super::{Moment, Result};

const STATES: [&str; 4] = ["nominal", "elevated", "constrained", "critical"];

pub fn sensors(now: &mut Moment, stats: &Stats) -> Result<()> {
    now.set(
        "homeostat_telemetry_age_seconds",
        "Time since the sensors were sampled last.",
        &[],
        stats.age_ms as f64 / 1e3,
    )?;
    for (name, of_provider) in &stats.providers {
        provider(now, name, of_provider)?;
    }
    for (id, of_device) in &stats.devices {
        device(now, id, of_device)?;
    }
    for (from, row) in STATES.iter().zip(&stats.transitions) {
        for (to, count) in STATES.iter().zip(row).filter(|(to, _)| *to != from) {
            now.set(
                "homeostat_metabolic_transitions",
                "Changes of the metabolic state since the start.",
                &[("from", *from), ("to", *to)],
                *count as f64,
            )?;
        }
    }
    Ok(())
}

fn provider(now: &mut Moment, name: &str, stats: &ProviderStats) -> Result<()> {
    let id = [("provider", name)];
    for (name, help, value) in [
        (
            "homeostat_telemetry_reads",
            "Reads of a provider's sensors since the start.",
            stats.reads as f64,
        ),
        (
            "homeostat_telemetry_read_seconds_sum",
            "Time spent in them.",
            stats.read_seconds_total,
        ),
        (
            "homeostat_telemetry_read_seconds_max",
            "Longest of them.",
            stats.read_seconds_max,
        ),
        (
            "homeostat_telemetry_period_seconds",
            "How often they are read at present; longer where reading is dear.",
            f64::from(stats.period_ms) / 1e3,
        ),
    ] {
        now.set(name, help, &id, value)?;
    }
    now.maybe(
        "homeostat_telemetry_read_seconds_p99",
        "What 99 of 100 of the last thousand reads did not exceed.",
        &id,
        stats.read_seconds_p99,
    )?;
    for (kind, count) in &stats.errors {
        let labels = [("provider", name), ("kind", *kind)];
        let help = "Readings that failed or could not be true, since the start.";
        now.set("homeostat_telemetry_errors", help, &labels, *count as f64)?;
    }
    for (call, of_call) in &stats.calls {
        calls(now, &[("provider", name), ("call", *call)], of_call)?;
    }
    Ok(())
}

fn calls(now: &mut Moment, labels: &[(&str, &str)], stats: &CallStats) -> Result<()> {
    for (name, help, value) in [
        (
            "homeostat_telemetry_calls",
            "Calls into a vendor's library since the start.",
            stats.calls as f64,
        ),
        (
            "homeostat_telemetry_call_seconds_sum",
            "Time spent in them.",
            stats.seconds_total,
        ),
        (
            "homeostat_telemetry_call_seconds_max",
            "Longest of them.",
            stats.seconds_max,
        ),
    ] {
        now.set(name, help, labels, value)?;
    }
    Ok(())
}

fn device(now: &mut Moment, id: &str, stats: &DeviceStats) -> Result<()> {
    let value = |name: &str| stats.values.get(name).copied();
    for (name, help, value) in [
        (
            "homeostat_hw_memory_power_watts",
            "Power that a device's memory draws.",
            value("memory_power_watts"),
        ),
        (
            "homeostat_hw_module_power_watts",
            "Power of a GPU with the processor and memory beside it.",
            value("module_power_watts"),
        ),
        (
            "homeostat_hw_energy_counter_period_seconds",
            "How often the driver refreshes its energy counter, as observed.",
            value("energy_counter_period_seconds"),
        ),
        (
            "homeostat_hw_sustainable_watts",
            "Power that a device could draw for ever with this air and this cooling, as learned.",
            value("sustainable_watts"),
        ),
        (
            "homeostat_hw_forecast_rmse_celsius",
            "Root mean square error that the forecasts of a device's margin turned out to have.",
            value("forecast_rmse_celsius"),
        ),
    ] {
        now.maybe(name, help, &[("device", id)], value)?;
    }
    for (reason, seconds) in &stats.throttled_seconds {
        now.set(
            "homeostat_hw_throttled_seconds",
            "Time that clocks were held down, as the driver counts it.",
            &[("device", id), ("reason", *reason)],
            *seconds,
        )?;
    }
    Ok(())
}
