//! Sentence vectors from a BERT encoder in safetensors (all-MiniLM-L6-v2 and its kin).
//!
//! It exists for `/v1/embeddings` and for policies that compare texts. It runs candle's BERT in
//! f32 on the CPU, pools by the mean over the attention mask and scales to unit length, as
//! sentence-transformers does. It refuses to truncate quietly: every result says so.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use tokenizers::{Encoding, Tokenizer};

/// Texts computed together. Padding wastes work when lengths differ, and on a CPU eight rows of
/// a small encoder already fill the matrix products.
const MAX_BATCH: usize = 8;

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
    tokenizer: Tokenizer,
    config: Config,
    max_tokens: usize,
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
        let (path, bytes) = read(folder, "tokenizer.json")?;
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| refuse(&path, e))?;
        // The file's own padding and truncation are a training recipe; ours follow the request.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|e| refuse(&path, e))?;
        let vocabulary = tokenizer.get_vocab_size(true);
        if vocabulary > config.vocab_size {
            return Err(refuse(
                &path,
                format!(
                    "{vocabulary} tokens, but the model has {}",
                    config.vocab_size
                ),
            ));
        }
        let (path, bytes) = read(folder, "model.safetensors")?;
        let weights = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu)
            .map_err(|e| refuse(&path, e))?;
        let model = BertModel::load(weights, &config).map_err(|e| refuse(&path, e))?;
        Ok(Self {
            model,
            tokenizer,
            max_tokens: config.max_position_embeddings,
            config,
        })
    }

    /// Length of every vector.
    pub fn dimensions(&self) -> usize {
        self.config.hidden_size
    }

    /// Tokens of a text beyond which the rest is ignored, control tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Tokens of a text, control tokens included, without truncation.
    pub fn count_tokens(&self, text: &str) -> Result<usize, EncoderError> {
        Ok(self.encode(text)?.len())
    }

    /// One vector per text, in their order. Blocks for as long as it computes.
    pub fn embed(&self, texts: &[&str]) -> Result<Vec<Embedding>, EncoderError> {
        let mut encodings = texts
            .iter()
            .map(|t| self.encode(t))
            .collect::<Result<Vec<_>, _>>()?;
        let truncated: Vec<bool> = encodings
            .iter()
            .map(|e| e.len() > self.max_tokens)
            .collect();
        for encoding in &mut encodings {
            self.truncate(encoding);
        }
        // Texts of like length share a batch, so that little is padded.
        let mut order: Vec<usize> = (0..encodings.len()).collect();
        order.sort_by_key(|i| encodings[*i].ids.len());
        let mut vectors = vec![Vec::new(); texts.len()];
        for batch in order.chunks(MAX_BATCH) {
            let rows: Vec<&Tokens> = batch.iter().map(|i| &encodings[*i]).collect();
            for (i, vector) in batch.iter().zip(self.forward(&rows)?) {
                vectors[*i] = vector;
            }
        }
        let described = vectors.into_iter().zip(&encodings).zip(truncated);
        Ok(described
            .map(|((vector, tokens), truncated)| Embedding {
                vector,
                num_tokens: tokens.len(),
                truncated,
            })
            .collect())
    }

    fn encode(&self, text: &str) -> Result<Tokens, EncoderError> {
        let encoding: Encoding = self
            .tokenizer
            .encode(text, true)
            .map_err(|e| EncoderError::Tokenize(e.to_string()))?;
        Ok(Tokens {
            ids: encoding.get_ids().to_vec(),
        })
    }

    /// Keeps the last token (the separator that the model was trained to see) at the cut.
    fn truncate(&self, tokens: &mut Tokens) {
        if let Some(last) = tokens.ids.last().copied()
            && tokens.len() > self.max_tokens
        {
            tokens.ids.truncate(self.max_tokens - 1);
            tokens.ids.push(last);
        }
    }

    fn forward(&self, rows: &[&Tokens]) -> Result<Vec<Vec<f32>>, EncoderError> {
        let width = rows.iter().map(|r| r.len()).max().unwrap_or(0);
        let shape = (rows.len(), width);
        let pad = self.config.pad_token_id as u32;
        let padded = |r: &&Tokens| {
            r.ids
                .iter()
                .copied()
                .chain(std::iter::repeat(pad))
                .take(width)
                .collect::<Vec<_>>()
        };
        let ids = Tensor::from_vec(
            rows.iter().flat_map(padded).collect::<Vec<_>>(),
            shape,
            &Device::Cpu,
        )?;
        let ones = |r: &&Tokens| {
            (0..width)
                .map(|i| f32::from(u8::from(i < r.len())))
                .collect::<Vec<_>>()
        };
        let mask = Tensor::from_vec(
            rows.iter().flat_map(ones).collect::<Vec<_>>(),
            shape,
            &Device::Cpu,
        )?;
        let hidden = self.model.forward(&ids, &ids.zeros_like()?, Some(&mask))?;
        let mask = mask.unsqueeze(2)?;
        let mean = hidden
            .broadcast_mul(&mask)?
            .sum(1)?
            .broadcast_div(&mask.sum(1)?)?;
        let length = mean.sqr()?.sum_keepdim(1)?.sqrt()?;
        Ok(mean.broadcast_div(&length)?.to_vec2()?)
    }
}

struct Tokens {
    ids: Vec<u32>,
}

impl Tokens {
    fn len(&self) -> usize {
        self.ids.len()
    }
}

fn read(folder: &Path, name: &str) -> Result<(PathBuf, Vec<u8>), EncoderError> {
    let path = folder.join(name);
    let bytes = std::fs::read(&path).map_err(|e| refuse(&path, e))?;
    Ok((path, bytes))
}

fn refuse(path: &Path, problem: impl ToString) -> EncoderError {
    EncoderError::File {
        path: path.to_path_buf(),
        problem: problem.to_string(),
    }
}
