//! Signatures, revisions and bundles: what is refused by which name, and that whatever
//! serves goes on serving.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::bundle;
use crate::signature::{
    self, MANIFEST_FORMAT, Manifest, Reason, Sealed, SigningKey, datetime, sha256_hex, verify,
};
use crate::{SignatureMode, watch};

const DAY: i64 = 86_400;

fn key() -> SigningKey {
    SigningKey::generate().unwrap()
}

/// A manifest for a component, valid from yesterday until tomorrow.
fn manifest(name: &str, revision: u64, component: &[u8]) -> Manifest {
    let contents = crate::contents(component).unwrap();
    Manifest {
        format: MANIFEST_FORMAT,
        name: name.into(),
        version: "1.2.3".into(),
        revision,
        component_sha256: sha256_hex(component),
        cases_sha256: None,
        contract: "0.1.0".into(),
        hooks: contents.hooks,
        capabilities: contents.grants,
        not_before: datetime(signature::now() - DAY),
        not_after: datetime(signature::now() + 30 * DAY),
    }
}

fn sealed(key: &SigningKey, manifest: &Manifest, component: Vec<u8>) -> Sealed {
    let text = toml::to_string(manifest).unwrap();
    Sealed {
        component,
        signature: Some(key.sign(&text)),
        manifest: Some(text),
        cases: None,
    }
}

/// A bundle of a router that answers `text`.
fn signed(key: &SigningKey, revision: u64, text: &str) -> Offer {
    let component = guests::router(text);
    let manifest = manifest("signed", revision, &component);
    offer("any", bundle::pack(&sealed(key, &manifest, component)))
}

fn config(key: &SigningKey, mode: SignatureMode) -> RoomConfig {
    RoomConfig {
        instances: 8,
        signature: mode,
        trusted_keys: [("ops".to_string(), key.public_text())].into(),
        ..RoomConfig::default()
    }
}

fn assert_reason(refusal: &AdmissionError, reason: Reason) {
    assert_eq!(refusal.stage, Stage::Signature, "{refusal}");
    assert!(refusal.text.starts_with(reason.as_str()), "{refusal}");
}

#[test]
fn a_signed_policy_serves_under_its_signed_name_and_says_who_signed_it() {
    let key = key();
    let room = room_with(config(&key, SignatureMode::Required));
    let report = room.put(signed(&key, 7, "hello")).unwrap();
    assert_eq!(report.policy, "signed");
    let provenance = report.provenance.unwrap();
    assert_eq!(provenance.signed_by, "ops");
    assert_eq!((provenance.revision, &*provenance.version), (7, "1.2.3"));
    assert_eq!(routed(&room), "hello");
    assert_eq!(room.status()[1].active.as_ref().unwrap().policy, "signed");
}

type Wrong = (&'static str, Sealed, Reason);

/// A router for `signed`, revision 6, and its manifest.
fn next() -> (Vec<u8>, Manifest) {
    let component = guests::router("other");
    let manifest = manifest("signed", 6, &component);
    (component, manifest)
}

/// Parts that do not belong together.
fn wrong_seals(ours: &SigningKey, theirs: &SigningKey) -> Vec<Wrong> {
    let (component, good) = next();
    let right = || sealed(ours, &good, component.clone());
    let tampered = |from: &str, to: &str| {
        let mut sealed = right();
        sealed.manifest = sealed.manifest.map(|text| text.replace(from, to));
        assert_ne!(sealed, right());
        sealed
    };
    let with = |change: fn(&mut Sealed)| {
        let mut sealed = right();
        change(&mut sealed);
        sealed
    };
    let stranger = sealed(theirs, &good, component.clone());
    vec![
        (
            "a manifest alone",
            with(|s| s.signature = None),
            Reason::Unsigned,
        ),
        (
            "a signature alone",
            with(|s| s.manifest = None),
            Reason::Unsigned,
        ),
        ("another key", stranger, Reason::UnknownKey),
        (
            "a later end",
            tampered("not_after = 20", "not_after = 21"),
            Reason::Tampered,
        ),
        (
            "another revision",
            tampered("revision = 6", "revision = 9"),
            Reason::Tampered,
        ),
        (
            "a space more",
            tampered("revision = 6", "revision =  6"),
            Reason::Tampered,
        ),
        (
            "another component",
            with(|s| s.component = guests::router("swapped")),
            Reason::OtherComponent,
        ),
        (
            "cases that nobody signed",
            with(|s| s.cases = Some("[[case]]".into())),
            Reason::OtherCases,
        ),
        (
            "a word for a signature",
            with(|s| s.signature = Some("hello".into())),
            Reason::Malformed,
        ),
        (
            "an empty signature",
            with(|s| s.signature = Some(String::new())),
            Reason::Malformed,
        ),
    ]
}

/// Manifests that are signed well and must not be taken.
fn wrong_manifests(ours: &SigningKey) -> Vec<Wrong> {
    let (component, good) = next();
    let changed = |what, change: fn(&mut Manifest), reason| {
        let mut manifest = good.clone();
        change(&mut manifest);
        (what, sealed(ours, &manifest, component.clone()), reason)
    };
    vec![
        changed(
            "tomorrow's",
            |m| m.not_before = datetime(signature::now() + DAY),
            Reason::NotYetValid,
        ),
        changed(
            "yesterday's",
            |m| m.not_after = datetime(signature::now() - DAY),
            Reason::Expired,
        ),
        changed(
            "another contract's",
            |m| m.contract = "0.2.0".into(),
            Reason::OtherContract,
        ),
        changed("an older one", |m| m.revision = 4, Reason::OldRevision),
        changed(
            "the same revision again",
            |m| m.revision = 5,
            Reason::OldRevision,
        ),
        changed(
            "a classifier",
            |m| m.hooks = vec![Hook::Classify],
            Reason::OtherHook,
        ),
        changed("another form", |m| m.format = 2, Reason::Malformed),
        changed(
            "a name with a path",
            |m| m.name = "../x".into(),
            Reason::Malformed,
        ),
    ]
}

#[test]
fn every_wrong_signature_is_refused_by_name_and_the_running_policy_untouched() {
    let (ours, theirs) = (key(), key());
    let room = room_with(config(&ours, SignatureMode::Required));
    room.put(signed(&ours, 5, "good")).unwrap();
    let plain = Sealed {
        component: next().0,
        ..Sealed::default()
    };
    let mut wrong = vec![("nothing beside it", plain, Reason::Unsigned)];
    wrong.extend(wrong_seals(&ours, &theirs));
    wrong.extend(wrong_manifests(&ours));
    for (what, sealed, reason) in wrong {
        let mut put = offer("any", bundle::pack(&sealed));
        put.hooks = Some(vec![Hook::Route]);
        let refusal = refused(&room, put);
        assert_eq!(refusal.stage, Stage::Signature, "{what}: {refusal}");
        let named = refusal.text.starts_with(reason.as_str());
        assert!(named, "{what}: {refusal}");
        assert_eq!(routed(&room), "good", "{what}");
    }
    assert_eq!(room.status()[1].active.as_ref().unwrap().generation, 1);
}

#[test]
fn a_signature_of_another_manifest_by_the_right_key_is_none() {
    let key = key();
    let room = room_with(config(&key, SignatureMode::Required));
    let component = guests::router("x");
    let mut mixed = sealed(&key, &manifest("a", 1, &component), component.clone());
    mixed.signature = sealed(&key, &manifest("b", 1, &component), component).signature;
    assert_reason(
        &refused(&room, offer("a", bundle::pack(&mixed))),
        Reason::Tampered,
    );
}

#[test]
fn optional_takes_what_is_unsigned_and_off_looks_at_nothing() {
    let (ours, theirs) = (key(), key());
    let room = room_with(config(&ours, SignatureMode::Optional));
    let report = room.put(offer("u", guests::router("unsigned"))).unwrap();
    assert!(report.provenance.is_none());
    assert_reason(&refused(&room, signed(&theirs, 1, "x")), Reason::UnknownKey);
    assert_eq!(routed(&room), "unsigned");
    let room = room_with(config(&ours, SignatureMode::Off));
    let report = room.put(signed(&theirs, 1, "x")).unwrap();
    assert_eq!((&*report.policy, report.provenance), ("any", None));
}

#[test]
fn an_embedded_policy_needs_no_signature_of_its_own() {
    let room = room_with(config(&key(), SignatureMode::Required));
    room.embed(offer("default", guests::router("default")))
        .unwrap();
    assert_eq!(routed(&room), "default");
}

#[test]
fn an_older_revision_is_refused_after_a_restart_and_taken_if_an_operator_insists() {
    let key = key();
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        room_with(RoomConfig {
            revisions_file: Some(dir.path().join("revisions.toml")),
            ..config(&key, SignatureMode::Required)
        })
    };
    let room = open();
    room.put(signed(&key, 3, "three")).unwrap();
    // A check accepts nothing.
    room.check(&signed(&key, 9, "nine")).unwrap();
    drop(room);
    let room = open();
    let refusal = refused(&room, signed(&key, 2, "two"));
    assert_reason(&refusal, Reason::OldRevision);
    assert!(
        refusal.text.contains("revision 2 of signed, but 3"),
        "{refusal}"
    );
    room.put(signed(&key, 3, "three")).unwrap();
    let mut insisted = signed(&key, 2, "two");
    insisted.allow_downgrade = true;
    room.put(insisted).unwrap();
    assert_eq!(routed(&room), "two");
    drop(room);
    let room = open();
    room.put(signed(&key, 2, "two")).unwrap();
    assert_reason(&refused(&room, signed(&key, 1, "one")), Reason::OldRevision);
    assert!(!dir.path().join("revisions.partial").exists());
}

#[test]
fn a_ledger_that_cannot_be_read_or_written_is_never_an_empty_one() {
    let key = key();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("revisions.toml");
    let config = |file: &Path| RoomConfig {
        revisions_file: Some(file.to_path_buf()),
        ..config(&key, SignatureMode::Required)
    };
    std::fs::write(&file, "[accepted.signed]\nrevision = ").unwrap();
    let error = PolicyRoom::new(config(&file), Arc::new(FakeModels)).err();
    assert!(error.unwrap().to_string().contains("damaged"));
    let room = room_with(config(&dir.path().join("missing/revisions.toml")));
    let refusal = refused(&room, signed(&key, 1, "x"));
    assert_reason(&refusal, Reason::NotRemembered);
    assert!(refusal.text.contains("cannot be written"), "{refusal}");
    assert!(room.status()[1].active.is_none());
}

#[test]
fn what_was_not_signed_for_is_not_given_whatever_the_operator_grants() {
    let key = key();
    let room = room_with(config(&key, SignatureMode::Required));
    let component = counting();
    let mut small = manifest("count", 1, &component);
    assert_eq!(small.capabilities, [Grant::Keyvalue]);
    let put = |manifest: &Manifest| {
        let bytes = bundle::pack(&sealed(&key, manifest, component.clone()));
        room.put(granted("count", bytes, &[Grant::Keyvalue, Grant::Models]))
    };
    let report = put(&small).unwrap();
    assert_eq!(report.unused_grants, ["models"]);
    small.capabilities.clear();
    small.revision = 2;
    let refusal = put(&small).unwrap_err();
    assert_reason(&refusal, Reason::Unclaimed);
    assert!(is_component(&classify(&room, 7)));
}

#[test]
fn an_older_member_of_a_composition_is_refused_as_an_older_policy_is() {
    let key = key();
    let dir = tempfile::tempdir().unwrap();
    let room = room_with(RoomConfig {
        dir: Some(dir.path().to_path_buf()),
        ..config(&key, SignatureMode::Optional)
    });
    let member = |revision, text| {
        let bytes = signed(&key, revision, text).bytes;
        std::fs::write(dir.path().join("second.policy"), bytes).unwrap();
    };
    let put = || {
        let options = "[compose]\nmode = \"chain\"\nmembers = [\"second.policy\"]\n";
        room.put(Offer {
            options: watch::parse_options(options).unwrap(),
            ..offer("first", guests::router("first"))
        })
    };
    member(5, "fifth");
    let report = put().unwrap();
    assert_eq!(report.members[0].revision, 5);
    member(4, "fourth");
    let refusal = put().unwrap_err();
    assert_eq!(refusal.stage, Stage::Signature, "{refusal}");
    let words = ["second.policy", Reason::OldRevision.as_str()];
    assert!(words.iter().all(|w| refusal.text.contains(w)), "{refusal}");
}

#[test]
fn a_key_that_is_none_is_found_when_the_room_opens() {
    let config = RoomConfig {
        trusted_keys: [("ops".into(), "ed25519:12".into())].into(),
        ..RoomConfig::default()
    };
    let error = PolicyRoom::new(config, Arc::new(FakeModels)).err().unwrap();
    let text = error.to_string();
    assert!(
        text.contains("trusted_keys.ops") && text.contains("64 hexadecimal"),
        "{text}"
    );
}

// ---- bundles ---------------------------------------------------------------------------

/// A small signed bundle, its parts, and the trusted key.
fn small() -> (Vec<u8>, Sealed, String) {
    let key = key();
    let component = guests::router("x");
    let manifest = manifest("route-x", 1, &component);
    let sealed = sealed(&key, &manifest, component);
    (bundle::pack(&sealed), sealed, key.public_text())
}

/// A changed bundle is refused, unless the change is in what nobody reads.
fn assert_refused_or_same(bytes: &[u8], sealed: &Sealed, key: &str, what: &str) {
    let Ok(read) = bundle::unpack(bytes) else {
        return;
    };
    if read != *sealed {
        let verified = verify(&read, &[("ops", key)], signature::now());
        assert!(verified.is_err(), "{what} passes for what was signed");
    }
}

#[test]
fn a_bundle_comes_back_as_it_was_packed_and_the_same_parts_are_the_same_bytes() {
    let (bytes, sealed, _) = small();
    assert_eq!(bundle::unpack(&bytes).unwrap(), sealed);
    assert_eq!(bundle::pack(&sealed), bytes);
    assert!(bundle::is_bundle(&bytes) && !bundle::is_bundle(&sealed.component));
}

#[test]
fn a_bit_flipped_at_any_byte_of_a_signed_bundle_is_refused() {
    let (bytes, sealed, key) = small();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        assert_refused_or_same(&flipped, &sealed, &key, &format!("byte {at} flipped"));
    }
}

#[test]
fn a_bit_flipped_at_any_byte_of_a_signed_component_is_refused_by_name() {
    let (_, sealed, key) = small();
    for at in 0..sealed.component.len() {
        let mut flipped = sealed.clone();
        flipped.component[at] ^= 1 << (at % 8);
        let error = verify(&flipped, &[("ops", &key)], signature::now()).unwrap_err();
        assert_eq!(error.reason, Reason::OtherComponent, "byte {at}");
    }
}

#[test]
fn every_truncation_of_a_bundle_is_refused() {
    let (bytes, sealed, key) = small();
    for len in 0..bytes.len() {
        assert_refused_or_same(&bytes[..len], &sealed, &key, &format!("{len} bytes"));
    }
}

#[test]
fn what_is_no_plain_archive_of_known_parts_is_refused() {
    let (bytes, sealed, _) = small();
    let header = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = bytes.clone();
        change(&mut bytes[..512]);
        let sum: u32 = (0..512)
            .map(|i| {
                if (148..156).contains(&i) {
                    32
                } else {
                    u32::from(bytes[i])
                }
            })
            .sum();
        bytes[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        bundle::unpack(&bytes).unwrap_err().text
    };
    let renamed = header(&|head| head[..11].copy_from_slice(b"../../passw"));
    assert!(renamed.contains("no part"), "{renamed}");
    let link = header(&|head| head[156] = b'2');
    assert!(link.contains("no regular file"), "{link}");
    let huge = header(&|head| head[124..135].copy_from_slice(b"77777777777"));
    assert!(huge.contains("ends within"), "{huge}");
    let no_number = header(&|head| head[124..135].copy_from_slice(b"zzzzzzzzzzz"));
    assert!(no_number.contains("no number"), "{no_number}");
    let twice = [&bytes[..bytes.len() - 1024], &bytes[..]].concat();
    assert!(
        bundle::unpack(&twice)
            .unwrap_err()
            .text
            .contains("two policy.toml")
    );
    let trailing = [&bytes[..], b"x"].concat();
    assert!(
        bundle::unpack(&trailing)
            .unwrap_err()
            .text
            .contains("after its end")
    );
    let mut hollow = sealed.clone();
    hollow.component.clear();
    let room = room();
    let refusal = refused(&room, offer("hollow", bundle::pack(&hollow)));
    assert_eq!(refusal.stage, Stage::Component, "{refusal}");
}

#[test]
fn arbitrary_bytes_never_panic_anywhere_before_the_compiler() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (bytes, sealed, key) = small();
    for _ in 0..20_000 {
        let mut noise = bytes.clone();
        for _ in 0..random.random_range(1..8) {
            let at = random.random_range(0..noise.len());
            noise[at] = random.random();
        }
        noise.truncate(random.random_range(0..=noise.len()));
        assert_refused_or_same(&noise, &sealed, &key, "noise");
        let text = String::from_utf8_lossy(&noise[..noise.len().min(2000)]).into_owned();
        let _ = signature::parse_manifest(&text);
        let _ = watch::parse_options(&text);
        let _ = crate::contents(&noise);
        let _ = SigningKey::parse(&text);
        let odd = Sealed {
            manifest: Some(text.clone()),
            signature: Some(text),
            ..sealed.clone()
        };
        assert!(verify(&odd, &[("ops", &key)], signature::now()).is_err());
    }
}

#[test]
fn a_bundle_and_a_signature_beside_a_component_are_taken_from_the_folder() {
    let key = key();
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder {
        room: room_with(RoomConfig {
            dir: Some(dir.path().to_path_buf()),
            poll_ms: 10,
            ..config(&key, SignatureMode::Required)
        }),
        dir,
    };
    folder.room.watch();
    folder.write("route-a.policy", &signed(&key, 1, "bundle").bytes);
    folder.until_routed("bundle");

    let component = guests::router("beside");
    let beside = sealed(&key, &manifest("other", 1, &component), component);
    folder.write("route-b.wasm", &beside.component);
    folder.until("refused", |room| {
        let attempt = room.status()[1].last_attempt.clone().unwrap();
        !attempt.accepted && attempt.text.contains("unsigned")
    });
    folder.write("route-b.policy.toml", beside.manifest.unwrap().as_bytes());
    folder.write("route-b.sig", beside.signature.unwrap().as_bytes());
    folder.until_routed("beside");
    std::fs::remove_file(folder.dir.path().join("route-b.wasm")).unwrap();
    folder.until_routed("bundle");
}

#[test]
fn a_folder_and_files_side_by_side_are_read_as_one_policy() {
    let (bytes, mut sealed, _) = small();
    sealed.cases = Some("# none\n".into());
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let write = |name: &str, text: &Option<String>| {
        std::fs::write(path(name), text.as_deref().unwrap()).unwrap();
    };
    for (component, [m, s, c]) in [
        (
            "policy.wasm",
            [bundle::MANIFEST, bundle::SIGNATURE, bundle::CASES],
        ),
        ("x.wasm", ["x.policy.toml", "x.sig", "x.cases.toml"]),
    ] {
        std::fs::write(path(component), &sealed.component).unwrap();
        write(m, &sealed.manifest);
        write(s, &sealed.signature);
        write(c, &sealed.cases);
    }
    let read = |path: &Path| bundle::read_policy(path, 1 << 20).unwrap();
    assert_eq!(read(dir.path()), sealed);
    assert_eq!(read(&path("x.wasm")), sealed);
    std::fs::write(path("y.policy"), &bytes).unwrap();
    assert_eq!(read(&path("y.policy")), bundle::unpack(&bytes).unwrap());
}
