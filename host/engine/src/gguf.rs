//! Reads a GGUF file: metadata, the tensor directory, and one tensor's bytes at a time.
//!
//! It exists because a model file is outside data of a hundred megabytes whose header decides
//! how much memory the host will ask for. Every count is compared with the bytes that are left
//! in the file *before* anything is allocated, so an absurd header costs an error and no memory.
//! The file is read by position and never mapped: the weights are repacked once at load and the
//! original is dropped, so a map would save nothing, and a mapped file that somebody truncates
//! kills the process with a bus error that no host can catch.
//!
//! It refuses: versions other than 2 and 3, nested arrays, names that occur twice, tensors that
//! leave the file, lie askew or on each other, and types whose size is unknown.
//!
//! Source of the format: the GGUF specification of the ggml project.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A file that cannot be used, and where exactly it stops making sense. The fault is the file's.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: at byte {offset}, while reading {what}: {problem}", path.display())]
    Header {
        path: PathBuf,
        offset: u64,
        what: String,
        problem: String,
    },
    #[error("{}: metadata {key}: {problem}", path.display())]
    Metadata {
        path: PathBuf,
        key: String,
        problem: String,
    },
    #[error("{}: tensor {tensor} (data offset {offset}): {problem}", path.display())]
    Tensor {
        path: PathBuf,
        tensor: String,
        offset: u64,
        problem: String,
    },
}

/// One metadata value. Integers of every width meet in `Int` or `Uint`.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Uint(u64),
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Vec<Value>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uint(v) => write!(f, "{v}"),
            Self::Int(v) => write!(f, "{v}"),
            Self::Float(v) => write!(f, "{v}"),
            Self::Bool(v) => write!(f, "{v}"),
            Self::Text(v) => write!(f, "a text of {} bytes", v.len()),
            Self::Array(v) => write!(f, "an array of {} entries", v.len()),
        }
    }
}

/// What the header of even a small file may take in memory, texts aside: the largest vocabulary
/// (Gemma 3: 262,144 tokens with types and scores) takes 25 MB. A larger file's may take as much as
/// the file has bytes. An array of bytes costs 32 times its size once parsed, so that the counts fit
/// the file is too weak a bound.
const LEAST_MEMORY: u64 = 64 << 20;

/// The element types a tensor may have, as numbered by ggml. Listing a type here means that its
/// size is known, so that `inspect` can count it; what can be *run* is the model loader's matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(
    non_camel_case_types,
    reason = "these are the names users know from ggml and from file names"
)]
pub enum TensorType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    BF16,
}

impl TensorType {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2_K,
            11 => Self::Q3_K,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            30 => Self::BF16,
            _ => return None,
        })
    }

    /// `(elements, bytes)` of one block.
    pub fn block(self) -> (u64, u64) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2_K => (256, 84),
            Self::Q3_K => (256, 110),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// One line of the tensor directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    /// Innermost first, as ggml counts: a matrix is `[columns in, rows out]`.
    pub shape: Vec<u64>,
    pub kind: TensorType,
    /// From the start of the data section.
    pub offset: u64,
    pub bytes: u64,
}

impl TensorInfo {
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// The checked header of one file, and the file itself for reading tensors.
pub struct Gguf {
    path: PathBuf,
    file: File,
    header: Header,
}

/// Everything before the data section.
#[derive(Debug)]
pub struct Header {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, TensorInfo>,
    /// Where the data section starts in the file.
    pub data_offset: u64,
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let io_error = |source| GgufError::Io {
            path: path.to_path_buf(),
            source,
        };
        let file = File::open(path).map_err(io_error)?;
        let about = file.metadata().map_err(io_error)?;
        if !about.is_file() {
            return Err(io_error(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            )));
        }
        let header = Header::read(path, BufReader::with_capacity(1 << 18, &file), about.len())?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            header,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Directory entry of a tensor that the architecture requires.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, GgufError> {
        self.header
            .tensors
            .get(name)
            .ok_or_else(|| GgufError::Tensor {
                path: self.path.clone(),
                tensor: name.to_owned(),
                offset: 0,
                problem:
                    "missing from the file; the model is incomplete or of another architecture"
                        .into(),
            })
    }

    /// Reads the bytes of one tensor into `buffer`, whose old content is lost.
    pub fn read_tensor(&self, info: &TensorInfo, buffer: &mut Vec<u8>) -> Result<(), GgufError> {
        // The header check placed the tensor inside the file, so the size is an honest one.
        buffer.clear();
        buffer.resize(info.bytes as usize, 0);
        self.file
            .read_exact_at(buffer, self.header.data_offset + info.offset)
            .map_err(|e| self.tensor_error(info, format!("cannot read {} bytes: {e}", info.bytes)))
    }

    pub(crate) fn tensor_error(&self, info: &TensorInfo, problem: String) -> GgufError {
        GgufError::Tensor {
            path: self.path.clone(),
            tensor: info.name.clone(),
            offset: info.offset,
            problem,
        }
    }

    fn metadata_error(&self, key: &str, problem: impl Into<String>) -> GgufError {
        GgufError::Metadata {
            path: self.path.clone(),
            key: key.to_owned(),
            problem: problem.into(),
        }
    }

    pub fn uint(&self, key: &str) -> Result<Option<u64>, GgufError> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Uint(v)) => Ok(Some(*v)),
            Some(Value::Int(v)) if *v >= 0 => Ok(Some(*v as u64)),
            Some(other) => {
                Err(self.metadata_error(key, format!("expected a whole number ≥ 0, found {other}")))
            }
        }
    }

    pub fn required_uint(&self, key: &str) -> Result<u64, GgufError> {
        self.uint(key)?
            .ok_or_else(|| self.metadata_error(key, "missing"))
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(v)) if v.is_finite() => Ok(Some(*v)),
            Some(other) => {
                Err(self.metadata_error(key, format!("expected a finite number, found {other}")))
            }
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(v)) => Ok(Some(*v)),
            Some(other) => {
                Err(self.metadata_error(key, format!("expected true or false, found {other}")))
            }
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(v)) => Ok(Some(v)),
            Some(other) => Err(self.metadata_error(key, format!("expected text, found {other}"))),
        }
    }

    pub fn required_text(&self, key: &str) -> Result<&str, GgufError> {
        self.text(key)?
            .ok_or_else(|| self.metadata_error(key, "missing"))
    }

    pub fn texts(&self, key: &str) -> Result<Vec<&str>, GgufError> {
        let Some(Value::Array(items)) = self.header.metadata.get(key) else {
            return Err(self.metadata_error(key, "missing, or not an array"));
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Value::Text(text) => texts.push(text.as_str()),
                other => {
                    return Err(self.metadata_error(
                        key,
                        format!("expected an array of text, one entry is {other}"),
                    ));
                }
            }
        }
        Ok(texts)
    }

    /// An array of finite numbers.
    pub fn floats(&self, key: &str) -> Result<Vec<f64>, GgufError> {
        let Some(Value::Array(items)) = self.header.metadata.get(key) else {
            return Err(self.metadata_error(key, "missing, or not an array"));
        };
        let as_float = |item: &Value| match item {
            Value::Float(v) if v.is_finite() => Ok(*v),
            other => {
                Err(self.metadata_error(key, format!("expected finite numbers, found {other}")))
            }
        };
        items.iter().map(as_float).collect()
    }

    /// An array of whole numbers, or `None` when the key is absent.
    pub fn ints(&self, key: &str) -> Result<Option<Vec<i64>>, GgufError> {
        let items = match self.header.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Array(items)) => items,
            Some(other) => {
                return Err(self.metadata_error(key, format!("expected an array, found {other}")));
            }
        };
        let as_int = |item: &Value| match item {
            Value::Int(v) => Ok(*v),
            Value::Uint(v) => {
                i64::try_from(*v).map_err(|_| self.metadata_error(key, "number too large"))
            }
            other => {
                Err(self.metadata_error(key, format!("expected whole numbers, found {other}")))
            }
        };
        items.iter().map(as_int).collect::<Result<_, _>>().map(Some)
    }
}

impl Header {
    /// `path` only names the file in errors; `file_bytes` bounds every count.
    pub fn read(path: &Path, reader: impl Read, file_bytes: u64) -> Result<Self, GgufError> {
        let mut cursor = Cursor {
            path,
            reader,
            at: 0,
            end: file_bytes,
            memory: file_bytes.max(LEAST_MEMORY),
            what: "the magic".into(),
        };
        let magic = cursor.bytes(4)?;
        if magic != b"GGUF" {
            return Err(cursor.refuse(format!("not a GGUF file: it starts with {magic:?}")));
        }
        cursor.what = "the version".into();
        let version = cursor.u32()?;
        if !(2..=3).contains(&version) {
            let swapped = version.swap_bytes();
            let hint = if (2..=3).contains(&swapped) {
                " (a big-endian file)"
            } else {
                ""
            };
            return Err(cursor.refuse(format!(
                "version {version}{hint}; this reader knows versions 2 and 3"
            )));
        }
        cursor.what = "the counts".into();
        // The smallest directory entry is 8 (name length) + 4 (rank) + 4 (type) + 8 (offset) bytes,
        // the smallest metadata entry 8 (key length) + 4 (type) + 1 (value).
        let tensor_count = cursor.count(24)?;
        let metadata_count = cursor.count(13)?;
        cursor.take_memory::<(String, TensorInfo)>(tensor_count)?;
        cursor.take_memory::<(String, Value)>(metadata_count)?;
        let metadata = read_metadata(&mut cursor, metadata_count)?;
        let tensors = read_directory(&mut cursor, tensor_count)?;
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Uint(a)) if a.is_power_of_two() && (8..=65_536).contains(a) => *a,
            Some(other) => {
                return Err(cursor.refuse(format!(
                    "general.alignment is {other}, not a power of two from 8 to 65536"
                )));
            }
        };
        let header = Self {
            metadata,
            tensors,
            data_offset: cursor.at.next_multiple_of(alignment),
        };
        header.check_places(path, file_bytes, alignment)?;
        Ok(header)
    }

    fn check_places(&self, path: &Path, file_bytes: u64, alignment: u64) -> Result<(), GgufError> {
        let available = file_bytes.saturating_sub(self.data_offset);
        let mut in_order: Vec<&TensorInfo> = self.tensors.values().collect();
        in_order.sort_by_key(|info| info.offset);
        let (mut before, mut end_before) = ("", 0);
        for info in in_order {
            let refuse = |problem| GgufError::Tensor {
                path: path.to_path_buf(),
                tensor: info.name.clone(),
                offset: info.offset,
                problem,
            };
            if !info.offset.is_multiple_of(alignment) {
                return Err(refuse(format!("offset is not a multiple of {alignment}")));
            }
            if info
                .offset
                .checked_add(info.bytes)
                .is_none_or(|end| end > available)
            {
                return Err(refuse(format!(
                    "needs {} bytes from there, but the data section has {available}: the file is truncated \
                     or its header is wrong; fetch it again",
                    info.bytes
                )));
            }
            if info.offset < end_before {
                return Err(refuse(format!(
                    "begins inside of tensor {before}, which ends at {end_before}: the header is \
                     damaged; fetch the file again"
                )));
            }
            (before, end_before) = (&info.name, info.offset + info.bytes);
        }
        Ok(())
    }
}

fn read_metadata<R: Read>(
    cursor: &mut Cursor<'_, R>,
    count: u64,
) -> Result<BTreeMap<String, Value>, GgufError> {
    let mut metadata = BTreeMap::new();
    for i in 0..count {
        cursor.what = format!("metadata key {i} of {count}");
        let key = cursor.text()?;
        cursor.what = format!("metadata {key}");
        let kind = cursor.u32()?;
        let value = cursor.value(kind, true)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(cursor.refuse(format!("{key} occurs twice")));
        }
    }
    Ok(metadata)
}

fn read_directory<R: Read>(
    cursor: &mut Cursor<'_, R>,
    count: u64,
) -> Result<BTreeMap<String, TensorInfo>, GgufError> {
    let mut tensors = BTreeMap::new();
    for i in 0..count {
        cursor.what = format!("tensor entry {i} of {count}");
        let name = cursor.text()?;
        cursor.what = format!("the entry of tensor {name}");
        let rank = cursor.u32()?;
        if !(1..=4).contains(&rank) {
            return Err(cursor.refuse(format!("rank {rank}; tensors have 1 to 4 dimensions")));
        }
        let shape = (0..rank)
            .map(|_| cursor.u64())
            .collect::<Result<Vec<_>, _>>()?;
        let number = cursor.u32()?;
        let kind = TensorType::from_number(number).ok_or_else(|| {
            cursor.refuse(format!(
                "tensor type {number} is not one of those known here (F32, F16, BF16, Q4_0 … Q6_K)"
            ))
        })?;
        let offset = cursor.u64()?;
        let bytes = tensor_bytes(&shape, kind).map_err(|problem| cursor.refuse(problem))?;
        let info = TensorInfo {
            name: name.clone(),
            shape,
            kind,
            offset,
            bytes,
        };
        if tensors.insert(name.clone(), info).is_some() {
            return Err(cursor.refuse(format!("{name} occurs twice")));
        }
    }
    Ok(tensors)
}

fn tensor_bytes(shape: &[u64], kind: TensorType) -> Result<u64, String> {
    let (per_block, block_bytes) = kind.block();
    if shape.contains(&0) {
        return Err(format!("shape {shape:?} has an empty dimension"));
    }
    if !shape[0].is_multiple_of(per_block) {
        return Err(format!(
            "a row of {} elements is not a whole number of {kind} blocks of {per_block}",
            shape[0]
        ));
    }
    shape
        .iter()
        .try_fold(1u64, |product, d| product.checked_mul(*d))
        .and_then(|elements| (elements / per_block).checked_mul(block_bytes))
        .ok_or_else(|| format!("shape {shape:?} overflows"))
}

/// A reader that knows where it is, what it is reading and how much is left.
struct Cursor<'a, R> {
    path: &'a Path,
    reader: R,
    at: u64,
    end: u64,
    /// Bytes that what is still to be read may take in memory, texts aside.
    memory: u64,
    what: String,
}

impl<R: Read> Cursor<'_, R> {
    fn refuse(&self, problem: String) -> GgufError {
        GgufError::Header {
            path: self.path.to_path_buf(),
            offset: self.at,
            what: self.what.clone(),
            problem,
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), GgufError> {
        if buffer.len() as u64 > self.end - self.at {
            return Err(self.refuse(format!(
                "needs {} bytes, {} are left in the file",
                buffer.len(),
                self.end - self.at
            )));
        }
        self.reader
            .read_exact(buffer)
            .map_err(|e| self.refuse(e.to_string()))?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, GgufError> {
        if count > self.end - self.at {
            return Err(self.refuse(format!(
                "needs {count} bytes, {} are left in the file",
                self.end - self.at
            )));
        }
        let mut buffer = vec![0; count as usize];
        self.fill(&mut buffer)?;
        Ok(buffer)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut buffer = [0; N];
        self.fill(&mut buffer)?;
        Ok(buffer)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least_bytes` each: more than the file can hold is refused.
    fn count(&mut self, least_bytes: u64) -> Result<u64, GgufError> {
        let count = self.u64()?;
        let left = self.end - self.at;
        if count > left / least_bytes {
            return Err(self.refuse(format!(
                "claims {count} entries, but only {left} bytes are left in the file"
            )));
        }
        Ok(count)
    }

    /// Called before `count` of them are read.
    fn take_memory<T>(&mut self, count: u64) -> Result<(), GgufError> {
        let bytes = count.saturating_mul(size_of::<T>() as u64);
        let left = self.memory.checked_sub(bytes).ok_or_else(|| {
            self.refuse(format!(
                "{count} entries take {bytes} bytes of memory; what is left for a header of a file \
                 of {} bytes is {}",
                self.end, self.memory
            ))
        })?;
        self.memory = left;
        Ok(())
    }

    fn text(&mut self) -> Result<String, GgufError> {
        let length = self.count(1)?;
        let bytes = self.bytes(length)?;
        String::from_utf8(bytes).map_err(|e| self.refuse(format!("text is not UTF-8: {e}")))
    }

    fn value(&mut self, kind: u32, arrays_allowed: bool) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Uint(self.array::<1>()?[0].into()),
            1 => Value::Int(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Uint(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Int(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Uint(self.u32()?.into()),
            5 => Value::Int(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => match self.array::<1>()?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(self.refuse(format!("a truth value is 0 or 1, not {other}"))),
            },
            8 => Value::Text(self.text()?),
            9 if arrays_allowed => self.array_value()?,
            9 => return Err(self.refuse("arrays inside arrays are refused".into())),
            10 => Value::Uint(self.u64()?),
            11 => Value::Int(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(self.refuse(format!("value type {other} does not exist"))),
        })
    }

    fn array_value(&mut self) -> Result<Value, GgufError> {
        let kind = self.u32()?;
        let least_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(self.refuse("arrays inside arrays are refused".into())),
            other => return Err(self.refuse(format!("value type {other} does not exist"))),
        };
        let count = self.count(least_bytes)?;
        self.take_memory::<Value>(count)?;
        (0..count)
            .map(|_| self.value(kind, false))
            .collect::<Result<_, _>>()
            .map(Value::Array)
    }
}
