//! The table of failure modes in `tests/README.md` is true: every row has a test that
//! exists, every guest has a row, and nothing is pending that is not listed here.

use std::collections::{BTreeMap, BTreeSet};

use crate::tree::Tree;

/// The failure modes that were listed before anything was built.
const LISTED: usize = 45;

/// Rows whose test is still on its way, and who brings it. Write the test's name into the
/// table and remove the line here.
const PENDING: &[(usize, &str)] = &[];

/// Where the tests of the table are: beginning of a name, folder, ending of the file.
const PLACES: &[(&str, &str, &str)] = &[
    ("hostile/", "tests/tests/hostile/", "rs"),
    ("policy/", "host/policy/src/", "rs"),
    ("compiler/", "host/policy/tests/", "rs"),
    ("server/", "host/server/src/", "rs"),
    ("e2e/", "tests/e2e/", "py"),
];

struct Row {
    number: usize,
    guests: Vec<String>,
    tests: Vec<String>,
}

fn rows(text: &str) -> Vec<Row> {
    let cells = |line: &str| -> Option<Row> {
        let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        let list = |cell: &str| -> Vec<String> {
            let items = cell.split(',').map(str::trim).filter(|i| !i.is_empty());
            items.map(str::to_owned).collect()
        };
        Some(Row {
            number: cells.first()?.parse().ok()?,
            guests: list(cells.get(3)?),
            tests: list(cells.get(4)?),
        })
    };
    text.lines().filter_map(cells).collect()
}

/// Why a test of the table is none.
fn missing(tree: &Tree, test: &str) -> Option<String> {
    let Some((path, name)) = test.split_once("::") else {
        return Some(format!("{test:?} is no `file::test`"));
    };
    let place = PLACES.iter().find(|(start, ..)| path.starts_with(start));
    let Some((start, folder, ending)) = place else {
        return Some(format!("{path} begins with none of the known places"));
    };
    let file = format!("{folder}{}.{ending}", &path[start.len()..]);
    if !tree.files().any(|f| f == file) {
        return Some(format!("there is no {file}"));
    }
    let text = tree.text(&file);
    let defined = match *ending {
        "py" => text.contains(&format!("\ndef {name}(")),
        // A test that starts processes has no harness; its cases are plain functions.
        _ if *start == "compiler/" => text.contains(&format!("\nfn {name}()")),
        // At the top of a file, or inside the module that it tests.
        _ => ["", "    "].iter().any(|indent| {
            let found = format!("#[test]\n{indent}fn {name}(");
            text.contains(&found)
        }),
    };
    (!defined).then(|| format!("{file} has no test {name}"))
}

#[test]
fn every_failure_mode_has_a_test_and_every_guest_a_row() {
    let tree = Tree::read();
    let rows = rows(&tree.text("tests/README.md"));
    let mut wrong = Vec::new();
    for (at, row) in rows.iter().enumerate() {
        if row.number != at + 1 {
            wrong.push(format!(
                "row {} stands where {} belongs",
                row.number,
                at + 1
            ));
        }
        if row.tests.is_empty() {
            wrong.push(format!("row {} has no test", row.number));
        }
        let written = row.tests.iter().filter(|t| !t.starts_with("pending "));
        wrong.extend(
            written
                .filter_map(|test| missing(&tree, test))
                .map(|why| format!("row {}: {why}", row.number)),
        );
    }
    if rows.len() < LISTED {
        wrong.push(format!("{} rows of {LISTED}", rows.len()));
    }
    wrong.extend(pending(&rows));
    wrong.extend(guests(&tree, &rows));
    crate::report(wrong);
}

fn pending(rows: &[Row]) -> Vec<String> {
    let told: BTreeSet<(usize, String)> = rows
        .iter()
        .flat_map(|row| row.tests.iter().map(move |test| (row.number, test)))
        .filter_map(|(number, test)| Some((number, test.strip_prefix("pending ")?.to_owned())))
        .collect();
    let listed = PENDING
        .iter()
        .map(|(number, who)| (*number, (*who).to_owned()))
        .collect();
    told.symmetric_difference(&listed)
        .map(|(number, who)| format!("row {number}: pending {who} in one list and not the other"))
        .collect()
}

fn guests(tree: &Tree, rows: &[Row]) -> Vec<String> {
    let guest = |file: &str| {
        let name = file.strip_prefix("tests/guests/src/")?.strip_suffix(".rs");
        name.map(str::to_owned).filter(|n| n != "lib")
    };
    let text = |file: &str| {
        let name = file.strip_prefix("tests/guests/wat/")?.strip_suffix(".wat");
        name.map(str::to_owned)
    };
    let there: BTreeSet<String> = tree
        .files()
        .filter_map(|f| guest(f).or_else(|| text(f)))
        .collect();
    let mut named = BTreeMap::new();
    for row in rows {
        named.extend(row.guests.iter().map(|g| (g.clone(), row.number)));
    }
    let without_row = there.iter().filter(|g| !named.contains_key(*g));
    let without_file = named.iter().filter(|(g, _)| !there.contains(*g));
    without_row
        .map(|g| format!("the guest {g} has no row in tests/README.md"))
        .chain(without_file.map(|(g, row)| format!("row {row}: there is no guest {g}")))
        .collect()
}
