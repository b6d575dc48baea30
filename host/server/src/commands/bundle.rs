//! Policies on their way: keys, signatures, bundles, registries.
//!
//! A policy is signed where it is made, with a key that stays there, and admitted where it
//! serves, by the public half. Nothing here loads anything into a host.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use homeostat_hooks::Hook;
use homeostat_policy::bundle::{self, EXTENSION};
use homeostat_policy::signature::{
    self, MANIFEST_FORMAT, Manifest, Sealed, SigningKey, datetime, is_name, parse_manifest,
    sha256_hex,
};
use homeostat_policy::{CONTRACT_VERSION, Grant, parse_options};

use super::escaped;
use crate::Failure;
use crate::cli::{ConfigArgs, hook};
use crate::config::Config;
use crate::registry::{Credentials, Reference, Registry};

#[derive(Debug, Subcommand)]
pub enum BundleCommand {
    /// Make a key pair to sign policies with: NAME.key, which is secret, and NAME.pub.
    Keygen {
        /// Path of the two files without their extension.
        name: PathBuf,
    },
    /// Write the manifest of a component and sign it.
    ///
    /// FILE.policy.toml and FILE.sig are written beside the component. Hooks and
    /// capabilities are read from the component.
    Sign {
        /// A WebAssembly component, or a folder with policy.wasm.
        file: PathBuf,
        /// The secret key, as `keygen` wrote it.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Counted up with every release: a host refuses an older one than it has accepted.
        #[arg(long)]
        revision: u64,
        /// Name of the policy [default: the file's or the folder's name].
        #[arg(long)]
        name: Option<String>,
        /// Version for people.
        #[arg(long, default_value = "0.1.0")]
        version: String,
        /// Only for these hooks [default: all that it exports].
        #[arg(long, value_parser = hook, value_delimiter = ',')]
        hooks: Option<Vec<Hook>>,
        /// Refuse it before so many days from now.
        #[arg(long, value_name = "DAYS", default_value_t = 0)]
        valid_from_days: u32,
        /// Refuse it after so many days from now [default: never].
        #[arg(long, value_name = "DAYS")]
        valid_for_days: Option<u32>,
    },
    /// Put a component with what belongs to it into one file.
    Pack {
        /// A WebAssembly component, or a folder with policy.wasm.
        file: PathBuf,
        /// File to write [default: the component's name with .policy, here].
        #[arg(short, long)]
        output: Option<PathBuf>,
    },
    /// Say who signed a policy, and whether this configuration would take it.
    Verify {
        /// A bundle, a component, or a folder with policy.wasm.
        file: PathBuf,
        /// Public keys to trust, or files with them [default: policies.trusted_keys].
        #[arg(long, value_name = "KEY")]
        key: Vec<String>,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Upload a bundle to an OCI registry.
    ///
    /// HOMEOSTAT_REGISTRY_USER and HOMEOSTAT_REGISTRY_PASSWORD are used if the registry
    /// asks who you are.
    Push {
        /// A bundle, a component, or a folder with policy.wasm.
        file: PathBuf,
        /// HOST[:PORT]/NAME[:TAG].
        to: Reference,
        /// Without TLS, for a registry on this machine.
        #[arg(long)]
        plain_http: bool,
    },
    /// Download a bundle from an OCI registry, compare its digest, verify its signature.
    Pull {
        /// HOST[:PORT]/NAME[:TAG] or HOST[:PORT]/NAME@sha256:DIGEST.
        from: Reference,
        /// File to write [default: the policy's name with .policy, here].
        #[arg(short, long)]
        output: Option<PathBuf>,
        /// Take one that is not signed by one of policies.trusted_keys.
        #[arg(long)]
        unverified: bool,
        /// Without TLS, for a registry on this machine.
        #[arg(long)]
        plain_http: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

pub fn run(command: BundleCommand) -> Result<(), Failure> {
    match command {
        BundleCommand::Keygen { name } => keygen(&name),
        BundleCommand::Sign {
            file,
            key,
            revision,
            name,
            version,
            hooks,
            valid_from_days,
            valid_for_days,
        } => {
            let window = (i64::from(valid_from_days), valid_for_days.map(i64::from));
            let release = Release {
                name: name.unwrap_or_else(|| policy_name(&file)),
                version,
                revision,
                hooks,
                window,
            };
            sign(&file, &key, release)
        }
        BundleCommand::Pack { file, output } => {
            let sealed = read(&file)?;
            let output = output.unwrap_or_else(|| here(&policy_name(&file)));
            write(&output, &bundle::pack(&sealed))?;
            println!("{}", output.display());
            Ok(())
        }
        BundleCommand::Verify { file, key, config } => {
            let trusted = trusted_keys(key, &config)?;
            println!("{}", verified(&read(&file)?, &trusted)?);
            Ok(())
        }
        BundleCommand::Push {
            file,
            to,
            plain_http,
        } => {
            let sealed = read(&file)?;
            let mut registry = Registry::new(to, plain_http, credentials());
            let pushed = registry.push(&bundle::pack(&sealed), annotations(&sealed)?);
            println!("{}", pushed.map_err(Failure::Failed)?);
            Ok(())
        }
        BundleCommand::Pull {
            from,
            output,
            unverified,
            plain_http,
            config,
        } => {
            let loaded = Config::load(config.config.as_deref())?;
            let mut registry = Registry::new(from, plain_http, credentials());
            let bytes = registry.pull(loaded.policies.max_component_bytes);
            let bytes = bytes.map_err(Failure::Failed)?;
            let sealed = bundle::unpack(&bytes).map_err(Failure::failed)?;
            if !unverified {
                let said = verified(&sealed, &trusted_keys(Vec::new(), &config)?)?;
                eprintln!("{said}");
            }
            let name = manifest(&sealed)?.map_or("policy".to_string(), |m| m.name);
            let output = output.unwrap_or_else(|| here(&name));
            write(&output, &bytes)?;
            println!("{}", output.display());
            Ok(())
        }
    }
}

/// What is said of a release besides its bytes.
struct Release {
    name: String,
    version: String,
    revision: u64,
    hooks: Option<Vec<Hook>>,
    /// Days from now; no end = valid for ever.
    window: (i64, Option<i64>),
}

fn keygen(name: &Path) -> Result<(), Failure> {
    let key = SigningKey::generate().map_err(Failure::Failed)?;
    let (secret, public) = (name.with_extension("key"), name.with_extension("pub"));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    // A key that is written over is a key that is lost.
    let file = options.open(&secret);
    let mut file = file.map_err(|e| Failure::Failed(format!("{}: {e}", secret.display())))?;
    file.write_all(key.secret_text().as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|e| Failure::Failed(format!("{}: {e}", secret.display())))?;
    write(&public, format!("{}\n", key.public_text()).as_bytes())?;
    let owner = name
        .file_name()
        .unwrap_or(name.as_os_str())
        .to_string_lossy();
    eprintln!(
        "{} is secret. Hosts that shall trust it have in homeostat.toml:\n\n[policies]\n\
         signature = \"required\"\ntrusted_keys = {{ \"{owner}\" = \"{}\" }}",
        secret.display(),
        key.public_text()
    );
    println!("{}", key.public_text());
    Ok(())
}

fn sign(file: &Path, key: &Path, release: Release) -> Result<(), Failure> {
    let text =
        fs::read_to_string(key).map_err(|e| Failure::Failed(format!("{}: {e}", key.display())))?;
    let key = SigningKey::parse(&text)
        .map_err(|why| Failure::Failed(format!("{} is no secret key: {why}", key.display())))?;
    if !is_name(&release.name) {
        let what = format!(
            "{:?} is no name of a policy: 1 to 64 letters, digits, '-', '_' or '.'",
            release.name
        );
        return Err(Failure::Failed(what));
    }
    let sealed = read(file)?;
    if file.extension().is_some_and(|e| e == EXTENSION) {
        let what = "this is a bundle: `tar -xf` it into a folder, and sign the folder";
        return Err(Failure::Failed(what.into()));
    }
    let contents = homeostat_policy::contents(&sealed.component).map_err(Failure::failed)?;
    let day = |days: i64| datetime(signature::now() + days * 86_400);
    let manifest = Manifest {
        format: MANIFEST_FORMAT,
        name: release.name,
        version: release.version,
        revision: release.revision,
        component_sha256: sha256_hex(&sealed.component),
        cases_sha256: sealed
            .cases
            .as_ref()
            .map(|text| sha256_hex(text.as_bytes())),
        contract: CONTRACT_VERSION.into(),
        hooks: release.hooks.unwrap_or(contents.hooks),
        capabilities: contents.grants,
        not_before: day(release.window.0),
        not_after: release.window.1.and_then(day),
    };
    let text = toml::to_string(&manifest).map_err(Failure::failed)?;
    let (manifest_file, signature_file) = match file.is_dir() {
        true => (file.join(bundle::MANIFEST), file.join(bundle::SIGNATURE)),
        false => (
            file.with_extension("policy.toml"),
            file.with_extension("sig"),
        ),
    };
    write(&manifest_file, text.as_bytes())?;
    write(&signature_file, key.sign(&text).as_bytes())?;
    println!("{}", signature_file.display());
    Ok(())
}

/// The parts of a policy.
pub fn read(file: &Path) -> Result<Sealed, Failure> {
    bundle::read_policy(file, u64::MAX).map_err(Failure::failed)
}

/// The query and the body of a PUT of this policy: its name, the options in the `.toml`
/// beside it, and a bundle where a signature lies beside the component. Options are no part
/// of a bundle: whoever made that must not grant itself powers.
pub fn offered(file: &Path, name: Option<String>) -> Result<(Vec<String>, Vec<u8>), Failure> {
    let mut query = vec![format!(
        "name={}",
        escaped(&name.unwrap_or_else(|| policy_name(file)))
    )];
    let options = file.with_extension("toml");
    if let Some(text) = bundle::read_text(&options).map_err(Failure::failed)? {
        parse_options(&text).map_err(|e| Failure::Failed(format!("{}: {e}", options.display())))?;
        query.push(format!("options={}", escaped(&text)));
    }
    let sealed = read(file)?;
    let body = match sealed.signature {
        Some(_) => bundle::pack(&sealed),
        None => sealed.component,
    };
    Ok((query, body))
}

fn manifest(sealed: &Sealed) -> Result<Option<Manifest>, Failure> {
    let parsed = sealed.manifest.as_deref().map(parse_manifest);
    parsed.transpose().map_err(Failure::failed)
}

/// What a registry shows to people.
fn annotations(sealed: &Sealed) -> Result<serde_json::Value, Failure> {
    Ok(match manifest(sealed)? {
        None => serde_json::json!({}),
        Some(manifest) => serde_json::json!({
            "org.opencontainers.image.title": manifest.name,
            "org.opencontainers.image.version": manifest.version,
            "org.opencontainers.image.revision": manifest.revision.to_string(),
        }),
    })
}

fn trusted_keys(keys: Vec<String>, config: &ConfigArgs) -> Result<Vec<(String, String)>, Failure> {
    if keys.is_empty() {
        let config = Config::load(config.config.as_deref())?;
        return Ok(config.policies.trusted_keys.into_iter().collect());
    }
    let read = |key: String| {
        if signature::public_key(&key).is_ok() {
            return Ok(("--key".to_string(), key));
        }
        let text = fs::read_to_string(&key);
        let text =
            text.map_err(|e| Failure::Failed(format!("{key} is neither key nor file: {e}")))?;
        Ok((key, text))
    };
    keys.into_iter().map(read).collect()
}

/// One sentence about a good signature.
fn verified(sealed: &Sealed, trusted: &[(String, String)]) -> Result<String, Failure> {
    let trusted: Vec<(&str, &str)> = trusted.iter().map(|(n, k)| (&**n, &**k)).collect();
    let provenance =
        signature::verify(sealed, &trusted, signature::now()).map_err(Failure::failed)?;
    let manifest = manifest(sealed)?.map(|m| (m.name, m.hooks, m.capabilities));
    let (name, hooks, capabilities) = manifest.unwrap_or_default();
    let hooks: Vec<&str> = hooks.iter().map(|h| h.as_str()).collect();
    let powers: Vec<&str> = capabilities.iter().map(|g: &Grant| g.as_str()).collect();
    Ok(format!(
        "{name} {} revision {}, signed by {}, for {}, powers: {}, valid until {}",
        provenance.version,
        provenance.revision,
        provenance.signed_by,
        hooks.join(", "),
        if powers.is_empty() {
            "none".into()
        } else {
            powers.join(", ")
        },
        provenance.not_after.as_deref().unwrap_or("further notice")
    ))
}

fn credentials() -> Option<Credentials> {
    let set = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    Some(Credentials {
        user: set("HOMEOSTAT_REGISTRY_USER")?,
        password: set("HOMEOSTAT_REGISTRY_PASSWORD")?,
    })
}

fn policy_name(file: &Path) -> String {
    let stem = file.file_stem().and_then(|s| s.to_str());
    stem.unwrap_or("policy").to_string()
}

fn here(name: &str) -> PathBuf {
    PathBuf::from(format!("{name}.{EXTENSION}"))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    fs::write(path, bytes).map_err(|e| Failure::Failed(format!("{}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beside_a_component_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("route-mine.wasm");
        let write = |extension: &str, text: &str| {
            fs::write(file.with_extension(extension), text).unwrap();
        };
        write("wasm", "the component");
        let plain = (vec!["name=route-mine".to_string()], b"the component".into());
        assert_eq!(offered(&file, None).unwrap(), plain);
        write("toml", "fallback = \"previous\"\n");
        write("policy.toml", "the manifest");
        write("sig", "the signature");
        let (query, body) = offered(&file, Some("other".into())).unwrap();
        let options = "options=fallback%20%3D%20%22previous%22%0A";
        assert_eq!(query, ["name=other", options]);
        let sealed = bundle::unpack(&body).unwrap();
        assert_eq!(sealed.component, b"the component");
        assert_eq!(sealed.signature.unwrap(), "the signature");
        write("toml", "fallbakc = 1");
        let wrong = offered(&file, None).unwrap_err().to_string();
        let words = ["route-mine.toml", "fallbakc"];
        assert!(words.iter().all(|word| wrong.contains(word)), "{wrong}");
    }
}
