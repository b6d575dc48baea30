//! A tokenizer from the metadata of a GGUF file.
//!
//! Source of the keys, and of the defaults where they are missing: the GGUF specification and the
//! tokenizers of the ggml project; of the patterns: the models' own tokenizers.

use tokenizers::PreTokenizerWrapper;
use tokenizers::Tokenizer as Pipeline;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use super::sentencepiece::SentencePiece;
use super::{Cutter, SPACE, Spelling, TokenKind, Tokenizer, TokenizerError, Vocabulary};
use crate::gguf::Gguf;

/// ggml's token types that matter here.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

pub(super) fn read(gguf: &Gguf) -> Result<Tokenizer, TokenizerError> {
    let file = gguf.path().display().to_string();
    let kind = gguf.required_text("tokenizer.ggml.model")?;
    let spelling = match kind {
        "gpt2" => Spelling::ByteLevel,
        "llama" => Spelling::SentencePiece,
        other => {
            return Err(TokenizerError::Kind {
                file,
                kind: other.to_owned(),
            });
        }
    };
    let tokens = gguf.texts("tokenizer.ggml.tokens")?;
    let types = gguf
        .ints("tokenizer.ggml.token_type")?
        .unwrap_or_else(|| vec![NORMAL; tokens.len()]);
    if tokens.is_empty() || types.len() != tokens.len() {
        let problem = format!("{} tokens, but {} token types", tokens.len(), types.len());
        return Err(TokenizerError::Vocabulary { file, problem });
    }
    let special = |key: &str| special_id(gguf, key, tokens.len());
    let mut ends: Vec<u32> = Vec::new();
    for key in [
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id",
    ] {
        ends.extend(special(key)?);
    }
    let pre = gguf.text("tokenizer.ggml.pre")?.unwrap_or("gpt-2");
    let (cutter, begins) = match spelling {
        Spelling::ByteLevel => {
            let pipeline = byte_pair_encoder(gguf, &file, pre, &tokens)?;
            let library = Cutter::Library {
                pipeline: Box::new(pipeline),
                space_first: false,
            };
            (
                library,
                matches!(pre, "llama-bpe" | "llama3" | "llama-v3" | "tekken"),
            )
        }
        Spelling::SentencePiece => {
            let pieces = sentencepiece(gguf, &file, &tokens, &types)?;
            (Cutter::SentencePiece(pieces), true)
        }
    };
    let vocabulary = Vocabulary {
        tokens: tokens
            .iter()
            .zip(&types)
            .map(|(text, kind)| Some(entry(text, *kind, spelling)))
            .collect(),
        spelling,
        begin: special("tokenizer.ggml.bos_token_id")?,
        add_begin: gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(begins),
        ends,
    };
    Tokenizer::new(vocabulary, cutter)
        .map_err(|problem| TokenizerError::Vocabulary { file, problem })
}

fn entry(text: &str, kind: i64, spelling: Spelling) -> (String, TokenKind) {
    match (kind, spelling) {
        // The unknown token stands for no text either.
        (CONTROL | UNKNOWN, _) => (text.to_owned(), TokenKind::Control),
        // They are looked for in the text as it was written.
        (USER_DEFINED, Spelling::SentencePiece) => (text.replace(SPACE, " "), TokenKind::Whole),
        (USER_DEFINED, Spelling::ByteLevel) => (text.to_owned(), TokenKind::Whole),
        _ => (text.to_owned(), TokenKind::Normal),
    }
}

fn special_id(gguf: &Gguf, key: &str, vocabulary: usize) -> Result<Option<u32>, TokenizerError> {
    match gguf.uint(key)? {
        None => Ok(None),
        Some(id) if (id as usize) < vocabulary => Ok(Some(id as u32)),
        Some(id) => Err(TokenizerError::Vocabulary {
            file: gguf.path().display().to_string(),
            problem: format!("{key} is {id}, but the vocabulary has {vocabulary} tokens"),
        }),
    }
}

fn sentencepiece(
    gguf: &Gguf,
    file: &str,
    tokens: &[&str],
    types: &[i64],
) -> Result<SentencePiece, TokenizerError> {
    let scores = gguf.floats("tokenizer.ggml.scores")?;
    if scores.len() != tokens.len() {
        return Err(TokenizerError::Vocabulary {
            file: file.to_owned(),
            problem: format!("{} tokens, but {} scores", tokens.len(), scores.len()),
        });
    }
    let unknown = special_id(gguf, "tokenizer.ggml.unknown_token_id", tokens.len())?;
    let listed = tokens.iter().zip(types).zip(scores).zip(0u32..);
    let normal = listed
        .filter(|(((_, kind), _), _)| **kind == NORMAL)
        .map(|(((text, _), score), id)| ((*text).to_owned(), id, score as f32));
    let mut byte_tokens = vec![None; 256];
    for (text, id) in tokens.iter().zip(0u32..) {
        if let Some(byte) = super::hex_byte(text) {
            byte_tokens[usize::from(byte)] = Some(id);
        }
    }
    let prefix = gguf.flag("tokenizer.ggml.add_space_prefix")?;
    Ok(SentencePiece::new(
        normal,
        byte_tokens,
        unknown,
        prefix.unwrap_or(true),
    ))
}

fn byte_pair_encoder(
    gguf: &Gguf,
    file: &str,
    pre: &str,
    tokens: &[&str],
) -> Result<Pipeline, TokenizerError> {
    let refuse = |problem: String| TokenizerError::Vocabulary {
        file: file.to_owned(),
        problem,
    };
    let vocabulary: Vocab = tokens.iter().map(|t| (*t).to_owned()).zip(0..).collect();
    if vocabulary.len() != tokens.len() {
        return Err(refuse("a token text occurs twice".into()));
    }
    let split = |merge: &str| {
        merge
            .split_once(' ')
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .ok_or_else(|| refuse(format!("merge {merge:?} is not two parts")))
    };
    let merges = gguf
        .texts("tokenizer.ggml.merges")?
        .into_iter()
        .map(split)
        .collect::<Result<Vec<_>, _>>()?;
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        // These models take a word that is in the vocabulary as it is.
        .ignore_merges(matches!(
            pre,
            "llama-bpe" | "llama3" | "llama-v3" | "tekken"
        ))
        .build()
        .map_err(|e| refuse(format!("the merges do not fit the vocabulary: {e}")))?;
    let mut pipeline = Pipeline::new(model);
    pipeline.with_pre_tokenizer(Some(pre_tokenizer(pre, file)?));
    Ok(pipeline)
}

/// How text is cut before merging. The patterns are those of the models' own tokenizers.
fn pre_tokenizer(pre: &str, file: &str) -> Result<PreTokenizerWrapper, TokenizerError> {
    const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+";
    const REST: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let by_pattern = |pattern: String| {
        let split = Split::new(
            SplitPattern::Regex(pattern),
            SplitDelimiterBehavior::Isolated,
            false,
        )
        .map_err(|e| TokenizerError::Vocabulary {
            file: file.to_owned(),
            problem: format!("pre-tokenizer pattern: {e}"),
        })?;
        let bytes = ByteLevel::new(false, false, false);
        Ok(PreSequence::new(vec![split.into(), bytes.into()]).into())
    };
    match pre {
        "smollm" | "starcoder" | "refact" | "command-r" => {
            let words = ByteLevel::new(false, true, true);
            Ok(PreSequence::new(vec![Digits::new(true).into(), words.into()]).into())
        }
        "gpt-2" => Ok(ByteLevel::new(false, true, true).into()),
        "llama-bpe" | "llama3" | "llama-v3" => by_pattern(format!(r"{WORDS}|\p{{N}}{{1,3}}{REST}")),
        "qwen2" | "deepseek-r1-qwen" | "stablelm2" => by_pattern(format!(r"{WORDS}|\p{{N}}{REST}")),
        "tekken" => by_pattern(TEKKEN.to_owned()),
        other => Err(TokenizerError::Pre {
            file: file.to_owned(),
            pre: other.to_owned(),
        }),
    }
}
