//! Guests written as WebAssembly text, for what Rust cannot say: several memories, a start
//! function, lies about one's own memory. Each is a router; its file holds only what is
//! peculiar to it.
//!
//! A router takes everything through one pointer and answers with another (canonical ABI:
//! more than 16 flat parameters), so a few loads and stores are a whole policy.

use std::path::{Path, PathBuf};

use homeostat_hooks::Decision;
use wit_component::{StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// What the guests share. `$mark` is the first byte of the first message, 0 without one;
/// `$tell` refuses the request and tells a number as `retry-after-ms`.
const PRELUDE: &str = r#"
(memory (export "memory") 2)
(global $next (mut i32) (i32.const 8192))

;; Nothing is given back: an instance lives for one request.
(func (export "cabi_realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
  (local $at i32)
  (local.set $at
    (i32.and
      (i32.add (global.get $next) (i32.sub (local.get $align) (i32.const 1)))
      (i32.sub (i32.const 0) (local.get $align))))
  (global.set $next (i32.add (local.get $at) (local.get $size)))
  (if (i32.gt_u (global.get $next) (i32.shl (memory.size 0) (i32.const 16)))
    (then
      (if (i32.eq (i32.const -1)
            (memory.grow 0 (i32.add (i32.shr_u (local.get $size) (i32.const 16)) (i32.const 1))))
        (then unreachable))))
  (memory.copy 0 0 (local.get $at) (local.get $old) (local.get $old_size))
  (local.get $at))

;; request: id 0, endpoint 8, model 12, messages 20; message: role 0, content 4.
(func $mark (param $request i32) (result i32)
  (local $message i32)
  (if (i32.eqz (i32.load offset=24 (local.get $request))) (then (return (i32.const 0))))
  (local.set $message (i32.load offset=20 (local.get $request)))
  (if (i32.eqz (i32.load offset=8 (local.get $message))) (then (return (i32.const 0))))
  (i32.load8_u (i32.load offset=4 (local.get $message))))

;; "g" as in greedy.
(func $greedy (param $mark i32) (result i32) (i32.eq (local.get $mark) (i32.const 103)))
;; "g", or "p" as in polite.
(func $misbehaves (param $mark i32) (result i32)
  (i32.or (call $greedy (local.get $mark)) (i32.eq (local.get $mark) (i32.const 112))))

;; result<decision, error>: ok 0, reject 4, kind 8, message 12, retry-after-ms 20.
(func $tell (param $number i32) (result i32)
  (i32.store8 (i32.const 1024) (i32.const 0))
  (i32.store8 (i32.const 1028) (i32.const 2))
  (i32.store8 (i32.const 1032) (i32.const 3))
  (i32.store (i32.const 1036) (i32.const 2048))
  (i32.store (i32.const 1040) (i32.const 4))
  (i32.store8 (i32.const 1044) (i32.const 1))
  (i32.store (i32.const 1048) (local.get $number))
  (i32.const 1024))
(data (i32.const 2048) "told")
"#;

/// The guest of that name in `tests/guests/wat`.
pub fn component(name: &str) -> Vec<u8> {
    let found = crate::TEXTS.iter().find(|(guest, _)| *guest == name);
    let (_, text) = found.unwrap_or_else(|| panic!("tests/guests/wat has no {name}.wat"));
    if !text.contains("state-migration@") {
        return router(text, &Contract::ours());
    }
    let worlds = "world migrating-route-policy { include route-policy; include migrating-policy; }";
    let contract = Contract::changed("0.1.0", |wit| match wit.contains("world route-policy {") {
        true => format!("{wit}\n@since(version = 0.1.0)\n{worlds}\n"),
        false => wit,
    });
    wrap(core_module(text), &contract, "migrating-route-policy")
}

/// A well-behaved policy for all hooks that tells this number: as confidence in percent
/// where it is asked for one, as `retry-after-ms` in `route`. At most 100.
pub fn telling(number: u32) -> Vec<u8> {
    telling_by(number, &Contract::ours())
}

/// The same by another contract.
pub fn telling_by(number: u32, contract: &Contract) -> Vec<u8> {
    let text = format!(
        r#"
(func (export "homeostat:policy/router@0.1.0#route") (param i32) (result i32)
  (call $tell (i32.const {number})))
;; result<classification, error>: ok 0, p-simple 4, p-medium 8, p-complex 12, task 16,
;; dimensions 20, confidence 28, attributes 32.
(func (export "homeostat:policy/classifier@0.1.0#classify") (param i32) (result i32)
  (memory.fill 0 (i32.const 1024) (i32.const 0) (i32.const 64))
  (f32.store (i32.const 1028) (f32.const 1))
  (f32.store (i32.const 1052) (f32.div (f32.const {number}) (f32.const 100)))
  (i32.const 1024))
;; result<verdict, error>: ok 0, accept 4, confidence 8, findings 12.
(func (export "homeostat:policy/validator@0.1.0#validate") (param i32) (result i32)
  (memory.fill 0 (i32.const 1024) (i32.const 0) (i32.const 64))
  (f32.store (i32.const 1032) (f32.div (f32.const {number}) (f32.const 100)))
  (i32.const 1024))
(func (export "homeostat:policy/learner@0.1.0#learn") (param i32))"#
    );
    wrap(
        core_module(&contract.versioned(&text)),
        contract,
        "full-policy",
    )
}

/// The number that a well-behaved text guest told in `route`.
pub fn told(decision: &Decision) -> Option<u32> {
    match decision {
        Decision::Reject(rejection) => rejection.retry_after_ms,
        _ => None,
    }
}

/// The text of `wit/`, perhaps changed.
pub struct Contract {
    folder: tempfile::TempDir,
    version: String,
}

impl Contract {
    /// As it is.
    pub fn ours() -> Self {
        Self::changed("0.1.0", |text| text)
    }

    /// Of another version, or with other types.
    pub fn changed(version: &str, change: impl Fn(String) -> String) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the contract");
        let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
        copy(&wit, folder.path(), &|text| {
            change(text)
                .replace(
                    "homeostat:policy@0.1.0",
                    &format!("homeostat:policy@{version}"),
                )
                .replace(
                    "@since(version = 0.1.0)",
                    &format!("@since(version = {version})"),
                )
        });
        Self {
            folder,
            version: version.to_owned(),
        }
    }

    fn versioned(&self, text: &str) -> String {
        text.replace("@0.1.0", &format!("@{}", self.version))
    }
}

fn copy(from: &Path, to: &Path, change: &dyn Fn(String) -> String) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("wit/ is there") {
        let path: PathBuf = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target, change);
        } else {
            let text = std::fs::read_to_string(&path).expect("WIT is text");
            std::fs::write(target, change(text)).expect("a file");
        }
    }
}

/// A router of this text beside the prelude.
pub fn router(text: &str, contract: &Contract) -> Vec<u8> {
    wrap(
        core_module(&contract.versioned(text)),
        contract,
        "route-policy",
    )
}

/// A core module: what it takes to be mistaken for a policy.
pub fn core_module(text: &str) -> Vec<u8> {
    // Imports come before everything that is defined.
    let (imports, rest): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.starts_with("(import "));
    let text = format!(
        "(module {}\n{PRELUDE}\n{})",
        imports.join("\n"),
        rest.join("\n")
    );
    wat::parse_str(text).unwrap_or_else(|e| panic!("{e}"))
}

fn wrap(mut module: Vec<u8>, contract: &Contract, world: &str) -> Vec<u8> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve
        .push_dir(contract.folder.path())
        .expect("the contract parses");
    let world = resolve
        .select_world(&[package], Some(world))
        .expect("the contract has this world");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
        .expect("the types fit into the module");
    homeostat_componentize::encode(&module).unwrap_or_else(|e| panic!("{e}"))
}
