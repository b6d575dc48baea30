//! A folder whose files are the policies.
//!
//! The rule, for people: `<hook>.wasm` or `<hook>-<name>.wasm` serves that hook, and so
//! does a bundle, `.policy`; `<same stem>.toml` beside it holds its options, and may name
//! several hooks. `.policy.toml` and `.sig` hold a component's manifest and its signature;
//! a bundle holds them itself. Copying a
//! file in loads it, replacing it swaps it, removing it brings back what the host came
//! with, unless something else was put there since. Where two files name one hook, the
//! one that changed last wins.
//!
//! A file counts when two looks in a row saw the same bytes, so a copy in progress is
//! never taken for a broken policy; a link that is pointed elsewhere is a changed file. A
//! folder that cannot be read changes nothing: it may be a disk that comes back.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use homeostat_hooks::Hook;
use sha2::{Digest, Sha256};

use crate::admit::{AdmissionError, Offer, Stage, read_component};
use crate::bundle;
use crate::cache::hex;
use crate::config::PolicyOptions;
use crate::history::{Content, FileRecord};
use crate::room::Room;

/// How long the end of a watch waits for a look that is going on. One that compiles takes up
/// to minutes, and a host that ends has no use for what comes of it.
const FAREWELL: Duration = Duration::from_secs(2);

/// A folder being watched; dropping it ends the watch.
pub(crate) struct Watch {
    stop: Option<mpsc::Sender<()>>,
    /// Closed when the thread has ended.
    ended: mpsc::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.ended.recv_timeout(FAREWELL) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the watcher of the policy folder is left at its work");
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the watcher of the policy folder had failed");
        }
    }
}

/// Loads what is there now, then watches.
pub(crate) fn start(room: &Arc<Room>, dir: PathBuf) -> Option<Watch> {
    let mut folder = Folder::recalled(dir, room);
    let poll = Duration::from_millis(room.config.poll_ms.max(1));
    folder.look(room);
    std::thread::sleep(poll.min(Duration::from_millis(50)));
    folder.look(room);

    let weak: Weak<Room> = Arc::downgrade(room);
    let (stop, stopped) = mpsc::channel::<()>();
    let (end, ended) = mpsc::channel::<()>();
    let thread = std::thread::Builder::new()
        .name("policy-watch".into())
        .spawn(move || {
            let _end = end;
            while stopped.recv_timeout(poll) == Err(RecvTimeoutError::Timeout) {
                let Some(room) = weak.upgrade() else { return };
                folder.look(&room);
            }
        });
    match thread {
        Ok(thread) => Some(Watch {
            stop: Some(stop),
            ended,
            thread: Some(thread),
        }),
        Err(error) => {
            tracing::error!("the policy folder is not watched: {error}");
            None
        }
    }
}

/// What identifies the content of a file without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    len: u64,
    /// Tells two files of one age and size apart when a link moves between them.
    file: u64,
}

#[derive(Debug, Default)]
struct Seen {
    /// Of the file and of those beside it.
    stamps: Option<(Stamp, [Option<Stamp>; 3])>,
    /// What the last look read; taken when the next look reads the same.
    candidate: Option<Content>,
    /// What was last offered to the room, accepted or not.
    offered: Option<Content>,
    /// Whether that was accepted.
    admitted: bool,
}

/// What was seen of the folder.
struct Folder {
    dir: PathBuf,
    seen: BTreeMap<PathBuf, Seen>,
    /// Which file was put at which hook, and as which generation.
    serving: BTreeMap<Hook, (PathBuf, u64)>,
    unreadable: bool,
}

impl Folder {
    /// The folder as the host's life before left it: what has not changed since is not
    /// offered again, so that it does not take over from what was put by hand.
    fn recalled(dir: PathBuf, room: &Room) -> Self {
        let mut folder = Self {
            dir,
            seen: BTreeMap::new(),
            serving: BTreeMap::new(),
            unreadable: false,
        };
        for (name, file) in room.recalled_files() {
            let path = folder.dir.join(name);
            for (hook, generation) in file.serving {
                if room.active(hook) == Some(generation) {
                    folder.serving.insert(hook, (path.clone(), generation));
                }
            }
            let admitted = file.admitted.is_some();
            let seen = Seen {
                offered: file.admitted,
                admitted,
                ..Seen::default()
            };
            folder.seen.insert(path, seen);
        }
        folder
    }

    /// Tells the room what the next life must know.
    fn tell(&self, room: &Room) {
        let files = self.seen.iter().filter_map(|(path, seen)| {
            let name = path.file_name()?.to_str()?.to_string();
            let mine = self.serving.iter().filter(|(_, (file, _))| file == path);
            let file = FileRecord {
                admitted: seen.offered.clone().filter(|_| seen.admitted),
                serving: mine.map(|(hook, (_, number))| (*hook, *number)).collect(),
            };
            Some((name, file))
        });
        room.remember_files(files.collect());
    }

    /// One look: changed files are offered, removed ones give their hooks back.
    fn look(&mut self, room: &Room) {
        let files = match self.files() {
            Ok(files) => files,
            Err(error) => {
                if !self.unreadable {
                    tracing::warn!(
                        "the policy folder {} cannot be read, nothing changes: {error}",
                        self.dir.display()
                    );
                }
                self.unreadable = true;
                return;
            }
        };
        self.unreadable = false;
        for (path, hook) in &files {
            self.look_at(room, path, *hook);
        }
        self.seen
            .retain(|path, _| files.iter().any(|(p, _)| p == path));
        let gone: Vec<(Hook, u64)> = self
            .serving
            .iter()
            .filter(|(_, (path, _))| !files.iter().any(|(p, _)| p == path))
            .map(|(hook, (_, generation))| (*hook, *generation))
            .collect();
        for (hook, generation) in gone {
            self.serving.remove(&hook);
            if room.active(hook) == Some(generation) {
                self.give_back(room, hook, &files);
            }
        }
        self.tell(room);
    }

    /// A hook whose file is gone: another file that names it, or what the host came with.
    fn give_back(&mut self, room: &Room, hook: Hook, files: &[(PathBuf, Hook)]) {
        tracing::info!(hook = hook.as_str(), "the policy's file was removed");
        for (path, _) in files.iter().rev().filter(|(_, h)| *h == hook) {
            let read = read(path, room.config.max_component_bytes);
            if self.offer(room, path, hook, read) {
                return;
            }
        }
        room.restore(hook);
        room.note(&[hook], "", true, "its file was removed");
    }

    /// Components in the folder, the one that changed last at the end.
    fn files(&self) -> std::io::Result<Vec<(PathBuf, Hook)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let Some(hook) = hook_of(&path) else { continue };
            // A link that leads nowhere is a file that is gone.
            let Ok(meta) = fs::metadata(&path) else {
                continue;
            };
            if meta.is_file() {
                files.push((meta.modified().ok(), path, hook));
            }
        }
        files.sort();
        Ok(files
            .into_iter()
            .map(|(_, path, hook)| (path, hook))
            .collect())
    }

    fn look_at(&mut self, room: &Room, path: &Path, hook: Hook) {
        let seen = self.seen.entry(path.to_path_buf()).or_default();
        let Some(stamp) = stamp_of(path) else { return };
        let stamps = Some((stamp, beside(path).map(|path| stamp_of(&path))));
        // Settled long ago: the same stamps as when it was offered.
        if seen.stamps == stamps && seen.candidate == seen.offered && seen.offered.is_some() {
            return;
        }
        // Copied again while something else serves: whoever copied it wants it back, even
        // though its bytes are those of last time.
        let serving = self.serving.get(&hook);
        let serves = serving.is_some_and(|(f, g)| f == path && room.active(hook) == Some(*g));
        if seen.stamps.is_some() && seen.stamps != stamps && !serves {
            seen.offered = None;
        }
        let read = read(path, room.config.max_component_bytes);
        let content = match &read {
            Ok((content, _, _)) => content.clone(),
            Err(refusal) => Content {
                policy: hex(&Sha256::digest(refusal.to_string())),
                options: String::new(),
            },
        };
        let stable = seen.candidate.as_ref() == Some(&content);
        seen.stamps = stamps;
        seen.candidate = Some(content.clone());
        if !stable || seen.offered.as_ref() == Some(&content) {
            return;
        }
        seen.offered = Some(content);
        let admitted = self.offer(room, path, hook, read);
        if let Some(seen) = self.seen.get_mut(path) {
            seen.admitted = admitted;
        }
    }

    /// Offers a file to the room; answers whether it serves now.
    fn offer(&mut self, room: &Room, path: &Path, hook: Hook, read: Reading) -> bool {
        let name = stem(path).to_string();
        let offer = read.and_then(|(_, offer, text)| {
            let options = parse_options(&text)?;
            Ok(Offer {
                hooks: Some(options.hooks.clone().unwrap_or_else(|| vec![hook])),
                name: name.clone(),
                options,
                ..offer
            })
        });
        match offer {
            Ok(offer) => {
                let Ok(report) = room.put(&offer) else {
                    return false;
                };
                for (hook, generation) in report.hooks.iter().zip(report.generations) {
                    self.serving.insert(*hook, (path.to_path_buf(), generation));
                }
                true
            }
            Err(refusal) => {
                room.note(&[hook], &name, false, &refusal.to_string());
                tracing::warn!(policy = name, "{refusal}");
                false
            }
        }
    }
}

/// Digests, what there is to offer, and the text of the options.
type Reading = Result<(Content, Offer, String), AdmissionError>;

/// What belongs to a file: options, manifest, signature.
fn beside(path: &Path) -> [PathBuf; 3] {
    ["toml", "policy.toml", "sig"].map(|extension| path.with_extension(extension))
}

fn read(path: &Path, max_bytes: u64) -> Reading {
    let bytes = read_component(path, max_bytes)?;
    let [options, manifest, signature] = beside(path);
    let offer = Offer {
        manifest: bundle::read_text(&manifest)?,
        signature: bundle::read_text(&signature)?,
        bytes,
        ..Offer::default()
    };
    let options = bundle::read_text(&options)?.unwrap_or_default();
    let mut policy = Sha256::new();
    policy.update(&offer.bytes);
    for text in [&offer.manifest, &offer.signature].into_iter().flatten() {
        policy.update(Sha256::digest(text));
    }
    let content = Content {
        policy: hex(&policy.finalize()),
        options: hex(&Sha256::digest(&options)),
    };
    Ok((content, offer, options))
}

/// The options in the text of a `.toml`.
///
/// # Errors
/// [`Stage::Options`] with the line and the word that is wrong.
pub fn parse_options(text: &str) -> Result<PolicyOptions, AdmissionError> {
    toml::from_str(text).map_err(|error| {
        AdmissionError::new(Stage::Options, error.to_string().trim_end().to_string())
    })
}

fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|s| s.to_str()).unwrap_or("")
}

/// The hook that a file's name says.
fn hook_of(path: &Path) -> Option<Hook> {
    let extension = path.extension()?;
    if extension != "wasm" && extension != bundle::EXTENSION {
        return None;
    }
    let word = stem(path).split('-').next()?;
    Hook::ALL.into_iter().find(|hook| hook.as_str() == word)
}

fn stamp_of(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    #[cfg(unix)]
    let file = std::os::unix::fs::MetadataExt::ino(&meta);
    #[cfg(not(unix))]
    let file = 0;
    Some(Stamp {
        modified: meta.modified().ok(),
        len: meta.len(),
        file,
    })
}
