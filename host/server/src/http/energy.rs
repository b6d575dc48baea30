//! `/v1/requests/{id}/energy`: the receipt of a request, settled a moment after its answer.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::bearer;
use crate::house::House;
use crate::openai::error::{ApiError, shown};
use crate::openai::request::N_MAX;

pub async fn receipt(
    State(house): State<Arc<House>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    house.door.tenant(bearer(request.headers()))?;
    let Some(energy) = house.energy.receipt(&id, N_MAX as u32) else {
        let what = format!(
            "no energy is known of request {}: it is unknown or long ago, a remote tier that \
             states no joules_per_token answered it, or this host measures none (see [energy] in \
             the configuration)",
            shown(&id)
        );
        let error = ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", what);
        return Err(error.code("energy_unknown"));
    };
    Ok(Json(
        json!({"id": id, "object": "energy.receipt", "energy": energy}),
    ))
}
