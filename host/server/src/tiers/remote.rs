//! Any OpenAI-compatible server as a tier.
//!
//! It learns what the server can do instead of asking the operator: log-probabilities
//! are requested until the server refuses them. It never retries a request that may
//! have generated text; the next step of the plan is the cascade's business. A server
//! that does not answer is marked not ready at once and probed with growing pauses.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use homeostat_cascade::{GenerateCall, Prompt, Tier, TierError, TierEvent, Token, TokenStream};
use homeostat_hooks::{Finish, Sample, TierView};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response};
use tokio::time::{sleep, timeout};

use super::continuation::Repeat;
pub use super::continuation::WrittenOut;
use super::sse::SseParser;
pub use super::upstream::Prefill;
use super::upstream::{self, broken};
use crate::http_client::{self, HttpClient};

/// Bytes of an error body that are read.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Pause between probes of a server that answers.
const PROBE_PERIOD: Duration = Duration::from_secs(10);
/// First and longest pause between probes of a server that does not.
const PROBE_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Weight of the newest measurement in the running means of TTFT and TPOT: the last ten
/// or so answers count.
const MEAN_WEIGHT: f64 = 0.2;

/// A remote tier, ready to use.
#[derive(Debug, Clone)]
pub struct RemoteConfig {
    /// What routers are shown; readiness and load are filled in.
    pub view: TierView,
    /// Base URL with version, such as `http://127.0.0.1:8000/v1`, no slash at its end.
    pub url: String,
    pub api_key: Option<String>,
    /// Ask for log-probabilities (until the server refuses).
    pub logprobs: bool,
    pub prefill: Prefill,
    /// For [`Prefill::Completions`], and only there.
    pub template: Option<Arc<WrittenOut>>,
    /// New tokens when neither client nor plan sets a limit.
    pub max_tokens: u32,
    pub connect_timeout: Duration,
    /// Until the response begins.
    pub first_byte_timeout: Duration,
    /// Between two pieces of the response.
    pub idle_timeout: Duration,
}

/// A remote tier.
pub struct RemoteTier {
    shared: Arc<Shared>,
}

struct Shared {
    config: RemoteConfig,
    client: HttpClient,
    ready: AtomicBool,
    logprobs: AtomicBool,
    running: AtomicU32,
    means: Mutex<Means>,
}

/// Running means of what the server needed.
#[derive(Debug, Default, Clone, Copy)]
struct Means {
    ttft_ms: Option<f64>,
    tpot_ms: Option<f64>,
}

impl RemoteTier {
    /// A tier, and the task that watches whether its server answers.
    pub fn start(config: RemoteConfig) -> Self {
        let shared = Arc::new(Shared {
            client: http_client::http_client(config.connect_timeout),
            ready: AtomicBool::new(false),
            logprobs: AtomicBool::new(config.logprobs),
            running: AtomicU32::new(0),
            means: Mutex::default(),
            config,
        });
        tokio::spawn(watch(Arc::downgrade(&shared)));
        Self { shared }
    }
}

impl Tier for RemoteTier {
    fn id(&self) -> &str {
        &self.shared.config.view.id
    }

    fn view(&self) -> TierView {
        let shared = &self.shared;
        let means = *shared.means();
        TierView {
            ready: shared.ready.load(Ordering::Relaxed),
            num_requests_running: shared.running.load(Ordering::Relaxed),
            gives_logprobs: shared.logprobs.load(Ordering::Relaxed),
            ttft_ms: means.ttft_ms.map(Sample::measured),
            tpot_ms: means.tpot_ms.map(Sample::measured),
            ..shared.config.view.clone()
        }
    }

    fn can_continue(&self, prompt: &Prompt) -> bool {
        self.shared.can_continue(prompt)
    }

    fn generate(&self, call: GenerateCall) -> BoxFuture<'static, Result<TokenStream, TierError>> {
        let shared = self.shared.clone();
        async move { shared.generate(call).await }.boxed()
    }
}

impl Shared {
    fn id(&self) -> &str {
        &self.config.view.id
    }

    /// A panic cannot happen between the two assignments that this lock protects.
    fn means(&self) -> std::sync::MutexGuard<'_, Means> {
        self.means
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn generate(self: Arc<Self>, call: GenerateCall) -> Result<TokenStream, TierError> {
        let repeat = Repeat::of(&call.answer_prefix);
        let call = self.continued(call)?;
        let asked = Instant::now();
        let in_flight = InFlight::begin(self.clone());
        let logprobs = self.logprobs.load(Ordering::Relaxed);
        let response = match self.ask(&call, logprobs).await {
            Err(refused) if logprobs && refused.may_be_about_logprobs() => {
                let response = self.ask(&call, false).await.map_err(|r| r.error)?;
                self.logprobs.store(false, Ordering::Relaxed);
                tracing::info!(tier = self.id(), "gives no log-probabilities");
                response
            }
            other => other.map_err(|r| r.error)?,
        };
        let reading = Reading {
            body: response.into_body(),
            parser: SseParser::default(),
            events: Vec::new(),
            out: VecDeque::new(),
            end: End::NotYet,
            finish: None,
            usage: None,
            tokens: 0,
            prompt_bytes: prompt_bytes(&call),
            repeat,
            asked,
            first: None,
            in_flight,
        };
        Ok(reading.into_stream().boxed())
    }

    fn can_continue(&self, prompt: &Prompt) -> bool {
        matches!(prompt, Prompt::Raw(_)) || self.config.prefill != Prefill::None
    }

    /// A call that goes on from what the client has seen, as this server takes it. White space at
    /// the end of that stays here: templates cut it off, and models begin their words with it.
    fn continued(&self, mut call: GenerateCall) -> Result<GenerateCall, TierError> {
        if call.answer_prefix.is_empty() {
            return Ok(call);
        }
        if !self.can_continue(&call.prompt) {
            let why = "its prefill is \"none\"";
            return Err(TierError::cannot_continue(self.id(), why));
        }
        let end = call.answer_prefix.trim_end().len();
        call.answer_prefix.truncate(end);
        let written = match (&*call.prompt, &self.config.template) {
            (Prompt::Chat(messages), Some(template)) => template.write(messages),
            _ => return Ok(call),
        };
        let text = written.map_err(|why| TierError::cannot_continue(self.id(), &why))?;
        call.prompt = Arc::new(Prompt::Raw(text));
        Ok(call)
    }

    /// One try. A connection failure marks the tier not ready.
    async fn ask(
        &self,
        call: &GenerateCall,
        logprobs: bool,
    ) -> Result<Response<Incoming>, Refused> {
        let c = &self.config;
        let (path, body) =
            upstream::request(call, &c.view.model, c.prefill, logprobs, c.max_tokens);
        let request = self
            .request("POST", path, body.to_string().into())
            .map_err(Refused::other)?;
        let response = match timeout(c.first_byte_timeout, self.client.request(request)).await {
            Err(_) => {
                self.set_ready(false);
                let what = format!("did not answer within {:?}", c.first_byte_timeout);
                return Err(Refused::other(broken(self.id(), what)));
            }
            Ok(Err(e)) => {
                self.set_ready(false);
                let what = format!("cannot be reached: {}", http_client::with_causes(&e));
                return Err(Refused::other(broken(self.id(), what)));
            }
            Ok(Ok(response)) => response,
        };
        let status = response.status().as_u16();
        if status >= 300 {
            return Err(self.refused(status, response).await);
        }
        self.set_ready(true);
        let kind = response.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|k| k.to_str().ok()).unwrap_or("");
        if !kind.starts_with("text/event-stream") {
            let what = format!("answered with content type {kind:?}, expected an event stream");
            return Err(Refused::other(broken(self.id(), what)));
        }
        Ok(response)
    }

    async fn refused(&self, status: u16, response: Response<Incoming>) -> Refused {
        let retry_after = retry_after_ms(response.headers());
        let body = http_client::read_body(response.into_body(), ERROR_BYTES_MAX);
        let body = timeout(self.config.idle_timeout, body).await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        Refused {
            status,
            error: upstream::refusal(self.id(), status, retry_after, &body),
        }
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, TierError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.config.url))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "text/event-stream, application/json")
            .header(
                header::USER_AGENT,
                concat!("homeostat/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(key) = &self.config.api_key {
            let mut value = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| {
                TierError::host("bad_api_key", "the tier's API key is no header value")
            })?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        request
            .body(Full::new(body))
            .map_err(|e| TierError::host("bad_url", format!("tier {}: {e}", self.id())))
    }

    fn set_ready(&self, ready: bool) {
        if self.ready.swap(ready, Ordering::Relaxed) != ready {
            tracing::info!(tier = self.id(), ready, "remote tier changed");
        }
    }

    /// Whether the server answers; its opinion of the question does not matter.
    async fn probe(&self) -> bool {
        let Ok(request) = self.request("GET", "/models", Bytes::new()) else {
            return false;
        };
        let answer = timeout(self.config.first_byte_timeout, self.client.request(request)).await;
        match answer {
            Ok(Ok(response)) => {
                let status = response.status();
                if matches!(status.as_u16(), 401 | 403) {
                    tracing::warn!(tier = self.id(), %status, "the server refuses the API key");
                    return false;
                }
                !status.is_server_error()
            }
            _ => false,
        }
    }

    fn measured(&self, ttft: Option<Duration>, tpot: Option<Duration>) {
        let mix = |mean: &mut Option<f64>, new: Option<Duration>| {
            if let Some(ms) = new.map(|d| d.as_secs_f64() * 1e3) {
                *mean = Some(mean.map_or(ms, |m| m + MEAN_WEIGHT * (ms - m)));
            }
        };
        let mut means = self.means();
        mix(&mut means.ttft_ms, ttft);
        mix(&mut means.tpot_ms, tpot);
    }
}

/// Watches a server for as long as its tier exists.
async fn watch(tier: Weak<Shared>) {
    let mut pause = PROBE_PAUSE.0;
    loop {
        let Some(tier) = tier.upgrade() else {
            return;
        };
        // An answer in the making says more than a probe, and a probe may break it:
        // llama-cpp-python's server gives up a stream as soon as anybody else asks.
        let busy = || tier.running.load(Ordering::Relaxed) > 0;
        if !busy() {
            let answers = tier.probe().await;
            if !busy() {
                tier.set_ready(answers);
            }
        }
        let ready = tier.ready.load(Ordering::Relaxed);
        drop(tier);
        if ready {
            pause = PROBE_PAUSE.0;
            sleep(PROBE_PERIOD).await;
        } else {
            sleep(pause).await;
            pause = (pause * 2).min(PROBE_PAUSE.1);
        }
    }
}

/// A refusal of one try.
struct Refused {
    /// 0: no status was received.
    status: u16,
    error: TierError,
}

impl Refused {
    fn other(error: TierError) -> Self {
        Self { status: 0, error }
    }

    /// Some servers refuse the field with 400 or 422; llama-cpp-python fails with 500 and
    /// names the word.
    fn may_be_about_logprobs(&self) -> bool {
        match self.status {
            400 | 422 => self.error.code == "invalid_value",
            500 | 501 => self.error.message.contains("logprob"),
            _ => false,
        }
    }
}

/// Counts a request while it runs.
struct InFlight(Arc<Shared>);

impl InFlight {
    fn begin(shared: Arc<Shared>) -> Self {
        shared.running.fetch_add(1, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let before = self.0.running.fetch_sub(1, Ordering::Relaxed);
        assert!(before > 0, "a request ended that had not begun");
    }
}

/// Reads one answer. Dropping it closes the connection, which cancels the generation.
struct Reading {
    body: Incoming,
    parser: SseParser,
    events: Vec<String>,
    out: VecDeque<TierEvent>,
    end: End,
    finish: Option<Finish>,
    usage: Option<(u32, u32)>,
    tokens: u32,
    prompt_bytes: usize,
    repeat: Repeat,
    asked: Instant,
    first: Option<Instant>,
    in_flight: InFlight,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    NotYet,
    /// `[DONE]`, or the bytes ended.
    Seen,
    /// The last event was given out.
    Told,
}

impl Reading {
    fn into_stream(self) -> impl Stream<Item = Result<TierEvent, TierError>> {
        futures::stream::unfold(self, |mut reading| async move {
            let item = reading.next().await?;
            if item.is_err() {
                reading.end = End::Told;
            }
            Some((item, reading))
        })
    }

    async fn next(&mut self) -> Option<Result<TierEvent, TierError>> {
        loop {
            if let Some(event) = self.out.pop_front() {
                return Some(Ok(event));
            }
            match self.end {
                End::Told => return None,
                End::Seen => match self.repeat.end() {
                    Some(text) => self.out.push_back(TierEvent::Token(Token {
                        text,
                        ..Token::default()
                    })),
                    None => {
                        self.end = End::Told;
                        return Some(self.finished());
                    }
                },
                End::NotYet => {
                    if let Err(error) = self.read().await {
                        return Some(Err(error));
                    }
                }
            }
        }
    }

    /// Wait for the next bytes and take them in.
    async fn read(&mut self) -> Result<(), TierError> {
        let shared = self.in_flight.0.clone();
        let id = shared.id();
        let idle = shared.config.idle_timeout;
        let so_far = self.tokens;
        let nonsense = |e| broken(id, format!("broke its stream after {so_far} tokens: {e}"));
        match timeout(idle, self.body.frame()).await {
            Err(_) => {
                let what = format!("sent nothing for {idle:?} after {so_far} tokens");
                return Err(broken(id, what));
            }
            Ok(Some(Err(e))) => {
                let why = http_client::with_causes(&e);
                let what = format!("broke the connection after {so_far} tokens: {why}");
                return Err(broken(id, what));
            }
            Ok(Some(Ok(frame))) => {
                if let Some(bytes) = frame.data_ref() {
                    self.parser
                        .feed(bytes, &mut self.events)
                        .map_err(nonsense)?;
                }
            }
            Ok(None) => {
                self.parser.end(&mut self.events).map_err(nonsense)?;
                self.take_events(id)?;
                self.end = End::Seen;
                return Ok(());
            }
        }
        self.take_events(id)
    }

    fn take_events(&mut self, id: &str) -> Result<(), TierError> {
        for data in std::mem::take(&mut self.events) {
            if data == "[DONE]" {
                self.end = End::Seen;
                return Ok(());
            }
            let piece = upstream::read_chunk(id, &data)?;
            self.finish = piece.finish.or(self.finish);
            self.usage = piece.usage.or(self.usage);
            for token in piece.tokens {
                self.take_token(token);
            }
        }
        Ok(())
    }

    fn take_token(&mut self, mut token: Token) {
        self.first.get_or_insert_with(Instant::now);
        self.tokens += 1;
        token.text = self.repeat.new_in(token.text);
        self.out.push_back(TierEvent::Token(token));
    }

    fn finished(&mut self) -> Result<TierEvent, TierError> {
        let shared = &self.in_flight.0;
        let Some(finish) = self.finish else {
            let what = format!(
                "ended its stream after {} tokens without a reason",
                self.tokens
            );
            return Err(broken(shared.id(), what));
        };
        let between = self.first.map(|first| first.elapsed());
        let gaps = self.tokens.saturating_sub(1);
        let tpot = between.filter(|_| gaps > 0).map(|time| time / gaps);
        shared.measured(self.first.map(|f| f - self.asked), tpot);
        // A server that counts nothing: pieces are nearly always tokens, and a token of
        // English text has about four bytes.
        let estimated = (self.prompt_bytes.div_ceil(4) as u32, self.tokens);
        let (prompt_tokens, completion_tokens) = self.usage.unwrap_or(estimated);
        Ok(TierEvent::Finished {
            finish,
            prompt_tokens,
            completion_tokens,
        })
    }
}

fn prompt_bytes(call: &GenerateCall) -> usize {
    match &*call.prompt {
        Prompt::Chat(messages) => messages.iter().map(|m| m.content.len()).sum(),
        Prompt::Raw(text) => text.len(),
    }
}

fn retry_after_ms(headers: &hyper::HeaderMap) -> Option<u32> {
    let number = |name: &str| -> Option<f64> { headers.get(name)?.to_str().ok()?.parse().ok() };
    let ms = number("retry-after-ms").or_else(|| Some(number("retry-after")? * 1000.0))?;
    // A date or a negative number says nothing that a client could use.
    (ms >= 0.0).then_some(ms.min(f64::from(u32::MAX)) as u32)
}
