//! One file from a server into the cache, so that it is whole or not there.
//!
//! Bytes go to `<file>.<digest>.part`. When a connection breaks, the next one asks for the
//! rest; when the process ends, the next pull does. A part is only taken up again if the
//! server named a digest, because only then a mixture of two versions is noticed. The file
//! gets its name after size and sha256 were compared, and not before.
//!
//! The token goes to the host that was named and to no other: a redirect to a storage
//! server carries none. It refuses: more bytes than announced, another size than listed,
//! redirects without a target or without end, and silence.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

use super::cache;

/// Until a connection stands.
pub const CONNECT: Duration = Duration::from_secs(15);
/// Without a single byte. Storage servers may think for a while before the first.
const SILENCE: Duration = Duration::from_secs(60);
/// Connections in a row that bring nothing new.
const ATTEMPTS: u32 = 4;
const REDIRECTS: u32 = 6;

/// What to fetch.
pub struct Wanted<'a> {
    /// For messages.
    pub what: String,
    pub url: String,
    pub token: Option<&'a str>,
    pub target: &'a Path,
    /// Size and digest, where they are known beforehand.
    pub bytes: Option<u64>,
    pub sha256: Option<&'a str>,
}

/// What lies under the target's name now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub bytes: u64,
    /// Lower-case hex.
    pub sha256: String,
}

/// Why there is no such file. Says whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error(
        "{what}: the hub wants to know who asks ({said}). It answers so for private and gated \
         models and for those that do not exist: check the name, and set HF_TOKEN to a token \
         of an account that may read it"
    )]
    TokenMissing { what: String, said: String },
    #[error(
        "{what}: the hub refuses this token ({said}). Check the name, that HF_TOKEN is valid, \
         and that its account has accepted the model's conditions on its page"
    )]
    TokenRefused { what: String, said: String },
    #[error(
        "{what}: the hub does not have it ({said}); check owner, repository, revision and file"
    )]
    NotFound { what: String, said: String },
    #[error("{what}: the hub answers {said}; that is its fault, try again later")]
    Unavailable { what: String, said: String },
    #[error("{what}: the hub answers {said}")]
    Refused { what: String, said: String },
    #[error(
        "{what}: no connection: {problem}. Is there a network, and is HF_ENDPOINT (if set) right?"
    )]
    Connection { what: String, problem: String },
    #[error(
        "{what}: the connection broke {ATTEMPTS} times without bringing anything new ({problem}); \
         {have} bytes are kept, run the same command to go on"
    )]
    Interrupted {
        what: String,
        problem: String,
        have: u64,
    },
    #[error("{what}: {problem}; that is the server's fault")]
    Nonsense { what: String, problem: String },
    #[error(
        "{what} has sha256 {found}, the hub names {expected}: deleted. Run the same command again; \
         if it happens again, something between here and the hub changes files"
    )]
    Checksum {
        what: String,
        found: String,
        expected: String,
    },
    #[error(
        "there is no more room for {} (disk full, quota or limit); make some and run the same \
         command to go on",
        path.display()
    )]
    DiskFull { path: PathBuf },
    #[error("cannot write {}: {source}", path.display())]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
}

impl TransferError {
    pub fn connection(what: &str, error: &ureq::Error) -> Self {
        Self::Connection {
            what: what.into(),
            problem: match error {
                ureq::Error::HostNotFound => "the name of the host is unknown".into(),
                other => other.to_string(),
            },
        }
    }

    fn write(path: &Path, source: std::io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::FileTooLarge => Self::DiskFull { path },
            _ => Self::Write { path, source },
        }
    }
}

/// The client of [`fetch`]: patient with long bodies, impatient with silence.
pub fn agent() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .user_agent(concat!("homeostat/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

/// Sixty-four lower-case hex digits.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Turns every status but success into what the user can do about it.
pub fn check_status(
    what: &str,
    response: &Response<Body>,
    with_token: bool,
) -> Result<(), TransferError> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let said = match header(response.headers(), "x-error-message") {
        Some(message) => format!("{}: {message}", status.as_u16()),
        None => status.to_string(),
    };
    let what = what.to_string();
    Err(match status.as_u16() {
        401 | 403 if with_token => TransferError::TokenRefused { what, said },
        401 | 403 => TransferError::TokenMissing { what, said },
        404 | 410 => TransferError::NotFound { what, said },
        408 | 429 | 500.. => TransferError::Unavailable { what, said },
        _ => TransferError::Refused { what, said },
    })
}

/// A header as text that a terminal can be shown.
fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?;
    let plain = text.chars().filter(|c| !c.is_control());
    Some(plain.take(300).collect())
}

/// How one connection ended.
enum Outcome {
    /// The part is as long as was announced.
    Whole,
    /// It broke; another connection may bring the rest.
    Broken(String),
}

/// What is known of a file that is on its way.
struct Part<'a> {
    wanted: &'a Wanted<'a>,
    path: PathBuf,
    total: Option<u64>,
    sha256: Option<String>,
    progress: Progress,
}

/// Fetches one file. Goes on where an earlier call was interrupted, if it can be checked.
pub fn fetch(agent: &Agent, wanted: &Wanted<'_>) -> Result<Kept, TransferError> {
    let digest = wanted.sha256.map_or("unknown", |d| &d[..16]);
    let mut name = wanted.target.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{digest}.part"));
    let mut part = Part {
        wanted,
        path: wanted.target.with_file_name(name),
        total: wanted.bytes,
        sha256: wanted.sha256.map(str::to_string),
        progress: Progress::new(&wanted.what),
    };
    if wanted.sha256.is_none() {
        part.remove()?;
    }
    let resumed = part.len() > 0;
    match part.complete(agent) {
        // What was there before this call may have been the wrong half.
        Err(TransferError::Checksum { .. }) if resumed => part.complete(agent),
        done => done,
    }
}

impl Part<'_> {
    fn len(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |m| m.len())
    }

    fn remove(&self) -> Result<(), TransferError> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(TransferError::write(&self.path, e))
            }
            _ => Ok(()),
        }
    }

    fn nonsense<T>(&self, problem: String) -> Result<T, TransferError> {
        Err(TransferError::Nonsense {
            what: self.wanted.what.clone(),
            problem,
        })
    }

    /// Connects until all is there, then compares and gives it its name.
    fn complete(&mut self, agent: &Agent) -> Result<Kept, TransferError> {
        let mut in_vain = 0;
        loop {
            let have = self.len();
            if self.total == Some(have) {
                break;
            }
            let problem = match self.connection(agent, have) {
                Ok(Outcome::Whole) => break,
                Ok(Outcome::Broken(problem)) => problem,
                Err(TransferError::Unavailable { said, .. }) => said,
                Err(other) => return Err(other),
            };
            let now = self.len();
            in_vain = if now > have { 0 } else { in_vain + 1 };
            if in_vain == ATTEMPTS {
                return Err(TransferError::Interrupted {
                    what: self.wanted.what.clone(),
                    problem,
                    have: now,
                });
            }
            std::thread::sleep(Duration::from_millis(250 << in_vain));
        }
        self.progress.end();
        self.finish()
    }

    fn finish(&self) -> Result<Kept, TransferError> {
        let write = |e| TransferError::write(&self.path, e);
        let (bytes, found) = cache::digest(&self.path).map_err(write)?;
        if let Some(expected) = self.sha256.clone().filter(|e| *e != found) {
            self.remove()?;
            let what = self.wanted.what.clone();
            return Err(TransferError::Checksum {
                what,
                found,
                expected,
            });
        }
        readable_by_all(&self.path).map_err(write)?;
        let file = File::open(&self.path).map_err(write)?;
        file.sync_all().map_err(write)?;
        std::fs::rename(&self.path, self.wanted.target).map_err(write)?;
        Ok(Kept {
            bytes,
            sha256: found,
        })
    }

    /// One connection: asks for what is missing from `have` on and appends it.
    fn connection(&mut self, agent: &Agent, have: u64) -> Result<Outcome, TransferError> {
        let response = match self.follow(agent, have) {
            Ok(response) => response,
            Err(Asking::Broken(error)) if have > 0 || !is_first_contact(&error) => {
                return Ok(Outcome::Broken(error.to_string()));
            }
            Err(Asking::Broken(error)) => {
                return Err(TransferError::connection(&self.wanted.what, &error));
            }
            Err(Asking::Wrong(error)) => return Err(error),
        };
        if response.status() == 416 {
            // Nothing behind what is there, and it is not whole: it belongs to another file.
            self.remove()?;
            return Ok(Outcome::Broken("416, the part is of another file".into()));
        }
        check_status(&self.wanted.what, &response, self.wanted.token.is_some())?;
        let start = self.announced(&response, have)?;
        self.append(response, start)
    }

    /// Takes total and start of the body from an answer, and compares them with what is known.
    fn announced(&mut self, response: &Response<Body>, have: u64) -> Result<u64, TransferError> {
        let range = header(response.headers(), "content-range");
        let range = range.as_deref().and_then(content_range);
        let (start, total) = match (response.status().as_u16(), range) {
            (206, Some((start, total))) if start == have => (start, Some(total)),
            (206, _) => {
                return self.nonsense(format!("asked from byte {have} on, it sends others"));
            }
            // The server does not know ranges: everything anew.
            _ => (0, response.body().content_length()),
        };
        match (self.total, total) {
            (Some(known), Some(said)) if known != said => {
                return self.nonsense(format!("announced {known} bytes and sends {said}"));
            }
            (None, said) => self.total = said,
            _ => {}
        }
        Ok(start)
    }

    fn append(&mut self, response: Response<Body>, start: u64) -> Result<Outcome, TransferError> {
        let path = self.path.clone();
        let write = |e| TransferError::write(&path, e);
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(&self.path)
            .map_err(write)?;
        file.set_len(start).map_err(write)?;
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 256 << 10];
        let mut have = start;
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) => return Ok(Outcome::Broken(e.to_string())),
            };
            have += n as u64;
            if self.total.is_some_and(|total| have > total) {
                let total = self.total.unwrap_or_default();
                return self.nonsense(format!("sends more than the {total} bytes it announced"));
            }
            file.write_all(&buffer[..n]).map_err(write)?;
            self.progress.tell(have, self.total);
        }
        match self.total {
            Some(total) if have < total => Ok(Outcome::Broken(format!(
                "the server closed it after {have} of {total} bytes"
            ))),
            _ => Ok(Outcome::Whole),
        }
    }

    /// Asks, and follows redirects by hand: the first answer's headers say what the file is, and
    /// the token is for the first host only.
    fn follow(&mut self, agent: &Agent, have: u64) -> Result<Response<Body>, Asking> {
        let mut url = self.wanted.url.clone();
        let home = authority(&url);
        for _ in 0..REDIRECTS {
            let mut request = agent.get(&url).header("accept", "*/*");
            if have > 0 {
                request = request.header("range", format!("bytes={have}-"));
            }
            if let Some(token) = self.wanted.token.filter(|_| authority(&url) == home) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(Asking::Broken)?;
            self.described(response.headers());
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let target = header(response.headers(), "location");
            url = match target.as_deref().and_then(|to| absolute(&url, to)) {
                Some(next) => next,
                None => {
                    let wrong = self.nonsense(format!("a redirect to {target:?}"));
                    return wrong.map_err(Asking::Wrong);
                }
            };
        }
        let endless = self.nonsense(format!("more than {REDIRECTS} redirects"));
        endless.map_err(Asking::Wrong)
    }

    /// Where the list of files said nothing of a digest, the answer's headers may: the linked
    /// etag of a large file is its sha256.
    fn described(&mut self, headers: &HeaderMap) {
        if self.sha256.is_some() {
            return;
        }
        let etag = |name| header(headers, name).map(|e| e.trim_matches('"').to_string());
        let etag = etag("x-linked-etag").or_else(|| etag("etag"));
        self.sha256 = etag.filter(|e| is_sha256(e));
    }
}

/// A request without an answer that can be used.
enum Asking {
    Broken(ureq::Error),
    Wrong(TransferError),
}

/// Errors that another attempt will not cure: nobody is there at all.
fn is_first_contact(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::BadUri(_)
        | ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => true,
        ureq::Error::Io(e) => e.kind() == std::io::ErrorKind::ConnectionRefused,
        _ => false,
    }
}

/// Scheme, host and port.
fn authority(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    Some((uri.scheme_str()?.into(), uri.authority()?.to_string()))
}

/// The target of a redirect; `None` where it is neither http(s) nor a path.
fn absolute(base: &str, location: &str) -> Option<String> {
    if location.starts_with('/') && !location.starts_with("//") {
        let (scheme, host) = authority(base)?;
        return Some(format!("{scheme}://{host}{location}"));
    }
    let (scheme, _) = authority(location)?;
    let from_https = base.starts_with("https:");
    // Once encrypted, always encrypted.
    let allowed = scheme == "https" || (scheme == "http" && !from_https);
    allowed.then(|| location.to_string())
}

/// `bytes 5-9/10` → (5, 10).
fn content_range(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, total.parse().ok()?))
}

/// Temporary files are private; a model is not, and another user may run the server.
pub fn readable_by_all(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

/// Tells on standard error how far it is: a line that changes on a terminal, one line per tenth
/// in a log.
struct Progress {
    what: String,
    terminal: bool,
    told: Option<(Instant, u64)>,
}

impl Progress {
    fn new(what: &str) -> Self {
        Self {
            what: what.into(),
            terminal: std::io::stderr().is_terminal(),
            told: None,
        }
    }

    fn tell(&mut self, have: u64, total: Option<u64>) {
        let tenth = total.map_or(0, |t| have * 10 / t.max(1));
        let due = self.told.is_none_or(|(at, before)| match self.terminal {
            true => at.elapsed() > Duration::from_millis(200),
            false => tenth > before,
        });
        if !due {
            return;
        }
        self.told = Some((Instant::now(), tenth));
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let total = total.map_or(String::new(), |t| format!(" of {:.1}", megabytes(t)));
        let line = format!("{}: {:.1}{total} MB", self.what, megabytes(have));
        match self.terminal {
            true => eprint!("\r{line} "),
            false => eprintln!("{line}"),
        }
    }

    fn end(&mut self) {
        if self.terminal && self.told.take().is_some() {
            eprintln!();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_to_http_only_and_never_out_of_encryption() {
        let from = "https://hub.example/a/b?c";
        let to = |location| absolute(from, location);
        assert_eq!(to("/x?y").as_deref(), Some("https://hub.example/x?y"));
        assert_eq!(to("https://other/x").as_deref(), Some("https://other/x"));
        for bad in ["http://other/x", "file:///etc/passwd", "//other/x", "", "x"] {
            assert_eq!(to(bad), None, "{bad}");
        }
        let plain = absolute("http://127.0.0.1:1/a", "http://127.0.0.1:2/b");
        assert_eq!(plain.as_deref(), Some("http://127.0.0.1:2/b"));
    }

    #[test]
    fn hosts_differ_by_scheme_and_port_too() {
        let differ = |a, b| authority(a) != authority(b);
        assert!(differ("http://h:1/", "http://h:2/"));
        assert!(differ("http://h/", "https://h/"));
        assert!(!differ("http://h/a", "http://h/b"));
    }

    #[test]
    fn a_range_is_read_or_not() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 10)));
        for bad in ["bytes */10", "bytes 5-9/*", "5-9/10", ""] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_full_disk_is_called_that() {
        let error = |kind| TransferError::write(Path::new("x"), std::io::Error::from(kind));
        let full = error(std::io::ErrorKind::StorageFull).to_string();
        assert!(full.contains("disk full"), "{full}");
        let denied = error(std::io::ErrorKind::PermissionDenied).to_string();
        assert!(denied.contains("cannot write x"), "{denied}");
    }

    #[test]
    fn headers_cannot_steer_the_terminal() {
        let mut headers = HeaderMap::new();
        headers.insert("a", "x\ty".parse().unwrap());
        assert_eq!(header(&headers, "a").as_deref(), Some("xy"));
    }
}
