//! The user's model cache: `<cache>/models/<model>/<file>`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::manifest::{FileSpec, Manifest};

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error(
        "model {model} is not in the cache ({} is missing); fetch it with: homeostat models pull {model}",
        path.display()
    )]
    Missing { model: String, path: PathBuf },
    #[error(
        "{} is not the file that the manifest of {model} names: it has {bytes} bytes with sha256 \
         {sha256}, expected {expected_bytes} bytes with sha256 {expected_sha256}; fetch it anew \
         with: homeostat models pull {model}",
        path.display()
    )]
    Damaged {
        model: String,
        path: PathBuf,
        bytes: u64,
        sha256: String,
        expected_bytes: u64,
        expected_sha256: String,
    },
    #[error("cannot read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("there is no cache folder: set HOMEOSTAT_CACHE or HOME")]
    NoFolder,
}

/// The folder that holds one folder per model.
#[derive(Debug, Clone)]
pub struct ModelCache {
    folder: PathBuf,
}

/// Where this user's caches lie: `$HOMEOSTAT_CACHE`, `$XDG_CACHE_HOME/homeostat` or
/// `~/.cache/homeostat`.
pub fn root() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    let root = var("HOMEOSTAT_CACHE").map(PathBuf::from);
    let root = root.or_else(|| Some(Path::new(&var("XDG_CACHE_HOME")?).join("homeostat")));
    root.or_else(|| Some(Path::new(&var("HOME")?).join(".cache/homeostat")))
}

impl ModelCache {
    /// `folder` if given; else `models` below [`root`].
    pub fn open(folder: Option<&Path>) -> Result<Self, CacheError> {
        if let Some(folder) = folder {
            return Ok(Self {
                folder: folder.to_path_buf(),
            });
        }
        Ok(Self {
            folder: root().ok_or(CacheError::NoFolder)?.join("models"),
        })
    }

    /// The folder of all models.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a model's files lie.
    pub fn folder_of(&self, manifest: &Manifest) -> PathBuf {
        self.folder.join(&manifest.name)
    }

    /// The folder of a model whose every file matches its manifest. Reads and hashes all
    /// of them: half a second per gigabyte, once per start.
    pub fn verified(&self, manifest: &Manifest) -> Result<PathBuf, CacheError> {
        let folder = self.folder_of(manifest);
        for file in &manifest.files {
            check(&manifest.name, &folder.join(&file.name), file)?;
        }
        Ok(folder)
    }
}

/// Whether the file at `path` is the one that the manifest names.
pub fn check(model: &str, path: &Path, expected: &FileSpec) -> Result<(), CacheError> {
    let (bytes, sha256) = match digest(path) {
        Ok(found) => found,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(CacheError::Missing {
                model: model.into(),
                path: path.into(),
            });
        }
        Err(source) => {
            return Err(CacheError::Read {
                path: path.into(),
                source,
            });
        }
    };
    if bytes == expected.bytes && sha256 == expected.sha256 {
        return Ok(());
    }
    Err(CacheError::Damaged {
        model: model.into(),
        path: path.into(),
        bytes,
        sha256,
        expected_bytes: expected.bytes,
        expected_sha256: expected.sha256.clone(),
    })
}

/// Size and sha256 of a file.
pub fn digest(path: &Path) -> std::io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        bytes += n as u64;
    }
    Ok((bytes, hex(&hasher.finalize())))
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
