//! Asks the admin API of a running host.

use std::time::Duration;

use http_body_util::Full;
use hyper::Request;
use hyper::header;
use serde_json::Value;

use crate::Failure;
use crate::cli::HostArgs;
use crate::http_client::{http_client, read_body, with_causes};

/// A slow host is still a host; compiling a large component takes seconds.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of an answer: a decision record of a long cascade has some tens of KiB.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// One request to a running host; its answer as JSON.
pub fn ask(host: &HostArgs, method: &str, path: &str, body: Vec<u8>) -> Result<Value, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::failed)?;
    let base = host.host.trim_end_matches('/');
    let url = format!("{base}{path}");
    let mut request = Request::builder().method(method).uri(&url);
    if let Some(token) = &host.token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request
        .body(Full::new(body.into()))
        .map_err(|e| Failure::Config(format!("--host {base}: {e}")))?;
    runtime.block_on(async {
        let client = http_client(Duration::from_secs(5));
        let answered = tokio::time::timeout(TIMEOUT, client.request(request)).await;
        let response = answered
            .map_err(|_| Failure::Failed(format!("{base} did not answer within {TIMEOUT:?}")))?
            .map_err(|e| {
                let why = with_causes(&e);
                Failure::Failed(format!(
                    "{base} cannot be reached: {why}; is the host running?"
                ))
            })?;
        let status = response.status();
        let body = read_body(response.into_body(), ANSWER_BYTES_MAX)
            .await
            .map_err(Failure::failed)?;
        let value: Value = serde_json::from_slice(&body)
            .map_err(|e| Failure::Failed(format!("{url} did not answer with JSON: {e}")))?;
        if status.is_success() {
            return Ok(value);
        }
        let message = value["error"]["message"].as_str();
        Err(Failure::Failed(message.map_or_else(
            || format!("{url} refused with status {status}"),
            str::to_string,
        )))
    })
}
