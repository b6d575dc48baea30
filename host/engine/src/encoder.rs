//! Sentence vectors from a BERT encoder in safetensors (all-MiniLM-L6-v2 and its kin).
//!
//! It exists for `/v1/embeddings` and for policies that compare texts. It runs candle's BERT in
//! f32 on the CPU, pools by the mean over the attention mask and scales to unit length, as
//! sentence-transformers does. It refuses to truncate quietly: every result says so.

pub(crate) mod texts;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};

use texts::{Batch, Texts};

#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// The host's or the model's fault.
    #[error("{}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    /// The model's fault: it cannot be computed with this input.
    #[error("the encoder failed: {0}")]
    Compute(#[from] candle_core::Error),
    /// The client's fault.
    #[error("the text cannot be tokenised: {0}")]
    Tokenize(String),
}

/// One text's vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// Unit length.
    pub vector: Vec<f32>,
    /// Tokens that were computed, control tokens included.
    pub num_tokens: usize,
    /// The text was longer than the model can read; its end was ignored.
    pub truncated: bool,
}

pub struct Encoder {
    model: BertModel,
    texts: Texts,
    dimensions: usize,
}

impl Encoder {
    /// Reads `config.json`, `tokenizer.json` and `model.safetensors` from a folder.
    pub fn load(folder: &Path) -> Result<Self, EncoderError> {
        let (path, bytes) = read(folder, "config.json")?;
        let config: Config = serde_json::from_slice(&bytes).map_err(|e| refuse(&path, e))?;
        if config.hidden_size == 0
            || config.num_attention_heads == 0
            || config.max_position_embeddings < 2
        {
            return Err(refuse(
                &path,
                "hidden_size, num_attention_heads or max_position_embeddings is impossible",
            ));
        }
        let texts = Texts::read(
            folder,
            config.vocab_size,
            config.max_position_embeddings,
            config.pad_token_id,
        )?;
        let (path, weights) = read_weights(folder)?;
        let model = BertModel::load(weights, &config).map_err(|e| refuse(&path, e))?;
        Ok(Self {
            model,
            texts,
            dimensions: config.hidden_size,
        })
    }

    /// Length of every vector.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Tokens of a text beyond which the rest is ignored, control tokens included.
    pub fn max_tokens(&self) -> usize {
        self.texts.max_tokens()
    }

    /// Tokens of a text, control tokens included, without truncation.
    pub fn count_tokens(&self, text: &str) -> Result<usize, EncoderError> {
        self.texts.count_tokens(text)
    }

    /// One vector per text, in their order. Blocks for as long as it computes.
    pub fn embed(&self, texts: &[&str]) -> Result<Vec<Embedding>, EncoderError> {
        let computed = self.texts.compute(texts, |batch| self.forward(batch))?;
        Ok(computed
            .into_iter()
            .map(|c| Embedding {
                vector: c.result,
                num_tokens: c.num_tokens,
                truncated: c.truncated,
            })
            .collect())
    }

    fn forward(&self, batch: &Batch) -> Result<Vec<Vec<f32>>, EncoderError> {
        let (ids, mask) = (&batch.ids, &batch.mask);
        let hidden = self.model.forward(ids, &ids.zeros_like()?, Some(mask))?;
        let mean = batch.mean(&hidden)?;
        let length = mean.sqr()?.sum_keepdim(1)?.sqrt()?;
        Ok(mean.broadcast_div(&length)?.to_vec2()?)
    }
}

pub(crate) fn read(folder: &Path, name: &str) -> Result<(PathBuf, Vec<u8>), EncoderError> {
    let path = folder.join(name);
    let bytes = std::fs::read(&path).map_err(|e| refuse(&path, e))?;
    Ok((path, bytes))
}

/// `model.safetensors`, in f32 on the CPU.
pub(crate) fn read_weights(folder: &Path) -> Result<(PathBuf, VarBuilder<'static>), EncoderError> {
    let (path, bytes) = read(folder, "model.safetensors")?;
    let weights = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu);
    let weights = weights.map_err(|e| refuse(&path, e))?;
    Ok((path, weights))
}

pub(crate) fn refuse(path: &Path, problem: impl ToString) -> EncoderError {
    EncoderError::File {
        path: path.to_path_buf(),
        problem: problem.to_string(),
    }
}
