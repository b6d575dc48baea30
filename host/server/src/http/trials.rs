//! `/admin/v1/policies/{hook}/shadow` and `/canary`: candidates.
//!
//! `PUT` starts one with the component in its body (a canary without a body goes on from
//! the hook's shadow), `GET` shows it or the last one, `DELETE` stops it, `POST …/promote`
//! lets its candidate serve.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::routing::{post, put};
use axum::{Json, Router};
use homeostat_hooks::Hook;
use homeostat_policy::{CanaryChanges, StickTo, TrialError, TrialMode, TrialStatus};

use super::admin;
use crate::house::House;
use crate::openai::error::{ApiError, shown};

type Answer = Result<Json<TrialStatus>, ApiError>;
type Words = HashMap<String, String>;

pub fn routes() -> Router<Arc<House>> {
    [TrialMode::Shadow, TrialMode::Canary]
        .into_iter()
        .fold(Router::new(), |router, mode| {
            let path = format!("/admin/v1/policies/{{hook}}/{}", mode.as_str());
            let start = move |state, hook, query, request| start(mode, state, hook, query, request);
            let show = move |state, hook| show(mode, state, hook);
            let stop = move |state, hook| stop(mode, state, hook);
            let promote = move |state, hook| promote(mode, state, hook);
            router
                .route(&path, put(start).get(show).delete(stop))
                .route(&format!("{path}/promote"), post(promote))
        })
}

async fn start(
    mode: TrialMode,
    State(house): State<Arc<House>>,
    Path(word): Path<String>,
    Query(query): Query<Words>,
    request: Request,
) -> Answer {
    let hook = admin::hook(&word)?;
    let of_canary: &[&str] = match mode {
        TrialMode::Shadow => &[],
        TrialMode::Canary => &["share", "stick_to"],
    };
    admin::only(&[&admin::OFFER_KEYS, of_canary].concat(), &query)?;
    let changes = changes(&query)?;
    let offer = admin::offer(&house, &word, &query, request).await?;
    let policies = house.policies.clone();
    let started = tokio::task::spawn_blocking(move || match mode {
        TrialMode::Shadow => policies.start_shadow(hook, offer),
        TrialMode::Canary => {
            let offer = Some(offer).filter(|offer| !offer.bytes.is_empty());
            policies.start_canary(hook, offer, changes)
        }
    });
    let started = started.await;
    let started = started.map_err(|e| ApiError::host(format!("the admission failed: {e}")))?;
    answer(started)
}

async fn show(
    mode: TrialMode,
    State(house): State<Arc<House>>,
    Path(word): Path<String>,
) -> Answer {
    let hook = admin::hook(&word)?;
    let last = house.policies.trial(hook).filter(|t| t.mode == mode);
    answer(last.ok_or(TrialError::NoneRuns(hook, mode)))
}

async fn stop(
    mode: TrialMode,
    State(house): State<Arc<House>>,
    Path(word): Path<String>,
) -> Answer {
    let hook = admin::hook(&word)?;
    answer(house.policies.stop_trial(hook, mode))
}

async fn promote(
    mode: TrialMode,
    State(house): State<Arc<House>>,
    Path(word): Path<String>,
) -> Answer {
    let hook: Hook = admin::hook(&word)?;
    let policies = house.policies.clone();
    // Where it takes over state, an admission that runs is waited for.
    let ended = tokio::task::spawn_blocking(move || policies.promote_trial(hook, mode)).await;
    let ended = ended.map_err(|e| ApiError::host(format!("the promotion failed: {e}")))?;
    answer(ended)
}

/// `share` and `stick_to` of a query.
fn changes(query: &Words) -> Result<CanaryChanges, ApiError> {
    let share = query.get("share").map(|text| {
        text.parse::<f64>().map_err(|_| {
            let what = format!("share is {}, expected a number", shown(text));
            ApiError::invalid("share", what)
        })
    });
    let stick_to = query.get("stick_to").map(|text| {
        StickTo::from_word(text).ok_or_else(|| {
            let what = format!(
                "stick_to is {}, expected conversation, tenant or request",
                shown(text)
            );
            ApiError::invalid("stick_to", what)
        })
    });
    Ok(CanaryChanges {
        share: share.transpose()?,
        stick_to: stick_to.transpose()?,
    })
}

fn answer(trial: Result<TrialStatus, TrialError>) -> Answer {
    trial.map(Json).map_err(|error| {
        let text = error.to_string();
        let wrong = |status| ApiError::new(status, "invalid_request_error", &text);
        match error {
            TrialError::Refused(refusal) => admin::refused(&refusal),
            TrialError::Running { .. } => wrong(StatusCode::CONFLICT).code("trial_runs"),
            TrialError::NoneRuns(..) => wrong(StatusCode::NOT_FOUND).code("no_trial"),
            TrialError::Parameter(_) => ApiError::invalid("share", &text),
            TrialError::Host(_) => ApiError::host(text),
        }
    })
}
