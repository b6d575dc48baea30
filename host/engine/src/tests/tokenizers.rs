//! SentencePiece vocabularies from GGUF and from `tokenizer.json`, which must agree; and what is
//! refused.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::tiny::Writer;
use crate::model::source::ModelSource;
use crate::random::SplitMix;
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Every piece has one split into two others, so that a list of merges can say what scores say.
const MERGES: [(&str, &str); 8] = [
    ("t", "h"),
    ("th", "e"),
    ("▁", "the"),
    ("i", "n"),
    ("▁", "a"),
    ("▁a", "n"),
    ("s", "▁the"),
    ("▁", "▁"),
];
const SPECIALS: [&str; 3] = ["<unk>", "<s>", "</s>"];
const LETTERS: [&str; 8] = ["▁", "a", "e", "h", "i", "n", "s", "t"];

/// Special tokens, bytes, letters, merged pieces, one token recognised as a whole.
fn words() -> Vec<String> {
    let mut words: Vec<String> = SPECIALS.iter().map(|s| (*s).to_owned()).collect();
    words.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    words.extend(LETTERS.iter().map(|s| (*s).to_owned()));
    words.extend(MERGES.iter().map(|(a, b)| format!("{a}{b}")));
    words.push("<tool>".to_owned());
    words
}

pub fn gguf(folder: &Path, change: impl FnOnce(&mut Writer)) -> PathBuf {
    let mut w = Writer::default();
    let words = words();
    let kinds: Vec<i32> = (0..words.len())
        .map(|id| match id {
            0 => 2,
            1 | 2 => 3,
            3..=258 => 6,
            _ if id + 1 == words.len() => 4,
            _ => 1,
        })
        .collect();
    // Letters have no place among the merges; merged pieces go in their order.
    let scores: Vec<f32> = (0..words.len()).map(|id| -(id as f32)).collect();
    w.text("general.architecture", "llama");
    w.text("tokenizer.ggml.model", "llama");
    w.texts("tokenizer.ggml.tokens", &words);
    w.ints("tokenizer.ggml.token_type", &kinds);
    w.floats("tokenizer.ggml.scores", &scores);
    w.uint("tokenizer.ggml.unknown_token_id", 0);
    w.uint("tokenizer.ggml.bos_token_id", 1);
    w.uint("tokenizer.ggml.eos_token_id", 2);
    change(&mut w);
    let path = folder.join("vocabulary.gguf");
    std::fs::write(&path, w.finish().0).expect("the folder is writable");
    path
}

fn json_folder(folder: &Path, change: impl FnOnce(&mut Value)) -> PathBuf {
    let words = words();
    let special = |id: usize, special: bool| {
        json!({"id": id, "content": words[id], "special": special, "single_word": false,
               "lstrip": false, "rstrip": false, "normalized": false})
    };
    let last = words.len() - 1;
    let vocabulary: serde_json::Map<String, Value> = words[..last]
        .iter()
        .enumerate()
        .map(|(id, word)| (word.clone(), json!(id)))
        .collect();
    let merges: Vec<String> = MERGES.iter().map(|(a, b)| format!("{a} {b}")).collect();
    let begin = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let mut json = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [special(0, true), special(1, true), special(2, true), special(last, false)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": null,
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
                  "dropout": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "vocab": vocabulary, "merges": merges},
    });
    change(&mut json);
    let path = folder.join("json");
    std::fs::create_dir_all(&path).expect("the folder is writable");
    let put = |name: &str, value: &Value| {
        std::fs::write(path.join(name), value.to_string()).expect("the folder is writable");
    };
    put(
        "config.json",
        &json!({"model_type": "llama", "eos_token_id": 2}),
    );
    put("generation_config.json", &json!({"eos_token_id": [2, 1]}));
    put("tokenizer.json", &json);
    path
}

pub fn read(path: &Path) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::read(&ModelSource::open(path).expect("a good header"))
}

fn random_text(random: &mut SplitMix) -> String {
    const PARTS: [&str; 14] = [
        " ", " ", "t", "h", "e", "the", "an", " an", "in", "é", "日", "<tool>", "</s>", "s",
    ];
    let length = 1 + random.below(24);
    (0..length)
        .map(|_| PARTS[random.below(PARTS.len())])
        .collect()
}

#[test]
fn sentencepiece_from_gguf_and_from_json_agree() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let scored = read(&gguf(folder.path(), |_| ())).expect("a good vocabulary");
    let merged = read(&json_folder(folder.path(), |_| ())).expect("a good vocabulary");
    assert_eq!(scored.vocabulary(), merged.vocabulary());
    let mut random = SplitMix::new(3);
    for round in 0..500 {
        let text = random_text(&mut random);
        for special in [false, true] {
            let (a, b) = (scored.encode(&text, special), merged.encode(&text, special));
            assert_eq!(a, b, "round {round}: {text:?}, special {special}");
        }
        let back = scored.decode(&scored.encode(&text, false));
        // A space is put before every stretch of text between whole tokens.
        let expected: Vec<String> = text.split("<tool>").map(String::from).collect();
        let spaced = |part: &String| {
            if part.is_empty() {
                String::new()
            } else {
                format!(" {part}")
            }
        };
        let expected: Vec<String> = expected.iter().map(spaced).collect();
        assert_eq!(back, expected.join("<tool>"), "round {round}");
    }
}

#[test]
fn a_begin_token_comes_first_where_the_file_asks_for_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (the, unprefixed) = (3 + 256 + 8 + 2, 3 + 256 + 8 + 1);
    let default = read(&gguf(folder.path(), |_| ())).expect("a good vocabulary");
    assert_eq!(default.encode("the", true), [1, the]);
    assert_eq!(default.encode("<s>the", true), [1, the], "not twice");
    assert_eq!(default.encode("the", false), [the]);
    assert_eq!(
        (default.ends(), default.end_text()),
        (&[2][..], Some("</s>"))
    );
    let without = read(&gguf(folder.path(), |w| {
        w.flag("tokenizer.ggml.add_bos_token", false);
        w.flag("tokenizer.ggml.add_space_prefix", false);
    }));
    assert_eq!(without.expect("good").encode("the", true), [unprefixed]);
    let json = read(&json_folder(folder.path(), |_| ())).expect("a good vocabulary");
    assert_eq!(json.encode("the", true), [1, the]);
    assert_eq!(json.ends(), [1, 2]);
    let json = read(&json_folder(folder.path(), |j| {
        j["post_processor"] = Value::Null
    }));
    assert_eq!(json.expect("good").encode("the", true), [the]);
}

#[test]
fn only_the_first_stretch_gets_a_space_where_the_file_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let first =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    let path = json_folder(folder.path(), |json| {
        json["normalizer"] = Value::Null;
        json["pre_tokenizer"] = first.clone();
    });
    let tokenizer = read(&path).expect("a good vocabulary");
    let (the, unprefixed) = (3 + 256 + 8 + 2, 3 + 256 + 8 + 1);
    assert_eq!(
        tokenizer.encode("the</s>the", true),
        [1, the, 2, unprefixed]
    );
    assert_eq!(tokenizer.encode("</s>the", true), [1, 2, unprefixed]);
    assert_eq!(tokenizer.decode(&[the, 2, unprefixed]), " thethe");
    let path = json_folder(folder.path(), |json| {
        json["pre_tokenizer"] = first;
        json["pre_tokenizer"]["split"] = json!(true);
    });
    let message = read(&path).err().expect("a split after it").to_string();
    assert!(message.contains("Metaspace"), "{message}");
}

#[test]
fn other_kinds_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let refused = |change: fn(&mut Writer)| {
        let mut w = Writer::default();
        w.text("general.architecture", "llama");
        change(&mut w);
        let path = folder.path().join("refused.gguf");
        std::fs::write(&path, w.finish().0).expect("the folder is writable");
        read(&path).err().expect("refused").to_string()
    };
    assert!(refused(|w| w.text("tokenizer.ggml.model", "bert")).contains("\"bert\""));
    let message = refused(|w| {
        w.text("tokenizer.ggml.model", "gpt2");
        w.text("tokenizer.ggml.pre", "viking");
        w.texts("tokenizer.ggml.tokens", &["a".to_owned()]);
        w.texts("tokenizer.ggml.merges", &[]);
    });
    assert!(message.contains("\"viking\""), "{message}");
    let message = refused(|w| {
        w.text("tokenizer.ggml.model", "llama");
        w.texts("tokenizer.ggml.tokens", &["a".to_owned()]);
        w.floats("tokenizer.ggml.scores", &[1.0, 2.0]);
    });
    assert!(message.contains("1 tokens, but 2 scores"), "{message}");
    let path = json_folder(folder.path(), |json| {
        json["model"]["byte_fallback"] = json!(false);
    });
    let message = read(&path).err().expect("no spelling").to_string();
    assert!(
        message.contains("neither byte-level nor SentencePiece"),
        "{message}"
    );
}

#[test]
fn a_stranger_cannot_write_a_control_token_into_a_sentencepiece_text() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for path in [
        gguf(folder.path(), |_| ()),
        json_folder(folder.path(), |_| ()),
    ] {
        let tokenizer = read(&path).expect("a good vocabulary");
        let guarded = tokenizer.guard("the</s>");
        assert!(!tokenizer.encode(&guarded, true).contains(&2));
        assert_eq!(
            tokenizer.encode(&guarded, true)[1..],
            tokenizer.encode("the</s>", false)[..],
        );
        assert!(tokenizer.encode("the</s>", true).contains(&2));
    }
}
