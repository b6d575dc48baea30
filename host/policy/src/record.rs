//! The recorder: from a session to a file, without a request ever waiting for it.
//!
//! A session that is recorded takes notes ([`Notebook`]); when it ends they go into a bounded
//! queue. A thread turns them into lines of JSON and writes those to files that rotate by
//! size and number. What finds the queue full is dropped and counted: a recording is worth
//! less than a request. A line is one write, so whoever kills the process tears at most the
//! last line of the last file, and the next process begins a new file.
//!
//! Beside the files lie the components that were admitted, under their digests: without them
//! nothing could be replayed on another machine or another day.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use homeostat_hooks::{AnsweredBy, Fault, HookReply};
use serde::{Deserialize, Serialize};

use crate::admit::unix_ms;
use crate::call::Policy;
use crate::host::Asked;
use crate::recording::{Asking, AttemptNotes, HookNotes, Notes, Recording};
use crate::signature::sha256_hex;
use crate::tape::Tape;
use crate::wave::Spoken;

/// Recordings that may wait to be written, however small.
const QUEUE_RECORDINGS: usize = 1024;
/// Components kept beside the recordings: those in use, and of the others the last; the one
/// that was admitted longest ago goes first.
const COMPONENTS_MAX: usize = 16;
/// How long somebody who wants to read waits for what is queued.
const FLUSH_WAIT: Duration = Duration::from_secs(5);
/// How often it looks whether the queue has a place again.
const FLUSH_POLL: Duration = Duration::from_millis(5);
const PREFIX: &str = "decisions-";
const SUFFIX: &str = ".jsonl";

/// `[policies.record]`: what is kept of decisions, to explain and replay them.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecordConfig {
    /// Folder of the recordings; none = nothing is recorded.
    pub dir: Option<PathBuf>,
    /// Share of the requests that is recorded, 0 to 1, chosen by their ids.
    pub share: f64,
    /// Whether texts are recorded: prompts, answers, what policies say. Without them a
    /// decision can be explained and not replayed.
    pub prompts: bool,
    /// Size of a file at which the next one begins. 64 MiB hold some ten thousand requests.
    pub max_bytes: u64,
    /// Files kept; the oldest goes first.
    pub files: u32,
    /// Most of one request; what is larger is cut, and the recording says so. Four times the
    /// text that a policy is shown, and room for a few embeddings.
    pub request_bytes: usize,
    /// Most that may wait to be written; beyond it recordings are dropped and counted.
    pub queue_bytes: usize,
}

impl Default for RecordConfig {
    fn default() -> Self {
        Self {
            dir: None,
            share: 1.0,
            prompts: true,
            max_bytes: 64 << 20,
            files: 8,
            request_bytes: 256 << 10,
            queue_bytes: 16 << 20,
        }
    }
}

/// What became of the recordings of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RecordStats {
    /// Written.
    pub written: u64,
    /// Dropped, since too many waited or the disk failed.
    pub dropped: u64,
}

/// Writes recordings.
pub(crate) struct Recorder {
    config: RecordConfig,
    dir: PathBuf,
    counts: Arc<Counts>,
    queue: Option<SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
    components: Mutex<()>,
}

#[derive(Default)]
struct Counts {
    waiting_bytes: AtomicUsize,
    written: AtomicU64,
    dropped: AtomicU64,
}

enum Job {
    Write(Box<Notes>, usize),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

impl Recorder {
    /// Starts the recorder; none without a folder.
    ///
    /// # Errors
    /// A number that cannot be, a folder that cannot be used.
    pub fn start(config: &RecordConfig) -> Result<Option<Arc<Self>>, String> {
        if !(0.0..=1.0).contains(&config.share) {
            return Err(format!("record.share is {}, expected 0 to 1", config.share));
        }
        if config.files == 0 || config.max_bytes == 0 {
            return Err("record.files and record.max_bytes are 1 or more".into());
        }
        let Some(dir) = config.dir.clone() else {
            return Ok(None);
        };
        let unusable = |e: std::io::Error| format!("record.dir {}: {e}", dir.display());
        let files = Files::open(&dir, config).map_err(unusable)?;
        let counts = Arc::new(Counts::default());
        let (queue, jobs) = sync_channel(QUEUE_RECORDINGS);
        let writer = {
            let (counts, prompts) = (Arc::clone(&counts), config.prompts);
            std::thread::Builder::new()
                .name("policy-recorder".into())
                .spawn(move || write_all(&jobs, files, &counts, prompts))
                .map_err(unusable)?
        };
        Ok(Some(Arc::new(Self {
            config: config.clone(),
            dir,
            counts,
            queue: Some(queue),
            writer: Some(writer),
            components: Mutex::default(),
        })))
    }

    /// A notebook for this request, if it is among those that are recorded.
    pub fn begin(recorder: &Option<Arc<Self>>, asked: &Arc<Asked>) -> Option<Notebook> {
        let recorder = recorder.as_ref()?;
        if share_of(&asked.request.id) >= recorder.config.share {
            return None;
        }
        let left = recorder.config.request_bytes;
        Some(Notebook {
            recorder: Arc::clone(recorder),
            instances: 0,
            bytes_left: left.saturating_sub(asked.request.bytes() + asked.snapshot().bytes()),
            notes: Some(Box::new(Notes {
                asked: Arc::clone(asked),
                unix_ms: unix_ms(),
                hooks: Vec::new(),
                cut: false,
            })),
        })
    }

    fn enqueue(&self, notes: Box<Notes>, bytes: usize) {
        let waiting = self.counts.waiting_bytes.fetch_add(bytes, Relaxed);
        let sent = match &self.queue {
            Some(queue) if waiting + bytes <= self.config.queue_bytes => {
                queue.try_send(Job::Write(notes, bytes))
            }
            _ => Err(TrySendError::Full(Job::Write(notes, bytes))),
        };
        if sent.is_err() {
            self.counts.waiting_bytes.fetch_sub(bytes, Relaxed);
            self.counts.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Most that the notes of one request may hold.
    pub fn request_bytes(&self) -> usize {
        self.config.request_bytes
    }

    /// Keeps an admitted component, so that its decisions can be replayed; those `in_use`
    /// stay, by their digests.
    pub fn keep_component(&self, digest: &str, bytes: &[u8], in_use: &BTreeSet<String>) {
        let _one = self
            .components
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = keep_component(&self.dir, digest, bytes, in_use) {
            tracing::warn!("component {digest} is not kept for replays: {error}");
        }
    }

    /// Waits until what is queued now is written, for at most some seconds.
    pub fn flush(&self) {
        let Some(queue) = &self.queue else { return };
        let until = Instant::now() + FLUSH_WAIT;
        let (done, written) = sync_channel(1);
        let mut job = Job::Flush(done);
        while let Err(TrySendError::Full(back)) = queue.try_send(job) {
            if Instant::now() >= until {
                return;
            }
            job = back;
            std::thread::sleep(FLUSH_POLL);
        }
        let _ = written.recv_timeout(until.saturating_duration_since(Instant::now()));
    }

    pub fn stats(&self) -> RecordStats {
        RecordStats {
            written: self.counts.written.load(Relaxed),
            dropped: self.counts.dropped.load(Relaxed),
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // The writer ends when nobody can send any more, and everything is written.
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Where a request stands between 0 and 1; the same at every host and every time.
pub(crate) fn share_of(id: &str) -> f64 {
    // FNV-1a, then a finalizer: ids of one server differ in few bits.
    let mut hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

/// The notes of one session; they go to the recorder when it is dropped.
pub(crate) struct Notebook {
    recorder: Arc<Recorder>,
    notes: Option<Box<Notes>>,
    instances: u32,
    bytes_left: usize,
}

impl Notebook {
    /// A tape for a new instance.
    pub fn tape(&mut self) -> Arc<Tape> {
        self.instances += 1;
        Tape::recording(self.instances, self.bytes_left)
    }

    /// An instance that was ready is this request's from now on.
    pub fn adopt(&mut self, tape: &Tape) {
        self.instances += 1;
        tape.number(self.instances);
    }

    /// See [`Recording::receipt`]; of what was noted so far.
    pub fn receipt(&self) -> Option<String> {
        self.notes.as_ref()?.recorded().receipt()
    }

    fn take(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.bytes_left;
        self.bytes_left -= bytes.min(self.bytes_left);
        if let Some(notes) = &mut self.notes {
            notes.cut |= !fits;
        }
        fits
    }

    /// A question is asked with these arguments.
    pub fn asks(&mut self, hook: Asking, args: Vec<Box<dyn Spoken>>) {
        if self.take(args.iter().map(|arg| arg.bytes()).sum())
            && let Some(notes) = &mut self.notes
        {
            notes.hooks.push(HookNotes {
                hook,
                args,
                reply: None,
                attempts: Vec::new(),
            });
        }
    }

    /// A policy was asked, with this outcome.
    pub fn attempted<T: Spoken + Clone + 'static>(
        &mut self,
        policy: &Arc<Policy>,
        generation: Option<u64>,
        tape: &Tape,
        outcome: &Result<T, Fault>,
        time: Duration,
    ) {
        let taken = tape.take();
        let events: usize = taken.bytes;
        let bytes = events + outcome.as_ref().map_or(64, Spoken::bytes);
        let fits = self.take(bytes);
        let Some(notes) = &mut self.notes else { return };
        notes.cut |= taken.cut;
        if let Some(hook) = notes.hooks.last_mut().filter(|_| fits) {
            hook.attempts.push(AttemptNotes {
                policy: Arc::clone(policy),
                generation,
                instance: tape.instance(),
                seed: tape.seed,
                events: taken.events,
                outcome: match outcome {
                    Ok(answer) => Ok(Box::new(answer.clone())),
                    Err(fault) => Err(fault.clone()),
                },
                micros: u64::try_from(time.as_micros()).unwrap_or(u64::MAX),
            });
        }
    }

    /// The answer that the host acts on.
    pub fn replied<T: Spoken + Clone + 'static>(&mut self, reply: &HookReply<T>) {
        if self.take(reply.value.bytes())
            && let Some(hook) = self.notes.as_mut().and_then(|n| n.hooks.last_mut())
        {
            let by: AnsweredBy = reply.by.clone();
            let value = Box::new(reply.value.clone());
            hook.reply = Some((value, by, reply.fault.clone(), reply.micros));
        }
    }
}

impl Drop for Notebook {
    fn drop(&mut self) {
        // A session that was asked nothing leaves nothing to explain.
        if let Some(notes) = self.notes.take().filter(|n| !n.hooks.is_empty()) {
            let used = self.recorder.config.request_bytes - self.bytes_left;
            self.recorder.enqueue(notes, used);
        }
    }
}

// ---- files -----------------------------------------------------------------------------

fn write_all(jobs: &Receiver<Job>, mut files: Files, counts: &Counts, prompts: bool) {
    for job in jobs {
        match job {
            Job::Write(notes, bytes) => {
                let recording = notes.recording(prompts);
                counts.waiting_bytes.fetch_sub(bytes, Relaxed);
                let written = serde_json::to_vec(&recording)
                    .map_err(std::io::Error::from)
                    .and_then(|line| files.write(line));
                match written {
                    Ok(()) => counts.written.fetch_add(1, Relaxed),
                    Err(error) => {
                        // Once: a full disk must not fill the log as well.
                        if counts.dropped.fetch_add(1, Relaxed) == 0 {
                            tracing::warn!("a recording is lost: {error}");
                        }
                        0
                    }
                };
            }
            Job::Flush(done) => {
                let _ = done.try_send(());
            }
        }
    }
}

/// The files of one folder: one is written, the older ones are kept for a while.
struct Files {
    dir: PathBuf,
    max_bytes: u64,
    keep: usize,
    number: u64,
    file: Option<File>,
    bytes: u64,
}

impl Files {
    fn open(dir: &Path, config: &RecordConfig) -> std::io::Result<Self> {
        fs::create_dir_all(dir)?;
        // Always a file of its own: the last one of a killed process may end in half a line.
        let number = numbers(dir)?.last().map_or(0, |n| n + 1);
        Ok(Self {
            dir: dir.to_path_buf(),
            max_bytes: config.max_bytes,
            keep: config.files as usize,
            number,
            file: None,
            bytes: 0,
        })
    }

    fn write(&mut self, mut line: Vec<u8>) -> std::io::Result<()> {
        line.push(b'\n');
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.max_bytes {
            self.file = None;
            self.number += 1;
            self.bytes = 0;
        }
        if self.file.is_none() {
            self.file = Some(
                File::options()
                    .create(true)
                    .append(true)
                    .open(path(&self.dir, self.number))?,
            );
            self.drop_oldest()?;
        }
        if let Some(file) = &mut self.file {
            // Part of a line would spoil the next: a file that failed is not used again.
            if let Err(error) = file.write_all(&line) {
                self.file = None;
                self.number += 1;
                self.bytes = 0;
                return Err(error);
            }
            self.bytes += line.len() as u64;
        }
        Ok(())
    }

    fn drop_oldest(&self) -> std::io::Result<()> {
        let numbers = numbers(&self.dir)?;
        for number in &numbers[..numbers.len().saturating_sub(self.keep)] {
            fs::remove_file(path(&self.dir, *number))?;
        }
        Ok(())
    }
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{number:08}{SUFFIX}"))
}

/// The numbers of the files in a folder, oldest first.
fn numbers(dir: &Path) -> std::io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| {
            let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
            digits.parse::<u64>().ok()
        });
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn components(dir: &Path) -> PathBuf {
    dir.join("components")
}

fn keep_component(
    dir: &Path,
    digest: &str,
    bytes: &[u8],
    in_use: &BTreeSet<String>,
) -> std::io::Result<()> {
    let folder = components(dir);
    let file = folder.join(digest).with_extension("wasm");
    if let Ok(file) = File::options().append(true).open(&file) {
        return file.set_modified(SystemTime::now());
    }
    fs::create_dir_all(&folder)?;
    let new = file.with_extension("new");
    fs::write(&new, bytes)?;
    fs::rename(&new, &file)?;
    let mut kept = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        kept.push((entry.metadata()?.modified()?, entry.path()));
    }
    kept.sort();
    let used = |path: &Path| {
        let found = path.file_stem().and_then(|stem| stem.to_str());
        found.is_some_and(|found| found == digest || in_use.contains(found))
    };
    let surplus = kept.len().saturating_sub(COMPONENTS_MAX);
    let oldest = kept.into_iter().filter(|(_, path)| !used(path));
    for (_, path) in oldest.take(surplus) {
        fs::remove_file(path)?;
    }
    Ok(())
}

// ---- reading ---------------------------------------------------------------------------

/// A folder of recordings, for reading; it may be written to meanwhile.
#[derive(Debug, Clone)]
pub struct RecordLog {
    dir: PathBuf,
}

/// A line that is no recording: torn, changed, or of another version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{file}, line {line}: {why}")]
pub struct DamagedLine {
    /// File name.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

impl RecordLog {
    /// A folder that a recorder wrote.
    ///
    /// # Errors
    /// There is none, or nothing was ever recorded there.
    pub fn open(dir: &Path) -> Result<Self, String> {
        let found = numbers(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        if found.is_empty() {
            return Err(format!(
                "{} holds no recordings ({PREFIX}*{SUFFIX}); policies.record.dir says where a \
                 host writes them",
                dir.display()
            ));
        }
        Ok(Self { dir: dir.into() })
    }

    /// All recordings, oldest first, one at a time.
    ///
    /// # Errors
    /// The folder cannot be read. A file that rotates away meanwhile is left out.
    pub fn each(&self, mut take: impl FnMut(Result<Recording, DamagedLine>)) -> Result<(), String> {
        let failed = |e: std::io::Error| format!("{}: {e}", self.dir.display());
        for number in numbers(&self.dir).map_err(failed)? {
            self.each_in(number, |_| true, &mut take);
        }
        Ok(())
    }

    /// The newest recordings, in no order; damaged lines are left out.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) fn newest(&self, most: usize) -> Result<Vec<Recording>, String> {
        let failed = |e: std::io::Error| format!("{}: {e}", self.dir.display());
        let mut found = Vec::new();
        for number in numbers(&self.dir).map_err(failed)?.into_iter().rev() {
            let mut lines = VecDeque::new();
            let wanted = most - found.len();
            self.each_in(number, |_| true, &mut |line| {
                lines.extend(line.ok());
                if lines.len() > wanted {
                    lines.pop_front();
                }
            });
            found.extend(lines);
            if found.len() == most {
                break;
            }
        }
        Ok(found)
    }

    /// The recording of a request.
    ///
    /// # Errors
    /// There is none; or its line is damaged.
    pub fn find(&self, id: &str) -> Result<Recording, String> {
        let failed = |e: std::io::Error| format!("{}: {e}", self.dir.display());
        let quoted = serde_json::to_string(id).map_err(|e| e.to_string())?;
        let mark = format!("\"id\":{quoted},");
        let mut found = None;
        for number in numbers(&self.dir).map_err(failed)?.into_iter().rev() {
            let is_it = |line: &[u8]| line.windows(mark.len()).any(|w| w == mark.as_bytes());
            self.each_in(number, is_it, &mut |line| match line {
                Ok(recording) if recording.id != id => {}
                other => found = Some(other),
            });
            match found {
                Some(line) => return line.map_err(|damaged| damaged.to_string()),
                None => continue,
            }
        }
        Err(format!(
            "request {id:?} is not in {}: it was not chosen (policies.record.share), was \
             dropped, or has rotated away",
            self.dir.display()
        ))
    }

    /// The lines of one file that are `wanted`, read one by one.
    fn each_in(
        &self,
        number: u64,
        wanted: impl Fn(&[u8]) -> bool,
        take: &mut impl FnMut(Result<Recording, DamagedLine>),
    ) {
        let path = path(&self.dir, number);
        let Ok(file) = File::open(&path) else { return };
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        for count in 1.. {
            line.clear();
            let damaged = |why: String| DamagedLine {
                file: path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                line: count,
                why,
            };
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => return,
                Err(error) => return take(Err(damaged(error.to_string()))),
                Ok(_) if !wanted(&line) => {}
                Ok(_) if line.last() != Some(&b'\n') => {
                    take(Err(damaged(
                        "it ends in the middle: the host was killed".into(),
                    )));
                }
                Ok(_) => {
                    take(serde_json::from_slice(&line).map_err(|error| damaged(error.to_string())))
                }
            }
        }
    }

    /// The bytes of a component that was recorded.
    ///
    /// # Errors
    /// They are not there, or are not those of this digest.
    pub fn component(&self, digest: &str) -> Result<Vec<u8>, String> {
        let file = components(&self.dir).join(digest).with_extension("wasm");
        let bytes = fs::read(&file).map_err(|e| {
            format!(
                "{}: {e}; the recorder keeps the last {COMPONENTS_MAX} components",
                file.display()
            )
        })?;
        if sha256_hex(&bytes) != digest {
            return Err(format!("{} is not what was recorded", file.display()));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_and_sticky() {
        let chosen = (0..10_000)
            .filter(|n| share_of(&format!("chatcmpl-{n:016x}")) < 0.25)
            .count();
        assert!((2_300..2_700).contains(&chosen), "{chosen}");
        assert_eq!(share_of("a"), share_of("a"));
    }

    #[test]
    fn a_disk_that_stands_still_keeps_no_reader_for_ever() {
        // Nobody takes anything out of this queue, and it has no place.
        let (queue, _jobs) = sync_channel(0);
        let recorder = Recorder {
            config: RecordConfig::default(),
            dir: PathBuf::new(),
            counts: Arc::default(),
            queue: Some(queue),
            writer: None,
            components: Mutex::default(),
        };
        recorder.flush();
    }

    #[test]
    fn files_rotate_by_size_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let config = RecordConfig {
            max_bytes: 100,
            files: 3,
            ..RecordConfig::default()
        };
        let mut files = Files::open(dir.path(), &config).unwrap();
        for n in 0..20 {
            files.write(format!("{n:060}").into_bytes()).unwrap();
        }
        assert_eq!(numbers(dir.path()).unwrap(), [17, 18, 19]);
        // A line larger than a file has a file of its own.
        files.write(vec![b'x'; 500]).unwrap();
        assert_eq!(numbers(dir.path()).unwrap(), [18, 19, 20]);
        let again = Files::open(dir.path(), &config).unwrap();
        assert_eq!(again.number, 21);
    }

    #[test]
    fn a_component_is_kept_once_and_checked_when_read() {
        let dir = tempfile::tempdir().unwrap();
        let keep = |n: usize, in_use: &[&str]| {
            let in_use = in_use.iter().map(|digest| digest.to_string()).collect();
            keep_component(dir.path(), &format!("{n:04}"), &[n as u8], &in_use).unwrap();
        };
        for n in 0..COMPONENTS_MAX + 3 {
            keep(n, &[]);
        }
        let kept = fs::read_dir(components(dir.path())).unwrap().count();
        assert_eq!(kept, COMPONENTS_MAX);
        let log = RecordLog {
            dir: dir.path().into(),
        };
        let wrong = log
            .component(&format!("{:04}", COMPONENTS_MAX))
            .unwrap_err();
        assert!(wrong.contains("not what was recorded"), "{wrong}");
        assert!(log.component("none").is_err());
        // What serves stays however old it is, and what is admitted again is young again.
        let before = kept_names(dir.path());
        keep(before[1].parse().unwrap(), &[]);
        for n in 100..100 + COMPONENTS_MAX - 2 {
            keep(n, &[&before[0]]);
        }
        let names = kept_names(dir.path());
        assert_eq!(names.len(), COMPONENTS_MAX);
        assert_eq!(names[..2], before[..2]);
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        keep(999, &all);
        assert_eq!(kept_names(dir.path()).len(), COMPONENTS_MAX + 1);
    }

    fn kept_names(dir: &Path) -> Vec<String> {
        let files = fs::read_dir(components(dir)).unwrap();
        let stem = |file: fs::DirEntry| Some(file.path().file_stem()?.to_str()?.to_string());
        let mut names: Vec<String> = files.filter_map(|file| stem(file.unwrap())).collect();
        names.sort();
        names
    }
}
