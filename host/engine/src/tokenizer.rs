//! Text to token numbers and back, from what the model's own file says.
//!
//! It exists apart from `tokenizers` because three things matter to a host and not to a
//! library: control tokens written by a *user* must be recognisable as text, a stream must never
//! emit half a character, and a stop string may be spread over several tokens. So the library
//! does the byte-pair merges; splitting at control tokens, bytes and stops are done here.
//!
//! It refuses: tokenizer kinds other than byte-level BPE and SentencePiece, pre-tokenizers it does
//! not know (a wrong split gives fluent nonsense, so guessing is worse than refusing), and special
//! numbers outside the vocabulary.

mod from_folder;
mod from_gguf;
mod sentencepiece;
mod whole;

use std::collections::HashMap;

use tokenizers::Tokenizer as Pipeline;

use crate::gguf::GgufError;
use crate::model::ModelError;
use crate::model::source::ModelSource;
use sentencepiece::SentencePiece;
use whole::{WholeToken, WholeTokens};

#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error(transparent)]
    File(#[from] GgufError),
    #[error(transparent)]
    Folder(#[from] ModelError),
    #[error(
        "{file}: tokenizer kind {kind:?} is not supported; this engine reads byte-level BPE (\"gpt2\") and \
         SentencePiece (\"llama\")"
    )]
    Kind { file: String, kind: String },
    #[error(
        "{file}: pre-tokenizer {pre:?} is not supported; known are smollm, starcoder, refact, command-r, llama-bpe, \
         qwen2, deepseek-r1-qwen, stablelm2, tekken and gpt-2"
    )]
    Pre { file: String, pre: String },
    #[error("{file}: {problem}")]
    Vocabulary { file: String, problem: String },
}

/// Names under which models end a turn or a text. A file's `eos` and `eot` keys name at most two
/// of the tokens its template can produce; a control token with one of these texts ends as well.
const END_TEXTS: [&str; 7] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "</s>",
];

/// A noncharacter, which Unicode sets aside for such internal marks; dropped before the merges.
const GUARD: char = '\u{FDD0}';

/// What SentencePiece writes for a space.
const SPACE: char = '\u{2581}';

pub struct Tokenizer {
    cutter: Cutter,
    /// The bytes of every token; control tokens have none, they are never shown.
    bytes: Vec<Box<[u8]>>,
    /// The token of every byte, where the vocabulary has one.
    byte_tokens: Vec<Option<u32>>,
    /// Tokens recognised in text as a whole: all, and those that are not control tokens.
    whole: WholeTokens,
    whole_plain: WholeTokens,
    control_texts: HashMap<u32, String>,
    begin: Option<u32>,
    add_begin: bool,
    /// The end that templates write.
    end: Option<u32>,
    ends: Vec<u32>,
}

/// What cuts plain text into tokens.
enum Cutter {
    /// The library's merges. With `space_first`, spaces are written SentencePiece's way before, and
    /// one is put before the text if it is the first.
    Library {
        pipeline: Box<Pipeline>,
        space_first: bool,
    },
    SentencePiece(SentencePiece),
}

/// How a vocabulary spells bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// GPT-2's stand-ins.
    ByteLevel,
    /// `▁` for a space, `<0x0A>` for a byte.
    SentencePiece,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenKind {
    /// Found by merging.
    Normal,
    /// Recognised in a text before merging.
    Whole,
    /// Recognised only where control tokens are asked for; never shown.
    Control,
}

/// A vocabulary as a file describes it.
struct Vocabulary {
    /// Text and kind of every token; `None` for numbers that are left out.
    tokens: Vec<Option<(String, TokenKind)>>,
    spelling: Spelling,
    begin: Option<u32>,
    add_begin: bool,
    /// Named by the file; the first is the one that templates write.
    ends: Vec<u32>,
}

impl Tokenizer {
    pub fn read(source: &ModelSource) -> Result<Self, TokenizerError> {
        match source {
            ModelSource::Gguf(gguf) => from_gguf::read(gguf),
            ModelSource::Folder(folder) => from_folder::read(folder),
        }
    }

    /// The error says what is wrong with the vocabulary.
    fn new(vocabulary: Vocabulary, cutter: Cutter) -> Result<Self, String> {
        let Vocabulary {
            tokens,
            spelling,
            begin,
            add_begin,
            mut ends,
        } = vocabulary;
        let end = ends.first().copied();
        let mut byte_tokens = vec![None; 256];
        let (mut bytes, mut whole) = (Vec::with_capacity(tokens.len()), Vec::new());
        let mut control_texts = HashMap::new();
        for (token, id) in tokens.into_iter().zip(0u32..) {
            let Some((text, kind)) = token else {
                bytes.push(Box::default());
                continue;
            };
            bytes.push(token_bytes(&text, kind, spelling));
            if kind == TokenKind::Normal {
                if let Some(byte) = single_byte(&text, spelling) {
                    byte_tokens[usize::from(byte)] = Some(id);
                }
                continue;
            }
            let control = kind == TokenKind::Control;
            if control {
                if END_TEXTS.contains(&text.as_str()) {
                    ends.push(id);
                }
                control_texts.insert(id, text.clone());
            }
            if !text.is_empty() {
                whole.push((text, WholeToken { id, control }));
            }
        }
        ends.sort_unstable();
        ends.dedup();
        let plain = whole.iter().filter(|(_, token)| !token.control);
        Ok(Self {
            cutter,
            bytes,
            byte_tokens,
            whole_plain: WholeTokens::new(plain)?,
            whole: WholeTokens::new(whole.iter())?,
            control_texts,
            begin,
            add_begin,
            end,
            ends,
        })
    }

    pub fn vocabulary(&self) -> usize {
        self.bytes.len()
    }

    /// Tokens after which a sequence is finished.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The text of the begin token, which many templates print themselves.
    pub fn begin_text(&self) -> Option<&str> {
        self.begin
            .and_then(|id| self.control_texts.get(&id))
            .map(String::as_str)
    }

    /// The text of the first end token named by the file, for templates.
    pub fn end_text(&self) -> Option<&str> {
        self.end
            .and_then(|id| self.control_texts.get(&id))
            .map(String::as_str)
    }

    /// Bytes that a token stands for; empty for control tokens and numbers outside the vocabulary.
    pub fn bytes(&self, token: u32) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], |bytes| bytes)
    }

    /// Bytes for a report: control tokens by their name.
    pub fn display_bytes(&self, token: u32) -> &[u8] {
        self.control_texts
            .get(&token)
            .map_or_else(|| self.bytes(token), |text| text.as_bytes())
    }

    /// With `special`, control tokens written in the text become their numbers, and the model's
    /// begin token is put in front when its file asks for one and the text has none. Without it
    /// every character is only text, whatever it spells.
    pub fn encode(&self, text: &str, special: bool) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        let mut rest = text;
        let whole = if special {
            &self.whole
        } else {
            &self.whole_plain
        };
        while !rest.is_empty() {
            let found = whole.first(rest);
            let at = found.as_ref().map_or(rest.len(), |found| found.at.start);
            let first = rest.len() == text.len();
            match special && rest[..at].contains(GUARD) {
                true => self.encode_plain(&rest[..at].replace(GUARD, ""), first, &mut ids),
                false => self.encode_plain(&rest[..at], first, &mut ids),
            }
            let Some(found) = found else { break };
            ids.push(found.token.id);
            rest = &rest[found.at.end..];
        }
        if let (true, true, Some(begin)) = (special, self.add_begin, self.begin)
            && ids.first() != Some(&begin)
        {
            ids.insert(0, begin);
        }
        ids
    }

    /// Spells control tokens in a stranger's text so that [`Self::encode`] reads them as text, even
    /// with `special`: nobody may open a turn of another role by writing its mark.
    pub fn guard(&self, text: &str) -> String {
        let mut guarded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(found) = self.whole.first(rest) {
            guarded.push_str(&rest[..found.at.start]);
            let mut spelled = rest[found.at.clone()].chars();
            guarded.extend(spelled.next());
            if found.token.control {
                guarded.push(GUARD);
            }
            guarded.push_str(spelled.as_str());
            rest = &rest[found.at.end..];
        }
        guarded + rest
    }

    /// `first`: nothing stands before this text.
    fn encode_plain(&self, text: &str, first: bool, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let result = match &self.cutter {
            Cutter::SentencePiece(pieces) => return pieces.encode(text, ids),
            Cutter::Library {
                pipeline,
                space_first: false,
            } => pipeline.encode_fast(text, false),
            Cutter::Library { pipeline, .. } => {
                let mut spaced = text.replace(' ', "\u{2581}");
                if first && !spaced.starts_with(SPACE) {
                    spaced.insert(0, SPACE);
                }
                pipeline.encode_fast(spaced, false)
            }
        };
        match result {
            Ok(encoding) => ids.extend_from_slice(encoding.get_ids()),
            // Such vocabularies can spell any text; the library's error path has no cause left
            // here, but if it finds one, spelling the bytes out is right, only longer.
            Err(error) => {
                tracing::warn!(%error, "byte-pair merges failed, spelling the text byte by byte");
                ids.extend(
                    text.bytes()
                        .filter_map(|b| self.byte_tokens[usize::from(b)]),
                );
            }
        }
    }

    /// The text of a finished list of tokens; incomplete characters become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|t| self.bytes(*t))
            .copied()
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn token_bytes(text: &str, kind: TokenKind, spelling: Spelling) -> Box<[u8]> {
    match (kind, spelling) {
        (TokenKind::Control, _) => Box::default(),
        (TokenKind::Whole, _) => text.as_bytes().into(),
        (TokenKind::Normal, Spelling::ByteLevel) => {
            let bytes: Option<Vec<u8>> = text.chars().map(char_byte).collect();
            bytes.unwrap_or_else(|| text.as_bytes().to_vec()).into()
        }
        (TokenKind::Normal, Spelling::SentencePiece) => match hex_byte(text) {
            Some(byte) => Box::new([byte]),
            None => text.replace(SPACE, " ").into_bytes().into(),
        },
    }
}

/// The byte for which a token stands alone.
fn single_byte(text: &str, spelling: Spelling) -> Option<u8> {
    match spelling {
        Spelling::SentencePiece => hex_byte(text),
        Spelling::ByteLevel => {
            let mut chars = text.chars();
            match (chars.next(), chars.next()) {
                (Some(only), None) => char_byte(only),
                _ => None,
            }
        }
    }
}

/// 10 of `<0x0A>`.
fn hex_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    match digits.len() {
        2 => u8::from_str_radix(digits, 16).ok(),
        _ => None,
    }
}

/// GPT-2's printable stand-in for a byte: itself where printable, else a letter from U+0100 on.
#[cfg(test)]
pub(crate) fn byte_char(byte: u8) -> char {
    match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        0..=0x20 => char::from_u32(0x100 + u32::from(byte)).unwrap_or('\u{FFFD}'),
        0x7F..=0xA0 => char::from_u32(0x100 + 33 + u32::from(byte - 0x7F)).unwrap_or('\u{FFFD}'),
        0xAD => '\u{143}',
    }
}

fn char_byte(stand_in: char) -> Option<u8> {
    match u32::from(stand_in) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x100 - 33) as u8 + 0x7F),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// Turns a stream of tokens into a stream of text: whole characters only, and nothing that may
/// still turn out to be part of a stop string.
#[derive(Debug, Default)]
pub struct TextStream {
    /// Bytes of a character that is not complete yet: at most three.
    incomplete: Vec<u8>,
    /// Complete text that is a prefix of some stop string.
    held: String,
    stops: Vec<String>,
}

/// What one token added to the text.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    pub text: String,
    /// A stop string is complete; the text ends before it.
    pub stopped: bool,
}

impl TextStream {
    pub fn new(stops: Vec<String>) -> Self {
        Self {
            stops,
            ..Self::default()
        }
    }

    pub fn push(&mut self, bytes: &[u8]) -> Piece {
        self.incomplete.extend_from_slice(bytes);
        self.take_characters();
        let first_stop = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min();
        if let Some(at) = first_stop {
            self.held.truncate(at);
            self.incomplete.clear();
            return Piece {
                text: std::mem::take(&mut self.held),
                stopped: true,
            };
        }
        let keep = self
            .stops
            .iter()
            .map(|stop| overlap(&self.held, stop))
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Piece {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }

    /// What is still held back, when no more tokens come. Half a character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(&String::from_utf8_lossy(&std::mem::take(
            &mut self.incomplete,
        )));
        text
    }

    /// Moves whole characters from `incomplete` to `held`; bytes that no continuation can repair
    /// become U+FFFD at once.
    fn take_characters(&mut self) {
        loop {
            match std::str::from_utf8(&self.incomplete) {
                Ok(text) => {
                    self.held.push_str(text);
                    return self.incomplete.clear();
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    self.held
                        .push_str(&String::from_utf8_lossy(&self.incomplete[..valid]));
                    let bad = error.error_len();
                    self.incomplete.drain(..valid + bad.unwrap_or(0));
                    if bad.is_none() {
                        return;
                    }
                    self.held.push('\u{FFFD}');
                }
            }
        }
    }
}

/// Length of the longest end of `text` that begins `stop` (and is not all of it).
fn overlap(text: &str, stop: &str) -> usize {
    let longest = stop.len().saturating_sub(1).min(text.len());
    (1..=longest)
        .rev()
        .find(|n| {
            text.is_char_boundary(text.len() - n)
                && stop
                    .as_bytes()
                    .starts_with(&text.as_bytes()[text.len() - n..])
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, bool, String) {
        let mut stream = TextStream::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut texts = Vec::new();
        for bytes in pieces {
            let piece = stream.push(bytes);
            texts.push(piece.text);
            if piece.stopped {
                return (texts, true, stream.finish());
            }
        }
        (texts, false, stream.finish())
    }

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|t| (*t).to_owned()).collect()
    }

    #[test]
    fn a_character_is_emitted_whole() {
        let crab = "🦀".as_bytes();
        let (texts, _, rest) = stream(&[], &[b"a", &crab[..1], &crab[1..3], &crab[3..], b"b"]);
        assert_eq!(
            (texts, rest.as_str()),
            (owned(&["a", "", "", "🦀", "b"]), "")
        );
    }

    #[test]
    fn bytes_that_are_no_character_become_replacement_characters() {
        let (texts, _, rest) = stream(&[], &[b"a\xFFb", &[0xF0, 0x9F], b"c", &[0xF0, 0x9F]]);
        assert_eq!(
            (texts, rest.as_str()),
            (owned(&["a\u{FFFD}b", "", "\u{FFFD}c", ""]), "\u{FFFD}")
        );
    }

    #[test]
    fn a_stop_string_across_tokens_is_never_shown() {
        let (texts, stopped, rest) = stream(&["END"], &[b"one E", b"N", b"D two"]);
        assert_eq!(
            (texts, stopped, rest.as_str()),
            (owned(&["one ", "", ""]), true, "")
        );
    }

    #[test]
    fn text_that_only_resembles_a_stop_is_released() {
        let (texts, stopped, rest) = stream(&["END"], &[b"E", b"NE", b"NX", b"EN"]);
        assert_eq!(
            (texts, stopped, rest.as_str()),
            (owned(&["", "EN", "ENX", ""]), false, "EN")
        );
    }

    #[test]
    fn the_earliest_of_several_stops_wins() {
        let (texts, stopped, _) = stream(&["world", "lo w"], &[b"hello world"]);
        assert_eq!((texts, stopped), (owned(&["hel"]), true));
    }

    #[test]
    fn a_stop_of_several_bytes_per_character_may_be_split_anywhere() {
        let stop = "日本";
        let bytes = "見日本".as_bytes();
        let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
        let (texts, stopped, rest) = stream(&[stop], &pieces);
        assert_eq!(
            (texts.concat().as_str(), stopped, rest.as_str()),
            ("見", true, "")
        );
    }

    #[test]
    fn every_byte_has_its_own_stand_in() {
        let stand_ins: std::collections::HashSet<char> = (0..=255).map(byte_char).collect();
        assert_eq!(stand_ins.len(), 256);
        assert!((0..=255).all(|b| char_byte(byte_char(b)) == Some(b)));
        assert_eq!((byte_char(b' '), byte_char(b'\n')), ('Ġ', 'Ċ'));
    }
}
