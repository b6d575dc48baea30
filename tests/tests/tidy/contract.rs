//! Rules about `wit/`: everything is explained and dated, and the plain records of
//! `homeostat-hooks` say the same things by the same names.

use std::collections::BTreeMap;

use wit_parser::{
    Docs, Function, Interface, Resolve, Stability, Type, TypeDef, TypeDefKind, TypeOwner, WorldItem,
};

use crate::source::code_only;
use crate::tree::Tree;

/// Types of the contract that have another name in Rust, where the WIT name says too
/// little (`tier`) or stands for a set (`cause`).
const OTHER_NAMES: &[(&str, &str)] = &[("tier", "TierView"), ("cause", "Causes")];

/// Types that need no twin: an alias, and the guest's view of a failure.
const WITHOUT_TWIN: &[&str] = &["attribute", "dimension", "error"];

fn contract(tree: &Tree) -> Resolve {
    let mut resolve = Resolve::default();
    resolve
        .push_dir(tree.path("wit"))
        .unwrap_or_else(|e| panic!("wit/ does not parse: {e:#}"));
    resolve
}

/// Collects what lacks a comment or a date.
#[derive(Default)]
struct Check {
    wrong: Vec<String>,
}

impl Check {
    fn item(&mut self, name: &str, docs: &Docs, stability: Option<&Stability>) {
        if docs.is_empty() {
            self.wrong.push(format!(
                "wit: {name} has no doc comment; say what it means, with its unit"
            ));
        }
        if matches!(stability, Some(Stability::Unknown)) {
            self.wrong
                .push(format!("wit: {name} has no @since(version = …)"));
        }
    }

    fn function(&mut self, function: &Function) {
        self.item(&function.name, &function.docs, Some(&function.stability));
    }

    fn type_(&mut self, def: &TypeDef) {
        let name = def.name.as_deref().unwrap_or_default();
        if matches!(def.kind, TypeDefKind::Type(Type::Id(_))) && def.docs.is_empty() {
            // Brought in by `use`; explained where it is defined.
            return;
        }
        self.item(name, &def.docs, Some(&def.stability));
        for (part, docs) in parts(&def.kind) {
            self.item(&format!("{name}.{part}"), docs, None);
        }
    }

    fn interface(&mut self, resolve: &Resolve, interface: &Interface) {
        let name = interface.name.as_deref().unwrap_or_default();
        self.item(name, &interface.docs, Some(&interface.stability));
        for id in interface.types.values() {
            self.type_(&resolve.types[*id]);
        }
        for function in interface.functions.values() {
            self.function(function);
        }
    }
}

/// Fields, cases or flags of a type.
fn parts(kind: &TypeDefKind) -> Vec<(&str, &Docs)> {
    match kind {
        TypeDefKind::Record(r) => r.fields.iter().map(|f| (&*f.name, &f.docs)).collect(),
        TypeDefKind::Variant(v) => v.cases.iter().map(|c| (&*c.name, &c.docs)).collect(),
        TypeDefKind::Enum(e) => e.cases.iter().map(|c| (&*c.name, &c.docs)).collect(),
        TypeDefKind::Flags(f) => f.flags.iter().map(|f| (&*f.name, &f.docs)).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn everything_in_the_contract_is_explained_and_dated() {
    let resolve = contract(&Tree::read());
    let mut check = Check::default();
    // The standard interfaces are as their authors left them.
    let ours = resolve
        .packages
        .iter()
        .filter(|(_, p)| p.name.namespace == "homeostat");
    for (_, package) in ours {
        for id in package.interfaces.values() {
            check.interface(&resolve, &resolve.interfaces[*id]);
        }
        for id in package.worlds.values() {
            let world = &resolve.worlds[*id];
            check.item(&world.name, &world.docs, Some(&world.stability));
            for item in world.exports.values() {
                if let WorldItem::Function(function) = item {
                    check.function(function);
                }
            }
        }
    }
    crate::report(check.wrong);
}

#[test]
fn the_contract_and_the_plain_records_agree_name_by_name() {
    let tree = Tree::read();
    let twins = rust_types(&tree);
    let resolve = contract(&tree);
    let mut wrong = Vec::new();
    let mut compared = 0;
    for (_, def) in resolve.types.iter() {
        let Some(name) = def.name.as_deref() else {
            continue;
        };
        let parts = parts(&def.kind);
        if parts.is_empty() || !is_ours(&resolve, def) || WITHOUT_TWIN.contains(&name) {
            continue;
        }
        let other = OTHER_NAMES.iter().find(|(wit, _)| *wit == name);
        let rust_name = other.map_or_else(|| pascal(name), |(_, rust)| (*rust).to_owned());
        let Some(twin) = twins.get(&rust_name) else {
            wrong.push(format!(
                "wit: {name} has no twin {rust_name} in host/hooks/src; add it"
            ));
            continue;
        };
        let of_wit: Vec<&str> = parts.iter().map(|(part, _)| *part).collect();
        if of_wit != twin.iter().map(String::as_str).collect::<Vec<_>>() {
            wrong.push(format!(
                "wit: {name} has [{}], but {rust_name} in host/hooks/src has [{}]; bring them \
                 together, in the same order",
                of_wit.join(" "),
                twin.join(" ")
            ));
        }
        compared += 1;
    }
    assert!(
        compared > 30,
        "only {compared} types were found: does wit/ parse as it should?"
    );
    crate::report(wrong);
}

fn is_ours(resolve: &Resolve, def: &TypeDef) -> bool {
    let TypeOwner::Interface(id) = def.owner else {
        return false;
    };
    let package = resolve.interfaces[id]
        .package
        .map(|p| &resolve.packages[p].name.namespace);
    package.is_some_and(|namespace| namespace == "homeostat")
}

fn pascal(kebab: &str) -> String {
    kebab.split('-').map(capitalised).collect()
}

fn capitalised(word: &str) -> String {
    let mut chars = word.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}

fn kebab(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('-');
        }
        out.push(if c == '_' {
            '-'
        } else {
            c.to_ascii_lowercase()
        });
    }
    out
}

/// Every struct and enum of `host/hooks/src` with its fields or cases in WIT's spelling.
fn rust_types(tree: &Tree) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    for file in tree
        .with_extension("rs")
        .filter(|f| f.starts_with("host/hooks/src/"))
    {
        let code = code_only(&tree.text(file));
        let mut current: Option<(String, Vec<String>)> = None;
        for line in code.lines() {
            let opened = ["pub struct ", "pub enum "]
                .iter()
                .find_map(|k| line.strip_prefix(k));
            if let Some(name) = opened.and_then(|rest| rest.strip_suffix(" {")) {
                current = Some((name.to_owned(), Vec::new()));
            } else if line == "}" {
                found.extend(current.take());
            } else if let Some((_, parts)) = &mut current {
                parts.extend(part_of(line).map(kebab));
            }
        }
    }
    found
}

/// The field or case that a line inside a struct or enum declares.
fn part_of(line: &str) -> Option<&str> {
    let line = line.strip_prefix("    ")?;
    if line.starts_with(' ') {
        return None;
    }
    let name = line.strip_prefix("pub ").unwrap_or(line);
    let len = name.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    (len > 0).then(|| &name[..len])
}
