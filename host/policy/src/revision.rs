//! The memory that makes revisions monotonic.
//!
//! An old bundle has a good signature for ever; what is wrong with it is only that a newer
//! one was accepted. So the highest accepted revision of every signed policy is written
//! down before the policy serves, whole and by renaming, and read again at the next start.
//! A ledger that cannot be read or written is an error and never an empty one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::cache::write_whole;
use crate::signature::{Manifest, Reason, SignatureError};

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Accepted {
    revision: u64,
    component_sha256: String,
}

/// What is in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Ledger {
    #[serde(default)]
    accepted: BTreeMap<String, Accepted>,
}

/// The highest accepted revision of every signed policy.
#[derive(Debug)]
pub(crate) struct Revisions {
    file: Option<PathBuf>,
    ledger: Mutex<Ledger>,
}

impl Revisions {
    /// Reads the ledger; one that does not exist is begun with the first policy.
    pub fn open(file: Option<PathBuf>) -> Result<Self, String> {
        let ledger = match &file {
            Some(file) => read(file)?,
            None => Ledger::default(),
        };
        Ok(Self {
            file,
            ledger: Mutex::new(ledger),
        })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // It is exchanged as a whole, so a poisoned lock holds a good one.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this revision may come now.
    pub fn check(&self, manifest: &Manifest) -> Result<(), SignatureError> {
        let ledger = self.ledger();
        let Some(before) = ledger.accepted.get(&manifest.name) else {
            return Ok(());
        };
        let old = |text: String| Err(SignatureError::new(Reason::OldRevision, text));
        let (name, revision) = (&manifest.name, manifest.revision);
        if revision < before.revision {
            return old(format!(
                "revision {revision} of {name}, but {} was accepted before; an operator can \
                 insist with `homeostat policy put --allow-downgrade`",
                before.revision
            ));
        }
        if revision == before.revision && manifest.component_sha256 != before.component_sha256 {
            return old(format!(
                "revision {revision} of {name} was accepted with another component; every \
                 release counts its revision up"
            ));
        }
        Ok(())
    }

    /// Writes down that this revision is accepted. Where an operator insisted on an older
    /// one, that is the lowest from now on.
    pub fn accept(&self, manifest: &Manifest) -> Result<(), SignatureError> {
        let mut ledger = self.ledger();
        let entry = Accepted {
            revision: manifest.revision,
            component_sha256: manifest.component_sha256.clone(),
        };
        if ledger.accepted.get(&manifest.name) == Some(&entry) {
            return Ok(());
        }
        let mut next = ledger.clone();
        next.accepted.insert(manifest.name.clone(), entry);
        if let Some(file) = &self.file {
            write(file, &next).map_err(|error| {
                let text = format!(
                    "the revision cannot be written to {}: {error}; without that a restart \
                     would accept an older one",
                    file.display()
                );
                SignatureError::new(Reason::NotRemembered, text)
            })?;
        }
        *ledger = next;
        Ok(())
    }
}

fn read(file: &Path) -> Result<Ledger, String> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Ledger::default()),
        Err(error) => return Err(format!("{} cannot be read: {error}", file.display())),
    };
    toml::from_str(&text).map_err(|error| {
        format!(
            "{} is damaged: {}. Restore it; removing it lets older revisions come back",
            file.display(),
            error.message()
        )
    })
}

fn write(file: &Path, ledger: &Ledger) -> std::io::Result<()> {
    let text = toml::to_string(ledger).map_err(std::io::Error::other)?;
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let partial = file.with_extension("partial");
    write_whole(&partial, &[text.as_bytes()])?;
    fs::rename(&partial, file)?;
    File::open(folder)?.sync_all()
}
