//! `/healthz`, `/readyz`, `/metrics`: for machines that watch this one.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use homeostat_hooks::TierKind;
use serde_json::{Value, json};

use crate::house::House;
use crate::openai::error::ApiError;

/// The process runs and answers.
pub async fn healthz() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Send requests here: all local tiers are loaded and this host is not going down. A
/// remote tier that is away does not make it unready, since others answer meanwhile.
pub async fn readyz(State(house): State<Arc<House>>) -> (StatusCode, Json<Value>) {
    let views: Vec<_> = house.cascade.tiers().iter().map(|t| t.view()).collect();
    let local = views.iter().filter(|v| v.kind == TierKind::Local);
    let ready = !house.is_draining() && local.clone().all(|v| v.ready);
    let tiers: Value = views.iter().map(|v| (v.id.clone(), v.ready)).collect();
    let status = match ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let body = json!({"ready": ready, "draining": house.is_draining(), "tiers": tiers});
    (status, Json(body))
}

pub async fn metrics(State(house): State<Arc<House>>) -> Result<Response, ApiError> {
    let text = house.metrics.text(&house).map_err(ApiError::host)?;
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
