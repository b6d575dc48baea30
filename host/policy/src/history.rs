//! What was active, so that a restart begins where the last life ended, however it ended.
//!
//! Components lie under their digests (`sha256/<hex>`), and one small file, `active.json`,
//! says which of them served which hook, with what options, and what was kept for
//! rollback. Both are written under another name, synced and renamed: a host that is
//! killed at any moment leaves the old pointer or the new one, and what either points to.
//! A swap is answered when the pointer is on the disk.
//!
//! What comes with the binary is recorded by name only, so a newer binary serves its own.
//! A component whose bytes are not those of its name is set aside and never compiled.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use homeostat_hooks::Hook;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::admit::Offer;
use crate::cache::hex;
use crate::call::Policy;
use crate::config::PolicyOptions;
use crate::signature::Sealed;
use crate::state::disk::sync_folder;
use crate::trial::{CanaryChanges, TrialMode};

/// A policy as it can be admitted again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub name: String,
    /// Hex sha256 of the component.
    pub digest: String,
    pub hooks: Vec<Hook>,
    /// Those that came with it, before the room's completed them.
    pub options: PolicyOptions,
    /// It came with the binary.
    pub embedded: bool,
    pub manifest: Option<String>,
    pub signature: Option<String>,
    /// Who answer together with it, in the order of its options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Stored>,
    /// The component, until it is under its digest.
    #[serde(skip)]
    pub bytes: Pending,
}

/// Bytes that are still to be written; they make no difference between two policies.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pending(pub Arc<Mutex<Option<Vec<u8>>>>);

impl PartialEq for Pending {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Stored {
    /// What was offered, in the parts that it was taken apart into.
    pub fn of(offer: &Offer, policy: &Policy, sealed: &Sealed, hooks: &[Hook]) -> Self {
        Self {
            name: offer.name.clone(),
            digest: policy.digest.clone(),
            hooks: hooks.to_vec(),
            options: offer.options.clone(),
            embedded: false,
            manifest: sealed.manifest.clone(),
            signature: sealed.signature.clone(),
            members: Vec::new(),
            bytes: Pending(Arc::new(Mutex::new(Some(sealed.component.clone())))),
        }
    }

    /// Itself and its members.
    pub fn parts(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.members)
    }

    /// The bytes, until somebody has taken them.
    pub fn bytes(&self) -> MutexGuard<'_, Option<Vec<u8>>> {
        self.bytes.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes, for whoever asks first.
    pub fn take_bytes(&self) -> Option<Vec<u8>> {
        self.bytes().take()
    }
}

/// One generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub generation: u64,
    pub policy: Stored,
}

/// One hook.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct HookRecord {
    /// Generation numbers given out.
    pub numbers: u64,
    pub active: Option<Entry>,
    /// For rollback, the oldest first.
    pub kept: Vec<Entry>,
    /// An operator took the policy away; none comes back by itself.
    pub unloaded: bool,
    #[serde(default)]
    pub trial: Option<TrialRecord>,
}

impl HookRecord {
    /// Digests of the components that it names.
    pub fn components(&self) -> impl Iterator<Item = &String> {
        let entries = self.active.iter().chain(&self.kept).map(|e| &e.policy);
        let trial = self.trial.iter().map(|trial| &trial.policy);
        let policies = entries.chain(trial);
        policies.flat_map(|policy| policy.parts().map(|part| &part.digest))
    }
}

/// A trial that runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrialRecord {
    pub mode: TrialMode,
    pub policy: Stored,
    /// What a canary was started with.
    pub changes: CanaryChanges,
    /// The number of a canary's generation.
    #[serde(default)]
    pub generation: Option<u64>,
}

/// One file of the watched folder.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    /// What it held when it was admitted; none if its last content was refused.
    pub admitted: Option<Content>,
    /// The generations that came from it and have its hook.
    pub serving: BTreeMap<Hook, u64>,
}

/// Hex sha256 of a policy with its manifest and signature, and of the options beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    pub policy: String,
    pub options: String,
}

/// Everything that `active.json` holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub hooks: BTreeMap<Hook, HookRecord>,
    pub files: BTreeMap<String, FileRecord>,
}

/// The folder of one host; nobody else writes to it meanwhile.
#[derive(Debug)]
pub(crate) struct History {
    dir: PathBuf,
    /// What was written last.
    written: Mutex<Record>,
    /// Held while the process lives, whatever ends it.
    _lock: fs::File,
}

impl History {
    /// Opens the folder and reads what was active. A pointer that cannot be read is set
    /// aside, and the host begins as if there were none.
    ///
    /// # Errors
    /// The folder cannot be used, or another host has it.
    pub fn open(dir: &Path) -> io::Result<(Self, Record)> {
        let dir = dir.to_path_buf();
        fs::create_dir_all(dir.join("sha256"))?;
        let lock = fs::File::create(dir.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => io::Error::other("another host uses it"),
            fs::TryLockError::Error(error) => error,
        })?;
        let path = dir.join("active.json");
        let record = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                let aside = path.with_extension("json.damaged");
                tracing::error!(
                    "{} cannot be read ({error}); set aside as {}, the folder and the embedded \
                     policies serve",
                    path.display(),
                    aside.display()
                );
                if let Err(error) = fs::rename(&path, &aside) {
                    tracing::error!("it could not be set aside: {error}");
                }
                Record::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Record::default(),
            Err(error) => return Err(error),
        };
        let history = Self {
            dir,
            written: Mutex::new(record.clone()),
            _lock: lock,
        };
        Ok((history, record))
    }

    pub fn lock(&self) -> MutexGuard<'_, Record> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what `change` makes of the record, if it makes a difference. It runs while
    /// nobody else writes, so the latest writer has seen the latest table.
    ///
    /// # Errors
    /// What the operator should know: the record on the disk is the one before.
    pub fn write(&self, change: impl FnOnce(&mut Record)) -> Result<(), String> {
        let mut written = self.lock();
        let mut record = written.clone();
        change(&mut record);
        if record == *written {
            return Ok(());
        }
        let path = self.dir.join("active.json");
        let text = serde_json::to_vec_pretty(&record).map_err(io::Error::other);
        text.and_then(|text| replace(&path, &text))
            .map_err(|error| {
                let text = format!(
                    "{} cannot be written, a restart begins with what was active before: {error}",
                    path.display()
                );
                tracing::error!("{text}");
                text
            })?;
        *written = record;
        Ok(())
    }

    /// The files of the watched folder, as last written.
    pub fn files(&self) -> BTreeMap<String, FileRecord> {
        self.lock().files.clone()
    }

    /// Puts a component where [`Self::read`] finds it.
    pub fn store(&self, digest: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.component(digest);
        if fs::read(&path).is_ok_and(|stored| stored == bytes) {
            return Ok(());
        }
        replace(&path, bytes)
    }

    /// A stored policy, ready to be admitted again.
    pub fn read(&self, stored: &Stored) -> io::Result<Offer> {
        let path = self.component(&stored.digest);
        let bytes = fs::read(&path)?;
        if hex(&Sha256::digest(&bytes)) != stored.digest {
            let aside = path.with_extension("damaged");
            fs::rename(&path, &aside)?;
            let text = format!("its bytes have changed; set aside as {}", aside.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Offer {
            name: stored.name.clone(),
            bytes,
            manifest: stored.manifest.clone(),
            signature: stored.signature.clone(),
            // Whoever accepted it has decided that.
            allow_downgrade: true,
            hooks: Some(stored.hooks.clone()),
            options: stored.options.clone(),
            members: stored
                .members
                .iter()
                .map(|member| self.read(member))
                .collect::<io::Result<_>>()?,
        })
    }

    /// Removes components that nobody `needs`, by their digests, and halves that a killed
    /// host left. What the record on the disk names stays: where that could not be written,
    /// it is what the next life begins with. Only while no other component is between
    /// [`Self::store`] and its swap.
    pub fn sweep(&self, needs: &BTreeSet<String>) {
        let written: BTreeSet<String> = {
            let record = self.lock();
            let hooks = record.hooks.values();
            hooks.flat_map(HookRecord::components).cloned().collect()
        };
        let Ok(files) = fs::read_dir(self.dir.join("sha256")) else {
            return;
        };
        for path in files.flatten().map(|f| f.path()) {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            let component = name.len() == 64 && !needs.contains(name) && !written.contains(name);
            if (component || name.ends_with(".new"))
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::warn!("{} is not needed and stays: {error}", path.display());
            }
        }
    }

    fn component(&self, digest: &str) -> PathBuf {
        self.dir.join("sha256").join(digest)
    }
}

/// The old file or the new one, whenever the power is cut.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = fs::File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    sync_folder(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(bytes: &[u8]) -> Stored {
        Stored {
            name: "p".into(),
            digest: hex(&Sha256::digest(bytes)),
            hooks: vec![Hook::Route],
            ..Stored::default()
        }
    }

    fn active(policy: Stored) -> Record {
        let hook = HookRecord {
            numbers: 3,
            active: Some(Entry {
                generation: 3,
                policy,
            }),
            ..HookRecord::default()
        };
        Record {
            hooks: BTreeMap::from([(Hook::Route, hook)]),
            ..Record::default()
        }
    }

    #[test]
    fn what_was_written_is_read_and_what_is_not_named_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let (history, record) = History::open(dir.path()).unwrap();
        assert_eq!(record, Record::default());
        let (old, new) = (stored(b"old"), stored(b"new"));
        for (policy, bytes) in [(&old, b"old"), (&new, b"new")] {
            history.store(&policy.digest, bytes).unwrap();
            history
                .write(|record| *record = active(policy.clone()))
                .unwrap();
        }
        // What a host left that was killed while it stored something.
        let half = dir.path().join("sha256").join("0".repeat(64) + ".new");
        fs::write(&half, "ne").unwrap();
        history.sweep(&BTreeSet::from([new.digest.clone()]));
        assert!(!half.exists());
        assert!(history.read(&old).is_err());
        assert_eq!(history.read(&new).unwrap().bytes, b"new");
        drop(history);
        let (_, record) = History::open(dir.path()).unwrap();
        assert_eq!(record, active(new));
    }

    #[test]
    fn a_record_that_cannot_be_written_is_told_and_what_the_old_one_names_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (history, _) = History::open(dir.path()).unwrap();
        let (old, new) = (stored(b"old"), stored(b"new"));
        history.store(&old.digest, b"old").unwrap();
        let serves = |policy: &Stored| {
            let policy = policy.clone();
            history.write(|record| *record = active(policy))
        };
        serves(&old).unwrap();
        history.store(&new.digest, b"new").unwrap();
        fs::create_dir(dir.path().join("active.new")).unwrap();
        let told = serves(&new).unwrap_err();
        assert!(told.contains("active before"), "{told}");
        history.sweep(&BTreeSet::from([new.digest.clone()]));
        assert!(history.read(&old).is_ok(), "a restart would not find it");
        fs::remove_dir(dir.path().join("active.new")).unwrap();
        serves(&new).unwrap();
        history.sweep(&BTreeSet::from([new.digest.clone()]));
        assert!(history.read(&old).is_err() && history.read(&new).is_ok());
    }

    #[test]
    fn a_stored_component_of_the_right_length_and_wrong_bytes_is_stored_again() {
        let dir = tempfile::tempdir().unwrap();
        let policy = stored(b"good");
        let (history, _) = History::open(dir.path()).unwrap();
        let path = dir.path().join("sha256").join(&policy.digest);
        fs::write(path, "evil").unwrap();
        history.store(&policy.digest, b"good").unwrap();
        assert_eq!(history.read(&policy).unwrap().bytes, b"good");
    }

    #[test]
    fn a_folder_has_one_host_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = History::open(dir.path()).unwrap();
        let refused = History::open(dir.path()).unwrap_err();
        assert!(refused.to_string().contains("another host"));
        drop(first);
        assert!(History::open(dir.path()).is_ok());
    }

    #[test]
    fn damage_is_set_aside_by_name_and_never_compiled() {
        let dir = tempfile::tempdir().unwrap();
        let policy = stored(b"good");
        let (history, _) = History::open(dir.path()).unwrap();
        history.store(&policy.digest, b"good").unwrap();
        history
            .write(|record| *record = active(policy.clone()))
            .unwrap();
        let path = dir.path().join("sha256").join(&policy.digest);
        fs::write(&path, "evil").unwrap();
        let refused = history.read(&policy).unwrap_err();
        assert!(refused.to_string().contains("set aside"), "{refused}");
        assert!(path.with_extension("damaged").exists() && !path.exists());
        drop(history);

        let pointer = dir.path().join("active.json");
        let whole = fs::read(&pointer).unwrap();
        fs::write(&pointer, &whole[..whole.len() / 2]).unwrap();
        let (_, record) = History::open(dir.path()).unwrap();
        assert_eq!(record, Record::default());
        assert!(dir.path().join("active.json.damaged").exists());
    }

    #[test]
    fn a_copy_that_a_killed_host_left_half_written_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let policy = stored(b"good");
        let (history, _) = History::open(dir.path()).unwrap();
        let component = dir.path().join("sha256").join(&policy.digest);
        fs::write(component.with_extension("new"), "go").unwrap();
        fs::write(dir.path().join("active.new"), "{").unwrap();
        history.store(&policy.digest, b"good").unwrap();
        history
            .write(|record| *record = active(policy.clone()))
            .unwrap();
        assert_eq!(history.read(&policy).unwrap().bytes, b"good");
    }
}
