//! Machine code: where it may come from, and how it is kept over restarts.
//!
//! Loading machine code is running it: whoever can write a cache entry could otherwise
//! run anything in this process. So an entry is authenticated with a key that was made at
//! random on this machine and lies in a folder that only this user can write, and it is
//! read whole into memory before it is checked: what was checked is what is loaded. An
//! entry says what it was made of (component, engine, versions), so a good entry under
//! another's name is as wrong as a forged one.
//!
//! The cache never decides whether a policy is admitted. An entry that is wrong is set
//! aside and made again; a folder that cannot be used means compiling every time.

use std::fs::{self, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde::Serialize;
use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::config::CacheConfig;
use crate::state::disk::sync_folder;

/// Counted up when admission begins to check what it did not: older code is made again.
const VALIDATION_VERSION: u32 = 1;
/// How every entry begins.
const MAGIC: &[u8; 16] = b"homeostat code 1";
/// What stands before the code: the magic word and the entry's name.
const HEAD_BYTES: usize = MAGIC.len() + 32;
/// What stands after it: HMAC-SHA256 of all before.
const TAG_BYTES: usize = 32;
const KEY_FILE: &str = "key";
const KEY_BYTES: usize = 32;
const ENTRY: &str = "code";
const ASIDE: &str = "wrong";
const PARTIAL: &str = "partial";

/// Machine code that may be loaded: it came from our own compiler, in this process, over
/// a pipe from our own child, or from an entry whose authentication holds. There is no
/// other way to make one.
pub(crate) struct Artifact {
    bytes: Vec<u8>,
    code: Range<usize>,
}

impl Artifact {
    /// For the compiler alone.
    pub fn from_our_compiler(code: Vec<u8>) -> Self {
        Self {
            code: 0..code.len(),
            bytes: code,
        }
    }

    fn code(&self) -> &[u8] {
        &self.bytes[self.code.clone()]
    }
}

/// Loads machine code. A part of what can be wrong with it is only found here: that it
/// does not fit into the pool.
pub(crate) fn load(engine: &Engine, artifact: &Artifact) -> wasmtime::Result<Component> {
    // SAFETY: `deserialize` asks for bytes that wasmtime's own compiler wrote and nobody
    // changed since. An `Artifact` holds nothing else: it is made from the output of
    // `precompile_component`, here or in a child of the same program over a pipe that
    // nobody else holds, or from a cache entry whose HMAC over exactly these bytes was
    // checked in memory with a key that only this user can read. Whether the engine fits
    // is checked by wasmtime itself.
    #[allow(unsafe_code, reason = "loading machine code; see SAFETY")]
    unsafe {
        Component::deserialize(engine, artifact.code())
    }
}

/// Lowercase hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The bytes of lowercase hexadecimal digits; none for anything else.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}

/// Everything that decides whether an engine can run another's code: target, compiler
/// flags, tunables, features, wasmtime's version.
pub(crate) fn compatibility(engine: &Engine) -> [u8; 32] {
    struct Whole(Sha256);
    impl Hasher for Whole {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut hasher = Whole(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.0.finalize().into()
}

/// The name of an entry: what its code was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Id([u8; 32]);

impl Id {
    pub fn new(engine: &Engine, component: &[u8; 32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(MAGIC);
        hash.update(component);
        hash.update(compatibility(engine));
        hash.update(VALIDATION_VERSION.to_le_bytes());
        Self(hash.finalize().into())
    }
}

/// What the cache did since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CacheStats {
    /// Policies that were loaded from it.
    pub hits: u64,
    /// Policies that were not in it.
    pub misses: u64,
    /// Entries that were forged, damaged or foreign, and set aside.
    pub set_aside: u64,
}

/// A folder of machine code.
pub(crate) struct CompileCache {
    dir: PathBuf,
    key: hmac::Key,
    max_bytes: u64,
    hits: AtomicU64,
    misses: AtomicU64,
    set_aside: AtomicU64,
}

impl CompileCache {
    /// Opens the folder; makes it, and the key, if they are missing. `Ok(None)` = there
    /// shall be none.
    ///
    /// # Errors
    /// Why the folder cannot be used, for the operator.
    pub fn open(config: &CacheConfig) -> Result<Option<Self>, String> {
        let Some(dir) = config.dir.clone().filter(|_| config.max_bytes > 0) else {
            return Ok(None);
        };
        let shown = dir.display();
        make_private(&dir).map_err(|e| format!("{shown} cannot be made: {e}"))?;
        belongs_to_me(&dir, 0o022)?;
        let key = read_or_make_key(&dir.join(KEY_FILE))?;
        Ok(Some(Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            dir,
            max_bytes: config.max_bytes,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            set_aside: AtomicU64::new(0),
        }))
    }

    pub fn stats(&self) -> CacheStats {
        CacheStats {
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            set_aside: self.set_aside.load(Relaxed),
        }
    }

    fn path(&self, id: Id, kind: &str) -> PathBuf {
        self.dir.join(format!("{}.{kind}", hex(&id.0)))
    }

    /// The code of an entry that is there and good. A wrong one is set aside.
    pub fn get(&self, id: Id) -> Option<Artifact> {
        let path = self.path(id, ENTRY);
        let Some(bytes) = self.read(&path) else {
            self.misses.fetch_add(1, Relaxed);
            return None;
        };
        match self.verified(id, bytes) {
            Some(artifact) => {
                self.hits.fetch_add(1, Relaxed);
                // Its age says when it was last of use; without it, it leaves too early.
                let _ = File::open(&path).and_then(|f| f.set_modified(SystemTime::now()));
                Some(artifact)
            }
            None => {
                self.put_aside(id);
                self.misses.fetch_add(1, Relaxed);
                None
            }
        }
    }

    /// The whole file, or nothing if it is missing, unreadable or larger than it could be.
    fn read(&self, path: &Path) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(path).ok()?;
        let mut bounded = file.take(self.max_bytes.saturating_add(1));
        bounded.read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    fn verified(&self, id: Id, bytes: Vec<u8>) -> Option<Artifact> {
        let end = bytes.len().checked_sub(TAG_BYTES)?;
        let (signed, tag) = bytes.split_at(end);
        let head = signed.strip_prefix(MAGIC)?;
        let good = head.starts_with(&id.0) && hmac::verify(&self.key, signed, tag).is_ok();
        good.then_some(Artifact {
            bytes,
            code: HEAD_BYTES..end,
        })
    }

    /// An entry that must not be loaded is kept for whoever wants to know who wrote it.
    pub fn put_aside(&self, id: Id) {
        self.set_aside.fetch_add(1, Relaxed);
        let (from, to) = (self.path(id, ENTRY), self.path(id, ASIDE));
        tracing::warn!(
            "{} is not what this host wrote there; it is compiled again",
            from.display()
        );
        if fs::rename(&from, &to).is_err() {
            // It stays, is found wrong again, and is written over by the next good one.
            tracing::warn!("{} cannot be set aside", from.display());
        }
    }

    /// Keeps code, and makes room for it.
    ///
    /// # Errors
    /// Why it was not kept, for the report: the policy serves all the same.
    pub fn put(&self, id: Id, artifact: &Artifact) -> Result<(), String> {
        let code = artifact.code();
        let size = (HEAD_BYTES + code.len() + TAG_BYTES) as u64;
        if size > self.max_bytes {
            return Err(format!(
                "its code has {size} bytes, policies.cache.max_bytes is {}",
                self.max_bytes
            ));
        }
        self.make_room(size);
        // Another host with the same folder may be writing the same entry.
        let partial = self.path(id, &format!("{}.{PARTIAL}", std::process::id()));
        let mut context = hmac::Context::with_key(&self.key);
        for part in [MAGIC, &id.0[..], code] {
            context.update(part);
        }
        let tag = context.sign();
        let written = write_whole(&partial, &[MAGIC, &id.0, code, tag.as_ref()])
            .and_then(|()| fs::rename(&partial, self.path(id, ENTRY)))
            .and_then(|()| File::open(&self.dir)?.sync_all());
        written.map_err(|error| {
            // Half an entry would be found wrong; none is cleaner. It may be gone already.
            let _ = fs::remove_file(&partial);
            format!("{} cannot be written: {error}", self.dir.display())
        })
    }

    /// Removes what was unused longest until `size` fits.
    fn make_room(&self, size: u64) {
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let ours = [ENTRY, ASIDE, PARTIAL];
            let kind = path.extension().and_then(|e| e.to_str());
            let Some(meta) = entry.metadata().ok().filter(|m| m.is_file()) else {
                continue;
            };
            if kind.is_some_and(|kind| ours.contains(&kind)) {
                let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                files.push((used, meta.len(), path));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in files {
            if total.saturating_add(size) <= self.max_bytes {
                return;
            }
            if fs::remove_file(path).is_ok() {
                total -= len;
            }
        }
    }
}

fn make_private(dir: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

/// Whether a file is this user's, and nobody of `others` (permission bits) can touch it.
fn belongs_to_me(path: &Path, others: u32) -> Result<(), String> {
    let shown = path.display();
    let meta = fs::symlink_metadata(path).map_err(|e| format!("{shown} cannot be read: {e}"))?;
    if meta.is_symlink() {
        return Err(format!("{shown} is a link; name the folder it leads to"));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(format!("{shown} belongs to another user"));
        }
        if meta.mode() & others != 0 {
            return Err(format!(
                "{shown} is open to other users (mode {:o}): whoever writes there could run \
                 code in this host. chmod go= {shown}, and remove what is in it",
                meta.mode() & 0o777
            ));
        }
    }
    Ok(())
}

fn read_or_make_key(path: &Path) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let made = write_key(path);
    match made {
        Ok(key) => return Ok(key),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(format!("{shown} cannot be made: {error}")),
    }
    belongs_to_me(path, 0o077)?;
    let text = fs::read_to_string(path).map_err(|e| format!("{shown} cannot be read: {e}"))?;
    unhex(text.trim_end())
        .filter(|key| key.len() == KEY_BYTES)
        .ok_or_else(|| format!("{shown} is no key; remove it and a new one is made"))
}

/// A new key, under its name only when it is whole: half a key would be none for every
/// start to come. Of hosts that begin together, one makes it.
fn write_key(path: &Path) -> std::io::Result<Vec<u8>> {
    if path.try_exists()? {
        return Err(std::io::ErrorKind::AlreadyExists.into());
    }
    let mut random = [0; KEY_BYTES + 8];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| std::io::Error::other("the system gives no random numbers"))?;
    let (key, name) = random.split_at(KEY_BYTES);
    let fresh = path.with_extension(format!("{}.new", hex(name)));
    let written = write_whole(&fresh, &[hex(key).as_bytes()])
        // Unlike a rename, a link takes nobody's place.
        .and_then(|()| fs::hard_link(&fresh, path))
        .and_then(|()| sync_folder(path));
    // Nobody has heard of this name, so one that stays is only in the way of the eye.
    let _ = fs::remove_file(&fresh);
    written.map(|()| key.to_vec())
}

/// A new file with these parts, on the disk when this returns.
pub(crate) fn write_whole(path: &Path, parts: &[&[u8]]) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()
}
