//! State of policies: small, host-owned, and longer-lived than any instance.
//!
//! Every policy has one bucket under its name, shared by all its instances and kept over
//! swaps. Entries are read from memory. With a folder, each bucket has a file and a thread
//! that writes to it: all changes that came while one commit ran are the next one, so many
//! requests share the price of one.
//!
//! What a guest is told is what holds. With [`Durability::Sync`] a `set` that has returned
//! is on the disk: a killed process and a cut of power lose nothing that was acknowledged.
//! A write whose commit fails or outlasts the call's deadline ends as an error, which says
//! that it may or may not be kept. A read may see what is not on the disk yet; whoever
//! then writes is acknowledged after it, since commits keep the order of the changes.
//! Where a folder is named and a file in it cannot be opened, nothing is known of that state:
//! reads and writes are errors, and the file is tried again.
//!
//! A policy that changes the form of its state counts [versions](StateStore::bucket):
//! each has a bucket of its own, so an upgrade destroys nothing and a rollback finds what
//! it left.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::{Durability, StateConfig};
use crate::signature::is_name;

pub(crate) mod disk;
mod export;

pub use export::{StateExport, StateValue};

/// Keys answered at once by `list-keys`.
const PAGE_KEYS: usize = 256;
/// How long deferred changes are gathered, and how long a failed commit waits for the next
/// attempt: long enough to make one write of a burst, short enough to lose little.
const GATHER: Duration = Duration::from_millis(250);
/// How long an operator's import waits for the disk.
const IMPORT_PATIENCE: Duration = Duration::from_secs(30);

/// All buckets of a room.
#[derive(Debug)]
pub(crate) struct StateStore {
    dir: Option<PathBuf>,
    config: StateConfig,
    buckets: Mutex<HashMap<(String, u32), Arc<Bucket>>>,
}

/// The state of one policy, in one version.
#[derive(Debug)]
pub struct Bucket {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    version: u32,
}

#[derive(Debug)]
struct Shared {
    name: String,
    config: StateConfig,
    inner: Mutex<Inner>,
    /// Something is to be written, or the end has come.
    wanted: Condvar,
    /// A commit has ended, well or not.
    settled: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    map: BTreeMap<String, Vec<u8>>,
    bytes: u64,
    /// The file, until its thread takes it; never there for a bucket in memory.
    file: Option<disk::File>,
    on_disk: bool,
    /// There should be a file, and it could not be opened.
    closed: Option<Closed>,
    /// What is in it is a candidate's alone: the file has none of it.
    lent: bool,
    changes: disk::Changes,
    /// Counts changes; those up to `durable` are on the disk.
    changed: u64,
    durable: u64,
    commits: u64,
    /// Why the last commit failed, and how often one has.
    failure: Option<String>,
    failures: u64,
    end: bool,
}

/// A file that could not be opened.
#[derive(Debug)]
struct Closed {
    path: PathBuf,
    why: String,
    tried: Instant,
}

/// How much a policy keeps, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StateStatus {
    /// Name of the policy.
    pub policy: String,
    /// Version of its form; 0 = it counts none.
    pub version: u32,
    /// Keys that it has.
    pub keys: usize,
    /// Bytes of its keys and values.
    pub bytes: u64,
    /// Whether it outlives the process.
    pub on_disk: bool,
    /// Transactions written since the start.
    pub commits: u64,
    /// Why it cannot be opened or written now.
    pub failure: Option<String>,
}

impl StateStore {
    /// A store in this folder, or in memory without one.
    pub fn new(dir: Option<PathBuf>, config: StateConfig) -> Self {
        Self {
            dir,
            config,
            buckets: Mutex::default(),
        }
    }

    /// The bucket of a policy; read from its file the first time.
    pub fn bucket(&self, policy: &str, version: u32) -> Arc<Bucket> {
        let mut buckets = self.lock();
        let key = (policy.to_string(), version);
        if let Some(bucket) = buckets.get(&key) {
            return Arc::clone(bucket);
        }
        let mut inner = Inner::default();
        if let Some(dir) = &self.dir {
            inner.read(dir.join(file_name(policy, version)));
            if let Some(Closed { why, .. }) = &inner.closed {
                tracing::warn!(policy, "its state cannot be opened, trying again: {why}");
            }
        }
        let bucket = Arc::new(Bucket::new(policy, version, self.config, inner));
        buckets.insert(key, Arc::clone(&bucket));
        bucket
    }

    /// A copy of a bucket that probes may write to.
    pub fn scratch(&self, bucket: &Bucket) -> Arc<Bucket> {
        let original = bucket.shared.lock();
        let inner = Inner {
            map: original.map.clone(),
            bytes: original.bytes,
            ..Inner::default()
        };
        let name = &bucket.shared.name;
        Arc::new(Bucket::new(name, bucket.version, self.config, inner))
    }

    /// The newest version below this one that a policy has state of.
    pub fn newest_below(&self, policy: &str, version: u32) -> Option<u32> {
        (0..version).rev().find(|v| self.has(policy, *v))
    }

    /// Whether there is state of this version.
    pub fn has(&self, policy: &str, version: u32) -> bool {
        let known = || self.lock().contains_key(&(policy.to_string(), version));
        let found = || {
            self.dir.as_ref().is_some_and(|dir| {
                let path = dir.join(file_name(policy, version));
                path.exists() || path.with_extension("state").exists()
            })
        };
        (known() || found()) && !self.bucket(policy, version).is_vacant()
    }

    /// All buckets that were asked for since the start, by name.
    pub fn status(&self) -> Vec<StateStatus> {
        let mut all: Vec<_> = self.lock().values().map(|b| b.status()).collect();
        all.sort_by(|a, b| (&a.policy, a.version).cmp(&(&b.policy, b.version)));
        all
    }

    /// This version of a policy, or the newest that has something; of those that were asked
    /// for since the start and can be opened.
    pub fn export(&self, policy: &str, version: Option<u32>) -> Option<StateExport> {
        let buckets = self.lock();
        let of_it = buckets.values().filter(|b| {
            b.shared.name == policy && version.is_none_or(|version| b.version == version)
        });
        let bucket = of_it.max_by_key(|b| (!b.is_vacant(), b.version))?;
        let entries = bucket.open().ok()?.map.clone();
        Some(StateExport {
            policy: policy.to_string(),
            version: bucket.version,
            entries: entries
                .into_iter()
                .map(|(key, value)| (key, StateValue::of(&value)))
                .collect(),
        })
    }

    /// See [`crate::PolicyRoom::import_state`].
    pub fn import(&self, state: &StateExport) -> Result<StateStatus, String> {
        if !is_name(&state.policy) {
            return Err("a policy's name is 1 to 64 letters, digits, '-', '_' or '.'".into());
        }
        let value = |(key, value): (&String, &StateValue)| match value.bytes() {
            Ok(bytes) => Ok((key.clone(), bytes)),
            Err(error) => Err(format!("{key:?}: {error}")),
        };
        let entries = state.entries.iter().map(value).collect::<Result<_, _>>()?;
        let bucket = self.bucket(&state.policy, state.version);
        bucket.replace(entries, IMPORT_PATIENCE)?;
        Ok(bucket.status())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, u32), Arc<Bucket>>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One page of keys, and where the next one starts.
pub(crate) struct Page {
    pub keys: Vec<String>,
    pub next: Option<u64>,
}

fn size(key: &str, value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64
}

impl Bucket {
    fn new(name: &str, version: u32, config: StateConfig, inner: Inner) -> Self {
        Self {
            shared: Arc::new(Shared {
                name: name.to_string(),
                config,
                inner: Mutex::new(inner),
                wanted: Condvar::new(),
                settled: Condvar::new(),
            }),
            writer: Mutex::default(),
            version,
        }
    }

    /// The entries, if they are known: a file that could not be opened is tried again.
    fn open(&self) -> Result<MutexGuard<'_, Inner>, String> {
        let mut inner = self.shared.lock();
        if let Some(closed) = inner.closed.take_if(|c| c.tried.elapsed() >= GATHER) {
            inner.read(closed.path);
            if inner.closed.is_none() {
                tracing::info!(policy = self.shared.name, "its state was opened");
            }
        }
        if let Some(Closed { why, .. }) = &inner.closed {
            return Err(format!("state cannot be opened: {why}"));
        }
        Ok(inner)
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, String> {
        Ok(self.open()?.map.get(key).cloned())
    }

    pub(crate) fn exists(&self, key: &str) -> Result<bool, String> {
        Ok(self.open()?.map.contains_key(key))
    }

    /// Returns when the value is kept as safely as the durability says, or after
    /// `patience` with an error.
    pub(crate) fn set(
        &self,
        key: String,
        value: Vec<u8>,
        patience: Duration,
    ) -> Result<(), String> {
        let mut inner = self.open()?;
        inner.set(&self.shared.config, key, value)?;
        self.kept(inner, patience)
    }

    pub(crate) fn delete(&self, key: &str, patience: Duration) -> Result<(), String> {
        let mut inner = self.open()?;
        inner.delete(key)?;
        self.kept(inner, patience)
    }

    /// Adds to a number kept as decimal text, so that `get` shows it in any language.
    pub(crate) fn increment(
        &self,
        key: String,
        delta: u64,
        patience: Duration,
    ) -> Result<u64, String> {
        let mut inner = self.open()?;
        let old = match inner.map.get(&key) {
            None => 0,
            Some(bytes) => std::str::from_utf8(bytes)
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
                .ok_or_else(|| format!("the value of {key:?} is not a decimal number"))?,
        };
        let new = old
            .checked_add(delta)
            .ok_or_else(|| format!("{key:?} would pass 2^64"))?;
        inner.set(&self.shared.config, key, new.to_string().into_bytes())?;
        self.kept(inner, patience)?;
        Ok(new)
    }

    pub(crate) fn list(&self, cursor: Option<u64>) -> Result<Page, String> {
        let inner = self.open()?;
        let start = usize::try_from(cursor.unwrap_or(0)).unwrap_or(usize::MAX);
        let keys: Vec<String> = inner
            .map
            .keys()
            .skip(start)
            .take(PAGE_KEYS)
            .cloned()
            .collect();
        let end = start.saturating_add(keys.len());
        let next = (end < inner.map.len()).then_some(end as u64);
        Ok(Page { keys, next })
    }

    /// Everything in it.
    pub(crate) fn entries(&self) -> BTreeMap<String, Vec<u8>> {
        self.shared.lock().map.clone()
    }

    /// Puts these entries in place of all that is there. What is too much changes nothing;
    /// what cannot be written is in memory, as with [`Self::set`].
    pub(crate) fn replace(
        &self,
        entries: BTreeMap<String, Vec<u8>>,
        patience: Duration,
    ) -> Result<(), String> {
        let mut inner = self.open()?;
        inner.writable()?;
        let mut new = Inner::default();
        for (key, value) in &entries {
            new.set(&self.shared.config, key.clone(), value.clone())?;
        }
        inner.lent = false;
        let gone = inner.map.keys().filter(|k| !entries.contains_key(*k));
        let gone: Vec<_> = gone.cloned().collect();
        for key in gone {
            inner.note(key, None);
        }
        for (key, value) in entries {
            inner.note(key, Some(value));
        }
        (inner.map, inner.bytes) = (new.map, new.bytes);
        self.kept(inner, patience)
    }

    /// Nothing is in it that somebody has to keep; not where that is unknown.
    pub(crate) fn is_vacant(&self) -> bool {
        let inner = self.open();
        inner.is_ok_and(|inner| inner.map.is_empty() || inner.lent)
    }

    /// Why it cannot be read or written now, if its file could not be opened.
    pub(crate) fn check_open(&self) -> Result<(), String> {
        self.open().map(drop)
    }

    /// Lets a candidate have a vacant bucket with these entries: in memory alone, until
    /// [`Self::replace`] fills it for whoever serves.
    pub(crate) fn lend(&self, entries: BTreeMap<String, Vec<u8>>) {
        let mut inner = self.shared.lock();
        inner.lent = true;
        inner.bytes = entries.iter().map(|(k, v)| size(k, v)).sum();
        inner.map = entries;
    }

    /// Makes it vacant again: what [`Self::replace`] has put into it serves nobody.
    pub(crate) fn discard(&self) {
        let mut inner = self.shared.lock();
        for key in std::mem::take(&mut inner.map).into_keys() {
            inner.note(key, None);
        }
        inner.bytes = 0;
        inner.lent = true;
        self.shared.wanted.notify_one();
    }

    /// For who serves from now on: whatever a candidate has left is gone.
    pub(crate) fn reclaim(&self) {
        let mut inner = self.shared.lock();
        if std::mem::take(&mut inner.lent) {
            inner.map.clear();
            inner.bytes = 0;
        }
    }

    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    pub(crate) fn status(&self) -> StateStatus {
        let inner = self.shared.lock();
        StateStatus {
            policy: self.shared.name.clone(),
            version: self.version,
            keys: inner.map.len(),
            bytes: inner.bytes,
            on_disk: inner.on_disk && !inner.lent,
            commits: inner.commits,
            failure: inner.failure.clone().or_else(|| {
                let closed = inner.closed.as_ref()?;
                Some(closed.why.clone())
            }),
        }
    }

    /// Waits until the change just made is on the disk, if that was promised.
    fn kept(&self, mut inner: MutexGuard<'_, Inner>, patience: Duration) -> Result<(), String> {
        if !inner.on_disk || inner.lent {
            return Ok(());
        }
        let file = inner.file.take();
        if let Some(file) = file {
            self.start_writer(file);
        }
        self.shared.wanted.notify_one();
        if self.shared.config.durability == Durability::Deferred {
            return Ok(());
        }
        let (mine, failures) = (inner.changed, inner.failures);
        let until = Instant::now() + patience;
        while inner.durable < mine {
            if inner.failures > failures {
                let why = inner.failure.as_deref().unwrap_or("it failed before");
                return Err(format!("not on the disk, and may be lost: {why}"));
            }
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                return Err(
                    "not on the disk before the call's deadline; it may be kept or \
                            lost"
                        .into(),
                );
            };
            let settled = &self.shared.settled;
            let waited = settled.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    fn start_writer(&self, file: disk::File) {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name("policy-state".into())
            .spawn(move || shared.write(file));
        match thread {
            Ok(thread) => {
                let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
                *writer = Some(thread);
            }
            // Nobody will write; whoever waits is told at the deadline.
            Err(error) => tracing::error!(policy = self.shared.name, "no thread: {error}"),
        }
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.shared.lock().end = true;
        self.shared.wanted.notify_one();
        let writer = self
            .writer
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = writer.take()
            && thread.join().is_err()
        {
            tracing::error!(policy = self.shared.name, "its state's writer had failed");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is complete before it can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of the writing thread: all changes there are, in one commit, again and
    /// again. At the end it writes what is left, once.
    fn write(&self, mut file: disk::File) {
        loop {
            let mut inner = self.lock();
            while inner.changes.is_empty() && !inner.end {
                let woken = self.wanted.wait(inner);
                inner = woken.unwrap_or_else(PoisonError::into_inner);
            }
            if inner.changes.is_empty() {
                return;
            }
            if self.config.durability == Durability::Deferred || inner.failure.is_some() {
                inner = self.gather(inner);
            }
            let last = inner.end;
            let changes = std::mem::take(&mut inner.changes);
            let upto = inner.changed;
            drop(inner);
            let outcome = file.commit(&changes);
            self.settle(upto, changes, outcome);
            if last {
                return;
            }
        }
    }

    fn gather<'a>(&'a self, mut inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        let until = Instant::now() + GATHER;
        while !inner.end
            && let Some(left) = until.checked_duration_since(Instant::now())
        {
            let woken = self.wanted.wait_timeout(inner, left);
            inner = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        inner
    }

    fn settle(&self, upto: u64, changes: disk::Changes, outcome: Result<(), String>) {
        let mut inner = self.lock();
        match outcome {
            Ok(()) => {
                if inner.failure.take().is_some() {
                    tracing::info!(policy = self.name, "state is written again");
                }
                inner.durable = upto;
                inner.commits += 1;
            }
            Err(error) => {
                if inner.failure.is_none() {
                    tracing::warn!(
                        policy = self.name,
                        "state cannot be written, trying again: {error}"
                    );
                }
                for (key, value) in changes {
                    inner.changes.entry(key).or_insert(value);
                }
                inner.failure = Some(error);
                inner.failures += 1;
            }
        }
        drop(inner);
        self.settled.notify_all();
    }
}

impl Inner {
    /// Takes in what a file has, or notes why that is not known.
    fn read(&mut self, path: PathBuf) {
        match disk::File::open(path.clone()) {
            Ok((file, map)) => {
                self.bytes = map.iter().map(|(k, v)| size(k, v)).sum();
                self.map = map;
                self.file = Some(file);
                self.on_disk = true;
            }
            Err(why) => {
                let tried = Instant::now();
                self.closed = Some(Closed { path, why, tried });
            }
        }
    }

    /// Notes a change for the file, if there is one; none = deleted.
    fn note(&mut self, key: String, value: Option<Vec<u8>>) {
        if self.on_disk && !self.lent {
            self.changed += 1;
            self.changes.insert(key, value);
        }
    }

    /// While the disk refuses, nothing is taken that could not be kept.
    fn writable(&self) -> Result<(), String> {
        match &self.failure {
            Some(why) => Err(format!("state cannot be written: {why}")),
            None => Ok(()),
        }
    }

    fn set(&mut self, config: &StateConfig, key: String, value: Vec<u8>) -> Result<(), String> {
        self.writable()?;
        let over = |what: &str, is: u64, limit: u64, name: &str| match is > limit {
            true => Err(format!(
                "{is} {what}, at most {limit} (policies.state.{name})"
            )),
            false => Ok(()),
        };
        let (key_bytes, value_bytes) = (key.len() as u64, value.len() as u64);
        over(
            "bytes of key",
            key_bytes,
            config.key_bytes.into(),
            "key_bytes",
        )?;
        over(
            "bytes of value",
            value_bytes,
            config.value_bytes.into(),
            "value_bytes",
        )?;
        let old = self.map.get(&key).map(|v| size(&key, v));
        let keys = self.map.len() as u64 + u64::from(old.is_none());
        over("keys", keys, config.keys.into(), "keys")?;
        let bytes = self.bytes - old.unwrap_or(0) + size(&key, &value);
        over("bytes of state", bytes, config.bytes, "bytes")?;
        self.bytes = bytes;
        self.note(key.clone(), Some(value.clone()));
        self.map.insert(key, value);
        Ok(())
    }

    fn delete(&mut self, key: &str) -> Result<(), String> {
        self.writable()?;
        if let Some(old) = self.map.remove(key) {
            self.bytes -= size(key, &old);
            self.note(key.to_string(), None);
        }
        Ok(())
    }
}

/// A file name for any policy name: letters, digits and dashes as they are, all else in
/// hexadecimal after `_`, so that two names never meet; `v` is no hexadecimal digit.
fn file_name(policy: &str, version: u32) -> String {
    let mut name = String::new();
    for byte in policy.bytes() {
        if byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("_{byte:02x}"));
        }
    }
    if version > 0 {
        name.push_str(&format!("_v{version}"));
    }
    name + ".redb"
}

#[cfg(test)]
mod tests;
