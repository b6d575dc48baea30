//! `/admin/v1`: for the operator on this machine.
//!
//! Replacing a policy is running somebody's code, so the door is narrow: loopback peers,
//! the token if there is one, and no browsers. A page in a browser on this machine is a
//! loopback peer too. Browsers betray themselves by the `Origin` header, but not where they
//! ask what they take for the page's own server; a page whose name was pointed here
//! (DNS rebinding) is told by the `Host` header, which is that name.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use homeostat_hooks::{Hook, Snapshot};
use homeostat_policy::signature::is_name;
use homeostat_policy::{
    AdmissionError, ExplainError, NothingKept, Offer, Report, SlotStatus, StateExport, StateStatus,
    parse_options,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{bearer, body, from_loopback};
use crate::house::House;
use crate::openai::error::{ApiError, shown};

/// Decisions in a list.
const RECENT: usize = 50;

/// Who may pass.
pub async fn guard(
    State(house): State<Arc<House>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let headers = request.headers();
    let host = headers
        .get(header::HOST)
        .map(|host| host.to_str().unwrap_or("?"))
        .or_else(|| request.uri().authority().map(|a| a.as_str()));
    house
        .door
        .admin(from_loopback(&request), bearer(headers), host)?;
    if headers.contains_key(header::ORIGIN) {
        let what = "the admin API does not answer to pages in a browser";
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "permission_error",
            what,
        ));
    }
    Ok(next.run(request).await)
}

/// The policies of all hooks, with what is kept and what was tried last.
#[derive(Serialize)]
pub struct Policies {
    policies: Vec<SlotStatus>,
}

pub async fn list(State(house): State<Arc<House>>) -> Json<Policies> {
    Json(Policies {
        policies: house.policies.status(),
    })
}

/// `PUT /admin/v1/policies/{hook}?name=…` with a component or a bundle as its body;
/// `&options=…` is the text of a `.toml` as it lies beside a component, and
/// `&allow-downgrade=true` takes an older revision of a signed one.
pub async fn put(
    State(house): State<Arc<House>>,
    Path(word): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    request: Request,
) -> Result<Json<Report>, ApiError> {
    let hook = hook(&word)?;
    only(&OFFER_KEYS, &query)?;
    let offer = offer(&house, &word, &query, request).await?;
    let offer = Offer {
        hooks: Some(vec![hook]),
        ..offer
    };
    // Compiling takes a processor for up to seconds.
    let policies = house.policies.clone();
    let put = tokio::task::spawn_blocking(move || policies.put(offer)).await;
    let put = put.map_err(|e| ApiError::host(format!("the admission failed: {e}")))?;
    put.map(Json).map_err(|refusal| refused(&refusal))
}

/// What a query can say of a component.
pub(super) const OFFER_KEYS: [&str; 3] = ["name", "options", "allow-downgrade"];

/// A query with a key that nobody reads is refused: what was meant would not happen.
pub(super) fn only(known: &[&str], query: &HashMap<String, String>) -> Result<(), ApiError> {
    let strange = query.keys().find(|key| !known.contains(&key.as_str()));
    strange.map_or(Ok(()), |key| {
        let what = format!(
            "{} is unknown here, expected {}",
            shown(key),
            known.join(", ")
        );
        Err(ApiError::invalid(key.as_str(), what))
    })
}

/// The component in a request's body, with the name and the options in its query.
pub(super) async fn offer(
    house: &House,
    word: &str,
    query: &HashMap<String, String>,
    request: Request,
) -> Result<Offer, ApiError> {
    let name = query.get("name").map_or(word, String::as_str);
    if !is_name(name) {
        let what = format!(
            "name is {}, expected 1 to 64 letters, digits, '-', '_' or '.'",
            shown(name)
        );
        return Err(ApiError::invalid("name", what));
    }
    let name = name.to_string();
    let options = query.get("options").map_or("", String::as_str);
    let options = parse_options(options).map_err(|e| ApiError::invalid("options", e.text))?;
    let (parts, body) = request.into_parts();
    let bytes = body::bytes(&parts.headers, body, body::Limit::of_components(house)).await?;
    Ok(Offer {
        name,
        options,
        bytes: bytes.into(),
        allow_downgrade: query.get("allow-downgrade").is_some_and(|v| v == "true"),
        ..Offer::default()
    })
}

/// A component that was not admitted.
pub(super) fn refused(refusal: &AdmissionError) -> ApiError {
    let status = StatusCode::UNPROCESSABLE_ENTITY;
    let code = format!("refused_at_{}", refusal.stage.as_str());
    ApiError::new(status, "policy_refused", refusal.to_string()).code(&code)
}

/// `POST /admin/v1/policies/{hook}/rollback?to=…`: to the kept generation of that number,
/// or to the latest.
pub async fn rollback(
    State(house): State<Arc<House>>,
    Path(word): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<SlotStatus>, ApiError> {
    let hook = hook(&word)?;
    let to = query.get("to").map(|text| {
        text.parse::<u64>().map_err(|_| {
            let what = format!("to is {}, expected the number of a generation", shown(text));
            ApiError::invalid("to", what)
        })
    });
    let (to, policies) = (to.transpose()?, house.policies.clone());
    // What was kept over a restart is compiled first.
    let back = tokio::task::spawn_blocking(move || match to {
        None => policies.rollback(hook),
        Some(generation) => policies.rollback_to(hook, generation),
    });
    let back = back.await;
    let back = back.map_err(|e| ApiError::host(format!("the rollback failed: {e}")))?;
    back.map(Json).map_err(|nothing: NothingKept| {
        let status = StatusCode::CONFLICT;
        ApiError::new(status, "invalid_request_error", nothing.to_string()).code("nothing_kept")
    })
}

pub async fn unload(
    State(house): State<Arc<House>>,
    Path(word): Path<String>,
) -> Result<Json<SlotStatus>, ApiError> {
    Ok(Json(house.policies.unload(hook(&word)?)))
}

pub(super) fn hook(word: &str) -> Result<Hook, ApiError> {
    let found = Hook::ALL.into_iter().find(|h| h.as_str() == word);
    found.ok_or_else(|| {
        let what = format!(
            "there is no hook {}; hooks are classify, route, validate",
            shown(word)
        );
        ApiError::new(StatusCode::NOT_FOUND, "not_found_error", what).code("unknown_hook")
    })
}

/// How much every policy keeps.
pub async fn states(State(house): State<Arc<House>>) -> Json<Value> {
    Json(json!({"state": house.policies.state_status()}))
}

/// All that a policy keeps.
pub async fn export_state(
    State(house): State<Arc<House>>,
    Path(policy): Path<String>,
) -> Result<Json<StateExport>, ApiError> {
    house
        .policies
        .export_state(&policy)
        .map(Json)
        .ok_or_else(|| {
            let what = format!(
                "no policy {} was loaded since the start; /admin/v1/state lists those that were",
                shown(&policy)
            );
            ApiError::new(StatusCode::NOT_FOUND, "not_found_error", what).code("unknown_policy")
        })
}

/// `PUT /admin/v1/state/{policy}` with an export as its body: it takes the place of all that
/// the policy keeps.
pub async fn import_state(
    State(house): State<Arc<House>>,
    Path(policy): Path<String>,
    request: Request,
) -> Result<Json<StateStatus>, ApiError> {
    let (parts, body) = request.into_parts();
    let bytes = body::bytes(&parts.headers, body, body::Limit::of_components(&house)).await?;
    let wrong = |what: String| ApiError::invalid("body", what);
    let state: StateExport = serde_json::from_slice(&bytes)
        .map_err(|e| wrong(format!("this is no exported state: {e}")))?;
    if state.policy != policy {
        let what = format!("this is the state of {}", shown(&state.policy));
        return Err(wrong(format!("{what}, not of {}", shown(&policy))));
    }
    let policies = house.policies.clone();
    let import = tokio::task::spawn_blocking(move || policies.import_state(&state)).await;
    let import = import.map_err(|e| ApiError::host(format!("the import failed: {e}")))?;
    import.map(Json).map_err(wrong)
}

/// The latest decisions, newest first, one line each.
pub async fn decisions(State(house): State<Arc<House>>) -> Json<Value> {
    let recent = house.cascade.recent(RECENT);
    let lines = recent.iter().map(|r| {
        json!({
            "id": r.id, "unix_ms": r.unix_ms, "model": r.request.model,
            "ending": r.ending, "steps": r.steps.len(), "fallback": r.fallback(),
            "total_ms": r.total_ms,
        })
    });
    Json(json!({"decisions": lines.collect::<Vec<_>>()}))
}

/// The story of one request.
pub async fn decision(
    State(house): State<Arc<House>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let record = house.cascade.record(&id).ok_or_else(|| {
        let what = format!(
            "there is no decision {}; the latest [cascade] records_max are kept, and a request \
             has one from its end on",
            shown(&id)
        );
        ApiError::new(StatusCode::NOT_FOUND, "not_found_error", what).code("unknown_decision")
    })?;
    let value = serde_json::to_value(&*record);
    value.map(Json).map_err(|e| ApiError::host(e.to_string()))
}

/// `GET …/explanation?set=path=value&set=…`: what every policy was given, asked and answered,
/// and the same from a replay, with these values changed.
pub async fn explanation(
    State(house): State<Arc<House>>,
    Path(id): Path<String>,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Json<Value>, ApiError> {
    let mut set = Vec::new();
    for (key, pair) in query {
        let parts = pair.split_once('=').filter(|_| key == "set");
        let (path, value) = parts.ok_or_else(|| {
            ApiError::invalid("set", "expected set=path=value, with the = in it escaped")
        })?;
        set.push((path.to_string(), value.to_string()));
    }
    // A component may have to be compiled for the replay.
    let policies = house.policies.clone();
    let explained = tokio::task::spawn_blocking(move || policies.explain(&id, &set)).await;
    let explained = explained.map_err(|e| ApiError::host(format!("the replay failed: {e}")))?;
    let explained = explained.map_err(|refused| match refused {
        ExplainError::NotRecorded(why) => {
            ApiError::new(StatusCode::NOT_FOUND, "not_found_error", why).code("not_recorded")
        }
        ExplainError::Refused(why) => ApiError::invalid("set", why),
    })?;
    Ok(Json(
        json!({ "text": explained.text(), "explanation": explained }),
    ))
}

/// The newest snapshot of the machine, as policies see it.
pub async fn telemetry(State(house): State<Arc<House>>) -> Json<Snapshot> {
    Json((*(house.snapshots)()).clone())
}
