//! The folder that an operator copies policies into, at its worst.

use std::path::PathBuf;
use std::time::Duration;

use homeostat_hooks::{Hook, Policies};
use homeostat_policy::{PolicyRoom, RoomConfig, SlotStatus};
use homeostat_tests::{scene, text_guest};

/// A room that watches a folder; the policy that came with the host tells 1.
struct Watched {
    folder: tempfile::TempDir,
    room: PolicyRoom,
}

impl Watched {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let room = scene::room_with(RoomConfig {
            dir: Some(folder.path().to_owned()),
            poll_ms: 10,
            ..RoomConfig::default()
        });
        room.embed(scene::offer("embedded", &text_guest::telling(1)))
            .unwrap_or_else(|e| panic!("{e}"));
        room.watch();
        Self { folder, room }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn told(&self) -> Option<u32> {
        let mut session = self
            .room
            .begin(scene::asking("request", "Hello."), Default::default());
        text_guest::told(&session.route(&Default::default(), &scene::tiers()).value)
    }

    fn status(&self) -> SlotStatus {
        let status = self
            .room
            .status()
            .into_iter()
            .find(|s| s.hook == Hook::Route);
        status.expect("every hook has a status")
    }

    fn generation(&self) -> u64 {
        self.status().active.map_or(0, |active| active.generation)
    }

    /// Waits for something that must come; a minute without it is a hang.
    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..6000 {
            if holds(self) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("never {what}: {:?}", self.status());
    }

    /// Time for several looks, in which nothing must change.
    fn nothing_changes(&self) {
        let before = (self.told(), self.generation());
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!((self.told(), self.generation()), before);
    }
}

#[test]
fn a_half_written_file_is_loaded_once_and_whole() {
    let watched = Watched::new();
    let whole = text_guest::telling(2);
    let path = watched.file("route.wasm");
    std::fs::write(&path, &whole[..whole.len() / 2]).expect("written");
    // A copy that stands still is taken for what it is: broken, and told so.
    watched.until("refused", |w| {
        w.status().last_attempt.is_some_and(|a| !a.accepted)
    });
    let attempt = watched.status().last_attempt.expect("an attempt");
    assert!(attempt.text.contains("incomplete"), "{}", attempt.text);
    assert_eq!(watched.told(), Some(1), "what served serves on");
    let before = watched.generation();

    std::fs::write(&path, &whole).expect("written");
    watched.until("loaded", |w| w.told() == Some(2));
    watched.nothing_changes();
    assert_eq!(
        watched.generation(),
        before + 1,
        "it was loaded more than once"
    );
}

#[test]
fn what_is_no_file_changes_nothing() {
    let watched = Watched::new();
    std::fs::create_dir(watched.file("route.wasm")).expect("a folder");
    watched.nothing_changes();
    std::fs::remove_dir(watched.file("route.wasm")).expect("removed");
    watched.nothing_changes();
    assert_eq!(watched.told(), Some(1));
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_bad_links_change_nothing() {
    use std::os::unix::fs::symlink;

    let watched = Watched::new();
    let store = tempfile::tempdir().expect("a folder");
    symlink(store.path().join("nowhere"), watched.file("route.wasm")).expect("a link");
    watched.nothing_changes();
    std::fs::remove_file(watched.file("route.wasm")).expect("removed");
    symlink(watched.file("route.wasm"), watched.file("route.wasm")).expect("a circle");
    watched.nothing_changes();
    std::fs::remove_file(watched.file("route.wasm")).expect("removed");
    assert_eq!(watched.told(), Some(1));

    // The way deployments exchange files: a new link takes the old one's name.
    for number in [2, 3] {
        let target = store.path().join(number.to_string());
        std::fs::write(&target, text_guest::telling(number)).expect("written");
        symlink(&target, watched.file("new")).expect("a link");
        std::fs::rename(watched.file("new"), watched.file("route.wasm")).expect("renamed");
        watched.until("swapped", |w| w.told() == Some(number));
    }
    std::fs::remove_file(watched.file("route.wasm")).expect("removed");
    watched.until("restored", |w| w.told() == Some(1));
}

#[cfg(unix)]
#[test]
fn a_file_that_cannot_be_read_is_told_and_changes_nothing() {
    use std::os::unix::fs::PermissionsExt;

    let watched = Watched::new();
    let path = watched.file("hidden");
    std::fs::write(&path, text_guest::telling(2)).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).expect("hidden");
    if std::fs::read(&path).is_ok() {
        // The superuser reads everything; a file larger than the limit cannot be read by
        // anybody.
        let file = std::fs::File::create(&path).expect("created");
        file.set_len(1 << 30).expect("a hole of one GiB");
    }
    std::fs::rename(&path, watched.file("route.wasm")).expect("renamed");
    watched.until("told", |w| {
        w.status().last_attempt.is_some_and(|a| !a.accepted)
    });
    watched.nothing_changes();
    assert_eq!(watched.told(), Some(1));
}

#[test]
fn a_router_named_as_a_validator_is_refused_by_name() {
    let watched = Watched::new();
    let router = text_guest::component("points_outside_its_memory");
    std::fs::write(watched.file("validate-mine.wasm"), router).expect("written");
    watched.until("refused", |w| {
        let validate = w
            .room
            .status()
            .into_iter()
            .find(|s| s.hook == Hook::Validate);
        validate
            .and_then(|s| s.last_attempt)
            .is_some_and(|a| !a.accepted && a.policy == "validate-mine")
    });
    assert_eq!(watched.told(), Some(1));
}
