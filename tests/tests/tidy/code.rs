//! Rules about Rust files: where `unsafe` may stand, how long functions are, how a module
//! opens, what is never left lying about.

use crate::source::{Function, code_only, functions, words};
use crate::tree::Tree;

/// Where `unsafe` may stand, and what for.
const UNSAFE_HOMES: &[(&str, &str)] = &[
    ("host/engine/src/kernels/", "vector instructions"),
    ("host/engine/src/gguf.rs", "mapping a model file"),
    ("host/telemetry/src/nvml", "foreign functions"),
    ("host/policy/src/cache.rs", "loading cached machine code"),
    ("tests/fake-nvml/", "foreign functions"),
];

/// An `unsafe` and the lines above it in which its argument is looked for.
const SAFETY_LINES: usize = 8;

/// What fits on a screen.
const FUNCTION_LINES_MAX: usize = 70;

/// Functions that are longer, each with its length. The list only shrinks.
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[
    ("plugins/classify-lexical/src/marks.rs", "read", 71),
    ("plugins/classify-lexical/src/marks.rs", "task", 73),
];

#[test]
fn unsafe_stands_only_where_the_plan_allows_and_gives_its_reason() {
    let tree = Tree::read();
    let mut wrong = Vec::new();
    for file in tree.with_extension("rs") {
        let text = tree.text(file);
        let lines: Vec<&str> = text.lines().collect();
        for word in words(&code_only(&text))
            .iter()
            .filter(|w| w.text == "unsafe")
        {
            if !UNSAFE_HOMES.iter().any(|(home, _)| file.starts_with(home)) {
                wrong.push(format!(
                    "{file}:{}: unsafe. It is allowed for {}: find a safe way, or move it there",
                    word.line,
                    UNSAFE_HOMES
                        .iter()
                        .map(|(home, what)| format!("{what} ({home})"))
                        .collect::<Vec<_>>()
                        .join(", ")
                ));
            } else if !has_safety_argument(&lines, word.line - 1) {
                wrong.push(format!(
                    "{file}:{}: unsafe without an argument. Write `// SAFETY: …` above it (or \
                     `# Safety` in the doc of an unsafe fn): why does the condition hold here?",
                    word.line
                ));
            }
        }
    }
    crate::report(wrong);
}

/// A block and an `unsafe impl` say why their conditions hold; a public `unsafe fn` says
/// what they are. The methods of an unsafe trait are explained at the trait, and a foreign
/// declaration or an attribute by what it belongs to.
fn has_safety_argument(lines: &[&str], at: usize) -> bool {
    let line = lines[at].trim_start();
    let declares = ["unsafe fn", "unsafe extern", "#[unsafe("]
        .iter()
        .any(|d| line.contains(d));
    let explained = |lines_above: usize, mark: &str| {
        lines[..=at]
            .iter()
            .rev()
            .take(lines_above)
            .any(|l| l.contains(mark))
    };
    match declares {
        true if line.starts_with("pub") => explained(40, "# Safety"),
        true => true,
        false => explained(SAFETY_LINES, "SAFETY:"),
    }
}

#[test]
fn functions_fit_on_a_screen() {
    let tree = Tree::read();
    let mut wrong = Vec::new();
    let mut seen = Vec::new();
    for file in tree.with_extension("rs") {
        for Function { name, lines } in functions(&code_only(&tree.text(file))) {
            if lines <= FUNCTION_LINES_MAX {
                continue;
            }
            let known = LONG_FUNCTIONS
                .iter()
                .find(|(f, n, _)| *f == file && *n == name);
            match known {
                None => wrong.push(format!(
                    "{file}: fn {name} has {lines} lines, at most {FUNCTION_LINES_MAX}. Find the \
                     step in it that deserves a name"
                )),
                Some((_, _, listed)) if lines > *listed => wrong.push(format!(
                    "{file}: fn {name} grew from {listed} to {lines} lines; it may only shrink"
                )),
                Some((_, _, listed)) if lines < *listed => wrong.push(format!(
                    "{file}: fn {name} shrank to {lines} lines: well done. Write {lines} for \
                     {listed} in LONG_FUNCTIONS of tests/tests/tidy/code.rs"
                )),
                Some(_) => {}
            }
            seen.push((file, name));
        }
    }
    for (file, name, _) in LONG_FUNCTIONS {
        if !seen.iter().any(|(f, n)| f == file && n == name) {
            wrong.push(format!(
                "{file}: fn {name} is short or gone: well done. Remove it from LONG_FUNCTIONS of \
                 tests/tests/tidy/code.rs"
            ));
        }
    }
    crate::report(wrong);
}

#[test]
fn every_file_says_first_why_it_exists() {
    let tree = Tree::read();
    let silent = tree.with_extension("rs").filter(|file| {
        let text = tree.text(file);
        let first = text.lines().find(|line| !line.trim().is_empty());
        !first.is_some_and(|line| line.starts_with("//! "))
    });
    crate::report(
        silent
            .map(|file| format!("{file}: open it with `//!`: why it exists and what it refuses"))
            .collect(),
    );
}

#[test]
fn nothing_half_done_is_left_behind() {
    // Written in halves, or this file would find itself.
    let words = [
        ["to", "do!"],
        ["unimple", "mented!"],
        ["FIX", "ME"],
        ["XX", "X:"],
        ["not yet imple", "mented"],
        ["place", "holder"],
        ["dbg", "!("],
    ]
    .map(|halves| halves.concat());
    let tree = Tree::read();
    let mut wrong = Vec::new();
    for file in tree.files().filter(|f| !is_lock(f)) {
        for (number, line) in tree.text(file).lines().enumerate() {
            if let Some(word) = words.iter().find(|w| line.contains(w.as_str())) {
                wrong.push(format!(
                    "{file}:{}: {word}. Finish it, or open an issue and remove the word",
                    number + 1
                ));
            }
        }
    }
    crate::report(wrong);
}

/// Files written by package managers.
pub fn is_lock(file: &str) -> bool {
    ["Cargo.lock", "package-lock.json"]
        .iter()
        .any(|lock| file.ends_with(lock))
}

#[test]
fn modules_are_named_after_what_they_are() {
    let empty_names = [
        "utils", "util", "common", "core", "helpers", "misc", "crates",
    ];
    let tree = Tree::read();
    let wrong = tree.files().filter_map(|file| {
        let mut parts = file
            .split('/')
            .map(|part| part.split('.').next().unwrap_or(part));
        let name = parts.find(|part| empty_names.contains(part))?;
        Some(format!(
            "{file}: {name:?} says nothing about what is inside. Name it after that"
        ))
    });
    crate::report(wrong.collect());
}
