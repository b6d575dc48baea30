//! The encoder of this host, as the door and policies use it.

use homeostat_engine::Encoder;

/// Turns texts into vectors. A trait, so that the door is tested without a model.
pub trait Embedder: Send + Sync {
    fn id(&self) -> &str;
    fn dimensions(&self) -> usize;
    /// Longest text, control tokens included.
    fn max_tokens(&self) -> usize;
    /// Tokens of a text, control tokens included.
    fn count_tokens(&self, text: &str) -> Result<usize, String>;
    /// One vector of unit length per text. Blocks while it computes. Whoever asks has counted the
    /// tokens: of a text longer than [`Self::max_tokens`] only the beginning is read.
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String>;
}

/// The engine's encoder under its configured name.
pub struct LocalEncoder {
    pub id: String,
    pub encoder: Encoder,
}

impl Embedder for LocalEncoder {
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
