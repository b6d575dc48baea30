//! Remote tiers against small servers that behave well, badly and very badly.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt;
use homeostat_cascade::{
    GenerateCall, OutputFormat, Prompt, Sampling, Tier, TierError, TierEvent, TierFault, Token,
};
use homeostat_hooks::{Finish, Message, Role, TierView};
use serde_json::{Value, json};

use super::remote::{Prefill, RemoteConfig, RemoteTier, WrittenOut};

/// A server on a port of its own that answers every question with `answer`.
async fn serve(answer: impl Fn(Value) -> Response + Clone + Send + Sync + 'static) -> SocketAddr {
    let handler = move |body: Bytes| {
        let answer = answer.clone();
        async move { answer(serde_json::from_slice(&body).unwrap()) }
    };
    let app = Router::new()
        .route("/v1/models", get(|| async { "{}" }))
        .route("/v1/chat/completions", post(handler.clone()))
        .route("/v1/completions", post(handler));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    addr
}

/// An event stream in these pieces.
fn events(pieces: &[&str]) -> Response {
    let pieces: Vec<Result<Bytes, std::io::Error>> = pieces
        .iter()
        .map(|p| Ok(Bytes::copy_from_slice(p.as_bytes())))
        .collect();
    let body = Body::from_stream(futures::stream::iter(pieces));
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

fn config(addr: SocketAddr) -> RemoteConfig {
    RemoteConfig {
        view: TierView {
            id: "big".into(),
            model: "upstream".into(),
            ..TierView::default()
        },
        url: format!("http://{addr}/v1"),
        api_key: Some("secret".into()),
        logprobs: true,
        prefill: Prefill::TrailingAssistant,
        template: None,
        max_tokens: 9,
        connect_timeout: Duration::from_secs(20),
        first_byte_timeout: Duration::from_secs(20),
        idle_timeout: Duration::from_secs(20),
    }
}

fn call(prefix: &str) -> GenerateCall {
    GenerateCall {
        request_id: "r".into(),
        prompt: Arc::new(Prompt::Chat(vec![Message {
            role: Role::User,
            content: "hello".into(),
        }])),
        sampling: Sampling::default(),
        max_tokens: None,
        max_draft_tokens: 0,
        output: OutputFormat::Text,
        answer_prefix: prefix.into(),
        draft_hint: String::new(),
        sharer: None,
        priority: 0,
        time_left: None,
    }
}

/// Text, last event, or the error that came instead of one of them.
async fn ask(tier: &RemoteTier, prefix: &str) -> Result<(Vec<Token>, TierEvent), TierError> {
    let mut stream = tier.generate(call(prefix)).await?;
    let mut tokens = Vec::new();
    while let Some(event) = stream.next().await {
        match event? {
            TierEvent::Token(token) => tokens.push(token),
            finished => {
                assert!(stream.next().await.is_none(), "nothing follows the end");
                return Ok((tokens, finished));
            }
        }
    }
    panic!("the stream has no end");
}

fn text(tokens: &[Token]) -> String {
    tokens.iter().map(|t| t.text.as_str()).collect()
}

#[tokio::test]
async fn a_stream_is_read_to_its_end_wherever_it_is_cut() {
    let whole = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n\
                 data: {\"choices\":[{\"delta\":{\"content\":\"é\"},\"logprobs\":{\"content\":[{\"token\":\"é\",\"logprob\":-0.5}]}}]}\n\n\
                 data: {\"choices\":[{\"delta\":{\"content\":\"!\"},\"finish_reason\":\"length\"}]}\n\n\
                 data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n\
                 data: [DONE]\n\n";
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let addr = serve(move |body| {
        let count = {
            let mut seen = seen.lock().unwrap();
            seen.push(body);
            seen.len()
        };
        let mut cut = count * 17;
        while !whole.is_char_boundary(cut) {
            cut += 1;
        }
        events(&[&whole[..cut], &whole[cut..]])
    })
    .await;
    let tier = RemoteTier::start(config(addr));
    for _ in 0..5 {
        let (tokens, end) = ask(&tier, "").await.unwrap();
        assert_eq!(text(&tokens), "é!");
        assert_eq!(tokens[0].logprob, Some(-0.5));
        let expected = TierEvent::Finished {
            finish: Finish::Length,
            prompt_tokens: 3,
            completion_tokens: 2,
        };
        assert_eq!(end, expected);
    }
    let asked = asked.lock().unwrap();
    assert_eq!(asked[0]["model"], "upstream");
    assert_eq!(asked[0]["max_tokens"], 9);
    assert_eq!(asked[0]["logprobs"], true);
    let view = tier.view();
    assert!(view.ready && view.gives_logprobs && view.ttft_ms.is_some());
    assert_eq!(view.num_requests_running, 0);
}

#[tokio::test]
async fn a_server_that_refuses_log_probabilities_is_asked_without_and_remembered() {
    for (status, message) in [
        (422, "extra fields not permitted: logprobs"),
        (400, "unknown parameter"),
        (
            500,
            "logprobs is not supported for models created with logits_all=False",
        ),
    ] {
        let questions = Arc::new(AtomicUsize::new(0));
        let count = questions.clone();
        let addr = serve(move |body| {
            count.fetch_add(1, Ordering::SeqCst);
            if body.get("logprobs").is_some() {
                let status = StatusCode::from_u16(status).unwrap();
                return (status, json!({"error": {"message": message}}).to_string()).into_response();
            }
            events(&["data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}\n\n"])
        })
        .await;
        let tier = RemoteTier::start(config(addr));
        for _ in 0..2 {
            let (tokens, _) = ask(&tier, "").await.unwrap();
            assert_eq!((text(&tokens).as_str(), tokens[0].logprob), ("a", None));
        }
        assert_eq!(
            questions.load(Ordering::SeqCst),
            3,
            "only the first is asked twice"
        );
        assert!(!tier.view().gives_logprobs);
    }
}

#[tokio::test]
async fn a_refusal_that_is_not_about_log_probabilities_does_not_switch_them_off() {
    let addr = serve(|_| {
        let body = json!({"error": {"message": "maximum context length is 10"}}).to_string();
        (StatusCode::BAD_REQUEST, body).into_response()
    })
    .await;
    let tier = RemoteTier::start(config(addr));
    let error = ask(&tier, "").await.unwrap_err();
    assert_eq!(error.fault, TierFault::Client);
    assert_eq!(error.code, "context_length_exceeded");
    assert!(tier.view().gives_logprobs);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable_and_not_ready() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let tier = RemoteTier::start(config(addr));
    let error = ask(&tier, "").await.unwrap_err();
    assert_eq!((error.fault, error.code), (TierFault::Tier, "unavailable"));
    assert!(error.retryable);
    assert!(error.message.contains("big"), "{}", error.message);
    assert!(!tier.view().ready);
    assert_eq!(tier.view().num_requests_running, 0);
}

#[tokio::test]
async fn a_server_that_comes_back_becomes_ready_by_itself() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let tier = RemoteTier::start(config(addr));
    assert!(ask(&tier, "").await.is_err());
    let app = Router::new().route("/v1/models", get(|| async { "{}" }));
    let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    // Generous: the test hangs here if the tier is never probed again.
    for _ in 0..6000 {
        if tier.view().ready {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the tier was never probed again");
}

#[tokio::test]
async fn a_server_error_is_unavailable_and_says_what_the_server_said() {
    let addr = serve(|_| (StatusCode::BAD_GATEWAY, "<html>oops").into_response()).await;
    let error = ask(&RemoteTier::start(config(addr)), "").await.unwrap_err();
    assert_eq!((error.fault, error.code), (TierFault::Tier, "unavailable"));
    assert!(error.message.contains("502") && error.message.contains("oops"));
}

#[tokio::test]
async fn a_busy_server_says_when_to_come_back() {
    let addr = serve(|_| {
        let headers = [(header::RETRY_AFTER, "7")];
        (StatusCode::TOO_MANY_REQUESTS, headers, "{}").into_response()
    })
    .await;
    let error = ask(&RemoteTier::start(config(addr)), "").await.unwrap_err();
    assert_eq!(
        (error.code, error.retry_after_ms),
        ("queue_full", Some(7000))
    );
}

#[tokio::test]
async fn half_a_stream_and_nonsense_are_failures_and_not_answers() {
    const TOKEN: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    for (pieces, word) in [
        (vec![TOKEN], "without a reason"),
        (vec![TOKEN, "data: [DONE]\n\n"], "without a reason"),
        (vec![TOKEN, "data: {\"choices\":[{\"del"], "no chunk"),
        (vec![TOKEN, "data: garbage\n\n"], "garbage"),
        (
            vec![TOKEN, "data: {\"error\":{\"message\":\"boom\"}}\n\n"],
            "boom",
        ),
        (vec![], "without a reason"),
    ] {
        let addr = serve(move |_| events(&pieces)).await;
        let tier = RemoteTier::start(config(addr));
        let error = ask(&tier, "").await.unwrap_err();
        assert_eq!(error.fault, TierFault::Tier, "{}", error.message);
        assert!(error.message.contains(word), "{}: {word}", error.message);
        assert_eq!(tier.view().num_requests_running, 0);
    }
}

#[tokio::test]
async fn a_connection_that_breaks_in_the_middle_is_told_with_what_was_received() {
    let addr = serve(|_| {
        let token = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
        let first = futures::stream::iter([Ok(token)]);
        let cut = futures::stream::once(async {
            // Until the head and the first piece have left.
            tokio::time::sleep(Duration::from_millis(100)).await;
            Err(std::io::Error::other("cut"))
        });
        let body = Body::from_stream(first.chain(cut));
        ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
    })
    .await;
    let mut stream = RemoteTier::start(config(addr))
        .generate(call(""))
        .await
        .unwrap();
    let mut received = 0;
    let error = loop {
        match stream.next().await.expect("an error ends this stream") {
            Ok(_) => received += 1,
            Err(error) => break error,
        }
    };
    assert!(received <= 1);
    assert!(error.message.contains(&format!("after {received} tokens")));
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn what_is_no_event_stream_is_refused() {
    let addr = serve(|_| "<html>login</html>".into_response()).await;
    let error = ask(&RemoteTier::start(config(addr)), "").await.unwrap_err();
    assert!(error.message.contains("event stream"), "{}", error.message);
}

#[tokio::test]
async fn a_server_that_repeats_what_the_client_has_seen_does_not_double_it() {
    const PREFIX: &str = "The capital of France";
    for (sent, expected) in [
        (["The capital", " of France is"], " is"),
        ([" is", " Paris"], " is Paris"),
        (["The capital", " of Italy is"], "The capital of Italy is"),
        (["The", ""], "The"),
    ] {
        let addr = serve(move |body| {
            assert_eq!(body["messages"][1]["content"], PREFIX);
            let chunk = |t: &str| {
                let chunk = json!({"choices": [{"delta": {"content": t}}]});
                format!("data: {chunk}\n\n")
            };
            let end = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
            events(&[&chunk(sent[0]), &chunk(sent[1]), end])
        })
        .await;
        let (tokens, _) = ask(&RemoteTier::start(config(addr)), PREFIX).await.unwrap();
        assert_eq!(text(&tokens), expected);
    }
}

#[tokio::test]
async fn where_chats_cannot_be_continued_the_conversation_is_written_out() {
    const TEMPLATE: &str = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}\
                            {% if add_generation_prompt %}<assistant>{% endif %}";
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let addr = serve(move |body| {
        seen.lock().unwrap().push(body);
        events(&[
            "data: {\"choices\":[{\"text\":\"\\nis \"}]}\n\n",
            "data: {\"choices\":[{\"text\":\"on\",\"finish_reason\":\"stop\"}]}\n\n",
        ])
    })
    .await;
    let mut config = config(addr);
    config.prefill = Prefill::Completions;
    config.template = Some(Arc::new(WrittenOut::new(TEMPLATE).unwrap()));
    let tier = RemoteTier::start(config);
    assert!(tier.can_continue(&call("").prompt));
    // White space at the seam is the client's already.
    let (tokens, _) = ask(&tier, "The light\n").await.unwrap();
    assert_eq!(text(&tokens), "is on");
    // What has not begun is a chat as ever.
    ask(&tier, "").await.unwrap();
    let asked = asked.lock().unwrap();
    assert_eq!(asked[0]["prompt"], "<user>hello<assistant>The light");
    assert_eq!(asked[0]["messages"], Value::Null);
    assert_eq!(asked[1]["messages"][0]["content"], "hello");
}

#[tokio::test]
async fn a_tier_that_cannot_continue_refuses_what_has_begun() {
    let addr = serve(|_| events(&[])).await;
    let mut config = config(addr);
    config.prefill = Prefill::None;
    let tier = RemoteTier::start(config);
    let error = ask(&tier, "begun").await.unwrap_err();
    assert_eq!(error.code, "cannot_continue");
    assert!(!tier.can_continue(&call("").prompt));
    assert!(tier.can_continue(&Prompt::Raw("plain text goes on".into())));
}

#[tokio::test]
async fn a_dropped_answer_closes_the_connection() {
    let (sender, gone) = tokio::sync::oneshot::channel::<()>();
    let sender = Arc::new(Mutex::new(Some(sender)));
    let addr = serve(move |_| {
        // Dropped with the body, which the server drops when the client is gone.
        let held = sender.lock().unwrap().take();
        let token = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
        let endless = futures::stream::unfold(held, move |held| async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Some((Ok::<_, std::io::Error>(token), held))
        });
        let body = Body::from_stream(endless);
        ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
    })
    .await;
    let tier = RemoteTier::start(config(addr));
    let mut stream = tier.generate(call("")).await.unwrap();
    stream.next().await.unwrap().unwrap();
    assert_eq!(tier.view().num_requests_running, 1);
    drop(stream);
    assert!(gone.await.is_err(), "the server noticed");
    assert_eq!(tier.view().num_requests_running, 0);
}

#[tokio::test]
async fn a_server_is_not_probed_while_it_answers() {
    let probes = Arc::new(AtomicUsize::new(0));
    let count = probes.clone();
    let probe = get(move || async move {
        count.fetch_add(1, Ordering::SeqCst);
        // Never ready, so the pauses between probes are short.
        StatusCode::INTERNAL_SERVER_ERROR
    });
    let answer = post(|| async {
        let token = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
        let first = futures::stream::iter([Ok::<_, std::io::Error>(token)]);
        let body = Body::from_stream(first.chain(futures::stream::pending()));
        ([(header::CONTENT_TYPE, "text/event-stream")], body)
    });
    let app = Router::new()
        .route("/v1/models", probe)
        .route("/v1/chat/completions", answer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let tier = RemoteTier::start(config(addr));
    while probes.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut stream = tier.generate(call("")).await.unwrap();
    stream.next().await.unwrap().unwrap();
    let before = probes.load(Ordering::SeqCst);
    // Two of the shortest pauses.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(probes.load(Ordering::SeqCst), before);
    assert!(tier.view().ready, "what answers is ready");
    drop(stream);
    while probes.load(Ordering::SeqCst) == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
