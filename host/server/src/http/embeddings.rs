//! `/v1/embeddings`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};

use super::{bearer, body, header_text};
use crate::house::House;
use crate::openai::embeddings::{self, AskedEmbeddings};
use crate::openai::error::ApiError;
use crate::tiers::Embedder;

pub async fn embeddings(
    State(house): State<Arc<House>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    house.door.tenant(bearer(&parts.headers))?;
    let permit = house.door.enter()?;
    let body = body::json(&parts.headers, body, body::Limit::of_clients(&house)).await?;
    let asked = AskedEmbeddings::parse(&body)?;
    let encoder = chosen(&house, asked.model.as_deref())?;
    asked.check_dimensions(encoder.dimensions())?;
    let ignored = asked.ignored.join(",");
    let work = tokio::task::spawn_blocking(move || {
        // The permit goes with the work: a client that leaves does not make room for
        // another while its texts are still being computed.
        let _permit = permit;
        embed(&*encoder, &asked)
    });
    let text = work
        .await
        .map_err(|e| ApiError::host(format!("the encoder failed: {e}")))??;
    let mut response = ([(header::CONTENT_TYPE, "application/json")], text).into_response();
    if !ignored.is_empty() {
        let name = HeaderName::from_static("x-homeostat-ignored");
        response.headers_mut().insert(name, header_text(&ignored));
    }
    Ok(response)
}

fn chosen(house: &House, model: Option<&str>) -> Result<Arc<dyn Embedder>, ApiError> {
    let known: Vec<String> = house.encoder.iter().map(|e| e.id().to_string()).collect();
    match (&house.encoder, model) {
        (Some(encoder), None) => Ok(encoder.clone()),
        (Some(encoder), Some(name)) if name == encoder.id() || name == "auto" => {
            Ok(encoder.clone())
        }
        (None, _) => Err(ApiError::unsupported(
            "model",
            "this host has no encoder ([encoder] enabled = false)",
        )),
        (_, Some(name)) => Err(ApiError::unknown_model(name, &known)),
    }
}

fn embed(encoder: &dyn Embedder, asked: &AskedEmbeddings) -> Result<String, ApiError> {
    let texts: Vec<&str> = asked.input.iter().map(String::as_str).collect();
    let limit = encoder.max_tokens();
    let mut prompt_tokens = 0;
    for (i, text) in texts.iter().enumerate() {
        let tokens = encoder.count_tokens(text).map_err(ApiError::host)?;
        if tokens > limit {
            let what =
                format!("input[{i}] has {tokens} tokens, this encoder reads at most {limit}");
            return Err(ApiError::invalid("input", what).code("context_length_exceeded"));
        }
        prompt_tokens += tokens as u32;
    }
    let vectors = encoder.embed(&texts).map_err(ApiError::host)?;
    Ok(embeddings::answer(
        encoder.id(),
        &vectors,
        asked.base64,
        prompt_tokens,
    ))
}
