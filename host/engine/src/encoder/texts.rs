//! Texts as an encoder's network reads them: tokenised, cut to what it can read, padded together.
//!
//! It exists so that every network of the room reads texts by the same rules. It refuses a
//! vocabulary that the network has no rows for, and a text of which nothing is left as tokens.

use std::path::Path;

use candle_core::{Device, Tensor};
use tokenizers::Tokenizer;

use super::{EncoderError, read, refuse};

/// Texts computed together. Padding wastes work when lengths differ, and on a CPU eight rows of
/// a small encoder already fill the matrix products.
const MAX_BATCH: usize = 8;

/// What a network made of one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Computed<T> {
    /// A vector, or scores.
    pub result: T,
    /// Tokens that were computed, control tokens included.
    pub num_tokens: usize,
    /// The text was longer than the model can read; its end was ignored.
    pub truncated: bool,
}

/// Rows of one length.
pub(crate) struct Batch {
    /// Token ids, `u32` of [rows, width].
    pub ids: Tensor,
    /// 1 where there is a token and 0 where there is padding, `f32` of [rows, width].
    pub mask: Tensor,
}

impl Batch {
    /// The mean over the tokens of each row: [rows, width, hidden] to [rows, hidden].
    pub fn mean(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        let mask = self.mask.unsqueeze(2)?;
        let sum = hidden.broadcast_mul(&mask)?.sum(1)?;
        sum.broadcast_div(&mask.sum(1)?)
    }
}

/// The tokenizer of a folder, and what its network can take.
pub(crate) struct Texts {
    tokenizer: Tokenizer,
    max_tokens: usize,
    pad: u32,
}

impl Texts {
    /// Reads `tokenizer.json` for a network with `vocabulary` tokens that reads `max_tokens` of a
    /// text.
    pub fn read(
        folder: &Path,
        vocabulary: usize,
        max_tokens: usize,
        pad: usize,
    ) -> Result<Self, EncoderError> {
        let (path, bytes) = read(folder, "tokenizer.json")?;
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| refuse(&path, e))?;
        // The file's own padding and truncation are a training recipe; ours follow the request.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|e| refuse(&path, e))?;
        let known = tokenizer.get_vocab_size(true);
        if known > vocabulary {
            let problem = format!("{known} tokens, but the model has {vocabulary}");
            return Err(refuse(&path, problem));
        }
        let Some(pad) = u32::try_from(pad).ok().filter(|_| pad < vocabulary) else {
            let problem = format!(
                "padding with token {pad} (pad_token_id of config.json), but the model has \
                 {vocabulary}"
            );
            return Err(refuse(&path, problem));
        };
        Ok(Self {
            tokenizer,
            max_tokens,
            pad,
        })
    }

    /// Tokens of a text beyond which the rest is ignored, control tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Tokens of a text, control tokens included, without truncation.
    pub fn count_tokens(&self, text: &str) -> Result<usize, EncoderError> {
        Ok(self.encode(text)?.len())
    }

    /// One result per text, in their order. `forward` gives one per row of a batch.
    pub fn compute<T>(
        &self,
        texts: &[&str],
        forward: impl Fn(&Batch) -> Result<Vec<T>, EncoderError>,
    ) -> Result<Vec<Computed<T>>, EncoderError> {
        let whole = texts
            .iter()
            .map(|t| self.encode(t))
            .collect::<Result<Vec<_>, _>>()?;
        let rows: Vec<(Vec<u32>, bool)> = whole.into_iter().map(|ids| self.cut(ids)).collect();
        // Texts of like length share a batch, so that little is padded.
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|i| rows[*i].0.len());
        let mut results = Vec::with_capacity(rows.len());
        for chosen in order.chunks(MAX_BATCH) {
            let ids: Vec<&[u32]> = chosen.iter().map(|i| rows[*i].0.as_slice()).collect();
            let computed = forward(&self.batch(&ids)?)?;
            results.extend(chosen.iter().copied().zip(computed));
        }
        results.sort_by_key(|(i, _)| *i);
        let described = results.into_iter().zip(rows);
        Ok(described
            .map(|((_, result), (ids, truncated))| Computed {
                result,
                num_tokens: ids.len(),
                truncated,
            })
            .collect())
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, EncoderError> {
        let encoding = self
            .tokenizer
            .encode(text, true)
            .map_err(|e| EncoderError::Tokenize(e.to_string()))?;
        match encoding.get_ids() {
            // A mean over nothing is no number.
            [] => Err(EncoderError::Tokenize("it has no tokens".into())),
            ids => Ok(ids.to_vec()),
        }
    }

    /// Keeps the last token (the separator that the model was trained to see) at the cut.
    fn cut(&self, mut ids: Vec<u32>) -> (Vec<u32>, bool) {
        let truncated = ids.len() > self.max_tokens;
        if let Some(last) = ids.last().copied()
            && truncated
        {
            ids.truncate(self.max_tokens - 1);
            ids.push(last);
        }
        (ids, truncated)
    }

    fn batch(&self, rows: &[&[u32]]) -> candle_core::Result<Batch> {
        let width = rows.iter().map(|r| r.len()).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(rows.len() * width);
        let mut mask = Vec::with_capacity(rows.len() * width);
        for row in rows {
            ids.extend_from_slice(row);
            mask.resize(ids.len(), 1.0_f32);
            let end = ids.len() - row.len() + width;
            ids.resize(end, self.pad);
            mask.resize(end, 0.0);
        }
        let shape = (rows.len(), width);
        Ok(Batch {
            ids: Tensor::from_vec(ids, shape, &Device::Cpu)?,
            mask: Tensor::from_vec(mask, shape, &Device::Cpu)?,
        })
    }
}
