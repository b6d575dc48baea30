//! State of policies: small, host-owned, and longer-lived than any instance.
//!
//! Every policy has one bucket under its name, shared by all its instances and kept over
//! swaps. With a folder, a bucket is a file that is replaced by rename, so a reader sees
//! the old one or the new one. A file that was cut or changed is refused by its checksum
//! and set aside; the policy starts empty and the log says so.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// Most bytes of keys and values of one policy. State is for counters and small tables;
/// who needs more needs a database.
pub const BUCKET_BYTES_MAX: usize = 1 << 20;
/// Most keys of one policy.
pub const BUCKET_KEYS_MAX: usize = 4096;
/// Longest key.
const KEY_BYTES_MAX: usize = 256;
/// Keys answered at once by `list-keys`.
const PAGE_KEYS: usize = 256;
/// Changes are written at most this often.
const FLUSH_EVERY: Duration = Duration::from_millis(250);
const MAGIC: &[u8; 8] = b"HSTATE1\n";

/// All buckets of a room.
#[derive(Debug)]
pub(crate) struct StateStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: Option<PathBuf>,
    buckets: Mutex<HashMap<String, Arc<Bucket>>>,
}

/// The state of one policy.
#[derive(Debug, Default)]
pub struct Bucket {
    entries: Mutex<Entries>,
    changed: AtomicBool,
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Entries {
    map: BTreeMap<String, Vec<u8>>,
    bytes: usize,
}

impl StateStore {
    /// Opens the store; with a folder, a thread writes changes to it.
    pub fn new(dir: Option<PathBuf>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            dir,
            buckets: Mutex::default(),
        });
        if let Some(dir) = &shared.dir {
            fs::create_dir_all(dir)?;
            let weak = Arc::downgrade(&shared);
            std::thread::Builder::new()
                .name("policy-state".into())
                .spawn(move || {
                    while let Some(shared) = weak.upgrade() {
                        shared.flush();
                        drop(shared);
                        std::thread::sleep(FLUSH_EVERY);
                    }
                })?;
        }
        Ok(Self { shared })
    }

    /// The bucket of a policy; loaded from its file at first.
    pub fn bucket(&self, policy: &str) -> Arc<Bucket> {
        let mut buckets = self.shared.lock();
        if let Some(bucket) = buckets.get(policy) {
            return Arc::clone(bucket);
        }
        let bucket = Arc::new(Bucket::default());
        if let Some(dir) = &self.shared.dir
            && let Some(entries) = load(&file_of(dir, policy))
        {
            *bucket.lock() = entries;
        }
        buckets.insert(policy.to_string(), Arc::clone(&bucket));
        bucket
    }

    /// A copy that probes may write to.
    pub fn scratch(&self, policy: &str) -> Arc<Bucket> {
        let entries = self.bucket(policy).lock().clone();
        Arc::new(Bucket {
            entries: Mutex::new(entries),
            changed: AtomicBool::new(false),
        })
    }
}

impl Drop for StateStore {
    fn drop(&mut self) {
        self.shared.flush();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Bucket>>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flush(&self) {
        let Some(dir) = &self.dir else { return };
        let changed: Vec<(String, Arc<Bucket>)> = self
            .lock()
            .iter()
            .filter(|(_, b)| b.changed.swap(false, Ordering::AcqRel))
            .map(|(name, b)| (name.clone(), Arc::clone(b)))
            .collect();
        for (name, bucket) in changed {
            let entries = bucket.lock().clone();
            if let Err(error) = save(&file_of(dir, &name), &entries) {
                bucket.changed.store(true, Ordering::Release);
                tracing::warn!(policy = name, "state is not saved, trying again: {error}");
            }
        }
    }
}

/// One page of keys, and where the next one starts.
pub(crate) struct Page {
    pub keys: Vec<String>,
    pub next: Option<u64>,
}

impl Bucket {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Every change below is complete before it can panic.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.lock().map.get(key).cloned()
    }

    pub(crate) fn exists(&self, key: &str) -> bool {
        self.lock().map.contains_key(key)
    }

    pub(crate) fn set(&self, key: String, value: Vec<u8>) -> Result<(), String> {
        self.lock().set(key, value)?;
        self.changed.store(true, Ordering::Release);
        Ok(())
    }

    pub(crate) fn delete(&self, key: &str) {
        let mut entries = self.lock();
        if let Some(old) = entries.map.remove(key) {
            entries.bytes -= key.len() + old.len();
            self.changed.store(true, Ordering::Release);
        }
    }

    /// Adds to a number kept as decimal text, so that `get` shows it in any language.
    pub(crate) fn increment(&self, key: String, delta: u64) -> Result<u64, String> {
        let mut entries = self.lock();
        let old = match entries.map.get(&key) {
            None => 0,
            Some(bytes) => std::str::from_utf8(bytes)
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
                .ok_or_else(|| format!("the value of {key:?} is not a decimal number"))?,
        };
        let new = old
            .checked_add(delta)
            .ok_or_else(|| format!("{key:?} would pass 2^64"))?;
        entries.set(key, new.to_string().into_bytes())?;
        self.changed.store(true, Ordering::Release);
        Ok(new)
    }

    pub(crate) fn list(&self, cursor: Option<u64>) -> Page {
        let entries = self.lock();
        let start = usize::try_from(cursor.unwrap_or(0)).unwrap_or(usize::MAX);
        let keys: Vec<String> = entries
            .map
            .keys()
            .skip(start)
            .take(PAGE_KEYS)
            .cloned()
            .collect();
        let end = start.saturating_add(keys.len());
        let next = (end < entries.map.len()).then_some(end as u64);
        Page { keys, next }
    }
}

impl Entries {
    fn set(&mut self, key: String, value: Vec<u8>) -> Result<(), String> {
        if key.len() > KEY_BYTES_MAX {
            return Err(format!(
                "a key of {} bytes, at most {KEY_BYTES_MAX}",
                key.len()
            ));
        }
        let old = self.map.get(&key).map(|v| key.len() + v.len());
        if old.is_none() && self.map.len() >= BUCKET_KEYS_MAX {
            return Err(format!("{BUCKET_KEYS_MAX} keys are kept already"));
        }
        let bytes = self.bytes - old.unwrap_or(0) + key.len() + value.len();
        if bytes > BUCKET_BYTES_MAX {
            return Err(format!(
                "{bytes} bytes of state, at most {BUCKET_BYTES_MAX}"
            ));
        }
        self.bytes = bytes;
        self.map.insert(key, value);
        Ok(())
    }
}

/// A file name for any policy name: letters, digits and dashes as they are, all else in
/// hexadecimal after `_`, so that two names never meet.
fn file_of(dir: &Path, policy: &str) -> PathBuf {
    let mut name = String::new();
    for byte in policy.bytes() {
        if byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("_{byte:02x}"));
        }
    }
    dir.join(format!("{name}.state"))
}

fn encode(entries: &Entries) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for (key, value) in &entries.map {
        for part in [key.as_bytes(), value.as_slice()] {
            out.extend_from_slice(&(part.len() as u32).to_le_bytes());
            out.extend_from_slice(part);
        }
    }
    let sum = Sha256::digest(&out);
    out.extend_from_slice(&sum);
    out
}

fn decode(bytes: &[u8]) -> Option<Entries> {
    let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    if Sha256::digest(body).as_slice() != sum {
        return None;
    }
    let mut rest = body.strip_prefix(MAGIC)?;
    let mut entries = Entries::default();
    while !rest.is_empty() {
        let key = String::from_utf8(part(&mut rest)?.to_vec()).ok()?;
        let value = part(&mut rest)?.to_vec();
        entries.set(key, value).ok()?;
    }
    Some(entries)
}

fn part<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, tail) = rest.split_first_chunk::<4>()?;
    let (part, tail) = tail.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    *rest = tail;
    Some(part)
}

fn load(path: &Path) -> Option<Entries> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!("state {} cannot be read: {error}", path.display());
            return None;
        }
    };
    let entries = decode(&bytes);
    if entries.is_none() {
        let aside = path.with_extension("state.damaged");
        tracing::warn!(
            "state {} is damaged; set aside as {}, the policy starts empty",
            path.display(),
            aside.display()
        );
        if let Err(error) = fs::rename(path, &aside) {
            tracing::warn!("it could not be set aside: {error}");
        }
    }
    entries
}

fn save(path: &Path, entries: &Entries) -> std::io::Result<()> {
    let new = path.with_extension("state.new");
    let mut file = fs::File::create(&new)?;
    file.write_all(&encode(entries))?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_survives_a_restart_and_a_damaged_file_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let open = || StateStore::new(Some(dir.path().to_path_buf())).unwrap();
        let store = open();
        let bucket = store.bucket("Route/x");
        bucket.set("k".into(), vec![1, 2]).unwrap();
        assert_eq!(bucket.increment("n".into(), 5), Ok(5));
        drop(store);

        let again = open().bucket("Route/x");
        assert_eq!(again.get("k"), Some(vec![1, 2]));
        assert_eq!(again.increment("n".into(), 2), Ok(7));

        let path = file_of(dir.path(), "Route/x");
        let whole = fs::read(&path).unwrap();
        for len in 0..whole.len() {
            assert_eq!(decode(&whole[..len]), None, "{len} bytes");
        }
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(open().bucket("Route/x").get("k"), None);
        assert!(path.with_extension("state.damaged").exists());
    }

    #[test]
    fn quotas_refuse_and_change_nothing() {
        let bucket = Bucket::default();
        assert!(bucket.set("k".into(), vec![0; BUCKET_BYTES_MAX]).is_err());
        assert!(bucket.set("k".repeat(300), vec![]).is_err());
        assert_eq!(bucket.get("k"), None);
        for i in 0..BUCKET_KEYS_MAX {
            bucket.set(i.to_string(), vec![]).unwrap();
        }
        assert!(bucket.set("one more".into(), vec![]).is_err());
        bucket.delete("7");
        assert!(bucket.set("one more".into(), vec![]).is_ok());
    }

    #[test]
    fn increments_from_many_threads_are_not_lost() {
        let bucket = Arc::new(Bucket::default());
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let bucket = Arc::clone(&bucket);
                std::thread::spawn(move || {
                    for _ in 0..500 {
                        bucket.increment("n".into(), 1).unwrap();
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(bucket.get("n"), Some(b"4000".to_vec()));
        assert!(bucket.increment("n".into(), u64::MAX).is_err());
        bucket.set("t".into(), b"text".to_vec()).unwrap();
        assert!(bucket.increment("t".into(), 1).is_err());
    }

    #[test]
    fn keys_come_in_pages_that_cover_all_once() {
        let bucket = Bucket::default();
        for i in 0..600 {
            bucket.set(format!("{i:04}"), vec![]).unwrap();
        }
        let (mut seen, mut cursor) = (Vec::new(), None);
        loop {
            let page = bucket.list(cursor);
            seen.extend(page.keys);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), 600);
        assert!(bucket.list(Some(u64::MAX)).keys.is_empty());
    }
}
