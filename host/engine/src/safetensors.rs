//! Reads the tensors of a model folder: `model.safetensors`, or the shards that
//! `model.safetensors.index.json` lists.
//!
//! It exists beside `gguf` for the same reason: the header decides how much memory the host will
//! ask for, so every length is compared with the file before anything is allocated, and a tensor is
//! read by position, one at a time. It refuses: offsets that overlap, leave holes or leave the file,
//! names that occur twice, element types that it cannot read, shard names that lead out of the
//! folder, and an index that disagrees with its shards.
//!
//! Source of the format: the safetensors specification of Hugging Face.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::gguf::TensorType;

/// What the format itself allows for a header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// More than any model has; a folder is outside data.
const MAX_SHARDS: usize = 4_096;

/// A folder that cannot be used, and which file of it is at fault. The fault is the folder's.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {problem}", path.display())]
    Header { path: PathBuf, problem: String },
    #[error("{}: tensor {tensor}: {problem}", path.display())]
    Tensor {
        path: PathBuf,
        tensor: String,
        problem: String,
    },
}

impl SafetensorsError {
    fn header(path: &Path, problem: impl Into<String>) -> Self {
        Self::Header {
            path: path.to_path_buf(),
            problem: problem.into(),
        }
    }

    fn tensor(path: &Path, tensor: &str, problem: impl Into<String>) -> Self {
        Self::Tensor {
            path: path.to_path_buf(),
            tensor: tensor.to_owned(),
            problem: problem.into(),
        }
    }
}

/// One tensor of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    pub name: String,
    /// Outermost first, as PyTorch counts: a matrix is `[rows out, columns in]`.
    pub shape: Vec<u64>,
    /// F32, F16 or BF16.
    pub kind: TensorType,
    pub bytes: u64,
    /// From the start of the shard.
    offset: u64,
    shard: usize,
}

struct Shard {
    path: PathBuf,
    file: File,
}

/// The checked headers of all shards, and the files for reading tensors.
pub struct Safetensors {
    folder: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, StoredTensor>,
}

impl Safetensors {
    /// Whether a folder has weights at all: a `config.json` alone is enough to plan memory with.
    pub fn present(folder: &Path) -> bool {
        folder.join("model.safetensors").exists()
            || folder.join("model.safetensors.index.json").exists()
    }

    pub fn open(folder: &Path) -> Result<Self, SafetensorsError> {
        let mut all = Self {
            folder: folder.to_path_buf(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
        };
        let single = folder.join("model.safetensors");
        if single.exists() {
            all.add_shard(single)?;
            return Ok(all);
        }
        let index = folder.join("model.safetensors.index.json");
        let listed = read_index(&index)?;
        let mut files: Vec<&String> = listed.values().collect();
        files.sort_unstable();
        files.dedup();
        if files.len() > MAX_SHARDS {
            let problem = format!("{} shards; at most {MAX_SHARDS} are read", files.len());
            return Err(SafetensorsError::header(&index, problem));
        }
        for file in files {
            all.add_shard(folder.join(file))?;
        }
        all.check_index(&index, &listed)?;
        Ok(all)
    }

    /// The index must send every tensor to the shard that has it, and know all that the shards have.
    fn check_index(
        &self,
        index: &Path,
        listed: &BTreeMap<String, String>,
    ) -> Result<(), SafetensorsError> {
        for (tensor, file) in listed {
            let found = self.tensors.get(tensor);
            let right = found.is_some_and(|t| self.shards[t.shard].path.ends_with(file));
            if !right {
                let problem = format!("the index says {file}, which does not have it");
                return Err(SafetensorsError::tensor(index, tensor, problem));
            }
        }
        match self.tensors.keys().find(|name| !listed.contains_key(*name)) {
            Some(name) => Err(SafetensorsError::tensor(
                index,
                name,
                "is in a shard, but not in the index",
            )),
            None => Ok(()),
        }
    }

    fn add_shard(&mut self, path: PathBuf) -> Result<(), SafetensorsError> {
        let io_error = |source| SafetensorsError::Io {
            path: path.clone(),
            source,
        };
        let file = File::open(&path).map_err(io_error)?;
        let about = file.metadata().map_err(io_error)?;
        if !about.is_file() {
            return Err(SafetensorsError::header(&path, "not a regular file"));
        }
        for mut tensor in read_header(&path, &file, about.len())? {
            tensor.shard = self.shards.len();
            if let Some(other) = self.tensors.get(&tensor.name) {
                let problem = format!("also in {}", self.shards[other.shard].path.display());
                return Err(SafetensorsError::tensor(&path, &tensor.name, problem));
            }
            self.tensors.insert(tensor.name.clone(), tensor);
        }
        self.shards.push(Shard { path, file });
        Ok(())
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn tensors(&self) -> &BTreeMap<String, StoredTensor> {
        &self.tensors
    }

    /// The entry of a tensor that the architecture requires.
    pub fn tensor(&self, name: &str) -> Result<&StoredTensor, SafetensorsError> {
        self.tensors.get(name).ok_or_else(|| {
            SafetensorsError::tensor(
                &self.folder,
                name,
                "missing; the model is incomplete or of another architecture",
            )
        })
    }

    /// Reads the bytes of one tensor into `buffer`, whose old content is lost.
    pub fn read(
        &self,
        tensor: &StoredTensor,
        buffer: &mut Vec<u8>,
    ) -> Result<(), SafetensorsError> {
        let shard = &self.shards[tensor.shard];
        // The header check placed the tensor inside the file, so the size is an honest one.
        buffer.clear();
        buffer.resize(tensor.bytes as usize, 0);
        shard
            .file
            .read_exact_at(buffer, tensor.offset)
            .map_err(|e| {
                let problem = format!("cannot read {} bytes: {e}", tensor.bytes);
                SafetensorsError::tensor(&shard.path, &tensor.name, problem)
            })
    }

    pub(crate) fn tensor_error(&self, tensor: &StoredTensor, problem: String) -> SafetensorsError {
        SafetensorsError::tensor(&self.shards[tensor.shard].path, &tensor.name, problem)
    }
}

/// Which file has which tensor.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, SafetensorsError> {
    let text = std::fs::read_to_string(path).map_err(|source| SafetensorsError::Io {
        path: path.to_path_buf(),
        source,
    })?;
    let refuse = |problem: String| SafetensorsError::header(path, problem);
    let index: Value = serde_json::from_str(&text).map_err(|e| refuse(format!("no JSON: {e}")))?;
    let Some(Value::Object(map)) = index.get("weight_map") else {
        return Err(refuse("weight_map is missing, or no object".into()));
    };
    let mut listed = BTreeMap::new();
    for (tensor, file) in map {
        let name = file.as_str().unwrap_or_default();
        let plain = Path::new(name).file_name() == Some(name.as_ref());
        if !plain || !name.ends_with(".safetensors") {
            let problem = format!("{file} is not the name of a .safetensors file in the folder");
            return Err(SafetensorsError::tensor(path, tensor, problem));
        }
        listed.insert(tensor.clone(), name.to_owned());
    }
    match listed.is_empty() {
        true => Err(refuse("weight_map names no tensor".into())),
        false => Ok(listed),
    }
}

/// A JSON object in the order of the file, with names that occur twice still twice.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Entries, M::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// The tensors of one file, in the order of their bytes.
fn read_header(
    path: &Path,
    file: &File,
    file_bytes: u64,
) -> Result<Vec<StoredTensor>, SafetensorsError> {
    let refuse = |problem: String| SafetensorsError::header(path, problem);
    let io_error = |source| SafetensorsError::Io {
        path: path.to_path_buf(),
        source,
    };
    if file_bytes < 8 {
        let problem = format!("{file_bytes} bytes; even the length of the header takes 8");
        return Err(refuse(problem));
    }
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0).map_err(io_error)?;
    let length = u64::from_le_bytes(length);
    if length > (file_bytes - 8).min(MAX_HEADER_BYTES) {
        return Err(refuse(format!(
            "the header claims {length} bytes, but the file has {}: it is truncated or no safetensors file",
            file_bytes - 8
        )));
    }
    let mut json = vec![0; length as usize];
    file.read_exact_at(&mut json, 8).map_err(io_error)?;
    let Entries(entries) = serde_json::from_slice(&json)
        .map_err(|e| refuse(format!("the header is no JSON object: {e}")))?;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, about) in entries {
        if name != "__metadata__" {
            let tensor = read_entry(&name, &about, 8 + length)
                .map_err(|problem| SafetensorsError::tensor(path, &name, problem))?;
            tensors.push(tensor);
        }
    }
    check_places(path, &mut tensors, 8 + length, file_bytes)?;
    Ok(tensors)
}

fn read_entry(name: &str, about: &Value, data: u64) -> Result<StoredTensor, String> {
    let kind = match about.get("dtype").and_then(Value::as_str) {
        Some("F32") => TensorType::F32,
        Some("F16") => TensorType::F16,
        Some("BF16") => TensorType::BF16,
        Some(other) => {
            return Err(format!(
                "type {other} cannot be read; F32, F16 and BF16 can"
            ));
        }
        None => return Err("dtype is missing, or no text".into()),
    };
    let numbers = |key: &str| -> Result<Vec<u64>, String> {
        let list = about.get(key).and_then(Value::as_array);
        list.and_then(|list| list.iter().map(Value::as_u64).collect())
            .ok_or_else(|| format!("{key} is missing, or no list of whole numbers ≥ 0"))
    };
    let shape = numbers("shape")?;
    let [begin, end] = numbers("data_offsets")?[..] else {
        return Err("data_offsets must be two numbers".into());
    };
    let expected = shape
        .iter()
        .try_fold(kind.block().1, |bytes, d| bytes.checked_mul(*d))
        .ok_or_else(|| format!("shape {shape:?} overflows"))?;
    if shape.len() > 4 || expected == 0 {
        return Err(format!(
            "shape {shape:?}; tensors have 1 to 4 dimensions, none of them empty"
        ));
    }
    if end.checked_sub(begin) != Some(expected) {
        return Err(format!(
            "shape {shape:?} of {kind} takes {expected} bytes, data_offsets are {begin} and {end}"
        ));
    }
    let offset = begin.checked_add(data).ok_or("data_offsets overflow")?;
    Ok(StoredTensor {
        name: name.to_owned(),
        shape,
        kind,
        bytes: expected,
        offset,
        shard: 0,
    })
}

/// The format demands that tensors follow each other without holes and fill the file.
fn check_places(
    path: &Path,
    tensors: &mut [StoredTensor],
    data: u64,
    file_bytes: u64,
) -> Result<(), SafetensorsError> {
    tensors.sort_by(|a, b| (a.offset, &a.name).cmp(&(b.offset, &b.name)));
    let mut at = data;
    for tensor in &*tensors {
        let refuse = |problem| SafetensorsError::tensor(path, &tensor.name, problem);
        if tensor.offset != at {
            return Err(refuse(format!(
                "begins at byte {}, but the tensor before it ends at {at}",
                tensor.offset
            )));
        }
        // No overflow: both ends have been checked, and an honest file is shorter than 2^63.
        at = at.saturating_add(tensor.bytes);
        if at > file_bytes {
            return Err(refuse(format!(
                "ends at byte {at}, but the file has {file_bytes}: it is truncated; fetch it again"
            )));
        }
    }
    if at != file_bytes {
        let problem = format!("{} bytes follow the last tensor", file_bytes - at);
        return Err(SafetensorsError::header(path, problem));
    }
    // Places differ, so a name that occurs twice has two places.
    let mut names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(SafetensorsError::tensor(path, pair[0], "occurs twice")),
        None => Ok(()),
    }
}
