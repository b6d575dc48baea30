//! `/v1/chat/completions` and `/v1/completions`: a checked request in, a cascade's
//! answers out, whole or as a stream.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures::future::{join_all, try_join_all};
use futures::stream::{BoxStream, SelectAll};
use futures::{Stream, StreamExt};
use homeostat_cascade::{Head, Job, Purse, Reply, ReplyEvent, TierError, Token, Usage};
use homeostat_hooks::{AnsweredBy, Finish, Hook};
use tokio::sync::OwnedSemaphorePermit;

use super::{RequestId, bearer, body, header_text};
use crate::energy::Spending;
use crate::house::{House, unix_seconds};
use crate::openai::error::ApiError;
use crate::openai::request::{Asked, Payer, SamplingDefaults, job_id};
use crate::openai::shape::{About, Shape, Whole, total};

/// Frames of a stream that are sent in one piece when they are there at the same time.
const FRAMES_TOGETHER: usize = 64;

type Parse = fn(&[u8], SamplingDefaults) -> Result<Asked, ApiError>;

pub async fn chat(
    State(house): State<Arc<House>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(house, id.0, request, Asked::chat).await
}

pub async fn completion(
    State(house): State<Arc<House>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(house, id.0, request, Asked::completion).await
}

/// How long a client may take to send its request. Who sends headers and then stalls
/// would otherwise hold one of the places of running requests for ever.
const BODY_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

fn stalled() -> ApiError {
    let what = format!(
        "the body did not arrive within {} s; send it again",
        BODY_PATIENCE.as_secs()
    );
    let status = axum::http::StatusCode::REQUEST_TIMEOUT;
    ApiError::new(status, "invalid_request_error", what).code("body_timeout")
}

async fn answer(
    house: Arc<House>,
    id: String,
    request: Request,
    parse: Parse,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let key = bearer(&parts.headers);
    let tenant = house.door.tenant(key)?;
    let payer = Payer {
        tenant,
        unproven: key.filter(|_| tenant.is_none()),
    };
    let deadline_ms = deadline(&parts.headers)?;
    let permit = house.door.enter()?;
    let reading = body::json(&parts.headers, body, body::Limit::of_clients(&house));
    let body = tokio::time::timeout(BODY_PATIENCE, reading)
        .await
        .map_err(|_| stalled())??;
    let asked = parse(&body, house.sampling)?;
    let spending = house.energy.begin(&id, asked.n);
    let mut paid_by = Vec::new();
    let jobs = (0..asked.n).map(|i| {
        let job = asked.job(&id, i, payer, deadline_ms);
        let purse = house.budgets.purse(&job, key);
        if let (0, Some(purse)) = (i, &purse) {
            paid_by = purse.paid_by();
        }
        Job {
            purse: purse.map(|purse| purse as Arc<dyn Purse>),
            ..job
        }
    });
    let replies = try_join_all(jobs.map(|job| house.cascade.run(job))).await?;
    // Only an answer that no model gave has a method.
    let direct = replies
        .iter()
        .zip(0..)
        .filter(|(r, _)| r.head.method.is_some());
    direct.for_each(|(_, index)| house.energy.took_nothing(&job_id(&id, index)));
    let first = &replies[0].head;
    let mut headers = headers(first, &asked);
    if !paid_by.is_empty() {
        let name = HeaderName::from_static("x-homeostat-budget");
        headers.insert(name, header_text(&paid_by.join(",")));
    }
    let shape = Shape {
        endpoint: asked.endpoint,
        created: unix_seconds(),
        model: first.tier.clone(),
        logprobs: asked.logprobs,
        include_usage: asked.include_usage,
        id,
    };
    if asked.stream {
        Ok((headers, stream_body(shape, replies, spending, permit)).into_response())
    } else {
        let wholes = join_all(replies.into_iter().map(|r| whole(r, asked.logprobs))).await;
        let wholes = wholes.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok((headers, shape.whole(&wholes, spending.receipt())).into_response())
    }
}

/// `x-homeostat-deadline-ms`: after this time the answer is worth nothing to the client.
fn deadline(headers: &HeaderMap) -> Result<Option<u32>, ApiError> {
    const NAME: &str = "x-homeostat-deadline-ms";
    let Some(value) = headers.get(NAME) else {
        return Ok(None);
    };
    let ms = value.to_str().ok().and_then(|v| v.parse().ok());
    match ms {
        Some(ms) if ms > 0 => Ok(Some(ms)),
        _ => Err(ApiError::invalid(
            NAME,
            format!("{NAME} is {value:?}, expected a whole number of milliseconds above 0"),
        )),
    }
}

/// What the headers of an answer tell about the decision behind it.
fn headers(head: &Head, asked: &Asked) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut put = |name: &'static str, text: &str| {
        headers.insert(HeaderName::from_static(name), header_text(text));
    };
    put("x-homeostat-tier", &head.tier);
    put("x-homeostat-policy", &policies(&head.policies));
    if head.fallback {
        put("x-homeostat-fallback", &fallbacks(&head.policies));
    }
    if let Some(receipt) = &head.receipt {
        put("x-homeostat-receipt", receipt);
    }
    if let Some(method) = &head.method {
        put("x-homeostat-method", method);
    }
    if !asked.ignored.is_empty() {
        put("x-homeostat-ignored", &asked.ignored.join(","));
    }
    let kind = if asked.stream {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        // nginx would collect the stream before it passes it on.
        let name = HeaderName::from_static("x-accel-buffering");
        headers.insert(name, HeaderValue::from_static("no"));
        "text/event-stream; charset=utf-8"
    } else {
        "application/json"
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers
}

/// `classify=classify-lexical@3, route=built-in`.
fn policies(answered: &[(Hook, AnsweredBy)]) -> String {
    let each = answered.iter().map(|(hook, by)| {
        let who = match by {
            AnsweredBy::BuiltIn => "built-in".to_string(),
            AnsweredBy::Component {
                name, generation, ..
            }
            | AnsweredBy::Fallback {
                name, generation, ..
            } => format!("{name}@{generation}"),
        };
        format!("{}={who}", hook.as_str())
    });
    each.collect::<Vec<_>>().join(", ")
}

/// `route=built-in`: the hooks whose policy failed, and who answered instead.
fn fallbacks(answered: &[(Hook, AnsweredBy)]) -> String {
    let each = answered.iter().filter_map(|(hook, by)| match by {
        AnsweredBy::Fallback { fallback, .. } => Some(format!("{}={fallback}", hook.as_str())),
        _ => None,
    });
    each.collect::<Vec<_>>().join(", ")
}

/// Collect an answer. Nothing was sent yet, so a failure is still a plain error.
async fn whole(reply: Reply, keep_tokens: bool) -> Result<Whole, TierError> {
    let mut whole = Whole {
        head: reply.head,
        text: String::new(),
        tokens: Vec::new(),
        finish: Finish::Unfinished,
        usage: Usage::default(),
    };
    let mut events = reply.events;
    while let Some(event) = events.next().await {
        match event {
            ReplyEvent::Token(token) => {
                whole.text.push_str(&token.text);
                if keep_tokens {
                    whole.tokens.push(token);
                }
            }
            ReplyEvent::Finished { finish, usage, .. } => {
                whole.finish = finish;
                whole.usage = usage;
                return Ok(whole);
            }
            ReplyEvent::Failed(error) => return Err(error),
        }
    }
    Err(TierError::host("internal_error", "the answer has no end"))
}

/// The stream of an answer as server-sent events. Dropping the body (the client is gone)
/// drops the replies, which cancels their requests.
fn stream_body(
    shape: Shape,
    replies: Vec<Reply>,
    spending: Spending,
    permit: OwnedSemaphorePermit,
) -> Body {
    let frames = frames(shape, replies, spending, permit).ready_chunks(FRAMES_TOGETHER);
    let pieces = frames.map(|frames| Ok::<_, Infallible>(Bytes::from(frames.concat())));
    Body::from_stream(pieces)
}

/// One event as it stands on the wire.
fn frame(data: &str) -> String {
    format!("data: {data}\n\n")
}

struct Streaming {
    shape: Shape,
    events: SelectAll<BoxStream<'static, (u32, ReplyEvent)>>,
    about: About,
    /// Per answer: characters sent, and the usage once it is over.
    answers: Vec<(usize, Option<Usage>)>,
    state: Phase,
    spending: Spending,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Ending,
    Over,
}

fn frames(
    shape: Shape,
    replies: Vec<Reply>,
    spending: Spending,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = String> {
    let n = replies.len() as u32;
    let about = About::new(&replies[0].head, &shape.id, n);
    let openings: Vec<String> = (0..n)
        .map(|i| frame(&shape.opening(i, (i == 0).then_some(&about))))
        .collect();
    let numbered = replies.into_iter().zip(0..);
    let events = numbered.map(|(reply, i)| reply.events.map(move |e| (i, e)).boxed());
    let streaming = Streaming {
        events: futures::stream::select_all(events),
        about,
        answers: vec![(0, None); n as usize],
        shape,
        state: Phase::Running,
        spending,
        _permit: permit,
    };
    futures::stream::iter(openings).chain(futures::stream::unfold(streaming, Streaming::next))
}

impl Streaming {
    async fn next(mut self) -> Option<(String, Self)> {
        loop {
            match self.state {
                Phase::Over => return None,
                Phase::Ending => {
                    self.state = Phase::Over;
                    let end = self.end();
                    return Some((end, self));
                }
                Phase::Running => match self.events.next().await {
                    None => self.state = Phase::Ending,
                    Some((i, event)) => {
                        if let Some(text) = self.event(i, event) {
                            return Some((text, self));
                        }
                    }
                },
            }
        }
    }

    fn event(&mut self, i: u32, event: ReplyEvent) -> Option<String> {
        let (chars, usage) = &mut self.answers[i as usize];
        match event {
            ReplyEvent::Token(token) => {
                let offset = *chars;
                *chars += token.text.chars().count();
                let says_something = !token.text.is_empty() || self.shape.logprobs;
                says_something.then(|| self.text(i, &token, offset))
            }
            ReplyEvent::Finished {
                finish,
                usage: this,
                closing,
            } => {
                *usage = Some(this);
                self.about.close(i, closing);
                Some(frame(&self.shape.ending(i, finish)))
            }
            // The status line is long gone: the stream itself has to say it.
            ReplyEvent::Failed(error) => {
                self.state = Phase::Over;
                let text = frame(&ApiError::from(error).body());
                Some(text + &frame("[DONE]"))
            }
        }
    }

    fn text(&self, i: u32, token: &Token, offset: usize) -> String {
        frame(&self.shape.text(i, token, offset))
    }

    fn end(&self) -> String {
        let mut text = String::new();
        if self.shape.include_usage {
            let usage = total(self.answers.iter().filter_map(|(_, usage)| *usage));
            text = frame(
                &self
                    .shape
                    .usage(usage, self.spending.receipt(), &self.about),
            );
        }
        text + &frame("[DONE]")
    }
}
