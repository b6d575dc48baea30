//! The contract as TypeScript, by the mapping of componentize-qjs: records are objects with
//! camelCase fields, enums are texts, variants are `{ tag, val }`, what may be absent is
//! `null`, an error is thrown.

use wit_parser::{Docs, Function, FunctionKind, Resolve, Type, TypeDef, TypeDefKind};

use super::{interfaces, lines};

const HEAD: &str =
    "// Made from wit/ by `cargo run -p homeostat-author --example contract`: do not edit.
//
// Absent is null, never undefined; a u64 above 2^53 loses its last digits.
";

/// All of `contract.d.ts`.
pub fn typescript(resolve: &Resolve) -> String {
    let mut out = String::from(HEAD);
    for interface in interfaces(resolve) {
        for id in interface.types.values() {
            let def = &resolve.types[*id];
            let brought_in = matches!(def.kind, TypeDefKind::Type(Type::Id(_)));
            if !brought_in {
                out.push('\n');
                type_(resolve, def, interface.functions.values(), &mut out);
            }
        }
        let free = || {
            interface
                .functions
                .values()
                .filter(|f| f.kind == FunctionKind::Freestanding)
        };
        if free().next().is_none() {
            continue;
        }
        out.push('\n');
        comment(&interface.docs, "", &mut out);
        let name = pascal(interface.name.as_deref().unwrap_or_default());
        out.push_str(&format!("export interface {name} {{\n"));
        free().for_each(|f| function(resolve, f, &mut out));
        out.push_str("}\n");
    }
    out
}

fn type_<'a>(
    resolve: &Resolve,
    def: &TypeDef,
    functions: impl Iterator<Item = &'a Function>,
    out: &mut String,
) {
    comment(&def.docs, "", out);
    let name = pascal(def.name.as_deref().unwrap_or_default());
    let shape = |t: &Type| type_name(resolve, t);
    match &def.kind {
        TypeDefKind::Record(record) => {
            out.push_str(&format!("export interface {name} {{\n"));
            for field in &record.fields {
                comment(&field.docs, "  ", out);
                out.push_str(&format!(
                    "  {}: {};\n",
                    camel(&field.name),
                    shape(&field.ty)
                ));
            }
            out.push_str("}\n");
        }
        TypeDefKind::Flags(flags) => {
            out.push_str(&format!("export interface {name} {{\n"));
            for flag in &flags.flags {
                comment(&flag.docs, "  ", out);
                out.push_str(&format!("  {}: boolean;\n", camel(&flag.name)));
            }
            out.push_str("}\n");
        }
        TypeDefKind::Enum(e) => {
            out.push_str(&format!("export type {name} =\n"));
            for (i, case) in e.cases.iter().enumerate() {
                let end = if i + 1 == e.cases.len() { ";" } else { "" };
                out.push_str(&format!("  | '{}'{end}\n", case.name));
            }
        }
        TypeDefKind::Variant(variant) => {
            out.push_str(&format!("export type {name} =\n"));
            for (i, case) in variant.cases.iter().enumerate() {
                let end = if i + 1 == variant.cases.len() {
                    ";"
                } else {
                    ""
                };
                comment(&case.docs, "  ", out);
                let val = case.ty.as_ref().map(|t| format!("; val: {}", shape(t)));
                let val = val.unwrap_or_default();
                out.push_str(&format!("  | {{ tag: '{}'{val} }}{end}\n", case.name));
            }
        }
        TypeDefKind::Resource => {
            out.push_str(&format!("export interface {name} {{\n"));
            functions
                .filter(|f| matches!(f.kind, FunctionKind::Method(_)))
                .for_each(|f| function(resolve, f, out));
            out.push_str("}\n");
        }
        other => out.push_str(&format!(
            "export type {name} = {};\n",
            anonymous(resolve, other)
        )),
    }
}

fn function(resolve: &Resolve, function: &Function, out: &mut String) {
    let (returned, thrown) = match &function.result {
        None => ("void".to_owned(), None),
        Some(Type::Id(id)) => match &resolve.types[*id].kind {
            TypeDefKind::Result(r) => {
                let or_void = |t: &Option<Type>| {
                    t.as_ref()
                        .map_or("void".to_owned(), |t| type_name(resolve, t))
                };
                (or_void(&r.ok), Some(or_void(&r.err)))
            }
            _ => (type_name(resolve, &Type::Id(*id)), None),
        },
        Some(t) => (type_name(resolve, t), None),
    };
    let mut docs = function
        .docs
        .contents
        .clone()
        .unwrap_or_default()
        .trim()
        .to_owned();
    if let Some(thrown) = thrown {
        docs.push_str(&format!("\n@throws {{{thrown}}}"));
    }
    comment(
        &Docs {
            contents: Some(docs),
        },
        "  ",
        out,
    );
    let parameters: Vec<String> = function
        .params
        .iter()
        .filter(|p| p.name != "self")
        .map(|p| format!("{}: {}", camel(&p.name), type_name(resolve, &p.ty)))
        .collect();
    let name = camel(function.item_name());
    out.push_str(&format!(
        "  {name}({}): {returned};\n",
        parameters.join(", ")
    ));
}

fn type_name(resolve: &Resolve, t: &Type) -> String {
    match t {
        Type::Bool => "boolean".into(),
        Type::String | Type::Char => "string".into(),
        Type::Id(id) => match (&resolve.types[*id].name, &resolve.types[*id].kind) {
            (Some(name), _) => pascal(name),
            (None, kind) => anonymous(resolve, kind),
        },
        _ => "number".into(),
    }
}

/// A type without a name of its own.
fn anonymous(resolve: &Resolve, kind: &TypeDefKind) -> String {
    let shape = |t: &Type| type_name(resolve, t);
    match kind {
        TypeDefKind::Option(t) => format!("{} | null", shape(t)),
        TypeDefKind::List(Type::U8) => "Uint8Array".into(),
        TypeDefKind::List(t) => {
            let inner = shape(t);
            if inner.contains(' ') {
                format!("({inner})[]")
            } else {
                format!("{inner}[]")
            }
        }
        TypeDefKind::Tuple(tuple) => {
            let parts: Vec<String> = tuple.types.iter().map(shape).collect();
            format!("[{}]", parts.join(", "))
        }
        TypeDefKind::Type(t) => shape(t),
        TypeDefKind::Handle(handle) => {
            let (wit_parser::Handle::Own(id) | wit_parser::Handle::Borrow(id)) = handle;
            shape(&Type::Id(*id))
        }
        // What our contract does not use has no name here.
        _ => "unknown".into(),
    }
}

fn comment(docs: &Docs, indent: &str, out: &mut String) {
    let all: Vec<&str> = lines(docs).collect();
    match all.as_slice() {
        [] => {}
        [one] => out.push_str(&format!("{indent}/** {one} */\n")),
        many => {
            out.push_str(&format!("{indent}/**\n"));
            for line in many {
                let line = format!("{indent} * {line}");
                out.push_str(line.trim_end());
                out.push('\n');
            }
            out.push_str(&format!("{indent} */\n"));
        }
    }
}

fn pascal(kebab: &str) -> String {
    // `Error` would hide JavaScript's own.
    if kebab == "error" {
        return "ContractError".into();
    }
    kebab.split('-').map(capitalised).collect()
}

fn camel(kebab: &str) -> String {
    let mut parts = kebab.split('-');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |name, part| name + &capitalised(part))
}

fn capitalised(word: &str) -> String {
    let mut chars = word.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}
