//! Rules about the rest of the tree: what stands at the top, what is too large or tells
//! about somebody's machine, and whether the README speaks of what is there.

use crate::code::is_lock;
use crate::tree::Tree;

/// Everything that may stand at the top (host/README.md explains the rooms).
const TOP: &[&str] = &[
    ".ci",
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "host",
    "models",
    "plugins",
    "rustfmt.toml",
    "sdk",
    "tests",
    "wit",
];

/// Larger files are fetched or made, not kept.
const BYTES_MAX: u64 = 4 << 20;

/// Words of the README before its first command.
const WORDS_BEFORE_COMMAND_MAX: usize = 90;

#[test]
fn the_top_of_the_tree_holds_only_what_the_plan_names() {
    let tree = Tree::read();
    let mut strangers: Vec<&str> = tree
        .files()
        .filter_map(|file| file.split('/').next())
        .filter(|top| !TOP.contains(top))
        .collect();
    strangers.dedup();
    crate::report(
        strangers
            .into_iter()
            .map(|top| format!("{top}: move it into a room, or add it to the plan and to TOP"))
            .collect(),
    );
}

#[test]
fn no_file_is_too_large_to_read() {
    let tree = Tree::read();
    let large = tree.files().filter_map(|file| {
        let bytes = std::fs::metadata(tree.path(file)).ok()?.len();
        (bytes > BYTES_MAX).then(|| {
            format!(
                "{file} has {bytes} bytes, at most {BYTES_MAX}: keep the script that makes or \
                 fetches it instead, with its sha256"
            )
        })
    });
    crate::report(large.collect());
}

#[test]
fn no_file_tells_about_a_machine_or_a_registry() {
    // Written in halves, or this file would find itself.
    let forbidden = [
        (["/ro", "ot/"], "a path of one machine"),
        (["/ho", "me/"], "a path of one machine"),
        (["/Use", "rs/"], "a path of one machine"),
        (["/wo", "rk/"], "a path of one machine"),
        (["crates", ".io"], "a registry"),
        (["py", "pi.org"], "a registry"),
        (["files.python", "hosted"], "a registry"),
        (["npm", "js."], "a registry"),
    ]
    .map(|(halves, what)| (halves.concat(), what));
    let tree = Tree::read();
    let mut wrong = Vec::new();
    for file in tree.files().filter(|f| !is_lock(f)) {
        for (number, line) in tree.text(file).lines().enumerate() {
            if let Some((text, what)) = forbidden.iter().find(|(t, _)| line.contains(t.as_str())) {
                wrong.push(format!(
                    "{file}:{}: {text} is {what}. Take it from the environment or from the \
                     package manager's own configuration",
                    number + 1
                ));
            }
        }
    }
    crate::report(wrong);
}

#[test]
fn the_readme_shows_a_command_within_ninety_words() {
    let readme = Tree::read().text("README.md");
    let mut words = 0;
    for line in readme.lines() {
        if line.starts_with("    ") || line.starts_with("```") {
            assert!(
                words <= WORDS_BEFORE_COMMAND_MAX,
                "README.md: {words} words before the first command, at most \
                 {WORDS_BEFORE_COMMAND_MAX}. Move some of them below it"
            );
            return;
        }
        words += line
            .split_whitespace()
            .filter(|w| w.contains(char::is_alphanumeric))
            .count();
    }
    panic!("README.md shows no command: indent one by four spaces");
}

#[test]
fn the_documents_name_only_files_that_exist() {
    let tree = Tree::read();
    let mut wrong = Vec::new();
    for file in tree.with_extension("md") {
        let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
        let text = tree.text(file);
        let exists = |path: &str| {
            let candidates = [format!("{folder}/{path}"), path.to_owned()];
            candidates
                .iter()
                .any(|c| tree.path(c.trim_start_matches('/')).exists())
        };
        // What stands between backticks may be a path in the user's folder: it is ours if
        // it begins as something of ours.
        let ours = |path: &&str| path.split('/').next().is_some_and(exists);
        let in_code = paths_in_code(&text).into_iter().filter(ours);
        for path in links(&text).into_iter().chain(in_code) {
            if !exists(path) {
                wrong.push(format!("{file} speaks of {path}, which does not exist"));
            }
        }
    }
    crate::report(wrong);
}

/// Targets of `[text](target)` inside the tree.
fn links(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next())
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .collect()
}

/// Paths between backticks: one word with a slash in it, that ends in a slash or in a kind
/// of file that we keep. What stands in a fence is an example.
fn paths_in_code(text: &str) -> Vec<&str> {
    let outside = text.split("```").step_by(2);
    outside
        .flat_map(|part| part.split('`').skip(1).step_by(2))
        .filter(|code| {
            let kinds = ["/", ".rs", ".toml", ".md", ".wit", ".py", ".wat"];
            let one_word = !code.contains([' ', '*', '<', '$', '~', '{', ':']);
            one_word && code.contains('/') && kinds.iter().any(|k| code.ends_with(k))
        })
        .filter(|code| !code.starts_with('/') && !code.starts_with("target/"))
        .collect()
}

/// Rows of the README's table, without its head.
fn feature_rows(readme: &str) -> Vec<&str> {
    let rows = readme.lines().filter(|line| line.starts_with('|'));
    rows.skip(2).collect()
}

#[test]
fn every_feature_of_the_readme_can_be_found_in_the_tree() {
    let tree = Tree::read();
    let readme = tree.text("README.md");
    let rows = feature_rows(&readme);
    assert!(
        !rows.is_empty(),
        "README.md has no table of features: one row each, with the place in backticks"
    );
    let lost = rows.iter().filter(|row| {
        let mut places = row.split('`').skip(1).step_by(2);
        !places.any(|place| tree.path(place).exists())
    });
    crate::report(
        lost.map(|row| format!("README.md: where is this? Name its place in backticks: {row}"))
            .collect(),
    );
}
