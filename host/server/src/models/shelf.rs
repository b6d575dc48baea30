//! From the name of a model to the file or folder that an engine loads.
//!
//! A name is a manifest's (`smollm2-135m-instruct`) or a hub's (`hf:OWNER/REPO…`); what looks
//! like neither is a path.

use std::path::PathBuf;

use super::cache::ModelCache;
use super::hub::{self, Hub, HubName};
use super::manifest::Manifests;
use super::pull::pull;
use crate::Failure;
use crate::config::Config;

/// All models that this configuration can name.
pub struct Shelf {
    pub manifests: Manifests,
    pub cache: ModelCache,
}

/// Whether a text means a file rather than a model's name: it has a slash.
pub fn is_path(text: &str) -> bool {
    !text.starts_with(hub::PREFIX) && text.contains('/')
}

impl Shelf {
    pub fn open(config: &Config) -> Result<Self, Failure> {
        let manifests = config.models.manifests.as_ref().map(|d| config.path(d));
        let manifests = Manifests::load(manifests.as_deref()).map_err(Failure::Config)?;
        let dir = config.models.dir.as_ref().map(|d| config.path(d));
        let cache = ModelCache::open(dir.as_deref()).map_err(Failure::failed)?;
        Ok(Self { manifests, cache })
    }

    /// What an engine loads for a name, every byte compared with what was promised: the file,
    /// or the folder of a model that has several.
    pub fn verified(&self, name: &str) -> Result<PathBuf, Failure> {
        if name.starts_with(hub::PREFIX) {
            let name: HubName = name.parse().map_err(Failure::Config)?;
            return hub::verified(&name, &self.cache).map_err(Failure::failed);
        }
        let manifest = self.manifests.get(name).map_err(Failure::Config)?;
        let folder = self.cache.verified(manifest).map_err(Failure::failed)?;
        Ok(match &manifest.files[..] {
            [only] => folder.join(&only.name),
            _ => folder,
        })
    }

    /// Brings a model into the cache, and says where it lies; `false` when it was there.
    pub fn pull(&self, name: &str) -> Result<(bool, PathBuf), Failure> {
        let fresh = if name.starts_with(hub::PREFIX) {
            let name: HubName = name.parse().map_err(Failure::Config)?;
            let pulled = Hub::from_env().pull(&name, &self.cache);
            pulled.map_err(Failure::failed)?
        } else {
            let manifest = self.manifests.get(name).map_err(Failure::Config)?;
            pull(manifest, &self.cache).map_err(Failure::failed)?
        };
        Ok((fresh, self.verified(name)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        for name in ["smollm2-135m-instruct", "hf:a/b", "hf:a/b/c.gguf"] {
            assert!(!is_path(name), "{name}");
        }
        for path in ["./model.gguf", "folder/model.gguf", "/model.gguf"] {
            assert!(is_path(path), "{path}");
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let shelf = Shelf::open(&Config::default()).unwrap();
        let error = shelf.verified("nobody").unwrap_err().to_string();
        assert!(error.contains("smollm2-135m-instruct"), "{error}");
        let error = shelf.verified("hf:nobody").unwrap_err().to_string();
        assert!(error.contains("hf:OWNER/REPO"), "{error}");
    }
}
