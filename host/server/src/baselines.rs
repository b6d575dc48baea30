//! What is usual for the tiers' tokens, in a file: after a restart their streams are watched at
//! once, and not only when it is learned again.
//!
//! The cascade gives it as a text and takes it back; here is where the text lies, and what tells
//! one model from another. It refuses to be a reason not to start: what cannot be read is said,
//! learned anew and replaced. A host that is killed forgets what it learned since the last write.

use std::collections::HashMap;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use homeostat_cascade::Baselines;

use crate::state_file;

/// The baselines of a cascade, and their file.
pub struct KeptBaselines {
    baselines: Arc<Baselines>,
    /// `None`: they end with the process.
    file: Option<PathBuf>,
    /// What was written last.
    written: Mutex<String>,
}

impl KeptBaselines {
    /// Reads the file. `models` says by a tier's id which model it has, in words that change with
    /// the model.
    pub fn open(file: Option<PathBuf>, models: HashMap<String, String>) -> Self {
        let baselines = Baselines::new(models);
        if let Some(file) = &file {
            recall(file, &baselines);
        }
        Self {
            baselines: Arc::new(baselines),
            file,
            written: Mutex::default(),
        }
    }

    /// For the cascade.
    pub fn shared(&self) -> Arc<Baselines> {
        self.baselines.clone()
    }

    /// Writes what was learned, if it has changed. What cannot be written is tried again the next
    /// time.
    pub fn save(&self) {
        let Some(file) = &self.file else {
            return;
        };
        // Of two that save at once the later one has the newer text.
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let text = self.baselines.text();
        if *written == text {
            return;
        }
        match state_file::replace(file, &text) {
            Ok(()) => *written = text,
            Err(error) => {
                let file = file.display();
                tracing::warn!(
                    %error,
                    "cannot write {file}: after a restart it would be learned anew what is usual \
                     for the tiers' tokens; see to the folder (policies.state_dir)"
                );
            }
        }
    }
}

fn recall(file: &Path, baselines: &Baselines) {
    let recalled = match std::fs::read_to_string(file) {
        Ok(text) => baselines.recall(&text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
        Err(e) => Err(e.to_string()),
    };
    match recalled {
        Ok(changed) => {
            for tier in changed {
                tracing::info!(
                    "tier {tier} has another model than before: it is learned anew what is usual \
                     for its tokens"
                );
            }
        }
        Err(error) => {
            let file = file.display();
            tracing::warn!(
                %error,
                "cannot use {file}: it is learned anew what is usual for the tiers' tokens, and \
                 the file is replaced"
            );
        }
    }
}

/// A local model, in words that change with it: its name, the type of its weights in memory, and
/// size and age of its file or of the files in its folder. A digest would know a copy again, and
/// would cost a reading of all weights.
///
/// # Errors
/// The file cannot be looked at.
pub fn local_model(name: &str, quantization: &str, path: &Path) -> std::io::Result<String> {
    let (bytes, changed_s) = extent(path)?;
    Ok(format!(
        "{name}, {quantization}, {bytes} bytes, changed at {changed_s} s since 1970"
    ))
}

/// Bytes, and when any of them was changed last, in seconds since 1970.
fn extent(path: &Path) -> std::io::Result<(u64, u64)> {
    let about = std::fs::metadata(path)?;
    if !about.is_dir() {
        return Ok((about.len(), changed_s(&about)));
    }
    let mut whole = (0, 0);
    for entry in std::fs::read_dir(path)? {
        let file = std::fs::metadata(entry?.path())?;
        if file.is_file() {
            whole = (whole.0 + file.len(), whole.1.max(changed_s(&file)));
        }
    }
    Ok(whole)
}

/// 0 where the file system does not tell.
fn changed_s(file: &Metadata) -> u64 {
    let changed = file.modified().ok();
    let since = changed.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn opened(file: &Path, model: &str) -> KeptBaselines {
        let models = [("small".to_owned(), model.to_owned())];
        KeptBaselines::open(Some(file.to_owned()), models.into())
    }

    /// What the next life finds after this one.
    fn left_by(file: &Path, model: &str) -> String {
        opened(file, model).save();
        std::fs::read_to_string(file).unwrap()
    }

    const LEARNED: &str = r#"{"format":1,"tiers":{"small":{"model":"a",
        "greedy":{"tokens":1500.0,"mean":0.4,"variance":0.2}}}}"#;

    #[test]
    fn a_file_goes_from_life_to_life_until_the_model_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("surprisals.json");
        let nothing = left_by(&file, "a");
        std::fs::write(&file, LEARNED).unwrap();
        let kept = left_by(&file, "a");
        assert!(kept.contains("1500.0") && kept.contains(r#""a""#), "{kept}");
        assert_eq!(left_by(&file, "a"), kept);
        assert_eq!(left_by(&file, "b"), nothing);
        let names = std::fs::read_dir(folder.path()).unwrap();
        assert_eq!(names.count(), 1, "nothing is left beside the file");
    }

    #[test]
    fn a_file_that_is_damaged_or_none_of_ours_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("surprisals.json");
        let nothing = left_by(&file, "a");
        let half = &LEARNED.as_bytes()[..LEARNED.len() / 2];
        for damaged in [half, b"", b"\xff\xfe", b"{\"format\":1,\"budgets\":{}}"] {
            std::fs::write(&file, damaged).unwrap();
            assert_eq!(left_by(&file, "a"), nothing, "{damaged:?}");
        }
    }

    #[test]
    fn what_has_not_changed_is_not_written_and_what_could_not_be_is_written_later() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state").join("surprisals.json");
        let kept = opened(&file, "a");
        kept.save();
        assert!(!file.exists(), "there is no folder yet");
        std::fs::create_dir(folder.path().join("state")).unwrap();
        kept.save();
        assert!(file.exists());
        std::fs::remove_file(&file).unwrap();
        kept.save();
        assert!(!file.exists(), "nothing new was learned");
    }

    #[test]
    fn a_model_is_another_when_its_file_or_one_in_its_folder_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let with = |weights: &str, changed_s, place: &Path| {
            std::fs::write(&path, weights).unwrap();
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            let changed = UNIX_EPOCH + Duration::from_secs(changed_s);
            file.set_modified(changed).unwrap();
            local_model("m", "Q8_0", place).unwrap()
        };
        for place in [path.as_path(), folder.path()] {
            let first = with("weights", 1_000, place);
            assert_ne!(with("weights", 2_000, place), first);
            assert_ne!(with("weightier", 1_000, place), first);
            assert_eq!(with("weights", 1_000, place), first);
        }
        assert_ne!(
            local_model("m", "Q8_0", &path).unwrap(),
            local_model("m", "Q4_0", &path).unwrap()
        );
        assert!(local_model("m", "Q8_0", &folder.path().join("gone")).is_err());
    }
}
