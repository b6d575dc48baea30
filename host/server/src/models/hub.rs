//! Models from a hub: what `hf:OWNER/REPO[@REVISION][/FILE.gguf]` names, and which of a
//! repository's files that is.
//!
//! hf-hub knows the hub: its address (HF_ENDPOINT overrides it), its API, the saved token.
//! It is not given the download. Version 0.5 names the file that it writes after a header
//! of the answer, compares no digest and panics at a redirect that leads nowhere; a hub is
//! outside data. So the bytes are the matter of `transfer`, and every name that a
//! hub says is checked here before it becomes a path.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use serde::{Deserialize, Serialize};
use ureq::Agent;

use super::cache::{self, CacheError, ModelCache};
use super::manifest::{FileSpec, is_plain};
use super::transfer::{self, Kept, TransferError, Wanted};

/// What a name of a hub begins with.
pub const PREFIX: &str = "hf:";
/// The record of what was pulled, beside the files.
const RECORD: &str = "homeostat-hub.json";
/// Listings of repositories with thousands of files take a few MiB.
const MAX_LISTING_BYTES: u64 = 32 << 20;
/// What a safetensors folder needs besides its weights; what a repository lacks of it is
/// not missed here but by the loader, which knows.
const COMPANIONS: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What a user calls a model of a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    owner: String,
    repo: String,
    revision: String,
    file: Option<String>,
}

impl FromStr for HubName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no model of a hub: expected hf:OWNER/REPO, hf:OWNER/REPO@REVISION \
                 or either with /FILE.gguf"
            )
        };
        let rest = text.strip_prefix(PREFIX).ok_or_else(wrong)?;
        let (owner, rest) = rest.split_once('/').ok_or_else(wrong)?;
        let (repo, file) = match rest.split_once('/') {
            Some((repo, file)) => (repo, Some(file)),
            None => (rest, None),
        };
        let (repo, revision) = repo.split_once('@').unwrap_or((repo, "main"));
        let file_is_good = |f: &str| f.ends_with(".gguf") && f.split('/').all(is_plain);
        if ![owner, repo, revision].into_iter().all(is_plain) || !file.is_none_or(file_is_good) {
            return Err(wrong());
        }
        Ok(Self {
            owner: owner.into(),
            repo: repo.into(),
            revision: revision.into(),
            file: file.map(str::to_string),
        })
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}/{}", self.owner, self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        match &self.file {
            Some(file) => write!(f, "/{file}"),
            None => Ok(()),
        }
    }
}

impl HubName {
    /// Where its files lie. No manifest can have such a name, since `@` is not plain.
    fn folder(&self, cache: &ModelCache) -> PathBuf {
        let leaf = format!("{}@{}", self.repo, self.revision);
        cache.folder().join("@hub").join(&self.owner).join(leaf)
    }

    /// The name without a file.
    fn repository(&self) -> Self {
        let file = None;
        Self {
            file,
            ..self.clone()
        }
    }
}

/// Why a model could not be fetched from a hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("the client of the hub cannot be made: {0}")]
    Client(String),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error("the hub's list of the files of {name} makes no sense: {problem}")]
    Listing { name: String, problem: String },
    #[error("{name} has {several}; say which, for example: homeostat models pull {example}")]
    Several {
        name: String,
        several: String,
        example: String,
    },
    #[error("{name} has no file {file}; it has: {known}")]
    NoSuchFile {
        name: String,
        file: String,
        known: String,
    },
    #[error(
        "{name} has neither a .gguf file nor config.json with model.safetensors, and nothing else \
         can be loaded here; it has: {known}"
    )]
    NothingToLoad { name: String, known: String },
    #[error("cannot write {}: {source}", path.display())]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is not a record of pulled files: {problem}", path.display())]
    Record { path: PathBuf, problem: String },
    #[error(transparent)]
    Damaged(#[from] CacheError),
}

/// What the hub says of a repository at one revision.
#[derive(Debug, Clone, Deserialize)]
struct Listing {
    /// The commit; all files are fetched from this one, whatever is pushed meanwhile.
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Clone, Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Clone, Deserialize)]
struct Lfs {
    sha256: Option<String>,
}

impl Sibling {
    fn sha256(&self) -> Option<&str> {
        let digest = self.lfs.as_ref()?.sha256.as_deref();
        digest.filter(|d| transfer::is_sha256(d))
    }
}

/// A hub, as the environment names it.
pub struct Hub {
    endpoint: Option<String>,
    token: Option<String>,
    agent: Agent,
}

impl Hub {
    /// HF_ENDPOINT is the address, HF_TOKEN the token; without it the one that hf-hub's
    /// own cache keeps.
    pub fn from_env() -> Self {
        let var = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
        // hf-hub panics where it finds no home.
        let has_home = std::env::home_dir().is_some() || var("HF_HOME").is_some();
        let saved = || has_home.then(|| Cache::from_env().token())?;
        let endpoint = var("HF_ENDPOINT");
        Self {
            endpoint: endpoint.map(|e| e.trim_end_matches('/').to_string()),
            token: var("HF_TOKEN").map(|t| t.trim().to_string()).or_else(saved),
            agent: transfer::agent(),
        }
    }

    fn repo(&self, name: &HubName, revision: &str) -> Result<ApiRepo, HubError> {
        // The folder is hf-hub's for downloads, which it is not asked for.
        let mut api = ApiBuilder::from_cache(Cache::new(std::env::temp_dir()))
            .with_token(self.token.clone())
            .with_progress(false);
        if let Some(endpoint) = &self.endpoint {
            api = api.with_endpoint(endpoint.clone());
        }
        let api = api.build().map_err(|e| HubError::Client(e.to_string()))?;
        let id = format!("{}/{}", name.owner, name.repo);
        Ok(api.repo(Repo::with_revision(
            id,
            RepoType::Model,
            revision.to_string(),
        )))
    }

    fn list(&self, name: &HubName) -> Result<Listing, HubError> {
        let senseless = |problem: String| HubError::Listing {
            name: name.to_string(),
            problem,
        };
        let what = name.repository().to_string();
        let response = self
            .repo(name, &name.revision)?
            .info_request()
            .query("blobs", "true")
            .config()
            .http_status_as_error(false)
            .timeout_connect(Some(transfer::CONNECT))
            .timeout_global(Some(Duration::from_secs(60)))
            .build()
            .call();
        let mut response = response.map_err(|e| TransferError::connection(&what, &e))?;
        transfer::check_status(&what, &response, self.token.is_some())?;
        let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES);
        let listing: Listing = body.read_json().map_err(|e| senseless(e.to_string()))?;
        if !is_plain(&listing.sha) {
            return Err(senseless(format!("{:?} is no commit", listing.sha)));
        }
        Ok(listing)
    }

    /// Brings a model into the cache; `false` when all of it was there already. Progress is
    /// told on standard error.
    pub fn pull(&self, name: &HubName, cache: &ModelCache) -> Result<bool, HubError> {
        let listing = self.list(name)?;
        let wanted = select(name, &listing.siblings)?;
        let folder = name.folder(cache);
        let repo = self.repo(name, &listing.sha)?;
        let mut record = Record::read(&folder)?.unwrap_or_default();
        record.name = name.repository().to_string();
        record.revision.clone_from(&name.revision);
        let mut fresh = false;
        for sibling in wanted {
            if record.has(&folder, sibling) {
                continue;
            }
            let target = folder.join(&sibling.rfilename);
            let parent = target.parent().unwrap_or(&folder);
            std::fs::create_dir_all(parent).map_err(|source| HubError::Write {
                path: parent.into(),
                source,
            })?;
            let kept = transfer::fetch(
                &self.agent,
                &Wanted {
                    what: format!("{} of {}", sibling.rfilename, name.repository()),
                    url: repo.url(&sibling.rfilename),
                    token: self.token.as_deref(),
                    target: &target,
                    bytes: sibling.size,
                    sha256: sibling.sha256(),
                },
            )?;
            record.keep(&sibling.rfilename, &listing.sha, &kept);
            // After every file, so that an interrupted pull goes on where it was.
            record.write(&folder)?;
            fresh = true;
        }
        Ok(fresh)
    }
}

/// The files that a name means.
fn select<'a>(name: &HubName, siblings: &'a [Sibling]) -> Result<Vec<&'a Sibling>, HubError> {
    let safe = |s: &&Sibling| s.rfilename.split('/').all(is_plain);
    let known: Vec<&Sibling> = siblings.iter().filter(safe).collect();
    let find = |file: &str| known.iter().find(|s| s.rfilename == file).copied();
    let all = || {
        let names: Vec<&str> = known.iter().map(|s| s.rfilename.as_str()).collect();
        match names.len() {
            0 => "no files".to_string(),
            n if n > 20 => format!("{}, … ({n} files)", names[..20].join(", ")),
            _ => names.join(", "),
        }
    };
    if let Some(file) = &name.file {
        let found = find(file).ok_or_else(|| HubError::NoSuchFile {
            name: name.repository().to_string(),
            file: file.clone(),
            known: all(),
        })?;
        return Ok(vec![found]);
    }
    let shard = |s: &&&Sibling| {
        let file = s.rfilename.as_str();
        file.starts_with("model-") && file.ends_with(".safetensors")
    };
    let weights: Vec<&Sibling> = match (find(SINGLE), find(INDEX)) {
        (Some(single), _) => vec![single],
        (None, Some(index)) => {
            let shards = known.iter().filter(shard).copied();
            [index].into_iter().chain(shards).collect()
        }
        (None, None) => Vec::new(),
    };
    if !weights.is_empty() && find(COMPANIONS[0]).is_some() {
        // The small ones first: a wrong model shows before gigabytes are fetched.
        let companions = COMPANIONS.into_iter().filter_map(find);
        return Ok(companions.chain(weights).collect());
    }
    let ggufs = known.iter().filter(|s| s.rfilename.ends_with(".gguf"));
    let ggufs: Vec<&Sibling> = ggufs.copied().collect();
    match ggufs[..] {
        [] => Err(HubError::NothingToLoad {
            name: name.to_string(),
            known: all(),
        }),
        [only] => Ok(vec![only]),
        [first, ..] => {
            let size = |s: &&Sibling| match s.size {
                Some(bytes) => format!("{} ({:.1} MB)", s.rfilename, bytes as f64 / 1e6),
                None => s.rfilename.clone(),
            };
            let list: Vec<String> = ggufs.iter().map(size).collect();
            Err(HubError::Several {
                name: name.to_string(),
                several: format!("{} .gguf files: {}", ggufs.len(), list.join(", ")),
                example: format!("{name}/{}", first.rfilename),
            })
        }
    }
}

/// What was pulled of one repository: written after every file, compared before use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// As for `pull`, without a file.
    pub name: String,
    pub revision: String,
    pub files: Vec<PulledFile>,
}

/// One file as it arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PulledFile {
    pub name: String,
    pub commit: String,
    pub bytes: u64,
    pub sha256: String,
}

impl Record {
    fn read(folder: &Path) -> Result<Option<Self>, HubError> {
        let path = folder.join(RECORD);
        let wrong = |problem: String| HubError::Record {
            path: path.clone(),
            problem,
        };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(wrong(e.to_string())),
        };
        let record: Self = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        match record
            .files
            .iter()
            .find(|f| !f.name.split('/').all(is_plain))
        {
            Some(file) => Err(wrong(format!("file name {:?}", file.name))),
            None => Ok(Some(record)),
        }
    }

    /// Whether this very file is in the cache. Where the hub names no digest its size must do.
    fn has(&self, folder: &Path, sibling: &Sibling) -> bool {
        let Some(file) = self.files.iter().find(|f| f.name == sibling.rfilename) else {
            return false;
        };
        let as_listed = sibling.size.is_none_or(|bytes| bytes == file.bytes)
            && sibling.sha256().is_none_or(|digest| digest == file.sha256);
        as_listed && check(self, folder, file).is_ok()
    }

    fn keep(&mut self, name: &str, commit: &str, kept: &Kept) {
        self.files.retain(|f| f.name != name);
        self.files.push(PulledFile {
            name: name.into(),
            commit: commit.into(),
            bytes: kept.bytes,
            sha256: kept.sha256.clone(),
        });
    }

    fn write(&self, folder: &Path) -> Result<(), HubError> {
        let path = folder.join(RECORD);
        let write = |source| HubError::Write {
            path: path.clone(),
            source,
        };
        let text = serde_json::to_string_pretty(self).expect("names and numbers are JSON");
        let mut partial = tempfile::NamedTempFile::new_in(folder).map_err(write)?;
        std::io::Write::write_all(&mut partial, text.as_bytes()).map_err(write)?;
        transfer::readable_by_all(partial.path()).map_err(write)?;
        partial.persist(&path).map_err(|e| write(e.error))?;
        Ok(())
    }

    /// What an engine can load of it: the safetensors folder and each GGUF file, as names.
    pub fn loadable(&self) -> Vec<String> {
        let has = |file: &str| self.files.iter().any(|f| f.name == file);
        let folder = has(COMPANIONS[0]) && (has(SINGLE) || has(INDEX));
        let ggufs = self.files.iter().filter(|f| f.name.ends_with(".gguf"));
        let ggufs = ggufs.map(|f| format!("{}/{}", self.name, f.name));
        folder
            .then(|| self.name.clone())
            .into_iter()
            .chain(ggufs)
            .collect()
    }
}

fn check(record: &Record, folder: &Path, file: &PulledFile) -> Result<(), CacheError> {
    let expected = FileSpec {
        name: file.name.clone(),
        from: file.name.clone(),
        bytes: file.bytes,
        sha256: file.sha256.clone(),
    };
    let by_name = format!("{}/{}", record.name, file.name);
    let model = match file.name.ends_with(".gguf") {
        true => &by_name,
        false => &record.name,
    };
    cache::check(model, &folder.join(&file.name), &expected)
}

/// What an engine loads for a name: a GGUF file, or the folder with safetensors. All files of
/// it are hashed first.
pub fn verified(name: &HubName, cache: &ModelCache) -> Result<PathBuf, HubError> {
    let folder = name.folder(cache);
    let missing = |path: PathBuf| CacheError::Missing {
        model: name.to_string(),
        path,
    };
    let Some(record) = Record::read(&folder)? else {
        return Err(missing(folder).into());
    };
    let is_gguf = |f: &&PulledFile| f.name.ends_with(".gguf");
    if let Some(wanted) = &name.file {
        let file = record.files.iter().find(|f| f.name == *wanted);
        let file = file.ok_or_else(|| missing(folder.join(wanted)))?;
        check(&record, &folder, file)?;
        return Ok(folder.join(wanted));
    }
    if record.loadable().first() == Some(&record.name) {
        let parts = record.files.iter().filter(|f| !is_gguf(f));
        for file in parts {
            check(&record, &folder, file)?;
        }
        return Ok(folder);
    }
    let ggufs: Vec<&PulledFile> = record.files.iter().filter(is_gguf).collect();
    match ggufs[..] {
        [] => Err(missing(folder).into()),
        [only] => {
            check(&record, &folder, only)?;
            Ok(folder.join(&only.name))
        }
        [first, ..] => {
            let names: Vec<&str> = ggufs.iter().map(|f| f.name.as_str()).collect();
            Err(HubError::Several {
                name: name.to_string(),
                several: format!("several files in the cache: {}", names.join(", ")),
                example: format!("{name}/{}", first.name),
            })
        }
    }
}

/// All that was pulled from a hub, by name, with the folder it lies in. A folder whose record
/// is broken is an error of its own.
pub fn pulled(cache: &ModelCache) -> Vec<Result<(Record, PathBuf), HubError>> {
    let entries = |folder: &Path| {
        let read = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = read.map(|e| e.path()).collect();
        paths.sort();
        paths
    };
    let owners = entries(&cache.folder().join("@hub"));
    let folders = owners.iter().flat_map(|owner| entries(owner));
    let read = |folder: PathBuf| match Record::read(&folder) {
        Ok(record) => record.map(|record| Ok((record, folder))),
        Err(error) => Some(Err(error)),
    };
    folders.filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HubName {
        text.parse().unwrap()
    }

    fn files(names: &[&str]) -> Vec<Sibling> {
        let sibling = |name: &&str| Sibling {
            rfilename: name.to_string(),
            size: Some(7),
            lfs: None,
        };
        names.iter().map(sibling).collect()
    }

    fn chosen(of: &str, names: &[&str]) -> Vec<String> {
        let all = files(names);
        let chosen = select(&name(of), &all).unwrap();
        chosen.iter().map(|s| s.rfilename.clone()).collect()
    }

    #[test]
    fn a_name_may_have_a_revision_and_a_file_and_is_written_as_it_was_read() {
        for text in [
            "hf:a/b",
            "hf:a/b@v1.0",
            "hf:a/b/m.gguf",
            "hf:a/b@v1/x/m.gguf",
        ] {
            assert_eq!(name(text).to_string(), text);
        }
        assert_eq!(name("hf:a/b@main").to_string(), "hf:a/b");
        assert_eq!(name("hf:a/b@v1/x/m.gguf").file.as_deref(), Some("x/m.gguf"));
    }

    #[test]
    fn a_name_that_would_leave_the_cache_is_refused() {
        for text in [
            "a/b",
            "hf:a",
            "hf:/b",
            "hf:../b",
            "hf:a/..",
            "hf:a/b@..",
            "hf:a/b@",
            "hf:a/b/../m.gguf",
            "hf:a/b/m.bin",
            "hf:a/b//m.gguf",
            "hf:a b/c",
            "hf:a/b/.m.gguf",
        ] {
            let error = text.parse::<HubName>().unwrap_err();
            assert!(error.contains("hf:OWNER/REPO"), "{text}: {error}");
        }
    }

    #[test]
    fn safetensors_come_with_what_they_need_and_nothing_else() {
        let all = [
            "README.md",
            "config.json",
            "model-00001-of-00002.safetensors",
            "pytorch_model.bin",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "onnx/model.onnx",
            "original/model.safetensors",
            "m.Q4_0.gguf",
        ];
        assert_eq!(
            chosen("hf:a/b", &all),
            [
                "config.json",
                "tokenizer.json",
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ]
        );
        let single = [
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
        ];
        assert_eq!(
            chosen("hf:a/b", &single),
            ["config.json", "model.safetensors"]
        );
    }

    #[test]
    fn the_only_gguf_is_meant_and_among_several_one_must_be_named() {
        assert_eq!(chosen("hf:a/b", &["x.gguf", "README.md"]), ["x.gguf"]);
        let both = files(&["x.gguf", "y.gguf"]);
        let error = select(&name("hf:a/b"), &both).unwrap_err().to_string();
        for word in ["2 .gguf files", "x.gguf (0.0 MB)", "pull hf:a/b/x.gguf"] {
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(chosen("hf:a/b/y.gguf", &["x.gguf", "y.gguf"]), ["y.gguf"]);
        let error = select(&name("hf:a/b/z.gguf"), &both).unwrap_err();
        assert!(
            error.to_string().contains("it has: x.gguf, y.gguf"),
            "{error}"
        );
        let error = select(&name("hf:a/b"), &files(&["README.md"])).unwrap_err();
        assert!(matches!(error, HubError::NothingToLoad { .. }), "{error}");
    }

    #[test]
    fn a_file_name_of_the_hub_that_leads_out_of_the_folder_is_not_seen() {
        let error = select(&name("hf:a/b"), &files(&["../../x.gguf", "/x.gguf"])).unwrap_err();
        assert!(error.to_string().contains("no files"), "{error}");
    }

    #[test]
    fn what_was_pulled_is_found_again_and_a_change_of_it_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = ModelCache::open(Some(folder.path())).unwrap();
        let name = name("hf:a/b/x.gguf");
        let error = verified(&name, &cache).unwrap_err().to_string();
        assert!(
            error.contains("homeostat models pull hf:a/b/x.gguf"),
            "{error}"
        );
        let place = name.folder(&cache);
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join("x.gguf"), b"weights").unwrap();
        let (bytes, sha256) = cache::digest(&place.join("x.gguf")).unwrap();
        let mut record = Record {
            name: name.repository().to_string(),
            revision: "main".into(),
            files: Vec::new(),
        };
        record.keep("x.gguf", "c0ffee", &Kept { bytes, sha256 });
        record.write(&place).unwrap();
        assert_eq!(verified(&name, &cache).unwrap(), place.join("x.gguf"));
        assert_eq!(
            verified(&name.repository(), &cache).unwrap(),
            place.join("x.gguf")
        );
        let all = pulled(&cache);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].as_ref().unwrap().0.loadable(), ["hf:a/b/x.gguf"]);
        std::fs::write(place.join("x.gguf"), b"weightz").unwrap();
        let error = verified(&name, &cache).unwrap_err();
        assert!(
            matches!(error, HubError::Damaged(CacheError::Damaged { .. })),
            "{error}"
        );
        std::fs::write(place.join(RECORD), b"{").unwrap();
        assert!(matches!(
            verified(&name, &cache),
            Err(HubError::Record { .. })
        ));
        assert!(pulled(&cache)[0].is_err());
    }
}
