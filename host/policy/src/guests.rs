//! Guests for tests, written as text: a core module by hand, made a component.
//!
//! A guest is good while the request's id has the length of a probe's, and misbehaves at
//! other lengths, so that it passes admission first.

use std::path::Path;
use std::sync::Arc;

use homeostat_hooks::{
    GenerateOptions, Generated, Message, ModelError, Models, Request, Role, TierView,
};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

/// The length of `probe`, the id of every probe.
const PROBE_ID: usize = 5;

/// Makes a component of `world` out of a core module in text.
pub fn component(world: &str, wat: &str) -> Vec<u8> {
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit");
    component_of(&wit, world, wat)
}

/// As [`component`], with another copy of the contract.
pub fn component_of(wit: &Path, world: &str, wat: &str) -> Vec<u8> {
    let mut module = core_module(wat);
    let mut resolve = wit_parser::Resolve::default();
    let (package, _) = resolve.push_path(wit).expect("the contract parses");
    let world = resolve
        .select_world(&[package], Some(world))
        .expect("the world exists");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
        .expect("the world can be embedded");
    ComponentEncoder::default()
        .module(&module)
        .and_then(|encoder| encoder.validate(true).encode())
        .expect("the module fits the world")
}

/// Assembles a core module.
pub fn core_module(wat: &str) -> Vec<u8> {
    wat::parse_str(wat).expect("the text assembles")
}

/// A request whose id has this length.
pub fn request(id_len: usize) -> Arc<Request> {
    Arc::new(Request {
        id: "x".repeat(id_len),
        messages: vec![Message {
            role: Role::User,
            content: "What is the capital of France?".into(),
        }],
        ..Request::default()
    })
}

/// The allocator that every guest has, and the memory it works in.
const ALLOCATOR: &str = r#"
  (memory (export "memory") 2)
  (global $heap (mut i32) (i32.const 8192))
  (func $grow_or_die (param $bytes i32)
    (if (i32.eq (memory.grow (i32.add (i32.shr_u (local.get $bytes) (i32.const 16)) (i32.const 1)))
                (i32.const -1))
      (then unreachable)))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
    (global.set $heap (i32.add (local.get $at) (local.get 3)))
    (if (i32.gt_u (global.get $heap) (i32.mul (memory.size) (i32.const 65536)))
      (then (call $grow_or_die (local.get 3))))
    (local.get $at))
  (func $id_len (param $args i32) (result i32) (i32.load offset=4 (local.get $args)))
"#;

/// A classifier. `cases` is text that runs when the id is not a probe's, with the
/// arguments in local 0; `head` is put before everything (imports), `extra` after.
pub fn classifier(head: &str, extra: &str, cases: &str) -> Vec<u8> {
    component("classify-policy", &classifier_text(head, extra, cases))
}

/// The text of [`classifier`].
pub fn classifier_text(head: &str, extra: &str, cases: &str) -> String {
    format!(
        r#"(module {head} {ALLOCATOR} {extra}
  (global $calls (mut i32) (i32.const 0))
  (func $good (result i32)
    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    (i32.store8 (i32.const 1024) (i32.const 0))
    (f32.store (i32.const 1028) (f32.const 0.25))
    (f32.store (i32.const 1032) (f32.const 0.25))
    (f32.store (i32.const 1036) (f32.const 0.5))
    (i32.store8 (i32.const 1040) (i32.const 5))
    (i64.store align=4 (i32.const 1044) (i64.const 0))
    (f32.store (i32.const 1052)
      (f32.div (f32.convert_i32_u (global.get $calls)) (f32.const 100)))
    (i64.store align=4 (i32.const 1056) (i64.const 0))
    (i32.const 1024))
  (func (export "homeostat:policy/classifier@0.1.0#classify") (param i32) (result i32)
    (if (i32.eq (call $id_len (local.get 0)) (i32.const {PROBE_ID})) (then (return (call $good))))
    {cases}
    (call $good)))"#
    )
}

/// A classifier that does `then` when the id has this length.
pub fn classifier_when(len: usize, head: &str, extra: &str, then: &str) -> Vec<u8> {
    let cases =
        format!("(if (i32.eq (call $id_len (local.get 0)) (i32.const {len})) (then {then}))");
    classifier(head, extra, &cases)
}

/// The exports of a router that answers every request directly with `text`.
fn router_part(text: &str) -> String {
    format!(
        r#"(data (i32.const 2048) "{text}")
  (func (export "homeostat:policy/router@0.1.0#route") (param i32) (result i32)
    (i32.store8 (i32.const 1024) (i32.const 0))
    (i32.store8 (i32.const 1028) (i32.const 1))
    (i32.store (i32.const 1032) (i32.const 2048))
    (i32.store (i32.const 1036) (i32.const {len}))
    (i32.store (i32.const 1040) (i32.const 2048))
    (i32.store (i32.const 1044) (i32.const {len}))
    (i32.const 1024))"#,
        len = text.len()
    )
}

/// The exports of a validator whose confidence is 0.01 x the calls of this instance.
const VALIDATOR_PART: &str = r#"
  (global $validations (mut i32) (i32.const 0))
  (func (export "homeostat:policy/validator@0.1.0#validate") (param i32) (result i32)
    (if (i32.eq (call $id_len (local.get 0)) (i32.const 9)) (then unreachable))
    (global.set $validations (i32.add (global.get $validations) (i32.const 1)))
    (i32.store8 (i32.const 1024) (i32.const 0))
    (i32.store8 (i32.const 1028) (i32.const 0))
    (f32.store (i32.const 1032)
      (f32.div (f32.convert_i32_u (global.get $validations)) (f32.const 100)))
    (i64.store align=4 (i32.const 1036) (i64.const 0))
    (i32.const 1024))"#;

pub fn router(text: &str) -> Vec<u8> {
    let part = router_part(text);
    component("route-policy", &format!("(module {ALLOCATOR} {part})"))
}

pub fn validator() -> Vec<u8> {
    component(
        "validate-policy",
        &format!("(module {ALLOCATOR} {VALIDATOR_PART})"),
    )
}

/// Classifies, routes and validates; the confidences count its calls.
pub fn all_hooks() -> Vec<u8> {
    let learner = r#"(func (export "homeostat:policy/learner@0.1.0#learn") (param i32))"#;
    let extra = format!("{} {VALIDATOR_PART} {learner}", router_part("all"));
    component("full-policy", &classifier_text("", &extra, ""))
}

/// Has a text embedded, and traps when the model does not answer.
pub fn embedding() -> Vec<u8> {
    let head = r#"
      (import "homeostat:policy/models@0.1.0" "open" (func $open (param i32 i32 i32)))
      (import "homeostat:policy/models@0.1.0" "[method]model.embed"
        (func $embed (param i32 i32 i32 i32)))"#;
    let cases = "(call $open (i32.const 3000) (i32.const 4) (i32.const 4096))
        (if (i32.load8_u (i32.const 4096)) (then unreachable))
        (call $embed (i32.load (i32.const 4100)) (i32.const 0) (i32.const 1) (i32.const 4128))
        (if (i32.load8_u (i32.const 4128)) (then unreachable))";
    classifier(head, r#"(data (i32.const 3000) "tiny")"#, cases)
}

/// Models for tests: one encoder that answers, one generator that is slow.
pub struct FakeModels;

impl Models for FakeModels {
    fn names(&self) -> Vec<String> {
        vec!["tiny".into()]
    }

    fn info(&self, name: &str) -> Result<TierView, ModelError> {
        Ok(TierView {
            id: name.into(),
            ..TierView::default()
        })
    }

    fn count_tokens(&self, _: &str, text: &str) -> Result<u32, ModelError> {
        Ok(text.len() as u32)
    }

    fn embed(&self, _: &str, _: &str, _: u32) -> Result<Vec<f32>, ModelError> {
        Ok(vec![1.0])
    }

    fn score(
        &self,
        _: Option<&str>,
        _: &str,
        _: &str,
        _: &str,
        timeout: u32,
    ) -> Result<Vec<f32>, ModelError> {
        std::thread::sleep(std::time::Duration::from_millis(u64::from(timeout)));
        Err(ModelError::Unavailable("too slow".into()))
    }

    fn generate(
        &self,
        _: Option<&str>,
        _: &str,
        prompt: &str,
        _: &GenerateOptions,
        _: u32,
    ) -> Result<Generated, ModelError> {
        Ok(Generated {
            text: prompt.into(),
            ..Generated::default()
        })
    }
}
