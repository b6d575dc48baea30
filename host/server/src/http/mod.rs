//! HTTP: paths, and what every request goes through before its handler.
//!
//! A request has an id from the first byte on; whatever becomes of it, the answer carries
//! the id, and an error is JSON in OpenAI's shape, also for paths that do not exist.

mod admin;
mod answer;
mod body;
mod budgets;
mod embeddings;
mod energy;
mod models;
mod ops;
mod sensors;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod trials;

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use axum::Router;
use axum::extract::{ConnectInfo, MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use futures::FutureExt;

use crate::house::House;
use crate::openai::error::{ApiError, shown};

/// Paths that a wrong one may have meant.
const PATHS: [&str; 19] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/v1/requests/{id}/energy",
    "/healthz",
    "/readyz",
    "/metrics",
    "/admin/v1/policies",
    "/admin/v1/policies/{hook}",
    "/admin/v1/policies/{hook}/rollback",
    "/admin/v1/policies/{hook}/shadow",
    "/admin/v1/policies/{hook}/canary",
    "/admin/v1/state",
    "/admin/v1/state/{policy}",
    "/admin/v1/decisions",
    "/admin/v1/telemetry",
    "/admin/v1/budgets",
    "/admin/v1/budgets/{name}",
];

/// Id of the present request.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// All paths of this server.
pub fn router(house: Arc<House>) -> Router {
    let for_applications = Router::new()
        .route("/v1/chat/completions", post(answer::chat))
        .route("/v1/completions", post(answer::completion))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/requests/{id}/energy", get(energy::receipt));
    let for_operators = Router::new()
        .route("/admin/v1/policies", get(admin::list))
        .route(
            "/admin/v1/policies/{hook}",
            put(admin::put).delete(admin::unload),
        )
        .route("/admin/v1/policies/{hook}/rollback", post(admin::rollback))
        .merge(trials::routes())
        .route("/admin/v1/state", get(admin::states))
        .route(
            "/admin/v1/state/{policy}",
            get(admin::export_state).put(admin::import_state),
        )
        .route("/admin/v1/decisions", get(admin::decisions))
        .route("/admin/v1/decisions/{id}", get(admin::decision))
        .route(
            "/admin/v1/decisions/{id}/explanation",
            get(admin::explanation),
        )
        .route(
            "/admin/v1/telemetry",
            get(admin::telemetry).post(sensors::push),
        )
        .route("/admin/v1/budgets", get(budgets::list))
        .route("/admin/v1/budgets/{name}", put(budgets::change))
        .layer(middleware::from_fn_with_state(house.clone(), admin::guard));
    let for_machines = Router::new()
        .route("/healthz", get(ops::healthz))
        .route("/readyz", get(ops::readyz))
        .route("/metrics", get(ops::metrics));
    for_applications
        .merge(for_operators)
        .merge(for_machines)
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(house.clone(), around))
        .with_state(house)
}

/// What surrounds every request: its id, its line in the log, its count, and a floor
/// under panics.
async fn around(
    axum::extract::State(house): axum::extract::State<Arc<House>>,
    mut request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let id = new_id(request.uri().path());
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>();
    // Unknown paths share one name, or anybody could fill the metrics.
    let path = path.map_or("unknown", MatchedPath::as_str).to_string();
    request.extensions_mut().insert(RequestId(id.clone()));
    let handled = std::panic::AssertUnwindSafe(next.run(request)).catch_unwind();
    let mut response = handled.await.unwrap_or_else(|_| {
        ApiError::host("this host has a defect that this request met; others go on").into_response()
    });
    let status = response.status();
    if let Ok(value) = HeaderValue::from_str(&id) {
        let name = HeaderName::from_static("x-request-id");
        response.headers_mut().insert(name, value);
    }
    house.metrics.http_request(&path, status.as_u16());
    let ms = began.elapsed().as_secs_f64() * 1e3;
    let status = status.as_u16();
    if status >= 500 {
        tracing::warn!(target: "homeostat::http", id, %method, path, status, ms, "http");
    } else {
        tracing::debug!(target: "homeostat::http", id, %method, path, status, ms, "http");
    }
    response
}

async fn unknown_path(request: Request) -> ApiError {
    let path = request.uri().path();
    let nearest = PATHS
        .iter()
        .min_by_key(|known| strsim::damerau_levenshtein(path, known))
        .expect("there are paths");
    let what = format!("there is no path {}; did you mean {nearest}?", shown(path));
    ApiError::new(StatusCode::NOT_FOUND, "not_found_error", what).code("unknown_path")
}

async fn wrong_method(request: Request) -> ApiError {
    let what = format!(
        "{} does not take {}; the header Allow says what it takes",
        request.uri().path(),
        request.method()
    );
    let status = StatusCode::METHOD_NOT_ALLOWED;
    ApiError::new(status, "invalid_request_error", what).code("method_not_allowed")
}

/// An id that nobody can guess: whoever knows it may read the story of the request.
fn new_id(path: &str) -> String {
    static KEYS: LazyLock<(RandomState, RandomState)> = LazyLock::new(Default::default);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let kind = match path {
        "/v1/chat/completions" => "chatcmpl",
        "/v1/completions" => "cmpl",
        _ => "req",
    };
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let (high, low) = (KEYS.0.hash_one(count), KEYS.1.hash_one(count));
    format!("{kind}-{high:016x}{low:016x}")
}

/// The token of `Authorization: Bearer <token>`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whether the peer is on this machine; not when nobody can tell.
fn from_loopback(request: &Request) -> bool {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    peer.is_some_and(|ConnectInfo(addr)| addr.ip().to_canonical().is_loopback())
}

/// Text as a header can carry it: printable ASCII, not endless.
fn header_text(text: &str) -> HeaderValue {
    const CHARS_MAX: usize = 500;
    let plain: String = text
        .chars()
        .take(CHARS_MAX)
        .map(|c| if (' '..='~').contains(&c) { c } else { '?' })
        .collect();
    HeaderValue::from_str(&plain).expect("printable ASCII is a header value")
}
