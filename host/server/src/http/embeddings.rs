//! `/v1/embeddings`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use homeostat_cascade::Purse as _;
use tokio::sync::OwnedSemaphorePermit;

use super::{RequestId, bearer, body, header_text};
use crate::budgets::Purse;
use crate::energy::Spending;
use crate::house::House;
use crate::openai::embeddings::{self, AskedEmbeddings};
use crate::openai::error::ApiError;
use crate::tiers::{Embedder, as_candidate};

/// Texts that are computed and booked together: a few batches of the encoder's own. While a call of
/// it runs, nothing that happens on any device is settled, so a call must be short.
const BOOKED: usize = 32;

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
        let counts = count(encoder, &texts)?;
        let mut tokens_read = 0;
        let vectors = self.compute(&texts, &counts, &mut tokens_read);
        // What was read before an error is paid as well.
        if let Some(purse) = self.purse.as_ref().filter(|_| tokens_read > 0) {
            purse.has_read(encoder.id(), tokens_read);
        }
        Ok(embeddings::answer(
            encoder.id(),
            &vectors?,
            self.asked.base64,
            tokens_read,
            self.spending.receipt(),
        ))
    }

    /// A vector for each of the texts, which have so many tokens each; `tokens_read` grows with
    /// those that were read, whatever becomes of the rest.
    fn compute(
        &self,
        texts: &[&str],
        counts: &[u32],
        tokens_read: &mut u32,
    ) -> Result<Vec<Vec<f32>>, ApiError> {
        // As the encoder would, were it asked for all of them: texts of like length go together.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|i| counts[*i]);
        let mut vectors = vec![Vec::new(); texts.len()];
        for part in order.chunks(BOOKED) {
            let chosen: Vec<&str> = part.iter().map(|i| texts[*i]).collect();
            let tokens: u32 = part.iter().map(|i| counts[*i]).sum();
            let encoding = self.spending.begin_encoding();
            let computed = self.encoder.embed(&chosen).map_err(ApiError::host)?;
            encoding.end(tokens);
            *tokens_read += tokens;
            for (i, vector) in part.iter().zip(computed) {
                vectors[*i] = vector;
            }
        }
        Ok(vectors)
    }
}

/// Tokens of each text, if the encoder can read all of them.
fn count(encoder: &dyn Embedder, texts: &[&str]) -> Result<Vec<u32>, ApiError> {
    let limit = encoder.max_tokens();
    let mut counts = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate() {
        let tokens = encoder.count_tokens(text).map_err(ApiError::host)?;
        if tokens > limit {
            let what =
                format!("input[{i}] has {tokens} tokens, this encoder reads at most {limit}");
            return Err(ApiError::invalid("input", what).code("context_length_exceeded"));
        }
        counts.push(tokens as u32);
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::Mutex;
    use std::time::Instant;

    use tokio::sync::Semaphore;

    use crate::config::EnergyConfig;
    use crate::energy::Energy;

    /// A byte is a token, and a vector tells the length of its text. Breaks at the longest.
    #[derive(Default)]
    struct Lengths {
        calls: Mutex<Vec<usize>>,
    }

    const TOO_MUCH: usize = 70;

    impl Embedder for Lengths {
        fn id(&self) -> &str {
            "lengths"
        }
        fn dimensions(&self) -> usize {
            1
        }
        fn max_tokens(&self) -> usize {
            TOO_MUCH
        }
        fn count_tokens(&self, text: &str) -> Result<usize, String> {
            Ok(text.len())
        }
        fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String> {
            self.calls.lock().unwrap().push(texts.len());
            match texts.iter().any(|text| text.len() == TOO_MUCH) {
                true => Err("it broke".into()),
                false => Ok(texts.iter().map(|t| vec![t.len() as f32]).collect()),
            }
        }
    }

    /// Texts of so many bytes: their vectors if nothing broke, the tokens that were read, and how
    /// many texts each call had.
    fn computed(lengths: &[usize]) -> (Option<Vec<f32>>, u32, Vec<usize>) {
        let texts: Vec<String> = lengths.iter().map(|n| "x".repeat(*n)).collect();
        let asked = AskedEmbeddings {
            model: None,
            input: texts.clone(),
            base64: false,
            dimensions: None,
            ignored: Vec::new(),
        };
        let config = EnergyConfig::default();
        let energy = Arc::new(Energy::new(&config, Path::new("/none"), Instant::now()));
        let permits = Arc::new(Semaphore::new(1));
        let encoder = Arc::new(Lengths::default());
        let work = Work {
            encoder: encoder.clone(),
            asked,
            purse: None,
            spending: energy.begin("r", 1),
            _permit: permits.try_acquire_owned().expect("it is free"),
        };
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let counts = count(&*encoder, &texts).expect("none is too long");
        let mut tokens_read = 0;
        let vectors = work.compute(&texts, &counts, &mut tokens_read).ok();
        let calls = encoder.calls.lock().unwrap().clone();
        (vectors.map(|all| all.concat()), tokens_read, calls)
    }

    #[test]
    fn many_texts_are_booked_in_parts_and_what_was_read_before_an_error_counts() {
        // The longest first: they come back in the order in which they were asked for.
        let lengths: Vec<usize> = (1..TOO_MUCH).rev().collect();
        let told: Vec<f32> = lengths.iter().map(|n| *n as f32).collect();
        let sum = |lengths: &[usize]| lengths.iter().sum::<usize>() as u32;
        let expected = (Some(told), sum(&lengths), vec![32, 32, 5]);
        assert_eq!(computed(&lengths), expected);
        let lengths: Vec<usize> = (1..=TOO_MUCH).rev().collect();
        let read: Vec<usize> = (1..=64).collect();
        assert_eq!(computed(&lengths), (None, sum(&read), vec![32, 32, 6]));
    }
}
