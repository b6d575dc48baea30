//! `/admin/v1/budgets`: what is left of every budget, and a new limit for one.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::body;
use crate::budgets::{BudgetStatus, Refused};
use crate::house::House;
use crate::openai::error::{ApiError, shown};

/// A number and its name.
const CHANGE_MAX: body::Limit = body::Limit {
    bytes: 1 << 10,
    by: "the limit of a change of a budget",
};

#[derive(Serialize)]
pub struct Budgets {
    budgets: Vec<BudgetStatus>,
}

pub async fn list(State(house): State<Arc<House>>) -> Json<Budgets> {
    Json(Budgets {
        budgets: house.budgets.status(),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    limit: f64,
}

/// `PUT /admin/v1/budgets/{name}` with `{"limit": …}`, in the budget's unit. The next request
/// sees it; the next start reads the configuration again.
pub async fn change(
    State(house): State<Arc<House>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<BudgetStatus>, ApiError> {
    let (parts, body) = request.into_parts();
    let bytes = body::json(&parts.headers, body, CHANGE_MAX).await?;
    let change: Change = serde_json::from_slice(&bytes)
        .map_err(|e| ApiError::bad_request(format!("this is no change of a budget: {e}")))?;
    let changed = house.budgets.set_limit(&name, change.limit);
    changed.map(Json).map_err(|refused| match refused {
        Refused::Unknown(known) => {
            let what = format!(
                "there is no budget {}; there are: {}",
                shown(&name),
                known.join(", ")
            );
            let error = ApiError::new(StatusCode::NOT_FOUND, "not_found_error", what);
            error.code("unknown_budget")
        }
        Refused::Limit(max) => {
            let what = format!("limit is {}, expected 0 to {max}", change.limit);
            ApiError::invalid("limit", what)
        }
    })
}
