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

/// A header of arrays of bytes, which cost the most for their size, and nothing else.
fn arrays_of_bytes(lengths: &[u64]) -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend((lengths.len() as u64).to_le_bytes());
    for (i, length) in lengths.iter().enumerate() {
        let key = format!("list.{i}");
        file.extend((key.len() as u64).to_le_bytes());
        file.extend(key.as_bytes());
        // An array, of bytes.
        file.extend(9u32.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        file.extend(length.to_le_bytes());
        file.resize(file.len() + *length as usize, 7);
    }
    file
}

#[test]
fn arrays_together_take_no_more_memory_than_the_file_or_a_vocabulary() {
    let read = |lengths: &[u64], file_bytes: u64| {
        let file = arrays_of_bytes(lengths);
        let read = Header::read(Path::new("lists.gguf"), &file[..], file_bytes);
        read.map(drop).map_err(|e| e.to_string())
    };
    // 32 bytes of memory for each: 48 MiB, and two of them 96 MiB.
    let each = (3 << 20) / 2;
    let small = 3 * each + 1_000;
    assert_eq!(read(&[each], small), Ok(()));
    let message = read(&[each, each], small).expect_err("too much");
    assert!(
        message.contains("while reading metadata list.1: 1572864 entries take 50331648 bytes"),
        "{message}"
    );
    // A file that has as many bytes (of weights) may.
    assert_eq!(read(&[each, each], 100 << 20), Ok(()));
}

/// A header with a field of every kind, and where the fields are.
struct Fields {
    file: Vec<u8>,
    header: usize,
}

impl Fields {
    fn new() -> Self {
        let mut w = tiny::Writer::default();
        w.text("arch", "llama");
        w.uint("general.alignment", 32);
        w.flag("flag", true);
        w.ints("list", &[1, 2]);
        w.tensor("first", &[32, 2], (0..64).map(|_| 0.0));
        w.tensor("second", &[32, 2], (0..64).map(|_| 0.0));
        let (file, header) = w.finish();
        Self { file, header }
    }

    /// The first byte after `name`, wherever it stands.
    fn after(&self, name: &str) -> usize {
        let header = self.file[..self.header].windows(name.len());
        let at = header.into_iter().position(|w| w == name.as_bytes());
        at.expect("it is there") + name.len()
    }
}

/// The field, its place, what is written there, and the words of the error.
type Damage = (&'static str, usize, Vec<u8>, &'static str);

/// Of the header's head and its metadata.
fn damages_of_metadata(fields: &Fields) -> Vec<Damage> {
    let (arch, alignment) = (fields.after("arch"), fields.after("general.alignment"));
    let (flag, list) = (fields.after("flag"), fields.after("list"));
    let (huge, one, nine) = (
        &u64::MAX.to_le_bytes(),
        &1u32.to_le_bytes(),
        &9u32.to_le_bytes(),
    );
    let row = |field, at, bytes: &[u8], words| (field, at, bytes.to_vec(), words);
    vec![
        row("magic", 0, b"GGML", "the magic|not a GGUF file"),
        row("version", 4, one, "the version|version 1"),
        row("version", 4, &3u32.to_be_bytes(), "the version|big-endian"),
        row("tensors", 8, huge, "the counts|claims"),
        row(
            "tensors",
            8,
            &3u64.to_le_bytes(),
            "the entry of tensor |rank 0",
        ),
        row("entries", 16, huge, "the counts|claims"),
        row(
            "entries",
            16,
            &5u64.to_le_bytes(),
            "tensor entry 0 of 2|claims",
        ),
        row("key length", arch - 12, huge, "metadata key 0 of 4|claims"),
        row("key", arch - 1, &[0xFF], "metadata key 0 of 4|UTF-8"),
        row("value type", arch, &[13], "metadata arch|value type 13"),
        row("text length", arch + 4, huge, "metadata arch|claims"),
        row("text", arch + 12, &[0xFF], "metadata arch|UTF-8"),
        row("alignment", alignment + 4, &[33], "general.alignment is 33"),
        row("alignment", alignment + 4, &[0], "general.alignment is 0"),
        row("truth", flag + 4, &[2], "metadata flag|not 2"),
        row(
            "element type",
            list + 4,
            &[13],
            "metadata list|value type 13",
        ),
        row(
            "element type",
            list + 4,
            nine,
            "metadata list|arrays inside arrays",
        ),
        row("array length", list + 8, huge, "metadata list|claims"),
    ]
}

/// Of the entries of tensors.
fn damages_of_tensors(fields: &Fields) -> Vec<Damage> {
    let (first, second) = (fields.after("first"), fields.after("second"));
    let huge = &u64::MAX.to_le_bytes();
    let row = |field, at, bytes: &[u8], words| (field, at, bytes.to_vec(), words);
    vec![
        row(
            "name length",
            first - 13,
            huge,
            "tensor entry 0 of 2|claims",
        ),
        row("name", first - 1, &[0xFF], "tensor entry 0 of 2|UTF-8"),
        row("rank", first, &[0], "tensor first|rank 0"),
        row("rank", first, &[5], "tensor first|rank 5"),
        row("shape", first + 4, &[0], "tensor first|empty dimension"),
        row("shape", first + 4, huge, "tensor first|overflows"),
        row(
            "shape",
            first + 4,
            &[64],
            "tensor second|begins inside of tensor first",
        ),
        row(
            "shape",
            second + 4,
            &[64],
            "tensor second|the file is truncated",
        ),
        row("type", first + 20, &[4], "tensor first|tensor type 4"),
        row("type", first + 20, &[8], ""),
        row(
            "offset",
            first + 24,
            &[8],
            "tensor first|not a multiple of 32",
        ),
        row(
            "offset",
            first + 24,
            huge,
            "tensor first|not a multiple of 32",
        ),
        row(
            "offset",
            second + 24,
            &[0, 0],
            "tensor second|begins inside of tensor first",
        ),
        row(
            "offset",
            second + 24,
            &[0, 2],
            "tensor second|the file is truncated",
        ),
    ]
}

#[test]
fn every_field_of_a_header_is_checked_and_the_error_says_which() {
    let fields = Fields::new();
    let read = |file: &[u8]| {
        let header = Header::read(Path::new("x.gguf"), file, file.len() as u64);
        header.map(drop).map_err(|e| e.to_string())
    };
    assert_eq!(read(&fields.file), Ok(()));
    let damages = [damages_of_metadata(&fields), damages_of_tensors(&fields)];
    for (field, at, bytes, words) in damages.concat() {
        let mut damaged = fields.file.clone();
        damaged[at..at + bytes.len()].copy_from_slice(&bytes);
        let result = read(&damaged);
        if words.is_empty() {
            // A smaller type leaves a hole, which a header may have: the loader, who knows what
            // type every tensor can have, is the next to look.
            assert_eq!(result, Ok(()), "{field}");
            continue;
        }
        let message = result.expect_err(field);
        for word in words.split('|') {
            assert!(message.contains(word), "{field}: {message}: no {word:?}");
        }
    }
    let mut w = tiny::Writer::default();
    w.uint("twice", 1);
    w.uint("twice", 2);
    let message = read(&w.finish().0).expect_err("a key twice");
    assert!(message.contains("twice occurs twice"), "{message}");
    let mut w = tiny::Writer::default();
    w.tensor("t", &[32], (0..32).map(|_| 0.0));
    w.tensor("t", &[32], (0..32).map(|_| 0.0));
    let message = read(&w.finish().0).expect_err("a tensor twice");
    assert!(message.contains("t occurs twice"), "{message}");
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
