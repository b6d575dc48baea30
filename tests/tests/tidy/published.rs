//! A published contract only grows. Hosts match records, enums and variants exactly, so a
//! policy that was built from the contract as it was must find every word of it unchanged
//! in the contract as it is: `tests/golden/contract-<version>` is what was published.
//!
//! New interfaces, new functions and new types are welcome; so is another comment.

use std::collections::BTreeMap;
use std::path::Path;

use wit_parser::{Function, Handle, Resolve, Type, TypeDefKind, WorldItem};

use crate::tree::Tree;

/// Folders below `tests/golden`, each a contract that was published.
const PUBLISHED: &[&str] = &["contract-0.1.0"];

#[test]
fn what_was_published_is_still_there_word_for_word() {
    let tree = Tree::read();
    let now = words(&read(&tree.path("wit")));
    let mut wrong = Vec::new();
    for folder in PUBLISHED {
        let then = words(&read(&tree.path(&format!("tests/golden/{folder}"))));
        assert!(then.len() > 70, "{folder} holds only {} words", then.len());
        wrong.extend(broken(&then, &now));
    }
    crate::report(wrong);
}

fn read(folder: &Path) -> Resolve {
    let mut resolve = Resolve::default();
    resolve
        .push_dir(folder)
        .unwrap_or_else(|e| panic!("{} does not parse: {e:#}", folder.display()));
    resolve
}

/// What a policy may rely on: the name of every type, function and export, and its shape.
type Words = BTreeMap<String, String>;

fn words(resolve: &Resolve) -> Words {
    let mut words = Words::new();
    for (_, interface) in resolve.interfaces.iter() {
        let Some(name) = interface.name.as_deref() else {
            continue;
        };
        let package = interface.package.map(|p| &resolve.packages[p].name);
        // Versions that fit each other are one contract.
        let place = package.map_or_else(String::new, |p| format!("{}:{}/", p.namespace, p.name));
        let place = format!("{place}{name}");
        for (name, id) in &interface.types {
            let shape = definition(resolve, &resolve.types[*id].kind);
            words.insert(format!("{place} type {name}"), shape);
        }
        for (name, function) in &interface.functions {
            let shape = signature(resolve, function);
            words.insert(format!("{place} function {name}"), shape);
        }
    }
    for (_, world) in resolve.worlds.iter() {
        let names = |items: &mut dyn Iterator<Item = &wit_parser::WorldKey>| {
            let mut names: Vec<String> = items
                .map(|key| line_of(&resolve.name_world_key(key)))
                .collect();
            names.sort();
            names
        };
        for import in names(&mut world.imports.keys()) {
            words.insert(
                format!("world {} import {import}", world.name),
                "is there".into(),
            );
        }
        // One export more, and every policy of that world lacks it.
        let exports = names(&mut world.exports.keys()).join(", ");
        words.insert(format!("world {} exports", world.name), exports);
        for (key, item) in &world.exports {
            if let WorldItem::Function(function) = item {
                let name = resolve.name_world_key(key);
                let shape = signature(resolve, function);
                words.insert(format!("world {} function {name}", world.name), shape);
            }
        }
    }
    words
}

/// An interface with the line of its version: `@0.1.4` fits `@0.1.0`, a draft fits only
/// itself.
fn line_of(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((line, _)) if name.contains('@') && !name.contains('-') => line.to_owned(),
        _ => name.to_owned(),
    }
}

/// Everything of `then` that `now` has no more, or otherwise.
fn broken(then: &Words, now: &Words) -> Vec<String> {
    let judge = |(word, was): (&String, &String)| match now.get(word) {
        Some(is) if is == was => None,
        Some(is) => Some(format!(
            "wit: {word} was published as {was} and is now {is}. Policies in the field match it \
             exactly: leave it, and add a new type or function"
        )),
        None => Some(format!(
            "wit: {word} was published and is gone. Policies in the field use it: put it back"
        )),
    };
    then.iter().filter_map(judge).collect()
}

fn signature(resolve: &Resolve, function: &Function) -> String {
    let parameters: Vec<String> = function
        .params
        .iter()
        .map(|p| format!("{}: {}", p.name, shape(resolve, &p.ty)))
        .collect();
    let result = function.result.as_ref().map(|t| shape(resolve, t));
    format!(
        "({}) -> {}",
        parameters.join(", "),
        result.unwrap_or_else(|| "nothing".into())
    )
}

fn shape(resolve: &Resolve, t: &Type) -> String {
    match t {
        Type::Id(id) => match &resolve.types[*id].name {
            Some(name) => name.clone(),
            None => definition(resolve, &resolve.types[*id].kind),
        },
        plain => format!("{plain:?}").to_lowercase(),
    }
}

fn definition(resolve: &Resolve, kind: &TypeDefKind) -> String {
    let of = |t: &Type| shape(resolve, t);
    let maybe = |t: &Option<Type>| t.as_ref().map_or_else(|| "_".into(), of);
    let list = |parts: Vec<String>| parts.join(", ");
    match kind {
        TypeDefKind::Record(r) => {
            let fields = r
                .fields
                .iter()
                .map(|f| format!("{}: {}", f.name, of(&f.ty)));
            format!("record {{ {} }}", list(fields.collect()))
        }
        TypeDefKind::Variant(v) => {
            let cases = v
                .cases
                .iter()
                .map(|c| format!("{}({})", c.name, maybe(&c.ty)));
            format!("variant {{ {} }}", list(cases.collect()))
        }
        TypeDefKind::Enum(e) => {
            format!(
                "enum {{ {} }}",
                list(e.cases.iter().map(|c| c.name.clone()).collect())
            )
        }
        TypeDefKind::Flags(f) => {
            format!(
                "flags {{ {} }}",
                list(f.flags.iter().map(|f| f.name.clone()).collect())
            )
        }
        TypeDefKind::Tuple(t) => format!("tuple<{}>", list(t.types.iter().map(of).collect())),
        TypeDefKind::Option(t) => format!("option<{}>", of(t)),
        TypeDefKind::List(t) => format!("list<{}>", of(t)),
        TypeDefKind::Result(r) => format!("result<{}, {}>", maybe(&r.ok), maybe(&r.err)),
        TypeDefKind::Type(t) => of(t),
        TypeDefKind::Handle(Handle::Own(id)) => format!("own<{}>", of(&Type::Id(*id))),
        TypeDefKind::Handle(Handle::Borrow(id)) => format!("borrow<{}>", of(&Type::Id(*id))),
        TypeDefKind::Resource => "resource".into(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod judged {
    use super::*;

    const CONTRACT: &str = "package a:b@0.1.0;
        interface types {
            record point { x: u32, y: option<f32> }
            enum colour { red, green }
            variant shape { dot(point), nothing }
            flags edge { top, left }
            resource handle { open: func(name: string) -> result<list<u8>, string>; }
            draw: func(what: shape, how: colour) -> bool;
        }
        world drawing { import types; }
        world painted { export types; }";

    fn of(text: &str) -> Words {
        let mut resolve = Resolve::default();
        resolve
            .push_str("a.wit", text)
            .unwrap_or_else(|e| panic!("{e:#}\n{text}"));
        words(&resolve)
    }

    fn edited(from: &str, to: &str) -> Vec<String> {
        assert!(CONTRACT.contains(from), "{from}");
        broken(&of(CONTRACT), &of(&CONTRACT.replace(from, to)))
    }

    #[test]
    fn every_kind_of_change_to_what_was_published_is_told() {
        for (from, to, told) in [
            ("x: u32, ", "", "type point"),
            ("x: u32,", "x: u32, z: u32,", "type point"),
            ("x: u32", "x: u64", "type point"),
            ("option<f32>", "f32", "type point"),
            (
                "x: u32, y: option<f32>",
                "y: option<f32>, x: u32",
                "type point",
            ),
            ("red, green", "red, green, blue", "type colour"),
            (
                "dot(point), nothing",
                "dot(point), nothing, line",
                "type shape",
            ),
            ("dot(point)", "dot(u32)", "type shape"),
            ("top, left", "top", "type edge"),
            (
                "open: func(name: string)",
                "open: func()",
                "function [method]handle.open",
            ),
            (
                "list<u8>, string",
                "list<u8>",
                "function [method]handle.open",
            ),
            (
                "draw: func(what: shape, how: colour) -> bool;",
                "",
                "function draw",
            ),
            ("how: colour", "how: u8", "function draw"),
            ("-> bool", "-> u8", "function draw"),
            ("import types; ", "", "world drawing import"),
            ("export types; ", "", "world painted exports"),
        ] {
            let wrong = edited(from, to);
            assert!(
                wrong.iter().any(|w| w.contains(told)),
                "{from} to {to}: {wrong:?}"
            );
        }
    }

    #[test]
    fn what_is_only_added_is_welcome() {
        for (from, to) in [
            ("draw: func", "erase: func(); draw: func"),
            ("enum colour", "record size { w: u32 } enum colour"),
            (
                "world drawing {",
                "interface more { now: func() -> u64; } world drawing { import more;",
            ),
            ("world drawing", "/// With a comment.\n world drawing"),
            ("open: func", "close: func(); open: func"),
            ("a:b@0.1.0", "a:b@0.1.1"),
        ] {
            let wrong = edited(from, to);
            assert!(wrong.is_empty(), "{from} to {to}: {wrong:?}");
        }
    }
}
