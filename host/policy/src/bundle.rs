//! A policy as one thing: a file, or a folder.
//!
//! A bundle is a ustar archive, not compressed, of at most four files with fixed names, so
//! that `tar -tf` shows what is in it, packing the same parts gives the same bytes, and
//! reading it takes no more memory than it has bytes. A folder with the same names is a
//! bundle too, for people who still work on it. Links, other names, two of one name, data
//! after the end: all refused.

use std::path::Path;

use crate::admit::{AdmissionError, Stage, read_component};
use crate::signature::Sealed;

/// The component.
pub const COMPONENT: &str = "policy.wasm";
/// The manifest.
pub const MANIFEST: &str = "policy.toml";
/// Its signature.
pub const SIGNATURE: &str = "policy.sig";
/// Cases for `homeostat policy test`.
pub const CASES: &str = "cases.toml";
/// Extension of a bundle's file.
pub const EXTENSION: &str = "policy";

const BLOCK: usize = 512;
/// Largest of the texts.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// Whether bytes are a bundle rather than a component.
pub fn is_bundle(bytes: &[u8]) -> bool {
    bytes.get(257..262) == Some(b"ustar") && !bytes.starts_with(b"\0asm")
}

/// The bytes of a bundle. The same parts always give the same bytes.
pub fn pack(sealed: &Sealed) -> Vec<u8> {
    let text = |part: &Option<String>| part.as_ref().map(|text| text.as_bytes().to_vec());
    let mut out = Vec::new();
    for (name, part) in [
        (MANIFEST, text(&sealed.manifest)),
        (SIGNATURE, text(&sealed.signature)),
        (CASES, text(&sealed.cases)),
        (COMPONENT, Some(sealed.component.clone())),
    ] {
        let Some(part) = part else { continue };
        out.extend_from_slice(&header(name, part.len()));
        out.extend_from_slice(&part);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    out
}

fn header(name: &str, size: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put =
        |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\0");
    put(263, "00");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// The parts of a bundle.
///
/// # Errors
/// [`Stage::Read`] with what is wrong.
pub fn unpack(bytes: &[u8]) -> Result<Sealed, AdmissionError> {
    let refuse = |text: String| {
        AdmissionError::new(Stage::Read, format!("the bundle is damaged: {text}"))
            .help("make it again: homeostat policy pack")
    };
    let mut sealed = Sealed::default();
    let mut component = None;
    let mut rest = bytes;
    while let Some((head, after)) = rest.split_at_checked(BLOCK) {
        if head.iter().all(|b| *b == 0) {
            if after.iter().any(|b| *b != 0) {
                return Err(refuse("there is something after its end".into()));
            }
            rest = &[];
            break;
        }
        let (name, size) = read_header(head).map_err(refuse)?;
        let Some((part, _)) = after.split_at_checked(size) else {
            return Err(refuse(format!("it ends within {name}")));
        };
        let place = match name {
            COMPONENT => {
                if component.replace(part.to_vec()).is_some() {
                    return Err(refuse(format!("it has two {name}")));
                }
                rest = after
                    .get(size.next_multiple_of(BLOCK)..)
                    .unwrap_or_default();
                continue;
            }
            MANIFEST => &mut sealed.manifest,
            SIGNATURE => &mut sealed.signature,
            CASES => &mut sealed.cases,
            other => return Err(refuse(format!("it has {other:?}, which is no part of one"))),
        };
        let text = text_of(name, part).map_err(refuse)?;
        if place.replace(text).is_some() {
            return Err(refuse(format!("it has two {name}")));
        }
        rest = after
            .get(size.next_multiple_of(BLOCK)..)
            .unwrap_or_default();
    }
    if !rest.is_empty() {
        return Err(refuse("it ends within a header".into()));
    }
    sealed.component = component.ok_or_else(|| refuse(format!("it has no {COMPONENT}")))?;
    Ok(sealed)
}

fn text_of(name: &str, part: &[u8]) -> Result<String, String> {
    if part.len() > TEXT_BYTES_MAX {
        return Err(format!("{name} has more than {TEXT_BYTES_MAX} bytes"));
    }
    let text = std::str::from_utf8(part).map_err(|_| format!("{name} is not UTF-8"))?;
    Ok(text.to_string())
}

/// Name and size of a regular file.
fn read_header(head: &[u8]) -> Result<(&str, usize), String> {
    let field = |from: usize, to: usize| {
        let bytes = &head[from..to];
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        std::str::from_utf8(&bytes[..end]).unwrap_or("?").trim()
    };
    let octal = |text: &str| usize::from_str_radix(text, 8).ok();
    let blanked = |(i, b): (usize, &u8)| u32::from(if (148..156).contains(&i) { b' ' } else { *b });
    let sum: u32 = head.iter().enumerate().map(blanked).sum();
    if octal(field(148, 156)) != Some(sum as usize) {
        return Err("the checksum of a header is wrong".into());
    }
    let name = field(0, 100);
    let name = name.strip_prefix("./").unwrap_or(name);
    if !matches!(head[156], b'0' | 0) {
        return Err(format!("{name:?} is no regular file"));
    }
    let size =
        octal(field(124, 136)).ok_or_else(|| format!("the size of {name:?} is no number"))?;
    Ok((name, size))
}

/// Reads a policy from where people keep it: a bundle, a folder with the parts, or a
/// component with `.policy.toml`, `.sig` and `.cases.toml` of the same stem beside it.
///
/// # Errors
/// [`Stage::Read`] with the path.
pub fn read_policy(path: &Path, max_bytes: u64) -> Result<Sealed, AdmissionError> {
    if path.is_dir() {
        return read_parts(
            &path.join(COMPONENT),
            [MANIFEST, SIGNATURE, CASES].map(|name| path.join(name)),
            max_bytes,
        );
    }
    let beside = ["policy.toml", "sig", "cases.toml"].map(|e| path.with_extension(e));
    read_parts(path, beside, max_bytes)
}

/// A component, or a bundle in its place, and what may lie beside a component.
fn read_parts(
    path: &Path,
    [manifest, signature, cases]: [std::path::PathBuf; 3],
    max_bytes: u64,
) -> Result<Sealed, AdmissionError> {
    let bytes = read_component(path, max_bytes)?;
    if is_bundle(&bytes) {
        return unpack(&bytes);
    }
    Ok(Sealed {
        component: bytes,
        manifest: read_text(&manifest)?,
        signature: read_text(&signature)?,
        cases: read_text(&cases)?,
    })
}

/// A text beside a component, if it is there.
///
/// # Errors
/// [`Stage::Read`] with the path.
pub fn read_text(path: &Path) -> Result<Option<String>, AdmissionError> {
    if !path.exists() {
        return Ok(None);
    }
    let text = String::from_utf8(read_component(path, TEXT_BYTES_MAX as u64)?);
    let text = text
        .map_err(|_| AdmissionError::new(Stage::Read, format!("{} is not UTF-8", path.display())));
    text.map(Some)
}
