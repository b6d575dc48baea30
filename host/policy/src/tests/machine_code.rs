//! The compile cache: what is loaded from it, what never is, and that a policy serves all
//! the same.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::CacheConfig;
use crate::cache::{CompileCache, Id};
use crate::engine::{Engines, PolicyEngine};

fn with_cache(dir: &Path, change: impl FnOnce(&mut RoomConfig)) -> PolicyRoom {
    let mut config = RoomConfig {
        instances: 8,
        cache: CacheConfig {
            dir: Some(dir.join("compiled")),
            ..CacheConfig::default()
        },
        ..RoomConfig::default()
    };
    change(&mut config);
    room_with(config)
}

/// Puts a router that answers `text`; says whether its code was in the cache.
fn put(room: &PolicyRoom, text: &str) -> bool {
    let report = room.put(offer("r", guests::router(text))).unwrap();
    assert_eq!(routed(room), text);
    report.from_cache
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("compiled")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = paths
        .filter(|p| p.extension().is_some_and(|e| e == extension))
        .collect();
    found.sort();
    found
}

#[test]
fn a_restart_loads_what_was_compiled_before() {
    let dir = tempfile::tempdir().unwrap();
    let room = with_cache(dir.path(), |_| {});
    assert!(!put(&room, "a"));
    assert!(put(&room, "a"));
    drop(room);
    let room = with_cache(dir.path(), |_| {});
    assert!(put(&room, "a"));
    assert!(!put(&room, "b"));
    let stats = room.stats().compile_cache.unwrap();
    assert_eq!((stats.hits, stats.misses, stats.set_aside), (1, 1, 0));
    // Whether instances are pooled changes no code.
    drop(room);
    let room = with_cache(dir.path(), |config| config.pooling = false);
    assert!(put(&room, "a"));
}

#[test]
fn hosts_that_begin_together_have_one_whole_key() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let config = CacheConfig {
            dir: Some(dir.path().join("compiled")),
            ..CacheConfig::default()
        };
        std::thread::scope(|scope| {
            let opened: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| CompileCache::open(&config).map(|_| ())))
                .collect();
            for host in opened {
                assert_eq!(host.join().unwrap(), Ok(()));
            }
        });
        // What a host leaves that is killed before its key has its name.
        let key = dir.path().join("compiled/key");
        assert_eq!(fs::read(&key).unwrap().len(), 64);
        assert_eq!(
            fs::read_dir(dir.path().join("compiled")).unwrap().count(),
            1
        );
        fs::rename(&key, dir.path().join("compiled/key.0.new")).unwrap();
        assert!(CompileCache::open(&config).is_ok_and(|cache| cache.is_some()));
    }
}

#[test]
fn a_wrong_entry_is_never_loaded_but_set_aside_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    put(&with_cache(dir.path(), |_| {}), "a");
    let [entry] = &files(dir.path(), "code")[..] else {
        panic!("one entry")
    };
    let good = fs::read(entry).unwrap();
    let len = good.len();
    let mut wrong: Vec<(String, Vec<u8>)> = Vec::new();
    for at in [0, 15, 16, 47, 48, len / 2, len - 33, len - 32, len - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        wrong.push((format!("byte {at} of {len} flipped"), bytes));
    }
    for cut in [0, 1, 16, 48, 79, 80, len / 2, len - 32, len - 1] {
        wrong.push((format!("cut to {cut} of {len}"), good[..cut].to_vec()));
    }
    wrong.push(("one byte more".into(), [&good[..], b"x"].concat()));
    wrong.push(("only code".into(), good[48..len - 32].to_vec()));
    for (what, bytes) in wrong {
        fs::write(entry, bytes).unwrap();
        let room = with_cache(dir.path(), |_| {});
        assert!(!put(&room, "a"), "{what} was loaded");
        assert_eq!(room.stats().compile_cache.unwrap().set_aside, 1, "{what}");
        assert_eq!(files(dir.path(), "wrong").len(), 1, "{what}");
        assert!(put(&room, "a"), "{what} was not made again");
    }
}

#[test]
fn a_good_entry_under_another_name_or_of_another_machine_is_wrong() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let room = with_cache(here.path(), |_| {});
    put(&room, "a");
    let a = files(here.path(), "code").remove(0);
    put(&room, "b");
    let b = files(here.path(), "code")
        .into_iter()
        .find(|p| *p != a)
        .unwrap();
    fs::copy(&b, &a).unwrap();
    assert!(!put(&room, "a"), "b's code ran for a");
    // The same entry, made with another key.
    put(&with_cache(there.path(), |_| {}), "a");
    let foreign = files(there.path(), "code").remove(0);
    assert_eq!(foreign.file_name(), a.file_name());
    fs::copy(&foreign, &a).unwrap();
    assert!(!put(&room, "a"), "another machine's code ran");
    assert_eq!(room.stats().compile_cache.unwrap().set_aside, 2);
}

#[test]
fn code_of_an_engine_with_other_flags_has_another_name() {
    let config = RoomConfig::default();
    let component = [7; 32];
    let id = |engine: &PolicyEngine| Id::new(&engine.engine, &component);
    let first = |config: &RoomConfig| Engines::new(config).unwrap().first().clone();
    let pooled = first(&config);
    let unpooled = first(&RoomConfig {
        pooling: false,
        ..config.clone()
    });
    assert_eq!(id(&pooled), id(&unpooled));
    let engines = Engines::new(&config).unwrap();
    if let Some(larger) = engines.keeping(&config, 16 << 20) {
        assert_eq!(id(&pooled), id(&larger), "a larger pool runs the same code");
    }
    assert_ne!(id(&pooled), id(&PolicyEngine::metered(&config).unwrap()));
    assert_ne!(id(&pooled), Id::new(&pooled.engine, &[8; 32]));
}

#[cfg(unix)]
#[test]
fn a_folder_or_key_that_others_can_touch_is_refused_and_everything_works_without() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("compiled");
    put(&with_cache(dir.path(), |_| {}), "a");
    let made = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((made(&folder), made(&folder.join("key"))), (0o700, 0o600));
    let refused = |word: &str| {
        let room = with_cache(dir.path(), |_| {});
        let report = room.put(offer("r", guests::router("a"))).unwrap();
        assert!(!report.from_cache);
        let said = report
            .warnings
            .iter()
            .any(|w| w.contains("no compile cache") && w.contains(word));
        assert!(said, "{:?}", report.warnings);
        assert_eq!(room.stats().compile_cache, None);
        assert_eq!(routed(&room), "a");
    };
    for open in [0o777, 0o720, 0o702] {
        mode(&folder, open).unwrap();
        refused("open to other users");
    }
    mode(&folder, 0o700).unwrap();
    mode(&folder.join("key"), 0o644).unwrap();
    refused("open to other users");
    mode(&folder.join("key"), 0o600).unwrap();
    fs::write(folder.join("key"), "short").unwrap();
    refused("no key");
    fs::rename(&folder, dir.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &folder).unwrap();
    refused("is a link");
    fs::remove_file(&folder).unwrap();
    fs::write(&folder, "a file").unwrap();
    refused("cannot be made");
}

#[test]
fn a_folder_that_cannot_be_written_any_more_is_told_and_the_policy_serves() {
    let dir = tempfile::tempdir().unwrap();
    let room = with_cache(dir.path(), |_| {});
    fs::remove_dir_all(dir.path().join("compiled")).unwrap();
    let report = room.put(offer("r", guests::router("a"))).unwrap();
    assert!(
        report
            .warnings
            .iter()
            .any(|w| w.contains("not kept") && w.contains("cannot be written")),
        "{:?}",
        report.warnings
    );
    assert_eq!(routed(&room), "a");
}

#[test]
fn what_was_unused_longest_leaves_when_the_cache_is_full() {
    let dir = tempfile::tempdir().unwrap();
    put(&with_cache(dir.path(), |_| {}), "a");
    let size = fs::metadata(&files(dir.path(), "code")[0]).unwrap().len();
    // Room for two, and not for three.
    let room = with_cache(dir.path(), |config| config.cache.max_bytes = size * 5 / 2);
    put(&room, "b");
    // File times have a resolution; without a pause two could be of one age.
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(put(&room, "a"), "used, so younger than b");
    std::thread::sleep(std::time::Duration::from_millis(20));
    put(&room, "c");
    assert_eq!(files(dir.path(), "code").len(), 2);
    assert!(put(&room, "a") && put(&room, "c"));
    assert!(!put(&room, "b"), "b had left");
    let tiny = with_cache(dir.path(), |config| config.cache.max_bytes = size / 2);
    let report = tiny.put(offer("r", guests::router("d"))).unwrap();
    assert!(
        report
            .warnings
            .iter()
            .any(|w| w.contains("policies.cache.max_bytes"))
    );
}
