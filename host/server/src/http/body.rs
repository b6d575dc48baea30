//! Reading a request's body: bounded, and refused in words.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use futures::StreamExt;

use crate::house::House;
use crate::openai::error::{ApiError, shown};

/// A body that is too long is read on and thrown away up to this multiple of the limit:
/// a client that is still writing would otherwise see a broken connection instead of the
/// refusal.
const DISCARD_FACTOR: usize = 8;

/// Most bytes of a body.
pub struct Limit {
    pub bytes: usize,
    /// Who says so, for people: a setting, where it is one.
    pub by: &'static str,
}

impl Limit {
    /// Of what clients send.
    pub fn of_clients(house: &House) -> Self {
        Self {
            bytes: house.door.max_body_bytes,
            by: "server.max_body_bytes",
        }
    }

    /// Of what operators send.
    pub fn of_components(house: &House) -> Self {
        Self {
            bytes: house.max_component_bytes,
            by: "policies.max_component_bytes",
        }
    }
}

/// The JSON body of a request.
pub async fn json(headers: &HeaderMap, body: Body, limit: Limit) -> Result<Bytes, ApiError> {
    if let Some(kind) = headers.get(header::CONTENT_TYPE) {
        let text = kind.to_str().unwrap_or("").to_ascii_lowercase();
        let essence = text.split(';').next().unwrap_or("").trim();
        if essence != "application/json" && !essence.ends_with("+json") {
            let what = format!(
                "content-type is {}, expected application/json",
                shown(essence)
            );
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(
                ApiError::new(status, "invalid_request_error", what).code("unsupported_media_type")
            );
        }
    }
    bytes(headers, body, limit).await
}

/// The body of a request.
pub async fn bytes(headers: &HeaderMap, body: Body, limit: Limit) -> Result<Bytes, ApiError> {
    let Limit { bytes: limit, by } = limit;
    let announced: Option<usize> = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse().ok());
    let mut stream = body.into_data_stream();
    let mut read = Vec::with_capacity(announced.unwrap_or(0).min(limit));
    let mut total = 0usize;
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|e| {
            ApiError::bad_request(format!("the body could not be read: {e}")).code("body_broken")
        })?;
        total += piece.len();
        if total > limit {
            read = Vec::new();
            if total > limit.saturating_mul(DISCARD_FACTOR) {
                break;
            }
        } else {
            read.extend_from_slice(&piece);
        }
    }
    if total > limit {
        let bytes = announced.unwrap_or(total);
        let what = format!("the body has {bytes} bytes, this host reads at most {limit} ({by})");
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        return Err(ApiError::new(status, "invalid_request_error", what).code("request_too_large"));
    }
    Ok(read.into())
}
