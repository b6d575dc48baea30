//! Where a model comes from: one GGUF file, or a folder as Hugging Face's libraries write it.
//!
//! It exists so that the rest of the engine asks for a configuration, a tensor or a template and
//! does not know which of the two answers. A folder needs `config.json`; weights, tokenizer and
//! template are looked for when they are asked for, so a `config.json` alone can be inspected.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::ModelError;
use crate::gguf::Gguf;
use crate::safetensors::Safetensors;

/// A JSON file of a model is never longer than this; the vocabulary of a large model takes 40 MB.
const MAX_JSON_BYTES: u64 = 256 << 20;

/// An opened model; nothing but headers has been read.
pub enum ModelSource {
    Gguf(Gguf),
    Folder(ModelFolder),
}

impl ModelSource {
    /// `path` is a GGUF file or a folder with a `config.json`.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if path.is_dir() {
            return ModelFolder::open(path).map(Self::Folder);
        }
        Ok(Self::Gguf(Gguf::open(path)?))
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Gguf(gguf) => gguf.path(),
            Self::Folder(folder) => &folder.path,
        }
    }

    /// The Jinja source of the model's chat template, if it has one.
    pub fn chat_template(&self) -> Result<Option<String>, ModelError> {
        match self {
            Self::Gguf(gguf) => Ok(gguf.text("tokenizer.chat_template")?.map(str::to_owned)),
            Self::Folder(folder) => folder.chat_template(),
        }
    }
}

/// A folder with a `config.json`, and the headers of its weights where there are any.
pub struct ModelFolder {
    path: PathBuf,
    config: Value,
    weights: Option<Safetensors>,
}

impl ModelFolder {
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let config = read_json(&path.join("config.json"))?;
        let weights = match Safetensors::present(path) {
            true => Some(Safetensors::open(path)?),
            false => None,
        };
        Ok(Self {
            path: path.to_path_buf(),
            config,
            weights,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`, whose every access names the file in its errors.
    pub fn config(&self) -> Result<Settings<'_>, ModelError> {
        Settings::new(self.path.join("config.json"), &self.config)
    }

    pub fn weights(&self) -> Option<&Safetensors> {
        self.weights.as_ref()
    }

    /// A JSON file of the folder, or `None` where it is not there.
    pub fn optional_json(&self, name: &str) -> Result<Option<Value>, ModelError> {
        let path = self.path.join(name);
        match path.exists() {
            true => read_json(&path).map(Some),
            false => Ok(None),
        }
    }

    /// `chat_template.jinja` where it exists, else what `tokenizer_config.json` says; of several
    /// templates the one called `default`.
    fn chat_template(&self) -> Result<Option<String>, ModelError> {
        let path = self.path.join("chat_template.jinja");
        if path.exists() {
            return Ok(Some(read_text(&path)?));
        }
        let Some(config) = self.optional_json("tokenizer_config.json")? else {
            return Ok(None);
        };
        let default = |list: &Vec<Value>| {
            list.iter()
                .find(|t| t.get("name").and_then(Value::as_str) == Some("default"))
                .and_then(|t| t.get("template")?.as_str())
                .map(str::to_owned)
        };
        match config.get("chat_template") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(source)) => Ok(Some(source.clone())),
            Some(Value::Array(list)) => Ok(default(list)),
            Some(_) => Err(ModelError::Config {
                file: self
                    .path
                    .join("tokenizer_config.json")
                    .display()
                    .to_string(),
                key: "chat_template".into(),
                problem: "expected a text, or a list of named texts".into(),
            }),
        }
    }
}

/// The text of a file of the folder, of a sane length.
pub(crate) fn read_text(path: &Path) -> Result<String, ModelError> {
    let refuse = |problem: String| ModelError::Unreadable {
        file: path.display().to_string(),
        problem,
    };
    let about = std::fs::metadata(path).map_err(|e| refuse(e.to_string()))?;
    if !about.is_file() || about.len() > MAX_JSON_BYTES {
        let problem = format!("not a regular file of at most {MAX_JSON_BYTES} bytes");
        return Err(refuse(problem));
    }
    std::fs::read_to_string(path).map_err(|e| refuse(e.to_string()))
}

fn read_json(path: &Path) -> Result<Value, ModelError> {
    serde_json::from_str(&read_text(path)?).map_err(|e| ModelError::Unreadable {
        file: path.display().to_string(),
        problem: format!("no JSON: {e}"),
    })
}

/// An object of a JSON file. A key that is absent or null gives `None`, one of another type an
/// error that names it.
#[derive(Clone)]
pub struct Settings<'a> {
    file: PathBuf,
    /// What stands before a key in errors: `text_config.` or nothing.
    prefix: String,
    object: &'a Map<String, Value>,
}

impl<'a> Settings<'a> {
    fn new(file: PathBuf, value: &'a Value) -> Result<Self, ModelError> {
        match value {
            Value::Object(object) => Ok(Self {
                file,
                prefix: String::new(),
                object,
            }),
            _ => Err(ModelError::Unreadable {
                file: file.display().to_string(),
                problem: "no JSON object".into(),
            }),
        }
    }

    pub fn error(&self, key: &str, problem: impl Into<String>) -> ModelError {
        ModelError::Config {
            file: self.file.display().to_string(),
            key: format!("{}{key}", self.prefix),
            problem: problem.into(),
        }
    }

    fn wrong(&self, key: &str, expected: &str, found: &Value) -> ModelError {
        let mut found = found.to_string();
        if let Some((cut, _)) = found.char_indices().nth(60) {
            found.truncate(cut);
        }
        self.error(key, format!("expected {expected}, found {found}"))
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there, be it null.
    pub fn has(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    pub fn uint(&self, key: &str) -> Result<Option<u64>, ModelError> {
        let read = |v: &Value| {
            v.as_u64()
                .ok_or_else(|| self.wrong(key, "a whole number ≥ 0", v))
        };
        self.get(key).map(read).transpose()
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let read = |v: &Value| {
            v.as_f64()
                .filter(|f| f.is_finite())
                .ok_or_else(|| self.wrong(key, "a finite number", v))
        };
        self.get(key).map(read).transpose()
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        let read = |v: &Value| {
            v.as_bool()
                .ok_or_else(|| self.wrong(key, "true or false", v))
        };
        self.get(key).map(read).transpose()
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        let read = |v: &'a Value| v.as_str().ok_or_else(|| self.wrong(key, "text", v));
        self.get(key).map(read).transpose()
    }

    pub fn list(&self, key: &str) -> Result<Option<&'a Vec<Value>>, ModelError> {
        let read = |v: &'a Value| v.as_array().ok_or_else(|| self.wrong(key, "a list", v));
        self.get(key).map(read).transpose()
    }

    pub fn object(&self, key: &str) -> Result<Option<Settings<'a>>, ModelError> {
        let read = |v: &'a Value| match v {
            Value::Object(object) => Ok(Settings {
                file: self.file.clone(),
                prefix: format!("{}{key}.", self.prefix),
                object,
            }),
            other => Err(self.wrong(key, "an object", other)),
        };
        self.get(key).map(read).transpose()
    }
}
