//! Structured logs: one line per request, on standard error.

use std::io::IsTerminal;

use homeostat_cascade::{DecisionRecord, Ending};
use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Start logging. `RUST_LOG` wins over the configured level.
pub fn start(config: &LogConfig) -> Result<(), String> {
    let configured = std::env::var("RUST_LOG").unwrap_or_else(|_| config.level.clone());
    let filter = EnvFilter::try_new(&configured)
        .map_err(|e| format!("log.level {configured:?} is no filter: {e}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let started = match config.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|e| format!("logging cannot start: {e}"))
}

/// The line of a closed request.
pub fn request(record: &DecisionRecord) {
    let (ending, tier, detail) = match &record.ending {
        Ending::Running => ("running", "", ""),
        Ending::Sent { tier, .. } => ("sent", tier.as_str(), ""),
        Ending::Direct { method } => ("direct", "direct", method.as_str()),
        Ending::Refused { message } => ("refused", "", message.as_str()),
        Ending::Failed { message } => ("failed", "", message.as_str()),
        Ending::Cancelled => ("cancelled", "", "the client went away"),
    };
    tracing::info!(
        target: "homeostat::request",
        id = record.id,
        model = record.request.model,
        tenant = record.request.tenant,
        ending,
        tier,
        detail,
        steps = record.steps.len(),
        fallback = record.fallback(),
        prompt_tokens = record.usage.prompt_tokens,
        completion_tokens = record.usage.completion_tokens,
        generated_tokens = record.usage.generated_tokens_all_steps,
        ttft_ms = record.ttft_ms,
        total_ms = record.total_ms,
        "request"
    );
}
