//! What a component is and wants, read from its bytes before anything is compiled.
//!
//! Nothing here trusts a length or an offset: the bytes are first validated as a whole,
//! so a file that was cut anywhere ends as an error with a sentence.

use homeostat_hooks::Hook;
use wasmparser::{ComponentExternalKind, Encoding, Parser, Payload, Validator, WasmFeatures};

use crate::admit::{AdmissionError, Stage};
use crate::config::{Deny, Grant, PolicyOptions};

/// The version of `homeostat:policy` that this host speaks.
pub const CONTRACT_VERSION: &str = "0.1.0";

/// What a policy may be made of: everything that compilers emit for single-threaded
/// programs, and nothing whose cost or outcome would depend on the machine.
const FEATURES: WasmFeatures = WasmFeatures::MUTABLE_GLOBAL
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::RELAXED_SIMD)
    .union(WasmFeatures::TAIL_CALL)
    .union(WasmFeatures::FLOATS)
    .union(WasmFeatures::MULTI_MEMORY)
    .union(WasmFeatures::EXTENDED_CONST)
    .union(WasmFeatures::GC_TYPES)
    .union(WasmFeatures::COMPONENT_MODEL);

/// The names at the outside of a component.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    pub imports: Vec<String>,
    pub exports: Vec<String>,
    pub wasi: bool,
}

/// Validates the bytes and reads the outer imports and exports.
pub(crate) fn inspect(bytes: &[u8]) -> Result<Shape, AdmissionError> {
    is_component(bytes)?;
    if let Err(error) = Validator::new_with_features(FEATURES).validate_all(bytes) {
        // With every feature allowed, is it still wrong? Then it is broken, not too new.
        return Err(
            match Validator::new_with_features(WasmFeatures::all()).validate_all(bytes) {
                Ok(_) => AdmissionError::new(Stage::Features, error.to_string()).help(
                    "policies may not use threads, 64-bit memories, garbage collection, exceptions \
                 or the asynchronous component model; build without them",
                ),
                Err(_) => AdmissionError::new(
                    Stage::Component,
                    format!("the component is damaged or incomplete: {error}"),
                )
                .help("build or copy it again"),
            },
        );
    }
    outer_names(bytes).map_err(|error| {
        AdmissionError::new(
            Stage::Component,
            format!("the component is damaged: {error}"),
        )
    })
}

fn is_component(bytes: &[u8]) -> Result<(), AdmissionError> {
    let refuse =
        |text: &str, help: &str| Err(AdmissionError::new(Stage::Component, text).help(help));
    if bytes.is_empty() {
        return refuse("the file is empty", "build or copy it again");
    }
    if !bytes.starts_with(b"\0asm") {
        if bytes.trim_ascii_start().starts_with(b"(") {
            return refuse(
                "this is WebAssembly text, not a binary",
                "assemble it first: wasm-tools parse policy.wat -o policy.wasm",
            );
        }
        return refuse(
            "this is not WebAssembly: it does not begin with \\0asm",
            "give the .wasm file that the build made",
        );
    }
    match bytes.get(4..8) {
        None => refuse("the file ends within its header", "build or copy it again"),
        Some([0x0d, 0, 1, 0]) => Ok(()),
        Some([1, 0, 0, 0]) => refuse(
            "this is a core module, not a component",
            "make it a component: `homeostat policy build` does, or \
             `wasm-tools component new core.wasm -o policy.wasm` after embedding the world",
        ),
        Some(version) => refuse(
            &format!("unknown version of the binary format: {version:02x?}"),
            "this host reads components of version 0d 00 01 00",
        ),
    }
}

fn outer_names(bytes: &[u8]) -> wasmparser::Result<Shape> {
    let mut shape = Shape::default();
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::Version {
                encoding: Encoding::Component | Encoding::Module,
                ..
            } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    shape.imports.push(import?.name.name.to_string());
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    let export = export?;
                    if export.kind == ComponentExternalKind::Instance {
                        shape.exports.push(export.name.name.to_string());
                    }
                }
            }
            _ => {}
        }
    }
    shape.wasi = shape.imports.iter().any(|i| wasi_basics(i));
    Ok(shape)
}

/// `package/interface@version`, taken apart.
struct Name<'a> {
    package: &'a str,
    interface: &'a str,
    version: &'a str,
}

fn split(name: &str) -> Option<Name<'_>> {
    let (path, version) = name.split_once('@').unwrap_or((name, ""));
    let (package, interface) = path.split_once('/')?;
    Some(Name {
        package,
        interface,
        version,
    })
}

/// The parts of WASI 0.2 that language runtimes import whether they use them or not; they
/// lead to an empty world.
fn wasi_basics(import: &str) -> bool {
    split(import).is_some_and(|name| {
        matches!(
            name.package,
            "wasi:cli" | "wasi:io" | "wasi:clocks" | "wasi:random" | "wasi:filesystem"
        ) && name.version.starts_with("0.2.")
    })
}

/// `0.1.x` fits `0.1.y`; anything else does not.
pub(crate) fn contract_version_fits(version: &str) -> bool {
    let minor = |v: &str| {
        let mut parts = v.split('.');
        Some((parts.next()?.to_string(), parts.next()?.to_string()))
    };
    !version.contains('-') && minor(version) == minor(CONTRACT_VERSION)
}

/// Every import is known and granted.
pub(crate) fn check_imports(
    shape: &Shape,
    hooks: &[Hook],
    options: &PolicyOptions,
) -> Result<(), AdmissionError> {
    for import in &shape.imports {
        if let Some(grant) = known_import(import)? {
            let granted = options.grants.as_ref().is_some_and(|g| g.contains(&grant));
            if !granted && options.deny.unwrap_or_default() == Deny::Refuse {
                return Err(not_granted(import, grant, hooks, options));
            }
        }
    }
    Ok(())
}

/// What a component is for, by itself: no operator has granted anything yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Hooks that it exports.
    pub hooks: Vec<Hook>,
    /// Powers that it imports.
    pub grants: Vec<Grant>,
}

/// Reads what a component exports and imports.
///
/// # Errors
/// It is no policy: damaged, without a hook, or with an import that no host has.
pub fn contents(component: &[u8]) -> Result<Contents, AdmissionError> {
    let shape = inspect(component)?;
    let hooks = check_exports(&shape, None)?;
    let grants = needed_grants(&shape)?;
    Ok(Contents { hooks, grants })
}

/// The powers behind its imports.
pub(crate) fn needed_grants(shape: &Shape) -> Result<Vec<Grant>, AdmissionError> {
    let mut grants = Vec::new();
    for import in &shape.imports {
        grants.extend(known_import(import)?);
    }
    grants.sort_unstable();
    grants.dedup();
    Ok(grants)
}

fn not_granted(
    import: &str,
    grant: Grant,
    hooks: &[Hook],
    options: &PolicyOptions,
) -> AdmissionError {
    let mut grants = options.grants.clone().unwrap_or_default();
    grants.push(grant);
    let words: Vec<String> = grants
        .iter()
        .map(|g| format!("\"{}\"", g.as_str()))
        .collect();
    let table = hooks.first().map_or("route", |hook| hook.as_str());
    AdmissionError::new(
        Stage::Imports,
        format!("it imports {import}, which was not granted"),
    )
    .help(format!(
        "if this policy may have it, put `grants = [{}]` under [policies.{table}] in \
         homeostat.toml or into the .toml beside the component",
        words.join(", ")
    ))
}

/// The grant that an import needs; `None` = it is always there.
fn known_import(import: &str) -> Result<Option<Grant>, AdmissionError> {
    let refuse =
        |text: String, help: &str| Err(AdmissionError::new(Stage::Imports, text).help(help));
    let Some(name) = split(import) else {
        return refuse(
            format!("it imports {import:?}, which is no interface of a package"),
            "import only what wit/worlds.wit lists",
        );
    };
    let draft = |version: &str, grant| {
        if name.version == version {
            return Ok(grant);
        }
        refuse(
            format!(
                "it imports {import}, but this host has {}/{}@{version}",
                name.package, name.interface
            ),
            "drafts fit only exactly: build against the wit/ folder of this host",
        )
    };
    match (name.package, name.interface) {
        ("homeostat:policy", _) if !contract_version_fits(name.version) => {
            Err(wrong_contract(import, name.version))
        }
        ("homeostat:policy", "types" | "telemetry" | "propose") => Ok(None),
        ("homeostat:policy", "models") => Ok(Some(Grant::Models)),
        ("wasi:keyvalue", "store" | "atomics") => draft("0.2.0-draft", Some(Grant::Keyvalue)),
        ("wasi:config", "store") => draft("0.2.0-rc.1", Some(Grant::Config)),
        ("wasi:logging", "logging") => draft("0.1.0-draft", None),
        ("wasi:http" | "wasi:sockets", _) => refuse(
            format!("it imports {import}: no policy gets the network"),
            "build without it (componentize-js: --disable http; componentize-py: --stub-wasi)",
        ),
        _ if wasi_basics(import) => Ok(None),
        (package, _) if package.starts_with("wasi:") => refuse(
            format!("it imports {import}, which this host does not have"),
            "this host links WASI 0.2 cli, io, clocks, random and filesystem, all of them empty",
        ),
        _ => refuse(
            format!("it imports {import}, which this host does not know"),
            "import only what wit/worlds.wit lists",
        ),
    }
}

fn wrong_contract(name: &str, version: &str) -> AdmissionError {
    let version = if version.is_empty() {
        "no version"
    } else {
        version
    };
    AdmissionError::new(
        Stage::World,
        format!("{name} is of homeostat:policy {version}, but this host speaks {CONTRACT_VERSION}"),
    )
    .help("build against the wit/ folder of this host, or run a host of that version")
}

/// The interface that a hook is exported as.
pub(crate) fn interface_of(hook: Hook) -> &'static str {
    match hook {
        Hook::Classify => "classifier",
        Hook::Route => "router",
        Hook::Validate => "validator",
    }
}

/// The hooks that it exports, and whether it exports all that are asked for.
pub(crate) fn check_exports(
    shape: &Shape,
    asked: Option<&[Hook]>,
) -> Result<Vec<Hook>, AdmissionError> {
    let asked = asked.unwrap_or_default();
    let mut exported = Vec::new();
    for export in &shape.exports {
        let Some(name) = split(export).filter(|n| n.package == "homeostat:policy") else {
            continue;
        };
        if !contract_version_fits(name.version) {
            return Err(wrong_contract(export, name.version));
        }
        exported.extend(
            Hook::ALL
                .into_iter()
                .filter(|h| interface_of(*h) == name.interface),
        );
    }
    let found = if shape.exports.is_empty() {
        "nothing".to_string()
    } else {
        shape.exports.join(", ")
    };
    if exported.is_empty() {
        return Err(AdmissionError::new(
            Stage::World,
            format!("it exports no hook; it exports {found}"),
        )
        .help(format!(
            "export homeostat:policy/classifier, router or validator @{CONTRACT_VERSION}: \
             see wit/worlds.wit"
        )));
    }
    for hook in asked {
        if !exported.contains(hook) {
            return Err(AdmissionError::new(
                Stage::World,
                format!("it is put at {}, but it exports {found}", hook.as_str()),
            )
            .help(format!(
                "export homeostat:policy/{}@{CONTRACT_VERSION}, or put it where it belongs",
                interface_of(*hook)
            )));
        }
    }
    let mut hooks = if asked.is_empty() {
        exported
    } else {
        asked.to_vec()
    };
    hooks.sort_unstable();
    hooks.dedup();
    Ok(hooks)
}
