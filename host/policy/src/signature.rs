//! Who says that a policy may serve.
//!
//! Beside a component lies its manifest, a small TOML text: which component (its sha256),
//! what it is called, which revision, which hooks, which powers, from when until when. The
//! signature is Ed25519 over the manifest's bytes exactly as they lie there, so there is
//! no second form of it to agree on and nothing to normalise. What the manifest does not
//! claim the component does not get, whatever the operator grants.
//!
//! Every refusal begins with one of the words of [`Reason`], for people and for tests.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use homeostat_hooks::Hook;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use toml::value::Datetime;

use crate::admit::{AdmissionError, Stage};
use crate::cache::{hex, unhex};
use crate::config::{Grant, RoomConfig, SignatureMode};
use crate::inspect::{CONTRACT_VERSION, contract_version_fits};
use crate::revision::Revisions;

/// The form of a manifest that this host reads and writes.
pub const MANIFEST_FORMAT: u32 = 1;
/// Put before what is signed, so that a signature made for something else is not one here.
const DOMAIN: &[u8] = b"homeostat policy manifest 1\n";
/// How keys and signatures begin in text.
const ALGORITHM: &str = "ed25519:";
/// Before a policy stops being admitted, its operator hears of it for this long.
const EXPIRY_WARNING_SECONDS: i64 = 14 * 86_400;

/// What is signed.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT`].
    pub format: u32,
    /// Name of the policy; its state, its metrics and its revisions belong to it.
    pub name: String,
    /// Version for people; nothing is decided by it.
    pub version: String,
    /// Counted up with every release. An older one than the newest that was accepted is
    /// refused.
    pub revision: u64,
    /// Hex sha256 of the component.
    pub component_sha256: String,
    /// Hex sha256 of `cases.toml`, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cases_sha256: Option<String>,
    /// Version of `homeostat:policy` that it was built against.
    pub contract: String,
    /// Hooks that it may serve.
    pub hooks: Vec<Hook>,
    /// Powers that it may be given.
    pub capabilities: Vec<Grant>,
    /// Refused before; none = from the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Datetime>,
    /// Refused after; none = without end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Datetime>,
}

/// The signature of a manifest, as it lies in a `.sig` file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The public key that it was made with.
    pub key: String,
    /// `ed25519:` and 128 hexadecimal digits.
    pub signature: String,
}

/// What makes a signed policy unacceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// There is no signature, and there must be one.
    Unsigned,
    /// Manifest or signature is not what it should be.
    Malformed,
    /// Signed by a key that the operator does not trust.
    UnknownKey,
    /// The manifest was changed after it was signed.
    Tampered,
    /// The component is not the one that was signed.
    OtherComponent,
    /// The cases are not the ones that were signed.
    OtherCases,
    /// It was built against a contract that this host does not speak.
    OtherContract,
    /// Its time has not come.
    NotYetValid,
    /// Its time is over.
    Expired,
    /// A newer revision was accepted before.
    OldRevision,
    /// The host could not write down that it accepts this revision.
    NotRemembered,
    /// It was put at a hook that its manifest does not name.
    OtherHook,
    /// It imports a power that its manifest does not claim.
    Unclaimed,
}

impl Reason {
    /// The word that begins a refusal.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::Malformed => "malformed",
            Self::UnknownKey => "unknown-key",
            Self::Tampered => "tampered",
            Self::OtherComponent => "other-component",
            Self::OtherCases => "other-cases",
            Self::OtherContract => "other-contract",
            Self::NotYetValid => "not-yet-valid",
            Self::Expired => "expired",
            Self::OldRevision => "old-revision",
            Self::NotRemembered => "not-remembered",
            Self::OtherHook => "other-hook",
            Self::Unclaimed => "unclaimed",
        }
    }
}

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureError {
    /// In a word.
    pub reason: Reason,
    /// In a sentence.
    pub text: String,
}

impl SignatureError {
    pub(crate) fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self {
            reason,
            text: text.into(),
        }
    }
}

impl fmt::Display for SignatureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.as_str(), self.text)
    }
}

impl std::error::Error for SignatureError {}

/// What was offered together: the parts of a bundle, or of files that lie side by side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sealed {
    /// The component.
    pub component: Vec<u8>,
    /// Text of the manifest.
    pub manifest: Option<String>,
    /// Text of the signature.
    pub signature: Option<String>,
    /// Text of the cases.
    pub cases: Option<String>,
}

/// What admission learnt from a good signature.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Provenance {
    /// The operator's name for the key.
    pub signed_by: String,
    /// Version of the policy.
    pub version: String,
    /// Its revision.
    pub revision: u64,
    /// When it will be refused, in RFC 3339.
    pub not_after: Option<String>,
    /// For the ledger.
    #[serde(skip)]
    pub(crate) manifest: Manifest,
}

impl Provenance {
    /// The signed name.
    pub(crate) fn name(&self) -> &str {
        &self.manifest.name
    }

    /// What the operator should know.
    pub(crate) fn warnings(&self, now: i64) -> Vec<String> {
        let ends = self.manifest.not_after.as_ref().and_then(unix_seconds);
        let soon = ends.filter(|end| end - now < EXPIRY_WARNING_SECONDS);
        soon.into_iter()
            .map(|end| {
                format!(
                    "its signature ends in {} h: after that a restart would refuse it",
                    (end - now) / 3600
                )
            })
            .collect()
    }
}

/// The stage of admission. `hooks` are those it was put at, if anybody said.
pub(crate) fn check(
    config: &RoomConfig,
    revisions: &Revisions,
    sealed: &Sealed,
    hooks: Option<&[Hook]>,
    allow_downgrade: bool,
) -> Result<Option<Provenance>, AdmissionError> {
    let refuse = |error: SignatureError| AdmissionError::new(Stage::Signature, error.to_string());
    match (config.signature, &sealed.manifest, &sealed.signature) {
        (SignatureMode::Off, _, _) | (SignatureMode::Optional, _, None) => Ok(None),
        (SignatureMode::Required, _, None) | (SignatureMode::Required, None, _) => {
            let text = "policies.signature is \"required\", and this policy has none";
            Err(refuse(SignatureError::new(Reason::Unsigned, text)).help(
                "put its .policy.toml and .sig beside it, or a bundle: `homeostat policy sign`",
            ))
        }
        _ => {
            let trusted = config.trusted_keys.iter();
            let trusted: Vec<(&str, &str)> = trusted.map(|(n, k)| (&**n, &**k)).collect();
            let provenance = verify(sealed, &trusted, now()).map_err(refuse)?;
            let manifest = &provenance.manifest;
            let strange = hooks.unwrap_or_default().iter();
            if let Some(hook) = strange.into_iter().find(|h| !manifest.hooks.contains(h)) {
                let text = format!("it was not signed for {}", hook.as_str());
                return Err(refuse(SignatureError::new(Reason::OtherHook, text)));
            }
            if !allow_downgrade {
                revisions.check(manifest).map_err(refuse)?;
            }
            Ok(Some(provenance))
        }
    }
}

/// A signed policy imports only powers that were signed for, whatever the operator grants:
/// who signs shows what he signs for.
pub(crate) fn check_claims(
    provenance: Option<&Provenance>,
    needed: &[Grant],
) -> Result<(), AdmissionError> {
    let Some(provenance) = provenance else {
        return Ok(());
    };
    let claims = &provenance.manifest.capabilities;
    let unclaimed = needed.iter().find(|grant| !claims.contains(grant));
    unclaimed.map_or(Ok(()), |grant| {
        let text = format!(
            "it imports {}, which its manifest does not claim",
            grant.as_str()
        );
        let error = SignatureError::new(Reason::Unclaimed, text);
        Err(AdmissionError::new(Stage::Signature, error.to_string()))
    })
}

/// Verifies a policy against keys, each with its owner's name, at a time in seconds since
/// 1970. Revisions are not looked at: that takes the memory of a host.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(
    sealed: &Sealed,
    trusted: &[(&str, &str)],
    now: i64,
) -> Result<Provenance, SignatureError> {
    let wrong = |reason, text: String| Err(SignatureError::new(reason, text));
    let (Some(text), Some(signature)) = (&sealed.manifest, &sealed.signature) else {
        return wrong(Reason::Unsigned, "manifest or signature is missing".into());
    };
    let signed_by = verify_text(text, signature, trusted)?;
    let manifest = parse_manifest(text)?;
    if manifest.component_sha256 != sha256_hex(&sealed.component) {
        let what = "the component's sha256 is not the signed one".to_string();
        return wrong(Reason::OtherComponent, what);
    }
    let cases = sealed
        .cases
        .as_ref()
        .map(|text| sha256_hex(text.as_bytes()));
    if cases.is_some() && cases != manifest.cases_sha256 {
        let what = "the sha256 of cases.toml is not the signed one".to_string();
        return wrong(Reason::OtherCases, what);
    }
    if !contract_version_fits(&manifest.contract) {
        let what = format!(
            "it was made for homeostat:policy {}, this host speaks {CONTRACT_VERSION}",
            manifest.contract
        );
        return wrong(Reason::OtherContract, what);
    }
    for (limit, reason, early) in [
        (&manifest.not_before, Reason::NotYetValid, true),
        (&manifest.not_after, Reason::Expired, false),
    ] {
        let Some(date) = limit else { continue };
        let Some(at) = unix_seconds(date) else {
            let what = format!("{date} is no time with a zone, like 2026-01-31T12:00:00Z");
            return wrong(Reason::Malformed, what);
        };
        if (now < at && early) || (now > at && !early) {
            let word = if early { "not before" } else { "not after" };
            return wrong(reason, format!("it is valid {word} {date}"));
        }
    }
    Ok(Provenance {
        signed_by,
        version: manifest.version.clone(),
        revision: manifest.revision,
        not_after: manifest.not_after.map(|date| date.to_string()),
        manifest,
    })
}

/// The owner of the key, if the signature is his and the text is what he signed.
fn verify_text(
    text: &str,
    signature: &str,
    trusted: &[(&str, &str)],
) -> Result<String, SignatureError> {
    let malformed = |text: String| SignatureError::new(Reason::Malformed, text);
    let signature: Signature = toml::from_str(signature)
        .map_err(|e| malformed(format!("the signature: {}", e.message())))?;
    let key = public_key(&signature.key).map_err(malformed)?;
    let bytes = decoded(&signature.signature, 64).map_err(malformed)?;
    let owner = trusted
        .iter()
        .find(|(_, trusted)| public_key(trusted).as_ref() == Ok(&key));
    let Some((owner, _)) = owner else {
        return Err(SignatureError::new(
            Reason::UnknownKey,
            format!("{} is not among policies.trusted_keys", signature.key),
        ));
    };
    UnparsedPublicKey::new(&ED25519, &key)
        .verify(&signed_message(text), &bytes)
        .map_err(|_| {
            SignatureError::new(
                Reason::Tampered,
                "the manifest is not what was signed, or the signature is not of it",
            )
        })?;
    Ok((*owner).to_string())
}

fn signed_message(manifest: &str) -> Vec<u8> {
    [DOMAIN, manifest.as_bytes()].concat()
}

/// A manifest in the text of a `.policy.toml`.
///
/// # Errors
/// [`Reason::Malformed`] with what is wrong.
pub fn parse_manifest(text: &str) -> Result<Manifest, SignatureError> {
    let malformed = |text: String| SignatureError::new(Reason::Malformed, text);
    let manifest: Manifest =
        toml::from_str(text).map_err(|e| malformed(format!("the manifest: {}", e.message())))?;
    if manifest.format != MANIFEST_FORMAT {
        return Err(malformed(format!(
            "the manifest has format {}, this host reads {MANIFEST_FORMAT}",
            manifest.format
        )));
    }
    if !is_name(&manifest.name) {
        return Err(malformed(format!(
            "the name {:?} is not 1 to 64 letters, digits, '-', '_' or '.'",
            manifest.name.chars().take(80).collect::<String>()
        )));
    }
    Ok(manifest)
}

/// Whether a policy may be called this.
pub fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

/// A key that signs. It is shown nowhere.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    seed: Vec<u8>,
}

impl SigningKey {
    /// A new one from the system's random numbers.
    ///
    /// # Errors
    /// The system gives none.
    pub fn generate() -> Result<Self, String> {
        let mut seed = vec![0; 32];
        SystemRandom::new()
            .fill(&mut seed)
            .map_err(|_| "the system gives no random numbers")?;
        Self::of_seed(seed)
    }

    /// From the text of a key file.
    ///
    /// # Errors
    /// It is no key.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::of_seed(decoded(text.trim(), 32)?)
    }

    fn of_seed(seed: Vec<u8>) -> Result<Self, String> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|e| e.to_string())?;
        Ok(Self { pair, seed })
    }

    /// The text of a key file: `ed25519:` and the 32 bytes that the key is made from.
    pub fn secret_text(&self) -> String {
        format!("{ALGORITHM}{}\n", hex(&self.seed))
    }

    /// The public key, as `policies.trusted_keys` takes it.
    pub fn public_text(&self) -> String {
        format!("{ALGORITHM}{}", hex(self.pair.public_key().as_ref()))
    }

    /// Signs the text of a manifest; answers the text of a `.sig` file.
    pub fn sign(&self, manifest: &str) -> String {
        let signature = self.pair.sign(&signed_message(manifest));
        format!(
            "key = \"{}\"\nsignature = \"{ALGORITHM}{}\"\n",
            self.public_text(),
            hex(signature.as_ref())
        )
    }
}

/// The bytes of a public key.
///
/// # Errors
/// It is no key.
pub fn public_key(text: &str) -> Result<Vec<u8>, String> {
    decoded(text.trim(), 32)
}

fn decoded(text: &str, bytes: usize) -> Result<Vec<u8>, String> {
    text.strip_prefix(ALGORITHM)
        .and_then(unhex)
        .filter(|decoded| decoded.len() == bytes)
        .ok_or_else(|| format!("expected {ALGORITHM} and {} hexadecimal digits", 2 * bytes))
}

/// Lowercase hex sha256.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Seconds since 1970, now.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// Seconds since 1970 of a time that has date, time and zone.
fn unix_seconds(date: &Datetime) -> Option<i64> {
    let (day, time) = (date.date?, date.time?);
    let offset_minutes = match date.offset? {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => i64::from(minutes),
    };
    let days = days_since_1970(
        i64::from(day.year),
        i64::from(day.month),
        i64::from(day.day),
    );
    let second = i64::from(time.second.unwrap_or(0));
    let minutes = i64::from(time.hour) * 60 + i64::from(time.minute) - offset_minutes;
    Some(days * 86_400 + minutes * 60 + second)
}

/// Days of the Gregorian calendar, counted in eras of 400 years that begin in March, so
/// that the leap day is the last of a year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// A time in UTC, as a manifest holds it; none when it lies outside the years of RFC 3339.
pub fn datetime(unix: i64) -> Option<Datetime> {
    let days = unix.div_euclid(86_400) + 719_468;
    let second = unix.rem_euclid(86_400);
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let text = format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    );
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_to_seconds_and_back() {
        for (text, unix) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("2024-12-31T12:00:00Z", 1_735_646_400),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
        ] {
            let date: Datetime = text.parse().unwrap();
            assert_eq!(unix_seconds(&date), Some(unix), "{text}");
            assert_eq!(datetime(unix).unwrap().to_string(), text);
        }
        let east: Datetime = "1970-01-01T02:00:00+02:00".parse().unwrap();
        assert_eq!(unix_seconds(&east), Some(0));
        let local: Datetime = "1970-01-01T02:00:00".parse().unwrap();
        assert_eq!(unix_seconds(&local), None);
    }

    #[test]
    fn every_day_of_three_centuries_comes_back() {
        for day in 0..110_000 {
            let date = datetime(day * 86_400).unwrap();
            assert_eq!(unix_seconds(&date), Some(day * 86_400), "{date}");
        }
    }

    #[test]
    fn the_signature_is_the_one_of_the_standard() {
        // RFC 8032, 7.1, test 1: the public key of this secret.
        let secret = "ed25519:9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let key = SigningKey::parse(secret).unwrap();
        assert_eq!(
            key.public_text(),
            "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
        assert_eq!(key.secret_text().trim(), secret);
    }
}
