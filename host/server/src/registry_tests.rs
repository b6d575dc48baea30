//! Bundles pushed to and pulled from a registry on this machine, which speaks as much of
//! the distribution specification as the client uses, and can lie.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::Response;
use homeostat_policy::signature::sha256_hex;
use serde_json::json;

use crate::registry::{ARTIFACT_TYPE, Credentials, Reference, Registry};

/// How a registry behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Open,
    /// Wants a token of its own token server.
    Tokens,
    /// Wants user and password.
    Passwords,
    /// Names a token server without TLS on another host.
    ForeignTokens,
    /// Sends uploads to another host.
    Elsewhere,
}

struct Shelf {
    mood: Mood,
    address: SocketAddr,
    blobs: Mutex<HashMap<String, Vec<u8>>>,
    manifests: Mutex<HashMap<String, Vec<u8>>>,
    uploads: Mutex<u32>,
}

/// Starts a registry that lives as long as the test.
fn start(mood: Mood) -> Arc<Shelf> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let shelf = Arc::new(Shelf {
        mood,
        address: listener.local_addr().unwrap(),
        blobs: Mutex::default(),
        manifests: Mutex::default(),
        uploads: Mutex::default(),
    });
    let app = Router::new().fallback(answer).with_state(shelf.clone());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, app).await.unwrap();
        });
    });
    shelf
}

fn reply(status: u16) -> axum::http::response::Builder {
    Response::builder().status(status)
}

fn bare(status: u16) -> Response {
    reply(status).body(Body::empty()).unwrap()
}

fn found(bytes: Option<Vec<u8>>) -> Response {
    match bytes {
        Some(bytes) => reply(200).body(Body::from(bytes)).unwrap(),
        None => bare(404),
    }
}

/// What a registry or its token server says before it does anything; none = come in. As
/// with real ones, a token for reading is none for writing.
fn door(shelf: &Shelf, method: &Method, uri: &Uri, said: &str) -> Option<Response> {
    const PASSWORD: &str = "Basic b3BzOnNlY3JldA==";
    let query = uri.query().unwrap_or("");
    if uri.path() == "/token" {
        assert!(query.contains("scope=repository%3Apolicies%2Froute%3Apull"));
        let token = if query.contains("push") {
            "push"
        } else {
            "pull"
        };
        let body = Body::from(format!(r#"{{"token":"{token}"}}"#));
        return Some(match said == PASSWORD {
            true => reply(200).body(body).unwrap(),
            false => bare(401),
        });
    }
    let reads = matches!(*method, Method::GET | Method::HEAD);
    let rights = if reads { "pull" } else { "pull,push" };
    let bearer = |root: &str| {
        let scope = format!("scope=\"repository:policies/route:{rights}\"");
        format!("Bearer realm=\"{root}/token\",service=\"here\",{scope}")
    };
    let token = if reads { "Bearer pull" } else { "Bearer push" };
    let (wanted, challenge) = match shelf.mood {
        Mood::Tokens => (token, bearer(&format!("http://{}", shelf.address))),
        Mood::ForeignTokens => ("?", bearer("http://other.invalid")),
        Mood::Passwords => (PASSWORD, "Basic realm=\"here\"".to_string()),
        Mood::Open | Mood::Elsewhere => return None,
    };
    let refusal = reply(401).header(header::WWW_AUTHENTICATE, challenge);
    (said != wanted).then(|| refusal.body(Body::empty()).unwrap())
}

async fn answer(State(shelf): State<Arc<Shelf>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 24).await.unwrap().to_vec();
    let path = parts.uri.path().to_string();
    let query = parts.uri.query().unwrap_or("").to_string();
    let said = parts.headers.get(header::AUTHORIZATION);
    let said = said.and_then(|v| v.to_str().ok()).unwrap_or("");
    if let Some(refusal) = door(&shelf, &parts.method, &parts.uri, said) {
        return refusal;
    }
    let rest = path.strip_prefix("/v2/policies/route/").unwrap_or("");
    let (kind, name) = rest.split_once('/').unwrap_or((rest, ""));
    match (&parts.method, kind, name) {
        (&Method::POST, "blobs", "uploads/") => {
            let place = match shelf.mood {
                Mood::Elsewhere => "http://other.invalid/upload".to_string(),
                _ => "/v2/policies/route/upload/7?state=x".to_string(),
            };
            reply(202)
                .header(header::LOCATION, place)
                .body(Body::empty())
                .unwrap()
        }
        (&Method::PUT, "upload", "7") => {
            let digest = query.strip_prefix("state=x&digest=").unwrap().to_string();
            assert_eq!(digest, format!("sha256:{}", sha256_hex(&body)));
            *shelf.uploads.lock().unwrap() += 1;
            shelf.blobs.lock().unwrap().insert(digest, body);
            bare(201)
        }
        (&Method::PUT, "manifests", tag) => {
            let digest = format!("sha256:{}", sha256_hex(&body));
            let mut manifests = shelf.manifests.lock().unwrap();
            manifests.insert(digest, body.clone());
            manifests.insert(tag.into(), body);
            bare(201)
        }
        (&Method::HEAD, "blobs", digest) => {
            let there = shelf.blobs.lock().unwrap().contains_key(digest);
            bare(if there { 200 } else { 404 })
        }
        (&Method::GET, "blobs", digest) => found(shelf.blobs.lock().unwrap().get(digest).cloned()),
        (&Method::GET, "manifests", tag) => {
            found(shelf.manifests.lock().unwrap().get(tag).cloned())
        }
        _ => bare(StatusCode::METHOD_NOT_ALLOWED.as_u16()),
    }
}

fn client(shelf: &Shelf, version: &str, credentials: bool) -> Registry {
    let place = format!("{}/policies/route{version}", shelf.address);
    let reference: Reference = place.parse().unwrap();
    let credentials = credentials.then(|| Credentials {
        user: "ops".into(),
        password: "secret".into(),
    });
    Registry::new(reference, true, credentials)
}

const BUNDLE: &[u8] = b"the bytes of a bundle";

#[test]
fn a_bundle_that_was_pushed_is_pulled_by_tag_and_by_digest() {
    let shelf = start(Mood::Open);
    let digest = client(&shelf, ":1.0", false)
        .push(BUNDLE, json!({"a": "b"}))
        .unwrap();
    for version in [":1.0".to_string(), format!("@{digest}")] {
        assert_eq!(
            client(&shelf, &version, false).pull(1 << 20).unwrap(),
            BUNDLE
        );
    }
    let stored: serde_json::Value =
        serde_json::from_slice(&shelf.manifests.lock().unwrap()["1.0"]).unwrap();
    assert_eq!(stored["artifactType"], ARTIFACT_TYPE);
    assert_eq!(stored["annotations"]["a"], "b");
    assert_eq!(
        *shelf.uploads.lock().unwrap(),
        2,
        "the empty configuration and the bundle"
    );
    client(&shelf, ":1.1", false)
        .push(BUNDLE, json!({}))
        .unwrap();
    assert_eq!(
        *shelf.uploads.lock().unwrap(),
        2,
        "what is there is not sent again"
    );
}

#[test]
fn a_registry_that_asks_gets_the_credentials_and_nobody_else_does() {
    for mood in [Mood::Tokens, Mood::Passwords] {
        let shelf = start(mood);
        let nobody = client(&shelf, "", false).pull(1 << 20).unwrap_err();
        assert!(
            nobody.contains("HOMEOSTAT_REGISTRY_USER") || nobody.contains("refuses"),
            "{nobody}"
        );
        client(&shelf, "", true).push(BUNDLE, json!({})).unwrap();
        assert_eq!(client(&shelf, "", true).pull(1 << 20).unwrap(), BUNDLE);
    }
    let shelf = start(Mood::ForeignTokens);
    let error = client(&shelf, "", true).pull(1 << 20).unwrap_err();
    assert!(error.contains("not over TLS"), "{error}");
    let shelf = start(Mood::Elsewhere);
    let error = client(&shelf, "", true)
        .push(BUNDLE, json!({}))
        .unwrap_err();
    assert!(error.contains("sends the upload elsewhere"), "{error}");
}

#[test]
fn nothing_that_a_registry_says_is_believed() {
    let shelf = start(Mood::Open);
    let digest = client(&shelf, ":1", false).push(BUNDLE, json!({})).unwrap();
    let pull = |version: &str, max| client(&shelf, version, false).pull(max).unwrap_err();
    assert!(pull(":1", 5).contains("at most 5 are read"));
    assert!(pull(":2", 1 << 20).contains("does not have it"));
    let blob = format!("sha256:{}", sha256_hex(BUNDLE));
    let blobs = |bytes: &[u8]| {
        shelf
            .blobs
            .lock()
            .unwrap()
            .insert(blob.clone(), bytes.to_vec())
    };
    blobs(b"other bytes, same si!");
    assert!(pull(":1", 1 << 20).contains("the registry promised"));
    blobs(&[BUNDLE, b"more than was announced"].concat());
    assert!(pull(":1", 1 << 20).contains("more than 21 bytes"));
    let manifests = |tag: &str, bytes: &[u8]| {
        shelf
            .manifests
            .lock()
            .unwrap()
            .insert(tag.into(), bytes.to_vec());
    };
    manifests(&digest, b"{}");
    assert!(pull(&format!("@{digest}"), 1 << 20).contains("the registry promised"));
    manifests("1", br#"{"artifactType":"application/other","layers":[]}"#);
    assert!(pull(":1", 1 << 20).contains("application/other, not a bundle"));
    manifests("1", b"hello");
    assert!(pull(":1", 1 << 20).contains("no JSON"));
}
