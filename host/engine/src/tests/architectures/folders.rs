//! Model folders and GGUF files of every architecture with every kind of damage, and what a folder
//! says of itself. Damage gives an error or a model that still loads; never a panic or a hang.

use std::path::Path;

use serde_json::{Value, json};

use super::blueprint::{Blueprint, FAMILIES, Family, Stored};
use super::{engine, engine_logits, folder, runner, tokens};
use crate::inspect;
use crate::kernels::WeightTarget;
use crate::model::source::ModelSource;
use crate::model::weights::DecoderWeights;
use crate::random::SplitMix;
use crate::tests::tiny::{submit, wait};
use crate::tokenizer::Tokenizer;
use crate::{ChatMessage, GenerationRequest};

/// Everything that loading reads, short of starting a thread.
fn load(path: &Path) -> Result<(), String> {
    let source = ModelSource::open(path).map_err(|e| e.to_string())?;
    crate::inspect::describe(&source).map_err(|e| e.to_string())?;
    source.chat_template().map_err(|e| e.to_string())?;
    Tokenizer::read(&source).map_err(|e| e.to_string())?;
    DecoderWeights::load(&source, WeightTarget::Q8_0)
        .map(drop)
        .map_err(|e| e.to_string())
}

fn put(path: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(path.join(name), bytes).expect("the folder is writable");
}

fn get(path: &Path, name: &str) -> Vec<u8> {
    std::fs::read(path.join(name)).expect("the file is there")
}

fn change_config(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut config: Value = serde_json::from_slice(&get(path, "config.json")).expect("JSON");
    change(&mut config);
    put(path, "config.json", config.to_string().as_bytes());
}

#[test]
fn a_folder_and_a_file_of_the_same_model_answer_alike() {
    let folder = folder();
    let blueprint = Blueprint::of(Family::Qwen3);
    let paths = [
        blueprint.write_gguf(folder.path()),
        blueprint.write_folder(folder.path(), Stored::BF16, 2),
    ];
    let answers = paths.map(|path| {
        let engine = engine(&path, |_| ());
        let handle = engine.handle();
        let messages = [ChatMessage::new("user", "the inn <|im_end|> 17")];
        let prompt = handle
            .render_chat(&messages, true, None)
            .expect("a template");
        let tokens = handle.tokenize(&prompt, true);
        let mut request = GenerationRequest::new(prompt);
        request.params.temperature = 0.0;
        request.max_new_tokens = Some(40);
        let info = handle.info().clone();
        (
            tokens,
            wait(submit(&handle, request)),
            info.end_tokens,
            info.parameters,
        )
    });
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].0.contains(&crate::tests::tiny::END));
}

#[test]
fn a_config_alone_tells_what_a_token_costs() {
    let folder = folder();
    // The published config of Llama 3 70B, less what does not matter here.
    let config = json!({
        "model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192,
        "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8,
        "vocab_size": 128256, "max_position_embeddings": 8192,
    });
    put(folder.path(), "config.json", config.to_string().as_bytes());
    let found = inspect(folder.path()).expect("a config");
    assert_eq!(found.kv_bytes_per_token, Some(320 * 1024));
    assert_eq!(
        (found.layers, found.kv_heads, found.head_dim),
        (Some(80), Some(8), Some(128))
    );
    assert_eq!((found.parameters, found.experts), (0, None));
    let message = load(folder.path()).expect_err("nothing to run");
    assert!(message.contains("tokenizer.json"), "{message}");
}

#[test]
fn an_inspection_says_the_same_of_either_kind_of_file() {
    let folder = folder();
    for family in FAMILIES {
        let blueprint = Blueprint::of(family);
        let gguf = inspect(&blueprint.write_gguf(folder.path())).expect("a good file");
        let path = blueprint.write_folder(folder.path(), Stored::F32, 1);
        let stored = inspect(&path).expect("a good folder");
        let shape = |i: &crate::Inspection| {
            let sizes = [
                i.layers,
                i.hidden,
                i.heads,
                i.kv_heads,
                i.head_dim,
                i.context_tokens,
            ];
            (sizes, i.experts, i.kv_bytes_per_token, i.vocabulary)
        };
        assert_eq!(shape(&gguf), shape(&stored), "{family:?}");
        assert_eq!(stored.parameters * 4, stored.weight_bytes(), "{family:?}");
        assert_eq!(gguf.experts.is_some(), blueprint.experts > 0);
    }
}

#[test]
fn changed_bytes_in_a_config_never_panic() {
    let folder = folder();
    for family in [Family::Gemma3, Family::Qwen2Moe, Family::Llama] {
        let path = Blueprint::of(family).write_folder(folder.path(), Stored::F16, 1);
        let whole = get(&path, "config.json");
        let mut refused = 0;
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= [0x01, 0x10, 0x80][at % 3];
            put(&path, "config.json", &damaged);
            refused += usize::from(load(&path).is_err());
        }
        assert!(
            refused > whole.len() / 4,
            "{family:?}: {refused} of {}",
            whole.len()
        );
        put(&path, "config.json", &whole);
        assert_eq!(load(&path), Ok(()), "{family:?}");
    }
}

#[test]
fn a_number_of_a_config_that_cannot_be_is_refused_by_its_name() {
    let folder = folder();
    let path = Blueprint::of(Family::Qwen2Moe).write_folder(folder.path(), Stored::F16, 1);
    let whole = get(&path, "config.json");
    let keys = [
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "num_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
    ];
    for key in keys {
        for value in [
            json!(0),
            json!(-1),
            json!(u64::MAX),
            json!(1e300),
            json!("x"),
            json!([]),
        ] {
            put(&path, "config.json", &whole);
            change_config(&path, |config| config[key] = value.clone());
            let result = load(&path);
            // An enormous base or epsilon is odd, but a number.
            let possible = key == "rope_theta" && value.as_f64().is_some_and(|v| v > 0.0);
            let message = match result {
                Ok(()) if possible => continue,
                Ok(()) => panic!("{key} = {value} was taken"),
                Err(message) => message,
            };
            assert!(
                message.contains("config.json") || message.contains("shape"),
                "{key} = {value}: {message}"
            );
        }
    }
}

#[test]
fn features_that_cannot_be_run_are_refused_by_name() {
    let folder = folder();
    let path = Blueprint::of(Family::Llama).write_folder(folder.path(), Stored::F16, 1);
    let whole = get(&path, "config.json");
    let table: [(&str, Value, &str); 6] = [
        ("model_type", json!("mamba"), "\"mamba\" is not supported"),
        ("hidden_act", json!("relu"), "hidden_act"),
        (
            "rope_scaling",
            json!({"rope_type": "longrope"}),
            "rope_scaling.rope_type: \"longrope\"",
        ),
        (
            "quantization_config",
            json!({"quant_method": "awq"}),
            "quantization_config",
        ),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        (
            "layer_types",
            json!(["full_attention", "linear_attention"]),
            "linear_attention",
        ),
    ];
    for (key, value, expected) in table {
        put(&path, "config.json", &whole);
        change_config(&path, |config| config[key] = value.clone());
        let message = load(&path).expect_err(key);
        assert!(message.contains(expected), "{key}: {message}");
    }
}

/// The header of a safetensors file as text, and the rest.
fn split(file: &[u8]) -> (String, &[u8]) {
    let (length, rest) = file.split_first_chunk::<8>().expect("a header");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    (String::from_utf8(header.to_vec()).expect("text"), data)
}

fn joined(header: &str, data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length, header.as_bytes(), data].concat()
}

#[test]
fn changed_bytes_in_a_safetensors_header_never_panic() {
    let folder = folder();
    let path = Blueprint::of(Family::Qwen2).write_folder(folder.path(), Stored::F16, 1);
    let whole = get(&path, "model.safetensors");
    let header = 8 + split(&whole).0.len();
    let mut refused = 0;
    for at in 0..header {
        let patterns: &[u8] = if at < 8 {
            &[0x01, 0x80, 0xFF]
        } else {
            &[[0x01, 0x10, 0x80][at % 3]]
        };
        for pattern in patterns {
            let mut damaged = whole.clone();
            damaged[at] ^= pattern;
            put(&path, "model.safetensors", &damaged);
            refused += usize::from(load(&path).is_err());
        }
    }
    // Only the free text of __metadata__ may change unnoticed.
    assert!(refused > header - 40, "{refused} of {header}");
    for length in (0..header).step_by(7).chain([header, whole.len() - 1]) {
        put(&path, "model.safetensors", &whole[..length]);
        let message = load(&path).expect_err("half a file");
        assert!(message.contains("model.safetensors"), "{length}: {message}");
    }
    put(&path, "model.safetensors", &whole);
    assert_eq!(load(&path), Ok(()));
}

#[test]
fn a_wrong_entry_of_a_safetensors_header_names_its_tensor() {
    let folder = folder();
    let path = Blueprint::of(Family::Llama).write_folder(folder.path(), Stored::F16, 1);
    let whole = get(&path, "model.safetensors");
    let (header, data) = split(&whole);
    let json: Value = serde_json::from_str(&header).expect("JSON");
    let name = "model.layers.0.self_attn.q_proj.weight";
    let begin = json[name]["data_offsets"][0].as_u64().expect("an offset");
    let table: [(&str, Value); 9] = [
        ("dtype", json!("F8_E4M3")),
        ("dtype", json!(1)),
        ("shape", json!([64, 65])),
        ("shape", json!([64, u64::MAX])),
        ("shape", json!([0, 64])),
        ("shape", json!("64x64")),
        ("data_offsets", json!([begin, u64::MAX])),
        ("data_offsets", json!([begin + 2, begin])),
        ("data_offsets", json!([begin])),
    ];
    for (key, value) in table {
        let mut changed = json.clone();
        changed[name][key] = value.clone();
        put(
            &path,
            "model.safetensors",
            &joined(&changed.to_string(), data),
        );
        let message = load(&path).expect_err(key);
        assert!(message.contains(name), "{key} = {value}: {message}");
    }
    let unknown = r#""F8_E4M3""#;
    put(
        &path,
        "model.safetensors",
        &joined(&header.replace(r#""F16""#, unknown), data),
    );
    let message = load(&path).expect_err("an unknown type");
    assert!(message.contains("type F8_E4M3 cannot be read"), "{message}");
    // The same name twice; another JSON reader would silently keep the last.
    let twice = format!("{{\"{name}\":{},{}", json[name], &header[1..]);
    put(&path, "model.safetensors", &joined(&twice, data));
    assert!(load(&path).is_err());
    put(&path, "model.safetensors", &joined("[]", data));
    assert!(load(&path).expect_err("a list").contains("no JSON object"));
}

#[test]
fn a_tensor_that_nobody_would_read_is_refused() {
    let folder = folder();
    let path = Blueprint::of(Family::Llama).write_folder(folder.path(), Stored::F16, 1);
    let whole = get(&path, "model.safetensors");
    let (header, data) = split(&whole);
    let at = data.len();
    let extra = "model.layers.1.mlp.down_proj.bias";
    let entry = json!({"dtype": "F16", "shape": [64], "data_offsets": [at, at + 128]});
    let header = format!("{},\"{extra}\":{entry}}}", &header[..header.len() - 1]);
    let longer = [data, &[0; 128]].concat();
    put(&path, "model.safetensors", &joined(&header, &longer));
    let message = load(&path).expect_err("a bias that the engine has no place for");
    assert!(
        message.contains(extra) && message.contains("does not run"),
        "{message}"
    );
}

#[test]
fn a_model_that_also_sees_is_run_without_its_eyes() {
    let folder = folder();
    let path = Blueprint::of(Family::Gemma3).write_folder(folder.path(), Stored::F16, 1);
    let tokens = tokens(6, 40);
    let logits = || engine_logits(&mut runner(&path, WeightTarget::Q8_0, 1), &tokens, 64);
    let alone = logits();
    let text: Value = serde_json::from_slice(&get(&path, "config.json")).expect("JSON");
    let whole = json!({"model_type": "gemma3", "text_config": text, "vision_config": {}});
    put(&path, "config.json", whole.to_string().as_bytes());
    let file = get(&path, "model.safetensors");
    let (header, data) = split(&file);
    let at = data.len();
    let eye = json!({"dtype": "F16", "shape": [2], "data_offsets": [at, at + 4]});
    let data = [data, &[0; 4]].concat();
    for prefix in ["language_model.model.", "model.language_model."] {
        let header = header.replace("\"model.", &format!("\"{prefix}"));
        let header = format!("{{\"vision_tower.patch\":{eye},{}", &header[1..]);
        put(&path, "model.safetensors", &joined(&header, &data));
        assert!(logits() == alone, "{prefix}");
    }
}

#[test]
fn shards_must_be_there_and_be_what_the_index_says() {
    let folder = folder();
    let path = Blueprint::of(Family::Mixtral).write_folder(folder.path(), Stored::F16, 3);
    assert_eq!(load(&path), Ok(()));
    let index = "model.safetensors.index.json";
    let whole: Value = serde_json::from_slice(&get(&path, index)).expect("JSON");
    let tensor = "model.norm.weight";
    let refused = |value: Value, expected: &[&str]| {
        put(&path, index, value.to_string().as_bytes());
        let message = load(&path).expect_err("a wrong index");
        for part in expected {
            assert!(message.contains(part), "{part}: {message}");
        }
    };
    let with = |file: &str| {
        let mut changed = whole.clone();
        changed["weight_map"][tensor] = json!(file);
        changed
    };
    refused(
        with("model-00001-of-00003.safetensors"),
        &[tensor, "does not have it"],
    );
    refused(
        with("../../model-00001-of-00003.safetensors"),
        &[tensor, "in the folder"],
    );
    refused(with("/etc/passwd"), &[tensor, "in the folder"]);
    refused(with("missing.safetensors"), &["missing.safetensors"]);
    refused(json!({"weight_map": {}}), &["names no tensor"]);
    refused(json!([]), &["weight_map"]);
    let mut unlisted = whole.clone();
    unlisted["weight_map"]
        .as_object_mut()
        .expect("an object")
        .remove(tensor);
    refused(unlisted, &[tensor, "not in the index"]);

    put(&path, index, whole.to_string().as_bytes());
    let shard = "model-00002-of-00003.safetensors";
    let bytes = get(&path, shard);
    put(&path, shard, &bytes[..bytes.len() - 1]);
    assert!(load(&path).expect_err("a short shard").contains(shard));
    std::fs::remove_file(path.join(shard)).expect("it is there");
    assert!(load(&path).expect_err("a missing shard").contains(shard));
    put(&path, shard, &bytes);
    assert_eq!(load(&path), Ok(()));
}

#[test]
fn changed_bytes_in_the_tokenizer_never_panic() {
    let folder = folder();
    let path = Blueprint::of(Family::Llama).write_folder(folder.path(), Stored::F16, 1);
    let source = ModelSource::open(&path).expect("a good folder");
    let read = || {
        Tokenizer::read(&source)
            .map(drop)
            .map_err(|e| e.to_string())
    };
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let whole = get(&path, name);
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= [0x01, 0x10, 0x80][at % 3];
            put(&path, name, &damaged);
            drop(read());
        }
        for length in (0..whole.len()).step_by(whole.len() / 40) {
            put(&path, name, &whole[..length]);
            let message = read().expect_err("half a file");
            assert!(message.contains(name), "{length}: {message}");
        }
        put(&path, name, &whole);
    }
    assert_eq!(read(), Ok(()));
    let generation = json!({"eos_token_id": [256, 9_999]});
    put(
        &path,
        "generation_config.json",
        generation.to_string().as_bytes(),
    );
    let message = read().expect_err("an end beyond the vocabulary");
    assert!(
        message.contains("generation_config.json") && message.contains("9999"),
        "{message}"
    );
}

#[test]
fn an_enormous_token_number_asks_for_no_memory() {
    let folder = folder();
    let path = Blueprint::of(Family::Llama).write_folder(folder.path(), Stored::F16, 1);
    let mut json: Value = serde_json::from_slice(&get(&path, "tokenizer.json")).expect("JSON");
    // A token that the embedding has no row for is left out.
    json["added_tokens"][1]["id"] = json!(u32::MAX);
    put(&path, "tokenizer.json", json.to_string().as_bytes());
    assert_eq!(load(&path), Ok(()));
    json["model"]["vocab"]["th"] = json!(u32::MAX);
    put(&path, "tokenizer.json", json.to_string().as_bytes());
    let message = load(&path).expect_err("four billion tokens");
    assert!(message.contains("4294967295"), "{message}");
}

#[test]
fn changed_bytes_in_a_gguf_header_never_panic_in_any_architecture() {
    let folder = folder();
    let mut random = SplitMix::new(5);
    for family in [
        Family::Gemma2,
        Family::Gemma3,
        Family::Qwen2Moe,
        Family::Mixtral,
    ] {
        let blueprint = Blueprint::of(family);
        let (whole, header) = blueprint.gguf();
        let path = folder.path().join("damaged.gguf");
        let mut refused = 0;
        for _ in 0..400 {
            let mut damaged = whole.clone();
            let at = 4 + random.below(header - 4);
            damaged[at] ^= 1 << random.below(8);
            std::fs::write(&path, &damaged).expect("the folder is writable");
            refused += usize::from(load(&path).is_err());
        }
        assert!(refused > 100, "{family:?}: {refused} of 400");
        std::fs::write(&path, &whole).expect("the folder is writable");
        assert_eq!(load(&path), Ok(()), "{family:?}");
    }
}
