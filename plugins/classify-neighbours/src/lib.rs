//! How hard is a request? As hard as the most similar ones were.
//!
//! The component brings requests whose outcome is known ([`Neighbours`]). A new one is embedded
//! by the host's encoder; the nearest of the known ones vote, each by its similarity. Where even
//! the nearest is far, they know nothing of it, and the votes count as little: then the shares
//! of ordinary traffic are answered, with little confidence.
//!
//! Without its encoder it answers an error, and the host's fallback classifies.

mod neighbours;

use homeostat_sdk::*;

pub use neighbours::{Label, Neighbours};

/// The host's encoder unless the operator names another; the neighbours are made with it.
const ENCODER: &str = "all-minilm-l6-v2";
/// Neighbours that vote: chosen by cross-validation on the fitted part (`neighbours.txt`).
const VOTERS: usize = 64;
/// Characters that are embedded: what the encoder reads of almost any text.
const CHARS_MAX: usize = 1000;
/// Similarity of the nearest from which on the votes count, and at which they count in full.
const KNOWN: (f32, f32) = (0.25, 0.55);
/// Shares of simple, medium and complex requests in ordinary traffic.
const ORDINARY: [f32; 3] = [0.55, 0.3, 0.15];
/// What neighbours know at best: right more often than chance, not often.
const CONFIDENCE_MAX: f32 = 0.7;

struct Nearest;

impl Classifier for Nearest {
    fn classify(request: &Request, _: &Snapshot) -> Result<Classification> {
        let neighbours = Neighbours::embedded();
        let voters = voters(config("voters"), neighbours.len())?;
        let encoder = config("encoder").unwrap_or_else(|| ENCODER.to_owned());
        let text: String = request.question().chars().take(CHARS_MAX).collect();
        if text.trim().is_empty() {
            return Ok(classification(ORDINARY, 0.0, 0.0));
        }
        let vector = Model::open(&encoder)
            .and_then(|model| embed(&model, &text))
            .map_err(|e| Error::Unavailable(format!("no embedding by {encoder}: {e}")))?;
        classify(&neighbours, &vector, voters)
    }
}

export_classifier!(Nearest);

/// Of a text that is longer than the encoder reads, its first half.
fn embed(model: &Model, text: &str) -> Result<Vec<f32>> {
    match model.embed(text) {
        Err(Error::LimitExceeded(_)) => {
            let half = text.floor_char_boundary(text.len() / 2);
            model.embed(&text[..half])
        }
        other => other,
    }
}

/// How many vote.
///
/// # Errors
/// When the setting is no number of neighbours.
pub fn voters(setting: Option<String>, known: usize) -> Result<usize> {
    match setting {
        None => Ok(VOTERS.min(known)),
        Some(text) => match text.parse() {
            Ok(n) if (1..=known).contains(&n) => Ok(n),
            _ => Err(Error::InvalidArgument(format!(
                "setting voters is {text:?}, expected 1 to {known}"
            ))),
        },
    }
}

/// The classification of a request with this embedding, without a host.
///
/// # Errors
/// When the embedding is of another length or holds what is no number: then it is not of the
/// encoder that the neighbours were made with.
pub fn classify(
    neighbours: &Neighbours<'_>,
    vector: &[f32],
    voters: usize,
) -> Result<Classification> {
    if vector.len() != neighbours.dimensions() || !vector.iter().all(|x| x.is_finite()) {
        return Err(Error::Unavailable(format!(
            "the embedding has {} numbers; the neighbours have {} finite ones",
            vector.len(),
            neighbours.dimensions()
        )));
    }
    let mut near = neighbours.similarities(vector);
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let nearest = near.first().map_or(0.0, |n| n.0);
    let trust = ((nearest - KNOWN.0) / (KNOWN.1 - KNOWN.0)).clamp(0.0, 1.0);
    // One vote of ordinary traffic, so that no share is ever 0.
    let mut votes = ORDINARY;
    for (similarity, label) in near.into_iter().take(voters) {
        votes[label as usize] += similarity.max(0.0);
    }
    let sum: f32 = votes.iter().sum();
    let mixed = |i: usize| trust * votes[i] / sum + (1.0 - trust) * ORDINARY[i];
    let shares = [mixed(0), mixed(1), mixed(2)];
    Ok(classification(shares, nearest, CONFIDENCE_MAX * trust))
}

fn classification(shares: [f32; 3], nearest: f32, confidence: f32) -> Classification {
    let [p_simple, p_medium, p_complex] = shares;
    Classification {
        p_simple,
        p_medium,
        p_complex,
        confidence,
        dimensions: vec![("similarity".into(), nearest.clamp(0.0, 1.0))],
        ..Classification::default()
    }
}

#[cfg(test)]
mod tests;
