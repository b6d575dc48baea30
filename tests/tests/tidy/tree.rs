//! The files of the repository: those that git tracks, and those that it would track if
//! somebody added them, so that a mistake is told before it is committed.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Paths are relative to the root and written with `/`.
pub struct Tree {
    root: PathBuf,
    files: Vec<String>,
}

impl Tree {
    pub fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let output = Command::new("git")
            // A checkout that belongs to another user, as in a container, is read as well.
            .args(["-c", "safe.directory=*", "ls-files", "-z"])
            .args(["--cached", "--others", "--exclude-standard"])
            .current_dir(&root)
            .output()
            .expect("tidy asks git for the list of files: install git");
        let list = String::from_utf8(output.stdout).expect("file names are UTF-8");
        let files: Vec<String> = list
            .split('\0')
            .filter(|path| root.join(path).is_file())
            .map(str::to_owned)
            .collect();
        assert!(
            files.len() > 50,
            "git lists {} files: run the tests in a git checkout ({})",
            files.len(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Self { root, files }
    }

    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(String::as_str)
    }

    pub fn with_extension<'a>(&'a self, extension: &'a str) -> impl Iterator<Item = &'a str> {
        let suffix = format!(".{extension}");
        self.files().filter(move |path| path.ends_with(&suffix))
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }

    pub fn bytes(&self, file: &str) -> Vec<u8> {
        let path = self.path(file);
        std::fs::read(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
    }

    /// The file's text; files that are no text are as good as empty here.
    pub fn text(&self, file: &str) -> String {
        String::from_utf8(self.bytes(file)).unwrap_or_default()
    }
}
