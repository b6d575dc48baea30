//! How hard is a request? As hard as the most similar ones were.
//!
//! The component brings requests whose outcome is known ([`Neighbours`]). A new one is embedded
//! by the host's encoder; the nearest of the known ones vote, each by its similarity. Where even
//! the nearest is far, they know nothing of it, and the votes count as little: then the shares
//! of ordinary traffic are answered, with little confidence.
//!
//! With `kind` = `clusters` the known requests are asked in groups ([`Clusters`]): the shares of
//! the nearest group are the answer.
//!
//! Without its encoder it answers an error, and the host's fallback classifies.

mod clusters;
mod neighbours;

use homeostat_sdk::*;

pub use clusters::Clusters;
pub use neighbours::{Label, Neighbours};

/// The host's encoder unless the operator names another; the neighbours are made with it.
const ENCODER: &str = "all-minilm-l6-v2";
/// Neighbours that vote: chosen by cross-validation on the fitted part (`neighbours.txt`).
const VOTERS: usize = 64;
/// Characters that are embedded: what the encoder reads of almost any text.
const CHARS_MAX: usize = 1000;
/// Similarity of the nearest from which on the votes count, and at which they count in full.
const KNOWN: (f32, f32) = (0.25, 0.55);
/// The same for clusters, whose centres nothing is as near to as to its neighbours: as many
/// requests lie below them (`clusters.txt`).
const CLUSTERS_KNOWN: (f32, f32) = (0.08, 0.43);
/// Shares of simple, medium and complex requests in ordinary traffic.
const ORDINARY: [f32; 3] = [0.55, 0.3, 0.15];
/// What neighbours know at best: right more often than chance, not often.
const CONFIDENCE_MAX: f32 = 0.7;

struct Nearest;

impl Classifier for Nearest {
    fn classify(request: &Request, _: &Snapshot) -> Result<Classification> {
        let kind = Kind::read(config)?;
        let encoder = config("encoder").unwrap_or_else(|| ENCODER.to_owned());
        let text: String = request.question().chars().take(CHARS_MAX).collect();
        if text.trim().is_empty() {
            return Ok(classification(ORDINARY, 0.0, 0.0));
        }
        let vector = Model::open(&encoder)
            .and_then(|model| embed(&model, &text))
            .map_err(|e| Error::Unavailable(format!("no embedding by {encoder}: {e}")))?;
        match kind {
            Kind::Neighbours { voters } => classify(&Neighbours::embedded(), &vector, voters),
            Kind::Clusters => classify_by_cluster(&Clusters::embedded(), &vector),
        }
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

/// Who is asked about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The most similar requests.
    Neighbours {
        /// How many of them vote.
        voters: usize,
    },
    /// The most similar group of requests.
    Clusters,
}

impl Kind {
    /// As the operator says.
    ///
    /// # Errors
    /// When a setting cannot be read, or is of the other kind.
    pub fn read(config: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let setting = config("voters");
        match (config("kind").as_deref(), setting) {
            (None | Some("neighbours"), setting) => Ok(Self::Neighbours {
                voters: voters(setting, Neighbours::embedded().len())?,
            }),
            (Some("clusters"), None) => Ok(Self::Clusters),
            (Some("clusters"), Some(_)) => Err(Error::InvalidArgument(
                "setting voters is for kind neighbours: of clusters the nearest decides".into(),
            )),
            (Some(other), _) => Err(Error::InvalidArgument(format!(
                "setting kind is {other:?}, expected neighbours or clusters"
            ))),
        }
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
    fits(vector, neighbours.dimensions(), "neighbours")?;
    let mut near = neighbours.similarities(vector);
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let nearest = near.first().map_or(0.0, |n| n.0);
    let mut votes = [0.0; 3];
    for (similarity, label) in near.into_iter().take(voters) {
        votes[label as usize] += similarity.max(0.0);
    }
    Ok(mixed(votes, nearest, KNOWN))
}

/// The same by the nearest cluster.
///
/// # Errors
/// As [`classify`].
pub fn classify_by_cluster(clusters: &Clusters<'_>, vector: &[f32]) -> Result<Classification> {
    fits(vector, clusters.dimensions(), "clusters")?;
    let (similarity, counts) = clusters.nearest(vector);
    Ok(mixed(counts.map(|c| c as f32), similarity, CLUSTERS_KNOWN))
}

fn fits(vector: &[f32], dimensions: usize, known: &str) -> Result<()> {
    if vector.len() == dimensions && vector.iter().all(|x| x.is_finite()) {
        return Ok(());
    }
    Err(Error::Unavailable(format!(
        "the embedding has {} numbers; the {known} have {dimensions} finite ones",
        vector.len()
    )))
}

/// Votes as far as they know the request, and ordinary traffic for the rest.
fn mixed(votes: [f32; 3], nearest: f32, known: (f32, f32)) -> Classification {
    let trust = ((nearest - known.0) / (known.1 - known.0)).clamp(0.0, 1.0);
    // One vote of ordinary traffic, so that no share is ever 0.
    let sum: f32 = votes.iter().sum::<f32>() + ORDINARY.iter().sum::<f32>();
    let share = |i: usize| trust * (votes[i] + ORDINARY[i]) / sum + (1.0 - trust) * ORDINARY[i];
    classification(
        [share(0), share(1), share(2)],
        nearest,
        CONFIDENCE_MAX * trust,
    )
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
