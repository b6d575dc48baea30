//! `/v1/embeddings`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use homeostat_cascade::Purse as _;
use homeostat_hooks::{TierKind, TierView};
use tokio::sync::OwnedSemaphorePermit;

use super::{RequestId, bearer, body, header_text};
use crate::budgets::Purse;
use crate::energy::Spending;
use crate::house::House;
use crate::openai::embeddings::{self, AskedEmbeddings};
use crate::openai::error::ApiError;
use crate::tiers::Embedder;

pub async fn embeddings(
    State(house): State<Arc<House>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let key = bearer(&parts.headers);
    let tenant = house.door.tenant(key)?;
    let permit = house.door.enter()?;
    let body = body::json(&parts.headers, body, body::Limit::of_clients(&house)).await?;
    let asked = AskedEmbeddings::parse(&body)?;
    let encoder = chosen(&house, asked.model.as_deref())?;
    asked.check_dimensions(encoder.dimensions())?;
    let bytes = asked.input.iter().map(String::len).sum();
    let purse = house.budgets.purse_of_texts(&id.0, (tenant, key), bytes);
    if let Some(purse) = &purse {
        purse.open(vec![as_candidate(&*encoder)])?;
    }
    let paid_by = purse.as_ref().map(|purse| purse.paid_by().join(","));
    let ignored = asked.ignored.join(",");
    let work = Work {
        encoder,
        asked,
        purse,
        spending: house.energy.begin(&id.0, 1),
        _permit: permit,
    };
    let text = tokio::task::spawn_blocking(move || work.embed())
        .await
        .map_err(|e| ApiError::host(format!("the encoder failed: {e}")))??;
    let mut response = ([(header::CONTENT_TYPE, "application/json")], text).into_response();
    let mut put = |name: &'static str, text: &str| {
        let name = HeaderName::from_static(name);
        response.headers_mut().insert(name, header_text(text));
    };
    if let Some(budgets) = paid_by {
        put("x-homeostat-budget", &budgets);
    }
    if !ignored.is_empty() {
        put("x-homeostat-ignored", &ignored);
    }
    Ok(response)
}

/// The encoder as budgets see what they pay: what it takes is learned from its receipts.
fn as_candidate(encoder: &dyn Embedder) -> TierView {
    TierView {
        id: encoder.id().to_string(),
        kind: TierKind::Local,
        ..TierView::default()
    }
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

/// Texts to embed, and what goes with them: a client that leaves does not make room for another
/// while its texts are still being computed, and pays for them.
struct Work {
    encoder: Arc<dyn Embedder>,
    asked: AskedEmbeddings,
    purse: Option<Arc<Purse>>,
    spending: Spending,
    _permit: OwnedSemaphorePermit,
}

impl Work {
    /// Blocks while it computes.
    fn embed(self) -> Result<String, ApiError> {
        let encoder = &*self.encoder;
        let texts: Vec<&str> = self.asked.input.iter().map(String::as_str).collect();
        let prompt_tokens = count(encoder, &texts)?;
        let encoding = self.spending.begin_encoding();
        let vectors = encoder.embed(&texts).map_err(ApiError::host)?;
        encoding.end(prompt_tokens);
        if let Some(purse) = &self.purse {
            purse.has_read(encoder.id(), prompt_tokens);
        }
        Ok(embeddings::answer(
            encoder.id(),
            &vectors,
            self.asked.base64,
            prompt_tokens,
            self.spending.receipt(),
        ))
    }
}

/// Tokens of all texts, if the encoder can read each of them.
fn count(encoder: &dyn Embedder, texts: &[&str]) -> Result<u32, ApiError> {
    let limit = encoder.max_tokens();
    let mut sum = 0;
    for (i, text) in texts.iter().enumerate() {
        let tokens = encoder.count_tokens(text).map_err(ApiError::host)?;
        if tokens > limit {
            let what =
                format!("input[{i}] has {tokens} tokens, this encoder reads at most {limit}");
            return Err(ApiError::invalid("input", what).code("context_length_exceeded"));
        }
        sum += tokens as u32;
    }
    Ok(sum)
}
