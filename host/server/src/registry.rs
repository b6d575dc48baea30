//! Bundles in an OCI registry: the few requests of the distribution specification 1.1 that
//! pushing and pulling one file takes.
//!
//! A bundle is one blob under one image manifest (`artifactType`
//! [`ARTIFACT_TYPE`], the empty configuration, one layer). It is asked for over the HTTP
//! client that models are fetched with; `oci-client` would bring a second one, and layers,
//! platforms and image indexes that no policy has.
//!
//! Nothing from a registry is believed: sizes are bounded before they are read, digests
//! are compared, and who made a bundle is the matter of its signature. Credentials go to
//! the registry that was named and to the token server that it names, over TLS; plain HTTP
//! has to be asked for, and then carries none to a token server elsewhere.

use std::io::Read;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use ureq::http::{Request, Response, StatusCode};
use ureq::{Agent, Body};

use homeostat_policy::signature::sha256_hex;

/// What a manifest says it holds.
pub const ARTIFACT_TYPE: &str = "application/vnd.homeostat.policy.v1";
const LAYER_TYPE: &str = "application/vnd.homeostat.policy.bundle.v1.tar";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const EMPTY: &[u8] = b"{}";

/// Ours have about 1 KiB; registries take at most 4 MiB.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// A token has a few KiB.
const TOKEN_BYTES_MAX: u64 = 64 << 10;
const CONNECT: Duration = Duration::from_secs(15);
/// Without a byte; a registry may check a blob before it answers.
const SILENCE: Duration = Duration::from_secs(120);

/// `HOST[:PORT]/NAME[:TAG]` or `HOST[:PORT]/NAME@sha256:DIGEST`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    host: String,
    name: String,
    /// A tag or a digest.
    version: String,
}

impl std::str::FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no place in a registry: expected HOST[:PORT]/NAME[:TAG] or \
                 HOST[:PORT]/NAME@sha256:DIGEST"
            )
        };
        let (host, rest) = text.split_once('/').ok_or_else(wrong)?;
        let (name, version) = match rest.split_once('@') {
            Some((name, digest)) => (name, digest),
            None => rest.rsplit_once(':').unwrap_or((rest, "latest")),
        };
        let host_is_good = |b: u8| b.is_ascii_alphanumeric() || b"-.:[]".contains(&b);
        let part_is_good = |part: &str| {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
            part.bytes()
                .next()
                .is_some_and(|b| b.is_ascii_alphanumeric())
                && part.bytes().all(plain)
        };
        let tag = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        let version_is_good = match version.strip_prefix("sha256:") {
            Some(digits) => digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()),
            None => (1..=128).contains(&version.len()) && version.bytes().all(tag),
        };
        let good = !host.is_empty()
            && host.bytes().all(host_is_good)
            && name.len() <= 255
            && name.split('/').all(part_is_good)
            && version_is_good;
        good.then(|| Self {
            host: host.into(),
            name: name.into(),
            version: version.into(),
        })
        .ok_or_else(wrong)
    }
}

/// User and password, from the environment.
pub struct Credentials {
    pub user: String,
    pub password: String,
}

impl Credentials {
    fn header(&self) -> String {
        let pair = format!("{}:{}", self.user, self.password);
        let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
        format!("Basic {encoded}")
    }
}

/// One registry, and how it wants to be asked.
pub struct Registry {
    agent: Agent,
    scheme: &'static str,
    reference: Reference,
    credentials: Option<Credentials>,
    /// The `Authorization` that it accepted.
    authorization: Option<String>,
}

impl Registry {
    pub fn new(reference: Reference, plain_http: bool, credentials: Option<Credentials>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_recv_body(Some(SILENCE))
            .build();
        Self {
            agent: config.new_agent(),
            scheme: if plain_http { "http" } else { "https" },
            reference,
            credentials,
            authorization: None,
        }
    }

    /// Uploads a bundle. Answers the digest of its manifest: the name that always means
    /// these bytes.
    pub fn push(&mut self, bundle: &[u8], annotations: Value) -> Result<String, String> {
        self.upload(EMPTY)?;
        self.upload(bundle)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": descriptor(EMPTY_TYPE, EMPTY),
            "layers": [descriptor(LAYER_TYPE, bundle)],
            "annotations": annotations,
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = format!("sha256:{}", sha256_hex(&manifest));
        if let Some(wanted) = self.reference.version.strip_prefix("sha256:") {
            return Err(format!("push to a tag, not to the digest {wanted}"));
        }
        let url = self.url(&format!("manifests/{}", self.reference.version));
        let answer = self.ask("PUT", &url, Some((MANIFEST_TYPE, &manifest)))?;
        success("the manifest", &answer)?;
        Ok(digest)
    }

    /// Downloads a bundle of at most so many bytes.
    pub fn pull(&mut self, max_bytes: u64) -> Result<Vec<u8>, String> {
        let url = self.url(&format!("manifests/{}", self.reference.version));
        let answer = self.ask("GET", &url, None)?;
        success("the manifest", &answer)?;
        let manifest = read("the manifest", answer, MANIFEST_BYTES_MAX)?;
        if let Some(wanted) = self.reference.version.strip_prefix("sha256:") {
            same_digest("the manifest", wanted, &manifest)?;
        }
        let manifest: Value = serde_json::from_slice(&manifest)
            .map_err(|e| format!("the manifest is no JSON: {e}"))?;
        let layer = match manifest["layers"].as_array().map(Vec::as_slice) {
            Some([layer]) if layer["mediaType"] == LAYER_TYPE => layer,
            _ => {
                let what = manifest["artifactType"]
                    .as_str()
                    .unwrap_or("something else");
                return Err(format!("it holds {what}, not a bundle ({ARTIFACT_TYPE})"));
            }
        };
        let size = layer["size"].as_u64().unwrap_or(u64::MAX);
        if size > max_bytes {
            return Err(format!(
                "the bundle has {size} bytes, at most {max_bytes} are read"
            ));
        }
        let digest = layer["digest"].as_str().unwrap_or_default();
        let digits = digest.strip_prefix("sha256:").filter(|d| is_sha256(d));
        let digits = digits.ok_or("the manifest names its layer by no sha256")?;
        let answer = self.ask("GET", &self.url(&format!("blobs/{digest}")), None)?;
        success("the bundle", &answer)?;
        let bundle = read("the bundle", answer, size)?;
        same_digest("the bundle", digits, &bundle)?;
        Ok(bundle)
    }

    fn url(&self, path: &str) -> String {
        let Reference { host, name, .. } = &self.reference;
        format!("{}://{host}/v2/{name}/{path}", self.scheme)
    }

    /// A blob, unless it is there.
    fn upload(&mut self, blob: &[u8]) -> Result<(), String> {
        let digest = format!("sha256:{}", sha256_hex(blob));
        let there = self.ask("HEAD", &self.url(&format!("blobs/{digest}")), None)?;
        if there.status() == StatusCode::OK {
            return Ok(());
        }
        let url = self.url("blobs/uploads/");
        let begun = self.ask("POST", &url, Some(("application/octet-stream", b"")))?;
        success("the beginning of an upload", &begun)?;
        let place = begun
            .headers()
            .get("location")
            .and_then(|v| v.to_str().ok());
        let place = place.ok_or("the registry does not say where to upload")?;
        let place = self.absolute(place)?;
        let mark = if place.contains('?') { '&' } else { '?' };
        let url = format!("{place}{mark}digest={digest}");
        let done = self.ask("PUT", &url, Some(("application/octet-stream", blob)))?;
        success("an upload", &done)
    }

    /// Where an upload goes: on the registry itself. Another host would get the
    /// credentials, so it gets nothing.
    fn absolute(&self, place: &str) -> Result<String, String> {
        let root = format!("{}://{}", self.scheme, self.reference.host);
        if place.starts_with('/') {
            return Ok(format!("{root}{place}"));
        }
        let inside = place
            .strip_prefix(&root)
            .is_some_and(|rest| rest.starts_with('/'));
        inside
            .then(|| place.to_string())
            .ok_or_else(|| format!("the registry sends the upload elsewhere: {place}"))
    }

    /// One request; asked again with what the registry wants, if it wants to know who asks.
    /// A token is for what was asked then: writing takes another than reading.
    fn ask(
        &mut self,
        method: &str,
        url: &str,
        body: Option<(&str, &[u8])>,
    ) -> Result<Response<Body>, String> {
        let answer = self.send(method, url, body)?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let challenge = answer.headers().get("www-authenticate");
        let challenge = challenge.and_then(|v| v.to_str().ok()).unwrap_or_default();
        let authorization = Some(self.answer_to(challenge)?);
        if self.authorization == authorization {
            return Ok(answer);
        }
        self.authorization = authorization;
        self.send(method, url, body)
    }

    fn send(
        &self,
        method: &str,
        url: &str,
        body: Option<(&str, &[u8])>,
    ) -> Result<Response<Body>, String> {
        let mut request = Request::builder().method(method).uri(url);
        request = request.header("accept", MANIFEST_TYPE);
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let sent = match body {
            Some((kind, bytes)) => {
                let request = request.header("content-type", kind).body(bytes);
                self.agent.run(request.map_err(|e| e.to_string())?)
            }
            None => self.agent.run(request.body(()).map_err(|e| e.to_string())?),
        };
        sent.map_err(|e| format!("{} cannot be asked: {e}", self.reference.host))
    }

    /// The `Authorization` that a challenge asks for.
    fn answer_to(&self, challenge: &str) -> Result<String, String> {
        let missing = || {
            format!(
                "{} asks who you are: set HOMEOSTAT_REGISTRY_USER and \
                 HOMEOSTAT_REGISTRY_PASSWORD",
                self.reference.host
            )
        };
        let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return self
                .credentials
                .as_ref()
                .map(Credentials::header)
                .ok_or_else(missing);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(missing());
        }
        let realm = field(rest, "realm").ok_or_else(missing)?;
        let mut url = format!("{realm}{}", if realm.contains('?') { '&' } else { '?' });
        for key in ["service", "scope"] {
            if let Some(value) = field(rest, key) {
                url.push_str(&format!("{key}={}&", super::commands::escaped(&value)));
            }
        }
        let mut request = Request::builder().uri(url.trim_end_matches('&'));
        // A registry that was asked over TLS does not talk anybody out of it.
        let same_host = realm.starts_with(&format!("{}://{}/", self.scheme, self.reference.host));
        if let Some(credentials) = &self.credentials {
            if !realm.starts_with("https://") && !same_host {
                return Err(format!(
                    "{realm} is not over TLS: the password is not sent there"
                ));
            }
            request = request.header("authorization", credentials.header());
        }
        let request = request.body(()).map_err(|e| format!("{realm}: {e}"))?;
        let answer = self
            .agent
            .run(request)
            .map_err(|e| format!("{realm}: {e}"))?;
        success("the token", &answer)?;
        let token = read("the token", answer, TOKEN_BYTES_MAX)?;
        let token: Value = serde_json::from_slice(&token).map_err(|e| format!("{realm}: {e}"))?;
        let text = token["token"].as_str().or(token["access_token"].as_str());
        text.map(|token| format!("Bearer {token}"))
            .ok_or_else(|| format!("{realm} gives no token"))
    }
}

fn descriptor(kind: &str, blob: &[u8]) -> Value {
    let digest = format!("sha256:{}", sha256_hex(blob));
    json!({"mediaType": kind, "digest": digest, "size": blob.len()})
}

fn is_sha256(digits: &str) -> bool {
    digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

fn same_digest(what: &str, wanted: &str, bytes: &[u8]) -> Result<(), String> {
    let found = sha256_hex(bytes);
    if found == wanted {
        return Ok(());
    }
    Err(format!(
        "{what} has sha256 {found}, the registry promised {wanted}"
    ))
}

/// `key="value"` of a challenge; a value may hold commas.
fn field(challenge: &str, key: &str) -> Option<String> {
    let mut rest = challenge;
    while let Some((name, after)) = rest.split_once("=\"") {
        let (value, next) = after.split_once('"')?;
        if name.trim_matches([' ', ',']) == key {
            return Some(value.to_string());
        }
        rest = next;
    }
    None
}

fn success(what: &str, answer: &Response<Body>) -> Result<(), String> {
    let status = answer.status();
    match status.as_u16() {
        200..=299 => Ok(()),
        401 | 403 => Err(format!(
            "{what}: the registry refuses ({status}); check name and credentials"
        )),
        404 => Err(format!("{what}: the registry does not have it")),
        _ => Err(format!("{what}: the registry answers {status}")),
    }
}

fn read(what: &str, mut answer: Response<Body>, max_bytes: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let body = answer.body_mut().as_reader();
    body.take(max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| format!("{what} was not sent whole: {e}"))?;
    if bytes.len() as u64 > max_bytes {
        return Err(format!("{what} has more than {max_bytes} bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_a_registry_is_read_and_nonsense_is_refused() {
        let read = |text: &str| text.parse::<Reference>();
        let of = |host: &str, name: &str, version: &str| {
            Ok(Reference {
                host: host.into(),
                name: name.into(),
                version: version.into(),
            })
        };
        assert_eq!(read("r.example/a/b:1.0"), of("r.example", "a/b", "1.0"));
        assert_eq!(
            read("localhost:5000/a"),
            of("localhost:5000", "a", "latest")
        );
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(read(&format!("h/a@{digest}")), of("h", "a", &digest));
        for bad in [
            "",
            "a",
            "/a",
            "h/",
            "h/A",
            "h/a//b",
            "h/../b",
            "h/a:",
            "h/a@sha256:1",
            "h x/a",
            "h/a:b/c",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_challenge_is_taken_apart() {
        let text = r#"realm="https://t.example/token",service="r",scope="repository:a:pull,push""#;
        assert_eq!(field(text, "realm").unwrap(), "https://t.example/token");
        assert_eq!(field(text, "scope").unwrap(), "repository:a:pull,push");
        assert_eq!(field(text, "error"), None);
    }

    #[test]
    fn an_upload_stays_with_the_registry_that_was_named() {
        let registry = Registry::new("h:5/a".parse().unwrap(), true, None);
        assert_eq!(registry.absolute("/x?y").unwrap(), "http://h:5/x?y");
        assert!(registry.absolute("http://h:5/x").is_ok());
        for elsewhere in ["http://h:50/x", "https://h:5/x", "http://h:5.evil/x", "x"] {
            assert!(registry.absolute(elsewhere).is_err(), "{elsewhere}");
        }
    }

    #[test]
    fn a_registry_that_is_asked_over_tls_cannot_have_the_password_without() {
        let credentials = Credentials {
            user: "u".into(),
            password: "p".into(),
        };
        // Nobody listens there: what is sent ends as another error.
        let host = "127.0.0.1:1";
        let reference = format!("{host}/a").parse().unwrap();
        let registry = Registry::new(reference, false, Some(credentials));
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"r\"");
        let refused = registry.answer_to(&challenge).unwrap_err();
        assert!(refused.contains("not over TLS"), "{refused}");
    }
}
