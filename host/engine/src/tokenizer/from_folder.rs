//! A tokenizer from the `tokenizer.json` of a folder, and what stands beside it.
//!
//! The library runs the file's own normaliser, pre-tokenizer and merges. Its added tokens are taken
//! out and recognised by this room instead, so that a control token written by a user can be read
//! as text. The end tokens come from `generation_config.json`, `config.json` and
//! `tokenizer_config.json` together: each names some.
//!
//! Source of the files: Hugging Face's `tokenizers` and `transformers`.

use serde_json::Value;
use tokenizers::Tokenizer as Pipeline;

use super::{Cutter, SPACE, Spelling, TokenKind, Tokenizer, TokenizerError, Vocabulary};
use crate::inspect::language_settings;
use crate::model::ModelError;
use crate::model::source::ModelFolder;

/// More tokens than any vocabulary has; a number decides how much memory is asked for.
const MAX_TOKENS: u64 = 1 << 22;

const FILE: &str = "tokenizer.json";

pub(super) fn read(folder: &ModelFolder) -> Result<Tokenizer, TokenizerError> {
    let refuse = |problem: &str| TokenizerError::Vocabulary {
        file: folder.path().join(FILE).display().to_string(),
        problem: problem.to_owned(),
    };
    let Some(mut json) = folder.optional_json(FILE)? else {
        return Err(refuse(
            "missing; a vocabulary in another form cannot be read",
        ));
    };
    let mut added = added_tokens(&json).map_err(|problem| refuse(&problem))?;
    if let Some(rows) = language_settings(&folder.config()?)?.uint("vocab_size")? {
        // Gemma 3 lists a token for images that its small models have no row for.
        added.retain(|(id, ..)| u64::from(*id) < rows.min(MAX_TOKENS));
    }
    let spelling = spelling(&json).ok_or_else(|| {
        refuse("neither byte-level nor SentencePiece; another kind of vocabulary cannot be read")
    })?;
    let begins = template_begin(&json);
    let space_first = take_space_first(&mut json).map_err(|problem| refuse(&problem))?;
    for key in ["truncation", "padding", "post_processor", "decoder"] {
        json[key] = Value::Null;
    }
    json["added_tokens"] = Value::Array(Vec::new());
    let pipeline = Pipeline::from_bytes(json.to_string())
        .map_err(|e| refuse(&format!("the tokenizers library refuses it: {e}")))?;
    drop(json);
    let mut tokens: Vec<Option<(String, TokenKind)>> = Vec::new();
    let normal = pipeline.get_vocab(false).into_iter();
    let normal = normal.map(|(text, id)| (id, text, TokenKind::Normal));
    for (id, text, kind) in normal.chain(added) {
        if u64::from(id) >= MAX_TOKENS {
            return Err(refuse(&format!("token {text:?} has the number {id}")));
        }
        let id = id as usize;
        if tokens.len() <= id {
            tokens.resize(id + 1, None);
        }
        tokens[id] = Some((text, kind));
    }
    if tokens.is_empty() {
        return Err(refuse("the vocabulary is empty"));
    }
    let settings = folder
        .optional_json("tokenizer_config.json")?
        .unwrap_or(Value::Null);
    let number = |text: &str| {
        let find = |token: &Option<(String, TokenKind)>| {
            token.as_ref().is_some_and(|(listed, _)| listed == text)
        };
        tokens.iter().position(find).map(|id| id as u32)
    };
    let named = |key: &str| named_text(&settings, key).and_then(|text| number(&text));
    let add_begin = settings.get("add_bos_token").and_then(Value::as_bool);
    let vocabulary = Vocabulary {
        spelling,
        begin: match named("bos_token") {
            Some(id) => Some(id),
            None => begins.as_deref().and_then(number),
        },
        add_begin: add_begin.unwrap_or(begins.is_some()),
        ends: ends(folder, named("eos_token"), tokens.len())?,
        tokens,
    };
    let library = Cutter::Library {
        pipeline: Box::new(pipeline),
        space_first,
    };
    Tokenizer::new(vocabulary, library).map_err(|problem| refuse(&problem))
}

type Added = (u32, String, TokenKind);

fn added_tokens(json: &Value) -> Result<Vec<Added>, String> {
    let list = match json.get("added_tokens") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err("added_tokens is no list".into()),
    };
    let entry = |token: &Value| {
        let id = u32::try_from(token.get("id")?.as_u64()?).ok()?;
        let text = token.get("content")?.as_str()?.to_owned();
        let kind = match token.get("special")?.as_bool()? {
            true => TokenKind::Control,
            false => TokenKind::Whole,
        };
        Some((id, text, kind))
    };
    let wrong = || "an entry of added_tokens lacks id, content or special".to_owned();
    list.iter()
        .map(|token| entry(token).ok_or_else(wrong))
        .collect()
}

/// The parts of a normaliser, pre-tokenizer, post-processor or decoder, which may be a sequence.
fn parts<'a>(json: &'a Value, key: &str) -> Vec<&'a Value> {
    let whole = match json.get(key) {
        None | Some(Value::Null) => return Vec::new(),
        Some(whole) => whole,
    };
    let lists = ["pretokenizers", "processors", "normalizers", "decoders"];
    let listed = lists.iter().find_map(|list| whole.get(list)?.as_array());
    match listed {
        Some(parts) => parts.iter().collect(),
        None => vec![whole],
    }
}

fn is(part: &Value, kind: &str) -> bool {
    part.get("type").and_then(Value::as_str) == Some(kind)
}

fn spelling(json: &Value) -> Option<Spelling> {
    let has = |key: &str, kind: &str| parts(json, key).iter().any(|part| is(part, kind));
    let falls_back = json.pointer("/model/byte_fallback") == Some(&Value::Bool(true));
    if has("pre_tokenizer", "ByteLevel") || has("decoder", "ByteLevel") {
        Some(Spelling::ByteLevel)
    } else if falls_back || has("pre_tokenizer", "Metaspace") || has("decoder", "Metaspace") {
        Some(Spelling::SentencePiece)
    } else {
        None
    }
}

/// The text of the token that the file's template puts before every text.
fn template_begin(json: &Value) -> Option<String> {
    let template = parts(json, "post_processor")
        .into_iter()
        .find(|part| is(part, "TemplateProcessing"))?;
    let first = template.get("single")?.as_array()?.first()?;
    let text = first.get("SpecialToken")?.get("id")?.as_str()?;
    Some(text.to_owned())
}

/// A space before the first stretch of a text only: the library cannot know which stretch is the
/// first once the control tokens are cut out, so this room writes the spaces.
fn take_space_first(json: &mut Value) -> Result<bool, String> {
    let found = parts(json, "pre_tokenizer");
    let Some(part) = found.iter().find(|part| is(part, "Metaspace")) else {
        return Ok(false);
    };
    if part.get("prepend_scheme").and_then(Value::as_str) != Some("first") {
        return Ok(false);
    }
    let space = part.get("replacement").and_then(Value::as_str);
    let whole = part.get("split") == Some(&Value::Bool(false));
    if found.len() > 1 || !whole || space != Some(String::from(SPACE).as_str()) {
        return Err(format!("pre-tokenizer {part} cannot be run"));
    }
    json["pre_tokenizer"] = Value::Null;
    Ok(true)
}

/// A token of `tokenizer_config.json`: a text, or an object with one.
fn named_text(settings: &Value, key: &str) -> Option<String> {
    let token = settings.get(key)?;
    let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
    Some(text.to_owned())
}

/// `first` stands first: it is the one that templates write.
fn ends(
    folder: &ModelFolder,
    first: Option<u32>,
    vocabulary: usize,
) -> Result<Vec<u32>, TokenizerError> {
    let mut ends: Vec<u32> = first.into_iter().collect();
    for name in ["generation_config.json", "config.json"] {
        let Some(json) = folder.optional_json(name)? else {
            continue;
        };
        let listed = match json.get("eos_token_id") {
            None | Some(Value::Null) => continue,
            Some(Value::Array(list)) => list.clone(),
            Some(one) => vec![one.clone()],
        };
        for id in listed {
            match id.as_u64().filter(|id| (*id as usize) < vocabulary) {
                Some(id) => ends.push(id as u32),
                None => {
                    return Err(TokenizerError::Folder(ModelError::Config {
                        file: folder.path().join(name).display().to_string(),
                        key: "eos_token_id".into(),
                        problem: format!("{id}, but the vocabulary has {vocabulary} tokens"),
                    }));
                }
            }
        }
    }
    Ok(ends)
}
