//! The models of this host that turn texts into numbers, as the door and policies use them.

use homeostat_engine::{Encoder, PROMPT_VECTOR, PromptClassifier};
use homeostat_hooks::{TierKind, TierView};

/// Turns texts into vectors. A trait, so that the door is tested without a model.
pub trait Embedder: Send + Sync {
    fn id(&self) -> &str;
    fn dimensions(&self) -> usize;
    /// Longest text, control tokens included.
    fn max_tokens(&self) -> usize;
    /// Tokens of a text, control tokens included.
    fn count_tokens(&self, text: &str) -> Result<usize, String>;
    /// One vector per text: of unit length from an encoder, scores by [`PROMPT_VECTOR`] from a
    /// prompt classifier. Blocks while it computes. Whoever asks has counted the tokens: of a
    /// text longer than [`Self::max_tokens`] only the beginning is read.
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String>;
}

/// The encoder as budgets see what they pay: what it takes is learned from its receipts.
pub fn as_candidate(encoder: &dyn Embedder) -> TierView {
    TierView {
        id: encoder.id().to_string(),
        kind: TierKind::Local,
        ..TierView::default()
    }
}

/// One of the engine's under its configured name.
pub struct LocalEncoder<M> {
    pub id: String,
    pub encoder: M,
}

impl Embedder for LocalEncoder<Encoder> {
    fn id(&self) -> &str {
        &self.id
    }

    fn dimensions(&self) -> usize {
        self.encoder.dimensions()
    }

    fn max_tokens(&self) -> usize {
        self.encoder.max_tokens()
    }

    fn count_tokens(&self, text: &str) -> Result<usize, String> {
        self.encoder.count_tokens(text).map_err(|e| e.to_string())
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String> {
        let embeddings = self.encoder.embed(texts).map_err(|e| e.to_string())?;
        Ok(embeddings.into_iter().map(|e| e.vector).collect())
    }
}

/// For policies only: its vectors are no embeddings, so the door does not offer it.
impl Embedder for LocalEncoder<PromptClassifier> {
    fn id(&self) -> &str {
        &self.id
    }

    fn dimensions(&self) -> usize {
        PROMPT_VECTOR.len()
    }

    fn max_tokens(&self) -> usize {
        self.encoder.max_tokens()
    }

    fn count_tokens(&self, text: &str) -> Result<usize, String> {
        self.encoder.count_tokens(text).map_err(|e| e.to_string())
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String> {
        let found = self.encoder.classify(texts).map_err(|e| e.to_string())?;
        Ok(found.into_iter().map(|c| c.result.vector()).collect())
    }
}
