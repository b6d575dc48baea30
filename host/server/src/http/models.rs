//! `/v1/models`: what `model` may be.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use homeostat_hooks::TierKind;
use serde_json::{Value, json};

use super::bearer;
use crate::house::House;
use crate::openai::error::ApiError;

pub async fn list(
    State(house): State<Arc<House>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    house.door.tenant(bearer(request.headers()))?;
    Ok(Json(json!({"object": "list", "data": all(&house)})))
}

pub async fn one(
    State(house): State<Arc<House>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    house.door.tenant(bearer(request.headers()))?;
    let found = all(&house).into_iter().find(|m| m["id"] == id.as_str());
    let unknown = || ApiError::unknown_model(&id, &house.model_names());
    found.map(Json).ok_or_else(unknown)
}

fn all(house: &House) -> Vec<Value> {
    let model = |id: &str, about: Value| {
        json!({
            "id": id, "object": "model", "created": house.started, "owned_by": "homeostat",
            "homeostat": about,
        })
    };
    let mut models = vec![model("auto", json!({"kind": "auto"}))];
    for tier in house.cascade.tiers() {
        let view = tier.view();
        let kind = match view.kind {
            TierKind::Local => "local",
            TierKind::Remote => "remote",
            TierKind::Simulated => "simulated",
        };
        let about = json!({
            "kind": kind, "model": view.model, "rank": view.rank, "ready": view.ready,
            "context_tokens": view.context_tokens,
        });
        models.push(model(&view.id, about));
    }
    if let Some(encoder) = &house.encoder {
        let about = json!({
            "kind": "encoder", "ready": true, "context_tokens": encoder.max_tokens(),
            "dimensions": encoder.dimensions(),
        });
        models.push(model(encoder.id(), about));
    }
    models
}
