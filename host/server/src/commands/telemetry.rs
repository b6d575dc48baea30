//! `homeostat telemetry`: what this machine feels, recorded or shown once.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use homeostat_telemetry::{CallReport, Telemetry, TraceHeader, TraceWriter, probe_nvml};

use super::print_json;
use crate::cli::{TelemetryArgs, TelemetryCommand};
use crate::config::Config;
use crate::{Failure, serve};

pub fn telemetry(args: TelemetryArgs) -> Result<(), Failure> {
    match args.command {
        None => show(&Config::load(args.config.config.as_deref())?),
        Some(TelemetryCommand::Record {
            out,
            seconds,
            period_ms,
            config,
        }) => {
            let config = Config::load(config.config.as_deref())?;
            let mut settings = serve::telemetry_config(&config);
            settings.period_ms = period_ms.unwrap_or(settings.period_ms);
            record(settings, &out, seconds)
        }
        Some(TelemetryCommand::Probe {
            times,
            watch_ms,
            json,
            config,
        }) => {
            let config = Config::load(config.config.as_deref())?;
            let library = serve::telemetry_config(&config).nvml;
            let watch = Duration::from_millis(watch_ms);
            let reports = probe_nvml(&library, times, watch).map_err(Failure::failed)?;
            if json {
                return print_json(&serde_json::to_value(&reports).map_err(Failure::failed)?);
            }
            print_reports(&reports);
            Ok(())
        }
    }
}

/// One snapshot. A state needs a few samples before it means something.
fn show(config: &Config) -> Result<(), Failure> {
    let telemetry = Telemetry::start(serve::telemetry_config(config));
    let periods = u64::from(config.telemetry.period_ms) * 6;
    std::thread::sleep(Duration::from_millis(periods));
    let snapshot = telemetry.snapshot();
    telemetry.shutdown();
    print_json(&serde_json::to_value(&*snapshot).map_err(Failure::failed)?)
}

fn record(
    settings: homeostat_telemetry::Config,
    out: &Path,
    seconds: Option<f64>,
) -> Result<(), Failure> {
    let length = match seconds.map(Duration::try_from_secs_f64) {
        Some(Err(error)) => return Err(Failure::Config(format!("--seconds: {error}"))),
        Some(Ok(length)) => Some(length),
        None => None,
    };
    let unwritable = |error| Failure::Failed(format!("cannot write {}: {error}", out.display()));
    let sink = BufWriter::with_capacity(1 << 20, File::create(out).map_err(unwritable)?);
    let header = TraceHeader::new(&settings);
    let trace = TraceWriter::new(Box::new(sink), header).map_err(unwritable)?;
    let trace = Arc::new(trace);
    let telemetry = Telemetry::start_recording(settings, Arc::clone(&trace));
    wait(length)?;
    let ticks = telemetry.stats().ticks;
    telemetry.shutdown();
    trace.finish().map_err(unwritable)?;
    eprintln!("{ticks} snapshots in {}", out.display());
    Ok(())
}

/// Until that time is over or somebody asks to stop.
fn wait(length: Option<Duration>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(Failure::failed)?.block_on(async {
        let over = async {
            match length {
                Some(length) => tokio::time::sleep(length).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => Ok(()),
            asked = tokio::signal::ctrl_c() => asked.map_err(Failure::failed),
        }
    })
}

fn print_reports(reports: &[CallReport]) {
    if reports.is_empty() {
        println!("NVIDIA's library is switched off in the configuration");
    }
    for report in reports {
        let answer = match (&report.answer, report.error) {
            (Some(answer), _) => answer.to_string(),
            (None, error) => format!("no answer: {}", error.unwrap_or("unknown")),
        };
        let changes = report.changes.map_or(String::new(), |changes| {
            let ms = |gap: Option<f64>| gap.map_or("?".into(), |gap| format!("{gap:.1}"));
            format!(
                "; {} changes in {} ms, {} ms apart (shortest {})",
                changes.changes,
                changes.watched_ms,
                ms(changes.median_ms),
                ms(changes.shortest_ms)
            )
        });
        println!(
            "{:6} {:24} p50 {:8.1} µs  p99 {:8.1} µs  {answer}{changes}",
            report.device, report.call, report.p50_us, report.p99_us
        );
    }
}
