//! Model files with every kind of damage: each must give an error that names the place, and
//! none may panic or ask for absurd memory.

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::tiny;
use crate::gguf::{GgufError, Header};
use crate::kernels::WeightTarget;
use crate::model::ModelError;
use crate::model::source::ModelSource;
use crate::model::weights::DecoderWeights;
use crate::tokenizer::Tokenizer;
use crate::{Engine, EngineConfig, inspect};

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

#[test]
fn a_header_cut_anywhere_is_an_error() {
    let (file, header) = tiny::file();
    for length in 0..header {
        let cut = Header::read(Path::new("cut.gguf"), &file[..length], length as u64);
        let message = cut.expect_err("half a header is no header").to_string();
        assert!(
            message.starts_with("cut.gguf: at byte "),
            "{length}: {message}"
        );
    }
}

#[test]
fn a_file_cut_in_its_data_names_the_tensor() {
    let (folder, path) = tiny::on_disk();
    let whole = std::fs::read(&path).expect("just written");
    let cut = folder.path().join("cut.gguf");
    std::fs::write(&cut, &whole[..whole.len() - 100]).expect("writable");
    let message = load(&cut).expect_err("the last tensor is cut");
    assert!(
        message.contains("tensor blk.1.ffn_down.weight") && message.contains("truncated"),
        "{message}"
    );
}

#[test]
fn changed_bytes_in_the_header_never_panic() {
    let (_folder, path) = tiny::on_disk();
    let (whole, header) = tiny::file();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("just written");
    let mut refused = 0;
    for at in 0..header {
        // A different pattern at every place; all of them at the counts that follow the magic.
        let patterns: &[u8] = if at < 64 {
            &[0x01, 0x80, 0xFF, 0x7F]
        } else {
            &[[0x01, 0xFF, 0x80][at % 3]]
        };
        for pattern in patterns {
            file.write_all_at(&[whole[at] ^ pattern], at as u64)
                .expect("writable");
            refused += usize::from(load(&path).is_err());
        }
        file.write_all_at(&whole[at..=at], at as u64)
            .expect("writable");
    }
    assert!(
        refused > header / 4,
        "most damage is noticed: {refused} of {header}"
    );
    assert_eq!(load(&path), Ok(()), "the file is as it was");
}

#[test]
fn absurd_counts_are_refused_before_memory_is_asked_for() {
    let (file, _) = tiny::file();
    for (at, what) in [(8, "tensors"), (16, "metadata")] {
        let mut absurd = file.clone();
        absurd[at..at + 8].copy_from_slice(&(1u64 << 60).to_le_bytes());
        let error = Header::read(Path::new("absurd.gguf"), &absurd[..], absurd.len() as u64)
            .expect_err(what);
        assert!(
            error
                .to_string()
                .contains("claims 1152921504606846976 entries"),
            "{what}: {error}"
        );
    }
}

#[test]
fn an_unknown_tensor_type_is_named_with_its_tensor() {
    let mut w = tiny::Writer::default();
    w.text("general.architecture", "llama");
    w.tensor("token_embd.weight", &[32, 2], (0..64).map(|_| 0.0));
    let (mut file, header) = w.finish();
    // The entry ends with type (4 bytes) and offset (8 bytes).
    file[header - 12] = 99;
    let error =
        Header::read(Path::new("x.gguf"), &file[..], file.len() as u64).expect_err("type 99");
    let message = error.to_string();
    assert!(
        message.contains("token_embd.weight") && message.contains("type 99"),
        "{message}"
    );
}

#[test]
fn other_architectures_and_other_files_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("m.gguf");
    let mut w = tiny::Writer::default();
    w.text("general.architecture", "mamba");
    w.tensor("token_embd.weight", &[32, 2], (0..64).map(|_| 0.0));
    std::fs::write(&path, w.finish().0).expect("writable");
    let source = ModelSource::open(&path).expect("a valid file");
    let message = DecoderWeights::load(&source, WeightTarget::Q8_0)
        .err()
        .expect("another architecture")
        .to_string();
    assert!(message.contains("\"mamba\" is not supported"), "{message}");

    std::fs::write(&path, b"PK\x03\x04 not a model").expect("writable");
    assert!(
        inspect(&path)
            .expect_err("a zip file")
            .to_string()
            .contains("not a GGUF file")
    );
    let empty = inspect(folder.path()).expect_err("no model folder");
    assert!(empty.to_string().contains("config.json"), "{empty}");
    assert!(
        matches!(
            inspect(&folder.path().join("none")),
            Err(ModelError::File(GgufError::Io { .. }))
        ),
        "no such file"
    );
}

#[test]
fn impossible_engine_configurations_are_refused() {
    let (_folder, path) = tiny::on_disk();
    let with = |change: fn(&mut EngineConfig)| {
        let mut config = EngineConfig::new("tiny", &path);
        change(&mut config);
        Engine::load(config).err().expect("impossible").to_string()
    };
    assert_eq!(
        with(|c| c.max_sequences = 0),
        "engine configuration: max_sequences is 0, but must be from 1 to 1024"
    );
    assert!(
        with(|c| c.max_batch_tokens = 4).contains("max_batch_tokens is 4, but must be from 33")
    );
    assert!(with(|c| c.kv_bytes = 100).contains("one block of 32 tokens takes 8192"));
}
