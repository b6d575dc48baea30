//! The contract as a document: every interface, function, record and case with its words.

use wit_parser::{Docs, Function, FunctionKind, Interface, Resolve, Type, TypeDef, TypeDefKind};

use super::{OURS, interfaces, lines};

/// All of `sdk/REFERENCE.md`.
pub fn reference(resolve: &Resolve) -> String {
    let mut out = String::from(
        "# The contract\n\nMade from `wit/` by `cargo run -p homeostat-author --example contract`: \
         do not edit.\n\n",
    );
    for (_, package) in resolve
        .packages
        .iter()
        .filter(|(_, p)| p.name.namespace == OURS)
    {
        out.push_str(&format!(
            "Package `{}`.\n\n| world | answers |\n|---|---|\n",
            package.name
        ));
        for id in package.worlds.values() {
            let world = &resolve.worlds[*id];
            let exports: Vec<String> = world
                .exports
                .keys()
                .map(|key| format!("`{}`", short(&resolve.name_world_key(key))))
                .collect();
            let exports = if exports.is_empty() {
                "nothing; what all may import".to_owned()
            } else {
                exports.join(", ")
            };
            out.push_str(&format!("| `{}` | {exports} |\n", world.name));
        }
    }
    for interface in interfaces(resolve) {
        section(resolve, interface, &mut out);
    }
    out
}

/// `homeostat:policy/router@0.1.0` as `router`.
fn short(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    name.rsplit('/').next().unwrap_or(name)
}

fn section(resolve: &Resolve, interface: &Interface, out: &mut String) {
    let name = interface.name.as_deref().unwrap_or_default();
    out.push_str(&format!("\n## {name}\n\n"));
    paragraph(&interface.docs, out);
    let free = interface
        .functions
        .values()
        .filter(|f| f.kind == FunctionKind::Freestanding);
    free.for_each(|f| function(resolve, f, out));
    for id in interface.types.values() {
        let def = &resolve.types[*id];
        if matches!(def.kind, TypeDefKind::Type(Type::Id(_))) {
            continue;
        }
        let name = def.name.as_deref().unwrap_or_default();
        out.push_str(&format!("\n### {} `{name}`\n\n", kind(&def.kind)));
        paragraph(&def.docs, out);
        parts(resolve, def, out);
        let methods = interface.functions.values();
        methods
            .filter(|f| f.kind == FunctionKind::Method(*id))
            .for_each(|f| function(resolve, f, out));
    }
}

fn kind(kind: &TypeDefKind) -> &'static str {
    match kind {
        TypeDefKind::Record(_) => "record",
        TypeDefKind::Variant(_) => "variant",
        TypeDefKind::Enum(_) => "enum",
        TypeDefKind::Flags(_) => "flags",
        TypeDefKind::Resource => "resource",
        _ => "type",
    }
}

/// Fields, cases and flags as a table.
fn parts(resolve: &Resolve, def: &TypeDef, out: &mut String) {
    let rows: Vec<(&str, String, &Docs)> = match &def.kind {
        TypeDefKind::Record(r) => {
            let of = |f: &wit_parser::Field| type_name(resolve, &f.ty);
            r.fields
                .iter()
                .map(|f| (&*f.name, of(f), &f.docs))
                .collect()
        }
        TypeDefKind::Variant(v) => {
            let of = |c: &wit_parser::Case| {
                c.ty.as_ref()
                    .map_or_else(String::new, |t| type_name(resolve, t))
            };
            v.cases.iter().map(|c| (&*c.name, of(c), &c.docs)).collect()
        }
        TypeDefKind::Enum(e) => e
            .cases
            .iter()
            .map(|c| (&*c.name, String::new(), &c.docs))
            .collect(),
        TypeDefKind::Flags(f) => f
            .flags
            .iter()
            .map(|f| (&*f.name, String::new(), &f.docs))
            .collect(),
        TypeDefKind::Resource => return,
        other => {
            out.push_str(&format!("`{}`\n", anonymous(resolve, other)));
            return;
        }
    };
    let typed = rows.iter().any(|(_, t, _)| !t.is_empty());
    out.push_str(if typed {
        "| name | type | meaning |\n|---|---|---|\n"
    } else {
        "| name | meaning |\n|---|---|\n"
    });
    for (name, type_, docs) in rows {
        let meaning = lines(docs).collect::<Vec<_>>().join(" ");
        let type_ = match (typed, type_.is_empty()) {
            (false, _) => String::new(),
            (true, true) => " |".to_owned(),
            (true, false) => format!(" `{type_}` |"),
        };
        out.push_str(&format!("| `{name}` |{type_} {meaning} |\n"));
    }
}

fn function(resolve: &Resolve, function: &Function, out: &mut String) {
    let parameters: Vec<String> = function
        .params
        .iter()
        .filter(|p| p.name != "self")
        .map(|p| format!("{}: {}", p.name, type_name(resolve, &p.ty)))
        .collect();
    let result = function
        .result
        .as_ref()
        .map_or_else(String::new, |t| format!(" -> {}", type_name(resolve, t)));
    let name = function.item_name();
    out.push_str(&format!(
        "\n**`{name}({}){result}`**",
        parameters.join(", ")
    ));
    for line in lines(&function.docs) {
        out.push_str(&format!("\n{line}"));
    }
    out.push('\n');
}

fn paragraph(docs: &Docs, out: &mut String) {
    for line in lines(docs) {
        out.push_str(line);
        out.push('\n');
    }
    out.push('\n');
}

fn type_name(resolve: &Resolve, t: &Type) -> String {
    match t {
        Type::Bool => "bool".into(),
        Type::U8 => "u8".into(),
        Type::U16 => "u16".into(),
        Type::U32 => "u32".into(),
        Type::U64 => "u64".into(),
        Type::S8 => "s8".into(),
        Type::S16 => "s16".into(),
        Type::S32 => "s32".into(),
        Type::S64 => "s64".into(),
        Type::F32 => "f32".into(),
        Type::F64 => "f64".into(),
        Type::Char => "char".into(),
        Type::String => "string".into(),
        Type::ErrorContext => "error-context".into(),
        Type::Id(id) => match (&resolve.types[*id].name, &resolve.types[*id].kind) {
            (Some(name), _) => name.clone(),
            (None, kind) => anonymous(resolve, kind),
        },
    }
}

/// A type without a name of its own.
fn anonymous(resolve: &Resolve, kind: &TypeDefKind) -> String {
    let name = |t: &Type| type_name(resolve, t);
    let or_nothing = |t: &Option<Type>| t.as_ref().map_or("_".to_owned(), name);
    match kind {
        TypeDefKind::Option(t) => format!("option<{}>", name(t)),
        TypeDefKind::List(t) => format!("list<{}>", name(t)),
        TypeDefKind::Tuple(tuple) => {
            let parts: Vec<String> = tuple.types.iter().map(name).collect();
            format!("tuple<{}>", parts.join(", "))
        }
        TypeDefKind::Result(r) => format!("result<{}, {}>", or_nothing(&r.ok), or_nothing(&r.err)),
        TypeDefKind::Type(t) => name(t),
        TypeDefKind::Handle(wit_parser::Handle::Own(id)) => name(&Type::Id(*id)),
        TypeDefKind::Handle(wit_parser::Handle::Borrow(id)) => {
            format!("borrow<{}>", name(&Type::Id(*id)))
        }
        other => format!("{other:?}"),
    }
}
